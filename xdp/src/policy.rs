//! Which rule decides: identities of both ends, protocol and port, by bit vectors.
//!
//! Three sets of rules are met: those the source may be the source of, those the destination
//! may be the destination of, those that admit the protocol and port. The lowest bit in all
//! three is the first rule by priority. Two levels, so that empty words are not read.

use crate::{
    address::Key,
    bounds::{host_order, wrapped},
    packet::{TCP, UDP},
    repeat::Repeat,
    tables::Tables,
};
use xdp_abi::{
    config::PolicyWord,
    policy::{
        ACTION_DENY, ACTION_PERMIT, CLASS_OTHER, CLASS_TCP, CLASS_UDP, IdentityRef, RULE_WORDS,
        RuleSet, SUMMARY_WORDS,
    },
};

/// The counter of the default action; rules have those after it.
pub const DEFAULT_COUNTER: u32 = 0;

/// What a policy says of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

impl Judgement {
    /// Nobody, and nothing said of it.
    pub const NONE: Self = Self {
        action: 0,
        log: 0,
        mark: 0,
        rule: 0,
        would_match: 0,
        source: IdentityRef { index: 0, id: 0 },
        destination: IdentityRef { index: 0, id: 0 },
    };

    /// Says that no rule has counted the flow yet.
    #[inline(always)]
    pub const fn of_new_flow(&mut self) {
        self.rule = UNCOUNTED;
        self.would_match = UNCOUNTED;
    }
}

/// In place of a rule: none has counted this flow. No rule is known to have this id; one that had
/// would only miss first packets.
const UNCOUNTED: u32 = u32::MAX;

/// Where a protocol and port stand in the class table.
#[inline(always)]
pub const fn class_index(protocol: u8, destination_port: [u8; 2]) -> u32 {
    let port = host_order(destination_port) as u32;
    match protocol {
        TCP => CLASS_TCP + port,
        UDP => CLASS_UDP + port,
        other => CLASS_OTHER + other as u32,
    }
}

/// Who the ends of a flow are; its destination is in domain `towards`.
#[inline(always)]
pub fn parties<T: Tables>(
    tables: &T,
    policy: PolicyWord,
    key: &Key<T::A>,
    towards: u16,
) -> Judgement {
    let bank = policy.bank();
    Judgement {
        source: tables.identity(bank, key.domain, key.source),
        destination: tables.identity(bank, towards, key.destination),
        ..Judgement::NONE
    }
}

/// Judges a flow between the parties of `judgement`, by its first packet's key.
///
/// `judgement` comes with the rules that judged the flow last ([`Judgement::of_new_flow`]: none). A
/// rule that goes on to permit it, or to be watched, does not count it once more: it counts flows.
/// What is refused is counted packet by packet.
#[inline(never)]
pub fn judge<T: Tables>(
    tables: &T,
    policy: PolicyWord,
    key: &Key<T::A>,
    bytes: u64,
    judgement: &mut Judgement,
) {
    let bank = policy.bank();
    let (ruled, watched) = (judgement.rule, judgement.would_match);
    judgement.action = policy.default_action();
    judgement.log = policy.default_log();
    judgement.mark = 0;
    judgement.rule = 0;
    judgement.would_match = 0;
    let class = tables.class(bank, class_index(key.protocol, key.destination_port));
    let (Some(by_source), Some(by_destination), Some(by_class), Some(monitors)) = (
        tables.source_rules(bank, judgement.source.index),
        tables.destination_rules(bank, judgement.destination.index),
        tables.class_rules(bank, class),
        tables.monitors(bank),
    ) else {
        judgement.action = ACTION_DENY;
        return;
    };

    let sets = Sets { source: by_source, destination: by_destination, class: by_class, monitors };
    let matches = first_match::<T>(sets);
    if let Some(bit) = matches.monitor()
        && let Some(rule) = tables.rule(bank, bit)
    {
        if rule.id != watched {
            tables.count_rule(rule.counter, bytes);
        }
        judgement.would_match = rule.id;
    }
    if let Some(bit) = matches.decides() {
        let Some(rule) = tables.rule(bank, bit) else {
            judgement.action = ACTION_DENY;
            return;
        };
        if rule.action != ACTION_PERMIT || rule.id != ruled {
            tables.count_rule(rule.counter, bytes);
        }
        judgement.action = rule.action;
        judgement.log = rule.log;
        judgement.mark = rule.mark;
        judgement.rule = rule.id;
    } else if judgement.action != ACTION_PERMIT || ruled != 0 {
        tables.count_rule(DEFAULT_COUNTER, bytes);
    }
}

