//! All prefixes that something is said of, and what follows for the addresses in them.
//!
//! A prefix has its own slots and those of the prefixes around it. Kept up claim by claim: a host
//! that changes concerns itself alone, because nothing lies inside of it; a shorter prefix
//! concerns what is in it. `public-internet` is the one group with holes, so it is not added up
//! but passed on until a special-purpose range says otherwise.
//!
//! A prefix that is full of longer ones is never the answer for an address. It passes on what is
//! around it, so that no set is in the tables that nobody has.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use crate::DomainId;
use crate::index::Slots;
use crate::interner::{Interner, SetId};
use crate::resolve::PUBLIC;

/// A prefix of a domain. One that holds another stands before it.
pub(crate) type Place = (DomainId, IpNet);

/// Something that is said of a prefix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    pub(crate) place: Place,
    pub(crate) slots: Slots,
    /// Whether the prefix is public, where it is not as around it.
    pub(crate) public: Option<bool>,
}

impl Claim {
    pub(crate) fn new(place: Place, slots: Slots) -> Self {
        Self { place, slots, public: None }
    }
}

/// What holds for an address, from all that is said of the prefixes around it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Sum {
    /// Slots filled for certain, without `public-internet`.
    base: SetId,
    /// Slots that are filled or may be, where something is in doubt.
    doubted: SetId,
    public: bool,
}

impl Sum {
    /// The slots filled for certain, and those that are in doubt beyond them.
    fn slots(self, sets: &mut Interner) -> (SetId, SetId) {
        let public = if self.public { sets.set(vec![PUBLIC]) } else { SetId::EMPTY };
        (sets.union(self.base, public), sets.difference(self.doubted, self.base))
    }
}

#[derive(Debug, Default)]
struct Cell {
    /// What is claimed, and how often: hardly ever more than one thing.
    tally: Box<[(Slots, u32)]>,
    public: Option<bool>,
    sum: Sum,
    /// The number of the set of an address that no cell inside holds.
    answer: u32,
    /// What stands in the tables: nothing where it would repeat what is around it.
    emitted: Option<u32>,
    /// How many cells lie right in it, and how many addresses they hold together. (That wraps
    /// where ::/0 is full, whose size wraps to the same 0.) Most cells are hosts, in which nothing
    /// lies.
    inside: Option<Box<Inside>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Inside {
    cells: u32,
    addresses: u128,
}

impl Inside {
    fn of(prefix: &IpNet) -> Self {
        let bits = u32::from(prefix.max_prefix_len() - prefix.prefix_len());
        Self { cells: 1, addresses: 1_u128.checked_shl(bits).unwrap_or(0) }
    }

    fn add(&mut self, other: Self) {
        self.cells += other.cells;
        self.addresses = self.addresses.wrapping_add(other.addresses);
    }

    fn subtract(&mut self, other: Self) {
        self.cells -= other.cells;
        self.addresses = self.addresses.wrapping_sub(other.addresses);
    }

    fn fills(&self, prefix: &IpNet) -> bool {
        self.cells > 0 && self.addresses == Self::of(prefix).addresses
    }
}

impl Cell {
    fn is_idle(&self) -> bool {
        self.tally.is_empty() && self.public.is_none()
    }

    fn claim(&mut self, slots: Slots, public: Option<bool>, is_made: bool) {
        self.public = public.or(self.public);
        if slots.is_empty() {
            return;
        }
        match self.tally.iter().position(|(known, _)| *known == slots) {
            Some(at) if is_made => self.tally[at].1 += 1,
            Some(at) if self.tally[at].1 > 1 => self.tally[at].1 -= 1,
            Some(_) => {
                let others = self.tally.iter().filter(|(known, _)| *known != slots);
                self.tally = others.copied().collect();
            }
            None => self.tally = self.tally.iter().copied().chain([(slots, 1)]).collect(),
        }
    }

    fn inside(&self) -> Inside {
        self.inside.as_deref().copied().unwrap_or_default()
    }

    fn set_inside(&mut self, inside: Inside) {
        self.inside = (inside != Inside::default()).then(|| Box::new(inside));
    }

    fn add_up(&self, around: Sum, sets: &mut Interner) -> Sum {
        let mut sum = Sum { public: self.public.unwrap_or(around.public), ..around };
        for (slots, _) in &self.tally {
            sum.base = sets.union(sum.base, slots.certain);
            sum.doubted = sets.union(sum.doubted, slots.doubted);
        }
        sum
    }
}

/// How many prefixes of each length there are, so that a search tries no others.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lengths {
    v4: BTreeMap<u8, usize>,
    v6: BTreeMap<u8, usize>,
}

