use super::snat::by_port;
use super::*;
use crate::flows::testing::{self, RIVAL, Scene, TWO_CLUSTERS};
use proptest::prelude::*;
use xdp::memory::{Policy, Prefix, RouteEntry};
use xdp::pipeline::Fate;
use xdp::snat::{FlowFacts, matching};
use xdp_abi::policy::Snat;

const UNUSED: Used<'static> = Used { ports: &|_| 0, sessions: 0 };

fn names(directory: &Directory) -> Names<'_> {
    Names { directory, interface: &|index| (index < 9).then(|| format!("eth{index}")) }
}

fn ask(scene: &Scene, from: &str, to: &str, port: Option<u16>) -> Explanation {
    let from = port.map_or_else(|| from.to_owned(), |port| format!("{from}:{port}"));
    let request = ExplainRequest::parse(&from, to).unwrap();
    let directory = scene.directory(1);
    explain(&*scene.memory, names(&directory), scene.now, &UNUSED, &request).unwrap()
}

fn stages(explanation: &Explanation) -> Vec<&str> {
    explanation.steps.iter().map(|step| step.stage.as_str()).collect()
}

#[test]
fn a_permitted_flow_is_told_to_its_end() {
    let scene = testing::scene(TWO_CLUSTERS);
    let told = ask(&scene, "red:100.64.1.10", "198.51.100.9:443/tcp", None);
    assert_eq!((told.outcome, told.reason.as_deref()), (Outcome::Translate, None));
    assert_eq!(told.rule.as_ref().unwrap().name.as_deref(), Some("web"));
    let texts: Vec<String> =
        told.steps.iter().map(|step| format!("{}: {}", step.stage, step.text)).collect();
    let expected = [
        "attachment: it comes in by red-pods",
        "session: not looked for, because no source port is stated",
        "route: it leaves through 10.255.4.254 by internet, into domain fabric",
        "source: 100.64.1.10 in domain red is pod shop/api-1, in ",
        "destination: 198.51.100.9 in domain fabric is no known endpoint, in ",
        "rule: watch-web would match, but it is only watched",
        "rule: rule web permits it",
        "snat: pods-out gives it 203.0.113.1; 0 of 64512 ports towards this destination",
        "guard: its new source may leave there",
    ];
    assert_eq!(texts.len(), expected.len(), "{texts:#?}");
    for (text, expected) in texts.iter().zip(expected) {
        assert!(text.starts_with(expected), "{text}\n{expected}");
    }
    let decisive: Vec<bool> = told.steps.iter().map(|step| step.decisive).collect();
    assert!(decisive.iter().rev().skip(1).all(|one| !one) && decisive[8]);
}

#[test]
fn every_refusal_says_where_and_why() {
    let scene = testing::scene(TWO_CLUSTERS);
    for (from, to, outcome, reason, stage) in [
        ("red:100.64.1.10", "198.51.100.9:22/tcp", Outcome::Drop, "rule_denied", "rule"),
        ("red:100.64.1.10", "198.51.100.9:23/tcp", Outcome::Reject, "rule_rejected", "rule"),
        ("red:100.64.1.10", "198.51.100.9:25/tcp", Outcome::Drop, "default_denied", "rule"),
        ("red:100.64.1.10", "192.0.2.1:443/tcp", Outcome::Drop, "no_snat_policy", "guard"),
        ("red:192.0.2.1", "198.51.100.9:443/tcp", Outcome::Drop, "spoofed_source", "attachment"),
        ("fabric:100.64.1.10", "10.1.1.1:443/tcp", Outcome::Drop, "spoofed_source", "attachment"),
        ("red:100.64.1.10", "203.0.113.1:443/tcp", Outcome::Drop, "no_session", "route"),
        ("red:100.64.1.10", "198.51.100.9/47", Outcome::Drop, "protocol", "protocol"),
        ("red:192.0.2.1", "198.51.100.9/47", Outcome::Drop, "protocol", "protocol"),
        ("fabric:10.255.1.1", "198.51.100.9:443/tcp", Outcome::Drop, "martian", "route"),
        ("red:100.64.1.10", "127.0.0.1:443/tcp", Outcome::Drop, "martian", "route"),
        ("red:100.64.1.10", "240.0.0.1:443/tcp", Outcome::Drop, "martian", "route"),
        (
            "fabric:2001:db8::1",
            "[2001:db8::2]:443/tcp",
            Outcome::Drop,
            "ipv6_transit",
            "attachment",
        ),
    ] {
        let told = ask(&scene, from, to, None);
        assert_eq!((told.outcome, told.reason.as_deref()), (outcome, Some(reason)), "{to}");
        assert_eq!(stages(&told).last(), Some(&stage), "{to}");
    }
    for (from, to) in [
        ("red:100.64.1.10", "10.255.1.1:22/tcp"),
        ("red:192.0.2.1", "10.255.1.1/47"),
        ("fabric:2001:db8::1", "[fe80::1]:22/tcp"),
    ] {
        let local = ask(&scene, from, to, None);
        assert_eq!((local.outcome, local.reason), (Outcome::Local, None), "{from} {to}");
    }
}

