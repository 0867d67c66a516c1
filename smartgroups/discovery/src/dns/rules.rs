//! Which answers of DNS are taken, and for how long.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// How many names are asked for at most. Each is two questions, at most every five seconds.
pub const MOST_NAMES: usize = 1_000;

/// How many addresses of one name, and of one family, are members at most: those that were
/// answered last. Names with more are not served by a set of addresses.
pub const MOST_ADDRESSES: usize = 1_000;

/// What is asked of an address, and how long it stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// For how long after its TTL an address stays.
    pub grace: Duration,
    /// Pod prefixes: what a name must not point to.
    pub non_routable: Vec<IpNet>,
}

/// Why an address that DNS answered is no member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WhyNot {
    /// It is in a pod prefix.
    NonRoutable,
    /// It is the asker itself.
    Loopback,
    /// It is on the link of whoever sends to it, where metadata services are.
    LinkLocal,
    /// It stands for none.
    Unspecified,
    /// It is a group of hosts.
    Multicast,
    /// It is no host's: broadcast and what is reserved.
    Reserved,
    /// It is a service that a cloud gives credentials and secrets of a machine by.
    Metadata,
    /// It is an IPv4 address in the form of an IPv6 one, by which it would pass for another.
    Disguised,
}

impl fmt::Display for WhyNot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NonRoutable => "non-routable",
            Self::Loopback => "loopback",
            Self::LinkLocal => "link-local",
            Self::Unspecified => "unspecified",
            Self::Multicast => "multicast",
            Self::Reserved => "reserved",
            Self::Metadata => "a cloud's metadata service",
            Self::Disguised => "an IPv4 address in the form of IPv6",
        })
    }
}

const fn v4(a: u8, b: u8, c: u8, d: u8, length: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length))
}

const fn v6(first: [u16; 2], last: [u16; 3], length: u8) -> IpNet {
    let address = Ipv6Addr::new(first[0], first[1], 0, 0, 0, last[0], last[1], last[2]);
    IpNet::V6(Ipv6Net::new_assert(address, length))
}

/// What no name makes a member of, beside pod prefixes: the first that holds an address says why.
const NEVER: [(IpNet, WhyNot); 17] = [
    (v4(0, 0, 0, 0, 8), WhyNot::Unspecified),
    (v4(127, 0, 0, 0, 8), WhyNot::Loopback),
    (v4(169, 254, 0, 0, 16), WhyNot::LinkLocal),
    (v4(224, 0, 0, 0, 4), WhyNot::Multicast),
    (v4(240, 0, 0, 0, 4), WhyNot::Reserved),
    (v4(168, 63, 129, 16, 32), WhyNot::Metadata), // Azure
    (v4(192, 0, 0, 192, 32), WhyNot::Metadata),   // Oracle
    (v4(100, 100, 100, 200, 32), WhyNot::Metadata), // Alibaba
    (v6([0xfd00, 0x0ec2], [0; 3], 32), WhyNot::Metadata), // AWS
    (v6([0xfd20, 0x00ce], [0, 0, 0x0254], 128), WhyNot::Metadata), // Google
    (v6([0, 0], [0; 3], 128), WhyNot::Unspecified),
    (v6([0, 0], [0, 0, 1], 128), WhyNot::Loopback),
    (v6([0, 0], [0; 3], 96), WhyNot::Disguised), // IPv4-compatible
    (v6([0, 0], [0xffff, 0, 0], 96), WhyNot::Disguised), // IPv4-mapped
    (v6([0xfe80, 0], [0; 3], 10), WhyNot::LinkLocal),
    (v6([0xfec0, 0], [0; 3], 10), WhyNot::LinkLocal), // site-local, given up by RFC 3879
    (v6([0xff00, 0], [0; 3], 8), WhyNot::Multicast),
];

/// Where a translator (NAT64, RFC 6052) has the whole of IPv4: a resolver that serves one answers
/// with such addresses.
const TRANSLATED: IpNet = v6([0x64, 0xff9b], [0; 3], 96);

