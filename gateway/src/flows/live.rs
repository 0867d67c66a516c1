//! The datapath's tables as they are now, for reading.
//!
//! Whoever looks inside (records, metrics, the local API, `explain`) sees the tables by the same
//! trait as the decision core, so that the core's own functions answer, and tests put the core's
//! tables in memory in place of the kernel's. What would change something is refused here.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use aya::maps::lpm_trie::Key;
use xdp::address::V4;
use xdp::recent::Line;
use xdp::repeat::Repeat;
use xdp::tables::{Route, Tables, Tally, glance};
use xdp_abi::config::{Config, Shared};
use xdp_abi::count::{Counters, RuleCount};
use xdp_abi::event::{ENDED_CLEARED, Event4};
use xdp_abi::forward::{Attachment, Hop, LinkInfo, NextHopKey, PORTS, PortAddress4, PortInfo};
use xdp_abi::policy::{
    HostKey4, IdentityRef, PoolAddress, PrefixKey4, Rule, RuleSet, Snat, SnatBits, banked,
};
use xdp_abi::port::{PairKey4, Ports};
use xdp_abi::session::{Entry4, Record, State};
use xdp_abi::word::Word;

use super::SessionView;
use crate::datapath::memory::Mapped;
use crate::datapath::object::Loaded;
use crate::datapath::tables::{Datapath, lock};
use xdp::address::Entry as _;

/// The tables with what only a running gateway has.
pub trait Live: Tables<A = V4> + Send + Sync + 'static {
    /// The counters of all processors together.
    ///
    /// # Errors
    /// The kernel was asked and refused.
    fn counters(&self) -> io::Result<Counters>;
    /// The counters of rules, by counter.
    ///
    /// # Errors
    /// The kernel was asked and refused.
    fn rule_counts(&self) -> io::Result<Vec<RuleCount>>;
    /// Ends a session as an operator does, if it is still the one that is meant; says whether it
    /// lived until then.
    ///
    /// # Errors
    /// The kernel was asked and refused.
    fn clear(&self, record: u32, incarnation: u32) -> io::Result<bool>;
    /// Whether events come faster than they are read.
    fn events_pile_up(&self) -> bool;
    /// The programs that are loaded; none where packets go without the kernel.
    fn loaded(&self) -> Vec<Loaded>;
    /// Now, in ticks.
    fn now(&self) -> u32;
    /// How long a tick is.
    fn tick_length(&self) -> Duration;
}

/// Answers where the kernel would route to; a question of its own, because it is netlink's.
pub type AskRoute = dyn Fn(u32, V4, V4) -> Route + Send + Sync;

/// The tables of the kernel.
pub struct Tables4 {
    datapath: Arc<Datapath>,
    route: Box<AskRoute>,
}

impl Tables4 {
    /// The tables of a datapath; `route` says how a packet that came in by an interface (first
    /// argument) from a source to a destination would be routed.
    pub fn new(datapath: Arc<Datapath>, route: Box<AskRoute>) -> Self {
        Self { datapath, route }
    }

    /// The datapath itself.
    #[must_use]
    pub fn datapath(&self) -> &Arc<Datapath> {
        &self.datapath
    }
}

fn element<T: Copy>(table: &Mapped<T>, index: u32) -> Option<T> {
    table.get(index).copied()
}

fn place_key(place: u32, address: V4) -> Key<PortAddress4> {
    Key::new(64, PortAddress4 { port: place.to_be_bytes(), address: address.0 })
}

