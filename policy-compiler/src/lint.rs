//! What compiles and yet can hardly be meant.
//!
//! All of it is read off the image, so it holds for the members that groups have now, not for what
//! their selectors might mean. Rule E covers rule R if every identity that can be the source of R
//! can be the source of E, the same for destinations, and every port class that R admits E admits.
//! The rules that cover R are thus what the bit sets of R's identities and classes have in common,
//! and no pair of rules has to be compared. Only a cover by one rule counts, not one by several
//! together: a warning is never wrong, and may be missing.

use std::collections::{HashMap, HashSet};
use std::fmt;

use smartgroups::{Conflict, GroupId};

use crate::bitset::BitSet;
use crate::compile::group_ids;
use crate::error::Side;
use crate::image::Image;
use crate::model::{Action, Inputs, PortRange, Protocol, Rule, Scope, SnatPolicy};
use crate::ports::merged;

/// Something that compiles and can hardly be meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Diagnostic {
    /// A group that no address is in.
    EmptyGroup {
        /// The group.
        group: String,
    },
    /// A rule whose groups at one end are all empty.
    RuleNeverMatches {
        /// The rule.
        rule: String,
        /// Which end.
        side: Side,
        /// Its groups at that end.
        groups: Vec<String>,
    },
    /// A SNAT policy whose group at one end is empty.
    SnatNeverMatches {
        /// The policy.
        policy: String,
        /// Which end.
        side: Side,
        /// Its group at that end.
        group: String,
    },
    /// A rule that never comes to judge.
    Shadowed {
        /// The rule.
        rule: String,
        /// An earlier rule that decides all that it matches.
        by: String,
    },
    /// A rule whose removal would change no decision.
    Redundant {
        /// The rule.
        rule: String,
        /// A later rule that decides all that it matches in the same way.
        by: String,
    },
    /// An address that several endpoints claim although only one can have it.
    Contested(Conflict),
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmptyGroup { group } => write!(f, "smart group `{group}` is empty"),
            Self::RuleNeverMatches { rule, side, groups } => {
                let verb = if groups.len() == 1 { "is" } else { "are all" };
                let groups = quoted(groups);
                write!(f, "rule `{rule}` can never match: its {side} {groups} {verb} empty")
            }
            Self::SnatNeverMatches { policy, side, group } => {
                write!(f, "snat policy `{policy}` can never match: its {side} `{group}` is empty")
            }
            Self::Shadowed { rule, by } => {
                write!(f, "rule `{rule}` is shadowed: `{by}` before it matches all that it matches")
            }
            Self::Redundant { rule, by } => {
                write!(f, "rule `{rule}` is redundant: without it `{by}` would decide the same")
            }
            Self::Contested(conflict) => write!(
                f,
                "address {} of domain {} is claimed by {}s {}, and only rules that deny see it in \
                 groups that not all of them are in",
                conflict.prefix,
                conflict.domain,
                conflict.kind,
                quoted(&conflict.claimants)
            ),
        }
    }
}

fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// Looks for what can hardly be meant. `rules` and `snat` are those of the image, in its order.
pub(crate) fn lint(
    inputs: &Inputs<'_>,
    image: &Image,
    rules: &[&Rule],
    snat: &[&SnatPolicy],
) -> Vec<Diagnostic> {
    let group_ids = group_ids(inputs);
    let identities = image.identities.iter();
    let held: HashSet<GroupId> =
        identities.flat_map(|one| one.groups.iter().chain(&one.doubted)).copied().collect();
    let is_empty = |name: &String| !held.contains(&group_ids[name.as_str()]);

    let conflicts = inputs.inventory.conflicts().into_iter().map(Diagnostic::Contested);
    let empty = inputs.groups.iter().map(|group| &group.name).filter(|name| is_empty(name));
    let mut found: Vec<Diagnostic> = empty
        .map(|group| Diagnostic::EmptyGroup { group: group.clone() })
        .chain(conflicts)
        .collect();
    let mut covers = Covers::new(image, rules, &group_ids);
    for (bit, rule) in rules.iter().enumerate() {
        let ends = [(Side::Source, &rule.sources), (Side::Destination, &rule.destinations)];
        if let Some((side, groups)) = ends.into_iter().find(|(_, names)| names.iter().all(is_empty))
        {
            let (rule, groups) = (rule.name.clone(), groups.clone());
            found.push(Diagnostic::RuleNeverMatches { rule, side, groups });
            continue;
        }
        found.extend(covers.of(bit));
    }
    for policy in snat {
        for (side, scope) in
            [(Side::Source, &policy.source), (Side::Destination, &policy.destination)]
        {
            match scope {
                Scope::Group(group) if is_empty(group) => {
                    let (policy, group) = (policy.name.clone(), group.clone());
                    found.push(Diagnostic::SnatNeverMatches { policy, side, group });
                }
                Scope::Any | Scope::Cidr(_) | Scope::Group(_) => {}
            }
        }
    }
    found
}

