//! A Store in memory: the shared rules of numbering and nothing else, as a Store of the schedules and as their judge.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use roost_ports::Store;
use roost_ports::delivery::VerdictOutcome;
use roost_ports::log::Position;
use roost_ports::store::numbering::{self, ConversationState, Found, Identity, Known, Needs, Plan};
use roost_ports::store::{
    Account, Applied, ApplyBatch, ApplyError, Claim, ConversationList, Incoming, Member, MembersPage, Migration,
    NewRefreshToken, PartBatch, PartOutcome, Replayed, Rotation, SigningKey, StoreError,
};
use roost_protocol::digest::Digest16;
use roost_protocol::frames::{Heads, HistoryRange, Message, Page};
use roost_protocol::records::{DeliverRecord, Endpoint};
use roost_protocol::{ClientMsgId, ConversationId, DeviceId, Epoch, Seq, TimeMs, UserId};

use super::StoreFactory;

/// Everything the model holds.
#[derive(Clone, Debug, Default)]
pub struct State {
    progress: BTreeMap<(String, u32), Row>,
    conversations: HashMap<ConversationId, Conversation>,
    known: HashMap<Identity, Known>,
    dead_letters: BTreeMap<(u32, Position), String>,
    users: BTreeSet<UserId>,
    gateways: Vec<Endpoint>,
}

#[derive(Clone, Debug, Default)]
struct Row {
    next: Position,
    published: Position,
    epoch: u64,
    last_digest: Option<Digest16>,
}

#[derive(Clone, Debug)]
struct Conversation {
    state: ConversationState,
    members: Vec<Member>,
    messages: Vec<DeliverRecord>,
}

impl State {
    /// Notes that a user exists.
    pub fn add_user(&mut self, user: UserId) {
        self.users.insert(user);
    }

    /// Applies parts, without looking at any progress.
    pub fn apply_parts(&mut self, parts: &[&PartBatch]) -> Vec<Vec<roost_ports::store::Outcome>> {
        let found = self.find(&Needs::of(parts));
        let plan = numbering::decide(parts, &found);
        self.write(&plan);
        plan.outcomes
    }

    /// The messages of a conversation.
    pub fn messages(&self, conversation: ConversationId) -> Vec<Message> {
        let found = self.conversations.get(&conversation).into_iter();
        found.flat_map(|found| found.messages.iter().map(|record| record.message.clone())).collect()
    }

    fn find(&self, needs: &Needs) -> Found {
        let conversations = needs.conversations.iter().filter_map(|id| Some((*id, self.conversations.get(id)?.state)));
        let known = needs.identities.iter().filter_map(|id| Some((*id, self.known.get(id)?.clone())));
        let members = needs.memberships.iter().copied().filter(|(conversation, user)| {
            let found = self.conversations.get(conversation);
            found.is_some_and(|found| found.members.iter().any(|member| member.user_id == *user))
        });
        Found {
            conversations: conversations.collect(),
            known: known.collect(),
            members: members.collect(),
            users: needs.users.iter().copied().filter(|user| self.users.contains(user)).collect(),
        }
    }

    fn write(&mut self, plan: &Plan<'_>) {
        for new in &plan.new_conversations {
            let state = ConversationState { last_seq: new.last_seq, members_version: new.members_version };
            let members = new.members.iter().map(|&user_id| Member { user_id, from_seq: 1, to_seq: None }).collect();
            let conversation = Conversation { state, members, messages: Vec::new() };
            let before = self.conversations.insert(new.conversation_id, conversation);
            assert!(before.is_none(), "a conversation is made once");
        }
        for update in &plan.updated_conversations {
            let state = ConversationState { last_seq: update.last_seq, members_version: update.members_version };
            self.conversations.get_mut(&update.conversation_id).expect("it exists").state = state;
        }
        for new in &plan.messages {
            let message = Message {
                conversation_id: new.identity.conversation_id,
                seq: new.seq,
                sender_id: new.identity.sender_id,
                device_id: new.device_id,
                client_msg_id: new.identity.client_msg_id,
                time: new.time,
                content_type: new.content_type.to_owned(),
                body: bytes::Bytes::copy_from_slice(new.body),
                event: new.event.clone(),
            };
            let verdict = VerdictOutcome::Committed { seq: new.seq, time: new.time };
            let before = self.known.insert(new.identity, Known { digest: new.digest, verdict });
            assert!(before.is_none(), "an identity is applied once");
            let record = DeliverRecord { members_version: new.members_version, message };
            let conversation = self.conversations.get_mut(&new.identity.conversation_id).expect("it exists");
            assert_eq!(conversation.messages.len() as u64 + 1, new.seq, "numbers are dense");
            conversation.messages.push(record);
        }
        for new in &plan.rejections {
            let verdict = VerdictOutcome::Rejected { code: new.code, message: new.message.to_owned() };
            let before = self.known.insert(new.identity, Known { digest: new.digest, verdict });
            assert!(before.is_none(), "an identity is rejected once");
        }
        for new in &plan.dead_letters {
            self.dead_letters.insert((new.partition, new.position), new.reason.to_owned());
        }
    }

