//! The task of one endpoint: connects when there is something to send, sends, resolves, and ends when idle.

use std::collections::VecDeque;
use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use roost_ports::delivery::{DeliveryBatch, DeliveryError};
use roost_protocol::records::Endpoint;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint as Address};

use crate::config::MeshConfig;
use crate::delivery::Shared;
use crate::limits::{
    ACKS_BYTES_MAX, BACK_OFF_FIRST, BACK_OFF_LONGEST, CONNECT_WITHIN, FRAME_BYTES_MAX, FRAME_PARTS_MAX,
    HEADERS_BYTES_MAX, HTTP2_FRAME_BYTES, OPEN_WITHIN, TICK_SHORTEST, VERSION, WINDOW_BYTES,
};
use crate::pending::{Pending, Waiting};
use crate::proof::{self, Transcript};
use crate::proto::from_receiver::Frame as Answer;
use crate::proto::from_sender::Frame;
use crate::proto::mesh_client::MeshClient;
use crate::proto::{Acks, Challenge, FromReceiver, FromSender, Hello, Open, Opened};
use crate::wire::{self, Packer};

/// A batch in line.
pub(crate) struct Job {
    pub(crate) batch: DeliveryBatch,
    pub(crate) waiting: Waiting,
}

/// One endpoint's task.
pub(crate) struct Peer {
    to: Endpoint,
    config: MeshConfig,
    sender: [u8; 16],
    shared: Weak<Shared>,
    gone: Arc<AtomicBool>,
    jobs: mpsc::Receiver<Job>,
    /// Taken from the line, not yet numbered.
    taken: Vec<Job>,
    /// Numbered, not yet handed to HTTP/2.
    frames: VecDeque<FromSender>,
    pending: Pending,
    back_off: Duration,
}

/// An open stream.
struct Stream {
    frames: mpsc::Sender<FromSender>,
    answers: Streaming<FromReceiver>,
}

/// Why a stream ended.
enum End {
    /// Nothing was sent for a while, and the endpoint is forgotten; or the `MeshDelivery` is dropped and all is said.
    Done,
    /// That life of the endpoint is over.
    Gone,
    /// Anything else, in words.
    Lost(String),
}

impl Peer {
    pub(crate) fn new(to: Endpoint, jobs: mpsc::Receiver<Job>, gone: Arc<AtomicBool>, shared: &Arc<Shared>) -> Self {
        Self {
            to,
            config: shared.config.clone(),
            sender: shared.sender,
            shared: Arc::downgrade(shared),
            gone,
            jobs,
            taken: Vec::with_capacity(FRAME_PARTS_MAX),
            frames: VecDeque::new(),
            pending: Pending::default(),
            back_off: Duration::ZERO,
        }
    }

    /// Runs until the endpoint is forgotten.
    pub(crate) async fn run(mut self) {
        while self.work().await {
            sleep(self.back_off).await;
            self.back_off = (self.back_off * 2).clamp(BACK_OFF_FIRST, BACK_OFF_LONGEST);
            let end = match timeout(OPEN_WITHIN.min(self.config.acknowledged_within), self.open()).await {
                Ok(Ok(stream)) => self.serve(stream).await,
                Ok(Err(why)) => End::Lost(why),
                Err(_) => End::Lost("the stream did not open in time".into()),
            };
            match end {
                End::Done => return,
                End::Gone => return self.remember_gone().await,
                End::Lost(why) => self.lose(why),
            }
        }
    }

    /// Waits for something to send. False if there is nothing, and the endpoint is forgotten.
    async fn work(&mut self) -> bool {
        loop {
            match timeout(self.config.idle_after, self.jobs.recv_many(&mut self.taken, FRAME_PARTS_MAX)).await {
                Ok(0) => return false,
                Ok(_) => return true,
                Err(_) if self.forget() => return false,
                Err(_) => {}
            }
        }
    }

