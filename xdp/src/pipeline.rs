//! The order of steps from a frame to its fate, the same for every hook and for the host.
//!
//! In stages, because BPF programs tail-call from one to the next: [`fast`] for the plain
//! packet of a known session, [`first`] for that of none; for everything else [`read`], and then
//! [`continued`], [`opened`] or [`error`], as [`Done::code`] says; [`answer`] for what is told to a
//! sender.
//! [`crate::egress`] stands where the kernel sends; [`crate::books`] counts what became of each frame.
//!
//! The outcome is data; a hook turns it into its return code. A frame that is to be dropped
//! may be half written: no hook may let it go on.

use crate::{
    address::{Address, Key, Rewrite, V4},
    arrival::{Arrival, attached, is_for_another, is_own, is_own6},
    decide::{self, Decision, Plan},
    established::{self, Left},
    frame::Frame,
    guard, icmp,
    packet::{self, Kind, LinkLayer, Packet, Parsed},
    reply, rewrite,
    rewrite::Ttl,
    table,
    tables::Tables,
    tcp,
    verdict::{Answer, Code, Forward},
};
use xdp_abi::{
    config::Config,
    count::{Amount, INBOUND, OUTBOUND, UNKNOWN},
    event::{VERDICT_DROPPED, VERDICT_FORWARDED, VERDICT_PASSED, VERDICT_PUNTED},
    forward::{HOP_RESOLVED, Hop, KIND_SPOKE, ROUTABLE, port},
    reason::Reason,
    session::NETWORK_EPOCH,
};

/// ARP's ethertype.
const ARP: [u8; 2] = [0x08, 0x06];

/// What the caller's way of sending can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Sends only to interfaces that take redirected frames; [`fast`] cannot change a tag.
    Xdp,
    /// Sends to any interface.
    Tc,
}

/// What became of a frame, spelt out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is rewritten: send it to this hop; true: it goes in the answering direction.
    Transmit(Hop, bool),
    /// Leave it to the kernel, untouched.
    Pass,
    /// Send it up untouched, with the number of the attachment it came by: the kernel routes
    /// it, [`crate::egress`] translates it.
    Punt(u16),
    /// Discard it.
    Drop(Reason),
    /// Tell its sender, by [`answer`]; the frame is untouched so far.
    Answer(Reason, Answer),
    /// The frame is now the answer: send it out where it came in. The packet itself is
    /// dropped for this reason.
    Answered(Reason),
    /// The frame is now a RST for whom the packet was for: send it there. The packet itself is
    /// dropped for this reason.
    Told(Reason, Hop),
}

/// What became of a frame, in fields that are always written: what a BPF stage leaves to the
/// next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// What became of it.
    pub code: Code,
    /// Where it goes, if it goes.
    pub hop: Hop,
    /// Whether it goes in the answering direction.
    pub reply: bool,
    /// The attachment it came by; zero: unknown.
    pub attachment: u16,
    /// The machine's address there.
    pub address: [u8; 4],
    /// `count::OUTBOUND`, `INBOUND` or `UNKNOWN`.
    pub direction: u32,
}

impl Done {
    /// A fate that has nothing to do with an attachment.
    #[inline(always)]
    pub const fn nowhere(code: Code) -> Self {
        Self {
            code,
            hop: Forward::NOWHERE.hop,
            reply: false,
            attachment: 0,
            address: [0; 4],
            direction: UNKNOWN as u32,
        }
    }

    /// The fate, spelt out.
    pub fn fate(&self) -> Fate {
        if self.code.is(Code::FORWARD) {
            Fate::Transmit(self.hop, self.reply)
        } else if self.code.is(Code::PASS) {
            Fate::Pass
        } else if self.code.is(Code::PUNT) {
            Fate::Punt(self.attachment)
        } else if self.code.is_answer() {
            Fate::Answer(self.code.reason(), self.code.answer(self.address))
        } else if self.code.is_told() {
            Fate::Told(self.code.reason(), self.hop)
        } else if self.code.is_answered() {
            Fate::Answered(self.code.reason())
        } else {
            Fate::Drop(self.code.reason())
        }
    }
}

