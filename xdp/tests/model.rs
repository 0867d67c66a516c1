//! The protocol of the session table and of the port bitmaps, in every order that two or three
//! processors can run it in: the very functions of the core, over words that loom watches.
//!
//! ```sh
//! RUSTFLAGS="--cfg loom" cargo test -p xdp --test model --release --target-dir target/loom
//! ```
//!
//! Under `--cfg loom` a key has one near slot, a window two, and a port set 64 words; the claims
//! that depend on it are shown for a table without near slots too. Each run is bounded to a few
//! preemptions, which is where such bugs are: two of them need two, one needs three.
#![cfg(loom)]

use loom::{model::Builder, sync::Mutex, thread};
use std::sync::Arc;
use xdp::{
    address::{Address, Entry, Key, Rewrite, V4},
    established,
    recent::Line,
    repeat::Repeat,
    session::{Ended, Ending, LEASED, end, halves},
    snat,
    table::{self, Claim},
    tables::{Route, Tables, Tally},
};
use xdp_abi::{
    config::{Config, HINTED, Shared},
    event::Event4,
    forward::{Attachment, HOP_RESOLVED, Hop, LinkInfo, NextHopKey},
    policy::{IdentityRef, PoolAddress, Rule, RuleSet, Snat, SnatBits},
    port::{PairKey4, Ports},
    reason::Reason,
    session::{Class, Entry4, Link, Meta, NEAR, Record, Stamp, State, WINDOW},
    word::Word,
};

const WINDOW_SLOTS: u32 = WINDOW;
const OVERFLOW_SLOTS: u32 = 2;
/// Behind those of overflow, in a table that has near slots.
const NEAR_SLOT: u32 = WINDOW_SLOTS + OVERFLOW_SLOTS;
const HINT_WORDS: usize = table::hint_words(WINDOW_SLOTS, NEAR) as usize;
/// A UDP session is kept so long.
const TIMEOUT: u32 = 10;
/// What tells the first session of a table from those after it.
const FIRST: u32 = 5;

/// Only what the protocol needs.
struct Tiny {
    config: Config,
    shared: Shared,
    slots: Vec<Entry4>,
    hints: [Word; HINT_WORDS],
    records: Vec<Record>,
    free_records: Mutex<Vec<u32>>,
    overflow: Mutex<Vec<([u64; 2], u32)>>,
    free_overflow: Mutex<Vec<u32>>,
    lendable: Ports,
    bitmap: Option<Ports>,
}

fn words<const N: usize>() -> [Word; N] {
    core::array::from_fn(|_| Word::new(0))
}

fn ports() -> Ports {
    Ports { summary: words(), words: words() }
}

impl Tiny {
    fn new(hot: bool) -> Self {
        Self::with_near(NEAR, hot)
    }

    /// A table with so many near slots, at most [`NEAR`].
    fn with_near(near: u32, hot: bool) -> Self {
        let config = Config {
            policy: Word::new(1 << 32),
            seed: Word::new(7),
            slots: Word::new((OVERFLOW_SLOTS as u64) << 32 | WINDOW_SLOTS as u64 - 1),
            tick_shift: Word::new((near as u64) << 32 | HINTED),
            timeouts: words(),
            rest: Word::new(0),
            non_routable: words(),
            midstream: Word::new(0),
            rates: Word::new(0),
            abi: Word::new(0),
            capture: Word::new(0),
            capture_address: Word::new(0),
            capture_ports: Word::new(0),
        };
        config.timeouts[0].store((TIMEOUT as u64) << 32);
        let shared = Shared {
            overflowed: Word::new(0),
            hot_pairs: Word::new(hot as u64),
            sweep_cursor: Word::new(0),
            incarnation: Word::new(FIRST as u64),
            capture_seen: Word::new(0),
            port_steps_max: Word::new(u64::MAX),
            jiffies: Word::new(0),
            nanoseconds: Word::new(0),
        };
        let record = || Record {
            slots: Word::new(0),
            rules: Word::new(0),
            identities: Word::new(0),
            policy: Word::new(0),
            began: Word::new(0),
            facts: Word::new(0),
            spilled: words(),
            identity: Word::new(0),
        };
        Self {
            config,
            shared,
            slots: (0..NEAR_SLOT + near).map(|_| Entry4 { words: words() }).collect(),
            hints: words(),
            records: (0..3).map(|_| record()).collect(),
            free_records: Mutex::new(Vec::new()),
            overflow: Mutex::new(Vec::new()),
            free_overflow: Mutex::new((WINDOW_SLOTS..NEAR_SLOT).collect()),
            lendable: ports(),
            bitmap: hot.then(ports),
        }
    }

