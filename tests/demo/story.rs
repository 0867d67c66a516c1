//! The story: who gets where and as whom, who does not, and what stays when things change.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lab::client::{self, Attempt, UdpLoad};
use lab::plan::{INTERNET_SERVERS, NON_ROUTABLE, TRANSIT_SERVERS};
use lab::servers::ECHO;
use lab::{Hook, Netns};
use serde_json::Value;

use crate::stage::Stage;
use crate::table;

const PATIENCE: Duration = Duration::from_secs(1);
const TRANSIT: Ipv4Addr = TRANSIT_SERVERS[0];
const INTERNET: Ipv4Addr = INTERNET_SERVERS[0];

const PICTURE: &str = "
  prod-eu  pods 100.64.0.0/16 --[eth-eu]             [eth-transit]---  transit   10.50.0.0/16
                                        \\           /
                                           gateway
                                        /           \\
  prod-us  pods 100.64.0.0/16 --[eth-us]             [eth-internet]--  internet  198.51.100.0/24
";

/// Tells it.
pub(crate) fn tell(hook: Hook) -> Result<()> {
    let start = Instant::now();
    say(
        "Sluice: a fabric-side firewall and SNAT gateway for Kubernetes networks.",
        &[
            "Two clusters whose pods have the same addresses, a gateway between them and two outside",
            "networks: all of it network namespaces of this machine, with real servers and clients.",
        ],
    );
    println!("{}", PICTURE.trim_start_matches('\n'));
    let stage = Stage::set(hook)?;
    let outside = stage.lab.watch_outside()?;
    say(
        &format!(
            "Everything is up after {:.1} s, with eBPF at {}.",
            start.elapsed().as_secs_f64(),
            hook.as_str()
        ),
        &[
            "Rules go by what a pod is, not by its address. Teams `payments` and `web` may go out to the",
            "internet, `payments` also to the transit side, `batch` nowhere; the default is to deny.",
        ],
    );
    who_reaches_whom(&stage)?;
    what_the_gateway_knows(&stage)?;
    let stage = a_rule_changes(stage)?;
    let stage = the_daemon_dies(stage)?;
    totals(&stage, outside)?;
    throughput(&stage)?;
    say(
        "To poke at it by hand: `make demo-shell`.",
        &["It builds the same network, prints what there is to try, and opens a shell."],
    );
    drop(stage);
    println!("Everything is removed again. That took {:.0} s.", start.elapsed().as_secs_f64());
    Ok(())
}

pub(crate) fn say(head: &str, lines: &[&str]) {
    println!("{head}");
    for line in lines {
        println!("{line}");
    }
    println!();
}

pub(crate) fn heading(title: &str) {
    println!("--- {title} {}\n", "-".repeat(95 - title.len()));
}

/// One client's try: what it was, and what the client learnt.
fn attempt(from: &Netns, how: &str, to: Ipv4Addr) -> Result<[String; 2]> {
    let allowed = |seen: String| ["allowed".to_owned(), seen];
    let silent = || ["refused".to_owned(), "no answer".to_owned()];
    Ok(match how {
        "HTTP" => match client::fetch(from, &format!("http://{to}/"))? {
            Some(page) => allowed(format!("seen as {}", page.trim())),
            None => match client::connect_to(from, SocketAddrV4::new(to, 80), PATIENCE)? {
                Attempt::Refused => ["refused".to_owned(), "told at once (RST)".to_owned()],
                Attempt::Open(_) | Attempt::Silence => silent(),
            },
        },
        "DNS" => match client::whoami(from, to)? {
            Some(seen) => allowed(format!("seen as {seen}")),
            None => silent(),
        },
        _ => match client::ping(from, to, 3)? {
            0 => silent(),
            count => allowed(format!("{count} of 3 answers")),
        },
    })
}

