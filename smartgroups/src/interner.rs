//! Small sets of numbers, each kept once and named by its index.
//!
//! A hundred thousand pods are in a few thousand different sets of groups. With every set kept
//! once, a union is one lookup after the first time and equality is equality of two numbers.

use std::collections::HashMap;
use std::sync::Arc;

/// The index of a set in its [`Interner`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SetId(u32);

impl SetId {
    /// The set of nothing; there from the start.
    pub(crate) const EMPTY: Self = Self(0);
}

/// Sets of numbers and the unions already made.
pub(crate) struct Interner {
    sets: Vec<Arc<[u32]>>,
    index: HashMap<Arc<[u32]>, SetId>,
    unions: HashMap<(SetId, SetId), SetId>,
}

impl Interner {
    pub(crate) fn new() -> Self {
        let empty: Arc<[u32]> = Arc::from([]);
        Self {
            sets: vec![Arc::clone(&empty)],
            index: HashMap::from([(empty, SetId::EMPTY)]),
            unions: HashMap::new(),
        }
    }

    /// The members of a set, sorted.
    pub(crate) fn get(&self, id: SetId) -> &[u32] {
        &self.sets[id.0 as usize]
    }

    /// The set of these numbers, in any order and with doubles.
    pub(crate) fn set(&mut self, mut members: Vec<u32>) -> SetId {
        members.sort_unstable();
        members.dedup();
        if let Some(id) = self.index.get(members.as_slice()) {
            return *id;
        }
        let id = SetId(self.sets.len() as u32);
        let members: Arc<[u32]> = members.into();
        self.sets.push(Arc::clone(&members));
        self.index.insert(members, id);
        id
    }

    /// What is in either set.
    pub(crate) fn union(&mut self, a: SetId, b: SetId) -> SetId {
        let (a, b) = (a.min(b), a.max(b));
        if a == SetId::EMPTY || a == b {
            return b;
        }
        if let Some(id) = self.unions.get(&(a, b)) {
            return *id;
        }
        let id = self.set([self.get(a), self.get(b)].concat());
        self.unions.insert((a, b), id);
        id
    }

    /// What is in both sets.
    pub(crate) fn intersection(&mut self, a: SetId, b: SetId) -> SetId {
        let other = self.get(b);
        let both = self.get(a).iter().filter(|one| other.binary_search(one).is_ok());
        let both = both.copied().collect();
        self.set(both)
    }

    /// What is in the first set and not in the second.
    pub(crate) fn difference(&mut self, a: SetId, b: SetId) -> SetId {
        if a == SetId::EMPTY || a == b {
            return SetId::EMPTY;
        }
        let other = self.get(b);
        let rest = self.get(a).iter().filter(|one| other.binary_search(one).is_err());
        let rest = rest.copied().collect();
        self.set(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_members_are_the_same_set() {
        let mut sets = Interner::new();
        let a = sets.set(vec![3, 1, 3]);
        assert_eq!(sets.get(a), [1, 3]);
        assert_eq!(sets.set(vec![1, 3]), a);
        assert_ne!(sets.set(vec![1]), a);
        assert_eq!(sets.set(vec![]), SetId::EMPTY);
    }

    #[test]
    fn a_union_holds_what_either_holds() {
        let mut sets = Interner::new();
        let a = sets.set(vec![1, 3]);
        let b = sets.set(vec![2, 3]);
        let both = sets.union(a, b);
        assert_eq!(sets.get(both), [1, 2, 3]);
        assert_eq!(sets.union(b, a), both, "in either order, from memory");
        assert_eq!(sets.union(a, both), both);
        assert_eq!(sets.union(SetId::EMPTY, a), a);
        assert_eq!(sets.intersection(a, b), sets.set(vec![3]));
        assert_eq!(sets.difference(both, a), sets.set(vec![2]));
        assert_eq!(sets.difference(a, both), SetId::EMPTY);
        assert_eq!(sets.union(a, SetId::EMPTY), a);
    }
}
