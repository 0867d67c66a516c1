//! What is in one group, and why.
//!
//! For people: the listing names the selector and the endpoint of every prefix. The tables are
//! made by [`crate::resolve()`], which keeps no reasons.
//!
//! Nobody bounds how deep groups name one another, nor by how many ways one leads to another. So
//! each group is gone through once for what it takes and once for what is excluded by it, without
//! recursion, and all members of a listing share the ways that lead to them.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;

use crate::formula::Half;
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
    /// By which groups that the group is made of it comes in.
    pub way: Way,
    /// Why it is in the last of these, or in the group itself.
    pub reason: Reason,
    /// It is not, whatever else is said of it, and that is why.
    pub is_excluded: bool,
}

/// Groups that name one another, from the one that is listed inwards. Selectors count from 1, as
/// people do.
#[derive(Clone)]
pub struct Way {
    /// Of the whole listing.
    steps: Arc<[Step]>,
    last: Option<usize>,
}

/// From a group to one that it names.
#[derive(Clone, Debug)]
struct Step {
    selector: usize,
    group: String,
    before: Option<usize>,
}

impl Way {
    /// Each group, and the selector of the one before that names it.
    pub fn steps(&self) -> impl Iterator<Item = (usize, &str)> {
        let backwards = std::iter::successors(self.last.map(|at| &self.steps[at]), |step| {
            step.before.map(|at| &self.steps[at])
        });
        let steps: Vec<_> = backwards.map(|step| (step.selector, step.group.as_str())).collect();
        steps.into_iter().rev()
    }
}

impl fmt::Debug for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.steps()).finish()
    }
}

impl PartialEq for Way {
    fn eq(&self, other: &Self) -> bool {
        self.steps().eq(other.steps())
    }
}

impl Eq for Way {}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.steps()
            .try_for_each(|(selector, group)| write!(f, "selector {selector} (group `{group}`): "))
    }
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
/// because another endpoint claims the same address or nothing is known of a namespace yet. What the group excludes stands behind the
/// others and says so. What a group holds to which several ways lead is listed by the first of them. A
/// group that is a part of itself, which [`crate::resolve()`] refuses, adds nothing to itself.
pub fn members(inventory: &Inventory, groups: &[SmartGroup], name: &str) -> Option<Vec<Member>> {
    let steps = Arc::default();
    if let Some(built_in) = built_in(name) {
        let way = Way { steps, last: None };
        return Some(built_in.into_iter().map(|found| found.member(&way, false)).collect());
    }
    let mut by_name = HashMap::new();
    for group in groups.iter().filter(|group| !is_built_in(&group.name)) {
        by_name.entry(group.name.as_str()).or_insert(group);
    }
    let Walk { asked, steps, .. } = Walk::from(by_name.get(name)?, &by_name);
    let steps: Arc<[Step]> = steps.into();
    let mut members = Vec::new();
    for Asked { selector, number, last, half } in asked {
        let way = Way { steps: Arc::clone(&steps), last };
        let found = match &selector.group {
            Some(part) => built_in(part).unwrap_or_default(),
            None => selected(inventory, number, selector),
        };
        let is_excluded = half == Half::Excludes;
        members.extend(found.into_iter().map(|found| found.member(&way, is_excluded)));
    }
    Some(members)
}

/// A selector in its place in the listing.
struct Asked<'a> {
    selector: &'a Selector,
    /// Which one of its group.
    number: usize,
    /// The last step on the way to its group, or to the built-in one that it names.
    last: Option<usize>,
    /// Whether the listed group takes what it selects.
    half: Half,
}

/// The way down from a group through all that it names, depth first.
#[derive(Default)]
struct Walk<'a> {
    seen: HashSet<(&'a str, Half)>,
    steps: Vec<Step>,
    /// What was found that names no group but a built-in one.
    asked: Vec<Asked<'a>>,
    /// What is to be gone through, the last first.
    open: Vec<Asked<'a>>,
}

