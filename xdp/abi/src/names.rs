//! The names of maps and programs: the object, the loader and the tools use these.

/// Slots of the IPv4 session table ([`crate::session::Entry4`]).
pub const SLOTS4: &str = "SLOTS4";
/// Where in the session table a key need not be looked for: a byte for each window slot and each
/// near slot, eight a word (`xdp::table`).
pub const HINTS4: &str = "HINTS4";
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
/// Rules that are only watched, one set a bank.
pub const MONITORS: &str = "MONITORS";
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
/// The same for IPv6.
pub const LOCALS6: &str = "LOCALS6";
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
/// What processors remember of addresses (`xdp::recent`); of one load, not pinned.
pub const RECENT: &str = "RECENT";
/// Tail-call targets of XDP.
pub const XDP_STAGES: &str = "XDP_STAGES";
/// Tail-call targets of TC.
pub const TC_STAGES: &str = "TC_STAGES";

/// Where the stages stand in [`XDP_STAGES`] and [`TC_STAGES`].
pub const STAGE_SLOW: u32 = 0;
/// See [`STAGE_SLOW`].
pub const STAGE_KNOWN: u32 = 1;
/// See [`STAGE_SLOW`].
pub const STAGE_OPEN: u32 = 2;
/// See [`STAGE_SLOW`].
pub const STAGE_ERROR: u32 = 3;
/// See [`STAGE_SLOW`].
pub const STAGE_REPLY: u32 = 4;
/// See [`STAGE_SLOW`].
pub const STAGE_FIRST: u32 = 5;

/// XDP entry: established packets.
pub const XDP_INGRESS: &str = "xdp_ingress";
/// XDP: the stages behind it.
pub const XDP_STAGE_PROGRAMS: [(&str, u32); 6] = [
    ("xdp_slow", STAGE_SLOW),
    ("xdp_known", STAGE_KNOWN),
    ("xdp_open", STAGE_OPEN),
    ("xdp_error", STAGE_ERROR),
    ("xdp_reply", STAGE_REPLY),
    ("xdp_first", STAGE_FIRST),
];
/// TC ingress beside XDP: puts the mark on what XDP sent up.
pub const TC_MARK: &str = "tc_mark";
/// TC entry.
pub const TC_INGRESS: &str = "tc_ingress";
/// TC: the stages behind it.
pub const TC_STAGE_PROGRAMS: [(&str, u32); 6] = [
    ("tc_slow", STAGE_SLOW),
    ("tc_known", STAGE_KNOWN),
    ("tc_open", STAGE_OPEN),
    ("tc_error", STAGE_ERROR),
    ("tc_reply", STAGE_REPLY),
    ("tc_first", STAGE_FIRST),
];
/// TC egress: translates what the kernel routed, and guards.
pub const TC_EGRESS: &str = "tc_egress";
/// Ends what has expired or was cleared; run by the daemon ([`crate::control::Order`]).
pub const CONTROL: &str = "control";

/// Every map, for pinning.
pub const ALL: [&str; 42] = [
    LOCALS6,
    MONITORS,
    SLOTS4,
    HINTS4,
    RECORDS4,
    FREE_RECORDS4,
    OVERFLOW4,
    FREE_OVERFLOW4,
    CONFIG,
    EPOCHS,
    COUNTERS,
    RULE_COUNTS,
    SHARED,
    HOSTS4,
    PREFIXES4,
    SOURCE_RULES,
    DESTINATION_RULES,
    CLASS_RULES,
    CLASSES,
    SNAT_BITS,
    RULES,
    SNAT,
    POOLS,
    LENDABLE,
    PAIRS4,
    BITMAPS,
    FREE_BITMAPS,
    ATTACHMENTS,
    SOURCES4,
    ROUTES4,
    CARRIES4,
    PORTS,
    OUTSIDE4,
    LOCALS4,
    LINKS,
    NEXT_HOPS,
    NEXT_HOP_INDEX,
    FREE_NEXT_HOPS,
    EVENTS,
    RATES,
    XDP_STAGES,
    TC_STAGES,
];