    fn forget(&mut self) -> bool {
        // Without the map there are no senders either, and the line is closed.
        self.shared.upgrade().is_none_or(|shared| shared.forget(&self.to, || self.jobs.is_empty()))
    }

    /// Everything that was sent or is in line is unknown now: the callers decide what to send again.
    fn lose(&mut self, why: String) {
        metrics::counter!("roost_mesh_streams_lost_total").increment(1);
        tracing::warn!(endpoint = %self.to.address, incarnation = %self.to.incarnation, why, "a mesh stream is lost");
        self.resolve_all(&DeliveryError::Unavailable(why));
    }

    fn resolve_all(&mut self, error: &DeliveryError) {
        self.frames.clear();
        self.pending.drain().for_each(|waiting| waiting.resolve(Err(error.clone())));
        self.taken.drain(..).for_each(|job| job.waiting.resolve(Err(error.clone())));
        while let Ok(job) = self.jobs.try_recv() {
            job.waiting.resolve(Err(error.clone()));
        }
    }

    /// Answers `Gone` for a while without asking. Also for batches before the refused one: all its sessions are closed.
    async fn remember_gone(mut self) {
        self.gone.store(true, Ordering::Relaxed);
        self.resolve_all(&DeliveryError::Gone);
        let until = Instant::now() + self.config.gone_for;
        // Batches may still have been put in line beside the store above.
        while let Ok(Some(job)) = tokio::time::timeout_at(until, self.jobs.recv()).await {
            job.waiting.resolve(Err(DeliveryError::Gone));
        }
        if let Some(shared) = self.shared.upgrade() {
            shared.forget(&self.to, || true);
        }
        self.resolve_all(&DeliveryError::Gone);
    }

    /// Connects and opens the stream; each end proves that it knows the secret before a message travels.
    async fn open(&self) -> Result<Stream, String> {
        let channel = connect(&self.to.address, &self.config).await?;
        let mut client = MeshClient::new(channel)
            .max_decoding_message_size(ACKS_BYTES_MAX)
            .max_encoding_message_size(FRAME_BYTES_MAX);
        let (frames, sent) = mpsc::channel(4);
        let sender_nonce = proof::nonce();
        let (sender, nonce) = (self.sender.to_vec().into(), sender_nonce.to_vec().into());
        say(&frames, Frame::Hello(Hello { version: VERSION, sender, nonce })).await?;
        let answers = client.deliver(ReceiverStream::new(sent)).await.map_err(|status| words(&status))?;
        let mut answers = answers.into_inner();
        let Answer::Challenge(Challenge { nonce, proof }) = answer(&mut answers).await? else {
            return Err("it does not speak the mesh's protocol".into());
        };
        let receiver_nonce = nonce[..].try_into().map_err(|_| "it does not speak the mesh's protocol")?;
        let transcript = Transcript { sender: self.sender, sender_nonce, receiver_nonce };
        let secret = self.config.shared_secret.as_ref();
        if !transcript.is_receiver_proof(secret, &proof) {
            return Err("its shared secret is not this process's".into());
        }
        let proof = transcript.sender_proof(secret, self.to.incarnation).into();
        say(&frames, Frame::Open(Open { incarnation: self.to.incarnation.0, proof })).await?;
        let Answer::Opened(Opened {}) = answer(&mut answers).await? else {
            return Err("it does not speak the mesh's protocol".into());
        };
        metrics::counter!("roost_mesh_streams_opened_total").increment(1);
        Ok(Stream { frames, answers })
    }

