//! A Log, Store, Registry and Clock in memory, with the real rules of numbering, and switches that make them fail.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt as _;
use parking_lot::Mutex;
use roost_ports::delivery::{DeliveryBatch, DeliveryItem, DeliverySink, Verdict, VerdictOutcome};
use roost_ports::log::*;
use roost_ports::registry::*;
use roost_ports::store::apply::*;
use roost_ports::store::numbering::{ConversationState, Found, Identity, Known, Needs, decide};
use roost_ports::store::*;
use roost_ports::{Clock, Log, Registry, Store};
use roost_protocol::frames::*;
use roost_protocol::records::{Endpoint, IngressRecord};
use roost_protocol::*;

/// What the log does with a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LogMode {
    /// Takes it; it is applied at once and the verdict delivered.
    Applies,
    /// Takes and applies it, but the verdict is lost.
    LosesVerdicts,
    /// Takes it, but nobody applies it.
    NobodyApplies,
    /// Does not say whether it took it; it was applied all the same.
    Unsure,
    /// Refuses it.
    Full,
}

/// Everything behind the api.
pub(super) struct World {
    state: Mutex<State>,
    pub(super) sinks: Mutex<Vec<Arc<dyn DeliverySink>>>,
    pub(super) mode: Mutex<LogMode>,
    pub(super) store_away: AtomicBool,
    pub(super) registry_away: AtomicBool,
    pub(super) key_loads: AtomicU64,
    pub(super) appended: AtomicU64,
    now_ms: AtomicU64,
}

#[derive(Default)]
struct State {
    accounts: Vec<Account>,
    refresh_tokens: HashMap<[u8; 32], RefreshRow>,
    keys: Vec<SigningKey>,
    conversations: HashMap<ConversationId, Conversation>,
    known: HashMap<Identity, Known>,
    rates: HashMap<String, u64>,
}

struct RefreshRow {
    user: UserId,
    device: DeviceId,
    expires: TimeMs,
    used: bool,
    revoked: bool,
}

struct Conversation {
    kind: ConversationKind,
    title: Option<String>,
    members: Vec<UserId>,
    messages: Vec<Message>,
}

impl World {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            sinks: Mutex::default(),
            mode: Mutex::new(LogMode::Applies),
            store_away: AtomicBool::new(false),
            registry_away: AtomicBool::new(false),
            key_loads: AtomicU64::new(0),
            appended: AtomicU64::new(0),
            now_ms: AtomicU64::new(1_800_000_000_000),
        })
    }

    pub(super) fn set_mode(&self, mode: LogMode) {
        *self.mode.lock() = mode;
    }

    pub(super) fn pass_ms(&self, ms: u64) {
        self.now_ms.fetch_add(ms, Ordering::Relaxed);
    }

    pub(super) fn keys(&self) -> Vec<SigningKey> {
        self.state.lock().keys.clone()
    }

    pub(super) fn message(&self, conversation: &str, seq: Seq) -> Message {
        let id: ConversationId = conversation.parse().expect("an id");
        self.state.lock().conversations[&id].messages[seq as usize - 1].clone()
    }

    fn store(&self) -> Result<parking_lot::MutexGuard<'_, State>, StoreError> {
        if self.store_away.load(Ordering::Relaxed) {
            return Err(StoreError::Unavailable("secret host name".to_owned()));
        }
        Ok(self.state.lock())
    }

    fn apply_one(&self, partition: u32, payload: &Bytes) {
        let record = IngressRecord::decode(payload).expect("a record").into_owned();
        assert_eq!(partition, partition::of(record.conversation_id(), Log::partitions(self)));
        let origin = record.origin.clone().expect("an origin");
        let verdict = |outcome| Verdict {
            session: origin.session,
            request: origin.request,
            client_msg_id: record.client_msg_id,
            conversation_id: record.conversation_id(),
            outcome,
        };
        let outcome = self.state.lock().apply(partition, record.clone());
        if matches!(*self.mode.lock(), LogMode::Applies) {
            for sink in self.sinks.lock().iter().filter(|sink| sink.incarnation() == origin.endpoint.incarnation) {
                let batch = DeliveryBatch { items: vec![DeliveryItem::Verdict(verdict(outcome.clone()))] };
                assert_eq!(sink.deliver(batch).now_or_never(), Some(Ok(())));
            }
        }
    }
}

