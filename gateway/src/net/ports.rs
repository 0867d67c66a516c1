//! Ports that the host itself listens on.
//!
//! When SNAT lends ports of an address that is also the host's, a reply to a lent port and a
//! packet for a daemon of the host look the same. So the ports that the host holds are kept
//! out of SNAT: those of its listeners, read here, and those it takes for its own outgoing
//! connections ([`super::Sysctl::ephemeral_range`]).
//!
//! Only what can receive IPv4 counts: IPv4 sockets, IPv6 sockets on an IPv4 address, and those
//! on any address unless they were told to keep to IPv6.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::dialogue::{Dialogue, Family, NetlinkError};
use super::wire::{Message, Request, attributes};

/// `SOCK_DIAG_BY_FAMILY`: the one message kind, both ways.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// The bit of the state "listening" (`TCP_LISTEN`).
const LISTENING: u32 = 1 << 10;
/// The bits of all states; a UDP socket has no state that says it is bound, only a port.
const ANY_STATE: u32 = u32::MAX;
/// Length of `struct inet_diag_msg`.
const ANSWER: usize = 72;
/// `INET_DIAG_SKV6ONLY`, among the attributes of an answer.
const V6_ONLY: u16 = 11;

/// Over what a socket listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// A listener for connections.
    Tcp,
    /// A bound socket, connected or not.
    Udp,
}

/// A port of the host that is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListeningPort {
    /// The address it is taken on; absent: on every address of the host.
    pub address: Option<Ipv4Addr>,
    /// The protocol.
    pub transport: Transport,
    /// The port.
    pub port: u16,
}

