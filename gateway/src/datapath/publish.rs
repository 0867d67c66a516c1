//! A compiled policy becomes the policy in force.
//!
//! The image is written into the idle half (bank) of the policy tables, and one store swaps the
//! halves. Packets that are on their way while that happens may still read the old half, so it
//! is left alone for `GRACE` before it is written again.

use super::{
    members::{self, Change, Members, is_host},
    pairs,
    plan::{self, Lending, Pools},
    tables::{Datapath, lock},
};
use aya::maps::MapError;
use policy_compiler::{
    Action, Amendment, BitSet, DefaultAction, Egress, Identity, Image, ImageRule, ImageSnat, Log,
    PortClasses, PortRange, Protocol,
};
use smartgroups::DomainId;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
    ops::RangeInclusive,
    thread,
    time::{Duration, Instant},
};
use xdp_abi::{
    config::PolicyWord,
    policy::{
        ACTION_DENY, ACTION_PERMIT, ACTION_REJECT, CLASS_OTHER, CLASS_TABLE, CLASS_TCP, CLASS_UDP,
        HostKey4, LOG_END, LOG_START, POOL_ADDRESSES, PoolAddress, RULE_WORDS, Rule, RuleSet,
        SUMMARY_WORDS, Snat, SnatBits, banked,
    },
    port::PORT_WORDS,
};

/// How long a half of the tables is left alone after it went out of force: far longer than any
/// packet takes.
pub(super) const GRACE: Duration = Duration::from_millis(100);

/// Why a policy could not be published; the old one stays in force.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// A table of the kernel refused an entry.
    #[error("the table `{table}` refuses an entry of the new policy: {source}")]
    Table {
        /// Which.
        table: &'static str,
        /// Why.
        source: MapError,
    },
    /// More outside addresses than fit beside those in force, in tables of an older version.
    #[error(
        "the outside addresses of the SNAT policies do not fit beside those in force; the pinned \
         tables, made by an older version, have room for {room} of both together: change them in \
         two steps"
    )]
    Pools {
        /// Room.
        room: u32,
    },
    /// More outside addresses than there is room for.
    #[error("the SNAT policies name {need} outside addresses; there is room for {POOL_ADDRESSES}")]
    Pool {
        /// How many.
        need: usize,
    },
    /// More rules than there are counters: tables of an older version have one fewer than was
    /// asked for.
    #[error(
        "{need} rules need counters; the pinned tables have room for {room}: leave one out, or stop \
         the gateway, run `sluice-gateway detach` and start again"
    )]
    Counters {
        /// How many.
        need: usize,
        /// Room.
        room: u32,
    },
}

/// Publishes policies, one after the other.
#[derive(Default)]
pub struct Publisher {
    /// Who is in each bank.
    members: [Members; 2],
    /// The outside addresses in each bank.
    outside: [Vec<HostKey4>; 2],
    swapped: Option<Instant>,
    /// Rule id to counter; the default action has the first.
    counters: BTreeMap<u32, u32>,
    /// The lendable sets in use and their places in the table.
    lendings: BTreeMap<Lending, u32>,
    /// The places of those that the policy of an earlier daemon points at, while it is in force.
    foreign: BTreeSet<u32>,
    in_force: Option<InForce>,
}

/// A policy that is written and not in force yet. Nothing else may be written before it is, or is let go.
pub struct Ready {
    bank: u32,
    rule_words: u32,
    lendings: BTreeMap<Lending, u32>,
    judged_by: JudgedBy,
    ways_out: WaysOut,
    identities: Vec<Identity>,
}

/// The policy in force, and where its identities stand.
struct InForce {
    judged_by: JudgedBy,
    ways_out: WaysOut,
    bank: u32,
    /// What was stored to put it in force. Another word in the table is another policy, whoever
    /// put it there.
    word: PolicyWord,
    /// What stands in the tables, by place. A place that nobody has any more is not given out
    /// again under this policy: a session may have been judged by it.
    identities: Vec<Identity>,
    /// By index in the image and its amendments: place in the tables.
    places: Vec<u32>,
}

