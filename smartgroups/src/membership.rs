//! The groups of every address, as two tables and the sets they point to.
//!
//! Hosts stand apart from shorter prefixes, because the packet path asks an exact table first and
//! longest-prefix match after it. An entry that would only repeat what covers it is left out, so
//! neither table grows with pods that are in no group of their own.

use std::net::IpAddr;

use ipnet::IpNet;

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
