//! Port bitmaps: which ports of an outside address may be lent, and which are.

use crate::word::Word;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Words of ports.
pub const PORT_WORDS: usize = if cfg!(loom) { 64 } else { 1024 };
/// Words that summarise them.
pub const PORT_SUMMARY: usize = PORT_WORDS / 64;

/// A set of ports in two levels. As a bitmap of lent ports, a summary bit says that its word is
/// full; as a set of lendable ports, that its word is not empty.
#[repr(C)]
pub struct Ports {
    /// Bit n of word m: about word 64 m + n.
    pub summary: [Word; PORT_SUMMARY],
    /// Bit n of word m: port 64 m + n.
    pub words: [Word; PORT_WORDS],
}

/// An outside address and one destination: what ports are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PairKey4 {
    /// The outside address.
    pub outside: [u8; 4],
    /// The destination.
    pub destination: [u8; 4],
    /// Its port.
    pub destination_port: [u8; 2],
    /// The domain of both.
    pub domain: u16,
    /// The protocol.
    pub protocol: u32,
}
