//! Interfaces with different hooks beside one another, and interfaces whose hook changes.

use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::client;
use lab::plan::{INTERNET_SERVERS, TRANSIT_SERVERS};
use lab::servers::ECHO;
use lab::{Config, Hook, Need, Netns, Shape};
use serde_json::{Value, json};

use crate::reach::reaches;
use crate::stand::{Place, Stand, eventually, show};

const PATIENCE: Duration = Duration::from_secs(2);

/// Gives the interfaces that `is_meant` likes another hook.
fn set_hooks(config: &mut Config, hook: &str, is_meant: impl Fn(&str) -> bool) {
    let attachments = config.gateway["attachments"].as_array_mut().expect("a list");
    for attachment in attachments {
        if attachment["interface"].as_str().is_some_and(&is_meant) {
            attachment["hook"] = json!(hook);
        }
    }
}

fn is_outside(interface: &str) -> bool {
    ["eth-internet", "eth-transit"].contains(&interface)
}

/// The interface of one cluster, or where all share one an interface that nobody uses: it keeps the hook
/// that the others lose. Programs of both kinds are loaded only if some interface had each when the
/// daemon started.
fn stays(interface: &str) -> bool {
    ["eth-us", SPARE].contains(&interface)
}

const SPARE: &str = "spare0";

/// One more interface, with an attachment of its own.
fn add_spare(stand: &mut Stand, hook: &str) -> Result<()> {
    stand.daemon.stop()?;
    stand.lab.gateway.ip(&format!(
        "link add {SPARE} type veth peer name spare1\n\
         link set {SPARE} up\n\
         link set spare1 up\n"
    ))?;
    let attachments = stand.config.gateway["attachments"].as_array_mut().expect("a list");
    attachments.push(json!({
        "name": "spare", "interface": SPARE, "kind": "connection", "hook": hook,
        "sources": ["172.31.0.0/16"], "routes": ["172.31.0.0/16"],
    }));
    stand.config.write(stand.daemon.config())?;
    stand.daemon.restart()
}

#[test]
fn each_interface_has_the_hook_that_it_can_have() -> Result<()> {
    lab::require!(Need::Lab, Need::Nftables, Need::Bpffs, Need::Gateway, Need::Ctl);
    for outside in ["xdp", "tc"] {
        let place = Place {
            shape: Shape::ThreeLegged,
            hook: if outside == "xdp" { Hook::Tc } else { Hook::Xdp },
        };
        println!("outside on {outside}, inside on {:?}", place.hook);
        let mut stand = place.stand_with(|config| set_hooks(config, outside, is_outside))?;
        show!(stand: everybody_is_reached_both_ways)?;
    }
    Ok(())
}

fn everybody_is_reached_both_ways(stand: &mut Stand) -> Result<()> {
    let lab = &stand.lab;
    let (transit, internet) = (lab.transit_address(), lab.internet_address());
    for cluster in ["prod-eu", "prod-us"] {
        reaches(&lab.pod(cluster, "web").netns, INTERNET_SERVERS[0], internet)?;
        reaches(&lab.pod(cluster, "api").netns, TRANSIT_SERVERS[0], transit)?;
        let cluster = lab.cluster(cluster);
        let answered = client::ping(&lab.transit, cluster.plan.node, 3)?;
        ensure!(answered == 3, "{answered} of three pings to a node are answered");
    }
    // What cannot be sent by one hook is sent by the other, and the kernel routes none of it but
    // what it had no neighbour for.
    let counters = stand.counters()?;
    ensure!(counters.forwarded > 500 && counters.punted < 50, "{counters:?}");
    Ok(())
}

#[test]
fn an_interface_changes_its_hook_by_a_reload() -> Result<()> {
    an_interface_changes_its_hook(Shape::ThreeLegged)
}

#[test]
fn the_one_interface_changes_its_hook_by_a_reload() -> Result<()> {
    an_interface_changes_its_hook(Shape::OneArmed)
}

