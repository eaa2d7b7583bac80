//! docs/protocol.md says what the code does: its tables and its examples.

use std::collections::BTreeSet;
use std::path::PathBuf;

use bytes::Bytes;
use roost_protocol::codes::{CloseCode, ErrorCode};
use roost_protocol::frames::{ClientFrame, Form, ServerFrame};
use roost_protocol::limits;

const CLIENT_FRAMES: [&str; 7] = ["connect", "send", "sync", "history", "refresh", "ping", "pong"];
const SERVER_FRAMES: [&str; 12] =
    ["connected", "sent", "rejected", "retry", "message", "heads", "page", "error", "reload", "goaway", "ping", "pong"];

fn document() -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/protocol.md");
    std::fs::read_to_string(path).expect("docs/protocol.md exists")
}

/// The part of the document below the heading that begins so.
fn section(document: &str, heading: &str) -> String {
    let start = document.find(&format!("\n## {heading}")).expect("the section exists") + 1;
    let length = document[start + 1..].find("\n## ").map_or(document.len() - start, |at| at + 1);
    document[start..start + length].to_owned()
}

/// The table rows of a section, without head and rule.
fn rows(section: &str) -> Vec<String> {
    section.lines().filter(|line| line.starts_with('|')).skip(2).map(str::to_owned).collect()
}

#[test]
fn error_codes() {
    let expected: Vec<String> = ErrorCode::ALL
        .iter()
        .map(|code| {
            format!("| `{}` | {} | {} |", code.as_str(), if code.retryable() { "yes" } else { "no" }, code.help())
        })
        .collect();
    assert_eq!(rows(&section(&document(), "9. Error codes")), expected, "\n{}", expected.join("\n"));
}

#[test]
fn close_codes() {
    let expected: Vec<String> = CloseCode::ALL
        .iter()
        .map(|code| format!("| {} | {} | {} | {} |", code.code(), code.reason(), code.policy().as_str(), code.help()))
        .collect();
    assert_eq!(rows(&section(&document(), "10. Close codes")), expected, "\n{}", expected.join("\n"));
}

#[test]
fn limit_table() {
    let expected: Vec<String> = [
        ("BODY_BYTES_MAX", limits::BODY_BYTES_MAX as u64, "bytes in the body of a message"),
        ("CONTENT_TYPE_BYTES_MAX", limits::CONTENT_TYPE_BYTES_MAX as u64, "bytes in a content type"),
        ("CLIENT_FRAME_BYTES_MAX", limits::CLIENT_FRAME_BYTES_MAX as u64, "bytes in a frame from the client"),
        ("BEFORE_CONNECT_BYTES_MAX", limits::BEFORE_CONNECT_BYTES_MAX as u64, "bytes before `connected`"),
        ("TOKEN_BYTES_MAX", limits::TOKEN_BYTES_MAX as u64, "bytes in an access token"),
        ("CLIENT_NAME_BYTES_MAX", limits::CLIENT_NAME_BYTES_MAX as u64, "bytes in the `client` of `connect`"),
        ("CURSOR_BYTES_MAX", limits::CURSOR_BYTES_MAX as u64, "bytes in a sync cursor"),
        ("FRAGMENTS_MAX", u64::from(limits::FRAGMENTS_MAX), "fragments of one WebSocket message"),
        ("JSON_DEPTH_MAX", limits::JSON_DEPTH_MAX as u64, "levels of nesting in a JSON frame"),
        ("HANDSHAKE_MS_MAX", limits::HANDSHAKE_MS_MAX, "milliseconds for the handshake"),
        ("CONNECT_MS_MAX", limits::CONNECT_MS_MAX, "milliseconds until `connect`"),
        ("PING_MS", limits::PING_MS, "milliseconds of idleness until the server pings"),
        ("PONG_GRACE_MS", limits::PONG_GRACE_MS, "milliseconds an answer to a ping may take"),
        ("SEND_DEADLINE_MS", limits::SEND_DEADLINE_MS, "milliseconds until a send without a verdict gets `retry`"),
        ("SENDS_IN_FLIGHT_MAX", limits::SENDS_IN_FLIGHT_MAX as u64, "sends of a session without an answer"),
        ("REQUESTS_IN_FLIGHT_MAX", limits::REQUESTS_IN_FLIGHT_MAX as u64, "`sync` and `history` without an answer"),
        (
            "SENDS_PER_SECOND_MAX",
            u64::from(limits::SENDS_PER_SECOND_MAX),
            "sends of a session a second in the long run; beyond, `retry` with `rate_limited`",
        ),
        ("SENDS_AT_ONCE_MAX", u64::from(limits::SENDS_AT_ONCE_MAX), "sends of a session at once"),
        (
            "REQUESTS_PER_SECOND_MAX",
            u64::from(limits::REQUESTS_PER_SECOND_MAX),
            "`sync`, `history` and `refresh` of a session a second in the long run; beyond, `error` with `rate_limited`",
        ),
        ("REQUESTS_AT_ONCE_MAX", u64::from(limits::REQUESTS_AT_ONCE_MAX), "of those at once"),
        ("CONTROL_FRAMES_PER_SECOND_MAX", u64::from(limits::CONTROL_FRAMES_PER_SECOND_MAX), "pings and pongs a second"),
        ("QUEUE_BYTES_HARD", limits::QUEUE_BYTES_HARD as u64, "bytes a client may leave unread before it is `slow`"),
        ("PAGE_MESSAGES_MAX", u64::from(limits::PAGE_MESSAGES_MAX), "messages in a page"),
        ("PAGE_BYTES_MAX", limits::PAGE_BYTES_MAX as u64, "bytes of bodies in a page"),
        ("HEADS_MAX", u64::from(limits::HEADS_MAX), "conversations in a `heads`"),
        ("MEMBERS_MAX", limits::MEMBERS_MAX as u64, "members of a conversation"),
        ("MEMBERS_MIN", limits::MEMBERS_MIN as u64, "members of a group at the least, you included"),
        ("TITLE_BYTES_MAX", limits::TITLE_BYTES_MAX as u64, "bytes in a title"),
        ("USER_NAME_BYTES_MAX", limits::USER_NAME_BYTES_MAX as u64, "bytes in a user name"),
        ("USER_NAME_BYTES_MIN", limits::USER_NAME_BYTES_MIN as u64, "bytes in a user name at the least"),
        ("PASSWORD_BYTES_MAX", limits::PASSWORD_BYTES_MAX as u64, "bytes in a password"),
        ("PASSWORD_BYTES_MIN", limits::PASSWORD_BYTES_MIN as u64, "bytes in a password at the least"),
        ("ACCESS_TOKEN_MS", limits::ACCESS_TOKEN_MS, "milliseconds an access token lives"),
        ("REFRESH_TOKEN_MS", limits::REFRESH_TOKEN_MS, "milliseconds a refresh token lives"),
    ]
    .map(|(name, value, meaning)| format!("| `{name}` | {value} | {meaning} |"))
    .to_vec();
    let document = document();
    assert_eq!(rows(&section(&document, "11. Limits")), expected, "\n{}", expected.join("\n"));
    let listed = section(&document, "11. Limits");
    for word in document.split('`').filter(|word| word.contains("_MAX") || word.ends_with("_MIN")) {
        assert!(listed.contains(&format!("`{word}`")), "{word} is used but not listed");
    }
}

