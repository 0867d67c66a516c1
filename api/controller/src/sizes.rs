//! How many members each group has.
//!
//! A member is an address or a prefix that is in the group and what is around it is not. So a group
//! that states 10.0.0.0/8 has one member, however many machines in there are known by name or split off
//! by something else, and a group of pods has as many as it has pods.

use std::collections::HashMap;

use ipnet::IpNet;
use policy_compiler::{Amendment, Image};
use smartgroups::{DomainId, GroupId, longest_match};

/// The number of members of each group that has some, but for the built-in ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sizes(HashMap<GroupId, usize>);

/// By how much the numbers of some groups change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SizeChange(HashMap<GroupId, isize>);

impl Sizes {
    /// Counts the members of a whole policy.
    pub fn of(image: &Image) -> Self {
        let hosts = image.hosts.iter().map(|(domain, host, at)| (*domain, IpNet::from(*host), *at));
        let mut rows: Vec<(DomainId, IpNet, u32)> =
            image.prefixes.iter().copied().chain(hosts).collect();
        // One that holds another stands before it.
        rows.sort_unstable();
        let mut sizes = Self::default();
        let mut around: Vec<(DomainId, IpNet, u32)> = Vec::new();
        for row in rows {
            let holds =
                |outer: &(DomainId, IpNet, u32)| outer.0 == row.0 && outer.1.contains(&row.1);
            while around.pop_if(|outer| !holds(outer)).is_some() {}
            let outer = around.last().map_or(0, |(_, _, at)| *at);
            for group in entered(groups(image, None, outer), groups(image, None, row.2)) {
                *sizes.0.entry(group).or_default() += 1;
            }
            around.push(row);
        }
        sizes
    }

    /// How many members a group has.
    pub fn get(&self, group: GroupId) -> usize {
        self.0.get(&group).copied().unwrap_or_default()
    }

    /// Brings a change in.
    pub fn apply(&mut self, change: &SizeChange) {
        for (group, by) in &change.0 {
            let size = self.0.entry(*group).or_default();
            *size = size.saturating_add_signed(*by);
            if *size == 0 {
                self.0.remove(group);
            }
        }
    }
}

#[cfg(test)]
impl FromIterator<(GroupId, usize)> for Sizes {
    fn from_iter<T: IntoIterator<Item = (GroupId, usize)>>(sizes: T) -> Self {
        Self(sizes.into_iter().filter(|(_, size)| *size > 0).collect())
    }
}

impl SizeChange {
    /// What an amendment will change in the image that it is made for. `None` if it is about prefixes,
    /// which are around others: then all is to be counted again.
    pub fn of(image: &Image, amendment: &Amendment) -> Option<Self> {
        if !amendment.prefixes.is_empty() {
            return None;
        }
        let mut change = Self::default();
        for (domain, address, after) in &amendment.hosts {
            let around = longest_match(&[], &image.prefixes, *domain, *address).unwrap_or(0);
            let around = groups(image, None, around);
            let row = image.hosts.binary_search_by_key(&(*domain, *address), |(d, a, _)| (*d, *a));
            if let Ok(row) = row {
                for group in entered(around, groups(image, None, image.hosts[row].2)) {
                    *change.0.entry(group).or_default() -= 1;
                }
            }
            if let Some(after) = after {
                for group in entered(around, groups(image, Some(amendment), *after)) {
                    *change.0.entry(group).or_default() += 1;
                }
            }
        }
        change.0.retain(|_, by| *by != 0);
        Some(change)
    }

    /// The groups whose numbers change.
    pub fn groups(&self) -> impl Iterator<Item = GroupId> {
        self.0.keys().copied()
    }
}

/// The groups of an identity of the image, or of those that an amendment adds to it.
fn groups<'a>(image: &'a Image, amendment: Option<&'a Amendment>, index: u32) -> &'a [GroupId] {
    let index = index as usize;
    let added = || amendment?.identities.get(index.checked_sub(image.identities.len())?);
    image.identities.get(index).or_else(added).map_or(&[], |identity| &identity.groups)
}

