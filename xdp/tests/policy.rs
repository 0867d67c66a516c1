//! Who may talk to whom, and what becomes of live flows when that changes.
#![allow(clippy::wildcard_enum_match_arm, reason = "anything else fails the test")]

mod scene;

use scene::*;
use xdp::{address::Entry as _, pipeline::Fate, tables::Tables as _};
use xdp_abi::{
    event,
    forward::LinkInfo,
    reason::Reason,
    session::{Class, Count, State},
};

const POD: &str = "100.64.0.7:40000";
const SERVER: &str = "198.51.100.9:443";

fn scene(rules: &str) -> Scene {
    Scene::read(TWO_CLUSTERS).and(rules)
}

#[test]
fn the_first_rule_in_order_decides() {
    let lab = Lab::with_rules(
        "deny red -> servers tcp/443
         permit red -> any tcp/1-1023
         reject red -> any udp/53
         permit any -> servers udp",
    );
    for (ifindex, sent, expected) in [
        (2, tcp(POD, SERVER, SYN), Some(Reason::RuleDenied)),
        (2, tcp(POD, "198.51.100.9:442", SYN), None),
        (2, tcp(POD, "192.0.2.9:443", SYN), None),
        (2, tcp(POD, "192.0.2.9:1023", SYN), None),
        (2, tcp(POD, "192.0.2.9:1024", SYN), Some(Reason::DefaultDenied)),
        (3, tcp(POD, "192.0.2.9:443", SYN), Some(Reason::DefaultDenied)),
        (3, udp(POD, "198.51.100.9:53"), None),
        (3, udp(POD, "192.0.2.9:53"), Some(Reason::DefaultDenied)),
        (2, echo("100.64.0.7:7", "198.51.100.9"), Some(Reason::DefaultDenied)),
    ] {
        let fate = lab.send(ifindex, &sent.frame()).fate;
        match expected {
            Some(reason) => assert_eq!(fate, Fate::Drop(reason), "{sent:?}"),
            None => assert!(matches!(fate, Fate::Transmit(..)), "{fate:?} {sent:?}"),
        }
    }
    lab.assert_books();
}

#[test]
fn a_rejected_sender_is_told() {
    let lab = Lab::with_rules("reject any -> any all");
    let (reason, reset) = lab.answered(2, &tcp(POD, SERVER, SYN).frame());
    assert_eq!(reason, Reason::RuleRejected);
    let seen = see(&reset);
    assert_eq!((seen.from.as_str(), seen.to.as_str()), (SERVER, POD));
    assert_eq!(seen.flags, RST | ACK);
    let ip = ip_of(&reset);
    // It acknowledges the SYN and the payload that it carried.
    let acknowledged = u32::from_be_bytes([ip[28], ip[29], ip[30], ip[31]]);
    assert_eq!(acknowledged, 0x1234_5678 + 1 + 26);
    assert_eq!(reset.len(), 14 + 40, "nothing behind it");

    for sent in [udp(POD, SERVER), echo("100.64.0.7:7", "198.51.100.9")] {
        let (_, error) = lab.answered(2, &sent.frame());
        let seen = see(&error);
        assert_eq!((seen.protocol, seen.flags, seen.code), (1, 3, 13));
        assert_eq!(seen.from, "100.64.255.1:0");
    }
    // The same behind a tag-less header with options, and for a short frame.
    let (_, reset) = lab.answered(2, &tcp(POD, SERVER, SYN).options(&[1; 8]).payload(b"").frame());
    assert_eq!(see(&reset).to, POD);
    lab.assert_books();
}

#[test]
fn a_permitted_sender_inside_is_told_that_its_flow_cannot_be_opened() {
    // Two ports towards each destination, and none at all for who leaves by the transit.
    let scene = scene("permit any -> any all")
        .snats("snat any -> any to 203.0.113.7 ports 2000-2001 interface 5");
    let lab = scene.build();
    for from in ["100.64.0.1:1", "100.64.0.2:1"] {
        lab.forward(2, &udp(from, SERVER).frame());
    }
    for (sent, why) in [
        (udp(POD, SERVER), Reason::PortsExhausted),
        (udp(POD, "10.50.0.9:53"), Reason::NoSnatPolicy),
        (tcp(POD, "10.50.0.9:53", SYN), Reason::NoSnatPolicy),
    ] {
        let (reason, error) = lab.answered(2, &sent.frame());
        let seen = see(&error);
        assert_eq!((reason, seen.protocol, seen.flags, seen.code), (why, 1, 3, 13));
        assert_eq!((seen.from.as_str(), seen.to.as_str()), ("100.64.255.1:0", "100.64.0.7:0"));
    }
    // Whoever comes from the fabric learns nothing.
    assert_eq!(lab.dropped(4, &udp("10.50.0.9:53", SERVER).frame()), Reason::PortsExhausted);
    lab.assert_books();
}

#[test]
fn an_answer_never_carries_a_non_routable_source_out() {
    // From the internet towards a pod's own address: the RST would come from it.
    let scene = scene("reject any -> any all")
        .and("attach stray internet domain 1 on 5 address 203.0.113.1 routable sources 9.0.0.0/8");
    let lab = scene.and("route 100.64.0.0/16 on 2").build();
    let output = lab.send(5, &tcp("9.9.9.9:1000", "100.64.0.7:80", SYN).frame());
    assert_eq!(output.fate, Fate::Drop(Reason::RuleRejected));
    // Nothing was about to leak: whoever asks must not make an alarm.
    assert_eq!(lab.leaks_stopped(), 0);
}

#[test]
fn a_watched_rule_is_counted_and_does_not_decide() {
    let lab = Lab::with_rules(
        "deny red -> servers tcp/443 monitor
         permit red -> any tcp log",
    );
    lab.forward(2, &tcp(POD, SERVER, SYN).frame());
    assert_eq!(lab.tables().rule_count(1).hits, 1);
    assert_eq!(lab.tables().rule_count(2).hits, 1);
    let events = lab.tables().take_events();
    assert_eq!(events.len(), 1);
    assert_eq!((events[0].kind, events[0].rule, events[0].would_match), (event::START, 2, 1));
}

