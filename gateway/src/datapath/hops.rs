//! Next hops, followed live: a neighbour that moves, a link that goes down.
//!
//! The datapath numbers next hops itself, because new flows must find their way while no
//! daemon runs. What is known of one is changed here, word by word, under traffic.

use super::{
    places::Places,
    tables::{Datapath, lock},
};
use crate::net::{Mac, NetworkState};
use std::{
    collections::VecDeque,
    net::{IpAddr, Ipv4Addr},
};
use xdp_abi::forward::{
    HOP_REDIRECT, HOP_REFRESH, HOP_RESOLVED, HOP_ROUTABLE, HOP_USED, Hop, LINK_REDIRECT, LINK_UP,
    NextHop, ROUTABLE,
};
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
    if count > 0 {
        // A way back that is remembered may be another one now.
        datapath.move_epoch(NETWORK_EPOCH);
    }
    count
}

/// Links or attachments changed: next hops on a link that is down are not used; of the others
/// everything but the neighbour is what their attachment and its link are now. `address_of` says
/// who a hardware address was where an attachment has been until now.
pub fn relink(
    datapath: &Datapath,
    places: &Places,
    address_of: impl Fn(u16, Mac) -> Option<Ipv4Addr>,
) {
    for entry in datapath.hops.all() {
        let old = read(entry);
        if !old.is(HOP_USED) {
            continue;
        }
        let new = relinked(&old, places, &address_of);
        if old.place != new.place || old.destination != new.destination {
            // Nobody may send by half of it, or ask for it.
            entry.words[2].store(new.place & !u64::from(HOP_RESOLVED | HOP_REFRESH));
        }
        entry.words[0].store(new.destination);
        entry.words[1].store(new.source);
        if old.checked != new.checked {
            entry.words[3].store(new.checked);
        }
        entry.words[2].store(new.place);
    }
    datapath.move_epoch(NETWORK_EPOCH);
}

/// The address of a neighbour of whom only the hardware address is known.
pub fn address_of(network: &NetworkState, ifindex: u32, mac: Mac) -> Option<Ipv4Addr> {
    network.neighbours.iter().find_map(|((at, ip), neighbour)| match ip {
        IpAddr::V4(ip) if *at == ifindex && neighbour.mac == Some(mac) => Some(*ip),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    })
}

/// Neighbours that the kernel has forgotten while ways back led to them. It forgets all of a link
/// with the last address there, which goes before the attachment does, as a rule.
#[derive(Debug, Default)]
pub struct Forgotten(VecDeque<(u32, Mac, Ipv4Addr)>);

impl Forgotten {
    /// Remembers one, and at most `room` of them.
    pub fn insert(&mut self, ifindex: u32, mac: Mac, ip: Ipv4Addr, room: usize) {
        self.0.retain(|(at, known, _)| (*at, *known) != (ifindex, mac));
        self.0.push_back((ifindex, mac, ip));
        while self.0.len() > room {
            self.0.pop_front();
        }
    }

    /// The address that it had.
    pub fn address_of(&self, ifindex: u32, mac: Mac) -> Option<Ipv4Addr> {
        let found = self.0.iter().find(|(at, known, _)| (*at, *known) == (ifindex, mac));
        found.map(|(_, _, ip)| *ip)
    }
}

/// Whether a way back leads to a neighbour of whom only the hardware address is known.
pub fn lead_back(datapath: &Datapath, places: &Places, ifindex: u32, mac: Mac) -> bool {
    datapath.hops.all().iter().map(read).any(|hop| {
        hop.is(HOP_USED)
            && !hop.is(HOP_REFRESH)
            && Hop::mac(hop.destination) == mac
            && places.routed_by(hop.attachment()) == Some(ifindex)
    })
}

