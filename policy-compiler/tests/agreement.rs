//! The image and the rule-by-rule evaluator agree, and what the linter says is true.
//!
//! Flows are built from the rules, not only at random: the ends are borders of the prefixes that
//! occur and the ports are borders of the ranges that occur, so each rule is hit and narrowly
//! missed.

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use policy_compiler::{
    Action, Capacity, Compiler, DefaultAction, Diagnostic, Egress, Enforcement, Flow, Image, Log,
    PortRange, Protocol, Rule, RuleId, Scope, SnatAction, SnatId, SnatPolicy, WayOut, compile,
    evaluate, evaluate_snat,
};
use proptest::prelude::*;
use smartgroups::{Change, DomainId, Endpoint, EndpointKind, Inventory, Selector, SmartGroup};

mod borders;

use borders::Policy;

const ROOM: Capacity = Capacity {
    rules: 100,
    identities: 1000,
    hosts: 1000,
    prefixes: 1000,
    port_classes: 1000,
    snat_policies: 100,
};

fn prefix() -> impl Strategy<Value = IpNet> {
    let bases = prop_oneof![
        Just(Ipv4Addr::new(10, 0, 0, 0)),
        Just(Ipv4Addr::new(11, 0, 0, 0)),
        Just(Ipv4Addr::new(100, 64, 0, 0))
    ];
    (bases, 0_u32..16, prop_oneof![4 => 28_u8..=32, 1 => 0_u8..=32]).prop_map(
        |(base, offset, length)| {
            let address = Ipv4Addr::from_bits(u32::from(base) + offset);
            IpNet::V4(Ipv4Net::new(address, length).unwrap())
        },
    )
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    (proptest::collection::vec(prefix(), 1..3), 0_u16..3, 0_u8..3, 0_u8..20).prop_map(
        |(addresses, domain, team, number)| Endpoint {
            addresses: addresses.into(),
            labels: [("team", format!("t{team}"))].into(),
            ..Endpoint::new(format!("n/e{number}"), EndpointKind::Pod, DomainId(domain))
        },
    )
}

fn selector() -> impl Strategy<Value = Selector> {
    prop_oneof![
        (prefix(), proptest::option::of(0_u16..3)).prop_map(|(cidr, domain)| Selector {
            cidr: Some(cidr),
            domain: domain.map(DomainId),
            ..Selector::default()
        }),
        (0_u8..3).prop_map(|team| Selector {
            labels: [("team".into(), format!("t{team}"))].into(),
            ..Selector::default()
        }),
    ]
}

fn groups() -> impl Strategy<Value = Vec<SmartGroup>> {
    proptest::collection::vec(proptest::collection::vec(selector(), 0..3), 4).prop_map(|all| {
        let numbered = all.into_iter().enumerate();
        numbered.map(|(n, selectors)| SmartGroup::new(format!("g{n}"), selectors)).collect()
    })
}

fn group_name() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => (0_u8..4).prop_map(|n| format!("g{n}")),
        3 => Just("anywhere".to_owned()),
        1 => Just("public-internet".to_owned()),
    ]
}

fn range() -> impl Strategy<Value = PortRange> {
    let port = prop_oneof![8 => 78_u16..84, 1 => Just(0), 1 => Just(u16::MAX)];
    (port.clone(), port).prop_map(|(a, b)| a.min(b)..=a.max(b))
}

fn protocol_and_ports() -> impl Strategy<Value = (Protocol, Vec<PortRange>)> {
    let with_ports = prop_oneof![Just(Protocol::Any), Just(Protocol::TCP), Just(Protocol::UDP)];
    let without = prop_oneof![Just(Protocol::Any), any::<u8>().prop_map(Protocol::Number)];
    prop_oneof![
        3 => (with_ports, proptest::collection::vec(range(), 0..3)),
        1 => without.prop_map(|protocol| (protocol, vec![])),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![3 => Just(Action::Permit), 2 => Just(Action::Deny), 1 => Just(Action::Reject)]
}

fn log() -> impl Strategy<Value = Log> {
    prop_oneof![4 => Just(Log::Both), 1 => Just(Log::Off)]
}

fn mark() -> impl Strategy<Value = Option<NonZeroU16>> {
    proptest::option::weighted(0.2, (1_u16..3).prop_map(|mark| NonZeroU16::new(mark).unwrap()))
}

fn rule() -> impl Strategy<Value = Rule> {
    let enforcement = prop_oneof![
        5 => Just(Enforcement::Enforce),
        2 => Just(Enforcement::Monitor),
        1 => Just(Enforcement::Disabled)
    ];
    let names = || proptest::collection::vec(group_name(), 1..3);
    (names(), names(), protocol_and_ports(), action(), log(), enforcement, mark()).prop_map(
        |(sources, destinations, (protocol, ports), action, log, enforcement, mark)| Rule {
            name: String::new(),
            id: RuleId(1),
            priority: 0,
            action,
            sources,
            destinations,
            protocol,
            ports,
            log,
            enforcement,
            mark: mark.filter(|_| action == Action::Permit),
            description: String::new(),
        },
    )
}

/// Rules with distinct names, ids and priorities, the last of them not in order of the list.
fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let numbers: Vec<u32> = (0..12).collect();
    (proptest::collection::vec(rule(), 0..12), Just(numbers).prop_shuffle()).prop_map(
        |(rules, priorities)| {
            let numbered = rules.into_iter().zip(priorities).zip(1..);
            numbered
                .map(|((rule, priority), n)| Rule {
                    name: format!("r{n}"),
                    id: RuleId(n),
                    priority,
                    ..rule
                })
                .collect()
        },
    )
}

