//! The load: an open loop. Every message has a moment when it is due, and its latencies count from then, whether or not
//! the client got round to sending it, so that a stalled server cannot hide behind a stalled client.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use roost_protocol::frames::{ClientBody, ClientFrame, Send as SendFrame, ServerBody};
use roost_protocol::{ClientMsgId, ConversationId};
use tokio::sync::{Mutex, mpsc};

use crate::Result;
use crate::client::{self, Receiver, Sender};
use crate::installation::Installation;

/// How much to send.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Messages a second, all sessions together.
    pub per_second: u64,
    /// For how long.
    pub during: Duration,
    /// What comes before the measurement begins.
    pub warm_up: Duration,
    /// Bytes of a body, at least 8.
    pub body_bytes: usize,
}

/// What came of it.
pub struct Outcome {
    /// From due to `sent`, in microseconds.
    pub sent: Histogram<u64>,
    /// From due to the other user's session, in microseconds.
    pub received: Histogram<u64>,
    /// Messages due in the measured time.
    pub due: u64,
    /// Of those, how many never had their `sent`.
    pub unanswered: u64,
    /// `retry` answers.
    pub retries: u64,
}

impl Outcome {
    /// A quantile in milliseconds.
    pub fn ms(histogram: &Histogram<u64>, quantile: f64) -> f64 {
        (histogram.value_at_quantile(quantile) as f64 / 10.0).round() / 100.0
    }
}

/// Messages waiting at one session before the pacer calls the client itself too slow.
const WAITING_MAX: usize = 4_096;
/// How long verdicts may take after the last message was due.
const SETTLE: Duration = Duration::from_secs(10);

/// Sessions of every user of an installation, connected once and used for several loads.
pub struct Sessions {
    lanes: Vec<mpsc::Sender<u64>>,
    shared: Arc<Shared>,
    body_bytes: Arc<AtomicU64>,
}

struct Shared {
    begun: Instant,
    /// Due times before this are warm-up.
    measured_from: AtomicU64,
    measured_until: AtomicU64,
    retries: AtomicU64,
    sent: Mutex<Vec<u64>>,
    received: Mutex<Vec<u64>>,
}

impl Shared {
    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn measured(&self, due: u64) -> bool {
        (self.measured_from.load(Ordering::Relaxed)..self.measured_until.load(Ordering::Relaxed)).contains(&due)
    }
}

impl Sessions {
    /// Connects every user.
    pub async fn connect(installation: &Installation) -> Result<Self> {
        let shared = Arc::new(Shared {
            begun: Instant::now(),
            measured_from: AtomicU64::new(u64::MAX),
            measured_until: AtomicU64::new(u64::MAX),
            retries: AtomicU64::new(0),
            sent: Mutex::default(),
            received: Mutex::default(),
        });
        let body_bytes = Arc::new(AtomicU64::new(128));
        let mut lanes = Vec::new();
        for pair in &installation.pairs {
            for user in &pair.users {
                let (sender, receiver) = client::connect(&installation.address, &user.token).await?;
                let (lane, due) = mpsc::channel(WAITING_MAX);
                let outstanding = Arc::new(Mutex::new(HashMap::new()));
                let session = Session {
                    conversation: pair.conversation,
                    user: user.user_id,
                    shared: shared.clone(),
                    outstanding,
                    sender: Arc::new(Mutex::new(sender)),
                    body_bytes: body_bytes.clone(),
                };
                tokio::spawn(session.clone().send_when_due(due));
                tokio::spawn(session.receive(receiver));
                lanes.push(lane);
            }
        }
        Ok(Self { lanes, shared, body_bytes })
    }

    /// Runs one load and waits for its verdicts.
    pub async fn run(&self, load: Load) -> Result<Outcome> {
        self.body_bytes.store(load.body_bytes as u64, Ordering::Relaxed);
        let from = self.shared.now() + 10_000_000 + nanos(load.warm_up);
        let until = from + nanos(load.during);
        self.shared.measured_from.store(from, Ordering::Relaxed);
        self.shared.measured_until.store(until, Ordering::Relaxed);
        self.shared.retries.store(0, Ordering::Relaxed);
        self.shared.sent.lock().await.clear();
        self.shared.received.lock().await.clear();
        let (lanes, shared) = (self.lanes.clone(), self.shared.clone());
        let begin = from - nanos(load.warm_up);
        let pacer = std::thread::spawn(move || pace(&lanes, &shared, load.per_second, begin, until));
        let due = tokio::task::spawn_blocking(move || pacer.join()).await?.map_err(|_| "the pacer failed")??;
        let end = Instant::now() + SETTLE;
        while (self.shared.sent.lock().await.len() as u64) < due && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // The other side's copy may be a little behind the verdict.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let sent = self.shared.sent.lock().await;
        Ok(Outcome {
            sent: histogram(&sent)?,
            received: histogram(&self.shared.received.lock().await)?,
            due,
            unanswered: due.saturating_sub(sent.len() as u64),
            retries: self.shared.retries.load(Ordering::Relaxed),
        })
    }
}