/// The rules that come along with one rule, over all sets of rules that it is in.
struct Company {
    /// In every such set.
    always: BitSet,
    /// In at least one.
    ever: BitSet,
}

impl Company {
    fn of<'a>(bit: usize, rules: usize, sets: impl Iterator<Item = &'a BitSet>) -> Self {
        let mut company = Self { always: BitSet::full(rules), ever: BitSet::new(rules) };
        for set in sets.filter(|set| set.contains(bit)) {
            company.always.intersect_with(set);
            company.ever.union_with(set);
        }
        company
    }
}

/// Rules with the same key admit the same protocols and ports. One without ports admits more than
/// one with all of them: protocols that have none.
type PortKey = (Protocol, Option<Vec<PortRange>>);

/// Rules with the same key have the same identities at one end: groups, and whether it refuses,
/// because a refusal also has those that are in doubt.
type EndKey = (Vec<GroupId>, bool);

/// Finds rules that cover others. Rules with the same groups or the same ports share an answer.
struct Covers<'a> {
    image: &'a Image,
    rules: &'a [&'a Rule],
    group_ids: &'a HashMap<&'a str, GroupId>,
    sources: HashMap<EndKey, Company>,
    destinations: HashMap<EndKey, Company>,
    ports: HashMap<PortKey, Company>,
}

