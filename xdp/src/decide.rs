//! The long way: everything that is not a plain packet of a known session.
//!
//! A packet belongs to an attachment by where it came in and by its source; that gives the
//! domain and so the session key. A known session is checked again (time, policy, phase, next
//! hop); an unknown flow is judged, given a way out, translated, and written down.

use crate::{
    address::{Address, Entry, Key, Rewrite, V4},
    checksum,
    established::HOP_AGE,
    packet::{Kind, Packet},
    policy::{Judgement, judge},
    session::{self, Ended, Ending, LEASED, end, halves, idle, seems_expired},
    snat::{self, FlowFacts},
    table::{self, Claim, Found},
    tables::{Route, Tables, Tally, is_non_routable},
    tcp::{self, Phase},
};
use xdp_abi::{
    config::{MIDSTREAM_ADOPT, MIDSTREAM_RESET, PolicyWord},
    event,
    forward::{
        ATTACHED, Attachment, BY_ADDRESS4, BY_MAC, HOP_REDIRECT, HOP_REFRESH, HOP_RESOLVED,
        HOP_ROUTABLE, HOP_USED, Hop, KIND_SPOKE, LINK_REDIRECT, LINK_UP, LinkInfo, NextHopKey,
        ROUTABLE, port,
    },
    policy::{ACTION_PERMIT, ACTION_REJECT, LOG_START},
    reason::Reason,
    session::{Class, Count, EPOCHS, Facts, Link, Stamp, State},
};

/// Where and how a packet came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The interface whose hook saw it.
    pub ifindex: u32,
    /// Its tag; zero: none.
    pub vlan: u16,
    /// The hardware address that sent it.
    pub sender: [u8; 6],
    /// Packets of the wire that it stands for.
    pub segments: u32,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<A> {
    /// Send it on with new addresses and ports.
    Forward(Forward<A>),
    /// Leave it to the kernel: it is not transit.
    Pass,
    /// Send it up untranslated for the kernel to route; TC egress translates it.
    Punt(u16),
    /// Discard it.
    Drop(Reason),
    /// Discard it and answer its sender.
    Answer(Reason, Answer),
}

/// A packet that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward<A> {
    /// New addresses and ports.
    pub rewrite: Rewrite<A>,
    /// Where it goes.
    pub hop: Hop,
    /// Whether it is an answer.
    pub reply: bool,
}

/// What a sender is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A TCP RST.
    Reset,
    /// ICMP type, code, and next-hop MTU; from this address.
    Icmp(u8, u8, u16, [u8; 4]),
}

/// What was decided, and what counting and `capture` want to know of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision<A> {
    /// What becomes of the packet.
    pub verdict: Verdict<A>,
    /// The attachment it came by; zero: unknown.
    pub attachment: u16,
    /// Whether it came from a spoke.
    pub outbound: bool,
}

/// Decides about a packet that is not a plain packet of an established session.
#[inline(always)]
pub fn decide<T: Tables<A = V4>>(
    tables: &T,
    packet: &mut Packet<V4>,
    arrival: &Arrival,
    now: u32,
) -> Decision<V4> {
    let place = port(arrival.ifindex, arrival.vlan);
    let number = tables.attachment_of(place, packet.key.source).unwrap_or(0);
    let mut decision = Decision { verdict: Verdict::Pass, attachment: number, outbound: false };
    let Some(attachment) = tables.attachment(number).filter(|a| a.flags & ATTACHED != 0) else {
        decision.verdict = not_from_here(tables, packet);
        return decision;
    };
    decision.outbound = attachment.kind == KIND_SPOKE;
    packet.key.domain = attachment.domain;
    let way = Way { tables, packet, arrival, number, attachment, now };
    decision.verdict = match table::find(tables, &V4::pack(&packet.key)) {
        Some(found) => way.known(found),
        None => way.unknown(),
    };
    decision
}

