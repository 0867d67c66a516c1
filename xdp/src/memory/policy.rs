//! A whole policy, as one bank of the tables holds it.

use crate::address::V4;
use std::collections::{HashMap, HashSet};
use xdp_abi::policy::{
    ACTION_DENY, CLASS_TABLE, IdentityRef, PoolAddress, RULE_WORDS, Rule, RuleSet, SUMMARY_WORDS,
    Snat, SnatBits,
};

use super::settings::Prefix;

/// Everything that one generation of the policy says.
#[derive(Clone, Debug)]
pub struct Policy {
    /// `ACTION_*` where no rule matches.
    pub default_action: u8,
    /// `LOG_*` of that.
    pub default_log: u8,
    /// Identities of single addresses, by domain.
    pub hosts: HashMap<(u16, V4), IdentityRef>,
    /// Identities of prefixes; the longest decides.
    pub prefixes: Vec<(u16, Prefix, IdentityRef)>,
    /// By identity.
    pub source_rules: Vec<RuleSet>,
    /// By identity.
    pub destination_rules: Vec<RuleSet>,
    /// By `policy::class_index`.
    pub classes: Vec<u16>,
    /// By class.
    pub class_rules: Vec<RuleSet>,
    /// Rules that are watched and never decide.
    pub monitors: RuleSet,
    /// By bit.
    pub rules: Vec<Rule>,
    /// By identity.
    pub snat_bits: Vec<SnatBits>,
    /// By bit.
    pub snat: Vec<Snat>,
    /// Outside addresses of all SNAT policies.
    pub pools: Vec<PoolAddress>,
    /// The same addresses as a set.
    pub outside: HashSet<V4>,
}

impl Default for Policy {
    /// Nobody known, nothing permitted.
    fn default() -> Self {
        Self {
            default_action: ACTION_DENY,
            default_log: 0,
            hosts: HashMap::new(),
            prefixes: Vec::new(),
            source_rules: vec![rule_set(&[])],
            destination_rules: vec![rule_set(&[])],
            classes: vec![0; CLASS_TABLE as usize],
            class_rules: vec![rule_set(&[])],
            monitors: rule_set(&[]),
            rules: Vec::new(),
            snat_bits: vec![SnatBits::default()],
            snat: Vec::new(),
            pools: Vec::new(),
            outside: HashSet::new(),
        }
    }
}

/// The set of these bits; a bit that there is no room for is left out.
#[must_use]
pub fn rule_set(bits: &[u32]) -> RuleSet {
    let mut set = RuleSet { summary: [0; SUMMARY_WORDS], words: [0; RULE_WORDS] };
    for bit in bits {
        let word = (bit >> 6) as usize;
        if let (Some(bits), Some(summary)) =
            (set.words.get_mut(word), set.summary.get_mut(word >> 6))
        {
            *bits |= 1 << (bit & 63);
            *summary |= 1 << (word & 63);
        }
    }
    set
}
