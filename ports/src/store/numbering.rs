//! The rules of the numbering transaction, pure: what to look up, and what each record becomes.
//!
//! An adapter calls [`Needs::of`] with the parts that are its own, locks and looks up what that says, fills a
//! [`Found`], calls [`decide`], and writes the rows of the [`Plan`] as plain inserts and updates. Both SQL adapters
//! share these rules, so that they cannot differ in a verdict.

use std::collections::{HashMap, HashSet};

use roost_protocol::digest::{self, Digest16};
use roost_protocol::frames::{ConversationKind, Event, Message};
use roost_protocol::limits::{MEMBERS_MAX, MEMBERS_MIN, SEQ_MAX, TITLE_BYTES_MAX};
use roost_protocol::records::{Action, DeliverRecord, IngressRecord};
use roost_protocol::{ClientMsgId, ConversationId, DeviceId, ErrorCode, Seq, TimeMs, UserId};

use super::apply::{Incoming, Outcome, PartBatch};
use crate::delivery::VerdictOutcome;
use crate::log::Position;

/// What makes a request the same one, however often it is tried. The sender is part of it: nobody can take an id away
/// from another user.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Identity {
    /// The conversation that numbers it.
    pub conversation_id: ConversationId,
    /// Who asks.
    pub sender_id: UserId,
    /// The sender's name for it.
    pub client_msg_id: ClientMsgId,
}

impl Identity {
    /// The identity of a record.
    pub fn of(record: &IngressRecord<'_>) -> Self {
        Self { conversation_id: record.conversation_id(), sender_id: record.actor, client_msg_id: record.client_msg_id }
    }
}

/// What a batch makes it necessary to lock and to look up. Every list is sorted and holds each thing once.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Needs {
    /// To be locked in this order, so that no two transactions wait for each other.
    pub conversations: Vec<ConversationId>,
    /// To be looked up once the conversations are locked, in a later statement: among messages and rejections.
    pub identities: Vec<Identity>,
    /// Who must be a member now.
    pub memberships: Vec<(ConversationId, UserId)>,
    /// Who must exist.
    pub users: Vec<UserId>,
}

impl Needs {
    /// What these parts need.
    pub fn of(parts: &[&PartBatch]) -> Self {
        let records = parts.iter().map(|part| part.records.len()).sum();
        let mut needs = Self {
            conversations: Vec::with_capacity(records),
            identities: Vec::with_capacity(records),
            memberships: Vec::with_capacity(records),
            users: Vec::new(),
        };
        for record in parts.iter().flat_map(|part| &part.records).filter_map(|incoming| incoming.content.as_ref().ok())
        {
            needs.conversations.push(record.conversation_id());
            needs.identities.push(Identity::of(record));
            match &record.action {
                Action::Send { conversation_id, .. } => needs.memberships.push((*conversation_id, record.actor)),
                Action::Create { members, .. } => needs.users.extend_from_slice(members),
            }
        }
        sort_once(&mut needs.conversations);
        sort_once(&mut needs.identities);
        sort_once(&mut needs.memberships);
        sort_once(&mut needs.users);
        needs
    }
}

/// What the Store holds of the [`Needs`], read under the locks.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The conversations that exist.
    pub conversations: HashMap<ConversationId, ConversationState>,
    /// The identities that have a message or a rejection.
    pub known: HashMap<Identity, Known>,
    /// The memberships that hold now: those that have ended are absent.
    pub members: HashSet<(ConversationId, UserId)>,
    /// The users that exist.
    pub users: HashSet<UserId>,
}

/// A conversation as it stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConversationState {
    /// Its newest number.
    pub last_seq: Seq,
    /// The seq of its newest membership event.
    pub members_version: Seq,
}

/// What became of an identity when it was first applied.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Known {
    /// The digest of the content as first sent.
    pub digest: Digest16,
    /// The verdict.
    pub verdict: VerdictOutcome,
}

impl Known {
    /// The verdict on another attempt: the first one again, or a mismatch where the content is not as first sent.
    pub fn verdict_on(&self, digest: &Digest16) -> VerdictOutcome {
        if self.digest == *digest { self.verdict.clone() } else { mismatch() }
    }
}

