//! Lines on their way out.
//!
//! Lines wait here until there are enough of them for one write. A write that fails half way
//! leaves the rest here, and the next one goes on in the middle of the line: what arrives is
//! always whole lines in their order. What finds no more room is dropped, whole and counted.

use std::io::{self, Write};

use crate::counts::{Counts, add};

/// Waiting bytes from which on they are written without being asked.
pub(crate) const ENOUGH: usize = 64 << 10;
/// Waiting bytes beyond which lines are dropped: some seconds of a busy gateway.
pub(crate) const ROOM: usize = 8 << 20;

#[derive(Debug, Default)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    /// How many of them are written.
    sent: usize,
    /// The last line that was written has its end still here.
    begun: bool,
}

impl Outbox {
    /// Bytes that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Takes a line, or drops it.
    pub(crate) fn push(&mut self, line: &[u8], counts: &Counts) {
        if self.waiting() + line.len() > ROOM {
            add(&counts.dropped, 1);
        } else {
            self.bytes.extend_from_slice(line);
        }
    }

    /// Bytes of the next line.
    pub(crate) fn next_line(&self) -> usize {
        let waiting = &self.bytes[self.sent..];
        waiting.iter().position(|byte| *byte == b'\n').map_or(waiting.len(), |end| end + 1)
    }

    /// Writes what waits.
    pub(crate) fn send(&mut self, to: &mut impl Write, counts: &Counts) -> io::Result<()> {
        self.send_into(to, u64::MAX, counts)
    }

    /// Writes as many lines as there is room for, and the rest of one that is begun.
    pub(crate) fn send_into(
        &mut self,
        to: &mut impl Write,
        room: u64,
        counts: &Counts,
    ) -> io::Result<()> {
        let end = self.sent + self.fitting(room);
        while self.sent < end {
            match to.write(&self.bytes[self.sent..end]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => {
                    let written = &self.bytes[self.sent..self.sent + length];
                    let lines = written.iter().filter(|byte| **byte == b'\n').count();
                    add(&counts.written, lines as u64);
                    self.sent += length;
                    self.begun = written.last() != Some(&b'\n');
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.forget_sent();
                    return Err(error);
                }
            }
        }
        if self.sent == self.bytes.len() {
            self.bytes.clear();
            self.sent = 0;
        }
        Ok(())
    }

    /// Bytes of the lines that there is room for.
    fn fitting(&self, room: u64) -> usize {
        let waiting = &self.bytes[self.sent..];
        let Some(room) = usize::try_from(room).ok().filter(|room| *room < waiting.len()) else {
            return waiting.len();
        };
        let whole =
            waiting[..room].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        if self.begun { whole.max(self.next_line()) } else { whole }
    }

    /// Whether the next byte begins a line.
    pub(crate) fn is_between_lines(&self) -> bool {
        !self.begun
    }

    /// Gives up a line whose beginning is where it cannot be ended.
    pub(crate) fn give_up_begun(&mut self, counts: &Counts) {
        if std::mem::take(&mut self.begun) {
            let rest = self.bytes[self.sent..].iter().position(|byte| *byte == b'\n');
            self.sent += rest.map_or(self.bytes.len() - self.sent, |end| end + 1);
            add(&counts.dropped, 1);
            self.forget_sent();
        }
    }

    /// Gives up what waits.
    pub(crate) fn abandon(&mut self, counts: &Counts) {
        let lines = self.bytes[self.sent..].iter().filter(|byte| **byte == b'\n').count();
        add(&counts.dropped, lines as u64);
        self.bytes.clear();
        self.sent = 0;
        self.begun = false;
    }

    fn forget_sent(&mut self) {
        self.bytes.drain(..self.sent);
        self.sent = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes so many bytes at once, and fails whenever its turn has come.
    struct Moody {
        taken: Vec<u8>,
        at_once: usize,
        turn: usize,
        fails_each: usize,
    }

    impl Write for Moody {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.turn += 1;
            if self.turn.is_multiple_of(self.fails_each) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let length = bytes.len().min(self.at_once);
            self.taken.extend_from_slice(&bytes[..length]);
            Ok(length)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_arrives_is_whole_lines_in_order_however_writing_fails() {
        for (at_once, fails_each) in [(1, 2), (3, 2), (7, 3), (1000, 2), (5, 100)] {
            let counts = Counts::default();
            let mut outbox = Outbox::default();
            let mut far = Moody { taken: Vec::new(), at_once, turn: 0, fails_each };
            let mut expected = Vec::new();
            for n in 0..50 {
                let line = format!("line {n}\n");
                outbox.push(line.as_bytes(), &counts);
                expected.extend_from_slice(line.as_bytes());
                let _ = outbox.send(&mut far, &counts);
            }
            while outbox.send(&mut far, &counts).is_err() {}
            assert_eq!(far.taken, expected, "{at_once} bytes at once");
            assert_eq!(counts.read().written, 50);
            assert_eq!(outbox.waiting(), 0);
        }
    }

    #[test]
    fn a_line_without_room_is_dropped_whole() {
        let counts = Counts::default();
        let mut outbox = Outbox::default();
        let line = vec![b'x'; ROOM - 1];
        outbox.push(&line, &counts);
        outbox.push(b"\n", &counts); // the last byte
        assert_eq!(counts.read().dropped, 0);
        outbox.push(b"\n", &counts);
        assert_eq!(counts.read().dropped, 1);
        assert_eq!(outbox.waiting(), ROOM);
        outbox.abandon(&counts);
        assert_eq!((counts.read().dropped, outbox.waiting()), (2, 0));
    }
}
