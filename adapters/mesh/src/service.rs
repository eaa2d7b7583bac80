//! One stream at the receiving end: proofs, then batches in and acknowledgements out.

use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use prost::Message;
use roost_ports::DeliverySink;
use roost_ports::delivery::{DeliveryBatch, DeliveryError, OUTSTANDING_BYTES_MAX};
use roost_protocol::Incarnation;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::assembly::Assembly;
use crate::config::Secret;
use crate::guard::Proven;
use crate::limits::{FRAME_PARTS_MAX, OPEN_WITHIN, VERSION};
use crate::proof::{self, Transcript};
use crate::proto::from_receiver::Frame as Answer;
use crate::proto::from_sender::Frame;
use crate::proto::mesh_server::Mesh;
use crate::proto::{Ack, Acks, Challenge, FromReceiver, FromSender, Hello, Open, Opened, Parts};
use crate::seats::{Seat, SeatKey, Seats};
use crate::wire::{Answer as BatchAnswer, outstanding_bytes, write_ack};

type Answers = mpsc::Sender<Result<FromReceiver, Status>>;

/// What all streams of a server share.
#[derive(Clone)]
pub(crate) struct MeshService {
    sink: Arc<dyn DeliverySink>,
    secret: Option<Secret>,
    seats: Seats,
    stop: CancellationToken,
    end: CancellationToken,
}

impl MeshService {
    pub(crate) fn new(
        sink: Arc<dyn DeliverySink>,
        secret: Option<Secret>,
        stop: CancellationToken,
        end: CancellationToken,
    ) -> Self {
        Self { sink, secret, seats: Seats::default(), stop, end }
    }

    async fn stream(self, mut frames: Streaming<FromSender>, answers: Answers, proven: Option<Proven>) {
        let opened = match timeout(OPEN_WITHIN, self.open(&mut frames, &answers)).await {
            Ok(opened) => opened,
            Err(_) => Err(Status::deadline_exceeded("the stream was not opened in time")),
        };
        let (seat, key) = match opened {
            Ok(opened) => opened,
            Err(status) => {
                metrics::counter!("roost_mesh_streams_refused_total").increment(1);
                tracing::warn!(why = status.message(), "a mesh stream was refused");
                let _ = answers.try_send(Err(status));
                return;
            }
        };
        if let Some(proven) = proven {
            proven.set();
        }
        let leave = seat.leave();
        let receiver = Receiver { service: &self, to: key.1, answers: &answers, assembly: Assembly::default() };
        let end = tokio::select! {
            biased;
            () = self.end.cancelled() => Status::unavailable("the server has stopped"),
            () = leave.cancelled() => Status::aborted("a later stream of the same sender took its place"),
            end = receiver.run(&mut frames) => end,
        };
        tracing::debug!(why = end.message(), "a mesh stream ended");
        let _ = answers.try_send(Err(end));
    }

    /// The proofs of both ends, and the sender's seat.
    async fn open(&self, frames: &mut Streaming<FromSender>, answers: &Answers) -> Result<(Seat, SeatKey), Status> {
        let Some(Frame::Hello(Hello { version, sender, nonce })) = frame(frames).await? else {
            return Err(Status::invalid_argument("a stream begins with hello"));
        };
        if version != VERSION {
            return Err(Status::failed_precondition("the mesh's version is not this process's"));
        }
        let wrong = |_| Status::invalid_argument("a hello has ids of 16 bytes");
        let sender: [u8; 16] = sender[..].try_into().map_err(wrong)?;
        let sender_nonce = nonce[..].try_into().map_err(wrong)?;
        let transcript = Transcript { sender, sender_nonce, receiver_nonce: proof::nonce() };
        let secret = self.secret.as_ref();
        let (nonce, proof) = (transcript.receiver_nonce.to_vec(), transcript.receiver_proof(secret));
        say(answers, Answer::Challenge(Challenge { nonce: nonce.into(), proof: proof.into() })).await?;
        let Some(Frame::Open(Open { incarnation, proof })) = frame(frames).await? else {
            return Err(Status::unauthenticated("the sender did not go on: its shared secret may be another"));
        };
        let key = (sender, Incarnation(incarnation));
        if !transcript.is_sender_proof(secret, key.1, &proof) {
            return Err(Status::unauthenticated("the sender's shared secret is not this process's"));
        }
        let seat = self.seats.take(key).await;
        say(answers, Answer::Opened(Opened {})).await?;
        Ok((seat, key))
    }
}

#[tonic::async_trait]
impl Mesh for MeshService {
    type DeliverStream = ReceiverStream<Result<FromReceiver, Status>>;

