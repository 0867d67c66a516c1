//! Prefixes within one another, changed entry by entry while packets are looked up in them.
//!
//! Of all prefixes that hold an address the longest counts. So the order of changes matters: what is
//! written too early, or taken away too late, shows for a moment what neither the old table nor the
//! new one says.

use ipnet::Ipv4Net;
use std::collections::BTreeSet;

/// What a prefix of some realm (a domain, a port) is to have: a value, or nothing.
pub(super) type Change<R, V> = ((R, Ipv4Net), Option<V>);

const LONGEST: u8 = 32;

/// Changes in the order in which they are written. What comes, the longest prefix first, so that
/// nothing shorter shows where something longer is about to be; then what goes, the shortest first, so
/// that nothing shorter shows where something longer was. Without room beside one another what goes
/// has to go first.
pub(super) fn in_turn<R: Copy, V: Copy>(
    changes: &[Change<R, V>],
    have_room: bool,
) -> Vec<Change<R, V>> {
    let mut changes = changes.to_vec();
    changes.sort_by_key(|((_, net), at)| match at {
        Some(_) => (!have_room, LONGEST - net.prefix_len()),
        None => (have_room, net.prefix_len()),
    });
    changes
}

/// The same without room, so that meanwhile an address has nothing rather than what it had neither
/// before nor has after: a prefix that stays goes too, and comes again, if something within it goes.
/// `stays` says what it has.
pub(super) fn in_turn_without_room<R: Copy + Ord, V: Copy>(
    changes: &[Change<R, V>],
    stays: impl Fn(&(R, Ipv4Net)) -> Option<V>,
) -> Vec<Change<R, V>> {
    let gone = changes.iter().filter(|(_, at)| at.is_none());
    let around: BTreeSet<(R, Ipv4Net)> = gone
        .flat_map(|((realm, net), _)| {
            std::iter::successors(net.supernet(), Ipv4Net::supernet).map(|net| (*realm, net))
        })
        .collect();
    let mut all = changes.to_vec();
    for place in around {
        if let Some(value) = stays(&place) {
            all.push((place, None));
            all.push((place, Some(value)));
        }
    }
    in_turn(&all, false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{collections::BTreeMap, net::Ipv4Addr};

    type Table = BTreeMap<((), Ipv4Net), u32>;

    /// Few prefixes within one another, so that every way of hiding and showing comes up.
    fn nets() -> impl Strategy<Value = Table> {
        let net = (0..8_u32, 29..=LONGEST).prop_map(|(low, length)| {
            let address = Ipv4Addr::from(0x6440_0000 | low);
            ((), Ipv4Net::new_assert(address, length).trunc())
        });
        prop::collection::btree_map(net, 0..4_u32, 0..8)
    }

    fn seen(table: &Table, address: u32) -> Option<u32> {
        let address = Ipv4Addr::from(address);
        let around = table.iter().filter(|((_, net), _)| net.contains(&address));
        around.max_by_key(|((_, net), _)| net.prefix_len()).map(|(_, at)| *at)
    }

    fn changes(old: &Table, new: &Table) -> Vec<Change<(), u32>> {
        let gone = old.keys().filter(|place| !new.contains_key(place)).map(|place| (*place, None));
        let come = new.iter().filter(|(place, at)| old.get(place) != Some(at));
        gone.chain(come.map(|(place, at)| (*place, Some(*at)))).collect()
    }

    /// Carries changes out, and asks after each of them; what was become of the table comes back.
    fn carry_out(
        old: &Table,
        changes: Vec<Change<(), u32>>,
        mut ask: impl FnMut(&Table) -> Result<(), TestCaseError>,
    ) -> Result<Table, TestCaseError> {
        let mut table = old.clone();
        for (place, at) in changes {
            match at {
                Some(at) => table.insert(place, at),
                None => table.remove(&place),
            };
            ask(&table)?;
        }
        Ok(table)
    }

    const ADDRESSES: std::ops::Range<u32> = 0x6440_0000..0x6440_0008;

    proptest! {
        #[test]
        fn every_address_goes_from_what_it_was_to_what_it_is(old in nets(), new in nets()) {
            let table = carry_out(&old, in_turn(&changes(&old, &new), true), |table| {
                for address in ADDRESSES {
                    let now = seen(table, address);
                    prop_assert!(
                        now == seen(&old, address) || now == seen(&new, address),
                        "{} of {:?} on the way to {:?}", address, old, new
                    );
                }
                Ok(())
            })?;
            prop_assert_eq!(table, new);
        }

        #[test]
        fn without_room_a_table_never_holds_more_than_before_or_after(old in nets(), new in nets()) {
            let most = old.len().max(new.len());
            let table = carry_out(&old, in_turn(&changes(&old, &new), false), |table| {
                prop_assert!(table.len() <= most);
                Ok(())
            })?;
            prop_assert_eq!(table, new);
        }

        #[test]
        fn without_room_an_address_has_nothing_rather_than_what_is_another_s(
            old in nets(), new in nets()
        ) {
            let most = old.len().max(new.len());
            let stays = |place: &((), Ipv4Net)| new.get(place).copied().filter(|_| old.contains_key(place));
            let turns = in_turn_without_room(&changes(&old, &new), stays);
            let table = carry_out(&old, turns, |table| {
                prop_assert!(table.len() <= most);
                for address in ADDRESSES {
                    let now = seen(table, address);
                    prop_assert!(
                        now.is_none() || now == seen(&old, address) || now == seen(&new, address),
                        "{} of {:?} on the way to {:?}", address, old, new
                    );
                }
                Ok(())
            })?;
            prop_assert_eq!(table, new);
        }
    }
}
