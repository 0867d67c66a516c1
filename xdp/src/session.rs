//! A session's life: how long it lasts without traffic, how it ends, what is reported of it.

use crate::{
    address::{Address, Entry, Key, Rewrite},
    bounds::host_order,
    packet,
    table::{self, Found},
    tables::{Tables, Tally},
    tcp::Phase,
};
use xdp_abi::{
    config::Config,
    event::{self, Event4},
    policy::LOG_END,
    port::PairKey4,
    session::{Class, Count, Facts, Link, Meta, Record, State},
};

/// In `Record::identity`: the session's outside port is lent and must be given back.
pub const LEASED: u64 = 1;

/// How long an entry of this class is kept without traffic, in ticks.
#[inline(always)]
pub fn timeout(config: &Config, class: Class) -> u32 {
    if matches!(class, Class::Resting) {
        return config.rest.load() as u32;
    }
    let n = class as usize;
    let word = config.timeouts[(n >> 1) & 3].load();
    if n & 1 == 0 { (word >> 32) as u32 } else { word as u32 }
}

/// Ticks since `tick`; a tick ahead of `now` (another processor's clock) is none.
#[inline(always)]
pub const fn idle(now: u32, tick: u32) -> u32 {
    let idle = now.wrapping_sub(tick);
    if idle > u32::MAX / 2 { 0 } else { idle }
}

/// Whether an entry, looked at alone, has had no packet for its time.
#[inline(always)]
pub fn seems_expired(config: &Config, meta: Meta, now: u32) -> bool {
    idle(now, meta.tick()) > timeout(config, meta.class())
}

/// The two slots of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Halves {
    /// The forward entry.
    pub forward: u32,
    /// The reply entry.
    pub reply: u32,
}

/// The slots that a record names.
#[inline(always)]
pub fn halves(record: &Record) -> Halves {
    let slots = record.slots.load();
    Halves { forward: (slots >> 32) as u32, reply: slots as u32 }
}

/// What one wants of the end of a session: kind 8 | cause 8 | zero 16 | incarnation 32, because
/// an argument of a BPF function is a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending(u64);

impl Ending {
    /// End it if its time is over; then its port rests, unless it needs no rest.
    pub const EXPIRE: Self = Self(1 << 56);
    /// End it if it does not live: its time is over, or it rests.
    pub const REPLACE: Self = Self(2 << 56);

    /// End it whatever it does, if it is still this incarnation; `cause` is `ENDED_*`.
    #[inline(always)]
    pub const fn now(cause: u8, incarnation: u32) -> Self {
        Self(3 << 56 | (cause as u64) << 48 | incarnation as u64)
    }
    /// The same for another cause.
    #[inline(always)]
    pub const fn because(self, cause: u8) -> Self {
        Self(self.0 & !(0xff << 48) | (cause as u64) << 48)
    }
    #[inline(always)]
    const fn is_unconditional(self) -> bool {
        self.0 >> 56 == 3
    }
    #[inline(always)]
    const fn is_replacement(self) -> bool {
        self.0 >> 56 == 2
    }
    /// `ENDED_*`, if it is unconditional.
    #[inline(always)]
    pub const fn cause(self) -> u8 {
        (self.0 >> 48) as u8
    }
    #[inline(always)]
    const fn incarnation(self) -> u32 {
        self.0 as u32
    }
}

/// What became of the wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It is gone.
    Gone,
    /// It was reported as ended; its port rests.
    Rests,
    /// It lives on.
    Lives,
}

/// A session without traffic, seen from both entries.
#[inline(always)]
pub(crate) fn is_expired(config: &Config, forward: Meta, reply: Meta, now: u32) -> bool {
    seems_expired(config, forward, now) && seems_expired(config, reply, now)
}

