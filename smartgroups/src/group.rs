//! SmartGroups: who belongs together, said by selectors.
//!
//! A group holds whatever any of its selectors selects, but for what it excludes; a selector asks
//! for all of its fields at once, or names another group. [`groups_of`] reads that sentence
//! literally, one address at a time. It is the twin that the tables of [`crate::resolve()`] are
//! tested against, and slow.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::id::{stable_id, stable_ids};
use crate::{DomainId, Endpoint, EndpointKind, Expression, Inventory, is_public};

/// Built in: every address of every domain.
pub const ANYWHERE: &str = "anywhere";

/// Built in: addresses of the fabric outside private and special-purpose ranges.
pub const PUBLIC_INTERNET: &str = "public-internet";

const KIND: &str = "SmartGroup";

/// The number of a SmartGroup in tables and records; never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u32);

impl GroupId {
    /// The id of [`ANYWHERE`].
    pub const ANYWHERE: Self = Self(stable_id(KIND, ANYWHERE));

    /// The id of [`PUBLIC_INTERNET`].
    pub const PUBLIC_INTERNET: Self = Self(stable_id(KIND, PUBLIC_INTERNET));

    /// The id that follows from the name alone.
    pub const fn of(name: &str) -> Self {
        Self(stable_id(KIND, name))
    }

    /// Distinct ids for a whole set of groups; see [`stable_ids`].
    pub fn assign<'a>(names: impl IntoIterator<Item = &'a str>) -> BTreeMap<&'a str, Self> {
        stable_ids(KIND, names, [Self::ANYWHERE.0, Self::PUBLIC_INTERNET.0])
            .into_iter()
            .map(|(name, id)| (name, Self(id)))
            .collect()
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A named set of addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SmartGroup {
    /// Unique, and not one of the built-in names.
    pub name: String,
    /// Unique; [`GroupId::assign`] gives it.
    pub id: GroupId,
    /// Any of these.
    pub selectors: Vec<Selector>,
    /// And none of these.
    pub exclude: Vec<Selector>,
}

impl SmartGroup {
    /// A group whose id follows from its name.
    pub fn new(name: impl Into<String>, selectors: Vec<Selector>) -> Self {
        let name = name.into();
        Self { id: GroupId::of(&name), name, selectors, exclude: Vec::new() }
    }

    /// The groups that it names.
    pub fn parts(&self) -> impl Iterator<Item = &str> {
        self.selectors.iter().chain(&self.exclude).filter_map(|one| one.group.as_deref())
    }
}

/// What an address must be to belong to a group: all fields that are given, at once.
///
/// A selector is about endpoints as soon as it names a fact of one (kind, name, label, ..). With
/// `cidr` beside it, it holds those addresses of such endpoints that lie in the prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// In this other group; with no other field beside it.
    pub group: Option<String>,
    /// Inside this prefix; of the fabric unless `domain` says otherwise.
    pub cidr: Option<IpNet>,
    /// In this routing domain.
    pub domain: Option<DomainId>,
    /// An endpoint of this kind; `type: k8s` is [`EndpointKind::Pod`].
    pub kind: Option<EndpointKind>,
    /// An endpoint of exactly this name.
    pub name: Option<String>,
    /// A pod of this name, without its namespace.
    pub pod: Option<String>,
    /// In this Kubernetes cluster.
    pub cluster: Option<String>,
    /// In this Kubernetes namespace.
    pub namespace: Option<String>,
    /// Behind this Kubernetes service.
    pub service: Option<String>,
    /// Running as this Kubernetes service account.
    pub service_account: Option<String>,
    /// In this cloud account.
    pub account: Option<String>,
    /// In this cloud region.
    pub region: Option<String>,
    /// In this availability zone.
    pub zone: Option<String>,
    /// With each of these labels or tags.
    pub labels: BTreeMap<String, String>,
    /// With labels or tags as each of these demands.
    pub expressions: Vec<Expression>,
}

impl Selector {
    /// Every address inside a prefix of the fabric.
    pub fn cidr(prefix: IpNet) -> Self {
        Self { cidr: Some(prefix), ..Self::default() }
    }

