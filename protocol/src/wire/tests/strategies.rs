//! Arbitrary frames and records, and arbitrary bytes that look like protobuf.

use std::borrow::Cow;

use bytes::Bytes;
use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;

use crate::frames::*;
use crate::ids::*;
use crate::records::*;
use crate::{ErrorCode, limits};

fn id_bytes() -> impl Strategy<Value = [u8; 16]> {
    any::<[u8; 16]>().prop_filter("nil is no id", |bytes| *bytes != [0; 16])
}

macro_rules! ids {
    ($($function:ident $id:ident)*) => {$(
        pub(super) fn $function() -> impl Strategy<Value = $id> + Clone {
            any::<u128>().prop_map(|value| $id::from_bytes(value.max(1).to_be_bytes()))
        }
    )*};
}
ids! { user UserId  device DeviceId  conversation ConversationId  client_msg ClientMsgId  epoch Epoch }

fn session() -> impl Strategy<Value = SessionId> {
    id_bytes().prop_map(|bytes| SessionId::from_slice(&bytes).expect("16 bytes"))
}

fn seq() -> impl Strategy<Value = u64> {
    prop_oneof![0..300u64, 0..=limits::SEQ_MAX]
}

fn code() -> impl Strategy<Value = ErrorCode> {
    prop::sample::select(ErrorCode::ALL)
}

/// Any text: quotes, control characters, emoji.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), "[ -~]{0,40}", "\\PC{0,20}", vec(any::<char>(), 0..20).prop_map(String::from_iter)]
}

fn printable(length_max: usize) -> impl Strategy<Value = String> {
    vec(0x20..=0x7eu8, 1..=length_max.min(60)).prop_map(|bytes| String::from_utf8(bytes).expect("ASCII"))
}

fn content_type() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("text/plain".to_owned()),
        Just("application/json".to_owned()),
        Just("application/octet-stream".to_owned()),
        printable(limits::CONTENT_TYPE_BYTES_MAX),
    ]
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![vec(any::<u8>(), 0..200), text().prop_map(String::into_bytes)]
}

pub(super) fn client_frame() -> impl Strategy<Value = ClientFrame<'static>> {
    let connect =
        (option::of(printable(99)), option::of(device()), printable(64)).prop_map(|(token, device_id, client)| {
            ClientBody::Connect { token: token.map(Cow::Owned), device_id, client: Cow::Owned(client) }
        });
    let send = (client_msg(), conversation(), content_type(), body()).prop_map(
        |(client_msg_id, conversation_id, content_type, body)| {
            ClientBody::Send(Send {
                client_msg_id,
                conversation_id,
                content_type: Cow::Owned(content_type),
                body: Cow::Owned(body),
            })
        },
    );
    let sync = option::of(printable(99)).prop_map(|since| ClientBody::Sync { since: since.map(Cow::Owned) });
    let range = prop_oneof![seq().prop_map(HistoryRange::After), seq().prop_map(HistoryRange::Before)];
    let history = (conversation(), range, option::of(1..=u32::MAX))
        .prop_map(|(conversation_id, range, limit)| ClientBody::History { conversation_id, range, limit });
    let body = prop_oneof![
        connect,
        send,
        sync,
        history,
        printable(99).prop_map(|token| ClientBody::Refresh { token: Cow::Owned(token) }),
        Just(ClientBody::Ping),
        Just(ClientBody::Pong),
    ];
    (any::<Option<u32>>(), body).prop_map(|(id, body)| ClientFrame { id, body })
}

pub(super) fn message() -> impl Strategy<Value = Message> {
    let kind = prop_oneof![Just(ConversationKind::Direct), Just(ConversationKind::Group)];
    let event =
        option::of((kind, option::of(text()), any::<u32>()).prop_map(|(kind, title, member_count)| Event::Created {
            kind,
            title,
            member_count,
        }));
    let ids = (conversation(), user(), device(), client_msg());
    (ids, seq(), seq(), content_type(), body(), event).prop_map(|(ids, seq, time, content_type, body, event)| Message {
        conversation_id: ids.0,
        seq,
        sender_id: ids.1,
        device_id: ids.2,
        client_msg_id: ids.3,
        time,
        content_type,
        body: Bytes::from(body),
        event,
    })
}

fn heads() -> impl Strategy<Value = Heads> {
    let seqs = (option::of(seq()), seq(), option::of(seq()), option::of(seq()));
    let head = (conversation(), seqs).prop_map(|(conversation_id, (first_seq, last_seq, read_seq, delivered_seq))| {
        Head { conversation_id, first_seq, last_seq, read_seq, delivered_seq }
    });
    (vec(head, 0..5), option::of(text()), any::<bool>(), option::of(epoch()))
        .prop_map(|(conversations, next, more, epoch)| Heads { conversations, next, more, epoch })
}

pub(super) fn page() -> impl Strategy<Value = Page> {
    (conversation(), seq(), seq(), vec(message(), 0..4), any::<bool>(), epoch()).prop_map(
        |(conversation_id, from, to, messages, more, epoch)| Page { conversation_id, from, to, messages, more, epoch },
    )
}

fn connected() -> impl Strategy<Value = Connected> {
    let server_limits =
        (seq(), seq(), any::<u32>(), any::<u32>()).prop_map(|(body, frame, sends, page)| ServerLimits {
            body_bytes_max: body,
            frame_bytes_max: frame,
            sends_in_flight_max: sends,
            page_messages_max: page,
        });
    (session(), user(), device(), seq(), seq(), server_limits, seq(), epoch()).prop_map(
        |(session_id, user_id, device_id, server_time, ping_ms, limits, expires_at, epoch)| Connected {
            session_id,
            user_id,
            device_id,
            server_time,
            ping_ms,
            limits,
            expires_at,
            epoch,
        },
    )
}

