//! From endpoints and selectors to the groups of every address.
//!
//! Everything that puts a prefix into a group is collected, sorted so that a prefix stands before
//! what it contains, and walked once with a stack of what is open: a prefix has its own groups and
//! those of the prefixes around it. `public-internet` is the one group with holes, so it is not
//! added up but passed on until a special-purpose range says otherwise.
//!
//! What is added up are the two halves of each group, what its selectors take and what they exclude.
//! Whether an address is in the group follows from the halves, and from the groups that it names,
//! once for each set of halves that occurs ([`crate::formula`]).
//!
//! Where two endpoints claim one address and only one can have it ([`crate::Conflict`]), nobody
//! knows whose packets these are. The answer has to be right for whichever it is, so such an
//! address is in the groups that all claimants are in, and those that only some are in are kept
//! beside them as doubted. A rule that permits asks for the former, a rule that denies or rejects
//! for both: what gets through then gets through as either of them. (If a permit matches, it matches
//! each claimant; had a refusal before it matched one of them, it would have decided.)

use std::collections::{BTreeSet, HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::formula::{Formula, Half};
use crate::index::SelectorIndex;
use crate::interner::{Interner, SetId};
use crate::public::RANGES;
use crate::{
    ANYWHERE, DomainId, Endpoint, GroupId, GroupSet, Inventory, Membership, PUBLIC_INTERNET,
    Selector, SmartGroup, Truth,
};

/// A prefix whose addresses have to be told apart although no group names it; SNAT policies match
/// on such. Several may share a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtraPrefix {
    /// Its domain.
    pub domain: DomainId,
    /// The prefix.
    pub prefix: IpNet,
    /// How [`GroupSet::extras`] names it.
    pub tag: u32,
}

/// Groups that cannot be resolved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// Two groups of one name.
    #[error("smart group `{group}` is defined twice")]
    DuplicateName {
        /// The name.
        group: String,
    },
    /// A group with a built-in name.
    #[error("smart group `{group}` is built in and cannot be defined")]
    BuiltIn {
        /// The name.
        group: String,
    },
    /// Two groups of one id; [`GroupId::assign`] avoids it.
    #[error("smart groups `{group}` and `{other}` have the same id {id}")]
    DuplicateId {
        /// The later group.
        group: String,
        /// The earlier group.
        other: String,
        /// The id.
        id: GroupId,
    },
    /// The id that means "none".
    #[error("smart group `{group}` has the id 0, which means none")]
    ZeroId {
        /// The group.
        group: String,
    },
    /// A group that is named as a part of another, and does not exist.
    #[error("smart group `{group}` names the group `{part}`, which does not exist")]
    UnknownGroup {
        /// The group.
        group: String,
        /// What it names.
        part: String,
    },
    /// A group that is a part of itself.
    #[error("smart group `{}` is a part of itself ({})", path[0], path.join(" -> "))]
    Cycle {
        /// The way around, from the group to itself.
        path: Vec<String>,
    },
    /// A selector that names a group and asks for something beside it.
    #[error("selector {selector} of smart group `{group}` names a group and more; it stands alone")]
    MixedSelector {
        /// The group.
        group: String,
        /// Which selector, from 1, those that exclude behind the others.
        selector: usize,
    },
    /// A selector without a field.
    #[error("selector {selector} of smart group `{group}` is empty; use `anywhere` for everything")]
    EmptySelector {
        /// The group.
        group: String,
        /// Which selector, from 1, those that exclude behind the others.
        selector: usize,
    },
}

/// The slot of `public-internet` in interned sets; the halves of groups and then extras follow it.
pub(crate) const PUBLIC: u32 = 0;

/// The slot of the first extra.
fn first_extra(groups: &[SmartGroup]) -> u32 {
    Half::Excludes.slot(groups.len()) - 1
}

/// An address that is in no group and of which nothing is in doubt.
const NOTHING: (SetId, SetId) = (SetId::EMPTY, SetId::EMPTY);

