//! Hands what was stated to the crates that compile it: facts and groups for `smartgroups`, rules
//! and SNAT policies for `policy-compiler`.
//!
//! Everything here has been checked by [`super::Config::parse`], where a name that does not exist
//! is an error with a line. So a conversion has no errors of its own: an endpoint of a domain
//! that the file does not have is left out, as discovery would not have seen it either.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;

use api::document::{
    self, Document, Endpoint, EndpointType, FABRIC, MatchExpression, Named, Operator, Selector,
    SelectorType, SnatProtocol,
};
use api::value::{AddressRange, Prefix4, ProtocolMatch};
use ipnet::{IpNet, Ipv4Net};
use policy_compiler::{
    Action, Capacity, CompileError, DefaultAction, Diagnostic, Egress, Enforcement, Image, Log,
    Protocol, Rule, RuleId, Scope, SnatAction, SnatId, SnatPolicy,
};
use smartgroups::{
    DomainId, EndpointKind, GroupId, Inventory, Labels, NamespaceId, SmartGroup, Text, Workload,
};
use smartgroups_discovery::dns::DnsName;
use xdp_abi::policy::SNAT_POLICIES;

use super::{Gateway, SNAT_PORTS, Tables};

/// Prefixes whose addresses no host can have, so that no policy can lend them.
pub(crate) const UNUSABLE: [Ipv4Net; 3] = [
    Ipv4Net::new_assert(Ipv4Addr::new(0, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 3),
];

/// What `smartgroups` resolves.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// The endpoints of the file.
    pub inventory: Inventory,
    /// The groups of the file, without the built-in ones.
    pub groups: Vec<SmartGroup>,
    /// The routing domains of the gateway, sorted.
    pub domains: Vec<DomainId>,
}

/// The number of each routing domain by its name.
#[must_use]
pub fn domains(gateway: &Gateway) -> HashMap<&str, DomainId> {
    let stated = gateway.domains.iter().map(|d| (d.name.as_str(), DomainId(d.number.get())));
    std::iter::once((FABRIC, DomainId::FABRIC)).chain(stated).collect()
}

/// What the tables have room for.
#[must_use]
pub fn capacity(tables: &Tables) -> Capacity {
    Capacity {
        rules: tables.rules as usize,
        identities: tables.identities as usize,
        hosts: tables.endpoints as usize,
        prefixes: tables.prefixes as usize,
        port_classes: tables.port_classes as usize,
        snat_policies: SNAT_POLICIES,
    }
}

/// Endpoints and groups of the documents.
#[must_use]
pub fn inputs(gateway: &Gateway, documents: &[Document]) -> Inputs {
    let domains = domains(gateway);
    let mut inventory = Inventory::new();
    let mut stated = Vec::new();
    for document in documents {
        match document {
            Document::Endpoint(named) => {
                if let Some(endpoint) = endpoint(&domains, named) {
                    inventory.insert(endpoint);
                }
            }
            Document::Namespace(Named { spec, .. }) => {
                let cluster = spec.cluster.as_deref().map(Text::from);
                let id = NamespaceId { cluster, name: spec.namespace.as_str().into() };
                inventory.insert_namespace(id, labels(&spec.labels));
            }
            Document::SmartGroup(named) => stated.push(named),
            Document::Rule(_) | Document::DefaultAction(_) | Document::SnatPolicy(_) => {}
        }
    }
    let ids = GroupId::assign(stated.iter().map(|named| named.name.as_str()));
    let selectors = |stated: &[Selector]| {
        stated.iter().filter_map(|one| selector(&domains, one)).collect::<Vec<_>>()
    };
    let groups = stated.iter().map(|named| SmartGroup {
        name: named.name.clone(),
        id: ids[named.name.as_str()],
        selectors: selectors(&named.spec.selectors),
        exclude: selectors(&named.spec.exclude),
    });
    let mut numbers: Vec<DomainId> = domains.values().copied().collect();
    numbers.sort_unstable();
    Inputs { groups: groups.collect(), inventory, domains: numbers }
}

/// What `policy-compiler` compiles, beside [`Inputs`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The rules of the file, in its order.
    pub rules: Vec<Rule>,
    /// The SNAT policies of the file, in its order.
    pub snat: Vec<SnatPolicy>,
    /// What happens where no rule matches.
    pub default_action: DefaultAction,
}

