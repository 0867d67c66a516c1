//! How the gateway is: health, counters, tables, and what it has loaded into the kernel.

use serde::{Deserialize, Serialize};

/// Who answers, and whether all is well.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Status {
    /// The gateway's name.
    pub name: String,
    /// The version of the daemon.
    pub version: String,
    /// Seconds since the daemon started.
    pub uptime: u64,
    /// The policy generation in force; zero: none yet.
    pub generation: u32,
    /// Whether packets are judged by a policy and every hook is attached.
    pub healthy: bool,
    /// What is wrong, in sentences; empty if healthy.
    pub problems: Vec<String>,
    /// Why the configuration file as it is now was refused; `None`: it is the one in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reload_refused: Option<String>,
    /// Why flow records are not written as they should be; `None`: they are, or nobody wants them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow_log_fault: Option<String>,
    /// The number of live sessions.
    pub sessions: u64,
    /// The attachments in the order of the configuration.
    pub attachments: Vec<AttachmentStatus>,
    /// The clusters that are watched, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clusters: Vec<ClusterStatus>,
    /// The cloud accounts that are followed, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cloud_accounts: Vec<AccountStatus>,
    /// The names in DNS that selectors name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<NameStatus>,
    /// Groups that are empty since they had members, and those that grew suddenly in the last hour; the
    /// last first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alarms: Vec<GroupAlarm>,
}

/// A group that became empty or grew suddenly.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct GroupAlarm {
    /// Which.
    pub group: String,
    /// `emptied` or `grown`.
    pub kind: String,
    /// How many members it had.
    pub before: u64,
    /// How many it had then.
    pub now: u64,
    /// How many seconds ago that was.
    pub since: u64,
}

/// How well a name in DNS is known.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct NameStatus {
    /// Which.
    pub name: String,
    /// How many addresses it has, or had a moment ago.
    pub addresses: u64,
    /// How old what is known of it may be, in seconds; `None`: nothing is known yet.
    pub staleness: Option<u64>,
    /// What is wrong with its last answers.
    pub fault: Option<String>,
}

/// How well a Kubernetes cluster is known.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct ClusterStatus {
    /// Its name.
    pub name: String,
    /// Whether all kinds of its objects were heard of.
    pub synced: bool,
    /// How many endpoints it has.
    pub endpoints: u64,
    /// How old what is known of it may be, in seconds; `None`: it is not known yet.
    pub staleness: Option<u64>,
    /// Seconds until its credentials end, where that is known; zero: they have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_expire_in: Option<u64>,
    /// The kinds that are not followed at present, each with why.
    pub faults: Vec<String>,
}

/// How well a cloud account is known.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct AccountStatus {
    /// Its name.
    pub name: String,
    /// The number that its cloud knows it by, once it has said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Whether it was known once in all regions who is behind which address.
    pub synced: bool,
    /// How many endpoints it has.
    pub endpoints: u64,
    /// How old what is known of it may be, in seconds; `None`: it is not known yet.
    pub staleness: Option<u64>,
    /// Seconds until its credentials end, where they do; zero: they have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_expire_in: Option<u64>,
    /// What cannot be fetched at present: region and kind, why, since when, and how old what is known is.
    pub faults: Vec<String>,
}

/// An attachment and the hook that serves it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct AttachmentStatus {
    /// Its number.
    pub number: u16,
    /// Its name.
    pub name: String,
    /// Its interface.
    pub interface: String,
    /// Its VLAN.
    pub vlan: Option<u16>,
    /// Its kind.
    pub kind: String,
    /// Its routing domain.
    pub domain: String,
    /// The hook in use (`xdp`, `tc`); `None`: nothing is attached.
    pub hook: Option<String>,
}

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Amount {
    /// How many.
    pub packets: u64,
    /// How much, from the Ethernet header on.
    pub bytes: u64,
}

/// Which way a packet went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// From a spoke outwards.
    Outbound,
    /// From the fabric or the internet inwards.
    Inbound,
    /// Dropped before it was known where it came from.
    Unknown,
}

