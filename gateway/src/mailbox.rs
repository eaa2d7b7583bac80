//! What the runtime and the other shards send to a shard: a queue under one lock, taken whole, with one wake-up.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;

/// Wakes a shard that waits in its driver.
pub type Wake = Box<dyn Fn() + Send + Sync>;

/// A shard's mailbox.
///
/// What answers a request of the shard's own is always taken: the shard bounds its requests. What comes from outside
/// (deliveries) reserves its size first and is refused when there is no room.
pub struct Mailbox<T> {
    letters: Mutex<Letters<T>>,
    wake: OnceLock<Wake>,
    /// The shard has been woken and has not looked yet.
    woken: AtomicBool,
    reserved_bytes: AtomicUsize,
    reserved_bytes_max: usize,
}

struct Letters<T> {
    waiting: Vec<T>,
    /// Nobody will ever look again.
    closed: bool,
}

impl<T> Mailbox<T> {
    /// An empty mailbox that takes deliveries of so many bytes.
    pub fn new(reserved_bytes_max: usize) -> Self {
        Self {
            letters: Mutex::new(Letters { waiting: Vec::new(), closed: false }),
            wake: OnceLock::new(),
            woken: AtomicBool::new(false),
            reserved_bytes: AtomicUsize::new(0),
            reserved_bytes_max,
        }
    }

    /// Says how the shard is woken, once it has a driver.
    pub fn connect(&self, wake: Wake) {
        // Set once at start; whatever was put in before is found at the first look.
        let _ = self.wake.set(wake);
    }

    /// Puts a letter in; drops it once the mailbox is closed.
    pub fn put(&self, letter: T) {
        {
            let mut letters = self.letters.lock();
            if letters.closed {
                return;
            }
            letters.waiting.push(letter);
        }
        if !self.woken.swap(true, Ordering::AcqRel)
            && let Some(wake) = self.wake.get()
        {
            wake();
        }
    }

    /// Takes all letters in their order. `into` must be empty; its room is reused for the next letters.
    pub fn take(&self, into: &mut Vec<T>) {
        debug_assert!(into.is_empty(), "what was taken has been dealt with");
        // First the flag: a letter put in between wakes once too often, never once too seldom.
        self.woken.store(false, Ordering::Release);
        std::mem::swap(&mut self.letters.lock().waiting, into);
    }

    /// Whether something waits.
    pub fn has_letters(&self) -> bool {
        !self.letters.lock().waiting.is_empty()
    }

    /// Drops what is in it and whatever comes.
    pub fn close(&self) {
        let mut letters = self.letters.lock();
        letters.closed = true;
        let waiting = std::mem::take(&mut letters.waiting);
        drop(letters);
        // Outside the lock: a letter's end may wake somebody who writes here.
        drop(waiting);
    }

    /// Reserves room for a delivery. False: there is none.
    pub fn reserve(&self, bytes: usize) -> bool {
        let before = self.reserved_bytes.fetch_add(bytes, Ordering::Relaxed);
        // An empty mailbox takes anything, or a large batch would be refused for ever.
        let fits = before == 0 || before + bytes <= self.reserved_bytes_max;
        if !fits {
            self.release(bytes);
        }
        fits
    }

    /// Gives reserved room back.
    pub fn release(&self, bytes: usize) {
        self.reserved_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}
