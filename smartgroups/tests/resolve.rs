//! Resolved membership against the claims it makes, and against its slow twin.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use proptest::prelude::*;
use smartgroups::{
    Change, DomainId, Endpoint, EndpointKind, Expression, ExtraPrefix, GroupId, Inventory, Labels,
    Membership, NamespaceId, Operator, ResolveError, Resolver, Selector, SmartGroup, Text, Truth,
    groups_of, holds, members, resolve,
};

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn labelled(key: &str, value: &str) -> Selector {
    Selector { labels: BTreeMap::from([(key.into(), value.into())]), ..Selector::default() }
}

fn named(group: &str) -> Selector {
    Selector { group: Some(group.into()), ..Selector::default() }
}

fn pod(name: &str, domain: u16, address: &str, team: &str) -> Endpoint {
    Endpoint {
        addresses: [net(address)].into(),
        labels: Labels::from([("team", team)]),
        ..Endpoint::new(name, EndpointKind::Pod, DomainId(domain))
    }
}

fn ids(names: &[&str]) -> Vec<GroupId> {
    let mut ids: Vec<GroupId> = names.iter().map(|name| GroupId::of(name)).collect();
    ids.sort_unstable();
    ids
}

fn assert_groups(membership: &Membership, domain: u16, address: &str, names: &[&str]) {
    let set = membership.lookup(DomainId(domain), ip(address));
    assert_eq!(set.groups, ids(names), "{address} of domain {domain}");
}

#[test]
fn an_address_has_the_groups_of_everything_around_it() {
    let mut inventory = Inventory::new();
    inventory.insert(pod("shop/api", 0, "10.20.0.7/32", "payments"));
    inventory.insert(pod("shop/web", 1, "10.20.0.7/32", "web"));
    let groups = [
        SmartGroup::new("corp", vec![Selector::cidr(net("10.0.0.0/8"))]),
        SmartGroup::new("prod", vec![Selector::cidr(net("10.20.0.0/16"))]),
        SmartGroup::new("payments", vec![labelled("team", "payments")]),
        SmartGroup::new("web", vec![labelled("team", "web")]),
    ];
    let membership = resolve(&inventory, &groups, &[]).unwrap();
    assert_groups(&membership, 0, "10.20.0.7", &["anywhere", "corp", "prod", "payments"]);
    assert_groups(&membership, 0, "10.20.0.8", &["anywhere", "corp", "prod"]);
    assert_groups(&membership, 0, "10.21.0.0", &["anywhere", "corp"]);
    assert_groups(&membership, 0, "172.16.0.1", &["anywhere"]);
    assert_groups(&membership, 0, "11.0.0.0", &["anywhere", "public-internet"]);
    assert_groups(&membership, 0, "2606:4700::1111", &["anywhere", "public-internet"]);
    assert_groups(&membership, 1, "10.20.0.7", &["anywhere", "web"]);
    assert_groups(&membership, 1, "11.0.0.0", &["anywhere"]);
    assert_eq!(
        membership.hosts.iter().map(|(domain, host, _)| (domain.0, *host)).collect::<Vec<_>>(),
        [(0, ip("10.20.0.7")), (1, ip("10.20.0.7"))]
    );
}

#[test]
fn a_demand_for_one_of_several_values_is_met_by_each_of_them() {
    let mut inventory = Inventory::new();
    inventory.insert(pod("shop/a", 1, "100.64.0.1/32", "payments"));
    inventory.insert(pod("shop/b", 1, "100.64.0.2/32", "web"));
    inventory.insert(pod("shop/c", 1, "100.64.0.3/32", "data"));
    let one_of = |values: &[&str]| Selector {
        expressions: vec![Expression {
            key: "team".into(),
            operator: Operator::In,
            values: values.iter().map(|value| (*value).to_owned()).collect(),
        }],
        ..Selector::default()
    };
    let groups = [SmartGroup::new("some", vec![one_of(&["payments", "web"])])];
    let membership = resolve(&inventory, &groups, &[]).unwrap();
    for (address, expected) in [("100.64.0.1", true), ("100.64.0.2", true), ("100.64.0.3", false)] {
        let set = membership.lookup(DomainId(1), ip(address));
        assert_eq!(set.groups.contains(&GroupId::of("some")), expected, "{address}");
    }
}

