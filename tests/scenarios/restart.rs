//! The daemon may die at any moment: traffic goes on, and whoever starts next takes over.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddrV4, TcpStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use gateway::net::guard::TABLE;
use lab::client::{self, Attempt, Talk, UdpLoad};
use lab::plan::{INTERNET_SERVERS, NON_ROUTABLE, TRANSIT_SERVERS};
use lab::servers::{self, ECHO};
use lab::{Background, Stop};
use serde_json::Value;
use xdp_abi::ABI_VERSION;
use xdp_abi::names;
use xdp_abi::session::Record;

use crate::older;
use crate::stand::{Place, Stand, assert_carried, eventually, everywhere, half_of_capacity, show};

const PATIENCE: Duration = Duration::from_secs(2);
const INTERNET: SocketAddrV4 = SocketAddrV4::new(INTERNET_SERVERS[0], ECHO);
/// By then a Linux has acknowledged whatever it does not acknowledge at once.
const LATE: Duration = Duration::from_millis(300);
const TRANSIT: SocketAddrV4 = SocketAddrV4::new(TRANSIT_SERVERS[0], ECHO);

everywhere!(
    traffic_does_not_need_the_daemon,
    a_gateway_taken_out_leaves_a_guard,
    sessions_of_an_older_layout_live_on
);

