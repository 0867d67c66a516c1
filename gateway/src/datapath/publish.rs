//! A compiled policy becomes the policy in force.
//!
//! The image is written into the idle half (bank) of the policy tables, and one store swaps the
//! halves. Packets that are on their way while that happens may still read the old half, so it
//! is left alone for `GRACE` before it is written again.

use super::{
    pairs,
    plan::{self, Lending, Pools},
    tables::{Datapath, lock, prefix_key},
};
use aya::maps::{MapError, lpm_trie::Key};
use ipnet::{IpNet, Ipv4Net};
use policy_compiler::{
    Action, Amendment, BitSet, DefaultAction, Egress, Identity, Image, ImageRule, ImageSnat, Log,
    PortClasses, PortRange, Protocol,
};
use smartgroups::DomainId;
use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    net::{IpAddr, Ipv4Addr},
    ops::RangeInclusive,
    thread,
    time::{Duration, Instant},
};
use xdp_abi::{
    config::PolicyWord,
    policy::{
        ACTION_DENY, ACTION_PERMIT, ACTION_REJECT, CLASS_OTHER, CLASS_TABLE, CLASS_TCP, CLASS_UDP,
        HostKey4, IdentityRef, LOG_END, LOG_START, POOL_ADDRESSES, PoolAddress, PrefixKey4,
        RULE_WORDS, Rule, RuleSet, SUMMARY_WORDS, Snat, SnatBits, banked,
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
    /// What each bank holds in the hash maps.
    written: [Written; 2],
    swapped: Option<Instant>,
    /// Rule id to counter; the default action has the first.
    counters: BTreeMap<u32, u32>,
    /// The lendable sets in use and their places in the table.
    lendings: BTreeMap<Lending, u32>,
    in_force: Option<InForce>,
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
    fn of(hosts: &[ChangedHost], prefixes: &[ChangedPrefix]) -> Self {
        let hosts = hosts.iter().map(|(host, _)| *host).collect();
        Self { hosts, prefixes: !prefixes.is_empty() }
    }
}

/// An address and the place that it has now, if any.
type ChangedHost = ((DomainId, Ipv4Addr), Option<u32>);
type ChangedPrefix = ((DomainId, Ipv4Net), Option<u32>);

/// What a bank holds, members with the places of their identities.
#[derive(Default)]
struct Written {
    hosts: HashMap<(DomainId, Ipv4Addr), u32>,
    prefixes: HashMap<(DomainId, Ipv4Net), u32>,
    outside: Vec<HostKey4>,
}

impl Written {
    /// Writes who has which place now; `identities` are there already, by place. Each address has
    /// either the old or the new one. Who leaves makes room first. What was written is known also if not
    /// all of it could be: then it can be taken back.
    fn write(
        &mut self,
        datapath: &Datapath,
        bank: u32,
        identities: &[Identity],
        hosts: &[ChangedHost],
        prefixes: &[ChangedPrefix],
    ) -> Result<(), PublishError> {
        let reference = |index: u32| IdentityRef { index, id: identities[index as usize].id };
        let mut table = lock(&datapath.hosts);
        for (host, place) in leaving_first(hosts) {
            let key = host_key(*host, bank);
            match place {
                Some(place) => {
                    table.insert(key, reference(*place), 0).map_err(refused("endpoints"))?;
                    self.hosts.insert(*host, *place);
                }
                None => {
                    // It may be gone already: then there is nothing to remove.
                    let _ = table.remove(&key);
                    self.hosts.remove(host);
                }
            }
        }
        let mut table = lock(&datapath.prefixes);
        for (prefix, place) in leaving_first(prefixes) {
            let key = prefix_key4(*prefix, bank);
            match place {
                Some(place) => {
                    table.insert(&key, reference(*place), 0).map_err(refused("prefixes"))?;
                    self.prefixes.insert(*prefix, *place);
                }
                None => {
                    let _ = table.remove(&key);
                    self.prefixes.remove(prefix);
                }
            }
        }
        Ok(())
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
        let mut written: [Written; 2] = Default::default();
        let bank_of = |bank: u16| usize::from(bank & 1);
        for (key, identity) in lock(&datapath.hosts).iter().flatten() {
            let host = (DomainId(key.domain), key.address.into());
            written[bank_of(key.bank)].hosts.insert(host, identity.index);
        }
        for key in lock(&datapath.outside).keys().flatten() {
            written[bank_of(key.bank)].outside.push(key);
        }
        for (key, identity) in lock(&datapath.prefixes).iter().flatten() {
            let PrefixKey4 { bank, domain, address } = key.data();
            let Some(length) = key.prefix_len().checked_sub(FIXED) else { continue };
            let prefix = Ipv4Net::new(address.into(), length as u8);
            let domain = DomainId(u16::from_be_bytes(domain));
            let bank = bank_of(u16::from_be_bytes(bank));
            let written = &mut written[bank].prefixes;
            written.extend(prefix.map(|prefix| ((domain, prefix), identity.index)));
        }
        Self { written, swapped: None, counters, lendings: BTreeMap::new(), in_force: None }
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
        plan::pools(image, &self.lendings, datapath.lendable.all().len() as u32)
    }

    /// Writes an image that was planned for, and swaps it in. `reserved` says which ports of an address the machine
    /// itself uses. The generation that is now in force comes back.
    pub fn publish(
        &mut self,
        datapath: &Datapath,
        image: &Image,
        pools: Pools,
        ways_out: &WaysOut,
        reserved: &dyn Fn(Ipv4Addr) -> Vec<RangeInclusive<u16>>,
    ) -> Result<u32, PublishError> {
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
        let generation = after(current);
        let word = PolicyWord::new(
            generation,
            bank,
            image.rules.len().div_ceil(64) as u32,
            image.snat.len() as u32,
            action(image.default_action.action),
            log(image.default_action.log),
        );
        datapath.settings().policy.store(word.0);
        // Not before: until then the sets of the policy in force are in use.
        self.lendings = pools.lendings;
        self.swapped = Some(Instant::now());
        self.in_force = Some(InForce {
            judged_by: JudgedBy::of(image),
            ways_out: ways_out.clone(),
            bank,
            word,
            identities: image.identities.clone(),
            places: (0..image.identities.len() as u32).collect(),
        });
        Ok(generation)
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
        let hosts: HashMap<_, u32> =
            hosts4(&image.hosts).map(|(host, index)| (host, places[index as usize])).collect();
        let prefixes: HashMap<_, u32> = prefixes4(&image.prefixes)
            .map(|(prefix, index)| (prefix, places[index as usize]))
            .collect();
        let written = &self.written[in_force.bank as usize];
        // Whoever states other prefixes means all of them at once.
        if written.prefixes != prefixes {
            return Ok(None);
        }
        let hosts = differences(&written.hosts, &hosts);
        let identities = places.iter().zip(&image.identities);
        let known = in_force.identities.len() as u32;
        let new = identities.filter(|(place, _)| **place >= known).map(|(_, identity)| identity);
        let new: Vec<Identity> = new.cloned().collect();
        self.write_members(datapath, new, &hosts, &[])?;
        if let Some(in_force) = &mut self.in_force {
            in_force.places = places;
        }
        Ok(Some(Amended::of(&hosts, &[])))
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
        in_force.places.extend(in_force.identities.len() as u32..taken as u32);
        let place = |index: &Option<u32>| index.map(|index| in_force.places[index as usize]);
        let hosts = amendment.hosts.iter().filter_map(|(domain, address, index)| {
            let IpAddr::V4(address) = address else { return None };
            Some(((*domain, *address), place(index)))
        });
        let prefixes = amendment.prefixes.iter().filter_map(|(domain, prefix, index)| {
            let IpNet::V4(prefix) = prefix else { return None };
            Some(((*domain, *prefix), place(index)))
        });
        let (hosts, prefixes): (Vec<_>, Vec<_>) = (hosts.collect(), prefixes.collect());
        self.write_members(datapath, amendment.identities.clone(), &hosts, &prefixes)?;
        Ok(Some(Amended::of(&hosts, &prefixes)))
    }

    /// Writes who has which place now. The sets of a new identity are there before an address
    /// points at it.
    fn write_members(
        &mut self,
        datapath: &Datapath,
        new: Vec<Identity>,
        hosts: &[ChangedHost],
        prefixes: &[ChangedPrefix],
    ) -> Result<(), PublishError> {
        let Some(InForce { bank, identities, .. }) = &mut self.in_force else { return Ok(()) };
        for identity in new {
            write_identity(datapath, &identity, identities.len() as u32, *bank);
            identities.push(identity);
        }
        self.written[*bank as usize].write(datapath, *bank, identities, hosts, prefixes)
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
        let written = std::mem::take(&mut self.written[bank as usize]);
        let mut hosts = lock(&datapath.hosts);
        for host in written.hosts.keys() {
            // It may be gone already: then there is nothing to remove.
            let _ = hosts.remove(&host_key(*host, bank));
        }
        let mut outside = lock(&datapath.outside);
        for key in &written.outside {
            let _ = outside.remove(key);
        }
        let mut prefixes = lock(&datapath.prefixes);
        for prefix in written.prefixes.keys() {
            let _ = prefixes.remove(&prefix_key4(*prefix, bank));
        }
    }

    fn write_hosts(
        &mut self,
        datapath: &Datapath,
        image: &Image,
        bank: u32,
        pools: &Pools,
    ) -> Result<(), PublishError> {
        let written = &mut self.written[bank as usize];
        let hosts: Vec<_> = hosts4(&image.hosts).map(|(host, at)| (host, Some(at))).collect();
        let prefixes: Vec<_> =
            prefixes4(&image.prefixes).map(|(net, at)| (net, Some(at))).collect();
        written.write(datapath, bank, &image.identities, &hosts, &prefixes)?;
        let mut outside = lock(&datapath.outside);
        for (address, _) in &pools.addresses {
            let key = HostKey4 { address: address.octets(), domain: 0, bank: bank as u16 };
            outside.insert(key, 1, 0).map_err(refused("outside"))?;
            written.outside.push(key);
        }
        Ok(())
    }
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

/// The bits of a prefix's key before its address, which match whole.
const FIXED: u32 = 32;

fn host_key((domain, address): (DomainId, Ipv4Addr), bank: u32) -> HostKey4 {
    HostKey4 { address: address.octets(), domain: domain.0, bank: bank as u16 }
}

fn prefix_key4((domain, prefix): (DomainId, Ipv4Net), bank: u32) -> Key<PrefixKey4> {
    let key = PrefixKey4 {
        bank: (bank as u16).to_be_bytes(),
        domain: domain.0.to_be_bytes(),
        address: prefix.network().octets(),
    };
    prefix_key(FIXED, prefix.prefix_len(), key)
}

/// Of a table the addresses that this one is about.
fn hosts4(hosts: &[(DomainId, IpAddr, u32)]) -> impl Iterator<Item = ((DomainId, Ipv4Addr), u32)> {
    hosts.iter().filter_map(|(domain, address, index)| match address {
        IpAddr::V4(address) => Some(((*domain, *address), *index)),
        IpAddr::V6(_) => None,
    })
}

fn prefixes4(
    prefixes: &[(DomainId, IpNet, u32)],
) -> impl Iterator<Item = ((DomainId, Ipv4Net), u32)> {
    prefixes.iter().filter_map(|(domain, prefix, index)| match prefix {
        IpNet::V4(prefix) => Some(((*domain, *prefix), *index)),
        IpNet::V6(_) => None,
    })
}

/// What has to change for a table to become another.
fn differences<K: Copy + Eq + Hash>(
    old: &HashMap<K, u32>,
    new: &HashMap<K, u32>,
) -> Vec<(K, Option<u32>)> {
    let gone = old.keys().filter(|key| !new.contains_key(key)).map(|key| (*key, None));
    let changed = new.iter().filter(|(key, place)| old.get(key) != Some(place));
    changed.map(|(key, place)| (*key, Some(*place))).chain(gone).collect()
}

fn leaving_first<K>(changed: &[(K, Option<u32>)]) -> impl Iterator<Item = &(K, Option<u32>)> {
    let leaving = changed.iter().filter(|(_, place)| place.is_none());
    leaving.chain(changed.iter().filter(|(_, place)| place.is_some()))
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
