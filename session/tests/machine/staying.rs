//! Keep-alive, tokens, requests, queues and the closing handshake of a live session.

use bytes::Bytes;
use roost_protocol::frames::{ClientBody, Form, ServerBody};
use roost_protocol::{CloseCode, DeviceId, ErrorCode};
use roost_session::machine::{Ending, Identity, Loss, Pressure};
use roost_session::rate::Rate;

use crate::common::{CLOSE, FIN, PING, PONG, client_frame};
use crate::harness::*;

/// It counts from when a frame is handed to the driver: that it was written may be told much later.
#[test]
fn a_peer_that_hears_nothing_for_so_long_is_pinged() {
    let mut driven = Driven::live(Form::Json);
    driven.pass(1_000);
    driven.deliver(100, Loss::Never);
    driven.call(|session, context, _| session.lend(32, usize::MAX, context, drop));
    driven.now.steady_ms += 24_000;
    driven.session.transmitted(driven.session.queued_bytes());
    driven.say(None, ClientBody::Pong);
    assert_eq!(driven.session.deadline(&driven.settings), Some(driven.now.steady_ms + 1_000));
}

#[test]
fn the_server_pings_an_idle_peer_and_closes_a_silent_one() {
    let mut driven = Driven::live(Form::Json);
    assert_eq!(driven.session.deadline(&driven.settings), Some(driven.now.steady_ms + 25_000));
    driven.pass(25_000);
    assert!(matches!(driven.frames()[..], [ref frame] if frame.body == ServerBody::Ping));
    driven.pass(14_000);
    driven.say(None, ClientBody::Pong);
    driven.pass(1_000);
    assert!(driven.frames().is_empty());
    driven.pass(24_000);
    assert_eq!(driven.frames().len(), 1);
    driven.pass(15_000);
    assert_eq!(driven.close_code(), Some(4001));
}

#[test]
fn a_peer_that_only_talks_hears_something_too() {
    let mut driven = Driven::live(Form::Json);
    for _ in 0..5 {
        driven.pass(5_000);
        driven.say(None, ClientBody::Pong);
    }
    assert_eq!(driven.frames().len(), 1, "a ping, though the peer was never idle");
}

#[test]
fn s10_control_frames_are_answered_but_not_a_flood_of_them() {
    for (opcode, answered) in [(PING, true), (PONG, false)] {
        let mut driven = Driven::live(Form::Binary);
        for _ in 0..20 {
            driven.receive(&client_frame(FIN | opcode, [3; 4], b"hi"));
        }
        assert_eq!(driven.close_code(), None);
        assert_eq!(driven.output.ends_with(b"\x8a\x02hi"), answered);
        driven.pass(1_000);
        driven.receive(&client_frame(FIN | opcode, [3; 4], b"hi"));
        assert_eq!(driven.close_code(), None, "another second");
        for _ in 0..20 {
            driven.say(None, ClientBody::Ping);
        }
        assert_eq!(driven.close_code(), Some(1008));
    }
}

