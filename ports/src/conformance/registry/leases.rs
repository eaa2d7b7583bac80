//! Cases about leases: begin, extend, end, and what a dead gateway leaves behind.

use roost_protocol::UserId;

use super::{Gateway, LONG_MS, RegistryHarness, entry_of, eventually, sessions_of};
use crate::registry::{RegistryError, RegistryIncarnation};

/// What the Registry has counted, and the same life each time.
pub async fn a_renewal_returns_the_counter_and_the_life<H: RegistryHarness>(harness: &H) {
    let registry = harness.make().await;
    let mut gateway = Gateway::live(&registry).await;
    for count in 1..=5 {
        let session = gateway.session(UserId::new());
        registry.register(gateway.incarnation, &[session]).await.expect("registered");
        let renewal = gateway.renew(&registry).await.expect("renewed");
        assert_eq!((renewal.writes, renewal.registry), (count, gateway.known));
    }
}

/// The first answer may have been lost.
pub async fn acquiring_again_is_no_error<H: RegistryHarness>(harness: &H) {
    let registry = harness.make().await;
    let mut gateway = Gateway::live(&registry).await;
    let life = gateway.known;
    gateway.acquire(&registry).await;
    assert_eq!(gateway.known, life);
    let session = gateway.session(UserId::new());
    assert_eq!(registry.register(gateway.incarnation, &[session]).await, Ok(1));
}

/// Every call but `acquire` and `release` says that the lease is lost, and changes nothing.
pub async fn without_a_lease_nothing_is_written<H: RegistryHarness>(harness: &H) {
    let registry = harness.make().await;
    let life = Gateway::live(&registry).await.known;
    let mut gateway = Gateway { known: life, ..Gateway::new() };
    let user = UserId::new();
    let session = gateway.session(user);
    assert_eq!(gateway.renew(&registry).await, Err(RegistryError::LeaseLost));
    assert_eq!(registry.register(gateway.incarnation, &[session]).await, Err(RegistryError::LeaseLost));
    assert_eq!(registry.unregister(gateway.incarnation, &[session]).await, Err(RegistryError::LeaseLost));
    assert_eq!(registry.complete(gateway.incarnation, life).await, Err(RegistryError::LeaseLost));
    assert_eq!(registry.release(gateway.incarnation).await, Ok(()));
    assert_eq!(sessions_of(&registry, &[user]).await, []);
    assert!(entry_of(&registry, &gateway).await.is_none(), "a renewal has made a lease");
}

/// Two lives of one address: each has its own lease, counter and entries.
pub async fn a_renewal_only_extends_its_own_incarnation<H: RegistryHarness>(harness: &H) {
    let registry = harness.make().await;
    let mut old = Gateway::live(&registry).await;
    let user = UserId::new();
    let session = old.session(user);
    registry.register(old.incarnation, &[session]).await.expect("registered");
    let mut reborn = Gateway { known: old.known, ..Gateway::new() };
    reborn.endpoint.address.clone_from(&old.endpoint.address);
    assert_eq!(reborn.renew(&registry).await, Err(RegistryError::LeaseLost));
    reborn.acquire(&registry).await;
    registry.release(old.incarnation).await.expect("released");
    assert_eq!(old.renew(&registry).await, Err(RegistryError::LeaseLost));
    assert_eq!(reborn.renew(&registry).await.expect("the new life's lease").writes, 0);
    assert_eq!(sessions_of(&registry, &[user]).await, [], "the new life serves the old one's sessions");
}

