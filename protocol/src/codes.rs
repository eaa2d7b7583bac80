//! Error codes and close codes, each in one table that the SDKs and docs/protocol.md are checked against.

use std::fmt;

macro_rules! error_codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, retry: $retry:literal, $help:literal;)*) => {
        /// Why something was refused or failed. The text form is what travels, in binary too.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum ErrorCode { $($(#[$doc])* #[doc = $help] $name,)* }

        impl ErrorCode {
            /// Every code.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$name,)*];

            /// The code as it travels.
            pub const fn as_str(self) -> &'static str {
                match self { $(ErrorCode::$name => $text,)* }
            }

            /// Whether the same request can succeed later.
            pub const fn retryable(self) -> bool {
                match self { $(ErrorCode::$name => $retry,)* }
            }

            /// What happened and what to do, for a person.
            pub const fn help(self) -> &'static str {
                match self { $(ErrorCode::$name => $help,)* }
            }

            /// The code of a text, if it is one of ours.
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(ErrorCode::$name),)* _ => None }
            }
        }
    };
}

error_codes! {
    Malformed = "malformed", retry: false, "The frame or record does not decode; mend the client.";
    InvalidField = "invalid_field", retry: false, "A field is missing, out of range or not allowed; the message names it.";
    BodyTooLarge = "body_too_large", retry: false, "The body is over the limit; send it as media.";
    Unauthenticated = "unauthenticated", retry: false, "The token is missing, invalid or expired; refresh it or log in again.";
    DeviceMismatch = "device_mismatch", retry: false, "The device_id is not the token's; leave it out.";
    NotConnected = "not_connected", retry: false, "The first frame must be connect.";
    AlreadyConnected = "already_connected", retry: false, "connect was sent twice; send refresh to change the token.";
    NotFound = "not_found", retry: false, "There is no such thing, or it is not yours to see.";
    AlreadyExists = "already_exists", retry: false, "The name or id is taken.";
    IdempotencyMismatch = "idempotency_mismatch", retry: false, "This client_msg_id was first used with another body; use a new one.";
    PreconditionFailed = "precondition_failed", retry: false, "The conversation has changed since; look again.";
    InvalidCursor = "invalid_cursor", retry: false, "The sync cursor is not one of ours; sync from the start.";
    RateLimited = "rate_limited", retry: true, "Too many requests; wait retry_after_ms.";
    TooManySessions = "too_many_sessions", retry: true, "The user has as many sessions as are allowed; end one, or wait retry_after_ms.";
    Busy = "busy", retry: true, "A queue is full; wait retry_after_ms.";
    Unavailable = "unavailable", retry: true, "A server behind this one does not answer; wait retry_after_ms.";
    Deadline = "deadline", retry: true, "No verdict came in time; it may still have been stored: retry under the same id.";
    Order = "order", retry: true, "An earlier send in this conversation must be retried first.";
    Internal = "internal", retry: true, "The server failed; its log says why.";
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a client does after a close.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ReconnectPolicy {
    /// Connect again with back-off and the same token, then sync.
    Resume,
    /// Get a new access token first.
    Reauthenticate,
    /// Do not connect again: a person or a programmer has to act.
    Never,
}

impl ReconnectPolicy {
    /// The policy as the documents write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            ReconnectPolicy::Resume => "resume",
            ReconnectPolicy::Reauthenticate => "re-authenticate",
            ReconnectPolicy::Never => "never",
        }
    }
}

macro_rules! close_codes {
    ($($name:ident = $code:literal, $reason:literal, $policy:ident, $help:literal;)*) => {
        /// Why a connection is closed. Codes below 4000 are RFC 6455's; ours carry the policy in their range:
        /// 4000–4099 resume, 4100–4199 re-authenticate, 4200–4299 never.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum CloseCode { $(#[doc = $help] $name,)* }

        impl CloseCode {
            /// Every code that the server sends.
            pub const ALL: &'static [CloseCode] = &[$(CloseCode::$name,)*];

            /// The number in the close frame.
            pub const fn code(self) -> u16 {
                match self { $(CloseCode::$name => $code,)* }
            }

            /// The reason in the close frame.
            pub const fn reason(self) -> &'static str {
                match self { $(CloseCode::$name => $reason,)* }
            }

            /// What happened, for a person.
            pub const fn help(self) -> &'static str {
                match self { $(CloseCode::$name => $help,)* }
            }

            /// What a client does after it.
            pub const fn policy(self) -> ReconnectPolicy {
                match self { $(CloseCode::$name => ReconnectPolicy::$policy,)* }
            }
        }
    };
}

close_codes! {
    Normal = 1000, "bye", Resume, "The close was asked for.";
    GoingAway = 1001, "going away", Resume, "The server stops or restarts.";
    Protocol = 1002, "protocol error", Never, "The client broke RFC 6455.";
    InvalidPayload = 1007, "invalid payload", Never, "A text frame is not UTF-8.";
    Policy = 1008, "policy", Never, "Too many control frames or fragments.";
    TooBig = 1009, "too big", Never, "A frame is over the limit.";
    InternalError = 1011, "internal error", Resume, "The server failed.";
    Slow = 4000, "slow", Resume, "The client did not read fast enough.";
    Silent = 4001, "silent", Resume, "No answer to ping.";
    LeaseLost = 4002, "resume", Resume, "The gateway lost its lease; what it held is void.";
    Drained = 4003, "drained", Resume, "The gateway is being drained.";
    Overloaded = 4004, "overloaded", Resume, "The server refuses new sessions for now.";
    TooManySessions = 4005, "too many sessions", Resume, "The user has as many sessions as are allowed.";
    Unauthenticated = 4100, "unauthenticated", Reauthenticate, "The token is invalid.";
    TokenExpired = 4101, "token expired", Reauthenticate, "The token ran out and was not refreshed.";
    ConnectTimeout = 4200, "no connect", Never, "No connect frame came in time.";
    NotConnected = 4201, "connect first", Never, "A frame came before connect, or too many bytes.";
    Malformed = 4202, "malformed", Never, "A frame does not decode.";
    Forbidden = 4203, "forbidden", Never, "The account may not connect.";
}

/// The policy for any close code a client may see, ours or not; a connection that just broke (1006) resumes.
pub fn reconnect_policy(code: u16) -> ReconnectPolicy {
    if let Some(known) = CloseCode::ALL.iter().find(|known| known.code() == code) {
        return known.policy();
    }
    match code {
        4100..=4199 => ReconnectPolicy::Reauthenticate,
        4200..=4299 => ReconnectPolicy::Never,
        _ => ReconnectPolicy::Resume,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_ranges_carry_the_policy() {
        for code in CloseCode::ALL {
            let by_range = match code.code() {
                4000..=4099 => ReconnectPolicy::Resume,
                4100..=4199 => ReconnectPolicy::Reauthenticate,
                4200..=4299 => ReconnectPolicy::Never,
                _ => continue,
            };
            assert_eq!(code.policy(), by_range, "{code:?}");
            assert!(code.reason().len() <= 123, "a close reason is at most 123 bytes");
        }
    }

    #[test]
    fn every_error_code_reads_back() {
        for &code in ErrorCode::ALL {
            assert_eq!(ErrorCode::parse(code.as_str()), Some(code));
        }
        assert_eq!(ErrorCode::parse("no_such_code"), None);
    }
}
