//! Files that are read whole or not at all.
//!
//! What is read here is named by a configuration, and whoever names a pipe or a device means
//! something else: reading it would wait, or never end. Another process may write the file
//! meanwhile; then it is read once more.

use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::thread;
use std::time::Duration;

/// How often a file is read that changes meanwhile, and the pause in between.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(20);

/// What changes when a file does. The time of its last change nobody can set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Device and inode.
    pub(crate) identity: (u64, u64),
    length: u64,
    /// When it was written, and when anything of it changed (s, ns).
    written: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// What a file looks like now.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        Ok(fs::metadata(path)?.into())
    }

    /// One of a file of so many bytes.
    #[cfg(test)]
    pub(crate) fn with_length(length: u64) -> Self {
        Self { length, ..Self::default() }
    }
}

impl From<Metadata> for Stamp {
    fn from(found: Metadata) -> Self {
        Self {
            identity: (found.dev(), found.ino()),
            length: found.len(),
            written: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        }
    }
}

/// Reads a file of at most so many bytes. One that goes on changing is
/// [`io::ErrorKind::ResourceBusy`].
pub(crate) fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    for _ in 0..TRIES {
        if let Some(bytes) = read_once(path, most, || ())? {
            return Ok(bytes);
        }
        thread::sleep(PAUSE);
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, "somebody goes on writing it"))
}

/// `None`: it changed meanwhile.
fn read_once(path: &Path, most: u64, meanwhile: impl FnOnce()) -> io::Result<Option<Vec<u8>>> {
    // Without waiting for who writes into a pipe.
    let mut file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let before = Stamp::from(found);
    meanwhile();
    let mut bytes = Vec::new();
    (&mut file).take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        let message = format!("it has more than {most} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    let is_same = Stamp::from(file.metadata()?) == before;
    Ok(is_same.then_some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;
    use std::path::PathBuf;

    fn temporary(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("sluice-{name}-{}", std::process::id()))
    }

    #[test]
    fn what_is_no_regular_file_or_too_long_is_refused_at_once() {
        let pipe = temporary("pipe");
        nix::unistd::mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        for other in [&pipe, Path::new("/dev/zero"), &std::env::temp_dir()] {
            let refused = read(other, 10).unwrap_err().to_string();
            assert_eq!(refused, "it is no regular file", "{}", other.display());
        }
        fs::remove_file(&pipe).unwrap();
        let file = temporary("long");
        for (length, fits) in [(10, true), (11, false)] {
            fs::write(&file, vec![b'x'; length]).unwrap();
            assert_eq!(read(&file, 10).ok().map(|bytes| bytes.len()), fits.then_some(length));
        }
        fs::remove_file(&file).unwrap();
    }

    #[test]
    fn a_change_that_keeps_length_and_time_is_one() {
        let file = temporary("same-time");
        fs::write(&file, "one").unwrap();
        let (before, written) = (Stamp::of(&file).unwrap(), fs::metadata(&file).unwrap());
        // Coarse clocks of a kernel move every few milliseconds.
        thread::sleep(Duration::from_millis(20));
        fs::write(&file, "two").unwrap();
        File::options()
            .write(true)
            .open(&file)
            .unwrap()
            .set_modified(written.modified().unwrap())
            .unwrap();
        let after = Stamp::of(&file).unwrap();
        assert_eq!((after.written, after.length), (before.written, before.length));
        assert_ne!(after, before);
        fs::remove_file(&file).unwrap();
    }

    #[test]
    fn a_file_that_is_written_while_it_is_read_is_read_again() {
        let file = temporary("meanwhile");
        fs::write(&file, "a whole file").unwrap();
        let half = || fs::write(&file, "half").unwrap();
        assert_eq!(read_once(&file, 100, half).unwrap(), None);
        assert_eq!(read(&file, 100).unwrap(), b"half");
        // Another one in its place leaves this one whole.
        let next = temporary("next");
        let replace = || {
            fs::write(&next, "next").unwrap();
            fs::rename(&next, &file).unwrap();
        };
        let read_first = read_once(&file, 100, replace).unwrap();
        assert!(read_first.is_none_or(|first| first == b"half"));
        assert_eq!(read(&file, 100).unwrap(), b"next");
        fs::remove_file(&file).unwrap();
    }
}
