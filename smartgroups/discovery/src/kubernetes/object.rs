//! Objects as the API server writes them, cut down to what is needed.
//!
//! A pod is 5 to 20 kB of JSON, of which this reads some hundred bytes; the rest is skipped without
//! being kept. Nothing is required that a server might leave out: an object without a field is an
//! object that has nothing there.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::Kind;

/// An object of a kind that is watched.
pub(crate) trait Object: DeserializeOwned + Send + Sync + 'static {
    /// Which kind.
    const KIND: Kind;

    /// What all kinds have.
    fn metadata(&self) -> &Metadata;

    /// What a watch heard, for the view of the cluster.
    fn news(update: Update<Self>) -> News;
}

/// What a watch of one kind heard.
#[derive(Clone, Debug)]
pub(crate) enum Update<T> {
    /// All there are. What is not among them is gone.
    Listed(Vec<T>),
    /// All there are were told of as changes, and nothing was known before.
    Told,
    /// Some that changed, in the order in which they did.
    Changed(Vec<Event<T>>),
}

/// One object that changed.
#[derive(Clone, Debug)]
pub(crate) struct Event<T> {
    /// The object, as it is or as it was last.
    pub(crate) object: T,
    /// Whether it is gone.
    pub(crate) deleted: bool,
}

/// What a watch of any kind heard.
#[derive(Clone, Debug)]
pub(crate) enum News {
    Namespace(Update<Namespace>),
    Node(Update<Node>),
    Pod(Update<Pod>),
    Service(Update<Service>),
    EndpointSlice(Update<EndpointSlice>),
}

impl News {
    /// The kind of which this is a whole list.
    pub(crate) fn lists(&self) -> Option<Kind> {
        let is_list = match self {
            Self::Namespace(update) => update.is_list(),
            Self::Node(update) => update.is_list(),
            Self::Pod(update) => update.is_list(),
            Self::Service(update) => update.is_list(),
            Self::EndpointSlice(update) => update.is_list(),
        };
        is_list.then(|| self.kind())
    }

    fn kind(&self) -> Kind {
        match self {
            Self::Namespace(_) => Kind::Namespace,
            Self::Node(_) => Kind::Node,
            Self::Pod(_) => Kind::Pod,
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
        }
    }
}

impl<T> Update<T> {
    fn is_list(&self) -> bool {
        match self {
            Self::Listed(_) | Self::Told => true,
            Self::Changed(_) => false,
        }
    }
}

macro_rules! objects {
    ($($name:ident),+) => {$(
        impl Object for $name {
            const KIND: Kind = Kind::$name;

            fn metadata(&self) -> &Metadata {
                &self.metadata
            }

            fn news(update: Update<Self>) -> News {
                News::$name(update)
            }
        }
    )+};
}

objects!(Namespace, Node, Pod, Service, EndpointSlice);

/// `null` says as much as saying nothing.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Metadata {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) uid: String,
    pub(crate) resource_version: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) labels: Pairs,
    #[serde(deserialize_with = "or_default")]
    pub(crate) annotations: Annotations,
    #[serde(deserialize_with = "or_default")]
    pub(crate) owner_references: Vec<OwnerReference>,
}

/// Labels as they are written, in one piece: while a list is read, a hundred thousand pods have theirs
/// at once, and a map of strings takes ten times the memory of what it says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pairs {
    text: String,
    /// Where in the text each key and each value ends, in turn.
    ends: Vec<usize>,
}

impl Pairs {
    /// The value of a key.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.iter().find(|(other, _)| *other == key).map(|(_, value)| value)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut start = 0;
        self.ends.chunks_exact(2).map(move |ends| {
            let pair = (&self.text[start..ends[0]], &self.text[ends[0]..ends[1]]);
            start = ends[1];
            pair
        })
    }

    fn push(&mut self, text: &str) {
        self.text.push_str(text);
        self.ends.push(self.text.len());
    }
}

#[cfg(test)]
impl<'a> FromIterator<(&'a str, &'a str)> for Pairs {
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a str)>>(pairs: I) -> Self {
        let mut all = Self::default();
        for (key, value) in pairs {
            all.push(key);
            all.push(value);
        }
        all
    }
}

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        /// A string, borrowed where it is written without escapes.
        #[derive(Deserialize)]
        struct Word<'a>(#[serde(borrow)] Cow<'a, str>);

        impl<'de> Visitor<'de> for Reader {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Pairs::default();
                while let Some((key, value)) = map.next_entry::<Word<'de>, Word<'de>>()? {
                    pairs.push(&key.0);
                    pairs.push(&value.0);
                }
                pairs.text.shrink_to_fit();
                pairs.ends.shrink_to_fit();
                Ok(pairs)
            }
        }

        deserializer.deserialize_map(Reader)
    }
}

