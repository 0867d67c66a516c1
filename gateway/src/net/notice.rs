//! What a message about links, addresses, routes or neighbours says. Of nexthop objects, by which
//! routes may lead, it is enough that there is one.
//!
//! Four layouts of the kernel (`ifinfomsg`, `ifaddrmsg`, `rtmsg`, `ndmsg`), and of each the
//! attributes that the picture holds. A message about something else is no notice: bridges
//! speak of their ports, and of the addresses behind them, in the same message kinds under
//! another address family, where "this link is gone" means that it left the bridge.

use std::net::IpAddr;

use ipnet::IpNet;

use super::picture::{
    Address, Hop, Link, Mac, Neighbour, NeighbourKey, NeighbourState, Notice, Route, RouteKind,
    RouteMtu,
};
use super::wire::{self, Message, Request, attributes, native_u16, native_u32};

const AF_UNSPEC: u8 = libc::AF_UNSPEC as u8;
const AF_INET: u8 = libc::AF_INET as u8;
const AF_INET6: u8 = libc::AF_INET6 as u8;

/// `IFA_FLAGS`: the flags as 32 bits; the header has room for 8.
const IFA_FLAGS: u16 = 8;
/// `IFLA_VLAN_ID`, within the data of a link of kind `vlan`.
const IFLA_VLAN_ID: u16 = 1;
/// `RTNH_F_DEAD | RTNH_F_LINKDOWN`: a hop that the kernel does not use.
const HOP_DEAD: u32 = 1 | 16;
/// `RTAX_LOCK` and `RTAX_MTU`, within the metrics of a route.
const RTAX_LOCK: u16 = 1;
const RTAX_MTU: u16 = 2;
/// Length of `struct rtnexthop`.
const HOP_HEADER: usize = 8;

/// `RTM_NEWNEXTHOP` and `RTM_DELNEXTHOP`.
const NEW_NEXTHOP: u16 = 104;
const DELETED_NEXTHOP: u16 = 105;

/// `NDA_FLAGS_EXT`: the flags of a neighbour that its header has no room for.
pub(super) const NDA_FLAGS_EXT: u16 = 15;
/// `NTF_EXT_MANAGED`, one of them.
pub(super) const NTF_EXT_MANAGED: u32 = 1;

/// The tables of the picture, in the order in which a full reading asks for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    Links,
    Addresses,
    Routes,
    Neighbours,
}

impl Table {
    /// Every table.
    pub(super) const ALL: [Self; 4] =
        [Self::Links, Self::Addresses, Self::Routes, Self::Neighbours];

    /// What the request is for, for errors.
    pub(super) fn purpose(self) -> &'static str {
        match self {
            Self::Links => "list the links",
            Self::Addresses => "list the addresses",
            Self::Routes => "list the routes",
            Self::Neighbours => "list the neighbours",
        }
    }

    /// The request for all of it, of both address families.
    pub(super) fn request(self) -> Request {
        let (kind, header) = match self {
            Self::Links => (libc::RTM_GETLINK, 16),
            Self::Addresses => (libc::RTM_GETADDR, 8),
            Self::Routes => (libc::RTM_GETROUTE, 12),
            Self::Neighbours => (libc::RTM_GETNEIGH, 12),
        };
        Request::new(kind, libc::NLM_F_DUMP).fixed(&[0; 16][..header])
    }
}

/// Reads a message; `None` if it is not about anything in the picture.
pub(super) fn decode(message: &Message<'_>) -> Option<Notice> {
    let payload = message.payload;
    match message.kind {
        libc::RTM_NEWLINK => link(payload).map(Notice::Link),
        libc::RTM_DELLINK => link(payload).map(|link| Notice::LinkGone(link.ifindex)),
        libc::RTM_NEWADDR => address(payload).map(Notice::Address),
        libc::RTM_DELADDR => address(payload).map(Notice::AddressGone),
        libc::RTM_NEWROUTE => {
            let replaces = message.has(libc::NLM_F_REPLACE);
            route(payload).map(|route| Notice::Route { route, replaces })
        }
        libc::RTM_DELROUTE => route(payload).map(Notice::RouteGone),
        libc::RTM_NEWNEIGH => {
            neighbour(payload).map(|(key, neighbour)| Notice::Neighbour(key, neighbour))
        }
        NEW_NEXTHOP | DELETED_NEXTHOP => Some(Notice::Nexthop),
        libc::RTM_DELNEIGH => neighbour(payload).map(|(key, _)| Notice::NeighbourGone(key)),
        _ => None,
    }
}

