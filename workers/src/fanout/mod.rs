//! The fan-out worker: carries every record of `deliver` to the gateways that hold the conversation's members, and
//! sees to it that every live session learns the newest number.
//!
//! | file | decides |
//! |---|---|
//! | [`machine`] | what begins when; without I/O |
//! | [`route`] | for whom a message is, and what is remembered of that |
//! | [`link`] | what a gateway gets, and what becomes of it when the gateway is slow |
//! | [`settling`] | who still has to be told, and how far the log is dealt with |
//! | [`lookup`] | whom to ask where members and sessions are |
//! | [`driver`] | nothing: it performs |

pub mod driver;
pub mod link;
pub mod lookup;
pub mod machine;
pub mod route;
pub mod settling;

use std::sync::Arc;

use roost_ports::{Clock, Delivery, Log, Registry, Store};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::evidence::FanoutEvidence;

/// The limits and times of a fan-out worker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// The consumer group.
    pub group: String,
    /// Records of one partition that are dispatched together.
    pub dispatch_records_max: usize,
    /// Records of one partition between the consumer and the dispatch.
    pub buffer_records_max: usize,
    /// The same in bytes.
    pub buffer_bytes_max: usize,
    /// Members and sessions that are remembered, over all conversations.
    pub cache_weight_max: usize,
    /// A route is used so long at most; shorter than the settling waits.
    pub route_ms_max: u64,
    /// Conversations that are not settled; beyond, nothing more is dispatched.
    pub unsettled_max: usize,
    /// After so many look-ups a conversation that the Store does not know is passed over with an alarm.
    pub unknown_conversation_attempts: u32,
    /// When settling looks.
    pub settling: settling::SettlingTimes,
    /// How much a gateway may be behind.
    pub link: link::LinkLimits,
    /// A stopping worker finishes what is on its way within this time.
    pub stop_ms_max: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            group: "fanout".into(),
            dispatch_records_max: 500,
            buffer_records_max: 5_000,
            buffer_bytes_max: 2 * 1024 * 1024,
            cache_weight_max: 1_000_000,
            route_ms_max: 2_000,
            unsettled_max: 200_000,
            unknown_conversation_attempts: 10,
            settling: settling::SettlingTimes::default(),
            link: link::LinkLimits::default(),
            stop_ms_max: 2_000,
        }
    }
}

/// What a fan-out worker needs from the world.
#[derive(Clone)]
pub struct Ports {
    /// Where records come from.
    pub log: Arc<dyn Log>,
    /// Who the members are.
    pub store: Arc<dyn Store>,
    /// Where their sessions are.
    pub registry: Arc<dyn Registry>,
    /// How they get it.
    pub delivery: Arc<dyn Delivery>,
    /// For the leases in the Store.
    pub clock: Arc<dyn Clock>,
}

/// The fan-out worker.
pub struct Worker;

impl Worker {
    /// Starts a worker on the current tokio runtime. It waits for the log as long as it takes.
    pub fn start(config: Config, ports: Ports) -> Handle {
        assert!(config.route_ms_max < config.settling.after_ms, "settling must see what a cached route hides");
        let evidence = Arc::new(FanoutEvidence::default());
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(driver::run(config, ports, Arc::clone(&evidence), stopped));
        Handle { evidence, stop, task }
    }
}

/// A running fan-out worker. Dropping it stops the worker too, without waiting.
pub struct Handle {
    evidence: Arc<FanoutEvidence>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Handle {
    /// What the worker has met so far.
    pub fn evidence(&self) -> &Arc<FanoutEvidence> {
        &self.evidence
    }

    /// Whether the worker has ended by itself, which it never should.
    pub fn is_finished(&self) -> bool {
        self.task.is_finished()
    }

    /// Begins nothing new, finishes what is on its way, and leaves the group so that others take over at once.
    pub async fn stop(self) {
        drop(self.stop);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the fan-out worker did not end well");
        }
    }
}
