//! What one process knows of its sessions. One thread has all of it: no locks, and a few dozen bytes for a session that
//! only sits there.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Notify, Semaphore};
use tokio_uring::net::TcpStream;

use super::backoff::Backoff;
use super::framing::{self, Opcode};
use super::outbox::Outbox;
use super::track::Track;
use crate::Result;
use crate::clock::{Nanos, SECOND};
use crate::figures::{Figures, Latency, Second};
use crate::plan::Signer;
use crate::task::{Phases, Progress, Task, Traffic, Trouble, Written};

/// All sessions of this process.
pub struct Shard {
    /// What is to be done.
    pub task: Task,
    /// Signs tokens.
    pub signer: Signer,
    /// The sessions.
    pub sessions: Vec<RefCell<Session>>,
    /// What was measured.
    pub figures: RefCell<Figures>,
    /// How things stand.
    pub progress: RefCell<Progress>,
    /// What was received since the last word to the parent.
    pub lately: RefCell<Latency>,
    /// When what begins.
    pub phases: Cell<Phases>,
    /// When the measured phase ends: the pacer's thread looks at it too.
    pub until: Arc<AtomicU64>,
    /// Attempts to connect at one time.
    pub openings: Semaphore,
    /// Troubled sessions do not read.
    pub paused: Cell<bool>,
    /// They read again.
    pub resumed: Notify,
    /// Sends without a verdict, all sessions together.
    pub waiting: Cell<u64>,
    /// Sessions that have their heads.
    pub synced: Cell<u32>,
    /// Sessions that were cut and are not back.
    pub away: Cell<u64>,
    /// Acknowledged seqs by conversation.
    pub written: RefCell<Vec<(u32, u64)>>,
}

/// One session.
#[derive(Default)]
pub struct Session {
    /// Its connection, while it is live.
    pub link: Option<Rc<Link>>,
    /// What it says and hears; absent where it only sits there.
    pub talk: Option<Box<Talk>>,
    /// Its waiting between connections.
    pub backoff: Backoff,
    /// It was connected before.
    pub known: bool,
    /// It has had its heads.
    pub synced: bool,
    /// We are ending its connection.
    pub ending: Option<Ending>,
    /// It was cut, and is not back yet.
    pub away: bool,
    /// The server ended its connection while it did not read.
    pub slow: bool,
}

/// How we end a connection ourselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Without a word.
    Cut,
    /// With a close frame.
    Leave,
    /// Because the server asked for it.
    Goaway,
}

/// What a session says and hears.
#[derive(Default)]
pub struct Talk {
    /// Its conversations.
    pub tracks: Vec<Track>,
    /// Its sends.
    pub outbox: Outbox,
    /// When the pings that are not answered yet were due.
    pub pings: VecDeque<Nanos>,
}

/// A live connection.
pub struct Link {
    /// The socket.
    pub stream: TcpStream,
    out: RefCell<Vec<u8>>,
    writing: Cell<bool>,
}

impl Link {
    /// Of a socket that is past the handshake.
    pub fn new(stream: TcpStream) -> Rc<Self> {
        Rc::new(Self { stream, out: RefCell::default(), writing: Cell::new(false) })
    }

    /// Writes a frame, behind those that are being written.
    pub fn write(self: &Rc<Self>, opcode: Opcode, payload: &[u8]) {
        framing::write(&mut self.out.borrow_mut(), opcode, payload);
        if !self.writing.replace(true) {
            tokio_uring::spawn(Rc::clone(self).drain());
        }
    }

    /// Makes a read that waits end now.
    pub fn end_reading(&self) {
        // A socket that is gone already has nothing to read either.
        let _ = self.stream.shutdown(std::net::Shutdown::Read);
    }

    /// A task only while something is to be written: an idle session has none.
    async fn drain(self: Rc<Self>) {
        loop {
            let bytes = std::mem::take(&mut *self.out.borrow_mut());
            if bytes.is_empty() {
                self.writing.set(false);
                return;
            }
            // A broken connection shows where it is read.
            if self.stream.write_all(bytes).await.0.is_err() {
                return;
            }
        }
    }
}

/// Attempts at one time while sessions are built up, and while all of them return at once.
const OPENINGS: usize = 256;
const OPENINGS_IN_STORM: usize = 4_096;

