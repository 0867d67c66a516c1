//! Flow records and whatever else is read from the session table.
//!
//! The kernel says in a ring what began, ended and was refused; what goes on in between is seen by
//! walking the table, which is mapped into this process. Both speak in numbers, and a [`Book`] puts
//! names to them. What has an id has it in every generation; whatever else is named by the
//! [`Directory`] of the generation that judged the flow.
//!
//! - [`session`]: one session out of its three places in memory, read without a lock;
//! - [`census`]: how many there are, by policy, outside address and destination;
//! - [`updates`]: which sessions are worth a word in between;
//! - [`record`]: an event with names;
//! - [`collector`]: the thread that reads the ring and writes the log;
//! - [`live`]: the tables as they are, for reading only.

pub mod census;
pub mod collector;
pub mod directory;
pub mod live;
pub mod record;
pub mod session;
#[cfg(test)]
pub(crate) mod testing;
pub mod updates;

pub use census::Census;
pub use collector::{Collector, CollectorError, Log};
pub use directory::{Book, Directories, Directory};
pub use live::{Live, Tables4};
pub use record::Clock;
pub use session::SessionView;
