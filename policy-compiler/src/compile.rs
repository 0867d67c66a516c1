//! Inputs to image, in one pass from groups over identities to bit sets; and from a change of
//! members to what it changes in the image.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;
use smartgroups::{
    ANYWHERE, Change, Delta, DomainId, ExtraPrefix, GroupId, GroupSet, Inventory, Membership,
    PUBLIC_INTERNET, Resolver, stable_id_of_bytes,
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
///
/// # Errors
/// A policy that is wrong in itself, or has no room.
pub fn compile(
    inputs: &Inputs<'_>,
    capacity: &Capacity,
) -> Result<(Image, Vec<Diagnostic>), CompileError> {
    let (_, image, diagnostics) = Compiler::new(inputs.inventory.clone(), inputs, capacity)?;
    Ok((image, diagnostics))
}

/// A policy that is kept up while the members of its groups change.
///
/// Rules, groups and SNAT policies stay; whoever changes those begins anew, with the
/// [`Compiler::into_inventory`] of before.
pub struct Compiler {
    resolver: Resolver,
    identities: Identities,
    capacity: Capacity,
}

/// What changed in an [`Image`] because members came and went. Identities keep their index, new
/// ones come behind them, and those that nobody has any more stay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amendment {
    /// Identities that did not occur before.
    pub identities: Vec<Identity>,
    /// Single addresses and the index of the identity that they have now, or none if the table
    /// does not hold them any more; sorted.
    pub hosts: Vec<(DomainId, IpAddr, Option<u32>)>,
    /// The same of prefixes shorter than a host.
    pub prefixes: Vec<(DomainId, IpNet, Option<u32>)>,
}

impl Amendment {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.identities.is_empty() && self.hosts.is_empty() && self.prefixes.is_empty()
    }
}

impl Compiler {
    /// Compiles a policy once. What `inputs` says of the inventory is not looked at.
    ///
    /// # Errors
    /// As [`compile()`].
    pub fn new(
        inventory: Inventory,
        inputs: &Inputs<'_>,
        capacity: &Capacity,
    ) -> Result<(Self, Image, Vec<Diagnostic>), CompileError> {
        let plan = Plan::new(inputs, capacity)?;
        let extra_prefixes = plan.extra_prefixes(&Inputs { inventory: &inventory, ..*inputs });
        let resolver = Resolver::new(inventory, inputs.groups, &extra_prefixes)?;
        let membership = resolver.membership();
        let mut identities = Identities::new(inputs, &plan);
        let numbered = identities.number(&membership.sets);
        let inputs = Inputs { inventory: resolver.inventory(), ..*inputs };
        let (image, diagnostics) = plan.image(&inputs, capacity, membership, numbered)?;
        Ok((Self { resolver, identities, capacity: *capacity }, image, diagnostics))
    }

    /// Who there is.
    pub fn inventory(&self) -> &Inventory {
        self.resolver.inventory()
    }

    /// The same, for whoever compiles another policy for it.
    pub fn into_inventory(self) -> Inventory {
        self.resolver.into_inventory()
    }

    /// Brings changes in and says what they changed in the image.
    ///
    /// # Errors
    /// There is no room for it. The changes are in the inventory all the same, and what they
    /// changed is not told again: a new compiler takes over, which leaves out what nobody has any
    /// more and may find room.
    pub fn amend(
        &mut self,
        changes: impl IntoIterator<Item = Change>,
    ) -> Result<Amendment, CompileError> {
        let Delta { sets, hosts, prefixes } = self.resolver.apply(changes);
        let identities = self.identities.number(&sets);
        let (all_hosts, all_prefixes) = self.resolver.sizes();
        fits(Table::Hosts, all_hosts, self.capacity.hosts)?;
        fits(Table::Prefixes, all_prefixes, self.capacity.prefixes)?;
        fits(Table::Identities, self.identities.count, self.capacity.identities)?;
        Ok(Amendment { identities, hosts, prefixes })
    }
}

/// A policy that is right in itself, in the order in which it is asked.
struct Plan<'a> {
    rules: Vec<&'a Rule>,
    snat: Vec<&'a SnatPolicy>,
    tags: BTreeMap<IpNet, u32>,
    port_classes: PortClasses,
}

impl<'a> Plan<'a> {
    fn new(inputs: &Inputs<'a>, capacity: &Capacity) -> Result<Self, CompileError> {
        validate(inputs)?;
        let mut rules: Vec<&Rule> =
            inputs.rules.iter().filter(|rule| rule.enforcement != Enforcement::Disabled).collect();
        rules.sort_unstable_by_key(|rule| rule.priority);
        let mut snat: Vec<&SnatPolicy> = inputs.snat.iter().collect();
        snat.sort_unstable_by_key(|policy| policy.order);
        fits(Table::Rules, rules.len(), capacity.rules)?;
        fits(Table::SnatPolicies, snat.len(), capacity.snat_policies.min(SNAT_POLICIES))?;
        let port_classes = PortClasses::new(&rules, capacity.port_classes).map_err(|need| {
            let room = capacity.port_classes.min(1 << 16);
            CompileError::NoRoom { table: Table::PortClasses, need, room }
        })?;
        Ok(Self { tags: tags(&snat), rules, snat, port_classes })
    }

