//! The networks of the lab: two clusters, a gateway, a transit side and an Internet side.
//!
//! ```text
//!  three-legged
//!
//!   pods, node -- eu-router --[eth-eu]           [eth-transit]-- transit-router -- transit
//!                                     \         /
//!                                      gateway
//!                                     /         \
//!   pods, node -- us-router --[eth-us]           [eth-internet]-- internet-router -- internet
//!
//!  one-armed
//!
//!   pods, node -- eu-router --[to-eu]            [to-transit]-- transit-router -- transit
//!                                     \         /
//!                                      vpc --[trunk]------[eth0] gateway
//!                                     /         \
//!   pods, node -- us-router --[to-us]            [to-internet]-- internet-router -- internet
//! ```
//!
//! What is a leg of the gateway in one shape is a leg of the VPC's router in the other, with the
//! same addresses. The VPC has a routing table for each subnet: what the clusters send, and what
//! the transit sends to nodes, goes by the gateway first.
//!
//! Routers and hosts behind them are joined by a link for each host, which has a /32 address and
//! sends everything to 169.254.1.1, as on the nodes of Calico and of clouds: no bridge, and no
//! address lost to a subnet. A router between gateway and servers is there to answer with ICMP
//! errors, and to see what the gateway sent even if it goes nowhere.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use ipnet::Ipv4Net;

use crate::capture::{Capture, Watch};
use crate::link::{Link, Offloads, vlan};
use crate::netns::Netns;
use crate::plan::{self, CLUSTERS, ClusterPlan, PodPlan};
use crate::servers::Servers;
use crate::site::Site;

/// How the gateway is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// An interface for each cluster, one for the transit and one for the Internet. Both clusters
    /// have the same pod network.
    ThreeLegged,
    /// One interface for everything, in a subnet of a VPC; outside addresses are its own. Only the
    /// source tells where a packet comes from, so the pod networks differ.
    OneArmed,
    /// One-armed with each cluster on a VLAN of the interface, so that both may have the same pod
    /// network. Needs VLANs in the kernel.
    OneArmedTrunk,
}

/// A running lab. Everything is gone when it is dropped.
#[derive(Debug)]
pub struct Lab {
    /// How the gateway is connected.
    pub shape: Shape,
    /// Where the gateway runs.
    pub gateway: Netns,
    /// The VPC's router, where the gateway is one-armed.
    pub vpc: Option<Netns>,
    /// The clusters, as [`CLUSTERS`] has them.
    pub clusters: Vec<Cluster>,
    /// The far end of the transit link.
    pub transit_router: Netns,
    /// The servers behind it.
    pub transit: Netns,
    /// The far end of the Internet link.
    pub internet_router: Netns,
    /// The servers behind it.
    pub internet: Netns,
    links: Vec<Link>,
    // The last to be dropped.
    site: Site,
}

/// A cluster with its namespaces.
#[derive(Debug)]
pub struct Cluster {
    /// Names and routable addresses.
    pub plan: &'static ClusterPlan,
    /// The pod network in this lab.
    pub pod_network: Ipv4Net,
    /// The router; its side towards the gateway is `uplink`.
    pub router: Netns,
    /// The node.
    pub node: Netns,
    /// The pods.
    pub pods: Vec<Pod>,
}

/// A pod with its namespace; its interface is `eth0`.
#[derive(Debug)]
pub struct Pod {
    /// What it is.
    pub plan: &'static PodPlan,
    /// Its address in this lab.
    pub address: Ipv4Addr,
    /// Where it runs.
    pub netns: Netns,
}

/// What hosts send everything to, and routers answer for.
const ANYCAST_ROUTER: &str = "169.254.1.1";
/// The VPC's routing table for what the clusters send.
const TABLE_CLUSTERS: u32 = 10;
/// The VPC's routing table for what the transit sends.
const TABLE_TRANSIT: u32 = 11;

impl Lab {
    /// The three-legged lab with links that XDP can work on.
    ///
    /// # Errors
    ///
    /// When the machine refuses one of its parts; nothing stays.
    pub fn three_legged() -> Result<Self> {
        Self::new(Shape::ThreeLegged, Offloads::Off)
    }

    /// The one-armed lab with links that XDP can work on.
    ///
    /// # Errors
    ///
    /// As [`Lab::three_legged`].
    pub fn one_armed() -> Result<Self> {
        Self::new(Shape::OneArmed, Offloads::Off)
    }

