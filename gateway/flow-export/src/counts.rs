//! How many records there were, and what became of them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// Counters that the sink raises and metrics read: generated = written + dropped + waiting; and
/// whether all is well.
#[derive(Debug, Default)]
pub struct Counts {
    pub(crate) generated: AtomicU64,
    pub(crate) written: AtomicU64,
    pub(crate) dropped: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) rotations: AtomicU64,
    fault: Mutex<Option<String>>,
}

/// A reading of [`Counts`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Records made.
    pub generated: u64,
    /// Records that were handed to the system whole.
    pub written: u64,
    /// Records that found no room.
    pub dropped: u64,
    /// Attempts to write, rotate or open that failed.
    pub errors: u64,
    /// Files that were put aside.
    pub rotations: u64,
}

impl Counts {
    /// The counters now. Read while records are made, they may differ by those on their way.
    pub fn read(&self) -> Counted {
        Counted {
            generated: self.generated.load(Relaxed),
            written: self.written.load(Relaxed),
            dropped: self.dropped.load(Relaxed),
            errors: self.errors.load(Relaxed),
            rotations: self.rotations.load(Relaxed),
        }
    }

    /// Why records are not written as they should be; `None`: they are.
    pub fn fault(&self) -> Option<String> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// An attempt failed.
    pub(crate) fn fail(&self, why: &str) {
        add(&self.errors, 1);
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(why.to_owned());
    }

    /// Everything that waited is written.
    pub(crate) fn mend(&self) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Raises one of them.
pub(crate) fn add(counter: &AtomicU64, number: u64) {
    counter.fetch_add(number, Relaxed);
}
