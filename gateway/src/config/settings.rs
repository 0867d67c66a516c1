//! The `gateway:` part of the file: this machine's settings.
//!
//! A type here refuses what is wrong by itself (a VLAN of 5000, a timer without a unit); what is
//! wrong only beside something else is found by [`super::check`].

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use api::document::FABRIC;
use api::value::{PortRange, Prefix4};
use controller::Growth;
use serde::de::{self, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

use super::accounts::Account;
use super::clusters::Cluster;
use super::names::Dns;

/// This machine's settings.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gateway {
    /// The gateway's name in records and metrics.
    pub name: String,
    /// Prefixes that must never leave as a source on a routable interface.
    #[serde(default = "non_routable")]
    pub non_routable: Vec<Prefix4>,
    /// Routing domains of pod networks, beside the fabric.
    #[serde(default)]
    pub domains: Vec<Domain>,
    /// Where packets come from and go to.
    pub attachments: Vec<Attachment>,
    /// Kubernetes clusters that are watched.
    #[serde(default)]
    pub clusters: Vec<Cluster>,
    /// Cloud accounts that are followed.
    #[serde(default)]
    pub cloud_accounts: Vec<Account>,
    /// How the names are asked for that selectors name.
    #[serde(default)]
    pub dns: Dns,
    /// Which growth of a group is told.
    #[serde(default)]
    pub group_alarms: GroupAlarms,
    /// How long idle sessions are remembered.
    #[serde(default)]
    pub timers: Timers,
    /// Sizes of tables, fixed while the tables exist.
    #[serde(default)]
    pub tables: Tables,
    /// What becomes of a TCP segment that belongs to no session.
    #[serde(default)]
    pub tcp_midstream: TcpMidstream,
    /// Where flow records go; `None`: nowhere.
    #[serde(default)]
    pub flow_log: Option<FlowLog>,
    /// Where metrics are asked for.
    #[serde(default)]
    pub metrics: Metrics,
    /// The socket of the local API.
    #[serde(default = "socket")]
    pub socket: PathBuf,
    /// The directory on bpffs for pinned maps and links.
    #[serde(default = "pin_path")]
    pub pin_path: PathBuf,
    /// Where the last good policy and saved sessions are kept.
    #[serde(default = "state_dir")]
    pub state_dir: PathBuf,
}

fn non_routable() -> Vec<Prefix4> {
    let shared = "100.64.0.0/10".parse();
    vec![shared.expect("the shared address space of RFC 6598 is a prefix")]
}

fn socket() -> PathBuf {
    api::DEFAULT_SOCKET.into()
}

fn pin_path() -> PathBuf {
    "/sys/fs/bpf/sluice".into()
}

fn state_dir() -> PathBuf {
    "/var/lib/sluice".into()
}

fn fabric() -> String {
    FABRIC.to_owned()
}

/// The routing domain of a pod network.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Domain {
    /// Its name, unique.
    pub name: String,
    /// Its number, unique; the fabric has 0.
    pub number: NonZeroU16,
}

/// What is on the other side of an attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttachmentKind {
    /// A pod network, or anything else behind the gateway.
    Spoke,
    /// A transit connection.
    Connection,
    /// The way to the internet.
    Internet,
}

impl AttachmentKind {
    /// The word for it, as in the file.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Spoke => "spoke",
            Self::Connection => "connection",
            Self::Internet => "internet",
        }
    }
}

/// Which hook serves an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hook {
    /// XDP where the driver has it, else TC.
    #[default]
    Auto,
    /// XDP, in the driver.
    Xdp,
    /// TC.
    Tc,
}

impl Hook {
    /// The word for it, as in the file.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Xdp => "xdp",
            Self::Tc => "tc",
        }
    }
}

/// A number from 1 to 4094, as IEEE 802.1Q has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vlan(u16);

impl Vlan {
    /// The number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl<'de> Deserialize<'de> for Vlan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        number(deserializer, "1 to 4094", |vlan| (1..=4094).contains(&vlan)).map(Self)
    }
}