    /// Any lab.
    ///
    /// # Errors
    ///
    /// As [`Lab::three_legged`].
    pub fn new(shape: Shape, offloads: Offloads) -> Result<Self> {
        let site = Site::new()?;
        let mut links = Vec::new();
        let gateway = router(&site, "gateway")?;
        let vpc = match shape {
            Shape::ThreeLegged => None,
            Shape::OneArmed | Shape::OneArmedTrunk => Some(router(&site, "vpc")?),
        };
        let hub = Hub { netns: vpc.as_ref().unwrap_or(&gateway), shape, offloads };
        if let Some(vpc) = &vpc {
            let trunk = Link::new((&gateway, "eth0"), (vpc, "trunk"), offloads)?;
            gateway.ip(&format!("addr add {}/24 dev eth0\n", plan::VPC_GATEWAY))?;
            vpc.ip(&format!("addr add {}/24 dev trunk\n", plan::VPC_ROUTER))?;
            links.push(trunk);
        }
        let clusters = CLUSTERS
            .iter()
            .map(|cluster| hub.cluster(&site, cluster, &mut links))
            .collect::<Result<Vec<_>>>()
            .context("cannot build the clusters")?;
        let [transit_router, transit] = hub
            .side(&site, "transit", plan::TRANSIT_ROUTER, &plan::TRANSIT_SERVERS, &mut links)
            .context("cannot build the transit side")?;
        let [internet_router, internet] = hub
            .side(&site, "internet", plan::INTERNET_ROUTER, &plan::INTERNET_SERVERS, &mut links)
            .context("cannot build the Internet side")?;
        let lab = Self {
            shape,
            gateway,
            vpc,
            clusters,
            transit_router,
            transit,
            internet_router,
            internet,
            links,
            site,
        };
        lab.route().context("cannot set the routes")?;
        Ok(lab)
    }

    fn route(&self) -> Result<()> {
        // Nobody outside has a route to pods: what leaks gets no answer, but is seen.
        self.transit_router.ip(&format!("route add 10.0.0.0/8 via {}\n", plan::TRANSIT_NEAR))?;
        self.internet_router.ip(&format!(
            "route add {} via {}\n",
            plan::VPC,
            plan::INTERNET_NEAR
        ))?;

        let hub = self.vpc.as_ref().unwrap_or(&self.gateway);
        let mut lines = format!(
            "addr add {near}/30 dev {transit}\n\
             addr add {outside}/30 dev {internet}\n\
             route add {servers} via {router}\n\
             route add default via {provider}\n",
            near = plan::TRANSIT_NEAR,
            transit = self.transit_interface(),
            outside = plan::INTERNET_NEAR,
            internet = self.internet_interface(),
            servers = plan::TRANSIT,
            router = plan::TRANSIT_ROUTER,
            provider = plan::INTERNET_ROUTER,
        );
        if let Some(vpc) = &self.vpc {
            lines += &format!(
                "route add default via {gateway} table {TABLE_CLUSTERS}\n\
                 rule add iif {transit} lookup {TABLE_TRANSIT}\n",
                gateway = plan::VPC_GATEWAY,
                transit = self.transit_interface(),
            );
            self.gateway.ip(&format!("route add default via {}\n", plan::VPC_ROUTER))?;
            self.gateway.ip(&format!("route add {} via {}\n", plan::TRANSIT, plan::VPC_ROUTER))?;
            vpc.ip(&lines)?;
        } else {
            hub.ip(&lines)?;
        }
        for (cluster, metric) in self.clusters.iter().zip([100, 200]) {
            let ClusterPlan { nodes, router, .. } = cluster.plan;
            let pods = cluster.pod_network;
            // The same pod network twice needs metrics to be accepted: whoever asks for an
            // interface finds the route of that cluster, and the kernel alone takes the first.
            let by_router = format!(
                "route add {nodes} via {router}\n\
                 route add {pods} via {router} metric {metric}\n"
            );
            match (&self.vpc, self.shape) {
                (Some(vpc), Shape::OneArmed) => {
                    vpc.ip(&by_router)?;
                    vpc.ip(&format!(
                        "rule add iif to-{} lookup {TABLE_CLUSTERS}\n",
                        cluster.plan.short
                    ))?;
                    self.gateway.ip(&format!(
                        "route add {nodes} via {vpc}\nroute add {pods} via {vpc}\n",
                        vpc = plan::VPC_ROUTER,
                    ))?;
                }
                _ => self.gateway.ip(&by_router)?,
            }
            if let Some(vpc) = &self.vpc {
                vpc.ip(&format!(
                    "route add {nodes} via {} table {TABLE_TRANSIT}\n",
                    plan::VPC_GATEWAY
                ))?;
            }
        }
        Ok(())
    }

