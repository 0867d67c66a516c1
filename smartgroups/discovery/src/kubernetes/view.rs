//! What the objects of one cluster mean: who owns which address, and what is known of it.
//!
//! Pure: objects in, changes out. Each of the five kinds arrives at its own pace, so an object may
//! speak of one that is not known yet, or not any more. Which endpoints there are follows from the
//! objects alone, not from the order in which they came: a changed object is looked at together with
//! every endpoint that it touches, as it was before and as it is after, and the difference is what is
//! sent. The tests hold this against a computation from scratch.
//!
//! | object | endpoint |
//! | --- | --- |
//! | pod with an address, not ended | yes, with both families; also while it waits, starts, is being deleted, or its node is lost |
//! | pod that succeeded or failed | none, at once: its address may be somebody else's already |
//! | pod on the network of its host | none: it is its node |
//! | pod that the VPC CNI has annotated | by the annotation, until its status has addresses |
//! | service | its external and load balancer addresses; of a headless one also what its slices name beside pods |
//! | node | its internal and external addresses |
//!
//! A pod may be told of before its namespace is. Whoever asks for labels of that is in doubt until then;
//! that is the inventory's to know.
//!
//! A pod is behind a service when a slice names it, ready or not: who a sender is does not change
//! when a probe fails, and a pod that drains still sends.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::slice;
use std::sync::Arc;

use smartgroups::{Change, Endpoint, Labels, Pool, Text};

use super::Kind;
use super::endpoint::{NodeFacts, Place, PodFacts, Scope, ServiceFacts};
use super::object::{
    EndpointSlice, Metadata, Namespace, News, Node, Object, Pairs, Phase, Pod, Service,
    SliceEndpoint, Update,
};
use super::owner::workload;
use super::store::{Key, Store, Version};
use super::uid::Uid;

/// Which service a slice belongs to.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";
const REGION_LABEL: &str = "topology.kubernetes.io/region";
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// The objects of a cluster and the endpoints that they make.
#[derive(Debug)]
pub(crate) struct View {
    scope: Scope,
    pool: Pool,
    namespaces: Store<Labels>,
    nodes: Store<NodeState>,
    pods: Store<PodState>,
    services: Store<ServiceState>,
    slices: Store<SliceState>,
    /// Pods by the name of their node.
    on_node: HashMap<Text, BTreeSet<Key>>,
    /// Of each pod that a slice names: by which service, as which uid, and how many times, because
    /// while slices are rewritten two of them may name it.
    behind: HashMap<Key, BTreeMap<Reference, u32>>,
    /// Slices by their service.
    slices_of: HashMap<Key, BTreeSet<Text>>,
    endpoints: usize,
    passed_over: [u64; Kind::ALL.len()],
}

/// A service and the uid of the pod that it means.
type Reference = (Text, Uid);

#[derive(Debug)]
struct PodState {
    uid: Uid,
    node: Option<Text>,
    /// As it was told of: whoever was told has the same. None if the pod owns no address.
    endpoint: Option<Arc<Endpoint>>,
}

#[derive(Debug)]
struct NodeState {
    addresses: Box<[IpAddr]>,
    labels: Labels,
    place: Place,
}

#[derive(Debug)]
struct ServiceState {
    addresses: Box<[IpAddr]>,
    labels: Labels,
    headless: bool,
}

#[derive(Debug, Default)]
struct SliceState {
    service: Option<Text>,
    /// Name and uid of the pods it names.
    pods: BTreeSet<(Text, Uid)>,
    /// Addresses of what is no pod and may be sent to.
    others: BTreeSet<IpAddr>,
}

/// How the objects of one kind enter the view.
trait Watched: Object {
    type State;

    fn store(view: &mut View) -> &mut Store<Self::State>;

    /// Puts an object in the place of what was there, or nothing if it is gone.
    fn replace(
        view: &mut View,
        key: Key,
        version: Version,
        object: Option<Self>,
        changes: &mut Vec<Change>,
    );
}

impl View {
    /// A cluster of which nothing is known.
    pub(crate) fn new(scope: Scope) -> Self {
        Self {
            scope,
            pool: Pool::new(),
            namespaces: Store::default(),
            nodes: Store::default(),
            pods: Store::default(),
            services: Store::default(),
            slices: Store::default(),
            on_node: HashMap::new(),
            behind: HashMap::new(),
            slices_of: HashMap::new(),
            endpoints: 0,
            passed_over: [0; Kind::ALL.len()],
        }
    }

