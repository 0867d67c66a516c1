//! What AWS is asked, and how its answers become facts: the only place that knows the SDK's types.
//!
//! Every list is read to its last page or not at all. How fast is the SDK's to find out: its adaptive
//! mode slows down when AWS throttles. Clients of different accounts and regions share no such measure,
//! so that one that is throttled slows down no other.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use aws_config::SdkConfig;
use aws_sdk_ec2::config::interceptors::AfterDeserializationInterceptorContextRef;
use aws_sdk_ec2::config::retry::RetryPartition;
use aws_sdk_ec2::config::{ConfigBag, Intercept, Region, RuntimeComponents};
use aws_sdk_ec2::error::BoxError;
use aws_sdk_ec2::types::{self as aws, Filter};
use ipnet::IpNet;
use smartgroups::{Labels, Text};

use crate::facts::{
    Address, Attachment, Fetched, GatewaySide, Instance, Interface, Peering, PeeringAttachment,
    PeeringSide, Route, RouteTable, RouteTarget, Subnet, TransitGateway, Vpc,
};
use crate::failure::Failure;
use crate::kind::Kind;

/// As many as AWS gives at once.
const PAGE: i32 = 1000;

/// EC2 of one region, asked as one account. A client would tell an external id to logs.
#[derive(Clone)]
pub(crate) struct Ec2 {
    client: aws_sdk_ec2::Client,
    /// Only what is in these VPCs; empty: in all.
    vpcs: Vec<String>,
}

/// Refuses answers that break off.
///
/// The SDK takes XML that ends in the middle for XML that says no more, and the list that it was in for
/// one without a next page. Whatever shortened it, what is missing would be taken for gone.
#[derive(Debug)]
struct Whole;

impl Intercept for Whole {
    fn name(&self) -> &'static str {
        "whole answers"
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if context.output_or_error().is_err() {
            return Ok(());
        }
        // All of it was read to make something of it, and every answer of EC2 is called a response.
        let body = context.response().body().bytes().unwrap_or_default();
        if body.trim_ascii_end().ends_with(b"Response>") {
            Ok(())
        } else {
            Err("it breaks off".into())
        }
    }
}

/// What became of a question.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// What was asked for.
    pub(crate) kind: Kind,
    /// What there is of it.
    pub(crate) fetched: Option<Fetched>,
    /// Why not all of it is known.
    pub(crate) failure: Option<Failure>,
}

/// Reads all pages of a list and makes facts of it.
macro_rules! all {
    ($kind:expr, $request:expr, $convert:expr) => {{
        let pages = $request.max_results(PAGE).into_paginator().items().send();
        let items =
            pages.try_collect().await.map_err(|error| Failure::of($kind.action(), &error))?;
        items.into_iter().filter_map($convert).collect::<Vec<_>>()
    }};
}

impl Ec2 {
    /// A client for a region.
    pub(crate) fn new(
        config: &SdkConfig,
        account: &str,
        region: &str,
        endpoint: Option<String>,
        vpcs: &[String],
    ) -> Self {
        let mut config = aws_sdk_ec2::config::Builder::from(config)
            .region(Region::new(region.to_owned()))
            .retry_partition(RetryPartition::new(format!("{account} in {region}")))
            .interceptor(Whole);
        config.set_endpoint_url(endpoint);
        Self { client: aws_sdk_ec2::Client::from_conf(config.build()), vpcs: vpcs.to_vec() }
    }

    fn of_vpcs(&self) -> Option<Vec<Filter>> {
        let values = Some(self.vpcs.clone()).filter(|vpcs| !vpcs.is_empty())?;
        Some(vec![Filter::builder().name("vpc-id").set_values(Some(values)).build()])
    }

    /// Asks for all of a kind; for routes, in these tables.
    pub(crate) async fn fetch(&self, kind: Kind, tables: &[Text]) -> Outcome {
        match self.list(kind, tables).await {
            Ok((fetched, failure)) => Outcome { kind, fetched: Some(fetched), failure },
            Err(failure) => Outcome { kind, fetched: None, failure: Some(failure) },
        }
    }