    /// One port may be lent, and all others of its word are.
    fn lend_only(&self, port: u16) {
        if let Some(bitmap) = &self.bitmap {
            bitmap.words[port as usize >> 6].store(!(1 << (port & 63)));
        }
        self.lendable.words[port as usize >> 6].store(1 << (port & 63));
        self.lendable.summary[0].store(1 << (port >> 6));
    }

    fn state(&self, index: u32) -> Meta {
        self.slots[index as usize].load_meta()
    }

    /// How many live entries have a key; nothing may be left half way.
    fn count(&self, key: &Key<V4>) -> usize {
        let mut count = 0;
        for index in 0..self.slots.len() as u32 {
            let meta = self.state(index);
            assert!(meta.is(State::Free) || meta.is(State::Live), "slot {index}: {meta:?}");
            if meta.is(State::Live) && self.slots[index as usize].key() == V4::pack(key) {
                count += 1;
            }
        }
        count
    }

    fn fill(&self, forward: u32, reply: u32, number: u32, key: &Key<V4>, now: u32, leased: bool) {
        // What `open` writes between claiming and publishing.
        for (index, is_reply) in [(forward, false), (reply, true)] {
            let entry = &self.slots[index as usize];
            entry.set_rewrite(&mark(key, is_reply));
            entry.link().store(Link::new(number, 0, is_reply).0);
            entry.stamp().store(Stamp::new(1, 0, 0).0);
        }
        let record = &self.records[number as usize];
        record.slots.store((forward as u64) << 32 | reply as u64);
        let incarnation = self.shared.incarnation.fetch_add(1);
        record.identity.store(incarnation << 32 | if leased { LEASED } else { 0 });
        table::publish(self, forward, Class::Udp, 0, now);
        table::publish(self, reply, Class::Udp, 0, now);
    }

    /// Opens a session as `open` does.
    fn open(&self, key: &Key<V4>, number: u32, now: u32) -> bool {
        let Claim::Taken(forward) = table::claim(self, &V4::pack(key)) else { return false };
        let Claim::Taken(reply) = table::claim(self, &V4::pack(&back(key))) else {
            table::release(self, forward);
            return false;
        };
        self.fill(forward, reply, number, key, now, false);
        true
    }
}

impl Repeat for Tiny {}

impl Tables for Tiny {
    type A = V4;

    fn config(&self) -> &Config {
        &self.config
    }
    fn shared(&self) -> &Shared {
        &self.shared
    }
    fn epoch(&self, _: u32) -> u32 {
        0
    }
    fn random(&self) -> u32 {
        0
    }
    fn clock(&self) -> u64 {
        0
    }
    fn slot(&self, index: u32) -> Option<&Entry4> {
        self.slots.get(index as usize)
    }
    fn recent(&self, _: u32) -> Option<&Line> {
        None
    }
    fn hints(&self, word: u32) -> Option<&Word> {
        self.hints.get(word as usize)
    }
    fn record(&self, index: u32) -> Option<&Record> {
        self.records.get(index as usize)
    }
    fn take_record(&self) -> Option<u32> {
        self.free_records.lock().unwrap().pop()
    }
    fn give_record(&self, index: u32) {
        self.free_records.lock().unwrap().push(index);
    }
    fn overflow(&self, key: &[u64; 2]) -> Option<u32> {
        self.overflow.lock().unwrap().iter().find(|(k, _)| k == key).map(|(_, slot)| *slot)
    }
    fn add_overflow(&self, key: &[u64; 2], slot: u32) -> bool {
        let mut overflow = self.overflow.lock().unwrap();
        let is_new = overflow.iter().all(|(k, _)| k != key);
        if is_new {
            overflow.push((*key, slot));
        }
        is_new
    }
    fn remove_overflow(&self, key: &[u64; 2]) {
        self.overflow.lock().unwrap().retain(|(k, _)| k != key);
    }
    fn take_overflow(&self) -> Option<u32> {
        self.free_overflow.lock().unwrap().pop()
    }
    fn give_overflow(&self, slot: u32) {
        self.free_overflow.lock().unwrap().push(slot);
    }
    fn lendable(&self, _: u32) -> Option<&Ports> {
        Some(&self.lendable)
    }
    fn bitmap(&self, _: &PairKey4) -> Option<&Ports> {
        self.bitmap.as_ref()
    }
    fn make_hot(&self, _: &PairKey4) -> Option<u32> {
        self.bitmap.as_ref().map(|_| 0)
    }
    fn bitmap_of(&self, _: u32) -> Option<&Ports> {
        self.bitmap.as_ref()
    }
    fn hop(&self, _: u16) -> Option<Hop> {
        Some(Hop { source: 1500, place: HOP_RESOLVED as u64, ..Hop::default() })
    }
    fn report(&self, _: impl FnOnce(&mut Event4)) {}
    fn tally(&self, _: Tally) {}

