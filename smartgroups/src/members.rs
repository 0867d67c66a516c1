//! What is in one group, and why.
//!
//! For people: the listing names the selector and the endpoint of every prefix. The tables are
//! made by [`crate::resolve()`], which keeps no reasons.

use std::fmt;

use ipnet::IpNet;

use crate::resolve::common;
use crate::{ANYWHERE, DomainId, EndpointKind, Inventory, PUBLIC_INTERNET, SmartGroup};

/// A prefix that a group holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its domain; `None` stands for every domain.
    pub domain: Option<DomainId>,
    /// The prefix; a host is /32 or /128.
    pub prefix: IpNet,
    /// Why it is in the group.
    pub reason: Reason,
}

/// Why a prefix is in a group. Selectors count from 1, as people do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The selector names the prefix or its domain itself.
    Stated {
        /// Which selector of the group.
        selector: usize,
        /// What the selector asks for.
        asks: String,
    },
    /// It is an address of an endpoint that the selector describes.
    Endpoint {
        /// Which selector of the group.
        selector: usize,
        /// What the selector asks for.
        asks: String,
        /// What the endpoint is.
        kind: EndpointKind,
        /// The endpoint.
        endpoint: String,
    },
    /// `anywhere` holds every address.
    Everything,
    /// `public-internet` holds it, apart from the special-purpose ranges inside.
    Public,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stated { selector, asks } => write!(f, "selector {selector} ({asks})"),
            Self::Endpoint { selector, asks, kind, endpoint } => {
                write!(f, "{kind} `{endpoint}` meets selector {selector} ({asks})")
            }
            Self::Everything => f.write_str("every address"),
            Self::Public => f.write_str("public, except special-purpose ranges inside"),
        }
    }
}

/// The members of a group by its name, or `None` if there is no such group.
///
/// A prefix is listed once for every reason that it has, and also where the group is in doubt,
/// because another endpoint claims the same address.
pub fn members(inventory: &Inventory, groups: &[SmartGroup], name: &str) -> Option<Vec<Member>> {
    match name {
        ANYWHERE => Some(built_in(&["0.0.0.0/0", "::/0"], None, &Reason::Everything)),
        PUBLIC_INTERNET => {
            let fabric = Some(DomainId::FABRIC);
            Some(built_in(&["0.0.0.0/0", "2000::/3"], fabric, &Reason::Public))
        }
        _ => groups.iter().find(|group| group.name == name).map(|group| of(inventory, group)),
    }
}

fn built_in(prefixes: &[&str], domain: Option<DomainId>, reason: &Reason) -> Vec<Member> {
    prefixes
        .iter()
        .filter_map(|prefix| prefix.parse().ok())
        .map(|prefix| Member { domain, prefix, reason: reason.clone() })
        .collect()
}

fn of(inventory: &Inventory, group: &SmartGroup) -> Vec<Member> {
    let mut members = Vec::new();
    for (index, selector) in group.selectors.iter().enumerate() {
        let (number, asks) = (index + 1, selector.to_string());
        if !selector.is_about_endpoints() {
            let domain = selector.scope();
            for prefix in crate::resolve::stated(selector) {
                let reason = Reason::Stated { selector: number, asks: asks.clone() };
                members.push(Member { domain, prefix, reason });
            }
            continue;
        }
        let found = inventory.endpoints().filter(|endpoint| {
            selector.scope().is_none_or(|scope| scope == endpoint.domain)
                && selector.describes(endpoint)
        });
        for endpoint in found {
            for address in &endpoint.addresses {
                let inside = match selector.cidr {
                    None => Some(*address),
                    Some(cidr) => common(cidr.trunc(), *address),
                };
                members.extend(inside.map(|prefix| Member {
                    domain: Some(endpoint.domain),
                    prefix,
                    reason: Reason::Endpoint {
                        selector: number,
                        asks: asks.clone(),
                        kind: endpoint.kind,
                        endpoint: endpoint.name.clone(),
                    },
                }));
            }
        }
    }
    members
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Endpoint, Selector};

    fn listed(inventory: &Inventory, groups: &[SmartGroup], name: &str) -> Vec<String> {
        members(inventory, groups, name)
            .unwrap()
            .iter()
            .map(|member| {
                let domain = member.domain.map_or("*".into(), |domain| domain.to_string());
                format!("{domain} {}: {}", member.prefix, member.reason)
            })
            .collect()
    }

    #[test]
    fn every_member_comes_with_its_reason() {
        let mut inventory = Inventory::new();
        for (name, kind, domain, address) in [
            ("shop/api", EndpointKind::Pod, 1, "100.64.0.1/32"),
            ("vm-1", EndpointKind::Vm, 0, "10.0.0.1/32"),
            ("vm-2", EndpointKind::Vm, 0, "10.1.0.1/32"),
            ("vpc", EndpointKind::Vpc, 0, "10.0.0.0/8"),
        ] {
            inventory.insert(Endpoint {
                addresses: vec![address.parse().unwrap()],
                namespace: (kind == EndpointKind::Pod).then(|| "shop".into()),
                ..Endpoint::new(name, kind, DomainId(domain))
            });
        }
        let vms_of_a_prefix = Selector {
            cidr: Some("10.0.0.0/16".parse().unwrap()),
            kind: Some(EndpointKind::Vm),
            ..Selector::default()
        };
        let groups = [
            SmartGroup::new(
                "mixed",
                vec![
                    Selector::cidr("10.9.0.0/16".parse().unwrap()),
                    Selector { namespace: Some("shop".into()), ..Selector::default() },
                    vms_of_a_prefix.clone(),
                ],
            ),
            SmartGroup::new(
                "vpcs",
                vec![Selector { kind: Some(EndpointKind::Vpc), ..vms_of_a_prefix }],
            ),
            SmartGroup::new(
                "network",
                vec![Selector { domain: Some(DomainId(1)), ..Selector::default() }],
            ),
        ];
        assert_eq!(
            listed(&inventory, &groups, "mixed"),
            [
                "0 10.9.0.0/16: selector 1 (cidr 10.9.0.0/16)",
                "1 100.64.0.1/32: pod `shop/api` meets selector 2 (k8s_namespace shop)",
                "0 10.0.0.1/32: vm `vm-1` meets selector 3 (cidr 10.0.0.0/16, type vm)",
            ]
        );
        assert_eq!(
            listed(&inventory, &groups, "vpcs"),
            ["0 10.0.0.0/16: vpc `vpc` meets selector 1 (cidr 10.0.0.0/16, type vpc)"]
        );
        assert_eq!(
            listed(&inventory, &groups, "network"),
            ["1 0.0.0.0/0: selector 1 (domain 1)", "1 ::/0: selector 1 (domain 1)"]
        );
        assert_eq!(
            listed(&inventory, &groups, "anywhere"),
            ["* 0.0.0.0/0: every address", "* ::/0: every address"]
        );
        assert_eq!(listed(&inventory, &groups, "public-internet").len(), 2);
        assert!(members(&inventory, &groups, "nobody").is_none());
    }
}
