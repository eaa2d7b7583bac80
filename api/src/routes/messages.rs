//! Sending messages without a session, and reading history.

use std::borrow::Cow;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, StatusCode, header};
use roost_ports::delivery::VerdictOutcome;
use roost_protocol::frames::{HistoryRange, Send};
use roost_protocol::records::Action;
use roost_protocol::{ClientMsgId, ConversationId, DeviceId, Epoch, Seq, TimeMs, UserId, limits};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::Api;
use crate::extract::{self, Caller, JsonBody, Params};
use crate::problem::{Problem, Refusals};

/// The message to send: its body is `text` or `body_base64`. Who sends it, when and from where, the server knows.
#[derive(Deserialize, ToSchema)]
pub(crate) struct NewMessage {
    /// The client's own name for this message: a retry under the same one sends nothing twice.
    #[serde(deserialize_with = "extract::id")]
    #[schema(value_type = uuid::Uuid)]
    client_msg_id: ClientMsgId,
    /// Where it goes.
    #[serde(deserialize_with = "extract::id")]
    #[schema(value_type = uuid::Uuid)]
    conversation_id: ConversationId,
    /// What the body is; by default `text/plain` for text, else `application/octet-stream`.
    #[serde(default)]
    content_type: Option<String>,
    /// The body as text.
    #[serde(default)]
    text: Option<String>,
    /// The body as bytes, in standard base64.
    #[serde(default)]
    body_base64: Option<String>,
}

/// A message that is committed.
#[derive(Serialize, ToSchema)]
pub(crate) struct Sent {
    /// The message's id.
    #[schema(value_type = uuid::Uuid)]
    client_msg_id: ClientMsgId,
    /// Its conversation.
    #[schema(value_type = uuid::Uuid)]
    conversation_id: ConversationId,
    /// Its number.
    #[schema(value_type = u64)]
    seq: Seq,
    /// The server's time for it, in Unix milliseconds.
    #[schema(value_type = u64)]
    time: TimeMs,
}

/// A request whose outcome is not known: it may have been done or not, and the same request again will tell.
#[derive(Serialize, ToSchema)]
pub(crate) struct Pending {
    /// Under which id to try again.
    #[schema(value_type = uuid::Uuid)]
    client_msg_id: ClientMsgId,
    /// The conversation.
    #[schema(value_type = uuid::Uuid)]
    conversation_id: ConversationId,
    /// Wait at least this long.
    retry_after_ms: u64,
}

impl Pending {
    pub(super) fn answer(client_msg_id: ClientMsgId, conversation_id: ConversationId) -> Response {
        let body = Self { client_msg_id, conversation_id, retry_after_ms: limits::RETRY_AFTER_MS };
        let retry_after = HeaderValue::from(limits::RETRY_AFTER_MS.div_ceil(1000));
        (StatusCode::ACCEPTED, [(header::RETRY_AFTER, retry_after)], Json(body)).into_response()
    }
}

/// Sends a message.
#[utoipa::path(post, path = "/v1/messages", operation_id = "send_message", security(("bearer" = [])),
    request_body = NewMessage, responses(
        (status = 201, description = "Committed, now or by an earlier attempt under this client_msg_id.", body = Sent),
        (status = 202, description = "Not known yet: try again under the same client_msg_id.", body = Pending),
        Refusals))]
pub(crate) async fn send(
    State(api): State<Arc<Api>>,
    Caller(caller): Caller,
    JsonBody(given): JsonBody<NewMessage, { limits::CLIENT_FRAME_BYTES_MAX }>,
) -> Result<Response, Problem> {
    let Send { client_msg_id, conversation_id, content_type, body } = message(given)?;
    let action = Action::Send { conversation_id, content_type, body };
    match api.ingress.submit(&caller, client_msg_id, action, api.ports.clock.now_ms()).await? {
        Some(VerdictOutcome::Committed { seq, time }) => {
            Ok((StatusCode::CREATED, Json(Sent { client_msg_id, conversation_id, seq, time })).into_response())
        }
        Some(VerdictOutcome::Rejected { code, message }) => Err(Problem::new(code, message)),
        None => Ok(Pending::answer(client_msg_id, conversation_id)),
    }
}

