//! What the kernel has told of the network, and what each further message changes in it.
//!
//! Pure: a message goes in, events come out, and the shell in `follow` only moves bytes. Most
//! of what can go wrong is that the kernel does not say everything. IPv4 routes vanish without
//! a message when their link goes down or loses its carrier, and when the address they prefer
//! as source is removed; a second route to the same destination waits unseen behind the first; and
//! routes by a nexthop object go with it, or lead where it leads now.
//! Where a message leaves the routes in doubt, [`NetworkState::apply`] says so and the shell
//! reads them anew. It is the message that asks for it: nothing is read on a timer.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

/// A hardware address.
pub type Mac = [u8; 6];

/// The number by which the kernel knows a link; never reused while the link exists.
pub type IfIndex = u32;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub ifindex: IfIndex,
    /// Its name, which may change.
    pub name: String,
    /// Its hardware address, if it has an Ethernet one.
    pub mac: Option<Mac>,
    /// The largest packet, in bytes.
    pub mtu: u32,
    /// Whether it was switched on.
    pub admin_up: bool,
    /// Whether the wire under it is alive.
    pub carrier: bool,
    /// The driver's kind (`veth`, `vlan`, `bond`); absent for hardware.
    pub kind: Option<String>,
    /// The bridge or bond that it belongs to.
    pub master: Option<IfIndex>,
    /// What it stands on: the parent of a VLAN, the other end of a veth pair. Absent when that
    /// is in another network namespace, where the number would mean something else.
    pub link: Option<IfIndex>,
    /// The VLAN that it stands for.
    pub vlan: Option<u16>,
}

impl Link {
    /// Whether packets can leave through it: switched on and with a carrier.
    pub fn up(&self) -> bool {
        self.admin_up && self.carrier
    }
}

/// An address of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The link that carries it.
    pub ifindex: IfIndex,
    /// The address.
    pub address: IpAddr,
    /// How many of its bits are the prefix.
    pub prefix_len: u8,
    /// How far it is valid: 0 everywhere, 253 this link, 254 this host.
    pub scope: u8,
    /// IPv4: second in its prefix, and gone with the first. IPv6: a temporary address.
    pub secondary: bool,
}

/// What makes an address the same address.
pub type AddressKey = (IfIndex, IpAddr, u8);

impl Address {
    fn key(&self) -> AddressKey {
        (self.ifindex, self.address, self.prefix_len)
    }
}

/// What a route does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteKind {
    /// Sends it on.
    Unicast,
    /// Drops it silently.
    Blackhole,
    /// Answers that the destination is unreachable.
    Unreachable,
    /// Answers that it is forbidden.
    Prohibit,
    /// Anything else, by the kernel's number.
    Other(u8),
}

/// One way on of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The router, absent when the destination is on the link itself.
    pub gateway: Option<IpAddr>,
    /// The link that leads there.
    pub oif: Option<IfIndex>,
    /// Its share among the hops, at least 1.
    pub weight: u16,
    /// Whether the kernel holds it dead, as after a lost carrier.
    pub dead: bool,
}

/// A route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where it leads.
    pub destination: IpNet,
    /// The type of service that it is for, mostly 0.
    pub tos: u8,
    /// Its cost; the least wins.
    pub metric: u32,
    /// The source that own packets get on it.
    pub prefsrc: Option<IpAddr>,
    /// The largest packet that it takes, if it says so.
    pub mtu: Option<RouteMtu>,
    /// What it does.
    pub kind: RouteKind,
    /// The ways on, more than one for a multipath route.
    pub hops: Vec<Hop>,
}

/// What a route says of its MTU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteMtu {
    /// Bytes.
    pub bytes: u32,
    /// Whether it holds for packets that are forwarded, too.
    pub locked: bool,
}

/// What makes a route the same route: destination, type of service, metric.
pub type RouteKey = (IpNet, u8, u32);

impl Route {
    fn key(&self) -> RouteKey {
        (self.destination, self.tos, self.metric)
    }
}