#[test]
fn a_group_around_a_public_range_keeps_its_holes() {
    let groups = [SmartGroup::new("all-v4", vec![Selector::cidr(net("0.0.0.0/0"))])];
    let membership = resolve(&Inventory::new(), &groups, &[]).unwrap();
    assert_groups(&membership, 0, "8.8.8.8", &["anywhere", "public-internet", "all-v4"]);
    assert_groups(&membership, 0, "192.168.0.1", &["anywhere", "all-v4"]);
    assert_groups(&membership, 0, "2606:4700::1111", &["anywhere", "public-internet"]);
}

#[test]
fn a_prefix_and_an_endpoint_in_one_selector_are_both_asked_for() {
    let mut inventory = Inventory::new();
    inventory.insert(pod("a", 1, "100.64.0.1/32", "web"));
    inventory.insert(pod("b", 1, "100.65.0.1/32", "web"));
    inventory.insert(pod("c", 0, "100.64.0.1/32", "web"));
    inventory.insert(pod("wide", 1, "100.64.0.0/10", "net"));
    let within = |team: &str, prefix: &str| Selector {
        cidr: Some(net(prefix)),
        domain: Some(DomainId(1)),
        ..labelled("team", team)
    };
    let groups = [
        SmartGroup::new("near", vec![within("web", "100.64.0.0/16")]),
        SmartGroup::new("cut", vec![within("net", "100.66.0.0/16")]),
    ];
    let membership = resolve(&inventory, &groups, &[]).unwrap();
    assert_groups(&membership, 1, "100.64.0.1", &["anywhere", "near"]);
    assert_groups(&membership, 1, "100.65.0.1", &["anywhere"]); // described, but elsewhere
    assert_groups(&membership, 0, "100.64.0.1", &["anywhere"]); // another domain
    assert_groups(&membership, 1, "100.64.0.2", &["anywhere"]); // in the prefix, but nobody
    assert_groups(&membership, 1, "100.66.0.1", &["anywhere", "cut"]); // part of its prefix
    assert_groups(&membership, 1, "100.67.0.1", &["anywhere"]);
}

#[test]
fn a_site_is_whoever_has_an_address_in_its_prefixes() {
    let mut inventory = Inventory::new();
    let endpoint = |name: &str, kind, domain, addresses: &[&str]| Endpoint {
        addresses: addresses.iter().map(|prefix| net(prefix)).collect(),
        ..Endpoint::new(name, kind, DomainId(domain))
    };
    let prefixes = ["192.168.7.0/24", "10.7.0.0/16"];
    inventory.insert(endpoint("berlin", EndpointKind::Site, 0, &prefixes));
    inventory.insert(endpoint("madrid", EndpointKind::Site, 0, &["192.168.8.0/24"]));
    inventory.insert(endpoint("till", EndpointKind::Vm, 0, &["10.7.1.1/32"]));
    inventory.insert(endpoint("shop/berlin", EndpointKind::Pod, 1, &["10.7.1.1/32"]));
    let berlin = Selector { site: Some("berlin".into()), ..Selector::default() };
    let office = Selector { cidr: Some(net("192.168.7.0/25")), ..berlin.clone() };
    let groups = [SmartGroup::new("berlin", vec![berlin]), SmartGroup::new("office", vec![office])];
    let membership = resolve(&inventory, &groups, &[]).unwrap();
    for (domain, address, names) in [
        (0, "192.168.7.1", &["anywhere", "berlin", "office"][..]),
        (0, "192.168.7.128", &["anywhere", "berlin"]), // the rest of the site
        (0, "10.7.1.1", &["anywhere", "berlin"]),      // somebody with a name of its own
        (0, "192.168.8.1", &["anywhere"]),             // another site
        (1, "10.7.1.1", &["anywhere"]),                // another domain
    ] {
        assert_groups(&membership, domain, address, names);
    }
}