    // The protocol asks for nothing of this.
    fn identity(&self, _: u32, _: u16, _: V4) -> IdentityRef {
        unreachable!()
    }
    fn source_rules(&self, _: u32, _: u32) -> Option<&RuleSet> {
        unreachable!()
    }
    fn destination_rules(&self, _: u32, _: u32) -> Option<&RuleSet> {
        unreachable!()
    }
    fn class(&self, _: u32, _: u32) -> u16 {
        unreachable!()
    }
    fn class_rules(&self, _: u32, _: u16) -> Option<&RuleSet> {
        unreachable!()
    }
    fn monitors(&self, _: u32) -> Option<&RuleSet> {
        unreachable!()
    }
    fn rule(&self, _: u32, _: u32) -> Option<Rule> {
        unreachable!()
    }
    fn count_rule(&self, _: u32, _: u64) {
        unreachable!()
    }
    fn snat_bits(&self, _: u32, _: u32) -> Option<&SnatBits> {
        unreachable!()
    }
    fn snat(&self, _: u32, _: u32) -> Option<Snat> {
        unreachable!()
    }
    fn pool(&self, _: u32, _: u32) -> Option<PoolAddress> {
        unreachable!()
    }
    fn is_outside(&self, _: u32, _: V4) -> bool {
        unreachable!()
    }
    fn domain_at_a_glance(&self, _: u32, _: &[u8; 6], _: V4) -> Option<u16> {
        unreachable!()
    }
    fn attachment_of(&self, _: u32, _: V4) -> Option<u16> {
        unreachable!()
    }
    fn attachment_towards(&self, _: u32, _: V4) -> Option<u16> {
        unreachable!()
    }
    fn attachment(&self, _: u16) -> Option<Attachment> {
        unreachable!()
    }
    fn carries(&self, _: u16, _: V4) -> bool {
        unreachable!()
    }
    fn is_local(&self, _: V4) -> bool {
        unreachable!()
    }
    fn is_local6(&self, _: &[u8; 16]) -> bool {
        unreachable!()
    }
    fn link(&self, _: u32) -> Option<LinkInfo> {
        unreachable!()
    }
    fn route(&self, _: u32, _: V4, _: V4) -> Route {
        unreachable!()
    }
    fn find_hop(&self, _: &NextHopKey) -> Option<u16> {
        unreachable!()
    }
    fn add_hop(&self, _: &NextHopKey, _: &Hop) -> Option<u16> {
        unreachable!()
    }
    fn set_hop(&self, _: u16, _: &Hop) {
        unreachable!()
    }
    fn admit(&self, _: u32, _: u32, _: u32) -> Option<u32> {
        None
    }
}

fn key(n: u8) -> Key<V4> {
    Key {
        source: V4([100, 64, 0, n]),
        destination: V4([198, 51, 100, 9]),
        source_port: [1, n],
        destination_port: [1, 187],
        domain: 1,
        protocol: 17,
    }
}

fn back(key: &Key<V4>) -> Key<V4> {
    key.reversed(0)
}

/// A rewrite that tells whose it is, in each of its words.
fn mark(key: &Key<V4>, reply: bool) -> Rewrite<V4> {
    let n = key.source.0[3];
    Rewrite {
        source: V4([9, 9, reply as u8, n]),
        destination: V4([9, 9, reply as u8, n]),
        source_port: [reply as u8, n],
        destination_port: [reply as u8, n],
        address_delta: n as u16,
        transport_delta: n as u16,
    }
}

fn check(preemptions: usize, run: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 10_000;
    builder.check(run);
}

