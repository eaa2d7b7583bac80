//! Sessions are the same over TLS as without it.

use std::sync::Arc;
use std::time::Duration;

use roost_ports::delivery::{Audience, DeliveryBatch, DeliveryItem};
use roost_protocol::frames::{ClientBody, Form, ServerBody};
use roost_protocol::records::DeliverRecord;
use roost_protocol::{CloseCode, ConversationId};
use rustls::version::{TLS12, TLS13};
use rustls::{HandshakeKind, ProtocolVersion};

use crate::client::{Client, End};
use crate::eventually;
use crate::pair::{Pair, dial};
use crate::world::{World, message};

#[tokio::test(flavor = "multi_thread")]
async fn a_send_is_committed_and_reaches_both_forms_over_both_versions() {
    let (world, pair) = (World::new(), Pair::new());
    let gateway = world.start(pair.config()).await;
    let address = gateway.address();
    let new = dial(pair.trusting(&[&TLS13]), address).await;
    let old = dial(pair.trusting(&[&TLS12]), address).await;
    for (stream, version) in [(&new, ProtocolVersion::TLSv1_3), (&old, ProtocolVersion::TLSv1_2)] {
        let connection = stream.get_ref().1;
        assert_eq!(connection.protocol_version(), Some(version));
        assert_eq!(connection.alpn_protocol(), Some(b"http/1.1".as_slice()));
    }
    let mut new = Client::connect_over(new, address, Form::Binary).await;
    let mut old = Client::connect_over(old, address, Form::Json).await;
    eventually("both are registered", || world.registered.lock().len() == 2).await;
    let conversation = ConversationId::new();
    for (id, size) in [(2, 1), (3, 1_000), (4, 60_000)] {
        let text = "x".repeat(size);
        old.send(id, conversation, &text).await;
        new.send(id, conversation, &text).await;
    }
    for client in [&mut old.hears(9).await[..], &mut new.hears(9).await[..]] {
        client.sort_unstable();
        assert_eq!(client, [0, 0, 0, 1, 1, 1_000, 1_000, 60_000, 60_000]);
    }
    eventually("nothing else", || gateway.sessions() == 2).await;
    gateway.stop().await;
}

impl<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin> Client<S> {
    /// The sizes of the next messages; 0 for a verdict.
    async fn hears(&mut self, count: usize) -> Vec<usize> {
        let mut sizes = Vec::new();
        while sizes.len() < count {
            sizes.push(match self.hear().await.body {
                ServerBody::Message(message) => message.body.len(),
                ServerBody::Sent { .. } => 0,
                other => panic!("{other:?}"),
            });
        }
        sizes
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_resumes() {
    let (world, pair) = (World::new(), Pair::new());
    let gateway = world.start(pair.config()).await;
    for version in [&TLS13, &TLS12] {
        let config = Arc::new(pair.trusting(&[version]));
        let mut kinds = Vec::new();
        for _ in 0..3 {
            let stream = dial(Arc::clone(&config), gateway.address()).await;
            kinds.push(stream.get_ref().1.handshake_kind().unwrap());
            // The ticket comes with the first bytes that are read.
            let mut client = Client::connect_over(stream, gateway.address(), Form::Json).await;
            client.socket.close(None).await.unwrap();
            assert_eq!(client.end().await, End::Closed(1005));
        }
        assert_eq!(kinds, [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed], "{version:?}");
    }
    gateway.stop().await;
}

async fn deliver(gateway: &roost_gateway::GatewayHandle, client: &Client<impl Sized>, count: u64) {
    let conversation = ConversationId::new();
    let session = client.connected.as_ref().unwrap().session_id;
    for seq in 1..=count {
        let record = DeliverRecord { members_version: 1, message: message(conversation, seq, &vec![b'x'; 20_000]) };
        let audience = Audience::Sessions([session].into());
        let item = DeliveryItem::Message { audience, record: record.encode() };
        gateway.sink().deliver(DeliveryBatch { items: vec![item] }).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_gets_all_that_fits_and_is_closed_beyond() {
    let (world, pair) = (World::new(), Pair::new());
    let mut config = pair.config();
    config.queue_bytes_hard = 4 << 20;
    config.timings.close_ms = 20_000;
    let gateway = world.start(config).await;
    let config = Arc::new(pair.trusting(&[&TLS13]));
    let stream = dial(Arc::clone(&config), gateway.address()).await;
    let mut patient = Client::connect_over(stream, gateway.address(), Form::Binary).await;
    // Less than the queue, more than the socket's buffers take at once.
    deliver(&gateway, &patient, 150).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    for seq in 1..=150 {
        let ServerBody::Message(message) = patient.hear().await.body else { panic!("a message") };
        assert_eq!((message.seq, message.body.len()), (seq, 20_000));
    }
    let stream = dial(config, gateway.address()).await;
    let mut slow = Client::connect_over(stream, gateway.address(), Form::Binary).await;
    deliver(&gateway, &slow, 1_000).await;
    assert_eq!(slow.end().await, End::Closed(CloseCode::Slow.code()));
    patient.say(Some(2), ClientBody::Ping).await;
    assert_eq!(patient.hear().await.id, Some(2));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_come_and_go_and_nothing_is_left() {
    let (world, pair) = (World::new(), Pair::new());
    let gateway = world.start(pair.config()).await;
    let config = Arc::new(pair.trusting(&[&TLS13, &TLS12]));
    for round in 0..6 {
        let mut clients = Vec::new();
        for index in 0..30 {
            let stream = dial(Arc::clone(&config), gateway.address()).await;
            match index % 3 {
                // Nothing is said; the TLS connection, or the socket below it, is dropped.
                0 => drop(stream),
                1 => drop(stream.into_inner().0),
                _ => clients.push(Client::connect_over(stream, gateway.address(), Form::Binary).await),
            }
        }
        eventually("only those are left", || gateway.connections() == clients.len()).await;
        for client in &mut clients {
            client.say(Some(2), ClientBody::Ping).await;
            assert_eq!(client.hear().await.id, Some(2), "round {round}");
        }
        drop(clients);
        eventually("nobody is left", || (gateway.connections(), gateway.sessions()) == (0, 0)).await;
    }
    gateway.stop().await;
}
