//! The Kubernetes clusters that are watched for their pods, services and nodes.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use smartgroups::DomainId;
use smartgroups_aws::{self as aws, Identity, Role};
use smartgroups_discovery::kubernetes::{
    Access, ClusterName, IssueError, IssuedToken, Issuer, Scope, Settings,
};

use super::check::{Checks, domain_names};
use super::settings::{Gateway, Seconds};
use super::tree::{Path, at};

/// A cluster, and how it is reached: by a kubeconfig, by a token, as EKS wants it, or from inside of it.
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
    /// Tokens for it are signed by an AWS identity.
    #[serde(default)]
    pub eks: Option<Eks>,
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

/// What EKS calls a cluster, and as whom its API server is asked.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Eks {
    /// The name that the cluster has in EKS.
    pub cluster: String,
    /// Its region.
    pub region: String,
    /// The role that is assumed, by its ARN; without one the gateway's own identity is used.
    #[serde(default)]
    pub role: Option<String>,
    /// A file with the keys that are begun with, if not those that AWS clients find by themselves.
    #[serde(default)]
    pub credentials_file: Option<PathBuf>,
    /// Where STS is, if not where its name leads: there the role is assumed.
    #[serde(default)]
    pub sts: Option<String>,
}

impl Eks {
    fn issuer(&self) -> Issuer {
        let identity = Identity {
            credentials_file: self.credentials_file.clone(),
            role: self.role.as_ref().map(Role::new),
        };
        let eks = aws::Eks {
            cluster: self.cluster.clone(),
            region: self.region.clone(),
            identity,
            sts: self.sts.clone(),
        };
        // All that makes a difference.
        let name = format!("{eks:?}");
        let issuer = Arc::new(aws::Issuer::new(eks));
        Issuer::new(name, move || {
            let issuer = Arc::clone(&issuer);
            async move {
                let issued = issuer.issue().await;
                let aws::Token { secret, expires } = issued.map_err(IssueError::from)?;
                Ok(IssuedToken { secret, expires })
            }
        })
    }
}

impl Cluster {
    fn access(&self) -> Option<Access> {
        let ca_file = self.ca_file.clone();
        match (&self.kubeconfig, &self.server, &self.token_file, &self.eks, self.in_cluster) {
            (Some(path), None, None, None, false) => {
                Some(Access::Kubeconfig { path: path.clone(), context: self.context.clone() })
            }
            (None, Some(server), Some(token_file), None, false) => {
                let (server, token_file) = (server.clone(), token_file.clone());
                Some(Access::Token { server, token_file, ca_file })
            }
            (None, Some(server), None, Some(eks), false) => {
                Some(Access::Issued { server: server.clone(), issuer: eks.issuer(), ca_file })
            }
            (None, None, None, None, true) => Some(Access::InCluster),
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
                               `token_file`, or `server` and `eks`, or `in_cluster: true`";
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
            if let Some(eks) = &cluster.eks {
                self.eks(&at.child("eks"), eks);
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

    fn eks(&mut self, at: &Path, eks: &Eks) {
        // What a name of EKS may be; in a header it must not begin another one.
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        if !(1..=100).contains(&eks.cluster.len()) || !eks.cluster.bytes().all(fits) {
            let message = format!(
                "`cluster` is \"{}\"; expected the name that it has in EKS: 1 to 100 letters, digits, \
                 `-` and `_`",
                super::decode::short(&eks.cluster)
            );
            self.error(&at.child("cluster"), message);
        }
        self.region(&at.child("region"), &eks.region);
        if let Some(role) = &eks.role {
            self.role(&at.child("role"), role);
        }
        if let Some(path) = &eks.credentials_file {
            self.absolute(&at.child("credentials_file"), path);
        }
        if let Some(url) = &eks.sts {
            self.url(&at.child("sts"), url);
        }
    }
}
