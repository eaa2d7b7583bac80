//! The golden vectors in `golden/`, which clients in other languages read too. Committed means frozen: a change here
//! breaks clients in the field. `ROOST_BLESS=1` writes the files anew.

use std::borrow::Cow;
use std::path::PathBuf;

use bytes::Bytes;
use roost_protocol::codes::{CloseCode, ErrorCode};
use roost_protocol::frames::*;
use roost_protocol::ids::*;
use roost_protocol::records::*;
use roost_protocol::{limits, partition};
use serde_json::{Value, json};

fn id(last: u8) -> [u8; 16] {
    [0x01, 0x8f, 0x2f, 0x3c, 0, 0, 0x70, 0, 0x80, 0, 0, 0, 0, 0, 0, last]
}

fn conversation() -> ConversationId {
    ConversationId::from_bytes(id(1))
}

fn client_msg_id() -> ClientMsgId {
    ClientMsgId::from_bytes(id(2))
}

fn user(last: u8) -> UserId {
    UserId::from_bytes(id(last))
}

fn device() -> DeviceId {
    DeviceId::from_bytes(id(4))
}

fn epoch() -> Epoch {
    Epoch::from_bytes(id(5))
}

const TIME: u64 = 1_700_000_000_123;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &Value) -> Vec<u8> {
    let text = text.as_str().expect("hex is text");
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex")).collect()
}

/// The committed file, or with ROOST_BLESS=1 what this build makes, written to it.
fn golden(name: &str, made: Value) -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(name);
    if std::env::var_os("ROOST_BLESS").is_some() {
        let text = serde_json::to_string_pretty(&made).expect("JSON") + "\n";
        std::fs::write(&path, text).expect("golden/ can be written");
    }
    let text = std::fs::read_to_string(&path).expect("the golden file exists; ROOST_BLESS=1 makes it");
    let committed: Value = serde_json::from_str(&text).expect("a golden file is JSON");
    assert_eq!(committed, made, "{name} differs from what this build makes");
    committed
}

fn entries(file: &Value) -> &Vec<Value> {
    file.as_array().expect("a list")
}

fn to_json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("the JSON form is JSON")
}

fn client_frames() -> Vec<(&'static str, ClientFrame<'static>)> {
    let send = |content_type: &'static str, body: &'static [u8]| {
        ClientBody::Send(Send {
            client_msg_id: client_msg_id(),
            conversation_id: conversation(),
            content_type: Cow::Borrowed(content_type),
            body: Cow::Borrowed(body),
        })
    };
    let history = |range, limit| ClientBody::History { conversation_id: conversation(), range, limit };
    let connect = |token: Option<&'static str>, device_id| ClientBody::Connect {
        token: token.map(Cow::Borrowed),
        device_id,
        client: Cow::Borrowed("golden 1.0"),
    };
    [
        ("connect", Some(0), connect(Some("a.b.c"), Some(device()))),
        ("connect after an Authorization header", None, connect(None, None)),
        ("send text", Some(1), send("text/plain", "Grüße, 世界 \u{1f426} \"\\\n\u{1}".as_bytes())),
        ("send JSON", Some(u32::MAX), send("application/json", b"{\"a\":[1,2]}")),
        ("send bytes", None, send("application/octet-stream", &[0, 1, 2, 0xfe, 0xff])),
        ("send text that is not UTF-8", Some(2), send("text/plain", &[0x66, 0xff])),
        ("send nothing", Some(3), send("text/plain", b"")),
        ("sync from the start", Some(4), ClientBody::Sync { since: None }),
        ("sync since", Some(5), ClientBody::Sync { since: Some(Cow::Borrowed("c:42")) }),
        ("history after", Some(6), history(HistoryRange::After(0), Some(200))),
        ("history before", Some(7), history(HistoryRange::Before(limits::SEQ_MAX), None)),
        ("refresh", Some(8), ClientBody::Refresh { token: Cow::Borrowed("d.e.f") }),
        ("ping", Some(9), ClientBody::Ping),
        ("pong", None, ClientBody::Pong),
    ]
    .into_iter()
    .map(|(name, id, body)| (name, ClientFrame { id, body }))
    .collect()
}

