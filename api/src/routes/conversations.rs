//! Creating and listing conversations, and who is in them.

use std::borrow::Cow;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;
use roost_ports::delivery::VerdictOutcome;
use roost_ports::store::{ConversationEntry, Member, StoreError};
use roost_protocol::frames::ConversationKind;
use roost_protocol::records::Action;
use roost_protocol::{ClientMsgId, ConversationId, ErrorCode, Seq, UserId, limits};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::messages::{Pending, is_some_id};
use crate::Api;
use crate::extract::{self, Caller, JsonBody, Params, PathId};
use crate::names;
use crate::problem::{Problem, Refusals};

/// Conversations or members in one answer.
const LIST_MAX: u32 = limits::HEADS_MAX;

/// What kind of conversation.
#[derive(Clone, Copy, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// Two users; there is one such conversation per pair.
    Direct,
    /// 2 to 10,000 users.
    Group,
}

/// The conversation to make.
#[derive(Deserialize, ToSchema)]
pub(crate) struct Creation {
    /// The client's own name for this creation: a retry under the same one makes nothing twice.
    #[serde(deserialize_with = "extract::id")]
    #[schema(value_type = uuid::Uuid)]
    client_msg_id: ClientMsgId,
    /// Direct or group.
    kind: Kind,
    /// For groups, at most 256 bytes.
    #[serde(default)]
    title: Option<String>,
    /// The other members; naming oneself too changes nothing. Exactly one for a direct conversation.
    #[serde(deserialize_with = "extract::ids")]
    #[schema(value_type = Vec<uuid::Uuid>)]
    members: Vec<UserId>,
}

/// A conversation that exists now.
#[derive(Serialize, ToSchema)]
pub(crate) struct Created {
    /// Its id.
    #[schema(value_type = uuid::Uuid)]
    conversation_id: ConversationId,
    /// The number of its creation.
    #[schema(value_type = u64)]
    seq: Seq,
}

/// Makes a conversation.
#[utoipa::path(post, path = "/v1/conversations", operation_id = "create_conversation", security(("bearer" = [])),
    request_body = Creation, responses(
        (status = 201, description = "Made, now or by an earlier attempt under this client_msg_id.", body = Created),
        (status = 200, description = "The direct conversation of this pair was there already.", body = Created),
        (status = 202, description = "Not known yet: try again under the same client_msg_id.", body = Pending),
        Refusals))]
pub(crate) async fn create(
    State(api): State<Arc<Api>>,
    Caller(caller): Caller,
    JsonBody(given): JsonBody<Creation, { limits::RECORD_BYTES_MAX }>,
) -> Result<Response, Problem> {
    is_some_id("client_msg_id", given.client_msg_id.as_bytes())?;
    let members = members_of(&given, caller.user_id)?;
    let (conversation_id, kind) = match given.kind {
        Kind::Direct => (ConversationId::direct(members[0], members[1]), ConversationKind::Direct),
        Kind::Group => (ConversationId::group(caller.user_id, given.client_msg_id), ConversationKind::Group),
    };
    let exists = || (StatusCode::OK, Json(Created { conversation_id, seq: 1 })).into_response();
    // Clients ask for the direct conversation before they write: mostly it is there, and nothing need be logged.
    if kind == ConversationKind::Direct && is_member(&api, conversation_id, caller.user_id).await? {
        return Ok(exists());
    }
    let action = Action::Create { conversation_id, kind, title: given.title.as_deref().map(Cow::Borrowed), members };
    match api.ingress.submit(&caller, given.client_msg_id, action, api.ports.clock.now_ms()).await? {
        Some(VerdictOutcome::Committed { seq, .. }) => {
            Ok((StatusCode::CREATED, Json(Created { conversation_id, seq })).into_response())
        }
        // The other one of the pair was first.
        Some(VerdictOutcome::Rejected { code: ErrorCode::AlreadyExists, .. }) if kind == ConversationKind::Direct => {
            Ok(exists())
        }
        Some(VerdictOutcome::Rejected { code, message }) => Err(Problem::new(code, message)),
        None => Ok(Pending::answer(given.client_msg_id, conversation_id)),
    }
}

/// All members, the caller included, sorted, each once; or what is wrong with them.
fn members_of(given: &Creation, caller: UserId) -> Result<Vec<UserId>, Problem> {
    let mut members = given.members.clone();
    members.push(caller);
    members.sort_unstable();
    members.dedup();
    if members.len() > limits::MEMBERS_MAX || members.len() < limits::MEMBERS_MIN {
        let max = limits::MEMBERS_MAX;
        return Err(Problem::field(format!("members: at least one other user, at most {max} with you")));
    }
    match (given.kind, &given.title) {
        (Kind::Direct, _) if members.len() != 2 => Err(Problem::field("members: a direct conversation has one other")),
        (Kind::Direct, Some(_)) => Err(Problem::field("title: a direct conversation has none")),
        (Kind::Group, Some(title)) => names::title(title).map(|()| members),
        _ => Ok(members),
    }
}

/// Which part of the list of conversations.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListAsked {
    /// The `next` of the page before.
    #[serde(default, deserialize_with = "extract::optional_id")]
    #[param(value_type = Option<uuid::Uuid>)]
    after: Option<ConversationId>,
    /// At most so many.
    #[param(minimum = 1)]
    limit: Option<u64>,
}