    /// Whether it asks for a fact that only an endpoint has.
    pub fn is_about_endpoints(&self) -> bool {
        let Self { kind, name, pod, .. } = self;
        kind.is_some()
            || name.is_some()
            || pod.is_some()
            || self.facts().iter().any(|(wanted, _)| wanted.is_some())
            || !self.labels.is_empty()
            || !self.expressions.is_empty()
    }

    /// Whether it asks for nothing at all. Such a selector is refused: who wants every address
    /// says `anywhere`, and who forgot a field did not mean every address.
    pub fn is_empty(&self) -> bool {
        self.group.is_none() && self.is_about_nothing_else()
    }

    fn is_about_nothing_else(&self) -> bool {
        self.cidr.is_none() && self.domain.is_none() && !self.is_about_endpoints()
    }

    /// Whether it names another group and asks for something beside it.
    pub fn is_mixed(&self) -> bool {
        self.group.is_some() && !self.is_about_nothing_else()
    }

    /// The only domain whose addresses it can hold, or `None` if it may be any.
    pub fn scope(&self) -> Option<DomainId> {
        self.domain.or(self.cidr.map(|_| DomainId::FABRIC))
    }

    /// Whether an address lies where the selector looks, whatever is behind it.
    pub fn covers(&self, domain: DomainId, address: IpAddr) -> bool {
        self.scope().is_none_or(|scope| scope == domain)
            && self.cidr.is_none_or(|cidr| cidr.contains(&address))
    }

    /// Whether an endpoint is what the selector asks for, wherever its addresses are.
    pub fn describes(&self, endpoint: &Endpoint) -> bool {
        let facts = [
            &endpoint.cluster,
            &endpoint.namespace,
            &endpoint.service,
            &endpoint.service_account,
            &endpoint.account,
            &endpoint.region,
            &endpoint.zone,
        ];
        self.kind.is_none_or(|kind| kind == endpoint.kind)
            && self.name.as_ref().is_none_or(|name| *name == endpoint.name)
            && self.pod.as_ref().is_none_or(|pod| Some(pod.as_str()) == endpoint.pod_name())
            && self
                .facts()
                .iter()
                .zip(facts)
                .all(|((wanted, _), fact)| wanted.is_none() || *wanted == fact.as_deref())
            && self.labels.iter().all(|(key, value)| endpoint.labels.get(key) == Some(value))
            && self.expressions.iter().all(|expression| expression.holds(&endpoint.labels))
    }

    /// The plain facts it asks for, each with the word that operators write.
    pub(crate) fn facts(&self) -> [(Option<&str>, &'static str); 7] {
        [
            (self.cluster.as_deref(), "k8s_cluster_id"),
            (self.namespace.as_deref(), "k8s_namespace"),
            (self.service.as_deref(), "k8s_service"),
            (self.service_account.as_deref(), "k8s_service_account"),
            (self.account.as_deref(), "account"),
            (self.region.as_deref(), "region"),
            (self.zone.as_deref(), "zone"),
        ]
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        let mut say = |word: &str, value: &dyn fmt::Display| parts.push(format!("{word} {value}"));
        if let Some(group) = &self.group {
            say("group", group);
        }
        if let Some(cidr) = &self.cidr {
            say("cidr", cidr);
        }
        if let Some(domain) = &self.domain {
            say("domain", domain);
        }
        if let Some(kind) = &self.kind {
            say("type", kind);
        }
        if let Some(name) = &self.name {
            say("name", name);
        }
        if let Some(pod) = &self.pod {
            say("k8s_pod", pod);
        }
        for (value, word) in self.facts() {
            if let Some(value) = value {
                say(word, &value);
            }
        }
        for (key, value) in &self.labels {
            say("label", &format_args!("{key}={value}"));
        }
        for expression in &self.expressions {
            say("label", expression);
        }
        f.write_str(&parts.join(", "))
    }
}

/// Whether something is so, as far as can be told: an address that several claim is of one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Truth {
    /// It is not, whoever has the address.
    No,
    /// It is for some of them.
    Maybe,
    /// It is, whoever has the address.
    Yes,
}

impl Truth {
    /// The opposite.
    #[must_use]
    pub const fn not(self) -> Self {
        match self {
            Self::No => Self::Yes,
            Self::Maybe => Self::Maybe,
            Self::Yes => Self::No,
        }
    }
}

