//! A set of small numbers, one bit each.
//!
//! All sets of one image have one length, so that equal sets are equal words: the length is given
//! once and a bit past it is a mistake of the caller, not a reason to grow.

use std::fmt;

/// A set of numbers below a fixed length.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BitSet {
    words: Vec<u64>,
}

impl BitSet {
    /// No number below `length` is in it.
    pub fn new(length: usize) -> Self {
        Self { words: vec![0; length.div_ceil(64)] }
    }

    /// Exactly these numbers, each below `length`, are in it.
    pub fn of(length: usize, bits: impl IntoIterator<Item = usize>) -> Self {
        let mut set = Self::new(length);
        for bit in bits {
            set.insert(bit);
        }
        set
    }

    /// Every number below `length` is in it.
    pub fn full(length: usize) -> Self {
        Self::of(length, 0..length)
    }

    /// Adds a number.
    ///
    /// # Panics
    ///
    /// If the number is not below the length.
    pub fn insert(&mut self, bit: usize) {
        self.words[bit / 64] |= 1 << (bit % 64);
    }

    /// Takes a number out; one past the length was never in.
    pub fn remove(&mut self, bit: usize) {
        if let Some(word) = self.words.get_mut(bit / 64) {
            *word &= !(1 << (bit % 64));
        }
    }

    /// Whether a number is in it; one past the length is not.
    pub fn contains(&self, bit: usize) -> bool {
        self.words.get(bit / 64).is_some_and(|word| word >> (bit % 64) & 1 == 1)
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// How many numbers are in it.
    pub fn len(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Adds what the other set holds.
    pub fn union_with(&mut self, other: &Self) {
        for (word, other) in self.words.iter_mut().zip(&other.words) {
            *word |= other;
        }
    }

    /// Keeps what the other set holds too.
    pub fn intersect_with(&mut self, other: &Self) {
        let others = other.words.iter().copied().chain(std::iter::repeat(0));
        for (word, other) in self.words.iter_mut().zip(others) {
            *word &= other;
        }
    }

    /// The numbers that are in it, from the lowest.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        self.words.iter().enumerate().flat_map(|(index, word)| {
            let mut rest = *word;
            std::iter::from_fn(move || {
                (rest != 0).then(|| {
                    let bit = rest.trailing_zeros() as usize;
                    rest &= rest - 1;
                    index * 64 + bit
                })
            })
        })
    }

    /// The numbers that are in all three sets, from the lowest. This is the question the packet
    /// path asks: source, destination, port class.
    pub fn common<'a>(
        a: &'a Self,
        b: &'a Self,
        c: &'a Self,
    ) -> impl Iterator<Item = usize> + use<'a> {
        let words = a.words.iter().zip(&b.words).zip(&c.words);
        words.enumerate().flat_map(|(index, ((a, b), c))| {
            let mut rest = a & b & c;
            std::iter::from_fn(move || {
                (rest != 0).then(|| {
                    let bit = rest.trailing_zeros() as usize;
                    rest &= rest - 1;
                    index * 64 + bit
                })
            })
        })
    }

    /// The bits in words of 64, lowest first; word n holds the numbers from 64 n.
    pub fn words(&self) -> &[u64] {
        &self.words
    }
}

impl fmt::Debug for BitSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const LENGTH: usize = 200;

    fn numbers() -> impl Strategy<Value = BTreeSet<usize>> {
        proptest::collection::btree_set(0..LENGTH, 0..60)
    }

    fn bits(numbers: &BTreeSet<usize>) -> BitSet {
        BitSet::of(LENGTH, numbers.iter().copied())
    }

    proptest! {
        #[test]
        fn a_bit_set_is_a_set(a in numbers(), b in numbers(), c in numbers(), one in 0..LENGTH) {
            let listed = |set: &BitSet| set.iter().collect::<BTreeSet<usize>>();
            prop_assert_eq!(listed(&bits(&a)), a.clone());
            prop_assert_eq!(bits(&a).len(), a.len());
            prop_assert_eq!(bits(&a).is_empty(), a.is_empty());
            prop_assert_eq!(bits(&a).contains(one), a.contains(&one));
            let mut set = bits(&a);
            set.union_with(&bits(&b));
            prop_assert_eq!(listed(&set), &a | &b);
            let mut set = bits(&a);
            set.intersect_with(&bits(&b));
            prop_assert_eq!(listed(&set), &a & &b);
            let mut set = bits(&a);
            set.remove(one);
            prop_assert_eq!(listed(&set), &a - &BTreeSet::from([one]));
            let (a_bits, b_bits, c_bits) = (bits(&a), bits(&b), bits(&c));
            let common: Vec<usize> = BitSet::common(&a_bits, &b_bits, &c_bits).collect();
            prop_assert_eq!(common, (&(&a & &b) & &c).into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_borders_of_words_hold() {
        for bit in [0, 63, 64, 127] {
            let set = BitSet::of(128, [bit]);
            assert_eq!(set.iter().collect::<Vec<_>>(), [bit]);
            assert_eq!(set.words()[bit / 64], 1 << (bit % 64));
        }
        assert!(!BitSet::full(65).contains(65));
        assert!(!BitSet::full(65).contains(1000), "past every word");
        assert_eq!(BitSet::full(65).len(), 65);
        assert!(BitSet::new(0).is_empty());
    }
}