    /// Starts the servers of both sides.
    ///
    /// # Errors
    ///
    /// When one does not come up.
    pub fn serve(&self) -> Result<[Servers; 2]> {
        Ok([
            Servers::start(&self.site, &self.transit, &plan::TRANSIT_SERVERS)?,
            Servers::start(&self.site, &self.internet, &plan::INTERNET_SERVERS)?,
        ])
    }

    /// Files, names and pinned objects of this lab.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// A cluster by name.
    ///
    /// # Panics
    ///
    /// When there is none of that name: the lab's own plan has the names.
    pub fn cluster(&self, name: &str) -> &Cluster {
        let mut clusters = self.clusters.iter();
        clusters
            .find(|cluster| cluster.plan.name == name)
            .unwrap_or_else(|| panic!("the lab has no cluster `{name}`"))
    }

    /// A pod by its cluster and name.
    ///
    /// # Panics
    ///
    /// As [`Lab::cluster`].
    pub fn pod(&self, cluster: &str, name: &str) -> &Pod {
        let mut pods = self.cluster(cluster).pods.iter();
        pods.find(|pod| pod.plan.name == name)
            .unwrap_or_else(|| panic!("cluster `{cluster}` has no pod `{name}`"))
    }

    /// The interface, in the hub, towards the transit.
    fn transit_interface(&self) -> &'static str {
        if self.vpc.is_some() { "to-transit" } else { "eth-transit" }
    }

    fn internet_interface(&self) -> &'static str {
        if self.vpc.is_some() { "to-internet" } else { "eth-internet" }
    }

    /// The address that the gateway gives to what leaves to the transit.
    pub fn transit_address(&self) -> Ipv4Addr {
        if self.vpc.is_some() { plan::VPC_GATEWAY } else { plan::TRANSIT_NEAR }
    }

    /// The address that the gateway gives to what leaves to the Internet.
    pub fn internet_address(&self) -> Ipv4Addr {
        if self.vpc.is_some() { plan::VPC_GATEWAY } else { plan::INTERNET_NEAR }
    }

    /// Changes what the kernel may leave to devices, on every link.
    ///
    /// # Errors
    ///
    /// When a setting is refused.
    pub fn set_offloads(&self, offloads: Offloads) -> Result<()> {
        self.links.iter().try_for_each(|link| link.set_offloads(offloads))
    }

    /// The link that ends in this interface of a namespace, to take it down or change it.
    ///
    /// # Panics
    ///
    /// When no link of the lab ends there.
    pub fn link(&self, netns: &Netns, interface: &str) -> &Link {
        let is_end = |link: &&Link| {
            let mut ends = link.ends.iter();
            ends.any(|end| end.netns.name() == netns.name() && end.name == interface)
        };
        self.links
            .iter()
            .find(is_end)
            .unwrap_or_else(|| panic!("no link ends at {}/{interface}", netns.name()))
    }

    /// Captures what the gateway sends to where pod addresses mean nothing: nothing with a
    /// non-routable source belongs there. Taken at the far end of each link, before anything can
    /// drop it.
    ///
    /// # Errors
    ///
    /// When an interface cannot be listened to.
    pub fn watch_outside(&self) -> Result<Vec<Capture>> {
        match &self.vpc {
            Some(vpc) => Ok(vec![Capture::start(vpc, "trunk", Watch::Received)?]),
            None => [&self.transit_router, &self.internet_router]
                .into_iter()
                .map(|router| Capture::start(router, "uplink", Watch::Received))
                .collect(),
        }
    }

    /// Captures what reaches the clusters: answers, translated back.
    ///
    /// # Errors
    ///
    /// When an interface cannot be listened to.
    pub fn watch_clusters(&self) -> Result<Vec<Capture>> {
        let mut clusters = self.clusters.iter();
        clusters.try_fold(Vec::new(), |mut captures, cluster| {
            captures.push(Capture::start(&cluster.router, "uplink", Watch::Received)?);
            Ok(captures)
        })
    }
}

