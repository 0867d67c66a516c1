//! Records go in, lines come out.

use std::sync::Arc;

use crate::counts::{Counts, add};
use crate::{FlowRecord, json};

/// Takes lines. What goes wrong is counted and never stops whoever calls.
pub trait Sink: Send {
    /// Takes a line with its end; it may wait here for a while.
    fn line(&mut self, line: &[u8], counts: &Counts);
    /// Writes whatever waits, unless that failed since the last flush. Called whenever there is
    /// nothing to add at the moment: a process that is killed takes what waits with it, uncounted.
    fn write(&mut self, counts: &Counts);
    /// Writes whatever waits, and looks how all is. Called about once a second.
    fn flush(&mut self, counts: &Counts);
    /// Writes what can be written, and drops the rest: there is no later.
    fn close(&mut self, counts: &Counts);
}

/// Encodes records and hands them to a sink.
pub struct Exporter {
    sink: Box<dyn Sink>,
    counts: Arc<Counts>,
    line: Vec<u8>,
}

impl Exporter {
    /// An exporter into `sink`.
    pub fn new(sink: Box<dyn Sink>) -> Self {
        Self { sink, counts: Arc::default(), line: Vec::new() }
    }

    /// The counters, for whoever shows them.
    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    /// Takes a record.
    pub fn export(&mut self, record: &FlowRecord) {
        add(&self.counts.generated, 1);
        self.line.clear();
        match json::append(&mut self.line, record) {
            Ok(()) => self.sink.line(&self.line, &self.counts),
            Err(_) => {
                add(&self.counts.errors, 1);
                add(&self.counts.dropped, 1);
            }
        }
    }

    /// Writes whatever waits, for now.
    pub fn write(&mut self) {
        self.sink.write(&self.counts);
    }

    /// Writes whatever waits, and looks how all is.
    pub fn flush(&mut self) {
        self.sink.flush(&self.counts);
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.sink.close(&self.counts);
    }
}
