//! Out and back: what a packet looks like on the other side.
#![allow(clippy::wildcard_enum_match_arm, reason = "anything else fails the test")]

mod scene;

use scene::*;
use xdp::{memory::MemoryFrame, pipeline::Fate};
use xdp_abi::reason::Reason;

const POD: &str = "100.64.0.7:40000";
const SERVER: &str = "198.51.100.9:443";

fn permissive() -> Lab {
    Lab::with_rules("permit any -> any all")
}

#[test]
fn a_pod_is_seen_as_the_outside_address_and_the_answer_reaches_it() {
    let lab = permissive();
    for (out, flags) in [
        (tcp(POD, SERVER, SYN), SYN | ACK),
        (udp(POD, "198.51.100.9:53"), 0),
        (echo("100.64.0.7:40077", "198.51.100.9"), 0),
    ] {
        let sent = out.frame();
        let (egress, frame) = lab.forward(2, &sent);
        assert_eq!(egress, 5);
        let seen = see(&frame);
        assert_eq!(seen.from, see(&sent).from.replace("100.64.0.7", "203.0.113.7"));
        assert_eq!(seen.to, see(&sent).to);
        assert_eq!(seen.ttl, 63);
        assert_eq!(seen.to_mac, [0x02, 0xff, 203, 0, 113, 254], "the gateway of the route");
        assert_eq!(seen.from_mac, mac_of(5));

        let reply = answer_to(&frame, flags).frame();
        let (egress, back) = lab.forward(5, &reply);
        assert_eq!(egress, 2, "back by the attachment it came from");
        let seen = see(&back);
        assert_eq!(seen.to, see(&sent).from);
        assert_eq!(seen.from, see(&sent).to);
        assert_eq!(seen.to_mac, out.from_mac, "to whoever sent the first packet");
        assert_eq!(seen.payload, see(&reply).payload);
    }
    assert_eq!(lab.sessions(), 3);
    lab.assert_books();
}

#[test]
fn the_first_packet_and_the_later_ones_come_out_alike() {
    let lab = permissive();
    let data = udp(POD, "198.51.100.9:53").frame();
    let first = lab.forward(2, &data);
    let fast = lab.forward(2, &data);
    let slow = lab.gateway.process_slowly(2, MemoryFrame::new(sent_to(2, &data)), lab.now);
    assert_eq!(first, fast);
    assert_eq!(slow.frame.bytes, fast.1);
    assert_eq!(lab.tables().counters().sessions_begun, 1);
}

#[test]
fn without_translation_only_ttl_and_link_change() {
    let scene = Scene::read(TWO_CLUSTERS).snats("").and(
        "attach legacy connection domain 0 on 4 address 10.0.0.1 routable carries 100.64.0.0/16 routes 10.0.0.0/8
         permit any -> any all",
    );
    let lab = scene.build();
    let sent = tcp(POD, "10.1.1.1:80", SYN).frame();
    let (egress, frame) = lab.forward(2, &sent);
    assert_eq!(egress, 4);
    assert_eq!(see(&frame).from, POD, "carried as it is");
    let (egress, back) = lab.forward(4, &answer_to(&frame, SYN | ACK).frame());
    assert_eq!((egress, see(&back).to), (2, POD.to_owned()));
    // The same source towards an attachment that does not carry it.
    assert_eq!(lab.refused(2, &tcp(POD, SERVER, SYN).frame()), Reason::NoSnatPolicy);
}

#[test]
fn no_udp_checksum_stays_none() {
    let lab = permissive();
    let (_, frame) = lab.forward(2, &udp(POD, "198.51.100.9:53").no_checksum().frame());
    assert_eq!(ip_of(&frame)[26..28], [0, 0]);
    let (_, back) = lab.forward(5, &answer_to(&frame, 0).no_checksum().frame());
    assert_eq!(ip_of(&back)[26..28], [0, 0]);
}

#[test]
fn options_of_the_header_stay_and_the_transport_is_found_behind_them() {
    let lab = permissive();
    for words in 1..=10 {
        let options = vec![1; words * 4];
        let sent = tcp(POD, SERVER, if words == 1 { SYN } else { ACK }).options(&options).frame();
        let (_, frame) = lab.forward(2, &sent);
        assert_eq!(see(&frame).from, "203.0.113.7:40000", "{words} words");
        assert_eq!(ip_of(&frame)[20..20 + words * 4], options);
    }
}

