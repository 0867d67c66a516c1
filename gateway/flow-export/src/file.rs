//! A file that is put aside when it has grown.
//!
//! `flows.jsonl` becomes `flows.jsonl.1`, that one `.2`, and so on to `.keep`, the oldest of which
//! goes. Files change names between two lines and never within one, and only once all lines meant
//! for the old file are in it. What cannot be renamed goes on growing: an operator loses disk
//! space before records. A file that somebody else moved away is made anew. Of a symbolic link the
//! file that it leads to is put aside. One process at a time writes a file: two would put aside what
//! the other writes.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::Sink;
use crate::counts::{Counts, add};
use crate::outbox::{ENOUGH, Outbox};

/// When a file is put aside, and how many are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// A file does not grow beyond this many bytes, unless one line does.
    pub bytes: u64,
    /// Files beside the current one.
    pub keep: u32,
}

/// Lines into a file.
#[derive(Debug)]
pub struct FileSink {
    path: PathBuf,
    rotation: Rotation,
    open: Option<Open>,
    outbox: Outbox,
    /// Something went wrong since the last flush: lines wait for the next one, instead of one
    /// failure a line.
    failing: bool,
    /// The file is longer than it may be, because it could not be put aside.
    overdue: bool,
}

#[derive(Debug)]
struct Open {
    file: File,
    size: u64,
    /// It is a file, and not a pipe or a device, which keeps its name and may be anybody's.
    grows: bool,
    /// Device and inode.
    identity: (u64, u64),
}

impl Open {
    fn new(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.create(true).append(true).read(true).mode(0o640);
        let mut file = options.open(path)?;
        let metadata = file.metadata()?;
        let identity = (metadata.dev(), metadata.ino());
        if !metadata.is_file() {
            return Ok(Self { file, size: 0, grows: false, identity });
        }
        file.try_lock().map_err(|refused| match refused {
            TryLockError::Error(error) => error,
            TryLockError::WouldBlock => {
                io::Error::new(io::ErrorKind::ResourceBusy, "another process writes it")
            }
        })?;
        let mut size = metadata.len();
        // A crash or a full disk may have left half a line: it stays one line.
        if size > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
                size += 1;
            }
        }
        Ok(Self { file, size, grows: true, identity })
    }

    fn is_still_at(&self, path: &Path) -> bool {
        fs::metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == self.identity)
    }
}

/// Counts what went out, so that the size need not be asked for.
struct Measured<'a>(&'a mut Open);

impl Write for Measured<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.0.file.write(bytes)?;
        self.0.size += length as u64;
        Ok(length)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.0.file.flush()
    }
}

impl FileSink {
    /// Opens or makes the file; its directory must exist.
    ///
    /// # Errors
    /// The file cannot be opened. Later failures are counted instead.
    pub fn open(path: impl Into<PathBuf>, rotation: Rotation) -> io::Result<Self> {
        let path = path.into();
        let open = Some(Open::new(&path)?);
        Ok(Self { path, rotation, open, outbox: Outbox::default(), failing: false, overdue: false })
    }

    /// Writes what waits, into as many files as it takes.
    fn send(&mut self, counts: &Counts) -> io::Result<()> {
        loop {
            let open = match &mut self.open {
                Some(open) => open,
                closed => closed.insert(Open::new(&self.path)?),
            };
            let room = match self.rotation.bytes.saturating_sub(open.size) {
                _ if !open.grows => u64::MAX,
                // A line that is longer than a file may be gets one of its own.
                room if open.size == 0 => room.max(self.outbox.next_line() as u64),
                room => room,
            };
            self.outbox.send_into(&mut Measured(open), room, counts)?;
            if self.outbox.waiting() == 0 {
                return Ok(());
            }
            if let Err(stuck) = self.rotate() {
                return match &mut self.open {
                    Some(open) => self.outbox.send(&mut Measured(open), counts).and(Err(stuck)),
                    None => Err(stuck),
                };
            }
            add(&counts.rotations, 1);
        }
    }

    /// What is wrong, with the name of what it is wrong with.
    fn fault(&self, error: &io::Error) -> String {
        format!("{}: {error}", self.path.display())
    }

    fn has_moved(&self) -> bool {
        self.open.as_ref().is_some_and(|open| !open.is_still_at(&self.path))
    }

    /// What goes into a file that has no name any more is lost, and counted as written.
    fn leave_moved(&mut self) {
        if self.outbox.is_between_lines() && self.has_moved() {
            self.open = None;
            self.overdue = false;
        }
    }

    /// Everything meant for the file is in it: it may change its name, and a new one takes its place.
    fn rotate(&mut self) -> io::Result<()> {
        let aside = self.put_aside();
        self.overdue = aside.is_err();
        aside?;
        self.open = None;
        self.open = Some(Open::new(&self.path)?);
        Ok(())
    }

    fn put_aside(&self) -> io::Result<()> {
        let path = fs::canonicalize(&self.path)?;
        let name = |number: u32| {
            let mut name = path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        if self.rotation.keep == 0 {
            fs::remove_file(&path)?;
        } else {
            for number in (1..self.rotation.keep).rev() {
                match fs::rename(name(number), name(number + 1)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            fs::rename(&path, name(1))?;
        }
        Ok(())
    }
}

impl Sink for FileSink {
    fn line(&mut self, line: &[u8], counts: &Counts) {
        if !self.failing
            && self.outbox.waiting() >= ENOUGH
            && let Err(error) = self.send(counts)
        {
            counts.fail(&self.fault(&error));
            self.failing = true;
        }
        self.outbox.push(line, counts);
    }

    fn write(&mut self, counts: &Counts) {
        if self.failing || self.outbox.waiting() == 0 {
            return;
        }
        self.leave_moved();
        if let Err(error) = self.send(counts) {
            counts.fail(&self.fault(&error));
            self.failing = true;
        }
    }

    fn flush(&mut self, counts: &Counts) {
        self.failing = false;
        self.leave_moved();
        if let Err(error) = self.send(counts) {
            counts.fail(&self.fault(&error));
            self.failing = true;
            // Whoever removed the file of a full disk gets its room back when it is closed here.
            if self.has_moved() {
                self.outbox.give_up_begun(counts);
                self.open = None;
            }
        } else if !self.overdue {
            counts.mend();
        }
    }

    fn close(&mut self, counts: &Counts) {
        self.flush(counts);
        self.outbox.abandon(counts);
    }
}