    fn replay(&self, partition: u32, incoming: &Incoming) -> Replayed {
        if let Some(reason) = self.dead_letters.get(&(partition, incoming.position)) {
            return Replayed::DeadLetter { reason: reason.clone() };
        }
        let Ok(record) = &incoming.content else { return Replayed::Missing };
        let identity = Identity::of(record);
        let Some(known) = self.known.get(&identity) else { return Replayed::Missing };
        match known.verdict_on(&numbering::content_digest(&record.action)) {
            VerdictOutcome::Committed { seq, .. } => {
                let conversation = &self.conversations[&identity.conversation_id];
                Replayed::Numbered(Box::new(conversation.messages[seq as usize - 1].clone()))
            }
            rejected => Replayed::Rejected(rejected),
        }
    }

    fn apply(&mut self, batch: &ApplyBatch, wrong: Option<Wrong>) -> Applied {
        if wrong == Some(Wrong::ForgetsWhatItKnew) {
            self.known.clear();
        }
        let ours: Vec<bool> = batch
            .parts
            .iter()
            .map(|part| {
                let row = self.progress.get(&(batch.log_id.clone(), part.partition));
                row.is_some_and(|row| {
                    wrong == Some(Wrong::ForgetsTheOwner) || (row.epoch == part.epoch && row.next == part.from)
                })
            })
            .collect();
        let parts: Vec<&PartBatch> =
            batch.parts.iter().zip(&ours).filter(|&(_, &ours)| ours).map(|(part, _)| part).collect();
        let mut outcomes = self.apply_parts(&parts).into_iter();
        for part in &parts {
            let row = self.progress.get_mut(&(batch.log_id.clone(), part.partition)).expect("it is ours");
            let last = part.records.last().expect("a part has records");
            row.next = last.next;
            row.last_digest = Some(last.digest);
            row.published = row.published.max(part.published);
        }
        let parts = ours.into_iter().map(|ours| match ours {
            true => PartOutcome::Applied(outcomes.next().expect("one per part of ours")),
            false => PartOutcome::NotOurs,
        });
        Applied { parts: parts.collect() }
    }
}

/// What a wrong Store does. The judge must find each of these, or its silence means nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wrong {
    /// Whoever asks may apply, wherever the partition stands.
    ForgetsTheOwner,
    /// What was numbered is looked up as if nothing had to be published.
    ReplaysNothing,
    /// What is applied counts as published.
    PublishesOnPaper,
    /// A retry takes a number of its own.
    ForgetsWhatItKnew,
}

impl Wrong {
    /// Every way to be wrong.
    pub const ALL: [Wrong; 4] =
        [Wrong::ForgetsTheOwner, Wrong::ReplaysNothing, Wrong::PublishesOnPaper, Wrong::ForgetsWhatItKnew];
}

/// The model behind the port.
#[derive(Clone, Debug, Default)]
pub struct ModelStore {
    state: Arc<Mutex<State>>,
    wrong: Option<Wrong>,
}

/// Hands out model Stores; a copy is a clone.
#[derive(Debug, Default)]
pub struct ModelFactory {
    store: ModelStore,
    kept: State,
    wrong: Option<Wrong>,
}

impl ModelFactory {
    /// Stores that are wrong in one way.
    pub fn wrong(wrong: Wrong) -> Self {
        Self { wrong: Some(wrong), ..Self::default() }
    }
}

#[async_trait]
impl StoreFactory for ModelFactory {
    async fn fresh(&mut self) -> Arc<dyn Store> {
        self.store = ModelStore { wrong: self.wrong, ..ModelStore::default() };
        Arc::new(self.store.clone())
    }

    async fn keep(&mut self) -> bool {
        self.kept = self.store.state.lock().clone();
        true
    }

    async fn fall_back(&mut self) -> Arc<dyn Store> {
        self.store = ModelStore { state: Arc::new(Mutex::new(self.kept.clone())), wrong: self.wrong };
        Arc::new(self.store.clone())
    }
}

fn not_modelled<T>() -> Result<T, StoreError> {
    Err(StoreError::Refused("the model does not have this".into()))
}