/// A packet that belongs to no attachment.
#[inline(always)]
fn not_from_here<T: Tables<A = V4>>(tables: &T, packet: &Packet<V4>) -> Verdict<V4> {
    if is_own(tables, packet.key.destination) {
        return Verdict::Pass;
    }
    Verdict::Drop(Reason::SpoofedSource)
}

/// Whether a packet to this address is the machine's own business.
#[inline(always)]
pub fn is_own<T: Tables<A = V4>>(tables: &T, destination: V4) -> bool {
    // Broadcast and multicast are not routed; the kernel knows whether they are for it.
    destination.0[0] >= 224 || tables.is_local(destination)
}

struct Way<'a, T: Tables> {
    tables: &'a T,
    packet: &'a Packet<T::A>,
    arrival: &'a Arrival,
    number: u16,
    attachment: Attachment,
    now: u32,
}

/// The way out of a new flow.
#[derive(Clone, Copy)]
struct Exit {
    hop_number: u16,
    hop: Hop,
    number: u16,
    attachment: Attachment,
}

impl<T: Tables<A = V4>> Way<'_, T> {
    /// A packet whose key is in the table.
    #[inline(always)]
    fn known(&self, found: Found) -> Verdict<V4> {
        let Some(entry) = self.tables.slot(found.index) else {
            return Verdict::Drop(Reason::Contended);
        };
        let link = entry.load_link();
        let rewrite = entry.rewrite();
        let stamp = entry.load_stamp();
        let Some(record) = self.tables.record(link.record()) else {
            return Verdict::Drop(Reason::Contended);
        };
        let incarnation = (record.identity.load() >> 32) as u32;
        if !entry.load_meta().same_owner(found.meta) {
            return Verdict::Drop(Reason::Contended);
        }
        let config = self.tables.config();
        let class = found.meta.class();

        // A session that is over: its tuple may be opened anew from where it was opened.
        let over = matches!(class, Class::Resting)
            || seems_expired(config, found.meta, self.now) && self.other_half_expired(found, link);
        let reopened = !link.is_reply()
            && self.packet.kind == Kind::Tcp
            && tcp::opens(self.packet.tcp_flags)
            && matches!(class, Class::TcpClosed | Class::TcpReset);
        if over || reopened {
            if link.is_reply() {
                return self.unexpected();
            }
            let ending = if over {
                Ending::Replace
            } else {
                Ending::Now(event::ENDED_REOPENED, incarnation)
            };
            return match end(self.tables, link.record(), ending, self.now) {
                Ended::Gone => self.unknown(),
                // It rests, or a packet has just revived it: the next packet sees which.
                Ended::Rests | Ended::Lives => Verdict::Drop(Reason::Contended),
            };
        }

        let policy = PolicyWord(config.policy.load());
        let current = current_stamp(self.tables, policy, stamp.source(), stamp.destination());
        if stamp.stamp() != current
            && let Some(verdict) = self.judge_again(link, policy, current, incarnation)
        {
            return verdict;
        }

        let Some(mut hop) = self.tables.hop(link.next_hop()) else {
            return Verdict::Drop(Reason::HelperFailed);
        };
        if hop.is(HOP_REFRESH) && (!hop.is(HOP_RESOLVED) || idle(self.now, hop.tick()) > HOP_AGE) {
            hop = self.refresh(link.next_hop(), hop);
        }
        if let Some(verdict) = self.obstacle(&hop) {
            return verdict;
        }
        if hop.is(HOP_ROUTABLE)
            && is_non_routable(config, rewrite.source)
            && !self.tables.carries(hop.attachment(), rewrite.source)
        {
            self.tables.tally(Tally::LeakStopped);
            return Verdict::Drop(Reason::Leak);
        }

        if Count(entry.count().load()).is_high() {
            session::spill(self.tables, entry, link.record(), link.is_reply());
        }
        entry.count().add(Count::new(self.arrival.segments as u64, self.packet.length as u64).0);
        if self.packet.kind == Kind::Tcp {
            let flags = self.packet.tcp_flags;
            if flags & !link.tcp_flags() != 0 {
                entry.link().fetch_or((flags as u64) << 8);
            }
            if flags & (tcp::SYN | tcp::FIN | tcp::RST) != 0 || matches!(class, Class::TcpReset) {
                session::follow_tcp(self.tables, found, link, flags, self.now);
            }
        }
        // Refresh on the newest reading: the class may just have changed.
        let meta = entry.load_meta();
        if meta.is(State::Live) && meta.tick() != self.now {
            entry.meta().replace(meta.0, meta.with_tick(self.now).0);
        }
        if !hop.is(HOP_RESOLVED) {
            return Verdict::Punt(self.number);
        }
        Verdict::Forward(Forward { rewrite, hop, reply: link.is_reply() })
    }

    #[inline(always)]
    fn other_half_expired(&self, found: Found, link: Link) -> bool {
        let Some(record) = self.tables.record(link.record()) else { return false };
        let halves = halves(record);
        let other = if found.index == halves.forward { halves.reply } else { halves.forward };
        match self.tables.slot(other) {
            Some(entry) => seems_expired(self.tables.config(), entry.load_meta(), self.now),
            None => false,
        }
    }

    /// Judges a live session under the policy in force; `None`: it goes on.
    #[inline(always)]
    fn judge_again(
        &self,
        link: Link,
        policy: PolicyWord,
        stamp: u32,
        incarnation: u32,
    ) -> Option<Verdict<V4>> {
        let number = link.record();
        let record = self.tables.record(number)?;
        let halves = halves(record);
        let (forward, reply) = (self.tables.slot(halves.forward)?, self.tables.slot(halves.reply)?);
        let key = V4::unpack(&forward.key());
        let towards = V4::unpack(&reply.key()).domain;
        let judgement = judge(self.tables, policy, &key, towards, self.packet.length as u64);
        self.tables.tally(Tally::JudgedAgain);
        let withdrawn = record.identity.load() & LEASED != 0
            && !self.tables.is_outside(policy.bank(), forward.rewrite().source);
        if judgement.action == ACTION_PERMIT && !withdrawn {
            let facts = Facts(record.facts.load());
            record.rules.store((judgement.rule as u64) << 32 | judgement.would_match as u64);
            record
                .identities
                .store((judgement.source.id as u64) << 32 | judgement.destination.id as u64);
            let snat_policy = record.policy.load() >> 32 << 32;
            record.policy.store(snat_policy | policy.generation() as u64);
            // A log setting that changed holds from now on; losing to a phase change is
            // mended at the next judgement.
            let new = Facts::new(
                facts.phase(),
                judgement.log,
                facts.ingress(),
                facts.egress(),
                judgement.mark,
            );
            record.facts.replace(facts.0, new.0);
            let source = epoch_slot(key.domain, key.source);
            let destination = epoch_slot(towards, key.destination);
            let stamp = Stamp::new(stamp, source, destination);
            forward.stamp().store(stamp.0);
            reply.stamp().store(stamp.0);
            return None;
        }
        let cause = if withdrawn { event::ENDED_WITHDRAWN } else { event::ENDED_REVOKED };
        end(self.tables, number, Ending::Now(cause, incarnation), self.now);
        if withdrawn {
            let inside = self.attachment.kind == KIND_SPOKE && self.packet.kind == Kind::Tcp;
            return Some(if inside {
                Verdict::Answer(Reason::SnatWithdrawn, Answer::Reset)
            } else {
                Verdict::Drop(Reason::SnatWithdrawn)
            });
        }
        Some(self.refuse(&judgement, towards))
    }

    /// Asks the kernel where a next hop is now.
    #[inline(always)]
    fn refresh(&self, number: u16, hop: Hop) -> Hop {
        let gateway = V4(hop.gateway());
        let mut new = hop;
        new.checked = hop.checked & !0xffff_ffff | self.now as u64;
        let own = self.tables.attachment(hop.attachment());
        if let Some(own) = own
            && let Route::Via { ifindex, destination_mac, source_mac, .. } =
                self.tables.route(own.ifindex, gateway, gateway)
            && ifindex == own.ifindex
        {
            match destination_mac {
                Some(mac) => {
                    new.destination = Hop::mac_word(mac, hop.vlan());
                    new.source = Hop::mac_word(source_mac, hop.mtu());
                    new.place = hop.place | HOP_RESOLVED as u64;
                }
                None => new.place = hop.place & !(HOP_RESOLVED as u64),
            }
        }
        self.tables.set_hop(number, &new);
        new
    }

    /// What keeps a packet from leaving by a next hop, whatever the policy says.
    #[inline(always)]
    fn obstacle(&self, hop: &Hop) -> Option<Verdict<V4>> {
        if self.packet.ttl <= 1 {
            return Some(self.answer(Reason::TtlExpired, 11, 0, 0));
        }
        if self.packet.length > hop.mtu() && self.arrival.segments <= 1 {
            if self.packet.dont_fragment {
                return Some(self.answer(Reason::TooBig, 3, 4, hop.mtu()));
            }
            return Some(Verdict::Drop(Reason::TooBig));
        }
        None
    }

    #[inline(always)]
    fn answer(&self, reason: Reason, kind: u8, code: u8, mtu: u16) -> Verdict<V4> {
        Verdict::Answer(reason, Answer::Icmp(kind, code, mtu, self.attachment.address))
    }

    /// A segment, answer or error that belongs to no session.
    #[inline(always)]
    fn unexpected(&self) -> Verdict<V4> {
        if is_own(self.tables, self.packet.key.destination) {
            return Verdict::Pass;
        }
        let reset = self.attachment.kind == KIND_SPOKE
            && self.packet.kind == Kind::Tcp
            && self.packet.tcp_flags & tcp::RST == 0
            && self.tables.config().midstream.load() == MIDSTREAM_RESET;
        if reset {
            return Verdict::Answer(Reason::NoSession, Answer::Reset);
        }
        Verdict::Drop(Reason::NoSession)
    }

    /// A packet whose key is not in the table.
    #[inline(always)]
    fn unknown(&self) -> Verdict<V4> {
        let key = &self.packet.key;
        if is_own(self.tables, key.destination) {
            return Verdict::Pass;
        }
        if key.source.is_martian() || key.destination.is_martian() {
            return Verdict::Drop(Reason::Martian);
        }
        let config = self.tables.config();
        let adopted = match self.packet.kind {
            Kind::Tcp if !tcp::opens(self.packet.tcp_flags) => {
                if config.midstream.load() != MIDSTREAM_ADOPT
                    || self.packet.tcp_flags & (tcp::RST | tcp::SYN) != 0
                {
                    return self.unexpected();
                }
                true
            }
            Kind::EchoReply | Kind::IcmpError => return self.unexpected(),
            Kind::Tcp | Kind::Udp | Kind::Echo => false,
        };
        let policy = PolicyWord(config.policy.load());
        if policy.generation() == 0 {
            return Verdict::Drop(Reason::NoPolicy);
        }
        let exit = match self.exit() {
            Ok(exit) => exit,
            Err(verdict) => return verdict,
        };
        let towards = exit.attachment.domain;
        let judgement = judge(self.tables, policy, key, towards, self.packet.length as u64);
        if judgement.action != ACTION_PERMIT {
            return self.refuse(&judgement, towards);
        }
        if let Some(verdict) = self.obstacle(&exit.hop) {
            return verdict;
        }
        // A flow towards a non-routable address of another domain: only its answers would
        // ever need translation, and they would leave with a non-routable source.
        if is_non_routable(config, key.destination) && towards != key.domain {
            return self.denied(Reason::NonRoutableDestination, &judgement, towards);
        }
        let verdict = self.open(policy, &exit, &judgement, adopted);
        match verdict {
            Verdict::Drop(
                reason @ (Reason::PortsExhausted | Reason::TableFull | Reason::NoSnatPolicy),
            ) => self.denied(reason, &judgement, towards),
            other => other,
        }
    }

    /// The way out, as the kernel would route it.
    #[inline(always)]
    fn exit(&self) -> Result<Exit, Verdict<V4>> {
        let key = &self.packet.key;
        let route = self.tables.route(self.attachment.ifindex, key.source, key.destination);
        let (ifindex, gateway, destination_mac, source_mac) = match route {
            Route::Via { ifindex, gateway, destination_mac, source_mac } => {
                (ifindex, gateway, destination_mac, source_mac)
            }
            Route::Local => return Err(Verdict::Pass),
            Route::Unreachable => return Err(Verdict::Drop(Reason::NoRoute)),
            Route::Failed => return Err(Verdict::Drop(Reason::HelperFailed)),
        };
        let no_egress = Err(Verdict::Drop(Reason::NoEgress));
        let Some(link) = self.tables.link(ifindex) else { return no_egress };
        let place = port(link.parent, link.vlan);
        let Some(number) = self.tables.attachment_towards(place, key.destination) else {
            return no_egress;
        };
        let Some(attachment) = self.tables.attachment(number) else { return no_egress };
        let hop_key = NextHopKey {
            ifindex: link.parent,
            vlan: link.vlan,
            attachment: number,
            kind: BY_ADDRESS4,
            bytes: [gateway[0], gateway[1], gateway[2], gateway[3], 0, 0],
        };
        let mut hop =
            hop_towards(&link, number, &attachment, destination_mac.unwrap_or([0; 6]), source_mac);
        hop.place |= HOP_REFRESH as u64;
        if destination_mac.is_none() {
            hop.place &= !(HOP_RESOLVED as u64);
        }
        hop.checked = (u32::from_be_bytes(gateway) as u64) << 32 | self.now as u64;
        let hop_number = match self.tables.find_hop(&hop_key) {
            Some(hop_number) => {
                // The kernel's answer is as fresh as can be.
                if self.tables.hop(hop_number).is_some_and(|old| old.destination != hop.destination)
                {
                    self.tables.set_hop(hop_number, &hop);
                }
                hop_number
            }
            None => match self.tables.add_hop(&hop_key, &hop) {
                Some(hop_number) => hop_number,
                None => return Err(Verdict::Drop(Reason::NextHopsFull)),
            },
        };
        Ok(Exit { hop_number, hop, number, attachment })
    }

    /// The way back: to the neighbour that this packet came from.
    #[inline(always)]
    fn way_back(&self) -> Option<u16> {
        let key = NextHopKey {
            ifindex: self.arrival.ifindex,
            vlan: self.arrival.vlan,
            attachment: self.number,
            kind: BY_MAC,
            bytes: self.arrival.sender,
        };
        if let Some(number) = self.tables.find_hop(&key) {
            return Some(number);
        }
        let link = self.tables.link(self.attachment.ifindex)?;
        let hop = hop_towards(&link, self.number, &self.attachment, self.arrival.sender, link.mac);
        self.tables.add_hop(&key, &hop)
    }

    /// Translates and writes down a flow that is permitted.
    #[inline(always)]
    fn open(
        &self,
        policy: PolicyWord,
        exit: &Exit,
        judgement: &Judgement,
        adopted: bool,
    ) -> Verdict<V4> {
        let tables = self.tables;
        let key = &self.packet.key;
        let flow = FlowFacts {
            source_port: u16::from_be_bytes(key.source_port),
            destination_port: u16::from_be_bytes(key.destination_port),
            protocol: key.protocol,
            mark: judgement.mark,
            interface_class: exit.attachment.interface_class,
            connection_class: exit.attachment.connection_class,
        };
        let bank = policy.bank();
        let snat_policy = match (
            tables.snat_bits(bank, judgement.source.index),
            tables.snat_bits(bank, judgement.destination.index),
        ) {
            (Some(by_source), Some(by_destination)) => snat::matching(
                tables,
                bank,
                policy.snat_policies(),
                &flow,
                by_source,
                by_destination,
            ),
            _ => return Verdict::Drop(Reason::HelperFailed),
        };
        let translation = match snat_policy {
            Some(chosen) if chosen.addresses > 0 => {
                match snat::paired(tables, bank, &chosen, key.domain, key.source) {
                    Some(address) => Some(address),
                    None => return Verdict::Drop(Reason::HelperFailed),
                }
            }
            _ => None,
        };
        if translation.is_none()
            && exit.attachment.flags & ROUTABLE != 0
            && is_non_routable(tables.config(), key.source)
            && !tables.carries(exit.number, key.source)
        {
            return Verdict::Drop(Reason::NoSnatPolicy);
        }
        if adopted && translation.is_some() {
            return self.unexpected();
        }
        let Some(back) = self.way_back() else { return Verdict::Drop(Reason::NextHopsFull) };

        let Some(number) = tables.take_record().or_else(|| reclaim(tables, self.now)) else {
            return Verdict::Drop(Reason::TableFull);
        };
        let Some(record) = tables.record(number) else {
            return Verdict::Drop(Reason::HelperFailed);
        };
        let forward = match table::claim(tables, &V4::pack(key)) {
            Claim::Taken(index) => index,
            refused => {
                tables.give_record(number);
                return Verdict::Drop(not_claimed(refused));
            }
        };
        let mut reply_key = key.reversed(exit.attachment.domain);
        let claimed = match translation {
            Some(outside) => {
                reply_key.destination = V4(outside.address);
                snat::lend(tables, &mut reply_key, outside.lendable, self.now)
            }
            None => match table::claim(tables, &V4::pack(&reply_key)) {
                Claim::Taken(index) => Ok(index),
                refused => Err(not_claimed(refused)),
            },
        };
        let reply = match claimed {
            Ok(index) => index,
            Err(reason) => {
                table::release(tables, forward);
                tables.give_record(number);
                return Verdict::Drop(reason);
            }
        };
        let (Some(f), Some(r)) = (tables.slot(forward), tables.slot(reply)) else {
            return Verdict::Drop(Reason::HelperFailed);
        };

        let rewrite = translate(key, reply_key.destination, reply_key.destination_port);
        let stamp = Stamp::new(
            current_stamp(
                tables,
                policy,
                epoch_slot(key.domain, key.source),
                epoch_slot(exit.attachment.domain, key.destination),
            ),
            epoch_slot(key.domain, key.source),
            epoch_slot(exit.attachment.domain, key.destination),
        );
        let phase = match (self.packet.kind, adopted) {
            (Kind::Tcp, true) => Phase::ADOPTED,
            (Kind::Tcp, false) => Phase::NEW.after(false, self.packet.tcp_flags),
            _ => Phase::NEW,
        };
        let class = session::first_class(key.protocol, phase);
        f.set_rewrite(&rewrite);
        let flags = (self.packet.tcp_flags as u64) << 8;
        f.link().store(Link::new(number, exit.hop_number, false).0 | flags);
        f.stamp().store(stamp.0);
        f.count().store(Count::new(self.arrival.segments as u64, self.packet.length as u64).0);
        r.set_rewrite(&translate_back(&reply_key, key));
        r.link().store(Link::new(number, back, true).0);
        r.stamp().store(stamp.0);
        r.count().store(0);

        let incarnation = tables.shared().incarnation.fetch_add(1) as u32;
        let leased = if translation.is_some() { LEASED } else { 0 };
        record.slots.store((forward as u64) << 32 | reply as u64);
        record.rules.store((judgement.rule as u64) << 32 | judgement.would_match as u64);
        record
            .identities
            .store((judgement.source.id as u64) << 32 | judgement.destination.id as u64);
        let snat_id = snat_policy.map_or(0, |p| p.id);
        record.policy.store((snat_id as u64) << 32 | policy.generation() as u64);
        let clock = tables.clock();
        record.began.store(clock);
        record
            .facts
            .store(Facts::new(phase.0, judgement.log, self.number, exit.number, judgement.mark).0);
        let mut i = 0;
        while i < 4 {
            record.spilled[i].store(0);
            i += 1;
        }
        record.event.store(0);
        record.identity.store((incarnation as u64) << 32 | leased);

        table::publish(tables, forward, class, self.now);
        table::publish(tables, reply, class, self.now);
        tables.tally(Tally::Begun);
        if judgement.log & LOG_START != 0 {
            let mut event = session::describe(key, &rewrite);
            event.kind = event::START;
            event.phase = phase.0;
            event.tcp_flags = [self.packet.tcp_flags, 0];
            event.session = (incarnation as u64) << 32 | number as u64;
            event.time = clock;
            event.began = clock;
            event.destination_domain = exit.attachment.domain;
            event.packets = [self.arrival.segments as u64, 0];
            event.bytes = [self.packet.length as u64, 0];
            session::fill_from_record(&mut event, record);
            tables.report(&event);
        }
        if !exit.hop.is(HOP_RESOLVED) {
            return Verdict::Punt(self.number);
        }
        if exit.hop.is(HOP_ROUTABLE)
            && is_non_routable(tables.config(), rewrite.source)
            && !tables.carries(exit.number, rewrite.source)
        {
            tables.tally(Tally::LeakStopped);
            return Verdict::Drop(Reason::Leak);
        }
        Verdict::Forward(Forward { rewrite, hop: exit.hop, reply: false })
    }

    /// A packet that the policy refuses.
    #[inline(always)]
    fn refuse(&self, judgement: &Judgement, towards: u16) -> Verdict<V4> {
        let reason = match (judgement.rule, judgement.action) {
            (0, _) => Reason::DefaultDenied,
            (_, ACTION_REJECT) => Reason::RuleRejected,
            _ => Reason::RuleDenied,
        };
        let verdict = self.denied(reason, judgement, towards);
        if judgement.action != ACTION_REJECT {
            return verdict;
        }
        // A refused segment that is itself a RST, or an error about a packet that was an
        // answer to nothing, is not answered (RFC 1122 3.2.2, RFC 793).
        match self.packet.kind {
            Kind::Tcp if self.packet.tcp_flags & tcp::RST != 0 => verdict,
            Kind::Tcp => Verdict::Answer(reason, Answer::Reset),
            Kind::Udp | Kind::Echo | Kind::EchoReply | Kind::IcmpError => {
                self.answer(reason, 3, 13, 0)
            }
        }
    }

    /// Reports a refusal, at most so often per rule and source.
    #[inline(always)]
    fn denied(&self, reason: Reason, judgement: &Judgement, towards: u16) -> Verdict<V4> {
        let tables = self.tables;
        if judgement.log != 0 {
            let bucket = (judgement.rule ^ judgement.source.id.rotate_left(7))
                .wrapping_mul(0x9e37_79b1)
                .wrapping_add(reason as u32);
            let limit = tables.config().rates.load() as u32;
            match tables.admit(bucket, limit, self.now) {
                Some(suppressed) => {
                    let key = &self.packet.key;
                    let untranslated = translate(key, key.source, key.source_port);
                    let mut event = session::describe(key, &untranslated);
                    event.kind = event::DENY;
                    event.reason = reason as u8;
                    event.tcp_flags = [self.packet.tcp_flags, 0];
                    event.ingress = self.number;
                    event.time = tables.clock();
                    event.destination_domain = towards;
                    event.rule = judgement.rule;
                    event.would_match = judgement.would_match;
                    event.source_identity = judgement.source.id;
                    event.destination_identity = judgement.destination.id;
                    event.generation = PolicyWord(tables.config().policy.load()).generation();
                    event.packets = [self.arrival.segments as u64, 0];
                    event.bytes = [self.packet.length as u64, 0];
                    event.suppressed = suppressed;
                    event.action = judgement.action as u32;
                    tables.report(&event);
                }
                None => tables.tally(Tally::Suppressed),
            }
        }
        Verdict::Drop(reason)
    }
}

