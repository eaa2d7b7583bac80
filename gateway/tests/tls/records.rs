//! Records and segments are two things: a record comes in pieces, and a segment holds many of them.

use std::io::{self, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use roost_protocol::ConversationId;
use roost_protocol::frames::{ClientBody, Form, ServerBody};
use rustls::ClientConnection;
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use crate::client::Client;
use crate::pair::{Pair, secure};
use crate::world::{World, token, wall_ms};

/// How a stream writes.
enum Habit {
    /// So many bytes a segment.
    Pieces(usize),
    /// Nothing until it is let go of, and then all at once.
    Held(Vec<u8>),
}

struct Stream {
    socket: TcpStream,
    habit: Habit,
}

impl Stream {
    async fn connect(address: std::net::SocketAddr, habit: Habit) -> Self {
        let socket = TcpStream::connect(address).await.unwrap();
        socket.set_nodelay(true).unwrap();
        Self { socket, habit }
    }

    async fn let_go(&mut self) {
        let Habit::Held(held) = std::mem::replace(&mut self.habit, Habit::Pieces(usize::MAX)) else { return };
        self.socket.write_all(&held).await.unwrap();
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // A piece at a time on this side, too.
        let Habit::Pieces(bytes) = self.habit else { return Pin::new(&mut self.socket).poll_read(context, out) };
        let mut piece = out.take(bytes);
        ready!(Pin::new(&mut self.socket).poll_read(context, &mut piece))?;
        let bytes = piece.filled().len();
        out.advance(bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Self { socket, habit } = &mut *self;
        match habit {
            Habit::Pieces(piece) => Pin::new(socket).poll_write(context, &bytes[..bytes.len().min(*piece)]),
            Habit::Held(held) => {
                held.extend_from_slice(bytes);
                Poll::Ready(Ok(bytes.len()))
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_may_come_byte_by_byte() {
    let (world, pair) = (World::new(), Pair::new());
    let gateway = world.start(pair.config()).await;
    let address = gateway.address();
    for (version, piece, size) in [(&TLS13, 1, 100), (&TLS12, 1, 100), (&TLS13, 1_000, 60_000), (&TLS12, 4_001, 60_000)]
    {
        let stream = Stream::connect(address, Habit::Pieces(piece)).await;
        let stream = secure(pair.trusting(&[version]), stream).await.expect("the handshake completes");
        let mut client = Client::connect_over(stream, address, Form::Json).await;
        for id in 2..5 {
            client.send(id, ConversationId::new(), &"x".repeat(size)).await;
            // The message itself may come before, where the registry knows the session already.
            while !matches!(client.hear().await.body, ServerBody::Sent { seq: 1, .. }) {}
        }
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_records_may_come_in_one_segment() {
    let (world, pair) = (World::new(), Pair::new());
    let gateway = world.start(pair.config()).await;
    let address = gateway.address();
    let stream = Stream::connect(address, Habit::Pieces(usize::MAX)).await;
    let stream = secure(pair.trusting(&[&TLS13]), stream).await.unwrap();
    let mut eager = Client::open_over(stream, address, Form::Binary).await;
    // What follows `connect` is read only once the session is live, however it came.
    eager.socket.get_mut().get_mut().0.habit = Habit::Held(Vec::new());
    let good = token(eager.user, eager.device, wall_ms() + 60_000);
    eager.say_connect(&good, None).await;
    for id in 2..20 {
        eager.say(Some(id), ClientBody::Ping).await;
    }
    eager.socket.get_mut().get_mut().0.let_go().await;
    eager.wait_connected().await;
    for id in 2..20 {
        assert_eq!(eager.hear().await.id, Some(id));
    }
    eager.socket.get_mut().get_mut().0.habit = Habit::Held(Vec::new());
    let conversation = ConversationId::new();
    for id in 40..80 {
        eager.send(id, conversation, &"x".repeat(id as usize * 50)).await;
    }
    eager.socket.get_mut().get_mut().0.let_go().await;
    let mut sent = 40;
    while sent < 80 {
        let frame = eager.hear().await;
        match frame.body {
            ServerBody::Sent { .. } => {
                assert_eq!(frame.id, Some(sent));
                sent += 1;
            }
            ServerBody::Message(_) => {}
            other => panic!("{other:?}"),
        }
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_request_may_come_with_the_end_of_the_handshake() {
    let (world, pair) = (World::new(), Pair::new());
    let gateway = world.start(pair.config()).await;
    let (address, config) = (gateway.address(), pair.trusting(&[&TLS13]));
    let asked = tokio::task::spawn_blocking(move || {
        let mut socket = std::net::TcpStream::connect(address).unwrap();
        let mut client = ClientConnection::new(config.into(), "localhost".try_into().unwrap()).unwrap();
        client.write_tls(&mut socket).unwrap();
        while client.is_handshaking() {
            client.read_tls(&mut socket).unwrap();
            client.process_new_packets().unwrap();
        }
        client.writer().write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut segment = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut segment).unwrap();
        }
        socket.write_all(&segment).unwrap();
        let mut answer = String::new();
        rustls::Stream::new(&mut client, &mut socket).read_to_string(&mut answer).unwrap();
        answer
    });
    let answer = asked.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_may_be_changed_at_any_time() {
    let (world, pair) = (World::new(), Pair::new());
    let gateway = world.start(pair.config()).await;
    let stream = Stream::connect(gateway.address(), Habit::Pieces(usize::MAX)).await;
    let stream = secure(pair.trusting(&[&TLS13]), stream).await.unwrap();
    let mut client = Client::connect_over(stream, gateway.address(), Form::Binary).await;
    for id in 2..10 {
        client.socket.get_mut().get_mut().1.refresh_traffic_keys().unwrap();
        client.say(Some(id), ClientBody::Ping).await;
        assert_eq!(client.hear().await.id, Some(id));
    }
    gateway.stop().await;
}
