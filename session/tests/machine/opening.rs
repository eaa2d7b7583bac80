//! From the first byte to `connected`.

use proptest::prelude::*;
use roost_protocol::frames::{ClientBody, ClientFrame, Form, ServerBody};
use roost_protocol::{DeviceId, ErrorCode};
use roost_session::framing::handshake::HttpError;
use roost_session::machine::{Identity, Purpose, Refusal, Session};

use crate::common::{FIN, PING, client_frame};
use crate::harness::*;

#[test]
fn connected_is_said_only_once_the_session_is_registered() {
    for form in Form::ALL {
        let mut driven = Driven::new(form);
        driven.receive(&head(form, ""));
        driven.receive(&connect_frame(form, Some("secret")));
        assert_eq!(driven.told, [Told::Authenticate("secret".to_owned(), Purpose::Connect)]);
        assert_eq!(driven.session.read_budget(), 0, "the rest stays in the kernel");
        let identity = Identity { user_id: USER, device_id: DEVICE, expires_at: WALL_MS + 5_000 };
        driven.call(|session, context, tell| session.authenticated(Ok(identity), context, tell));
        assert_eq!(driven.told.last(), Some(&Told::Register));
        assert!(driven.frames().is_empty());
        driven.call(|session, context, tell| session.registered(session_id(), epoch(), context, tell));
        let [frame] = &driven.frames()[..] else { panic!("one frame") };
        let ServerBody::Connected(connected) = &frame.body else { panic!("connected") };
        assert_eq!((frame.id, connected.session_id, connected.epoch), (Some(1), session_id(), epoch()));
        assert_eq!((connected.user_id, connected.device_id), (USER, DEVICE));
        assert_eq!((connected.server_time, connected.expires_at), (WALL_MS, WALL_MS + 5_000));
    }
}

#[test]
fn the_token_comes_in_the_frame_or_in_the_header() {
    for (header, token, expected) in [
        ("Authorization: Bearer abc\r\n", None, Some("abc")),
        ("Authorization: Bearer abc\r\n", Some("def"), Some("def")),
        ("", None, None),
    ] {
        let mut driven = Driven::new(Form::Json);
        driven.receive(&head(Form::Json, header));
        driven.receive(&connect_frame(Form::Json, token));
        match expected {
            Some(token) => assert_eq!(driven.told, [Told::Authenticate(token.to_owned(), Purpose::Connect)]),
            None => assert_eq!(driven.close_code(), Some(4100)),
        }
    }
}

#[test]
fn refusals_have_their_codes() {
    let good = Identity { user_id: USER, device_id: DEVICE, expires_at: WALL_MS + 5_000 };
    for (result, code, close) in [
        (Err(Refusal::Unauthenticated), ErrorCode::Unauthenticated, 4100),
        (Err(Refusal::Forbidden), ErrorCode::Unauthenticated, 4203),
        (Err(Refusal::Unavailable), ErrorCode::Unavailable, 4004),
        (Ok(Identity { expires_at: WALL_MS, ..good }), ErrorCode::Unauthenticated, 4100),
        (Ok(Identity { device_id: DeviceId::from_bytes([5; 16]), ..good }), ErrorCode::DeviceMismatch, 4203),
    ] {
        let mut driven = Driven::new(Form::Binary);
        driven.receive(&head(Form::Binary, ""));
        let body = ClientBody::Connect { token: Some("t".into()), device_id: Some(DEVICE), client: "x".into() };
        let payload = ClientFrame { id: Some(3), body }.encode(Form::Binary);
        driven.receive(&data_frame(Form::Binary, &payload));
        driven.call(|session, context, tell| session.authenticated(result, context, tell));
        let [frame] = &driven.frames()[..] else { panic!("one frame") };
        assert_eq!(frame.id, Some(3));
        let ServerBody::Error { code: said, fatal: true, .. } = &frame.body else { panic!("{frame:?}") };
        assert_eq!((*said, driven.close_code()), (code, Some(close)));
    }
}

#[test]
fn no_more_than_the_limit_comes_before_connect() {
    // Pings in many frames, one frame that is too long, and one that never ends.
    let ping = client_frame(FIN | PING, [0; 4], &[7; 100]);
    let pings = ping.iter().copied().cycle().take(19 * ping.len()).collect::<Vec<u8>>();
    let mut driven = Driven::new(Form::Json);
    driven.receive(&head(Form::Json, ""));
    driven.receive(&pings);
    assert_eq!(driven.close_code(), None);
    driven.receive(&data_frame(Form::Json, &vec![b' '; 2_500]));
    assert_eq!(driven.close_code(), Some(4201));

    let mut driven = Driven::new(Form::Json);
    driven.receive(&head(Form::Json, ""));
    driven.receive(&data_frame(Form::Json, &[b' '; 5_000])[..20]);
    assert_eq!(driven.close_code(), Some(4201), "judged by the header");
}

#[test]
fn every_stage_ends_in_time() {
    let mut driven = Driven::new(Form::Json);
    assert_eq!(driven.session.deadline(&driven.settings), Some(1_000 + 5_000));
    driven.pass(5_000);
    driven.write(usize::MAX);
    assert!(driven.output.starts_with(b"HTTP/1.1 408 "));
    assert!(driven.session.wants_shutdown() && !driven.session.wants_shutdown());
    driven.pass(2_000);
    assert!(driven.session.is_finished());

    let mut driven = Driven::new(Form::Json);
    driven.receive(&head(Form::Json, ""));
    driven.pass(9_999);
    assert_eq!(driven.close_code(), None);
    driven.pass(1);
    assert_eq!(driven.close_code(), Some(4200));

    let mut driven = Driven::new(Form::Json);
    driven.receive(&head(Form::Json, ""));
    driven.receive(&connect_frame(Form::Json, Some("t")));
    driven.pass(10_000);
    assert_eq!(driven.close_code(), Some(4004), "our fault: the client may come again");
}