const fn not_claimed(claim: Claim) -> Reason {
    match claim {
        Claim::NoRoom => Reason::TableFull,
        Claim::Exists | Claim::Contended | Claim::Taken(_) => Reason::Contended,
    }
}

#[inline(always)]
fn hop_towards(
    link: &LinkInfo,
    number: u16,
    attachment: &Attachment,
    destination_mac: [u8; 6],
    source_mac: [u8; 6],
) -> Hop {
    let mut flags = HOP_USED;
    if link.flags & LINK_UP != 0 {
        flags |= HOP_RESOLVED;
    }
    if link.flags & LINK_REDIRECT != 0 {
        flags |= HOP_REDIRECT;
    }
    if attachment.flags & ROUTABLE != 0 {
        flags |= HOP_ROUTABLE;
    }
    Hop {
        destination: Hop::mac_word(destination_mac, link.vlan),
        source: Hop::mac_word(source_mac, link.mtu),
        place: (link.parent as u64) << 32 | (number as u64) << 16 | flags as u64,
        checked: 0,
    }
}

/// Which epoch an address's identity changes are counted in.
#[inline(always)]
pub fn epoch_slot(domain: u16, address: V4) -> u32 {
    let mixed = (address.mix() ^ domain as u64).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (mixed >> 40) as u32 & (EPOCHS as u32 - 1)
}