/// A numbered place where packets come from and go to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attachment {
    /// Its name, unique.
    pub name: String,
    /// The interface.
    pub interface: String,
    /// The VLAN on it.
    #[serde(default)]
    pub vlan: Option<Vlan>,
    /// What is on the other side.
    pub kind: AttachmentKind,
    /// The routing domain that it belongs to.
    #[serde(default = "fabric")]
    pub domain: String,
    /// A packet from here has a source in one of these.
    #[serde(default = "everything")]
    pub sources: Vec<Prefix4>,
    /// Destinations ahead of it as stated; see [`Self::routes`].
    #[serde(default, rename = "routes")]
    pub stated_routes: Vec<Prefix4>,
    /// Non-routable prefixes that may leave here untranslated.
    #[serde(default)]
    pub carries: Vec<Prefix4>,
    /// Which hook serves it: that of its interface, if another attachment there states one.
    #[serde(default)]
    pub hook: Hook,
}

fn everything() -> Vec<Prefix4> {
    vec![Prefix4::ALL]
}

impl Attachment {
    /// The device that the kernel routes by: the interface, or the one of its VLAN.
    #[must_use]
    pub fn device(&self) -> String {
        match self.vlan {
            Some(vlan) => format!("{}.{}", self.interface, vlan.get()),
            None => self.interface.clone(),
        }
    }

    /// Whether it leads into the routable fabric, and not into a pod network of its own.
    #[must_use]
    pub fn is_fabric(&self) -> bool {
        self.domain == FABRIC
    }

    /// Destinations ahead of it: what is stated, else for a spoke its sources, else everything.
    #[must_use]
    pub fn routes(&self) -> &[Prefix4] {
        match (self.stated_routes.as_slice(), self.kind) {
            ([], AttachmentKind::Spoke) => &self.sources,
            ([], AttachmentKind::Connection | AttachmentKind::Internet) => &[Prefix4::ALL],
            (stated, _) => stated,
        }
    }

    /// What it says is behind it and nowhere else: its sources, or its routes if these leave it open.
    #[must_use]
    pub fn claims(&self) -> &[Prefix4] {
        let is_said = self.sources.iter().all(|source| *source != Prefix4::ALL);
        if is_said { &self.sources } else { &self.stated_routes }
    }
}

/// A span of time in whole seconds, never zero and at most a year: `300s`, `124m`, `2h4m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seconds(u32);

const SPAN: &str = "a time from 1s to 8760h, such as 300s, 124m or 2h4m";

impl Seconds {
    /// Longer than anything that is remembered; ticks of the datapath have room for it.
    const YEAR: u32 = 365 * 24 * 3600;

    /// `None` if it is zero or more than a year.
    #[must_use]
    pub const fn new(seconds: u32) -> Option<Self> {
        if seconds == 0 || seconds > Self::YEAR { None } else { Some(Self(seconds)) }
    }

    /// The number of seconds.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The same for the standard library.
    #[must_use]
    pub const fn duration(self) -> Duration {
        Duration::from_secs(self.0 as u64)
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}s", self.0)
    }
}

impl FromStr for Seconds {
    type Err = api::value::Expected;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || api::value::Expected(SPAN);
        let mut total = 0u32;
        // Each unit once, the longest first, so that `4m2h` and `1m1m` are no spans.
        let mut units = [('h', 3600), ('m', 60), ('s', 1)].into_iter();
        for part in text.split_inclusive(|c: char| !c.is_ascii_digit()) {
            let unit = part.chars().next_back().ok_or_else(wrong)?;
            let (_, seconds) = units.find(|(name, _)| *name == unit).ok_or_else(wrong)?;
            let number: u32 = part[..part.len() - 1].parse().map_err(|_| wrong())?;
            let span = number.checked_mul(seconds).ok_or_else(wrong)?;
            total = total.checked_add(span).ok_or_else(wrong)?;
        }
        Self::new(total).ok_or_else(wrong)
    }
}

