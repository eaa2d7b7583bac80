//! The Log suite on a real Kafka.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use roost_kafka::{KafkaConfig, KafkaLog};
use roost_ports::Log;
use roost_ports::conformance::log::{LogHarness, PARTITIONS};
use roost_ports::log::{Position, Topic};

struct Harness {
    brokers: String,
}

impl Harness {
    async fn open(&self, prefix: &str) -> Arc<dyn Log> {
        let config = KafkaConfig::parse(&format!("kafka://{}/{prefix}", self.brokers)).expect("an address");
        Arc::new(KafkaLog::open(config).await.expect("the topics are there"))
    }
}

fn prefix_of(log: &Arc<dyn Log>) -> String {
    log.log_id().strip_prefix("kafka:").expect("a Kafka log").to_owned()
}

#[async_trait]
impl LogHarness for Harness {
    async fn make(&self) -> Arc<dyn Log> {
        let prefix = format!("suite-{}", uuid::Uuid::now_v7().simple());
        let config = KafkaConfig::parse(&format!("kafka://{}/{prefix}", self.brokers)).expect("an address");
        KafkaLog::create_topics(&config, PARTITIONS).await.expect("topics are made");
        self.open(&prefix).await
    }

    async fn reopen(&self, log: Arc<dyn Log>) -> Arc<dyn Log> {
        let prefix = prefix_of(&log);
        drop(log);
        self.open(&prefix).await
    }

    async fn trim(&self, log: &Arc<dyn Log>, topic: Topic, partition: u32, before: Position) -> bool {
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", &self.brokers).create().expect("an admin client");
        let name = format!("{}.{}", prefix_of(log), topic.as_str());
        let mut offsets = TopicPartitionList::new();
        let (partition, before) = (i32::try_from(partition).expect("small"), i64::try_from(before.0).expect("small"));
        offsets.add_partition_offset(&name, partition, Offset::Offset(before)).expect("an offset");
        let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(10)));
        admin.delete_records(&offsets, &options).await.expect("records are deleted");
        true
    }
}

async fn harness() -> Option<Harness> {
    let Ok(brokers) = std::env::var("ROOST_TEST_KAFKA") else {
        assert!(std::env::var_os("ROOST_REQUIRE_SERVERS").is_none(), "ROOST_TEST_KAFKA is not set");
        return None;
    };
    Some(Harness { brokers })
}

roost_ports::conformance_tests!(log, harness);
