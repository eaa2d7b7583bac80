//! The persist worker's hands: performs what the machine asks, with a fail point between every two steps.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{self, BoxFuture};
use roost_ports::log::{AppendError, LogError, NewRecord, Position, Topic};
use roost_ports::store::{ApplyBatch, ApplyError, StoreError};
use roost_ports::{Log, follow};
use tokio::sync::{Semaphore, oneshot};

use super::fail_points::{self, pass};
use super::machine::{ClaimFailure, Done, Effect, Machine};
use super::progress::Claimed;
use super::{Config, Ports};
use crate::consume::{self, Membership, Perform};
use crate::evidence::PersistEvidence;

/// Claims, replays and notes that run at once, so that they do not take the Store's connections from the lanes.
const SIDE_CALLS_MAX: usize = 4;
/// A batch of so many records is encoded in a task of its own. A smaller one is not worth the wake-ups of one.
const BATCH_WORTH_A_TASK: usize = 64;
const PARTITIONS_RETRY: Duration = Duration::from_secs(1);

/// Runs a worker until it is stopped.
pub(super) async fn run(config: Config, ports: Ports, evidence: Arc<PersistEvidence>, mut stop: oneshot::Receiver<()>) {
    let agreed = tokio::select! {
        () = partitions_agree(&ports) => true,
        _ = &mut stop => false,
    };
    if !agreed {
        return;
    }
    let log_id: Arc<str> = ports.log.log_id().into();
    let membership = Membership {
        log: Arc::clone(&ports.log),
        topic: Topic::Ingress,
        group: config.group.clone(),
        stop_ms_max: config.stop_ms_max,
    };
    let machine = Machine::new(config, &log_id, ports.log.partitions(), Arc::clone(&evidence));
    let side_calls = Arc::new(Semaphore::new(SIDE_CALLS_MAX));
    consume::run(machine, Driver { ports, log_id, evidence, side_calls }, membership, stop).await;
}

/// Waits until the Store answers and has as many partitions as the log: with another count a conversation would be
/// numbered in two places.
async fn partitions_agree(ports: &Ports) {
    let (log_id, in_log) = (ports.log.log_id(), ports.log.partitions());
    loop {
        match ports.store.partitions(log_id).await {
            Ok(in_store) if in_store == in_log => return,
            Ok(in_store) => tracing::error!(in_log, in_store, "the store is made for another number of partitions"),
            Err(error) => tracing::warn!(%error, "the store does not say how many partitions it has"),
        }
        tokio::time::sleep(PARTITIONS_RETRY).await;
    }
}

struct Driver {
    ports: Ports,
    log_id: Arc<str>,
    evidence: Arc<PersistEvidence>,
    side_calls: Arc<Semaphore>,
}

impl Perform<Machine> for Driver {
    fn perform(&self, effect: Effect) -> Option<BoxFuture<'static, Done>> {
        match effect {
            Effect::Claim { partition, generation } => Some(self.claim(partition, generation)),
            Effect::Replay { partition, generation, records } => Some(self.replay(partition, generation, records)),
            Effect::Apply { lane, transaction, batch } => Some(self.apply(lane, transaction, batch)),
            Effect::Publish { call, records } => Some(self.publish(call, records)),
            Effect::Verdicts(batches) => {
                self.tell(batches);
                None
            }
            Effect::SetPublished { partition, generation, epoch, published } => {
                Some(self.set_published(partition, generation, epoch, published))
            }
            Effect::Alarm { partition, text } => {
                tracing::error!(partition, text, "persist: a person has to look");
                None
            }
        }
    }
}

