//! Ports, to the last one.
#![allow(clippy::wildcard_enum_match_arm, reason = "anything else fails the test")]

mod scene;

use scene::*;
use std::collections::HashSet;
use xdp::{
    address::{Address as _, Entry, V4},
    memory::Sizes,
    pipeline::Fate,
    session::{outside_port, pair},
    tables::Tables as _,
};
use xdp_abi::{
    reason::Reason,
    session::{Link, State},
};

const SERVER: &str = "198.51.100.9:443";

fn lab(ports: &str, sessions: u32) -> Lab {
    let sizes = Sizes {
        slots: sessions * 4,
        records: sessions + 16,
        overflow: sessions / 32 + 64,
        ..Sizes::default()
    };
    Scene::read(TWO_CLUSTERS)
        .snats(&format!("snat any -> any to 203.0.113.7 ports {ports}\npermit any -> any all"))
        .build_with(sizes, 11)
}

fn pod(n: u32) -> String {
    format!("100.64.{}.{}:40000", n >> 8, n & 255)
}

/// Fills a range; every flow must get a port of its own out of it.
fn fill(lab: &Lab, first: u16, count: u32) -> HashSet<u16> {
    let mut lent = HashSet::new();
    for n in 0..count {
        let output = lab.send(2, &udp(&pod(n), SERVER).payload(b"").frame());
        assert!(
            matches!(output.fate, xdp::pipeline::Fate::Transmit(..)),
            "{:?} with {n} of {count} lent",
            output.fate
        );
        let port = see(&output.frame.bytes).from.split_once(':').unwrap().1.parse().unwrap();
        assert!(port >= first && lent.insert(port), "{port} is lent twice or out of range");
    }
    lent
}

/// Steps that no search takes while ports are lent by searches alone, but by accident.
const STEPS: u64 = 161;

#[test]
fn small_ranges_are_lent_to_the_last_port_and_then_refused() {
    for (first, count) in [
        (40_000u16, 1u32),
        (5_000, 2),
        (1_024, 63),
        (6_400, 64),
        (6_401, 64),
        (6_399, 65),
        (2_000, 300),
    ] {
        let last = first as u32 + count - 1;
        let lab = lab(&format!("{first}-{last}"), 512);
        let lent = fill(&lab, first, count);
        assert_eq!(lent.len(), count as usize);
        assert_eq!(lent.iter().max().copied(), Some(last as u16));
        for n in count..count + 5 {
            assert_eq!(lab.refused(2, &udp(&pod(n), SERVER).frame()), Reason::PortsExhausted);
        }
        // Old flows live; other destinations have their own ports.
        lab.forward(2, &udp(&pod(0), SERVER).frame());
        lab.forward(2, &udp(&pod(400), "198.51.100.9:444").frame());
        lab.forward(2, &tcp(&pod(400), SERVER, SYN).frame());
        assert!(lab.port_steps_max() <= STEPS, "{}", lab.port_steps_max());
        lab.assert_books();
    }
}

#[test]
fn scattered_ranges_are_lent_whole() {
    let lab = lab("1024,2000-2003,9999-10010,65535", 512);
    let lent = fill(&lab, 1024, 18);
    assert!(lent.contains(&1024) && lent.contains(&65_535) && lent.contains(&2003));
    assert_eq!(lab.refused(2, &udp(&pod(18), SERVER).frame()), Reason::PortsExhausted);
}

