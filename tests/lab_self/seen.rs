//! What goes wrong is seen: leaks by captures, loss and cuts by clients.

use std::net::SocketAddrV4;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::baseline::{Translation, translate};
use lab::client::{self, UdpLoad};
use lab::plan::{INTERNET_SERVERS, NON_ROUTABLE};
use lab::servers::ECHO;
use lab::{Capture, Lab, Need, Offloads, Shape, Watch};

const PATIENCE: Duration = Duration::from_secs(2);
const SERVER: SocketAddrV4 = SocketAddrV4::new(INTERNET_SERVERS[0], ECHO);

#[test]
fn a_leak_is_caught_in_every_shape() -> Result<()> {
    lab::require!(Need::Lab, Need::Nftables);
    for shape in [Shape::ThreeLegged, Shape::OneArmed] {
        let lab = Lab::new(shape, Offloads::Off)?;
        let _servers = lab.serve()?;
        let pod = &lab.pod("prod-us", "api").netns;
        for (translation, leaks) in [(Translation::All, false), (Translation::ForgetsUdp, true)] {
            translate(&lab, translation)?;
            let outside = lab.watch_outside()?;
            client::echo(client::connect_to(pod, SERVER, PATIENCE)?.open()?, 1_000)?;
            let report = client::udp(pod, SERVER, UdpLoad::default())?;
            ensure!((report.answered == 0) == leaks, "{translation:?}: {report:?}");
            let results: Vec<_> = outside
                .into_iter()
                .map(|capture| capture.stop()?.assert_clean(&[NON_ROUTABLE]))
                .collect();
            let caught = results.iter().filter(|result| result.is_err()).count();
            ensure!(caught == usize::from(leaks), "{shape:?} {translation:?}: {results:?}");
            for error in results.into_iter().filter_map(Result::err) {
                let text = format!("{error:#}");
                ensure!(text.starts_with("10 of "), "each of the ten datagrams: {text}");
                ensure!(text.contains("non-routable source 100.6"), "{text}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_capture_of_a_silent_interface_says_that_it_saw_nothing() -> Result<()> {
    lab::require!(Need::Lab);
    let lab = Lab::three_legged()?;
    for capture in lab.watch_outside()? {
        let looked = capture.stop()?.assert_clean(&[NON_ROUTABLE])?;
        ensure!(looked.ipv4 == 0, "{looked:?}");
    }
    ensure!(Capture::start(&lab.gateway, "eth-nowhere", Watch::All).is_err());
    Ok(())
}

#[test]
fn a_frame_on_a_vlan_keeps_its_tag_in_a_capture() -> Result<()> {
    lab::require!(Need::Lab, Need::Vlan, Need::Tool("ping"));
    let lab = Lab::new(Shape::OneArmedTrunk, Offloads::Off)?;
    let vpc = lab.vpc.as_ref().unwrap();
    let capture = Capture::start(vpc, "trunk", Watch::All)?;
    let us = lab.cluster("prod-us");
    ensure!(client::ping(&us.node, us.plan.upstream, 2)? == 2);
    let frames = capture.stop()?.frames;
    let tagged = frames.iter().filter(|frame| frame.vlan() == Some(us.plan.vlan)).count();
    ensure!(tagged >= 4, "{tagged} of {} frames are tagged", frames.len());
    Ok(())
}

#[test]
fn a_lossy_line_loses_and_tcp_comes_through_all_the_same() -> Result<()> {
    lab::require!(Need::Lab, Need::Nftables);
    let lab = Lab::three_legged()?;
    let _servers = lab.serve()?;
    translate(&lab, Translation::All)?;
    let pod = &lab.pod("prod-eu", "api").netns;
    let load = UdpLoad { packets: 400, rate: 2_000, ..UdpLoad::default() };
    let lost = |percent| -> Result<u32> {
        lab.internet_router.lose("uplink", percent)?;
        let report = client::udp(pod, SERVER, load)?;
        ensure!(report.sent == 400 && report.missing.len() as u32 == report.lost(), "{report:?}");
        Ok(report.lost())
    };
    ensure!(lost(0)? == 0);
    let some = lost(20)?;
    // 80 expected; the deviation is 8.
    ensure!((30..=130).contains(&some), "{some} of 400");
    lab.internet_router.lose("uplink", 3)?;
    let transfer = client::echo(client::connect_to(pod, SERVER, PATIENCE * 3)?.open()?, 200_000)?;
    ensure!(transfer.bytes == 200_000);
    ensure!(lost(0)? == 0, "the line is good again");
    Ok(())
}

#[test]
fn a_cut_ends_a_talk_and_an_undisturbed_one_goes_on() -> Result<()> {
    lab::require!(Need::Lab, Need::Nftables);
    let lab = Lab::three_legged()?;
    let _servers = lab.serve()?;
    translate(&lab, Translation::All)?;
    let start = |cluster| {
        let pod = &lab.pod(cluster, "web").netns;
        let stream = client::connect_to(pod, SERVER, PATIENCE)?.open()?;
        let gap = Duration::from_millis(5);
        anyhow::Ok(client::talk(pod, stream, gap, Duration::from_millis(500)))
    };
    let (cut, other) = (start("prod-eu")?, start("prod-us")?);
    let flow = client::udp_flow(
        &lab.pod("prod-us", "api").netns,
        SERVER,
        UdpLoad { packets: u32::MAX, ..UdpLoad::default() },
    )?;
    thread::sleep(Duration::from_millis(100));
    lab.link(&lab.gateway, "eth-eu").set_up(false)?;
    let cut = cut.finish()?;
    ensure!(cut.answered > 0 && cut.broke.is_some(), "{cut:?}");
    ensure!(!other.ended());
    let other = other.stop()?;
    ensure!(other.answered > cut.answered && other.broke.is_none(), "{other:?}");
    let report = flow.stop()?;
    ensure!(report.sent > 100 && report.lost() == 0, "{report:?}");
    Ok(())
}

#[test]
fn a_packet_that_does_not_fit_and_one_that_is_too_old_are_answered() -> Result<()> {
    lab::require!(Need::Lab, Need::Nftables, Need::Tool("ping"));
    let lab = Lab::three_legged()?;
    translate(&lab, Translation::All)?;
    let pod = &lab.pod("prod-us", "api").netns;
    let server = INTERNET_SERVERS[0].to_string();
    let ping = |more: &[&str]| -> Result<String> {
        let arguments = [&["-n", "-c", "1", "-W", "1"], more, &[server.as_str()]].concat();
        Ok(String::from_utf8_lossy(&pod.output("ping", &arguments)?.stdout).into_owned())
    };
    let said = ping(&["-t", "3"])?;
    ensure!(said.contains("192.0.2.2") && said.contains("exceeded"), "{said}");
    lab.link(&lab.internet_router, "servers").set_mtu(1_400)?;
    let said = ping(&["-M", "do", "-s", "1400"])?;
    ensure!(said.contains("mtu = 1400"), "{said}");
    Ok(())
}
