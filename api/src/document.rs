//! What an operator states: endpoints, groups, rules, SNAT policies.
//!
//! The same types stand in the `documents:` part of the configuration file and go over the API.
//! A type here says what can be written; what has to hold between documents (a rule names groups
//! that exist, priorities differ) is checked by whoever has all of them.

use std::collections::BTreeMap;
use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};

use crate::value::{AddressRange, PortRange, Prefix, Prefix4, ProtocolMatch};

/// The built-in group that holds every address.
pub const ANYWHERE: &str = "anywhere";
/// The built-in group that holds every globally reachable address.
pub const PUBLIC_INTERNET: &str = "public-internet";
/// The routing domain that always exists: the routable fabric, number 0.
pub const FABRIC: &str = "fabric";

/// One document, told apart by `kind`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(tag = "kind", deny_unknown_fields)]
pub enum Document {
    /// Something with an address.
    Endpoint(Named<Endpoint>),
    /// A Kubernetes namespace and its labels.
    Namespace(Named<Namespace>),
    /// Endpoints and prefixes that belong together.
    SmartGroup(Named<SmartGroup>),
    /// Who may talk to whom.
    Rule(Named<Rule>),
    /// What happens where no rule matches.
    DefaultAction(Named<DefaultAction>),
    /// Which outside addresses flows get.
    SnatPolicy(Named<SnatPolicy>),
}

impl Document {
    /// The words that `kind` may be.
    pub const KINDS: [&'static str; 6] =
        ["Endpoint", "Namespace", "SmartGroup", "Rule", "DefaultAction", "SnatPolicy"];

    /// What it is.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Endpoint(_) => "Endpoint",
            Self::Namespace(_) => "Namespace",
            Self::SmartGroup(_) => "SmartGroup",
            Self::Rule(_) => "Rule",
            Self::DefaultAction(_) => "DefaultAction",
            Self::SnatPolicy(_) => "SnatPolicy",
        }
    }

    /// Its name, unique among documents of its kind.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Endpoint(named) => &named.name,
            Self::Namespace(named) => &named.name,
            Self::SmartGroup(named) => &named.name,
            Self::Rule(named) => &named.name,
            Self::DefaultAction(named) => &named.name,
            Self::SnatPolicy(named) => &named.name,
        }
    }
}

/// A name and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Named<T> {
    /// Unique among documents of the kind.
    pub name: String,
    /// The statement.
    pub spec: T,
}

/// What an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EndpointType {
    /// A Kubernetes pod.
    Pod,
    /// A Kubernetes node.
    Node,
    /// A Kubernetes service.
    Service,
    /// A virtual machine.
    Vm,
    /// A network interface of a cloud.
    Interface,
    /// A subnet.
    Subnet,
    /// A VPC.
    Vpc,
    /// A branch or data centre.
    Site,
    /// Anything else that was given a name.
    External,
}

/// Something with an address, and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// What it is.
    #[serde(rename = "type")]
    pub kind: EndpointType,
    /// The routing domain of its addresses.
    #[serde(default = "fabric")]
    pub domain: String,
    /// Its addresses and prefixes.
    pub addresses: Vec<Prefix>,
    /// The id that its cloud gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The cluster it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Its namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The service that it stands behind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The service account that it runs as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
    /// The controller that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<Workload>,
    /// The cloud account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// The cloud region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The availability zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Labels or tags.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// The controller that made a pod and makes it again.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// `Deployment`, `StatefulSet`, `DaemonSet`, `Job`, ..
    pub kind: String,
    /// Its name, in the namespace of the pod.
    pub name: String,
}

/// A Kubernetes namespace. An endpoint is in it if it names the same namespace and cluster.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Namespace {
    /// Its name in the cluster.
    pub namespace: String,
    /// The cluster it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Its labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// Endpoints and prefixes that belong together: whatever any of the selectors selects, but for what
/// is excluded.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SmartGroup {
    /// Any of them is enough.
    pub selectors: Vec<Selector>,
    /// What any of these selects is not in the group.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<Selector>,
}