impl State {
    fn apply(&mut self, partition: u32, record: IngressRecord<'static>) -> VerdictOutcome {
        let incoming =
            Incoming { position: Position(0), next: Position(1), digest: [0; 16], content: Ok(record.clone()) };
        let part =
            PartBatch { partition, epoch: 1, from: Position(0), published: Position(0), records: vec![incoming] };
        let needs = Needs::of(&[&part]);
        let found = self.found(&needs);
        let mut plan = decide(&[&part], &found);
        for new in &plan.new_conversations {
            let conversation = Conversation {
                kind: new.kind,
                title: new.title.map(str::to_owned),
                members: new.members.to_vec(),
                messages: Vec::new(),
            };
            self.conversations.insert(new.conversation_id, conversation);
        }
        let outcome = plan.outcomes.remove(0).remove(0);
        let verdict = outcome.verdict().expect("no poison");
        if let Outcome::Numbered(deliver) = outcome {
            let conversation = self.conversations.get_mut(&deliver.message.conversation_id).expect("it exists");
            conversation.messages.push(deliver.message);
        }
        let digest = numbering::content_digest(&record.action);
        self.known.entry(Identity::of(&record)).or_insert(Known { digest, verdict: verdict.clone() });
        verdict
    }

    fn found(&self, needs: &Needs) -> Found {
        let mut found = Found::default();
        for id in &needs.conversations {
            if let Some(conversation) = self.conversations.get(id) {
                let last_seq = conversation.messages.len() as Seq;
                found.conversations.insert(*id, ConversationState { last_seq, members_version: 1 });
            }
        }
        let known = needs.identities.iter().filter_map(|identity| Some((*identity, self.known.get(identity)?.clone())));
        found.known.extend(known);
        let member = |(id, user): &&(ConversationId, UserId)| {
            self.conversations.get(id).is_some_and(|conversation| conversation.members.contains(user))
        };
        found.members.extend(needs.memberships.iter().filter(member));
        let exists = |user: &&UserId| self.accounts.iter().any(|account| account.user_id == **user);
        found.users.extend(needs.users.iter().filter(exists));
        found
    }
}

impl Clock for World {
    fn now_ms(&self) -> TimeMs {
        self.now_ms.load(Ordering::Relaxed)
    }

    fn steady_ms(&self) -> u64 {
        self.now_ms.load(Ordering::Relaxed) - 1_700_000_000_000
    }
}

#[async_trait]
impl Log for World {
    fn log_id(&self) -> &str {
        "memory"
    }

    fn partitions(&self) -> u32 {
        48
    }

    fn append(&self, topic: Topic, records: Vec<NewRecord>) -> AppendFuture {
        assert_eq!(topic, Topic::Ingress);
        self.appended.fetch_add(records.len() as u64, Ordering::Relaxed);
        let mode = *self.mode.lock();
        if !matches!(mode, LogMode::NobodyApplies | LogMode::Full) {
            records.iter().for_each(|record| self.apply_one(record.partition, &record.payload));
        }
        let result = match mode {
            LogMode::Full => Err(AppendError::Full),
            LogMode::Unsure => Err(AppendError::Unknown("timed out".to_owned())),
            _ => Ok(Position(1)),
        };
        async move { vec![result; records.len()] }.boxed()
    }

    async fn bounds(&self, _: Topic, _: u32) -> Result<Bounds, LogError> {
        Err(LogError::Refused("not here".to_owned()))
    }

    async fn read_before(&self, _: Topic, _: u32, _: Position) -> Result<Option<LogRecord>, LogError> {
        Err(LogError::Refused("not here".to_owned()))
    }

    async fn consume(&self, _: Topic, _: &str) -> Result<Box<dyn Consumer>, LogError> {
        Err(LogError::Refused("not here".to_owned()))
    }

    async fn check(&self) -> Result<(), LogError> {
        Ok(())
    }
}

fn not_here<T>() -> Result<T, StoreError> {
    Err(StoreError::Refused("not here".to_owned()))
}

#[async_trait]
impl Store for World {
    async fn migrate(&self, _: &Migration) -> Result<(), StoreError> {
        not_here()
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.store().map(|_| ())
    }

    async fn epoch(&self) -> Result<Epoch, StoreError> {
        Ok(Epoch::from_bytes([7; 16]))
    }

    async fn partitions(&self, _: &str) -> Result<u32, StoreError> {
        Ok(48)
    }

    async fn claim(&self, _: &str, _: u32) -> Result<Claim, StoreError> {
        not_here()
    }

    async fn apply(&self, _: &ApplyBatch) -> Result<Applied, ApplyError> {
        Err(ApplyError::Unavailable("not here".to_owned()))
    }

