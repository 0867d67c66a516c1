//! ICMP errors about sessions, and errors that the gateway itself sends.
#![allow(clippy::wildcard_enum_match_arm, reason = "anything else fails the test")]

mod scene;

use pnet::packet::{Packet, icmp::IcmpPacket, ipv4, ipv4::Ipv4Packet};
use scene::*;
use xdp::pipeline::Fate;
use xdp_abi::reason::Reason;

const POD: &str = "100.64.0.7:40000";
const SERVER: &str = "198.51.100.9:443";
const ROUTER: &str = "192.0.2.77";

fn permissive() -> Lab {
    Lab::with_rules("permit any -> any all")
}

/// The message behind the IP header.
fn message(frame: &[u8]) -> Vec<u8> {
    Ipv4Packet::new(ip_of(frame)).unwrap().payload().to_vec()
}

fn flows() -> Vec<Build> {
    vec![
        tcp(POD, SERVER, SYN),
        udp(POD, "198.51.100.9:53"),
        udp(POD, "198.51.100.9:53").no_checksum(),
        echo("100.64.0.7:40077", "198.51.100.9"),
        tcp(POD, "198.51.100.9:80", SYN).options(&[1; 12]),
    ]
}

#[test]
fn an_error_from_outside_reaches_the_pod_about_the_packet_that_it_sent() {
    for (kind, code, mtu) in [(3, 4, 1400), (11, 0, 0)] {
        for sent in flows() {
            let lab = permissive();
            // The port is taken by another pod first, so that it has to change.
            let mut other = sent.clone();
            other.from.0 = "100.64.0.99".parse().unwrap();
            lab.forward(2, &other.frame());
            let (_, out) = lab.forward(2, &sent.frame());
            let error = icmp_error(kind, code, mtu, ROUTER, "203.0.113.7", ip_of(&out));
            assert_sound(&error);
            let (egress, inside) = lab.forward(5, &error);
            assert_eq!(egress, 2);
            let seen = see(&inside);
            assert_eq!((seen.from.as_str(), seen.to.as_str()), ("192.0.2.77:0", "100.64.0.7:0"));
            assert_eq!((seen.flags, seen.code), (kind, code));
            // Byte for byte what an error about the original packet would say, but for the TTL
            // that the router saw.
            let mut original = sent.ip();
            original[8] = 63;
            repair(&mut original);
            let expected = icmp_error(kind, code, mtu, ROUTER, "100.64.0.7", &original);
            assert_eq!(message(&inside), message(&expected), "{sent:?}");
        }
    }
}

#[test]
fn a_quote_of_eight_bytes_is_enough() {
    for sent in flows() {
        let lab = permissive();
        let (_, out) = lab.forward(2, &sent.frame());
        let header = (ip_of(&out)[0] & 15) as usize * 4;
        let error = icmp_error(11, 0, 0, ROUTER, "203.0.113.7", &ip_of(&out)[..header + 8]);
        let (_, inside) = lab.forward(5, &error);
        let mut original = sent.ip();
        original[8] = 63;
        repair(&mut original);
        let expected = icmp_error(11, 0, 0, ROUTER, "100.64.0.7", &original[..header + 8]);
        assert_eq!(message(&inside), message(&expected), "{sent:?}");
        // One byte less is not.
        let short = icmp_error(11, 0, 0, ROUTER, "203.0.113.7", &ip_of(&out)[..header + 7]);
        assert_eq!(lab.dropped(5, &short), Reason::Truncated);
    }
}

#[test]
fn bytes_behind_the_quote_are_left_alone() {
    let lab = permissive();
    let (_, out) = lab.forward(2, &udp(POD, "198.51.100.9:53").payload(b"").frame());
    // RFC 4884: the quote is padded to 128 bytes, extensions follow.
    let mut quote = ip_of(&out).to_vec();
    quote.resize(128, 0);
    quote.extend([0x20, 0, 0x12, 0x34, 0, 8, 1, 1, 0xde, 0xad, 0xbe, 0xef]);
    let (_, inside) = lab.forward(5, &icmp_error(11, 0, 0, ROUTER, "203.0.113.7", &quote));
    assert_eq!(message(&inside)[8 + 28..], quote[28..]);
}

