//! The view against a computation from scratch, and against the table of who owns an address.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};
use smartgroups::{DomainId, EndpointKind};

use super::*;
use crate::kubernetes::object::Event;
use crate::kubernetes::{ClusterName, Kind};

fn scope() -> Scope {
    Scope { cluster: ClusterName::new("prod").unwrap(), pods: DomainId(7), nodes: DomainId::FABRIC }
}

/// What a consumer knows who applies every change.
#[derive(Debug, Default, PartialEq)]
struct Known {
    endpoints: BTreeMap<String, Arc<Endpoint>>,
    namespaces: BTreeMap<String, Labels>,
}

impl Known {
    /// Applies changes, each of which must be one.
    fn apply(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Endpoint(endpoint) => {
                    let before =
                        self.endpoints.insert(endpoint.name.to_string(), Arc::clone(&endpoint));
                    assert_ne!(before, Some(endpoint), "no change");
                }
                Change::Gone(name) => {
                    assert!(self.endpoints.remove(&*name).is_some(), "{name} was not there");
                }
                Change::Namespace(id, labels) => {
                    assert_eq!(id.cluster.as_deref(), Some("prod"));
                    let before = self.namespaces.insert(id.name.to_string(), labels.clone());
                    assert_ne!(before, Some(labels), "no change");
                }
                Change::NamespaceGone(id) => {
                    assert!(self.namespaces.remove(&*id.name).is_some(), "{id:?} was not there");
                }
            }
        }
    }
}

/// A cluster that says what it is told to say.
struct Teller {
    view: View,
    known: Known,
}

impl Teller {
    fn new() -> Self {
        Self { view: View::new(scope()), known: Known::default() }
    }

    fn tell(&mut self, news: News) -> Vec<Change> {
        let mut changes = Vec::new();
        self.view.update(news, &mut changes);
        self.known.apply(changes.clone());
        assert_eq!(self.view.endpoints(), self.known.endpoints.len());
        changes
    }

    fn changed<T: Object>(&mut self, object: Value) -> Vec<Change> {
        self.tell(T::news(Update::Changed(vec![event(object, false)])))
    }

    fn deleted<T: Object>(&mut self, object: Value) -> Vec<Change> {
        self.tell(T::news(Update::Changed(vec![event(object, true)])))
    }

    fn listed<T: Object>(&mut self, objects: Vec<Value>) -> Vec<Change> {
        let objects = objects.into_iter().map(|one| serde_json::from_value(one).unwrap()).collect();
        self.tell(T::news(Update::Listed(objects)))
    }

    fn addresses(&self, name: &str) -> Option<Vec<String>> {
        let endpoint = self.known.endpoints.get(name)?;
        Some(endpoint.addresses.iter().map(|one| one.addr().to_string()).collect())
    }
}

fn event<T: Object>(object: Value, deleted: bool) -> Event<T> {
    Event { object: serde_json::from_value(object).unwrap(), deleted }
}

