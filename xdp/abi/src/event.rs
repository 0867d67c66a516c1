//! What the datapath tells user space about a flow.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A session began.
pub const START: u8 = 1;
/// A session ended.
pub const END: u8 = 2;
/// A packet was refused.
pub const DENY: u8 = 3;
/// A copy of a packet follows ([`Captured`]).
pub const CAPTURE: u8 = 4;

/// Nothing was seen for as long as its timer says.
pub const ENDED_IDLE: u8 = 1;
/// Both sides closed it and the time after that is over.
pub const ENDED_CLOSED: u8 = 2;
/// It was reset.
pub const ENDED_RESET: u8 = 3;
/// The policy in force no longer permits it.
pub const ENDED_REVOKED: u8 = 4;
/// Its outside address was withdrawn, or its way out moved to another domain.
pub const ENDED_WITHDRAWN: u8 = 5;
/// An operator cleared it.
pub const ENDED_CLEARED: u8 = 6;
/// The same tuple was opened anew.
pub const ENDED_REOPENED: u8 = 7;

/// One line of the flow log, before names are put to its numbers.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Event4 {
    /// [`START`], [`END`] or [`DENY`].
    pub kind: u8,
    /// Why it was dropped (`Reason`), or how it ended (`ENDED_*`).
    pub reason: u8,
    /// IP protocol.
    pub protocol: u8,
    /// TCP phase bits.
    pub phase: u8,
    /// TCP flags seen: original direction, reply direction.
    pub tcp_flags: [u8; 2],
    /// Where the first packet came in.
    pub ingress: u16,
    /// Incarnation 32 | record 32.
    pub session: u64,
    /// When this was written, nanoseconds of the monotonic clock.
    pub time: u64,
    /// When the session began.
    pub began: u64,
    /// Ticks (about 1/16 s) from its last packet to `time`; of an end only.
    pub last_seen: u64,
    /// The first packet's source, before translation.
    pub source: [u8; 4],
    /// Its destination.
    pub destination: [u8; 4],
    /// Source port, or ICMP identifier.
    pub source_port: [u8; 2],
    /// Destination port.
    pub destination_port: [u8; 2],
    /// The same packet's source after translation (equal if there is none).
    pub outside: [u8; 4],
    /// Its destination after translation.
    pub outside_destination: [u8; 4],
    /// Source port after translation.
    pub outside_port: [u8; 2],
    /// Destination port after translation.
    pub outside_destination_port: [u8; 2],
    /// The domain it came from.
    pub domain: u16,
    /// The domain it goes to.
    pub destination_domain: u16,
    /// Where it leaves.
    pub egress: u16,
    /// The mark that its rule set.
    pub mark: u16,
    /// The rule that decided; zero: the default action.
    pub rule: u32,
    /// The first monitor rule that would have decided; zero: none.
    pub would_match: u32,
    /// Who sent it.
    pub source_identity: u32,
    /// To whom.
    pub destination_identity: u32,
    /// The SNAT policy that translated it; zero: none.
    pub snat_policy: u32,
    /// The policy that judged it.
    pub generation: u32,
    /// Packets: original direction, reply direction.
    pub packets: [u64; 2],
    /// Bytes from the IP header on.
    pub bytes: [u64; 2],
    /// Events of this kind that were held back before this one.
    pub suppressed: u32,
    /// `ttl`-like detail of a deny: the action that refused (`policy::ACTION_*`).
    pub action: u32,
}

const _: () = assert!(size_of::<Event4>() == 136);

/// It went on.
pub const VERDICT_FORWARDED: u8 = 0;
/// It was left to the kernel.
pub const VERDICT_PASSED: u8 = 1;
/// It was sent up for the kernel to route.
pub const VERDICT_PUNTED: u8 = 2;
/// It was dropped, perhaps with an answer.
pub const VERDICT_DROPPED: u8 = 3;

/// How many bytes of a packet `capture` copies at most.
pub const CAPTURE_BYTES: usize = 256;

/// The frame as it came in; the verdict is not known yet.
pub const STAGE_BEFORE: u8 = 0;
/// The frame as it was left: rewritten if it was forwarded, the answer if it was answered.
pub const STAGE_AFTER: u8 = 1;

/// A copy of a packet, before or after translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Captured {
    /// [`CAPTURE`].
    pub kind: u8,
    /// [`STAGE_BEFORE`] or [`STAGE_AFTER`].
    pub stage: u8,
    /// `VERDICT_*`, in the copy after.
    pub verdict: u8,
    /// Why, if it was dropped.
    pub reason: u8,
    /// Length of the whole frame.
    pub length: u32,
    /// Both copies of one packet have the same number.
    pub number: u64,
    /// Incarnation 32 | record 32, zero if there is none.
    pub session: u64,
    /// Nanoseconds of the monotonic clock.
    pub time: u64,
    /// The interface it came in by.
    pub ifindex: u32,
    /// The rule that decided.
    pub rule: u32,
    /// How many bytes follow.
    pub captured: u64,
    /// The frame from its Ethernet header on.
    pub bytes: [u8; CAPTURE_BYTES],
}