    /// Takes in what a watch heard and says what that changes.
    pub(crate) fn update(&mut self, news: News, changes: &mut Vec<Change>) {
        match news {
            News::Namespace(update) => self.take(update, changes),
            News::Node(update) => self.take(update, changes),
            News::Pod(update) => self.take(update, changes),
            News::Service(update) => self.take(update, changes),
            News::EndpointSlice(update) => self.take(update, changes),
        }
    }

    /// How many objects of a kind are known.
    pub(crate) fn objects(&self, kind: Kind) -> usize {
        match kind {
            Kind::Namespace => self.namespaces.len(),
            Kind::Node => self.nodes.len(),
            Kind::Pod => self.pods.len(),
            Kind::Service => self.services.len(),
            Kind::EndpointSlice => self.slices.len(),
        }
    }

    /// How many events about a kind were older than what was known.
    pub(crate) fn passed_over(&self, kind: Kind) -> u64 {
        self.passed_over[kind.index()]
    }

    /// How many endpoints there are.
    pub(crate) fn endpoints(&self) -> usize {
        self.endpoints
    }

    fn take<T: Watched>(&mut self, update: Update<T>, changes: &mut Vec<Change>) {
        match update {
            Update::Listed(objects) => self.take_list(objects, changes),
            Update::Told => {}
            Update::Changed(events) => {
                for event in events {
                    let Some((key, version)) = self.identify(event.object.metadata()) else {
                        continue;
                    };
                    if T::store(self).believes(&key, version) {
                        let object = (!event.deleted).then_some(event.object);
                        T::replace(self, key, version, object, changes);
                    } else {
                        self.passed_over[T::KIND.index()] += 1;
                    }
                }
            }
        }
    }

    /// A list is a difference: what stayed is not touched, and what is not in it goes first, so that
    /// an address is free before it is given again.
    fn take_list<T: Watched>(&mut self, objects: Vec<T>, changes: &mut Vec<Change>) {
        let objects: Vec<_> = objects
            .into_iter()
            .filter_map(|object| self.identify(object.metadata()).map(|(key, v)| (key, v, object)))
            .collect();
        let present: HashSet<&Key> = objects.iter().map(|(key, ..)| key).collect();
        let departed: Vec<Key> =
            T::store(self).keys().filter(|key| !present.contains(key)).cloned().collect();
        for key in departed {
            T::replace(self, key, Version::default(), None, changes);
        }
        T::store(self).settle();
        for (key, version, object) in objects {
            if !T::store(self).has(&key, version) {
                T::replace(self, key, version, Some(object), changes);
            }
        }
    }

    /// What an object is called and which version of it this is; `None` if it has no name.
    fn identify(&mut self, metadata: &Metadata) -> Option<(Key, Version)> {
        if metadata.name.is_empty() {
            return None;
        }
        // A name is hardly ever shared, so it is not looked for among the shared strings.
        let key = (self.pool.text(&metadata.namespace), metadata.name.as_str().into());
        Some((key, Version::new(&metadata.resource_version)))
    }

    fn labels(&mut self, labels: &Pairs) -> Labels {
        self.pool.labels(labels.iter())
    }

    fn some_text(&mut self, text: &str) -> Option<Text> {
        (!text.is_empty()).then(|| self.pool.text(text))
    }

    fn pod(&self, key: &Key) -> Option<Arc<Endpoint>> {
        self.pods.get(key)?.endpoint.clone()
    }

    /// The services that a pod is behind, and where it stands.
    fn around(&self, key: &Key, uid: &Uid, node: Option<&Text>) -> (Box<[Text]>, Place) {
        let mut services: Vec<Text> = self
            .behind
            .get(key)
            .into_iter()
            .flat_map(BTreeMap::keys)
            .filter(|(_, meant)| *meant == Uid::None || meant == uid)
            .map(|(service, _)| Text::clone(service))
            .collect();
        services.dedup();
        let node = node.and_then(|node| self.nodes.get(&namespaceless(node)));
        (services.into(), node.map(|node| node.place.clone()).unwrap_or_default())
    }

