//! What an operator sees of packets while they pass.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::client::{self, UdpLoad};
use lab::daemon::ctl_binary;
use lab::plan::INTERNET_SERVERS;
use lab::servers::ECHO;
use serde_json::Value;

use crate::stand::{Place, Stand, everywhere, show, within};

everywhere!(a_capture_shows_what_was_asked_for);

fn a_capture_shows_what_was_asked_for(place: Place) -> Result<()> {
    let mut stand = place.stand()?;
    show!(stand:
        what_is_counted_is_what_was_sent,
        packets_are_counted_and_shown_before_and_after,
        answers_are_found_by_the_address_that_they_come_in_for,
        of_a_sample_as_many_are_shown_as_are_due,
        a_rule_that_does_not_exist_is_told,
        a_session_that_is_judged_again_is_explained_before_it_is,
        a_capture_that_loses_its_gateway_says_what_it_has,
    )
}

/// What the metrics say that was sent on: packets and bytes, from who began a session and back.
fn sent_on(stand: &Stand) -> Result<[f64; 4]> {
    let metric = |name: &str, direction: &str| {
        stand.daemon.metric(name, &[&format!("direction=\"{direction}\"")])
    };
    let [packets, bytes] = ["sluice_packets_total", "sluice_bytes_total"];
    let of = |direction: &str| {
        Ok::<_, anyhow::Error>([metric(packets, direction)?, metric(bytes, direction)?])
    };
    let ([a, b], [c, d]) = (of("original")?, of("reply")?);
    Ok([a, b, c, d])
}

fn what_is_counted_is_what_was_sent(stand: &mut Stand) -> Result<()> {
    const PORT: u16 = 45_678;
    const PACKETS: u32 = 40;
    const PAYLOAD: usize = 100;
    const IP: u32 = PACKETS * (20 + 8 + PAYLOAD as u32);
    const ETHERNET: u32 = IP + PACKETS * 14;
    let pod = stand.lab.pod("prod-us", "web").netns.clone();
    let to = SocketAddrV4::new(INTERNET_SERVERS[0], ECHO);
    // What finds no next hop yet is counted as punted: not these.
    client::udp(&pod, to, UdpLoad::default())?;
    let before = sent_on(stand)?;
    let load =
        UdpLoad { from_port: PORT, packets: PACKETS, payload: PAYLOAD, ..UdpLoad::default() };
    let report = client::udp(&pod, to, load)?;
    ensure!((report.sent, report.answered) == (PACKETS, PACKETS), "{report:?}");
    let after = sent_on(stand)?;
    let added: Vec<f64> = after.iter().zip(before).map(|(after, before)| after - before).collect();
    let [packets, bytes] = [PACKETS, ETHERNET].map(f64::from);
    ensure!(added == [packets, bytes, packets, bytes], "{added:?} of {packets} and {bytes}");
    let counted = |flow: &Value| -> Result<()> {
        for direction in ["original", "reply"] {
            let traffic = &flow[direction];
            let right = traffic["packets"] == PACKETS && traffic["bytes"] == IP;
            ensure!(right, "{direction}, {PACKETS} packets of {IP} bytes: {flow:#}");
        }
        Ok(())
    };
    let filter = [&format!("port={PORT}"), "proto=udp"];
    let shown: Value =
        serde_json::from_str(&stand.ctl(&[&["-o", "json", "sessions"], &filter[..]].concat())?)?;
    ensure!(shown["matched"] == 1, "{shown:#}");
    let session = &shown["sessions"][0];
    counted(session)?;
    let id = session["id"].as_str().context("a session has an id")?;
    let wide = stand.ctl(&["-o", "wide", "sessions", &format!("id={id}")])?;
    ensure!(wide.contains(id) && wide.contains("\n1 session\n"), "{wide}");
    stand.ctl(&[&["sessions", "clear"], &filter[..]].concat())?;
    let end = stand.record("of the end of the flow", |record| {
        record["event"] == "end" && record["session"] == id
    })?;
    ensure!(end["reason"] == "cleared", "{end:#}");
    counted(&end)
}

