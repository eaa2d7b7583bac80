//! The commands: what the gateway decided about a session.

use bytes::Bytes;
use roost_protocol::frames::{Connected, ServerBody};
use roost_protocol::{ClientMsgId, CloseCode, ConversationId, Epoch, ErrorCode, SessionId, limits};

use super::opening::Stage;
use super::{Context, Event, Identity, Loss, Phase, Refusal, Session, Settled};
use crate::framing::handshake::HttpError;

impl Session {
    /// The token that the session asked about was verified. Ignored where nothing was asked.
    pub fn authenticated(
        &mut self,
        result: Result<Identity, Refusal>,
        context: &Context<'_>,
        tell: &mut dyn FnMut(Event<'_>),
    ) {
        let result = result.and_then(|identity| match identity.expires_at > context.now.wall_ms {
            true => Ok(identity),
            false => Err(Refusal::Unauthenticated),
        });
        match &self.phase {
            Phase::Opening(opening) if opening.stage == Stage::Authenticating => match result {
                Ok(identity) => self.identified(identity, context, tell),
                Err(refusal) => self.refused(refusal, context),
            },
            Phase::Live => self.refreshed(result, context),
            _ => {}
        }
    }

    /// The session is registered (or the registry is away and cannot be waited for): says `connected`, and goes on
    /// with what the peer has sent meanwhile.
    pub fn registered(
        &mut self,
        session_id: SessionId,
        epoch: Epoch,
        context: &Context<'_>,
        tell: &mut dyn FnMut(Event<'_>),
    ) {
        if !self.is_registering() {
            return;
        }
        let Phase::Opening(opening) = std::mem::replace(&mut self.phase, Phase::Live) else { return };
        let mut opening = *opening;
        let connected = Connected {
            session_id,
            user_id: self.user_id,
            device_id: self.device_id,
            server_time: context.now.wall_ms,
            ping_ms: context.settings.timings.ping_ms,
            limits: context.settings.server_limits(),
            expires_at: opening.expires_at,
            epoch,
        };
        self.say(opening.connect_id, ServerBody::Connected(connected), context);
        self.receive_all(&mut opening.held, context, tell);
    }

    /// The user has as many sessions as are allowed: the newest one goes.
    pub fn too_many_sessions(&mut self, context: &Context<'_>) {
        let Phase::Opening(opening) = &self.phase else { return };
        let (id, code) = (opening.connect_id, ErrorCode::TooManySessions);
        let retry_after_ms = Some(limits::TOO_MANY_SESSIONS_RETRY_MS);
        let body = ServerBody::Error { code, message: code.help().to_owned(), retry_after_ms, fatal: true };
        self.say(id, body, context);
        self.begin_close(CloseCode::TooManySessions, context);
    }

    /// Queues a frame that others get too. Says whether it is in the queue, or the session no longer counts; a session
    /// that is not live yet will sync, so that it misses nothing.
    pub fn deliver(&mut self, frame: Bytes, loss: Loss, context: &Context<'_>) {
        if !self.is_live() {
            return;
        }
        if loss == Loss::Allowed && self.queue.bytes() + frame.len() > context.settings.queue_bytes_soft {
            return;
        }
        self.push(frame, context);
    }

    /// A message of this session's user is committed: by its verdict, by its delivery, or seen in a page. Answers
    /// `sent` if this session still waits for it, however often it is called.
    pub fn settled(&mut self, settled: &Settled, context: &Context<'_>) -> bool {
        let Settled { conversation_id, client_msg_id, seq, time, content } = *settled;
        let Some(id) = self.resolve(conversation_id, client_msg_id, content) else { return false };
        self.say(id, ServerBody::Sent { client_msg_id, conversation_id, seq, time }, context);
        true
    }

    /// The verdict on a send was a rejection.
    pub fn rejected(
        &mut self,
        conversation_id: ConversationId,
        client_msg_id: ClientMsgId,
        code: ErrorCode,
        message: &str,
        context: &Context<'_>,
    ) -> bool {
        let Some(id) = self.resolve(conversation_id, client_msg_id, None) else { return false };
        self.say(id, ServerBody::Rejected { client_msg_id, code, message: message.to_owned() }, context);
        true
    }

    /// The log did not take a send, or did not say so.
    pub fn send_failed(&mut self, request: u32, code: ErrorCode, context: &Context<'_>) {
        let Some(outstanding) = &mut self.outstanding else { return };
        if let Some(send) = outstanding.take(request) {
            self.send_again(&send, code, context);
        }
    }

    /// The answer to the request that `poll_request` gave out.
    pub fn answer(&mut self, frame: Bytes, context: &Context<'_>) {
        if let Some(outstanding) = &mut self.outstanding {
            outstanding.end_request();
        }
        self.drop_outstanding_if_idle();
        self.push(frame, context);
    }

    /// Answers plain HTTP that nobody takes over; the connection is closed after it.
    pub fn answer_http(&mut self, response: Bytes, status: u16, context: &Context<'_>) {
        assert!(matches!(self.phase, Phase::Http), "only plain HTTP is answered in HTTP");
        self.answer_in_http(response, status, context);
    }

    /// Asks the client to go elsewhere after so long.
    pub fn goaway(&mut self, reconnect_in_ms: u64, reason: &str, context: &Context<'_>) {
        if self.is_live() {
            self.say(None, ServerBody::Goaway { reconnect_in_ms, reason: reason.to_owned() }, context);
        }
    }

    /// Tells the client to start afresh: the Store has another history.
    pub fn reload(&mut self, reason: &str, context: &Context<'_>) {
        if self.is_live() {
            self.say(None, ServerBody::Reload { reason: reason.to_owned() }, context);
        }
    }

    /// Closes with this code, wherever the session stands.
    pub fn close(&mut self, code: CloseCode, context: &Context<'_>) {
        match self.phase {
            Phase::Handshake(_) | Phase::Http => {
                let error = HttpError::unavailable("The server is not taking sessions now: come back later.", 1);
                self.refuse_handshake(&error, context);
            }
            Phase::Opening(_) | Phase::Live => self.begin_close(code, context),
            Phase::Closing { .. } | Phase::Finished => {}
        }
    }

    fn identified(&mut self, identity: Identity, context: &Context<'_>, tell: &mut dyn FnMut(Event<'_>)) {
        let Phase::Opening(opening) = &mut self.phase else { return };
        if opening.device_asked.is_some_and(|asked| asked != identity.device_id) {
            let (id, code) = (opening.connect_id, ErrorCode::DeviceMismatch);
            return self.fail(id, code, code.help(), CloseCode::Forbidden, context);
        }
        opening.stage = Stage::Registering;
        opening.expires_at = identity.expires_at;
        opening.deadline_ms = context.now.steady_ms + context.settings.timings.connect_ms;
        (self.user_id, self.device_id) = (identity.user_id, identity.device_id);
        self.token_ends_ms = token_end(&identity, context);
        tell(Event::Register);
    }

    fn refused(&mut self, refusal: Refusal, context: &Context<'_>) {
        let Phase::Opening(opening) = &self.phase else { return };
        let id = opening.connect_id;
        let (code, close) = match refusal {
            Refusal::Unauthenticated => (ErrorCode::Unauthenticated, CloseCode::Unauthenticated),
            Refusal::Forbidden => (ErrorCode::Unauthenticated, CloseCode::Forbidden),
            Refusal::Unavailable => (ErrorCode::Unavailable, CloseCode::Overloaded),
        };
        self.fail(id, code, code.help(), close, context);
    }

    /// A good refresh is answered with nothing; after a bad one the old token still counts.
    fn refreshed(&mut self, result: Result<Identity, Refusal>, context: &Context<'_>) {
        let Some(id) = self.outstanding.as_mut().and_then(|outstanding| outstanding.refresh.take()) else { return };
        self.drop_outstanding_if_idle();
        let code = match result {
            Ok(identity) if (identity.user_id, identity.device_id) == self.identity() => {
                self.token_ends_ms = token_end(&identity, context);
                return;
            }
            Ok(_) => ErrorCode::DeviceMismatch,
            Err(Refusal::Unauthenticated | Refusal::Forbidden) => ErrorCode::Unauthenticated,
            Err(Refusal::Unavailable) => ErrorCode::Unavailable,
        };
        self.say_error(id, code, code.help(), context);
    }

    fn resolve(
        &mut self,
        conversation: ConversationId,
        client_msg_id: ClientMsgId,
        content: Option<u64>,
    ) -> Option<Option<u32>> {
        let resolved = self.outstanding.as_mut()?.resolve(conversation, client_msg_id, content);
        self.drop_outstanding_if_idle();
        resolved
    }

    pub(super) fn send_again(&mut self, send: &super::outstanding::InFlight, code: ErrorCode, context: &Context<'_>) {
        if let Some(outstanding) = &mut self.outstanding {
            outstanding.block(send.conversation_id, send.client_msg_id, send.request, context.settings);
        }
        self.say_retry(send.id, send.client_msg_id, code, context);
    }
}

fn token_end(identity: &Identity, context: &Context<'_>) -> u64 {
    context.now.steady_ms.saturating_add(identity.expires_at.saturating_sub(context.now.wall_ms))
}
