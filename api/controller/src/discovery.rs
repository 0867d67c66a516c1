//! Who is followed, as the configuration has it: clusters and cloud accounts.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

use smartgroups::{Change, Inventory, Subject};
use smartgroups_aws::{self as aws, Account, AccountName, AccountStatus};
use smartgroups_discovery::dns;
use smartgroups_discovery::kubernetes::{self, Cluster, ClusterStatus};
use tokio::sync::mpsc;

/// Batches that may wait until they are in force; more of them hold those back who send them.
const WAITING: usize = 256;

/// Whose word it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// A Kubernetes cluster.
    Cluster(String),
    /// A cloud account.
    Account(AccountName),
}

impl Source {
    /// All that is known by its word.
    pub fn known(&self, inventory: &Inventory) -> Vec<Subject> {
        match self {
            Self::Cluster(name) => inventory.of_cluster(name),
            Self::Account(name) => inventory.beginning_with(&name.beginning()),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster(name) => write!(f, "cluster `{name}`"),
            Self::Account(name) => write!(f, "account `{name}`"),
        }
    }
}

/// Changes of one source that belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Whose.
    pub source: Source,
    /// When what brought them was received.
    pub received: Instant,
    /// Whether all that it knows has been said.
    pub synced: bool,
    /// In this order.
    pub changes: Vec<Change>,
}

impl From<kubernetes::Batch> for Batch {
    fn from(batch: kubernetes::Batch) -> Self {
        let kubernetes::Batch { cluster, received, synced, changes } = batch;
        let source = Source::Cluster(cluster.as_str().to_owned());
        Self { source, received, synced, changes }
    }
}

impl From<aws::Batch> for Batch {
    fn from(batch: aws::Batch) -> Self {
        let aws::Batch { account, received, synced, changes } = batch;
        Self { source: Source::Account(account), received, synced, changes }
    }
}

/// Who is to be discovered, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Kubernetes clusters.
    pub clusters: Vec<kubernetes::Settings>,
    /// AWS accounts.
    pub accounts: Vec<aws::Settings>,
    /// Names in DNS.
    pub names: dns::Settings,
}

impl Wanted {
    /// By whose word others are known. DNS is none of them: what it says of a name goes with the name.
    pub fn sources(&self) -> impl Iterator<Item = Source> {
        let clusters = self.clusters.iter().map(|one| of_cluster(&one.scope));
        clusters.chain(self.accounts.iter().map(|one| of_account(&one.scope)))
    }

    /// Whether nobody is to be discovered.
    pub fn is_empty(&self) -> bool {
        self.clusters.is_empty() && self.accounts.is_empty() && self.names.names.is_empty()
    }
}

fn of_cluster(scope: &kubernetes::Scope) -> Source {
    Source::Cluster(scope.cluster.as_str().to_owned())
}

fn of_account(scope: &aws::Scope) -> Source {
    Source::Account(scope.account.clone())
}

/// What becomes of what is known of those who were followed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Followed {
    /// They are not followed any more, or their addresses are elsewhere: it is void.
    pub gone: Vec<Source>,
    /// They are followed in another way: it stays until they have said all again.
    pub anew: Vec<Source>,
}

/// What is followed, and how.
struct All<S, F>(BTreeMap<Source, (S, F)>);

impl<S: Clone + PartialEq, F> All<S, F> {
    /// Follows exactly these from now on: one whose settings changed anew.
    fn follow<C: PartialEq>(
        &mut self,
        wanted: &[S],
        scope: impl Fn(&S) -> &C,
        source: impl Fn(&C) -> Source,
        begin: impl Fn(S) -> F,
        followed: &mut Followed,
    ) {
        for (name, (settings, _)) in &self.0 {
            match wanted.iter().find(|one| scope(one) == scope(settings)) {
                Some(one) if one == settings => {}
                Some(_) => followed.anew.push(name.clone()),
                None => followed.gone.push(name.clone()),
            }
        }
        self.0.retain(|_, (settings, _)| wanted.contains(settings));
        for settings in wanted {
            let name = source(scope(settings));
            self.0.entry(name).or_insert_with(|| (settings.clone(), begin(settings.clone())));
        }
    }
}

/// Clusters and accounts that are followed.
pub struct Discovery {
    clusters: All<kubernetes::Settings, Cluster>,
    accounts: All<aws::Settings, Account>,
    of_clusters: mpsc::Sender<kubernetes::Batch>,
    of_accounts: mpsc::Sender<aws::Batch>,
}

/// Where what they say arrives.
pub struct Heard {
    of_clusters: mpsc::Receiver<kubernetes::Batch>,
    of_accounts: mpsc::Receiver<aws::Batch>,
}

impl Heard {
    /// Waits for the next batches, and takes those that wait already.
    pub async fn next(&mut self) -> Vec<Batch> {
        let (mut clusters, mut accounts) = (Vec::new(), Vec::new());
        tokio::select! {
            _ = self.of_clusters.recv_many(&mut clusters, WAITING) => {}
            _ = self.of_accounts.recv_many(&mut accounts, WAITING) => {}
        }
        clusters.into_iter().map(Batch::from).chain(accounts.into_iter().map(Batch::from)).collect()
    }
}

