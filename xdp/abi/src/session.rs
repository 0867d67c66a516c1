//! The session table: two entries of one cache line each, and one cold record.
//!
//! An [`Entry4`] is all that an established packet touches. Its eight words:
//!
//! ```text
//! 0 meta     version 16 | state 4 | class 4 | sender 8 | tick 32
//! 1 key      source 32 | destination 32
//! 2 key      source port 16 | destination port 16 | domain 16 | protocol 8 | zero 8
//! 3 rewrite  source 32 | destination 32
//! 4 rewrite  source port 16 | destination port 16 | address delta 16 | transport delta 16
//! 5 link     record 32 | next hop 16 | TCP flags seen 8 | direction 8
//! 6 stamp    stamp 32 | spare 4 | source epoch slot 14 | destination epoch slot 14
//! 7 count    packets 28 | bytes 36
//! ```
//!
//! The protocol that moves an entry through its states is `xdp::table`; the session's life
//! ends and begins with the forward entry.

use crate::word::Word;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// How many slots after its home an entry may stand in.
pub const WINDOW: u32 = if cfg!(loom) { 2 } else { 8 };
/// How many near slots an entry is tried in before.
pub const NEAR: u32 = if cfg!(loom) { 1 } else { 2 };
/// Near slots, at most: half a megabyte. While there are few sessions all of them are there, so
/// that they need few pages: a page whose translation the processor has forgotten costs as much
/// as everything else that an established packet takes.
pub const NEAR_SLOTS: u32 = 1 << 13;
/// Table slots per session: two entries at half fill.
pub const SLOTS_PER_SESSION: u32 = 4;
/// One slot in so many more is kept for entries whose window is full.
pub const OVERFLOW_SHARE: u32 = 128;

/// What an entry is in the middle of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Nobody's.
    Free = 0,
    /// Taken by an inserter that has not written its key yet.
    Claimed = 1,
    /// Its key may be read: an insertion that waits for its other half.
    Keyed = 2,
    /// One direction of a session.
    Live = 3,
    /// Held by whoever is ending the session.
    Frozen = 4,
}

/// Which timer an entry ages by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Class {
    /// UDP.
    Udp = 0,
    /// ICMP queries.
    Icmp = 1,
    /// TCP before both sides have sent SYN.
    TcpOpening = 2,
    /// TCP with data flowing.
    TcpEstablished = 3,
    /// TCP after a FIN of one side.
    TcpClosing = 4,
    /// TCP after a FIN of both sides.
    TcpClosed = 5,
    /// TCP after a RST (RFC 7857 section 2.2: kept, revived by traffic).
    TcpReset = 6,
    /// Ended; only its port rests (RFC 6888 REQ-8). No packet matches it.
    Resting = 7,
}

impl Class {
    /// How many there are.
    pub const COUNT: usize = 8;

    /// The class with this number; anything unknown ages fastest.
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        match bits & 15 {
            0 => Self::Udp,
            1 => Self::Icmp,
            2 => Self::TcpOpening,
            3 => Self::TcpEstablished,
            4 => Self::TcpClosing,
            5 => Self::TcpClosed,
            6 => Self::TcpReset,
            _ => Self::Resting,
        }
    }
}

/// Word 0 of an entry: who may touch it, and when it was last of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta(pub u64);

impl Meta {
    /// Puts the fields together.
    #[inline(always)]
    pub const fn new(version: u16, state: State, class: Class, tick: u32) -> Self {
        Self((version as u64) << 48 | (state as u64) << 44 | (class as u64) << 40 | tick as u64)
    }

