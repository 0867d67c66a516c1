//! Which sessions or packets are meant: `src=100.64.0.0/16 port=443 proto=tcp`.
//!
//! Terms stand one after another, all must hold, and each key stands once at most, so that a
//! filter is a handful of optional values that the datapath can be given too. Daemon and
//! `sluicectl` use this one parser.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use ipnet::IpNet;

use crate::session::{Phase, Session, SessionId};
use crate::value::{Prefix, Protocol};

/// Terms that must all hold; without any it holds for everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// `src`: whoever began the session is in this prefix.
    pub src: Option<Prefix>,
    /// `dst`: with whom is in this prefix.
    pub dst: Option<Prefix>,
    /// `port`: one of the session's ports, inside or outside.
    pub port: Option<u16>,
    /// `proto`: the IP protocol.
    pub proto: Option<Protocol>,
    /// `rule`: the rule that permitted it has this name.
    pub rule: Option<String>,
    /// `domain`: it comes from or goes to this routing domain.
    pub domain: Option<String>,
    /// `outside`: the source address after translation.
    pub outside: Option<IpAddr>,
    /// `id`: this one, by the number that records and captures have.
    pub id: Option<SessionId>,
    /// `state`: whether it lives; if not stated, it does.
    pub state: Option<State>,
}

/// Which sessions are meant by whether they live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Those that packets match.
    Live,
    /// Those that ended and whose outside port rests.
    Resting,
    /// Both.
    All,
}

impl FromStr for State {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "live" => Ok(Self::Live),
            "resting" => Ok(Self::Resting),
            "all" => Ok(Self::All),
            _ => Err(()),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Live => "live",
            Self::Resting => "resting",
            Self::All => "all",
        })
    }
}

/// Why a text is not a filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// A term without `=`.
    #[error("`{0}` is not key=value, such as src=100.64.0.0/16")]
    NoValue(String),
    /// A key that does not exist.
    #[error("`{0}` is not a key; use src, dst, port, proto, rule, domain, outside, id or state")]
    UnknownKey(String),
    /// A key that stands twice.
    #[error("`{0}` stands twice; all terms must hold, so give each key once")]
    Twice(&'static str),
    /// A value of the wrong kind.
    #[error("`{key}={value}` is wrong; expected {expected}")]
    Value {
        /// Of which key.
        key: &'static str,
        /// What was given.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// A term by which packets cannot be told apart.
    #[error("`{term}` cannot be asked of a packet: {why}")]
    Packets {
        /// The term.
        term: String,
        /// Why, and what can be asked instead.
        why: &'static str,
    },
    /// What has ended cannot be ended.
    #[error(
        "`state={0}` is no term of `clear`: live sessions are ended, and only these; leave it out"
    )]
    Ended(State),
}