impl<'a> Walk<'a> {
    fn from(group: &'a SmartGroup, by_name: &HashMap<&str, &'a SmartGroup>) -> Self {
        let mut walk = Self::default();
        walk.enter(group, None, Half::Takes);
        while let Some(next) = walk.open.pop() {
            let Some(part) = next.selector.group.as_deref() else {
                walk.asked.push(next);
                continue;
            };
            let named = by_name.get(part);
            let is_new = named.is_some_and(|part| !walk.seen.contains(&(&part.name, next.half)));
            if !is_new && !is_built_in(part) {
                continue;
            }
            let (selector, group, before) = (next.number, part.to_owned(), next.last);
            let last = Some(walk.steps.len());
            walk.steps.push(Step { selector, group, before });
            match named {
                Some(part) => walk.enter(part, last, next.half),
                None => walk.asked.push(Asked { last, ..next }),
            }
        }
        walk
    }

    /// What a group excludes for itself it does not exclude for one that excludes it.
    fn enter(&mut self, group: &'a SmartGroup, last: Option<usize>, half: Half) {
        self.seen.insert((&group.name, half));
        let asked = |half| move |(number, selector)| Asked { selector, number, last, half };
        let first = self.open.len();
        self.open.extend((1..).zip(&group.selectors).map(asked(half)));
        if half == Half::Takes {
            self.open.extend((1..).zip(&group.exclude).map(asked(Half::Excludes)));
        }
        self.open[first..].reverse();
    }
}

/// A member before it is known by which way it comes in.
struct Found {
    domain: Option<DomainId>,
    prefix: IpNet,
    reason: Reason,
}

impl Found {
    fn member(self, way: &Way, is_excluded: bool) -> Member {
        let Self { domain, prefix, reason } = self;
        Member { domain, prefix, way: way.clone(), reason, is_excluded }
    }
}

fn is_built_in(name: &str) -> bool {
    name == ANYWHERE || name == PUBLIC_INTERNET
}

/// What a built-in group holds.
fn built_in(name: &str) -> Option<Vec<Found>> {
    let (prefixes, domain, reason) = match name {
        ANYWHERE => (["0.0.0.0/0", "::/0"], None, Reason::Everything),
        PUBLIC_INTERNET => (["0.0.0.0/0", "2000::/3"], Some(DomainId::FABRIC), Reason::Public),
        _ => return None,
    };
    let found = |prefix| Found { domain, prefix, reason: reason.clone() };
    Some(prefixes.iter().filter_map(|prefix| prefix.parse().ok()).map(found).collect())
}

