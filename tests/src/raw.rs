//! Clients without an SDK: JSON frames by an independent WebSocket library, and bytes as hostile as a test wants them.

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use roost_protocol::{ClientMsgId, ConversationId};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue, StatusCode};
use tokio_tungstenite::tungstenite::{self, Message};

use crate::people::LIVENESS;

/// A session that speaks JSON and does exactly what it is told.
pub struct Raw {
    socket: WebSocketStream<TcpStream>,
}

/// What a raw client hears.
#[derive(Clone, PartialEq, Debug)]
pub enum Heard {
    /// A frame.
    Frame(Value),
    /// The end of the connection, with its close code if there was one.
    Closed(Option<u16>),
}

/// `host:port` of an address.
fn authority(url: &str) -> &str {
    url.trim_start_matches("http://").trim_end_matches('/')
}

impl Raw {
    /// Opens a WebSocket with these additional headers; the HTTP status where it is refused.
    pub async fn open(url: &str, headers: &[(&str, &str)]) -> Result<Self, StatusCode> {
        Self::open_path(url, "/v1/connect", headers).await
    }

    /// The same with another path and query.
    pub async fn open_path(url: &str, path: &str, headers: &[(&str, &str)]) -> Result<Self, StatusCode> {
        let authority = authority(url);
        let mut request = format!("ws://{authority}{path}").into_client_request().expect("an address");
        request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static("roost.v1.json"));
        for &(name, value) in headers {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            request.headers_mut().append(name, HeaderValue::from_str(value).expect("a value"));
        }
        let stream = TcpStream::connect(authority).await.expect("the server listens");
        match tokio_tungstenite::client_async(request, stream).await {
            Ok((socket, _)) => Ok(Self { socket }),
            Err(tungstenite::Error::Http(response)) => Err(response.status()),
            Err(error) => panic!("neither opened nor refused: {error}"),
        }
    }

    /// A session with this token.
    pub async fn connect(url: &str, token: &str) -> Self {
        let mut raw = Self::open(url, &[]).await.expect("a WebSocket");
        raw.say(json!({"type": "connect", "id": 1, "token": token, "client": "raw"})).await;
        raw.answer("connected").await;
        raw
    }

    /// Sends a frame.
    pub async fn say(&mut self, frame: Value) {
        self.say_text(&frame.to_string()).await;
    }

    /// Sends a text message as it is. That the server has closed meanwhile is heard later.
    pub async fn say_text(&mut self, text: &str) {
        let _ = self.socket.send(Message::text(text)).await;
    }

    /// Sends a binary message as it is.
    pub async fn say_bytes(&mut self, bytes: &[u8]) {
        let _ = self.socket.send(Message::binary(bytes.to_vec())).await;
    }

    /// Sends a text message to a conversation.
    pub async fn send(&mut self, id: ClientMsgId, conversation: ConversationId, text: &str) {
        self.say(json!({"type": "send", "client_msg_id": id, "conversation_id": conversation, "text": text})).await;
    }

    /// What comes next; WebSocket's own control frames aside.
    pub async fn next(&mut self) -> Heard {
        loop {
            let next = tokio::time::timeout(LIVENESS, self.socket.next()).await.expect("something is heard");
            match next {
                Some(Ok(Message::Text(text))) => {
                    let frame: Value = serde_json::from_str(&text).expect("a JSON frame");
                    if frame["type"] != "ping" {
                        return Heard::Frame(frame);
                    }
                    self.say(json!({"type": "pong"})).await;
                }
                Some(Ok(Message::Close(frame))) => return Heard::Closed(frame.map(|frame| frame.code.into())),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Heard::Closed(None),
            }
        }
    }

    /// The next frame of a type; others are passed over.
    pub async fn answer(&mut self, kind: &str) -> Value {
        self.answer_to(kind, |_| true).await
    }

    /// The next frame of a type that fits.
    pub async fn answer_to(&mut self, kind: &str, fits: impl Fn(&Value) -> bool) -> Value {
        loop {
            match self.next().await {
                Heard::Frame(frame) if frame["type"] == kind && fits(&frame) => return frame,
                Heard::Frame(_) => {}
                Heard::Closed(code) => panic!("closed with {code:?} instead of {kind}"),
            }
        }
    }

    /// The first of these types that comes.
    pub async fn first_of(&mut self, kinds: &[&str]) -> Value {
        loop {
            match self.next().await {
                Heard::Frame(frame) if kinds.iter().any(|kind| frame["type"] == *kind) => return frame,
                Heard::Frame(_) => {}
                Heard::Closed(code) => panic!("closed with {code:?} instead of {kinds:?}"),
            }
        }
    }

    /// The verdict on a send, `retry` being none: then it is sent again.
    pub async fn verdict(&mut self, id: ClientMsgId, conversation: ConversationId, text: &str) -> Value {
        let text_id = id.to_string();
        loop {
            self.send(id, conversation, text).await;
            let answer = loop {
                let answer = self.first_of(&["sent", "rejected", "retry"]).await;
                if answer["client_msg_id"] == text_id.as_str() {
                    break answer;
                }
            };
            if answer["type"] != "retry" {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(answer["retry_after_ms"].as_u64().unwrap_or(100))).await;
        }
    }

    /// A request with an id, and its answer of whatever type.
    pub async fn ask(&mut self, mut request: Value) -> Value {
        let id: u32 = rand::random_range(2..u32::MAX);
        request["id"] = id.into();
        self.say(request).await;
        loop {
            match self.next().await {
                Heard::Frame(frame) if frame["id"] == id => return frame,
                Heard::Frame(_) => {}
                Heard::Closed(code) => panic!("closed with {code:?} instead of an answer"),
            }
        }
    }

    /// Waits until the message is there: live, or fetched because heads told of it.
    pub async fn sees(&mut self, conversation: ConversationId, id: ClientMsgId) -> Value {
        let id = id.to_string();
        let is_it = |message: &&Value| message["client_msg_id"] == id.as_str();
        loop {
            let frame = self.first_of(&["message", "heads", "page"]).await;
            if frame["type"] == "heads" && frame["conversations"].to_string().contains(&conversation.to_string()) {
                self.say(json!({"type": "history", "conversation_id": conversation, "after": 0})).await;
            }
            let page = frame["messages"].as_array().map_or(&[][..], Vec::as_slice);
            if let Some(message) = page.iter().chain([&frame]).find(is_it) {
                return message.clone();
            }
        }
    }

    /// Waits for the end; the frames before it are passed over.
    pub async fn closed(&mut self) -> Option<u16> {
        loop {
            if let Heard::Closed(code) = self.next().await {
                return code;
            }
        }
    }
}

