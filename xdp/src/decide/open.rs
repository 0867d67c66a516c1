//! A new session: its translation chosen, its entries claimed, everything written down.

use super::{Plan, Way};
use crate::{
    address::{Address, Entry, Key, Rewrite, V4},
    checksum::{self, word},
    guard,
    packet::Kind,
    session::{self, LEASED},
    snat::{self, FlowFacts},
    sweep::sweep,
    table,
    tables::{Tables, Tally},
    tcp::{self, Phase},
    verdict::{Code, Forward},
};
use xdp_abi::{
    event,
    forward::HOP_RESOLVED,
    policy::LOG_START,
    reason::Reason,
    session::{Count, Facts, Link, sender},
};

impl<T: Tables<A = V4>> Way<'_, T> {
    /// What opens a flow without SYN was let in by `tcp_midstream: adopt`.
    #[inline(always)]
    fn is_adopted(&self) -> bool {
        self.packet.kind == Kind::Tcp && !tcp::opens(self.packet.tcp_flags)
    }

    /// Chooses the translation and the way back; or says why there is none.
    #[inline(never)]
    pub(super) fn choose(&self, plan: &mut Plan) -> Code {
        let tables = self.tables;
        let key = &self.packet.key;
        let flow = FlowFacts {
            source: plan.judgement.source.index,
            destination: plan.judgement.destination.index,
            source_port: u16::from_be_bytes(key.source_port),
            destination_port: u16::from_be_bytes(key.destination_port),
            protocol: key.protocol,
            mark: plan.judgement.mark,
            interface_class: plan.egress.interface_class,
            connection_class: plan.egress.connection_class,
        };
        plan.snat_policy = 0;
        plan.translated = false;
        plan.reply_key = key.reversed(plan.egress.domain);
        if let Some(chosen) = snat::matching(tables, plan.policy, &flow) {
            plan.snat_policy = chosen.id;
            if chosen.addresses > 0 {
                let bank = plan.policy.bank();
                let outside = snat::paired(tables, bank, &chosen, key.domain, key.source);
                let Some(outside) = outside else { return Code::drop(Reason::HelperFailed) };
                plan.translated = true;
                plan.lendable = outside.lendable;
                plan.reply_key.destination = V4(outside.address);
            }
        }
        let way_out = (plan.egress_number, &plan.egress);
        if !plan.translated && guard::wants_translation(tables, key.domain, key.source, way_out) {
            return Code::drop(Reason::NoSnatPolicy);
        }
        if plan.translated && self.is_adopted() {
            return Code::drop(Reason::NoSession);
        }
        match plan.back_known.checked_sub(1) {
            Some(back) => plan.back = back as u16,
            None => match self.way_back() {
                Some(back) => {
                    plan.back = back;
                    if plan.remembers_source
                        && let Some(line) = self.source_line()
                    {
                        line.remember_back(back);
                    }
                }
                None => return Code::drop(Reason::NextHopsFull),
            },
        }
        Code::GO_ON
    }

    /// Takes a record and both slots; or says why not, and gives back what it took.
    #[inline(never)]
    pub(super) fn enter(&self, plan: &mut Plan) -> Code {
        let tables = self.tables;
        plan.record = match tables.take_record() {
            Some(record) => record,
            None => {
                reclaim(tables, self.now);
                match tables.take_record() {
                    Some(record) => record,
                    None => return Code::drop(Reason::TableFull),
                }
            }
        };
        plan.forward = match table::claim(tables, &V4::pack(&self.packet.key)).taken() {
            Ok(index) => index,
            Err(reason) => {
                tables.give_record(plan.record);
                return Code::drop(reason);
            }
        };
        let claimed = if plan.translated {
            snat::lend(tables, &mut plan.reply_key, plan.lendable, self.now)
        } else {
            snat::keep(tables, &plan.reply_key, self.now)
        };
        match claimed {
            Ok(index) => {
                plan.reply = index;
                Code::GO_ON
            }
            Err(reason) => {
                table::release(tables, plan.forward);
                tables.give_record(plan.record);
                Code::drop(reason)
            }
        }
    }

    /// Fills in what was taken, shows it to everybody, and sends the first packet on its way.
    #[inline(never)]
    pub(super) fn write_down(&self, plan: &Plan, out: &mut Forward<V4>) -> Code {
        let tables = self.tables;
        let key = &self.packet.key;
        let (Some(forward), Some(reply), Some(record)) =
            (tables.slot(plan.forward), tables.slot(plan.reply), tables.record(plan.record))
        else {
            return Code::drop(Reason::HelperFailed);
        };
        let to = &plan.reply_key;
        let rewrite = translate(key, to.destination, to.destination_port);
        let phase = match (self.packet.kind, self.is_adopted()) {
            (Kind::Tcp, true) => Phase::ADOPTED,
            (Kind::Tcp, false) => Phase::NEW.after(false, self.packet.tcp_flags),
            _ => Phase::NEW,
        };
        let class = session::first_class(key.protocol, phase);
        let flags = (self.packet.tcp_flags as u64) << 8;
        let first = Count::new(self.arrival.segments as u64, self.bytes());
        forward.set_rewrite(&rewrite);
        forward.link().store(Link::new(plan.record, plan.hop_number, false).0 | flags);
        forward.stamp().store(plan.stamp.0);
        forward.count().store(first.0);
        reply.set_rewrite(&translate_back(to, key));
        reply.link().store(Link::new(plan.record, plan.back, true).0);
        reply.stamp().store(plan.stamp.0);
        reply.count().store(0);

        let judgement = &plan.judgement;
        let pair = |high: u32, low: u32| (high as u64) << 32 | low as u64;
        let incarnation = tables.shared().incarnation.fetch_add(1) as u32;
        record.slots.store(pair(plan.forward, plan.reply));
        record.rules.store(pair(judgement.rule, judgement.would_match));
        record.identities.store(pair(judgement.source.id, judgement.destination.id));
        record.policy.store(pair(plan.snat_policy, plan.policy.generation()));
        let clock = tables.clock();
        record.began.store(clock);
        let facts =
            Facts::new(phase.0, judgement.log, self.number, plan.egress_number, judgement.mark);
        record.facts.store(facts.0);
        let mut i = 0;
        while i < 4 {
            record.spilled[i].store(0);
            i += 1;
        }
        let leased = if plan.translated { LEASED } else { 0 };
        record.identity.store((incarnation as u64) << 32 | leased);

        table::publish(tables, plan.forward, class, sender(self.arrival.sender), self.now);
        table::publish(tables, plan.reply, class, 0, self.now);
        tables.tally(Tally::Begun);
        if judgement.log & LOG_START != 0 {
            tables.report(|event| {
                event.kind = event::START;
                session::describe(event, key, &rewrite);
                event.phase = phase.0;
                event.tcp_flags = [self.packet.tcp_flags, 0];
                event.session = pair(incarnation, plan.record);
                event.time = clock;
                event.began = clock;
                event.destination_domain = plan.egress.domain;
                event.packets = [first.packets(), 0];
                event.bytes = [first.bytes(), 0];
                session::fill_from_record(event, record);
            });
        }
        if guard::stops(tables, &plan.hop, rewrite.source) {
            return Code::drop(Reason::Leak);
        }
        if !plan.hop.is(HOP_RESOLVED) {
            return Code::PUNT;
        }
        *out = Forward {
            rewrite,
            hop: plan.hop,
            reply: false,
            session: pair(incarnation, plan.record),
            rule: judgement.rule,
        };
        Code::FORWARD
    }
}

