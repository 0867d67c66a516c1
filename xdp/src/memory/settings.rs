//! What the daemon would write: links, attachments, routes, timers, the policy.

use super::{Policy, state::Memory};
use crate::address::V4;
use std::ops::RangeInclusive;
use xdp_abi::{
    config::PolicyWord,
    forward::{Attachment, LinkInfo, PortInfo},
    port::Ports,
    session::Class,
};

/// An address and how many of its bits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// The first address.
    pub network: V4,
    /// From the left.
    pub bits: u32,
}

impl Prefix {
    /// The bits that count, as a mask.
    #[must_use]
    pub const fn mask(self) -> u32 {
        if self.bits == 0 { 0 } else { u32::MAX << (32 - self.bits) }
    }
    /// Whether an address lies inside.
    #[must_use]
    pub const fn contains(self, address: V4) -> bool {
        (u32::from_be_bytes(self.network.0) ^ u32::from_be_bytes(address.0)) & self.mask() == 0
    }
}

/// The longest of some prefixes that an address lies in.
pub(super) fn longest<'a, V: Copy + 'a>(
    prefixes: impl Iterator<Item = (Prefix, V)>,
    address: V4,
) -> Option<V> {
    prefixes
        .filter(|(prefix, _)| prefix.contains(address))
        .max_by_key(|(prefix, _)| prefix.bits)
        .map(|(_, value)| value)
}

/// A line of the kernel's routing table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteEntry {
    /// Where to.
    pub to: Prefix,
    /// The interface that the kernel sends by.
    pub ifindex: u32,
    /// Through whom; `None`: the destination itself is on the link.
    pub gateway: Option<V4>,
    /// The largest IP packet, if it is not the link's.
    pub mtu: Option<u16>,
}

impl Memory {
    /// Numbers an interface.
    pub fn set_link(&mut self, ifindex: u32, link: LinkInfo) {
        self.move_network_epoch();
        self.links.insert(ifindex, link);
    }
    /// Says what an attachment is.
    pub fn set_attachment(&mut self, number: u16, attachment: Attachment) {
        self.move_network_epoch();
        self.attachments.insert(number, attachment);
    }
    /// A source prefix behind a port (`forward::port`).
    pub fn add_source(&mut self, port: u32, prefix: Prefix, attachment: u16) {
        self.move_network_epoch();
        self.sources.entry(port).or_default().push((prefix, attachment));
    }
    /// A destination prefix ahead of a port.
    pub fn add_route_ahead(&mut self, port: u32, prefix: Prefix, attachment: u16) {
        self.move_network_epoch();
        self.ahead.entry(port).or_default().push((prefix, attachment));
    }
    /// A non-routable prefix that an attachment carries as it is.
    pub fn add_carried(&mut self, attachment: u16, prefix: Prefix) {
        self.carried.push((attachment, prefix));
    }
    /// No attachment carries anything any more that is non-routable.
    pub fn carry_nothing(&mut self) {
        self.carried.clear();
    }
    /// What the established path sees of an untagged interface.
    pub fn set_glance(&mut self, info: PortInfo) {
        self.glances.insert(info.ifindex, info);
    }
    /// The machine has this IPv6 address.
    pub fn add_local6(&mut self, address: [u8; 16]) {
        self.locals6.insert(address);
    }

    /// An address of the machine itself.
    pub fn add_local(&mut self, address: V4) {
        self.move_network_epoch();
        self.locals.insert(address);
    }
    /// A line of the routing table.
    pub fn add_route(&mut self, route: RouteEntry) {
        self.routes.push(route);
    }
    /// Takes every route to a prefix out.
    pub fn remove_route(&mut self, to: Prefix) {
        self.routes.retain(|route| route.to != to);
    }
    /// What resolution of a neighbour gave; `None`: it has to be asked for.
    pub fn set_neighbour(&mut self, ifindex: u32, address: V4, mac: Option<[u8; 6]>) {
        self.neighbours.insert((ifindex, address), mac);
    }
    /// The prefixes that must not leave by a routable attachment. Those beyond what there is
    /// room for are left out.
    pub fn set_non_routable(&mut self, prefixes: &[Prefix]) {
        for (word, prefix) in self.config.non_routable.iter().zip(prefixes) {
            let network = u32::from_ne_bytes(prefix.network.0) as u64;
            let mask = u32::from_ne_bytes(prefix.mask().to_be_bytes()) as u64;
            word.store(network << 32 | mask);
        }
    }
    /// How long a class is kept without traffic, in ticks.
    pub fn set_timeout(&self, class: Class, ticks: u32) {
        let n = class as usize;
        let word = &self.config.timeouts[n >> 1];
        let old = word.load();
        word.store(if n & 1 == 0 {
            old & 0xffff_ffff | (ticks as u64) << 32
        } else {
            old & !0xffff_ffff | ticks as u64
        });
    }
    /// How long a port rests, in ticks.
    pub fn set_rest(&self, ticks: u32) {
        self.config.rest.store(ticks as u64);
    }
    /// `config::MIDSTREAM_*`.
    pub fn set_midstream(&self, mode: u64) {
        self.config.midstream.store(mode);
    }
    /// Answers and reports per bucket and second.
    pub fn set_rates(&self, answers: u32, reports: u32) {
        self.config.rates.store((answers as u64) << 32 | reports as u64);
    }
    /// A set of ports that may be lent; its number.
    pub fn add_lendable(&mut self, ports: impl IntoIterator<Item = RangeInclusive<u16>>) -> u32 {
        let set = empty_ports();
        for port in ports.into_iter().flatten() {
            let word = port as usize >> 6;
            set.words[word].fetch_or(1 << (port & 63));
            set.summary[word >> 6].fetch_or(1 << (word & 63));
        }
        self.lendable.push(set);
        self.lendable.len() as u32 - 1
    }
    /// Puts a policy into force: into the idle bank, then one store.
    pub fn publish(&mut self, policy: Policy) {
        let old = PolicyWord(self.config.policy.load());
        let bank = old.bank() ^ 1;
        let words = policy.rules.len().div_ceil(64) as u32;
        let word = PolicyWord::new(
            old.generation() + 1,
            bank,
            words,
            policy.snat.len() as u32,
            policy.default_action,
            policy.default_log,
        );
        self.banks[bank as usize] = policy;
        self.config.policy.store(word.0);
    }
    /// Changes the policy in force in place, as one identity change does, and moves the epoch
    /// of the addresses concerned.
    pub fn amend(&mut self, concerned: &[(u16, V4)], change: impl FnOnce(&mut Policy)) {
        let bank = PolicyWord(self.config.policy.load()).bank();
        change(&mut self.banks[bank as usize]);
        for (domain, address) in concerned {
            self.epochs[crate::stamp::epoch_slot(*domain, *address) as usize] += 1;
        }
    }
}

/// No port at all.
pub(super) fn empty_ports() -> Ports {
    Ports {
        summary: core::array::from_fn(|_| xdp_abi::word::Word::new(0)),
        words: core::array::from_fn(|_| xdp_abi::word::Word::new(0)),
    }
}
