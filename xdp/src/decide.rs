//! The long way: everything that is not a plain packet of a known session.
//!
//! A packet belongs to an attachment by where it came in and by its source; that gives the
//! domain and so the session key. A known session is checked again (time, policy, phase, next
//! hop); an unknown flow is judged, given a way out, translated, and written down.

use crate::{
    address::{Address, Entry, Key, V4},
    established::HOP_AGE,
    open::{Plan, translate},
    packet::{Kind, Packet},
    policy::{Judgement, judge, parties},
    recent::{self, Line, Origin},
    session::{self, Ended, Ending, LEASED, end, halves, idle, seems_expired},
    table::{self, Found},
    tables::{Route, Tables, Tally, is_non_routable},
    tcp,
    verdict::{Code, Forward, Verdict},
};
use xdp_abi::{
    config::{MIDSTREAM_ADOPT, MIDSTREAM_RESET, PolicyWord},
    control::{SWEEP_ENDS, SWEEP_SLOTS},
    event,
    forward::{
        ATTACHED, Attachment, BY_ADDRESS4, BY_MAC, HOP_REDIRECT, HOP_REFRESH, HOP_RESOLVED,
        HOP_ROUTABLE, HOP_USED, Hop, KIND_SPOKE, LINK_REDIRECT, LINK_UP, LinkInfo, NextHopKey,
        ROUTABLE, port,
    },
    policy::{ACTION_PERMIT, ACTION_REJECT},
    reason::Reason,
    session::{Class, Count, EPOCHS_USED, Facts, Link, NETWORK_EPOCH, Stamp, State},
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
    /// The longest of them, from the IP header on.
    pub longest: u32,
    /// When, in ticks.
    pub now: u32,
}

/// What was decided, and what counting and `capture` want to know of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What becomes of the packet.
    pub code: Code,
    /// The details, if it goes on.
    pub forward: Forward<V4>,
    /// The attachment it came by; zero: unknown.
    pub attachment: u16,
    /// The machine's address there.
    pub address: [u8; 4],
    /// Whether it came from a spoke.
    pub outbound: bool,
    /// The attachment itself. Here, because the stack of a BPF program is short.
    from: Attachment,
    doom: Doom,
}

/// The session that [`Code::END`] is about. It is ended by the caller, when the stack of whoever
/// found that out is free again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Doom {
    record: u32,
    ending: Ending,
    /// The domain that it leads into.
    towards: u16,
    /// What its first packet carried.
    key: Key<V4>,
    /// The interface that it came in by.
    from: u32,
    /// Whether its way out is to be looked up again.
    goes_anew: bool,
}

impl Doom {
    /// Whether its translation, or the way that it took, is no longer to be had.
    #[inline(always)]
    fn is_withdrawn(&self) -> bool {
        self.ending.cause() == event::ENDED_WITHDRAWN
    }
}

impl Decision {
    /// Before anything is decided.
    pub const NONE: Self = Self {
        code: Code::GO_ON,
        forward: Forward::NOWHERE,
        attachment: 0,
        address: [0; 4],
        outbound: false,
        from: Attachment::NONE,
        doom: Doom {
            record: 0,
            ending: Ending::EXPIRE,
            towards: 0,
            key: Packet::NONE.key,
            from: 0,
            goes_anew: false,
        },
    };

    /// The verdict, spelt out.
    pub fn verdict(&self) -> Verdict<V4> {
        self.code.verdict(&self.forward, self.attachment, self.address)
    }
}

