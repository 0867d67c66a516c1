//! Next hops that the kernel itself keeps alive.
//!
//! The fast path sends to hardware addresses that the daemon has read. A neighbour that only
//! the fast path talks to looks idle to the kernel, which forgets it, and then nobody notices
//! that its hardware address changed. So the kernel is told to keep it resolved
//! (`NTF_EXT_MANAGED`, Linux 5.16): it asks again on its own, also while the daemon is dead.
//! `NTF_EXT_LEARNED` beside it keeps the entry from the garbage collector.
//!
//! The entry goes when its link goes down, so it has to be managed anew when the link is back.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::dialogue::{Dialogue, Family, NetlinkError};
use super::notice::{self, NDA_FLAGS_EXT, NTF_EXT_MANAGED, Table};
use super::picture::{IfIndex, Neighbour, NeighbourKey, NeighbourState};
use super::wire::Request;

/// Who keeps a next hop resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeptBy {
    /// The kernel asks for it again and again.
    Kernel,
    /// It was set by hand and never expires. Left as it is: managing it would undo that.
    Operator,
}

/// Tells the kernel to resolve this neighbour and to keep it resolved; safe to repeat.
pub fn manage_neighbour(ifindex: IfIndex, ip: IpAddr) -> Result<KeptBy, NetlinkError> {
    let mut dialogue = Dialogue::open(Family::Route)?;
    match read_neighbour(&mut dialogue, ifindex, ip)? {
        Some(Neighbour { state: NeighbourState::Permanent, .. }) => Ok(KeptBy::Operator),
        Some(Neighbour { managed: true, .. }) => Ok(KeptBy::Kernel),
        Some(_) | None => {
            let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
            let request = Request::new(libc::RTM_NEWNEIGH, flags).fixed(&header(
                ifindex,
                ip,
                libc::NTF_EXT_LEARNED,
            ));
            let request =
                address(request, ip).attribute(NDA_FLAGS_EXT, &NTF_EXT_MANAGED.to_ne_bytes());
            dialogue.perform("keep a neighbour resolved", request)?;
            Ok(KeptBy::Kernel)
        }
    }
}

/// Hands a managed neighbour back to the ordinary life of neighbours; one that is not managed,
/// or not there, is left alone.
pub fn release_neighbour(ifindex: IfIndex, ip: IpAddr) -> Result<(), NetlinkError> {
    let mut dialogue = Dialogue::open(Family::Route)?;
    if !read_neighbour(&mut dialogue, ifindex, ip)?.is_some_and(|neighbour| neighbour.managed) {
        return Ok(());
    }
    // "Used" keeps the state that it has: traffic is not held up while it is asked again.
    let request = Request::new(libc::RTM_NEWNEIGH, libc::NLM_F_ACK | libc::NLM_F_REPLACE)
        .fixed(&header(ifindex, ip, libc::NTF_USE));
    match dialogue.perform("release a neighbour", address(request, ip)) {
        Err(gone) if gone.is_refusal(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// Releases every managed neighbour on these links.
pub fn release_neighbours(links: &BTreeSet<IfIndex>) -> Result<(), NetlinkError> {
    let mut dialogue = Dialogue::open(Family::Route)?;
    let table = Table::Neighbours;
    let all: Vec<(NeighbourKey, Neighbour)> =
        dialogue.dump(table.purpose(), &table.request(), |found: &mut Vec<_>, message| {
            found.extend(notice::neighbour(message.payload))
        })?;
    let ours = |((ifindex, _), neighbour): &(NeighbourKey, Neighbour)| {
        neighbour.managed && links.contains(ifindex)
    };
    for ((ifindex, ip), _) in all.into_iter().filter(ours) {
        release_neighbour(ifindex, ip)?;
    }
    Ok(())
}

fn read_neighbour(
    dialogue: &mut Dialogue,
    ifindex: IfIndex,
    ip: IpAddr,
) -> Result<Option<Neighbour>, NetlinkError> {
    let request = Request::new(libc::RTM_GETNEIGH, libc::NLM_F_ACK).fixed(&header(ifindex, ip, 0));
    let mut found = None;
    let asked = dialogue.ask("read a neighbour", address(request, ip), |message| {
        found = notice::neighbour(message.payload).map(|(_, neighbour)| neighbour);
    });
    match asked {
        Ok(()) => Ok(found),
        Err(none) if none.is_refusal(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// `struct ndmsg` without a state.
fn header(ifindex: IfIndex, ip: IpAddr, flags: u8) -> [u8; 12] {
    let mut header = [0; 12];
    header[0] = match ip {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    };
    header[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    header[10] = flags;
    header
}

fn address(request: Request, ip: IpAddr) -> Request {
    match ip {
        IpAddr::V4(ip) => request.attribute(libc::NDA_DST, &ip.octets()),
        IpAddr::V6(ip) => request.attribute(libc::NDA_DST, &ip.octets()),
    }
}

#[cfg(test)]
#[path = "neighbour_tests.rs"]
mod tests;
