//! Users whose ids and tokens follow from a number, put into the Store before the servers start: a run measures messages,
//! not argon2, and a load of its own process needs only the plan to sign in.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signer, SigningKey as Key};
use futures::{StreamExt, TryStreamExt};
use roost_ports::Store;
use roost_ports::store::{Account, NewRefreshToken, SigningKey};
use roost_protocol::{DeviceId, UserId};
use serde_json::{Value, json};

use crate::Result;

/// A user who can connect.
#[derive(Clone)]
pub struct User {
    /// Who.
    pub user_id: UserId,
    /// An access token that outlives the run.
    pub token: String,
}

/// The users of one run.
pub struct Plan {
    /// Tells the ids of this run from those of others.
    run: [u8; 6],
    kid: String,
    key: Key,
    issued_ms: u64,
}

const DAY_MS: u64 = 24 * 60 * 60 * 1000;
const TOKEN_SECONDS: u64 = 12 * 60 * 60;
/// Accounts on their way to the Store at one time: what waits shares a transaction there.
const ACCOUNTS_AT_ONCE: usize = 256;

impl Plan {
    /// Users of a run of its own.
    pub fn new() -> Result<Self> {
        let issued_ms = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
        let kid = format!("bench-{}", UserId::new().uuid().simple());
        Ok(Self { run: rand::random(), kid, key: Key::from_bytes(&rand::random()), issued_ms })
    }

    /// Writes it for the processes of the load.
    pub fn save(&self, path: &Path) -> Result<()> {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let plan = json!({
            "run": encode(&self.run), "kid": self.kid, "key": encode(&self.key.to_bytes()), "issued_ms": self.issued_ms,
        });
        Ok(std::fs::write(path, plan.to_string())?)
    }

    /// Reads what `save` wrote.
    pub fn load(path: &Path) -> Result<Self> {
        let plan: Value = serde_json::from_slice(&std::fs::read(path)?)?;
        let text = |name: &str| plan[name].as_str().ok_or_else(|| format!("the plan lacks {name}"));
        let decode = |name: &str| -> Result<Vec<u8>> { Ok(URL_SAFE_NO_PAD.decode(text(name)?)?) };
        let wrong = |_| "the plan is not of this build";
        Ok(Self {
            run: decode("run")?.try_into().map_err(wrong)?,
            kid: text("kid")?.to_owned(),
            key: Key::from_bytes(&decode("key")?.try_into().map_err(wrong)?),
            issued_ms: plan["issued_ms"].as_u64().ok_or("the plan lacks issued_ms")?,
        })
    }

    /// The id of a user.
    pub fn user_id(&self, number: usize) -> UserId {
        UserId::from_bytes(self.id(1, number))
    }

    /// An access token of a user, for a device of theirs.
    pub fn token(&self, number: usize) -> String {
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let header = part(json!({ "alg": "EdDSA", "typ": "at+jwt", "kid": self.kid }));
        let now = self.issued_ms / 1000;
        let claims = part(json!({
            "iss": "roost", "aud": "roost", "sub": self.user_id(number), "device_id": self.device_id(number),
            "iat": now, "nbf": now, "exp": now + TOKEN_SECONDS,
        }));
        let signed = format!("{header}.{claims}");
        let signature = URL_SAFE_NO_PAD.encode(self.key.sign(signed.as_bytes()).to_bytes());
        format!("{signed}.{signature}")
    }

    fn device_id(&self, number: usize) -> DeviceId {
        DeviceId::from_bytes(self.id(2, number))
    }

    /// A UUID of version 8: the run, what it names, and the number.
    fn id(&self, kind: u8, number: usize) -> [u8; 16] {
        let mut id = [0; 16];
        id[..6].copy_from_slice(&self.run);
        (id[6], id[7], id[8]) = (0x80, kind, 0x80);
        id[9..].copy_from_slice(&(number as u64).to_be_bytes()[1..]);
        id
    }
}

/// Puts the first users of a plan into the Store, each with a device, and the key of their tokens.
pub async fn store(store: &dyn Store, plan: &Plan, users: usize) -> Result<()> {
    let now = plan.issued_ms;
    let signing = SigningKey {
        kid: plan.kid.clone(),
        secret: plan.key.to_bytes(),
        public: plan.key.verifying_key().to_bytes(),
        created: now,
        verify_until: now + DAY_MS,
    };
    store.add_signing_key(&signing, now + 1, now).await?;
    futures::stream::iter(0..users)
        .map(|number| account(store, plan, number))
        .buffer_unordered(ACCOUNTS_AT_ONCE)
        .try_collect::<()>()
        .await
}

async fn account(store: &dyn Store, plan: &Plan, number: usize) -> Result<()> {
    let (user_id, now) = (plan.user_id(number), plan.issued_ms);
    let name = format!("bench-{}", user_id.uuid().simple());
    // No password has this hash: these accounts are entered by token only.
    let account = Account { user_id, name, password_hash: "none".into(), created: now };
    store.create_account(&account).await?;
    let refresh = NewRefreshToken { hash: rand::random(), expires: now + DAY_MS };
    store.create_device(user_id, plan.device_id(number), "bench", &refresh, now).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_reads_back_and_its_users_differ() {
        let folder = tempfile::tempdir().unwrap();
        let (path, plan) = (folder.path().join("plan.json"), Plan::new().unwrap());
        plan.save(&path).unwrap();
        let loaded = Plan::load(&path).unwrap();
        assert_eq!(loaded.token(7), plan.token(7));
        assert_ne!(plan.user_id(7), plan.user_id(8));
        assert_ne!(plan.user_id(7).as_bytes(), plan.device_id(7).as_bytes());
        assert_eq!(plan.user_id(7).uuid().get_version_num(), 8);
    }
}
