//! The WebSocket: opening, frames in and out, and how it ended.

use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{HeaderValue, StatusCode, header};
use roost_protocol::codes::{self, ReconnectPolicy};
use roost_protocol::{Form, ServerFrame, limits};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Error, Message};

use crate::rest;
use crate::trust::Trust;

/// Opening takes at most so long, name look-up included.
const OPEN_WITHIN: Duration = Duration::from_secs(10);
/// The server takes what is written within this, or is gone.
const WRITE_WITHIN: Duration = Duration::from_secs(20);
/// A farewell takes at most so long.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);
/// tungstenite's own default is 128 KiB per connection.
const BUFFER_BYTES: usize = 4 * 1024;

/// How a connection, or the attempt at one, ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) code: Option<u16>,
    pub(super) reason: String,
    pub(super) policy: ReconnectPolicy,
    pub(super) retry_after: Option<Duration>,
}

impl Ended {
    /// Without a word from the server.
    pub(super) fn local(policy: ReconnectPolicy, reason: String) -> Self {
        Self { code: None, reason, policy, retry_after: None }
    }

    fn broken(reason: impl ToString) -> Self {
        Self::local(ReconnectPolicy::Resume, reason.to_string())
    }
}

/// What came.
pub(super) enum Incoming {
    Frame(ServerFrame),
    /// Something that only shows that the server lives: a control frame, or a frame of a later version.
    Nothing,
    Ended(Ended),
}

/// TCP, or TLS over it.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

pub(super) struct Socket {
    stream: WebSocketStream<Box<dyn Stream>>,
    form: Form,
}

impl Socket {
    pub(super) async fn open(base_url: String, trust: Trust, form: Form) -> Result<Socket, Ended> {
        match tokio::time::timeout(OPEN_WITHIN, Self::handshake(&base_url, &trust, form)).await {
            Ok(opened) => opened,
            Err(_) => Err(Ended::broken("the server did not answer the handshake")),
        }
    }

    async fn handshake(base_url: &str, trust: &Trust, form: Form) -> Result<Socket, Ended> {
        let misconfigured = |reason: &str| Ended::local(ReconnectPolicy::Never, reason.to_owned());
        let base = rest::base(base_url).ok_or_else(|| misconfigured("the base URL is not https:// or http://"))?;
        // http becomes ws, and https wss.
        let url = format!("ws{}/v1/connect", base.trim_start_matches("http"));
        let secure = base.starts_with("https:");
        let mut request = url.into_client_request().map_err(|_| misconfigured("the base URL is not one"))?;
        let protocol = HeaderValue::from_static(form.subprotocol());
        request.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
        let host = request.uri().host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let port = request.uri().port_u16().unwrap_or(if secure { 443 } else { 80 });
        let stream = TcpStream::connect((host.as_str(), port)).await.map_err(Ended::broken)?;
        stream.set_nodelay(true).map_err(Ended::broken)?;
        let stream: Box<dyn Stream> = match secure {
            true => Box::new(trust.secure(stream, &host).await.map_err(Ended::broken)?),
            false => Box::new(stream),
        };
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER_BYTES)
            .write_buffer_size(BUFFER_BYTES)
            .max_message_size(Some(2 * limits::QUEUE_BYTES_HARD))
            .max_frame_size(Some(2 * limits::QUEUE_BYTES_HARD));
        match tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await {
            Ok((stream, _)) => Ok(Socket { stream, form }),
            Err(Error::Http(answer)) => Err(refused(&answer)),
            Err(error) => Err(Ended::broken(error)),
        }
    }

    /// Buffers one frame.
    pub(super) async fn write(&mut self, frame: Vec<u8>) -> Result<(), Ended> {
        let message = match self.form {
            Form::Binary => Message::Binary(Bytes::from(frame)),
            Form::Json => match tungstenite::Utf8Bytes::try_from(Bytes::from(frame)) {
                Ok(text) => Message::Text(text),
                Err(_) => return Err(Ended::local(ReconnectPolicy::Never, "a frame is not UTF-8".to_owned())),
            },
        };
        within(self.stream.feed(message)).await
    }

    /// Sends what is buffered.
    pub(super) async fn flush(&mut self) -> Result<(), Ended> {
        within(self.stream.flush()).await
    }

    /// What comes next. May be dropped at any time.
    pub(super) async fn next(&mut self) -> Incoming {
        let payload = match self.stream.next().await {
            Some(Ok(Message::Binary(bytes))) if self.form == Form::Binary => bytes,
            Some(Ok(Message::Text(text))) if self.form == Form::Json => text.into(),
            Some(Ok(Message::Close(frame))) => {
                let code = frame.as_ref().map(|frame| u16::from(frame.code));
                let reason = frame.map(|frame| frame.reason.to_string()).unwrap_or_default();
                let policy = code.map_or(ReconnectPolicy::Resume, codes::reconnect_policy);
                return Incoming::Ended(Ended { code, reason, policy, retry_after: None });
            }
            Some(Ok(Message::Binary(_) | Message::Text(_))) => {
                return Incoming::Ended(Ended::broken("a frame came in the other form"));
            }
            Some(Ok(_)) => {
                // A ping's pong is buffered by the library: let it go.
                return match self.flush().await {
                    Ok(()) => Incoming::Nothing,
                    Err(ended) => Incoming::Ended(ended),
                };
            }
            Some(Err(error)) => return Incoming::Ended(Ended::broken(error)),
            None => return Incoming::Ended(Ended::broken("the connection is gone")),
        };
        match ServerFrame::decode(self.form, payload) {
            Ok(Some(frame)) => Incoming::Frame(frame),
            Ok(None) => Incoming::Nothing,
            Err(error) => Incoming::Ended(Ended::broken(format!("a frame does not decode: {error}"))),
        }
    }

    /// Says goodbye and waits a moment for the answer.
    pub(super) async fn close(&mut self) {
        let farewell = async {
            if self.stream.close(None).await.is_ok() {
                while let Some(Ok(_)) = self.stream.next().await {}
            }
        };
        tokio::time::timeout(CLOSE_WITHIN, farewell).await.ok();
    }
}

async fn within(write: impl Future<Output = Result<(), Error>>) -> Result<(), Ended> {
    match tokio::time::timeout(WRITE_WITHIN, write).await {
        Ok(written) => written.map_err(Ended::broken),
        Err(_) => Err(Ended::broken("the server does not read")),
    }
}

/// A handshake that was answered with something else than a WebSocket.
fn refused(answer: &http::Response<Option<Vec<u8>>>) -> Ended {
    let status = answer.status();
    let policy = match status {
        StatusCode::UNAUTHORIZED => ReconnectPolicy::Reauthenticate,
        StatusCode::FORBIDDEN => ReconnectPolicy::Never,
        // Also 404 and the like: what answers there may be a proxy whose server is just starting.
        _ => ReconnectPolicy::Resume,
    };
    let retry_after = rest::retry_after(answer.headers());
    Ended { code: None, reason: format!("the handshake was answered with {status}"), policy, retry_after }
}