    /// Brings pods up to what services and nodes say of them now.
    fn look_around(&mut self, pods: &[Key]) {
        for key in pods {
            let Some(PodState { uid, node, endpoint: Some(endpoint) }) = self.pods.get(key) else {
                continue;
            };
            let (services, place) = self.around(key, uid, node.as_ref());
            let stands = (&endpoint.region, &endpoint.zone) == (&place.region, &place.zone);
            if stands && endpoint.services == services {
                continue;
            }
            let endpoint = Endpoint {
                services,
                region: place.region,
                zone: place.zone,
                ..Endpoint::clone(endpoint)
            };
            if let Some(pod) = self.pods.get_mut(key) {
                pod.endpoint = Some(Arc::new(endpoint));
            }
        }
    }

    fn service(&self, key: &Key) -> Option<Endpoint> {
        let service = self.services.get(key)?;
        let mut addresses: BTreeSet<IpAddr> = service.addresses.iter().copied().collect();
        if service.headless {
            for slice in self.slices_of.get(key).into_iter().flatten() {
                let slice = self.slices.get(&(Text::clone(&key.0), Text::clone(slice)));
                addresses.extend(slice.into_iter().flat_map(|slice| &slice.others));
            }
        }
        if addresses.is_empty() {
            return None;
        }
        Some(self.scope.service(&ServiceFacts {
            namespace: &key.0,
            name: &key.1,
            addresses: addresses.into_iter().collect(),
            labels: &service.labels,
        }))
    }

    fn node(&self, key: &Key) -> Option<Endpoint> {
        let node = self.nodes.get(key).filter(|node| !node.addresses.is_empty())?;
        Some(self.scope.node(&NodeFacts {
            name: &key.1,
            addresses: &node.addresses,
            labels: &node.labels,
            place: &node.place,
        }))
    }

    /// The endpoints that some pods and services make at present.
    fn picture(&self, pods: &[Key], services: &[Key]) -> Vec<Option<Arc<Endpoint>>> {
        let services = services.iter().map(|key| self.service(key).map(Arc::new));
        pods.iter().map(|key| self.pod(key)).chain(services).collect()
    }

    /// Says how two pictures of the same differ.
    fn compare(
        &mut self,
        before: Vec<Option<Arc<Endpoint>>>,
        after: Vec<Option<Arc<Endpoint>>>,
        changes: &mut Vec<Change>,
    ) {
        for (before, after) in before.into_iter().zip(after) {
            match (before, after) {
                (None, None) => {}
                (Some(before), None) => {
                    self.endpoints -= 1;
                    changes.push(Change::Gone(Text::clone(&before.name)));
                }
                (None, Some(after)) => {
                    self.endpoints += 1;
                    changes.push(Change::Endpoint(after));
                }
                (Some(before), Some(after)) => {
                    if before != after {
                        changes.push(Change::Endpoint(after));
                    }
                }
            }
        }
    }
}

fn namespaceless(name: &Text) -> Key {
    ("".into(), Text::clone(name))
}

/// Addresses, sorted and without doubles. What is none is passed over: the server checks them, and
/// one bad string must not cost the others.
fn addresses<'a>(texts: impl IntoIterator<Item = &'a str>) -> Box<[IpAddr]> {
    let parsed = texts.into_iter().filter_map(|text| text.trim().parse().ok());
    parsed.collect::<BTreeSet<IpAddr>>().into_iter().collect()
}

/// The addresses that a pod owns.
fn owned(pod: &Pod) -> Box<[IpAddr]> {
    let ended = match pod.status.phase {
        Phase::Succeeded | Phase::Failed => true,
        Phase::Lives => false,
    };
    if ended || pod.spec.host_network {
        return Box::default();
    }
    let stated = pod.status.pod_ips.iter().map(|one| one.ip).chain([pod.status.pod_ip]);
    let stated: BTreeSet<IpAddr> = stated.flatten().collect();
    if stated.is_empty() {
        addresses(pod.metadata.annotations.pod_ips.iter().flat_map(|text| text.split(',')))
    } else {
        stated.into_iter().collect()
    }
}

impl Watched for Namespace {
    type State = Labels;

    fn store(view: &mut View) -> &mut Store<Labels> {
        &mut view.namespaces
    }

    fn replace(
        view: &mut View,
        key: Key,
        version: Version,
        object: Option<Self>,
        changes: &mut Vec<Change>,
    ) {
        let known = view.namespaces.get(&key).cloned();
        match object {
            Some(object) => {
                let labels = view.labels(&object.metadata.labels);
                if known.as_ref() != Some(&labels) {
                    changes.push(view.scope.namespace(&key.1, &labels));
                }
                view.namespaces.put(key, version, labels);
            }
            None => {
                if known.is_some() {
                    changes.push(view.scope.namespace_gone(&key.1));
                }
                view.namespaces.remove(&key, version);
            }
        }
    }
}

