//! The machine that the object is loaded on: a namespace with links, addresses, neighbours and
//! routes, and the configuration for it.
//!
//! No program is attached and no frame travels: programs are run by `BPF_PROG_TEST_RUN`. What the
//! kernel is needed for is its routing table, which the object asks.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, anyhow};
use gateway::config::Config;
use gateway::net::{Follower, NetworkState};
use lab::{Netns, Site};
use serde_json::{Value, json};
use xdp::address::V4;
use xdp::memory::{Memory, Prefix, RouteEntry};

/// The interfaces, by what is behind them.
pub(crate) const RED: u32 = 102;
pub(crate) const BLUE: u32 = 103;
pub(crate) const TRANSIT: u32 = 104;
pub(crate) const INTERNET: u32 = 105;
/// Served by TC: XDP cannot redirect to it.
pub(crate) const SLOW: u32 = 106;
/// VLAN [`RED_TAG`] of [`RED`], and VLAN [`TRANSIT_TAG`] of [`TRANSIT`].
const RED_TAGGED: u32 = 107;
const TRANSIT_TAGGED: u32 = 108;
/// Nothing is configured on it.
pub(crate) const STRANGE: u32 = 109;

pub(crate) const RED_TAG: u16 = 7;
pub(crate) const TRANSIT_TAG: u16 = 9;

/// Where frames may come in.
pub(crate) const INGRESS: [u32; 6] = [RED, BLUE, TRANSIT, INTERNET, SLOW, STRANGE];
/// Where no non-routable source may leave, but for [`CARRIED`] by the transit.
pub(crate) const ROUTABLE: [u32; 2] = [TRANSIT, INTERNET];
/// What the transit carries as it is.
pub(crate) const CARRIED: &str = "100.64.9.0/24";

/// Name, number, address, largest packet.
const LINKS: [(&str, u32, &str, u32); 8] = [
    ("red0", RED, "100.64.255.1", 1500),
    ("blue0", BLUE, "100.64.255.2", 1500),
    ("transit0", TRANSIT, "10.255.4.1", 1500),
    ("internet0", INTERNET, "203.0.113.1", 1400),
    ("slow0", SLOW, "100.65.255.1", 1500),
    ("red0.7", RED_TAGGED, "100.66.255.1", 1500),
    ("transit0.9", TRANSIT_TAGGED, "172.31.255.1", 1500),
    ("strange0", STRANGE, "192.168.1.1", 1500),
];

/// Gateways: address, interface, whether the kernel knows the neighbour.
const GATEWAYS: [(&str, u32, bool); 6] = [
    ("203.0.113.254", INTERNET, true),
    ("10.255.4.254", TRANSIT, true),
    ("10.255.4.253", TRANSIT, false),
    ("100.65.255.254", SLOW, true),
    ("100.66.255.254", RED_TAGGED, true),
    ("172.31.255.254", TRANSIT_TAGGED, true),
];

/// Prefix, the gateway (none: unreachable), and the MTU if it is not the link's. To most of
/// 128.0.0.0/2 there is no route at all, which the kernel does not say as it says "unreachable".
const ROUTES: [(&str, Option<&str>, Option<u16>); 9] = [
    ("0.0.0.0/1", Some("203.0.113.254"), None),
    ("192.0.0.0/2", Some("203.0.113.254"), None),
    ("10.0.0.0/8", Some("10.255.4.254"), Some(1_300)),
    ("10.77.0.0/16", Some("10.255.4.253"), Some(1_200)),
    // By an attachment that has no such destination ahead.
    ("192.88.98.0/24", Some("10.255.4.254"), None),
    ("100.65.0.0/16", Some("100.65.255.254"), None),
    ("100.66.0.0/16", Some("100.66.255.254"), None),
    ("172.16.0.0/12", Some("172.31.255.254"), None),
    ("192.0.2.0/24", None, None),
];

fn name_of(index: u32) -> &'static str {
    let link = LINKS.iter().find(|link| link.1 == index);
    link.expect("every interface here is one of the list").0
}

/// The hardware address of a gateway, made from its own.
fn neighbour_mac(address: &str) -> [u8; 6] {
    let [a, b, c, d] = v4(address).0;
    [2, 0xff, a, b, c, d]
}

pub(crate) fn v4(text: &str) -> V4 {
    V4(text.parse::<std::net::Ipv4Addr>().expect("an address of this file is one").octets())
}

pub(crate) fn prefix(text: &str) -> Prefix {
    let (network, bits) = text.split_once('/').unwrap_or((text, "32"));
    Prefix { network: v4(network), bits: bits.parse().expect("a prefix of this file is one") }
}

/// The namespace, and what the gateway would see of it.
pub(crate) struct Stand {
    pub(crate) netns: Netns,
    pub(crate) network: NetworkState,
    _site: Site,
}