impl Discovery {
    /// Nobody is followed yet.
    pub fn new() -> (Self, Heard) {
        let (of_clusters, clusters) = mpsc::channel(WAITING);
        let (of_accounts, accounts) = mpsc::channel(WAITING);
        let nobody = Self {
            clusters: All(BTreeMap::new()),
            accounts: All(BTreeMap::new()),
            of_clusters,
            of_accounts,
        };
        (nobody, Heard { of_clusters: clusters, of_accounts: accounts })
    }

    /// Follows exactly these from now on: one whose settings changed anew.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn follow(&mut self, wanted: &Wanted) -> Followed {
        let mut followed = Followed::default();
        let clusters = &wanted.clusters;
        let begin = |settings| Cluster::spawn(settings, self.of_clusters.clone());
        self.clusters.follow(clusters, |one| &one.scope, of_cluster, begin, &mut followed);
        let accounts = &wanted.accounts;
        let begin = |settings| Account::spawn(settings, self.of_accounts.clone());
        self.accounts.follow(accounts, |one| &one.scope, of_account, begin, &mut followed);
        followed
    }

    /// Whether somebody is followed.
    pub fn has(&self, source: &Source) -> bool {
        self.clusters.0.contains_key(source) || self.accounts.0.contains_key(source)
    }

    /// How well each cluster is known, by name.
    pub fn clusters(&self) -> Vec<ClusterStatus> {
        self.clusters.0.values().map(|(_, cluster)| cluster.status()).collect()
    }

    /// How well each account is known, by name.
    pub fn accounts(&self) -> Vec<AccountStatus> {
        self.accounts.0.values().map(|(_, account)| account.status()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smartgroups::DomainId;
    use smartgroups_discovery::kubernetes::{Access, ClusterName, Scope, Settings};

    fn cluster(name: &str, domain: u16) -> Settings {
        let cluster = ClusterName::new(name).unwrap();
        let scope = Scope { cluster, pods: DomainId(domain), nodes: DomainId::FABRIC };
        let path = "/nowhere/kubeconfig".into();
        Settings::new(scope, Access::Kubeconfig { path, context: None })
    }

    fn account(name: &str, domain: u16) -> aws::Settings {
        let domains = [("vpc-1".into(), DomainId(domain))].into();
        let scope = aws::Scope { account: AccountName::new(name).unwrap(), domains };
        // Nobody is asked: there are no credentials.
        let credentials_file = Some("/nowhere/credentials".into());
        let identity = aws::Identity { credentials_file, role: None };
        aws::Settings { identity, ..aws::Settings::new(scope, vec!["eu-central-1".to_owned()]) }
    }

    fn later(name: &str, domain: u16) -> Settings {
        let max_staleness = Some(std::time::Duration::from_secs(9));
        Settings { max_staleness, ..cluster(name, domain) }
    }

    #[tokio::test]
    async fn what_is_known_of_one_that_goes_is_void_and_of_one_that_changes_waits() {
        let (mut discovery, _heard) = Discovery::new();
        let sources = |names: &[&str]| {
            let source = |name: &&str| match name.strip_prefix("aws:") {
                Some(name) => Source::Account(AccountName::new(name).unwrap()),
                None => Source::Cluster((*name).to_owned()),
            };
            names.iter().map(source).collect::<Vec<_>>()
        };
        let more = aws::Settings { regions: vec!["eu-west-1".to_owned()], ..account("a", 1) };
        for (clusters, accounts, gone, anew, followed) in [
            (vec![cluster("a", 1)], vec![account("a", 1)], &[][..], &[][..], &["a", "aws:a"][..]),
            (vec![cluster("a", 1)], vec![account("a", 1)], &[], &[], &["a", "aws:a"]),
            (vec![later("a", 1)], vec![more.clone()], &[], &["a", "aws:a"], &["a", "aws:a"]),
            (vec![cluster("a", 3)], vec![more.clone()], &["a"], &[], &["a", "aws:a"]),
            (vec![], vec![account("a", 2)], &["a", "aws:a"], &[], &["aws:a"]),
            (vec![cluster("c", 2)], vec![account("a", 2)], &[], &[], &["c", "aws:a"]),
        ] {
            let wanted = Wanted { clusters, accounts, ..Wanted::default() };
            let outcome = discovery.follow(&wanted);
            assert_eq!(outcome.gone, sources(gone), "{wanted:?}");
            assert_eq!(outcome.anew, sources(anew), "{wanted:?}");
            assert_eq!(wanted.sources().collect::<Vec<_>>(), sources(followed));
            assert!(sources(followed).iter().all(|source| discovery.has(source)));
            let all = discovery.clusters().len() + discovery.accounts().len();
            assert_eq!(all, followed.len());
        }
    }
}
