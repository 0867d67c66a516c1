//! What a selector asks of labels beyond plain equality, in the words of Kubernetes
//! (`LabelSelectorRequirement` of `meta/v1`).

use std::collections::BTreeSet;
use std::fmt;

use crate::Labels;

/// How the value of a label is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    /// The label is there, with one of the values.
    In,
    /// The label is not there, or has none of the values.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is not there.
    DoesNotExist,
}

impl Operator {
    /// The word that operators write for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::In => "In",
            Self::NotIn => "NotIn",
            Self::Exists => "Exists",
            Self::DoesNotExist => "DoesNotExist",
        }
    }

    /// Whether it compares with values.
    pub const fn has_values(self) -> bool {
        matches!(self, Self::In | Self::NotIn)
    }
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A demand on one label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Expression {
    /// The label.
    pub key: String,
    /// How it is compared.
    pub operator: Operator,
    /// With what; empty for [`Operator::Exists`] and [`Operator::DoesNotExist`].
    pub values: BTreeSet<String>,
}

impl Expression {
    /// Whether labels are as it demands.
    pub fn holds(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        let is_one = || value.is_some_and(|value| self.values.contains(value));
        match self.operator {
            Operator::In => is_one(),
            Operator::NotIn => !is_one(),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.key, self.operator)?;
        if self.operator.has_values() {
            let values: Vec<&str> = self.values.iter().map(String::as_str).collect();
            write!(f, " ({})", values.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_operator_asks_what_kubernetes_asks() {
        let labels = Labels::from([("team", "web")]);
        for (key, operator, values, expected) in [
            ("team", Operator::In, &["api", "web"][..], true),
            ("team", Operator::In, &["api"], false),
            ("tier", Operator::In, &["web"], false),
            ("team", Operator::NotIn, &["api"], true),
            ("team", Operator::NotIn, &["api", "web"], false),
            ("tier", Operator::NotIn, &["web"], true), // also without the label
            ("team", Operator::Exists, &[], true),
            ("tier", Operator::Exists, &[], false),
            ("team", Operator::DoesNotExist, &[], false),
            ("tier", Operator::DoesNotExist, &[], true),
        ] {
            let values = values.iter().map(|&value| value.to_owned()).collect();
            let expression = Expression { key: key.to_owned(), operator, values };
            assert_eq!(expression.holds(&labels), expected, "{expression}");
        }
    }
}