#[test]
fn padding_of_short_frames_is_not_part_of_the_packet() {
    let lab = permissive();
    let sent = udp(POD, "198.51.100.9:53").payload(b"").padded(18).frame();
    let (_, frame) = lab.forward(2, &sent);
    assert_eq!(frame.len(), sent.len());
    lab.forward(2, &sent);
}

#[test]
fn a_tag_is_put_on_and_taken_off_on_the_way() {
    let scene = Scene::read(
        "link 1
         link 2
         link 17 vlan 7 of 1
         link 18 vlan 8 of 1
         attach pods spoke domain 1 on 17 address 100.64.255.1 sources 100.64.0.0/16
         attach more spoke domain 2 on 18 address 100.64.255.1 sources 100.64.0.0/16
         attach net internet domain 0 on 2 address 203.0.113.1 routable sources 0.0.0.0/0 routes 0.0.0.0/0
         route 0.0.0.0/0 on 2 via 203.0.113.254
         permit any -> any all
         snat any -> any to 203.0.113.7",
    );
    let lab = scene.build();
    for (vlan, expected) in [(7, "203.0.113.7:40000"), (8, "")] {
        let sent = tcp(POD, SERVER, SYN).vlan(vlan).frame();
        let (egress, out) = lab.forward(1, &sent);
        assert_eq!(egress, 2);
        assert_eq!(see(&out).vlan, None);
        assert_eq!(out.len() + 4, sent.len());
        if !expected.is_empty() {
            assert_eq!(see(&out).from, expected);
        }
        let (egress, back) = lab.forward(2, &answer_to(&out, SYN | ACK).frame());
        assert_eq!((egress, see(&back).vlan), (1, Some(vlan)));
        assert_eq!(see(&back).to, POD);
    }
    // The same with a tag that the hardware took off.
    let untagged = sent_to(1, &tcp(POD, SERVER, ACK).frame());
    let frame = MemoryFrame { offload: Some(7), ..MemoryFrame::new(untagged.clone()) };
    let output = lab.gateway.process(1, frame, lab.now);
    assert!(matches!(output.fate, Fate::Transmit(..)), "{:?}", output.fate);
    assert_eq!((output.frame.offload, output.frame.bytes.len()), (None, untagged.len()));
    lab.assert_books();
}

#[test]
fn a_priority_tag_is_no_vlan_and_never_a_second_tag() {
    let scene = Scene::read(
        "link 1
         link 2
         link 27 vlan 7 of 2
         attach pods spoke domain 1 on 1 address 100.64.255.1 sources 100.64.0.0/16
         attach net internet domain 0 on 27 address 203.0.113.1 routable sources 0.0.0.0/0 routes 0.0.0.0/0
         route 0.0.0.0/0 on 27
         permit any -> any all
         snat any -> any to 203.0.113.7",
    );
    let lab = scene.build();
    let (_, out) = lab.forward(1, &tcp(POD, SERVER, SYN).vlan(0).frame());
    assert_eq!(see(&out).vlan, Some(7));
    let (_, back) = lab.forward(2, &answer_to(&out, SYN | ACK).frame());
    assert_eq!((see(&back).vlan, see(&back).to.as_str()), (None, POD));
}

#[test]
fn clusters_with_the_same_addresses_stay_apart() {
    let lab = permissive();
    let sent = tcp(POD, SERVER, SYN).frame();
    let (_, red) = lab.forward(2, &sent);
    let (_, blue) = lab.forward(3, &sent);
    assert_eq!(see(&red).from, "203.0.113.7:40000", "the source port is kept where it is free");
    assert_ne!(see(&blue).from, see(&red).from, "two sessions, two reply tuples");
    for (out, home) in [(red, 2), (blue, 3)] {
        let (egress, back) = lab.forward(5, &answer_to(&out, SYN | ACK).frame());
        assert_eq!((egress, see(&back).to.as_str()), (home, POD));
    }
    assert_eq!(lab.sessions(), 2);
}

#[test]
fn one_cluster_by_two_ways_is_one_session() {
    let scene = Scene::read(TWO_CLUSTERS).and(
        "link 6
         attach red-b spoke domain 1 on 6 address 100.64.255.2 sources 100.64.0.0/16
         permit any -> any all",
    );
    let lab = scene.build();
    let (_, out) = lab.forward(2, &tcp(POD, SERVER, SYN).frame());
    let (_, again) = lab.forward(6, &tcp(POD, SERVER, ACK).frame());
    assert_eq!(see(&out).from, see(&again).from);
    let (egress, _) = lab.forward(5, &answer_to(&out, SYN | ACK).frame());
    assert_eq!(egress, 2, "replies follow the first packet");
    assert_eq!(lab.sessions(), 1);
}