fn who_reaches_whom(stage: &Stage) -> Result<()> {
    heading("Who reaches whom");
    let lab = &stage.lab;
    let mut rows = Vec::new();
    for (cluster, pod, how, to) in [
        ("prod-eu", "api", "HTTP", TRANSIT),
        ("prod-eu", "api", "HTTP", INTERNET),
        ("prod-us", "report", "HTTP", INTERNET),
        ("prod-us", "report", "DNS", INTERNET),
        ("prod-eu", "web", "DNS", INTERNET),
        ("prod-us", "web", "DNS", INTERNET),
        ("prod-us", "web", "HTTP", TRANSIT),
        ("prod-us", "web", "ping", INTERNET),
    ] {
        let pod = lab.pod(cluster, pod);
        let [verdict, learnt] = attempt(&pod.netns, how, to)?;
        let who = format!("{cluster}/{}", pod.plan.name);
        let team = pod.plan.team.to_owned();
        rows.push([
            who,
            team,
            pod.address.to_string(),
            how.into(),
            to.to_string(),
            verdict,
            learnt,
        ]);
    }
    for to in [TRANSIT, INTERNET] {
        let cluster = lab.cluster("prod-eu");
        let [verdict, learnt] = attempt(&cluster.node, "HTTP", to)?;
        let (who, address) = ("prod-eu/node".to_owned(), cluster.plan.node.to_string());
        rows.push([who, "-".into(), address, "HTTP".into(), to.to_string(), verdict, learnt]);
    }
    table::print(["client", "team", "address", "how", "to", "", "what it learnt"], &rows);
    say(
        "100.64.1.10 is the payments API in one cluster and a batch job in the other.",
        &[
            "Each is judged as what it is. Pods leave under an address of the gateway, another one for",
            "each way out; nodes, which are routable, are translated towards the internet only.",
        ],
    );
    Ok(())
}

fn text(value: &Value) -> String {
    match value.as_str() {
        Some(text) => text.to_owned(),
        None if value.is_null() => "-".to_owned(),
        None => value.to_string(),
    }
}

fn what_the_gateway_knows(stage: &Stage) -> Result<()> {
    heading("What the gateway knows of it: sluicectl sessions");
    let sessions: Value = serde_json::from_str(&stage.ctl(&["sessions", "-o", "json"])?)?;
    let sessions = sessions["sessions"].as_array().context("sluicectl lists no sessions")?;
    let rows: Vec<_> = sessions
        .iter()
        .take(8)
        .map(|session| {
            [
                text(&session["protocol"]),
                text(&session["domain"]),
                text(&session["inside"]["source"]),
                text(&session["outside"]["source"]),
                text(&session["outside"]["destination"]),
                text(&session["rule"]["name"]),
            ]
        })
        .collect();
    table::print(["proto", "domain", "inside", "outside", "to", "rule"], &rows);

    heading("Why was that refused? sluicectl explain");
    let web = stage.lab.pod("prod-us", "web").address;
    let (from, to) = (format!("prod-us:{web}"), format!("{TRANSIT}:80/tcp"));
    println!("{}", stage.ctl(&["explain", "--from", &from, "--to", &to])?);

    heading("Flow records, one JSON line each; some fields of some of them");
    let records = stage.daemon.flow_records()?;
    let rows: Vec<_> = records
        .iter()
        .map(|record| {
            [
                text(&record["event"]),
                text(&record["source"]["endpoint"]),
                text(&record["destination"]["address"]),
                format!("{}/{}", text(&record["protocol"]), text(&record["destination"]["port"])),
                text(&record["translated"]["source_address"]),
                text(&record["verdict"]),
                match record["rule"]["name"].as_str() {
                    Some(rule) => rule.to_owned(),
                    None => text(&record["reason"]),
                },
            ]
        })
        .collect();
    let (denied, others): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row[0] == "deny");
    let some: Vec<_> = others.into_iter().take(5).chain(denied.into_iter().take(3)).collect();
    table::print(["event", "from", "to", "port", "as", "verdict", "rule or reason"], &some);
    Ok(())
}

fn throughput(stage: &Stage) -> Result<()> {
    heading("Throughput: iperf3 through the gateway, two seconds each");
    let pod = &stage.lab.pod("prod-eu", "web").netns;
    let mut rows = Vec::new();
    for (what, more) in [
        ("TCP, pod to internet", &[][..]),
        ("TCP, internet to pod", &["--reverse"]),
        ("TCP, four connections", &["--parallel", "4"]),
    ] {
        let rate = client::iperf(pod, INTERNET, 2, more)?;
        rows.push([what.to_owned(), format!("{:.2} Gbit/s", rate / 1e9)]);
    }
    table::print(["what", "received"], &rows);
    say(
        "Client, routers and server share this machine's processors, frame by frame.",
        &["What the gateway itself costs, against bare forwarding and nftables: `make bench`."],
    );
    Ok(())
}

