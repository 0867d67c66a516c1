//! What `public-internet` means: addresses of the fabric that anybody on the Internet may have.
//!
//! The exceptions are the blocks that the IANA special-purpose registries (RFC 6890) mark as not
//! globally reachable or leave open, and multicast. IPv6 starts from 2000::/3, the only block ever
//! given out, so that what is allocated to nobody is not "the Internet" either. Where a block
//! holds a few reachable anycast addresses (192.0.0.9, 2001:1::1) the whole block stays out: they
//! are answered by the nearest relay, which is not far away.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::DomainId;

const fn v4(a: u8, b: u8, c: u8, len: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, 0), len))
}

const fn v6(a: u16, b: u16, len: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0), len))
}

/// Prefixes and whether their addresses are public; the longest one that holds an address decides.
pub(crate) const RANGES: &[(IpNet, bool)] = &[
    (v4(0, 0, 0, 0), true),
    (v4(0, 0, 0, 8), false),       // this network
    (v4(10, 0, 0, 8), false),      // private use
    (v4(100, 64, 0, 10), false),   // shared address space
    (v4(127, 0, 0, 8), false),     // loopback
    (v4(169, 254, 0, 16), false),  // link local
    (v4(172, 16, 0, 12), false),   // private use
    (v4(192, 0, 0, 24), false),    // IETF protocol assignments
    (v4(192, 0, 2, 24), false),    // documentation
    (v4(192, 88, 99, 24), false),  // 6to4 relays, withdrawn
    (v4(192, 168, 0, 16), false),  // private use
    (v4(198, 18, 0, 15), false),   // benchmarking
    (v4(198, 51, 100, 24), false), // documentation
    (v4(203, 0, 113, 24), false),  // documentation
    (v4(224, 0, 0, 4), false),     // multicast
    (v4(240, 0, 0, 4), false),     // reserved, limited broadcast
    (v6(0x2000, 0, 3), true),
    (v6(0x2001, 0, 23), false),     // IETF protocol assignments
    (v6(0x2001, 0xdb8, 32), false), // documentation
    (v6(0x2002, 0, 16), false),     // 6to4
    (v6(0x3fff, 0, 20), false),     // documentation
];

/// Whether an address belongs to `public-internet`.
pub fn is_public(domain: DomainId, address: IpAddr) -> bool {
    domain == DomainId::FABRIC
        && RANGES
            .iter()
            .filter(|(range, _)| range.contains(&address))
            .max_by_key(|(range, _)| range.prefix_len())
            .is_some_and(|(_, public)| *public)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_public_internet_ends_where_special_purpose_ranges_begin() {
        for (address, expected) in [
            ("0.255.255.255", false),
            ("1.0.0.0", true),
            ("9.255.255.255", true),
            ("10.0.0.0", false),
            ("10.255.255.255", false),
            ("11.0.0.0", true),
            ("100.63.255.255", true),
            ("100.64.0.0", false),
            ("100.127.255.255", false),
            ("100.128.0.0", true),
            ("172.15.255.255", true),
            ("172.16.0.0", false),
            ("172.31.255.255", false),
            ("172.32.0.0", true),
            ("169.254.169.254", false),
            ("192.0.1.1", true),
            ("192.0.2.1", false),
            ("192.167.255.255", true),
            ("192.168.0.0", false),
            ("198.17.255.255", true),
            ("198.18.0.0", false),
            ("198.19.255.255", false),
            ("198.20.0.0", true),
            ("223.255.255.255", true),
            ("224.0.0.0", false),
            ("255.255.255.255", false),
            ("::1", false),
            ("1fff:ffff::", false),
            ("2000::", true),
            ("2001:1ff:ffff::", false),
            ("2001:200::", true),
            ("2001:db8::1", false),
            ("2001:db9::", true),
            ("2002::1", false),
            ("2606:4700::1111", true),
            ("3fff:fff::", false),
            ("3fff:1000::", true),
            ("4000::", false),
            ("fd00::1", false),
            ("fe80::1", false),
            ("ff02::1", false),
        ] {
            let ip = address.parse().unwrap();
            assert_eq!(is_public(DomainId::FABRIC, ip), expected, "{address}");
            assert!(!is_public(DomainId(1), ip), "{address} of a pod network");
        }
    }
}