impl Driver {
    fn claim(&self, partition: u32, generation: u64) -> BoxFuture<'static, Done> {
        let (ports, log_id, side_calls) = (self.ports.clone(), Arc::clone(&self.log_id), Arc::clone(&self.side_calls));
        async move {
            let _turn = side_calls.acquire().await;
            let result = claim(&ports, &log_id, partition).await;
            Done::Claimed { partition, generation, result }
        }
        .boxed()
    }

    fn replay(
        &self,
        partition: u32,
        generation: u64,
        records: Vec<roost_ports::store::Incoming>,
    ) -> BoxFuture<'static, Done> {
        let (ports, log_id, side_calls) = (self.ports.clone(), Arc::clone(&self.log_id), Arc::clone(&self.side_calls));
        async move {
            let _turn = side_calls.acquire().await;
            pass(fail_points::BEFORE_REPLAY_LOOKUP);
            let result = ports.store.replay(&log_id, partition, &records).await;
            pass(fail_points::AFTER_REPLAY_LOOKUP);
            Done::Replayed { partition, generation, records, result }
        }
        .boxed()
    }

    fn apply(&self, lane: usize, transaction: u64, batch: Arc<ApplyBatch>) -> BoxFuture<'static, Done> {
        let store = Arc::clone(&self.ports.store);
        let records: usize = batch.parts.iter().map(|part| part.records.len()).sum();
        let apply = async move {
            pass(fail_points::BEFORE_APPLY);
            let result = store.apply(&batch).await;
            if result.is_ok() {
                pass(fail_points::AFTER_APPLY);
            }
            result
        };
        if records < BATCH_WORTH_A_TASK {
            let apply = AssertUnwindSafe(apply).catch_unwind();
            let panicked = |_| Err(ApplyError::Uncertain("the store has panicked".into()));
            return apply
                .map(move |result| Done::Applied { lane, transaction, result: result.unwrap_or_else(panicked) })
                .boxed();
        }
        // Lanes encode their rows beside one another.
        let applied = tokio::spawn(apply);
        async move {
            let result = applied.await.unwrap_or_else(|error| Err(ApplyError::Uncertain(error.to_string())));
            Done::Applied { lane, transaction, result }
        }
        .boxed()
    }

    fn tell(&self, batches: Vec<(roost_protocol::records::Endpoint, roost_ports::delivery::DeliveryBatch)>) {
        let sent: Vec<_> = batches
            .into_iter()
            .map(|(endpoint, batch)| {
                let count = batch.items.len() as u64;
                let sending = self.ports.delivery.send(&endpoint, batch);
                async move {
                    if let Err(error) = sending.await {
                        tracing::debug!(address = endpoint.address, %error, "verdicts did not arrive");
                        return count;
                    }
                    0
                }
            })
            .collect();
        pass(fail_points::AFTER_VERDICTS);
        let evidence = Arc::clone(&self.evidence);
        // Only counted: the worker is not woken for it.
        follow(async move {
            let lost: u64 = future::join_all(sent).await.into_iter().sum();
            evidence.verdicts_lost.add(lost);
        });
    }

    /// The *call* of the append puts the records in line, so it is made here and not in the future.
    fn publish(&self, call: u64, records: Vec<(Topic, NewRecord)>) -> BoxFuture<'static, Done> {
        pass(fail_points::BEFORE_PUBLISH);
        let topics: Vec<Topic> = records.iter().map(|&(topic, _)| topic).collect();
        let mut notices = Vec::new();
        let mut messages = Vec::with_capacity(records.len());
        for (topic, record) in records {
            if topic == Topic::Deliver { messages.push(record) } else { notices.push(record) }
        }
        let messages = append(self.ports.log.as_ref(), Topic::Deliver, messages);
        let notices = append(self.ports.log.as_ref(), Topic::DeadLetter, notices);
        pass(fail_points::AFTER_PUBLISH_CALL);
        async move {
            let (messages, notices) = future::join(messages, notices).await;
            pass(fail_points::AFTER_ACK);
            let (mut messages, mut notices) = (messages.into_iter(), notices.into_iter());
            let no_answer = || Err(AppendError::Unknown("no answer for the record".into()));
            let results = topics.into_iter().map(|topic| {
                let answers = if topic == Topic::Deliver { &mut messages } else { &mut notices };
                answers.next().unwrap_or_else(no_answer)
            });
            Done::Published { call, results: results.collect() }
        }
        .boxed()
    }

    fn set_published(
        &self,
        partition: u32,
        generation: u64,
        epoch: u64,
        published: Position,
    ) -> BoxFuture<'static, Done> {
        let (ports, log_id, side_calls) = (self.ports.clone(), Arc::clone(&self.log_id), Arc::clone(&self.side_calls));
        async move {
            let _turn = side_calls.acquire().await;
            pass(fail_points::BEFORE_SET_PUBLISHED);
            let result = ports.store.set_published(&log_id, partition, epoch, published).await;
            pass(fail_points::AFTER_SET_PUBLISHED);
            Done::Noted { partition, generation, published, result }
        }
        .boxed()
    }
}

fn append(
    log: &dyn Log,
    topic: Topic,
    records: Vec<NewRecord>,
) -> BoxFuture<'static, Vec<Result<Position, AppendError>>> {
    if records.is_empty() { future::ready(Vec::new()).boxed() } else { log.append(topic, records) }
}

async fn claim(ports: &Ports, log_id: &str, partition: u32) -> Result<Claimed, ClaimFailure> {
    pass(fail_points::BEFORE_CLAIM);
    let claim = ports.store.claim(log_id, partition).await.map_err(store_failure)?;
    pass(fail_points::AFTER_CLAIM);
    let bounds = ports.log.bounds(Topic::Ingress, partition).await.map_err(log_failure)?;
    let before = ports.log.read_before(Topic::Ingress, partition, claim.next).await.map_err(log_failure)?;
    Ok(Claimed { claim, bounds, before })
}

fn store_failure(error: StoreError) -> ClaimFailure {
    match error {
        StoreError::Unavailable(reason) => ClaimFailure::Unavailable(reason),
        other => ClaimFailure::Refused(format!("the partition cannot be claimed: {other}")),
    }
}

fn log_failure(error: LogError) -> ClaimFailure {
    match error {
        LogError::Unavailable(reason) => ClaimFailure::Unavailable(reason),
        LogError::Refused(reason) => ClaimFailure::Refused(reason),
    }
}
