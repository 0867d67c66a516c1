//! Numbers of next hops, given back when no session uses them.
//!
//! The datapath numbers a next hop for each neighbour that sends or is sent to, and cannot know
//! when the last session towards it is gone. Here that is found out, when numbers run short: the
//! names of what no session uses are taken away first, so that nothing new is sent there by name;
//! a packet that had read the name before writes its session down within `GRACE`; what no
//! session uses then either is free.

use super::{
    hops::read,
    tables::{Datapath, lock},
};
use std::time::{Duration, Instant};
use xdp_abi::{
    forward::HOP_USED,
    session::{Entry4, Link, Meta, NETWORK_EPOCH, State},
};

/// Far longer than any packet takes.
const GRACE: Duration = Duration::from_millis(100);

/// Numbers on their way back.
#[derive(Debug, Default)]
pub struct Recycling {
    nameless: Option<(Vec<u16>, Instant)>,
}

impl Recycling {
    /// Takes the next step, if one is due: when three quarters of all numbers are taken.
    pub fn tend(&mut self, datapath: &Datapath) {
        if let Some((nameless, since)) = &self.nameless {
            if since.elapsed() >= GRACE {
                free(datapath, nameless);
                self.nameless = None;
            }
            return;
        }
        let hops = datapath.hops.all();
        let taken: Vec<u16> = (0..=u16::MAX)
            .zip(hops)
            .filter(|(_, hop)| read(hop).is(HOP_USED))
            .map(|(n, _)| n)
            .collect();
        if taken.len() * 4 < hops.len() * 3 {
            return;
        }
        let used = used(datapath.slots.all(), hops.len());
        let idle: Vec<u16> =
            taken.into_iter().filter(|number| !used[usize::from(*number)]).collect();
        let mut index = lock(&datapath.hop_index);
        let named: Vec<_> = index.iter().flatten().collect();
        for (key, number) in named {
            if u16::try_from(number).is_ok_and(|number| idle.binary_search(&number).is_ok()) {
                let _ = index.remove(&key);
            }
        }
        drop(index);
        // A number that is remembered is a name as well.
        datapath.move_epoch(NETWORK_EPOCH);
        self.nameless = Some((idle, Instant::now()));
    }
}

/// Which numbers sessions use.
pub(super) fn used(slots: &[Entry4], count: usize) -> Vec<bool> {
    let mut used = vec![false; count];
    for slot in slots {
        let is_somebody_s = Meta(slot.words[0].load()).state_bits() >= State::Keyed as u64;
        if is_somebody_s
            && let Some(used) = used.get_mut(usize::from(Link(slot.words[5].load()).next_hop()))
        {
            *used = true;
        }
    }
    used
}

fn free(datapath: &Datapath, nameless: &[u16]) {
    let used = used(datapath.slots.all(), datapath.hops.all().len());
    for number in nameless.iter().filter(|number| !used[usize::from(**number)]) {
        if let Some(hop) = datapath.hops.get(u32::from(*number)) {
            hop.words[2].store(0);
            let _ = lock(&datapath.free_hops).push(u32::from(*number), 0);
        }
    }
}
