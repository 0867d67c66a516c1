//! A consumer of what a cluster sends, as simple as one can be, and how tests wait for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use smartgroups::{Change, DomainId, Endpoint, Labels};
use smartgroups_discovery::kubernetes::{
    Access, Batch, Cluster, ClusterName, ClusterStatus, Kind, KindStatus, Scope, Settings,
};
use tokio::sync::mpsc;

/// Longer than anything here takes on a busy machine; only a failing test waits for so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A watched cluster, and what is known after applying all that it sent.
pub(crate) struct Follower {
    pub(crate) cluster: Cluster,
    batches: mpsc::Receiver<Batch>,
    pub(crate) endpoints: BTreeMap<String, Arc<Endpoint>>,
    pub(crate) namespaces: BTreeMap<String, Labels>,
    pub(crate) synced: bool,
    /// All changes, in order.
    pub(crate) changes: Vec<Change>,
    /// When the last batch was received from the server.
    pub(crate) received: Option<Instant>,
}

impl Follower {
    pub(crate) fn new(access: Access, watch_timeout: Duration) -> Self {
        let (sender, batches) = mpsc::channel(8);
        let cluster = ClusterName::new("prod").unwrap();
        let scope = Scope { cluster, pods: DomainId(7), nodes: DomainId::FABRIC };
        let settings = Settings { watch_timeout, ..Settings::new(scope, access) };
        Self {
            cluster: Cluster::spawn(settings, sender),
            batches,
            endpoints: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            synced: false,
            changes: Vec::new(),
            received: None,
        }
    }

    fn apply(&mut self, batch: Batch) {
        self.synced = batch.synced;
        self.received = Some(batch.received);
        for change in &batch.changes {
            match change.clone() {
                Change::Endpoint(endpoint) => {
                    self.endpoints.insert(endpoint.name.to_string(), endpoint);
                }
                Change::Gone(name) => {
                    self.endpoints.remove(&*name).expect("what is removed was there");
                }
                Change::Namespace(id, labels) => {
                    self.namespaces.insert(id.name.to_string(), labels);
                }
                Change::NamespaceGone(id) => {
                    self.namespaces.remove(&*id.name).expect("what is removed was there");
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
                self.apply(batch.expect("the cluster is watched"));
            }
            assert!(
                start.elapsed() < PATIENCE,
                "never: {what}\nendpoints {:?}\nstatus {:#?}",
                self.endpoints.keys(),
                self.status()
            );
        }
    }

    /// Applies what comes for a while.
    pub(crate) async fn during(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            if let Ok(batch) = tokio::time::timeout(left, self.batches.recv()).await {
                self.apply(batch.expect("the cluster is watched"));
            }
        }
    }

    pub(crate) fn status(&self) -> ClusterStatus {
        self.cluster.status()
    }

    pub(crate) fn kind(&self, kind: Kind) -> KindStatus {
        self.status().kinds.into_iter().find(|one| one.kind == kind).unwrap()
    }

    /// A label of a pod; empty if there is none.
    pub(crate) fn label(&self, pod: &str, key: &str) -> &str {
        let pod = self.endpoints.get(&format!("prod/{pod}"));
        pod.and_then(|pod| pod.labels.get(key)).unwrap_or_default()
    }

    /// Why the watch of a kind does not run.
    pub(crate) fn error(&self, kind: Kind) -> String {
        self.kind(kind).error.unwrap_or_default()
    }

    /// Names of endpoints, without the cluster.
    pub(crate) fn names(&self) -> Vec<&str> {
        self.endpoints.keys().map(|name| name.trim_start_matches("prod/")).collect()
    }
}
