//! The decoder: whole frames are lent out of the caller's buffer, only pieces are kept.

use std::borrow::Cow;

use super::close::{check_close, close_event};
use super::header::{CLIENT_HEADER_BYTES_MAX, FrameKind, Header, OpenMessage, parse_header};
use super::mask::unmask;
use super::utf8::Utf8;
use super::{FrameError, Limits};

/// Which kind of message a client sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageKind {
    /// Valid UTF-8.
    Text,
    /// Any bytes.
    Binary,
}

/// What the peer said. Payloads are unmasked; they are borrowed from the receive buffer where the frame lay whole in it,
/// and owned where it had to be put together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// A whole message; text has been checked to be UTF-8.
    Message {
        /// Text or binary.
        kind: MessageKind,
        /// At most [`Limits::message_bytes_max`] bytes.
        payload: Cow<'a, [u8]>,
    },
    /// To be answered with [`pong_frame`](super::pong_frame) of the same bytes.
    Ping(Cow<'a, [u8]>),
    /// Proof of life; its payload is not kept.
    Pong,
    /// The peer closes. It is the last event: whatever follows on the wire is discarded.
    Close {
        /// A valid code, or none.
        code: Option<u16>,
        /// At most 123 bytes.
        reason: Cow<'a, str>,
    },
}

/// The reading half of one session's WebSocket, in the server's role.
///
/// Sixteen bytes while the session is idle. What has come of an unfinished frame or message is boxed, grows with what has
/// really arrived (never with what a header claims) and is dropped with the event that completes it.
///
/// - Handler: [`next`](Self::next), called until it returns `None`.
/// - Getters: [`is_idle`](Self::is_idle), [`is_closed`](Self::is_closed), [`buffered_bytes`](Self::buffered_bytes).
#[derive(Debug, Default)]
pub struct Decoder {
    state: State,
}

#[derive(Debug, Default)]
enum State {
    /// Between messages, with nothing received of the next.
    #[default]
    Idle,
    Partial(Box<Partial>),
    /// The peer's close frame has been seen.
    Closed,
    /// The peer broke the rules; the answer stays the same.
    Failed(FrameError),
}

/// What has arrived of something unfinished.
#[derive(Debug, Default)]
struct Partial {
    /// The first bytes of a header, while there is no `frame`.
    head: [u8; CLIENT_HEADER_BYTES_MAX],
    head_len: u8,
    frame: Option<PartialFrame>,
    message: Option<PartialMessage>,
}

/// A frame whose header is known and whose payload is arriving.
#[derive(Debug)]
struct PartialFrame {
    header: Header,
    received: usize,
    /// A control frame's payload; a data frame's goes straight into its message.
    control: Vec<u8>,
}

#[derive(Debug)]
struct PartialMessage {
    kind: MessageKind,
    /// Frames begun, this one included.
    fragments: u32,
    utf8: Utf8,
    payload: Vec<u8>,
}

