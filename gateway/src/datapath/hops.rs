//! Next hops, followed live: a neighbour that moves, a link that goes down.
//!
//! The datapath numbers next hops itself, because new flows must find their way while no
//! daemon runs. What is known of one is changed here, word by word, under traffic.

use super::{
    places::Places,
    tables::{Datapath, lock},
};
use crate::net::{Mac, NetworkState};
use std::net::{IpAddr, Ipv4Addr};
use xdp_abi::forward::{HOP_REFRESH, HOP_RESOLVED, HOP_USED, Hop, LINK_UP, NextHop};
use xdp_abi::session::NETWORK_EPOCH;

/// A reading of a next hop.
pub fn read(hop: &NextHop) -> Hop {
    Hop {
        destination: hop.words[0].load(),
        source: hop.words[1].load(),
        place: hop.words[2].load(),
        checked: hop.words[3].load(),
    }
}

/// A neighbour is reached under another hardware address, or under none, on the interface that
/// the kernel routes by. Says how many next hops that was.
pub fn moved(
    datapath: &Datapath,
    places: &Places,
    ifindex: u32,
    ip: Ipv4Addr,
    old: Option<Mac>,
    new: Option<Mac>,
) -> usize {
    let mut count = 0;
    for entry in datapath.hops.all() {
        let hop = read(entry);
        if !hop.is(HOP_USED) || places.routed_by(hop.attachment()) != Some(ifindex) {
            continue;
        }
        let named = hop.is(HOP_REFRESH) && hop.gateway() == ip.octets();
        // A way back was learnt from a packet: it knows the neighbour by its old address only.
        let learnt =
            !hop.is(HOP_REFRESH) && old.is_some_and(|old| Hop::mac(hop.destination) == old);
        match new {
            Some(mac) if named || learnt => {
                entry.words[0].store(Hop::mac_word(mac, hop.vlan()));
                entry.words[2].store(hop.place | u64::from(HOP_RESOLVED));
                count += 1;
            }
            None if named => {
                entry.words[2].store(hop.place & !u64::from(HOP_RESOLVED));
                count += 1;
            }
            Some(_) | None => {}
        }
    }
    count
}

/// Links changed: next hops on a link that is down are not used; hardware address and MTU of
/// the others are theirs.
pub fn relink(datapath: &Datapath, places: &Places) {
    for entry in datapath.hops.all() {
        let hop = read(entry);
        if !hop.is(HOP_USED) {
            continue;
        }
        let link = places.routed_by(hop.attachment()).and_then(|ifindex| places.link_info(ifindex));
        let Some(link) = link.filter(|link| link.flags & LINK_UP != 0) else {
            entry.words[2].store(hop.place & !u64::from(HOP_RESOLVED));
            continue;
        };
        entry.words[1].store(Hop::mac_word(link.mac, link.mtu));
        // One with an address is resolved again by whoever uses it; one without is as before.
        if !hop.is(HOP_REFRESH) {
            entry.words[2].store(hop.place | u64::from(HOP_RESOLVED));
        }
    }
}

/// The gateways in use, on the interfaces that the kernel routes by.
pub fn gateways(datapath: &Datapath, places: &Places) -> Vec<(u32, IpAddr)> {
    let mut gateways: Vec<(u32, IpAddr)> = datapath
        .hops
        .all()
        .iter()
        .map(read)
        .filter(|hop| hop.is(HOP_USED) && hop.is(HOP_REFRESH))
        .filter_map(|hop| {
            let ifindex = places.routed_by(hop.attachment())?;
            Some((ifindex, IpAddr::V4(Ipv4Addr::from(hop.gateway()))))
        })
        .collect();
    gateways.sort_unstable();
    gateways.dedup();
    gateways
}

/// Forgets the names of next hops whose attachment is gone, so that a new attachment with the
/// same number does not inherit them. Their numbers stay with the sessions that use them.
pub fn forget(datapath: &Datapath, network: &NetworkState) {
    let mut index = lock(&datapath.hop_index);
    let gone: Vec<_> =
        index.keys().flatten().filter(|key| !network.links.contains_key(&key.ifindex)).collect();
    for key in gone {
        let _ = index.remove(&key);
    }
    datapath.move_epoch(NETWORK_EPOCH);
}
