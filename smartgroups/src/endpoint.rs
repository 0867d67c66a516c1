//! Something with an address: a pod, a node, a virtual machine, a subnet, a site.
//!
//! An endpoint is facts only. Which groups it is in follows from them and is never stored here.

use std::fmt;

use ipnet::IpNet;

use crate::{Labels, Text};

/// The number of a routing domain: the space in which an address is unique.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainId(pub u16);

impl DomainId {
    /// The routable fabric, which every gateway is part of.
    pub const FABRIC: Self = Self(0);
}

impl fmt::Display for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What an endpoint is.
///
/// The order is the order of ownership: where several endpoints claim the same prefix, the first
/// kind names it, because a record that says "pod" helps more than one that says "subnet".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EndpointKind {
    /// A Kubernetes pod with an address of its own (host-network pods are their node).
    Pod,
    /// A Kubernetes service address that is seen outside the cluster.
    Service,
    /// A Kubernetes node.
    Node,
    /// A virtual machine.
    Vm,
    /// A network interface of a cloud, whatever it is plugged into.
    Interface,
    /// A host or network outside of everything discovery sees.
    External,
    /// A name in DNS, which has the addresses that DNS gives for it.
    Fqdn,
    /// A branch, data centre or other place behind a connection.
    Site,
    /// A subnet of a VPC.
    Subnet,
    /// A VPC.
    Vpc,
}

impl EndpointKind {
    /// Whether two of this kind cannot have one address, so that one of them is stale or mistaken.
    ///
    /// Services and names in DNS may share an address, and places (subnets, VPCs, sites) may lie in one another.
    pub const fn is_alone_on_an_address(self) -> bool {
        match self {
            Self::Pod | Self::Node | Self::Vm | Self::Interface => true,
            Self::Service | Self::External | Self::Fqdn | Self::Site | Self::Subnet | Self::Vpc => {
                false
            }
        }
    }

    /// The word that operators write for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Service => "service",
            Self::Node => "node",
            Self::Vm => "vm",
            Self::Interface => "interface",
            Self::External => "external",
            Self::Fqdn => "fqdn",
            Self::Site => "site",
            Self::Subnet => "subnet",
            Self::Vpc => "vpc",
        }
    }
}

impl fmt::Display for EndpointKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The controller that made a pod and makes it again.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Workload {
    /// `Deployment`, `StatefulSet`, `DaemonSet`, `Job`, ..
    pub kind: Text,
    /// Its name, in the namespace of the pod.
    pub name: Text,
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}

/// One endpoint and all that is known of it; a fact that nobody stated is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Unique in the inventory; for a pod it ends in `/` and the name of the pod.
    pub name: Text,
    /// What it is.
    pub kind: EndpointKind,
    /// What its owner calls it, which others may be called too; a selector's `name` finds it.
    pub given_name: Option<Text>,
    /// The routing domain of its addresses.
    pub domain: DomainId,
    /// Its addresses (as /32 or /128) and prefixes.
    pub addresses: Box<[IpNet]>,
    /// The id that its cloud gave it.
    pub id: Option<Text>,
    /// Kubernetes cluster.
    pub cluster: Option<Text>,
    /// Kubernetes namespace; its labels: [`crate::Inventory::namespace_of`].
    pub namespace: Option<Text>,
    /// Kubernetes services in front of it, sorted.
    pub services: Box<[Text]>,
    /// Kubernetes service account it runs as.
    pub service_account: Option<Text>,
    /// The controller that made it.
    pub workload: Option<Workload>,
    /// Cloud account.
    pub account: Option<Text>,
    /// Cloud region.
    pub region: Option<Text>,
    /// Availability zone.
    pub zone: Option<Text>,
    /// Kubernetes labels or cloud tags.
    pub labels: Labels,
}

impl Endpoint {
    /// An endpoint with no facts beyond these.
    pub fn new(name: impl Into<Text>, kind: EndpointKind, domain: DomainId) -> Self {
        Self {
            name: name.into(),
            kind,
            given_name: None,
            domain,
            addresses: Box::default(),
            id: None,
            cluster: None,
            namespace: None,
            services: Box::default(),
            service_account: None,
            workload: None,
            account: None,
            region: None,
            zone: None,
            labels: Labels::default(),
        }
    }

    /// What the endpoint of a name in DNS is called. Nobody else is: what is stated or discovered has
    /// no such word in front.
    pub fn name_of_fqdn(fqdn: &str) -> Text {
        format!("fqdn:{fqdn}").into()
    }

    /// The name in DNS, or `None` for anything else.
    pub fn fqdn(&self) -> Option<&str> {
        let name = Some(&*self.name).filter(|_| self.kind == EndpointKind::Fqdn);
        name?.strip_prefix("fqdn:")
    }

    /// The name of the pod without its namespace, or `None` for anything but a pod.
    pub fn pod_name(&self) -> Option<&str> {
        match self.kind {
            EndpointKind::Pod => self.name.rsplit('/').next(),
            EndpointKind::Service
            | EndpointKind::Node
            | EndpointKind::Vm
            | EndpointKind::Interface
            | EndpointKind::External
            | EndpointKind::Fqdn
            | EndpointKind::Site
            | EndpointKind::Subnet
            | EndpointKind::Vpc => None,
        }
    }
}
