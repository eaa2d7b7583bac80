//! The session: bytes, commands and the time go in; bytes, events and deadlines come out.

mod commands;
mod deadlines;
mod encode;
mod event;
mod opening;
mod outstanding;
mod queue;
mod receive;
mod settings;

use bytes::Bytes;
use roost_protocol::frames::{Form, ServerBody, ServerFrame};
use roost_protocol::{ClientMsgId, CloseCode, DeviceId, ErrorCode, UserId};

use crate::framing::websocket::{CloseState, Decoder, close_frame};
use crate::rate::Bucket;

pub use encode::{encode, encode_message};
pub use event::{Ending, Event, Identity, Purpose, Refusal, Request, RequestKind, Settled};
pub use outstanding::content_of;
pub use settings::{Context, Loss, Now, Pressure, Settings, Timings};

use opening::{Handshaking, Opening, Stage};
use outstanding::Outstanding;
use queue::Queue;

/// One client's connection, from its first byte to its last.
///
/// It owns no socket, asks no clock and never waits. Whoever drives it (a shard of the gateway, a test) gives each call
/// the time and what all sessions share, in a [`Context`].
///
/// * **Handlers** take what the world did: [`receive`](Self::receive) (bytes of the peer),
///   [`transmitted`](Self::transmitted) (bytes that the socket took), [`lost`](Self::lost) (the peer is gone),
///   [`handle_timeout`](Self::handle_timeout) (the deadline has passed).
/// * **Commands** take what the gateway decided: [`authenticated`](Self::authenticated),
///   [`registered`](Self::registered), [`too_many_sessions`](Self::too_many_sessions), [`deliver`](Self::deliver), [`settled`](Self::settled),
///   [`rejected`](Self::rejected), [`send_failed`](Self::send_failed), [`answer`](Self::answer),
///   [`answer_http`](Self::answer_http), [`goaway`](Self::goaway), [`reload`](Self::reload), [`close`](Self::close).
/// * **Polls** say what is to be done now: [`poll_request`](Self::poll_request), [`lend`](Self::lend),
///   [`wants_shutdown`](Self::wants_shutdown), [`is_finished`](Self::is_finished), [`deadline`](Self::deadline),
///   [`read_budget`](Self::read_budget).
/// * **Getters** change nothing: [`is_live`](Self::is_live), [`identity`](Self::identity), [`form`](Self::form),
///   [`queued_bytes`](Self::queued_bytes), [`awaits_transmitted`](Self::awaits_transmitted),
///   [`sends_in_flight`](Self::sends_in_flight), [`take_retries`](Self::take_retries),
///   [`take_limited`](Self::take_limited), [`ending`](Self::ending).
///
/// [`Event`]s are handed out during a call, because a send borrows its body from the receive buffer: it is copied
/// once, by whoever takes the event, into the log record.
///
/// After any number of handlers and commands, poll in this order:
///
/// 1. `poll_request` until there is none: they are to be answered from the Store.
/// 2. `lend`, where anything is queued: write it, then say `transmitted` with what the socket took.
/// 3. `wants_shutdown`: nothing more will be written; close the writing half once.
/// 4. `is_finished`: close the socket and forget the session. Else
/// 5. `deadline`: call `handle_timeout` then (or later; sooner does no harm), and `read_budget`: read on, at most so
///    much at once.
///
/// An idle live session holds nothing on the heap.
#[derive(Debug)]
pub struct Session {
    phase: Phase,
    decoder: Decoder,
    queue: Queue,
    /// Sends, requests and refreshes without an answer; absent where there are none, which is nearly always.
    outstanding: Option<Box<Outstanding>>,
    user_id: UserId,
    device_id: DeviceId,
    /// When something last came from the peer.
    heard_ms: u64,
    /// When something last went to the peer.
    spoke_ms: u64,
    /// When the ping that is unanswered was queued; 0 where there is none.
    pinged_ms: u64,
    /// When the token ends, on the steady clock.
    token_ends_ms: u64,
    /// Numbers the sends, for verdicts to name.
    next_request: u32,
    /// The second in which control frames are counted, and how many it has had.
    control_second: u32,
    control_count: u16,
    /// Sends answered `retry` since somebody asked.
    retries: u16,
    /// Sends and requests over their rate, since somebody asked.
    limited: u16,
    /// How far the rates of sends and of requests are used up.
    sends: Bucket,
    requests: Bucket,
    form: Form,
    close: CloseState,
    /// The writing half has been closed.
    shut_down: bool,
    ending: Option<Ending>,
}

#[derive(Debug)]
enum Phase {
    /// The HTTP head is arriving.
    Handshake(Box<Handshaking>),
    /// Plain HTTP: the gateway hands it over or calls `answer_http`.
    Http,
    /// Until `connected`.
    Opening(Box<Opening>),
    Live,
    /// The last bytes are queued; the peer has so long to take them and to close.
    Closing {
        until_ms: u64,
    },
    Finished,
}