#[test]
fn a_source_outside_its_attachment_is_spoofed() {
    let lab = Lab::with_rules("permit any -> any all");
    let spoofed = tcp("10.9.9.9:1", SERVER, SYN).frame();
    assert_eq!(lab.dropped(2, &spoofed), Reason::SpoofedSource);
    assert_eq!(lab.dropped(9, &tcp(POD, SERVER, SYN).frame()), Reason::SpoofedSource);
    assert_eq!(lab.dropped(2, &tcp(POD, SERVER, SYN).vlan(7).frame()), Reason::SpoofedSource);
    lab.forward(2, &tcp(POD, SERVER, SYN).frame());
    // The address of a live session on the wrong attachment is no way into it.
    let scene = scene("permit any -> any all")
        .and("link 6\nattach other spoke domain 7 on 6 address 100.64.255.3 sources 100.64.0.0/16");
    let lab = scene.build();
    lab.forward(2, &tcp(POD, SERVER, SYN).frame());
    let fate = lab.send(6, &tcp(POD, SERVER, ACK).frame()).fate;
    assert_eq!(fate, Fate::Answered(Reason::NoSession));
}

#[test]
fn addresses_that_no_router_passes_on_are_dropped() {
    let scene = scene("permit any -> any all")
        .and("link 6\nattach all spoke domain 9 on 6 address 10.0.0.9 sources 0.0.0.0/0");
    let lab = scene.build();
    for from in ["0.0.0.0:1", "127.0.0.1:1", "169.254.1.1:1", "224.0.0.1:1", "255.255.255.255:1"] {
        assert_eq!(lab.dropped(6, &udp(from, SERVER).frame()), Reason::Martian, "{from}");
    }
    for to in ["0.0.0.0:1", "127.0.0.1:1", "169.254.169.254:80", "240.0.0.0:1", "255.255.255.254:1"]
    {
        assert_eq!(lab.dropped(2, &udp(POD, to).frame()), Reason::Martian, "{to}");
    }
    // What is for everybody is for the machine, if its kernel thinks so.
    for to in ["224.0.0.0:1", "239.255.255.255:1", "255.255.255.255:1"] {
        assert_eq!(lab.send(2, &udp(POD, to).frame()).fate, Fate::Pass, "{to}");
    }
}

#[test]
fn a_pod_of_another_domain_is_out_of_reach() {
    let lab = scene("permit any -> any all").and("route 100.64.9.0/24 on 3").build();
    let sent = udp(POD, "100.64.9.1:53").frame();
    assert_eq!(lab.dropped(2, &sent), Reason::NonRoutableDestination);
}

#[test]
fn segments_without_a_session_are_treated_as_configured() {
    const RESET: u64 = xdp_abi::config::MIDSTREAM_RESET;
    const DROP: u64 = xdp_abi::config::MIDSTREAM_DROP;
    const ADOPT: u64 = xdp_abi::config::MIDSTREAM_ADOPT;
    let untranslated = Scene::read(TWO_CLUSTERS).snats("permit any -> any all").and(
        "attach legacy connection domain 0 on 4 address 10.0.0.1 routable carries 100.64.0.0/16 routes 10.0.0.0/8",
    );
    let inside = tcp(POD, "10.1.1.1:80", ACK).frame();
    let outside = tcp("10.1.1.1:80", "203.0.113.7:40000", ACK).frame();
    for (mode, translated, expected) in [
        (RESET, true, "answered"),
        (DROP, true, "dropped"),
        (ADOPT, true, "dropped"),
        (RESET, false, "answered"),
        (DROP, false, "dropped"),
        (ADOPT, false, "forwarded"),
    ] {
        let built = if translated { scene("permit any -> any all") } else { untranslated.clone() };
        let lab = built.build();
        lab.tables().set_midstream(mode);
        let got = match lab.send(2, &inside).fate {
            Fate::Answered(Reason::NoSession) => "answered",
            Fate::Drop(Reason::NoSession) => "dropped",
            Fate::Transmit(..) => "forwarded",
            other => panic!("{other:?}"),
        };
        assert_eq!(got, expected, "mode {mode}, translated {translated}");
        // From outside never a word, and a RST is never answered.
        if mode != ADOPT || translated {
            assert_eq!(lab.dropped(4, &outside), Reason::NoSession);
        }
        let rst = tcp("100.64.0.9:1", "10.1.1.1:80", RST).frame();
        assert_eq!(lab.dropped(2, &rst), Reason::NoSession);
        lab.assert_books();
    }
}

#[test]
fn a_source_that_is_no_longer_carried_ends_its_session_and_is_no_leak() {
    let built = Scene::read(TWO_CLUSTERS).snats("permit any -> any all").and(
        "attach legacy connection domain 0 on 4 address 10.0.0.1 routable carries 100.64.0.0/16 routes 10.0.0.0/8",
    );
    for sent in [tcp(POD, "10.1.1.1:80", ACK), udp(POD, "10.1.1.1:80")] {
        let mut lab = built.build();
        lab.tables().set_midstream(xdp_abi::config::MIDSTREAM_ADOPT);
        lab.forward(2, &sent.frame());
        // A policy that says so comes a moment later.
        lab.gateway.tables.carry_nothing();
        let fate = lab.send(2, &sent.frame()).fate;
        let ended = matches!(
            fate,
            Fate::Drop(Reason::SnatWithdrawn) | Fate::Answered(Reason::SnatWithdrawn)
        );
        assert!(ended, "{fate:?} {sent:?}");
        assert_eq!((lab.leaks_stopped(), lab.sessions()), (0, 0));
        lab.assert_books();
    }
}

#[test]
fn an_adopted_connection_counts_as_established() {
    let built = Scene::read(TWO_CLUSTERS).snats("permit any -> any all").and(
        "attach legacy connection domain 0 on 4 address 10.0.0.1 routable carries 100.64.0.0/16 routes 10.0.0.0/8",
    );
    let mut lab = built.build();
    lab.tables().set_midstream(xdp_abi::config::MIDSTREAM_ADOPT);
    lab.forward(2, &tcp(POD, "10.1.1.1:80", ACK).frame());
    lab.pass_seconds(7_000);
    lab.sweep();
    assert_eq!(lab.sessions(), 1);
}

