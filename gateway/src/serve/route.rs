//! What the kernel would do with a packet: one question by rtnetlink.
//!
//! The datapath asks the same tables by a BPF helper. Here the question names the interface that
//! the packet comes in by, so that rules for incoming packets count too; where the kernel refuses
//! to think that such a packet comes in there (reverse path check), it is asked for the destination
//! alone.

use std::io;

use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use xdp::address::V4;
use xdp::tables::Route;

use crate::datapath::filter;
use crate::flows::live::AskRoute;
use crate::net::Sysctl;

const HEADER: usize = 16;
/// Length of `struct rtmsg`.
const ROUTE: usize = 12;

const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
const RTA_IIF: u16 = 3;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;

/// Asks the kernel of this network namespace.
#[must_use]
pub fn ask_route() -> Box<AskRoute> {
    Box::new(|ifindex, source, destination| {
        let incoming = ask(&question(Some((ifindex, source)), destination), destination);
        match incoming {
            // The kernel says the same of a way that does not exist and of a machine that does not
            // forward; the datapath's helper does not.
            Ok(Route::Unreachable) if !forwards(ifindex) => Route::Failed,
            Ok(route) => route,
            Err(Failure::Refused(libc::EXDEV | libc::EINVAL)) => {
                ask(&question(None, destination), destination).unwrap_or(Route::Failed)
            }
            Err(_) => Route::Failed,
        }
    })
}

/// Whether the kernel forwards what comes in by an interface, as far as it can be read.
fn forwards(ifindex: u32) -> bool {
    interface_name(ifindex).is_none_or(|name| Sysctl::of_kernel().forwarding(&name).unwrap_or(true))
}

/// The name of an interface of this network namespace.
pub(super) fn interface_name(index: u32) -> Option<String> {
    filter::name_of(index).ok()
}

#[derive(Debug, PartialEq, Eq)]
enum Failure {
    /// The kernel's error number.
    Refused(i32),
    /// There is no answer, or none that can be read.
    Silent,
}

fn ask(question: &[u8], destination: V4) -> Result<Route, Failure> {
    let exchange = || -> io::Result<Vec<u8>> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        // The kernel answers within `send`: what is not there then does not come.
        socket.set_non_blocking(true)?;
        socket.send(question, 0)?;
        let (answer, _) = socket.recv_from_full()?;
        Ok(answer)
    };
    read(&exchange().map_err(|_| Failure::Silent)?, destination)
}

