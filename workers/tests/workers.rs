//! The workers in real time over a log, a registry and a delivery in memory.

mod support;

use std::borrow::Cow;
use std::sync::Arc;

use roost_ports::delivery::{Audience, DeliveryError, DeliveryItem, VerdictOutcome};
use roost_ports::log::{NewRecord, Topic};
use roost_ports::registry::{GatewayEntry, Located, SessionEntry};
use roost_ports::store::{Account, Migration};
use roost_ports::{Log, Store, SystemClock};
use roost_protocol::frames::ConversationKind;
use roost_protocol::records::{Action, DeliverRecord, Endpoint, IngressRecord, Origin};
use roost_protocol::{ClientMsgId, ConversationId, DeviceId, Incarnation, SessionId, UserId, partition};
use roost_workers::fanout::settling::SettlingTimes;
use roost_workers::schedules::model::ModelStore;
use roost_workers::{fanout, persist};
use support::{MemoryLog, MemoryRegistry, PARTITIONS, RecordingDelivery, SharedLog, eventually};

/// A group of two and everything the workers need.
struct Place {
    log: Arc<MemoryLog>,
    shared: Arc<SharedLog>,
    store: Arc<ModelStore>,
    registry: Arc<MemoryRegistry>,
    delivery: Arc<RecordingDelivery>,
    members: Vec<UserId>,
    conversation: ConversationId,
    origin: Endpoint,
}

impl Place {
    async fn new() -> Self {
        let log = MemoryLog::new();
        let shared = Arc::new(SharedLog(Arc::clone(&log)));
        let store = Arc::new(ModelStore::default());
        let migration = Migration { log_id: "memory".into(), partitions: PARTITIONS };
        store.migrate(&migration).await.expect("migrated");
        let mut members = vec![UserId::new(), UserId::new()];
        members.sort_unstable();
        for &user_id in &members {
            let account = Account { user_id, name: user_id.to_string(), password_hash: String::new(), created: 1 };
            store.create_account(&account).await.expect("an account");
        }
        Self {
            log,
            shared,
            store,
            registry: Arc::default(),
            delivery: Arc::default(),
            members,
            conversation: ConversationId::new(),
            origin: Endpoint { address: "origin".into(), incarnation: Incarnation(99) },
        }
    }

    fn home(&self) -> u32 {
        partition::of(self.conversation, PARTITIONS)
    }

    fn persist(&self) -> persist::Handle {
        let (log, store, delivery) = (self.shared.clone(), self.store.clone(), self.delivery.clone());
        let config = persist::Config { note_after_ms: 20, ..persist::Config::default() };
        persist::Worker::start(config, persist::Ports { log, store, delivery })
    }

    fn fanout(&self) -> fanout::Handle {
        let config = fanout::Config {
            route_ms_max: 50,
            settling: SettlingTimes { after_ms: 150, after_ms_max: 500, again_ms: 50 },
            ..fanout::Config::default()
        };
        let ports = fanout::Ports {
            log: self.shared.clone(),
            store: self.store.clone(),
            registry: self.registry.clone(),
            delivery: self.delivery.clone(),
            clock: Arc::new(SystemClock::new()),
        };
        fanout::Worker::start(config, ports)
    }

    async fn ask(&self, request: u64, action: Action<'static>) {
        let record = IngressRecord {
            actor: self.members[0],
            device: DeviceId::new(),
            client_msg_id: ClientMsgId::new(),
            time: 5,
            origin: Some(Origin { endpoint: self.origin.clone(), session: None, request }),
            if_last_seq: None,
            action,
        };
        let record = NewRecord { partition: self.home(), payload: record.encode() };
        self.shared.append(Topic::Ingress, vec![record]).await;
    }

    async fn create(&self) {
        let (conversation_id, members) = (self.conversation, self.members.clone());
        let kind = ConversationKind::Group;
        self.ask(0, Action::Create { conversation_id, kind, title: None, members }).await;
    }

    async fn send(&self, request: u64) {
        let conversation_id = self.conversation;
        let (content_type, body) = (Cow::Borrowed("text/plain"), Cow::Borrowed(&b"hello"[..]));
        self.ask(request, Action::Send { conversation_id, content_type, body }).await;
    }

    /// (request, seq) of every verdict, in the order told.
    fn verdicts(&self) -> Vec<(u64, u64)> {
        let verdicts = self.delivery.items().into_iter().filter_map(|(_, item)| match item {
            DeliveryItem::Verdict(verdict) => match verdict.outcome {
                VerdictOutcome::Committed { seq, .. } => Some((verdict.request, seq)),
                VerdictOutcome::Rejected { .. } => Some((verdict.request, 0)),
            },
            _ => None,
        });
        verdicts.collect()
    }

