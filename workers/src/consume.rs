//! What persist and fan-out share: a bounded intake per partition, and the loop that drives a machine from a consumer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use futures::{FutureExt, pin_mut};
use roost_ports::log::{Assignment, ConsumerEvent, LogError, LogRecord, Position, StartAt, Topic};
use roost_ports::{Consumer, Log};
use tokio::sync::oneshot;
use tokio::time::Instant;

/// What a machine asks of the consumer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConsumerCommand {
    /// Start or restart a partition.
    Start {
        /// Which.
        partition: u32,
        /// Under which assignment.
        assignment: Assignment,
        /// Where.
        at: StartAt,
    },
    /// Stop a partition without leaving it.
    Stop {
        /// Which.
        partition: u32,
    },
    /// Note the group's position.
    Commit {
        /// Which.
        partition: u32,
        /// Under which assignment.
        assignment: Assignment,
        /// Everything before it is dealt with.
        next: Position,
    },
}

/// What a machine wants done next.
#[derive(Debug)]
pub enum Step<Effect> {
    /// By the consumer.
    Consumer(ConsumerCommand),
    /// By the driver; its outcome comes back as an event.
    Work(Effect),
}

/// A worker's decisions, without I/O and without a clock.
///
/// Handlers: [`on_event`](Self::on_event), [`on_done`](Self::on_done), [`stop`](Self::stop). Polls, in this order after
/// any handler and whenever the deadline has passed: [`poll_step`](Self::poll_step) until it has nothing more, then
/// [`deadline`](Self::deadline).
pub trait Machine: Send + 'static {
    /// What it asks the driver to do.
    type Effect: Send;
    /// What comes back.
    type Done: Send;

    /// The consumer has told something.
    fn on_event(&mut self, event: ConsumerEvent, now_ms: u64);

    /// An effect has been performed.
    fn on_done(&mut self, done: Self::Done, now_ms: u64);

    /// Begin nothing new; finish what runs.
    fn stop(&mut self, now_ms: u64);

    /// Whether nothing runs any more; asked after [`stop`](Self::stop).
    fn is_settled(&self) -> bool;

    /// What to do next.
    fn poll_step(&mut self, now_ms: u64) -> Option<Step<Self::Effect>>;

    /// When [`poll_step`](Self::poll_step) may have something to do without any event; asked when it had nothing more.
    fn deadline(&self) -> Option<u64>;
}

/// Performs a machine's effects.
pub trait Perform<M: Machine>: Send + Sync + 'static {
    /// Begins an effect, in the order of the calls; the future brings back what became of it. None where nothing comes
    /// back, or comes back by itself, as [`Perform::take_landed`] says.
    fn perform(&self, effect: M::Effect) -> Option<BoxFuture<'static, M::Done>>;

    /// What has come back by itself. It is asked for at every turn, so that nobody is woken for what can wait; and some
    /// time after a turn that left something on its way.
    fn take_landed(&self) -> Vec<M::Done> {
        Vec::new()
    }

    /// Whether something on its way comes back by itself.
    fn awaits_landing(&self) -> bool {
        false
    }

    /// Resolves when something has come back by itself that cannot wait. Cancel-safe.
    fn landed_badly(&self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }
}

/// Which consumer group a worker joins.
pub struct Membership {
    /// The log.
    pub log: Arc<dyn Log>,
    /// The topic.
    pub topic: Topic,
    /// The group.
    pub group: String,
    /// How long a stopping worker may take to finish what runs.
    pub stop_ms_max: u64,
}

/// How many events that are ready already are taken before the machine decides: what has arrived goes into one batch.
const EVENTS_AT_ONCE_MAX: usize = 64;
/// What is armed where nothing is due.
const FAR: Duration = Duration::from_secs(3600);
const LOG_BACKOFF: Duration = Duration::from_millis(500);
/// What comes back by itself is looked for after this time where no turn comes before.
const LANDING_WAIT: Duration = Duration::from_millis(50);