/// A gateway that knows another life than the present one has outlived the Registry's memory: its lease begins anew,
/// empty and not complete. Where the lease is there all the same, it is only extended.
pub async fn a_renewal_after_another_life_begins_anew<H: RegistryHarness>(harness: &H) {
    let registry = harness.make().await;
    let life = Gateway::live(&registry).await.known;
    let another = RegistryIncarnation(life.0 ^ 1);
    let mut gateway = Gateway { known: another, ..Gateway::new() };
    let renewal = gateway.renew(&registry).await.expect("a lease of the new life");
    assert_eq!((renewal.writes, renewal.registry), (0, life));
    assert!(!entry_of(&registry, &gateway).await.expect("listed").complete);
    let user = UserId::new();
    let session = gateway.session(user);
    assert_eq!(registry.register(gateway.incarnation, &[session]).await, Ok(1));
    assert_eq!(gateway.renew(&registry).await.expect("renewed").writes, 1);
    assert_eq!(sessions_of(&registry, &[user]).await, [session]);
}

/// After the lease nothing names the gateway, and the gateway learns it from every call. A live one stays.
pub async fn a_dead_gateways_entries_vanish<H: RegistryHarness>(harness: &H) {
    let registry = harness.make().await;
    // The lease is long at first, so that a slow machine cannot lose it before the session is registered.
    let (mut dead, mut live) = (Gateway::live(&registry).await, Gateway::live(&registry).await);
    let user = UserId::new();
    let (lost, kept) = (dead.session(user), live.session(user));
    registry.register(live.incarnation, &[kept]).await.expect("registered");
    registry.register(dead.incarnation, &[lost]).await.expect("registered");
    let mut both = [lost, kept];
    both.sort_by_key(|entry| entry.session_id);
    assert_eq!(sessions_of(&registry, &[user]).await, both);
    registry.renew(&dead.endpoint, dead.known, 300).await.expect("renewed, to end soon");
    eventually("the end of the lease", || async { sessions_of(&registry, &[user]).await == [kept] }).await;
    assert!(entry_of(&registry, &dead).await.is_none(), "a dead gateway is listed");
    assert!(entry_of(&registry, &live).await.is_some(), "a live gateway is not listed");
    assert_eq!(dead.renew(&registry).await, Err(RegistryError::LeaseLost));
    assert_eq!(registry.register(dead.incarnation, &[lost]).await, Err(RegistryError::LeaseLost));
    assert_eq!(sessions_of(&registry, &[user]).await, [kept]);
}

/// No waiting for the lease's end; a second release is no error.
pub async fn release_ends_the_lease_at_once<H: RegistryHarness>(harness: &H) {
    let registry = harness.make().await;
    let mut gateway = Gateway::live(&registry).await;
    let user = UserId::new();
    let sessions = [gateway.session(user), gateway.session(user)];
    registry.register(gateway.incarnation, &sessions).await.expect("registered");
    assert_eq!(registry.release(gateway.incarnation).await, Ok(()));
    assert_eq!(sessions_of(&registry, &[user]).await, []);
    assert!(entry_of(&registry, &gateway).await.is_none());
    assert_eq!(gateway.renew(&registry).await, Err(RegistryError::LeaseLost));
    assert_eq!(registry.release(gateway.incarnation).await, Ok(()));
}

/// Said for another life of the Registry it has no effect; a lease that begins anew is not complete.
pub async fn complete_counts_for_the_present_life_only<H: RegistryHarness>(harness: &H) {
    let registry = harness.make().await;
    let gateway = Gateway::live(&registry).await;
    let life = gateway.known;
    let complete = || async { entry_of(&registry, &gateway).await.expect("listed").complete };
    assert!(!complete().await);
    assert_eq!(registry.complete(gateway.incarnation, RegistryIncarnation(life.0 ^ 1)).await, Ok(()));
    assert!(!complete().await, "said for another life");
    assert_eq!(registry.complete(gateway.incarnation, life).await, Ok(()));
    assert!(complete().await);
    gateway.renew(&registry).await.expect("renewed");
    assert!(complete().await, "a renewal keeps it");
    registry.release(gateway.incarnation).await.expect("released");
    registry.acquire(&gateway.endpoint, LONG_MS).await.expect("a lease");
    assert!(!complete().await, "a new lease holds nothing yet");
}
