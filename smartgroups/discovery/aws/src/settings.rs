//! Which accounts there are, and how they are asked.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use smartgroups::{DomainId, Text};

/// The name of an account, unique among those that are followed: letters, digits, `-`, `_`, `.`.
///
/// It begins the names of the account's endpoints, so it holds nothing that separates their parts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountName(Text);

/// A name that no account can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no name of an account: 1 to 100 letters, digits, `-`, `_` and `.`")]
pub struct AccountNameError(String);

impl AccountName {
    const LONGEST: usize = 100;

    /// Takes a name that is one.
    ///
    /// # Errors
    ///
    /// When it is empty, too long, or has another character.
    pub fn new(name: &str) -> Result<Self, AccountNameError> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if (1..=Self::LONGEST).contains(&name.len()) && name.bytes().all(fits) {
            Ok(Self(name.into()))
        } else {
            Err(AccountNameError(name.to_owned()))
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// How the names of all its endpoints begin. The name of a cluster has no colon, so none of a
    /// cluster's endpoints begins so.
    pub fn beginning(&self) -> String {
        format!("aws:{self}/")
    }
}

impl fmt::Display for AccountName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which account it is, and in which domains its addresses are unique.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Its name.
    pub account: AccountName,
    /// The domains of VPCs whose addresses others have too; all others are in the fabric.
    pub domains: BTreeMap<Text, DomainId>,
}

impl Scope {
    /// The domain of what is in a VPC.
    pub fn domain(&self, vpc: Option<&str>) -> DomainId {
        vpc.and_then(|vpc| self.domains.get(vpc)).copied().unwrap_or(DomainId::FABRIC)
    }
}

/// As whom an account is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// A file with keys, as the AWS CLI has it, of which the section `default` counts. Without it
    /// they come from where AWS clients look: environment, web identity, the instance's role.
    pub credentials_file: Option<PathBuf>,
    /// The role that is assumed with these, if one is.
    pub role: Option<Role>,
}

/// A role that is assumed.
#[derive(Clone, PartialEq, Eq)]
pub struct Role {
    /// Its ARN.
    pub arn: String,
    /// What its trust policy may ask for, so that nobody makes us work for somebody else.
    pub external_id: Option<String>,
    /// What the account's logs call us.
    pub session_name: String,
}

impl Role {
    /// What logs call us unless it is said.
    pub const SESSION_NAME: &'static str = "sluice";

    /// A role that asks for nothing more than to be trusted.
    pub fn new(arn: impl Into<String>) -> Self {
        Self { arn: arn.into(), external_id: None, session_name: Self::SESSION_NAME.to_owned() }
    }
}

/// Without the external id, which not everybody who reads logs should know.
impl fmt::Debug for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Role").field("arn", &self.arn).finish_non_exhaustive()
    }
}

/// Where AWS is, if not where its names lead; `{region}` stands for the region that is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// URL of EC2.
    pub ec2: Option<String>,
    /// URL of STS.
    pub sts: Option<String>,
}

/// A URL for a region.
pub(crate) fn in_region(url: Option<&String>, region: &str) -> Option<String> {
    url.map(|url| url.replace("{region}", region))
}

/// How an account is to be followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Which it is.
    pub scope: Scope,
    /// Which of its regions.
    pub regions: Vec<String>,
    /// As whom.
    pub identity: Identity,
    /// Where.
    pub endpoints: Endpoints,
    /// Only what is in these VPCs; empty: in all.
    pub vpcs: Vec<String>,
    /// How often it is asked who is behind which address.
    pub interval: Duration,
    /// How often it is asked how networks hang together.
    pub network_interval: Duration,
    /// How old knowledge of it may grow before [`crate::AccountStatus::is_too_stale`] says so.
    pub max_staleness: Option<Duration>,
}

impl Settings {
    /// How often it is asked who is behind which address, unless it is said.
    pub const INTERVAL: Duration = Duration::from_secs(60);
    /// How often it is asked how networks hang together, unless it is said: that changes by hand.
    pub const NETWORK_INTERVAL: Duration = Duration::from_secs(3600);

    /// Settings with what is usual.
    pub fn new(scope: Scope, regions: Vec<String>) -> Self {
        Self {
            scope,
            regions,
            identity: Identity::default(),
            endpoints: Endpoints::default(),
            vpcs: Vec::new(),
            interval: Self::INTERVAL,
            network_interval: Self::NETWORK_INTERVAL,
            max_staleness: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_named_by_what_separates_nothing() {
        for (name, fits) in [
            ("prod-eu_1.a", true),
            (&"a".repeat(100), true),
            (&"a".repeat(101), false),
            ("", false),
            ("a/b", false),
            ("aws:a", false),
            ("größe", false),
        ] {
            assert_eq!(AccountName::new(name).is_ok(), fits, "{name}");
        }
    }

    #[test]
    fn an_external_id_is_not_for_logs() {
        let role = Role {
            external_id: Some("only-we-know".to_owned()),
            ..Role::new("arn:aws:iam::111122223333:role/sluice")
        };
        let said = format!("{role:?}");
        assert!(said.contains("111122223333") && !said.contains("only-we-know"), "{said}");
    }
}
