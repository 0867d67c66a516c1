//! From endpoints and selectors to the groups of every address, and from a change to what it changes.
//!
//! Everything that puts a prefix into a group is a claim. [`crate::cells`] keeps them up, and
//! adds them up from the prefixes around a prefix to what is in it. A change of one endpoint takes
//! back what was claimed for its addresses and claims what is so now.
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
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::cells::{Cells, Claim, Place};
use crate::check::check;
use crate::formula::{Formula, Half};
use crate::index::{SelectorIndex, Slots};
use crate::interner::{Interner, SetId};
use crate::inventory::rivals;
use crate::public::RANGES;
use crate::{
    Change, DomainId, Endpoint, GroupId, GroupSet, Inventory, Membership, ResolveError, Selector,
    SmartGroup, Truth,
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

/// The slot of `public-internet` in interned sets; the halves of groups and then extras follow it.
pub(crate) const PUBLIC: u32 = 0;

/// Computes the exact set of groups of every address.
///
/// # Errors
/// Groups that cannot be resolved.
pub fn resolve(
    inventory: &Inventory,
    groups: &[SmartGroup],
    extra_prefixes: &[ExtraPrefix],
) -> Result<Membership, ResolveError> {
    Ok(Resolution::new(inventory, groups, extra_prefixes)?.membership())
}

/// What changed in a [`Membership`]. Sets keep their index, new ones come behind them, and those
/// that nobody has any more stay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Sets that did not occur before.
    pub sets: Vec<GroupSet>,
    /// Single addresses and the index of the set that they have now, or none if the table does not
    /// hold them any more; sorted.
    pub hosts: Vec<(DomainId, IpAddr, Option<u32>)>,
    /// The same of prefixes shorter than a host.
    pub prefixes: Vec<(DomainId, IpNet, Option<u32>)>,
}

impl Delta {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.sets.is_empty() && self.hosts.is_empty() && self.prefixes.is_empty()
    }
}

/// An inventory whose groups are kept up change by change.
pub struct Resolver {
    inventory: Inventory,
    resolution: Resolution,
}

impl Resolver {
    /// Resolves everything once.
    ///
    /// # Errors
    /// Groups that cannot be resolved.
    pub fn new(
        inventory: Inventory,
        groups: &[SmartGroup],
        extra_prefixes: &[ExtraPrefix],
    ) -> Result<Self, ResolveError> {
        let resolution = Resolution::new(&inventory, groups, extra_prefixes)?;
        Ok(Self { inventory, resolution })
    }

    /// Who there is.
    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// The same, for whoever resolves other groups in it.
    pub fn into_inventory(self) -> Inventory {
        self.inventory
    }

    /// How many hosts and how many prefixes the tables hold.
    pub fn sizes(&self) -> (usize, usize) {
        self.resolution.cells.sizes()
    }

    /// The whole tables as they are now.
    pub fn membership(&self) -> Membership {
        self.resolution.membership()
    }

    /// Brings changes in, one after the other, and says what they changed together.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> Delta {
        for change in changes {
            self.bring_in(change);
        }
        self.resolution.settle()
    }

    fn bring_in(&mut self, change: Change) {
        let inventory = &self.inventory;
        let mut touched = BTreeSet::new();
        let mut touch = |endpoint: &Endpoint| {
            let places = endpoint.addresses.iter().map(|prefix| (endpoint.domain, prefix.trunc()));
            touched.extend(places);
        };
        match &change {
            Change::Endpoint(endpoint) => {
                inventory.get(&endpoint.name).into_iter().for_each(&mut touch);
                touch(endpoint);
            }
            Change::Gone(name) => inventory.get(name).into_iter().for_each(touch),
            Change::Namespace(id, _) | Change::NamespaceGone(id) => {
                let inside = inventory.in_namespace(id).filter_map(|name| inventory.get(name));
                inside.for_each(touch);
            }
        }
        for place in &touched {
            for claim in self.resolution.claims_at(&self.inventory, *place) {
                self.resolution.cells.take_back(claim);
            }
        }
        self.inventory.apply(change);
        for place in &touched {
            for claim in self.resolution.claims_at(&self.inventory, *place) {
                self.resolution.cells.make(claim);
            }
        }
    }
}

/// What follows from an inventory, which is kept elsewhere.
struct Resolution {
    index: SelectorIndex,
    sets: Interner,
    cells: Cells,
    described: Described,
}