impl Stand {
    pub(crate) fn new() -> Result<Self> {
        let site = Site::new()?;
        let netns = Netns::new(&site, "object")?;
        let mut batch = String::new();
        for (name, index, address, mtu) in LINKS {
            let mac = crate::mac_of(index).map(|byte| format!("{byte:02x}")).join(":");
            batch += &format!(
                "link add name {name} index {index} address {mac} mtu {mtu} \
                 type veth peer name far{index}\n\
                 link set far{index} up\n\
                 link set {name} up\n\
                 addr add {address}/32 dev {name}\n"
            );
        }
        for (address, index, known) in GATEWAYS {
            let device = name_of(index);
            batch += &format!("route add {address}/32 dev {device} scope link\n");
            if known {
                let mac = neighbour_mac(address).map(|byte| format!("{byte:02x}")).join(":");
                batch += &format!("neigh add {address} lladdr {mac} dev {device} nud permanent\n");
            }
        }
        for (to, gateway, mtu) in ROUTES {
            let mtu = mtu.map_or(String::new(), |mtu| format!(" mtu lock {mtu}"));
            batch += &match gateway {
                Some(gateway) => format!("route add {to} via {gateway}{mtu}\n"),
                None => format!("route add unreachable {to}\n"),
            };
        }
        netns.ip(&batch)?;
        netns.sysctl("net/ipv4/ip_forward", "1")?;
        let mut network = netns.enter(read_network)?;
        // Of a VLAN device only this matters here: routes lead to it, and it stands for a tag.
        // So a veth does as well, and kernels without VLANs run the test too.
        for (index, parent, tag) in
            [(RED_TAGGED, RED, RED_TAG), (TRANSIT_TAGGED, TRANSIT, TRANSIT_TAG)]
        {
            let link = network.links.get_mut(&index).context("a link that was just made")?;
            link.link = Some(parent);
            link.vlan = Some(tag);
        }
        Ok(Self { netns, network, _site: site })
    }

    /// Says to the core in memory what the kernel's routing table says to the object.
    pub(crate) fn route(memory: &mut Memory) {
        for (address, ifindex, known) in GATEWAYS {
            memory.add_route(RouteEntry { to: prefix(address), ifindex, gateway: None, mtu: None });
            let mac = known.then(|| neighbour_mac(address));
            memory.set_neighbour(ifindex, v4(address), mac);
        }
        for (to, gateway, mtu) in ROUTES {
            let way = gateway.and_then(|gateway| GATEWAYS.iter().find(|(at, ..)| *at == gateway));
            // No link has the number zero, so that is a way to nowhere.
            let ifindex = way.map_or(0, |way| way.1);
            let gateway = gateway.map(v4);
            memory.add_route(RouteEntry { to: prefix(to), ifindex, gateway, mtu });
        }
    }
}

fn read_network() -> Result<NetworkState> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let (follower, _changes) = Follower::start(16).await?;
        let network = follower.state().clone();
        anyhow::Ok(network)
    })
}

/// What is permitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rules {
    /// A bit of everything; who is rejected is inside.
    Usual,
    /// Nearly nothing, also from outside; one outside address is withdrawn.
    Strict,
    /// As usual, with a single outside port for each address, so that nothing is drawn by lot.
    OnePort,
}

/// The configuration for the stand.
pub(crate) fn config(rules: Rules) -> Result<Config> {
    let text = serde_yaml::to_string(&json!({
        "gateway": {
            "name": "object",
            "domains": [{ "name": "red", "number": 1 }, { "name": "blue", "number": 2 }],
            "attachments": attachments(),
            "tables": {
                "sessions": 4_096,
                "endpoints": 64,
                "prefixes": 64,
                "identities": 64,
                "rules": 64,
                "port_classes": 32,
                "next_hops": 32,
            },
        },
        "documents": documents(rules),
    }))?;
    Config::parse(&text, "object").map_err(|errors| {
        let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
        anyhow!("the gateway refuses its configuration: {}", errors.join("; "))
    })
}

/// Which hook the configuration means for each interface.
pub(crate) fn served() -> BTreeMap<String, gateway::datapath::places::Served> {
    use gateway::datapath::places::Served;
    let hook = |index| if index == SLOW { Served::Tc } else { Served::Xdp };
    LINKS.iter().map(|(name, index, ..)| ((*name).to_owned(), hook(*index))).collect()
}

fn attachments() -> Value {
    json!([
        { "name": "red", "interface": "red0", "kind": "spoke", "domain": "red",
          "sources": ["100.64.0.0/16", "10.20.0.0/16"] },
        { "name": "red-tagged", "interface": "red0", "vlan": RED_TAG, "kind": "spoke",
          "domain": "red", "sources": ["100.66.0.0/16"] },
        { "name": "blue", "interface": "blue0", "kind": "spoke", "domain": "blue",
          "sources": ["100.64.0.0/16"] },
        { "name": "slow", "interface": "slow0", "kind": "spoke", "domain": "red",
          "sources": ["100.65.0.0/16"] },
        { "name": "transit", "interface": "transit0", "kind": "connection",
          "sources": ["10.0.0.0/8"], "routes": ["10.0.0.0/8"], "carries": [CARRIED] },
        { "name": "transit-tagged", "interface": "transit0", "vlan": TRANSIT_TAG,
          "kind": "connection", "sources": ["172.16.0.0/12"], "routes": ["172.16.0.0/12"] },
        { "name": "internet", "interface": "internet0", "kind": "internet" },
    ])
}

