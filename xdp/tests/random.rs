//! Whatever comes in, under whatever policy, with whatever failing: no panic, no leak, every
//! frame accounted for.
#![allow(clippy::wildcard_enum_match_arm, reason = "anything else fails the test")]

mod scene;

use proptest::prelude::*;
use scene::*;
use std::net::Ipv4Addr;
use xdp::{
    egress::Egress,
    memory::{MemoryFrame, Sizes},
    pipeline::{Fate, Hook},
};

/// Interfaces 4 and 5 are routable; nothing is carried.
const ROUTABLE: [u32; 2] = [4, 5];

fn is_inside(address: Ipv4Addr) -> bool {
    let [a, b, ..] = address.octets();
    a == 100 && (64..128).contains(&b)
}

/// The source of an IPv4 frame, if it is one.
fn source(frame: &[u8]) -> Option<Ipv4Addr> {
    let at = match frame.get(12..14)? {
        [0x81, 0x00] => 18,
        _ => 14,
    };
    if frame.get(at - 2..at)? != [0x08, 0x00] {
        return None;
    }
    let bytes: [u8; 4] = frame.get(at + 12..at + 16)?.try_into().ok()?;
    Some(bytes.into())
}

fn address() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => (0u8..4).prop_map(|n| format!("100.64.0.{n}")),
        3 => (0u8..4).prop_map(|n| format!("198.51.100.{n}")),
        2 => (0u8..4).prop_map(|n| format!("10.1.1.{n}")),
        2 => Just("203.0.113.7".to_owned()),
        1 => Just("203.0.113.1".to_owned()),
        1 => any::<u32>().prop_map(|n| Ipv4Addr::from(n).to_string()),
    ]
}

fn end() -> impl Strategy<Value = String> {
    let port = prop_oneof![
        Just(80u16),
        Just(443),
        Just(53),
        Just(67),
        Just(68),
        2000u16..2004,
        any::<u16>()
    ];
    (address(), port).prop_map(|(address, port)| format!("{address}:{port}"))
}

fn frame() -> impl Strategy<Value = Vec<u8>> {
    let flags = prop_oneof![3 => Just(SYN), 3 => Just(ACK), 1 => Just(FIN | ACK), 1 => Just(RST), 1 => any::<u8>()];
    let built = (end(), end(), 0u8..3, flags, 0u8..4, 0usize..3, any::<bool>()).prop_map(
        |(from, to, protocol, flags, ttl, options, fragment)| {
            let build = match protocol {
                0 => tcp(&from, &to, flags),
                1 => udp(&from, &to),
                _ => echo(&from, &to),
            };
            let build = build.ttl([1, 2, 64, 255][ttl as usize]).options(&vec![1; options * 4]);
            if fragment { build.may_fragment() } else { build }
        },
    );
    let whole = (built, prop::option::of(0u16..4))
        .prop_map(|(build, vlan)| match vlan {
            Some(vlan) => build.vlan(vlan).frame(),
            None => build.frame(),
        })
        .boxed();
    let error = (
        whole.clone(),
        end(),
        end(),
        prop_oneof![Just((3u8, 4u8)), Just((11, 0)), any::<(u8, u8)>()],
    )
        .prop_map(|(about, from, to, (kind, code))| {
            let about = ip_of(&about).to_vec();
            icmp_error(kind, code, 1400, &from, &to, &about)
        });
    let damaged =
        (whole.clone(), any::<prop::sample::Index>(), any::<u8>(), any::<prop::sample::Index>())
            .prop_map(|(mut frame, at, with, length)| {
                let at = at.index(frame.len());
                frame[at] = with;
                frame.truncate(length.index(frame.len() + 1));
                frame
            });
    prop_oneof![
        6 => whole,
        2 => error,
        2 => damaged,
        1 => prop::collection::vec(any::<u8>(), 0..120),
    ]
}

