//! Cases about shared rate limits: exact, however many ask at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::{LIVENESS_LIMIT, RegistryHarness};
use crate::registry::{Rate, RateDecision, Registry};

/// So long that nothing refills within a case.
const NEVER_MS: u64 = 3_600_000;

fn fresh_key() -> String {
    format!("suite:{}", Uuid::now_v7())
}

async fn allowed(registry: &Arc<dyn Registry>, key: &str, rate: Rate) -> bool {
    registry.allow(key, rate).await.expect("the registry answers") == RateDecision::Allowed
}

/// `burst` at once and not one more; the wait it tells is that for the next one.
pub async fn a_rate_allows_exactly_its_burst<H: RegistryHarness>(harness: &H) {
    let registry = harness.make().await;
    for burst in [1, 2, 7, 100] {
        let (key, rate) = (fresh_key(), Rate { burst, interval_ms: NEVER_MS });
        for number in 0..burst {
            assert!(allowed(&registry, &key, rate).await, "use {number} of {burst}");
        }
        for _ in 0..3 {
            match registry.allow(&key, rate).await.expect("the registry answers") {
                RateDecision::Allowed => panic!("one more than {burst}"),
                RateDecision::Limited { retry_after_ms } => {
                    // A refused use costs nothing, so the wait never exceeds one interval.
                    let range = NEVER_MS - LIVENESS_LIMIT.as_millis() as u64..=NEVER_MS;
                    assert!(range.contains(&retry_after_ms), "{retry_after_ms}");
                }
            }
        }
    }
}

/// The sum over all callers is the burst.
pub async fn a_rate_allows_exactly_its_burst_to_parallel_callers<H: RegistryHarness>(harness: &H) {
    let (registry, other) = (harness.make().await, harness.make().await);
    let (key, rate) = (fresh_key(), Rate { burst: 50, interval_ms: NEVER_MS });
    // Two handles share a rate only where they are two clients of one server.
    let shared = allowed(&registry, &key, Rate { burst: 1, interval_ms: NEVER_MS }).await
        && !allowed(&other, &key, Rate { burst: 1, interval_ms: NEVER_MS }).await;
    let key = fresh_key();
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..8 {
        let handle = if shared && task % 2 == 1 { Arc::clone(&other) } else { Arc::clone(&registry) };
        let key = key.clone();
        tasks.spawn(async move {
            let mut count = 0;
            for _ in 0..50 {
                count += u32::from(allowed(&handle, &key, rate).await);
            }
            count
        });
    }
    assert_eq!(tasks.join_all().await.into_iter().sum::<u32>(), 50);
}

/// After the wait it told, one more; over any time, the burst and one per interval at the most.
pub async fn a_rate_refills_one_by_one<H: RegistryHarness>(harness: &H) {
    let registry = harness.make().await;
    let (key, rate) = (fresh_key(), Rate { burst: 3, interval_ms: 50 });
    let begun = Instant::now();
    let mut count = 0u64;
    let mut waited = 0;
    while waited < 10 {
        assert!(begun.elapsed() < LIVENESS_LIMIT, "the rate does not refill");
        match registry.allow(&key, rate).await.expect("the registry answers") {
            RateDecision::Allowed => count += 1,
            RateDecision::Limited { retry_after_ms } => {
                assert!((1..=50).contains(&retry_after_ms), "{retry_after_ms}");
                waited += 1;
                // A clock may round to its own tick: one more millisecond is enough, and alone on its key it must do.
                tokio::time::sleep(Duration::from_millis(retry_after_ms + 10)).await;
                assert!(allowed(&registry, &key, rate).await, "limited again after the wait it told");
                count += 1;
            }
        }
        let most = 3 + begun.elapsed().as_millis() as u64 / 50 + 1;
        assert!(count <= most, "{count} uses where {most} are allowed");
    }
}

/// A key that is used up says nothing about another.
pub async fn rates_of_other_keys_are_independent<H: RegistryHarness>(harness: &H) {
    let registry = harness.make().await;
    let rate = Rate { burst: 1, interval_ms: NEVER_MS };
    for _ in 0..100 {
        let key = fresh_key();
        assert!(allowed(&registry, &key, rate).await);
        assert!(!allowed(&registry, &key, rate).await);
    }
}
