//! Frames: built and read by `pnet`, so that the code under test is not its own judge.

use pnet::packet::{
    MutablePacket, Packet,
    ethernet::{EtherTypes, EthernetPacket, MutableEthernetPacket},
    icmp::{self, IcmpPacket, MutableIcmpPacket},
    ip::{IpNextHeaderProtocol, IpNextHeaderProtocols},
    ipv4::{self, Ipv4Packet, MutableIpv4Packet},
    tcp::{self, MutableTcpPacket, TcpPacket},
    udp::{self, MutableUdpPacket, UdpPacket},
};
use std::net::Ipv4Addr;

pub const SYN: u8 = 2;
pub const ACK: u8 = 16;
pub const FIN: u8 = 1;
pub const RST: u8 = 4;

/// What a frame is to be.
#[derive(Clone, Debug)]
pub struct Build {
    pub from_mac: [u8; 6],
    pub to_mac: [u8; 6],
    pub vlan: Option<u16>,
    pub from: (Ipv4Addr, u16),
    pub to: (Ipv4Addr, u16),
    pub protocol: u8,
    /// TCP flags, or the ICMP type.
    pub flags: u8,
    pub ttl: u8,
    pub options: Vec<u8>,
    pub dont_fragment: bool,
    pub payload: Vec<u8>,
    pub udp_checksum: bool,
    pub padding: usize,
}

fn end(text: &str) -> (Ipv4Addr, u16) {
    let (address, port) = text.split_once(':').unwrap_or((text, "0"));
    (address.parse().unwrap(), port.parse().unwrap())
}

fn build(protocol: u8, flags: u8, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Build {
    Build {
        from_mac: [0x02, 0x11, 0x11, 0x11, 0x11, 0x11],
        to_mac: WHOEVER_RECEIVES,
        vlan: None,
        from,
        to,
        protocol,
        flags,
        ttl: 64,
        options: Vec::new(),
        dont_fragment: true,
        payload: b"payload of some odd length".to_vec(),
        udp_checksum: true,
        padding: 0,
    }
}

/// The destination of a frame until it is known which interface it comes in by.
const WHOEVER_RECEIVES: [u8; 6] = [0x02, 0x22, 0x22, 0x22, 0x22, 0x22];

/// A frame as its sender addresses it to an interface.
pub fn sent_to(ifindex: u32, frame: &[u8]) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    if bytes.starts_with(&WHOEVER_RECEIVES) {
        bytes[..6].copy_from_slice(&super::mac_of(ifindex));
    }
    bytes
}

/// A TCP segment.
pub fn tcp(from: &str, to: &str, flags: u8) -> Build {
    build(6, flags, end(from), end(to))
}
/// A UDP datagram.
pub fn udp(from: &str, to: &str) -> Build {
    build(17, 0, end(from), end(to))
}
/// An echo request; the port of `from` is the identifier.
pub fn echo(from: &str, to: &str) -> Build {
    build(1, 8, end(from), end(to))
}