fn scope() -> impl Strategy<Value = Scope> {
    prop_oneof![
        1 => Just(Scope::Any),
        2 => prefix().prop_map(Scope::Cidr),
        2 => group_name().prop_map(Scope::Group),
    ]
}

fn snat() -> impl Strategy<Value = Vec<SnatPolicy>> {
    let egress = prop_oneof![
        Just(Egress::Interface("eth0".into())),
        Just(Egress::Connection("transit".into()))
    ];
    let ports = || proptest::option::weighted(0.3, range());
    let one = (scope(), scope(), protocol_and_ports(), ports(), ports(), mark(), egress);
    let numbers: Vec<u32> = (0..5).collect();
    (proptest::collection::vec(one, 0..5), Just(numbers).prop_shuffle()).prop_map(
        |(all, orders)| {
            let numbered = all.into_iter().zip(orders).zip(1..);
            numbered
                .map(|((one, order), n)| {
                    let (source, destination, (protocol, _), sports, dports, mark, egress) = one;
                    let portless =
                        ![Protocol::Any, Protocol::TCP, Protocol::UDP].contains(&protocol);
                    SnatPolicy {
                        name: format!("s{n}"),
                        id: SnatId(n),
                        order,
                        source,
                        source_ports: sports.filter(|_| !portless),
                        destination,
                        destination_ports: dports.filter(|_| !portless),
                        protocol,
                        mark,
                        egress,
                        action: SnatAction::NoNat,
                    }
                })
                .collect()
        },
    )
}

fn policy() -> impl Strategy<Value = Policy> {
    let endpoints = proptest::collection::vec(endpoint(), 0..8);
    (endpoints, groups(), rules(), snat(), action(), log()).prop_map(
        |(endpoints, groups, rules, snat, action, log)| {
            let mut inventory = Inventory::new();
            for endpoint in endpoints {
                inventory.insert(endpoint);
            }
            let default_action = DefaultAction { action, log };
            Policy { inventory, groups, rules, snat, default_action }
        },
    )
}

/// A flow whose parts are drawn from what occurs in the policy.
#[derive(Clone, Debug)]
struct Draw {
    domains: (u8, u8),
    addresses: (prop::sample::Index, prop::sample::Index),
    ports: (prop::sample::Index, prop::sample::Index),
    protocol: u8,
}

impl Draw {
    fn from(&self, policy: &Policy) -> Flow {
        let ports = policy.ports();
        // Whatever the policy, some that no prefix is about.
        let others = ["8.8.8.8", "2606:4700::1", "fd00::1"].map(|text| text.parse().unwrap());
        let bordering = policy.addresses().into_iter().map(IpAddr::V4);
        let addresses: Vec<IpAddr> = bordering.chain(others).collect();
        let end = |domain: u8, address: &prop::sample::Index| {
            (DomainId(domain.into()), *address.get(&addresses))
        };
        Flow {
            source: end(self.domains.0, &self.addresses.0),
            destination: end(self.domains.1, &self.addresses.1),
            protocol: self.protocol,
            source_port: *self.ports.0.get(&ports),
            destination_port: *self.ports.1.get(&ports),
        }
    }
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        2 => endpoint().prop_map(|endpoint| Change::Endpoint(Arc::new(endpoint))),
        1 => (0_u8..20).prop_map(|number| Change::Gone(format!("n/e{number}").into())),
    ]
}

fn draws() -> impl Strategy<Value = Vec<Draw>> {
    let protocol = prop_oneof![4 => Just(6), 2 => Just(17), 1 => Just(1), 1 => any::<u8>()];
    let index = any::<prop::sample::Index>;
    let draw = ((0_u8..3, 0_u8..3), (index(), index()), (index(), index()), protocol);
    let draw = draw.prop_map(|(domains, addresses, ports, protocol)| Draw {
        domains,
        addresses,
        ports,
        protocol,
    });
    proptest::collection::vec(draw, 60)
}