/// What one selector of a group selects that names no other.
fn selected(inventory: &Inventory, selector: usize, asked: &Selector) -> Vec<Found> {
    let asks = asked.to_string();
    if !asked.is_about_endpoints() {
        let stated = |prefix| Found {
            domain: asked.scope(),
            prefix,
            reason: Reason::Stated { selector, asks: asks.clone() },
        };
        return crate::resolve::stated(asked).into_iter().map(stated).collect();
    }
    let found = inventory.endpoints().filter(|endpoint| {
        asked.scope().is_none_or(|scope| scope == endpoint.domain)
            && asked.describes(endpoint, inventory.namespace_of(endpoint)) != Truth::No
    });
    let of_endpoint = |endpoint: &Endpoint, prefix| Found {
        domain: Some(endpoint.domain),
        prefix,
        reason: Reason::Endpoint {
            selector,
            asks: asks.clone(),
            kind: endpoint.kind,
            endpoint: endpoint.name.to_string(),
        },
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

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn listed(inventory: &Inventory, groups: &[SmartGroup], name: &str) -> Vec<String> {
        members(inventory, groups, name)
            .unwrap()
            .iter()
            .map(|member| {
                let domain = member.domain.map_or("*".into(), |domain| domain.to_string());
                let out = if member.is_excluded { "not " } else { "" };
                format!("{out}{domain} {}: {}{}", member.prefix, member.way, member.reason)
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
        let all = [SmartGroup::new("all", vec![part("vpcs"), part("anywhere")])];
        assert_eq!(
            listed(&inventory, &all, "all"),
            [
                "* 0.0.0.0/0: selector 2 (group `anywhere`): every address",
                "* ::/0: selector 2 (group `anywhere`): every address"
            ]
        );
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
    #[test]
    fn a_name_and_a_site_are_reasons_of_their_own() {
        let mut inventory = Inventory::new();
        for (name, kind, address) in [
            (Endpoint::name_of_fqdn("api.example.com"), EndpointKind::Fqdn, "192.0.2.1/32"),
            (Endpoint::name_of_fqdn("example.com"), EndpointKind::Fqdn, "192.0.2.2/32"),
            ("api.example.com".into(), EndpointKind::Site, "10.7.0.0/16"),
        ] {
            let addresses = [address.parse().unwrap()].into();
            let endpoint = Endpoint::new(name, kind, DomainId::FABRIC);
            inventory.insert(Endpoint { addresses, ..endpoint });
        }
        let called = || Some("api.example.com".to_owned());
        let groups = [SmartGroup::new(
            "both",
            vec![
                Selector { fqdn: called(), ..Selector::default() },
                Selector { site: called(), ..Selector::default() },
            ],
        )];
        assert_eq!(
            listed(&inventory, &groups, "both"),
            [
                "0 192.0.2.1/32: fqdn `fqdn:api.example.com` meets selector 1 (fqdn api.example.com)",
                "0 10.7.0.0/16: site `api.example.com` meets selector 2 (site api.example.com)",
            ]
        );
    }

    #[test]
    fn a_group_is_listed_once_however_many_ways_lead_to_it() {
        // Each level names the one below twice and excludes it by way of another: two ways, so
        // 2^40 of them all together.
        let mut groups = vec![SmartGroup::new("0", vec![Selector::cidr(net("10.9.0.0/16"))])];
        for level in 1..=40 {
            let below = (level - 1).to_string();
            groups.push(SmartGroup::new(format!("{level}'"), vec![part(&below)]));
            let both = vec![part(&below), part(&format!("{level}'"))];
            let exclude = vec![part(&format!("{level}'")), part(&below)];
            groups.push(SmartGroup { exclude, ..SmartGroup::new(level.to_string(), both) });
        }
        let found = members(&Inventory::new(), &groups, "40").unwrap();
        let said: Vec<_> =
            found.iter().map(|one| (one.is_excluded, one.way.steps().count())).collect();
        // Taken by the shortest way, which is the first; excluded by the first exclusion that the
        // walk comes to, which is that of the lowest level.
        assert_eq!(said, [(false, 40), (true, 41)]);
    }

    #[test]
    fn nobody_bounds_how_deep_groups_name_one_another() {
        let deep = 100_000;
        let mut groups = vec![SmartGroup::new("0", vec![Selector::cidr(net("10.9.0.0/16"))])];
        groups.extend(
            (1..=deep).map(|n| SmartGroup::new(n.to_string(), vec![part(&(n - 1).to_string())])),
        );
        let found = members(&Inventory::new(), &groups, &deep.to_string()).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].way.steps().count(), deep);
        assert_eq!(found[0].way.steps().last(), Some((1, "0")));
        assert!(found[0].way.to_string().starts_with("selector 1 (group `99999`): selector 1 "));
    }

    #[test]
    fn what_an_excluded_group_excludes_is_not_excluded_by_it() {
        let groups = [
            SmartGroup::new("all", vec![Selector::cidr(net("10.0.0.0/8"))]),
            SmartGroup {
                exclude: vec![Selector::cidr(net("10.1.0.0/16"))],
                ..SmartGroup::new("most", vec![part("all")])
            },
            SmartGroup {
                exclude: vec![part("most")],
                ..SmartGroup::new("rest", vec![part("all")])
            },
        ];
        assert_eq!(
            listed(&Inventory::new(), &groups, "rest"),
            [
                "0 10.0.0.0/8: selector 1 (group `all`): selector 1 (cidr 10.0.0.0/8)",
                "not 0 10.0.0.0/8: selector 1 (group `most`): selector 1 (group `all`): selector 1 \
                 (cidr 10.0.0.0/8)",
            ]
        );
    }
}
