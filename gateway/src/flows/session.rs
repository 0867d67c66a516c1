//! One session, read out of the table while packets change it.
//!
//! A session is in three places: two entries and a record. They are read without a lock, by the
//! protocol of `xdp::table`: word 0 of both entries first and once more at the end; if an owner
//! changed meanwhile, there was no session to be seen.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use xdp::address::{Address, Entry, V4};
use xdp::session::{LEASED, describe, fill_from_record, halves, idle, outside_port, pair, timeout};
use xdp::tables::Tables;
use xdp_abi::event::Event4;
use xdp_abi::port::PairKey4;
use xdp_abi::session::{Class, Count, Facts, Record, State};

/// A session as it was at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionView {
    /// Everything that a record of it would tell, but for kind and time. `last_seen` is in ticks
    /// before the reading, as in the events of the datapath.
    pub told: Event4,
    /// What it is in the middle of.
    pub class: Class,
    /// What of it is recorded (`policy::LOG_*`).
    pub log: u8,
    /// Ticks until it ends if no packet comes.
    pub expires_in: u32,
    /// What was lent to it.
    pub lease: Option<Lease>,
}

/// A port of an outside address, lent towards one destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Outside address and destination.
    pub pair: PairKey4,
    /// The port.
    pub port: u16,
}

impl SessionView {
    /// The session of a record, at tick `now`.
    pub fn of_record<T: Tables<A = V4>>(tables: &T, number: u32, now: u32) -> Option<Self> {
        let slot = halves(tables.record(number)?).forward;
        Self::read(tables, slot, now).filter(|session| session.record() == number)
    }

    /// The session whose forward entry stands in `slot`, at tick `now`.
    pub fn read<T: Tables<A = V4>>(tables: &T, slot: u32, now: u32) -> Option<Self> {
        let forward = tables.slot(slot)?;
        let forward_meta = forward.load_meta();
        let link = forward.load_link();
        if !forward_meta.is(State::Live) || link.is_reply() {
            return None;
        }
        let number = link.record();
        let record = tables.record(number)?;
        let halves = halves(record);
        let reply = tables.slot(halves.reply)?;
        let reply_meta = reply.load_meta();
        let reply_link = reply.load_link();
        let whole = halves.forward == slot
            && reply_meta.is(State::Live)
            && reply_link.is_reply()
            && reply_link.record() == number;
        if !whole {
            return None;
        }

        let mut told = Event4::default();
        describe(&mut told, &V4::unpack(&forward.key()), &forward.rewrite());
        fill_from_record(&mut told, record);
        let reply_key = V4::unpack(&reply.key());
        told.destination_domain = reply_key.domain;
        let identity = record.identity.load();
        told.session = identity >> 32 << 32 | u64::from(number);
        told.began = record.began.load();
        told.tcp_flags = [link.tcp_flags(), reply_link.tcp_flags()];
        let original = traffic(forward.count().load(), || forward.count().load(), record, 0);
        let answers = traffic(reply.count().load(), || reply.count().load(), record, 2);
        told.packets = [original.0, answers.0];
        told.bytes = [original.1, answers.1];
        let facts = Facts(record.facts.load());
        told.phase = facts.phase();
        let since = idle(now, forward_meta.tick()).min(idle(now, reply_meta.tick()));
        told.last_seen = u64::from(since);

        let same = forward.load_meta().same_owner(forward_meta)
            && reply.load_meta().same_owner(reply_meta)
            && record.identity.load() == identity;
        let class = forward_meta.class();
        same.then(|| Self {
            told,
            class,
            log: facts.log(),
            expires_in: timeout(tables.config(), class).saturating_sub(since),
            lease: (identity & LEASED != 0)
                .then(|| Lease { pair: pair(&reply_key), port: outside_port(&reply_key) }),
        })
    }

    /// The number of its record.
    #[must_use]
    pub const fn record(&self) -> u32 {
        self.told.session as u32
    }

    /// Which session of that record it is.
    #[must_use]
    pub const fn incarnation(&self) -> u32 {
        (self.told.session >> 32) as u32
    }

    /// Whether packets still match it; if not, only its port rests.
    #[must_use]
    pub fn lives(&self) -> bool {
        self.class != Class::Resting
    }

    /// Ticks since its last packet.
    #[must_use]
    pub const fn idle(&self) -> u32 {
        self.told.last_seen as u32
    }
}

/// Packets and bytes of one direction. The datapath now and then moves a count from the entry to
/// the record; a reading in the middle of that is taken again.
fn traffic(first: u64, count: impl Fn() -> u64, record: &Record, at: usize) -> (u64, u64) {
    let spilled = || (record.spilled[at].load(), record.spilled[at + 1].load());
    let (mut count_now, mut before) = (first, spilled());
    for _ in 0..4 {
        let again = count();
        let after = spilled();
        // A count that fell was moved just now, and may not have arrived yet.
        if after == before && Count(again).packets() >= Count(count_now).packets() {
            break;
        }
        (count_now, before) = (again, after);
    }
    let count = Count(count_now);
    (count.packets().saturating_add(before.0), count.bytes().saturating_add(before.1))
}

