//! Reading a packet's headers.

use crate::{
    address::{Key, V4},
    checksum::{fold, sum_of},
    frame::Frame,
};
use xdp_abi::reason::Reason;

/// ICMP.
pub const ICMP: u8 = 1;
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;

/// ICMP echo reply.
pub const ECHO_REPLY: u8 = 0;
/// ICMP destination unreachable.
pub const UNREACHABLE: u8 = 3;
/// ICMP echo request.
pub const ECHO: u8 = 8;
/// ICMP time exceeded.
pub const TIME_EXCEEDED: u8 = 11;

/// Ethernet header without a tag.
pub const ETHERNET: u32 = 14;

/// Where the transport header of a [`plain`] packet begins.
pub const PLAIN_TRANSPORT: u32 = ETHERNET + 20;

/// The link layer of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkLayer {
    /// The tag, wherever it was; zero: none.
    pub vlan: u16,
    /// Whether the tag is in the frame's bytes.
    pub tag_in_frame: bool,
    /// Where the network header begins.
    pub network: u32,
    /// Ethertype, as the frame carries it.
    pub ethertype: [u8; 2],
}

/// IPv4's ethertype.
pub const IPV4: [u8; 2] = [0x08, 0x00];
/// IPv6's ethertype.
pub const IPV6: [u8; 2] = [0x86, 0xdd];
/// A tag's ethertype.
pub const VLAN: [u8; 2] = [0x81, 0x00];
/// A service tag's ethertype.
pub const QINQ: [u8; 2] = [0x88, 0xa8];

/// Reads the Ethernet header and at most one tag.
#[inline(always)]
pub fn link_layer<F: Frame>(frame: &F) -> Result<LinkLayer, Reason> {
    let ethertype = frame.load::<2>(12).ok_or(Reason::Truncated)?;
    let offload = frame.vlan_offload();
    if ethertype == VLAN || ethertype == QINQ {
        let [t0, t1, e0, e1] = frame.load::<4>(14).ok_or(Reason::Truncated)?;
        let inner = [e0, e1];
        if offload.is_some() || ethertype == QINQ || inner == VLAN || inner == QINQ {
            return Err(Reason::VlanStacked);
        }
        let vlan = u16::from_be_bytes([t0 & 0x0f, t1]);
        return Ok(LinkLayer { vlan, tag_in_frame: vlan != 0, network: 18, ethertype: inner });
    }
    Ok(LinkLayer { vlan: offload.unwrap_or(0), tag_in_frame: false, network: 14, ethertype })
}

/// What a packet is, beside its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A TCP segment.
    Tcp,
    /// A UDP datagram.
    Udp,
    /// An ICMP echo request.
    Echo,
    /// An ICMP echo reply.
    EchoReply,
    /// An ICMP error that may be about a session: its type.
    IcmpError,
}

/// The headers of a packet that may be translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<A> {
    /// Both ends; `domain` is set once the attachment is known.
    pub key: Key<A>,
    /// What it is.
    pub kind: Kind,
    /// Time to live.
    pub ttl: u8,
    /// TCP flags, or zero.
    pub tcp_flags: u8,
    /// "Do not fragment".
    pub dont_fragment: bool,
    /// Where the IP header begins.
    pub network: u32,
    /// Where the transport header begins.
    pub transport: u32,
    /// Length from the IP header on, as the header says.
    pub length: u16,
    /// The IP header's checksum field.
    pub header_checksum: [u8; 2],
}

impl Packet<V4> {
    /// Whether it may be a lease of an address (DHCP, RFC 2131): for the machine, whose address that
    /// may not be yet. Through a router goes only what answers who has an address already and renews
    /// it at its server (section 4.4.5), which is the packet of a session.
    #[inline(always)]
    pub const fn is_lease(&self) -> bool {
        matches!(self.kind, Kind::Udp)
            && matches!(self.key.source_port, [0, 67])
            && matches!(self.key.destination_port, [0, 68])
    }

    /// Before one was read.
    pub const NONE: Self = Self {
        key: Key {
            source: V4([0; 4]),
            destination: V4([0; 4]),
            source_port: [0; 2],
            destination_port: [0; 2],
            domain: 0,
            protocol: 0,
        },
        kind: Kind::Udp,
        ttl: 0,
        tcp_flags: 0,
        dont_fragment: false,
        network: 0,
        transport: 0,
        length: 0,
        header_checksum: [0; 2],
    };
}

/// What reading gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed<A> {
    /// A packet that can be translated.
    Packet(Packet<A>),
    /// A whole IP header, but nothing that is forwarded: from where, to where, why not.
    Refused(A, A, Reason),
}