/// What of an image says how flows are judged, whoever there is.
struct JudgedBy {
    rules: Vec<ImageRule>,
    default_action: DefaultAction,
    snat: Vec<ImageSnat>,
    port_classes: PortClasses,
}

impl JudgedBy {
    fn of(image: &Image) -> Self {
        Self {
            rules: image.rules.clone(),
            default_action: image.default_action,
            snat: image.snat.clone(),
            port_classes: image.port_classes.clone(),
        }
    }

    fn is_of(&self, image: &Image) -> bool {
        self.rules == image.rules
            && self.default_action == image.default_action
            && self.snat == image.snat
            && self.port_classes == image.port_classes
    }
}

impl InForce {
    /// Where the identities of another image stand, those that are in the tables already where
    /// they are; the others are to stand behind them. `None`: there is no room.
    fn place(&self, identities: &[Identity], room: u32) -> Option<Vec<u32>> {
        let mut by_id: HashMap<u32, Vec<u32>> = HashMap::new();
        for (place, identity) in (0..).zip(&self.identities) {
            by_id.entry(identity.id).or_default().push(place);
        }
        let mut taken = self.identities.len() as u32;
        let mut places = Vec::with_capacity(identities.len());
        for identity in identities {
            let candidates = by_id.get(&identity.id).into_iter().flatten();
            let known = candidates.copied().find(|at| self.identities[*at as usize] == *identity);
            places.push(known.unwrap_or_else(|| {
                taken += 1;
                taken - 1
            }));
        }
        // The unknown address has the first place, whatever else changes.
        let first_stays = places.first() == Some(&0);
        (first_stays && taken <= room).then_some(places)
    }
}

/// What members have changed in the tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amended {
    /// Addresses that have another identity.
    pub hosts: Vec<(DomainId, Ipv4Addr)>,
    /// Whether a shorter prefix has: then everybody in it may.
    pub prefixes: bool,
}

impl Amended {
    fn of(changes: &[Change]) -> Self {
        let (hosts, prefixes): (Vec<_>, Vec<_>) =
            changes.iter().map(|(place, _)| *place).partition(is_host);
        let hosts = hosts.into_iter().map(|(domain, net)| (domain, net.addr())).collect();
        Self { hosts, prefixes: !prefixes.is_empty() }
    }
}

/// How ways out are numbered: see `places`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WaysOut {
    /// By interface name.
    pub interfaces: HashMap<String, u16>,
    /// By connection name.
    pub connections: HashMap<String, u16>,
}

impl Publisher {
    /// A publisher for tables that may hold a policy already, and counters that were given out.
    pub fn new(datapath: &Datapath, counters: BTreeMap<u32, u32>) -> Self {
        let mut outside: [Vec<HostKey4>; 2] = Default::default();
        for key in lock(&datapath.outside).keys().flatten() {
            outside[usize::from(key.bank & 1)].push(key);
        }
        let (members, foreign) = (Members::read(datapath), lendable_in_force(datapath));
        Self { members, outside, counters, foreign, ..Self::default() }
    }

    /// Which counter each rule has, to be kept for the next start.
    pub fn counters(&self) -> &BTreeMap<u32, u32> {
        &self.counters
    }

    /// The lendable sets in use and their places in the table.
    pub fn lendings(&self) -> &BTreeMap<Lending, u32> {
        &self.lendings
    }

    /// Finds the counters of an image's rules and the places of its outside addresses beside those
    /// in force, before anything of it is written.
    pub fn plan(&mut self, datapath: &Datapath, image: &Image) -> Result<Pools, PublishError> {
        plan::number_rules(image, &mut self.counters, datapath.counted_rules())?;
        let room = datapath.lendable.all().len() as u32;
        let pools = |foreign: &BTreeSet<u32>| plan::pools(image, &self.lendings, foreign, room);
        match pools(&self.foreign) {
            // Fewer are there in tables of an older version. A start has to come into force in any
            // case: for as long as that takes the policy before lends by sets of this one.
            Err(PublishError::Pools { .. }) if !self.foreign.is_empty() => pools(&BTreeSet::new()),
            planned => planned,
        }
    }