#[test]
fn a_handshake_that_the_gateway_does_not_want_is_refused_in_http() {
    let mut driven = Driven::new(Form::Json);
    driven.refusal = Some(HttpError::unavailable("Not now.", 7));
    driven.receive(&head(Form::Json, ""));
    driven.write(usize::MAX);
    let answer = String::from_utf8(driven.output.clone()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("\r\nRetry-After: 7\r\n"), "{answer}");
    assert!(driven.told.is_empty());
}

#[test]
fn the_newest_session_of_a_user_with_too_many_is_told_when_to_come_back() {
    let mut driven = Driven::new(Form::Json);
    driven.receive(&head(Form::Json, ""));
    driven.receive(&connect_frame(Form::Json, Some("t")));
    let identity = Identity { user_id: USER, device_id: DEVICE, expires_at: WALL_MS + 5_000 };
    driven.call(|session, context, tell| session.authenticated(Ok(identity), context, tell));
    driven.call(|session, context, _| session.too_many_sessions(context));
    let [frame] = &driven.frames()[..] else { panic!("one frame") };
    let ServerBody::Error { code: ErrorCode::TooManySessions, retry_after_ms, fatal: true, .. } = frame.body else {
        panic!("{frame:?}")
    };
    assert_eq!((frame.id, retry_after_ms, driven.close_code()), (Some(1), Some(40_000), Some(4005)));
}

proptest! {
    /// Whatever the network does to the pieces: the same events, the same bytes out, the same end.
    #[test]
    fn every_cut_gives_the_same_session(
        form in prop_oneof![Just(Form::Binary), Just(Form::Json)],
        frames in proptest::collection::vec(frame(), 0..12),
        seed in any::<u64>(),
    ) {
        let mut bytes = head(form, "");
        bytes.extend(connect_frame(form, Some("token")));
        for frame in &frames {
            bytes.extend(frame.bytes(form));
        }
        let mut whole = Driven::new(form);
        whole.feed(&bytes, |rest| rest);
        let mut one_by_one = Driven::new(form);
        one_by_one.feed(&bytes, |_| 1);
        let mut cut = Driven::new(form);
        let mut random = crate::common::Random(seed);
        cut.feed(&bytes, |_| 1 + random.below(300));
        for other in [&one_by_one, &cut] {
            prop_assert_eq!(&whole.told, &other.told);
            prop_assert_eq!(&whole.output, &other.output);
            prop_assert_eq!(whole.session.ending(), other.session.ending());
            prop_assert_eq!(whole.session.is_live(), other.session.is_live());
            // A session that ends drops what it has not begun to answer, sooner or later.
            prop_assert!(!whole.session.is_live() || whole.requests == other.requests);
        }
    }
}

/// Good frames, bad ones, and noise.
#[derive(Clone, Debug)]
enum Frame {
    Send(u8, u8, usize),
    Request(u32, ClientBody<'static>),
    Other(ClientBody<'static>),
    Noise(Vec<u8>),
    Raw(u8, Vec<u8>),
}

impl Frame {
    fn bytes(&self, form: Form) -> Vec<u8> {
        let encoded = |id: Option<u32>, body: ClientBody<'static>| ClientFrame { id, body }.encode(form);
        let payload = match self {
            Frame::Send(conversation, message, length) => {
                let send = roost_protocol::frames::Send {
                    client_msg_id: message_id(*message),
                    conversation_id: conversation_id(*conversation),
                    content_type: "text/plain".into(),
                    body: vec![b'm'; *length].into(),
                };
                encoded(Some(9), ClientBody::Send(send))
            }
            Frame::Request(id, body) => encoded(Some(*id), body.clone()),
            Frame::Other(body) => encoded(None, body.clone()),
            Frame::Noise(noise) => noise.clone(),
            Frame::Raw(opcode, payload) => return client_frame(FIN | opcode, [9; 4], payload),
        };
        data_frame(form, &payload)
    }
}

fn frame() -> impl Strategy<Value = Frame> {
    let requests = prop_oneof![
        Just(ClientBody::Sync { since: None }),
        Just(ClientBody::Sync { since: Some("c:1".into()) }),
        Just(ClientBody::Refresh { token: "other".into() }),
        Just(ClientBody::Ping),
    ];
    let others = prop_oneof![
        Just(ClientBody::Ping),
        Just(ClientBody::Pong),
        Just(ClientBody::Connect { token: None, device_id: None, client: "again".into() }),
    ];
    prop_oneof![
        6 => (0u8..3, 0u8..6, 0usize..400).prop_map(|(to, message, length)| Frame::Send(to, message, length)),
        4 => (any::<u32>(), requests).prop_map(|(id, body)| Frame::Request(id, body)),
        3 => others.prop_map(Frame::Other),
        1 => proptest::collection::vec(any::<u8>(), 1..30).prop_map(Frame::Noise),
        1 => (prop_oneof![Just(8u8), Just(9), Just(10), Just(3)], proptest::collection::vec(any::<u8>(), 0..20))
            .prop_map(|(opcode, payload)| Frame::Raw(opcode, payload)),
    ]
}

/// The tests hold many sessions; so does a gateway.
#[test]
fn a_session_is_small() {
    println!("a session is {} bytes", size_of::<Session>());
    assert!(size_of::<Session>() <= 256);
}
