//! Groups of names in DNS: who a name was, is, and must not be.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::client::{self, Attempt};
use lab::dns::Zone;
use lab::plan::INTERNET_SERVERS;
use lab::servers::{self, ECHO};
use lab::{Hook, Need, Netns, Shape};
use serde_json::json;

use crate::stand::{Place, Stand, eventually, within};

/// Where the gateway asks: a server of its own machine.
const DNS: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 5353);
const STORE: &str = "store.example";
const POISONED: &str = "poisoned.example";
/// A name is asked for again every five seconds, and a busy machine does other things besides.
const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_name_is_who_dns_says_and_said_and_never_a_pod_or_a_metadata_service() -> Result<()> {
    lab::require!(Need::Lab, Need::Nftables, Need::Bpffs, Need::Gateway, Need::Ctl);
    let place = Place { shape: Shape::ThreeLegged, hook: Hook::Xdp };
    let mut stand = place.stand_with(|config| {
        // What is left of it lets nobody reach what the name has.
        config.remove("Rule", "teams-to-internet");
        config.gateway["dns"] = json!({ "servers": [format!("{}:{}", DNS.0, DNS.1)] });
    })?;
    let zone = Zone::default();
    let answers = zone.clone();
    let _server = servers::udp(&stand.lab.gateway, DNS, move |asked, _| answers.answer(asked))?;
    let outcome = claims(&mut stand, &zone);
    outcome.with_context(|| stand.daemon.stderr())?;
    stand.assert_sound()
}

#[test]
fn a_group_that_grows_suddenly_or_loses_all_raises_an_alarm() -> Result<()> {
    lab::require!(Need::Lab, Need::Nftables, Need::Bpffs, Need::Gateway, Need::Ctl);
    let place = Place { shape: Shape::ThreeLegged, hook: Hook::Xdp };
    let mut stand = place.stand_with(|config| {
        config.remove("Rule", "teams-to-internet");
        config.gateway["dns"] = json!({ "servers": [format!("{}:{}", DNS.0, DNS.1)] });
        config.gateway["group_alarms"] = json!({ "percent": 50, "members": 10, "within": "2s" });
    })?;
    let zone = Zone::default();
    let answers = zone.clone();
    let _server = servers::udp(&stand.lab.gateway, DNS, move |asked, _| answers.answer(asked))?;
    let outcome = alarms(&mut stand, &zone);
    outcome.with_context(|| stand.daemon.stderr())?;
    stand.assert_sound()
}

fn alarms(stand: &mut Stand, zone: &Zone) -> Result<()> {
    let web = stand.lab.pod("prod-eu", "web").netns.clone();
    let first = INTERNET_SERVERS[0];
    zone.set(STORE, &[first]);
    stand.config.add("SmartGroup", "store", json!({ "selectors": [{ "fqdn": STORE }] }));
    stand.config.add_rule("web-to-store", 50, "permit", "web", "store");
    stand.reload()?;
    within(SOON, "the name is learned", || reaches(&web, first))?;
    ensure!(stand.daemon.metric("sluice_group_alarms_total", &[])? == 0.0, "nothing was sudden");
    ensure!(stand.daemon.metric("sluice_empty_groups", &[])? == 0.0, "every group has somebody");
    let counted = |stand: &Stand, kind: &str| {
        let labels = ["group=\"store\"", &format!("kind=\"{kind}\"")];
        stand.daemon.metric("sluice_group_alarms_total", &labels)
    };

    // Not known for two seconds yet when it was learned, and for longer when it is asked for again.
    let [a, b, c, _] = first.octets();
    let many: Vec<Ipv4Addr> = (100..130).map(|host| Ipv4Addr::new(a, b, c, host)).collect();
    zone.set(STORE, &many);
    within(SOON, "the growth is told", || Ok(counted(stand, "grown")? == 1.0))?;
    let status = stand.ctl(&["status"])?;
    ensure!(status.contains("alarm: group `store` has grown suddenly, "), "{status}");
    ensure!(status.contains("from 1 to 31"), "{status}");
    ensure!(stand.daemon.get("/readyz")?.0 == 200, "an alarm is no fault");

    // By a reload, as by a label that nobody has.
    let before = json!([{ "type": "k8s", "labels": { "team": "nobody" } }]);
    let before =
        std::mem::replace(&mut stand.config.spec("SmartGroup", "store")["selectors"], before);
    stand.reload()?;
    ensure!(counted(stand, "emptied")? == 1.0, "it is not told that the group is empty");
    let said = stand.daemon.stderr();
    ensure!(said.contains("group `store` has become empty, it had 31 members"), "{said}");
    eventually("it counts as empty", || {
        Ok(stand.daemon.metric("sluice_empty_groups", &[])? == 1.0)
    })?;
    stand.config.spec("SmartGroup", "store")["selectors"] = before;
    stand.reload()?;
    within(SOON, "it is not empty any more", || {
        let status = stand.ctl(&["status"])?;
        Ok(!status.contains("has become empty")
            && stand.daemon.metric("sluice_empty_groups", &[])? == 0.0)
    })
}

