//! The names of maps and programs: the object, the loader and the tools use these.

/// Slots of the IPv4 session table ([`crate::session::Entry4`]).
pub const SLOTS4: &str = "SLOTS4";
/// Cold records ([`crate::session::Record`]).
pub const RECORDS4: &str = "RECORDS4";
/// Indices of records that no session uses.
pub const FREE_RECORDS4: &str = "FREE_RECORDS4";
/// Key to slot, for entries whose window was full.
pub const OVERFLOW4: &str = "OVERFLOW4";
/// Indices of overflow slots that no entry uses.
pub const FREE_OVERFLOW4: &str = "FREE_OVERFLOW4";
/// [`crate::config::Config`], one element.
pub const CONFIG: &str = "CONFIG";
/// Identity epochs, one element.
pub const EPOCHS: &str = "EPOCHS";
/// [`crate::count::Counters`], per CPU.
pub const COUNTERS: &str = "COUNTERS";
/// [`crate::count::RuleCount`] by rule number, per CPU.
pub const RULE_COUNTS: &str = "RULE_COUNTS";
/// Shared words that are not per CPU ([`crate::config::Shared`]).
pub const SHARED: &str = "SHARED";
/// Host addresses to identity.
pub const HOSTS4: &str = "HOSTS4";
/// Prefixes to identity.
pub const PREFIXES4: &str = "PREFIXES4";
/// Rules that an identity may be the source of, by bank and identity.
pub const SOURCE_RULES: &str = "SOURCE_RULES";
/// Rules that an identity may be the destination of.
pub const DESTINATION_RULES: &str = "DESTINATION_RULES";
/// Rules that a port class admits.
pub const CLASS_RULES: &str = "CLASS_RULES";
/// Port class of every TCP port, then every UDP port, then every protocol.
pub const CLASSES: &str = "CLASSES";
/// SNAT policies of an identity ([`crate::policy::SnatBits`]).
pub const SNAT_BITS: &str = "SNAT_BITS";
/// [`crate::policy::Rule`] by bank and bit.
pub const RULES: &str = "RULES";
/// [`crate::policy::Snat`] by bank and bit.
pub const SNAT: &str = "SNAT";
/// Outside addresses of SNAT policies.
pub const POOLS: &str = "POOLS";
/// Ports that a pool address may lend ([`crate::port::Ports`]).
pub const LENDABLE: &str = "LENDABLE";
/// Hot (outside address, destination) pairs to their bitmap.
pub const PAIRS4: &str = "PAIRS4";
/// Port bitmaps of hot pairs ([`crate::port::Ports`]).
pub const BITMAPS: &str = "BITMAPS";
/// Bitmaps that no pair uses.
pub const FREE_BITMAPS: &str = "FREE_BITMAPS";
/// [`crate::forward::Attachment`] by number.
pub const ATTACHMENTS: &str = "ATTACHMENTS";
/// Source prefix behind a port to attachment.
pub const SOURCES4: &str = "SOURCES4";
/// Destination prefix ahead of a port to attachment.
pub const ROUTES4: &str = "ROUTES4";
/// Non-routable prefixes that an attachment carries untranslated.
pub const CARRIES4: &str = "CARRIES4";
/// [`crate::forward::PortInfo`] by interface.
pub const PORTS: &str = "PORTS";
/// Outside addresses that are configured, by bank.
pub const OUTSIDE4: &str = "OUTSIDE4";
/// The machine's own addresses.
pub const LOCALS4: &str = "LOCALS4";
/// [`crate::forward::LinkInfo`] by interface index.
pub const LINKS: &str = "LINKS";
/// [`crate::forward::NextHop`] by number.
pub const NEXT_HOPS: &str = "NEXT_HOPS";
/// Next hop key to number.
pub const NEXT_HOP_INDEX: &str = "NEXT_HOP_INDEX";
/// Numbers that no next hop has.
pub const FREE_NEXT_HOPS: &str = "FREE_NEXT_HOPS";
/// Events to user space.
pub const EVENTS: &str = "EVENTS";
/// Buckets that bound how often something is answered or reported.
pub const RATES: &str = "RATES";
/// Tail-call targets of XDP.
pub const XDP_STAGES: &str = "XDP_STAGES";
/// Tail-call targets of TC.
pub const TC_STAGES: &str = "TC_STAGES";

/// XDP entry: established packets.
pub const XDP_INGRESS: &str = "xdp_ingress";
/// XDP: everything that is not a plain hit.
pub const XDP_SLOW: &str = "xdp_slow";
/// XDP: answers (RST, ICMP).
pub const XDP_REPLY: &str = "xdp_reply";
/// TC entry.
pub const TC_INGRESS: &str = "tc_ingress";
/// TC: everything that is not a plain hit.
pub const TC_SLOW: &str = "tc_slow";
/// TC: answers.
pub const TC_REPLY: &str = "tc_reply";
/// TC egress: translates what the kernel routed, and guards.
pub const TC_EGRESS: &str = "tc_egress";
/// Ends what has expired; run by the daemon.
pub const SWEEP: &str = "sweep";
