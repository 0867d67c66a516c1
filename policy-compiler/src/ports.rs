//! Which rules admit a protocol and destination port.
//!
//! Ports that the same rules admit are one class, so the packet path reads one small number by
//! port and one bit set by class. TCP and UDP are swept once each: only where some rule's range
//! begins or ends can the set change.

use std::collections::{BTreeMap, HashMap};

use crate::bitset::BitSet;
use crate::model::{PortRange, Protocol, Rule, has_ports};

/// Classes of protocol and destination port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortClasses {
    /// Disjoint ranges from 0 to 65535, in order, and their class.
    pub tcp: Vec<(PortRange, u16)>,
    /// The same for UDP.
    pub udp: Vec<(PortRange, u16)>,
    /// The class of every other protocol. TCP and UDP stand here as well, with the rules that
    /// admit all of their ports: for a packet whose ports cannot be read.
    pub other: [u16; 256],
    /// The rules that admit what is in a class.
    pub classes: Vec<BitSet>,
}

impl PortClasses {
    /// Sorts out `rules`, whose index is their bit. `Err` is the number of classes that are
    /// needed, if that is more than `room` or more than can be numbered.
    pub(crate) fn new(rules: &[&Rule], room: usize) -> Result<Self, usize> {
        let mut classes = Interner::default();
        let tcp = sweep(rules, Protocol::TCP, &mut classes);
        let udp = sweep(rules, Protocol::UDP, &mut classes);
        let mut other = [0_usize; 256];
        for number in 0..=u8::MAX {
            let of = |ranges: &[(PortRange, usize)]| every_port(ranges, rules.len(), &classes.sets);
            let set = match Protocol::Number(number) {
                Protocol::TCP => of(&tcp),
                Protocol::UDP => of(&udp),
                Protocol::Number(_) | Protocol::Any => {
                    let admit = |(_, rule): &(usize, &&Rule)| {
                        rule.ports.is_empty() && rule.protocol.includes(number)
                    };
                    let bits = rules.iter().enumerate().filter(admit).map(|(bit, _)| bit);
                    BitSet::of(rules.len(), bits)
                }
            };
            other[usize::from(number)] = classes.number(set);
        }
        let need = classes.sets.len();
        if need > room.min(1 << 16) {
            return Err(need);
        }
        // At most 2^16 classes: every index fits.
        let narrow = |ranges: Vec<(PortRange, usize)>| {
            ranges.into_iter().map(|(range, class)| (range, class as u16)).collect()
        };
        Ok(Self {
            tcp: narrow(tcp),
            udp: narrow(udp),
            other: other.map(|class| class as u16),
            classes: classes.sets,
        })
    }

    /// The class of a protocol and destination port.
    pub fn class_of(&self, protocol: u8, port: u16) -> u16 {
        let ranges = match Protocol::Number(protocol) {
            Protocol::TCP => &self.tcp,
            Protocol::UDP => &self.udp,
            Protocol::Number(_) | Protocol::Any => return self.other[usize::from(protocol)],
        };
        let after = ranges.partition_point(|(range, _)| *range.start() <= port);
        // The first range begins at port 0, so at least one begins at or before any port.
        ranges[after - 1].1
    }
}

#[derive(Default)]
struct Interner {
    sets: Vec<BitSet>,
    numbers: HashMap<BitSet, usize>,
}

impl Interner {
    fn number(&mut self, set: BitSet) -> usize {
        let next = self.sets.len();
        *self.numbers.entry(set).or_insert_with_key(|set| {
            self.sets.push(set.clone());
            next
        })
    }
}

/// The destination ports of a rule as ranges that neither meet nor overlap.
pub(crate) fn merged(rule: &Rule) -> Vec<PortRange> {
    if rule.ports.is_empty() {
        return vec![0..=u16::MAX];
    }
    let mut ranges = rule.ports.clone();
    ranges.sort_unstable_by_key(|range| *range.start());
    let mut merged: Vec<PortRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if u32::from(*range.start()) <= u32::from(*last.end()) + 1 => {
                *last = *last.start()..=*last.end().max(range.end());
            }
            _ => merged.push(range),
        }
    }
    merged
}

fn sweep(rules: &[&Rule], protocol: Protocol, classes: &mut Interner) -> Vec<(PortRange, usize)> {
    /// Rules that stop and rules that begin to admit at a port.
    #[derive(Default)]
    struct Change {
        stop: Vec<usize>,
        begin: Vec<usize>,
    }
    let mut changes = BTreeMap::from([(0_u32, Change::default())]);
    for (bit, rule) in rules.iter().enumerate() {
        if rule.protocol != Protocol::Any && rule.protocol != protocol {
            continue;
        }
        for range in merged(rule) {
            changes.entry(u32::from(*range.start())).or_default().begin.push(bit);
            changes.entry(u32::from(*range.end()) + 1).or_default().stop.push(bit);
        }
    }
    changes.remove(&(1 << 16)); // past the last port
    let ends: Vec<u32> = changes.keys().skip(1).copied().chain([1 << 16]).collect();
    let mut admitted = BitSet::new(rules.len());
    let mut ranges: Vec<(PortRange, usize)> = Vec::new();
    for ((first, change), end) in changes.into_iter().zip(ends) {
        for bit in change.stop {
            admitted.remove(bit);
        }
        for bit in change.begin {
            admitted.insert(bit);
        }
        let class = classes.number(admitted.clone());
        let (first, last) = (first as u16, (end - 1) as u16);
        match ranges.last_mut() {
            Some((range, same)) if *same == class => *range = *range.start()..=last,
            _ => ranges.push((first..=last, class)),
        }
    }
    ranges
}

/// The rules that admit every port.
fn every_port(ranges: &[(PortRange, usize)], rules: usize, classes: &[BitSet]) -> BitSet {
    let mut all = BitSet::full(rules);
    for (_, class) in ranges {
        all.intersect_with(&classes[*class]);
    }
    all
}

/// Whether a rule admits a protocol and destination port, read off the rule itself.
pub(crate) fn admits(rule: &Rule, protocol: u8, port: u16) -> bool {
    rule.protocol.includes(protocol)
        && (rule.ports.is_empty()
            || (has_ports(protocol) && rule.ports.iter().any(|range| range.contains(&port))))
}