pub(super) fn server_frame() -> impl Strategy<Value = ServerFrame> {
    let sent = (client_msg(), conversation(), seq(), seq()).prop_map(|(client_msg_id, conversation_id, seq, time)| {
        ServerBody::Sent { client_msg_id, conversation_id, seq, time }
    });
    let rejected = (client_msg(), code(), text()).prop_map(|(client_msg_id, code, message)| ServerBody::Rejected {
        client_msg_id,
        code,
        message,
    });
    let retry = (client_msg(), seq(), code()).prop_map(|(client_msg_id, retry_after_ms, code)| ServerBody::Retry {
        client_msg_id,
        retry_after_ms,
        code,
    });
    let error = (code(), text(), option::of(seq()), any::<bool>())
        .prop_map(|(code, message, retry_after_ms, fatal)| ServerBody::Error { code, message, retry_after_ms, fatal });
    let goaway = (seq(), text()).prop_map(|(reconnect_in_ms, reason)| ServerBody::Goaway { reconnect_in_ms, reason });
    let body = prop_oneof![
        connected().prop_map(ServerBody::Connected),
        sent,
        rejected,
        retry,
        message().prop_map(ServerBody::Message),
        heads().prop_map(ServerBody::Heads),
        page().prop_map(ServerBody::Page),
        error,
        text().prop_map(|reason| ServerBody::Reload { reason }),
        goaway,
        Just(ServerBody::Ping),
        Just(ServerBody::Pong),
    ];
    (any::<Option<u32>>(), body).prop_map(|(id, body)| ServerFrame { id, body })
}

pub(super) fn ingress() -> impl Strategy<Value = IngressRecord<'static>> {
    let endpoint = (text(), any::<u64>())
        .prop_map(|(address, incarnation)| Endpoint { address, incarnation: Incarnation(incarnation) });
    let origin = (endpoint, option::of(session()), any::<u64>()).prop_map(|(endpoint, session, request)| Origin {
        endpoint,
        session,
        request,
    });
    let send = (conversation(), content_type(), body()).prop_map(|(conversation_id, content_type, body)| {
        Action::Send { conversation_id, content_type: Cow::Owned(content_type), body: Cow::Owned(body) }
    });
    let create =
        (conversation(), option::of(text()), btree_set(user(), 2..30)).prop_map(|(conversation_id, title, members)| {
            Action::Create {
                conversation_id,
                kind: if members.len() == 2 { ConversationKind::Direct } else { ConversationKind::Group },
                title: title.map(Cow::Owned),
                members: members.into_iter().collect(),
            }
        });
    let ids = (user(), device(), client_msg());
    let action = prop_oneof![send, create];
    (ids, any::<u64>(), option::of(origin), any::<Option<u64>>(), action).prop_map(
        |((actor, device, client_msg_id), time, origin, if_last_seq, action)| IngressRecord {
            actor,
            device,
            client_msg_id,
            time,
            origin,
            if_last_seq,
            action,
        },
    )
}

pub(super) fn deliver() -> impl Strategy<Value = DeliverRecord> {
    (any::<u64>(), message()).prop_map(|(members_version, message)| DeliverRecord { members_version, message })
}

/// Bytes that are protobuf more often than chance would have it: known and unknown fields, wrong wire types,
/// repeated and nested fields, groups, truncations.
pub(super) fn protobuf_like() -> impl Strategy<Value = Vec<u8>> {
    let leaf = prop_oneof![
        4 => (1..12u32, any::<u64>()).prop_map(|(number, value)| [key(number, 0), varint(value)].concat()),
        2 => (1..12u32, 0..5u64).prop_map(|(number, value)| [key(number, 0), varint(value)].concat()),
        4 => (1..12u32, prop_oneof![vec(any::<u8>(), 16), vec(any::<u8>(), 0..20), text().prop_map(String::into_bytes)])
            .prop_map(|(number, bytes)| length_delimited(number, &bytes)),
        1 => (1..12u32, any::<[u8; 4]>()).prop_map(|(number, bytes)| [key(number, 5), bytes.to_vec()].concat()),
        1 => (1..12u32, any::<[u8; 8]>()).prop_map(|(number, bytes)| [key(number, 1), bytes.to_vec()].concat()),
        1 => vec(any::<u8>(), 1..4),
    ];
    let nested = leaf.prop_recursive(3, 40, 6, |inner| {
        (1..10u32, vec(inner, 0..6), any::<bool>()).prop_map(|(number, fields, group)| {
            let fields = fields.concat();
            if group && number > 8 {
                [key(number, 3), fields, key(number, 4)].concat()
            } else {
                length_delimited(number, &fields)
            }
        })
    });
    (vec(nested, 0..6), any::<prop::sample::Index>(), 0..10u8).prop_map(|(fields, cut, chance)| {
        let mut bytes = fields.concat();
        if chance == 0 && !bytes.is_empty() {
            bytes.truncate(cut.index(bytes.len()));
        }
        bytes
    })
}

pub(super) fn key(number: u32, wire_type: u32) -> Vec<u8> {
    varint(u64::from(number << 3 | wire_type))
}

pub(super) fn varint(value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    prost::encoding::encode_varint(value, &mut out);
    out
}

pub(super) fn length_delimited(number: u32, bytes: &[u8]) -> Vec<u8> {
    [key(number, 2), varint(bytes.len() as u64), bytes.to_vec()].concat()
}
