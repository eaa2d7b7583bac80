//! The ring itself: submissions into the kernel, completions out of it.
#![allow(unsafe_code, reason = "the kernel is given addresses and descriptors")]

use std::collections::VecDeque;
use std::io;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use io_uring::register::Restriction;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{CancelBuilder, Fd, Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode};
use rustix::event::{EventfdFlags, eventfd};

use super::buffers::GROUP;
use super::sends::Outgoing;
use crate::drivers::descriptors_max;

/// Submissions that wait for one call.
const SUBMISSIONS: u32 = 1024;
/// Completions that the kernel has room for; beyond, it keeps them in a list of its own. The table in which it looks for
/// what is to be cancelled is as large as it gets from here on.
const COMPLETIONS: u32 = 8192;
/// Threads of the kernel for what may block; only the closing of a writing half does.
const KERNEL_WORKERS_MAX: u32 = 2;

/// So many sends, and so many of their bytes, are completed with whatever comes next; more are completed at once.
const TRIALS_KEPT_MAX: usize = 64;
const TRIAL_BYTES_KEPT_MAX: u32 = 1 << 20;

/// The kernel's own limit of a table.
const FILES_MAX: usize = 1 << 20;

/// In place of a slot: the shard's waker.
pub(super) const WAKER: u32 = u32::MAX;
/// In place of a slot: the listener.
pub(super) const LISTENER: u32 = u32::MAX - 1;

/// From linux/io_uring.h: the two registrations that a running driver needs.
const REGISTER_FILES_UPDATE: u8 = 6;
const REGISTER_WORKERS_MAX: u8 = 19;

/// What a completion is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Kind {
    Poll,
    Receive,
    TrySend,
    Send,
    Shutdown,
    Cancel,
    Close,
    Install,
}

const KINDS: [Kind; 8] =
    [Kind::Poll, Kind::Receive, Kind::TrySend, Kind::Send, Kind::Shutdown, Kind::Cancel, Kind::Close, Kind::Install];

/// What is asked of the kernel for a slot.
pub(super) enum Operation {
    Poll,
    Receive {
        bytes: u32,
    },
    ReceiveMany,
    /// Where the socket has no room at once: `EAGAIN`, or less than all. The kernel is silent about success, so that
    /// nobody is woken by it; its completion comes with whatever comes next.
    TrySend(Outgoing),
    /// Waits for room.
    Send(Outgoing),
    Shutdown,
    CancelPoll,
    CancelReceive,
    CancelSend,
    Close,
    Install,
}

/// What the kernel has to say.
#[derive(Clone, Copy)]
pub(super) struct Completed {
    user_data: u64,
    result: i32,
    flags: u32,
}

impl Completed {
    fn of(trial: Trial) -> Self {
        Self { user_data: user_data(trial.slot, Kind::TrySend), result: trial.bytes as i32, flags: 0 }
    }

    pub(super) fn slot(&self) -> u32 {
        self.user_data as u32
    }

    pub(super) fn kind(&self) -> Kind {
        KINDS[(self.user_data >> 32) as usize]
    }

    pub(super) fn result(&self) -> io::Result<usize> {
        usize::try_from(self.result).map_err(|_| io::Error::from_raw_os_error(-self.result))
    }

    /// More completions come for the same submission.
    pub(super) fn more(&self) -> bool {
        cqueue::more(self.flags)
    }

    pub(super) fn buffer(&self) -> Option<u16> {
        cqueue::buffer_select(self.flags)
    }

    /// The kernel had more bytes than it gave.
    pub(super) fn has_more_bytes(&self) -> bool {
        cqueue::sock_nonempty(self.flags)
    }

    /// Of a send that was tried.
    pub(super) fn found_no_room(&self) -> bool {
        self.result == -libc::EAGAIN
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.result == -libc::ECANCELED
    }

    /// Of a poll: the peer has closed, or the connection is broken.
    pub(super) fn says_hung_up(&self) -> bool {
        const HUNG_UP: i32 = (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) as i32;
        self.result < 0 || self.result & HUNG_UP != 0
    }
}

/// A ring, restricted to what the driver does.
pub(super) struct Ring {
    inner: IoUring,
    files_max: usize,
    /// Submissions whose last completion has not come.
    under_way: u64,
    /// What was tried and has not failed yet. Once the kernel has taken it, it has either failed or is complete.
    trials: Vec<Trial>,
    /// Whether some of it was not even taken.
    trials_wait: bool,
}

/// A send that the kernel speaks of only if it fails.
#[derive(Clone, Copy)]
struct Trial {
    slot: u32,
    bytes: u32,
}

