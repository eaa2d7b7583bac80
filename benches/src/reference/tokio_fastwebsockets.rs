//! What a good engineer writes in an afternoon: tokio, hyper's upgrade, fastwebsockets, one task per
//! connection, and a channel per connection that carries the one shared payload.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fastwebsockets::upgrade::{UpgradeFut, upgrade};
use fastwebsockets::{Frame, OpCode, Payload, WebSocketError, WebSocketRead, WebSocketWrite};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{ReadHalf, WriteHalf};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::Mode;
use crate::Result;

/// Frames that wait for one connection; beyond, it misses some.
const WAITING_MAX: usize = 64;

struct Server {
    mode: Mode,
    payload: Bytes,
    ping_every: Duration,
    connections: Mutex<HashMap<u64, mpsc::Sender<Outgoing>>>,
    next: AtomicU64,
}

enum Outgoing {
    Data(Bytes),
    Pong(Bytes),
}

type Socket = TokioIo<Upgraded>;

/// Serves for ever.
pub fn serve(mode: Mode, payload: Bytes, ping_every: Duration, threads: usize) -> Result<()> {
    let server =
        Arc::new(Server { mode, payload, ping_every, connections: Mutex::default(), next: AtomicU64::default() });
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    // The accepting loop is a task too, so that it is on one of these.
    let runtime = runtime.worker_threads(threads).enable_all().build()?;
    runtime.block_on(async { tokio::spawn(accept(server)).await? })
}

async fn accept(server: Arc<Server>) -> Result<()> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.bind(([127, 0, 0, 1], 0).into())?;
    let listener: TcpListener = socket.listen(4096)?;
    super::announce(listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let server = Arc::clone(&server);
        tokio::spawn(async move {
            let service = service_fn(move |mut request: hyper::Request<Incoming>| {
                let server = Arc::clone(&server);
                async move {
                    let (response, upgraded) = upgrade(&mut request)?;
                    tokio::spawn(connection(server, upgraded));
                    Ok::<_, WebSocketError>(response)
                }
            });
            let http = hyper::server::conn::http1::Builder::new();
            // A peer that goes away in its handshake is nobody's concern.
            let _ = http.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
        });
    }
}

async fn connection(server: Arc<Server>, upgraded: UpgradeFut) {
    let Ok(mut socket) = upgraded.await else { return };
    socket.set_auto_pong(false);
    socket.set_auto_close(false);
    let (reader, writer) = socket.split(tokio::io::split);
    let (sender, outgoing) = mpsc::channel(WAITING_MAX);
    let number = server.next.fetch_add(1, Ordering::Relaxed);
    server.connections.lock().insert(number, sender.clone());
    // Both live as long as the connection: the reader must never be dropped half way through a frame.
    tokio::select! {
        _ = read(&server, reader, sender) => {}
        _ = write(server.ping_every, writer, outgoing) => {}
    }
    server.connections.lock().remove(&number);
}

async fn read(
    server: &Server,
    mut reader: WebSocketRead<ReadHalf<Socket>>,
    sender: mpsc::Sender<Outgoing>,
) -> Result<()> {
    loop {
        let frame = reader.read_frame(&mut |_| async { Ok::<(), std::io::Error>(()) }).await?;
        match frame.opcode {
            OpCode::Binary | OpCode::Text if server.mode == Mode::Echo => {
                sender.send(Outgoing::Data(Bytes::copy_from_slice(&frame.payload))).await?;
            }
            OpCode::Binary | OpCode::Text => broadcast(server),
            OpCode::Ping => sender.send(Outgoing::Pong(Bytes::copy_from_slice(&frame.payload))).await?,
            OpCode::Close => return Ok(()),
            OpCode::Pong | OpCode::Continuation => {}
        }
    }
}

fn broadcast(server: &Server) {
    for connection in server.connections.lock().values() {
        // A connection that is full misses it, as it would in the product's place.
        let _ = connection.try_send(Outgoing::Data(server.payload.clone()));
    }
}

async fn write(
    ping_every: Duration,
    mut writer: WebSocketWrite<WriteHalf<Socket>>,
    mut outgoing: mpsc::Receiver<Outgoing>,
) -> Result<()> {
    let mut ping = tokio::time::interval_at(tokio::time::Instant::now() + ping_every, ping_every);
    loop {
        tokio::select! {
            next = outgoing.recv() => match next {
                Some(Outgoing::Data(payload)) => {
                    writer.write_frame(Frame::binary(Payload::Borrowed(&payload))).await?;
                    // It pings idle connections only.
                    ping.reset();
                }
                Some(Outgoing::Pong(payload)) => writer.write_frame(Frame::pong(Payload::Borrowed(&payload))).await?,
                None => return Ok(()),
            },
            _ = ping.tick() => {
                writer.write_frame(Frame::new(true, OpCode::Ping, None, Payload::Borrowed(&[]))).await?;
            }
        }
    }
}
