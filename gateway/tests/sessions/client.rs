//! An independent client: tungstenite on a tokio socket.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use roost_protocol::frames::{ClientBody, ClientFrame, Connected, Form, HistoryRange, Send, ServerBody, ServerFrame};
use roost_protocol::{ClientMsgId, ConversationId, DeviceId, UserId};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::Request;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::world::{token, wall_ms};

/// What a test may wait for anything.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct Client<S = TcpStream> {
    pub socket: WebSocketStream<S>,
    pub form: Form,
    pub user: UserId,
    pub device: DeviceId,
    pub connected: Option<Connected>,
}

/// How a connection ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    Closed(u16),
    Broken,
}

pub fn request(address: SocketAddr, form: Form) -> Request<()> {
    let mut request = format!("ws://{address}/v1/connect").into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", form.subprotocol().parse().unwrap());
    request
}

impl Client {
    /// A WebSocket on which nothing has been said.
    pub async fn open(address: SocketAddr, form: Form) -> Self {
        let stream = TcpStream::connect(address).await.expect("the gateway accepts");
        Self::open_over(stream, address, form).await
    }

    /// A live session of a new user.
    pub async fn connect(address: SocketAddr, form: Form) -> Self {
        let stream = TcpStream::connect(address).await.expect("the gateway accepts");
        Self::connect_over(stream, address, form).await
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// The same over whatever stream.
    pub async fn open_over(stream: S, address: SocketAddr, form: Form) -> Self {
        let (socket, response) =
            tokio_tungstenite::client_async(request(address, form), stream).await.expect("it upgrades");
        assert_eq!(response.headers()["sec-websocket-protocol"], form.subprotocol());
        Self { socket, form, user: UserId::new(), device: DeviceId::new(), connected: None }
    }

    /// The same over whatever stream.
    pub async fn connect_over(stream: S, address: SocketAddr, form: Form) -> Self {
        let mut client = Self::open_over(stream, address, form).await;
        let token = token(client.user, client.device, wall_ms() + 600_000);
        client.say_connect(&token, None).await;
        client.wait_connected().await;
        client
    }

    pub async fn say_connect(&mut self, token: &str, device_id: Option<DeviceId>) {
        let body = ClientBody::Connect { token: Some(token.into()), device_id, client: "test 1".into() };
        self.say(Some(1), body).await;
    }

    pub async fn wait_connected(&mut self) {
        match self.hear().await {
            ServerFrame { id: Some(1), body: ServerBody::Connected(connected) } => {
                assert_eq!((connected.user_id, connected.device_id), (self.user, self.device));
                self.connected = Some(connected);
            }
            other => panic!("expected connected, not {other:?}"),
        }
    }

    pub async fn say(&mut self, id: Option<u32>, body: ClientBody<'_>) {
        let payload = ClientFrame { id, body }.encode(self.form);
        let message = match self.form {
            Form::Binary => Message::Binary(payload.into()),
            Form::Json => Message::Text(String::from_utf8(payload).unwrap().into()),
        };
        self.socket.send(message).await.expect("the socket takes it");
    }

    pub async fn send(&mut self, id: u32, conversation: ConversationId, text: &str) -> ClientMsgId {
        let client_msg_id = ClientMsgId::new();
        self.send_as(id, conversation, client_msg_id, text).await;
        client_msg_id
    }

    pub async fn send_as(&mut self, id: u32, conversation_id: ConversationId, client_msg_id: ClientMsgId, text: &str) {
        let body = ClientBody::Send(Send {
            client_msg_id,
            conversation_id,
            content_type: "text/plain".into(),
            body: text.as_bytes().into(),
        });
        self.say(Some(id), body).await;
    }

    pub async fn sync(&mut self, id: u32, since: Option<&str>) {
        self.say(Some(id), ClientBody::Sync { since: since.map(Into::into) }).await;
    }

    pub async fn history(&mut self, id: u32, conversation_id: ConversationId, after: u64) {
        let range = HistoryRange::After(after);
        self.say(Some(id), ClientBody::History { conversation_id, range, limit: None }).await;
    }

    /// The next frame but pings, which are answered.
    pub async fn hear(&mut self) -> ServerFrame {
        loop {
            match self.next().await {
                Ok(ServerFrame { body: ServerBody::Ping, .. }) => self.say(None, ClientBody::Pong).await,
                Ok(frame) => return frame,
                Err(end) => panic!("expected a frame, not the end {end:?}"),
            }
        }
    }

    pub async fn next(&mut self) -> Result<ServerFrame, End> {
        loop {
            let message = tokio::time::timeout(PATIENCE, self.socket.next()).await.expect("something comes in time");
            let payload = match (message, self.form) {
                (Some(Ok(Message::Binary(payload))), Form::Binary) => payload,
                (Some(Ok(Message::Text(text))), Form::Json) => Bytes::from(text),
                (Some(Ok(Message::Ping(_) | Message::Pong(_))), _) => continue,
                (Some(Ok(Message::Close(Some(close)))), _) => return Err(End::Closed(close.code.into())),
                // RFC 6455, 7.1.5: the code that stands for none.
                (Some(Ok(Message::Close(None))), _) => return Err(End::Closed(1005)),
                (Some(Err(Error::Protocol(_) | Error::Io(_))) | None, _) => return Err(End::Broken),
                (other, _) => panic!("unexpected {other:?}"),
            };
            return Ok(ServerFrame::decode(self.form, payload).expect("it decodes").expect("a known frame"));
        }
    }

    /// Reads until the end.
    pub async fn end(&mut self) -> End {
        loop {
            match self.next().await {
                Ok(_) => {}
                Err(end) => return end,
            }
        }
    }
}
