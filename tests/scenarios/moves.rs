//! The network around the gateway changes under live flows.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::client::{self, UdpLoad};
use lab::plan::{INTERNET_SERVERS, TRANSIT_SERVERS, VPC_ROUTER};
use lab::servers::{ECHO, IPERF};
use lab::{Lab, Netns};
use serde_json::Value;

use crate::stand::{Place, Stand, eventually, everywhere, show};

const INTERNET: SocketAddrV4 = SocketAddrV4::new(INTERNET_SERVERS[0], ECHO);

everywhere!(flows_follow_the_network_around_them);

fn flows_follow_the_network_around_them(place: Place) -> Result<()> {
    let mut stand = place.stand()?;
    show!(stand:
        a_router_that_is_replaced_is_found,
        a_router_that_was_forgotten_meanwhile_is_found_for_who_only_listens,
        an_address_that_a_live_router_gives_away_takes_no_answers_along,
        only_neighbours_that_answer_are_kept_resolved,
        a_link_that_comes_back_carries_on,
        attachments_in_another_order_are_the_same_ones,
        addresses_without_room_are_said_and_what_is_known_stays,
    )
}

/// Flows of a pod while `change` happens; those of the first half second after it may be lost.
fn flows_through(stand: &Stand, change: impl FnOnce() -> Result<()>) -> Result<()> {
    let pod = &stand.lab.pod("prod-eu", "web").netns;
    let stream = client::connect_to(pod, INTERNET, Duration::from_secs(2))?.open()?;
    let talk = client::talk(pod, stream, Duration::from_millis(5), Duration::from_secs(8));
    let load = UdpLoad { packets: u32::MAX, rate: 500, ..UdpLoad::default() };
    let flow = client::udp_flow(pod, INTERNET, load)?;
    thread::sleep(Duration::from_millis(300));
    change()?;
    thread::sleep(Duration::from_millis(2_500));
    let (talk, report) = (talk.stop()?, flow.stop()?);
    ensure!(talk.broke.is_none() && talk.answered > 50, "{talk:?}");
    let late = report.missing.iter().filter(|number| **number + 500 > report.sent).count();
    ensure!(late == 0, "{late} of the last 500 were lost: {report:?}");
    Ok(())
}

/// The routers on both sides of a flow from prod-eu to the internet, by the interface that the
/// gateway sees.
fn neighbours(lab: &Lab) -> Vec<(&Netns, &'static str)> {
    match &lab.vpc {
        None => vec![(&lab.internet_router, "uplink"), (&lab.cluster("prod-eu").router, "uplink")],
        Some(vpc) => vec![(vpc, "trunk")],
    }
}

fn a_router_that_is_replaced_is_found(stand: &mut Stand) -> Result<()> {
    for (number, (router, interface)) in neighbours(&stand.lab).into_iter().enumerate() {
        // The new one says that it is there, as one that takes over does.
        router.sysctl(&format!("net/ipv4/conf/{interface}/arp_notify"), "1")?;
        flows_through(stand, || {
            router.ip(&format!("link set dev {interface} address 02:52:00:00:00:0{number}\n"))
        })?;
    }
    Ok(())
}

/// The router between the gateway and the pods of prod-eu, its interface and its address there.
fn inside_router(lab: &Lab) -> (&Netns, &'static str, Ipv4Addr) {
    match &lab.vpc {
        None => {
            let cluster = lab.cluster("prod-eu");
            (&cluster.router, "uplink", cluster.plan.router)
        }
        Some(vpc) => (vpc, "trunk", VPC_ROUTER),
    }
}

/// The gateway's interface towards a neighbour.
fn device_towards(lab: &Lab, address: Ipv4Addr) -> Result<String> {
    let way = lab.gateway.run("ip", &["route", "get", &address.to_string()])?;
    let mut words = way.split_whitespace().skip_while(|word| *word != "dev");
    words.nth(1).map(str::to_owned).context("it is behind an interface")
}

/// As where one of two routers takes over an address that both may have.
fn an_address_that_a_live_router_gives_away_takes_no_answers_along(
    stand: &mut Stand,
) -> Result<()> {
    let lab = &stand.lab;
    let (router, interface, address) = inside_router(lab);
    let shown = router.run("ip", &["-o", "link", "show", "dev", interface])?;
    let mut words = shown.split_whitespace().skip_while(|word| *word != "link/ether");
    let mac = words.nth(1).context("the router has a hardware address")?;
    let device = device_towards(lab, address)?;
    let [a, b, c, _] = address.octets();
    let shared = Ipv4Addr::from([a, b, c, 250]);
    let known = |at: Ipv4Addr, mac: &str, state: &str| {
        let entry = format!("{at} lladdr {mac} dev {device} nud {state}");
        lab.gateway.ip(&format!("neighbour replace {entry}\n"))
    };
    let another = "02:52:00:00:03:00";
    // The daemon hears of each change.
    let heard = || thread::sleep(Duration::from_millis(300));

    // Of a router that is known to be there no answer is taken away: not one to a client that
    // sends nothing, by which it would be found again. One that is kept resolved is known to be.
    if lab.vpc.is_none() {
        known(address, mac, "permanent")?;
    }
    known(shared, mac, "stale")?;
    heard();
    let listener = Listener::new(lab)?;
    known(shared, another, "stale")?;
    heard();
    for number in 1..=3 {
        ensure!(listener.hears()?, "answer {number} comes by the router that is still there");
    }

    // Of others nobody has heard lately, and they show it with their next packet.
    if lab.vpc.is_none() {
        known(address, mac, "stale")?;
    }
    known(shared, mac, "stale")?;
    heard();
    flows_through(stand, || known(shared, another, "stale"))?;
    lab.gateway.ip(&format!("neighbour del {shared} dev {device}\n"))
}

