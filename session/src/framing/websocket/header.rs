//! A client's frame header, judged byte by byte in the order of arrival.

use super::{FrameError, Limits, MessageKind};

/// The longest header of a client's frame: two bytes, a 64-bit length, the mask.
pub(super) const CLIENT_HEADER_BYTES_MAX: usize = 14;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FrameKind {
    Continuation,
    Data(MessageKind),
    Close,
    Ping,
    Pong,
}

impl FrameKind {
    pub(super) fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) fin: bool,
    pub(super) kind: FrameKind,
    /// Checked against the limits, so it is safe to allocate.
    pub(super) payload_bytes: usize,
    pub(super) key: [u8; 4],
}

/// What of a fragmented message has come before the frame whose header is read.
#[derive(Debug, Clone, Copy)]
pub(super) struct OpenMessage {
    pub(super) bytes: usize,
    pub(super) fragments: u32,
}

/// Reads a header from the front of `bytes` and says how long it is; `None` while it is incomplete.
///
/// Each byte is judged once those before it have passed, so that an error depends on the stream alone and never on how
/// the network cut it.
pub(super) fn parse_header(
    bytes: &[u8],
    open: Option<OpenMessage>,
    limits: &Limits,
) -> Result<Option<(Header, usize)>, FrameError> {
    let Some(&first) = bytes.first() else { return Ok(None) };
    let (fin, kind) = parse_first(first, open, limits)?;
    let Some(&second) = bytes.get(1) else { return Ok(None) };
    if second & 0x80 == 0 {
        return Err(FrameError::Unmasked);
    }
    let short = second & 0x7f;
    if kind.is_control() && short > 125 {
        return Err(FrameError::ControlTooLong);
    }
    if kind == FrameKind::Close && short == 1 {
        return Err(FrameError::ClosePayload);
    }
    let Some((length, after_length)) = parse_length(short, &bytes[2..])? else { return Ok(None) };
    let before = open.map_or(0, |open| open.bytes);
    let payload_bytes = match usize::try_from(length) {
        Ok(length) if kind.is_control() => length,
        Ok(length) if length <= limits.message_bytes_max.saturating_sub(before) => length,
        _ => return Err(FrameError::MessageTooBig),
    };
    let Some(&key) = bytes[2 + after_length..].first_chunk::<4>() else { return Ok(None) };
    Ok(Some((Header { fin, kind, payload_bytes, key }, 2 + after_length + 4)))
}

fn parse_first(first: u8, open: Option<OpenMessage>, limits: &Limits) -> Result<(bool, FrameKind), FrameError> {
    if first & 0x70 != 0 {
        return Err(FrameError::ReservedBits);
    }
    let fin = first & 0x80 != 0;
    let kind = match first & 0x0f {
        0 => FrameKind::Continuation,
        1 => FrameKind::Data(MessageKind::Text),
        2 => FrameKind::Data(MessageKind::Binary),
        8 => FrameKind::Close,
        9 => FrameKind::Ping,
        10 => FrameKind::Pong,
        _ => return Err(FrameError::ReservedOpcode),
    };
    match (kind, open) {
        (FrameKind::Close | FrameKind::Ping | FrameKind::Pong, _) if !fin => Err(FrameError::FragmentedControl),
        (FrameKind::Continuation, None) => Err(FrameError::UnexpectedContinuation),
        (FrameKind::Data(_), Some(_)) => Err(FrameError::InterruptedMessage),
        (FrameKind::Continuation, Some(open)) if open.fragments >= limits.message_fragments_max => {
            Err(FrameError::TooManyFragments)
        }
        _ => Ok((fin, kind)),
    }
}

/// The payload length and how many bytes after the first two it took.
fn parse_length(short: u8, rest: &[u8]) -> Result<Option<(u64, usize)>, FrameError> {
    match short {
        126 => {
            let Some(&bytes) = rest.first_chunk::<2>() else { return Ok(None) };
            let length = u16::from_be_bytes(bytes);
            if length < 126 {
                return Err(FrameError::NonMinimalLength);
            }
            Ok(Some((u64::from(length), 2)))
        }
        127 => {
            let Some(&bytes) = rest.first_chunk::<8>() else { return Ok(None) };
            let length = u64::from_be_bytes(bytes);
            if length >> 63 != 0 {
                return Err(FrameError::LengthTopBit);
            }
            if length <= u64::from(u16::MAX) {
                return Err(FrameError::NonMinimalLength);
            }
            Ok(Some((length, 8)))
        }
        short => Ok(Some((u64::from(short), 0))),
    }
}