    /// Writes an image that was planned for, and swaps it in; [`Self::prepare`] and [`Self::swap`] in one.
    pub fn publish(
        &mut self,
        datapath: &Datapath,
        image: &Image,
        pools: Pools,
        ways_out: &WaysOut,
        reserved: &dyn Fn(Ipv4Addr) -> Vec<RangeInclusive<u16>>,
    ) -> Result<u32, PublishError> {
        let ready = self.prepare(datapath, image, pools, ways_out, reserved)?;
        Ok(self.swap(datapath, ready))
    }

    /// Writes an image that was planned for beside the policy in force. `reserved` says which ports of an
    /// address the machine itself uses.
    pub fn prepare(
        &mut self,
        datapath: &Datapath,
        image: &Image,
        pools: Pools,
        ways_out: &WaysOut,
        reserved: &dyn Fn(Ipv4Addr) -> Vec<RangeInclusive<u16>>,
    ) -> Result<Ready, PublishError> {
        let current = PolicyWord(datapath.settings().policy.load());
        let bank = current.bank() ^ 1;
        if let Some(swapped) = self.swapped {
            thread::sleep(GRACE.saturating_sub(swapped.elapsed()));
        }
        self.forget(datapath, bank);
        write_rules(datapath, image, bank, &self.counters);
        write_identities(datapath, image, bank);
        write_classes(datapath, image, bank);
        for (lending, place) in &pools.lendings {
            lend(datapath, lending, *place, &reserved(lending.address));
        }
        pairs::open_all(datapath);
        for (place, (address, lendable)) in pools.addresses.iter().enumerate() {
            let entry = PoolAddress { address: address.octets(), lendable: *lendable };
            datapath.pools.set(banked(place as u32, bank), &entry);
        }
        for (bit, policy) in image.snat.iter().enumerate() {
            let entry = lower_snat(policy, pools.places[bit], ways_out);
            datapath.snat.set(banked(bit as u32, bank), &entry);
        }
        self.write_hosts(datapath, image, bank, &pools)?;
        Ok(Ready {
            bank,
            rule_words: image.rules.len().div_ceil(64) as u32,
            lendings: pools.lendings,
            judged_by: JudgedBy::of(image),
            ways_out: ways_out.clone(),
            identities: image.identities.clone(),
        })
    }

    /// Puts what was written in force, in one step. The generation that is now in force comes back.
    pub fn swap(&mut self, datapath: &Datapath, ready: Ready) -> u32 {
        let Ready { bank, rule_words, lendings, judged_by, ways_out, identities } = ready;
        // It may have moved while that was written.
        let generation = after(PolicyWord(datapath.settings().policy.load()));
        let word = PolicyWord::new(
            generation,
            bank,
            rule_words,
            judged_by.snat.len() as u32,
            action(judged_by.default_action.action),
            log(judged_by.default_action.log),
        );
        datapath.settings().policy.store(word.0);
        // Not before: until then the sets of the policy in force are in use.
        self.lendings = lendings;
        self.foreign.clear();
        self.swapped = Some(Instant::now());
        let places = (0..identities.len() as u32).collect();
        self.in_force = Some(InForce { judged_by, ways_out, bank, word, identities, places });
        generation
    }

    /// Brings the policy in force to an image that differs from it only in who has which
    /// address, and says which addresses that were; the generation stays, and only the flows of
    /// those addresses are judged again. `None`: the image differs in more, or what is in force
    /// is not what was published here; publish it whole.
    pub fn amend(
        &mut self,
        datapath: &Datapath,
        image: &Image,
        ways_out: &WaysOut,
    ) -> Result<Option<Amended>, PublishError> {
        let Some(in_force) = &mut self.in_force else { return Ok(None) };
        if datapath.settings().policy.load() != in_force.word.0 {
            return Ok(None);
        }
        if !in_force.judged_by.is_of(image) || in_force.ways_out != *ways_out {
            return Ok(None);
        }
        let Some(places) = in_force.place(&image.identities, datapath.sizes.identities) else {
            return Ok(None);
        };
        let members = &self.members[in_force.bank as usize];
        let Some(changes) = members.differences(image, &places) else { return Ok(None) };
        let identities = places.iter().zip(&image.identities);
        let known = in_force.identities.len() as u32;
        let new = identities.filter(|(place, _)| **place >= known).map(|(_, identity)| identity);
        let new: Vec<Identity> = new.cloned().collect();
        self.write_members(datapath, new, &changes)?;
        if let Some(in_force) = &mut self.in_force {
            in_force.places = places;
        }
        Ok(Some(Amended::of(&changes)))
    }