/// Runs a machine until `stop` resolves (or its sender is dropped) and it has settled; then leaves the group.
pub async fn run<M: Machine>(
    mut machine: M,
    performer: impl Perform<M>,
    membership: Membership,
    mut stop: oneshot::Receiver<()>,
) {
    let Some(mut consumer) = join(&membership, &mut stop).await else { return };
    let began = Instant::now();
    let now_ms = || u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let mut work: FuturesUnordered<BoxFuture<'static, M::Done>> = FuturesUnordered::new();
    let mut consumer_rests_until: Option<Instant> = None;
    let mut stop_by: Option<Instant> = None;
    let sleep = tokio::time::sleep(FAR);
    pin_mut!(sleep);
    let mut armed: Option<Instant> = None;
    loop {
        for done in performer.take_landed() {
            machine.on_done(done, now_ms());
        }
        while let Some(step) = machine.poll_step(now_ms()) {
            match step {
                Step::Consumer(command) => obey(consumer.as_mut(), command),
                Step::Work(effect) => work.extend(performer.perform(effect)),
            }
        }
        if stop_by.is_some_and(|by| machine.is_settled() || Instant::now() >= by) {
            break;
        }
        let due = machine.deadline().map(|at| began + Duration::from_millis(at));
        let landing = performer.awaits_landing().then(|| Instant::now() + LANDING_WAIT);
        let wake = [due, stop_by, consumer_rests_until, landing].into_iter().flatten().min();
        // Armed too early it wakes once for nothing; to arm it at every turn would cost more.
        if armed.is_none() || wake.is_some_and(|wake| armed.is_some_and(|armed| wake < armed)) {
            let at = wake.unwrap_or_else(|| Instant::now() + FAR);
            sleep.as_mut().reset(at);
            armed = Some(at);
        }
        tokio::select! {
            event = consumer.next(), if consumer_rests_until.is_none() => {
                let failed = take_events(&mut machine, consumer.as_mut(), event, now_ms()).is_err();
                consumer_rests_until = failed.then(|| Instant::now() + LOG_BACKOFF);
            }
            Some(done) = work.next(), if !work.is_empty() => {
                let mut next = Some(done);
                while let Some(done) = next {
                    machine.on_done(done, now_ms());
                    next = work.next().now_or_never().flatten();
                }
            }
            () = performer.landed_badly() => {}
            () = &mut sleep => {
                armed = None;
                if consumer_rests_until.is_some_and(|until| Instant::now() >= until) {
                    consumer_rests_until = None;
                }
            }
            _ = &mut stop, if stop_by.is_none() => {
                machine.stop(now_ms());
                stop_by = Some(Instant::now() + Duration::from_millis(membership.stop_ms_max));
            }
        }
    }
    consumer.close().await;
}

async fn join(membership: &Membership, stop: &mut oneshot::Receiver<()>) -> Option<Box<dyn Consumer>> {
    loop {
        let joined = tokio::select! {
            joined = membership.log.consume(membership.topic, &membership.group) => joined,
            _ = &mut *stop => return None,
        };
        match joined {
            Ok(consumer) => return Some(consumer),
            Err(error) => report(membership.topic.as_str(), &error),
        }
        tokio::select! {
            () = tokio::time::sleep(LOG_BACKOFF) => {}
            _ = &mut *stop => return None,
        }
    }
}

fn take_events<M: Machine>(
    machine: &mut M,
    consumer: &mut dyn Consumer,
    first: Result<ConsumerEvent, LogError>,
    now_ms: u64,
) -> Result<(), LogError> {
    let mut next = Some(first);
    for _ in 0..EVENTS_AT_ONCE_MAX {
        match next {
            Some(Ok(event)) => machine.on_event(event, now_ms),
            Some(Err(error)) => {
                report("consumer", &error);
                return Err(error);
            }
            None => break,
        }
        next = consumer.next().now_or_never();
    }
    // An event that was taken in the last round is not lost.
    match next {
        Some(Ok(event)) => machine.on_event(event, now_ms),
        Some(Err(error)) => {
            report("consumer", &error);
            return Err(error);
        }
        None => {}
    }
    Ok(())
}

fn obey(consumer: &mut dyn Consumer, command: ConsumerCommand) {
    match command {
        ConsumerCommand::Start { partition, assignment, at } => {
            if let Err(error) = consumer.start(partition, assignment, at) {
                tracing::warn!(partition, %error, "a partition did not start");
            }
        }
        ConsumerCommand::Stop { partition } => consumer.stop(partition),
        ConsumerCommand::Commit { partition, assignment, next } => consumer.commit(partition, assignment, next),
    }
}

fn report(what: &str, error: &LogError) {
    match error {
        LogError::Unavailable(_) => tracing::warn!(what, %error, "trying again"),
        LogError::Refused(_) => tracing::error!(what, %error, "trying again; a person has to act"),
    }
}

/// A waiting time that doubles with every failure in a row, the first one being number 1.
pub fn backoff_ms(failures: u32, first_ms: u64, max_ms: u64) -> u64 {
    first_ms.saturating_mul(1u64 << failures.saturating_sub(1).min(20)).min(max_ms)
}

/// How much one partition may hold between the consumer and the work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IntakeLimits {
    /// Records.
    pub records_max: usize,
    /// Bytes.
    pub bytes_max: usize,
}

/// One partition's records between the consumer and the work: bounded by stopping the consumer when it is full and
/// starting it again, exactly after the last record held, when it is half empty. The consumer itself goes on being
/// polled, so that the membership lives.
#[derive(Debug)]
pub struct Intake {
    limits: IntakeLimits,
    assignment: Assignment,
    records: VecDeque<LogRecord>,
    bytes: usize,
    end: Option<Position>,
    flowing: bool,
}

impl Intake {
    /// An empty one that does not flow yet.
    pub fn new(assignment: Assignment, limits: IntakeLimits) -> Self {
        Self { limits, assignment, records: VecDeque::new(), bytes: 0, end: None, flowing: false }
    }

