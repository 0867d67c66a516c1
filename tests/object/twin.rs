//! The object and the core in memory, side by side: every frame goes to both, and everything
//! that came of it is compared.
//!
//! Both hold the same configuration: it is written into the kernel's tables as the daemon writes
//! it, and the core in memory is given what stands there. Four things would differ by nature, and
//! are made equal or left out:
//!
//! - **Time.** The object's clock is stopped and its tables are aged instead ([`Object::age`]);
//!   the core's clock is set. So a tick of the object plus the time that has passed is one of
//!   the core. Nanoseconds are not compared.
//! - **Random numbers** choose an outside port where the flow's own is taken. The core is given
//!   the number that leads to the port that the object chose, and judges for itself whether it
//!   may be lent and whether it is free. How long each searched is not compared, and the core is
//!   told which pairs got a bitmap by a long search. That no port is left is compared.
//! - **What is dropped** may be half written: it goes nowhere, and its bytes are not compared.
//! - **A tag that TC pushes** is not in the bytes of a test run: the kernel keeps it beside them.
//!   It is compared as part of the next hop.
//!
//! The interface that a frame is redirected to is not told by a test run either. It is part of
//! the next hop, and the tables of next hops are compared, as is which of them each session has.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use gateway::datapath::tables::lock;
use xdp::address::{Address as _, Entry as _, Key, V4};
use xdp::egress::Egress;
use xdp::memory::{Gateway, Memory, MemoryFrame, Policy, Prefix, Sizes};
use xdp::pipeline::{Fate, Hook};
use xdp::session::{Ending, end, halves, pair};
use xdp::sweep::sweep_turn;
use xdp::table;
use xdp::tables::Tables as _;
use xdp_abi::config::{PolicyWord, Shared};
use xdp_abi::control::{MARK, MARK_MASK, SWEEP_SLOTS};
use xdp_abi::count::Counters;
use xdp_abi::event::{ENDED_CLEARED, Event4, STAGE_BEFORE};
use xdp_abi::forward::{HOP_REDIRECT, PortInfo};
use xdp_abi::policy::{PoolAddress, banked};
use xdp_abi::reason::Reason;
use xdp_abi::session::{Link, Meta, State};

use crate::object::{Action, Object, Told};
use crate::stand::{Rules, Stand};
use crate::wire::sent_to;

/// A second, in ticks.
const SECOND: u32 = 16;

/// What became of a frame, as both say.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) fate: Fate,
    /// The frame as it goes on, with its tag.
    pub(crate) frame: Vec<u8>,
    /// Where it goes, if it is sent.
    pub(crate) egress: Option<u32>,
}

/// Both gateways.
pub(crate) struct Twin {
    pub(crate) object: Object,
    oracle: Gateway,
    /// Ticks since the clock was stopped.
    now: u32,
    /// The lendable sets that the core was given, by number.
    lendable: Vec<Vec<u64>>,
    /// What the object has counted so far.
    pub(crate) counters: Counters,
    /// Whether counters are compared after every frame, or with the tables only.
    pub(crate) every_count: bool,
    /// What is sent, for whoever reads of a difference.
    sent: Sent,
}

/// See [`Twin`].
#[derive(Clone, Debug)]
#[expect(dead_code, reason = "it is read by whoever reads the message of a failure")]
enum Sent {
    In { hook: Hook, ifindex: u32, mark: u32, segments: u32, frame: Vec<u8> },
    Out { ifindex: u32, punted: Option<u16>, frame: Vec<u8> },
    Sweep(u32),
    Clear(u32),
    Nothing,
}

