//! The groups of every address, as two tables and the sets they point to.
//!
//! Hosts stand apart from shorter prefixes, because the packet path asks an exact table first and
//! longest-prefix match after it. An entry that would only repeat what covers it is left out, so
//! neither table grows with pods that are in no group of their own.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv4Subnets};

use crate::{DomainId, GroupId};

/// The groups of an address, and the extra prefixes that hold it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GroupSet {
    /// Sorted by id; `anywhere` is in every set.
    pub groups: Vec<GroupId>,
    /// Groups that some claimants of a contested address are in and others are not, sorted; none
    /// of them is among `groups`. They open nothing, and a refusal that names one still holds.
    pub doubted: Vec<GroupId>,
    /// Tags of the extra prefixes that hold the address, sorted.
    pub extras: Vec<u32>,
}

/// For every address of every domain its exact set of groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// All sets that occur. The first is `anywhere` alone: the answer for an address in no table.
    pub sets: Vec<GroupSet>,
    /// Single addresses and the index of their set, sorted.
    pub hosts: Vec<(DomainId, IpAddr, u32)>,
    /// Prefixes shorter than a host and the index of their set, sorted; the longest one counts.
    pub prefixes: Vec<(DomainId, IpNet, u32)>,
}

impl Membership {
    /// The set of an address.
    pub fn lookup(&self, domain: DomainId, address: IpAddr) -> &GroupSet {
        &self.sets[self.index_of(domain, address) as usize]
    }

    /// The index of the set of an address.
    pub fn index_of(&self, domain: DomainId, address: IpAddr) -> u32 {
        longest_match(&self.hosts, &self.prefixes, domain, address).unwrap_or(0)
    }

    /// The IPv4 addresses of a domain that a group holds, or may hold as long as it is in doubt: as
    /// few prefixes as can say it, sorted.
    pub fn held_by(&self, group: GroupId, domain: DomainId) -> Vec<Ipv4Net> {
        let holds = |set: u32| {
            let GroupSet { groups, doubted, .. } = &self.sets[set as usize];
            groups.contains(&group) || doubted.contains(&group)
        };
        let by_set: Vec<bool> = (0..self.sets.len() as u32).map(holds).collect();
        let hosts = self.hosts.iter().map(|(of, address, set)| (*of, IpNet::from(*address), *set));
        let everything = (domain, IpNet::V4(Ipv4Net::default()), 0);
        let mut prefixes: Vec<(Ipv4Net, u32)> = std::iter::once(everything)
            .chain(self.prefixes.iter().copied())
            .chain(hosts)
            .filter(|(of, ..)| *of == domain)
            .filter_map(|(_, prefix, set)| match prefix {
                IpNet::V4(prefix) => Some((prefix, set)),
                IpNet::V6(_) => None,
            })
            .collect();
        // One that holds another stands before it; of equals the table's own comes last.
        prefixes.sort_by_key(|(prefix, _)| *prefix);
        let mut held = Vec::new();
        let mut decided = 0;
        let mut decide = |until: u64, is_held: bool| {
            if is_held && decided < until {
                let address = |number: u64| (number as u32).into();
                held.extend(Ipv4Subnets::new(address(decided), address(until - 1), 0));
            }
            decided = decided.max(until);
        };
        let mut around: Vec<(u64, bool)> = Vec::new();
        for (prefix, set) in prefixes {
            let first = u64::from(u32::from(prefix.network()));
            while let Some((end, is_held)) = around.pop_if(|(end, _)| *end <= first) {
                decide(end, is_held);
            }
            decide(first, around.last().is_some_and(|(_, is_held)| *is_held));
            let end = u64::from(u32::from(prefix.broadcast())) + 1;
            around.push((end, by_set[set as usize]));
        }
        for (end, is_held) in around.into_iter().rev() {
            decide(end, is_held);
        }
        Ipv4Net::aggregate(&held)
    }
}

/// What sorted tables of hosts and prefixes say of an address: the host if it is there, else the
/// longest prefix that holds it.
pub fn longest_match(
    hosts: &[(DomainId, IpAddr, u32)],
    prefixes: &[(DomainId, IpNet, u32)],
    domain: DomainId,
    address: IpAddr,
) -> Option<u32> {
    let host = hosts.binary_search_by_key(&(domain, address), |(d, a, _)| (*d, *a));
    if let Ok(at) = host {
        return Some(hosts[at].2);
    }
    (0..IpNet::from(address).max_prefix_len()).rev().find_map(|length| {
        let key = (domain, IpNet::new(address, length).ok()?.trunc());
        let at = prefixes.binary_search_by_key(&key, |(d, p, _)| (*d, *p)).ok()?;
        Some(prefixes[at].2)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_holds_what_the_longest_prefix_says() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let set = |groups: &[u32], doubted: &[u32]| {
            let ids = |numbers: &[u32]| numbers.iter().copied().map(GroupId).collect();
            GroupSet { groups: ids(groups), doubted: ids(doubted), extras: Vec::new() }
        };
        let here = DomainId::FABRIC;
        let membership = Membership {
            sets: vec![set(&[], &[]), set(&[7], &[]), set(&[8], &[]), set(&[8], &[7])],
            hosts: vec![
                (here, "10.0.0.3".parse().unwrap(), 2),
                (here, "10.9.9.9".parse().unwrap(), 3),
            ],
            prefixes: vec![
                (here, net("10.0.0.0/29"), 1),
                (here, net("255.255.255.254/31"), 1),
                (here, net("2001:db8::/32"), 1),
                (DomainId(1), net("0.0.0.0/0"), 1),
                (DomainId(1), net("128.0.0.0/2"), 2),
                (DomainId(1), net("128.0.0.0/3"), 1),
            ],
        };
        for (group, domain, expected) in [
            (7, 0, "10.0.0.0/31 10.0.0.2/32 10.0.0.4/30 10.9.9.9/32 255.255.255.254/31"),
            (8, 0, "10.0.0.3/32 10.9.9.9/32"),
            (7, 1, "0.0.0.0/1 128.0.0.0/3 192.0.0.0/2"),
            (8, 1, "160.0.0.0/3"),
            (7, 2, ""),
        ] {
            let held = membership.held_by(GroupId(group), DomainId(domain));
            let held: Vec<String> = held.iter().map(ToString::to_string).collect();
            assert_eq!(held.join(" "), expected, "group {group} in domain {domain}");
        }
    }
}
