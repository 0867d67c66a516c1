//! What a record holds.
//!
//! Names are shared (`Arc`), because a million records name the same hundred rules and groups.
//! Field names are a contract with whoever reads the log: the golden file shows them all, and a
//! field that has no value is `null` and not absent.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::Timestamp;

/// One flow at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct FlowRecord {
    /// When this was noted.
    pub time: Timestamp,
    /// The gateway that noted it.
    pub gateway: Arc<str>,
    /// What it tells.
    pub event: EventKind,
    /// Sixteen hexadecimal digits that all records of a session share; `None`: there is none.
    pub session: Option<SessionId>,
    /// What became of the flow.
    pub verdict: Verdict,
    /// Why it was refused, or how it ended.
    pub reason: Option<Arc<str>>,
    /// The IP protocol.
    pub protocol: Protocol,
    /// Who began it.
    pub source: End,
    /// With whom.
    pub destination: End,
    /// The first packet's addresses and ports after translation; `None`: nothing is translated.
    pub translated: Option<Tuple>,
    /// The rule that decided; `None`: the default action.
    pub rule: Option<Named>,
    /// The first monitor rule that would have decided.
    pub would_match: Option<Named>,
    /// The SNAT policy that applies.
    pub snat_policy: Option<Named>,
    /// The mark that the rule set.
    pub mark: Option<u16>,
    /// The attachment that it came in by.
    pub ingress: Option<Arc<str>>,
    /// The attachment that it leaves by.
    pub egress: Option<Arc<str>>,
    /// When it began.
    pub start: Timestamp,
    /// When its last packet was seen, to about a sixteenth of a second.
    pub last_seen: Timestamp,
    /// From the one to the other, in milliseconds.
    pub duration_ms: u64,
    /// From who began it, since it began.
    pub original: Traffic,
    /// The answers.
    pub reply: Traffic,
    /// How many records like this one a rate limit held back before it.
    pub suppressed: u32,
    /// The policy generation that judged it.
    pub generation: u32,
}

/// What a record tells of its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// It began.
    Start,
    /// It goes on.
    Update,
    /// It ended.
    End,
    /// It was refused.
    Deny,
}

/// What became of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Let through.
    Permit,
    /// Dropped without a word.
    Deny,
    /// Dropped and answered.
    Reject,
}

/// The number of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionId(pub u64);

impl fmt::Display for SessionId {
    /// Sixteen hexadecimal digits: as a JSON number it would lose digits in some readers.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Serialize for SessionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SessionId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        u64::from_str_radix(&text, 16).map(Self).map_err(de::Error::custom)
    }
}

/// An IP protocol; the usual three are written by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Protocol(pub u8);

impl Protocol {
    const NAMES: [(u8, &str); 3] = [(1, "icmp"), (6, "tcp"), (17, "udp")];

    /// TCP.
    pub const TCP: Self = Self(6);
}

impl Serialize for Protocol {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match Self::NAMES.iter().find(|(number, _)| *number == self.0) {
            Some((_, name)) => serializer.serialize_str(name),
            None => serializer.serialize_u8(self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Protocol {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(u8),
            Name(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Number(number) => Ok(Self(number)),
            Either::Name(name) => Self::NAMES
                .iter()
                .find(|(_, known)| *known == name)
                .map(|(number, _)| Self(*number))
                .ok_or_else(|| de::Error::custom(format!("`{name}` is no protocol"))),
        }
    }
}

/// One end of a flow, as it was before translation.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct End {
    /// Its address.
    pub address: IpAddr,
    /// Its port; for an ICMP query the identifier.
    pub port: u16,
    /// The routing domain in which the address means something.
    pub domain: Arc<str>,
    /// The endpoint that owns the address.
    pub endpoint: Option<Arc<str>>,
    /// The Kubernetes cluster of the endpoint.
    pub cluster: Option<Arc<str>>,
    /// Its namespace.
    pub namespace: Option<Arc<str>>,
    /// The service in front of it.
    pub service: Option<Arc<str>>,
    /// The groups that hold the address; `None`: they are not known any more.
    pub groups: Option<Arc<[Arc<str>]>>,
    /// The stable id of that set of groups.
    pub identity: u32,
}

/// Addresses and ports of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Tuple {
    /// Where it comes from.
    pub source_address: IpAddr,
    /// Its port.
    pub source_port: u16,
    /// Where it goes.
    pub destination_address: IpAddr,
    /// Its port.
    pub destination_port: u16,
}

/// A rule or policy by its stable id, and by its name if it is still known.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Named {
    /// The stable id.
    pub id: u32,
    /// The name.
    pub name: Option<Arc<str>>,
}

/// What was seen in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes, from the IP header on.
    pub bytes: u64,
    /// Every TCP flag seen; `None`: it is not TCP.
    pub tcp_flags: Option<TcpFlags>,
}

/// TCP flags as the bits of the header, written as letters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TcpFlags(pub u8);

/// FIN, SYN, RST, PSH, ACK, URG, ECE, CWR; from the lowest bit on.
const LETTERS: &str = "FSRPAUEC";

impl fmt::Display for TcpFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        for (bit, letter) in LETTERS.chars().enumerate() {
            if self.0 >> bit & 1 != 0 {
                f.write_char(letter)?;
            }
        }
        Ok(())
    }
}

impl Serialize for TcpFlags {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TcpFlags {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.chars().try_fold(Self(0), |flags, letter| match LETTERS.find(letter) {
            Some(bit) => Ok(Self(flags.0 | 1 << bit)),
            None => Err(de::Error::custom(format!("`{letter}` is no TCP flag"))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcp_flags_are_letters() {
        for (flags, json) in
            [(0, "\"\""), (0x02, "\"S\""), (0x13, "\"FSA\""), (0xff, "\"FSRPAUEC\"")]
        {
            assert_eq!(serde_json::to_string(&TcpFlags(flags)).unwrap(), json);
            assert_eq!(serde_json::from_str::<TcpFlags>(json).unwrap(), TcpFlags(flags));
        }
        assert!(serde_json::from_str::<TcpFlags>("\"X\"").is_err());
    }

    #[test]
    fn the_usual_protocols_have_names() {
        for (number, json) in [(6, "\"tcp\""), (17, "\"udp\""), (1, "\"icmp\""), (47, "47")] {
            assert_eq!(serde_json::to_string(&Protocol(number)).unwrap(), json);
            assert_eq!(serde_json::from_str::<Protocol>(json).unwrap(), Protocol(number));
        }
        assert!(serde_json::from_str::<Protocol>("\"gre\"").is_err());
    }
}
