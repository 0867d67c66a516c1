//! A change of policy is whole, reaches live flows, and loses nothing of the others.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lab::client::{self, Attempt, Talk, UdpLoad, UdpReport};
use lab::config::replace;

use lab::plan::{self, INTERNET_SERVERS, TRANSIT_SERVERS};
use lab::servers::ECHO;
use lab::{Background, Netns, Shape, Stop, servers};
use serde_json::{Value, json};
use xdp_abi::reason::Reason;

use crate::stand::{
    Own, Place, Stand, assert_carried, eventually, everywhere, half_of_capacity, policy_word,
    put_policy_word, show,
};

const PATIENCE: Duration = Duration::from_secs(2);
const INTERNET: SocketAddrV4 = SocketAddrV4::new(INTERNET_SERVERS[0], ECHO);
const TRANSIT: SocketAddrV4 = SocketAddrV4::new(TRANSIT_SERVERS[0], ECHO);

everywhere!(a_change_of_policy_reaches_live_flows_and_only_those_it_is_about);

fn a_change_of_policy_reaches_live_flows_and_only_those_it_is_about(place: Place) -> Result<()> {
    let mut stand = place.stand()?;
    show!(stand:
        a_rule_that_changes_cuts_its_flow_and_no_other_loses_a_packet,
        a_client_that_only_listens_is_told_that_its_flow_is_over,
        an_address_with_another_identity_does_not_inherit_flows,
        an_endpoint_that_is_removed_leaves_no_rights_behind,
        an_address_that_moves_is_told_as_whose_it_was_when_the_flow_began,
        a_non_routable_prefix_that_is_added_ends_flows_that_need_a_translation_now,
        a_file_that_changes_is_read_without_being_told,
        a_file_that_is_being_written_is_waited_for,
        a_bad_file_is_refused_and_the_old_policy_stays,
        what_fails_while_it_is_put_into_force_is_undone,
        a_size_that_changes_is_refused_with_the_reason,
        attachments_leave_and_come_with_their_policies_beside_the_new_flows_of_others,
        as_many_outside_addresses_as_fit_are_exchanged_for_as_many_others,
        a_policy_that_somebody_else_put_there_is_replaced_whole,
        a_rule_that_only_watches_decides_nothing_and_is_named,
    )
}

/// Flows that a change is not about: a conversation, a train of numbered datagrams, and one with
/// the machine itself.
struct Others {
    own: Own,
    talk: Background<Talk>,
    datagrams: Background<UdpReport>,
    load: UdpLoad,
}

impl Others {
    fn start(stand: &Stand) -> Result<Self> {
        Self::start_with(stand, UdpLoad { packets: u32::MAX, ..UdpLoad::default() })
    }

    /// The same, with as many datagrams as half of what the gateway and this machine carry.
    fn start_under_load(stand: &Stand) -> Result<Self> {
        let web = &stand.lab.pod("prod-us", "web").netns;
        Self::start_with(stand, half_of_capacity(&[(web, INTERNET)])?)
    }

    fn start_with(stand: &Stand, load: UdpLoad) -> Result<Self> {
        let lab = &stand.lab;
        let api = &lab.pod("prod-eu", "api").netns;
        let stream = client::connect_to(api, TRANSIT, PATIENCE)?.open()?;
        let talk = client::talk(api, stream, Duration::from_millis(2), PATIENCE);
        let datagrams = client::udp_flow(&lab.pod("prod-us", "web").netns, INTERNET, load)?;
        thread::sleep(Duration::from_millis(200));
        Ok(Self { own: Own::start(lab)?, talk, datagrams, load })
    }

    /// Nothing of them was lost.
    fn assert_whole(self) -> Result<()> {
        thread::sleep(Duration::from_millis(200));
        let (talk, datagrams) = (self.talk.stop()?, self.datagrams.stop()?);
        ensure!(talk.broke.is_none() && talk.answered > 50, "{talk:?}");
        ensure!(talk.slowest < Duration::from_secs(1), "it stalled: {talk:?}");
        ensure!(datagrams.sent > 200, "{datagrams:?}");
        assert_carried(&datagrams, self.load)?;
        self.own.assert_alive()
    }
}

