//! What all sessions of a gateway share, and what changes with every call.

use std::sync::LazyLock;

use bytes::Bytes;
use roost_protocol::frames::{Form, ServerBody, ServerFrame, ServerLimits};
use roost_protocol::{TimeMs, limits};

use super::encode::encode;
use crate::framing::handshake::OriginPolicy;
use crate::framing::websocket::Limits;
use crate::rate::Rate;

/// How long things may take, in milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timings {
    /// For the whole HTTP head.
    pub handshake_ms: u64,
    /// From the handshake to `connect`, and again from there to `connected`.
    pub connect_ms: u64,
    /// Idleness before a ping.
    pub ping_ms: u64,
    /// From the ping to a sign of life.
    pub pong_grace_ms: u64,
    /// From a send to its verdict.
    pub send_deadline_ms: u64,
    /// For the peer to take our last bytes and close.
    pub close_ms: u64,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            handshake_ms: limits::HANDSHAKE_MS_MAX,
            connect_ms: limits::CONNECT_MS_MAX,
            ping_ms: limits::PING_MS,
            pong_grace_ms: limits::PONG_GRACE_MS,
            send_deadline_ms: limits::SEND_DEADLINE_MS,
            close_ms: 2_000,
        }
    }
}

/// What all sessions share.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which web pages may connect.
    pub origins: OriginPolicy,
    /// How long things may take.
    pub timings: Timings,
    /// What `retry` and busy errors ask for.
    pub retry_after_ms: u64,
    /// Above this much in the queue, what may be lost is dropped and no request is begun.
    pub queue_bytes_soft: usize,
    /// Above this the session is closed as slow.
    pub queue_bytes_hard: usize,
    /// Sends without a verdict.
    pub sends_in_flight_max: usize,
    /// Syncs and histories without an answer.
    pub requests_in_flight_max: usize,
    /// Pings and pongs of either kind a second.
    pub control_frames_per_second_max: u16,
    /// Sends of one session.
    pub sends: Rate,
    /// Syncs, histories and refreshes of one session.
    pub requests: Rate,
    /// What the WebSocket decoder may hold of a live session.
    pub frames: Limits,
}

/// What most of an idle gateway's sends are. They last as long as the program, so that nobody counts who holds them:
/// the shards would write to one counter with each.
static PINGS: LazyLock<[Bytes; 2]> = LazyLock::new(|| both(ServerBody::Ping));
static PONGS: LazyLock<[Bytes; 2]> = LazyLock::new(|| both(ServerBody::Pong));

fn both(body: ServerBody) -> [Bytes; 2] {
    Form::ALL.map(|form| encode(&ServerFrame::unsolicited(body.clone()), form))
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            origins: OriginPolicy::default(),
            timings: Timings::default(),
            retry_after_ms: limits::RETRY_AFTER_MS,
            queue_bytes_soft: limits::QUEUE_BYTES_SOFT,
            queue_bytes_hard: limits::QUEUE_BYTES_HARD,
            sends_in_flight_max: limits::SENDS_IN_FLIGHT_MAX,
            requests_in_flight_max: limits::REQUESTS_IN_FLIGHT_MAX,
            control_frames_per_second_max: limits::CONTROL_FRAMES_PER_SECOND_MAX as u16,
            sends: Rate { per_second: limits::SENDS_PER_SECOND_MAX, burst: limits::SENDS_AT_ONCE_MAX },
            requests: Rate { per_second: limits::REQUESTS_PER_SECOND_MAX, burst: limits::REQUESTS_AT_ONCE_MAX },
            frames: Limits {
                message_bytes_max: limits::CLIENT_FRAME_BYTES_MAX,
                message_fragments_max: limits::FRAGMENTS_MAX,
            },
        }
    }
}

impl Settings {
    /// The limits as `connected` tells them.
    pub(super) fn server_limits(&self) -> ServerLimits {
        ServerLimits {
            frame_bytes_max: self.frames.message_bytes_max as u64,
            sends_in_flight_max: u32::try_from(self.sends_in_flight_max).unwrap_or(u32::MAX),
            ..ServerLimits::OURS
        }
    }
}

pub(super) fn ping_frame(form: Form) -> Bytes {
    Bytes::from_static(&PINGS[form as usize])
}

pub(super) fn pong_frame(form: Form) -> Bytes {
    Bytes::from_static(&PONGS[form as usize])
}

/// The time, read once for many calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Now {
    /// Never goes back; deadlines are on this one.
    pub steady_ms: u64,
    /// What people read; tokens end by this one.
    pub wall_ms: TimeMs,
}

/// What every call needs to know.
#[derive(Clone, Copy, Debug)]
pub struct Context<'s> {
    /// What all sessions share.
    pub settings: &'s Settings,
    /// The time.
    pub now: Now,
    /// How far the sum of all queues is over its cap.
    pub pressure: Pressure,
}

impl Context<'_> {
    pub(super) fn queue_bytes_hard(&self) -> usize {
        match self.pressure {
            Pressure::None => self.settings.queue_bytes_hard,
            Pressure::Some => self.settings.queue_bytes_soft,
            Pressure::High => self.settings.queue_bytes_soft / 16,
            Pressure::Extreme => 0,
        }
    }
}

/// How far the sum of all queues is over its cap. What one session may have waiting falls with it, so that the slowest
/// readers go first, and the sum stops rising whatever the number of sessions is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Pressure {
    /// It is not.
    #[default]
    None,
    /// The soft limit is the hard one.
    Some,
    /// A sixteenth of the soft limit is.
    High,
    /// Only an empty queue takes a frame.
    Extreme,
}

impl Pressure {
    /// By the sum of all queues and its cap: over it, over it by a quarter, over it by half.
    pub fn of(sum_bytes: u64, cap_bytes: u64) -> Self {
        match sum_bytes {
            sum if sum <= cap_bytes => Self::None,
            sum if sum <= cap_bytes + cap_bytes / 4 => Self::Some,
            sum if sum <= cap_bytes + cap_bytes / 2 => Self::High,
            _ => Self::Extreme,
        }
    }
}

/// Whether a frame may be lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Loss {
    /// A number: delivered, or the session is closed.
    Never,
    /// Dropped where the queue is over its soft limit.
    Allowed,
}