/// Sends bytes on a new connection and reads until the server closes it, or is silent for the time given.
pub async fn exchange(url: &str, bytes: &[u8], silent: Duration) -> Vec<u8> {
    let mut stream = TcpStream::connect(authority(url)).await.expect("the server listens");
    // The server may close in the middle.
    let _ = stream.write_all(bytes).await;
    read_to_end(&mut stream, silent).await
}

async fn read_to_end(stream: &mut TcpStream, silent: Duration) -> Vec<u8> {
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(Ok(count)) = tokio::time::timeout(silent, stream.read(&mut piece)).await {
        if count == 0 {
            break;
        }
        answer.extend_from_slice(&piece[..count]);
    }
    answer
}

/// The status of an HTTP answer; 0 where there is none.
pub fn status(answer: &[u8]) -> u16 {
    let line = String::from_utf8_lossy(answer);
    line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).and_then(|code| code.parse().ok()).unwrap_or(0)
}

/// A handshake with this text in front of the blank line.
pub fn handshake(more: &str) -> String {
    format!(
        "GET /v1/connect HTTP/1.1\r\nHost: roost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Protocol: roost.v1.json\r\n{more}\r\n"
    )
}

/// A WebSocket whose frames are written byte by byte.
pub struct Wire {
    stream: TcpStream,
}

/// One frame of a client, masked.
pub fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        0..=125 => frame.push(0x80 | payload.len() as u8),
        126..=0xffff => {
            frame.push(0x80 | 126);
            frame.extend((payload.len() as u16).to_be_bytes());
        }
        _ => {
            frame.push(0x80 | 127);
            frame.extend((payload.len() as u64).to_be_bytes());
        }
    }
    let key = [7, 31, 77, 200];
    frame.extend(key);
    frame.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

