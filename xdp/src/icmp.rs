//! ICMP errors about live sessions: outside and inside are translated, nothing else happens to
//! the session (RFC 5508 REQ-3 to REQ-6).
//!
//! An error travels in the direction that answers the packet it quotes. So the quoted tuple,
//! reversed, is the key of that direction, and its entry says both what to write and where to
//! send it.

use crate::{
    address::{Address, Entry, Key, Rewrite, V4},
    arrival::{Arrival, attached, is_own},
    checksum::{TTL_DELTA, delta, fold, sum, update, update_udp, word},
    frame::Frame,
    guard,
    packet::{self, ECHO, ICMP, Packet, TCP, UDP},
    rewrite::from_ttl_on,
    session::seems_expired,
    stamp::is_current,
    table,
    tables::Tables,
    verdict::{Code, Forward},
};
use xdp_abi::{
    config::PolicyWord,
    forward::{Attachment, HOP_RESOLVED, HOP_ROUTABLE, KIND_SPOKE, port},
    reason::Reason,
    session::Class,
};

/// The packet that an error quotes, as far as it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Quote {
    key: Key<V4>,
    network: u32,
    transport: u32,
    checksum: [u8; 2],
    /// Type of a quoted ICMP query; of another packet it says nothing.
    query: u8,
}

impl Quote {
    const NONE: Self =
        Self { key: Packet::NONE.key, network: 0, transport: 0, checksum: [0; 2], query: 0 };
}

/// Translates an error in place and says where it goes, or what else becomes of it.
#[inline(never)]
pub fn translate<T: Tables<A = V4>, F: Frame>(
    tables: &T,
    frame: &mut F,
    packet: &Packet<V4>,
    arrival: &Arrival,
    out: &mut Forward<V4>,
) -> Code {
    let place = port(arrival.ifindex, arrival.vlan);
    let own = is_own(tables, packet.key.destination);
    let sound = is_whole(frame, packet);
    // An error to the machine itself about something that is no session is the kernel's, which
    // looks at the checksum for itself.
    let foreign = |reason| {
        if own {
            return Code::PASS;
        }
        Code::drop(if sound { reason } else { Reason::IcmpChecksum })
    };
    let Some(number) = tables.attachment_of(place, packet.key.source) else {
        return foreign(Reason::SpoofedSource);
    };
    let Some(attachment) = attached(tables, number) else {
        return foreign(Reason::NoAttachment);
    };
    let mut quote = Quote::NONE;
    let unreadable = quoted(frame, packet, &mut quote);
    if !unreadable.is(Code::GO_ON) {
        return foreign(unreadable.reason());
    }
    // An error goes to whoever sent what it quotes. To anybody else it would be a message that no
    // rule has permitted.
    if packet.key.destination != quote.key.source {
        return foreign(Reason::NoSession);
    }
    let key = quote.key.reversed(domain_of(tables, place, &quote, &attachment));
    let Some(found) = table::find(tables, &V4::pack(&key)) else {
        return foreign(Reason::NoSession);
    };
    let Some(entry) = tables.slot(found.index) else { return foreign(Reason::Contended) };
    let rewrite = entry.rewrite();
    let link = entry.load_link();
    let config = tables.config();
    if !entry.load_meta().same_owner(found.meta)
        || matches!(found.meta.class(), Class::Resting)
        || seems_expired(config, found.meta, arrival.now)
    {
        return foreign(Reason::NoSession);
    }
    let stamp = entry.load_stamp();
    let policy = PolicyWord(config.policy.load());
    if !is_current(tables, policy, stamp) {
        // To be judged again first, which the next packet of the flow is; then the error that it
        // meets passes.
        return Code::drop(Reason::Contended);
    }
    // REQ-3: silently, and before anything of it is believed.
    if !sound {
        return Code::drop(Reason::IcmpChecksum);
    }
    if packet.key.source.is_martian() {
        return Code::drop(Reason::Martian);
    }
    if packet.ttl <= 1 {
        return Code::drop(Reason::TtlExpired);
    }
    let Some(hop) = tables.hop(link.next_hop()) else {
        return Code::drop(Reason::HelperFailed);
    };
    if !hop.is(HOP_RESOLVED) {
        return Code::drop(Reason::NoRoute);
    }
    // Nobody is told: an error is not answered (RFC 1122 section 3.2.2).
    if arrival.longest > hop.mtu() as u32 {
        return Code::drop(Reason::TooBig);
    }
    // Outside sees the session's address, whichever inside machine speaks (REQ-5c); inside sees
    // who really spoke.
    let outer_source = if !link.is_reply() && rewrite.source != key.source {
        rewrite.source
    } else {
        packet.key.source
    };
    // Of a session that is not translated, by somebody whom nobody outside may see.
    if hop.is(HOP_ROUTABLE) && guard::is_confined(tables, hop.attachment(), outer_source) {
        return Code::drop(Reason::NoSnatPolicy);
    }
    if write(frame, packet, &quote, outer_source, &rewrite).is_none() {
        return Code::drop(Reason::Truncated);
    }
    let (mut session, mut rule) = (0, 0);
    if let Some(record) = tables.record(link.record()) {
        session = record.identity.load() >> 32 << 32 | link.record() as u64;
        rule = (record.rules.load() >> 32) as u32;
    }
    *out = Forward { rewrite, hop, reply: link.is_reply(), session, rule };
    Code::FORWARD
}

