//! Next hops, followed live: a neighbour that moves, a link that goes down.
//!
//! The datapath numbers next hops itself, because new flows must find their way while no
//! daemon runs. What is known of one is changed here, word by word, under traffic.

use super::{
    places::Places,
    tables::{Datapath, lock},
};
use crate::net::{IfIndex, Mac, NetworkState};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::{Duration, Instant},
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

/// Of how many neighbours without a hardware address the last one is known. Whoever may send to a link
/// can come and go under any address on it.
const MOST_FORMER: usize = 1024;

/// For how long. Whoever has the address of a neighbour much later is another one.
const FORMER_FOR: Duration = Duration::from_secs(300);

/// The last hardware addresses of neighbours that have none now: deleted, or without an answer.
///
/// A way back was learnt from a packet and knows its neighbour by this address only; so the one that
/// comes next is that neighbour's move.
#[derive(Debug, Default)]
pub struct Former(BTreeMap<(IfIndex, Ipv4Addr), (Mac, Instant)>);

impl Former {
    /// The address that a neighbour had before `new`, or before it had none. Only an address that is a
    /// way back is kept for later.
    pub fn before(
        &mut self,
        neighbour: (IfIndex, Ipv4Addr),
        old: Option<Mac>,
        new: Option<Mac>,
        now: Instant,
        ways_back: impl FnOnce() -> BTreeSet<(IfIndex, Mac)>,
    ) -> Option<Mac> {
        let is_recent = |at: &Instant| now.saturating_duration_since(*at) <= FORMER_FOR;
        match (old, new) {
            (Some(mac), None) => {
                let ways_back = ways_back();
                if self.0.len() >= MOST_FORMER {
                    self.0.retain(|(ifindex, _), (mac, at)| {
                        is_recent(at) && ways_back.contains(&(*ifindex, *mac))
                    });
                }
                if self.0.len() < MOST_FORMER && ways_back.contains(&(neighbour.0, mac)) {
                    self.0.insert(neighbour, (mac, now));
                }
                old
            }
            (None, Some(_)) => {
                let former = self.0.remove(&neighbour).filter(|(_, at)| is_recent(at));
                former.map(|(mac, _)| mac).filter(|former| Some(*former) != new)
            }
            (Some(_), Some(_)) | (None, None) => old,
        }
    }
}

/// The hardware addresses that answers go back to, each with the interface that the kernel routes by.
pub fn ways_back(datapath: &Datapath, places: &Places) -> BTreeSet<(IfIndex, Mac)> {
    let learnt =
        datapath.hops.all().iter().map(read).filter(|hop| hop.is(HOP_USED) && !hop.is(HOP_REFRESH));
    learnt
        .filter_map(|hop| {
            let ifindex = places.routed_by(hop.attachment())?;
            Some((ifindex, Hop::mac(hop.destination)))
        })
        .collect()
}

/// A neighbour is reached under another hardware address, or under none, on the interface that
/// the kernel routes by. Says whether that is a way back; it may be that of others too, who have it
/// still, and they show it with their next packet if that is judged again.
pub fn moved(
    datapath: &Datapath,
    places: &Places,
    ifindex: u32,
    ip: Ipv4Addr,
    old: Option<Mac>,
    new: Option<Mac>,
) -> bool {
    let is_there = |hop: &Hop| places.routed_by(hop.attachment()) == Some(ifindex);
    let Some(is_way_back) = follow(datapath.hops.all(), is_there, ip, old, new) else {
        return false;
    };
    // A way back that is remembered may be another one now.
    datapath.move_epoch(NETWORK_EPOCH);
    is_way_back
}

/// Whether one of those that changed is a way back; `None` if none did.
fn follow(
    hops: &[NextHop],
    is_there: impl Fn(&Hop) -> bool,
    ip: Ipv4Addr,
    old: Option<Mac>,
    new: Option<Mac>,
) -> Option<bool> {
    let mut is_way_back = None;
    for entry in hops {
        let hop = read(entry);
        if !hop.is(HOP_USED) || !is_there(&hop) {
            continue;
        }
        let Some(now) = reached(&hop, ip, old, new) else { continue };
        if now.destination != hop.destination {
            entry.words[0].store(now.destination);
        }
        entry.words[2].store(now.place);
        *is_way_back.get_or_insert(false) |= !hop.is(HOP_REFRESH);
    }
    is_way_back
}

/// A next hop on the interface where a neighbour is reached in another way, if it is that neighbour's.
fn reached(hop: &Hop, ip: Ipv4Addr, old: Option<Mac>, new: Option<Mac>) -> Option<Hop> {
    let is_named = hop.is(HOP_REFRESH);
    let is_it = if is_named {
        hop.gateway() == ip.octets()
    } else {
        // A way back was learnt from a packet: it knows the neighbour by its old address only.
        old == Some(Hop::mac(hop.destination))
    };
    match new {
        _ if !is_it => None,
        Some(mac) => Some(Hop {
            destination: Hop::mac_word(mac, hop.vlan()),
            place: hop.place | u64::from(HOP_RESOLVED),
            ..*hop
        }),
        None if is_named => Some(Hop { place: hop.place & !u64::from(HOP_RESOLVED), ..*hop }),
        // Whoever is behind it may be there still.
        None => None,
    }
}

