//! Standard output, or whatever else is read by somebody.
//!
//! Who reads may stop at any time, and go on or not. Records wait meanwhile as they do for a disk, and
//! the thread that makes them does not: it has a ring to empty, and an end.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::Sink;
use crate::counts::Counts;
use crate::outbox::{ENOUGH, Outbox};

/// Lines to anything that bytes can be written to.
#[derive(Debug)]
pub struct StreamSink<W> {
    to: W,
    outbox: Outbox,
    /// The last write did not go through: lines wait for the next flush, instead of one attempt a
    /// line.
    failing: bool,
    /// The reader took too little of the last flush. A moment of that is no fault.
    stalled: bool,
}

impl<W: Write + Send> StreamSink<W> {
    /// Writes to `to`.
    pub fn new(to: W) -> Self {
        Self { to, outbox: Outbox::default(), failing: false, stalled: false }
    }

    fn send(&mut self, counts: &Counts) -> io::Result<()> {
        let sent = self.outbox.send(&mut self.to, counts).and_then(|()| self.to.flush());
        self.failing = sent.is_err();
        sent
    }
}

fn is_stall(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

impl<W: Write + Send> Sink for StreamSink<W> {
    fn line(&mut self, line: &[u8], counts: &Counts) {
        self.outbox.push(line, counts);
        if self.outbox.waiting() >= ENOUGH {
            self.write(counts);
        }
    }

    fn write(&mut self, counts: &Counts) {
        if !self.failing
            && self.outbox.waiting() > 0
            && let Err(error) = self.send(counts)
            && !is_stall(&error)
        {
            counts.fail(&error.to_string());
        }
    }

    fn flush(&mut self, counts: &Counts) {
        let sent = self.send(counts);
        let was_stalled = std::mem::replace(&mut self.stalled, sent.as_ref().is_err_and(is_stall));
        match sent {
            Ok(()) => counts.mend(),
            Err(error) if is_stall(&error) && !was_stalled => {}
            Err(error) if is_stall(&error) => counts.fail("whoever reads them does not keep up"),
            Err(error) => counts.fail(&error.to_string()),
        }
    }

    fn close(&mut self, counts: &Counts) {
        self.flush(counts);
        self.outbox.abandon(counts);
    }
}

/// What a pipe that has any room takes without waiting: a page.
const AT_ONCE: usize = 4096;
/// How long the reader is waited for, all in all, in each [`ROUND`].
const PATIENCE: Duration = Duration::from_millis(100);
const ROUND: Duration = Duration::from_secs(1);

/// A descriptor that is written to as its reader makes room, and no further. Its mode is left as it
/// is, because others write to it as well.
#[derive(Debug)]
pub struct Unblocked {
    to: File,
    at_once: usize,
    round: Instant,
    waited: Duration,
}

impl Unblocked {
    /// Writes to `to`.
    pub fn new(to: File) -> Self {
        let is_file = to.metadata().is_ok_and(|found| found.is_file());
        let at_once = if is_file { usize::MAX } else { AT_ONCE };
        Self { to, at_once, round: Instant::now(), waited: Duration::ZERO }
    }

    /// Whether there is room, or will be soon. A descriptor that is broken has room for the error.
    fn has_room(&mut self) -> bool {
        let begun = Instant::now();
        if begun.duration_since(self.round) >= ROUND {
            (self.round, self.waited) = (begun, Duration::ZERO);
        }
        let left = PollTimeout::try_from(PATIENCE.saturating_sub(self.waited));
        let mut polled = [PollFd::new(self.to.as_fd(), PollFlags::POLLOUT)];
        // A signal ends the wait early; there is another attempt soon.
        let room =
            poll(&mut polled, left.unwrap_or(PollTimeout::ZERO)).is_ok_and(|count| count > 0);
        self.waited += begun.elapsed();
        room
    }
}

/// How much may be written at once: whole lines as far as there are any, because others may write to
/// the same reader in between.
fn whole_lines(bytes: &[u8], at_once: usize) -> usize {
    if bytes.len() <= at_once {
        return bytes.len();
    }
    bytes[..at_once].iter().rposition(|byte| *byte == b'\n').map_or(at_once, |end| end + 1)
}

impl Write for Unblocked {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.has_room() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.to.write(&bytes[..whole_lines(bytes, self.at_once)])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_torn_only_if_it_is_longer_than_what_is_written_at_once() {
        for (bytes, at_once, expected) in [
            ("one\ntwo\n", 8, 8),
            ("one\ntwo\n", 7, 4),
            ("one\ntwo", 7, 7), // all there is
            ("one\ntwo\n", 4, 4),
            ("one\ntwo\n", 3, 3),
            ("", 3, 0),
            ("one\n", usize::MAX, 4),
        ] {
            assert_eq!(whole_lines(bytes.as_bytes(), at_once), expected, "{bytes:?} {at_once}");
        }
    }
}
