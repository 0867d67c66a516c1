//! Records of an older layout become records of today, while packets change both.
//!
//! The tables of the entries are the same for the programs of both layouts, so a session is
//! found, aged, translated and ended alike by either; only its record is in two places. A pass
//! looks at every live session and writes into today's record what the older one knows better:
//! everything, if the session is not there yet, and what the older programs have changed since,
//! if it is. A pass that finds nothing changes nothing, so it is repeated: before the programs of
//! today are attached, and after those of before are gone.
//!
//! Nothing is locked or frozen for it: a packet that met a frozen entry would be dropped, and a
//! daemon that died in the middle would leave it so. Instead every word is put in place of the one
//! that was read, `slots` last, because `xdp::session::end` takes no record for a session's that
//! does not name its slots. So a session that ends meanwhile and leaves its number to another keeps
//! its word.

use xdp::{
    address::{Address, Entry as _, V4},
    packet,
    session::{Halves, halves},
    tcp::{self, Phase},
};
use xdp_abi::{
    session::{Class, Entry4, Facts, Meta, Record, State},
    v1,
};

/// What a pass did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// Live sessions that are told by a record of today now.
    pub sessions: usize,
    /// Records that were written, in whole or in part.
    pub written: usize,
}

/// Which counts a pass takes along. Spilled counts are moved, so that each is in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counts {
    /// None: the older layout may have to be used on.
    Stay,
    /// All that are spilled.
    Move,
}

/// Goes over every session once.
pub fn pass(slots: &[Entry4], old: &[v1::Record], new: &[Record], counts: Counts) -> Pass {
    let mut done = Pass::default();
    for (slot, entry) in (0..).zip(slots) {
        let meta = entry.load_meta();
        let link = entry.load_link();
        if !meta.is(State::Live) || link.is_reply() {
            continue;
        }
        let number = link.record();
        let (Some(old), Some(new)) = (old.get(number as usize), new.get(number as usize)) else {
            continue;
        };
        let before = old.today();
        let reply = slots.get(halves(&before).reply as usize);
        let known = names(new, slot);
        let Some(reply) = reply.filter(|_| names(&before, slot)) else {
            // Begun by the programs of today.
            done.sessions += usize::from(known);
            continue;
        };
        let session = Session { forward: entry, meta, reply, number };
        let mut written = false;
        if !known || is_later(&before, new) {
            written = session.copy(&before, new);
        } else if incarnation(&before) == incarnation(new) {
            written = session.catch_up(&before, new);
        }
        if counts == Counts::Move && session.lives() && incarnation(&before) == incarnation(new) {
            for (from, to) in old.spilled.iter().zip(&new.spilled) {
                to.add(from.swap(0));
            }
        }
        done.sessions += usize::from(names(new, slot));
        done.written += usize::from(written);
    }
    done
}

/// Whether a record is of a session whose forward entry stands in `slot`; an empty one is of
/// none, because no session has both halves in slot 0.
fn names(record: &Record, slot: u32) -> bool {
    let Halves { forward, reply } = halves(record);
    forward == slot && reply != slot
}

fn incarnation(record: &Record) -> u32 {
    (record.identity.load() >> 32) as u32
}

/// Whether `a` is further than `b`: sessions and generations are counted on and on.
fn is_ahead(a: u32, b: u32) -> bool {
    a != b && a.wrapping_sub(b) < 1 << 31
}

fn is_later(a: &Record, b: &Record) -> bool {
    is_ahead(incarnation(a), incarnation(b))
}

/// A live session, seen from its entries.
struct Session<'a> {
    forward: &'a Entry4,
    /// Word 0 of it when it was found.
    meta: Meta,
    reply: &'a Entry4,
    number: u32,
}

