//! The producer: records go in line at the call, their delivery reports are counted, and it is replaced after a fatal
//! error.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::FutureExt;
use parking_lot::{Mutex, RwLock};
use rdkafka::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use roost_ports::log::{AppendError, AppendFuture, LogError, NewRecord, Position};
use roost_protocol::limits;
use tokio::sync::oneshot;

use crate::KafkaConfig;
use crate::config::{QUEUE_BYTES_MAX, QUEUE_RECORDS_MAX};

type Answer = Result<Position, AppendError>;

/// One call of append, shared by the delivery reports of its records.
struct Batch {
    answers: Mutex<Vec<Answer>>,
    outstanding: AtomicUsize,
    done: Mutex<Option<oneshot::Sender<Vec<Answer>>>>,
}

impl Batch {
    fn settle(&self, index: usize, answer: Answer) {
        self.answers.lock()[index] = answer;
        if self.outstanding.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(done) = self.done.lock().take()
        {
            // A caller that no longer waits is no error: the records stay in line.
            let _ = done.send(std::mem::take(&mut *self.answers.lock()));
        }
    }
}

/// A record's place in its batch, carried through librdkafka.
struct Ticket {
    batch: Arc<Batch>,
    index: usize,
    /// Its share of what is in line, given back with its report.
    bytes: usize,
    in_line: Arc<InLine>,
}

/// What waits for its report, over all producers of this log.
#[derive(Default)]
struct InLine {
    records: AtomicUsize,
    bytes: AtomicUsize,
}

impl InLine {
    /// Takes room for a whole call, or none: a call that is half in line would answer late, and what comes after it
    /// could overtake. Called under the lock of the line, so that only reports change the figures meanwhile.
    fn take(&self, records: usize, bytes: usize) -> bool {
        let fits = self.records.load(Ordering::Acquire) + records <= QUEUE_RECORDS_MAX
            && self.bytes.load(Ordering::Acquire) + bytes <= QUEUE_BYTES_MAX;
        if fits {
            self.records.fetch_add(records, Ordering::AcqRel);
            self.bytes.fetch_add(bytes, Ordering::AcqRel);
        }
        fits
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.in_line.records.fetch_sub(1, Ordering::AcqRel);
        self.in_line.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

struct Reports;

impl ClientContext for Reports {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(%error, reason, "kafka producer");
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Ticket>;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: Box<Ticket>) {
        let answer = match result {
            Ok(message) => Ok(Position(u64::try_from(message.offset()).unwrap_or(0))),
            Err((error, _)) => Err(append_error(error)),
        };
        ticket.batch.settle(ticket.index, answer);
    }
}

/// Appends records, in the order of the calls.
pub(crate) struct Producer {
    config: KafkaConfig,
    current: RwLock<Arc<ThreadedProducer<Reports>>>,
    /// Makes the order of calls the order in the queue, also across threads.
    line: Mutex<()>,
    in_line: Arc<InLine>,
}

impl Producer {
    pub(crate) fn new(config: &KafkaConfig) -> Result<Self, LogError> {
        Ok(Self {
            config: config.clone(),
            current: RwLock::new(Arc::new(create(config)?)),
            line: Mutex::new(()),
            in_line: Arc::default(),
        })
    }

    pub(crate) fn append(&self, topic: &str, records: Vec<NewRecord>) -> AppendFuture {
        if records.is_empty() {
            return std::future::ready(Vec::new()).boxed();
        }
        self.replace_after_fatal_error();
        let (done, answers) = oneshot::channel();
        let batch = Arc::new(Batch {
            answers: Mutex::new(vec![Err(AppendError::Unknown("no report".into())); records.len()]),
            outstanding: AtomicUsize::new(records.len()),
            done: Mutex::new(Some(done)),
        });
        let count = records.len();
        self.enqueue(topic, records, &batch);
        async move {
            answers.await.unwrap_or_else(|_| vec![Err(AppendError::Unknown("the producer ended".into())); count])
        }
        .boxed()
    }

    fn enqueue(&self, topic: &str, records: Vec<NewRecord>, batch: &Arc<Batch>) {
        let producer = self.current.read().clone();
        let _line = self.line.lock();
        let fits = |record: &NewRecord| record.payload.len() <= limits::RECORD_BYTES_MAX;
        let (count, bytes) = records
            .iter()
            .filter(|record| fits(record))
            .fold((0, 0), |(count, bytes), record| (count + 1, bytes + record.payload.len()));
        let room = self.in_line.take(count, bytes);
        for (index, record) in records.into_iter().enumerate() {
            if !fits(&record) {
                batch.settle(index, Err(AppendError::TooLarge));
                continue;
            }
            if !room {
                batch.settle(index, Err(AppendError::Full));
                continue;
            }
            let ticket =
                Ticket { batch: batch.clone(), index, bytes: record.payload.len(), in_line: self.in_line.clone() };
            let base = BaseRecord::<(), [u8], Box<Ticket>>::with_opaque_to(topic, Box::new(ticket))
                .partition(i32::try_from(record.partition).unwrap_or(i32::MAX))
                .payload(&record.payload);
            if let Err((error, _)) = producer.send(base) {
                batch.settle(index, Err(append_error(&error)));
            }
        }
    }

    /// An idempotent producer that has met a fatal error sends nothing any more. What it had in line is reported as
    /// unknown; whoever appended it decides.
    fn replace_after_fatal_error(&self) {
        let failed = self.current.read().clone();
        let Some((code, reason)) = failed.client().fatal_error() else { return };
        let mut current = self.current.write();
        if Arc::ptr_eq(&failed, &current) {
            match create(&self.config) {
                Ok(new) => {
                    tracing::error!(%code, reason, "the kafka producer met a fatal error and was replaced");
                    *current = Arc::new(new);
                }
                Err(error) => tracing::error!(%error, "no new kafka producer could be made"),
            }
        }
    }
}

fn create(config: &KafkaConfig) -> Result<ThreadedProducer<Reports>, LogError> {
    config.producer().create_with_context(Reports).map_err(|error| LogError::Unavailable(error.to_string()))
}

fn append_error(error: &KafkaError) -> AppendError {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::QueueFull) => AppendError::Full,
        Some(RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize) => AppendError::TooLarge,
        _ => AppendError::Unknown(error.to_string()),
    }
}
