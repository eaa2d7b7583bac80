//! Cases about entries: register, locate, compare and delete, the counter.

use std::collections::HashSet;
use std::sync::Arc;

use roost_protocol::{DeviceId, UserId};

use super::{Gateway, RegistryHarness, entry_of, sessions_of};
use crate::registry::SessionEntry;

/// With its gateway, and no other user's session.
pub async fn a_registered_session_is_located<H: RegistryHarness>(harness: &H) {
    let registry = harness.make().await;
    assert_eq!(registry.check().await, Ok(()));
    let mut gateway = Gateway::live(&registry).await;
    let (one, other) = (UserId::new(), UserId::new());
    let session = gateway.session(one);
    assert_eq!(registry.register(gateway.incarnation, &[session]).await, Ok(1));
    assert_eq!(sessions_of(&registry, &[one]).await, [session]);
    assert_eq!(sessions_of(&registry, &[other]).await, []);
    assert_eq!(sessions_of(&registry, &[]).await, []);
    let entry = entry_of(&registry, &gateway).await.expect("the gateway is listed");
    assert!(!entry.complete, "complete before it was said");
    assert_eq!(registry.unregister(gateway.incarnation, &[session]).await, Ok(2));
    assert_eq!(sessions_of(&registry, &[one]).await, []);
}

/// Thousands of users over several gateways in one call, each session once, several to a user.
pub async fn many_users_are_located_at_once<H: RegistryHarness>(harness: &H) {
    const USERS: usize = 5_000;
    let registry = harness.make().await;
    let mut gateways = [Gateway::live(&registry).await, Gateway::live(&registry).await, Gateway::live(&registry).await];
    let users: Vec<UserId> = (0..USERS).map(|_| UserId::new()).collect();
    let mut wanted = HashSet::new();
    for (number, gateway) in gateways.iter_mut().enumerate() {
        let mine: Vec<SessionEntry> = users.iter().skip(number).step_by(2).map(|user| gateway.session(*user)).collect();
        for chunk in mine.chunks(1_000) {
            registry.register(gateway.incarnation, chunk).await.expect("registered");
        }
        wanted.extend(mine);
    }
    let located = registry.locate(&users).await.expect("the registry answers");
    assert_eq!(located.sessions.len(), wanted.len(), "each session once");
    assert_eq!(located.sessions.into_iter().collect::<HashSet<_>>(), wanted);
    // A user asked for twice is answered once or twice, but never with a stranger's session.
    let twice = registry.locate(&[users[0], users[0]]).await.expect("the registry answers");
    assert!(!twice.sessions.is_empty() && twice.sessions.iter().all(|entry| entry.user_id == users[0]));
}

/// It stays one entry.
pub async fn registering_again_is_no_error<H: RegistryHarness>(harness: &H) {
    let registry = harness.make().await;
    let mut gateway = Gateway::live(&registry).await;
    let user = UserId::new();
    let session = gateway.session(user);
    for count in 1..=3 {
        assert_eq!(registry.register(gateway.incarnation, &[session]).await, Ok(count));
    }
    assert_eq!(sessions_of(&registry, &[user]).await, [session]);
    assert_eq!(registry.unregister(gateway.incarnation, &[session]).await, Ok(4));
    assert_eq!(sessions_of(&registry, &[user]).await, []);
}

/// By one for each call, however many entries it has and whether or not it changes anything.
pub async fn every_write_raises_the_counter<H: RegistryHarness>(harness: &H) {
    let registry = harness.make().await;
    let mut gateway = Gateway::live(&registry).await;
    let mut other = Gateway::live(&registry).await;
    let sessions: Vec<SessionEntry> = (0..10).map(|_| gateway.session(UserId::new())).collect();
    assert_eq!(registry.register(gateway.incarnation, &sessions).await, Ok(1));
    assert_eq!(registry.register(gateway.incarnation, &sessions[..1]).await, Ok(2));
    assert_eq!(registry.unregister(gateway.incarnation, &sessions).await, Ok(3));
    assert_eq!(registry.unregister(gateway.incarnation, &sessions).await, Ok(4), "removing nothing is a write too");
    let session = other.session(UserId::new());
    assert_eq!(registry.register(other.incarnation, &[session]).await, Ok(1), "each gateway has its own");
}