/// The kinds of endpoint that a selector can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SelectorType {
    /// Kubernetes pods, in the word of those who come from other products.
    K8s,
    /// Kubernetes pods.
    Pod,
    /// Kubernetes nodes.
    Node,
    /// Kubernetes nodes, in the word of those who come from other products.
    K8sNode,
    /// Kubernetes services.
    Service,
    /// Virtual machines.
    Vm,
    /// Network interfaces of a cloud.
    Interface,
    /// Subnets.
    Subnet,
    /// VPCs.
    Vpc,
    /// Branches and data centres.
    Site,
    /// Endpoints of type `external`.
    External,
}

/// Selects addresses of which all that is stated here is true.
///
/// With `cidr` and `domain` alone it is about addresses, whoever has them; any other field makes it
/// about endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Selector {
    /// The address is in this other group; stands alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The address is in this prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cidr: Option<Prefix>,
    /// The routing domain; for `cidr` the default is the fabric, else any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// What the endpoint is.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<SelectorType>,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its id, as its cloud gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Its cloud account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// Its cloud region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Its availability zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Its cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub k8s_cluster_id: Option<String>,
    /// Its namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub k8s_namespace: Option<String>,
    /// The service that it stands behind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub k8s_service: Option<String>,
    /// It is in a prefix of the site of this name, whoever has it; with `cidr` and `domain` alone
    /// beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// DNS gives it, in the fabric, for this name, or gave it a moment ago; with `cidr` alone beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fqdn: Option<String>,
    /// The name of the pod, without its namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub k8s_pod: Option<String>,
    /// The service account that it runs as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub k8s_service_account: Option<String>,
    /// The name of the controller that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub k8s_workload: Option<String>,
    /// The kind of that controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub k8s_workload_kind: Option<String>,
    /// Labels or tags that it has, among others.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What else is asked of its labels or tags.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<MatchExpression>,
    /// Labels that its namespace has, among others.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub namespace_labels: BTreeMap<String, String>,
    /// What else is asked of the labels of its namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespace_match_expressions: Vec<MatchExpression>,
}

/// How the value of a label is compared, in the words of Kubernetes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub enum Operator {
    /// The label is there, with one of the values.
    In,
    /// The label is not there, or has none of the values.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is not there.
    DoesNotExist,
}

/// A demand on one label or tag (`LabelSelectorRequirement` of Kubernetes).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MatchExpression {
    /// The label.
    pub key: String,
    /// How it is compared.
    pub operator: Operator,
    /// With what; for `In` and `NotIn` only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

/// What a rule or the default does with a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Let it through.
    Permit,
    /// Drop it without a word.
    Deny,
    /// Drop it and say so (RST, ICMP 3/13).
    Reject,
}

/// Which events of a flow are recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Log {
    /// None.
    Off,
    /// The beginning; and refusals, as by all that follow.
    Start,
    /// The end.
    End,
    /// Beginning and end, and what goes on in between.
    #[default]
    Both,
}

/// Whether a rule decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Enforcement {
    /// It decides.
    #[default]
    Enforce,
    /// It is counted and named in records, and never decides.
    Monitor,
    /// It is not looked at.
    Disabled,
}

/// Who may talk to whom; the rule with the lowest priority number that matches decides.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Its place in the order, unique among rules.
    pub priority: u32,
    /// What it does.
    pub action: Action,
    /// Groups, one of which holds the source.
    pub sources: Vec<String>,
    /// Groups, one of which holds the destination.
    pub destinations: Vec<String>,
    /// Of which protocol.
    #[serde(default)]
    pub protocol: ProtocolMatch,
    /// To which ports; none stated: all. Only with TCP or UDP.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortRange>,
    /// What of it is recorded.
    #[serde(default)]
    pub log: Log,
    /// Whether it decides.
    #[serde(default)]
    pub enforcement: Enforcement,
    /// A mark for SNAT policies to match; only if it permits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<NonZeroU16>,
    /// Why it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// What happens where no rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DefaultAction {
    /// What it does.
    pub action: Action,
    /// What of it is recorded.
    #[serde(default)]
    pub log: Log,
}

