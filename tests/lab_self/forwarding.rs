//! Everybody reaches whom they should, under the address that they should have outside.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::baseline::{Translation, translate};
use lab::client::{self, Attempt, UdpLoad};
use lab::plan::{INTERNET_SERVERS, NON_ROUTABLE, TRANSIT_SERVERS};
use lab::servers::{ECHO, HTTP};
use lab::{Lab, Need, Netns, Offloads, Shape};

const PATIENCE: Duration = Duration::from_secs(2);

#[test]
fn pods_of_both_clusters_reach_both_sides_in_the_three_legged_lab() -> Result<()> {
    lab::require!(Need::Lab, Need::Nftables);
    everybody_reaches_what_they_should(Shape::ThreeLegged)
}

#[test]
fn pods_of_both_clusters_reach_both_sides_in_the_one_armed_lab() -> Result<()> {
    lab::require!(Need::Lab, Need::Nftables);
    everybody_reaches_what_they_should(Shape::OneArmed)
}

#[test]
fn pods_of_both_clusters_reach_both_sides_over_vlans_of_one_interface() -> Result<()> {
    lab::require!(Need::Lab, Need::Nftables, Need::Vlan);
    everybody_reaches_what_they_should(Shape::OneArmedTrunk)
}

fn everybody_reaches_what_they_should(shape: Shape) -> Result<()> {
    let lab = Lab::new(shape, Offloads::Off)?;
    let _servers = lab.serve()?;
    translate(&lab, Translation::All)?;
    let outside = lab.watch_outside()?;
    let inside = lab.watch_clusters()?;
    for cluster in &lab.clusters {
        for pod in &cluster.pods {
            let who = format!("{}/{} in {shape:?}", cluster.plan.name, pod.plan.name);
            for server in TRANSIT_SERVERS {
                reaches(&pod.netns, server, lab.transit_address(), &who)?;
            }
            for server in INTERNET_SERVERS {
                reaches(&pod.netns, server, lab.internet_address(), &who)?;
            }
        }
        let (node, address) = (&cluster.node, cluster.plan.node);
        reaches(node, TRANSIT_SERVERS[0], address, "a node keeps its address")?;
        reaches(node, INTERNET_SERVERS[0], lab.internet_address(), "a node")?;
    }
    for capture in outside {
        let captured = capture.stop()?;
        let looked = captured.assert_clean(&[NON_ROUTABLE])?;
        ensure!(looked.ipv4 > 100, "{}: {looked:?}", captured.place);
        ensure!((looked.partial, looked.lost) == (0, 0), "{}: {looked:?}", captured.place);
        let longest = captured.frames.iter().map(|frame| frame.bytes.len()).max();
        ensure!(longest <= Some(1_514 + 4), "{}: {longest:?} bytes were merged", captured.place);
    }
    for capture in inside {
        let captured = capture.stop()?;
        let looked = captured.assert_clean(&[NON_ROUTABLE])?;
        ensure!(looked.ipv4 > 100, "{}: {looked:?}", captured.place);
    }
    Ok(())
}

fn reaches(from: &Netns, server: Ipv4Addr, outside: Ipv4Addr, who: &str) -> Result<()> {
    let seen = client::whoami(from, server)?.map(|seen| seen.ip());
    ensure!(seen == Some(outside.into()), "{who} asks {server} as {seen:?}, not as {outside}");
    let to = SocketAddrV4::new(server, ECHO);
    let transfer = client::echo(client::connect_to(from, to, PATIENCE)?.open()?, 100_000)?;
    ensure!(transfer.bytes == 100_000, "{who} to {server}: {transfer:?}");
    let report = client::udp(from, to, UdpLoad::default())?;
    ensure!(report.answered == 10 && report.wrong == 0, "{who} to {server}: {report:?}");
    ensure!(client::ping(from, server, 2)? == 2, "{who} pings {server}");
    Ok(())
}

#[test]
fn both_ends_of_a_link_poll_and_only_with_offloads_leave_work_to_the_device() -> Result<()> {
    lab::require!(Need::Lab);
    let lab = Lab::three_legged()?;
    for (offloads, left) in [(Offloads::Off, "off"), (Offloads::On, "on")] {
        lab.set_offloads(offloads)?;
        for end in &lab.link(&lab.gateway, "eth-eu").ends {
            let features = end.netns.run("ethtool", &["-k", &end.name])?;
            for (feature, expected) in [
                ("generic-receive-offload", "on"), // what makes it poll
                ("tx-checksumming", left),
                ("tcp-segmentation-offload", left),
                ("generic-segmentation-offload", left),
                ("tx-vlan-offload", "off"),
                ("rx-vlan-offload", "off"),
            ] {
                let line = format!("{feature}: {expected}");
                let is = features.lines().any(|have| have.trim() == line);
                ensure!(is, "{offloads:?} {}: not {line} in {features}", end.name);
            }
        }
    }
    Ok(())
}