#[test]
fn one_arm_is_all_attachments_at_once() {
    let scene = Scene::read(
        "link 2
         attach pods spoke domain 1 on 2 address 172.16.0.4 sources 100.64.0.0/16
         attach net internet domain 0 on 2 address 172.16.0.4 routable sources 0.0.0.0/0 routes 0.0.0.0/0
         route 0.0.0.0/0 on 2 via 172.16.0.1
         local 172.16.0.4
         permit any -> any all
         snat any -> any to 172.16.0.4",
    );
    let lab = scene.build();
    let (egress, out) = lab.forward(2, &tcp(POD, SERVER, SYN).frame());
    assert_eq!((egress, see(&out).from.as_str()), (2, "172.16.0.4:40000"));
    let (egress, back) = lab.forward(2, &answer_to(&out, SYN | ACK).frame());
    assert_eq!((egress, see(&back).to.as_str()), (2, POD));
    // What is nobody's session on that address is the machine's own.
    let own = sent_to(2, &tcp("198.51.100.9:443", "172.16.0.4:22", SYN).frame());
    assert_eq!(lab.send(2, &own).fate, Fate::Pass);
    assert_eq!(lab.send(2, &own).frame.bytes, own, "untouched");
    lab.assert_books();
}

#[test]
fn the_way_out_chooses_the_snat_policy() {
    let scene = Scene::read(TWO_CLUSTERS).snats(
        "snat red -> any to 10.0.0.1 connection transit
         snat red -> servers to 203.0.113.9 interface 5 protocol tcp destination-port 443
         snat red -> any to 203.0.113.8 mark 7
         snat red -> any to 203.0.113.7 interface 5
         permit any -> any udp/53 mark 7
         permit any -> any all",
    );
    let lab = scene.build();
    for (sent, expected) in [
        (tcp(POD, "10.1.1.1:443", SYN), "10.0.0.1:40000"),
        (tcp(POD, SERVER, SYN), "203.0.113.9:40000"),
        (tcp(POD, "198.51.100.9:80", SYN), "203.0.113.7:40000"),
        (udp(POD, "198.51.100.9:443"), "203.0.113.7:40000"),
        (udp(POD, "192.0.2.1:53"), "203.0.113.8:40000"),
    ] {
        let (_, out) = lab.forward(2, &sent.frame());
        assert_eq!(see(&out).from, expected, "{sent:?}");
    }
    assert_eq!(lab.refused(3, &tcp(POD, SERVER, SYN).frame()), Reason::NoSnatPolicy, "blue");
}

#[test]
fn one_inside_host_has_one_outside_address_and_hosts_spread_over_the_pool() {
    let scene = Scene::read(TWO_CLUSTERS).snats(
        "snat any -> any to 203.0.113.16,203.0.113.17,203.0.113.18,203.0.113.19
         permit any -> any all",
    );
    let lab = scene
        .build_with(xdp::memory::Sizes { slots: 16_384, records: 4096, ..Default::default() }, 1);
    let mut used = std::collections::HashMap::<String, u32>::new();
    for host in 0..200 {
        let mut addresses = std::collections::HashSet::new();
        for port in 0..5 {
            let from = format!("100.64.1.{host}:{}", 40_000 + port);
            let (_, out) = lab.forward(2, &udp(&from, "198.51.100.9:53").frame());
            addresses.insert(see(&out).from.split(':').next().unwrap().to_owned());
        }
        assert_eq!(addresses.len(), 1, "host {host}");
        *used.entry(addresses.into_iter().next().unwrap()).or_default() += 1;
    }
    assert_eq!(used.len(), 4);
    assert!(used.values().all(|n| (25..=75).contains(n)), "{used:?}");
}

#[test]
fn nobody_is_behind_an_outside_address_but_its_sessions() {
    let lab = permissive();
    // The default route would send it straight back, and so on until its TTL ends.
    assert_eq!(lab.dropped(5, &udp(SERVER, "203.0.113.7:40000").frame()), Reason::NoSession);
    assert_eq!(lab.dropped(5, &tcp(SERVER, "203.0.113.7:40000", SYN).frame()), Reason::NoSession);
    assert_eq!(lab.sessions(), 0);
}
