//! The producer: records go in line at the call, and what the brokers answer is counted.
//!
//! It speaks the protocol itself, because a request costs a broker as much for one record as for many: librdkafka sends
//! the records of one partition in each request, and this one what has come for all partitions that a broker leads.
//!
//! | file | decides |
//! |---|---|
//! | `line` | what goes to which broker, in which order, and again; without I/O |
//! | `wire` | how it looks |
//! | `link` | nothing: threads that send |

mod line;
mod link;
mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::FutureExt;
use parking_lot::Mutex;
use roost_ports::log::{AppendError, AppendFuture, LogError, NewRecord};
use roost_protocol::limits;
use tokio::sync::oneshot;

use crate::KafkaConfig;
use crate::config::{QUEUE_BYTES_MAX, QUEUE_RECORDS_MAX};
use line::{Answer, Waiting};
use link::Shared;

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

/// A record's place in its batch.
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

impl Ticket {
    fn settle(self, answer: Answer) {
        self.batch.settle(self.index, answer);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.in_line.records.fetch_sub(1, Ordering::AcqRel);
        self.in_line.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// Appends records, in the order of the calls.
pub(crate) struct Producer {
    shared: Arc<Shared>,
    in_line: Arc<InLine>,
}

impl Producer {
    pub(crate) fn new(config: &KafkaConfig) -> Result<Self, LogError> {
        let shared = Shared::start(&config.brokers).map_err(|error| LogError::Unavailable(error.to_string()))?;
        Ok(Self { shared, in_line: Arc::default() })
    }

    /// Patient records may wait a little for others to come.
    pub(crate) fn append(&self, topic: &str, patient: bool, records: Vec<NewRecord>) -> AppendFuture {
        if records.is_empty() {
            return std::future::ready(Vec::new()).boxed();
        }
        let (done, answers) = oneshot::channel();
        let batch = Arc::new(Batch {
            answers: Mutex::new(vec![Err(AppendError::Unknown("no report".into())); records.len()]),
            outstanding: AtomicUsize::new(records.len()),
            done: Mutex::new(Some(done)),
        });
        let count = records.len();
        self.shared.push(topic, patient, || self.enter(records, &batch));
        async move {
            answers.await.unwrap_or_else(|_| vec![Err(AppendError::Unknown("the producer ended".into())); count])
        }
        .boxed()
    }

    /// Those that have room, with their tickets; the others have their answer.
    fn enter(&self, records: Vec<NewRecord>, batch: &Arc<Batch>) -> Vec<(u32, Waiting<Ticket>)> {
        let fits = |record: &NewRecord| record.payload.len() <= limits::RECORD_BYTES_MAX;
        let (count, bytes) = records
            .iter()
            .filter(|record| fits(record))
            .fold((0, 0), |(count, bytes), record| (count + 1, bytes + record.payload.len()));
        let room = self.in_line.take(count, bytes);
        let mut entered = Vec::with_capacity(count);
        for (index, NewRecord { partition, payload }) in records.into_iter().enumerate() {
            if payload.len() > limits::RECORD_BYTES_MAX {
                batch.settle(index, Err(AppendError::TooLarge));
            } else if !room {
                batch.settle(index, Err(AppendError::Full));
            } else {
                let (batch, in_line) = (Arc::clone(batch), Arc::clone(&self.in_line));
                let ticket = Ticket { batch, index, bytes: payload.len(), in_line };
                entered.push((partition, Waiting { payload, ticket }));
            }
        }
        entered
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.shared.close();
    }
}