/// What the kernel knows of a neighbour's reachability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeighbourState {
    /// Nothing yet.
    None,
    /// Being asked for the first time.
    Incomplete,
    /// Confirmed a moment ago.
    Reachable,
    /// Confirmed once, not lately.
    Stale,
    /// In use; soon to be asked again.
    Delay,
    /// Being asked again.
    Probe,
    /// Did not answer.
    Failed,
    /// Needs no resolution.
    NoArp,
    /// Set by hand.
    Permanent,
    /// A number of a newer kernel.
    Other(u16),
}

/// A host on a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its hardware address, present while the kernel would send to it.
    pub mac: Option<Mac>,
    /// How sure the kernel is of it.
    pub state: NeighbourState,
    /// Whether the kernel itself keeps it resolved (`NTF_EXT_MANAGED`).
    pub managed: bool,
}

/// What makes a neighbour the same neighbour.
pub type NeighbourKey = (IfIndex, IpAddr);

/// The network of one namespace: links, addresses, routes of the main table, neighbours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkState {
    /// All links.
    pub links: BTreeMap<IfIndex, Link>,
    /// All addresses of this machine.
    pub addresses: BTreeMap<AddressKey, Address>,
    /// The routes of the main table; of several with one key the one that the kernel uses.
    pub routes: BTreeMap<RouteKey, Route>,
    /// All neighbours.
    pub neighbours: BTreeMap<NeighbourKey, Neighbour>,
    /// Keys under which the kernel holds further routes behind the one shown.
    pub(super) shadowing: BTreeSet<RouteKey>,
}

/// Something changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkEvent {
    /// A link appeared (no `old`), changed, or vanished (no `new`).
    LinkChanged {
        /// Its number.
        ifindex: IfIndex,
        /// As it was.
        old: Option<Link>,
        /// As it is.
        new: Option<Link>,
    },
    /// An address appeared, or its scope or rank changed.
    AddressAdded(Address),
    /// An address is gone.
    AddressRemoved(Address),
    /// A route appeared (no `old`), changed, or vanished (no `new`).
    RouteChanged {
        /// As it was.
        old: Option<Route>,
        /// As it is.
        new: Option<Route>,
    },
    /// A neighbour is to be reached under another hardware address, or under none. A change of
    /// state alone is no event: it happens every few seconds and changes no packet.
    NeighbourChanged {
        /// The link.
        ifindex: IfIndex,
        /// The neighbour.
        ip: IpAddr,
        /// The hardware address until now.
        old: Option<Mac>,
        /// The hardware address from now on.
        new: Option<Mac>,
    },
    /// A nexthop object changed, or is gone: routes by it lead elsewhere, whether they show that or
    /// not (`net.ipv4.nexthop_compat_mode`).
    NexthopsChanged,
    /// Messages were lost and everything was read anew; what had changed came right before.
    Resynced,
}

/// What has to follow a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Concern {
    /// The next hops that name a neighbour.
    Neighbours,
    /// The way out of every flow.
    Routes,
    /// Links and addresses: what is served, and how.
    Places,
}

impl NetworkEvent {
    /// What has to follow it.
    #[must_use]
    pub const fn concern(&self) -> Concern {
        match self {
            Self::NeighbourChanged { .. } => Concern::Neighbours,
            Self::RouteChanged { .. } | Self::NexthopsChanged => Concern::Routes,
            Self::LinkChanged { .. }
            | Self::AddressAdded(_)
            | Self::AddressRemoved(_)
            | Self::Resynced => Concern::Places,
        }
    }

    /// Changes in their order, those together that concern the same: a thousand routes that vanish
    /// with a link are one reason to look at every flow again.
    pub fn in_turns(events: &[Self]) -> impl Iterator<Item = (Concern, &[Self])> {
        let alike = events.chunk_by(|one, next| one.concern() == next.concern());
        alike.filter_map(|turn| Some((turn.first()?.concern(), turn)))
    }
}

/// A message of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Notice {
    /// A link is as stated.
    Link(Link),
    /// A link is gone.
    LinkGone(IfIndex),
    /// An address is as stated.
    Address(Address),
    /// An address is gone.
    AddressGone(Address),
    /// A route was added, or took the place of the one with its key.
    Route { route: Route, replaces: bool },
    /// A route is gone.
    RouteGone(Route),
    /// A nexthop object is another one now, or gone.
    Nexthop,
    /// A neighbour is as stated.
    Neighbour(NeighbourKey, Neighbour),
    /// A neighbour is gone.
    NeighbourGone(NeighbourKey),
}