/// Whether a group holds an address. Found by asking every selector about every endpoint. What its
/// parts are in doubt about it is in doubt about too, even if one of them has to be right.
pub fn holds(
    inventory: &Inventory,
    groups: &[SmartGroup],
    name: &str,
    domain: DomainId,
    address: IpAddr,
) -> Truth {
    let sure = |is: bool| if is { Truth::Yes } else { Truth::No };
    match name {
        ANYWHERE => return Truth::Yes,
        PUBLIC_INTERNET => return sure(is_public(domain, address)),
        _ => {}
    }
    let Some(group) = groups.iter().find(|group| group.name == name) else { return Truth::No };
    let any = |selectors: &[Selector]| {
        let parts = selectors.iter().filter_map(|selector| selector.group.as_deref());
        let parts = parts.map(|part| holds(inventory, groups, part, domain, address));
        parts.chain([taken(inventory, selectors, domain, address)]).max().unwrap_or(Truth::No)
    };
    any(&group.selectors).min(any(&group.exclude).not())
}

/// Whether any of the selectors that name no group takes an address.
fn taken(
    inventory: &Inventory,
    selectors: &[Selector],
    domain: DomainId,
    address: IpAddr,
) -> Truth {
    let own = || selectors.iter().filter(|selector| selector.group.is_none());
    let is_stated = own()
        .filter(|selector| !selector.is_about_endpoints())
        .any(|selector| selector.covers(domain, address));
    let takes = |endpoint: &Endpoint| {
        let mut about = own().filter(|selector| selector.is_about_endpoints());
        about.any(|selector| selector.covers(domain, address) && selector.describes(endpoint))
    };
    // For certain: whoever of those that claim the prefix has it.
    let is_claimed = |one: &Endpoint, prefix: &IpNet| {
        let mut rivals = inventory.endpoints().filter(|other| {
            other.name == one.name
                || one.kind.is_alone_on_an_address()
                    && (other.kind, other.domain) == (one.kind, domain)
                    && other.addresses.contains(prefix)
        });
        rivals.all(takes)
    };
    let around = |endpoint: &Endpoint, is: &dyn Fn(&IpNet) -> bool| {
        let mut around = endpoint.addresses.iter().filter(|prefix| prefix.contains(&address));
        endpoint.domain == domain && around.any(is)
    };
    if is_stated || inventory.endpoints().any(|one| around(one, &|prefix| is_claimed(one, prefix)))
    {
        Truth::Yes
    } else if inventory.endpoints().any(|one| around(one, &|_| takes(one))) {
        Truth::Maybe
    } else {
        Truth::No
    }
}

