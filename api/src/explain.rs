//! What would become of a packet, step by step.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::session::ObjectRef;
use crate::value::Protocol;

/// The first packet of a flow that may never have been sent.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainRequest {
    /// The routing domain that it comes from.
    pub domain: String,
    /// Its source.
    pub source: IpAddr,
    /// Its source port, of ICMP its identifier. If it is not stated, no session is looked for, and
    /// what depends on the port says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    /// Its destination.
    pub destination: IpAddr,
    /// Its destination port, for protocols that have ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<u16>,
    /// Its IP protocol.
    pub protocol: Protocol,
}

/// Why two texts are not a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseExplainError {
    /// The source is not `DOMAIN:IP` or `DOMAIN:IP:PORT`.
    #[error(
        "the source `{0}` is not DOMAIN:IP or DOMAIN:IP:PORT, such as prod-eu:100.64.1.10:40000"
    )]
    Source(String),
    /// Other protocols have no source port.
    #[error("the source `{0}` has a port; protocol {1} has none, so leave it out")]
    SourcePort(String, Protocol),
    /// The destination is not `IP:PORT/PROTOCOL`.
    #[error("the destination `{0}` is not IP:PORT/PROTOCOL, such as 192.0.2.7:443/tcp")]
    Destination(String),
    /// TCP and UDP need a port.
    #[error("the destination `{0}` has no port; {1} needs one, such as 192.0.2.7:443/{1}")]
    NoPort(String, Protocol),
    /// Other protocols have none.
    #[error("the destination `{0}` has a port; {1} has none, so leave it out")]
    Port(String, Protocol),
}

impl ExplainRequest {
    /// Reads `DOMAIN:IP` or `DOMAIN:IP:PORT` (of ICMP the identifier), and `IP:PORT/PROTOCOL`
    /// (`IP/PROTOCOL` where there are no ports).
    pub fn parse(from: &str, to: &str) -> Result<Self, ParseExplainError> {
        let not_a_source = || ParseExplainError::Source(from.to_owned());
        let not_a_destination = || ParseExplainError::Destination(to.to_owned());
        let (domain, source) = from.split_once(':').ok_or_else(not_a_source)?;
        let (source, source_port) = address_and_port(source).ok_or_else(not_a_source)?;
        if domain.is_empty() {
            return Err(not_a_source());
        }
        let (address, protocol) = to.rsplit_once('/').ok_or_else(not_a_destination)?;
        let protocol: Protocol = protocol.parse().map_err(|_| not_a_destination())?;
        let (destination, destination_port) =
            address_and_port(address).ok_or_else(not_a_destination)?;
        let domain = domain.to_owned();
        let request = Self { domain, source, source_port, destination, destination_port, protocol };
        request.has_fitting_ports()?;
        Ok(request)
    }

    /// Whether there are ports where the protocol has some, and only there.
    pub fn has_fitting_ports(&self) -> Result<(), ParseExplainError> {
        let Self { domain, source, source_port, destination, destination_port, protocol } = self;
        let to = || format!("{}/{protocol}", end(*destination, *destination_port));
        match (protocol.has_ports(), destination_port) {
            (true, None) => return Err(ParseExplainError::NoPort(to(), *protocol)),
            (false, Some(_)) => return Err(ParseExplainError::Port(to(), *protocol)),
            (true, Some(_)) | (false, None) => {}
        }
        if source_port.is_some() && !protocol.has_ports() && *protocol != Protocol::ICMP {
            let from = format!("{domain}:{}", end(*source, *source_port));
            return Err(ParseExplainError::SourcePort(from, *protocol));
        }
        Ok(())
    }
}

/// An address, with a port if it has one.
fn end(address: IpAddr, port: Option<u16>) -> String {
    port.map_or_else(|| address.to_string(), |port| SocketAddr::new(address, port).to_string())
}

fn address_and_port(text: &str) -> Option<(IpAddr, Option<u16>)> {
    match text.parse::<SocketAddr>() {
        Ok(with_port) => Some((with_port.ip(), Some(with_port.port()))),
        Err(_) => {
            let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
            let address = bare.map_or_else(|| text.parse(), |bare| bare.parse().map(IpAddr::V6));
            Some((address.ok()?, None))
        }
    }
}

/// What becomes of the packet in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Sent on as it is.
    Forward,
    /// Sent on with other addresses or ports.
    Translate,
    /// Left to the kernel of the gateway.
    Local,
    /// Discarded.
    Drop,
    /// Discarded and answered.
    Reject,
}

impl Outcome {
    /// The word for it, as in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Translate => "translate",
            Self::Local => "local",
            Self::Drop => "drop",
            Self::Reject => "reject",
        }
    }
}