/// What a message did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Applied {
    /// What changed.
    pub(super) events: Vec<NetworkEvent>,
    /// Whether the kernel may have changed routes without a word.
    pub(super) routes_in_doubt: bool,
}

impl NetworkState {
    /// Takes in one message; the same message twice changes nothing.
    pub(super) fn apply(&mut self, notice: Notice) -> Applied {
        let mut applied = Applied::default();
        match notice {
            Notice::Link(link) => self.link(link, &mut applied),
            Notice::LinkGone(ifindex) => self.link_gone(ifindex, &mut applied),
            Notice::Address(address) => {
                if self.addresses.insert(address.key(), address.clone()).as_ref() != Some(&address)
                {
                    applied.events.push(NetworkEvent::AddressAdded(address));
                }
            }
            Notice::AddressGone(address) => {
                if let Some(gone) = self.addresses.remove(&address.key()) {
                    applied.events.push(NetworkEvent::AddressRemoved(gone));
                    applied.routes_in_doubt = true;
                }
            }
            Notice::Route { route, replaces } => self.route(route, replaces, &mut applied),
            Notice::RouteGone(route) => self.route_gone(&route, &mut applied),
            Notice::Nexthop => {
                applied.events.push(NetworkEvent::NexthopsChanged);
                applied.routes_in_doubt = true;
            }
            Notice::Neighbour((ifindex, ip), neighbour) => {
                let new = neighbour.mac;
                let old = self.neighbours.insert((ifindex, ip), neighbour).and_then(|old| old.mac);
                if old != new {
                    let event = NetworkEvent::NeighbourChanged { ifindex, ip, old, new };
                    applied.events.push(event);
                }
            }
            Notice::NeighbourGone(key) => self.neighbour_gone(key, &mut applied),
        }
        applied
    }

    /// Takes in one message of a full reading, where order is meaning: of several routes with
    /// one key the kernel lists first the one that it uses.
    pub(super) fn gather(&mut self, notice: Notice) {
        match notice {
            Notice::Route { route, .. } => {
                let key = route.key();
                match self.routes.entry(key) {
                    Entry::Vacant(first) => {
                        first.insert(route);
                    }
                    Entry::Occupied(_) => {
                        self.shadowing.insert(key);
                    }
                }
            }
            other @ (Notice::Link(_)
            | Notice::LinkGone(_)
            | Notice::Address(_)
            | Notice::AddressGone(_)
            | Notice::RouteGone(_)
            | Notice::Nexthop
            | Notice::Neighbour(..)
            | Notice::NeighbourGone(_)) => {
                self.apply(other);
            }
        }
    }

    /// Becomes `new`, and tells the difference.
    pub(super) fn become_state(&mut self, new: Self) -> Vec<NetworkEvent> {
        let old = std::mem::replace(self, new);
        let mut events = Vec::new();
        for (ifindex, old, new) in difference(&old.links, &self.links) {
            events.push(NetworkEvent::LinkChanged {
                ifindex,
                old: old.cloned(),
                new: new.cloned(),
            });
        }
        for (_, old, new) in difference(&old.addresses, &self.addresses) {
            events.extend(match new {
                Some(new) => Some(NetworkEvent::AddressAdded(new.clone())),
                None => old.cloned().map(NetworkEvent::AddressRemoved),
            });
        }
        events.extend(route_difference(&old.routes, &self.routes));
        for ((ifindex, ip), old, new) in difference(&old.neighbours, &self.neighbours) {
            let (old, new) = (old.and_then(|old| old.mac), new.and_then(|new| new.mac));
            if old != new {
                events.push(NetworkEvent::NeighbourChanged { ifindex, ip, old, new });
            }
        }
        events
    }

    /// Takes the routes of `new`, and tells the difference.
    pub(super) fn become_routes(&mut self, new: Self) -> Vec<NetworkEvent> {
        let old = std::mem::replace(&mut self.routes, new.routes);
        self.shadowing = new.shadowing;
        route_difference(&old, &self.routes).collect()
    }

