//! Tokens of the own issuer: keys come from the Store, and are loaded again when a token names another one.

use std::sync::atomic::Ordering;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signer, SigningKey as Ed25519};
use roost_gateway::{Authenticate, StoreKeys};
use roost_ports::Clock;
use roost_ports::store::SigningKey;
use roost_protocol::{DeviceId, UserId};
use roost_session::machine::Refusal;

use crate::world::World;

const ISS: &str = "https://chat.example";

fn key(kid: &str) -> (Ed25519, SigningKey) {
    let mut secret = [7; 32];
    secret[..kid.len()].copy_from_slice(kid.as_bytes());
    let key = Ed25519::from_bytes(&secret);
    let public = key.verifying_key().to_bytes();
    (key, SigningKey { kid: kid.to_owned(), secret, public, created: 0, verify_until: u64::MAX })
}

fn token(kid: &str, user: UserId, device: DeviceId, now_ms: u64) -> String {
    let encode = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let header = encode(serde_json::json!({"alg": "EdDSA", "typ": "at+jwt", "kid": kid}));
    let seconds = now_ms / 1000;
    let payload = encode(serde_json::json!({
        "iss": ISS, "aud": "roost", "sub": user.to_string(), "device_id": device.to_string(),
        "iat": seconds, "exp": seconds + 600,
    }));
    let message = format!("{header}.{payload}");
    let signature = URL_SAFE_NO_PAD.encode(key(kid).0.sign(message.as_bytes()).to_bytes());
    format!("{message}.{signature}")
}

#[tokio::test]
async fn an_unknown_key_is_looked_for_once_a_minute_at_most() {
    let world = World::new();
    let keys = StoreKeys::new(world.clone(), world.clone(), ISS, "roost");
    let (user, device) = (UserId::new(), DeviceId::new());
    let now_ms = || world.now_ms();
    let loads = || world.key_loads.load(Ordering::Relaxed);

    *world.store_away.lock() = true;
    let first = token("first", user, device, now_ms());
    assert_eq!(keys.authenticate(&first, now_ms()).await, Err(Refusal::Unavailable));
    assert_eq!(keys.authenticate(&first, now_ms()).await, Err(Refusal::Unavailable));
    assert_eq!(loads(), 1, "a store that is away is left alone for a second");
    *world.store_away.lock() = false;
    *world.keys.lock() = vec![key("first").1];
    world.frozen_ms.fetch_add(1_000, Ordering::Relaxed);
    let identity = keys.authenticate(&first, now_ms()).await.expect("the key is known now");
    assert_eq!((identity.user_id, identity.device_id), (user, device));

    for _ in 0..5 {
        let junk = token("junk", user, device, now_ms());
        assert_eq!(keys.authenticate(&junk, now_ms()).await, Err(Refusal::Unauthenticated));
    }
    assert_eq!(loads(), 2);
    world.keys.lock().push(key("second").1);
    world.frozen_ms.fetch_add(60_000, Ordering::Relaxed);
    let second = token("second", user, device, now_ms());
    keys.authenticate(&second, now_ms()).await.expect("rotation is found");
    assert_eq!(loads(), 3);
    let tampered = format!("{}x", &second[..second.len() - 1]);
    assert_eq!(keys.authenticate(&tampered, now_ms()).await, Err(Refusal::Unauthenticated));
    assert_eq!(keys.authenticate("no token", now_ms()).await, Err(Refusal::Unauthenticated));
    assert_eq!(loads(), 3);
}
