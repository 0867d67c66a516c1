//! Counters that are always on: one element per processor.

use crate::reason::Reason;

/// From a pod network (or any `spoke`) outwards.
pub const OUTBOUND: usize = 0;
/// From the fabric or the internet inwards.
pub const INBOUND: usize = 1;
/// Dropped before it was known where it came from.
pub const UNKNOWN: usize = 2;

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Amount {
    /// How many.
    pub packets: u64,
    /// How much, from the Ethernet header on.
    pub bytes: u64,
}

/// What became of every packet that came in. `received` is counted before anything is read, so
/// that `received = forwarded + passed + punted + drops` can be checked (an answered packet is
/// among the drops).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Counters {
    /// Everything that reached an ingress hook.
    pub received: Amount,
    /// Sent on: original direction, reply direction.
    pub forwarded: [Amount; 2],
    /// Left to the kernel because it is not transit (ARP, the machine's own).
    pub passed: Amount,
    /// Sent up untranslated for the kernel to route; translated at TC egress.
    pub punted: Amount,
    /// Of the punted: translated at TC egress.
    pub translated_late: Amount,
    /// Answers that were made here (RST, ICMP): the packet itself is in `drops`.
    pub answered: u64,
    /// Sessions begun.
    pub sessions_begun: u64,
    /// Sessions ended.
    pub sessions_ended: u64,
    /// Live sessions that were judged again.
    pub judged_again: u64,
    /// Events that did not fit into the ring.
    pub events_lost: u64,
    /// Events that a rate limit held back.
    pub events_suppressed: u64,
    /// Packets with a non-routable source that the guards stopped. A fault if it is not zero.
    pub leaks_stopped: u64,
    /// Dropped, by direction and reason.
    pub drops: [[u64; Reason::COUNT]; 3],
}

/// How often a rule decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RuleCount {
    /// New flows permitted, or packets refused.
    pub hits: u64,
    /// Bytes of the packets that were judged.
    pub bytes: u64,
}
