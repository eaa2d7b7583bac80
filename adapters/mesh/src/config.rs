//! What the two ends of the mesh are told: the shared secret and the times and sizes that tests shorten.

use std::fmt;
use std::time::Duration;

use crate::limits::{OUTSTANDING_BYTES_MAX, PING_EVERY};

/// Settings of both ends. `default()` is what a deployment wants, with its secret added.
#[derive(Clone, Debug)]
pub struct MeshConfig {
    /// What all processes of the mesh know. Without it a server binds loopback addresses only.
    pub shared_secret: Option<Secret>,
    /// A batch without an acknowledgement for this long loses its stream: `Unavailable`.
    pub acknowledged_within: Duration,
    /// A stream without batches for this long is closed and forgotten.
    pub idle_after: Duration,
    /// For this long an endpoint that said `Gone` is not asked again.
    pub gone_for: Duration,
    /// Bytes outstanding to one endpoint; beyond, `Busy`. At most 16 MiB, which the receiver holds too.
    pub outstanding_bytes_max: usize,
    /// Between HTTP/2 pings of a connection, idle or not; the answer has the same time.
    pub ping_every: Duration,
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            shared_secret: None,
            acknowledged_within: Duration::from_secs(10),
            idle_after: Duration::from_secs(60),
            gone_for: Duration::from_secs(60),
            outstanding_bytes_max: OUTSTANDING_BYTES_MAX,
            ping_every: PING_EVERY,
        }
    }
}

/// A secret that processes share. It is never printed and never sent.
#[derive(Clone)]
pub struct Secret(Box<[u8]>);

/// The text is no secret worth the name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the mesh's secret is shorter than {} characters; make one with: openssl rand -hex 32", Secret::BYTES_MIN)]
pub struct SecretError;

impl Secret {
    /// Shorter secrets could be guessed from one recorded handshake.
    pub const BYTES_MIN: usize = 32;

    /// Takes a secret as it stands in a file: white space around it does not count.
    pub fn new(text: &str) -> Result<Self, SecretError> {
        let text = text.trim();
        if text.len() < Self::BYTES_MIN { Err(SecretError) } else { Ok(Self(text.as_bytes().into())) }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_long_and_not_printed() {
        assert_eq!(Secret::new("short").err(), Some(SecretError));
        let text = "0123456789abcdef0123456789abcdef";
        let secret = Secret::new(&format!("{text}\n")).expect("long enough");
        assert_eq!(secret.bytes(), text.as_bytes());
        let config = MeshConfig { shared_secret: Some(secret), ..MeshConfig::default() };
        assert!(!format!("{config:?}").contains("0123"));
    }
}