impl Decoder {
    /// A decoder for a connection whose handshake is done.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes off the front of `input` (changing them in place) until they make an event; `None` once they are used up.
    ///
    /// # Errors
    ///
    /// The peer's violation, the same again at every later call. The connection is to be closed with its code.
    pub fn next<'a>(&mut self, input: &mut &'a mut [u8], limits: &Limits) -> Result<Option<Event<'a>>, FrameError> {
        let result = match &self.state {
            State::Idle | State::Partial(_) => self.advance(input, limits),
            State::Closed => Ok(None),
            State::Failed(error) => Err(*error),
        };
        match &result {
            Err(error) => self.state = State::Failed(*error),
            Ok(Some(Event::Close { .. })) => self.state = State::Closed,
            Ok(_) => {}
        }
        if !self.is_open() {
            *input = &mut [];
        }
        result
    }

    /// Whether nothing of an unfinished frame or message is held.
    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    /// Whether the peer has sent its close frame.
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// The heap memory held for an unfinished frame or message, for the gateway's cap on the sum.
    pub fn buffered_bytes(&self) -> usize {
        let State::Partial(partial) = &self.state else { return 0 };
        let control = partial.frame.as_ref().map_or(0, |frame| frame.control.capacity());
        let message = partial.message.as_ref().map_or(0, |message| message.payload.capacity());
        size_of::<Partial>() + control + message
    }

    fn is_open(&self) -> bool {
        matches!(self.state, State::Idle | State::Partial(_))
    }

    fn advance<'a>(&mut self, input: &mut &'a mut [u8], limits: &Limits) -> Result<Option<Event<'a>>, FrameError> {
        loop {
            if self.has_partial_frame() {
                match self.continue_frame(input)? {
                    Progress::Event(event) => return Ok(Some(event)),
                    Progress::NextFrame => continue,
                    Progress::NeedsInput => return Ok(None),
                }
            }
            let Some(header) = self.read_header(input, limits)? else { return Ok(None) };
            let unfragmented = header.kind.is_control() || (header.fin && header.kind != FrameKind::Continuation);
            if unfragmented && input.len() >= header.payload_bytes {
                self.release_if_idle();
                let payload = take_front(input, header.payload_bytes);
                unmask(payload, header.key, 0);
                return whole_frame(header.kind, payload).map(Some);
            }
            self.begin_frame(header);
        }
    }

    fn has_partial_frame(&self) -> bool {
        matches!(&self.state, State::Partial(partial) if partial.frame.is_some())
    }

    /// Takes the next header off `input`; if that ends too early, keeps what there is.
    fn read_header(&mut self, input: &mut &mut [u8], limits: &Limits) -> Result<Option<Header>, FrameError> {
        if input.is_empty() {
            return Ok(None);
        }
        if self.is_idle()
            && let Some((header, header_bytes)) = parse_header(input, None, limits)?
        {
            take_front(input, header_bytes);
            return Ok(Some(header));
        }
        let partial = self.partial();
        let open = partial.message.as_ref().map(PartialMessage::open);
        let kept = usize::from(partial.head_len);
        let added = input.len().min(CLIENT_HEADER_BYTES_MAX - kept);
        partial.head[kept..kept + added].copy_from_slice(&input[..added]);
        let parsed = parse_header(&partial.head[..kept + added], open, limits)?;
        if let Some((header, header_bytes)) = parsed {
            partial.head_len = 0;
            take_front(input, header_bytes - kept);
            return Ok(Some(header));
        }
        partial.head_len += added as u8;
        take_front(input, added);
        Ok(None)
    }

    /// Makes room for a frame that must be put together.
    fn begin_frame(&mut self, header: Header) {
        let partial = self.partial();
        match header.kind {
            FrameKind::Data(kind) => {
                partial.message =
                    Some(PartialMessage { kind, fragments: 1, utf8: Utf8::default(), payload: Vec::new() });
            }
            FrameKind::Continuation => {
                if let Some(message) = &mut partial.message {
                    message.fragments += 1;
                }
            }
            FrameKind::Close | FrameKind::Ping | FrameKind::Pong => {}
        }
        partial.frame = Some(PartialFrame { header, received: 0, control: Vec::new() });
    }

    /// Adds `input` to the unfinished frame.
    fn continue_frame<'a>(&mut self, input: &mut &mut [u8]) -> Result<Progress<'a>, FrameError> {
        let partial = self.partial();
        let Some(frame) = &mut partial.frame else { return Ok(Progress::NextFrame) };
        let missing = frame.header.payload_bytes - frame.received;
        let piece = take_front(input, missing.min(input.len()));
        unmask(piece, frame.header.key, frame.received);
        frame.received += piece.len();
        if frame.header.kind.is_control() {
            if frame.header.kind != FrameKind::Pong {
                append(&mut frame.control, piece, missing);
            }
            if frame.header.kind == FrameKind::Close {
                check_close(&frame.control)?;
            }
        } else if let Some(message) = &mut partial.message {
            if message.kind == MessageKind::Text && !message.utf8.push(piece) {
                return Err(FrameError::InvalidUtf8);
            }
            let more = if frame.header.fin { missing } else { usize::MAX };
            append(&mut message.payload, piece, more);
        }
        if piece.len() < missing {
            return Ok(Progress::NeedsInput);
        }
        self.finish_frame()
    }

    fn finish_frame<'a>(&mut self) -> Result<Progress<'a>, FrameError> {
        let partial = self.partial();
        let Some(frame) = partial.frame.take() else { return Ok(Progress::NextFrame) };
        let event = match frame.header.kind {
            FrameKind::Ping => Event::Ping(Cow::Owned(frame.control)),
            FrameKind::Pong => Event::Pong,
            FrameKind::Close => close_event(Cow::Owned(frame.control))?,
            FrameKind::Data(_) | FrameKind::Continuation if !frame.header.fin => return Ok(Progress::NextFrame),
            FrameKind::Data(_) | FrameKind::Continuation => {
                let Some(message) = partial.message.take() else { return Ok(Progress::NextFrame) };
                if !message.utf8.is_complete() {
                    return Err(FrameError::InvalidUtf8);
                }
                Event::Message { kind: message.kind, payload: Cow::Owned(message.payload) }
            }
        };
        self.release_if_idle();
        Ok(Progress::Event(event))
    }

    fn partial(&mut self) -> &mut Partial {
        if !matches!(self.state, State::Partial(_)) {
            self.state = State::Partial(Box::default());
        }
        match &mut self.state {
            State::Partial(partial) => partial,
            State::Idle | State::Closed | State::Failed(_) => unreachable!("it has just been made partial"),
        }
    }

    /// Gives the memory back once nothing is unfinished.
    fn release_if_idle(&mut self) {
        if let State::Partial(partial) = &self.state
            && partial.head_len == 0
            && partial.frame.is_none()
            && partial.message.is_none()
        {
            self.state = State::Idle;
        }
    }
}