/// The header of `length` bytes and the attributes behind it.
fn split(payload: &[u8], length: usize) -> Option<(&[u8], &[u8])> {
    payload.split_at_checked(length)
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        return Some(bytes.into());
    }
    Some(<[u8; 16]>::try_from(bytes).ok()?.into())
}

fn mac(bytes: &[u8]) -> Option<Mac> {
    bytes.try_into().ok()
}

fn link(payload: &[u8]) -> Option<Link> {
    let (header, rest) = split(payload, 16)?;
    if header[0] != AF_UNSPEC {
        return None;
    }
    let flags = native_u32(&header[8..])?;
    let mut link = Link {
        ifindex: native_u32(&header[4..])?,
        name: String::new(),
        mac: None,
        mtu: 0,
        admin_up: flags & libc::IFF_UP as u32 != 0,
        carrier: flags & libc::IFF_LOWER_UP as u32 != 0,
        kind: None,
        master: None,
        link: None,
        vlan: None,
    };
    let mut abroad = false;
    for (kind, value) in attributes(rest) {
        match kind {
            libc::IFLA_ADDRESS => link.mac = mac(value),
            libc::IFLA_IFNAME => link.name = wire::text(value),
            libc::IFLA_MTU => link.mtu = native_u32(value)?,
            libc::IFLA_MASTER => link.master = native_u32(value).filter(|index| *index != 0),
            libc::IFLA_LINK => link.link = native_u32(value).filter(|index| *index != 0),
            libc::IFLA_LINK_NETNSID => abroad = true,
            libc::IFLA_LINKINFO => info(value, &mut link),
            _ => {}
        }
    }
    if abroad {
        link.link = None;
    }
    Some(link)
}

fn info(value: &[u8], link: &mut Link) {
    let mut data = None;
    for (kind, value) in attributes(value) {
        match kind {
            libc::IFLA_INFO_KIND => link.kind = Some(wire::text(value)),
            libc::IFLA_INFO_DATA => data = Some(value),
            _ => {}
        }
    }
    if link.kind.as_deref() == Some("vlan") {
        link.vlan = attributes(data.unwrap_or_default())
            .find(|(kind, _)| *kind == IFLA_VLAN_ID)
            .and_then(|(_, value)| native_u16(value));
    }
}

fn address(payload: &[u8]) -> Option<Address> {
    let (header, rest) = split(payload, 8)?;
    if !matches!(header[0], AF_INET | AF_INET6) {
        return None;
    }
    let mut flags = u32::from(header[2]);
    let (mut own, mut shown) = (None, None);
    for (kind, value) in attributes(rest) {
        match kind {
            // On a point-to-point link this one is ours and the other the peer's.
            libc::IFA_LOCAL => own = ip(value),
            libc::IFA_ADDRESS => shown = ip(value),
            IFA_FLAGS => flags = native_u32(value)?,
            _ => {}
        }
    }
    Some(Address {
        ifindex: native_u32(&header[4..])?,
        address: own.or(shown)?,
        prefix_len: header[1],
        scope: header[3],
        secondary: flags & libc::IFA_F_SECONDARY != 0,
    })
}

fn route_mtu(metrics: &[u8]) -> Option<RouteMtu> {
    let (mut bytes, mut locks) = (None, 0);
    for (kind, value) in attributes(metrics) {
        match kind {
            RTAX_LOCK => locks = native_u32(value)?,
            RTAX_MTU => bytes = native_u32(value),
            _ => {}
        }
    }
    bytes.map(|bytes| RouteMtu { bytes, locked: locks & 1 << RTAX_MTU != 0 })
}

