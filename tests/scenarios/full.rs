//! What is full refuses the new and keeps the old.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lab::Netns;
use lab::client::{self, Attempt};
use lab::plan::{INTERNET_SERVERS, TRANSIT_SERVERS};
use lab::servers::ECHO;
use xdp_abi::reason::Reason;

use crate::stand::{Own, Place, Stand, everywhere, show, within};

const PATIENCE: Duration = Duration::from_secs(2);
const INTERNET: SocketAddrV4 = SocketAddrV4::new(INTERNET_SERVERS[0], ECHO);
const TRANSIT: SocketAddrV4 = SocketAddrV4::new(TRANSIT_SERVERS[0], ECHO);
/// What the port range holds.
const PORTS: usize = 64;
/// What the session table holds.
const SESSIONS: usize = 1_024;
/// A range in which two ports are the machine's own.
const SHARED: Range<u16> = 20_000..20_070;
/// From there it has a connection of its own, to the very server that pods want.
const CONNECTS: u16 = 20_010;
/// There it listens.
const LISTENS: u16 = 20_020;
/// By then the daemon, which looks every 2 s, knows what the machine uses.
const NOTICED: Duration = Duration::from_secs(4);

everywhere!(
    what_is_full_refuses_the_new_and_keeps_the_old,
    a_full_range_leaves_the_machine_its_own_ports
);

fn what_is_full_refuses_the_new_and_keeps_the_old(place: Place) -> Result<()> {
    let mut stand = place.stand_with(|config| {
        config.set_table("sessions", SESSIONS as u32);
        // As many rules as there is room for: it starts, and each is counted.
        let rules = config.documents.iter().filter(|document| document["kind"] == "Rule").count();
        config.set_table("rules", rules as u32);
        // Below the ports that the machine uses itself.
        config.set_ports("pods-to-internet", &format!("20000-{}", 20_000 + PORTS - 1));
        config.set_timer("udp", "300s");
    })?;
    show!(stand: every_port_of_a_range_is_lent_and_none_twice, a_full_table_refuses_new_flows)
}