impl Session<'_> {
    /// Whether its record is still its own.
    fn lives(&self) -> bool {
        self.forward.load_meta().same_owner(self.meta)
            && self.reply.load_meta().is(State::Live)
            && self.reply.load_link().record() == self.number
    }

    /// Writes a whole record over one that tells nothing of this session. The spilled counts are
    /// not in it: they are moved.
    fn copy(&self, from: &Record, to: &Record) -> bool {
        let facts = Facts(from.facts.load());
        let phase = self.phase(facts.phase());
        let new = [
            (&to.identity, from.identity.load()),
            (&to.rules, from.rules.load()),
            (&to.identities, from.identities.load()),
            (&to.policy, from.policy.load()),
            (&to.began, from.began.load()),
            (&to.facts, facts.with_phase(phase.0).0),
            (&to.spilled[0], 0),
            (&to.spilled[1], 0),
            (&to.spilled[2], 0),
            (&to.spilled[3], 0),
            (&to.slots, from.slots.load()),
        ];
        let stale = new.map(|(word, _)| word.load());
        if !self.lives() {
            return false;
        }
        let written = new.iter().zip(stale).all(|((word, new), stale)| word.replace(stale, *new));
        if written {
            self.age_by(phase);
        }
        written
    }

    /// Writes what the older programs have changed since the session was carried over.
    fn catch_up(&self, from: &Record, to: &Record) -> bool {
        let judgement =
            |record: &Record| [record.rules.load(), record.identities.load(), record.policy.load()];
        let (old, new) = (judgement(from), judgement(to));
        let (old_facts, new_facts) = (Facts(from.facts.load()), Facts(to.facts.load()));
        let judged_later = is_ahead(old[2] as u32, new[2] as u32);
        let facts = if judged_later { old_facts } else { new_facts };
        let phase = self.phase(old_facts.phase() | new_facts.phase());
        let facts = facts.with_phase(phase.0);
        if !self.lives() {
            return false;
        }
        let mut written = false;
        if judged_later {
            for ((word, new), old) in
                [&to.rules, &to.identities, &to.policy].iter().zip(new).zip(old)
            {
                written |= word.replace(new, old);
            }
        }
        if facts != new_facts && to.facts.replace(new_facts.0, facts.0) {
            self.age_by(phase);
            written = true;
        }
        written
    }

    /// What is known of the beginning and end of a connection, if `seen` is what records say:
    /// programs that did not find its record have noted every SYN and FIN in its entries. A RST
    /// counts until the next packet, which the timer tells.
    fn phase(&self, seen: u8) -> Phase {
        if V4::unpack(&self.forward.key()).protocol != packet::TCP {
            return Phase(seen);
        }
        let flags = |entry: &Entry4| entry.load_link().tcp_flags() & (tcp::SYN | tcp::FIN);
        let phase = Phase(seen).after(false, flags(self.forward)).after(true, flags(self.reply));
        match self.forward.load_meta().class() {
            Class::TcpReset => phase.after(false, tcp::RST),
            Class::Udp
            | Class::Icmp
            | Class::TcpOpening
            | Class::TcpEstablished
            | Class::TcpClosing
            | Class::TcpClosed
            | Class::Resting => phase,
        }
    }

    /// Has both entries age by the timer of a phase.
    fn age_by(&self, phase: Phase) {
        if V4::unpack(&self.forward.key()).protocol != packet::TCP {
            return;
        }
        for entry in [self.forward, self.reply] {
            let meta = entry.load_meta();
            if meta.is(State::Live) && meta.class() != Class::Resting && self.lives() {
                // Losing means that a packet came: it has seen to the timer, or the next pass does.
                entry.meta().replace(meta.0, meta.with_class(phase.class()).0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xdp::address::Key;
    use xdp_abi::session::Link;
    use xdp_abi::word::Word;

    const FORWARD: u32 = 3;
    const REPLY: u32 = 6;
    const NUMBER: u32 = 1;

    /// A table with one session, as the programs of both layouts see it.
    struct Scene {
        slots: Vec<Entry4>,
        old: Vec<v1::Record>,
        new: Vec<Record>,
    }

    fn words<const N: usize>() -> [Word; N] {
        std::array::from_fn(|_| Word::new(0))
    }

    fn empty() -> Record {
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

    fn empty_then() -> v1::Record {
        v1::Record {
            slots: Word::new(0),
            rules: Word::new(0),
            identities: Word::new(0),
            policy: Word::new(0),
            began: Word::new(0),
            facts: Word::new(0),
            spilled: words(),
            identity: Word::new(0),
            event: Word::new(0),
        }
    }

    fn told(record: &Record) -> [u64; 11] {
        let [a, b, c, d] = &record.spilled;
        [
            &record.slots,
            &record.rules,
            &record.identities,
            &record.policy,
            &record.began,
            &record.facts,
            a,
            b,
            c,
            d,
            &record.identity,
        ]
        .map(Word::load)
    }

    const SLOTS: u64 = (FORWARD as u64) << 32 | REPLY as u64;
    const OPEN: u8 = Phase::NEW.after(false, tcp::SYN).0;
    const ESTABLISHED: u8 = Phase::ADOPTED.0;

    impl Scene {
        /// A TCP session of incarnation 7 that only the older layout knows.
        fn new() -> Self {
            let scene = Self {
                slots: (0..8).map(|_| Entry4 { words: words() }).collect(),
                old: (0..3).map(|_| empty_then()).collect(),
                new: (0..3).map(|_| empty()).collect(),
            };
            let key = Key {
                source: V4([100, 64, 0, 7]),
                destination: V4([198, 51, 100, 9]),
                source_port: [1, 2],
                destination_port: [3, 4],
                domain: 1,
                protocol: packet::TCP,
            };
            for (slot, reply) in [(FORWARD, false), (REPLY, true)] {
                let entry = &scene.slots[slot as usize];
                entry.set_key(&V4::pack(&key));
                entry.link().store(Link::new(NUMBER, 0, reply).0);
            }
            scene.class(Class::TcpEstablished);
            let old = &scene.old[NUMBER as usize];
            for (word, value) in [
                (&old.slots, SLOTS),
                (&old.rules, 11 << 32 | 12),
                (&old.identities, 13 << 32 | 14),
                (&old.policy, 15 << 32 | 5),
                (&old.began, 17),
                (&old.facts, Facts::new(ESTABLISHED, 3, 1, 2, 9).0),
                (&old.identity, 7 << 32 | 1),
            ] {
                word.store(value);
            }
            for (n, word) in (0..).zip(&old.spilled) {
                word.store(100 + n);
            }
            scene
        }

        fn class(&self, class: Class) {
            for slot in [FORWARD, REPLY] {
                let meta = Meta::new(2, State::Live, class, 77);
                self.slots[slot as usize].meta().store(meta.0);
            }
        }

        fn classes(&self) -> [Class; 2] {
            [FORWARD, REPLY].map(|slot| self.slots[slot as usize].load_meta().class())
        }

        fn pass(&self, counts: Counts) -> Pass {
            pass(&self.slots, &self.old, &self.new, counts)
        }

        fn old(&self) -> &v1::Record {
            &self.old[NUMBER as usize]
        }

        fn today(&self) -> &Record {
            &self.new[NUMBER as usize]
        }
    }

    #[test]
    fn a_session_is_carried_over_with_all_that_was_known_of_it() {
        let scene = Scene::new();
        let before = told(&scene.old().today());
        assert_eq!(scene.pass(Counts::Stay), Pass { sessions: 1, written: 1 });
        let mut expected = before;
        expected[6..10].fill(0);
        assert_eq!(told(scene.today()), expected, "all but the counts");
        assert_eq!(told(&scene.old().today()), before, "the older layout may be used on");
        assert_eq!(scene.pass(Counts::Stay), Pass { sessions: 1, written: 0 }, "and once");
        scene.pass(Counts::Move);
        assert_eq!(told(scene.today()), before);
        // What an older program spills after that comes along too, and nothing comes twice.
        scene.old().spilled[1].add(5);
        scene.pass(Counts::Move);
        assert_eq!(scene.pass(Counts::Move), Pass { sessions: 1, written: 0 });
        assert_eq!(scene.today().spilled[1].load(), 106);
        assert_eq!(scene.classes(), [Class::TcpEstablished; 2]);
        assert_eq!(scene.slots[FORWARD as usize].load_meta().tick(), 77, "its age stays");
        // The other records were nobody's.
        assert_eq!(told(&scene.new[0]), [0; 11]);
    }

    #[test]
    fn of_two_records_that_name_a_session_the_later_one_is_right() {
        for (old, new, wins) in [
            (7, 6, 7),        // ended and opened again by the older programs
            (7, 8, 8),        // by those of today
            (0, u32::MAX, 0), // the numbers wrap
            (u32::MAX, 0, 0),
        ] {
            let scene = Scene::new();
            scene.old().identity.store(u64::from(old) << 32);
            scene.today().slots.store(SLOTS);
            scene.today().identity.store(u64::from(new) << 32);
            scene.pass(Counts::Move);
            assert_eq!(incarnation(scene.today()), wins, "{old} and {new}");
            let counts = scene.today().spilled[0].load();
            assert_eq!(counts, if wins == old { 100 } else { 0 }, "{old} and {new}");
        }
    }

    #[test]
    fn a_record_that_is_not_of_this_session_is_nothing_to_go_by() {
        // Of another session that had the number before: today's programs begun this one.
        let scene = Scene::new();
        scene.old().slots.store(4 << 32 | 5);
        scene.today().slots.store(SLOTS);
        let before = told(scene.today());
        assert_eq!(scene.pass(Counts::Move), Pass { sessions: 1, written: 0 });
        assert_eq!(told(scene.today()), before);
        // And the other way round: what is there today is left from a session that ended.
        let scene = Scene::new();
        scene.today().slots.store(4 << 32 | 5);
        scene.today().identity.store(9 << 32);
        assert_eq!(scene.pass(Counts::Move), Pass { sessions: 1, written: 1 });
        assert_eq!(incarnation(scene.today()), 7);
    }

    #[test]
    fn half_a_session_is_none() {
        for state in [State::Free, State::Claimed, State::Keyed, State::Frozen] {
            for slot in [FORWARD, REPLY] {
                let scene = Scene::new();
                let entry = &scene.slots[slot as usize];
                entry.meta().store(entry.load_meta().with_state(state).0);
                assert_eq!(scene.pass(Counts::Move), Pass::default(), "{state:?} in {slot}");
                assert_eq!(told(scene.today()), [0; 11]);
            }
        }
        let scene = Scene::new();
        scene.slots[REPLY as usize].link().store(Link::new(2, 0, true).0);
        assert_eq!(scene.pass(Counts::Move), Pass::default(), "the reply half is another's");
        // Numbers that no table has room for.
        let scene = Scene::new();
        scene.slots[FORWARD as usize].link().store(Link::new(3, 0, false).0);
        assert_eq!(scene.pass(Counts::Move), Pass::default());
        let scene = Scene::new();
        scene.old().slots.store(u64::from(FORWARD) << 32 | 8);
        assert_eq!(scene.pass(Counts::Move), Pass::default());
    }

    #[test]
    fn the_later_judgement_counts() {
        for (old, new, expected) in [(6, 5, 6), (5, 6, 6), (0, u32::MAX, 0), (5, 5, 5)] {
            let scene = Scene::new();
            scene.pass(Counts::Stay);
            let by = |generation: u32| 15 << 32 | u64::from(generation);
            scene.old().policy.store(by(old));
            scene.old().rules.store(u64::from(old));
            scene.today().policy.store(by(new));
            scene.today().rules.store(u64::from(new));
            scene.pass(Counts::Stay);
            let judged = (scene.today().policy.load() as u32, scene.today().rules.load());
            assert_eq!(judged, (expected, u64::from(expected)), "{old} and {new}");
        }
    }

    #[test]
    fn a_handshake_that_two_kinds_of_programs_saw_is_a_whole_one() {
        // SYN by the older ones; today's did not find the record when the answer came.
        let scene = Scene::new();
        scene.class(Class::TcpOpening);
        scene.old().facts.store(Facts::new(OPEN, 0, 1, 2, 0).0);
        scene.slots[FORWARD as usize].link().fetch_or(u64::from(tcp::SYN) << 8);
        scene.slots[REPLY as usize].link().fetch_or(u64::from(tcp::SYN | tcp::ACK) << 8);
        scene.pass(Counts::Move);
        assert_eq!(Facts(scene.today().facts.load()).phase(), ESTABLISHED);
        assert_eq!(scene.classes(), [Class::TcpEstablished; 2]);
    }

    #[test]
    fn an_end_that_either_saw_is_an_end() {
        let fin = |reply| Phase(ESTABLISHED).after(reply, tcp::FIN).0;
        let facts = |phase| Facts::new(phase, 0, 1, 2, 0).0;
        for (old, new, class) in [
            (fin(false), ESTABLISHED, Class::TcpClosing),
            (ESTABLISHED, fin(false), Class::TcpClosing),
            (fin(false), fin(true), Class::TcpClosed),
            (ESTABLISHED, ESTABLISHED, Class::TcpEstablished),
        ] {
            let scene = Scene::new();
            scene.pass(Counts::Stay);
            scene.old().facts.store(facts(old));
            scene.today().facts.store(facts(new));
            scene.class(Phase(new).class());
            scene.pass(Counts::Move);
            assert_eq!(Phase(Facts(scene.today().facts.load()).phase()).class(), class);
            assert_eq!(scene.classes(), [class; 2], "{old:#x} and {new:#x}");
        }
        // A RST that the next packet has taken back stays taken back, any other stays.
        let reset = Phase(ESTABLISHED).after(false, tcp::RST).0;
        for class in [Class::TcpEstablished, Class::TcpReset] {
            let scene = Scene::new();
            scene.old().facts.store(facts(reset));
            scene.class(class);
            scene.pass(Counts::Move);
            assert_eq!(scene.classes(), [class; 2]);
            assert_eq!(Phase(Facts(scene.today().facts.load()).phase()).class(), class);
        }
        // A port that rests goes on resting.
        let scene = Scene::new();
        scene.class(Class::Resting);
        scene.pass(Counts::Move);
        assert_eq!(scene.classes(), [Class::Resting; 2]);
    }
}