/// Two insert a key at the same time, where so many slots of its home are taken.
fn insert_twice(near: u32, taken: u32) {
    check(3, move || {
        let t = Arc::new(Tiny::with_near(near, false));
        for n in 0..taken {
            let Claim::Taken(index) = table::claim(&*t, &V4::pack(&key(50 + n as u8))) else {
                panic!()
            };
            table::publish(&*t, index, Class::Udp, 0, 1);
        }
        let insert = |t: &Tiny| match table::claim(t, &V4::pack(&key(1))) {
            Claim::Taken(index) => {
                table::publish(t, index, Class::Udp, 0, 1);
                true
            }
            Claim::Contended => false,
            Claim::NoRoom => panic!("there is room for both"),
        };
        let other = {
            let t = t.clone();
            thread::spawn(move || insert(&t))
        };
        let mine = insert(&t);
        let theirs = other.join().unwrap();
        assert!(!(mine && theirs));
        assert_eq!(t.count(&key(1)), usize::from(mine || theirs));
        // Whoever failed left nothing behind: there is a way in now.
        assert_eq!(table::claim(&*t, &V4::pack(&key(1))) == Claim::Contended, mine || theirs);
    });
}

#[test]
fn a_key_never_lives_twice() {
    // With room in the window for both; for one of the two; for none.
    for taken in 0..=WINDOW_SLOTS {
        insert_twice(0, taken);
    }
}

#[test]
fn a_key_never_lives_near_and_in_its_window() {
    // With the near slot free, and room in the window for both; with none near, and for one.
    for taken in [0, NEAR + 1] {
        insert_twice(NEAR, taken);
    }
}

#[test]
fn a_slot_that_changes_hands_keeps_the_hint_of_its_key() {
    // Another key comes where one goes; the same key comes again.
    for (near, n) in [(NEAR, 2), (NEAR, 1), (0, 1)] {
        check(3, move || {
            let t = Arc::new(Tiny::with_near(near, false));
            let close = |t: &Tiny, index: u32| {
                let meta = t.slots[index as usize].load_meta();
                assert!(table::freeze(t, index, meta));
                table::release(t, index);
            };
            let goes = {
                let t = t.clone();
                thread::spawn(move || {
                    if let Claim::Taken(index) = table::claim(&*t, &V4::pack(&key(1))) {
                        table::publish(&*t, index, Class::Udp, 0, 1);
                        close(&t, index);
                    }
                })
            };
            // Loom follows up what meets in the order in which it first ran: who goes comes first.
            let comes = {
                let t = t.clone();
                thread::spawn(move || {
                    let claim = table::claim(&*t, &V4::pack(&key(n)));
                    if let Claim::Taken(index) = claim {
                        table::publish(&*t, index, Class::Udp, 0, 1);
                    }
                    claim
                })
            };
            goes.join().unwrap();
            let comes = comes.join().unwrap();
            match comes {
                Claim::Taken(index) => {
                    let found = table::find(&*t, &V4::pack(&key(n))).map(|found| found.index);
                    assert_eq!(found, Some(index), "it is hidden");
                    assert_eq!(table::claim(&*t, &V4::pack(&key(n))), Claim::Contended);
                    close(&t, index);
                }
                Claim::Contended => assert_eq!(n, 1),
                Claim::NoRoom => panic!("there is room for both"),
            }
            // A tag of nobody would keep its slot from everybody.
            assert_eq!(t.hints.each_ref().map(Word::load), [0; HINT_WORDS]);
            assert_eq!(t.count(&key(1)) + t.count(&key(n)), 0);
        });
    }
}

#[test]
fn a_session_that_is_followed_near_is_whole_or_gone() {
    check(2, || {
        let t = Arc::new(Tiny::with_near(NEAR, false));
        assert!(t.open(&key(1), 0, 1));
        assert!(t.state(NEAR_SLOT).is(State::Live), "its forward entry stands near");
        let sweeper = {
            let t = t.clone();
            thread::spawn(move || end(&*t, 0, Ending::EXPIRE, 2 + TIMEOUT))
        };
        // Another session comes meanwhile; it may find the near slot taken, free, or neither.
        let opener = {
            let t = t.clone();
            thread::spawn(move || {
                let opened = t.open(&key(2), 1, 1);
                for (k, reply) in [(key(2), false), (back(&key(2)), true)] {
                    let replay = established::replay(&*t, &k, 0, 100, 1, |_| true, || [0; 6]);
                    assert_eq!(replay.is_ok(), opened, "{k:?}");
                    if let Ok(replay) = replay {
                        assert_eq!((replay.rewrite, replay.reply), (mark(&key(2), reply), reply));
                    }
                }
                opened
            })
        };
        assert_eq!(sweeper.join().unwrap(), Ended::Gone);
        let opened = opener.join().unwrap();
        assert_eq!(t.count(&key(1)) + t.count(&back(&key(1))), 0);
        let both = if opened { (1, 1) } else { (0, 0) };
        assert_eq!((t.count(&key(2)), t.count(&back(&key(2)))), both);
        let tag = t.hints[1].load() as u8;
        assert_eq!(
            tag != 0,
            t.state(NEAR_SLOT).is(State::Live),
            "a tag is of whoever stands there"
        );
    });
}