fn pod(change: Value) -> Value {
    let mut pod = json!({
        "metadata": {"name": "web-0", "namespace": "shop", "uid": "u1"},
        "spec": {"nodeName": "n1"},
        "status": {"phase": "Running", "podIPs": [{"ip": "100.64.0.1"}]},
    });
    merge(&mut pod, change);
    pod
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

#[test]
fn a_pod_owns_its_address_from_the_moment_it_has_one_until_it_ends() {
    let both = json!([{"ip": "100.64.0.1"}, {"ip": "fd00::1"}]);
    let annotated = json!({"annotations": {"vpc.amazonaws.com/pod-ips": "100.64.0.9, fd00::9"}});
    for (what, change, expected) in [
        ("running", json!({}), Some(vec!["100.64.0.1"])),
        (
            "of both families",
            json!({"status": {"podIPs": both}}),
            Some(vec!["100.64.0.1", "fd00::1"]),
        ),
        ("init containers run", json!({"status": {"phase": "Pending"}}), Some(vec!["100.64.0.1"])),
        ("has no address", json!({"status": {"phase": "Pending", "podIPs": null}}), None),
        ("succeeded", json!({"status": {"phase": "Succeeded"}}), None),
        ("failed", json!({"status": {"phase": "Failed"}}), None),
        ("its node is lost", json!({"status": {"phase": "Unknown"}}), Some(vec!["100.64.0.1"])),
        (
            "is being deleted",
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
            Some(vec!["100.64.0.1"]),
        ),
        ("on its host's network", json!({"spec": {"hostNetwork": true}}), None),
        (
            "annotated before its status is written",
            json!({"metadata": annotated, "status": {"phase": "Pending", "podIPs": null}}),
            Some(vec!["100.64.0.9", "fd00::9"]),
        ),
        ("annotated and stated", json!({"metadata": annotated}), Some(vec!["100.64.0.1"])),
        (
            "annotated and failed",
            json!({"metadata": annotated, "status": {"phase": "Failed", "podIPs": null}}),
            None,
        ),
        (
            "by the field of before there were two",
            json!({"status": {"podIPs": null, "podIP": "100.64.0.5"}}),
            Some(vec!["100.64.0.5"]),
        ),
        ("no address at all", json!({"status": {"podIPs": [{"ip": "x"}]}}), None),
    ] {
        // Also as a change of a pod that had an address: what it is no more, it is no more at once.
        for before in [None, Some(pod(json!({})))] {
            let mut teller = Teller::new();
            if let Some(before) = before {
                teller.changed::<Pod>(before);
            }
            teller.changed::<Pod>(pod(change.clone()));
            let expected =
                expected.clone().map(|list| list.into_iter().map(String::from).collect());
            assert_eq!(teller.addresses("prod/shop/web-0"), expected, "{what}");
        }
    }
}

#[test]
fn a_pod_carries_what_is_known_of_it_and_of_its_node() {
    let mut teller = Teller::new();
    teller.changed::<Pod>(pod(json!({
        "metadata": {"labels": {"app": "web", "pod-template-hash": "7f"}, "ownerReferences": [
            {"kind": "ReplicaSet", "name": "web-7f", "controller": true},
        ]},
        "spec": {"serviceAccountName": "web-sa"},
    })));
    let place =
        json!({"topology.kubernetes.io/region": "eu", "topology.kubernetes.io/zone": "eu-1"});
    let node = json!({"metadata": {"name": "n1", "labels": place}, "status": {"addresses": [
        {"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": "10.0.0.1"},
        {"type": "ExternalIP", "address": "198.51.100.1"},
    ]}});
    let changes = teller.changed::<Node>(node.clone());
    assert_eq!(changes.len(), 2, "the pod stands where its node does: {changes:?}");
    let pod = &teller.known.endpoints["prod/shop/web-0"];
    assert_eq!((pod.kind, pod.domain), (EndpointKind::Pod, DomainId(7)));
    assert_eq!(pod.pod_name(), Some("web-0"));
    for (fact, expected) in [
        (&pod.cluster, "prod"),
        (&pod.namespace, "shop"),
        (&pod.service_account, "web-sa"),
        (&pod.region, "eu"),
        (&pod.zone, "eu-1"),
    ] {
        assert_eq!(fact.as_deref(), Some(expected));
    }
    assert_eq!(pod.labels.get("app"), Some("web"));
    assert_eq!(pod.workload.as_ref().unwrap().to_string(), "Deployment/web");
    let known = &teller.known.endpoints["node:prod/n1"];
    assert_eq!((known.kind, known.domain), (EndpointKind::Node, DomainId::FABRIC));
    assert_eq!(known.zone.as_deref(), Some("eu-1"));
    let both = vec!["10.0.0.1".to_owned(), "198.51.100.1".to_owned()];
    assert_eq!(teller.addresses("node:prod/n1"), Some(both));

    // A node is heard of every few seconds; what says nothing new is no change.
    let mut later = node;
    merge(&mut later, json!({"metadata": {"resourceVersion": "5"}, "status": {"conditions": []}}));
    assert_eq!(teller.changed::<Node>(later), []);
}

#[test]
fn of_a_namespace_its_labels_are_told_and_nothing_of_its_pods() {
    let mut teller = Teller::new();
    teller.changed::<Pod>(pod(json!({})));
    let shop = |env: &str, version: &str| json!({"metadata": {"name": "shop", "labels": {"env": env}, "resourceVersion": version}});
    for (env, version, told) in [("test", "1", 1), ("test", "2", 0), ("prod", "3", 1)] {
        assert_eq!(teller.changed::<Namespace>(shop(env, version)).len(), told, "{env} {version}");
        assert_eq!(teller.known.namespaces["shop"].get("env"), Some(env));
    }
    teller.deleted::<Namespace>(shop("prod", "4"));
    assert!(teller.known.namespaces.is_empty() && teller.known.endpoints.len() == 1);
}

#[test]
fn a_pod_is_behind_a_service_while_any_slice_names_it_as_what_it_is() {
    let mut teller = Teller::new();
    teller.changed::<Pod>(pod(json!({})));
    let slice = |name: &str, service: &str, uid: &str, ready: bool| {
        json!({"metadata": {"name": name, "namespace": "shop", "labels": {SERVICE_LABEL: service}},
            "endpoints": [{"addresses": ["100.64.0.1"], "conditions": {"ready": ready},
                "targetRef": {"kind": "Pod", "name": "web-0", "uid": uid}}]})
    };
    let services = |teller: &Teller| teller.known.endpoints["prod/shop/web-0"].services.join(" ");
    assert_eq!(services(&teller), "");
    teller.changed::<EndpointSlice>(slice("web-a", "web", "u0", true));
    assert_eq!(services(&teller), "", "the pod that had this name before");
    teller.changed::<EndpointSlice>(slice("web-a", "web", "u1", false));
    assert_eq!(services(&teller), "web", "ready or not");
    assert_eq!(teller.changed::<EndpointSlice>(slice("web-b", "web", "u1", true)), []);
    teller.changed::<EndpointSlice>(slice("all", "all", "u1", true));
    assert_eq!(services(&teller), "all web", "sorted");
    teller.deleted::<EndpointSlice>(slice("all", "all", "u1", true));
    assert_eq!(teller.deleted::<EndpointSlice>(slice("web-a", "web", "u1", true)), []);
    assert_eq!(services(&teller), "web", "the other slice names it still");
    teller.deleted::<EndpointSlice>(slice("web-b", "web", "u1", true));
    assert_eq!(services(&teller), "");
    teller.deleted::<Pod>(pod(json!({})));
    assert_eq!(teller.view.index_sizes(), [0; 3], "nothing of it stays");
}

#[test]
fn a_service_has_the_addresses_that_are_seen_outside() {
    let headless = json!({"spec": {"clusterIP": "None"}});
    for (what, change, expected) in [
        ("inside only", json!({"spec": {"clusterIP": "10.96.0.1"}}), None),
        (
            "of a load balancer, and stated",
            json!({"spec": {"externalIPs": ["192.0.2.1", "192.0.2.1"]},
                "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.9"}, {"hostname": "lb"}]}}}),
            Some(vec!["192.0.2.1", "198.51.100.9"]),
        ),
        ("headless", headless, Some(vec!["10.9.9.1", "10.9.9.2"])),
    ] {
        let mut teller = Teller::new();
        let mut service = json!({"metadata": {"name": "db", "namespace": "shop"}});
        merge(&mut service, change);
        teller.changed::<Service>(service);
        teller.changed::<EndpointSlice>(json!({
            "metadata": {"name": "db-a", "namespace": "shop", "labels": {SERVICE_LABEL: "db"}},
            "endpoints": [
                {"addresses": ["10.9.9.1"]},
                {"addresses": ["10.9.9.2"], "conditions": {"ready": false, "serving": true}},
                {"addresses": ["10.9.9.3"], "conditions": {"ready": false}},
                {"addresses": ["100.64.0.1"], "targetRef": {"kind": "Pod", "name": "p", "uid": "u"}},
            ],
        }));
        let expected = expected.map(|list| list.into_iter().map(String::from).collect());
        assert_eq!(teller.addresses("service:prod/shop/db"), expected, "{what}");
    }
}

