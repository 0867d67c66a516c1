//! What the kernel would forward, from a host behind `near` to one behind `out`.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use super::tests::{MARK, guard, net};
use super::*;
use crate::net::testing::{FarHost, as_root_in_namespace, ip, no_reverse_path_check, run};

#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Forwarded,
    Leak,
    Unjudged,
}

struct Router {
    host: FarHost,
}

impl Router {
    fn new() -> Self {
        let host = FarHost::new();
        host.run(|| {
            ip("address add 100.64.1.1/32 dev far");
            ip("route add default via 192.0.2.1");
        });
        ip("link add out type veth peer name beyond");
        for interface in ["out", "beyond"] {
            let quiet = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
            fs::write(quiet, "1").unwrap();
            ip(&format!("link set {interface} up"));
        }
        ip("address add 198.51.100.1/24 dev out");
        ip("neigh add 198.51.100.9 lladdr 02:00:00:00:00:09 dev out");
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        for interface in ["near", "all"] {
            no_reverse_path_check(interface);
        }
        Self { host }
    }

    /// Forwarded, stopped as a leak, stopped as unjudged, so far.
    fn counts() -> [u64; 3] {
        let devices = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        let out = devices.lines().find(|line| line.trim().starts_with("out:")).unwrap();
        let sent = out.split_whitespace().nth(10).unwrap().parse().unwrap();
        let state = read().unwrap();
        let of =
            |traffic: fn(&GuardState) -> Traffic| state.as_ref().map_or(0, |s| traffic(s).packets);
        [sent, of(GuardState::dropped), of(GuardState::unjudged)]
    }

    /// What becomes of a packet with this source.
    fn sends(&self, source: &'static str) -> Fate {
        let before = Self::counts();
        self.host.run(move || {
            let from: SocketAddr = (source.parse::<std::net::IpAddr>().unwrap(), 0).into();
            UdpSocket::bind(from).unwrap().send_to(b"transit", "198.51.100.9:9").unwrap();
        });
        let start = Instant::now();
        loop {
            let now = Self::counts();
            let risen = [0, 1, 2].map(|n| now[n] - before[n]);
            match risen {
                [0, 0, 0] => assert!(start.elapsed() < Duration::from_secs(10), "it is lost"),
                [1, 0, 0] => return Fate::Forwarded,
                [0, 1, 0] => return Fate::Leak,
                [0, 0, 1] => return Fate::Unjudged,
                more => panic!("one packet became {more:?}"),
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

const POD: &str = "100.64.1.1";
const PLAIN: &str = "192.0.2.9";

#[test]
fn a_pod_s_packet_is_forwarded_by_no_interface_that_its_network_is_not_behind() {
    as_root_in_namespace("guard everywhere", || {
        let router = Router::new();
        assert_eq!(router.sends(POD), Fate::Forwarded, "no guard");
        for (towards, fate) in
            [("203.0.113.0/24", Fate::Leak), ("198.51.100.0/24", Fate::Forwarded)]
        {
            let mut spec = guard(&[("eth0", &[])]);
            spec.towards.insert("out".into(), vec![net(towards)]);
            install(&spec).unwrap();
            assert_eq!(router.sends(POD), fate, "{towards}");
        }
        install(&guard(&[("eth0", &[])])).unwrap();
        assert_eq!(router.sends(POD), Fate::Leak);
        assert_eq!(router.sends(PLAIN), Fate::Forwarded);
        // The machine's own is its own.
        ip("address add 100.64.2.2/32 dev lo");
        let before = Router::counts();
        let own = UdpSocket::bind("100.64.2.2:0").unwrap();
        own.send_to(b"own", "198.51.100.9:9").unwrap();
        assert_eq!(Router::counts()[0], before[0] + 1);
    });
}

#[test]
fn transit_that_no_program_has_judged_is_not_forwarded_while_there_are_programs() {
    as_root_in_namespace("guard against unjudged transit", || {
        let router = Router::new();
        let attached = |name: &str| GuardSpec {
            attached: [name.to_owned()].into(),
            ..guard(&[("eth0", &[])])
        };
        for (name, fate) in
            [("near", Fate::Unjudged), ("out", Fate::Unjudged), ("eth0", Fate::Forwarded)]
        {
            let spec = attached(name);
            assert_eq!(install(&spec).unwrap(), Installed::Written, "{name}");
            assert_eq!(install(&spec).unwrap(), Installed::Unchanged, "{name}");
            assert_eq!(router.sends(PLAIN), fate, "{name}");
        }
        // What a program has sent up carries the mark.
        install(&attached("near")).unwrap();
        let marks = format!("add rule ip marks prerouting meta mark set {MARK:#x}");
        run("nft", "add table ip marks");
        run("nft", "add chain ip marks prerouting { type filter hook prerouting priority 0; }");
        run("nft", &marks);
        assert_eq!(router.sends(PLAIN), Fate::Forwarded);
        run("nft", "delete table ip marks");
        assert_eq!(router.sends(PLAIN), Fate::Unjudged);
        // The machine's own is not forwarded.
        let own = UdpSocket::bind("192.0.2.1:0").unwrap();
        let before = Router::counts();
        own.send_to(b"own", "198.51.100.9:9").unwrap();
        assert_eq!(Router::counts(), [before[0] + 1, before[1], before[2]]);
        // Programs are taken out: the guard against leaks stays.
        let bare = attached("near").without_programs();
        assert!(read().unwrap().unwrap().stops_leaks_of(&bare));
        assert_eq!(install(&bare).unwrap(), Installed::Written);
        assert_eq!(install(&bare).unwrap(), Installed::Unchanged);
        assert_eq!(router.sends(PLAIN), Fate::Forwarded);
        assert_eq!(router.sends(POD), Fate::Leak);
    });
}

#[test]
fn a_transit_chain_that_was_tampered_with_is_mended() {
    as_root_in_namespace("mended transit guard", || {
        let router = Router::new();
        let spec = GuardSpec { attached: ["near".to_owned()].into(), ..guard(&[("eth0", &[])]) };
        install(&spec).unwrap();
        for tampering in [
            "insert rule inet sluice_guard forward accept",
            "flush chain inet sluice_guard forward",
            "delete table inet sluice_guard",
        ] {
            run("nft", tampering);
            assert!(!read().unwrap().is_some_and(|state| state.holds(&spec)), "{tampering}");
            assert_eq!(install(&spec).unwrap(), Installed::Written, "{tampering}");
            assert_eq!(router.sends(PLAIN), Fate::Unjudged, "{tampering}");
        }
    });
}