/// The packet of a known session: what becomes of it, or that there is no session
/// ([`Code::ANEW`]). What is said of it, if it is judged again, is left in `plan`.
#[inline(always)]
pub fn continued<T: Tables<A = V4>>(
    tables: &T,
    packet: &mut Packet<V4>,
    arrival: &Arrival,
    decision: &mut Decision,
    plan: &mut Plan,
) {
    if !locate(tables, packet, arrival, decision) {
        return;
    }
    let way = Way::new(tables, packet, arrival, decision.attachment, &decision.from);
    let Some(found) = table::find(tables, &V4::pack(&packet.key)) else {
        decision.code = Code::ANEW;
        return;
    };
    let Decision { forward, doom, .. } = decision;
    let mut code = way.known(&found, forward, doom);
    if code.is(Code::STALE) {
        // One after the other, and not one inside the other, as in `opened`.
        code = way.recall(&found, plan, doom);
        if code.is(Code::GO_ON) {
            let bytes = packet.length as u64;
            judge(tables, plan.policy, &doom.key, bytes, &mut plan.judgement);
            tables.tally(Tally::JudgedAgain);
            // Read from `doom` and not from what `recall` returned: the verifier of Linux 6.1 once
            // lost sight of a code that was kept for longer than a call, and removed what came
            // after it.
            if plan.judgement.action != ACTION_PERMIT || doom.is_withdrawn() {
                code = Code::END;
            }
        }
        if code.is(Code::GO_ON) && doom.goes_anew {
            plan.knows_destination = false;
            code = way.exit(doom.from, &doom.key, plan);
            if code.is(Code::GO_ON) && plan.egress.domain != doom.towards {
                doom.ending = doom.ending.because(event::ENDED_WITHDRAWN);
                code = Code::END;
            } else if code.is(Code::PASS) {
                code = Code::drop(Reason::NoRoute);
            }
        }
        if code.is(Code::END) {
            end(tables, doom.record, doom.ending, way.now);
            decision.code = way.cut(&plan.judgement, doom);
            return;
        }
        if code.is(Code::GO_ON) {
            code = way.renew(&found, plan, doom.goes_anew);
        }
        if code.is(Code::GO_ON) {
            // Its stamp is that of just now, unless the policy changed once more: then the
            // next packet is judged.
            code = way.known(&found, forward, doom);
            if code.is(Code::STALE) {
                code = Code::drop(Reason::Contended);
            }
        }
    }
    if code.is(Code::END) {
        code = match end(tables, doom.record, doom.ending, way.now) {
            Ended::Gone => Code::ANEW,
            // It rests, or a packet has just revived it: the next packet sees which.
            Ended::Rests | Ended::Lives => Code::drop(Reason::Contended),
        };
    }
    decision.code = code;
}

/// The packet of an unknown flow, after it was found that it is one, and by `locate` where it
/// came from.
#[inline(always)]
pub fn opened<T: Tables<A = V4>>(
    tables: &T,
    packet: &Packet<V4>,
    arrival: &Arrival,
    decision: &mut Decision,
    plan: &mut Plan,
) {
    let way = Way::new(tables, packet, arrival, decision.attachment, &decision.from);
    // One after the other, and not one inside the other: their frames share the stack.
    let mut code = way.unknown(plan);
    if code.is(Code::OPEN) {
        code = way.choose(plan);
        if code.is(Code::GO_ON) {
            code = way.enter(plan);
        }
        if code.is(Code::GO_ON) {
            code = way.write_down(plan, &mut decision.forward);
        } else {
            code = way.not_opened(code, plan);
        }
    }
    decision.code = code;
}

/// Finds the attachment that a packet came by, or decides without one; the packet gets its
/// domain.
#[inline(always)]
fn locate<T: Tables<A = V4>>(
    tables: &T,
    packet: &mut Packet<V4>,
    arrival: &Arrival,
    decision: &mut Decision,
) -> bool {
    let place = port(arrival.ifindex, arrival.vlan);
    let number = tables.attachment_of(place, packet.key.source).unwrap_or(0);
    located(tables, packet, number, decision)
}

/// Takes a packet for one of an attachment, or decides without one; zero: it is of none.
#[inline(always)]
fn located<T: Tables<A = V4>>(
    tables: &T,
    packet: &mut Packet<V4>,
    number: u16,
    decision: &mut Decision,
) -> bool {
    decision.attachment = number;
    decision.outbound = false;
    decision.address = [0; 4];
    let Some(attachment) = tables.attachment(number).filter(|a| a.flags & ATTACHED != 0) else {
        decision.code = not_from_here(tables, packet);
        return false;
    };
    decision.outbound = attachment.kind == KIND_SPOKE;
    decision.address = attachment.address;
    packet.key.domain = attachment.domain;
    decision.from = attachment;
    true
}

