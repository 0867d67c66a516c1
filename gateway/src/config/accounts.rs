//! The cloud accounts that are followed for their VPCs, subnets and machines.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;
use smartgroups::DomainId;
use smartgroups_aws::{AccountName, Endpoints, Identity, Role, Scope, Settings};

use super::check::{Checks, domain_names};
use super::decode::short;
use super::settings::{Gateway, Seconds};
use super::tree::{Path, at};

/// An AWS account, and as whom it is asked.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    /// Its name, unique.
    pub name: String,
    /// Its regions.
    pub regions: Vec<String>,
    /// The role that is assumed, by its ARN; without one the gateway's own identity is used.
    #[serde(default)]
    pub role: Option<String>,
    /// What the trust policy of the role asks for.
    #[serde(default)]
    pub external_id: Option<ExternalId>,
    /// What the logs of the account call the gateway.
    #[serde(default)]
    pub session_name: Option<String>,
    /// A file with the keys that are begun with, if not those that AWS clients find by themselves.
    #[serde(default)]
    pub credentials_file: Option<PathBuf>,
    /// Only these VPCs.
    #[serde(default)]
    pub vpcs: Vec<String>,
    /// The routing domains of VPCs whose addresses are not those of the fabric, by the id of the VPC.
    #[serde(default)]
    pub domains: BTreeMap<String, String>,
    /// How often it is asked who is behind which address.
    #[serde(default)]
    pub interval: Option<Seconds>,
    /// How often it is asked how its networks hang together.
    #[serde(default)]
    pub network_interval: Option<Seconds>,
    /// How old knowledge of it may grow before `/readyz` says so.
    #[serde(default)]
    pub max_staleness: Option<Seconds>,
    /// Private endpoints without a name that leads to them.
    #[serde(default)]
    pub endpoints: Urls,
}

/// Where AWS is, if not where its names lead.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Urls {
    /// EC2; `{region}` stands for the region.
    #[serde(default)]
    pub ec2: Option<String>,
    /// STS; likewise.
    #[serde(default)]
    pub sts: Option<String>,
}

/// What a role asks for; not for logs.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct ExternalId(String);

impl fmt::Debug for ExternalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ExternalId(..)")
    }
}

impl Account {
    /// How it is to be followed; `None` for what [`super::Config::parse`] refuses.
    fn settings(&self, domains: &HashMap<&str, DomainId>) -> Option<Settings> {
        let domain = |(vpc, name): (&String, &String)| {
            Some((vpc.as_str().into(), *domains.get(name.as_str())?))
        };
        let account = AccountName::new(&self.name).ok()?;
        let scope =
            Scope { account, domains: self.domains.iter().map(domain).collect::<Option<_>>()? };
        let role = self.role.as_ref().map(|arn| {
            let session_name =
                self.session_name.as_deref().unwrap_or(Role::SESSION_NAME).to_owned();
            let external_id = self.external_id.as_ref().map(|ExternalId(id)| id.clone());
            Role { external_id, session_name, ..Role::new(arn) }
        });
        let or = |stated: Option<Seconds>, usual| stated.map_or(usual, Seconds::duration);
        Some(Settings {
            identity: Identity { credentials_file: self.credentials_file.clone(), role },
            endpoints: Endpoints {
                ec2: self.endpoints.ec2.clone(),
                sts: self.endpoints.sts.clone(),
            },
            vpcs: self.vpcs.clone(),
            interval: or(self.interval, Settings::INTERVAL),
            network_interval: or(self.network_interval, Settings::NETWORK_INTERVAL),
            max_staleness: self.max_staleness.map(Seconds::duration),
            ..Settings::new(scope, self.regions.clone())
        })
    }

    /// Whether something would be told by both, each time as somebody else.
    fn overlaps(&self, other: &Self) -> bool {
        let share =
            |some: &[String], others: &[String]| some.iter().any(|one| others.contains(one));
        let all = self.vpcs.is_empty() || other.vpcs.is_empty();
        self.role == other.role
            && self.credentials_file == other.credentials_file
            && share(&self.regions, &other.regions)
            && (all || share(&self.vpcs, &other.vpcs))
    }
}

/// How the accounts of a configuration are to be followed.
#[must_use]
pub fn followed(gateway: &Gateway) -> Vec<Settings> {
    let domains = super::convert::domains(gateway);
    gateway.cloud_accounts.iter().filter_map(|account| account.settings(&domains)).collect()
}

/// Whether a text is the name of a region, such as `eu-central-1` or `us-gov-west-1`.
pub(super) fn is_region(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let [first, middle @ .., last] = parts.as_slice() else { return false };
    let lower = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase());
    first.len() == 2
        && lower(first)
        && !middle.is_empty()
        && middle.iter().all(|part| lower(part))
        && !last.is_empty()
        && last.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether a text is the ARN of a role, such as `arn:aws:iam::111122223333:role/sluice-discovery`.