#[test]
fn a_reader_sees_a_whole_session_or_none() {
    check(2, || {
        let t = Arc::new(Tiny::new(false));
        assert!(t.open(&key(1), 0, 1));
        // It is ended, and another takes the slots and the record.
        let writer = {
            let t = t.clone();
            thread::spawn(move || {
                assert_eq!(end(&*t, 0, Ending::now(1, FIRST), 1), Ended::Gone);
                assert_eq!(t.take_record(), Some(0));
                assert!(t.open(&key(2), 0, 1));
            })
        };
        for n in [1, 2] {
            for (k, reply) in [(key(n), false), (back(&key(n)), true)] {
                if let Ok(replay) = established::replay(&*t, &k, 0, 100, 1, |_| true, || [0; 6]) {
                    assert_eq!(replay.rewrite, mark(&key(n), reply));
                    assert_eq!(replay.reply, reply);
                }
            }
        }
        writer.join().unwrap();
        assert_eq!((t.count(&key(1)), t.count(&key(2)), t.count(&back(&key(2)))), (0, 1, 1));
    });
}

#[test]
fn a_packet_between_looking_and_sweeping_saves_its_session() {
    for reply in [false, true] {
        check(3, move || {
            let t = Arc::new(Tiny::new(false));
            assert!(t.open(&key(1), 0, 1));
            let sweeper = {
                let t = t.clone();
                thread::spawn(move || end(&*t, 0, Ending::EXPIRE, 2 + TIMEOUT))
            };
            // In its last tick a packet comes.
            let k = if reply { back(&key(1)) } else { key(1) };
            let saved = match table::find(&*t, &V4::pack(&k)) {
                Some(found) => t.slots[found.index as usize]
                    .meta()
                    .replace(found.meta.0, found.meta.with_tick(1 + TIMEOUT).0),
                None => false,
            };
            let ended = sweeper.join().unwrap();
            let live = (t.count(&key(1)), t.count(&back(&key(1))));
            assert_eq!(live, if saved { (1, 1) } else { (0, 0) });
            assert_eq!(ended == Ended::Gone, !saved);
        });
    }
}

#[test]
fn of_two_that_end_a_session_one_does() {
    check(3, || {
        let t = Arc::new(Tiny::new(false));
        assert!(t.open(&key(1), 0, 1));
        let other = {
            let t = t.clone();
            thread::spawn(move || end(&*t, 0, Ending::EXPIRE, 2 + TIMEOUT))
        };
        let mine = end(&*t, 0, Ending::now(1, FIRST), 2);
        let theirs = other.join().unwrap();
        // One may find the other busy; both never succeed, and both never fail for good.
        assert!(!(mine == Ended::Gone && theirs == Ended::Gone));
        if mine == Ended::Gone || theirs == Ended::Gone {
            assert_eq!(t.free_records.lock().unwrap().len(), 1);
            assert_eq!(t.count(&key(1)) + t.count(&back(&key(1))), 0);
        } else {
            assert_eq!((t.count(&key(1)), t.count(&back(&key(1)))), (1, 1));
            assert_eq!(end(&*t, 0, Ending::EXPIRE, 2 + TIMEOUT), Ended::Gone);
        }
    });
}

#[test]
fn an_ender_that_comes_late_takes_nothing_of_the_next_session() {
    // The second means only the first session of the record, however old the next one is.
    come_late(Ending::EXPIRE, false);
    come_late(Ending::now(1, FIRST), true);
}