impl Session {
    /// A connection just accepted.
    pub fn new(settings: &Settings, now: Now) -> Self {
        let deadline_ms = now.steady_ms + settings.timings.handshake_ms;
        Self {
            phase: Phase::Handshake(Box::new(Handshaking::new(deadline_ms))),
            decoder: Decoder::new(),
            queue: Queue::default(),
            outstanding: None,
            user_id: UserId::from_bytes([0; 16]),
            device_id: DeviceId::from_bytes([0; 16]),
            heard_ms: now.steady_ms,
            spoke_ms: now.steady_ms,
            pinged_ms: 0,
            token_ends_ms: u64::MAX,
            next_request: 1,
            control_second: 0,
            control_count: 0,
            retries: 0,
            limited: 0,
            sends: Bucket::default(),
            requests: Bucket::default(),
            form: Form::Binary,
            close: CloseState::Open,
            shut_down: false,
            ending: None,
        }
    }

    /// The next sync or history to be answered, one at a time and only while the peer reads, so that pages never
    /// pile up in the queue. Its answer comes by [`answer`](Self::answer).
    pub fn poll_request(&mut self, settings: &Settings) -> Option<Request> {
        if !self.is_live() || self.queue.bytes() >= settings.queue_bytes_soft {
            return None;
        }
        self.outstanding.as_mut()?.start_request()
    }

    /// Lends the next queued frames for one write, at most so many and about so many bytes, and returns how much of
    /// the first one has been written already. Nothing is lent while a loan lasts; `transmitted` ends it.
    pub fn lend(
        &mut self,
        frames_max: usize,
        bytes_max: usize,
        context: &Context<'_>,
        take: impl FnMut(Bytes),
    ) -> usize {
        if self.queue.is_lent() {
            return 0;
        }
        let offset = self.queue.lend(frames_max, bytes_max, take);
        if self.queue.is_lent() {
            // Not when it is known to be transmitted, which may be told much later.
            self.spoke_ms = context.now.steady_ms;
        }
        offset
    }

    /// Whether something waits for the loan's end: more to write, the next request, the end of the session, or, where
    /// memory is short, the judgement whether the peer reads.
    pub fn awaits_transmitted(&self, context: &Context<'_>) -> bool {
        let full = self.queue.bytes() >= context.settings.queue_bytes_soft;
        self.queue.is_lent()
            && (!self.queue.is_lent_whole() || full || context.pressure != Pressure::None || !self.is_live())
    }

    /// Bytes that are not written yet.
    pub fn queued_bytes(&self) -> usize {
        self.queue.bytes()
    }

    /// Whether the writing half of the socket is to be closed: everything is written, and nothing the peer still
    /// sends can be answered. Its bytes are read and thrown away for a moment, for a socket closed with unread bytes
    /// is reset, and the peer would lose our last words.
    pub fn wants_shutdown(&mut self) -> bool {
        let wants = !self.shut_down
            && matches!(self.phase, Phase::Closing { .. })
            && self.queue.bytes() == 0
            && self.close.is_finished();
        self.shut_down |= wants;
        wants
    }

    /// Whether the socket is to be closed and the session forgotten.
    pub fn is_finished(&self) -> bool {
        matches!(self.phase, Phase::Finished)
    }

    /// How many bytes the peer may be read in one go; 0 means: not now. A session that is being authenticated or
    /// registered leaves its peer's bytes in the kernel.
    pub fn read_budget(&self) -> usize {
        match &self.phase {
            Phase::Handshake(_) => crate::framing::handshake::HEAD_BYTES_MAX,
            Phase::Opening(opening) if opening.stage == Stage::Connecting => {
                roost_protocol::limits::BEFORE_CONNECT_BYTES_MAX
            }
            Phase::Opening(_) | Phase::Http | Phase::Finished => 0,
            Phase::Live | Phase::Closing { .. } => usize::MAX,
        }
    }

