//! Which rule decides: identities of both ends, protocol and port, by bit vectors.
//!
//! Three sets of rules are met: those the source may be the source of, those the destination
//! may be the destination of, those that admit the protocol and port. The lowest bit in all
//! three is the first rule by priority. Two levels, so that empty words are not read.

use crate::{
    address::Key,
    packet::{TCP, UDP},
    tables::Tables,
};
use xdp_abi::{
    config::PolicyWord,
    policy::{
        ACTION_DENY, CLASS_OTHER, CLASS_TCP, CLASS_UDP, IdentityRef, RULE_WORDS, RuleSet,
        SUMMARY_WORDS,
    },
};

/// How many rules of a set may match and not decide before the packet is refused: monitor
/// rules are counted one by one, and a decision has bounded steps.
pub const MONITORS: u32 = 8;

/// What a policy says of a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// `ACTION_*`.
    pub action: u8,
    /// `LOG_*`.
    pub log: u8,
    /// Mark of a permitted flow.
    pub mark: u16,
    /// The rule that decided; zero: the default action.
    pub rule: u32,
    /// The first monitor rule that would have; zero: none.
    pub would_match: u32,
    /// Who sends.
    pub source: IdentityRef,
    /// To whom.
    pub destination: IdentityRef,
}

/// Where a protocol and port stand in the class table.
#[inline(always)]
pub const fn class_index(protocol: u8, destination_port: [u8; 2]) -> u32 {
    let port = u16::from_be_bytes(destination_port) as u32;
    match protocol {
        TCP => CLASS_TCP + port,
        UDP => CLASS_UDP + port,
        other => CLASS_OTHER + other as u32,
    }
}

/// Judges a flow by its first packet's key; the destination is in domain `towards`.
#[inline(always)]
pub fn judge<T: Tables>(
    tables: &T,
    policy: PolicyWord,
    key: &Key<T::A>,
    towards: u16,
    bytes: u64,
) -> Judgement {
    let bank = policy.bank();
    let source = tables.identity(bank, key.domain, key.source);
    let destination = tables.identity(bank, towards, key.destination);
    let class = tables.class(bank, class_index(key.protocol, key.destination_port));
    let mut judgement = Judgement {
        action: policy.default_action(),
        log: policy.default_log(),
        source,
        destination,
        ..Judgement::default()
    };
    let (Some(by_source), Some(by_destination), Some(by_class)) = (
        tables.source_rules(bank, source.index),
        tables.destination_rules(bank, destination.index),
        tables.class_rules(bank, class),
    ) else {
        judgement.action = ACTION_DENY;
        return judgement;
    };

    let mut from = 0;
    let mut monitors = 0;
    while monitors < MONITORS {
        let Some(bit) = first_match(by_source, by_destination, by_class, from) else {
            return judgement;
        };
        let Some(rule) = tables.rule(bank, bit) else {
            judgement.action = ACTION_DENY;
            return judgement;
        };
        tables.count_rule(rule.counter, bytes);
        if rule.monitor == 0 {
            judgement.action = rule.action;
            judgement.log = rule.log;
            judgement.mark = rule.mark;
            judgement.rule = rule.id;
            return judgement;
        }
        if judgement.would_match == 0 {
            judgement.would_match = rule.id;
        }
        from = bit + 1;
        monitors += 1;
    }
    judgement.action = ACTION_DENY;
    judgement
}

/// The lowest bit, from `from` on, that is in all three sets.
#[inline(always)]
fn first_match(a: &RuleSet, b: &RuleSet, c: &RuleSet, from: u32) -> Option<u32> {
    let first_word = (from >> 6) as usize;
    let mut s = first_word >> 6;
    // The first word of the first group may be entered in its middle.
    let mut words_left = u64::MAX << (first_word & 63);
    let mut first_bits = u64::MAX << (from & 63);
    while s < SUMMARY_WORDS {
        let mut words = a.summary.get(s)? & b.summary.get(s)? & c.summary.get(s)? & words_left;
        let mut steps = 0;
        while words != 0 && steps < 64 {
            steps += 1;
            let word = s << 6 | words.trailing_zeros() as usize;
            words &= words - 1;
            if word >= RULE_WORDS {
                return None;
            }
            let mut bits = a.words.get(word)? & b.words.get(word)? & c.words.get(word)?;
            if word == first_word {
                bits &= first_bits;
            }
            if bits != 0 {
                return Some((word as u32) << 6 | bits.trailing_zeros());
            }
        }
        words_left = u64::MAX;
        first_bits = u64::MAX;
        s += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(bits: &[u32]) -> RuleSet {
        let mut set = RuleSet { summary: [0; SUMMARY_WORDS], words: [0; RULE_WORDS] };
        for bit in bits {
            let word = (bit >> 6) as usize;
            set.words[word] |= 1 << (bit & 63);
            set.summary[word >> 6] |= 1 << (word & 63);
        }
        set
    }

    proptest::proptest! {
        #[test]
        fn the_lowest_common_bit_is_found_as_a_plain_search_finds_it(
            a in proptest::collection::vec(0u32..16_384, 0..60),
            b in proptest::collection::vec(0u32..16_384, 0..60),
            c in proptest::collection::vec(0u32..16_384, 0..60),
            common in proptest::collection::vec(0u32..16_384, 0..4),
            from in 0u32..16_384,
        ) {
            let with = |v: &[u32]| [v, &common[..]].concat();
            let (a, b, c) = (with(&a), with(&b), with(&c));
            let expected = (from..16_384).find(|bit| {
                a.contains(bit) && b.contains(bit) && c.contains(bit)
            });
            proptest::prop_assert_eq!(first_match(&set(&a), &set(&b), &set(&c), from), expected);
        }
    }

    #[test]
    fn the_borders_of_words_and_groups_are_found() {
        for bit in [0, 63, 64, 4095, 4096, 16_383] {
            let one = set(&[bit]);
            assert_eq!(first_match(&one, &one, &one, 0), Some(bit), "{bit}");
            assert_eq!(first_match(&one, &one, &one, bit), Some(bit), "{bit}");
            assert_eq!(first_match(&one, &one, &one, bit + 1), None, "{bit}");
        }
    }
}