#[test]
fn a_way_out_without_an_attachment_is_named_as_the_kernel_names_it() {
    let mut scene = testing::scene(TWO_CLUSTERS);
    scene.tables().add_route(RouteEntry {
        to: Prefix { network: V4([198, 51, 100, 0]), bits: 24 },
        ifindex: 3,
        gateway: None,
        mtu: None,
    });
    let told = ask(&scene, "red:100.64.1.10", "198.51.100.9:443/tcp", None);
    assert_eq!(told.reason.as_deref(), Some("no_egress"));
    let text = &told.steps.last().unwrap().text;
    assert!(text.contains("by interface eth3, where"), "{text}");
}

#[test]
fn a_live_session_answers_for_both_directions() {
    let mut scene = testing::scene(TWO_CLUSTERS);
    scene.open_tcp("100.64.1.10:40000", "198.51.100.9:443");
    let told = ask(&scene, "red:100.64.1.10", "198.51.100.9:443/tcp", Some(40_000));
    assert_eq!((told.outcome, stages(&told)), (Outcome::Translate, vec!["attachment", "session"]));
    assert_eq!(told.rule.unwrap().name.as_deref(), Some("web"));
    let outside = scene.sessions()[0].told.outside_port;
    let back = format!("203.0.113.1:{}/tcp", u16::from_be_bytes(outside));
    let told = ask(&scene, "fabric:198.51.100.9", &back, Some(443));
    assert_eq!(told.outcome, Outcome::Translate);
    assert!(told.steps[1].text.contains("as its answer"), "{}", told.steps[1].text);
    // Over: another packet would open it anew.
    scene.pass(7_441 * testing::SECOND);
    let told = ask(&scene, "red:100.64.1.10", "198.51.100.9:443/tcp", Some(40_000));
    assert_eq!(told.outcome, Outcome::Translate);
    assert!(told.steps[1].text.contains("a flow would begin"), "{}", told.steps[1].text);
}

/// What changes under a live session, and what becomes of it.
#[derive(Clone, Copy, Debug)]
enum Change {
    Nothing,
    Revoked,
    Rejected,
    OutsideGone,
    IngressGone,
    OtherRouter,
    RouteGone,
    OtherDomain,
    OtherIdentity,
}

const WEB: &str = "name: web, spec: { priority: 10, action: permit";

impl Change {
    const ALL: [Self; 9] = [
        Self::Nothing,
        Self::Revoked,
        Self::Rejected,
        Self::OutsideGone,
        Self::IngressGone,
        Self::OtherRouter,
        Self::RouteGone,
        Self::OtherDomain,
        Self::OtherIdentity,
    ];

