//! What the figures are compared with: the disk, the kernel's own ceiling, and what a good engineer writes in an afternoon.
//!
//! The two servers run as processes of their own (`roost-bench reference …`), so that their CPU and memory are read from
//! outside, as the product's are.

pub mod disk;
mod raw_uring;
mod tokio_fastwebsockets;

use std::net::SocketAddr;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, ValueEnum};
use roost_protocol::frames::{Form, Message};
use roost_protocol::{ClientMsgId, ConversationId, DeviceId, UserId};
use roost_session::framing::websocket::frame_payload;
use roost_session::machine::encode_message;

use crate::Result;

/// Which reference.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Kind {
    /// io_uring, without a protocol.
    Raw,
    /// tokio and fastwebsockets.
    Tokio,
}

/// What a reference does with what it receives.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Mode {
    /// It sends the same back.
    Echo,
    /// It sends one prepared `message` frame to every connection.
    Broadcast,
}

/// How a reference is started.
#[derive(Args)]
pub struct Options {
    /// Which.
    #[arg(value_enum)]
    pub kind: Kind,
    /// What it does.
    #[arg(value_enum)]
    pub mode: Mode,
    /// Bytes of the body of the message that is broadcast.
    #[arg(long, default_value_t = 128)]
    pub body_bytes: usize,
    /// Idle seconds after which the tokio reference pings; the raw one has no timers.
    #[arg(long, default_value_t = 25)]
    pub ping_seconds: u64,
    /// Threads that hold connections. The raw one broadcasts from a single one.
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
}

/// Serves until the process that started it is gone.
pub fn serve(options: &Options) -> Result<()> {
    let (kind, mode, frame) = (options.kind, options.mode, message_frame(options.body_bytes));
    let (ping_every, threads) = (Duration::from_secs(options.ping_seconds), options.threads);
    let (ended, end) = sync_channel(1);
    let failed = ended.clone();
    std::thread::spawn(move || {
        let served = match kind {
            Kind::Raw => raw_uring::serve(mode, &frame, threads),
            Kind::Tokio => tokio_fastwebsockets::serve(mode, frame_payload(&frame), ping_every, threads),
        };
        // Nobody listens any more where the end came from outside.
        let _ = failed.send(served);
    });
    std::thread::spawn(move || {
        // Nothing is ever said on standard input: its end is the end.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = ended.send(Ok(()));
    });
    end.recv()?
}

/// A `message` as the product sends it, with its WebSocket header.
fn message_frame(body_bytes: usize) -> Bytes {
    let message = Message {
        conversation_id: ConversationId::new(),
        seq: 1_000,
        sender_id: UserId::new(),
        device_id: DeviceId::new(),
        client_msg_id: ClientMsgId::new(),
        time: 1_800_000_000_000,
        content_type: crate::crowd::CONTENT_TYPE.to_owned(),
        body: Bytes::from(vec![b'x'; body_bytes]),
        event: None,
    };
    encode_message(&message, Form::Binary)
}

/// What whoever started it waits for.
fn announce(address: SocketAddr) {
    println!("listening {address}");
}
