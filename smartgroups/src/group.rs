//! SmartGroups: who belongs together, said by selectors.
//!
//! A group holds whatever any of its selectors selects, but for what it excludes; a selector asks
//! for all of its fields at once, or names another group. [`groups_of`] reads that sentence
//! literally, one address at a time. It is the twin that the tables of [`crate::resolve()`] are
//! tested against, and slow.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::id::{stable_id, stable_ids};
use crate::{DomainId, Endpoint, EndpointKind, Expression, Inventory, Labels, is_public};

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
    /// An endpoint of exactly this name, or called so by its owner.
    pub name: Option<String>,
    /// A pod of this name, without its namespace.
    pub pod: Option<String>,
    /// The site of this name: all that lies in its prefixes.
    pub site: Option<String>,
    /// An address that DNS gives for this name, in small letters and without a dot at its end.
    pub fqdn: Option<String>,
    /// With this id of its cloud.
    pub id: Option<String>,
    /// In this Kubernetes cluster.
    pub cluster: Option<String>,
    /// In this Kubernetes namespace.
    pub namespace: Option<String>,
    /// Behind this Kubernetes service.
    pub service: Option<String>,
    /// Running as this Kubernetes service account.
    pub service_account: Option<String>,
    /// Made by a controller of this kind (`Deployment`, ..).
    pub workload_kind: Option<String>,
    /// Made by a controller of this name.
    pub workload: Option<String>,
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
    /// In a namespace with each of these labels.
    pub namespace_labels: BTreeMap<String, String>,
    /// In a namespace with labels as each of these demands.
    pub namespace_expressions: Vec<Expression>,
}

impl Selector {
    /// Every address inside a prefix of the fabric.
    pub fn cidr(prefix: IpNet) -> Self {
        Self { cidr: Some(prefix), ..Self::default() }
    }

    /// Whether it asks for a fact that only an endpoint has.
    pub fn is_about_endpoints(&self) -> bool {
        let Self { kind, name, pod, site, fqdn, .. } = self;
        kind.is_some()
            || name.is_some()
            || pod.is_some()
            || site.is_some()
            || fqdn.is_some()
            || self.facts().iter().any(|(wanted, _)| wanted.is_some())
            || !self.labels.is_empty()
            || !self.expressions.is_empty()
            || self.is_about_namespaces()
    }

