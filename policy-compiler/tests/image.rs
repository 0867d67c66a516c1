//! What an image holds, and what is refused.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use policy_compiler::{
    Action, Capacity, CompileError, Compiler, DefaultAction, Diagnostic, Egress, Enforcement, Flow,
    Image, Inputs, Log, PortRange, Protocol, Rule, RuleId, Scope, SnatAction, SnatId, SnatPolicy,
    Table, compile,
};
use smartgroups::{
    Change, DomainId, Endpoint, EndpointKind, GroupId, Inventory, Selector, SmartGroup,
};

const AMPLE: Capacity = Capacity {
    rules: 1000,
    identities: 1000,
    hosts: 1000,
    prefixes: 1000,
    port_classes: 1000,
    snat_policies: 1000,
};

fn rule(number: u32) -> Rule {
    Rule {
        name: format!("r{number}"),
        id: RuleId(number),
        priority: number,
        action: Action::Permit,
        sources: vec!["corp".into()],
        destinations: vec!["anywhere".into()],
        protocol: Protocol::Any,
        ports: vec![],
        log: Log::Both,
        enforcement: Enforcement::Enforce,
        mark: None,
        description: String::new(),
    }
}

fn snat(number: u32) -> SnatPolicy {
    SnatPolicy {
        name: format!("s{number}"),
        id: SnatId(number),
        order: number,
        source: Scope::Any,
        source_ports: None,
        destination: Scope::Any,
        destination_ports: None,
        protocol: Protocol::Any,
        mark: None,
        egress: Egress::Connection("transit".into()),
        action: SnatAction::Snat {
            addresses: vec!["10.10.0.17".parse().unwrap()],
            ports: 1024..=65535,
        },
    }
}

