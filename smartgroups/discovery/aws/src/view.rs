//! What the facts of an account mean: which endpoints there are, and how that changes.
//!
//! Pure: facts in, changes out. What a region has is computed whole and compared with what was said
//! of it before, so any way to a state says the same as that state alone.
//!
//! | fact | endpoint |
//! | --- | --- |
//! | VPC, subnet | what is associated with it, of both families |
//! | instance | all addresses of its interfaces, private and public, but for those of pods |
//! | interface of no instance | its addresses, private and public: a load balancer, a NAT gateway, a database |
//! | interface of an instance that is not known | its primary addresses, for the others may be pods' |
//! | branch interface | none: it is a pod's, and the cluster says more of that |
//!
//! An endpoint is in the domain of its VPC. Public addresses are not, whatever VPC is behind them: where
//! a VPC has a domain of its own, they are an endpoint beside the other, in the fabric.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use smartgroups::{Change, DomainId, Endpoint, EndpointKind, Labels, Text};

use crate::facts::{Address, Facts, Interface};
use crate::pods;
use crate::settings::Scope;

/// What people call things by.
const NAME_TAG: &str = "Name";
/// What the name of an endpoint ends in that has the public addresses of another.
const PUBLIC: &str = "/public";

/// What was said of an account, by region.
#[derive(Debug)]
pub(crate) struct View {
    scope: Scope,
    regions: BTreeMap<Text, BTreeMap<Text, Arc<Endpoint>>>,
}

impl View {
    /// An account of which nothing was said.
    pub(crate) fn new(scope: Scope) -> Self {
        Self { scope, regions: BTreeMap::new() }
    }

    /// Takes in what a region has and says how that differs. What is gone comes first, so that an
    /// address is free before it is given again.
    pub(crate) fn update(&mut self, region: &Text, facts: &Facts, changes: &mut Vec<Change>) {
        let after = endpoints(&self.scope, region, facts);
        let known = self.regions.entry(Text::clone(region)).or_default();
        let gone = known.keys().filter(|name| !after.contains_key(*name));
        changes.extend(gone.map(|name| Change::Gone(Text::clone(name))));
        let new = after.iter().filter(|(name, endpoint)| known.get(*name) != Some(endpoint));
        changes.extend(new.map(|(_, endpoint)| Change::Endpoint(Arc::clone(endpoint))));
        *known = after;
    }

    /// How many endpoints there are.
    pub(crate) fn endpoints(&self) -> usize {
        self.regions.values().map(BTreeMap::len).sum()
    }
}

/// The endpoints that facts make.
fn endpoints(scope: &Scope, region: &Text, facts: &Facts) -> BTreeMap<Text, Arc<Endpoint>> {
    let mut all = Collector { scope, region, endpoints: BTreeMap::new() };
    for vpc in facts.vpcs.iter() {
        let domain = scope.domain(Some(&vpc.id));
        let what = What { kind: EndpointKind::Vpc, id: &vpc.id, owner: &vpc.owner, zone: &None };
        all.add(what, domain, vpc.cidrs.iter().copied(), &vpc.tags);
    }
    for subnet in facts.subnets.iter() {
        let domain = scope.domain(subnet.vpc.as_deref());
        let (kind, zone) = (EndpointKind::Subnet, &subnet.zone);
        let what = What { kind, id: &subnet.id, owner: &subnet.owner, zone };
        all.add(what, domain, subnet.cidrs.iter().copied(), &subnet.tags);
    }
    let mut of_instance: BTreeMap<&Text, Vec<&Interface>> = BTreeMap::new();
    for interface in facts.interfaces.iter().filter(|one| !pods::is_of_pod(one)) {
        if let Some(instance) = &interface.instance {
            of_instance.entry(instance).or_default().push(interface);
        }
    }
    for instance in facts.instances.iter() {
        let interfaces = of_instance.remove(&instance.id).unwrap_or_default();
        let has_pods = pods::is_node(instance, interfaces.iter().copied());
        let addresses = interfaces.iter().flat_map(|one| pods::own_addresses(one, has_pods));
        let (kind, zone) = (EndpointKind::Vm, &instance.zone);
        let what = What { kind, id: &instance.id, owner: &instance.owner, zone };
        all.add_host(what, instance.vpc.as_deref(), addresses, &instance.tags);
    }
    for interface in facts.interfaces.iter().filter(|one| !pods::is_of_pod(one)) {
        let of_known = interface.instance.as_ref().is_some_and(|id| !of_instance.contains_key(id));
        if of_known {
            continue;
        }
        let has_pods = interface.instance.is_some() || pods::lends_to_pods(interface);
        let addresses = pods::own_addresses(interface, has_pods);
        let (kind, zone) = (EndpointKind::Interface, &interface.zone);
        let what = What { kind, id: &interface.id, owner: &interface.owner, zone };
        all.add_host(what, interface.vpc.as_deref(), addresses, &interface.tags);
    }
    all.endpoints
}

/// What an endpoint is, beside its addresses.
#[derive(Clone, Copy)]
struct What<'a> {
    kind: EndpointKind,
    id: &'a Text,
    owner: &'a Option<Text>,
    zone: &'a Option<Text>,
}

struct Collector<'a> {
    scope: &'a Scope,
    region: &'a Text,
    endpoints: BTreeMap<Text, Arc<Endpoint>>,
}

impl Collector<'_> {
    /// Adds an endpoint with addresses as its VPC knows them, and as the internet does.
    fn add_host<'a>(
        &mut self,
        what: What<'_>,
        vpc: Option<&str>,
        addresses: impl Iterator<Item = &'a Address> + Clone,
        tags: &Labels,
    ) {
        let domain = self.scope.domain(vpc);
        let private = addresses.clone().map(|address| IpNet::from(address.private));
        let public = addresses.filter_map(|address| address.public).map(IpNet::from);
        if domain == DomainId::FABRIC {
            self.add(what, domain, private.chain(public), tags);
        } else {
            self.add(what, domain, private, tags);
            self.insert(PUBLIC, what, DomainId::FABRIC, public, tags);
        }
    }

    fn add(
        &mut self,
        what: What<'_>,
        domain: DomainId,
        addresses: impl Iterator<Item = IpNet>,
        tags: &Labels,
    ) {
        self.insert("", what, domain, addresses, tags);
    }

    /// Without an address there is no endpoint.
    fn insert(
        &mut self,
        end: &str,
        what: What<'_>,
        domain: DomainId,
        addresses: impl Iterator<Item = IpNet>,
        tags: &Labels,
    ) {
        let addresses: BTreeSet<IpNet> = addresses.map(|prefix| prefix.trunc()).collect();
        if addresses.is_empty() {
            return;
        }
        let start = self.scope.account.beginning();
        let name = Text::from(format!("{start}{}/{}{end}", self.region, what.id));
        let endpoint = Endpoint {
            given_name: tags.get(NAME_TAG).filter(|name| !name.is_empty()).map(Text::from),
            addresses: addresses.into_iter().collect(),
            id: Some(Text::clone(what.id)),
            account: what.owner.clone(),
            region: Some(Text::clone(self.region)),
            zone: what.zone.clone(),
            labels: tags.clone(),
            ..Endpoint::new(Text::clone(&name), what.kind, domain)
        };
        self.endpoints.insert(name, Arc::new(endpoint));
    }
}

#[cfg(test)]
mod tests;