#[test]
fn an_address_that_two_claim_is_in_the_groups_of_both_and_in_doubt_about_the_rest() {
    let mut inventory = Inventory::new();
    let both = |name: &str, team: &str| Endpoint {
        namespace: Some("shop".into()),
        ..pod(name, 1, "100.64.0.1/32", team)
    };
    inventory.insert(both("shop/old", "payments"));
    inventory.insert(pod("alone", 1, "100.64.0.2/32", "payments"));
    let shop = Selector { namespace: Some("shop".into()), ..Selector::default() };
    let nodes = Selector { kind: Some(EndpointKind::Node), ..Selector::default() };
    let groups = [
        SmartGroup::new("shop", vec![shop]),
        SmartGroup::new("payments", vec![labelled("team", "payments")]),
        SmartGroup::new("web", vec![labelled("team", "web")]),
        SmartGroup::new("nodes", vec![nodes]),
    ];
    let doubted = |inventory: &Inventory, certain: &[&str], expected: &[&str]| {
        let membership = resolve(inventory, &groups, &[]).unwrap();
        assert_groups(&membership, 1, "100.64.0.1", certain);
        assert_eq!(membership.lookup(DomainId(1), ip("100.64.0.1")).doubted, ids(expected));
        assert_groups(&membership, 1, "100.64.0.2", &["anywhere", "payments"]);
        assert_eq!(membership.lookup(DomainId(1), ip("100.64.0.2")).doubted, []);
    };
    doubted(&inventory, &["anywhere", "shop", "payments"], &[]);
    inventory.insert(both("shop/new", "web"));
    doubted(&inventory, &["anywhere", "shop"], &["payments", "web"]);
    // The node below a pod with its address is a fact beside it, not a rival.
    let node = Endpoint::new("node", EndpointKind::Node, DomainId(1));
    inventory.insert(Endpoint { addresses: [net("100.64.0.1/32")].into(), ..node });
    doubted(&inventory, &["anywhere", "shop", "nodes"], &["payments", "web"]);
    inventory.remove("shop/old");
    doubted(&inventory, &["anywhere", "shop", "nodes", "web"], &[]);
}

#[test]
fn what_only_repeats_its_surroundings_takes_no_entry() {
    let mut inventory = Inventory::new();
    inventory.insert(pod("none", 0, "10.0.0.1/32", "none"));
    inventory.insert(pod("same", 0, "10.20.0.1/32", "corp"));
    let groups = [SmartGroup::new(
        "corp",
        vec![
            Selector::cidr(net("10.20.0.0/16")),
            Selector::cidr(net("10.20.5.0/24")),
            labelled("team", "corp"),
        ],
    )];
    let before = resolve(&Inventory::new(), &[], &[]).unwrap();
    let membership = resolve(&inventory, &groups, &[]).unwrap();
    assert_eq!(membership.hosts, []);
    assert_eq!(membership.prefixes.len(), before.prefixes.len() + 1);
    assert_groups(&membership, 0, "10.20.5.1", &["anywhere", "corp"]);
}

#[test]
fn a_set_that_no_address_has_does_not_exist() {
    // Both halves of the /31 are hosts with more groups: nobody is in `pair` alone.
    let mut inventory = Inventory::new();
    inventory.insert(pod("a", 1, "100.64.0.0/32", "a"));
    inventory.insert(pod("b", 1, "100.64.0.1/32", "a"));
    let pair = Selector { domain: Some(DomainId(1)), ..Selector::cidr(net("100.64.0.0/31")) };
    let mut groups =
        [SmartGroup::new("pair", vec![pair]), SmartGroup::new("a", vec![labelled("team", "a")])];
    let alone = |membership: &Membership| {
        membership.sets.iter().any(|set| set.groups == ids(&["anywhere", "pair"]))
    };
    assert!(!alone(&resolve(&inventory, &groups, &[]).unwrap()));
    groups[0].selectors[0].cidr = Some(net("100.64.0.0/30"));
    assert!(alone(&resolve(&inventory, &groups, &[]).unwrap()), "two addresses are left");
}

#[test]
fn a_prefix_that_becomes_full_leaves_the_tables_and_comes_back() {
    let pair = Selector { domain: Some(DomainId(1)), ..Selector::cidr(net("100.64.0.0/31")) };
    let groups =
        [SmartGroup::new("pair", vec![pair]), SmartGroup::new("a", vec![labelled("team", "a")])];
    let mut inventory = Inventory::new();
    inventory.insert(pod("a", 1, "100.64.0.0/32", "a"));
    let mut resolver = Resolver::new(inventory, &groups, &[]).unwrap();
    let at_first = resolver.membership();
    let second = || Change::Endpoint(Arc::new(pod("b", 1, "100.64.0.1/32", "a")));
    let delta = resolver.apply([second()]);
    let both = Some(at_first.index_of(DomainId(1), ip("100.64.0.0")));
    assert_eq!(delta.hosts, [(DomainId(1), ip("100.64.0.1"), both)]);
    assert_eq!(delta.prefixes, [(DomainId(1), net("100.64.0.0/31"), None)]);
    assert_eq!(delta.sets, []);
    assert!(resolver.apply([second()]).is_empty(), "nothing new");
    resolver.apply([Change::Gone("b".into())]);
    assert_eq!(resolver.membership(), at_first);
}

