//! How to reach Kafka: `kafka://host:port[,host:port…]/prefix?replication=3`.

use rdkafka::ClientConfig;
use roost_ports::log::Topic;

/// Why a Kafka URL is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}; write it as kafka://host:port[,host:port]/prefix")]
pub struct KafkaUrlError(String);

/// Which brokers, and which topics on them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KafkaConfig {
    /// `host:port`, comma-separated.
    pub brokers: String,
    /// Topics are named `<prefix>.ingress` and so on.
    pub prefix: String,
    /// Replicas of topics that `roost migrate` makes.
    pub replication: i32,
    /// A static group member, only where an operator asks for it.
    pub instance_id: Option<String>,
}

/// A member that is not heard of for so long loses its partitions. Every database time-out is below it.
const SESSION_TIMEOUT_MS: u32 = 10_000;
const HEARTBEAT_MS: u32 = 3_000;
/// Records and bytes that wait for the broker; beyond, appends are refused as full.
pub(crate) const QUEUE_RECORDS_MAX: usize = 200_000;
pub(crate) const QUEUE_BYTES_MAX: usize = 128 * 1024 * 1024;
/// What librdkafka itself would refuse at: above ours, so that a call is refused as a whole.
const LIBRARY_RECORDS_MAX: usize = QUEUE_RECORDS_MAX * 2;
const LIBRARY_KIB_MAX: usize = QUEUE_BYTES_MAX / 1024 * 2;

impl KafkaConfig {
    /// Reads the URL form.
    pub fn parse(url: &str) -> Result<Self, KafkaUrlError> {
        let rest = url.strip_prefix("kafka://").ok_or_else(|| KafkaUrlError("not a kafka:// address".into()))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (brokers, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if brokers.is_empty() || !brokers.split(',').all(|broker| broker.contains(':')) {
            return Err(KafkaUrlError("every broker needs a host and a port".into()));
        }
        let prefix = if prefix.is_empty() { "roost" } else { prefix };
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if prefix.len() > 200 || !prefix.chars().all(legal) {
            return Err(KafkaUrlError("a prefix is made of letters, digits, '.', '_' and '-'".into()));
        }
        let mut config = Self { brokers: brokers.into(), prefix: prefix.into(), replication: 1, instance_id: None };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("replication", value)) => {
                    config.replication = value
                        .parse()
                        .ok()
                        .filter(|&replicas| replicas >= 1)
                        .ok_or_else(|| KafkaUrlError("replication is a number of at least 1".into()))?;
                }
                Some(("instance_id", value)) => config.instance_id = Some(value.into()),
                _ => return Err(KafkaUrlError("the only options are replication and instance_id".into())),
            }
        }
        Ok(config)
    }

    /// The name of a topic in Kafka.
    pub fn topic(&self, topic: Topic) -> String {
        format!("{}.{}", self.prefix, topic.as_str())
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.brokers)
            .set("client.id", "roost")
            .set("socket.nagle.disable", "true")
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "1000")
            .set("topic.metadata.refresh.interval.ms", "30000");
        config
    }

    pub(crate) fn admin(&self) -> ClientConfig {
        self.client()
    }

    pub(crate) fn producer(&self) -> ClientConfig {
        let mut config = self.client();
        config
            .set("acks", "all")
            .set("enable.idempotence", "true")
            // What has arrived makes a batch: waiting for more only adds latency.
            .set("linger.ms", "0")
            // The gateway's own deadline answers `retry`; a record given up here could still land later.
            .set("message.timeout.ms", "0")
            .set("message.max.bytes", "1000000")
            .set("queue.buffering.max.messages", LIBRARY_RECORDS_MAX.to_string())
            .set("queue.buffering.max.kbytes", LIBRARY_KIB_MAX.to_string());
        config
    }

    pub(crate) fn consumer(&self, group: &str) -> ClientConfig {
        let mut config = self.client();
        config
            .set("group.id", format!("{}.{group}", self.prefix))
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", SESSION_TIMEOUT_MS.to_string())
            .set("heartbeat.interval.ms", HEARTBEAT_MS.to_string())
            .set("max.poll.interval.ms", "30000")
            // Nothing is ever reset: an offset that is not there is an event for the worker.
            .set("auto.offset.reset", "error")
            .set("enable.auto.commit", "true")
            .set("auto.commit.interval.ms", "1000")
            .set("enable.auto.offset.store", "false")
            .set("fetch.wait.max.ms", "500")
            .set("fetch.queue.backoff.ms", "5")
            .set("fetch.error.backoff.ms", "50")
            .set("queued.max.messages.kbytes", "32768")
            .set("enable.partition.eof", "false");
        if let Some(id) = &self.instance_id {
            config.set("group.instance.id", id);
        }
        config
    }

    pub(crate) fn reader(&self) -> ClientConfig {
        let mut config = self.client();
        config
            .set("group.id", format!("{}.reader", self.prefix))
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            .set("fetch.wait.max.ms", "20")
            .set("fetch.error.backoff.ms", "50")
            .set("queued.max.messages.kbytes", "1024");
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_brokers_and_prefix() {
        let config = KafkaConfig::parse("kafka://a:1,b:2/chat?replication=3").expect("a good address");
        assert_eq!((config.brokers.as_str(), config.prefix.as_str(), config.replication), ("a:1,b:2", "chat", 3));
        assert_eq!(config.topic(Topic::Ingress), "chat.ingress");
        assert_eq!(KafkaConfig::parse("kafka://a:1").expect("no prefix").prefix, "roost");
    }

    #[test]
    fn a_wrong_url_says_what_to_write() {
        for wrong in ["redis://a:1", "kafka://", "kafka://a", "kafka://a:1/x y", "kafka://a:1/x?replication=0"] {
            let error = KafkaConfig::parse(wrong).expect_err(wrong).to_string();
            assert!(error.contains("kafka://host:port"), "{error}");
        }
    }
}
