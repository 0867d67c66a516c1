//! Somebody who follows an account and applies what it says.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use smartgroups::{Change, Endpoint};
use smartgroups_aws::{
    Account, AccountName, AccountStatus, Batch, Endpoints, Identity, Kind, KindStatus, Scope,
    Settings,
};
use tokio::sync::mpsc;

/// As long as anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Follower {
    account: Account,
    batches: mpsc::Receiver<Batch>,
    start: String,
    pub(crate) endpoints: BTreeMap<String, Arc<Endpoint>>,
    pub(crate) synced: bool,
    /// All changes, in order.
    pub(crate) changes: Vec<Change>,
}

/// An account that is asked every second.
pub(crate) fn settings(
    name: &str,
    regions: &[&str],
    identity: Identity,
    at: Endpoints,
) -> Settings {
    let account = AccountName::new(name).unwrap();
    let scope = Scope { account, domains: BTreeMap::new() };
    let regions = regions.iter().map(ToString::to_string).collect();
    Settings {
        identity,
        endpoints: at,
        interval: Duration::from_secs(1),
        network_interval: Duration::from_secs(1),
        ..Settings::new(scope, regions)
    }
}

impl Follower {
    pub(crate) fn new(settings: Settings) -> Self {
        let (sender, batches) = mpsc::channel(8);
        let start = settings.scope.account.beginning();
        Self {
            account: Account::spawn(settings, sender),
            batches,
            start,
            endpoints: BTreeMap::new(),
            synced: false,
            changes: Vec::new(),
        }
    }

    fn apply(&mut self, batch: Batch) {
        self.synced = batch.synced;
        for change in &batch.changes {
            match change.clone() {
                Change::Endpoint(endpoint) => {
                    self.endpoints.insert(endpoint.name.to_string(), endpoint);
                }
                Change::Gone(name) => {
                    self.endpoints.remove(&*name).expect("what is removed was there");
                }
                Change::Namespace(..) | Change::NamespaceGone(_) => {
                    panic!("an account has no namespaces");
                }
            }
        }
        self.changes.extend(batch.changes);
    }

    /// Applies what comes until something holds.
    pub(crate) async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !holds(self) {
            // The status may change without a batch.
            let batch = tokio::time::timeout(Duration::from_millis(20), self.batches.recv()).await;
            if let Ok(batch) = batch {
                self.apply(batch.expect("the account is followed"));
            }
            assert!(
                start.elapsed() < PATIENCE,
                "never: {what}\nendpoints {:?}\nstatus {:#?}",
                self.endpoints.keys(),
                self.status()
            );
        }
    }

    pub(crate) fn status(&self) -> AccountStatus {
        self.account.status()
    }

    pub(crate) fn account(&self) -> &Account {
        &self.account
    }

    pub(crate) fn kind(&self, region: &str, kind: Kind) -> KindStatus {
        let regions = self.status().regions;
        let region = regions.into_iter().find(|one| *one.region == *region).unwrap();
        region.kinds.into_iter().find(|one| one.kind == kind).unwrap()
    }

    /// Why a kind cannot be fetched.
    pub(crate) fn error(&self, region: &str, kind: Kind) -> String {
        self.kind(region, kind).error.unwrap_or_default()
    }

    /// Names of endpoints, without the account.
    pub(crate) fn names(&self) -> Vec<&str> {
        self.endpoints.keys().map(|name| name.strip_prefix(&self.start).unwrap()).collect()
    }
}
