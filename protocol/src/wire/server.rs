//! Server frames: encoding into the gateway's buffers, decoding for clients.

use bytes::Bytes;

use super::{protobuf, server_binary, server_json};
use crate::ErrorCode;
use crate::frames::{DecodeError, Form, Message, Page, ServerBody, ServerFrame};

/// More than any field names, ids and numbers of a JSON message come to.
const JSON_MESSAGE_OVERHEAD: usize = 512;

impl ServerFrame {
    /// A frame that answers no request.
    pub const fn unsolicited(body: ServerBody) -> Self {
        Self { id: None, body }
    }

    /// The answer to the request with this id, if it had one.
    pub const fn answer(id: Option<u32>, body: ServerBody) -> Self {
        Self { id, body }
    }

    /// Appends the frame as it is sent in this form. A body is copied once, into `out`.
    pub fn encode_into(&self, form: Form, out: &mut Vec<u8>) {
        match form {
            Form::Binary => server_binary::encode_into(self, out),
            Form::Json => server_json::encode_into(self, out),
        }
    }

    /// How much room `encode_into` needs: exact in the binary form, a good guess in JSON.
    pub fn encoded_len_hint(&self, form: Form) -> usize {
        match (form, &self.body) {
            (Form::Binary, _) => protobuf::length_of(self),
            (Form::Json, ServerBody::Message(message)) => message.frame_len_hint(Form::Json),
            (Form::Json, ServerBody::Heads(heads)) => 256 + heads.conversations.len() * 160,
            (Form::Json, ServerBody::Page(page)) => {
                256 + page.messages.iter().map(|message| message.frame_len_hint(Form::Json)).sum::<usize>()
            }
            (Form::Json, _) => JSON_MESSAGE_OVERHEAD,
        }
    }

    /// The frame in a buffer of its own.
    pub fn encode(&self, form: Form) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.encoded_len_hint(form));
        self.encode_into(form, &mut out);
        out
    }

    /// Reads a server's frame, for clients. Bodies in the binary form are slices of the payload. `None` is a frame of
    /// a type that this build does not know: ignore it. An error code that this build does not know reads as
    /// `internal`.
    pub fn decode(form: Form, payload: Bytes) -> Result<Option<ServerFrame>, DecodeError> {
        match form {
            Form::Binary => server_binary::decode(payload),
            Form::Json => server_json::decode(&payload),
        }
        .map_err(|message| DecodeError {
            id: None,
            client_msg_id: None,
            code: ErrorCode::Malformed,
            message: message.to_owned(),
        })
    }
}

impl Message {
    /// Appends the `message` frame of this message without making a `ServerFrame` of it: what fan-out does once per
    /// gateway and form. The body is copied once, into `out`.
    pub fn encode_frame_into(&self, form: Form, out: &mut Vec<u8>) {
        match form {
            Form::Binary => server_binary::encode_message_into(self, out),
            Form::Json => server_json::encode_message_into(self, out),
        }
    }

    /// How much room `encode_frame_into` needs: exact in the binary form, a good guess in JSON.
    pub fn frame_len_hint(&self, form: Form) -> usize {
        match form {
            Form::Binary => server_binary::message_frame_len(self),
            Form::Json => JSON_MESSAGE_OVERHEAD + self.content_type.len() + self.body.len().div_ceil(3) * 4,
        }
    }
}

impl Page {
    /// Appends the page as a JSON object with the fields of the `page` frame and no `type`: REST answers so.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        server_json::write_page_object(self, out);
    }

    /// Reads what `write_json` writes.
    pub fn from_json(text: &[u8]) -> Result<Page, DecodeError> {
        server_json::read_page(text).map_err(|message| DecodeError {
            id: None,
            client_msg_id: None,
            code: ErrorCode::Malformed,
            message: message.to_owned(),
        })
    }
}
