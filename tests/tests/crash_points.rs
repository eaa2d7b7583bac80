//! A crash between every two steps of numbering: the process really ends there, and I1 to I9 hold.

use std::sync::Arc;
use std::time::Duration;

use roost_tests::cluster::{Cluster, Composition, Size};
use roost_tests::people::{Account, LIVENESS, Recording, Talk, register, seed};
use roost_tests::process::Process;
use roost_tests::servers::available;
use roost_workers::persist::fail_points;

/// Steps inside the embedded Store's and log's own transactions.
const EMBEDDED: [&str; 7] = [
    "store-after-lock",
    "store-after-lookup",
    "store-after-insert",
    "store-before-commit",
    "store-after-commit",
    "log-before-commit",
    "log-after-commit",
];

/// How often a step is passed before the crash: those of a start come only then, the others in mid-stream.
fn action(point: &str) -> String {
    let passed = match point {
        "persist-before-claim" | "persist-after-claim" => 1,
        "persist-before-replay-lookup" | "persist-after-replay-lookup" => 0,
        "persist-before-set-published" | "persist-after-set-published" => 0,
        _ => 40,
    };
    format!("{point}={passed}*off->return(crash)")
}

/// One point alone, to look into it: ROOST_FAIL_POINT=name.
fn wanted(point: &&str) -> bool {
    std::env::var("ROOST_FAIL_POINT").map_or(true, |only| only == *point)
}

/// Each talks with each: so many conversations that no worker is without any of them.
async fn talkers(cluster: &Cluster, people: &[Account]) -> Arc<Recording> {
    let run = Recording::start(cluster);
    run.join_all(people).await;
    for (index, one) in people.iter().enumerate() {
        for other in &people[index + 1..] {
            run.group(&[one.clone(), other.clone()]).await;
        }
    }
    run
}

/// Arms the point in a process that is down, and waits until the process has crashed there. A mark is written by itself
/// only where nothing more is said.
async fn crash_at(process: &mut Process, point: &str, talk: &mut Option<Talk>) {
    process.start_to_crash(&action(point)).await;
    if point.ends_with("set-published") {
        tokio::time::sleep(Duration::from_millis(500)).await;
        talk.take().expect("it goes on").stop().await;
    }
    assert!(process.crashed(LIVENESS).await, "inconclusive: {point} was never reached");
}

#[tokio::test]
async fn embedded() {
    let mut cluster = Cluster::start(Composition::Embedded, Size::ONE).await;
    let people = register(&cluster, 4).await;
    for point in fail_points::ALL.into_iter().chain(EMBEDDED).filter(wanted) {
        let run = talkers(&cluster, &people).await;
        let mut talk = Some(run.talk(seed(), 150));
        tokio::time::sleep(Duration::from_millis(150)).await;
        run.burst(10).await;
        let process = &mut cluster.gateways[0];
        process.kill().await;
        crash_at(process, point, &mut talk).await;
        process.restart(None).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        if let Some(talk) = talk {
            talk.stop().await;
        }
        run.prove(point).await;
    }
}

/// There is something to replay only after a crash, for whoever gets its partitions: until it is the one that is armed.
async fn crash_in_replay(worker: &mut Process, point: &str) {
    for _ in 0..6 {
        worker.start_to_crash("persist-before-publish=3*off->return(crash)").await;
        assert!(worker.crashed(LIVENESS).await, "inconclusive: nothing was left to replay");
        worker.start_to_crash(&action(point)).await;
        if worker.crashed(Duration::from_secs(20)).await {
            return;
        }
        assert_eq!(worker.stop().await, Some(0));
    }
    panic!("inconclusive: {point} was never reached");
}

/// A third of the points on a cluster of its own: most of a round is waiting for the group.
async fn rounds_with_two_workers(third: usize) {
    let mut cluster = Cluster::start(Composition::Distributed, Size { gateways: 1, persist: 2, fanout: 1 }).await;
    let people = register(&cluster, 6).await;
    let points = fail_points::ALL.into_iter().skip(third).step_by(3).filter(wanted);
    for (round, point) in points.enumerate() {
        let run = talkers(&cluster, &people).await;
        let mut talk = Some(run.talk(seed(), 80));
        let worker = &mut cluster.persist[round % 2];
        // It leaves the group at once, so that the round begins with an assignment.
        assert_eq!(worker.stop().await, Some(0));
        if point.contains("replay") {
            crash_in_replay(worker, point).await;
        } else {
            crash_at(worker, point, &mut talk).await;
        }
        worker.restart(None).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        if let Some(talk) = talk {
            talk.stop().await;
        }
        run.prove(point).await;
    }
}

#[tokio::test]
async fn two_workers_with_two_lanes_each() {
    if available("crash_points::two_workers_with_two_lanes_each") {
        tokio::join!(rounds_with_two_workers(0), rounds_with_two_workers(1), rounds_with_two_workers(2));
    }
}
