//! The order of steps from a frame to its fate, the same for every hook and for the host.
//!
//! Three stages, because a BPF program tail-calls between them: [`fast`] for the plain packet
//! of a known session, [`slow`] for everything else, [`answer`] for what is told to a sender.
//! [`egress`] stands where the kernel sends: it translates what was punted and is the second
//! guard of invariant 1.
//!
//! The outcome is data; a hook turns it into its return code. A frame that is to be dropped
//! may be half written: no hook may let it go on.

use crate::{
    address::{Address, Entry, Key, V4},
    decide::{self, Answer, Arrival, Verdict, is_own},
    established,
    frame::Frame,
    icmp,
    packet::{self, Kind, LinkLayer, Parsed},
    reply, rewrite,
    rewrite::Ttl,
    session::seems_expired,
    table,
    tables::{Tables, Tally, is_non_routable},
};
use xdp_abi::{
    count::{Amount, Counters, INBOUND, OUTBOUND, UNKNOWN},
    forward::{ATTACHED, Attachment, HOP_REDIRECT, Hop, KIND_SPOKE, ROUTABLE, port},
    reason::Reason,
    session::Class,
};

/// ARP's ethertype.
const ARP: [u8; 2] = [0x08, 0x06];
/// ICMPv6.
const ICMP6: u8 = 58;

/// What the caller's way of sending can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Sends only to interfaces that take redirected frames; [`fast`] cannot change a tag.
    Xdp,
    /// Sends to any interface.
    Tc,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is rewritten: send it to this hop; true: it goes in the answering direction.
    Transmit(Hop, bool),
    /// Leave it to the kernel, untouched.
    Pass,
    /// Send it up untouched, with the number of the attachment it came by: the kernel routes
    /// it, [`egress`] translates it.
    Punt(u16),
    /// Discard it.
    Drop(Reason),
    /// Tell its sender, by [`answer`]; the frame is untouched so far.
    Answer(Reason, Answer),
    /// The frame is now the answer: send it out where it came in. The packet itself is
    /// dropped for this reason.
    Answered(Reason),
}

/// A fate, and what else counting wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// What became of the frame.
    pub fate: Fate,
    /// The attachment it came by; zero: unknown.
    pub attachment: u16,
    /// `count::OUTBOUND`, `INBOUND` or `UNKNOWN`.
    pub direction: usize,
}

impl Done {
    #[inline(always)]
    const fn nowhere(fate: Fate) -> Self {
        Self { fate, attachment: 0, direction: UNKNOWN }
    }
}

/// All stages in a row.
#[inline(always)]
pub fn ingress<T: Tables<A = V4>, F: Frame>(
    tables: &T,
    frame: &mut F,
    hook: Hook,
    ifindex: u32,
    now: u32,
) -> Done {
    if let Some(done) = fast(tables, frame, hook, ifindex, now) {
        return done;
    }
    let mut done = slow(tables, frame, hook, ifindex, now);
    if let Fate::Answer(reason, what) = done.fate {
        done.fate = answer(tables, frame, done.attachment, reason, what, now);
    }
    done
}

/// The plain packet of a known session; `None`: nothing was touched or counted, go on with
/// [`slow`].
#[inline(always)]
pub fn fast<T: Tables<A = V4>, F: Frame>(
    tables: &T,
    frame: &mut F,
    hook: Hook,
    ifindex: u32,
    now: u32,
) -> Option<Done> {
    let mut packet = packet::plain(frame)?;
    if frame.segments() > 1 {
        return None;
    }
    packet.key.domain = tables.domain_at_a_glance(ifindex, packet.key.source)?;
    let replay =
        established::replay_if(tables, &packet.key, packet.tcp_flags, packet.length, now, |hop| {
            matches!(hook, Hook::Tc) || hop.vlan() == 0 && hop.is(HOP_REDIRECT)
        })?;
    let layer = LinkLayer {
        vlan: 0,
        tag_in_frame: false,
        network: packet.network,
        ethertype: packet::IPV4,
    };
    let written = match rewrite::network(frame, &packet, &replay.rewrite, Ttl::Down) {
        Some(()) => rewrite::link(frame, &layer, &replay.hop),
        None => None,
    };
    let fate = match written {
        Some(()) => Fate::Transmit(replay.hop, replay.reply),
        None => Fate::Drop(Reason::HelperFailed),
    };
    Some(Done::nowhere(fate))
}