impl Live for Tables4 {
    fn counters(&self) -> io::Result<Counters> {
        self.datapath.counters().map_err(io::Error::other)
    }
    fn rule_counts(&self) -> io::Result<Vec<RuleCount>> {
        self.datapath.rule_counts().map_err(io::Error::other)
    }
    fn clear(&self, record: u32, incarnation: u32) -> io::Result<bool> {
        // The kernel does not say what became of an order.
        let lives = || {
            let found = SessionView::of_record(self, record, self.datapath.now());
            found.is_some_and(|found| found.incarnation() == incarnation && found.lives())
        };
        if !lives() {
            return Ok(false);
        }
        self.datapath.clear(record, incarnation, ENDED_CLEARED).map_err(io::Error::other)?;
        Ok(!lives())
    }
    fn events_pile_up(&self) -> bool {
        self.datapath.events_pile_up()
    }
    fn loaded(&self) -> Vec<Loaded> {
        self.datapath.object().loaded()
    }
    fn now(&self) -> u32 {
        self.datapath.now()
    }
    fn tick_length(&self) -> Duration {
        self.datapath.tick_length()
    }
}

impl Repeat for Tables4 {}

impl Tables for Tables4 {
    type A = V4;

    fn config(&self) -> &Config {
        self.datapath.settings()
    }
    fn shared(&self) -> &Shared {
        self.datapath.shared_words()
    }
    fn epoch(&self, slot: u32) -> u32 {
        let epochs = self.datapath.epochs.get(0);
        epochs.and_then(|epochs| epochs.get(slot as usize)).copied().unwrap_or(0)
    }
    fn random(&self) -> u32 {
        0
    }
    fn clock(&self) -> u64 {
        crate::datapath::clock::monotonic()
    }

    fn slot(&self, index: u32) -> Option<&Entry4> {
        self.datapath.slots.get(index)
    }
    /// Whoever reads here is in no hurry: every slot of a window is looked at.
    fn hints(&self, _: u32) -> Option<&Word> {
        None
    }
    /// What processors remember is theirs.
    fn recent(&self, _: u32) -> Option<&Line> {
        None
    }
    fn record(&self, index: u32) -> Option<&Record> {
        self.datapath.records.get(index)
    }
    fn take_record(&self) -> Option<u32> {
        None
    }
    fn give_record(&self, _: u32) {}
    /// Looks through the overflow slots, which are few: their map belongs to the datapath.
    fn overflow(&self, key: &[u64; 2]) -> Option<u32> {
        let numbers = xdp::table::overflow_slots(self.config());
        let slots = self.datapath.slots.all().get(numbers.start as usize..numbers.end as usize)?;
        let found = slots.iter().position(|entry| {
            entry.load_meta().state_bits() >= State::Keyed as u64 && entry.key() == *key
        })?;
        Some(numbers.start + found as u32)
    }
    fn add_overflow(&self, _: &[u64; 2], _: u32) -> bool {
        false
    }
    fn remove_overflow(&self, _: &[u64; 2]) {}
    fn take_overflow(&self) -> Option<u32> {
        None
    }
    fn give_overflow(&self, _: u32) {}