/// What a session knows the ends of a packet by, out of the first bytes behind its IP header: the
/// ports, or the identifier of a ping on the side of who asks. `None`: it is of no session.
#[inline(always)]
pub const fn ends(protocol: u8, first: [u8; 6]) -> Option<([u8; 2], [u8; 2])> {
    let [p0, p1, p2, p3, i0, i1] = first;
    match (protocol, p0) {
        (TCP | UDP, _) => Some(([p0, p1], [p2, p3])),
        (ICMP, ECHO) => Some(([i0, i1], [0; 2])),
        (ICMP, ECHO_REPLY) => Some(([0; 2], [i0, i1])),
        _ => None,
    }
}

/// Reads an IPv4 packet whose header begins at `network`.
#[inline(always)]
pub fn ipv4<F: Frame>(frame: &F, network: u32) -> Result<Parsed<V4>, Reason> {
    let header = frame.load::<20>(network).ok_or(Reason::Truncated)?;
    if header[0] >> 4 != 4 {
        return Err(Reason::Malformed);
    }
    let header_length = (header[0] & 15) as u32 * 4;
    let length = u16::from_be_bytes([header[2], header[3]]);
    if header_length < 20 || (length as u32) < header_length {
        return Err(Reason::Malformed);
    }
    if network + length as u32 > frame.length() {
        return Err(Reason::Truncated);
    }
    let source = V4([header[12], header[13], header[14], header[15]]);
    let destination = V4([header[16], header[17], header[18], header[19]]);
    let refused = |reason| Ok(Parsed::Refused(source, destination, reason));

    // More fragments, or not the first one.
    if header[6] & 0x3f != 0 || header[7] != 0 {
        return refused(Reason::Fragment);
    }
    let transport = network + header_length;
    let payload = length as u32 - header_length;
    let protocol = header[9];
    let (kind, source_port, destination_port, tcp_flags) = match protocol {
        TCP => {
            if payload < 20 {
                return refused(Reason::Truncated);
            }
            let Some([s0, s1, d0, d1, .., offset, flags]) = frame.load::<14>(transport) else {
                return refused(Reason::Truncated);
            };
            if let Some(reason) = fault_of_length((offset >> 4) as u32 * 4, 20, payload) {
                return refused(reason);
            }
            (Kind::Tcp, [s0, s1], [d0, d1], flags & 0x3f)
        }
        UDP => {
            if payload < 8 {
                return refused(Reason::Truncated);
            }
            let Some([s0, s1, d0, d1, l0, l1]) = frame.load::<6>(transport) else {
                return refused(Reason::Truncated);
            };
            let length = u16::from_be_bytes([l0, l1]) as u32;
            if let Some(reason) = fault_of_length(length, 8, payload) {
                return refused(reason);
            }
            (Kind::Udp, [s0, s1], [d0, d1], 0)
        }
        ICMP => {
            if payload < 8 {
                return refused(Reason::Truncated);
            }
            let Some([kind, code, _, _, i0, i1]) = frame.load::<6>(transport) else {
                return refused(Reason::Truncated);
            };
            match (kind, code) {
                (ECHO, _) => (Kind::Echo, [i0, i1], [0; 2], 0),
                (ECHO_REPLY, _) => (Kind::EchoReply, [0; 2], [i0, i1], 0),
                (UNREACHABLE, 4) | (TIME_EXCEEDED, 0) => (Kind::IcmpError, [0; 2], [0; 2], 0),
                _ => return refused(Reason::IcmpOther),
            }
        }
        _ => return refused(Reason::Protocol),
    };
    Ok(Parsed::Packet(Packet {
        key: Key { source, destination, source_port, destination_port, domain: 0, protocol },
        kind,
        ttl: header[8],
        tcp_flags,
        dont_fragment: header[6] & 0x40 != 0,
        network,
        transport,
        length,
        header_checksum: [header[10], header[11]],
    }))
}

/// What is wrong with a length that a transport header states, which has a least and lies within
/// the packet's payload.
#[inline(always)]
const fn fault_of_length(stated: u32, least: u32, payload: u32) -> Option<Reason> {
    if stated < least {
        Some(Reason::Malformed)
    } else if stated > payload {
        Some(Reason::Truncated)
    } else {
        None
    }
}

/// Why a packet whose header [`ipv4`] has read goes nowhere all the same: the checksum does not
/// hold, and with it nothing that the header says (RFC 1812 section 5.2.2), or an option of it.
#[inline(always)]
pub fn fault_of_header<F: Frame>(frame: &F, packet: &Packet<V4>) -> Option<Reason> {
    let Some(sum) = sum_of_header(frame, packet.network, packet.transport) else {
        return Some(Reason::Truncated);
    };
    if sum != 0xffff {
        return Some(Reason::Malformed);
    }
    if packet.transport == packet.network + HEADER {
        return None;
    }
    fault_of_options(frame, packet.network, packet.transport)
}

