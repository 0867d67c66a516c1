//! Which attachment has which number.
//!
//! Live sessions, next hops and flow records hold an attachment by its number, so a number belongs
//! to a name and not to a place in the file: attachments may be stated in another order, and some
//! of them come and go, while what is live goes on meaning the same ones. The numbers are kept
//! from one configuration to the next, and in `state_dir` from one daemon to the next.
//!
//! A name that has left keeps its number too, because a session or a next hop may hold it for as
//! long as the tables exist. Only when every number was given out is one of those given again.

use crate::config::Gateway;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use xdp_abi::forward::ATTACHMENTS;

/// Every number that was given out, by name; none is zero, none has two names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, u16>")]
pub struct Numbers(BTreeMap<String, u16>);

/// What was kept cannot be the numbers of attachments.
#[derive(Debug, thiserror::Error)]
pub enum NumbersError {
    /// There is no such number.
    #[error("attachment `{0}` has the number {1}; expected 1 to {last}", last = ATTACHMENTS - 1)]
    OutOfRange(String, u16),
    /// Two names have it.
    #[error("attachment `{0}` has the number {1}, which another has too")]
    Twice(String, u16),
}

impl TryFrom<BTreeMap<String, u16>> for Numbers {
    type Error = NumbersError;

    fn try_from(numbers: BTreeMap<String, u16>) -> Result<Self, NumbersError> {
        let mut seen = BTreeSet::new();
        for (name, number) in &numbers {
            if *number == 0 || u32::from(*number) >= ATTACHMENTS {
                return Err(NumbersError::OutOfRange(name.clone(), *number));
            }
            if !seen.insert(*number) {
                return Err(NumbersError::Twice(name.clone(), *number));
            }
        }
        Ok(Self(numbers))
    }
}

impl Numbers {
    /// The same, with a number for every attachment of a configuration. New ones are numbered
    /// after all that ever were, in the order of the file.
    #[must_use]
    pub fn with(&self, gateway: &Gateway) -> Self {
        let present: BTreeSet<&str> =
            gateway.attachments.iter().map(|attachment| attachment.name.as_str()).collect();
        let mut numbers = self.0.clone();
        let mut used: BTreeSet<u16> = numbers.values().copied().collect();
        for attachment in &gateway.attachments {
            if numbers.contains_key(&attachment.name) {
                continue;
            }
            let free =
                (1..ATTACHMENTS as u16).find(|number| !used.contains(number)).or_else(|| {
                    // All were given out: the first of those whose name has left is taken over.
                    let left = numbers.iter().filter(|(name, _)| !present.contains(name.as_str()));
                    let (name, number) = left.min_by_key(|(_, number)| **number)?;
                    let (name, number) = (name.clone(), *number);
                    numbers.remove(&name);
                    Some(number)
                });
            // There is always one: a configuration has fewer attachments than there are numbers.
            if let Some(number) = free {
                used.insert(number);
                numbers.insert(attachment.name.clone(), number);
            }
        }
        Self(numbers)
    }

    /// The number of an attachment.
    #[must_use]
    pub fn of(&self, name: &str) -> Option<u16> {
        self.0.get(name).copied()
    }

    /// Every name that has a number, also of attachments that have left.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u16)> {
        self.0.iter().map(|(name, number)| (name.as_str(), *number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Attachment;
    use crate::flows::testing::{self, TWO_CLUSTERS};

    fn gateway<N: ToString>(names: impl IntoIterator<Item = N>) -> Gateway {
        let mut gateway = testing::scene(TWO_CLUSTERS).config.gateway;
        let one = gateway.attachments[0].clone();
        let named = |name: N| Attachment { name: name.to_string(), ..one.clone() };
        gateway.attachments = names.into_iter().map(named).collect();
        gateway
    }

    #[test]
    fn a_name_keeps_its_number_whatever_becomes_of_the_others() {
        let mut numbers = Numbers::default();
        for (names, expected) in [
            (vec!["pods", "transit", "internet"], vec![1, 2, 3]),
            (vec!["internet", "pods", "transit"], vec![3, 1, 2]), // another order
            (vec!["internet", "office", "pods"], vec![3, 4, 1]),  // one left, one is new
            (vec!["lab", "office", "pods"], vec![5, 4, 1]),       // the number 2 is not given again
            (vec!["transit", "lab"], vec![2, 5]),                 // one has come back
        ] {
            numbers = numbers.with(&gateway(&names));
            let found: Vec<_> = names.iter().filter_map(|name| numbers.of(name)).collect();
            assert_eq!(found, expected, "{names:?}");
        }
    }

    #[test]
    fn a_number_is_given_again_only_when_all_were_given_out() {
        let last = ATTACHMENTS as u16 - 1;
        let all = Numbers::default().with(&gateway(1..=last));
        assert_eq!(all.of(&last.to_string()), Some(last));
        // Two have left, of which one is replaced.
        let mut next: Vec<String> = (1..=last - 2).map(|n| (n + 1).to_string()).collect();
        next.push("new".into());
        let next = all.with(&gateway(&next));
        assert_eq!((next.of("new"), next.of("1")), (Some(1), None));
        assert_eq!(next.of("2"), Some(2), "those that stay are left alone");
        assert_eq!(next.of(&last.to_string()), Some(last), "so is one that left and is not needed");
    }

    #[test]
    fn what_is_kept_is_read_again_and_nonsense_is_refused() {
        let numbers = Numbers::default().with(&gateway(["pods", "internet"]));
        let kept = serde_json::to_string(&numbers).unwrap();
        assert_eq!(kept, r#"{"internet":2,"pods":1}"#);
        assert_eq!(serde_json::from_str::<Numbers>(&kept).unwrap(), numbers);
        for (text, refused) in [
            (r#"{"a":0}"#, "attachment `a` has the number 0; expected 1 to 1023"),
            (r#"{"a":1024}"#, "attachment `a` has the number 1024; expected 1 to 1023"),
            (r#"{"a":7,"b":7}"#, "attachment `b` has the number 7, which another has too"),
        ] {
            let error = serde_json::from_str::<Numbers>(text).unwrap_err().to_string();
            assert!(error.starts_with(refused), "{text}: {error}");
        }
        assert!(serde_json::from_str::<Numbers>(r#"{"a":1023}"#).is_ok());
    }
}