/// Ends the session of a record, both halves at once.
///
/// Called with a record that a live entry named a moment ago; it may have changed hands since,
/// so everything is checked again on what is frozen.
#[inline(never)]
pub fn end<T: Tables>(tables: &T, number: u32, ending: Ending, now: u32) -> Ended {
    let Some(record) = tables.record(number) else { return Ended::Lives };
    let config = tables.config();
    let Halves { forward, reply } = halves(record);
    let (Some(f), Some(r)) = (tables.slot(forward), tables.slot(reply)) else {
        return Ended::Lives;
    };

    let mut frozen = None;
    // A packet's refresh may come between reading and freezing: once more, then give up.
    let mut tries = 0;
    while tries < 4 {
        tries += 1;
        let fm = f.load_meta();
        if !fm.is(State::Live) || f.load_link().record() != number {
            return Ended::Lives;
        }
        let rm = r.load_meta();
        let resting = ending.is_replacement() && matches!(fm.class(), Class::Resting);
        let wanted = ending.is_unconditional() || resting || is_expired(config, fm, rm, now);
        if !wanted {
            return Ended::Lives;
        }
        if !table::freeze(tables, forward, fm) {
            continue;
        }
        // The record may have changed hands before: then `reply` is somebody else's.
        let same = halves(record) == (Halves { forward, reply });
        if same && rm.is(State::Live) && table::freeze(tables, reply, rm) {
            frozen = Some((fm, rm));
            break;
        }
        table::thaw(tables, forward, fm);
    }
    let Some((fm, rm)) = frozen else { return Ended::Lives };

    // The record is ours until it is given back.
    let incarnation = record.identity.load();
    if ending.is_unconditional() && (incarnation >> 32) as u32 != ending.incarnation() {
        table::thaw(tables, reply, rm);
        table::thaw(tables, forward, fm);
        return Ended::Lives;
    }
    let was_resting = matches!(fm.class(), Class::Resting);
    if !was_resting {
        let cause = match fm.class() {
            _ if ending.is_unconditional() => ending.cause(),
            Class::TcpReset => event::ENDED_RESET,
            Class::TcpClosed => event::ENDED_CLOSED,
            Class::Udp
            | Class::Icmp
            | Class::TcpOpening
            | Class::TcpEstablished
            | Class::TcpClosing
            | Class::Resting => event::ENDED_IDLE,
        };
        report_end::<T>(tables, number, record, f, r, cause, last_tick(fm, rm), now);
        tables.tally(Tally::Ended);
        // RFC 6888 REQ-8: the far end may still hold the connection, unless it closed clean.
        let rests = incarnation & LEASED != 0
            && !matches!(fm.class(), Class::TcpClosed)
            && !has_rested(config, fm, rm, now)
            && !ending.is_replacement()
            // Its own sender opens the same tuple again.
            && (!ending.is_unconditional() || ending.cause() != event::ENDED_REOPENED);
        if rests {
            let resting = |meta: Meta| meta.with_class(Class::Resting).with_tick(now);
            table::thaw(tables, reply, resting(rm));
            table::thaw(tables, forward, resting(fm));
            return Ended::Rests;
        }
    }
    let key = T::A::unpack(&r.key());
    table::release(tables, reply);
    if incarnation & LEASED != 0 {
        give_back_port(tables, &key);
    }
    table::release(tables, forward);
    tables.give_record(number);
    Ended::Gone
}

/// Whether the port of an expired session has been out of use for its rest already.
#[inline(always)]
pub(crate) fn has_rested(config: &Config, forward: Meta, reply: Meta, now: u32) -> bool {
    is_over(config, forward, now) && is_over(config, reply, now)
}

/// Whether an entry's time is over, and the rest of its port as well. A session that closed
/// clean needs none.
#[inline(always)]
fn is_over(config: &Config, meta: Meta, now: u32) -> bool {
    let rest = match meta.class() {
        Class::Resting | Class::TcpClosed => 0,
        Class::Udp
        | Class::Icmp
        | Class::TcpOpening
        | Class::TcpEstablished
        | Class::TcpClosing
        | Class::TcpReset => config.rest.load() as u32,
    };
    idle(now, meta.tick()) > timeout(config, meta.class()).saturating_add(rest)
}

#[inline(always)]
fn last_tick(a: Meta, b: Meta) -> u32 {
    if idle(a.tick(), b.tick()) == 0 { b.tick() } else { a.tick() }
}

/// The pair that a reply key belongs to.
#[inline(always)]
pub fn pair<A: Address>(reply: &Key<A>) -> PairKey4 {
    PairKey4 {
        outside: reply.destination.bytes4(),
        destination: reply.source.bytes4(),
        destination_port: reply.source_port,
        domain: reply.domain,
        protocol: reply.protocol as u32,
    }
}

/// The outside port in a reply key.
#[inline(always)]
pub const fn outside_port<A: Copy>(reply: &Key<A>) -> u16 {
    host_order(reply.destination_port)
}

/// Says in the pair's bitmap, if it is hot, that nobody is known to hold a port. Called when
/// the reply key is out of the table: whoever marks the port after this sees that it is free.
#[inline(always)]
pub(crate) fn give_back_port<T: Tables>(tables: &T, reply: &Key<T::A>) {
    if tables.shared().hot_pairs.load() == 0 {
        return;
    }
    if let Some(bitmap) = tables.bitmap(&pair(reply)) {
        let port = outside_port(reply) as usize;
        let word = port >> 6;
        if let Some(w) = bitmap.words.get(word) {
            w.fetch_and(!(1 << (port & 63)));
        }
        // In this order: see `snat::close`.
        if let Some(s) = bitmap.summary.get(word >> 6) {
            s.fetch_and(!(1 << (word & 63)));
        }
    }
}

