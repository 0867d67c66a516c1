//! Senders that leave their checksums and segments to devices are answered as well as others.
//!
//! On TC such packets come as their sender made them, and what the gateway tells of them is
//! written into the same frame.

use std::mem;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::client::{self, Attempt};
use lab::plan::{INTERNET_ROUTER, INTERNET_SERVERS, NON_ROUTABLE, VPC_ROUTER};
use lab::servers::{self, ECHO};
use lab::{Hook, Need, Netns, Offloads, Shape};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::json;

use crate::refuse;
use crate::stand::{Place, Stand, within};

const PATIENCE: Duration = Duration::from_secs(3);

#[test]
fn three_legged() -> Result<()> {
    lab::require!(Need::Lab, Need::Nftables, Need::Bpffs, Need::Gateway, Need::Ctl);
    whoever_leaves_work_to_devices_is_told_all(Shape::ThreeLegged)
}

#[test]
fn one_armed() -> Result<()> {
    lab::require!(Need::Lab, Need::Nftables, Need::Bpffs, Need::Gateway, Need::Ctl);
    whoever_leaves_work_to_devices_is_told_all(Shape::OneArmed)
}

#[test]
fn a_veth_gets_the_hook_that_takes_it_as_it_is() -> Result<()> {
    lab::require!(Need::Lab, Need::Nftables, Need::Bpffs, Need::Gateway, Need::Ctl);
    let mut stand = Place { shape: Shape::ThreeLegged, hook: Hook::Xdp }.stand()?;
    stand.lab.set_offloads(Offloads::On)?;
    let pod = stand.lab.pod("prod-eu", "web").netns.clone();
    let to = SocketAddrV4::new(INTERNET_SERVERS[0], ECHO);
    let attempt = client::connect_to(&pod, to, PATIENCE)?;
    ensure!(matches!(attempt, Attempt::Silence), "XDP has lost its checksum: {attempt:?}");
    let said = stand.daemon.stderr();
    ensure!(said.contains("`ethtool -K PEER tx off txvlan off gro on`"), "{said}");
    let next = stand.lab.watch_outside()?;
    let mut seen = false;
    for capture in mem::replace(&mut stand.outside, next) {
        seen |= capture.stop()?.assert_clean(&[NON_ROUTABLE]).is_err();
    }
    ensure!(seen, "captures see what XDP has lost");

    let attachments = stand.config.gateway["attachments"].as_array_mut().context("a list")?;
    for attachment in attachments {
        attachment["hook"] = json!("auto");
    }
    stand.config.write(stand.daemon.config_path())?;
    stand.daemon.restart()?;
    client::echo(client::connect_to(&pod, to, PATIENCE)?.open()?, 100_000)?;
    let said = stand.daemon.stderr();
    ensure!(said.matches("ethtool").count() == 4, "said of all, and never again: {said}");
    ends_sound(&mut stand)
}

fn whoever_leaves_work_to_devices_is_told_all(shape: Shape) -> Result<()> {
    let place = Place { shape, hook: Hook::Tc };
    let mut stand = place.stand_with(refuse::batch_keeps_off)?;
    stand.lab.set_offloads(Offloads::On)?;
    refuse::what_is_rejected_is_told_so_at_once(&mut stand)?;
    refuse::the_shortest_datagrams_are_answered_too(&mut stand)?;
    refuse::a_segment_without_a_session_is_reset_inside(&mut stand)?;
    a_packet_too_old_is_reported(&stand)?;
    the_size_that_fits_is_found_outwards(&stand)?;
    the_size_that_fits_is_found_inwards(&stand)?;
    ends_sound(&mut stand)
}

/// The look at the end. What has half a checksum yet is judged by who receives it; all else here.
fn ends_sound(stand: &mut Stand) -> Result<()> {
    let partial = stand.assert_sound_but_partial()?;
    ensure!(partial > 0, "senders leave nothing to devices");
    Ok(())
}

fn a_packet_too_old_is_reported(stand: &Stand) -> Result<()> {
    let pod = &stand.lab.pod("prod-us", "api").netns;
    // Through the routers before the gateway.
    let ttl = if stand.lab.vpc.is_some() { "3" } else { "2" };
    pod.sysctl("net/ipv4/ip_default_ttl", ttl)?;
    let to = SocketAddrV4::new(INTERNET_SERVERS[0], ECHO);
    let attempt = client::connect_to(pod, to, PATIENCE)?;
    ensure!(matches!(attempt, Attempt::Refused), "TCP: {attempt:?}");
    let told = pod.enter(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(to)?;
        socket.send(b"how far")?;
        Ok(socket.recv(&mut [0; 16]).map_err(|error| error.raw_os_error()))
    })?;
    ensure!(told == Err(Some(nix::libc::EHOSTUNREACH)), "UDP: {told:?}");
    pod.sysctl("net/ipv4/ip_default_ttl", "64")
}

fn the_size_that_fits_is_found_outwards(stand: &Stand) -> Result<()> {
    let router = if stand.lab.vpc.is_some() { VPC_ROUTER } else { INTERNET_ROUTER };
    let route = format!("route replace default via {router}");
    stand.lab.gateway.ip(&format!("{route} mtu lock 1300\n"))?;
    let pod = &stand.lab.pod("prod-eu", "api").netns;
    within(PATIENCE * 6, "the route has its MTU", || {
        let said = pod.output("ping", &["-nc1", "-W1", "-Mdo", "-s1400", "198.51.100.99"])?;
        Ok(String::from_utf8_lossy(&said.stdout).contains("mtu = 1300"))
    })?;
    let [first, second] = INTERNET_SERVERS;
    let stream = client::connect_to(pod, SocketAddrV4::new(first, ECHO), PATIENCE)?.open()?;
    client::echo(stream, 300_000).context("a pod finds the MTU of the way out")?;
    ensure!(way_to(pod, first)?.contains("mtu 1300"), "TCP: {}", way_to(pod, first)?);
    pod.enter(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        Ok(socket.send_to(&[1; 1_400], (second, ECHO))?)
    })?;
    within(PATIENCE * 6, "UDP is told the MTU", || Ok(way_to(pod, second)?.contains("mtu 1300")))?;
    stand.lab.gateway.ip(&format!("{route}\n"))
}

fn the_size_that_fits_is_found_inwards(stand: &Stand) -> Result<()> {
    let lab = &stand.lab;
    let cluster = lab.cluster("prod-us");
    let node = cluster.plan.node;
    let router = if lab.vpc.is_some() { VPC_ROUTER } else { cluster.plan.router };
    let route = format!("route replace {} via {router}", cluster.plan.nodes);
    lab.gateway.ip(&format!("{route} mtu lock 1200\n"))?;
    let _server = servers::tcp(&cluster.node, ECHO, servers::echo)?;
    within(PATIENCE * 6, "a server finds the MTU of the way in", || {
        let to = SocketAddrV4::new(node, ECHO);
        client::echo(client::connect_to(&lab.transit, to, PATIENCE)?.open()?, 300_000)?;
        Ok(way_to(&lab.transit, node)?.contains("mtu 1200"))
    })?;
    lab.gateway.ip(&format!("{route}\n"))
}

/// What a machine has learnt of its way to an address.
fn way_to(from: &Netns, to: Ipv4Addr) -> Result<String> {
    from.run("ip", &["route", "get", &to.to_string()])
}