fn live_talk(stand: &Stand, cluster: &str, name: &str) -> Result<Background<Talk>> {
    let pod = &stand.lab.pod(cluster, name).netns;
    let stream = client::connect_to(pod, INTERNET, PATIENCE)?.open()?;
    let talk = client::talk(pod, stream, Duration::from_millis(2), Duration::from_millis(800));
    thread::sleep(Duration::from_millis(100));
    ensure!(!talk.ended(), "it does not live");
    Ok(talk)
}

fn a_rule_that_changes_cuts_its_flow_and_no_other_loses_a_packet(stand: &mut Stand) -> Result<()> {
    let others = Others::start_under_load(stand)?;
    let live = live_talk(stand, "prod-eu", "web")?;
    let before = stand.counters()?;
    for round in 0..3 {
        stand.config.set_ports("pods-to-transit", &format!("1024-{}", 65_535 - round));
        stand.reload()?;
    }
    ensure!(!live.ended(), "what it is allowed by has not changed");
    stand.config.set_action("teams-to-internet", "deny");
    let start = Instant::now();
    stand.reload()?;
    let cut = live.finish()?;
    ensure!(cut.broke.is_some() && cut.answered > 0, "{cut:?}");
    ensure!(start.elapsed() < Duration::from_secs(4), "after {:?}", start.elapsed());
    let web = &stand.lab.pod("prod-eu", "web").netns.clone();
    let attempt = client::connect_to(web, INTERNET, Duration::from_millis(300))?;
    ensure!(matches!(attempt, Attempt::Silence), "{attempt:?}");
    stand.record("of the end of the flow that was cut", |record| {
        record["event"] == "end"
            && record["source"]["endpoint"] == "prod-eu/web"
            && record["reason"] == "revoked"
    })?;
    stand.config.set_action("teams-to-internet", "permit");
    stand.reload()?;
    client::echo(client::connect_to(web, INTERNET, PATIENCE)?.open()?, 1_000)?;
    others.assert_whole()?;
    let after = stand.counters()?;
    ensure!(after.judged_again > before.judged_again, "{after:?}");
    ensure!(after.dropped(Reason::RuleDenied) > before.dropped(Reason::RuleDenied), "{after:?}");
    Ok(())
}