    fn happens(self, scene: &mut Scene) {
        let everywhere = Prefix { network: V4([0; 4]), bits: 0 };
        let route = |ifindex, gateway| RouteEntry { to: everywhere, ifindex, gateway, mtu: None };
        let mut text = TWO_CLUSTERS.to_owned();
        match self {
            Self::Nothing => {}
            Self::Revoked => text = text.replace(WEB, &WEB.replace("permit", "deny")),
            Self::Rejected => text = text.replace(WEB, &WEB.replace("permit", "reject")),
            Self::OutsideGone => text = text.replace("203.0.113.1]", "203.0.113.2]"),
            Self::IngressGone => {
                let mut gone = scene.memory.attachment(1).unwrap();
                gone.domain = 2;
                scene.tables().set_attachment(1, gone);
            }
            Self::OtherRouter => {
                scene.tables().remove_route(everywhere);
                scene.tables().add_route(route(4, Some(V4([10, 255, 4, 253]))));
            }
            Self::RouteGone => scene.tables().remove_route(everywhere),
            Self::OtherDomain => {
                scene.tables().remove_route(everywhere);
                scene.tables().add_route_ahead(port(2, 0), everywhere, 2);
                scene.tables().add_route(route(2, None));
            }
            Self::OtherIdentity => {
                let pod = (1, V4([100, 64, 1, 10]));
                let forget = |policy: &mut Policy| assert!(policy.hosts.remove(&pod).is_some());
                scene.tables().amend(&[pod], forget);
                return;
            }
        }
        scene.publish(&text);
    }
}

/// A live session under a change: what is said of its next packet, of either direction, and what
/// becomes of that.
fn said_and_done(change: Change, is_answer: bool) -> (Explanation, Fate) {
    let mut scene = testing::scene(TWO_CLUSTERS);
    scene.open_tcp("100.64.1.10:40000", "198.51.100.9:443");
    let outside = u16::from_be_bytes(scene.sessions()[0].told.outside_port);
    change.happens(&mut scene);
    let (ifindex, domain, from, to) = if is_answer {
        (4, "fabric", "198.51.100.9:443", format!("203.0.113.1:{outside}"))
    } else {
        (1, "red", "100.64.1.10:40000", "198.51.100.9:443".to_owned())
    };
    let told = ask(&scene, &format!("{domain}:{from}"), &format!("{to}/tcp"), None);
    assert_eq!(scene.sessions().len(), 1, "{change:?}: nothing was done by asking");
    let fate = scene.send(ifindex, testing::segment(from, &to, xdp::tcp::ACK));
    (told, fate)
}

#[test]
fn what_is_said_of_a_session_that_is_judged_again_is_what_happens() {
    for (change, is_answer) in
        Change::ALL.into_iter().flat_map(|change| [(change, false), (change, true)])
    {
        if matches!((change, is_answer), (Change::IngressGone, false)) {
            continue; // where no pods come in, none is asked about
        }
        let (told, fate) = said_and_done(change, is_answer);
        let happened = match fate {
            Fate::Transmit(..) => None,
            Fate::Drop(reason) | Fate::Answered(reason) | Fate::Told(reason, _) => {
                Some(reason.name())
            }
            Fate::Pass | Fate::Punt(_) | Fate::Answer(..) => panic!("{change:?}: {fate:?}"),
        };
        assert_eq!(told.reason.as_deref(), happened, "{change:?} {is_answer}: {:#?}", told.steps);
    }
}

