//! The tables.

use super::{
    Policy,
    settings::{Prefix, RouteEntry, empty_ports, longest},
};
use crate::{
    address::V4,
    recent::{Line, SOURCES},
    repeat::Repeat,
    table::{hint_words, near_slots_beside},
    tables::{Route, Tables, Tally, admit, glance},
};
use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
};
use xdp_abi::{
    config::{Config, HINTED, Shared},
    count::{Counters, RuleCount},
    event::Event4,
    forward::{ATTACHMENTS, Attachment, Hop, LinkInfo, NextHopKey, PortInfo},
    policy::{IdentityRef, PoolAddress, Rule, RuleSet, Snat, SnatBits},
    port::{PairKey4, Ports},
    reason::Reason,
    session::{Class, EPOCHS, Entry4, NETWORK_EPOCH, Record},
    word::Word,
};

/// How much there is room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Window slots, a power of two.
    pub slots: u32,
    /// Sessions.
    pub records: u32,
    /// Slots for entries whose window is full.
    pub overflow: u32,
    /// Port bitmaps.
    pub bitmaps: u32,
    /// Next hops.
    pub hops: u16,
    /// Events that are kept; more are counted as lost.
    pub events: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { slots: 4096, records: 1024, overflow: 64, bitmaps: 16, hops: 64, events: 65_536 }
    }
}

/// All state of a gateway.
pub struct Memory {
    pub(super) config: Config,
    shared: Shared,
    pub(super) epochs: Vec<u32>,
    slots: Vec<Entry4>,
    hints: Vec<Word>,
    recent: Vec<Line>,
    records: Vec<Record>,
    free_records: Mutex<VecDeque<u32>>,
    overflow: Mutex<HashMap<[u64; 2], u32>>,
    free_overflow: Mutex<VecDeque<u32>>,
    pub(super) banks: [Policy; 2],
    rule_counts: Mutex<HashMap<u32, RuleCount>>,
    pub(super) lendable: Vec<Ports>,
    pairs: Mutex<HashMap<PairKey4, u32>>,
    bitmaps: Vec<Ports>,
    free_bitmaps: Mutex<VecDeque<u32>>,
    pub(super) attachments: HashMap<u16, Attachment>,
    pub(super) sources: HashMap<u32, Vec<(Prefix, u16)>>,
    pub(super) ahead: HashMap<u32, Vec<(Prefix, u16)>>,
    pub(super) carried: Vec<(u16, Prefix)>,
    pub(super) glances: HashMap<u32, PortInfo>,
    pub(super) locals: HashSet<V4>,
    pub(super) locals6: HashSet<[u8; 16]>,
    pub(super) links: HashMap<u32, LinkInfo>,
    pub(super) routes: Vec<RouteEntry>,
    pub(super) neighbours: HashMap<(u32, V4), Option<[u8; 6]>>,
    hops: Mutex<Vec<Hop>>,
    hop_index: Mutex<HashMap<NextHopKey, u16>>,
    free_hops: Mutex<VecDeque<u16>>,
    rates: Vec<Word>,
    events: Mutex<Vec<Event4>>,
    event_room: usize,
    counters: Mutex<Counters>,
    clock: AtomicU64,
    random: AtomicU64,
    drawn: AtomicU64,
    fail_one_in: AtomicU32,
}

/// Lines that are remembered: few, because many such tables are made.
const FEW_SOURCES: u32 = 64;
const FEW_DESTINATIONS: u32 = 16;

/// In `Memory::drawn`: the generator answers.
const NOT_DRAWN: u64 = u64::MAX;

fn words<const N: usize>() -> [Word; N] {
    core::array::from_fn(|_| Word::new(0))
}

fn queue<N: TryFrom<u32>>(numbers: core::ops::Range<u32>) -> Mutex<VecDeque<N>> {
    Mutex::new(numbers.filter_map(|n| N::try_from(n).ok()).collect())
}