    /// Raised whenever the slot is given back, so that a reader notices a change of owner.
    #[inline(always)]
    pub const fn version(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// The state's number, which may be compared with `State::X as u64`.
    #[inline(always)]
    pub const fn state_bits(self) -> u64 {
        (self.0 >> 44) & 15
    }

    /// Whether the entry is in `state`.
    #[inline(always)]
    pub const fn is(self, state: State) -> bool {
        self.state_bits() == state as u64
    }

    /// The timer.
    #[inline(always)]
    pub const fn class(self) -> Class {
        Class::from_bits(self.0 >> 40)
    }

    /// Of a forward entry: [`sender`] of the last packet, as far as it was looked at.
    #[inline(always)]
    pub const fn sender(self) -> u8 {
        (self.0 >> 32) as u8
    }

    /// When a packet was last seen.
    #[inline(always)]
    pub const fn tick(self) -> u32 {
        self.0 as u32
    }

    /// The same with another state.
    #[inline(always)]
    pub const fn with_state(self, state: State) -> Self {
        Self(self.0 & !(15 << 44) | (state as u64) << 44)
    }

    /// The same with another timer.
    #[inline(always)]
    pub const fn with_class(self, class: Class) -> Self {
        Self(self.0 & !(15 << 40) | (class as u64) << 40)
    }

    /// The same, seen at `tick`.
    #[inline(always)]
    pub const fn with_tick(self, tick: u32) -> Self {
        Self(self.0 & !0xffff_ffff | tick as u64)
    }

    /// The same, sent by a hardware address of which this is the [`sender`].
    #[inline(always)]
    pub const fn with_sender(self, sender: u8) -> Self {
        Self(self.0 & !(0xff << 32) | (sender as u64) << 32)
    }

    /// What is left when the owner goes: free, and of the next version.
    #[inline(always)]
    pub const fn freed(self) -> Self {
        Self::new(self.version().wrapping_add(1), State::Free, Class::Udp, 0)
    }

    /// Whether two readings of the word belong to the same owner in the same state.
    #[inline(always)]
    pub const fn same_owner(self, other: Self) -> bool {
        (self.0 ^ other.0) >> 44 == 0
    }
}

/// What an entry remembers of a hardware address: enough to tell a router from the one that takes
/// over from it. Two that differ in one byte always differ in this, and of others 255 in 256: the
/// bytes weigh differently, because routers that are numbered often differ in several alike.
#[inline(always)]
pub const fn sender(mac: [u8; 6]) -> u8 {
    // Odd numbers: no two bytes become one. One more than a multiple of four: nor two that change
    // alike, but by half of all that they can.
    mac[0]
        .wrapping_mul(0x1d)
        .wrapping_add(mac[1].wrapping_mul(0x39))
        .wrapping_add(mac[2].wrapping_mul(0x55))
        .wrapping_add(mac[3].wrapping_mul(0x69))
        .wrapping_add(mac[4].wrapping_mul(0xa5))
        .wrapping_add(mac[5])
}

/// Word 5 of an entry: what else belongs to the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link(pub u64);

impl Link {
    /// Puts the fields together.
    #[inline(always)]
    pub const fn new(record: u32, next_hop: u16, reply: bool) -> Self {
        Self((record as u64) << 32 | (next_hop as u64) << 16 | reply as u64)
    }

