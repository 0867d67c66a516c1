//! Non-routable prefixes, changed under traffic.
//!
//! A packet looks at their words one after the other, up to the first that is zero, and another may
//! be written meanwhile. Each is written whole, so nobody meets the network of one prefix with the mask of another;
//! but a prefix that moves from one word to another, or is exchanged for its halves, could be missed by a
//! packet that has passed the one and has not come to the other. So the words are changed in rounds, of which a
//! packet meets two at most: whatever is in the old list and in the new one is in some word before and after each
//! round. A prefix keeps its word, and what is not needed any more leaves a word that matches nothing.

use super::publish::GRACE;
use ipnet::Ipv4Net;
use std::{net::Ipv4Addr, thread};
use xdp_abi::{config::NON_ROUTABLE, word::Word};

/// What each word has.
type List = [Option<Ipv4Net>; NON_ROUTABLE];

/// A network that no mask leaves: it matches nothing, and the words behind it are looked at.
const NEVER: u64 = 1 << 32;

/// Brings the words to these prefixes.
pub(super) fn write(words: &[Word; NON_ROUTABLE], wanted: impl Iterator<Item = Ipv4Net>) {
    let now = decoded(words.each_ref().map(Word::load));
    for (n, list) in rounds(now, wanted.collect()).into_iter().enumerate() {
        if n > 0 {
            thread::sleep(GRACE);
        }
        for (word, new) in words.iter().zip(encoded(&list)) {
            if word.load() != new {
                word.store(new);
            }
        }
    }
}

fn decoded(words: [u64; NON_ROUTABLE]) -> List {
    let seen = words.iter().take_while(|word| **word != 0).count();
    let address = |half: u64| Ipv4Addr::from((half as u32).to_ne_bytes());
    std::array::from_fn(|n| {
        let word = words[..seen].get(n)?;
        let prefix = Ipv4Net::with_netmask(address(word >> 32), address(*word)).ok()?;
        (prefix.network() == prefix.addr()).then_some(prefix)
    })
}

fn encoded(list: &List) -> [u64; NON_ROUTABLE] {
    let used = list.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
    let word = |address: Ipv4Addr| u64::from(u32::from_ne_bytes(address.octets()));
    std::array::from_fn(|n| match list[n] {
        Some(prefix) => word(prefix.network()) << 32 | word(prefix.netmask()),
        None if n < used => NEVER,
        None => 0,
    })
}

/// The lists on the way from one to another, the last of which is the other.
fn rounds(mut now: List, mut wanted: Vec<Ipv4Net>) -> Vec<List> {
    let all = wanted.clone();
    wanted.retain(|prefix| !all.iter().any(|other| other != prefix && other.contains(prefix)));
    let mut rounds = Vec::new();
    loop {
        let next = round(&now, &wanted);
        if next == now {
            return rounds;
        }
        rounds.push(next);
        now = next;
    }
}

/// As many words as may change at once. There is always one until the list is the wanted one,
/// because that has no more prefixes than there are words, and none in another.
fn round(now: &List, wanted: &[Ipv4Net]) -> List {
    let mut next = *now;
    for missing in wanted.iter().filter(|prefix| !now.contains(&Some(**prefix))) {
        let place = |fits: &dyn Fn(usize) -> bool| {
            (0..NON_ROUTABLE).find(|n| next[*n] == now[*n] && fits(*n))
        };
        let leaves = |n: usize| now[n].filter(|old| !wanted.contains(old));
        // In place of a part of it, of nothing that is needed, or of that whose last part it is.
        let found = place(&|n| leaves(n).is_some_and(|old| missing.contains(&old)))
            .or_else(|| place(&|n| is_free(n, now, wanted)))
            .or_else(|| {
                place(&|n| leaves(n).is_some_and(|old| is_last(missing, &old, now, wanted)))
            });
        if let Some(n) = found {
            next[n] = Some(*missing);
        }
    }
    for n in (0..NON_ROUTABLE).filter(|n| is_free(*n, now, wanted)) {
        if next[n] == now[n] {
            next[n] = None;
        }
    }
    next
}

/// Whether what is in a word is in others as well, as far as it is wanted.
fn is_free(n: usize, now: &List, wanted: &[Ipv4Net]) -> bool {
    let Some(old) = now[n] else { return true };
    if now[..n].contains(&Some(old)) {
        return true;
    }
    if wanted.contains(&old) {
        return false;
    }
    let is_there = |prefix: &Ipv4Net| now.contains(&Some(*prefix));
    if now.iter().flatten().any(|other| *other != old && other.contains(&old)) {
        return true;
    }
    match wanted.iter().find(|prefix| prefix.contains(&old)) {
        Some(whole) => is_there(whole),
        None => wanted.iter().filter(|prefix| old.contains(*prefix)).all(is_there),
    }
}

