//! What becomes of live flows when something else than the rules changes: routes, attachments,
//! neighbours, who has an address; and of what is remembered from one flow to the next.

#![allow(clippy::wildcard_enum_match_arm, reason = "anything else fails the test")]

mod scene;

use scene::*;
use xdp::{
    address::{Address as _, Entry as _, V4},
    memory::RouteEntry,
    pipeline::Fate,
    tables::Tables,
};
use xdp_abi::{
    config::PolicyWord,
    forward::{ATTACHED, Attachment, HOP_REFRESH, HOP_USED, Hop, LINK_UP, ROUTABLE, port},
    reason::Reason,
    session::{NETWORK_EPOCH, State},
};

const POD: &str = "100.64.0.7:40000";
const SERVER: &str = "198.51.100.9:443";

/// Three fabric attachments without translation between them.
const PLAIN: &str = "
    link 4
    link 5
    attach a connection domain 0 on 4 address 10.0.0.1 routable sources 10.0.0.0/8 routes 10.0.0.0/8
    attach b connection domain 0 on 5 address 172.16.0.1 routable sources 172.16.0.0/12 routes 172.16.0.0/12
    route 10.0.0.0/8 on 4 via 10.0.0.254
    route 172.16.0.0/12 on 5 via 172.16.0.254
    ";

fn permissive() -> Scene {
    Scene::read(TWO_CLUSTERS).and("permit any -> any all log")
}

#[test]
fn a_live_flow_follows_a_route_to_another_router() {
    let scene = permissive().and("route 203.0.113.0/24 on 5");
    let mut lab = scene.build();
    let (_, out) = lab.forward(2, &tcp(POD, SERVER, SYN).frame());
    lab.forward(5, &answer_to(&out, SYN | ACK).frame());
    lab.gateway.tables.remove_route(prefix("0.0.0.0/0"));
    lab.gateway.tables.add_route(RouteEntry {
        to: prefix("0.0.0.0/0"),
        ifindex: 5,
        gateway: Some(v4("203.0.113.253")),
        mtu: None,
    });
    // The daemon raises the generation when a route changes.
    lab.publish(&scene);
    let (_, moved) = lab.forward(2, &tcp(POD, SERVER, ACK).frame());
    assert_eq!(see(&moved).to_mac, [0x02, 0xff, 203, 0, 113, 253]);
    assert_eq!(see(&moved).from, see(&out).from, "the translation stays");
    // And back again, by what the first way out left behind.
    lab.gateway.tables.remove_route(prefix("0.0.0.0/0"));
    lab.gateway.tables.add_route(RouteEntry {
        to: prefix("0.0.0.0/0"),
        ifindex: 5,
        gateway: Some(v4("203.0.113.254")),
        mtu: None,
    });
    lab.publish(&scene);
    let (_, back) = lab.forward(2, &tcp(POD, SERVER, ACK).frame());
    assert_eq!(see(&back).to_mac, [0x02, 0xff, 203, 0, 113, 254]);
    lab.assert_books();
}

#[test]
fn answers_follow_an_attachment_to_another_interface() {
    let scene = permissive().and("link 6");
    let (old, new) = ([2, 0xaa, 0, 0, 0, 1], [2, 0xbb, 0, 0, 0, 1]);
    let mut lab = scene.build();
    let ask = udp(POD, "198.51.100.9:53");
    let (_, out) = lab.forward(2, &ask.clone().sender(old).frame());
    let answer = answer_to(&out, 0).frame();
    let (ifindex, before) = lab.forward(5, &answer);
    assert_eq!((ifindex, see(&before).to_mac), (2, old));
    let mut red = lab.tables().attachment(1).unwrap();
    red.ifindex = 6;
    lab.gateway.tables.set_attachment(1, red);
    lab.gateway.tables.add_source(port(6, 0), prefix("100.64.0.0/16"), 1);
    lab.publish(&scene);
    lab.forward(6, &ask.sender(new).frame());
    let (ifindex, after) = lab.forward(5, &answer);
    assert_eq!((ifindex, see(&after).to_mac), (6, new));
    assert_eq!(lab.sessions(), 1);
    lab.assert_books();
}

/// A cluster that arrives by two interfaces, 2 and 6.
fn by_two_ways() -> Scene {
    permissive()
        .and("link 6")
        .and("attach red2 spoke domain 1 on 6 address 100.64.255.2 sources 100.64.0.0/16")
}