    /// The index of the cold record.
    #[inline(always)]
    pub const fn record(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The index of the next hop that packets of this direction leave by.
    #[inline(always)]
    pub const fn next_hop(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// The same towards another next hop.
    #[inline(always)]
    pub const fn with_next_hop(self, next_hop: u16) -> Self {
        Self(self.0 & !(0xffff << 16) | (next_hop as u64) << 16)
    }

    /// Every TCP flag that packets of this direction have carried.
    #[inline(always)]
    pub const fn tcp_flags(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Whether this entry is the answering direction.
    #[inline(always)]
    pub const fn is_reply(self) -> bool {
        self.0 & 1 != 0
    }
}

/// Word 6 of an entry: under what policy and identities it was judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp(pub u64);

impl Stamp {
    /// Puts the fields together.
    #[inline(always)]
    pub const fn new(stamp: u32, source: u32, destination: u32) -> Self {
        Self(
            (stamp as u64) << 32
                | (source as u64 & EPOCH_MASK) << 14
                | destination as u64 & EPOCH_MASK,
        )
    }

    /// Generation + both epochs, wrapping, at the time of judgement. All three only ever
    /// grow, so an equal sum means that none has moved.
    #[inline(always)]
    pub const fn stamp(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The epoch slot of the source address.
    #[inline(always)]
    pub const fn source(self) -> u32 {
        (self.0 >> 14 & EPOCH_MASK) as u32
    }

    /// The epoch slot of the destination address.
    #[inline(always)]
    pub const fn destination(self) -> u32 {
        (self.0 & EPOCH_MASK) as u32
    }
}

/// How many identity epochs there is room for.
pub const EPOCHS: usize = 1 << 14;
/// How many are in use: 32 kB of counters, of which a processor keeps near what its traffic
/// touches. An identity that changes has one session in so many judged again beside its own.
/// Sessions hold numbers of slots: another number here wants another layout.
pub const EPOCHS_USED: u32 = 1 << 13;
/// Counts what the daemon changes of places: attachments, links, addresses, next hops. One of
/// the epochs that no identity uses.
pub const NETWORK_EPOCH: u32 = EPOCHS_USED;
const EPOCH_MASK: u64 = EPOCHS as u64 - 1;

/// Word 7 of an entry: packets and bytes since the last spill, in one add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count(pub u64);

impl Count {
    const BYTE_BITS: u32 = 36;

    /// What `packets` packets of `bytes` bytes together add.
    #[inline(always)]
    pub const fn new(packets: u64, bytes: u64) -> Self {
        Self(packets << Self::BYTE_BITS | bytes)
    }

    /// Packets counted.
    #[inline(always)]
    pub const fn packets(self) -> u64 {
        self.0 >> Self::BYTE_BITS
    }

    /// Bytes counted, from the IP header on.
    #[inline(always)]
    pub const fn bytes(self) -> u64 {
        self.0 & ((1 << Self::BYTE_BITS) - 1)
    }

    /// Whether it is time to move the count to the record: half of either field is used, so
    /// that what other processors add meanwhile still fits.
    #[inline(always)]
    pub const fn is_high(self) -> bool {
        self.0 & (1 << 63 | 1 << (Self::BYTE_BITS - 1)) != 0
    }
}

/// One direction of an IPv4 session.
#[cfg_attr(not(loom), repr(C, align(64)))]
pub struct Entry4 {
    /// See the module's table.
    pub words: [Word; 8],
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Entry4>() == 64);

/// What a session is, beside what its packets need: read when it is judged, reported, ended.
#[cfg_attr(not(loom), repr(C))]
pub struct Record {
    /// Forward slot 32 | reply slot 32.
    pub slots: Word,
    /// Rule id 32 | id of the first monitor rule that would have matched 32.
    pub rules: Word,
    /// Source identity id 32 | destination identity id 32.
    pub identities: Word,
    /// SNAT policy id 32 | generation that judged 32.
    pub policy: Word,
    /// When it began, in nanoseconds of the kernel's monotonic clock.
    pub began: Word,
    /// TCP phase 8 | log 8 | ingress attachment 16 | egress attachment 16 | mark 16.
    pub facts: Word,
    /// Packets and bytes that the entries have spilled: forward, then reply.
    pub spilled: [Word; 4],
    /// Incarnation 32 (session number: with the record's index it names the session) | 1 if the
    /// outside port is lent 32.
    pub identity: Word,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Record>() == 88);

/// The key of the overflow map: an entry's key words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct OverflowKey4 {
    /// Words 1 and 2 of the entry.
    pub key: [u64; 2],
}

/// The word `Record::facts`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts(pub u64);

impl Facts {
    /// Puts the fields together.
    #[inline(always)]
    pub const fn new(phase: u8, log: u8, ingress: u16, egress: u16, mark: u16) -> Self {
        Self(
            (phase as u64) << 56
                | (log as u64) << 48
                | (ingress as u64) << 32
                | (egress as u64) << 16
                | mark as u64,
        )
    }
    /// TCP phase bits (`xdp::tcp`).
    #[inline(always)]
    pub const fn phase(self) -> u8 {
        (self.0 >> 56) as u8
    }
    /// The same in another phase.
    #[inline(always)]
    pub const fn with_phase(self, phase: u8) -> Self {
        Self(self.0 & !(0xff << 56) | (phase as u64) << 56)
    }
    /// Which events are recorded (`policy::LOG_*`).
    #[inline(always)]
    pub const fn log(self) -> u8 {
        (self.0 >> 48) as u8
    }
    /// Where the first packet came in.
    #[inline(always)]
    pub const fn ingress(self) -> u16 {
        (self.0 >> 32) as u16
    }
    /// Where it went out.
    #[inline(always)]
    pub const fn egress(self) -> u16 {
        (self.0 >> 16) as u16
    }
    /// The mark that the rule set.
    #[inline(always)]
    pub const fn mark(self) -> u16 {
        self.0 as u16
    }
}