fn rules() -> impl Strategy<Value = String> {
    let name =
        || prop_oneof![Just("any"), Just("red"), Just("blue"), Just("servers"), Just("world")];
    let action = prop_oneof![4 => Just("permit"), 1 => Just("deny"), 1 => Just("reject")];
    let service = prop_oneof![Just("all"), Just("tcp"), Just("udp"), Just("icmp"), Just("tcp/443")];
    let rule = (action, name(), name(), service, any::<bool>()).prop_map(|(a, f, t, s, log)| {
        format!("{a} {f} -> {t} {s}{}\n", if log { " log" } else { "" })
    });
    let snat = (
        name(),
        name(),
        prop_oneof![
            Just("203.0.113.7 ports 2000-2003"),
            Just("203.0.113.7,203.0.113.8"),
            Just("none"),
        ],
    )
        .prop_map(|(from, to, pool)| format!("snat {from} -> {to} to {pool}\n"));
    let default =
        prop_oneof![Just("default permit\n"), Just("default deny log\n"), Just("default reject\n")];
    (prop::collection::vec(rule, 0..5), prop::collection::vec(snat, 0..3), default)
        .prop_map(|(rules, snats, default)| rules.concat() + &snats.concat() + default)
}

#[derive(Clone, Debug)]
enum Step {
    Frame(u32, Vec<u8>),
    Answer,
    Wait(u32),
    Sweep,
    Publish(String),
    Fail(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (2u32..7, frame()).prop_map(|(ifindex, frame)| Step::Frame(ifindex, frame)),
        4 => Just(Step::Answer),
        1 => (0u32..400).prop_map(Step::Wait),
        1 => Just(Step::Sweep),
        1 => rules().prop_map(Step::Publish),
        1 => (0u32..30).prop_map(Step::Fail),
    ]
}

fn check(lab: &Lab, sent: &[u8], output: &xdp::memory::Output) -> Result<(), TestCaseError> {
    if let Some(egress) = output.egress
        && ROUTABLE.contains(&egress)
        && let Some(source) = source(&output.frame.bytes)
    {
        prop_assert!(!is_inside(source), "{source} leaves by {egress}: {:?}", output.fate);
    }
    if matches!(output.fate, Fate::Transmit(..)) && wrong_checksum(sent).is_none() {
        prop_assert_eq!(wrong_checksum(&output.frame.bytes), None, "{}", tell(sent));
    }
    if matches!(output.fate, Fate::Pass | Fate::Punt(_)) {
        prop_assert_eq!(&output.frame.bytes, sent, "what the kernel gets is untouched");
        // Whatever the kernel makes of it: it must not get out by a routable interface.
        let punted = match output.fate {
            Fate::Punt(attachment) => Some(attachment),
            _ => None,
        };
        for ifindex in ROUTABLE {
            let mut frame = output.frame.clone();
            let egress = lab.gateway.process_egress(ifindex, &mut frame, punted, lab.now);
            let out = source(&frame.bytes).filter(|_| !matches!(egress, Egress::Drop(_)));
            if let Some(source) = out {
                prop_assert!(!is_inside(source), "{source} leaves by egress of {ifindex}");
            }
        }
    }
    Ok(())
}

