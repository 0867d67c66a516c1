//! The gateway's configuration for a lab, and changes to it.
//!
//! Written from the outside, as an operator would: documents are plain data, not the product's own
//! types, so that a change to those cannot silently change what the tests say.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::{Value, json};

use crate::plan;
use crate::topology::{Cluster, Lab, Shape};

/// The port that metrics and health are served at, inside the gateway.
pub const METRICS: u16 = 9464;

/// Where the gateway hooks into the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// At the driver.
    Xdp,
    /// At traffic control.
    Tc,
}

impl Hook {
    /// As the configuration has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Tc => "tc",
        }
    }
}

/// A `sluice.yaml`.
#[derive(Clone, Debug, Serialize)]
pub struct Config {
    /// The machine's part.
    pub gateway: Value,
    /// The policy: kind, name and spec each.
    pub documents: Vec<Value>,
}

impl Config {
    /// What the lab starts with: default deny, and
    ///
    /// | from | to | what | action |
    /// | --- | --- | --- | --- |
    /// | payments | transit-servers | anything | permit |
    /// | payments, web | internet-servers | TCP 80, 443, echo and iperf3, UDP echo and iperf3 | permit |
    /// | payments, web | anywhere | DNS, ping | permit |
    /// | batch | internet-servers | TCP | reject |
    /// | nodes | anywhere | anything | permit |
    /// | transit-servers | nodes | TCP and ping | permit |
    ///
    /// with the three SNAT policies of the guide: pods to the transit by connection, pods to the
    /// Internet and nodes to the Internet by interface. One-armed, where the transit is behind the
    /// same interface as the Internet, an exception ahead of them keeps nodes as they are towards
    /// the transit.
    pub fn new(lab: &Lab, hook: Hook) -> Self {
        let files = lab.site().files();
        let gateway = json!({
            "name": "gw-1",
            "non_routable": [plan::NON_ROUTABLE],
            "domains": lab.clusters.iter().map(|cluster| json!({
                "name": cluster.plan.name,
                "number": cluster.plan.domain,
            })).collect::<Vec<_>>(),
            "attachments": attachments(lab, hook),
            "tables": {
                "sessions": 65_536,
                "endpoints": 4_096,
                "prefixes": 1_024,
                "identities": 256,
                "rules": 256,
                "port_classes": 64,
                "next_hops": 256,
            },
            "flow_log": {
                "path": files.join("flows.jsonl"),
                "rotate_bytes": 104_857_600,
                "keep": 5,
            },
            "metrics": { "listen": format!("127.0.0.1:{METRICS}") },
            "socket": files.join("sluice.sock"),
            "pin_path": lab.site().pins(),
            "state_dir": files.join("state"),
        });
        let mut config = Self { gateway, documents: Vec::new() };
        for cluster in &lab.clusters {
            config.add_endpoints(cluster);
        }
        config.add_groups();
        config.add_rules();
        config.add_snat(lab);
        config
    }

    fn add_endpoints(&mut self, cluster: &Cluster) {
        let name = cluster.plan.name;
        for pod in &cluster.pods {
            self.add(
                "Endpoint",
                &format!("{name}/{}", pod.plan.name),
                json!({
                    "type": "pod",
                    "domain": name,
                    "addresses": [pod.address],
                    "cluster": name,
                    "namespace": pod.plan.namespace,
                    "service": pod.plan.name,
                    "labels": { "team": pod.plan.team, "tier": pod.plan.tier },
                }),
            );
        }
        self.add(
            "Endpoint",
            &format!("{name}/node"),
            json!({
                "type": "node",
                "addresses": [cluster.plan.node],
                "cluster": name,
            }),
        );
    }

    fn add_groups(&mut self) {
        for team in ["payments", "web", "batch"] {
            self.add(
                "SmartGroup",
                team,
                json!({
                    "selectors": [{ "type": "k8s", "labels": { "team": team } }],
                }),
            );
        }
        let cidrs = |prefixes: &[ipnet::Ipv4Net]| {
            let selectors = prefixes.iter().map(|prefix| json!({ "cidr": prefix }));
            json!({ "selectors": selectors.collect::<Vec<_>>() })
        };
        self.add("SmartGroup", "nodes", cidrs(&plan::CLUSTERS.map(|cluster| cluster.nodes)));
        self.add("SmartGroup", "transit-servers", cidrs(&[plan::TRANSIT]));
        // Documentation prefixes are not in `public-internet`.
        self.add("SmartGroup", "internet-servers", cidrs(&plan::INTERNET));
    }

