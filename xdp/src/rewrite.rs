//! Writing a decision into the frame.

use crate::{
    address::{Rewrite, V4},
    checksum::{TTL_DELTA, update},
    frame::Frame,
    packet::{ETHERNET, Kind, LinkLayer, Packet},
};
use xdp_abi::forward::Hop;

/// Whether the hop counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ttl {
    /// One hop less.
    Down,
    /// The kernel has already taken one off.
    Keep,
}

/// Gives a packet its new addresses and ports, and mends every checksum.
#[inline(always)]
pub fn network<F: Frame>(
    frame: &mut F,
    packet: &Packet<V4>,
    rewrite: &Rewrite<V4>,
    ttl: Ttl,
) -> Option<()> {
    let (new_ttl, ttl_delta) = match ttl {
        Ttl::Down => (packet.ttl.wrapping_sub(1), TTL_DELTA),
        Ttl::Keep => (packet.ttl, 0),
    };
    let sum = update(packet.header_checksum, rewrite.address_delta as u32 + ttl_delta);
    let fields = (new_ttl, packet.key.protocol, sum);
    from_ttl_on(frame, packet.network, fields, rewrite.source, rewrite.destination)?;
    let sp = rewrite.source_port;
    let dp = rewrite.destination_port;
    let ports = side_by_side(sp, dp);
    let t = packet.transport;
    match packet.kind {
        Kind::Tcp => {
            frame.store::<4>(t, ports)?;
            frame.fix_transport(t + 16, rewrite.address_delta, rewrite.transport_delta, false)
        }
        Kind::Udp => {
            frame.store::<4>(t, ports)?;
            frame.fix_transport(t + 6, rewrite.address_delta, rewrite.transport_delta, true)
        }
        Kind::Echo => {
            frame.store::<2>(t + 4, sp)?;
            frame.fix_transport(t + 2, 0, rewrite.transport_delta, false)
        }
        Kind::EchoReply => {
            frame.store::<2>(t + 4, dp)?;
            frame.fix_transport(t + 2, 0, rewrite.transport_delta, false)
        }
        Kind::IcmpError => None,
    }
}

/// Writes TTL, protocol and checksum of the IP header at `network`, and its addresses.
#[inline(always)]
pub(crate) fn from_ttl_on<F: Frame>(
    frame: &mut F,
    network: u32,
    (ttl, protocol, [c0, c1]): (u8, u8, [u8; 2]),
    V4([s0, s1, s2, s3]): V4,
    V4([d0, d1, d2, d3]): V4,
) -> Option<()> {
    let bytes = [ttl, protocol, c0, c1, s0, s1, s2, s3, d0, d1, d2, d3];
    frame.store::<12>(network + 8, bytes)
}

/// Both ports, as numbers until the end: out of eight single bytes the compiler makes no word.
#[inline(always)]
fn side_by_side(source: [u8; 2], destination: [u8; 2]) -> [u8; 4] {
    let source = u32::from(u16::from_be_bytes(source));
    let destination = u32::from(u16::from_be_bytes(destination));
    (source << 16 | destination).to_be_bytes()
}

/// Addresses a frame to its next hop.
#[inline(always)]
pub fn link<F: Frame>(frame: &mut F, layer: &LinkLayer, hop: &Hop) -> Option<()> {
    if layer.network != ETHERNET && layer.vlan == 0 {
        // A tag that only carries a priority: it becomes the tag.
        frame.store::<2>(ETHERNET, hop.vlan().to_be_bytes())?;
    } else if layer.vlan != hop.vlan() {
        frame.set_vlan(layer.vlan, hop.vlan())?;
    }
    stations(frame, hop)
}

/// Writes the hardware addresses of a hop.
#[inline(always)]
pub fn stations<F: Frame>(frame: &mut F, hop: &Hop) -> Option<()> {
    let d = Hop::mac(hop.destination);
    let s = Hop::mac(hop.source);
    frame.store::<12>(0, [d[0], d[1], d[2], d[3], d[4], d[5], s[0], s[1], s[2], s[3], s[4], s[5]])
}