fn documents(rules: Rules) -> Vec<Value> {
    let document =
        |kind: &str, name: &str, spec: Value| json!({ "kind": kind, "name": name, "spec": spec });
    let group = |name: &str, selectors: Value| {
        document("SmartGroup", name, json!({ "selectors": selectors }))
    };
    let mut documents = vec![
        group(
            "red",
            json!([{ "cidr": "100.64.0.0/16", "domain": "red" },
                   { "cidr": "100.66.0.0/16", "domain": "red" },
                   { "cidr": "10.20.0.0/16", "domain": "red" }]),
        ),
        group("blue", json!([{ "cidr": "100.64.0.0/16", "domain": "blue" }])),
        group("slow", json!([{ "cidr": "100.65.0.0/16", "domain": "red" }])),
        group("servers", json!([{ "cidr": "198.51.100.0/24" }])),
        group("partners", json!([{ "cidr": "10.0.0.0/8" }, { "cidr": "172.16.0.0/12" }])),
        group("api", json!([{ "type": "k8s", "labels": { "app": "api" } }])),
        document(
            "Endpoint",
            "shop/api",
            json!({ "type": "pod", "domain": "red", "addresses": ["100.64.0.1"],
                    "cluster": "red", "namespace": "shop", "labels": { "app": "api" } }),
        ),
    ];
    let stated = match rules {
        Rules::Usual | Rules::OnePort => vec![
            json!({ "action": "deny", "sources": ["anywhere"], "destinations": ["servers"],
                    "enforcement": "monitor", "protocol": "tcp", "ports": [443] }),
            json!({ "action": "permit", "sources": ["api"], "destinations": ["anywhere"],
                    "protocol": "udp", "ports": [53], "mark": 7, "log": "both" }),
            json!({ "action": "reject", "sources": ["red"], "destinations": ["anywhere"],
                    "protocol": "tcp", "ports": [22], "log": "both" }),
            json!({ "action": "reject", "sources": ["blue"], "destinations": ["servers"],
                    "protocol": "udp", "ports": [123], "log": "off" }),
            json!({ "action": "deny", "sources": ["anywhere"], "destinations": ["anywhere"],
                    "protocol": "tcp", "ports": [23], "log": "start" }),
            json!({ "action": "permit", "sources": ["red", "blue", "slow"],
                    "destinations": ["anywhere"], "log": "both" }),
            json!({ "action": "permit", "sources": ["partners"],
                    "destinations": ["slow", "red", "servers"], "log": "off" }),
        ],
        Rules::Strict => vec![
            json!({ "action": "permit", "sources": ["red", "slow"],
                    "destinations": ["servers", "partners"], "protocol": "tcp", "log": "end" }),
            json!({ "action": "reject", "sources": ["anywhere"], "destinations": ["anywhere"],
                    "protocol": "udp", "log": "both" }),
        ],
    };
    for (at, mut spec) in (1..).zip(stated) {
        spec["priority"] = json!(10 * at);
        documents.push(document("Rule", &format!("rule-{at}"), spec));
    }
    documents.push(document(
        "DefaultAction",
        "default",
        json!({ "action": "deny", "log": "both" }),
    ));
    let snat = [
        json!({ "src_cidr": CARRIED, "connection": "transit", "no_nat": true }),
        json!({ "src_cidr": "10.20.0.0/16", "connection": "transit", "no_nat": true }),
        json!({ "mark": 7, "interface": "internet0", "snat_ips": ["203.0.113.9"] }),
        // Few enough to run out.
        json!({ "src_cidr": "100.64.0.0/15", "protocol": "udp", "interface": "internet0",
                "snat_ips": ["203.0.113.7"], "snat_ports": "2000-2001" }),
        json!({ "src_cidr": "100.64.0.0/10", "interface": "internet0",
                "snat_ips": ["203.0.113.7", "203.0.113.8"] }),
        json!({ "src_cidr": "100.64.0.0/10", "connection": "transit",
                "snat_ips": ["10.255.4.9"] }),
        json!({ "src_cidr": "100.64.0.0/10", "connection": "transit-tagged",
                "snat_ips": ["172.31.255.9"], "snat_ports": "1024-1039" }),
    ];
    let in_force = match rules {
        Rules::Usual | Rules::OnePort => &snat[..],
        Rules::Strict => &snat[..6],
    };
    for (order, spec) in (1..).zip(in_force) {
        let mut spec = spec.clone();
        spec["order"] = json!(order);
        if rules == Rules::OnePort && spec.get("snat_ips").is_some() {
            spec["snat_ports"] = json!("2000-2000");
        }
        documents.push(document("SnatPolicy", &format!("snat-{order}"), spec));
    }
    documents
}
