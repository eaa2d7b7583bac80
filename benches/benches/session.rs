//! The session machine without a socket: a ping received and answered, a delivery queued, lent and written, a connection
//! from its first byte to `connected`.

use bytes::Bytes;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use roost_protocol::frames::{ClientBody, ClientFrame, Form};
use roost_protocol::{DeviceId, Epoch, Incarnation, SessionId, UserId};
use roost_session::framing::websocket::{Opcode, encode_frame};
use roost_session::machine::{Context, Identity, Loss, Now, Pressure, Session, Settings};
use std::hint::black_box;

const NOW: Now = Now { steady_ms: 1_000, wall_ms: 1_800_000_000_000 };
const UPGRADE: &[u8] = b"GET /v1/connect HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Protocol: roost.v1\r\n\r\n";

fn masked(body: ClientBody<'_>) -> Vec<u8> {
    let payload = ClientFrame { id: None, body }.encode(Form::Binary);
    let length = u8::try_from(payload.len()).ok().filter(|length| *length <= 125).expect("a small frame");
    // A mask of zeros leaves the payload as it is, and is undone like any other.
    [&[0x82, 0x80 | length, 0, 0, 0, 0][..], &payload].concat()
}

fn context(settings: &Settings) -> Context<'_> {
    Context { settings, now: NOW, pressure: Pressure::None }
}

/// Everything queued is taken by the socket.
fn write_out(session: &mut Session, context: &Context<'_>) -> usize {
    let mut bytes = 0;
    let offset = session.lend(32, 256 * 1024, context, |frame| bytes += frame.len());
    session.transmitted(bytes - offset);
    bytes - offset
}

fn connect(settings: &Settings, upgrade: &mut [u8], hello: &mut [u8]) -> Session {
    let context = context(settings);
    let mut session = Session::new(settings, NOW);
    session.receive(upgrade, &context, &mut |_| {});
    write_out(&mut session, &context);
    session.receive(hello, &context, &mut |_| {});
    let identity = Identity { user_id: UserId::new(), device_id: DeviceId::new(), expires_at: NOW.wall_ms + 900_000 };
    session.authenticated(Ok(identity), &context, &mut |_| {});
    session.registered(SessionId::new(Incarnation(7), 1, 2, 3), Epoch::from_bytes([9; 16]), &context, &mut |_| {});
    write_out(&mut session, &context);
    assert!(session.is_live());
    session
}

fn hello() -> Vec<u8> {
    masked(ClientBody::Connect { token: Some("token".into()), device_id: None, client: "bench".into() })
}

fn machine(criterion: &mut Criterion) {
    let settings = Settings { control_frames_per_second_max: u16::MAX, ..Settings::default() };
    let mut group = criterion.benchmark_group("session");
    group.bench_function("connects", |bencher| {
        bencher.iter_batched_ref(
            || (UPGRADE.to_vec(), hello()),
            |(upgrade, hello)| connect(&settings, upgrade, hello),
            BatchSize::SmallInput,
        );
    });
    let ping = masked(ClientBody::Ping);
    let mut session = connect(&settings, &mut UPGRADE.to_vec(), &mut hello());
    let (mut buffer, mut now) = (ping.clone(), NOW);
    group.bench_function("answers a ping", |bencher| {
        bencher.iter(|| {
            buffer.copy_from_slice(&ping);
            // Time goes on, or it would be too many in one second.
            now.steady_ms += 1;
            let context = Context { now, ..context(&settings) };
            session.receive(black_box(&mut buffer), &context, &mut |_| {});
            assert!(write_out(&mut session, &context) > 0);
        });
    });
    let frame = encode_frame(Opcode::Binary, 200, |frame| frame.extend_from_slice(&[7; 200]));
    group.bench_function("takes a delivery and has it written", |bencher| {
        bencher.iter(|| {
            let context = context(&settings);
            session.deliver(black_box(Bytes::clone(&frame)), Loss::Never, &context);
            assert_eq!(write_out(&mut session, &context), frame.len());
        });
    });
    group.bench_function("says its deadline", |bencher| bencher.iter(|| black_box(&session).deadline(&settings)));
    group.finish();
}

criterion_group!(benches, machine);
criterion_main!(benches);