/// Generation and both epochs now.
#[inline(always)]
pub fn current_stamp<T: Tables>(
    tables: &T,
    policy: PolicyWord,
    source: u32,
    destination: u32,
) -> u32 {
    policy.generation().wrapping_add(tables.epoch(source)).wrapping_add(tables.epoch(destination))
}

/// Whether this protocol's checksum covers the addresses too.
const fn has_pseudo_header(protocol: u8) -> bool {
    protocol != crate::packet::ICMP
}

#[inline(always)]
fn half(port: [u8; 2]) -> u32 {
    u16::from_ne_bytes(port) as u32
}

/// The rewrite that gives a packet another source.
#[inline(always)]
pub fn translate(key: &Key<V4>, source: V4, source_port: [u8; 2]) -> Rewrite<V4> {
    let address_delta = checksum::delta(key.source.sum(), source.sum());
    let port_delta = checksum::delta(half(key.source_port), half(source_port));
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
#[inline(always)]
pub fn translate_back(reply: &Key<V4>, key: &Key<V4>) -> Rewrite<V4> {
    let address_delta = checksum::delta(reply.destination.sum(), key.source.sum());
    let port_delta = checksum::delta(half(reply.destination_port), half(key.source_port));
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

/// Slots that are looked at when no record is free.
const RECLAIM_SLOTS: u32 = 32;

/// Takes over the record of a session whose time is over, when all are in use and nobody
/// sweeps: a few slots from a common cursor on, so that repeated calls see the whole table.
#[inline(always)]
fn reclaim<T: Tables<A = V4>>(tables: &T, now: u32) -> Option<u32> {
    let mask = table::window_mask(tables);
    let from = tables.shared().sweep_cursor.fetch_add(RECLAIM_SLOTS as u64) as u32;
    let mut i = 0;
    while i < RECLAIM_SLOTS {
        sweep_slot(tables, (from + i) & mask, now);
        i += 1;
    }
    tables.take_record()
}

/// Ends the session of a forward entry if its time is over.
#[inline(always)]
pub fn sweep_slot<T: Tables<A = V4>>(tables: &T, index: u32, now: u32) -> Ended {
    let Some(entry) = tables.slot(index) else { return Ended::Lives };
    let meta = entry.load_meta();
    if !meta.is(State::Live) || !seems_expired(tables.config(), meta, now) {
        return Ended::Lives;
    }
    let link = entry.load_link();
    if link.is_reply() || !entry.load_meta().same_owner(meta) {
        return Ended::Lives;
    }
    end(tables, link.record(), Ending::Expire, now)
}