/// What to write, and what to answer.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Plan<'a> {
    /// One list per part, with one outcome per record.
    pub outcomes: Vec<Vec<Outcome>>,
    /// Conversations to insert, with their members, before anything else.
    pub new_conversations: Vec<NewConversation<'a>>,
    /// Conversations that existed before and took numbers, in order of id.
    pub updated_conversations: Vec<ConversationUpdate>,
    /// Messages to insert.
    pub messages: Vec<NewMessage<'a>>,
    /// Rejections to insert.
    pub rejections: Vec<NewRejection>,
    /// Dead letters to insert.
    pub dead_letters: Vec<NewDeadLetter<'a>>,
}

/// A conversation to insert.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewConversation<'a> {
    /// Its id.
    pub conversation_id: ConversationId,
    /// Direct or group.
    pub kind: ConversationKind,
    /// Its title.
    pub title: Option<&'a str>,
    /// When it was asked for.
    pub created: TimeMs,
    /// Its newest number after this batch.
    pub last_seq: Seq,
    /// The seq of its newest membership event after this batch; also `from_seq` of the members.
    pub members_version: Seq,
    /// Its members, sorted, each once.
    pub members: &'a [UserId],
}

/// A conversation to update.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConversationUpdate {
    /// Which.
    pub conversation_id: ConversationId,
    /// Its newest number after this batch.
    pub last_seq: Seq,
    /// The seq of its newest membership event after this batch.
    pub members_version: Seq,
}

/// A message to insert.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewMessage<'a> {
    /// What makes it the same one again.
    pub identity: Identity,
    /// Its number.
    pub seq: Seq,
    /// From which device.
    pub device_id: DeviceId,
    /// The server's time for it.
    pub time: TimeMs,
    /// The seq of the last membership event at or below it; a replay publishes it again.
    pub members_version: Seq,
    /// What the body is; empty for events.
    pub content_type: &'a str,
    /// The body; empty for events.
    pub body: &'a [u8],
    /// The digest of the content as first sent.
    pub digest: Digest16,
    /// Set where this number belongs to a change of the conversation itself.
    pub event: Option<Event>,
}

/// A rejection to insert.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewRejection {
    /// What makes it the same one again. The conversation need not exist.
    pub identity: Identity,
    /// The digest of the content as first sent.
    pub digest: Digest16,
    /// When it was asked for.
    pub time: TimeMs,
    /// Why.
    pub code: ErrorCode,
    /// Why, in words.
    pub message: &'static str,
}

/// A dead letter to insert.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewDeadLetter<'a> {
    /// Where the record stands.
    pub partition: u32,
    /// Where the record stands.
    pub position: Position,
    /// The digest of its bytes.
    pub digest: Digest16,
    /// Why.
    pub reason: &'a str,
    /// Its bytes.
    pub payload: &'a [u8],
}

/// What each record of these parts becomes, in the order of the parts and of their records.
///
/// A known identity keeps its first verdict, whatever has changed since: dedupe comes before membership. Every new
/// record gets a row: the next number, a rejection, or a dead letter.
pub fn decide<'a>(parts: &[&'a PartBatch], found: &'a Found) -> Plan<'a> {
    let mut planner = Planner { found, known: HashMap::new(), touched: HashMap::new(), plan: Plan::default() };
    for part in parts {
        let outcomes = part.records.iter().map(|incoming| planner.outcome(part.partition, incoming)).collect();
        planner.plan.outcomes.push(outcomes);
    }
    planner.finish()
}

/// The digest by which a retry is known to be the same request: of (content_type, body), or of what a creation asks.
/// Frozen: stored rows hold it.
pub fn content_digest(action: &Action<'_>) -> Digest16 {
    match action {
        Action::Send { content_type, body, .. } => digest::of_content(content_type, body),
        Action::Create { kind, title, members, .. } => {
            let title = title.as_deref();
            let mut essentials = Vec::with_capacity(16 + title.map_or(0, str::len) + members.len() * 16);
            essentials.extend_from_slice(kind.as_str().as_bytes());
            essentials.push(u8::from(title.is_some()));
            essentials.extend_from_slice(&(title.map_or(0, str::len) as u64).to_be_bytes());
            essentials.extend_from_slice(title.unwrap_or_default().as_bytes());
            for member in members {
                essentials.extend_from_slice(member.as_bytes());
            }
            // No message has a content type with a NUL, so that no message has the digest of a creation.
            digest::of_content("\0create", &essentials)
        }
    }
}