/// The plain first packet of a flow, by an untagged interface, in a frame that was sent to `to`.
/// What is found out of its source is remembered.
#[inline(always)]
pub(crate) fn first<T: Tables<A = V4>>(
    tables: &T,
    packet: &mut Packet<V4>,
    arrival: &Arrival,
    to: &[u8; 6],
    decision: &mut Decision,
    plan: &mut Plan,
) {
    plan.begin(tables.epoch(NETWORK_EPOCH), true);
    plan.policy = PolicyWord(tables.config().policy.load());
    let number = origin(tables, packet.key.source, arrival, to, plan);
    if number == NOT_OURS {
        decision.code = Code::PASS;
        return;
    }
    if !located(tables, packet, number as u16, decision) {
        return;
    }
    let slot = epoch_slot(packet.key.domain, packet.key.source);
    plan.knows_source &= plan.source_epochs == recent::epochs(tables, plan.network, slot);
    opened(tables, packet, arrival, decision, plan);
}

/// The attachment that the source of a first packet comes by, zero if by none, or [`NOT_OURS`];
/// with what else is remembered of it.
#[inline(never)]
fn origin<T: Tables<A = V4>>(
    tables: &T,
    source: V4,
    arrival: &Arrival,
    to: &[u8; 6],
    plan: &mut Plan,
) -> u32 {
    let ifindex = arrival.ifindex;
    let origin = Origin { ifindex, source, to, sender: &arrival.sender };
    if let Some(line) = recent::source(tables, plan.policy, plan.network, &origin) {
        plan.knows_source = true;
        plan.source_epochs = line.epochs();
        plan.judgement.source = line.identity();
        plan.back_known = line.back();
        return line.attachment() as u32;
    }
    if is_for_another(tables, ifindex, 0, to, source) {
        return NOT_OURS;
    }
    let number = tables.attachment_of(port(ifindex, 0), source).unwrap_or(0);
    if let Some(line) = tables.recent(recent::source_place(ifindex, source)) {
        line.remember_origin(&origin, number);
    }
    number as u32
}

/// The frame is for another machine.
const NOT_OURS: u32 = u32::MAX;

/// Whether a frame is for another machine and was only flooded here, or seen because somebody
/// looks at everything: the kernel drops it, so it is the kernel's. A tagged one may be for the
/// address of its VLAN device, which is mostly that of the interface. Of an interface without
/// addresses nothing is known.
#[inline(never)]
pub(crate) fn is_for_another<T: Tables<A = V4>>(
    tables: &T,
    ifindex: u32,
    vlan: u16,
    to: &[u8; 6],
    source: V4,
) -> bool {
    if tables.link(ifindex).is_some_and(|link| link.mac == *to) {
        return false;
    }
    let number = tables.attachment_of(port(ifindex, vlan), source);
    let attachment = number.and_then(|number| attached(tables, number));
    let link = attachment.and_then(|attachment| tables.link(attachment.ifindex));
    link.is_some_and(|link| link.mac != *to && link.mac != [0; 6])
}

#[inline(always)]
pub(crate) fn attached<T: Tables<A = V4>>(tables: &T, number: u16) -> Option<Attachment> {
    tables.attachment(number).filter(|attachment| attachment.flags & ATTACHED != 0)
}

/// A packet that belongs to no attachment.
#[inline(always)]
fn not_from_here<T: Tables<A = V4>>(tables: &T, packet: &Packet<V4>) -> Code {
    if is_own(tables, packet.key.destination) {
        return Code::PASS;
    }
    Code::drop(Reason::SpoofedSource)
}

/// Whether a packet to this address is the machine's own business.
#[inline(always)]
pub fn is_own<T: Tables<A = V4>>(tables: &T, destination: V4) -> bool {
    // Broadcast and multicast are not routed; the kernel knows whether they are for it.
    destination.0[0] >= 224 || tables.is_local(destination)
}

/// One packet on its way.
pub(crate) struct Way<'a, T: Tables> {
    pub(crate) tables: &'a T,
    pub(crate) packet: &'a Packet<T::A>,
    pub(crate) arrival: &'a Arrival,
    pub(crate) number: u16,
    pub(crate) attachment: &'a Attachment,
    pub(crate) now: u32,
}

impl<'a, T: Tables<A = V4>> Way<'a, T> {
    #[inline(always)]
    fn new(
        tables: &'a T,
        packet: &'a Packet<V4>,
        arrival: &'a Arrival,
        number: u16,
        attachment: &'a Attachment,
    ) -> Self {
        Self { tables, packet, arrival, number, attachment, now: arrival.now }
    }

