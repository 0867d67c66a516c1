//! What a daemon keeps in `state_dir` for its successor, and for no other.

use crate::datapath::numbers::Numbers;
use controller::Recollection;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};
use tracing::warn;

/// Which counter each rule has. Without the file counts start anew under the right names:
/// nothing else depends on it.
const COUNTERS: &str = "rule-counters.json";
/// Which number each attachment has. Without the file they are numbered as the configuration has
/// them in order, so it may be missing only where no session lives.
const NUMBERS: &str = "attachments.json";
/// The devices of the attachments. Without the file none of them may be missing.
const INTERFACES: &str = "interfaces.json";

/// Who was discovered. Without the file nobody is known until clusters have answered.
const DISCOVERED: &str = "discovered.json";

/// What is lost with [`NUMBERS`].
const NUMBER_OF_EACH: &str = "which number an attachment has";

/// Held by the daemon whose directory it is.
const LOCK: &str = "lock";

/// Why nothing can be kept.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// Another daemon's.
    #[error("another sluice-gateway has the `state_dir` {0}; stop it first, or name another one")]
    Taken(PathBuf),
    /// Sessions hold attachments by number, and the next start would give them other ones.
    #[error(
        "the `state_dir` {path} cannot be written, so the next start would not know {what}: {source}"
    )]
    Unusable {
        /// Which.
        path: PathBuf,
        /// What is lost.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Without it sessions would be told with the wrong names.
    #[error(
        "{path}, which says which number each attachment has, cannot be read: {source}; restore it, \
         or end all sessions with `sluice-gateway detach`, remove it and start again"
    )]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Makes a directory, and claims it until what is returned is dropped.
pub fn claim(state_dir: &Path) -> Result<File, KeptError> {
    let unusable = |source| unusable(state_dir, NUMBER_OF_EACH, source);
    fs::create_dir_all(state_dir).map_err(unusable)?;
    // Who may open it may lock it, so that is left to its owner.
    let mut options = File::options();
    let options = options.create(true).write(true).truncate(false).mode(0o600);
    let lock = options.open(state_dir.join(LOCK)).map_err(unusable)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(KeptError::Taken(state_dir.to_owned())),
        Err(TryLockError::Error(source)) => Err(unusable(source)),
    }
}

/// What the next start has to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Rule id to counter.
    pub counters: BTreeMap<u32, u32>,
    /// Attachment to number.
    pub numbers: Numbers,
    /// The devices that were in force.
    pub interfaces: BTreeSet<String>,
}

impl Kept {
    /// Reads it; what is not there is as before the first start.
    ///
    /// # Errors
    /// The numbers of attachments are there and cannot be read. Of anything else that is warned.
    pub fn read(state_dir: &Path) -> Result<Self, KeptError> {
        let unreadable = |source| KeptError::Unreadable { path: state_dir.join(NUMBERS), source };
        Ok(Self {
            counters: read_or_begin_anew(state_dir, COUNTERS),
            numbers: read(state_dir, NUMBERS).map_err(unreadable)?,
            interfaces: interfaces(state_dir),
        })
    }

    /// Writes it.
    ///
    /// # Errors
    /// It cannot be written; what was there before is.
    pub fn write(&self, state_dir: &Path) -> Result<(), KeptError> {
        write_numbers(state_dir, &self.numbers)?;
        write(state_dir, COUNTERS, &self.counters, "which counter a rule has")?;
        write(state_dir, INTERFACES, &self.interfaces, "which interfaces there were")
    }
}

/// Reads the devices that were in force alone.
pub fn interfaces(state_dir: &Path) -> BTreeSet<String> {
    read_or_begin_anew(state_dir, INTERFACES)
}

/// Reads who was discovered.
pub fn discovered(state_dir: &Path) -> Recollection {
    read_or_begin_anew(state_dir, DISCOVERED)
}

/// Writes who was discovered.
///
/// # Errors
/// It cannot be written; what was there before is.
pub fn write_discovered(state_dir: &Path, discovered: &Recollection) -> Result<(), KeptError> {
    write(state_dir, DISCOVERED, discovered, "who was discovered")
}

/// Writes the numbers of attachments alone, before a session holds one of them.
///
/// # Errors
/// They cannot be written; what was there before is.
pub fn write_numbers(state_dir: &Path, numbers: &Numbers) -> Result<(), KeptError> {
    write(state_dir, NUMBERS, numbers, NUMBER_OF_EACH)
}

fn unusable(state_dir: &Path, what: &'static str, source: io::Error) -> KeptError {
    KeptError::Unusable { path: state_dir.to_owned(), what, source }
}