#[test]
fn the_record_of_a_flow_that_an_answer_revokes_is_of_the_flow() {
    let permitted = scene("permit red -> any tcp/443 log");
    let mut lab = permitted.build();
    let (_, out) = lab.forward(2, &tcp(POD, SERVER, SYN).frame());
    drop(lab.tables().take_events());
    lab.publish(&permitted.clone().rules("deny red -> any all log"));
    let answer = answer_to(&out, SYN | ACK).frame();
    assert_eq!(lab.dropped(5, &answer), Reason::RuleDenied);
    let events = lab.tables().take_events();
    let [end, deny] = &events[..] else { panic!("{events:?}") };
    assert_eq!((end.kind, end.reason, deny.kind), (event::END, event::ENDED_REVOKED, event::DENY));
    for event in [end, deny] {
        assert_eq!(event.source, [100, 64, 0, 7]);
        assert_eq!(event.destination, [198, 51, 100, 9]);
        assert_eq!((event.domain, event.destination_domain, event.ingress), (1, 0, 1));
    }
    assert_eq!(deny.source_identity, end.source_identity);
    assert_eq!((deny.packets, deny.tcp_flags), ([0, 1], [0, SYN | ACK]));
    assert_eq!(deny.bytes[0], 0);
}

#[test]
fn whoever_is_inside_is_told_of_a_flow_that_an_answer_ends() {
    let permitted = scene("permit red -> any tcp/443 log");
    type Change = fn(&mut Lab, &Scene);
    let rejected: Change = |lab, scene| lab.publish(&scene.clone().rules("reject red -> any all"));
    let withdrawn: Change =
        |lab, scene| lab.publish(&scene.clone().snats("snat any -> any to 203.0.113.8"));
    for (change, expected) in [(rejected, Reason::RuleRejected), (withdrawn, Reason::SnatWithdrawn)]
    {
        let mut lab = permitted.build();
        let (_, out) = lab.forward(2, &tcp(POD, SERVER, SYN).frame());
        lab.forward(5, &answer_to(&out, SYN | ACK).frame());
        change(&mut lab, &permitted);
        // Options and payload are left out; the number is the one that the receiver expects.
        let data = answer_to(&out, ACK).options(&[1; 8]).payload(b"a line").frame();
        let (reason, ifindex, frame) = lab.told(5, &data);
        assert_eq!((reason, ifindex), (expected, 2));
        let (seen, sent) = (see(&frame), see(&data));
        assert_eq!((seen.from.as_str(), seen.to.as_str()), (SERVER, POD));
        assert_eq!(seen.flags, RST | ACK);
        assert_eq!(seen.to_mac, see(&tcp(POD, SERVER, SYN).frame()).from_mac);
        let numbers = |frame: &[u8]| {
            let ip = ip_of(frame);
            let transport = usize::from(ip[0] & 15) * 4;
            ip[transport + 4..transport + 12].to_vec()
        };
        assert_eq!(numbers(&frame), numbers(&data), "{sent:?}");
        assert_eq!(ip_of(&frame).len(), 40);
        // Outside learns nothing, and a RST is told to nobody.
        assert_eq!(lab.dropped(5, &data), Reason::NoSession);
        lab.assert_books();
        let mut lab = permitted.build();
        let (_, out) = lab.forward(2, &tcp(POD, SERVER, SYN).frame());
        lab.forward(5, &answer_to(&out, SYN | ACK).frame());
        change(&mut lab, &permitted);
        assert_eq!(lab.dropped(5, &answer_to(&out, RST).frame()), expected);
        lab.assert_books();
    }
}

#[test]
fn packets_of_a_frame_that_is_many_are_counted_as_they_are_on_the_wire() {
    let lab = scene("permit red -> any all log").build();
    let (_, out) = lab.forward(2, &tcp(POD, SERVER, SYN).frame());
    lab.forward(5, &answer_to(&out, SYN | ACK).frame());
    let before = lab.tables().counters();
    let ack = tcp(POD, SERVER, ACK).payload(&[7; 4_000]).frame();
    let sent = xdp::memory::MemoryFrame {
        segments: 4,
        segment: 1_000,
        ..xdp::memory::MemoryFrame::new(sent_to(2, &ack))
    };
    let fate = lab.gateway.process(2, sent, lab.now).fate;
    assert!(matches!(fate, Fate::Transmit(..)), "{fate:?}");
    let counted = lab.tables().counters().received;
    let headers = ack.len() as u64 - 4_000;
    assert_eq!(counted.packets - before.received.packets, 4);
    assert_eq!(counted.bytes - before.received.bytes, 4_000 + 4 * headers);
    let count = (0..).find_map(|n| {
        let entry = lab.tables().slot(n)?;
        let forward = entry.load_meta().is(State::Live) && !entry.load_link().is_reply();
        forward.then(|| Count(entry.count().load()))
    });
    let first = tcp(POD, SERVER, SYN).ip().len() as u64;
    let count = count.unwrap();
    assert_eq!((count.packets(), count.bytes()), (5, first + 4_000 + 4 * (headers - 14)));
}

#[test]
fn a_refused_flow_is_recorded_with_where_it_would_have_gone() {
    let lab =
        scene("permit red -> any all log").snats("snat any -> any to 203.0.113.7 ports 2000-2000");
    let lab = lab.build();
    lab.forward(2, &udp(POD, SERVER).frame());
    drop(lab.tables().take_events());
    assert_eq!(lab.refused(2, &udp("100.64.0.8:40000", SERVER).frame()), Reason::PortsExhausted);
    let event = lab.tables().take_events()[0];
    assert_eq!(
        (event.kind, event.ingress, event.egress, event.snat_policy),
        (event::DENY, 1, 4, 1)
    );
    let lab = scene("deny red -> any all log").build();
    assert_eq!(lab.dropped(2, &udp(POD, SERVER).frame()), Reason::RuleDenied);
    let event = lab.tables().take_events()[0];
    assert_eq!((event.kind, event.egress, event.snat_policy), (event::DENY, 4, 0));
}

