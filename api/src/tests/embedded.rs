//! The same over the Store that the embedded composition has.

use std::sync::Arc;

use async_trait::async_trait;
use futures::FutureExt as _;
use parking_lot::Mutex;
use roost_embedded::store::SqliteStore;
use roost_ports::delivery::{DeliveryBatch, DeliveryItem, DeliverySink, Verdict};
use roost_ports::log::*;
use roost_ports::store::{ApplyBatch, Incoming, Migration, PartBatch, PartOutcome};
use roost_ports::{Log, Store};
use roost_protocol::digest;
use roost_protocol::frames::Page;
use roost_protocol::records::IngressRecord;
use serde_json::json;

use super::process::{Person, Process, config, new_id};
use super::world::World;
use crate::{Api, Ports, Probes};

/// A log whose records are applied to the Store before the append returns.
struct AppliedAtOnce {
    store: Arc<SqliteStore>,
    sink: Arc<Mutex<Option<Arc<dyn DeliverySink>>>>,
}

async fn apply(store: &dyn Store, sink: &dyn DeliverySink, record: NewRecord) -> Position {
    let claim = store.claim("memory", record.partition).await.expect("a claim");
    let content = IngressRecord::decode(&record.payload).expect("a record").into_owned();
    let (origin, client_msg_id) = (content.origin.clone().expect("an origin"), content.client_msg_id);
    let conversation_id = content.conversation_id();
    let incoming = Incoming {
        position: claim.next,
        next: Position(claim.next.0 + 1),
        digest: digest::of_record(&record.payload),
        content: Ok(content),
    };
    let part = PartBatch {
        partition: record.partition,
        epoch: claim.epoch,
        from: claim.next,
        published: claim.next,
        records: vec![incoming],
    };
    let applied = store.apply(&ApplyBatch { log_id: "memory".to_owned(), parts: vec![part] }).await.expect("applied");
    let PartOutcome::Applied(outcomes) = &applied.parts[0] else { panic!("ours") };
    let outcome = outcomes[0].verdict().expect("a verdict");
    let verdict = Verdict { session: None, request: origin.request, client_msg_id, conversation_id, outcome };
    sink.deliver(DeliveryBatch { items: vec![DeliveryItem::Verdict(verdict)] }).await.expect("delivered");
    claim.next
}

#[async_trait]
impl Log for AppliedAtOnce {
    fn log_id(&self) -> &str {
        "memory"
    }

    fn partitions(&self) -> u32 {
        48
    }

    fn append(&self, _: Topic, records: Vec<NewRecord>) -> AppendFuture {
        let (store, sink) = (Arc::clone(&self.store), self.sink.lock().clone().expect("a sink"));
        async move {
            let mut positions = Vec::new();
            for record in records {
                positions.push(Ok(apply(&*store, &*sink, record).await));
            }
            positions
        }
        .boxed()
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

async fn process(folder: &tempfile::TempDir) -> Process {
    let store = Arc::new(SqliteStore::open(&folder.path().join("store.db")).expect("a store"));
    store.migrate(&Migration { log_id: "memory".to_owned(), partitions: 48 }).await.expect("migrated");
    let sink = Arc::new(Mutex::new(None));
    let log = Arc::new(AppliedAtOnce { store: Arc::clone(&store), sink: Arc::clone(&sink) });
    let world = World::new();
    let ports = Ports { log, store, registry: world.clone(), clock: world.clone() };
    let api = Api::new(config(), ports, Probes::default());
    *sink.lock() = Some(api.sink());
    Process { api, world }
}

#[tokio::test]
async fn accounts_conversations_messages_and_keys_are_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let (alice, bob, conversation) = {
        let process = process(&folder).await;
        let (alice, bob) = (process.register("Zo\u{eb}").await, process.register("bobby").await);
        let taken = json!({"name": "ZO\u{cb}", "password": "correct horse"});
        process.post("/v1/accounts", "", taken).await.is(409);
        let conversation = process.direct(&alice, &bob).await;
        assert_eq!(process.direct(&bob, &alice).await, conversation);
        let body =
            json!({"client_msg_id": new_id(), "conversation_id": conversation, "text": "'; DROP TABLE messages"});
        let sent = process.post("/v1/messages", &alice.token, body.clone()).await.is(201).json();
        assert_eq!(process.post("/v1/messages", &alice.token, body).await.is(201).json(), sent);
        (alice, bob, conversation)
    };
    // Another life over the same file.
    let process = process(&folder).await;
    let path = format!("/v1/messages?conversation_id={conversation}&after=0");
    let page = process.get(&path, &bob.token).await;
    let page = Page::from_json(page.is(200).text.as_bytes()).expect("a page");
    assert_eq!(page.messages.iter().map(|message| message.seq).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(page.messages[1].body.as_ref(), b"'; DROP TABLE messages");
    let members = process.get(&format!("/v1/conversations/{conversation}/members"), &bob.token).await;
    assert_eq!(members.is(200).json()["members"].as_array().expect("a list").len(), 2);
    let list = process.get("/v1/conversations", &bob.token).await.is(200).json();
    assert_eq!(list["conversations"][0]["peer"], alice.user_id);
    assert_eq!(list["conversations"][0]["last_seq"], 2);
    let eve = process.register("eve").await;
    process.get(&path, &eve.token).await.is(404);
    process.get(&format!("/v1/conversations/{conversation}/members"), &eve.token).await.is(404);
    let first = alice.refresh_token;
    let renewed = process.post("/v1/tokens", "", json!({"refresh_token": first})).await;
    let renewed = Person::of(renewed.is(200));
    process.post("/v1/tokens", "", json!({"refresh_token": first})).await.is(401);
    process.post("/v1/tokens", "", json!({"refresh_token": renewed.refresh_token})).await.is(401);
    assert_eq!(process.get("/.well-known/jwks.json", "").await.json()["keys"].as_array().map(Vec::len), Some(1));
}
