//! kill -9 of every part of the distributed composition, one after the other, on servers of the test's own: after each
//! fault I1 to I9 hold, for the newest message of a conversation with nothing after it too.

use std::sync::Arc;
use std::time::Duration;

use roost_protocol::ConversationId;
use roost_tests::cluster::{Cluster, Composition, Size};
use roost_tests::people::{Account, LIVENESS, Recording, Talk, register, seed};
use roost_tests::process::{Process, eventually};
use roost_tests::servers::available;

/// A run with its talk, in mid-stream.
struct Fault {
    name: &'static str,
    run: Arc<Recording>,
    talk: Talk,
    last: Vec<ConversationId>,
}

impl Fault {
    async fn prepare(name: &'static str, cluster: &Cluster, people: &[Account]) -> Self {
        let run = Recording::start(cluster);
        run.join_all(people).await;
        run.group(people).await;
        let mut last = Vec::new();
        for members in people.windows(3).step_by(2) {
            last.push(run.group(members).await);
        }
        let talk = run.talk(seed(), 80);
        tokio::time::sleep(Duration::from_secs(1)).await;
        // What was said last in half of the conversations, in the moment of the fault, has nothing after it.
        run.burst(6).await;
        for &conversation in last.iter().step_by(2) {
            run.hush(conversation);
        }
        Self { name, run, talk, last }
    }

    /// The fault is over: talk goes on for a moment, then everything is proved.
    async fn healed(self) -> roost_tests::recorder::Evidence {
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.run.hush(self.last[1]);
        self.talk.stop().await;
        self.run.prove(self.name).await
    }
}

async fn a_gateway_is_killed(cluster: &mut Cluster, people: &[Account]) {
    let fault = Fault::prepare("F1: gateway", cluster, people).await;
    cluster.gateways[0].kill().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.gateways[0].restart(None).await;
    let evidence = fault.healed().await;
    assert!(evidence.reconnects >= people.len() as u64 / 2, "inconclusive: nobody came back");
    assert!(evidence.unknown_landed > 0, "inconclusive: no unknown send has landed");
    assert!(evidence.gap_repairs > 0, "inconclusive: no gap was repaired");
}

async fn a_persist_worker_is_killed(cluster: &mut Cluster, people: &[Account]) {
    let fault = Fault::prepare("F15: persist worker", cluster, people).await;
    let before = cluster.claims().await;
    cluster.persist[0].kill().await;
    // The other one takes over once the group has noticed.
    wait_for_claims(cluster, before).await;
    cluster.persist[0].restart(None).await;
    fault.healed().await;
}

async fn a_persist_worker_is_frozen_and_continued(cluster: &mut Cluster, people: &[Account]) {
    let fault = Fault::prepare("F16: frozen persist worker", cluster, people).await;
    let before = cluster.claims().await;
    cluster.persist[1].freeze();
    // Longer than the group waits for it, and until its partitions are another's.
    tokio::time::sleep(Duration::from_secs(11)).await;
    wait_for_claims(cluster, before).await;
    cluster.persist[1].thaw();
    fault.healed().await;
}

/// Waits until partitions have changed hands. The group takes 10 s to notice that a member is gone, and then as long as
/// the machine lets it: the limit is five times the figure of the fault.
async fn wait_for_claims(cluster: &Cluster, before: u64) {
    for _ in 0..75 {
        if cluster.claims().await > before {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    panic!("inconclusive: nobody has claimed its partitions");
}

async fn a_fanout_worker_is_killed(cluster: &mut Cluster, people: &[Account]) {
    let fault = Fault::prepare("fan-out worker", cluster, people).await;
    cluster.fanout[0].kill().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.fanout[0].restart(None).await;
    fault.healed().await;
}

async fn kafka_is_killed(cluster: &mut Cluster, people: &[Account]) {
    let fault = Fault::prepare("F20: Kafka", cluster, people).await;
    let kafka = &mut cluster.servers.as_mut().expect("private servers").kafka;
    kafka.kill().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    kafka.restart().await;
    fault.healed().await;
}

async fn postgres_stops_at_once(cluster: &mut Cluster, people: &[Account]) {
    let fault = Fault::prepare("F24: PostgreSQL", cluster, people).await;
    let postgres = &mut cluster.servers.as_mut().expect("private servers").postgres;
    postgres.stop_immediately().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    postgres.restart().await;
    fault.healed().await;
}

async fn redis_is_killed_and_comes_back_empty(cluster: &mut Cluster, people: &[Account]) {
    let fault = Fault::prepare("F27: Redis", cluster, people).await;
    let redis = &mut cluster.servers.as_mut().expect("private servers").redis;
    redis.kill().await;
    wait_for_gateways_to_log(&cluster.gateways, "the registry is away").await;
    redis.restart().await;
    fault.healed().await;
    wait_for_gateways_to_log(&cluster.gateways, "the registry has lost writes: everything is registered again").await;
}

/// A gateway hears of its Registry when it renews its lease, if no session comes or goes before.
async fn wait_for_gateways_to_log(gateways: &[Process], line: &str) {
    let all_have = async || gateways.iter().all(|gateway| gateway.log().contains(line));
    eventually(line, LIVENESS, all_have).await;
}

#[tokio::test]
async fn every_part_is_killed_in_turn_and_nothing_is_lost() {
    if !available("crash_distributed::every_part_is_killed_in_turn_and_nothing_is_lost") {
        return;
    }
    let mut cluster = Cluster::start(Composition::DistributedOnPrivateServers, Size::TWO).await;
    let people = &register(&cluster, 10).await;
    a_gateway_is_killed(&mut cluster, people).await;
    a_persist_worker_is_killed(&mut cluster, people).await;
    a_persist_worker_is_frozen_and_continued(&mut cluster, people).await;
    a_fanout_worker_is_killed(&mut cluster, people).await;
    kafka_is_killed(&mut cluster, people).await;
    postgres_stops_at_once(&mut cluster, people).await;
    redis_is_killed_and_comes_back_empty(&mut cluster, people).await;
}