impl Lengths {
    fn of(&mut self, prefix: &IpNet) -> &mut BTreeMap<u8, usize> {
        match prefix {
            IpNet::V4(_) => &mut self.v4,
            IpNet::V6(_) => &mut self.v6,
        }
    }

    pub(crate) fn add(&mut self, prefix: &IpNet) {
        *self.of(prefix).entry(prefix.prefix_len()).or_default() += 1;
    }

    pub(crate) fn remove(&mut self, prefix: &IpNet) {
        let counts = self.of(prefix);
        if let Some(count) = counts.get_mut(&prefix.prefix_len()) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&prefix.prefix_len());
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// The prefixes around an address that there may be, the longest first.
    pub(crate) fn around(&self, address: IpAddr) -> impl Iterator<Item = IpNet> {
        let counts = match address {
            IpAddr::V4(_) => &self.v4,
            IpAddr::V6(_) => &self.v6,
        };
        let lengths = counts.keys().rev();
        lengths.filter_map(move |length| Some(IpNet::new(address, *length).ok()?.trunc()))
    }
}

/// All cells; see the module.
#[derive(Default)]
pub(crate) struct Cells {
    cells: BTreeMap<Place, Cell>,
    lengths: HashMap<DomainId, Lengths>,
    /// The set that follows from a sum.
    numbers: HashMap<Sum, u32>,
    /// Claims made (or, if not, taken back) since the cells were settled.
    pending: Vec<(Claim, bool)>,
    /// What stood in the tables for cells that changed while they are settled.
    before: HashMap<Place, Option<u32>>,
    /// How many hosts and how many shorter prefixes stand in the tables.
    sizes: (usize, usize),
}

impl Cells {
    /// Says something of a prefix.
    pub(crate) fn make(&mut self, claim: Claim) {
        self.pending.push((claim, true));
    }

    /// Takes back what was said of a prefix.
    pub(crate) fn take_back(&mut self, claim: Claim) {
        self.pending.push((claim, false));
    }

    /// Works out what follows from the claims since the last time, and returns what changed in
    /// the tables: the number of the set that a prefix has there now.
    pub(crate) fn settle(
        &mut self,
        sets: &mut Interner,
        number: &mut dyn FnMut((SetId, SetId), &Interner) -> u32,
    ) -> Vec<(Place, Option<u32>)> {
        let mut pending = std::mem::take(&mut self.pending);
        // What is made comes before what is taken back, so that no count falls below zero.
        pending.sort_by_key(|(claim, is_made)| (claim.place, !is_made));
        let is_first = self.cells.is_empty();
        for claims in pending.chunk_by(|(a, _), (b, _)| a.place == b.place) {
            let place = claims[0].0.place;
            if is_first {
                self.put(place, claims);
            } else {
                self.change(place, claims, sets, number);
            }
        }
        let ends = (self.cells.first_key_value(), self.cells.last_key_value());
        if let (true, Some((first, _)), Some((last, _))) = (is_first, ends.0, ends.1) {
            self.walk(*first..=*last, None, sets, number);
        }
        let before = std::mem::take(&mut self.before);
        let mut changed: Vec<(Place, Option<u32>)> = before
            .into_iter()
            .filter_map(|(place, before)| {
                let now = self.cells.get(&place).and_then(|cell| cell.emitted);
                let is_host = place.1.prefix_len() == place.1.max_prefix_len();
                let (hosts, prefixes) = &mut self.sizes;
                let size = if is_host { hosts } else { prefixes };
                *size = *size + usize::from(now.is_some()) - usize::from(before.is_some());
                (now != before).then_some((place, now))
            })
            .collect();
        changed.sort_unstable_by_key(|(place, _)| *place);
        changed
    }