/// Everything that is not [`fast`]'s.
#[inline(always)]
pub fn slow<T: Tables<A = V4>, F: Frame>(
    tables: &T,
    frame: &mut F,
    hook: Hook,
    ifindex: u32,
    now: u32,
) -> Done {
    let layer = match packet::link_layer(frame) {
        Ok(layer) => layer,
        Err(reason) => return Done::nowhere(Fate::Drop(reason)),
    };
    let Some([to, _, _, _, _, _, s0, s1, s2, s3, s4, s5]) = frame.load::<12>(0) else {
        return Done::nowhere(Fate::Drop(Reason::Truncated));
    };
    // Sent to many: never transit, whatever is in it (RFC 1812 section 5.3.4).
    if to & 1 != 0 || layer.ethertype == ARP {
        return Done::nowhere(Fate::Pass);
    }
    if layer.ethertype == packet::IPV6 {
        return Done::nowhere(ipv6(frame, layer.network));
    }
    if layer.ethertype != packet::IPV4 {
        return Done::nowhere(Fate::Drop(Reason::Ethertype));
    }
    let mut packet = match packet::ipv4(frame, layer.network) {
        Ok(Parsed::Packet(packet)) => packet,
        Ok(Parsed::Refused(source, destination, reason)) => {
            if is_own(tables, destination) {
                return Done::nowhere(Fate::Pass);
            }
            return belonging(tables, port(ifindex, layer.vlan), source, Fate::Drop(reason));
        }
        Err(reason) => return Done::nowhere(Fate::Drop(reason)),
    };
    let arrival = Arrival {
        ifindex,
        vlan: layer.vlan,
        sender: [s0, s1, s2, s3, s4, s5],
        segments: frame.segments(),
    };
    if packet.kind == Kind::IcmpError {
        let fate = match icmp::translate(tables, frame, &packet, &arrival, now) {
            Ok(error) if can_send(hook, &error.hop) => {
                match rewrite::link(frame, &layer, &error.hop) {
                    Some(()) => Fate::Transmit(error.hop, error.reply),
                    None => Fate::Drop(Reason::HelperFailed),
                }
            }
            Ok(_) => Fate::Drop(Reason::NoRoute),
            Err(Verdict::Pass) => Fate::Pass,
            Err(Verdict::Drop(reason)) => Fate::Drop(reason),
            Err(Verdict::Forward(_) | Verdict::Punt(_) | Verdict::Answer(..)) => {
                Fate::Drop(Reason::NoSession)
            }
        };
        return belonging(tables, port(ifindex, layer.vlan), packet.key.source, fate);
    }
    let decision = decide::decide(tables, &mut packet, &arrival, now);
    let fate = match decision.verdict {
        Verdict::Forward(forward) if can_send(hook, &forward.hop) => {
            let written = match rewrite::network(frame, &packet, &forward.rewrite, Ttl::Down) {
                Some(()) => rewrite::link(frame, &layer, &forward.hop),
                None => None,
            };
            match written {
                Some(()) => Fate::Transmit(forward.hop, forward.reply),
                None => Fate::Drop(Reason::HelperFailed),
            }
        }
        // The kernel would take an untranslated answer for its own.
        Verdict::Forward(forward) if forward.rewrite.destination != packet.key.destination => {
            Fate::Drop(Reason::NoRoute)
        }
        Verdict::Forward(_) => Fate::Punt(decision.attachment),
        Verdict::Pass => Fate::Pass,
        Verdict::Punt(attachment) => Fate::Punt(attachment),
        Verdict::Drop(reason) => Fate::Drop(reason),
        Verdict::Answer(reason, answer) => Fate::Answer(reason, answer),
    };
    let direction = if decision.attachment == 0 {
        UNKNOWN
    } else if decision.outbound {
        OUTBOUND
    } else {
        INBOUND
    };
    Done { fate, attachment: decision.attachment, direction }
}

#[inline(always)]
const fn can_send(hook: Hook, hop: &Hop) -> bool {
    matches!(hook, Hook::Tc) || hop.is(HOP_REDIRECT)
}