    /// A packet whose key is in the table.
    #[inline(never)]
    fn known(&self, found: &Found, out: &mut Forward<V4>, doom: &mut Doom) -> Code {
        let Some(entry) = self.tables.slot(found.index) else {
            return Code::drop(Reason::Contended);
        };
        let link = entry.load_link();
        let rewrite = entry.rewrite();
        let stamp = entry.load_stamp();
        let Some(record) = self.tables.record(link.record()) else {
            return Code::drop(Reason::Contended);
        };
        let incarnation = (record.identity.load() >> 32) as u32;
        if !entry.load_meta().same_owner(found.meta) {
            return Code::drop(Reason::Contended);
        }
        let config = self.tables.config();
        let class = found.meta.class();

        // A session that is over: its tuple may be opened anew.
        let over = matches!(class, Class::Resting)
            || seems_expired(config, found.meta, self.now) && self.other_half_expired(*found, link);
        let reopened = self.packet.kind == Kind::Tcp
            && tcp::opens(self.packet.tcp_flags)
            && matches!(class, Class::TcpClosed | Class::TcpReset);
        if over || reopened {
            // Behind an outside address there is nobody to open anything towards; without
            // translation the other end may, and is judged for itself.
            if link.is_reply() && record.identity.load() & LEASED != 0 {
                return self.unexpected();
            }
            let ending = if over {
                Ending::REPLACE
            } else {
                Ending::now(event::ENDED_REOPENED, incarnation)
            };
            doom.record = link.record();
            doom.ending = ending;
            return Code::END;
        }

        let policy = PolicyWord(config.policy.load());
        let current = current_stamp(self.tables, policy, stamp.source(), stamp.destination());
        if stamp.stamp() != current {
            return Code::STALE;
        }

        let Some(mut hop) = self.tables.hop(link.next_hop()) else {
            return Code::drop(Reason::HelperFailed);
        };
        if hop.is(HOP_REFRESH) && (!hop.is(HOP_RESOLVED) || idle(self.now, hop.tick()) > HOP_AGE) {
            self.refresh(link.next_hop(), &mut hop);
        }
        let obstacle = self.obstacle(&hop);
        if !obstacle.is(Code::GO_ON) {
            return obstacle;
        }
        if hop.is(HOP_ROUTABLE)
            && is_non_routable(config, rewrite.source)
            && !self.tables.carries(hop.attachment(), rewrite.source)
        {
            self.tables.tally(Tally::LeakStopped);
            return Code::drop(Reason::Leak);
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
                session::follow_tcp(self.tables, *found, link, flags, self.now);
            }
        }
        // Refresh on the newest reading: the class may just have changed.
        let meta = entry.load_meta();
        if meta.is(State::Live) && meta.tick() != self.now {
            entry.meta().replace(meta.0, meta.with_tick(self.now).0);
        }
        if !hop.is(HOP_RESOLVED) {
            // The kernel would take an untranslated answer for its own.
            if rewrite.destination != self.packet.key.destination {
                return Code::drop(Reason::NoRoute);
            }
            return Code::PUNT;
        }
        *out = Forward {
            rewrite,
            hop,
            reply: link.is_reply(),
            session: (incarnation as u64) << 32 | link.record() as u64,
            rule: (record.rules.load() >> 32) as u32,
        };
        Code::FORWARD
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