    fn delivered(&self) -> Vec<u64> {
        let records = self.log.records(Topic::Deliver, self.home());
        let seqs = records.into_iter().map(|bytes| DeliverRecord::decode(bytes).expect("ours").message.seq);
        seqs.collect()
    }

    fn place_session(&self, member: usize, gateway: &Endpoint, slot: u32) -> SessionId {
        let session_id = SessionId::new(gateway.incarnation, 0, slot, 0);
        let entry = SessionEntry { user_id: self.members[member], device_id: DeviceId::new(), session_id };
        let mut located = self.registry.located.lock();
        located.sessions.push(entry);
        if !located.gateways.iter().any(|known| known.endpoint == *gateway) {
            located.gateways.push(GatewayEntry { endpoint: gateway.clone(), complete: true });
        }
        session_id
    }

    /// What a gateway was sent: ('m' or 'h', seq or 0, audience).
    fn at(&self, gateway: &Endpoint) -> Vec<(char, u64, Audience)> {
        let items = self.delivery.items().into_iter().filter(|(to, _)| to == gateway);
        let seen = items.filter_map(|(_, item)| match item {
            DeliveryItem::Message { audience, record } => {
                Some(('m', DeliverRecord::decode(record).expect("ours").message.seq, audience))
            }
            DeliveryItem::Heads { audience, last_seq, .. } => Some(('h', last_seq, audience)),
            DeliveryItem::SyncAll => Some(('s', 0, Audience::Everyone)),
            DeliveryItem::Verdict(_) => None,
        });
        seen.collect()
    }
}

fn gateway(number: u64) -> Endpoint {
    Endpoint { address: format!("gateway-{number}"), incarnation: Incarnation(number) }
}

fn sessions(of: &[SessionId]) -> Audience {
    Audience::Sessions(of.into())
}

#[tokio::test]
async fn what_is_sent_is_numbered_told_published_and_noted() {
    let place = Place::new().await;
    let worker = place.persist();
    place.create().await;
    for request in 1..=50 {
        place.send(request).await;
    }
    eventually("51 verdicts", || place.verdicts().len() == 51).await;
    assert_eq!(place.verdicts(), (0..=50).map(|request| (request, request + 1)).collect::<Vec<_>>());
    eventually("51 published", || place.delivered().len() == 51).await;
    assert_eq!(place.delivered(), (1..=51).collect::<Vec<u64>>());
    eventually("the group's position", || place.log.committed("persist", place.home()) == Some(51)).await;
    worker.stop().await;
    let claim = place.store.claim("memory", place.home()).await.expect("a claim");
    assert_eq!((claim.next.0, claim.published.0), (51, 51));
}

#[tokio::test]
async fn publishing_is_retried_in_order_and_verdicts_do_not_wait_for_it() {
    let place = Place::new().await;
    let worker = place.persist();
    place.log.fail_appends(4);
    place.create().await;
    place.send(1).await;
    eventually("the verdicts", || place.verdicts().len() == 2).await;
    eventually("published", || place.delivered().ends_with(&[1, 2])).await;
    assert!(worker.evidence().publish_retries.get() >= 1);
    worker.stop().await;
}

#[tokio::test]
async fn a_partition_goes_to_another_worker_and_back_without_a_hole() {
    let place = Place::new().await;
    let first = place.persist();
    place.create().await;
    let mut workers = vec![first];
    for request in 1..=200u64 {
        place.send(request).await;
        match request % 40 {
            10 => workers.push(place.persist()),
            30 => workers.remove(0).stop().await,
            _ => tokio::time::sleep(std::time::Duration::from_millis(1)).await,
        }
    }
    eventually("201 told", || {
        let mut told: Vec<_> = place.verdicts();
        told.sort_unstable();
        told.dedup();
        told == (0..=200).map(|request| (request, request + 1)).collect::<Vec<_>>()
    })
    .await;
    eventually("201 published", || {
        let mut published = place.delivered();
        published.sort_unstable();
        published.dedup();
        published == (1..=201).collect::<Vec<u64>>()
    })
    .await;
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test]
async fn a_log_that_lost_what_was_applied_is_refused() {
    let place = Place::new().await;
    let worker = place.persist();
    place.create().await;
    place.send(1).await;
    eventually("noted", || place.log.committed("persist", place.home()) == Some(2)).await;
    worker.stop().await;
    place.log.truncate(Topic::Ingress, place.home(), 3);
    place.send(2).await;
    place.send(3).await;
    let worker = place.persist();
    eventually("an alarm", || worker.evidence().alarms.get() == 1).await;
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    assert_eq!(place.verdicts().len(), 2, "nothing is skipped silently");
    worker.stop().await;
}

