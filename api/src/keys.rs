//! The keys of access tokens: loaded from the Store, rotated there, published as a JWKS, and used to sign and verify.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::Signer as _;
use parking_lot::RwLock;
use roost_ports::store::{SigningKey, StoreError};
use roost_ports::{Clock, Store};
use roost_protocol::{DeviceId, TimeMs, UserId, limits};
use roost_session::token::{
    Claims, Issuer, Jwk, Jwks, KEY_REFRESH_MS_MIN, KeySet, TOKEN_ALGORITHM, TOKEN_TYPE, TokenError, Verifier,
};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::config::Config;
use crate::problem::Problem;

/// A new key is published this long before tokens are signed with it, where an older one can still sign: verifiers
/// that load the published keys once a minute never meet it unprepared.
const PUBLISH_AHEAD_MS: u64 = 2 * KEY_REFRESH_MS_MIN;

/// Signs and verifies access tokens with the Store's keys.
///
/// All api processes share the keys. Rotation needs no task of its own: whoever signs and finds the newest key too old
/// adds one, and the Store lets only the first of them succeed.
pub(crate) struct KeyRing {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    issuer: String,
    audience: String,
    other_issuers: Vec<Issuer>,
    rotation_ms: u64,
    loaded: RwLock<Arc<Loaded>>,
    // Held while the Store is asked, so that it is asked once.
    asking: tokio::sync::Mutex<Asked>,
}

#[derive(Default)]
struct Loaded {
    keys: Vec<SigningKey>,
    verifier: Verifier,
    at_ms: Option<u64>,
}

/// When the Store was last asked, by the steady clock.
#[derive(Default)]
struct Asked {
    for_unknown_key_ms: Option<u64>,
    for_rotation_ms: Option<u64>,
}

/// A signed token and its end.
pub(crate) struct AccessToken {
    pub(crate) token: String,
    pub(crate) expires_at: TimeMs,
}

impl KeyRing {
    pub(crate) fn new(config: &Config, store: Arc<dyn Store>, clock: Arc<dyn Clock>) -> Self {
        Self {
            store,
            clock,
            issuer: config.issuer.clone(),
            audience: config.audience.clone(),
            other_issuers: config.other_issuers.clone(),
            rotation_ms: config.key_rotation_ms,
            loaded: RwLock::default(),
            asking: tokio::sync::Mutex::default(),
        }
    }

    /// Makes sure that there is a key to sign with.
    pub(crate) async fn prepare(&self) -> Result<(), StoreError> {
        self.signing_key().await.map(|_| ())
    }

    /// Verifies a token. A key that is not known makes the Store be asked, at most once a minute.
    pub(crate) async fn verify(&self, token: &str) -> Result<Claims, Problem> {
        let verify = |loaded: &Loaded| loaded.verifier.verify(token, self.clock.now_ms());
        let loaded = self.loaded_once().await?;
        match verify(&loaded) {
            Ok(claims) => return Ok(claims),
            Err(TokenError::Invalid) => return Err(Problem::unauthenticated()),
            Err(TokenError::UnknownKey) => {}
        }
        let mut asked = self.asking.lock().await;
        let now_ms = self.clock.steady_ms();
        if is_due(asked.for_unknown_key_ms, now_ms) {
            asked.for_unknown_key_ms = Some(now_ms);
            self.load().await?;
        }
        drop(asked);
        verify(&self.loaded()).map_err(|_| Problem::unauthenticated())
    }

