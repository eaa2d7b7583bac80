//! A member of a Kafka consumer group, as the port sees it: commands go to the polling thread, events come from it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;

use async_trait::async_trait;
use parking_lot::Mutex;
use roost_ports::log::{Assignment, Consumer, ConsumerEvent, LogError, Position, StartAt};
use tokio::sync::mpsc;

use crate::KafkaConfig;
use crate::consumer_thread::{self, Command, Commits, Start, Tagged};

/// Commands that may wait for the polling thread, which takes them every few milliseconds.
const COMMANDS_WAITING_MAX: usize = 4_096;
/// Events that may wait for the reader before the polling thread pauses its partitions.
const EVENTS_WAITING_MAX: usize = 64;

pub(crate) struct GroupConsumer {
    commands: std_mpsc::SyncSender<Command>,
    commits: Arc<Mutex<Commits>>,
    events: mpsc::Receiver<Result<Tagged, LogError>>,
    /// Which start of each partition counts: what an earlier one brought is dropped on its way.
    started: BTreeMap<u32, Start>,
    starts: u64,
    ended: Option<std::thread::JoinHandle<()>>,
}

impl GroupConsumer {
    pub(crate) fn join(config: &KafkaConfig, topic: String, group: &str) -> Result<Self, LogError> {
        let (commands, received) = std_mpsc::sync_channel(COMMANDS_WAITING_MAX);
        let commits = Arc::new(Mutex::new(Commits::new()));
        let (sender, events) = mpsc::channel(EVENTS_WAITING_MAX);
        let ended = consumer_thread::spawn(config, topic, group, received, commits.clone(), sender)?;
        Ok(Self { commands, commits, events, started: BTreeMap::new(), starts: 0, ended: Some(ended) })
    }

    fn counts(&self, tagged: &Tagged) -> bool {
        match &tagged.event {
            ConsumerEvent::Records { partition, .. } | ConsumerEvent::OutOfRange { partition, .. } => {
                self.started.get(partition) == Some(&tagged.start)
            }
            ConsumerEvent::Assigned(..) | ConsumerEvent::Revoked(_) => true,
        }
    }

    fn command(&self, command: Command) {
        // The thread ends only after this side does.
        let _ = self.commands.send(command);
    }
}

#[async_trait]
impl Consumer for GroupConsumer {
    async fn next(&mut self) -> Result<ConsumerEvent, LogError> {
        loop {
            let tagged = match self.events.recv().await {
                Some(tagged) => tagged?,
                None => return Err(LogError::Unavailable("the polling thread has ended".into())),
            };
            if self.counts(&tagged) {
                return Ok(tagged.event);
            }
        }
    }

    fn start(&mut self, partition: u32, assignment: Assignment, at: StartAt) -> Result<(), LogError> {
        self.starts += 1;
        let start = Start(self.starts);
        self.started.insert(partition, start);
        self.command(Command::Start { partition, assignment, at, start });
        Ok(())
    }

    fn stop(&mut self, partition: u32) {
        self.started.remove(&partition);
        self.command(Command::Stop { partition });
    }

    fn commit(&mut self, partition: u32, assignment: Assignment, next: Position) {
        // Only the newest counts, however many there are between two looks of the thread.
        self.commits.lock().insert(partition, (assignment, next));
    }

    async fn close(mut self: Box<Self>) {
        self.command(Command::Close);
        self.events.close();
        if let Some(thread) = self.ended.take() {
            // librdkafka has been seen to hang here: wait off the runtime, and not for ever.
            let joined = tokio::task::spawn_blocking(move || thread.join());
            if tokio::time::timeout(std::time::Duration::from_secs(5), joined).await.is_err() {
                tracing::warn!("the kafka consumer did not leave its group in time");
            }
        }
    }
}

impl Drop for GroupConsumer {
    fn drop(&mut self) {
        self.command(Command::Close);
    }
}