#[test]
fn a_session_that_is_judged_again_is_told_step_by_step() {
    for (change, outcome, stage, text) in [
        (
            Change::Nothing,
            Outcome::Translate,
            "session",
            "goes on, and the packet with it; judged again",
        ),
        (Change::Revoked, Outcome::Drop, "rule", "rule web denies it: session"),
        (Change::Rejected, Outcome::Reject, "rule", "rule web rejects it: session"),
        (Change::OtherIdentity, Outcome::Drop, "rule", "the default action denies it: session"),
        (
            Change::OutsideGone,
            Outcome::Drop,
            "snat",
            "its outside address 203.0.113.1 is that of no policy any more: session",
        ),
        (Change::OtherRouter, Outcome::Translate, "session", "judged again under generation 2"),
        (
            Change::RouteGone,
            Outcome::Drop,
            "route",
            "the kernel knows no way to 198.51.100.9: session",
        ),
        (
            Change::OtherDomain,
            Outcome::Drop,
            "route",
            "its way leads into domain blue, but it was opened to fabric: session",
        ),
    ] {
        let (told, _) = said_and_done(change, false);
        let last = told.steps.last().unwrap();
        assert_eq!((told.outcome, &*last.stage), (outcome, stage), "{change:?}: {:#?}", told.steps);
        assert!(last.text.contains(text), "{change:?}: {}", last.text);
        let steps = stages(&told);
        assert_eq!(steps[..4], ["attachment", "session", "source", "destination"], "{change:?}");
    }
    let (told, _) = said_and_done(Change::OtherRouter, false);
    let texts: Vec<&str> = told.steps.iter().map(|step| &*step.text).collect();
    assert!(
        texts.contains(&"it leaves through 10.255.4.253 by internet, into domain fabric"),
        "{texts:#?}"
    );
    assert!(texts.iter().any(|text| text.starts_with("it keeps 203.0.113.1:")), "{texts:#?}");
    // The answers of a session whose pods are no longer there.
    let (told, _) = said_and_done(Change::IngressGone, true);
    let last = told.steps.last().unwrap();
    assert!(
        last.text.starts_with("red-pods, by which it came in, is down or gone: session"),
        "{}",
        last.text
    );
}

#[test]
fn a_full_range_is_said_before_it_is_met() {
    let scene = testing::scene(TWO_CLUSTERS);
    let request = ExplainRequest::parse("red:100.64.1.10", "10.20.0.1:53/udp").unwrap();
    let directory = scene.directory(1);
    for (lent, expected) in [(99, None), (100, Some("snat_ports_exhausted"))] {
        let used = Used { ports: &|_| lent, sessions: 0 };
        let told = explain(&*scene.memory, names(&directory), scene.now, &used, &request);
        let told = told.unwrap();
        assert_eq!(told.reason.as_deref(), expected, "{lent} of 100");
    }
}

#[test]
fn a_full_table_is_said_before_it_is_met() {
    let scene = testing::scene(TWO_CLUSTERS);
    let request = ExplainRequest::parse("red:100.64.1.10", "198.51.100.9:443/tcp").unwrap();
    let directory = scene.directory(1);
    let room = u64::from(crate::flows::session::room(&*scene.memory));
    for (sessions, expected) in [(room - 1, None), (room, Some("table_full"))] {
        let used = Used { sessions, ..UNUSED };
        let told = explain(&*scene.memory, names(&directory), scene.now, &used, &request);
        assert_eq!(told.unwrap().reason.as_deref(), expected, "{sessions} of {room}");
    }
}

#[test]
fn a_flow_that_another_domain_has_taken_the_addresses_of_is_said_to_be_contended() {
    let kept = "  - kind: SnatPolicy
    name: kept
    spec: { order: 5, src_group: shop, connection: transit, no_nat: true }
";
    let text =
        TWO_CLUSTERS.replace("kind: connection,", "kind: connection, carries: [100.64.0.0/16],");
    let mut scene = testing::scene(&format!("{}\n{kept}", text.trim_end()));
    let said = |scene: &Scene, port| ask(scene, "blue:100.64.1.10", "10.20.0.1:53/udp", port);
    assert_eq!(said(&scene, Some(40_000)).outcome, Outcome::Forward);
    let flow = || testing::datagram("100.64.1.10:40000", "10.20.0.1:53");
    assert!(matches!(scene.send(1, flow()), Fate::Transmit(..)));
    let told = said(&scene, Some(40_000));
    assert_eq!(told.reason.as_deref(), Some("contended"), "{:#?}", told.steps);
    assert_eq!(scene.send(2, flow()), Fate::Drop(Reason::Contended));
    for port in [Some(40_001), None] {
        assert_eq!(said(&scene, port).outcome, Outcome::Forward, "{port:?}");
    }
    // It is over, and nobody has swept it.
    scene.pass(421 * testing::SECOND);
    assert_eq!(said(&scene, Some(40_000)).outcome, Outcome::Forward);
    assert!(matches!(scene.send(2, flow()), Fate::Transmit(..)));
}

