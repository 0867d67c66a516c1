//! The daemon may die at any moment: traffic goes on, and whoever starts next takes over.

use std::net::SocketAddrV4;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::client::{self, Attempt, UdpLoad};
use lab::plan::{INTERNET_SERVERS, NON_ROUTABLE, TRANSIT_SERVERS};
use lab::servers::ECHO;

use crate::stand::{Place, Stand, eventually, everywhere, show};

const PATIENCE: Duration = Duration::from_secs(2);
const INTERNET: SocketAddrV4 = SocketAddrV4::new(INTERNET_SERVERS[0], ECHO);
const TRANSIT: SocketAddrV4 = SocketAddrV4::new(TRANSIT_SERVERS[0], ECHO);

everywhere!(
    #[ignore = "on a busy machine a start, which keeps a core busy, costs packets in the veth rings"]
    traffic_does_not_need_the_daemon,
    a_gateway_taken_out_leaves_a_guard
);

fn traffic_does_not_need_the_daemon(place: Place) -> Result<()> {
    let mut stand = place.stand_with(|config| {
        config.set_timer("udp", "2s");
        config.set_timer("icmp", "2s");
        config.set_timer("port_rest", "1s");
    })?;
    show!(stand:
        a_killed_daemon_and_its_successor_lose_no_packet,
        a_daemon_dead_for_longer_than_every_timer_is_not_missed,
        a_daemon_that_is_asked_to_stop_leaves_everything_at_work,
    )
}

fn a_killed_daemon_and_its_successor_lose_no_packet(stand: &mut Stand) -> Result<()> {
    let lab = &stand.lab;
    let [api, web] =
        [("prod-eu", "api"), ("prod-us", "web")].map(|(c, p)| lab.pod(c, p).netns.clone());
    let talks = [(&api, TRANSIT), (&web, INTERNET)].map(|(pod, to)| {
        let stream = client::connect_to(pod, to, PATIENCE)?.open()?;
        anyhow::Ok(client::talk(pod, stream, Duration::from_millis(2), PATIENCE))
    });
    let load = UdpLoad { packets: u32::MAX, ..UdpLoad::default() };
    let flows =
        [(&api, INTERNET), (&web, INTERNET)].map(|(pod, to)| client::udp_flow(pod, to, load));
    thread::sleep(Duration::from_millis(200));
    let begun = stand.counters()?.begun;
    for _ in 0..2 {
        stand.daemon.kill()?;
        // A new flow, with nobody at home.
        client::echo(client::connect_to(&web, INTERNET, PATIENCE)?.open()?, 1_000)
            .context("a new flow while the daemon is dead")?;
        stand.daemon.restart()?;
        client::echo(client::connect_to(&web, INTERNET, PATIENCE)?.open()?, 1_000)?;
    }
    for talk in talks {
        let talk = talk?.stop()?;
        ensure!(talk.broke.is_none() && talk.answered > 100, "{talk:?}");
        ensure!(talk.slowest < Duration::from_secs(1), "it stalled: {talk:?}");
    }
    for flow in flows {
        let report = flow?.stop()?;
        ensure!(report.sent > 1_000 && report.lost() == 0, "{report:?}");
    }
    let counters = stand.counters()?;
    ensure!(counters.begun == begun + 4, "live flows were not begun anew: {counters:?}");
    let said = stand.daemon.stderr();
    ensure!(said.matches("adopted=true").count() == 2, "{said}");
    Ok(())
}

fn a_daemon_dead_for_longer_than_every_timer_is_not_missed(stand: &mut Stand) -> Result<()> {
    stand.daemon.kill()?;
    let pod = &stand.lab.pod("prod-eu", "web").netns.clone();
    let load = UdpLoad { from_port: 20_777, ..UdpLoad::default() };
    for round in 0..3 {
        // The same tuple each time, whose session has expired and that nobody swept.
        let report = client::udp(pod, INTERNET, load)?;
        ensure!(report.answered == 10, "round {round}: {report:?}");
        ensure!(client::ping(pod, INTERNET_SERVERS[0], 1)? == 1, "round {round}");
        thread::sleep(Duration::from_millis(3_300));
    }
    let report = &stand.lab.pod("prod-eu", "report").netns;
    let attempt = client::connect_to(report, INTERNET, PATIENCE)?;
    ensure!(matches!(attempt, Attempt::Refused), "the policy holds too: {attempt:?}");
    stand.daemon.restart()?;
    eventually("what expired is swept", || {
        let counters = stand.counters()?;
        Ok(counters.begun - counters.ended <= 8)
    })
}

fn a_daemon_that_is_asked_to_stop_leaves_everything_at_work(stand: &mut Stand) -> Result<()> {
    let status = stand.daemon.stop()?;
    ensure!(status.success(), "{status}");
    let pod = &stand.lab.pod("prod-us", "api").netns;
    client::echo(client::connect_to(pod, TRANSIT, PATIENCE)?.open()?, 1_000)?;
    stand.daemon.restart()
}

fn a_gateway_taken_out_leaves_a_guard(place: Place) -> Result<()> {
    let mut stand = place.stand()?;
    let tries = |stand: &Stand| -> Result<usize> {
        let mut answers = 0;
        for cluster in &stand.lab.clusters {
            for pod in &cluster.pods {
                let report = client::udp(&pod.netns, INTERNET, UdpLoad::default())?;
                answers += report.answered as usize;
            }
        }
        Ok(answers)
    };
    ensure!(tries(&stand)? > 0);
    show!(stand: a_daemon_that_is_asked_to_stop_leaves_everything_at_work)?;
    stand.daemon.stop()?;
    let detached = stand.daemon.detach(&[])?;
    ensure!(detached.status.success(), "{detached:?}");
    ensure!(!stand.lab.site().pins().exists(), "pins are left");
    let leaks = |stand: &mut Stand| -> Result<bool> {
        let next = stand.lab.watch_outside()?;
        drop(std::mem::replace(&mut stand.outside, next));
        let answers = tries(stand)?;
        ensure!(answers == 0, "nobody translates, and {answers} are answered");
        let next = stand.lab.watch_outside()?;
        let mut leaks = false;
        for capture in std::mem::replace(&mut stand.outside, next) {
            leaks |= capture.stop()?.assert_clean(&[NON_ROUTABLE]).is_err();
        }
        Ok(leaks)
    };
    ensure!(!leaks(&mut stand)?, "pods' packets leave as they are in spite of the guard");
    let detached = stand.daemon.detach(&["--remove-guard"])?;
    ensure!(detached.status.success(), "{detached:?}");
    // That shows what the guard was good for, and that the capture sees it.
    ensure!(leaks(&mut stand)?, "with no guard Linux routes pods' packets");
    Ok(())
}