/// What a capture of so many packets shows while a pod pings a server.
fn captured(stand: &Stand, filter: &[&str], count: &str) -> Result<Vec<Value>> {
    let socket = stand.lab.site().files().join("sluice.sock");
    let socket = socket.to_string_lossy();
    let arguments =
        [&["--socket", &*socket, "-o", "json", "capture", "--count", count], filter].concat();
    let mut capture = stand.lab.gateway.start(&ctl_binary()?, &arguments)?;
    let pod = &stand.lab.pod("prod-eu", "api").netns;
    within(Duration::from_secs(20), "enough packets are captured", || {
        client::ping(pod, INTERNET_SERVERS[0], 1)?;
        Ok(capture.ended()?.is_some())
    })
    .with_context(|| capture.stderr())?;
    let status = capture.wait(Duration::from_secs(5))?;
    ensure!(status.success(), "{status}: {}", capture.stderr());
    let parse = |line| serde_json::from_str(line).with_context(|| format!("no copy: {line}"));
    capture.stdout().lines().map(parse).collect()
}

/// Source and destination of a copy.
fn ends(copy: &Value) -> Result<[Ipv4Addr; 2]> {
    let bytes = copy["bytes"].as_str().context("a copy has bytes")?;
    let address = |at: usize| -> Result<Ipv4Addr> {
        let digits = bytes.get(2 * at..2 * at + 8).context("a copy has an IPv4 header")?;
        Ok(u32::from_str_radix(digits, 16)?.into())
    };
    Ok([address(14 + 12)?, address(14 + 16)?])
}

fn packets_are_counted_and_shown_before_and_after(stand: &mut Stand) -> Result<()> {
    let pod: Ipv4Addr = stand.lab.pod("prod-eu", "api").address;
    let outside = stand.lab.internet_address();
    let server = INTERNET_SERVERS[0];
    let [src, dst] = [format!("src={pod}"), format!("dst={server}")];
    let copies = captured(stand, &[&src, &dst, "proto=icmp", "rule=teams-ping"], "2")?;
    let stages: Vec<_> = copies.iter().map(|copy| copy["stage"].as_str()).collect();
    let [before, after] = [Some("before"), Some("after")];
    ensure!(stages == [before, after, before, after], "{copies:#?}");
    for copy in &copies {
        let is_translated = copy["stage"] == "after" && copy["verdict"] == "forwarded";
        let source = if is_translated { outside } else { pod };
        ensure!(ends(copy)? == [source, server], "from {source}: {copy:#}");
    }
    Ok(())
}

fn answers_are_found_by_the_address_that_they_come_in_for(stand: &mut Stand) -> Result<()> {
    let (outside, server) = (stand.lab.internet_address(), INTERNET_SERVERS[0]);
    let [src, for_whom] = [format!("src={server}"), format!("outside={outside}")];
    let copies = captured(stand, &[&src, &for_whom], "1")?;
    ensure!(copies.len() == 2, "{copies:#?}");
    ensure!(ends(&copies[0])? == [server, outside], "{:#}", copies[0]);
    Ok(())
}

fn of_a_sample_as_many_are_shown_as_are_due(stand: &mut Stand) -> Result<()> {
    let pod: Ipv4Addr = stand.lab.pod("prod-eu", "api").address;
    let socket = stand.lab.site().files().join("sluice.sock");
    let socket = socket.to_string_lossy();
    let server = format!("outside={}", stand.lab.internet_address());
    let arguments = ["--socket", &*socket, "-o", "json", "capture", "proto=icmp", &server];
    let arguments = [&arguments[..], &["--sample", "4", "--seconds", "5"]].concat();
    let mut capture = stand.lab.gateway.start(&ctl_binary()?, &arguments)?;
    std::thread::sleep(Duration::from_secs(1));
    for _ in 0..20 {
        client::ping(&stand.lab.pod("prod-eu", "api").netns, INTERNET_SERVERS[0], 1)?;
    }
    let status = capture.wait(Duration::from_secs(15))?;
    ensure!(status.success(), "{status}: {}", capture.stderr());
    // Forty packets, and so many numbers begin anywhere among their four.
    let said = capture.stderr();
    let packets = said.split(' ').next().and_then(|number| number.parse::<u32>().ok());
    ensure!(packets.is_some_and(|packets| (9..=11).contains(&packets)), "{said}");
    ensure!(said.contains("copies, none lost, 1 in 4 sampled"), "{said}");
    let copies = capture.stdout();
    let mut came: Vec<Ipv4Addr> = Vec::new();
    for line in copies.lines() {
        let copy: Value = serde_json::from_str(line)?;
        if copy["stage"] == "before" {
            came.push(ends(&copy)?[0]);
        }
    }
    for source in [pod, INTERNET_SERVERS[0]] {
        ensure!(came.contains(&source), "of both sides, and {source}: {came:?}");
    }
    Ok(())
}

