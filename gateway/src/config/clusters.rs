//! The Kubernetes clusters that are watched for their pods, services and nodes.

use std::collections::HashMap;
use std::path::PathBuf;

use serde::Deserialize;
use smartgroups::DomainId;
use smartgroups_discovery::kubernetes::{Access, ClusterName, Scope, Settings};

use super::check::{Checks, domain_names};
use super::settings::{Gateway, Seconds};
use super::tree::at;

/// A cluster, and how it is reached: by a kubeconfig, by a token, or from inside of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Its name, unique: what selectors call `k8s_cluster_id`.
    pub name: String,
    /// The routing domain of its pods. Its nodes are in the fabric.
    pub domain: String,
    /// A kubeconfig file.
    #[serde(default)]
    pub kubeconfig: Option<PathBuf>,
    /// Which of its contexts, if not its current one.
    #[serde(default)]
    pub context: Option<String>,
    /// The server, as `https://host:port`.
    #[serde(default)]
    pub server: Option<String>,
    /// The file of a token for it; read again every minute.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
    /// The certificates to believe, if not those of the machine; read again every minute.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// The gateway is a pod of the cluster, and goes by its service account.
    #[serde(default)]
    pub in_cluster: bool,
    /// How old knowledge of it may grow before `/readyz` says so.
    #[serde(default)]
    pub max_staleness: Option<Seconds>,
}

impl Cluster {
    fn access(&self) -> Option<Access> {
        match (&self.kubeconfig, &self.server, &self.token_file, self.in_cluster) {
            (Some(path), None, None, false) => {
                Some(Access::Kubeconfig { path: path.clone(), context: self.context.clone() })
            }
            (None, Some(server), Some(token_file), false) => Some(Access::Token {
                server: server.clone(),
                token_file: token_file.clone(),
                ca_file: self.ca_file.clone(),
            }),
            (None, None, None, true) => Some(Access::InCluster),
            _ => None,
        }
    }

    /// How it is to be watched; `None` for what [`super::Config::parse`] refuses.
    fn settings(&self, domains: &HashMap<&str, DomainId>) -> Option<Settings> {
        let scope = Scope {
            cluster: ClusterName::new(&self.name).ok()?,
            pods: *domains.get(self.domain.as_str())?,
            nodes: DomainId::FABRIC,
        };
        let max_staleness = self.max_staleness.map(Seconds::duration);
        Some(Settings { max_staleness, ..Settings::new(scope, self.access()?) })
    }
}

/// How the clusters of a configuration are to be watched.
#[must_use]
pub fn watched(gateway: &Gateway) -> Vec<Settings> {
    let domains = super::convert::domains(gateway);
    gateway.clusters.iter().filter_map(|cluster| cluster.settings(&domains)).collect()
}

impl Checks<'_> {
    pub(super) fn clusters(&mut self, gateway: &Gateway) {
        let all = at!["gateway", "clusters"];
        let domains = domain_names(self.tree);
        let named = gateway.clusters.iter().enumerate();
        self.unique(named.map(|(n, one)| (all.child(n).child("name"), &one.name)));
        for (n, cluster) in gateway.clusters.iter().enumerate() {
            let at = all.child(n);
            if let Err(wrong) = ClusterName::new(&cluster.name) {
                self.error(&at.child("name"), format!("`name`: {wrong}"));
            }
            self.exists(&at.child("domain"), "domain", &cluster.domain, &domains);
            if cluster.access().is_none() && !self.tree.is_damaged(&at) {
                let message = "a cluster is reached in one way; expected `kubeconfig`, or `server` and \
                               `token_file`, or `in_cluster: true`";
                self.error(&at, message.to_owned());
            }
            for (field, belongs) in [
                ("context", cluster.context.is_none() || cluster.kubeconfig.is_some()),
                ("ca_file", cluster.ca_file.is_none() || cluster.server.is_some()),
            ] {
                if !belongs {
                    let to = if field == "context" { "kubeconfig" } else { "server" };
                    let message = format!("`{field}` belongs to `{to}`, which is not stated");
                    self.error(&at.child(field), message);
                }
            }
            for (field, path) in [
                ("kubeconfig", &cluster.kubeconfig),
                ("token_file", &cluster.token_file),
                ("ca_file", &cluster.ca_file),
            ] {
                if let Some(path) = path {
                    self.absolute(&at.child(field), path);
                }
            }
            if let Some(server) = cluster.server.as_ref().filter(|it| !it.starts_with("https://")) {
                let message = format!(
                    "`server` is \"{}\"; expected a URL with https, such as https://10.0.0.1:6443",
                    super::decode::short(server)
                );
                self.error(&at.child("server"), message);
            }
        }
    }
}