/// What a packet's way needs to remember. It is too big for the stack of a BPF program, and
/// the verifier should forget what exactly was written: else it follows the whole of `decide`
/// once for every way through the parser. So it lives in per-CPU memory there.
#[derive(Clone, Copy)]
pub struct Work {
    /// What became of the frame.
    pub done: Done,
    /// How long it was when it came in.
    pub length: u32,
    /// The number of its copies for `capture`; zero: none are made.
    pub copy: u64,
    layer: LinkLayer,
    /// The hardware address that a handed-over packet was sent to.
    to: [u8; 6],
    packet: Packet<V4>,
    arrival: Arrival,
    decision: Decision,
    plan: Plan,
}

impl Work {
    /// Before anything is known.
    pub const fn new() -> Self {
        Self {
            done: Done::nowhere(Code::drop(Reason::HelperFailed)),
            length: 0,
            copy: 0,
            layer: LinkLayer { vlan: 0, tag_in_frame: false, network: 0, ethertype: [0; 2] },
            to: [0; 6],
            packet: Packet::NONE,
            arrival: Arrival::NONE,
            decision: Decision::NONE,
            plan: Plan::NONE,
        }
    }
}

impl Default for Work {
    fn default() -> Self {
        Self::new()
    }
}

impl Work {
    /// Leaves to the next stage what [`fast`] has read of a plain packet.
    #[inline(always)]
    pub fn hand_over<T: Tables<A = V4>, F: Frame>(
        &mut self,
        tables: &T,
        frame: &F,
        packet: &Packet<V4>,
        ifindex: u32,
        now: u32,
    ) -> Option<()> {
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5] = frame.load::<12>(0)?;
        self.done = Done::nowhere(Code::drop(Reason::HelperFailed));
        self.length = frame.length();
        // While somebody looks on, nothing is handed over.
        self.copy = 0;
        self.layer = LinkLayer {
            vlan: 0,
            tag_in_frame: false,
            network: packet::ETHERNET,
            ethertype: packet::IPV4,
        };
        self.packet = *packet;
        self.to = [d0, d1, d2, d3, d4, d5];
        self.arrival = Arrival {
            ifindex,
            vlan: 0,
            sender: [s0, s1, s2, s3, s4, s5],
            longest: packet.length as u32,
            now,
            ..Arrival::NONE
        };
        self.plan.judgement.rule = 0;
        self.plan.begin(tables.epoch(NETWORK_EPOCH), false);
        Some(())
    }

    /// What the frame was on the wire.
    #[inline(always)]
    pub const fn amount(&self) -> Amount {
        let Arrival { segments, headers, .. } = self.arrival;
        let network = if headers == 0 { 0 } else { self.layer.network };
        let more = segments.saturating_sub(1) as u64 * (headers + network) as u64;
        Amount { packets: segments as u64, bytes: self.length as u64 + more }
    }

    /// What `capture` tells of the packet's fate: session, rule, verdict and reason.
    #[inline(always)]
    pub fn told(&self) -> Told {
        let verdict = if self.done.code.is(Code::FORWARD) {
            VERDICT_FORWARDED
        } else if self.done.code.is(Code::PASS) {
            VERDICT_PASSED
        } else if self.done.code.is(Code::PUNT) {
            VERDICT_PUNTED
        } else {
            VERDICT_DROPPED
        };
        let goes_on = self.done.code.is(Code::FORWARD);
        Told {
            session: if goes_on { self.decision.forward.session } else { 0 },
            rule: if goes_on { self.decision.forward.rule } else { self.plan.judgement.rule },
            verdict,
            reason: if verdict == VERDICT_DROPPED { self.done.code.reason() as u8 } else { 0 },
        }
    }

    /// Whether the filter of `capture` wants a copy of the packet that was just read.
    #[inline(always)]
    pub fn is_wanted(&self, config: &Config) -> bool {
        let filter = config.capture_address.load();
        let key = &self.packet.key;
        let within =
            |address: V4| u32::from_ne_bytes(address.0) & filter as u32 == (filter >> 32) as u32;
        let ports = config.capture_ports.load();
        let port = (ports >> 16) as u16;
        let has_port = |bytes: [u8; 2]| u16::from_be_bytes(bytes) == port;
        let protocol = ports as u8;
        (within(key.source) || within(key.destination))
            && (port == 0 || has_port(key.source_port) || has_port(key.destination_port))
            && (protocol == 0 || protocol == key.protocol)
    }
}

/// See [`Work::told`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Incarnation 32 | record 32.
    pub session: u64,
    /// The rule that decided; zero: the default action, or none was asked.
    pub rule: u32,
    /// `event::VERDICT_*`.
    pub verdict: u8,
    /// Why it was dropped.
    pub reason: u8,
}

