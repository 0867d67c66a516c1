//! Layout 1, as far as it is not today's: what a gateway of that layout has left pinned is taken
//! over by one of today.
//!
//! Only the record was another. It had a twelfth word for the time of the last phase change,
//! which was written as zero and never read. Entries, ports, next hops, counters and the events'
//! ring were as they are now, so they are not carried over but used on. A table of that layout
//! has no near slots, which its settings say; its stamps name epochs that are no longer moved,
//! until the first policy of today has every session judged again.

use crate::{session, word::Word};

/// The version that this module is about.
pub const VERSION: u32 = 1;

/// The tables of this layout that have another one today; all others are used on as they are.
pub const CHANGED: [&str; 1] = [crate::names::RECORDS4];

/// A cold record.
#[repr(C)]
pub struct Record {
    /// Forward slot 32 | reply slot 32.
    pub slots: Word,
    /// Rule id 32 | id of the first monitor rule that would have matched 32.
    pub rules: Word,
    /// Source identity id 32 | destination identity id 32.
    pub identities: Word,
    /// SNAT policy id 32 | generation that judged 32.
    pub policy: Word,
    /// When it began, in nanoseconds of the kernel's monotonic clock.
    pub began: Word,
    /// As today's [`session::Facts`].
    pub facts: Word,
    /// Packets and bytes that the entries have spilled: forward, then reply.
    pub spilled: [Word; 4],
    /// Incarnation 32 | 1 if the outside port is lent 32.
    pub identity: Word,
    /// Zero.
    pub event: Word,
}

const _: () = assert!(size_of::<Record>() == 96);

impl Record {
    /// The same as a record of today.
    #[must_use]
    pub fn today(&self) -> session::Record {
        let copy = |word: &Word| Word::new(word.load());
        session::Record {
            slots: copy(&self.slots),
            rules: copy(&self.rules),
            identities: copy(&self.identities),
            policy: copy(&self.policy),
            began: copy(&self.began),
            facts: copy(&self.facts),
            spilled: [
                copy(&self.spilled[0]),
                copy(&self.spilled[1]),
                copy(&self.spilled[2]),
                copy(&self.spilled[3]),
            ],
            identity: copy(&self.identity),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_layout_1_says_today_what_it_said_then() {
        let word = |n: u64| Word::new(n << 56 | n);
        let old = Record {
            slots: word(1),
            rules: word(2),
            identities: word(3),
            policy: word(4),
            began: word(5),
            facts: word(6),
            spilled: [word(7), word(8), word(9), word(10)],
            identity: word(11),
            event: word(12),
        };
        let today = old.today();
        let [a, b, c, d] = &today.spilled;
        let said = [
            &today.slots,
            &today.rules,
            &today.identities,
            &today.policy,
            &today.began,
            &today.facts,
            a,
            b,
            c,
            d,
            &today.identity,
        ];
        for (n, word) in (1..).zip(said) {
            assert_eq!(word.load(), n << 56 | n, "word {n}");
        }
    }
}
