//! Maps that live in both worlds: an array map, mapped into this process.

use aya::maps::MapData;
use std::{
    io,
    marker::PhantomData,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd},
    ptr::{self, NonNull},
    slice,
};

/// The elements of an array map, shared with the kernel.
///
/// `T` is a layout of `xdp-abi` whose fields the datapath changes through [`xdp_abi::word::Word`]
/// only, or plain data that only user space writes.
#[derive(Debug)]
pub struct Mapped<T> {
    start: NonNull<T>,
    elements: usize,
    bytes: usize,
    owns: PhantomData<T>,
}

// SAFETY: the memory is shared with the kernel in any case; every access goes through atomics or
// copies plain data.
unsafe impl<T> Send for Mapped<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Mapped<T> {}

impl<T> Mapped<T> {
    /// Maps an array map of `elements` elements.
    pub fn new(map: &MapData, elements: u32) -> io::Result<Self> {
        // The kernel rounds an element up to eight bytes; the layouts are multiples of that.
        assert_eq!(size_of::<T>() % 8, 0, "an element of a mapped array is whole words");
        let elements = elements as usize;
        let bytes = (elements * size_of::<T>()).next_multiple_of(page_size());
        // SAFETY: a new mapping, which nothing else refers to; the result is checked.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.fd().as_fd().as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).expect("mmap gives no null page");
        Ok(Self { start, elements, bytes, owns: PhantomData })
    }

    /// An element, or nothing past the end.
    pub fn get(&self, index: u32) -> Option<&T> {
        self.all().get(index as usize)
    }

    /// All elements.
    pub fn all(&self) -> &[T] {
        // SAFETY: the mapping is as long as `elements` elements and lives as long as `self`.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.elements) }
    }
}

impl<T: Copy> Mapped<T> {
    /// Writes a plain element. The caller is the only writer of this map, and whoever reads it
    /// is told of it by something that is published afterwards.
    pub fn set(&self, index: u32, value: &T) {
        // SAFETY: the pointer is to an element, and `value` is not in this mapping. Not
        // volatile: an element may be far too big for one access, and what reads it is told
        // by a later atomic store.
        unsafe { ptr::copy_nonoverlapping(value, self.as_ptr(index), 1) }
    }

    /// Reads a plain element. One that is being written may be read half old, half new.
    pub fn read(&self, index: u32) -> T {
        let mut value = MaybeUninit::uninit();
        // SAFETY: the pointer is to an element; any bytes of a plain element are a value.
        unsafe {
            ptr::copy_nonoverlapping(self.as_ptr(index), value.as_mut_ptr(), 1);
            value.assume_init()
        }
    }

    /// A pointer to an element; the same rules as for `set`.
    pub fn as_ptr(&self, index: u32) -> *mut T {
        assert!((index as usize) < self.elements, "element {index} of {}", self.elements);
        // SAFETY: in bounds by the line above.
        unsafe { self.start.as_ptr().add(index as usize) }
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this length.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

pub(super) fn page_size() -> usize {
    // SAFETY: no preconditions.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).expect("a page has a positive size")
}
