//! Whether an address is in a group, from what is known of the halves of all groups.

use std::collections::HashMap;

use crate::resolve::PUBLIC;
use crate::{ANYWHERE, PUBLIC_INTERNET, ResolveError, Selector, SmartGroup, Truth};

/// One half of a group: what its selectors take, or what they exclude.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Half {
    Takes,
    Excludes,
}

impl Half {
    /// Its slot in interned sets.
    pub(crate) const fn slot(self, group: usize) -> u32 {
        let first = PUBLIC + 1 + 2 * group as u32;
        match self {
            Self::Takes => first,
            Self::Excludes => first + 1,
        }
    }
}

/// A group that is named.
#[derive(Clone, Copy, Debug)]
enum Part {
    Everything,
    Public,
    Group(usize),
}

/// The groups that each group names, and an order in which every group comes behind those.
pub(crate) struct Formula {
    order: Vec<usize>,
    takes: Vec<Vec<Part>>,
    excludes: Vec<Vec<Part>>,
}

impl Formula {
    /// Finds the order.
    ///
    /// # Errors
    /// A group names one that does not exist, or is a part of itself.
    pub(crate) fn new(groups: &[SmartGroup]) -> Result<Self, ResolveError> {
        let numbers: HashMap<&str, usize> =
            groups.iter().enumerate().map(|(n, group)| (group.name.as_str(), n)).collect();
        let parts = |group: &SmartGroup, selectors: &[Selector]| {
            let named = selectors.iter().filter_map(|selector| selector.group.as_deref());
            named
                .map(|part| match part {
                    ANYWHERE => Ok(Part::Everything),
                    PUBLIC_INTERNET => Ok(Part::Public),
                    _ => numbers.get(part).map(|number| Part::Group(*number)).ok_or_else(|| {
                        let (group, part) = (group.name.clone(), part.to_owned());
                        ResolveError::UnknownGroup { group, part }
                    }),
                })
                .collect::<Result<Vec<_>, _>>()
        };
        let takes: Vec<_> =
            groups.iter().map(|one| parts(one, &one.selectors)).collect::<Result<_, _>>()?;
        let excludes: Vec<_> =
            groups.iter().map(|one| parts(one, &one.exclude)).collect::<Result<_, _>>()?;
        let mut formula = Self { order: Vec::with_capacity(groups.len()), takes, excludes };
        formula.sort(groups)?;
        Ok(formula)
    }

    /// Depth first, without recursion: nobody bounds how deep groups name one another.
    fn sort(&mut self, groups: &[SmartGroup]) -> Result<(), ResolveError> {
        #[derive(Clone, Copy, PartialEq)]
        enum Seen {
            Never,
            Open,
            Done,
        }
        let mut seen = vec![Seen::Never; groups.len()];
        for first in 0..groups.len() {
            if seen[first] != Seen::Never {
                continue;
            }
            seen[first] = Seen::Open;
            // Each with how many of its parts were looked at.
            let mut path = vec![(first, 0)];
            while let Some((group, looked)) = path.last_mut() {
                let parts = self.takes[*group].iter().chain(&self.excludes[*group]);
                let next = parts.skip(*looked).find_map(|part| {
                    *looked += 1;
                    match part {
                        Part::Group(part) if seen[*part] != Seen::Done => Some(*part),
                        Part::Group(_) | Part::Everything | Part::Public => None,
                    }
                });
                match next {
                    Some(part) if seen[part] == Seen::Open => {
                        let around = path.iter().skip_while(|(group, _)| *group != part);
                        let around = around.map(|(group, _)| *group).chain([part]);
                        let path = around.map(|group| groups[group].name.clone()).collect();
                        return Err(ResolveError::Cycle { path });
                    }
                    Some(part) => {
                        seen[part] = Seen::Open;
                        path.push((part, 0));
                    }
                    None => {
                        seen[*group] = Seen::Done;
                        self.order.push(*group);
                        path.pop();
                    }
                }
            }
        }
        Ok(())
    }

    /// The groups that may hold an address with these halves, for certain and in doubt; both sorted.
    pub(crate) fn of(&self, set: &[u32], doubted: &[u32]) -> impl Iterator<Item = (usize, Truth)> {
        let of_slot = |slot: u32| {
            if set.binary_search(&slot).is_ok() {
                Truth::Yes
            } else if doubted.binary_search(&slot).is_ok() {
                Truth::Maybe
            } else {
                Truth::No
            }
        };
        let public = of_slot(PUBLIC);
        let mut truths = vec![Truth::No; self.order.len()];
        for group in &self.order {
            let any = |half: Half, parts: &[Part]| {
                let parts = parts.iter().map(|part| match part {
                    Part::Everything => Truth::Yes,
                    Part::Public => public,
                    Part::Group(part) => truths[*part],
                });
                parts.chain([of_slot(half.slot(*group))]).max().unwrap_or(Truth::No)
            };
            let takes = any(Half::Takes, &self.takes[*group]);
            truths[*group] = takes.min(any(Half::Excludes, &self.excludes[*group]).not());
        }
        truths.into_iter().enumerate().filter(|(_, truth)| *truth != Truth::No)
    }
}
