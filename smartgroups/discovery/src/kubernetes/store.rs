//! The objects of one kind, each at the newest version that was heard of.
//!
//! Behind one address there may be several API servers, and one of them may lag: after a
//! reconnection it tells what was true before. A version that is older than what is known of the
//! same object is therefore passed over; of objects that are gone it is remembered for a while when
//! they went, because a lagging server would bring them back.
//!
//! Versions are compared as numbers where they are decimal numbers, as Kubernetes promises them to
//! be for its own kinds. One that is not can only be told apart, and then the order of arrival counts.

use std::collections::{BTreeMap, HashMap, VecDeque};

use smartgroups::Text;

/// The version of an object or of a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Version(Option<u64>);

impl Version {
    pub(crate) fn new(text: &str) -> Self {
        Self(text.parse().ok())
    }

    /// Whether it is known to be before the other.
    pub(crate) fn is_before(self, other: Self) -> bool {
        matches!((self.0, other.0), (Some(this), Some(that)) if this < that)
    }

    /// The later of both, or the one that is a number.
    pub(crate) fn later(self, other: Self) -> Self {
        Self(self.0.max(other.0))
    }
}

/// An object's namespace (empty for what is in none) and name.
pub(crate) type Key = (Text, Text);

#[derive(Clone, Debug)]
struct Held<F> {
    version: Version,
    facts: F,
}

/// Objects of one kind by key.
#[derive(Debug)]
pub(crate) struct Store<F> {
    held: BTreeMap<Key, Held<F>>,
    gone: HashMap<Key, Version>,
    /// In the order in which they went.
    order: VecDeque<Key>,
}

/// How many of those that went last are remembered: minutes of a very busy cluster, far longer than
/// a server lags, and a few megabytes.
const REMEMBERED: usize = 16_384;

impl<F> Default for Store<F> {
    fn default() -> Self {
        Self { held: BTreeMap::new(), gone: HashMap::new(), order: VecDeque::new() }
    }
}

impl<F> Store<F> {
    /// Whether something of this version may be believed.
    pub(crate) fn believes(&self, key: &Key, version: Version) -> bool {
        let known = self.held.get(key).map(|held| held.version);
        let known = known.or_else(|| self.gone.get(key).copied());
        known.is_none_or(|known| !version.is_before(known))
    }

    /// Whether exactly this version is known already.
    pub(crate) fn has(&self, key: &Key, version: Version) -> bool {
        version.0.is_some() && self.held.get(key).is_some_and(|held| held.version == version)
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&F> {
        self.held.get(key).map(|held| &held.facts)
    }

    pub(crate) fn get_mut(&mut self, key: &Key) -> Option<&mut F> {
        self.held.get_mut(key).map(|held| &mut held.facts)
    }

    pub(crate) fn put(&mut self, key: Key, version: Version, facts: F) {
        self.gone.remove(&key);
        self.held.insert(key, Held { version, facts });
    }

    /// Forgets an object, and remembers when it went.
    pub(crate) fn remove(&mut self, key: &Key, version: Version) {
        let known = self.held.remove(key).map(|held| held.version);
        let known = known.or_else(|| self.gone.get(key).copied()).unwrap_or_default();
        if self.gone.insert(key.clone(), version.later(known)).is_none() {
            self.order.push_back(key.clone());
        }
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.gone.remove(&oldest);
        }
    }

    /// After a list, what went before it is settled.
    pub(crate) fn settle(&mut self) {
        self.gone.clear();
        self.order.clear();
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.held.keys()
    }

    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        ("ns".into(), name.into())
    }

    #[test]
    fn an_older_version_is_not_believed_and_an_opaque_one_is() {
        let mut store = Store::default();
        store.put(key("a"), Version::new("10"), ());
        store.put(key("opaque"), Version::new("x10"), ());
        store.put(key("gone"), Version::new("10"), ());
        store.remove(&key("gone"), Version::new("12"));
        for (name, version, expected) in [
            ("a", "9", false),
            ("a", "10", true), // the same again
            ("a", "11", true),
            ("a", "9x", true),
            ("opaque", "1", true),
            ("gone", "11", false), // a lagging server brings back what is gone
            ("gone", "13", true),  // made anew
            ("never heard of", "1", true),
        ] {
            assert_eq!(
                store.believes(&key(name), Version::new(version)),
                expected,
                "{name} {version}"
            );
        }
    }

    #[test]
    fn what_went_is_remembered_within_bounds() {
        let mut store: Store<()> = Store::default();
        for number in 0..=REMEMBERED {
            store.remove(&key(&number.to_string()), Version::new("5"));
        }
        assert_eq!((store.gone.len(), store.order.len()), (REMEMBERED, REMEMBERED));
        assert!(store.believes(&key("0"), Version::new("4")), "forgotten");
        assert!(!store.believes(&key("1"), Version::new("4")));
        store.settle();
        assert!(store.believes(&key("1"), Version::new("4")));
    }
}