impl Resolution {
    fn new(
        inventory: &Inventory,
        groups: &[SmartGroup],
        extra_prefixes: &[ExtraPrefix],
    ) -> Result<Self, ResolveError> {
        check(groups)?;
        let described = Described::new(groups)?;
        let halves = groups.iter().enumerate().flat_map(|(n, group)| {
            [(Half::Takes.slot(n), &group.selectors), (Half::Excludes.slot(n), &group.exclude)]
        });
        let selectors = halves
            .flat_map(|(slot, selectors)| selectors.iter().map(move |one| (slot, one)))
            .filter(|(_, one)| one.group.is_none());
        let about_endpoints = selectors.clone().filter(|(_, one)| one.is_about_endpoints());
        let (index, classes) = SelectorIndex::new(about_endpoints, inventory);
        let (sets, cells) = (Interner::new(), Cells::default());
        let mut new = Self { index, sets, cells, described };
        for (prefix, public) in RANGES {
            let claim = Claim::new((DomainId::FABRIC, *prefix), Slots::default());
            new.cells.make(Claim { public: Some(*public), ..claim });
        }
        for (slot, selector) in selectors.filter(|(_, one)| !one.is_about_endpoints()) {
            let domain = selector.scope().unwrap_or_default();
            let slots = Slots::new(new.sets.set(vec![slot]), SetId::EMPTY);
            for prefix in stated(selector) {
                new.cells.make(Claim::new((domain, prefix), slots));
            }
        }
        for extra in extra_prefixes {
            let slots = new.sets.set(vec![new.described.first_extra + extra.tag]);
            let place = (extra.domain, extra.prefix.trunc());
            new.cells.make(Claim::new(place, Slots::new(slots, SetId::EMPTY)));
        }
        let mut contested = HashSet::new();
        for (domain, prefix, rivals) in inventory.rivals() {
            contested.extend(rivals.iter().map(|one| (domain, prefix, Arc::clone(&one.name))));
            for claim in new.doubtful(inventory, (domain, prefix), rivals) {
                new.cells.make(claim);
            }
        }
        for (endpoint, class) in inventory.endpoints().zip(classes) {
            let domain = endpoint.domain;
            for prefix in &endpoint.addresses {
                let is_contested = !contested.is_empty()
                    && contested.contains(&(domain, *prefix, Arc::clone(&endpoint.name)));
                if !is_contested {
                    let answer = new.index.answer(class, &mut new.sets);
                    for claim in claims_of((domain, *prefix), answer.whole, &answer.within) {
                        new.cells.make(claim);
                    }
                }
            }
        }
        new.settle();
        Ok(new)
    }

    /// All that is claimed for whoever has exactly this prefix.
    fn claims_at(&mut self, inventory: &Inventory, place: Place) -> Vec<Claim> {
        let claimants = inventory.claimants(place.0, place.1);
        let mut claims = Vec::new();
        let mut contested = HashSet::new();
        for rivals in rivals(claimants) {
            contested.extend(rivals.iter().map(|one| one.name.as_ref()));
            claims.extend(self.doubtful(inventory, place, rivals));
        }
        for endpoint in claimants.iter().filter(|one| !contested.contains(one.name.as_ref())) {
            let class = self.index.class(endpoint, inventory.namespace_of(endpoint));
            let answer = self.index.answer(class, &mut self.sets);
            claims.extend(claims_of(place, answer.whole, &answer.within));
        }
        claims
    }

    /// What rivals for one prefix make of it and of those parts that selectors tell apart: what all
    /// of them say is certain, the rest is doubted.
    fn doubtful(
        &mut self,
        inventory: &Inventory,
        (domain, prefix): Place,
        rivals: &[Arc<Endpoint>],
    ) -> Vec<Claim> {
        let sets = &mut self.sets;
        let mut answers = Vec::with_capacity(rivals.len());
        for rival in rivals {
            let class = self.index.class(rival, inventory.namespace_of(rival));
            answers.push(self.index.answer(class, sets));
        }
        let cidrs = answers.iter().flat_map(|answer| answer.within.iter().map(|(cidr, _)| *cidr));
        let parts: BTreeSet<IpNet> =
            cidrs.filter(|cidr| prefix.contains(cidr)).chain([prefix]).collect();
        let mut claims = Vec::new();
        for part in parts {
            let mut certain = None;
            let mut possible = SetId::EMPTY;
            for answer in &answers {
                let around = answer.within.iter().filter(|(cidr, _)| cidr.contains(&part));
                let all = around.map(|(_, slots)| *slots).chain([answer.whole]);
                let mut own = SetId::EMPTY;
                for slots in all {
                    own = sets.union(own, slots.certain);
                    possible = sets.union(possible, slots.possible());
                }
                certain = Some(certain.map_or(own, |certain| sets.intersection(certain, own)));
            }
            let slots = Slots::new(certain.unwrap_or(SetId::EMPTY), possible);
            claims.push(Claim::new((domain, part), slots));
        }
        claims
    }