#[test]
fn client_frames_are_frozen() {
    let frames = client_frames();
    let made = frames.iter().map(|(name, frame)| {
        json!({"name": name, "json": to_json(&frame.encode(Form::Json)), "binary_hex": hex(&frame.encode(Form::Binary))})
    });
    let file = golden("client_frames.json", made.collect());
    for (entry, (name, frame)) in entries(&file).iter().zip(&frames) {
        let binary = unhex(&entry["binary_hex"]);
        assert_eq!(ClientFrame::decode(Form::Binary, &binary).as_ref(), Ok(frame), "{name}");
        let text = entry["json"].to_string();
        assert_eq!(ClientFrame::decode(Form::Json, text.as_bytes()).as_ref(), Ok(frame), "{name}");
    }
}

fn message(seq: u64, content_type: &str, body: &'static [u8], event: Option<Event>) -> Message {
    Message {
        conversation_id: conversation(),
        seq,
        sender_id: user(3),
        device_id: device(),
        client_msg_id: client_msg_id(),
        time: TIME,
        content_type: content_type.to_owned(),
        body: Bytes::from_static(body),
        event,
    }
}

fn created(kind: ConversationKind, title: Option<&str>, member_count: u32) -> Message {
    let event = Event::Created { kind, title: title.map(str::to_owned), member_count };
    message(1, "application/octet-stream", b"", Some(event))
}

fn server_frames() -> Vec<(&'static str, ServerFrame)> {
    let connected = Connected {
        session_id: SessionId::new(Incarnation(0x0123_4567_89ab_cdef), 3, 70_000, 5),
        user_id: user(3),
        device_id: device(),
        server_time: TIME,
        ping_ms: limits::PING_MS,
        limits: ServerLimits {
            body_bytes_max: 65_536,
            frame_bytes_max: 135_168,
            sends_in_flight_max: 256,
            page_messages_max: 200,
        },
        expires_at: TIME + limits::ACCESS_TOKEN_MS,
        epoch: epoch(),
    };
    let head = Head {
        conversation_id: conversation(),
        first_seq: Some(1),
        last_seq: 300,
        read_seq: Some(0),
        delivered_seq: Some(299),
    };
    let bare = Head { first_seq: None, read_seq: None, delivered_seq: None, ..head };
    let heads = |conversations, next: Option<&str>, more, epoch| {
        ServerBody::Heads(Heads { conversations, next: next.map(str::to_owned), more, epoch })
    };
    let page = |from, to, messages, more| {
        ServerBody::Page(Page { conversation_id: conversation(), from, to, messages, more, epoch: epoch() })
    };
    let error = |code, message: &str, retry_after_ms, fatal| ServerBody::Error {
        code,
        message: message.to_owned(),
        retry_after_ms,
        fatal,
    };
    let group = created(ConversationKind::Group, Some("Grüße"), 10_000);
    let text = message(2, "text/plain", "Grüße \u{1f426}".as_bytes(), None);
    let (client_msg_id, conversation_id) = (client_msg_id(), conversation());
    let rejected = ServerBody::Rejected { client_msg_id, code: ErrorCode::NotFound, message: "no such thing".into() };
    let retry = ServerBody::Retry { client_msg_id, retry_after_ms: 1000, code: ErrorCode::Busy };
    [
        ("connected", Some(0), ServerBody::Connected(connected)),
        ("sent", Some(1), ServerBody::Sent { client_msg_id, conversation_id, seq: 2, time: TIME }),
        ("rejected", Some(2), rejected),
        ("retry", Some(3), retry),
        ("message, text", None, ServerBody::Message(text.clone())),
        ("message, bytes", None, ServerBody::Message(message(3, "image/png", &[0x89, 0x50, 0xff], None))),
        ("message, text that is not UTF-8", None, ServerBody::Message(message(4, "text/plain", &[0xff], None))),
        ("message, direct created", None, ServerBody::Message(created(ConversationKind::Direct, None, 2))),
        ("message, group created", None, ServerBody::Message(group.clone())),
        ("heads", Some(4), heads(vec![head, bare], Some("c:43"), true, Some(epoch()))),
        ("heads, unsolicited", None, heads(vec![bare], None, false, None)),
        ("heads, none", Some(5), heads(vec![], Some("c:43"), false, Some(epoch()))),
        ("page", Some(6), page(1, 2, vec![group, text], true)),
        ("page, empty", Some(7), page(3, 2, vec![], false)),
        ("error", Some(8), error(ErrorCode::RateLimited, "wait", Some(0), false)),
        ("error, fatal", None, error(ErrorCode::Unauthenticated, "no token", None, true)),
        ("reload", None, ServerBody::Reload { reason: "another epoch".into() }),
        ("goaway", None, ServerBody::Goaway { reconnect_in_ms: 1500, reason: "drained".into() }),
        ("ping", None, ServerBody::Ping),
        ("pong", Some(9), ServerBody::Pong),
    ]
    .into_iter()
    .map(|(name, id, body)| (name, ServerFrame { id, body }))
    .collect()
}