/// Why a record is refused: a code, and the same in words.
type Refusal = (ErrorCode, &'static str);

const NOT_FOUND: Refusal = (ErrorCode::NotFound, "there is no such conversation, or it is not yours");

struct Planner<'a> {
    found: &'a Found,
    /// The verdicts of this batch, for duplicates inside it.
    known: HashMap<Identity, Known>,
    /// The conversations that took numbers in this batch.
    touched: HashMap<ConversationId, Touched<'a>>,
    plan: Plan<'a>,
}

struct Touched<'a> {
    state: ConversationState,
    /// Set where this batch makes the conversation: its members, sorted.
    created: Option<&'a [UserId]>,
}

impl<'a> Planner<'a> {
    fn outcome(&mut self, partition: u32, incoming: &'a Incoming) -> Outcome {
        let record = match &incoming.content {
            Ok(record) => record,
            Err(poison) => {
                self.plan.dead_letters.push(NewDeadLetter {
                    partition,
                    position: incoming.position,
                    digest: incoming.digest,
                    reason: &poison.reason,
                    payload: &poison.payload,
                });
                return Outcome::DeadLetter { reason: poison.reason.clone() };
            }
        };
        let identity = Identity::of(record);
        let digest = content_digest(&record.action);
        if let Some(known) = self.known.get(&identity).or_else(|| self.found.known.get(&identity)) {
            return match known.verdict_on(&digest) {
                verdict if known.digest == digest => Outcome::Duplicate(verdict),
                verdict => Outcome::Rejected(verdict),
            };
        }
        let outcome = match self.allow(record) {
            Ok(state) => self.number(record, identity, digest, state),
            Err(refusal) => self.reject(record, identity, digest, refusal),
        };
        if let Some(verdict) = outcome.verdict() {
            self.known.insert(identity, Known { digest, verdict });
        }
        outcome
    }

    /// Whether a new record is allowed, and where its conversation stands once it has taken its number.
    fn allow(&self, record: &IngressRecord<'_>) -> Result<ConversationState, Refusal> {
        let conversation_id = record.conversation_id();
        let before = self.state(conversation_id);
        let after = match &record.action {
            Action::Send { content_type, .. } => {
                // Foreign and nonexistent are one answer.
                let before = before.filter(|_| self.is_member(conversation_id, record.actor)).ok_or(NOT_FOUND)?;
                if content_type.contains('\0') {
                    return Err((ErrorCode::InvalidField, "content_type: has a NUL, which not every Store can keep"));
                }
                ConversationState { last_seq: before.last_seq + 1, ..before }
            }
            Action::Create { kind, title, members, .. } => {
                check_creation(conversation_id, record.actor, *kind, title.as_deref(), members)?;
                if !members.iter().all(|member| self.found.users.contains(member)) {
                    return Err((ErrorCode::NotFound, "a member does not exist"));
                }
                if before.is_some() {
                    return Err((ErrorCode::AlreadyExists, "the conversation exists already"));
                }
                ConversationState { last_seq: 1, members_version: 1 }
            }
        };
        if record.if_last_seq.is_some_and(|expected| expected != after.last_seq - 1) {
            return Err((ErrorCode::PreconditionFailed, "the conversation has changed since"));
        }
        assert!(after.last_seq <= SEQ_MAX, "a conversation has fewer messages than JSON can count");
        Ok(after)
    }

    fn number(
        &mut self,
        record: &'a IngressRecord<'static>,
        identity: Identity,
        digest: Digest16,
        state: ConversationState,
    ) -> Outcome {
        let mut row = NewMessage {
            identity,
            seq: state.last_seq,
            device_id: record.device,
            // What stands in a row must fit in it, whatever some gateway's clock said.
            time: record.time.min(SEQ_MAX),
            members_version: state.members_version,
            content_type: "",
            body: &[],
            digest,
            event: None,
        };
        let touched = self.touched.entry(identity.conversation_id).or_insert(Touched { state, created: None });
        touched.state = state;
        match &record.action {
            Action::Send { content_type, body, .. } => {
                row.content_type = content_type;
                row.body = body;
            }
            Action::Create { kind, title, members, .. } => {
                touched.created = Some(members);
                row.event = Some(Event::Created {
                    kind: *kind,
                    title: title.as_deref().map(str::to_owned),
                    member_count: members.len() as u32,
                });
                self.plan.new_conversations.push(NewConversation {
                    conversation_id: identity.conversation_id,
                    kind: *kind,
                    title: title.as_deref(),
                    created: row.time,
                    last_seq: state.last_seq,
                    members_version: state.members_version,
                    members,
                });
            }
        }
        let outcome = Outcome::Numbered(Box::new(row.to_deliver()));
        self.plan.messages.push(row);
        outcome
    }