impl<'a> Covers<'a> {
    fn new(
        image: &'a Image,
        rules: &'a [&'a Rule],
        group_ids: &'a HashMap<&'a str, GroupId>,
    ) -> Self {
        let (sources, destinations) = (HashMap::new(), HashMap::new());
        Self { image, rules, group_ids, sources, destinations, ports: HashMap::new() }
    }

    /// A rule's groups as a key; `anywhere` makes the others irrelevant.
    fn key(&self, names: &[String]) -> Vec<GroupId> {
        let mut key: Vec<GroupId> =
            names.iter().map(|name| self.group_ids[name.as_str()]).collect();
        if key.contains(&GroupId::ANYWHERE) {
            return vec![GroupId::ANYWHERE];
        }
        key.sort_unstable();
        key.dedup();
        key
    }

    /// What an earlier or a later rule makes of one that can match.
    fn of(&mut self, bit: usize) -> Option<Diagnostic> {
        let (image, count, rule) = (self.image, self.rules.len(), self.rules[bit]);
        let refuses = rule.action != Action::Permit;
        let (sources, destinations) = (self.key(&rule.sources), self.key(&rule.destinations));
        let identities = image.identities.iter();
        let by_source = self.sources.entry((sources, refuses)).or_insert_with(|| {
            Company::of(bit, count, identities.clone().map(|identity| &identity.source_rules))
        });
        let by_destination =
            self.destinations.entry((destinations, refuses)).or_insert_with(|| {
                Company::of(bit, count, identities.map(|identity| &identity.destination_rules))
            });
        let ports = (!rule.ports.is_empty()).then(|| merged(rule));
        let by_port = self
            .ports
            .entry((rule.protocol, ports))
            .or_insert_with(|| Company::of(bit, count, image.port_classes.classes.iter()));

        let decides = |other: usize| !image.rules[other].monitor;
        let covering =
            || BitSet::common(&by_source.always, &by_destination.always, &by_port.always);
        if let Some(by) = covering().take_while(|other| *other < bit).find(|other| decides(*other))
        {
            let by = image.rules[by].name.clone();
            return Some(Diagnostic::Shadowed { rule: rule.name.clone(), by });
        }
        if !decides(bit) {
            return None;
        }
        // In between nobody may take what this rule would no longer decide; nor report it, which
        // is why a monitor rule counts as different.
        let effect = |other: usize| {
            let rule = &image.rules[other];
            (rule.action, rule.log, rule.mark, rule.monitor)
        };
        let by = covering().find(|other| *other > bit && effect(*other) == effect(bit))?;
        let disturbed = BitSet::common(&by_source.ever, &by_destination.ever, &by_port.ever)
            .take_while(|other| *other < by)
            .any(|other| other > bit && effect(other) != effect(bit));
        (!disturbed).then(|| Diagnostic::Redundant {
            rule: rule.name.clone(),
            by: image.rules[by].name.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use smartgroups::{DomainId, Endpoint, EndpointKind, Inventory, Selector, SmartGroup};

    use super::*;
    use crate::model::{
        Action, DefaultAction, Egress, Enforcement, Log, RuleId, SnatAction, SnatId,
    };
    use crate::{Capacity, compile};

    fn rule(name: &str, sources: &[&str], destinations: &[&str]) -> Rule {
        let owned = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
        Rule {
            name: name.into(),
            id: RuleId(1),
            priority: 0,
            action: Action::Permit,
            sources: owned(sources),
            destinations: owned(destinations),
            protocol: Protocol::TCP,
            ports: vec![443..=443],
            log: Log::Both,
            enforcement: Enforcement::Enforce,
            mark: None,
            description: String::new(),
        }
    }

    /// `wide` holds `narrow` by address; `pods` and `team` are the same pod; `nobody` is empty.
    fn said(rules: &[Rule], snat: &[SnatPolicy]) -> Vec<String> {
        let mut inventory = Inventory::new();
        inventory.insert(Endpoint {
            addresses: ["100.64.0.1/32".parse().unwrap()].into(),
            labels: [("team", "a")].into(),
            ..Endpoint::new("n/pod", EndpointKind::Pod, DomainId(1))
        });
        let cidr = |name: &str, prefix: &str| {
            SmartGroup::new(name, vec![Selector::cidr(prefix.parse().unwrap())])
        };
        let pods = Selector { kind: Some(EndpointKind::Pod), ..Selector::default() };
        let team = Selector { labels: [("team".into(), "a".into())].into(), ..Selector::default() };
        let nobody = Selector { name: Some("nobody".into()), ..Selector::default() };
        let groups = [
            cidr("wide", "10.0.0.0/8"),
            cidr("narrow", "10.1.0.0/16"),
            SmartGroup::new("pods", vec![pods]),
            SmartGroup::new("team", vec![team]),
            SmartGroup::new("nobody", vec![nobody]),
        ];
        let rules: Vec<Rule> = (1..)
            .zip(rules)
            .map(|(n, rule)| Rule { id: RuleId(n), priority: n, ..rule.clone() })
            .collect();
        let inputs = Inputs {
            inventory: &inventory,
            groups: &groups,
            rules: &rules,
            snat,
            default_action: DefaultAction { action: Action::Deny, log: Log::Both },
            domains: &[],
        };
        let room = 1000;
        let capacity = Capacity {
            rules: room,
            identities: room,
            hosts: room,
            prefixes: room,
            port_classes: room,
            snat_policies: room,
        };
        let (_, diagnostics) = compile(&inputs, &capacity).unwrap();
        let known = "smart group `nobody` is empty";
        let said: Vec<String> = diagnostics.iter().map(ToString::to_string).collect();
        assert_eq!(said[0], known, "said whatever the rules are");
        said[1..].to_vec()
    }

    fn shadowed(rule: &str, by: &str) -> String {
        format!("rule `{rule}` is shadowed: `{by}` before it matches all that it matches")
    }

    fn redundant(rule: &str, by: &str) -> String {
        format!("rule `{rule}` is redundant: without it `{by}` would decide the same")
    }

    #[test]
    fn a_rule_is_shadowed_only_if_sources_destinations_and_ports_are_covered() {
        let deny = |rule: Rule| Rule { action: Action::Deny, ..rule };
        let first = rule("first", &["wide"], &["pods"]);
        let second = rule("second", &["narrow"], &["team"]);
        let any = |ports: &[PortRange]| Rule { ports: ports.to_vec(), ..first.clone() };
        for (what, first, second, expected) in [
            ("all three", first.clone(), deny(second.clone()), true),
            ("by membership, not by name", first.clone(), deny(first.clone()), true),
            ("wider source", second.clone(), deny(first.clone()), false),
            ("wider destination", first.clone(), deny(rule("", &["narrow"], &["anywhere"])), false),
            ("other way round", first.clone(), deny(rule("", &["team"], &["narrow"])), false),
            ("wider ports", any(&[80..=442, 444..=500]), deny(second.clone()), false),
            ("two ranges that meet", any(&[80..=442, 443..=500]), deny(second.clone()), true),
            (
                "all ports, written two ways",
                any(&[0..=65535]),
                deny(Rule { ports: vec![], ..second.clone() }),
                true,
            ),
            (
                "every port is not every protocol",
                Rule { protocol: Protocol::Any, ..any(&[0..=65535]) },
                deny(Rule { protocol: Protocol::Any, ports: vec![], ..second.clone() }),
                false,
            ),
            (
                "tcp only",
                first.clone(),
                deny(Rule { protocol: Protocol::Any, ..second.clone() }),
                false,
            ),
            (
                "any protocol with ports is tcp and udp",
                Rule { protocol: Protocol::Any, ..first.clone() },
                deny(Rule { protocol: Protocol::UDP, ..second.clone() }),
                true,
            ),
            (
                "a monitor rule decides nothing",
                Rule { enforcement: Enforcement::Monitor, ..first.clone() },
                deny(second.clone()),
                false,
            ),
            (
                "a disabled rule is not there",
                Rule { enforcement: Enforcement::Disabled, ..first.clone() },
                deny(second.clone()),
                false,
            ),
            (
                "a monitor rule can be shadowed",
                first.clone(),
                Rule { enforcement: Enforcement::Monitor, ..second.clone() },
                true,
            ),
        ] {
            let first = Rule { name: "first".into(), ..first };
            let second = Rule { name: "second".into(), ..second };
            let expected =
                if expected { vec![shadowed("second", "first")] } else { Vec::<String>::new() };
            assert_eq!(said(&[first, second], &[]), expected, "{what}");
        }
    }

    #[test]
    fn two_rules_that_cover_one_only_together_are_not_reported() {
        let half =
            |name: &str, ports| Rule { ports: vec![ports], ..rule(name, &["wide"], &["pods"]) };
        let deny = Rule { action: Action::Deny, ..half("second", 0..=9) };
        assert_eq!(said(&[half("low", 0..=4), half("high", 5..=9), deny], &[]), [""; 0]);
    }

    #[test]
    fn a_rule_is_redundant_if_a_later_one_decides_the_same_and_nobody_steps_between() {
        let narrow = rule("narrow", &["narrow"], &["team"]);
        let wide = rule("wide", &["wide"], &["pods"]);
        let between = rule("between", &["anywhere"], &["anywhere"]);
        let deny = Rule { action: Action::Deny, ports: vec![443..=444], ..between.clone() };
        let elsewhere = Rule { ports: vec![444..=444], ..deny.clone() };
        let monitor = Rule { enforcement: Enforcement::Monitor, ..between.clone() };
        let expected = vec![redundant("narrow", "wide")];
        let none = Vec::<String>::new();
        for (what, rules, expected) in [
            ("nobody between", vec![narrow.clone(), wide.clone()], &expected),
            ("between, on other ports", vec![narrow.clone(), elsewhere, wide.clone()], &expected),
            ("a monitor rule between", vec![narrow.clone(), monitor, wide.clone()], &none),
            (
                "another action",
                vec![Rule { action: Action::Reject, ..narrow.clone() }, wide.clone()],
                &none,
            ),
            ("another log", vec![Rule { log: Log::Off, ..narrow.clone() }, wide.clone()], &none),
            (
                "another mark",
                vec![Rule { mark: NonZeroU16::new(7), ..narrow.clone() }, wide.clone()],
                &none,
            ),
            (
                "what is only reported",
                vec![Rule { enforcement: Enforcement::Monitor, ..narrow.clone() }, wide.clone()],
                &none,
            ),
        ] {
            assert_eq!(said(&rules, &[]), *expected, "{what}");
        }
        assert_eq!(
            said(&[narrow, deny, wide], &[]),
            [shadowed("wide", "between")],
            "somebody between takes it all"
        );
    }

    #[test]
    fn a_contested_address_is_named_with_its_claimants() {
        let conflict = Conflict {
            domain: DomainId(1),
            prefix: "100.64.0.1/32".parse().unwrap(),
            kind: EndpointKind::Pod,
            claimants: vec!["n/a".into(), "n/b".into()],
        };
        assert_eq!(
            Diagnostic::Contested(conflict).to_string(),
            "address 100.64.0.1/32 of domain 1 is claimed by pods `n/a`, `n/b`, and only rules \
             that deny see it in groups that not all of them are in"
        );
    }

    #[test]
    fn a_rule_or_policy_without_members_at_one_end_never_matches() {
        let snat = |source: Scope| SnatPolicy {
            name: "out".into(),
            id: SnatId(1),
            order: 1,
            source,
            source_ports: None,
            destination: Scope::Any,
            destination_ports: None,
            protocol: Protocol::Any,
            mark: None,
            egress: Egress::Interface("eth0".into()),
            action: SnatAction::NoNat,
        };
        let group = |name: &str| Scope::Group(name.into());
        for (rules, policy, expected) in [
            (
                vec![rule("r", &["nobody"], &["wide"])],
                snat(group("pods")),
                vec!["rule `r` can never match: its source `nobody` is empty"],
            ),
            (
                vec![rule("r", &["wide"], &["nobody", "nobody"])],
                snat(Scope::Any),
                vec!["rule `r` can never match: its destination `nobody`, `nobody` are all empty"],
            ),
            (
                vec![rule("r", &["wide"], &["nobody", "pods"])],
                snat(group("nobody")),
                vec!["snat policy `out` can never match: its source `nobody` is empty"],
            ),
            (vec![rule("r", &["anywhere"], &["public-internet"])], snat(Scope::Any), vec![]),
        ] {
            assert_eq!(said(&rules, &[policy]), expected);
        }
    }
}