/// A panic of a test elsewhere leaves nothing half done in these: each is one operation.
fn lock<V>(mutex: &Mutex<V>) -> MutexGuard<'_, V> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Memory {
    /// Empty tables, with the timers of the RFCs and a tick of 1/16 s.
    #[must_use]
    pub fn new(sizes: Sizes, seed: u64) -> Self {
        let slots = sizes.slots.next_power_of_two();
        let near = near_slots_beside(slots);
        let memory = Self {
            config: Config {
                policy: Word::new(0),
                seed: Word::new(seed ^ 0x5eed),
                slots: Word::new((sizes.overflow as u64) << 32 | (slots as u64 - 1)),
                tick_shift: Word::new((near as u64) << 32 | HINTED | 4),
                timeouts: words(),
                rest: Word::new(120 * 16),
                non_routable: words(),
                midstream: Word::new(0),
                rates: Word::new(1000 << 32 | 1000),
                abi: Word::new(xdp_abi::ABI_VERSION as u64),
                capture: Word::new(0),
                capture_address: Word::new(0),
                capture_ports: Word::new(0),
            },
            shared: Shared {
                overflowed: Word::new(0),
                hot_pairs: Word::new(0),
                sweep_cursor: Word::new(0),
                incarnation: Word::new(1),
                capture_seen: Word::new(0),
                port_steps_max: Word::new(0),
                jiffies: Word::new(0),
                nanoseconds: Word::new(0),
            },
            epochs: vec![0; EPOCHS],
            slots: (0..slots + sizes.overflow + near).map(|_| Entry4 { words: words() }).collect(),
            hints: (0..hint_words(slots, near)).map(|_| Word::new(0)).collect(),
            recent: (0..FEW_SOURCES + FEW_DESTINATIONS).map(|_| Line { words: words() }).collect(),
            records: (0..sizes.records).map(|_| empty_record()).collect(),
            free_records: queue(0..sizes.records),
            overflow: Mutex::default(),
            free_overflow: queue(slots..slots + sizes.overflow),
            banks: [Policy::default(), Policy::default()],
            rule_counts: Mutex::default(),
            lendable: Vec::new(),
            pairs: Mutex::default(),
            bitmaps: (0..sizes.bitmaps).map(|_| empty_ports()).collect(),
            free_bitmaps: queue(0..sizes.bitmaps),
            attachments: HashMap::new(),
            sources: HashMap::new(),
            ahead: HashMap::new(),
            carried: Vec::new(),
            glances: HashMap::new(),
            locals: HashSet::new(),
            locals6: HashSet::new(),
            links: HashMap::new(),
            routes: Vec::new(),
            neighbours: HashMap::new(),
            hops: Mutex::new(vec![Hop::default(); sizes.hops as usize]),
            hop_index: Mutex::default(),
            free_hops: queue(0..sizes.hops as u32),
            rates: (0..4096).map(|_| Word::new(0)).collect(),
            events: Mutex::default(),
            event_room: sizes.events,
            counters: Mutex::new(no_counts()),
            clock: AtomicU64::new(0),
            random: AtomicU64::new(seed),
            drawn: AtomicU64::new(NOT_DRAWN),
            fail_one_in: AtomicU32::new(0),
        };
        for (class, seconds) in [
            (Class::Udp, 300),
            (Class::Icmp, 60),
            (Class::TcpOpening, 240),
            (Class::TcpEstablished, 7_440),
            (Class::TcpClosing, 240),
            (Class::TcpClosed, 240),
            (Class::TcpReset, 240),
        ] {
            memory.set_timeout(class, seconds * 16);
        }
        memory
    }

    /// Sets the monotonic clock, in nanoseconds.
    pub fn set_clock(&self, nanoseconds: u64) {
        self.clock.store(nanoseconds, Relaxed);
    }
    /// Answers every request for random bits with these, for whoever repeats what another
    /// gateway has drawn; `None`: with those of the generator again.
    pub fn set_random(&self, bits: Option<u32>) {
        self.drawn.store(bits.map_or(NOT_DRAWN, u64::from), Relaxed);
    }
    /// Remembers nothing from one packet to the next: what is remembered is one processor's, and
    /// several are going to be at work.
    pub fn forget_recent(&mut self) {
        self.recent = Vec::new();
    }
    /// Places have changed: what was found out under the old ones counts no more.
    pub fn move_network_epoch(&mut self) {
        self.epochs[NETWORK_EPOCH as usize] += 1;
    }
    /// Lets one in so many calls that may fail do so; zero: none.
    pub fn fail_one_in(&self, calls: u32) {
        self.fail_one_in.store(calls, Relaxed);
    }
    /// The counters as they stand.
    #[must_use]
    pub fn counters(&self) -> Counters {
        *lock(&self.counters)
    }
    /// Changes the counters, as a hook does.
    pub fn count(&self, change: impl FnOnce(&mut Counters)) {
        change(&mut lock(&self.counters));
    }
    /// The events so far; they are forgotten here.
    #[must_use]
    pub fn take_events(&self) -> Vec<Event4> {
        core::mem::take(&mut lock(&self.events))
    }
    /// How often a rule decided, by its counter.
    #[must_use]
    pub fn rule_count(&self, counter: u32) -> RuleCount {
        lock(&self.rule_counts).get(&counter).copied().unwrap_or_default()
    }
    /// Every slot, window and overflow.
    #[must_use]
    pub fn slots(&self) -> &[Entry4] {
        &self.slots
    }
    /// Records that no session uses.
    #[must_use]
    pub fn records_free(&self) -> usize {
        lock(&self.free_records).len()
    }
    /// Overflow slots that no entry uses.
    #[must_use]
    pub fn overflow_free(&self) -> usize {
        lock(&self.free_overflow).len()
    }

    fn next_random(&self) -> u64 {
        // SplitMix64.
        let mut z = self.random.fetch_add(0x9e37_79b9_7f4a_7c15, Relaxed);
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn fails(&self) -> bool {
        let one_in = self.fail_one_in.load(Relaxed);
        one_in != 0 && self.next_random().is_multiple_of(one_in as u64)
    }

    fn unless_it_fails<V>(&self, value: impl FnOnce() -> Option<V>) -> Option<V> {
        if self.fails() { None } else { value() }
    }

    fn bank(&self, bank: u32) -> &Policy {
        &self.banks[bank as usize & 1]
    }
}