fn read<T: DeserializeOwned + Default>(state_dir: &Path, file: &str) -> io::Result<T> {
    match fs::read_to_string(state_dir.join(file)) {
        Ok(text) => Ok(serde_json::from_str(&text)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(T::default()),
        Err(error) => Err(error),
    }
}

fn read_or_begin_anew<T: DeserializeOwned + Default>(state_dir: &Path, file: &str) -> T {
    read(state_dir, file).unwrap_or_else(|error| {
        warn!(%error, file, "what was kept cannot be read; it is begun anew");
        T::default()
    })
}

fn write(
    state_dir: &Path,
    file: &str,
    kept: &impl Serialize,
    what: &'static str,
) -> Result<(), KeptError> {
    let file = state_dir.join(file);
    let temporary = file.with_extension("new");
    let replace = || {
        let text = serde_json::to_string(kept)?;
        // What is there already wants no room on a disk that is full.
        if fs::read_to_string(&file).is_ok_and(|kept| kept == text) {
            return Ok(());
        }
        fs::create_dir_all(state_dir)?;
        fs::write(&temporary, text)?;
        fs::rename(&temporary, &file)
    };
    replace().map_err(|source: io::Error| {
        // What there is of it may be half.
        let _ = fs::remove_file(&temporary);
        unusable(state_dir, what, source)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_one_daemon_s_and_can_be_written() {
        let directory = std::env::temp_dir().join(format!("sluice-state-{}", std::process::id()));
        let claim_it = || claim(&directory).map_err(|error| error.to_string());
        let claimed = claim_it().unwrap();
        let refused = claim_it().unwrap_err();
        assert!(refused.starts_with("another sluice-gateway has the `state_dir` /"), "{refused}");
        drop(claimed);
        assert!(claim_it().is_ok());
        fs::remove_dir_all(&directory).unwrap();
        fs::write(&directory, "").unwrap();
        let refused = claim_it().unwrap_err();
        assert!(refused.contains("cannot be written, so the next start"), "{refused}");
        fs::remove_file(&directory).unwrap();
    }

    #[test]
    fn what_is_kept_is_found_and_what_is_damaged_is_begun_anew_but_for_numbers() {
        let directory = std::env::temp_dir().join(format!("sluice-kept-{}", std::process::id()));
        let read = || Kept::read(&directory).map_err(|error| error.to_string());
        assert_eq!(read(), Ok(Kept::default()), "nothing is there yet");
        let kept = Kept {
            counters: [(7, 1)].into(),
            numbers: Numbers::try_from(BTreeMap::from([("pods".to_owned(), 3)])).unwrap(),
            interfaces: ["eth1", "eth1.100"].map(str::to_owned).into(),
        };
        kept.write(&directory).unwrap();
        assert_eq!(read(), Ok(kept.clone()));
        let full = directory.join(COUNTERS).with_extension("new");
        std::os::unix::fs::symlink("/dev/full", &full).unwrap();
        assert!(kept.write(&directory).is_ok(), "all of it is there");
        let more = Kept { counters: [(7, 2)].into(), ..kept.clone() };
        let refused = more.write(&directory).unwrap_err().to_string();
        assert!(refused.contains("know which counter a rule has: No space left"), "{refused}");
        assert_eq!(read(), Ok(kept.clone()), "what was there is");
        fs::write(directory.join(INTERFACES), "{").unwrap();
        assert_eq!(read(), Ok(Kept { interfaces: BTreeSet::new(), ..kept }));
        let numbers = directory.join(NUMBERS);
        for damaged in ["", "{", r#"{"pods":0}"#, r#"{"pods":1,"office":1}"#] {
            fs::write(&numbers, damaged).unwrap();
            let refused = read().unwrap_err();
            let said = format!("{}, which says which number", numbers.display());
            assert!(refused.starts_with(&said), "{damaged}: {refused}");
        }
        fs::remove_file(&numbers).unwrap();
        fs::create_dir(&numbers).unwrap();
        assert!(read().unwrap_err().contains("cannot be read: Is a directory"));
        let refused = Kept::default().write(&directory).unwrap_err().to_string();
        assert!(refused.contains("cannot be written, so the next start"), "{refused}");
        let temporary = numbers.with_extension("new");
        assert!(!temporary.exists(), "what is not whole is left");
        // As on a disk that is full.
        std::os::unix::fs::symlink("/dev/full", &temporary).unwrap();
        let refused = Kept::default().write(&directory).unwrap_err().to_string();
        assert!(refused.contains("No space left on device"), "{refused}");
        fs::remove_dir_all(&directory).unwrap();
    }
}