#[test]
fn the_token_ends_the_session_unless_it_is_refreshed() {
    let later = Identity { user_id: USER, device_id: DEVICE, expires_at: WALL_MS + 1_800_000 };
    let mut driven = Driven::live(Form::Json);
    let refresh = || ClientBody::Refresh { token: "new".into() };
    driven.say(Some(5), refresh());
    driven.say(Some(6), refresh());
    let foreign = Identity { device_id: DeviceId::from_bytes([8; 16]), ..later };
    driven.call(|session, context, tell| session.authenticated(Ok(foreign), context, tell));
    let codes: Vec<_> = driven
        .frames()
        .into_iter()
        .map(|frame| match frame.body {
            ServerBody::Error { code, fatal: false, .. } => (frame.id, code),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(codes, [(Some(6), ErrorCode::Busy), (Some(5), ErrorCode::DeviceMismatch)]);
    driven.say(Some(7), refresh());
    driven.call(|session, context, tell| session.authenticated(Ok(later), context, tell));
    assert!(driven.frames().is_empty(), "a good token is answered with nothing");
    for _ in 0..60 {
        driven.pass(29_000);
        driven.say(None, ClientBody::Pong);
    }
    assert_eq!(driven.close_code(), None);
    for _ in 0..3 {
        driven.pass(20_000);
        driven.say(None, ClientBody::Pong);
    }
    assert_eq!(driven.close_code(), Some(4101));
}

#[test]
fn requests_run_one_by_one_and_only_while_the_peer_reads() {
    let mut driven = Driven::live(Form::Json);
    for id in 0..10 {
        driven.say(Some(id), ClientBody::Sync { since: None });
    }
    let codes: Vec<_> = driven.frames().into_iter().map(|frame| frame.id).collect();
    assert_eq!(codes, [Some(8), Some(9)], "beyond the limit: busy");
    for id in 0..8 {
        assert_eq!(driven.session.poll_request(&driven.settings).unwrap().id, Some(id));
        assert_eq!(driven.session.poll_request(&driven.settings), None);
        driven.deliver(300_000, Loss::Never);
        driven.call(|session, context, _| session.answer(Bytes::from_static(b"\x81\x00"), context));
        assert_eq!(driven.session.poll_request(&driven.settings), None, "the queue is over its soft limit");
        driven.write(usize::MAX);
    }
}

/// Whoever drives the session need not hear at once that a loan is over, but for these reasons.
#[test]
fn the_end_of_a_loan_is_awaited_where_something_depends_on_it() {
    let lend = |driven: &mut Driven, frames_max: usize| {
        driven.call(|session, context, _| {
            session.lend(frames_max, usize::MAX, context, drop);
            session.awaits_transmitted(context)
        })
    };
    let mut driven = Driven::live(Form::Binary);
    assert!(!lend(&mut driven, 32), "nothing is lent");
    driven.deliver(1_000, Loss::Never);
    assert!(!lend(&mut driven, 32), "nothing is left to do");
    driven.pressure = Pressure::High;
    assert!(lend(&mut driven, 32), "who reads is not to look like who does not");
    driven.pressure = Pressure::None;
    driven.deliver(1_000, Loss::Never);
    assert!(lend(&mut driven, 32), "there is more to write");

    let mut driven = Driven::live(Form::Binary);
    driven.deliver(300_000, Loss::Never);
    assert!(lend(&mut driven, 32), "over the soft limit the next request waits");

    let mut driven = Driven::live(Form::Binary);
    driven.call(|session, context, _| session.close(CloseCode::Drained, context));
    assert!(lend(&mut driven, 32), "the writing half is closed then");
}

#[test]
fn a_full_queue_drops_what_may_be_lost_and_closes_on_what_may_not() {
    let mut driven = Driven::live(Form::Binary);
    driven.deliver(200_000, Loss::Allowed);
    driven.deliver(100_000, Loss::Allowed);
    assert_eq!(driven.session.queued_bytes(), 200_010);
    // The driver has the first frame, and half of it is written.
    let mut lent = Vec::new();
    assert_eq!(driven.call(|session, context, _| session.lend(1, usize::MAX, context, |frame| lent.push(frame))), 0);
    for _ in 0..8 {
        driven.deliver(100_000, Loss::Never);
    }
    assert!(driven.session.is_live());
    driven.deliver(100_000, Loss::Never);
    assert_eq!(driven.session.ending(), Some(Ending::Ours(CloseCode::Slow)));
    assert!(driven.session.queued_bytes() < 200_100, "only what the driver has, and the close frame");
    driven.session.transmitted(100_000);
    driven.output.extend_from_slice(&lent[0][..100_000]);
    assert_eq!(driven.close_code(), Some(4000));
    driven.receive(&client_frame(FIN | CLOSE, [1; 4], &4000u16.to_be_bytes()));
    assert!(driven.session.is_finished());
}

#[test]
fn both_sides_may_begin_the_close() {
    let mut driven = Driven::live(Form::Json);
    driven.receive(&client_frame(FIN | CLOSE, [1; 4], &1000u16.to_be_bytes()));
    assert_eq!(driven.session.ending(), Some(Ending::Peers(Some(1000))));
    assert!(!driven.session.is_finished(), "our answer is still to be written");
    assert_eq!(driven.close_code(), Some(1000));
    assert!(driven.session.is_finished());

    let mut driven = Driven::live(Form::Json);
    driven.call(|session, context, _| session.close(CloseCode::Drained, context));
    assert_eq!(driven.close_code(), Some(4003));
    driven.send(1, 0, 0);
    driven.deliver(10, Loss::Never);
    assert_eq!(driven.session.queued_bytes(), 0, "nothing comes after a close");
    assert!(!driven.session.wants_shutdown(), "the peer is to close too");
    driven.pass(2_000);
    assert!(driven.session.is_finished(), "but is not waited for long");
}

#[test]
fn under_pressure_the_limit_of_a_queue_falls_but_an_empty_one_takes_a_frame() {
    for (pressure, kept) in [(Pressure::None, 10), (Pressure::Some, 2), (Pressure::High, 1), (Pressure::Extreme, 1)] {
        let mut driven = Driven::live(Form::Binary);
        driven.pressure = pressure;
        let frames = (0..20).take_while(|_| {
            driven.deliver(100_000, Loss::Never);
            driven.session.is_live()
        });
        assert_eq!(frames.count(), kept, "{pressure:?}");
        assert_eq!(driven.session.ending(), Some(Ending::Ours(CloseCode::Slow)));
    }
    assert_eq!([100, 101, 125, 126, 150, 151].map(|sum| Pressure::of(sum, 100)), {
        use Pressure::{Extreme, High, None, Some};
        [None, Some, Some, High, High, Extreme]
    });
}

#[test]
fn s40_sends_over_the_rate_are_told_when_to_come_again() {
    let mut driven = Driven::live(Form::Json);
    driven.settings.sends = Rate { per_second: 2, burst: 3 };
    for message in 0..5 {
        // Conversations of their own, so that the order of one does not stand in the way.
        driven.send(u32::from(message), message, message);
    }
    let sent = driven.told.iter().filter(|told| matches!(told, Told::Send(..))).count();
    assert_eq!(sent, 3);
    let retries: Vec<_> = driven
        .frames()
        .into_iter()
        .map(|frame| match frame.body {
            ServerBody::Retry { code, retry_after_ms, .. } => (frame.id, code, retry_after_ms),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(retries, [(Some(3), ErrorCode::RateLimited, 500), (Some(4), ErrorCode::RateLimited, 500)]);
    driven.send(5, 3, 33);
    assert!(
        matches!(driven.frames()[..], [ref frame] if matches!(frame.body, ServerBody::Retry { code: ErrorCode::Order, .. }))
    );
    driven.pass(500);
    driven.send(6, 3, 3);
    driven.send(7, 4, 4);
    let sent = driven.told.iter().filter(|told| matches!(told, Told::Send(..))).count();
    assert_eq!(sent, 4, "one more after the wait");
    driven.send(0, 0, 0);
    assert_eq!(driven.frames().len(), 1, "what is in flight already costs nothing");
}

#[test]
fn s40_requests_over_the_rate_are_told_when_to_come_again() {
    let mut driven = Driven::live(Form::Json);
    driven.settings.requests = Rate { per_second: 1, burst: 2 };
    driven.say(Some(1), ClientBody::Sync { since: None });
    driven.say(Some(2), ClientBody::Refresh { token: "new".into() });
    let history = || ClientBody::History {
        conversation_id: conversation_id(0),
        range: roost_protocol::frames::HistoryRange::After(0),
        limit: None,
    };
    driven.say(Some(3), history());
    let [frame] = &driven.frames()[..] else { panic!("one frame") };
    let ServerBody::Error { code: ErrorCode::RateLimited, retry_after_ms: Some(1_000), fatal: false, .. } = frame.body
    else {
        panic!("{frame:?}")
    };
    assert_eq!(frame.id, Some(3));
    driven.pass(1_000);
    driven.say(Some(4), history());
    assert!(driven.frames().is_empty());
}
