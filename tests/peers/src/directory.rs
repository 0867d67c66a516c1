//! A directory that goes when its owner goes.
//!
//! A process that is killed removes nothing, so whoever starts later removes what it left.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};

/// What the names of all of them begin with; the process and a serial number follow.
const PREFIX: &str = "sluice-peers-";

/// A directory of one's own for files of a test; removed when dropped.
#[derive(Debug)]
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new() -> Result<Self> {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        static CLEARED: Once = Once::new();
        CLEARED.call_once(clear);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{serial}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file into it and says where it is.
    pub(crate) fn write(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.0.join(name);
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

/// Removes directories of processes that are gone.
fn clear() {
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| {
            let (process, _) = name.strip_prefix(PREFIX)?.split_once('-')?;
            process.parse::<u32>().ok()
        });
        if process.is_some_and(|process| !Path::new("/proc").join(process.to_string()).exists()) {
            // Another process may be doing the same.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What cannot be removed lies in the directory for what may be lost.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_dead_process_left_is_removed_and_nothing_else() {
        // Process ids end far below.
        let dead = std::env::temp_dir().join(format!("{PREFIX}{}-0", u32::MAX));
        let other = std::env::temp_dir().join(format!("{PREFIX}of-{}", std::process::id()));
        let own = Directory::new().unwrap();
        for path in [&dead, &other] {
            fs::create_dir_all(path).unwrap();
        }
        clear();
        let left = [&dead, &other, &own.path().to_owned()].map(|path| path.exists());
        fs::remove_dir(&other).unwrap();
        assert_eq!(left, [false, true, true]);
    }
}
