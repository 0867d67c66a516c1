//! Where a packet came in: the attachment that it belongs to, if it is for this machine at all.

use crate::{address::V4, tables::Tables};
use xdp_abi::forward::{ATTACHED, Attachment, FABRIC, port};

/// Where and how a packet came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The interface whose hook saw it.
    pub ifindex: u32,
    /// Its tag; zero: none.
    pub vlan: u16,
    /// The hardware address that sent it.
    pub sender: [u8; 6],
    /// Packets of the wire that it stands for.
    pub segments: u32,
    /// How long the headers of each are, from the IP header on; zero: not known, or it is one.
    pub headers: u32,
    /// The longest of them, from the IP header on.
    pub longest: u32,
    /// When, in ticks.
    pub now: u32,
}

impl Arrival {
    /// Before anything is known.
    pub const NONE: Self =
        Self { ifindex: 0, vlan: 0, sender: [0; 6], segments: 1, headers: 0, longest: 0, now: 0 };

    /// Bytes of headers, from the IP header on, that are on the wire and not in the frame.
    #[inline(always)]
    pub const fn repeated(&self) -> u64 {
        self.segments.saturating_sub(1) as u64 * self.headers as u64
    }
}

/// Whether a frame is for another machine and was only flooded here, or seen because somebody
/// looks at everything: the kernel drops it, so it is the kernel's. A tagged one may be for the
/// address of its VLAN device, which is mostly that of the interface. Of an interface without
/// addresses nothing is known.
#[inline(never)]
pub(crate) fn is_for_another<T: Tables<A = V4>>(
    tables: &T,
    ifindex: u32,
    vlan: u16,
    to: &[u8; 6],
    source: V4,
) -> bool {
    if tables.link(ifindex).is_some_and(|link| link.mac == *to) {
        return false;
    }
    let number = tables.attachment_of(port(ifindex, vlan), source);
    let attachment = number.and_then(|number| attached(tables, number));
    let link = attachment.and_then(|attachment| tables.link(attachment.ifindex));
    link.is_some_and(|link| link.mac != *to && link.mac != [0; 6])
}

/// The attachment of this number, if it is in use.
#[inline(always)]
pub(crate) fn attached<T: Tables<A = V4>>(tables: &T, number: u16) -> Option<Attachment> {
    tables.attachment(number).filter(|attachment| attachment.flags & ATTACHED != 0)
}

/// Whether a packet to this address is the machine's own business.
#[inline(always)]
pub fn is_own<T: Tables<A = V4>>(tables: &T, destination: V4) -> bool {
    is_to_many(destination) || tables.is_local(destination)
}

/// The same of IPv6: sent to many, or to an address that lies on one link or is the machine's.
#[inline(always)]
pub fn is_own6<T: Tables>(tables: &T, destination: &[u8; 16]) -> bool {
    let is_of_link = destination[0] == 0xfe && destination[1] & 0xc0 == 0x80;
    destination[0] == 0xff || is_of_link || tables.is_local6(destination)
}

/// Whether whoever sent a new flow's packet has taken an address of the machine. Its session would
/// take the answers to the machine's own connections. In a pod network an address that the machine
/// has on another interface may be a pod's, and those that it has there belong to no attachment.
#[inline(always)]
pub fn is_from_own<T: Tables<A = V4>>(tables: &T, domain: u16, source: V4) -> bool {
    domain == FABRIC && tables.is_local(source)
}

/// Multicast, or broadcast to a link: not routed, and the kernel knows whether it is for it. What
/// else lies above (240.0.0.0/4) the kernel would forward.
#[inline(always)]
pub(crate) fn is_to_many(destination: V4) -> bool {
    destination.0[0] & 0xf0 == 224 || destination.0 == [255; 4]
}
