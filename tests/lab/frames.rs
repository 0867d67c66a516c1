//! What may be wrong with a frame on the outside: a source that means nothing there, or a checksum
//! that the receiver will not accept.

use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use pnet::packet::Packet as _;
use pnet::packet::ethernet::{EtherType, EtherTypes, EthernetPacket};
use pnet::packet::icmp::{self, IcmpPacket};
use pnet::packet::ip::IpNextHeaderProtocols;
use pnet::packet::ipv4::{self, Ipv4Packet};
use pnet::packet::tcp::{self, TcpPacket};
use pnet::packet::udp::{self, UdpPacket};
use pnet::packet::vlan::VlanPacket;

/// A frame as it passed an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The whole frame, VLAN tag included.
    pub bytes: Vec<u8>,
    /// Sent by the interface, not received.
    pub sent: bool,
    /// The checksum of its segment is still to be filled in, which the kernel leaves to a device.
    pub partial: bool,
}

/// What is wrong with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It says it is IPv4, but is too short or says a wrong length.
    Malformed,
    /// Its source means nothing here.
    NonRoutableSource(Ipv4Addr),
    /// The checksum of the IPv4 header is wrong.
    HeaderChecksum,
    /// The checksum of the TCP segment is wrong.
    TcpChecksum,
    /// The checksum of the UDP datagram is wrong.
    UdpChecksum,
    /// The checksum of the ICMP message is wrong.
    IcmpChecksum,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed => write!(f, "malformed"),
            Self::NonRoutableSource(source) => write!(f, "non-routable source {source}"),
            Self::HeaderChecksum => write!(f, "wrong IPv4 header checksum"),
            Self::TcpChecksum => write!(f, "wrong TCP checksum"),
            Self::UdpChecksum => write!(f, "wrong UDP checksum"),
            Self::IcmpChecksum => write!(f, "wrong ICMP checksum"),
        }
    }
}

impl Frame {
    /// The VLAN it is on, of the outermost tag.
    pub fn vlan(&self) -> Option<u16> {
        let ethernet = EthernetPacket::new(&self.bytes)?;
        if !is_tag(ethernet.get_ethertype()) {
            return None;
        }
        Some(VlanPacket::new(ethernet.payload())?.get_vlan_identifier())
    }

    /// The IPv4 packet in it, without tags and padding; none if it carries something else.
    ///
    /// # Errors
    ///
    /// [`Fault::Malformed`] when it should be one, but is not.
    pub fn ipv4(&self) -> Result<Option<Ipv4Packet<'_>>, Fault> {
        let bytes = self.bytes.as_slice();
        let mut offset = EthernetPacket::minimum_packet_size();
        let mut ethertype = match EthernetPacket::new(bytes) {
            Some(ethernet) => ethernet.get_ethertype(),
            None => return Err(Fault::Malformed),
        };
        while is_tag(ethertype) {
            let tag = bytes.get(offset..).and_then(VlanPacket::new).ok_or(Fault::Malformed)?;
            ethertype = tag.get_ethertype();
            offset += VlanPacket::minimum_packet_size();
        }
        if ethertype != EtherTypes::Ipv4 {
            return Ok(None);
        }
        let rest = &bytes[offset..];
        let packet = Ipv4Packet::new(rest).ok_or(Fault::Malformed)?;
        let header = usize::from(packet.get_header_length()) * 4;
        let total = usize::from(packet.get_total_length());
        if packet.get_version() != 4 || header < 20 || total < header || total > rest.len() {
            return Err(Fault::Malformed);
        }
        Ok(Ipv4Packet::new(&rest[..total]))
    }

    /// What is wrong with it. A checksum that is still to be filled in is not looked at, nor is
    /// that of a fragment, which covers more than is here.
    pub fn faults(&self, non_routable: &[Ipv4Net]) -> Vec<Fault> {
        let packet = match self.ipv4() {
            Ok(Some(packet)) => packet,
            Ok(None) => return Vec::new(),
            Err(fault) => return vec![fault],
        };
        let mut faults = Vec::new();
        let source = packet.get_source();
        if non_routable.iter().any(|prefix| prefix.contains(&source)) {
            faults.push(Fault::NonRoutableSource(source));
        }
        if !is_accepted(packet.get_checksum(), ipv4::checksum(&packet)) {
            faults.push(Fault::HeaderChecksum);
        }
        // The last of the three flags says that more fragments follow.
        let fragment = packet.get_fragment_offset() != 0 || packet.get_flags() & 1 != 0;
        if !fragment && !self.partial {
            faults.extend(segment_fault(&packet));
        }
        faults
    }
}