    fn link(&mut self, link: Link, applied: &mut Applied) {
        let ifindex = link.ifindex;
        let old = self.links.insert(ifindex, link.clone());
        if old.as_ref() == Some(&link) {
            return;
        }
        applied.routes_in_doubt = old.as_ref().is_some_and(|old| {
            (old.admin_up, old.carrier, old.master) != (link.admin_up, link.carrier, link.master)
        });
        applied.events.push(NetworkEvent::LinkChanged { ifindex, old, new: Some(link) });
    }

    /// A link takes with it what stood on it, told or not.
    fn link_gone(&mut self, ifindex: IfIndex, applied: &mut Applied) {
        let Some(link) = self.links.remove(&ifindex) else { return };
        let gone = self.addresses.extract_if(.., |key, _| key.0 == ifindex);
        applied.events.extend(gone.map(|(_, address)| NetworkEvent::AddressRemoved(address)));
        let keys: Vec<_> = self.neighbours.keys().filter(|key| key.0 == ifindex).copied().collect();
        for key in keys {
            self.neighbour_gone(key, applied);
        }
        applied.routes_in_doubt = true;
        applied.events.push(NetworkEvent::LinkChanged { ifindex, old: Some(link), new: None });
    }

    fn neighbour_gone(&mut self, (ifindex, ip): NeighbourKey, applied: &mut Applied) {
        let gone = self.neighbours.remove(&(ifindex, ip));
        if let Some(Neighbour { mac: old @ Some(_), .. }) = gone {
            let event = NetworkEvent::NeighbourChanged { ifindex, ip, old, new: None };
            applied.events.push(event);
        }
    }

    fn route(&mut self, route: Route, replaces: bool, applied: &mut Applied) {
        let key = route.key();
        let old = self.routes.get(&key);
        if old == Some(&route) {
            return;
        }
        if old.is_some() && !replaces {
            // Before or behind the one we know, or one more hop of it: the message does not say.
            applied.routes_in_doubt = true;
            return;
        }
        let old = self.routes.insert(key, route.clone());
        applied.events.push(NetworkEvent::RouteChanged { old, new: Some(route) });
    }

    fn route_gone(&mut self, route: &Route, applied: &mut Applied) {
        let key = route.key();
        let Some(known) = self.routes.get(&key) else { return };
        if self.shadowing.contains(&key) || !same_hops(known, route) {
            applied.routes_in_doubt = true;
            return;
        }
        let old = self.routes.remove(&key);
        applied.events.push(NetworkEvent::RouteChanged { old, new: None });
    }
}

/// Whether two routes lead the same ways; a farewell does not repeat whether a hop was dead.
fn same_hops(left: &Route, right: &Route) -> bool {
    left.kind == right.kind
        && left.hops.len() == right.hops.len()
        && left
            .hops
            .iter()
            .zip(&right.hops)
            .all(|(left, right)| (left.gateway, left.oif) == (right.gateway, right.oif))
}

fn route_difference<'a>(
    old: &'a BTreeMap<RouteKey, Route>,
    new: &'a BTreeMap<RouteKey, Route>,
) -> impl Iterator<Item = NetworkEvent> + 'a {
    difference(old, new)
        .map(|(_, old, new)| NetworkEvent::RouteChanged { old: old.cloned(), new: new.cloned() })
}

/// What differs between two tables: first what is gone, then what is new or changed.
fn difference<'a, K: Ord + Copy, V: PartialEq>(
    old: &'a BTreeMap<K, V>,
    new: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (K, Option<&'a V>, Option<&'a V>)> + 'a {
    let gone = old
        .iter()
        .filter(|(key, _)| !new.contains_key(key))
        .map(|(key, value)| (*key, Some(value), None));
    let changed = new
        .iter()
        .map(|(key, value)| (*key, old.get(key), Some(value)))
        .filter(|(_, old, new)| old != new);
    gone.chain(changed)
}

#[cfg(test)]
#[expect(clippy::wildcard_enum_match_arm, reason = "a test expects one kind of event")]
#[path = "picture_tests.rs"]
mod tests;
