//! Numbers by address, as two tables: hosts, and prefixes of which the longest counts.
//!
//! A copy costs nothing and shares what is the same in both: whoever reads one goes on with it
//! while the next is made from it.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;
use rpds::HashTrieMapSync;

use crate::DomainId;
use crate::cells::Lengths;

/// Numbers by address; see the module.
#[derive(Clone, Debug, Default)]
pub struct AddressTable {
    hosts: HashTrieMapSync<(DomainId, IpAddr), u32>,
    prefixes: HashTrieMapSync<(DomainId, IpNet), u32>,
    lengths: HashMap<DomainId, Lengths>,
}

impl AddressTable {
    /// A table of these hosts and prefixes.
    pub fn new(
        hosts: impl IntoIterator<Item = (DomainId, IpAddr, u32)>,
        prefixes: impl IntoIterator<Item = (DomainId, IpNet, u32)>,
    ) -> Self {
        let mut new = Self::default();
        for (domain, host, number) in hosts {
            new.put_host(domain, host, Some(number));
        }
        for (domain, prefix, number) in prefixes {
            new.put_prefix(domain, prefix, Some(number));
        }
        new
    }

    /// The number of an address: that of the host, else of the longest prefix that holds it.
    pub fn lookup(&self, domain: DomainId, address: IpAddr) -> Option<u32> {
        if let Some(number) = self.hosts.get(&(domain, address)) {
            return Some(*number);
        }
        let mut around = self.lengths.get(&domain)?.around(address);
        around.find_map(|prefix| self.prefixes.get(&(domain, prefix)).copied())
    }

    /// Brings a host to what it is now: a number, or no line of its own.
    pub fn put_host(&mut self, domain: DomainId, host: IpAddr, number: Option<u32>) {
        match number {
            Some(number) => {
                self.hosts.insert_mut((domain, host), number);
            }
            None => {
                self.hosts.remove_mut(&(domain, host));
            }
        }
    }

    /// The same of a prefix.
    pub fn put_prefix(&mut self, domain: DomainId, prefix: IpNet, number: Option<u32>) {
        let key = (domain, prefix);
        let was = self.prefixes.contains_key(&key);
        let lengths = self.lengths.entry(domain).or_default();
        match number {
            Some(number) => {
                self.prefixes.insert_mut(key, number);
                if !was {
                    lengths.add(&prefix);
                }
            }
            None => {
                self.prefixes.remove_mut(&key);
                if was {
                    lengths.remove(&prefix);
                }
            }
        }
    }

    /// All hosts, in any order.
    pub fn hosts(&self) -> impl Iterator<Item = (DomainId, IpAddr, u32)> {
        self.hosts.iter().map(|((domain, host), number)| (*domain, *host, *number))
    }

    /// All prefixes, in any order.
    pub fn prefixes(&self) -> impl Iterator<Item = (DomainId, IpNet, u32)> {
        self.prefixes.iter().map(|((domain, prefix), number)| (*domain, *prefix, *number))
    }

    /// Whether a host or prefix has a line of its own.
    pub fn has(&self, domain: DomainId, prefix: IpNet) -> bool {
        if prefix.prefix_len() == prefix.max_prefix_len() {
            self.hosts.contains_key(&(domain, prefix.addr()))
        } else {
            self.prefixes.contains_key(&(domain, prefix))
        }
    }

    /// How many hosts and how many prefixes there are.
    pub fn sizes(&self) -> (usize, usize) {
        (self.hosts.size(), self.prefixes.size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_counts_before_the_longest_prefix_and_a_copy_stays_as_it_was() {
        let (ip, net) = (|text: &str| text.parse().unwrap(), |text: &str| text.parse().unwrap());
        let one = DomainId(1);
        let mut table = AddressTable::new(
            [(one, ip("10.0.0.1"), 1)],
            [(one, net("10.0.0.0/24"), 2), (one, net("10.0.0.0/8"), 3), (one, net("::/0"), 4)],
        );
        let before = table.clone();
        table.put_host(one, ip("10.0.0.1"), None);
        table.put_prefix(one, net("10.0.0.0/24"), None);
        table.put_prefix(one, net("10.0.0.0/24"), None);
        table.put_prefix(one, net("10.0.0.0/30"), Some(5));
        for (address, was, is) in [
            ("10.0.0.1", Some(1), Some(5)),
            ("10.0.0.2", Some(2), Some(5)),
            ("10.0.0.4", Some(2), Some(3)),
            ("10.0.1.0", Some(3), Some(3)),
            ("11.0.0.0", None, None),
            ("fd00::1", Some(4), Some(4)),
        ] {
            assert_eq!(before.lookup(one, ip(address)), was, "{address}");
            assert_eq!(table.lookup(one, ip(address)), is, "{address}");
            assert_eq!(table.lookup(DomainId(2), ip(address)), None, "{address}");
        }
        assert_eq!((before.sizes(), table.sizes()), ((1, 3), (0, 3)));
        assert!(before.has(one, net("10.0.0.1/32")) && !table.has(one, net("10.0.0.1/32")));
        assert!(before.has(one, net("10.0.0.0/24")) && !table.has(one, net("10.0.0.0/24")));
    }
}
