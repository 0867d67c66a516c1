//! What a daemon keeps in `state_dir` for its successor, and for no other.

use crate::datapath::numbers::Numbers;
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
/// them in order; then sessions that live may be told with the wrong names.
const NUMBERS: &str = "attachments.json";
/// The devices of the attachments. Without the file none of them may be missing.
const INTERFACES: &str = "interfaces.json";

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
        "the `state_dir` {path} cannot be written, so the next start would not know which number \
         an attachment has: {source}"
    )]
    Unusable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Makes a directory, and claims it until what is returned is dropped.
pub fn claim(state_dir: &Path) -> Result<File, KeptError> {
    let unusable = |source| KeptError::Unusable { path: state_dir.to_owned(), source };
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
    /// Reads it; what is not there, or not to be read, is as before the first start.
    pub fn read(state_dir: &Path) -> Self {
        Self {
            counters: read(state_dir, COUNTERS),
            numbers: read(state_dir, NUMBERS),
            interfaces: read(state_dir, INTERFACES),
        }
    }

    /// Writes it.
    pub fn write(&self, state_dir: &Path) {
        write(state_dir, COUNTERS, &self.counters);
        write(state_dir, NUMBERS, &self.numbers);
        write(state_dir, INTERFACES, &self.interfaces);
    }
}

fn read<T: DeserializeOwned + Default>(state_dir: &Path, file: &str) -> T {
    let Ok(text) = fs::read_to_string(state_dir.join(file)) else { return T::default() };
    serde_json::from_str(&text).unwrap_or_else(|error| {
        warn!(%error, file, "what was kept cannot be read; it is begun anew");
        T::default()
    })
}

fn write(state_dir: &Path, file: &str, kept: &impl Serialize) {
    let file = state_dir.join(file);
    let text = serde_json::to_string(kept).unwrap_or_default();
    let temporary = file.with_extension("new");
    let saved = fs::create_dir_all(state_dir)
        .and_then(|()| fs::write(&temporary, text))
        .and_then(|()| fs::rename(&temporary, &file));
    if let Err(error) = saved {
        warn!(%error, file = %file.display(), "what the next start needs cannot be kept");
    }
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
    fn what_is_kept_is_found_and_what_is_damaged_is_begun_anew() {
        let directory = std::env::temp_dir().join(format!("sluice-kept-{}", std::process::id()));
        assert_eq!(Kept::read(&directory), Kept::default(), "nothing is there yet");
        let kept = Kept {
            counters: [(7, 1)].into(),
            numbers: Numbers::try_from(BTreeMap::from([("pods".to_owned(), 3)])).unwrap(),
            interfaces: ["eth1", "eth1.100"].map(str::to_owned).into(),
        };
        kept.write(&directory);
        assert_eq!(Kept::read(&directory), kept);
        fs::write(directory.join(INTERFACES), "{").unwrap();
        assert_eq!(Kept::read(&directory), Kept { interfaces: BTreeSet::new(), ..kept });
        fs::remove_dir_all(&directory).unwrap();
    }
}
