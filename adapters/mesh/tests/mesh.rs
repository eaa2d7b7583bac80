//! What the mesh promises beyond the port: secrets, lost streams, limits, and memory.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use roost_mesh::{MeshConfig, MeshDelivery, MeshServer, MeshServerError};
use roost_ports::delivery::{Audience, DeliveryBatch, DeliveryError, DeliveryItem};
use roost_ports::{Delivery, DeliverySink};
use roost_protocol::records::Endpoint;
use roost_protocol::{Incarnation, SessionId};
use support::{LIVENESS_LIMIT, Sink, batch, endpoint, secret, serve, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

fn with_secret(letter: char) -> MeshConfig {
    MeshConfig { shared_secret: Some(secret(letter)), ..MeshConfig::default() }
}

fn unavailable(outcome: &Result<(), DeliveryError>) -> bool {
    matches!(outcome, Err(DeliveryError::Unavailable(_)))
}

#[tokio::test]
async fn another_secret_or_none_is_refused_at_either_end() {
    for (ours, theirs) in [
        (with_secret('a'), with_secret('b')),
        (with_secret('a'), MeshConfig::default()),
        (MeshConfig::default(), with_secret('b')),
    ] {
        let sink = Sink::keeping();
        let server = serve(sink.clone(), &theirs).await;
        let sent = MeshDelivery::new(ours).send(&endpoint(&server, sink.incarnation()), batch("x"));
        match within("the refusal", sent).await {
            Err(DeliveryError::Unavailable(words)) => assert!(words.contains("secret"), "{words}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(sink.count(), 0);
    }
}

#[tokio::test]
async fn without_a_secret_only_loopback_is_listened_on() {
    let refused = async |address: &str, config| {
        MeshServer::bind(address.parse::<SocketAddr>().expect("an address"), Sink::keeping(), config).await
    };
    for address in ["0.0.0.0:0", "[::]:0", "10.1.2.3:0", "[::ffff:10.1.2.3]:0"] {
        match refused(address, MeshConfig::default()).await.err() {
            Some(error @ MeshServerError::NeedsSecret(_)) => {
                assert!(error.to_string().contains("--mesh-secret-file"), "{error}");
            }
            other => panic!("{address}: {other:?}"),
        }
    }
    assert!(refused("0.0.0.0:0", with_secret('a')).await.is_ok());
    assert!(refused("127.0.0.1:0", MeshConfig::default()).await.is_ok());
}

#[tokio::test]
async fn a_life_that_is_over_is_asked_once_and_a_later_one_is_not_taken_for_it() {
    let sink = Sink::keeping();
    let server = serve(sink.clone(), &MeshConfig::default()).await;
    let config = MeshConfig { gone_for: Duration::from_millis(300), ..MeshConfig::default() };
    let delivery = MeshDelivery::new(config);
    let first = endpoint(&server, sink.incarnation());
    assert_eq!(within("the acknowledgement", delivery.send(&first, batch("1"))).await, Ok(()));
    // The lease was lost: the same process begins another life under the open stream.
    let second = Incarnation::new();
    sink.incarnation.store(second.0, Ordering::Relaxed);
    assert_eq!(within("the refusal", delivery.send(&first, batch("2"))).await, Err(DeliveryError::Gone));
    let second = endpoint(&server, second);
    assert_eq!(within("the acknowledgement", delivery.send(&second, batch("3"))).await, Ok(()));
    drop(server);
    // Known without asking: nobody is there to ask.
    let cached = tokio::time::timeout(Duration::from_millis(100), delivery.send(&first, batch("4"))).await;
    assert_eq!(cached, Ok(Err(DeliveryError::Gone)));
    assert_eq!(sink.batches(), [batch("1"), batch("3")]);
    within("forgetting", async {
        while delivery.endpoints() > 1 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_leaves_its_batches_unavailable_and_a_new_one_is_found() {
    let sink = Sink::held();
    let server = serve(sink.clone(), &MeshConfig::default()).await;
    let to = endpoint(&server, sink.incarnation());
    let address = server.local_addr();
    let delivery = MeshDelivery::new(MeshConfig::default());
    let sent: Vec<_> = (0..100).map(|number| delivery.send(&to, batch(format!("{number}")))).collect();
    within("arrival", async {
        while sink.count() < 100 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    drop(server);
    for outcome in within("the loss", futures::future::join_all(sent)).await {
        assert!(unavailable(&outcome), "{outcome:?}");
    }
    let nobody = within("the loss", delivery.send(&to, batch("nobody"))).await;
    assert!(unavailable(&nobody), "{nobody:?}");
    sink.open.send_replace(true);
    let server = MeshServer::bind(address, sink.clone(), MeshConfig::default()).await.expect("bound again");
    within("recovery", async {
        while delivery.send(&to, batch("again")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(sink.count(), 101, "nothing is sent a second time by the mesh itself");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopping_server_acknowledges_what_has_arrived() {
    let sink = Sink::held();
    let server = serve(sink.clone(), &MeshConfig::default()).await;
    let to = endpoint(&server, sink.incarnation());
    let delivery = MeshDelivery::new(MeshConfig::default());
    let sent = delivery.send(&to, batch("1"));
    within("arrival", async {
        while sink.count() < 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let stopped = tokio::spawn(server.stop());
    tokio::time::sleep(Duration::from_millis(100)).await;
    sink.open.send_replace(true);
    assert_eq!(within("the acknowledgement", sent).await, Ok(()));
    within("the stop", stopped).await.expect("stopped");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelined_batches_stay_in_order_and_answers_find_their_own() {
    let sink = Sink::keeping();
    let server = serve(sink.clone(), &MeshConfig::default()).await;
    let to = endpoint(&server, sink.incarnation());
    let delivery = MeshDelivery::new(MeshConfig::default());
    // Sizes that make frames of one batch, of many, and batches of several frames.
    let size = |number: usize| [10, 300, 5_000, 70_000, 400_000][number % 5] + number;
    let sized = |number: usize| DeliveryBatch {
        items: (0..1 + number % 7)
            .flat_map(|_| batch(vec![number as u8; size(number) / (1 + number % 7)]).items)
            .collect(),
    };
    for round in 0..10 {
        let sent: Vec<_> = (0..100).map(|number| delivery.send(&to, sized(round * 100 + number))).collect();
        for outcome in within("the acknowledgements", futures::future::join_all(sent)).await {
            assert_eq!(outcome, Ok(()));
        }
    }
    assert!(sink.batches() == (0..1000).map(sized).collect::<Vec<_>>(), "order, or content, was lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_audience_may_be_larger_than_a_frame() {
    let sink = Sink::keeping();
    let server = serve(sink.clone(), &MeshConfig::default()).await;
    let delivery = MeshDelivery::new(MeshConfig::default());
    for count in [10_000, 200_000] {
        let sessions: Arc<[SessionId]> = (0..count).map(|slot| SessionId::new(Incarnation(1), 0, slot, 0)).collect();
        let item = DeliveryItem::Message { audience: Audience::Sessions(sessions), record: Bytes::from("r") };
        let batch = DeliveryBatch { items: vec![item] };
        let sent = delivery.send(&endpoint(&server, sink.incarnation()), batch.clone());
        assert_eq!(within("the acknowledgement", sent).await, Ok(()));
        assert!(sink.batches().last() == Some(&batch));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_endpoint_is_busy_for_its_own_batches_only() {
    let (slow, quick) = (Sink::held(), Sink::keeping());
    let servers =
        (serve(slow.clone(), &MeshConfig::default()).await, serve(quick.clone(), &MeshConfig::default()).await);
    let config = MeshConfig { outstanding_bytes_max: 64 * 1024, ..MeshConfig::default() };
    let delivery = MeshDelivery::new(config);
    let to = endpoint(&servers.0, slow.incarnation());
    let mut accepted = FuturesUnordered::new();
    loop {
        let mut sent = delivery.send(&to, batch(vec![0; 1000]));
        match futures::poll!(&mut sent) {
            std::task::Poll::Ready(outcome) => break assert_eq!(outcome, Err(DeliveryError::Busy)),
            std::task::Poll::Pending => accepted.push(sent),
        }
    }
    assert!((50..=64).contains(&accepted.len()), "{}", accepted.len());
    let sent = delivery.send(&endpoint(&servers.1, quick.incarnation()), batch("x"));
    assert_eq!(within("the other's acknowledgement", sent).await, Ok(()));
    slow.open.send_replace(true);
    while let Some(outcome) = within("the acknowledgements", accepted.next()).await {
        assert_eq!(outcome, Ok(()));
    }
    assert_eq!(within("the acknowledgement", delivery.send(&to, batch("room again"))).await, Ok(()));
}

#[tokio::test]
async fn an_endpoint_that_does_not_acknowledge_is_given_up_and_found_again() {
    let sink = Sink::held();
    let server = serve(sink.clone(), &MeshConfig::default()).await;
    let config = MeshConfig { acknowledged_within: Duration::from_millis(300), ..MeshConfig::default() };
    let delivery = MeshDelivery::new(config);
    let to = endpoint(&server, sink.incarnation());
    let outcome = within("giving up", delivery.send(&to, batch("x"))).await;
    assert!(unavailable(&outcome), "{outcome:?}");
    sink.open.send_replace(true);
    assert_eq!(within("the acknowledgement", delivery.send(&to, batch("y"))).await, Ok(()));
    assert_eq!(sink.batches(), [batch("x"), batch("y")]);
}

/// The network swallows everything from now on, both ways, and closes nothing: only the pings can tell.
#[tokio::test]
async fn a_connection_that_becomes_a_black_hole_is_found_by_its_pings() {
    let sink = Sink::keeping();
    let server = serve(sink.clone(), &MeshConfig::default()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = format!("http://{}", listener.local_addr().expect("bound"));
    let target = server.local_addr();
    let frozen = watch::Sender::new(false);
    let mut freezes = frozen.subscribe();
    let network = tokio::spawn(async move {
        let (mut near, _) = listener.accept().await.expect("accepted");
        let mut far = TcpStream::connect(target).await.expect("connected");
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut near, &mut far) => panic!("the stream ended early"),
            _ = freezes.wait_for(|frozen| *frozen) => {}
        }
        std::future::pending::<()>().await;
        drop((near, far));
    });
    let config = MeshConfig {
        ping_every: Duration::from_millis(200),
        acknowledged_within: 10 * LIVENESS_LIMIT,
        ..MeshConfig::default()
    };
    let delivery = MeshDelivery::new(config);
    let to = Endpoint { address, incarnation: sink.incarnation() };
    assert_eq!(within("the acknowledgement", delivery.send(&to, batch("x"))).await, Ok(()));
    frozen.send_replace(true);
    let outcome = within("finding out", delivery.send(&to, batch("y"))).await;
    assert!(unavailable(&outcome), "{outcome:?}");
    network.abort();
}

/// A server whose process hangs, or whose network swallows everything: the kernel accepts, nobody answers.
#[tokio::test]
async fn a_black_hole_is_given_up() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = format!("http://{}", listener.local_addr().expect("bound"));
    let config = MeshConfig { acknowledged_within: Duration::from_millis(500), ..MeshConfig::default() };
    let delivery = MeshDelivery::new(config);
    let to = Endpoint { address, incarnation: Incarnation::new() };
    let outcome = within("giving up", delivery.send(&to, batch("x"))).await;
    assert!(unavailable(&outcome), "{outcome:?}");
    for address in ["not an address", "http://127.0.0.1:1", "https://", "http://nowhere.invalid:80"] {
        let to = Endpoint { address: address.into(), incarnation: Incarnation::new() };
        let outcome = within("the refusal", delivery.send(&to, batch("x"))).await;
        assert!(unavailable(&outcome), "{address}: {outcome:?}");
    }
}

#[tokio::test]
async fn idle_and_dead_endpoints_are_forgotten() {
    let sink = Sink::keeping();
    let server = serve(sink.clone(), &MeshConfig::default()).await;
    let config = MeshConfig { idle_after: Duration::from_millis(200), ..MeshConfig::default() };
    let delivery = MeshDelivery::new(config);
    let to = endpoint(&server, sink.incarnation());
    assert_eq!(within("the acknowledgement", delivery.send(&to, batch("1"))).await, Ok(()));
    let dead = Endpoint { address: "http://127.0.0.1:1".into(), incarnation: Incarnation::new() };
    assert!(unavailable(&within("the refusal", delivery.send(&dead, batch("1"))).await));
    assert_eq!(delivery.endpoints(), 2);
    within("forgetting", async {
        while delivery.endpoints() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(within("the acknowledgement", delivery.send(&to, batch("2"))).await, Ok(()));
}

#[tokio::test]
async fn dropping_the_sender_lets_what_is_in_line_finish() {
    let sink = Sink::keeping();
    let server = serve(sink.clone(), &MeshConfig::default()).await;
    let delivery = MeshDelivery::new(MeshConfig::default());
    let sent = delivery.send(&endpoint(&server, sink.incarnation()), batch("last"));
    drop(delivery);
    assert_eq!(within("the acknowledgement", sent).await, Ok(()));
}

#[tokio::test]
async fn garbage_and_silence_on_the_port_are_closed_and_disturb_nobody() {
    let sink = Sink::keeping();
    let server = serve(sink.clone(), &with_secret('a')).await;
    let delivery = MeshDelivery::new(with_secret('a'));
    let to = endpoint(&server, sink.incarnation());
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    let inputs = [b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![0xff; 100_000], preface, Vec::new()];
    let address = server.local_addr();
    let closed = inputs.map(|input| async move {
        let mut tcp = TcpStream::connect(address).await.expect("connected");
        let _ = tcp.write_all(&input).await;
        // Ended by the server, with or without words.
        let _ = within("the end of the connection", tcp.read_to_end(&mut Vec::new())).await;
    });
    let begun = Instant::now();
    let good = async {
        for _ in 0..10 {
            assert_eq!(within("the acknowledgement", delivery.send(&to, batch("x"))).await, Ok(()));
        }
    };
    tokio::join!(futures::future::join_all(closed), good);
    assert!(begun.elapsed() < LIVENESS_LIMIT);
    // The good connection is older than the time to open by now, and stays.
    assert_eq!(within("the acknowledgement", delivery.send(&to, batch("y"))).await, Ok(()));
    assert_eq!(sink.count(), 11);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attached_sink_is_served_in_process_at_any_address() {
    let delivery = MeshDelivery::new(MeshConfig::default());
    let sink = Sink::keeping();
    delivery.attach_local(sink.clone() as Arc<dyn DeliverySink>);
    for address in ["", "http://127.0.0.1:1"] {
        let to = Endpoint { address: address.into(), incarnation: sink.incarnation() };
        assert_eq!(within("the acknowledgement", delivery.send(&to, batch("x"))).await, Ok(()));
    }
    let to = Endpoint { address: String::new(), incarnation: Incarnation::new() };
    assert_eq!(within("the refusal", delivery.send(&to, batch("x"))).await, Err(DeliveryError::Gone));
    assert_eq!((sink.count(), delivery.endpoints()), (2, 0));
}
