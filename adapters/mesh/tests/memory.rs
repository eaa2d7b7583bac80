//! Memory of the mesh over many batches: a process of its own, in which nothing else runs.

#![cfg(target_os = "linux")]

mod support;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use roost_mesh::{MeshConfig, MeshDelivery};
use roost_ports::Delivery;
use support::{Sink, batch, endpoint, serve, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_batches_leave_memory_flat() {
    let sink = Sink::counting();
    let server = serve(sink.clone(), &MeshConfig::default()).await;
    let to = endpoint(&server, sink.incarnation());
    let delivery = MeshDelivery::new(MeshConfig::default());
    let resident_kib = || {
        let status = std::fs::read_to_string("/proc/self/status").expect("readable");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("there");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number")
    };
    let send = async |count: usize| {
        let mut sent = FuturesUnordered::new();
        for _ in 0..count {
            sent.push(delivery.send(&to, batch(vec![7; 200])));
            if sent.len() >= 1000 {
                assert_eq!(within("an acknowledgement", sent.next()).await, Some(Ok(())));
            }
        }
        while let Some(outcome) = within("an acknowledgement", sent.next()).await {
            assert_eq!(outcome, Ok(()));
        }
    };
    send(20_000).await;
    let before = resident_kib();
    send(100_000).await;
    let after = resident_kib();
    assert_eq!(sink.count(), 120_000);
    // Kept instead of forgotten, 100,000 batches would be 40 MiB and more.
    assert!(after < before + 24 * 1024, "{before} KiB before, {after} KiB after");
}