#[test]
fn answers_return_where_the_session_came_from_though_it_comes_by_another_way_since() {
    let scene = by_two_ways();
    let mut lab = scene.build();
    let ask = udp(POD, "198.51.100.9:53").frame();
    let (_, out) = lab.forward(2, &ask);
    lab.publish(&scene);
    lab.forward(6, &ask);
    let (ifindex, _) = lab.forward(5, &answer_to(&out, 0).frame());
    assert_eq!(ifindex, 2);
}

#[test]
fn a_session_whose_way_in_is_gone_goes_on_by_the_way_that_its_packets_take() {
    type Change = fn(&mut Lab);
    let changes: [(&str, Change); 3] = [
        ("its link is down", |lab| {
            let mut link = lab.tables().link(2).unwrap();
            link.flags &= !LINK_UP;
            lab.gateway.tables.set_link(2, link);
        }),
        ("its interface is gone", |lab| {
            let mut red = lab.tables().attachment(1).unwrap();
            red.flags &= !ATTACHED;
            lab.gateway.tables.set_attachment(1, red);
        }),
        ("its attachment is gone", |lab| {
            lab.gateway.tables.set_attachment(1, Attachment::NONE);
        }),
    ];
    for (name, change) in changes {
        let scene = by_two_ways();
        let mut lab = scene.build();
        let ask = tcp(POD, SERVER, SYN);
        let (_, out) = lab.forward(2, &ask.frame());
        let answer = answer_to(&out, SYN | ACK).frame();
        lab.forward(5, &answer);
        change(&mut lab);
        // The daemon raises the generation when an attachment or a link changes.
        lab.publish(&scene);
        for _ in 0..2 {
            assert_eq!(lab.send(5, &answer).fate, Fate::Drop(Reason::NoRoute), "{name}");
        }
        let (_, again) = lab.forward(6, &tcp(POD, SERVER, ACK).frame());
        assert_eq!(see(&again).from, see(&out).from, "{name}: the translation stays");
        let (ifindex, _) = lab.forward(5, &answer);
        assert_eq!(ifindex, 6, "{name}");
        // And it stays there.
        lab.publish(&scene);
        let (ifindex, _) = lab.forward(5, &answer);
        assert_eq!(ifindex, 6, "{name}");
        assert_eq!((lab.sessions(), lab.gateway.tables.counters().sessions_ended), (1, 0));
        lab.assert_books();
    }
}

#[test]
fn a_session_that_its_record_does_not_name_waits_for_it() {
    let scene = permissive();
    let mut lab = scene.build();
    let ask = tcp(POD, SERVER, SYN).frame();
    lab.forward(2, &ask);
    let link = (0..).find_map(|n| {
        let entry = lab.tables().slot(n)?;
        entry.load_meta().is(State::Live).then(|| entry.load_link())
    });
    let record = lab.tables().record(link.unwrap().record()).unwrap();
    // As a start with records of a newer layout finds it, until it has carried them over.
    let slots = record.slots.swap(0);
    let facts = record.facts.swap(0);
    lab.publish(&scene);
    assert_eq!(lab.send(2, &ask).fate, Fate::Drop(Reason::Contended));
    let record = lab.tables().record(link.unwrap().record()).unwrap();
    record.facts.store(facts);
    record.slots.store(slots);
    lab.forward(2, &ask);
    assert_eq!(lab.gateway.tables.counters().sessions_ended, 0);
}

#[test]
fn a_flow_whose_route_is_gone_waits_for_it() {
    let scene = permissive();
    let mut lab = scene.build();
    lab.forward(2, &tcp(POD, SERVER, SYN).frame());
    lab.gateway.tables.remove_route(prefix("0.0.0.0/0"));
    lab.publish(&scene);
    let lost = lab.send(2, &tcp(POD, SERVER, ACK).frame());
    assert_eq!(lost.fate, Fate::Drop(Reason::NoRoute));
    lab.gateway.tables.add_route(RouteEntry {
        to: prefix("0.0.0.0/0"),
        ifindex: 5,
        gateway: Some(v4("203.0.113.254")),
        mtu: None,
    });
    lab.publish(&scene);
    lab.forward(2, &tcp(POD, SERVER, ACK).frame());
    assert_eq!(lab.sessions(), 1);
}

