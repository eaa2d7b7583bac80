//! The JSON form of client frames: what is refused, with which code, and whom the refusal finds.

use crate::frames::*;
use crate::limits;
use crate::{ErrorCode, Form};

const CONVERSATION: &str = "018f2f3c-0000-7000-8000-000000000001";
const MESSAGE: &str = "018f2f3c-0000-7000-8000-0000000000aa";

fn decode(text: &str) -> Result<ClientFrame<'_>, DecodeError> {
    ClientFrame::decode(Form::Json, text.as_bytes())
}

fn refusal(text: &str) -> DecodeError {
    decode(text).expect_err("it must be refused")
}

fn send_with(fields: &str) -> String {
    format!(r#"{{"type":"send","id":7,"client_msg_id":"{MESSAGE}","conversation_id":"{CONVERSATION}"{fields}}}"#)
}

fn read_send(text: &str) -> Send<'_> {
    match decode(text).expect("it reads").body {
        ClientBody::Send(send) => send,
        other => panic!("a send, not {other:?}"),
    }
}

#[test]
fn the_content_type_has_a_default() {
    let text = send_with(r#","text":"hé\u006clo""#);
    let send = read_send(&text);
    assert_eq!((send.content_type.as_ref(), send.body.as_ref()), ("text/plain", "héllo".as_bytes()));
    let text = send_with(r#","body_base64":"AP8=""#);
    let send = read_send(&text);
    assert_eq!((send.content_type.as_ref(), send.body.as_ref()), ("application/octet-stream", &[0u8, 255][..]));
}

#[test]
fn a_refusal_finds_its_request_whatever_is_wrong() {
    let wrong = [
        ("", "text, body_base64"),
        (r#","text":"a","body_base64":"AA==""#, "text, body_base64"),
        (r#","text":5"#, "text"),
        (r#","text":"\ud800""#, "text"),
        (r#","body_base64":"AA""#, "body_base64"),
        (r#","body_base64":"A A=""#, "body_base64"),
        (r#","text":"a","content_type":"""#, "content_type"),
        (r#","text":"a","content_type":{}"#, "content_type"),
        (r#","text":"a","content_type":"text/\u0007""#, "content_type"),
    ];
    for (fields, named) in wrong {
        let refused = refusal(&send_with(fields));
        assert_eq!(refused.code, ErrorCode::InvalidField, "{fields}");
        assert!(refused.message.starts_with(named), "{fields}: {}", refused.message);
        assert_eq!((refused.id, refused.client_msg_id), (Some(7), MESSAGE.parse().ok()), "{fields}");
    }
    let refused = refusal(&format!(r#"{{"type":"send","id":7,"conversation_id":4,"client_msg_id":"{MESSAGE}"}}"#));
    assert_eq!((refused.id, refused.client_msg_id), (Some(7), MESSAGE.parse().ok()));
}

#[test]
fn the_body_has_a_limit() {
    let at_limit = "a".repeat(limits::BODY_BYTES_MAX);
    assert!(decode(&send_with(&format!(r#","text":"{at_limit}""#))).is_ok());
    let refused = refusal(&send_with(&format!(r#","text":"{at_limit}a""#)));
    assert_eq!(refused.code, ErrorCode::BodyTooLarge);
    assert_eq!(refused.client_msg_id, MESSAGE.parse().ok());
}

#[test]
fn malformed_frames_quote_nothing_of_the_client() {
    let malformed = [
        "",
        "null",
        "[]",
        "[\"ping\"]",
        "\"secret\"",
        "{",
        "{}",
        r#"{"type":5}"#,
        r#"{"type":"secret"}"#,
        r#"{"type":"ping","type":"ping"}"#,
        r#"{"type":"ping","id":1,"id":1}"#,
        r#"{"type":"ping"} secret"#,
        r#"{"type":"ping",}"#,
        "{\"type\":\"ping\",\"x\":\"\u{0}\"}",
    ];
    for text in malformed {
        let refused = refusal(text);
        assert_eq!(refused.code, ErrorCode::Malformed, "{text}");
        assert!(!refused.message.contains("secret"), "{}", refused.message);
    }
    let refused = ClientFrame::decode(Form::Json, b"{\"type\":\"ping\",\"x\":\"\xff\"}").expect_err("not UTF-8");
    assert_eq!(refused.code, ErrorCode::Malformed);
}

#[test]
fn what_a_frame_does_not_have_is_ignored() {
    for text in [
        r#"{"type":"ping","token":5,"new":{"deep":[1,2,{"type":"x"}]}}"#,
        r#"  {"new":"{[{[","type":"ping","id":null}"#,
        r#"{"type":"ping","new":1,"new":2}"#,
    ] {
        assert_eq!(decode(text).map(|frame| frame.body), Ok(ClientBody::Ping), "{text}");
    }
}

#[test]
fn numbers_are_whole_and_in_range() {
    let history = |fields: &str| format!(r#"{{"type":"history","conversation_id":"{CONVERSATION}",{fields}}}"#);
    for fields in [
        r#""after":-1"#,
        r#""after":1.5"#,
        r#""after":"1""#,
        r#""after":9007199254740992"#,
        r#""after":1,"before":2"#,
        r#""limit":3"#,
        r#""after":1,"limit":0"#,
        r#""after":1,"id":4294967296"#,
    ] {
        assert_eq!(refusal(&history(fields)).code, ErrorCode::InvalidField, "{fields}");
    }
    let text = history(r#""before":9007199254740991,"limit":99999999999"#);
    let ClientBody::History { range, limit, .. } = decode(&text).expect("it reads").body else { panic!("a page") };
    assert_eq!((range, limit), (HistoryRange::Before(limits::SEQ_MAX), Some(u32::MAX)));
}

#[test]
fn lengths_of_the_other_fields() {
    let long = |length: usize| "x".repeat(length);
    let cases = [
        (format!(r#"{{"type":"refresh","token":"{}"}}"#, long(limits::TOKEN_BYTES_MAX + 1)), "token"),
        (r#"{"type":"refresh","token":""}"#.to_owned(), "token"),
        (r#"{"type":"refresh"}"#.to_owned(), "token"),
        (format!(r#"{{"type":"connect","client":"{}"}}"#, long(limits::CLIENT_NAME_BYTES_MAX + 1)), "client"),
        (r#"{"type":"connect","client":"two\nlines"}"#.to_owned(), "client"),
        (r#"{"type":"connect","device_id":"00000000-0000-0000-0000-000000000000"}"#.to_owned(), "device_id"),
        (r#"{"type":"connect","device_id":"018f2f3c00007000800000000000000a"}"#.to_owned(), "device_id"),
        (format!(r#"{{"type":"sync","since":"{}"}}"#, long(limits::CURSOR_BYTES_MAX + 1)), "since"),
    ];
    for (text, named) in cases {
        let refused = refusal(&text);
        assert_eq!(refused.code, ErrorCode::InvalidField, "{text}");
        assert!(refused.message.starts_with(named), "{}", refused.message);
    }
}