impl Build {
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }
    pub fn vlan(mut self, vlan: u16) -> Self {
        self.vlan = Some(vlan);
        self
    }
    pub fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }
    pub fn may_fragment(mut self) -> Self {
        self.dont_fragment = false;
        self
    }
    pub fn no_checksum(mut self) -> Self {
        self.udp_checksum = false;
        self
    }
    pub fn padded(mut self, padding: usize) -> Self {
        self.padding = padding;
        self
    }
    pub fn receiver(mut self, mac: [u8; 6]) -> Self {
        self.to_mac = mac;
        self
    }
    pub fn sender(mut self, mac: [u8; 6]) -> Self {
        self.from_mac = mac;
        self
    }

    fn transport(&self) -> Vec<u8> {
        let (s, d) = (self.from.0, self.to.0);
        match self.protocol {
            6 => {
                let mut bytes = vec![0; 20 + self.payload.len()];
                let mut p = MutableTcpPacket::new(&mut bytes).unwrap();
                p.set_source(self.from.1);
                p.set_destination(self.to.1);
                p.set_sequence(0x1234_5678);
                p.set_acknowledgement(0x9abc_def0);
                p.set_data_offset(5);
                p.set_flags(self.flags);
                p.set_window(4096);
                p.set_payload(&self.payload);
                p.set_checksum(tcp::ipv4_checksum(&p.to_immutable(), &s, &d));
                bytes
            }
            17 => {
                let mut bytes = vec![0; 8 + self.payload.len()];
                let length = bytes.len() as u16;
                let mut p = MutableUdpPacket::new(&mut bytes).unwrap();
                p.set_source(self.from.1);
                p.set_destination(self.to.1);
                p.set_length(length);
                p.set_payload(&self.payload);
                if self.udp_checksum {
                    let sum = udp::ipv4_checksum(&p.to_immutable(), &s, &d);
                    p.set_checksum(if sum == 0 { 0xffff } else { sum });
                }
                bytes
            }
            _ => {
                // The identifier is whichever port is given.
                let id = self.from.1.max(self.to.1).to_be_bytes();
                let mut bytes = vec![self.flags, 0, 0, 0, id[0], id[1], 0, 1];
                bytes.extend(&self.payload);
                let mut p = MutableIcmpPacket::new(&mut bytes).unwrap();
                p.set_checksum(icmp::checksum(&p.to_immutable()));
                bytes
            }
        }
    }

    /// From the IP header on.
    pub fn ip(&self) -> Vec<u8> {
        assert_eq!(self.options.len() % 4, 0);
        let transport = self.transport();
        let header = 20 + self.options.len();
        let mut bytes = vec![0; header + transport.len()];
        bytes[20..header].copy_from_slice(&self.options);
        bytes[header..].copy_from_slice(&transport);
        let length = bytes.len() as u16;
        let mut p = MutableIpv4Packet::new(&mut bytes).unwrap();
        p.set_version(4);
        p.set_header_length((header / 4) as u8);
        p.set_total_length(length);
        p.set_identification(0x4242);
        p.set_flags(if self.dont_fragment { 2 } else { 0 });
        p.set_ttl(self.ttl);
        p.set_next_level_protocol(IpNextHeaderProtocol(self.protocol));
        p.set_source(self.from.0);
        p.set_destination(self.to.0);
        p.set_checksum(ipv4::checksum(&p.to_immutable()));
        bytes
    }

    /// The whole frame.
    pub fn frame(&self) -> Vec<u8> {
        let mut bytes = ethernet(self.from_mac, self.to_mac, self.vlan, &self.ip());
        bytes.resize(bytes.len() + self.padding, 0);
        bytes
    }
}

/// An Ethernet header, perhaps with a tag, before an IPv4 packet.
pub fn ethernet(from: [u8; 6], to: [u8; 6], vlan: Option<u16>, ip: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 14];
    let mut p = MutableEthernetPacket::new(&mut bytes).unwrap();
    p.set_source(from.into());
    p.set_destination(to.into());
    p.set_ethertype(EtherTypes::Ipv4);
    if let Some(vlan) = vlan {
        p.set_ethertype(EtherTypes::Vlan);
        bytes.extend(vlan.to_be_bytes());
        bytes.extend([0x08, 0x00]);
    }
    bytes.extend(ip);
    bytes
}

/// An ICMP error about `quoted` (from the IP header on, as many bytes of it as given).
pub fn icmp_error(kind: u8, code: u8, mtu: u16, from: &str, to: &str, quoted: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0, 0, 0];
    message.extend(mtu.to_be_bytes());
    message.extend(quoted);
    let mut p = MutableIcmpPacket::new(&mut message).unwrap();
    p.set_checksum(icmp::checksum(&p.to_immutable()));
    let shell = Build { payload: Vec::new(), ..build(1, kind, end(from), end(to)) };
    let mut ip = shell.ip();
    ip.truncate(20);
    ip.extend(&message);
    let length = ip.len() as u16;
    let mut p = MutableIpv4Packet::new(&mut ip).unwrap();
    p.set_total_length(length);
    p.set_checksum(ipv4::checksum(&p.to_immutable()));
    ethernet(shell.from_mac, shell.to_mac, None, &ip)
}

/// What a frame says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub from_mac: [u8; 6],
    pub to_mac: [u8; 6],
    pub vlan: Option<u16>,
    pub from: String,
    pub to: String,
    pub protocol: u8,
    /// TCP flags or ICMP type.
    pub flags: u8,
    pub code: u8,
    pub ttl: u8,
    pub payload: Vec<u8>,
}