proptest! {
    #[test]
    fn the_image_decides_as_the_rules_read(policy in policy(), draws in draws()) {
        let inputs = policy.inputs();
        let (image, _) = compile(&inputs, &ROOM).unwrap();
        for draw in draws {
            let flow = draw.from(&policy);
            let judged = image.judge(&flow);
            prop_assert_eq!(&judged, &evaluate(&inputs, &flow), "{:?}", flow);
            for way_out in [
                WayOut { interface: "eth0", connection: None },
                WayOut { interface: "eth0", connection: Some("transit") },
                WayOut { interface: "eth2", connection: Some("transit") },
            ] {
                let found = image.snat_for(&flow, judged.mark, &way_out).map(|found| found.id);
                let expected = evaluate_snat(&inputs, &flow, judged.mark, &way_out);
                prop_assert_eq!(found, expected.map(|found| found.id), "{:?} {:?}", flow, way_out);
            }
        }
    }

    /// Members that come and go lead to where they would have led at once.
    #[test]
    fn an_amended_image_decides_as_one_that_is_compiled_anew(
        policy in policy(),
        batches in proptest::collection::vec(proptest::collection::vec(change(), 0..4), 1..6),
        draws in draws(),
    ) {
        let inventory = policy.inventory.clone();
        let (mut compiler, mut image, _) =
            Compiler::new(inventory, &policy.inputs(), &ROOM).unwrap();
        prop_assert_eq!(&image, &compile(&policy.inputs(), &ROOM).unwrap().0);
        for batch in batches {
            image.amend(&compiler.amend(batch).unwrap());
            let now = Policy { inventory: compiler.inventory().clone(), ..policy.clone() };
            let (anew, _) = compile(&now.inputs(), &ROOM).unwrap();
            for address in now.addresses() {
                for domain in borders::DOMAINS {
                    let of = |image: &Image| image.identity(domain, address.into()).clone();
                    prop_assert_eq!(of(&image), of(&anew), "{} of {}", address, domain);
                }
            }
            for draw in &draws {
                let flow = draw.from(&now);
                prop_assert_eq!(image.judge(&flow), evaluate(&now.inputs(), &flow), "{:?}", flow);
            }
        }
    }

    /// Whoever has a contested address: what gets through would get through if it were theirs.
    #[test]
    fn what_a_contested_address_may_do_each_of_its_claimants_may(
        policy in policy(),
        draws in draws(),
    ) {
        let (image, diagnostics) = compile(&policy.inputs(), &ROOM).unwrap();
        for diagnostic in &diagnostics {
            let Diagnostic::Contested(conflict) = diagnostic else { continue };
            for one in &conflict.claimants {
                let mut alone = policy.clone();
                for other in conflict.claimants.iter().filter(|other| *other != one) {
                    let mut other = alone.inventory.remove(other).unwrap().as_ref().clone();
                    let others = other.addresses.iter().copied();
                    other.addresses = others.filter(|one| *one != conflict.prefix).collect();
                    alone.inventory.insert(other);
                }
                let (alone, _) = compile(&alone.inputs(), &ROOM).unwrap();
                for draw in &draws {
                    let flow = draw.from(&policy);
                    if image.judge(&flow).action == Action::Permit {
                        let judged = alone.judge(&flow).action;
                        prop_assert_eq!(judged, Action::Permit, "{} has {:?}", one, flow);
                    }
                }
            }
        }
    }

    #[test]
    fn the_linter_is_never_wrong(policy in policy(), draws in draws()) {
        let (image, diagnostics) = compile(&policy.inputs(), &ROOM).unwrap();
        let flows: Vec<Flow> = draws.iter().map(|draw| draw.from(&policy)).collect();
        let id = |name: &String| policy.rules.iter().find(|rule| rule.name == *name).unwrap().id;
        for diagnostic in &diagnostics {
            match diagnostic {
                Diagnostic::RuleNeverMatches { rule, .. } | Diagnostic::Shadowed { rule, .. } => {
                    for flow in &flows {
                        let judged = image.judge(flow);
                        prop_assert_ne!(judged.rule, Some(id(rule)), "{}", diagnostic);
                        prop_assert_ne!(judged.would_match, Some(id(rule)), "{}", diagnostic);
                    }
                }
                Diagnostic::Redundant { rule, .. } => {
                    let mut without = policy.clone();
                    without.rules.retain(|other| other.name != *rule);
                    let (other, _) = compile(&without.inputs(), &ROOM).unwrap();
                    for flow in &flows {
                        let (a, b) = (image.judge(flow), other.judge(flow));
                        prop_assert_eq!(
                            (a.action, a.log, a.mark, a.would_match),
                            (b.action, b.log, b.mark, b.would_match),
                            "{}: {:?}", diagnostic, flow
                        );
                    }
                }
                Diagnostic::EmptyGroup { .. }
                | Diagnostic::SnatNeverMatches { .. }
                | Diagnostic::Contested(_) => {}
            }
        }
    }

    #[test]
    fn the_order_of_the_documents_does_not_matter(policy in policy()) {
        let mut backward = policy.clone();
        backward.groups.reverse();
        backward.rules.reverse();
        backward.snat.reverse();
        let (a, _) = compile(&policy.inputs(), &ROOM).unwrap();
        let (b, _) = compile(&backward.inputs(), &ROOM).unwrap();
        prop_assert_eq!(a, b);
    }
}