impl Watched for Node {
    type State = NodeState;

    fn store(view: &mut View) -> &mut Store<NodeState> {
        &mut view.nodes
    }

    fn replace(
        view: &mut View,
        key: Key,
        version: Version,
        object: Option<Self>,
        changes: &mut Vec<Change>,
    ) {
        let state = object.map(|object| {
            let seen = object
                .status
                .addresses
                .iter()
                .filter(|address| matches!(address.kind.as_str(), "InternalIP" | "ExternalIP"));
            let labels = view.labels(&object.metadata.labels);
            let mut label = |key| {
                let value = object.metadata.labels.get(key);
                view.some_text(value.unwrap_or_default())
            };
            NodeState {
                addresses: addresses(seen.map(|address| address.address.as_str())),
                place: Place { region: label(REGION_LABEL), zone: label(ZONE_LABEL) },
                labels,
            }
        });
        let place =
            |state: Option<&NodeState>| state.map(|state| state.place.clone()).unwrap_or_default();
        // Nodes change every few seconds, where they stand hardly ever.
        let moved = place(view.nodes.get(&key)) != place(state.as_ref());
        let pods: Vec<Key> = if moved {
            view.on_node.get(&key.1).into_iter().flatten().cloned().collect()
        } else {
            Vec::new()
        };
        let mut before = view.picture(&pods, &[]);
        before.push(view.node(&key).map(Arc::new));
        match state {
            Some(state) => view.nodes.put(key.clone(), version, state),
            None => view.nodes.remove(&key, version),
        }
        view.look_around(&pods);
        let mut after = view.picture(&pods, &[]);
        after.push(view.node(&key).map(Arc::new));
        view.compare(before, after, changes);
    }
}

impl Watched for Pod {
    type State = PodState;

    fn store(view: &mut View) -> &mut Store<PodState> {
        &mut view.pods
    }

    fn replace(
        view: &mut View,
        key: Key,
        version: Version,
        object: Option<Self>,
        changes: &mut Vec<Change>,
    ) {
        let before = vec![view.pod(&key)];
        let node = |view: &View| view.pods.get(&key).and_then(|pod| pod.node.clone());
        let left = node(view);
        match object {
            Some(object) => {
                let state = PodState::new(&key, &object, view);
                view.pods.put(key.clone(), version, state);
            }
            None => view.pods.remove(&key, version),
        }
        let entered = node(view);
        if left != entered {
            if let Some(pods) = left.as_ref().and_then(|node| view.on_node.get_mut(node)) {
                pods.remove(&key);
                if pods.is_empty() {
                    left.as_ref().and_then(|node| view.on_node.remove(node));
                }
            }
            if let Some(node) = entered {
                view.on_node.entry(node).or_default().insert(key.clone());
            }
        }
        let after = vec![view.pod(&key)];
        view.compare(before, after, changes);
    }
}

impl PodState {
    fn new(key: &Key, pod: &Pod, view: &mut View) -> Self {
        let uid = Uid::new(&pod.metadata.uid);
        let addresses = owned(pod);
        if addresses.is_empty() {
            return Self { uid, node: None, endpoint: None };
        }
        let node = view.some_text(&pod.spec.node_name);
        let (services, place) = view.around(key, &uid, node.as_ref());
        let facts = PodFacts {
            namespace: &key.0,
            name: &key.1,
            addresses: &addresses,
            labels: view.labels(&pod.metadata.labels),
            service_account: view.some_text(&pod.spec.service_account_name),
            workload: workload(&pod.metadata, &mut view.pool),
            services,
            place,
        };
        Self { uid, node, endpoint: Some(Arc::new(view.scope.pod(facts))) }
    }
}

impl Watched for Service {
    type State = ServiceState;

    fn store(view: &mut View) -> &mut Store<ServiceState> {
        &mut view.services
    }

    fn replace(
        view: &mut View,
        key: Key,
        version: Version,
        object: Option<Self>,
        changes: &mut Vec<Change>,
    ) {
        let before = view.picture(&[], slice::from_ref(&key));
        match object {
            Some(object) => {
                let ingress = object.status.load_balancer.ingress.iter().map(|one| one.ip.as_str());
                let external = object.spec.external_ips.iter().map(String::as_str);
                let state = ServiceState {
                    addresses: addresses(ingress.chain(external)),
                    labels: view.labels(&object.metadata.labels),
                    headless: object.spec.cluster_ip == "None",
                };
                view.services.put(key.clone(), version, state);
            }
            None => view.services.remove(&key, version),
        }
        let after = view.picture(&[], slice::from_ref(&key));
        view.compare(before, after, changes);
    }
}

