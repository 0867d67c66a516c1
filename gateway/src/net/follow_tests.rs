use std::net::IpAddr;

use super::*;
use crate::net::manage_neighbour;
use crate::net::picture::Mac;
use crate::net::testing::{FarHost, as_root_in_namespace, ip, link_named, scratch_directory};

const PATIENCE: Duration = Duration::from_secs(10);

/// Runs an async test on the thread of the namespace; blocking threads inherit it.
fn block_on(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(test);
}

/// Waits for the first event that `wanted` turns into something.
async fn event<T>(
    listener: &mut mpsc::Receiver<NetworkEvent>,
    mut wanted: impl FnMut(&NetworkEvent) -> Option<T>,
) -> T {
    let find = async {
        loop {
            let event = listener.recv().await.expect("the follower lives");
            if let Some(found) = wanted(&event) {
                return found;
            }
        }
    };
    tokio::time::timeout(PATIENCE, find).await.expect("an event")
}

/// A veth pair, both ends up, the left one with an address.
fn pair() -> u32 {
    ip("link add left type veth peer name right");
    ip("link set left up");
    ip("link set right up");
    ip("address add 10.0.0.2/24 dev left");
    link_named("left").ifindex
}

fn parsed(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn the_first_reading_shows_what_is_there() {
    as_root_in_namespace("first reading", || {
        let left = pair();
        ip("route add default via 10.0.0.1");
        ip("route add 10.7.0.0/16 table 7 via 10.0.0.1");
        ip("neighbour add 10.0.0.1 dev left lladdr 02:00:00:00:00:01");
        block_on(async {
            let (follower, _listener) = Follower::start(16).await.unwrap();
            let state = follower.state();
            let link = &state.links[&left];
            assert_eq!((link.name.as_str(), link.kind.as_deref()), ("left", Some("veth")));
            assert_eq!((link.mtu, link.up()), (1500, true));
            let right = state.links.values().find(|link| link.name == "right").unwrap();
            assert_eq!((link.link, right.link), (Some(right.ifindex), Some(left)));
            assert_ne!(link.mac, right.mac);
            assert!(state.addresses.contains_key(&(left, parsed("10.0.0.2"), 24)));
            let default = &state.routes[&("0.0.0.0/0".parse().unwrap(), 0, 0)];
            assert_eq!(default.hops[0].gateway, Some(parsed("10.0.0.1")));
            assert_eq!(default.hops[0].oif, Some(left));
            let own = &state.routes[&("10.0.0.0/24".parse().unwrap(), 0, 0)];
            assert_eq!((own.prefsrc, own.hops[0].gateway), (Some(parsed("10.0.0.2")), None));
            let other_table = "10.7.0.0/16".parse().unwrap();
            assert!(!state.routes.keys().any(|(destination, ..)| *destination == other_table));
            let router = &state.neighbours[&(left, parsed("10.0.0.1"))];
            assert_eq!(router.mac, Some([2, 0, 0, 0, 0, 1]));
        });
    });
}

#[test]
fn a_link_that_goes_down_takes_routes_of_which_the_kernel_says_nothing() {
    as_root_in_namespace("link down", || {
        let left = pair();
        ip("route add default via 10.0.0.1");
        block_on(async {
            let (follower, mut listener) = Follower::start(16).await.unwrap();
            assert!(follower.state().links[&left].up());
            ip("link set left down");
            let up = event(&mut listener, |event| match event {
                NetworkEvent::LinkChanged { ifindex, new: Some(new), .. } if *ifindex == left => {
                    Some(new.up())
                }
                _ => None,
            });
            assert!(!up.await);
            let gone = event(&mut listener, |event| match event {
                NetworkEvent::RouteChanged { old: Some(old), new: None } => {
                    (old.destination.prefix_len() == 0).then_some(())
                }
                _ => None,
            });
            gone.await;
            let state = follower.state();
            assert!(!state.routes.values().any(|route| route.hops[0].oif == Some(left)));
        });
    });
}

#[test]
fn a_lost_carrier_shows_the_routes_dead() {
    as_root_in_namespace("carrier lost", || {
        let left = pair();
        ip("route add default via 10.0.0.1");
        block_on(async {
            let (follower, mut listener) = Follower::start(16).await.unwrap();
            ip("link set right down");
            let dead = event(&mut listener, |event| match event {
                NetworkEvent::RouteChanged { new: Some(new), .. }
                    if new.destination.prefix_len() == 0 =>
                {
                    Some(new.hops[0].dead)
                }
                _ => None,
            });
            assert!(dead.await);
            let link = follower.state().links[&left].clone();
            assert!(link.admin_up && !link.carrier);
        });
    });
}

#[test]
fn a_nexthop_object_that_changes_is_told_whether_routes_show_it_or_not() {
    for compat in ["1", "0"] {
        as_root_in_namespace("nexthop objects", || {
            let _left = pair();
            std::fs::write("/proc/sys/net/ipv4/nexthop_compat_mode", compat).unwrap();
            ip("nexthop add id 7 via 10.0.0.1 dev left");
            ip("route add default nhid 7");
            block_on(async {
                let (follower, mut listener) = Follower::start(16).await.unwrap();
                let default = ("0.0.0.0/0".parse().unwrap(), 0, 0);
                assert!(follower.state().routes.contains_key(&default));
                ip("nexthop replace id 7 via 10.0.0.3 dev left");
                event(&mut listener, |event| {
                    (*event == NetworkEvent::NexthopsChanged).then_some(())
                })
                .await;
                // The kernel says nothing of the route that goes with it.
                ip("nexthop del id 7");
                let gone = event(&mut listener, |event| match event {
                    NetworkEvent::RouteChanged { old: Some(old), new: None } => {
                        Some(old.destination.prefix_len())
                    }
                    _ => None,
                });
                assert_eq!(gone.await, 0);
            });
        });
    }
}

#[test]
fn an_address_is_told_when_it_comes_and_when_it_goes() {
    as_root_in_namespace("addresses", || {
        let left = pair();
        block_on(async {
            let (_follower, mut listener) = Follower::start(16).await.unwrap();
            for (address, prefix_len) in [("10.1.0.2", 24), ("2001:db8::2", 64)] {
                ip(&format!("address add {address}/{prefix_len} dev left nodad"));
                let added = event(&mut listener, |event| match event {
                    NetworkEvent::AddressAdded(added) if added.address == parsed(address) => {
                        Some((added.ifindex, added.prefix_len))
                    }
                    _ => None,
                });
                assert_eq!(added.await, (left, prefix_len));
                ip(&format!("address delete {address}/{prefix_len} dev left"));
                let removed = event(&mut listener, |event| match event {
                    NetworkEvent::AddressRemoved(gone) => Some(gone.address),
                    _ => None,
                });
                assert_eq!(removed.await, parsed(address));
            }
        });
    });
}

#[test]
fn a_removed_source_address_takes_its_routes_with_it() {
    as_root_in_namespace("preferred source", || {
        pair();
        ip("address add 10.0.1.2/32 dev left");
        ip("route add 10.9.0.0/16 via 10.0.0.1 src 10.0.1.2");
        block_on(async {
            let (_follower, mut listener) = Follower::start(16).await.unwrap();
            ip("address delete 10.0.1.2/32 dev left");
            let gone = event(&mut listener, |event| match event {
                NetworkEvent::RouteChanged { old: Some(old), new: None } => Some(old.prefsrc),
                _ => None,
            });
            assert_eq!(gone.await, Some(parsed("10.0.1.2")));
        });
    });
}

#[test]
fn a_neighbour_is_told_when_its_hardware_address_changes() {
    as_root_in_namespace("neighbour", || {
        let host = FarHost::new();
        let near = link_named("near").ifindex;
        let far = parsed("192.0.2.9");
        let first = host.run(|| {
            std::fs::write("/proc/sys/net/ipv4/conf/far/arp_notify", "1").unwrap();
            link_named("far").mac
        });
        let second: Option<Mac> = Some([2, 0, 0, 0, 0, 2]);
        block_on(async {
            let (follower, mut listener) = Follower::start(16).await.unwrap();
            let mut told = async || {
                let told = event(&mut listener, |event| match event {
                    NetworkEvent::NeighbourChanged { ifindex, ip, old, new } if *ip == far => {
                        Some((*ifindex, *old, *new))
                    }
                    _ => None,
                });
                told.await
            };
            manage_neighbour(near, far).unwrap();
            assert_eq!(told().await, (near, None, first), "resolved without any traffic");
            assert!(follower.state().neighbours[&(near, far)].managed);
            // The far host says so itself, as one that takes over an address does.
            host.run(|| ip("link set far address 02:00:00:00:00:02"));
            assert_eq!(told().await, (near, first, second));
            ip("neighbour delete 192.0.2.9 dev near");
            assert_eq!(told().await, (near, second, None));
        });
    });
}

#[test]
fn a_route_is_told_when_it_changes() {
    as_root_in_namespace("route", || {
        pair();
        ip("route add 10.9.0.0/16 via 10.0.0.1");
        block_on(async {
            let (_follower, mut listener) = Follower::start(16).await.unwrap();
            let mut told = async |command: &str| {
                ip(command);
                let told = event(&mut listener, |event| match event {
                    NetworkEvent::RouteChanged { old, new } => {
                        let via = |route: &Option<_>| {
                            route
                                .as_ref()
                                .and_then(|route: &crate::net::Route| route.hops[0].gateway)
                        };
                        Some((via(old), via(new)))
                    }
                    _ => None,
                });
                told.await
            };
            let (one, three, four) = (parsed("10.0.0.1"), parsed("10.0.0.3"), parsed("10.0.0.4"));
            for (command, expected) in [
                ("route replace 10.9.0.0/16 via 10.0.0.3", (Some(one), Some(three))),
                // In front of the one in use, and away again.
                ("route prepend 10.9.0.0/16 via 10.0.0.4", (Some(three), Some(four))),
                ("route delete 10.9.0.0/16 via 10.0.0.4", (Some(four), Some(three))),
                ("route delete 10.9.0.0/16", (Some(three), None)),
            ] {
                assert_eq!(told(command).await, expected, "{command}");
            }
        });
    });
}

#[test]
fn lost_messages_are_made_up_for() {
    as_root_in_namespace("lost messages", || {
        let left = pair();
        block_on(async {
            let (follower, mut listener) = Follower::start(4).await.unwrap();
            // The runtime has this thread only, so the follower cannot read meanwhile. More
            // messages than the largest buffer holds, and then the one that matters.
            let batch = scratch_directory();
            let file = batch.path().join("neighbours");
            let lines: String = (0..40_000)
                .map(|number| {
                    let (high, low) = (number % 250 + 1, number / 250 + 1);
                    let verb = "neighbour replace";
                    format!("{verb} 10.1.{low}.{high} dev left lladdr 02:00:00:00:00:01\n")
                })
                .collect();
            std::fs::write(&file, lines).unwrap();
            ip("address add 10.8.0.9/24 dev left");
            ip(&format!("-batch {}", file.display()));
            ip("address delete 10.8.0.9/24 dev left");
            ip("address add 10.8.0.2/24 dev left");
            let (mut told, mut resynced) = (false, false);
            while !resynced {
                event(&mut listener, |event| {
                    told |= matches!(event, NetworkEvent::AddressAdded(added)
                        if added.address == parsed("10.8.0.2"));
                    resynced |= *event == NetworkEvent::Resynced;
                    Some(())
                })
                .await;
            }
            assert!(told, "what was lost comes before the end of the resync");
            // All that was still queued has been heard once this one has.
            ip("address add 10.8.0.3/24 dev left");
            let last = event(&mut listener, |event| match event {
                NetworkEvent::AddressAdded(added) => {
                    (added.address == parsed("10.8.0.3")).then_some(())
                }
                _ => None,
            });
            last.await;
            let state = follower.state();
            let many: ipnet::IpNet = "10.1.0.0/16".parse().unwrap();
            let read = state.neighbours.keys().filter(|(_, address)| many.contains(address));
            assert_eq!(read.count(), 40_000);
            let there = |address| state.addresses.contains_key(&(left, parsed(address), 24));
            assert!(there("10.8.0.2"));
            assert!(!there("10.8.0.9"), "an old message does not outlive the reading");
        });
    });
}

#[test]
fn a_listener_that_leaves_ends_the_following() {
    as_root_in_namespace("listener leaves", || {
        block_on(async {
            let (mut follower, listener) = Follower::start(4).await.unwrap();
            drop(listener);
            tokio::time::timeout(PATIENCE, &mut follower.task).await.unwrap().unwrap();
        });
    });
}

#[test]
fn a_socket_that_failed_is_opened_anew() {
    as_root_in_namespace("socket opened anew", || {
        let left = pair();
        block_on(async {
            let (ears, dialogue) = open().unwrap();
            let (events, mut listener) = mpsc::channel(64);
            let state = Arc::default();
            let mut shell =
                Shell { ears, dialogue: Some(dialogue), state: Arc::clone(&state), events };
            // All that the old socket has is of no use, and what the new one hears is heard.
            ip("link set left mtu 1400");
            assert!(shell.resync(true).await.is_ok());
            assert_eq!(state.read().unwrap().links[&left].mtu, 1400);
            let resynced =
                event(&mut listener, |event| (*event == NetworkEvent::Resynced).then_some(()));
            resynced.await;
            let task = tokio::spawn(shell.run());
            ip("link set left mtu 1300");
            let mtu = event(&mut listener, |event| match event {
                NetworkEvent::LinkChanged { new: Some(new), .. } => Some(new.mtu),
                _ => None,
            });
            assert_eq!(mtu.await, 1300);
            task.abort();
        });
    });
}
