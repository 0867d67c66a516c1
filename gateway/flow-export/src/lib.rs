//! Flow records: what they hold, how they are written down.
//!
//! One [`FlowRecord`] tells of one flow at one moment (it began, it goes on, it ended, it was
//! refused), with both tuples as one flow, so that nothing is counted twice. [`json`] makes a line
//! of it, a [`Sink`] takes lines: [`FileSink`] with rotation by size, [`StreamSink`] for standard
//! output, which does not wait for whoever reads it if it is [`Unblocked`].
//!
//! Records add up: whatever happens, generated = written + dropped + waiting ([`Counts`]). A disk
//! that is full or a reader that stops delays and then drops lines, counted and said; it never stops
//! the gateway and never leaves half a line behind.
//!
//! This crate knows nothing of the datapath or of where names come from.

mod counts;
mod exporter;
mod file;
pub mod json;
mod outbox;
mod record;
mod stream;
mod time;

pub use counts::{Counted, Counts};
pub use exporter::{Exporter, Sink};
pub use file::{FileSink, Rotation};
pub use record::{
    End, EventKind, FlowRecord, Named, Protocol, SessionId, TcpFlags, Traffic, Tuple, Verdict,
};
pub use stream::{StreamSink, Unblocked};
pub use time::{ParseTimestampError, Timestamp};
