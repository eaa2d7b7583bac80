//! The same conversation with another library's client, so that nothing hangs on tungstenite's habits.

use ::fastwebsockets::{Frame, OpCode, Payload};
use bytes::Bytes;
use http_body_util::Empty;
use hyper::Request;
use hyper::header::{CONNECTION, UPGRADE};
use roost_protocol::frames::{ClientBody, ClientFrame, Form, Send, ServerBody, ServerFrame};
use roost_protocol::{ClientMsgId, ConversationId, DeviceId, UserId};
use tokio::net::TcpStream;

use crate::world::{World, token, wall_ms};

struct Spawn;

impl<F: Future + std::marker::Send + 'static> hyper::rt::Executor<F> for Spawn
where
    F::Output: std::marker::Send + 'static,
{
    fn execute(&self, future: F) {
        tokio::spawn(future);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_connects_with_a_header_token_and_sends() {
    let world = World::new();
    let gateway = world.start(World::config()).await;
    let (user, device) = (UserId::new(), DeviceId::new());
    let stream = TcpStream::connect(gateway.address()).await.unwrap();
    let request = Request::builder()
        .uri(format!("http://{}/v1/connect", gateway.address()))
        .header("Host", "localhost")
        .header(UPGRADE, "websocket")
        .header(CONNECTION, "upgrade")
        .header("Sec-WebSocket-Key", ::fastwebsockets::handshake::generate_key())
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Protocol", "roost.v1")
        .header("Authorization", format!("Bearer {}", token(user, device, wall_ms() + 60_000)))
        .body(Empty::<Bytes>::new())
        .unwrap();
    let (mut socket, _) = ::fastwebsockets::handshake::client(&Spawn, request, stream).await.unwrap();
    let say = |body: ClientBody<'static>| {
        let payload = ClientFrame { id: Some(1), body }.encode(Form::Binary);
        Frame::new(true, OpCode::Binary, None, Payload::Owned(payload))
    };
    let hear = |frame: Frame<'_>| {
        ServerFrame::decode(Form::Binary, Bytes::copy_from_slice(&frame.payload)).unwrap().unwrap().body
    };
    socket
        .write_frame(say(ClientBody::Connect { token: None, device_id: Some(device), client: "fast".into() }))
        .await
        .unwrap();
    let ServerBody::Connected(connected) = hear(socket.read_frame().await.unwrap()) else { panic!("connected") };
    assert_eq!((connected.user_id, connected.device_id), (user, device));
    let send = Send {
        client_msg_id: ClientMsgId::new(),
        conversation_id: ConversationId::new(),
        content_type: "text/plain".into(),
        body: vec![b'x'; 60_000].into(),
    };
    socket.write_frame(say(ClientBody::Send(send))).await.unwrap();
    let mut seen = (false, false);
    while seen != (true, true) {
        match hear(socket.read_frame().await.unwrap()) {
            ServerBody::Sent { seq: 1, .. } => seen.0 = true,
            ServerBody::Message(message) => {
                assert_eq!(message.body.len(), 60_000);
                seen.1 = true;
            }
            other => panic!("{other:?}"),
        }
    }
    socket.write_frame(Frame::close(1000, b"")).await.unwrap();
    assert_eq!(socket.read_frame().await.unwrap().opcode, OpCode::Close);
    gateway.stop().await;
}
