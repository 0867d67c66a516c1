//! Values that documents and answers are made of, each checked where it enters.
//!
//! Their errors say what was found and what would be right (`invalid value: string "70000",
//! expected a port from 1 to 65535 ...`), so that whoever reports them needs no table of rules.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};
use serde::de::{self, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a text is not one of these values: what would have been right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {0}")]
pub struct Expected(pub &'static str);

/// A type that is written as text: what [`FromStr`] reads and [`fmt::Display`] prints.
macro_rules! as_text {
    ($type:ty, $expected:expr) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl Visitor<'_> for Text {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expected)
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(|Expected(right)| {
                            E::invalid_value(Unexpected::Str(text), &right)
                        })
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}

/// The range of TCP or UDP ports `first..=last`; neither end is zero.
///
/// Written as a number (`443`) or as text (`"8000-8100"`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

const PORTS: &str = "a port from 1 to 65535, or a range such as \"8000-8100\"";

impl PortRange {
    /// Every port.
    pub const ALL: Self = Self { first: 1, last: u16::MAX };

    /// `None` if `first` is zero or after `last`.
    #[must_use]
    pub const fn new(first: u16, last: u16) -> Option<Self> {
        if first == 0 || first > last { None } else { Some(Self { first, last }) }
    }

    /// The lowest port.
    #[must_use]
    pub const fn first(self) -> u16 {
        self.first
    }

    /// The highest port, which belongs to the range.
    #[must_use]
    pub const fn last(self) -> u16 {
        self.last
    }

    /// Whether the port is in the range.
    #[must_use]
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

impl FromStr for PortRange {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Self, Expected> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let port = |part: &str| part.trim().parse().map_err(|_| Expected(PORTS));
        Self::new(port(first)?, port(last)?).ok_or(Expected(PORTS))
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

impl<'de> Deserialize<'de> for PortRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberOrText;
        impl Visitor<'_> for NumberOrText {
            type Value = PortRange;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(PORTS)
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<PortRange, E> {
                u16::try_from(number)
                    .ok()
                    .and_then(|port| PortRange::new(port, port))
                    .ok_or_else(|| E::invalid_value(Unexpected::Unsigned(number), &PORTS))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<PortRange, E> {
                text.parse().map_err(|_| E::invalid_value(Unexpected::Str(text), &PORTS))
            }
        }
        deserializer.deserialize_any(NumberOrText)
    }
}

impl Serialize for PortRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.first == self.last {
            serializer.serialize_u16(self.first)
        } else {
            serializer.collect_str(self)
        }
    }
}

/// An IP protocol number; the usual three are written by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Protocol(pub u8);

const PROTOCOL: &str = "tcp, udp, icmp or a number from 0 to 255";

impl Protocol {
    /// ICMP for IPv4.
    pub const ICMP: Self = Self(1);
    /// TCP.
    pub const TCP: Self = Self(6);
    /// UDP.
    pub const UDP: Self = Self(17);

    /// Whether its packets carry ports.
    #[must_use]
    pub fn has_ports(self) -> bool {
        self == Self::TCP || self == Self::UDP
    }
}

impl FromStr for Protocol {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Self, Expected> {
        match text {
            "icmp" => Ok(Self::ICMP),
            "tcp" => Ok(Self::TCP),
            "udp" => Ok(Self::UDP),
            _ => text.parse().map(Self).map_err(|_| Expected(PROTOCOL)),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ICMP => f.write_str("icmp"),
            Self::TCP => f.write_str("tcp"),
            Self::UDP => f.write_str("udp"),
            Self(number) => write!(f, "{number}"),
        }
    }
}

/// Which protocols a rule is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ProtocolMatch {
    /// All of them.
    #[default]
    Any,
    /// One.
    Only(Protocol),
}

const PROTOCOL_MATCH: &str = "any, tcp, udp, icmp or a number from 0 to 255";

impl FromStr for ProtocolMatch {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Self, Expected> {
        match text {
            "any" => Ok(Self::Any),
            _ => text.parse().map(Self::Only).map_err(|_| Expected(PROTOCOL_MATCH)),
        }
    }
}

impl fmt::Display for ProtocolMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Only(protocol) => protocol.fmt(f),
        }
    }
}