#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "one caller, and the verifier wants it inline")]
fn report_end<T: Tables>(
    tables: &T,
    number: u32,
    record: &Record,
    forward: &<T::A as Address>::Entry,
    reply: &<T::A as Address>::Entry,
    cause: u8,
    last: u32,
    now: u32,
) {
    if Facts(record.facts.load()).log() & LOG_END == 0 {
        return;
    }
    // Everything is read when there is room for it: the stack of a BPF program is short.
    tables.report(|event| {
        let facts = Facts(record.facts.load());
        let f = Count(forward.count().load());
        let r = Count(reply.count().load());
        event.kind = event::END;
        describe(event, &T::A::unpack(&forward.key()), &forward.rewrite());
        event.reason = cause;
        event.phase = facts.phase();
        event.tcp_flags = [forward.load_link().tcp_flags(), reply.load_link().tcp_flags()];
        event.session = record.identity.load() >> 32 << 32 | number as u64;
        event.time = tables.clock();
        event.began = record.began.load();
        // In ticks before `time`; user space knows how long one is.
        event.last_seen = idle(now, last) as u64;
        event.destination_domain = T::A::unpack(&reply.key()).domain;
        fill_from_record(event, record);
        event.packets =
            [f.packets() + record.spilled[0].load(), r.packets() + record.spilled[2].load()];
        event.bytes = [f.bytes() + record.spilled[1].load(), r.bytes() + record.spilled[3].load()];
    });
}

/// What a record says of rule, identities and places.
#[inline(always)]
pub fn fill_from_record(event: &mut Event4, record: &Record) {
    let facts = Facts(record.facts.load());
    let rules = record.rules.load();
    let identities = record.identities.load();
    let policy = record.policy.load();
    event.ingress = facts.ingress();
    event.egress = facts.egress();
    event.mark = facts.mark();
    event.rule = (rules >> 32) as u32;
    event.would_match = rules as u32;
    event.source_identity = (identities >> 32) as u32;
    event.destination_identity = identities as u32;
    event.snat_policy = (policy >> 32) as u32;
    event.generation = policy as u32;
}

/// Writes both tuples of a packet into an event.
#[inline(always)]
pub fn describe<A: Address>(event: &mut Event4, key: &Key<A>, rewrite: &Rewrite<A>) {
    event.protocol = key.protocol;
    event.source = key.source.bytes4();
    event.destination = key.destination.bytes4();
    event.source_port = key.source_port;
    event.destination_port = key.destination_port;
    event.outside = rewrite.source.bytes4();
    event.outside_destination = rewrite.destination.bytes4();
    event.outside_port = rewrite.source_port;
    event.outside_destination_port = rewrite.destination_port;
    event.domain = key.domain;
}

/// The class that a session begins with.
#[inline(always)]
pub const fn first_class(protocol: u8, phase: Phase) -> Class {
    match protocol {
        packet::TCP => phase.class(),
        packet::ICMP => Class::Icmp,
        _ => Class::Udp,
    }
}

/// Moves an entry's count to the record before a field overflows.
#[inline(always)]
pub fn spill<T: Tables>(tables: &T, entry: &<T::A as Address>::Entry, record: u32, reply: bool) {
    let Some(record) = tables.record(record) else { return };
    let count = Count(entry.count().swap(0));
    let at = if reply { 2 } else { 0 };
    record.spilled[at].add(count.packets());
    record.spilled[at + 1].add(count.bytes());
}

/// Follows a TCP segment that may change the phase: both entries get the new class.
#[inline(always)]
pub fn follow_tcp<T: Tables>(tables: &T, found: Found, link: Link, flags: u8, now: u32) {
    let Some(record) = tables.record(link.record()) else { return };
    // The two directions may race for the phase: once more, then the next segment does it.
    let mut tries = 0;
    let mut phase = Phase::NEW;
    while tries < 2 {
        tries += 1;
        let facts = Facts(record.facts.load());
        phase = Phase(facts.phase()).after(link.is_reply(), flags);
        if phase.0 == facts.phase() || record.facts.replace(facts.0, facts.with_phase(phase.0).0) {
            break;
        }
    }
    let class = phase.class();
    let Halves { forward, reply } = halves(record);
    reclassify(tables, forward, link.record(), class, found.index == forward, now);
    reclassify(tables, reply, link.record(), class, found.index == reply, now);
}

#[inline(always)]
fn reclassify<T: Tables>(tables: &T, index: u32, record: u32, class: Class, seen: bool, now: u32) {
    let Some(entry) = tables.slot(index) else { return };
    let mut tries = 0;
    while tries < 2 {
        tries += 1;
        let meta = entry.load_meta();
        if !meta.is(State::Live)
            || matches!(meta.class(), Class::Resting)
            || entry.load_link().record() != record
        {
            return;
        }
        let mut new = meta.with_class(class);
        if seen {
            new = new.with_tick(now);
        }
        if new == meta || entry.meta().replace(meta.0, new.0) {
            return;
        }
    }
}