impl Twin {
    /// Loads the object and gives the core in memory the same tables. With `window`, only so
    /// many slots of the session table are used and none is near, so that most entries overflow. Where there is
    /// room then depends on the port, so [`Rules::OnePort`] belongs to it.
    pub(crate) fn new(stand: &Stand, rules: Rules, seed: u64, window: Option<u32>) -> Result<Self> {
        let object = Object::load(stand, rules)?;
        let config = object.datapath.settings();
        config.seed.store(seed);
        if let Some(window) = window {
            let slots = config.slots.load();
            config.slots.store(slots >> 32 << 32 | u64::from(window - 1));
            let shift = &config.tick_shift;
            shift.store(u64::from(shift.load() as u32));
        }
        object.stop_clock();
        let oracle = Gateway { tables: remember(&object)?, hook: Hook::Xdp };
        let counters = object.datapath.counters()?;
        let mut twin = Self {
            object,
            oracle,
            now: 0,
            lendable: Vec::new(),
            counters,
            every_count: true,
            sent: Sent::Nothing,
        };
        twin.follow_policy()?;
        Ok(twin)
    }

    /// Puts other rules into force.
    pub(crate) fn publish(&mut self, rules: Rules) -> Result<()> {
        self.object.publish(rules)?;
        self.follow_policy()
    }

    fn follow_policy(&mut self) -> Result<()> {
        let policy = self.read_policy()?;
        self.oracle.tables.publish(policy);
        let word = self.oracle.tables.config().policy.load();
        ensure!(word == self.object.policy().0, "both count their policies alike");
        Ok(())
    }

    /// The policy that stands in the kernel's tables.
    fn read_policy(&mut self) -> Result<Policy> {
        let datapath = &self.object.datapath;
        let word = self.object.policy();
        let (bank, sizes) = (word.bank(), datapath.sizes);
        let of_bank = |n| (0..n).map(move |index| banked(index, bank));
        let mut policy = Policy {
            default_action: word.default_action(),
            default_log: word.default_log(),
            source_rules: of_bank(sizes.identities)
                .map(|n| datapath.source_rules.read(n))
                .collect(),
            destination_rules: of_bank(sizes.identities)
                .map(|n| datapath.destination_rules.read(n))
                .collect(),
            classes: datapath.classes.all()[bank as usize].to_vec(),
            class_rules: of_bank(sizes.port_classes)
                .map(|n| datapath.class_rules.read(n))
                .collect(),
            monitors: datapath.monitors.read(bank),
            rules: of_bank(64 * word.rule_words()).map(|n| datapath.rules.read(n)).collect(),
            snat_bits: of_bank(sizes.identities).map(|n| datapath.snat_bits.read(n)).collect(),
            snat: of_bank(word.snat_policies()).map(|n| datapath.snat.read(n)).collect(),
            ..Policy::default()
        };
        for row in lock(&datapath.hosts).iter() {
            let (key, identity) = row?;
            if u32::from(key.bank) == bank {
                policy.hosts.insert((key.domain, V4(key.address)), identity);
            }
        }
        for row in lock(&datapath.prefixes).iter() {
            let (key, identity) = row?;
            let data = key.data();
            if u32::from(u16::from_be_bytes(data.bank)) == bank {
                let prefix = Prefix { network: V4(data.address), bits: key.prefix_len() - 32 };
                policy.prefixes.push((u16::from_be_bytes(data.domain), prefix, identity));
            }
        }
        for row in lock(&datapath.outside).iter() {
            let (key, _) = row?;
            if u32::from(key.bank) == bank {
                policy.outside.insert(V4(key.address));
            }
        }
        let addresses = policy.snat.iter().map(|snat| u32::from(snat.pool + snat.addresses)).max();
        for place in of_bank(addresses.unwrap_or(0)) {
            let PoolAddress { address, lendable } = datapath.pools.read(place);
            let set = datapath.lendable.get(lendable).context("a lendable set out of bounds")?;
            let words: Vec<u64> = set.words.iter().map(|word| word.load()).collect();
            let known = self.lendable.iter().position(|known| *known == words);
            let number = known.unwrap_or_else(|| {
                let is_set = |port: &u16| words[usize::from(*port) / 64] >> (port % 64) & 1 != 0;
                let ports = (0..=u16::MAX).filter(is_set).map(|port| port..=port);
                self.oracle.tables.add_lendable(ports);
                self.lendable.push(words.clone());
                self.lendable.len() - 1
            });
            policy.pools.push(PoolAddress { address, lendable: number as u32 });
        }
        Ok(policy)
    }

