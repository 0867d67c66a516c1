//! What an account has in a region, as plain facts.
//!
//! Nothing here knows how it was asked for. Identity needs the first four kinds; the others say how
//! networks hang together, for whoever tells where an address is and by which way.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use smartgroups::{Labels, Text};

use crate::kind::Kind;

/// All that is known of a region. A copy shares what is the same in both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Its VPCs, as all others sorted by id.
    pub vpcs: Arc<[Vpc]>,
    /// Subnets.
    pub subnets: Arc<[Subnet]>,
    /// Network interfaces.
    pub interfaces: Arc<[Interface]>,
    /// Instances.
    pub instances: Arc<[Instance]>,
    /// VPC peerings, seen from either side.
    pub peerings: Arc<[Peering]>,
    /// Transit Gateways, also those of others that are shared with the account.
    pub gateways: Arc<[TransitGateway]>,
    /// What is attached to them, also what belongs to others.
    pub attachments: Arc<[Attachment]>,
    /// Peerings between Transit Gateways.
    pub peering_attachments: Arc<[PeeringAttachment]>,
    /// Route tables of Transit Gateways.
    pub route_tables: Arc<[RouteTable]>,
    /// The routes of each of these tables, by its id.
    pub routes: BTreeMap<Text, Arc<[Route]>>,
}

/// A VPC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vpc {
    /// Its id.
    pub id: Text,
    /// The account that it belongs to.
    pub owner: Option<Text>,
    /// What is associated with it, of both families; what is being taken away is not.
    pub cidrs: Vec<IpNet>,
    /// Its tags.
    pub tags: Labels,
}

/// A subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// Its id.
    pub id: Text,
    /// The account that it belongs to, which may share it with this one.
    pub owner: Option<Text>,
    /// Its VPC.
    pub vpc: Option<Text>,
    /// Its prefixes, of both families.
    pub cidrs: Vec<IpNet>,
    /// The name of its zone, which means another place in each account.
    pub zone: Option<Text>,
    /// The id of its zone, which means the same place in all.
    pub zone_id: Option<Text>,
    /// Its tags.
    pub tags: Labels,
}

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its id.
    pub id: Text,
    /// The account that it belongs to.
    pub owner: Option<Text>,
    /// Its VPC.
    pub vpc: Option<Text>,
    /// Its subnet.
    pub subnet: Option<Text>,
    /// The name of its zone.
    pub zone: Option<Text>,
    /// What AWS calls its type: `interface`, `nat_gateway`, `trunk`, `branch`, ..
    pub kind: Text,
    /// What whoever made it wrote about it.
    pub description: Text,
    /// The instance that it is attached to.
    pub instance: Option<Text>,
    /// Its addresses.
    pub addresses: Vec<Address>,
    /// Prefixes that were handed to it whole, to give addresses to others.
    pub delegated: Vec<IpNet>,
    /// Its tags.
    pub tags: Labels,
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// As the VPC knows it.
    pub private: IpAddr,
    /// Whether it is the one that the interface was made with. All of IPv6 are.
    pub is_primary: bool,
    /// What the internet sees in place of it.
    pub public: Option<IpAddr>,
}

/// An instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Its id.
    pub id: Text,
    /// The account that it belongs to.
    pub owner: Option<Text>,
    /// Its VPC.
    pub vpc: Option<Text>,
    /// The name of its zone.
    pub zone: Option<Text>,
    /// Its tags.
    pub tags: Labels,
}

/// A peering of two VPCs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peering {
    /// Its id.
    pub id: Text,
    /// `active`, `pending-acceptance`, ..
    pub state: Text,
    /// Who asked for it.
    pub requester: PeeringSide,
    /// Who was asked.
    pub accepter: PeeringSide,
    /// Its tags.
    pub tags: Labels,
}