/// Rules and SNAT policies of the documents.
///
/// Without a `DefaultAction`, which [`super::Config::parse`] insists on, nothing is let through.
#[must_use]
pub fn policy(documents: &[Document]) -> Policy {
    let mut default_action = DefaultAction { action: Action::Deny, log: Log::Both };
    let mut rules = Vec::new();
    let mut policies = Vec::new();
    for document in documents {
        match document {
            Document::Rule(named) => rules.push(named),
            Document::SnatPolicy(named) => policies.push(named),
            Document::DefaultAction(Named { spec, .. }) => {
                default_action = DefaultAction { action: action(spec.action), log: log(spec.log) };
            }
            Document::Endpoint(_) | Document::Namespace(_) | Document::SmartGroup(_) => {}
        }
    }
    let ids = RuleId::assign(rules.iter().map(|named| named.name.as_str()));
    let rules = rules.iter().map(|named| rule(named, ids[named.name.as_str()])).collect();
    let ids = SnatId::assign(policies.iter().map(|named| named.name.as_str()));
    let snat = policies.iter().filter_map(|named| snat(named, ids[named.name.as_str()])).collect();
    Policy { rules, snat, default_action }
}

/// Rules, groups and room for the control plane, and who is stated.
#[must_use]
pub fn plane(gateway: &Gateway, documents: &[Document]) -> (controller::Policy, Inventory) {
    let Inputs { inventory, groups, domains } = inputs(gateway, documents);
    let Policy { rules, snat, default_action } = policy(documents);
    let capacity = capacity(&gateway.tables);
    (controller::Policy { groups, rules, snat, default_action, domains, capacity }, inventory)
}

/// What the compiler makes of the documents.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The tables.
    pub image: Image,
    /// Who there is.
    pub inventory: Inventory,
    /// What can hardly be meant; [`super::Config::warnings`] has it with its places.
    pub diagnostics: Vec<Diagnostic>,
}

/// Compiles the documents.
///
/// # Errors
/// What does not fit the capacity; [`super::Config::parse`] refuses everything else.
pub fn compile(
    gateway: &Gateway,
    documents: &[Document],
    capacity: &Capacity,
) -> Result<Compiled, CompileError> {
    let inputs = inputs(gateway, documents);
    let policy = policy(documents);
    let (image, diagnostics) = policy_compiler::compile(
        &policy_compiler::Inputs {
            inventory: &inputs.inventory,
            groups: &inputs.groups,
            rules: &policy.rules,
            snat: &policy.snat,
            default_action: policy.default_action,
            domains: &inputs.domains,
        },
        capacity,
    )?;
    Ok(Compiled { image, inventory: inputs.inventory, diagnostics })
}

fn action(action: document::Action) -> Action {
    match action {
        document::Action::Permit => Action::Permit,
        document::Action::Deny => Action::Deny,
        document::Action::Reject => Action::Reject,
    }
}

fn log(log: document::Log) -> Log {
    match log {
        document::Log::Off => Log::Off,
        document::Log::Start => Log::Start,
        document::Log::End => Log::End,
        document::Log::Both => Log::Both,
    }
}

fn ports(range: api::value::PortRange) -> policy_compiler::PortRange {
    range.first()..=range.last()
}

fn rule(Named { name, spec }: &Named<document::Rule>, id: RuleId) -> Rule {
    Rule {
        name: name.clone(),
        id,
        priority: spec.priority,
        action: action(spec.action),
        sources: spec.sources.clone(),
        destinations: spec.destinations.clone(),
        protocol: match spec.protocol {
            ProtocolMatch::Any => Protocol::Any,
            ProtocolMatch::Only(protocol) => Protocol::Number(protocol.0),
        },
        ports: spec.ports.iter().copied().map(ports).collect(),
        log: log(spec.log),
        enforcement: match spec.enforcement {
            document::Enforcement::Enforce => Enforcement::Enforce,
            document::Enforcement::Monitor => Enforcement::Monitor,
            document::Enforcement::Disabled => Enforcement::Disabled,
        },
        mark: spec.mark,
        description: spec.description.clone().unwrap_or_default(),
    }
}

fn scope(cidr: Option<Prefix4>, group: Option<&String>) -> Scope {
    match (cidr, group) {
        (Some(cidr), _) => Scope::Cidr(IpNet::V4(cidr.net())),
        (None, Some(group)) => Scope::Group(group.clone()),
        (None, None) => Scope::Any,
    }
}

/// `None` without a way out, which [`super::Config::parse`] insists on.
fn snat(Named { name, spec }: &Named<document::SnatPolicy>, id: SnatId) -> Option<SnatPolicy> {
    let egress = match (&spec.connection, &spec.interface) {
        (Some(connection), _) => Egress::Connection(connection.clone()),
        (None, Some(interface)) => Egress::Interface(interface.clone()),
        (None, None) => return None,
    };
    let action = if spec.no_nat {
        SnatAction::NoNat
    } else {
        SnatAction::Snat {
            addresses: spec.snat_ips.iter().copied().flat_map(AddressRange::addresses).collect(),
            ports: ports(spec.snat_ports.unwrap_or(SNAT_PORTS)),
        }
    };
    Some(SnatPolicy {
        name: name.clone(),
        id,
        order: spec.order,
        source: scope(spec.src_cidr, spec.src_group.as_ref()),
        source_ports: spec.src_port.map(ports),
        destination: scope(spec.dst_cidr, spec.dst_group.as_ref()),
        destination_ports: spec.dst_port.map(ports),
        protocol: match spec.protocol {
            SnatProtocol::All => Protocol::Any,
            SnatProtocol::Tcp => Protocol::TCP,
            SnatProtocol::Udp => Protocol::UDP,
            SnatProtocol::Icmp => Protocol::ICMP,
        },
        mark: spec.mark,
        egress,
        action,
    })
}