/// Which protocols a SNAT policy is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SnatProtocol {
    /// All of them; `any` means the same.
    #[default]
    #[serde(alias = "any")]
    All,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP.
    Icmp,
}

/// Which outside addresses flows get; the policy with the lowest order that matches applies.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SnatPolicy {
    /// Its place in the order, unique among policies.
    pub order: u32,
    /// The source is in this prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub src_cidr: Option<Prefix4>,
    /// The source is in this group; not together with `src_cidr`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub src_group: Option<String>,
    /// The source port is in this range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub src_port: Option<PortRange>,
    /// The destination is in this prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dst_cidr: Option<Prefix4>,
    /// The destination is in this group; not together with `dst_cidr`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dst_group: Option<String>,
    /// The destination port is in this range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dst_port: Option<PortRange>,
    /// Of which protocol.
    #[serde(default)]
    pub protocol: SnatProtocol,
    /// The rule that permitted the flow set this mark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<NonZeroU16>,
    /// The flow leaves by this attachment of kind `connection`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<String>,
    /// The flow leaves by this interface; not together with `connection`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// The addresses that are lent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub snat_ips: Vec<AddressRange>,
    /// The ports that are lent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snat_ports: Option<PortRange>,
    /// An exception: what matches leaves as it is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_nat: bool,
}

fn fabric() -> String {
    FABRIC.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::Protocol;

    #[test]
    fn a_document_is_told_by_its_kind() {
        let text = r#"{ "kind": "Rule", "name": "a", "spec": { "priority": 1, "action": "permit",
            "sources": ["anywhere"], "destinations": ["anywhere"], "protocol": "tcp",
            "ports": [443] } }"#;
        let document: Document = serde_json::from_str(text).unwrap();
        assert_eq!((document.kind(), document.name()), ("Rule", "a"));
        let Document::Rule(rule) = &document else { panic!("{document:?}") };
        assert_eq!(rule.spec.protocol, ProtocolMatch::Only(Protocol::TCP));
        assert_eq!(rule.spec.log, Log::Both);
        assert_eq!(rule.spec.enforcement, Enforcement::Enforce);
        let again: Document =
            serde_json::from_str(&serde_json::to_string(&document).unwrap()).unwrap();
        assert_eq!(again, document);
    }

    #[test]
    fn every_kind_is_listed() {
        for kind in Document::KINDS {
            let error = serde_json::from_str::<Document>(&format!(r#"{{ "kind": "{kind}" }}"#))
                .unwrap_err()
                .to_string();
            assert!(error.starts_with("missing field `name`"), "{kind}: {error}");
        }
        let error = serde_json::from_str::<Document>(r#"{ "kind": "Group" }"#).unwrap_err();
        assert!(error.to_string().starts_with("unknown variant `Group`"), "{error}");
    }

    #[test]
    fn what_is_misspelt_is_refused() {
        for text in [
            r#"{ "kind": "DefaultAction", "name": "d", "spec": { "action": "deny", "lg": "off" } }"#,
            r#"{ "kind": "DefaultAction", "name": "d", "spec": { "action": "deny" }, "slot": 1 }"#,
            r#"{ "kind": "DefaultAction", "name": "d", "spec": { "action": "Deny" } }"#,
        ] {
            let error = serde_json::from_str::<Document>(text).unwrap_err().to_string();
            assert!(error.starts_with("unknown "), "{text}: {error}");
        }
    }

    #[test]
    fn all_and_any_mean_the_same_to_a_snat_policy() {
        for word in ["all", "any"] {
            let protocol: SnatProtocol = serde_json::from_str(&format!("\"{word}\"")).unwrap();
            assert_eq!(protocol, SnatProtocol::All, "{word}");
        }
    }
}