    fn add_rules(&mut self) {
        let (teams, outside) = (["payments", "web"], ["internet-servers"]);
        for (priority, name, action, from, to, protocol, ports) in [
            (
                100,
                "payments-to-transit",
                "permit",
                &["payments"][..],
                "transit-servers",
                "any",
                &[][..],
            ),
            (110, "teams-to-internet", "permit", &teams, outside[0], "tcp", &[7, 80, 443, 5_201]),
            (120, "teams-datagrams", "permit", &teams, outside[0], "udp", &[7, 5_201]),
            (130, "teams-to-dns", "permit", &teams, "anywhere", "udp", &[53]),
            (140, "teams-ping", "permit", &teams, "anywhere", "icmp", &[]),
            (150, "batch-stays-inside", "reject", &["batch"], outside[0], "tcp", &[]),
            (160, "nodes-anywhere", "permit", &["nodes"], "anywhere", "any", &[]),
            (170, "transit-to-nodes", "permit", &["transit-servers"], "nodes", "tcp", &[]),
            (180, "transit-pings-nodes", "permit", &["transit-servers"], "nodes", "icmp", &[]),
        ] {
            let mut spec = json!({
                "priority": priority,
                "action": action,
                "sources": from,
                "destinations": [to],
                "protocol": protocol,
                "log": "both",
            });
            if !ports.is_empty() {
                spec["ports"] = json!(ports);
            }
            self.add("Rule", name, spec);
        }
        self.add("DefaultAction", "default", json!({ "action": "deny", "log": "both" }));
    }

    fn add_snat(&mut self, lab: &Lab) {
        let internet = match lab.shape {
            Shape::ThreeLegged => "eth-internet",
            Shape::OneArmed | Shape::OneArmedTrunk => {
                self.add(
                    "SnatPolicy",
                    "nodes-to-transit",
                    json!({
                        "order": 5,
                        "src_group": "nodes",
                        "protocol": "all",
                        "connection": "transit",
                        "no_nat": true,
                    }),
                );
                "eth0"
            }
        };
        let mut networks: Vec<_> = lab.clusters.iter().map(|cluster| cluster.pod_network).collect();
        networks.dedup();
        for (at, pods) in (0..).zip(networks) {
            let name = |name: &str| if at == 0 { name.to_owned() } else { format!("{name}-{at}") };
            self.add(
                "SnatPolicy",
                &name("pods-to-transit"),
                json!({
                    "order": 10 + at,
                    "src_cidr": pods,
                    "dst_cidr": "0.0.0.0/0",
                    "protocol": "all",
                    "connection": "transit",
                    "snat_ips": [lab.transit_address()],
                }),
            );
            self.add(
                "SnatPolicy",
                &name("pods-to-internet"),
                json!({
                    "order": 20 + at,
                    "src_cidr": pods,
                    "dst_cidr": "0.0.0.0/0",
                    "protocol": "all",
                    "interface": internet,
                    "snat_ips": [lab.internet_address()],
                }),
            );
        }
        self.add(
            "SnatPolicy",
            "nodes-to-internet",
            json!({
                "order": 30,
                "src_group": "nodes",
                "dst_cidr": "0.0.0.0/0",
                "protocol": "all",
                "interface": internet,
                "snat_ips": [lab.internet_address()],
            }),
        );
    }

    /// Has the gateway watch a cluster, whose pods are in the domain of its name.
    pub fn watch(&mut self, cluster: &str, kubeconfig: &Path) {
        self.gateway["clusters"] =
            json!([{ "name": cluster, "domain": cluster, "kubeconfig": kubeconfig }]);
    }

    /// Adds a document.
    pub fn add(&mut self, kind: &str, name: &str, spec: Value) {
        self.documents.push(json!({ "kind": kind, "name": name, "spec": spec }));
    }

    /// Takes a document out.
    ///
    /// # Panics
    ///
    /// When there is none: the test would prove nothing.
    pub fn remove(&mut self, kind: &str, name: &str) {
        let at = self.position(kind, name);
        self.documents.remove(at);
    }