/// One of the two VPCs of a peering.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeeringSide {
    /// The VPC.
    pub vpc: Option<Text>,
    /// The account that it belongs to.
    pub owner: Option<Text>,
    /// Its region.
    pub region: Option<Text>,
    /// All its prefixes, as far as the other side is told.
    pub cidrs: Vec<IpNet>,
}

/// A Transit Gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransitGateway {
    /// Its id.
    pub id: Text,
    /// The account that it belongs to.
    pub owner: Option<Text>,
    /// `available`, ..
    pub state: Text,
    /// Its tags.
    pub tags: Labels,
}

/// What is attached to a Transit Gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Its id.
    pub id: Text,
    /// The Transit Gateway.
    pub gateway: Option<Text>,
    /// The account that the Transit Gateway belongs to.
    pub gateway_owner: Option<Text>,
    /// What AWS calls the kind of the resource: `vpc`, `vpn`, `peering`, ..
    pub resource_kind: Text,
    /// The resource.
    pub resource: Option<Text>,
    /// The account that the resource belongs to.
    pub resource_owner: Option<Text>,
    /// `available`, ..
    pub state: Text,
    /// The route table by which it sends.
    pub route_table: Option<Text>,
    /// Its tags.
    pub tags: Labels,
}

/// A peering of two Transit Gateways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeeringAttachment {
    /// Its id.
    pub id: Text,
    /// `available`, ..
    pub state: Text,
    /// Who asked for it.
    pub requester: GatewaySide,
    /// Who was asked.
    pub accepter: GatewaySide,
    /// Its tags.
    pub tags: Labels,
}

/// One of the two Transit Gateways of a peering.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GatewaySide {
    /// The Transit Gateway.
    pub gateway: Option<Text>,
    /// The account that it belongs to.
    pub owner: Option<Text>,
    /// Its region.
    pub region: Option<Text>,
}

/// A route table of a Transit Gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteTable {
    /// Its id.
    pub id: Text,
    /// The Transit Gateway.
    pub gateway: Option<Text>,
    /// `available`, ..
    pub state: Text,
    /// Its tags.
    pub tags: Labels,
}

/// A route of a Transit Gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where to, unless that is a prefix list. A default route is among them: it is a way, and says
    /// nothing about who is behind an address.
    pub to: Option<IpNet>,
    /// The prefix list that it goes to.
    pub prefix_list: Option<Text>,
    /// `static` or `propagated`.
    pub origin: Text,
    /// `active` or `blackhole`.
    pub state: Text,
    /// By which attachments; none for a black hole.
    pub by: Vec<RouteTarget>,
}

/// The attachment that a route goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteTarget {
    /// The attachment.
    pub attachment: Option<Text>,
    /// The kind of the resource, as [`Attachment::resource_kind`].
    pub resource_kind: Text,
    /// The resource.
    pub resource: Option<Text>,
}

/// What one kind of facts turned out to be.
#[derive(Clone, Debug)]
pub(crate) enum Fetched {
    Vpcs(Vec<Vpc>),
    Subnets(Vec<Subnet>),
    Interfaces(Vec<Interface>),
    Instances(Vec<Instance>),
    Peerings(Vec<Peering>),
    Gateways(Vec<TransitGateway>),
    Attachments(Vec<Attachment>),
    PeeringAttachments(Vec<PeeringAttachment>),
    RouteTables(Vec<RouteTable>),
    /// Of each table that could be read.
    Routes(BTreeMap<Text, Arc<[Route]>>),
}

impl Fetched {
    fn sort(&mut self) {
        match self {
            Self::Vpcs(all) => all.sort_by(|a, b| a.id.cmp(&b.id)),
            Self::Subnets(all) => all.sort_by(|a, b| a.id.cmp(&b.id)),
            Self::Interfaces(all) => all.sort_by(|a, b| a.id.cmp(&b.id)),
            Self::Instances(all) => all.sort_by(|a, b| a.id.cmp(&b.id)),
            Self::Peerings(all) => all.sort_by(|a, b| a.id.cmp(&b.id)),
            Self::Gateways(all) => all.sort_by(|a, b| a.id.cmp(&b.id)),
            Self::Attachments(all) => all.sort_by(|a, b| a.id.cmp(&b.id)),
            Self::PeeringAttachments(all) => all.sort_by(|a, b| a.id.cmp(&b.id)),
            Self::RouteTables(all) => all.sort_by(|a, b| a.id.cmp(&b.id)),
            // Each table of them is sorted.
            Self::Routes(_) => {}
        }
    }
}

