//! Why a policy is refused: by name, before anything of it is in force.

use std::fmt;

use smartgroups::ResolveError;

/// How much a gateway has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Rules that are not disabled.
    pub rules: usize,
    /// Distinct sets of groups.
    pub identities: usize,
    /// Addresses with an identity of their own.
    pub hosts: usize,
    /// Prefixes with an identity of their own.
    pub prefixes: usize,
    /// Distinct sets of rules by protocol and port.
    pub port_classes: usize,
    /// SNAT policies.
    pub snat_policies: usize,
}

/// A table of limited size, by the word that the configuration uses for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// [`Capacity::rules`].
    Rules,
    /// [`Capacity::identities`].
    Identities,
    /// [`Capacity::hosts`].
    Hosts,
    /// [`Capacity::prefixes`].
    Prefixes,
    /// [`Capacity::port_classes`].
    PortClasses,
    /// [`Capacity::snat_policies`].
    SnatPolicies,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rules => "rules",
            Self::Identities => "identities",
            Self::Hosts => "endpoints",
            Self::Prefixes => "prefixes",
            Self::PortClasses => "port_classes",
            Self::SnatPolicies => "snat policies",
        })
    }
}

/// One end of a rule or SNAT policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Who sends.
    Source,
    /// To whom.
    Destination,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Destination => "destination",
        })
    }
}

/// Why a policy is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the message of each variant says what its fields are")]
pub enum CompileError {
    /// The groups themselves are wrong.
    #[error(transparent)]
    Groups(#[from] ResolveError),
    /// Two rules of one name.
    #[error("rule `{rule}` is defined twice")]
    DuplicateRule { rule: String },
    /// Two rules of one id; [`crate::RuleId::assign`] avoids it.
    #[error("rules `{rule}` and `{other}` have the same id {id}")]
    DuplicateRuleId { rule: String, other: String, id: u32 },
    /// A rule with the id that means "none".
    #[error("rule `{rule}` has the id 0, which means none")]
    ZeroRuleId { rule: String },
    /// Two rules of one priority: which comes first would be chance.
    #[error("rules `{rule}` and `{other}` have the same priority {priority}")]
    EqualPriorities { rule: String, other: String, priority: u32 },
    /// A rule that could never match.
    #[error("rule `{rule}` names no {side} group")]
    NoGroups { rule: String, side: Side },
    /// A rule about a group that is not there.
    #[error("rule `{rule}` names smart group `{group}`, which does not exist")]
    UnknownGroup { rule: String, group: String },
    /// A mark that nothing could carry on.
    #[error("rule `{rule}` sets a mark, but only a rule that permits can")]
    MarkWithoutPermit { rule: String },
    /// Ports of a protocol that has none.
    #[error("rule `{rule}` names ports, but its protocol {protocol} is neither tcp nor udp")]
    PortsWithoutProtocol { rule: String, protocol: u8 },
    /// A range that ends before it begins.
    #[error("rule `{rule}` names the port range {first}-{last}, which holds no port")]
    EmptyPortRange { rule: String, first: u16, last: u16 },
    /// Two SNAT policies of one name.
    #[error("snat policy `{policy}` is defined twice")]
    DuplicateSnat { policy: String },
    /// Two SNAT policies of one id; [`crate::SnatId::assign`] avoids it.
    #[error("snat policies `{policy}` and `{other}` have the same id {id}")]
    DuplicateSnatId { policy: String, other: String, id: u32 },
    /// A SNAT policy with the id that means "none".
    #[error("snat policy `{policy}` has the id 0, which means none")]
    ZeroSnatId { policy: String },
    /// Two SNAT policies of one order.
    #[error("snat policies `{policy}` and `{other}` have the same order {order}")]
    EqualOrders { policy: String, other: String, order: u32 },
    /// A SNAT policy about a group that is not there.
    #[error("snat policy `{policy}` names smart group `{group}`, which does not exist")]
    UnknownSnatGroup { policy: String, group: String },
    /// Ports of a protocol that has none.
    #[error(
        "snat policy `{policy}` names ports, but its protocol {protocol} is neither tcp nor udp"
    )]
    SnatPortsWithoutProtocol { policy: String, protocol: u8 },
    /// A range that ends before it begins.
    #[error("snat policy `{policy}` names the port range {first}-{last}, which holds no port")]
    EmptySnatPortRange { policy: String, first: u16, last: u16 },
    /// Nothing to translate to.
    #[error("snat policy `{policy}` names no outside address")]
    NoAddresses { policy: String },
    /// Something that the gateway has no room for.
    #[error("the policy needs {need} {table}, and the gateway has room for {room}")]
    NoRoom { table: Table, need: usize, room: usize },
}
