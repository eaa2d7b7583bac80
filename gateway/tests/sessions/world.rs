//! A world for one gateway: ports in memory that number, deliver, forget and fail as a test wants.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use roost_gateway::{Authenticate, Config, Gateway, GatewayHandle, HandedOver, Io, Ports};
use roost_ports::delivery::{Audience, DeliveryBatch, DeliveryItem, Verdict, VerdictOutcome};
use roost_ports::log::{
    AppendError, AppendFuture, Bounds, Consumer, Log, LogError, LogRecord, NewRecord, Position, Topic,
};
use roost_ports::registry::{
    Located, Rate, RateDecision, Registry, RegistryError, RegistryIncarnation, Renewal, SessionEntry,
};
use roost_ports::store::{
    Account, Applied, ApplyBatch, ApplyError, Claim, ConversationList, Incoming, MembersPage, Migration,
    NewRefreshToken, Replayed, Rotation, SigningKey, Store, StoreError,
};
use roost_ports::{Clock, DeliverySink};
use roost_protocol::frames::{Head, Heads, HistoryRange, Message, Page};
use roost_protocol::records::{Action, DeliverRecord, Endpoint, IngressRecord};
use roost_protocol::{ClientMsgId, ConversationId, DeviceId, Epoch, ErrorCode, Incarnation, SessionId, TimeMs, UserId};
use roost_session::machine::{Identity, Refusal};
use tokio::sync::mpsc;

/// How the log behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogMode {
    /// Takes and numbers.
    Works,
    /// Takes, numbers, and nobody hears of it.
    Silent,
    /// Takes and numbers; the message arrives, the verdict does not.
    NoVerdict,
    /// Refuses.
    Full,
    /// Does not return from the call.
    Stuck,
}

/// How the registry behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RegistryMode {
    Works,
    /// Fails at once.
    Away,
    /// Never answers.
    Frozen,
    /// Says that the lease is over.
    Lost,
}

