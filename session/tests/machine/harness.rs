//! A session with a gateway that a test plays.

use bytes::Bytes;
use roost_protocol::frames::{ClientBody, ClientFrame, Form, Send, ServerBody, ServerFrame};
use roost_protocol::{ClientMsgId, ConversationId, DeviceId, Epoch, Incarnation, SessionId, UserId};
use roost_session::framing::handshake::HttpError;
use roost_session::machine::{
    Context, Event, Identity, Loss, Now, Pressure, Purpose, Request, Session, Settings, Settled,
};

use crate::common::{BINARY, FIN, TEXT, client_frame};

pub const USER: UserId = UserId::from_bytes([1; 16]);
pub const DEVICE: DeviceId = DeviceId::from_bytes([2; 16]);
pub const WALL_MS: u64 = 1_700_000_000_000;

/// An event, kept.
#[derive(Clone, PartialEq, Debug)]
pub enum Told {
    Http,
    Authenticate(String, Purpose),
    Register,
    Send(u32, ClientMsgId, ConversationId, Vec<u8>),
}

pub struct Driven {
    pub session: Session,
    pub settings: Settings,
    pub now: Now,
    pub form: Form,
    pub told: Vec<Told>,
    pub requests: Vec<Request>,
    /// What handshakes are refused with.
    pub refusal: Option<HttpError>,
    pub pressure: Pressure,
    /// Everything written.
    pub output: Vec<u8>,
    /// How far `frames` has read it.
    heard: usize,
}

impl Driven {
    pub fn new(form: Form) -> Self {
        let settings = Settings::default();
        let now = Now { steady_ms: 1_000, wall_ms: WALL_MS };
        let session = Session::new(&settings, now);
        Self {
            session,
            settings,
            now,
            form,
            told: Vec::new(),
            requests: Vec::new(),
            refusal: None,
            pressure: Pressure::None,
            output: Vec::new(),
            heard: 0,
        }
    }

    /// A live session that has heard `connected`.
    pub fn live(form: Form) -> Self {
        let mut driven = Self::new(form);
        driven.receive(&head(form, ""));
        driven.receive(&connect_frame(form, Some("token")));
        driven.play();
        assert!(driven.session.is_live());
        assert!(matches!(driven.frames()[..], [ServerFrame { body: ServerBody::Connected(_), .. }]));
        driven
    }

    pub fn call<T>(&mut self, call: impl FnOnce(&mut Session, &Context<'_>, &mut dyn FnMut(Event<'_>)) -> T) -> T {
        let context = Context { settings: &self.settings, now: self.now, pressure: self.pressure };
        let (told, refused_with) = (&mut self.told, self.refusal);
        call(&mut self.session, &context, &mut |event| {
            told.push(match event {
                Event::Http(_) => Told::Http,
                Event::Upgrade { refusal, .. } => return *refusal = refused_with,
                Event::Authenticate { token, purpose } => Told::Authenticate(token.to_owned(), purpose),
                Event::Register => Told::Register,
                Event::Send { request, send } => {
                    Told::Send(request, send.client_msg_id, send.conversation_id, send.body.to_vec())
                }
            });
        })
    }

    pub fn receive(&mut self, bytes: &[u8]) {
        let mut bytes = bytes.to_vec();
        self.call(|session, context, tell| session.receive(&mut bytes, context, tell));
    }

    /// Feeds pieces as a driver would: never more than the budget, and the gateway's answers in between.
    pub fn feed(&mut self, mut bytes: &[u8], mut piece: impl FnMut(usize) -> usize) {
        while !bytes.is_empty() && !self.session.is_finished() {
            self.play();
            let budget = self.session.read_budget();
            if budget == 0 {
                break;
            }
            let count = piece(bytes.len()).clamp(1, bytes.len()).min(budget);
            self.receive(&bytes[..count]);
            bytes = &bytes[count..];
        }
        self.play();
    }

    /// What the gateway does at once: tokens are good, sessions registered, bytes written.
    pub fn play(&mut self) {
        loop {
            let before = self.told.len();
            let identity = Identity { user_id: USER, device_id: DEVICE, expires_at: WALL_MS + 900_000 };
            if matches!(self.told.last(), Some(Told::Authenticate(_, Purpose::Connect))) {
                self.call(|session, context, tell| session.authenticated(Ok(identity), context, tell));
            }
            if self.session.is_registering() {
                self.call(|session, context, tell| session.registered(session_id(), epoch(), context, tell));
            }
            if self.told.len() == before {
                break;
            }
        }
        while let Some(request) = self.session.poll_request(&self.settings) {
            self.requests.push(request);
        }
        self.write(usize::MAX);
    }

    /// Writes so many bytes, in one loan after the other.
    pub fn write(&mut self, mut bytes: usize) {
        while bytes > 0 && self.session.queued_bytes() > 0 {
            let mut pieces: Vec<Bytes> = Vec::new();
            let offset = self.call(|session, context, _| session.lend(4, 100_000, context, |piece| pieces.push(piece)));
            let joined = pieces.concat();
            let count = bytes.min(joined.len() - offset);
            self.output.extend_from_slice(&joined[offset..offset + count]);
            self.session.transmitted(count);
            bytes -= count;
        }
    }

    pub fn say(&mut self, id: Option<u32>, body: ClientBody<'_>) {
        let payload = ClientFrame { id, body }.encode(self.form);
        self.receive(&data_frame(self.form, &payload));
    }

    pub fn send(&mut self, id: u32, conversation: u8, message: u8) {
        let body = ClientBody::Send(Send {
            client_msg_id: message_id(message),
            conversation_id: conversation_id(conversation),
            content_type: "text/plain".into(),
            body: vec![message].into(),
        });
        self.say(Some(id), body);
    }

    pub fn settle(&mut self, conversation: u8, message: u8) -> bool {
        self.settle_by(conversation, message, None)
    }

    /// By the message itself, whose content is seen.
    pub fn settle_by(&mut self, conversation: u8, message: u8, content: Option<u64>) -> bool {
        let settled = Settled {
            conversation_id: conversation_id(conversation),
            client_msg_id: message_id(message),
            seq: 1,
            time: 2,
            content,
        };
        self.call(|session, context, _| session.settled(&settled, context))
    }

    pub fn deliver(&mut self, bytes: usize, loss: Loss) {
        let frame = Bytes::from(data_like(self.form, bytes));
        self.call(|session, context, _| session.deliver(frame, loss, context));
    }

    pub fn pass(&mut self, milliseconds: u64) {
        self.now.steady_ms += milliseconds;
        self.now.wall_ms += milliseconds;
        self.call(|session, context, _| session.handle_timeout(context));
    }

    /// The frames written since this was last asked, but close frames and what is not ours.
    pub fn frames(&mut self) -> Vec<ServerFrame> {
        self.write(usize::MAX);
        let (raw, rest) = raw_frames(&self.output[self.heard..]);
        self.heard = self.output.len() - rest;
        raw.into_iter()
            .filter(|(opcode, _)| matches!(opcode & 0x0f, 1 | 2))
            .filter_map(|(_, payload)| ServerFrame::decode(self.form, payload.into()).ok().flatten())
            .collect()
    }

    /// The code of the close frame, if one was written.
    pub fn close_code(&mut self) -> Option<u16> {
        self.write(usize::MAX);
        let (raw, _) = raw_frames(&self.output);
        let close = raw.into_iter().find(|(opcode, _)| opcode & 0x0f == 8)?;
        Some(u16::from_be_bytes([close.1[0], close.1[1]]))
    }
}