    /// Sends a frame through the ingress program of a hook and through the core; panics where
    /// they differ. `mark` and `segments` are what a frame has beside its bytes on TC.
    pub(crate) fn send(
        &mut self,
        hook: Hook,
        ifindex: u32,
        frame: &[u8],
        (mark, segments): (u32, u32),
    ) -> Result<Outcome> {
        let frame = &sent_to(ifindex, frame);
        self.sent = Sent::In { hook, ifindex, mark, segments, frame: frame.to_vec() };
        let begun = self.object.begun();
        let ran = self.object.ingress(hook, ifindex, frame, mark, segments)?;
        let newest = if self.object.begun() == begun { None } else { Some(self.newest()?) };
        let opened = newest.map(|(_, reply)| reply);
        self.oracle.hook = hook;
        self.oracle.tables.set_random(opened.map(|reply| self.drawn(&reply)));
        let input = MemoryFrame {
            segments: if hook == Hook::Tc { segments.max(1) } else { 1 },
            ..MemoryFrame::new(frame.to_vec())
        };
        let output = self.oracle.process(ifindex, input, self.now);
        self.oracle.tables.set_random(None);
        let fate = output.fate;
        self.follow_bitmaps(opened, fate)?;
        // Where XDP cannot send to, TC does.
        let exit = match (hook, fate) {
            (Hook::Xdp, Fate::Transmit(hop, _) | Fate::Told(_, hop)) if !hop.is(HOP_REDIRECT) => {
                hop.ifindex()
            }
            _ => 0,
        };
        let action = match fate {
            Fate::Transmit(..) | Fate::Told(..) if exit != 0 => Action::Pass,
            Fate::Transmit(..) | Fate::Answered(_) | Fate::Told(..) => Action::Redirect,
            Fate::Pass | Fate::Punt(_) => Action::Pass,
            Fate::Drop(_) => Action::Drop,
            Fate::Answer(..) => panic!("an answer was left to be made: {:02x?}", self.sent),
        };
        // Where the fates differ, the counters say why.
        if self.every_count || action != ran.action {
            self.same_counters(fate)?;
        }
        self.same("action", fate, &ran.action, &action);
        // Of a packet that goes up untranslated, or nowhere, nothing else tells what was lent.
        let lent = newest.and_then(|(record, _)| self.lent_by_core(record));
        self.same("lent", fate, &opened, &lent);
        if action != Action::Drop {
            let bytes = beside_tag(hook, fate, frame, &output.frame.bytes);
            self.same("frame", fate, &ran.frame, &bytes);
            let left = match (hook, fate) {
                (_, Fate::Punt(attachment)) => MARK | u32::from(attachment),
                (Hook::Xdp, _) => {
                    if exit == 0 {
                        0
                    } else {
                        MARK
                    }
                }
                // Nobody else's mark says that a frame was punted.
                (Hook::Tc, _) => {
                    if mark & MARK_MASK == MARK {
                        0
                    } else {
                        mark
                    }
                }
            };
            self.same("mark", fate, &ran.mark, &left);
            self.same("exit", fate, &ran.exit, &exit);
        }
        self.same_events(frame, fate);
        Ok(Outcome { fate, frame: output.frame.bytes, egress: output.egress })
    }

