//! The fan-out worker's decisions: what is looked up, what goes to which gateway, what is settled, and when.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use roost_ports::delivery::{DeliveryBatch, DeliveryError};
use roost_ports::log::{Assignment, Bounds, ConsumerEvent, LogRecord, Position, StartAt};
use roost_protocol::records::{DeliverRecord, Endpoint, RecordError};
use roost_protocol::{ConversationId, Incarnation};

use super::Config;
use super::link::{Link, Receipt};
use super::lookup::{Answers, Query, QueryFailure};
use super::route::{Cache, Route};
use super::settling::Settling;
use crate::consume::{self, ConsumerCommand, Intake, IntakeLimits, Step, backoff_ms};
use crate::evidence::FanoutEvidence;

mod dispatch;

use dispatch::Plan;

/// What the fan-out machine asks its driver to do.
#[derive(Debug)]
pub enum Effect {
    /// `Lookup::find`.
    Lookup {
        /// Comes back with the answers.
        number: u64,
        /// What.
        queries: Vec<Query>,
        /// When it was asked: an answer is that old.
        at_ms: u64,
    },
    /// `Delivery::send`.
    Send {
        /// Comes back with the outcome.
        number: u64,
        /// Where.
        endpoint: Endpoint,
        /// What.
        batch: DeliveryBatch,
    },
    /// A person has to look.
    Alarm {
        /// Which partition.
        partition: u32,
        /// What has happened.
        text: String,
    },
}

/// What has become of an effect.
#[derive(Debug)]
pub enum Done {
    /// Of [`Effect::Lookup`].
    Found {
        /// The effect's.
        number: u64,
        /// What was found.
        answers: Answers,
    },
    /// Of [`Effect::Send`].
    Sent {
        /// The effect's.
        number: u64,
        /// Which life of the gateway.
        gateway: Incarnation,
        /// What became of it.
        result: Result<(), DeliveryError>,
    },
}

/// The fan-out worker without I/O: see [`consume::Machine`] for how it is driven.
pub struct Machine {
    config: Config,
    evidence: Arc<FanoutEvidence>,
    partitions: BTreeMap<u32, Partition>,
    /// The partitions with something to do: only these are looked at.
    active: BTreeSet<u32>,
    cache: Cache,
    settling: Settling,
    links: HashMap<Incarnation, Link>,
    /// When a link's gateway was last named with a live lease.
    named_at: HashMap<Incarnation, u64>,
    /// Lives that have said that they are over, while the Registry still names them.
    gone: HashSet<Incarnation>,
    /// When they said so: one that is named for longer was not over, but had not begun.
    gone_at: HashMap<Incarnation, u64>,
    lookups: HashMap<u64, Purpose>,
    settling_lookups: usize,
    steps: VecDeque<Step<Effect>>,
    counter: u64,
    stopping: bool,
    /// A handler has run since the last look at what can begin; and when the next look is due without one.
    stirred: bool,
    wake_at: Option<u64>,
}

struct Partition {
    generation: u64,
    intake: Intake,
    plan: Option<Plan>,
    looking: bool,
    failures: u32,
    retry_at: u64,
    refused: bool,
    committed: Option<Position>,
    jump: Option<Jump>,
}

/// The log was out of range: the position stays until every gateway has its sessions sync.
struct Jump {
    waiting: Option<HashSet<Incarnation>>,
    asked_at: Option<u64>,
}

enum Purpose {
    Dispatch { partition: u32, generation: u64 },
    Settle(Vec<ConversationId>),
    Jump { partition: u32, generation: u64 },
}

const LOOKUP_RETRY_MS: (u64, u64) = (50, 2_000);
const SETTLE_LOOKUPS_MAX: usize = 4;
const SETTLE_CONVERSATIONS_MAX: usize = 100;
const JUMP_AGAIN_MS: u64 = 2_000;
/// A gateway that the Registry has not named for so long has no lease any more.
const UNNAMED_MS_MAX: u64 = 15_000;

impl Machine {
    /// A machine with nothing assigned.
    pub fn new(config: Config, evidence: Arc<FanoutEvidence>) -> Self {
        Self {
            cache: Cache::new(config.cache_weight_max),
            settling: Settling::new(config.settling),
            config,
            evidence,
            partitions: BTreeMap::new(),
            active: BTreeSet::new(),
            links: HashMap::new(),
            named_at: HashMap::new(),
            gone: HashSet::new(),
            gone_at: HashMap::new(),
            lookups: HashMap::new(),
            settling_lookups: 0,
            steps: VecDeque::new(),
            counter: 0,
            stopping: false,
            stirred: true,
            wake_at: None,
        }
    }