/// All stages in a row.
#[inline(always)]
pub fn ingress<T: Tables<A = V4>, F: Frame>(
    tables: &T,
    frame: &mut F,
    hook: Hook,
    ifindex: u32,
    now: u32,
) -> (Done, Amount) {
    let mut work = Work::new();
    work.length = frame.length();
    match fast(tables, frame, hook, ifindex, now) {
        Quick::Done(done) => {
            return (done, Amount { packets: 1, bytes: work.length as u64 });
        }
        Quick::First(packet) => {
            work.hand_over(tables, frame, &packet, ifindex, now);
            first(tables, &mut work);
            if is_plainly_sent(hook, &work) {
                send_plainly(frame, &mut work);
            } else {
                send(frame, &mut work);
            }
            if work.done.code.is_answer() {
                answer(tables, frame, &mut work, now);
            }
        }
        Quick::Known(packet) => {
            work.hand_over(tables, frame, &packet, ifindex, now);
            known(tables, frame, now, &mut work);
        }
        Quick::Longer => slow(tables, frame, ifindex, now, &mut work),
    }
    (work.done, work.amount())
}

/// All stages of the longer way.
#[inline(always)]
pub fn slow<T: Tables<A = V4>, F: Frame>(
    tables: &T,
    frame: &mut F,
    ifindex: u32,
    now: u32,
    work: &mut Work,
) {
    read(tables, frame, ifindex, now, work);
    if work.done.code.is(Code::ERROR) {
        error(tables, frame, work);
    } else if work.done.code.is(Code::GO_ON) {
        known(tables, frame, now, work);
        return;
    }
    if work.done.code.is_answer() {
        answer(tables, frame, work, now);
    }
}

/// The stages of a packet that a session may be for.
#[inline(always)]
fn known<T: Tables<A = V4>, F: Frame>(tables: &T, frame: &mut F, now: u32, work: &mut Work) {
    continued(tables, frame, work);
    if work.done.code.is(Code::ANEW) {
        opened(tables, frame, work);
    }
    if work.done.code.is_answer() {
        answer(tables, frame, work, now);
    }
}

/// What [`fast`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quick {
    /// The frame is settled.
    Done(Done),
    /// A plain packet that no session is known for, and that may open one: [hand it
    /// over](Work::hand_over) and go on with [`first`].
    First(Packet<V4>),
    /// A plain packet of a session that is not plain, or not now: hand it over and go on with
    /// [`continued`].
    Known(Packet<V4>),
    /// Anything else: go on with [`slow`].
    Longer,
}

/// The plain packet of a known session; of anything else nothing was touched or counted.
#[inline(always)]
pub fn fast<T: Tables<A = V4>, F: Frame>(
    tables: &T,
    frame: &mut F,
    hook: Hook,
    ifindex: u32,
    now: u32,
) -> Quick {
    // While somebody looks on, every packet goes where copies are made.
    if tables.config().capture.load() != 0 || frame.segments() > 1 {
        return Quick::Longer;
    }
    let Some(mut packet) = packet::plain(frame) else { return Quick::Longer };
    let Some(to) = frame.load::<6>(0) else { return Quick::Longer };
    let Some(domain) = tables.domain_at_a_glance(ifindex, &to, packet.key.source) else {
        return Quick::Longer;
    };
    packet.key.domain = domain;
    let usable = |hop: &Hop| is_plain(hook, hop);
    let key = &packet.key;
    let from = || frame.load::<6>(6).unwrap_or_default();
    match established::replay(tables, key, packet.tcp_flags, packet.length, now, usable, from) {
        Ok(replay) => {
            let mut done = Done::nowhere(Code::drop(Reason::HelperFailed));
            if rewrite_plainly(frame, &packet, &replay.rewrite, &replay.hop).is_some() {
                done.code = Code::FORWARD;
                done.hop = replay.hop;
                done.reply = replay.reply;
            }
            Quick::Done(done)
        }
        // What is wrong with its headers, the long way says.
        Err(_) if !packet::is_sound(frame, &packet) => Quick::Longer,
        Err(Left::Unknown) if packet.kind == Kind::Udp || tcp::opens(packet.tcp_flags) => {
            Quick::First(packet)
        }
        Err(Left::Special) => Quick::Known(packet),
        Err(Left::Unknown) => Quick::Longer,
    }
}

