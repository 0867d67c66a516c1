//! Where packets come from and where they go.

use crate::word::Word;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Attachments that there is room for; zero is none.
pub const ATTACHMENTS: u32 = 1024;

/// Interfaces up to this number have one of [`port`] of their own.
pub const INTERFACES: u32 = (1 << 20) - 1;

/// An interface and VLAN as one number: the part of a key that says where.
#[inline(always)]
#[must_use]
pub const fn port(ifindex: u32, vlan: u16) -> u32 {
    ifindex << 12 | (vlan as u32 & 0xfff)
}

/// The domain of the routable network.
pub const FABRIC: u16 = 0;

/// A pod network or anything else behind the gateway.
pub const KIND_SPOKE: u8 = 0;
/// A transit connection.
pub const KIND_CONNECTION: u8 = 1;
/// The way to the internet.
pub const KIND_INTERNET: u8 = 2;

/// The attachment exists.
pub const ATTACHED: u8 = 1;
/// It belongs to the routable fabric: no non-routable source may leave here.
pub const ROUTABLE: u8 = 2;

/// A numbered place where packets come from and go to.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Attachment {
    /// The routing domain behind it.
    pub domain: u16,
    /// `KIND_*`.
    pub kind: u8,
    /// [`ATTACHED`] | [`ROUTABLE`].
    pub flags: u8,
    /// The interface that the kernel routes by (a VLAN device, if there is one).
    pub ifindex: u32,
    /// The machine's address on it: the source of ICMP errors.
    pub address: [u8; 4],
    /// Number of its interface among SNAT policies' `interface`: bit in [`crate::policy::Snat`].
    pub interface_class: u16,
    /// Number of its connection among SNAT policies' `connection`.
    pub connection_class: u16,
}

impl Attachment {
    /// None.
    pub const NONE: Self = Self {
        domain: 0,
        kind: 0,
        flags: 0,
        ifindex: 0,
        address: [0; 4],
        interface_class: 0,
        connection_class: 0,
    };
}

/// Key of the prefix maps behind and ahead of a port: longest match on the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PortAddress4 {
    /// [`port`], big endian, so that it is matched before the address.
    pub port: [u8; 4],
    /// The address.
    pub address: [u8; 4],
}

/// Entries of each table of places: prefixes that are sources, routes or carried, of all
/// attachments together, and the machine's own addresses.
pub const PLACE_ENTRIES: u32 = 4096;
/// Interfaces, those of VLANs too.
pub const LINK_ENTRIES: u32 = 1024;

/// What the datapath has to know of an interface.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct LinkInfo {
    /// The interface that frames are sent on (the VLAN device's parent).
    pub parent: u32,
    /// The tag, or zero.
    pub vlan: u16,
    /// Largest IP packet.
    pub mtu: u16,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// [`LINK_UP`] | [`LINK_REDIRECT`].
    pub flags: u16,
}

/// The link is up and has a carrier.
pub const LINK_UP: u16 = 1;
/// XDP may redirect to it.
pub const LINK_REDIRECT: u16 = 2;

/// What a next hop is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NextHopKey {
    /// The interface that frames are sent on.
    pub ifindex: u32,
    /// The tag, or zero.
    pub vlan: u16,
    /// The attachment: two may share an interface.
    pub attachment: u16,
    /// [`BY_ADDRESS4`] or [`BY_MAC`].
    pub kind: u16,
    /// The gateway's address and the MTU of the route ([`NextHopKey::address_bytes`]), or its
    /// hardware address.
    pub bytes: [u8; 6],
}

impl NextHopKey {
    /// What a gateway is found by: routes with another MTU lead to the same one by another number.
    #[inline(always)]
    #[must_use]
    pub const fn address_bytes(gateway: [u8; 4], mtu: u16) -> [u8; 6] {
        let mtu = mtu.to_be_bytes();
        [gateway[0], gateway[1], gateway[2], gateway[3], mtu[0], mtu[1]]
    }
}

/// The next hop is the kernel's answer for an IPv4 destination.
pub const BY_ADDRESS4: u16 = 4;
/// The next hop is the neighbour that the first packet came from.
pub const BY_MAC: u16 = 1;

