//! Cases about accounts, devices, refresh tokens, signing keys and the list of gateways.

use futures::future::join_all;
use rand::RngExt as _;
use roost_protocol::records::Endpoint;
use roost_protocol::{DeviceId, Incarnation, UserId};
use uuid::Uuid;

use super::StoreHarness;
use super::lab::{Lab, account, fresh_name};
use crate::store::{Account, NewRefreshToken, Rotation, SigningKey, StoreError};

fn token(expires: u64) -> NewRefreshToken {
    NewRefreshToken { hash: rand::rng().random(), expires }
}

/// A name belongs to one account, whatever its case, also where two ask at once.
pub async fn account_names_are_unique_without_case(harness: &impl StoreHarness) {
    let lab = Lab::new(harness.make().await).await;
    let (user, name) = (UserId::new(), format!("Äpfel-{}", fresh_name()));
    let first = Account { created: 42, ..account(user, &name) };
    assert_eq!(lab.store.create_account(&first).await, Ok(()));
    for taken in [name.clone(), name.to_lowercase(), name.to_uppercase()] {
        let again = lab.store.create_account(&account(UserId::new(), &taken)).await;
        assert_eq!(again, Err(StoreError::AlreadyExists), "{taken}");
        assert_eq!(lab.store.account_by_name(&taken).await.as_ref(), Ok(&first), "{taken}");
    }
    let same_id = lab.store.create_account(&account(user, &fresh_name())).await;
    assert_eq!(same_id, Err(StoreError::AlreadyExists));
    assert_eq!(lab.store.account(user).await.as_ref(), Ok(&first));
    assert_eq!(lab.store.account(UserId::new()).await, Err(StoreError::NotFound));
    for nobody in [fresh_name(), String::new(), "' OR 1=1".to_owned(), "%".to_owned()] {
        assert_eq!(lab.store.account_by_name(&nobody).await, Err(StoreError::NotFound), "{nobody}");
    }
    let contested = fresh_name();
    let racing: Vec<Account> = (0..8).map(|_| account(UserId::new(), &contested)).collect();
    let made = join_all(racing.iter().map(|one| lab.store.create_account(one))).await;
    assert_eq!(made.iter().filter(|result| result.is_ok()).count(), 1, "{made:?}");
    assert!(made.iter().all(|result| matches!(result, Ok(()) | Err(StoreError::AlreadyExists))), "{made:?}");
}

/// A refresh token is exchanged once; each new one leads to the next, always of the same device.
pub async fn a_refresh_token_is_exchanged_once(harness: &impl StoreHarness) {
    let lab = Lab::new(harness.make().await).await;
    let (user, device) = (lab.user().await, DeviceId::new());
    let mut held = token(10_000);
    assert_eq!(lab.store.create_device(user, device, "Gerät '", &held, 1).await, Ok(()));
    for now in 2..6 {
        let next = token(10_000);
        let rotated = lab.store.rotate_refresh_token(&held.hash, &next, now).await;
        assert_eq!(rotated, Ok(Rotation::Rotated { user, device }));
        held = next;
    }
    let unknown = lab.store.rotate_refresh_token(&token(1).hash, &token(10_000), 5).await;
    assert_eq!(unknown, Ok(Rotation::Refused));
    let expired = lab.store.rotate_refresh_token(&held.hash, &token(20_000), 10_001).await;
    assert_eq!(expired, Ok(Rotation::Refused));
    let again = lab.store.create_device(user, device, "", &token(10_000), 1).await;
    assert_eq!(again, Err(StoreError::AlreadyExists));
    let nobody = lab.store.create_device(UserId::new(), DeviceId::new(), "", &token(10_000), 1).await;
    assert_eq!(nobody, Err(StoreError::NotFound));
}

/// A token used twice revokes its family: the newest token too, and no other device's.
pub async fn a_token_used_twice_revokes_its_family(harness: &impl StoreHarness) {
    let lab = Lab::new(harness.make().await).await;
    let user = lab.user().await;
    let (device, other) = (DeviceId::new(), DeviceId::new());
    let (first, newest, others) = (token(10_000), token(10_000), token(10_000));
    lab.store.create_device(user, device, "", &first, 1).await.expect("a device");
    lab.store.create_device(user, other, "", &others, 1).await.expect("a device");
    lab.store.rotate_refresh_token(&first.hash, &newest, 2).await.expect("a rotation");
    let reused = lab.store.rotate_refresh_token(&first.hash, &token(10_000), 3).await;
    assert_eq!(reused, Ok(Rotation::Reused));
    for hash in [newest.hash, first.hash] {
        assert_eq!(lab.store.rotate_refresh_token(&hash, &token(10_000), 4).await, Ok(Rotation::Refused));
    }
    let untouched = lab.store.rotate_refresh_token(&others.hash, &token(10_000), 5).await;
    assert_eq!(untouched, Ok(Rotation::Rotated { user, device: other }));
}