#[test]
fn a_lagging_server_brings_nothing_back() {
    let mut teller = Teller::new();
    let at = |version: &str, app: &str| {
        pod(json!({"metadata": {"resourceVersion": version, "labels": {"app": app}}}))
    };
    teller.changed::<Pod>(at("10", "new"));
    assert_eq!(teller.changed::<Pod>(at("9", "old")), []);
    teller.deleted::<Pod>(at("12", "new"));
    assert_eq!(teller.changed::<Pod>(at("11", "old")), []);
    assert_eq!(teller.view.passed_over(Kind::Pod), 2);
    assert_eq!(teller.changed::<Pod>(at("13", "next")).len(), 1, "made anew");
}

#[test]
fn a_list_is_a_difference_in_which_what_goes_goes_first() {
    let mut teller = Teller::new();
    let named = |name: &str, version: &str, ip: &str| {
        pod(json!({"metadata": {"name": name, "resourceVersion": version},
            "status": {"podIPs": [{"ip": ip}]}}))
    };
    let first = vec![named("a", "1", "100.64.0.1"), named("b", "2", "100.64.0.2")];
    assert_eq!(teller.listed::<Pod>(first.clone()).len(), 2);
    assert_eq!(teller.listed::<Pod>(first), [], "nothing changed");
    let changes =
        teller.listed::<Pod>(vec![named("b", "2", "100.64.0.2"), named("c", "3", "100.64.0.1")]);
    let [Change::Gone(name), Change::Endpoint(taken)] = &changes[..] else {
        panic!("the address is free before it is given again: {changes:?}");
    };
    assert_eq!((&**name, &*taken.name), ("prod/shop/a", "prod/shop/c"));
    assert_eq!(teller.listed::<Pod>(vec![]).len(), 2);
    assert_eq!(teller.view.index_sizes(), [0; 3]);
}

