//! The clusters that are watched, as the configuration has them.

use std::collections::BTreeMap;

use smartgroups_discovery::kubernetes::{Batch, Cluster, ClusterStatus, Settings};
use tokio::sync::mpsc;

/// Batches that may wait until they are in force; more of them hold the watches back.
const WAITING: usize = 256;

/// What becomes of what is known of clusters that were watched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Followed {
    /// They are not watched any more, or their addresses are elsewhere: it is void.
    pub gone: Vec<String>,
    /// They are watched in another way: it stays until they have said all again.
    pub anew: Vec<String>,
}

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

    /// Watches exactly these clusters from now on: one whose settings changed anew.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn follow(&mut self, wanted: &[Settings]) -> Followed {
        let mut followed = Followed::default();
        for (name, (settings, _)) in &self.watched {
            match wanted.iter().find(|one| one.scope == settings.scope) {
                Some(one) if one == settings => {}
                Some(_) => followed.anew.push(name.clone()),
                None => followed.gone.push(name.clone()),
            }
        }
        self.watched.retain(|_, (settings, _)| wanted.contains(settings));
        for settings in wanted {
            let name = settings.scope.cluster.as_str().to_owned();
            self.watched.entry(name).or_insert_with(|| {
                (settings.clone(), Cluster::spawn(settings.clone(), self.sender.clone()))
            });
        }
        followed
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
    async fn what_is_known_of_a_cluster_that_goes_is_void_and_of_one_that_changes_waits() {
        let (mut clusters, _batches) = Clusters::new();
        let later = |name, domain| Settings {
            max_staleness: Some(std::time::Duration::from_secs(9)),
            ..settings(name, domain)
        };
        for (wanted, gone, anew, watched) in [
            (vec![settings("a", 1), settings("b", 2)], &[][..], &[][..], &["a", "b"][..]),
            (vec![settings("a", 1), settings("b", 2)], &[], &[], &["a", "b"]),
            (vec![later("a", 1), settings("b", 2)], &[], &["a"], &["a", "b"]),
            (vec![settings("a", 3)], &["a", "b"], &[], &["a"]),
            (vec![settings("a", 3), settings("c", 2)], &[], &[], &["a", "c"]),
        ] {
            let followed = clusters.follow(&wanted);
            assert_eq!(followed.gone, gone);
            assert_eq!(followed.anew, anew);
            let status = clusters.status();
            let names: Vec<&str> = status.iter().map(|one| one.cluster.as_str()).collect();
            assert_eq!(names, watched);
            assert!(watched.iter().all(|name| clusters.has(name)));
        }
    }
}
