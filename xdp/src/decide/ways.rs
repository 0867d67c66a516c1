//! The next hops of a session: the way out as the kernel routes it, the way back to who sent it.

use super::{Plan, Way};
use crate::{
    address::{Key, V4},
    arrival::attached,
    recent,
    tables::{Route, Tables},
    verdict::Code,
};
use xdp_abi::{
    forward::{
        Attachment, BY_ADDRESS4, BY_MAC, HOP_REDIRECT, HOP_REFRESH, HOP_RESOLVED, HOP_ROUTABLE,
        HOP_USED, Hop, LINK_REDIRECT, LINK_UP, LinkInfo, NextHopKey, ROUTABLE, port,
    },
    reason::Reason,
};

impl<T: Tables<A = V4>> Way<'_, T> {
    /// The way out of a flow that comes in by an interface, as the kernel would route it; or what
    /// becomes of the packet if there is none.
    #[inline(never)]
    pub(super) fn exit(&self, from: u32, key: &Key<V4>, plan: &mut Plan) -> Code {
        let route = self.tables.route(from, key.source, key.destination);
        let (ifindex, gateway, destination_mac, source_mac, mtu) = match route {
            Route::Via { ifindex, gateway, destination_mac, source_mac, mtu } => {
                (ifindex, gateway, destination_mac, source_mac, mtu)
            }
            Route::Unreachable => return Code::drop(Reason::NoRoute),
            Route::Failed => return Code::drop(Reason::HelperFailed),
        };
        if plan.knows_destination && self.exit_again(key.destination, plan, &route) {
            return Code::GO_ON;
        }
        plan.knows_destination = false;
        let no_egress = Code::drop(Reason::NoEgress);
        let Some(link) = self.tables.link(ifindex) else { return no_egress };
        let place = port(link.parent, link.vlan);
        let Some(number) = self.tables.attachment_towards(place, key.destination) else {
            return no_egress;
        };
        let Some(attachment) = attached(self.tables, number) else { return no_egress };
        // A route may take less than its link.
        let link = LinkInfo { mtu: mtu.min(link.mtu), ..link };
        let hop_key = NextHopKey {
            ifindex: link.parent,
            vlan: link.vlan,
            attachment: number,
            kind: BY_ADDRESS4,
            bytes: NextHopKey::address_bytes(gateway, link.mtu),
        };
        let mut hop =
            hop_towards(&link, number, &attachment, destination_mac.unwrap_or([0; 6]), source_mac);
        hop.place |= HOP_REFRESH as u64;
        if destination_mac.is_none() {
            hop.place &= !(HOP_RESOLVED as u64);
        }
        hop.checked = (u32::from_be_bytes(gateway) as u64) << 32 | self.now as u64;
        plan.hop_number = match self.tables.find_hop(&hop_key) {
            Some(hop_number) => {
                // The kernel's answer is as fresh as can be.
                let known = self.tables.hop(hop_number);
                if known.is_some_and(|old| !is_same_way(&old, &hop)) {
                    self.tables.set_hop(hop_number, &hop);
                }
                hop_number
            }
            None => match self.tables.add_hop(&hop_key, &hop) {
                Some(hop_number) => hop_number,
                None => return Code::drop(Reason::NextHopsFull),
            },
        };
        plan.hop = hop;
        plan.egress_number = number;
        plan.egress = attachment;
        if let Some(line) = self.tables.recent(recent::destination_place(key.destination)) {
            line.remember_way(key.destination, ifindex, gateway, plan.hop_number, number);
        }
        Code::GO_ON
    }

    /// The way out that was found a moment ago, if the kernel still says the same of it.
    #[inline(always)]
    fn exit_again(&self, destination: V4, plan: &mut Plan, route: &Route) -> bool {
        let place = recent::destination_place(destination);
        if let Route::Via { ifindex, gateway, destination_mac: Some(to), source_mac, mtu } = *route
            && let Some(line) = self.tables.recent(place)
            && let Some(number) = line.hop_by(ifindex, gateway)
            && let Some(hop) = self.tables.hop(number)
            && hop.is(HOP_RESOLVED)
            && hop.destination == Hop::mac_word(to, hop.vlan())
            && hop.source == Hop::mac_word(source_mac, mtu)
            && let Some(attachment) = attached(self.tables, line.attachment())
        {
            plan.hop_number = number;
            plan.hop = hop;
            plan.egress_number = line.attachment();
            plan.egress = attachment;
            return true;
        }
        false
    }

    /// The way back: to the neighbour that this packet came from.
    #[inline(always)]
    pub(super) fn way_back(&self) -> Option<u16> {
        let key = NextHopKey {
            ifindex: self.arrival.ifindex,
            vlan: self.arrival.vlan,
            attachment: self.number,
            kind: BY_MAC,
            bytes: self.arrival.sender,
        };
        let link = self.tables.link(self.attachment.ifindex)?;
        let hop = hop_towards(&link, self.number, self.attachment, self.arrival.sender, link.mac);
        if let Some(number) = self.tables.find_hop(&key) {
            // The attachment or its link may have changed since.
            if self.tables.hop(number).is_some_and(|old| !is_same_way(&old, &hop)) {
                self.tables.set_hop(number, &hop);
            }
            return Some(number);
        }
        self.tables.add_hop(&key, &hop)
    }

    /// Asks the kernel where a next hop is now.
    #[inline(never)]
    pub(super) fn refresh(&self, number: u16, hop: &mut Hop) {
        let gateway = V4(hop.gateway());
        let own = attached(self.tables, hop.attachment());
        if let Some(own) = own
            && let Route::Via { ifindex, gateway: via, destination_mac, source_mac, .. } =
                self.tables.route(own.ifindex, gateway, gateway)
            && ifindex == own.ifindex
            // A gateway that is not on its link by the kernel's routes (`onlink`): what they say is
            // the neighbour on the way there.
            && via == gateway.0
        {
            match destination_mac {
                Some(mac) => {
                    hop.destination = Hop::mac_word(mac, hop.vlan());
                    hop.source = Hop::mac_word(source_mac, hop.mtu());
                    hop.place |= HOP_RESOLVED as u64;
                }
                None => hop.place &= !(HOP_RESOLVED as u64),
            }
        }
        hop.checked = hop.checked & !0xffff_ffff | self.now as u64;
        self.tables.set_hop(number, hop);
    }

    /// What keeps a packet from leaving by a next hop, whatever the policy says.
    #[inline(always)]
    pub(super) fn obstacle(&self, hop: &Hop) -> Code {
        if self.packet.ttl <= 1 {
            return Code::icmp(Reason::TtlExpired, 11, 0, 0);
        }
        if self.arrival.longest > hop.mtu() as u32 {
            if self.packet.dont_fragment {
                return Code::icmp(Reason::TooBig, 3, 4, hop.mtu());
            }
            return Code::drop(Reason::TooBig);
        }
        Code::GO_ON
    }
}

/// Whether two readings of a hop send alike, under the same guard.
#[inline(always)]
fn is_same_way(a: &Hop, b: &Hop) -> bool {
    a.destination == b.destination && a.source == b.source && a.place == b.place
}

#[inline(always)]
fn hop_towards(
    link: &LinkInfo,
    number: u16,
    attachment: &Attachment,
    destination_mac: [u8; 6],
    source_mac: [u8; 6],
) -> Hop {
    let mut flags = HOP_USED;
    if link.flags & LINK_UP != 0 {
        flags |= HOP_RESOLVED;
    }
    if link.flags & LINK_REDIRECT != 0 {
        flags |= HOP_REDIRECT;
    }
    if attachment.flags & ROUTABLE != 0 {
        flags |= HOP_ROUTABLE;
    }
    Hop {
        destination: Hop::mac_word(destination_mac, link.vlan),
        source: Hop::mac_word(source_mac, link.mtu),
        place: (link.parent as u64) << 32 | (number as u64) << 16 | flags as u64,
        checked: 0,
    }
}
