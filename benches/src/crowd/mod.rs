//! The load's own client: thousands of WebSockets on one thread, the same for the product and for its references.
//!
//! A crowd is a process (`roost-bench crowd …`): it takes orders as lines on standard input, carries out one after the
//! other while it answers pings, and answers each by one JSON object on a line. It holds little for each session, and looks
//! no deeper into frames than it has to.

mod orders;
mod session;
mod tls;
mod wire;

use std::io::{BufRead, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use clap::Args;
use hdrhistogram::Histogram;
use mio::{Events, Poll, Token, Waker};

use crate::Result;
use crate::seed::Plan;

pub use tls::SERVER_NAME;
pub use wire::CONTENT_TYPE;

use session::{Session, State};

/// How a crowd is started.
#[derive(Args)]
pub struct Options {
    /// `host:port` of the server.
    #[arg(long)]
    address: SocketAddr,
    /// The product's users; without them it is a reference, which knows no accounts.
    #[arg(long)]
    plan: Option<PathBuf>,
    /// The user of the first session; the others follow.
    #[arg(long, default_value_t = 0)]
    first_user: usize,
    /// Connects from this address: one address has 28,000 ports.
    #[arg(long, default_value = "127.0.0.1")]
    source: Ipv4Addr,
    /// And from so many after it, in turn.
    #[arg(long, default_value_t = 1)]
    sources: u32,
    /// Speaks TLS, and trusts this certificate (PEM) only.
    #[arg(long)]
    trust: Option<PathBuf>,
    /// Bytes of a message's body.
    #[arg(long, default_value_t = 128)]
    body_bytes: usize,
}

const WAKER: Token = Token(usize::MAX);
/// Orders that wait; whoever gives more waits for their answers.
const ORDERS_MAX: usize = 16;
const EVENTS_MAX: usize = 4_096;
const BUFFER_BYTES: usize = 64 * 1024;

/// See the module.
struct Crowd {
    address: SocketAddr,
    plan: Option<Plan>,
    first_user: usize,
    source: Ipv4Addr,
    sources: u32,
    tls: Option<Arc<rustls::ClientConfig>>,
    body_bytes: usize,
    poll: Poll,
    events: Events,
    sessions: Vec<Session>,
    buffer: Vec<u8>,
    counts: Counts,
    /// When each message or the session's ping of the present order was due; latencies count from then.
    due: Vec<Instant>,
    latencies: Histogram<u64>,
    /// Sessions that ended and are to connect again, and when.
    again: std::collections::BinaryHeap<std::cmp::Reverse<(Instant, usize)>>,
    /// Whether those who are cut off connect again.
    reconnects: bool,
    /// When each session became live, since the order began.
    lived: Vec<Instant>,
}

/// What has happened since the order began, but for `live` and `opening`, which are now.
#[derive(Default, Clone, Copy)]
struct Counts {
    live: usize,
    opening: usize,
    /// Messages or pongs.
    answers: u64,
    /// Handshakes that the server refused.
    refused: u64,
    /// Live sessions that ended.
    lost: u64,
    /// Of those and of others, how many the server said goodbye to.
    closed_by_server: u64,
    /// `retry` and `rejected`: messages of ours that were not taken.
    not_taken: u64,
}

/// Takes orders until there are none.
pub fn run(options: Options) -> Result<()> {
    let plan = options.plan.as_deref().map(Plan::load).transpose()?;
    let poll = Poll::new()?;
    let orders = listen(Waker::new(poll.registry(), WAKER)?);
    let mut crowd = Crowd {
        address: options.address,
        plan,
        first_user: options.first_user,
        source: options.source,
        sources: options.sources.max(1),
        tls: options.trust.as_deref().map(tls::trusting).transpose()?,
        body_bytes: options.body_bytes,
        poll,
        events: Events::with_capacity(EVENTS_MAX),
        sessions: Vec::new(),
        buffer: vec![0; BUFFER_BYTES],
        counts: Counts::default(),
        due: Vec::new(),
        latencies: Histogram::new_with_bounds(1, 3_600_000_000, 3)?,
        again: Default::default(),
        reconnects: false,
        lived: Vec::new(),
    };
    loop {
        match orders.try_recv() {
            Ok(order) => {
                let answer = crowd.obey(&order)?;
                println!("{answer}");
                std::io::stdout().flush()?;
            }
            Err(std::sync::mpsc::TryRecvError::Empty) => crowd.turn(Duration::from_secs(1))?,
            Err(std::sync::mpsc::TryRecvError::Disconnected) => return Ok(()),
        }
    }
}

fn listen(waker: Waker) -> Receiver<String> {
    let (sender, orders) = sync_channel(ORDERS_MAX);
    let waker = Arc::new(waker);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(std::io::Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
            // The loop looks every second anyway.
            let _ = waker.wake();
        }
        drop(sender);
        let _ = waker.wake();
    });
    orders
}

impl Crowd {
    /// Waits for what happens, at most so long, and deals with it.
    fn turn(&mut self, at_most: Duration) -> Result<()> {
        let now = Instant::now();
        while let Some(&std::cmp::Reverse((at, index))) = self.again.peek()
            && at <= now
        {
            self.again.pop();
            self.connect(index)?;
        }
        let next = self.again.peek().map_or(at_most, |again| again.0.0.saturating_duration_since(now).min(at_most));
        // Taken out for a moment, so that the crowd can be used meanwhile.
        let mut events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        let polled = self.poll.poll(&mut events, Some(next));
        for event in &events {
            if polled.is_ok() && event.token() != WAKER {
                self.ready(event.token().0, event.is_writable());
            }
        }
        self.events = events;
        match polled {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => Ok(()),
            result => Ok(result?),
        }
    }

    fn connect(&mut self, index: usize) -> Result<()> {
        self.counts.opening += 1;
        let registry = self.poll.registry();
        let source = Ipv4Addr::from_bits(self.source.to_bits() + index as u32 % self.sources);
        match Session::connect(self.address, source.into(), |stream| session::register(registry, stream, index)) {
            Ok(stream) => self.sessions[index].begin(stream),
            Err(error) => return Err(format!("no socket to connect with: {error}").into()),
        }
        Ok(())
    }

    /// The session is gone, or its attempt has failed.
    fn ended(&mut self, index: usize, not_before: Duration) {
        let session = &mut self.sessions[index];
        let was = session.end();
        match was {
            State::Absent => return,
            State::Live => {
                self.counts.live -= 1;
                self.counts.lost += 1;
            }
            _ => self.counts.opening -= 1,
        }
        if was != State::Live || self.reconnects {
            let wait = self.sessions[index].back_off().max(not_before);
            self.again.push(std::cmp::Reverse((Instant::now() + wait, index)));
        }
    }

    fn became_live(&mut self, index: usize) {
        self.sessions[index].state = State::Live;
        self.sessions[index].attempts = 0;
        self.counts.opening -= 1;
        self.counts.live += 1;
        self.lived.push(Instant::now());
    }
}
