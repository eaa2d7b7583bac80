//! Reads single records and bounds outside any group, for claims.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use roost_ports::log::{Bounds, LogError, LogRecord, Position};

use crate::KafkaConfig;
use crate::topics::unavailable;

const ANSWER_WITHIN: Duration = Duration::from_secs(15);

/// A consumer without a group. All methods block: for a blocking thread.
pub(crate) struct Reader {
    client: Mutex<BaseConsumer>,
}

impl Reader {
    pub(crate) fn new(config: &KafkaConfig) -> Result<Self, LogError> {
        Ok(Self { client: Mutex::new(config.reader().create().map_err(unavailable)?) })
    }

    /// Runs something that needs a client.
    pub(crate) fn with_client<T>(&self, work: impl FnOnce(&BaseConsumer) -> T) -> T {
        work(&self.client.lock())
    }

    pub(crate) fn bounds(&self, topic: &str, partition: i32) -> Result<Bounds, LogError> {
        bounds(&self.client.lock(), topic, partition)
    }

    /// The record right before `at`: its offset is `at - 1`, because offsets are dense.
    pub(crate) fn read_before(&self, topic: &str, partition: i32, at: Position) -> Result<Option<LogRecord>, LogError> {
        let client = self.client.lock();
        let bounds = bounds(&client, topic, partition)?;
        let last = at.min(bounds.end);
        if last <= bounds.begin {
            return Ok(None);
        }
        let offset = offset_of(last) - 1;
        let mut wanted = TopicPartitionList::new();
        wanted.add_partition_offset(topic, partition, Offset::Offset(offset)).map_err(unavailable)?;
        client.assign(&wanted).map_err(unavailable)?;
        let found = poll_for(&client, partition, offset);
        client.assign(&TopicPartitionList::new()).map_err(unavailable)?;
        found.map(Some)
    }
}

fn poll_for(client: &BaseConsumer, partition: i32, offset: i64) -> Result<LogRecord, LogError> {
    let deadline = Instant::now() + ANSWER_WITHIN;
    while Instant::now() < deadline {
        match client.poll(Duration::from_millis(100)) {
            // What an earlier assignment had under way may still arrive.
            Some(Ok(message)) if message.partition() == partition && message.offset() == offset => {
                return Ok(record(&message));
            }
            Some(Err(error)) => tracing::debug!(%error, partition, offset, "reading one record"),
            Some(Ok(_)) | None => {}
        }
    }
    Err(LogError::Unavailable(format!("no answer for offset {offset} of partition {partition}")))
}

pub(crate) fn record(message: &impl Message) -> LogRecord {
    let offset = u64::try_from(message.offset()).unwrap_or(0);
    LogRecord {
        position: Position(offset),
        next: Position(offset + 1),
        payload: bytes::Bytes::copy_from_slice(message.payload().unwrap_or_default()),
    }
}

pub(crate) fn offset_of(position: Position) -> i64 {
    i64::try_from(position.0).unwrap_or(i64::MAX)
}

pub(crate) fn bounds<C: rdkafka::consumer::ConsumerContext>(
    client: &BaseConsumer<C>,
    topic: &str,
    partition: i32,
) -> Result<Bounds, LogError> {
    let (begin, end) = client.fetch_watermarks(topic, partition, ANSWER_WITHIN).map_err(unavailable)?;
    let position = |offset: i64| Position(u64::try_from(offset).unwrap_or(0));
    Ok(Bounds { begin: position(begin), end: position(end) })
}