/// The annotations that are read; others may be as large as whole objects.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Annotations {
    /// The addresses that the VPC CNI gave a pod, before its status has them.
    #[serde(rename = "vpc.amazonaws.com/pod-ips")]
    pub(crate) pod_ips: Option<String>,
    /// On the bookmark that ends a streaming list.
    #[serde(rename = "k8s.io/initial-events-end")]
    pub(crate) initial_events_end: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct OwnerReference {
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) controller: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Namespace {
    pub(crate) metadata: Metadata,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Node {
    pub(crate) metadata: Metadata,
    pub(crate) status: NodeStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NodeStatus {
    #[serde(deserialize_with = "or_default")]
    pub(crate) addresses: Vec<NodeAddress>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NodeAddress {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) address: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Pod {
    pub(crate) metadata: Metadata,
    pub(crate) spec: PodSpec,
    pub(crate) status: PodStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodSpec {
    pub(crate) node_name: String,
    pub(crate) host_network: bool,
    pub(crate) service_account_name: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct PodStatus {
    pub(crate) phase: Phase,
    #[serde(rename = "podIP", deserialize_with = "address")]
    pub(crate) pod_ip: Option<IpAddr>,
    #[serde(rename = "podIPs", deserialize_with = "or_default")]
    pub(crate) pod_ips: Vec<PodIp>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct PodIp {
    #[serde(deserialize_with = "address")]
    pub(crate) ip: Option<IpAddr>,
}

/// Whether a pod has ended; what else it may be makes no difference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) enum Phase {
    Succeeded,
    Failed,
    #[default]
    #[serde(other)]
    Lives,
}

/// An address; what is none is passed over, because one bad string must not cost the others.
fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    let text: Option<Cow<'de, str>> = Option::deserialize(deserializer)?;
    Ok(text.and_then(|text| text.parse().ok()))
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Service {
    pub(crate) metadata: Metadata,
    pub(crate) spec: ServiceSpec,
    pub(crate) status: ServiceStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ServiceSpec {
    #[serde(rename = "clusterIP")]
    pub(crate) cluster_ip: String,
    #[serde(rename = "externalIPs", deserialize_with = "or_default")]
    pub(crate) external_ips: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ServiceStatus {
    pub(crate) load_balancer: LoadBalancer,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct LoadBalancer {
    #[serde(deserialize_with = "or_default")]
    pub(crate) ingress: Vec<Ingress>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Ingress {
    pub(crate) ip: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct EndpointSlice {
    pub(crate) metadata: Metadata,
    #[serde(deserialize_with = "or_default")]
    pub(crate) endpoints: Vec<SliceEndpoint>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct SliceEndpoint {
    #[serde(deserialize_with = "or_default")]
    pub(crate) addresses: Vec<String>,
    pub(crate) conditions: Conditions,
    pub(crate) target_ref: Option<TargetRef>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Conditions {
    pub(crate) ready: Option<bool>,
    pub(crate) serving: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct TargetRef {
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_or_null_is_nothing() {
        for text in [
            r#"{}"#,
            r#"{"metadata":{"labels":null,"annotations":null,"ownerReferences":null},"status":{"podIPs":null}}"#,
        ] {
            let pod: Pod = serde_json::from_str(text).unwrap();
            assert!(
                pod.metadata.labels.iter().next().is_none() && pod.status.pod_ips.is_empty(),
                "{text}"
            );
        }
    }

    #[test]
    fn labels_are_what_was_written_whatever_the_letters() {
        let text = r#"{"a":"1","":"","quote\"d":"\u00f6","z/y":"x"}"#;
        let pairs: Pairs = serde_json::from_str(text).unwrap();
        let all: Vec<_> = pairs.iter().collect();
        assert_eq!(all, [("a", "1"), ("", ""), ("quote\"d", "ö"), ("z/y", "x")]);
        assert_eq!((pairs.get("z/y"), pairs.get("z")), (Some("x"), None));
        serde_json::from_str::<Pairs>(r#"{"a":1}"#).expect_err("a number is no label");
    }

    #[test]
    fn a_pod_is_read_as_the_server_writes_it() {
        let pod: Pod = serde_json::from_str(
            r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web-0","namespace":"shop",
            "uid":"7","resourceVersion":"12","labels":{"app":"web"},
            "annotations":{"vpc.amazonaws.com/pod-ips":"100.64.0.1","other":"x"},
            "ownerReferences":[{"apiVersion":"apps/v1","kind":"StatefulSet","name":"web",
            "uid":"1","controller":true,"blockOwnerDeletion":true}],"managedFields":[{}]},
            "spec":{"nodeName":"n1","hostNetwork":true,"serviceAccountName":"sa","containers":[]},
            "status":{"phase":"Running","podIP":"100.64.0.1",
            "podIPs":[{"ip":"100.64.0.1"},{"ip":"fd00::1"}]}}"#,
        )
        .unwrap();
        assert_eq!(
            (pod.metadata.name.as_str(), pod.metadata.resource_version.as_str()),
            ("web-0", "12")
        );
        assert_eq!(pod.metadata.annotations.pod_ips.as_deref(), Some("100.64.0.1"));
        assert_eq!(pod.metadata.owner_references[0].kind, "StatefulSet");
        assert!(pod.metadata.owner_references[0].controller && pod.spec.host_network);
        assert_eq!(pod.status.pod_ips.len(), 2);
    }
}