/// Whether a hop takes a frame without a tag as this hook sends it.
#[inline(always)]
const fn is_plain(hook: Hook, hop: &Hop) -> bool {
    matches!(hook, Hook::Tc) || hop.vlan() == 0
}

/// Rewrites a plain packet, all of it at offsets that are known beforehand.
#[inline(always)]
fn rewrite_plainly<F: Frame>(
    frame: &mut F,
    packet: &Packet<V4>,
    to: &Rewrite<V4>,
    hop: &Hop,
) -> Option<()> {
    let packet =
        Packet { network: packet::ETHERNET, transport: packet::PLAIN_TRANSPORT, ..*packet };
    // What is done by pointer first: a helper may move the frame.
    rewrite::stations(frame, hop)?;
    rewrite::network(frame, &packet, to, Ttl::Down)?;
    if hop.vlan() != 0 {
        frame.set_vlan(0, hop.vlan())?;
    }
    Some(())
}

/// A plain packet of no known session ([`Quick::First`]): what becomes of it, which [`send`] or
/// [`send_plainly`] carries out.
#[inline(always)]
pub fn first<T: Tables<A = V4>>(tables: &T, work: &mut Work) {
    let Work { done, to, packet, arrival, decision, plan, .. } = work;
    // Sent to many: never transit, as in [`read`].
    if to[0] & 1 != 0 || packet.is_lease() {
        done.code = Code::PASS;
        return;
    }
    decide::first(tables, packet, arrival, to, decision, plan);
    decided(work);
}

/// Whether [`send_plainly`] can send what [`first`] has left.
#[inline(always)]
pub fn is_plainly_sent(hook: Hook, work: &Work) -> bool {
    work.done.code.is(Code::FORWARD) && is_plain(hook, &work.decision.forward.hop)
}

/// Writes the decision of [`first`] into its frame.
#[inline(always)]
pub fn send_plainly<F: Frame>(frame: &mut F, work: &mut Work) {
    let Work { done, packet, decision, .. } = work;
    let forward = &decision.forward;
    done.hop = forward.hop;
    done.reply = forward.reply;
    if rewrite_plainly(frame, packet, &forward.rewrite, &forward.hop).is_none() {
        done.code = Code::drop(Reason::HelperFailed);
    }
}

/// Reads a frame that is not [`fast`]'s, and says what it is: settled already, an error
/// ([`Code::ERROR`]), or a packet that a session may be for ([`Code::GO_ON`]).
#[inline(always)]
pub fn read<T: Tables<A = V4>, F: Frame>(
    tables: &T,
    frame: &F,
    ifindex: u32,
    now: u32,
    work: &mut Work,
) {
    let Work { done, layer, packet, arrival, plan, .. } = work;
    *done = Done::nowhere(Code::drop(Reason::Truncated));
    // Nothing of the packet before is told of this one.
    *packet = Packet::NONE;
    *arrival = Arrival { segments: frame.segments(), ..Arrival::NONE };
    plan.judgement.rule = 0;
    plan.begin(tables.epoch(NETWORK_EPOCH), false);
    match packet::link_layer(frame) {
        Ok(read) => *layer = read,
        Err(reason) => {
            done.code = Code::drop(reason);
            return;
        }
    }
    let Some([d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5]) = frame.load::<12>(0) else {
        return;
    };
    // Sent to many: never transit, whatever is in it (RFC 1812 section 5.3.4).
    if d0 & 1 != 0 || layer.ethertype == ARP {
        done.code = Code::PASS;
        return;
    }
    if layer.ethertype != packet::IPV4 {
        done.code = if layer.ethertype == packet::IPV6 {
            ipv6(tables, frame, layer.network)
        } else {
            Code::drop(Reason::Ethertype)
        };
        return;
    }
    let to = [d0, d1, d2, d3, d4, d5];
    match packet::ipv4(frame, layer.network) {
        Ok(Parsed::Packet(read)) => {
            let place = port(ifindex, layer.vlan);
            let is_lease = read.is_lease() && !is_of_session(tables, place, &mut { read.key });
            if is_lease || is_for_another(tables, ifindex, layer.vlan, &to, read.key.source) {
                done.code = Code::PASS;
                return;
            }
            *packet = read;
            if let Some(reason) = packet::fault_of_header(frame, packet) {
                // To the machine itself it is its kernel's to refuse; no session takes it.
                if is_own(tables, read.key.destination) {
                    done.code = Code::PASS;
                    return;
                }
                done.code = Code::drop(reason);
                belonging(tables, place, read.key.source, done);
                return;
            }
        }
        Ok(Parsed::Refused(source, destination, reason)) => {
            // As far as it could be read, for whoever looks for it by `capture`.
            packet.key.source = source;
            packet.key.destination = destination;
            packet.key.protocol = frame.load::<1>(layer.network + 9).unwrap_or_default()[0];
            let is_own = is_own(tables, destination)
                && !(matches!(reason, Reason::Fragment)
                    && read_ports(frame, layer.network, &mut packet.key)
                    && is_of_session(tables, port(ifindex, layer.vlan), &mut packet.key));
            if is_own || is_for_another(tables, ifindex, layer.vlan, &to, source) {
                done.code = Code::PASS;
                return;
            }
            done.code = Code::drop(reason);
            belonging(tables, port(ifindex, layer.vlan), source, done);
            return;
        }
        Err(reason) => {
            done.code = Code::drop(reason);
            return;
        }
    }
    let headers = headers(frame, packet);
    *arrival = Arrival {
        ifindex,
        vlan: layer.vlan,
        sender: [s0, s1, s2, s3, s4, s5],
        segments: arrival.segments,
        headers,
        longest: if headers == 0 { packet.length as u32 } else { headers + frame.segment() },
        now,
    };
    done.code = if packet.kind == Kind::IcmpError { Code::ERROR } else { Code::GO_ON };
}

