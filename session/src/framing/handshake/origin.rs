//! Which web pages may open a session: origins compared whole, never by prefix or suffix.

/// The origins whose pages may connect. Clients that are no browsers send none and are not concerned.
#[derive(Debug, Clone, Default)]
pub struct OriginPolicy {
    allowed: Vec<Origin>,
}

/// An entry of the list that is no origin; nothing but `scheme://host[:port]` is one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an origin: write scheme://host or scheme://host:port, without a path")]
pub struct InvalidOrigin(pub String);

impl OriginPolicy {
    /// A policy that allows exactly these. An empty list allows no page at all.
    ///
    /// # Errors
    ///
    /// The first entry that is not an origin, `null` and wildcards included.
    pub fn new<S: AsRef<str>>(allowed: impl IntoIterator<Item = S>) -> Result<Self, InvalidOrigin> {
        let parse = |origin: S| Origin::parse(origin.as_ref()).ok_or_else(|| InvalidOrigin(origin.as_ref().to_owned()));
        Ok(Self { allowed: allowed.into_iter().map(parse).collect::<Result<_, _>>()? })
    }

    /// Whether a page with this `Origin` header may connect.
    pub fn allows(&self, header: &str) -> bool {
        Origin::parse(header).is_some_and(|origin| self.allowed.contains(&origin))
    }
}

/// Lower-cased, with the scheme's own port made explicit, so that equality is sameness.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Origin {
    scheme: String,
    host: String,
    port: Option<u16>,
}

impl Origin {
    fn parse(text: &str) -> Option<Self> {
        let (scheme, authority) = text.split_once("://")?;
        let scheme = scheme.to_ascii_lowercase();
        let mut scheme_bytes = scheme.bytes();
        if !scheme_bytes.next()?.is_ascii_lowercase()
            || !scheme_bytes.all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
        {
            return None;
        }
        let (host, port) = match authority.rfind(':') {
            Some(colon) if !authority.ends_with(']') => {
                (&authority[..colon], Some(parse_port(&authority[colon + 1..])?))
            }
            _ => (authority, None),
        };
        let is_host = match host.strip_prefix('[') {
            Some(v6) => v6.strip_suffix(']')?.parse::<std::net::Ipv6Addr>().is_ok(),
            None => !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)),
        };
        let default_port = match scheme.as_str() {
            "http" | "ws" => Some(80),
            "https" | "wss" => Some(443),
            _ => None,
        };
        is_host.then(|| Self { host: host.to_ascii_lowercase(), port: port.or(default_port), scheme })
    }
}

fn parse_port(text: &str) -> Option<u16> {
    if text.starts_with(['0', '+']) {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_listed_origins_pass() {
        let policy = OriginPolicy::new([
            "https://chat.example",
            "http://127.0.0.1:8080",
            "http://[::1]:8080",
            "tauri://localhost",
        ])
        .unwrap();
        for allowed in [
            "https://chat.example",
            "https://chat.example:443",
            "HTTPS://Chat.Example",
            "http://127.0.0.1:8080",
            "http://[::1]:8080",
            "tauri://localhost",
        ] {
            assert!(policy.allows(allowed), "{allowed}");
        }
        for refused in [
            "null",
            "",
            "*",
            "chat.example",
            "http://chat.example",
            "https://chat.example:8443",
            "https://chat.example.evil.example",
            "https://evilchat.example",
            "https://evil-chat.example",
            "https://sub.chat.example",
            "https://chat.example.",
            "https://chat.example/",
            "https://chat.example/path",
            "https://chat.example@evil.example",
            "https://user@chat.example",
            "https://chat.example:443:443",
            "https://chat.example:+443",
            "https://chat.example:0443",
            "https://chat.example:",
            "https://chat.example https://evil.example",
            "https://chat.example, https://evil.example",
            "https://chat.example\u{0}",
            "https://chat.exаmple", // a Cyrillic letter
            "http://[::1]",
            "http://[::1",
            "://chat.example",
        ] {
            assert!(!policy.allows(refused), "{refused}");
        }
    }

    #[test]
    fn the_list_itself_is_checked() {
        for wrong in ["*", "null", "chat.example", "https://*.example", "https://chat.example/"] {
            assert_eq!(OriginPolicy::new([wrong]).unwrap_err(), InvalidOrigin(wrong.to_owned()));
        }
        assert!(!OriginPolicy::default().allows("https://chat.example"));
    }
}