fn traffic_does_not_need_the_daemon(place: Place) -> Result<()> {
    let mut stand = place.stand_with(|config| {
        config.set_timer("udp", "2s");
        config.set_timer("tcp_established", "4s");
        config.set_timer("tcp_transitory", "2s");
        config.set_timer("icmp", "2s");
        config.set_timer("port_rest", "1s");
    })?;
    show!(stand:
        a_killed_daemon_and_its_successor_lose_no_packet,
        a_daemon_dead_for_longer_than_every_timer_is_not_missed,
        tcp_connections_expire_and_come_again_with_no_daemon,
        a_daemon_that_is_asked_to_stop_leaves_everything_at_work,
        what_somebody_takes_away_is_missed_before_a_restart,
        a_guard_that_cannot_be_put_back_is_said,
        a_size_that_was_changed_meanwhile_is_refused_and_sessions_live_on,
        numbers_of_attachments_that_are_lost_are_missed_while_sessions_live,
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
    let flows = [(&api, INTERNET), (&web, INTERNET)];
    let load = half_of_capacity(&flows)?;
    let flows = flows.map(|(pod, to)| client::udp_flow(pod, to, load));
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
        ensure!(report.sent > 1_000, "{report:?}");
        assert_carried(&report, load)?;
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

/// Answers one message. Some time later, when also what is acknowledged late is, nobody hears of
/// the server again.
fn answer_and_vanish(mut stream: TcpStream, _: &Stop) -> io::Result<()> {
    answer(&mut stream)?;
    thread::sleep(LATE);
    client::vanish(stream).map_err(io::Error::other)
}

/// The same, when the client has no more to say.
fn answer_till_the_end(mut stream: TcpStream, _: &Stop) -> io::Result<()> {
    answer(&mut stream)?;
    // Nothing more comes but its end.
    let _ = stream.read(&mut [0; 8])?;
    thread::sleep(LATE);
    client::vanish(stream).map_err(io::Error::other)
}

fn answer(stream: &mut TcpStream) -> io::Result<()> {
    let mut message = [0; 8];
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.read_exact(&mut message)?;
    stream.write_all(&message)
}

fn tcp_connections_expire_and_come_again_with_no_daemon(stand: &mut Stand) -> Result<()> {
    const HOLDS: u16 = 7_001;
    const VANISHES: u16 = 7_002;
    const DEAF: u16 = 7_003;
    stand.daemon.kill()?;
    let lab = &stand.lab;
    let _servers = [
        servers::tcp(&lab.transit, HOLDS, answer_till_the_end)?,
        servers::tcp(&lab.transit, VANISHES, answer_and_vanish)?,
    ];
    lab.transit.nft(&format!(
        "table ip deaf {{ chain arriving {{ type filter hook input priority 0\n\
         tcp dport {DEAF} drop\n}}\n}}\n"
    ))?;
    let pod = lab.pod("prod-eu", "api");
    // The same tuple each time.
    let open = |port: u16, patience| {
        let from = SocketAddrV4::new(pod.address, 20_000 + port);
        let to = SocketAddrV4::new(TRANSIT_SERVERS[0], port);
        client::connect_from(&pod.netns, from, to, patience)
    };
    let ask = |stream: &mut TcpStream| -> Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"message.")?;
        Ok(stream.read_exact(&mut [0; 8])?)
    };
    // Slower than any timer but that of a connection that is open.
    let stream = client::connect_to(&pod.netns, TRANSIT, PATIENCE)?.open()?;
    let talk = client::talk(&pod.netns, stream, Duration::from_millis(2_500), PATIENCE);
    thread::sleep(Duration::from_millis(100));
    let before = stand.counters()?;
    for round in 1..=2 {
        let mut established = open(VANISHES, PATIENCE)?.open().context("to be established")?;
        ask(&mut established)?;
        let mut closing = open(HOLDS, PATIENCE)?.open().context("to be closed by half")?;
        ask(&mut closing)?;
        closing.shutdown(Shutdown::Write)?;
        // The second SYN belongs to what the first began.
        for _ in 0..2 {
            let attempt = open(DEAF, Duration::from_millis(200))?;
            ensure!(matches!(attempt, Attempt::Silence), "{attempt:?}");
        }
        client::vanish(closing)?;
        let now = stand.counters()?;
        let (begun, ended) = (now.begun - before.begun, now.ended - before.ended);
        ensure!((begun, ended) == (3 * round, 3 * round - 3), "{begun} {ended}, round {round}");
        thread::sleep(Duration::from_millis(4_500));
        // Nobody swept it, and it is over all the same: who is inside is told.
        established.write_all(b"anybody?")?;
        let answer = established.read(&mut [0; 8]).map_err(|error| error.kind());
        ensure!(answer == Err(io::ErrorKind::ConnectionReset), "{answer:?}, round {round}");
        let ended = stand.counters()?.ended - before.ended;
        ensure!(ended == 3 * round - 2, "{ended} ended, round {round}");
    }
    lab.transit.nft("delete table ip deaf\n")?;
    ensure!(!talk.ended(), "a connection with traffic ended");
    let talk = talk.stop()?;
    ensure!(talk.broke.is_none() && talk.answered >= 3, "{talk:?}");
    stand.daemon.restart()?;
    eventually("what expired is swept", || {
        let counters = stand.counters()?;
        Ok(counters.begun - counters.ended <= 2)
    })
}

fn a_daemon_that_is_asked_to_stop_leaves_everything_at_work(stand: &mut Stand) -> Result<()> {
    let status = stand.daemon.stop()?;
    ensure!(status.success(), "{status}");
    let pod = &stand.lab.pod("prod-us", "api").netns;
    client::echo(client::connect_to(pod, TRANSIT, PATIENCE)?.open()?, 1_000)?;
    stand.daemon.restart()
}

fn what_somebody_takes_away_is_missed_before_a_restart(stand: &mut Stand) -> Result<()> {
    let pins = stand.lab.site().pins();
    let link = std::fs::read_dir(&pins)?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .find(|name| name.contains("egress-"))
        .context("something is attached")?;
    let socket = stand.lab.site().files().join("sluice.sock");
    for (path, said) in [
        (pins.join(names::SLOTS4), "the pin PATH is gone: a restart would lose sessions"),
        (pins.join(&link), "the pin PATH is gone: a restart would lose sessions"),
        (socket, "the socket PATH is gone: sluicectl finds nobody until a restart"),
    ] {
        let away = path.with_file_name("away");
        std::fs::rename(&path, &away)?;
        let said = said.replace("PATH", &path.display().to_string());
        eventually("it is missed", || {
            let (status, body) = stand.daemon.get("/readyz")?;
            Ok(status == 503 && body.contains(&said))
        })?;
        std::fs::rename(&away, &path)?;
        eventually("it is back", || Ok(stand.daemon.get("/readyz")?.0 == 200))?;
    }
    Ok(())
}