impl Ring {
    /// A ring that can do nothing yet, with room for so many files.
    pub(super) fn new(files_max: usize) -> io::Result<Self> {
        let inner = IoUring::builder()
            .dontfork()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(COMPLETIONS)
            .setup_r_disabled()
            .build(SUBMISSIONS)?;
        // The kernel takes no larger table than the process may have descriptors.
        let files_max = files_max.clamp(1, descriptors_max().min(FILES_MAX));
        inner.submitter().register_files_sparse(files_max as u32)?;
        inner.submitter().register_restrictions(&mut restrictions())?;
        Ok(Self { inner, files_max, under_way: 0, trials: Vec::new(), trials_wait: false })
    }

    /// From now on the ring works, and belongs to this thread.
    pub(super) fn enable(&self) -> io::Result<()> {
        let submitter = self.inner.submitter();
        submitter.register_enable_rings()?;
        submitter.register_iowq_max_workers(&mut [KERNEL_WORKERS_MAX; 2])
    }

    pub(super) fn files_max(&self) -> usize {
        self.files_max
    }

    pub(super) fn under_way(&self) -> u64 {
        self.under_way
    }

    /// # Safety
    ///
    /// The entries lie at this address, as many as said, until the ring is dropped.
    pub(super) unsafe fn register_buffers(&mut self, entries: u64, count: u16, group: u16) -> io::Result<()> {
        // SAFETY: as our caller promises.
        unsafe { self.inner.submitter().register_buf_ring_with_flags(entries, count, group, 0) }
    }

    /// Puts a socket into the table; its descriptor may be closed then.
    pub(super) fn put_file(&self, slot: u32, stream: &TcpStream) -> io::Result<()> {
        self.inner.submitter().register_files_update(slot, &[stream.as_raw_fd()]).map(drop)
    }

    /// Has the kernel tell, again and again, when a descriptor becomes readable. It must outlive the ring.
    pub(super) fn watch(&mut self, place: u32, descriptor: RawFd, completed: &mut VecDeque<Completed>) {
        let entry = opcode::PollAdd::new(Fd(descriptor), libc::POLLIN as u32).multi(true).build();
        self.push_entry(entry.user_data(user_data(place, Kind::Poll)), completed);
    }

    /// Puts a submission in line. Where there is no room the kernel takes what stands there, and what it completes at
    /// once is moved to `completed`.
    pub(super) fn push(&mut self, slot: u32, operation: Operation, completed: &mut VecDeque<Completed>) {
        let trial = match &operation {
            Operation::TrySend(outgoing) => Some(Trial { slot, bytes: outgoing.bytes() }),
            _ => None,
        };
        if self.push_entry(entry(slot, operation), completed) {
            self.trials.extend(trial);
        }
    }

    fn push_entry(&mut self, entry: Entry, completed: &mut VecDeque<Completed>) -> bool {
        // SAFETY: addresses in an entry come from `Sends` and from the registered buffers; both outlive the completion.
        while unsafe { self.inner.submission().push(&entry) }.is_err() {
            if let Err(error) = self.wait(Some(Duration::ZERO), completed) {
                // Waiting says so too, and ends the shard.
                tracing::error!(%error, "the ring takes nothing");
                return false;
            }
        }
        self.under_way += 1;
        true
    }

    /// Cancels all that is under way: the end is near.
    pub(super) fn cancel_everything(&mut self, completed: &mut VecDeque<Completed>) {
        let entry = opcode::AsyncCancel2::new(CancelBuilder::any().all()).build();
        self.push_entry(entry.user_data(user_data(WAKER, Kind::Cancel)), completed);
    }

    /// Gives the kernel what stands in line, waits for a completion or the time, and takes all completions.
    pub(super) fn wait(&mut self, timeout: Option<Duration>, completed: &mut VecDeque<Completed>) -> io::Result<()> {
        let submitter = self.inner.submitter();
        let timeout = if self.trials_wait || self.keeps_much() { Some(Duration::ZERO) } else { timeout };
        let result = match timeout {
            Some(Duration::ZERO) => submitter.submit(),
            Some(timeout) => {
                let time = Timespec::from(timeout);
                submitter.submit_with_args(1, &SubmitArgs::new().timespec(&time))
            }
            None => submitter.submit_and_wait(1),
        };
        match result {
            Ok(_) => {}
            // The time is up; a signal; or the kernel wants its completions taken, or some memory, first.
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
            Err(error) => return Err(error),
        }
        let told_before = completed.len();
        let queue = self.inner.completion();
        if queue.overflow() > 0 {
            // One of them may have been a failure, and would pass for a success.
            return Err(io::Error::other("the kernel has lost completions for want of memory"));
        }
        for entry in queue {
            let entry = Completed { user_data: entry.user_data(), result: entry.result(), flags: entry.flags() };
            self.under_way -= u64::from(!entry.more());
            if entry.kind() == Kind::TrySend
                && let Some(failed) = self.trials.iter().position(|trial| trial.slot == entry.slot())
            {
                self.trials.swap_remove(failed);
            }
            completed.push_back(entry);
        }
        self.complete_trials(completed, told_before);
        Ok(())
    }

