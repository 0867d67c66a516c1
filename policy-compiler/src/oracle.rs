//! The slow twin of the image: what the documents say, read one after the other.
//!
//! No bit sets, no classes, no membership: each rule is asked in turn, each of its groups is asked
//! whether it holds the address, and each selector walks the inventory.

use std::net::IpAddr;
use std::num::NonZeroU16;

use smartgroups::{DomainId, Truth, groups_of, holds};

use crate::model::{
    Action, Enforcement, Evaluation, Flow, Inputs, PortRange, Scope, SnatPolicy, WayOut, has_ports,
};
use crate::ports::admits;

/// What the rules say of a flow.
pub fn evaluate(inputs: &Inputs<'_>, flow: &Flow) -> Evaluation {
    let groups = |(domain, address)| groups_of(inputs.inventory, inputs.groups, domain, address);
    let mut evaluation = Evaluation {
        action: inputs.default_action.action,
        log: inputs.default_action.log,
        rule: None,
        mark: None,
        would_match: None,
        source_groups: groups(flow.source),
        destination_groups: groups(flow.destination),
    };
    let mut rules: Vec<_> = inputs.rules.iter().collect();
    rules.sort_by_key(|rule| rule.priority);
    for rule in rules {
        let is_in = |names: &[String], end| {
            names.iter().any(|name| match rule.action {
                Action::Permit => of_group(inputs, name, end) == Truth::Yes,
                Action::Deny | Action::Reject => of_group(inputs, name, end) != Truth::No,
            })
        };
        let matches = is_in(&rule.sources, flow.source)
            && is_in(&rule.destinations, flow.destination)
            && admits(rule, flow.protocol, flow.destination_port);
        match rule.enforcement {
            Enforcement::Enforce if matches => {
                evaluation.action = rule.action;
                evaluation.log = rule.log;
                evaluation.rule = Some(rule.id);
                evaluation.mark = rule.mark;
                return evaluation;
            }
            Enforcement::Monitor if matches => {
                evaluation.would_match.get_or_insert(rule.id);
            }
            Enforcement::Enforce | Enforcement::Monitor | Enforcement::Disabled => {}
        }
    }
    evaluation
}

/// The SNAT policy for a flow that was permitted with `mark` and leaves by `way_out`.
pub fn evaluate_snat<'a>(
    inputs: &Inputs<'a>,
    flow: &Flow,
    mark: Option<NonZeroU16>,
    way_out: &WayOut<'_>,
) -> Option<&'a SnatPolicy> {
    let in_scope = |scope: &Scope, end: (DomainId, IpAddr)| match scope {
        Scope::Any => true,
        Scope::Cidr(prefix) => prefix.contains(&end.1),
        Scope::Group(name) => of_group(inputs, name, end) == Truth::Yes,
    };
    let in_ports = |ports: &Option<PortRange>, port: u16| match ports {
        None => true,
        Some(ports) => has_ports(flow.protocol) && ports.contains(&port),
    };
    let matches = |policy: &&SnatPolicy| {
        in_scope(&policy.source, flow.source)
            && in_scope(&policy.destination, flow.destination)
            && policy.protocol.includes(flow.protocol)
            && in_ports(&policy.source_ports, flow.source_port)
            && in_ports(&policy.destination_ports, flow.destination_port)
            && (policy.mark.is_none() || policy.mark == mark)
            && policy.egress.includes(way_out)
    };
    inputs.snat.iter().filter(matches).min_by_key(|policy| policy.order)
}

/// Whether the group of a name holds an address.
fn of_group(inputs: &Inputs<'_>, name: &str, (domain, address): (DomainId, IpAddr)) -> Truth {
    holds(inputs.inventory, inputs.groups, name, domain, address)
}
