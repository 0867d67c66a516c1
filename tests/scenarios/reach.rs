//! Who is allowed reaches whom, under the outside address that the policy gives.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::client::{self, UdpLoad};
use lab::plan::{INTERNET_SERVERS, TRANSIT_SERVERS};
use lab::servers::{self, ECHO, HTTP};
use lab::{Netns, Pod, Shape};

use crate::stand::{Place, Stand, everywhere, show};

const PATIENCE: Duration = Duration::from_secs(2);

everywhere!(everybody_reaches_whom_the_policy_allows);

fn everybody_reaches_whom_the_policy_allows(place: Place) -> Result<()> {
    let mut stand = place.stand()?;
    show!(stand:
        pods_and_nodes_reach_what_they_may_translated,
        pods_with_the_same_address_are_not_mixed_up,
        traffic_between_routable_hosts_is_not_translated,
        the_machine_keeps_its_own_connections_under_default_deny,
        a_port_that_the_machine_chose_itself_is_lent_to_nobody,
        an_identifier_of_the_ephemeral_range_is_lent_to_nobody,
        a_lossy_line_costs_time_but_no_byte,
    )
}

/// Whom a host reaches at a server over everything that the servers speak.
pub(crate) fn reaches(from: &Netns, server: Ipv4Addr, outside: Ipv4Addr) -> Result<()> {
    let seen = client::whoami(from, server)?.map(|seen| seen.ip());
    ensure!(seen == Some(outside.into()), "DNS sees {seen:?} and not {outside}");
    let page = client::fetch(from, &format!("http://{server}:{HTTP}/"))?.unwrap_or_default();
    ensure!(page.starts_with(&format!("{outside}:")), "HTTP sees {page:?} and not {outside}");
    let to = SocketAddrV4::new(server, ECHO);
    client::echo(client::connect_to(from, to, PATIENCE)?.open()?, 100_000)?;
    let report = client::udp(from, to, UdpLoad::default())?;
    ensure!(report.answered == 10 && report.wrong == 0, "{report:?}");
    let answered = client::ping(from, server, 2)?;
    ensure!(answered == 2, "{answered} of two pings are answered");
    Ok(())
}

fn pods_and_nodes_reach_what_they_may_translated(stand: &mut Stand) -> Result<()> {
    let lab = &stand.lab;
    let (transit, internet) = (lab.transit_address(), lab.internet_address());
    for cluster in &lab.clusters {
        for pod in cluster.pods.iter().filter(|pod| pod.plan.team != "batch") {
            let Pod { plan, netns, .. } = pod;
            let who = |server| format!("{}/{} to {server}", cluster.plan.name, plan.name);
            for server in INTERNET_SERVERS {
                reaches(netns, server, internet).with_context(|| who(server))?;
            }
            if plan.team == "payments" {
                for server in TRANSIT_SERVERS {
                    reaches(netns, server, transit).with_context(|| who(server))?;
                }
            }
        }
        let node = cluster.plan.node;
        reaches(&cluster.node, INTERNET_SERVERS[0], internet).with_context(|| node.to_string())?;
    }
    let counters = stand.counters()?;
    ensure!(counters.begun > 50 && counters.forwarded > 1_000, "{counters:?}");
    Ok(())
}

fn pods_with_the_same_address_are_not_mixed_up(stand: &mut Stand) -> Result<()> {
    let [eu, us] = ["prod-eu", "prod-us"].map(|cluster| stand.lab.pod(cluster, "web"));
    ensure!((eu.address == us.address) == (stand.lab.shape == Shape::ThreeLegged));
    // Ahead of the ports that the machine itself uses, so that one of them keeps its port.
    let from = |pod: &Pod| SocketAddrV4::new(pod.address, 20_000);
    let to = |port| SocketAddrV4::new(INTERNET_SERVERS[0], port);
    let open = |pod: &Pod, port| -> Result<TcpStream> {
        client::connect_from(&pod.netns, from(pod), to(port), PATIENCE)?.open()
    };
    // Both at once, from the same port to the same port.
    let streams = (open(eu, ECHO)?, open(us, ECHO)?);
    let talks = [(eu, streams.0), (us, streams.1)].map(|(pod, stream)| {
        client::talk(&pod.netns, stream, Duration::from_millis(2), Duration::from_secs(1))
    });
    let asked = [whoami_by_page(open(eu, HTTP)?)?, whoami_by_page(open(us, HTTP)?)?];
    for talk in talks {
        let talk = talk.stop()?;
        ensure!(talk.broke.is_none() && talk.answered > 0, "{talk:?}");
    }
    ensure!(asked.map(|who| *who.ip()) == [stand.lab.internet_address(); 2], "{asked:?}");
    ensure!(asked[0].port() == 20_000, "a port that is free is kept: {asked:?}");
    ensure!(asked[0].port() != asked[1].port(), "{asked:?}");
    Ok(())
}

