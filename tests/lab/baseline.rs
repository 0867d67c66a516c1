//! The lab without the gateway's daemon: Linux forwards, nftables translates.
//!
//! This proves the lab itself: what works here and not with the daemon is the daemon's fault. Two
//! clusters with the same addresses are told apart by conntrack zones, and replies find their
//! cluster by a mark that the connection carries.

use anyhow::Result;

use crate::plan;
use crate::topology::{Lab, Shape};

/// What Linux does with pods' packets on their way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Translation {
    /// It gives all of them a routable source.
    All,
    /// It forgets UDP: a leak, for whoever has to notice one.
    ForgetsUdp,
    /// Only TCP to port 80 is let through; the rest is dropped in silence.
    OnlyWeb,
}

/// Makes the kernel of the gateway translate; a later call takes the place of an earlier one.
///
/// # Errors
///
/// When nftables or routing rules are refused.
pub fn translate(lab: &Lab, translation: Translation) -> Result<()> {
    let (mut zones, mut marks) = (String::new(), String::new());
    let mut routes = String::new();
    for cluster in &lab.clusters {
        let number = cluster.plan.domain;
        let interface = match lab.shape {
            Shape::ThreeLegged => format!("eth-{}", cluster.plan.short),
            Shape::OneArmedTrunk => format!("eth0.{}", cluster.plan.vlan),
            // Addresses differ, so the routes tell the clusters apart.
            Shape::OneArmed => continue,
        };
        zones += &format!("iifname \"{interface}\" ct original zone set {number}\n");
        marks += &format!("iifname \"{interface}\" ct mark set {number} return\n");
        let (table, router, pods) = (100 + number, cluster.plan.router, cluster.pod_network);
        routes += &format!(
            "route replace {pods} via {router} table {table}\n\
             rule add fwmark {number} priority {table} lookup {table}\n"
        );
    }
    // Rules would pile up, and none to delete is an error: so a batch of its own, forced.
    let old = (101..=102).map(|table| format!("rule del priority {table}\n")).collect::<String>();
    lab.gateway.feed("sh", &["-c", "ip -force -batch - 2>/dev/null || :"], &old)?;
    lab.gateway.ip(&routes)?;

    let [transit, internet] = match lab.shape {
        Shape::ThreeLegged => ["eth-transit", "eth-internet"],
        Shape::OneArmed | Shape::OneArmedTrunk => ["eth0", "eth0"],
    };
    let (which, forward) = match translation {
        Translation::All => ("", ""),
        Translation::ForgetsUdp => ("meta l4proto != udp", ""),
        Translation::OnlyWeb => {
            ("", "ct state established,related accept\ntcp dport 80 accept\ndrop\n")
        }
    };
    let (pods, servers) = (plan::NON_ROUTABLE, plan::TRANSIT);
    let nodes = plan::CLUSTERS.map(|cluster| cluster.nodes.to_string()).join(", ");
    lab.gateway.nft(&format!(
        "table ip baseline\n\
         delete table ip baseline\n\
         table ip baseline {{\n\
         chain zones {{ type filter hook prerouting priority raw;\n{zones}}}\n\
         chain marks {{ type filter hook prerouting priority mangle;\n\
         {marks}meta mark set ct mark\n}}\n\
         chain forward {{ type filter hook forward priority filter;\n{forward}}}\n\
         chain translate {{ type nat hook postrouting priority srcnat;\n\
         ip saddr {pods} ip daddr {servers} oifname \"{transit}\" {which} snat to {}\n\
         ip saddr {pods} ip daddr != {{ {servers}, {nodes} }} oifname \"{internet}\" {which} snat to {}\n\
         ip saddr {{ {nodes} }} ip daddr != {{ {servers}, {nodes} }} oifname \"{internet}\" snat to {}\n\
         }}\n}}\n",
        lab.transit_address(),
        lab.internet_address(),
        lab.internet_address(),
    ))
}