fn empty_record() -> Record {
    Record {
        slots: Word::new(0),
        rules: Word::new(0),
        identities: Word::new(0),
        policy: Word::new(0),
        began: Word::new(0),
        facts: Word::new(0),
        spilled: words(),
        identity: Word::new(0),
    }
}

const fn no_counts() -> Counters {
    let none = xdp_abi::count::Amount { packets: 0, bytes: 0 };
    Counters {
        received: none,
        forwarded: [none; 2],
        passed: none,
        punted: none,
        translated_late: none,
        answered: 0,
        sessions_begun: 0,
        sessions_ended: 0,
        judged_again: 0,
        events_lost: 0,
        events_suppressed: 0,
        leaks_stopped: 0,
        drops: [[0; Reason::COUNT]; 3],
    }
}

impl Repeat for Memory {}

impl Tables for Memory {
    type A = V4;

    fn config(&self) -> &Config {
        &self.config
    }
    fn shared(&self) -> &Shared {
        &self.shared
    }
    fn epoch(&self, slot: u32) -> u32 {
        self.epochs.get(slot as usize).copied().unwrap_or(0)
    }
    fn random(&self) -> u32 {
        match self.drawn.load(Relaxed) {
            NOT_DRAWN => (self.next_random() >> 32) as u32,
            drawn => drawn as u32,
        }
    }
    fn clock(&self) -> u64 {
        self.clock.load(Relaxed)
    }

