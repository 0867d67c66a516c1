//! The messages are built by `netlink-packet-route`, which has layouts of its own.

use netlink_packet_core::{NLM_F_REPLACE, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState as State,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteNextHop,
    RouteNextHopFlags, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use proptest::prelude::*;

use super::*;

fn bytes(message: RouteNetlinkMessage, flags: u16) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut packet = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    bytes
}

fn read(message: RouteNetlinkMessage) -> Option<Notice> {
    decode(&wire::messages(&bytes(message, 0)).next().unwrap())
}

fn a_link() -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = 7;
    link.header.flags = LinkFlags::Up | LinkFlags::LowerUp;
    link.attributes = vec![
        LinkAttribute::IfName("eth1.100".into()),
        LinkAttribute::Mtu(9001),
        LinkAttribute::Address(vec![2, 0, 0, 0, 0, 7]),
        LinkAttribute::Link(3),
        LinkAttribute::Controller(4),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vlan),
            LinkInfo::Data(InfoData::Vlan(vec![InfoVlan::Id(100)])),
        ]),
    ];
    link
}

fn as_link(notice: Option<Notice>) -> Link {
    match notice {
        Some(Notice::Link(link)) => link,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_vlan_is_read_whole() {
    let link = as_link(read(RouteNetlinkMessage::NewLink(a_link())));
    let expected = Link {
        ifindex: 7,
        name: "eth1.100".into(),
        mac: Some([2, 0, 0, 0, 0, 7]),
        mtu: 9001,
        admin_up: true,
        carrier: true,
        kind: Some("vlan".into()),
        master: Some(4),
        link: Some(3),
        vlan: Some(100),
    };
    assert_eq!(link, expected);
    assert_eq!(read(RouteNetlinkMessage::DelLink(a_link())), Some(Notice::LinkGone(7)));
}

#[test]
fn the_number_of_a_link_in_another_namespace_is_none_here() {
    for order in [0, 4] {
        let mut message = a_link();
        message.attributes.insert(order, LinkAttribute::LinkNetNsId(0));
        assert_eq!(as_link(read(RouteNetlinkMessage::NewLink(message))).link, None, "{order}");
    }
}

#[test]
fn a_bridge_speaking_of_its_port_says_nothing_of_the_link() {
    let mut message = a_link();
    message.header.interface_family = AddressFamily::Bridge;
    assert_eq!(read(RouteNetlinkMessage::DelLink(message.clone())), None);
    assert_eq!(read(RouteNetlinkMessage::NewLink(message)), None);
}

#[test]
fn the_own_end_of_a_point_to_point_link_is_the_address() {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.index = 7;
    message.header.prefix_len = 32;
    message.header.scope = AddressScope::Link;
    let [ours, peers] = [[10, 0, 0, 1], [10, 0, 0, 2]].map(IpAddr::from);
    let expected = |address| {
        Some(Notice::Address(Address {
            ifindex: 7,
            address,
            prefix_len: 32,
            scope: 253,
            secondary: false,
        }))
    };
    message.attributes = vec![AddressAttribute::Address(peers)];
    assert_eq!(read(RouteNetlinkMessage::NewAddress(message.clone())), expected(peers));
    message.attributes.push(AddressAttribute::Local(ours));
    assert_eq!(read(RouteNetlinkMessage::NewAddress(message)), expected(ours));
}

fn a_route() -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = AddressFamily::Inet;
    route.header.destination_prefix_length = 16;
    route.header.table = RouteHeader::RT_TABLE_MAIN;
    route.header.kind = RouteType::Unicast;
    route.attributes = vec![
        RouteAttribute::Destination(RouteAddress::Inet([10, 9, 0, 0].into())),
        RouteAttribute::Gateway(RouteAddress::Inet([10, 0, 0, 1].into())),
        RouteAttribute::PrefSource(RouteAddress::Inet([10, 0, 0, 2].into())),
        RouteAttribute::Priority(100),
        RouteAttribute::Metrics(vec![RouteMetric::Lock(1 << 2), RouteMetric::Mtu(1300)]),
        RouteAttribute::Oif(7),
    ];
    route
}

fn the_route() -> Route {
    Route {
        destination: "10.9.0.0/16".parse().unwrap(),
        tos: 0,
        metric: 100,
        prefsrc: Some([10, 0, 0, 2].into()),
        mtu: Some(RouteMtu { bytes: 1300, locked: true }),
        kind: RouteKind::Unicast,
        hops: vec![Hop {
            gateway: Some([10, 0, 0, 1].into()),
            oif: Some(7),
            weight: 1,
            dead: false,
        }],
    }
}

fn as_route(notice: Option<Notice>) -> Route {
    match notice {
        Some(Notice::Route { route, .. }) => route,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_route_says_whether_it_takes_the_place_of_another() {
    let message = RouteNetlinkMessage::NewRoute(a_route());
    for (flags, replaces) in [(0, false), (NLM_F_REPLACE, true)] {
        let bytes = bytes(message.clone(), flags);
        let notice = decode(&wire::messages(&bytes).next().unwrap());
        assert_eq!(notice, Some(Notice::Route { route: the_route(), replaces }));
    }
    let gone = read(RouteNetlinkMessage::DelRoute(a_route()));
    assert_eq!(gone, Some(Notice::RouteGone(the_route())));
}

#[test]
fn only_routes_of_the_main_table_count() {
    let mut message = a_route();
    message.attributes.push(RouteAttribute::Table(1000));
    assert_eq!(read(RouteNetlinkMessage::NewRoute(message.clone())), None);
    message.attributes.pop();
    message.attributes.push(RouteAttribute::Table(254));
    assert_eq!(as_route(read(RouteNetlinkMessage::NewRoute(message))), the_route());
    let mut local = a_route();
    local.header.table = 255;
    assert_eq!(read(RouteNetlinkMessage::NewRoute(local)), None);
}

#[test]
fn every_hop_of_a_multipath_route_is_read() {
    let mut message = a_route();
    message.attributes.retain(|attribute| {
        !matches!(attribute, RouteAttribute::Gateway(_) | RouteAttribute::Oif(_))
    });
    let hop = |last, ifindex, hops, flags| {
        let mut hop = RouteNextHop::default();
        hop.interface_index = ifindex;
        hop.hops = hops;
        hop.flags = flags;
        hop.attributes = vec![RouteAttribute::Gateway(RouteAddress::Inet([10, 0, 0, last].into()))];
        hop
    };
    message.attributes.push(RouteAttribute::MultiPath(vec![
        hop(1, 7, 0, RouteNextHopFlags::empty()),
        hop(3, 8, 4, RouteNextHopFlags::Dead),
    ]));
    let expected = vec![
        the_route().hops[0].clone(),
        Hop { gateway: Some([10, 0, 0, 3].into()), oif: Some(8), weight: 5, dead: true },
    ];
    assert_eq!(as_route(read(RouteNetlinkMessage::NewRoute(message))).hops, expected);
}

#[test]
fn a_router_of_the_other_address_family_is_read() {
    let mut message = a_route();
    let via: std::net::Ipv6Addr = "fe80::1".parse().unwrap();
    message.attributes[1] = RouteAttribute::Via(RouteVia::Inet6(via));
    let route = as_route(read(RouteNetlinkMessage::NewRoute(message)));
    assert_eq!(route.hops[0].gateway, Some(via.into()));
}

#[test]
fn a_default_route_and_a_blackhole_are_routes() {
    let mut message = a_route();
    message.header.destination_prefix_length = 0;
    message.attributes.remove(0);
    let route = as_route(read(RouteNetlinkMessage::NewRoute(message)));
    assert_eq!(route.destination, "0.0.0.0/0".parse::<IpNet>().unwrap());
    let mut message = a_route();
    message.header.kind = RouteType::BlackHole;
    message.attributes.truncate(1);
    let route = as_route(read(RouteNetlinkMessage::NewRoute(message)));
    assert_eq!((route.kind, route.hops), (RouteKind::Blackhole, vec![]));
}

fn a_neighbour(state: State) -> NeighbourMessage {
    let mut neighbour = NeighbourMessage::default();
    neighbour.header.family = AddressFamily::Inet;
    neighbour.header.ifindex = 7;
    neighbour.header.state = state;
    neighbour.attributes = vec![
        NeighbourAttribute::Destination(NeighbourAddress::Inet([10, 0, 0, 1].into())),
        NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 1]),
    ];
    neighbour
}

#[test]
fn a_neighbour_has_a_hardware_address_while_the_kernel_would_send_to_it() {
    for (state, known) in [
        (State::None, false),
        (State::Incomplete, false),
        (State::Reachable, true),
        (State::Stale, true),
        (State::Delay, true),
        (State::Probe, true),
        (State::Failed, false),
        (State::Noarp, true),
        (State::Permanent, true),
    ] {
        match read(RouteNetlinkMessage::NewNeighbour(a_neighbour(state))) {
            Some(Notice::Neighbour(key, neighbour)) => {
                assert_eq!(key, (7, [10, 0, 0, 1].into()));
                assert_eq!(neighbour.mac, known.then_some([2, 0, 0, 0, 0, 1]), "{state:?}");
                assert!(!neighbour.managed);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_proxied_address_and_a_forwarding_entry_of_a_bridge_are_no_neighbours() {
    let mut proxied = a_neighbour(State::Permanent);
    proxied.header.flags = NeighbourFlags::Proxy;
    assert_eq!(read(RouteNetlinkMessage::NewNeighbour(proxied)), None);
    let mut bridged = a_neighbour(State::Permanent);
    bridged.header.family = AddressFamily::Bridge;
    assert_eq!(read(RouteNetlinkMessage::DelNeighbour(bridged)), None);
}

proptest! {
    #[test]
    fn any_payload_can_be_read(
        kind in 16u16..32,
        payload in proptest::collection::vec(any::<u8>(), 0..160),
    ) {
        // What comes out is right by the other tests; here only that something does, or nothing.
        let message = Message { kind, flags: 0, sequence: 0, payload: &payload };
        if payload.len() < 8 {
            prop_assert_eq!(decode(&message), None);
        } else {
            let _ = decode(&message);
        }
    }
}