    fn number(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    fn work(&mut self, effect: Effect) {
        self.steps.push_back(Step::Work(effect));
    }

    fn alarm(&mut self, partition: u32, text: String) {
        self.evidence.alarms.add(1);
        self.work(Effect::Alarm { partition, text });
    }

    fn current(&mut self, partition: u32, generation: u64) -> Option<&mut Partition> {
        self.active.insert(partition);
        self.partitions.get_mut(&partition).filter(|found| found.generation == generation)
    }

    fn on_assigned(&mut self, partition: u32, assignment: Assignment) {
        self.settling.forget(partition);
        let generation = self.number();
        let limits =
            IntakeLimits { records_max: self.config.buffer_records_max, bytes_max: self.config.buffer_bytes_max };
        let mut intake = Intake::new(assignment, limits);
        intake.started(None);
        let fresh = Partition {
            generation,
            intake,
            plan: None,
            looking: false,
            failures: 0,
            retry_at: 0,
            refused: false,
            committed: None,
            jump: None,
        };
        self.partitions.insert(partition, fresh);
        self.active.insert(partition);
        let start = ConsumerCommand::Start { partition, assignment, at: StartAt::Committed };
        self.steps.push_back(Step::Consumer(start));
    }

    /// What is no longer in the log cannot be delivered: go on with what is, and have every session sync.
    fn on_out_of_range(&mut self, partition: u32, assignment: Assignment, bounds: Bounds) {
        self.settling.forget(partition);
        self.active.insert(partition);
        let generation = self.number();
        let Some(found) = self.partitions.get_mut(&partition) else { return };
        if assignment < found.intake.assignment() {
            return;
        }
        found.generation = generation;
        // A topic that was made anew begins below what was committed of the old one.
        found.committed = None;
        found.intake.clear();
        found.intake.started(Some(bounds.begin));
        found.plan = None;
        found.looking = false;
        found.jump = Some(Jump { waiting: None, asked_at: None });
        self.settling.passed(partition, bounds.begin);
        let at = StartAt::Position(bounds.begin);
        self.steps.push_back(Step::Consumer(ConsumerCommand::Start { partition, assignment, at }));
        self.evidence.jumps.add(1);
        self.alarm(partition, "the log no longer holds the group's position: every session syncs".into());
    }

    fn on_found(&mut self, number: u64, answers: Answers, now_ms: u64) {
        let Some(purpose) = self.lookups.remove(&number) else { return };
        if answers.by_registry {
            self.name(&answers.gateways, now_ms);
        } else {
            self.evidence.fallbacks.add(1);
        }
        match purpose {
            Purpose::Dispatch { partition, generation } => {
                self.on_planned(partition, generation, answers.routes, now_ms);
            }
            Purpose::Settle(conversations) => {
                self.settling_lookups -= 1;
                self.on_looked(conversations, answers.routes, now_ms);
            }
            // Where nobody could say who lives, it is asked again.
            Purpose::Jump { .. } if !answers.by_registry && answers.gateways.is_empty() => {}
            Purpose::Jump { partition, generation } => self.on_jump(partition, generation, &answers.gateways),
        }
    }

    /// The Registry has named the gateways with a live lease: those that it has not named for long are dropped.
    fn name(&mut self, gateways: &[Endpoint], now_ms: u64) {
        for endpoint in gateways {
            self.named_at.insert(endpoint.incarnation, now_ms);
        }
        let live: HashSet<Incarnation> = gateways.iter().map(|endpoint| endpoint.incarnation).collect();
        let recent = |at: u64| now_ms.saturating_sub(at) <= UNNAMED_MS_MAX;
        self.gone_at.retain(|incarnation, at| live.contains(incarnation) && recent(*at));
        self.gone.retain(|incarnation| self.gone_at.contains_key(incarnation));
        let over: Vec<Incarnation> = self
            .links
            .keys()
            .copied()
            .filter(|incarnation| {
                let named = self.named_at.get(incarnation).copied().unwrap_or(0);
                now_ms.saturating_sub(named) > UNNAMED_MS_MAX
            })
            .collect();
        for incarnation in over {
            self.drop_link(incarnation);
        }
        self.named_at.retain(|_, named| now_ms.saturating_sub(*named) <= UNNAMED_MS_MAX);
    }

    fn drop_link(&mut self, gateway: Incarnation) {
        self.links.remove(&gateway);
        self.synced(gateway);
    }

    /// A gateway has its sessions sync, or has none any more.
    fn synced(&mut self, gateway: Incarnation) {
        for found in self.partitions.values_mut() {
            let Some(jump) = &mut found.jump else { continue };
            if let Some(waiting) = &mut jump.waiting {
                waiting.remove(&gateway);
                if waiting.is_empty() {
                    found.jump = None;
                }
            }
        }
    }

    fn on_jump(&mut self, partition: u32, generation: u64, gateways: &[Endpoint]) {
        let gone = self.gone.clone();
        let Some(found) = self.current(partition, generation) else { return };
        let Some(jump) = &mut found.jump else { return };
        let live: Vec<&Endpoint> = gateways.iter().filter(|gateway| !gone.contains(&gateway.incarnation)).collect();
        let named: HashSet<Incarnation> = live.iter().map(|gateway| gateway.incarnation).collect();
        let (waiting, first) = match jump.waiting.take() {
            // Gateways that came later have sessions that synced later.
            Some(waiting) => (waiting.intersection(&named).copied().collect(), false),
            None => (named, true),
        };
        if waiting.is_empty() {
            found.jump = None;
            return;
        }
        jump.waiting = Some(waiting);
        if first {
            for endpoint in live {
                self.link(endpoint).push_sync_all();
            }
        }
    }

    fn link(&mut self, endpoint: &Endpoint) -> &mut Link {
        let limits = self.config.link;
        self.links.entry(endpoint.incarnation).or_insert_with(|| Link::new(endpoint.clone(), limits))
    }

    fn on_sent(&mut self, number: u64, gateway: Incarnation, result: Result<(), DeliveryError>, now_ms: u64) {
        if result.is_err() {
            self.evidence.batches_failed.add(1);
        }
        let Some(link) = self.links.get_mut(&gateway) else { return };
        let landing = link.land(number, result.as_ref().copied(), now_ms);
        for receipt in landing.receipts {
            match receipt {
                Receipt::Served { conversation, seq, audience } => {
                    self.settling.served(gateway, conversation, seq, audience);
                }
                Receipt::SyncedAll => self.synced(gateway),
            }
        }
        if landing.gone {
            self.gone.insert(gateway);
            self.gone_at.insert(gateway, now_ms);
            self.drop_link(gateway);
        }
    }

    fn on_looked(
        &mut self,
        conversations: Vec<ConversationId>,
        routes: Vec<(ConversationId, Result<Route, QueryFailure>)>,
        now_ms: u64,
    ) {
        let mut asked: HashSet<ConversationId> = conversations.into_iter().collect();
        for (conversation, route) in routes {
            asked.remove(&conversation);
            match route {
                Ok(route) => {
                    let route = Arc::new(route);
                    self.cache.insert(conversation, Arc::clone(&route));
                    self.tell(conversation, &route, now_ms);
                }
                Err(QueryFailure::Unavailable(error)) => {
                    tracing::warn!(%conversation, error, "settling looks again later");
                    self.settling.look_again(conversation, now_ms);
                }
                Err(QueryFailure::Unknown) => {
                    tracing::error!(%conversation, "the store does not know a conversation of the log");
                    self.settling.give_up(conversation);
                }
            }
        }
        for conversation in asked {
            self.settling.look_again(conversation, now_ms);
        }
    }

    fn tell(&mut self, conversation: ConversationId, route: &Route, now_ms: u64) {
        for untold in self.settling.looked(conversation, route, &self.gone, now_ms) {
            use roost_ports::delivery::Audience::Sessions;
            let endpoint = match &untold.audience {
                Sessions(sessions) => {
                    self.evidence.settling_told.add(sessions.len() as u64);
                    &route.gateways[untold.index].endpoint
                }
                _ => &route.ask[untold.index],
            };
            self.link(endpoint).push_heads(conversation, untold.seq, untold.audience);
        }
    }

    fn begin_looks(&mut self, now_ms: u64) {
        while !self.stopping && self.settling_lookups < SETTLE_LOOKUPS_MAX {
            let due = self.settling.take_due(now_ms, SETTLE_CONVERSATIONS_MAX);
            if due.is_empty() {
                return;
            }
            let queries = due.iter().map(|&(conversation, version)| {
                let known = self.cache.get(conversation).map(|route| Arc::clone(&route.list));
                Query { conversation, version, list: known.filter(|list| list.version == version) }
            });
            let queries = queries.collect();
            let number = self.number();
            let conversations = due.into_iter().map(|(conversation, _)| conversation).collect();
            self.lookups.insert(number, Purpose::Settle(conversations));
            self.settling_lookups += 1;
            self.work(Effect::Lookup { number, queries, at_ms: now_ms });
        }
    }

    fn begin_jump(&mut self, partition: u32, now_ms: u64) {
        let number = self.counter + 1;
        let Some(found) = self.partitions.get_mut(&partition) else { return };
        let generation = found.generation;
        let Some(jump) = &mut found.jump else { return };
        if jump.asked_at.is_some_and(|at| now_ms < at + JUMP_AGAIN_MS) {
            return;
        }
        jump.asked_at = Some(now_ms);
        self.counter = number;
        self.lookups.insert(number, Purpose::Jump { partition, generation });
        self.work(Effect::Lookup { number, queries: Vec::new(), at_ms: now_ms });
    }

    fn begin_batches(&mut self, now_ms: u64) {
        for link in self.links.values_mut() {
            loop {
                let number = self.counter + 1;
                let Some((batch, heads)) = link.next_batch(number, now_ms) else { break };
                self.counter = number;
                self.evidence.heads_sent.add(heads);
                self.evidence.items_sent.add(batch.items.len() as u64 - heads);
                let endpoint = link.endpoint().clone();
                self.steps.push_back(Step::Work(Effect::Send { number, endpoint, batch }));
            }
        }
    }

    fn commit(&mut self, partition: u32) {
        let Some(found) = self.partitions.get_mut(&partition) else { return };
        let position = self.settling.position(partition).filter(|_| found.jump.is_none() && !found.refused);
        let Some(next) = position.filter(|&next| found.committed.is_none_or(|committed| committed < next)) else {
            return;
        };
        found.committed = Some(next);
        let assignment = found.intake.assignment();
        self.steps.push_back(Step::Consumer(ConsumerCommand::Commit { partition, assignment, next }));
    }

    fn advance(&mut self, now_ms: u64) {
        let active: Vec<u32> = self.active.iter().copied().collect();
        for &partition in &active {
            self.begin_jump(partition, now_ms);
            self.begin_dispatch(partition, now_ms);
        }
        self.begin_looks(now_ms);
        self.begin_batches(now_ms);
        let mut moved = self.settling.take_moved();
        moved.extend(active);
        for partition in moved {
            self.commit(partition);
        }
        let partitions = &self.partitions;
        self.active.retain(|partition| partitions.get(partition).is_some_and(|found| !found.is_at_rest()));
    }

    /// When, after now, something can begin without any event.
    fn next_wake(&self, now_ms: u64) -> Option<u64> {
        let active = self.active.iter().filter_map(|partition| self.partitions.get(partition));
        let partitions = active.flat_map(|found| {
            let jump = found.jump.as_ref().and_then(|jump| jump.asked_at).map(|at| at + JUMP_AGAIN_MS);
            [Some(found.retry_at), jump]
        });
        let links = self.links.values().map(Link::deadline);
        let times = partitions.chain(links).chain([self.settling.deadline()]).flatten();
        times.filter(|&at| at > now_ms).min()
    }
}

impl Partition {
    /// Whether nothing can begin before something happens to it.
    fn is_at_rest(&self) -> bool {
        self.intake.is_empty() && self.intake.is_flowing() && self.plan.is_none() && self.jump.is_none()
    }
}

impl consume::Machine for Machine {
    type Effect = Effect;
    type Done = Done;