    /// Sends and resolves until the stream ends.
    async fn serve(&mut self, Stream { frames, mut answers }: Stream) -> End {
        let tick = (self.config.acknowledged_within / 8).min(self.config.idle_after / 4);
        let mut ticks = interval(tick.max(TICK_SHORTEST));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut line_is_open, mut frames_are_taken) = (true, true);
        let mut quiet_since = Instant::now();
        loop {
            if !self.taken.is_empty() {
                quiet_since = Instant::now();
                self.pack();
            }
            if !line_is_open && self.pending.is_empty() {
                return End::Done;
            }
            tokio::select! {
                answer = answer(&mut answers) => match answer {
                    Ok(Answer::Acks(acks)) => if self.acknowledged(acks) { return End::Gone },
                    Ok(_) => return End::Lost("it does not speak the mesh's protocol".into()),
                    Err(why) => return End::Lost(why),
                },
                place = frames.reserve(), if frames_are_taken && !self.frames.is_empty() => match place {
                    Ok(place) => if let Some(frame) = self.frames.pop_front() { place.send(frame) },
                    // Why is said by the answers, at the next turn.
                    Err(_) => frames_are_taken = false,
                },
                count = self.jobs.recv_many(&mut self.taken, FRAME_PARTS_MAX), if line_is_open && self.frames.is_empty() => {
                    line_is_open = count > 0;
                }
                now = ticks.tick() => {
                    if self.pending.oldest().is_some_and(|since| now - since > self.config.acknowledged_within) {
                        return End::Lost("no acknowledgement in time".into());
                    }
                    let idle = self.pending.is_empty() && now - quiet_since > self.config.idle_after;
                    if idle && self.forget() {
                        return End::Done;
                    }
                }
            }
        }
    }

    /// Numbers what was taken from the line and makes frames of it.
    fn pack(&mut self) {
        let mut packer = Packer::default();
        for Job { batch, waiting } in self.taken.drain(..) {
            match wire::parts(self.pending.next(), batch) {
                Ok(parts) => {
                    self.pending.push(waiting);
                    parts.into_iter().for_each(|part| packer.push(part));
                }
                Err(too_large) => {
                    tracing::error!(%too_large, "a batch cannot be sent");
                    waiting.resolve(Err(DeliveryError::Unavailable(too_large.to_string())));
                }
            }
        }
        self.frames.extend(packer.finish());
    }

    /// Resolves what is acknowledged; true if that life of the endpoint is over.
    fn acknowledged(&mut self, acks: Acks) -> bool {
        self.back_off = Duration::ZERO;
        let mut over = false;
        for ack in acks.acks {
            let Some(waiting) = self.pending.take(ack.batch) else { continue };
            match wire::read_ack(ack) {
                wire::Answer::BySink(outcome) => waiting.resolve(outcome),
                wire::Answer::Over => {
                    over = true;
                    waiting.resolve(Err(DeliveryError::Gone));
                }
            }
        }
        over
    }
}

/// The next frame of the receiver, or why there is none.
async fn answer(answers: &mut Streaming<FromReceiver>) -> Result<Answer, String> {
    match answers.message().await {
        Ok(Some(FromReceiver { frame: Some(frame) })) => Ok(frame),
        Ok(Some(_)) => Err("it does not speak the mesh's protocol".into()),
        Ok(None) => Err("it ended the stream".into()),
        Err(status) => Err(words(&status)),
    }
}

async fn connect(address: &str, config: &MeshConfig) -> Result<Channel, String> {
    let address = Address::from_shared(address.to_owned()).map_err(|_| "its address is no URL".to_owned())?;
    let address = address
        .connect_timeout(CONNECT_WITHIN)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(config.ping_every)
        .keep_alive_timeout(config.ping_every)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .http2_max_header_list_size(HEADERS_BYTES_MAX)
        .max_frame_size(HTTP2_FRAME_BYTES);
    address.connect().await.map_err(|error| words(&error))
}

async fn say(frames: &mpsc::Sender<FromSender>, frame: Frame) -> Result<(), String> {
    frames.send(FromSender { frame: Some(frame) }).await.map_err(|_| "the stream ended while it opened".into())
}

/// An error with its innermost cause, which is the one that helps.
fn words(error: &(dyn Error + 'static)) -> String {
    let status = error.downcast_ref::<tonic::Status>();
    let mut words = status.map_or_else(|| error.to_string(), |status| status.message().to_owned());
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    if !std::ptr::addr_eq(inner, error) {
        words = format!("{words}: {inner}");
    }
    words
}
