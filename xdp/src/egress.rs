//! Where the kernel sends: what was punted is translated here, and the second guard of invariant 1
//! stands.

use crate::{
    address::{Address, Entry, Key, Rewrite, V4},
    arrival::{attached, is_to_many},
    frame::Frame,
    packet::{self, Parsed},
    rewrite::{self, Ttl},
    session::seems_expired,
    table,
    tables::{Tables, Tally, is_non_routable},
};
use xdp_abi::{
    forward::{ROUTABLE, port},
    reason::Reason,
    session::Class,
};

/// What TC egress does with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Egress {
    /// Let it go as it is.
    Untouched,
    /// A punted packet, translated now: let it go.
    Translated,
    /// Discard it.
    Drop(Reason),
}

/// A frame that the kernel is about to send by `ifindex`; `punted` is the attachment that it
/// came by, if an ingress hook left it to the kernel.
#[inline(always)]
pub fn egress<T: Tables<A = V4>, F: Frame>(
    tables: &T,
    frame: &mut F,
    ifindex: u32,
    punted: Option<u16>,
    now: u32,
) -> Egress {
    let layer = match packet::link_layer(frame) {
        Ok(layer) => layer,
        // What cannot be read cannot be shown to be harmless.
        Err(reason) => return Egress::Drop(reason),
    };
    if layer.ethertype != packet::IPV4 {
        return if punted.is_none() { Egress::Untouched } else { Egress::Drop(Reason::Ethertype) };
    }
    let mut source;
    let destination;
    let mut egress = Egress::Untouched;
    match packet::ipv4(frame, layer.network) {
        Ok(Parsed::Packet(mut packet)) => {
            source = packet.key.source;
            destination = packet.key.destination;
            if let Some(number) = punted {
                let Some(attachment) = attached(tables, number) else {
                    return Egress::Drop(Reason::NoAttachment);
                };
                packet.key.domain = attachment.domain;
                let Some(rewrite) = late(tables, &packet.key, now) else {
                    return Egress::Drop(Reason::NoSession);
                };
                if rewrite::network(frame, &packet, &rewrite, Ttl::Keep).is_none() {
                    return Egress::Drop(Reason::HelperFailed);
                }
                source = rewrite.source;
                egress = Egress::Translated;
            }
        }
        Ok(Parsed::Refused(from, to, reason)) => {
            if punted.is_some() || is_redirect(frame, layer.network) {
                return Egress::Drop(reason);
            }
            source = from;
            destination = to;
        }
        Err(reason) => return Egress::Drop(reason),
    }
    if is_non_routable(tables.config(), source)
        && may_leak(tables, port(ifindex, layer.vlan), source, destination)
    {
        tables.tally(Tally::LeakStopped);
        return Egress::Drop(Reason::Leak);
    }
    egress
}

/// Whether it is an ICMP redirect: the kernel tells a neighbour whose packets it sends out where they
/// came in to go around this machine, and so around its rules.
#[inline(always)]
fn is_redirect<F: Frame>(frame: &F, network: u32) -> bool {
    let Some([version_length, _, _, _, _, _, _, _, _, protocol]) = frame.load::<10>(network) else {
        return false;
    };
    let header = (version_length & 15) as u32 * 4;
    protocol == packet::ICMP && matches!(frame.load::<1>(network + header), Some([5]))
}

/// The rewrite of a live session, without touching it: ingress has counted the packet.
#[inline(always)]
fn late<T: Tables<A = V4>>(tables: &T, key: &Key<V4>, now: u32) -> Option<Rewrite<V4>> {
    let found = table::find(tables, &V4::pack(key))?;
    let entry = tables.slot(found.index)?;
    let rewrite = entry.rewrite();
    if !entry.load_meta().same_owner(found.meta)
        || matches!(found.meta.class(), Class::Resting)
        || seems_expired(tables.config(), found.meta, now)
    {
        return None;
    }
    Some(rewrite)
}

/// Whether a non-routable source would leave where it must not. A destination on no attachment
/// counts as one that must not see it, but for multicast on a link that its sources belong to:
/// that is the machine's own.
#[inline(always)]
fn may_leak<T: Tables<A = V4>>(tables: &T, place: u32, source: V4, destination: V4) -> bool {
    let number = match tables.attachment_towards(place, destination) {
        Some(number) => Some(number),
        None if is_to_many(destination) => tables.attachment_of(place, source),
        None => None,
    };
    let Some(number) = number else { return true };
    match attached(tables, number) {
        Some(attachment) => attachment.flags & ROUTABLE != 0 && !tables.carries(number, source),
        None => true,
    }
}