#[test]
fn transit_servers_reach_nodes_and_nobody_outside_reaches_pods() -> Result<()> {
    lab::require!(Need::Lab, Need::Nftables, Need::Tool("ping"));
    for shape in [Shape::ThreeLegged, Shape::OneArmed] {
        let lab = Lab::new(shape, Offloads::Off)?;
        translate(&lab, Translation::All)?;
        for cluster in &lab.clusters {
            let heard = client::ping(&lab.transit, cluster.plan.node, 2)?;
            ensure!(heard == 2, "{} in {shape:?}: {heard}", cluster.plan.node);
            let pod = cluster.pods[0].address;
            for side in [&lab.transit, &lab.internet] {
                let heard = client::ping(side, pod, 1)?;
                ensure!(heard == 0, "{} reaches {pod} in {shape:?}", side.name());
            }
        }
    }
    Ok(())
}

#[test]
fn pages_are_served_to_curl_and_say_who_asked() -> Result<()> {
    lab::require!(Need::Lab, Need::Nftables, Need::Tool("curl"));
    let lab = Lab::three_legged()?;
    let _servers = lab.serve()?;
    translate(&lab, Translation::All)?;
    let pod = &lab.pod("prod-us", "web").netns;
    let page = client::fetch(pod, &format!("http://{}:{HTTP}/", INTERNET_SERVERS[0]))?;
    let page = page.unwrap_or_default();
    ensure!(page.starts_with(&format!("{}:", lab.internet_address())), "{page:?}");
    let nobody = client::fetch(pod, "http://198.51.100.99/")?;
    ensure!(nobody.is_none(), "nobody is there: {nobody:?}");
    Ok(())
}

#[test]
fn iperf3_measures_between_a_pod_and_the_internet() -> Result<()> {
    lab::require!(Need::Lab, Need::Nftables, Need::Tool("iperf3"));
    let lab = Lab::new(Shape::ThreeLegged, Offloads::On)?;
    let _servers = lab.serve()?;
    translate(&lab, Translation::All)?;
    let outside = lab.watch_outside()?;
    let pod = &lab.pod("prod-eu", "web").netns;
    let rate = client::iperf(pod, INTERNET_SERVERS[0], 1, &["--bitrate", "50M"])?;
    ensure!(rate > 10e6, "{rate} bit/s");
    let mut partial = 0;
    for capture in outside {
        partial += capture.stop()?.assert_clean(&[NON_ROUTABLE])?.partial;
    }
    ensure!(partial > 0, "with offloads the sender leaves checksums to the device");
    Ok(())
}

#[test]
fn an_attempt_tells_an_open_port_a_refusal_and_silence_apart() -> Result<()> {
    lab::require!(Need::Lab, Need::Nftables);
    let lab = Lab::one_armed()?;
    let _servers = lab.serve()?;
    translate(&lab, Translation::All)?;
    let pod = &lab.pod("prod-eu", "api").netns;
    let attempt = |port| {
        let to = SocketAddrV4::new(INTERNET_SERVERS[1], port);
        client::connect_to(pod, to, Duration::from_millis(500))
    };
    ensure!(matches!(attempt(ECHO)?, Attempt::Open(_)), "somebody listens there");
    ensure!(matches!(attempt(9)?, Attempt::Refused), "nobody listens there");
    translate(&lab, Translation::OnlyWeb)?;
    ensure!(matches!(attempt(ECHO)?, Attempt::Silence), "it is dropped on the way");
    ensure!(matches!(attempt(HTTP)?, Attempt::Open(_)), "this is let through");
    Ok(())
}

#[test]
fn a_chosen_source_port_is_the_one_that_arrives() -> Result<()> {
    lab::require!(Need::Lab, Need::Nftables);
    let lab = Lab::three_legged()?;
    let _servers = lab.serve()?;
    translate(&lab, Translation::All)?;
    let pod = lab.pod("prod-eu", "report");
    let from = SocketAddrV4::new(pod.address, 40_123);
    let to = SocketAddrV4::new(TRANSIT_SERVERS[0], ECHO);
    let stream = client::connect_from(&pod.netns, from, to, PATIENCE)?.open()?;
    ensure!(stream.local_addr()? == from.into());
    ensure!(client::echo(stream, 1_000)?.bytes == 1_000);
    Ok(())
}
