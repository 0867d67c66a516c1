//! An interface is missing: everything else goes on, and it is served when it comes.

use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{HashMap, Map, MapData};
use gateway::net::guard::TABLE;
use lab::client::{self, UdpLoad};
use lab::plan::INTERNET_SERVERS;
use lab::servers::ECHO;
use serde_json::{Value, json};
use xdp_abi::forward::NextHopKey;
use xdp_abi::names;

use crate::stand::{Place, Stand, eventually, everywhere, policy_word, show, within};

const PATIENCE: Duration = Duration::from_secs(2);
/// The kernel's verifier takes seconds.
const START: Duration = Duration::from_secs(60);
/// How often the daemon looks at the guard.
const UPKEEP: Duration = Duration::from_secs(2);
const INTERNET: SocketAddrV4 = SocketAddrV4::new(INTERNET_SERVERS[0], ECHO);
const FAULT: &str = "attachment `spare`: there is no interface `spare0`";

everywhere!(a_missing_interface_holds_up_nothing_else);

fn a_missing_interface_holds_up_nothing_else(place: Place) -> Result<()> {
    let mut stand = place.stand()?;
    plug_in(&stand)?;
    stand.config.gateway["attachments"].as_array_mut().context("a list")?.push(json!({
        "name": "spare", "interface": "spare0", "kind": "connection", "hook": place.hook.as_str(),
        "sources": ["172.31.0.0/16"], "routes": ["172.31.0.0/16"],
    }));
    stand.reload()?;
    show!(stand:
        next_hops_by_an_interface_that_is_gone_are_not_found_again,
        a_rule_is_revoked_while_an_interface_is_away,
        an_interface_that_is_switched_off_is_missed_too,
        an_interface_that_never_was_is_refused,
        a_start_serves_what_is_there_and_what_comes,
        a_machine_that_does_not_forward_is_not_ready,
    )
}

/// A link that no traffic of the lab needs.
fn plug_in(stand: &Stand) -> Result<()> {
    stand.lab.gateway.ip("link add spare0 type veth peer name spare1\n\
         link set spare0 up\n\
         link set spare1 up\n")
}

fn unplug(stand: &Stand) -> Result<()> {
    stand.lab.gateway.ip("link del spare0\n")
}

/// The hook that serves the spare attachment.
fn hook(stand: &Stand) -> Result<Value> {
    let status: Value = serde_json::from_str(&stand.ctl(&["-o", "json", "status"])?)?;
    let attachments = status["attachments"].as_array().context("attachments are a list")?;
    let spare = attachments.iter().find(|attachment| attachment["name"] == "spare");
    Ok(spare.context("there is a spare attachment")?["hook"].clone())
}

/// By how many interfaces, known by their numbers, the last guard lets punted packets leave.
fn guarded_numbers(stand: &Stand) -> Result<usize> {
    let rules = stand.lab.gateway.run("nft", &["list", "chain", "inet", TABLE, "postrouting"])?;
    Ok(rules.lines().filter(|rule| rule.trim().starts_with("oif ")).count())
}

/// Whether the last guard lets punted packets leave by the spare interface.
fn is_excepted(stand: &Stand) -> Result<bool> {
    let rules = stand.lab.gateway.run("nft", &["list", "chain", "inet", TABLE, "postrouting"])?;
    Ok(rules.lines().any(|rule| rule.trim().starts_with("oif \"spare0\" meta mark")))
}

fn is_missed(stand: &Stand) -> Result<bool> {
    let (status, body) = stand.daemon.get("/readyz")?;
    Ok(status == 503 && body.contains(FAULT))
}

fn is_served(stand: &Stand) -> Result<bool> {
    Ok(stand.daemon.get("/readyz")?.0 == 200 && !hook(stand)?.is_null())
}

/// Interfaces by which next hops are found.
fn interfaces_of_next_hops(stand: &Stand) -> Result<Vec<u32>> {
    let pin = stand.lab.site().pins().join(names::NEXT_HOP_INDEX);
    let index: HashMap<MapData, NextHopKey, u32> =
        Map::HashMap(MapData::from_pin(pin)?).try_into()?;
    Ok(index.keys().flatten().map(|key| key.ifindex).collect())
}