#[test]
fn an_error_from_inside_looks_outside_as_the_session_does() {
    for kind in [(3, 4, 1300), (11, 0, 0)] {
        for sent in flows() {
            let lab = permissive();
            let (_, out) = lab.forward(2, &sent.frame());
            let reply = answer_to(&out, SYN | ACK).frame();
            let (_, inside) = lab.forward(5, &reply);
            // A router of the pod network speaks, about the answer as it came in.
            let error =
                icmp_error(kind.0, kind.1, kind.2, "100.64.9.9", "198.51.100.9", ip_of(&inside));
            let (egress, outside) = lab.forward(2, &error);
            assert_eq!(egress, 5);
            assert_eq!(see(&outside).from, "203.0.113.7:0", "no inside address leaves");
            let mut original = ip_of(&reply).to_vec();
            original[8] = 63;
            repair(&mut original);
            let expected =
                icmp_error(kind.0, kind.1, kind.2, "203.0.113.7", "198.51.100.9", &original);
            assert_eq!(message(&outside), message(&expected), "{sent:?}");
        }
    }
}

#[test]
fn an_error_goes_to_whoever_sent_what_it_quotes_and_to_nobody_else() {
    let lab = permissive();
    let (_, out) = lab.forward(2, &udp(POD, "198.51.100.9:53").frame());
    let (_, inside) = lab.forward(5, &udp("198.51.100.9:53", &see(&out).from).frame());
    for elsewhere in ["198.51.100.10", "10.0.0.9", "127.0.0.1", "100.64.0.9"] {
        let error = icmp_error(3, 4, 1400, "100.64.0.7", elsewhere, ip_of(&inside));
        assert_eq!(lab.dropped(2, &error), Reason::NoSession, "{elsewhere}");
        let error = icmp_error(3, 4, 1400, ROUTER, elsewhere, ip_of(&out));
        assert_eq!(lab.dropped(5, &error), Reason::NoSession, "{elsewhere}");
    }
    // Nor does it come from nowhere, nor go on by a link that does not take it.
    let error = icmp_error(3, 4, 1400, "127.0.0.1", "203.0.113.7", ip_of(&out));
    assert_eq!(lab.dropped(5, &error), Reason::Martian);
    let mut long = ip_of(&out).to_vec();
    long.resize(1_472, 0x5a);
    lab.forward(5, &icmp_error(3, 4, 1400, ROUTER, "203.0.113.7", &long));
    long.push(0x5a);
    let error = icmp_error(3, 4, 1400, ROUTER, "203.0.113.7", &long);
    assert_eq!(lab.dropped(5, &error), Reason::TooBig);
    lab.assert_books();
}

#[test]
fn a_node_speaks_about_its_pod_s_session_and_a_router_of_the_fabric_about_any() {
    let nodes = "attach nodes spoke domain 0 on 2 address 10.1.0.1 routable sources 10.1.0.0/16";
    let arm = "attach arm internet domain 3 on 2 address 10.1.0.1 routable sources 172.16.0.0/12";
    let scene = Scene::read(TWO_CLUSTERS).and(nodes).and(arm);
    let lab = scene.and("permit any -> any all").build();
    let (_, out) = lab.forward(2, &udp(POD, "198.51.100.9:53").frame());
    let (_, inside) = lab.forward(5, &udp("198.51.100.9:53", &see(&out).from).frame());
    let error = |from| icmp_error(3, 4, 1400, from, "198.51.100.9", ip_of(&inside));
    let (egress, outside) = lab.forward(2, &error("10.1.0.9"));
    assert_eq!(egress, 5);
    assert_eq!(see(&outside).from, "203.0.113.7:0", "as the session, not as the node");
    // Whoever is outside has nothing to say of what is going on inside.
    assert_eq!(lab.dropped(2, &error("172.16.0.9")), Reason::NoSession);
    // One arm: the router of the fabric is behind another attachment than the server.
    let scene = Scene::read(&TWO_CLUSTERS.replace("on 4 address", "on 5 address"));
    let lab = scene.and("permit any -> any all").build();
    let (_, out) = lab.forward(2, &udp(POD, "198.51.100.9:53").frame());
    let error = icmp_error(3, 4, 1400, "10.0.0.9", "203.0.113.7", ip_of(&out));
    assert_eq!(lab.forward(5, &error).0, 2);
}

#[test]
fn an_error_by_somebody_whom_nobody_may_see_is_no_leak_that_was_stopped() {
    let plain = "attach nodes spoke domain 1 on 2 address 10.1.0.1 sources 10.1.0.0/16";
    let scene = Scene::read(TWO_CLUSTERS).and(plain).snats("").and("permit any -> any all");
    let lab = scene.build();
    let (_, out) = lab.forward(2, &udp("10.1.0.9:40000", "198.51.100.9:53").frame());
    let (_, inside) = lab.forward(5, &udp("198.51.100.9:53", &see(&out).from).frame());
    let error = icmp_error(11, 0, 0, "100.64.0.9", "198.51.100.9", ip_of(&inside));
    assert_eq!(lab.dropped(2, &error), Reason::NoSnatPolicy);
    assert_eq!(lab.leaks_stopped(), 0);
}