    /// All of a kind, and what some of it failed of.
    async fn list(
        &self,
        kind: Kind,
        tables: &[Text],
    ) -> Result<(Fetched, Option<Failure>), Failure> {
        let (ec2, filters) = (&self.client, self.of_vpcs());
        let fetched = match kind {
            Kind::Vpc => Fetched::Vpcs(all!(kind, ec2.describe_vpcs().set_filters(filters), vpc)),
            Kind::Subnet => {
                Fetched::Subnets(all!(kind, ec2.describe_subnets().set_filters(filters), subnet))
            }
            Kind::Interface => Fetched::Interfaces(all!(
                kind,
                ec2.describe_network_interfaces().set_filters(filters),
                interface
            )),
            Kind::Instance => {
                let request = ec2.describe_instances().set_filters(filters);
                let reservations = all!(kind, request, Some);
                Fetched::Instances(reservations.into_iter().flat_map(instances).collect())
            }
            Kind::Peering => {
                Fetched::Peerings(all!(kind, ec2.describe_vpc_peering_connections(), peering))
            }
            Kind::TransitGateway => {
                Fetched::Gateways(all!(kind, ec2.describe_transit_gateways(), gateway))
            }
            Kind::Attachment => Fetched::Attachments(all!(
                kind,
                ec2.describe_transit_gateway_attachments(),
                attachment
            )),
            Kind::PeeringAttachment => Fetched::PeeringAttachments(all!(
                kind,
                ec2.describe_transit_gateway_peering_attachments(),
                peering_attachment
            )),
            Kind::RouteTable => Fetched::RouteTables(all!(
                kind,
                ec2.describe_transit_gateway_route_tables(),
                route_table
            )),
            Kind::Route => return Ok(self.routes_of(tables).await),
        };
        Ok((fetched, None))
    }

    /// The routes of each table that can be read, and why the last of the others cannot.
    async fn routes_of(&self, tables: &[Text]) -> (Fetched, Option<Failure>) {
        let (mut read, mut failure) = (BTreeMap::new(), None);
        for table in tables {
            match self.routes(table).await {
                Ok(routes) => drop(read.insert(Text::clone(table), routes)),
                Err(failed) => failure = Some(failed),
            }
        }
        (Fetched::Routes(read), failure)
    }

    /// The routes of a table of a Transit Gateway.
    async fn routes(&self, table: &str) -> Result<Arc<[Route]>, Failure> {
        let action = Kind::Route.action();
        // A filter has to be there; these are all states that a route has. As many as there can be on a
        // page are what AWS tells of these unasked.
        let states = Filter::builder().name("state").values("active").values("blackhole").build();
        let mut pages = self
            .client
            .search_transit_gateway_routes()
            .transit_gateway_route_table_id(table)
            .filters(states)
            .into_paginator()
            .send();
        let (mut routes, mut is_cut) = (Vec::new(), false);
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| Failure::of(action, &error))?;
            is_cut = page.additional_routes_available() == Some(true) && page.next_token.is_none();
            routes.extend(page.routes.unwrap_or_default().into_iter().map(route));
        }
        if is_cut {
            let why = format!("{table} has more routes than are told");
            return Err(Failure::Unreadable { action, why });
        }
        routes.sort_by(|a, b| (a.to, &a.prefix_list).cmp(&(b.to, &b.prefix_list)));
        Ok(routes.into())
    }
}

fn text(text: Option<String>) -> Option<Text> {
    text.filter(|text| !text.is_empty()).map(Text::from)
}

fn word(word: Option<&str>) -> Text {
    word.unwrap_or_default().into()
}

fn tags(tags: Option<Vec<aws::Tag>>) -> Labels {
    let pairs = tags.unwrap_or_default().into_iter();
    pairs.filter_map(|tag| Some((tag.key?, tag.value.unwrap_or_default()))).collect()
}