fn endpoint(
    domains: &HashMap<&str, DomainId>,
    Named { name, spec }: &Named<Endpoint>,
) -> Option<smartgroups::Endpoint> {
    let text = |text: &Option<String>| text.as_deref().map(Text::from);
    Some(smartgroups::Endpoint {
        name: name.as_str().into(),
        kind: match spec.kind {
            EndpointType::Pod => EndpointKind::Pod,
            EndpointType::Node => EndpointKind::Node,
            EndpointType::Service => EndpointKind::Service,
            EndpointType::Vm => EndpointKind::Vm,
            EndpointType::Interface => EndpointKind::Interface,
            EndpointType::Subnet => EndpointKind::Subnet,
            EndpointType::Vpc => EndpointKind::Vpc,
            EndpointType::Site => EndpointKind::Site,
            EndpointType::External => EndpointKind::External,
        },
        given_name: None,
        domain: *domains.get(spec.domain.as_str())?,
        addresses: spec.addresses.iter().map(|prefix| prefix.net()).collect(),
        id: text(&spec.id),
        cluster: text(&spec.cluster),
        namespace: text(&spec.namespace),
        services: text(&spec.service).into_iter().collect(),
        service_account: text(&spec.service_account),
        workload: spec.workload.as_ref().map(|workload| Workload {
            kind: workload.kind.as_str().into(),
            name: workload.name.as_str().into(),
        }),
        account: text(&spec.account),
        region: text(&spec.region),
        zone: text(&spec.zone),
        labels: labels(&spec.labels),
    })
}

fn labels(stated: &BTreeMap<String, String>) -> Labels {
    stated.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect()
}

fn selector(
    domains: &HashMap<&str, DomainId>,
    selector: &Selector,
) -> Option<smartgroups::Selector> {
    let domain = match &selector.domain {
        Some(name) => Some(*domains.get(name.as_str())?),
        None => None,
    };
    let fqdn = match &selector.fqdn {
        Some(fqdn) => Some(DnsName::new(fqdn).ok()?.to_string()),
        None => None,
    };
    Some(smartgroups::Selector {
        group: selector.group.clone(),
        cidr: selector.cidr.map(|prefix| prefix.net()),
        domain,
        kind: selector.kind.map(|kind| match kind {
            SelectorType::K8s | SelectorType::Pod => EndpointKind::Pod,
            SelectorType::Node | SelectorType::K8sNode => EndpointKind::Node,
            SelectorType::Service => EndpointKind::Service,
            SelectorType::Vm => EndpointKind::Vm,
            SelectorType::Interface => EndpointKind::Interface,
            SelectorType::Subnet => EndpointKind::Subnet,
            SelectorType::Vpc => EndpointKind::Vpc,
            SelectorType::Site => EndpointKind::Site,
            SelectorType::External => EndpointKind::External,
        }),
        name: selector.name.clone(),
        pod: selector.k8s_pod.clone(),
        site: selector.site.clone(),
        fqdn,
        id: selector.id.clone(),
        cluster: selector.k8s_cluster_id.clone(),
        namespace: selector.k8s_namespace.clone(),
        service: selector.k8s_service.clone(),
        service_account: selector.k8s_service_account.clone(),
        workload_kind: selector.k8s_workload_kind.clone(),
        workload: selector.k8s_workload.clone(),
        account: selector.account.clone(),
        region: selector.region.clone(),
        zone: selector.zone.clone(),
        labels: selector.labels.clone(),
        expressions: selector.match_expressions.iter().map(expression).collect(),
        namespace_labels: selector.namespace_labels.clone(),
        namespace_expressions: {
            selector.namespace_match_expressions.iter().map(expression).collect()
        },
    })
}

fn expression(one: &MatchExpression) -> smartgroups::Expression {
    smartgroups::Expression {
        key: one.key.clone(),
        operator: match one.operator {
            Operator::In => smartgroups::Operator::In,
            Operator::NotIn => smartgroups::Operator::NotIn,
            Operator::Exists => smartgroups::Operator::Exists,
            Operator::DoesNotExist => smartgroups::Operator::DoesNotExist,
        },
        values: one.values.iter().cloned().collect(),
    }
}