#[test]
fn nobody_speaks_with_an_address_of_the_machine() {
    // Its session would take what is answered to the machine's own connections.
    let own = TWO_CLUSTERS.replace("link 5", "link 5\nlocal 10.0.0.1\nlocal 100.64.255.1");
    let lab = Scene::read(&own).and("permit any -> any all").build();
    assert_eq!(lab.dropped(4, &tcp("10.0.0.1:2222", SERVER, SYN).frame()), Reason::Martian);
    assert_eq!(lab.dropped(5, &udp("10.0.0.1:53", "10.1.1.1:53").frame()), Reason::Martian);
    // In a pod network it may be a pod's, if the machine has it elsewhere; if it has it there, the
    // daemon gives it to no attachment.
    lab.forward(2, &udp("100.64.255.1:53", SERVER).frame());
    assert_eq!(lab.sessions(), 1);
}

#[test]
fn a_lease_of_an_address_is_the_machine_s_whatever_its_address_is() {
    let lab = scene("permit any -> any all").build();
    for (ifindex, offer) in [
        (4, udp("10.0.0.254:67", "10.0.0.77:68")),
        (4, udp("10.0.0.254:67", "10.0.0.77:68").vlan(9)),
        (2, udp("100.64.0.9:67", "100.64.255.9:68")),
        (4, udp("192.0.2.9:67", "192.0.2.77:68")),
    ] {
        assert_eq!(lab.send(ifindex, &offer.frame()).fate, Fate::Pass, "{offer:?}");
    }
    assert_eq!(lab.sessions(), 0);
    lab.forward(2, &udp("100.64.0.9:68", "198.51.100.9:67").frame());
}

#[test]
fn a_lease_that_is_renewed_through_the_gateway_is_its_session_s_by_every_way() {
    let mut lab = scene("permit any -> any all").build();
    let renewed = || udp("198.51.100.9:67", "10.1.1.7:68");
    let offered = || udp("198.51.100.9:67", "10.1.1.8:68");
    // Options and tags take the longer way by themselves.
    let by_every_way = |lab: &Lab, build: Build| {
        let plain = build.frame();
        let slowly = xdp::memory::MemoryFrame::new(sent_to(5, &plain));
        [
            lab.send(5, &plain).fate,
            lab.gateway.process_slowly(5, slowly, lab.now).fate,
            lab.send(5, &build.options(&[1; 4]).frame()).fate,
        ]
    };
    assert_eq!(by_every_way(&lab, renewed()), [Fate::Pass; 3], "nobody has asked yet");
    lab.forward(4, &udp("10.1.1.7:68", "198.51.100.9:67").frame());
    let sent = by_every_way(&lab, renewed());
    assert!(sent.iter().all(|fate| matches!(fate, Fate::Transmit(..))), "{sent:?}");
    assert_eq!(by_every_way(&lab, offered()), [Fate::Pass; 3], "to somebody else");
    lab.pass_seconds(3_600);
    assert_eq!(by_every_way(&lab, renewed()), [Fate::Pass; 3], "too late");
    lab.assert_books();
}

#[test]
fn fragments_of_an_answer_are_not_the_machine_s_though_it_has_the_address() {
    let scene = Scene::read(&TWO_CLUSTERS.replace("link 5", "link 5\nlocal 203.0.113.7"));
    let lab = scene.and("permit any -> any all").build();
    let (_, out) = lab.forward(2, &tcp(POD, SERVER, SYN).frame());
    let part = |build: Build, offset: [u8; 2]| {
        let mut frame = build.receiver(mac_of(5)).frame();
        frame[14 + 6..14 + 8].copy_from_slice(&offset);
        repair(&mut frame[14..]);
        frame
    };
    let answer = || answer_to(&out, ACK).payload(&[7; 16]);
    assert_eq!(lab.dropped(5, &part(answer(), [0x20, 0])), Reason::Fragment);
    // What follows it is no packet without it; and what is the machine's own passes.
    assert_eq!(lab.send(5, &part(answer(), [0, 3])).fate, Fate::Pass);
    let own = udp("198.51.100.9:53", "203.0.113.7:999");
    assert_eq!(lab.send(5, &part(own, [0x20, 0])).fate, Fate::Pass);
    lab.assert_books();
}

#[test]
fn the_kernel_tells_nobody_to_go_around_the_gateway() {
    let lab = scene("permit any -> any all").build();
    let about = udp("10.1.0.9:53", "10.2.0.9:53").ip();
    let redirect = icmp_error(5, 1, 0, "10.0.0.1", "10.1.0.9", &about);
    let other = icmp_error(3, 1, 0, "10.0.0.1", "10.1.0.9", &about);
    for (frame, dropped) in [(redirect, true), (other, false)] {
        let mut frame = xdp::memory::MemoryFrame::new(frame);
        let egress = lab.gateway.process_egress(4, &mut frame, None, lab.now);
        assert_eq!(matches!(egress, xdp::egress::Egress::Drop(_)), dropped, "{egress:?}");
    }
}

#[test]
fn pings_with_the_identifier_zero_are_questions_one_way_and_answers_the_other() {
    // Translated: an answer that nobody asked for is no question.
    let lab = scene("permit red -> any all").build();
    let (_, out) = lab.forward(2, &echo("100.64.0.7:0", "198.51.100.9").frame());
    let answer = answer_to(&echo("198.51.100.9:0", "100.64.0.7").frame(), 0).receiver(mac_of(2));
    assert_eq!(see(&answer.frame()).flags, 0, "an echo reply");
    assert_eq!(lab.dropped(2, &answer.frame()), Reason::NoSession);
    lab.forward(5, &answer_to(&out, 0).frame());
    // Untranslated: nobody behind may ask because he was asked.
    let rules = "identity here 0 10.1.0.0/16\npermit here -> any all";
    let lab = scene(rules).build();
    let asked = echo("10.1.0.1:0", "198.51.100.9").frame();
    lab.forward(4, &asked);
    let back = echo("198.51.100.9:0", "10.1.0.1").frame();
    assert_eq!(lab.dropped(5, &back), Reason::NoSession);
    lab.forward(5, &answer_to(&asked, 0).receiver(mac_of(5)).frame());
    lab.forward(4, &asked);
    assert_eq!(lab.sessions(), 1);
    lab.assert_books();
}

