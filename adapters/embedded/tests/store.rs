//! The Store's behaviour suite on SQLite, and its durability over a crash.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use roost_embedded::store::SqliteStore;
use roost_ports::Store;
use roost_ports::conformance::store::{Lab, StoreHarness};
use roost_ports::store::StoreError;

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

/// A Store that came back older than what a client has seen says so, rather than leaving out what comes next.
#[tokio::test]
async fn a_cursor_from_the_future_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = SqliteStore::open(&folder.path().join("store.db")).expect("a new store");
    let lab = Lab::new(Arc::new(store)).await;
    let user = lab.user().await;
    let next = lab.store.heads(user, None, 1).await.expect("heads").next.expect("a cursor");
    let (start, changed) = next.rsplit_once('.').expect("the cursor ends with the change");
    let later = format!("{start}.{}", changed.parse::<u64>().expect("a number") + 1);
    assert_eq!(lab.store.heads(user, Some(&later), 1).await, Err(StoreError::InvalidCursor));
    assert!(lab.store.heads(user, Some(&next), 1).await.is_ok());
}

/// Opening does not make tables, and what needs them says so.
#[tokio::test]
async fn a_store_that_was_not_migrated_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = SqliteStore::open(&folder.path().join("store.db")).expect("a new store");
    assert!(matches!(store.check().await, Err(StoreError::Refused(_))));
    assert!(matches!(store.epoch().await, Err(StoreError::Refused(_))));
    let nowhere = folder.path().join("no such folder").join("store.db");
    assert!(SqliteStore::open(&nowhere).is_err());
    std::fs::write(folder.path().join("text"), "this is not a database, and it is long enough to tell")
        .expect("a file");
    assert!(matches!(SqliteStore::open(&folder.path().join("text")), Err(StoreError::Refused(_))));
}