#[test]
fn a_contested_address_is_told_with_its_claimants_and_the_groups_in_doubt() {
    let scene = testing::scene(&format!("{TWO_CLUSTERS}{RIVAL}"));
    let source = |from: &str| {
        let told = ask(&scene, from, "198.51.100.9:443/tcp", None);
        let mut steps = told.steps.into_iter().filter(|step| step.stage == "source");
        steps.next().unwrap().text
    };
    assert_eq!(
        source("red:100.64.1.10"),
        "100.64.1.10 in domain red is contested by the pods shop/api-1 and shop/api-9, in shop, \
         anywhere; not all of them are in api, ads, so only rules that deny or reject \
         count it in"
    );
    assert_eq!(
        source("blue:100.64.1.10"),
        "100.64.1.10 in domain blue is pod shop/api-2, in api, shop, anywhere"
    );
}

/// Of two policies for the same destination the first is for some source ports only.
fn by_ports() -> Scene {
    let low = "  - kind: SnatPolicy
    name: low-ports
    spec: { order: 5, src_cidr: 100.64.0.0/16, dst_cidr: 198.51.100.0/25, protocol: tcp, \
               src_port: 1024-2047, interface: eth4, snat_ips: [203.0.113.2] }
";
    testing::scene(&format!("{}\n{low}", TWO_CLUSTERS.trim_end()))
}

#[test]
fn a_translation_that_depends_on_the_source_port_says_so_if_none_is_stated() {
    let scene = by_ports();
    let snat = |to: &str, port| {
        let told = ask(&scene, "red:100.64.1.10", to, port);
        let steps = told.steps.into_iter().filter(|step| step.stage == "snat");
        steps.map(|step| step.text).collect::<Vec<_>>()
    };
    let to = "198.51.100.9:443/tcp";
    for (port, expected) in [
        (1023, "pods-out gives it 203.0.113.1"),
        (1024, "low-ports gives it 203.0.113.2"),
        (2047, "low-ports gives it 203.0.113.2"),
        (2048, "pods-out gives it 203.0.113.1"),
    ] {
        let texts = snat(to, Some(port));
        assert!(texts.len() == 1 && texts[0].starts_with(expected), "{port}: {texts:?}");
    }
    let texts = snat(to, None);
    assert_eq!(
        texts[0],
        "no source port is stated, and the policy depends on it (0-1023 pods-out, \
         1024-2047 low-ports, 2048-65535 pods-out): 49152 is assumed"
    );
    assert!(texts[1].starts_with("pods-out gives it 203.0.113.1"), "{texts:?}");
    // To the other half of the network the port makes no difference, and nothing is said of it.
    assert_eq!(snat("198.51.100.129:443/tcp", None).len(), 1);
}

#[test]
fn a_wrong_question_is_refused_with_what_would_be_right() {
    let scene = testing::scene(TWO_CLUSTERS);
    let directory = scene.directory(1);
    for (from, to, expected) in [
        ("green:100.64.1.10", "198.51.100.9:443/tcp", "there are fabric, red, blue"),
        ("red:100.64.1.10", "[2001:db8::2]:443/tcp", "give both as IPv4"),
    ] {
        let request = ExplainRequest::parse(from, to).unwrap();
        let refused = explain(&*scene.memory, names(&directory), 0, &UNUSED, &request);
        let detail = refused.unwrap_err().0.detail.unwrap();
        assert!(detail.contains(expected), "{detail}");
    }
    // The command line would not have sent it.
    let mut request = ExplainRequest::parse("red:100.64.1.10", "198.51.100.9:443/tcp").unwrap();
    request.destination_port = None;
    let refused = explain(&*scene.memory, names(&directory), 0, &UNUSED, &request);
    let detail = refused.unwrap_err().0.detail.unwrap();
    assert!(detail.starts_with("the destination `198.51.100.9/tcp` has no port"), "{detail}");
}