    fn reject(
        &mut self,
        record: &IngressRecord<'_>,
        identity: Identity,
        digest: Digest16,
        (code, message): Refusal,
    ) -> Outcome {
        let time = record.time.min(SEQ_MAX);
        self.plan.rejections.push(NewRejection { identity, digest, time, code, message });
        Outcome::Rejected(VerdictOutcome::Rejected { code, message: message.to_owned() })
    }

    fn finish(mut self) -> Plan<'a> {
        for new in &mut self.plan.new_conversations {
            let state = self.touched[&new.conversation_id].state;
            (new.last_seq, new.members_version) = (state.last_seq, state.members_version);
        }
        self.plan.updated_conversations = self
            .touched
            .iter()
            .filter(|(_, touched)| touched.created.is_none())
            .map(|(&conversation_id, touched)| ConversationUpdate {
                conversation_id,
                last_seq: touched.state.last_seq,
                members_version: touched.state.members_version,
            })
            .collect();
        self.plan.updated_conversations.sort_unstable_by_key(|update| update.conversation_id);
        self.plan
    }

    fn state(&self, conversation: ConversationId) -> Option<ConversationState> {
        let touched = self.touched.get(&conversation).map(|touched| touched.state);
        touched.or_else(|| self.found.conversations.get(&conversation).copied())
    }

    fn is_member(&self, conversation: ConversationId, user: UserId) -> bool {
        match self.touched.get(&conversation).and_then(|touched| touched.created) {
            Some(members) => members.binary_search(&user).is_ok(),
            None => self.found.members.contains(&(conversation, user)),
        }
    }
}

impl NewMessage<'_> {
    /// What goes to `deliver` for it.
    fn to_deliver(&self) -> DeliverRecord {
        DeliverRecord {
            members_version: self.members_version,
            message: Message {
                conversation_id: self.identity.conversation_id,
                seq: self.seq,
                sender_id: self.identity.sender_id,
                device_id: self.device_id,
                client_msg_id: self.identity.client_msg_id,
                time: self.time,
                content_type: self.content_type.to_owned(),
                body: bytes::Bytes::copy_from_slice(self.body),
                event: self.event.clone(),
            },
        }
    }
}

fn mismatch() -> VerdictOutcome {
    VerdictOutcome::Rejected {
        code: ErrorCode::IdempotencyMismatch,
        message: "this client_msg_id was first used with another body".to_owned(),
    }
}

/// What no creation may look like, whatever the Store holds. It comes before the look at the conversation, so that it
/// tells nothing about a foreign one.
fn check_creation(
    conversation: ConversationId,
    actor: UserId,
    kind: ConversationKind,
    title: Option<&str>,
    members: &[UserId],
) -> Result<(), Refusal> {
    let invalid = |message| Err((ErrorCode::InvalidField, message));
    if !(MEMBERS_MIN..=MEMBERS_MAX).contains(&members.len()) {
        return invalid("members: a conversation has 2 to 10,000");
    }
    if !members.is_sorted_by(|one, next| one < next) {
        return invalid("members: not sorted, or one stands there twice");
    }
    if members.binary_search(&actor).is_err() {
        return invalid("members: the one who creates a conversation is among them");
    }
    if title.is_some_and(|title| title.len() > TITLE_BYTES_MAX) {
        return invalid("title: too long");
    }
    if title.is_some_and(|title| title.contains('\0')) {
        return invalid("title: has a NUL, which not every Store can keep");
    }
    if kind == ConversationKind::Direct {
        if members.len() != 2 {
            return invalid("members: a direct conversation has two");
        }
        if title.is_some() {
            return invalid("title: a direct conversation has none");
        }
        if conversation != ConversationId::direct(members[0], members[1]) {
            return invalid("conversation_id: not the one of this pair");
        }
    }
    Ok(())
}

fn sort_once<T: Ord>(list: &mut Vec<T>) {
    list.sort_unstable();
    list.dedup();
}

#[cfg(test)]
mod tests;