    /// Whether `connected` has been said and no close has begun.
    pub fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Live)
    }

    /// Whether the HTTP head is still arriving.
    pub fn is_in_handshake(&self) -> bool {
        matches!(self.phase, Phase::Handshake(_))
    }

    /// Whether the token is accepted and the gateway is asked to register the session.
    pub fn is_registering(&self) -> bool {
        matches!(&self.phase, Phase::Opening(opening) if opening.stage == Stage::Registering)
    }

    /// Whose session this is; nil ids before it is known.
    pub fn identity(&self) -> (UserId, DeviceId) {
        (self.user_id, self.device_id)
    }

    /// The form of its frames.
    pub fn form(&self) -> Form {
        self.form
    }

    /// Sends without a verdict.
    pub fn sends_in_flight(&self) -> usize {
        self.outstanding.as_ref().map_or(0, |outstanding| outstanding.sends_in_flight())
    }

    /// How many sends were answered `retry` since this was last asked.
    pub fn take_retries(&mut self) -> u16 {
        std::mem::take(&mut self.retries)
    }

    /// How many sends and requests were over their rate since this was last asked.
    pub fn take_limited(&mut self) -> u16 {
        std::mem::take(&mut self.limited)
    }

    /// Why it ended, once it has or is about to.
    pub fn ending(&self) -> Option<Ending> {
        self.ending
    }

    // What several files of this module need.

    fn say(&mut self, id: Option<u32>, body: ServerBody, context: &Context<'_>) {
        let frame = encode(&ServerFrame::answer(id, body), self.form);
        self.push(frame, context);
    }

    fn say_retry(&mut self, id: Option<u32>, client_msg_id: ClientMsgId, code: ErrorCode, context: &Context<'_>) {
        self.say_retry_after(id, client_msg_id, code, context.settings.retry_after_ms, context);
    }

    fn say_retry_after(
        &mut self,
        id: Option<u32>,
        client_msg_id: ClientMsgId,
        code: ErrorCode,
        retry_after_ms: u64,
        context: &Context<'_>,
    ) {
        self.retries = self.retries.saturating_add(1);
        self.say(id, ServerBody::Retry { client_msg_id, retry_after_ms, code }, context);
    }

    fn say_error(&mut self, id: Option<u32>, code: ErrorCode, message: &str, context: &Context<'_>) {
        let retry_after_ms = code.retryable().then_some(context.settings.retry_after_ms);
        self.say(id, ServerBody::Error { code, message: message.to_owned(), retry_after_ms, fatal: false }, context);
    }

    /// An error after which nothing is left to say but the close.
    fn fail(&mut self, id: Option<u32>, error: ErrorCode, message: &str, close: CloseCode, context: &Context<'_>) {
        let retry_after_ms = error.retryable().then_some(context.settings.retry_after_ms);
        let body = ServerBody::Error { code: error, message: message.to_owned(), retry_after_ms, fatal: true };
        self.say(id, body, context);
        self.begin_close(close, context);
    }

    /// Queues a frame of a connection that may still send. Over the hard limit the peer is too slow to be kept.
    fn push(&mut self, frame: Bytes, context: &Context<'_>) {
        if !self.close.may_send() || matches!(self.phase, Phase::Finished) {
            return;
        }
        // An empty queue takes whatever fits at all: else a full page would close its own reader under pressure.
        let limit =
            if self.queue.bytes() == 0 { context.settings.queue_bytes_hard } else { context.queue_bytes_hard() };
        if self.queue.bytes() + frame.len() > limit {
            self.queue.drop_unstarted();
            self.begin_close(CloseCode::Slow, context);
            return;
        }
        self.queue.push(frame);
    }

    /// Says the close frame and waits for the peer's.
    fn begin_close(&mut self, code: CloseCode, context: &Context<'_>) {
        if self.close.send() {
            self.queue.push(close_frame(Some(code.code()), code.reason()));
            self.ending.get_or_insert(Ending::Ours(code));
            self.enter_closing(context);
        }
    }

    /// The peer broke the framing: what it sends from now on cannot be understood, so its close is not waited for.
    fn break_off(&mut self, code: CloseCode, context: &Context<'_>) {
        if self.close.fail() {
            self.queue.push(close_frame(Some(code.code()), code.reason()));
            self.ending.get_or_insert(Ending::Ours(code));
        }
        self.enter_closing(context);
    }

    fn enter_closing(&mut self, context: &Context<'_>) {
        if matches!(self.phase, Phase::Finished | Phase::Closing { .. }) {
            return;
        }
        self.outstanding = None;
        self.phase = Phase::Closing { until_ms: context.now.steady_ms + context.settings.timings.close_ms };
    }

    fn finish(&mut self) {
        self.queue.clear();
        self.outstanding = None;
        self.decoder = Decoder::new();
        self.phase = Phase::Finished;
    }

    fn finish_if_both_closed(&mut self) {
        if matches!(self.phase, Phase::Closing { .. }) && self.queue.bytes() == 0 && self.decoder.is_closed() {
            self.finish();
        }
    }

    fn drop_outstanding_if_idle(&mut self) {
        if self.outstanding.as_ref().is_some_and(|outstanding| outstanding.is_idle()) {
            self.outstanding = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_live_session_is_small() {
        // Everything else hangs from options that are empty while a session is idle.
        assert!(size_of::<Session>() <= 256, "{} bytes", size_of::<Session>());
    }
}
