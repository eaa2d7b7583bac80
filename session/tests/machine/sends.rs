//! Sends: one answer each, in the sender's order.

use roost_protocol::ErrorCode;
use roost_protocol::frames::{ClientBody, Form, Send, ServerBody, ServerFrame};
use roost_session::machine::content_of;

use crate::harness::*;

fn sends_told(driven: &Driven) -> Vec<u8> {
    driven
        .told
        .iter()
        .filter_map(|told| match told {
            Told::Send(_, _, _, body) => Some(body[0]),
            _ => None,
        })
        .collect()
}

/// (frame id, what, the code of a retry)
fn answers(driven: &mut Driven) -> Vec<(Option<u32>, &'static str, Option<ErrorCode>)> {
    let answer = |frame: ServerFrame| match frame.body {
        ServerBody::Sent { .. } => (frame.id, "sent", None),
        ServerBody::Retry { code, .. } => (frame.id, "retry", Some(code)),
        ServerBody::Rejected { code, .. } => (frame.id, "rejected", Some(code)),
        other => panic!("{other:?}"),
    };
    driven.frames().into_iter().map(answer).collect()
}

#[test]
fn a_repeated_send_in_flight_is_answered_once_under_its_newest_id() {
    let mut driven = Driven::live(Form::Json);
    driven.send(1, 0, 5);
    driven.send(2, 0, 5);
    assert_eq!(sends_told(&driven), [5], "one goes into the log");
    assert!(driven.settle(0, 5));
    assert_eq!(answers(&mut driven), [(Some(2), "sent", None)]);
    assert!(!driven.settle(0, 5), "a second word tells nothing new");
    assert_eq!((answers(&mut driven), driven.session.sends_in_flight()), (vec![], 0));
}

#[test]
fn another_content_under_an_id_in_flight_is_a_mismatch() {
    let mut driven = Driven::live(Form::Binary);
    driven.send(1, 0, 5);
    let other = Send {
        client_msg_id: message_id(5),
        conversation_id: conversation_id(0),
        content_type: "text/plain".into(),
        body: b"another".as_slice().into(),
    };
    driven.say(Some(2), ClientBody::Send(other));
    assert_eq!(answers(&mut driven), [(Some(2), "rejected", Some(ErrorCode::IdempotencyMismatch))]);
    assert!(driven.settle(0, 5));
    assert_eq!(answers(&mut driven), [(Some(1), "sent", None)]);
}

#[test]
fn a_message_that_says_something_else_is_no_answer_to_the_send_in_flight() {
    let mut driven = Driven::live(Form::Json);
    driven.send(1, 0, 5);
    assert!(!driven.settle_by(0, 5, Some(content_of("text/plain", b"what was first sent under this id"))));
    assert_eq!(answers(&mut driven), []);
    assert!(driven.settle_by(0, 5, Some(content_of("text/plain", &[5]))));
    assert_eq!(answers(&mut driven), [(Some(1), "sent", None)]);
}

#[test]
fn after_a_retry_later_sends_of_the_conversation_wait_for_it() {
    let mut driven = Driven::live(Form::Json);
    driven.send(1, 0, 1);
    driven.send(2, 0, 2);
    driven.call(|session, context, _| session.send_failed(2, ErrorCode::Busy, context));
    driven.call(|session, context, _| session.send_failed(1, ErrorCode::Busy, context));
    driven.send(3, 0, 3);
    driven.send(4, 1, 4);
    driven.send(5, 0, 2);
    let busy = Some(ErrorCode::Busy);
    let order = Some(ErrorCode::Order);
    assert_eq!(
        answers(&mut driven),
        [(Some(2), "retry", busy), (Some(1), "retry", busy), (Some(3), "retry", order), (Some(5), "retry", order)],
        "the earliest of those that failed comes first; another conversation is not concerned"
    );
    driven.send(6, 0, 1);
    driven.send(7, 0, 2);
    driven.send(8, 0, 3);
    assert_eq!(sends_told(&driven), [1, 2, 4, 1, 2, 3]);
    assert_eq!(answers(&mut driven), []);
}

#[test]
fn an_id_that_is_known_to_be_committed_holds_nobody_up() {
    let mut driven = Driven::live(Form::Json);
    driven.send(1, 0, 1);
    driven.pass(15_000);
    driven.send(2, 0, 2);
    let deadline = Some(ErrorCode::Deadline);
    let order = Some(ErrorCode::Order);
    assert_eq!(answers(&mut driven), [(Some(1), "retry", deadline), (Some(2), "retry", order)]);
    assert!(driven.settle(0, 1), "its verdict, its own message, or a page");
    driven.send(3, 0, 2);
    assert_eq!((answers(&mut driven), sends_told(&driven)), (vec![(None, "sent", None)], vec![1, 2]));
}

#[test]
fn a_rejected_id_holds_nobody_up() {
    let mut driven = Driven::live(Form::Json);
    driven.send(1, 0, 1);
    driven.call(|session, context, _| session.send_failed(1, ErrorCode::Busy, context));
    driven.call(|session, context, _| {
        session.rejected(conversation_id(0), message_id(1), ErrorCode::NotFound, "no", context)
    });
    driven.send(2, 0, 2);
    assert_eq!(sends_told(&driven), [1, 2]);
    let expected = [(Some(1), "retry", Some(ErrorCode::Busy)), (None, "rejected", Some(ErrorCode::NotFound))];
    assert_eq!(answers(&mut driven), expected);
}

#[test]
fn too_many_in_flight_are_told_to_wait() {
    let mut driven = Driven::live(Form::Binary);
    driven.settings.sends_in_flight_max = 3;
    for message in 0..5 {
        driven.send(u32::from(message), message, message);
    }
    let busy = Some(ErrorCode::Busy);
    assert_eq!(answers(&mut driven), [(Some(3), "retry", busy), (Some(4), "retry", busy)]);
    driven.settle(0, 0);
    driven.send(9, 3, 3);
    assert_eq!(sends_told(&driven), [0, 1, 2, 3]);
    assert_eq!(driven.session.take_retries(), 2);
}

#[test]
fn a_send_that_can_never_pass_is_rejected() {
    let mut driven = Driven::live(Form::Json);
    let text = format!(
        r#"{{"type":"send","id":7,"client_msg_id":"{}","conversation_id":"{}","text":"x","content_type":"{}"}}"#,
        message_id(1),
        conversation_id(1),
        "x".repeat(200)
    );
    driven.receive(&data_frame(Form::Json, text.as_bytes()));
    assert_eq!(answers(&mut driven), [(Some(7), "rejected", Some(ErrorCode::InvalidField))]);
}
