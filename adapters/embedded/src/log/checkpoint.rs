//! Folds the write-ahead log into the file, off the writer's thread.

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};
use roost_ports::log::LogError;
use rusqlite::Connection;

use super::database;

/// So many pages written ask for a checkpoint: about 4 MiB.
const PAGES_EACH: usize = 1_000;
/// A write-ahead log of so many pages asks the writer to help: about 32 MiB.
const PAGES_LONG: i64 = 8_000;

/// The checkpointer's thread.
pub struct Checkpointer {
    shared: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

/// The writer's side of it.
#[derive(Clone)]
pub struct CheckpointHandle(Arc<State>);

struct State {
    wishes: Mutex<Wishes>,
    wake: Condvar,
}

#[derive(Default)]
struct Wishes {
    pages_written: usize,
    finish: bool,
    closing: bool,
}

impl Checkpointer {
    /// Starts the thread.
    pub fn start(path: &Path) -> Result<Self, LogError> {
        let connection = database::open_other(path)?;
        let shared = Arc::new(State { wishes: Mutex::new(Wishes::default()), wake: Condvar::new() });
        let state = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("log-checkpoint".into())
            .stack_size(256 * 1024)
            .spawn(move || run(&connection, &state))
            .map_err(|error| LogError::Unavailable(format!("no thread for checkpoints: {error}")))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// What the writer tells it by.
    pub fn handle(&self) -> CheckpointHandle {
        CheckpointHandle(Arc::clone(&self.shared))
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.shared.wishes.lock().closing = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the log's checkpointer had panicked");
        }
    }
}

impl CheckpointHandle {
    /// Notes what a transaction has written, about.
    pub fn wrote(&self, pages: usize) {
        let mut wishes = self.0.wishes.lock();
        wishes.pages_written += pages;
        if wishes.pages_written >= PAGES_EACH {
            self.0.wake.notify_one();
        }
    }

    /// Between two transactions, on the writer's thread: what little the checkpointer left over. Beside a writer that
    /// never rests it cannot reach the end of the write-ahead log by itself, and the file would grow for ever.
    pub fn finish(&self, connection: &Connection) {
        if std::mem::take(&mut self.0.wishes.lock().finish) {
            checkpoint(connection);
        }
    }
}

fn run(connection: &Connection, state: &State) {
    loop {
        {
            let mut wishes = state.wishes.lock();
            while wishes.pages_written < PAGES_EACH && !wishes.closing {
                state.wake.wait(&mut wishes);
            }
            if wishes.closing {
                return;
            }
            wishes.pages_written = 0;
        }
        if checkpoint(connection).is_some_and(|pages| pages > PAGES_LONG) {
            state.wishes.lock().finish = true;
        }
    }
}

/// Never waits for readers or writers. Returns how long the write-ahead log was.
fn checkpoint(connection: &Connection) -> Option<i64> {
    match connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| row.get(1)) {
        Ok(pages) => Some(pages),
        Err(error) => {
            tracing::warn!(%error, "the log could not be checkpointed; tried again later");
            None
        }
    }
}