    /// The assignment under which records are taken.
    pub fn assignment(&self) -> Assignment {
        self.assignment
    }

    /// The consumer was told to start there.
    pub fn started(&mut self, at: Option<Position>) {
        self.end = at;
        self.flowing = true;
    }

    /// Forgets everything and takes nothing until it is started again.
    pub fn clear(&mut self) {
        self.records.clear();
        self.bytes = 0;
        self.end = None;
        self.flowing = false;
    }

    /// Takes what arrived: nothing of an older assignment, nothing while stopped, nothing that is held already.
    pub fn push(&mut self, assignment: Assignment, records: Vec<LogRecord>) {
        if assignment < self.assignment || !self.flowing {
            return;
        }
        for record in records {
            if self.end.is_some_and(|end| record.position < end) {
                continue;
            }
            self.end = Some(record.next);
            self.bytes += record.payload.len();
            self.records.push_back(record);
        }
    }

    /// The records held, in order.
    pub fn records(&self) -> impl Iterator<Item = &LogRecord> {
        self.records.iter()
    }

    /// The first record.
    pub fn front(&self) -> Option<&LogRecord> {
        self.records.front()
    }

    /// How many it holds.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Whether the consumer brings more: else [`regulate`](Self::regulate) will have to start it again.
    pub fn is_flowing(&self) -> bool {
        self.flowing
    }

    /// Where reading goes on after the last record taken; none before anything is known.
    pub fn end(&self) -> Option<Position> {
        self.end
    }

    /// Lets go of the first records: they are dealt with.
    pub fn pop(&mut self, count: usize) {
        for record in self.records.drain(..count) {
            self.bytes -= record.payload.len();
        }
    }

    /// Takes the first records out.
    pub fn take(&mut self, count: usize) -> Vec<LogRecord> {
        let taken: Vec<LogRecord> = self.records.drain(..count.min(self.records.len())).collect();
        self.bytes -= taken.iter().map(|record| record.payload.len()).sum::<usize>();
        taken
    }

    /// What to tell the consumer so that this stays bounded; changes the state as if it was done.
    pub fn regulate(&mut self, partition: u32) -> Option<ConsumerCommand> {
        let full = self.records.len() >= self.limits.records_max || self.bytes >= self.limits.bytes_max;
        let half = self.records.len() <= self.limits.records_max / 2 && self.bytes <= self.limits.bytes_max / 2;
        match (self.flowing, self.end) {
            (true, Some(_)) if full => {
                self.flowing = false;
                Some(ConsumerCommand::Stop { partition })
            }
            (false, Some(end)) if half => {
                self.flowing = true;
                let at = StartAt::Position(end);
                Some(ConsumerCommand::Start { partition, assignment: self.assignment, at })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(position: u64) -> LogRecord {
        let payload = bytes::Bytes::from_static(b"0123456789");
        LogRecord { position: Position(position), next: Position(position + 1), payload }
    }

    fn intake() -> Intake {
        Intake::new(Assignment(2), IntakeLimits { records_max: 4, bytes_max: 1000 })
    }

    #[test]
    fn an_older_assignment_and_a_stopped_partition_are_discarded() {
        let mut intake = intake();
        intake.push(Assignment(2), vec![record(0)]);
        assert!(intake.is_empty(), "nothing before the start");
        intake.started(Some(Position(0)));
        intake.push(Assignment(1), vec![record(0)]);
        assert!(intake.is_empty(), "nothing of an older assignment");
        intake.push(Assignment(2), vec![record(0)]);
        assert_eq!(intake.len(), 1);
    }

    #[test]
    fn a_full_intake_stops_and_goes_on_exactly_after_what_it_holds() {
        let mut intake = intake();
        intake.started(Some(Position(0)));
        intake.push(Assignment(2), (0..4).map(record).collect());
        assert_eq!(intake.regulate(7), Some(ConsumerCommand::Stop { partition: 7 }));
        intake.push(Assignment(2), vec![record(4)]);
        assert_eq!(intake.len(), 4, "what comes while it is stopped is discarded");
        intake.pop(1);
        assert_eq!(intake.regulate(7), None, "not before it is half empty");
        intake.pop(1);
        let at = StartAt::Position(Position(4));
        assert_eq!(intake.regulate(7), Some(ConsumerCommand::Start { partition: 7, assignment: Assignment(2), at }));
        intake.push(Assignment(2), vec![record(3), record(4)]);
        let held: Vec<u64> = intake.records().map(|record| record.position.0).collect();
        assert_eq!(held, [2, 3, 4], "what is held already is not taken twice");
    }

    #[test]
    fn backoff_doubles_to_its_limit() {
        let waits: Vec<u64> = (1..6).map(|failures| backoff_ms(failures, 100, 1000)).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1000]);
        assert_eq!(backoff_ms(u32::MAX, 100, 1000), 1000);
    }
}