/// Reads text by [`FromStr`] and says what would be right.
pub(super) fn parsed<'de, D, T>(deserializer: D, expected: &'static str) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr,
{
    struct Text<T>(&'static str, std::marker::PhantomData<T>);
    impl<T: FromStr> Visitor<'_> for Text<T> {
        type Value = T;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(|_| E::invalid_value(Unexpected::Str(text), &self.0))
        }
    }
    deserializer.deserialize_any(Text(expected, std::marker::PhantomData))
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer, SPAN)
    }
}

/// How long idle sessions are remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timers {
    /// UDP.
    pub udp: Seconds,
    /// TCP with data flowing.
    pub tcp_established: Seconds,
    /// TCP that opens or closes.
    pub tcp_transitory: Seconds,
    /// ICMP queries.
    pub icmp: Seconds,
    /// How long a freed port rests before it is lent again.
    pub port_rest: Seconds,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            udp: Seconds(300),
            tcp_established: Seconds(7_440),
            tcp_transitory: Seconds(240),
            icmp: Seconds(60),
            port_rest: Seconds(120),
        }
    }
}

/// The most entries of a table with a number of 16 bits for each.
const NUMBERED: u32 = 1 << 16;
/// The most entries of a table of addresses.
const ADDRESSES: u32 = 1 << 24;
/// The most rules.
const RULES: u32 = xdp_abi::policy::RULES as u32;

/// The most entries that a table can have, by its field.
pub(super) const MOST: [(&str, u32); 6] = [
    ("endpoints", ADDRESSES),
    ("prefixes", ADDRESSES),
    ("identities", NUMBERED),
    ("rules", RULES),
    ("port_classes", NUMBERED),
    ("next_hops", NUMBERED),
];

/// Reads a number of entries, and says of any other value what would be right.
fn entries<'de, const MOST: u32, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let expected = format!("1 to {MOST}");
    number(deserializer, &expected, |number| (1..=MOST).contains(&number))
}

fn sessions<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    number(deserializer, "a power of two from 1024 to 16777216", |number: u32| {
        number.is_power_of_two() && (1 << 10..=1 << 24).contains(&number)
    })
}

fn number<'de, T: TryFrom<u64> + Copy, D: Deserializer<'de>>(
    deserializer: D,
    expected: &str,
    is_right: impl Fn(T) -> bool,
) -> Result<T, D::Error> {
    struct Number<'a, T, F>(&'a str, F, std::marker::PhantomData<T>);
    impl<T: TryFrom<u64> + Copy, F: Fn(T) -> bool> Visitor<'_> for Number<'_, T, F> {
        type Value = T;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
        fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
            let right = T::try_from(number).ok().filter(|number| (self.1)(*number));
            right.ok_or_else(|| E::invalid_value(Unexpected::Unsigned(number), &self))
        }
    }
    deserializer.deserialize_any(Number(expected, is_right, std::marker::PhantomData))
}

/// Sizes of tables, in entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tables {
    /// Sessions; a power of two.
    #[serde(deserialize_with = "sessions")]
    pub sessions: u32,
    /// Addresses with an identity of their own.
    #[serde(deserialize_with = "entries::<ADDRESSES, _>")]
    pub endpoints: u32,
    /// Prefixes with an identity.
    #[serde(deserialize_with = "entries::<ADDRESSES, _>")]
    pub prefixes: u32,
    /// Identities.
    #[serde(deserialize_with = "entries::<NUMBERED, _>")]
    pub identities: u32,
    /// Rules.
    #[serde(deserialize_with = "entries::<RULES, _>")]
    pub rules: u32,
    /// Sets of ports that rules tell apart.
    #[serde(deserialize_with = "entries::<NUMBERED, _>")]
    pub port_classes: u32,
    /// Next hops.
    #[serde(deserialize_with = "entries::<NUMBERED, _>")]
    pub next_hops: u32,
}

impl Default for Tables {
    fn default() -> Self {
        Self {
            sessions: 1 << 20,
            endpoints: 131_072,
            prefixes: 16_384,
            identities: 4_096,
            rules: 16_384,
            port_classes: 1_024,
            next_hops: 4_096,
        }
    }
}

