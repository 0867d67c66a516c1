//! Answers to a sender: RST and ICMP errors, made out of the packet they answer.
//!
//! What an answer repeats of the packet is read first; then the frame is made anew, and every byte
//! of it is written. On TC the packet may have left its checksum to whoever sends it on: an answer
//! that was written over it would be changed behind our back, or be sent as it lies there.

use crate::address::{Key, Rewrite, V4};
use crate::{
    checksum::{finish, sum_of},
    frame::Frame,
    packet::{ETHERNET, ICMP, Packet, TCP},
    tcp,
    verdict::Answer,
};

/// The TTL of what is sent from here.
const TTL: u8 = 64;

/// Turns the frame into its answer, addressed back to whoever sent it. `None`: it cannot be
/// answered; the frame may be half written and must be dropped.
#[inline(always)]
pub fn make<F: Frame>(frame: &mut F, packet: &Packet<V4>, answer: Answer) -> Option<()> {
    match answer {
        Answer::Reset => reset(frame, packet),
        Answer::Icmp(kind, code, mtu, from) => error(frame, packet, kind, code, mtu, from),
    }
}

/// Makes the frame anew, with `length` bytes from the IP header on, back to its sender.
#[inline(always)]
fn turn<F: Frame>(frame: &mut F, packet: &Packet<V4>, length: u32) -> Option<()> {
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5] = frame.load::<12>(0)?;
    // Ethertype and, if it is in the bytes, the tag before it.
    let rest = frame.load::<6>(12)?;
    frame.renew(packet.network + length)?;
    frame.store::<12>(0, [s0, s1, s2, s3, s4, s5, d0, d1, d2, d3, d4, d5])?;
    if packet.network == ETHERNET {
        frame.store::<2>(12, [rest[0], rest[1]])
    } else {
        frame.store::<6>(12, rest)
    }
}

/// RFC 9293 section 3.10.7.1: a RST that the sender's TCP accepts.
#[inline(always)]
fn reset<F: Frame>(frame: &mut F, packet: &Packet<V4>) -> Option<()> {
    let segment = frame.load::<14>(packet.transport)?;
    let sequence = u32::from_be_bytes([segment[4], segment[5], segment[6], segment[7]]);
    let acknowledged = [segment[8], segment[9], segment[10], segment[11]];
    let header = (segment[12] >> 4) as u32 * 4;
    let payload = (packet.length as u32).wrapping_sub(packet.transport - packet.network + header);
    let counted =
        u32::from(packet.tcp_flags & tcp::SYN != 0) + u32::from(packet.tcp_flags & tcp::FIN != 0);
    let (seq, ack, flags) = if packet.tcp_flags & tcp::ACK != 0 {
        (acknowledged, [0; 4], tcp::RST)
    } else {
        let ack = sequence.wrapping_add(payload).wrapping_add(counted);
        ([0; 4], ack.to_be_bytes(), tcp::RST | tcp::ACK)
    };
    let key = packet.key.reversed(0);
    bare_segment(frame, packet, &key, (seq, ack, flags))
}

/// Turns a segment into a RST for whom it was for, as its session translates it: what it carried is
/// left out, so it has the number that the receiver expects if the segment was the next one. The
/// frame is addressed by the caller.
#[inline(always)]
pub fn reset_ahead<F: Frame>(frame: &mut F, packet: &Packet<V4>, to: &Rewrite<V4>) -> Option<()> {
    let numbers = frame.load::<8>(packet.transport + 4)?;
    let [s0, s1, s2, s3, a0, a1, a2, a3] = numbers;
    let key = Key {
        source: to.source,
        destination: to.destination,
        source_port: to.source_port,
        destination_port: to.destination_port,
        ..packet.key
    };
    let flags = tcp::RST | packet.tcp_flags & tcp::ACK;
    bare_segment(frame, packet, &key, ([s0, s1, s2, s3], [a0, a1, a2, a3], flags))
}

/// Makes the frame a bare segment of these addresses and ports.
#[inline(always)]
fn bare_segment<F: Frame>(
    frame: &mut F,
    packet: &Packet<V4>,
    key: &Key<V4>,
    (seq, ack, flags): ([u8; 4], [u8; 4], u8),
) -> Option<()> {
    let (from, to) = (key.source.0, key.destination.0);
    let ports =
        [key.source_port[0], key.source_port[1], key.destination_port[0], key.destination_port[1]];
    let offset_flags = [0x50, flags, 0, 0];
    let pseudo = sum_of(from) + sum_of(to) + sum_of([0, TCP, 0, 20]);
    let sum = finish(pseudo + sum_of(ports) + sum_of(seq) + sum_of(ack) + sum_of(offset_flags));
    turn(frame, packet, 40)?;
    // Options of the IP header are not repeated.
    ip_header(frame, packet.network, 40, TCP, from, to)?;
    let t = packet.network + 20;
    frame.store::<20>(
        t,
        [
            ports[0], ports[1], ports[2], ports[3], seq[0], seq[1], seq[2], seq[3], ack[0], ack[1],
            ack[2], ack[3], 0x50, flags, 0, 0, sum[0], sum[1], 0, 0,
        ],
    )
}

/// RFC 792, with the header and eight bytes of the packet it is about.
#[inline(always)]
fn error<F: Frame>(
    frame: &mut F,
    packet: &Packet<V4>,
    kind: u8,
    code: u8,
    mtu: u16,
    from: [u8; 4],
) -> Option<()> {
    let quoted = frame.load::<20>(packet.network)?;
    let first = frame.load::<8>(packet.transport)?;
    let [m0, m1] = mtu.to_be_bytes();
    // The quoted header loses its options, so its length and checksum are made anew.
    let mut header = quoted;
    header[0] = 0x45;
    header[10] = 0;
    header[11] = 0;
    let inner = finish(sum_of(header));
    header[10] = inner[0];
    header[11] = inner[1];
    let sum = finish(sum_of([kind, code, m0, m1]) + sum_of(header) + sum_of(first));
    turn(frame, packet, 56)?;
    ip_header(frame, packet.network, 56, ICMP, from, packet.key.source.0)?;
    let t = packet.network + 20;
    frame.store::<8>(t, [kind, code, sum[0], sum[1], 0, 0, m0, m1])?;
    frame.store::<20>(t + 8, header)?;
    frame.store::<8>(t + 28, first)
}

#[inline(always)]
fn ip_header<F: Frame>(
    frame: &mut F,
    at: u32,
    length: u8,
    protocol: u8,
    from: [u8; 4],
    to: [u8; 4],
) -> Option<()> {
    let first = [0x45, 0, 0, length];
    let fourth = [TTL, protocol, 0, 0];
    let dont_fragment = [0, 0, 0x40, 0];
    let sum =
        finish(sum_of(first) + sum_of(dont_fragment) + sum_of(fourth) + sum_of(from) + sum_of(to));
    frame.store::<20>(
        at,
        [
            0x45, 0, 0, length, 0, 0, 0x40, 0, TTL, protocol, sum[0], sum[1], from[0], from[1],
            from[2], from[3], to[0], to[1], to[2], to[3],
        ],
    )
}