/// How many slots the table has, of every kind.
pub fn all_slots<T: Tables>(tables: &T) -> u32 {
    xdp::table::all_slots(tables.config())
}

/// How many sessions there is room for.
pub fn room<T: Tables>(tables: &T) -> u32 {
    xdp::table::room(tables.config())
}

/// The sessions of some slots.
pub fn sessions<T: Tables<A = V4>>(
    tables: &T,
    slots: std::ops::Range<u32>,
    now: u32,
) -> impl Iterator<Item = SessionView> + '_ {
    slots.filter_map(move |slot| SessionView::read(tables, slot, now))
}

/// An address and a port as the packet carries them.
#[must_use]
pub fn socket(address: [u8; 4], port: [u8; 2]) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::from(address)), u16::from_be_bytes(port))
}

/// Ticks as a span of time.
#[must_use]
pub fn span(ticks: u32, tick: Duration) -> Duration {
    tick.saturating_mul(ticks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::testing::{self, SECOND, TWO_CLUSTERS};
    use xdp_abi::word::Word;

    #[test]
    fn a_session_shows_both_directions_and_its_translation() {
        let mut scene = testing::scene(TWO_CLUSTERS);
        scene.open_tcp("100.64.1.10:40000", "198.51.100.9:443");
        scene.pass(3 * SECOND);
        let [session] = scene.sessions()[..] else { panic!("one session") };
        let told = &session.told;
        assert_eq!(socket(told.source, told.source_port), "100.64.1.10:40000".parse().unwrap());
        assert_eq!(socket(told.outside, told.outside_port).ip().to_string(), "203.0.113.1");
        assert_eq!(
            socket(told.outside_destination, told.outside_destination_port),
            "198.51.100.9:443".parse().unwrap()
        );
        assert_eq!((told.domain, told.destination_domain), (1, 0));
        assert_eq!((told.ingress, told.egress), (1, 4));
        assert_eq!(told.packets, [2, 1]);
        assert_eq!(told.bytes, [80, 40]);
        assert_eq!(told.tcp_flags, [0x12, 0x12]);
        assert_eq!(session.class, Class::TcpEstablished);
        assert_eq!(session.idle(), 3 * SECOND);
        assert_eq!(session.expires_in, 7_437 * SECOND);
        assert!(session.lives());
        assert_eq!(session.lease.unwrap().pair.outside, [203, 0, 113, 1]);
    }

    #[test]
    fn an_entry_that_changes_hands_is_no_session() {
        let mut scene = testing::scene(TWO_CLUSTERS);
        scene.open_tcp("100.64.1.10:40000", "198.51.100.9:443");
        let slots = 0..all_slots(&*scene.memory);
        let live = |scene: &testing::Scene, slot| {
            scene.memory.slot(slot).is_some_and(|entry| entry.load_meta().is(State::Live))
        };
        let entries: Vec<u32> = slots.filter(|slot| live(&scene, *slot)).collect();
        assert_eq!(entries.len(), 2);
        // Either half frozen: its session is just ending.
        for slot in entries {
            let meta = scene.memory.slot(slot).unwrap().load_meta();
            scene.memory.slot(slot).unwrap().meta().store(meta.with_state(State::Frozen).0);
            assert!(scene.sessions().is_empty());
            scene.memory.slot(slot).unwrap().meta().store(meta.0);
        }
        assert_eq!(scene.sessions().len(), 1);
    }

    #[test]
    fn counts_that_were_moved_to_the_record_are_not_lost() {
        let record = || Record {
            slots: Word::new(0),
            rules: Word::new(0),
            identities: Word::new(0),
            policy: Word::new(0),
            began: Word::new(0),
            facts: Word::new(0),
            spilled: std::array::from_fn(|n| Word::new([100, 5000, 7, 700][n])),
            identity: Word::new(0),
        };
        let count = Count::new(3, 180).0;
        assert_eq!(traffic(count, || count, &record(), 0), (103, 5180));
        assert_eq!(traffic(count, || count, &record(), 2), (10, 880));
        // Moved between the two looks: the second one counts.
        let moved = record();
        let first = Count::new(50, 500).0;
        let after = std::cell::Cell::new(false);
        let look = || {
            if !after.replace(true) {
                moved.spilled[0].add(50);
                moved.spilled[1].add(500);
            }
            Count::new(1, 40).0
        };
        assert_eq!(traffic(first, look, &moved, 0), (151, 5540));
    }

    #[test]
    fn the_table_says_itself_how_large_it_is() {
        let scene = testing::scene(TWO_CLUSTERS);
        assert_eq!(all_slots(&*scene.memory), 4096 + 64 + 512);
        assert_eq!(room(&*scene.memory), 1024);
    }
}