/// Nothing that it sends would find that out.
fn a_client_that_only_listens_is_told_that_its_flow_is_over(stand: &mut Stand) -> Result<()> {
    fn drip(mut stream: TcpStream, stop: &Stop) -> io::Result<()> {
        while !stop.told() {
            stream.write_all(b".")?;
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
    const DRIP: u16 = 443;
    let server = servers::tcp(&stand.lab.internet, DRIP, drip)?;
    let pod = &stand.lab.pod("prod-eu", "web").netns.clone();
    let to = SocketAddrV4::new(INTERNET_SERVERS[0], DRIP);
    let mut stream = client::connect_to(pod, to, PATIENCE)?.open()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.read_exact(&mut [0; 5])?;
    stand.config.set_action("teams-to-internet", "reject");
    stand.reload()?;
    let told = io::copy(&mut stream, &mut io::sink()).map_err(|error| error.kind());
    ensure!(told == Err(io::ErrorKind::ConnectionReset), "{told:?}");
    stand.record("of the answer that was refused", |record| {
        record["event"] == "deny"
            && record["source"]["endpoint"] == "prod-eu/web"
            && record["destination"]["address"] == INTERNET_SERVERS[0].to_string()
            && record["egress"] == "internet"
    })?;
    stand.config.set_action("teams-to-internet", "permit");
    stand.reload()?;
    server.stop()
}

fn an_address_with_another_identity_does_not_inherit_flows(stand: &mut Stand) -> Result<()> {
    let others = Others::start(stand)?;
    let live = live_talk(stand, "prod-eu", "web")?;
    let namesake = live_talk(stand, "prod-us", "web")?;
    stand.config.set_labels("prod-eu/web", json!({ "team": "batch", "tier": "worker" }));
    stand.reload()?;
    let cut = live.finish()?;
    ensure!(cut.broke.is_some() && cut.answered > 0, "{cut:?}");
    let namesake = namesake.stop()?;
    ensure!(namesake.broke.is_none(), "the pod of that address in the other cluster: {namesake:?}");
    let pod = &stand.lab.pod("prod-eu", "web").netns.clone();
    let attempt = client::connect_to(pod, INTERNET, PATIENCE)?;
    ensure!(matches!(attempt, Attempt::Refused), "as for every batch job: {attempt:?}");
    stand.config.set_labels("prod-eu/web", json!({ "team": "web", "tier": "frontend" }));
    stand.reload()?;
    client::echo(client::connect_to(pod, INTERNET, PATIENCE)?.open()?, 1_000)?;
    others.assert_whole()
}

fn an_endpoint_that_is_removed_leaves_no_rights_behind(stand: &mut Stand) -> Result<()> {
    let others = Others::start(stand)?;
    let live = live_talk(stand, "prod-eu", "web")?;
    let policy = policy_word(&stand.lab.site().pins())?;
    let before = stand.config.clone();
    stand.config.remove("Endpoint", "prod-eu/web");
    stand.reload()?;
    stand.config = before;
    eventually("its flow is cut", || Ok(live.ended()))?;
    let cut = live.finish()?;
    ensure!(cut.broke.is_some() && cut.answered > 0, "{cut:?}");
    let pod = &stand.lab.pod("prod-eu", "web").netns.clone();
    let attempt = client::connect_to(pod, INTERNET, Duration::from_millis(300))?;
    ensure!(matches!(attempt, Attempt::Silence), "as for whoever nobody knows: {attempt:?}");
    ensure!(policy_word(&stand.lab.site().pins())? == policy, "the generation stays");
    stand.reload()?;
    client::echo(client::connect_to(pod, INTERNET, PATIENCE)?.open()?, 1_000)?;
    others.assert_whole()
}

fn an_address_that_moves_is_told_as_whose_it_was_when_the_flow_began(
    stand: &mut Stand,
) -> Result<()> {
    let web = stand.lab.pod("prod-eu", "web").netns.clone();
    let mut stream = client::connect_to(&web, INTERNET, PATIENCE)?.open()?;
    stream.write_all(b"x")?;
    let port = format!("port={}", stream.local_addr()?.port());
    let policy = policy_word(&stand.lab.site().pins())?;
    let mut spec = stand.config.spec("Endpoint", "prod-eu/web").clone();
    let before = spec.clone();
    spec["labels"] = json!({ "team": "batch", "tier": "worker" });
    stand.config.remove("Endpoint", "prod-eu/web");
    stand.config.add("Endpoint", "prod-eu/heir", spec);
    stand.reload()?;
    ensure!(policy_word(&stand.lab.site().pins())? == policy, "the generation stays");
    let is = |end: &Value, endpoint: &str, groups: [&str; 2]| {
        let has = |group: &str| {
            end["groups"].as_array().is_some_and(|all| all.iter().any(|name| name == group))
        };
        end["endpoint"] == endpoint && has(groups[0]) && !has(groups[1])
    };
    let shown: Value = serde_json::from_str(&stand.ctl(&["-o", "json", "sessions", &port])?)?;
    ensure!(is(&shown["sessions"][0]["source"], "prod-eu/web", ["web", "batch"]), "{shown:#}");
    stand.ctl(&["sessions", "clear", &port])?;
    stand.record("of the end of a flow of the pod before", |record| {
        let id = &shown["sessions"][0]["id"];
        record["event"] == "end"
            && record["session"] == *id
            && is(&record["source"], "prod-eu/web", ["web", "batch"])
    })?;
    let attempt = client::connect_to(&web, INTERNET, PATIENCE)?;
    ensure!(matches!(attempt, Attempt::Refused), "as for every batch job: {attempt:?}");
    stand.record("of a refusal of its heir", |record| {
        record["event"] == "deny" && is(&record["source"], "prod-eu/heir", ["batch", "web"])
    })?;
    stand.config.remove("Endpoint", "prod-eu/heir");
    stand.config.add("Endpoint", "prod-eu/web", before);
    stand.reload()
}

fn a_non_routable_prefix_that_is_added_ends_flows_that_need_a_translation_now(
    stand: &mut Stand,
) -> Result<()> {
    let before = stand.config.clone();
    let node = stand.lab.cluster("prod-eu").node.clone();
    let address = plan::CLUSTERS[0].node;
    // Where everybody says what is behind him, the prefix changes nobody's place.
    let nodes = json!(["10.10.0.0/25"]);
    for (name, sources) in [
        ("prod-eu-nodes", nodes.clone()),
        ("transit", json!([plan::TRANSIT])),
        ("internet", json!(plan::INTERNET)),
    ] {
        let stated = stand.config.gateway["attachments"].as_array_mut().context("a list")?;
        let attachment = stated.iter_mut().find(|attachment| attachment["name"] == name);
        attachment.with_context(|| name)?["sources"] = sources;
    }
    if stand.lab.shape != Shape::ThreeLegged {
        // An exception for such sources is refused; without these two they are not translated either.
        stand.config.remove("SnatPolicy", "nodes-to-transit");
        stand.config.remove("SnatPolicy", "nodes-to-internet");
    }
    stand.reload()?;
    let others = Others::start(stand)?;
    let mut stream = client::connect_to(&node, TRANSIT, PATIENCE)?.open()?;
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])?;
    stand.config.gateway["non_routable"] = json!([plan::NON_ROUTABLE, nodes[0]]);
    stand.reload()?;
    stand.config = before;
    stream.write_all(b"x")?;
    stand.record("of the end of the node's flow", |record| {
        record["event"] == "end"
            && record["source"]["address"] == address.to_string()
            && record["reason"] == "withdrawn"
    })?;
    others.assert_whole()?;
    stand.reload()?;
    client::echo(client::connect_to(&node, TRANSIT, PATIENCE)?.open()?, 1_000).map(drop)
}

