//! Who a captured packet is from and to, so that the copies of one show its translation.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

use api::value::Protocol;

/// What the headers of a copy say, as far as they are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tuple {
    protocol: Protocol,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    /// Not of a later fragment, nor of a protocol without them.
    ports: Option<Ports>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ports {
    Both(u16, u16),
    /// An echo has one number for both directions.
    Identifier(u16),
}

impl Tuple {
    /// Reads a frame; `None` if it is not IPv4.
    pub(crate) fn of(frame: &[u8]) -> Option<Self> {
        let mut kind = 12;
        while matches!(word(frame, kind)?, 0x8100 | 0x88a8) {
            kind += 4;
        }
        let packet = frame.get(kind + 2..)?;
        let version_and_length = *packet.first()?;
        if word(frame, kind)? != 0x0800 || version_and_length >> 4 != 4 {
            return None;
        }
        let address = |at: usize| Some(Ipv4Addr::from(*packet.get(at..)?.first_chunk::<4>()?));
        let protocol = Protocol(*packet.get(9)?);
        let is_first = word(packet, 6)? & 0x1fff == 0;
        let inside = packet.get(usize::from(version_and_length & 15) * 4..).unwrap_or_default();
        let ports = match protocol {
            Protocol::TCP | Protocol::UDP => word(inside, 0).zip(word(inside, 2)).map(Ports::from),
            // Echo and its reply.
            Protocol::ICMP if matches!(inside.first(), Some(0 | 8)) => {
                word(inside, 4).map(Ports::Identifier)
            }
            Protocol(_) => None,
        };
        let ports = ports.filter(|_| is_first);
        Some(Self { protocol, source: address(12)?, destination: address(16)?, ports })
    }
}

impl From<(u16, u16)> for Ports {
    fn from((source, destination): (u16, u16)) -> Self {
        Self::Both(source, destination)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|word| u16::from_be_bytes(*word))
}

impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { protocol, source, destination, ports } = *self;
        write!(f, "{protocol} ")?;
        match ports {
            Some(Ports::Both(from, to)) => {
                let (from, to) =
                    (SocketAddrV4::new(source, from), SocketAddrV4::new(destination, to));
                write!(f, "{from} > {to}")
            }
            Some(Ports::Identifier(id)) => write!(f, "{source} > {destination} id {id}"),
            None => write!(f, "{source} > {destination}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame with some tags, some words of options, a protocol, a fragment offset and the first
    /// bytes of what is in it.
    fn frame(tags: usize, options: u8, protocol: u8, offset: u16, inside: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 12];
        (0..tags).for_each(|_| bytes.extend([0x81, 0, 0, 7]));
        bytes.extend([8, 0, 0x45 + options, 0, 0, 0, 0, 0]);
        bytes.extend(offset.to_be_bytes());
        bytes.extend([64, protocol, 0, 0, 100, 64, 0, 7, 198, 51, 100, 9]);
        bytes.resize(bytes.len() + 4 * usize::from(options), 1);
        bytes.extend(inside);
        bytes
    }

    #[test]
    fn both_ends_are_read_where_they_are() {
        let ports = [0x9c, 0x40, 0x01, 0xbb];
        let echo = [8, 0, 0, 0, 0x12, 0x34];
        for (bytes, said) in [
            (frame(0, 0, 6, 0, &ports), "tcp 100.64.0.7:40000 > 198.51.100.9:443"),
            (frame(2, 3, 17, 0x4000, &ports), "udp 100.64.0.7:40000 > 198.51.100.9:443"),
            (frame(1, 0, 1, 0, &echo), "icmp 100.64.0.7 > 198.51.100.9 id 4660"),
            (frame(0, 0, 1, 0, &[3, 4, 0, 0, 0, 0]), "icmp 100.64.0.7 > 198.51.100.9"),
            (frame(0, 0, 6, 1, &ports), "tcp 100.64.0.7 > 198.51.100.9"), // a later fragment
            (frame(0, 0, 6, 0, &ports[..3]), "tcp 100.64.0.7 > 198.51.100.9"),
            (frame(0, 0, 47, 0, &ports), "47 100.64.0.7 > 198.51.100.9"),
        ] {
            assert_eq!(Tuple::of(&bytes).unwrap().to_string(), said);
        }
    }

    #[test]
    fn what_is_cut_off_or_not_ipv4_says_nothing() {
        let whole = frame(1, 0, 6, 0, &[]);
        assert!((0..whole.len()).all(|length| Tuple::of(&whole[..length]).is_none()));
        let mut other = whole;
        other[16..18].copy_from_slice(&[0x86, 0xdd]);
        assert_eq!(Tuple::of(&other), None);
    }
}