#[tokio::test]
async fn one_item_goes_to_each_gateway_that_holds_a_member() {
    let place = Place::new().await;
    let (one, two, none) = (gateway(1), gateway(2), gateway(3));
    let here = [place.place_session(0, &one, 1), place.place_session(1, &one, 2)];
    let there = place.place_session(1, &two, 1);
    place.registry.located.lock().gateways.push(GatewayEntry { endpoint: none.clone(), complete: true });
    let (persist, fanout) = (place.persist(), place.fanout());
    place.create().await;
    place.send(1).await;
    eventually("both messages at both", || place.at(&one).len() == 2 && place.at(&two).len() == 2).await;
    eventually("the position follows", || place.log.committed("fanout", place.home()) == Some(2)).await;
    assert_eq!(place.at(&one), [('m', 1, sessions(&here)), ('m', 2, sessions(&here))]);
    assert_eq!(place.at(&two), [('m', 1, sessions(&[there])), ('m', 2, sessions(&[there]))]);
    assert_eq!(place.at(&none), []);
    assert_eq!(fanout.evidence().settling_told.get(), 0);
    fanout.stop().await;
    persist.stop().await;
}

#[tokio::test]
async fn a_session_that_appears_unseen_is_told_by_the_settling() {
    let place = Place::new().await;
    let one = gateway(1);
    place.place_session(0, &one, 1);
    let (persist, fanout) = (place.persist(), place.fanout());
    place.create().await;
    eventually("the message", || place.at(&one).len() == 1).await;
    let late = place.place_session(1, &one, 2);
    eventually("heads", || place.at(&one).len() == 2).await;
    assert_eq!(place.at(&one)[1], ('h', 1, sessions(&[late])));
    eventually("the position follows", || place.log.committed("fanout", place.home()) == Some(1)).await;
    assert_eq!(place.at(&one).len(), 2, "told once");
    assert_eq!(fanout.evidence().settling_told.get(), 1);
    fanout.stop().await;
    persist.stop().await;
}

#[tokio::test]
async fn the_position_waits_for_a_gateway_that_does_not_acknowledge_until_its_lease_has_ended() {
    let place = Place::new().await;
    let one = gateway(1);
    place.place_session(0, &one, 1);
    place.delivery.answers.lock().insert(one.incarnation, DeliveryError::Unavailable("frozen".into()));
    let (persist, fanout) = (place.persist(), place.fanout());
    place.create().await;
    eventually("a failed batch", || fanout.evidence().batches_failed.get() >= 2).await;
    tokio::time::sleep(std::time::Duration::from_millis(400)).await;
    assert_eq!(place.log.committed("fanout", place.home()).unwrap_or(0), 0);
    *place.registry.located.lock() = Located::default();
    eventually("the position follows", || place.log.committed("fanout", place.home()) == Some(1)).await;
    fanout.stop().await;
    persist.stop().await;
}

#[tokio::test]
async fn without_the_registry_every_gateway_in_the_store_is_asked_by_user() {
    let place = Place::new().await;
    let one = gateway(1);
    place.store.put_gateway(&one, u64::MAX).await.expect("noted");
    *place.registry.away.lock() = true;
    let (persist, fanout) = (place.persist(), place.fanout());
    place.create().await;
    eventually("the message", || !place.at(&one).is_empty()).await;
    assert_eq!(place.at(&one)[0], ('m', 1, Audience::Users(place.members.clone().into())));
    eventually("the position follows", || place.log.committed("fanout", place.home()) == Some(1)).await;
    assert!(fanout.evidence().fallbacks.get() > 0);
    fanout.stop().await;
    persist.stop().await;
}

#[tokio::test]
async fn a_jump_over_lost_records_has_every_session_sync_before_the_position_moves() {
    let place = Place::new().await;
    let (one, frozen) = (gateway(1), gateway(2));
    place.place_session(0, &one, 1);
    let entry = GatewayEntry { endpoint: frozen.clone(), complete: true };
    place.registry.located.lock().gateways.push(entry);
    place.delivery.answers.lock().insert(frozen.incarnation, DeliveryError::Busy);
    let persist = place.persist();
    place.create().await;
    place.send(1).await;
    place.send(2).await;
    eventually("published", || place.delivered().len() == 3).await;
    place.log.truncate(Topic::Deliver, place.home(), 2);
    let fanout = place.fanout();
    eventually("sync", || place.at(&one).iter().any(|(kind, ..)| *kind == 's')).await;
    eventually("the rest", || place.at(&one).iter().any(|(kind, seq, _)| (*kind, *seq) == ('m', 3))).await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_eq!(place.log.committed("fanout", place.home()), None, "one gateway has not been told");
    place.delivery.answers.lock().clear();
    eventually("the position follows", || place.log.committed("fanout", place.home()) == Some(3)).await;
    assert_eq!(place.at(&frozen), [('s', 0, Audience::Everyone)]);
    fanout.stop().await;
    persist.stop().await;
}
