//! Users, put into the Store before the servers start, with tokens signed offline: a run measures messages, not argon2.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signer, SigningKey as Key};
use roost_ports::Store;
use roost_ports::store::{Account, NewRefreshToken, SigningKey};
use roost_protocol::{DeviceId, UserId};
use serde_json::json;

use crate::Result;

/// A user who can connect.
#[derive(Clone)]
pub struct User {
    /// Who.
    pub user_id: UserId,
    /// An access token that outlives the run.
    pub token: String,
}

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// Makes users and the key that their tokens are signed with.
pub async fn users(store: &dyn Store, count: usize) -> Result<Vec<User>> {
    let now = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
    let key = Key::from_bytes(&rand::random());
    let kid = format!("bench-{}", UserId::new().uuid().simple());
    let signing = SigningKey {
        kid: kid.clone(),
        secret: key.to_bytes(),
        public: key.verifying_key().to_bytes(),
        created: now,
        verify_until: now + DAY_MS,
    };
    store.add_signing_key(&signing, now + 1, now).await?;
    let mut users = Vec::with_capacity(count);
    for number in 0..count {
        let (user_id, device_id) = (UserId::new(), DeviceId::new());
        let name = format!("bench-{number}-{}", user_id.uuid().simple());
        // No password has this hash: these accounts are entered by token only.
        let account = Account { user_id, name, password_hash: "none".into(), created: now };
        store.create_account(&account).await?;
        let refresh = NewRefreshToken { hash: rand::random(), expires: now + DAY_MS };
        store.create_device(user_id, device_id, "bench", &refresh, now).await?;
        users.push(User { user_id, token: token(&key, &kid, user_id, device_id, now) });
    }
    Ok(users)
}

fn token(key: &Key, kid: &str, user: UserId, device: DeviceId, now_ms: u64) -> String {
    let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let header = part(json!({ "alg": "EdDSA", "typ": "at+jwt", "kid": kid }));
    let now = now_ms / 1000;
    let claims = part(json!({
        "iss": "roost", "aud": "roost", "sub": user, "device_id": device, "iat": now, "nbf": now, "exp": now + 3_600,
    }));
    let signed = format!("{header}.{claims}");
    let signature = URL_SAFE_NO_PAD.encode(key.sign(signed.as_bytes()).to_bytes());
    format!("{signed}.{signature}")
}
