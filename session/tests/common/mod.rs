//! What the framing tests share: seeded randomness, a client's frames, and a decoder run over pieces.
#![allow(dead_code, reason = "each test program uses a part of it")]

use roost_session::framing::handshake::{Handshake, OriginPolicy, Step};
use roost_session::framing::websocket::{Decoder, Event, FrameError, Limits, MessageKind};

/// SplitMix64: the same seed gives the same run on every machine.
pub struct Random(pub u64);

impl Random {
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.word() % end as u64) as usize
    }

    pub fn byte(&mut self) -> u8 {
        self.word() as u8
    }

    pub fn key(&mut self) -> [u8; 4] {
        (self.word() as u32).to_ne_bytes()
    }

    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.byte()).collect()
    }
}

pub const FIN: u8 = 0x80;
pub const CONTINUATION: u8 = 0;
pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

/// A client's frame; `first` is the header's first byte. Written without the code under test.
pub fn client_frame(first: u8, key: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        0..=125 => frame.push(0x80 | payload.len() as u8),
        126..=65_535 => {
            frame.push(0x80 | 126);
            frame.extend((payload.len() as u16).to_be_bytes());
        }
        _ => {
            frame.push(0x80 | 127);
            frame.extend((payload.len() as u64).to_be_bytes());
        }
    }
    frame.extend(key);
    frame.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

/// A client's frame with some mask.
pub fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    client_frame(first, [0xA5, 0x5A, 0x0F, 0xF1], payload)
}

/// A close frame's payload.
pub fn close_payload(code: u16, reason: &[u8]) -> Vec<u8> {
    [&code.to_be_bytes()[..], reason].concat()
}

/// An event without its borrow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong,
    Close(Option<u16>, String),
}

impl From<Event<'_>> for Said {
    fn from(event: Event<'_>) -> Self {
        match event {
            Event::Message { kind: MessageKind::Text, payload } => {
                Self::Text(String::from_utf8(payload.into_owned()).expect("text events are UTF-8"))
            }
            Event::Message { kind: MessageKind::Binary, payload } => Self::Binary(payload.into_owned()),
            Event::Ping(payload) => Self::Ping(payload.into_owned()),
            Event::Pong => Self::Pong,
            Event::Close { code, reason } => Self::Close(code, reason.into_owned()),
        }
    }
}

/// What a decoder made of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    pub said: Vec<Said>,
    pub error: Option<FrameError>,
    pub idle: bool,
}

impl Decoded {
    /// The stream was fine and ended between messages.
    pub fn all(said: impl IntoIterator<Item = Said>) -> Self {
        Self { said: said.into_iter().collect(), error: None, idle: true }
    }

    /// The stream failed before it said anything.
    pub fn failed(error: FrameError) -> Self {
        Self { said: Vec::new(), error: Some(error), idle: false }
    }
}

/// Runs a decoder over the pieces, checking on the way that its memory stays bounded by what it was sent.
pub fn decode<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, limits: &Limits) -> Decoded {
    let mut decoder = Decoder::new();
    let (mut said, mut received) = (Vec::new(), 0);
    for piece in pieces {
        received += piece.len();
        let mut buffer = piece.to_vec();
        let mut rest = &mut buffer[..];
        loop {
            match decoder.next(&mut rest, limits) {
                Ok(Some(event)) => said.push(event.into()),
                Ok(None) => break,
                Err(error) => {
                    assert!(rest.is_empty(), "nothing is read after an error");
                    assert_eq!(decoder.next(&mut &mut [0x81, 0x80, 0, 0, 0, 0][..], limits), Err(error));
                    assert_eq!(decoder.buffered_bytes(), 0, "an error gives the memory back");
                    return Decoded { said, error: Some(error), idle: false };
                }
            }
        }
        assert!(rest.is_empty(), "None means that all has been taken");
        let bound = 256 + 2 * received.min(limits.message_bytes_max + 125);
        assert!(decoder.buffered_bytes() <= bound, "{} bytes held of {received}", decoder.buffered_bytes());
        assert!(!decoder.is_idle() || decoder.buffered_bytes() == 0, "idle means that nothing is held");
    }
    Decoded { said, error: None, idle: decoder.is_idle() || decoder.is_closed() }
}

/// The whole stream in one piece.
pub fn decode_whole(stream: &[u8]) -> Decoded {
    decode([stream], &Limits::default())
}

/// Whole and byte by byte, which must agree.
pub fn decode_both(stream: &[u8]) -> Decoded {
    let whole = decode_whole(stream);
    assert_eq!(decode(stream.chunks(1), &Limits::default()), whole);
    whole
}

/// The stream in random pieces, mostly small ones.
pub fn cut<'a>(mut stream: &'a [u8], random: &mut Random) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    let reach = [1, 3, 16, 200, 5_000][random.below(5)];
    while !stream.is_empty() {
        let (piece, rest) = stream.split_at((1 + random.below(reach)).min(stream.len()));
        pieces.push(piece);
        stream = rest;
    }
    pieces
}

/// The origins the tests allow.
pub fn origins() -> OriginPolicy {
    OriginPolicy::new(["https://chat.example", "http://127.0.0.1:8080"]).expect("these are origins")
}

/// Runs a handshake over the pieces; those after the decision go where the driver would put them.
pub fn handshake<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Step {
    let (mut handshake, origins, mut pieces) = (Handshake::new(), origins(), pieces.into_iter());
    while let Some(piece) = pieces.next() {
        match handshake.receive(piece, &origins) {
            Step::Incomplete => {}
            Step::Upgrade(mut upgrade) => {
                upgrade.rest.extend(pieces.flatten());
                return Step::Upgrade(upgrade);
            }
            Step::Http(mut http) => {
                let later: Vec<u8> = pieces.flatten().copied().collect();
                http.received = [&http.received[..], &later].concat().into();
                return Step::Http(http);
            }
            refused => return refused,
        }
    }
    Step::Incomplete
}
