//! All known endpoints, by name and by address.
//!
//! Namespaces are parents: a pod has the labels of its namespace, and a namespace knows its pods,
//! so that a change of its labels concerns them and nobody else.
//!
//! A copy of the inventory (a snapshot for the flow records while discovery goes on) costs nothing:
//! the maps share what is the same in both. All indexes are kept up with every insert and remove:
//! nothing here is rebuilt, which is what a change of one pod needs.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;

use ipnet::IpNet;
use rpds::{HashTrieMapSync, RedBlackTreeMapSync, RedBlackTreeSetSync};

use crate::cells::Lengths;
use crate::{DomainId, Endpoint, EndpointKind, Labels, Text};

/// Which namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespaceId {
    /// Its cluster, where it has a name.
    pub cluster: Option<Text>,
    /// Its name.
    pub name: Text,
}

impl NamespaceId {
    /// The namespace of an endpoint, if it is in one.
    pub fn of(endpoint: &Endpoint) -> Option<Self> {
        let name = endpoint.namespace.clone()?;
        Some(Self { cluster: endpoint.cluster.clone(), name })
    }
}

/// A namespace, known or only named by those who are in it.
#[derive(Clone, Debug, Default)]
struct Namespace {
    /// `None` as long as nobody has told: the endpoint was heard of before its namespace.
    labels: Option<Labels>,
    /// The names of the endpoints in it.
    endpoints: RedBlackTreeSetSync<Text>,
}

/// Endpoints by name; the most specific one of an address.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    by_name: RedBlackTreeMapSync<Text, Arc<Endpoint>>,
    namespaces: HashTrieMapSync<NamespaceId, Namespace>,
    /// Claimants of a prefix, in order of ownership.
    by_prefix: HashTrieMapSync<(DomainId, IpNet), Box<[Arc<Endpoint>]>>,
    /// How many prefixes of each length there are, so that a lookup tries no others.
    lengths: HashMap<DomainId, Lengths>,
    /// How many conflicts there are.
    contested: usize,
}

/// An address that several pods claim, or several nodes, or several virtual machines.
///
/// Nobody can tell whose packets these are, so the address belongs to the groups that all of them
/// are in, and the others are in doubt ([`crate::GroupSet::doubted`]). A pod on the address of its
/// node is no conflict: that is what a host-network pod looks like.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict {
    /// The domain of the address.
    pub domain: DomainId,
    /// The address or prefix.
    pub prefix: IpNet,
    /// What they all are.
    pub kind: EndpointKind,
    /// Their names, sorted.
    pub claimants: Vec<String>,
}

impl Conflict {
    fn new(domain: DomainId, prefix: IpNet, rivals: &[Arc<Endpoint>]) -> Self {
        let claimants = rivals.iter().map(|one| one.name.to_string()).collect();
        Self { domain, prefix, kind: rivals[0].kind, claimants }
    }
}

/// Those of the claimants of one prefix that cannot all have it, one slice for each kind.
pub(crate) fn rivals(claimants: &[Arc<Endpoint>]) -> impl Iterator<Item = &[Arc<Endpoint>]> {
    // In order of ownership, so those of one kind stand together, sorted by name.
    claimants
        .chunk_by(|a, b| a.kind == b.kind)
        .filter(|same| same.len() > 1 && same[0].kind.is_alone_on_an_address())
}

