//! What can be refused by looking at the inputs alone.
//!
//! A disabled rule is checked like any other, so that switching it on cannot fail.

use std::collections::{HashMap, HashSet};

use smartgroups::{ANYWHERE, PUBLIC_INTERNET};

use crate::error::{CompileError, Side};
use crate::model::{Action, Inputs, PortRange, Protocol, Rule, Scope, SnatAction, SnatPolicy};

/// Refuses inputs that cannot be meant. The groups among themselves are checked where they are
/// resolved.
pub(crate) fn validate(inputs: &Inputs<'_>) -> Result<(), CompileError> {
    let groups: HashSet<&str> = inputs
        .groups
        .iter()
        .map(|group| group.name.as_str())
        .chain([ANYWHERE, PUBLIC_INTERNET])
        .collect();
    rules(inputs.rules, &groups)?;
    snat(inputs.snat, &groups)
}

fn rules(rules: &[Rule], groups: &HashSet<&str>) -> Result<(), CompileError> {
    let mut names = HashSet::new();
    let mut ids = HashMap::new();
    let mut priorities = HashMap::new();
    for rule in rules {
        let name = || rule.name.clone();
        if !names.insert(&rule.name) {
            return Err(CompileError::DuplicateRule { rule: name() });
        }
        if rule.id.0 == 0 {
            return Err(CompileError::ZeroRuleId { rule: name() });
        }
        if let Some(other) = ids.insert(rule.id, &rule.name) {
            let (other, id) = (other.clone(), rule.id.0);
            return Err(CompileError::DuplicateRuleId { rule: name(), other, id });
        }
        if let Some(other) = priorities.insert(rule.priority, &rule.name) {
            let (other, priority) = (other.clone(), rule.priority);
            return Err(CompileError::EqualPriorities { rule: name(), other, priority });
        }
        for (side, named) in
            [(Side::Source, &rule.sources), (Side::Destination, &rule.destinations)]
        {
            if named.is_empty() {
                return Err(CompileError::NoGroups { rule: name(), side });
            }
            if let Some(group) = named.iter().find(|group| !groups.contains(group.as_str())) {
                return Err(CompileError::UnknownGroup { rule: name(), group: group.clone() });
            }
        }
        if rule.mark.is_some() && rule.action != Action::Permit {
            return Err(CompileError::MarkWithoutPermit { rule: name() });
        }
        if let Some(protocol) = portless(rule.protocol, !rule.ports.is_empty()) {
            return Err(CompileError::PortsWithoutProtocol { rule: name(), protocol });
        }
        if let Some((first, last)) = rule.ports.iter().find_map(nothing_in) {
            return Err(CompileError::EmptyPortRange { rule: name(), first, last });
        }
    }
    Ok(())
}

fn snat(policies: &[SnatPolicy], groups: &HashSet<&str>) -> Result<(), CompileError> {
    let mut names = HashSet::new();
    let mut ids = HashMap::new();
    let mut orders = HashMap::new();
    for policy in policies {
        let name = || policy.name.clone();
        if !names.insert(&policy.name) {
            return Err(CompileError::DuplicateSnat { policy: name() });
        }
        if policy.id.0 == 0 {
            return Err(CompileError::ZeroSnatId { policy: name() });
        }
        if let Some(other) = ids.insert(policy.id, &policy.name) {
            let (other, id) = (other.clone(), policy.id.0);
            return Err(CompileError::DuplicateSnatId { policy: name(), other, id });
        }
        if let Some(other) = orders.insert(policy.order, &policy.name) {
            let (other, order) = (other.clone(), policy.order);
            return Err(CompileError::EqualOrders { policy: name(), other, order });
        }
        for scope in [&policy.source, &policy.destination] {
            match scope {
                Scope::Group(group) if !groups.contains(group.as_str()) => {
                    let group = group.clone();
                    return Err(CompileError::UnknownSnatGroup { policy: name(), group });
                }
                Scope::Any | Scope::Cidr(_) | Scope::Group(_) => {}
            }
        }
        let matched = [&policy.source_ports, &policy.destination_ports].into_iter().flatten();
        if let Some(protocol) = portless(policy.protocol, matched.clone().next().is_some()) {
            return Err(CompileError::SnatPortsWithoutProtocol { policy: name(), protocol });
        }
        let outside = match &policy.action {
            SnatAction::NoNat => None,
            SnatAction::Snat { addresses, .. } if addresses.is_empty() => {
                return Err(CompileError::NoAddresses { policy: name() });
            }
            SnatAction::Snat { ports, .. } => Some(ports),
        };
        if let Some((first, last)) = matched.chain(outside).find_map(nothing_in) {
            return Err(CompileError::EmptySnatPortRange { policy: name(), first, last });
        }
    }
    Ok(())
}

/// The protocol, if ports are named and it has none.
fn portless(protocol: Protocol, ports: bool) -> Option<u8> {
    match protocol {
        Protocol::Number(number) if ports && !protocol.may_have_ports() => Some(number),
        Protocol::Number(_) | Protocol::Any => None,
    }
}

/// Both ends of a range, if there is nothing between them.
fn nothing_in(range: &PortRange) -> Option<(u16, u16)> {
    range.is_empty().then(|| (*range.start(), *range.end()))
}
