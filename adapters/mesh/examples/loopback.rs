//! Measures the mesh over loopback: batches of one 200-byte message a second, and the time until one is acknowledged.
//!
//! `cargo run --release -p roost-mesh --example loopback` prints one JSON object.

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hdrhistogram::Histogram;
use roost_mesh::{MeshConfig, MeshDelivery};
use roost_ports::Delivery;
use roost_protocol::records::Endpoint;
use support::{Sink, batch, endpoint, serve};

#[tokio::main]
async fn main() {
    let sink = Sink::counting();
    let server = serve(sink.clone(), &MeshConfig::default()).await;
    let to = endpoint(&server, sink.incarnation());
    let delivery = MeshDelivery::new(MeshConfig::default());
    run(&delivery, &to, 16, Duration::from_millis(500)).await;
    let mut lines = Vec::new();
    for in_flight in [1, 16, 256, 4096] {
        let (per_second, times) = run(&delivery, &to, in_flight, Duration::from_secs(3)).await;
        let [p50, p99] = [0.5, 0.99].map(|quantile| times.value_at_quantile(quantile));
        lines.push(format!(
            r#""in_flight_{in_flight}":{{"batches_per_second":{per_second:.0},"p50_us":{p50},"p99_us":{p99}}}"#
        ));
    }
    println!("{{{}}}", lines.join(","));
}

async fn run(delivery: &MeshDelivery, to: &Endpoint, in_flight: usize, lasts: Duration) -> (f64, Histogram<u64>) {
    let payload = bytes::Bytes::from(vec![7; 200]);
    let mut times = Histogram::new(3).expect("three digits");
    let mut sent = FuturesUnordered::new();
    let begun = Instant::now();
    let mut acknowledged = 0_u32;
    loop {
        let more = begun.elapsed() < lasts;
        while more && sent.len() < in_flight {
            let (future, since) = (delivery.send(to, batch(payload.clone())), Instant::now());
            sent.push(async move {
                future.await.expect("acknowledged");
                since.elapsed()
            });
        }
        let Some(time) = sent.next().await else { break };
        acknowledged += 1;
        times.record(time.as_micros() as u64).expect("in range");
    }
    (f64::from(acknowledged) / begun.elapsed().as_secs_f64(), times)
}