impl Watched for EndpointSlice {
    type State = SliceState;

    fn store(view: &mut View) -> &mut Store<SliceState> {
        &mut view.slices
    }

    fn replace(
        view: &mut View,
        key: Key,
        version: Version,
        object: Option<Self>,
        changes: &mut Vec<Change>,
    ) {
        let empty = SliceState::default();
        let old = view.slices.get(&key).unwrap_or(&empty);
        let old_names = old.names();
        let old_service = old.service.clone();
        let state = object.map(|object| SliceState::new(&object, view));
        let new = state.as_ref().unwrap_or(&empty);
        let new_names = new.names();
        let in_namespace = |name: &Text| (Text::clone(&key.0), Text::clone(name));
        let services: BTreeSet<Key> =
            [&old_service, &new.service].into_iter().flatten().map(in_namespace).collect();
        let services: Vec<Key> = services.into_iter().collect();
        // A slice names a hundred pods, and mostly one of them has changed.
        let pods: BTreeSet<Key> =
            old_names.symmetric_difference(&new_names).map(|(pod, _)| in_namespace(pod)).collect();
        let pods: Vec<Key> = pods.into_iter().collect();

        let before = view.picture(&pods, &services);
        for (pod, reference) in old_names.difference(&new_names) {
            view.unname(&in_namespace(pod), reference);
        }
        for (pod, reference) in new_names.difference(&old_names) {
            let names = view.behind.entry(in_namespace(pod)).or_default();
            *names.entry(reference.clone()).or_default() += 1;
        }
        if let Some(service) = old_service.as_ref().map(in_namespace)
            && let Some(slices) = view.slices_of.get_mut(&service)
        {
            slices.remove(&key.1);
            if slices.is_empty() {
                view.slices_of.remove(&service);
            }
        }
        if let Some(service) = new.service.as_ref().map(in_namespace) {
            view.slices_of.entry(service).or_default().insert(Text::clone(&key.1));
        }
        match state {
            Some(state) => view.slices.put(key.clone(), version, state),
            None => view.slices.remove(&key, version),
        }
        view.look_around(&pods);
        let after = view.picture(&pods, &services);
        view.compare(before, after, changes);
    }
}

impl View {
    fn unname(&mut self, pod: &Key, reference: &Reference) {
        let Some(names) = self.behind.get_mut(pod) else { return };
        if let Some(count) = names.get_mut(reference) {
            *count -= 1;
            if *count == 0 {
                names.remove(reference);
            }
        }
        if names.is_empty() {
            self.behind.remove(pod);
        }
    }
}

impl SliceState {
    fn new(slice: &EndpointSlice, view: &mut View) -> Self {
        let service = slice.metadata.labels.get(SERVICE_LABEL);
        let mut state =
            Self { service: view.some_text(service.unwrap_or_default()), ..Self::default() };
        for endpoint in &slice.endpoints {
            match endpoint.target_ref.as_ref().filter(|target| target.kind == "Pod") {
                Some(pod) => {
                    state.pods.insert((pod.name.as_str().into(), Uid::new(&pod.uid)));
                }
                None if serves(endpoint) => {
                    state.others.extend(addresses(endpoint.addresses.iter().map(String::as_str)));
                }
                None => {}
            }
        }
        state
    }

    /// Which pods it names, and as what.
    fn names(&self) -> BTreeSet<(Text, Reference)> {
        let names = self.service.iter().flat_map(|service| {
            self.pods
                .iter()
                .map(move |(pod, uid)| (Text::clone(pod), (Text::clone(service), uid.clone())))
        });
        names.collect()
    }
}

/// Whether an endpoint may be sent to; one that says nothing may.
fn serves(endpoint: &SliceEndpoint) -> bool {
    let conditions = &endpoint.conditions;
    conditions.serving.or(conditions.ready).unwrap_or(true)
}

#[cfg(any(test, feature = "fuzz"))]
impl View {
    /// How much the indexes know: nothing of what is gone stays in them.
    pub(crate) fn index_sizes(&self) -> [usize; 3] {
        [self.on_node.len(), self.behind.len(), self.slices_of.len()]
    }
}

#[cfg(test)]
mod tests;