fn run(
    first: &str,
    steps: Vec<Step>,
    hook: Hook,
    seed: u64,
    faults: bool,
) -> Result<(), TestCaseError> {
    let base = Scene::read(TWO_CLUSTERS).snats("").and(
        "local 203.0.113.1
         link 6 no-redirect
         attach odd spoke domain 1 on 6 address 100.64.255.9 sources 100.64.0.0/16
         route 198.51.100.3/32 on 6
         neighbour 10.0.0.254 on 4 unresolved",
    );
    let sizes = Sizes { slots: 32, records: 12, overflow: 4, bitmaps: 2, hops: 12, events: 64 };
    let mut lab = base.clone().and(first).build_with(sizes, seed);
    lab.gateway.hook = hook;
    let mut last: Option<Vec<u8>> = None;
    for step in steps {
        match step {
            Step::Frame(ifindex, frame) => {
                let output = lab.send(ifindex, &frame);
                check(&lab, &sent_to(ifindex, &frame), &output)?;
                if matches!(output.fate, Fate::Transmit(..)) {
                    last = Some(output.frame.bytes);
                }
            }
            Step::Answer => {
                if let Some(out) = &last
                    && see(out).protocol != 1
                {
                    for ifindex in [5, 4] {
                        let reply = answer_to(out, ACK).receiver(mac_of(ifindex)).frame();
                        let output = lab.send(ifindex, &reply);
                        check(&lab, &reply, &output)?;
                    }
                }
            }
            Step::Wait(seconds) => lab.pass_seconds(seconds),
            Step::Sweep => lab.sweep(),
            Step::Publish(rules) => lab.publish(&base.clone().and(&rules)),
            Step::Fail(one_in) => lab.tables().fail_one_in(if faults { one_in } else { 0 }),
        }
    }
    let c = lab.tables().counters();
    let drops: u64 = c.drops.iter().flatten().sum();
    let fates =
        c.forwarded[0].packets + c.forwarded[1].packets + c.passed.packets + c.punted.packets;
    prop_assert_eq!(c.received.packets, fates + drops);
    if !faults {
        lab.assert_books();
        let leak = xdp_abi::reason::Reason::Leak as usize;
        let stopped: u64 = c.drops.iter().map(|by| by[leak]).sum();
        // An RST that is stopped was to go ahead of a packet that is dropped for a reason of its own.
        prop_assert!(stopped <= lab.leaks_stopped(), "{stopped} of {}", lab.leaks_stopped());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn nothing_leaks_and_everything_is_counted(
        first in rules(),
        steps in prop::collection::vec(step(), 1..60),
        xdp in any::<bool>(),
        seed in any::<u64>(),
    ) {
        run(&first, steps, if xdp { Hook::Xdp } else { Hook::Tc }, seed, false)?;
    }

    #[test]
    fn nothing_leaks_whatever_fails(
        first in rules(),
        steps in prop::collection::vec(step(), 1..60),
        xdp in any::<bool>(),
        seed in any::<u64>(),
    ) {
        run(&first, steps, if xdp { Hook::Xdp } else { Hook::Tc }, seed, true)?;
    }

    #[test]
    fn the_way_back_undoes_the_way_out(
        from_port in any::<u16>(),
        to_port in 1u16..,
        protocol in 0u8..3,
        payload in prop::collection::vec(any::<u8>(), 0..64),
        options in 0usize..11,
        others in 0u8..3,
        seed in any::<u64>(),
    ) {
        let lab = Scene::read(TWO_CLUSTERS).and("permit any -> any all").build_with(Sizes::default(), seed);
        let from = format!("100.64.0.7:{from_port}");
        let to = format!("198.51.100.9:{to_port}");
        let build = |pod: &str| match protocol {
            0 => tcp(&format!("{pod}:{from_port}"), &to, SYN),
            1 => udp(&format!("{pod}:{from_port}"), &to),
            _ => echo(&format!("{pod}:{from_port}"), "198.51.100.9"),
        }.payload(&payload).options(&vec![1; options * 4]);
        for other in 0..others {
            lab.forward(2, &build(&format!("100.64.1.{other}")).frame());
        }
        let sent = build("100.64.0.7").frame();
        let (_, out) = lab.forward(2, &sent);
        let reply = answer_to(&out, SYN | ACK).payload(&payload).options(&vec![1; options * 4]).ttl(77).frame();
        let (_, back) = lab.forward(5, &reply);
        // What the server would have sent had it seen the pod itself.
        let direct = answer_to(&sent, SYN | ACK).payload(&payload).options(&vec![1; options * 4]).ttl(76).frame();
        prop_assert_eq!(ip_of(&back), ip_of(&direct));
        prop_assert_eq!(see(&back).to, if protocol == 2 { see(&sent).from } else { from });
    }

    #[test]
    fn the_established_path_and_the_long_way_agree(
        steps in prop::collection::vec((2u32..6, frame()), 1..40),
        seed in any::<u64>(),
    ) {
        let scene = Scene::read(TWO_CLUSTERS).and("permit any -> any all log");
        let (fast, slow) = (scene.build_with(Sizes::default(), seed), scene.build_with(Sizes::default(), seed));
        for (ifindex, frame) in steps {
            for _ in 0..2 {
                let a = fast.send(ifindex, &frame);
                let b = slow.gateway.process_slowly(ifindex, MemoryFrame::new(sent_to(ifindex, &frame)), slow.now);
                prop_assert_eq!(a.fate, b.fate);
                if !matches!(a.fate, Fate::Drop(_)) {
                    prop_assert_eq!(a.frame, b.frame);
                }
            }
        }
        prop_assert_eq!(fast.tables().counters(), slow.tables().counters());
        prop_assert_eq!(fast.live(), slow.live());
        let words = |lab: &Lab| -> Vec<u64> {
            lab.tables().slots().iter().flat_map(|e| e.words.iter().map(|w| w.load())).collect()
        };
        prop_assert_eq!(words(&fast), words(&slow), "tick, flags, counts are kept alike");
    }
}

#[test]
fn every_truncation_of_every_kind_of_frame_is_taken_calmly() {
    let lab = Lab::with_rules("permit any -> any all");
    let (_, out) = lab.forward(2, &udp("100.64.0.7:1", "198.51.100.9:53").frame());
    let frames = [
        tcp("100.64.0.7:40000", "198.51.100.9:443", SYN).options(&[1; 40]).frame(),
        udp("100.64.0.7:40000", "198.51.100.9:443").vlan(3).frame(),
        echo("100.64.0.7:4", "198.51.100.9").frame(),
        icmp_error(3, 4, 1400, "192.0.2.1", "203.0.113.7", ip_of(&out)),
    ];
    for frame in frames {
        for length in 0..frame.len() {
            for ifindex in [2, 5] {
                lab.send(ifindex, &frame[..length]);
            }
        }
    }
    lab.assert_books();
}

#[test]
fn what_is_not_ipv4_has_a_declared_fate() {
    use xdp_abi::reason::Reason;
    let lab = Lab::with_rules("permit any -> any all");
    let frame = |to: u8, ethertype: [u8; 2], body: &[u8]| {
        let mut bytes = vec![to, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        bytes.extend(ethertype);
        bytes.extend(body);
        bytes
    };
    let six = |next: u8, to: [u8; 2], kind: u8| {
        let mut body = vec![0x60, 0, 0, 0, 0, 8, next, 255];
        body.extend([0x20; 16]);
        body.extend(to);
        body.extend([1; 14]);
        body.extend([kind; 8]);
        body
    };
    for (sent, expected) in [
        (frame(2, [0x08, 0x06], &[0; 28]), Fate::Pass),
        (frame(0xff, [0x08, 0x06], &[0; 28]), Fate::Pass),
        // Neighbour discovery asks for an address of the machine; for another's it is transit.
        (frame(2, [0x86, 0xdd], &six(58, [0x20, 2], 135)), Fate::Pass),
        (frame(2, [0x86, 0xdd], &six(58, [0x20, 1], 135)), Fate::Drop(Reason::Ipv6Transit)),
        (frame(2, [0x86, 0xdd], &six(6, [0x20, 2], 0)), Fate::Pass),
        (frame(2, [0x86, 0xdd], &six(6, [0xfe, 0x80], 0)), Fate::Pass),
        (frame(2, [0x86, 0xdd], &six(6, [0xfe, 0xbf], 0)), Fate::Pass),
        (frame(2, [0x86, 0xdd], &six(6, [0xfe, 0xc0], 0)), Fate::Drop(Reason::Ipv6Transit)),
        (frame(2, [0x86, 0xdd], &six(6, [0xff, 0x02], 0)), Fate::Pass),
        (frame(2, [0x86, 0xdd], &six(6, [0x20, 1], 0)), Fate::Drop(Reason::Ipv6Transit)),
        (frame(2, [0x86, 0xdd], &[0x60; 20]), Fate::Drop(Reason::Truncated)),
        (frame(2, [0x88, 0x47], &[0; 40]), Fate::Drop(Reason::Ethertype)),
        (frame(1, [0x88, 0xcc], &[0; 40]), Fate::Pass),
        (frame(2, [0x88, 0xa8], &[0; 40]), Fate::Drop(Reason::VlanStacked)),
        (frame(2, [0x81, 0x00], &[0, 5, 0x81, 0x00, 0, 6, 8, 0]), Fate::Drop(Reason::VlanStacked)),
        (frame(2, [0x08, 0x00], &[0x65; 40]), Fate::Drop(Reason::Malformed)),
        (frame(2, [0x08, 0x00], &[0x44; 40]), Fate::Drop(Reason::Malformed)),
        (vec![0; 13], Fate::Drop(Reason::Truncated)),
    ] {
        assert_eq!(lab.send(2, &sent).fate, expected, "{sent:02x?}");
    }
    for protocol in [2u8, 47, 50, 132] {
        let mut ip = udp("100.64.0.7:1", "198.51.100.9:2").ip();
        ip[9] = protocol;
        repair(&mut ip);
        let sent = ethernet([2; 6], mac_of(2), None, &ip);
        assert_eq!(lab.dropped(2, &sent), Reason::Protocol, "{protocol}");
    }
    for (at, with) in [(6, 0x20), (7, 1), (6, 0x3f)] {
        let mut ip = udp("100.64.0.7:1", "198.51.100.9:2").may_fragment().ip();
        ip[at] = with;
        repair(&mut ip);
        assert_eq!(lab.dropped(2, &ethernet([2; 6], mac_of(2), None, &ip)), Reason::Fragment);
    }
    lab.assert_books();
}