fn claims(stand: &mut Stand, zone: &Zone) -> Result<()> {
    let web = stand.lab.pod("prod-eu", "web").netns.clone();
    let [first, second] = INTERNET_SERVERS;
    zone.set(STORE, &[first]);
    ensure!(!reaches(&web, first)?, "nobody has named it yet");
    stand.config.add("SmartGroup", "store", json!({ "selectors": [{ "fqdn": STORE }] }));
    stand.config.add_rule("web-to-store", 50, "permit", "web", "store");
    stand.reload()?;
    within(SOON, "the name is learned", || reaches(&web, first))?;
    ensure!(!reaches(&web, second)?, "this is not the store's");
    let record = stand.record("the name in the record", |record| {
        record["destination"]["endpoint"] == format!("fqdn:{STORE}") && record["event"] == "start"
    })?;
    ensure!(record["destination"]["groups"].to_string().contains("store"), "{record}");
    let status = stand.ctl(&["status"])?;
    ensure!(status.contains(STORE), "{status}");
    ensure!(stand.ctl(&["-o", "wide", "identities"])?.contains(&format!("fqdn:{STORE}")));

    // The name moves: whoever has it now is let through, and whoever had it yet.
    let generation = stand.daemon.metric("sluice_policy_generation", &[])?;
    let judged = stand.daemon.metric("sluice_sessions_judged_again_total", &[])?;
    let stream = client::connect_to(&web, to(first), Duration::from_secs(2))?.open()?;
    let live = client::talk(&web, stream, Duration::from_millis(5), Duration::from_secs(1));
    zone.set(STORE, &[second]);
    within(SOON, "the name is learned anew", || reaches(&web, second))?;
    ensure!(!live.ended(), "a flow to where the name was broke off");
    ensure!(reaches(&web, first)?, "others still have the name's last answer");
    ensure!(stand.daemon.metric("sluice_policy_generation", &[])? == generation);
    let again = stand.daemon.metric("sluice_sessions_judged_again_total", &[])? - judged;
    ensure!(again == 0.0, "{again} flows of other addresses were judged again");
    let of_store = [&*format!("fqdn=\"{STORE}\"")];
    ensure!(stand.daemon.metric("sluice_fqdn_addresses", &of_store)? == 2.0);

    // A name that fails keeps what it has, and says so.
    zone.fail(STORE);
    within(SOON, "the failure is told", || {
        Ok(stand.daemon.metric("sluice_fqdn_failures_total", &of_store)? > 0.0)
    })?;
    ensure!(stand.daemon.metric("sluice_fqdn_addresses", &of_store)? == 2.0);
    ensure!(reaches(&web, second)? && !live.ended(), "a failure cut somebody off");
    let status = stand.ctl(&["status"])?;
    ensure!(status.contains("IPv4: "), "{status}");
    let ready = stand.daemon.get("/readyz")?;
    ensure!(ready.0 == 200, "addresses are known: {ready:?}");

    // Who answers for a name makes no member of a pod, nor of what a machine tells its secrets to.
    let pod = stand.lab.pod("prod-eu", "api").address;
    zone.set(POISONED, &[pod, Ipv4Addr::new(169, 254, 169, 254)]);
    stand.config.add("SmartGroup", "poisoned", json!({ "selectors": [{ "fqdn": POISONED }] }));
    stand.reload()?;
    let of_poisoned = [&*format!("fqdn=\"{POISONED}\"")];
    within(SOON, "the answer is refused", || {
        Ok(stand.daemon.metric("sluice_fqdn_addresses_refused_total", &of_poisoned)? >= 2.0)
    })?;
    ensure!(stand.daemon.metric("sluice_fqdn_addresses", &of_poisoned)? == 0.0);
    within(SOON, "it is said why the name has no address", || {
        let (status, said) = stand.daemon.get("/readyz")?;
        let why = format!("no address of `{POISONED}` is known yet: every IPv4 address is refused");
        Ok(status == 503 && said.contains(&why) && said.contains("169.254.169.254 is link-local"))
    })?;
    let identities = stand.ctl(&["-o", "wide", "identities"])?;
    ensure!(!identities.contains("169.254.169.254"), "{identities}");
    stand.config.remove("SmartGroup", "poisoned");
    stand.reload()?;
    within(SOON, "a name that nobody names is not missed", || {
        Ok(stand.daemon.get("/readyz")?.0 == 200)
    })?;

    // The next daemon knows who was answered last, and nobody answers it.
    stand.daemon.stop()?;
    stand.daemon.restart()?;
    ensure!(reaches(&web, first)? && reaches(&web, second)?, "names were forgotten");
    ensure!(!live.ended(), "a live flow was cut by the restart");

    // A name that leaves the file takes its addresses along.
    let ensured = live.stop()?;
    ensure!(ensured.broke.is_none(), "{ensured:?}");
    stand.config.spec("SmartGroup", "store")["selectors"] = json!([{ "cidr": "192.0.2.128/25" }]);
    stand.reload()?;
    within(SOON, "nobody has the name any more", || {
        Ok(!reaches(&web, first)? && !reaches(&web, second)?)
    })?;
    // Nor is that remembered until somebody names it again.
    stand.daemon.stop()?;
    let kept = stand.lab.site().files().join("state/discovered.json");
    let kept = std::fs::read_to_string(&kept).with_context(|| kept.display().to_string())?;
    ensure!(!kept.contains(STORE), "{kept}");
    stand.daemon.restart()
}

fn to(address: Ipv4Addr) -> SocketAddrV4 {
    SocketAddrV4::new(address, ECHO)
}

fn reaches(from: &Netns, address: Ipv4Addr) -> Result<bool> {
    match client::connect_to(from, to(address), Duration::from_millis(300))? {
        Attempt::Open(stream) => Ok(client::echo(stream, 1_000).is_ok()),
        Attempt::Refused | Attempt::Silence => Ok(false),
    }
}
