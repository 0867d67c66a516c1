use proptest::prelude::*;

use super::*;
use crate::net::testing::link;

const ROUTER_MAC: Mac = [2, 0, 0, 0, 0, 1];
const OTHER_MAC: Mac = [2, 0, 0, 0, 0, 2];

fn address(ifindex: IfIndex, address: &str) -> Address {
    let net: IpNet = address.parse().unwrap();
    Address {
        ifindex,
        address: net.addr(),
        prefix_len: net.prefix_len(),
        scope: 0,
        secondary: false,
    }
}

fn route(destination: &str, gateway: &str, oif: IfIndex) -> Route {
    Route {
        destination: destination.parse().unwrap(),
        tos: 0,
        metric: 0,
        prefsrc: None,
        mtu: None,
        kind: RouteKind::Unicast,
        hops: vec![Hop {
            gateway: Some(gateway.parse().unwrap()),
            oif: Some(oif),
            weight: 1,
            dead: false,
        }],
    }
}

fn neighbour(mac: Option<Mac>, state: NeighbourState) -> Neighbour {
    Neighbour { mac, state, managed: false }
}

fn router() -> NeighbourKey {
    (2, "10.0.0.1".parse().unwrap())
}

fn added(route: Route) -> Notice {
    Notice::Route { route, replaces: false }
}

fn replaced(route: Route) -> Notice {
    Notice::Route { route, replaces: true }
}

/// A link with an address, a neighbour and a route through it.
fn picture() -> NetworkState {
    let mut state = NetworkState::default();
    for notice in [
        Notice::Link(link(2)),
        Notice::Address(address(2, "10.0.0.2/24")),
        added(route("0.0.0.0/0", "10.0.0.1", 2)),
        Notice::Neighbour(router(), neighbour(Some(ROUTER_MAC), NeighbourState::Reachable)),
    ] {
        let applied = state.apply(notice.clone());
        assert_eq!(applied.events.len(), 1, "{notice:?}");
        assert!(!applied.routes_in_doubt, "{notice:?}");
    }
    state
}

#[test]
fn the_same_message_twice_is_no_event() {
    for notice in [
        Notice::Link(link(2)),
        Notice::Address(address(2, "10.0.0.2/24")),
        added(route("0.0.0.0/0", "10.0.0.1", 2)),
        Notice::Neighbour(router(), neighbour(Some(ROUTER_MAC), NeighbourState::Reachable)),
    ] {
        let mut state = picture();
        assert_eq!(state.apply(notice.clone()), Applied::default(), "{notice:?}");
        assert_eq!(state, picture());
    }
}

#[test]
fn a_farewell_to_what_was_never_there_is_no_event() {
    for notice in [
        Notice::LinkGone(9),
        Notice::AddressGone(address(2, "10.0.0.2/25")),
        Notice::RouteGone(route("10.9.0.0/16", "10.0.0.1", 2)),
        Notice::NeighbourGone((2, "10.0.0.9".parse().unwrap())),
    ] {
        let mut state = picture();
        assert_eq!(state.apply(notice.clone()), Applied::default(), "{notice:?}");
        assert_eq!(state, picture());
    }
}

#[test]
fn a_lost_carrier_is_an_event_and_leaves_the_routes_in_doubt() {
    let mut state = picture();
    let down = Link { carrier: false, ..link(2) };
    let applied = state.apply(Notice::Link(down.clone()));
    assert!(!down.up() && link(2).up());
    assert_eq!(
        applied.events,
        [NetworkEvent::LinkChanged { ifindex: 2, old: Some(link(2)), new: Some(down) }]
    );
    assert!(applied.routes_in_doubt);
}

#[test]
fn a_new_name_leaves_the_routes_alone() {
    let mut state = picture();
    let renamed = Link { name: "wan".into(), ..link(2) };
    let applied = state.apply(Notice::Link(renamed));
    assert_eq!(applied.events.len(), 1);
    assert!(!applied.routes_in_doubt);
}

