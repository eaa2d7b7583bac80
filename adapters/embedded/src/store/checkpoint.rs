//! Moves pages from the write-ahead log into the file, on a thread beside the writer's.

use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use rusqlite::Connection;

use super::connection;

/// New pages in the write-ahead log that are worth a checkpoint: fewer, and each page is copied more often.
const PAGES_WORTH_IT: u32 = 4 * 1024;
/// A write-ahead log of so many pages (64 MiB) is begun anew as soon as possible: it is read whole after a crash.
const PAGES_MAX: u32 = 16 * 1024;

thread_local! {
    /// The pages in the write-ahead log after this thread's last commit. SQLite's hook has no room for more.
    static PAGES: Cell<u32> = const { Cell::new(0) };
}

/// The writer's hold on the thread.
pub(super) struct Checkpointer {
    /// One place: a checkpoint that is due is due once.
    due: Option<mpsc::SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
    /// The log is long and nearly all of it is in the file: the writer does the rest and begins it anew. The thread
    /// alone never could while commits go on, as it is always one commit behind.
    finish: Arc<AtomicBool>,
    pages_seen: Cell<u32>,
}

impl Checkpointer {
    /// Starts the thread for the writer's connection.
    pub(super) fn start(path: &Path, writer: &Connection) -> rusqlite::Result<Self> {
        writer.wal_hook(Some(|_, pages| {
            PAGES.set(u32::try_from(pages).unwrap_or(0));
            Ok(())
        }));
        let connection = connection::open_checkpointer(path)?;
        let finish = Arc::new(AtomicBool::new(false));
        let (due, queue) = mpsc::sync_channel::<()>(1);
        let finish_it = finish.clone();
        let run = move || {
            while queue.recv().is_ok() {
                if checkpoint(&connection).is_some_and(|pages| pages >= PAGES_MAX) {
                    finish_it.store(true, Ordering::Relaxed);
                }
            }
        };
        let thread = std::thread::Builder::new().name("store-checkpoint".to_owned()).spawn(run);
        let thread = thread.map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
        Ok(Self { due: Some(due), thread: Some(thread), finish, pages_seen: Cell::new(0) })
    }

    /// To be called by the writer between transactions.
    pub(super) fn after_commit(&self, writer: &Connection) {
        if self.finish.swap(false, Ordering::Relaxed) {
            checkpoint(writer);
        }
        let pages = PAGES.get();
        if pages < self.pages_seen.get() {
            self.pages_seen.set(0);
        }
        if pages - self.pages_seen.get() >= PAGES_WORTH_IT {
            self.pages_seen.set(pages);
            if let Some(due) = &self.due {
                // Full: one is due already.
                let _ = due.try_send(());
            }
        }
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.due = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the store's checkpointer panicked");
        }
    }
}

/// Copies what can be copied without waiting for anybody, and returns how many pages the log has.
fn checkpoint(connection: &Connection) -> Option<u32> {
    let pages = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| row.get::<_, i64>(1));
    match pages {
        Ok(pages) => u32::try_from(pages).ok(),
        Err(error) => {
            // Nothing is lost: the pages stay in the write-ahead log, and the next checkpoint takes them.
            tracing::warn!(%error, "a checkpoint of the store failed");
            None
        }
    }
}