fn route(payload: &[u8]) -> Option<Route> {
    let (header, rest) = split(payload, 12)?;
    let unspecified = match header[0] {
        AF_INET => IpAddr::from([0; 4]),
        AF_INET6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    let flags = native_u32(&header[8..])?;
    if flags & libc::RTM_F_CLONED != 0 {
        return None;
    }
    let mut table = u32::from(header[4]);
    let mut destination = unspecified;
    let (mut metric, mut prefsrc, mut mtu) = (0, None, None);
    let mut hops = Vec::new();
    let mut only = Hop { gateway: None, oif: None, weight: 1, dead: flags & HOP_DEAD != 0 };
    for (kind, value) in attributes(rest) {
        match kind {
            libc::RTA_TABLE => table = native_u32(value)?,
            libc::RTA_DST => destination = ip(value)?,
            libc::RTA_PRIORITY => metric = native_u32(value)?,
            libc::RTA_PREFSRC => prefsrc = ip(value),
            libc::RTA_METRICS => mtu = route_mtu(value),
            libc::RTA_MULTIPATH => hops = multipath(value),
            _ => towards(&mut only, kind, value),
        }
    }
    if table != u32::from(libc::RT_TABLE_MAIN) {
        return None;
    }
    if hops.is_empty() && (only.gateway.is_some() || only.oif.is_some()) {
        hops.push(only);
    }
    Some(Route {
        destination: IpNet::new(destination, header[1]).ok()?.trunc(),
        tos: header[3],
        metric,
        prefsrc,
        mtu,
        kind: match header[7] {
            libc::RTN_UNICAST => RouteKind::Unicast,
            libc::RTN_BLACKHOLE => RouteKind::Blackhole,
            libc::RTN_UNREACHABLE => RouteKind::Unreachable,
            libc::RTN_PROHIBIT => RouteKind::Prohibit,
            other => RouteKind::Other(other),
        },
        hops,
    })
}

/// Takes in an attribute that says where a hop leads.
fn towards(hop: &mut Hop, kind: u16, value: &[u8]) {
    match kind {
        libc::RTA_GATEWAY => hop.gateway = ip(value),
        // A router of the other address family: its family in two bytes, then its address.
        libc::RTA_VIA => hop.gateway = value.get(2..).and_then(ip),
        libc::RTA_OIF => hop.oif = native_u32(value),
        _ => {}
    }
}

fn multipath(mut bytes: &[u8]) -> Vec<Hop> {
    let mut hops = Vec::new();
    while let Some(length) = native_u16(bytes).map(usize::from) {
        if length < HOP_HEADER || length > bytes.len() {
            break;
        }
        let mut hop = Hop {
            gateway: None,
            oif: native_u32(&bytes[4..]),
            weight: u16::from(bytes[3]) + 1,
            dead: u32::from(bytes[2]) & HOP_DEAD != 0,
        };
        for (kind, value) in attributes(&bytes[HOP_HEADER..length]) {
            towards(&mut hop, kind, value);
        }
        hops.push(hop);
        bytes = &bytes[((length + 3) & !3).min(bytes.len())..];
    }
    hops
}

/// Reads a neighbour; proxied addresses are none, they are ours to answer for.
pub(super) fn neighbour(payload: &[u8]) -> Option<(NeighbourKey, Neighbour)> {
    let (header, rest) = split(payload, 12)?;
    if !matches!(header[0], AF_INET | AF_INET6) || header[10] & libc::NTF_PROXY != 0 {
        return None;
    }
    let mut address = None;
    let mut neighbour =
        Neighbour { mac: None, state: neighbour_state(native_u16(&header[8..])?), managed: false };
    for (kind, value) in attributes(rest) {
        match kind {
            libc::NDA_DST => address = ip(value),
            libc::NDA_LLADDR => neighbour.mac = mac(value),
            NDA_FLAGS_EXT => neighbour.managed = native_u32(value)? & NTF_EXT_MANAGED != 0,
            _ => {}
        }
    }
    if !resolved(neighbour.state) {
        neighbour.mac = None;
    }
    Some(((native_u32(&header[4..])?, address?), neighbour))
}

fn neighbour_state(bits: u16) -> NeighbourState {
    match bits {
        libc::NUD_NONE => NeighbourState::None,
        libc::NUD_INCOMPLETE => NeighbourState::Incomplete,
        libc::NUD_REACHABLE => NeighbourState::Reachable,
        libc::NUD_STALE => NeighbourState::Stale,
        libc::NUD_DELAY => NeighbourState::Delay,
        libc::NUD_PROBE => NeighbourState::Probe,
        libc::NUD_FAILED => NeighbourState::Failed,
        libc::NUD_NOARP => NeighbourState::NoArp,
        libc::NUD_PERMANENT => NeighbourState::Permanent,
        other => NeighbourState::Other(other),
    }
}

/// Whether the kernel would send to the hardware address in this state.
fn resolved(state: NeighbourState) -> bool {
    match state {
        NeighbourState::Reachable
        | NeighbourState::Stale
        | NeighbourState::Delay
        | NeighbourState::Probe
        | NeighbourState::NoArp
        | NeighbourState::Permanent => true,
        NeighbourState::None
        | NeighbourState::Incomplete
        | NeighbourState::Failed
        | NeighbourState::Other(_) => false,
    }
}

#[cfg(test)]
#[path = "notice_tests.rs"]
mod tests;