impl Facts {
    /// Takes in what a kind turned out to be. Nothing is taken in of what could not be fetched, so that
    /// stays as it was; of a route table that could not be read, so do its routes.
    pub(crate) fn take(&mut self, mut fetched: Fetched) {
        fetched.sort();
        match fetched {
            Fetched::Vpcs(all) => self.vpcs = all.into(),
            Fetched::Subnets(all) => self.subnets = all.into(),
            Fetched::Interfaces(all) => self.interfaces = all.into(),
            Fetched::Instances(all) => self.instances = all.into(),
            Fetched::Peerings(all) => self.peerings = all.into(),
            Fetched::Gateways(all) => self.gateways = all.into(),
            Fetched::Attachments(all) => self.attachments = all.into(),
            Fetched::PeeringAttachments(all) => self.peering_attachments = all.into(),
            Fetched::RouteTables(all) => self.route_tables = all.into(),
            Fetched::Routes(mut read) => {
                let known = std::mem::take(&mut self.routes);
                for RouteTable { id, .. } in self.route_tables.iter() {
                    if let Some(routes) = read.remove(id).or_else(|| known.get(id).cloned()) {
                        self.routes.insert(Text::clone(id), routes);
                    }
                }
            }
        }
    }

    /// How many there are of a kind.
    pub fn count(&self, kind: Kind) -> usize {
        match kind {
            Kind::Vpc => self.vpcs.len(),
            Kind::Subnet => self.subnets.len(),
            Kind::Interface => self.interfaces.len(),
            Kind::Instance => self.instances.len(),
            Kind::Peering => self.peerings.len(),
            Kind::TransitGateway => self.gateways.len(),
            Kind::Attachment => self.attachments.len(),
            Kind::PeeringAttachment => self.peering_attachments.len(),
            Kind::RouteTable => self.route_tables.len(),
            Kind::Route => self.routes.values().map(|routes| routes.len()).sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(id: &str) -> RouteTable {
        RouteTable {
            id: id.into(),
            gateway: None,
            state: "available".into(),
            tags: Labels::default(),
        }
    }

    fn routes(to: &str) -> Arc<[Route]> {
        let to = Some(to.parse().unwrap());
        let (origin, state) = ("static".into(), "active".into());
        [Route { to, prefix_list: None, origin, state, by: vec![] }].into()
    }

    #[test]
    fn a_table_that_could_not_be_read_keeps_its_routes_until_it_is_gone() {
        let mut facts = Facts::default();
        let read = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter().map(|(id, to)| (Text::from(*id), routes(to)));
            Fetched::Routes(pairs.collect())
        };
        facts.take(Fetched::RouteTables(vec![table("b"), table("a")]));
        assert_eq!(*facts.route_tables[0].id, *"a", "sorted");
        facts.take(read(&[("a", "10.1.0.0/16"), ("b", "10.2.0.0/16")]));
        facts.take(read(&[("b", "10.3.0.0/16")]));
        assert_eq!(facts.routes["a"], routes("10.1.0.0/16"), "as it was");
        assert_eq!(facts.routes["b"], routes("10.3.0.0/16"));
        assert_eq!(facts.count(Kind::Route), 2);
        facts.take(Fetched::RouteTables(vec![table("b")]));
        facts.take(read(&[]));
        assert_eq!(facts.routes.keys().map(|id| &**id).collect::<Vec<_>>(), ["b"]);
    }
}
