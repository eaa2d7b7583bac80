//! A small server in memory that speaks the protocol, loses pushes and connections on demand.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use parking_lot::Mutex;
use roost_client::{Credentials, Tokens};
use roost_protocol::frames::*;
use roost_protocol::{ClientMsgId, ConversationId, DeviceId, Epoch, ErrorCode, SessionId, UserId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message as WsMessage;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

/// Pushes on their way to one session; the tests stay below it.
const PUSHES_MAX: usize = 10_000;

/// What a session is told.
pub enum Push {
    Frame(ServerFrame),
    Close(u16, &'static str),
    Break,
}

pub struct World {
    pub epoch: Epoch,
    pub user: UserId,
    pub conversations: HashMap<ConversationId, Vec<Message>>,
    /// Each live push is lost if this says so.
    pub loses: Box<dyn FnMut() -> bool + std::marker::Send>,
    /// Each send is answered `retry` if this says so.
    pub retries: Box<dyn FnMut() -> bool + std::marker::Send>,
    pub access_token: String,
    pub refresh_token: String,
    pub refreshes: u32,
    pub connects: u32,
    pub refreshed_live: u32,
    pub token_ms: u64,
    pub ping_ms: u64,
    sessions: Vec<mpsc::Sender<Push>>,
}

/// Per conversation of a session, the send that was answered `retry` and has to come again first.
type Held = HashMap<ConversationId, ClientMsgId>;

#[derive(Clone)]
pub struct Fake {
    pub world: Arc<Mutex<World>>,
    pub url: String,
}

impl Fake {
    pub async fn start() -> Fake {
        let world = World {
            epoch: Epoch::new(),
            user: UserId::new(),
            conversations: HashMap::new(),
            loses: Box::new(|| false),
            retries: Box::new(|| false),
            access_token: "access-0".to_owned(),
            refresh_token: "refresh-0".to_owned(),
            refreshes: 0,
            connects: 0,
            refreshed_live: 0,
            token_ms: 900_000,
            ping_ms: 25_000,
            sessions: Vec::new(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let fake = Fake { world: Arc::new(Mutex::new(world)), url };
        let accepting = fake.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let fake = accepting.clone();
                tokio::spawn(async move { fake.serve(stream).await });
            }
        });
        fake
    }

    pub fn credentials(&self) -> Credentials {
        Credentials::Tokens(self.world.lock().tokens())
    }

    /// Tells every session.
    pub fn push(&self, push: impl Fn() -> Push) {
        self.world.lock().sessions.retain(|session| session.try_send(push()).is_ok());
    }

    /// A message of somebody else.
    pub fn say(&self, conversation: ConversationId, text: String) {
        self.world.lock().store(conversation, UserId::new(), ClientMsgId::new(), "text/plain", text.into());
    }

    /// Tells every session the newest seqs, as settling does.
    pub fn settle(&self) {
        let conversations = self.world.lock().heads(false);
        let heads = Heads { conversations, next: None, more: false, epoch: None };
        self.push(|| Push::Frame(ServerFrame::unsolicited(ServerBody::Heads(heads.clone()))));
    }

    async fn serve(&self, stream: TcpStream) {
        let mut start = [0u8; 15];
        while stream.peek(&mut start).await.is_ok_and(|length| length > 0 && length < start.len()) {
            tokio::task::yield_now().await;
        }
        if start.starts_with(b"GET /v1/connect") { self.session(stream).await } else { self.rest(stream).await }
    }

    async fn rest(&self, mut stream: TcpStream) {
        let mut request = Vec::new();
        let (head, length) = loop {
            let mut chunk = [0u8; 4096];
            match stream.read(&mut chunk).await {
                Ok(0) | Err(_) => return,
                Ok(length) => request.extend_from_slice(&chunk[..length]),
            }
            let text = String::from_utf8_lossy(&request).to_lowercase();
            let Some(end) = text.find("\r\n\r\n") else { continue };
            let length = text.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next()?.parse().ok());
            let length: usize = length.unwrap_or(0);
            if request.len() >= end + 4 + length {
                break (text[..end].to_owned(), length);
            }
        };
        let body: serde_json::Value = serde_json::from_slice(&request[request.len() - length..]).unwrap_or_default();
        let (status, answer) = self.world.lock().answer_rest(&head, &body);
        let answer = answer.to_string();
        let reply = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{answer}",
            answer.len()
        );
        stream.write_all(reply.as_bytes()).await.ok();
    }

    async fn session(&self, stream: TcpStream) {
        let mut form = Form::Binary;
        #[allow(clippy::result_large_err, reason = "the type is the library's")]
        let negotiate = |request: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
            let offered = request.headers()["sec-websocket-protocol"].clone();
            if offered == Form::Json.subprotocol() {
                form = Form::Json;
            }
            response.headers_mut().insert("sec-websocket-protocol", offered);
            Ok(response)
        };
        let Ok(mut socket) = tokio_tungstenite::accept_hdr_async(stream, negotiate).await else { return };
        let (sender, mut pushes) = mpsc::channel(PUSHES_MAX);
        let mut held = HashMap::new();
        loop {
            tokio::select! {
                push = pushes.recv() => match push {
                    Some(Push::Frame(frame)) => {
                        let bytes = Bytes::from(frame.encode(form));
                        let message = match form {
                            Form::Binary => WsMessage::Binary(bytes),
                            Form::Json => WsMessage::Text(bytes.try_into().expect("JSON is UTF-8")),
                        };
                        if socket.send(message).await.is_err() {
                            return;
                        }
                    }
                    Some(Push::Close(code, reason)) => {
                        socket.close(Some(CloseFrame { code: code.into(), reason: reason.into() })).await.ok();
                        return;
                    }
                    Some(Push::Break) | None => return,
                },
                message = socket.next() => {
                    let Some(Ok(message)) = message else { return };
                    if message.is_text() || message.is_binary() {
                        let payload = message.into_data();
                        let frame = ClientFrame::decode(form, &payload).expect("the client speaks the protocol");
                        self.world.lock().on_frame(frame, &sender, &mut held);
                    }
                }
            }
        }
    }
}