#[test]
fn ports_of_a_snat_policy_are_not_matched_by_icmp() {
    let snats =
        "snat any -> any to 203.0.113.9 destination-port 0-65534\nsnat any -> any to 203.0.113.7";
    let lab = scene("permit any -> any all").snats(snats).build();
    let outside = |sent: &Build| see(&lab.forward(2, &sent.frame()).1).from;
    assert!(outside(&udp(POD, SERVER)).starts_with("203.0.113.9:"));
    assert!(outside(&echo("100.64.0.7:40077", "198.51.100.9")).starts_with("203.0.113.7:"));
}

#[test]
fn a_revoked_flow_ends_with_its_next_packet() {
    let permitted = scene("permit red -> any tcp/443 log");
    for next in ["deny red -> any all log", "reject red -> any all log"] {
        let mut lab = permitted.build();
        let (_, out) = lab.forward(2, &tcp(POD, SERVER, SYN).frame());
        lab.forward(5, &answer_to(&out, SYN | ACK).frame());
        lab.forward(2, &tcp(POD, SERVER, ACK).frame());
        drop(lab.tables().take_events());
        lab.publish(&permitted.clone().rules(next));
        let data = tcp(POD, SERVER, ACK).frame();
        if next.starts_with("deny") {
            assert_eq!(lab.dropped(2, &data), Reason::RuleDenied);
        } else {
            assert_eq!(lab.answered(2, &data).0, Reason::RuleRejected);
        }
        assert_eq!(lab.sessions(), 0);
        let events = lab.tables().take_events();
        assert!(events.iter().any(|e| e.kind == event::END
            && e.reason == event::ENDED_REVOKED
            && e.packets == [2, 1]));
        lab.send(5, &answer_to(&out, ACK).frame());
        assert_eq!(lab.sessions(), 0, "an answer does not bring it back");
        lab.assert_books();
    }
}

#[test]
fn an_answer_is_judged_again_by_the_first_packet_s_direction() {
    let permitted = scene("permit red -> any tcp/443");
    let mut lab = permitted.build();
    let (_, out) = lab.forward(2, &tcp(POD, SERVER, SYN).frame());
    lab.publish(&permitted);
    lab.forward(5, &answer_to(&out, SYN | ACK).frame());
    assert_eq!(lab.tables().counters().judged_again, 1);
    lab.forward(2, &tcp(POD, SERVER, ACK).frame());
    assert_eq!(lab.tables().counters().judged_again, 1, "both halves are current");
    lab.publish(&permitted.clone().rules("deny any -> any all"));
    assert_eq!(lab.dropped(5, &answer_to(&out, ACK).frame()), Reason::RuleDenied);
    assert_eq!(lab.sessions(), 0);
}

#[test]
fn a_live_flow_keeps_its_port_through_a_new_policy_that_permits_it() {
    let permitted = scene("permit red -> any tcp/443");
    let mut lab = permitted.build();
    let (_, before) = lab.forward(2, &tcp(POD, SERVER, SYN).frame());
    for _ in 0..3 {
        lab.publish(&permitted);
        let (_, after) = lab.forward(2, &tcp(POD, SERVER, ACK).frame());
        assert_eq!(see(&before).from, see(&after).from);
    }
    assert_eq!(lab.tables().counters().judged_again, 3);
}

#[test]
fn a_rule_counts_a_flow_once_however_often_it_is_judged() {
    let watched = "deny red -> any tcp/443 monitor\n";
    let permitted = scene(&format!("{watched}permit red -> any tcp/443"));
    let mut lab = permitted.build();
    let hits = |lab: &Lab| [0, 1, 2].map(|counter| lab.tables().rule_count(counter).hits);
    let (_, out) = lab.forward(2, &tcp(POD, SERVER, SYN).frame());
    assert_eq!(hits(&lab), [0, 1, 1]);
    for _ in 0..2 {
        lab.publish(&permitted);
        lab.forward(5, &answer_to(&out, SYN | ACK).frame());
    }
    assert_eq!((hits(&lab), lab.tables().counters().judged_again), ([0, 1, 1], 2));
    // The default action permits it now, once.
    for _ in 0..2 {
        lab.publish(&permitted.clone().rules("").and("default permit"));
        lab.forward(2, &tcp(POD, SERVER, ACK).frame());
    }
    assert_eq!(hits(&lab), [1, 1, 1]);
    // What is refused is counted by packets, those of a flow that had been permitted too.
    lab.publish(&permitted.clone().rules("deny red -> any tcp/443"));
    assert_eq!(lab.dropped(2, &tcp(POD, SERVER, ACK).frame()), Reason::RuleDenied);
    assert_eq!(lab.dropped(2, &tcp(POD, SERVER, SYN).frame()), Reason::RuleDenied);
    assert_eq!(hits(&lab), [1, 3, 1]);
    // And a new flow is counted anew.
    lab.publish(&permitted);
    lab.forward(2, &tcp(POD, SERVER, SYN).frame());
    assert_eq!(hits(&lab), [1, 4, 2]);
}

#[test]
fn an_identity_change_touches_only_the_flows_of_that_address() {
    let mut lab = scene("permit red -> any tcp/443").build();
    let other = "100.64.0.8:40000";
    for pod in [POD, other] {
        lab.forward(2, &tcp(pod, SERVER, SYN).frame());
    }
    // The address is given to somebody whom nobody knows.
    lab.gateway.tables.amend(&[(1, v4("100.64.0.7"))], |policy| {
        policy.hosts.insert((1, v4("100.64.0.7")), Default::default());
    });
    assert_eq!(lab.dropped(2, &tcp(POD, SERVER, ACK).frame()), Reason::DefaultDenied);
    lab.forward(2, &tcp(other, SERVER, ACK).frame());
    assert_eq!(lab.tables().counters().judged_again, 1, "the other flow was not looked at");
    assert_eq!(lab.sessions(), 1);
}