/// The IPv4 packet of a frame, without padding.
pub fn ip_of(frame: &[u8]) -> &[u8] {
    let at = if frame[12..14] == [0x81, 0x00] { 18 } else { 14 };
    let length = u16::from_be_bytes([frame[at + 2], frame[at + 3]]) as usize;
    &frame[at..at + length]
}

/// Reads a frame.
pub fn see(frame: &[u8]) -> Seen {
    let e = EthernetPacket::new(frame).unwrap();
    let vlan =
        (frame[12..14] == [0x81, 0x00]).then(|| u16::from_be_bytes([frame[14], frame[15]]) & 0xfff);
    let ip = Ipv4Packet::new(ip_of(frame)).unwrap();
    let (s, d) = (ip.get_source(), ip.get_destination());
    let body = ip.payload();
    let (sp, dp, flags, code, payload) = match ip.get_next_level_protocol() {
        IpNextHeaderProtocols::Tcp => {
            let p = TcpPacket::new(body).unwrap();
            (p.get_source(), p.get_destination(), p.get_flags(), 0, p.payload().to_vec())
        }
        IpNextHeaderProtocols::Udp => {
            let p = UdpPacket::new(body).unwrap();
            (p.get_source(), p.get_destination(), 0, 0, p.payload().to_vec())
        }
        _ => {
            let id = u16::from_be_bytes([body[4], body[5]]);
            let (sp, dp) = match body[0] {
                8 => (id, 0),
                0 => (0, id),
                _ => (0, 0),
            };
            (sp, dp, body[0], body[1], body[8..].to_vec())
        }
    };
    Seen {
        from_mac: e.get_source().octets(),
        to_mac: e.get_destination().octets(),
        vlan,
        from: format!("{s}:{sp}"),
        to: format!("{d}:{dp}"),
        protocol: ip.get_next_level_protocol().0,
        flags,
        code,
        ttl: ip.get_ttl(),
        payload,
    }
}

/// A frame in a few words.
pub fn tell(frame: &[u8]) -> String {
    let s = see(frame);
    format!("{} -> {} protocol {} flags {:#x} ttl {}", s.from, s.to, s.protocol, s.flags, s.ttl)
}

/// Which checksum of a frame is wrong, if one is.
pub fn wrong_checksum(frame: &[u8]) -> Option<&'static str> {
    let ip = Ipv4Packet::new(ip_of(frame))?;
    if ip.get_checksum() != ipv4::checksum(&ip) {
        return Some("of the header");
    }
    let body = ip.payload();
    let (s, d) = (ip.get_source(), ip.get_destination());
    let (stated, expected) = match ip.get_next_level_protocol() {
        IpNextHeaderProtocols::Tcp => {
            let p = TcpPacket::new(body)?;
            (p.get_checksum(), tcp::ipv4_checksum(&p, &s, &d))
        }
        IpNextHeaderProtocols::Udp => {
            let p = UdpPacket::new(body)?;
            let full = udp::ipv4_checksum(&p, &s, &d);
            let stated = p.get_checksum();
            (stated, if stated == 0 { 0 } else { full.max(u16::from(full == 0) * 0xffff) })
        }
        _ => {
            let p = IcmpPacket::new(body)?;
            (p.get_checksum(), icmp::checksum(&p))
        }
    };
    (stated != expected).then_some("of the message")
}

/// Panics if a checksum is wrong.
pub fn assert_sound(frame: &[u8]) {
    assert_eq!(wrong_checksum(frame), None, "{}", tell(frame));
}

/// The frame that answers this one: both ends swapped.
pub fn answer_to(frame: &[u8], flags: u8) -> Build {
    let seen = see(frame);
    let flags = if seen.protocol == 1 { 0 } else { flags };
    Build {
        from_mac: seen.to_mac,
        to_mac: seen.from_mac,
        vlan: seen.vlan,
        ..build(seen.protocol, flags, end(&seen.to), end(&seen.from))
    }
}

/// Makes the header checksum right again after a change.
pub fn repair(ip: &mut [u8]) {
    let mut p = MutableIpv4Packet::new(ip).unwrap();
    let sum = ipv4::checksum(&p.to_immutable());
    p.set_checksum(sum);
    let _ = p.packet_mut();
}