#[test]
fn names_of_pods_services_and_nodes_never_meet() {
    let mut teller = Teller::new();
    for name in ["node", "service", "shop"] {
        teller.changed::<Pod>(pod(json!({"metadata": {"name": "web", "namespace": name}})));
        teller.changed::<Service>(json!({"metadata": {"name": "web", "namespace": name},
            "spec": {"externalIPs": ["192.0.2.1"]}}));
    }
    teller.changed::<Node>(json!({"metadata": {"name": "web"},
        "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}}));
    assert_eq!(teller.known.endpoints.len(), 7);
}

/// The slow, obvious twin: what the objects make, asked one by one.
fn from_scratch(objects: &BTreeMap<(Kind, String, String), Value>) -> Known {
    let of = |kind: Kind| {
        objects
            .iter()
            .filter(move |((of, ..), _)| *of == kind)
            .map(|((_, ns, name), object)| (ns, name, object))
    };
    let labels = |object: &Value| -> Labels {
        let labels: BTreeMap<String, String> =
            serde_json::from_value(object["metadata"]["labels"].clone()).unwrap_or_default();
        labels.into_iter().collect()
    };
    let namespaces: BTreeMap<String, Labels> =
        of(Kind::Namespace).map(|(_, name, object)| (name.clone(), labels(object))).collect();
    let text = |value: &Value| value.as_str().map(Text::from);
    let zone = |object: &Value| labels(object).get(ZONE_LABEL).map(Text::from);
    let host = |ip: &Value| -> ipnet::IpNet {
        ipnet::IpNet::from(ip.as_str().unwrap().parse::<IpAddr>().unwrap())
    };
    let mut endpoints = Vec::new();
    for (_, name, node) in of(Kind::Node) {
        let ip = &node["status"]["addresses"][0]["address"];
        endpoints.push(Endpoint {
            addresses: [host(ip)].into(),
            cluster: Some("prod".into()),
            zone: zone(node),
            labels: labels(node),
            ..Endpoint::new(format!("node:prod/{name}"), EndpointKind::Node, DomainId::FABRIC)
        });
    }
    for (ns, name, service) in of(Kind::Service) {
        let Some(ip) = service["spec"]["externalIPs"].get(0) else { continue };
        endpoints.push(Endpoint {
            addresses: [host(ip)].into(),
            cluster: Some("prod".into()),
            namespace: Some(ns.as_str().into()),
            services: [name.as_str().into()].into(),
            labels: labels(service),
            ..Endpoint::new(
                format!("service:prod/{ns}/{name}"),
                EndpointKind::Service,
                DomainId::FABRIC,
            )
        });
    }
    for (ns, name, pod) in of(Kind::Pod) {
        let ended = pod["status"]["phase"] == "Succeeded";
        let on_host = pod["spec"]["hostNetwork"] == true;
        let Some(ip) = pod["status"]["podIPs"].get(0) else { continue };
        if ended || on_host {
            continue;
        }
        let behind = of(Kind::EndpointSlice).filter(|(of_ns, _, slice)| {
            *of_ns == ns
                && slice["endpoints"].as_array().unwrap().iter().any(|one| {
                    one["targetRef"]["name"] == **name
                        && one["targetRef"]["uid"] == pod["metadata"]["uid"]
                })
        });
        let services: BTreeSet<Text> = behind
            .filter_map(|(.., slice)| labels(slice).get(SERVICE_LABEL).map(Text::from))
            .collect();
        let node = pod["spec"]["nodeName"].as_str().unwrap();
        let node = objects.get(&(Kind::Node, String::new(), node.to_owned()));
        endpoints.push(Endpoint {
            addresses: [host(&ip["ip"])].into(),
            cluster: Some("prod".into()),
            namespace: Some(ns.as_str().into()),
            services: services.into_iter().collect(),
            service_account: text(&pod["spec"]["serviceAccountName"]),
            zone: node.and_then(zone),
            labels: labels(pod),
            ..Endpoint::new(format!("prod/{ns}/{name}"), EndpointKind::Pod, DomainId(7))
        });
    }
    let endpoints =
        endpoints.into_iter().map(|one| (one.name.to_string(), Arc::new(one))).collect();
    Known { endpoints, namespaces }
}

/// One thing that happens in the cluster.
#[derive(Clone, Debug)]
enum Act {
    Put { kind: Kind, namespace: u8, name: u8, look: u8 },
    Delete { kind: Kind, namespace: u8, name: u8 },
}

fn act() -> impl Strategy<Value = Act> {
    let kind = prop::sample::select(Kind::ALL.to_vec());
    (kind, 0..2_u8, 0..3_u8, 0..12_u8, prop::bool::weighted(0.75)).prop_map(
        |(kind, namespace, name, look, put)| {
            if put {
                Act::Put { kind, namespace, name, look }
            } else {
                Act::Delete { kind, namespace, name }
            }
        },
    )
}

/// An object that looks one way or another; few ways, so that what belongs together is found often.
fn object(kind: Kind, namespace: &str, name: &str, look: u8, version: usize, uid: usize) -> Value {
    let mut object = json!({"metadata": {"name": name, "namespace": namespace,
        "resourceVersion": version.to_string(), "uid": format!("u{uid}"),
        "labels": {"look": (look % 3).to_string()}}});
    let more = match kind {
        Kind::Namespace => json!({}),
        Kind::Node => json!({
            "metadata": {"labels": {ZONE_LABEL: format!("z{}", look % 2)}},
            "status": {"addresses": [{"type": "InternalIP", "address": format!("10.0.0.{look}")}]},
        }),
        Kind::Pod => {
            let ips =
                if look % 4 == 3 { json!([]) } else { json!([{"ip": format!("100.64.0.{look}")}]) };
            json!({
                "spec": {"nodeName": format!("o{}", look % 3), "hostNetwork": look % 5 == 4,
                    "serviceAccountName": "sa"},
                "status": {"phase": if look % 7 == 6 { "Succeeded" } else { "Running" }, "podIPs": ips},
            })
        }
        Kind::Service => {
            let ips =
                if look.is_multiple_of(2) { json!([format!("192.0.2.{look}")]) } else { json!([]) };
            json!({"spec": {"externalIPs": ips}})
        }
        Kind::EndpointSlice => {
            let target = |pod: u8, uid: usize| {
                json!({"addresses": ["100.64.0.1"],
                    "targetRef": {"kind": "Pod", "name": format!("o{pod}"), "uid": format!("u{uid}")}})
            };
            // Of the uids that pods of this name have in turn, some.
            let uid = usize::from(look / 3 % 2);
            json!({
                "metadata": {"labels": {SERVICE_LABEL: format!("s{}", look % 2)}},
                "endpoints": [target(look % 3, uid), target((look + 1) % 3, 0), target(look % 3, uid)],
            })
        }
    };
    merge(&mut object, more);
    object
}

/// How one kind is told of: what happened to it, and how far the view has heard.
struct Course {
    /// The object and whether it went, in order.
    history: Vec<(Value, bool)>,
    heard: usize,
}

fn news(kind: Kind, events: Vec<(Value, bool)>) -> News {
    fn of<T: Object>(events: Vec<(Value, bool)>) -> News {
        T::news(Update::Changed(events.into_iter().map(|(one, gone)| event(one, gone)).collect()))
    }
    match kind {
        Kind::Namespace => of::<Namespace>(events),
        Kind::Node => of::<Node>(events),
        Kind::Pod => of::<Pod>(events),
        Kind::Service => of::<Service>(events),
        Kind::EndpointSlice => of::<EndpointSlice>(events),
    }
}

fn list(kind: Kind, objects: Vec<Value>) -> News {
    fn of<T: Object>(objects: Vec<Value>) -> News {
        T::news(Update::Listed(
            objects.into_iter().map(|one| serde_json::from_value(one).unwrap()).collect(),
        ))
    }
    match kind {
        Kind::Namespace => of::<Namespace>(objects),
        Kind::Node => of::<Node>(objects),
        Kind::Pod => of::<Pod>(objects),
        Kind::Service => of::<Service>(objects),
        Kind::EndpointSlice => of::<EndpointSlice>(objects),
    }
}

fn is_namespaced(kind: Kind) -> bool {
    match kind {
        Kind::Namespace | Kind::Node => false,
        Kind::Pod | Kind::Service | Kind::EndpointSlice => true,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Every kind is told of at its own pace, in events, in lists, and again from before.
    #[test]
    fn whatever_the_order_the_endpoints_are_those_of_a_computation_from_scratch(
        acts in prop::collection::vec(act(), 1..60),
        telling in prop::collection::vec((0..5_usize, 0..8_u8, 1..6_usize), 0..60),
    ) {
        let mut objects: BTreeMap<(Kind, String, String), Value> = BTreeMap::new();
        let mut courses: BTreeMap<Kind, Course> =
            Kind::ALL.map(|kind| (kind, Course { history: Vec::new(), heard: 0 })).into();
        let mut lives: BTreeMap<(Kind, String, String), usize> = BTreeMap::new();
        for (index, act) in acts.iter().enumerate() {
            let version = index + 1;
            let key = |kind, namespace: u8, name: u8| {
                let namespace =
                    if is_namespaced(kind) { format!("o{namespace}") } else { String::new() };
                (kind, namespace, format!("o{name}"))
            };
            match *act {
                Act::Put { kind, namespace, name, look } => {
                    let key = key(kind, namespace, name);
                    let uid = lives.get(&key).copied().unwrap_or_default();
                    let object = object(kind, &key.1, &key.2, look, version, uid);
                    courses.get_mut(&kind).unwrap().history.push((object.clone(), false));
                    objects.insert(key, object);
                }
                Act::Delete { kind, namespace, name } => {
                    let key = key(kind, namespace, name);
                    if let Some(mut object) = objects.remove(&key) {
                        object["metadata"]["resourceVersion"] = json!(version.to_string());
                        courses.get_mut(&kind).unwrap().history.push((object, true));
                        *lives.entry(key).or_default() += 1;
                    }
                }
            }
        }
        let mut teller = Teller::new();
        for (kind, how, many) in telling {
            let kind = Kind::ALL[kind];
            let course = courses.get_mut(&kind).unwrap();
            let next = (course.heard + many).min(course.history.len());
            match how {
                // A list as of some later moment.
                0 => {
                    teller.tell(list(kind, present(&course.history[..next])));
                    course.heard = next;
                }
                // What a lagging server tells: of before, out of order.
                1 => {
                    let from = course.heard.saturating_sub(many);
                    let mut again = course.history[from..course.heard].to_vec();
                    again.reverse();
                    teller.tell(news(kind, again));
                }
                _ => {
                    teller.tell(news(kind, course.history[course.heard..next].to_vec()));
                    course.heard = next;
                }
            }
        }
        for (kind, course) in courses {
            teller.tell(news(kind, course.history[course.heard..].to_vec()));
        }
        prop_assert_eq!(&teller.known, &from_scratch(&objects));
        // And when all of it goes, nothing is left in any index.
        for kind in Kind::ALL.into_iter().rev() {
            teller.tell(list(kind, Vec::new()));
        }
        prop_assert_eq!(&teller.known, &Known::default());
        prop_assert_eq!(teller.view.index_sizes(), [0; 3]);
    }
}

/// What is there after some events.
fn present(history: &[(Value, bool)]) -> Vec<Value> {
    let mut objects: BTreeMap<(String, String), Value> = BTreeMap::new();
    for (object, gone) in history {
        let metadata = &object["metadata"];
        let key = (metadata["namespace"].to_string(), metadata["name"].to_string());
        if *gone {
            objects.remove(&key);
        } else {
            objects.insert(key, object.clone());
        }
    }
    objects.into_values().collect()
}