fn an_interface_changes_its_hook(shape: Shape) -> Result<()> {
    lab::require!(Need::Lab, Need::Nftables, Need::Bpffs, Need::Gateway, Need::Ctl);
    for [first, second] in [["xdp", "tc"], ["tc", "xdp"]] {
        println!("{first}, then {second}, then {first}");
        let mut stand = Place { shape, hook: Hook::Xdp }.stand_with(|config| {
            set_hooks(config, first, |interface| !stays(interface));
            set_hooks(config, second, stays);
        })?;
        if shape == Shape::OneArmed {
            add_spare(&mut stand, second)?;
        }
        serves(&stand, first)?;
        for hook in [second, first] {
            set_hooks(&mut stand.config, hook, |interface| !stays(interface));
            stand.reload()?;
            serves(&stand, hook)?;
        }
        stand.assert_sound()?;
    }
    Ok(())
}

/// Every hook has its program, each packet is judged once, and XDP sends without the kernel.
fn serves(stand: &Stand, hook: &str) -> Result<()> {
    eventually("every program is in its place", || {
        let answer: Value = serde_json::from_str(&stand.ctl(&["-o", "json", "programs"])?)?;
        let programs = answer["programs"].as_array().cloned().unwrap_or_default();
        let missing = programs.iter().filter(|program| program["missing"] == true).count();
        Ok(missing == 0 && !programs.is_empty() && stand.daemon.get("/readyz")?.0 == 200)
    })?;
    let web = &stand.lab.pod("prod-eu", "web").netns;
    talks(web)?;
    let (before, redirected_before) = (stand.counters()?, redirected(stand)?);
    let answered = client::ping(web, INTERNET_SERVERS[0], 5)?;
    ensure!(answered == 5, "{answered} of five pings are answered");
    let (after, redirected) = (stand.counters()?, redirected(stand)? - redirected_before);
    let handled = after.forwarded + after.punted - before.forwarded - before.punted;
    ensure!(handled == 10, "five pings and their answers are {handled} packets");
    let expected = if hook == "xdp" { 10 } else { 0 };
    ensure!(redirected == expected, "of {handled} packets on {hook} XDP redirected {redirected}");
    Ok(())
}

/// How many frames XDP has sent on between the first cluster and the Internet, as the driver
/// counts them.
fn redirected(stand: &Stand) -> Result<u64> {
    let mut sum = 0;
    let interfaces: &[&str] = match stand.lab.shape {
        Shape::ThreeLegged => &["eth-eu", "eth-internet"],
        Shape::OneArmed | Shape::OneArmedTrunk => &["eth0"],
    };
    for interface in interfaces {
        let counts = stand.lab.gateway.run("ethtool", &["-S", interface])?;
        let lines = counts.lines().filter_map(|line| line.split_once("_xdp_redirect: "));
        let mut queues = lines.peekable();
        ensure!(queues.peek().is_some(), "no count of redirected frames: {counts}");
        for (_, count) in queues {
            sum += count.trim().parse::<u64>()?;
        }
    }
    Ok(sum)
}

fn talks(from: &Netns) -> Result<()> {
    let to = SocketAddrV4::new(INTERNET_SERVERS[0], ECHO);
    client::echo(client::connect_to(from, to, PATIENCE)?.open()?, 100_000).map(drop)
}

#[test]
fn a_start_that_xdp_does_not_suit_leaves_tc_at_work() -> Result<()> {
    lab::require!(Need::Lab, Need::Nftables, Need::Bpffs, Need::Gateway, Need::Ctl);
    let mut stand = Place { shape: Shape::ThreeLegged, hook: Hook::Tc }.stand()?;
    let web = stand.lab.pod("prod-eu", "web").netns.clone();
    talks(&web)?;
    stand.daemon.stop()?;
    // More than a page: no native XDP on a veth.
    stand.lab.gateway.run("ip", &["link", "set", "eth-internet", "mtu", "9000"])?;
    stand.lab.internet_router.run("ip", &["link", "set", "uplink", "mtu", "9000"])?;
    // An end that does not poll loses whatever XDP redirects to it.
    stand.lab.internet_router.run("ethtool", &["-K", "uplink", "gro", "off"])?;
    talks(&web)?;
    set_hooks(&mut stand.config, "xdp", |_| true);
    stand.config.write(stand.daemon.config())?;
    let refused = stand.daemon.restart();
    let said = format!("{refused:?} {}", stand.daemon.stderr());
    ensure!(refused.is_err() && said.contains("the MTU of `eth-internet`"), "{said}");
    talks(&web)?;
    stand.assert_sound()
}