#[test]
fn whoever_is_heard_of_before_its_namespace_waits_in_doubt() {
    let outside = Selector {
        namespace_expressions: vec![Expression {
            key: "env".into(),
            operator: Operator::NotIn,
            values: ["prod".to_owned()].into(),
        }],
        ..Selector::default()
    };
    let groups = [SmartGroup::new("outside", vec![outside])];
    let shop = NamespaceId { cluster: None, name: "shop".into() };
    let mut inventory = Inventory::new();
    inventory.insert(Endpoint {
        namespace: Some("shop".into()),
        ..pod("shop/a", 1, "100.64.0.1/32", "a")
    });
    let mut resolver = Resolver::new(inventory, &groups, &[]).unwrap();
    let told = |resolver: &Resolver| {
        let tables = resolver.membership();
        let set = tables.lookup(DomainId(1), ip("100.64.0.1"));
        (set.groups.contains(&GroupId::of("outside")), !set.doubted.is_empty())
    };
    assert_eq!(told(&resolver), (false, true));
    for (labels, expected) in [
        (Some([("env", "prod")]), (false, false)),
        (Some([("env", "dev")]), (true, false)),
        (None, (false, true)),
    ] {
        let id = shop.clone();
        resolver.apply([match labels {
            Some(labels) => Change::Namespace(id, labels.into()),
            None => Change::NamespaceGone(id),
        }]);
        assert_eq!(told(&resolver), expected, "{labels:?}");
    }
}

#[test]
fn a_group_is_what_it_takes_without_what_it_excludes() {
    let mut inventory = Inventory::new();
    inventory.insert(pod("shop/api", 0, "10.20.0.7/32", "payments"));
    inventory.insert(pod("shop/web", 0, "10.20.0.8/32", "web"));
    let cidr = |prefix| Selector::cidr(net(prefix));
    let without = |exclude, group| SmartGroup { exclude, ..group };
    let groups = [
        // Named before it is said what it is.
        without(vec![named("lab")], SmartGroup::new("prod", vec![named("corp")])),
        without(
            vec![cidr("10.20.0.0/16")],
            SmartGroup::new("corp", vec![cidr("10.0.0.0/8"), labelled("team", "web")]),
        ),
        SmartGroup::new("lab", vec![cidr("10.9.0.0/16"), labelled("team", "payments")]),
        without(vec![named("corp")], SmartGroup::new("rest", vec![named("anywhere")])),
    ];
    let membership = resolve(&inventory, &groups, &[]).unwrap();
    for (address, names) in [
        ("10.1.0.0", &["anywhere", "corp", "prod"][..]),
        ("10.9.0.1", &["anywhere", "corp", "lab"]),
        ("10.20.0.1", &["anywhere", "rest"]),
        ("10.20.0.7", &["anywhere", "lab", "rest"]),
        ("10.20.0.8", &["anywhere", "rest"]), // excluded, whatever takes it
        ("11.0.0.1", &["anywhere", "public-internet", "rest"]),
    ] {
        assert_groups(&membership, 0, address, names);
    }
    assert_groups(&membership, 1, "10.1.0.0", &["anywhere", "rest"]);
}

#[test]
fn who_is_in_doubt_about_a_part_is_in_doubt_about_the_whole() {
    let mut inventory = Inventory::new();
    inventory.insert(pod("shop/old", 1, "100.64.0.1/32", "payments"));
    inventory.insert(pod("shop/new", 1, "100.64.0.1/32", "web"));
    let pods = Selector { kind: Some(EndpointKind::Pod), ..Selector::default() };
    let groups = [
        SmartGroup::new("payments", vec![labelled("team", "payments")]),
        SmartGroup { exclude: vec![named("payments")], ..SmartGroup::new("others", vec![pods]) },
        SmartGroup::new("all", vec![named("payments"), named("others")]),
    ];
    let membership = resolve(&inventory, &groups, &[]).unwrap();
    let set = membership.lookup(DomainId(1), ip("100.64.0.1"));
    assert_eq!(set.groups, ids(&["anywhere"]));
    assert_eq!(set.doubted, ids(&["payments", "others", "all"]));
}

