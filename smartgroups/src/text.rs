//! Text and labels that many endpoints have in common.
//!
//! A hundred thousand pods are in a few thousand namespaces and deployments. What they share is
//! kept once: a copy is a counter, and whoever holds a copy of the inventory copies no text.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

/// Text that is shared.
pub type Text = Arc<str>;

/// Kubernetes labels or cloud tags, sorted by key, each key once.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Labels(Arc<[(Text, Text)]>);

impl Labels {
    /// The value of a label.
    pub fn get(&self, key: &str) -> Option<&str> {
        let at = self.0.binary_search_by(|(other, _)| other.as_ref().cmp(key)).ok()?;
        Some(&self.0[at].1)
    }

    /// Whether it is there, with whatever value.
    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// All of them, sorted by key.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&Text, &Text)> {
        self.0.iter().map(|(key, value)| (key, value))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// In any order; of a key that comes twice the last value counts.
impl<K: Into<Text>, V: Into<Text>> FromIterator<(K, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(labels: I) -> Self {
        let mut all: Vec<(Text, Text)> =
            labels.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        all.reverse();
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        all.dedup_by(|(later, _), (first, _)| later == first);
        Self(all.into())
    }
}

impl<K: Into<Text>, V: Into<Text>, const N: usize> From<[(K, V); N]> for Labels {
    fn from(labels: [(K, V); N]) -> Self {
        labels.into_iter().collect()
    }
}

/// Text and labels that occur, each kept once.
#[derive(Debug, Default)]
pub struct Pool {
    texts: HashSet<Text>,
    labels: HashSet<Labels>,
    /// How many there were when what nobody else holds was last thrown out.
    kept: usize,
}

impl Pool {
    /// A pool of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// The one copy of a text.
    pub fn text(&mut self, text: &str) -> Text {
        if let Some(known) = self.texts.get(text) {
            return Arc::clone(known);
        }
        self.make_room();
        let text = Text::from(text);
        self.texts.insert(Arc::clone(&text));
        text
    }

    /// The one copy of a set of labels, made of the one copies of its texts.
    pub fn labels<'a>(&mut self, labels: impl Iterator<Item = (&'a str, &'a str)>) -> Labels {
        let labels: Labels =
            labels.map(|(key, value)| (self.text(key), self.text(value))).collect();
        if let Some(known) = self.labels.get(&labels) {
            return known.clone();
        }
        self.make_room();
        self.labels.insert(labels.clone());
        labels
    }

    /// Throws out what nobody else holds, each time that there is twice as much as after the last.
    fn make_room(&mut self) {
        const FEW: usize = 1024;
        if self.texts.len() + self.labels.len() < 2 * self.kept.max(FEW) {
            return;
        }
        self.labels.retain(|labels| Arc::strong_count(&labels.0) > 1);
        self.texts.retain(|text| Arc::strong_count(text) > 1);
        self.kept = self.texts.len() + self.labels.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_sorted_and_the_last_value_of_a_key_counts() {
        let labels: Labels = [("b", "1"), ("a", "2"), ("b", "3")].into();
        let all: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(all, ["a=2", "b=3"]);
        for (key, expected) in [("a", Some("2")), ("b", Some("3")), ("", None), ("c", None)] {
            assert_eq!(labels.get(key), expected, "{key}");
            assert_eq!(labels.has(key), expected.is_some(), "{key}");
        }
        assert_eq!(labels, Labels::from([("b", "3"), ("a", "2")]));
    }

    #[test]
    fn what_is_alike_is_kept_once_and_what_nobody_holds_is_thrown_out() {
        let mut pool = Pool::new();
        let text = pool.text("team");
        assert!(Arc::ptr_eq(&text, &pool.text("team")));
        let labels = pool.labels([("team", "web")].into_iter());
        assert!(Arc::ptr_eq(&labels.0, &pool.labels([("team", "web")].into_iter()).0));
        assert!(Arc::ptr_eq(&labels.0[0].0, &text));
        for n in 0..100_000 {
            pool.labels([("team", n.to_string().as_str())].into_iter());
        }
        assert!(pool.texts.len() + pool.labels.len() < 5000, "{}", pool.texts.len());
        assert!(Arc::ptr_eq(&labels.0, &pool.labels([("team", "web")].into_iter()).0));
    }
}