/// The same user and device come back on another gateway before the first one's delete arrives.
pub async fn a_late_delete_never_removes_a_newer_registration<H: RegistryHarness>(harness: &H) {
    let registry = harness.make().await;
    let (mut old, mut new) = (Gateway::live(&registry).await, Gateway::live(&registry).await);
    let (user, device) = (UserId::new(), DeviceId::new());
    let first = SessionEntry { device_id: device, ..old.session(user) };
    let second = SessionEntry { device_id: device, ..new.session(user) };
    registry.register(old.incarnation, &[first]).await.expect("registered");
    registry.register(new.incarnation, &[second]).await.expect("registered");
    registry.unregister(old.incarnation, &[first]).await.expect("removed");
    assert_eq!(sessions_of(&registry, &[user]).await, [second]);
    // Once more, and after the old gateway is gone altogether.
    registry.unregister(old.incarnation, &[first]).await.expect("nothing left to remove is no error");
    registry.release(old.incarnation).await.expect("released");
    assert_eq!(sessions_of(&registry, &[user]).await, [second]);
}

/// An entry that differs in anything is another entry.
pub async fn unregister_removes_exactly_what_is_given<H: RegistryHarness>(harness: &H) {
    let registry = harness.make().await;
    let mut gateway = Gateway::live(&registry).await;
    let user = UserId::new();
    let (one, other) = (gateway.session(user), gateway.session(user));
    registry.register(gateway.incarnation, &[one, other]).await.expect("registered");
    let wrong_device = SessionEntry { device_id: DeviceId::new(), ..one };
    let wrong_user = SessionEntry { user_id: UserId::new(), ..one };
    registry.unregister(gateway.incarnation, &[wrong_device, wrong_user]).await.expect("answers");
    assert_eq!(sessions_of(&registry, &[user]).await, [one, other]);
    registry.unregister(gateway.incarnation, &[one]).await.expect("removed");
    assert_eq!(sessions_of(&registry, &[user]).await, [other]);
}

/// Writes of several tasks: none is lost, and the counter has counted each.
pub async fn parallel_writes_are_all_counted<H: RegistryHarness>(harness: &H) {
    const TASKS: usize = 8;
    const EACH: usize = 25;
    let registry = harness.make().await;
    let mut gateway = Gateway::live(&registry).await;
    let user = UserId::new();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..TASKS {
        let sessions: Vec<SessionEntry> = (0..EACH).map(|_| gateway.session(user)).collect();
        let (registry, incarnation) = (Arc::clone(&registry), gateway.incarnation);
        tasks.spawn(async move {
            let mut counts = Vec::new();
            for session in sessions {
                counts.push(registry.register(incarnation, &[session]).await.expect("registered"));
            }
            counts
        });
    }
    let mut counts: Vec<u64> = tasks.join_all().await.concat();
    counts.sort_unstable();
    assert_eq!(counts, (1..=(TASKS * EACH) as u64).collect::<Vec<_>>(), "a count was given twice or never");
    assert_eq!(sessions_of(&registry, &[user]).await.len(), TASKS * EACH);
}

/// Addresses and keys are data, whatever they spell.
pub async fn hostile_text_is_only_text<H: RegistryHarness>(harness: &H) {
    let registry = harness.make().await;
    for address in ["a b:c|d,e\n{x}:1", "'; DROP", "ключ:7", "\u{0}\u{1}", "redis.call('FLUSHALL')"] {
        let mut gateway = Gateway::new();
        gateway.endpoint.address = address.into();
        registry.acquire(&gateway.endpoint, super::LONG_MS).await.expect("a lease");
        let user = UserId::new();
        let session = gateway.session(user);
        registry.register(gateway.incarnation, &[session]).await.expect("registered");
        assert_eq!(sessions_of(&registry, &[user]).await, [session]);
        assert!(entry_of(&registry, &gateway).await.is_some(), "{address:?} is not listed as it is");
        registry.release(gateway.incarnation).await.expect("released");
        let rate = crate::registry::Rate { burst: 1, interval_ms: 1_000_000 };
        let key = format!("{address}{user}");
        assert_eq!(registry.allow(&key, rate).await, Ok(crate::registry::RateDecision::Allowed));
        assert_ne!(registry.allow(&key, rate).await, Ok(crate::registry::RateDecision::Allowed));
    }
}