pub struct World {
    pub log_mode: Mutex<LogMode>,
    pub registry_mode: Mutex<RegistryMode>,
    pub store_away: Mutex<bool>,
    pub epoch: Mutex<Epoch>,
    /// Added to the steady clock: the process stood still for so long.
    pub frozen_ms: AtomicU64,
    pub conversations: Mutex<HashMap<ConversationId, Vec<Message>>>,
    pub registered: Mutex<HashMap<SessionId, SessionEntry>>,
    pub registry_life: AtomicU64,
    pub writes: AtomicU64,
    pub completes: AtomicU64,
    pub keys: Mutex<Vec<SigningKey>>,
    pub key_loads: AtomicU64,
    pub acquired: Mutex<Vec<Incarnation>>,
    /// Records as they came.
    pub appended: Mutex<Vec<(u32, IngressRecord<'static>)>>,
    sink: Mutex<Option<Arc<dyn DeliverySink>>>,
    started: std::time::Instant,
}

/// The driver that this run of the suite is about: `cargo xtask test` runs all of it on each. By default the best one that
/// works here.
pub fn io() -> Io {
    match std::env::var("ROOST_TEST_IO").as_deref() {
        Ok("portable") => Io::Portable,
        Ok("uring") => Io::Uring,
        Ok("auto") | Err(_) => Io::Auto,
        Ok(other) => panic!("ROOST_TEST_IO={other}: there are auto, uring and portable"),
    }
}

/// Nobody is a member of this one.
pub fn foreign() -> ConversationId {
    ConversationId::from_bytes([0xff; 16])
}

/// A token that the world accepts.
pub fn token(user: UserId, device: DeviceId, expires_at: TimeMs) -> String {
    format!("{user}.{device}.{expires_at}")
}

pub fn wall_ms() -> TimeMs {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64
}

impl World {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            log_mode: Mutex::new(LogMode::Works),
            registry_mode: Mutex::new(RegistryMode::Works),
            store_away: Mutex::new(false),
            epoch: Mutex::new(Epoch::new()),
            frozen_ms: AtomicU64::new(0),
            conversations: Mutex::default(),
            registered: Mutex::default(),
            registry_life: AtomicU64::new(1),
            writes: AtomicU64::new(0),
            completes: AtomicU64::new(0),
            keys: Mutex::default(),
            key_loads: AtomicU64::new(0),
            acquired: Mutex::default(),
            appended: Mutex::default(),
            sink: Mutex::new(None),
            started: std::time::Instant::now(),
        })
    }

    pub fn config() -> Config {
        let mut config = Config::new(([127, 0, 0, 1], 0).into());
        config.io = io();
        config.shards = 2;
        config.lease_ttl_ms = 600;
        config.registry_timeout_ms = 200;
        config
    }

    pub fn ports(self: &Arc<Self>, http: Option<mpsc::Sender<HandedOver>>) -> Ports {
        Ports {
            log: self.clone(),
            store: self.clone(),
            registry: self.clone(),
            clock: self.clone(),
            authenticate: self.clone(),
            http,
        }
    }

    pub async fn start(self: &Arc<Self>, config: Config) -> GatewayHandle {
        self.start_with_http(config, None).await
    }

    pub async fn start_with_http(
        self: &Arc<Self>,
        config: Config,
        http: Option<mpsc::Sender<HandedOver>>,
    ) -> GatewayHandle {
        let gateway = Gateway::start(config, self.ports(http)).await.expect("the gateway starts");
        *self.sink.lock() = Some(gateway.sink());
        // A registry that works knows the gateway before the first client comes.
        for _ in 0..100 {
            if self.completes.load(Ordering::Relaxed) > 0 || *self.registry_mode.lock() != RegistryMode::Works {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        gateway
    }

    pub fn sink(&self) -> Arc<dyn DeliverySink> {
        self.sink.lock().clone().expect("the gateway has started")
    }

    /// Numbers a record as the persist worker would, and delivers what comes of it.
    fn apply(&self, record: &IngressRecord<'static>, mode: LogMode) -> DeliveryBatch {
        let Action::Send { conversation_id, content_type, body } = &record.action else { panic!("a send") };
        let origin = record.origin.clone().expect("a gateway's record has an origin");
        let mut conversations = self.conversations.lock();
        let messages = conversations.entry(*conversation_id).or_default();
        let known = messages.iter().find(|message| message.client_msg_id == record.client_msg_id).cloned();
        let (outcome, message) = if *conversation_id == foreign() {
            (VerdictOutcome::Rejected { code: ErrorCode::NotFound, message: "not found".to_owned() }, None)
        } else {
            let message = known.unwrap_or_else(|| {
                let message = Message {
                    conversation_id: *conversation_id,
                    seq: messages.len() as u64 + 1,
                    sender_id: record.actor,
                    device_id: record.device,
                    client_msg_id: record.client_msg_id,
                    time: record.time,
                    content_type: content_type.to_string(),
                    body: bytes::Bytes::copy_from_slice(body),
                    event: None,
                };
                messages.push(message.clone());
                message
            });
            (VerdictOutcome::Committed { seq: message.seq, time: message.time }, Some(message))
        };
        let mut items = Vec::new();
        if mode == LogMode::Works {
            items.push(DeliveryItem::Verdict(Verdict {
                session: origin.session,
                request: origin.request,
                client_msg_id: record.client_msg_id,
                conversation_id: *conversation_id,
                outcome,
            }));
        }
        if let (Some(message), true) = (message, mode != LogMode::Silent) {
            items.push(self.to_everyone(&message));
        }
        DeliveryBatch { items }
    }

    /// The message for every registered session.
    pub fn to_everyone(&self, message: &Message) -> DeliveryItem {
        let sessions: Arc<[SessionId]> = self.registered.lock().keys().copied().collect();
        let record = DeliverRecord { members_version: 1, message: message.clone() }.encode();
        DeliveryItem::Message { audience: Audience::Sessions(sessions), record }
    }

    fn registry<T>(&self, answer: impl FnOnce() -> T) -> Result<T, RegistryError> {
        match *self.registry_mode.lock() {
            RegistryMode::Works => Ok(answer()),
            RegistryMode::Lost => Err(RegistryError::LeaseLost),
            RegistryMode::Away | RegistryMode::Frozen => Err(RegistryError::Unavailable("away".to_owned())),
        }
    }

    async fn thaw(&self) {
        while *self.registry_mode.lock() == RegistryMode::Frozen {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn renewal(&self) -> Renewal {
        Renewal {
            writes: self.writes.load(Ordering::Relaxed),
            registry: RegistryIncarnation(self.registry_life.load(Ordering::Relaxed)),
        }
    }

    fn store(&self) -> Result<(), StoreError> {
        match *self.store_away.lock() {
            true => Err(StoreError::Unavailable("away".to_owned())),
            false => Ok(()),
        }
    }
}

/// A message of somebody who is not here.
pub fn message(conversation_id: ConversationId, seq: u64, body: &[u8]) -> Message {
    Message {
        conversation_id,
        seq,
        sender_id: UserId::new(),
        device_id: DeviceId::new(),
        client_msg_id: ClientMsgId::new(),
        time: 1,
        content_type: "text/plain".to_owned(),
        body: bytes::Bytes::copy_from_slice(body),
        event: None,
    }
}

impl Clock for World {
    fn now_ms(&self) -> TimeMs {
        wall_ms() + self.frozen_ms.load(Ordering::Relaxed)
    }

    fn steady_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64 + self.frozen_ms.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Authenticate for World {
    async fn authenticate(&self, token: &str, _now_ms: TimeMs) -> Result<Identity, Refusal> {
        self.store().map_err(|_| Refusal::Unavailable)?;
        let mut parts = token.split('.');
        let mut next = || parts.next().ok_or(Refusal::Unauthenticated);
        Ok(Identity {
            user_id: next()?.parse().map_err(|_| Refusal::Unauthenticated)?,
            device_id: next()?.parse().map_err(|_| Refusal::Unauthenticated)?,
            expires_at: next()?.parse().map_err(|_| Refusal::Unauthenticated)?,
        })
    }
}

#[async_trait]
impl Log for World {
    fn log_id(&self) -> &str {
        "test"
    }

    fn partitions(&self) -> u32 {
        48
    }

    fn append(&self, _topic: Topic, records: Vec<NewRecord>) -> AppendFuture {
        let mut mode = *self.log_mode.lock();
        while mode == LogMode::Stuck {
            std::thread::sleep(Duration::from_millis(1));
            mode = *self.log_mode.lock();
        }
        if mode == LogMode::Full {
            let results = records.iter().map(|_| Err(AppendError::Full)).collect();
            return Box::pin(async move { results });
        }
        let mut results = Vec::new();
        for record in records {
            let decoded = IngressRecord::decode(&record.payload).expect("it decodes").into_owned();
            let batch = self.apply(&decoded, mode);
            self.appended.lock().push((record.partition, decoded));
            results.push(Ok(Position(1)));
            if !batch.items.is_empty() {
                tokio::spawn(self.sink().deliver(batch));
            }
        }
        Box::pin(async move { results })
    }

    async fn bounds(&self, _: Topic, _: u32) -> Result<Bounds, LogError> {
        unimplemented()
    }

    async fn read_before(&self, _: Topic, _: u32, _: Position) -> Result<Option<LogRecord>, LogError> {
        unimplemented()
    }

    async fn consume(&self, _: Topic, _: &str) -> Result<Box<dyn Consumer>, LogError> {
        unimplemented()
    }

    async fn check(&self) -> Result<(), LogError> {
        Ok(())
    }
}

fn unimplemented() -> ! {
    panic!("a gateway does not ask for this")
}

#[async_trait]
impl Registry for World {
    async fn acquire(&self, gateway: &Endpoint, _: u64) -> Result<Renewal, RegistryError> {
        self.thaw().await;
        if *self.registry_mode.lock() == RegistryMode::Lost {
            // A new life is always welcome.
            *self.registry_mode.lock() = RegistryMode::Works;
        }
        self.registry(|| {
            self.acquired.lock().push(gateway.incarnation);
            self.writes.store(0, Ordering::Relaxed);
            self.registered.lock().clear();
            self.renewal()
        })
    }

    async fn renew(&self, _: &Endpoint, _: RegistryIncarnation, _: u64) -> Result<Renewal, RegistryError> {
        self.thaw().await;
        self.registry(|| self.renewal())
    }

    async fn complete(&self, _: Incarnation, _: RegistryIncarnation) -> Result<(), RegistryError> {
        self.registry(|| {
            self.completes.fetch_add(1, Ordering::Relaxed);
        })
    }

    async fn release(&self, _: Incarnation) -> Result<(), RegistryError> {
        self.registry(|| self.registered.lock().clear())
    }

    async fn register(&self, _: Incarnation, sessions: &[SessionEntry]) -> Result<u64, RegistryError> {
        self.thaw().await;
        self.registry(|| {
            self.registered.lock().extend(sessions.iter().map(|entry| (entry.session_id, *entry)));
            self.writes.fetch_add(1, Ordering::Relaxed) + 1
        })
    }

    async fn unregister(&self, _: Incarnation, sessions: &[SessionEntry]) -> Result<u64, RegistryError> {
        self.thaw().await;
        self.registry(|| {
            let mut registered = self.registered.lock();
            for entry in sessions {
                registered.remove(&entry.session_id);
            }
            self.writes.fetch_add(1, Ordering::Relaxed) + 1
        })
    }

    async fn locate(&self, _: &[UserId]) -> Result<Located, RegistryError> {
        unimplemented()
    }

    async fn allow(&self, _: &str, _: Rate) -> Result<RateDecision, RegistryError> {
        Ok(RateDecision::Allowed)
    }

    async fn check(&self) -> Result<(), RegistryError> {
        Ok(())
    }
}

#[async_trait]
impl Store for World {
    async fn epoch(&self) -> Result<Epoch, StoreError> {
        self.store()?;
        Ok(*self.epoch.lock())
    }

    async fn history(
        &self,
        _: UserId,
        conversation: ConversationId,
        range: HistoryRange,
        limit: u32,
    ) -> Result<Page, StoreError> {
        self.store()?;
        let conversations = self.conversations.lock();
        let messages = conversations.get(&conversation).ok_or(StoreError::NotFound)?;
        let after = match range {
            HistoryRange::After(seq) => seq,
            HistoryRange::Before(_) => 0,
        };
        let page: Vec<Message> =
            messages.iter().filter(|message| message.seq > after).take(limit as usize).cloned().collect();
        let to = page.last().map_or(after, |message| message.seq);
        let more = to < messages.len() as u64;
        Ok(Page { conversation_id: conversation, from: after + 1, to, messages: page, more, epoch: *self.epoch.lock() })
    }

    async fn heads(&self, _: UserId, since: Option<&str>, _: u32) -> Result<Heads, StoreError> {
        self.store()?;
        if since.is_some_and(|since| !since.starts_with("c:")) {
            return Err(StoreError::InvalidCursor);
        }
        let heads = self.conversations.lock();
        let conversations = heads
            .iter()
            .map(|(id, messages)| Head {
                conversation_id: *id,
                first_seq: Some(1),
                last_seq: messages.len() as u64,
                read_seq: Some(0),
                delivered_seq: Some(0),
            })
            .collect();
        Ok(Heads { conversations, next: Some("c:1".to_owned()), more: false, epoch: Some(*self.epoch.lock()) })
    }

    async fn put_gateway(&self, _: &Endpoint, _: TimeMs) -> Result<(), StoreError> {
        self.store()
    }

    async fn remove_gateway(&self, _: &Endpoint) -> Result<(), StoreError> {
        self.store()
    }

    async fn migrate(&self, _: &Migration) -> Result<(), StoreError> {
        unimplemented()
    }
    async fn check(&self) -> Result<(), StoreError> {
        self.store()
    }
    async fn partitions(&self, _: &str) -> Result<u32, StoreError> {
        unimplemented()
    }
    async fn claim(&self, _: &str, _: u32) -> Result<Claim, StoreError> {
        unimplemented()
    }
    async fn apply(&self, _: &ApplyBatch) -> Result<Applied, ApplyError> {
        unimplemented()
    }
    async fn replay(&self, _: &str, _: u32, _: &[Incoming]) -> Result<Vec<Replayed>, StoreError> {
        unimplemented()
    }
    async fn set_published(&self, _: &str, _: u32, _: u64, _: Position) -> Result<(), StoreError> {
        unimplemented()
    }
    async fn outcome(
        &self,
        _: ConversationId,
        _: UserId,
        _: ClientMsgId,
    ) -> Result<Option<VerdictOutcome>, StoreError> {
        unimplemented()
    }
    async fn conversations(
        &self,
        _: UserId,
        _: Option<ConversationId>,
        _: u32,
    ) -> Result<ConversationList, StoreError> {
        unimplemented()
    }
    async fn members(&self, _: ConversationId, _: Option<UserId>, _: u32) -> Result<MembersPage, StoreError> {
        unimplemented()
    }
    async fn create_account(&self, _: &Account) -> Result<(), StoreError> {
        unimplemented()
    }
    async fn account_by_name(&self, _: &str) -> Result<Account, StoreError> {
        unimplemented()
    }
    async fn account(&self, _: UserId) -> Result<Account, StoreError> {
        unimplemented()
    }
    async fn create_device(
        &self,
        _: UserId,
        _: DeviceId,
        _: &str,
        _: &NewRefreshToken,
        _: TimeMs,
    ) -> Result<(), StoreError> {
        unimplemented()
    }
    async fn rotate_refresh_token(&self, _: &[u8; 32], _: &NewRefreshToken, _: TimeMs) -> Result<Rotation, StoreError> {
        unimplemented()
    }
    async fn revoke_device(&self, _: UserId, _: DeviceId) -> Result<(), StoreError> {
        unimplemented()
    }
    async fn signing_keys(&self) -> Result<Vec<SigningKey>, StoreError> {
        self.key_loads.fetch_add(1, Ordering::Relaxed);
        self.store()?;
        Ok(self.keys.lock().clone())
    }
    async fn add_signing_key(&self, _: &SigningKey, _: TimeMs, _: TimeMs) -> Result<(), StoreError> {
        unimplemented()
    }
    async fn gateways(&self, _: TimeMs) -> Result<Vec<Endpoint>, StoreError> {
        Ok(Vec::new())
    }
}