/// A prefix as AWS writes it. What is none is passed over: one odd text must not cost the others.
fn net(text: Option<&str>) -> Option<IpNet> {
    text?.parse().ok()
}

fn ip(text: Option<&str>) -> Option<IpAddr> {
    text?.parse().ok()
}

fn vpc(vpc: aws::Vpc) -> Option<Vpc> {
    let v4 = vpc.cidr_block_association_set().iter().filter(|one| {
        one.cidr_block_state().and_then(|state| state.state())
            == Some(&aws::VpcCidrBlockStateCode::Associated)
    });
    let v6 = vpc.ipv6_cidr_block_association_set().iter().filter(|one| {
        one.ipv6_cidr_block_state().and_then(|state| state.state())
            == Some(&aws::VpcCidrBlockStateCode::Associated)
    });
    let mut cidrs: Vec<IpNet> = v4.filter_map(|one| net(one.cidr_block())).collect();
    cidrs.extend(v6.filter_map(|one| net(one.ipv6_cidr_block())));
    // The first one, where nothing is said of associations.
    if vpc.cidr_block_association_set().is_empty() {
        cidrs.extend(net(vpc.cidr_block()));
    }
    Some(Vpc { id: text(vpc.vpc_id)?, owner: text(vpc.owner_id), cidrs, tags: tags(vpc.tags) })
}

fn subnet(subnet: aws::Subnet) -> Option<Subnet> {
    let v6 = subnet.ipv6_cidr_block_association_set().iter().filter(|one| {
        one.ipv6_cidr_block_state().and_then(|state| state.state())
            == Some(&aws::SubnetCidrBlockStateCode::Associated)
    });
    let cidrs = net(subnet.cidr_block()).into_iter();
    let cidrs = cidrs.chain(v6.filter_map(|one| net(one.ipv6_cidr_block()))).collect();
    Some(Subnet {
        id: text(subnet.subnet_id)?,
        owner: text(subnet.owner_id),
        vpc: text(subnet.vpc_id),
        cidrs,
        zone: text(subnet.availability_zone),
        zone_id: text(subnet.availability_zone_id),
        tags: tags(subnet.tags),
    })
}

fn interface(interface: aws::NetworkInterface) -> Option<Interface> {
    let public = |association: Option<&aws::NetworkInterfaceAssociation>| {
        ip(association.and_then(|association| association.public_ip()))
    };
    let v4 = interface.private_ip_addresses().iter().filter_map(|one| {
        let private = ip(one.private_ip_address())?;
        let is_primary = one.primary() == Some(true);
        Some(Address { private, is_primary, public: public(one.association()) })
    });
    let v6 = interface.ipv6_addresses().iter().filter_map(|one| {
        let private = ip(one.ipv6_address())?;
        Some(Address { private, is_primary: true, public: None })
    });
    let addresses = v4.chain(v6).collect();
    let v4 = interface.ipv4_prefixes().iter().filter_map(|one| net(one.ipv4_prefix()));
    let v6 = interface.ipv6_prefixes().iter().filter_map(|one| net(one.ipv6_prefix()));
    let delegated = v4.chain(v6).collect();
    Some(Interface {
        kind: word(interface.interface_type().map(aws::NetworkInterfaceType::as_str)),
        description: word(interface.description()),
        id: text(interface.network_interface_id)?,
        owner: text(interface.owner_id),
        vpc: text(interface.vpc_id),
        subnet: text(interface.subnet_id),
        zone: text(interface.availability_zone),
        instance: text(interface.attachment.and_then(|attachment| attachment.instance_id)),
        addresses,
        delegated,
        tags: tags(interface.tag_set),
    })
}

fn instances(reservation: aws::Reservation) -> impl Iterator<Item = Instance> {
    let owner = text(reservation.owner_id);
    reservation.instances.unwrap_or_default().into_iter().filter_map(move |instance| {
        Some(Instance {
            id: text(instance.instance_id)?,
            owner: owner.clone(),
            vpc: text(instance.vpc_id),
            zone: text(instance.placement.and_then(|placement| placement.availability_zone)),
            tags: tags(instance.tags),
        })
    })
}

