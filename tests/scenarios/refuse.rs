//! Who is not allowed learns as much as the policy says, and so do the records.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::client::{self, Attempt, UdpLoad};
use lab::plan::{INTERNET_ROUTER, INTERNET_SERVERS, TRANSIT_SERVERS, VPC_GATEWAY};
use lab::servers::{ECHO, HTTP};
use lab::{Config, Shape};
use serde_json::Value;
use xdp_abi::reason::Reason;

use crate::stand::{Place, Stand, everywhere, show};

const PATIENCE: Duration = Duration::from_millis(600);

everywhere!(refusals_and_errors_reach_whom_they_concern);

fn refusals_and_errors_reach_whom_they_concern(place: Place) -> Result<()> {
    let mut stand = place.stand_with(batch_keeps_off)?;
    show!(stand:
        what_no_rule_allows_is_dropped_in_silence,
        what_is_rejected_is_told_so_at_once,
        the_shortest_datagrams_are_answered_too,
        a_source_that_does_not_belong_here_is_dropped,
        a_pod_s_address_does_not_come_from_the_fabric,
        a_segment_without_a_session_is_reset_inside,
        a_packet_too_old_is_reported_by_whoever_drops_it,
        a_packet_too_big_for_the_way_is_reported_with_the_size,
    )
}

/// A rule that rejects what others do not.
pub(crate) fn batch_keeps_off(config: &mut Config) {
    config.add_rule("batch-keeps-off", 145, "reject", "batch", "transit-servers");
}

fn what_no_rule_allows_is_dropped_in_silence(stand: &mut Stand) -> Result<()> {
    let before = stand.counters()?.dropped(Reason::DefaultDenied);
    let lab = &stand.lab;
    let web = &lab.pod("prod-eu", "web");
    let to = SocketAddrV4::new(TRANSIT_SERVERS[0], HTTP);
    let attempt = client::connect_to(&web.netns, to, PATIENCE)?;
    ensure!(matches!(attempt, Attempt::Silence), "{attempt:?}");
    // The same address as an allowed pod of the other cluster, where those are the same.
    let report = &lab.pod("prod-us", "report").netns;
    let to = SocketAddrV4::new(INTERNET_SERVERS[0], ECHO);
    let datagrams = client::udp(report, to, UdpLoad::default())?;
    ensure!((datagrams.answered, datagrams.refused) == (0, 0), "{datagrams:?}");
    ensure!(client::ping(report, INTERNET_SERVERS[0], 1)? == 0);
    let dropped = stand.counters()?.dropped(Reason::DefaultDenied) - before;
    ensure!(dropped >= 12, "{dropped} packets are counted");
    stand.record("of a default deny", |record| {
        record["event"] == "deny"
            && record["reason"] == "default_denied"
            && record["source"]["endpoint"] == "prod-eu/web"
            && has_group(&record["source"], "web")
            && has_group(&record["destination"], "transit-servers")
            && record["destination"]["port"] == HTTP
    })?;
    Ok(())
}

fn has_group(end: &Value, group: &str) -> bool {
    end["groups"].as_array().is_some_and(|groups| groups.iter().any(|name| name == group))
}

pub(crate) fn what_is_rejected_is_told_so_at_once(stand: &mut Stand) -> Result<()> {
    let before = stand.counters()?;
    let report = &stand.lab.pod("prod-eu", "report").netns;
    let start = Instant::now();
    let to = SocketAddrV4::new(INTERNET_SERVERS[1], HTTP);
    let attempt = client::connect_to(report, to, PATIENCE)?;
    ensure!(matches!(attempt, Attempt::Refused), "{attempt:?}");
    ensure!(start.elapsed() < PATIENCE / 2, "only after {:?}", start.elapsed());
    let to = SocketAddrV4::new(TRANSIT_SERVERS[0], ECHO);
    let datagrams = client::udp(report, to, UdpLoad::default())?;
    ensure!(datagrams.answered == 0 && datagrams.refused > 0, "{datagrams:?}");
    let said =
        report.output("ping", &["-n", "-c", "1", "-W", "1", &TRANSIT_SERVERS[0].to_string()])?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    ensure!(said.contains("Packet filtered"), "{said}");
    let after = stand.counters()?;
    let rejected = |counters: &crate::counters::Counters| counters.dropped(Reason::RuleRejected);
    ensure!(rejected(&after) - rejected(&before) >= 3, "{after:?}");
    ensure!(after.answered - before.answered >= 3, "{after:?}");
    stand.record("of a rejection by its rule", |record| {
        record["event"] == "deny"
            && record["verdict"] == "reject"
            && record["rule"]["name"] == "batch-stays-inside"
            && record["source"]["endpoint"] == "prod-eu/report"
    })?;
    Ok(())
}

/// An answer is longer than these, and a frame has more room in front than behind.
pub(crate) fn the_shortest_datagrams_are_answered_too(stand: &mut Stand) -> Result<()> {
    let report = &stand.lab.pod("prod-eu", "report").netns;
    for length in [0, 1, 12, 20, 40] {
        let told = report.enter(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect((TRANSIT_SERVERS[0], ECHO))?;
            socket.send(&[7; 40][..length])?;
            Ok(socket.recv(&mut [0; 64]).map_err(|error| error.kind()))
        })?;
        ensure!(told == Err(ErrorKind::HostUnreachable), "{length} bytes: {told:?}");
    }
    Ok(())
}

