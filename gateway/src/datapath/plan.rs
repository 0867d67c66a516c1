//! Which counter each rule of a policy has, and where its outside addresses stand: found before
//! anything of it is written, so that a policy that does not fit changes nothing.

use super::publish::PublishError;
use policy_compiler::{Image, SnatAction};
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::Ipv4Addr,
};
use xdp_abi::policy::POOL_ADDRESSES;

/// What of an outside address may be lent.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lending {
    /// The address.
    pub address: Ipv4Addr,
    /// The ports that the policy states.
    pub first: u16,
    /// The last of them.
    pub last: u16,
}

/// Where the outside addresses of an image are to stand.
#[derive(Debug, Default)]
pub struct Pools {
    /// Address and place of its lendable set.
    pub(super) addresses: Vec<(Ipv4Addr, u32)>,
    /// By policy: where its addresses begin, and how many there are.
    pub(super) places: Vec<(u16, u16)>,
    /// Where each lendable set is.
    pub(super) lendings: BTreeMap<Lending, u32>,
}

/// Gives every rule of an image a counter from 1 to `room`; the default action has the first.
pub fn number_rules(
    image: &Image,
    counters: &mut BTreeMap<u32, u32>,
    room: u32,
) -> Result<(), PublishError> {
    // What was kept may be of a time with larger tables.
    counters.retain(|_, counter| (1..=room).contains(counter));
    let live: HashSet<u32> = image.rules.iter().map(|rule| rule.id.0).collect();
    let mut used: HashSet<u32> = counters.values().copied().collect();
    for rule in &image.rules {
        if counters.contains_key(&rule.id.0) {
            continue;
        }
        let free = (1..=room).find(|counter| !used.contains(counter)).or_else(|| {
            // A counter of a rule that is gone: its count goes on under another name,
            // which only a table of exactly this size can see.
            let gone = counters.iter().find(|(id, _)| !live.contains(id));
            let (id, counter) = gone.map(|(id, counter)| (*id, *counter))?;
            counters.remove(&id);
            Some(counter)
        });
        let Some(counter) = free else {
            return Err(PublishError::Counters { need: image.rules.len(), room });
        };
        used.insert(counter);
        counters.insert(rule.id.0, counter);
    }
    Ok(())
}