    fn slot(&self, index: u32) -> Option<&Entry4> {
        self.slots.get(index as usize)
    }
    fn hints(&self, word: u32) -> Option<&Word> {
        self.hints.get(word as usize)
    }
    /// Of one processor: none, once several may be at work.
    fn recent(&self, place: u32) -> Option<&Line> {
        let place = if place < SOURCES {
            place % FEW_SOURCES
        } else {
            FEW_SOURCES + place % FEW_DESTINATIONS
        };
        self.recent.get(place as usize)
    }
    fn record(&self, index: u32) -> Option<&Record> {
        self.records.get(index as usize)
    }
    fn take_record(&self) -> Option<u32> {
        self.unless_it_fails(|| lock(&self.free_records).pop_front())
    }
    fn give_record(&self, index: u32) {
        lock(&self.free_records).push_back(index);
    }
    fn overflow(&self, key: &[u64; 2]) -> Option<u32> {
        lock(&self.overflow).get(key).copied()
    }
    fn add_overflow(&self, key: &[u64; 2], slot: u32) -> bool {
        if self.fails() {
            return false;
        }
        let mut overflow = lock(&self.overflow);
        let is_new = !overflow.contains_key(key);
        if is_new {
            overflow.insert(*key, slot);
        }
        is_new
    }
    fn remove_overflow(&self, key: &[u64; 2]) {
        lock(&self.overflow).remove(key);
    }
    fn take_overflow(&self) -> Option<u32> {
        self.unless_it_fails(|| lock(&self.free_overflow).pop_front())
    }
    fn give_overflow(&self, slot: u32) {
        lock(&self.free_overflow).push_back(slot);
    }

    fn identity(&self, bank: u32, domain: u16, address: V4) -> IdentityRef {
        let policy = self.bank(bank);
        if let Some(identity) = policy.hosts.get(&(domain, address)) {
            return *identity;
        }
        let of_domain = policy.prefixes.iter().filter(|(d, ..)| *d == domain);
        longest(of_domain.map(|(_, prefix, identity)| (*prefix, *identity)), address)
            .unwrap_or_default()
    }
    fn source_rules(&self, bank: u32, identity: u32) -> Option<&RuleSet> {
        self.unless_it_fails(|| self.bank(bank).source_rules.get(identity as usize))
    }
    fn destination_rules(&self, bank: u32, identity: u32) -> Option<&RuleSet> {
        self.unless_it_fails(|| self.bank(bank).destination_rules.get(identity as usize))
    }
    fn class(&self, bank: u32, index: u32) -> u16 {
        self.bank(bank).classes.get(index as usize).copied().unwrap_or(u16::MAX)
    }
    fn class_rules(&self, bank: u32, class: u16) -> Option<&RuleSet> {
        self.unless_it_fails(|| self.bank(bank).class_rules.get(class as usize))
    }
    fn monitors(&self, bank: u32) -> Option<&RuleSet> {
        self.unless_it_fails(|| Some(&self.bank(bank).monitors))
    }
    fn rule(&self, bank: u32, bit: u32) -> Option<Rule> {
        self.unless_it_fails(|| self.bank(bank).rules.get(bit as usize).copied())
    }
    fn count_rule(&self, counter: u32, bytes: u64) {
        let mut counts = lock(&self.rule_counts);
        let count = counts.entry(counter).or_default();
        count.hits += 1;
        count.bytes += bytes;
    }
    fn snat_bits(&self, bank: u32, identity: u32) -> Option<&SnatBits> {
        self.unless_it_fails(|| self.bank(bank).snat_bits.get(identity as usize))
    }
    fn snat(&self, bank: u32, bit: u32) -> Option<Snat> {
        self.unless_it_fails(|| self.bank(bank).snat.get(bit as usize).copied())
    }
    fn pool(&self, bank: u32, place: u32) -> Option<PoolAddress> {
        self.unless_it_fails(|| self.bank(bank).pools.get(place as usize).copied())
    }
    fn is_outside(&self, bank: u32, address: V4) -> bool {
        self.bank(bank).outside.contains(&address)
    }
    fn lendable(&self, index: u32) -> Option<&Ports> {
        self.unless_it_fails(|| self.lendable.get(index as usize))
    }
    fn bitmap(&self, pair: &PairKey4) -> Option<&Ports> {
        let number = lock(&self.pairs).get(pair).copied()?;
        self.bitmaps.get(number as usize)
    }
    fn make_hot(&self, pair: &PairKey4) -> Option<u32> {
        let mut pairs = lock(&self.pairs);
        let number = match pairs.get(pair) {
            Some(number) => *number,
            None => {
                let number = self.unless_it_fails(|| lock(&self.free_bitmaps).pop_front())?;
                self.shared.hot_pairs.fetch_add(1);
                pairs.insert(*pair, number);
                number
            }
        };
        Some(number)
    }
    fn bitmap_of(&self, number: u32) -> Option<&Ports> {
        self.bitmaps.get(number as usize)
    }