impl World {
    fn tokens(&self) -> Tokens {
        Tokens {
            user_id: self.user,
            device_id: DeviceId::from_bytes([9; 16]),
            access_token: self.access_token.clone(),
            refresh_token: self.refresh_token.clone(),
            expires_at: 1_000_000 + self.token_ms,
        }
    }

    fn answer_rest(&mut self, head: &str, body: &serde_json::Value) -> (u16, serde_json::Value) {
        let refused = |detail: &str| (401, serde_json::json!({"code": "unauthenticated", "detail": detail}));
        let path = head.split(' ').nth(1).unwrap_or_default();
        match path {
            "/v1/sessions" if body["password"] == "right" => {}
            "/v1/tokens" if body["refresh_token"] == self.refresh_token.as_str() => {
                self.refreshes += 1;
                self.access_token = format!("access-{}", self.refreshes);
                self.refresh_token = format!("refresh-{}", self.refreshes);
            }
            _ => return refused("wrong"),
        }
        (200, serde_json::to_value(self.tokens()).expect("JSON"))
    }

    fn on_frame(&mut self, frame: ClientFrame<'_>, session: &mpsc::Sender<Push>, held: &mut Held) {
        let answer = |body| drop(session.try_send(Push::Frame(ServerFrame::answer(frame.id, body))));
        match frame.body {
            ClientBody::Connect { token, .. } => {
                self.connects += 1;
                if token.as_deref() != Some(self.access_token.as_str()) {
                    session.try_send(Push::Close(4100, "unauthenticated")).ok();
                    return;
                }
                self.sessions.push(session.clone());
                answer(ServerBody::Connected(self.connected()));
            }
            ClientBody::Send(send) => {
                let client_msg_id = send.client_msg_id;
                let conversation_id = send.conversation_id;
                // After a retry the later ones of the conversation have to wait until that one comes again.
                if held.get(&conversation_id).is_some_and(|first| *first != client_msg_id) {
                    return answer(ServerBody::Retry { client_msg_id, retry_after_ms: 5, code: ErrorCode::Order });
                }
                if (self.retries)() {
                    held.insert(conversation_id, client_msg_id);
                    return answer(ServerBody::Retry { client_msg_id, retry_after_ms: 5, code: ErrorCode::Busy });
                }
                held.remove(&conversation_id);
                if !self.conversations.contains_key(&conversation_id) {
                    let (code, message) = (ErrorCode::NotFound, "no such conversation".to_owned());
                    return answer(ServerBody::Rejected { client_msg_id, code, message });
                }
                let body = send.body.into_owned();
                let seq = self.store(conversation_id, self.user, client_msg_id, &send.content_type, body);
                answer(ServerBody::Sent { client_msg_id, conversation_id, seq, time: seq });
            }
            ClientBody::Sync { .. } => {
                let conversations = self.heads(true);
                let next = Some("cursor".to_owned());
                answer(ServerBody::Heads(Heads { conversations, next, more: false, epoch: Some(self.epoch) }));
            }
            ClientBody::History { conversation_id, range: HistoryRange::After(after), .. } => {
                answer(ServerBody::Page(self.page(conversation_id, after)));
            }
            ClientBody::Refresh { token } => {
                assert_eq!(token, Cow::Borrowed(self.access_token.as_str()));
                self.refreshed_live += 1;
            }
            ClientBody::Ping => answer(ServerBody::Pong),
            other => panic!("the client does not ask this: {other:?}"),
        }
    }