/// The decision and how it came about.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Explanation {
    /// What becomes of the packet.
    pub outcome: Outcome,
    /// Why it is dropped, by the name that counters use.
    pub reason: Option<String>,
    /// The rule that decided; `None`: the default action, or no rule was asked.
    pub rule: Option<ObjectRef>,
    /// The policy generation that was asked.
    pub generation: u32,
    /// In the order in which the datapath takes them.
    pub steps: Vec<Step>,
}

/// One step on the way to a decision.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Step {
    /// What was looked at: `protocol`, `attachment`, `session`, `source`, `destination`, `rule`, `route`,
    /// `snat`, `guard`.
    pub stage: String,
    /// What was found, in one sentence.
    pub text: String,
    /// Whether this step settled the outcome.
    #[serde(default)]
    pub decisive: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_from_two_words() {
        let request = ExplainRequest::parse("prod-eu:100.64.1.10", "192.0.2.7:443/tcp").unwrap();
        assert_eq!(request.domain, "prod-eu");
        assert_eq!(request.source, "100.64.1.10".parse::<IpAddr>().unwrap());
        assert_eq!(request.destination_port, Some(443));
        assert_eq!(request.protocol, Protocol::TCP);
        assert_eq!(request.source_port, None);
        for (from, to, expected) in [
            ("fabric:10.0.0.1", "192.0.2.7/icmp", Ok(None)),
            ("fabric:10.0.0.1", "192.0.2.7/47", Ok(None)),
            ("fabric:2001:db8::1", "[2001:db8::2]:53/udp", Ok(Some(53))),
            ("fabric:[2001:db8::1]", "[2001:db8::2]/58", Ok(None)),
            ("fabric:10.0.0.1", "[192.0.2.7]/icmp", Err("is not IP:PORT/PROTOCOL")),
            ("fabric:10.0.0.1", "192.0.2.7/tcp", Err("tcp needs one")),
            ("fabric:10.0.0.1", "192.0.2.7:8/icmp", Err("icmp has none")),
            ("fabric:10.0.0.1", "192.0.2.7:443", Err("is not IP:PORT/PROTOCOL")),
            ("fabric:10.0.0.1", "192.0.2.7:443/tpc", Err("is not IP:PORT/PROTOCOL")),
            ("fabric:10.0.0.1", "s3:443/tcp", Err("is not IP:PORT/PROTOCOL")),
            ("10.0.0.1", "192.0.2.7:443/tcp", Err("is not DOMAIN:IP")),
            (":10.0.0.1", "192.0.2.7:443/tcp", Err("is not DOMAIN:IP")),
            ("fabric:api", "192.0.2.7:443/tcp", Err("is not DOMAIN:IP")),
        ] {
            match (ExplainRequest::parse(from, to), expected) {
                (Ok(request), Ok(port)) => assert_eq!(request.destination_port, port, "{to}"),
                (Err(error), Err(part)) => {
                    assert!(error.to_string().contains(part), "{from} {to}: {error}");
                }
                (result, _) => panic!("{from} {to}: {result:?}"),
            }
        }
    }

    #[test]
    fn a_source_may_state_its_port() {
        for (from, to, expected) in [
            ("prod-eu:100.64.1.10:40000", "192.0.2.7:443/tcp", Ok(Some(40_000))),
            ("prod-eu:100.64.1.10:0", "192.0.2.7:53/udp", Ok(Some(0))),
            ("prod-eu:100.64.1.10", "192.0.2.7:53/udp", Ok(None)),
            ("prod-eu:100.64.1.10:77", "192.0.2.7/icmp", Ok(Some(77))), // the identifier
            ("fabric:[2001:db8::1]:40000", "[2001:db8::2]:53/udp", Ok(Some(40_000))),
            ("fabric:2001:db8::1", "[2001:db8::2]:53/udp", Ok(None)),
            ("prod-eu:100.64.1.10:77", "192.0.2.7/47", Err("protocol 47 has none")),
            ("prod-eu:100.64.1.10:65536", "192.0.2.7:443/tcp", Err("DOMAIN:IP:PORT, such as")),
            ("prod-eu:100.64.1.10:http", "192.0.2.7:443/tcp", Err("DOMAIN:IP:PORT, such as")),
        ] {
            match (ExplainRequest::parse(from, to), expected) {
                (Ok(request), Ok(port)) => assert_eq!(request.source_port, port, "{from}"),
                (Err(error), Err(part)) => {
                    assert!(error.to_string().contains(part), "{from} {to}: {error}");
                }
                (result, _) => panic!("{from} {to}: {result:?}"),
            }
        }
    }
}
