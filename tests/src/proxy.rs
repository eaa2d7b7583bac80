//! A TCP proxy before a gateway, for faults of the network: all connections cut at once, or a peer that does not read.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// See the module. Dropping it cuts everything.
pub struct Proxy {
    address: SocketAddr,
    cuts: watch::Sender<u64>,
    held: watch::Sender<bool>,
    open: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// A proxy to this address (`http://host:port`).
    pub async fn start(to: &str) -> Self {
        let to: SocketAddr = to.trim_start_matches("http://").parse().expect("an address");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (cuts, held, open) = (watch::Sender::new(0), watch::Sender::new(false), Arc::new(AtomicUsize::new(0)));
        let (cut, hold, count) = (cuts.clone(), held.clone(), open.clone());
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (mut cut, hold, count) = (cut.subscribe(), hold.subscribe(), count.clone());
                tokio::spawn(async move {
                    count.fetch_add(1, Ordering::Relaxed);
                    // Fails where the gateway does not listen: then the client is cut.
                    if let Ok(mut server) = connect(to).await {
                        let mut client = client;
                        tokio::select! {
                            () = pass_on(&mut client, &mut server, hold) => {}
                            _ = cut.changed() => {
                                let reset = client.set_zero_linger().and_then(|()| server.set_zero_linger());
                                reset.expect("a socket");
                            }
                        }
                    }
                    count.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        Self { address, cuts, held, open, accepting }
    }

    /// Where clients connect.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many connections go through it.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Resets every connection, on both sides.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Reads no more from the gateway, or goes on.
    pub fn hold(&self, hold: bool) {
        self.held.send_replace(hold);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

/// Takes little from the gateway that it has not passed on.
async fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(16 * 1024)?;
    socket.connect(to).await
}

async fn pass_on(client: &mut TcpStream, server: &mut TcpStream, mut held: watch::Receiver<bool>) {
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let up = async {
        let mut piece = vec![0; 16 * 1024];
        while step(&mut from_client, &mut to_server, &mut piece).await {}
        let _ = to_server.shutdown().await;
    };
    let down = async {
        let mut piece = vec![0; 16 * 1024];
        loop {
            // Its sender lives as long as this connection.
            let _ = held.wait_for(|held| !held).await;
            if !step(&mut from_server, &mut to_client, &mut piece).await {
                break;
            }
        }
        let _ = to_client.shutdown().await;
    };
    tokio::join!(up, down);
}

async fn step(from: &mut ReadHalf<'_>, to: &mut WriteHalf<'_>, piece: &mut [u8]) -> bool {
    match from.read(piece).await {
        Ok(count) if count > 0 => to.write_all(&piece[..count]).await.is_ok(),
        _ => false,
    }
}