#[test]
fn extra_prefixes_split_the_space_and_keep_the_groups() {
    let groups = [SmartGroup::new("corp", vec![Selector::cidr(net("10.0.0.0/8"))])];
    let extra =
        |domain, prefix, tag| ExtraPrefix { domain: DomainId(domain), prefix: net(prefix), tag };
    let extras = [extra(0, "10.1.0.0/16", 0), extra(0, "0.0.0.0/0", 1), extra(1, "10.1.0.0/16", 0)];
    let membership = resolve(&Inventory::new(), &groups, &extras).unwrap();
    for (domain, address, names, tags) in [
        (0, "10.1.2.3", &["anywhere", "corp"][..], &[0, 1][..]),
        (0, "10.2.0.0", &["anywhere", "corp"], &[1]),
        (0, "8.8.8.8", &["anywhere", "public-internet"], &[1]),
        (1, "10.1.2.3", &["anywhere"], &[0]),
        (1, "10.2.0.0", &["anywhere"], &[]),
    ] {
        assert_groups(&membership, domain, address, names);
        let set = membership.lookup(DomainId(domain), ip(address));
        assert_eq!(set.extras, tags, "{address} of domain {domain}");
    }
}

#[test]
fn groups_that_cannot_be_told_apart_are_refused_by_name() {
    let corp = SmartGroup::new("corp", vec![Selector::cidr(net("10.0.0.0/8"))]);
    let with_id = |name: &str, id| SmartGroup { id, ..SmartGroup::new(name, vec![]) };
    for (groups, expected) in [
        (vec![corp.clone(), corp.clone()], "smart group `corp` is defined twice"),
        (
            vec![corp.clone(), with_id("other", corp.id)],
            "smart groups `other` and `corp` have the same id {corp}",
        ),
        (
            vec![with_id("other", GroupId::ANYWHERE)],
            "smart groups `other` and `anywhere` have the same id {anywhere}",
        ),
        (
            vec![SmartGroup::new("anywhere", vec![])],
            "smart group `anywhere` is built in and cannot be defined",
        ),
        (vec![with_id("x", GroupId(0))], "smart group `x` has the id 0, which means none"),
        (
            vec![SmartGroup::new("x", vec![named("y")])],
            "smart group `x` names the group `y`, which does not exist",
        ),
        (
            vec![
                SmartGroup::new("a", vec![named("b")]),
                SmartGroup::new("b", vec![labelled("a", "b"), named("c")]),
                SmartGroup { exclude: vec![named("b")], ..SmartGroup::new("c", vec![]) },
            ],
            "smart group `b` is a part of itself (b -> c -> b)",
        ),
        (
            vec![SmartGroup::new("a", vec![named("a")])],
            "smart group `a` is a part of itself (a -> a)",
        ),
        (
            vec![
                corp.clone(),
                SmartGroup {
                    exclude: vec![Selector { domain: Some(DomainId(1)), ..named("corp") }],
                    ..SmartGroup::new("x", vec![named("corp")])
                },
            ],
            "selector 2 of smart group `x` names a group and more; it stands alone",
        ),
        (
            vec![SmartGroup::new("x", vec![labelled("a", "b"), Selector::default()])],
            "selector 2 of smart group `x` is empty; use `anywhere` for everything",
        ),
    ] {
        let error: ResolveError = resolve(&Inventory::new(), &groups, &[]).unwrap_err();
        let id = |name: &str| GroupId::of(name).to_string();
        let expected =
            expected.replace("{corp}", &id("corp")).replace("{anywhere}", &id("anywhere"));
        assert_eq!(error.to_string(), expected);
    }
    let empty = SmartGroup::new("empty", vec![]);
    assert!(resolve(&Inventory::new(), &[empty], &[]).is_ok(), "empty is not wrong");
}

/// Few bits, so that random prefixes nest, touch and repeat.
fn prefix() -> impl Strategy<Value = IpNet> {
    let bases = prop_oneof![
        Just(Ipv4Addr::new(10, 0, 0, 0)),
        Just(Ipv4Addr::new(9, 255, 255, 240)),
        Just(Ipv4Addr::new(192, 168, 0, 0))
    ];
    (bases, 0_u32..32, prop_oneof![4 => 27_u8..=32, 1 => 0_u8..=32]).prop_map(
        |(base, offset, length)| {
            let address = Ipv4Addr::from_bits(u32::from(base).wrapping_add(offset));
            IpNet::V4(Ipv4Net::new(address, length).unwrap())
        },
    )
}

fn word() -> impl Strategy<Value = String> {
    prop_oneof![Just("a".to_owned()), Just("b".to_owned())]
}

