//! The network around the gateway changes under live flows.

use std::net::SocketAddrV4;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::client::{self, UdpLoad};
use lab::plan::INTERNET_SERVERS;
use lab::servers::ECHO;
use lab::{Netns, Shape};

use crate::stand::{Place, Stand, everywhere, show};

const INTERNET: SocketAddrV4 = SocketAddrV4::new(INTERNET_SERVERS[0], ECHO);

everywhere!(flows_follow_the_network_around_them);

fn flows_follow_the_network_around_them(place: Place) -> Result<()> {
    let mut stand = place.stand()?;
    show!(stand: a_router_that_is_replaced_is_found, a_link_that_comes_back_carries_on)
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

fn a_router_that_is_replaced_is_found(stand: &mut Stand) -> Result<()> {
    let lab = &stand.lab;
    let replaced: Vec<(&Netns, &str)> = match &lab.vpc {
        None => vec![(&lab.internet_router, "uplink"), (&lab.cluster("prod-eu").router, "uplink")],
        Some(vpc) => vec![(vpc, "trunk")],
    };
    for (number, (router, interface)) in replaced.into_iter().enumerate() {
        // The new one says that it is there, as one that takes over does.
        router.sysctl(&format!("net/ipv4/conf/{interface}/arp_notify"), "1")?;
        flows_through(stand, || {
            router.ip(&format!("link set dev {interface} address 02:52:00:00:00:0{number}\n"))
        })?;
    }
    Ok(())
}

fn a_link_that_comes_back_carries_on(stand: &mut Stand) -> Result<()> {
    let lab = &stand.lab;
    if lab.shape != Shape::ThreeLegged {
        let why = "the only link of a one-armed gateway carries the routes of its router too";
        lab::skip::say("a_link_that_comes_back_carries_on", why);
        return Ok(());
    }
    flows_through(stand, || {
        let set = |state| lab.internet_router.ip(&format!("link set dev uplink {state}\n"));
        set("down")?;
        thread::sleep(Duration::from_millis(300));
        set("up")
    })
}