/// Where the four legs meet: the gateway, or the VPC's router.
struct Hub<'a> {
    netns: &'a Netns,
    shape: Shape,
    offloads: Offloads,
}

impl Hub<'_> {
    fn leg(&self, name: &str) -> String {
        match self.shape {
            Shape::ThreeLegged => format!("eth-{name}"),
            Shape::OneArmed | Shape::OneArmedTrunk => format!("to-{name}"),
        }
    }

    fn cluster(
        &self,
        site: &Site,
        plan: &'static ClusterPlan,
        links: &mut Vec<Link>,
    ) -> Result<Cluster> {
        let router = router(site, &format!("{}-router", plan.short))?;
        let ClusterPlan { short, upstream, router: own, .. } = plan;
        match self.shape {
            Shape::ThreeLegged | Shape::OneArmed => {
                let leg = self.leg(short);
                links.push(Link::new((self.netns, &leg), (&router, "uplink"), self.offloads)?);
                self.netns.ip(&format!("addr add {upstream}/30 dev {leg}\n"))?;
            }
            Shape::OneArmedTrunk => {
                let [gateway, trunk] = &links.first().context("the trunk is the first link")?.ends;
                let leg = format!("eth0.{}", plan.vlan);
                vlan(gateway, plan.vlan, &leg, None)?;
                vlan(trunk, plan.vlan, "uplink", Some(&router))?;
                gateway.netns.ip(&format!("addr add {upstream}/30 dev {leg}\n"))?;
            }
        }
        router.ip(&format!("addr add {own}/30 dev uplink\nroute add default via {upstream}\n"))?;
        let pod_network = match self.shape {
            Shape::ThreeLegged | Shape::OneArmedTrunk => plan.pods,
            Shape::OneArmed => plan.pods_alone,
        };
        let node = Netns::new(site, &format!("{short}-node"))?;
        links.push(attach(&router, "node", &node, &[plan.node], self.offloads)?);
        let pods = plan.workloads.iter().map(|pod| {
            let address = ClusterPlan::address(pod_network, pod);
            let netns = Netns::new(site, &format!("{short}-{}", pod.name))?;
            let name = format!("pod-{}", pod.name);
            links.push(attach(&router, &name, &netns, &[address], self.offloads)?);
            Ok(Pod { plan: pod, address, netns })
        });
        let pods = pods.collect::<Result<_>>()?;
        Ok(Cluster { plan, pod_network, router, node, pods })
    }

    /// A router at the end of a leg, and the servers behind it.
    fn side(
        &self,
        site: &Site,
        name: &str,
        uplink: Ipv4Addr,
        servers: &[Ipv4Addr],
        links: &mut Vec<Link>,
    ) -> Result<[Netns; 2]> {
        let router = router(site, &format!("{name}-router"))?;
        links.push(Link::new((self.netns, &self.leg(name)), (&router, "uplink"), self.offloads)?);
        router.ip(&format!("addr add {uplink}/30 dev uplink\n"))?;
        let host = Netns::new(site, name)?;
        links.push(attach(&router, "servers", &host, servers, self.offloads)?);
        Ok([router, host])
    }
}

fn router(site: &Site, name: &str) -> Result<Netns> {
    let netns = Netns::new(site, name)?;
    netns.sysctl("net/ipv4/ip_forward", "1")?;
    Ok(netns)
}

/// Joins a host to its router.
fn attach(
    router: &Netns,
    name: &str,
    host: &Netns,
    addresses: &[Ipv4Addr],
    offloads: Offloads,
) -> Result<Link> {
    let link = Link::new((router, name), (host, "eth0"), offloads)?;
    let mut near = format!("addr add {ANYCAST_ROUTER}/32 dev {name}\n");
    let mut far = String::new();
    for address in addresses {
        near += &format!("route add {address}/32 dev {name}\n");
        far += &format!("addr add {address}/32 dev eth0\n");
    }
    far += &format!("route add default via {ANYCAST_ROUTER} dev eth0 onlink\n");
    router.ip(&near)?;
    host.ip(&far)?;
    Ok(link)
}