fn set<T: FromStr>(
    slot: &mut Option<T>,
    key: &'static str,
    value: &str,
    expected: &'static str,
) -> Result<(), FilterError> {
    if slot.is_some() {
        return Err(FilterError::Twice(key));
    }
    let wrong = || FilterError::Value { key, value: value.to_owned(), expected };
    if value.is_empty() {
        return Err(wrong());
    }
    *slot = Some(value.parse().map_err(|_| wrong())?);
    Ok(())
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        const PREFIX: &str = "an address or a prefix such as 100.64.0.0/16";
        let mut filter = Self::default();
        for term in text.split_whitespace() {
            let (key, value) =
                term.split_once('=').ok_or_else(|| FilterError::NoValue(term.to_owned()))?;
            match key {
                "src" => set(&mut filter.src, "src", value, PREFIX)?,
                "dst" => set(&mut filter.dst, "dst", value, PREFIX)?,
                "port" => set(&mut filter.port, "port", value, "a number from 0 to 65535")?,
                "proto" => {
                    let expected = "tcp, udp, icmp or a number from 0 to 255";
                    set(&mut filter.proto, "proto", value, expected)?;
                }
                "rule" => set(&mut filter.rule, "rule", value, "the name of a rule")?,
                "domain" => set(&mut filter.domain, "domain", value, "the name of a domain")?,
                "outside" => set(&mut filter.outside, "outside", value, "an address")?,
                "id" => set(&mut filter.id, "id", value, "the hexadecimal digits of a session")?,
                "state" => set(&mut filter.state, "state", value, "live, resting or all")?,
                _ => return Err(FilterError::UnknownKey(key.to_owned())),
            }
        }
        Ok(filter)
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let terms: [(&str, Option<&dyn fmt::Display>); 9] = [
            ("src", self.src.as_ref().map(|value| value as _)),
            ("dst", self.dst.as_ref().map(|value| value as _)),
            ("port", self.port.as_ref().map(|value| value as _)),
            ("proto", self.proto.as_ref().map(|value| value as _)),
            ("rule", self.rule.as_ref().map(|value| value as _)),
            ("domain", self.domain.as_ref().map(|value| value as _)),
            ("outside", self.outside.as_ref().map(|value| value as _)),
            ("id", self.id.as_ref().map(|value| value as _)),
            ("state", self.state.as_ref().map(|value| value as _)),
        ];
        let mut separator = "";
        for (key, value) in terms {
            if let Some(value) = value {
                write!(f, "{separator}{key}={value}")?;
                separator = " ";
            }
        }
        Ok(())
    }
}

impl Filter {
    /// Whether there is no term: everything is meant.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether sessions that live, or those that rest, are among those meant.
    #[must_use]
    pub const fn wants(&self, resting: bool) -> bool {
        match self.state {
            None | Some(State::Live) => !resting,
            Some(State::Resting) => resting,
            Some(State::All) => true,
        }
    }

    /// Whether sessions can be ended by this: by anything but whether they live.
    pub fn of_clear(&self) -> Result<(), FilterError> {
        self.state.map_or(Ok(()), |state| Err(FilterError::Ended(state)))
    }

    /// Whether packets can be told apart by this, as `capture` does: by everything but domain and
    /// state, which are none of the things that a copy of a packet carries.
    pub fn of_packets(&self) -> Result<(), FilterError> {
        let refused = |term: String, why| Err(FilterError::Packets { term, why });
        if let Some(domain) = &self.domain {
            let why = "its copy carries no domain; use src, dst, port, proto, rule or outside, and \
                       look at the interface";
            return refused(format!("domain={domain}"), why);
        }
        if let Some(state) = self.state {
            return refused(format!("state={state}"), "a state is that of a session");
        }
        for (key, prefix) in [("src", self.src), ("dst", self.dst)] {
            if let Some(prefix) = prefix.filter(|prefix| matches!(prefix.net(), IpNet::V6(_))) {
                return refused(format!("{key}={prefix}"), "only IPv4 is looked into");
            }
        }
        match self {
            Self { outside: Some(address @ IpAddr::V6(_)), .. } => {
                refused(format!("outside={address}"), "only IPv4 is looked into")
            }
            Self { port: Some(0), .. } => refused("port=0".into(), "the datapath takes it for any"),
            Self { id: Some(SessionId(0)), .. } => {
                refused("id=0".into(), "that is what a packet of no session carries")
            }
            Self { proto: Some(Protocol(0)), .. } => {
                refused("proto=0".into(), "the datapath takes it for any")
            }
            _ => Ok(()),
        }
    }