/// A fate that was found without [`decide`], under the direction of its attachment.
#[inline(always)]
fn belonging<T: Tables<A = V4>>(tables: &T, place: u32, source: V4, fate: Fate) -> Done {
    let number = tables.attachment_of(place, source).unwrap_or(0);
    match attached(tables, number) {
        Some(attachment) if attachment.kind == KIND_SPOKE => {
            Done { fate, attachment: number, direction: OUTBOUND }
        }
        Some(_) => Done { fate, attachment: number, direction: INBOUND },
        None => Done::nowhere(fate),
    }
}

#[inline(always)]
fn attached<T: Tables<A = V4>>(tables: &T, number: u16) -> Option<Attachment> {
    tables.attachment(number).filter(|attachment| attachment.flags & ATTACHED != 0)
}

/// IPv6 to the machine's link and neighbour discovery pass; transit is not forwarded yet.
#[inline(always)]
fn ipv6<F: Frame>(frame: &F, network: u32) -> Fate {
    let (Some([next]), Some([d0, d1])) =
        (frame.load::<1>(network + 6), frame.load::<2>(network + 24))
    else {
        return Fate::Drop(Reason::Truncated);
    };
    let to_the_link = d0 == 0xff || d0 == 0xfe && d1 & 0xc0 == 0x80;
    let discovery = next == ICMP6
        && match frame.load::<1>(network + 40) {
            Some([kind]) => matches!(kind, 133..=137),
            None => false,
        };
    if to_the_link || discovery { Fate::Pass } else { Fate::Drop(Reason::Ipv6Transit) }
}

/// Makes an untouched frame the answer to its sender, if the sender's share allows one more
/// this second. `attachment` is where it came in.
#[inline(always)]
pub fn answer<T: Tables<A = V4>, F: Frame>(
    tables: &T,
    frame: &mut F,
    attachment: u16,
    reason: Reason,
    answer: Answer,
    now: u32,
) -> Fate {
    let Ok(layer) = packet::link_layer(frame) else { return Fate::Drop(reason) };
    let Ok(Parsed::Packet(packet)) = packet::ipv4(frame, layer.network) else {
        return Fate::Drop(reason);
    };
    let to = packet.key.source;
    // Answers leave by the same guard as everything else.
    let from = match answer {
        Answer::Reset => packet.key.destination,
        Answer::Icmp(_, _, _, from) => V4(from),
    };
    match attached(tables, attachment) {
        Some(back) => {
            if back.flags & ROUTABLE != 0
                && is_non_routable(tables.config(), from)
                && !tables.carries(attachment, from)
            {
                tables.tally(Tally::LeakStopped);
                return Fate::Drop(reason);
            }
        }
        None => return Fate::Drop(reason),
    }
    if to.is_martian() || from.is_martian() {
        return Fate::Drop(reason);
    }
    let limit = (tables.config().rates.load() >> 32) as u32;
    let bucket = (to.mix() >> 32) as u32 ^ ANSWERS;
    if tables.admit(bucket, limit, now).is_none() {
        return Fate::Drop(reason);
    }
    match reply::make(frame, &packet, answer) {
        Some(()) => Fate::Answered(reason),
        None => Fate::Drop(reason),
    }
}

/// Keeps the buckets of answers apart from those of reports.
const ANSWERS: u32 = 0x5bd1_e995;

/// What TC egress does with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Egress {
    /// Let it go as it is.
    Untouched,
    /// A punted packet, translated now: let it go.
    Translated,
    /// Discard it.
    Drop(Reason),
}

