//! How to reach Redis: `redis://[user:password@]host:port[/database][?prefix=roost]`.

use redis::IntoConnectionInfo;

/// Why a Redis URL is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}; write it as redis://[user:password@]host:port[/database]")]
pub struct RedisUrlError(String);

/// Which server, and which keys on it.
#[derive(Clone)]
pub struct RedisConfig {
    pub(crate) info: redis::ConnectionInfo,
    pub(crate) prefix: String,
}

impl RedisConfig {
    /// Reads the URL form.
    pub fn parse(url: &str) -> Result<Self, RedisUrlError> {
        let (address, query) = url.split_once('?').unwrap_or((url, ""));
        let prefix = match query.split_once('=') {
            None if query.is_empty() => "roost",
            Some(("prefix", prefix)) if !prefix.is_empty() && prefix.len() <= 64 => prefix,
            _ => return Err(RedisUrlError("the only option is prefix".into())),
        };
        // The library's own error could repeat the password.
        let info = address.into_connection_info().map_err(|_| RedisUrlError("not a redis:// address".into()))?;
        // The braces put all keys in one slot of a cluster, which the scripts need.
        Ok(Self { info, prefix: format!("{{{prefix}}}:") })
    }
}

impl std::fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The address may hold a password.
        f.debug_struct("RedisConfig").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_may_name_a_prefix() {
        assert_eq!(RedisConfig::parse("redis://127.0.0.1:6379").expect("plain").prefix, "{roost}:");
        assert_eq!(RedisConfig::parse("redis://127.0.0.1:6379?prefix=chat").expect("prefix").prefix, "{chat}:");
    }

    #[test]
    fn a_wrong_url_says_what_to_write_and_keeps_the_password() {
        for wrong in ["kafka://x:1", "redis://u:secret@:x", "redis://a:1?colour=red"] {
            let error = RedisConfig::parse(wrong).expect_err(wrong).to_string();
            assert!(error.contains("redis://") && !error.contains("secret"), "{error}");
        }
        let config = RedisConfig::parse("redis://u:secret@127.0.0.1:1").expect("good");
        assert!(!format!("{config:?}").contains("secret"));
    }
}
