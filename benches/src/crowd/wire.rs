//! The bytes that a client of the crowd sends, and as much of what it receives as it has to understand.

use std::borrow::Cow;

use roost_protocol::frames::{ClientBody, ClientFrame, Form, Send};
use roost_protocol::{ClientMsgId, ConversationId};

/// Of every message of the benches.
pub const CONTENT_TYPE: &str = "application/octet-stream";

const MASK: [u8; 4] = [0x5a, 0x17, 0xc3, 0x88];
/// The key of RFC 6455's own example: its answer is known to all.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// The opening handshake.
pub fn upgrade_request(address: &std::net::SocketAddr) -> Vec<u8> {
    let subprotocol = Form::Binary.subprotocol();
    format!(
        "GET /v1/connect HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Protocol: {subprotocol}\r\n\r\n"
    )
    .into_bytes()
}

/// The first frame of the product's sessions.
pub fn connect(token: &str) -> Vec<u8> {
    client_frame(ClientBody::Connect { token: Some(Cow::Borrowed(token)), device_id: None, client: "bench".into() })
}

/// A message of so many bytes; a reference takes the same for a trigger.
pub fn message(conversation_id: ConversationId, body_bytes: usize) -> Vec<u8> {
    client_frame(ClientBody::Send(Send {
        client_msg_id: ClientMsgId::new(),
        conversation_id,
        content_type: Cow::Borrowed(CONTENT_TYPE),
        body: Cow::Owned(vec![b'x'; body_bytes]),
    }))
}

/// Asks for `pong`; an echo sends it back.
pub fn ping() -> Vec<u8> {
    client_frame(ClientBody::Ping)
}

/// Answers the product's `ping`.
pub fn pong() -> Vec<u8> {
    client_frame(ClientBody::Pong)
}

/// Answers a WebSocket ping.
pub fn control_pong(payload: &[u8]) -> Vec<u8> {
    masked(0x8a, payload)
}

fn client_frame(body: ClientBody<'_>) -> Vec<u8> {
    masked(0x82, &ClientFrame { id: None, body }.encode(Form::Binary))
}

fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match u16::try_from(payload.len()) {
        Ok(length @ 0..=125) => frame.push(0x80 | length as u8),
        Ok(length) => {
            frame.push(0x80 | 126);
            frame.extend(length.to_be_bytes());
        }
        Err(_) => unreachable!("the crowd sends no frame of over 64 KiB"),
    }
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// The first frame in these bytes, if it is there as a whole: its opcode, its payload (still masked, where the server
/// sends a masked one back), and how many bytes it takes.
pub fn parse(bytes: &[u8]) -> Option<(u8, &[u8], usize)> {
    let (&first, &second) = (bytes.first()?, bytes.get(1)?);
    let (length, header) = match second & 0x7f {
        126 => (usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)), 4),
        127 => (usize::try_from(u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)).ok()?, 10),
        length => (usize::from(length), 2),
    };
    let start: usize = header + if second & 0x80 == 0 { 0 } else { 4 };
    Some((first & 0x0f, bytes.get(start..start.checked_add(length)?)?, start + length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_can_be_parsed_at_every_length() {
        for length in [0, 125, 126, 5_000] {
            let frame = masked(0x82, &vec![7; length]);
            assert_eq!(parse(&frame).map(|(opcode, payload, taken)| (opcode, payload.len(), taken)), {
                Some((2, length, frame.len()))
            });
            assert_eq!(parse(&frame[..frame.len() - 1]), None);
        }
    }
}