#[test]
fn an_identity_change_in_one_cluster_leaves_the_same_address_of_another_alone() {
    let mut lab = scene("permit any -> any tcp/443").build();
    lab.forward(2, &tcp(POD, SERVER, SYN).frame());
    lab.forward(3, &tcp(POD, SERVER, SYN).frame());
    lab.gateway.tables.amend(&[(2, v4("100.64.0.7"))], |policy| {
        policy.hosts.insert((2, v4("100.64.0.7")), Default::default());
    });
    lab.forward(2, &tcp(POD, SERVER, ACK).frame());
    assert_eq!(lab.tables().counters().judged_again, 0);
    lab.send(3, &tcp(POD, SERVER, ACK).frame());
    assert_eq!(lab.tables().counters().judged_again, 1);
}

#[test]
fn an_identity_change_of_a_destination_in_another_domain_reaches_its_flows() {
    let peer = "10.50.0.9:443";
    let mut lab = scene("permit red -> peers tcp/443")
        .and(
            "link 6\nattach peer spoke domain 7 on 6 address 10.50.0.1 sources 10.50.0.0/24 \
             routes 10.50.0.0/24\nroute 10.50.0.0/24 on 6 via 10.50.0.254",
        )
        .and("identity peers 7 10.50.0.0/24")
        .build();
    let (_, out) = lab.forward(2, &tcp(POD, peer, SYN).frame());
    let answer = answer_to(&out, SYN | ACK).frame();
    lab.forward(6, &answer);
    // Whoever has that address in the domain of the pod is somebody else.
    for domain in [1, 7] {
        lab.gateway.tables.amend(&[(domain, v4("10.50.0.9"))], |policy| {
            policy.hosts.insert((domain, v4("10.50.0.9")), Default::default());
        });
        if domain == 1 {
            lab.forward(2, &tcp(POD, peer, ACK).frame());
        }
    }
    assert_eq!(lab.dropped(6, &answer), Reason::DefaultDenied);
    assert_eq!((lab.sessions(), lab.tables().counters().judged_again), (0, 1));
}

#[test]
fn the_record_of_a_flow_that_was_judged_again_names_the_rule_and_the_parties_of_now() {
    let first = scene("permit red -> any tcp/443 log");
    let mut lab = first.build();
    let (_, out) = lab.forward(2, &tcp(POD, SERVER, SYN).frame());
    let before = lab.tables().take_events();
    lab.publish(&first.clone().rules(
        "permit blue -> any all log\npermit red -> any udp/53 log\npermit red -> any tcp/443 log",
    ));
    lab.forward(2, &tcp(POD, SERVER, ACK).frame());
    lab.send(5, &answer_to(&out, RST).frame());
    lab.publish(&first.clone().rules("deny any -> any all"));
    lab.send(2, &tcp(POD, SERVER, ACK).frame());
    let end = lab.tables().take_events().into_iter().find(|e| e.kind == event::END).unwrap();
    assert_eq!((before[0].rule, end.rule), (1, 3));
    // What was seen each way, also of packets on the shortest way.
    assert_eq!(end.tcp_flags, [SYN | ACK, RST]);
}

#[test]
fn both_records_of_a_flow_tell_its_rule_s_mark() {
    let marked = scene("permit red -> any all log mark 7");
    let mut lab = marked.build();
    lab.forward(2, &udp(POD, SERVER).frame());
    lab.publish(&marked.clone().rules("deny red -> any all"));
    assert_eq!(lab.dropped(2, &udp(POD, SERVER).frame()), Reason::RuleDenied);
    let told = lab.tables().take_events();
    let told: Vec<_> = told.iter().map(|event| (event.kind, event.mark)).collect();
    assert_eq!(told, [(event::START, 7), (event::END, 7)]);
}

#[test]
fn a_refusal_tells_the_rule_that_would_have_matched() {
    let lab = scene("permit red -> any tcp/443 monitor\ndeny any -> any all log").build();
    assert_eq!(lab.dropped(2, &tcp(POD, SERVER, SYN).frame()), Reason::RuleDenied);
    let event = lab.tables().take_events()[0];
    assert_eq!((event.kind, event.rule, event.would_match), (event::DENY, 2, 1));
}

#[test]
fn refusals_that_are_held_back_are_counted_and_told_later() {
    let mut lab = scene("deny any -> any all log").build();
    lab.tables().set_rates(1000, 2);
    let refused = |lab: &Lab, times: u32| {
        for _ in 0..times {
            assert_eq!(lab.dropped(2, &tcp(POD, SERVER, SYN).frame()), Reason::RuleDenied);
        }
        let told = lab.tables().take_events();
        let suppressed = lab.tables().counters().events_suppressed;
        (told.iter().map(|event| event.suppressed).collect::<Vec<_>>(), suppressed)
    };
    assert_eq!(refused(&lab, 2), (vec![0, 0], 0));
    assert_eq!(refused(&lab, 5), (vec![], 5));
    lab.pass_seconds(1);
    assert_eq!(refused(&lab, 3), (vec![5, 0], 6));
}

#[test]
fn no_pod_of_one_domain_appears_untranslated_in_another() {
    let lab = scene("permit any -> any all")
        .and(
            "link 6\nattach peer spoke domain 7 on 6 address 10.50.0.1 sources 10.50.0.0/24 \
             routes 10.50.0.0/24\nroute 10.50.0.0/24 on 6 via 10.50.0.254",
        )
        .snats("snat blue -> any to 203.0.113.7")
        .build();
    assert_eq!(lab.refused(2, &udp(POD, "10.50.0.9:53").frame()), Reason::NoSnatPolicy);
    assert_eq!(lab.sessions(), 0);
}