#[test]
fn an_error_changes_nothing_of_the_session() {
    let mut lab = permissive();
    let (_, out) = lab.forward(2, &udp(POD, "198.51.100.9:53").frame());
    lab.pass_seconds(299);
    lab.forward(5, &icmp_error(3, 4, 1400, ROUTER, "203.0.113.7", ip_of(&out)));
    assert_eq!(lab.sessions(), 1);
    lab.pass_seconds(2);
    assert_eq!(
        lab.dropped(5, &icmp_error(3, 4, 1400, ROUTER, "203.0.113.7", ip_of(&out))),
        Reason::NoSession,
        "the error did not refresh it"
    );
}

#[test]
fn errors_about_nothing_known_are_dropped_each_under_its_reason() {
    let lab = permissive();
    let (_, out) = lab.forward(2, &udp(POD, "198.51.100.9:53").frame());
    let unknown = udp("203.0.113.7:1234", "198.51.100.9:53").ip();
    let to = "203.0.113.7";
    assert_eq!(lab.dropped(5, &icmp_error(3, 4, 1400, ROUTER, to, &unknown)), Reason::NoSession);
    let mut wrong = ip_of(&out).to_vec();
    wrong[10] ^= 1;
    assert_eq!(lab.dropped(5, &icmp_error(3, 4, 1400, ROUTER, to, &wrong)), Reason::IcmpChecksum);
    let (_, out) = lab.forward(2, &udp(POD, "198.51.100.9:53").options(&[1; 8]).frame());
    lab.forward(5, &icmp_error(3, 4, 1400, ROUTER, to, ip_of(&out)));
    for at in [10, 24] {
        let mut wrong = ip_of(&out).to_vec();
        wrong[at] ^= 2;
        let error = icmp_error(3, 4, 1400, ROUTER, to, &wrong);
        assert_eq!(lab.dropped(5, &error), Reason::IcmpChecksum, "byte {at}");
    }
    let mut fragment = ip_of(&out).to_vec();
    fragment[7] = 1;
    repair(&mut fragment);
    assert_eq!(lab.dropped(5, &icmp_error(3, 4, 1400, ROUTER, to, &fragment)), Reason::Fragment);
    // A forged error from inside about somebody else's answer.
    let forged = udp("198.51.100.9:53", "100.64.0.8:40000").ip();
    let error = icmp_error(3, 4, 1400, "100.64.0.66", "198.51.100.9", &forged);
    assert_eq!(lab.dropped(2, &error), Reason::NoSession);
    // Other messages.
    for (kind, code) in [(3, 1), (5, 0), (11, 1), (13, 0)] {
        let other = icmp_error(kind, code, 0, ROUTER, to, ip_of(&out));
        assert_eq!(lab.dropped(5, &other), Reason::IcmpOther, "{kind}/{code}");
    }
    lab.assert_books();
}

#[test]
fn an_error_with_a_wrong_checksum_is_dropped_without_a_word() {
    // The quote alone, odd, as long as routers make it, with extensions, as long as can be.
    let wide = || {
        let links = [2, 5].map(|n| format!("link {n} mtu 9500"));
        let text = TWO_CLUSTERS.replace("link 2", &links[0]).replace("link 5", &links[1]);
        Scene::read(&text).and("permit any -> any all").build()
    };
    for quoted in [28, 29, 59, 60, 61, 548, 1000, 1471, 1472, 9_208] {
        let lab = wide();
        let (_, out) = lab.forward(2, &udp(POD, "198.51.100.9:53").payload(&[7; 4]).frame());
        let mut quote = ip_of(&out).to_vec();
        quote.resize(quoted, 0x5a);
        let error = icmp_error(3, 4, 1400, ROUTER, "203.0.113.7", &quote);
        lab.forward(5, &error);
        let message = 14 + 20;
        // Every part of it: MTU, quoted header, ports, what follows, the checksum itself.
        for at in [2, 3, 7, 8 + 19, 8 + 21, 8 + quoted / 2, 8 + quoted - 1] {
            for flip in [0x01, 0x80] {
                let mut wrong = error.clone();
                wrong[message + at] ^= flip;
                let reason = lab.dropped(5, &wrong);
                assert_eq!(reason, Reason::IcmpChecksum, "byte {at} of a quote of {quoted}");
            }
        }
        assert_eq!(lab.tables().counters().answered, 0);
        // Padding of the link layer is not part of it.
        let mut padded = error.clone();
        padded.extend([0xff; 9]);
        lab.forward(5, &padded);
        lab.assert_books();
    }
    // Nobody sends one as long as this, and its checksum is not looked at to the end.
    let lab = wide();
    let (_, out) = lab.forward(2, &udp(POD, "198.51.100.9:53").frame());
    let mut quote = ip_of(&out).to_vec();
    quote.resize(9_209, 0x5a);
    let error = icmp_error(3, 4, 1400, ROUTER, "203.0.113.7", &quote);
    assert_eq!(lab.dropped(5, &error), Reason::IcmpChecksum);
}