fn kind() -> impl Strategy<Value = EndpointKind> {
    prop_oneof![
        Just(EndpointKind::Pod),
        Just(EndpointKind::Vm),
        Just(EndpointKind::Fqdn),
        Just(EndpointKind::Site),
        Just(EndpointKind::Subnet)
    ]
}

fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    proptest::collection::btree_map(word(), word(), 0..3)
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    (
        proptest::collection::vec(prefix(), 0..4),
        kind(),
        0_u16..3,
        proptest::option::of(word()),
        proptest::option::of(word()),
        proptest::option::of(word()),
        labels(),
        0_u8..30,
    )
        .prop_map(|(addresses, kind, domain, called, namespace, region, labels, number)| {
            Endpoint {
                addresses: addresses.into(),
                given_name: called.map(Into::into),
                namespace: namespace.map(Into::into),
                region: region.map(Into::into),
                labels: labels.into_iter().collect(),
                ..Endpoint::new(name(number), kind, DomainId(domain))
            }
        })
}

/// Some are called as names in DNS are, whatever they are.
fn name(number: u8) -> Text {
    if number < 5 {
        Endpoint::name_of_fqdn(&number.to_string())
    } else {
        format!("ns/e{number}").into()
    }
}

fn expression() -> impl Strategy<Value = Expression> {
    let operators = [Operator::In, Operator::NotIn, Operator::Exists, Operator::DoesNotExist];
    let values = proptest::collection::btree_set(word(), 1..3);
    (word(), proptest::sample::select(operators.to_vec()), values).prop_map(
        |(key, operator, mut values)| {
            if !operator.has_values() {
                values.clear();
            }
            Expression { key, operator, values }
        },
    )
}

/// What is asked of a namespace: mostly nothing.
fn of_namespace() -> impl Strategy<Value = (BTreeMap<String, String>, Vec<Expression>)> {
    prop_oneof![
        3 => Just((BTreeMap::new(), Vec::new())),
        1 => (labels(), proptest::collection::vec(expression(), 0..2)),
    ]
}

/// The namespaces that are known, of the two there are.
fn namespaces() -> impl Strategy<Value = Vec<(NamespaceId, Labels)>> {
    let one = (word(), labels()).prop_map(|(name, labels)| {
        (NamespaceId { cluster: None, name: name.into() }, labels.into_iter().collect())
    });
    proptest::collection::vec(one, 0..3)
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => endpoint().prop_map(|endpoint| Change::Endpoint(Arc::new(endpoint))),
        2 => (0_u8..30).prop_map(|number| Change::Gone(name(number))),
        1 => (word(), labels()).prop_map(|(name, labels)| {
            let id = NamespaceId { cluster: None, name: name.into() };
            Change::Namespace(id, labels.into_iter().collect())
        }),
        1 => word().prop_map(|name| {
            Change::NamespaceGone(NamespaceId { cluster: None, name: name.into() })
        }),
    ]
}

/// The tables after a change, by what the change says of them.
fn amended(membership: &mut Membership, delta: smartgroups::Delta) {
    membership.sets.extend(delta.sets);
    for (domain, address, number) in delta.hosts {
        membership.hosts.retain(|(d, a, _)| (*d, *a) != (domain, address));
        membership.hosts.extend(number.map(|number| (domain, address, number)));
    }
    for (domain, prefix, number) in delta.prefixes {
        membership.prefixes.retain(|(d, p, _)| (*d, *p) != (domain, prefix));
        membership.prefixes.extend(number.map(|number| (domain, prefix, number)));
    }
    membership.hosts.sort_unstable();
    membership.prefixes.sort_unstable();
}

/// Tables without the numbers of their sets, which depend on what was before.
fn written_out(membership: &Membership) -> impl PartialEq + std::fmt::Debug {
    let set = |number: u32| membership.sets[number as usize].clone();
    let hosts: Vec<_> = membership.hosts.iter().map(|(d, a, n)| (*d, *a, set(*n))).collect();
    let prefixes: Vec<_> = membership.prefixes.iter().map(|(d, p, n)| (*d, *p, set(*n))).collect();
    (hosts, prefixes)
}

/// The names of a site and in DNS that are asked for: mostly none.
fn called() -> impl Strategy<Value = (Option<String>, Option<String>)> {
    let site = (5_u8..30).prop_map(|number| name(number).to_string());
    let fqdn = (0_u8..5).prop_map(|number| number.to_string());
    let weighted = proptest::option::weighted::<BoxedStrategy<String>>;
    (weighted(0.2, site.boxed()), weighted(0.2, fqdn.boxed()))
}

