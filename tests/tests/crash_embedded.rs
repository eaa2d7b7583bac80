//! kill -9 of the whole embedded process in mid-stream, several times: I1 to I9 hold on the recorded run.

use std::time::Duration;

use roost_tests::cluster::{Cluster, Composition, Size};
use roost_tests::people::{Recording, register, seed};

#[tokio::test]
async fn the_process_is_killed_in_mid_stream_again_and_again_and_nothing_is_lost() {
    let mut cluster = Cluster::start(Composition::Embedded, Size::ONE).await;
    let people = register(&cluster, 10).await;
    let run = Recording::start(&cluster);
    run.join_all(&people).await;
    // Another device of somebody.
    run.join(&people[0].on_another_device(&cluster).await).await;
    let mut conversations = vec![run.group(&people).await, run.direct(&people[0], &people[1]).await];
    for pair in people.windows(3).step_by(2) {
        conversations.push(run.group(pair).await);
    }
    let talk = run.talk(seed(), 120);
    for round in 0..5 {
        tokio::time::sleep(Duration::from_millis(700 + 130 * round)).await;
        // What was said there last, just before the crash, has nothing after it.
        run.hush(conversations.pop().expect("as many conversations as rounds"));
        run.burst(20).await;
        tokio::time::sleep(Duration::from_millis(3 * round)).await;
        cluster.gateways[0].kill().await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        cluster.gateways[0].restart(None).await;
        let before = run.evidence().reconnects;
        run.until("everybody is back", |evidence| evidence.reconnects > before).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    talk.stop().await;
    let evidence = run.prove("embedded, killed five times").await;
    assert!(evidence.reconnects >= 11 * 3, "inconclusive: few reconnects");
    assert!(evidence.unknown_landed > 0, "inconclusive: no unknown send has landed");
    assert!(evidence.suppressed > 0, "inconclusive: no duplicate was suppressed");
    assert!(evidence.gap_repairs > 0, "inconclusive: no gap was repaired");
}
