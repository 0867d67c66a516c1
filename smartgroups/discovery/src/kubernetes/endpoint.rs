//! What is said to whoever keeps the inventory.
//!
//! Everything that knows how an [`Endpoint`] is put together is here.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use smartgroups::{Change, DomainId, Endpoint, EndpointKind, Labels, NamespaceId, Text, Workload};

/// The name of a cluster, unique among those that are watched: letters, digits, `-`, `_`, `.`.
///
/// It begins the names of the cluster's endpoints, so it holds nothing that separates their parts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterName(Text);

/// A name that no cluster can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no name of a cluster: 1 to 100 letters, digits, `-`, `_` and `.`")]
pub struct ClusterNameError(String);

impl ClusterName {
    /// As long as EKS lets a name be.
    const LONGEST: usize = 100;

    /// Takes a name that is one.
    ///
    /// # Errors
    ///
    /// When it is empty, too long, or has another character.
    pub fn new(name: &str) -> Result<Self, ClusterNameError> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if (1..=Self::LONGEST).contains(&name.len()) && name.bytes().all(fits) {
            Ok(Self(name.into()))
        } else {
            Err(ClusterNameError(name.to_owned()))
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which cluster it is, and in which domains its addresses are unique.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Its name.
    pub cluster: ClusterName,
    /// The domain of its pods.
    pub pods: DomainId,
    /// The domain of its nodes and of service addresses that are seen outside: where it is routable,
    /// [`DomainId::FABRIC`] unless its nodes are hidden too.
    pub nodes: DomainId,
}

/// Where something stands, as its node says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) region: Option<Text>,
    pub(crate) zone: Option<Text>,
}

/// All that is known of a pod with an address of its own.
pub(crate) struct PodFacts<'a> {
    pub(crate) namespace: &'a Text,
    pub(crate) name: &'a Text,
    pub(crate) addresses: &'a [IpAddr],
    pub(crate) labels: Labels,
    pub(crate) service_account: Option<Text>,
    pub(crate) workload: Option<Workload>,
    /// Those it is behind, sorted.
    pub(crate) services: Box<[Text]>,
    pub(crate) place: Place,
}

/// All that is known of a service with addresses that are seen outside.
pub(crate) struct ServiceFacts<'a> {
    pub(crate) namespace: &'a Text,
    pub(crate) name: &'a Text,
    /// Sorted, without doubles.
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) labels: &'a Labels,
}

/// All that is known of a node.
pub(crate) struct NodeFacts<'a> {
    pub(crate) name: &'a Text,
    pub(crate) addresses: &'a [IpAddr],
    pub(crate) labels: &'a Labels,
    pub(crate) place: &'a Place,
}

impl Scope {
    /// The name of a pod's endpoint.
    pub(crate) fn pod_name(&self, namespace: &str, name: &str) -> String {
        format!("{}/{namespace}/{name}", self.cluster)
    }

    /// The name of a service's endpoint. No object's name has a colon, so it is no pod's.
    pub(crate) fn service_name(&self, namespace: &str, name: &str) -> String {
        format!("service:{}/{namespace}/{name}", self.cluster)
    }

    /// The name of a node's endpoint.
    pub(crate) fn node_name(&self, name: &str) -> String {
        format!("node:{}/{name}", self.cluster)
    }

    pub(crate) fn pod(&self, facts: PodFacts<'_>) -> Endpoint {
        let name = self.pod_name(facts.namespace, facts.name);
        Endpoint {
            addresses: prefixes(facts.addresses),
            cluster: Some(Text::clone(&self.cluster.0)),
            namespace: Some(Text::clone(facts.namespace)),
            services: facts.services,
            service_account: facts.service_account,
            workload: facts.workload,
            region: facts.place.region,
            zone: facts.place.zone,
            labels: facts.labels,
            ..Endpoint::new(name, EndpointKind::Pod, self.pods)
        }
    }

    pub(crate) fn service(&self, facts: &ServiceFacts<'_>) -> Endpoint {
        let name = self.service_name(facts.namespace, facts.name);
        Endpoint {
            addresses: prefixes(&facts.addresses),
            cluster: Some(Text::clone(&self.cluster.0)),
            namespace: Some(Text::clone(facts.namespace)),
            services: [Text::clone(facts.name)].into(),
            labels: facts.labels.clone(),
            ..Endpoint::new(name, EndpointKind::Service, self.nodes)
        }
    }

    pub(crate) fn node(&self, facts: &NodeFacts<'_>) -> Endpoint {
        Endpoint {
            addresses: prefixes(facts.addresses),
            cluster: Some(Text::clone(&self.cluster.0)),
            region: facts.place.region.clone(),
            zone: facts.place.zone.clone(),
            labels: facts.labels.clone(),
            ..Endpoint::new(self.node_name(facts.name), EndpointKind::Node, self.nodes)
        }
    }

    pub(crate) fn namespace(&self, name: &Text, labels: &Labels) -> Change {
        Change::Namespace(self.namespace_id(name), labels.clone())
    }

    pub(crate) fn namespace_gone(&self, name: &Text) -> Change {
        Change::NamespaceGone(self.namespace_id(name))
    }

    fn namespace_id(&self, name: &Text) -> NamespaceId {
        NamespaceId { cluster: Some(Text::clone(&self.cluster.0)), name: Text::clone(name) }
    }
}

fn prefixes(addresses: &[IpAddr]) -> Box<[IpNet]> {
    addresses.iter().copied().map(IpNet::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_named_by_what_separates_nothing() {
        for (name, fits) in [
            ("prod-eu_1.a", true),
            (&"a".repeat(100), true),
            (&"a".repeat(101), false),
            ("", false),
            ("a/b", false),
            ("node:a", false),
            ("größe", false),
        ] {
            assert_eq!(ClusterName::new(name).is_ok(), fits, "{name}");
        }
    }
}
