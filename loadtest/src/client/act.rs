//! The measured phase in one process: what is due is done, trouble comes and goes, and in the end nothing is left over.

use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::framing::Opcode;
use super::pacer;
use super::shard::{Ending, Link, Shard};
use crate::clock::{self, SECOND, now};
use crate::figures::Figures;
use crate::memory;
use crate::task::{Phases, Trouble, Written};

/// How often a state is looked at that nobody announces.
const LOOK: Duration = Duration::from_millis(20);

impl Shard {
    /// Connects all sessions, so many a second.
    pub(super) async fn build_up(self: Rc<Self>) {
        let (begun, rate) = (now(), self.task.rate.max(0.01));
        for index in 0..self.task.count {
            let due = begun + (f64::from(index) / rate * SECOND as f64) as u64;
            tokio::time::sleep(clock::until(due)).await;
            tokio_uring::spawn(super::session::live(Rc::clone(&self), index));
            // Those that have begun get on meanwhile.
            tokio::task::yield_now().await;
        }
    }

    /// Whether every session is connected, and has its heads where it asks for them.
    pub(super) fn is_ready(&self) -> bool {
        let all = u64::from(self.task.count);
        self.progress.borrow().live == all && u64::from(self.synced.get()) == all
    }

    /// Does everything that is due, and returns what was acknowledged once nothing is open any more.
    pub(super) async fn act(self: Rc<Self>, phases: Phases) -> Written {
        self.begin(phases);
        let cpu_before = memory::cpu_us();
        tokio::time::sleep(clock::until(phases.begin)).await;
        let mut due = pacer::start(&self.task, phases.begin, self.until.clone());
        let trouble = tokio_uring::spawn(Rc::clone(&self).trouble());
        while let Some(batch) = due.recv().await {
            batch.into_iter().for_each(|due| self.due(due));
        }
        // It ends with the phase by itself; what it fails with is a mistake of ours.
        trouble.await.expect("the trouble has no reason to panic");
        let end = now() + self.task.settle;
        while (self.waiting.get() > 0 || !self.is_complete() || self.awaits_pongs()) && now() < end {
            tokio::time::sleep(LOOK).await;
        }
        let mut figures = self.figures.borrow_mut();
        figures.cpu_us = memory::cpu_us() - cpu_before;
        drop(figures);
        Written::of(std::mem::take(&mut *self.written.borrow_mut()))
    }

    /// Waits until every session has what was written, and returns the figures.
    pub(super) async fn verify(self: Rc<Self>, written: Written) -> Figures {
        let end = now() + self.task.settle;
        while self.compare(&written).1 > 0 && now() < end {
            tokio::time::sleep(LOOK * 5).await;
        }
        let (expected, missing) = self.compare(&written);
        let (sampled, sampled_complete) = self.sampled(&written);
        let pings = self.sessions.iter().filter_map(|session| Some(session.borrow().talk.as_ref()?.pings.len() as u64));
        let open_pings: u64 = pings.sum();
        let mut figures = self.figures.borrow().clone();
        figures.expected = expected;
        figures.missing = missing;
        figures.delivered = expected - missing;
        figures.unanswered = self.waiting.get() + open_pings;
        (figures.sampled, figures.sampled_complete) = (sampled, sampled_complete);
        figures
    }

    /// Ends a connection, if it is still the session's.
    pub(super) fn end(&self, index: u32, link: &Rc<Link>, ending: Ending) {
        let mut session = self.sessions[index as usize].borrow_mut();
        if !session.link.as_ref().is_some_and(|own| Rc::ptr_eq(own, link)) || session.ending.is_some() {
            return;
        }
        session.ending = Some(ending);
        drop(session);
        match ending {
            Ending::Leave => link.write(Opcode::Close, &1000_u16.to_be_bytes()),
            Ending::Cut | Ending::Goaway => link.end_reading(),
        }
    }

    async fn trouble(self: Rc<Self>) {
        if self.task.trouble == Trouble::None {
            return;
        }
        tokio::time::sleep(clock::until(self.phases.get().trouble_from)).await;
        match self.task.trouble {
            Trouble::None => {}
            Trouble::Churn { per_second } => self.churn(per_second).await,
            Trouble::Storm { .. } => self.cut_all(),
            Trouble::Slow => {
                self.paused.set(true);
                while now() < self.until.load(Ordering::Relaxed) {
                    tokio::time::sleep(LOOK).await;
                }
                self.paused.set(false);
                self.resumed.notify_waiters();
            }
        }
    }

    /// One troubled session after the other leaves, by turns with a close frame and without a word.
    async fn churn(&self, per_second: f64) {
        let troubled: Vec<u32> = self.all_troubled().collect();
        if troubled.is_empty() || per_second <= 0.0 {
            return;
        }
        let begun = now();
        for number in 0.. {
            let due = begun + (number as f64 / per_second * SECOND as f64) as u64;
            tokio::time::sleep(clock::until(due)).await;
            if due >= self.until.load(Ordering::Relaxed) {
                return;
            }
            let index = troubled[number % troubled.len()];
            let ending = if number % 2 == 0 { Ending::Leave } else { Ending::Cut };
            self.end_session(index, ending);
        }
    }

    fn cut_all(&self) {
        for index in self.all_troubled() {
            if self.end_session(index, Ending::Cut) {
                self.sessions[index as usize].borrow_mut().away = true;
                self.away.set(self.away.get() + 1);
            }
        }
    }

    fn end_session(&self, index: u32, ending: Ending) -> bool {
        let link = self.sessions[index as usize].borrow().link.clone();
        if let Some(link) = &link {
            self.end(index, link, ending);
        }
        link.is_some()
    }

    /// Whether every session that may come back is connected.
    fn is_complete(&self) -> bool {
        self.progress.borrow().live + self.figures.borrow().given_up >= u64::from(self.task.count)
    }

    fn awaits_pongs(&self) -> bool {
        let awaits = |talk: &super::shard::Talk| !talk.pings.is_empty();
        self.sessions.iter().any(|session| session.borrow().talk.as_deref().is_some_and(awaits))
    }
}