#[test]
fn policies_that_share_an_address_lend_each_its_own_ports_to_the_last() {
    // One within another, side by side within a word, and both with the same.
    for (narrow, first, last) in [
        ("2000-2003", 1_990u16, 2_100u16),
        ("1024-2000", 2_001, 2_200),
        ("2000-2100", 2_000, 2_100),
    ] {
        let lab = Scene::read(TWO_CLUSTERS)
            .and("identity narrow 1 100.64.9.0/24")
            .snats(&format!(
                "snat narrow -> any to 203.0.113.7 ports {narrow}\n\
                 snat any -> any to 203.0.113.7 ports {first}-{last}\npermit any -> any all"
            ))
            .build_with(Sizes { slots: 8_192, records: 2_048, ..Sizes::default() }, 11);
        // The narrow ones first: how many there are is not for this test to say.
        let mut lent = HashSet::new();
        for n in 0..1_000 {
            let pod = format!("100.64.9.{}:{}", n & 255, 40_000 + (n >> 8));
            let output = lab.send(2, &udp(&pod, SERVER).payload(b"").frame());
            if output.fate == xdp::pipeline::Fate::Answered(Reason::PortsExhausted) {
                break;
            }
            let from = see(&output.frame.bytes).from;
            assert!(lent.insert(from.split_once(':').unwrap().1.parse::<u16>().unwrap()));
        }
        let (from, to) = narrow.split_once('-').unwrap();
        let (from, to): (u16, u16) = (from.parse().unwrap(), to.parse().unwrap());
        assert_eq!(lent.len(), usize::from(to - from) + 1, "{narrow}");
        let left = (first..=last).filter(|port| !lent.contains(port)).count() as u32;
        lent.extend(fill(&lab, first, left));
        assert_eq!(lab.refused(2, &udp(&pod(left), SERVER).frame()), Reason::PortsExhausted);
        lab.assert_books();
    }
}

#[test]
fn the_default_range_is_lent_without_one_failure() {
    let lab = lab("1024-65535", 65_536);
    let lent = fill(&lab, 1024, 64_512);
    assert_eq!(lent.len(), 64_512);
    assert_eq!(lab.refused(2, &udp(&pod(64_513), SERVER).frame()), Reason::PortsExhausted);
    assert!(lab.port_steps_max() <= STEPS, "{}", lab.port_steps_max());
    println!("worst allocation: {} steps", lab.port_steps_max());
}

#[test]
fn a_returned_port_is_found_again_in_a_full_range() {
    for count in [1u32, 64, 65, 300] {
        let mut lab = lab(&format!("2000-{}", 1999 + count), 512);
        lab.tables().set_rest(0);
        fill(&lab, 2000, count);
        for round in 0..50 {
            // All but one speak, the one falls silent.
            let silent = round * 7 % count;
            lab.pass_seconds(200);
            for n in (0..count).filter(|n| *n != silent) {
                lab.forward(2, &udp(&pod(n), SERVER).frame());
            }
            lab.pass_seconds(101);
            lab.sweep();
            assert_eq!(lab.sessions() as u32, count - 1, "round {round}");
            let newcomer = pod(1000 + round);
            lab.forward(2, &udp(&newcomer, SERVER).frame());
            assert_eq!(lab.refused(2, &udp(&pod(silent), SERVER).frame()), Reason::PortsExhausted);
            // The newcomer goes, the silent one comes back.
            lab.pass_seconds(200);
            for n in (0..count).filter(|n| *n != silent) {
                lab.forward(2, &udp(&pod(n), SERVER).frame());
            }
            lab.pass_seconds(101);
            lab.sweep();
            lab.forward(2, &udp(&pod(silent), SERVER).frame());
        }
        lab.assert_books();
    }
}

#[test]
fn the_source_port_is_kept_where_it_is_free_and_may_be_lent() {
    let lab = lab("2000-3000", 512);
    let outside = |from: &str| see(&lab.forward(2, &udp(from, SERVER).frame()).1).from;
    assert_eq!(outside("100.64.0.1:2000"), "203.0.113.7:2000");
    assert_eq!(outside("100.64.0.1:3000"), "203.0.113.7:3000");
    assert_ne!(outside("100.64.0.2:2000"), "203.0.113.7:2000", "taken");
    for from in ["100.64.0.1:1999", "100.64.0.1:3001", "100.64.0.1:53"] {
        let port: u16 = outside(from).split_once(':').unwrap().1.parse().unwrap();
        assert!((2000..=3000).contains(&port), "{from} became {port}");
    }
}

#[test]
fn ports_are_hard_to_guess() {
    // Ports of one destination, in the order in which they were lent, over all sixteenths.
    let lab = lab("1024-65535", 4096);
    let mut parts = [0u32; 16];
    let mut neighbours = 0;
    let mut before = 0u16;
    for n in 0..3_000 {
        let from = format!("100.64.{}.{}:53", n >> 8, n & 255);
        let out = lab.forward(2, &udp(&from, SERVER).payload(b"").frame()).1;
        let port: u16 = see(&out).from.split_once(':').unwrap().1.parse().unwrap();
        parts[(port >> 12) as usize] += 1;
        neighbours += u32::from(port.abs_diff(before) < 64);
        before = port;
    }
    assert!(parts.iter().all(|n| (120..=260).contains(n)), "{parts:?}");
    assert!(neighbours < 30, "{neighbours} of 3000 lie near the one before");
}

