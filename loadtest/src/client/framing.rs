//! A WebSocket client's framing (RFC 6455) of this program's own: it shares no line with the server that it tests.

use std::ops::Range;

/// What a server may send in one frame before we call it a mistake.
const FRAME_BYTES_MAX: usize = 16 << 20;

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A whole binary message.
    Binary(&'a [u8]),
    /// A control ping, to be answered with the same bytes.
    Ping(&'a [u8]),
    /// A control pong.
    Pong,
    /// A close with its code; 1005 where it has none.
    Close(u16),
}

/// The server broke the protocol.
#[derive(Debug, PartialEq, Eq)]
pub struct Broken(pub &'static str);

/// Cuts what was received into frames. It holds no more than what has not been taken yet.
#[derive(Default)]
pub struct Parser {
    buffer: Vec<u8>,
    taken: usize,
    /// The parts so far of a message in fragments.
    fragments: Option<Vec<u8>>,
}

impl Parser {
    /// Begins with what came along with the handshake.
    pub fn new(early: &[u8]) -> Self {
        Self { buffer: early.to_vec(), taken: 0, fragments: None }
    }

    /// Gives the buffer away to be filled, with room for at least `room` bytes and for the whole of a frame that has
    /// begun. What was not taken stands at its beginning.
    pub fn lend(&mut self, room: usize) -> Vec<u8> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.drain(..self.taken);
        self.taken = 0;
        let wanted = header(&buffer).ok().flatten().map_or(0, |header| header.payload.end);
        let wanted = wanted.min(FRAME_BYTES_MAX).max(buffer.len() + room);
        if buffer.capacity() < wanted || (buffer.is_empty() && buffer.capacity() > room) {
            // Exactly: idle sessions hold this for hours.
            let mut exact = Vec::with_capacity(wanted);
            exact.extend_from_slice(&buffer);
            buffer = exact;
        }
        buffer
    }

    /// Takes it back, with what was received behind what stood there.
    pub fn give_back(&mut self, buffer: Vec<u8>) {
        self.buffer = buffer;
    }

    /// The next whole frame.
    pub fn next(&mut self) -> Result<Option<Frame<'_>>, Broken> {
        loop {
            let Some(header) = header(&self.buffer[self.taken..])? else { return Ok(None) };
            let end = self.taken + header.payload.end;
            if self.buffer.len() < end {
                return Ok(None);
            }
            let payload = self.taken + header.payload.start..end;
            self.taken = end;
            match (header.opcode, header.last) {
                (0, last) => {
                    let parts = self.fragments.as_mut().ok_or(Broken("a continuation without a beginning"))?;
                    parts.extend_from_slice(&self.buffer[payload]);
                    if parts.len() > FRAME_BYTES_MAX {
                        return Err(Broken("a message is too large"));
                    }
                    if last {
                        // The parts become the buffer of this one call.
                        let whole = self.fragments.take().expect("just extended");
                        let rest = self.buffer.split_off(self.taken);
                        self.taken = whole.len();
                        self.buffer = whole;
                        self.buffer.extend_from_slice(&rest);
                        return Ok(Some(Frame::Binary(&self.buffer[..self.taken])));
                    }
                }
                (2, _) if self.fragments.is_some() => return Err(Broken("a message inside a message")),
                (2, true) => return Ok(Some(Frame::Binary(&self.buffer[payload]))),
                (2, false) => self.fragments = Some(self.buffer[payload].to_vec()),
                (8, true) => return Ok(Some(Frame::Close(close_code(&self.buffer[payload])?))),
                (9, true) => return Ok(Some(Frame::Ping(&self.buffer[payload]))),
                (10, true) => return Ok(Some(Frame::Pong)),
                (8..=10, false) => return Err(Broken("a control frame in fragments")),
                (1, _) => return Err(Broken("a text message on a binary connection")),
                _ => return Err(Broken("an unknown opcode")),
            }
        }
    }
}

struct Header {
    opcode: u8,
    last: bool,
    payload: Range<usize>,
}

fn header(bytes: &[u8]) -> Result<Option<Header>, Broken> {
    let (Some(&first), Some(&second)) = (bytes.first(), bytes.get(1)) else { return Ok(None) };
    if first & 0x70 != 0 {
        return Err(Broken("reserved bits are set"));
    }
    if second & 0x80 != 0 {
        return Err(Broken("the server masks"));
    }
    let (opcode, last) = (first & 0x0f, first & 0x80 != 0);
    let (start, length) = match second {
        126 => match bytes.get(2..4) {
            Some(two) => (4, u64::from(u16::from_be_bytes([two[0], two[1]]))),
            None => return Ok(None),
        },
        127 => match bytes.get(2..10) {
            Some(eight) => (10, u64::from_be_bytes(eight.try_into().expect("8 bytes"))),
            None => return Ok(None),
        },
        short => (2, u64::from(short)),
    };
    if (second == 126 && length < 126) || (second == 127 && length <= u64::from(u16::MAX)) {
        return Err(Broken("a length is not written in its shortest form"));
    }
    if opcode >= 8 && length > 125 {
        return Err(Broken("a control frame is too large"));
    }
    let length = usize::try_from(length).ok().filter(|&length| length <= FRAME_BYTES_MAX);
    let length = length.ok_or(Broken("a frame is too large"))?;
    Ok(Some(Header { opcode, last, payload: start..start + length }))
}

