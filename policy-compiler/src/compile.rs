//! Inputs to image, in one pass from groups over identities to bit sets.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ipnet::IpNet;
use smartgroups::{
    ANYWHERE, DomainId, ExtraPrefix, GroupId, GroupSet, PUBLIC_INTERNET, resolve,
    stable_id_of_bytes,
};

use crate::bitset::BitSet;
use crate::error::{Capacity, CompileError, Table};
use crate::image::{Identity, Image, ImageGroup, ImageRule, ImageSnat};
use crate::lint::{Diagnostic, lint};
use crate::model::{Action, Enforcement, Inputs, Rule, Scope, SnatPolicy};
use crate::ports::PortClasses;
use crate::validate::validate;

/// SNAT policies that an image may hold, whatever a gateway has room for: their bit sets are read
/// whole for every new flow.
const SNAT_POLICIES: usize = 256;

/// Compiles a policy and says what looks unintended in it.
///
/// The same inputs give the same image, in whatever order they are listed.
pub fn compile(
    inputs: &Inputs<'_>,
    capacity: &Capacity,
) -> Result<(Image, Vec<Diagnostic>), CompileError> {
    validate(inputs)?;
    let mut rules: Vec<&Rule> =
        inputs.rules.iter().filter(|rule| rule.enforcement != Enforcement::Disabled).collect();
    rules.sort_unstable_by_key(|rule| rule.priority);
    let mut snat: Vec<&SnatPolicy> = inputs.snat.iter().collect();
    snat.sort_unstable_by_key(|policy| policy.order);
    fits(Table::Rules, rules.len(), capacity.rules)?;
    fits(Table::SnatPolicies, snat.len(), capacity.snat_policies.min(SNAT_POLICIES))?;

    let tags = tags(&snat);
    let membership = resolve(inputs.inventory, inputs.groups, &extra_prefixes(inputs, &tags))?;
    fits(Table::Hosts, membership.hosts.len(), capacity.hosts)?;
    fits(Table::Prefixes, membership.prefixes.len(), capacity.prefixes)?;
    fits(Table::Identities, membership.sets.len(), capacity.identities)?;

    let port_classes = PortClasses::new(&rules, capacity.port_classes).map_err(|need| {
        let room = capacity.port_classes.min(1 << 16);
        CompileError::NoRoom { table: Table::PortClasses, need, room }
    })?;
    let image = Image {
        identities: identities(inputs, &membership.sets, &rules, &snat, &tags),
        hosts: membership.hosts,
        prefixes: membership.prefixes,
        port_classes,
        default_action: inputs.default_action,
        rules: rules.iter().map(|rule| image_rule(rule)).collect(),
        snat: snat.iter().map(|policy| image_snat(policy)).collect(),
        groups: image_groups(inputs),
    };
    let diagnostics = lint(inputs, &image, &rules, &snat);
    Ok((image, diagnostics))
}

fn fits(table: Table, need: usize, room: usize) -> Result<(), CompileError> {
    if need > room { Err(CompileError::NoRoom { table, need, room }) } else { Ok(()) }
}

/// The prefixes that SNAT policies match on, each with its tag.
fn tags(snat: &[&SnatPolicy]) -> BTreeMap<IpNet, u32> {
    let scopes = snat.iter().flat_map(|policy| [&policy.source, &policy.destination]);
    let prefixes: BTreeSet<IpNet> = scopes
        .filter_map(|scope| match scope {
            Scope::Cidr(prefix) => Some(prefix.trunc()),
            Scope::Any | Scope::Group(_) => None,
        })
        .collect();
    prefixes.into_iter().zip(0..).collect()
}

/// A SNAT policy sees the address that a packet carries, so its prefixes split every domain.
fn extra_prefixes(inputs: &Inputs<'_>, tags: &BTreeMap<IpNet, u32>) -> Vec<ExtraPrefix> {
    let mut domains = inputs.inventory.domains();
    domains.insert(DomainId::FABRIC);
    domains.extend(inputs.domains);
    let selectors =
        inputs.groups.iter().flat_map(|group| group.selectors.iter().chain(&group.exclude));
    domains.extend(selectors.filter_map(|selector| selector.scope()));
    domains
        .iter()
        .flat_map(|domain| {
            let at = |(prefix, tag): (&IpNet, &u32)| ExtraPrefix {
                domain: *domain,
                prefix: *prefix,
                tag: *tag,
            };
            tags.iter().map(at)
        })
        .collect()
}

/// Bits of rules or policies, by what an address must have to be one end of them.
struct Bits<K> {
    length: usize,
    by: HashMap<K, BitSet>,
}

impl<K: std::hash::Hash + Eq> Bits<K> {
    fn new(length: usize) -> Self {
        Self { length, by: HashMap::new() }
    }

    fn insert(&mut self, key: K, bit: usize) {
        let length = self.length;
        self.by.entry(key).or_insert_with(|| BitSet::new(length)).insert(bit);
    }

    fn of(&self, keys: impl Iterator<Item = K>) -> BitSet {
        let mut bits = BitSet::new(self.length);
        for set in keys.filter_map(|key| self.by.get(&key)) {
            bits.union_with(set);
        }
        bits
    }
}