    /// Reads of a live session what judging it again takes: its first packet's key, who its
    /// parties are under the policy in force, where it leads.
    #[inline(never)]
    fn recall(&self, found: &Found, plan: &mut Plan, doom: &mut Doom) -> Code {
        let contended = Code::drop(Reason::Contended);
        let tables = self.tables;
        let Some(entry) = tables.slot(found.index) else { return contended };
        let policy = PolicyWord(tables.config().policy.load());
        let number = entry.load_link().record();
        let Some(record) = tables.record(number) else { return contended };
        let incarnation = (record.identity.load() >> 32) as u32;
        if !entry.load_meta().same_owner(found.meta) {
            return contended;
        }
        let halves = halves(record);
        let (Some(forward), Some(reply)) = (tables.slot(halves.forward), tables.slot(halves.reply))
        else {
            return contended;
        };
        let key = V4::unpack(&forward.key());
        let towards = V4::unpack(&reply.key()).domain;
        // Read before judging: what changes meanwhile is judged at the next packet.
        let source = epoch_slot(key.domain, key.source);
        let destination = epoch_slot(towards, key.destination);
        let stamp = current_stamp(tables, policy, source, destination);
        plan.policy = policy;
        plan.stamp = Stamp::new(stamp, source, destination);
        plan.judgement = parties(tables, policy, &key, towards);
        doom.record = number;
        doom.ending = Ending::now(event::ENDED_REVOKED, incarnation);
        doom.towards = towards;
        doom.key = key;
        // An identity that changed moves no route; a new generation may stand for one.
        doom.goes_anew = record.policy.load() as u32 != policy.generation();
        let ingress = tables.attachment(Facts(record.facts.load()).ingress());
        let ingress = ingress.filter(|ingress| ingress.domain == key.domain);
        doom.from = ingress.map_or(0, |ingress| ingress.ifindex);
        let withdrawn = ingress.is_none()
            || record.identity.load() & LEASED != 0
                && !tables.is_outside(policy.bank(), forward.rewrite().source);
        if withdrawn {
            doom.ending = doom.ending.because(event::ENDED_WITHDRAWN);
        }
        Code::GO_ON
    }

    /// Writes down that a live session was judged again, and where it goes now.
    #[inline(never)]
    fn renew(&self, found: &Found, plan: &Plan, goes_anew: bool) -> Code {
        let contended = Code::drop(Reason::Contended);
        let Some(entry) = self.tables.slot(found.index) else { return contended };
        let Some(record) = self.tables.record(entry.load_link().record()) else { return contended };
        let halves = halves(record);
        let (Some(forward), Some(reply)) =
            (self.tables.slot(halves.forward), self.tables.slot(halves.reply))
        else {
            return contended;
        };
        if !entry.load_meta().same_owner(found.meta) {
            return contended;
        }
        let facts = Facts(record.facts.load());
        let mut egress = facts.egress();
        if goes_anew {
            egress = plan.egress_number;
            // Losing to a flag that another packet sets is mended at the next judgement.
            let link = forward.load_link();
            forward.link().replace(link.0, link.with_next_hop(plan.hop_number).0);
        }
        let judgement = &plan.judgement;
        record.rules.store((judgement.rule as u64) << 32 | judgement.would_match as u64);
        record
            .identities
            .store((judgement.source.id as u64) << 32 | judgement.destination.id as u64);
        let snat_policy = record.policy.load() >> 32 << 32;
        record.policy.store(snat_policy | plan.policy.generation() as u64);
        // A log setting that changed holds from now on; losing to a phase change is mended at
        // the next judgement.
        let new = Facts::new(facts.phase(), judgement.log, facts.ingress(), egress, judgement.mark);
        record.facts.replace(facts.0, new.0);
        forward.stamp().store(plan.stamp.0);
        reply.stamp().store(plan.stamp.0);
        Code::GO_ON
    }

    /// What becomes of the packet for which a session was ended.
    #[inline(always)]
    fn cut(&self, judgement: &Judgement, doom: &Doom) -> Code {
        if doom.is_withdrawn() {
            let inside = self.attachment.kind == KIND_SPOKE && self.packet.kind == Kind::Tcp;
            return if inside {
                Code::reset(Reason::SnatWithdrawn)
            } else {
                Code::drop(Reason::SnatWithdrawn)
            };
        }
        self.refuse(judgement, doom.towards)
    }

    /// Asks the kernel where a next hop is now.
    #[inline(never)]
    fn refresh(&self, number: u16, hop: &mut Hop) {
        let gateway = V4(hop.gateway());
        let own = self.tables.attachment(hop.attachment());
        if let Some(own) = own
            && let Route::Via { ifindex, destination_mac, source_mac, .. } =
                self.tables.route(own.ifindex, gateway, gateway)
            && ifindex == own.ifindex
        {
            match destination_mac {
                Some(mac) => {
                    hop.destination = Hop::mac_word(mac, hop.vlan());
                    hop.source = Hop::mac_word(source_mac, hop.mtu());
                    hop.place |= HOP_RESOLVED as u64;
                }
                None => hop.place &= !(HOP_RESOLVED as u64),
            }
        }
        hop.checked = hop.checked & !0xffff_ffff | self.now as u64;
        self.tables.set_hop(number, hop);
    }