/// The sum over a header, options included; 0xffff: it is whole. `None`: the frame ends before.
#[inline(always)]
pub(crate) fn sum_of_header<F: Frame>(frame: &F, network: u32, transport: u32) -> Option<u16> {
    let mut sum = sum_of(frame.load::<20>(network)?);
    let mut at = network + HEADER;
    let mut options = 0;
    while options < MOST_OPTIONS && at < transport {
        sum += sum_of(frame.load::<4>(at)?);
        at += 4;
        options += 1;
    }
    Some(fold(sum))
}

/// The option that a packet is refused for, out of those between header and transport (RFC 791
/// section 3.1).
#[inline(never)]
fn fault_of_options<F: Frame>(frame: &F, network: u32, transport: u32) -> Option<Reason> {
    let mut at = network + HEADER;
    let mut turns = 0;
    while turns < MOST_OPTIONS * 4 && at < transport {
        match frame.load::<1>(at)? {
            [END_OF_OPTIONS] => return None,
            [NO_OPERATION] => at += 1,
            // Judged by where it goes first, it would go on to where nobody judged.
            [LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE] => return Some(Reason::SourceRoute),
            _ => {
                let [length] = frame.load::<1>(at + 1)?;
                if length < 2 || at + length as u32 > transport {
                    return Some(Reason::Malformed);
                }
                at += length as u32;
            }
        }
        turns += 1;
    }
    None
}

/// Length of an IPv4 header without options.
const HEADER: u32 = 20;
/// Words of options in a header.
const MOST_OPTIONS: u32 = 10;
const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;
const LOOSE_SOURCE_ROUTE: u8 = 131;
const STRICT_SOURCE_ROUTE: u8 = 137;

/// Whether the headers of a [`plain`] packet say nothing that [`ipv4`] and [`fault_of_header`]
/// would refuse. The packets of a live session are not asked.
#[inline(always)]
pub fn is_sound<F: Frame>(frame: &F, packet: &Packet<V4>) -> bool {
    let payload = (packet.length as u32).wrapping_sub(20);
    let length = match packet.kind {
        Kind::Tcp => frame.load::<1>(PLAIN_TRANSPORT + 12).map(|[offset]| (offset >> 4) as u32 * 4),
        Kind::Udp | Kind::Echo | Kind::EchoReply | Kind::IcmpError => {
            frame.load::<2>(PLAIN_TRANSPORT + 4).map(|length| u16::from_be_bytes(length) as u32)
        }
    };
    let least = if matches!(packet.kind, Kind::Tcp) { 20 } else { 8 };
    matches!(length, Some(length) if fault_of_length(length, least, payload).is_none())
        && matches!(frame.load::<20>(ETHERNET), Some(header) if fold(sum_of(header)) == 0xffff)
}

/// Reads the most common packet: untagged, IPv4 without options, whole, TCP or UDP. The offsets
/// are constants, so every access is two instructions; anything else is `None` and goes the way
/// that can read it.
#[inline(always)]
pub fn plain<F: Frame>(frame: &F) -> Option<Packet<V4>> {
    const NETWORK: u32 = ETHERNET;
    const TRANSPORT: u32 = PLAIN_TRANSPORT;
    if frame.load::<2>(12)? != IPV4 || frame.vlan_offload().is_some() {
        return None;
    }
    let header = frame.load::<20>(NETWORK)?;
    let length = u16::from_be_bytes([header[2], header[3]]);
    let protocol = header[9];
    if header[0] != 0x45
        || header[6] & 0x3f != 0
        || header[7] != 0
        || header[8] <= 1
        || NETWORK + length as u32 > frame.length()
    {
        return None;
    }
    let [s0, s1, d0, d1, ..] = frame.load::<8>(TRANSPORT)?;
    let (kind, tcp_flags) = match protocol {
        TCP if length >= 40 => {
            let [flags] = frame.load::<1>(TRANSPORT + 13)?;
            (Kind::Tcp, flags & 0x3f)
        }
        UDP if length >= 28 => (Kind::Udp, 0),
        _ => return None,
    };
    Some(Packet {
        key: Key {
            source: V4([header[12], header[13], header[14], header[15]]),
            destination: V4([header[16], header[17], header[18], header[19]]),
            source_port: [s0, s1],
            destination_port: [d0, d1],
            domain: 0,
            protocol,
        },
        kind,
        ttl: header[8],
        tcp_flags,
        dont_fragment: header[6] & 0x40 != 0,
        network: NETWORK,
        transport: TRANSPORT,
        length,
        header_checksum: [header[10], header[11]],
    })
}