fn is_role(text: &str) -> bool {
    let parts: Vec<&str> = text.splitn(6, ':').collect();
    let &["arn", partition, "iam", "", account, role] = parts.as_slice() else { return false };
    partition.starts_with("aws")
        && account.len() == 12
        && account.bytes().all(|byte| byte.is_ascii_digit())
        && role.strip_prefix("role/").is_some_and(|name| !name.is_empty())
}

/// Whether STS takes a text as the name of a session.
fn is_session_name(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_+=,.@-".contains(&byte);
    (2..=64).contains(&text.len()) && text.bytes().all(fits)
}

impl Checks<'_> {
    pub(super) fn cloud_accounts(&mut self, gateway: &Gateway) {
        let all = at!["gateway", "cloud_accounts"];
        let named = gateway.cloud_accounts.iter().enumerate();
        self.unique(named.map(|(n, one)| (all.child(n).child("name"), &one.name)));
        for (n, account) in gateway.cloud_accounts.iter().enumerate() {
            self.cloud_account(&all.child(n), account);
            let before = &gateway.cloud_accounts[..n];
            if let Some(other) = before.iter().find(|other| other.overlaps(account)) {
                let message = format!(
                    "it is entered as `{}` is, and has regions and VPCs in common with it; expected \
                     another `role` or other `regions`, or `vpcs` that keep them apart",
                    short(&other.name)
                );
                self.error(&all.child(n), message);
            }
        }
    }

    fn cloud_account(&mut self, at: &Path, account: &Account) {
        if let Err(wrong) = AccountName::new(&account.name) {
            self.error(&at.child("name"), format!("`name`: {wrong}"));
        }
        let regions = at.child("regions");
        if account.regions.is_empty() && !self.tree.is_damaged(at) {
            let message = "`regions` is empty; expected regions, such as [eu-central-1]".to_owned();
            self.error(&regions, message);
        }
        self.unique(account.regions.iter().enumerate().map(|(n, one)| (regions.child(n), one)));
        for (n, region) in account.regions.iter().enumerate() {
            self.region(&regions.child(n), region);
        }
        if let Some(role) = &account.role {
            self.role(&at.child("role"), role);
        }
        for (field, is_stated) in [
            ("external_id", account.external_id.is_some()),
            ("session_name", account.session_name.is_some()),
        ] {
            if is_stated && account.role.is_none() && !self.tree.is_damaged(at) {
                let message = format!("`{field}` belongs to `role`, which is not stated");
                self.error(&at.child(field), message);
            }
        }
        if let Some(name) = account.session_name.as_ref().filter(|name| !is_session_name(name)) {
            let message = format!(
                "`session_name` is \"{}\"; expected 2 to 64 letters, digits and `_+=,.@-`",
                short(name)
            );
            self.error(&at.child("session_name"), message);
        }
        if let Some(path) = &account.credentials_file {
            self.absolute(&at.child("credentials_file"), path);
        }
        if account.vpcs.is_empty() {
            self.no_empty(&at.child("vpcs"), "ids of VPCs", "all VPCs");
        }
        for (n, vpc) in account.vpcs.iter().enumerate() {
            self.vpc(&at.child("vpcs").child(n), vpc);
        }
        let known = domain_names(self.tree);
        for (vpc, domain) in &account.domains {
            let place = at.child("domains").child(vpc.as_str());
            self.vpc(&place, vpc);
            self.exists(&place, "domain", domain, &known);
            if !account.vpcs.is_empty() && !account.vpcs.contains(vpc) {
                let message = format!("`{}` is not among `vpcs`", short(vpc));
                self.error(&place, message);
            }
        }
        for (field, url) in [("ec2", &account.endpoints.ec2), ("sts", &account.endpoints.sts)] {
            let place = at.child("endpoints").child(field);
            if let Some(url) = url {
                self.url(&place, url);
            }
        }
    }

    pub(super) fn region(&mut self, at: &Path, region: &str) {
        if !is_region(region) {
            let message =
                format!("\"{}\" is no region; expected one such as eu-central-1", short(region));
            self.error(at, message);
        }
    }

    pub(super) fn role(&mut self, at: &Path, role: &str) {
        if !is_role(role) {
            let message = format!(
                "`role` is \"{}\"; expected the ARN of a role, such as \
                 arn:aws:iam::111122223333:role/sluice-discovery",
                short(role)
            );
            self.error(at, message);
        }
    }

    pub(super) fn url(&mut self, at: &Path, url: &str) {
        if !url.starts_with("https://") && !url.starts_with("http://") {
            let message = format!(
                "`{}` is \"{}\"; expected a URL, such as https://vpce-1.example.com",
                at.field(),
                short(url)
            );
            self.error(at, message);
        }
    }

    fn vpc(&mut self, at: &Path, vpc: &str) {
        if vpc.strip_prefix("vpc-").is_none_or(str::is_empty) {
            let message = format!("\"{}\" is no id of a VPC, such as vpc-0a1b2c3d", short(vpc));
            self.error(at, message);
        }
    }
}