fn a_guard_that_cannot_be_put_back_is_said(stand: &mut Stand) -> Result<()> {
    // Somebody's own table under that name, which nobody else may touch, for some seconds.
    const OWNER: &str = "(echo 'delete table inet sluice_guard; \
                         add table inet sluice_guard { flags owner; }'; sleep 4) | nft -i";
    let mut owner = stand.lab.gateway.start(Path::new("sh"), &["-c", OWNER])?;
    let said = "the last guard does not stand: ";
    eventually("the guard is missed", || {
        let (status, body) = stand.daemon.get("/readyz")?;
        Ok(status == 503 && body.contains(said))
    })
    .with_context(|| owner.stderr())?;
    ensure!(stand.ctl(&["status"])?.contains(said));
    owner.wait(Duration::from_secs(10))?;
    eventually("it stands again", || Ok(stand.daemon.get("/readyz")?.0 == 200))
}

/// A conversation that whatever is done to the daemon leaves alone.
fn live_talk(stand: &Stand) -> Result<Background<Talk>> {
    let pod = &stand.lab.pod("prod-us", "api").netns;
    let stream = client::connect_to(pod, TRANSIT, PATIENCE)?.open()?;
    Ok(client::talk(pod, stream, Duration::from_millis(2), PATIENCE))
}

fn went_on(talk: Background<Talk>) -> Result<()> {
    let talk = talk.stop()?;
    ensure!(talk.broke.is_none() && talk.answered > 50, "{talk:?}");
    Ok(())
}

fn a_size_that_was_changed_meanwhile_is_refused_and_sessions_live_on(
    stand: &mut Stand,
) -> Result<()> {
    let talk = live_talk(stand)?;
    stand.daemon.stop()?;
    let tables = stand.config.gateway["tables"].as_object().context("sizes are set")?.clone();
    ensure!(tables.len() == 7, "{tables:?}");
    for (table, size) in tables {
        let size = size.as_u64().context("a size is a number")? as u32;
        for other in [size / 2, size * 2] {
            let mut resized = stand.config.clone();
            resized.set_table(&table, other);
            resized.write(stand.daemon.config_path())?;
            let Err(refused) = stand.daemon.restart() else { bail!("{table}: {other}") };
            let refused = format!("{refused:#}");
            let said = format!("`tables.{table}` is {other}, but the pinned table has {size};");
            ensure!(refused.contains(&said), "{said}: {refused}");
            // Trying again does not help, and systemd does not.
            ensure!(refused.contains("exit status: 2"), "{refused}");
        }
    }
    stand.config.write(stand.daemon.config_path())?;
    stand.daemon.restart()?;
    went_on(talk)
}

/// Sessions hold them: under other numbers they would be told with the wrong names.
fn numbers_of_attachments_that_are_lost_are_missed_while_sessions_live(
    stand: &mut Stand,
) -> Result<()> {
    let talk = live_talk(stand)?;
    stand.daemon.stop()?;
    let state_dir = stand.config.gateway["state_dir"].as_str().context("it is set")?;
    let numbers = Path::new(state_dir).join("attachments.json");
    let kept = std::fs::read(&numbers)?;
    std::fs::remove_file(&numbers)?;
    // The second time as well: what was refused keeps nothing.
    for _ in 0..2 {
        let Err(refused) = stand.daemon.restart() else { bail!("it has started") };
        let refused = format!("{refused:#}");
        let said = ["live sessions", state_dir, "restore it, or end all sessions"];
        ensure!(said.iter().all(|said| refused.contains(said)), "{refused}");
    }
    std::fs::write(&numbers, "{")?;
    let Err(refused) = stand.daemon.restart() else { bail!("it has started") };
    ensure!(format!("{refused:#}").contains("attachments.json, which says which number"));
    std::fs::write(&numbers, kept)?;
    stand.daemon.restart()?;
    went_on(talk)
}