fn a_rule_changes(mut stage: Stage) -> Result<Stage> {
    heading("A rule changes while traffic runs");
    let to = |server| SocketAddrV4::new(server, ECHO);
    let lab = &stage.lab;
    let (web, api) = (&lab.pod("prod-eu", "web").netns, &lab.pod("prod-eu", "api").netns);
    let stream = client::connect_to(web, to(INTERNET), PATIENCE)?.open()?;
    let live = client::talk(web, stream, Duration::from_millis(2), PATIENCE);
    let load = UdpLoad { packets: u32::MAX, ..UdpLoad::default() };
    let other = client::udp_flow(api, to(TRANSIT), load)?;
    thread::sleep(Duration::from_millis(500));
    stage.config.set_action("teams-to-internet", "reject");
    let start = Instant::now();
    stage.daemon.reload(&stage.config)?;
    let live = live.finish()?;
    let cut = live.ended.context("the live connection was not cut")?.duration_since(start);
    thread::sleep(Duration::from_millis(300));
    let other = other.stop()?;
    table::print(
        ["flow", "until then", "afterwards"],
        &[
            [
                "prod-eu/web to internet, TCP".to_owned(),
                format!("{} messages answered", live.answered),
                format!("cut {} ms after SIGHUP", cut.as_millis()),
            ],
            [
                "prod-eu/api to transit, UDP".to_owned(),
                "1,000 packets a second".to_owned(),
                format!("{} sent, {} lost", other.sent, other.lost()),
            ],
        ],
    );
    say(
        "`teams-to-internet` says `reject` now.",
        &[
            "Every live session is judged again on its next packet; those that may go on lose nothing.",
        ],
    );
    let is_cut = |record: &Value| record["event"] == "end" && record["reason"] == "revoked";
    let start = Instant::now();
    let cut = loop {
        let record = stage.daemon.flow_records()?.into_iter().find(is_cut);
        if record.is_some() || start.elapsed() > Duration::from_secs(5) {
            break record.context("no flow record tells of the cut")?;
        }
        thread::sleep(Duration::from_millis(20));
    };
    let rows = [[
        text(&cut["event"]),
        text(&cut["source"]["endpoint"]),
        text(&cut["destination"]["address"]),
        text(&cut["reason"]),
        text(&cut["original"]["packets"]),
        text(&cut["reply"]["packets"]),
        text(&cut["duration_ms"]),
    ]];
    let head = ["record", "from", "to", "reason", "packets", "answers", "lived for, ms"];
    table::print(head, &rows);
    stage.config.set_action("teams-to-internet", "permit");
    stage.daemon.reload(&stage.config)?;
    Ok(stage)
}

fn the_daemon_dies(mut stage: Stage) -> Result<Stage> {
    heading("The daemon is killed while traffic runs");
    let to = SocketAddrV4::new(TRANSIT, ECHO);
    let api = &stage.lab.pod("prod-eu", "api").netns;
    let load = UdpLoad { packets: u32::MAX, ..UdpLoad::default() };
    let flow = client::udp_flow(api, to, load)?;
    thread::sleep(Duration::from_millis(300));
    stage.daemon.kill()?;
    let answered = client::ping(&stage.lab.pod("prod-us", "web").netns, INTERNET, 3)?;
    let start = Instant::now();
    stage.daemon.restart()?;
    let took = start.elapsed();
    let flow = flow.stop()?;
    table::print(
        ["what", "outcome"],
        &[
            ["a flow that lived".to_owned(), format!("{} sent, {} lost", flow.sent, flow.lost())],
            ["a new flow meanwhile".to_owned(), format!("{answered} of 3 pings answered")],
            ["the next daemon".to_owned(), format!("ready after {:.1} s", took.as_secs_f64())],
        ],
    );
    Ok(stage)
}

fn totals(stage: &Stage, outside: Vec<lab::Capture>) -> Result<()> {
    heading("What was seen outside so far");
    let mut rows = Vec::new();
    for capture in outside {
        let captured = capture.stop()?;
        let looked = captured.assert_clean(&[NON_ROUTABLE])?;
        ensure!(looked.ipv4 > 0, "nothing was seen at {}", captured.place);
        let side = captured.place.split_once('-').map_or(&*captured.place, |(_, side)| side);
        let side = side.split_once('-').map_or(side, |(_, side)| side).to_owned();
        rows.push([side, looked.ipv4.to_string(), "none".to_owned(), "none".to_owned()]);
    }
    table::print(["capture at", "packets", "with a pod's source", "with a wrong checksum"], &rows);
    println!("{}", stage.ctl(&["stats"])?.split("\n\n").take(2).collect::<Vec<_>>().join("\n\n"));
    println!();
    Ok(())
}