    async fn deliver(&self, request: Request<Streaming<FromSender>>) -> Result<Response<Self::DeliverStream>, Status> {
        let proven = request.extensions().get::<Proven>().cloned();
        let (answers, taken) = mpsc::channel(16);
        tokio::spawn(self.clone().stream(request.into_inner(), answers, proven));
        Ok(Response::new(ReceiverStream::new(taken)))
    }
}

/// A batch that the sink has not answered yet: its number, its bytes, the answer to it.
type Delivered = BoxFuture<'static, (u64, usize, BatchAnswer)>;

struct Receiver<'a> {
    service: &'a MeshService,
    to: Incarnation,
    answers: &'a Answers,
    assembly: Assembly,
}

impl Receiver<'_> {
    /// Takes batches until the sender ends the stream or the server stops; then says what became of all of them.
    async fn run(mut self, frames: &mut Streaming<FromSender>) -> Status {
        let mut delivered = FuturesUnordered::<Delivered>::new();
        let (mut bytes_held, mut ended) = (0, None);
        loop {
            if let (Some(ended), true) = (&ended, delivered.is_empty()) {
                return Status::clone(ended);
            }
            tokio::select! {
                // Not read further while the sink is behind: HTTP/2 then holds the sender back.
                frame = frame(frames), if ended.is_none() && bytes_held < OUTSTANDING_BYTES_MAX => match frame {
                    Ok(Some(Frame::Parts(parts))) => match self.deliver(parts, &mut delivered) {
                        Ok(bytes) => bytes_held += bytes,
                        Err(status) => ended = Some(status),
                    },
                    Ok(Some(_)) => ended = Some(Status::invalid_argument("a stream is opened once")),
                    Ok(None) => ended = Some(Status::ok("")),
                    Err(status) => return status,
                },
                Some(first) = delivered.next() => {
                    let acks = collect(first, &mut delivered, &mut bytes_held);
                    if let Err(status) = say(self.answers, Answer::Acks(Acks { acks })).await {
                        return status;
                    }
                }
                () = self.service.stop.cancelled(), if ended.is_none() => {
                    ended = Some(Status::unavailable("the endpoint stops"));
                }
                () = self.answers.closed() => return Status::cancelled("the sender is gone"),
            }
        }
    }

    /// Hands whole batches to the sink, in their order. The bytes that they hold.
    fn deliver(&mut self, parts: Parts, delivered: &mut FuturesUnordered<Delivered>) -> Result<usize, Status> {
        let mut bytes_held = 0;
        for part in parts.parts {
            let part_bytes = part.encoded_len();
            let assembled = self.assembly.push(part, part_bytes);
            let assembled = assembled.map_err(|broken| Status::invalid_argument(broken.to_string()))?;
            let Some((number, batch)) = assembled else { continue };
            let answer = match batch {
                Ok(batch) => {
                    let bytes = outstanding_bytes(&batch);
                    bytes_held += bytes;
                    self.to_sink(number, bytes, batch)
                }
                Err(wrong) => {
                    let answer = BatchAnswer::BySink(Err(DeliveryError::Unavailable(wrong.to_string())));
                    futures::future::ready((number, 0, answer)).boxed()
                }
            };
            delivered.push(answer);
        }
        Ok(bytes_held)
    }

    fn to_sink(&self, number: u64, bytes: usize, batch: DeliveryBatch) -> Delivered {
        // At every batch: the sink may have begun another life since the stream was opened.
        if self.service.sink.incarnation() != self.to {
            return futures::future::ready((number, bytes, BatchAnswer::Over)).boxed();
        }
        self.service.sink.deliver(batch).map(move |outcome| (number, bytes, BatchAnswer::BySink(outcome))).boxed()
    }
}

/// The acknowledgements that are there by now, in one frame.
fn collect(
    first: (u64, usize, BatchAnswer),
    delivered: &mut FuturesUnordered<Delivered>,
    bytes_held: &mut usize,
) -> Vec<Ack> {
    let mut acks = Vec::new();
    let mut next = Some(first);
    while let Some((number, bytes, answer)) = next {
        *bytes_held -= bytes;
        acks.push(write_ack(number, answer));
        let more = acks.len() < FRAME_PARTS_MAX;
        next = if more { delivered.next().now_or_never().flatten() } else { None };
    }
    acks
}

async fn frame(frames: &mut Streaming<FromSender>) -> Result<Option<Frame>, Status> {
    match frames.message().await? {
        None => Ok(None),
        Some(FromSender { frame: Some(frame) }) => Ok(Some(frame)),
        Some(_) => Err(Status::invalid_argument("a frame that this version does not know")),
    }
}

async fn say(answers: &Answers, answer: Answer) -> Result<(), Status> {
    let answer = FromReceiver { frame: Some(answer) };
    answers.send(Ok(answer)).await.map_err(|_| Status::cancelled("the sender is gone"))
}
