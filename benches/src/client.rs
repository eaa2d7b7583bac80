//! One session of the load: an independent WebSocket client (fastwebsockets) that speaks the binary form.

use std::borrow::Cow;

use bytes::Bytes;
use fastwebsockets::{Frame, OpCode, Payload, Role, WebSocket, WebSocketRead, WebSocketWrite};
use roost_protocol::Form;
use roost_protocol::frames::{ClientBody, ClientFrame, ServerBody, ServerFrame};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;

use crate::Result;

/// The side that receives.
pub struct Receiver(WebSocketRead<ReadHalf<TcpStream>>);

/// The side that sends.
pub struct Sender(WebSocketWrite<WriteHalf<TcpStream>>);

/// Connects, sends `connect` and waits for `connected`.
pub async fn connect(address: &str, token: &str) -> Result<(Sender, Receiver)> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let request = format!(
        "GET /v1/connect HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: {}\r\n\r\n",
        Form::Binary.subprotocol()
    );
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    if !head.starts_with(b"HTTP/1.1 101") {
        return Err(format!("no session: {}", String::from_utf8_lossy(&head)).into());
    }
    let mut socket = WebSocket::after_handshake(stream, Role::Client);
    socket.set_auto_close(false);
    let (read, write) = socket.split(tokio::io::split);
    let (mut sender, mut receiver) = (Sender(write), Receiver(read));
    let connect = ClientBody::Connect { token: Some(Cow::Borrowed(token)), device_id: None, client: "bench".into() };
    sender.send(&ClientFrame { id: None, body: connect }).await?;
    match receiver.next().await? {
        ServerBody::Connected(_) => Ok((sender, receiver)),
        other => Err(format!("instead of connected: {other:?}").into()),
    }
}

impl Sender {
    /// Sends one frame.
    pub async fn send(&mut self, frame: &ClientFrame<'_>) -> Result<()> {
        self.0.write_frame(Frame::binary(Payload::Owned(frame.encode(Form::Binary)))).await?;
        Ok(())
    }
}

impl Receiver {
    /// The next frame of a kind that this build knows.
    pub async fn next(&mut self) -> Result<ServerBody> {
        loop {
            // There is no ping that needs an answer of WebSocket's own: Roost pings by frames.
            let frame = self.0.read_frame(&mut |_| async { Ok::<(), std::io::Error>(()) }).await?;
            match frame.opcode {
                OpCode::Binary => {
                    let payload = Bytes::copy_from_slice(&frame.payload);
                    let decoded = ServerFrame::decode(Form::Binary, payload)?;
                    if let Some(frame) = decoded {
                        return Ok(frame.body);
                    }
                }
                OpCode::Close => return Err("closed by the server".into()),
                _ => {}
            }
        }
    }
}
