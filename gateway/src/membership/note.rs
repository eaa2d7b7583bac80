//! The gateway's note in the Store, for when the Registry is away; and whether the Store still has the same history.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::mail::Mail;
use crate::shared::Shared;

/// Runs until it is aborted.
pub(crate) async fn note_gateway(shared: Arc<Shared>) {
    let ttl_ms = shared.config.lease_ttl_ms;
    let mut tick = tokio::time::interval(Duration::from_millis((ttl_ms / 3).max(1)));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut was_away = false;
    loop {
        tick.tick().await;
        let until = shared.ports.clock.now_ms() + ttl_ms;
        let limit = Duration::from_millis(shared.config.request_timeout_ms);
        let noted = async {
            shared.ports.store.put_gateway(&shared.endpoint(), until).await?;
            shared.ports.store.epoch().await
        };
        match tokio::time::timeout(limit, noted).await {
            Ok(Ok(epoch)) => {
                was_away = false;
                let before = std::mem::replace(&mut *shared.epoch.write(), epoch);
                if before != epoch {
                    tracing::warn!(%before, %epoch, "the store has another history: every client starts afresh");
                    shared.tell_all_shards(|| Mail::Reload);
                }
            }
            failed if !was_away => {
                was_away = true;
                let problem = failed.map_or_else(|_| "no answer in time".to_owned(), |result| format!("{result:?}"));
                tracing::warn!(problem, "the gateway cannot be noted in the store");
            }
            _ => {}
        }
    }
}