fn question(incoming: Option<(u32, V4)>, destination: V4) -> Vec<u8> {
    let mut message = vec![0; HEADER];
    message[4..6].copy_from_slice(&libc::RTM_GETROUTE.to_ne_bytes());
    message[6..8].copy_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
    message[8..12].copy_from_slice(&1u32.to_ne_bytes());
    let bits = if incoming.is_some() { 32 } else { 0 };
    message.extend_from_slice(&[libc::AF_INET as u8, 32, bits, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut attribute = |kind: u16, value: [u8; 4]| {
        message.extend_from_slice(&8u16.to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&value);
    };
    attribute(RTA_DST, destination.0);
    if let Some((ifindex, source)) = incoming {
        attribute(RTA_SRC, source.0);
        attribute(RTA_IIF, ifindex.to_ne_bytes());
    }
    let length = message.len() as u32;
    message[0..4].copy_from_slice(&length.to_ne_bytes());
    message
}

/// See [`super::read_foreign_route`].
#[cfg(feature = "fuzz")]
pub(super) fn read_foreign(answer: &[u8]) {
    // That it is refused is an answer too.
    let _ = read(answer, V4([192, 0, 2, 1]));
}

fn read(answer: &[u8], destination: V4) -> Result<Route, Failure> {
    let number = |at: usize| answer.get(at..)?.first_chunk::<4>().copied().map(i32::from_ne_bytes);
    let kind = answer.get(4..6).ok_or(Failure::Silent)?;
    if kind == (libc::NLMSG_ERROR as u16).to_ne_bytes() {
        let refused = number(HEADER).ok_or(Failure::Silent)?.saturating_neg();
        return match refused {
            libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES => Ok(Route::Unreachable),
            other => Err(Failure::Refused(other)),
        };
    }
    let route = answer.get(HEADER..HEADER + ROUTE).ok_or(Failure::Silent)?;
    match route[7] {
        libc::RTN_UNICAST => {}
        // What is for the machine itself leads nowhere, as in the datapath.
        libc::RTN_LOCAL
        | libc::RTN_BROADCAST
        | libc::RTN_MULTICAST
        | libc::RTN_BLACKHOLE
        | libc::RTN_UNREACHABLE
        | libc::RTN_PROHIBIT => return Ok(Route::Unreachable),
        _ => return Ok(Route::Failed),
    }
    let (mut ifindex, mut gateway) = (None, destination.0);
    let mut rest = &answer[HEADER + ROUTE..];
    while let Some(head) = rest.first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let Some(value) = rest.get(4..length) else { break };
        if let Ok(value) = <[u8; 4]>::try_from(value) {
            match u16::from_ne_bytes([head[2], head[3]]) {
                RTA_OIF => ifindex = Some(u32::from_ne_bytes(value)),
                RTA_GATEWAY => gateway = value,
                _ => {}
            }
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    let ifindex = ifindex.ok_or(Failure::Silent)?;
    // What is asked of the route is where it leads; of its MTU nothing is told.
    let mtu = u16::MAX;
    Ok(Route::Via { ifindex, gateway, destination_mac: None, source_mac: [0; 6], mtu })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(kind: u8, attributes: &[(u16, [u8; 4])]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER + ROUTE];
        bytes[4..6].copy_from_slice(&libc::RTM_NEWROUTE.to_ne_bytes());
        bytes[HEADER + 7] = kind;
        for (kind, value) in attributes {
            bytes.extend_from_slice(&8u16.to_ne_bytes());
            bytes.extend_from_slice(&kind.to_ne_bytes());
            bytes.extend_from_slice(value);
        }
        bytes
    }

    #[test]
    fn an_answer_names_interface_and_neighbour() {
        let to = V4([198, 51, 100, 9]);
        let via = |gateway| {
            let (destination_mac, source_mac, mtu) = (None, [0; 6], u16::MAX);
            Route::Via { ifindex: 7, gateway, destination_mac, source_mac, mtu }
        };
        let out = (RTA_OIF, 7u32.to_ne_bytes());
        for (bytes, expected) in [
            (answer(1, &[out, (RTA_GATEWAY, [10, 0, 0, 1])]), Ok(via([10, 0, 0, 1]))),
            (answer(1, &[out]), Ok(via(to.0))), // on the link itself
            (answer(1, &[]), Err(Failure::Silent)),
            (answer(2, &[out]), Ok(Route::Unreachable)), // the machine itself
            (answer(7, &[out]), Ok(Route::Unreachable)),
            (answer(200, &[out]), Ok(Route::Failed)),
            (vec![0; 5], Err(Failure::Silent)),
            (vec![], Err(Failure::Silent)),
        ] {
            assert_eq!(read(&bytes, to), expected, "{bytes:?}");
        }
        let whole = answer(1, &[out, (RTA_GATEWAY, [10, 0, 0, 1])]);
        for length in 0..whole.len() {
            // Cut off anywhere: an answer or none, but no panic.
            let _ = read(&whole[..length], to);
        }
    }

    #[test]
    fn a_refusal_says_whether_there_is_no_way() {
        let refused = |number: i32| {
            let mut bytes = vec![0; HEADER];
            bytes[4..6].copy_from_slice(&(libc::NLMSG_ERROR as u16).to_ne_bytes());
            bytes.extend_from_slice(&(-number).to_ne_bytes());
            read(&bytes, V4([192, 0, 2, 1]))
        };
        assert_eq!(refused(libc::ENETUNREACH), Ok(Route::Unreachable));
        assert_eq!(refused(libc::EHOSTUNREACH), Ok(Route::Unreachable));
        assert_eq!(refused(libc::EXDEV), Err(Failure::Refused(libc::EXDEV)));
    }

    #[test]
    fn the_kernel_knows_itself() {
        assert_eq!(interface_name(1).as_deref(), Some("lo"));
        assert_eq!(interface_name(u32::MAX), None);
        let route = ask_route()(1, V4([127, 0, 0, 1]), V4([127, 0, 0, 1]));
        assert_eq!(route, Route::Unreachable);
    }
}
