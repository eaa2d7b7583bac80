//! Access tokens: verified purely, from the token's bytes, a set of keys and the time.
//!
//! A token is a JWT (RFC 9068) signed with Ed25519 by one of the configured issuers. Nothing in a token chooses how it
//! is verified: the algorithm is fixed, keys come from the [`KeySet`] only, and headers that carry or point at keys
//! are refused. `jsonwebtoken` checks the signature; the claims are checked here, because its own checks read a clock.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use roost_protocol::{DeviceId, TimeMs, UserId, limits};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer, Serialize};

/// The `typ` of access tokens: other kinds of JWT of the same issuer are not tokens for us.
pub const TOKEN_TYPE: &str = "at+jwt";
/// The `alg` of access tokens.
pub const TOKEN_ALGORITHM: &str = "EdDSA";
/// How far ahead an issuer's clock may be (`iat`, `nbf`). `exp` gets none of it.
pub const CLOCK_SKEW_MS_MAX: u64 = 60_000;
/// The longest key id.
pub const KID_BYTES_MAX: usize = 64;
/// Unknown keys make the caller load the key set again at most this often.
pub const KEY_REFRESH_MS_MIN: u64 = 60_000;

/// What a valid token says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claims {
    /// Whose token it is (`sub`).
    pub user_id: UserId,
    /// The device that logged in (`device_id`).
    pub device_id: DeviceId,
    /// When it was issued, in Unix milliseconds.
    pub issued_at: TimeMs,
    /// From then on it is refused, in Unix milliseconds.
    pub expires_at: TimeMs,
    /// Who issued it.
    pub issuer: String,
}

/// Why a token is refused. To the outside both are `unauthenticated`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TokenError {
    /// Not a token that any of the issuers could have meant for us now.
    #[error("the token is not valid")]
    Invalid,
    /// It could be valid, but its key is not in the set: load the keys again (at most every [`KEY_REFRESH_MS_MIN`]),
    /// then try once more.
    #[error("the token's key is not known")]
    UnknownKey,
}

/// One issuer's public keys, by key id.
#[derive(Clone, Default)]
pub struct KeySet {
    keys: HashMap<String, Key>,
}

#[derive(Clone)]
struct Key {
    decoding: DecodingKey,
    verify_until: Option<TimeMs>,
}

impl KeySet {
    /// Of raw Ed25519 public keys: (kid, key, the time after which tokens signed with it are refused).
    pub fn from_signing_keys<'k>(keys: impl IntoIterator<Item = (&'k str, &'k [u8; 32], TimeMs)>) -> Self {
        let mut set = Self::default();
        for (kid, public, verify_until) in keys {
            set.insert(kid, public, Some(verify_until));
        }
        set
    }

    /// Of a published key set; keys of other kinds and without an id are left out.
    pub fn from_jwks(jwks: &Jwks) -> Self {
        let mut set = Self::default();
        for jwk in &jwks.keys {
            if let (Some(kid), Some(public)) = (&jwk.kid, jwk.ed25519()) {
                set.insert(kid, &public, None);
            }
        }
        set
    }

    /// Adds a key; one with an id that no token could name is left out.
    pub fn insert(&mut self, kid: &str, public: &[u8; 32], verify_until: Option<TimeMs>) {
        if is_kid(kid) {
            self.keys.insert(kid.to_owned(), Key { decoding: DecodingKey::from_ed_der(public), verify_until });
        }
    }

    /// How many keys it has.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

impl std::fmt::Debug for KeySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.keys.keys()).finish()
    }
}

/// Someone whose tokens are accepted.
#[derive(Clone, Debug)]
pub struct Issuer {
    /// The `iss` of its tokens, exactly.
    pub iss: String,
    /// What their `aud` must name.
    pub aud: String,
    /// Its keys. A key counts for this issuer only.
    pub keys: KeySet,
}

/// Verifies access tokens. Immutable: with new keys, make a new one.
#[derive(Clone, Debug, Default)]
pub struct Verifier {
    issuers: Vec<Issuer>,
}

impl Verifier {
    /// Accepts tokens of these issuers.
    pub fn new(issuers: Vec<Issuer>) -> Self {
        Self { issuers }
    }

    /// Checks a token at the time `now_ms`.
    pub fn verify(&self, token: &str, now_ms: TimeMs) -> Result<Claims, TokenError> {
        // The length comes first: nothing below has to care.
        if token.len() > limits::TOKEN_BYTES_MAX {
            return Err(TokenError::Invalid);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Invalid)?;
        let (header, payload) = message.split_once('.').ok_or(TokenError::Invalid)?;
        let header: Header = decode(header)?;
        let kid = header.kid()?;
        let payload: Payload = decode(payload)?;
        let issuer = self.issuers.iter().find(|issuer| issuer.iss == payload.iss).ok_or(TokenError::Invalid)?;
        let claims = payload.claims(issuer, now_ms)?;
        // Only what could otherwise be valid may say UnknownKey, so that junk does not cause refreshes.
        let key = issuer.keys.keys.get(kid).ok_or(TokenError::UnknownKey)?;
        if key.verify_until.is_some_and(|until| now_ms >= until) {
            return Err(TokenError::Invalid);
        }
        match jsonwebtoken::crypto::verify(signature, message.as_bytes(), &key.decoding, Algorithm::EdDSA) {
            Ok(true) => Ok(claims),
            Ok(false) | Err(_) => Err(TokenError::Invalid),
        }
    }
}