/// Reads a protocol as a word or a number.
struct ProtocolVisitor(&'static str);

impl Visitor<'_> for ProtocolVisitor {
    type Value = ProtocolMatch;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<ProtocolMatch, E> {
        u8::try_from(number)
            .map(|number| ProtocolMatch::Only(Protocol(number)))
            .map_err(|_| E::invalid_value(Unexpected::Unsigned(number), &self.0))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<ProtocolMatch, E> {
        text.parse().map_err(|_| E::invalid_value(Unexpected::Str(text), &self.0))
    }
}

impl<'de> Deserialize<'de> for ProtocolMatch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ProtocolVisitor(PROTOCOL_MATCH))
    }
}

impl Serialize for ProtocolMatch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Any => serializer.serialize_str("any"),
            Self::Only(protocol) => protocol.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Protocol {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.deserialize_any(ProtocolVisitor(PROTOCOL))? {
            ProtocolMatch::Only(protocol) => Ok(protocol),
            ProtocolMatch::Any => Err(de::Error::invalid_value(Unexpected::Str("any"), &PROTOCOL)),
        }
    }
}

impl Serialize for Protocol {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.has_ports() || *self == Self::ICMP {
            serializer.collect_str(self)
        } else {
            serializer.serialize_u8(self.0)
        }
    }
}

/// An address or a prefix of either family; an address is a prefix of full length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(IpNet);

const PREFIX: &str = "an address or a prefix such as 10.20.0.0/16";
const HOST_BITS: &str = "a prefix without bits after its length";
const ZEROS: &str = "an address or a prefix such as 10.20.0.0/16, without leading zeros";
const ZEROS4: &str = "an IPv4 address or a prefix such as 10.20.0.0/16, without leading zeros";

/// Whether a number in an IPv4 address, or a length, begins with a zero that means nothing, or to
/// some that it is octal.
fn has_leading_zeros(text: &str) -> bool {
    let (address, length) = text.split_once('/').unwrap_or((text, ""));
    let numbers = address.split('.').filter(|_| !address.contains(':')).chain([length]);
    let is_led = |number: &str| {
        number.len() > 1 && number.starts_with('0') && number.bytes().all(|b| b.is_ascii_digit())
    };
    numbers.into_iter().any(is_led)
}

impl Prefix {
    /// `None` if bits are set after the length.
    #[must_use]
    pub fn new(net: IpNet) -> Option<Self> {
        (net.trunc() == net).then_some(Self(net))
    }

    /// The prefix itself.
    #[must_use]
    pub const fn net(self) -> IpNet {
        self.0
    }
}

impl FromStr for Prefix {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Self, Expected> {
        if has_leading_zeros(text) {
            return Err(Expected(ZEROS));
        }
        let net = match text.parse::<IpAddr>() {
            Ok(address) => IpNet::from(address),
            Err(_) => text.parse().map_err(|_| Expected(PREFIX))?,
        };
        Self::new(net).ok_or(Expected(HOST_BITS))
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.prefix_len() == self.0.max_prefix_len() {
            self.0.addr().fmt(f)
        } else {
            self.0.fmt(f)
        }
    }
}

as_text!(Prefix, PREFIX);

/// An IPv4 address or prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix4(Ipv4Net);

const PREFIX4: &str = "an IPv4 address or a prefix such as 10.20.0.0/16";

impl Prefix4 {
    /// Every address.
    pub const ALL: Self = Self(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0));

    /// `None` if bits are set after the length.
    #[must_use]
    pub fn new(net: Ipv4Net) -> Option<Self> {
        (net.trunc() == net).then_some(Self(net))
    }

    /// The prefix itself.
    #[must_use]
    pub const fn net(self) -> Ipv4Net {
        self.0
    }
}

impl FromStr for Prefix4 {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Self, Expected> {
        match text.parse::<Prefix>() {
            Ok(Prefix(IpNet::V4(net))) => Ok(Self(net)),
            Ok(Prefix(IpNet::V6(_))) => Err(Expected(PREFIX4)),
            Err(Expected(HOST_BITS)) => Err(Expected(HOST_BITS)),
            Err(Expected(ZEROS)) => Err(Expected(ZEROS4)),
            Err(_) => Err(Expected(PREFIX4)),
        }
    }
}