/// Whether this protocol's checksum covers the addresses too.
const fn has_pseudo_header(protocol: u8) -> bool {
    protocol != crate::packet::ICMP
}

/// The rewrite that gives a packet another source.
// Not inlined: LLVM 22 crashes on the BPF target when it is (two-address pass).
#[inline(never)]
pub(super) fn translate(key: &Key<V4>, source: V4, source_port: [u8; 2]) -> Rewrite<V4> {
    let address_delta = checksum::delta(key.source.sum(), source.sum());
    let port_delta = checksum::delta(word(key.source_port), word(source_port));
    Rewrite {
        source,
        destination: key.destination,
        source_port,
        destination_port: key.destination_port,
        address_delta,
        transport_delta: transport_delta(key.protocol, address_delta, port_delta),
    }
}

/// The rewrite that gives an answer back its inside destination.
#[inline(never)]
fn translate_back(reply: &Key<V4>, key: &Key<V4>) -> Rewrite<V4> {
    let address_delta = checksum::delta(reply.destination.sum(), key.source.sum());
    let port_delta = checksum::delta(word(reply.destination_port), word(key.source_port));
    Rewrite {
        source: reply.source,
        destination: key.source,
        source_port: reply.source_port,
        destination_port: key.source_port,
        address_delta,
        transport_delta: transport_delta(key.protocol, address_delta, port_delta),
    }
}

#[inline(always)]
const fn transport_delta(protocol: u8, address: u16, port: u16) -> u16 {
    if has_pseudo_header(protocol) { checksum::fold(address as u32 + port as u32) } else { port }
}

/// Slots that are looked at when no record is free: a few microseconds, if none of them is over.
const RECLAIM_SLOTS: u32 = 512;

/// Takes over the record of a session whose time is over, when all are in use and nobody
/// sweeps: the next slots from a common cursor on, so that repeated calls see the whole table. The
/// cursor stops behind the first that is over; two processors may look at the same slots.
#[inline(always)]
fn reclaim<T: Tables<A = V4>>(tables: &T, now: u32) {
    let cursor = &tables.shared().sweep_cursor;
    let from = cursor.load() as u32 % table::all_slots(tables.config()).max(1);
    let looked = sweep(tables, from, RECLAIM_SLOTS, now);
    cursor.fetch_add(looked as u64);
}