#[test]
fn a_wrong_checksum_is_the_kernel_s_to_see_if_the_error_is_not_about_a_session() {
    let scene = Scene::read(&TWO_CLUSTERS.replace("link 5", "link 5\nlocal 203.0.113.7"));
    let lab = scene.and("permit any -> any all").build();
    let (_, out) = lab.forward(2, &udp(POD, "198.51.100.9:53").frame());
    let own = udp("203.0.113.7:1234", "198.51.100.9:53").ip();
    for (quote, about_a_session) in [(ip_of(&out), true), (&own, false)] {
        let mut wrong = icmp_error(3, 4, 1400, ROUTER, "203.0.113.7", quote);
        wrong[14 + 20 + 7] ^= 1;
        let expected = if about_a_session { Fate::Drop(Reason::IcmpChecksum) } else { Fate::Pass };
        assert_eq!(lab.send(5, &wrong).fate, expected);
    }
}

#[test]
fn a_sum_over_steps_is_the_sum_over_words() {
    let bytes: Vec<u8> = (0..9_300_u32).map(|n| ((n * 167) >> 3) as u8).collect();
    let frame = xdp::memory::MemoryFrame::new(bytes.clone());
    let lengths = (0..200).chain([1_479, 1_480, 9_000, 9_215, 9_216]);
    for length in lengths {
        for offset in [0, 1, 34, 38] {
            let part = &bytes[offset..offset + length];
            let words = part.chunks(2).map(|w| [w[0], w.get(1).copied().unwrap_or(0)]);
            let mut sum: u64 = words.map(|word| u64::from(u16::from_ne_bytes(word))).sum();
            while sum > 0xffff {
                sum = (sum >> 16) + (sum & 0xffff);
            }
            let found = xdp::checksum::sum(&frame, offset as u32, length as u16);
            assert_eq!(found, Some(sum as u16), "{length} from {offset}");
        }
    }
    // All ones carry at every step.
    let ones = xdp::memory::MemoryFrame::new(vec![0xff; 9_217]);
    assert_eq!(xdp::checksum::sum(&ones, 1, 9_216), Some(0xffff));
    assert_eq!(xdp::checksum::sum(&ones, 0, 9_217), None, "one more than is summed");
    assert_eq!(xdp::checksum::sum(&ones, 2, 9_216), None, "one past the end");
}

/// Reads an error that the gateway made, and what it quotes.
fn own_error(frame: &[u8]) -> (Seen, Vec<u8>, u16) {
    let seen = see(frame);
    let message = message(frame);
    let icmp = IcmpPacket::new(&message).unwrap();
    assert_eq!(icmp.get_checksum(), pnet::packet::icmp::checksum(&icmp));
    let mtu = u16::from_be_bytes([message[6], message[7]]);
    let quote = message[8..].to_vec();
    let header = Ipv4Packet::new(&quote).unwrap();
    assert_eq!(header.get_checksum(), ipv4::checksum(&header));
    (seen, quote, mtu)
}

#[test]
fn the_last_hop_is_told_to_the_sender_about_its_own_packet() {
    let lab = permissive();
    for sent in [tcp(POD, SERVER, SYN), udp(POD, SERVER), echo("100.64.0.7:7", "198.51.100.9")] {
        // Of an unknown flow and of a known one.
        for known in [false, true] {
            if known {
                lab.forward(2, &sent.clone().frame());
            }
            let dying = sent.clone().ttl(1);
            let (reason, answer) = lab.answered(2, &dying.frame());
            assert_eq!(reason, Reason::TtlExpired);
            let (seen, quote, _) = own_error(&answer);
            assert_eq!((seen.from.as_str(), seen.to.as_str()), ("100.64.255.1:0", "100.64.0.7:0"));
            assert_eq!((seen.flags, seen.code), (11, 0));
            assert_eq!((seen.to_mac, seen.from_mac), (dying.from_mac, mac_of(2)));
            assert_eq!(quote, dying.ip()[..28], "the inside packet, not the translated one");
        }
        lab.forward(2, &sent.ttl(2).frame());
    }
    lab.assert_books();
}