fn next_hops_by_an_interface_that_is_gone_are_not_found_again(stand: &mut Stand) -> Result<()> {
    let gateway = stand.lab.gateway.clone();
    gateway.ip("route add 172.31.0.0/16 dev spare0\n")?;
    let before = interfaces_of_next_hops(stand)?;
    let to = SocketAddrV4::new([172, 31, 0, 9].into(), ECHO);
    let once = UdpLoad { packets: 1, patience: Duration::ZERO, ..UdpLoad::default() };
    client::udp(&stand.lab.cluster("prod-eu").node, to, once)?;
    let shown = gateway.run("ip", &["-o", "link", "show", "spare0"])?;
    let number: u32 = shown.split_once(':').context("its number comes first")?.0.parse()?;
    ensure!(!before.contains(&number) && interfaces_of_next_hops(stand)?.contains(&number));
    unplug(stand)?;
    eventually("they are forgotten", || Ok(!interfaces_of_next_hops(stand)?.contains(&number)))?;
    ensure!(
        before
            .iter()
            .all(|other| interfaces_of_next_hops(stand).is_ok_and(|now| now.contains(other)))
    );
    plug_in(stand)?;
    eventually("it is served again", || is_served(stand))
}

fn a_rule_is_revoked_while_an_interface_is_away(stand: &mut Stand) -> Result<()> {
    let pod = stand.lab.pod("prod-eu", "web").netns.clone();
    let stream = client::connect_to(&pod, INTERNET, PATIENCE)?.open()?;
    let talk = client::talk(&pod, stream, Duration::from_millis(2), Duration::from_millis(800));
    let before = stand.daemon.stderr().len();
    let translating = guarded_numbers(stand)?;
    unplug(stand)?;
    eventually("the interface is missed", || is_missed(stand))?;
    let said = stand.daemon.stderr().split_off(before);
    ensure!(said.contains("WARN") && said.contains(FAULT), "{said}");
    ensure!(hook(stand)?.is_null(), "nothing serves it");
    ensure!(!talk.ended(), "the flow is another's");
    // The guard follows by itself, and nobody is blamed for it.
    eventually("the guard follows", || Ok(guarded_numbers(stand)? == translating - 1))?;
    std::thread::sleep(2 * UPKEEP);
    let said = stand.daemon.stderr().split_off(before);
    ensure!(!said.contains("the last guard was gone"), "{said}");
    stand.config.set_action("teams-to-internet", "deny");
    stand.reload()?;
    let cut = talk.finish()?;
    ensure!(cut.broke.is_some() && cut.answered > 0, "{cut:?}");
    ensure!(is_missed(stand)?, "it is still said");
    stand.config.set_action("teams-to-internet", "permit");
    stand.reload()?;
    client::echo(client::connect_to(&pod, INTERNET, PATIENCE)?.open()?, 1_000)?;
    plug_in(stand)?;
    eventually("it is served again", || Ok(is_served(stand)? && is_excepted(stand)?))?;
    stand.lab.gateway.run("nft", &["delete", "table", "inet", TABLE])?;
    eventually("who takes the guard away is told of", || {
        Ok(stand.daemon.stderr().split_off(before).contains("the last guard was gone"))
    })
}

fn an_interface_that_is_switched_off_is_missed_too(stand: &mut Stand) -> Result<()> {
    const SAID: &str = "`spare0` is switched off";
    let before = stand.daemon.stderr().len();
    stand.lab.gateway.ip("link set spare0 down\n")?;
    eventually("it is missed", || {
        let (status, body) = stand.daemon.get("/readyz")?;
        Ok(status == 503 && body.contains(SAID) && stand.ctl(&["status"])?.contains(SAID))
    })?;
    std::thread::sleep(2 * UPKEEP);
    stand.lab.gateway.ip("link set spare0 up\n")?;
    eventually("it is served again", || is_served(stand))?;
    let said = stand.daemon.stderr().split_off(before);
    ensure!(said.matches(SAID).count() == 1, "once: {said}");
    ensure!(said.contains("INFO it is switched on again interface=spare0"), "{said}");
    Ok(())
}

