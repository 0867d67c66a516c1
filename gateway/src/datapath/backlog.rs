//! How much waits in the ring of events, seen by others than its reader.
//!
//! Whoever has the datapath make very many events at once looks here whether the reader keeps up:
//! what finds no room in the ring is lost.

use aya::maps::{MapData, RingBuf};
use std::{
    io,
    os::fd::AsRawFd,
    ptr::NonNull,
    sync::atomic::{AtomicUsize, Ordering},
};

use super::memory::page_size;

/// The two positions of the ring, how far it was read and how far it was written, each at the
/// beginning of a page of its own.
#[derive(Debug)]
pub struct Backlog(NonNull<AtomicUsize>);

// SAFETY: the memory is shared with the kernel in any case, and is read by atomics only.
unsafe impl Send for Backlog {}
// SAFETY: as above.
unsafe impl Sync for Backlog {}

impl Backlog {
    /// Maps the positions of a ring.
    pub fn new(ring: &RingBuf<MapData>) -> io::Result<Self> {
        // SAFETY: a new mapping, which nothing else refers to; the result is checked.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                2 * page_size(),
                libc::PROT_READ,
                libc::MAP_SHARED,
                ring.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(NonNull::new(start.cast()).expect("mmap gives no null page")))
    }

    /// Bytes that are written and not read yet.
    pub fn bytes(&self) -> usize {
        // SAFETY: the mapping is two pages long and lives as long as `self`; each position is an
        // aligned word of the kernel, which changes it atomically.
        let position = |page: usize| unsafe { self.0.byte_add(page * page_size()).as_ref() };
        // Read first: it is behind the other, which moves on meanwhile.
        let read = position(0).load(Ordering::Acquire);
        position(1).load(Ordering::Acquire).wrapping_sub(read)
    }
}

impl Drop for Backlog {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this length.
        unsafe { libc::munmap(self.0.as_ptr().cast(), 2 * page_size()) };
    }
}