#[test]
fn a_flow_whose_way_out_moves_to_another_domain_ends() {
    let scene = Scene::read(&TWO_CLUSTERS.replace("link 5\n", "link 5\n    link 6\n"))
        .and("permit any -> any all log")
        .and(
            "attach mgmt connection domain 3 on 6 address 10.9.0.1 sources 198.51.100.0/24 routes \
             198.51.100.0/24",
        );
    let mut lab = scene.build();
    let (_, out) = lab.forward(2, &tcp(POD, SERVER, SYN).frame());
    lab.forward(5, &answer_to(&out, SYN | ACK).frame());
    lab.gateway.tables.add_route(RouteEntry {
        to: prefix("198.51.100.0/24"),
        ifindex: 6,
        gateway: Some(v4("10.9.0.254")),
        mtu: None,
    });
    lab.publish(&scene);
    let cut = lab.send(2, &tcp(POD, SERVER, ACK).frame());
    assert_eq!(cut.fate, Fate::Answered(Reason::SnatWithdrawn));
    assert_eq!(lab.gateway.tables.counters().sessions_ended, 1);
}

#[test]
fn an_attachment_that_becomes_routable_lets_no_live_flow_out_untranslated() {
    let scene = Scene::read(
        "
    link 2
    link 4
    attach red spoke domain 1 on 2 address 100.64.255.1 sources 100.64.0.0/16
    attach peer connection domain 1 on 4 address 10.0.0.1 sources 10.0.0.0/8 routes 10.0.0.0/8
    route 10.0.0.0/8 on 4 via 10.0.0.254
    permit any -> any all
    ",
    );
    let mut lab = scene.build();
    lab.forward(2, &udp(POD, "10.1.1.1:53").frame());
    let mut peer = lab.tables().attachment(2).unwrap();
    peer.domain = 0;
    peer.flags |= ROUTABLE;
    lab.gateway.tables.set_attachment(2, peer);
    lab.publish(&scene);
    for _ in 0..2 {
        let output = lab.send(2, &udp(POD, "10.1.1.1:53").frame());
        assert!(!matches!(output.fate, Fate::Transmit(..)), "{:?}", output.fate);
    }
}

#[test]
fn a_source_that_became_non_routable_lets_no_live_flow_out_untranslated() {
    for protocol in ["udp", "tcp"] {
        let scene = Scene::read(PLAIN).and("permit any -> any all log");
        let mut lab = scene.build();
        let send = |flags| match protocol {
            "udp" => udp("10.1.1.1:5000", "172.16.1.1:80").frame(),
            _ => tcp("10.1.1.1:5000", "172.16.1.1:80", flags).frame(),
        };
        lab.forward(4, &send(SYN));
        lab.gateway.tables.set_non_routable(&[prefix("10.0.0.0/8")]);
        lab.publish(&scene);
        assert_eq!(lab.dropped(4, &send(ACK)), Reason::SnatWithdrawn, "{protocol}");
        assert_eq!(lab.sessions(), 0);
        // The next one says what would be right.
        assert_eq!(lab.dropped(4, &send(SYN)), Reason::NoSnatPolicy, "{protocol}");
        let translated = scene.and("snat any -> any to 172.16.0.9");
        lab.publish(&translated);
        let (_, out) = lab.forward(4, &send(SYN));
        assert_eq!(see(&out).from, "172.16.0.9:5000");
        lab.assert_books();
    }
}

#[test]
fn answers_follow_the_router_that_the_packets_come_by() {
    let (old, new) = ([2, 0xaa, 0, 0, 0, 1], [2, 0xaa, 0, 0, 0, 2]);
    for ask in [udp(POD, "198.51.100.9:53"), tcp(POD, SERVER, SYN), echo(POD, "198.51.100.9")] {
        let mut lab = permissive().build();
        let (_, out) = lab.forward(2, &ask.clone().sender(old).frame());
        let answer = answer_to(&out, SYN | ACK).frame();
        let to = |lab: &Lab| see(&lab.forward(5, &answer).1).to_mac;
        assert_eq!(to(&lab), old);
        // No daemon, no word of the kernel: the next packet shows it.
        lab.pass_seconds(1);
        let again = if ask.frame()[23] == 6 { tcp(POD, SERVER, ACK) } else { ask.clone() };
        lab.forward(2, &again.clone().sender(new).frame());
        assert_eq!(to(&lab), new);
        lab.pass_seconds(1);
        lab.forward(2, &again.sender(old).frame());
        assert_eq!(to(&lab), old);
        assert_eq!(lab.sessions(), 1);
        lab.assert_books();
    }
    // By another attachment it is another way, and the first is still there.
    let mut lab = by_two_ways().build();
    let ask = udp(POD, "198.51.100.9:53");
    let (_, out) = lab.forward(2, &ask.clone().sender(old).frame());
    lab.pass_seconds(1);
    lab.forward(6, &ask.sender(new).frame());
    let (ifindex, back) = lab.forward(5, &answer_to(&out, 0).frame());
    assert_eq!((ifindex, see(&back).to_mac), (2, old));
}

