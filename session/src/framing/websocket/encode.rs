//! Frames as the server sends them: unmasked, never fragmented, header and payload in one allocation.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::close_code_is_valid;

/// The longest header of a server's frame.
pub const FRAME_HEADER_BYTES_MAX: usize = 10;
/// The longest payload of a close, ping or pong.
pub const CONTROL_BYTES_MAX: usize = 125;
/// The longest reason that fits a close frame beside its code.
pub const CLOSE_REASON_BYTES_MAX: usize = CONTROL_BYTES_MAX - 2;

/// What a frame of the server's is. There is no continuation: the server never fragments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Opcode {
    /// A UTF-8 message.
    Text = 1,
    /// A binary message.
    Binary = 2,
    /// The closing handshake.
    Close = 8,
    /// A control ping.
    Ping = 9,
    /// The answer to a control ping.
    Pong = 10,
}

/// The header of a final, unmasked frame: the array's first `.1` bytes (2, 4 or 10).
pub fn frame_header(opcode: Opcode, payload_bytes: usize) -> ([u8; FRAME_HEADER_BYTES_MAX], usize) {
    let mut header = [0; FRAME_HEADER_BYTES_MAX];
    header[0] = 0x80 | opcode as u8;
    if payload_bytes <= CONTROL_BYTES_MAX {
        header[1] = payload_bytes as u8;
        (header, 2)
    } else if let Ok(short) = u16::try_from(payload_bytes) {
        header[1] = 126;
        header[2..4].copy_from_slice(&short.to_be_bytes());
        (header, 4)
    } else {
        header[1] = 127;
        header[2..10].copy_from_slice(&(payload_bytes as u64).to_be_bytes());
        (header, 10)
    }
}

/// Encodes a frame whose payload `write` appends to the buffer it is given, for sending by reference to many sessions.
///
/// Room for the longest header is left in front, and the header is put right before the payload once its length is known:
/// one allocation if `payload_bytes_hint` is not too low, and no copy in any case but growth.
///
/// # Panics
///
/// If `write` takes away bytes instead of appending, or makes a control frame of more than 125 bytes.
pub fn encode_frame(opcode: Opcode, payload_bytes_hint: usize, write: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut frame = BytesMut::with_capacity(FRAME_HEADER_BYTES_MAX + payload_bytes_hint);
    frame.put_bytes(0, FRAME_HEADER_BYTES_MAX);
    write(&mut frame);
    assert!(frame.len() >= FRAME_HEADER_BYTES_MAX, "a payload writer appends only");
    let payload_bytes = frame.len() - FRAME_HEADER_BYTES_MAX;
    let is_data = matches!(opcode, Opcode::Text | Opcode::Binary);
    assert!(is_data || payload_bytes <= CONTROL_BYTES_MAX, "a control frame holds at most 125 bytes");
    let (header, header_bytes) = frame_header(opcode, payload_bytes);
    frame.advance(FRAME_HEADER_BYTES_MAX - header_bytes);
    frame[..header_bytes].copy_from_slice(&header[..header_bytes]);
    frame.freeze()
}

/// The payload of a frame made by [`encode_frame`], sharing its allocation: for transports with framing of their own.
pub fn frame_payload(frame: &Bytes) -> Bytes {
    let header_bytes = match frame[1] {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    frame.slice(header_bytes..)
}

/// A close frame. Without a code it is empty, which the peer reports as 1005. A reason that does not fit is cut at a
/// character boundary.
///
/// # Panics
///
/// If the code must not appear on the wire, or there is a reason without a code.
pub fn close_frame(code: Option<u16>, reason: &str) -> Bytes {
    let reason = &reason[..reason.floor_char_boundary(CLOSE_REASON_BYTES_MAX)];
    encode_frame(Opcode::Close, 2 + reason.len(), |payload| match code {
        Some(code) => {
            assert!(close_code_is_valid(code), "close code {code} must not be sent");
            payload.put_u16(code);
            payload.put_slice(reason.as_bytes());
        }
        None => assert!(reason.is_empty(), "a close reason needs a code"),
    })
}

/// The pong that answers a ping with this payload.
///
/// # Panics
///
/// If the payload is over 125 bytes, which no ping's is.
pub fn pong_frame(ping_payload: &[u8]) -> Bytes {
    encode_frame(Opcode::Pong, ping_payload.len(), |frame| frame.put_slice(ping_payload))
}

/// A control ping.
///
/// # Panics
///
/// If the payload is over 125 bytes.
pub fn ping_frame(payload: &[u8]) -> Bytes {
    encode_frame(Opcode::Ping, payload.len(), |frame| frame.put_slice(payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_take_the_shortest_form_at_every_boundary() {
        for (payload_bytes, expected) in [
            (0, &[0x82, 0][..]),
            (125, &[0x82, 125]),
            (126, &[0x82, 126, 0, 126]),
            (65_535, &[0x82, 126, 0xff, 0xff]),
            (65_536, &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let (header, header_bytes) = frame_header(Opcode::Binary, payload_bytes);
            assert_eq!(&header[..header_bytes], expected);
            for hint in [0, payload_bytes, payload_bytes + 7] {
                let frame = encode_frame(Opcode::Binary, hint, |frame| frame.put_bytes(7, payload_bytes));
                assert_eq!(&frame[..header_bytes], expected);
                assert_eq!(frame_payload(&frame), vec![7; payload_bytes]);
            }
        }
    }

    #[test]
    fn a_frame_with_an_exact_hint_is_one_allocation() {
        let mut start = std::ptr::null();
        let frame = encode_frame(Opcode::Text, 300, |frame| {
            start = frame.as_ptr();
            frame.put_bytes(b'x', 300);
        });
        assert_eq!(frame.as_ptr().addr(), start.addr() + FRAME_HEADER_BYTES_MAX - 4, "the payload did not move");
    }

    #[test]
    fn close_reasons_are_cut_at_a_character_boundary() {
        assert_eq!(&close_frame(Some(1000), "bye")[..], b"\x88\x05\x03\xe8bye");
        assert_eq!(&close_frame(None, "")[..], b"\x88\x00");
        let long = close_frame(Some(4000), &"é".repeat(100));
        assert_eq!(long.len(), 2 + 2 + 122);
        assert!(std::str::from_utf8(&long[4..]).is_ok());
    }

    #[test]
    fn ping_and_pong_carry_their_payload() {
        assert_eq!(&pong_frame(b"ab")[..], b"\x8a\x02ab");
        assert_eq!(&ping_frame(b"")[..], b"\x89\x00");
    }

    #[test]
    #[should_panic(expected = "must not be sent")]
    fn a_reserved_close_code_is_our_own_mistake() {
        close_frame(Some(1005), "");
    }
}
