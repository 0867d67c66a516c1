//! Why a packet was dropped.

/// Why a packet was discarded. Exported in flow records and metrics: add numbers, never reuse
/// one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Reason {
    /// A rule says deny.
    RuleDenied = 1,
    /// A rule says reject; it was answered, or the answer was rate limited.
    RuleRejected = 2,
    /// No rule matched and the default action refuses.
    DefaultDenied = 3,
    /// No policy has been published.
    NoPolicy = 4,
    /// The source is outside its attachment's prefixes.
    SpoofedSource = 5,
    /// The interface or VLAN is no attachment.
    NoAttachment = 6,
    /// A segment, reply or error that belongs to no session.
    NoSession = 7,
    /// The session table has no room.
    TableFull = 8,
    /// Every port towards this destination is lent.
    PortsExhausted = 9,
    /// A non-routable source that no SNAT policy translates.
    NoSnatPolicy = 10,
    /// The guard stopped a non-routable source.
    Leak = 11,
    /// The kernel knows no way there.
    NoRoute = 12,
    /// The way out is on no attachment.
    NoEgress = 13,
    /// TTL ran out here.
    TtlExpired = 14,
    /// Longer than the way out takes, and it may not be fragmented.
    TooBig = 15,
    /// A fragment.
    Fragment = 16,
    /// IPv6 in transit.
    Ipv6Transit = 17,
    /// A protocol without a declared translation.
    Protocol = 18,
    /// An ICMP message that is neither echo nor an error about a live session.
    IcmpOther = 19,
    /// An ICMP error whose checksum, or whose quoted header's checksum, is wrong.
    IcmpChecksum = 20,
    /// Shorter than its headers say.
    Truncated = 21,
    /// A header that contradicts itself.
    Malformed = 22,
    /// Another processor was changing the same session.
    Contended = 23,
    /// A helper of the kernel refused.
    HelperFailed = 24,
    /// No next hop could be numbered.
    NextHopsFull = 25,
    /// A source or destination that never passes a router (RFC 6890 loopback, multicast ...).
    Martian = 26,
    /// The outside address of the session is no longer configured.
    SnatWithdrawn = 27,
    /// More tags than one.
    VlanStacked = 28,
    /// An ethertype that is not forwarded.
    Ethertype = 29,
    /// A non-routable destination of another domain: its answers could only leak.
    NonRoutableDestination = 30,
    /// An option that says by which routers it is to go (RFC 7126 sections 4.3 and 4.4).
    SourceRoute = 31,
}

impl Reason {
    /// Room for reasons in counters.
    pub const COUNT: usize = 48;

    /// All of them, for metrics and tests.
    pub const ALL: [Self; 31] = [
        Self::RuleDenied,
        Self::RuleRejected,
        Self::DefaultDenied,
        Self::NoPolicy,
        Self::SpoofedSource,
        Self::NoAttachment,
        Self::NoSession,
        Self::TableFull,
        Self::PortsExhausted,
        Self::NoSnatPolicy,
        Self::Leak,
        Self::NoRoute,
        Self::NoEgress,
        Self::TtlExpired,
        Self::TooBig,
        Self::Fragment,
        Self::Ipv6Transit,
        Self::Protocol,
        Self::IcmpOther,
        Self::IcmpChecksum,
        Self::Truncated,
        Self::Malformed,
        Self::Contended,
        Self::HelperFailed,
        Self::NextHopsFull,
        Self::Martian,
        Self::SnatWithdrawn,
        Self::VlanStacked,
        Self::Ethertype,
        Self::NonRoutableDestination,
        Self::SourceRoute,
    ];

    /// The name in metrics and records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RuleDenied => "rule_denied",
            Self::RuleRejected => "rule_rejected",
            Self::DefaultDenied => "default_denied",
            Self::NoPolicy => "no_policy",
            Self::SpoofedSource => "spoofed_source",
            Self::NoAttachment => "no_attachment",
            Self::NoSession => "no_session",
            Self::TableFull => "table_full",
            Self::PortsExhausted => "snat_ports_exhausted",
            Self::NoSnatPolicy => "no_snat_policy",
            Self::Leak => "leak_stopped",
            Self::NoRoute => "no_route",
            Self::NoEgress => "no_egress",
            Self::TtlExpired => "ttl_expired",
            Self::TooBig => "too_big",
            Self::Fragment => "fragment",
            Self::Ipv6Transit => "ipv6_transit",
            Self::Protocol => "protocol",
            Self::IcmpOther => "icmp_other",
            Self::IcmpChecksum => "icmp_bad_checksum",
            Self::Truncated => "truncated",
            Self::Malformed => "malformed",
            Self::Contended => "contended",
            Self::HelperFailed => "helper_failed",
            Self::NextHopsFull => "next_hops_full",
            Self::Martian => "martian",
            Self::SnatWithdrawn => "snat_withdrawn",
            Self::VlanStacked => "vlan_stacked",
            Self::Ethertype => "ethertype",
            Self::NonRoutableDestination => "non_routable_destination",
            Self::SourceRoute => "source_route",
        }
    }

    /// The reason that a datapath function gave in a register; anything else was its fault.
    #[inline(always)]
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        match bits {
            1 => Self::RuleDenied,
            2 => Self::RuleRejected,
            3 => Self::DefaultDenied,
            4 => Self::NoPolicy,
            5 => Self::SpoofedSource,
            6 => Self::NoAttachment,
            7 => Self::NoSession,
            8 => Self::TableFull,
            9 => Self::PortsExhausted,
            10 => Self::NoSnatPolicy,
            11 => Self::Leak,
            12 => Self::NoRoute,
            13 => Self::NoEgress,
            14 => Self::TtlExpired,
            15 => Self::TooBig,
            16 => Self::Fragment,
            17 => Self::Ipv6Transit,
            18 => Self::Protocol,
            19 => Self::IcmpOther,
            20 => Self::IcmpChecksum,
            21 => Self::Truncated,
            22 => Self::Malformed,
            23 => Self::Contended,
            24 => Self::HelperFailed,
            25 => Self::NextHopsFull,
            26 => Self::Martian,
            27 => Self::SnatWithdrawn,
            28 => Self::VlanStacked,
            29 => Self::Ethertype,
            30 => Self::NonRoutableDestination,
            31 => Self::SourceRoute,
            _ => Self::HelperFailed,
        }
    }

    /// The reason with this number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| *reason as u8 == number)
    }
}
