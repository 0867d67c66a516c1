//! How many sessions there are, and what they hold: one walk over the table.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use xdp::address::V4;
use xdp::tables::Tables;
use xdp_abi::config::PolicyWord;
use xdp_abi::port::PairKey4;

use super::session::{Lease, SessionView, all_slots, sessions};

/// Sessions, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Sessions that packets match.
    pub live: u64,
    /// Sessions that ended and whose port rests.
    pub resting: u64,
    /// Live ones by the id of their SNAT policy.
    pub by_policy: HashMap<u32, u64>,
    /// Live ones with a lent port, by SNAT policy and outside address.
    pub by_address: HashMap<(u32, Ipv4Addr), u64>,
    /// What could be lent when this was counted.
    pub lendings: Vec<Lending>,
    /// Ports lent or resting, by what they are taken from.
    pub lent: HashMap<Stock, u32>,
}

/// The ports of an outside address that a policy may lend towards one destination. Policies that
/// state the same range of an address take from the same stock; of another range, a port that both
/// may lend is missing in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stock {
    /// Outside address and destination.
    pub pair: PairKey4,
    /// Which set of ports may be lent.
    pub lendable: u32,
}

impl Census {
    /// Walks over the whole table.
    pub fn take<T: Tables<A = V4>>(tables: &T, now: u32) -> Self {
        let mut census = Self { lendings: lendings(tables), ..Self::default() };
        let mut sets: HashMap<Ipv4Addr, BTreeSet<u32>> = HashMap::new();
        for lending in &census.lendings {
            sets.entry(lending.address).or_default().insert(lending.lendable);
        }
        for session in sessions(tables, 0..all_slots(tables), now) {
            if let Some(Lease { pair, port }) = session.lease {
                let of_address = sets.get(&Ipv4Addr::from(pair.outside)).into_iter().flatten();
                let holding = of_address.filter(|set| {
                    tables.lendable(**set).is_some_and(|ports| xdp::snat::may_lend(ports, port))
                });
                for lendable in holding.copied() {
                    *census.lent.entry(Stock { pair, lendable }).or_default() += 1;
                }
            }
            census.count(&session);
        }
        census
    }

    fn count(&mut self, session: &SessionView) {
        if !session.lives() {
            self.resting += 1;
            return;
        }
        self.live += 1;
        if session.told.snat_policy != 0 {
            *self.by_policy.entry(session.told.snat_policy).or_default() += 1;
        }
        if let Some(Lease { pair, .. }) = session.lease {
            let place = (session.told.snat_policy, Ipv4Addr::from(pair.outside));
            *self.by_address.entry(place).or_default() += 1;
        }
    }

    /// The stocks of which the greatest part is in use, the fullest first, each with how much that
    /// is: a small range that is full comes before a large one with more sessions.
    #[must_use]
    pub fn fullest(&self, most: usize) -> Vec<Fill> {
        let sizes: HashMap<u32, u32> =
            self.lendings.iter().map(|one| (one.lendable, one.ports)).collect();
        let size = |stock: &Stock| sizes.get(&stock.lendable).copied().unwrap_or(0);
        let mut fills: Vec<Fill> = self
            .lent
            .iter()
            .map(|(stock, used)| Fill { stock: *stock, used: *used, size: size(stock) })
            .collect();
        if fills.len() > most && most > 0 {
            fills.select_nth_unstable_by(most - 1, Fill::fuller_first);
        }
        fills.truncate(most);
        fills.sort_unstable_by(Fill::fuller_first);
        fills
    }
}

/// How much of a stock is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Of what.
    pub stock: Stock,
    /// Ports lent or resting.
    pub used: u32,
    /// Ports that may be lent.
    pub size: u32,
}

impl Fill {
    fn fuller_first(&self, other: &Self) -> Ordering {
        let part = |one: &Self, of: &Self| u64::from(one.used) * u64::from(of.size);
        let place = |Stock { pair, lendable }: &Stock| {
            let destination = (pair.destination, pair.destination_port, pair.protocol);
            (pair.outside, destination, pair.domain, *lendable)
        };
        part(other, self)
            .cmp(&part(self, other))
            .then_with(|| other.used.cmp(&self.used))
            .then_with(|| place(&self.stock).cmp(&place(&other.stock)))
    }
}

/// The last census, taken again when somebody asks and it is too old: a walk over a million
/// sessions is not for every reader.
#[derive(Debug, Default)]
pub struct CensusTaker {
    last: Mutex<Option<Taken>>,
}

#[derive(Debug)]
struct Taken {
    at: Instant,
    /// The policy of then (`Config::policy`).
    policy: u64,
    census: Arc<Census>,
}