    /// Whether every term holds for the session.
    #[must_use]
    pub fn matches(&self, session: &Session) -> bool {
        fn in_either(prefix: Prefix, inside: SocketAddr, outside: SocketAddr) -> bool {
            prefix.net().contains(&inside.ip()) || prefix.net().contains(&outside.ip())
        }
        let Session { inside, outside, .. } = session;
        let ends = [inside.source, inside.destination, outside.source, outside.destination];
        // The source that an operator means is the pod, not what it looks like outside: for
        // that there is `outside`. A destination may be looked for under either name.
        self.src.is_none_or(|prefix| prefix.net().contains(&inside.source.ip()))
            && self
                .dst
                .is_none_or(|prefix| in_either(prefix, inside.destination, outside.destination))
            && self.port.is_none_or(|port| ends.iter().any(|end| end.port() == port))
            && self.proto.is_none_or(|protocol| protocol == session.protocol)
            && self.rule.as_ref().is_none_or(|name| {
                session.rule.as_ref().and_then(|rule| rule.name.as_ref()) == Some(name)
            })
            && self.domain.as_ref().is_none_or(|domain| {
                *domain == session.domain || *domain == session.destination_domain
            })
            && self.outside.is_none_or(|address| outside.source.ip() == address)
            && self.id.is_none_or(|id| id == session.id)
            && self.wants(session.phase == Phase::Resting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{ObjectRef, Party, Traffic, Tuple};
    use proptest::prelude::*;

    fn session() -> Session {
        Session {
            id: SessionId(1),
            protocol: Protocol::TCP,
            inside: Tuple {
                source: "100.64.1.10:40000".parse().unwrap(),
                destination: "192.0.2.7:443".parse().unwrap(),
            },
            outside: Tuple {
                source: "10.10.0.17:50000".parse().unwrap(),
                destination: "192.0.2.7:443".parse().unwrap(),
            },
            domain: "prod-eu".into(),
            destination_domain: "fabric".into(),
            ingress: "pods".into(),
            egress: "transit".into(),
            source: Party::default(),
            destination: Party::default(),
            rule: Some(ObjectRef { id: 5, name: Some("payments-to-s3".into()) }),
            would_match: None,
            snat_policy: None,
            mark: None,
            phase: Phase::TcpEstablished,
            original: Traffic::default(),
            reply: Traffic::default(),
            age: 1,
            idle: 0,
            expires_in: 7440,
            generation: 1,
        }
    }

    #[test]
    fn all_terms_must_hold() {
        for (text, expected) in [
            ("", true),
            ("src=100.64.1.10", true),
            ("src=100.64.0.0/16", true),
            ("src=100.65.0.0/16", false),
            ("src=10.10.0.17", false), // that is `outside`
            ("dst=192.0.2.0/29", true),
            ("dst=192.0.2.8/29", false),
            ("port=443", true),
            ("port=40000", true),
            ("port=50000", true),
            ("port=50001", false),
            ("proto=tcp", true),
            ("proto=6", true),
            ("proto=udp", false),
            ("rule=payments-to-s3", true),
            ("rule=payments", false),
            ("domain=prod-eu", true),
            ("domain=fabric", true),
            ("domain=prod-us", false),
            ("outside=10.10.0.17", true),
            ("outside=100.64.1.10", false),
            ("id=0000000000000001", true),
            ("id=1 port=443", true),
            ("id=10", false),
            ("  src=100.64.0.0/16   proto=tcp port=443 ", true),
            ("src=100.64.0.0/16 proto=tcp port=444", false),
        ] {
            let filter: Filter = text.parse().unwrap();
            assert_eq!(filter.matches(&session()), expected, "{text}");
        }
    }

    #[test]
    fn what_rests_is_shown_to_whoever_asks_for_it() {
        let mut resting = session();
        resting.phase = Phase::Resting;
        for (text, live, rests) in [
            ("", true, false),
            ("state=live", true, false),
            ("state=resting", false, true),
            ("state=all", true, true),
            ("state=all port=444", false, false),
        ] {
            let filter: Filter = text.parse().unwrap();
            let matched = [session(), resting.clone()].map(|session| filter.matches(&session));
            assert_eq!(matched, [live, rests], "{text}");
        }
        assert_eq!(
            "port=1 state=all".parse::<Filter>().unwrap().of_clear().unwrap_err().to_string(),
            "`state=all` is no term of `clear`: live sessions are ended, and only these; leave it out"
        );
        assert_eq!("port=1".parse::<Filter>().unwrap().of_clear(), Ok(()));
    }

    #[test]
    fn the_default_action_is_no_rule() {
        let mut session = session();
        session.rule = None;
        assert!(!"rule=payments-to-s3".parse::<Filter>().unwrap().matches(&session));
    }

    #[test]
    fn an_error_says_what_would_be_right() {
        for (text, expected) in [
            ("tcp", "`tcp` is not key=value, such as src=100.64.0.0/16"),
            (
                "source=10.0.0.1",
                "`source` is not a key; use src, dst, port, proto, rule, domain, outside, id or state",
            ),
            ("port=1 port=2", "`port` stands twice; all terms must hold, so give each key once"),
            ("port=65536", "`port=65536` is wrong; expected a number from 0 to 65535"),
            (
                "src=10.0.0.1/8",
                "`src=10.0.0.1/8` is wrong; expected an address or a prefix such as 100.64.0.0/16",
            ),
            ("rule=", "`rule=` is wrong; expected the name of a rule"),
            ("outside=10.0.0.0/8", "`outside=10.0.0.0/8` is wrong; expected an address"),
            ("state=ended", "`state=ended` is wrong; expected live, resting or all"),
        ] {
            assert_eq!(text.parse::<Filter>().unwrap_err().to_string(), expected, "{text}");
        }
    }

    #[test]
    fn packets_are_asked_for_what_a_copy_carries() {
        for (text, expected) in [
            ("", None),
            ("src=100.64.0.0/16 dst=192.0.2.7 port=443 proto=tcp rule=web outside=10.0.0.1", None),
            ("src=100.64.0.0/16 domain=prod-eu", Some("`domain=prod-eu` cannot be asked")),
            ("state=live", Some("`state=live` cannot be asked")),
            ("dst=2001:db8::/32", Some("only IPv4")),
            ("outside=2001:db8::1", Some("only IPv4")),
            ("port=0", Some("`port=0` cannot be asked")),
            ("port=1 proto=1", None),
            ("proto=0", Some("`proto=0` cannot be asked")),
            ("id=1", None),
            ("id=0", Some("a packet of no session carries")),
        ] {
            let said = text.parse::<Filter>().unwrap().of_packets().map_err(|e| e.to_string());
            match expected {
                None => assert_eq!(said, Ok(()), "{text}"),
                Some(part) => assert!(said.unwrap_err().contains(part), "{text}"),
            }
        }
    }

    proptest! {
        #[test]
        fn a_filter_that_is_written_is_read_back(
            src in proptest::option::of((any::<u32>(), 0u8..=32)),
            port in proptest::option::of(any::<u16>()),
            proto in proptest::option::of(any::<u8>()),
            rule in proptest::option::of("[a-z=/-]{1,9}"),
            outside in proptest::option::of(any::<u32>()),
            id in proptest::option::of(any::<u64>().prop_map(SessionId)),
            state in proptest::option::of(
                prop_oneof![Just(State::Live), Just(State::Resting), Just(State::All)]
            ),
        ) {
            let filter = Filter {
                src: src.and_then(|(bits, length)| {
                    let net = ipnet::Ipv4Net::new_assert(bits.into(), length).trunc();
                    Prefix::new(net.into())
                }),
                port,
                proto: proto.map(Protocol),
                rule,
                outside: outside.map(|bits| IpAddr::V4(bits.into())),
                id,
                state,
                ..Filter::default()
            };
            prop_assert_eq!(filter.to_string().parse::<Filter>().unwrap(), filter);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC*") {
            if let Ok(filter) = text.parse::<Filter>() {
                prop_assert!(filter.is_empty() == text.trim().is_empty());
            }
        }
    }
}