fn selector() -> impl Strategy<Value = Selector> {
    let option = proptest::option::of;
    (
        proptest::option::weighted(0.3, prefix()),
        proptest::option::weighted(0.3, (0_u16..3).prop_map(DomainId)),
        proptest::option::weighted(0.3, kind()),
        proptest::option::weighted(0.1, (0_u8..30).prop_map(|n| format!("e{n}"))),
        proptest::option::weighted(0.2, word()),
        option(word()),
        proptest::option::weighted(0.2, word()),
        proptest::option::weighted(0.4, labels()),
        proptest::collection::vec(expression(), 0..3),
        of_namespace(),
        called(),
    )
        .prop_map(
            |(
                cidr,
                domain,
                kind,
                pod,
                name,
                namespace,
                region,
                labels,
                expressions,
                around,
                called,
            )| {
                let (site, fqdn) = called;
                Selector {
                    cidr,
                    domain,
                    kind,
                    pod,
                    site,
                    fqdn,
                    name,
                    namespace,
                    region,
                    labels: labels.unwrap_or_default(),
                    expressions,
                    namespace_labels: around.0,
                    namespace_expressions: around.1,
                    ..Selector::default()
                }
            },
        )
        .prop_filter("asks for something", |selector| !selector.is_empty())
}

/// Selectors, and now and then a group: one of those before, or a built-in one.
fn selectors() -> impl Strategy<Value = Vec<(Selector, Option<u8>)>> {
    proptest::collection::vec((selector(), proptest::option::weighted(0.25, 0_u8..8)), 0..3)
}

fn groups() -> impl Strategy<Value = Vec<SmartGroup>> {
    let some_exclude = prop_oneof![2 => Just(Vec::new()), 1 => selectors()];
    proptest::collection::vec((selectors(), some_exclude), 0..6).prop_map(|all| {
        let numbered = all.into_iter().enumerate();
        let group = |(n, (selectors, exclude)): (usize, (Vec<_>, Vec<_>))| {
            let lower = |(selector, part): (Selector, Option<u8>)| match part.map(usize::from) {
                Some(part) if part < n => named(&format!("g{part}")),
                Some(6) => named("anywhere"),
                Some(7) => named("public-internet"),
                _ => selector,
            };
            let [selectors, exclude] =
                [selectors, exclude].map(|all| all.into_iter().map(lower).collect());
            SmartGroup { exclude, ..SmartGroup::new(format!("g{n}"), selectors) }
        };
        numbered.map(group).collect()
    })
}

/// Both ends of every prefix that occurs and the addresses just outside of it, in every domain.
fn borders(inventory: &Inventory, groups: &[SmartGroup]) -> Vec<(DomainId, IpAddr)> {
    let selectors = groups.iter().flat_map(|group| group.selectors.iter().chain(&group.exclude));
    let stated = selectors.filter_map(|one| one.cidr);
    let owned = inventory.endpoints().flat_map(|endpoint| endpoint.addresses.clone());
    let mut addresses = Vec::new();
    for prefix in stated.chain(owned) {
        let IpNet::V4(prefix) = prefix else { continue };
        let (first, last) = (u32::from(prefix.network()), u32::from(prefix.broadcast()));
        for bits in [first.wrapping_sub(1), first, last, last.wrapping_add(1)] {
            for domain in 0..3 {
                addresses.push((DomainId(domain), IpAddr::from(Ipv4Addr::from_bits(bits))));
            }
        }
    }
    addresses
}

/// Whether the listing of `public-internet` leaves out that it does not hold an address.
fn is_special(address: IpAddr) -> bool {
    !smartgroups::is_public(DomainId::FABRIC, address)
}

