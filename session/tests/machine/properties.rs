//! Random orders of everything that can happen to a live session.

use std::collections::HashMap;

use proptest::prelude::*;
use roost_protocol::frames::{ClientBody, Form, ServerBody};
use roost_protocol::{ClientMsgId, CloseCode, ErrorCode};
use roost_session::machine::Loss;

use crate::harness::*;

#[derive(Clone, Debug)]
enum Step {
    Send(u8),
    Settle(u8),
    Reject(u8),
    Fail(u32),
    Deliver(usize, bool),
    Write(usize),
    Pass(u64),
    Sync,
    Answer,
    Ping,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0u8..12).prop_map(Step::Send),
        4 => (0u8..12).prop_map(Step::Settle),
        1 => (0u8..12).prop_map(Step::Reject),
        3 => (1u32..40).prop_map(Step::Fail),
        3 => (0usize..300_000, any::<bool>()).prop_map(|(bytes, lossy)| Step::Deliver(bytes, lossy)),
        6 => (0usize..400_000).prop_map(Step::Write),
        3 => (0u64..9_000).prop_map(Step::Pass),
        2 => Just(Step::Sync),
        2 => Just(Step::Answer),
        1 => Just(Step::Ping),
    ]
}

/// A message's conversation is given by its number, as it would be for a client.
fn conversation_of(message: u8) -> u8 {
    message % 3
}

fn take(driven: &mut Driven, step: &Step) {
    match *step {
        Step::Send(message) => driven.send(u32::from(message), conversation_of(message), message),
        Step::Settle(message) => {
            driven.settle(conversation_of(message), message);
        }
        Step::Reject(message) => {
            let (conversation, message) = (conversation_id(conversation_of(message)), message_id(message));
            driven.call(|session, context, _| {
                session.rejected(conversation, message, ErrorCode::NotFound, "no", context)
            });
        }
        Step::Fail(request) => {
            driven.call(|session, context, _| session.send_failed(request, ErrorCode::Busy, context));
        }
        Step::Deliver(bytes, lossy) => driven.deliver(bytes, if lossy { Loss::Allowed } else { Loss::Never }),
        Step::Write(bytes) => driven.write(bytes),
        Step::Pass(milliseconds) => driven.pass(milliseconds),
        Step::Sync => driven.say(None, ClientBody::Sync { since: None }),
        Step::Answer => {
            if driven.requests.pop().is_some() {
                driven.call(|session, context, _| session.answer(bytes::Bytes::from_static(b"\x82\x00"), context));
            } else if let Some(request) = driven.session.poll_request(&driven.settings) {
                driven.requests.push(request);
            }
        }
        Step::Ping => driven.say(None, ClientBody::Ping),
    }
}

/// The last answer to every id.
fn last_answers(driven: &mut Driven) -> HashMap<ClientMsgId, usize> {
    let mut answers = HashMap::new();
    for frame in driven.frames() {
        if let ServerBody::Sent { client_msg_id, .. }
        | ServerBody::Retry { client_msg_id, .. }
        | ServerBody::Rejected { client_msg_id, .. } = frame.body
        {
            *answers.entry(client_msg_id).or_insert(0) += 1;
        }
    }
    answers
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn queues_stay_bounded_and_every_send_is_answered(
        form in prop_oneof![Just(Form::Binary), Just(Form::Json)],
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let mut driven = Driven::live(form);
        let mut sent: HashMap<ClientMsgId, usize> = HashMap::new();
        let mut answered: HashMap<ClientMsgId, usize> = HashMap::new();
        for step in &steps {
            take(&mut driven, step);
            if let (Step::Send(message), true) = (step, driven.session.is_live()) {
                *sent.entry(message_id(*message)).or_insert(0) += 1;
            }
            prop_assert!(driven.session.queued_bytes() <= driven.settings.queue_bytes_hard + 64);
            prop_assert!(driven.session.sends_in_flight() <= 12, "an id is in flight once");
            if driven.session.is_live() {
                let deadline = driven.session.deadline(&driven.settings).expect("a live session has a deadline");
                prop_assert!(deadline <= driven.now.steady_ms + 25_000);
            }
            if matches!(step, Step::Write(_)) {
                for (id, count) in last_answers(&mut driven) {
                    *answered.entry(id).or_insert(0) += count;
                }
            }
        }
        // A verdict that never comes is answered by the deadline.
        let live = driven.session.is_live();
        for _ in 0..3 {
            driven.write(usize::MAX);
            driven.say(None, ClientBody::Pong);
            driven.pass(7_500);
        }
        for (id, count) in last_answers(&mut driven) {
            *answered.entry(id).or_insert(0) += count;
        }
        if live && driven.session.is_live() {
            prop_assert_eq!(driven.session.sends_in_flight(), 0);
            for (id, count) in &sent {
                let answers = answered.get(id).copied().unwrap_or(0);
                prop_assert!(answers >= 1, "{id} was never answered");
                // `retry`, and then the news that it was committed after all.
                prop_assert!(answers <= 2 * count, "{id} was sent {count} times and answered {answers} times");
            }
        }
        // Whatever happened, the end comes and leaves nothing.
        driven.call(|session, context, _| session.close(CloseCode::Drained, context));
        driven.write(usize::MAX);
        driven.pass(2_001);
        prop_assert!(driven.session.is_finished());
        prop_assert_eq!(driven.session.queued_bytes(), 0);
    }
}
