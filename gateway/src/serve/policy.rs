//! The policy in force and what it has done: identities, rules, SNAT.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use api::document::{Document, Named, Rule, SnatPolicy, SnatProtocol};
use api::policy::{
    DefaultStatus, Identities, Identity, Member, PairFill, PoolAddress, RuleStatus, Rules, Snat,
    SnatPolicyStatus,
};
use api::value::{Prefix, Protocol, ProtocolMatch};
use axum::Json;
use axum::extract::State as Extract;
use ipnet::IpNet;
use policy_compiler::{RuleId, SnatId};
use smartgroups::DomainId;
use xdp_abi::config::PolicyWord;
use xdp_abi::count::RuleCount;

use super::problem::{Refusal, blocking};
use super::state::{InForce, State};
use crate::flows::census::{Fill, Lending, Stock};
use crate::flows::session::socket;
use crate::flows::{Census, Directory, Live};

/// Members of an identity that are named.
const SOME: usize = 16;
/// Pairs of outside address and destination that are shown.
pub(crate) const FULLEST: usize = 20;
/// How old the count of sessions may be.
const FRESH: Duration = Duration::from_secs(1);

pub(super) async fn identities<L: Live>(
    Extract(state): Extract<Arc<State<L>>>,
) -> Result<Json<Identities>, Refusal> {
    let names = state.directories.current();
    blocking(move || Json(Identities { identities: members(&names) })).await
}

fn members(names: &Directory) -> Vec<Identity> {
    let (table, inventory) = (names.table(), names.inventory());
    let mut all: BTreeMap<u32, Identity> = BTreeMap::new();
    let conflicts = inventory.conflicts().into_iter();
    let contested: HashMap<(DomainId, IpNet), Vec<String>> =
        conflicts.map(|one| ((one.domain, one.prefix), one.claimants)).collect();
    let mut add = |id: u32, domain: DomainId, net: IpNet| {
        let identity = all.entry(id).or_insert_with(|| Identity {
            id,
            groups: words(&names.groups(id).unwrap_or_default()),
            doubted: words(&names.doubted(id)),
            hosts: 0,
            prefixes: 0,
            members: Vec::new(),
        });
        let is_host = net.prefix_len() == net.max_prefix_len();
        *(if is_host { &mut identity.hosts } else { &mut identity.prefixes }) += 1;
        let claimants = contested.get(&(domain, net));
        if (identity.members.len() < SOME || claimants.is_some())
            && let Some(address) = Prefix::new(net)
        {
            // Whoever owns the first address need not own the prefix.
            let owner = inventory.lookup(domain, net.network());
            let owner = owner.filter(|owner| is_host || owner.addresses.contains(&net));
            let member = Member {
                domain: names.domain(domain.0).to_string(),
                address,
                endpoint: owner.map(|owner| owner.name.to_string()),
                claimants: claimants.cloned().unwrap_or_default(),
            };
            let first = identity.members.partition_point(|other| !other.claimants.is_empty());
            let place = if claimants.is_some() { first } else { identity.members.len() };
            identity.members.insert(place, member);
            identity.members.truncate(SOME);
        }
    };
    let hosts = table.hosts().map(|(domain, host, id)| (domain, IpNet::from(host), id));
    let mut lines: Vec<_> = hosts.chain(table.prefixes()).collect();
    // Hosts before prefixes, each in order.
    lines.sort_unstable_by_key(|(domain, net, _)| {
        (net.prefix_len() < net.max_prefix_len(), *domain, *net)
    });
    for (domain, net, id) in lines {
        add(id, domain, net);
    }
    // Whoever has the identity of the prefix around it has no line of its own in the tables.
    let mut told: HashSet<(DomainId, IpNet)> = HashSet::new();
    for endpoint in inventory.endpoints() {
        let domain = endpoint.domain;
        for net in endpoint.addresses.iter().filter(|net| !table.has(domain, **net)) {
            if told.insert((domain, *net)) {
                let id = table.lookup(domain, net.network());
                add(id.unwrap_or(names.unknown()), domain, *net);
            }
        }
    }
    all.into_values().collect()
}

