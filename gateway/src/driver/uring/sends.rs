//! What is being sent: frames that the kernel reads from until their send is complete.
#![allow(unsafe_code, reason = "the kernel is given addresses of frames")]

use bytes::Bytes;
use slab::Slab;

use crate::driver::{Frames, SEND_FRAMES_MAX};

/// Lists that are kept for later sends of several frames.
const LISTS_KEPT: usize = 64;

/// The sends under way of a shard.
#[derive(Default)]
pub(super) struct Sends {
    under_way: Slab<Send>,
    #[allow(clippy::vec_box, reason = "a list keeps its address while the kernel reads it")]
    lists: Vec<Box<List>>,
}

struct Send {
    /// Never touched while the kernel reads from them. The bytes do not move when this does.
    frames: Frames,
    offset: usize,
    /// For several frames.
    list: Option<Box<List>>,
}

/// What `sendmsg` wants, at an address that stays.
struct List {
    header: libc::msghdr,
    parts: [libc::iovec; SEND_FRAMES_MAX],
}

/// What is handed to the kernel. Only this module makes one.
pub(super) enum Outgoing {
    One { address: *const u8, bytes: u32 },
    Several { header: *const libc::msghdr, bytes: u32 },
}

impl Outgoing {
    /// How many the kernel is to write.
    pub(super) fn bytes(&self) -> u32 {
        match self {
            Self::One { bytes, .. } | Self::Several { bytes, .. } => *bytes,
        }
    }
}

// SAFETY: its addresses lead to frames and to itself, and no other thread knows them.
unsafe impl std::marker::Send for List {}

impl Sends {
    pub(super) fn put(&mut self, frames: Frames, offset: usize) -> u32 {
        let list = (frames.len() > 1).then(|| self.lists.pop().unwrap_or_else(List::new));
        self.under_way.insert(Send { frames, offset, list }) as u32
    }

    /// What the kernel is to do. Good until [`finish`](Self::finish).
    pub(super) fn outgoing(&mut self, send: u32) -> Outgoing {
        let Send { frames, offset, list } = &mut self.under_way[send as usize];
        match list {
            Some(list) => list.fill(frames, *offset),
            None => {
                let rest: &[u8] = frames.first().map_or(&[], |frame| &frame[*offset..]);
                Outgoing::One { address: rest.as_ptr(), bytes: rest.len() as u32 }
            }
        }
    }

    /// The send is complete: nobody reads from its frames any more.
    pub(super) fn finish(&mut self, send: u32) {
        let Send { list, .. } = self.under_way.remove(send as usize);
        if let Some(list) = list
            && self.lists.len() < LISTS_KEPT
        {
            self.lists.push(list);
        }
    }

    /// Leaves what is under way to the kernel for good.
    pub(super) fn leak(&mut self) {
        std::mem::forget(std::mem::take(&mut self.under_way));
    }
}

impl List {
    fn new() -> Box<Self> {
        // SAFETY: plain numbers and pointers, for which zeros are valid.
        Box::new(unsafe { std::mem::zeroed() })
    }

    fn fill(&mut self, frames: &[Bytes], offset: usize) -> Outgoing {
        let count = frames.len().min(SEND_FRAMES_MAX);
        let mut bytes = 0;
        for (index, (part, frame)) in self.parts.iter_mut().zip(frames).enumerate() {
            let rest = if index == 0 { &frame[offset..] } else { frame };
            *part = libc::iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: rest.len() };
            bytes += rest.len();
        }
        self.header.msg_iov = self.parts.as_mut_ptr();
        self.header.msg_iovlen = count as _;
        Outgoing::Several { header: &raw const self.header, bytes: bytes as u32 }
    }
}