/// Whether of all wanted parts of a prefix only this one is not there.
fn is_last(part: &Ipv4Net, whole: &Ipv4Net, now: &List, wanted: &[Ipv4Net]) -> bool {
    let mut parts = wanted.iter().filter(|prefix| whole.contains(*prefix));
    whole.contains(part) && parts.all(|other| other == part || now.contains(&Some(*other)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use xdp::address::V4;
    use xdp::memory::{Memory, Sizes};
    use xdp::tables::{Tables as _, is_non_routable};

    fn list(prefixes: &[Ipv4Net]) -> List {
        std::array::from_fn(|n| prefixes.get(n).copied())
    }

    fn nets(text: &str) -> Vec<Ipv4Net> {
        text.split_whitespace().map(|prefix| prefix.parse().unwrap()).collect()
    }

    /// Sixteen addresses, and every prefix of some of them.
    fn addresses() -> impl Iterator<Item = Ipv4Addr> {
        (0..16).map(|n| Ipv4Addr::new(10, 0, 0, n))
    }

    fn prefixes() -> impl Strategy<Value = Vec<Ipv4Net>> {
        let prefix = (0u8..16, 28u8..=32).prop_map(|(last, bits)| {
            Ipv4Net::new(Ipv4Addr::new(10, 0, 0, last), bits).unwrap().trunc()
        });
        proptest::collection::vec(prefix, 0..=NON_ROUTABLE)
    }

    fn holds(prefixes: &[Ipv4Net], address: Ipv4Addr) -> bool {
        prefixes.iter().any(|prefix| prefix.contains(&address))
    }

    /// What a packet may find: of each word what it was or what it is, whichever.
    fn assert_never_missed(old: &[Ipv4Net], wanted: &[Ipv4Net]) {
        let memory = Memory::new(Sizes::default(), 1);
        let config = memory.config();
        let finds = |words: [u64; NON_ROUTABLE], address: Ipv4Addr| {
            for (word, value) in config.non_routable.iter().zip(words) {
                word.store(value);
            }
            is_non_routable(config, V4(address.octets()))
        };
        let mut before = encoded(&list(old));
        for (n, round) in rounds(list(old), wanted.to_vec()).iter().enumerate() {
            assert!(n < 2 * NON_ROUTABLE, "{old:?} to {wanted:?} takes too long");
            let after = encoded(round);
            for mix in 0..1 << NON_ROUTABLE {
                let of = |n: usize| if mix >> n & 1 == 0 { before[n] } else { after[n] };
                let differs = |n: &usize| before[*n] != after[*n];
                if (0..NON_ROUTABLE).any(|n| mix >> n & 1 != 0 && !differs(&n)) {
                    continue;
                }
                for address in addresses() {
                    let (then, now) = (holds(old, address), holds(wanted, address));
                    let found = finds(std::array::from_fn(of), address);
                    assert!(found || !(then && now), "{address}: {old:?} to {wanted:?}, {round:?}");
                    assert!(!found || then || now, "{address} is in neither: {old:?}, {wanted:?}");
                }
            }
            before = after;
        }
        for address in addresses() {
            assert_eq!(finds(before, address), holds(wanted, address), "{address}: {wanted:?}");
        }
    }

    #[test]
    fn what_stays_non_routable_is_so_for_every_packet() {
        const HOSTS: &str = "10.0.0.0/32 10.0.0.2/32 10.0.0.4/32 10.0.0.6/32 10.0.0.8/32 \
                             10.0.0.10/32 10.0.0.12/32";
        for (old, wanted) in [
            ("10.0.0.0/30 10.0.0.4/30", "10.0.0.4/30"), // the first goes
            ("10.0.0.4/30", "10.0.0.0/30 10.0.0.4/30"), // one comes before it
            ("10.0.0.0/30 10.0.0.4/30", "10.0.0.4/30 10.0.0.0/30"),
            ("10.0.0.0/28", "10.0.0.0/29 10.0.0.8/29"), // halves
            ("10.0.0.0/29 10.0.0.8/29", "10.0.0.0/28"),
            ("10.0.0.0/28 10.0.0.0/30", "10.0.0.0/30"), // one in another
            (HOSTS, "10.0.0.1/32 10.0.0.3/32 10.0.0.5/32 10.0.0.7/32 10.0.0.9/32 10.0.0.11/32"),
            // No word is left over.
            (&format!("{HOSTS} 10.0.0.14/31"), &format!("{HOSTS} 10.0.0.14/32")),
            (&format!("{HOSTS} 10.0.0.14/32"), "10.0.0.0/29 10.0.0.8/29"),
            ("10.0.0.0/29 10.0.0.8/29", &format!("{HOSTS} 10.0.0.14/32")),
        ] {
            assert_never_missed(&nets(old), &nets(wanted));
        }
    }

    #[test]
    fn a_list_that_stays_is_left_alone() {
        let prefixes = nets("100.64.0.0/10 10.0.0.0/8");
        assert!(rounds(list(&prefixes), prefixes.clone()).is_empty());
        let words: [Word; NON_ROUTABLE] = std::array::from_fn(|_| Word::new(0));
        write(&words, prefixes.iter().copied());
        let loaded = || words.each_ref().map(Word::load);
        assert_eq!(decoded(loaded()), list(&prefixes));
        write(&words, prefixes[1..].iter().copied());
        assert_eq!(loaded()[0], NEVER, "what is behind it keeps its word");
        assert_eq!(
            decoded(loaded()),
            [None, Some(prefixes[1]), None, None, None, None, None, None]
        );
    }

    proptest! {
        #[test]
        fn whatever_changes_nothing_that_stays_is_missed(old in prefixes(), wanted in prefixes()) {
            assert_never_missed(&old, &wanted);
        }
    }
}