fn come_late(ending: Ending, is_of_first: bool) {
    check(3, move || {
        let t = Arc::new(Tiny::new(false));
        assert!(t.open(&key(1), 0, 1));
        let halves = halves(&t.records[0]);
        let old = (halves.forward, halves.reply);
        let late = {
            let t = t.clone();
            thread::spawn(move || end(&*t, 0, ending, 3 + 2 * TIMEOUT))
        };
        // Meanwhile the record serves a session with the same forward slot; where the old reply
        // stood is another's half. All are old enough for the late one, so it may end any
        // session of that record, but whole, and no other.
        let mine = end(&*t, 0, Ending::EXPIRE, 2 + TIMEOUT);
        if mine == Ended::Gone {
            assert_eq!(t.take_record(), Some(0));
            let claim = |key: &Key<V4>| match table::claim(&*t, &V4::pack(key)) {
                Claim::Taken(index) => index,
                refused @ (Claim::Contended | Claim::NoRoom) => {
                    panic!("{key:?}: {refused:?}")
                }
            };
            let ours = claim(&key(2));
            let theirs_back = claim(&back(&key(3)));
            assert_eq!((ours, theirs_back), old, "each stands where a half of the first did");
            let (theirs, ours_back) = (claim(&key(3)), claim(&back(&key(2))));
            t.fill(theirs, theirs_back, 1, &key(3), 2, false);
            t.fill(ours, ours_back, 0, &key(2), 2, false);
        }
        let theirs = late.join().unwrap();
        assert_eq!(t.count(&key(1)) + t.count(&back(&key(1))), 0);
        if mine == Ended::Gone {
            assert!(!is_of_first || theirs == Ended::Lives);
            let halves = |n| (t.count(&key(n)), t.count(&back(&key(n))));
            assert_eq!(halves(2), if theirs == Ended::Gone { (0, 0) } else { (1, 1) });
            assert_eq!(halves(3), (1, 1));
        }
    });
}

/// The only port that may be lent.
const PORT: u16 = 133;

/// Where port [`PORT`] of `key(n)` is answered.
fn reply_to(n: u8) -> Key<V4> {
    let mut reply = back(&key(n));
    reply.destination = V4([203, 0, 113, 7]);
    reply.destination_port = PORT.to_be_bytes();
    reply
}

fn lend(t: &Tiny, n: u8, number: u32) -> Result<(), Reason> {
    let Claim::Taken(forward) = table::claim(t, &V4::pack(&key(n))) else {
        return Err(Reason::Contended);
    };
    // Its own port may not be lent.
    let mut reply = reply_to(n);
    reply.destination_port = [0, 1];
    match snat::lend(t, &mut reply, 0, 1) {
        Ok(index) => {
            assert_eq!(reply, reply_to(n));
            t.fill(forward, index, number, &key(n), 1, true);
            Ok(())
        }
        Err(reason) => {
            table::release(t, forward);
            Err(reason)
        }
    }
}

/// A port that nobody holds is clear, and so is its word in the summary.
fn assert_not_hidden(t: &Tiny) {
    if t.count(&reply_to(1)) == 0 {
        let bitmap = t.bitmap.as_ref().unwrap();
        assert_eq!(bitmap.words[PORT as usize >> 6].load() >> (PORT & 63) & 1, 0, "bit");
        assert_eq!(bitmap.summary[0].load() >> (PORT >> 6) & 1, 0, "summary");
    }
}

#[test]
fn a_port_that_is_given_back_is_never_hidden() {
    check(2, || {
        let t = Arc::new(Tiny::new(true));
        t.lend_only(PORT);
        assert_eq!(lend(&t, 1, 0), Ok(()));
        let ender = {
            let t = t.clone();
            thread::spawn(move || end(&*t, 0, Ending::now(1, FIRST), 1 + TIMEOUT + 1))
        };
        let lent = lend(&t, 2, 1);
        let ended = ender.join().unwrap();
        assert_eq!(ended, Ended::Gone);
        assert_eq!(t.count(&reply_to(1)), usize::from(lent.is_ok()));
        assert_not_hidden(&t);
        if lent.is_err() {
            assert_eq!(lend(&t, 3, 2), Ok(()));
        }
    });
}

#[test]
fn a_port_is_lent_once_and_two_that_fail_lose_nothing() {
    check(2, || {
        let t = Arc::new(Tiny::new(true));
        t.lend_only(PORT);
        let other = {
            let t = t.clone();
            thread::spawn(move || lend(&t, 1, 0))
        };
        let mine = lend(&t, 2, 1);
        let theirs = other.join().unwrap();
        assert!(!(mine.is_ok() && theirs.is_ok()));
        assert_eq!(t.count(&reply_to(1)), usize::from(mine.is_ok() || theirs.is_ok()));
        assert_not_hidden(&t);
    });
}