/// A frame that the kernel is about to send by `ifindex`; `punted` is the attachment that it
/// came by, if an ingress hook left it to the kernel.
#[inline(always)]
pub fn egress<T: Tables<A = V4>, F: Frame>(
    tables: &T,
    frame: &mut F,
    ifindex: u32,
    punted: Option<u16>,
    now: u32,
) -> Egress {
    let layer = match packet::link_layer(frame) {
        Ok(layer) => layer,
        // What cannot be read cannot be shown to be harmless.
        Err(reason) => return Egress::Drop(reason),
    };
    if layer.ethertype != packet::IPV4 {
        return if punted.is_none() { Egress::Untouched } else { Egress::Drop(Reason::Ethertype) };
    }
    let mut source;
    let destination;
    let mut egress = Egress::Untouched;
    match packet::ipv4(frame, layer.network) {
        Ok(Parsed::Packet(mut packet)) => {
            source = packet.key.source;
            destination = packet.key.destination;
            if let Some(number) = punted {
                let Some(attachment) = attached(tables, number) else {
                    return Egress::Drop(Reason::NoAttachment);
                };
                packet.key.domain = attachment.domain;
                let Some(rewrite) = late(tables, &packet.key, now) else {
                    return Egress::Drop(Reason::NoSession);
                };
                if rewrite::network(frame, &packet, &rewrite, Ttl::Keep).is_none() {
                    return Egress::Drop(Reason::HelperFailed);
                }
                source = rewrite.source;
                egress = Egress::Translated;
            }
        }
        Ok(Parsed::Refused(from, to, reason)) => {
            if punted.is_some() {
                return Egress::Drop(reason);
            }
            source = from;
            destination = to;
        }
        Err(reason) => return Egress::Drop(reason),
    }
    if is_non_routable(tables.config(), source)
        && may_leak(tables, port(ifindex, layer.vlan), source, destination)
    {
        tables.tally(Tally::LeakStopped);
        return Egress::Drop(Reason::Leak);
    }
    egress
}

/// The rewrite of a live session, without touching it: ingress has counted the packet.
#[inline(always)]
fn late<T: Tables<A = V4>>(
    tables: &T,
    key: &Key<V4>,
    now: u32,
) -> Option<crate::address::Rewrite<V4>> {
    let found = table::find(tables, &V4::pack(key))?;
    let entry = tables.slot(found.index)?;
    let rewrite = entry.rewrite();
    if !entry.load_meta().same_owner(found.meta)
        || matches!(found.meta.class(), Class::Resting)
        || seems_expired(tables.config(), found.meta, now)
    {
        return None;
    }
    Some(rewrite)
}

/// Whether a non-routable source would leave where it must not. A unicast destination on no
/// attachment counts as one that must not see it.
#[inline(always)]
fn may_leak<T: Tables<A = V4>>(tables: &T, place: u32, source: V4, destination: V4) -> bool {
    let Some(number) = tables.attachment_towards(place, destination) else {
        return destination.0[0] < 224;
    };
    match attached(tables, number) {
        Some(attachment) => attachment.flags & ROUTABLE != 0 && !tables.carries(number, source),
        None => true,
    }
}

/// Counts what became of a frame of `bytes` that an ingress hook received.
#[inline(always)]
pub fn count(counters: &mut Counters, done: &Done, bytes: u64) {
    add(&mut counters.received, bytes);
    match done.fate {
        Fate::Transmit(_, reply) => {
            let [original, answers] = &mut counters.forwarded;
            add(if reply { answers } else { original }, bytes);
        }
        Fate::Pass => add(&mut counters.passed, bytes),
        Fate::Punt(_) => add(&mut counters.punted, bytes),
        Fate::Drop(reason) | Fate::Answer(reason, _) => dropped(counters, done.direction, reason),
        Fate::Answered(reason) => {
            counters.answered += 1;
            dropped(counters, done.direction, reason);
        }
    }
}

/// Counts what TC egress did. A frame that is dropped here is counted as received once more,
/// so that what was received stays the sum of what became of it.
#[inline(always)]
pub fn count_egress(counters: &mut Counters, egress: Egress, bytes: u64) {
    match egress {
        Egress::Untouched => {}
        Egress::Translated => add(&mut counters.translated_late, bytes),
        Egress::Drop(reason) => {
            add(&mut counters.received, bytes);
            dropped(counters, UNKNOWN, reason);
        }
    }
}

#[inline(always)]
const fn add(amount: &mut Amount, bytes: u64) {
    amount.packets += 1;
    amount.bytes += bytes;
}

#[inline(always)]
fn dropped(counters: &mut Counters, direction: usize, reason: Reason) {
    if let Some(by_reason) = counters.drops.get_mut(direction)
        && let Some(count) = by_reason.get_mut(reason as usize)
    {
        *count += 1;
    }
}