/// The domain of the session that an error is about: that of whom the quoted packet was for, which
/// may be behind another attachment of the place than the router that speaks (a node with a
/// routable address, about its pod). But nobody outside says what is going on inside.
#[inline(always)]
fn domain_of<T: Tables<A = V4>>(
    tables: &T,
    place: u32,
    quote: &Quote,
    speaker: &Attachment,
) -> u16 {
    let number = tables.attachment_of(place, quote.key.destination).unwrap_or(0);
    match attached(tables, number) {
        Some(of) if of.kind != KIND_SPOKE || speaker.kind == KIND_SPOKE => of.domain,
        Some(_) | None => speaker.domain,
    }
}

/// Whether the checksum of the message holds. A translation changes it by what it changes, so a
/// wrong one would go on as wrong, about a session that it may not be about. An error longer than
/// what can be summed is no error that anybody sends: RFC 1812 (section 4.3.2.3) ends them at 576
/// bytes.
#[inline(always)]
fn is_whole<F: Frame>(frame: &F, packet: &Packet<V4>) -> bool {
    let header = (packet.transport - packet.network) as u16;
    let length = packet.length.wrapping_sub(header);
    matches!(sum(frame, packet.transport, length), Some(0xffff))
}

/// Reads the quoted packet (RFC 5508 REQ-3).
#[inline(never)]
fn quoted<F: Frame>(frame: &F, packet: &Packet<V4>, quote: &mut Quote) -> Code {
    let network = packet.transport + 8;
    let Some(header) = frame.load::<20>(network) else { return Code::drop(Reason::Truncated) };
    let header_length = (header[0] & 15) as u32 * 4;
    if header[0] >> 4 != 4 || header_length < 20 {
        return Code::drop(Reason::Malformed);
    }
    if header[6] & 0x1f != 0 || header[7] != 0 {
        return Code::drop(Reason::Fragment);
    }
    let transport = network + header_length;
    match packet::sum_of_header(frame, network, transport) {
        Some(0xffff) => {}
        Some(_) => return Code::drop(Reason::IcmpChecksum),
        None => return Code::drop(Reason::Truncated),
    }
    // What lies behind the packet in its frame is not quoted.
    if transport + 8 > packet.network + packet.length as u32 {
        return Code::drop(Reason::Truncated);
    }
    let Some(first) = frame.load::<6>(transport) else { return Code::drop(Reason::Truncated) };
    let protocol = header[9];
    let Some((source_port, destination_port)) = packet::ends(protocol, first) else {
        return Code::drop(Reason::IcmpOther);
    };
    *quote = Quote {
        key: Key {
            source: V4([header[12], header[13], header[14], header[15]]),
            destination: V4([header[16], header[17], header[18], header[19]]),
            source_port,
            destination_port,
            domain: 0,
            protocol,
        },
        network,
        transport,
        checksum: [header[10], header[11]],
        query: first[0],
    };
    Code::GO_ON
}

/// Writes the new addresses and ports outside and inside. The ICMP checksum covers the quote,
/// so it takes every change made there, those of checksums included.
#[inline(never)]
fn write<F: Frame>(
    frame: &mut F,
    packet: &Packet<V4>,
    quote: &Quote,
    outer_source: V4,
    rewrite: &Rewrite<V4>,
) -> Option<()> {
    // The quote goes the other way: its source is what answers are sent to.
    let (source, destination) = (rewrite.destination, rewrite.source);
    let (source_port, destination_port) = (rewrite.destination_port, rewrite.source_port);
    let old = quote.key;
    let addresses = delta(
        fold(old.source.sum() + old.destination.sum()) as u32,
        fold(source.sum() + destination.sum()) as u32,
    ) as u32;
    let ports = delta(
        fold(word(old.source_port) + word(old.destination_port)) as u32,
        fold(word(source_port) + word(destination_port)) as u32,
    ) as u32;
    let mut change = addresses + ports;

    let inner = update(quote.checksum, addresses);
    change += delta(word(quote.checksum), word(inner)) as u32;
    let (s, d) = (source.0, destination.0);
    frame.store::<10>(
        quote.network + 10,
        [inner[0], inner[1], s[0], s[1], s[2], s[3], d[0], d[1], d[2], d[3]],
    )?;

    let t = quote.transport;
    let (at, covered) = match old.protocol {
        UDP => (t + 6, addresses + ports),
        TCP => (t + 16, addresses + ports),
        _ => (t + 2, ports),
    };
    let identifier = if quote.query == ECHO { source_port } else { destination_port };
    if old.protocol == ICMP {
        frame.store::<2>(t + 4, identifier)?;
    } else {
        let (s, d) = (source_port, destination_port);
        frame.store::<4>(t, [s[0], s[1], d[0], d[1]])?;
    }
    // A quote of eight bytes ends before the checksum of TCP (REQ-3c): then there is none.
    let end = packet.network + packet.length as u32;
    if at + 2 <= end
        && let Some(field) = frame.load::<2>(at)
    {
        let new =
            if old.protocol == UDP { update_udp(field, covered) } else { update(field, covered) };
        change += delta(word(field), word(new)) as u32;
        frame.store::<2>(at, new)?;
    }

    let field = frame.load::<2>(packet.transport + 2)?;
    frame.store::<2>(packet.transport + 2, update(field, change))?;

    let outer_destination = if outer_source == packet.key.source {
        rewrite.destination
    } else {
        packet.key.destination
    };
    let outer = delta(
        fold(packet.key.source.sum() + packet.key.destination.sum()) as u32,
        fold(outer_source.sum() + outer_destination.sum()) as u32,
    ) as u32;
    let header = update(packet.header_checksum, outer + TTL_DELTA);
    let fields = (packet.ttl - 1, ICMP, header);
    from_ttl_on(frame, packet.network, fields, outer_source, outer_destination)
}
