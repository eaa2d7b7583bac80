//! The rules of an upgrade on `/v1/connect`, in the order in which they are judged.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

use super::error::HttpError;
use super::head::Request;
use super::origin::OriginPolicy;

/// Where sessions connect.
pub const CONNECT_PATH: &str = "/v1/connect";

const ACCEPT_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

const TOKEN_IN_QUERY: HttpError = HttpError::new(
    400,
    "Tokens in the query end up in logs: send yours as an `Authorization: Bearer` header or in the connect frame, \
     and replace this one.",
);
const NOT_AN_UPGRADE: HttpError = HttpError::new(
    426,
    "This address speaks WebSocket: send GET over HTTP/1.1 with `Connection: Upgrade` and `Upgrade: websocket`.",
);
const BAD_VERSION: HttpError = HttpError::new(426, "Send `Sec-WebSocket-Version: 13`.");
const BAD_KEY: HttpError = HttpError::new(400, "Send one Sec-WebSocket-Key: 16 random bytes in base64.");
const BODY: HttpError = HttpError::new(400, "A WebSocket upgrade has no body.");
const FOREIGN_ORIGIN: HttpError =
    HttpError::new(403, "This origin may not connect: its operator must list it among the allowed origins.");
const COOKIE_ONLY: HttpError = HttpError::new(
    401,
    "A cookie does not authenticate: send `Authorization: Bearer`, or leave the cookie out and send the token in the \
     connect frame.",
);
const BAD_AUTHORIZATION: HttpError = HttpError::new(401, "Send `Authorization: Bearer` with a token.");
const NO_SUBPROTOCOL: HttpError = HttpError::new(
    400,
    "Offer a subprotocol in Sec-WebSocket-Protocol: `roost.v1` (binary) or `roost.v1.json` (text).",
);

/// Names under which clients of other systems put tokens into the query.
const TOKEN_NAMES: [&str; 7] =
    ["token", "access_token", "auth_token", "id_token", "refresh_token", "authorization", "bearer"];

/// The form in which frames travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Subprotocol {
    /// `roost.v1`: protobuf in binary messages.
    Binary,
    /// `roost.v1.json`: the same frames as JSON in text messages.
    Json,
}

impl Subprotocol {
    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Binary => "roost.v1",
            Self::Json => "roost.v1.json",
        }
    }

    fn from_name(name: &[u8]) -> Option<Self> {
        [Self::Binary, Self::Json].into_iter().find(|subprotocol| subprotocol.name().as_bytes() == name)
    }
}

/// A token as presented, not verified. Its `Debug` form does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Bearer(String);

impl Bearer {
    /// The token itself. Must not be logged.
    pub fn token(&self) -> &str {
        &self.0
    }

    /// The token itself, without a copy. Must not be logged.
    pub fn into_token(self) -> String {
        self.0
    }
}

impl fmt::Debug for Bearer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Bearer(…)")
    }
}

pub(super) enum Route {
    Http,
    Upgrade { subprotocol: Subprotocol, bearer: Option<Bearer>, response: Vec<u8> },
}

/// Decides about a well-formed request.
pub(super) fn judge(request: &Request, origins: &OriginPolicy) -> Result<Route, HttpError> {
    if request.method() != "GET" || request.path() != CONNECT_PATH {
        return Ok(Route::Http);
    }
    if request.query().is_some_and(has_token) {
        return Err(TOKEN_IN_QUERY);
    }
    check_upgrade(request)?;
    let key = websocket_key(request)?;
    check_origin(request, origins)?;
    let bearer = bearer(request)?;
    let subprotocol = request.list("sec-websocket-protocol").find_map(Subprotocol::from_name).ok_or(NO_SUBPROTOCOL)?;
    Ok(Route::Upgrade { subprotocol, bearer, response: switching_response(key, subprotocol) })
}

/// Whether a parameter's name, percent-decoded and in any case, says that a token follows.
fn has_token(query: &str) -> bool {
    query.split(['&', ';']).any(|parameter| {
        let name = parameter.split('=').next().unwrap_or_default();
        let name = percent_decode(name.as_bytes());
        TOKEN_NAMES.iter().any(|token| name.eq_ignore_ascii_case(token.as_bytes()))
    })
}