fn a_file_that_changes_is_read_without_being_told(stand: &mut Stand) -> Result<()> {
    let pod = &stand.lab.pod("prod-eu", "api").netns;
    let pings = || client::ping(pod, TRANSIT_SERVERS[1], 1);
    ensure!(pings()? == 1);
    let mut stricter = stand.config.clone();
    stricter.add_rule("no-transit", 1, "deny", "payments", "transit-servers");
    stricter.write(stand.daemon.config_path())?;
    eventually("the rule holds", || Ok(pings()? == 0))?;
    stand.config.write(stand.daemon.config_path())?;
    eventually("the rule is gone", || Ok(pings()? == 1))
}

fn a_file_that_is_being_written_is_waited_for(stand: &mut Stand) -> Result<()> {
    let pod = &stand.lab.pod("prod-eu", "api").netns;
    let pings = || client::ping(pod, TRANSIT_SERVERS[1], 1);
    let mut whole = stand.config.clone();
    whole.add_rule("no-transit", 2, "deny", "payments", "transit-servers");
    whole.add_rule("but-these", 1, "permit", "payments", "transit-servers");
    let whole = whole.yaml()?;
    // Half of it is a configuration too: the one that lets nobody through.
    let (half, _) = whole.split_once("- kind: Rule\n  name: but-these").context("a last rule")?;
    let generation = || stand.daemon.metric("sluice_policy_generation", &[]);
    let before = generation()?;
    let mut file = std::fs::File::create(stand.daemon.config_path())?;
    file.write_all(half.as_bytes())?;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        ensure!(pings()? == 1, "half of the file is in force");
        thread::sleep(Duration::from_millis(100));
    }
    ensure!(generation()? == before);
    file.write_all(&whole.as_bytes()[half.len()..])?;
    drop(file);
    eventually("the whole file is in force", || Ok(generation()? == before + 1.0))?;
    ensure!(pings()? == 1);
    stand.config.write(stand.daemon.config_path())?;
    eventually("the old file is in force", || Ok(generation()? == before + 2.0))
}

fn a_bad_file_is_refused_and_the_old_policy_stays(stand: &mut Stand) -> Result<()> {
    let others = Others::start(stand)?;
    let live = live_talk(stand, "prod-eu", "web")?;
    let good = stand.config.yaml()?;
    for (bad, said) in [
        (good.replace("action: permit", "action: allow"), "expected `permit`"),
        (good.replace("- payments", "- paiments"), "paiments"),
        (good[..good.len() / 2].to_owned() + "\n\t{", "a tab stands here"),
        (String::new(), "the file is empty"),
    ] {
        let before = stand.daemon.stderr().len();
        replace(stand.daemon.config_path(), &bad)?;
        stand.daemon.hang_up()?;
        let says = || stand.daemon.stderr().get(before..).unwrap_or_default().to_owned();
        // This file, and not the one before, which may be read twice: for the signal as well.
        eventually("the file is refused", || {
            let shown = stand.ctl(&["status"])?;
            let why = shown.split_once("the last reload was refused: ").map(|(_, why)| why);
            Ok(why.is_some_and(|why| why.contains("sluice.yaml:") && why.contains(said)))
        })
        .with_context(|| said)?;
        eventually("that is logged", || Ok(says().contains(said) && says().contains("stays")))
            .with_context(says)?;
        ensure!(stand.daemon.metric("sluice_config_last_reload_successful", &[])? == 0.0);
        ensure!(stand.daemon.get("/readyz")?.0 == 200, "a policy is in force");
    }
    ensure!(!live.ended(), "the old policy holds");
    live.stop()?;
    let report = &stand.lab.pod("prod-eu", "report").netns;
    let attempt = client::connect_to(report, INTERNET, PATIENCE)?;
    ensure!(matches!(attempt, Attempt::Refused), "{attempt:?}");
    stand.reload()?;
    eventually("the file is in force again", || {
        Ok(stand.daemon.metric("sluice_config_last_reload_successful", &[])? == 1.0)
    })?;
    others.assert_whole()
}

