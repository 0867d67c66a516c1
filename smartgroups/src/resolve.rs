//! From endpoints and selectors to the groups of every address.
//!
//! Everything that puts a prefix into a group is collected, sorted so that a prefix stands before
//! what it contains, and walked once with a stack of what is open: a prefix has its own groups and
//! those of the prefixes around it. `public-internet` is the one group with holes, so it is not
//! added up but passed on until a special-purpose range says otherwise.

use std::collections::HashMap;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::index::SelectorIndex;
use crate::interner::{Interner, SetId};
use crate::public::RANGES;
use crate::{
    ANYWHERE, DomainId, GroupId, GroupSet, Inventory, Membership, PUBLIC_INTERNET, Selector,
    SmartGroup,
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
    /// A selector without a field.
    #[error("selector {selector} of smart group `{group}` is empty; use `anywhere` for everything")]
    EmptySelector {
        /// The group.
        group: String,
        /// Which selector, from 1.
        selector: usize,
    },
}

/// The slot of `public-internet` in interned sets; groups and then extras follow it.
const PUBLIC: u32 = 0;

/// Computes the exact set of groups of every address.
pub fn resolve(
    inventory: &Inventory,
    groups: &[SmartGroup],
    extra_prefixes: &[ExtraPrefix],
) -> Result<Membership, ResolveError> {
    check(groups)?;
    let mut sets = Interner::new();
    let claims = claims(inventory, groups, extra_prefixes, &mut sets);
    let nodes = nest(claims, &mut sets);
    Ok(emit(&nodes, &sets, groups))
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
        if let Some(empty) = group.selectors.iter().position(Selector::is_empty) {
            return Err(ResolveError::EmptySelector { group: name(), selector: empty + 1 });
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
    /// Whether the prefix is public, where it is not as around it.
    public: Option<bool>,
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
            domain: DomainId::FABRIC,
            prefix: *prefix,
            set: SetId::EMPTY,
            public: Some(*public),
        })
        .collect();
    let slots = (PUBLIC + 1..).zip(groups);
    let selectors =
        slots.flat_map(|(slot, group)| group.selectors.iter().map(move |one| (slot, one)));

    for (slot, selector) in selectors.clone().filter(|(_, one)| !one.is_about_endpoints()) {
        let (domain, set) = (selector.scope().unwrap_or_default(), sets.set(vec![slot]));
        let stated = stated(selector).into_iter();
        claims.extend(stated.map(|prefix| Claim { domain, prefix, set, public: None }));
    }
    for extra in extra_prefixes {
        let set = sets.set(vec![PUBLIC + 1 + groups.len() as u32 + extra.tag]);
        let prefix = extra.prefix.trunc();
        claims.push(Claim { domain: extra.domain, prefix, set, public: None });
    }
    let about_endpoints = selectors.filter(|(_, one)| one.is_about_endpoints());
    let mut index = SelectorIndex::new(about_endpoints, inventory);
    for endpoint in inventory.endpoints() {
        let (whole, within) = index.answer(endpoint, sets);
        let domain = endpoint.domain;
        for address in &endpoint.addresses {
            if whole != SetId::EMPTY {
                claims.push(Claim { domain, prefix: *address, set: whole, public: None });
            }
            for (cidr, set) in within.iter() {
                let inside = common(*cidr, *address);
                claims.extend(inside.map(|prefix| Claim {
                    domain,
                    prefix,
                    set: *set,
                    public: None,
                }));
            }
        }
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
    public: bool,
    /// The whole set.
    set: SetId,
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
        let (mut base, mut public, outer) = around
            .map_or((SetId::EMPTY, false, SetId::EMPTY), |node| (node.base, node.public, node.set));
        for claim in same {
            base = sets.union(base, claim.set);
            public = claim.public.unwrap_or(public);
        }
        let set = if public { sets.union(base, public_only) } else { base };
        if set == outer {
            continue;
        }
        if let (Some(open), Some(size)) = (innermost, addresses(&prefix)) {
            let spare = &mut nodes[open].spare;
            *spare = spare.and_then(|spare| spare.checked_sub(size));
        }
        let spare = Some(addresses(&prefix).map_or(u128::MAX, |size| size - 1));
        nodes.push(Node { domain, prefix, parent: innermost, base, public, set, spare });
        innermost = Some(nodes.len() - 1);
    }
    nodes
}

fn emit(nodes: &[Node], sets: &Interner, groups: &[SmartGroup]) -> Membership {
    let describe = |set: SetId| {
        let first_extra = PUBLIC + 1 + groups.len() as u32;
        let mut ids = vec![GroupId::ANYWHERE];
        let mut extras = Vec::new();
        for slot in sets.get(set) {
            match *slot {
                PUBLIC => ids.push(GroupId::PUBLIC_INTERNET),
                slot if slot < first_extra => ids.push(groups[(slot - PUBLIC - 1) as usize].id),
                slot => extras.push(slot - first_extra),
            }
        }
        ids.sort_unstable();
        GroupSet { groups: ids, extras }
    };
    let mut out =
        Membership { sets: vec![describe(SetId::EMPTY)], hosts: Vec::new(), prefixes: Vec::new() };
    let mut numbers = HashMap::from([(SetId::EMPTY, 0_u32)]);
    // What longest-prefix match answers just outside of a node's children.
    let mut answers: Vec<SetId> = Vec::with_capacity(nodes.len());
    for node in nodes {
        let outer = node.parent.map_or(SetId::EMPTY, |parent| answers[parent]);
        // A prefix that is full of longer ones is never the answer, so its set may not even exist.
        if node.spare.is_none() || node.set == outer {
            answers.push(outer);
            continue;
        }
        answers.push(node.set);
        let number = *numbers.entry(node.set).or_insert_with(|| {
            out.sets.push(describe(node.set));
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
