//! Neighbours that the kernel is told to keep resolved: those of next hops in use.
//!
//! Whoever may send to a link can name any address on it, and what the kernel keeps it asks for
//! again and again. So only an address that answers is kept, for as long as a next hop that names it
//! is in use, and never more than `MOST`. One that is let go is the kernel's to remember and to
//! forget, and resolved by the next packet that is sent there.

use super::{hops, places::Places, recycle, tables::Datapath};
use crate::net::{self, IfIndex, NetworkState};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};
use tracing::warn;
use xdp_abi::forward::{HOP_REFRESH, HOP_RESOLVED, HOP_USED, Hop};

/// How many are kept. The kernel asks for each about twice a minute.
const MOST: usize = 1024;
/// A session asks the kernel for its way out once a second while it has packets.
const FRESH: Duration = Duration::from_secs(60);
/// How often every session is looked at, where that has to say what is in use.
const LOOK_EVERY: Duration = Duration::from_secs(60);

type Key = (IfIndex, IpAddr);

/// What the kernel keeps for us.
#[derive(Debug, Default)]
pub struct Managed {
    kept: BTreeSet<Key>,
    /// Which numbers of next hops sessions had, and when.
    looked: Option<(Vec<bool>, Instant)>,
    /// That there are more than are kept was said.
    crowded: bool,
}

impl Managed {
    /// Those that an earlier daemon has left, also on `devices` that have no attachment any more. On
    /// any other they are somebody else's.
    pub fn left(network: &NetworkState, places: &Places, devices: &BTreeSet<String>) -> Self {
        let is_ours = |ifindex: &IfIndex| {
            let link = network.links.get(ifindex);
            places.link_info(*ifindex).is_some()
                || link.is_some_and(|link| devices.contains(&link.name))
        };
        let left = network
            .neighbours
            .iter()
            .filter(|((ifindex, _), neighbour)| neighbour.managed && is_ours(ifindex));
        Self { kept: left.map(|(key, _)| *key).collect(), ..Self::default() }
    }

    /// The kernel forgets the neighbours of a link that goes down.
    pub fn forget(&mut self, ifindex: IfIndex) {
        self.kept.retain(|(at, _)| *at != ifindex);
    }

    /// A neighbour has an address again. It may have been deleted meanwhile: then the kernel keeps it no more.
    pub fn is_back(&self, ifindex: IfIndex, ip: Ipv4Addr) {
        if self.kept.contains(&(ifindex, ip.into())) {
            // Refused, it is as one that is not kept: resolved by the next packet that is sent there.
            let _ = net::manage_neighbour(ifindex, ip.into());
        }
    }

    /// Has the kernel keep what is in use, also when this process is gone, and nothing else.
    pub fn tend(&mut self, datapath: &Datapath, places: &Places) {
        let now = datapath.clock().now();
        let fresh = datapath.clock().ticks(FRESH);
        let is_fresh = |hop: &Hop| now.wrapping_sub(hop.tick()) <= fresh;
        let named: Vec<(usize, Hop)> = (0..)
            .zip(datapath.hops.all().iter().map(hops::read))
            .filter(|(_, hop)| [HOP_USED, HOP_REFRESH, HOP_RESOLVED].iter().all(|f| hop.is(*f)))
            .collect();
        // Flows of one packet each use a way out and never ask for it again.
        let is_due = self.looked.as_ref().is_none_or(|(_, at)| at.elapsed() >= LOOK_EVERY);
        if is_due && named.iter().any(|(_, hop)| !is_fresh(hop)) {
            let used = recycle::used(datapath.slots.all(), datapath.hops.all().len());
            self.looked = Some((used, Instant::now()));
        }
        let used = self.looked.as_ref().map_or(&[][..], |(used, _)| used);
        let in_use = named.into_iter().filter(|(number, hop)| {
            is_fresh(hop) || used.get(*number).is_some_and(|is_used| *is_used)
        });
        let (wanted, crowded) =
            wanted(in_use.map(|(_, hop)| hop), now, |attachment| places.routed_by(attachment));
        if crowded && !self.crowded {
            warn!(most = MOST, "more neighbours are in use than are kept resolved");
        }
        self.crowded = crowded;
        for key @ (ifindex, ip) in self.kept.difference(&wanted).copied().collect::<Vec<_>>() {
            if net::release_neighbour(ifindex, ip).is_ok() {
                self.kept.remove(&key);
            }
        }
        for key @ (ifindex, ip) in wanted.difference(&self.kept).copied().collect::<Vec<_>>() {
            if net::manage_neighbour(ifindex, ip).is_ok() {
                self.kept.insert(key);
            }
        }
    }
}

/// What these next hops name, of too many those that were asked for last; says whether there are
/// too many.
fn wanted(
    hops: impl Iterator<Item = Hop>,
    now: u32,
    routed_by: impl Fn(u16) -> Option<IfIndex>,
) -> (BTreeSet<Key>, bool) {
    let mut ages: BTreeMap<Key, u32> = BTreeMap::new();
    for hop in hops {
        if let Some(ifindex) = routed_by(hop.attachment()) {
            let age = now.wrapping_sub(hop.tick());
            let known = ages.entry((ifindex, Ipv4Addr::from(hop.gateway()).into())).or_insert(age);
            *known = age.min(*known);
        }
    }
    let crowded = ages.len() > MOST;
    let mut by_age: Vec<(Key, u32)> = ages.into_iter().collect();
    by_age.sort_by_key(|(_, age)| *age);
    (by_age.into_iter().take(MOST).map(|(key, _)| key).collect(), crowded)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A next hop of attachment 1 that was asked for at `tick`.
    fn hop(gateway: u32, tick: u32) -> Hop {
        Hop {
            checked: u64::from(gateway) << 32 | u64::from(tick),
            place: 1 << 16,
            ..Hop::default()
        }
    }

    #[test]
    fn of_too_many_neighbours_those_that_were_asked_for_last_are_kept() {
        let most = MOST as u32;
        let on_eth3 = |attachment| (attachment == 1).then_some(3);
        for (count, crowded) in [(most, false), (most + 1, true)] {
            // The clock has just begun anew.
            let hops = (1..=count).map(|number| hop(number, 0u32.wrapping_sub(number)));
            let (wanted, is_crowded) = wanted(hops, 7, on_eth3);
            assert_eq!((wanted.len(), is_crowded), (MOST, crowded), "{count}");
            let key = |number: u32| (3, IpAddr::from(number.to_be_bytes()));
            assert!(wanted.contains(&key(1)) && wanted.contains(&key(most)));
        }
        // Two numbers for one neighbour, and an attachment without an interface.
        let elsewhere = Hop { place: 2 << 16, ..hop(6, 1) };
        let (wanted, _) = wanted([hop(5, 1), hop(5, 2), elsewhere].into_iter(), 3, on_eth3);
        assert_eq!(wanted, [(3, IpAddr::from([0, 0, 0, 5]))].into());
    }
}