/// Of exchanges of one token at the same time at most one succeeds; the others are a reuse.
pub async fn racing_exchanges_of_one_token_are_a_reuse(harness: &impl StoreHarness) {
    let lab = Lab::new(harness.make().await).await;
    let (user, device, first) = (lab.user().await, DeviceId::new(), token(10_000));
    lab.store.create_device(user, device, "", &first, 1).await.expect("a device");
    let new: Vec<NewRefreshToken> = (0..6).map(|_| token(10_000)).collect();
    let answers = join_all(new.iter().map(|new| lab.store.rotate_refresh_token(&first.hash, new, 2))).await;
    let count = |wanted: fn(&Rotation) -> bool| answers.iter().flatten().filter(|answer| wanted(answer)).count();
    assert_eq!(count(|answer| matches!(answer, Rotation::Rotated { .. })), 1, "{answers:?}");
    assert_eq!(count(|answer| *answer == Rotation::Reused), 1, "{answers:?}");
    assert_eq!(count(|answer| *answer == Rotation::Refused), 4, "the family is revoked by then: {answers:?}");
    for new in &new {
        assert_eq!(lab.store.rotate_refresh_token(&new.hash, &token(10_000), 3).await, Ok(Rotation::Refused));
    }
}

/// A revoked device's tokens are refused; only its owner can revoke it.
pub async fn a_revoked_device_is_refused(harness: &impl StoreHarness) {
    let lab = Lab::new(harness.make().await).await;
    let (user, stranger, device) = (lab.user().await, lab.user().await, DeviceId::new());
    let (first, second) = (token(10_000), token(10_000));
    lab.store.create_device(user, device, "", &first, 1).await.expect("a device");
    assert_eq!(lab.store.revoke_device(stranger, device).await, Err(StoreError::NotFound));
    assert_eq!(lab.store.revoke_device(user, DeviceId::new()).await, Err(StoreError::NotFound));
    let rotated = lab.store.rotate_refresh_token(&first.hash, &second, 2).await;
    assert_eq!(rotated, Ok(Rotation::Rotated { user, device }));
    assert_eq!(lab.store.revoke_device(user, device).await, Ok(()));
    assert_eq!(lab.store.revoke_device(user, device).await, Ok(()));
    for hash in [first.hash, second.hash] {
        assert_eq!(lab.store.rotate_refresh_token(&hash, &token(10_000), 3).await, Ok(Rotation::Refused));
    }
}

/// Of two api processes that rotate the keys at once one adds a key; keys whose time has passed vanish.
///
/// Keys belong to the whole Store: this case works in a time after all keys that it finds, and is the only one.
pub async fn signing_keys_are_added_once_and_pass(harness: &impl StoreHarness) {
    let lab = Lab::new(harness.make().await).await;
    let there = lab.store.signing_keys().await.expect("keys");
    let base = there.iter().map(|key| key.created.max(key.verify_until)).max().unwrap_or(0) + 1_000;
    let key = |created: u64| SigningKey {
        kid: Uuid::now_v7().to_string(),
        secret: rand::rng().random(),
        public: rand::rng().random(),
        created,
        verify_until: created + 100,
    };
    let racing: Vec<SigningKey> = (0..5).map(|n| key(base + n)).collect();
    let adding = racing.iter().map(|key| lab.store.add_signing_key(key, base, base));
    assert!(join_all(adding).await.iter().all(Result::is_ok));
    let keys = lab.store.signing_keys().await.expect("keys");
    let added: Vec<&SigningKey> = keys.iter().filter(|key| key.created >= base).collect();
    assert_eq!(added.len(), 1, "one of them wins");
    assert!(racing.contains(added[0]), "with all its fields");
    let later = key(base + 50);
    lab.store.add_signing_key(&later, base + 50, base + 50).await.expect("a key");
    let keys = lab.store.signing_keys().await.expect("keys");
    assert_eq!((&keys[0], keys[1].created >= base), (&later, true), "newest first");
    let last = key(base + 200);
    lab.store.add_signing_key(&last, base + 200, base + 160).await.expect("a key");
    assert_eq!(lab.store.signing_keys().await, Ok(vec![last.clone()]), "the others' time has passed");
    lab.store.add_signing_key(&key(base + 201), base + 200, base + 201).await.expect("nothing to add");
    assert_eq!(lab.store.signing_keys().await, Ok(vec![last]));
}

/// Gateways are listed until the time they said last, and can be forgotten.
pub async fn gateways_are_listed_until_their_time(harness: &impl StoreHarness) {
    let lab = Lab::new(harness.make().await).await;
    let gateway = || Endpoint { address: format!("http://{}:1", fresh_name()), incarnation: Incarnation::new() };
    let (one, two) = (gateway(), gateway());
    let again = Endpoint { incarnation: Incarnation(one.incarnation.0 + 1), ..one.clone() };
    let ours = [one.clone(), again.clone(), two.clone()];
    let listed = async |now| {
        let all = lab.store.gateways(now).await.expect("gateways");
        ours.iter().map(|one| all.iter().filter(|other| *other == one).count()).collect::<Vec<_>>()
    };
    for (endpoint, until) in [(&one, 1_000), (&again, 2_000), (&two, 500), (&two, 3_000)] {
        assert_eq!(lab.store.put_gateway(endpoint, until).await, Ok(()));
    }
    assert_eq!(listed(999).await, [1, 1, 1]);
    assert_eq!(listed(1_000).await, [0, 1, 1]);
    assert_eq!(listed(2_999).await, [0, 0, 1]);
    assert_eq!(lab.store.remove_gateway(&one).await, Ok(()));
    assert_eq!(listed(0).await, [0, 1, 1], "another life of the same address stays");
    assert_eq!(lab.store.remove_gateway(&one).await, Ok(()));
    for endpoint in [&again, &two] {
        assert_eq!(lab.store.remove_gateway(endpoint).await, Ok(()));
    }
    assert_eq!(listed(0).await, [0, 0, 0]);
}