#[async_trait]
impl Store for ModelStore {
    async fn migrate(&self, migration: &Migration) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        for partition in 0..migration.partitions {
            state.progress.entry((migration.log_id.clone(), partition)).or_default();
        }
        Ok(())
    }

    async fn check(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn epoch(&self) -> Result<Epoch, StoreError> {
        not_modelled()
    }

    async fn partitions(&self, log_id: &str) -> Result<u32, StoreError> {
        let state = self.state.lock();
        Ok(state.progress.keys().filter(|(log, _)| log == log_id).count() as u32)
    }

    async fn claim(&self, log_id: &str, partition: u32) -> Result<Claim, StoreError> {
        let mut state = self.state.lock();
        let row = state.progress.get_mut(&(log_id.to_owned(), partition)).ok_or(StoreError::NotFound)?;
        row.epoch += 1;
        if self.wrong == Some(Wrong::PublishesOnPaper) {
            row.published = row.next;
        }
        Ok(Claim { epoch: row.epoch, next: row.next, published: row.published, last_digest: row.last_digest })
    }

    async fn apply(&self, batch: &ApplyBatch) -> Result<Applied, ApplyError> {
        Ok(self.state.lock().apply(batch, self.wrong))
    }

    async fn replay(&self, _: &str, partition: u32, records: &[Incoming]) -> Result<Vec<Replayed>, StoreError> {
        let state = self.state.lock();
        let mut replayed: Vec<Replayed> = records.iter().map(|incoming| state.replay(partition, incoming)).collect();
        if self.wrong == Some(Wrong::ReplaysNothing) {
            for one in &mut replayed {
                if let Replayed::Numbered(record) = one {
                    let (seq, time) = (record.message.seq, record.message.time);
                    *one = Replayed::Rejected(VerdictOutcome::Committed { seq, time });
                }
            }
        }
        Ok(replayed)
    }

    async fn set_published(
        &self,
        log_id: &str,
        partition: u32,
        epoch: u64,
        published: Position,
    ) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        let row = state.progress.get_mut(&(log_id.to_owned(), partition)).ok_or(StoreError::NotFound)?;
        if row.epoch == epoch {
            row.published = row.published.max(published);
        }
        Ok(())
    }

    async fn outcome(
        &self,
        conversation_id: ConversationId,
        sender_id: UserId,
        client_msg_id: ClientMsgId,
    ) -> Result<Option<VerdictOutcome>, StoreError> {
        let identity = Identity { conversation_id, sender_id, client_msg_id };
        Ok(self.state.lock().known.get(&identity).map(|known| known.verdict.clone()))
    }

    async fn history(
        &self,
        _: UserId,
        conversation: ConversationId,
        range: HistoryRange,
        limit: u32,
    ) -> Result<Page, StoreError> {
        let HistoryRange::After(after) = range else { return not_modelled() };
        let all = self.state.lock().messages(conversation);
        let messages: Vec<Message> = all.into_iter().skip(after as usize).take(limit as usize).collect();
        let to = after + messages.len() as Seq;
        let more = self.state.lock().messages(conversation).len() as Seq > to;
        Ok(Page {
            conversation_id: conversation,
            from: after + 1,
            to,
            messages,
            more,
            epoch: Epoch::from_bytes([0; 16]),
        })
    }

    async fn heads(&self, _: UserId, _: Option<&str>, _: u32) -> Result<Heads, StoreError> {
        not_modelled()
    }

    async fn conversations(
        &self,
        _: UserId,
        _: Option<ConversationId>,
        _: u32,
    ) -> Result<ConversationList, StoreError> {
        not_modelled()
    }

    async fn members(
        &self,
        conversation: ConversationId,
        after: Option<UserId>,
        limit: u32,
    ) -> Result<MembersPage, StoreError> {
        let state = self.state.lock();
        let found = state.conversations.get(&conversation).ok_or(StoreError::NotFound)?;
        let rest = found.members.iter().copied().filter(|member| after.is_none_or(|after| member.user_id > after));
        let members: Vec<Member> = rest.clone().take(limit as usize).collect();
        let more = rest.count() > members.len();
        Ok(MembersPage { version: found.state.members_version, members, more })
    }

    async fn create_account(&self, account: &Account) -> Result<(), StoreError> {
        self.state.lock().add_user(account.user_id);
        Ok(())
    }

    async fn account_by_name(&self, _: &str) -> Result<Account, StoreError> {
        not_modelled()
    }

    async fn account(&self, _: UserId) -> Result<Account, StoreError> {
        not_modelled()
    }

    async fn create_device(
        &self,
        _: UserId,
        _: DeviceId,
        _: &str,
        _: &NewRefreshToken,
        _: TimeMs,
    ) -> Result<(), StoreError> {
        not_modelled()
    }

    async fn rotate_refresh_token(&self, _: &[u8; 32], _: &NewRefreshToken, _: TimeMs) -> Result<Rotation, StoreError> {
        not_modelled()
    }

    async fn revoke_device(&self, _: UserId, _: DeviceId) -> Result<(), StoreError> {
        not_modelled()
    }

    async fn signing_keys(&self) -> Result<Vec<SigningKey>, StoreError> {
        not_modelled()
    }

    async fn add_signing_key(&self, _: &SigningKey, _: TimeMs, _: TimeMs) -> Result<(), StoreError> {
        not_modelled()
    }

    async fn put_gateway(&self, gateway: &Endpoint, _: TimeMs) -> Result<(), StoreError> {
        self.state.lock().gateways.push(gateway.clone());
        Ok(())
    }

    async fn remove_gateway(&self, gateway: &Endpoint) -> Result<(), StoreError> {
        self.state.lock().gateways.retain(|known| known != gateway);
        Ok(())
    }

    async fn gateways(&self, _: TimeMs) -> Result<Vec<Endpoint>, StoreError> {
        Ok(self.state.lock().gateways.clone())
    }
}