    async fn replay(&self, _: &str, _: u32, _: &[Incoming]) -> Result<Vec<Replayed>, StoreError> {
        not_here()
    }

    async fn set_published(&self, _: &str, _: u32, _: u64, _: Position) -> Result<(), StoreError> {
        not_here()
    }

    async fn outcome(
        &self,
        conversation_id: ConversationId,
        sender_id: UserId,
        client_msg_id: ClientMsgId,
    ) -> Result<Option<VerdictOutcome>, StoreError> {
        let identity = Identity { conversation_id, sender_id, client_msg_id };
        Ok(self.store()?.known.get(&identity).map(|known| known.verdict.clone()))
    }

    async fn history(
        &self,
        user: UserId,
        id: ConversationId,
        range: HistoryRange,
        limit: u32,
    ) -> Result<Page, StoreError> {
        let state = self.store()?;
        let theirs = state.conversations.get(&id).filter(|conversation| conversation.members.contains(&user));
        let all = &theirs.ok_or(StoreError::NotFound)?.messages;
        let limit = limit as usize;
        let (messages, more): (Vec<Message>, bool) = match range {
            HistoryRange::After(seq) => {
                let rest = all.iter().filter(|message| message.seq > seq);
                (rest.clone().take(limit).cloned().collect(), rest.count() > limit)
            }
            HistoryRange::Before(seq) => {
                let rest: Vec<&Message> = all.iter().filter(|message| message.seq < seq).collect();
                let skipped = rest.len().saturating_sub(limit);
                (rest[skipped..].iter().copied().cloned().collect(), skipped > 0)
            }
        };
        let from = messages.first().map_or(1, |message| message.seq);
        let to = messages.last().map_or(0, |message| message.seq);
        Ok(Page { conversation_id: id, from, to, messages, more, epoch: Epoch::from_bytes([7; 16]) })
    }

    async fn heads(&self, _: UserId, _: Option<&str>, _: u32) -> Result<Heads, StoreError> {
        not_here()
    }

    async fn conversations(
        &self,
        user: UserId,
        after: Option<ConversationId>,
        limit: u32,
    ) -> Result<ConversationList, StoreError> {
        let state = self.store()?;
        let mut ids: Vec<_> = state.conversations.iter().filter(|(_, c)| c.members.contains(&user)).collect();
        ids.sort_by_key(|(id, _)| **id);
        ids.retain(|(id, _)| after.is_none_or(|after| **id > after));
        let more = ids.len() > limit as usize;
        let entry = |(id, conversation): &(&ConversationId, &Conversation)| ConversationEntry {
            head: Head {
                conversation_id: **id,
                first_seq: Some(1),
                last_seq: conversation.messages.len() as Seq,
                read_seq: Some(0),
                delivered_seq: Some(0),
            },
            kind: conversation.kind,
            title: conversation.title.clone(),
            peer: (conversation.kind == ConversationKind::Direct)
                .then(|| conversation.members.iter().copied().find(|member| *member != user))
                .flatten(),
        };
        Ok(ConversationList { conversations: ids.iter().take(limit as usize).map(entry).collect(), more })
    }

    async fn members(&self, id: ConversationId, after: Option<UserId>, limit: u32) -> Result<MembersPage, StoreError> {
        let state = self.store()?;
        let conversation = state.conversations.get(&id).ok_or(StoreError::NotFound)?;
        let mut rest = conversation.members.clone();
        rest.retain(|member| after.is_none_or(|after| *member > after));
        let more = rest.len() > limit as usize;
        let member = |user_id| Member { user_id, from_seq: 1, to_seq: None };
        Ok(MembersPage { version: 1, members: rest.into_iter().take(limit as usize).map(member).collect(), more })
    }

    async fn create_account(&self, account: &Account) -> Result<(), StoreError> {
        let mut state = self.store()?;
        let same = |other: &Account| other.name.to_lowercase() == account.name.to_lowercase();
        if state.accounts.iter().any(same) {
            return Err(StoreError::AlreadyExists);
        }
        state.accounts.push(account.clone());
        Ok(())
    }

    async fn account_by_name(&self, name: &str) -> Result<Account, StoreError> {
        let state = self.store()?;
        let found = state.accounts.iter().find(|account| account.name.to_lowercase() == name.to_lowercase());
        found.cloned().ok_or(StoreError::NotFound)
    }

    async fn account(&self, user: UserId) -> Result<Account, StoreError> {
        let state = self.store()?;
        state.accounts.iter().find(|account| account.user_id == user).cloned().ok_or(StoreError::NotFound)
    }

