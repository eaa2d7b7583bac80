//! Server frames with their WebSocket header, in one allocation that every session can share.

use bytes::Bytes;
use roost_protocol::frames::{Form, Message, ServerFrame};

use crate::framing::websocket::{FRAME_HEADER_BYTES_MAX, Opcode, frame_header};

/// The frame as it goes to sessions of this form.
pub fn encode(frame: &ServerFrame, form: Form) -> Bytes {
    with_header(form, frame.encoded_len_hint(form), |out| frame.encode_into(form, out))
}

/// The `message` frame of a committed message: encoded once per gateway and form, sent by reference to every session.
pub fn encode_message(message: &Message, form: Form) -> Bytes {
    with_header(form, message.frame_len_hint(form), |out| message.encode_frame_into(form, out))
}

/// Leaves room for the longest header, and puts the header right before the payload once its length is known.
fn with_header(form: Form, payload_bytes_hint: usize, write: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    let opcode = match form {
        Form::Binary => Opcode::Binary,
        Form::Json => Opcode::Text,
    };
    let mut out = Vec::with_capacity(FRAME_HEADER_BYTES_MAX + payload_bytes_hint);
    out.resize(FRAME_HEADER_BYTES_MAX, 0);
    write(&mut out);
    let (header, header_bytes) = frame_header(opcode, out.len() - FRAME_HEADER_BYTES_MAX);
    let start = FRAME_HEADER_BYTES_MAX - header_bytes;
    out[start..FRAME_HEADER_BYTES_MAX].copy_from_slice(&header[..header_bytes]);
    Bytes::from(out).slice(start..)
}