fn relinked(hop: &Hop, places: &Places, address_of: impl Fn(u16, Mac) -> Option<Ipv4Addr>) -> Hop {
    let number = hop.attachment();
    let attachment = places.attachments.get(&number);
    let link = places.routed_by(number).and_then(|ifindex| places.link_info(ifindex));
    let (Some(attachment), Some(link)) = (attachment, link) else {
        return Hop { place: hop.place & !u64::from(HOP_RESOLVED), ..*hop };
    };
    let up = link.flags & LINK_UP != 0;
    // On another link the same neighbour has another hardware address, as a rule.
    let moved = (hop.ifindex(), hop.vlan()) != (link.parent, link.vlan);
    let gateway = if hop.is(HOP_REFRESH) {
        Some(Ipv4Addr::from(hop.gateway()))
    } else if moved {
        address_of(number, Hop::mac(hop.destination))
    } else {
        None
    };
    // One with an address is resolved again by whoever uses it; one without is as before.
    let resolved = up && (gateway.is_none() || hop.is(HOP_RESOLVED) && !moved);
    let checked = match gateway {
        Some(gateway) if moved => u64::from(gateway.to_bits()) << 32,
        Some(_) | None => hop.checked,
    };
    let kept = hop.place as u16 & HOP_USED;
    let flags = [
        (HOP_REFRESH, gateway.is_some()),
        (HOP_RESOLVED, resolved),
        (HOP_ROUTABLE, attachment.flags & ROUTABLE != 0),
        (HOP_REDIRECT, link.flags & LINK_REDIRECT != 0),
    ];
    let flags = flags.into_iter().filter(|(_, set)| *set).fold(kept, |all, (flag, _)| all | flag);
    Hop {
        destination: Hop::mac_word(Hop::mac(hop.destination), link.vlan),
        source: Hop::mac_word(link.mac, link.mtu),
        place: u64::from(link.parent) << 32 | u64::from(number) << 16 | u64::from(flags),
        checked,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Neighbour, NeighbourState};
    use xdp_abi::forward::{ATTACHED, Attachment, LinkInfo};

    fn nobody(_: u16, _: Mac) -> Option<Ipv4Addr> {
        None
    }

    /// One attachment, whose traffic is on interface 12.
    fn places(flags: u8, link: LinkInfo) -> Places {
        let attachment = Attachment { flags: ATTACHED | flags, ifindex: 12, ..Attachment::NONE };
        Places::with_link(attachment, 12, link)
    }

    fn hop(flags: u16) -> Hop {
        Hop {
            destination: Hop::mac_word([2, 0, 0, 0, 0, 9], 7),
            source: Hop::mac_word([2, 0, 0, 0, 0, 1], 9000),
            place: 11 << 32 | 1 << 16 | u64::from(HOP_USED | flags),
            checked: 5,
        }
    }

    #[test]
    fn a_next_hop_becomes_what_its_attachment_and_link_are_now() {
        let link = LinkInfo {
            parent: 13,
            vlan: 9,
            mtu: 1400,
            mac: [2, 0, 0, 0, 0, 3],
            flags: LINK_UP | LINK_REDIRECT,
        };
        let routable = places(ROUTABLE, link);
        let here = Hop {
            destination: Hop::mac_word([2, 0, 0, 0, 0, 9], link.vlan),
            place: 13 << 32 | hop(HOP_RESOLVED | HOP_REFRESH).place & 0xffff_ffff,
            ..hop(0)
        };
        let new = relinked(&here, &routable, nobody);
        assert_eq!((new.ifindex(), new.vlan(), new.mtu()), (13, 9, 1400));
        assert_eq!(Hop::mac(new.destination), [2, 0, 0, 0, 0, 9], "the neighbour is the same");
        assert_eq!(Hop::mac(new.source), link.mac);
        for (flag, expected) in [
            (HOP_USED, true),
            (HOP_REFRESH, true),
            (HOP_RESOLVED, true),
            (HOP_ROUTABLE, true),
            (HOP_REDIRECT, true),
        ] {
            assert_eq!(new.is(flag), expected, "{flag}");
        }
        let inside = places(0, LinkInfo { flags: LINK_UP, ..link });
        let new = relinked(&hop(HOP_ROUTABLE | HOP_REDIRECT), &inside, nobody);
        assert!(!new.is(HOP_ROUTABLE) && !new.is(HOP_REDIRECT));
    }

    #[test]
    fn a_next_hop_on_a_link_that_is_down_or_gone_is_not_used() {
        let link = LinkInfo { parent: 12, ..LinkInfo::default() };
        for places in [places(0, link), Places::default()] {
            assert!(!relinked(&hop(HOP_RESOLVED), &places, nobody).is(HOP_RESOLVED));
        }
        // Back up: one without an address is as before, one with is resolved by whoever uses it.
        let up = places(0, LinkInfo { flags: LINK_UP, ..link });
        assert!(relinked(&hop(0), &up, nobody).is(HOP_RESOLVED));
        assert!(!relinked(&hop(HOP_REFRESH), &up, nobody).is(HOP_RESOLVED));
    }

    #[test]
    fn on_another_link_a_neighbour_is_asked_for_again() {
        let router = Ipv4Addr::new(10, 0, 0, 9);
        let router_is =
            |number: u16, mac: Mac| (number == 1 && mac == [2, 0, 0, 0, 0, 9]).then_some(router);
        let other = |_: u16, _: Mac| Some(Ipv4Addr::new(10, 0, 0, 8));
        let named = Hop { checked: u64::from(router.to_bits()) << 32 | 5, ..hop(HOP_REFRESH) };
        let named = Hop { place: named.place | u64::from(HOP_RESOLVED), ..named };
        let learnt = hop(HOP_RESOLVED);
        let at = |parent, vlan, flags| {
            places(0, LinkInfo { parent, vlan, flags, ..LinkInfo::default() })
        };
        for (parent, vlan) in [(12, 7), (11, 8)] {
            let there = at(parent, vlan, LINK_UP);
            for (hop, new) in [
                (named, relinked(&named, &there, other)),
                (learnt, relinked(&learnt, &there, router_is)),
            ] {
                assert_eq!((new.ifindex(), new.vlan()), (parent, vlan));
                assert!(new.is(HOP_REFRESH) && !new.is(HOP_RESOLVED), "{hop:?} -> {new:?}");
                assert_eq!((Ipv4Addr::from(new.gateway()), new.tick()), (router, 0));
            }
            // Nobody knows who that is: perhaps it is there all the same.
            let new = relinked(&learnt, &there, nobody);
            assert!(!new.is(HOP_REFRESH) && new.is(HOP_RESOLVED), "{new:?}");
        }
        // Where it was, it is what it was.
        let here = at(11, 7, LINK_UP);
        for hop in [named, learnt] {
            let new = relinked(&hop, &here, router_is);
            assert_eq!((new.place, new.checked), (hop.place, hop.checked));
            assert!(!relinked(&hop, &at(11, 7, 0), router_is).is(HOP_RESOLVED));
        }
    }

    #[test]
    fn a_hardware_address_is_that_of_a_neighbour_on_its_link() {
        let mac = [2, 0, 0, 0, 0, 9];
        let known = |mac| Neighbour { mac, state: NeighbourState::Stale, managed: false };
        let mut network = NetworkState::default();
        network.neighbours.extend([
            ((11, "10.0.0.7".parse().unwrap()), known(None)),
            ((11, "10.0.0.8".parse().unwrap()), known(Some([2, 0, 0, 0, 0, 8]))),
            ((11, "fe80::9".parse().unwrap()), known(Some(mac))),
            ((12, "10.0.0.9".parse().unwrap()), known(Some(mac))),
        ]);
        assert_eq!(address_of(&network, 12, mac), Some(Ipv4Addr::new(10, 0, 0, 9)));
        assert_eq!(address_of(&network, 11, mac), None);
    }

    #[test]
    fn what_the_kernel_has_forgotten_is_remembered_within_bounds() {
        let mut forgotten = Forgotten::default();
        let mac = |n: u8| [2, 0, 0, 0, 0, n];
        let ip = |n: u8| Ipv4Addr::new(10, 0, 0, n);
        for n in 1..=3 {
            forgotten.insert(11, mac(n), ip(n), 3);
        }
        forgotten.insert(11, mac(1), ip(9), 3); // known by another address now, and the newest
        forgotten.insert(12, mac(4), ip(4), 3);
        for (at, n, expected) in [
            (11, 1, Some(ip(9))),
            (11, 2, None), // the oldest had to go
            (11, 3, Some(ip(3))),
            (12, 4, Some(ip(4))),
            (11, 4, None), // another link
        ] {
            assert_eq!(forgotten.address_of(at, mac(n)), expected, "{at} {n}");
        }
    }
}