fn a_rule_that_does_not_exist_is_told(stand: &mut Stand) -> Result<()> {
    let socket = stand.lab.site().files().join("sluice.sock");
    let socket = socket.to_string_lossy();
    for command in ["capture", "sessions"] {
        let arguments = ["--socket", &*socket, command, "rule=no-such"];
        let program = ctl_binary()?;
        let output = stand.lab.gateway.output(&program.to_string_lossy(), &arguments)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1), "{command}: {output:?}");
        ensure!(said.contains("there is no rule `no-such`; `sluicectl rules`"), "{said}");
    }
    Ok(())
}

fn a_session_that_is_judged_again_is_explained_before_it_is(stand: &mut Stand) -> Result<()> {
    let pod = &stand.lab.pod("prod-eu", "web");
    let (netns, address) = (pod.netns.clone(), pod.address);
    let server = SocketAddrV4::new(INTERNET_SERVERS[0], ECHO);
    let mut stream = client::connect_to(&netns, server, Duration::from_secs(2))?.open()?;
    let from = format!("prod-eu:{address}:{}", stream.local_addr()?.port());
    let explained =
        |stand: &Stand| stand.ctl(&["explain", "--from", &from, "--to", &format!("{server}/tcp")]);
    let hold = |stand: &Stand, said: &[&str]| -> Result<()> {
        let explained = explained(stand)?;
        for said in said {
            ensure!(explained.contains(said), "no `{said}` in\n{explained}");
        }
        Ok(())
    };
    hold(stand, &["goes on, and the packet with it; judged under generation"])?;
    // A rule that it is not about: another generation all the same.
    stand.config.set_action("batch-stays-inside", "deny");
    stand.reload()?;
    hold(stand, &["so it is judged again", "it leaves through", "it keeps", "judged again under"])?;
    let judged = stand.counters()?.judged_again;
    hold(stand, &["judged again under"])?;
    ensure!(stand.counters()?.judged_again == judged, "asking judges nothing");
    stand.config.set_action("teams-to-internet", "reject");
    stand.reload()?;
    hold(stand, &["so it is judged again", "rule teams-to-internet rejects it: session"])?;
    stream.write_all(b"x")?;
    ensure!(stream.read(&mut [0]).is_err(), "it is reset");
    Ok(())
}

fn a_capture_that_loses_its_gateway_says_what_it_has(stand: &mut Stand) -> Result<()> {
    let socket = stand.lab.site().files().join("sluice.sock");
    let socket = socket.to_string_lossy();
    for killed in [false, true] {
        let arguments = ["--socket", &*socket, "capture", "proto=icmp"];
        let mut capture = stand.lab.gateway.start(&ctl_binary()?, &arguments)?;
        let pod = stand.lab.pod("prod-us", "web").netns.clone();
        within(Duration::from_secs(10), "something is captured", || {
            client::ping(&pod, INTERNET_SERVERS[0], 1)?;
            Ok(!capture.stdout().is_empty())
        })?;
        if killed {
            stand.daemon.kill()?;
        } else {
            stand.daemon.stop()?;
        }
        let status = capture.wait(Duration::from_secs(5))?;
        let said = capture.stderr();
        let copies = capture.stdout().lines().count();
        ensure!(status.code() == Some(1), "{status}: {said}");
        ensure!(said.starts_with(&format!("{copies} copies captured\n")), "{copies}: {said}");
        ensure!(said.ends_with(" ended before its answer did\n"), "{said}");
        stand.daemon.restart()?;
    }
    Ok(())
}