    /// Sends a frame that an ingress hook left to the kernel through the program at an exit.
    pub(crate) fn leave(&mut self, ifindex: u32, frame: &[u8], punted: Option<u16>) -> Result<()> {
        self.sent = Sent::Out { ifindex, punted, frame: frame.to_vec() };
        let mark = punted.map_or(0, |attachment| MARK | u32::from(attachment));
        let ran = self.object.egress(ifindex, frame, mark)?;
        let mut output = MemoryFrame::new(frame.to_vec());
        let egress = self.oracle.process_egress(ifindex, &mut output, punted, self.now);
        let dropped = matches!(egress, Egress::Drop(_));
        self.same_counters(egress)?;
        let action = if dropped { Action::Drop } else { Action::Pass };
        self.same("action", egress, &ran.action, &action);
        if !dropped {
            self.same("frame", egress, &ran.frame, &output.bytes);
            self.same("mark", egress, &ran.mark, &0);
        }
        Ok(())
    }

    /// Lets seconds pass.
    pub(crate) fn pass(&mut self, seconds: u32) {
        self.object.age(seconds);
        self.now = self.now.wrapping_add(seconds * SECOND);
    }

    /// Looks at slots for sessions that are over, by the program `control` and by what it says.
    pub(crate) fn sweep(&mut self, slots: u32) -> Result<()> {
        self.sent = Sent::Sweep(slots);
        self.object.datapath.sweep(slots)?;
        let tables = &self.oracle.tables;
        let all = table::all_slots(tables.config());
        for _ in 0..slots.div_ceil(SWEEP_SLOTS) {
            let cursor = &tables.shared().sweep_cursor;
            let from = (cursor.load() % u64::from(all)) as u32;
            cursor.fetch_add(u64::from(sweep_turn(tables, from, self.now)));
        }
        self.after_order()
    }

    /// Ends the session of a record, if it is in use.
    pub(crate) fn clear(&mut self, record: u32) -> Result<()> {
        self.sent = Sent::Clear(record);
        let identity = self.object.datapath.records.get(record).context("no such record")?;
        let incarnation = (identity.identity.load() >> 32) as u32;
        self.object.datapath.clear(record, incarnation, ENDED_CLEARED)?;
        let ending = Ending::now(ENDED_CLEARED, incarnation);
        end(&self.oracle.tables, record, ending, self.now);
        self.after_order()
    }

    fn after_order(&mut self) -> Result<()> {
        self.same_counters("order")?;
        self.same_events(&[], "order");
        Ok(())
    }

    /// Says that an address has another identity.
    pub(crate) fn touch(&mut self, domain: u16, address: &str) {
        self.object.touch(domain, address);
        self.oracle.tables.amend(&[(domain, crate::stand::v4(address))], |_| {});
    }

    /// Copies every packet for `capture`, or none.
    pub(crate) fn capture(&self, on: bool) {
        for config in [self.object.datapath.settings(), self.oracle.tables.config()] {
            config.capture.store(u64::from(on));
        }
    }

    /// The record of the session that the object has just begun, and its reply key.
    fn newest(&self) -> Result<(u32, Key<V4>)> {
        let datapath = &self.object.datapath;
        let newest = self.object.begun().wrapping_sub(1);
        let is_newest = |identity: u64| (identity >> 32) as u32 == newest;
        let mut records = (0..).zip(datapath.records.all());
        let record = records.find(|(_, record)| is_newest(record.identity.load()));
        let (number, record) = record.context("the newest session has a record")?;
        let reply = datapath.slots.get(halves(record).reply).context("a slot out of bounds")?;
        Ok((number, V4::unpack(&reply.key())))
    }

    /// The reply key of the core's session of a record.
    fn lent_by_core(&self, record: u32) -> Option<Key<V4>> {
        let core = &self.oracle.tables;
        Some(V4::unpack(&core.slot(halves(core.record(record)?).reply)?.key()))
    }

