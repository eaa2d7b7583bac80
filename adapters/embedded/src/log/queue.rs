//! The bounded queue in front of the writer.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use roost_ports::log::{AppendError, NewRecord, Position, Topic};
use tokio::sync::oneshot;

use super::partition::record_bytes;

/// Lazy work rides along in a transaction once it has waited this long …
const RIDE_AFTER: Duration = Duration::from_millis(100);
/// … and gets one of its own where none has come by then.
const ALONE_AFTER: Duration = Duration::from_secs(1);

/// One call of append.
pub struct Append {
    /// Its topic.
    pub topic: Topic,
    /// Its records.
    pub records: Vec<NewRecord>,
    /// Whoever waits for it.
    pub done: oneshot::Sender<Vec<Result<Position, AppendError>>>,
}

/// What the writer does next.
pub struct Work {
    /// Appends, in the order of the calls; may be empty.
    pub appends: Vec<Append>,
    /// Their records, for [`Queue::done`].
    pub records: usize,
    /// Their bytes, for [`Queue::done`].
    pub bytes: usize,
    /// Lazy work is due.
    pub maintain: bool,
    /// Whoever waits for all lazy work.
    pub sweeps: Vec<oneshot::Sender<()>>,
    /// The last work there is.
    pub last: bool,
}

/// The queue.
pub struct Queue {
    state: Mutex<State>,
    wake: Condvar,
    records_max: usize,
    bytes_max: usize,
}

struct State {
    appends: Vec<Append>,
    /// Queued.
    records: usize,
    bytes: usize,
    /// Taken by the writer and not yet committed: they count against the bound.
    records_taken: usize,
    bytes_taken: usize,
    lazy_since: Option<Instant>,
    sweeps: Vec<oneshot::Sender<()>>,
    closing: bool,
    ended: bool,
}

impl Queue {
    /// An empty queue.
    pub fn new(records_max: usize, bytes_max: usize) -> Self {
        let state = State {
            appends: Vec::new(),
            records: 0,
            bytes: 0,
            records_taken: 0,
            bytes_taken: 0,
            lazy_since: None,
            sweeps: Vec::new(),
            closing: false,
            ended: false,
        };
        Self { state: Mutex::new(state), wake: Condvar::new(), records_max, bytes_max }
    }

    /// Puts a call in line: all of it or nothing.
    pub fn push(&self, append: Append) -> Result<(), AppendError> {
        let records = append.records.len();
        let bytes: usize = append.records.iter().map(|record| record_bytes(&record.payload)).sum();
        let mut state = self.state.lock();
        if state.closing || state.ended {
            return Err(AppendError::Unknown("the log is closed".into()));
        }
        let records_before = state.records + state.records_taken;
        let bytes_before = state.bytes + state.bytes_taken;
        // An empty queue takes any call, or one that is larger than the bound could never pass.
        if records_before > 0 && (records_before + records > self.records_max || bytes_before + bytes > self.bytes_max)
        {
            return Err(AppendError::Full);
        }
        state.appends.push(append);
        state.records += records;
        state.bytes += bytes;
        if state.appends.len() == 1 {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Says that lazy work has come up.
    pub fn note_lazy_work(&self) {
        let mut state = self.state.lock();
        if state.lazy_since.is_none() {
            state.lazy_since = Some(Instant::now());
            self.wake.notify_one();
        }
    }

    /// Asks for all lazy work now.
    pub fn request_sweep(&self, done: oneshot::Sender<()>) {
        let mut state = self.state.lock();
        if !state.ended {
            state.sweeps.push(done);
            self.wake.notify_one();
        }
    }

    /// Waits for work, for the writer; at `until` at the latest, with none then.
    pub fn take(&self, until: Option<Instant>) -> Work {
        let mut state = self.state.lock();
        loop {
            let waited = state.lazy_since.map(|since| since.elapsed());
            let has_appends = !state.appends.is_empty();
            let alone = waited.is_some_and(|waited| waited >= ALONE_AFTER);
            let over = until.is_some_and(|until| Instant::now() >= until);
            if has_appends || alone || over || !state.sweeps.is_empty() || state.closing {
                let maintain = waited.is_some_and(|waited| waited >= RIDE_AFTER) || state.closing;
                return state.take(maintain);
            }
            let alone_at = state.lazy_since.map(|since| since + ALONE_AFTER);
            match [alone_at, until].into_iter().flatten().min() {
                None => self.wake.wait(&mut state),
                Some(at) => drop(self.wake.wait_until(&mut state, at)),
            }
        }
    }

    /// The work taken is committed or has failed: there is room again.
    pub fn done(&self, records: usize, bytes: usize) {
        let mut state = self.state.lock();
        state.records_taken -= records;
        state.bytes_taken -= bytes;
    }

    /// No more appends; the writer ends after those that are in line.
    pub fn close(&self) {
        self.state.lock().closing = true;
        self.wake.notify_one();
    }

    /// The writer has ended: nothing in line is ever done.
    pub fn end(&self) {
        let mut state = self.state.lock();
        state.ended = true;
        state.appends.clear();
        state.sweeps.clear();
    }

    /// Whether appends are taken.
    pub fn is_open(&self) -> bool {
        let state = self.state.lock();
        !state.closing && !state.ended
    }
}

impl State {
    fn take(&mut self, maintain: bool) -> Work {
        let (records, bytes) = (std::mem::take(&mut self.records), std::mem::take(&mut self.bytes));
        self.records_taken += records;
        self.bytes_taken += bytes;
        if maintain {
            self.lazy_since = None;
        }
        Work {
            appends: std::mem::take(&mut self.appends),
            records,
            bytes,
            maintain,
            sweeps: std::mem::take(&mut self.sweeps),
            last: self.closing,
        }
    }
}
