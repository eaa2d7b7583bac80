//! Client frames: which form, what is checked in both, and owned copies.

use std::borrow::Cow;

use super::{client_binary, client_json};
use crate::frames::{ClientBody, ClientFrame, DecodeError, Form, HistoryRange, Send};
use crate::ids::ClientMsgId;
use crate::{ErrorCode, limits};

impl<'a> ClientFrame<'a> {
    /// Reads a client's frame and checks each field by itself. The result borrows from the payload where it can: in
    /// the binary form always, in JSON where a text needs no unescaping.
    ///
    /// Never panics, and allocates at most a few times the payload's length.
    pub fn decode(form: Form, payload: &'a [u8]) -> Result<ClientFrame<'a>, DecodeError> {
        let frame = match form {
            Form::Binary => client_binary::decode(payload)?,
            Form::Json => client_json::decode(payload)?,
        };
        match frame.check() {
            Ok(()) => Ok(frame),
            Err(problem) => Err(problem.of(frame.id, frame.body.client_msg_id())),
        }
    }

    /// Checks what can be said of each field without knowing the world: lengths, characters, ids that are not nil.
    /// `decode` has done so; a client that builds frames may want to know before it sends.
    pub fn validate(&self) -> Result<(), DecodeError> {
        self.check().map_err(|problem| problem.of(self.id, self.body.client_msg_id()))
    }

    /// The frame as it is sent in this form.
    pub fn encode(&self, form: Form) -> Vec<u8> {
        match form {
            Form::Binary => client_binary::encode(self),
            Form::Json => client_json::encode(self),
        }
    }

    /// The same frame without borrowing from the payload.
    pub fn into_owned(self) -> ClientFrame<'static> {
        ClientFrame { id: self.id, body: self.body.into_owned() }
    }

    fn check(&self) -> Result<(), Problem> {
        match &self.body {
            ClientBody::Connect { token, device_id, client } => {
                token.as_deref().map_or(Ok(()), check_token)?;
                not_nil("device_id", device_id.as_ref().map(|id| id.as_bytes()))?;
                printable("client", client, 0, limits::CLIENT_NAME_BYTES_MAX)
            }
            ClientBody::Send(send) => send.check(),
            ClientBody::Sync { since } => {
                since.as_deref().map_or(Ok(()), |cursor| printable("since", cursor, 1, limits::CURSOR_BYTES_MAX))
            }
            ClientBody::History { conversation_id, range, limit } => {
                not_nil("conversation_id", Some(conversation_id.as_bytes()))?;
                let (HistoryRange::After(seq) | HistoryRange::Before(seq)) = *range;
                require(seq <= limits::SEQ_MAX, "after and before: at most 2^53 - 1")?;
                require(*limit != Some(0), "limit: at least 1")
            }
            ClientBody::Refresh { token } => check_token(token),
            ClientBody::Ping | ClientBody::Pong => Ok(()),
        }
    }
}

impl ClientBody<'_> {
    /// The send's id, if this is one.
    pub fn client_msg_id(&self) -> Option<ClientMsgId> {
        match self {
            ClientBody::Send(send) => Some(send.client_msg_id),
            _ => None,
        }
    }

    /// The same without borrowing from the payload.
    pub fn into_owned(self) -> ClientBody<'static> {
        let owned = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
        match self {
            ClientBody::Connect { token, device_id, client } => {
                ClientBody::Connect { token: token.map(owned), device_id, client: owned(client) }
            }
            ClientBody::Send(send) => ClientBody::Send(send.into_owned()),
            ClientBody::Sync { since } => ClientBody::Sync { since: since.map(owned) },
            ClientBody::History { conversation_id, range, limit } => {
                ClientBody::History { conversation_id, range, limit }
            }
            ClientBody::Refresh { token } => ClientBody::Refresh { token: owned(token) },
            ClientBody::Ping => ClientBody::Ping,
            ClientBody::Pong => ClientBody::Pong,
        }
    }
}

impl Send<'_> {
    /// The same message without borrowing from the payload.
    pub fn into_owned(self) -> Send<'static> {
        Send {
            client_msg_id: self.client_msg_id,
            conversation_id: self.conversation_id,
            content_type: Cow::Owned(self.content_type.into_owned()),
            body: Cow::Owned(self.body.into_owned()),
        }
    }

    /// Checks a message's fields as `ClientFrame::decode` does, for those who get messages another way (REST).
    pub fn validate(&self) -> Result<(), DecodeError> {
        self.check().map_err(|problem| problem.of(None, Some(self.client_msg_id)))
    }

    fn check(&self) -> Result<(), Problem> {
        not_nil("client_msg_id", Some(self.client_msg_id.as_bytes()))?;
        not_nil("conversation_id", Some(self.conversation_id.as_bytes()))?;
        printable("content_type", &self.content_type, 1, limits::CONTENT_TYPE_BYTES_MAX)?;
        if self.body.len() > limits::BODY_BYTES_MAX {
            return Err(Problem { code: ErrorCode::BodyTooLarge, message: Cow::Borrowed("body: over the limit") });
        }
        Ok(())
    }
}

/// What is wrong with a frame, before it is known whose answer it becomes.
#[derive(Debug)]
pub(super) struct Problem {
    code: ErrorCode,
    message: Cow<'static, str>,
}

impl Problem {
    pub(super) fn malformed(message: &'static str) -> Self {
        Self { code: ErrorCode::Malformed, message: Cow::Borrowed(message) }
    }

    pub(super) fn field(message: impl Into<Cow<'static, str>>) -> Self {
        Self { code: ErrorCode::InvalidField, message: message.into() }
    }

    pub(super) fn of(self, id: Option<u32>, client_msg_id: Option<ClientMsgId>) -> DecodeError {
        DecodeError { id, client_msg_id, code: self.code, message: self.message.into_owned() }
    }
}

fn require(holds: bool, message: &'static str) -> Result<(), Problem> {
    if holds { Ok(()) } else { Err(Problem::field(message)) }
}

fn not_nil(name: &'static str, id: Option<&[u8; 16]>) -> Result<(), Problem> {
    match id {
        Some(bytes) if *bytes == [0; 16] => Err(Problem::field(format!("{name}: the nil UUID is no id"))),
        _ => Ok(()),
    }
}

fn check_token(token: &str) -> Result<(), Problem> {
    printable("token", token, 1, limits::TOKEN_BYTES_MAX)
}

/// Printable ASCII only, so that what reaches a log or a header stays one line.
fn printable(name: &'static str, text: &str, length_min: usize, length_max: usize) -> Result<(), Problem> {
    if text.len() < length_min || text.len() > length_max {
        return Err(Problem::field(format!("{name}: {length_min} to {length_max} bytes")));
    }
    if !text.bytes().all(|byte| (0x20..=0x7e).contains(&byte)) {
        return Err(Problem::field(format!("{name}: printable ASCII only")));
    }
    Ok(())
}