    /// The random bits that lead the core to the port that the object has just lent: they are the
    /// port itself, or group, word and bit, where `xdp::snat` takes them from.
    fn drawn(&self, reply: &Key<V4>) -> u32 {
        let port = u16::from_be_bytes(reply.destination_port);
        let at_random = u32::from;
        if self.oracle.tables.bitmap(&pair(reply)).is_none() {
            return at_random(port);
        }
        let (group, word, bit) = (port >> 12, port >> 6 & 63, port & 63);
        let clear = u32::from(group) | u32::from(word) << 4 | u32::from(bit) << 10;
        // Or every bit was set, and the port is one of a session that is over: the ports are looked
        // at in a row, from the one after a random one on. Which of both it was is not known: a
        // session that the packet itself ends frees its port before it is looked for.
        let ports = |words: &[u64]| -> Vec<u16> {
            (0..=u16::MAX).filter(|p| words[usize::from(*p) / 64] >> (p % 64) & 1 != 0).collect()
        };
        // Of the sets those that are lent of this address now: another has other neighbours.
        let core = &self.oracle.tables;
        let bank = PolicyWord(core.config().policy.load()).bank();
        let set = (0..)
            .map_while(|place| core.pool(bank, place))
            .filter(|pool| pool.address == reply.destination.0)
            .filter_map(|pool| Some(ports(self.lendable.get(pool.lendable as usize)?)))
            .find(|set| set.contains(&port));
        let set = set.expect("a port that was lent may be lent");
        let before = set.iter().rev().find(|p| **p < port).or(set.last());
        clear | at_random(*before.expect("the set has this port at least")) << 16
    }

    /// Which pairs have a bitmap, and what it says of ports that were looked at in vain, depends
    /// on what was drawn: the core is told.
    fn follow_bitmaps(&self, opened: Option<Key<V4>>, fate: Fate) -> Result<()> {
        let (datapath, core) = (&self.object.datapath, &self.oracle.tables);
        let hot = |shared: &Shared| shared.hot_pairs.load();
        let pairs = lock(&datapath.pairs);
        let mut concerned: Vec<_> = opened.map(|reply| pair(&reply)).into_iter().collect();
        // A search that came to nothing leaves marks as well.
        let in_vain = matches!(
            fate,
            Fate::Drop(reason) | Fate::Answered(reason)
                if matches!(reason, Reason::PortsExhausted | Reason::TableFull | Reason::Contended)
        );
        if in_vain || hot(datapath.shared_words()) != hot(core.shared()) {
            concerned = pairs.keys().collect::<Result<_, _>>()?;
        }
        for pair in concerned {
            let Ok(number) = pairs.get(&pair, 0) else { continue };
            let from = datapath.bitmaps.get(number).context("a bitmap out of bounds")?;
            let to = core.make_hot(&pair).and_then(|number| core.bitmap_of(number));
            let to = to.context("the core has as many bitmaps")?;
            let words = from.words.iter().zip(&to.words);
            for (from, to) in words.chain(from.summary.iter().zip(&to.summary)) {
                to.store(from.load());
            }
        }
        ensure!(
            hot(datapath.shared_words()) == hot(core.shared()),
            "a pair is hot in the core only"
        );
        Ok(())
    }

    fn same<T: PartialEq + std::fmt::Debug>(
        &self,
        what: &str,
        fate: impl std::fmt::Debug,
        object: &T,
        core: &T,
    ) {
        assert!(
            object == core,
            "{what} differs\n object {object:02x?}\n core   {core:02x?}\n fate {fate:?}\n sent {:02x?}",
            self.sent
        );
    }

    fn same_counters(&mut self, fate: impl std::fmt::Debug) -> Result<()> {
        let core = self.oracle.tables.counters();
        self.counters = self.object.datapath.counters()?;
        if self.counters != core {
            self.same("count", fate, &told(&self.counters), &told(&core));
        }
        Ok(())
    }