    /// What keeps a packet from leaving by a next hop, whatever the policy says.
    #[inline(always)]
    fn obstacle(&self, hop: &Hop) -> Code {
        if self.packet.ttl <= 1 {
            return Code::icmp(Reason::TtlExpired, 11, 0, 0);
        }
        if self.arrival.longest > hop.mtu() as u32 {
            if self.packet.dont_fragment {
                return Code::icmp(Reason::TooBig, 3, 4, hop.mtu());
            }
            return Code::drop(Reason::TooBig);
        }
        Code::GO_ON
    }

    /// A segment, answer or error that belongs to no session.
    #[inline(always)]
    fn unexpected(&self) -> Code {
        if is_own(self.tables, self.packet.key.destination) {
            return Code::PASS;
        }
        let reset = self.attachment.kind == KIND_SPOKE
            && self.packet.kind == Kind::Tcp
            && self.packet.tcp_flags & tcp::RST == 0
            && self.tables.config().midstream.load() == MIDSTREAM_RESET;
        if reset {
            return Code::reset(Reason::NoSession);
        }
        Code::drop(Reason::NoSession)
    }

    /// A packet whose key is not in the table: judged, and its way out found ([`Code::OPEN`]), or
    /// what becomes of it instead.
    #[inline(never)]
    fn unknown(&self, plan: &mut Plan) -> Code {
        let key = &self.packet.key;
        let config = self.tables.config();
        let policy = PolicyWord(config.policy.load());
        plan.knows_source &= plan.policy == policy;
        plan.policy = policy;
        // What is remembered is neither the machine's own nor an outside address.
        plan.knows_destination =
            recent::destination(self.tables, policy, plan.network, key.destination).is_some();
        let own = !plan.knows_destination && is_own(self.tables, key.destination);
        let opens = match self.packet.kind {
            Kind::Tcp => tcp::opens(self.packet.tcp_flags),
            Kind::Udp | Kind::Echo => true,
            Kind::EchoReply | Kind::IcmpError => false,
        };
        // A session that is just being looked at for ending may live on: nobody is told that it
        // does not exist, and its packets are not the machine's.
        if (own || !opens) && table::is_held(self.tables, &V4::pack(key)) {
            return Code::drop(Reason::Contended);
        }
        if own {
            return Code::PASS;
        }
        if key.source.is_martian() || key.destination.is_martian() {
            return Code::drop(Reason::Martian);
        }
        match self.packet.kind {
            Kind::Tcp if !tcp::opens(self.packet.tcp_flags) => {
                if config.midstream.load() != MIDSTREAM_ADOPT
                    || self.packet.tcp_flags & (tcp::RST | tcp::SYN) != 0
                {
                    return self.unexpected();
                }
            }
            Kind::EchoReply | Kind::IcmpError => return self.unexpected(),
            Kind::Tcp | Kind::Udp | Kind::Echo => {}
        }
        if policy.generation() == 0 {
            return Code::drop(Reason::NoPolicy);
        }
        // Nobody is behind an outside address but its sessions.
        if !plan.knows_destination && self.tables.is_outside(policy.bank(), key.destination) {
            return self.unexpected();
        }
        let exit = self.exit(self.attachment.ifindex, key, plan);
        if !exit.is(Code::GO_ON) {
            return exit;
        }
        let towards = plan.egress.domain;
        // Read before judging: what changes meanwhile is judged at the next packet.
        let source = epoch_slot(key.domain, key.source);
        let destination = epoch_slot(towards, key.destination);
        plan.stamp = Stamp::new(
            current_stamp(self.tables, policy, source, destination),
            source,
            destination,
        );
        self.identify(plan, source, destination);
        judge(self.tables, policy, key, self.packet.length as u64, &mut plan.judgement);
        if plan.judgement.action != ACTION_PERMIT {
            return self.refuse(&plan.judgement, towards);
        }
        let obstacle = self.obstacle(&plan.hop);
        if !obstacle.is(Code::GO_ON) {
            return obstacle;
        }
        // A flow towards a non-routable address of another domain: only its answers would
        // ever need translation, and they would leave with a non-routable source.
        if is_non_routable(config, key.destination) && towards != key.domain {
            return self.denied(Reason::NonRoutableDestination, &plan.judgement, towards);
        }
        Code::OPEN
    }