impl fmt::Display for Prefix4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Prefix(IpNet::V4(self.0)).fmt(f)
    }
}

as_text!(Prefix4, PREFIX4);

/// The IPv4 addresses `first..=last`, written as an address, `"a-b"` or a prefix.
///
/// A prefix means all of its addresses: what is lent to flows has no broadcast address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressRange {
    first: Ipv4Addr,
    last: Ipv4Addr,
}

const ADDRESSES: &str =
    "an IPv4 address, a range such as 192.0.2.1-192.0.2.9 or a prefix such as 192.0.2.0/28";

impl AddressRange {
    /// `None` if `first` is after `last`.
    #[must_use]
    pub fn new(first: Ipv4Addr, last: Ipv4Addr) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// The lowest address.
    #[must_use]
    pub const fn first(self) -> Ipv4Addr {
        self.first
    }

    /// The highest address, which belongs to the range.
    #[must_use]
    pub const fn last(self) -> Ipv4Addr {
        self.last
    }

    /// How many addresses it has.
    #[must_use]
    pub fn count(self) -> u64 {
        u64::from(self.last.to_bits()) - u64::from(self.first.to_bits()) + 1
    }

    /// All of them in order.
    pub fn addresses(self) -> impl Iterator<Item = Ipv4Addr> {
        (self.first.to_bits()..=self.last.to_bits()).map(Ipv4Addr::from_bits)
    }

    /// Whether some address is in both.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl From<Ipv4Net> for AddressRange {
    fn from(net: Ipv4Net) -> Self {
        Self { first: net.network(), last: net.broadcast() }
    }
}

impl FromStr for AddressRange {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Self, Expected> {
        let Some((first, last)) = text.split_once('-') else {
            return match text.parse::<Prefix4>() {
                Ok(prefix) => Ok(prefix.net().into()),
                Err(wrong @ Expected(HOST_BITS | ZEROS4)) => Err(wrong),
                Err(_) => Err(Expected(ADDRESSES)),
            };
        };
        let address = |part: &str| part.trim().parse().map_err(|_| Expected(ADDRESSES));
        Self::new(address(first)?, address(last)?).ok_or(Expected(ADDRESSES))
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            self.first.fmt(f)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

as_text!(AddressRange, ADDRESSES);

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn reads<T>(json: &str, expected: Result<&str, &str>)
    where
        T: for<'de> Deserialize<'de> + fmt::Display,
    {
        match (serde_json::from_str::<T>(json), expected) {
            (Ok(value), Ok(text)) => assert_eq!(value.to_string(), text, "{json}"),
            (Err(error), Err(part)) => {
                assert!(error.to_string().contains(part), "{json}: {error}");
            }
            (Ok(value), Err(_)) => panic!("{json} was read as {value}"),
            (Err(error), Ok(_)) => panic!("{json}: {error}"),
        }
    }