impl Inventory {
    /// An inventory that knows of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an endpoint, or replaces the one of the same name and returns that.
    ///
    /// Host bits of its prefixes are cleared and doubles dropped; one that has none of them is kept as
    /// whoever else has it does.
    pub fn insert(&mut self, endpoint: impl Into<Arc<Endpoint>>) -> Option<Arc<Endpoint>> {
        let mut endpoint = endpoint.into();
        let before = self.remove(&endpoint.name);
        let mut prefixes: Vec<IpNet> = endpoint.addresses.iter().map(IpNet::trunc).collect();
        prefixes.sort_unstable();
        prefixes.dedup();
        if *prefixes != *endpoint.addresses {
            Arc::make_mut(&mut endpoint).addresses = prefixes.into();
        }
        if let Some(id) = NamespaceId::of(&endpoint) {
            let mut namespace = self.namespaces.get(&id).cloned().unwrap_or_default();
            namespace.endpoints.insert_mut(Arc::clone(&endpoint.name));
            self.namespaces.insert_mut(id, namespace);
        }
        for prefix in &endpoint.addresses {
            let key = (endpoint.domain, *prefix);
            let others = self.by_prefix.get(&key).map_or(&[][..], |claimants| claimants);
            if others.is_empty() {
                self.lengths.entry(endpoint.domain).or_default().add(prefix);
            }
            let place = others.partition_point(|other| {
                (other.kind, &other.name) < (endpoint.kind, &endpoint.name)
            });
            let (before, behind) = others.split_at(place);
            let all: Box<[_]> = before.iter().chain([&endpoint]).chain(behind).cloned().collect();
            self.contested = self.contested + rivals(&all).count() - rivals(others).count();
            self.by_prefix.insert_mut(key, all);
        }
        self.by_name.insert_mut(Arc::clone(&endpoint.name), endpoint);
        before
    }

    /// Removes an endpoint by name.
    pub fn remove(&mut self, name: &str) -> Option<Arc<Endpoint>> {
        let endpoint = Arc::clone(self.by_name.get(name)?);
        self.by_name.remove_mut(name);
        if let Some(id) = NamespaceId::of(&endpoint)
            && let Some(mut namespace) = self.namespaces.get(&id).cloned()
        {
            namespace.endpoints.remove_mut(name);
            self.put_namespace(id, namespace);
        }
        for prefix in &endpoint.addresses {
            let key = (endpoint.domain, *prefix);
            let Some(claimants) = self.by_prefix.get(&key) else { continue };
            let others = claimants.iter().filter(|other| *other.name != *name);
            let others: Box<[_]> = others.cloned().collect();
            self.contested = self.contested + rivals(&others).count() - rivals(claimants).count();
            if !others.is_empty() {
                self.by_prefix.insert_mut(key, others);
                continue;
            }
            self.by_prefix.remove_mut(&key);
            if let Some(lengths) = self.lengths.get_mut(&endpoint.domain) {
                lengths.remove(prefix);
            }
        }
        Some(endpoint)
    }

    /// Keeps what is known of a namespace, as long as anything is.
    fn put_namespace(&mut self, id: NamespaceId, namespace: Namespace) {
        if namespace.labels.is_none() && namespace.endpoints.is_empty() {
            self.namespaces.remove_mut(&id);
        } else {
            self.namespaces.insert_mut(id, namespace);
        }
    }

    /// States the labels of a namespace, whoever is in it; returns those it had.
    pub fn insert_namespace(&mut self, id: NamespaceId, labels: Labels) -> Option<Labels> {
        let mut namespace = self.namespaces.get(&id).cloned().unwrap_or_default();
        let before = namespace.labels.replace(labels);
        self.namespaces.insert_mut(id, namespace);
        before
    }

    /// Forgets the labels of a namespace. Those still in it stay, and what their namespace is like
    /// is unknown again.
    pub fn remove_namespace(&mut self, id: &NamespaceId) -> Option<Labels> {
        let mut namespace = self.namespaces.get(id)?.clone();
        let labels = namespace.labels.take();
        self.put_namespace(id.clone(), namespace);
        labels
    }

    /// The namespaces of which something is known, in any order.
    pub fn namespaces(&self) -> impl Iterator<Item = (&NamespaceId, &Labels)> {
        self.namespaces
            .iter()
            .filter_map(move |(id, namespace)| Some((id, namespace.labels.as_ref()?)))
    }

    /// The labels of a namespace.
    pub fn namespace(&self, id: &NamespaceId) -> Option<&Labels> {
        self.namespaces.get(id)?.labels.as_ref()
    }

    /// The names of all endpoints in a namespace.
    pub fn in_namespace(&self, id: &NamespaceId) -> impl Iterator<Item = &Text> {
        self.namespaces.get(id).into_iter().flat_map(|namespace| namespace.endpoints.iter())
    }

    /// The labels of the namespace that an endpoint is in: `None` if it is in none, and within that
    /// `None` if nothing is known of it.
    pub fn namespace_of(&self, endpoint: &Endpoint) -> Option<Option<&Labels>> {
        let namespace = self.namespaces.get(&NamespaceId::of(endpoint)?);
        Some(namespace.and_then(|namespace| namespace.labels.as_ref()))
    }

