//! Refusals and failures as `application/problem+json` (RFC 9457).

use axum::response::{IntoResponse, Response};
use http::header::{self, HeaderValue};
use http::{HeaderMap, StatusCode};
use roost_ports::store::StoreError;
use roost_protocol::{ErrorCode, limits};
use serde::Serialize;
use utoipa::{IntoResponses, ToSchema};

/// Why a request was refused or failed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct Problem {
    /// A URN that names the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// What happened and what to do.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong with this request.
    pub detail: String,
    /// The code: one of the protocol's error codes.
    pub code: String,
    /// Wait at least this long before trying again; absent where that cannot help.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

impl Problem {
    /// A problem with one of the protocol's codes. The detail must not hold the client's bytes.
    pub fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:roost:problem:{code}"),
            title: code.help().to_owned(),
            status: status_of(code).as_u16(),
            detail: detail.into(),
            code: code.as_str().to_owned(),
            retry_after_ms: code.retryable().then_some(limits::RETRY_AFTER_MS),
        }
    }

    /// A field is not what it should be; the detail names it.
    pub fn field(detail: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidField, detail)
    }

    /// There is no such thing, or it is not theirs: one answer for both.
    pub fn not_found() -> Self {
        Self::new(ErrorCode::NotFound, "There is nothing here for you.")
    }

    /// One answer for everything that can be wrong with a token.
    pub fn unauthenticated() -> Self {
        Self::new(ErrorCode::Unauthenticated, "Send a valid access token as Authorization: Bearer.")
    }

    /// Too often; this long to wait.
    pub fn rate_limited(retry_after_ms: u64) -> Self {
        let problem = Self::new(ErrorCode::RateLimited, "This was asked too often.");
        Self { retry_after_ms: Some(retry_after_ms.max(1)), ..problem }
    }

    /// Something behind this server failed: logged here, told without the reason.
    pub fn unavailable(what: &'static str, reason: &dyn std::fmt::Display) -> Self {
        tracing::warn!(what, %reason, "a request failed");
        Self::new(ErrorCode::Unavailable, format!("{what} does not answer."))
    }

    /// A failure of our own: logged here, told without the reason.
    pub fn internal(reason: &dyn std::fmt::Display) -> Self {
        tracing::error!(%reason, "a request failed by our own mistake");
        Self::new(ErrorCode::Internal, "The request failed.")
    }

    /// The path is there, but not for this method.
    pub fn method_not_allowed() -> Self {
        Self::malformed(StatusCode::METHOD_NOT_ALLOWED, "This path does not take this method.")
    }

    /// The body is not JSON by its own account.
    pub fn unsupported_media_type() -> Self {
        Self::malformed(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Send the body as Content-Type: application/json.")
    }

    /// A request that HTTP has a status of its own for.
    fn malformed(status: StatusCode, detail: &str) -> Self {
        Self { status: status.as_u16(), ..Self::new(ErrorCode::Malformed, detail) }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound => Self::not_found(),
            StoreError::AlreadyExists => Self::new(ErrorCode::AlreadyExists, "The name or id is taken."),
            StoreError::InvalidCursor => Self::new(ErrorCode::InvalidCursor, "The cursor is not one of ours."),
            StoreError::Unavailable(reason) | StoreError::Refused(reason) => Self::unavailable("The store", &reason),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(retry_after_ms) = self.retry_after_ms {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_after_ms.div_ceil(1000)));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        let body = serde_json::to_vec(&self).expect("texts and numbers have a JSON form");
        (status, headers, body).into_response()
    }
}

/// The refusals that any operation may answer with, for the OpenAPI document.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only its description is used")]
pub(crate) enum Refusals {
    /// The body, a parameter or a field is not what it should be.
    #[response(status = 400, content_type = "application/problem+json")]
    Malformed(Problem),
    /// The token, the password or the refresh token is not valid.
    #[response(status = 401, content_type = "application/problem+json")]
    Unauthenticated(Problem),
    /// There is no such thing, or it is not the caller's to see.
    #[response(status = 404, content_type = "application/problem+json")]
    NotFound(Problem),
    /// The name or id is taken, or an id was used for something else.
    #[response(status = 409, content_type = "application/problem+json")]
    Conflict(Problem),
    /// The conversation has changed since.
    #[response(status = 412, content_type = "application/problem+json")]
    Precondition(Problem),
    /// The body is too large.
    #[response(status = 413, content_type = "application/problem+json")]
    TooLarge(Problem),
    /// The body is not sent as JSON.
    #[response(status = 415, content_type = "application/problem+json")]
    MediaType(Problem),
    /// Too often.
    #[response(status = 429, content_type = "application/problem+json")]
    RateLimited(Problem),
    /// The server failed.
    #[response(status = 500, content_type = "application/problem+json")]
    Internal(Problem),
    /// Busy, or something behind this server does not answer.
    #[response(status = 503, content_type = "application/problem+json")]
    Unavailable(Problem),
}

fn status_of(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::Malformed
        | ErrorCode::InvalidField
        | ErrorCode::InvalidCursor
        | ErrorCode::NotConnected
        | ErrorCode::AlreadyConnected => StatusCode::BAD_REQUEST,
        ErrorCode::Unauthenticated => StatusCode::UNAUTHORIZED,
        ErrorCode::NotFound => StatusCode::NOT_FOUND,
        ErrorCode::DeviceMismatch | ErrorCode::AlreadyExists | ErrorCode::IdempotencyMismatch | ErrorCode::Order => {
            StatusCode::CONFLICT
        }
        ErrorCode::PreconditionFailed => StatusCode::PRECONDITION_FAILED,
        ErrorCode::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorCode::RateLimited | ErrorCode::TooManySessions => StatusCode::TOO_MANY_REQUESTS,
        ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        ErrorCode::Busy | ErrorCode::Unavailable | ErrorCode::Deadline => StatusCode::SERVICE_UNAVAILABLE,
    }
}
