//! The REST side: accounts, tokens, users, conversations, history.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use roost_protocol::frames::{HistoryRange, Page};
use roost_protocol::{ClientMsgId, ConversationId, DeviceId, ErrorCode, Seq, TimeMs, UserId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::trust::{self, Trust};

/// The longest answer that is read.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// A request without an answer for so long has failed.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// How often and after what wait something whose outcome is not known yet (202) is asked for again.
const ATTEMPTS_MAX: u32 = 20;
const ATTEMPT_WAIT: Duration = Duration::from_millis(500);

/// Why a request failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RestError {
    /// The server refused it.
    #[error("{status}: {detail}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The code, if the server gave one that this build knows.
        code: Option<ErrorCode>,
        /// Why, in words.
        detail: String,
        /// Wait at least this long before trying again.
        retry_after: Option<Duration>,
    },
    /// No answer: it may or may not have happened.
    #[error("no answer: {0}")]
    NoAnswer(String),
    /// The server shows a certificate that is not trusted.
    #[error("the server's certificate is not trusted: {0}")]
    Untrusted(String),
    /// The answer is not what the protocol says.
    #[error("an answer that this client does not understand: {0}")]
    NotUnderstood(String),
    /// The base URL is not one.
    #[error("the base URL must be https://HOST[:PORT] or http://HOST[:PORT]: {0}")]
    BaseUrl(String),
}

/// What register, log in and refresh give. Keep it secret; `Debug` shows no token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    /// Whose they are.
    pub user_id: UserId,
    /// The device that was logged in.
    pub device_id: DeviceId,
    /// For `connect` and for REST.
    pub access_token: String,
    /// For the next refresh, once.
    pub refresh_token: String,
    /// When the access token ends.
    pub expires_at: TimeMs,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens")
            .field("user_id", &self.user_id)
            .field("device_id", &self.device_id)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// A user as others see it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct User {
    /// The user.
    pub user_id: UserId,
    /// The name.
    pub name: String,
}

/// A conversation was created, or existed already.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Created {
    /// The conversation.
    pub conversation_id: ConversationId,
    /// The seq of its `created` event.
    #[serde(default)]
    pub seq: Seq,
}

/// One of the user's conversations.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Conversation {
    /// The conversation.
    pub conversation_id: ConversationId,
    /// `direct` or `group`.
    pub kind: String,
    /// Its title, for groups that have one.
    pub title: Option<String>,
    /// What is before it is not for this user.
    pub first_seq: Seq,
    /// The newest message for this user.
    pub last_seq: Seq,
    /// Read up to here on some device.
    #[serde(default)]
    pub read_seq: Seq,
    /// Delivered up to here on some device.
    #[serde(default)]
    pub delivered_seq: Seq,
    /// The other user of a direct conversation.
    #[serde(default)]
    pub peer: Option<UserId>,
}

/// A part of the user's conversations.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Conversations {
    /// In the server's order.
    pub conversations: Vec<Conversation>,
    /// The `after` of the following part; absent at the end.
    pub next: Option<ConversationId>,
}

/// A part of a conversation's members.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Members {
    /// In order of id.
    pub members: Vec<Member>,
    /// The seq of the newest membership event; where it changes between two parts, start again.
    #[serde(default)]
    pub version: Seq,
    /// The `after` of the following part; absent at the end.
    pub next: Option<UserId>,
}

/// A member of a conversation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Member {
    /// Who.
    pub user_id: UserId,
}

/// A message that was stored by REST.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Stored {
    /// The client's name for it.
    pub client_msg_id: ClientMsgId,
    /// Its conversation.
    pub conversation_id: ConversationId,
    /// Its number.
    pub seq: Seq,
    /// The server's time for it.
    pub time: TimeMs,
}

/// A client of one server's REST API. Cheap to clone; connections are shared and kept.
#[derive(Clone, Debug)]
pub struct Rest {
    client: HttpClient<HttpsConnector<HttpConnector>, Full<Bytes>>,
    base: String,
}

impl Rest {
    /// A client of the server at `https://HOST[:PORT]` or `http://HOST[:PORT]`; trusts whom this system trusts.
    pub fn new(base_url: &str) -> Result<Self, RestError> {
        Self::with_trust(base_url, &Trust::default())
    }

    /// The same with other certificates to be trusted.
    pub fn with_trust(base_url: &str, trust: &Trust) -> Result<Self, RestError> {
        let base = base(base_url).ok_or_else(|| RestError::BaseUrl(base_url.to_owned()))?;
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.enforce_http(false);
        let tls = if base.starts_with("https:") { trust.config().as_ref().clone() } else { trust::nobody() };
        let builder = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1();
        let connector = builder.wrap_connector(connector);
        Ok(Self { client: HttpClient::builder(TokioExecutor::new()).build(connector), base })
    }

