//! Numbers that stay the same across restarts, machines and releases.
//!
//! Sessions, counters and records carry a 32-bit id instead of a name, and a record may be read
//! long after the object is gone. So the id follows from kind and name alone: 64-bit FNV-1a,
//! folded. FNV because its definition fits in two lines and will never change under us; it keeps
//! nobody out, and need not: a collision is found and resolved, never ignored.
//!
//! Zero is never given away: in tables and records it means "none".

use std::collections::{BTreeMap, BTreeSet};

const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

/// Between the parts of what is hashed: a byte that UTF-8 never contains, so that no two pairs of
/// kind and name run together into the same bytes.
const SEPARATOR: u8 = 0xff;

const fn fold_in(mut hash: u64, bytes: &[u8]) -> u64 {
    let mut i = 0;
    while i < bytes.len() {
        hash = (hash ^ bytes[i] as u64).wrapping_mul(PRIME);
        i += 1;
    }
    hash
}

const fn finish(hash: u64) -> u32 {
    let folded = (hash >> 32) as u32 ^ hash as u32;
    if folded == 0 { 1 } else { folded }
}

/// The id of `name` among the objects of one kind; never zero.
pub const fn stable_id(kind: &str, name: &str) -> u32 {
    stable_id_of_bytes(kind, name.as_bytes(), 0)
}

/// The id of anything that is bytes. A higher `attempt` gives another id for the same bytes: it is
/// how a collision is resolved.
pub const fn stable_id_of_bytes(kind: &str, bytes: &[u8], attempt: u32) -> u32 {
    let mut hash = fold_in(OFFSET, kind.as_bytes());
    hash = fold_in(hash, &[SEPARATOR]);
    hash = fold_in(hash, bytes);
    if attempt > 0 {
        hash = fold_in(hash, &[SEPARATOR]);
        hash = fold_in(hash, &attempt.to_le_bytes());
    }
    finish(hash)
}

/// Distinct ids for all objects of one kind, none of them in `taken`.
///
/// Every name gets its [`stable_id`] unless that is taken by a name that sorts before it; then the
/// next attempt counts. The outcome depends on the set of names only, not on their order.
pub fn stable_ids<'a>(
    kind: &str,
    names: impl IntoIterator<Item = &'a str>,
    taken: impl IntoIterator<Item = u32>,
) -> BTreeMap<&'a str, u32> {
    assign(names, taken, |name, attempt| stable_id_of_bytes(kind, name.as_bytes(), attempt))
}

fn assign<'a>(
    names: impl IntoIterator<Item = &'a str>,
    taken: impl IntoIterator<Item = u32>,
    hash: impl Fn(&str, u32) -> u32,
) -> BTreeMap<&'a str, u32> {
    let mut used: BTreeSet<u32> = taken.into_iter().collect();
    let mut ids = BTreeMap::new();
    for name in names.into_iter().collect::<BTreeSet<_>>() {
        let mut attempt = 0;
        let mut id = hash(name, attempt);
        while !used.insert(id) {
            attempt += 1;
            id = hash(name, attempt);
        }
        ids.insert(name, id);
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_the_same_in_every_release() {
        // Records in a SIEM carry these numbers: a change here orphans them.
        for (kind, name, expected) in [
            ("SmartGroup", "anywhere", 0xd965_f8c1),
            ("SmartGroup", "public-internet", 0x6740_8fa7),
            ("Rule", "anywhere", 0x99ac_e5e1),
            ("Rule", "", 0xbcb5_56d4),
        ] {
            assert_eq!(
                stable_id(kind, name),
                expected,
                "{kind} {name}: {:#x}",
                stable_id(kind, name)
            );
        }
    }

    #[test]
    fn zero_is_never_an_id() {
        for (hash, expected) in [
            (0, 1),                     // folds to zero
            (0x0000_0007_0000_0007, 1), // folds to zero as well
            (0x0000_0007_0000_0006, 1), // folds to one by itself
            (0x0000_0007_0000_0005, 2),
        ] {
            assert_eq!(finish(hash), expected, "{hash:#x}");
        }
    }

    #[test]
    fn a_collision_is_resolved_in_the_same_way_whatever_the_order() {
        // A hash with four values, so that six names and one taken id must collide.
        let hash = |name: &str, attempt: u32| (name.len() as u32 + attempt * 3) % 8 + 1;
        let forward = assign(["a", "b", "cc", "dd", "ee", "f"], [2], hash);
        let backward = assign(["f", "ee", "dd", "cc", "b", "a"], [2], hash);
        assert_eq!(forward, backward);
        let distinct: BTreeSet<u32> = forward.values().copied().collect();
        assert_eq!(distinct.len(), 6);
        assert!(!distinct.contains(&2), "taken before");
    }

    #[test]
    fn without_a_collision_the_id_is_that_of_the_name_alone() {
        let ids = stable_ids("Rule", ["a", "b"], []);
        assert_eq!(ids["a"], stable_id("Rule", "a"));
        assert_eq!(ids["b"], stable_id("Rule", "b"));
    }

    #[test]
    fn kind_and_name_do_not_run_together() {
        assert_ne!(stable_id("ab", "c"), stable_id("a", "bc"));
    }
}