    /// Whether it asks for a label of a namespace.
    pub(crate) fn is_about_namespaces(&self) -> bool {
        !self.namespace_labels.is_empty() || !self.namespace_expressions.is_empty()
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

    /// Whether an endpoint is what the selector asks for, wherever its addresses are. As long as
    /// nothing is known of its namespace (see [`Inventory::namespace_of`]), nobody can tell what
    /// the labels of that are: not that they are right, and not that they are missing.
    pub fn describes(&self, endpoint: &Endpoint, namespace: Option<Option<&Labels>>) -> Truth {
        if !self.describes_itself(endpoint) {
            return Truth::No;
        }
        if !self.is_about_namespaces() {
            return Truth::Yes;
        }
        match namespace {
            None => Truth::No,
            Some(None) => Truth::Maybe,
            Some(Some(labels)) => {
                Truth::of(meets(labels, &self.namespace_labels, &self.namespace_expressions))
            }
        }
    }

    /// The same without what it asks of the namespace.
    fn describes_itself(&self, endpoint: &Endpoint) -> bool {
        let workload = endpoint.workload.as_ref();
        let facts = [
            &endpoint.id,
            &endpoint.cluster,
            &endpoint.namespace,
            &endpoint.service_account,
            &workload.map(|workload| workload.kind.clone()),
            &workload.map(|workload| workload.name.clone()),
            &endpoint.account,
            &endpoint.region,
            &endpoint.zone,
        ];
        let facts = facts.map(Option::as_deref);
        let wanted = self.facts();
        let mut others = wanted.iter().filter(|(_, word)| *word != SERVICE).zip(facts);
        self.kind.is_none_or(|kind| kind == endpoint.kind)
            && self.name.as_ref().is_none_or(|name| {
                **name == *endpoint.name || Some(name.as_str()) == endpoint.given_name.as_deref()
            })
            && self.pod.as_ref().is_none_or(|pod| Some(pod.as_str()) == endpoint.pod_name())
            && self
                .site
                .as_ref()
                .is_none_or(|site| endpoint.kind == EndpointKind::Site && **site == *endpoint.name)
            && self.fqdn.as_ref().is_none_or(|fqdn| Some(fqdn.as_str()) == endpoint.fqdn())
            && self
                .service
                .as_ref()
                .is_none_or(|wanted| endpoint.services.iter().any(|service| **service == **wanted))
            && others.all(|((wanted, _), fact)| wanted.is_none() || *wanted == fact)
            && meets(&endpoint.labels, &self.labels, &self.expressions)
    }

    /// The plain facts it asks for, each with the word that operators write.
    pub(crate) fn facts(&self) -> [(Option<&str>, &'static str); 10] {
        [
            (self.id.as_deref(), "id"),
            (self.cluster.as_deref(), "k8s_cluster_id"),
            (self.namespace.as_deref(), "k8s_namespace"),
            (self.service.as_deref(), SERVICE),
            (self.service_account.as_deref(), "k8s_service_account"),
            (self.workload_kind.as_deref(), "k8s_workload_kind"),
            (self.workload.as_deref(), "k8s_workload"),
            (self.account.as_deref(), "account"),
            (self.region.as_deref(), "region"),
            (self.zone.as_deref(), "zone"),
        ]
    }
}

/// The one fact that an endpoint may have several of.
const SERVICE: &str = "k8s_service";

/// Whether labels are as they are asked for.
fn meets(labels: &Labels, wanted: &BTreeMap<String, String>, demands: &[Expression]) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
        && demands.iter().all(|demand| demand.holds(labels))
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
        if let Some(site) = &self.site {
            say("site", site);
        }
        if let Some(fqdn) = &self.fqdn {
            say("fqdn", fqdn);
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
        for (key, value) in &self.namespace_labels {
            say("namespace label", &format_args!("{key}={value}"));
        }
        for expression in &self.namespace_expressions {
            say("namespace label", expression);
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
    /// Yes or no.
    #[must_use]
    pub const fn of(is: bool) -> Self {
        if is { Self::Yes } else { Self::No }
    }

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
    match name {
        ANYWHERE => return Truth::Yes,
        PUBLIC_INTERNET => return Truth::of(is_public(domain, address)),
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
        let about = own()
            .filter(|selector| selector.is_about_endpoints() && selector.covers(domain, address));
        let namespace = inventory.namespace_of(endpoint);
        about.map(|selector| selector.describes(endpoint, namespace)).max().unwrap_or(Truth::No)
    };
    // Whoever of those that claim the prefix has it.
    let claimed = |one: &Endpoint, prefix: &IpNet| {
        let rivals = inventory.endpoints().filter(|other| {
            other.name == one.name
                || one.kind.is_alone_on_an_address()
                    && (other.kind, other.domain) == (one.kind, domain)
                    && other.addresses.contains(prefix)
        });
        let truths: BTreeSet<Truth> = rivals.map(takes).collect();
        if truths.len() == 1 { truths.first().copied() } else { Some(Truth::Maybe) }
    };
    let here = inventory.endpoints().filter(|endpoint| endpoint.domain == domain);
    let around = here.flat_map(|endpoint| {
        let around = endpoint.addresses.iter().filter(|prefix| prefix.contains(&address));
        around.filter_map(move |prefix| claimed(endpoint, prefix))
    });
    around.chain([Truth::of(is_stated)]).max().unwrap_or(Truth::No)
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
    use crate::{Operator, Workload};

    fn pod() -> Endpoint {
        Endpoint {
            addresses: ["100.64.1.10/32".parse().unwrap()].into(),
            given_name: Some("front".into()),
            cluster: Some("prod-eu".into()),
            namespace: Some("checkout".into()),
            services: ["api".into(), "front".into()].into(),
            service_account: Some("api-sa".into()),
            workload: Some(Workload { kind: "Deployment".into(), name: "api".into() }),
            id: Some("uid-1".into()),
            account: Some("1111".into()),
            region: Some("eu-west-1".into()),
            zone: Some("eu-west-1a".into()),
            labels: Labels::from([("team", "payments")]),
            ..Endpoint::new("checkout/api-7f9c", EndpointKind::Pod, DomainId(1))
        }
    }

    fn has(key: &str) -> Expression {
        Expression { key: key.into(), operator: Operator::Exists, values: [].into() }
    }

    fn lacks(key: &str) -> Expression {
        Expression { key: key.into(), operator: Operator::DoesNotExist, values: [].into() }
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
            ("name", with(|s| s.name = Some("front".into())), true), // what it is called
            ("pod", with(|s| s.pod = Some("api-7f9c".into())), true),
            ("pod", with(|s| s.pod = Some("api".into())), false),
            ("site", with(|s| s.site = Some("checkout/api-7f9c".into())), false), // it is a pod
            ("fqdn", with(|s| s.fqdn = Some("checkout/api-7f9c".into())), false),
            ("cluster", with(|s| s.cluster = Some("prod-eu".into())), true),
            ("cluster", with(|s| s.cluster = Some("prod-us".into())), false),
            ("namespace", with(|s| s.namespace = Some("checkout".into())), true),
            ("namespace", with(|s| s.namespace = Some("prod-eu".into())), false),
            ("service", with(|s| s.service = Some("api".into())), true),
            ("service", with(|s| s.service = Some("front".into())), true),
            ("service", with(|s| s.service = Some("api-sa".into())), false),
            ("workload", with(|s| s.workload = Some("api".into())), true),
            ("workload", with(|s| s.workload = Some("Deployment".into())), false),
            ("workload kind", with(|s| s.workload_kind = Some("Deployment".into())), true),
            ("workload kind", with(|s| s.workload_kind = Some("api".into())), false),
            ("id", with(|s| s.id = Some("uid-1".into())), true),
            ("id", with(|s| s.id = Some("uid-2".into())), false),
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
            let truth = selector.describes(&pod(), Some(None));
            assert_eq!(truth, Truth::of(expected), "{field}: {selector}");
            let both = Selector { region: Some("other".into()), ..selector };
            assert_eq!(both.describes(&pod(), None), Truth::No, "{field} and another region");
        }
    }

    #[test]
    fn a_fact_that_nobody_stated_meets_no_selector() {
        let bare = Endpoint::new("vm-1", EndpointKind::Vm, DomainId::FABRIC);
        for selector in [
            with(|s| s.region = Some(String::new())),
            with(|s| s.service = Some(String::new())),
            with(|s| s.pod = Some("vm-1".into())), // not a pod
            with(|s| s.namespace_expressions.push(lacks("env"))), // in no namespace
        ] {
            assert_eq!(selector.describes(&bare, None), Truth::No, "{selector}");
        }
    }

    #[test]
    fn of_a_namespace_that_nobody_knows_nothing_is_said() {
        let prod = Labels::from([("env", "prod")]);
        let wants =
            |value: &str| with(|s| drop(s.namespace_labels.insert("env".into(), value.into())));
        let without = || with(|s| s.namespace_expressions.push(lacks("env")));
        for (selector, known, expected) in [
            (wants("prod"), Some(&prod), Truth::Yes),
            (wants("dev"), Some(&prod), Truth::No),
            (without(), Some(&prod), Truth::No),
            (without(), Some(&Labels::default()), Truth::Yes),
            (wants("prod"), None, Truth::Maybe),
            (without(), None, Truth::Maybe),
            (Selector { region: Some("elsewhere".into()), ..without() }, None, Truth::No),
        ] {
            assert!(selector.is_about_endpoints());
            let said = selector.describes(&pod(), Some(known));
            assert_eq!(said, expected, "{selector}, {known:?}");
        }
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