    fn on_event(&mut self, event: ConsumerEvent, _now_ms: u64) {
        self.stirred = true;
        match event {
            ConsumerEvent::Assigned(partitions, assignment) => {
                for partition in partitions {
                    self.on_assigned(partition, assignment);
                }
            }
            ConsumerEvent::Revoked(partitions) => {
                for partition in partitions {
                    self.partitions.remove(&partition);
                    self.settling.forget(partition);
                }
            }
            ConsumerEvent::Records { partition, assignment, records } => {
                self.active.insert(partition);
                if let Some(found) = self.partitions.get_mut(&partition).filter(|found| !found.refused) {
                    found.intake.push(assignment, records);
                }
            }
            ConsumerEvent::OutOfRange { partition, assignment, bounds } => {
                self.on_out_of_range(partition, assignment, bounds);
            }
        }
    }

    fn on_done(&mut self, done: Done, now_ms: u64) {
        self.stirred = true;
        match done {
            Done::Found { number, answers } => self.on_found(number, answers, now_ms),
            Done::Sent { number, gateway, result } => self.on_sent(number, gateway, result, now_ms),
        }
    }

    fn stop(&mut self, _now_ms: u64) {
        self.stirred = true;
        self.stopping = true;
    }

    /// What is not settled is delivered again by the next owner: only what is on its way is worth waiting for.
    fn is_settled(&self) -> bool {
        self.links.values().all(Link::is_idle) && self.partitions.values().all(|found| found.plan.is_none())
    }

    fn poll_step(&mut self, now_ms: u64) -> Option<Step<Effect>> {
        let due = self.stirred || self.wake_at.is_some_and(|at| at <= now_ms);
        if self.steps.is_empty() && due {
            self.stirred = false;
            self.advance(now_ms);
            self.wake_at = self.next_wake(now_ms);
        }
        self.steps.pop_front()
    }

    fn deadline(&self) -> Option<u64> {
        self.wake_at
    }
}