fn compiled(
    rules: &[Rule],
    snat: &[SnatPolicy],
    capacity: &Capacity,
) -> Result<Image, CompileError> {
    let mut inventory = Inventory::new();
    inventory.insert(Endpoint {
        addresses: ["100.64.0.1/32".parse().unwrap()].into(),
        ..Endpoint::new("n/pod", EndpointKind::Pod, DomainId(1))
    });
    let pods = Selector { kind: Some(EndpointKind::Pod), ..Selector::default() };
    let groups = [
        SmartGroup::new("corp", vec![Selector::cidr("10.0.0.0/8".parse().unwrap())]),
        SmartGroup::new("pods", vec![pods]),
    ];
    let inputs = Inputs {
        inventory: &inventory,
        groups: &groups,
        rules,
        snat,
        default_action: DefaultAction { action: Action::Deny, log: Log::Both },
        domains: &[DomainId(1), DomainId(2)],
    };
    compile(&inputs, capacity).map(|(image, _)| image)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn rules_stand_in_order_of_priority_without_the_disabled_ones() {
    let rules = [
        Rule { priority: 30, ..rule(1) },
        Rule { priority: 20, enforcement: Enforcement::Disabled, ..rule(2) },
        Rule { priority: 10, enforcement: Enforcement::Monitor, ..rule(3) },
    ];
    let image = compiled(&rules, &[], &AMPLE).unwrap();
    let listed: Vec<_> = image.rules.iter().map(|rule| (rule.id.0, rule.monitor)).collect();
    assert_eq!(listed, [(3, true), (1, false)]);
}

#[test]
fn a_monitor_rule_is_reported_and_never_decides() {
    let monitor = |number| Rule { enforcement: Enforcement::Monitor, ..rule(number) };
    let elsewhere = Rule { sources: vec!["pods".into()], ..monitor(1) };
    let decider = Rule { mark: NonZeroU16::new(7), log: Log::Start, ..rule(4) };
    let flow = Flow {
        source: (DomainId::FABRIC, ip("10.0.0.1")),
        destination: (DomainId::FABRIC, ip("8.8.8.8")),
        protocol: 6,
        source_port: 40_000,
        destination_port: 443,
    };
    for (rules, decided, would_match, action) in [
        (
            vec![elsewhere.clone(), monitor(2), monitor(3), decider.clone(), monitor(5)],
            Some(RuleId(4)),
            Some(RuleId(2)), // the first that matches, not the first or the last there is
            Action::Permit,
        ),
        (vec![elsewhere, monitor(2)], None, Some(RuleId(2)), Action::Deny),
        (vec![decider, monitor(5)], Some(RuleId(4)), None, Action::Permit),
    ] {
        let judged = compiled(&rules, &[], &AMPLE).unwrap().judge(&flow);
        assert_eq!(
            (judged.rule, judged.would_match, judged.action),
            (decided, would_match, action)
        );
        let by_rule = decided.is_some();
        assert_eq!(judged.mark.is_some(), by_rule);
        assert_eq!(judged.log, if by_rule { Log::Start } else { Log::Both });
    }
}

#[test]
fn an_unknown_address_has_the_first_identity_and_only_anywhere() {
    let image = compiled(&[rule(1)], &[], &AMPLE).unwrap();
    assert_eq!(image.identities[0].groups, [GroupId::ANYWHERE]);
    assert!(image.identities[0].source_rules.is_empty());
    assert!(image.identities[0].destination_rules.contains(0));
    assert!(std::ptr::eq(image.identity(DomainId(1), ip("100.64.0.2")), &image.identities[0]));
    assert!(std::ptr::eq(image.identity(DomainId(9), ip("8.8.8.8")), &image.identities[0]));
    assert!(image.identity(DomainId::FABRIC, ip("10.0.0.1")).source_rules.contains(0));
}

#[test]
fn a_prefix_of_a_snat_policy_splits_every_domain_and_no_identity_id() {
    let policy = SnatPolicy {
        source: Scope::Cidr("100.64.0.0/16".parse().unwrap()),
        destination: Scope::Group("corp".into()),
        ..snat(1)
    };
    let image = compiled(&[rule(1)], &[policy], &AMPLE).unwrap();
    for (domain, address, source, destination) in [
        (0, "100.64.255.255", true, false),
        (0, "100.65.0.0", false, false),
        (1, "100.64.0.1", true, false), // a pod
        (1, "100.64.0.2", true, false),
        (2, "100.64.0.1", true, false), // a domain without endpoints
        (2, "100.63.0.1", false, false),
        (0, "10.0.0.1", false, true),
        (1, "10.0.0.1", false, false),
    ] {
        let identity = image.identity(DomainId(domain), ip(address));
        assert_eq!(identity.snat_source.contains(0), source, "{address} of {domain}");
        assert_eq!(identity.snat_destination.contains(0), destination, "{address} of {domain}");
    }
    let inside = image.identity(DomainId(2), ip("100.64.0.1"));
    assert_eq!(inside.groups, [GroupId::ANYWHERE]);
    assert_eq!(inside.id, image.identities[0].id, "the same groups, the same id");
    let pod = image.identity(DomainId(1), ip("100.64.0.1"));
    assert_ne!(pod.id, inside.id);
}

#[test]
fn port_classes_cover_every_port_and_every_protocol_once() {
    let with = |number, protocol, ports: &[PortRange]| Rule {
        protocol,
        ports: ports.to_vec(),
        ..rule(number)
    };
    let rules = [
        with(1, Protocol::TCP, &[443..=443]),
        with(2, Protocol::Any, &[0..=79, 80..=80, 65535..=65535]),
        with(3, Protocol::UDP, &[]),
        with(4, Protocol::ICMP, &[]),
        with(5, Protocol::Any, &[]),
    ];
    let classes = compiled(&rules, &[], &AMPLE).unwrap().port_classes;
    for ranges in [&classes.tcp, &classes.udp] {
        let mut next = 0_u32;
        for (range, _) in ranges {
            assert_eq!(u32::from(*range.start()), next);
            next = u32::from(*range.end()) + 1;
        }
        assert_eq!(next, 65536);
        assert!(ranges.windows(2).all(|two| two[0].1 != two[1].1), "neighbours differ");
    }
    for (protocol, port, expected) in [
        (6, 0, &[1, 4][..]),
        (6, 80, &[1, 4]),
        (6, 81, &[4]),
        (6, 442, &[4]),
        (6, 443, &[0, 4]),
        (6, 444, &[4]),
        (6, 65534, &[4]),
        (6, 65535, &[1, 4]),
        (17, 80, &[1, 2, 4]),
        (17, 443, &[2, 4]),
        (1, 0, &[3, 4]),
        (132, 80, &[4]), // SCTP: ports are not matched
    ] {
        let class = usize::from(classes.class_of(protocol, port));
        let found: Vec<usize> = classes.classes[class].iter().collect();
        assert_eq!(found, expected, "protocol {protocol} port {port}");
    }
    for (protocol, expected) in [(6, &[4][..]), (17, &[2, 4])] {
        let class = usize::from(classes.other[protocol]);
        let found: Vec<usize> = classes.classes[class].iter().collect();
        assert_eq!(found, expected, "protocol {protocol} without readable ports");
    }
}

#[test]
fn what_does_not_fit_is_refused_with_the_table_the_need_and_the_room() {
    let rules = [rule(1), Rule { protocol: Protocol::TCP, ports: vec![443..=443], ..rule(2) }];
    let policies = [snat(1), snat(2)];
    let image = compiled(&rules, &policies, &AMPLE).unwrap();
    let exact = Capacity {
        rules: image.rules.len(),
        identities: image.identities.len(),
        hosts: image.hosts.len(),
        prefixes: image.prefixes.len(),
        port_classes: image.port_classes.classes.len(),
        snat_policies: image.snat.len(),
    };
    assert_eq!(compiled(&rules, &policies, &exact), Ok(image), "a full table is not too small");
    for (table, need, capacity) in [
        ("rules", exact.rules, Capacity { rules: exact.rules - 1, ..exact }),
        ("identities", exact.identities, Capacity { identities: exact.identities - 1, ..exact }),
        ("endpoints", exact.hosts, Capacity { hosts: exact.hosts - 1, ..exact }),
        ("prefixes", exact.prefixes, Capacity { prefixes: exact.prefixes - 1, ..exact }),
        (
            "port_classes",
            exact.port_classes,
            Capacity { port_classes: exact.port_classes - 1, ..exact },
        ),
        (
            "snat policies",
            exact.snat_policies,
            Capacity { snat_policies: exact.snat_policies - 1, ..exact },
        ),
    ] {
        assert_eq!(
            compiled(&rules, &policies, &capacity).unwrap_err().to_string(),
            format!("the policy needs {need} {table}, and the gateway has room for {}", need - 1)
        );
    }
}

#[test]
fn an_image_holds_256_snat_policies_and_not_one_more() {
    let policies: Vec<SnatPolicy> = (1..=257).map(snat).collect();
    assert!(compiled(&[], &policies[..256], &AMPLE).is_ok());
    assert_eq!(
        compiled(&[], &policies, &AMPLE).unwrap_err().to_string(),
        "the policy needs 257 snat policies, and the gateway has room for 256"
    );
}

#[test]
fn a_rule_that_cannot_be_meant_is_refused_by_name() {
    let strings = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
    let empty = PortRange::new(10, 9);
    for (rules, expected) in [
        (vec![rule(1), Rule { name: "r1".into(), ..rule(2) }], "rule `r1` is defined twice"),
        (
            vec![rule(1), Rule { id: RuleId(1), ..rule(2) }],
            "rules `r2` and `r1` have the same id 1",
        ),
        (vec![rule(0)], "rule `r0` has the id 0, which means none"),
        (
            vec![rule(1), Rule { priority: 1, ..rule(2) }],
            "rules `r2` and `r1` have the same priority 1",
        ),
        (vec![Rule { sources: vec![], ..rule(1) }], "rule `r1` names no source group"),
        (vec![Rule { destinations: vec![], ..rule(1) }], "rule `r1` names no destination group"),
        (
            vec![Rule { sources: strings(&["corp", "crop"]), ..rule(1) }],
            "rule `r1` names smart group `crop`, which does not exist",
        ),
        (
            vec![Rule { destinations: strings(&["crop"]), ..rule(1) }],
            "rule `r1` names smart group `crop`, which does not exist",
        ),
        (
            vec![Rule { action: Action::Deny, mark: NonZeroU16::new(7), ..rule(1) }],
            "rule `r1` sets a mark, but only a rule that permits can",
        ),
        (
            vec![Rule { protocol: Protocol::ICMP, ports: vec![0..=1], ..rule(1) }],
            "rule `r1` names ports, but its protocol 1 is neither tcp nor udp",
        ),
        (
            vec![Rule { ports: vec![1..=2, empty], ..rule(1) }],
            "rule `r1` names the port range 10-9, which holds no port",
        ),
        (
            vec![Rule { enforcement: Enforcement::Disabled, sources: vec![], ..rule(1) }],
            "rule `r1` names no source group", // switching it on must not fail
        ),
    ] {
        assert_eq!(compiled(&rules, &[], &AMPLE).unwrap_err().to_string(), expected);
    }
    let fine = Rule { mark: NonZeroU16::new(7), ports: vec![0..=0], ..rule(1) };
    assert!(compiled(&[fine], &[], &AMPLE).is_ok());
}

#[test]
fn a_snat_policy_that_cannot_be_meant_is_refused_by_name() {
    let to = |addresses: &[&str], ports| SnatAction::Snat {
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        ports,
    };
    let empty = PortRange::new(10, 9);
    for (policies, expected) in [
        (
            vec![snat(1), SnatPolicy { name: "s1".into(), ..snat(2) }],
            "snat policy `s1` is defined twice",
        ),
        (
            vec![snat(1), SnatPolicy { id: SnatId(1), ..snat(2) }],
            "snat policies `s2` and `s1` have the same id 1",
        ),
        (vec![snat(0)], "snat policy `s0` has the id 0, which means none"),
        (
            vec![snat(1), SnatPolicy { order: 1, ..snat(2) }],
            "snat policies `s2` and `s1` have the same order 1",
        ),
        (
            vec![SnatPolicy { destination: Scope::Group("crop".into()), ..snat(1) }],
            "snat policy `s1` names smart group `crop`, which does not exist",
        ),
        (
            vec![SnatPolicy { protocol: Protocol::ICMP, source_ports: Some(1..=2), ..snat(1) }],
            "snat policy `s1` names ports, but its protocol 1 is neither tcp nor udp",
        ),
        (
            vec![SnatPolicy { destination_ports: Some(empty.clone()), ..snat(1) }],
            "snat policy `s1` names the port range 10-9, which holds no port",
        ),
        (
            vec![SnatPolicy { action: to(&["10.0.0.1"], empty), ..snat(1) }],
            "snat policy `s1` names the port range 10-9, which holds no port",
        ),
        (
            vec![SnatPolicy { action: to(&[], 1..=2), ..snat(1) }],
            "snat policy `s1` names no outside address",
        ),
    ] {
        assert_eq!(compiled(&[], &policies, &AMPLE).unwrap_err().to_string(), expected);
    }
}

#[test]
fn an_address_that_two_claim_gets_what_both_may_and_is_refused_what_either_is() {
    let endpoint = |name: &str, teams: [&str; 2]| Endpoint {
        addresses: ["100.64.0.1/32".parse().unwrap()].into(),
        labels: teams.map(|team| (team, "yes")).into(),
        ..Endpoint::new(name, EndpointKind::Pod, DomainId(1))
    };
    let group = |name: &str| {
        let labels = [(name.to_owned(), "yes".to_owned())].into();
        SmartGroup::new(name, vec![Selector { labels, ..Selector::default() }])
    };
    let groups = ["web", "old", "new"].map(group);
    let with = |number, source: &str, action| Rule {
        sources: vec![source.into()],
        action,
        ..rule(number)
    };
    let flow = Flow {
        source: (DomainId(1), ip("100.64.0.1")),
        destination: (DomainId::FABRIC, ip("8.8.8.8")),
        protocol: 6,
        source_port: 40_000,
        destination_port: 443,
    };
    let (permit, deny) = (Action::Permit, Action::Deny);
    for (what, rules, alone, contested) in [
        ("both may", vec![with(1, "web", permit)], permit, permit),
        ("only the old one may", vec![with(1, "old", permit)], permit, deny),
        ("the new one may not", vec![with(1, "new", deny), with(2, "web", permit)], permit, deny),
        (
            "the new one is rejected",
            vec![with(1, "new", Action::Reject), with(2, "web", permit)],
            permit,
            Action::Reject,
        ),
        ("nobody is refused", vec![with(1, "web", permit), with(2, "new", deny)], permit, permit),
    ] {
        let mut inventory = Inventory::new();
        inventory.insert(endpoint("n/old", ["web", "old"]));
        let judge = |inventory: &Inventory| {
            let inputs = Inputs {
                inventory,
                groups: &groups,
                rules: &rules,
                snat: &[],
                default_action: DefaultAction { action: deny, log: Log::Both },
                domains: &[],
            };
            let (image, diagnostics) = compile(&inputs, &AMPLE).unwrap();
            let contested = diagnostics.iter().any(|d| matches!(d, Diagnostic::Contested(_)));
            (image.judge(&flow).action, contested)
        };
        assert_eq!(judge(&inventory), (alone, false), "{what}");
        inventory.insert(endpoint("n/new", ["web", "new"]));
        assert_eq!(judge(&inventory), (contested, true), "{what}");
    }
}

#[test]
fn members_without_room_are_refused_by_table_and_those_before_them_make_room_by_leaving() {
    let pod = |number: u8, team: &str| {
        Change::Endpoint(Arc::new(Endpoint {
            addresses: [format!("100.64.0.{number}/32").parse().unwrap()].into(),
            labels: [("team", team)].into(),
            ..Endpoint::new(format!("n/pod{number}"), EndpointKind::Pod, DomainId(1))
        }))
    };
    let team = |team: &str| {
        let selector =
            Selector { labels: [("team".into(), team.into())].into(), ..Selector::default() };
        SmartGroup::new(team, vec![selector])
    };
    let groups = ["a", "b", "c"].map(team);
    let inventory = Inventory::new();
    let inputs = Inputs {
        inventory: &inventory,
        groups: &groups,
        rules: &[],
        snat: &[],
        default_action: DefaultAction { action: Action::Deny, log: Log::Both },
        domains: &[],
    };
    let begun = |inventory: Inventory, hosts: usize, identities: usize| {
        let room = Capacity { hosts, identities, ..AMPLE };
        Compiler::new(inventory, &inputs, &room).unwrap()
    };
    // Nobody, the Internet (which has another identity), and two teams.
    let (mut compiler, image, _) = begun(Inventory::new(), 2, 4);
    assert_eq!(image.identities.len(), 2);
    compiler.amend([pod(1, "a"), pod(2, "b")]).unwrap();
    let full = |table| CompileError::NoRoom { table, need: 3, room: 2 };
    assert_eq!(compiler.amend([pod(3, "a")]).unwrap_err(), full(Table::Hosts));
    // What was refused is known all the same; with others gone there is room for it.
    let mut inventory = compiler.into_inventory();
    inventory.remove("n/pod1");
    let (mut compiler, image, _) = begun(inventory, 2, 4);
    assert_eq!(image.hosts.len(), 2);
    let full = CompileError::NoRoom { table: Table::Identities, need: 5, room: 4 };
    assert_eq!(compiler.amend([pod(2, "c")]).unwrap_err(), full);
    let (mut compiler, image, _) = begun(compiler.into_inventory(), 2, 4);
    assert_eq!(image.identities.len(), 4, "nobody is in team b any more");
    assert!(compiler.amend([Change::Gone("n/pod2".into())]).unwrap().identities.is_empty());
}
