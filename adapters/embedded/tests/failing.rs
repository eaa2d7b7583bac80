//! The wrappers that fail keep the promises that a test may lean on.

use std::collections::HashSet;
use std::sync::Arc;

use roost_embedded::delivery::LocalDelivery;
use roost_embedded::log::{Options, SqliteLog};
use roost_embedded::registry::MemoryRegistry;
use roost_ports::conformance::delivery::TestSink;
use roost_ports::conformance::failing::{FailingDelivery, FailingLog, FailingRegistry, Faults};
use roost_ports::conformance::log::{Reader, fresh_group, record};
use roost_ports::delivery::{DeliveryBatch, DeliveryError, DeliveryItem};
use roost_ports::log::{AppendError, StartAt, Topic};
use roost_ports::registry::RegistryError;
use roost_ports::{Delivery, DeliverySink, Log, Registry, SystemClock};
use roost_protocol::Incarnation;
use roost_protocol::records::Endpoint;

const SEEDS: u64 = 5;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_failing_log_acknowledges_is_there_and_what_it_refuses_is_not() {
    for seed in 0..SEEDS {
        let folder = tempfile::tempdir().expect("a folder");
        let inner = SqliteLog::open(&folder.path().join("log.db"), Options { partitions: 1, ..Options::default() });
        let faults = Faults::new(seed, 300);
        let log: Arc<dyn Log> = FailingLog::new(inner.expect("the log opens"), faults.clone());
        let (mut acknowledged, mut refused) = (HashSet::new(), HashSet::new());
        for number in 0..200 {
            let text = format!("{number}");
            match log.append(Topic::Ingress, vec![record(0, &text)]).await.remove(0) {
                Ok(_) => drop(acknowledged.insert(text)),
                Err(AppendError::Full) => drop(refused.insert(text)),
                Err(AppendError::Unknown(_)) => {}
                Err(AppendError::TooLarge) => panic!("{text} is not too large"),
            }
        }
        assert!(faults.injected() > 20 && !refused.is_empty(), "seed {seed} has shown nothing");
        faults.set_per_mille(0);
        let mut reader = Reader::join(&log, Topic::Ingress, &fresh_group(), Some(StartAt::Committed)).await;
        faults.set_per_mille(300);
        let end = loop {
            if let Ok(bounds) = log.bounds(Topic::Ingress, 0).await {
                break bounds.end.0 as usize;
            }
        };
        faults.heal();
        reader.until_read(0, end).await;
        let read: HashSet<String> = reader.texts(0).into_iter().collect();
        assert!(acknowledged.is_subset(&read) && refused.is_disjoint(&read), "seed {seed}");
        assert!(read.len() > acknowledged.len(), "seed {seed}: no unacknowledged append has landed");
    }
}

#[tokio::test]
async fn a_failing_delivery_never_acknowledges_what_it_lost() {
    for seed in 0..SEEDS {
        let (local, sink, faults) = (Arc::new(LocalDelivery::new()), TestSink::open(), Faults::new(seed, 500));
        local.attach(sink.clone());
        let to = Endpoint { address: String::new(), incarnation: sink.incarnation() };
        let delivery = FailingDelivery::new(local, faults.clone());
        let (mut acknowledged, mut busy) = (0, 0);
        for _ in 0..100 {
            match delivery.send(&to, DeliveryBatch { items: vec![DeliveryItem::SyncAll] }).await {
                Ok(()) => acknowledged += 1,
                Err(DeliveryError::Busy) => busy += 1,
                Err(DeliveryError::Unavailable(_)) => {}
                Err(DeliveryError::Gone) => panic!("nobody is gone"),
            }
        }
        assert!(faults.injected() > 20 && busy > 0, "seed {seed} has shown nothing");
        assert!(sink.count() > acknowledged && sink.count() <= 100 - busy, "seed {seed}");
    }
}

#[tokio::test]
async fn a_failing_registry_fails_before_or_after_the_effect() {
    let faults = Faults::new(1, 0);
    let inner: Arc<dyn Registry> = Arc::new(MemoryRegistry::new(Arc::new(SystemClock::new())));
    let registry = FailingRegistry::new(Arc::clone(&inner), faults.clone());
    let gateway = Endpoint { address: String::new(), incarnation: Incarnation::new() };
    registry.acquire(&gateway, 600_000).await.expect("nothing fails at a rate of 0");
    faults.set_per_mille(1000);
    for _ in 0..50 {
        assert!(matches!(registry.register(gateway.incarnation, &[]).await, Err(RegistryError::Unavailable(_))));
    }
    let counted = inner.register(gateway.incarnation, &[]).await.expect("the inner one does not fail") - 1;
    assert!((1..50).contains(&counted), "{counted} of 50 had their effect");
    assert_eq!(faults.injected(), 50);
}
