//! Sessions as the local API shows them.

use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::value::Protocol;

/// Names one session for as long as it lives; never reused while the tables exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

impl fmt::Display for SessionId {
    /// Sixteen hexadecimal digits: as a JSON number it would lose digits in some readers.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for SessionId {
    type Err = ();

    /// Reads what is displayed; leading zeros may be left out.
    fn from_str(text: &str) -> Result<Self, ()> {
        let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        digits.then(|| u64::from_str_radix(text, 16).ok()).flatten().map(Self).ok_or(())
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
        text.parse().map_err(|_| {
            de::Error::invalid_value(
                de::Unexpected::Str(&text),
                &"the 16 hexadecimal digits of a session",
            )
        })
    }
}

/// A rule, policy or group by the number that records carry and the name that people read.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct ObjectRef {
    /// The stable id.
    pub id: u32,
    /// The name; `None` if the object is gone.
    pub name: Option<String>,
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => f.write_str(name),
            None => write!(f, "#{}", self.id),
        }
    }
}

/// Addresses and ports of a packet; for ICMP the port of the source is the query's identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub struct Tuple {
    /// Where it comes from.
    pub source: SocketAddr,
    /// Where it goes.
    pub destination: SocketAddr,
}

/// Who one end of a session is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Party {
    /// The endpoint that owns the address, if one is known.
    pub endpoint: Option<String>,
    /// The groups that hold the address; `None`: they are not known any more.
    pub groups: Option<Vec<String>>,
    /// The stable id of that set of groups.
    pub identity: u32,
}

/// What was seen in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes, from the IP header on.
    pub bytes: u64,
    /// Every TCP flag seen; `None` if it is not TCP.
    pub tcp_flags: Option<TcpFlags>,
}

/// TCP flags as the bits of the header, written as the letters of flow records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// FIN, SYN, RST, PSH, ACK, URG, ECE, CWR; from the lowest bit on.
    const LETTERS: &str = "FSRPAUEC";
}

impl fmt::Display for TcpFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letters = (0..).zip(Self::LETTERS.chars()).filter(|(bit, _)| self.0 >> bit & 1 != 0);
        letters.into_iter().try_for_each(|(_, letter)| f.write_char(letter))
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
        text.chars().try_fold(Self(0), |flags, letter| match Self::LETTERS.find(letter) {
            Some(bit) => Ok(Self(flags.0 | 1 << bit)),
            None => Err(de::Error::custom(format!("`{letter}` is no TCP flag"))),
        })
    }
}

/// What a session is in the middle of; each has a timer of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// UDP.
    Udp,
    /// ICMP queries.
    Icmp,
    /// TCP before both sides have sent SYN.
    TcpOpening,
    /// TCP with data flowing.
    TcpEstablished,
    /// TCP after a FIN of one side.
    TcpClosing,
    /// TCP after a FIN of both sides.
    TcpClosed,
    /// TCP after a RST.
    TcpReset,
    /// Ended; only its outside port rests.
    Resting,
}

impl Phase {
    /// The word for it, as in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Icmp => "icmp",
            Self::TcpOpening => "tcp_opening",
            Self::TcpEstablished => "tcp_established",
            Self::TcpClosing => "tcp_closing",
            Self::TcpClosed => "tcp_closed",
            Self::TcpReset => "tcp_reset",
            Self::Resting => "resting",
        }
    }
}

/// One session: both its directions.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Session {
    /// Which one.
    pub id: SessionId,
    /// The IP protocol.
    pub protocol: Protocol,
    /// The first packet as it came in.
    pub inside: Tuple,
    /// The same packet as it went out; equal to `inside` if nothing is translated.
    pub outside: Tuple,
    /// The routing domain that it came from.
    pub domain: String,
    /// The routing domain that it went to.
    pub destination_domain: String,
    /// The attachment that it came in by.
    pub ingress: String,
    /// The attachment that it went out by.
    pub egress: String,
    /// Who began it.
    pub source: Party,
    /// With whom.
    pub destination: Party,
    /// The rule that permitted it; `None`: the default action.
    pub rule: Option<ObjectRef>,
    /// The first monitor rule that would have decided.
    pub would_match: Option<ObjectRef>,
    /// The SNAT policy that applies.
    pub snat_policy: Option<ObjectRef>,
    /// The mark that the rule set.
    pub mark: Option<u16>,
    /// What it is in the middle of.
    pub phase: Phase,
    /// From the one who began it.
    pub original: Traffic,
    /// The answers.
    pub reply: Traffic,
    /// Seconds since it began.
    pub age: u64,
    /// Seconds since the last packet.
    pub idle: u64,
    /// Seconds until it ends if no packet comes.
    pub expires_in: u64,
    /// The policy generation that judged it.
    pub generation: u32,
}

/// The sessions that a filter holds for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Sessions {
    /// No more of them than were asked for.
    pub sessions: Vec<Session>,
    /// How many there are, shown or not.
    pub matched: u64,
}

/// Which sessions to end.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ClearRequest {
    /// A [`crate::filter::Filter`]; the empty one means every session.
    pub filter: String,
}

/// What was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct ClearResponse {
    /// How many sessions.
    pub cleared: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_id_keeps_all_its_digits_in_json() {
        for (id, json) in
            [(SessionId(u64::MAX), "\"ffffffffffffffff\""), (SessionId(1), "\"0000000000000001\"")]
        {
            assert_eq!(serde_json::to_string(&id).unwrap(), json);
            assert_eq!(serde_json::from_str::<SessionId>(json).unwrap(), id);
        }
        for (text, expected) in [
            ("2a", Ok(SessionId(42))),
            ("000000000000002A", Ok(SessionId(42))),
            ("", Err(())),
            ("+2a", Err(())),
            ("10000000000000000", Err(())), // one digit too many
        ] {
            assert_eq!(text.parse(), expected, "{text}");
        }
        let error = serde_json::from_str::<SessionId>("\"seven\"").unwrap_err().to_string();
        assert!(error.contains("expected the 16 hexadecimal digits"), "{error}");
    }

    #[test]
    fn tcp_flags_are_letters() {
        for (flags, json) in [(0, "\"\""), (0x1b, "\"FSPA\""), (0xff, "\"FSRPAUEC\"")] {
            assert_eq!(serde_json::to_string(&TcpFlags(flags)).unwrap(), json);
            assert_eq!(serde_json::from_str::<TcpFlags>(json).unwrap(), TcpFlags(flags));
        }
        assert!(serde_json::from_str::<TcpFlags>("\"X\"").is_err());
    }

    #[test]
    fn an_object_without_a_name_shows_its_id() {
        assert_eq!(ObjectRef { id: 7, name: Some("web".into()) }.to_string(), "web");
        assert_eq!(ObjectRef { id: 77, name: None }.to_string(), "#77");
    }

    #[test]
    fn the_word_for_a_phase_is_the_same_in_tables_and_json() {
        for phase in [
            Phase::Udp,
            Phase::Icmp,
            Phase::TcpOpening,
            Phase::TcpEstablished,
            Phase::TcpClosing,
            Phase::TcpClosed,
            Phase::TcpReset,
            Phase::Resting,
        ] {
            assert_eq!(serde_json::to_value(phase).unwrap(), phase.as_str());
        }
    }
}