    /// The spec of a document, to change it.
    ///
    /// # Panics
    ///
    /// As [`Config::remove`].
    pub fn spec(&mut self, kind: &str, name: &str) -> &mut Value {
        let at = self.position(kind, name);
        &mut self.documents[at]["spec"]
    }

    fn position(&self, kind: &str, name: &str) -> usize {
        let is = |document: &Value| document["kind"] == kind && document["name"] == name;
        let found = self.documents.iter().position(is);
        found.unwrap_or_else(|| panic!("the configuration has no {kind} `{name}`"))
    }

    /// Adds a rule between groups.
    pub fn add_rule(&mut self, name: &str, priority: u32, action: &str, from: &str, to: &str) {
        self.add(
            "Rule",
            name,
            json!({
                "priority": priority,
                "action": action,
                "sources": [from],
                "destinations": [to],
            }),
        );
    }

    /// Changes what a rule does.
    pub fn set_action(&mut self, rule: &str, action: &str) {
        self.spec("Rule", rule)["action"] = json!(action);
    }

    /// Changes what happens where no rule matches.
    pub fn set_default(&mut self, action: &str) {
        self.spec("DefaultAction", "default")["action"] = json!(action);
    }

    /// Changes the labels of an endpoint, named `cluster/name`.
    pub fn set_labels(&mut self, endpoint: &str, labels: Value) {
        self.spec("Endpoint", endpoint)["labels"] = labels;
    }

    /// Narrows the ports of a SNAT policy, for example to `40000-40099`.
    pub fn set_ports(&mut self, policy: &str, ports: &str) {
        self.spec("SnatPolicy", policy)["snat_ports"] = json!(ports);
    }

    /// Changes the size of a table.
    pub fn set_table(&mut self, table: &str, entries: u32) {
        self.gateway["tables"][table] = json!(entries);
    }

    /// Changes a timer, for example to `5s`.
    pub fn set_timer(&mut self, timer: &str, span: &str) {
        self.gateway["timers"][timer] = json!(span);
    }

    /// The file.
    ///
    /// # Errors
    ///
    /// When the data cannot be written as YAML.
    pub fn yaml(&self) -> Result<String> {
        serde_yaml::to_string(self).context("the configuration is no YAML")
    }

    /// Writes the file in one step, so that whoever watches it never reads half of it.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        replace(path, &self.yaml()?)
    }
}

/// Writes any text in one step: a broken configuration too.
///
/// # Errors
///
/// When the file cannot be written.
pub fn replace(path: &Path, text: &str) -> Result<()> {
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, text).with_context(|| format!("cannot write {}", fresh.display()))?;
    std::fs::rename(&fresh, path).with_context(|| format!("cannot replace {}", path.display()))
}

fn attachments(lab: &Lab, hook: Hook) -> Vec<Value> {
    let mut attachments = Vec::new();
    let mut add = |name: &str, interface: &str, kind: &str| {
        attachments.push(json!({
            "name": name,
            "interface": interface,
            "kind": kind,
            "hook": hook.as_str(),
        }));
        attachments.len() - 1
    };
    let mut settings = Vec::new();
    let interface = |own: &str| match lab.shape {
        Shape::ThreeLegged => format!("eth-{own}"),
        Shape::OneArmed | Shape::OneArmedTrunk => "eth0".to_owned(),
    };
    for cluster in &lab.clusters {
        let (name, on) = (cluster.plan.name, interface(cluster.plan.short));
        for (part, sources, domain) in
            [("pods", cluster.pod_network, Some(name)), ("nodes", cluster.plan.nodes, None)]
        {
            let at = add(&format!("{name}-{part}"), &on, "spoke");
            settings.push((at, "sources", json!([sources])));
            settings.extend(domain.map(|domain| (at, "domain", json!(domain))));
            if lab.shape == Shape::OneArmedTrunk {
                settings.push((at, "vlan", json!(cluster.plan.vlan)));
            }
        }
    }
    let transit = add("transit", &interface("transit"), "connection");
    settings.push((transit, "routes", json!([plan::TRANSIT])));
    if lab.shape != Shape::ThreeLegged {
        // On a shared interface only the source tells the transit from the Internet.
        settings.push((transit, "sources", json!([plan::TRANSIT])));
    }
    add("internet", &interface("internet"), "internet");
    for (at, field, value) in settings {
        attachments[at][field] = value;
    }
    attachments
}