    fn domain_at_a_glance(&self, ifindex: u32, to: &[u8; 6], source: V4) -> Option<u16> {
        glance(self.glances.get(&ifindex)?, ifindex, to, source)
    }
    fn attachment_of(&self, port: u32, source: V4) -> Option<u16> {
        self.unless_it_fails(|| longest(self.sources.get(&port)?.iter().copied(), source))
    }
    fn attachment_towards(&self, port: u32, destination: V4) -> Option<u16> {
        self.unless_it_fails(|| longest(self.ahead.get(&port)?.iter().copied(), destination))
    }
    fn attachment(&self, number: u16) -> Option<Attachment> {
        let of = || self.attachments.get(&number).copied().unwrap_or(Attachment::NONE);
        self.unless_it_fails(|| (u32::from(number) < ATTACHMENTS).then(of))
    }
    fn carries(&self, attachment: u16, source: V4) -> bool {
        !self.fails() && self.carried.iter().any(|(n, p)| *n == attachment && p.contains(source))
    }
    fn is_local(&self, address: V4) -> bool {
        self.locals.contains(&address)
    }
    fn is_local6(&self, address: &[u8; 16]) -> bool {
        self.locals6.contains(address)
    }
    fn link(&self, ifindex: u32) -> Option<LinkInfo> {
        self.unless_it_fails(|| self.links.get(&ifindex).copied())
    }
    fn route(&self, _: u32, _: V4, destination: V4) -> Route {
        if self.fails() {
            return Route::Failed;
        }
        if self.locals.contains(&destination) {
            return Route::Unreachable;
        }
        let routes = self.routes.iter().map(|route| (route.to, *route));
        let Some(route) = longest(routes, destination) else { return Route::Unreachable };
        let Some(link) = self.links.get(&route.ifindex) else { return Route::Unreachable };
        let gateway = route.gateway.unwrap_or(destination);
        let [a, b, c, d] = gateway.0;
        // Unless said otherwise a neighbour is known by a name made from its address.
        let mac = self.neighbours.get(&(route.ifindex, gateway));
        let mac = mac.copied().unwrap_or(Some([0x02, 0xff, a, b, c, d]));
        Route::Via {
            ifindex: route.ifindex,
            gateway: gateway.0,
            destination_mac: mac,
            source_mac: link.mac,
            mtu: route.mtu.unwrap_or(link.mtu),
        }
    }
    fn hop(&self, number: u16) -> Option<Hop> {
        self.unless_it_fails(|| lock(&self.hops).get(number as usize).copied())
    }
    fn find_hop(&self, key: &NextHopKey) -> Option<u16> {
        lock(&self.hop_index).get(key).copied()
    }
    fn add_hop(&self, key: &NextHopKey, hop: &Hop) -> Option<u16> {
        let mut index = lock(&self.hop_index);
        if let Some(number) = index.get(key) {
            return Some(*number);
        }
        let number = self.unless_it_fails(|| lock(&self.free_hops).pop_front())?;
        self.set_hop(number, hop);
        index.insert(*key, number);
        Some(number)
    }
    fn set_hop(&self, number: u16, hop: &Hop) {
        if let Some(place) = lock(&self.hops).get_mut(number as usize) {
            *place = *hop;
        }
    }

    fn admit(&self, bucket: u32, limit: u32, now: u32) -> Option<u32> {
        admit(&self.rates[bucket as usize & (self.rates.len() - 1)], limit, now)
    }
    fn report(&self, fill: impl FnOnce(&mut Event4)) {
        let mut events = lock(&self.events);
        if events.len() < self.event_room && !self.fails() {
            let mut event = Event4::default();
            fill(&mut event);
            events.push(event);
        } else {
            lock(&self.counters).events_lost += 1;
        }
    }
    fn tally(&self, what: Tally) {
        what.count(&mut lock(&self.counters));
    }
}
