//! The Store's behaviour suite on SQLite, and its durability over a crash.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use roost_embedded::store::SqliteStore;
use roost_ports::Store;
use roost_ports::conformance::store::StoreHarness;

/// A folder of its own for each Store.
struct Folders {
    folder: tempfile::TempDir,
    /// The file that is open now, by number.
    number: AtomicU32,
}

impl Folders {
    fn file(&self, number: u32) -> PathBuf {
        self.folder.path().join(format!("store-{number}.db"))
    }
}

#[async_trait]
impl StoreHarness for Folders {
    async fn make(&self) -> Arc<dyn Store> {
        let file = self.file(self.number.load(Ordering::Relaxed));
        Arc::new(SqliteStore::open(&file).expect("a new store"))
    }

    async fn reopen(&self, store: Arc<dyn Store>) -> Arc<dyn Store> {
        // As a crash leaves it: what is in the files while the store is open, copied before anything is closed.
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        for suffix in ["", "-wal"] {
            let name = |number| format!("{}{suffix}", self.file(number).display());
            std::fs::copy(name(number), name(number + 1)).expect("the files of an open store");
        }
        drop(store);
        self.make().await
    }
}

async fn harness() -> Option<Folders> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    Some(Folders { folder, number: AtomicU32::new(0) })
}

roost_ports::conformance_tests!(store, harness);