fn segment_fault(packet: &Ipv4Packet<'_>) -> Option<Fault> {
    let (source, destination) = (packet.get_source(), packet.get_destination());
    let payload = packet.payload();
    match packet.get_next_level_protocol() {
        IpNextHeaderProtocols::Tcp => {
            let Some(tcp) = TcpPacket::new(payload) else { return Some(Fault::Malformed) };
            let right = tcp::ipv4_checksum(&tcp, &source, &destination);
            (!is_accepted(tcp.get_checksum(), right)).then_some(Fault::TcpChecksum)
        }
        IpNextHeaderProtocols::Udp => {
            let Some(udp) = UdpPacket::new(payload) else { return Some(Fault::Malformed) };
            if usize::from(udp.get_length()) != payload.len() {
                return Some(Fault::Malformed);
            }
            let right = udp::ipv4_checksum(&udp, &source, &destination);
            // Zero means that there is none.
            let is_right = udp.get_checksum() == 0 || is_accepted(udp.get_checksum(), right);
            (!is_right).then_some(Fault::UdpChecksum)
        }
        IpNextHeaderProtocols::Icmp => {
            let Some(icmp) = IcmpPacket::new(payload) else { return Some(Fault::Malformed) };
            let right = icmp::checksum(&icmp);
            (!is_accepted(icmp.get_checksum(), right)).then_some(Fault::IcmpChecksum)
        }
        _ => None,
    }
}

/// Whether a receiver takes a checksum for the right one: it adds everything up, and in that sum
/// zero has two forms. A kernel that fills in what it could leave to a device writes 0xffff where
/// the sum comes to zero (`skb_checksum_help`), for every protocol as UDP needs it: one segment
/// in 65,536.
fn is_accepted(checksum: u16, right: u16) -> bool {
    checksum == right || [checksum, right].iter().all(|sum| matches!(sum, 0 | 0xffff))
}

fn is_tag(ethertype: EtherType) -> bool {
    ethertype == EtherTypes::Vlan || ethertype == EtherTypes::QinQ
}

#[cfg(test)]
mod tests {
    use pnet::packet::MutablePacket as _;
    use pnet::packet::ip::IpNextHeaderProtocol;
    use pnet::packet::ipv4::MutableIpv4Packet;

    use super::*;
    use crate::plan::NON_ROUTABLE;