    /// A permitted flow that could not be opened: what its sender is told, and a record of it
    /// where that says something that the counters do not.
    #[inline(never)]
    fn not_opened(&self, refused: Code, plan: &Plan) -> Code {
        if refused.is_drop(Reason::NoSession) {
            return self.unexpected();
        }
        for worth_a_record in [Reason::PortsExhausted, Reason::TableFull, Reason::NoSnatPolicy] {
            if refused.is_drop(worth_a_record) {
                return self.denied(worth_a_record, &plan.judgement, plan.egress.domain);
            }
        }
        refused
    }

    /// Finds out who the parties are, and remembers it; their identities are counted in these
    /// epochs.
    #[inline(always)]
    fn identify(&self, plan: &mut Plan, source: u32, destination: u32) {
        let (tables, key) = (self.tables, &self.packet.key);
        let bank = plan.policy.bank();
        if !plan.knows_source {
            let epochs = recent::epochs(tables, plan.network, source);
            let identity = tables.identity(bank, key.domain, key.source);
            plan.judgement.source = identity;
            if plan.remembers_source
                && let Some(line) = self.source_line()
            {
                line.remember_identity(plan.policy, epochs, identity);
            }
        }
        let line = tables.recent(recent::destination_place(key.destination));
        let epochs = recent::epochs(tables, plan.network, destination);
        plan.judgement.destination = match line {
            Some(line) if plan.knows_destination && line.epochs() == epochs => line.identity(),
            line => {
                let identity = tables.identity(bank, plan.egress.domain, key.destination);
                if let Some(line) = line {
                    line.remember_identity(plan.policy, epochs, identity);
                }
                identity
            }
        };
    }

    /// Where the packet's source is remembered.
    #[inline(always)]
    pub(crate) fn source_line(&self) -> Option<&Line> {
        let place = recent::source_place(self.arrival.ifindex, self.packet.key.source);
        self.tables.recent(place)
    }

    /// The way out of a flow that comes in by an interface, as the kernel would route it; or what
    /// becomes of the packet if there is none.
    #[inline(never)]
    fn exit(&self, from: u32, key: &Key<V4>, plan: &mut Plan) -> Code {
        let route = self.tables.route(from, key.source, key.destination);
        let (ifindex, gateway, destination_mac, source_mac) = match route {
            Route::Via { ifindex, gateway, destination_mac, source_mac } => {
                (ifindex, gateway, destination_mac, source_mac)
            }
            Route::Local => return Code::PASS,
            Route::Unreachable => return Code::drop(Reason::NoRoute),
            Route::Failed => return Code::drop(Reason::HelperFailed),
        };
        if plan.knows_destination && self.exit_again(key.destination, plan, &route) {
            return Code::GO_ON;
        }
        plan.knows_destination = false;
        let no_egress = Code::drop(Reason::NoEgress);
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
        plan.hop_number = match self.tables.find_hop(&hop_key) {
            Some(hop_number) => {
                // The kernel's answer is as fresh as can be.
                let known = self.tables.hop(hop_number);
                if known.is_some_and(|old| !is_same_way(&old, &hop)) {
                    self.tables.set_hop(hop_number, &hop);
                }
                hop_number
            }
            None => match self.tables.add_hop(&hop_key, &hop) {
                Some(hop_number) => hop_number,
                None => return Code::drop(Reason::NextHopsFull),
            },
        };
        plan.hop = hop;
        plan.egress_number = number;
        plan.egress = attachment;
        if let Some(line) = self.tables.recent(recent::destination_place(key.destination)) {
            line.remember_way(key.destination, ifindex, gateway, plan.hop_number, number);
        }
        Code::GO_ON
    }

    /// The way out that was found a moment ago, if the kernel still says the same of it.
    #[inline(always)]
    fn exit_again(&self, destination: V4, plan: &mut Plan, route: &Route) -> bool {
        let place = recent::destination_place(destination);
        if let Route::Via { ifindex, gateway, destination_mac: Some(to), source_mac } = *route
            && let Some(line) = self.tables.recent(place)
            && let Some(number) = line.hop_by(ifindex, gateway)
            && let Some(hop) = self.tables.hop(number)
            && hop.is(HOP_RESOLVED)
            && hop.destination == Hop::mac_word(to, hop.vlan())
            && hop.source == Hop::mac_word(source_mac, hop.mtu())
            && let Some(attachment) = self.tables.attachment(line.attachment())
        {
            plan.hop_number = number;
            plan.hop = hop;
            plan.egress_number = line.attachment();
            plan.egress = attachment;
            return true;
        }
        false
    }