/// Computes the exact set of groups of every address.
pub fn resolve(
    inventory: &Inventory,
    groups: &[SmartGroup],
    extra_prefixes: &[ExtraPrefix],
) -> Result<Membership, ResolveError> {
    check(groups)?;
    let formula = Formula::new(groups)?;
    let mut sets = Interner::new();
    let claims = claims(inventory, groups, extra_prefixes, &mut sets);
    let nodes = nest(claims, &mut sets);
    Ok(emit(&nodes, &sets, groups, &formula))
}

fn check(groups: &[SmartGroup]) -> Result<(), ResolveError> {
    let mut names = HashMap::new();
    let mut ids =
        HashMap::from([(GroupId::ANYWHERE, ANYWHERE), (GroupId::PUBLIC_INTERNET, PUBLIC_INTERNET)]);
    for group in groups {
        let name = || group.name.clone();
        if group.name == ANYWHERE || group.name == PUBLIC_INTERNET {
            return Err(ResolveError::BuiltIn { group: name() });
        }
        if names.insert(&group.name, ()).is_some() {
            return Err(ResolveError::DuplicateName { group: name() });
        }
        if group.id.0 == 0 {
            return Err(ResolveError::ZeroId { group: name() });
        }
        if let Some(other) = ids.insert(group.id, &group.name) {
            let other = other.to_owned();
            return Err(ResolveError::DuplicateId { group: name(), other, id: group.id });
        }
        let mut all = group.selectors.iter().chain(&group.exclude);
        if let Some(empty) = all.clone().position(Selector::is_empty) {
            return Err(ResolveError::EmptySelector { group: name(), selector: empty + 1 });
        }
        if let Some(mixed) = all.position(Selector::is_mixed) {
            return Err(ResolveError::MixedSelector { group: name(), selector: mixed + 1 });
        }
    }
    Ok(())
}

/// The prefixes that a selector names without asking for an endpoint.
pub(crate) fn stated(selector: &Selector) -> Vec<IpNet> {
    match selector.cidr {
        Some(cidr) => vec![cidr.trunc()],
        None => vec![IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())],
    }
}

/// What two prefixes have in common: the longer one, if the other holds it.
pub(crate) fn common(a: IpNet, b: IpNet) -> Option<IpNet> {
    if a.contains(&b) {
        Some(b)
    } else if b.contains(&a) {
        Some(a)
    } else {
        None
    }
}

/// Something that puts a prefix into groups.
struct Claim {
    domain: DomainId,
    prefix: IpNet,
    set: SetId,
    /// Groups that it may be in.
    doubted: SetId,
    /// Whether the prefix is public, where it is not as around it.
    public: Option<bool>,
}

impl Claim {
    fn new(domain: DomainId, prefix: IpNet, set: SetId) -> Self {
        Self { domain, prefix, set, doubted: SetId::EMPTY, public: None }
    }
}