    /// Brings in what members have changed in the image in force; the like of [`Self::amend`].
    pub fn follow(
        &mut self,
        datapath: &Datapath,
        amendment: &Amendment,
    ) -> Result<Option<Amended>, PublishError> {
        let Some(in_force) = &mut self.in_force else { return Ok(None) };
        let taken = in_force.identities.len() + amendment.identities.len();
        if datapath.settings().policy.load() != in_force.word.0
            || taken > datapath.sizes.identities as usize
        {
            return Ok(None);
        }
        let known = in_force.places.len();
        in_force.places.extend(in_force.identities.len() as u32..taken as u32);
        let entries = members::entries(&amendment.hosts, &amendment.prefixes);
        let place = |index: u32| in_force.places[index as usize];
        let changes: Vec<Change> = entries.map(|(at, index)| (at, index.map(place))).collect();
        if !self.members[in_force.bank as usize].can_take(datapath, &changes) {
            in_force.places.truncate(known);
            return Ok(None);
        }
        self.write_members(datapath, amendment.identities.clone(), &changes)?;
        Ok(Some(Amended::of(&changes)))
    }

    /// Writes who has which place now. The sets of a new identity are there before an address
    /// points at it.
    fn write_members(
        &mut self,
        datapath: &Datapath,
        new: Vec<Identity>,
        changes: &[Change],
    ) -> Result<(), PublishError> {
        let Some(InForce { bank, identities, .. }) = &mut self.in_force else { return Ok(()) };
        for identity in new {
            write_identity(datapath, &identity, identities.len() as u32, *bank);
            identities.push(identity);
        }
        self.members[*bank as usize].write(datapath, *bank, identities, changes)
    }

    /// Has every live session judged again, and its way out looked up, without a new policy.
    pub fn judge_again(&mut self, datapath: &Datapath) {
        let word = PolicyWord(datapath.settings().policy.load());
        if word.generation() != 0 {
            let again = judged_again(word);
            datapath.settings().policy.store(again.0);
            if let Some(in_force) = self.in_force.as_mut().filter(|known| known.word == word) {
                in_force.word = again;
            }
        }
    }

    /// Writes the lendable sets again, after the machine's own ports or addresses changed.
    pub fn lend_again(
        &self,
        datapath: &Datapath,
        reserved: &dyn Fn(Ipv4Addr) -> Vec<RangeInclusive<u16>>,
    ) {
        for (lending, place) in &self.lendings {
            lend(datapath, lending, *place, &reserved(lending.address));
        }
        pairs::open_all(datapath);
    }

    /// Removes what a bank held two policies ago.
    fn forget(&mut self, datapath: &Datapath, bank: u32) {
        self.members[bank as usize].clear(datapath, bank);
        let mut outside = lock(&datapath.outside);
        for key in std::mem::take(&mut self.outside[bank as usize]) {
            // It may be gone already: then there is nothing to remove.
            let _ = outside.remove(&key);
        }
    }

    fn write_hosts(
        &mut self,
        datapath: &Datapath,
        image: &Image,
        bank: u32,
        pools: &Pools,
    ) -> Result<(), PublishError> {
        let entries = members::entries(&image.hosts, &image.prefixes);
        let changes: Vec<Change> = entries.map(|(place, at)| (place, Some(at))).collect();
        self.members[bank as usize].write(datapath, bank, &image.identities, &changes)?;
        let mut outside = lock(&datapath.outside);
        for (address, _) in &pools.addresses {
            let key = HostKey4 { address: address.octets(), domain: 0, bank: bank as u16 };
            outside.insert(key, 1, 0).map_err(refused("outside"))?;
            self.outside[bank as usize].push(key);
        }
        Ok(())
    }
}