impl PartialMessage {
    fn open(&self) -> OpenMessage {
        OpenMessage { bytes: self.payload.len(), fragments: self.fragments }
    }
}

enum Progress<'a> {
    Event(Event<'a>),
    NextFrame,
    NeedsInput,
}

/// The event of an unfragmented frame that lies whole in the caller's buffer.
fn whole_frame(kind: FrameKind, payload: &[u8]) -> Result<Event<'_>, FrameError> {
    let payload = Cow::Borrowed(payload);
    match kind {
        FrameKind::Ping => Ok(Event::Ping(payload)),
        FrameKind::Pong => Ok(Event::Pong),
        FrameKind::Close => close_event(payload),
        FrameKind::Data(MessageKind::Text) if std::str::from_utf8(&payload).is_err() => Err(FrameError::InvalidUtf8),
        FrameKind::Data(kind) => Ok(Event::Message { kind, payload }),
        FrameKind::Continuation => unreachable!("a continuation is always put together"),
    }
}

fn take_front<'a>(input: &mut &'a mut [u8], count: usize) -> &'a mut [u8] {
    let (front, rest) = std::mem::take(input).split_at_mut(count);
    *input = rest;
    front
}

/// Appends a piece to a buffer that will hold at most `more` bytes more. Doubles like a `Vec`, so that many small pieces
/// cost no more than one big one, but never beyond a known end: a slow sender makes us hold at most twice what it has sent.
fn append(buffer: &mut Vec<u8>, piece: &[u8], more: usize) {
    let spare = buffer.capacity() - buffer.len();
    if spare < piece.len() {
        buffer.reserve_exact(piece.len().max(buffer.capacity()).min(more));
    }
    buffer.extend_from_slice(piece);
}
