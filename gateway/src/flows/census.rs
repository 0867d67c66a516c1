//! How many sessions there are, and what they hold: one walk over the table.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use xdp::address::V4;
use xdp::tables::Tables;
use xdp_abi::config::PolicyWord;
use xdp_abi::port::PairKey4;

use super::session::{SessionView, all_slots, sessions};

/// Sessions, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Sessions that packets match.
    pub live: u64,
    /// Sessions that ended and whose port rests.
    pub resting: u64,
    /// Live ones by the id of their SNAT policy.
    pub by_policy: HashMap<u32, u64>,
    /// Live ones with a lent port, by outside address.
    pub by_address: HashMap<Ipv4Addr, u64>,
    /// Ports lent or resting, by outside address and destination.
    pub pairs: HashMap<PairKey4, u32>,
}

impl Census {
    /// Walks over the whole table.
    pub fn take<T: Tables<A = V4>>(tables: &T, now: u32) -> Self {
        let mut census = Self::default();
        for session in sessions(tables, 0..all_slots(tables), now) {
            census.count(&session);
        }
        census
    }

    fn count(&mut self, session: &SessionView) {
        if let Some(pair) = session.lease {
            *self.pairs.entry(pair).or_default() += 1;
        }
        if !session.lives() {
            self.resting += 1;
            return;
        }
        self.live += 1;
        if session.told.snat_policy != 0 {
            *self.by_policy.entry(session.told.snat_policy).or_default() += 1;
        }
        if let Some(pair) = session.lease {
            *self.by_address.entry(Ipv4Addr::from(pair.outside)).or_default() += 1;
        }
    }

    /// The pairs with the most ports in use, the fullest first.
    #[must_use]
    pub fn fullest(&self, most: usize) -> Vec<(PairKey4, u32)> {
        let mut pairs: Vec<_> = self.pairs.iter().map(|(pair, used)| (*pair, *used)).collect();
        let order = |(pair, used): &(PairKey4, u32)| {
            let place = (pair.outside, pair.destination, pair.destination_port, pair.protocol);
            (std::cmp::Reverse(*used), place, pair.domain)
        };
        if pairs.len() > most && most > 0 {
            pairs.select_nth_unstable_by_key(most - 1, order);
        }
        pairs.truncate(most);
        pairs.sort_unstable_by_key(order);
        pairs
    }
}

/// The last census, taken again when somebody asks and it is too old: a walk over a million
/// sessions is not for every reader.
#[derive(Debug, Default)]
pub struct CensusTaker {
    last: Mutex<Option<(Instant, Arc<Census>)>>,
}

impl CensusTaker {
    /// A census that is at most so old.
    pub fn no_older_than<T: Tables<A = V4>>(
        &self,
        age: Duration,
        tables: &T,
        now: u32,
    ) -> Arc<Census> {
        // Whoever asks while another counts waits for that count.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((at, census)) if at.elapsed() <= age => Arc::clone(census),
            _ => {
                let census = Arc::new(Census::take(tables, now));
                *last = Some((Instant::now(), Arc::clone(&census)));
                census
            }
        }
    }
}

/// An outside address of a SNAT policy in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lending {
    /// The id of the policy.
    pub policy: u32,
    /// The address.
    pub address: Ipv4Addr,
    /// Which set of ports may be lent of it.
    pub lendable: u32,
}

/// Every outside address of every policy in force.
pub fn lendings<T: Tables<A = V4>>(tables: &T) -> Vec<Lending> {
    let word = PolicyWord(tables.config().policy.load());
    let bank = word.bank();
    let policies = (0..word.snat_policies()).filter_map(|bit| tables.snat(bank, bit));
    policies
        .flat_map(|policy| {
            let places =
                u32::from(policy.pool)..u32::from(policy.pool) + u32::from(policy.addresses);
            places.map(move |place| (policy.id, place))
        })
        .filter_map(|(policy, place)| {
            let pool = tables.pool(bank, place)?;
            let address = Ipv4Addr::from(pool.address);
            Some(Lending { policy, address, lendable: pool.lendable })
        })
        .collect()
}

/// How many different ports some sets hold together.
pub fn ports<T: Tables<A = V4>>(tables: &T, sets: impl Iterator<Item = u32> + Clone) -> u32 {
    (0..xdp_abi::port::PORT_WORDS)
        .map(|word| {
            let of_set = |set| tables.lendable(set).map_or(0, |ports| ports.words[word].load());
            sets.clone().map(of_set).fold(0, |all, some| all | some).count_ones()
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::testing::{self, SECOND, TWO_CLUSTERS};

    #[test]
    fn a_census_counts_sessions_by_what_they_hold() {
        let mut scene = testing::scene(TWO_CLUSTERS);
        scene.open_tcp("100.64.1.10:40000", "198.51.100.9:443");
        scene.open_tcp("100.64.1.10:40001", "198.51.100.9:443");
        scene.open_tcp("100.64.1.10:40002", "198.51.100.10:443");
        let census = Census::take(&*scene.memory, scene.now);
        assert_eq!((census.live, census.resting), (3, 0));
        assert_eq!(census.by_policy, HashMap::from([(scene.config.image.snat[0].id.0, 3)]));
        assert_eq!(census.by_address, HashMap::from([("203.0.113.1".parse().unwrap(), 3)]));
        let used: Vec<u32> = census.fullest(9).into_iter().map(|(_, used)| used).collect();
        assert_eq!(used, [2, 1]);
        assert_eq!(census.fullest(1)[0].0.destination, [198, 51, 100, 9]);
        assert!(census.fullest(0).is_empty());
        // Over, but the ports rest.
        scene.pass(7_441 * SECOND);
        scene.sweep();
        let census = Census::take(&*scene.memory, scene.now);
        assert_eq!((census.live, census.resting), (0, 3));
        assert!(census.by_policy.is_empty() && census.by_address.is_empty());
        assert_eq!(census.pairs.values().sum::<u32>(), 3);
    }

    #[test]
    fn a_census_is_taken_again_only_when_it_is_too_old() {
        let mut scene = testing::scene(TWO_CLUSTERS);
        let taker = CensusTaker::default();
        let ask = |scene: &testing::Scene, age| {
            taker.no_older_than(Duration::from_secs(age), &*scene.memory, scene.now).live
        };
        assert_eq!(ask(&scene, 3600), 0);
        scene.open_tcp("100.64.1.10:40000", "198.51.100.9:443");
        assert_eq!(ask(&scene, 3600), 0);
        assert_eq!(ask(&scene, 0), 1);
    }

    #[test]
    fn the_effective_range_is_what_the_tables_would_lend() {
        let scene = testing::scene(TWO_CLUSTERS);
        let lendings = lendings(&*scene.memory);
        let [all, few] = lendings[..] else { panic!("two addresses: {lendings:?}") };
        assert_eq!(all.address.to_string(), "203.0.113.1");
        assert_eq!(all.policy, scene.config.image.snat[0].id.0);
        let count = |sets: &[u32]| ports(&*scene.memory, sets.iter().copied());
        assert_eq!(count(&[all.lendable]), 64_512);
        assert_eq!(count(&[few.lendable]), 100);
        assert_eq!(count(&[all.lendable, few.lendable]), 64_512, "a port counts once");
        assert_eq!(count(&[]), 0);
    }
}
