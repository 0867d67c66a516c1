//! A policy that was made up, and the addresses and ports at its borders: flows between those hit
//! each rule, and narrowly miss it.

use std::net::Ipv4Addr;

use ipnet::IpNet;
use policy_compiler::{DefaultAction, Inputs, PortRange, Rule, Scope, SnatPolicy};
use smartgroups::{DomainId, Inventory, SmartGroup};

/// The fabric and two domains.
pub(crate) const DOMAINS: [DomainId; 3] = [DomainId(0), DomainId(1), DomainId(2)];

#[derive(Clone, Debug)]
pub(crate) struct Policy {
    pub(crate) inventory: Inventory,
    pub(crate) groups: Vec<SmartGroup>,
    pub(crate) rules: Vec<Rule>,
    pub(crate) snat: Vec<SnatPolicy>,
    pub(crate) default_action: DefaultAction,
}

impl Policy {
    pub(crate) fn inputs(&self) -> Inputs<'_> {
        Inputs {
            inventory: &self.inventory,
            groups: &self.groups,
            rules: &self.rules,
            snat: &self.snat,
            default_action: self.default_action,
            domains: &DOMAINS,
        }
    }

    /// Both ends of every IPv4 prefix and the addresses just outside of it.
    pub(crate) fn addresses(&self) -> Vec<Ipv4Addr> {
        let selectors = self.groups.iter().flat_map(|one| one.selectors.iter().chain(&one.exclude));
        let stated = selectors.filter_map(|selector| selector.cidr);
        let owned = self.inventory.endpoints().flat_map(|endpoint| endpoint.addresses.clone());
        let scopes = self.snat.iter().flat_map(|policy| [&policy.source, &policy.destination]);
        let matched = scopes.filter_map(|scope| match scope {
            Scope::Cidr(prefix) => Some(*prefix),
            Scope::Any | Scope::Group(_) => None,
        });
        let mut addresses = Vec::new();
        for prefix in stated.chain(owned).chain(matched) {
            let IpNet::V4(prefix) = prefix else { continue };
            let (first, last) = (prefix.network().to_bits(), prefix.broadcast().to_bits());
            let around = [first.wrapping_sub(1), first, last, last.wrapping_add(1)];
            addresses.extend(around.map(Ipv4Addr::from_bits));
        }
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }

    /// Both ends of every port range and the ports just outside of it.
    pub(crate) fn ports(&self) -> Vec<u16> {
        let ranges = self.rules.iter().flat_map(|rule| &rule.ports);
        let snat = self.snat.iter().flat_map(|p| [&p.source_ports, &p.destination_ports]).flatten();
        let mut ports: Vec<u16> = ranges.chain(snat).flat_map(around).collect();
        ports.extend([0, u16::MAX]);
        ports.sort_unstable();
        ports.dedup();
        ports
    }
}

/// Both ends of a range, and the ports just outside of it.
pub(crate) fn around(range: &PortRange) -> [u16; 4] {
    let (first, last) = (*range.start(), *range.end());
    [first.wrapping_sub(1), first, last, last.wrapping_add(1)]
}