/// A part of the caller's conversations.
#[derive(Serialize, ToSchema)]
pub(crate) struct Conversations {
    /// In order of id.
    conversations: Vec<Conversation>,
    /// The `after` of the next page; null after the last one.
    #[schema(value_type = Option<uuid::Uuid>)]
    next: Option<ConversationId>,
}

/// A conversation as it stands for the caller.
#[derive(Serialize, ToSchema)]
pub(crate) struct Conversation {
    /// Its id.
    #[schema(value_type = uuid::Uuid)]
    conversation_id: ConversationId,
    /// Direct or group.
    kind: Kind,
    /// Its title, for groups that have one.
    title: Option<String>,
    /// What is before it is not for the caller.
    #[schema(value_type = u64)]
    first_seq: Seq,
    /// The newest message for the caller.
    #[schema(value_type = u64)]
    last_seq: Seq,
    /// Read up to here on some device.
    #[schema(value_type = u64)]
    read_seq: Seq,
    /// Delivered up to here on some device.
    #[schema(value_type = u64)]
    delivered_seq: Seq,
    /// The other user of a direct conversation.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<uuid::Uuid>)]
    peer: Option<UserId>,
}

impl From<ConversationEntry> for Conversation {
    fn from(entry: ConversationEntry) -> Self {
        Self {
            conversation_id: entry.head.conversation_id,
            kind: match entry.kind {
                ConversationKind::Direct => Kind::Direct,
                ConversationKind::Group => Kind::Group,
            },
            title: entry.title,
            first_seq: entry.head.first_seq.unwrap_or(1),
            last_seq: entry.head.last_seq,
            read_seq: entry.head.read_seq.unwrap_or(0),
            delivered_seq: entry.head.delivered_seq.unwrap_or(0),
            peer: entry.peer,
        }
    }
}

/// Lists the caller's conversations.
#[utoipa::path(get, path = "/v1/conversations", operation_id = "list_conversations", params(ListAsked),
    security(("bearer" = [])),
    responses((status = 200, description = "A page of them.", body = Conversations), Refusals))]
pub(crate) async fn list(
    State(api): State<Arc<Api>>,
    Caller(caller): Caller,
    Params(asked): Params<ListAsked>,
) -> Result<Json<Conversations>, Problem> {
    let limit = extract::limit(asked.limit, LIST_MAX)?;
    let list = api.ports.store.conversations(caller.user_id, asked.after, limit).await?;
    let last = list.conversations.last().map(|entry| entry.head.conversation_id);
    let next = last.filter(|_| list.more);
    Ok(Json(Conversations { conversations: list.conversations.into_iter().map(Into::into).collect(), next }))
}

/// Which part of the list of members.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct MembersAsked {
    /// The `next` of the page before.
    #[serde(default, deserialize_with = "extract::optional_id")]
    #[param(value_type = Option<uuid::Uuid>)]
    after: Option<UserId>,
    /// At most so many.
    #[param(minimum = 1)]
    limit: Option<u64>,
}

/// A part of a conversation's members.
#[derive(Serialize, ToSchema)]
pub(crate) struct Members {
    /// In order of id.
    members: Vec<MemberEntry>,
    /// The seq of the newest membership event. Where it changes between two pages, start again.
    #[schema(value_type = u64)]
    version: Seq,
    /// The `after` of the next page; null after the last one.
    #[schema(value_type = Option<uuid::Uuid>)]
    next: Option<UserId>,
}

/// A member.
#[derive(Serialize, ToSchema)]
pub(crate) struct MemberEntry {
    /// Who.
    #[schema(value_type = uuid::Uuid)]
    user_id: UserId,
}

/// Lists the members of one of the caller's conversations.
#[utoipa::path(get, path = "/v1/conversations/{conversation_id}/members", operation_id = "list_members",
    security(("bearer" = [])),
    params(("conversation_id" = uuid::Uuid, Path, description = "The conversation's id."), MembersAsked),
    responses((status = 200, description = "A page of them.", body = Members), Refusals))]
pub(crate) async fn members(
    State(api): State<Arc<Api>>,
    Caller(caller): Caller,
    PathId(conversation): PathId<ConversationId>,
    Params(asked): Params<MembersAsked>,
) -> Result<Json<Members>, Problem> {
    let limit = extract::limit(asked.limit, LIST_MAX)?;
    if !is_member(&api, conversation, caller.user_id).await? {
        return Err(Problem::not_found());
    }
    let page = api.ports.store.members(conversation, asked.after, limit).await?;
    let next = page.members.last().map(|member| member.user_id).filter(|_| page.more);
    let present = page.members.into_iter().filter(is_present);
    let members = present.map(|member| MemberEntry { user_id: member.user_id }).collect();
    Ok(Json(Members { members, version: page.version, next }))
}

/// Those who have left keep their row, and with it the range that is still for them.
fn is_present(member: &Member) -> bool {
    member.to_seq.is_none()
}

/// Whether a user is a member now: the list is ordered, so that it is enough to look where they would stand.
async fn is_member(api: &Api, conversation: ConversationId, user: UserId) -> Result<bool, Problem> {
    let before = u128::from_be_bytes(*user.as_bytes()).checked_sub(1);
    let before = before.map(|before| UserId::from_bytes(before.to_be_bytes()));
    match api.ports.store.members(conversation, before, 1).await {
        Ok(page) => Ok(page.members.first().is_some_and(|member| member.user_id == user && is_present(member))),
        Err(StoreError::NotFound) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
