//! Who is in the lab, and at which address.
//!
//! Both clusters have the same pod network, and the same addresses belong to different workloads:
//! 100.64.1.10 is the payments API of `prod-eu` and a report job of `prod-us`. Whoever mixes the
//! clusters up gives the one the rights of the other.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// A pod.
#[derive(Clone, Copy, Debug)]
pub struct PodPlan {
    /// Its name, unique in its cluster.
    pub name: &'static str,
    /// The last two bytes of its address in the cluster's pod network.
    pub host: [u8; 2],
    /// Its Kubernetes namespace.
    pub namespace: &'static str,
    /// The label `team`, which the groups go by.
    pub team: &'static str,
    /// The label `tier`.
    pub tier: &'static str,
}

/// A Kubernetes cluster.
#[derive(Clone, Copy, Debug)]
pub struct ClusterPlan {
    /// Its name, and that of the routing domain of its pods.
    pub name: &'static str,
    /// What names of interfaces and namespaces begin with.
    pub short: &'static str,
    /// The number of the domain.
    pub domain: u16,
    /// The VLAN that it arrives on, where it does.
    pub vlan: u16,
    /// Its pod network where an interface or a VLAN tells it from the other.
    pub pods: Ipv4Net,
    /// Its pod network where both arrive on one interface, and only the source tells.
    pub pods_alone: Ipv4Net,
    /// Its nodes, routable.
    pub nodes: Ipv4Net,
    /// Its node.
    pub node: Ipv4Addr,
    /// What its router sends everything to: the gateway, or the VPC.
    pub upstream: Ipv4Addr,
    /// Its router.
    pub router: Ipv4Addr,
    /// Its pods.
    pub workloads: [PodPlan; 3],
}

const fn pod(
    name: &'static str,
    host: [u8; 2],
    namespace: &'static str,
    team: &'static str,
    tier: &'static str,
) -> PodPlan {
    PodPlan { name, host, namespace, team, tier }
}

const fn net(a: u8, b: u8, c: u8, d: u8, length: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length)
}

/// The clusters.
pub const CLUSTERS: [ClusterPlan; 2] = [
    ClusterPlan {
        name: "prod-eu",
        short: "eu",
        domain: 1,
        vlan: 100,
        pods: net(100, 64, 0, 0, 16),
        pods_alone: net(100, 64, 0, 0, 16),
        nodes: net(10, 10, 0, 0, 24),
        node: Ipv4Addr::new(10, 10, 0, 10),
        upstream: Ipv4Addr::new(10, 10, 0, 253),
        router: Ipv4Addr::new(10, 10, 0, 254),
        workloads: [
            pod("api", [1, 10], "checkout", "payments", "api"),
            pod("web", [1, 20], "shop", "web", "frontend"),
            pod("report", [2, 30], "jobs", "batch", "worker"),
        ],
    },
    ClusterPlan {
        name: "prod-us",
        short: "us",
        domain: 2,
        vlan: 200,
        pods: net(100, 64, 0, 0, 16),
        pods_alone: net(100, 65, 0, 0, 16),
        nodes: net(10, 20, 0, 0, 24),
        node: Ipv4Addr::new(10, 20, 0, 10),
        upstream: Ipv4Addr::new(10, 20, 0, 253),
        router: Ipv4Addr::new(10, 20, 0, 254),
        workloads: [
            pod("report", [1, 10], "jobs", "batch", "worker"),
            pod("web", [1, 20], "shop", "web", "frontend"),
            pod("api", [2, 30], "checkout", "payments", "api"),
        ],
    },
];

/// Addresses that must not be seen outside the clusters.
pub const NON_ROUTABLE: Ipv4Net = net(100, 64, 0, 0, 10);

/// What the transit connection leads to.
pub const TRANSIT: Ipv4Net = net(10, 50, 0, 0, 16);
/// Servers there.
pub const TRANSIT_SERVERS: [Ipv4Addr; 2] =
    [Ipv4Addr::new(10, 50, 1, 10), Ipv4Addr::new(10, 50, 2, 20)];
/// Our end of the transit link.
pub const TRANSIT_NEAR: Ipv4Addr = Ipv4Addr::new(10, 50, 255, 1);
/// The transit's router.
pub const TRANSIT_ROUTER: Ipv4Addr = Ipv4Addr::new(10, 50, 255, 2);

/// What the Internet consists of.
pub const INTERNET: [Ipv4Net; 2] = [net(198, 51, 100, 0, 24), net(203, 0, 113, 0, 24)];
/// Servers there.
pub const INTERNET_SERVERS: [Ipv4Addr; 2] =
    [Ipv4Addr::new(198, 51, 100, 10), Ipv4Addr::new(203, 0, 113, 10)];
/// Our end of the Internet link.
pub const INTERNET_NEAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The provider's router.
pub const INTERNET_ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// The subnet of the VPC that a one-armed gateway is in.
pub const VPC: Ipv4Net = net(10, 60, 0, 0, 24);
/// The gateway's only address there.
pub const VPC_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 60, 0, 10);
/// The VPC's router.
pub const VPC_ROUTER: Ipv4Addr = Ipv4Addr::new(10, 60, 0, 1);

impl ClusterPlan {
    /// The address of a pod in this pod network.
    pub fn address(pods: Ipv4Net, pod: &PodPlan) -> Ipv4Addr {
        let [a, b, ..] = pods.network().octets();
        Ipv4Addr::new(a, b, pod.host[0], pod.host[1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_addresses_belong_to_other_workloads_in_the_other_cluster() {
        let of = |cluster: &ClusterPlan| {
            cluster.workloads.map(|pod| (ClusterPlan::address(cluster.pods, &pod), pod.team))
        };
        let [eu, us] = [of(&CLUSTERS[0]), of(&CLUSTERS[1])];
        assert_eq!(eu.map(|pod| pod.0), us.map(|pod| pod.0), "addresses");
        assert_ne!(eu.map(|pod| pod.1), us.map(|pod| pod.1), "teams");
        for (address, _) in eu {
            assert!(NON_ROUTABLE.contains(&address), "{address}");
        }
    }

    #[test]
    fn only_one_interface_for_both_needs_other_addresses() {
        let [eu, us] = &CLUSTERS;
        assert_eq!(eu.pods, us.pods);
        assert!(!eu.pods_alone.contains(&us.pods_alone));
        assert!(NON_ROUTABLE.contains(&us.pods_alone));
    }
}