/// The outside addresses of all policies, each with its place among the lendable sets, of which
/// there are `room`. Sets that are `in_use` keep their places until they are no more; what is in
/// other `foreign` places nobody knows, and it is left alone.
pub fn pools(
    image: &Image,
    in_use: &BTreeMap<Lending, u32>,
    foreign: &BTreeSet<u32>,
    room: u32,
) -> Result<Pools, PublishError> {
    let addresses = image.snat.iter().map(|policy| match &policy.action {
        SnatAction::Snat { addresses, .. } => addresses.len(),
        SnatAction::NoNat => 0,
    });
    let need = addresses.sum();
    if need > POOL_ADDRESSES as usize {
        return Err(PublishError::Pool { need });
    }
    let mut pools = Pools::default();
    // Old and new stand side by side while they change.
    let mut taken: HashSet<u32> = in_use.values().chain(foreign).copied().collect();
    for policy in &image.snat {
        let first = pools.addresses.len();
        if let SnatAction::Snat { addresses, ports } = &policy.action {
            for address in addresses {
                let lending =
                    Lending { address: *address, first: *ports.start(), last: *ports.end() };
                // A set keeps its place, because sessions were lent by it.
                let known = pools.lendings.get(&lending).or(in_use.get(&lending));
                let place = match known {
                    Some(place) => *place,
                    None => (0..room)
                        .find(|place| !taken.contains(place))
                        .ok_or(PublishError::Pools { room })?,
                };
                taken.insert(place);
                pools.lendings.insert(lending, place);
                pools.addresses.push((*address, place));
            }
        }
        pools.places.push((first as u16, (pools.addresses.len() - first) as u16));
    }
    Ok(pools)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::testing::{self, TWO_CLUSTERS};
    use policy_compiler::RuleId;
    use xdp_abi::policy::LENDABLE_SETS;

    fn image() -> Image {
        Image::clone(&testing::scene(TWO_CLUSTERS).config.image)
    }

    /// One policy with every outside address that fits, from `first` on.
    fn lending(first: [u8; 4], count: u32) -> Image {
        let mut image = image();
        image.snat.truncate(1);
        let addresses = (0..count).map(|n| Ipv4Addr::from(u32::from_be_bytes(first) + n)).collect();
        image.snat[0].action = SnatAction::Snat { addresses, ports: 1024..=65_535 };
        image
    }

    fn planned(
        image: &Image,
        in_use: &BTreeMap<Lending, u32>,
        room: u32,
    ) -> Result<Pools, PublishError> {
        pools(image, in_use, &BTreeSet::new(), room)
    }

    #[test]
    fn any_pool_that_is_allowed_can_be_exchanged_for_any_other() {
        let mut in_use = BTreeMap::new();
        for (first, count) in [
            ([203, 0, 113, 0], POOL_ADDRESSES),
            ([198, 51, 100, 0], POOL_ADDRESSES),
            ([203, 0, 115, 0], POOL_ADDRESSES), // half of them as in the first
            ([203, 0, 113, 0], 1),
            ([198, 51, 100, 0], POOL_ADDRESSES),
        ] {
            let next = planned(&lending(first, count), &in_use, LENDABLE_SETS).unwrap().lendings;
            let places: HashSet<u32> = next.values().copied().collect();
            assert_eq!(places.len(), count as usize, "each has a place of its own");
            assert!(places.iter().all(|place| *place < LENDABLE_SETS));
            for (lending, place) in &in_use {
                assert_eq!(next.get(lending).unwrap_or(place), place, "it keeps its place");
                let other = next.iter().find(|(other, at)| *at == place && *other != lending);
                assert_eq!(other, None, "packets of the policy before still look there");
            }
            in_use = next;
        }
        let all = lending([203, 0, 113, 0], POOL_ADDRESSES + 1);
        let refused = planned(&all, &in_use, LENDABLE_SETS).unwrap_err().to_string();
        assert!(refused.contains("name 1025 outside addresses"), "{refused}");
    }

    #[test]
    fn smaller_tables_of_an_older_version_say_what_they_have_room_for() {
        let old =
            planned(&lending([203, 0, 113, 0], 600), &BTreeMap::new(), POOL_ADDRESSES).unwrap();
        let next = lending([198, 51, 100, 0], 600);
        let refused = planned(&next, &old.lendings, POOL_ADDRESSES).unwrap_err().to_string();
        assert!(refused.contains("have room for 1024 of both together"), "{refused}");
    }

    #[test]
    fn as_many_rules_are_counted_as_there_is_room_for() {
        let mut image = image();
        let rule = image.rules[0].clone();
        let rules = |ids: std::ops::Range<u32>| {
            ids.map(|id| policy_compiler::ImageRule { id: RuleId(id), ..rule.clone() }).collect()
        };
        let mut counters = BTreeMap::new();
        image.rules = rules(100..104);
        number_rules(&image, &mut counters, 4).unwrap();
        assert_eq!(counters, BTreeMap::from([(100, 1), (101, 2), (102, 3), (103, 4)]));
        // One that leaves makes room for one that comes.
        image.rules = rules(101..105);
        number_rules(&image, &mut counters, 4).unwrap();
        assert_eq!(counters, BTreeMap::from([(101, 2), (102, 3), (103, 4), (104, 1)]));
        image.rules = rules(101..106);
        let refused = number_rules(&image, &mut counters, 4).unwrap_err().to_string();
        assert!(refused.starts_with("5 rules need counters"), "{refused}");
        // Counters of larger tables are not in these.
        let mut counters = BTreeMap::from([(101, 5), (102, 0), (103, 2)]);
        image.rules = rules(101..104);
        number_rules(&image, &mut counters, 4).unwrap();
        assert_eq!(counters, BTreeMap::from([(101, 1), (102, 3), (103, 2)]));
    }
}
