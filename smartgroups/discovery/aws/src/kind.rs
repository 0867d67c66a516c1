//! What is asked for.

use std::fmt;

/// A kind of facts, each fetched by an action of its own and kept for itself when that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// VPCs and what is associated with them.
    Vpc,
    /// Subnets.
    Subnet,
    /// Network interfaces: who has which address.
    Interface,
    /// Instances.
    Instance,
    /// VPC peerings.
    Peering,
    /// Transit Gateways.
    TransitGateway,
    /// What is attached to them.
    Attachment,
    /// Peerings between them.
    PeeringAttachment,
    /// Their route tables.
    RouteTable,
    /// The routes in these.
    Route,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Vpc,
        Self::Subnet,
        Self::Interface,
        Self::Instance,
        Self::Peering,
        Self::TransitGateway,
        Self::Attachment,
        Self::PeeringAttachment,
        Self::RouteTable,
        Self::Route,
    ];

    /// The action that fetches it, as a policy names it.
    pub const fn action(self) -> &'static str {
        match self {
            Self::Vpc => "ec2:DescribeVpcs",
            Self::Subnet => "ec2:DescribeSubnets",
            Self::Interface => "ec2:DescribeNetworkInterfaces",
            Self::Instance => "ec2:DescribeInstances",
            Self::Peering => "ec2:DescribeVpcPeeringConnections",
            Self::TransitGateway => "ec2:DescribeTransitGateways",
            Self::Attachment => "ec2:DescribeTransitGatewayAttachments",
            Self::PeeringAttachment => "ec2:DescribeTransitGatewayPeeringAttachments",
            Self::RouteTable => "ec2:DescribeTransitGatewayRouteTables",
            Self::Route => "ec2:SearchTransitGatewayRoutes",
        }
    }

    /// Whether it says who is behind an address; the others say how networks hang together.
    pub const fn is_identity(self) -> bool {
        match self {
            Self::Vpc | Self::Subnet | Self::Interface | Self::Instance => true,
            Self::Peering
            | Self::TransitGateway
            | Self::Attachment
            | Self::PeeringAttachment
            | Self::RouteTable
            | Self::Route => false,
        }
    }

    /// Its place in [`Kind::ALL`].
    pub(crate) const fn index(self) -> usize {
        match self {
            Self::Vpc => 0,
            Self::Subnet => 1,
            Self::Interface => 2,
            Self::Instance => 3,
            Self::Peering => 4,
            Self::TransitGateway => 5,
            Self::Attachment => 6,
            Self::PeeringAttachment => 7,
            Self::RouteTable => 8,
            Self::Route => 9,
        }
    }
}

/// What people call several of it.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vpc => "VPCs",
            Self::Subnet => "subnets",
            Self::Interface => "network interfaces",
            Self::Instance => "instances",
            Self::Peering => "VPC peerings",
            Self::TransitGateway => "Transit Gateways",
            Self::Attachment => "Transit Gateway attachments",
            Self::PeeringAttachment => "Transit Gateway peerings",
            Self::RouteTable => "Transit Gateway route tables",
            Self::Route => "Transit Gateway routes",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_stands_at_its_place() {
        for (index, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind.index(), index, "{kind}");
        }
    }
}