/// Links or attachments changed: next hops on a link that is down are not used; of the others
/// everything but the neighbour is what their attachment and its link are now.
pub fn relink(datapath: &Datapath, places: &Places) {
    for entry in datapath.hops.all() {
        let old = read(entry);
        if !old.is(HOP_USED) {
            continue;
        }
        let new = relinked(&old, places);
        if old.place != new.place || old.destination != new.destination {
            // Nobody may send by half of it.
            entry.words[2].store(new.place & !u64::from(HOP_RESOLVED));
        }
        entry.words[0].store(new.destination);
        entry.words[1].store(new.source);
        entry.words[2].store(new.place);
    }
    datapath.move_epoch(NETWORK_EPOCH);
}

fn relinked(hop: &Hop, places: &Places) -> Hop {
    let number = hop.attachment();
    let attachment = places.attachments.get(&number);
    let link = places.routed_by(number).and_then(|ifindex| places.link_info(ifindex));
    let (Some(attachment), Some(link)) = (attachment, link) else {
        return Hop { place: hop.place & !u64::from(HOP_RESOLVED), ..*hop };
    };
    let up = link.flags & LINK_UP != 0;
    // On another link the same neighbour has another hardware address, as a rule. One with an
    // address is resolved again by whoever uses it; one without is what it was, until a packet of
    // its session shows where that comes from now.
    let moved = (hop.ifindex(), hop.vlan()) != (link.parent, link.vlan);
    let resolved = up && (!hop.is(HOP_REFRESH) || hop.is(HOP_RESOLVED) && !moved);
    let kept = hop.place as u16 & (HOP_USED | HOP_REFRESH);
    let flags = [
        (HOP_RESOLVED, resolved),
        (HOP_ROUTABLE, attachment.flags & ROUTABLE != 0),
        (HOP_REDIRECT, link.flags & LINK_REDIRECT != 0),
    ];
    let flags = flags.into_iter().filter(|(_, set)| *set).fold(kept, |all, (flag, _)| all | flag);
    // A route may take less than its link. One that takes more again is found by another number.
    let mtu = if hop.is(HOP_REFRESH) { hop.mtu().min(link.mtu) } else { link.mtu };
    Hop {
        destination: Hop::mac_word(Hop::mac(hop.destination), link.vlan),
        source: Hop::mac_word(link.mac, mtu),
        place: u64::from(link.parent) << 32 | u64::from(number) << 16 | u64::from(flags),
        checked: hop.checked,
    }
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
    use xdp_abi::forward::{ATTACHED, Attachment, LinkInfo};
    use xdp_abi::word::Word;

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
        let new = relinked(&here, &routable);
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
        // A link that takes more widens no route; the way back takes what the link takes.
        let wide = places(0, LinkInfo { mtu: 9_100, ..link });
        assert_eq!(relinked(&hop(HOP_REFRESH), &wide).mtu(), 9_000);
        assert_eq!(relinked(&hop(0), &wide).mtu(), 9_100);
        let inside = places(0, LinkInfo { flags: LINK_UP, ..link });
        let new = relinked(&hop(HOP_ROUTABLE | HOP_REDIRECT), &inside);
        assert!(!new.is(HOP_ROUTABLE) && !new.is(HOP_REDIRECT));
    }

    #[test]
    fn a_neighbour_that_had_no_address_meanwhile_has_moved() {
        const ROUTER: (IfIndex, Ipv4Addr) = (12, Ipv4Addr::new(10, 0, 0, 1));
        let mac = |last| [2, 0, 0, 0, 0, last];
        let begun = Instant::now();
        let before = |former: &mut Former, neighbour, old: Option<u8>, new: Option<u8>| {
            let ways_back = || [(12, mac(1)), (13, mac(2))].into();
            former.before(neighbour, old.map(mac), new.map(mac), begun, ways_back)
        };
        for (first, second, found) in [
            (1, 3, Some(mac(1))),
            (1, 1, None), // it is back
            (2, 3, None), // no way back leads there on this interface
        ] {
            let former = &mut Former::default();
            assert_eq!(before(former, ROUTER, Some(first), None), Some(mac(first)));
            assert_eq!(before(former, (12, [10, 0, 0, 2].into()), None, Some(9)), None);
            assert_eq!(before(former, ROUTER, None, Some(second)), found, "{first} {second}");
            assert_eq!(before(former, ROUTER, None, Some(4)), None, "once");
        }
        assert_eq!(before(&mut Former::default(), ROUTER, Some(1), Some(3)), Some(mac(1)));
        // Very many that come and go under one address.
        let former = &mut Former::default();
        for host in 0..2 * MOST_FORMER as u32 {
            before(former, (12, host.into()), Some(1), None);
        }
        assert_eq!(former.0.len(), MOST_FORMER);
        assert_eq!(
            former.before(ROUTER, Some(mac(3)), None, begun, || [(12, mac(3))].into()),
            Some(mac(3))
        );
        assert_eq!(former.0.len(), 1, "those that are no way back any more make room");
        // Long after it is another neighbour that has got its address.
        for (later, found) in [(FORMER_FOR, Some(mac(1))), (FORMER_FOR + FORMER_FOR, None)] {
            let former = &mut Former::default();
            before(former, ROUTER, Some(1), None);
            let came = former.before(ROUTER, None, Some(mac(3)), begun + later, BTreeSet::new);
            assert_eq!(came, found, "{later:?}");
        }
    }

    #[test]
    fn a_neighbour_that_moves_takes_along_what_leads_to_it() {
        const IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
        let entry = |hop: Hop| NextHop {
            words: [hop.destination, hop.source, hop.place, hop.checked].map(Word::new),
        };
        let mac = |last| Some([2, 0, 0, 0, 0, last]);
        let named = Hop { checked: u64::from(u32::from(IP)) << 32 | 5, ..hop(HOP_REFRESH) };
        let another = Hop { checked: u64::from(u32::from(IP) + 1) << 32, ..named };
        let learnt = hop(HOP_RESOLVED);
        let unused = Hop { place: learnt.place & !u64::from(HOP_USED), ..learnt };
        // What there is, the neighbour before and now; where it leads after that and whether anybody may
        // send there; whether it was a way back.
        for (hop, old, new, after, resolved, is_way_back) in [
            (named, mac(9), mac(3), 3, true, Some(false)),
            (named, None, mac(9), 9, true, Some(false)),
            (named, mac(9), None, 9, false, Some(false)),
            (another, mac(9), mac(3), 9, false, None),
            // Known by the hardware address that it had.
            (learnt, mac(9), mac(3), 3, true, Some(true)),
            (learnt, mac(8), mac(3), 9, true, None),
            (learnt, None, mac(3), 9, true, None),
            (learnt, mac(9), None, 9, true, None), // it may be there still
            (unused, mac(9), mac(3), 9, true, None),
        ] {
            let hops = [entry(hop)];
            let case = format!("{hop:?}: {old:?} -> {new:?}");
            assert_eq!(follow(&hops, |_| false, IP, old, new), None, "elsewhere, {case}");
            assert_eq!(read(&hops[0]), hop, "elsewhere, {case}");
            assert_eq!(follow(&hops, |_| true, IP, old, new), is_way_back, "{case}");
            let found = read(&hops[0]);
            assert_eq!(Some(Hop::mac(found.destination)), mac(after), "{case}");
            assert_eq!(found.is(HOP_RESOLVED), resolved, "{case}");
            assert_eq!((found.vlan(), found.source, found.checked), (7, hop.source, hop.checked));
        }
        // One way back among others is enough.
        let both = [learnt, named].map(entry);
        assert_eq!(follow(&both, |_| true, IP, mac(9), mac(3)), Some(true));
    }

    #[test]
    fn a_next_hop_on_a_link_that_is_down_or_gone_is_not_used() {
        let link = LinkInfo { parent: 12, ..LinkInfo::default() };
        for places in [places(0, link), Places::default()] {
            assert!(!relinked(&hop(HOP_RESOLVED), &places).is(HOP_RESOLVED));
        }
        // Back up: one without an address is as before, one with is resolved by whoever uses it.
        let up = places(0, LinkInfo { flags: LINK_UP, ..link });
        assert!(relinked(&hop(0), &up).is(HOP_RESOLVED));
        assert!(!relinked(&hop(HOP_REFRESH), &up).is(HOP_RESOLVED));
    }

    #[test]
    fn on_another_link_a_neighbour_is_asked_for_again() {
        let named = hop(HOP_RESOLVED | HOP_REFRESH);
        let learnt = hop(HOP_RESOLVED);
        let at = |parent, vlan, flags| {
            places(0, LinkInfo { parent, vlan, flags, ..LinkInfo::default() })
        };
        for (parent, vlan) in [(12, 7), (11, 8)] {
            let there = at(parent, vlan, LINK_UP);
            for (hop, resolved) in [(named, false), (learnt, true)] {
                let new = relinked(&hop, &there);
                assert_eq!((new.ifindex(), new.vlan()), (parent, vlan));
                assert_eq!(new.is(HOP_RESOLVED), resolved, "{hop:?} -> {new:?}");
            }
        }
        // Where it was, it is what it was.
        for hop in [named, learnt] {
            assert_eq!(relinked(&hop, &at(11, 7, LINK_UP)).place, hop.place);
            assert!(!relinked(&hop, &at(11, 7, 0)).is(HOP_RESOLVED));
        }
    }
}