fn what_fails_while_it_is_put_into_force_is_undone(stand: &mut Stand) -> Result<()> {
    let live = live_talk(stand, "prod-eu", "web")?;
    // XDP takes no frames of more than a page without being asked for it.
    stand.lab.gateway.ip("link add jumbo0 mtu 9000 type veth peer name jumbo1 mtu 9000\n\
         link set jumbo0 up\n\
         link set jumbo1 up\n")?;
    let mut failing = stand.config.clone();
    failing.set_action("teams-to-internet", "reject");
    failing.set_timer("udp", "77s");
    let stated = failing.gateway["attachments"].as_array_mut().context("attachments are a list")?;
    stated.push(json!({
        "name": "jumbo", "interface": "jumbo0", "kind": "connection", "hook": "xdp",
        "sources": ["172.31.0.0/16"], "routes": ["172.31.0.0/16"],
    }));
    stand.daemon.reload(&failing)?;
    eventually("the reload is refused", || {
        Ok(stand.ctl(&["status"])?.contains("the last reload was refused: "))
    })?;
    thread::sleep(Duration::from_millis(200));
    ensure!(!live.ended(), "the old policy holds");
    live.stop()?;
    let pod = &stand.lab.pod("prod-eu", "web").netns;
    client::echo(client::connect_to(pod, INTERNET, PATIENCE)?.open()?, 1_000)?;
    client::udp(pod, INTERNET, UdpLoad { from_port: 20_950, ..UdpLoad::default() })?;
    let answer: Value =
        serde_json::from_str(&stand.ctl(&["-o", "json", "sessions", "proto=udp"])?)?;
    let sessions = answer["sessions"].as_array().context("a list of sessions")?;
    ensure!(!sessions.is_empty(), "{answer}");
    let longest = sessions.iter().filter_map(|session| session["expires_in"].as_u64()).max();
    ensure!(longest > Some(77), "the timer is that of the refused file: {answer}");
    stand.lab.gateway.ip("link del jumbo0\n")?;
    stand.reload()
}

fn a_size_that_changes_is_refused_with_the_reason(stand: &mut Stand) -> Result<()> {
    let others = Others::start(stand)?;
    let mut larger = stand.config.clone();
    larger.set_table("sessions", 131_072);
    let before = stand.daemon.stderr().len();
    stand.daemon.reload(&larger)?;
    let says = || stand.daemon.stderr().get(before..).unwrap_or_default().to_owned();
    eventually("the size is refused", || Ok(says().contains("tables.sessions")))?;
    stand.reload()?;
    others.assert_whole()
}

/// Opens a flow every few milliseconds until it is stopped; how many, and how many were answered.
fn openings(from: &Netns) -> Background<[usize; 2]> {
    from.background(|stop| {
        let mut sockets = Vec::new();
        while !stop.told() && sockets.len() < 8_000 {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(INTERNET)?;
            socket.set_nonblocking(true)?;
            // What is refused shows in its answer, or in that there is none.
            let _ = socket.send(b"one");
            sockets.push(socket);
            thread::sleep(Duration::from_millis(2));
        }
        thread::sleep(Duration::from_millis(500));
        let answered = sockets.iter().filter(|socket| socket.recv(&mut [0; 8]).is_ok()).count();
        Ok([sockets.len(), answered])
    })
}

