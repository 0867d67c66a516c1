//! The policy in force, with what it has done so far: identities, rules, SNAT.

use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::document::{Action, Enforcement, Log};
use crate::value::{AddressRange, PortRange, Prefix, Protocol, ProtocolMatch};

/// Every set of groups that some address is in.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Identities {
    /// One per set of groups.
    pub identities: Vec<Identity>,
}

/// A set of groups and who has it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Identity {
    /// The stable id.
    pub id: u32,
    /// The names of the groups.
    pub groups: Vec<String>,
    /// Groups that only some claimants of its contested addresses are in: rules that deny or
    /// reject count them in, rules that permit do not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub doubted: Vec<String>,
    /// How many addresses have it by themselves.
    pub hosts: u64,
    /// How many prefixes have it.
    pub prefixes: u64,
    /// Some of them, at most 16; contested ones first.
    pub members: Vec<Member>,
}

/// An address or prefix with an identity.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Member {
    /// The routing domain of the address.
    pub domain: String,
    /// The address.
    pub address: Prefix,
    /// The endpoint that owns it, if one does.
    pub endpoint: Option<String>,
    /// All that claim it although only one can have it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub claimants: Vec<String>,
}

/// All rules in the order in which they are judged.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Rules {
    /// The policy generation that they belong to.
    pub generation: u32,
    /// Lowest priority number first.
    pub rules: Vec<RuleStatus>,
    /// What happens where none matches.
    pub default_action: DefaultStatus,
}

/// A rule and how often it decided.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct RuleStatus {
    /// The stable id.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Its place in the order.
    pub priority: u32,
    /// What it does.
    pub action: Action,
    /// Whether it decides.
    pub enforcement: Enforcement,
    /// Groups of sources.
    pub sources: Vec<String>,
    /// Groups of destinations.
    pub destinations: Vec<String>,
    /// Of which protocol.
    pub protocol: ProtocolMatch,
    /// To which ports; empty: all.
    pub ports: Vec<PortRange>,
    /// What of it is recorded.
    pub log: Log,
    /// The mark that it sets.
    pub mark: Option<u16>,
    /// Flows that it permitted, each once however often it is judged again, or packets that it
    /// refused; of a monitor rule, flows and refused packets that it would have decided. A first
    /// packet that is permitted and dropped for another reason counts each time it is sent.
    pub hits: u64,
    /// Bytes of the packets counted in `hits`: of a permitted flow its first alone, the others are
    /// in its session.
    pub bytes: u64,
}

/// The default action and how often it decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct DefaultStatus {
    /// What it does.
    pub action: Action,
    /// What of it is recorded.
    pub log: Log,
    /// Flows that it permitted, or packets that it refused, as those of a rule.
    pub hits: u64,
    /// Bytes of the packets counted in `hits`.
    pub bytes: u64,
}

/// SNAT policies, what they lend and how much of it is lent.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Snat {
    /// In the order in which they are tried.
    pub policies: Vec<SnatPolicyStatus>,
    /// Every outside address of every policy.
    pub pools: Vec<PoolAddress>,
    /// The fullest pairs of outside address and destination, the fullest first; once for each
    /// range of ports that policies lend of the address.
    pub fill: Vec<PairFill>,
}

/// A SNAT policy and how many sessions it has.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct SnatPolicyStatus {
    /// The stable id.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Its place in the order.
    pub order: u32,
    /// The source that it asks for: prefix or group; `None`: any.
    pub source: Option<String>,
    /// The destination that it asks for: prefix or group; `None`: any.
    pub destination: Option<String>,
    /// Of which protocol.
    pub protocol: ProtocolMatch,
    /// The connection that the flow leaves by.
    pub connection: Option<String>,
    /// The interface that the flow leaves by.
    pub interface: Option<String>,
    /// The addresses that it lends.
    pub snat_ips: Vec<AddressRange>,
    /// An exception: what matches leaves as it is.
    pub no_nat: bool,
    /// Live sessions that it applies to.
    pub sessions: u64,
}

/// An outside address of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct PoolAddress {
    /// The policy's name.
    pub policy: String,
    /// The address.
    pub address: Ipv4Addr,
    /// Ports that may be lent to each destination: the effective range, without what the host
    /// keeps for itself.
    pub lendable: u32,
    /// Whether the gateway's own kernel uses the address too.
    pub shared_with_host: bool,
    /// Live sessions that the policy has given it; those of other policies are in rows of their own.
    pub sessions: u64,
}

/// How many ports of one outside address are lent towards one destination, of those that some
/// policies may lend.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct PairFill {
    /// The policies that take from these ports: they state the same range of the address.
    pub policies: Vec<String>,
    /// The outside address.
    pub outside: Ipv4Addr,
    /// The IP protocol.
    pub protocol: Protocol,
    /// The destination.
    pub destination: SocketAddr,
    /// Ports of theirs that are lent or rest, whoever lent them.
    pub used: u32,
    /// Ports that they may lend: the effective range.
    pub lendable: u32,
}
