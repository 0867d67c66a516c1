//! What a policy is made of, as operators say it, and the questions one can ask of it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use smartgroups::{DomainId, GroupId, Inventory, SmartGroup, stable_ids};

/// Ports from the first to the last, both included.
pub type PortRange = RangeInclusive<u16>;

/// The number of a rule in sessions, counters and records; never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId(pub u32);

impl RuleId {
    /// Distinct ids for a whole set of rules; see [`stable_ids`].
    pub fn assign<'a>(names: impl IntoIterator<Item = &'a str>) -> BTreeMap<&'a str, Self> {
        stable_ids("Rule", names, []).into_iter().map(|(name, id)| (name, Self(id))).collect()
    }
}

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a SNAT policy in sessions and records; never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnatId(pub u32);

impl SnatId {
    /// Distinct ids for a whole set of SNAT policies; see [`stable_ids`].
    pub fn assign<'a>(names: impl IntoIterator<Item = &'a str>) -> BTreeMap<&'a str, Self> {
        stable_ids("SnatPolicy", names, []).into_iter().map(|(name, id)| (name, Self(id))).collect()
    }
}

impl fmt::Display for SnatId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a rule does with a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Let it through.
    Permit,
    /// Drop it without a word.
    Deny,
    /// Drop it and tell the sender.
    Reject,
}

/// When a flow is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Log {
    /// Never.
    Off,
    /// When it begins.
    Start,
    /// When it ends.
    End,
    /// When it begins and when it ends.
    Both,
}

/// Whether a rule is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Enforcement {
    /// It decides.
    Enforce,
    /// It is reported as what would have matched, and never decides.
    Monitor,
    /// It is as if it did not exist, except that it must be valid.
    Disabled,
}

/// The IP protocols that something is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// All of them; with ports, TCP and UDP.
    Any,
    /// The one of this number.
    Number(u8),
}

impl Protocol {
    /// TCP.
    pub const TCP: Self = Self::Number(6);
    /// UDP.
    pub const UDP: Self = Self::Number(17);
    /// ICMP for IPv4.
    pub const ICMP: Self = Self::Number(1);

    /// Whether a packet of protocol `number` is meant.
    pub fn includes(self, number: u8) -> bool {
        match self {
            Self::Any => true,
            Self::Number(one) => one == number,
        }
    }

    /// Whether ports may be given beside it.
    pub(crate) fn may_have_ports(self) -> bool {
        match self {
            Self::Any => true,
            Self::Number(one) => has_ports(one),
        }
    }
}

/// Whether ports of this protocol are matched. SCTP has ports too, but no rule may name them: it
/// is declared to pass whole.
pub(crate) fn has_ports(protocol: u8) -> bool {
    [Protocol::TCP, Protocol::UDP].contains(&Protocol::Number(protocol))
}

/// Who may talk to whom. The first rule that matches decides, by priority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Unique.
    pub name: String,
    /// Unique; [`RuleId::assign`] gives it.
    pub id: RuleId,
    /// Unique; the lowest is judged first.
    pub priority: u32,
    /// What it does.
    pub action: Action,
    /// Names of the SmartGroups that may send; any of them, at least one.
    pub sources: Vec<String>,
    /// Names of the SmartGroups that may be sent to; any of them, at least one.
    pub destinations: Vec<String>,
    /// Of this protocol.
    pub protocol: Protocol,
    /// To one of these destination ports; none given means all.
    pub ports: Vec<PortRange>,
    /// What is recorded.
    pub log: Log,
    /// Whether it is in force.
    pub enforcement: Enforcement,
    /// What a SNAT policy can match on; for permit only.
    pub mark: Option<NonZeroU16>,
    /// For people.
    pub description: String,
}

/// What happens to a flow that no rule decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DefaultAction {
    /// What is done.
    pub action: Action,
    /// What is recorded.
    pub log: Log,
}

/// The addresses that a SNAT policy is about, at one end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every address.
    Any,
    /// Addresses inside a prefix, in every domain: a policy sees what a packet carries.
    Cidr(IpNet),
    /// Members of a SmartGroup.
    Group(String),
}

/// The way out that a flow takes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Egress {
    /// An interface, by name.
    Interface(String),
    /// An attachment of kind `connection`, by name.
    Connection(String),
}

impl Egress {
    /// Whether a flow that leaves this way is meant.
    pub fn includes(&self, way_out: &WayOut<'_>) -> bool {
        match self {
            Self::Interface(name) => name == way_out.interface,
            Self::Connection(name) => Some(name.as_str()) == way_out.connection,
        }
    }
}

/// Where a flow leaves: always by an interface, and maybe by a connection on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WayOut<'a> {
    /// The name of the interface.
    pub interface: &'a str,
    /// The name of the attachment, if its kind is `connection`.
    pub connection: Option<&'a str>,
}

/// What a SNAT policy does with a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnatAction {
    /// Leaves the source as it is: an exception from later policies.
    NoNat,
    /// Gives it an outside address and port.
    Snat {
        /// Outside addresses, in order; at least one.
        addresses: Vec<Ipv4Addr>,
        /// Outside ports.
        ports: PortRange,
    },
}

/// How flows are translated on one way out. The first policy that matches decides, by order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnatPolicy {
    /// Unique.
    pub name: String,
    /// Unique; [`SnatId::assign`] gives it.
    pub id: SnatId,
    /// Unique; the lowest is asked first.
    pub order: u32,
    /// Who sends.
    pub source: Scope,
    /// From one of these ports; TCP and UDP only.
    pub source_ports: Option<PortRange>,
    /// To whom.
    pub destination: Scope,
    /// To one of these ports; TCP and UDP only.
    pub destination_ports: Option<PortRange>,
    /// Of this protocol.
    pub protocol: Protocol,
    /// Permitted by a rule with this mark.
    pub mark: Option<NonZeroU16>,
    /// On this way out.
    pub egress: Egress,
    /// What is done.
    pub action: SnatAction,
}

/// All that a policy depends on.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// Who has which address.
    pub inventory: &'a Inventory,
    /// Who belongs together.
    pub groups: &'a [SmartGroup],
    /// Who may talk to whom, in any order.
    pub rules: &'a [Rule],
    /// How flows are translated, in any order.
    pub snat: &'a [SnatPolicy],
    /// What happens to all other flows.
    pub default_action: DefaultAction,
    /// The routing domains of the gateway. The fabric, and those that endpoints and selectors
    /// name, belong to it anyway.
    pub domains: &'a [DomainId],
}

/// The first packet of a flow, as far as policy looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Who sends: the domain of the attachment and the source address.
    pub source: (DomainId, IpAddr),
    /// To whom: the domain ahead and the destination address.
    pub destination: (DomainId, IpAddr),
    /// IP protocol number.
    pub protocol: u8,
    /// Source port; 0 where the protocol has none.
    pub source_port: u16,
    /// Destination port; 0 where the protocol has none.
    pub destination_port: u16,
}

/// What the rules say of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evaluation {
    /// What is done.
    pub action: Action,
    /// What is recorded.
    pub log: Log,
    /// The rule that decided; none for the default action.
    pub rule: Option<RuleId>,
    /// The mark of that rule.
    pub mark: Option<NonZeroU16>,
    /// The first monitor rule that matched before.
    pub would_match: Option<RuleId>,
    /// The groups of the source, sorted by id.
    pub source_groups: Vec<GroupId>,
    /// The groups of the destination, sorted by id.
    pub destination_groups: Vec<GroupId>,
}