/// The places of the lendable sets that the policy in force points at.
fn lendable_in_force(datapath: &Datapath) -> BTreeSet<u32> {
    let policy = PolicyWord(datapath.settings().policy.load());
    if policy.generation() == 0 {
        return BTreeSet::new();
    }
    let policies = (0..policy.snat_policies()).map(|bit| banked(bit, policy.bank()));
    let policies = policies.filter(|place| datapath.snat.get(*place).is_some());
    let addresses = policies.map(|place| datapath.snat.read(place)).flat_map(|snat| {
        let first = u32::from(snat.pool);
        first..first + u32::from(snat.addresses)
    });
    let places = addresses.map(|place| banked(place, policy.bank()));
    let places = places.filter(|place| datapath.pools.get(*place).is_some());
    places.map(|place| datapath.pools.read(place).lendable).collect()
}

/// The generation after that of a policy; zero would say that there is none.
fn after(policy: PolicyWord) -> u32 {
    policy.generation().wrapping_add(1).max(1)
}

/// The same policy under the next generation.
fn judged_again(policy: PolicyWord) -> PolicyWord {
    PolicyWord(u64::from(after(policy)) << 32 | policy.0 & u64::from(u32::MAX))
}

fn write_rules(datapath: &Datapath, image: &Image, bank: u32, counters: &BTreeMap<u32, u32>) {
    let mut monitors = RuleSet { summary: [0; SUMMARY_WORDS], words: [0; RULE_WORDS] };
    for (bit, rule) in image.rules.iter().enumerate() {
        let entry = Rule {
            id: rule.id.0,
            counter: counters.get(&rule.id.0).copied().unwrap_or(0),
            action: action(rule.action),
            log: log(rule.log),
            monitor: u8::from(rule.monitor),
            mark: rule.mark.map_or(0, std::num::NonZero::get),
            ..Rule::default()
        };
        datapath.rules.set(banked(bit as u32, bank), &entry);
        if rule.monitor {
            monitors.words[bit / 64] |= 1 << (bit % 64);
            monitors.summary[bit / 4096] |= 1 << (bit / 64 % 64);
        }
    }
    datapath.monitors.set(bank, &monitors);
}

fn refused(table: &'static str) -> impl Fn(MapError) -> PublishError {
    move |source| PublishError::Table { table, source }
}

fn write_identities(datapath: &Datapath, image: &Image, bank: u32) {
    for (index, identity) in image.identities.iter().enumerate() {
        write_identity(datapath, identity, index as u32, bank);
    }
}

fn write_identity(datapath: &Datapath, identity: &Identity, index: u32, bank: u32) {
    let place = banked(index, bank);
    datapath.source_rules.set(place, &rule_set(&identity.source_rules));
    datapath.destination_rules.set(place, &rule_set(&identity.destination_rules));
    let mut bits = SnatBits::default();
    for (to, from) in bits.source.iter_mut().zip(identity.snat_source.words()) {
        *to = *from;
    }
    for (to, from) in bits.destination.iter_mut().zip(identity.snat_destination.words()) {
        *to = *from;
    }
    datapath.snat_bits.set(place, &bits);
}

fn write_classes(datapath: &Datapath, image: &Image, bank: u32) {
    let classes = &image.port_classes;
    for (class, rules) in classes.classes.iter().enumerate() {
        datapath.class_rules.set(banked(class as u32, bank), &rule_set(rules));
    }
    let mut table: Box<[u16; CLASS_TABLE as usize]> =
        vec![0; CLASS_TABLE as usize].try_into().expect("the vector has this length");
    for (base, ranges) in [(CLASS_TCP, &classes.tcp), (CLASS_UDP, &classes.udp)] {
        for (range, class) in ranges {
            for port in range.clone() {
                table[base as usize + usize::from(port)] = *class;
            }
        }
    }
    table[CLASS_OTHER as usize..].copy_from_slice(&classes.other);
    datapath.classes.set(bank, &table);
}

fn rule_set(bits: &BitSet) -> RuleSet {
    let mut set = RuleSet { summary: [0; SUMMARY_WORDS], words: [0; RULE_WORDS] };
    for (word, from) in bits.words().iter().enumerate() {
        set.words[word] = *from;
        if *from != 0 {
            set.summary[word / 64] |= 1 << (word % 64);
        }
    }
    set
}

