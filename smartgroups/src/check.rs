//! Which groups can be resolved at all.

use std::collections::HashMap;

use crate::{ANYWHERE, GroupId, PUBLIC_INTERNET, Selector, SmartGroup};

/// Groups that cannot be resolved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// Two groups of one name.
    #[error("smart group `{group}` is defined twice")]
    DuplicateName {
        /// The name.
        group: String,
    },
    /// A group with a built-in name.
    #[error("smart group `{group}` is built in and cannot be defined")]
    BuiltIn {
        /// The name.
        group: String,
    },
    /// Two groups of one id; [`GroupId::assign`] avoids it.
    #[error("smart groups `{group}` and `{other}` have the same id {id}")]
    DuplicateId {
        /// The later group.
        group: String,
        /// The earlier group.
        other: String,
        /// The id.
        id: GroupId,
    },
    /// The id that means "none".
    #[error("smart group `{group}` has the id 0, which means none")]
    ZeroId {
        /// The group.
        group: String,
    },
    /// A group that is named as a part of another, and does not exist.
    #[error("smart group `{group}` names the group `{part}`, which does not exist")]
    UnknownGroup {
        /// The group.
        group: String,
        /// What it names.
        part: String,
    },
    /// A group that is a part of itself.
    #[error("smart group `{}` is a part of itself ({})", path[0], path.join(" -> "))]
    Cycle {
        /// The way around, from the group to itself.
        path: Vec<String>,
    },
    /// A selector that names a group and asks for something beside it.
    #[error("selector {selector} of smart group `{group}` names a group and more; it stands alone")]
    MixedSelector {
        /// The group.
        group: String,
        /// Which selector, from 1, those that exclude behind the others.
        selector: usize,
    },
    /// A selector without a field.
    #[error("selector {selector} of smart group `{group}` is empty; use `anywhere` for everything")]
    EmptySelector {
        /// The group.
        group: String,
        /// Which selector, from 1, those that exclude behind the others.
        selector: usize,
    },
}

/// Refuses groups that cannot be told apart, and selectors that cannot be meant.
pub(crate) fn check(groups: &[SmartGroup]) -> Result<(), ResolveError> {
    let mut names = HashMap::new();
    let mut ids =
        HashMap::from([(GroupId::ANYWHERE, ANYWHERE), (GroupId::PUBLIC_INTERNET, PUBLIC_INTERNET)]);
    for group in groups {
        let name = || group.name.clone();
        if group.name == ANYWHERE || group.name == PUBLIC_INTERNET {
            return Err(ResolveError::BuiltIn { group: name() });
        }
        if names.insert(&group.name, ()).is_some() {
            return Err(ResolveError::DuplicateName { group: name() });
        }
        if group.id.0 == 0 {
            return Err(ResolveError::ZeroId { group: name() });
        }
        if let Some(other) = ids.insert(group.id, &group.name) {
            let other = other.to_owned();
            return Err(ResolveError::DuplicateId { group: name(), other, id: group.id });
        }
        let mut all = group.selectors.iter().chain(&group.exclude);
        if let Some(empty) = all.clone().position(Selector::is_empty) {
            return Err(ResolveError::EmptySelector { group: name(), selector: empty + 1 });
        }
        if let Some(mixed) = all.position(Selector::is_mixed) {
            return Err(ResolveError::MixedSelector { group: name(), selector: mixed + 1 });
        }
    }
    Ok(())
}
