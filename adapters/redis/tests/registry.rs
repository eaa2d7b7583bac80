//! The Registry suite on a real Redis.

use std::sync::Arc;

use async_trait::async_trait;
use roost_ports::Registry;
use roost_ports::conformance::registry::RegistryHarness;
use roost_redis::{RedisConfig, RedisRegistry};

struct Harness {
    url: String,
}

#[async_trait]
impl RegistryHarness for Harness {
    async fn make(&self) -> Arc<dyn Registry> {
        let config = RedisConfig::parse(&self.url).expect("a redis address");
        Arc::new(RedisRegistry::new(config).expect("a registry"))
    }
}

async fn harness() -> Option<Harness> {
    let Ok(url) = std::env::var("ROOST_TEST_REDIS") else {
        assert!(std::env::var_os("ROOST_REQUIRE_SERVERS").is_none(), "ROOST_TEST_REDIS is not set");
        return None;
    };
    let prefix = uuid::Uuid::now_v7().simple();
    Some(Harness { url: format!("{url}?prefix=suite-{prefix}") })
}

roost_ports::conformance_tests!(registry, harness);