/// The ports on which the sockets of this network namespace can receive IPv4, in order and each
/// once.
pub fn listening_ports() -> Result<Vec<ListeningPort>, NetlinkError> {
    let mut dialogue = Dialogue::open(Family::SocketDiagnosis)?;
    let mut all = Vec::new();
    for transport in [Transport::Tcp, Transport::Udp] {
        for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
            let read = dialogue.dump(
                "list the sockets of the host",
                &request(family, transport),
                |ports: &mut Vec<_>, message| ports.extend(decode(message, transport)),
            );
            match read {
                Ok(ports) => all.extend(ports),
                // A kernel started without IPv6 has no such sockets.
                Err(absent)
                    if family == libc::AF_INET6 as u8 && absent.is_refusal(libc::ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
    }
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

/// `struct inet_diag_req_v2` for every socket of a family and protocol.
fn request(family: u8, transport: Transport) -> Request {
    let (protocol, states) = match transport {
        Transport::Tcp => (libc::IPPROTO_TCP, LISTENING),
        Transport::Udp => (libc::IPPROTO_UDP, ANY_STATE),
    };
    let mut body = [0; 56];
    body[0] = family;
    body[1] = protocol as u8;
    body[4..8].copy_from_slice(&states.to_ne_bytes());
    Request::new(SOCK_DIAG_BY_FAMILY, libc::NLM_F_DUMP).fixed(&body)
}

/// Reads a message as the answer about each kind of socket.
#[cfg(feature = "fuzz")]
pub(super) fn read(message: &Message<'_>) {
    for transport in [Transport::Tcp, Transport::Udp] {
        decode(message, transport);
    }
}

/// Reads one socket; `None` if it cannot receive IPv4, or is bound to no port.
fn decode(message: &Message<'_>, transport: Transport) -> Option<ListeningPort> {
    if message.kind != SOCK_DIAG_BY_FAMILY {
        return None;
    }
    let (body, rest) = message.payload.split_at_checked(ANSWER)?;
    let port = u16::from_be_bytes([body[4], body[5]]);
    if port == 0 {
        return None;
    }
    let address = match i32::from(body[0]) {
        libc::AF_INET => IpAddr::V4(Ipv4Addr::from(*body[8..].first_chunk::<4>()?)),
        libc::AF_INET6 => IpAddr::V6(Ipv6Addr::from(*body[8..].first_chunk::<16>()?)),
        _ => return None,
    };
    let only_v6 = attributes(rest)
        .any(|(kind, value)| kind == V6_ONLY && value.first().is_some_and(|on| *on != 0));
    let address = match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(any) if any.is_unspecified() && !only_v6 => Ipv4Addr::UNSPECIFIED,
        IpAddr::V6(address) => address.to_ipv4_mapped()?,
    };
    let address = Some(address).filter(|address| !address.is_unspecified());
    Some(ListeningPort { address, transport, port })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use proptest::prelude::*;

    use super::*;
    use crate::net::testing::{as_root_in_namespace, ip};
    use crate::net::wire::messages;

    fn socket(family: i32, address: &[u8], port: u16, v6_only: Option<u8>) -> Vec<u8> {
        let mut body = [0; ANSWER];
        body[0] = family as u8;
        body[4..6].copy_from_slice(&port.to_be_bytes());
        body[8..8 + address.len()].copy_from_slice(address);
        let mut request = Request::new(SOCK_DIAG_BY_FAMILY, 0).fixed(&body);
        if let Some(only) = v6_only {
            request = request.attribute(V6_ONLY, &[only]);
        }
        request.finish(1)
    }

    fn read(bytes: &[u8]) -> Option<(Option<Ipv4Addr>, u16)> {
        let port = decode(&messages(bytes).next()?, Transport::Tcp)?;
        Some((port.address, port.port))
    }

    #[test]
    fn a_socket_counts_if_it_can_receive_ipv4() {
        let v6 = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
        let own = Ipv4Addr::new(10, 0, 0, 2);
        for (bytes, expected) in [
            (socket(libc::AF_INET, &own.octets(), 179, None), Some((Some(own), 179))),
            (socket(libc::AF_INET, &[0; 4], 22, None), Some((None, 22))),
            (socket(libc::AF_INET, &own.octets(), 0, None), None),
            (socket(libc::AF_INET6, &[0; 16], 22, None), Some((None, 22))),
            (socket(libc::AF_INET6, &[0; 16], 22, Some(0)), Some((None, 22))),
            (socket(libc::AF_INET6, &[0; 16], 22, Some(1)), None),
            (socket(libc::AF_INET6, &v6("::ffff:10.0.0.2"), 53, None), Some((Some(own), 53))),
            (socket(libc::AF_INET6, &v6("2001:db8::1"), 53, None), None),
            (socket(libc::AF_UNIX, &own.octets(), 53, None), None),
        ] {
            assert_eq!(read(&bytes), expected, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_answer_can_be_read(payload in proptest::collection::vec(any::<u8>(), 0..120)) {
            let bytes = Request::new(SOCK_DIAG_BY_FAMILY, 0).fixed(&payload).finish(1);
            if let Some((_, port)) = read(&bytes) {
                prop_assert_ne!(port, 0);
            }
        }
    }

    #[test]
    fn listeners_of_a_namespace_are_found() {
        as_root_in_namespace("listeners", || {
            ip("link set lo up");
            assert_eq!(listening_ports().unwrap(), [], "a new namespace has none");
            let tcp = TcpListener::bind("127.0.0.1:8001").unwrap();
            // A connection takes no further port of the host: its own is an ephemeral one.
            let _connection = TcpStream::connect("127.0.0.1:8001").unwrap();
            let _udp = UdpSocket::bind("0.0.0.0:8002").unwrap();
            let connected = UdpSocket::bind("127.0.0.1:8003").unwrap();
            connected.connect("127.0.0.1:8002").unwrap();
            let _dual = TcpListener::bind("[::]:8004").unwrap();
            let _v6 = TcpListener::bind("[::1]:8005").unwrap();
            let local = Some(Ipv4Addr::LOCALHOST);
            let tcp_port =
                |address, port| ListeningPort { address, transport: Transport::Tcp, port };
            let udp_port =
                |address, port| ListeningPort { address, transport: Transport::Udp, port };
            assert_eq!(
                listening_ports().unwrap(),
                [
                    tcp_port(None, 8004),
                    udp_port(None, 8002),
                    tcp_port(local, 8001),
                    udp_port(local, 8003),
                ]
            );
            drop(tcp);
            assert!(!listening_ports().unwrap().contains(&tcp_port(local, 8001)));
        });
    }
}
