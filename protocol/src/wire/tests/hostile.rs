//! Unknown fields, depth and lying lengths (protobuf and JSON): an error, no panic, no memory for what is not there.

use bytes::Bytes;

use super::round_trip::sample_send;
use super::strategies::{key, length_delimited, varint};
use crate::frames::*;
use crate::ids::*;
use crate::records::*;
use crate::{ErrorCode, limits};

fn code_of(form: Form, payload: &[u8]) -> ErrorCode {
    ClientFrame::decode(form, payload).expect_err("it must be refused").code
}

#[test]
fn unknown_fields_are_ignored() {
    let unknown = [
        length_delimited(99, b"later"),
        [key(1000, 0), varint(u64::MAX)].concat(),
        [key(55, 5), vec![1; 4]].concat(),
        [key(56, 1), vec![1; 8]].concat(),
        [key(57, 3), key(1, 0), varint(3), key(57, 4)].concat(),
    ]
    .concat();
    let send = ClientFrame { id: Some(3), body: ClientBody::Send(sample_send("text/plain", b"hello")) };
    let bytes = [unknown.clone(), send.encode(Form::Binary), unknown].concat();
    assert_eq!(ClientFrame::decode(Form::Binary, &bytes), Ok(send));
}

#[test]
fn depth_1000_is_an_error() {
    let groups = [key(99, 3).repeat(1000), key(99, 4).repeat(1000)].concat();
    assert_eq!(code_of(Form::Binary, &groups), ErrorCode::Malformed);
    let mut nested = Vec::new();
    for _ in 0..1000 {
        nested = length_delimited(3, &nested);
    }
    assert_eq!(code_of(Form::Binary, &nested), ErrorCode::Malformed);
    for (open, close) in [("[", "]"), ("{\"x\":", "}")] {
        let text = format!(r#"{{"type":"ping","x":{}1{}}}"#, open.repeat(1000), close.repeat(1000));
        assert_eq!(code_of(Form::Json, text.as_bytes()), ErrorCode::Malformed);
        assert_eq!(code_of(Form::Json, open.repeat(100_000).as_bytes()), ErrorCode::Malformed);
    }
    let brackets = "[".repeat(1000);
    let text = format!(r#"{{"type":"ping","x":"{brackets}\"{brackets}"}}"#);
    assert!(ClientFrame::decode(Form::Json, text.as_bytes()).is_ok(), "brackets in a text are no depth");
}

#[test]
fn lying_lengths_are_an_error() {
    for length in [5, 1 << 20, 1 << 31, 1 << 32, 1 << 40, u64::MAX >> 1, u64::MAX] {
        for number in 1..20 {
            let outer = [key(number, 2), varint(length), vec![1; 4]].concat();
            assert_eq!(code_of(Form::Binary, &outer), ErrorCode::Malformed, "field {number}, length {length}");
            let inner = length_delimited(3, &outer);
            assert_eq!(code_of(Form::Binary, &inner), ErrorCode::Malformed, "field {number}, length {length}");
            assert!(ServerFrame::decode(Form::Binary, Bytes::from(outer.clone())).is_err());
            let record = [key(1, 5), (0x526f_7301u32).to_le_bytes().to_vec(), outer].concat();
            assert!(matches!(IngressRecord::decode(&record), Err(RecordError::Poison(_))));
            assert!(matches!(DeliverRecord::decode(Bytes::from(record)), Err(RecordError::Poison(_))));
        }
    }
    for endless in [vec![0x80; 10], vec![0xff; 11], vec![0x08], vec![0x08, 0x80], vec![0x00, 0x01], vec![0x0e, 0x01]] {
        assert_eq!(code_of(Form::Binary, &endless), ErrorCode::Malformed, "{endless:x?}");
    }
}

#[test]
fn damage_after_the_ids_still_finds_the_request() {
    let mut send = sample_send("text/plain", b"hello");
    send.client_msg_id = ClientMsgId::new();
    let wanted = (Some(9), Some(send.client_msg_id));
    let bytes = ClientFrame { id: Some(9), body: ClientBody::Send(send) }.encode(Form::Binary);
    for cut in bytes.len() - 6..bytes.len() {
        let refused = ClientFrame::decode(Form::Binary, &bytes[..cut]).expect_err("it is damaged");
        assert_eq!(refused.id, wanted.0);
        assert_eq!(refused.code, ErrorCode::Malformed);
    }
    // A body that is complete but whose content type is no text.
    let inner = [length_delimited(1, wanted.1.expect("set").as_bytes()), length_delimited(3, b"\xff")].concat();
    let refused = ClientFrame::decode(Form::Binary, &[vec![8, 9], length_delimited(3, &inner)].concat()).map(|_| ());
    let refused = refused.expect_err("not UTF-8");
    assert_eq!((refused.id, refused.client_msg_id), wanted);
}

#[test]
fn ids_and_bodies_are_checked_in_the_binary_form_too() {
    let ids = [length_delimited(1, &[1; 16]), length_delimited(2, &[2; 16])].concat();
    let with = |rest: Vec<u8>| length_delimited(3, &[ids.clone(), rest].concat());
    let bytes = with(Vec::new());
    let read = ClientFrame::decode(Form::Binary, &bytes).expect("an empty body is a body");
    let ClientBody::Send(send) = read.body else { panic!("a send") };
    assert_eq!(send.content_type, "application/octet-stream");
    let too_large = with(length_delimited(4, &vec![0; limits::BODY_BYTES_MAX + 1]));
    assert_eq!(code_of(Form::Binary, &too_large), ErrorCode::BodyTooLarge);
    let nil = length_delimited(3, &[length_delimited(1, &[0; 16]), length_delimited(2, &[2; 16])].concat());
    assert_eq!(code_of(Form::Binary, &nil), ErrorCode::InvalidField);
    let short = length_delimited(3, &[length_delimited(1, &[1; 15]), length_delimited(2, &[2; 16])].concat());
    assert_eq!(code_of(Form::Binary, &short), ErrorCode::InvalidField);
    assert_eq!(code_of(Form::Binary, &[]), ErrorCode::Malformed, "no body");
    assert_eq!(code_of(Form::Binary, &length_delimited(77, b"")), ErrorCode::Malformed, "a body of a later version");
}

#[test]
fn records_of_a_newer_format_are_not_poison() {
    let record = |format: u32| [key(1, 5), format.to_le_bytes().to_vec(), vec![0xff]].concat();
    assert_eq!(IngressRecord::decode(&record(0x526f_7302)), Err(RecordError::Newer(2)));
    assert_eq!(DeliverRecord::decode(Bytes::from(record(0x526f_73ff))), Err(RecordError::Newer(255)));
    for poison in [record(0x526f_7301), record(0x526f_7300), record(2), vec![], vec![0x08, 0x02], b"poison".to_vec()] {
        assert!(matches!(IngressRecord::decode(&poison), Err(RecordError::Poison(_))), "{poison:x?}");
        assert!(matches!(DeliverRecord::decode(Bytes::from(poison)), Err(RecordError::Poison(_))));
    }
}

#[test]
fn members_are_sorted_and_each_there_once() {
    let user = |byte: u8| UserId::from_bytes([byte; 16]);
    let create = |members: Vec<UserId>| IngressRecord {
        actor: user(1),
        device: DeviceId::new(),
        client_msg_id: ClientMsgId::new(),
        time: 1,
        origin: None,
        if_last_seq: None,
        action: Action::Create {
            conversation_id: ConversationId::new(),
            kind: ConversationKind::Group,
            title: None,
            members,
        },
    };
    let reads = |members: Vec<UserId>| IngressRecord::decode(&create(members).encode()).map(|_| ());
    assert_eq!(reads(vec![user(1), user(2), user(3)]), Ok(()));
    for wrong in [vec![], vec![user(2), user(1)], vec![user(1), user(1)]] {
        assert!(matches!(reads(wrong), Err(RecordError::Poison(_))));
    }
    let many = |count: u128| (1..=count).map(|value| UserId::from_bytes(value.to_be_bytes())).collect::<Vec<_>>();
    assert_eq!(reads(many(limits::MEMBERS_MAX as u128)), Ok(()));
    assert!(create(many(limits::MEMBERS_MAX as u128)).encode().len() <= limits::RECORD_BYTES_MAX);
    assert!(matches!(reads(many(limits::MEMBERS_MAX as u128 + 1)), Err(RecordError::Poison(_))));
}