/// What puts an address at one end of a SNAT policy.
#[derive(PartialEq, Eq, Hash)]
enum End {
    Group(GroupId),
    Prefix(u32),
}

impl End {
    fn of(set: &GroupSet) -> impl Iterator<Item = Self> {
        let groups = set.groups.iter().map(|group| Self::Group(*group));
        groups.chain(set.extras.iter().map(|tag| Self::Prefix(*tag)))
    }
}

fn identities(
    inputs: &Inputs<'_>,
    sets: &[GroupSet],
    rules: &[&Rule],
    snat: &[&SnatPolicy],
    tags: &BTreeMap<IpNet, u32>,
) -> Vec<Identity> {
    let group_ids = group_ids(inputs);
    // By group, and by whether the address may also be in doubt about it.
    let mut sources = Bits::new(rules.len());
    let mut destinations = Bits::new(rules.len());
    for (bit, rule) in rules.iter().enumerate() {
        let refuses = rule.action != Action::Permit;
        for (bits, names) in
            [(&mut sources, &rule.sources), (&mut destinations, &rule.destinations)]
        {
            for name in names {
                let group = group_ids[name.as_str()];
                bits.insert((group, false), bit);
                if refuses {
                    bits.insert((group, true), bit);
                }
            }
        }
    }
    let all = |set: &GroupSet| {
        let certain = set.groups.iter().map(|group| (*group, false));
        let doubted = set.doubted.iter().map(|group| (*group, true));
        certain.chain(doubted).collect::<Vec<_>>()
    };
    let end = |scope: &Scope| match scope {
        Scope::Any => End::Group(GroupId::ANYWHERE),
        Scope::Cidr(prefix) => End::Prefix(tags[&prefix.trunc()]),
        Scope::Group(name) => End::Group(group_ids[name.as_str()]),
    };
    let mut snat_sources = Bits::new(snat.len());
    let mut snat_destinations = Bits::new(snat.len());
    for (bit, policy) in snat.iter().enumerate() {
        snat_sources.insert(end(&policy.source), bit);
        snat_destinations.insert(end(&policy.destination), bit);
    }
    let ids = identity_ids(sets);
    sets.iter()
        .map(|set| Identity {
            id: ids[&lists_of(set)],
            groups: set.groups.clone(),
            doubted: set.doubted.clone(),
            source_rules: sources.of(all(set).into_iter()),
            destination_rules: destinations.of(all(set).into_iter()),
            snat_source: snat_sources.of(End::of(set)),
            snat_destination: snat_destinations.of(End::of(set)),
        })
        .collect()
}

/// All groups by name. Validation has shown that every name that occurs is among them.
pub(crate) fn group_ids<'a>(inputs: &Inputs<'a>) -> HashMap<&'a str, GroupId> {
    let built_in = [(ANYWHERE, GroupId::ANYWHERE), (PUBLIC_INTERNET, GroupId::PUBLIC_INTERNET)];
    inputs.groups.iter().map(|group| (group.name.as_str(), group.id)).chain(built_in).collect()
}

/// The groups of a set, and those in doubt.
type Lists<'a> = (&'a [GroupId], &'a [GroupId]);

fn lists_of(set: &GroupSet) -> Lists<'_> {
    (&set.groups, &set.doubted)
}

/// The id of every pair of lists: a hash of the group ids, and the next attempt for the later
/// pair if two collide.
fn identity_ids(sets: &[GroupSet]) -> BTreeMap<Lists<'_>, u32> {
    let lists: BTreeSet<Lists<'_>> = sets.iter().map(lists_of).collect();
    let mut used = BTreeSet::new();
    lists
        .into_iter()
        .map(|(groups, doubted)| {
            // No group has the id 0, so it parts the two lists.
            let parted = (!doubted.is_empty()).then_some(0);
            let numbers = groups.iter().map(|group| group.0).chain(parted);
            let numbers = numbers.chain(doubted.iter().map(|group| group.0));
            let bytes: Vec<u8> = numbers.flat_map(u32::to_le_bytes).collect();
            let mut attempt = 0;
            loop {
                let id = stable_id_of_bytes("Identity", &bytes, attempt);
                if used.insert(id) {
                    return ((groups, doubted), id);
                }
                attempt += 1;
            }
        })
        .collect()
}

fn image_rule(rule: &Rule) -> ImageRule {
    ImageRule {
        id: rule.id,
        name: rule.name.clone(),
        priority: rule.priority,
        action: rule.action,
        log: rule.log,
        monitor: rule.enforcement == Enforcement::Monitor,
        mark: rule.mark,
    }
}

fn image_snat(policy: &SnatPolicy) -> ImageSnat {
    ImageSnat {
        id: policy.id,
        name: policy.name.clone(),
        order: policy.order,
        source_ports: policy.source_ports.clone(),
        destination_ports: policy.destination_ports.clone(),
        protocol: policy.protocol,
        mark: policy.mark,
        egress: policy.egress.clone(),
        action: policy.action.clone(),
    }
}

fn image_groups(inputs: &Inputs<'_>) -> Vec<ImageGroup> {
    let mut groups: Vec<ImageGroup> = group_ids(inputs)
        .into_iter()
        .map(|(name, id)| ImageGroup { id, name: name.to_owned() })
        .collect();
    groups.sort_unstable_by_key(|group| group.id);
    groups
}
