//! Refusals in HTTP: a status, a sentence that says what to do, and a closed connection.

use std::fmt;

/// An HTTP answer that refuses the request; the connection is closed once it is written.
///
/// Nothing of the request is ever repeated in it, so that no token can be echoed or logged by way of a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpError {
    /// The status code.
    pub status: u16,
    /// What was wrong and what to do instead; the body of the answer.
    pub message: &'static str,
    retry_after_s: Option<u32>,
}

impl HttpError {
    /// 503: no new sessions now (draining, or a bucket is empty); the client may come back after so many seconds.
    pub const fn unavailable(message: &'static str, retry_after_s: u32) -> Self {
        Self { status: 503, message, retry_after_s: Some(retry_after_s) }
    }

    /// 429: too many connections of this user or address; the client may come back after so many seconds.
    pub const fn too_many_requests(message: &'static str, retry_after_s: u32) -> Self {
        Self { status: 429, message, retry_after_s: Some(retry_after_s) }
    }

    /// 408: the request head did not arrive in time.
    pub const fn timeout() -> Self {
        Self::new(408, "The request head did not arrive in time: send it whole and at once.")
    }

    pub(super) const fn new(status: u16, message: &'static str) -> Self {
        Self { status, message, retry_after_s: None }
    }

    /// The reason phrase of the status.
    pub fn reason(&self) -> &'static str {
        match self.status {
            400 => "Bad Request",
            401 => "Unauthorized",
            403 => "Forbidden",
            408 => "Request Timeout",
            426 => "Upgrade Required",
            429 => "Too Many Requests",
            431 => "Request Header Fields Too Large",
            505 => "HTTP Version Not Supported",
            _ => "Service Unavailable",
        }
    }

    /// The whole answer.
    pub fn response(&self) -> Vec<u8> {
        self.to_string().into_bytes()
    }
}

impl fmt::Display for HttpError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "HTTP/1.1 {} {}\r\n", self.status, self.reason())?;
        match self.status {
            // RFC 9110 wants the connection option beside every Upgrade header.
            426 => {
                out.write_str("Connection: close, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n")?
            }
            401 => out.write_str("Connection: close\r\nWWW-Authenticate: Bearer\r\n")?,
            _ => out.write_str("Connection: close\r\n")?,
        }
        if let Some(seconds) = self.retry_after_s {
            write!(out, "Retry-After: {seconds}\r\n")?;
        }
        let length = self.message.len() + 1;
        write!(out, "Content-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\n\r\n{}\n", self.message)
    }
}

impl std::error::Error for HttpError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_complete_http() {
        let answer = String::from_utf8(HttpError::unavailable("Come back later.", 7).response()).unwrap();
        assert_eq!(
            answer,
            "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 7\r\n\
             Content-Type: text/plain; charset=utf-8\r\nContent-Length: 17\r\n\r\nCome back later.\n"
        );
    }
}