/// Hands out due times on the dot: a runtime's timer would be off by a millisecond. Returns how many were measured.
fn pace(lanes: &[mpsc::Sender<u64>], shared: &Shared, per_second: u64, begin: u64, until: u64) -> Result<u64> {
    let mut measured = 0;
    for number in 0.. {
        let due = begin + u64::try_from(u128::from(number as u64) * 1_000_000_000 / u128::from(per_second))?;
        if due >= until {
            break;
        }
        let now = shared.now();
        if due > now {
            std::thread::sleep(Duration::from_nanos(due - now));
        }
        let lane = &lanes[number % lanes.len()];
        match lane.try_send(due) {
            Ok(()) => measured += u64::from(shared.measured(due)),
            // Counted as unanswered: the load could not even be handed over.
            Err(mpsc::error::TrySendError::Full(_)) => measured += u64::from(shared.measured(due)),
            Err(mpsc::error::TrySendError::Closed(_)) => return Err("a session has ended".into()),
        }
    }
    Ok(measured)
}

#[derive(Clone)]
struct Session {
    conversation: ConversationId,
    user: roost_protocol::UserId,
    shared: Arc<Shared>,
    outstanding: Arc<Mutex<HashMap<ClientMsgId, u64>>>,
    sender: Arc<Mutex<Sender>>,
    body_bytes: Arc<AtomicU64>,
}

impl Session {
    async fn send_when_due(self, mut due: mpsc::Receiver<u64>) {
        while let Some(due) = due.recv().await {
            let client_msg_id = ClientMsgId::new();
            self.outstanding.lock().await.insert(client_msg_id, due);
            if self.send(client_msg_id, due).await.is_err() {
                return;
            }
        }
    }

    async fn send(&self, client_msg_id: ClientMsgId, due: u64) -> Result<()> {
        let mut body = vec![b'x'; usize::try_from(self.body_bytes.load(Ordering::Relaxed))?];
        body[..8].copy_from_slice(&due.to_be_bytes());
        let message = SendFrame {
            client_msg_id,
            conversation_id: self.conversation,
            content_type: Cow::Borrowed("application/octet-stream"),
            body: Cow::Owned(body),
        };
        self.sender.lock().await.send(&ClientFrame { id: None, body: ClientBody::Send(message) }).await
    }

    async fn receive(self, mut receiver: Receiver) {
        while let Ok(frame) = receiver.next().await {
            let now = self.shared.now();
            match frame {
                ServerBody::Sent { client_msg_id, .. } => {
                    let due = self.outstanding.lock().await.remove(&client_msg_id);
                    if let Some(due) = due.filter(|&due| self.shared.measured(due)) {
                        self.shared.sent.lock().await.push(now.saturating_sub(due));
                    }
                }
                ServerBody::Message(message) if message.sender_id != self.user && message.body.len() >= 8 => {
                    let due = u64::from_be_bytes(message.body[..8].try_into().expect("8 bytes"));
                    if self.shared.measured(due) {
                        self.shared.received.lock().await.push(now.saturating_sub(due));
                    }
                }
                ServerBody::Retry { client_msg_id, retry_after_ms, .. } => {
                    self.shared.retries.fetch_add(1, Ordering::Relaxed);
                    tokio::spawn(self.clone().send_again(client_msg_id, retry_after_ms));
                }
                ServerBody::Ping => {
                    let pong = ClientFrame { id: None, body: ClientBody::Pong };
                    if self.sender.lock().await.send(&pong).await.is_err() {
                        return;
                    }
                }
                _ => {}
            }
        }
    }

    async fn send_again(self, client_msg_id: ClientMsgId, after_ms: u64) {
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        let due = self.outstanding.lock().await.get(&client_msg_id).copied();
        if let Some(due) = due {
            // A broken connection shows in the figures as unanswered.
            let _ = self.send(client_msg_id, due).await;
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn histogram(nanos: &[u64]) -> Result<Histogram<u64>> {
    let mut histogram = Histogram::new(3)?;
    for value in nanos {
        histogram.record(value / 1_000)?;
    }
    Ok(histogram)
}