fn claims(
    inventory: &Inventory,
    groups: &[SmartGroup],
    extra_prefixes: &[ExtraPrefix],
    sets: &mut Interner,
) -> Vec<Claim> {
    let mut claims: Vec<Claim> = RANGES
        .iter()
        .map(|(prefix, public)| Claim {
            public: Some(*public),
            ..Claim::new(DomainId::FABRIC, *prefix, SetId::EMPTY)
        })
        .collect();
    let halves = groups.iter().enumerate().flat_map(|(n, group)| {
        [(Half::Takes.slot(n), &group.selectors), (Half::Excludes.slot(n), &group.exclude)]
    });
    let selectors = halves
        .flat_map(|(slot, selectors)| selectors.iter().map(move |one| (slot, one)))
        .filter(|(_, one)| one.group.is_none());

    for (slot, selector) in selectors.clone().filter(|(_, one)| !one.is_about_endpoints()) {
        let (domain, set) = (selector.scope().unwrap_or_default(), sets.set(vec![slot]));
        let stated = stated(selector).into_iter();
        claims.extend(stated.map(|prefix| Claim::new(domain, prefix, set)));
    }
    for extra in extra_prefixes {
        let set = sets.set(vec![first_extra(groups) + extra.tag]);
        claims.push(Claim::new(extra.domain, extra.prefix.trunc(), set));
    }
    let about_endpoints = selectors.filter(|(_, one)| one.is_about_endpoints());
    let mut index = SelectorIndex::new(about_endpoints, inventory);
    let mut contested = HashSet::new();
    for (domain, prefix, rivals) in inventory.rivals() {
        contested.extend(rivals.iter().map(|rival| (domain, prefix, rival.name.as_str())));
        claims.extend(doubtful(domain, prefix, rivals, &mut index, sets));
    }
    for endpoint in inventory.endpoints() {
        let (whole, within) = index.answer(endpoint, sets);
        let domain = endpoint.domain;
        for address in &endpoint.addresses {
            if !contested.is_empty()
                && contested.contains(&(domain, *address, endpoint.name.as_str()))
            {
                continue;
            }
            if whole != SetId::EMPTY {
                claims.push(Claim::new(domain, *address, whole));
            }
            for (cidr, set) in within.iter() {
                let inside = common(*cidr, *address);
                claims.extend(inside.map(|prefix| Claim::new(domain, prefix, *set)));
            }
        }
    }
    claims
}

/// What rivals for one prefix make of it and of those parts that selectors tell apart: what all
/// of them say is certain, the rest is doubted.
fn doubtful(
    domain: DomainId,
    prefix: IpNet,
    rivals: &[Arc<Endpoint>],
    index: &mut SelectorIndex<'_>,
    sets: &mut Interner,
) -> Vec<Claim> {
    let answers: Vec<_> = rivals.iter().map(|rival| index.answer(rival, sets)).collect();
    let cidrs = answers.iter().flat_map(|(_, within)| within.iter().map(|(cidr, _)| *cidr));
    let parts: BTreeSet<IpNet> =
        cidrs.filter(|cidr| prefix.contains(cidr)).chain([prefix]).collect();
    let mut claims = Vec::new();
    for part in parts {
        let mut certain = None;
        let mut doubted = SetId::EMPTY;
        for (whole, within) in &answers {
            let around = within.iter().filter(|(cidr, _)| cidr.contains(&part));
            let all = around.fold(*whole, |all, (_, set)| sets.union(all, *set));
            certain = Some(certain.map_or(all, |certain| sets.intersection(certain, all)));
            doubted = sets.union(doubted, all);
        }
        let certain = certain.unwrap_or(SetId::EMPTY);
        claims.push(Claim { doubted, ..Claim::new(domain, part, certain) });
    }
    claims
}

/// A prefix whose set differs from that of the prefix around it.
struct Node {
    domain: DomainId,
    prefix: IpNet,
    /// The node around it.
    parent: Option<usize>,
    /// Groups and extras without `public-internet`.
    base: SetId,
    /// Groups that claimants of it are in, certain or not.
    doubted: SetId,
    public: bool,
    /// The whole set, and what is doubted beyond it.
    set: (SetId, SetId),
    /// One less than the number of addresses that no node inside it holds; `None` if none is
    /// left. (One less, because ::/0 has 2^128 of them.)
    spare: Option<u128>,
}

fn addresses(prefix: &IpNet) -> Option<u128> {
    1_u128.checked_shl(u32::from(prefix.max_prefix_len() - prefix.prefix_len()))
}

