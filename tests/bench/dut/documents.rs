//! The configuration that the gateway is measured under: pods with labels, groups over them, and
//! as many rules as a row asks for, of which only the last lets the benches' traffic through.

use bench_xdp::{FIRST_SOURCE, SOURCES};
use serde_json::{Value, json};
use std::net::Ipv4Addr;

/// How many rules are judged, over how many groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Policy {
    pub(crate) rules: u32,
    pub(crate) groups: u32,
}

impl Policy {
    /// The smallest that says anything.
    pub(crate) const SMALL: Self = Self { rules: 10, groups: 10 };
    /// A big company's.
    pub(crate) const LARGE: Self = Self { rules: 10_000, groups: 1_000 };
}

/// Where the traffic goes that is let through: flows below 2^27.
const SERVERS: &str = "198.18.0.0/20";

/// The outside address. Not the machine's own, so that every port of it can be lent.
pub(crate) const OUTSIDE: &str = "203.0.113.1";

/// Ports of the rules that do not match.
const OTHER_PORTS: [u16; 12] = [22, 53, 80, 123, 443, 1433, 3306, 5432, 6379, 8080, 8443, 27017];

/// Labels of a pod: it is in as many groups.
const LABELS: u32 = 3;

/// The documents of a policy: every rule but the last matches the traffic's source, destination or
/// port, and never all three.
pub(crate) fn documents(policy: Policy) -> Vec<Value> {
    let document =
        |kind: &str, name: &str, spec: Value| json!({ "kind": kind, "name": name, "spec": spec });
    // A tenth of the groups are destinations, two are everybody and every server.
    let destinations = (policy.groups / 10).max(1);
    let sources = policy.groups - destinations - 2;
    let mut documents = vec![
        document("DefaultAction", "default", json!({ "action": "deny", "log": "both" })),
        document(
            "SmartGroup",
            "pods",
            json!({ "selectors": [{ "cidr": "100.64.0.0/10", "domain": "pods" }] }),
        ),
        document("SmartGroup", "servers", json!({ "selectors": [{ "cidr": SERVERS }] })),
    ];
    for group in 0..sources {
        let (label, value) = (format!("l{}", group % LABELS), format!("v{}", group / LABELS));
        documents.push(document(
            "SmartGroup",
            &format!("source-{group}"),
            json!({ "selectors": [{ "type": "k8s", "labels": { label: value } }] }),
        ));
    }
    for group in 0..destinations {
        documents.push(document(
            "SmartGroup",
            &format!("destination-{group}"),
            json!({ "selectors": [
                { "cidr": format!("198.18.{}.0/24", group % 16) },
                { "cidr": format!("203.0.{}.0/25", group % 112) },
            ] }),
        ));
    }
    for pod in 0..SOURCES {
        let labels: serde_json::Map<String, Value> = (0..LABELS)
            .map(|label| {
                let values = (sources + LABELS - 1 - label) / LABELS;
                let value = pod.wrapping_mul(2_654_435_761).rotate_left(label * 8) % values.max(1);
                (format!("l{label}"), json!(format!("v{value}")))
            })
            .collect();
        documents.push(document(
            "Endpoint",
            &format!("pod-{pod}"),
            json!({
                "type": "pod",
                "domain": "pods",
                "addresses": [Ipv4Addr::from(FIRST_SOURCE + pod)],
                "labels": labels,
            }),
        ));
    }
    for rule in 1..policy.rules {
        let draw = rule.wrapping_mul(0x9e37_79b9);
        let mut spec = json!({
            "priority": rule,
            "action": if draw & 1 == 0 { "permit" } else { "deny" },
            "sources": [format!("source-{}", (draw >> 3) % sources)],
        });
        if draw & 6 == 0 {
            // Every port, but nowhere that the traffic goes.
            spec["destinations"] = json!(["elsewhere"]);
        } else {
            spec["destinations"] = json!([format!("destination-{}", (draw >> 13) % destinations)]);
            spec["protocol"] = json!(if draw & 8 == 0 { "tcp" } else { "udp" });
            spec["ports"] = json!([OTHER_PORTS[(draw >> 20) as usize % OTHER_PORTS.len()]]);
        }
        documents.push(document("Rule", &format!("rule-{rule}"), spec));
    }
    documents.extend([
        document("SmartGroup", "elsewhere", json!({ "selectors": [{ "cidr": "10.0.0.0/8" }] })),
        document(
            "Rule",
            "the-traffic",
            json!({
                "priority": policy.rules,
                "action": "permit",
                "sources": ["pods"],
                "destinations": ["servers"],
                "protocol": "any",
            }),
        ),
        document(
            "SnatPolicy",
            "outside",
            json!({
                "order": 10,
                "src_cidr": "100.64.0.0/10",
                "interface": crate::topology::OUTSIDE.name,
                "snat_ips": [OUTSIDE],
            }),
        ),
    ]);
    documents
}

#[cfg(test)]
mod tests {
    use bench_xdp::DESTINATION_PORT;

    use super::*;

    #[test]
    fn a_policy_has_the_rules_and_groups_that_it_says() {
        for policy in [Policy::SMALL, Policy::LARGE] {
            let documents = documents(policy);
            let count = |kind: &str| documents.iter().filter(|d| d["kind"] == kind).count();
            assert_eq!(count("Rule"), policy.rules as usize, "{policy:?}");
            // `elsewhere` is one more.
            assert_eq!(count("SmartGroup"), policy.groups as usize + 1, "{policy:?}");
        }
    }

    #[test]
    fn no_rule_but_the_last_names_the_port_of_the_traffic() {
        assert!(!OTHER_PORTS.contains(&DESTINATION_PORT));
    }
}
