//! The configuration file: when it has changed, and is whole.
//!
//! Half a file may well be a configuration, with half of the rules. Whoever writes a file in place
//! is waited for: until nobody has it open for writing, as far as the kernel tells (of a file from
//! another machine it does not), and it looks the same twice.

use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tracing::warn;

use crate::whole;

/// After so many looks it is said that somebody still writes: 10 s.
const LONG: u32 = 20;

/// What changes when a file does; nothing, if there is none.
type Stamp = Option<whole::Stamp>;

/// A file that is looked at now and then.
pub(crate) struct Watched {
    path: PathBuf,
    writers: Option<Writers>,
    changes: Changes,
}

impl Watched {
    /// Begins before the file is read: a change from now on is one.
    pub(crate) fn new(path: PathBuf) -> Self {
        let writers = Writers::new().inspect_err(|error| {
            warn!(%error, "whether somebody writes the configuration file is not known");
        });
        let mut watched = Self { path, writers: writers.ok(), changes: Changes::default() };
        watched.is_about_to_be_read();
        watched
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whatever it looks like now is what is read next.
    pub(crate) fn is_about_to_be_read(&mut self) {
        let (stamp, _) = self.look();
        self.changes = Changes { read: stamp, last: stamp, written: 0 };
    }

    /// Looks at it: whether it changed since it was read, and is whole. If so, it is to be read.
    pub(crate) fn is_due(&mut self) -> bool {
        let (stamp, is_written) = self.look();
        let is_due = self.changes.look(stamp, is_written);
        if self.changes.written == LONG {
            let path = self.path.display();
            warn!(%path, "still open for writing; it is read when it is closed, or on SIGHUP");
        }
        is_due
    }

    fn look(&mut self) -> (Stamp, bool) {
        // In this order: what is written after the second look is told by the next one.
        let is_written = self.writers.as_mut().is_some_and(|writers| writers.are_there(&self.path));
        (whole::Stamp::of(&self.path).ok(), is_written)
    }
}

/// What was seen of the file so far.
#[derive(Debug, Default)]
struct Changes {
    /// Before it was read last.
    read: Stamp,
    /// At the last look.
    last: Stamp,
    /// For how many looks somebody has been writing.
    written: u32,
}

impl Changes {
    /// Whether it is due; then this is what it looked like before it is read.
    fn look(&mut self, now: Stamp, is_written: bool) -> bool {
        let rests = self.last == now && !is_written;
        self.last = now;
        self.written = if is_written { self.written.saturating_add(1) } else { 0 };
        let is_due = rests && now != self.read;
        if is_due {
            self.read = now;
        }
        is_due
    }
}

/// What the kernel tells of those who write.
struct Writers {
    notices: Inotify,
    /// The file that is watched, by its number: another one may come to stand in its place.
    watch: Option<((u64, u64), WatchDescriptor)>,
    is_written: bool,
}

impl Writers {
    fn new() -> nix::Result<Self> {
        let notices = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        Ok(Self { notices, watch: None, is_written: false })
    }

    /// Whether somebody has written and not closed the file.
    fn are_there(&mut self, path: &Path) -> bool {
        while let Ok(notices) = self.notices.read_events() {
            for notice in notices {
                if self.watch.is_none_or(|(_, watch)| watch != notice.wd) {
                    continue;
                }
                self.is_written = notice.mask.contains(AddWatchFlags::IN_MODIFY);
                if notice.mask.contains(AddWatchFlags::IN_IGNORED) {
                    self.watch = None; // the file is gone, and its number may come again
                }
            }
        }
        let file = whole::Stamp::of(path).map(|stamp| stamp.identity).ok();
        if self.watch.map(|(watched, _)| watched) != file {
            if let Some((_, old)) = self.watch.take() {
                // With its file it may be gone already.
                let _ = self.notices.rm_watch(old);
            }
            let kinds = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CLOSE_WRITE;
            let watch = |file| Some((file, self.notices.add_watch(path, kinds).ok()?));
            self.watch = file.and_then(watch);
            self.is_written = false;
        }
        self.is_written
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::io::Write as _;
    use std::time::Duration;

    fn looks_like(length: u64) -> Stamp {
        Some(whole::Stamp::with_length(length))
    }

    #[test]
    fn a_change_is_due_when_it_rests_and_once() {
        let mut changes = Changes { read: looks_like(1), last: looks_like(1), written: 0 };
        for (now, is_written, expected) in [
            (looks_like(1), false, false), // as it was read
            (looks_like(2), false, false), // changed just now
            (looks_like(3), false, false), // and once more
            (looks_like(3), false, true),
            (looks_like(3), false, false), // it has been read
            (looks_like(4), true, false),
            (looks_like(4), true, false), // its writer thinks
            (looks_like(5), false, false),
            (looks_like(5), false, true),
            (looks_like(6), false, false),
            (looks_like(5), false, false), // taken back
            (looks_like(5), false, false),
            (None, false, false), // another one comes in its place
            (looks_like(7), false, false),
            (looks_like(7), false, true),
            (None, false, false),
            (None, false, true), // gone, and that is said
        ] {
            assert_eq!(changes.look(now, is_written), expected, "{now:?} {is_written}");
        }
    }

    /// A file that goes away with the test.
    struct Temporary(PathBuf);

    impl Temporary {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("sluice-{name}-{}", std::process::id()));
            fs::write(&path, "first").unwrap();
            Self(path)
        }
    }

    impl Drop for Temporary {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    #[test]
    fn whoever_writes_in_place_is_waited_for() {
        let file = Temporary::new("watched-in-place");
        let mut watched = Watched::new(file.0.clone());
        let mut writer = File::create(&file.0).unwrap();
        writer.write_all(b"half").unwrap();
        for look in 0..5 {
            assert!(!watched.is_due(), "look {look}");
        }
        writer.write_all(b" and half").unwrap();
        assert!(!watched.is_due());
        drop(writer);
        // The first look may be the one that sees it whole, the second that it rests.
        assert!([watched.is_due(), watched.is_due()].contains(&true));
        assert!(!watched.is_due());
    }

    #[test]
    fn a_file_in_place_of_another_is_watched_in_turn() {
        let file = Temporary::new("watched-replaced");
        let mut watched = Watched::new(file.0.clone());
        let next = Temporary::new("watched-next");
        let mut writer = File::create(&next.0).unwrap();
        writer.write_all(b"a whole file").unwrap();
        fs::rename(&next.0, &file.0).unwrap();
        assert_eq!([watched.is_due(), watched.is_due()], [false, true]);
        // Who still has it open goes on.
        std::thread::sleep(Duration::from_millis(20));
        writer.write_all(b" and more").unwrap();
        assert_eq!([watched.is_due(), watched.is_due(), watched.is_due()], [false; 3]);
        drop(writer);
        assert!([watched.is_due(), watched.is_due()].contains(&true));
    }

    #[test]
    fn what_is_read_at_once_is_not_due_again() {
        let file = Temporary::new("watched-at-once");
        let mut watched = Watched::new(file.0.clone());
        fs::write(&file.0, "another").unwrap();
        watched.is_about_to_be_read();
        assert_eq!([watched.is_due(), watched.is_due()], [false; 2]);
    }
}
