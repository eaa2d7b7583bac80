//! The topics: made by `roost migrate`, checked by everyone else, never changed.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use roost_ports::log::{LogError, Topic};

use crate::KafkaConfig;

const KNOWN_WITHIN: Duration = Duration::from_secs(20);
const ANSWER_WITHIN: Duration = Duration::from_secs(15);

/// Makes the topics that are missing.
pub(crate) async fn create(config: &KafkaConfig, partitions: u32) -> Result<(), LogError> {
    let admin: AdminClient<DefaultClientContext> = config.admin().create().map_err(unavailable)?;
    let count = i32::try_from(partitions).map_err(|_| LogError::Refused("too many partitions".into()))?;
    let names: Vec<String> = Topic::ALL.iter().map(|&topic| config.topic(topic)).collect();
    let min_isr = if config.replication >= 3 { "2" } else { "1" };
    let new: Vec<NewTopic<'_>> = names
        .iter()
        .map(|name| {
            NewTopic::new(name, count, TopicReplication::Fixed(config.replication))
                .set("cleanup.policy", "delete")
                .set("min.insync.replicas", min_isr)
                .set("unclean.leader.election.enable", "false")
        })
        .collect();
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(15)));
    for answer in admin.create_topics(&new, &options).await.map_err(unavailable)? {
        match answer {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((name, code)) => return Err(LogError::Refused(format!("topic {name} could not be made: {code}"))),
        }
    }
    until_known(config, partitions).await
}

/// The brokers answer before all of them know the new topics: waits until the topics can be used.
async fn until_known(config: &KafkaConfig, expected: u32) -> Result<(), LogError> {
    let deadline = tokio::time::Instant::now() + KNOWN_WITHIN;
    loop {
        let config = config.clone();
        let ask = move || {
            let client: BaseConsumer = config.reader().create().map_err(unavailable)?;
            partitions(&config, &client)
        };
        let found = tokio::task::spawn_blocking(ask).await.map_err(|error| LogError::Unavailable(error.to_string()))?;
        match found {
            Ok(found) if found == expected => return Ok(()),
            Ok(found) => {
                return Err(LogError::Refused(format!(
                    "the topics exist with {found} partitions, not {expected}; the count cannot be changed"
                )));
            }
            Err(error) if tokio::time::Instant::now() > deadline => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// The partition count that all topics share. Blocks: for a blocking thread.
pub(crate) fn partitions(config: &KafkaConfig, client: &BaseConsumer) -> Result<u32, LogError> {
    let mut found: Option<(String, usize)> = None;
    for topic in Topic::ALL {
        let name = config.topic(topic);
        let count = partitions_of(client, &name)?;
        if let Some((other, expected)) = &found
            && *expected != count
        {
            return Err(LogError::Refused(format!("topic {name} has {count} partitions but {other} has {expected}")));
        }
        found = Some((name, count));
    }
    let (_, count) = found.expect("there are topics");
    u32::try_from(count).map_err(|_| LogError::Refused("too many partitions".into()))
}

/// The partition count of the first topic, if it is there. Blocks: for a blocking thread.
pub(crate) fn held(config: &KafkaConfig) -> Result<Option<u32>, LogError> {
    let client: BaseConsumer = config.reader().create().map_err(unavailable)?;
    match partitions_of(&client, &config.topic(Topic::ALL[0])) {
        Ok(count) => Ok(u32::try_from(count).ok()),
        Err(LogError::Refused(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn partitions_of(client: &BaseConsumer, name: &str) -> Result<usize, LogError> {
    let metadata = client.fetch_metadata(Some(name), ANSWER_WITHIN).map_err(unavailable)?;
    let missing = || LogError::Refused(format!("topic {name} does not exist; run `roost migrate`"));
    let topic = metadata.topics().iter().find(|topic| topic.name() == name).ok_or_else(missing)?;
    match topic.error().map(RDKafkaErrorCode::from) {
        None if topic.partitions().iter().any(|partition| partition.leader() < 0) => {
            Err(LogError::Unavailable(format!("topic {name}: a partition has no leader")))
        }
        None if !topic.partitions().is_empty() => Ok(topic.partitions().len()),
        None | Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => Err(missing()),
        Some(code) => Err(LogError::Unavailable(format!("topic {name}: {code}"))),
    }
}

pub(crate) fn unavailable(error: KafkaError) -> LogError {
    LogError::Unavailable(error.to_string())
}