#[test]
fn server_frames_are_frozen() {
    let frames = server_frames();
    let made = frames.iter().map(|(name, frame)| {
        json!({"name": name, "json": to_json(&frame.encode(Form::Json)), "binary_hex": hex(&frame.encode(Form::Binary))})
    });
    let file = golden("server_frames.json", made.collect());
    for (entry, (name, frame)) in entries(&file).iter().zip(&frames) {
        let binary = Bytes::from(unhex(&entry["binary_hex"]));
        assert_eq!(ServerFrame::decode(Form::Binary, binary).as_ref(), Ok(&Some(frame.clone())), "{name}");
        let text = Bytes::from(entry["json"].to_string());
        assert_eq!(ServerFrame::decode(Form::Json, text).as_ref(), Ok(&Some(frame.clone())), "{name}");
    }
}

#[test]
fn frames_of_a_later_version_are_ignored() {
    let later = Bytes::from_static(br#"{"type":"presence","user_id":"x"}"#);
    assert_eq!(ServerFrame::decode(Form::Json, later), Ok(None));
    assert_eq!(ServerFrame::decode(Form::Binary, Bytes::from_static(&[0xfa, 0x01, 0x01, 0x00])), Ok(None));
}

fn ingress(origin: Option<Origin>, if_last_seq: Option<u64>, action: Action<'static>) -> IngressRecord<'static> {
    IngressRecord {
        actor: user(3),
        device: device(),
        client_msg_id: client_msg_id(),
        time: TIME,
        origin,
        if_last_seq,
        action,
    }
}

fn ingress_records() -> Vec<(&'static str, IngressRecord<'static>)> {
    let send = |body: &'static [u8]| Action::Send {
        conversation_id: conversation(),
        content_type: Cow::Borrowed("text/plain"),
        body: Cow::Borrowed(body),
    };
    let origin = |address: &str, session| Origin {
        endpoint: Endpoint { address: address.to_owned(), incarnation: Incarnation(77) },
        session,
        request: 12,
    };
    let session = SessionId::new(Incarnation(77), 1, 2, 3);
    let create = |kind, title: Option<&'static str>, members: &[u8]| Action::Create {
        conversation_id: conversation(),
        kind,
        title: title.map(Cow::Borrowed),
        members: members.iter().map(|&last| user(last)).collect(),
    };
    vec![
        ("send of a gateway", ingress(Some(origin("10.0.0.1:7400", Some(session))), None, send(b"hello"))),
        ("send of an api, embedded", ingress(Some(origin("", None)), Some(0), send(b""))),
        ("create direct", ingress(None, None, create(ConversationKind::Direct, None, &[3, 9]))),
        ("create group", ingress(None, None, create(ConversationKind::Group, Some("team"), &[3, 9, 10]))),
    ]
}