    const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const POD: Ipv4Addr = Ipv4Addr::new(100, 64, 1, 10);
    const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);

    /// A right frame: `segment` behind the headers, with its checksum at `checksum_at`.
    fn frame(tags: &[u16], source: Ipv4Addr, protocol: IpNextHeaderProtocol) -> Frame {
        let mut segment = match protocol {
            IpNextHeaderProtocols::Tcp => {
                let mut bytes = vec![0x9c, 0x40, 1, 0xbb, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 4, 0];
                bytes.extend([0, 0, 0, 0]);
                bytes
            }
            IpNextHeaderProtocols::Udp => vec![0x9c, 0x40, 0, 53, 0, 13, 0, 0],
            _ => vec![8, 0, 0, 0, 0, 7, 0, 1],
        };
        segment.extend(*b"hello");
        let sum = match protocol {
            IpNextHeaderProtocols::Tcp => {
                tcp::ipv4_checksum(&TcpPacket::new(&segment).unwrap(), &source, &SERVER)
            }
            IpNextHeaderProtocols::Udp => {
                udp::ipv4_checksum(&UdpPacket::new(&segment).unwrap(), &source, &SERVER)
            }
            _ => icmp::checksum(&IcmpPacket::new(&segment).unwrap()),
        };
        let at = checksum_at(protocol);
        segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());

        let mut packet = vec![0; 20 + segment.len()];
        let mut header = MutableIpv4Packet::new(&mut packet).unwrap();
        header.set_version(4);
        header.set_header_length(5);
        header.set_total_length(20 + segment.len() as u16);
        header.set_ttl(63);
        header.set_next_level_protocol(protocol);
        header.set_source(source);
        header.set_destination(SERVER);
        header.payload_mut().copy_from_slice(&segment);
        header.set_checksum(ipv4::checksum(&header.to_immutable()));

        let mut bytes = vec![0; 12];
        for tag in tags {
            bytes.extend([0x81, 0]);
            bytes.extend(tag.to_be_bytes());
        }
        bytes.extend([8, 0]);
        bytes.extend(packet);
        Frame { bytes, sent: false, partial: false }
    }

    fn checksum_at(protocol: IpNextHeaderProtocol) -> usize {
        match protocol {
            IpNextHeaderProtocols::Tcp => 16,
            IpNextHeaderProtocols::Udp => 6,
            _ => 2,
        }
    }

    const PROTOCOLS: [(IpNextHeaderProtocol, Fault); 3] = [
        (IpNextHeaderProtocols::Tcp, Fault::TcpChecksum),
        (IpNextHeaderProtocols::Udp, Fault::UdpChecksum),
        (IpNextHeaderProtocols::Icmp, Fault::IcmpChecksum),
    ];

    #[test]
    fn a_right_frame_has_no_fault_with_any_number_of_tags() {
        for (protocol, _) in PROTOCOLS {
            for tags in [&[][..], &[100], &[7, 200]] {
                let frame = frame(tags, OUTSIDE, protocol);
                assert_eq!(frame.faults(&[NON_ROUTABLE]), [], "{protocol} {tags:?}");
                assert_eq!(frame.vlan(), tags.first().copied());
                let padded = Frame { bytes: [frame.bytes, vec![0; 9]].concat(), ..frame };
                assert_eq!(padded.faults(&[NON_ROUTABLE]), [], "{protocol} {tags:?} padded");
            }
        }
    }

    #[test]
    fn one_wrong_bit_is_seen_where_it_is() {
        for (protocol, fault) in PROTOCOLS {
            let right = frame(&[], OUTSIDE, protocol);
            let end = right.bytes.len();
            for (at, expected) in [(22, Fault::HeaderChecksum), (end - 1, fault), (end - 6, fault)]
            {
                let mut wrong = right.clone();
                wrong.bytes[at] ^= 0x10;
                assert_eq!(wrong.faults(&[]), [expected], "{protocol} byte {at}");
            }
        }
    }

    #[test]
    fn a_non_routable_source_is_seen_also_behind_a_tag() {
        for (tags, source, expected) in [
            (&[][..], Ipv4Addr::new(100, 63, 255, 255), None), // one before the prefix
            (&[], Ipv4Addr::new(100, 64, 0, 0), Some(())),
            (&[100], Ipv4Addr::new(100, 127, 255, 255), Some(())),
            (&[100], Ipv4Addr::new(100, 128, 0, 0), None), // one past it
            (&[], POD, Some(())),
        ] {
            let faults = frame(tags, source, IpNextHeaderProtocols::Udp).faults(&[NON_ROUTABLE]);
            let expected: Vec<_> =
                expected.map(|()| Fault::NonRoutableSource(source)).into_iter().collect();
            assert_eq!(faults, expected, "{source}");
        }
    }

    #[test]
    fn no_checksum_is_allowed_for_udp_only() {
        for (protocol, fault) in PROTOCOLS {
            let mut frame = frame(&[], OUTSIDE, protocol);
            let at = 34 + checksum_at(protocol);
            frame.bytes[at..at + 2].fill(0);
            let allowed = protocol == IpNextHeaderProtocols::Udp;
            assert_eq!(frame.faults(&[]).is_empty(), allowed, "{protocol}");
            assert!(allowed || frame.faults(&[]) == [fault]);
        }
    }

    #[test]
    fn a_sum_of_zero_is_right_in_both_of_its_forms_and_in_no_other() {
        // A word that counts, and the checksum: where the checksum is added to the word, the new
        // checksum is zero.
        for (protocol, fault, word, at) in [
            (IpNextHeaderProtocols::Tcp, Fault::TcpChecksum, 52, 50),
            (IpNextHeaderProtocols::Udp, Fault::UdpChecksum, 42, 40),
            (IpNextHeaderProtocols::Icmp, Fault::IcmpChecksum, 38, 36),
            (IpNextHeaderProtocols::Icmp, Fault::HeaderChecksum, 18, 24),
        ] {
            let mut zero = frame(&[], OUTSIDE, protocol);
            let read = |at| u32::from(u16::from_be_bytes([zero.bytes[at], zero.bytes[at + 1]]));
            let sum = read(word) + read(at);
            let sum = ((sum >> 16) + (sum & 0xffff)) as u16;
            zero.bytes[word..word + 2].copy_from_slice(&sum.to_be_bytes());
            for (checksum, expected) in
                [(0, vec![]), (0xffff, vec![]), (1, vec![fault]), (0xfffe, vec![fault])]
            {
                let mut frame = zero.clone();
                frame.bytes[at..at + 2].copy_from_slice(&u16::to_be_bytes(checksum));
                assert_eq!(frame.faults(&[]), expected, "{fault} {checksum:#x}");
            }
            // Where zero is not the sum, neither of its forms is right.
            let mut wrong = frame(&[], OUTSIDE, protocol);
            wrong.bytes[at..at + 2].fill(0xff);
            assert_eq!(wrong.faults(&[]), [fault], "{fault}");
        }
    }

    #[test]
    fn a_sum_that_is_still_to_be_filled_in_is_not_judged_but_the_source_is() {
        let mut frame = frame(&[], POD, IpNextHeaderProtocols::Tcp);
        frame.bytes[50] ^= 0xff;
        frame.partial = true;
        assert_eq!(frame.faults(&[NON_ROUTABLE]), [Fault::NonRoutableSource(POD)]);
    }

    #[test]
    fn what_is_too_short_for_what_it_says_is_malformed_and_other_protocols_are_nobodys_fault() {
        let right = frame(&[], OUTSIDE, IpNextHeaderProtocols::Tcp);
        for length in [0, 13, 14, 33, 34, right.bytes.len() - 1] {
            let short = Frame { bytes: right.bytes[..length].to_vec(), ..right.clone() };
            assert_eq!(short.faults(&[]), [Fault::Malformed], "{length} bytes");
        }
        let mut arp = right;
        arp.bytes[12..14].copy_from_slice(&[8, 6]);
        assert_eq!(arp.faults(&[]), []);
    }
}
