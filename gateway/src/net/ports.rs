//! Ports that the host itself uses.
//!
//! When SNAT lends ports of an address that is also the host's, a reply to a lent port and a
//! packet for a socket of the host look the same. So the ports that the host holds are kept
//! out of SNAT: those that its sockets have now, read here, and those it takes for its next
//! outgoing connections ([`super::Sysctl::ephemeral_range`]).
//!
//! Not only listeners have ports of their own choice: a connection may be made from a stated
//! port, and outlives the listener that it came to. The kernel holds a port until TIME-WAIT is
//! over, and so long it counts here.
//!
//! Only what can receive IPv4 counts: IPv4 sockets, IPv6 sockets on an IPv4 address, and those
//! on any address unless they were told to keep to IPv6.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::dialogue::{Dialogue, Family, NetlinkError};
use super::wire::{Message, Request, attributes};

/// `SOCK_DIAG_BY_FAMILY`: the one message kind, both ways.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// The bits of all states but "closed" (`TCP_CLOSE`), which holds no port.
const ANY_BUT_CLOSED: u32 = !(1 << 7);
/// The bits of all states; a UDP socket has no state that says it is bound, only a port.
const ANY_STATE: u32 = u32::MAX;
/// Length of `struct inet_diag_msg`.
const ANSWER: usize = 72;
/// `INET_DIAG_SKV6ONLY`, among the attributes of an answer.
const V6_ONLY: u16 = 11;

/// Over what a socket speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// A listener, or a connection in whatever state.
    Tcp,
    /// A bound socket, connected or not.
    Udp,
}

/// A port of the host that is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortInUse {
    /// The address it is taken on; absent: on every address of the host.
    pub address: Option<Ipv4Addr>,
    /// The protocol.
    pub transport: Transport,
    /// The port.
    pub port: u16,
}

/// The ports on which the sockets of this network namespace can receive IPv4, in order and each
/// once: on an address only where it is not taken on every address.
pub fn ports_in_use() -> Result<Vec<PortInUse>, NetlinkError> {
    let mut dialogue = Dialogue::open(Family::SocketDiagnosis)?;
    let mut all = BTreeSet::new();
    for transport in [Transport::Tcp, Transport::Udp] {
        for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
            let read = dialogue.dump(
                "list the sockets of the host",
                &request(family, transport),
                |ports: &mut BTreeSet<_>, message| ports.extend(decode(message, transport)),
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
    let everywhere = |port: &PortInUse| all.contains(&PortInUse { address: None, ..*port });
    Ok(all.iter().filter(|port| port.address.is_none() || !everywhere(port)).copied().collect())
}

/// `struct inet_diag_req_v2` for every socket of a family and protocol.
fn request(family: u8, transport: Transport) -> Request {
    let (protocol, states) = match transport {
        Transport::Tcp => (libc::IPPROTO_TCP, ANY_BUT_CLOSED),
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
fn decode(message: &Message<'_>, transport: Transport) -> Option<PortInUse> {
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
    Some(PortInUse { address, transport, port })
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddrV4, TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsRawFd as _;

    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket as open,
    };
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

    /// A connection on loopback from a stated port.
    fn connect_from(port: u16, to: u16) -> TcpStream {
        let at = |port| SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port));
        let from = open(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap();
        bind(from.as_raw_fd(), &at(port)).unwrap();
        connect(from.as_raw_fd(), &at(to)).unwrap();
        TcpStream::from(from)
    }

    #[test]
    fn sockets_of_a_namespace_are_found_whatever_their_state() {
        as_root_in_namespace("ports", || {
            ip("link set lo up");
            assert_eq!(ports_in_use().unwrap(), [], "a new namespace has none");
            let tcp = TcpListener::bind("127.0.0.1:8001").unwrap();
            let _udp = UdpSocket::bind("0.0.0.0:8002").unwrap();
            let connected = UdpSocket::bind("127.0.0.1:8003").unwrap();
            connected.connect("127.0.0.1:8002").unwrap();
            let _dual = TcpListener::bind("[::]:8004").unwrap();
            let _v6 = TcpListener::bind("[::1]:8005").unwrap();
            let local = Some(Ipv4Addr::LOCALHOST);
            let tcp_port = |address, port| PortInUse { address, transport: Transport::Tcp, port };
            let udp_port = |address, port| PortInUse { address, transport: Transport::Udp, port };
            assert_eq!(
                ports_in_use().unwrap(),
                [
                    tcp_port(None, 8004),
                    udp_port(None, 8002),
                    tcp_port(local, 8001),
                    udp_port(local, 8003),
                ]
            );
            let connection = connect_from(8006, 8001);
            let (accepted, _) = tcp.accept().unwrap();
            let on_dual = connect_from(8007, 8004);
            let in_use = |port| ports_in_use().unwrap().contains(&tcp_port(local, port));
            assert!(in_use(8001) && in_use(8006) && in_use(8007));
            assert!(!in_use(8004), "it is taken on every address already");
            drop(tcp);
            assert!(in_use(8001), "a connection outlives its listener");
            drop(connection);
            assert!(in_use(8006), "the other side has not closed yet");
            drop(accepted);
            assert!(in_use(8006), "the side that closed first is in TIME-WAIT");
            assert!(!in_use(8001), "the other is closed");
            drop(on_dual);
        });
    }
}