fn percent_decode(text: &[u8]) -> Vec<u8> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        if let (b'%', [high, low, after @ ..]) = (first, after)
            && let (Some(high), Some(low)) = (digit(high), digit(low))
        {
            decoded.push((high * 16 + low) as u8);
            rest = after;
        } else {
            decoded.push(*first);
            rest = after;
        }
    }
    decoded
}

/// Extensions are not looked at: an answer that names none declines them all, permessage-deflate included.
fn check_upgrade(request: &Request) -> Result<(), HttpError> {
    let names = |header: &str, wanted: &[u8]| request.list(header).any(|member| member.eq_ignore_ascii_case(wanted));
    // HTTP/1.0 has no upgrades; RFC 9110 has the header ignored there.
    if request.minor_version() == 0 || !names("upgrade", b"websocket") || !names("connection", b"upgrade") {
        return Err(NOT_AN_UPGRADE);
    }
    if request.header("sec-websocket-version") != Some(b"13") {
        return Err(BAD_VERSION);
    }
    // What follows the head is read as frames: a body there would be another reader's idea of where it ends.
    if request.has_body() { Err(BODY) } else { Ok(()) }
}

fn websocket_key(request: &Request) -> Result<&[u8], HttpError> {
    let key = request.header("sec-websocket-key").ok_or(BAD_KEY)?;
    let mut nonce = [0; 18];
    match STANDARD.decode_slice(key, &mut nonce) {
        Ok(16) => Ok(key),
        _ => Err(BAD_KEY),
    }
}

/// Browsers always say where a page comes from. Without that, a cookie is the sign of a browser (or of a proxy that
/// swallowed the header), and a cookie alone must never open a session.
fn check_origin(request: &Request, origins: &OriginPolicy) -> Result<(), HttpError> {
    let mut lines = request.header_lines("origin");
    let Some(origin) = lines.next() else {
        let has = |name: &str| request.header(name).is_some();
        return if has("cookie") && !has("authorization") { Err(COOKIE_ONLY) } else { Ok(()) };
    };
    let allowed = lines.next().is_none() && std::str::from_utf8(origin).is_ok_and(|origin| origins.allows(origin));
    if allowed { Ok(()) } else { Err(FOREIGN_ORIGIN) }
}

fn bearer(request: &Request) -> Result<Option<Bearer>, HttpError> {
    let Some(value) = request.header("authorization") else { return Ok(None) };
    let value = std::str::from_utf8(value).map_err(|_| BAD_AUTHORIZATION)?;
    let (scheme, token) = value.split_once(' ').ok_or(BAD_AUTHORIZATION)?;
    let token = token.trim_start_matches(' ');
    let characters = token.trim_end_matches('=');
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"-._~+/".contains(&b);
    if !scheme.eq_ignore_ascii_case("bearer") || characters.is_empty() || !characters.bytes().all(is_token) {
        return Err(BAD_AUTHORIZATION);
    }
    Ok(Some(Bearer(token.to_owned())))
}

fn switching_response(key: &[u8], subprotocol: Subprotocol) -> Vec<u8> {
    let digest = Sha1::new().chain_update(key).chain_update(ACCEPT_GUID).finalize();
    let accept = STANDARD.encode(digest);
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: {}\r\n\r\n",
        subprotocol.name()
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_key_is_that_of_the_rfc() {
        let response = switching_response(b"dGhlIHNhbXBsZSBub25jZQ==", Subprotocol::Json);
        assert_eq!(
            String::from_utf8(response).unwrap(),
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: roost.v1.json\r\n\r\n"
        );
    }

    #[test]
    fn tokens_are_found_however_they_are_written() {
        for query in ["token=x", "a=b&access_token=x", "TOKEN=x", "%74oken=x", "token", "a;token=x", "a&%54%4fken=x"] {
            assert!(has_token(query), "{query}");
        }
        for query in ["", "a=token", "tokens=x", "client=web", "%7", "%zz", "x=%74oken"] {
            assert!(!has_token(query), "{query}");
        }
    }
}