    /// Who claims exactly this prefix, in order of ownership.
    pub(crate) fn claimants(&self, domain: DomainId, prefix: IpNet) -> &[Arc<Endpoint>] {
        self.by_prefix.get(&(domain, prefix)).map_or(&[], |claimants| claimants)
    }

    /// The names of endpoints from this one on, sorted.
    pub(crate) fn names_from(&self, start: &str) -> impl Iterator<Item = &Text> {
        let range = (Bound::Included(start), Bound::Unbounded);
        self.by_name.range::<str, _>(range).map(|(name, _)| name)
    }

    /// The endpoint of a name.
    pub fn get(&self, name: &str) -> Option<&Endpoint> {
        self.by_name.get(name).map(Arc::as_ref)
    }

    /// The same, to be kept.
    pub fn shared(&self, name: &str) -> Option<&Arc<Endpoint>> {
        self.by_name.get(name)
    }

    /// The most specific endpoint of an address: the longest prefix; among equal prefixes the
    /// first by [`EndpointKind`], then by name.
    pub fn lookup(&self, domain: DomainId, address: IpAddr) -> Option<&Endpoint> {
        self.around(domain, address).find_map(|(_, claimants)| claimants.first().map(Arc::as_ref))
    }

    /// The claimants of the prefixes that hold an address, the longest prefix first.
    fn around(
        &self,
        domain: DomainId,
        address: IpAddr,
    ) -> impl Iterator<Item = (IpNet, &[Arc<Endpoint>])> {
        let lengths = self.lengths.get(&domain).into_iter();
        lengths
            .flat_map(move |lengths| lengths.around(address))
            .filter_map(move |prefix| Some((prefix, &**self.by_prefix.get(&(domain, prefix))?)))
    }

    /// The conflict about an address, or about the longest prefix around it that has one: what is
    /// in doubt about a prefix is in doubt about every address in it.
    pub fn conflict(&self, domain: DomainId, address: IpAddr) -> Option<Conflict> {
        self.around(domain, address).find_map(|(prefix, claimants)| {
            rivals(claimants).next().map(|rivals| Conflict::new(domain, prefix, rivals))
        })
    }