fn nest(mut claims: Vec<Claim>, sets: &mut Interner) -> Vec<Node> {
    claims.sort_unstable_by_key(|claim| (claim.domain, claim.prefix));
    let public_only = sets.set(vec![PUBLIC]);
    let mut nodes: Vec<Node> = Vec::new();
    let mut innermost: Option<usize> = None;
    for same in claims.chunk_by(|a, b| (a.domain, a.prefix) == (b.domain, b.prefix)) {
        let (domain, prefix) = (same[0].domain, same[0].prefix);
        while let Some(open) = innermost {
            let node = &nodes[open];
            if node.domain == domain && node.prefix.contains(&prefix) {
                break;
            }
            innermost = node.parent;
        }
        let around = innermost.map(|open| &nodes[open]);
        let (mut base, mut doubted, mut public, outer) = around
            .map_or((SetId::EMPTY, SetId::EMPTY, false, NOTHING), |node| {
                (node.base, node.doubted, node.public, node.set)
            });
        for claim in same {
            base = sets.union(base, claim.set);
            doubted = sets.union(doubted, claim.doubted);
            public = claim.public.unwrap_or(public);
        }
        let whole = if public { sets.union(base, public_only) } else { base };
        let set = (whole, sets.difference(doubted, base));
        if set == outer {
            continue;
        }
        if let (Some(open), Some(size)) = (innermost, addresses(&prefix)) {
            let spare = &mut nodes[open].spare;
            *spare = spare.and_then(|spare| spare.checked_sub(size));
        }
        let spare = Some(addresses(&prefix).map_or(u128::MAX, |size| size - 1));
        nodes.push(Node { domain, prefix, parent: innermost, base, doubted, public, set, spare });
        innermost = Some(nodes.len() - 1);
    }
    nodes
}

fn emit(nodes: &[Node], sets: &Interner, groups: &[SmartGroup], formula: &Formula) -> Membership {
    let first_extra = first_extra(groups);
    let describe = |(set, doubted): (SetId, SetId)| {
        let (set, doubted) = (sets.get(set), sets.get(doubted));
        let (mut ids, mut in_doubt) = (vec![GroupId::ANYWHERE], Vec::new());
        if set.first() == Some(&PUBLIC) {
            ids.push(GroupId::PUBLIC_INTERNET);
        }
        for (n, truth) in formula.of(set, doubted) {
            match truth {
                Truth::Yes => ids.push(groups[n].id),
                Truth::Maybe => in_doubt.push(groups[n].id),
                Truth::No => {}
            }
        }
        ids.sort_unstable();
        in_doubt.sort_unstable();
        let extras = set.iter().filter_map(|slot| slot.checked_sub(first_extra)).collect();
        GroupSet { groups: ids, doubted: in_doubt, extras }
    };
    let mut out =
        Membership { sets: vec![describe(NOTHING)], hosts: Vec::new(), prefixes: Vec::new() };
    // Different halves may come to the same groups.
    let mut described = HashMap::from([(NOTHING, Rc::new(out.sets[0].clone()))]);
    let mut numbers = HashMap::from([(Rc::clone(&described[&NOTHING]), 0_u32)]);
    // What longest-prefix match answers just outside of a node's children.
    let mut answers: Vec<Rc<GroupSet>> = Vec::with_capacity(nodes.len());
    for node in nodes {
        let nothing = &described[&NOTHING];
        let outer = Rc::clone(node.parent.map_or(nothing, |parent| &answers[parent]));
        // A prefix that is full of longer ones is never the answer, so its set may not even exist.
        if node.spare.is_none() {
            answers.push(outer);
            continue;
        }
        let set = described.entry(node.set).or_insert_with(|| Rc::new(describe(node.set)));
        let set = Rc::clone(set);
        answers.push(Rc::clone(&set));
        if set == outer {
            continue;
        }
        let number = *numbers.entry(set).or_insert_with_key(|set| {
            out.sets.push(GroupSet::clone(set));
            out.sets.len() as u32 - 1
        });
        if node.prefix.prefix_len() == node.prefix.max_prefix_len() {
            out.hosts.push((node.domain, node.prefix.addr(), number));
        } else {
            out.prefixes.push((node.domain, node.prefix, number));
        }
    }
    out
}
