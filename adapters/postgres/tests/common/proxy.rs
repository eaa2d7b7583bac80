//! A proxy before the database that freezes, cuts or slows what goes through it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// What happens to a request that holds certain bytes.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// It never arrives, and nothing after it.
    Freeze(&'static [u8]),
    /// It arrives, and the connection is cut before the answer comes.
    LoseAnswer(&'static [u8]),
    /// Every request arrives so much later.
    Slow(Duration),
}

/// The proxy; it ends with the runtime.
pub struct Proxy {
    /// The database's URL, through the proxy.
    pub url: String,
    fault: Arc<Mutex<Option<Fault>>>,
}

impl Proxy {
    /// Before the database of this URL, `postgres://user@host:port/name`.
    pub async fn before(url: &str) -> Self {
        let (start, rest) = url.split_once('@').expect("a URL with a user");
        let (server, name) = rest.split_once('/').expect("a URL with a database");
        let server = tokio::net::lookup_host(server).await.expect("an address").next().expect("one address");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let fault = Arc::new(Mutex::new(None));
        tokio::spawn(accept(listener, server, fault.clone()));
        Self { url: format!("{start}@127.0.0.1:{port}/{name}"), fault }
    }

    /// From now on.
    pub fn set(&self, fault: Option<Fault>) {
        *self.fault.lock() = fault;
    }
}

async fn accept(listener: TcpListener, server: SocketAddr, fault: Arc<Mutex<Option<Fault>>>) {
    while let Ok((client, _)) = listener.accept().await {
        let fault = fault.clone();
        let cut = Arc::new(AtomicBool::new(false));
        tokio::spawn(async move {
            let server = TcpStream::connect(server).await.expect("the server");
            let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
            // Whichever ends first cuts both.
            tokio::select! {
                () = requests(from_client, to_server, fault, &cut) => {}
                () = answers(from_server, to_client, &cut) => {}
            }
        });
    }
}

async fn answers(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, cut: &AtomicBool) {
    let mut buffer = vec![0; 1 << 20];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        // The server has acted; nobody learns of it.
        if cut.load(Ordering::SeqCst) || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

async fn requests(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, fault: Arc<Mutex<Option<Fault>>>, cut: &AtomicBool) {
    let mut buffer = vec![0; 1 << 20];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let request = &buffer[..count];
        let holds = |wanted: &[u8]| request.windows(wanted.len()).any(|window| window == wanted);
        let now = *fault.lock();
        match now {
            Some(Fault::Freeze(wanted)) if holds(wanted) => std::future::pending().await,
            Some(Fault::LoseAnswer(wanted)) if holds(wanted) => {
                cut.store(true, Ordering::SeqCst);
                let _ = to.write_all(request).await;
                std::future::pending().await
            }
            Some(Fault::Slow(delay)) => tokio::time::sleep(delay).await,
            _ => {}
        }
        if to.write_all(request).await.is_err() {
            return;
        }
    }
}
