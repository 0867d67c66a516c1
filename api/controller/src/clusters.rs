//! The clusters that are watched, as the configuration has them.

use std::collections::BTreeMap;

use smartgroups_discovery::kubernetes::{Batch, Cluster, ClusterStatus, Settings};
use tokio::sync::mpsc;

/// Batches that may wait until they are in force; more of them hold the watches back.
const WAITING: usize = 256;

/// Watched clusters by name.
pub struct Clusters {
    watched: BTreeMap<String, (Settings, Cluster)>,
    sender: mpsc::Sender<Batch>,
}

impl Clusters {
    /// None yet, and where what they say will arrive.
    pub fn new() -> (Self, mpsc::Receiver<Batch>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self { watched: BTreeMap::new(), sender }, receiver)
    }

    /// Watches exactly these clusters from now on: one whose settings changed anew. Returns those that
    /// are not watched any more, or not as they were: what is known of them is void.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn follow(&mut self, wanted: &[Settings]) -> Vec<String> {
        let name = |settings: &Settings| settings.scope.cluster.as_str().to_owned();
        let is_wanted = |settings: &Settings| wanted.contains(settings);
        let gone: Vec<String> = self
            .watched
            .iter()
            .filter(|(_, (settings, _))| !is_wanted(settings))
            .map(|(name, _)| name.clone())
            .collect();
        self.watched.retain(|_, (settings, _)| is_wanted(settings));
        for settings in wanted {
            self.watched.entry(name(settings)).or_insert_with(|| {
                (settings.clone(), Cluster::spawn(settings.clone(), self.sender.clone()))
            });
        }
        gone
    }

    /// Whether a cluster is watched.
    pub fn has(&self, name: &str) -> bool {
        self.watched.contains_key(name)
    }

    /// How well each is known, by name.
    pub fn status(&self) -> Vec<ClusterStatus> {
        self.watched.values().map(|(_, cluster)| cluster.status()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smartgroups::DomainId;
    use smartgroups_discovery::kubernetes::{Access, ClusterName, Scope};

    fn settings(name: &str, domain: u16) -> Settings {
        let cluster = ClusterName::new(name).unwrap();
        let scope = Scope { cluster, pods: DomainId(domain), nodes: DomainId::FABRIC };
        let path = "/nowhere/kubeconfig".into();
        Settings::new(scope, Access::Kubeconfig { path, context: None })
    }

    #[tokio::test]
    async fn what_is_void_is_said_of_each_cluster_that_goes_or_changes() {
        let (mut clusters, _batches) = Clusters::new();
        for (wanted, gone, watched) in [
            (vec![settings("a", 1), settings("b", 2)], &[][..], &["a", "b"][..]),
            (vec![settings("a", 1), settings("b", 2)], &[], &["a", "b"]),
            (vec![settings("a", 3)], &["a", "b"], &["a"]),
            (vec![settings("a", 3), settings("c", 2)], &[], &["a", "c"]),
        ] {
            assert_eq!(clusters.follow(&wanted), gone);
            let status = clusters.status();
            let names: Vec<&str> = status.iter().map(|one| one.cluster.as_str()).collect();
            assert_eq!(names, watched);
            assert!(watched.iter().all(|name| clusters.has(name)));
        }
    }
}
