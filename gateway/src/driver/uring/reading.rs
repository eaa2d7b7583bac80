//! How bytes come in: a poll for the quiet, a receive that stays armed for the busy.

use super::buffers::BUFFER_BYTES;
use super::connection::Receiving;
use super::ring::{Completed, Operation};
use super::{Done, Uring};
use crate::slab::Key;

/// Whoever is heard again within this time is busy.
const BUSY_MS: u32 = 2_000;
/// Whoever was silent for so long is quiet again.
pub(super) const QUIET_MS: u32 = 10_000;

impl Uring {
    pub(super) fn receive(&mut self, key: Key, bytes_max: u32) {
        let Some(connection) = self.connection(key) else { return };
        connection.bytes_max = bytes_max;
        if bytes_max < u32::MAX && connection.receiving == Receiving::Many {
            connection.receiving = Receiving::Stopping;
            self.begin(key.slot, Operation::CancelReceive);
        }
        self.queue_read(key);
    }

    /// Has the kernel tell when there is something.
    pub(super) fn arm(&mut self, key: Key) {
        let Some(connection) = self.connection(key) else { return };
        if !connection.polling && !connection.ended {
            connection.polling = true;
            self.begin(key.slot, Operation::Poll);
        }
    }

    fn queue_read(&mut self, key: Key) {
        let Some(connection) = self.connection(key) else { return };
        if connection.may_receive() && !connection.queued {
            connection.queued = true;
            self.reads.push(key);
        }
    }

    pub(super) fn polled(&mut self, key: Key, completed: &Completed) {
        let Some(connection) = self.connections.at(key.slot) else { return };
        connection.polling = completed.more();
        // A poll gives way to a receive that stays armed, and tells nothing more.
        let gives_way = completed.is_cancelled() || connection.receiving == Receiving::Many;
        if gives_way || !connection.is_here() {
            return;
        }
        // An error of the poll itself is found by the receive.
        connection.readable = true;
        connection.hung_up |= completed.says_hung_up();
        if !completed.more() {
            self.arm(key);
        }
        self.queue_read(key);
    }

    /// Asks for the bytes of those that have some. Done when a round begins, so that the shard has said how many it wants.
    pub(super) fn begin_reads(&mut self) {
        let mut reads = std::mem::take(&mut self.reads);
        for key in reads.drain(..) {
            self.begin_read(key);
        }
        self.reads = reads;
    }

    fn begin_read(&mut self, key: Key) {
        let now_ms = self.now_ms;
        let Some(connection) = self.connection(key) else { return };
        connection.queued = false;
        if !connection.may_receive() {
            return;
        }
        let heard_lately = connection.heard_ms > 0 && now_ms.saturating_sub(connection.heard_ms) < BUSY_MS;
        if connection.bytes_max < u32::MAX || !heard_lately {
            connection.receiving = Receiving::Once;
            let bytes = connection.bytes_max.min(BUFFER_BYTES as u32);
            self.begin(key.slot, Operation::Receive { bytes });
            return self.arm(key);
        }
        connection.receiving = Receiving::Many;
        connection.readable = false;
        let polling = connection.polling;
        if !std::mem::replace(&mut connection.listed, true) {
            self.busy.push_back((key, now_ms));
        }
        self.begin(key.slot, Operation::ReceiveMany);
        if polling {
            self.begin(key.slot, Operation::CancelPoll);
        }
    }

    pub(super) fn received(&mut self, key: Key, completed: &Completed) {
        let now_ms = self.now_ms.max(1);
        let Some(connection) = self.connections.at(key.slot) else { return };
        let was = connection.receiving;
        if !completed.more() {
            connection.receiving = Receiving::No;
        }
        let heard = connection.is_here() && !connection.ended;
        match (completed.result(), completed.buffer()) {
            (Ok(bytes), Some(buffer)) if bytes > 0 && heard => {
                connection.heard_ms = now_ms;
                let filled = bytes == BUFFER_BYTES.min(connection.bytes_max as usize);
                if !completed.more() {
                    // A receive that stays armed ends by itself where the kernel wants to be asked anew.
                    let asks_anew = was != Receiving::Once;
                    connection.readable = filled || completed.has_more_bytes() || connection.hung_up || asks_anew;
                }
                self.done.push_back(Done::Received(key, buffer, bytes));
            }
            (result, buffer) => {
                if let Some(buffer) = buffer {
                    self.buffers.give_back(buffer);
                }
                if heard {
                    self.nothing_received(key, result.err().and_then(|error| error.raw_os_error()));
                }
            }
        }
        if was == Receiving::Stopping && !completed.more() {
            self.arm(key);
        }
        self.queue_read(key);
    }

    fn nothing_received(&mut self, key: Key, error: Option<i32>) {
        let Some(connection) = self.connection(key) else { return };
        match error {
            // The poll, armed beside it, tells when there is something.
            Some(libc::EAGAIN) => connection.readable = false,
            // No buffer was free, or it was interrupted: again in the next round, when others have given theirs back.
            Some(libc::ENOBUFS | libc::EINTR) => connection.readable = true,
            Some(libc::ECANCELED) => {}
            _ => {
                connection.ended = true;
                self.done.push_back(Done::Ended(key));
            }
        }
    }

    /// Gives back the memory that an armed receive takes where nothing has come for a while.
    pub(super) fn calm_the_silent(&mut self) {
        let (now_ms, quiet_ms) = (self.now_ms, self.quiet_ms);
        while let Some(&(key, since_ms)) = self.busy.front() {
            if now_ms.saturating_sub(since_ms) < quiet_ms {
                return;
            }
            self.busy.pop_front();
            let Some(connection) = self.connection(key) else { continue };
            if now_ms.saturating_sub(connection.heard_ms) < quiet_ms {
                let heard_ms = connection.heard_ms;
                self.busy.push_back((key, heard_ms));
                continue;
            }
            connection.listed = false;
            if connection.receiving == Receiving::Many {
                connection.receiving = Receiving::Stopping;
                self.begin(key.slot, Operation::CancelReceive);
            }
        }
    }
}