/// Who we are to a server of pages, over a connection that stays open at our end until it is
/// answered.
fn whoami_by_page(mut stream: TcpStream) -> Result<SocketAddrV4> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: whoami\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.rsplit("\r\n").next().unwrap_or_default().trim();
    match body.parse().with_context(|| format!("no address in {answer:?}"))? {
        SocketAddr::V4(who) => Ok(who),
        SocketAddr::V6(who) => anyhow::bail!("{who} asks by IPv6"),
    }
}

fn traffic_between_routable_hosts_is_not_translated(stand: &mut Stand) -> Result<()> {
    let lab = &stand.lab;
    for cluster in &lab.clusters {
        let node = cluster.plan.node;
        reaches(&cluster.node, TRANSIT_SERVERS[0], node).with_context(|| node.to_string())?;
        let answered = client::ping(&lab.transit, node, 2)?;
        ensure!(answered == 2, "{answered} of two pings to {node} are answered");
    }
    Ok(())
}

fn the_machine_keeps_its_own_connections_under_default_deny(stand: &mut Stand) -> Result<()> {
    const SSH: u16 = 22;
    let lab = &stand.lab;
    let _server = servers::tcp(&lab.gateway, SSH, servers::echo)?;
    let eu = lab.cluster("prod-eu");
    let inside = if lab.vpc.is_some() { lab.transit_address() } else { eu.plan.upstream };
    for (from, address) in [(&eu.node, inside), (&lab.transit, lab.transit_address())] {
        let stream = client::connect_to(from, SocketAddrV4::new(address, SSH), PATIENCE)?.open();
        client::echo(stream.with_context(|| format!("to {address}"))?, 10_000)?;
    }
    let own = [
        (TRANSIT_SERVERS[0], lab.transit_address()),
        (INTERNET_SERVERS[0], lab.internet_address()),
    ];
    for (server, address) in own {
        let to = SocketAddrV4::new(server, ECHO);
        client::echo(client::connect_to(&lab.gateway, to, PATIENCE)?.open()?, 10_000)?;
        let seen = client::whoami(&lab.gateway, server)?.map(|seen| seen.ip());
        ensure!(seen == Some(address.into()), "{server} sees {seen:?}");
    }
    Ok(())
}

fn a_port_that_the_machine_chose_itself_is_lent_to_nobody(stand: &mut Stand) -> Result<()> {
    const CHOSEN: u16 = 21_234;
    let lab = &stand.lab;
    let to = SocketAddrV4::new(INTERNET_SERVERS[0], ECHO);
    let own = SocketAddrV4::new(lab.internet_address(), CHOSEN);
    let own = client::connect_from(&lab.gateway, own, to, PATIENCE)?.open();
    let own = own.context("the machine's own")?;
    let own = client::talk(&lab.gateway, own, Duration::from_millis(5), PATIENCE);
    // Longer than the daemon takes to look again at what the machine uses.
    thread::sleep(Duration::from_secs(5));
    // A flow keeps its own port if it may.
    let pod = lab.pod("prod-eu", "web");
    let from = SocketAddrV4::new(pod.address, CHOSEN);
    let stream = client::connect_from(&pod.netns, from, to, PATIENCE)?.open();
    client::echo(stream.context("the pod's")?, 10_000)?;
    thread::sleep(Duration::from_millis(500));
    ensure!(!own.ended(), "the machine's own connection ended");
    let own = own.stop()?;
    ensure!(own.broke.is_none() && own.answered > 50, "{own:?}");
    Ok(())
}

fn an_identifier_of_the_ephemeral_range_is_lent_to_nobody(stand: &mut Stand) -> Result<()> {
    let lab = &stand.lab;
    let server = INTERNET_SERVERS[0].to_string();
    let pod = &lab.pod("prod-eu", "web").netns;
    // The session of a ping lives longer than the ping.
    for from in [pod, &lab.gateway, pod] {
        let said = from.run("ping", &["-n", "-c", "2", "-i", "0.1", "-e", "40000", &server])?;
        ensure!(said.contains("2 received"), "{said}");
    }
    Ok(())
}

fn a_lossy_line_costs_time_but_no_byte(stand: &mut Stand) -> Result<()> {
    let lab = &stand.lab;
    lab.internet_router.lose("uplink", 3)?;
    let pod = &lab.pod("prod-us", "web").netns;
    let to = SocketAddrV4::new(INTERNET_SERVERS[0], ECHO);
    client::echo(client::connect_to(pod, to, PATIENCE * 3)?.open()?, 200_000)?;
    lab.internet_router.lose("uplink", 0)
}
