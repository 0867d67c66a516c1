//! What the daemon has the kernel do for it.
//!
//! Sessions are ended in one place, by the code that packets run; a daemon that is killed in
//! the middle can then leave nothing half done. An order is the data of a test run.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Look at [`SWEEP_SLOTS`] slots from the common cursor on, or end [`SWEEP_ENDS`] sessions.
pub const SWEEP: u32 = 1;
/// End one session, whatever it does.
pub const END: u32 = 2;
/// Write down both clocks.
pub const CLOCK: u32 = 3;

/// How many slots one sweep looks at.
pub const SWEEP_SLOTS: u32 = 4096;
/// How many sessions one sweep ends.
pub const SWEEP_ENDS: u32 = 64;

/// An order, after an Ethernet header's length of zeros (the least that a test run takes).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Order {
    /// Not read.
    pub header: [u8; 16],
    /// [`SWEEP`], [`END`] or [`CLOCK`].
    pub what: u32,
    /// The record of the session to end.
    pub record: u32,
    /// Its incarnation.
    pub incarnation: u32,
    /// How it ends, in the log.
    pub cause: u32,
}

/// The upper half of the mark on a packet that the kernel routes for the datapath; the lower
/// half is the number of the attachment it came by.
pub const MARK: u32 = 0x51ce_0000;
/// The bits of a mark that say so.
pub const MARK_MASK: u32 = 0xffff_0000;