/// The groups that somebody is in who is inside of others that are not; both lists are sorted.
fn entered<'a>(around: &'a [GroupId], inside: &'a [GroupId]) -> impl Iterator<Item = GroupId> + 'a {
    let is_built_in =
        |group: &GroupId| [GroupId::ANYWHERE, GroupId::PUBLIC_INTERNET].contains(group);
    let is_new = move |group: &GroupId| around.binary_search(group).is_err();
    inside.iter().copied().filter(is_new).filter(move |group| !is_built_in(group))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plane::testing::{found, policy};
    use crate::{Plane, Step};
    use proptest::prelude::*;
    use smartgroups::{Change, Inventory, Selector, SmartGroup};

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn who_is_inside_of_a_member_is_none_of_its_own() {
        let mut policy = policy(100);
        let inside =
            |prefix: &str| Selector { domain: Some(DomainId(1)), ..Selector::cidr(net(prefix)) };
        policy.groups.extend([
            SmartGroup::new("net", vec![inside("100.64.0.0/24"), inside("100.64.0.128/25")]),
            SmartGroup {
                exclude: vec![inside("100.64.0.0/30")],
                ..SmartGroup::new("rest", vec![inside("100.64.0.0/24")])
            },
        ]);
        let pods = [("a", 1, "web"), ("b", 2, "web"), ("c", 200, "web"), ("d", 3, "other")];
        let pods = pods.map(|(name, host, team)| found(name, host, team));
        let (_, image) = Plane::new(policy, Inventory::new(), pods).unwrap();
        let sizes = Sizes::of(&image);
        for (group, expected) in [("web", 3), ("net", 1), ("rest", 1), ("prod", 0)] {
            assert_eq!(sizes.get(GroupId::of(group)), expected, "{group}");
        }
        assert_eq!(sizes.get(GroupId::ANYWHERE), 0, "nobody asks");
    }

    /// The slow twin: every row against all that are around it.
    fn counted(image: &Image) -> HashMap<GroupId, usize> {
        let hosts = image.hosts.iter().map(|(d, host, at)| (*d, IpNet::from(*host), *at));
        let rows: Vec<_> = image.prefixes.iter().copied().chain(hosts).collect();
        let mut sizes = HashMap::new();
        for (domain, prefix, at) in &rows {
            let outer = rows
                .iter()
                .filter(|(d, outer, _)| d == domain && outer != prefix && outer.contains(prefix))
                .max_by_key(|(_, outer, _)| outer.prefix_len())
                .map_or(0, |(_, _, at)| *at as usize);
            for group in &image.identities[*at as usize].groups {
                let is_around = image.identities[outer].groups.contains(group);
                if !is_around && *group != GroupId::ANYWHERE && *group != GroupId::PUBLIC_INTERNET {
                    *sizes.entry(*group).or_default() += 1;
                }
            }
        }
        sizes
    }

    proptest! {
        #[test]
        fn sizes_that_are_kept_up_are_those_that_are_counted(
            changes in proptest::collection::vec((0_u8..12, 0_u8..12, 0_u8..4), 1..40),
        ) {
            let mut policy = policy(100);
            let stated = Selector { domain: Some(DomainId(1)), ..Selector::cidr(net("100.64.0.0/29")) };
            policy.groups.push(SmartGroup::new("net", vec![stated.clone()]));
            let web = Selector { labels: [("team".into(), "web".into())].into(), ..Selector::default() };
            policy.groups.push(SmartGroup::new("both", vec![web, stated]));
            let (mut plane, mut image) = Plane::new(policy, Inventory::new(), []).unwrap();
            let mut sizes = Sizes::of(&image);
            for (name, host, kind) in changes {
                let name = name.to_string();
                let step = plane.discover([match kind {
                    0 => Change::Gone(name.as_str().into()),
                    1 => found(&name, host, "other"),
                    _ => found(&name, host, "web"),
                }]);
                match step {
                    Step::Nothing => {}
                    Step::Amended(amendment) => {
                        let change = SizeChange::of(&image, &amendment);
                        image.amend(&amendment);
                        match change {
                            Some(change) => sizes.apply(&change),
                            None => sizes = Sizes::of(&image),
                        }
                    }
                    Step::Anew(_) | Step::NoRoom(_) => panic!("there is room"),
                }
                prop_assert_eq!(&sizes.0, &counted(&image));
            }
        }
    }
}