/// A neighbour that packets are handed to. Word by word, so that the daemon can change the
/// hardware address while packets flow:
///
/// ```text
/// 0  destination MAC 48 | VLAN 16
/// 1  source MAC 48 | MTU 16
/// 2  interface 32 | attachment 16 | flags 16
/// 3  gateway address 32 | tick of the last look at the kernel's tables 32
/// ```
#[repr(C)]
pub struct NextHop {
    /// See above.
    pub words: [Word; 4],
}

/// The hardware address is known.
pub const HOP_RESOLVED: u16 = 1;
/// The attachment is routable: the guard applies.
pub const HOP_ROUTABLE: u16 = 2;
/// XDP can send there itself.
pub const HOP_REDIRECT: u16 = 4;
/// The kernel is asked again now and then (it has an address to ask for).
pub const HOP_REFRESH: u16 = 8;
/// The number is in use.
pub const HOP_USED: u16 = 16;

/// A reading of [`NextHop`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hop {
    /// Destination MAC 48 | VLAN 16.
    pub destination: u64,
    /// Source MAC 48 | MTU 16.
    pub source: u64,
    /// Interface 32 | attachment 16 | flags 16.
    pub place: u64,
    /// Gateway 32 | tick 32.
    pub checked: u64,
}

impl Hop {
    /// Six bytes as the upper 48 bits of a word.
    #[inline(always)]
    #[must_use]
    pub const fn mac_word(mac: [u8; 6], low: u16) -> u64 {
        u64::from_be_bytes([mac[0], mac[1], mac[2], mac[3], mac[4], mac[5], 0, 0]) | low as u64
    }
    /// Six bytes out of the upper 48 bits of a word.
    #[inline(always)]
    #[must_use]
    pub const fn mac(word: u64) -> [u8; 6] {
        let b = word.to_be_bytes();
        [b[0], b[1], b[2], b[3], b[4], b[5]]
    }
    /// The tag to send with; zero: none.
    #[inline(always)]
    #[must_use]
    pub const fn vlan(self) -> u16 {
        self.destination as u16
    }
    /// The largest IP packet.
    #[inline(always)]
    #[must_use]
    pub const fn mtu(self) -> u16 {
        self.source as u16
    }
    /// The interface.
    #[inline(always)]
    #[must_use]
    pub const fn ifindex(self) -> u32 {
        (self.place >> 32) as u32
    }
    /// The attachment.
    #[inline(always)]
    #[must_use]
    pub const fn attachment(self) -> u16 {
        (self.place >> 16) as u16
    }
    /// Whether `HOP_*` is set.
    #[inline(always)]
    #[must_use]
    pub const fn is(self, flag: u16) -> bool {
        self.place & flag as u64 != 0
    }
    /// The gateway's address as bytes.
    #[inline(always)]
    #[must_use]
    pub const fn gateway(self) -> [u8; 4] {
        ((self.checked >> 32) as u32).to_be_bytes()
    }
    /// When the kernel was last asked.
    #[inline(always)]
    #[must_use]
    pub const fn tick(self) -> u32 {
        self.checked as u32
    }
}

/// Places in the table of ports; a port's place is its interface index modulo this.
pub const PORTS: u32 = 1024;
/// Source prefixes of a port that the established path can tell apart.
pub const PORT_PREFIXES: usize = 3;
/// In the place of a domain: the port's packets from there take the longer way.
pub const NO_GLANCE: u16 = u16::MAX;

/// The domains behind an untagged interface, for packets that need nothing else. A port that
/// does not fit has none, and its packets take the longer way.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct PortInfo {
    /// The interface that this is about.
    pub ifindex: u32,
    /// How many of `prefixes` count, from the longest on.
    pub prefixes_used: u32,
    /// Network and mask, as the packet carries them.
    pub prefixes: [[u32; 2]; PORT_PREFIXES],
    /// Its hardware address: a frame for another one takes the longer way. Zero: it has none, and any
    /// will do.
    pub mac: [u8; 6],
    /// Zero.
    pub spare: [u8; 2],
    /// The domain of each prefix, or [`NO_GLANCE`].
    pub domains: [u16; PORT_PREFIXES],
    /// Zero.
    pub zero: u16,
}