    /// The way back: to the neighbour that this packet came from.
    #[inline(always)]
    pub(crate) fn way_back(&self) -> Option<u16> {
        let key = NextHopKey {
            ifindex: self.arrival.ifindex,
            vlan: self.arrival.vlan,
            attachment: self.number,
            kind: BY_MAC,
            bytes: self.arrival.sender,
        };
        let link = self.tables.link(self.attachment.ifindex)?;
        let hop = hop_towards(&link, self.number, self.attachment, self.arrival.sender, link.mac);
        if let Some(number) = self.tables.find_hop(&key) {
            // The attachment or its link may have changed since.
            if self.tables.hop(number).is_some_and(|old| !is_same_way(&old, &hop)) {
                self.tables.set_hop(number, &hop);
            }
            return Some(number);
        }
        self.tables.add_hop(&key, &hop)
    }

    /// A packet that the policy refuses.
    #[inline(never)]
    fn refuse(&self, judgement: &Judgement, towards: u16) -> Code {
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
            Kind::Tcp => Code::reset(reason),
            Kind::Udp | Kind::Echo | Kind::EchoReply | Kind::IcmpError => {
                Code::icmp(reason, 3, 13, 0)
            }
        }
    }

    /// Reports a refusal, at most so often per rule and source.
    #[inline(never)]
    fn denied(&self, reason: Reason, judgement: &Judgement, towards: u16) -> Code {
        let tables = self.tables;
        if judgement.log != 0 {
            let bucket = (judgement.rule ^ judgement.source.id.rotate_left(7))
                .wrapping_mul(0x9e37_79b1)
                .wrapping_add(reason as u32);
            let limit = tables.config().rates.load() as u32;
            match tables.admit(bucket, limit, self.now) {
                Some(suppressed) => tables.report(|event| {
                    let key = &self.packet.key;
                    event.kind = event::DENY;
                    session::describe(event, key, &translate(key, key.source, key.source_port));
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
                }),
                None => tables.tally(Tally::Suppressed),
            }
        }
        Code::drop(reason)
    }
}

/// Whether two readings of a hop send alike, under the same guard.
#[inline(always)]
fn is_same_way(a: &Hop, b: &Hop) -> bool {
    a.destination == b.destination && a.source == b.source && a.place == b.place
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
    (mixed >> 40) as u32 & (EPOCHS_USED - 1)
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

/// Ends sessions whose time is over among the next slots of the table, and says how many slots
/// were looked at: all that a turn may look at, unless it ended all that it may.
#[inline(always)]
pub fn sweep_turn<T: Tables<A = V4>>(tables: &T, from: u32, now: u32) -> u32 {
    let mut looked = 0;
    T::repeat(SWEEP_ENDS, || {
        looked += sweep(tables, from.wrapping_add(looked), SWEEP_SLOTS.wrapping_sub(looked), now);
        looked >= SWEEP_SLOTS
    });
    looked
}

/// Ends the first session whose time is over among `slots` slots from `from` on, around the end,
/// and says how many slots were looked at.
#[inline(never)]
pub fn sweep<T: Tables<A = V4>>(tables: &T, from: u32, slots: u32, now: u32) -> u32 {
    let mut record = NO_RECORD;
    let mut looked = 0;
    let all = table::all_slots(tables.config());
    T::repeat(slots, || {
        let index = from.wrapping_add(looked);
        record = expired(tables, if index < all { index } else { index - all }, now);
        looked += 1;
        record != NO_RECORD
    });
    if record != NO_RECORD {
        end(tables, record, Ending::EXPIRE, now);
    }
    looked
}

const NO_RECORD: u32 = u32::MAX;

/// The record of a forward entry whose time seems to be over.
#[inline(always)]
fn expired<T: Tables<A = V4>>(tables: &T, index: u32, now: u32) -> u32 {
    let Some(entry) = tables.slot(index) else { return NO_RECORD };
    let meta = entry.load_meta();
    if !meta.is(State::Live) || !seems_expired(tables.config(), meta, now) {
        return NO_RECORD;
    }
    let link = entry.load_link();
    if link.is_reply() { NO_RECORD } else { link.record() }
}
