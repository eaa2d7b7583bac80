//! The Log over Kafka: an idempotent producer that is never waited for, and consumers of the classic group protocol
//! whose partitions start only where they are told to.
//!
//! Three things are this adapter's own business: density (a partition's offsets have no holes; one is reported as out of
//! range), the time-outs that keep a frozen worker from holding its partitions, and that nothing is ever reset.

mod config;
mod consumer;
mod consumer_thread;
mod log;
mod producer;
mod reader;
mod topics;

pub use config::{KafkaConfig, KafkaUrlError};
pub use log::{KafkaLog, PARTITIONS_DEFAULT};