fn words(names: &[Arc<str>]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

/// What each rule of the bank in force has counted, by its id; zero is the default action.
pub(crate) fn hits<L: Live>(tables: &L) -> std::io::Result<HashMap<u32, RuleCount>> {
    let counts = tables.rule_counts()?;
    let word = PolicyWord(tables.config().policy.load());
    let bits = word.rule_words() * 64;
    let rules = (0..bits).filter_map(|bit| tables.rule(word.bank(), bit));
    let counted = |counter: u32| counts.get(counter as usize).copied().unwrap_or_default();
    // The places after the last rule still hold what another policy had there.
    let by_id = rules.filter(|rule| rule.id != 0).map(|rule| (rule.id, counted(rule.counter)));
    Ok(by_id.chain([(0, counted(0))]).collect())
}

fn documents_of<'a, T: 'a>(
    in_force: &'a InForce,
    pick: impl Fn(&'a Document) -> Option<&'a Named<T>> + 'a,
) -> Vec<&'a Named<T>> {
    in_force.config.documents.iter().filter_map(pick).collect()
}

pub(super) async fn rules<L: Live>(
    Extract(state): Extract<Arc<State<L>>>,
) -> Result<Json<Rules>, Refusal> {
    blocking(move || {
        let hits = hits(&*state.live).map_err(Refusal::kernel)?;
        Ok(Json(rule_rows(&state.in_force(), state.generation(), &hits)))
    })
    .await?
}

fn rule_rows(in_force: &InForce, generation: u32, hits: &HashMap<u32, RuleCount>) -> Rules {
    let mut stated = documents_of(in_force, |document| match document {
        Document::Rule(rule) => Some(rule),
        Document::Endpoint(_)
        | Document::Namespace(_)
        | Document::SmartGroup(_)
        | Document::DefaultAction(_)
        | Document::SnatPolicy(_) => None,
    });
    stated.sort_by_key(|rule| rule.spec.priority);
    let ids = RuleId::assign(stated.iter().map(|rule| rule.name.as_str()));
    let counted = |id: u32| hits.get(&id).copied().unwrap_or_default();
    let row = |rule: &Named<Rule>| {
        let Named { name, spec } = rule;
        let id = ids[name.as_str()].0;
        let RuleCount { hits, bytes } = counted(id);
        RuleStatus {
            id,
            name: name.clone(),
            priority: spec.priority,
            action: spec.action,
            enforcement: spec.enforcement,
            sources: spec.sources.clone(),
            destinations: spec.destinations.clone(),
            protocol: spec.protocol,
            ports: spec.ports.clone(),
            log: spec.log,
            mark: spec.mark.map(std::num::NonZero::get),
            hits,
            bytes,
        }
    };
    let default = in_force.config.documents.iter().find_map(|document| match document {
        Document::DefaultAction(default) => Some((default.spec.action, default.spec.log)),
        Document::Endpoint(_)
        | Document::Namespace(_)
        | Document::SmartGroup(_)
        | Document::Rule(_)
        | Document::SnatPolicy(_) => None,
    });
    let (action, log) = default.unwrap_or((api::document::Action::Deny, api::document::Log::Both));
    let RuleCount { hits, bytes } = counted(0);
    Rules {
        generation,
        rules: stated.into_iter().map(row).collect(),
        default_action: DefaultStatus { action, log, hits, bytes },
    }
}

pub(super) async fn snat<L: Live>(
    Extract(state): Extract<Arc<State<L>>>,
) -> Result<Json<Snat>, Refusal> {
    blocking(move || {
        let tables = &*state.live;
        let census = state.census.no_older_than(FRESH, tables, tables.now());
        let names = state.directories.current();
        Json(Snat {
            policies: policy_rows(&state.in_force(), &census),
            pools: census
                .lendings
                .iter()
                .map(|one| pool_row(tables, one, &names, &census))
                .collect(),
            fill: fill(&names, &census, FULLEST),
        })
    })
    .await
}

fn policy_rows(in_force: &InForce, census: &Census) -> Vec<SnatPolicyStatus> {
    let mut stated = documents_of(in_force, |document| match document {
        Document::SnatPolicy(policy) => Some(policy),
        Document::Endpoint(_)
        | Document::Namespace(_)
        | Document::SmartGroup(_)
        | Document::DefaultAction(_)
        | Document::Rule(_) => None,
    });
    stated.sort_by_key(|policy| policy.spec.order);
    let ids = SnatId::assign(stated.iter().map(|policy| policy.name.as_str()));
    let row = |policy: &Named<SnatPolicy>| {
        let Named { name, spec } = policy;
        let id = ids[name.as_str()].0;
        let scope = |cidr: Option<api::value::Prefix4>, group: Option<&String>| {
            cidr.map(|cidr| cidr.to_string()).or_else(|| group.cloned())
        };
        SnatPolicyStatus {
            id,
            name: name.clone(),
            order: spec.order,
            source: scope(spec.src_cidr, spec.src_group.as_ref()),
            destination: scope(spec.dst_cidr, spec.dst_group.as_ref()),
            protocol: match spec.protocol {
                SnatProtocol::All => ProtocolMatch::Any,
                SnatProtocol::Tcp => ProtocolMatch::Only(Protocol::TCP),
                SnatProtocol::Udp => ProtocolMatch::Only(Protocol::UDP),
                SnatProtocol::Icmp => ProtocolMatch::Only(Protocol::ICMP),
            },
            connection: spec.connection.clone(),
            interface: spec.interface.clone(),
            snat_ips: spec.snat_ips.clone(),
            no_nat: spec.no_nat,
            sessions: census.by_policy.get(&id).copied().unwrap_or(0),
        }
    };
    stated.into_iter().map(row).collect()
}

fn pool_row<L: Live>(
    tables: &L,
    lending: &Lending,
    names: &Directory,
    census: &Census,
) -> PoolAddress {
    PoolAddress {
        policy: policy_name(names, lending.policy),
        address: lending.address,
        lendable: lending.ports,
        shared_with_host: tables.is_local(xdp::address::V4(lending.address.octets())),
        sessions: census.by_address.get(&(lending.policy, lending.address)).copied().unwrap_or(0),
    }
}

fn policy_name(names: &Directory, id: u32) -> String {
    names.snat(id).map_or_else(|| format!("#{id}"), |name| name.to_string())
}

/// The fullest pairs of outside address and destination, once for each range that policies lend of
/// the address: a policy can be out of ports while another has many.
pub(crate) fn fill(names: &Directory, census: &Census, most: usize) -> Vec<PairFill> {
    let row = |Fill { stock: Stock { pair, lendable }, used, size }: Fill| {
        let outside = Ipv4Addr::from(pair.outside);
        let lend = census
            .lendings
            .iter()
            .filter(|one| one.address == outside && one.lendable == lendable)
            .map(|one| policy_name(names, one.policy));
        PairFill {
            policies: lend.collect(),
            outside,
            protocol: Protocol(u8::try_from(pair.protocol).unwrap_or(u8::MAX)),
            destination: socket(pair.destination, pair.destination_port),
            used,
            lendable: size,
        }
    };
    census.fullest(most).into_iter().map(row).collect()
}