/// Reads the ports of a first fragment into its key; false: it is none, or has none.
#[inline(never)]
fn read_ports<F: Frame>(frame: &F, network: u32, key: &mut Key<V4>) -> bool {
    let Some([length, _, _, _, _, _, more, offset]) = frame.load::<8>(network) else {
        return false;
    };
    let transport = network + (length & 15) as u32 * 4;
    let Some(first) = frame.load::<6>(transport) else { return false };
    let Some(ends) = packet::ends(key.protocol, first) else { return false };
    (key.source_port, key.destination_port) = ends;
    more & 0x1f == 0 && offset == 0
}

/// Whether a packet that looks like the machine's own is for a session. A lease may answer somebody
/// behind the gateway. A fragment may be to an address that sessions share: the kernel would put the
/// packet together and refuse it in the session's name; of later fragments alone it makes nothing.
#[inline(never)]
fn is_of_session<T: Tables<A = V4>>(tables: &T, place: u32, key: &mut Key<V4>) -> bool {
    let number = tables.attachment_of(place, key.source).unwrap_or(0);
    let Some(attachment) = attached(tables, number) else { return false };
    key.domain = attachment.domain;
    table::is_held(tables, &V4::pack(key))
}

/// How long the headers of each packet are that a frame stands for, from the IP header on; zero if
/// it is one as it is.
#[inline(always)]
fn headers<F: Frame>(frame: &F, packet: &Packet<V4>) -> u32 {
    if frame.segment() == 0 {
        return 0;
    }
    let header = match frame.load::<1>(packet.transport + 12) {
        Some([offset]) if packet.kind == Kind::Tcp => (offset >> 4) as u32 * 4,
        Some(_) | None => 8,
    };
    packet.transport - packet.network + header
}

/// The packet of a known session, or [`Code::ANEW`].
#[inline(always)]
pub fn continued<T: Tables<A = V4>, F: Frame>(tables: &T, frame: &mut F, work: &mut Work) {
    let Work { packet, arrival, decision, plan, .. } = work;
    decide::continued(tables, packet, arrival, decision, plan);
    decided(work);
    send(frame, work);
}

/// The packet of an unknown flow.
#[inline(always)]
pub fn opened<T: Tables<A = V4>, F: Frame>(tables: &T, frame: &mut F, work: &mut Work) {
    let Work { done, packet, arrival, decision, plan, .. } = work;
    // Its session was over.
    if packet.is_lease() {
        done.code = Code::PASS;
        return;
    }
    decide::opened(tables, packet, arrival, decision, plan);
    decided(work);
    send(frame, work);
}

#[inline(always)]
fn decided(work: &mut Work) {
    let Work { done, decision, .. } = work;
    done.code = decision.code;
    done.attachment = decision.attachment;
    done.address = decision.address;
    done.direction = if decision.attachment == 0 {
        UNKNOWN as u32
    } else if decision.outbound {
        OUTBOUND as u32
    } else {
        INBOUND as u32
    };
}

