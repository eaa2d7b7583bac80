//! The receive buffers of a shard: the kernel takes one when bytes come, and gets it back when they have been heard.
#![allow(unsafe_code, reason = "memory is shared with the kernel")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

use super::ring::Ring;

/// A buffer's size: most frames fit into one.
pub(super) const BUFFER_BYTES: usize = 4096;
/// How many there are; a power of two. Where they run out, receives are asked for again in the next round.
const BUFFERS: usize = 256;
/// The ring of buffers begins at a page.
const PAGE_BYTES: usize = 4096;
/// The one group of buffers.
pub(super) const GROUP: u16 = 0;

const _: () = assert!(BUFFERS.is_power_of_two() && BUFFERS <= 1 << 15);

/// See the module.
pub(super) struct Buffers {
    /// What the kernel takes buffers from; entries hold address, length and number.
    entries: NonNull<BufRingEntry>,
    memory: NonNull<u8>,
    tail: u16,
    leaked: bool,
}

// SAFETY: the memory belongs to this value alone; a driver moves to its thread before the kernel is given anything to do.
unsafe impl Send for Buffers {}

impl Buffers {
    pub(super) fn new(ring: &mut Ring) -> io::Result<Self> {
        let mut buffers = Self {
            entries: allocate(entries_layout()).cast(),
            memory: allocate(memory_layout()),
            tail: 0,
            leaked: false,
        };
        // SAFETY: the entries are of the size and alignment asked for, and live until the ring is gone: the driver drops
        // the ring first.
        unsafe { ring.register_buffers(buffers.entries.as_ptr() as u64, BUFFERS as u16, GROUP)? };
        for buffer in 0..BUFFERS as u16 {
            buffers.give_back(buffer);
        }
        Ok(buffers)
    }

    /// What the kernel has put into a buffer.
    pub(super) fn bytes(&mut self, buffer: u16, bytes: usize) -> &mut [u8] {
        assert!(usize::from(buffer) < BUFFERS && bytes <= BUFFER_BYTES, "the kernel names a buffer that is none");
        // SAFETY: within the memory; the kernel does not touch a buffer between its completion and its return, and the
        // caller has it borrowed until then. It was zeroed, so that all of it is initialised.
        unsafe {
            let start = self.memory.as_ptr().add(usize::from(buffer) * BUFFER_BYTES);
            std::slice::from_raw_parts_mut(start, bytes)
        }
    }

    /// The kernel may have it again.
    pub(super) fn give_back(&mut self, buffer: u16) {
        assert!(usize::from(buffer) < BUFFERS, "there is no such buffer");
        let place = usize::from(self.tail) & (BUFFERS - 1);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the place is within the entries. The kernel reads entries below the tail only, and the tail is raised
        // after the entry is written. There are as many places as buffers, so that none is written over.
        unsafe {
            let entry = self.entries.as_ptr().add(place);
            (*entry).set_addr(self.memory.as_ptr().add(usize::from(buffer) * BUFFER_BYTES) as u64);
            (*entry).set_len(BUFFER_BYTES as u32);
            (*entry).set_bid(buffer);
            let tail = BufRingEntry::tail(self.entries.as_ptr()).cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }

    /// Leaves the memory to the kernel for good.
    pub(super) fn leak(&mut self) {
        self.leaked = true;
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        if self.leaked {
            return;
        }
        // SAFETY: allocated with these layouts, and the ring that used them is gone.
        unsafe {
            dealloc(self.entries.as_ptr().cast(), entries_layout());
            dealloc(self.memory.as_ptr(), memory_layout());
        }
    }
}

fn entries_layout() -> Layout {
    Layout::from_size_align(BUFFERS * size_of::<BufRingEntry>(), PAGE_BYTES).expect("a valid layout")
}

fn memory_layout() -> Layout {
    Layout::from_size_align(BUFFERS * BUFFER_BYTES, PAGE_BYTES).expect("a valid layout")
}

fn allocate(layout: Layout) -> NonNull<u8> {
    // SAFETY: the layout is not empty.
    NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout))
}