fn peering(peering: aws::VpcPeeringConnection) -> Option<Peering> {
    let side = |side: Option<aws::VpcPeeringConnectionVpcInfo>| {
        let Some(side) = side else { return PeeringSide::default() };
        let v4 = side.cidr_block_set().iter().filter_map(|one| net(one.cidr_block()));
        let v6 = side.ipv6_cidr_block_set().iter().filter_map(|one| net(one.ipv6_cidr_block()));
        let mut cidrs: Vec<IpNet> = v4.chain(v6).chain(net(side.cidr_block())).collect();
        cidrs.sort_unstable();
        cidrs.dedup();
        let (vpc, owner, region) = (text(side.vpc_id), text(side.owner_id), text(side.region));
        PeeringSide { vpc, owner, region, cidrs }
    };
    Some(Peering {
        state: word(peering.status().and_then(|status| status.code()).map(|code| code.as_str())),
        id: text(peering.vpc_peering_connection_id)?,
        requester: side(peering.requester_vpc_info),
        accepter: side(peering.accepter_vpc_info),
        tags: tags(peering.tags),
    })
}

fn gateway(gateway: aws::TransitGateway) -> Option<TransitGateway> {
    Some(TransitGateway {
        state: word(gateway.state().map(aws::TransitGatewayState::as_str)),
        id: text(gateway.transit_gateway_id)?,
        owner: text(gateway.owner_id),
        tags: tags(gateway.tags),
    })
}

fn attachment(attachment: aws::TransitGatewayAttachment) -> Option<Attachment> {
    Some(Attachment {
        resource_kind: word(attachment.resource_type().map(|kind| kind.as_str())),
        state: word(attachment.state().map(|state| state.as_str())),
        id: text(attachment.transit_gateway_attachment_id)?,
        gateway: text(attachment.transit_gateway_id),
        gateway_owner: text(attachment.transit_gateway_owner_id),
        resource: text(attachment.resource_id),
        resource_owner: text(attachment.resource_owner_id),
        route_table: text(
            attachment.association.and_then(|one| one.transit_gateway_route_table_id),
        ),
        tags: tags(attachment.tags),
    })
}

fn peering_attachment(peering: aws::TransitGatewayPeeringAttachment) -> Option<PeeringAttachment> {
    let side = |side: Option<aws::PeeringTgwInfo>| {
        let side = side?;
        let (gateway, owner) = (text(side.transit_gateway_id), text(side.owner_id));
        Some(GatewaySide { gateway, owner, region: text(side.region) })
    };
    Some(PeeringAttachment {
        state: word(peering.state().map(|state| state.as_str())),
        id: text(peering.transit_gateway_attachment_id)?,
        requester: side(peering.requester_tgw_info).unwrap_or_default(),
        accepter: side(peering.accepter_tgw_info).unwrap_or_default(),
        tags: tags(peering.tags),
    })
}

fn route_table(table: aws::TransitGatewayRouteTable) -> Option<RouteTable> {
    Some(RouteTable {
        state: word(table.state().map(|state| state.as_str())),
        id: text(table.transit_gateway_route_table_id)?,
        gateway: text(table.transit_gateway_id),
        tags: tags(table.tags),
    })
}

fn route(route: aws::TransitGatewayRoute) -> Route {
    let by = route.transit_gateway_attachments().iter().map(|target| RouteTarget {
        attachment: target.transit_gateway_attachment_id().map(Text::from),
        resource_kind: word(target.resource_type().map(|kind| kind.as_str())),
        resource: target.resource_id().map(Text::from),
    });
    Route {
        by: by.collect(),
        to: net(route.destination_cidr_block()),
        origin: word(route.r#type().map(|origin| origin.as_str())),
        state: word(route.state().map(|state| state.as_str())),
        prefix_list: text(route.prefix_list_id),
    }
}