#[test]
fn records_are_frozen() {
    let records = ingress_records();
    let deliver = DeliverRecord { members_version: 1, message: message(2, "text/plain", b"hello", None) };
    let mut made: Vec<Value> = records
        .iter()
        .map(|(name, record)| json!({"topic": "ingress", "name": name, "binary_hex": hex(&record.encode()), "fields": fields(record)}))
        .collect();
    let frame = to_json(&ServerFrame::unsolicited(ServerBody::Message(deliver.message.clone())).encode(Form::Json));
    made.push(json!({
        "topic": "deliver",
        "name": "a message",
        "binary_hex": hex(&deliver.encode()),
        "fields": {"members_version": deliver.members_version, "message": frame},
    }));
    let file = golden("records.json", Value::Array(made));
    for (entry, (name, record)) in entries(&file).iter().zip(&records) {
        assert_eq!(IngressRecord::decode(&unhex(&entry["binary_hex"])).as_ref(), Ok(record), "{name}");
    }
    let last = unhex(&entries(&file).last().expect("deliver stands last")["binary_hex"]);
    assert_eq!(DeliverRecord::decode(Bytes::from(last)), Ok(deliver));
}

fn fields(record: &IngressRecord<'_>) -> Value {
    let origin = record.origin.as_ref().map(|origin| {
        json!({
            "address": origin.endpoint.address,
            "incarnation": origin.endpoint.incarnation.0,
            "session": origin.session,
            "request": origin.request,
        })
    });
    let action = match &record.action {
        Action::Send { conversation_id, content_type, body } => json!({
            "send": {"conversation_id": conversation_id, "content_type": content_type, "body_hex": hex(body)}
        }),
        Action::Create { conversation_id, kind, title, members } => json!({
            "create": {"conversation_id": conversation_id, "kind": kind.as_str(), "title": title, "members": members}
        }),
    };
    json!({
        "version": RECORD_VERSION,
        "actor": record.actor,
        "device": record.device,
        "client_msg_id": record.client_msg_id,
        "time": record.time,
        "origin": origin,
        "if_last_seq": record.if_last_seq,
        "action": action,
    })
}

#[test]
fn derived_ids_and_partitions_are_frozen() {
    let pairs = [(1, 2), (2, 1), (3, 9), (7, 7)].map(|(one, other)| {
        let (one, other) = (user(one), user(other));
        let conversation = ConversationId::direct(one, other);
        json!({"one": one, "other": other, "conversation_id": conversation, "partition_of_48": partition::of(conversation, 48)})
    });
    let partitions: Vec<Value> = (0..8)
        .map(|last| ConversationId::from_bytes(id(last)))
        .map(|conversation| json!({"conversation_id": conversation, "of_48": partition::of(conversation, 48), "of_7": partition::of(conversation, 7)}))
        .collect();
    let groups = [(3, 2), (3, 6)].map(|(actor, creation)| {
        let (actor, creation) = (user(actor), ClientMsgId::from_bytes(id(creation)));
        json!({"actor": actor, "client_msg_id": creation, "conversation_id": ConversationId::group(actor, creation)})
    });
    golden("ids.json", json!({"direct": pairs, "group": groups, "partitions": partitions}));
}

#[test]
fn codes_are_frozen() {
    let errors: Vec<Value> = ErrorCode::ALL
        .iter()
        .map(|code| json!({"code": code.as_str(), "retryable": code.retryable(), "help": code.help()}))
        .collect();
    let closes: Vec<Value> = CloseCode::ALL
        .iter()
        .map(|code| json!({"code": code.code(), "reason": code.reason(), "policy": code.policy().as_str(), "help": code.help()}))
        .collect();
    golden("codes.json", json!({"errors": errors, "closes": closes}));
}
