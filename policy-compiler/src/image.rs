//! A compiled policy: what crosses the fabric and what a gateway lowers to its own tables.
//!
//! Nothing here has the layout of a kernel map. Positions (bits, indices) hold within one image;
//! ids hold for ever.

use std::net::IpAddr;
use std::num::NonZeroU16;

use ipnet::IpNet;
use smartgroups::{DomainId, GroupId, longest_match};

use crate::bitset::BitSet;
use crate::compile::Amendment;
use crate::model::{
    Action, DefaultAction, Egress, Evaluation, Flow, Log, PortRange, Protocol, RuleId, SnatAction,
    SnatId, WayOut, has_ports,
};
use crate::ports::PortClasses;

/// A whole policy with all that it depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Rules in the order in which they are judged; the index is the bit. Disabled ones are absent.
    pub rules: Vec<ImageRule>,
    /// What happens to a flow that no rule decides.
    pub default_action: DefaultAction,
    /// SNAT policies in the order in which they are asked; the index is the bit. At most 256.
    pub snat: Vec<ImageSnat>,
    /// Who there is. The first is an address that nothing is known of: only `anywhere` holds it.
    pub identities: Vec<Identity>,
    /// Single addresses and the index of their identity, sorted.
    pub hosts: Vec<(DomainId, IpAddr, u32)>,
    /// Prefixes and the index of their identity, sorted; the longest one counts. What no host and
    /// no prefix holds has the first identity.
    pub prefixes: Vec<(DomainId, IpNet, u32)>,
    /// Which rules admit a protocol and destination port.
    pub port_classes: PortClasses,
    /// The groups by name, sorted by id, for records and explanations.
    pub groups: Vec<ImageGroup>,
}

/// A rule beyond what the bit sets say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRule {
    /// Its id.
    pub id: RuleId,
    /// Its name.
    pub name: String,
    /// Its priority.
    pub priority: u32,
    /// What it does.
    pub action: Action,
    /// What is recorded.
    pub log: Log,
    /// It never decides, it is only reported.
    pub monitor: bool,
    /// The mark it sets.
    pub mark: Option<NonZeroU16>,
}

/// A SNAT policy beyond what the bit sets say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSnat {
    /// Its id.
    pub id: SnatId,
    /// Its name.
    pub name: String,
    /// Its order.
    pub order: u32,
    /// Source ports; TCP and UDP only.
    pub source_ports: Option<PortRange>,
    /// Destination ports; TCP and UDP only.
    pub destination_ports: Option<PortRange>,
    /// Protocol.
    pub protocol: Protocol,
    /// Mark of the permitting rule.
    pub mark: Option<NonZeroU16>,
    /// Way out.
    pub egress: Egress,
    /// What is done.
    pub action: SnatAction,
}

/// Addresses that policy cannot tell apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Follows from the groups and the doubted ones alone; never zero. Identities that differ only
    /// in the prefixes of SNAT policies share it.
    pub id: u32,
    /// The groups, sorted by id.
    pub groups: Vec<GroupId>,
    /// Groups that only some claimants of its address are in, sorted by id: rules that deny or
    /// reject count them in, rules that permit do not.
    pub doubted: Vec<GroupId>,
    /// Rules that it may be the source of.
    pub source_rules: BitSet,
    /// Rules that it may be the destination of.
    pub destination_rules: BitSet,
    /// SNAT policies that it may be the source of.
    pub snat_source: BitSet,
    /// SNAT policies that it may be the destination of.
    pub snat_destination: BitSet,
}

/// The name of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageGroup {
    /// Its id.
    pub id: GroupId,
    /// Its name.
    pub name: String,
}

impl Image {
    /// Who has an address.
    pub fn identity(&self, domain: DomainId, address: IpAddr) -> &Identity {
        let index = longest_match(&self.hosts, &self.prefixes, domain, address).unwrap_or(0);
        &self.identities[index as usize]
    }

    /// Brings an amendment of this very image in.
    pub fn amend(&mut self, amendment: &Amendment) {
        self.identities.extend_from_slice(&amendment.identities);
        for (domain, address, index) in &amendment.hosts {
            put(&mut self.hosts, *domain, *address, *index);
        }
        for (domain, prefix, index) in &amendment.prefixes {
            put(&mut self.prefixes, *domain, *prefix, *index);
        }
    }

    /// What the rules say of a flow.
    pub fn judge(&self, flow: &Flow) -> Evaluation {
        let source = self.identity(flow.source.0, flow.source.1);
        let destination = self.identity(flow.destination.0, flow.destination.1);
        let class = self.port_classes.class_of(flow.protocol, flow.destination_port);
        let admitted = &self.port_classes.classes[usize::from(class)];
        let mut evaluation = Evaluation {
            action: self.default_action.action,
            log: self.default_action.log,
            rule: None,
            mark: None,
            would_match: None,
            source_groups: source.groups.clone(),
            destination_groups: destination.groups.clone(),
        };
        let matches =
            BitSet::common(&source.source_rules, &destination.destination_rules, admitted);
        for rule in matches.map(|bit| &self.rules[bit]) {
            if rule.monitor {
                evaluation.would_match.get_or_insert(rule.id);
                continue;
            }
            evaluation.action = rule.action;
            evaluation.log = rule.log;
            evaluation.rule = Some(rule.id);
            evaluation.mark = rule.mark;
            break;
        }
        evaluation
    }

    /// The SNAT policy for a flow that was permitted with `mark` and leaves by `way_out`.
    pub fn snat_for(
        &self,
        flow: &Flow,
        mark: Option<NonZeroU16>,
        way_out: &WayOut<'_>,
    ) -> Option<&ImageSnat> {
        let source = &self.identity(flow.source.0, flow.source.1).snat_source;
        let destination = &self.identity(flow.destination.0, flow.destination.1).snat_destination;
        BitSet::common(source, destination, destination)
            .map(|bit| &self.snat[bit])
            .find(|policy| policy.includes(flow, mark, way_out))
    }
}

/// Brings the entry of a sorted table to what it is now.
fn put<K: Ord + Copy>(
    table: &mut Vec<(DomainId, K, u32)>,
    domain: DomainId,
    key: K,
    index: Option<u32>,
) {
    match (table.binary_search_by_key(&(domain, key), |(d, k, _)| (*d, *k)), index) {
        (Ok(at), Some(index)) => table[at].2 = index,
        (Ok(at), None) => drop(table.remove(at)),
        (Err(at), Some(index)) => table.insert(at, (domain, key, index)),
        (Err(_), None) => {}
    }
}

impl ImageSnat {
    /// Whether a flow between the right ends is meant.
    fn includes(&self, flow: &Flow, mark: Option<NonZeroU16>, way_out: &WayOut<'_>) -> bool {
        let within = |ports: &Option<PortRange>, port| {
            ports.as_ref().is_none_or(|ports| has_ports(flow.protocol) && ports.contains(port))
        };
        self.protocol.includes(flow.protocol)
            && within(&self.source_ports, &flow.source_port)
            && within(&self.destination_ports, &flow.destination_port)
            && (self.mark.is_none() || self.mark == mark)
            && self.egress.includes(way_out)
    }
}