/// A client in prod-eu that asked a sender on the internet once, and only listens from then on.
struct Listener {
    sender: UdpSocket,
    client: UdpSocket,
    outside: SocketAddr,
}

impl Listener {
    fn new(lab: &Lab) -> Result<Self> {
        const STREAM: SocketAddrV4 = SocketAddrV4::new(INTERNET_SERVERS[0], IPERF);
        let sender = lab.internet.enter(|| Ok(UdpSocket::bind(STREAM)?))?;
        let pod = &lab.pod("prod-eu", "web").netns;
        let client = pod.enter(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
        client.set_read_timeout(Some(Duration::from_millis(500)))?;
        client.send_to(b"once", STREAM)?;
        sender.set_read_timeout(Some(Duration::from_secs(2)))?;
        let (_, outside) = sender.recv_from(&mut [0; 8]).context("the client has asked")?;
        let new = Self { sender, client, outside };
        ensure!(new.hears()?, "it hears before anything happens");
        Ok(new)
    }

    /// Whether an answer that is sent now gets to it.
    fn hears(&self) -> Result<bool> {
        self.sender.send_to(b"answer", self.outside)?;
        Ok(self.client.recv(&mut [0; 8]).is_ok())
    }
}

/// Nothing that the client sends would show where it is now.
fn a_router_that_was_forgotten_meanwhile_is_found_for_who_only_listens(
    stand: &mut Stand,
) -> Result<()> {
    let lab = &stand.lab;
    let (router, interface, address) = inside_router(lab);
    let at = address.to_string();
    let device = &device_towards(lab, address)?;
    ensure!(client::ping(&lab.gateway, address, 1)? == 1, "the kernel knows the router");

    let listener = Listener::new(lab)?;
    lab.gateway.ip(&format!("neighbour del {at} dev {device}\n"))?;
    // The daemon hears that there is none now.
    thread::sleep(Duration::from_millis(300));
    router.ip(&format!("link set dev {interface} address 02:52:00:00:02:00\n"))?;
    ensure!(client::ping(&lab.gateway, address, 1)? == 1, "the kernel knows the new router");
    eventually("it hears by the new router", || listener.hears())
}

/// Which neighbours the gateway's kernel asks for again and again, as `ip` shows them.
fn kept_resolved(stand: &Stand) -> Result<Vec<String>> {
    let shown = stand.lab.gateway.run("ip", &["-4", "neighbour", "show"])?;
    Ok(shown.lines().filter(|line| line.contains(" managed ")).map(str::to_owned).collect())
}

fn only_neighbours_that_answer_are_kept_resolved(stand: &mut Stand) -> Result<()> {
    const DNS: u16 = 53;
    let gateway = &stand.lab.gateway;
    let way = gateway.run("ip", &["route", "get", &TRANSIT_SERVERS[0].to_string()])?;
    let mut words = way.split_whitespace().skip_while(|word| *word != "dev");
    let device = words.nth(1).context("the transit is behind an interface")?;
    // As where clients, and not routers, are on the link.
    gateway.ip(&format!("route add 10.50.128.0/24 dev {device}\n"))?;
    let pod = &stand.lab.pod("prod-eu", "web").netns;
    for last in 1..=20 {
        let to = SocketAddrV4::new([10, 50, 128, last].into(), DNS);
        let once = UdpLoad { packets: 1, patience: Duration::ZERO, ..UdpLoad::default() };
        client::udp(pod, to, once)?;
    }
    client::echo(client::connect_to(pod, INTERNET, Duration::from_secs(2))?.open()?, 100)?;
    // The daemon looks every 2 s.
    thread::sleep(Duration::from_millis(4_500));
    let kept = kept_resolved(stand)?;
    ensure!(!kept.is_empty(), "the router is kept");
    let asked = stand.lab.gateway.run("ip", &["-4", "neighbour", "show"])?;
    ensure!(asked.contains("10.50.128.20 "), "a pod had it asked for: {asked}");
    ensure!(!kept.iter().any(|line| line.starts_with("10.50.128.")), "{kept:?}");
    stand.lab.gateway.ip(&format!("route del 10.50.128.0/24 dev {device}\n"))
}

fn a_link_that_comes_back_carries_on(stand: &mut Stand) -> Result<()> {
    let lab = &stand.lab;
    let (router, interface) = match &lab.vpc {
        None => (&lab.internet_router, "uplink"),
        Some(vpc) => (vpc, "trunk"),
    };
    // The router's kernel forgets what it routes by a link that is down, and whoever set its
    // routes sets them again; the gateway's only loses its carrier.
    let boot = ["route", "show", "table", "all", "dev", interface, "proto", "boot"];
    let shown = router.run("ip", &boot)?;
    let routes: String = shown
        .lines()
        .map(|route| format!("route replace {} dev {interface}\n", route.trim()))
        .collect();
    flows_through(stand, || {
        let set = |state| router.ip(&format!("link set dev {interface} {state}\n"));
        set("down")?;
        thread::sleep(Duration::from_millis(300));
        set("up")?;
        router.ip(&routes)
    })
}

/// Sessions, next hops and records hold attachments by number: whatever the order in the file is,
/// they go on meaning the same ones.
fn attachments_in_another_order_are_the_same_ones(stand: &mut Stand) -> Result<()> {
    let reverse = |stand: &mut Stand| -> Result<()> {
        let stated = stand.config.gateway["attachments"].as_array_mut();
        stated.context("attachments are a list")?.reverse();
        Ok(())
    };
    let pod = stand.lab.pod("prod-eu", "web").netns.clone();
    let load = UdpLoad { packets: u32::MAX, rate: 500, from_port: 20_901, ..UdpLoad::default() };
    let flow = client::udp_flow(&pod, INTERNET, load)?;
    thread::sleep(Duration::from_millis(200));
    let way = |stand: &Stand| -> Result<(Value, Value)> {
        let answer: Value = serde_json::from_str(&stand.ctl(&["-o", "json", "sessions"])?)?;
        let sessions = answer["sessions"].as_array().context("a list of sessions")?;
        let source = |session: &Value| session["inside"]["source"].as_str().map(str::to_owned);
        let session = sessions
            .iter()
            .find(|session| source(session).is_some_and(|source| source.ends_with(":20901")));
        let session = session.context("the flow has a session")?;
        Ok((session["ingress"].clone(), session["egress"].clone()))
    };
    let before = way(stand)?;
    reverse(stand)?;
    stand.reload()?;
    ensure!(way(stand)? == before, "{before:?} became {:?} by a reload", way(stand)?);
    stand.daemon.kill()?;
    reverse(stand)?;
    stand.config.write(stand.daemon.config_path())?;
    stand.daemon.restart()?;
    ensure!(way(stand)? == before, "{before:?} became {:?} by a start", way(stand)?);
    reverse(stand)?;
    stand.reload()?;
    // A neighbour that moves is found in the next hops by the attachment that they hold.
    for (number, (router, interface)) in neighbours(&stand.lab).into_iter().enumerate() {
        router.sysctl(&format!("net/ipv4/conf/{interface}/arp_notify"), "1")?;
        router.ip(&format!("link set dev {interface} address 02:52:00:00:01:0{number}\n"))?;
    }
    thread::sleep(Duration::from_millis(2_500));
    let report = flow.stop()?;
    let late = report.missing.iter().filter(|number| **number + 500 > report.sent).count();
    ensure!(late == 0, "{late} of the last 500 were lost: {report:?}");
    stand.ctl(&["sessions", "clear", "--all"])?;
    stand.record("of the flow", |record| {
        record["event"] == "end"
            && record["source"]["port"] == 20_901
            && (&record["ingress"], &record["egress"]) == (&before.0, &before.1)
    })?;
    reverse(stand)?;
    stand.reload()
}

fn addresses_without_room_are_said_and_what_is_known_stays(stand: &mut Stand) -> Result<()> {
    let room = "addresses of the machine in all; there is room for 4096";
    let pod = stand.lab.pod("prod-eu", "web").netns.clone();
    let mut many = String::new();
    for n in 0..4_200 {
        let _ = writeln!(many, "addr add 10.200.{}.{}/32 dev lo", n / 250, n % 250);
    }
    stand.lab.gateway.ip(&many)?;
    eventually("the addresses are too many", || {
        let (status, said) = stand.daemon.get("/readyz")?;
        Ok(status == 503 && said.contains("the network is not followed") && said.contains(room))
    })?;
    // Nor does a file that is right in itself come into force beside them.
    let mut denied = stand.config.clone();
    denied.set_action("teams-to-internet", "deny");
    let before = stand.daemon.stderr().len();
    stand.daemon.reload(&denied)?;
    let says = || stand.daemon.stderr().get(before..).unwrap_or_default().to_owned();
    eventually("the file is refused", || {
        Ok(says().contains(room) && says().contains("the configuration in force stays"))
    })
    .with_context(says)?;
    client::echo(client::connect_to(&pod, INTERNET, Duration::from_secs(2))?.open()?, 1_000)?;
    stand.lab.gateway.run("ip", &["addr", "flush", "dev", "lo", "to", "10.200.0.0/16"])?;
    eventually("they are followed again", || Ok(stand.daemon.get("/readyz")?.0 == 200))?;
    stand.reload()
}