fn attachments_leave_and_come_with_their_policies_beside_the_new_flows_of_others(
    stand: &mut Stand,
) -> Result<()> {
    let whole = stand.config.clone();
    let mut without = whole.clone();
    let is_gone = |name: &Value| name.as_str().is_some_and(|name| name.starts_with("prod-eu"));
    let stated = without.gateway["attachments"].as_array_mut().context("attachments are a list")?;
    // Among them the first one of a shared interface.
    stated.retain(|stated| !is_gone(&stated["name"]));
    without.documents.retain(|document| !is_gone(&document["name"]));
    let refusals = [Reason::NoSnatPolicy, Reason::NoRoute, Reason::SpoofedSource];
    let before = stand.counters()?;
    let web = openings(&stand.lab.pod("prod-us", "web").netns);
    let node = openings(&stand.lab.cluster("prod-us").node);
    for _ in 0..4 {
        for config in [&without, &whole] {
            stand.config = config.clone();
            stand.reload()?;
        }
    }
    for (whose, opened) in [("web", web), ("node", node)] {
        let [opened, answered] = opened.stop()?;
        println!("{whose}: {opened} flows, {answered} answered");
        // A queue on the way may overflow.
        ensure!(opened > 100 && answered * 100 >= opened * 98, "{answered} of {opened} of {whose}");
    }
    let after = stand.counters()?;
    for reason in refusals {
        let refused = after.dropped(reason) - before.dropped(reason);
        ensure!(refused == 0, "{refused} are refused as {reason:?}");
    }
    stand.ctl(&["sessions", "clear", "--all"])?;
    let untranslated = stand.daemon.flow_records()?.into_iter().find(|record| {
        let is_theirs =
            ["prod-us/web", "prod-us/node"].map(|name| record["source"]["endpoint"] == name);
        is_theirs.contains(&true) && record["event"] == "start" && record["snat_policy"].is_null()
    });
    ensure!(untranslated.is_none(), "it leaves as it is: {untranslated:?}");
    Ok(())
}

fn as_many_outside_addresses_as_fit_are_exchanged_for_as_many_others(
    stand: &mut Stand,
) -> Result<()> {
    let others = Others::start(stand)?;
    // With those of the lab's own policies nearly the 1,024 that there may be.
    const POOLS: usize = 4;
    for first in [0, POOLS] {
        for pool in first..first + POOLS {
            let spec = json!({
                "order": 900 + pool, "src_cidr": "10.99.0.0/16", "connection": "transit",
                "snat_ips": [format!("198.18.{pool}.0-198.18.{pool}.249")],
            });
            stand.config.add("SnatPolicy", &format!("pool-{pool}"), spec);
        }
        stand.reload()?;
        for pool in first..first + POOLS {
            stand.config.remove("SnatPolicy", &format!("pool-{pool}"));
        }
    }
    stand.reload()?;
    others.assert_whole()
}

fn a_policy_that_somebody_else_put_there_is_replaced_whole(stand: &mut Stand) -> Result<()> {
    let others = Others::start(stand)?;
    let pins = stand.lab.site().pins();
    let generation = |word: u64| word >> 32;
    // The same policy again is amended by nothing, and its generation stays.
    stand.reload()?;
    let own = policy_word(&pins)?;
    stand.reload()?;
    ensure!(policy_word(&pins)? == own, "{:#x} after {own:#x}", policy_word(&pins)?);
    let foreign = own + (1 << 32);
    put_policy_word(&pins, foreign)?;
    stand.reload()?;
    let word = policy_word(&pins)?;
    ensure!(generation(word) == generation(foreign) + 1, "{word:#x} after {foreign:#x}");
    stand.reload()?;
    ensure!(policy_word(&pins)? == word, "it is its own again");
    others.assert_whole()
}

fn a_rule_that_only_watches_decides_nothing_and_is_named(stand: &mut Stand) -> Result<()> {
    stand.config.add_rule("would-deny", 2, "deny", "web", "internet-servers");
    stand.config.spec("Rule", "would-deny")["enforcement"] = json!("monitor");
    stand.reload()?;
    let pod = &stand.lab.pod("prod-us", "web").netns;
    client::echo(client::connect_to(pod, INTERNET, PATIENCE)?.open()?, 1_000)?;
    stand.record("of what the rule would have matched", |record| {
        record["event"] == "start"
            && record["would_match"]["name"] == "would-deny"
            && record["rule"]["name"] == "teams-to-internet"
            && record["source"]["endpoint"] == "prod-us/web"
    })?;
    stand.config.remove("Rule", "would-deny");
    stand.reload()
}