    fn connected(&self) -> Connected {
        Connected {
            session_id: SessionId::from_slice(&[1; 16]).expect("16 bytes"),
            user_id: self.user,
            device_id: DeviceId::from_bytes([9; 16]),
            server_time: 1_000_000,
            ping_ms: self.ping_ms,
            limits: ServerLimits::OURS,
            expires_at: 1_000_000 + self.token_ms,
            epoch: self.epoch,
        }
    }

    fn store(&mut self, to: ConversationId, from: UserId, id: ClientMsgId, content_type: &str, body: Vec<u8>) -> u64 {
        let messages = self.conversations.entry(to).or_default();
        if let Some(known) = messages.iter().find(|known| known.sender_id == from && known.client_msg_id == id) {
            return known.seq;
        }
        let seq = messages.len() as u64 + 1;
        let message = Message {
            conversation_id: to,
            seq,
            sender_id: from,
            device_id: DeviceId::from_bytes([8; 16]),
            client_msg_id: id,
            time: seq,
            content_type: content_type.to_owned(),
            body: Bytes::from(body),
            event: None,
        };
        messages.push(message.clone());
        for session in &self.sessions {
            if !(self.loses)() {
                let frame = ServerFrame::unsolicited(ServerBody::Message(message.clone()));
                session.try_send(Push::Frame(frame)).ok();
            }
        }
        seq
    }

    fn heads(&self, full: bool) -> Vec<Head> {
        let head = |(&conversation_id, messages): (&ConversationId, &Vec<Message>)| Head {
            conversation_id,
            first_seq: full.then_some(1),
            last_seq: messages.len() as u64,
            read_seq: None,
            delivered_seq: None,
        };
        self.conversations.iter().map(head).collect()
    }

    fn page(&self, conversation_id: ConversationId, after: u64) -> Page {
        let all = &self.conversations[&conversation_id];
        let messages: Vec<_> = all.iter().skip(after as usize).take(200).cloned().collect();
        let to = after + messages.len() as u64;
        Page { conversation_id, from: after + 1, to, messages, more: to < all.len() as u64, epoch: self.epoch }
    }
}