/// The groups that hold an address for certain, built-in ones included, sorted by id.
pub fn groups_of(
    inventory: &Inventory,
    groups: &[SmartGroup],
    domain: DomainId,
    address: IpAddr,
) -> Vec<GroupId> {
    let built_in = [(ANYWHERE, GroupId::ANYWHERE), (PUBLIC_INTERNET, GroupId::PUBLIC_INTERNET)];
    let all = groups.iter().map(|group| (group.name.as_str(), group.id)).chain(built_in);
    let held =
        all.filter(|(name, _)| holds(inventory, groups, name, domain, address) == Truth::Yes);
    let mut ids: Vec<GroupId> = held.map(|(_, id)| id).collect();
    ids.sort_unstable();
    ids
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Operator;

    fn pod() -> Endpoint {
        Endpoint {
            addresses: vec!["100.64.1.10/32".parse().unwrap()],
            cluster: Some("prod-eu".into()),
            namespace: Some("checkout".into()),
            service: Some("api".into()),
            service_account: Some("api-sa".into()),
            account: Some("1111".into()),
            region: Some("eu-west-1".into()),
            zone: Some("eu-west-1a".into()),
            labels: BTreeMap::from([("team".into(), "payments".into())]),
            ..Endpoint::new("checkout/api-7f9c", EndpointKind::Pod, DomainId(1))
        }
    }

    fn has(key: &str) -> Expression {
        Expression { key: key.into(), operator: Operator::Exists, values: [].into() }
    }

    fn with(change: impl FnOnce(&mut Selector)) -> Selector {
        let mut selector = Selector::default();
        change(&mut selector);
        selector
    }

    #[test]
    fn every_field_of_a_selector_has_to_be_met() {
        for (field, selector, expected) in [
            ("kind", with(|s| s.kind = Some(EndpointKind::Pod)), true),
            ("kind", with(|s| s.kind = Some(EndpointKind::Node)), false),
            ("name", with(|s| s.name = Some("checkout/api-7f9c".into())), true),
            ("name", with(|s| s.name = Some("api-7f9c".into())), false),
            ("pod", with(|s| s.pod = Some("api-7f9c".into())), true),
            ("pod", with(|s| s.pod = Some("api".into())), false),
            ("cluster", with(|s| s.cluster = Some("prod-eu".into())), true),
            ("cluster", with(|s| s.cluster = Some("prod-us".into())), false),
            ("namespace", with(|s| s.namespace = Some("checkout".into())), true),
            ("namespace", with(|s| s.namespace = Some("prod-eu".into())), false),
            ("service", with(|s| s.service = Some("api".into())), true),
            ("service", with(|s| s.service = Some("api-sa".into())), false),
            ("service account", with(|s| s.service_account = Some("api-sa".into())), true),
            ("service account", with(|s| s.service_account = Some("api".into())), false),
            ("account", with(|s| s.account = Some("1111".into())), true),
            ("account", with(|s| s.account = Some("2222".into())), false),
            ("region", with(|s| s.region = Some("eu-west-1".into())), true),
            ("region", with(|s| s.region = Some("eu-west-1a".into())), false),
            ("zone", with(|s| s.zone = Some("eu-west-1a".into())), true),
            ("zone", with(|s| s.zone = Some("eu-west-1".into())), false),
            ("label", with(|s| drop(s.labels.insert("team".into(), "payments".into()))), true),
            ("label value", with(|s| drop(s.labels.insert("team".into(), "web".into()))), false),
            ("label key", with(|s| drop(s.labels.insert("tier".into(), "payments".into()))), false),
            ("expression", with(|s| s.expressions.push(has("team"))), true),
            ("expression", with(|s| s.expressions.extend([has("team"), has("tier")])), false),
        ] {
            assert!(selector.is_about_endpoints(), "{field}");
            assert_eq!(selector.describes(&pod()), expected, "{field}: {selector}");
            let both = Selector { namespace: Some("other".into()), ..selector };
            assert!(!both.describes(&pod()), "{field} and another namespace");
        }
    }

    #[test]
    fn a_fact_that_nobody_stated_meets_no_selector() {
        let bare = Endpoint::new("vm-1", EndpointKind::Vm, DomainId::FABRIC);
        assert!(!with(|s| s.region = Some(String::new())).describes(&bare));
        assert!(!with(|s| s.pod = Some("vm-1".into())).describes(&bare), "not a pod");
    }

    #[test]
    fn a_prefix_is_of_the_fabric_unless_a_domain_is_named() {
        let inside: IpAddr = "10.20.0.1".parse().unwrap();
        let plain = Selector::cidr("10.20.0.0/16".parse().unwrap());
        let named = Selector { domain: Some(DomainId(1)), ..plain.clone() };
        let whole = with(|s| s.domain = Some(DomainId(1)));
        for (selector, domain, expected) in [
            (&plain, 0, true),
            (&plain, 1, false),
            (&named, 0, false),
            (&named, 1, true),
            (&whole, 0, false),
            (&whole, 1, true),
        ] {
            assert_eq!(selector.covers(DomainId(domain), inside), expected, "{selector} {domain}");
            assert!(!selector.is_about_endpoints());
        }
        assert!(!plain.covers(DomainId::FABRIC, "10.21.0.0".parse().unwrap()));
    }

    #[test]
    fn a_selector_says_what_it_asks_for() {
        let selector = Selector {
            cidr: Some("10.0.0.0/8".parse().unwrap()),
            kind: Some(EndpointKind::Vm),
            region: Some("us-east-1".into()),
            labels: BTreeMap::from([("team".into(), "web".into())]),
            expressions: vec![Expression {
                key: "tier".into(),
                operator: Operator::NotIn,
                values: ["test", "dev"].map(Into::into).into(),
            }],
            ..Selector::default()
        };
        assert_eq!(
            selector.to_string(),
            "cidr 10.0.0.0/8, type vm, region us-east-1, label team=web, label tier NotIn (dev, test)"
        );
    }
}