/// The frame names that the first column of a section's table lists.
fn frame_names(section: &str) -> Vec<String> {
    rows(section).iter().map(|row| row.split('`').nth(1).expect("a name in backticks").to_owned()).collect()
}

/// The fields that a section's table lists for a frame, without the mark of optional ones.
fn listed_fields(section: &str, frame: &str) -> BTreeSet<String> {
    let row = rows(section).into_iter().find(|row| row.starts_with(&format!("| `{frame}` |"))).expect("a row");
    let fields = row.split('|').nth(2).expect("a column of fields").to_owned();
    fields.split('`').skip(1).step_by(2).map(|field| field.trim_end_matches('?').to_owned()).collect()
}

/// The examples in blocks marked ```json client or ```json server.
fn examples(document: &str, side: &str) -> Vec<String> {
    let fence = format!("```json {side}\n");
    document.split(&fence).skip(1).map(|rest| rest.split("\n```").next().expect("a block ends").to_owned()).collect()
}

fn keys(example: &str) -> BTreeSet<String> {
    let value: serde_json::Value = serde_json::from_str(example).expect("an example is JSON");
    let object = value.as_object().expect("an example is an object");
    object.keys().filter(|key| !["type", "id"].contains(&key.as_str())).cloned().collect()
}

#[test]
fn client_frames_and_their_examples() {
    let document = document();
    let table = section(&document, "5. Frames from the client");
    assert_eq!(frame_names(&table), CLIENT_FRAMES);
    let mut seen = BTreeSet::new();
    for example in examples(&document, "client") {
        let frame =
            ClientFrame::decode(Form::Json, example.as_bytes()).unwrap_or_else(|error| panic!("{error}: {example}"));
        let name = frame.body.type_name();
        assert!(keys(&example).is_subset(&listed_fields(&table, name)), "{name} has fields that are not listed");
        assert_eq!(ClientFrame::decode(Form::Binary, &frame.encode(Form::Binary)).as_ref(), Ok(&frame));
        seen.insert(name);
    }
    assert_eq!(seen, BTreeSet::from(CLIENT_FRAMES), "every frame has an example");
}

#[test]
fn server_frames_and_their_examples() {
    let document = document();
    let table = section(&document, "6. Frames from the server");
    assert_eq!(frame_names(&table), SERVER_FRAMES);
    let mut seen = BTreeSet::new();
    for example in examples(&document, "server") {
        let frame = ServerFrame::decode(Form::Json, Bytes::from(example.clone()))
            .unwrap_or_else(|error| panic!("{error}: {example}"))
            .unwrap_or_else(|| panic!("unknown: {example}"));
        let written: serde_json::Value = serde_json::from_slice(&frame.encode(Form::Json)).expect("JSON");
        let example_value: serde_json::Value = serde_json::from_str(&example).expect("JSON");
        assert_eq!(written, example_value, "the server would not write this");
        let name = frame.body.type_name();
        assert!(keys(&example).is_subset(&listed_fields(&table, name)), "{name} has fields that are not listed");
        seen.insert(name);
    }
    assert_eq!(seen, BTreeSet::from(SERVER_FRAMES), "every frame has an example");
}