    fn identity(&self, bank: u32, domain: u16, address: V4) -> IdentityRef {
        let host = HostKey4 { address: address.0, domain, bank: bank as u16 };
        if let Ok(identity) = lock(&self.datapath.hosts).get(&host, 0) {
            return identity;
        }
        let prefix = PrefixKey4 {
            bank: (bank as u16).to_be_bytes(),
            domain: domain.to_be_bytes(),
            address: address.0,
        };
        lock(&self.datapath.prefixes).get(&Key::new(64, prefix), 0).unwrap_or_default()
    }
    fn source_rules(&self, bank: u32, identity: u32) -> Option<&RuleSet> {
        self.datapath.source_rules.get(banked(identity, bank))
    }
    fn destination_rules(&self, bank: u32, identity: u32) -> Option<&RuleSet> {
        self.datapath.destination_rules.get(banked(identity, bank))
    }
    fn class(&self, bank: u32, index: u32) -> u16 {
        let classes = self.datapath.classes.get(bank & 1);
        classes.and_then(|classes| classes.get(index as usize)).copied().unwrap_or(u16::MAX)
    }
    fn class_rules(&self, bank: u32, class: u16) -> Option<&RuleSet> {
        self.datapath.class_rules.get(banked(u32::from(class), bank))
    }
    fn monitors(&self, bank: u32) -> Option<&RuleSet> {
        self.datapath.monitors.get(bank & 1)
    }
    fn rule(&self, bank: u32, bit: u32) -> Option<Rule> {
        element(&self.datapath.rules, banked(bit, bank))
    }
    fn count_rule(&self, _: u32, _: u64) {}
    fn snat_bits(&self, bank: u32, identity: u32) -> Option<&SnatBits> {
        self.datapath.snat_bits.get(banked(identity, bank))
    }
    fn snat(&self, bank: u32, bit: u32) -> Option<Snat> {
        element(&self.datapath.snat, banked(bit, bank))
    }
    fn pool(&self, bank: u32, place: u32) -> Option<PoolAddress> {
        element(&self.datapath.pools, banked(place, bank))
    }
    fn is_outside(&self, bank: u32, address: V4) -> bool {
        let key = HostKey4 { address: address.0, domain: 0, bank: bank as u16 };
        lock(&self.datapath.outside).get(&key, 0).is_ok()
    }
    fn lendable(&self, index: u32) -> Option<&Ports> {
        self.datapath.lendable.get(index)
    }
    fn bitmap(&self, pair: &PairKey4) -> Option<&Ports> {
        let number = lock(&self.datapath.pairs).get(pair, 0).ok()?;
        self.datapath.bitmaps.get(number)
    }
    fn make_hot(&self, _: &PairKey4) -> Option<u32> {
        None
    }
    fn bitmap_of(&self, number: u32) -> Option<&Ports> {
        self.datapath.bitmaps.get(number)
    }

    fn domain_at_a_glance(&self, ifindex: u32, to: &[u8; 6], source: V4) -> Option<u16> {
        let info: &PortInfo = self.datapath.ports.get(ifindex & (PORTS - 1))?;
        glance(info, ifindex, to, source)
    }
    fn attachment_of(&self, port: u32, source: V4) -> Option<u16> {
        let number = lock(&self.datapath.sources).get(&place_key(port, source), 0).ok()?;
        u16::try_from(number).ok()
    }
    fn attachment_towards(&self, port: u32, destination: V4) -> Option<u16> {
        let number = lock(&self.datapath.routes).get(&place_key(port, destination), 0).ok()?;
        u16::try_from(number).ok()
    }
    fn attachment(&self, number: u16) -> Option<Attachment> {
        element(&self.datapath.attachments, u32::from(number))
    }
    fn carries(&self, attachment: u16, source: V4) -> bool {
        let key = place_key(u32::from(attachment), source);
        lock(&self.datapath.carries).get(&key, 0).is_ok()
    }
    fn is_local(&self, address: V4) -> bool {
        lock(&self.datapath.locals).get(&address.0, 0).is_ok()
    }
    fn is_local6(&self, address: &[u8; 16]) -> bool {
        lock(&self.datapath.locals6).get(address, 0).is_ok()
    }
    fn link(&self, ifindex: u32) -> Option<LinkInfo> {
        lock(&self.datapath.links).get(&ifindex, 0).ok()
    }
    fn route(&self, ifindex: u32, source: V4, destination: V4) -> Route {
        (self.route)(ifindex, source, destination)
    }
    fn hop(&self, number: u16) -> Option<Hop> {
        self.datapath.hops.get(u32::from(number)).map(crate::datapath::hops::read)
    }
    fn find_hop(&self, key: &NextHopKey) -> Option<u16> {
        let number = lock(&self.datapath.hop_index).get(key, 0).ok()?;
        u16::try_from(number).ok()
    }
    /// Nothing is numbered by looking: any number stands for the one that it would get.
    fn add_hop(&self, _: &NextHopKey, _: &Hop) -> Option<u16> {
        Some(u16::MAX)
    }
    fn set_hop(&self, _: u16, _: &Hop) {}

    fn admit(&self, _: u32, _: u32, _: u32) -> Option<u32> {
        None
    }
    fn report(&self, _: impl FnOnce(&mut Event4)) {}
    fn tally(&self, _: Tally) {}
}
