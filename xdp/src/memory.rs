//! The datapath in ordinary memory: the same decisions without a kernel.
//!
//! Tests, `explain` and migration run the core over this. [`Memory`] answers
//! [`Tables`](crate::tables::Tables) from vectors and hash maps, [`MemoryFrame`] is a packet in
//! a vector, [`Gateway`] puts both behind the steps of [`crate::pipeline`]. The clock and the
//! random numbers are set from outside, so every run can be repeated; helpers can be told to
//! fail ([`Memory::fail_one_in`]).
//!
//! Packets may be processed by several threads at once. Settings take `&mut self`: what the
//! kernel does while packets flow is done between packets here.

mod frame;
mod gateway;
mod policy;
mod settings;
mod state;

pub use frame::MemoryFrame;
pub use gateway::{Gateway, Output};
pub use policy::{Policy, rule_set};
pub use settings::{Prefix, RouteEntry};
pub use state::{Memory, Sizes};
