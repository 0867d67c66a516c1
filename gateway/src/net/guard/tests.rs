use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};

use super::*;
use crate::net::testing::{
    FarHost, as_root_in_namespace, ip, link_named, no_reverse_path_check, run,
};

pub(super) const MARK: u32 = 0x5c00_0000;
const EXEMPT: ExemptMark = ExemptMark { value: MARK, mask: 0xff00_0000 };

pub(super) fn net(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

pub(super) fn guard(interfaces: &[(&str, &[&str])]) -> GuardSpec {
    GuardSpec {
        non_routable: vec![net("100.64.0.0/10"), net("192.168.0.0/16")],
        interfaces: interfaces
            .iter()
            .map(|(name, carries)| {
                (name.to_string(), carries.iter().map(|prefix| net(prefix)).collect())
            })
            .collect(),
        towards: BTreeMap::new(),
        attached: BTreeSet::new(),
        translating: BTreeSet::new(),
        exempt: Some(EXEMPT),
    }
}

/// The same with programs on an interface.
fn with_programs(on: IfIndex, interfaces: &[(&str, &[&str])]) -> GuardSpec {
    GuardSpec { translating: [on].into(), ..guard(interfaces) }
}

#[test]
fn a_guard_that_would_open_too_much_is_refused() {
    let with_mark = |value, mask| GuardSpec {
        exempt: Some(ExemptMark { value, mask }),
        ..guard(&[("eth0", &[])])
    };
    for (spec, expected) in [
        (guard(&[("eth0", &["100.64.0.0/10"])]), None),
        (guard(&[("eth0", &["100.127.255.255/32"])]), None),
        (guard(&[("eth0", &["100.0.0.0/9"])]), Some("carries 100.0.0.0/9")),
        (guard(&[("eth0", &["100.128.0.0/16"])]), Some("carries 100.128.0.0/16")),
        (guard(&[("eth0", &["0.0.0.0/0"])]), Some("carries 0.0.0.0/0")),
        (guard(&[("a234567890123456", &[])]), Some("a234567890123456")),
        (guard(&[("", &[])]), Some("cannot be the name")),
        (with_mark(1, 1), None),
        (with_mark(0, 1), Some("mark 0x0/0x1")),
        (with_mark(3, 1), Some("mark 0x3/0x1")),
        (with_mark(0, 0), Some("mark 0x0/0x0")),
        (GuardSpec { exempt: None, ..with_mark(0, 0) }, None),
    ] {
        let error = check(&spec).err().map(|error| error.to_string());
        match (&error, expected) {
            (Some(error), Some(expected)) => assert!(error.contains(expected), "{error}"),
            (error, expected) => assert_eq!(error.is_some(), expected.is_some(), "{spec:?}"),
        }
    }
}

#[test]
fn there_is_one_rule_for_each_exception_and_for_each_prefix_kept_back() {
    let spec = with_programs(3, &[("eth0", &["100.64.0.0/16"]), ("eth1", &[])]);
    let last = |rule: Rule| match rule.last() {
        Some(Expression::Decide(verdict)) => *verdict,
        other => panic!("{other:?}"),
    };
    use Verdict::{Accept, Drop};
    let verdicts: Vec<_> = rules::leaving(&spec).map(last).collect();
    // Of two interfaces, and of all others.
    assert_eq!(verdicts, [Accept, Accept, Drop, Drop, Drop, Drop, Drop, Drop]);
}

#[test]
fn only_the_counts_may_differ_from_what_was_written() {
    let spec = guard(&[("eth0", &["100.64.0.0/16"])]);
    let state = GuardState {
        dormant: false,
        chain: Some(Chain::guarding(LEAVING.1)),
        rules: rules::leaving(&spec).collect(),
        forward: None,
        forward_rules: vec![],
        dropped: None,
        unjudged: None,
    };
    let mut counted = state.clone();
    let place = counted.rules[2].iter().position(|step| matches!(step, Expression::Count(_)));
    counted.rules[2][place.unwrap()] = Expression::Count(Traffic { packets: 3, bytes: 252 });
    assert!(state.holds(&spec) && counted.holds(&spec));
    let mut fewer = state.clone();
    fewer.rules.pop();
    let mut opened = state.clone();
    opened.rules.insert(0, vec![Expression::Decide(Verdict::Accept)]);
    let foreign = Chain { priority: Some(0), ..Chain::guarding(LEAVING.1) };
    for broken in [
        fewer,
        opened,
        GuardState { dormant: true, ..state.clone() },
        GuardState { chain: None, ..state.clone() },
        GuardState { chain: Some(foreign), ..state.clone() },
    ] {
        assert!(!broken.holds(&spec), "{broken:?}");
    }
    assert!(!state.holds(&guard(&[("eth0", &[])])));
}

const FAR: &str = "192.0.2.9:9";

/// A far host that tells what it receives.
struct Receiver {
    socket: UdpSocket,
    _host: FarHost,
}

impl Receiver {
    /// Makes the host, and addresses of this side for every kind of source.
    fn behind_near() -> Self {
        let host = FarHost::new();
        // A socket stays in the namespace in which it was made.
        let socket = host.run(|| {
            ip("route add default dev far");
            for interface in ["far", "all"] {
                no_reverse_path_check(interface);
            }
            UdpSocket::bind(FAR).unwrap()
        });
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        for address in ["100.64.1.1", "100.65.1.1", "192.168.1.1"] {
            ip(&format!("address add {address}/32 dev near"));
        }
        let receiver = Self { socket, _host: host };
        // Now, so that later no question for a hardware address is in the way.
        assert_eq!(receiver.receives(&[("192.0.2.1", 0)]), ["192.0.2.1/0x0"]);
        receiver
    }

    /// Sends from each source with each mark, and returns which arrived.
    fn receives(&self, sources: &[(&str, u32)]) -> Vec<String> {
        for (source, mark) in sources {
            send(source, *mark, &format!("{source}/{mark:#x}"));
        }
        // Nothing overtakes on a veth pair: what is not here before this one will not come.
        send("192.0.2.1", 0, "last");
        let next = || {
            let mut bytes = [0; 64];
            let length = self.socket.recv(&mut bytes).expect("the last packet arrives");
            String::from_utf8_lossy(&bytes[..length]).into_owned()
        };
        std::iter::repeat_with(next).take_while(|text| text != "last").collect()
    }
}

fn send(source: &str, mark: u32, text: &str) {
    let source: Ipv4Addr = source.parse().unwrap();
    let socket = UdpSocket::bind(SocketAddr::from((source, 0))).unwrap();
    setsockopt(&socket, sockopt::Mark, &mark).unwrap();
    // The kernel tells a local sender that its packet was dropped.
    if let Err(error) = socket.send_to(text.as_bytes(), FAR) {
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{text}");
    }
}

const EVERY_KIND: [(&str, u32); 7] = [
    ("192.0.2.1", 0),
    ("100.64.1.1", 0),
    ("100.64.1.1", MARK),
    ("100.64.1.1", MARK | 0x77),
    ("100.64.1.1", MARK >> 8),
    ("100.65.1.1", 0),
    ("192.168.1.1", 0),
];

#[test]
fn a_non_routable_source_leaves_only_by_an_exception() {
    as_root_in_namespace("guard", || {
        let far = Receiver::behind_near();
        assert_eq!(far.receives(&EVERY_KIND).len(), EVERY_KIND.len(), "no guard, all arrive");
        let near = link_named("near").ifindex;
        let spec = with_programs(near, &[("near", &["100.65.0.0/16"])]);
        assert_eq!(install(&spec).unwrap(), Installed::Written);
        assert_eq!(
            far.receives(&EVERY_KIND),
            [
                "192.0.2.1/0x0",         // routable
                "100.64.1.1/0x5c000000", // about to be translated
                "100.64.1.1/0x5c000077", // the same: the other bits do not count
                "100.65.1.1/0x0",        // carried
            ]
        );
        let state = read().unwrap().unwrap();
        assert_eq!(state.dropped().packets, 3);
        let header = 28 * 3;
        let texts = "100.64.1.1/0x0".len() + "100.64.1.1/0x5c0000".len() + "192.168.1.1/0x0".len();
        assert_eq!(state.dropped().bytes, (header + texts) as u64);
    });
}

#[test]
fn a_punted_packet_leaves_only_where_a_program_translates_it() {
    as_root_in_namespace("guard and punted packets", || {
        let far = Receiver::behind_near();
        let punted = [("100.64.1.1", MARK | 0x77)];
        let near = link_named("near").ifindex;
        let attached = [String::from("near")].into();
        for (spec, arrived) in [
            (guard(&[("near", &[])]), 0),
            (with_programs(near, &[("near", &[])]), 1),
            // Whatever its name: it is another one.
            (GuardSpec { attached, ..with_programs(near + 1, &[("near", &[])]) }, 0),
        ] {
            assert_eq!(install(&spec).unwrap(), Installed::Written);
            assert_eq!(far.receives(&punted).len(), arrived, "{:?}", spec.translating);
        }
    });
}

#[test]
fn pods_behind_a_shared_interface_see_pods_as_they_are_and_nobody_else_does() {
    as_root_in_namespace("guard towards pods", || {
        let far = Receiver::behind_near();
        for (towards, arrived) in [("203.0.113.0/24", 0), ("192.0.2.9/32", 1)] {
            let mut spec = guard(&[("near", &[])]);
            spec.towards.insert("near".into(), vec![net(towards)]);
            install(&spec).unwrap();
            assert!(read().unwrap().unwrap().holds(&spec), "{towards}");
            assert_eq!(far.receives(&[("100.64.1.1", 0)]).len(), arrived, "{towards}");
        }
    });
}

#[test]
fn what_the_machine_itself_sends_by_another_interface_is_not_guarded() {
    as_root_in_namespace("guard elsewhere", || {
        let far = Receiver::behind_near();
        install(&guard(&[("near0", &[]), ("nea", &[])])).unwrap();
        assert_eq!(far.receives(&[("100.64.1.1", 0)]).len(), 1);
        assert_eq!(read().unwrap().unwrap().dropped(), Traffic::default());
    });
}

#[test]
fn a_guard_that_is_there_is_left_alone() {
    as_root_in_namespace("guard twice", || {
        let far = Receiver::behind_near();
        let spec = guard(&[("near", &[])]);
        assert_eq!(install(&spec).unwrap(), Installed::Written);
        far.receives(&[("100.64.1.1", 0)]);
        assert_eq!(install(&spec).unwrap(), Installed::Unchanged);
        let state = read().unwrap().unwrap();
        assert!(state.holds(&spec));
        assert_eq!(state.dropped().packets, 1, "the count is kept");
        // Another guard takes its place, and the count of the invariant goes on.
        let wider = guard(&[("near", &["100.65.0.0/16"])]);
        assert!(!state.holds(&wider));
        assert_eq!(install(&wider).unwrap(), Installed::Written);
        far.receives(&[("100.64.1.1", 0)]);
        let state = read().unwrap().unwrap();
        assert_eq!(state.dropped().packets, 2);
    });
}

#[test]
fn a_guard_that_was_tampered_with_is_mended() {
    as_root_in_namespace("mended guard", || {
        let far = Receiver::behind_near();
        let spec = guard(&[("near", &[])]);
        install(&spec).unwrap();
        for tampering in [
            "insert rule inet sluice_guard postrouting accept",
            "insert rule inet sluice_guard postrouting ip saddr 100.64.0.0/10 limit rate 1/second accept",
            "flush chain inet sluice_guard postrouting",
            "add table inet sluice_guard { flags dormant; }",
            "delete table inet sluice_guard",
        ] {
            run("nft", tampering);
            let stops = |state: GuardState| state.holds(&spec) || state.stops_leaks_of(&spec);
            assert!(!read().unwrap().is_some_and(stops), "{tampering}");
            assert_eq!(install(&spec).unwrap(), Installed::Written, "{tampering}");
            assert!(far.receives(&[("100.64.1.1", 0)]).is_empty(), "{tampering}");
        }
    });
}

#[test]
fn a_removed_guard_is_gone_and_can_be_removed_again() {
    as_root_in_namespace("removed guard", || {
        assert_eq!(read().unwrap(), None);
        assert!(!remove().unwrap());
        install(&guard(&[("near", &[])])).unwrap();
        assert!(remove().unwrap());
        assert!(!remove().unwrap());
        assert_eq!(read().unwrap(), None);
        assert_eq!(run("nft", "list ruleset"), "");
    });
}

#[test]
fn the_operator_sees_what_was_meant() {
    as_root_in_namespace("guard as nft shows it", || {
        ip("link add near type veth peer name far");
        // A mask of upper bits only would be shown as if it were a prefix.
        let exempt = Some(ExemptMark { value: MARK, mask: 0xff00_ff00 });
        let near = link_named("near").ifindex;
        let spec = GuardSpec { exempt, ..with_programs(near, &[("near", &["100.65.0.0/16"])]) };
        install(&spec).unwrap();
        let shown = run("nft", "list table inet sluice_guard");
        let lines: Vec<_> = shown.lines().map(str::trim).collect();
        for line in [
            "type filter hook postrouting priority 300; policy accept;",
            "oif \"near\" meta mark & 0xff00ff00 == 0x5c000000 accept",
            "oifname \"near\" ip saddr 100.65.0.0/16 accept",
            "oifname \"near\" ip saddr 100.64.0.0/10 counter packets 0 bytes 0 counter name \"dropped\" drop",
        ] {
            assert!(lines.contains(&line), "{line}\n{shown}");
        }
    });
}

#[test]
fn a_replacement_under_fire_lets_nothing_through() {
    as_root_in_namespace("guard under fire", || {
        let far = Receiver::behind_near();
        let specs = [guard(&[("near", &[])]), guard(&[("near", &["100.65.0.0/16"])])];
        install(&specs[0]).unwrap();
        let enough = AtomicBool::new(false);
        let sent = std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                let mut sent = 0;
                while !enough.load(Ordering::Relaxed) {
                    send("100.64.1.1", 0, "leak");
                    sent += 1;
                }
                sent
            });
            let install_next =
                |turn: usize| install(&specs[turn % 2]).is_ok_and(|is| is == Installed::Written);
            let written = (1..=20).all(install_next);
            enough.store(true, Ordering::Relaxed);
            assert!(written, "a replacement failed");
            sender.join().unwrap()
        });
        assert!(sent > 0, "nothing was sent meanwhile");
        assert_eq!(far.receives(&[]), [""; 0]);
        assert_eq!(read().unwrap().unwrap().dropped().packets, sent);
    });
}

#[test]
fn a_large_guard_fits_into_one_step() {
    as_root_in_namespace("large guard", || {
        let spec = GuardSpec {
            non_routable: (0..8).map(|number| net(&format!("10.{number}.0.0/16"))).collect(),
            interfaces: (0..64).map(|number| (format!("eth{number}"), vec![])).collect(),
            towards: BTreeMap::new(),
            attached: (0..64).map(|number| format!("eth{number}")).collect(),
            translating: (1..=64).collect(),
            exempt: Some(EXEMPT),
        };
        assert_eq!(install(&spec).unwrap(), Installed::Written);
        assert_eq!(install(&spec).unwrap(), Installed::Unchanged);
    });
}