/// A group that grows by more than both of these in a time is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GroupAlarms {
    /// Hundredths of its members.
    #[serde(deserialize_with = "hundredths")]
    pub percent: u32,
    /// Members.
    pub members: u32,
    /// The time.
    pub within: Seconds,
}

impl Default for GroupAlarms {
    fn default() -> Self {
        let Growth { percent, members, within } = Growth::default();
        let within = Seconds::new(within.as_secs() as u32);
        Self { percent, members, within: within.expect("a minute is from a second to a year") }
    }
}

impl GroupAlarms {
    /// The same for what judges it.
    #[must_use]
    pub const fn growth(self) -> Growth {
        let Self { percent, members, within } = self;
        Growth { percent, members, within: within.duration() }
    }
}

fn hundredths<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    number(deserializer, "1 to 10000", |percent| (1..=10_000).contains(&percent))
}

/// What becomes of a TCP segment that belongs to no session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TcpMidstream {
    /// From inside it is answered with RST, from outside it is dropped.
    #[default]
    Reset,
    /// It is dropped without an answer.
    Drop,
    /// It opens a session if no translation is needed.
    Adopt,
}

/// The most files kept beside a log: each has its name changed whenever one is put aside.
const MOST_KEPT: u32 = 1000;
/// The smallest file that is put aside: some records, and not each in one of its own.
const LEAST_LOG: u64 = 4096;

/// Where flow records go.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlowLog {
    /// A file, or `-` for standard output.
    pub path: PathBuf,
    /// A file of this size is put aside and a new one begun.
    #[serde(default = "rotate_bytes", deserialize_with = "bytes_of_a_log")]
    pub rotate_bytes: u64,
    /// How many files are kept beside the current one.
    #[serde(default = "keep", deserialize_with = "kept")]
    pub keep: u32,
}

fn rotate_bytes() -> u64 {
    100 << 20
}

fn keep() -> u32 {
    5
}

fn bytes_of_a_log<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let expected = format!("{LEAST_LOG} to {}", u64::MAX);
    number(deserializer, &expected, |bytes| bytes >= LEAST_LOG)
}

fn kept<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    number(deserializer, &format!("0 to {MOST_KEPT}"), |files| files <= MOST_KEPT)
}

/// Where metrics are asked for, and by whom.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// The address and port to listen on.
    #[serde(deserialize_with = "listen")]
    pub listen: SocketAddr,
    /// What to prove the gateway's name with.
    pub tls: Option<Tls>,
    /// A file with the token that whoever asks must show.
    pub token_file: Option<PathBuf>,
    /// Listen off loopback without either.
    pub insecure: bool,
}

impl Default for Metrics {
    fn default() -> Self {
        let listen = SocketAddr::from(([127, 0, 0, 1], 9464));
        Self { listen, tls: None, token_file: None, insecure: false }
    }
}

fn listen<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    parsed(deserializer, "an address and port such as 127.0.0.1:9464")
}

/// A certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// A PEM file with the certificate and those up to the authority.
    pub certificate: PathBuf,
    /// A PEM file with the private key.
    pub key: PathBuf,
}

/// Ports that a SNAT policy lends if it states none: those that no service is known by.
pub const SNAT_PORTS: PortRange =
    PortRange::new(1024, u16::MAX).expect("1024 is before the last port");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_of_time_have_units_and_an_order() {
        for (text, expected) in [
            ("300s", Some(300)),
            ("124m", Some(7_440)),
            ("2h4m", Some(7_440)),
            ("1h1m1s", Some(3_661)),
            ("1h1s", Some(3_601)),
            ("1s", Some(1)),
            ("0s", None),
            ("8760h", Some(31_536_000)),
            ("8760h1s", None),
            ("4294967296s", None),
            ("1193047h", None), // more seconds than fit
            ("300", None),
            ("", None),
            ("s", None),
            ("4m2h", None),
            ("1m1m", None),
            ("-1s", None),
            ("1.5s", None),
            ("1d", None),
            ("1 s", None),
        ] {
            assert_eq!(text.parse::<Seconds>().ok().map(Seconds::get), expected, "{text}");
        }
    }
}