    /// Frames are not kept in large numbers for the sake of one call.
    fn keeps_much(&self) -> bool {
        self.trials.len() > TRIALS_KEPT_MAX
            || self.trials.iter().map(|trial| trial.bytes).sum::<u32>() > TRIAL_BYTES_KEPT_MAX
    }

    /// What was tried and has not failed is done. It is too soon to say so while some of it has not been taken, or the
    /// kernel has completions that did not fit. It was done before the kernel waited, and so it comes before the rest
    /// of this call.
    fn complete_trials(&mut self, completed: &mut VecDeque<Completed>, told_before: usize) {
        self.trials_wait = false;
        if self.trials.is_empty() {
            return;
        }
        let line = self.inner.submission();
        self.trials_wait = !line.is_empty() || line.cq_overflow();
        drop(line);
        if self.trials_wait {
            return;
        }
        let done = self.trials.len();
        self.under_way -= done as u64;
        completed.extend(self.trials.drain(..).map(Completed::of));
        if told_before + done < completed.len() {
            completed.make_contiguous()[told_before..].rotate_right(done);
        }
    }
}

fn entry(slot: u32, operation: Operation) -> Entry {
    let file = Fixed(slot);
    let (kind, entry) = match operation {
        Operation::Poll => {
            let events = (libc::POLLIN | libc::POLLRDHUP) as u32;
            (Kind::Poll, opcode::PollAdd::new(file, events).multi(true).build())
        }
        Operation::Receive { bytes } => {
            let receive = opcode::Recv::new(file, std::ptr::null_mut(), bytes);
            let entry = receive.buf_group(GROUP).flags(libc::MSG_DONTWAIT).build().flags(Flags::BUFFER_SELECT);
            (Kind::Receive, entry)
        }
        Operation::ReceiveMany => (Kind::Receive, opcode::RecvMulti::new(file, GROUP).build()),
        Operation::TrySend(outgoing) => {
            // All of it or an error that says how much: what is written in part would else be taken for a success.
            let send = send(file, &outgoing, libc::MSG_DONTWAIT | libc::MSG_WAITALL);
            (Kind::TrySend, send.flags(Flags::SKIP_SUCCESS))
        }
        Operation::Send(outgoing) => (Kind::Send, send(file, &outgoing, 0)),
        Operation::Shutdown => (Kind::Shutdown, opcode::Shutdown::new(file, libc::SHUT_WR).build()),
        Operation::CancelPoll => (Kind::Cancel, cancel(CancelBuilder::user_data(user_data(slot, Kind::Poll)))),
        Operation::CancelReceive => (Kind::Cancel, cancel(CancelBuilder::user_data(user_data(slot, Kind::Receive)))),
        Operation::CancelSend => (Kind::Cancel, cancel(CancelBuilder::user_data(user_data(slot, Kind::Send)))),
        Operation::Close => (Kind::Close, opcode::Close::new(file).build()),
        Operation::Install => (Kind::Install, opcode::FixedFdInstall::new(file, 0).build()),
    };
    entry.user_data(user_data(slot, kind))
}

fn send(file: Fixed, outgoing: &Outgoing, flags: i32) -> Entry {
    let flags = flags | libc::MSG_NOSIGNAL;
    match *outgoing {
        Outgoing::One { address, bytes } => opcode::Send::new(file, address, bytes).flags(flags).build(),
        Outgoing::Several { header, .. } => opcode::SendMsg::new(file, header).flags(flags as u32).build(),
    }
}

fn cancel(which: CancelBuilder) -> Entry {
    opcode::AsyncCancel2::new(which).build()
}

fn user_data(slot: u32, kind: Kind) -> u64 {
    u64::from(kind as u8) << 32 | u64::from(slot)
}

/// A ring that is broken into can do what the driver does, and nothing else: it opens no file and connects nowhere.
fn restrictions() -> Vec<Restriction> {
    let operations = [
        opcode::PollAdd::CODE,
        opcode::Recv::CODE,
        opcode::Send::CODE,
        opcode::SendMsg::CODE,
        opcode::Shutdown::CODE,
        opcode::AsyncCancel2::CODE,
        opcode::Close::CODE,
        opcode::FixedFdInstall::CODE,
    ];
    let mut list: Vec<Restriction> = operations.iter().map(|&code| Restriction::sqe_op(code)).collect();
    let flags = Flags::FIXED_FILE | Flags::BUFFER_SELECT | Flags::SKIP_SUCCESS;
    list.push(Restriction::sqe_flags_allowed(flags.bits()));
    list.push(Restriction::register_op(REGISTER_FILES_UPDATE));
    list.push(Restriction::register_op(REGISTER_WORKERS_MAX));
    list
}

/// A counter that wakes whoever polls it.
pub(super) fn event_counter() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

/// A descriptor that the kernel has just made for us.
pub(super) fn own(descriptor: usize) -> OwnedFd {
    // SAFETY: it is new, so that nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(descriptor as RawFd) }
}