fn a_source_that_does_not_belong_here_is_dropped(stand: &mut Stand) -> Result<()> {
    // Where everything arrives on one interface, the Internet's attachment takes any source; then
    // no rule knows it.
    let reason = match stand.lab.shape {
        Shape::ThreeLegged => Reason::SpoofedSource,
        Shape::OneArmed | Shape::OneArmedTrunk => Reason::DefaultDenied,
    };
    let before = stand.counters()?.dropped(reason);
    let lab = &stand.lab;
    let pod = &lab.pod("prod-eu", "web").netns;
    let spoofed = Ipv4Addr::new(10, 99, 0, 1);
    pod.ip(&format!("addr add {spoofed}/32 dev eth0\n"))?;
    pod.enter(|| {
        let socket = UdpSocket::bind((spoofed, 0))?;
        for _ in 0..5 {
            socket.send_to(b"spoofed", (INTERNET_SERVERS[0], ECHO))?;
        }
        Ok(())
    })?;
    pod.ip(&format!("addr del {spoofed}/32 dev eth0\n"))?;
    let dropped = || Ok(stand.counters()?.dropped(reason) >= before + 5);
    crate::stand::eventually("five spoofed packets are counted", dropped)
}

/// Of a network that is nobody's, where the attachment takes any source.
fn a_pod_s_address_does_not_come_from_the_fabric(stand: &mut Stand) -> Result<()> {
    let before = stand.counters()?.dropped(Reason::SpoofedSource);
    let lab = &stand.lab;
    let forged = Ipv4Addr::new(100, 99, 0, 1);
    let to = TRANSIT_SERVERS[0];
    let (from, route) = match lab.shape {
        Shape::ThreeLegged => {
            (&lab.internet_router, format!("route add {to}/32 via {}\n", lab.internet_address()))
        }
        Shape::OneArmed | Shape::OneArmedTrunk => (&lab.pod("prod-eu", "web").netns, String::new()),
    };
    from.ip(&format!("addr add {forged}/32 dev lo\n{route}"))?;
    from.enter(|| {
        let socket = UdpSocket::bind((forged, 0))?;
        for _ in 0..5 {
            socket.send_to(b"forged", (to, ECHO))?;
        }
        Ok(())
    })?;
    from.ip(&format!("addr del {forged}/32 dev lo\n{}", route.replace("add", "del")))?;
    let dropped = || Ok(stand.counters()?.dropped(Reason::SpoofedSource) >= before + 5);
    crate::stand::eventually("five packets with a forged pod's address are counted", dropped)
}

pub(crate) fn a_segment_without_a_session_is_reset_inside(stand: &mut Stand) -> Result<()> {
    let before = stand.counters()?.dropped(Reason::NoSession);
    let pod = stand.lab.pod("prod-eu", "web");
    let to = SocketAddrV4::new(INTERNET_SERVERS[0], ECHO);
    let stream = client::connect_to(&pod.netns, to, PATIENCE)?.open()?;
    let talk = client::talk(&pod.netns, stream, Duration::from_millis(10), PATIENCE);
    thread::sleep(Duration::from_millis(100));
    ensure!(!talk.ended());
    stand.ctl(&["sessions", "clear", &format!("dst={}", to.ip())])?;
    let talk = talk.finish()?;
    ensure!(talk.answered > 0 && talk.broke == Some(ErrorKind::ConnectionReset), "{talk:?}");
    ensure!(stand.counters()?.dropped(Reason::NoSession) > before);
    Ok(())
}

/// Pings once with more arguments; what it said.
fn ping(stand: &Stand, more: &[&str]) -> Result<String> {
    let pod = &stand.lab.pod("prod-us", "api").netns;
    let server = INTERNET_SERVERS[1].to_string();
    let arguments = [&["-n", "-c", "1", "-W", "1"], more, &[server.as_str()]].concat();
    Ok(String::from_utf8_lossy(&pod.output("ping", &arguments)?.stdout).into_owned())
}

fn a_packet_too_old_is_reported_by_whoever_drops_it(stand: &mut Stand) -> Result<()> {
    let upstream = stand.lab.cluster("prod-us").plan.upstream;
    let hops = match stand.lab.shape {
        Shape::ThreeLegged => [("2", upstream), ("3", INTERNET_ROUTER)],
        Shape::OneArmed | Shape::OneArmedTrunk => [("3", VPC_GATEWAY), ("5", INTERNET_ROUTER)],
    };
    for (ttl, router) in hops {
        let said = ping(stand, &["-t", ttl])?;
        let told = said.contains(&format!("From {router} ")) && said.contains("exceeded");
        ensure!(told, "TTL {ttl} should end at {router}: {said}");
    }
    Ok(())
}

fn a_packet_too_big_for_the_way_is_reported_with_the_size(stand: &mut Stand) -> Result<()> {
    let link = stand.lab.link(&stand.lab.internet_router, "servers");
    link.set_mtu(1_400)?;
    let said = ping(stand, &["-M", "do", "-s", "1400"])?;
    link.set_mtu(1_500)?;
    ensure!(said.contains("mtu = 1400"), "{said}");
    Ok(())
}