impl Wire {
    /// A connected session.
    pub async fn connect(url: &str, token: &str) -> Self {
        let mut stream = TcpStream::connect(authority(url)).await.expect("the server listens");
        stream.write_all(handshake("").as_bytes()).await.expect("a handshake");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.expect("an answer"));
        }
        assert_eq!(status(&head), 101);
        let mut wire = Self { stream };
        let connect = json!({"type": "connect", "token": token, "client": "wire"}).to_string();
        wire.write(&masked(0x81, connect.as_bytes())).await;
        let (_, payload) = wire.frame().await.expect("an answer");
        assert!(payload.starts_with(br#"{"type":"connected""#), "{}", String::from_utf8_lossy(&payload));
        wire
    }

    /// Sends bytes as they are.
    pub async fn write(&mut self, bytes: &[u8]) {
        // The server may have closed already.
        let _ = self.stream.write_all(bytes).await;
    }

    /// The next frame: its first byte and its payload.
    pub async fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let read = async {
            let first = self.stream.read_u8().await.ok()?;
            let length = match self.stream.read_u8().await.ok()? {
                126 => usize::from(self.stream.read_u16().await.ok()?),
                127 => self.stream.read_u64().await.ok()? as usize,
                short => usize::from(short),
            };
            let mut payload = vec![0; length];
            self.stream.read_exact(&mut payload).await.ok()?;
            Some((first, payload))
        };
        tokio::time::timeout(LIVENESS, read).await.expect("something is heard")
    }

    /// Waits for the end, and says with which close code it came.
    pub async fn close_code(&mut self) -> Option<u16> {
        while let Some((first, payload)) = self.frame().await {
            if first == 0x88 {
                return payload.get(..2).map(|code| u16::from_be_bytes([code[0], code[1]]));
            }
        }
        None
    }
}

/// The status that a GET is answered with, or none where the server does not listen or answer.
pub async fn status_of(url: &str, path: &str) -> Option<u16> {
    let mut stream = TcpStream::connect(authority(url)).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: roost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    Some(status(&read_to_end(&mut stream, LIVENESS).await)).filter(|status| *status != 0)
}

/// How it went to connect, to become a session, and to leave.
#[derive(Clone, PartialEq, Debug)]
pub enum Visit {
    /// It was a session.
    Served,
    /// It was told to come back later.
    TurnedAway,
    /// The connection was refused, reset, or ended without a word.
    Broken(String),
}

/// Connects, becomes a session, and leaves.
pub async fn visit(url: &str, token: &str) -> Visit {
    let authority = authority(url);
    let mut request = format!("ws://{authority}/v1/connect").into_client_request().expect("an address");
    request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static("roost.v1.json"));
    let stream = match TcpStream::connect(authority).await {
        Ok(stream) => stream,
        Err(error) => return Visit::Broken(format!("connecting: {error}")),
    };
    let mut socket = match tokio_tungstenite::client_async(request, stream).await {
        Ok((socket, _)) => socket,
        Err(tungstenite::Error::Http(response)) if response.status() == 503 => return Visit::TurnedAway,
        Err(error) => return Visit::Broken(format!("opening: {error}")),
    };
    let connect = json!({"type": "connect", "token": token, "client": "visitor"});
    if let Err(error) = socket.send(Message::text(connect.to_string())).await {
        return Visit::Broken(format!("saying connect: {error}"));
    }
    loop {
        match tokio::time::timeout(LIVENESS, socket.next()).await {
            Ok(Some(Ok(Message::Text(text)))) if text.contains(r#""type":"connected""#) => {
                // Who leaves need not be heard.
                let _ = socket.close(None).await;
                return Visit::Served;
            }
            Ok(Some(Ok(Message::Close(Some(_))))) => return Visit::TurnedAway,
            Ok(Some(Ok(_))) => {}
            other => return Visit::Broken(format!("waiting to be connected: {other:?}")),
        }
    }
}