#[test]
fn a_link_takes_its_addresses_and_neighbours_with_it() {
    let mut state = picture();
    let applied = state.apply(Notice::LinkGone(2));
    assert_eq!(
        applied.events,
        [
            NetworkEvent::AddressRemoved(address(2, "10.0.0.2/24")),
            NetworkEvent::NeighbourChanged {
                ifindex: 2,
                ip: router().1,
                old: Some(ROUTER_MAC),
                new: None
            },
            NetworkEvent::LinkChanged { ifindex: 2, old: Some(link(2)), new: None },
        ]
    );
    assert!(applied.routes_in_doubt, "its routes went without a word");
}

#[test]
fn a_removed_address_leaves_the_routes_in_doubt() {
    let mut state = picture();
    let applied = state.apply(Notice::AddressGone(address(2, "10.0.0.2/24")));
    assert_eq!(applied.events, [NetworkEvent::AddressRemoved(address(2, "10.0.0.2/24"))]);
    assert!(applied.routes_in_doubt, "routes that prefer it as source go with it");
}

#[test]
fn only_another_hardware_address_makes_a_neighbour_event() {
    use NeighbourState::{Failed, Probe, Reachable, Stale};
    for (mac, state, expected) in [
        (Some(ROUTER_MAC), Stale, None),
        (Some(ROUTER_MAC), Probe, None),
        (Some(OTHER_MAC), Reachable, Some((Some(ROUTER_MAC), Some(OTHER_MAC)))),
        (None, Failed, Some((Some(ROUTER_MAC), None))),
    ] {
        let mut picture = picture();
        let applied = picture.apply(Notice::Neighbour(router(), neighbour(mac, state)));
        let told: Vec<_> = applied
            .events
            .iter()
            .map(|event| match event {
                NetworkEvent::NeighbourChanged { old, new, .. } => (*old, *new),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(told, Vec::from_iter(expected), "{state:?}");
        assert_eq!(picture.neighbours[&router()].state, state, "the picture is kept all the same");
    }
}

#[test]
fn an_unresolved_neighbour_vanishes_without_an_event() {
    let mut state = picture();
    state.apply(Notice::Neighbour(router(), neighbour(None, NeighbourState::Failed)));
    assert_eq!(state.apply(Notice::NeighbourGone(router())), Applied::default());
    assert!(state.neighbours.is_empty());
}

#[test]
fn a_replaced_route_is_one_change() {
    let mut state = picture();
    let new = route("0.0.0.0/0", "10.0.0.3", 2);
    let applied = state.apply(replaced(new.clone()));
    assert_eq!(
        applied.events,
        [NetworkEvent::RouteChanged {
            old: Some(route("0.0.0.0/0", "10.0.0.1", 2)),
            new: Some(new)
        }]
    );
}

#[test]
fn routes_of_another_metric_live_side_by_side() {
    let mut state = picture();
    let spare = Route { metric: 100, ..route("0.0.0.0/0", "10.0.0.3", 2) };
    let applied = state.apply(added(spare.clone()));
    assert_eq!(applied.events, [NetworkEvent::RouteChanged { old: None, new: Some(spare) }]);
    assert_eq!(state.routes.len(), 2);
}

#[test]
fn a_second_route_under_one_key_is_read_anew_and_not_guessed() {
    let mut state = picture();
    let second = route("0.0.0.0/0", "10.0.0.3", 2);
    let applied = state.apply(added(second.clone()));
    assert_eq!(applied, Applied { events: vec![], routes_in_doubt: true });
    // The reading lists the one in use first.
    let mut read = NetworkState::default();
    read.gather(added(route("0.0.0.0/0", "10.0.0.1", 2)));
    read.gather(added(second.clone()));
    assert_eq!(state.become_routes(read), []);
    // When the first goes the second takes over, of which the farewell says nothing.
    let first = route("0.0.0.0/0", "10.0.0.1", 2);
    let applied = state.apply(Notice::RouteGone(first.clone()));
    assert_eq!(applied, Applied { events: vec![], routes_in_doubt: true });
    let mut read = NetworkState::default();
    read.gather(added(second.clone()));
    assert_eq!(
        state.become_routes(read),
        [NetworkEvent::RouteChanged { old: Some(first), new: Some(second) }]
    );
}

#[test]
fn a_farewell_to_one_hop_of_several_is_read_anew() {
    let mut state = NetworkState::default();
    let mut multipath = route("10.9.0.0/16", "10.0.0.1", 2);
    multipath.hops.extend(route("10.9.0.0/16", "10.0.0.3", 2).hops);
    state.apply(added(multipath.clone()));
    let applied = state.apply(Notice::RouteGone(route("10.9.0.0/16", "10.0.0.3", 2)));
    assert_eq!(applied, Applied { events: vec![], routes_in_doubt: true });
    let applied = state.apply(Notice::RouteGone(multipath.clone()));
    assert_eq!(
        applied.events,
        [NetworkEvent::RouteChanged { old: Some(multipath), new: None }],
        "the whole route going is certain"
    );
}

#[test]
fn a_dead_route_that_goes_is_recognised() {
    let mut state = NetworkState::default();
    let mut dead = route("10.9.0.0/16", "10.0.0.1", 2);
    dead.hops[0].dead = true;
    state.apply(added(dead));
    let applied = state.apply(Notice::RouteGone(route("10.9.0.0/16", "10.0.0.1", 2)));
    assert_eq!(applied.events.len(), 1);
    assert!(!applied.routes_in_doubt);
}

fn any_notice() -> impl Strategy<Value = Notice> {
    let ifindex = 1u32..4;
    let mac = prop_oneof![Just(None), Just(Some(ROUTER_MAC)), Just(Some(OTHER_MAC))];
    let ip = (0u8..4).prop_map(|last| IpAddr::from([10, 0, 0, last]));
    let any_address = (ifindex.clone(), 0u8..3, any::<bool>()).prop_map(|(index, last, rank)| {
        Address { secondary: rank, ..address(index, &format!("10.0.0.{last}/24")) }
    });
    let any_route = (0u8..3, 0u8..3, ifindex.clone(), any::<bool>()).prop_map(
        |(net, gateway, oif, replaces)| Notice::Route {
            route: route(&format!("10.{net}.0.0/16"), &format!("10.0.0.{gateway}"), oif),
            replaces,
        },
    );
    prop_oneof![
        (ifindex.clone(), any::<bool>())
            .prop_map(|(index, carrier)| Notice::Link(Link { carrier, ..link(index) })),
        ifindex.clone().prop_map(Notice::LinkGone),
        any_address.clone().prop_map(Notice::Address),
        any_address.prop_map(Notice::AddressGone),
        any_route,
        (0u8..3, 0u8..3, ifindex.clone()).prop_map(|(net, gateway, oif)| Notice::RouteGone(route(
            &format!("10.{net}.0.0/16"),
            &format!("10.0.0.{gateway}"),
            oif
        ))),
        (ifindex.clone(), ip.clone(), mac).prop_map(|(index, ip, mac)| Notice::Neighbour(
            (index, ip),
            neighbour(mac, NeighbourState::Stale)
        )),
        (ifindex, ip).prop_map(|(index, ip)| Notice::NeighbourGone((index, ip))),
    ]
}

/// What a listener knows who hears only the events.
#[derive(Debug, Default, PartialEq)]
struct Listener {
    links: BTreeMap<IfIndex, Link>,
    addresses: BTreeMap<AddressKey, Address>,
    routes: BTreeMap<RouteKey, Route>,
    macs: BTreeMap<NeighbourKey, Mac>,
}

impl Listener {
    fn hears(&mut self, events: Vec<NetworkEvent>) {
        for event in events {
            match event {
                NetworkEvent::LinkChanged { ifindex, old, new } => {
                    assert_eq!(self.links.remove(&ifindex), old);
                    self.links.extend(new.map(|link| (ifindex, link)));
                }
                NetworkEvent::AddressAdded(address) => {
                    self.addresses.insert(address.key(), address);
                }
                NetworkEvent::AddressRemoved(address) => {
                    assert_eq!(self.addresses.remove(&address.key()), Some(address));
                }
                NetworkEvent::RouteChanged { old, new } => {
                    let key = old.as_ref().or(new.as_ref()).unwrap().key();
                    assert_eq!(self.routes.remove(&key), old);
                    self.routes.extend(new.map(|route| (key, route)));
                }
                NetworkEvent::NeighbourChanged { ifindex, ip, old, new } => {
                    assert_eq!(self.macs.remove(&(ifindex, ip)), old);
                    self.macs.extend(new.map(|mac| ((ifindex, ip), mac)));
                }
                NetworkEvent::NexthopsChanged | NetworkEvent::Resynced => {}
            }
        }
    }

    fn of(state: &NetworkState) -> Self {
        let macs =
            state.neighbours.iter().filter_map(|(key, neighbour)| Some((*key, neighbour.mac?)));
        Self {
            links: state.links.clone(),
            addresses: state.addresses.clone(),
            routes: state.routes.clone(),
            macs: macs.collect(),
        }
    }
}

fn state_after(notices: Vec<Notice>) -> NetworkState {
    let mut state = NetworkState::default();
    for notice in notices {
        state.apply(notice);
    }
    state
}

proptest! {
    #[test]
    fn whoever_hears_all_events_knows_the_picture(
        notices in proptest::collection::vec(any_notice(), 0..60),
    ) {
        let mut state = NetworkState::default();
        let mut listener = Listener::default();
        for notice in notices {
            listener.hears(state.apply(notice).events);
            prop_assert_eq!(&listener, &Listener::of(&state));
        }
    }

    #[test]
    fn a_resync_tells_a_listener_everything_that_was_missed(
        before in proptest::collection::vec(any_notice(), 0..40),
        after in proptest::collection::vec(any_notice(), 0..40),
    ) {
        let mut state = state_after(before);
        let mut listener = Listener::of(&state);
        let target = state_after(after);
        listener.hears(state.become_state(target.clone()));
        prop_assert_eq!(&listener, &Listener::of(&target));
        prop_assert_eq!(&state, &target);
        prop_assert_eq!(state.become_state(target), vec![]);
    }
}

#[test]
fn changes_that_concern_the_same_are_followed_together_and_none_overtakes_another() {
    let route = |n| NetworkEvent::RouteChanged {
        old: None,
        new: Some(route(&format!("10.{n}.0.0/16"), "10.0.0.1", 1)),
    };
    let moves = NetworkEvent::NeighbourChanged {
        ifindex: 1,
        ip: "10.0.0.1".parse().unwrap(),
        old: Some(ROUTER_MAC),
        new: Some(OTHER_MAC),
    };
    let down = NetworkEvent::LinkChanged { ifindex: 1, old: Some(link(1)), new: None };
    let gone = NetworkEvent::AddressRemoved(address(1, "10.0.0.2/24"));
    let events = [route(1), route(2), moves, gone, down, NetworkEvent::Resynced, route(3)];
    let turns: Vec<_> = NetworkEvent::in_turns(&events).collect();
    let expected = [
        (Concern::Routes, &events[..2]),
        (Concern::Neighbours, &events[2..3]),
        (Concern::Places, &events[3..6]),
        (Concern::Routes, &events[6..]),
    ];
    assert_eq!(turns, expected);
    assert_eq!(NetworkEvent::in_turns(&[]).count(), 0);
}