#[test]
fn a_packet_that_is_too_long_is_answered_with_the_length_that_fits() {
    let scene = Scene::read(&TWO_CLUSTERS.replace("link 5", "link 5 mtu 1000"))
        .and("permit any -> any all");
    let lab = scene.build();
    lab.forward(2, &udp(POD, SERVER).payload(&[1; 972]).frame());
    for _ in 0..2 {
        let (reason, answer) = lab.answered(2, &udp(POD, SERVER).payload(&[1; 973]).frame());
        let (seen, _, mtu) = own_error(&answer);
        assert_eq!((reason, seen.flags, seen.code, mtu), (Reason::TooBig, 3, 4, 1000));
    }
    let whole = udp(POD, SERVER).payload(&[1; 973]).may_fragment().frame();
    assert_eq!(lab.dropped(2, &whole), Reason::TooBig);
    // Segments that are still together are not longer than the wire takes.
    let together = xdp::memory::MemoryFrame {
        segments: 3,
        segment: 325,
        ..xdp::memory::MemoryFrame::new(sent_to(2, &udp(POD, SERVER).payload(&[1; 973]).frame()))
    };
    // But where each of them is.
    let longer = xdp::memory::MemoryFrame { segment: 973, ..together.clone() };
    assert!(matches!(lab.gateway.process(2, together, lab.now).fate, Fate::Transmit(..)));
    let told = lab.gateway.process(2, longer, lab.now).fate;
    assert_eq!(told, Fate::Answered(Reason::TooBig));
}

#[test]
fn a_route_that_takes_less_than_its_link_says_so_to_its_own_packets() {
    let scene = Scene::read(TWO_CLUSTERS)
        .and("route 198.51.100.0/24 on 5 via 203.0.113.254 mtu 1000\npermit any -> any all");
    let mut lab = scene.build();
    let narrow = udp(POD, SERVER).payload(&[1; 973]);
    // By the same gateway, before and after.
    let wide = udp(POD, "192.0.2.9:53").payload(&[1; 973]).frame();
    for _ in 0..2 {
        lab.forward(2, &wide);
        let (reason, answer) = lab.answered(2, &narrow.clone().frame());
        assert_eq!((reason, own_error(&answer).2), (Reason::TooBig, 1000));
    }
    // The route gets wider under a live flow: the daemon raises the generation.
    lab.forward(2, &udp(POD, SERVER).frame());
    lab.gateway.tables.remove_route(prefix("198.51.100.0/24"));
    lab.publish(&scene);
    lab.forward(2, &narrow.frame());
    lab.assert_books();
}

#[test]
fn answers_are_whole_whatever_the_sender_left_to_devices() {
    let lab = Lab::with_rules("reject any -> any tcp/80\nreject any -> any udp/80");
    for (frame, field) in [
        (tcp(POD, "198.51.100.9:80", SYN).payload(&[7; 11]), 34 + 16),
        (udp(POD, "198.51.100.9:80").payload(&[7; 11]), 34 + 6),
        (tcp(POD, "198.51.100.9:80", SYN).ttl(1), 34 + 16),
        (tcp(POD, "198.51.100.9:80", SYN).options(&[1; 8]), 42 + 16),
    ] {
        let mut bytes = sent_to(2, &frame.frame());
        // A checksum that is not finished looks like a wrong one.
        bytes[field] ^= 0x55;
        let sent = xdp::memory::MemoryFrame { segments: 3, ..xdp::memory::MemoryFrame::new(bytes) };
        let output = lab.gateway.process(2, sent, lab.now);
        assert!(matches!(output.fate, Fate::Answered(_)), "{:?}", output.fate);
        assert_sound(&output.frame.bytes);
        assert_eq!(output.frame.segments, 1);
    }
}

#[test]
fn answers_are_bounded_per_sender_and_second() {
    let mut lab = permissive();
    lab.tables().set_rates(3, 1000);
    let dying = |pod: &str| udp(pod, SERVER).ttl(1).frame();
    let count = |lab: &Lab, pod: &str| {
        (0..10)
            .filter(|_| matches!(lab.send(2, &dying(pod)).fate, Fate::Answered(Reason::TtlExpired)))
            .count()
    };
    assert_eq!(count(&lab, POD), 3);
    assert_eq!(count(&lab, "100.64.0.8:1"), 3, "each sender has its own share");
    assert_eq!(lab.drops(Reason::TtlExpired), 20, "every packet is counted");
    lab.pass_seconds(1);
    assert_eq!(count(&lab, POD), 3);
    assert_eq!(lab.tables().counters().answered, 9);
    lab.assert_books();
}