impl CensusTaker {
    /// A census that is at most so old, and of the policy in force.
    pub fn no_older_than<T: Tables<A = V4>>(
        &self,
        age: Duration,
        tables: &T,
        now: u32,
    ) -> Arc<Census> {
        // Whoever asks while another counts waits for that count.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let policy = tables.config().policy.load();
        match &*last {
            Some(taken) if taken.policy == policy && taken.at.elapsed() <= age => {
                Arc::clone(&taken.census)
            }
            _ => {
                let census = Arc::new(Census::take(tables, now));
                *last = Some(Taken { at: Instant::now(), policy, census: Arc::clone(&census) });
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
    /// How many those are.
    pub ports: u32,
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
            let ports = ports(tables, pool.lendable);
            Some(Lending { policy, address, lendable: pool.lendable, ports })
        })
        .collect()
}

/// How many ports a set holds: the effective range, without what the host keeps for itself.
pub fn ports<T: Tables<A = V4>>(tables: &T, lendable: u32) -> u32 {
    let words = tables.lendable(lendable).map(|ports| &ports.words);
    words.into_iter().flatten().map(|word| word.load().count_ones()).sum()
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
        let policy = scene.config.image.snat[0].id.0;
        assert_eq!(census.by_policy, HashMap::from([(policy, 3)]));
        let address = "203.0.113.1".parse().unwrap();
        assert_eq!(census.by_address, HashMap::from([((policy, address), 3)]));
        let used: Vec<u32> = census.fullest(9).into_iter().map(|fill| fill.used).collect();
        assert_eq!(used, [2, 1]);
        assert_eq!(census.fullest(1)[0].stock.pair.destination, [198, 51, 100, 9]);
        assert!(census.fullest(0).is_empty());
        // Over, but the ports rest.
        scene.pass(7_441 * SECOND);
        scene.sweep();
        let census = Census::take(&*scene.memory, scene.now);
        assert_eq!((census.live, census.resting), (0, 3));
        assert!(census.by_policy.is_empty() && census.by_address.is_empty());
        assert_eq!(census.lent.values().sum::<u32>(), 3);
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
        scene.open_tcp("100.64.1.10:40001", "198.51.100.9:443");
        assert_eq!(ask(&scene, 3600), 1);
        scene.publish(TWO_CLUSTERS);
        assert_eq!(ask(&scene, 3600), 2, "its ranges are those of another policy");
    }

    /// Another policy for the address of the first, with five ports of its own.
    const NARROW: &str = r#"
  - kind: SnatPolicy
    name: one-pod-out
    spec: { order: 5, src_cidr: 100.64.1.10/32, dst_cidr: 198.51.100.0/24, interface: eth4, snat_ips: [203.0.113.1], snat_ports: "2000-2004" }
  - kind: Endpoint
    name: shop/api-3
    spec: { type: pod, domain: red, addresses: [100.64.1.11], namespace: shop }
"#;

    #[test]
    fn a_small_range_that_is_full_is_not_hidden_by_a_large_one_of_the_same_address() {
        let mut scene = testing::scene(&format!("{}{NARROW}", TWO_CLUSTERS.trim_end()));
        for port in 40_000..40_005 {
            scene.open_tcp(&format!("100.64.1.10:{port}"), "198.51.100.9:443");
        }
        scene.open_tcp("100.64.1.10:40000", "198.51.100.10:443");
        scene.open_tcp("100.64.1.11:40000", "198.51.100.10:443"); // out of the large one
        assert!(matches!(
            scene.syn(1, "100.64.1.10:40005", "198.51.100.9:443"),
            xdp::pipeline::Fate::Answered(xdp_abi::reason::Reason::PortsExhausted)
        ));
        let census = Census::take(&*scene.memory, scene.now);
        let fills: Vec<_> = census
            .fullest(9)
            .iter()
            .map(|fill| (fill.stock.pair.destination[3], fill.used, fill.size))
            .collect();
        let by_policy = |n: usize| scene.config.image.snat[n].id.0;
        let address = "203.0.113.1".parse().unwrap();
        let sessions = [0, 1].map(|n| census.by_address[&(by_policy(n), address)]);
        assert_eq!(sessions, [6, 1], "each policy has its own");
        // The large range holds the same ports, so they are missing in it too.
        assert_eq!(fills, [(9, 5, 5), (10, 1, 5), (9, 5, 64_512), (10, 2, 64_512)]);
        assert_eq!(census.fullest(2)[1].size, 5);
    }

    #[test]
    fn the_effective_range_is_what_the_tables_would_lend() {
        let scene = testing::scene(TWO_CLUSTERS);
        let lendings = lendings(&*scene.memory);
        let [all, few] = lendings[..] else { panic!("two addresses: {lendings:?}") };
        assert_eq!(all.address.to_string(), "203.0.113.1");
        assert_eq!(all.policy, scene.config.image.snat[0].id.0);
        assert_eq!((all.ports, few.ports), (64_512, 100));
        assert_eq!(ports(&*scene.memory, u32::MAX), 0, "a set that does not exist");
    }
}