    /// A new access token of a device.
    pub(crate) async fn sign(&self, user: UserId, device: DeviceId) -> Result<AccessToken, Problem> {
        let key = self.signing_key().await?;
        let issued_at_s = self.clock.now_ms() / 1000;
        let expires_at_s = issued_at_s + limits::ACCESS_TOKEN_MS / 1000;
        let header = json!({"alg": TOKEN_ALGORITHM, "typ": TOKEN_TYPE, "kid": key.kid});
        let claims = json!({
            "iss": self.issuer,
            "aud": self.audience,
            "sub": user,
            "device_id": device,
            "iat": issued_at_s,
            "exp": expires_at_s,
            "jti": URL_SAFE_NO_PAD.encode(rand::random::<[u8; 12]>()),
        });
        let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", part(header), part(claims));
        let signature = ed25519_dalek::SigningKey::from_bytes(&key.secret).sign(message.as_bytes());
        Ok(AccessToken {
            token: format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature.to_bytes())),
            expires_at: expires_at_s * 1000,
        })
    }

    /// The public keys that tokens may be signed with, the one before its first use included.
    pub(crate) async fn jwks(&self) -> Result<Jwks, Problem> {
        let mut loaded = self.loaded_once().await?;
        if is_due(loaded.at_ms, self.clock.steady_ms()) {
            let _asking = self.asking.lock().await;
            if is_due(self.loaded().at_ms, self.clock.steady_ms()) {
                self.load().await?;
            }
            loaded = self.loaded();
        }
        let now_ms = self.clock.now_ms();
        let valid = loaded.keys.iter().filter(|key| now_ms < key.verify_until);
        Ok(Jwks { keys: valid.map(|key| Jwk::of_ed25519(&key.kid, &key.public)).collect() })
    }

    fn loaded(&self) -> Arc<Loaded> {
        Arc::clone(&self.loaded.read())
    }

    async fn loaded_once(&self) -> Result<Arc<Loaded>, StoreError> {
        if self.loaded().at_ms.is_none() {
            let _asking = self.asking.lock().await;
            if self.loaded().at_ms.is_none() {
                self.load().await?;
            }
        }
        Ok(self.loaded())
    }

    async fn load(&self) -> Result<(), StoreError> {
        let keys = self.store.signing_keys().await?;
        let public = keys.iter().map(|key| (key.kid.as_str(), &key.public, key.verify_until));
        let ours =
            Issuer { iss: self.issuer.clone(), aud: self.audience.clone(), keys: KeySet::from_signing_keys(public) };
        let verifier = Verifier::new(std::iter::once(ours).chain(self.other_issuers.iter().cloned()).collect());
        *self.loaded.write() = Arc::new(Loaded { keys, verifier, at_ms: Some(self.clock.steady_ms()) });
        Ok(())
    }

    async fn signing_key(&self) -> Result<SigningKey, StoreError> {
        let loaded = self.loaded_once().await?;
        let usable = self.choose(&loaded.keys).filter(|_| !self.rotation_is_due(&loaded.keys));
        if let Some(key) = usable {
            return Ok(key.clone());
        }
        let rotated = self.rotate().await;
        match (self.choose(&self.loaded().keys), rotated) {
            (Some(key), Ok(())) => Ok(key.clone()),
            (Some(key), Err(error)) => {
                tracing::warn!(%error, "the signing keys were not rotated; the old one serves on");
                Ok(key.clone())
            }
            (None, Ok(())) => Err(StoreError::Unavailable("no signing key is valid".to_owned())),
            (None, Err(error)) => Err(error),
        }
    }

    /// The newest key that has been published long enough; a newer one where there is none.
    fn choose<'k>(&self, keys: &'k [SigningKey]) -> Option<&'k SigningKey> {
        let now_ms = self.clock.now_ms();
        let usable = || keys.iter().filter(|key| now_ms + limits::ACCESS_TOKEN_MS < key.verify_until);
        let published = usable().filter(|key| key.created + PUBLISH_AHEAD_MS <= now_ms);
        published.max_by_key(|key| key.created).or_else(|| usable().max_by_key(|key| key.created))
    }

    fn rotation_is_due(&self, keys: &[SigningKey]) -> bool {
        let newest = keys.iter().map(|key| key.created).max();
        newest.is_none_or(|created| created + self.rotation_ms <= self.clock.now_ms())
    }

    async fn rotate(&self) -> Result<(), StoreError> {
        let mut asked = self.asking.lock().await;
        let has_key = self.choose(&self.loaded().keys).is_some();
        // Where an old key serves on, a Store that fails is not asked with every login.
        if has_key && !is_due(asked.for_rotation_ms, self.clock.steady_ms()) {
            return Ok(());
        }
        asked.for_rotation_ms = Some(self.clock.steady_ms());
        self.load().await?;
        if !self.rotation_is_due(&self.loaded().keys) && self.choose(&self.loaded().keys).is_some() {
            return Ok(());
        }
        let now_ms = self.clock.now_ms();
        let unless_since = (now_ms + 1).saturating_sub(self.rotation_ms);
        self.store.add_signing_key(&new_key(now_ms, self.rotation_ms), unless_since, now_ms).await?;
        self.load().await
    }
}

fn is_due(last_ms: Option<u64>, now_ms: u64) -> bool {
    last_ms.is_none_or(|last_ms| now_ms >= last_ms + KEY_REFRESH_MS_MIN)
}

fn new_key(now_ms: TimeMs, rotation_ms: u64) -> SigningKey {
    let secret: [u8; 32] = rand::random();
    let public = ed25519_dalek::SigningKey::from_bytes(&secret).verifying_key().to_bytes();
    SigningKey {
        kid: URL_SAFE_NO_PAD.encode(&Sha256::digest(public)[..12]),
        secret,
        public,
        created: now_ms,
        // It signs for one rotation and the lead of the next; the second one is for a Store that is away meanwhile.
        verify_until: now_ms + 2 * rotation_ms + PUBLISH_AHEAD_MS + limits::ACCESS_TOKEN_MS,
    }
}