    /// Works out what follows from the claims that were made and taken back.
    fn settle(&mut self) -> Delta {
        let known = self.described.sets.len();
        let described = &mut self.described;
        let changed =
            self.cells.settle(&mut self.sets, &mut |set, sets| described.number(set, sets));
        let mut delta = Delta { sets: self.described.sets[known..].to_vec(), ..Delta::default() };
        for ((domain, prefix), number) in changed {
            if is_host(&prefix) {
                delta.hosts.push((domain, prefix.addr(), number));
            } else {
                delta.prefixes.push((domain, prefix, number));
            }
        }
        delta
    }

    fn membership(&self) -> Membership {
        let sets = self.described.sets.clone();
        let mut out = Membership { sets, hosts: Vec::new(), prefixes: Vec::new() };
        for ((domain, prefix), number) in self.cells.emitted() {
            if is_host(&prefix) {
                out.hosts.push((domain, prefix.addr(), number));
            } else {
                out.prefixes.push((domain, prefix, number));
            }
        }
        out
    }
}

/// What is claimed for somebody who alone has a prefix.
fn claims_of(
    (domain, prefix): Place,
    whole: Slots,
    within: &[(IpNet, Slots)],
) -> impl Iterator<Item = Claim> {
    let inside =
        within.iter().filter_map(move |(cidr, slots)| Some((common(*cidr, prefix)?, *slots)));
    let all = inside.chain([(prefix, whole)]).filter(|(_, slots)| !slots.is_empty());
    all.map(move |(prefix, slots)| Claim::new((domain, prefix), slots))
}

fn is_host(prefix: &IpNet) -> bool {
    prefix.prefix_len() == prefix.max_prefix_len()
}

/// The sets of groups that occur, each kept once and named by its index.
struct Described {
    groups: Vec<GroupId>,
    formula: Formula,
    /// The slot of the first extra.
    first_extra: u32,
    sets: Vec<GroupSet>,
    /// Different halves may come to the same groups.
    numbers: HashMap<GroupSet, u32>,
    known: HashMap<(SetId, SetId), u32>,
}

impl Described {
    fn new(groups: &[SmartGroup]) -> Result<Self, ResolveError> {
        let mut new = Self {
            groups: groups.iter().map(|group| group.id).collect(),
            formula: Formula::new(groups)?,
            first_extra: Half::Excludes.slot(groups.len()) - 1,
            sets: Vec::new(),
            numbers: HashMap::new(),
            known: HashMap::new(),
        };
        new.number((SetId::EMPTY, SetId::EMPTY), &Interner::new());
        Ok(new)
    }

    /// The index of what some slots come to that are filled, and others that are in doubt.
    fn number(&mut self, slots: (SetId, SetId), sets: &Interner) -> u32 {
        if let Some(number) = self.known.get(&slots) {
            return *number;
        }
        let set = self.describe(sets.get(slots.0), sets.get(slots.1));
        let next = self.sets.len() as u32;
        let number = *self.numbers.entry(set).or_insert_with_key(|set| {
            self.sets.push(set.clone());
            next
        });
        self.known.insert(slots, number);
        number
    }

    fn describe(&self, set: &[u32], doubted: &[u32]) -> GroupSet {
        let (mut groups, mut in_doubt) = (vec![GroupId::ANYWHERE], Vec::new());
        if set.first() == Some(&PUBLIC) {
            groups.push(GroupId::PUBLIC_INTERNET);
        }
        for (n, truth) in self.formula.of(set, doubted) {
            match truth {
                Truth::Yes => groups.push(self.groups[n]),
                Truth::Maybe => in_doubt.push(self.groups[n]),
                Truth::No => {}
            }
        }
        groups.sort_unstable();
        in_doubt.sort_unstable();
        let extras = set.iter().filter_map(|slot| slot.checked_sub(self.first_extra)).collect();
        GroupSet { groups, doubted: in_doubt, extras }
    }
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
