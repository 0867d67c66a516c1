//! Whose tables these are: one process at a time has a directory of pins, and one the last guard of
//! a network namespace.
//!
//! Two daemons over the same tables would publish over each other, and `detach` under a running
//! one would take the pins and leave the programs. So whoever changes something holds a lock on
//! the directory itself: the kernel gives it back when the process ends, however that happens, and
//! no file is left that would have to be cleared away.
//!
//! The last guard has one name, whatever `pin_path` says, so whoever has another directory would
//! change it under a daemon that runs. Its lock is on the namespace itself. Everybody may open that,
//! and could keep a daemon from starting; as could whoever takes its port for metrics.

use std::{
    fs::{self, DirBuilder, File, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

/// Why the tables could not be claimed.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Somebody else has them.
    #[error("another sluice-gateway has these tables (`pin_path` {0}); stop it first")]
    Taken(PathBuf),
    /// Somebody else has the guard.
    #[error(
        "another sluice-gateway, with another `pin_path`, has the last guard of this network \
         namespace; stop it first"
    )]
    Guarded,
    /// The network namespace.
    #[error("the network namespace cannot be claimed: {0}")]
    Namespace(io::Error),
    /// The directory.
    #[error(
        "the directory {path} for pins cannot be used: {source}; is bpffs mounted, and is this run as root?"
    )]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The right to change what is pinned in a directory, or the last guard, until it is dropped.
#[derive(Debug)]
pub struct Claim(#[allow(dead_code, reason = "the lock goes with the descriptor")] File);

impl Claim {
    /// Makes the directory if it is not there, and claims it.
    pub fn of_new(pins: &Path) -> Result<Self, ClaimError> {
        loop {
            // Who may open it may lock it, so that is left to its owner.
            let made = DirBuilder::new().recursive(true).mode(0o700).create(pins);
            made.map_err(|source| ClaimError::Directory { path: pins.to_owned(), source })?;
            // `None`: somebody took it out just now.
            if let Some(claim) = Self::of(pins)? {
                return Ok(claim);
            }
        }
    }

    /// Claims the last guard of the network namespace of the calling thread.
    pub fn of_guard() -> Result<Self, ClaimError> {
        let namespace = File::open("/proc/thread-self/ns/net").map_err(ClaimError::Namespace)?;
        match namespace.try_lock() {
            Ok(()) => Ok(Self(namespace)),
            Err(TryLockError::WouldBlock) => Err(ClaimError::Guarded),
            Err(TryLockError::Error(error)) => Err(ClaimError::Namespace(error)),
        }
    }

    /// Claims a directory; `None`: there is none.
    pub fn of(pins: &Path) -> Result<Option<Self>, ClaimError> {
        let failed = |source| ClaimError::Directory { path: pins.to_owned(), source };
        let directory = match File::open(pins) {
            Ok(directory) => directory,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        match directory.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(ClaimError::Taken(pins.to_owned())),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        // Whoever had it may have removed it; then the lock is on something that has no name.
        let locked = directory.metadata().map_err(failed)?;
        let same = fs::metadata(pins)
            .is_ok_and(|found| (found.dev(), found.ino()) == (locked.dev(), locked.ino()));
        Ok(same.then_some(Self(directory)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::as_root_in_namespace;

    #[test]
    fn the_guard_of_a_network_namespace_belongs_to_one_at_a_time() {
        as_root_in_namespace("claimed guard", || {
            let claim = Claim::of_guard().unwrap();
            let refused = Claim::of_guard().unwrap_err().to_string();
            assert!(refused.contains("with another `pin_path`"), "{refused}");
            // Another namespace has a guard of its own.
            as_root_in_namespace("another claimed guard", || drop(Claim::of_guard().unwrap()));
            drop(claim);
            assert!(Claim::of_guard().is_ok());
        });
    }

    #[test]
    fn tables_belong_to_one_at_a_time_and_are_free_when_that_one_ends() {
        let pins = std::env::temp_dir().join(format!("sluice-claim-{}/pins", std::process::id()));
        assert!(Claim::of(&pins).unwrap().is_none(), "nothing is made where nothing is");
        let claim = Claim::of_new(&pins).unwrap();
        for refused in [Claim::of_new(&pins).map(Some), Claim::of(&pins)] {
            assert_eq!(
                refused.unwrap_err().to_string(),
                format!(
                    "another sluice-gateway has these tables (`pin_path` {}); stop it first",
                    pins.display()
                )
            );
        }
        // A directory that was made anew in its place is another one.
        fs::remove_dir(&pins).unwrap();
        let anew = Claim::of_new(&pins).unwrap();
        drop(claim);
        assert!(Claim::of(&pins).is_err());
        drop(anew);
        assert!(Claim::of(&pins).unwrap().is_some());
        fs::remove_dir_all(pins.parent().unwrap()).unwrap();
    }
}