proptest! {
    #[test]
    fn tables_and_selectors_agree_on_every_border(
        endpoints in proptest::collection::vec(endpoint(), 0..12),
        namespaces in namespaces(),
        groups in groups(),
    ) {
        let mut inventory = Inventory::new();
        for endpoint in endpoints {
            inventory.insert(endpoint);
        }
        for (id, labels) in namespaces {
            inventory.insert_namespace(id, labels);
        }
        let membership = resolve(&inventory, &groups, &[]).unwrap();
        let listings: Vec<_> = groups
            .iter()
            .map(|group| (group.id, members(&inventory, &groups, &group.name).unwrap()))
            .collect();
        let held: HashMap<(GroupId, DomainId), _> = groups
            .iter()
            .flat_map(|group| (0..3).map(|domain| (group.id, DomainId(domain))))
            .map(|(id, domain)| ((id, domain), membership.held_by(id, domain)))
            .collect();
        for (domain, address) in borders(&inventory, &groups) {
            let set = membership.lookup(domain, address);
            let found = &set.groups;
            prop_assert_eq!(
                found,
                &groups_of(&inventory, &groups, domain, address),
                "{} of domain {}", address, domain
            );
            let mut possible: Vec<GroupId> = groups
                .iter()
                .filter(|group| {
                    holds(&inventory, &groups, &group.name, domain, address) == Truth::Maybe
                })
                .map(|group| group.id)
                .collect();
            possible.sort_unstable();
            prop_assert_eq!(&set.doubted, &possible, "doubt: {} of {}", address, domain);
            for (id, listing) in &listings {
                let listed = |is_excluded| {
                    listing.iter().any(|member| {
                        member.domain.is_none_or(|one| one == domain)
                            && member.prefix.contains(&address)
                            && member.is_excluded == is_excluded
                    })
                };
                let known = found.contains(id) || set.doubted.contains(id);
                if let (IpAddr::V4(address), Some(held)) = (address, held.get(&(*id, domain))) {
                    let is_held = held.iter().any(|prefix| prefix.contains(&address));
                    prop_assert_eq!(is_held, known, "held: {} of {}", address, domain);
                }
                prop_assert!(!known || listed(false), "listing: {} of {}", address, domain);
                let is_out = listed(true) || is_special(address);
                prop_assert!(known || !listed(false) || is_out, "listing: {} of {}", address, domain);
            }
        }
    }

    #[test]
    fn change_by_change_the_tables_become_what_they_would_be_at_once(
        first in proptest::collection::vec(change(), 0..12),
        batches in proptest::collection::vec(proptest::collection::vec(change(), 0..4), 0..8),
        groups in groups(),
    ) {
        let extras = [
            ExtraPrefix { domain: DomainId(0), prefix: net("10.0.0.0/28"), tag: 0 },
            ExtraPrefix { domain: DomainId(1), prefix: net("10.0.0.4/30"), tag: 1 },
        ];
        let mut resolver = Resolver::new(Inventory::new(), &groups, &extras).unwrap();
        resolver.apply(first);
        let mut tables = resolver.membership();
        for batch in batches {
            let before = tables.clone();
            let delta = resolver.apply(batch);
            let said = delta.hosts.len() + delta.prefixes.len();
            amended(&mut tables, delta);
            prop_assert_eq!(&tables, &resolver.membership());
            let differing = |old: &Membership, new: &Membership| {
                old.hosts.iter().filter(|host| !new.hosts.contains(host)).count()
                    + old.prefixes.iter().filter(|prefix| !new.prefixes.contains(prefix)).count()
            };
            let most = differing(&before, &tables) + differing(&tables, &before);
            prop_assert!(said <= most, "{} said to have changed, {} did", said, most);
            let at_once = resolve(resolver.inventory(), &groups, &extras).unwrap();
            prop_assert_eq!(written_out(&tables), written_out(&at_once));
        }
    }

    #[test]
    fn the_inventory_names_the_most_specific_endpoint(
        endpoints in proptest::collection::vec(endpoint(), 0..12),
        gone in proptest::collection::vec(0_u8..30, 0..6),
    ) {
        let mut inventory = Inventory::new();
        for endpoint in endpoints {
            inventory.insert(endpoint);
        }
        for number in gone {
            inventory.remove(&format!("ns/e{number}"));
        }
        prop_assert_eq!(inventory.contested(), inventory.conflicts().len());
        for (domain, address) in borders(&inventory, &[]) {
            let expected = inventory
                .endpoints()
                .filter(|endpoint| endpoint.domain == domain)
                .flat_map(|endpoint| endpoint.addresses.iter().map(move |prefix| (prefix, endpoint)))
                .filter(|(prefix, _)| prefix.contains(&address))
                .max_by_key(|(prefix, endpoint)| {
                    let rank = (endpoint.kind, &endpoint.name);
                    (prefix.prefix_len(), std::cmp::Reverse(rank))
                })
                .map(|(_, endpoint)| endpoint);
            prop_assert_eq!(inventory.lookup(domain, address), expected);
        }
    }
}