#[test]
fn answers_of_another_session_turn_to_nobody_else_s_router() {
    let (old, new) = ([2, 0xaa, 0, 0, 0, 1], [2, 0xaa, 0, 0, 0, 2]);
    let mut lab = permissive().build();
    let ask = |port: u16| udp(&format!("100.64.0.7:{port}"), "198.51.100.9:53");
    let answers = [40_000, 40_001].map(|port| {
        let (_, out) = lab.forward(2, &ask(port).sender(old).frame());
        answer_to(&out, 0).frame()
    });
    // The first session's record names the second one's reply: what a packet may read while the first is
    // ended and its slot is taken.
    let record = |n: u32| lab.tables().record(n).unwrap();
    let numbers: Vec<u32> = (0..)
        .map_while(|n| lab.tables().slot(n))
        .filter(|entry| entry.load_meta().is(State::Live) && !entry.load_link().is_reply())
        .map(|entry| (u16::from_be_bytes(V4::unpack(&entry.key()).source_port), entry.load_link()))
        .collect::<std::collections::BTreeMap<_, _>>()
        .into_values()
        .map(|link| link.record())
        .collect();
    let [first, second] = numbers[..] else { panic!("{numbers:?}") };
    let slots = record(first).slots.load();
    let reply = record(second).slots.load() & u64::from(u32::MAX);
    record(first).slots.store(slots >> 32 << 32 | reply);
    lab.pass_seconds(1);
    lab.send(2, &ask(40_000).sender(new).frame());
    lab.tables().record(first).unwrap().slots.store(slots);
    assert_eq!(answers.map(|answer| see(&lab.forward(5, &answer).1).to_mac), [old, old]);
    lab.assert_books();
}

#[test]
fn a_neighbour_that_moved_is_not_remembered_where_it_was() {
    let lab = permissive().build();
    let (a, b) = ([2, 0xaa, 0, 0, 0, 1], [2, 0xbb, 0, 0, 0, 1]);
    lab.forward(2, &udp(POD, "198.51.100.9:53").sender(a).frame());
    // What the daemon does of a neighbour with another hardware address.
    for n in 0..64 {
        let Some(mut hop) = lab.tables().hop(n) else { continue };
        if hop.is(HOP_USED) && !hop.is(HOP_REFRESH) && Hop::mac(hop.destination) == a {
            hop.destination = Hop::mac_word(b, hop.vlan());
            lab.tables().set_hop(n, &hop);
        }
    }
    let before = lab.tables().epoch(NETWORK_EPOCH);
    let mut lab = lab;
    lab.gateway.tables.move_network_epoch();
    assert_ne!(lab.tables().epoch(NETWORK_EPOCH), before);
    let (_, out) = lab.forward(2, &udp("100.64.0.7:40001", SERVER).sender(a).frame());
    let (_, back) = lab.forward(5, &answer_to(&out, 0).frame());
    assert_eq!(see(&back).to_mac, a);
}

#[test]
fn an_error_that_quotes_no_ports_is_dropped_whatever_lies_behind_it() {
    let lab = permissive().build();
    let (_, out) = lab.forward(2, &udp(POD, "198.51.100.9:53").frame());
    let quote = ip_of(&out);
    let mut error = icmp_error(3, 4, 1400, "192.0.2.77", "203.0.113.7", &quote[..20]);
    error.extend(&quote[20..28]);
    error.extend([0; 20]);
    let output = lab.send(5, &error);
    assert_eq!(output.fate, Fate::Drop(Reason::Truncated));
}

#[test]
fn an_error_about_a_flow_that_is_no_longer_permitted_does_not_pass() {
    let permitted = permissive();
    let mut lab = permitted.build();
    let (_, out) = lab.forward(2, &udp(POD, "198.51.100.9:53").frame());
    let (_, inside) = lab.forward(5, &answer_to(&out, 0).frame());
    let error = icmp_error(3, 4, 1300, "100.64.0.7", "198.51.100.9", ip_of(&inside));
    lab.forward(2, &error);
    lab.publish(&permitted.clone().rules("deny any -> any all"));
    assert_eq!(lab.send(2, &error).fate, Fate::Drop(Reason::Contended));
    // Permitted again: as soon as the flow itself was judged.
    lab.publish(&permitted);
    assert_eq!(lab.send(2, &error).fate, Fate::Drop(Reason::Contended));
    lab.forward(5, &answer_to(&out, 0).frame());
    lab.forward(2, &error);
}

