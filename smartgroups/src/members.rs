//! What is in one group, and why.
//!
//! For people: the listing names the selector and the endpoint of every prefix. The tables are
//! made by [`crate::resolve()`], which keeps no reasons.

use std::fmt;

use ipnet::IpNet;

use crate::resolve::common;
use crate::{
    ANYWHERE, DomainId, Endpoint, EndpointKind, Inventory, PUBLIC_INTERNET, Selector, SmartGroup,
    Truth,
};

/// A prefix that a group holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its domain; `None` stands for every domain.
    pub domain: Option<DomainId>,
    /// The prefix; a host is /32 or /128.
    pub prefix: IpNet,
    /// Why it is in the group.
    pub reason: Reason,
    /// It is not, whatever else is said of it, and that is why.
    pub is_excluded: bool,
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
    /// It is in a group that the selector names.
    Group {
        /// Which selector of the group.
        selector: usize,
        /// The group that it names.
        group: String,
        /// Why it is in that one.
        why: Box<Reason>,
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
            Self::Group { selector, group, why } => {
                write!(f, "selector {selector} (group `{group}`): {why}")
            }
            Self::Everything => f.write_str("every address"),
            Self::Public => f.write_str("public, except special-purpose ranges inside"),
        }
    }
}

/// The members of a group by its name, or `None` if there is no such group.
///
/// A prefix is listed once for every reason that it has, and also where the group is in doubt,
/// because another endpoint claims the same address or nothing is known of a namespace yet. What the group excludes stands behind the
/// others and says so. A group that is a part of itself, which [`crate::resolve()`] refuses, adds
/// nothing to itself.
pub fn members(inventory: &Inventory, groups: &[SmartGroup], name: &str) -> Option<Vec<Member>> {
    within(inventory, groups, name, &mut Vec::new())
}

/// The same, on the way down from the groups in `path`.
fn within<'a>(
    inventory: &Inventory,
    groups: &'a [SmartGroup],
    name: &str,
    path: &mut Vec<&'a str>,
) -> Option<Vec<Member>> {
    match name {
        ANYWHERE => Some(built_in(&["0.0.0.0/0", "::/0"], None, &Reason::Everything)),
        PUBLIC_INTERNET => {
            let fabric = Some(DomainId::FABRIC);
            Some(built_in(&["0.0.0.0/0", "2000::/3"], fabric, &Reason::Public))
        }
        _ => {
            let group = groups.iter().find(|group| group.name == name)?;
            if path.contains(&name) {
                return None;
            }
            path.push(&group.name);
            let members = of(inventory, groups, group, path);
            path.pop();
            Some(members)
        }
    }
}

fn built_in(prefixes: &[&str], domain: Option<DomainId>, reason: &Reason) -> Vec<Member> {
    prefixes
        .iter()
        .filter_map(|prefix| prefix.parse().ok())
        .map(|prefix| Member { domain, prefix, reason: reason.clone(), is_excluded: false })
        .collect()
}

fn of<'a>(
    inventory: &Inventory,
    groups: &'a [SmartGroup],
    group: &SmartGroup,
    path: &mut Vec<&'a str>,
) -> Vec<Member> {
    let mut members = Vec::new();
    let numbered = |selectors| (1..).zip(selectors);
    for (selector, asked) in numbered(&group.selectors) {
        members.extend(selected(inventory, groups, selector, asked, path));
    }
    for (selector, asked) in numbered(&group.exclude) {
        // What a group excludes for itself it does not exclude here.
        let excluded = selected(inventory, groups, selector, asked, path);
        let excluded = excluded.into_iter().filter(|member| !member.is_excluded);
        members.extend(excluded.map(|member| Member { is_excluded: true, ..member }));
    }
    members
}

/// What one selector of a group selects.
fn selected<'a>(
    inventory: &Inventory,
    groups: &'a [SmartGroup],
    selector: usize,
    asked: &Selector,
    path: &mut Vec<&'a str>,
) -> Vec<Member> {
    if let Some(part) = &asked.group {
        let through = |member: Member| {
            let why = Box::new(member.reason);
            Member { reason: Reason::Group { selector, group: part.clone(), why }, ..member }
        };
        let members = within(inventory, groups, part, path).unwrap_or_default();
        return members.into_iter().map(through).collect();
    }
    let asks = asked.to_string();
    if !asked.is_about_endpoints() {
        let stated = |prefix| Member {
            domain: asked.scope(),
            prefix,
            reason: Reason::Stated { selector, asks: asks.clone() },
            is_excluded: false,
        };
        return crate::resolve::stated(asked).into_iter().map(stated).collect();
    }
    let found = inventory.endpoints().filter(|endpoint| {
        asked.scope().is_none_or(|scope| scope == endpoint.domain)
            && asked.describes(endpoint, inventory.namespace_of(endpoint)) != Truth::No
    });
    let of_endpoint = |endpoint: &Endpoint, prefix| Member {
        domain: Some(endpoint.domain),
        prefix,
        reason: Reason::Endpoint {
            selector,
            asks: asks.clone(),
            kind: endpoint.kind,
            endpoint: endpoint.name.to_string(),
        },
        is_excluded: false,
    };
    let mut members = Vec::new();
    for endpoint in found {
        for address in &endpoint.addresses {
            let inside = match asked.cidr {
                None => Some(*address),
                Some(cidr) => common(cidr.trunc(), *address),
            };
            members.extend(inside.map(|prefix| of_endpoint(endpoint, prefix)));
        }
    }
    members
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(group: &str) -> Selector {
        Selector { group: Some(group.into()), ..Selector::default() }
    }

    fn listed(inventory: &Inventory, groups: &[SmartGroup], name: &str) -> Vec<String> {
        members(inventory, groups, name)
            .unwrap()
            .iter()
            .map(|member| {
                let domain = member.domain.map_or("*".into(), |domain| domain.to_string());
                let out = if member.is_excluded { "not " } else { "" };
                format!("{out}{domain} {}: {}", member.prefix, member.reason)
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
                addresses: [address.parse().unwrap()].into(),
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
            SmartGroup {
                exclude: vec![part("vpcs")],
                ..SmartGroup::new("both", vec![part("network"), part("mixed")])
            },
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
            listed(&inventory, &groups, "both")[3..],
            [
                "1 100.64.0.1/32: selector 2 (group `mixed`): pod `shop/api` meets selector 2 \
                 (k8s_namespace shop)",
                "0 10.0.0.1/32: selector 2 (group `mixed`): vm `vm-1` meets selector 3 (cidr \
                 10.0.0.0/16, type vm)",
                "not 0 10.0.0.0/16: selector 1 (group `vpcs`): vpc `vpc` meets selector 1 (cidr \
                 10.0.0.0/16, type vpc)",
            ]
        );
        assert_eq!(
            listed(&inventory, &groups, "anywhere"),
            ["* 0.0.0.0/0: every address", "* ::/0: every address"]
        );
        assert_eq!(listed(&inventory, &groups, "public-internet").len(), 2);
        assert!(members(&inventory, &groups, "nobody").is_none());
        let around = [
            SmartGroup::new("a", vec![part("b")]),
            SmartGroup::new("b", vec![part("a"), Selector::cidr("10.9.0.0/16".parse().unwrap())]),
        ];
        assert_eq!(
            listed(&inventory, &around, "a"),
            ["0 10.9.0.0/16: selector 1 (group `b`): selector 2 (cidr 10.9.0.0/16)"]
        );
    }
}