    /// Makes an account and logs in.
    pub async fn register(&self, name: &str, password: &str, device_label: &str) -> Result<Tokens, RestError> {
        let body = json!({"name": name, "password": password, "device_label": device_label});
        self.json(Method::POST, "/v1/accounts", None, Some(body)).await
    }

    /// Logs in: makes a device.
    pub async fn log_in(&self, name: &str, password: &str, device_label: &str) -> Result<Tokens, RestError> {
        let body = json!({"name": name, "password": password, "device_label": device_label});
        self.json(Method::POST, "/v1/sessions", None, Some(body)).await
    }

    /// New tokens for a refresh token, which is used up by it.
    pub async fn refresh(&self, refresh_token: &str) -> Result<Tokens, RestError> {
        self.json(Method::POST, "/v1/tokens", None, Some(json!({"refresh_token": refresh_token}))).await
    }

    /// Logs the token's device out.
    pub async fn log_out(&self, access_token: &str) -> Result<(), RestError> {
        self.request(Method::DELETE, "/v1/sessions/current", Some(access_token), None).await.map(drop)
    }

    /// The user with exactly this name.
    pub async fn find_user(&self, access_token: &str, name: &str) -> Result<Option<User>, RestError> {
        let path = format!("/v1/users?name={}", percent_encoded(name));
        match self.json(Method::GET, &path, Some(access_token), None).await {
            Err(RestError::Refused { status: 404, .. }) => Ok(None),
            found => found.map(Some),
        }
    }

    /// The user with this id.
    pub async fn user(&self, access_token: &str, id: UserId) -> Result<Option<User>, RestError> {
        match self.json(Method::GET, &format!("/v1/users/{id}"), Some(access_token), None).await {
            Err(RestError::Refused { status: 404, .. }) => Ok(None),
            found => found.map(Some),
        }
    }

    /// The direct conversation with another user, made if there is none.
    pub async fn create_direct(&self, access_token: &str, other: UserId) -> Result<Created, RestError> {
        let body = json!({"client_msg_id": ClientMsgId::new(), "kind": "direct", "members": [other]});
        self.until_known("/v1/conversations", access_token, body).await
    }

    /// A new group. Repeat a failed call with the same `client_msg_id` and no second group comes of it.
    pub async fn create_group(
        &self,
        access_token: &str,
        client_msg_id: ClientMsgId,
        title: Option<&str>,
        members: &[UserId],
    ) -> Result<Created, RestError> {
        let mut body = json!({"client_msg_id": client_msg_id, "kind": "group", "members": members});
        if let Some(title) = title {
            body["title"] = title.into();
        }
        self.until_known("/v1/conversations", access_token, body).await
    }

    /// A part of the token's user's conversations.
    pub async fn conversations(
        &self,
        access_token: &str,
        after: Option<ConversationId>,
        limit: Option<u32>,
    ) -> Result<Conversations, RestError> {
        self.json(Method::GET, &part_of("/v1/conversations", after, limit), Some(access_token), None).await
    }

    /// A part of a conversation's members.
    pub async fn members(
        &self,
        access_token: &str,
        conversation: ConversationId,
        after: Option<UserId>,
        limit: Option<u32>,
    ) -> Result<Members, RestError> {
        let path = part_of(&format!("/v1/conversations/{conversation}/members"), after, limit);
        self.json(Method::GET, &path, Some(access_token), None).await
    }

    /// A page of a conversation.
    pub async fn history(
        &self,
        access_token: &str,
        conversation: ConversationId,
        range: HistoryRange,
        limit: Option<u32>,
    ) -> Result<Page, RestError> {
        let range = match range {
            HistoryRange::After(seq) => format!("after={seq}"),
            HistoryRange::Before(seq) => format!("before={seq}"),
        };
        let limit = limit.map(|limit| format!("&limit={limit}")).unwrap_or_default();
        let path = format!("/v1/messages?conversation_id={conversation}&{range}{limit}");
        let (_, body) = self.request(Method::GET, &path, Some(access_token), None).await?;
        Page::from_json(&body).map_err(|error| RestError::NotUnderstood(error.to_string()))
    }

    /// Sends a text message by REST. Repeat a failed call with the same `client_msg_id`.
    pub async fn send_text(
        &self,
        access_token: &str,
        client_msg_id: ClientMsgId,
        conversation_id: ConversationId,
        text: &str,
    ) -> Result<Stored, RestError> {
        let body = json!({"client_msg_id": client_msg_id, "conversation_id": conversation_id, "text": text});
        self.until_known("/v1/messages", access_token, body).await
    }