#[test]
fn the_far_end_of_an_expired_untranslated_session_may_open_its_own() {
    let mut lab = Scene::read(PLAIN).and("permit any -> any all").build();
    lab.forward(4, &udp("10.1.1.1:500", "172.16.1.1:500").frame());
    lab.pass_seconds(3_000);
    lab.forward(5, &udp("172.16.1.1:500", "10.1.1.1:500").frame());
    assert_eq!(lab.sessions(), 1);
}

#[test]
fn the_far_end_of_a_closed_session_opens_nothing_that_the_rules_deny() {
    let closed = |rules: &str| {
        let lab = Scene::read(PLAIN)
            .and("identity a 0 10.0.0.0/8\nidentity b 0 172.16.0.0/12")
            .and(rules)
            .build();
        let (a, b) = ("10.1.1.1:5000", "172.16.1.1:80");
        lab.forward(4, &tcp(a, b, SYN).frame());
        lab.forward(5, &tcp(b, a, SYN | ACK).frame());
        lab.forward(4, &tcp(a, b, FIN | ACK).frame());
        lab.forward(5, &tcp(b, a, FIN | ACK).frame());
        lab.forward(4, &tcp(a, b, ACK).frame());
        lab.send(5, &tcp(b, a, SYN).frame()).fate
    };
    assert_eq!(closed("permit a -> b all\ndeny b -> a all"), Fate::Drop(Reason::RuleDenied));
    assert!(matches!(closed("permit any -> any all"), Fate::Transmit(..)));
}

#[test]
fn what_is_remembered_of_an_address_does_not_outlive_its_identity() {
    let scene = Scene::read(TWO_CLUSTERS)
        .and("identity good 1 100.64.0.7/32\nidentity bad 1 100.64.0.8/32")
        .and("snat any -> any to 203.0.113.7\npermit good -> any all\ndeny any -> any all");
    let mut lab = scene.build();
    lab.forward(2, &udp(POD, SERVER).frame());
    // The address goes to a pod that may not.
    let bank = PolicyWord(lab.tables().config().policy.load()).bank();
    let bad = lab.tables().identity(bank, 1, v4("100.64.0.8"));
    lab.gateway.tables.amend(&[(1, v4("100.64.0.7"))], |policy| {
        policy.hosts.insert((1, v4("100.64.0.7")), bad);
    });
    let refused = lab.send(2, &udp("100.64.0.7:40001", SERVER).frame());
    assert_eq!(refused.fate, Fate::Drop(Reason::RuleDenied));
}

#[test]
fn an_address_that_becomes_the_machine_s_own_is_not_remembered_as_another_s() {
    let mut lab = permissive().build();
    lab.forward(2, &udp(POD, SERVER).frame());
    lab.gateway.tables.add_local(v4("198.51.100.9"));
    let own = lab.send(2, &udp("100.64.0.7:40001", SERVER).frame());
    assert_eq!(own.fate, Fate::Pass);
}

#[test]
fn a_source_is_remembered_where_it_came_in_and_nowhere_else() {
    let lab = permissive().build();
    let (a, b) = ([2, 0xaa, 0, 0, 0, 1], [2, 0xbb, 0, 0, 0, 1]);
    lab.forward(2, &udp(POD, SERVER).sender(a).frame());
    // By another neighbour: answers go to that one.
    let (_, out) = lab.forward(2, &udp("100.64.0.7:40001", SERVER).sender(b).frame());
    let (_, back) = lab.forward(5, &answer_to(&out, 0).frame());
    assert_eq!(see(&back).to_mac, b);
    // In the other cluster's domain: another pod.
    let (_, out) = lab.forward(3, &udp("100.64.0.7:40002", SERVER).frame());
    let (egress, _) = lab.forward(5, &answer_to(&out, 0).frame());
    assert_eq!(egress, 3);
    // In a frame for another machine, which was flooded here.
    let flooded = udp("100.64.0.7:40003", SERVER).sender(a).receiver([2, 9, 9, 9, 9, 9]).frame();
    assert_eq!(lab.send(2, &flooded).fate, Fate::Pass);
}