proptest! {
    #[test]
    fn ranges_of_source_ports_are_what_each_port_gets(
        policies in proptest::collection::vec((1u16..12, 1u16..12, any::<bool>()), 0..5),
        port in 0u16..14,
    ) {
        let documents: String = policies.iter().zip(0..).map(|((one, other, any), n)| {
            let (first, last) = (one.min(other), one.max(other));
            let ports = if *any { String::new() } else {
                format!("protocol: tcp, src_port: \"{first}-{last}\", ")
            };
            format!(
                "  - kind: SnatPolicy\n    name: p{n}\n    spec: {{ order: {n}, {ports}\
                 src_cidr: 100.64.0.0/16, interface: eth4, snat_ips: [203.0.113.{}] }}\n",
                n + 10
            )
        }).collect();
        let scene = testing::scene(&format!("{}\n{documents}", TWO_CLUSTERS.trim_end()));
        let (tables, policy) = (&*scene.memory, PolicyWord(scene.memory.config().policy.load()));
        let key = Key {
            source: V4([100, 64, 1, 10]),
            destination: V4([198, 51, 100, 9]),
            source_port: port.to_be_bytes(),
            destination_port: 443u16.to_be_bytes(),
            domain: 1,
            protocol: TCP,
        };
        let parties = parties(tables, policy, &key, 0);
        let flow = FlowFacts {
            source: parties.source.index,
            destination: parties.destination.index,
            source_port: port,
            destination_port: 443,
            protocol: TCP,
            mark: 0,
            interface_class: 4,
            connection_class: 0,
        };
        let ranges = by_port(tables, policy, &flow);
        let said = ranges.iter().rfind(|(first, _)| *first <= port).unwrap().1;
        let id = |chosen: Option<Snat>| chosen.map(|chosen| chosen.id);
        prop_assert_eq!(id(said), id(matching(tables, policy, &flow)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_is_explained_is_what_happens(
        (ifindex, domain) in prop_oneof![Just((1, "red")), Just((2, "blue")), Just((4, "fabric"))],
        source in prop_oneof![Just("100.64.1.10"), Just("100.64.1.11"), Just("192.0.2.77"), Just("10.20.0.9"),
            Just("10.255.1.1"), Just("10.255.4.1"), Just("169.254.1.2"),
        ],
        destination in prop_oneof![
            Just("198.51.100.9"), Just("192.0.2.1"), Just("10.20.0.1"), Just("10.30.0.1"),
            Just("203.0.113.1"), Just("10.255.1.1"), Just("100.64.1.10"), Just("169.254.1.1"),
        ],
        port in prop_oneof![Just(22u16), Just(23), Just(25), Just(53), Just(443)],
        is_tcp in any::<bool>(),
    ) {
        let mut scene = testing::scene(TWO_CLUSTERS);
        let word = if is_tcp { "tcp" } else { "udp" };
        let to = format!("{destination}:{port}");
        let told = ask(&scene, &format!("{domain}:{source}"), &format!("{to}/{word}"), Some(40_000));
        let from = format!("{source}:40000");
        let frame = if is_tcp {
            testing::segment(&from, &to, xdp::tcp::SYN)
        } else {
            testing::datagram(&from, &to)
        };
        let happened = match scene.send(ifindex, frame) {
            Fate::Transmit(..) | Fate::Punt(_) => None,
            Fate::Pass => Some("pass"),
            Fate::Drop(reason)
            | Fate::Answered(reason)
            | Fate::Told(reason, _)
            | Fate::Answer(reason, _) => Some(reason.name()),
        };
        let said = match told.outcome {
            Outcome::Forward | Outcome::Translate => None,
            Outcome::Local => Some("pass"),
            Outcome::Drop | Outcome::Reject => told.reason.as_deref(),
        };
        prop_assert_eq!(said, happened, "{:#?}", told.steps);
    }
}