    /// Repeats a request under the same client_msg_id while its outcome is not known (202).
    async fn until_known<T: DeserializeOwned>(
        &self,
        path: &str,
        access_token: &str,
        body: serde_json::Value,
    ) -> Result<T, RestError> {
        for _ in 0..ATTEMPTS_MAX {
            let (status, answer) = self.request(Method::POST, path, Some(access_token), Some(body.clone())).await?;
            if status != StatusCode::ACCEPTED {
                return understood(&answer);
            }
            tokio::time::sleep(ATTEMPT_WAIT).await;
        }
        Err(RestError::NoAnswer("the outcome is still not known".to_owned()))
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        access_token: Option<&str>,
        body: Option<serde_json::Value>,
    ) -> Result<T, RestError> {
        let (_, answer) = self.request(method, path, access_token, body).await?;
        understood(&answer)
    }

    /// Any request: the status and body of a 2xx answer.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        access_token: Option<&str>,
        body: Option<serde_json::Value>,
    ) -> Result<(StatusCode, Bytes), RestError> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if let Some(token) = access_token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let request = request.body(Full::new(body)).map_err(|error| RestError::NotUnderstood(error.to_string()))?;
        let answer = tokio::time::timeout(ANSWER_WITHIN, self.exchange(request)).await;
        let (parts, body) = answer.unwrap_or_else(|_| Err(RestError::NoAnswer("it took too long".to_owned())))?;
        if parts.status.is_success() { Ok((parts.status, body)) } else { Err(refusal(&parts, &body)) }
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<(http::response::Parts, Bytes), RestError> {
        let answer = self.client.request(request).await.map_err(|error| match trust::distrust(&error) {
            Some(why) => RestError::Untrusted(why),
            None => RestError::NoAnswer(describe(&error)),
        })?;
        let (parts, body) = answer.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        Ok((parts, body.map_err(|error| RestError::NoAnswer(error.to_string()))?.to_bytes()))
    }
}

/// A base URL as it is used, without a slash at its end: `ws` and `wss` stand for `http` and `https`.
pub(crate) fn base(url: &str) -> Option<String> {
    let (scheme, address) = url.trim_end_matches('/').split_once("://")?;
    let scheme = match scheme {
        "http" | "ws" => "http",
        "https" | "wss" => "https",
        _ => return None,
    };
    let base = format!("{scheme}://{address}");
    let uri: http::Uri = base.parse().ok()?;
    uri.host().filter(|host| !host.is_empty())?;
    Some(base)
}

#[derive(Deserialize, Default)]
struct Problem {
    #[serde(default)]
    title: String,
    #[serde(default)]
    detail: String,
    #[serde(default)]
    code: String,
    retry_after_ms: Option<u64>,
}

fn refusal(parts: &http::response::Parts, body: &[u8]) -> RestError {
    let problem: Problem = serde_json::from_slice(body).unwrap_or_default();
    RestError::Refused {
        status: parts.status.as_u16(),
        code: ErrorCode::parse(&problem.code),
        detail: if problem.detail.is_empty() { problem.title } else { problem.detail },
        retry_after: problem.retry_after_ms.map(Duration::from_millis).or_else(|| retry_after(&parts.headers)),
    }
}

/// The `Retry-After` header, in its form of seconds.
pub(crate) fn retry_after(headers: &http::HeaderMap) -> Option<Duration> {
    headers.get(header::RETRY_AFTER)?.to_str().ok()?.parse().ok().map(Duration::from_secs)
}

fn understood<T: DeserializeOwned>(body: &[u8]) -> Result<T, RestError> {
    serde_json::from_slice(body).map_err(|error| RestError::NotUnderstood(error.to_string()))
}

/// The error with its causes: hyper's own words alone say little.
fn describe(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words += &format!(": {error}");
        cause = error.source();
    }
    words
}

/// The path of one part of a list.
fn part_of(path: &str, after: Option<impl fmt::Display>, limit: Option<u32>) -> String {
    match (after, limit) {
        (Some(after), Some(limit)) => format!("{path}?after={after}&limit={limit}"),
        (Some(after), None) => format!("{path}?after={after}"),
        (None, Some(limit)) => format!("{path}?limit={limit}"),
        (None, None) => path.to_owned(),
    }
}

fn percent_encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out += &format!("%{byte:02X}"),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_values_are_encoded() {
        assert_eq!(percent_encoded("a b&c=ü~"), "a%20b%26c%3D%C3%BC~");
    }

    #[test]
    fn urls_are_http_with_or_without_tls() {
        for right in ["http://127.0.0.1:8080/", "https://example.org", "ws://[::1]:1", "wss://example.org:8443/"] {
            assert!(Rest::new(right).is_ok(), "{right}");
        }
        for wrong in ["127.0.0.1:8080", "ftp://x", "https://", ""] {
            assert!(Rest::new(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn tokens_are_not_shown() {
        let tokens = Tokens {
            user_id: UserId::new(),
            device_id: DeviceId::new(),
            access_token: "secret".to_owned(),
            refresh_token: "secret".to_owned(),
            expires_at: 1,
        };
        assert!(!format!("{tokens:?}").contains("secret"));
    }
}