#[test]
fn no_flow_is_refused_while_a_port_is_free_though_most_were_kept() {
    // Flows that keep their own ports stand together, and no bitmap knows of them.
    for kept in [25_000, 52_000, 64_000, 64_512 - 16] {
        let lab = lab("1024-65535", 65_536);
        for port in (1_024..).take(kept) {
            lab.forward(2, &udp(&format!("100.64.0.1:{port}"), SERVER).payload(b"").frame());
        }
        let free = 64_512 - kept;
        for n in 0..free.min(2_000) {
            let from = format!("100.64.{}.{}:{}", 1 + (n >> 8), n & 255, 1_024 + n % kept);
            let fate = lab.send(2, &udp(&from, SERVER).payload(b"").frame()).fate;
            assert!(matches!(fate, Fate::Transmit(..)), "{fate:?} with {} free", free - n);
        }
        if free <= 2_000 {
            let last = udp("100.64.200.1:1024", SERVER).frame();
            assert_eq!(lab.refused(2, &last), Reason::PortsExhausted);
        }
    }
}

#[test]
fn small_ranges_of_many_destinations_are_lent_whole_without_bitmaps() {
    for count in [64, 1_000] {
        let sizes = Sizes {
            bitmaps: 4,
            slots: 1 << 16,
            records: 1 << 14,
            overflow: 512,
            ..Sizes::default()
        };
        let lab = Scene::read(TWO_CLUSTERS)
            .snats(&format!(
                "snat any -> any to 203.0.113.7 ports 2000-{}\npermit any -> any all",
                1_999 + count
            ))
            .build_with(sizes, 5);
        for server in 0..12 {
            for n in 0..count {
                let to = format!("198.51.100.{server}:443");
                let fate = lab.send(2, &udp(&pod(n), &to).payload(b"").frame()).fate;
                assert!(matches!(fate, Fate::Transmit(..)), "{fate:?} for {n} of {count} to {to}");
            }
        }
    }
}

#[test]
fn small_ranges_leave_bitmaps_for_a_large_one() {
    let sizes =
        Sizes { bitmaps: 64, slots: 1 << 16, records: 1 << 14, overflow: 512, ..Sizes::default() };
    for small in ["2000-2003", "2000-2799", "2000,2100,2200-2201"] {
        let lab = Scene::read(TWO_CLUSTERS)
            .and("identity narrow 1 100.64.200.0/24")
            .snats(&format!(
                "snat narrow -> any to 203.0.113.7 ports {small}\n\
                 snat any -> any to 203.0.113.7 ports 4096-12287\n\
                 permit any -> any all"
            ))
            .build_with(sizes, 11);
        for server in 0..64 {
            let to = format!("198.51.100.{}:443", 100 + server);
            for n in 0..5 {
                let from = format!("100.64.200.{n}:40000");
                lab.send(2, &udp(&from, &to).payload(b"").frame());
            }
        }
        assert_eq!(fill(&lab, 4_096, 8_192).len(), 8_192, "{small}");
    }
}

#[test]
fn ports_of_scattered_ranges_are_drawn_evenly() {
    // What is left of a machine's own address: its ephemeral ports are its own.
    let lab = lab("1024-32767,61000-65535", 8192);
    let mut above = 0;
    let mut first = 0;
    for n in 0..6_000 {
        let from = format!("100.64.{}.{}:53", n >> 8, n & 255);
        let out = lab.forward(2, &udp(&from, SERVER).payload(b"").frame()).1;
        let port: u16 = see(&out).from.split_once(':').unwrap().1.parse().unwrap();
        above += u32::from(port >= 61_000);
        first += u32::from((61_000..61_056).contains(&port));
    }
    // 4,536 of 36,280, and 56 of them.
    assert!((600..900).contains(&above), "{above} of 6000, 750 would be even");
    assert!(first < 56, "{first} of 6000 in the first word above, 9 would be even");
}