fn message(given: NewMessage) -> Result<Send<'static>, Problem> {
    let (body, default) = match (given.text, given.body_base64) {
        (Some(text), None) => (text.into_bytes(), "text/plain"),
        (None, Some(encoded)) => {
            let decoded = STANDARD.decode(encoded);
            let body = decoded.map_err(|_| Problem::field("body_base64: standard base64 with padding"))?;
            (body, "application/octet-stream")
        }
        _ => return Err(Problem::field("text, body_base64: exactly one of them")),
    };
    let message = Send {
        client_msg_id: given.client_msg_id,
        conversation_id: given.conversation_id,
        content_type: given.content_type.map_or(Cow::Borrowed(default), Cow::Owned),
        body: Cow::Owned(body),
    };
    message.validate().map_err(|error| Problem::new(error.code, error.message))?;
    Ok(message)
}

/// An id that somebody made: not the nil UUID.
pub(super) fn is_some_id(name: &str, bytes: &[u8; 16]) -> Result<(), Problem> {
    if *bytes == [0; 16] { Err(Problem::field(format!("{name}: the nil UUID is no id"))) } else { Ok(()) }
}

/// Which page of which conversation: exactly one of `after` and `before`.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct HistoryAsked {
    /// The conversation.
    #[serde(deserialize_with = "extract::id")]
    #[param(value_type = uuid::Uuid)]
    conversation_id: ConversationId,
    /// The oldest messages with a seq above this one.
    #[param(minimum = 0, value_type = Option<u64>)]
    after: Option<Seq>,
    /// The newest messages with a seq below this one.
    #[param(minimum = 0, value_type = Option<u64>)]
    before: Option<Seq>,
    /// At most so many messages.
    #[param(minimum = 1)]
    limit: Option<u64>,
}

/// A page of history, as the `page` frame has it: it settles `from..=to`.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the protocol writes it; this describes it")]
pub(crate) struct HistoryPage {
    #[schema(value_type = uuid::Uuid)]
    conversation_id: ConversationId,
    /// First seq settled; `from > to` settles nothing.
    #[schema(value_type = u64)]
    from: Seq,
    /// Last seq settled.
    #[schema(value_type = u64)]
    to: Seq,
    /// In rising order of seq.
    messages: Vec<HistoryMessage>,
    /// There is more in the direction asked.
    more: bool,
    /// The identity of the whole history.
    #[schema(value_type = uuid::Uuid)]
    epoch: Epoch,
}

/// A committed message; its body is `text` or `body_base64`, unless it is an event.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the protocol writes it; this describes it")]
pub(crate) struct HistoryMessage {
    #[schema(value_type = uuid::Uuid)]
    conversation_id: ConversationId,
    #[schema(value_type = u64)]
    seq: Seq,
    #[schema(value_type = uuid::Uuid)]
    sender_id: UserId,
    #[schema(value_type = uuid::Uuid)]
    device_id: DeviceId,
    #[schema(value_type = uuid::Uuid)]
    client_msg_id: ClientMsgId,
    #[schema(value_type = u64)]
    time: TimeMs,
    content_type: String,
    text: Option<String>,
    body_base64: Option<String>,
    #[schema(value_type = Option<Object>)]
    event: Option<()>,
}

/// Reads a page of one of the caller's conversations.
#[utoipa::path(get, path = "/v1/messages", operation_id = "read_history", params(HistoryAsked),
    security(("bearer" = [])),
    responses((status = 200, description = "The page.", body = HistoryPage), Refusals))]
pub(crate) async fn history(
    State(api): State<Arc<Api>>,
    Caller(caller): Caller,
    Params(asked): Params<HistoryAsked>,
) -> Result<Response, Problem> {
    let limit = extract::limit(asked.limit, limits::PAGE_MESSAGES_MAX)?;
    let range = match (asked.after, asked.before) {
        (Some(after), None) => HistoryRange::After(after.min(limits::SEQ_MAX)),
        (None, Some(before)) => HistoryRange::Before(before.min(limits::SEQ_MAX)),
        _ => return Err(Problem::field("after, before: exactly one of them")),
    };
    let page = api.ports.store.history(caller.user_id, asked.conversation_id, range, limit).await?;
    let mut json = Vec::with_capacity(1024);
    page.write_json(&mut json);
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], json).into_response())
}