fn lower_snat(policy: &ImageSnat, (pool, addresses): (u16, u16), ways: &WaysOut) -> Snat {
    let ports = |range: &Option<PortRange>| match range {
        Some(range) => [*range.start(), *range.end()],
        None => [0, u16::MAX],
    };
    // A way out that this gateway does not have matches nothing: no attachment has the number.
    let number =
        |map: &HashMap<String, u16>, name: &str| map.get(name).copied().unwrap_or(u16::MAX);
    let (interface_class, connection_class) = match &policy.egress {
        Egress::Interface(name) => (number(&ways.interfaces, name), 0),
        Egress::Connection(name) => (0, number(&ways.connections, name)),
    };
    Snat {
        id: policy.id.0,
        protocol: match policy.protocol {
            Protocol::Any => 256,
            Protocol::Number(number) => u16::from(number),
        },
        mark: policy.mark.map_or(0, std::num::NonZero::get),
        source_ports: ports(&policy.source_ports),
        destination_ports: ports(&policy.destination_ports),
        interface_class,
        connection_class,
        pool,
        addresses,
    }
}

/// Writes which ports of an address may be lent.
fn lend(datapath: &Datapath, lending: &Lending, place: u32, reserved: &[RangeInclusive<u16>]) {
    let Some(ports) = datapath.lendable.get(place) else { return };
    let words = lendable_words(lending.first, lending.last, reserved);
    for (group, summary) in ports.summary.iter().enumerate() {
        let mut bits = 0;
        for bit in 0..64 {
            let word = group * 64 + bit;
            ports.words[word].store(words[word]);
            if words[word] != 0 {
                bits |= 1 << bit;
            }
        }
        summary.store(bits);
    }
}

/// One bit a port that may be lent.
fn lendable_words(first: u16, last: u16, reserved: &[RangeInclusive<u16>]) -> Vec<u64> {
    let mut words = vec![0u64; PORT_WORDS];
    for port in first..=last {
        words[usize::from(port) / 64] |= 1 << (port % 64);
    }
    for port in reserved.iter().cloned().flatten() {
        words[usize::from(port) / 64] &= !(1 << (port % 64));
    }
    words
}

const fn action(action: Action) -> u8 {
    match action {
        Action::Permit => ACTION_PERMIT,
        Action::Deny => ACTION_DENY,
        Action::Reject => ACTION_REJECT,
    }
}

const fn log(log: Log) -> u8 {
    match log {
        Log::Off => 0,
        Log::Start => LOG_START,
        Log::End => LOG_END,
        Log::Both => LOG_START | LOG_END,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_machine_uses_itself_is_not_lent() {
        let words = lendable_words(1024, 65_535, &[32_768..=60_999, 8443..=8443]);
        let lent = |port: u16| words[usize::from(port) / 64] >> (port % 64) & 1 != 0;
        for (port, expected) in [
            (1023, false), // before the range
            (1024, true),
            (8442, true),
            (8443, false), // a listener
            (8444, true),
            (32_767, true),
            (32_768, false), // the machine's own outgoing connections
            (60_999, false),
            (61_000, true),
            (65_535, true),
        ] {
            assert_eq!(lent(port), expected, "{port}");
        }
        let count: u32 = words.iter().map(|word| word.count_ones()).sum();
        assert_eq!(count, 64_512 - 28_232 - 1);
    }

    #[test]
    fn the_generation_after_the_last_is_not_that_of_no_policy() {
        for (generation, next) in [(1, 2), (u32::MAX - 1, u32::MAX), (u32::MAX, 1)] {
            let word = |generation| PolicyWord::new(generation, 1, 3, 5, ACTION_REJECT, LOG_END);
            assert_eq!(after(word(generation)), next, "{generation}");
            assert_eq!(judged_again(word(generation)), word(next), "{generation}");
        }
    }

    #[test]
    fn a_set_of_rules_says_which_of_its_words_are_not_empty() {
        let set = rule_set(&BitSet::of(16_384, [0, 63, 64, 4096, 16_383]));
        assert_eq!(set.words[0], 1 | 1 << 63);
        assert_eq!(set.summary, [0b11, 1, 0, 1 << 63]);
    }
}
