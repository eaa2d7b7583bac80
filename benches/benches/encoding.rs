//! Our own frames: a message encoded once for all its sessions, and what clients send decoded, in both forms.

use std::borrow::Cow;
use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use roost_protocol::frames::{ClientBody, ClientFrame, Form, Message, Send, ServerFrame};
use roost_protocol::{ClientMsgId, ConversationId, DeviceId, UserId};
use roost_session::framing::websocket::frame_payload;
use roost_session::machine::encode_message;

const BODIES: [usize; 2] = [128, 64 * 1024];

fn message(body_bytes: usize) -> Message {
    Message {
        conversation_id: ConversationId::new(),
        seq: 1_000,
        sender_id: UserId::new(),
        device_id: DeviceId::new(),
        client_msg_id: ClientMsgId::new(),
        time: 1_800_000_000_000,
        content_type: "text/plain".to_owned(),
        body: Bytes::from(vec![b'x'; body_bytes]),
        event: None,
    }
}

fn server(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("message");
    for form in Form::ALL {
        for body_bytes in BODIES {
            let message = message(body_bytes);
            group.bench_function(format!("encoded, {form:?}, {body_bytes} bytes"), |bencher| {
                bencher.iter(|| encode_message(black_box(&message), form));
            });
            let payload = frame_payload(&encode_message(&message, form));
            group.bench_function(format!("decoded by a client, {form:?}, {body_bytes} bytes"), |bencher| {
                bencher.iter(|| ServerFrame::decode(form, black_box(payload.clone())).expect("it was just encoded"));
            });
        }
    }
    group.finish();
}

fn client(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("send");
    for form in Form::ALL {
        for body_bytes in BODIES {
            let send = Send {
                client_msg_id: ClientMsgId::new(),
                conversation_id: ConversationId::new(),
                content_type: Cow::Borrowed("text/plain"),
                body: Cow::Owned(vec![b'x'; body_bytes]),
            };
            let payload = ClientFrame { id: Some(7), body: ClientBody::Send(send) }.encode(form);
            group.bench_function(format!("decoded, {form:?}, {body_bytes} bytes"), |bencher| {
                bencher.iter(|| {
                    // Its body is borrowed: what is measured ends before the copy into the log record.
                    black_box(ClientFrame::decode(form, black_box(&payload)).expect("it was just encoded"));
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, server, client);
criterion_main!(benches);