    /// A SNAT policy sees the address that a packet carries, so its prefixes split every domain.
    fn extra_prefixes(&self, inputs: &Inputs<'_>) -> Vec<ExtraPrefix> {
        let mut domains = inputs.inventory.domains();
        domains.insert(DomainId::FABRIC);
        domains.extend(inputs.domains);
        let selectors =
            inputs.groups.iter().flat_map(|group| group.selectors.iter().chain(&group.exclude));
        domains.extend(selectors.filter_map(|selector| selector.scope()));
        let of = |domain: DomainId| {
            let tags = self.tags.iter();
            tags.map(move |(prefix, tag)| ExtraPrefix { domain, prefix: *prefix, tag: *tag })
        };
        domains.into_iter().flat_map(of).collect()
    }

    fn image(
        self,
        inputs: &Inputs<'_>,
        capacity: &Capacity,
        membership: Membership,
        identities: Vec<Identity>,
    ) -> Result<(Image, Vec<Diagnostic>), CompileError> {
        fits(Table::Hosts, membership.hosts.len(), capacity.hosts)?;
        fits(Table::Prefixes, membership.prefixes.len(), capacity.prefixes)?;
        fits(Table::Identities, membership.sets.len(), capacity.identities)?;
        let image = Image {
            identities,
            hosts: membership.hosts,
            prefixes: membership.prefixes,
            port_classes: self.port_classes,
            default_action: inputs.default_action,
            rules: self.rules.iter().map(|rule| image_rule(rule)).collect(),
            snat: self.snat.iter().map(|policy| image_snat(policy)).collect(),
            groups: image_groups(inputs),
        };
        let diagnostics = lint(inputs, &image, &self.rules, &self.snat);
        Ok((image, diagnostics))
    }
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

/// What a set of groups may be an end of.
struct Identities {
    /// By group, and by whether the address may also be in doubt about it.
    sources: Bits<(GroupId, bool)>,
    destinations: Bits<(GroupId, bool)>,
    snat_sources: Bits<End>,
    snat_destinations: Bits<End>,
    /// The id of every pair of lists (groups, and those in doubt).
    ids: HashMap<(Vec<GroupId>, Vec<GroupId>), u32>,
    used: HashSet<u32>,
    /// How many there are.
    count: usize,
}

impl Identities {
    fn new(inputs: &Inputs<'_>, plan: &Plan<'_>) -> Self {
        let group_ids = group_ids(inputs);
        let (rules, snat) = (&plan.rules, &plan.snat);
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
        let end = |scope: &Scope| match scope {
            Scope::Any => End::Group(GroupId::ANYWHERE),
            Scope::Cidr(prefix) => End::Prefix(plan.tags[&prefix.trunc()]),
            Scope::Group(name) => End::Group(group_ids[name.as_str()]),
        };
        let mut snat_sources = Bits::new(snat.len());
        let mut snat_destinations = Bits::new(snat.len());
        for (bit, policy) in snat.iter().enumerate() {
            snat_sources.insert(end(&policy.source), bit);
            snat_destinations.insert(end(&policy.destination), bit);
        }
        let (ids, used) = (HashMap::new(), HashSet::new());
        Self { sources, destinations, snat_sources, snat_destinations, ids, used, count: 0 }
    }

    /// The identities of sets that were not seen before.
    fn number(&mut self, sets: &[GroupSet]) -> Vec<Identity> {
        // Two that collide get their ids in one order, whatever the order they come in.
        let lists: BTreeSet<_> = sets.iter().map(|set| (&set.groups, &set.doubted)).collect();
        for (groups, doubted) in lists {
            self.give_id(groups, doubted);
        }
        self.count += sets.len();
        sets.iter().map(|set| self.identity(set)).collect()
    }

    fn identity(&self, set: &GroupSet) -> Identity {
        let all = || {
            let certain = set.groups.iter().map(|group| (*group, false));
            certain.chain(set.doubted.iter().map(|group| (*group, true)))
        };
        Identity {
            id: self.ids[&(set.groups.clone(), set.doubted.clone())],
            groups: set.groups.clone(),
            doubted: set.doubted.clone(),
            source_rules: self.sources.of(all()),
            destination_rules: self.destinations.of(all()),
            snat_source: self.snat_sources.of(End::of(set)),
            snat_destination: self.snat_destinations.of(End::of(set)),
        }
    }

    /// A hash of the group ids, and the next attempt for the later pair if two collide.
    fn give_id(&mut self, groups: &[GroupId], doubted: &[GroupId]) {
        let lists = (groups.to_vec(), doubted.to_vec());
        if self.ids.contains_key(&lists) {
            return;
        }
        // No group has the id 0, so it parts the two lists.
        let parted = (!doubted.is_empty()).then_some(0);
        let numbers = groups.iter().map(|group| group.0).chain(parted);
        let numbers = numbers.chain(doubted.iter().map(|group| group.0));
        let bytes: Vec<u8> = numbers.flat_map(u32::to_le_bytes).collect();
        let ids = (0..).map(|attempt| stable_id_of_bytes("Identity", &bytes, attempt));
        let free = ids.into_iter().find(|id| self.used.insert(*id));
        self.ids.extend(free.map(|id| (lists, id)));
    }
}

/// All groups by name. Validation has shown that every name that occurs is among them.
pub(crate) fn group_ids<'a>(inputs: &Inputs<'a>) -> HashMap<&'a str, GroupId> {
    let built_in = [(ANYWHERE, GroupId::ANYWHERE), (PUBLIC_INTERNET, GroupId::PUBLIC_INTERNET)];
    inputs.groups.iter().map(|group| (group.name.as_str(), group.id)).chain(built_in).collect()
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
