//! What handlers take from a request: the caller, the peer's address, JSON bodies, parameters; refused as problems.

use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use http::header::{self, AsHeaderName, HeaderMap, HeaderValue};
use http::request::Parts;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use roost_protocol::{ErrorCode, limits};
use roost_session::token::Claims;
use serde::de::{Deserialize, DeserializeOwned, Deserializer, Error as _};

use crate::Api;
use crate::problem::Problem;

/// The other end of the connection, put into every request by the server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerAddress(pub(crate) SocketAddr);

/// Where a request comes from: the connection's other end, or what a trusted proxy says.
pub(crate) struct Peer(pub(crate) IpAddr);

impl FromRequestParts<Arc<Api>> for Peer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Problem> {
        let connected = parts.extensions.get::<PeerAddress>().map(|peer| peer.0.ip());
        let connected = connected.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let lines: Vec<&[u8]> = parts.headers.get_all("x-forwarded-for").iter().map(HeaderValue::as_bytes).collect();
        Ok(Self(api.config.trusted_proxies.client_behind(connected, lines.into_iter())))
    }
}

/// The user of the access token.
pub(crate) struct Caller(pub(crate) Claims);

impl FromRequestParts<Arc<Api>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Problem> {
        // Only the header counts: a token in the query would end up in logs.
        let value = single(&parts.headers, header::AUTHORIZATION)?.ok_or_else(Problem::unauthenticated)?;
        let (scheme, token) = value.split_once(' ').ok_or_else(Problem::unauthenticated)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(Problem::unauthenticated());
        }
        let claims = api.keys.verify(token).await?;
        api.limiter.user(claims.user_id, api.config.rates.requests_per_user)?;
        Ok(Self(claims))
    }
}

/// The one value of a header; two of them mean that two readers may see different ones.
fn single<N: AsHeaderName>(headers: &HeaderMap, name: N) -> Result<Option<&str>, Problem> {
    let mut values = headers.get_all(name).iter();
    let value = values.next();
    if values.next().is_some() {
        return Err(Problem::new(ErrorCode::Malformed, "A header that may come only once comes twice."));
    }
    // What is not text is as good as absent.
    Ok(value.and_then(|value| value.to_str().ok()))
}

/// A body that is a JSON object of ours, of at most `MAX` bytes.
pub(crate) struct JsonBody<T, const MAX: usize = SMALL>(pub(crate) T);

/// The largest body of most requests.
pub(crate) const SMALL: usize = 16 * 1024;

impl<T: DeserializeOwned, const MAX: usize> FromRequest<Arc<Api>> for JsonBody<T, MAX> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &Arc<Api>) -> Result<Self, Problem> {
        let content_type = single(request.headers(), header::CONTENT_TYPE)?.unwrap_or_default();
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        if !essence.eq_ignore_ascii_case("application/json") {
            return Err(Problem::unsupported_media_type());
        }
        let body = Limited::new(request.into_body(), MAX).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                Problem::new(ErrorCode::BodyTooLarge, format!("The body is over {MAX} bytes."))
            } else {
                Problem::new(ErrorCode::Malformed, "The body did not arrive whole.")
            }
        })?;
        parse(&body.to_bytes()).map(Self)
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let malformed = |detail: &str| Problem::new(ErrorCode::Malformed, detail);
    let text = std::str::from_utf8(body).map_err(|_| malformed("The body is not UTF-8."))?;
    if !roost_protocol::json_depth_is_at_most(text, limits::JSON_DEPTH_MAX) {
        return Err(malformed("The body nests too deep."));
    }
    if !text.trim_start_matches([' ', '\t', '\r', '\n']).starts_with('{') {
        return Err(malformed("The body is not a JSON object."));
    }
    serde_json::from_str(text).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => Problem::field(harmless(&error)),
        _ => malformed("The body is not JSON."),
    })
}

/// The parser's own words may quote the client's bytes; the place and our own field names may go on.
fn harmless(error: &serde_json::Error) -> String {
    let place = format!("line {}, column {}", error.line(), error.column());
    let words = error.to_string();
    match words.strip_prefix("missing field `").and_then(|rest| rest.split_once('`')) {
        Some((name, _)) => format!("{name}: missing"),
        None => format!("A field is not of the right type, or comes twice ({place})."),
    }
}

/// The query's parameters.
pub(crate) struct Params<T>(pub(crate) T);

impl<T: DeserializeOwned + Send> FromRequestParts<Arc<Api>> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Problem> {
        let query = Query::<T>::from_request_parts(parts, api).await;
        let Query(params) = query.map_err(|_| {
            Problem::field("A parameter of the query is missing, comes twice or is not of the right type.")
        })?;
        Ok(Self(params))
    }
}

/// The id in the path; what is no id is as unknown as an id that nobody has.
pub(crate) struct PathId<T>(pub(crate) T);

impl<T: FromStr + Send> FromRequestParts<Arc<Api>> for PathId<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Problem> {
        let text = Path::<String>::from_request_parts(parts, api).await.map_err(|_| Problem::not_found())?;
        text.parse().map(Self).map_err(|_| Problem::not_found())
    }
}

/// Reads an id in its one text form, for serde.
pub(crate) fn id<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(deserializer: D) -> Result<T, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

/// Reads ids in their one text form, for serde.
pub(crate) fn ids<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().map(|text| text.parse().map_err(D::Error::custom)).collect()
}

/// Reads an optional id in its one text form, for serde.
pub(crate) fn optional_id<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| text.parse().map_err(D::Error::custom)).transpose()
}

/// How many of a list to give: at least one is asked for, at most the limit is given.
pub(crate) fn limit(asked: Option<u64>, max: u32) -> Result<u32, Problem> {
    match asked {
        Some(0) => Err(Problem::field("limit: at least 1")),
        Some(asked) => Ok(u32::try_from(asked).map_or(max, |asked| asked.min(max))),
        None => Ok(max),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s39_errors_quote_nothing_of_the_body() {
        #[derive(serde::Deserialize, Debug)]
        struct Body {
            #[expect(dead_code, reason = "only its type matters")]
            name: u32,
        }
        let problem = parse::<Body>(br#"{"name":"secret\u001b[31m"}"#).expect_err("not a number");
        assert!(!problem.detail.contains("secret"), "{}", problem.detail);
        assert_eq!(parse::<Body>(b"{}").expect_err("missing").detail, "name: missing");
    }
}
