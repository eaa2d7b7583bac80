//! The handlers of bytes: what the peer sends, what the socket took, and that the peer is gone.

use roost_protocol::frames::{ClientBody, ClientFrame, DecodeError, Form, Send, ServerBody};
use roost_protocol::{CloseCode, ErrorCode, limits};

use super::opening::{Stage, close_code_of};
use super::outstanding::Admission;
use super::{Context, Ending, Event, Phase, Purpose, Request, RequestKind, Session, settings};
use crate::framing::websocket::{self, MessageKind, close_frame, pong_frame};

impl Session {
    /// Takes bytes of the peer, changing them in place. However they are cut, the outcome is the same.
    pub fn receive(&mut self, input: &mut [u8], context: &Context<'_>, tell: &mut dyn FnMut(Event<'_>)) {
        if input.is_empty() {
            return;
        }
        self.heard_ms = context.now.steady_ms;
        self.pinged_ms = 0;
        self.receive_all(input, context, tell);
    }

    /// Takes note that the socket has taken so many of the bytes lent, and that the loan is over.
    pub fn transmitted(&mut self, bytes: usize) {
        if matches!(self.phase, Phase::Finished) {
            return;
        }
        self.queue.advance(bytes);
        self.finish_if_both_closed();
    }

    /// Takes note that the peer has closed its writing half, or that the connection is broken.
    pub fn lost(&mut self) {
        self.ending.get_or_insert(Ending::Lost);
        self.finish();
    }

    pub(super) fn receive_all(&mut self, mut input: &mut [u8], context: &Context<'_>, tell: &mut dyn FnMut(Event<'_>)) {
        while !input.is_empty() {
            input = match &mut self.phase {
                Phase::Handshake(_) => return self.receive_head(input, context, tell),
                Phase::Opening(opening) if opening.stage == Stage::Connecting => {
                    self.receive_before_connect(input, context, tell)
                }
                Phase::Opening(opening) => return opening.held.extend_from_slice(input),
                Phase::Live => self.receive_live(input, context, tell),
                Phase::Closing { .. } => return self.receive_closing(input, context),
                Phase::Http | Phase::Finished => return,
            };
        }
    }

    /// Reads one event; returns what is left.
    fn receive_live<'i>(
        &mut self,
        mut input: &'i mut [u8],
        context: &Context<'_>,
        tell: &mut dyn FnMut(Event<'_>),
    ) -> &'i mut [u8] {
        while self.is_live() {
            match self.decoder.next(&mut input, &context.settings.frames) {
                Ok(None) => return &mut [],
                Ok(Some(websocket::Event::Message { kind, payload })) => self.message(kind, &payload, context, tell),
                Ok(Some(websocket::Event::Ping(payload))) => self.control_ping(&payload, context),
                Ok(Some(websocket::Event::Pong)) => self.count_control(context),
                Ok(Some(websocket::Event::Close { code, .. })) => self.peer_closed(code, context),
                Err(error) => self.break_off(close_code_of(error), context),
            }
        }
        input
    }

    /// Only the peer's close frame still matters.
    fn receive_closing(&mut self, mut input: &mut [u8], context: &Context<'_>) {
        if self.close.is_finished() {
            return;
        }
        loop {
            match self.decoder.next(&mut input, &context.settings.frames) {
                Ok(None) => return,
                Ok(Some(websocket::Event::Close { .. })) => {
                    let _ = self.close.receive(None);
                    return self.finish_if_both_closed();
                }
                Ok(Some(_)) => {}
                Err(_) => {
                    let _ = self.close.fail();
                    return;
                }
            }
        }
    }

    fn message(&mut self, kind: MessageKind, payload: &[u8], context: &Context<'_>, tell: &mut dyn FnMut(Event<'_>)) {
        match self.decode(kind, payload) {
            Ok(ClientFrame { id, body }) => match body {
                ClientBody::Connect { .. } => {
                    self.say_error(id, ErrorCode::AlreadyConnected, ErrorCode::AlreadyConnected.help(), context);
                }
                ClientBody::Send(send) => self.take_send(id, &send, context, tell),
                ClientBody::Sync { since } => {
                    let since = since.map(|since| Box::from(&*since));
                    self.take_request(Request { id, kind: RequestKind::Sync { since } }, context);
                }
                ClientBody::History { conversation_id, range, limit } => {
                    let kind = RequestKind::History { conversation_id, range, limit };
                    self.take_request(Request { id, kind }, context);
                }
                ClientBody::Refresh { token } => self.take_refresh(id, &token, context, tell),
                ClientBody::Ping => self.frame_ping(id, context),
                ClientBody::Pong => self.count_control(context),
            },
            Err(error) => self.undecodable(error, context),
        }
    }

    pub(super) fn decode<'p>(&self, kind: MessageKind, payload: &'p [u8]) -> Result<ClientFrame<'p>, DecodeError> {
        let expected = match self.form {
            Form::Binary => MessageKind::Binary,
            Form::Json => MessageKind::Text,
        };
        if kind != expected {
            let message = "the message is not of the kind that the subprotocol has (text or binary)".to_owned();
            return Err(DecodeError { id: None, client_msg_id: None, code: ErrorCode::Malformed, message });
        }
        ClientFrame::decode(self.form, payload)
    }

    /// A send that no attempt could pass is rejected; what can be answered is; what cannot ends the connection.
    fn undecodable(&mut self, error: DecodeError, context: &Context<'_>) {
        let DecodeError { id, client_msg_id, code, message } = error;
        if let Some(client_msg_id) = client_msg_id {
            if let Some(outstanding) = &mut self.outstanding {
                outstanding.unblock(client_msg_id);
            }
            self.drop_outstanding_if_idle();
            self.say(id, ServerBody::Rejected { client_msg_id, code, message }, context);
        } else if id.is_none() && code == ErrorCode::Malformed {
            self.fail(id, code, &message, CloseCode::Malformed, context);
        } else {
            self.say_error(id, code, &message, context);
        }
    }

    fn take_send(&mut self, id: Option<u32>, send: &Send<'_>, context: &Context<'_>, tell: &mut dyn FnMut(Event<'_>)) {
        let request = self.next_request;
        let outstanding = self.outstanding.get_or_insert_default();
        let admission = outstanding.admit(send, id, request, context.now.steady_ms, context.settings, &mut self.sends);
        let client_msg_id = send.client_msg_id;
        match admission {
            Admission::Log => {
                self.next_request = self.next_request.wrapping_add(1);
                tell(Event::Send { request, send });
            }
            Admission::Duplicate => {}
            Admission::Mismatch => {
                let code = ErrorCode::IdempotencyMismatch;
                let message = code.help().to_owned();
                self.say(id, ServerBody::Rejected { client_msg_id, code, message }, context);
            }
            Admission::TooFast { wait_ms } => {
                self.limited = self.limited.saturating_add(1);
                let wait_ms = wait_ms.max(limits::RATE_WAIT_MS_MIN);
                self.say_retry_after(id, client_msg_id, ErrorCode::RateLimited, wait_ms, context);
            }
            Admission::Order | Admission::Busy => {
                let code = if admission == Admission::Order { ErrorCode::Order } else { ErrorCode::Busy };
                self.say_retry(id, client_msg_id, code, context);
            }
        }
    }

    fn take_request(&mut self, request: Request, context: &Context<'_>) {
        let id = request.id;
        if !self.may_ask(id, context) {
            return;
        }
        let outstanding = self.outstanding.get_or_insert_default();
        if !outstanding.queue_request(request, context.settings) {
            self.say_error(id, ErrorCode::Busy, "Too many requests without an answer.", context);
        }
    }

    fn take_refresh(&mut self, id: Option<u32>, token: &str, context: &Context<'_>, tell: &mut dyn FnMut(Event<'_>)) {
        if !self.may_ask(id, context) {
            return;
        }
        let outstanding = self.outstanding.get_or_insert_default();
        if outstanding.refresh.is_some() {
            return self.say_error(id, ErrorCode::Busy, "A refresh is under way.", context);
        }
        outstanding.refresh = Some(id);
        tell(Event::Authenticate { token, purpose: Purpose::Refresh });
    }

    /// Whether another request is within the rate; says so where it is not.
    fn may_ask(&mut self, id: Option<u32>, context: &Context<'_>) -> bool {
        let Err(wait_ms) = self.requests.take(context.settings.requests, context.now.steady_ms) else { return true };
        self.limited = self.limited.saturating_add(1);
        let code = ErrorCode::RateLimited;
        let retry_after_ms = Some(wait_ms.max(limits::RATE_WAIT_MS_MIN));
        let body = ServerBody::Error { code, message: code.help().to_owned(), retry_after_ms, fatal: false };
        self.say(id, body, context);
        self.drop_outstanding_if_idle();
        false
    }

    fn frame_ping(&mut self, id: Option<u32>, context: &Context<'_>) {
        self.count_control(context);
        match id {
            None => self.push(settings::pong_frame(self.form), context),
            Some(_) => self.say(id, ServerBody::Pong, context),
        }
    }

    pub(super) fn control_ping(&mut self, payload: &[u8], context: &Context<'_>) {
        self.count_control(context);
        self.push(pong_frame(payload), context);
    }

    /// Pings and pongs cost an answer or a wake-up, and nobody needs many: a flood of them is an attack.
    pub(super) fn count_control(&mut self, context: &Context<'_>) {
        let second = (context.now.steady_ms / 1000) as u32;
        if self.control_second != second {
            (self.control_second, self.control_count) = (second, 0);
        }
        self.control_count = self.control_count.saturating_add(1);
        if self.control_count > context.settings.control_frames_per_second_max {
            self.break_off(CloseCode::Policy, context);
        }
    }

    pub(super) fn peer_closed(&mut self, code: Option<u16>, context: &Context<'_>) {
        if let Some(reply) = self.close.receive(code) {
            self.queue.push(close_frame(reply.code, ""));
            self.ending.get_or_insert(Ending::Peers(code));
        }
        self.enter_closing(context);
        self.finish_if_both_closed();
    }
}