/// Splits what the server wrote into frames, the HTTP answer left out; and how many bytes are left over.
fn raw_frames(output: &[u8]) -> (Vec<(u8, Vec<u8>)>, usize) {
    let mut rest = match output.starts_with(b"HTTP/1.1") {
        true => output.windows(4).position(|four| four == b"\r\n\r\n").map_or(&[][..], |end| &output[end + 4..]),
        false => output,
    };
    let mut frames = Vec::new();
    while rest.len() >= 2 {
        let (start, length) = match rest[1] {
            126 if rest.len() >= 4 => (4, usize::from(u16::from_be_bytes([rest[2], rest[3]]))),
            127 if rest.len() >= 10 => (10, u64::from_be_bytes(rest[2..10].try_into().unwrap()) as usize),
            126 | 127 => break,
            short => (2, usize::from(short)),
        };
        if rest.len() < start + length {
            break;
        }
        frames.push((rest[0], rest[start..start + length].to_vec()));
        rest = &rest[start + length..];
    }
    (frames, rest.len())
}

pub fn session_id() -> SessionId {
    SessionId::new(Incarnation(7), 1, 2, 3)
}

pub fn epoch() -> Epoch {
    Epoch::from_bytes([9; 16])
}

pub fn message_id(number: u8) -> ClientMsgId {
    ClientMsgId::from_bytes([number.wrapping_add(1).max(1); 16])
}

pub fn conversation_id(number: u8) -> ConversationId {
    ConversationId::from_bytes([number.wrapping_add(100); 16])
}

pub fn head(form: Form, more: &str) -> Vec<u8> {
    format!(
        "GET /v1/connect HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Protocol: {}\r\n{more}\r\n",
        form.subprotocol()
    )
    .into_bytes()
}

pub fn data_frame(form: Form, payload: &[u8]) -> Vec<u8> {
    client_frame(FIN | if form == Form::Binary { BINARY } else { TEXT }, [1, 2, 3, 4], payload)
}

pub fn connect_frame(form: Form, token: Option<&str>) -> Vec<u8> {
    let body = ClientBody::Connect { token: token.map(Into::into), device_id: None, client: "test".into() };
    data_frame(form, &ClientFrame { id: Some(1), body }.encode(form))
}

/// A server frame of about so many bytes; its content does not matter.
fn data_like(form: Form, bytes: usize) -> Vec<u8> {
    let mut frame = vec![if form == Form::Binary { 0x82 } else { 0x81 }, 127];
    frame.extend((bytes as u64).to_be_bytes());
    frame.resize(10 + bytes, b' ');
    frame
}
