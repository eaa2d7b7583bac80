//! The Registry in memory passes the suite.

use std::sync::Arc;

use async_trait::async_trait;
use roost_embedded::registry::MemoryRegistry;
use roost_ports::conformance::registry::RegistryHarness;
use roost_ports::{Registry, SystemClock};

struct Harness;

#[async_trait]
impl RegistryHarness for Harness {
    async fn make(&self) -> Arc<dyn Registry> {
        Arc::new(MemoryRegistry::new(Arc::new(SystemClock::new())))
    }
}

async fn harness() -> Option<Harness> {
    Some(Harness)
}

roost_ports::conformance_tests!(registry, harness);
