//! One 64-bit word that several processors change at once.
//!
//! Three bodies behind one interface: `core`'s atomic on the host, the compiler's atomic
//! intrinsics on the BPF target (where `core` offers no read-modify-write), and loom's word
//! when the protocols are model-checked. So what is checked is what runs.
//!
//! Operations that return a value are full barriers on all three. `add` returns nothing: on
//! BPF it is the cheap form, without a barrier.

#[cfg(all(not(target_arch = "bpf"), not(loom)))]
mod body {
    use core::sync::atomic::{AtomicU64, Ordering};

    /// A shared 64-bit word.
    #[derive(Debug, Default)]
    #[repr(transparent)]
    pub struct Word(AtomicU64);

    impl Word {
        /// A word that holds `value`.
        pub const fn new(value: u64) -> Self {
            Self(AtomicU64::new(value))
        }

        /// Reads the word; later reads are not moved before it.
        #[inline(always)]
        pub fn load(&self) -> u64 {
            self.0.load(Ordering::Acquire)
        }

        /// Writes the word; earlier writes are not moved behind it.
        #[inline(always)]
        pub fn store(&self, value: u64) {
            self.0.store(value, Ordering::Release);
        }

        /// Replaces `old` by `new` and says whether `old` was there. A full barrier.
        #[inline(always)]
        pub fn replace(&self, old: u64, new: u64) -> bool {
            self.0.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).is_ok()
        }

        /// Puts `value` in and gives what was there. A full barrier.
        #[inline(always)]
        pub fn swap(&self, value: u64) -> u64 {
            self.0.swap(value, Ordering::SeqCst)
        }

        /// Adds without telling the result.
        #[inline(always)]
        pub fn add(&self, value: u64) {
            self.0.fetch_add(value, Ordering::Relaxed);
        }

        /// Adds and gives what was there before. A full barrier.
        #[inline(always)]
        pub fn fetch_add(&self, value: u64) -> u64 {
            self.0.fetch_add(value, Ordering::SeqCst)
        }

        /// Sets bits and gives what was there before. A full barrier.
        #[inline(always)]
        pub fn fetch_or(&self, bits: u64) -> u64 {
            self.0.fetch_or(bits, Ordering::SeqCst)
        }

        /// Keeps only `bits` and gives what was there before. A full barrier.
        #[inline(always)]
        pub fn fetch_and(&self, bits: u64) -> u64 {
            self.0.fetch_and(bits, Ordering::SeqCst)
        }
    }
}

#[cfg(loom)]
mod body {
    use loom::sync::atomic::{AtomicU64, Ordering, fence};

    /// A shared 64-bit word, as the model checker sees it. The kernel's value-returning atomics
    /// order everything around them; in the language's model that takes fences.
    #[derive(Debug, Default)]
    pub struct Word(AtomicU64);

    fn fenced<V>(operation: impl FnOnce() -> V) -> V {
        fence(Ordering::SeqCst);
        let value = operation();
        fence(Ordering::SeqCst);
        value
    }

    #[allow(missing_docs, reason = "the same interface as the word above")]
    impl Word {
        pub fn new(value: u64) -> Self {
            Self(AtomicU64::new(value))
        }
        pub fn load(&self) -> u64 {
            self.0.load(Ordering::Acquire)
        }
        pub fn store(&self, value: u64) {
            self.0.store(value, Ordering::Release);
        }
        pub fn replace(&self, old: u64, new: u64) -> bool {
            fenced(|| self.0.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).is_ok())
        }
        pub fn swap(&self, value: u64) -> u64 {
            fenced(|| self.0.swap(value, Ordering::SeqCst))
        }
        pub fn add(&self, value: u64) {
            self.0.fetch_add(value, Ordering::Relaxed);
        }
        pub fn fetch_add(&self, value: u64) -> u64 {
            fenced(|| self.0.fetch_add(value, Ordering::SeqCst))
        }
        pub fn fetch_or(&self, bits: u64) -> u64 {
            fenced(|| self.0.fetch_or(bits, Ordering::SeqCst))
        }
        pub fn fetch_and(&self, bits: u64) -> u64 {
            fenced(|| self.0.fetch_and(bits, Ordering::SeqCst))
        }
    }
}

#[cfg(all(target_arch = "bpf", not(loom)))]
mod body {
    use core::{
        cell::UnsafeCell,
        intrinsics::{
            AtomicOrdering, atomic_and, atomic_cxchg, atomic_or, atomic_xadd, atomic_xchg,
        },
        ptr,
    };

    /// A shared 64-bit word in a BPF map.
    #[repr(transparent)]
    pub struct Word(UnsafeCell<u64>);

    // SAFETY: every access below is a single aligned 64-bit load, store or atomic
    // instruction, which BPF executes indivisibly.
    unsafe impl Sync for Word {}

    #[allow(missing_docs, reason = "the same interface as the word above")]
    impl Word {
        #[inline(always)]
        pub fn load(&self) -> u64 {
            // SAFETY: the reference proves that the word is mapped and aligned; the volatile
            // access keeps the compiler from reading twice.
            unsafe { ptr::read_volatile(self.0.get()) }
        }
        #[inline(always)]
        pub fn store(&self, value: u64) {
            // SAFETY: as for `load`; volatile keeps it behind the writes before it.
            unsafe { ptr::write_volatile(self.0.get(), value) }
        }
        #[inline(always)]
        pub fn replace(&self, old: u64, new: u64) -> bool {
            // SAFETY: as for `load`.
            unsafe {
                atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
                    self.0.get(),
                    old,
                    new,
                )
                .1
            }
        }
        #[inline(always)]
        pub fn swap(&self, value: u64) -> u64 {
            // SAFETY: as for `load`.
            unsafe { atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(self.0.get(), value) }
        }
        #[inline(always)]
        pub fn add(&self, value: u64) {
            // SAFETY: as for `load`.
            unsafe {
                atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(self.0.get(), value);
            }
        }
        #[inline(always)]
        pub fn fetch_add(&self, value: u64) -> u64 {
            // SAFETY: as for `load`.
            unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(self.0.get(), value) }
        }
        #[inline(always)]
        pub fn fetch_or(&self, bits: u64) -> u64 {
            // SAFETY: as for `load`.
            unsafe { atomic_or::<u64, u64, { AtomicOrdering::SeqCst }>(self.0.get(), bits) }
        }
        #[inline(always)]
        pub fn fetch_and(&self, bits: u64) -> u64 {
            // SAFETY: as for `load`.
            unsafe { atomic_and::<u64, u64, { AtomicOrdering::SeqCst }>(self.0.get(), bits) }
        }
    }
}

pub use body::Word;