fn an_interface_that_never_was_is_refused(stand: &mut Stand) -> Result<()> {
    let said = "attachment `spare`: there is no interface `spaer0`";
    let pins = stand.lab.site().pins();
    // The other end of the link that was plugged in comes up a moment later, and is followed.
    let mut before = policy_word(&pins)?;
    eventually("what was plugged in is followed to the end", || {
        std::thread::sleep(Duration::from_millis(200));
        let now = policy_word(&pins)?;
        Ok(std::mem::replace(&mut before, now) == now)
    })?;
    let mut wrong = stand.config.clone();
    let stated = wrong.gateway["attachments"].as_array_mut().context("a list")?;
    stated.last_mut().context("the spare one")?["interface"] = json!("spaer0");
    stand.daemon.reload(&wrong)?;
    eventually("the reload is refused", || {
        let status = stand.ctl(&["status"])?;
        let refused = status.lines().find(|line| line.contains("the last reload was refused: "));
        Ok(refused.is_some_and(|line| {
            line.contains(".yaml:") && line.contains("].interface: ") && line.contains(said)
        }))
    })?;
    let Err(refused) = stand.daemon.restart() else { bail!("it has started") };
    let refused = format!("{refused:#}");
    ensure!(refused.contains("exit status: 1") && refused.contains(said), "{refused}");
    ensure!(policy_word(&pins)? == before, "it was published all the same");
    stand.config.write(stand.daemon.config_path())?;
    stand.daemon.restart()
}

fn a_start_serves_what_is_there_and_what_comes(stand: &mut Stand) -> Result<()> {
    let place = stand.config.clone();
    ensure!(is_excepted(stand)?, "a program translates there");
    stand.daemon.stop()?;
    unplug(stand)?;
    plug_in(stand)?;
    ensure!(!is_excepted(stand)?, "it has no program under its new number");
    unplug(stand)?;
    // Only its driver will say which one.
    let stated = stand.config.gateway["attachments"].as_array_mut().context("a list")?;
    stated.last_mut().context("the spare one")?["hook"] = json!("auto");
    stand.config.set_action("teams-ping", "deny");
    stand.config.write(stand.daemon.config_path())?;
    stand.daemon.relaunch()?;
    within(START, "it is up and misses the interface", || Ok(is_missed(stand).unwrap_or_default()))
        .with_context(|| stand.daemon.stderr())?;
    let pod = &stand.lab.pod("prod-us", "web").netns;
    client::echo(client::connect_to(pod, INTERNET, PATIENCE)?.open()?, 1_000)?;
    ensure!(client::ping(pod, INTERNET_SERVERS[0], 1)? == 0, "the policy is that of the file");
    plug_in(stand)?;
    eventually("it is served", || is_served(stand)).with_context(|| stand.daemon.stderr())?;
    ensure!(hook(stand)? == "tc", "as a veth is served: {}", hook(stand)?);
    stand.config = place;
    stand.reload()
}

/// Everything is in its place, and no new flow gets through.
fn a_machine_that_does_not_forward_is_not_ready(stand: &mut Stand) -> Result<()> {
    let gateway = stand.lab.gateway.clone();
    let explained = |stand: &Stand| {
        let to = format!("{}/tcp", INTERNET);
        stand.ctl(&["explain", "--from", "prod-eu:100.64.1.20", "--to", &to])
    };
    gateway.sysctl("net/ipv4/ip_forward", "0")?;
    eventually("it says what is wrong", || {
        let (status, body) = stand.daemon.get("/readyz")?;
        Ok(status == 503 && body.contains("`net.ipv4.ip_forward` is 0"))
    })?;
    let said = explained(stand)?;
    ensure!(said.contains("helper_failed"), "{said}");
    gateway.sysctl("net/ipv4/ip_forward", "1")?;
    eventually("it is ready again", || Ok(stand.daemon.get("/readyz")?.0 == 200))?;
    let said = explained(stand)?;
    ensure!(said.contains("outcome: translate"), "{said}");
    let pod = stand.lab.pod("prod-eu", "web").netns.clone();
    client::echo(client::connect_to(&pod, INTERNET, PATIENCE)?.open()?, 1_000).map(drop)
}