fn sessions_of_an_older_layout_live_on(place: Place) -> Result<()> {
    let mut stand = place.stand()?;
    show!(stand:
        an_older_layout_is_carried_over_under_traffic,
        a_daemon_killed_in_the_middle_of_that_is_followed_up,
        a_layout_that_is_not_known_is_refused_and_nothing_is_touched,
    )
}

/// Connections and datagrams that go on while `change` is done to the pins and the daemon is
/// started again: the same sessions before and after, with all that is known of them.
fn live_through(stand: &mut Stand, change: fn(&Path) -> Result<()>) -> Result<()> {
    let lab = &stand.lab;
    let [api, web] =
        [("prod-eu", "api"), ("prod-us", "web")].map(|(c, p)| lab.pod(c, p).netns.clone());
    let talks = [(&api, TRANSIT), (&web, INTERNET)].map(|(pod, to)| {
        let stream = client::connect_to(pod, to, PATIENCE)?.open()?;
        anyhow::Ok(client::talk(pod, stream, Duration::from_millis(2), PATIENCE))
    });
    let flows = [(&api, INTERNET), (&web, INTERNET)];
    let load = half_of_capacity(&flows)?;
    let flows = flows.map(|(pod, to)| client::udp_flow(pod, to, load));
    thread::sleep(Duration::from_millis(200));
    let facts = |stand: &Stand| -> Result<BTreeMap<String, Value>> {
        // What rests is carried over too.
        let shown = stand.ctl(&["-o", "json", "sessions", "state=all"])?;
        let answer: Value = serde_json::from_str(&shown)?;
        let sessions = answer["sessions"].as_array().context("a list of sessions")?;
        let mut facts = BTreeMap::new();
        for session in sessions {
            let mut session = session.clone();
            let id = session["id"].as_str().context("a session has a name")?.to_owned();
            let fields = session.as_object_mut().context("a session has fields")?;
            for moving in ["original", "reply", "age", "idle", "expires_in", "generation"] {
                fields.remove(moving);
            }
            facts.insert(id, session);
        }
        Ok(facts)
    };
    let before = facts(stand)?;
    ensure!(before.len() >= 4, "{before:?}");
    let begun = stand.counters()?.begun;
    let pins = stand.lab.site().pins();
    stand.daemon.kill()?;
    change(&pins)?;
    stand.daemon.restart()?;
    let said = stand.daemon.stderr();
    let carried = format!("sessions of an older layout carried over sessions={}", before.len());
    ensure!(said.contains(&carried), "{carried}: {said}");
    ensure!(facts(stand)? == before, "{before:?}\nbecame {:?}", facts(stand)?);
    ensure!(older::layout(&pins)? == u64::from(ABI_VERSION));
    ensure!(older::record_bytes(&pins)? == size_of::<Record>());
    let left: Vec<_> = std::fs::read_dir(&pins)?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with("_next") || name.ends_with("_before"))
        .collect();
    ensure!(left.is_empty(), "{left:?} are left");
    thread::sleep(Duration::from_millis(200));
    for talk in talks {
        let talk = talk?.stop()?;
        ensure!(talk.broke.is_none() && talk.answered > 50, "{talk:?}");
    }
    for flow in flows {
        let report = flow?.stop()?;
        assert_carried(&report, load)?;
    }
    ensure!(stand.counters()?.begun == begun, "live flows were begun anew");
    // The end of a connection is followed in the records that were carried over.
    for id in before.iter().filter(|(_, session)| session["protocol"] == "tcp").map(|(id, _)| id) {
        eventually("a connection that was closed is seen to be", || {
            let now = facts(stand)?;
            Ok(now.get(id).is_none_or(|session| session["phase"] == "tcp_closed"))
        })?;
    }
    let cleared = stand.ctl(&["sessions", "clear", "--all"])?;
    ensure!(cleared.contains("ended"), "{cleared}");
    for (id, session) in before {
        let record = stand.record("the end", |record| {
            record["event"] == "end" && record["session"] == id.as_str()
        })?;
        ensure!(record["rule"]["name"] == session["rule"]["name"], "{record} of {session}");
        ensure!(record["original"]["packets"].as_u64() > Some(1), "{record}");
    }
    Ok(())
}