#[test]
fn a_session_ends_when_its_outside_address_is_withdrawn() {
    let first = scene("permit red -> any all log");
    let mut lab = first.build();
    let (_, out) = lab.forward(2, &tcp(POD, SERVER, SYN).frame());
    lab.forward(2, &udp(POD, SERVER).frame());
    drop(lab.tables().take_events());
    let second = first.clone().snats("snat red -> any to 203.0.113.8");
    lab.publish(&second);
    assert_eq!(lab.answered(2, &tcp(POD, SERVER, ACK).frame()).0, Reason::SnatWithdrawn);
    assert_eq!(lab.dropped(2, &udp(POD, SERVER).frame()), Reason::SnatWithdrawn);
    assert_eq!(lab.sessions(), 0);
    let ends = lab.tables().take_events();
    assert_eq!(ends.iter().filter(|e| e.reason == event::ENDED_WITHDRAWN).count(), 2);
    assert_eq!(lab.dropped(5, &answer_to(&out, ACK).frame()), Reason::NoSession);
    let (_, renewed) = lab.forward(2, &tcp(POD, SERVER, SYN).frame());
    assert_eq!(see(&renewed).from, "203.0.113.8:40000");
    lab.assert_books();
}

#[test]
fn without_a_policy_nothing_is_let_through() {
    let mut memory = xdp::memory::Memory::new(Default::default(), 1);
    memory.set_attachment(
        1,
        xdp_abi::forward::Attachment { flags: xdp_abi::forward::ATTACHED, ..Default::default() },
    );
    memory.add_source(xdp_abi::forward::port(2, 0), prefix("0.0.0.0/0"), 1);
    let gateway = xdp::memory::Gateway { tables: memory, hook: xdp::pipeline::Hook::Xdp };
    let lab = Lab { gateway, now: START };
    assert_eq!(lab.dropped(2, &tcp(POD, SERVER, SYN).frame()), Reason::NoPolicy);
}

#[test]
fn each_class_lasts_its_time_and_not_longer() {
    type Opener = fn(&Lab);
    let open: Opener = |lab| {
        lab.forward(2, &tcp(POD, SERVER, SYN).frame());
    };
    let established: Opener = |lab| {
        let (_, out) = lab.forward(2, &tcp(POD, SERVER, SYN).frame());
        lab.forward(5, &answer_to(&out, SYN | ACK).frame());
    };
    let half_closed: Opener = |lab| {
        let (_, out) = lab.forward(2, &tcp(POD, SERVER, SYN).frame());
        lab.forward(5, &answer_to(&out, SYN | ACK).frame());
        lab.forward(2, &tcp(POD, SERVER, FIN | ACK).frame());
    };
    let datagram: Opener = |lab| {
        lab.forward(2, &udp(POD, SERVER).frame());
    };
    let query: Opener = |lab| {
        lab.forward(2, &echo("100.64.0.7:7", "198.51.100.9").frame());
    };
    for (class, opener, seconds) in [
        (Class::TcpOpening, open, 240),
        (Class::TcpEstablished, established, 7_440),
        (Class::TcpClosing, half_closed, 240),
        (Class::Udp, datagram, 300),
        (Class::Icmp, query, 60),
    ] {
        let mut lab = scene("permit any -> any all").build();
        opener(&lab);
        lab.pass_seconds(seconds);
        lab.sweep();
        assert_eq!(lab.sessions(), 1, "{class:?} at its last second");
        lab.now = lab.now.wrapping_add(1);
        lab.sweep();
        assert_eq!(lab.sessions(), 0, "{class:?} one tick later");
    }
}

#[test]
fn egress_lets_nothing_out_that_must_not_and_leaves_the_machine_s_own_alone() {
    use xdp::{egress::Egress, memory::MemoryFrame};
    let lab = scene("permit any -> any all").build();
    for (ifindex, sent, expected) in [
        (5, udp("100.64.0.7:1", SERVER), Egress::Drop(Reason::Leak)),
        (4, udp("100.64.0.7:1", SERVER), Egress::Drop(Reason::Leak)),
        (5, udp("100.127.255.255:1", SERVER), Egress::Drop(Reason::Leak)),
        (5, udp("100.128.0.0:1", SERVER), Egress::Untouched),
        (5, udp("203.0.113.1:1", SERVER), Egress::Untouched),
        (2, udp("100.64.255.1:1", "100.64.0.7:1"), Egress::Untouched),
        (2, udp("100.64.255.1:1", "224.0.0.251:5353"), Egress::Untouched),
        (4, udp("100.64.255.1:1", "224.0.0.251:5353"), Egress::Drop(Reason::Leak)),
        (2, udp("100.64.255.1:1", SERVER), Egress::Drop(Reason::Leak)),
    ] {
        let mut frame = MemoryFrame::new(sent.frame());
        let got = lab.gateway.process_egress(ifindex, &mut frame, None, lab.now);
        assert_eq!(got, expected, "{ifindex} {sent:?}");
        assert_eq!(frame.bytes, sent.frame());
    }
    lab.assert_books();
}

#[test]
fn a_punted_packet_whose_session_rests_stays_here() {
    use xdp::{egress::Egress, memory::MemoryFrame};
    let mut lab =
        scene("permit red -> any all").and("neighbour 203.0.113.254 on 5 unresolved").build();
    let sent = udp(POD, SERVER);
    let Fate::Punt(number) = lab.send(2, &sent.clone().frame()).fate else { panic!("punted") };
    let leaves = |lab: &Lab| {
        let mut frame = MemoryFrame::new(sent.clone().ttl(63).sender(mac_of(5)).frame());
        lab.gateway.process_egress(5, &mut frame, Some(number), lab.now)
    };
    lab.pass_seconds(300);
    lab.sweep();
    assert_eq!(leaves(&lab), Egress::Translated, "its last second");
    lab.pass_seconds(1);
    lab.sweep();
    assert_eq!(leaves(&lab), Egress::Drop(Reason::NoSession), "only its port is kept");
}

#[test]
fn an_outside_address_that_nobody_may_see_lets_no_packet_out() {
    for (outside, leaks) in [("100.127.255.255", true), ("100.128.0.0", false)] {
        let lab =
            scene("permit red -> any all").snats(&format!("snat red -> any to {outside}")).build();
        // The first packet of a flow, and the next one.
        for _ in 0..2 {
            for sent in
                [udp(POD, SERVER), tcp(POD, SERVER, SYN), echo("100.64.0.7:7", "198.51.100.9")]
            {
                let fate = lab.send(2, &sent.frame()).fate;
                if leaks {
                    assert_eq!(fate, Fate::Drop(Reason::Leak), "{sent:?}");
                } else {
                    assert!(matches!(fate, Fate::Transmit(..)), "{fate:?} {sent:?}");
                }
            }
        }
        assert_eq!(lab.leaks_stopped(), if leaks { 6 } else { 0 });
        lab.assert_books();
    }
}