    /// Events but for their nanoseconds; copies for `capture` show the frame that was sent.
    fn same_events(&mut self, frame: &[u8], fate: impl std::fmt::Debug) {
        let timeless = |event: Event4| Event4 { time: 0, began: 0, ..event };
        let mut events = Vec::new();
        for told in self.object.take_told() {
            match told {
                Told::Event(event) => events.push(timeless(event)),
                Told::Copy(copy) if copy.stage == STAGE_BEFORE => {
                    let length = copy.captured as usize;
                    assert!(frame.starts_with(&copy.bytes[..length]), "copy of {:02x?}", self.sent);
                    assert_eq!(copy.length as usize, frame.len(), "copy of {:02x?}", self.sent);
                }
                Told::Copy(_) => {}
            }
        }
        let core: Vec<_> = self.oracle.tables.take_events().into_iter().map(timeless).collect();
        self.same("events", fate, &events, &core);
    }

    /// Compares sessions, next hops, counters and shared words.
    pub(crate) fn compare_tables(&mut self) -> Result<()> {
        self.same_counters("all")?;
        let (datapath, core) = (&self.object.datapath, &self.oracle.tables);
        for (n, (slot, twin)) in datapath.slots.all().iter().zip(core.slots()).enumerate() {
            let mut words = [0; 8];
            for (to, from) in words.iter_mut().zip(&slot.words) {
                *to = from.load();
            }
            let meta = Meta(words[0]);
            if !meta.is(State::Free) {
                words[0] = meta.with_tick(meta.tick().wrapping_add(self.now)).0;
            }
            let twin = twin.words.each_ref().map(|word| word.load());
            self.same(&format!("slot {n}"), Link(twin[5]).record(), &words, &twin);
        }
        for (n, record) in (0..).zip(datapath.records.all()) {
            let words = |record: &xdp_abi::session::Record| {
                let [s0, s1, s2, s3] = record.spilled.each_ref().map(|word| word.load());
                let plain = [
                    &record.slots,
                    &record.rules,
                    &record.identities,
                    &record.policy,
                    &record.facts,
                ];
                let [slots, rules, identities, policy, facts] = plain.map(|word| word.load());
                let identity = record.identity.load();
                [slots, rules, identities, policy, facts, s0, s1, s2, s3, identity]
            };
            let twin = core.record(n).context("the core has as many records")?;
            self.same(&format!("record {n}"), "", &words(record), &words(twin));
        }
        for (n, hop) in (0..).zip(datapath.hops.all()) {
            let mut words = hop.words.each_ref().map(|word| word.load());
            if words[3] != 0 {
                let tick = (words[3] as u32).wrapping_add(self.now);
                words[3] = words[3] >> 32 << 32 | u64::from(tick);
            }
            let twin = core.hop(n).context("the core has as many next hops")?;
            let twin = [twin.destination, twin.source, twin.place, twin.checked];
            self.same(&format!("next hop {n}"), "", &words, &twin);
        }
        for (n, count) in (0..).zip(datapath.rule_counts()?) {
            self.same(&format!("counter {n}"), "", &count, &core.rule_count(n));
        }
        let shared = |shared: &Shared| {
            [&shared.overflowed, &shared.sweep_cursor, &shared.incarnation].map(|word| word.load())
        };
        self.same("shared words", "", &shared(datapath.shared_words()), &shared(core.shared()));
        Ok(())
    }
}

/// The bytes of a frame without a tag that TC has just pushed.
fn beside_tag(hook: Hook, fate: Fate, sent: &[u8], bytes: &[u8]) -> Vec<u8> {
    let had = (sent[12..14] == [0x81, 0]).then(|| u16::from_be_bytes([sent[14], sent[15]]) & 0xfff);
    let pushed = match (hook, fate) {
        // A tag that only carries a priority becomes the tag, and the right one stays.
        (Hook::Tc, Fate::Transmit(hop, _)) if hop.vlan() != 0 => {
            had.is_none_or(|had| had != 0 && had != hop.vlan())
        }
        _ => false,
    };
    if pushed { [&bytes[..12], &bytes[16..]].concat() } else { bytes.to_vec() }
}

