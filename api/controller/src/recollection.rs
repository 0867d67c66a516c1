//! What was discovered, remembered over a restart.
//!
//! A gateway that starts knows nobody until its clusters, its accounts and DNS have answered, and judges
//! live flows meanwhile. So what was discovered is written down and taken for true at the start, until
//! each has said all that it knows: what it has not named by then is gone ([`Unconfirmed`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use smartgroups::{
    Change, DomainId, Endpoint, EndpointKind, Inventory, Labels, NamespaceId, Pool, Subject,
    Workload,
};
use smartgroups_discovery::dns::{self, DnsName};

use crate::{Source, Wanted};

/// The kinds that clusters and accounts have endpoints of.
const KINDS: [EndpointKind; 7] = [
    EndpointKind::Pod,
    EndpointKind::Service,
    EndpointKind::Node,
    EndpointKind::Vm,
    EndpointKind::Interface,
    EndpointKind::Subnet,
    EndpointKind::Vpc,
];

/// What was discovered, in a form that is written to a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Recollection {
    endpoints: Vec<Remembered>,
    namespaces: Vec<Space>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    names: Vec<Named>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
struct Remembered {
    name: String,
    kind: String,
    domain: u16,
    addresses: Vec<IpNet>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    given_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cluster: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    account: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    services: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    service_account: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    workload: Option<(String, String)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    region: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    zone: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
struct Space {
    cluster: String,
    name: String,
    labels: BTreeMap<String, String>,
}

/// A name in DNS and who had it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
struct Named {
    name: String,
    addresses: Vec<IpAddr>,
}

impl Named {
    /// Who has the name, if it is asked for, as far as that is still to be taken.
    fn change(&self, asked: &dns::Settings) -> Option<Change> {
        let name = DnsName::new(&self.name).ok().filter(|name| asked.names.contains(name))?;
        let taken = self.addresses.iter().filter(|one| asked.rules.why_not(**one).is_none());
        let name = Endpoint::name_of_fqdn(name.as_str());
        Some(Change::Endpoint(Arc::new(Endpoint {
            addresses: taken.copied().map(IpNet::from).collect(),
            ..Endpoint::new(name, EndpointKind::Fqdn, DomainId::FABRIC)
        })))
    }
}

fn written(labels: &Labels) -> BTreeMap<String, String> {
    labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

fn read(labels: &BTreeMap<String, String>, pool: &mut Pool) -> Labels {
    pool.labels(labels.iter().map(|(key, value)| (key.as_str(), value.as_str())))
}

impl Recollection {
    /// What of all that is known was discovered.
    pub fn of(all: &Inventory, stated: &Inventory) -> Self {
        // Names are written down apart.
        let is_discovered =
            |one: &&Endpoint| one.fqdn().is_none() && stated.get(&one.name).is_none();
        let endpoints = all.endpoints().filter(is_discovered);
        let text = |text: &Option<smartgroups::Text>| text.as_ref().map(ToString::to_string);
        let endpoints = endpoints.map(|one| Remembered {
            name: one.name.to_string(),
            kind: one.kind.to_string(),
            domain: one.domain.0,
            addresses: one.addresses.to_vec(),
            given_name: text(&one.given_name),
            cluster: text(&one.cluster),
            account: text(&one.account),
            id: text(&one.id),
            namespace: text(&one.namespace),
            services: one.services.iter().map(ToString::to_string).collect(),
            service_account: text(&one.service_account),
            workload: (one.workload.as_ref())
                .map(|workload| (workload.kind.to_string(), workload.name.to_string())),
            region: text(&one.region),
            zone: text(&one.zone),
            labels: written(&one.labels),
        });
        let namespaces = all.namespaces().filter(|(id, _)| stated.namespace(id).is_none());
        let namespaces = namespaces.filter_map(|(id, labels)| {
            let (cluster, name) = (text(&id.cluster)?, id.name.to_string());
            Some(Space { cluster, name, labels: written(labels) })
        });
        let names = all.endpoints().filter_map(|one| {
            let addresses = one.addresses.iter().map(IpNet::addr).collect();
            Some(Named { name: DnsName::of(one)?.to_string(), addresses })
        });
        let names = names.filter(|one| !one.addresses.is_empty()).collect();
        Self { endpoints: endpoints.collect(), namespaces: namespaces.collect(), names }
    }

    /// What of it is still meant: that of those who are followed, where their addresses are now, and of
    /// the names that are asked for.
    pub fn changes(&self, wanted: &Wanted) -> Vec<Change> {
        let mut pool = Pool::new();
        let scope = |cluster: &str| {
            let mut all = wanted.clusters.iter().map(|one| &one.scope);
            all.find(|scope| scope.cluster.as_str() == cluster)
        };
        // Which VPC an endpoint is in is not written down, only where that was.
        let is_of_account = |one: &Remembered| {
            let mut all = wanted.accounts.iter().map(|one| &one.scope);
            let account = all.find(|scope| one.name.starts_with(&scope.account.beginning()));
            let domain = DomainId(one.domain);
            account.is_some_and(|scope| {
                domain == DomainId::FABRIC || scope.domains.values().any(|one| *one == domain)
            })
        };
        let mut changes = Vec::with_capacity(self.endpoints.len() + self.namespaces.len());
        for space in self.namespaces.iter().filter(|space| scope(&space.cluster).is_some()) {
            let (cluster, name) = (Some(pool.text(&space.cluster)), pool.text(&space.name));
            let labels = read(&space.labels, &mut pool);
            changes.push(Change::Namespace(NamespaceId { cluster, name }, labels));
        }
        for one in &self.endpoints {
            let Some(kind) = KINDS.into_iter().find(|kind| kind.as_str() == one.kind) else {
                continue;
            };
            let domain = DomainId(one.domain);
            let is_meant = match &one.cluster {
                Some(cluster) => scope(cluster).is_some_and(|scope| {
                    domain == if kind == EndpointKind::Pod { scope.pods } else { scope.nodes }
                }),
                None => is_of_account(one),
            };
            if !is_meant {
                continue;
            }
            let mut text = |text: &Option<String>| text.as_deref().map(|text| pool.text(text));
            let endpoint = Endpoint {
                addresses: one.addresses.clone().into(),
                id: text(&one.id),
                given_name: text(&one.given_name),
                cluster: text(&one.cluster),
                account: text(&one.account),
                namespace: text(&one.namespace),
                service_account: text(&one.service_account),
                region: text(&one.region),
                zone: text(&one.zone),
                services: one.services.iter().map(|service| pool.text(service)).collect(),
                workload: (one.workload.as_ref())
                    .map(|(kind, name)| Workload { kind: pool.text(kind), name: pool.text(name) }),
                labels: read(&one.labels, &mut pool),
                ..Endpoint::new(one.name.as_str(), kind, domain)
            };
            changes.push(Change::Endpoint(Arc::new(endpoint)));
        }
        changes.extend(self.names.iter().filter_map(|one| one.change(&wanted.names)));
        changes
    }
}

/// What is taken for true although whoever knows it has not said so yet.
#[derive(Debug, Default)]
pub struct Unconfirmed(BTreeMap<Source, BTreeSet<Subject>>);

impl Unconfirmed {
    /// All that is known by somebody's word waits until it is said again.
    pub fn doubt(&mut self, source: &Source, inventory: &Inventory) {
        self.0.insert(source.clone(), source.known(inventory).into_iter().collect());
    }

    /// Somebody has said something, and maybe all that he knows: what was not named by then is gone,
    /// which is added to the changes.
    pub fn hear(&mut self, source: &Source, is_all: bool, changes: &mut Vec<Change>) {
        let Some(waiting) = self.0.get_mut(source) else { return };
        for change in changes.iter() {
            waiting.remove(&change.subject());
        }
        if is_all && let Some(waiting) = self.0.remove(source) {
            changes.extend(waiting.into_iter().map(Subject::gone));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smartgroups_aws::{self as aws, AccountName};
    use smartgroups_discovery::kubernetes::{Access, ClusterName, Scope, Settings};

    fn watched(name: &str, pods: u16) -> Wanted {
        let cluster = ClusterName::new(name).unwrap();
        let scope = Scope { cluster, pods: DomainId(pods), nodes: DomainId::FABRIC };
        let clusters = vec![Settings::new(scope, Access::InCluster)];
        Wanted { clusters, ..Wanted::default() }
    }

    /// An account with a VPC in a domain of its own.
    fn followed(name: &str, domain: u16) -> Wanted {
        let account = AccountName::new(name).unwrap();
        let scope = aws::Scope { account, domains: [("vpc-1".into(), DomainId(domain))].into() };
        let accounts = vec![aws::Settings::new(scope, vec!["eu-central-1".to_owned()])];
        Wanted { accounts, ..Wanted::default() }
    }

    fn eu() -> Source {
        Source::Cluster("eu".to_owned())
    }

    fn vm(name: &str, domain: DomainId) -> Endpoint {
        Endpoint {
            given_name: Some("web".into()),
            addresses: ["10.0.0.2/32".parse().unwrap()].into(),
            id: Some("i-1".into()),
            account: Some("111122223333".into()),
            region: Some("eu-central-1".into()),
            zone: Some("eu-central-1a".into()),
            labels: [("Name", "web")].into(),
            ..Endpoint::new(name, EndpointKind::Vm, domain)
        }
    }

    fn shop() -> NamespaceId {
        NamespaceId { cluster: Some("eu".into()), name: "shop".into() }
    }

    fn pod() -> Endpoint {
        Endpoint {
            addresses: ["100.64.0.1/32".parse().unwrap(), "fd00::1/128".parse().unwrap()].into(),
            id: Some("uid".into()),
            cluster: Some("eu".into()),
            namespace: Some("shop".into()),
            services: ["api".into(), "web".into()].into(),
            service_account: Some("sa".into()),
            workload: Some(Workload { kind: "Deployment".into(), name: "api".into() }),
            region: Some("r".into()),
            zone: Some("z".into()),
            labels: [("team", "web")].into(),
            ..Endpoint::new("eu/shop/api", EndpointKind::Pod, DomainId(1))
        }
    }

    fn known() -> Inventory {
        let mut known = Inventory::new();
        known.insert(pod());
        let node = Endpoint { cluster: Some("eu".into()), ..pod() };
        known.insert(Endpoint {
            name: "node:eu/a".into(),
            kind: EndpointKind::Node,
            domain: DomainId::FABRIC,
            addresses: ["10.0.0.1/32".parse().unwrap()].into(),
            ..node
        });
        known.insert(Endpoint { name: "file/b".into(), ..pod() });
        known.insert_namespace(shop(), [("env", "prod")].into());
        known
    }

    #[test]
    fn what_was_discovered_is_remembered_fact_by_fact() {
        let mut stated = Inventory::new();
        stated.insert(Endpoint { name: "file/b".into(), ..pod() });
        let text = serde_json::to_string(&Recollection::of(&known(), &stated)).unwrap();
        let read: Recollection = serde_json::from_str(&text).unwrap();
        let mut again = Inventory::new();
        for change in read.changes(&watched("eu", 1)) {
            again.apply(change);
        }
        for name in ["eu/shop/api", "node:eu/a"] {
            assert_eq!(again.get(name), known().get(name), "{name}");
        }
        assert_eq!(again.namespace(&shop()), known().namespace(&shop()));
        assert_eq!(again.len(), 2, "what is stated is the file's");
        // Another cluster, and pods that are in another domain now.
        assert_eq!(read.changes(&watched("us", 1)), []);
        assert_eq!(read.changes(&watched("eu", 2)).len(), 2, "the namespace and the node");
    }

    #[test]
    fn what_an_account_said_is_remembered_too() {
        let mut known = known();
        let here = vm("aws:eu/eu-central-1/i-1", DomainId::FABRIC);
        let hidden = vm("aws:eu/eu-central-1/i-2", DomainId(7));
        known.insert(here.clone());
        known.insert(hidden.clone());
        known.insert(vm("aws:eu2/eu-central-1/i-1", DomainId::FABRIC));
        let text = serde_json::to_string(&Recollection::of(&known, &Inventory::new())).unwrap();
        let read: Recollection = serde_json::from_str(&text).unwrap();
        let found = |one: &Endpoint| Change::Endpoint(Arc::new(one.clone()));
        assert_eq!(read.changes(&followed("eu", 7)), [found(&here), found(&hidden)]);
        assert_eq!(read.changes(&followed("eu", 8)), [found(&here)], "its domain is gone");
        assert_eq!(read.changes(&followed("e", 7)), []);
        // What an older daemon wrote.
        let older = r#"{"endpoints": [{"name": "eu/shop/api", "kind": "pod", "domain": 1,
            "addresses": ["100.64.0.1/32"], "cluster": "eu"}], "namespaces": []}"#;
        let older: Recollection = serde_json::from_str(older).unwrap();
        assert_eq!(older.changes(&watched("eu", 1)).len(), 1);
        let mut unconfirmed = Unconfirmed::default();
        let account = Source::Account(AccountName::new("eu").unwrap());
        unconfirmed.doubt(&account, &known);
        let mut said = vec![found(&here)];
        unconfirmed.hear(&account, true, &mut said);
        assert_eq!(said, [found(&here), Change::Gone(hidden.name)]);
    }

    #[test]
    fn who_had_a_name_is_remembered_and_taken_by_the_rules_of_now() {
        let fqdn = |name: &str, addresses: &[&str]| Endpoint {
            addresses: addresses.iter().map(|prefix| prefix.parse().unwrap()).collect(),
            ..Endpoint::new(Endpoint::name_of_fqdn(name), EndpointKind::Fqdn, DomainId::FABRIC)
        };
        let mut known = known();
        let two = ["192.0.2.1/32", "198.51.100.1/32", "2001:db8::1/128"];
        known.insert(fqdn("api.example.com", &two));
        known.insert(fqdn("other.example.com", &["192.0.2.2/32"]));
        known.insert(fqdn("nobody.example.com", &[]));
        let text = serde_json::to_string(&Recollection::of(&known, &Inventory::new())).unwrap();
        assert!(!text.contains("nobody"), "{text}");
        let read: Recollection = serde_json::from_str(&text).unwrap();
        let asked = |non_routable: &str| {
            let names = [DnsName::new("api.example.com").unwrap()].into();
            let non_routable = vec![non_routable.parse().unwrap()];
            let rules = dns::Rules { non_routable, ..dns::Rules::default() };
            let names = dns::Settings { names, rules, ..dns::Settings::default() };
            Wanted { names, ..Wanted::default() }
        };
        let change = |addresses: &[&str]| {
            vec![Change::Endpoint(Arc::new(fqdn("api.example.com", addresses)))]
        };
        assert_eq!(read.changes(&asked("100.64.0.0/10")), change(&two));
        assert_eq!(read.changes(&asked("198.51.100.0/24")), change(&[two[0], two[2]]));
        // What was written before there were names has none.
        let before: Recollection =
            serde_json::from_str(r#"{"endpoints":[],"namespaces":[]}"#).unwrap();
        assert_eq!(before.changes(&asked("100.64.0.0/10")), []);
    }

    #[test]
    fn what_a_cluster_has_not_named_when_it_has_said_all_is_gone() {
        let mut unconfirmed = Unconfirmed::default();
        unconfirmed.doubt(&eu(), &known());
        let found = || Change::Endpoint(Arc::new(pod()));
        let mut first = vec![found()];
        unconfirmed.hear(&Source::Cluster("us".to_owned()), true, &mut vec![]);
        unconfirmed.hear(&eu(), false, &mut first);
        assert_eq!(first, [found()]);
        let mut last = vec![];
        unconfirmed.hear(&eu(), true, &mut last);
        let gone = |name: &str| Change::Gone(name.into());
        assert_eq!(last, [gone("file/b"), gone("node:eu/a"), Change::NamespaceGone(shop())]);
        let mut later = vec![];
        unconfirmed.hear(&eu(), true, &mut later);
        assert_eq!(later, [], "once");
    }
}
