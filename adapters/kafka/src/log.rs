//! The Log port over Kafka.

use std::sync::Arc;

use async_trait::async_trait;
use roost_ports::Log;
use roost_ports::log::{AppendFuture, Bounds, Consumer, LogError, LogRecord, NewRecord, Position, Topic};

use crate::KafkaConfig;
use crate::consumer::GroupConsumer;
use crate::producer::Producer;
use crate::reader::Reader;
use crate::topics;

/// Partitions where nobody says another number. Each of them is a request of its own whenever something is in it; a topic
/// can be worked on by as many workers at once.
pub const PARTITIONS_DEFAULT: u32 = 12;

/// A Kafka cluster as Roost's log.
pub struct KafkaLog {
    config: KafkaConfig,
    log_id: String,
    partitions: u32,
    producer: Producer,
    reader: Arc<Reader>,
}

impl KafkaLog {
    /// Makes the topics that are missing, with this many partitions.
    pub async fn create_topics(config: &KafkaConfig, partitions: u32) -> Result<(), LogError> {
        topics::create(config, partitions).await
    }

    /// With how many partitions the topics were made; none where they are not there yet.
    pub async fn partitions_held(config: &KafkaConfig) -> Result<Option<u32>, LogError> {
        let config = config.clone();
        blocking(move || topics::held(&config)).await
    }

    /// Connects, and refuses topics that are missing or differ in their partition counts.
    pub async fn open(config: KafkaConfig) -> Result<Self, LogError> {
        let reader = Arc::new(Reader::new(&config)?);
        let partitions = {
            let (config, reader) = (config.clone(), reader.clone());
            blocking(move || reader.with_client(|client| topics::partitions(&config, client))).await?
        };
        let producer = Producer::new(&config)?;
        Ok(Self { log_id: Self::log_id_of(&config), config, partitions, producer, reader })
    }

    /// What the Store's progress rows call the log of this configuration.
    pub fn log_id_of(config: &KafkaConfig) -> String {
        format!("kafka:{}", config.prefix)
    }
}

#[async_trait]
impl Log for KafkaLog {
    fn log_id(&self) -> &str {
        &self.log_id
    }

    fn partitions(&self) -> u32 {
        self.partitions
    }

    fn append(&self, topic: Topic, records: Vec<NewRecord>) -> AppendFuture {
        self.producer.append(&self.config.topic(topic), records)
    }

    async fn bounds(&self, topic: Topic, partition: u32) -> Result<Bounds, LogError> {
        let (reader, topic, partition) = (self.reader.clone(), self.config.topic(topic), number(partition)?);
        blocking(move || reader.bounds(&topic, partition)).await
    }

    async fn read_before(&self, topic: Topic, partition: u32, at: Position) -> Result<Option<LogRecord>, LogError> {
        let (reader, topic, partition) = (self.reader.clone(), self.config.topic(topic), number(partition)?);
        blocking(move || reader.read_before(&topic, partition, at)).await
    }

    async fn consume(&self, topic: Topic, group: &str) -> Result<Box<dyn Consumer>, LogError> {
        Ok(Box::new(GroupConsumer::join(&self.config, self.config.topic(topic), group)?))
    }

    async fn check(&self) -> Result<(), LogError> {
        let (config, reader, expected) = (self.config.clone(), self.reader.clone(), self.partitions);
        let found = blocking(move || reader.with_client(|client| topics::partitions(&config, client))).await?;
        if found != expected {
            return Err(LogError::Refused(format!(
                "the topics have {found} partitions now, {expected} when this process started"
            )));
        }
        Ok(())
    }
}

fn number(partition: u32) -> Result<i32, LogError> {
    i32::try_from(partition).map_err(|_| LogError::Refused(format!("there is no partition {partition}")))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LogError> + Send + 'static,
) -> Result<T, LogError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| LogError::Unavailable(error.to_string()))?
}
