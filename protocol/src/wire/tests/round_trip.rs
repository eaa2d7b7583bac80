//! What is written reads back as it was, in both forms.

use std::borrow::Cow;

use bytes::Bytes;
use proptest::prelude::*;

use super::strategies::*;
use crate::frames::*;
use crate::ids::*;
use crate::records::*;

proptest! {
    #[test]
    fn client_frames(frame in client_frame()) {
        for form in Form::ALL {
            let bytes = frame.encode(form);
            let read = ClientFrame::decode(form, &bytes);
            prop_assert_eq!(read.as_ref(), Ok(&frame));
            prop_assert_eq!(read.expect("just checked").into_owned(), frame.clone());
        }
    }

    #[test]
    fn server_frames(frame in server_frame()) {
        for form in Form::ALL {
            let read = ServerFrame::decode(form, Bytes::from(frame.encode(form)));
            prop_assert_eq!(read, Ok(Some(frame.clone())));
        }
    }

    #[test]
    fn a_message_written_directly_is_the_frame(message in message()) {
        let mut direct = Vec::new();
        message.encode_frame_into(Form::Json, &mut direct);
        prop_assert_eq!(direct, ServerFrame::unsolicited(ServerBody::Message(message)).encode(Form::Json));
    }

    #[test]
    fn pages_for_rest(page in page()) {
        let mut out = Vec::new();
        page.write_json(&mut out);
        prop_assert_eq!(Page::from_json(&out), Ok(page));
    }
}

#[test]
fn the_binary_form_borrows_from_the_payload() {
    let send = ClientFrame { id: None, body: ClientBody::Send(sample_send("text/plain", b"hello")) };
    for form in Form::ALL {
        let bytes = send.encode(form);
        let Ok(ClientFrame { body: ClientBody::Send(read), .. }) = ClientFrame::decode(form, &bytes) else {
            panic!("it reads back");
        };
        assert!(matches!(read.body, Cow::Borrowed(_)), "{form:?} copied the body");
        assert!(matches!(read.content_type, Cow::Borrowed(_)), "{form:?} copied the content type");
    }
}

#[test]
fn a_record_of_an_owned_frame_is_the_same_record() {
    let action = Action::Send {
        conversation_id: ConversationId::new(),
        content_type: Cow::Borrowed("text/plain"),
        body: Cow::Borrowed(b"hello"),
    };
    let record = IngressRecord {
        actor: UserId::new(),
        device: DeviceId::new(),
        client_msg_id: ClientMsgId::new(),
        time: 1,
        origin: None,
        if_last_seq: None,
        action,
    };
    let encoded = record.encode();
    let read = IngressRecord::decode(&encoded).expect("a record");
    assert!(matches!(&read.action, Action::Send { body: Cow::Borrowed(_), .. }), "the body was copied");
    assert_eq!(read.into_owned(), record);
}

#[test]
fn a_delivered_body_is_a_slice_of_what_was_fetched() {
    let body = Bytes::from(vec![7u8; 1000]);
    let message = Message {
        conversation_id: ConversationId::new(),
        seq: 1,
        sender_id: UserId::new(),
        device_id: DeviceId::new(),
        client_msg_id: ClientMsgId::new(),
        time: 1,
        content_type: "application/octet-stream".to_owned(),
        body,
        event: None,
    };
    let fetched = DeliverRecord { members_version: 1, message }.encode();
    let whole = fetched.as_ptr_range();
    let read = DeliverRecord::decode(fetched.clone()).expect("a record");
    assert!(whole.contains(&read.message.body.as_ptr()), "the body was copied");
}

pub(super) fn sample_send(content_type: &'static str, body: &'static [u8]) -> Send<'static> {
    Send {
        client_msg_id: ClientMsgId::new(),
        conversation_id: ConversationId::new(),
        content_type: Cow::Borrowed(content_type),
        body: Cow::Borrowed(body),
    }
}