    /// How many hosts and how many shorter prefixes stand in the tables.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        self.sizes
    }

    /// What stands in the tables, sorted.
    pub(crate) fn emitted(&self) -> impl Iterator<Item = (Place, u32)> {
        self.cells.iter().filter_map(|(place, cell)| Some((*place, cell.emitted?)))
    }

    /// Brings claims into a cell; whether there was one before, and whether there is one now.
    fn put(&mut self, place: Place, claims: &[(Claim, bool)]) -> (bool, bool) {
        let lengths = self.lengths.entry(place.0).or_default();
        let was = self.cells.contains_key(&place);
        let cell = self.cells.entry(place).or_default();
        for (claim, is_made) in claims {
            cell.claim(claim.slots, claim.public, *is_made);
        }
        let is = !cell.is_idle();
        match (was, is) {
            (false, true) => lengths.add(&place.1),
            (true, false) => lengths.remove(&place.1),
            (true, true) | (false, false) => {}
        }
        if !is
            && let Some(gone) = self.cells.remove(&place)
            && gone.emitted.is_some()
        {
            self.before.entry(place).or_insert(gone.emitted);
        }
        (was, is)
    }

    fn change(
        &mut self,
        place: Place,
        claims: &[(Claim, bool)],
        sets: &mut Interner,
        number: &mut dyn FnMut((SetId, SetId), &Interner) -> u32,
    ) {
        let (was, is) = self.put(place, claims);
        let parent = self.parent(place);
        let inner = self.walk(within(place), parent, sets, number);
        let own = Inside::of(&place.1);
        let (gains, loses) = match (was, is) {
            // What lay right in the parent lies in the cell now.
            (false, true) => (own, self.cells[&place].inside()),
            (true, false) => (inner, own),
            (true, true) | (false, false) => return,
        };
        let Some(parent) = parent else { return };
        let Some(cell) = self.cells.get_mut(&parent) else { return };
        let mut inside = cell.inside();
        let was_full = inside.fills(&parent.1);
        inside.add(gains);
        inside.subtract(loses);
        cell.set_inside(inside);
        if inside.fills(&parent.1) != was_full {
            let around = self.parent(parent);
            self.walk(within(parent), around, sets, number);
        }
    }

    /// The innermost cell around a prefix, without its own.
    fn parent(&self, (domain, prefix): Place) -> Option<Place> {
        let around = self.lengths.get(&domain)?.around(prefix.network());
        around
            .filter(|other| other.prefix_len() < prefix.prefix_len())
            .map(|other| (domain, other))
            .find(|place| self.cells.contains_key(place))
    }

    /// Works out all cells of a range, which lies in `parent`, and says what lies right in that.
    fn walk(
        &mut self,
        range: RangeInclusive<Place>,
        parent: Option<Place>,
        sets: &mut Interner,
        number: &mut dyn FnMut((SetId, SetId), &Interner) -> u32,
    ) -> Inside {
        let inside = self.count(range.clone());
        let around = parent.and_then(|parent| self.cells.get(&parent));
        let around = around.map_or((Sum::default(), 0), |cell| (cell.sum, cell.answer));
        let mut open: Vec<(Place, Sum, u32)> = Vec::new();
        for (place, cell) in self.cells.range_mut(range) {
            while open.last().is_some_and(|(other, ..)| !holds(other, place)) {
                open.pop();
            }
            let (outer, answer) = open.last().map_or(around, |(_, sum, answer)| (*sum, *answer));
            cell.sum = cell.add_up(outer, sets);
            cell.answer = if cell.inside().fills(&place.1) {
                answer
            } else {
                *self.numbers.entry(cell.sum).or_insert_with(|| number(cell.sum.slots(sets), sets))
            };
            let emitted = (cell.answer != answer).then_some(cell.answer);
            if emitted != cell.emitted {
                self.before.entry(*place).or_insert(cell.emitted);
                cell.emitted = emitted;
            }
            open.push((*place, cell.sum, cell.answer));
        }
        inside
    }

    /// Counts what lies right in each cell of a range, and in what is around all of them.
    fn count(&mut self, range: RangeInclusive<Place>) -> Inside {
        let mut outermost = Inside::default();
        let mut open: Vec<(Place, Inside)> = Vec::new();
        let mut counted: Vec<(Place, Inside)> = Vec::new();
        for (place, cell) in self.cells.range(range) {
            while let Some((other, inside)) = open.last()
                && !holds(other, place)
            {
                counted.push((*other, *inside));
                open.pop();
            }
            let around = open.last_mut().map_or(&mut outermost, |(_, inside)| inside);
            around.add(Inside::of(&place.1));
            // Nothing lies in a host.
            if place.1.prefix_len() < place.1.max_prefix_len() || cell.inside.is_some() {
                open.push((*place, Inside::default()));
            }
        }
        for (place, inside) in counted.into_iter().chain(open) {
            if let Some(cell) = self.cells.get_mut(&place) {
                cell.set_inside(inside);
            }
        }
        outermost
    }
}

fn holds(outer: &Place, inner: &Place) -> bool {
    outer.0 == inner.0 && outer.1.contains(&inner.1)
}

/// All places in a prefix, itself included.
fn within((domain, prefix): Place) -> RangeInclusive<Place> {
    let last = IpNet::from(prefix.broadcast());
    (domain, prefix)..=(domain, last)
}
