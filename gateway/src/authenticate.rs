//! Who a token belongs to: verified with the Store's keys, which are loaded again when a token names another one.

use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::RwLock;
use roost_ports::{Clock, Store};
use roost_protocol::TimeMs;
use roost_session::machine::{Identity, Refusal};
use roost_session::token::{Issuer, KEY_REFRESH_MS_MIN, KeySet, TokenError, Verifier};

/// After a load that brought nothing the keys are asked for again no sooner than this.
const RELOAD_AFTER_FAILURE_MS: u64 = 1_000;

/// Says whether a token is good.
#[async_trait]
pub trait Authenticate: Send + Sync + 'static {
    /// Whose token it is.
    async fn authenticate(&self, token: &str, now_ms: TimeMs) -> Result<Identity, Refusal>;
}

/// Verifies the tokens of our own issuer, with the signing keys that stand in the Store.
pub struct StoreKeys {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    iss: String,
    aud: String,
    loaded: RwLock<Arc<Loaded>>,
    /// When the keys may be loaded again, on the steady clock; locked while they are.
    next_load_ms: tokio::sync::Mutex<u64>,
}

struct Loaded {
    verifier: Verifier,
    keys: usize,
}

impl StoreKeys {
    /// For tokens whose `iss` and `aud` are these. The keys are loaded when the first token comes.
    pub fn new(store: Arc<dyn Store>, clock: Arc<dyn Clock>, iss: &str, aud: &str) -> Self {
        let (iss, aud) = (iss.to_owned(), aud.to_owned());
        // With an issuer that has no keys, tokens of ours are of an unknown key, and others are not looked into.
        let issuer = Issuer { iss: iss.clone(), aud: aud.clone(), keys: KeySet::default() };
        let loaded = Arc::new(Loaded { verifier: Verifier::new(vec![issuer]), keys: 0 });
        let next_load_ms = tokio::sync::Mutex::new(0);
        Self { store, clock, iss, aud, loaded: RwLock::new(loaded), next_load_ms }
    }

    /// Loads the keys, unless that was done just now: junk with unknown keys must not become a load on the Store.
    async fn load_after(&self, seen: &Arc<Loaded>) -> Arc<Loaded> {
        let mut next_load_ms = self.next_load_ms.lock().await;
        let present = Arc::clone(&self.loaded.read());
        if !Arc::ptr_eq(seen, &present) || self.clock.steady_ms() < *next_load_ms {
            return present;
        }
        let result = self.store.signing_keys().await;
        *next_load_ms = self.clock.steady_ms() + RELOAD_AFTER_FAILURE_MS;
        match result {
            Ok(keys) if keys.is_empty() => present,
            Ok(keys) => {
                *next_load_ms = self.clock.steady_ms() + KEY_REFRESH_MS_MIN;
                let of_store = keys.iter().map(|key| (key.kid.as_str(), &key.public, key.verify_until));
                let issuer =
                    Issuer { iss: self.iss.clone(), aud: self.aud.clone(), keys: KeySet::from_signing_keys(of_store) };
                let loaded = Arc::new(Loaded { keys: keys.len(), verifier: Verifier::new(vec![issuer]) });
                *self.loaded.write() = Arc::clone(&loaded);
                loaded
            }
            Err(error) => {
                tracing::warn!(%error, "the signing keys cannot be loaded");
                present
            }
        }
    }
}

#[async_trait]
impl Authenticate for StoreKeys {
    async fn authenticate(&self, token: &str, now_ms: TimeMs) -> Result<Identity, Refusal> {
        let seen = Arc::clone(&self.loaded.read());
        let claims = match seen.verifier.verify(token, now_ms) {
            Err(TokenError::UnknownKey) => {
                let loaded = self.load_after(&seen).await;
                if loaded.keys == 0 {
                    return Err(Refusal::Unavailable);
                }
                loaded.verifier.verify(token, now_ms)
            }
            result => result,
        };
        let claims = claims.map_err(|_| Refusal::Unauthenticated)?;
        Ok(Identity { user_id: claims.user_id, device_id: claims.device_id, expires_at: claims.expires_at })
    }
}
