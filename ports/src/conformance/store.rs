//! What every Store does, whatever it stands on.
//!
//! Each case works under fresh random ids and log ids of its own, so that all can share one server, side by side and
//! again and again.

mod accounts;
mod lab;
mod numbering;
mod progress;
mod reading;

use std::sync::Arc;

use async_trait::async_trait;

use crate::store::Store;

pub use accounts::*;
pub use lab::{Lab, Lane, PARTITIONS};
pub use numbering::*;
pub use progress::*;
pub use reading::*;

/// What an adapter's tests give to the suite.
#[async_trait]
pub trait StoreHarness: Send + Sync {
    /// A Store, empty or shared with other cases.
    async fn make(&self) -> Arc<dyn Store>;

    /// Gives up this Store as a process that dies does, without any farewell, and opens what it left behind.
    async fn reopen(&self, store: Arc<dyn Store>) -> Arc<dyn Store>;
}
