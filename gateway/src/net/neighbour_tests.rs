use std::time::{Duration, Instant};

use super::*;
use crate::net::testing::{FarHost, as_root_in_namespace, ip, link_named, run};

const ROUTER: [u8; 4] = [10, 0, 0, 1];

fn pair() -> IfIndex {
    ip("link add left type veth peer name right");
    ip("link set left up");
    ip("link set right up");
    ip("address add 10.0.0.2/24 dev left");
    link_named("left").ifindex
}

fn neighbour(ifindex: IfIndex) -> Option<Neighbour> {
    let mut dialogue = Dialogue::open(Family::Route).unwrap();
    read_neighbour(&mut dialogue, ifindex, ROUTER.into()).unwrap()
}

#[test]
fn a_managed_neighbour_is_kept_by_the_kernel_until_it_is_released() {
    as_root_in_namespace("managed neighbour", || {
        let left = pair();
        assert_eq!(neighbour(left), None);
        for _ in 0..2 {
            assert_eq!(manage_neighbour(left, ROUTER.into()).unwrap(), KeptBy::Kernel);
            assert!(neighbour(left).unwrap().managed);
            let shown = run("ip", "neighbour show 10.0.0.1 dev left");
            assert!(shown.contains("managed"), "{shown}");
            assert!(shown.contains("extern_learn"), "{shown}");
        }
        for _ in 0..2 {
            release_neighbour(left, ROUTER.into()).unwrap();
            assert!(neighbour(left).is_none_or(|neighbour| !neighbour.managed));
        }
    });
}

#[test]
fn managed_neighbours_are_released_by_their_links() {
    as_root_in_namespace("released neighbours", || {
        let left = pair();
        let right = link_named("right").ifindex;
        let managed = || {
            let shown = run("ip", "neighbour show");
            shown.lines().filter(|line| line.contains("managed")).count()
        };
        for (ifindex, last) in [(left, 1), (left, 7), (right, 9)] {
            manage_neighbour(ifindex, [10, 0, 0, last].into()).unwrap();
        }
        for (links, left_over) in [(vec![], 3), (vec![left], 1), (vec![left, right], 0)] {
            release_neighbours(&links.into_iter().collect()).unwrap();
            assert_eq!(managed(), left_over);
        }
    });
}

#[test]
fn a_neighbour_that_nobody_talks_to_is_resolved_and_its_release_interrupts_nothing() {
    as_root_in_namespace("released neighbour", || {
        let _far = FarHost::new();
        let near = link_named("near").ifindex;
        let far = IpAddr::from([192, 0, 2, 9]);
        let mut dialogue = Dialogue::open(Family::Route).unwrap();
        let mut read = || read_neighbour(&mut dialogue, near, far).unwrap();
        manage_neighbour(near, far).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        let before = loop {
            match read() {
                Some(resolved @ Neighbour { mac: Some(_), .. }) => break resolved,
                other => assert!(Instant::now() < deadline, "{other:?}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        assert!(before.managed);
        release_neighbour(near, far).unwrap();
        assert_eq!(read(), Some(Neighbour { managed: false, ..before }));
    });
}

#[test]
fn a_neighbour_that_was_set_by_hand_stays_as_it_is() {
    as_root_in_namespace("permanent neighbour", || {
        let left = pair();
        ip("neighbour add 10.0.0.1 dev left lladdr 02:00:00:00:00:01 nud permanent");
        let before = neighbour(left);
        assert_eq!(manage_neighbour(left, ROUTER.into()).unwrap(), KeptBy::Operator);
        release_neighbour(left, ROUTER.into()).unwrap();
        assert_eq!(neighbour(left), before);
        assert_eq!(before.unwrap().state, NeighbourState::Permanent);
    });
}

#[test]
fn a_neighbour_on_no_link_is_refused() {
    as_root_in_namespace("neighbour on no link", || {
        assert!(manage_neighbour(4711, ROUTER.into()).is_err());
    });
}