fn close_code(payload: &[u8]) -> Result<u16, Broken> {
    match payload {
        [] => Ok(1005),
        [_] => Err(Broken("a close of one byte")),
        [high, low, reason @ ..] => match std::str::from_utf8(reason) {
            Ok(_) => Ok(u16::from_be_bytes([*high, *low])),
            Err(_) => Err(Broken("a close reason is not UTF-8")),
        },
    }
}

/// The opcodes that a client sends.
#[derive(Clone, Copy)]
pub enum Opcode {
    /// A message.
    Binary = 2,
    /// The end.
    Close = 8,
    /// The answer to a control ping.
    Pong = 10,
}

/// Appends one masked frame.
pub fn write(to: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    let mask: [u8; 4] = rand::random();
    to.reserve_exact(14 + payload.len());
    to.push(0x80 | opcode as u8);
    match payload.len() {
        short @ 0..=125 => to.push(0x80 | short as u8),
        middle @ 126..=0xffff => {
            to.push(0x80 | 126);
            to.extend_from_slice(&(middle as u16).to_be_bytes());
        }
        long => {
            to.push(0x80 | 127);
            to.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    to.extend_from_slice(&mask);
    to.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(parser: &mut Parser, bytes: &[u8]) {
        let mut buffer = parser.lend(4);
        buffer.extend_from_slice(bytes);
        parser.give_back(buffer);
    }

    fn server_frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first];
        match payload.len() {
            short @ 0..=125 => frame.push(short as u8),
            middle => {
                frame.push(126);
                frame.extend_from_slice(&(middle as u16).to_be_bytes());
            }
        }
        [frame, payload.to_vec()].concat()
    }

    #[test]
    fn frames_come_out_however_the_bytes_are_cut() {
        let long = vec![7; 300];
        let bytes = [
            server_frame(0x82, b"one"),
            server_frame(0x02, b"begin "),
            server_frame(0x89, b"?"),
            server_frame(0x00, b"and "),
            server_frame(0x80, b"end"),
            server_frame(0x82, &long),
            server_frame(0x88, &[0x0f, 0xa0, b'x']),
        ]
        .concat();
        for size in [1, 2, 3, 7, 64, bytes.len()] {
            let mut parser = Parser::new(&[]);
            let mut seen = Vec::new();
            for part in bytes.chunks(size) {
                feed(&mut parser, part);
                while let Some(frame) = parser.next().expect("well formed") {
                    seen.push(match frame {
                        Frame::Binary(bytes) => String::from_utf8_lossy(bytes).into_owned(),
                        other => format!("{other:?}"),
                    });
                }
            }
            let long = String::from_utf8_lossy(&long).into_owned();
            assert_eq!(seen, ["one", "Ping([63])", "begin and end", &long, "Close(4000)"], "cut by {size}");
        }
    }

    #[test]
    fn a_server_that_breaks_the_rules_is_told() {
        let wrong: [&[u8]; 7] = [
            &[0xc2, 0],
            &[0x82, 0x80, 0, 0, 0, 0],
            &[0x80, 0],
            &[0x09, 0],
            &[0x82, 126, 0, 5],
            &[0x82, 127, 0x7f, 0, 0, 0, 0, 0, 0, 0],
            &[0x88, 1, 0],
        ];
        for bytes in wrong {
            assert!(Parser::new(bytes).next().is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn an_idle_sessions_buffer_is_as_small_as_asked() {
        let mut parser = Parser::new(&server_frame(0x82, &[1; 5000]));
        assert!(parser.next().expect("well formed").is_some());
        assert_eq!(parser.lend(48).capacity(), 48);
        let mut parser = Parser::new(&server_frame(0x82, &[1; 5000])[..100]);
        assert_eq!(parser.next(), Ok(None));
        assert!(parser.lend(48).capacity() >= 5004, "the rest comes in one read");
    }

    #[test]
    fn what_a_client_sends_is_masked_and_reads_back() {
        for length in [0, 5, 125, 126, 65_535, 65_536] {
            let payload: Vec<u8> = (0..length).map(|at| at as u8).collect();
            let mut bytes = Vec::new();
            write(&mut bytes, Opcode::Binary, &payload);
            assert_eq!(bytes[1] & 0x80, 0x80);
            let start = bytes.len() - payload.len();
            let mask = &bytes[start - 4..start];
            let unmasked: Vec<u8> = bytes[start..].iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m).collect();
            assert_eq!(unmasked, payload);
            // An independent reader: the same frame without its mask.
            let mut plain = bytes[..start - 4].to_vec();
            plain[1] &= 0x7f;
            plain.extend_from_slice(&unmasked);
            assert_eq!(Parser::new(&plain).next(), Ok(Some(Frame::Binary(&payload))));
        }
    }
}