/// A published key set (RFC 7517), as far as it concerns us.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Jwks {
    /// The keys.
    pub keys: Vec<Jwk>,
}

/// A published key.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Jwk {
    /// The kind of key: `OKP` for ours.
    pub kty: String,
    /// The curve: `Ed25519` for ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crv: Option<String>,
    /// The public key in base64url.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x: Option<String>,
    /// The key's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kid: Option<String>,
    /// What it is for: `sig`.
    #[serde(default, rename = "use", skip_serializing_if = "Option::is_none")]
    pub use_: Option<String>,
    /// The algorithm: `EdDSA` for ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alg: Option<String>,
}

impl Jwk {
    /// An Ed25519 public key that verifies signatures.
    pub fn of_ed25519(kid: &str, public: &[u8; 32]) -> Self {
        Self {
            kty: "OKP".to_owned(),
            crv: Some("Ed25519".to_owned()),
            x: Some(URL_SAFE_NO_PAD.encode(public)),
            kid: Some(kid.to_owned()),
            use_: Some("sig".to_owned()),
            alg: Some(TOKEN_ALGORITHM.to_owned()),
        }
    }

    /// The raw public key, if this is an Ed25519 key for signatures.
    pub fn ed25519(&self) -> Option<[u8; 32]> {
        let is = |field: &Option<String>, wanted: &str| field.as_deref().is_none_or(|value| value == wanted);
        if self.kty != "OKP" || self.crv.as_deref() != Some("Ed25519") {
            return None;
        }
        if !is(&self.use_, "sig") || !is(&self.alg, TOKEN_ALGORITHM) {
            return None;
        }
        URL_SAFE_NO_PAD.decode(self.x.as_deref()?).ok()?.try_into().ok()
    }
}

/// A field that must not be there, whatever its value.
#[derive(Default)]
struct Absent(bool);

impl<'de> Deserialize<'de> for Absent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Absent(true))
    }
}

// Doubled fields are refused by serde's derive: two readers cannot see two different tokens.
#[derive(Deserialize)]
struct Header {
    alg: String,
    typ: String,
    kid: String,
    #[serde(default)]
    jwk: Absent,
    #[serde(default)]
    jku: Absent,
    #[serde(default)]
    x5u: Absent,
    #[serde(default)]
    x5c: Absent,
    #[serde(default)]
    crit: Absent,
    #[serde(default)]
    b64: Absent,
    #[serde(default)]
    zip: Absent,
}

impl Header {
    fn kid(&self) -> Result<&str, TokenError> {
        let forbidden = [&self.jwk, &self.jku, &self.x5u, &self.x5c, &self.crit, &self.b64, &self.zip];
        let fits = self.alg == TOKEN_ALGORITHM
            && self.typ.eq_ignore_ascii_case(TOKEN_TYPE)
            && is_kid(&self.kid)
            && forbidden.iter().all(|field| !field.0);
        if fits { Ok(&self.kid) } else { Err(TokenError::Invalid) }
    }
}

#[derive(Deserialize)]
struct Payload {
    iss: String,
    aud: Audience,
    sub: String,
    device_id: String,
    // Whole seconds: a fraction, a text or a negative number is refused.
    iat: u64,
    exp: u64,
    #[serde(default)]
    nbf: Option<u64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Payload {
    fn claims(self, issuer: &Issuer, now_ms: TimeMs) -> Result<Claims, TokenError> {
        let meant_for_us = match &self.aud {
            Audience::One(aud) => *aud == issuer.aud,
            Audience::Many(auds) => auds.contains(&issuer.aud),
        };
        let issued_at = to_ms(self.iat)?;
        let expires_at = to_ms(self.exp)?;
        let not_before = self.nbf.map(to_ms).transpose()?.unwrap_or(issued_at);
        let latest_start = now_ms.saturating_add(CLOCK_SKEW_MS_MAX);
        let valid_now = issued_at <= latest_start && not_before <= latest_start && now_ms < expires_at;
        if !meant_for_us || !valid_now || issued_at >= expires_at {
            return Err(TokenError::Invalid);
        }
        Ok(Claims {
            user_id: self.sub.parse().map_err(|_| TokenError::Invalid)?,
            device_id: self.device_id.parse().map_err(|_| TokenError::Invalid)?,
            issued_at,
            expires_at,
            issuer: self.iss,
        })
    }
}

fn to_ms(seconds: u64) -> Result<TimeMs, TokenError> {
    seconds.checked_mul(1000).filter(|&ms| ms <= limits::SEQ_MAX).ok_or(TokenError::Invalid)
}

/// Key ids are short and of harmless characters, whoever else may ever read them.
fn is_kid(kid: &str) -> bool {
    (1..=KID_BYTES_MAX).contains(&kid.len())
        && kid.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

fn decode<T: DeserializeOwned>(part: &str) -> Result<T, TokenError> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Invalid)?;
    serde_json::from_slice(&bytes).map_err(|_| TokenError::Invalid)
}

#[cfg(test)]
mod tests;
