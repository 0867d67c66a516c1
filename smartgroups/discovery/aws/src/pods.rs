//! Which addresses of an instance are those of pods.
//!
//! In EKS pods have addresses of the VPC, and AWS counts them among those of the node: the VPC CNI
//! takes them as secondary addresses of the node's interfaces, or as prefixes delegated to these, or
//! gives a pod a `branch` interface behind the node's `trunk`. A selector that means a virtual machine
//! does not mean the pods on it, so none of these are the instance's:
//!
//! - Prefixes that are delegated, to whatever instance: that is what they are for.
//! - Branch interfaces: nobody but a pod has one.
//! - Secondary addresses of a Kubernetes node. An instance is one if its tags say so, or those of one of
//!   its interfaces, or what the CNI writes as the description of interfaces that it adds. The interface
//!   that an instance was made with bears no such mark, so the instance is looked at as a whole.
//! - Secondary addresses where that cannot be told, because the instance is not known.
//!
//! A node keeps the primary address of each of its interfaces, which the CNI gives to no pod. Any other
//! instance has all its addresses.

use crate::facts::{Address, Instance, Interface};

/// How the keys of tags begin that Kubernetes, EKS and Karpenter put on nodes.
const NODE_TAGS: [&str; 4] = ["kubernetes.io/cluster/", "eks:", "aws:eks:", "karpenter.sh/"];
/// The same of interfaces that the VPC CNI adds.
const INTERFACE_TAGS: [&str; 2] = ["node.k8s.amazonaws.com/", "cluster.k8s.amazonaws.com/"];
/// What the VPC CNI calls these.
const INTERFACE_DESCRIPTION: &str = "aws-k8s-";
const TRUNK: &str = "trunk";
const BRANCH: &str = "branch";

/// Whether an interface is a pod's, and nobody else's.
pub(crate) fn is_of_pod(interface: &Interface) -> bool {
    interface.kind.eq_ignore_ascii_case(BRANCH)
}

/// Whether pods may have secondary addresses of an instance with these interfaces.
pub(crate) fn is_node<'a>(
    instance: &Instance,
    mut interfaces: impl Iterator<Item = &'a Interface>,
) -> bool {
    instance.tags.iter().any(|(key, _)| NODE_TAGS.iter().any(|tag| key.starts_with(tag)))
        || interfaces.any(lends_to_pods)
}

/// Whether an interface is there to have addresses for pods.
pub(crate) fn lends_to_pods(interface: &Interface) -> bool {
    let start = interface.description.get(..INTERFACE_DESCRIPTION.len());
    interface.kind.eq_ignore_ascii_case(TRUNK)
        || start.is_some_and(|start| start.eq_ignore_ascii_case(INTERFACE_DESCRIPTION))
        || interface
            .tags
            .iter()
            .any(|(key, _)| INTERFACE_TAGS.iter().any(|tag| key.starts_with(tag)))
}

/// The addresses of an interface that are not a pod's.
pub(crate) fn own_addresses(
    interface: &Interface,
    has_pods: bool,
) -> impl Iterator<Item = &Address> + Clone {
    let is_own = move |address: &&Address| !has_pods || address.is_primary;
    interface.addresses.iter().filter(is_own)
}