    /// All endpoints, sorted by name.
    pub fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.by_name.values().map(Arc::as_ref)
    }

    /// How many endpoints there are.
    pub fn len(&self) -> usize {
        self.by_name.size()
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// The domains in which an endpoint has an address, sorted.
    pub fn domains(&self) -> BTreeSet<DomainId> {
        self.lengths
            .iter()
            .filter(|(_, lengths)| !lengths.is_empty())
            .map(|(domain, _)| *domain)
            .collect()
    }

    /// Those that claim one prefix and cannot all have it, one slice for each prefix and kind;
    /// in any order.
    pub(crate) fn rivals(&self) -> impl Iterator<Item = (DomainId, IpNet, &[Arc<Endpoint>])> {
        self.by_prefix.iter().flat_map(|((domain, prefix), claimants)| {
            rivals(claimants).map(|same| (*domain, *prefix, same))
        })
    }

    /// How many conflicts there are.
    pub fn contested(&self) -> usize {
        self.contested
    }

    /// Addresses that more than one endpoint claims although only one can have them, sorted.
    pub fn conflicts(&self) -> Vec<Conflict> {
        let mut conflicts: Vec<Conflict> = self
            .rivals()
            .map(|(domain, prefix, rivals)| Conflict::new(domain, prefix, rivals))
            .collect();
        conflicts.sort_unstable();
        conflicts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(name: &str, kind: EndpointKind, domain: u16, prefixes: &[&str]) -> Endpoint {
        Endpoint {
            addresses: prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect(),
            ..Endpoint::new(name, kind, DomainId(domain))
        }
    }

    fn named(inventory: &Inventory, domain: u16, address: &str) -> Option<String> {
        inventory
            .lookup(DomainId(domain), address.parse().unwrap())
            .map(|endpoint| endpoint.name.to_string())
    }

    #[test]
    fn the_longest_prefix_names_the_address() {
        let mut inventory = Inventory::new();
        inventory.insert(endpoint("vpc", EndpointKind::Vpc, 0, &["10.0.0.0/8", "fd00::/8"]));
        inventory.insert(endpoint("subnet", EndpointKind::Subnet, 0, &["10.1.2.0/24"]));
        inventory.insert(endpoint("vm", EndpointKind::Vm, 0, &["10.1.2.3/32", "fd00::1/128"]));
        inventory.insert(endpoint("pod", EndpointKind::Pod, 1, &["10.1.2.3/32"]));
        for (domain, address, expected) in [
            (0, "10.1.2.3", Some("vm")),
            (0, "10.1.2.4", Some("subnet")),
            (0, "10.1.3.0", Some("vpc")),
            (0, "11.0.0.0", None),
            (0, "fd00::1", Some("vm")),
            (0, "fd00::2", Some("vpc")),
            (1, "10.1.2.3", Some("pod")), // the same address, another domain
            (1, "10.1.2.4", None),
            (2, "10.1.2.3", None),
        ] {
            assert_eq!(named(&inventory, domain, address).as_deref(), expected, "{address}");
        }
    }

    #[test]
    fn among_equal_prefixes_the_kind_decides_then_the_name() {
        let mut inventory = Inventory::new();
        for (name, kind, expected) in [
            ("a", EndpointKind::Vpc, "a"),
            ("z", EndpointKind::Vm, "z"),
            ("y", EndpointKind::Vm, "y"),
            ("node", EndpointKind::Node, "node"),
            ("b", EndpointKind::Subnet, "node"),
        ] {
            inventory.insert(endpoint(name, kind, 0, &["10.0.0.1/32"]));
            assert_eq!(named(&inventory, 0, "10.0.0.1").as_deref(), Some(expected), "after {name}");
        }
    }

    #[test]
    fn what_is_removed_or_replaced_leaves_no_address_behind() {
        let mut inventory = Inventory::new();
        inventory.insert(endpoint("wide", EndpointKind::Subnet, 0, &["10.0.0.0/24"]));
        inventory.insert(endpoint("vm", EndpointKind::Vm, 0, &["10.0.0.1/32", "10.0.0.2/32"]));
        let old = inventory.insert(endpoint("vm", EndpointKind::Vm, 0, &["10.0.0.2/32"]));
        assert_eq!(old.unwrap().addresses.len(), 2);
        assert_eq!(named(&inventory, 0, "10.0.0.1").as_deref(), Some("wide"));
        assert_eq!(named(&inventory, 0, "10.0.0.2").as_deref(), Some("vm"));
        inventory.remove("vm");
        inventory.remove("wide");
        assert_eq!(named(&inventory, 0, "10.0.0.2"), None);
        assert!(inventory.is_empty());
        assert!(inventory.domains().is_empty());
        assert!(inventory.remove("vm").is_none());
    }

    #[test]
    fn host_bits_and_doubles_are_dropped_on_the_way_in() {
        let mut inventory = Inventory::new();
        inventory.insert(endpoint("s", EndpointKind::Subnet, 0, &["10.0.0.9/24", "10.0.0.0/24"]));
        assert_eq!(*inventory.get("s").unwrap().addresses, ["10.0.0.0/24".parse().unwrap()]);
        inventory.remove("s");
        assert_eq!(named(&inventory, 0, "10.0.0.1"), None);
    }

    #[test]
    fn a_namespace_knows_who_is_in_it_and_is_forgotten_with_the_last() {
        let id = |cluster: Option<&str>, name: &str| NamespaceId {
            cluster: cluster.map(Into::into),
            name: name.into(),
        };
        let pod = |name: &str, namespace: Option<&str>| Endpoint {
            cluster: Some("prod".into()),
            namespace: namespace.map(Into::into),
            ..Endpoint::new(name, EndpointKind::Pod, DomainId(1))
        };
        let shop = id(Some("prod"), "shop");
        let mut inventory = Inventory::new();
        inventory.insert(pod("shop/a", Some("shop")));
        inventory.insert(pod("shop/b", Some("shop")));
        inventory.insert(pod("c", None));
        let inside = |inventory: &Inventory, id: &NamespaceId| {
            inventory.in_namespace(id).map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(inside(&inventory, &shop), ["shop/a", "shop/b"]);
        assert!(inside(&inventory, &id(None, "shop")).is_empty(), "of another cluster");
        let labels = |inventory: &Inventory, name: &str| {
            inventory.namespace_of(inventory.get(name).unwrap()).map(Option::<&Labels>::cloned)
        };
        assert_eq!(labels(&inventory, "shop/a"), Some(None), "in one that nobody knows");
        assert_eq!(labels(&inventory, "c"), None, "in none");
        let prod = Labels::from([("env", "prod")]);
        assert_eq!(inventory.insert_namespace(shop.clone(), prod.clone()), None);
        assert_eq!(labels(&inventory, "shop/a"), Some(Some(prod.clone())));
        inventory.insert(pod("shop/a", Some("other")));
        inventory.remove("shop/b");
        assert!(inside(&inventory, &shop).is_empty());
        assert_eq!(inventory.remove_namespace(&shop), Some(prod));
        assert_eq!(inventory.remove_namespace(&shop), None);
        inventory.remove("shop/a");
        assert!(inventory.namespaces.is_empty());
    }

    #[test]
    fn two_of_a_kind_on_one_address_are_a_conflict_and_a_pod_on_its_node_is_not() {
        let mut inventory = Inventory::new();
        inventory.insert(endpoint("n/b", EndpointKind::Pod, 1, &["100.64.0.1/32"]));
        inventory.insert(endpoint("node", EndpointKind::Node, 1, &["100.64.0.1/32"]));
        inventory.insert(endpoint("n/a", EndpointKind::Pod, 2, &["100.64.0.1/32"]));
        assert_eq!(inventory.conflicts(), []);
        inventory.insert(endpoint("n/a", EndpointKind::Pod, 1, &["100.64.0.1/32"]));
        assert_eq!(
            inventory.conflicts(),
            [Conflict {
                domain: DomainId(1),
                prefix: "100.64.0.1/32".parse().unwrap(),
                kind: EndpointKind::Pod,
                claimants: vec!["n/a".into(), "n/b".into()],
            }]
        );
        for (kind, expected) in [
            (EndpointKind::Vm, true),
            (EndpointKind::Node, true),
            (EndpointKind::Service, false),
            (EndpointKind::Subnet, false),
        ] {
            let mut inventory = Inventory::new();
            inventory.insert(endpoint("a", kind, 0, &["10.0.0.1/32"]));
            inventory.insert(endpoint("b", kind, 0, &["10.0.0.1/32"]));
            assert_eq!(!inventory.conflicts().is_empty(), expected, "{kind}");
            assert_eq!(inventory.contested(), usize::from(expected), "{kind}");
        }
    }

    #[test]
    fn an_address_inside_of_a_contested_prefix_is_contested_too() {
        let mut inventory = Inventory::new();
        for name in ["vm-a", "vm-b"] {
            inventory.insert(endpoint(name, EndpointKind::Vm, 0, &["10.0.0.0/24"]));
        }
        inventory.insert(endpoint("pod", EndpointKind::Pod, 0, &["10.0.0.7/32"]));
        let told = |domain, address: &str| {
            let conflict = inventory.conflict(DomainId(domain), address.parse().unwrap());
            conflict.map(|one| (one.prefix.to_string(), one.claimants.join(" ")))
        };
        let expected = Some(("10.0.0.0/24".to_owned(), "vm-a vm-b".to_owned()));
        for (domain, address, expected) in [
            (0, "10.0.0.255", expected.clone()),
            (0, "10.0.0.7", expected), // also where an endpoint of its own is
            (0, "10.0.1.0", None),     // one past it
            (1, "10.0.0.7", None),     // another domain
        ] {
            assert_eq!(told(domain, address), expected, "{domain} {address}");
        }
        for name in ["pod-a", "pod-b"] {
            inventory.insert(endpoint(name, EndpointKind::Pod, 0, &["10.0.0.7/32"]));
        }
        let nearest = inventory.conflict(DomainId(0), "10.0.0.7".parse().unwrap()).unwrap();
        assert_eq!(nearest.claimants, ["pod", "pod-a", "pod-b"], "the longest prefix");
    }
}