/// Counters that are not zero.
fn told(counters: &Counters) -> BTreeMap<String, u64> {
    let c = counters;
    let mut rows = BTreeMap::new();
    for (name, amount) in [
        ("received", c.received),
        ("forwarded", c.forwarded[0]),
        ("answers forwarded", c.forwarded[1]),
        ("passed", c.passed),
        ("punted", c.punted),
        ("translated late", c.translated_late),
    ] {
        rows.insert(name.to_owned(), amount.packets);
        rows.insert(format!("{name}, bytes"), amount.bytes);
    }
    for (name, count) in [
        ("answered", c.answered),
        ("begun", c.sessions_begun),
        ("ended", c.sessions_ended),
        ("judged again", c.judged_again),
        ("events lost", c.events_lost),
        ("events suppressed", c.events_suppressed),
        ("leaks stopped", c.leaks_stopped),
    ] {
        rows.insert(name.to_owned(), count);
    }
    for (direction, by_reason) in c.drops.iter().enumerate() {
        for reason in Reason::ALL {
            rows.insert(format!("{direction} {}", reason.name()), by_reason[reason as usize]);
        }
    }
    rows.retain(|_, count| *count != 0);
    rows
}

/// The places and settings that stand in the kernel's tables, in memory.
fn remember(object: &Object) -> Result<Memory> {
    let datapath = &object.datapath;
    let sizes = datapath.sizes;
    let mut memory = Memory::new(
        Sizes {
            slots: sizes.window_slots(),
            records: sizes.sessions,
            overflow: sizes.overflow_slots(),
            bitmaps: sizes.bitmaps(),
            hops: u16::try_from(sizes.next_hops)?,
            events: 65_536,
        },
        1,
    );
    Stand::route(&mut memory);
    for row in lock(&datapath.links).iter() {
        let (ifindex, link) = row?;
        memory.set_link(ifindex, link);
    }
    for number in object.places.attachments.keys() {
        memory.set_attachment(*number, datapath.attachments.read(u32::from(*number)));
    }
    let prefix = |key: &aya::maps::lpm_trie::Key<xdp_abi::forward::PortAddress4>| {
        let data = key.data();
        let prefix = Prefix { network: V4(data.address), bits: key.prefix_len() - 32 };
        (u32::from_be_bytes(data.port), prefix)
    };
    for row in lock(&datapath.sources).iter() {
        let (key, number) = row?;
        let (place, prefix) = prefix(&key);
        memory.add_source(place, prefix, u16::try_from(number)?);
    }
    for row in lock(&datapath.routes).iter() {
        let (key, number) = row?;
        let (place, prefix) = prefix(&key);
        memory.add_route_ahead(place, prefix, u16::try_from(number)?);
    }
    for row in lock(&datapath.carries).iter() {
        let (attachment, prefix) = prefix(&row?.0);
        memory.add_carried(u16::try_from(attachment)?, prefix);
    }
    for info in datapath.ports.all().iter().filter(|info| **info != PortInfo::default()) {
        memory.set_glance(*info);
    }
    for address in lock(&datapath.locals).keys() {
        memory.add_local(V4(address?));
    }
    for address in lock(&datapath.locals6).keys() {
        memory.add_local6(address?);
    }
    let (from, to) = (datapath.settings(), memory.config());
    for (from, to) in [
        (&from.seed, &to.seed),
        (&from.slots, &to.slots),
        (&from.rest, &to.rest),
        (&from.midstream, &to.midstream),
        (&from.rates, &to.rates),
    ] {
        to.store(from.load());
    }
    let near = from.tick_shift.load() >> 32 << 32;
    to.tick_shift.store(near | u64::from(to.tick_shift.load() as u32));
    for (from, to) in from.timeouts.iter().zip(&to.timeouts) {
        to.store(from.load());
    }
    for (from, to) in from.non_routable.iter().zip(&to.non_routable) {
        to.store(from.load());
    }
    memory.shared().incarnation.store(datapath.shared_words().incarnation.load());
    Ok(memory)
}