impl Shard {
    /// For a task that begins.
    pub fn new(task: Task) -> Result<Rc<Self>> {
        let signer = task.plan.signer()?;
        let storm = matches!(task.trouble, Trouble::Storm { .. });
        let shard = Self {
            signer,
            sessions: (0..task.count).map(|_| RefCell::default()).collect(),
            figures: RefCell::default(),
            progress: RefCell::default(),
            lately: RefCell::default(),
            phases: Cell::default(),
            until: Arc::new(AtomicU64::new(0)),
            openings: Semaphore::new(if storm { OPENINGS_IN_STORM } else { OPENINGS }),
            paused: Cell::new(false),
            resumed: Notify::new(),
            waiting: Cell::new(0),
            synced: Cell::new(0),
            away: Cell::new(0),
            written: RefCell::default(),
            task,
        };
        for index in 0..shard.task.count {
            shard.sessions[index as usize].borrow_mut().talk = shard.talk(index);
        }
        Ok(Rc::new(shard))
    }

    /// The number of a session's user.
    pub fn user(&self, index: u32) -> u32 {
        self.task.users.at(self.task.first + index, self.task.plan.users)
    }

    /// Whether the trouble of this run befalls a session: an even share of the pairs, and never the first session.
    pub fn troubled(&self, index: u32) -> bool {
        let pair = f64::from((self.task.first + index) / 2);
        self.task.trouble != Trouble::None
            && ((pair + 1.0) * self.task.share).floor() > (pair * self.task.share).floor()
    }

    /// The sessions that trouble befalls.
    pub fn all_troubled(&self) -> impl Iterator<Item = u32> {
        (0..self.task.count).filter(|&index| self.troubled(index))
    }

    /// Whether what is due then is measured.
    pub fn measured(&self, due: Nanos) -> bool {
        due >= self.phases.get().measured_from && due < self.until.load(Ordering::Relaxed)
    }

    /// Changes the figures of the second that a moment is in.
    pub fn second(&self, at: Nanos, change: impl FnOnce(&mut Second)) {
        let second = at.saturating_sub(self.task.begun) / SECOND;
        change(self.figures.borrow_mut().seconds.entry(second).or_default());
    }

    /// Begins a measured phase: what came before counts no more.
    pub fn begin(&self, phases: Phases) {
        let seconds = std::mem::take(&mut self.figures.borrow_mut().seconds);
        let troubled = self.all_troubled().count() as u64;
        *self.figures.borrow_mut() = Figures { seconds, troubled, ..Figures::default() };
        self.phases.set(phases);
        self.until.store(phases.until, Ordering::Relaxed);
        self.written.borrow_mut().clear();
        for session in &self.sessions {
            if let Some(talk) = &mut session.borrow_mut().talk {
                talk.tracks.iter_mut().for_each(Track::begin);
            }
        }
    }

    /// Compares what the sessions have with what was written: expected, and missing.
    pub fn compare(&self, written: &Written) -> (u64, u64) {
        let by_number: BTreeMap<u32, &Vec<(u64, u64)>> = written.0.iter().map(|(&n, ranges)| (n, ranges)).collect();
        let mut sum = (0, 0);
        for session in &self.sessions {
            for track in session.borrow().talk.iter().flat_map(|talk| &talk.tracks) {
                if let Some(ranges) = by_number.get(&track.number) {
                    let (expected, missing) = track.compare(ranges);
                    sum = (sum.0 + expected, sum.1 + missing);
                }
            }
        }
        sum
    }

    /// Sessions of the sample, and how many of them have every message of it.
    pub fn sampled(&self, written: &Written) -> (u64, u64) {
        let complete = |track: &Track| {
            let ranges = written.0.get(&track.number);
            ranges.is_some_and(|ranges| matches!(track.compare(ranges), (1.., 0)))
        };
        let members = self.sessions.iter().filter_map(|session| {
            let session = session.borrow();
            let tracks = &session.talk.as_ref()?.tracks;
            (!tracks.is_empty()).then(|| tracks.iter().all(complete))
        });
        members.fold((0, 0), |(all, good), complete| (all + 1, good + u64::from(complete)))
    }

    /// Adds to the sends without a verdict.
    pub fn waits(&self, more: u64) {
        self.waiting.set(self.waiting.get() + more);
    }

    /// What a session has to say and hear.
    fn talk(&self, index: u32) -> Option<Box<Talk>> {
        let plan = &self.task.plan;
        let track = |number: u32| Track::new(number, plan.conversation(number));
        let user = self.user(index);
        let tracks: Vec<Track> = match self.task.traffic {
            Traffic::Pairs { .. } => vec![track(user / 2)],
            Traffic::Group { group, .. } => vec![track(plan.pairs + group)],
            Traffic::EachGroup { groups, .. } => (0..groups)
                .filter(|&group| plan.groups[group as usize].members.place_of(user).is_some())
                .map(|group| track(plan.pairs + group))
                .collect(),
            Traffic::Pings { .. } => return Some(Box::default()),
        };
        (!tracks.is_empty()).then(|| Box::new(Talk { tracks, ..Talk::default() }))
    }
}