impl Direction {
    /// The word for it, as in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
            Self::Unknown => "unknown",
        }
    }
}

/// What became of every packet: received = forwarded + passed + punted + dropped.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Stats {
    /// The policy generation in force.
    pub generation: u32,
    /// Everything that reached an ingress hook.
    pub received: Amount,
    /// Sent on from who began a session.
    pub forwarded_original: Amount,
    /// Sent on as answers.
    pub forwarded_reply: Amount,
    /// Left to the kernel because it is not transit.
    pub passed: Amount,
    /// Sent up untranslated for the kernel to route.
    pub punted: Amount,
    /// Of the punted: translated at TC egress.
    pub translated_late: Amount,
    /// Answers made here (RST, ICMP); the packets they answer are among the dropped.
    pub answered: u64,
    /// Sessions begun.
    pub sessions_begun: u64,
    /// Sessions ended.
    pub sessions_ended: u64,
    /// Live sessions that were judged again.
    pub judged_again: u64,
    /// Events that did not fit into the ring.
    pub events_lost: u64,
    /// Events that a rate limit held back.
    pub events_suppressed: u64,
    /// Packets with a non-routable source that the guards stopped: a fault if it is not zero.
    pub leaks_stopped: u64,
    /// Dropped packets; what was never counted is left out.
    pub drops: Vec<Drops>,
    /// How full each table is.
    pub tables: Vec<TableFill>,
}

/// Packets dropped for one reason in one direction.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Drops {
    /// Why.
    pub reason: String,
    /// Which way they went.
    pub direction: Direction,
    /// How many.
    pub packets: u64,
}

/// How full a table is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct TableFill {
    /// Its name, as under `tables` in the configuration.
    pub name: String,
    /// Entries in use.
    pub used: u64,
    /// Entries that there is room for.
    pub size: u64,
}

/// The programs that are attached.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Programs {
    /// One for each hook of each interface, and those that they call.
    pub programs: Vec<Program>,
}

/// A program in the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Program {
    /// The kernel's number for it.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Where it is attached: `xdp`, `tc_ingress`, `tc_egress`; `None`: it is called by others.
    pub hook: Option<String>,
    /// The interface.
    pub interface: Option<String>,
    /// It belongs there and is not there: somebody took it off, and it could not be put back yet.
    #[serde(default)]
    pub missing: bool,
    /// The kernel's hash of its instructions, hexadecimal.
    pub tag: String,
    /// Instructions after verification, in bytes of bytecode.
    pub bytes: u32,
    /// Memory that it takes, in bytes.
    pub memory: u64,
}

/// The maps that the programs share with the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Maps {
    /// By name.
    pub maps: Vec<Map>,
}

/// A map in the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Map {
    /// The kernel's number for it.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Its type, as `bpftool` calls it.
    pub kind: String,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Entries that there is room for.
    pub max_entries: u32,
    /// Entries in use, of maps with keys and of the session table. `None`: all of them always are,
    /// as in other arrays, or the kernel does not tell, as of queues and rings.
    pub entries: Option<u64>,
    /// Memory that it takes, in bytes.
    pub memory: u64,
    /// Its file on bpffs.
    pub pin: Option<String>,
}

/// Why a request was refused (RFC 9457, `application/problem+json`).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Problem {
    /// What kind of problem, in a few words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What would be right, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_for_a_direction_is_the_same_in_tables_and_json() {
        for direction in [Direction::Outbound, Direction::Inbound, Direction::Unknown] {
            assert_eq!(serde_json::to_value(direction).unwrap(), direction.as_str());
        }
    }

    #[test]
    fn an_older_client_understands_a_newer_gateway() {
        let fill = r#"{ "name": "sessions", "used": 1, "size": 2, "added_later": true }"#;
        assert_eq!(serde_json::from_str::<TableFill>(fill).unwrap().size, 2);
    }
}