#[test]
fn a_port_that_was_looked_at_and_not_had_is_not_marked_for_good() {
    let mut lab = lab("2000-2063", 512);
    lab.tables().set_rest(0);
    fill(&lab, 2000, 64);
    // All but one speak on; of that one's port the bitmap does not know.
    const SILENT: u32 = 7;
    lab.pass_seconds(200);
    for n in (0..64).filter(|n| *n != SILENT) {
        lab.forward(2, &udp(&pod(n), SERVER).frame());
    }
    lab.pass_seconds(101);
    let tables = lab.tables();
    let live = || (0..).map_while(|n| tables.slot(n)).filter(|one| one.load_meta().is(State::Live));
    let source = |entry: &&_| V4::unpack(&Entry::key(*entry)).source;
    let silent = v4(pod(SILENT).split_once(':').unwrap().0);
    let forward = live().find(|entry| source(entry) == silent).unwrap();
    let link = forward.load_link();
    let is_its_reply = |one: &&_| Entry::load_link(*one).record() == link.record();
    let reply = live().filter(is_its_reply).find(|one| one.load_link().is_reply()).unwrap();
    let reply = V4::unpack(&reply.key());
    let bitmap = tables.bitmap(&pair(&reply)).expect("the pair is hot");
    let port = outside_port(&reply) as usize;
    let (word, bit) = (&bitmap.words[port >> 6], 1 << (port & 63));
    word.fetch_and(!bit);
    bitmap.summary[port >> 12].fetch_and(!(1 << (port >> 6 & 63)));
    // It looks free, and is somebody's again before it is claimed.
    forward.link().store(Link::new(link.record() + 1, link.next_hop(), false).0);
    assert_eq!(lab.refused(2, &udp(&pod(100), SERVER).frame()), Reason::Contended);
    assert_eq!(word.load() & bit, 0, "nobody knows who has port {port}");
    forward.link().store(link.0);
    let (_, out) = lab.forward(2, &udp(&pod(100), SERVER).frame());
    assert_eq!(see(&out).from, format!("203.0.113.7:{port}"));
    assert_ne!(word.load() & bit, 0, "it is lent");
    lab.assert_books();
}

#[test]
fn where_nobody_sweeps_few_searches_of_a_full_range_take_long() {
    // Searches a second that look at ports one after another, and at how many others do.
    const LONG: u32 = 1_000;
    // Of 1,000 ports that are lent so many are over when nobody may take long any more.
    for (over, expected) in [(1_000, true), (1, false)] {
        let mut lab = lab("2000-2999", 2_048);
        fill(&lab, 2000, 1_000);
        lab.pass_seconds(200);
        for n in over..1_000 {
            lab.forward(2, &udp(&pod(n), SERVER).frame());
        }
        // Over, and at rest.
        lab.pass_seconds(101);
        let newcomer = |n: u32| udp(&pod(1_000 + n), SERVER).frame();
        for n in 0..LONG {
            assert_eq!(lab.refused(2, &newcomer(n)), Reason::PortsExhausted, "{n}");
        }
        lab.tables().set_rest(0);
        let is_lent = matches!(lab.send(2, &newcomer(LONG)).fate, Fate::Transmit(..));
        assert_eq!(is_lent, expected, "beside {over} that are over");
        // A second later it is seen that one is over.
        lab.pass_seconds(1);
        lab.forward(2, &newcomer(LONG + 1));
        lab.assert_books();
    }
}

#[test]
fn without_a_bitmap_to_be_had_a_small_range_is_lent_all_the_same() {
    for count in [1u32, 2, 15, 16] {
        let sizes = Sizes { bitmaps: 0, ..Sizes::default() };
        let lab = Scene::read(TWO_CLUSTERS)
            .snats(&format!(
                "snat any -> any to 203.0.113.7 ports 2000-{}\npermit any -> any all",
                1999 + count
            ))
            .build_with(sizes, 11);
        fill(&lab, 2000, count);
        assert_eq!(lab.refused(2, &udp(&pod(count), SERVER).frame()), Reason::PortsExhausted);
    }
}
