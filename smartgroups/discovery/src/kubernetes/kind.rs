//! What is watched.

use std::fmt;

/// A kind of objects that is watched, and nothing else is: what the shipped ClusterRole allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Namespaces: their labels.
    Namespace,
    /// Nodes: their addresses, and where they stand.
    Node,
    /// Pods: who owns which address.
    Pod,
    /// Services: addresses that are seen outside of the cluster.
    Service,
    /// Endpoint slices: which pods are behind which service.
    EndpointSlice,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Namespace, Self::Node, Self::Pod, Self::Service, Self::EndpointSlice];

    /// The resource, as a ClusterRole names it.
    pub const fn resource(self) -> &'static str {
        match self {
            Self::Namespace => "namespaces",
            Self::Node => "nodes",
            Self::Pod => "pods",
            Self::Service => "services",
            Self::EndpointSlice => "endpointslices",
        }
    }

    /// Where the API server has all of them.
    pub(crate) const fn path(self) -> &'static str {
        match self {
            Self::Namespace => "/api/v1/namespaces",
            Self::Node => "/api/v1/nodes",
            Self::Pod => "/api/v1/pods",
            Self::Service => "/api/v1/services",
            Self::EndpointSlice => "/apis/discovery.k8s.io/v1/endpointslices",
        }
    }

    /// Its place in [`Kind::ALL`].
    pub(crate) const fn index(self) -> usize {
        match self {
            Self::Namespace => 0,
            Self::Node => 1,
            Self::Pod => 2,
            Self::Service => 3,
            Self::EndpointSlice => 4,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.resource())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_stands_at_its_place() {
        for (index, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind.index(), index, "{kind}");
            assert!(kind.path().ends_with(kind.resource()), "{kind}");
        }
    }
}