/// The IPv4 address that a translator makes of an address.
fn translated(address: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(v6) = address else { return None };
    let number = TRANSLATED.contains(&address).then_some(u128::from(v6) as u32);
    number.map(|number| Ipv4Addr::from_bits(number).into())
}

impl Default for Rules {
    /// The usual grace, and no pod prefix.
    fn default() -> Self {
        Self { grace: Self::GRACE, non_routable: Vec::new() }
    }
}

impl Rules {
    /// How long an address stays beyond its TTL unless it is said: an hour. Of a pool of a hundred
    /// addresses, eight of which are in each answer of a minute, one in 150 is not seen in that time.
    /// Whoever holds a connection open, or an answer in a cache, seldom does so for longer; and a cloud
    /// gives an address that was returned to it to somebody else, which speaks against a day.
    pub const GRACE: Duration = Duration::from_secs(3_600);

    /// Why an address is no member, if it is none.
    pub fn why_not(&self, address: IpAddr) -> Option<WhyNot> {
        let address = translated(address).unwrap_or(address);
        let never = NEVER.iter().find(|(prefix, _)| prefix.contains(&address));
        let is_pod = || self.non_routable.iter().any(|prefix| prefix.contains(&address));
        never.map(|(_, why)| *why).or_else(|| is_pod().then_some(WhyNot::NonRoutable))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_makes_no_member_of_what_is_not_out_there() {
        let rules =
            Rules { grace: Rules::GRACE, non_routable: vec!["100.64.0.0/10".parse().unwrap()] };
        for (address, expected) in [
            ("0.0.0.0", Some(WhyNot::Unspecified)),
            ("0.255.255.255", Some(WhyNot::Unspecified)),
            ("1.0.0.0", None),
            ("126.255.255.255", None),
            ("127.0.0.53", Some(WhyNot::Loopback)),
            ("100.63.255.255", None),
            ("100.64.0.0", Some(WhyNot::NonRoutable)),
            ("100.127.255.255", Some(WhyNot::NonRoutable)),
            ("100.128.0.0", None),
            ("100.100.100.200", Some(WhyNot::Metadata)), // also where that is no pod's
            ("169.253.255.255", None),
            ("169.254.169.254", Some(WhyNot::LinkLocal)),
            ("169.255.0.0", None),
            ("168.63.129.16", Some(WhyNot::Metadata)),
            ("168.63.129.17", None),
            ("192.0.0.192", Some(WhyNot::Metadata)),
            ("10.0.0.1", None), // names inside a company are names too
            ("192.168.1.1", None),
            ("223.255.255.255", None),
            ("224.0.0.1", Some(WhyNot::Multicast)),
            ("239.255.255.255", Some(WhyNot::Multicast)),
            ("240.0.0.0", Some(WhyNot::Reserved)),
            ("255.255.255.255", Some(WhyNot::Reserved)),
            ("::", Some(WhyNot::Unspecified)),
            ("::1", Some(WhyNot::Loopback)),
            ("::ffff:169.254.169.254", Some(WhyNot::Disguised)),
            ("::10.0.0.1", Some(WhyNot::Disguised)),
            ("::1:0:0:0", None),
            ("64:ff9b::169.254.169.254", Some(WhyNot::LinkLocal)),
            ("64:ff9b::100.64.0.1", Some(WhyNot::NonRoutable)),
            ("64:ff9b::8.8.8.8", None),
            ("2001:db8::1", None),
            ("fd00:ec1:ffff::", None),
            ("fd00:ec2::254", Some(WhyNot::Metadata)),
            ("fd20:ce::254", Some(WhyNot::Metadata)),
            ("fe7f::1", None),
            ("fe80::1", Some(WhyNot::LinkLocal)),
            ("febf::1", Some(WhyNot::LinkLocal)),
            ("fec0::1", Some(WhyNot::LinkLocal)),
            ("feff::1", Some(WhyNot::LinkLocal)),
            ("ff02::1", Some(WhyNot::Multicast)),
        ] {
            assert_eq!(rules.why_not(address.parse().unwrap()), expected, "{address}");
        }
    }
}