    #[test]
    fn ports_are_numbers_or_ranges() {
        for (json, expected) in [
            ("1", Ok("1")),
            ("65535", Ok("65535")),
            ("0", Err("expected a port from 1 to 65535")),
            ("65536", Err("integer `65536`, expected a port")),
            ("-1", Err("integer `-1`, expected a port")),
            (r#""443""#, Ok("443")),
            (r#""8000-8100""#, Ok("8000-8100")),
            (r#""8000-8000""#, Ok("8000")),
            (r#""8100-8000""#, Err(r#"string "8100-8000", expected a port"#)),
            (r#""0-5""#, Err("expected a port")),
            (r#""1-65536""#, Err("expected a port")),
            ("true", Err("boolean `true`, expected a port")),
        ] {
            reads::<PortRange>(json, expected);
        }
    }

    #[test]
    fn a_range_of_ports_holds_both_its_ends() {
        let range: PortRange = "8000-8100".parse().unwrap();
        for (port, expected) in [(7999, false), (8000, true), (8100, true), (8101, false)] {
            assert_eq!(range.contains(port), expected, "{port}");
        }
    }

    #[test]
    fn protocols_are_words_or_numbers() {
        for (json, expected) in [
            (r#""any""#, Ok("any")),
            (r#""tcp""#, Ok("tcp")),
            ("6", Ok("tcp")),
            ("17", Ok("udp")),
            ("1", Ok("icmp")),
            ("0", Ok("0")),
            ("255", Ok("255")),
            ("256", Err("expected any, tcp, udp, icmp or a number from 0 to 255")),
            (r#""TCP""#, Err("expected any, tcp")),
            (r#""all""#, Err("expected any, tcp")),
        ] {
            reads::<ProtocolMatch>(json, expected);
        }
        reads::<Protocol>(r#""any""#, Err("expected tcp, udp, icmp"));
    }

    #[test]
    fn prefixes_have_no_bits_after_their_length() {
        for (json, expected) in [
            (r#""10.20.0.0/16""#, Ok("10.20.0.0/16")),
            (r#""10.20.0.1""#, Ok("10.20.0.1")),
            (r#""10.20.0.1/32""#, Ok("10.20.0.1")),
            (r#""0.0.0.0/0""#, Ok("0.0.0.0/0")),
            (r#""10.20.0.1/16""#, Err("without bits after its length")),
            (r#""10.20.0.0/33""#, Err("an address or a prefix")),
            (r#""10.20""#, Err("an address or a prefix")),
            (r#""100.064.0.0/16""#, Err("without leading zeros")),
            (r#""010.0.0.0/8""#, Err("without leading zeros")),
            (r#""10.0.0.0/08""#, Err("without leading zeros")),
            (r#""10.20.0.01""#, Err("without leading zeros")),
            (r#""2001:db8:0:00::/64""#, Ok("2001:db8::/64")),
            (r#""2001:db8::/32""#, Ok("2001:db8::/32")),
        ] {
            reads::<Prefix>(json, expected);
        }
        reads::<Prefix4>(r#""2001:db8::/32""#, Err("an IPv4 address"));
        reads::<Prefix4>(r#""10.0.0.1/8""#, Err("without bits"));
        reads::<Prefix4>(
            r#""203.000.113.0/28""#,
            Err("an IPv4 address or a prefix such as 10.20.0.0/16, without"),
        );
        reads::<AddressRange>(r#""203.000.113.0/28""#, Err("without leading zeros"));
        reads::<AddressRange>(r#""203.0.113.1-203.0.113.09""#, Err("an IPv4 address, a range"));
    }

    #[test]
    fn outside_addresses_come_singly_as_ranges_and_as_prefixes() {
        for (json, expected, count) in [
            (r#""192.0.2.7""#, Ok("192.0.2.7"), 1),
            (r#""192.0.2.7-192.0.2.9""#, Ok("192.0.2.7-192.0.2.9"), 3),
            (r#""192.0.2.0/28""#, Ok("192.0.2.0-192.0.2.15"), 16),
            (r#""0.0.0.0/0""#, Ok("0.0.0.0-255.255.255.255"), 1 << 32),
            (r#""192.0.2.9-192.0.2.7""#, Err("expected an IPv4 address, a range"), 0),
            (r#""192.0.2.1/28""#, Err("without bits after its length"), 0),
        ] {
            reads::<AddressRange>(json, expected);
            if expected.is_ok() {
                let range: AddressRange = serde_json::from_str(json).unwrap();
                assert_eq!(range.count(), count, "{json}");
            }
        }
        let three: AddressRange = "192.0.2.7-192.0.2.9".parse().unwrap();
        assert_eq!(three.addresses().map(|a| a.octets()[3]).collect::<Vec<_>>(), [7, 8, 9]);
        for (other, expected) in
            [("192.0.2.6", false), ("192.0.2.7", true), ("192.0.2.9", true), ("192.0.2.10", false)]
        {
            assert_eq!(three.overlaps(other.parse().unwrap()), expected, "{other}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let ports: Vec<PortRange> = serde_json::from_str(r#"[443, "8000-8100"]"#).unwrap();
        assert_eq!(serde_json::to_string(&ports).unwrap(), r#"[443,"8000-8100"]"#);
        let protocols: Vec<ProtocolMatch> = serde_json::from_str(r#"["any", "tcp", 47]"#).unwrap();
        assert_eq!(serde_json::to_string(&protocols).unwrap(), r#"["any","tcp",47]"#);
    }
}
