//! From the first byte to `connected`: the HTTP head, then the connect frame, then waiting for the gateway.

use std::fmt;

use bytes::Bytes;
use roost_protocol::frames::{ClientBody, ClientFrame, Form};
use roost_protocol::{CloseCode, DeviceId, ErrorCode, limits};

use super::{Context, Ending, Event, Phase, Purpose, Session};
use crate::framing::handshake::{Bearer, Handshake, HttpError, Step, Subprotocol, Upgrade};
use crate::framing::websocket::{self, FrameError, Limits};

#[derive(Debug)]
pub(super) struct Handshaking {
    handshake: Handshake,
    pub(super) deadline_ms: u64,
}

impl Handshaking {
    pub(super) fn new(deadline_ms: u64) -> Self {
        Self { handshake: Handshake::new(), deadline_ms }
    }
}

/// What is known of a session before it is live.
pub(super) struct Opening {
    pub(super) stage: Stage,
    pub(super) deadline_ms: u64,
    /// How much has come after the HTTP head.
    received: usize,
    bearer: Option<Bearer>,
    /// The connect frame's.
    pub(super) connect_id: Option<u32>,
    pub(super) device_asked: Option<DeviceId>,
    pub(super) expires_at: roost_protocol::TimeMs,
    /// What came in one read with the connect frame, after it.
    pub(super) held: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// The connect frame has not come.
    Connecting,
    /// Its token is being verified.
    Authenticating,
    /// The session is being registered.
    Registering,
}

impl fmt::Debug for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Opening {{ {:?}, {} bytes received }}", self.stage, self.received)
    }
}

impl Session {
    pub(super) fn receive_head(&mut self, input: &mut [u8], context: &Context<'_>, tell: &mut dyn FnMut(Event<'_>)) {
        let Phase::Handshake(handshaking) = &mut self.phase else { return };
        match handshaking.handshake.receive(input, &context.settings.origins) {
            Step::Incomplete => {}
            Step::Http(request) => {
                self.phase = Phase::Http;
                tell(Event::Http(request));
            }
            Step::Refused(error) => self.refuse_handshake(&error, context),
            Step::Upgrade(upgrade) => {
                let mut refusal = None;
                tell(Event::Upgrade { head: &upgrade.request, refusal: &mut refusal });
                match refusal {
                    Some(error) => self.refuse_handshake(&error, context),
                    None => self.upgrade(*upgrade, context, tell),
                }
            }
        }
    }

    pub(super) fn refuse_handshake(&mut self, error: &HttpError, context: &Context<'_>) {
        self.answer_in_http(Bytes::from(error.response()), error.status, context);
    }

    pub(super) fn answer_in_http(&mut self, response: Bytes, status: u16, context: &Context<'_>) {
        self.queue.push(response);
        self.ending.get_or_insert(Ending::Http(status));
        // No close frames in HTTP: our last byte is the end.
        let _ = self.close.fail();
        self.enter_closing(context);
    }

    fn upgrade(&mut self, upgrade: Upgrade, context: &Context<'_>, tell: &mut dyn FnMut(Event<'_>)) {
        let Upgrade { response, subprotocol, bearer, mut rest, .. } = upgrade;
        self.queue.push(Bytes::from(response));
        self.form = match subprotocol {
            Subprotocol::Binary => Form::Binary,
            Subprotocol::Json => Form::Json,
        };
        self.phase = Phase::Opening(Box::new(Opening {
            stage: Stage::Connecting,
            deadline_ms: context.now.steady_ms + context.settings.timings.connect_ms,
            received: 0,
            bearer,
            connect_id: None,
            device_asked: None,
            expires_at: 0,
            held: Vec::new(),
        }));
        self.receive_all(&mut rest, context, tell);
    }

    /// Reads up to the connect frame, and not one byte over the limit; returns what was left.
    pub(super) fn receive_before_connect<'i>(
        &mut self,
        input: &'i mut [u8],
        context: &Context<'_>,
        tell: &mut dyn FnMut(Event<'_>),
    ) -> &'i mut [u8] {
        let Phase::Opening(opening) = &mut self.phase else { return input };
        let room = limits::BEFORE_CONNECT_BYTES_MAX - opening.received;
        let (mut piece, beyond) = input.split_at_mut(room.min(input.len()));
        let before = piece.len();
        let frames = Limits { message_bytes_max: limits::BEFORE_CONNECT_BYTES_MAX, ..context.settings.frames };
        let event = self.decoder.next(&mut piece, &frames);
        let left = piece.len();
        opening.received += before - left;
        match event {
            Ok(Some(event)) => self.opening_event(event, context, tell),
            Ok(None) if beyond.is_empty() => return &mut [],
            Ok(None) | Err(FrameError::MessageTooBig) => {
                let message = "connect comes first, in at most 4096 bytes";
                self.fail(None, ErrorCode::NotConnected, message, CloseCode::NotConnected, context);
                self.break_off(CloseCode::NotConnected, context);
            }
            Err(error) => self.break_off(close_code_of(error), context),
        }
        let taken = before - left;
        &mut input[taken..]
    }

    fn opening_event(&mut self, event: websocket::Event<'_>, context: &Context<'_>, tell: &mut dyn FnMut(Event<'_>)) {
        match event {
            websocket::Event::Message { kind, payload } => match self.decode(kind, &payload) {
                Ok(frame) => self.first_frame(frame, context, tell),
                Err(error) => {
                    self.fail(error.id, error.code, &error.message, CloseCode::Malformed, context);
                }
            },
            websocket::Event::Ping(payload) => self.control_ping(&payload, context),
            websocket::Event::Pong => self.count_control(context),
            websocket::Event::Close { code, .. } => self.peer_closed(code, context),
        }
    }

    fn first_frame(&mut self, frame: ClientFrame<'_>, context: &Context<'_>, tell: &mut dyn FnMut(Event<'_>)) {
        let Phase::Opening(opening) = &mut self.phase else { return };
        let ClientBody::Connect { token, device_id, .. } = frame.body else {
            let message = "The first frame must be connect.";
            return self.fail(frame.id, ErrorCode::NotConnected, message, CloseCode::NotConnected, context);
        };
        let bearer = opening.bearer.take().map(Bearer::into_token);
        opening.connect_id = frame.id;
        opening.device_asked = device_id;
        match token.as_deref().or(bearer.as_deref()) {
            Some(token) => {
                opening.stage = Stage::Authenticating;
                opening.deadline_ms = context.now.steady_ms + context.settings.timings.connect_ms;
                tell(Event::Authenticate { token, purpose: Purpose::Connect });
            }
            None => {
                let message = "connect needs a token.";
                self.fail(frame.id, ErrorCode::Unauthenticated, message, CloseCode::Unauthenticated, context);
            }
        }
    }
}

pub(super) fn close_code_of(error: FrameError) -> CloseCode {
    match error.close_code() {
        1007 => CloseCode::InvalidPayload,
        1008 => CloseCode::Policy,
        1009 => CloseCode::TooBig,
        _ => CloseCode::Protocol,
    }
}