#[test]
fn what_only_the_kernel_can_route_is_translated_when_it_leaves() {
    use xdp::{egress::Egress, memory::MemoryFrame};
    let mut lab =
        scene("permit red -> any all").and("neighbour 203.0.113.254 on 5 unresolved").build();
    let sent = tcp(POD, SERVER, SYN);
    let output = lab.send(2, &sent.clone().frame());
    let Fate::Punt(number) = output.fate else { panic!("{:?}", output.fate) };
    assert_eq!(output.frame.bytes, sent_to(2, &sent.clone().frame()), "untouched");
    // The kernel takes one off the TTL and writes its own Ethernet header.
    let mut frame = MemoryFrame::new(sent.clone().ttl(63).sender(mac_of(5)).frame());
    assert_eq!(
        lab.gateway.process_egress(5, &mut frame, Some(number), lab.now),
        Egress::Translated
    );
    assert_sound(&frame.bytes);
    let seen = see(&frame.bytes);
    assert_eq!((seen.from.as_str(), seen.ttl, seen.from_mac), ("203.0.113.7:40000", 63, mac_of(5)));
    // The answer needs no neighbour.
    let (egress, back) = lab.forward(5, &answer_to(&frame.bytes, SYN | ACK).frame());
    assert_eq!((egress, see(&back).to.as_str()), (2, POD));
    // Once the neighbour is known, packets take the short way again.
    lab.gateway.tables.set_neighbour(5, v4("203.0.113.254"), Some([2, 7, 7, 7, 7, 7]));
    let (_, out) = lab.forward(2, &tcp(POD, SERVER, ACK).frame());
    assert_eq!(see(&out).to_mac, [2, 7, 7, 7, 7, 7]);
    // A punted packet whose session is gone stays here.
    lab.pass_seconds(8_000);
    let mut late = MemoryFrame::new(sent.frame());
    let gone = lab.gateway.process_egress(5, &mut late, Some(number), lab.now);
    assert_eq!(gone, Egress::Drop(Reason::NoSession));
    lab.sweep();
    lab.assert_books();
}

#[test]
fn a_next_hop_that_moves_is_followed() {
    let mut lab = scene("permit red -> any all").build();
    lab.forward(2, &tcp(POD, SERVER, SYN).frame());
    lab.gateway.tables.set_neighbour(5, v4("203.0.113.254"), Some([2, 7, 7, 7, 7, 7]));
    lab.pass_seconds(2);
    let (_, out) = lab.forward(2, &tcp(POD, SERVER, ACK).frame());
    assert_eq!(see(&out).to_mac, [2, 7, 7, 7, 7, 7]);
}

#[test]
fn a_frame_for_another_machine_is_left_to_the_kernel() {
    let scene = "
        link 1
        link 2 vlan 7 of 1
        link 5
        attach red spoke domain 1 on 2 address 100.64.255.1 sources 100.64.0.0/16
        attach net internet domain 0 on 5 address 203.0.113.1 routable sources 0.0.0.0/0 routes 0.0.0.0/0
        route 0.0.0.0/0 on 5 via 203.0.113.254
        identity red 1 100.64.0.0/16
        snat red -> any to 203.0.113.7
        permit any -> any all
    ";
    let other = [0x02, 9, 9, 9, 9, 9];
    let inside = |to| udp("100.64.0.7:40000", "198.51.100.9:53").vlan(7).receiver(to);
    let outside = |to| udp("198.51.100.9:53", "203.0.113.1:99").receiver(to);
    let fragment = |mut frame: Vec<u8>| {
        frame[14 + 4 + 6] = 0x20;
        repair(&mut frame[14 + 4..]);
        frame
    };
    let lab = Scene::read(scene).build();
    assert_eq!(lab.send(1, &inside(other).frame()).fate, Fate::Pass);
    assert_eq!(lab.send(5, &outside(other).frame()).fate, Fate::Pass);
    assert_eq!(lab.send(1, &fragment(inside(other).frame())).fate, Fate::Pass);
    assert_eq!(lab.sessions(), 0, "nothing was opened for it");
    assert_eq!(lab.tables().counters().passed.packets, 3);
    // One for us is ours, and a fault of it is counted.
    lab.forward(1, &inside(mac_of(1)).frame());
    assert_eq!(lab.dropped(1, &fragment(inside(mac_of(1)).frame())), Reason::Fragment);
    lab.assert_books();

    // A VLAN device may have an address of its own, beside that of the interface.
    let own = [0x02, 7, 7, 7, 7, 7];
    let mut lab = Scene::read(scene).build();
    let device = lab.tables().link(2).unwrap();
    lab.gateway.tables.set_link(2, LinkInfo { mac: own, ..device });
    for (to, ours) in [(own, true), (mac_of(1), true), (other, false)] {
        let fate = lab.send(1, &inside(to).frame()).fate;
        assert_eq!(matches!(fate, Fate::Transmit(..)), ours, "{to:?}: {fate:?}");
    }
    // Nor one whose session lives.
    let lab = Scene::read(scene).build();
    let (_, out) = lab.forward(1, &inside(mac_of(1)).frame());
    for to in [other, [0x01, 0, 0x5e, 0, 0, 1], [0xff; 6]] {
        assert_eq!(lab.send(5, &answer_to(&out, 0).receiver(to).frame()).fate, Fate::Pass);
    }
    lab.forward(5, &answer_to(&out, 0).frame());
    // Without addresses there is nobody else.
    let mut lab = Scene::read(scene).build();
    for ifindex in [1, 2] {
        let link = lab.tables().link(ifindex).unwrap();
        lab.gateway.tables.set_link(ifindex, LinkInfo { mac: [0; 6], ..link });
    }
    lab.forward(1, &inside(other).frame());
}