/// Sends a datagram to `to` from each of `count` sockets, and asks again where nothing comes
/// back. The sockets, and who was answered.
fn ask(netns: &Netns, to: SocketAddrV4, count: usize) -> Result<(Vec<UdpSocket>, Vec<bool>)> {
    let sockets = netns.enter(|| {
        let bind = |_| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(to)?;
            socket.set_nonblocking(true)?;
            anyhow::Ok(socket)
        };
        (0..count).map(bind).collect::<Result<Vec<_>>>()
    })?;
    let mut answered = vec![false; count];
    // A queue on the way may overflow: what counts is who gets an answer at all.
    for _ in 0..3 {
        for (socket, answered) in sockets.iter().zip(&answered) {
            if !answered {
                // Refused by ICMP, which the next receipt would show as well.
                let _ = socket.send(b"one");
                thread::sleep(Duration::from_micros(200));
            }
        }
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(200) {
            for (socket, answered) in sockets.iter().zip(&mut answered) {
                *answered |= socket.recv(&mut [0; 8]).is_ok();
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
    Ok((sockets, answered))
}

fn yes(answers: &[bool]) -> usize {
    answers.iter().filter(|answered| **answered).count()
}

fn every_port_of_a_range_is_lent_and_none_twice(stand: &mut Stand) -> Result<()> {
    let lab = &stand.lab;
    let web = &lab.pod("prod-eu", "web").netns;
    let before = stand.counters()?.dropped(Reason::PortsExhausted);
    let (_first, answered) = ask(web, INTERNET, PORTS)?;
    ensure!(yes(&answered) == PORTS, "{} of {PORTS} ports were lent", yes(&answered));
    ensure!(stand.counters()?.dropped(Reason::PortsExhausted) == before, "a failure before full");
    let (_more, answered) = ask(web, INTERNET, 10)?;
    ensure!(yes(&answered) == 0, "{} flows more than there are ports", yes(&answered));
    let refused = stand.counters()?.dropped(Reason::PortsExhausted) - before;
    ensure!(refused == 30, "{refused} of 3 times 10 are counted");
    stand.record("of a flow that found no port", |record| {
        record["reason"] == "snat_ports_exhausted" && record["source"]["endpoint"] == "prod-eu/web"
    })?;
    // Another destination has ports of its own.
    let elsewhere = SocketAddrV4::new(INTERNET_SERVERS[1], ECHO);
    let (_elsewhere, answered) = ask(web, elsewhere, 10)?;
    ensure!(yes(&answered) == 10, "{} of 10 elsewhere", yes(&answered));
    stand.ctl(&["sessions", "clear", "--all"])?;
    Ok(())
}

/// In a stand of its own: a port that the machine has used stays its own for a while.
fn a_full_range_leaves_the_machine_its_own_ports(place: Place) -> Result<()> {
    let mut stand = place.stand_with(|config| {
        let ports = format!("{}-{}", SHARED.start, SHARED.end - 1);
        config.set_ports("pods-to-internet", &ports);
    })?;
    show!(stand: pods_get_all_ports_but_those_of_the_machine)
}

fn pods_get_all_ports_but_those_of_the_machine(stand: &mut Stand) -> Result<()> {
    let lab = &stand.lab;
    let outside = lab.internet_address();
    let own = SocketAddrV4::new(outside, CONNECTS);
    let own = client::connect_from(&lab.gateway, own, INTERNET, PATIENCE)?.open()?;
    let own = client::talk(&lab.gateway, own, Duration::from_millis(5), PATIENCE);
    let _listener = lab.gateway.enter(|| Ok(TcpListener::bind((outside, LISTENS))?))?;
    thread::sleep(NOTICED);
    let before = stand.counters()?.dropped(Reason::PortsExhausted);
    let web = &lab.pod("prod-eu", "web").netns;
    let (mut open, mut refused) = (Vec::new(), 0);
    for _ in SHARED {
        // Shorter than a SYN takes to be repeated, which would be counted again.
        match client::connect_to(web, INTERNET, Duration::from_millis(500))? {
            Attempt::Open(stream) => open.push(stream),
            Attempt::Refused | Attempt::Silence => refused += 1,
        }
    }
    ensure!(open.len() == SHARED.len() - 2, "{} of {} are open", open.len(), SHARED.len());
    let counted = stand.counters()?.dropped(Reason::PortsExhausted) - before;
    ensure!(counted == refused, "{refused} were refused, {counted} are counted");
    // As the server sees them: each from another port, and one of them is the machine itself.
    let shown = lab.internet.run("ss", &["-Htn", "state", "established"])?;
    let peers = shown.lines().filter_map(|line| line.split_whitespace().last());
    let peers: BTreeSet<SocketAddrV4> =
        peers.map(str::parse).collect::<Result<_, _>>().with_context(|| shown.clone())?;
    let connected = SHARED.filter(|port| *port != LISTENS);
    let expected = connected.map(|port| SocketAddrV4::new(outside, port));
    ensure!(peers.into_iter().eq(expected), "{shown}");
    for stream in open {
        client::echo(stream, 1_000).context("a flow that has a port")?;
    }
    ensure!(!own.ended(), "the machine's own connection ended");
    let own = own.stop()?;
    ensure!(own.broke.is_none() && own.answered > 100, "the machine's own: {own:?}");
    Ok(())
}

fn a_full_table_refuses_new_flows(stand: &mut Stand) -> Result<()> {
    let own = Own::start(&stand.lab)?;
    let api = stand.lab.pod("prod-eu", "api").netns.clone();
    let stream = client::connect_to(&api, TRANSIT, PATIENCE)?.open()?;
    let old = client::talk(&api, stream, Duration::from_millis(2), PATIENCE);
    let before = stand.counters()?.dropped(Reason::TableFull);
    let (sockets, answered) = ask(&api, TRANSIT, SESSIONS + 100)?;
    let served = yes(&answered);
    ensure!((SESSIONS * 9 / 10..SESSIONS).contains(&served), "{served} of {SESSIONS} had room");
    ensure!(stand.counters()?.dropped(Reason::TableFull) > before, "{:?}", stand.counters()?);
    stand.record("of a flow that found no room", |record| record["reason"] == "table_full")?;
    // Who is in stays in.
    for (number, socket) in sockets.iter().enumerate().filter(|(number, _)| answered[*number]) {
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send(b"two")?;
        let answer = socket.recv(&mut [0; 8]);
        ensure!(answer.is_ok(), "socket {number} of {served}: {answer:?}");
    }
    ensure!(!old.ended());
    let old = old.stop()?;
    ensure!(old.broke.is_none(), "{old:?}");
    own.assert_alive()?;
    // Room comes back with time.
    stand.config.set_timer("udp", "1s");
    stand.config.set_timer("port_rest", "1s");
    stand.reload()?;
    within(Duration::from_secs(15), "there is room again", || {
        let opened = client::connect_to(&api, TRANSIT, Duration::from_millis(500))?;
        Ok(opened.open().is_ok())
    })
}