/// The sets that meet.
struct Sets<'a> {
    source: &'a RuleSet,
    destination: &'a RuleSet,
    class: &'a RuleSet,
    /// Rules that are only watched.
    monitors: &'a RuleSet,
}

/// Which rules matched first, by bit; [`NONE`]: none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Matches {
    decides: u32,
    monitor: u32,
}

const NONE: u32 = u32::MAX;

impl Matches {
    /// The rule that decides.
    #[inline(always)]
    const fn decides(self) -> Option<u32> {
        if self.decides == NONE { None } else { Some(self.decides) }
    }
    /// The first monitor rule before it, which would have decided.
    #[inline(always)]
    const fn monitor(self) -> Option<u32> {
        if self.monitor == NONE { None } else { Some(self.monitor) }
    }
}

/// The lowest bit that is in all three sets and decides, and the lowest before it that is only
/// watched.
#[inline(always)]
fn first_match<R: Repeat>(sets: Sets<'_>) -> Matches {
    let mut meeting =
        Meeting { sets, group: 0, words: 0, found: Matches { decides: NONE, monitor: NONE } };
    while meeting.group < SUMMARY_WORDS && meeting.found.decides == NONE {
        meeting.words = meeting.sets.source.summary[meeting.group]
            & meeting.sets.destination.summary[meeting.group]
            & meeting.sets.class.summary[meeting.group];
        // Mostly the first word has it: that one without the helper's two calls.
        if meeting.words != 0 && !meeting.step() {
            R::repeat(63, || meeting.step());
        }
        meeting.group += 1;
    }
    meeting.found
}

/// How far the sets have been gone through.
struct Meeting<'a> {
    sets: Sets<'a>,
    /// Which word of the summaries.
    group: usize,
    /// What of it was not looked at yet.
    words: u64,
    found: Matches,
}

impl Meeting<'_> {
    /// Looks at the next word of rules that none of the sets says is empty, and says whether it
    /// was the last one to look at.
    #[inline(always)]
    fn step(&mut self) -> bool {
        let word = self.group << 6 | self.words.trailing_zeros() as usize;
        let word = wrapped::<RULE_WORDS>(word);
        self.words &= self.words - 1;
        let sets = &self.sets;
        let bits = sets.source.words[word] & sets.destination.words[word] & sets.class.words[word];
        let watched = bits & sets.monitors.words[word];
        let deciding = bits & !watched;
        let base = (word as u32) << 6;
        if watched != 0 && self.found.monitor == NONE {
            let bit = watched.trailing_zeros();
            if deciding == 0 || bit < deciding.trailing_zeros() {
                self.found.monitor = base | bit;
            }
        }
        if deciding != 0 {
            self.found.decides = base | deciding.trailing_zeros();
        }
        self.words == 0 || deciding != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Plainly;
    impl Repeat for Plainly {}

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
        fn the_first_rules_are_found_as_a_plain_search_finds_them(
            a in proptest::collection::vec(0u32..16_384, 0..60),
            b in proptest::collection::vec(0u32..16_384, 0..60),
            c in proptest::collection::vec(0u32..16_384, 0..60),
            common in proptest::collection::vec(0u32..16_384, 0..6),
            watched in proptest::collection::vec(0u32..16_384, 0..6),
        ) {
            let with = |v: &[u32]| [v, &common[..], &watched[..]].concat();
            let (a, b, c) = (with(&a), with(&b), with(&c));
            let all = (0..16_384).filter(|x| a.contains(x) && b.contains(x) && c.contains(x));
            let (mut decides, mut monitor) = (NONE, NONE);
            for bit in all {
                if !watched.contains(&bit) {
                    decides = bit;
                    break;
                }
                monitor = monitor.min(bit);
            }
            let (a, b, c, watched) = (set(&a), set(&b), set(&c), set(&watched));
            let sets = Sets { source: &a, destination: &b, class: &c, monitors: &watched };
            proptest::prop_assert_eq!(first_match::<Plainly>(sets), Matches { decides, monitor });
        }
    }

    #[test]
    fn the_borders_of_words_and_groups_are_found() {
        for bit in [0, 63, 64, 4095, 4096, 16_383] {
            let one = set(&[bit]);
            for (monitors, expected) in [
                (set(&[]), Matches { decides: bit, monitor: NONE }),
                (set(&[bit]), Matches { decides: NONE, monitor: bit }),
            ] {
                let sets =
                    Sets { source: &one, destination: &one, class: &one, monitors: &monitors };
                assert_eq!(first_match::<Plainly>(sets), expected, "{bit}");
            }
        }
    }
}