/// An ICMP error.
#[inline(always)]
pub fn error<T: Tables<A = V4>, F: Frame>(tables: &T, frame: &mut F, work: &mut Work) {
    let Work { done, layer, packet, arrival, decision, .. } = work;
    belonging(tables, port(arrival.ifindex, layer.vlan), packet.key.source, done);
    done.code = icmp::translate(tables, frame, packet, arrival, &mut decision.forward);
    send(frame, work);
}

/// Writes a decision into the frame, if it is to go on.
#[inline(never)]
pub fn send<F: Frame>(frame: &mut F, work: &mut Work) {
    let Work { done, layer, packet, decision, .. } = work;
    if !done.code.is(Code::FORWARD) {
        return;
    }
    let error = packet.kind == Kind::IcmpError;
    let forward = &decision.forward;
    done.hop = forward.hop;
    done.reply = forward.reply;
    let written =
        if error { Some(()) } else { rewrite::network(frame, packet, &forward.rewrite, Ttl::Down) };
    if written.is_none() || rewrite::link(frame, layer, &forward.hop).is_none() {
        done.code = Code::drop(Reason::HelperFailed);
    }
}

/// Puts a fate that was found without [`decide`] under the direction of its attachment.
#[inline(always)]
fn belonging<T: Tables<A = V4>>(tables: &T, place: u32, source: V4, done: &mut Done) {
    let number = tables.attachment_of(place, source).unwrap_or(0);
    if let Some(attachment) = attached(tables, number) {
        done.attachment = number;
        done.address = attachment.address;
        done.direction =
            if attachment.kind == KIND_SPOKE { OUTBOUND as u32 } else { INBOUND as u32 };
    }
}

/// IPv6 to the machine or its link passes, neighbour discovery with it; transit is not
/// forwarded yet.
#[inline(always)]
fn ipv6<T: Tables, F: Frame>(tables: &T, frame: &F, network: u32) -> Code {
    let Some(destination) = frame.load::<16>(network + 24) else {
        return Code::drop(Reason::Truncated);
    };
    if is_own6(tables, &destination) { Code::PASS } else { Code::drop(Reason::Ipv6Transit) }
}

/// Makes an untouched frame the answer to its sender, if the sender's share allows one more
/// this second; otherwise the packet is dropped for the reason that it would have been told.
#[inline(always)]
pub fn answer<T: Tables<A = V4>, F: Frame>(tables: &T, frame: &mut F, work: &mut Work, now: u32) {
    let Work { done, layer, packet, decision, .. } = work;
    let reason = done.code.reason();
    let what = done.code.answer(done.address);
    let is_ahead = done.code.is_reset_ahead();
    done.code = Code::drop(reason);
    if is_ahead {
        let Forward { rewrite, hop, .. } = &decision.forward;
        if hop.is(HOP_RESOLVED)
            && !guard::stops(tables, hop, rewrite.source)
            && may_tell(tables, rewrite.destination, now)
            && reply::reset_ahead(frame, packet, rewrite).is_some()
            && rewrite::link(frame, layer, hop).is_some()
        {
            done.hop = *hop;
            done.code = Code::told(reason);
        }
        return;
    }
    let to = packet.key.source;
    // Answers leave by the same guard as everything else.
    let from = match what {
        Answer::Reset => packet.key.destination,
        Answer::Icmp(_, _, _, from) => V4(from),
    };
    let Some(back) = attached(tables, done.attachment) else { return };
    // An answer that may not be seen there is not given; nothing was about to leak.
    if back.flags & ROUTABLE != 0 && guard::is_confined(tables, done.attachment, from) {
        return;
    }
    if to.is_martian() || from.is_martian() {
        return;
    }
    if may_tell(tables, to, now) && reply::make(frame, packet, what).is_some() {
        done.code = Code::answered(reason);
    }
}

/// Whether an address may be told one more thing this second.
#[inline(always)]
fn may_tell<T: Tables<A = V4>>(tables: &T, to: V4, now: u32) -> bool {
    let limit = (tables.config().rates.load() >> 32) as u32;
    let bucket = (to.mix() >> 32) as u32 ^ ANSWERS;
    tables.admit(bucket, limit, now).is_some()
}

/// Keeps the buckets of answers apart from those of reports.
const ANSWERS: u32 = 0x5bd1_e995;
