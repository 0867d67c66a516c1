//! Policy as the datapath reads it: bit sets of rules, by identity and by port class.
//!
//! Every table has two halves (banks); a policy is written into the idle one and published by
//! one store of `Config::policy`. Element n of bank b has index [`banked`]`(n, b)`; the class
//! table has one element a bank.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Where element `n` of a bank is in a table that has two.
#[inline(always)]
#[must_use]
pub const fn banked(n: u32, bank: u32) -> u32 {
    n << 1 | bank & 1
}

/// Rules that there is room for.
pub const RULES: usize = 16_384;
/// Words of a set of rules.
pub const RULE_WORDS: usize = RULES / 64;
/// Words that say which words of a set of rules are not empty.
pub const SUMMARY_WORDS: usize = RULE_WORDS / 64;
/// SNAT policies that there is room for.
pub const SNAT_POLICIES: usize = 256;
/// Words of a set of SNAT policies.
pub const SNAT_WORDS: usize = SNAT_POLICIES / 64;
/// Outside addresses of all SNAT policies together.
pub const POOL_ADDRESSES: u32 = 1024;
/// Sets of lendable ports: those of the policy in force and of the one that follows it stand side by
/// side, whichever addresses either has.
pub const LENDABLE_SETS: u32 = 2 * POOL_ADDRESSES;

/// Let through.
pub const ACTION_PERMIT: u8 = 1;
/// Drop without a word.
pub const ACTION_DENY: u8 = 2;
/// Drop and answer (RST, ICMP 3/13).
pub const ACTION_REJECT: u8 = 3;

/// Record the beginning.
pub const LOG_START: u8 = 1;
/// Record the end.
pub const LOG_END: u8 = 2;

/// A set of rules, by bit position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RuleSet {
    /// Bit n: word n is not empty.
    pub summary: [u64; SUMMARY_WORDS],
    /// Bit n of word m: rule 64 m + n.
    pub words: [u64; RULE_WORDS],
}

/// What a rule decides.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Rule {
    /// Stable id.
    pub id: u32,
    /// Its place in the table of rule counters.
    pub counter: u32,
    /// `ACTION_*`.
    pub action: u8,
    /// `LOG_*`.
    pub log: u8,
    /// Not zero: counted, never decides.
    pub monitor: u8,
    /// Not read.
    pub zero: u8,
    /// Mark of a permitted flow; zero: none.
    pub mark: u16,
    /// Not read.
    pub zero2: u16,
}

/// SNAT policies that an identity may be the source or the destination of.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct SnatBits {
    /// As the source.
    pub source: [u64; SNAT_WORDS],
    /// As the destination.
    pub destination: [u64; SNAT_WORDS],
}

/// A SNAT policy, beyond what [`SnatBits`] say.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Snat {
    /// Stable id.
    pub id: u32,
    /// Protocol, or 256 for any.
    pub protocol: u16,
    /// Mark of the permitting rule, or zero for any.
    pub mark: u16,
    /// Source ports, first and last.
    pub source_ports: [u16; 2],
    /// Destination ports, first and last.
    pub destination_ports: [u16; 2],
    /// Way out: number of an interface, or zero.
    pub interface_class: u16,
    /// Way out: number of a connection, or zero.
    pub connection_class: u16,
    /// Where its addresses begin in the pool table of its bank.
    pub pool: u16,
    /// How many addresses; zero: leave the source as it is.
    pub addresses: u16,
}

/// An outside address.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct PoolAddress {
    /// The address.
    pub address: [u8; 4],
    /// Which entry of the table of lendable ports applies.
    pub lendable: u32,
}

/// Who has an address: the value of the identity maps.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct IdentityRef {
    /// Where the identity's bit sets are (without the bank).
    pub index: u32,
    /// The identity's stable id.
    pub id: u32,
}

/// Key of the host map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct HostKey4 {
    /// The address.
    pub address: [u8; 4],
    /// Its domain.
    pub domain: u16,
    /// The bank: host maps change with the policy as a whole.
    pub bank: u16,
}

/// Key of the prefix map; the parts are matched in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PrefixKey4 {
    /// The bank.
    pub bank: [u8; 2],
    /// The domain, big endian.
    pub domain: [u8; 2],
    /// The address.
    pub address: [u8; 4],
}

/// Port classes: index of a TCP port in a bank of the class table.
pub const CLASS_TCP: u32 = 0;
/// Of a UDP port.
pub const CLASS_UDP: u32 = 65_536;
/// Of every other protocol number.
pub const CLASS_OTHER: u32 = 131_072;
/// Length of a bank of the class table.
pub const CLASS_TABLE: u32 = CLASS_OTHER + 256;
