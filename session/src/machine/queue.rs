//! What waits to be written to one session: shared frames and its own, in order, counted in bytes.

use std::collections::VecDeque;

use bytes::Bytes;

/// One frame waits without an allocation, which is what delivery to a reading peer needs.
#[derive(Debug, Default)]
pub(super) struct Queue {
    first: Option<Bytes>,
    rest: VecDeque<Bytes>,
    /// How much of the first frame has been written.
    offset: u32,
    bytes: u32,
    /// How many frames the driver has by reference: these will be written, whatever happens here.
    lent: u32,
}

impl Queue {
    pub(super) fn push(&mut self, frame: Bytes) {
        if frame.is_empty() {
            return;
        }
        self.bytes += u32::try_from(frame.len()).expect("a frame is far below 4 GiB");
        match self.first {
            None => self.first = Some(frame),
            Some(_) => self.rest.push_back(frame),
        }
    }

    /// Lends the next frames to the driver, until `advance` says what was written.
    pub(super) fn lend(&mut self, frames_max: usize, bytes_max: usize, mut take: impl FnMut(Bytes)) -> usize {
        assert_eq!(self.lent, 0, "one send at a time");
        let mut bytes = 0;
        for frame in self.first.iter().chain(&self.rest).take(frames_max) {
            if bytes >= bytes_max {
                break;
            }
            bytes += frame.len();
            self.lent += 1;
            take(frame.clone());
        }
        self.offset as usize
    }

    pub(super) fn is_lent(&self) -> bool {
        self.lent > 0
    }

    /// Whether nothing is left that could be lent.
    pub(super) fn is_lent_whole(&self) -> bool {
        self.lent as usize == usize::from(self.first.is_some()) + self.rest.len()
    }

    /// Bytes not written yet.
    pub(super) fn bytes(&self) -> usize {
        self.bytes as usize
    }

    /// Ends the loan and forgets what has been written.
    pub(super) fn advance(&mut self, written: usize) {
        self.lent = 0;
        let written = u32::try_from(written).expect("no more is written than was queued");
        assert!(written <= self.bytes, "no more is written than was queued");
        self.bytes -= written;
        self.offset += written;
        while let Some(first) = &self.first {
            let length = first.len() as u32;
            if self.offset < length {
                break;
            }
            self.offset -= length;
            self.first = self.rest.pop_front();
        }
        if self.rest.is_empty() && self.rest.capacity() > 0 {
            self.rest = VecDeque::new();
        }
    }

    /// Drops every frame that has neither been begun nor lent; what has must be completed, or the peer's framing
    /// breaks.
    pub(super) fn drop_unstarted(&mut self) {
        let keep = (self.lent as usize).max(usize::from(self.offset > 0));
        if keep == 0 {
            self.first = None;
        }
        self.rest.truncate(keep.saturating_sub(1));
        let kept: usize = self.first.iter().chain(&self.rest).map(Bytes::len).sum();
        self.bytes = kept as u32 - self.offset;
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