fn an_older_layout_is_carried_over_under_traffic(stand: &mut Stand) -> Result<()> {
    live_through(stand, older::make_older)
}

fn a_daemon_killed_in_the_middle_of_that_is_followed_up(stand: &mut Stand) -> Result<()> {
    live_through(stand, older::make_half_new)
}

fn a_layout_that_is_not_known_is_refused_and_nothing_is_touched(stand: &mut Stand) -> Result<()> {
    let pins = stand.lab.site().pins();
    let talk = live_talk(stand)?;
    stand.daemon.kill()?;
    for layout in [u64::from(ABI_VERSION) + 1, 1 << 40] {
        older::say_layout(&pins, layout)?;
        let Err(refused) = stand.daemon.restart() else { bail!("layout {layout} is taken over") };
        let refused = format!("{refused:#}");
        for part in [&format!("layout {layout}")[..], "the version of sluice-gateway", "detach"] {
            ensure!(refused.contains(part), "{part}: {refused}");
        }
        ensure!(older::layout(&pins)? == layout);
    }
    older::say_layout(&pins, ABI_VERSION.into())?;
    stand.daemon.restart()?;
    went_on(talk)
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
    let is_closed = |stand: &Stand| -> Result<bool> {
        let shown =
            stand.lab.gateway.output("nft", &["list", "chain", "inet", TABLE, "forward"])?;
        Ok(shown.status.success())
    };
    ensure!(is_closed(&stand)?, "what no program has judged is not forwarded");
    let detach = |stand: &Stand, more: &[&str], said: &str| -> Result<()> {
        let detached = stand.daemon.detach(more)?;
        ensure!(detached.status.success(), "{detached:?}");
        ensure!(String::from_utf8_lossy(&detached.stdout).contains(said), "{said}: {detached:?}");
        Ok(())
    };
    // As `nft flush ruleset` leaves it, with no daemon that would put it back.
    stand.lab.gateway.nft(&format!("delete table inet {TABLE}\n"))?;
    detach(&stand, &[], "the last guard did not stand as the file has it, and was put up")?;
    ensure!(!stand.lab.site().pins().exists(), "pins are left");
    let neighbours = stand.lab.gateway.run("ip", &["neighbour", "show"])?;
    ensure!(!neighbours.contains(" managed "), "the kernel goes on to ask for {neighbours}");
    ensure!(!is_closed(&stand)?, "the kernel forwards again what no program is there to judge");
    let leaks = |stand: &mut Stand| -> Result<bool> {
        let next = stand.lab.watch_outside()?;
        drop(std::mem::replace(&mut stand.outside, next));
        // The kernel takes programs out a moment after their last link is gone.
        eventually("nobody translates", || Ok(tries(stand)? == 0))?;
        let next = stand.lab.watch_outside()?;
        let mut leaks = false;
        for capture in std::mem::replace(&mut stand.outside, next) {
            leaks |= capture.stop()?.assert_clean(&[NON_ROUTABLE]).is_err();
        }
        Ok(leaks)
    };
    ensure!(!leaks(&mut stand)?, "pods' packets leave as they are in spite of the guard");
    detach(&stand, &[], "the last guard stays")?;
    ensure!(!leaks(&mut stand)?, "a guard that stays is the same");
    detach(&stand, &["--remove-guard"], "the last guard is removed")?;
    // That shows what the guard was good for, and that the capture sees it.
    ensure!(leaks(&mut stand)?, "with no guard Linux routes pods' packets");
    Ok(())
}