    async fn create_device(
        &self,
        user: UserId,
        device: DeviceId,
        _: &str,
        token: &NewRefreshToken,
        _: TimeMs,
    ) -> Result<(), StoreError> {
        let row = RefreshRow { user, device, expires: token.expires, used: false, revoked: false };
        self.store()?.refresh_tokens.insert(token.hash, row);
        Ok(())
    }

    async fn rotate_refresh_token(
        &self,
        old_hash: &[u8; 32],
        new: &NewRefreshToken,
        now: TimeMs,
    ) -> Result<Rotation, StoreError> {
        let mut state = self.store()?;
        let Some(old) = state.refresh_tokens.get_mut(old_hash) else { return Ok(Rotation::Refused) };
        let (user, device) = (old.user, old.device);
        if old.revoked || old.expires <= now {
            return Ok(Rotation::Refused);
        }
        if old.used {
            state.refresh_tokens.values_mut().filter(|row| row.device == device).for_each(|row| row.revoked = true);
            return Ok(Rotation::Reused);
        }
        old.used = true;
        let row = RefreshRow { user, device, expires: new.expires, used: false, revoked: false };
        state.refresh_tokens.insert(new.hash, row);
        Ok(Rotation::Rotated { user, device })
    }

    async fn revoke_device(&self, _: UserId, device: DeviceId) -> Result<(), StoreError> {
        let mut state = self.store()?;
        state.refresh_tokens.values_mut().filter(|row| row.device == device).for_each(|row| row.revoked = true);
        Ok(())
    }

    async fn signing_keys(&self) -> Result<Vec<SigningKey>, StoreError> {
        self.key_loads.fetch_add(1, Ordering::Relaxed);
        Ok(self.store()?.keys.clone())
    }

    async fn add_signing_key(&self, key: &SigningKey, unless_since: TimeMs, now: TimeMs) -> Result<(), StoreError> {
        let mut state = self.store()?;
        if !state.keys.iter().any(|other| other.created >= unless_since) {
            state.keys.insert(0, key.clone());
        }
        state.keys.retain(|key| key.verify_until > now);
        Ok(())
    }

    async fn put_gateway(&self, _: &Endpoint, _: TimeMs) -> Result<(), StoreError> {
        not_here()
    }

    async fn remove_gateway(&self, _: &Endpoint) -> Result<(), StoreError> {
        not_here()
    }

    async fn gateways(&self, _: TimeMs) -> Result<Vec<Endpoint>, StoreError> {
        not_here()
    }
}

#[async_trait]
impl Registry for World {
    async fn acquire(&self, _: &Endpoint, _: u64) -> Result<Renewal, RegistryError> {
        Err(RegistryError::LeaseLost)
    }

    async fn renew(&self, _: &Endpoint, _: RegistryIncarnation, _: u64) -> Result<Renewal, RegistryError> {
        Err(RegistryError::LeaseLost)
    }

    async fn complete(&self, _: Incarnation, _: RegistryIncarnation) -> Result<(), RegistryError> {
        Err(RegistryError::LeaseLost)
    }

    async fn release(&self, _: Incarnation) -> Result<(), RegistryError> {
        Err(RegistryError::LeaseLost)
    }

    async fn register(&self, _: Incarnation, _: &[SessionEntry]) -> Result<u64, RegistryError> {
        Err(RegistryError::LeaseLost)
    }

    async fn unregister(&self, _: Incarnation, _: &[SessionEntry]) -> Result<u64, RegistryError> {
        Err(RegistryError::LeaseLost)
    }

    async fn locate(&self, _: &[UserId]) -> Result<Located, RegistryError> {
        Err(RegistryError::LeaseLost)
    }

    async fn allow(&self, key: &str, rate: Rate) -> Result<RateDecision, RegistryError> {
        if self.registry_away.load(Ordering::Relaxed) {
            return Err(RegistryError::Unavailable("away".to_owned()));
        }
        let now = self.steady_ms();
        let mut state = self.state.lock();
        let full_at = state.rates.entry(key.to_owned()).or_insert(now);
        let next = (*full_at).max(now) + rate.interval_ms;
        let latest = now + rate.interval_ms * u64::from(rate.burst);
        if next > latest {
            return Ok(RateDecision::Limited { retry_after_ms: next - latest });
        }
        *full_at = next;
        Ok(RateDecision::Allowed)
    }

    async fn check(&self) -> Result<(), RegistryError> {
        Ok(())
    }
}
