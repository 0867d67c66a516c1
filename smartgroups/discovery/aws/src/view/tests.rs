use proptest::prelude::*;
use std::sync::Arc;

use smartgroups::{Inventory, Subject};

use super::*;
use crate::facts::{Fetched, Instance, Subnet, Vpc};
use crate::settings::AccountName;

const REGION: &str = "eu-central-1";
const HIDDEN: DomainId = DomainId(7);

fn scope() -> Scope {
    let account = AccountName::new("prod").unwrap();
    Scope { account, domains: [("vpc-hidden".into(), HIDDEN)].into() }
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// Private addresses, of which the first is primary, each maybe with `=` and a public one.
fn addresses(texts: &[&str]) -> Vec<Address> {
    let address = |(n, text): (usize, &&str)| {
        let (private, public) = text.split_once('=').unwrap_or((text, ""));
        let private: std::net::IpAddr = private.parse().unwrap();
        let is_primary = n == 0 || private.is_ipv6();
        Address { private, is_primary, public: public.parse().ok() }
    };
    texts.iter().enumerate().map(address).collect()
}

fn interface(id: &str, instance: &str, texts: &[&str]) -> Interface {
    Interface {
        id: id.into(),
        vpc: Some("vpc-1".into()),
        kind: "interface".into(),
        instance: Some(instance.into()).filter(|_| !instance.is_empty()),
        addresses: addresses(texts),
        ..Interface::default()
    }
}

fn instance(id: &str, tags: &[(&str, &str)]) -> Instance {
    Instance {
        id: id.into(),
        owner: Some("111122223333".into()),
        vpc: Some("vpc-1".into()),
        zone: Some("eu-central-1a".into()),
        tags: tags.iter().copied().collect(),
    }
}

fn facts(interfaces: Vec<Interface>, instances: Vec<Instance>) -> Facts {
    let mut facts = Facts::default();
    facts.take(Fetched::Interfaces(interfaces));
    facts.take(Fetched::Instances(instances));
    facts
}

/// Names and addresses of what facts make, each as one line.
fn made(facts: &Facts) -> Vec<String> {
    let line = |one: Arc<Endpoint>| {
        let addresses: Vec<String> = one.addresses.iter().map(ToString::to_string).collect();
        let name = one.name.strip_prefix("aws:prod/eu-central-1/").unwrap();
        format!("{} {name} {} {}", one.kind, one.domain, addresses.join(" "))
    };
    endpoints(&scope(), &REGION.into(), facts).into_values().map(line).collect()
}

#[test]
fn a_machine_has_all_addresses_of_its_interfaces() {
    let all = facts(
        vec![
            interface("eni-a", "i-1", &["10.0.0.1=192.0.2.1", "10.0.0.2=192.0.2.2", "2001:db8::1"]),
            interface("eni-b", "i-1", &["10.0.1.1"]),
            interface("eni-c", "", &["10.0.2.1=192.0.2.3", "10.0.2.2"]),
            interface("eni-d", "i-unknown", &["10.0.3.1", "10.0.3.2"]),
        ],
        vec![instance("i-1", &[]), instance("i-2", &[])],
    );
    assert_eq!(
        made(&all),
        [
            "interface eni-c 0 10.0.2.1/32 10.0.2.2/32 192.0.2.3/32",
            "interface eni-d 0 10.0.3.1/32", // what is attached may have pods, as long as nobody knows it
            "vm i-1 0 10.0.0.1/32 10.0.0.2/32 10.0.1.1/32 192.0.2.1/32 192.0.2.2/32 2001:db8::1/128",
        ]
    );
}

#[test]
fn a_node_does_not_have_the_addresses_of_its_pods() {
    let first = || interface("eni-a", "i-1", &["10.0.0.1=192.0.2.1", "10.0.0.2", "10.0.0.3"]);
    let second = || interface("eni-b", "i-1", &["10.0.1.1", "10.0.1.2"]);
    let expected = "vm i-1 0 10.0.0.1/32 10.0.1.1/32 192.0.2.1/32";
    let tagged = |key: &str| Interface { tags: [(key, "x")].into(), ..second() };
    for (mark, interfaces, tags) in [
        (
            "a tag of Kubernetes",
            vec![first(), second()],
            &[("kubernetes.io/cluster/prod", "owned")][..],
        ),
        ("a tag of a node group", vec![first(), second()], &[("eks:cluster-name", "prod")]),
        ("a tag of Karpenter", vec![first(), second()], &[("karpenter.sh/nodepool", "default")]),
        ("a tag of the CNI", vec![first(), tagged("node.k8s.amazonaws.com/instance_id")], &[]),
        (
            "a description of the CNI",
            vec![first(), Interface { description: "aws-K8S-i-1".into(), ..second() }],
            &[],
        ),
        ("a trunk", vec![first(), Interface { kind: "trunk".into(), ..second() }], &[]),
    ] {
        assert_eq!(made(&facts(interfaces, vec![instance("i-1", tags)])), [expected], "{mark}");
    }
    // Any other machine has its secondary addresses.
    let other =
        facts(vec![first(), tagged("team")], vec![instance("i-1", &[("kubernetes", "no")])]);
    assert!(made(&other)[0].contains("10.0.0.3/32"), "{:?}", made(&other));
    // The same interface while nothing is known of its instance, or when it has lost it.
    for instance in ["i-1", ""] {
        let lost =
            Interface { instance: Some(instance.into()), ..tagged("node.k8s.amazonaws.com/a") };
        let lost = facts(vec![lost], vec![]);
        assert_eq!(made(&lost), ["interface eni-b 0 10.0.1.1/32"], "{instance}");
    }
}

#[test]
fn a_branch_and_a_delegated_prefix_are_nobodys_but_the_pods() {
    let branch = Interface { kind: "branch".into(), ..interface("eni-b", "", &["10.0.0.9"]) };
    let delegated = Interface {
        delegated: nets(&["10.0.8.0/28", "2001:db8::/80"]),
        ..interface("eni-a", "i-1", &["10.0.0.1"])
    };
    let all = facts(vec![branch, delegated], vec![instance("i-1", &[])]);
    assert_eq!(made(&all), ["vm i-1 0 10.0.0.1/32"]);
}

#[test]
fn a_vpc_with_a_domain_of_its_own_has_all_but_its_public_addresses_there() {
    let vpc = |id: &str| Vpc {
        id: id.into(),
        owner: None,
        cidrs: nets(&["10.0.0.0/16", "2001:db8::/56"]),
        tags: Labels::default(),
    };
    let subnet = Subnet {
        id: "subnet-1".into(),
        owner: None,
        vpc: Some("vpc-hidden".into()),
        cidrs: nets(&["10.0.1.0/24"]),
        zone: None,
        zone_id: None,
        tags: Labels::default(),
    };
    let hidden = Interface {
        vpc: Some("vpc-hidden".into()),
        ..interface("eni-a", "i-1", &["10.0.1.1=192.0.2.1"])
    };
    let instance = Instance { vpc: Some("vpc-hidden".into()), ..instance("i-1", &[]) };
    let mut all = facts(vec![hidden], vec![instance]);
    all.take(Fetched::Vpcs(vec![vpc("vpc-hidden"), vpc("vpc-1")]));
    all.take(Fetched::Subnets(vec![subnet]));
    assert_eq!(
        made(&all),
        [
            "vm i-1 7 10.0.1.1/32",
            "vm i-1/public 0 192.0.2.1/32",
            "subnet subnet-1 7 10.0.1.0/24",
            "vpc vpc-1 0 10.0.0.0/16 2001:db8::/56",
            "vpc vpc-hidden 7 10.0.0.0/16 2001:db8::/56",
        ]
    );
}

#[test]
fn selectors_find_an_endpoint_by_all_that_aws_says_of_it() {
    let tags = [("Name", "web"), ("team", "payments")];
    let all = facts(vec![interface("eni-a", "i-1", &["10.0.0.1"])], vec![instance("i-1", &tags)]);
    let made = endpoints(&scope(), &REGION.into(), &all).into_values().next().unwrap();
    let expected = Endpoint {
        given_name: Some("web".into()),
        addresses: nets(&["10.0.0.1/32"]).into(),
        id: Some("i-1".into()),
        account: Some("111122223333".into()),
        region: Some(REGION.into()),
        zone: Some("eu-central-1a".into()),
        labels: tags.into(),
        ..Endpoint::new("aws:prod/eu-central-1/i-1", EndpointKind::Vm, DomainId::FABRIC)
    };
    assert_eq!(*made, expected);
}

#[test]
fn an_address_is_free_before_it_is_given_again() {
    let mut view = View::new(scope());
    let with = |id: &str| {
        let interface = interface("eni-a", id, &["10.0.0.1"]);
        facts(vec![interface], vec![instance("i-1", &[]), instance("i-2", &[])])
    };
    let mut changes = Vec::new();
    view.update(&REGION.into(), &with("i-2"), &mut changes);
    changes.clear();
    view.update(&REGION.into(), &with("i-1"), &mut changes);
    let subjects: Vec<Subject> = changes.iter().map(Change::subject).collect();
    let named = |id: &str| Subject::Endpoint(format!("aws:prod/eu-central-1/{id}").into());
    assert_eq!(subjects, [named("i-2"), named("i-1")]);
    assert!(matches!(changes[0], Change::Gone(_)), "{changes:?}");
}

fn some_interface() -> impl Strategy<Value = Interface> {
    let hosts = prop::collection::btree_set(1_u8..20, 0..4);
    let kind = prop::sample::select(vec!["interface", "trunk", "branch"]);
    let owner = prop::sample::select(vec!["", "i-1", "i-2", "i-3"]);
    let vpc = prop::sample::select(vec!["vpc-1", "vpc-hidden"]);
    (0_u8..6, hosts, kind, owner, vpc).prop_map(|(number, hosts, kind, owner, vpc)| {
        let texts: Vec<String> =
            hosts.iter().map(|host| format!("10.0.0.{host}=192.0.2.{host}")).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let made = interface(&format!("eni-{number}"), owner, &texts);
        Interface { kind: kind.into(), vpc: Some(vpc.into()), ..made }
    })
}

fn some_instance() -> impl Strategy<Value = Instance> {
    let tag = prop::sample::select(vec!["Name", "team", "eks:cluster-name"]);
    (1_u8..4, prop::option::of((tag, "[ab]"))).prop_map(|(number, tag)| {
        let tags: Vec<(&str, &str)> =
            tag.iter().map(|(key, value)| (*key, value.as_str())).collect();
        instance(&format!("i-{number}"), &tags)
    })
}

/// What AWS says of a region, never twice the same id.
fn some_facts() -> impl Strategy<Value = Facts> {
    let interfaces = prop::collection::vec(some_interface(), 0..6);
    let instances = prop::collection::vec(some_instance(), 0..4);
    (interfaces, instances).prop_map(|(interfaces, instances)| {
        let interfaces: BTreeMap<Text, Interface> =
            interfaces.into_iter().map(|one| (one.id.clone(), one)).collect();
        let instances: BTreeMap<Text, Instance> =
            instances.into_iter().map(|one| (one.id.clone(), one)).collect();
        facts(interfaces.into_values().collect(), instances.into_values().collect())
    })
}

fn inventory(changes: Vec<Change>) -> Vec<Endpoint> {
    let mut inventory = Inventory::new();
    for change in changes {
        if let Change::Gone(name) = &change {
            assert!(inventory.get(name).is_some(), "{name} was not there");
        }
        inventory.apply(change);
    }
    inventory.endpoints().cloned().collect()
}

proptest! {
    #[test]
    fn any_way_to_a_state_says_what_the_state_alone_says(
        states in prop::collection::vec((0_usize..2, some_facts()), 1..12),
    ) {
        let regions = ["eu-central-1", "eu-west-1"].map(Text::from);
        let (mut view, mut changes) = (View::new(scope()), Vec::new());
        let mut last = [Facts::default(), Facts::default()];
        for (region, facts) in states {
            view.update(&regions[region], &facts, &mut changes);
            let said = changes.len();
            view.update(&regions[region], &facts, &mut changes);
            prop_assert_eq!(changes.len(), said, "nothing is said twice");
            last[region] = facts;
        }
        let (mut anew, mut at_once) = (View::new(scope()), Vec::new());
        for (region, facts) in regions.iter().zip(&last) {
            anew.update(region, facts, &mut at_once);
        }
        prop_assert_eq!(view.endpoints(), anew.endpoints());
        prop_assert_eq!(inventory(changes), inventory(at_once));
    }
}
