//! How the gateway is, and what became of every packet.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use api::status::{
    AccountStatus, Amount, AttachmentStatus, ClusterStatus, Direction, Drops, GroupAlarm,
    NameStatus, Stats, Status, TableFill,
};
use axum::Json;
use axum::extract::State as Extract;
use controller::Alarm;
use smartgroups_aws as aws;
use smartgroups_discovery::{dns, kubernetes};
use xdp_abi::count::{self, Counters};
use xdp_abi::forward::HOP_USED;
use xdp_abi::reason::Reason;

use super::problem::{Refusal, blocking};
use super::state::{InForce, State};
use crate::datapath::places::Served;
use crate::flows::session::room;
use crate::flows::{Census, Live};

/// How old the count of sessions may be.
pub(super) const FRESH: Duration = Duration::from_secs(1);

pub(super) async fn status<L: Live>(
    Extract(state): Extract<Arc<State<L>>>,
) -> Result<Json<Status>, Refusal> {
    let counters = state.live.counters().map_err(Refusal::kernel)?;
    let InForce { config, numbers, .. } = state.in_force();
    let served = state.served();
    let hook = |interface: &str| {
        let found = served.values().find(|(name, _)| name == interface);
        found.map(|(_, served)| match served {
            Served::Xdp => "xdp".to_owned(),
            Served::Tc => "tc".to_owned(),
        })
    };
    let attachments = config.gateway.attachments.iter().map(|attachment| AttachmentStatus {
        number: numbers.of(&attachment.name).unwrap_or_default(),
        name: attachment.name.clone(),
        interface: attachment.interface.clone(),
        vlan: attachment.vlan.map(crate::config::Vlan::get),
        kind: attachment.kind.as_str().to_owned(),
        domain: attachment.domain.clone(),
        hook: hook(&attachment.interface),
    });
    let problems = state.problems();
    let discovered = state.discovered();
    Ok(Json(Status {
        name: config.gateway.name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime: state.uptime(),
        generation: state.generation(),
        healthy: problems.is_empty(),
        problems,
        reload_refused: state.reload().refused,
        flow_log_fault: state.records().and_then(flow_export::Counts::fault),
        sessions: live_sessions(&counters),
        attachments: attachments.collect(),
        clusters: discovered.clusters.iter().map(cluster).collect(),
        cloud_accounts: discovered.accounts.iter().map(account).collect(),
        names: discovered.names.iter().map(name).collect(),
        alarms: state.alarms().active.iter().map(alarm).collect(),
    }))
}

fn alarm(alarm: &Alarm) -> GroupAlarm {
    GroupAlarm {
        group: alarm.group.clone(),
        kind: alarm.kind.as_str().to_owned(),
        before: alarm.before as u64,
        now: alarm.now as u64,
        since: alarm.at.elapsed().as_secs(),
    }
}

fn name(status: &dns::NameStatus) -> NameStatus {
    NameStatus {
        name: status.name.to_string(),
        addresses: status.addresses as u64,
        staleness: status.staleness(Instant::now()).map(|age| age.as_secs()),
        fault: status.fault.clone(),
    }
}

fn cluster(status: &kubernetes::ClusterStatus) -> ClusterStatus {
    let now = Instant::now();
    let fault = |kind: &kubernetes::KindStatus| {
        let why = kind.error.as_deref().unwrap_or(match kind.synced {
            true => "nothing is heard of them",
            false => "they are not known yet",
        });
        format!("{}: {why}", kind.kind)
    };
    ClusterStatus {
        name: status.cluster.to_string(),
        synced: status.is_synced(),
        endpoints: status.endpoints as u64,
        staleness: status.staleness(now).map(|age| age.as_secs()),
        credentials_expire_in: status.credentials_expire.map(left),
        faults: status.degraded(now).map(fault).collect(),
    }
}

fn account(status: &aws::AccountStatus) -> AccountStatus {
    let now = Instant::now();
    let fault = |(region, kind): (&smartgroups::Text, &aws::KindStatus)| {
        let why = kind.error.as_deref().unwrap_or(match kind.known {
            true => "nothing is heard of them",
            false => "they are not known yet",
        });
        let since = now.saturating_duration_since(kind.since).as_secs();
        let age = kind.staleness(now);
        let age =
            age.map_or_else(String::new, |age| format!(", known as of {} s ago", age.as_secs()));
        format!("{region}: {}: {why} (for {since} s{age})", kind.kind)
    };
    let unidentified = status.unidentified.iter().cloned();
    AccountStatus {
        name: status.account.to_string(),
        id: status.id.as_ref().map(ToString::to_string),
        synced: status.is_synced(),
        endpoints: status.endpoints as u64,
        staleness: status.staleness(now).map(|age| age.as_secs()),
        credentials_expire_in: status.credentials_expire.map(left),
        faults: unidentified.chain(status.degraded(now).map(fault)).collect(),
    }
}

/// Whole seconds until a time; zero when it has passed.
fn left(until: SystemTime) -> u64 {
    until.duration_since(SystemTime::now()).unwrap_or_default().as_secs()
}

/// Sessions that live, by the books. Counters of several processors are read one after the
/// other, so an end may be seen before its beginning.
pub(crate) const fn live_sessions(counters: &Counters) -> u64 {
    counters.sessions_begun.saturating_sub(counters.sessions_ended)
}

const fn amount(amount: count::Amount) -> Amount {
    Amount { packets: amount.packets, bytes: amount.bytes }
}

/// The directions in which drops are counted, by their place there.
pub(crate) const DIRECTIONS: [(usize, Direction); 3] = [
    (count::OUTBOUND, Direction::Outbound),
    (count::INBOUND, Direction::Inbound),
    (count::UNKNOWN, Direction::Unknown),
];

pub(super) async fn stats<L: Live>(
    Extract(state): Extract<Arc<State<L>>>,
) -> Result<Json<Stats>, Refusal> {
    blocking(move || {
        let counters = state.live.counters().map_err(Refusal::kernel)?;
        let census = state.census.no_older_than(FRESH, &*state.live, state.live.now());
        Ok(Json(rows(&state, &counters, &census)))
    })
    .await?
}

fn rows<L: Live>(state: &State<L>, counters: &Counters, census: &Census) -> Stats {
    let mut drops: Vec<Drops> = Vec::new();
    for (place, direction) in DIRECTIONS {
        for reason in Reason::ALL {
            let packets = counters.drops[place][reason as usize];
            if packets > 0 {
                drops.push(Drops { reason: reason.name().to_owned(), direction, packets });
            }
        }
    }
    drops.sort_by_key(|drop| std::cmp::Reverse(drop.packets));
    Stats {
        generation: state.generation(),
        received: amount(counters.received),
        forwarded_original: amount(counters.forwarded[0]),
        forwarded_reply: amount(counters.forwarded[1]),
        passed: amount(counters.passed),
        punted: amount(counters.punted),
        translated_late: amount(counters.translated_late),
        answered: counters.answered,
        sessions_begun: counters.sessions_begun,
        sessions_ended: counters.sessions_ended,
        judged_again: counters.judged_again,
        events_lost: counters.events_lost,
        events_suppressed: counters.events_suppressed,
        leaks_stopped: counters.leaks_stopped,
        drops,
        tables: tables(state, census),
    }
}

/// How full the tables are, by their names in the configuration.
pub(crate) fn tables<L: Live>(state: &State<L>, census: &Census) -> Vec<TableFill> {
    let InForce { config, .. } = state.in_force();
    let image = &config.image;
    let names = state.directories.current();
    let (hosts, prefixes) = names.table().sizes();
    let sizes = &config.gateway.tables;
    let hops = (0..=u16::MAX)
        .map_while(|number| state.live.hop(number))
        .filter(|hop| hop.is(HOP_USED))
        .count();
    [
        ("sessions", census.live + census.resting, room(&*state.live)),
        ("endpoints", hosts as u64, sizes.endpoints),
        ("prefixes", prefixes as u64, sizes.prefixes),
        ("identities", names.identities() as u64, sizes.identities),
        ("rules", image.rules.len() as u64, sizes.rules),
        ("port_classes", image.port_classes.classes.len() as u64, sizes.port_classes),
        ("next_hops", hops as u64, sizes.next_hops),
    ]
    .map(|(name, used, size)| TableFill { name: name.to_owned(), used, size: size.into() })
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_account_cannot_tell_is_said_with_why_since_when_and_how_old_it_is() {
        let ago = |seconds| Instant::now().checked_sub(Duration::from_secs(seconds)).unwrap();
        let kinds = aws::Kind::ALL.map(|kind| aws::KindStatus {
            kind,
            known: kind != aws::Kind::Route,
            error: (kind == aws::Kind::Subnet).then(|| "it is refused".to_owned()),
            since: ago(100),
            fetched: (kind != aws::Kind::Route).then(|| ago(130)),
            objects: 1,
            failures: 0,
        });
        let region = aws::RegionStatus { region: "eu-central-1".into(), kinds: kinds.into() };
        let shown = account(&aws::AccountStatus {
            account: aws::AccountName::new("prod").unwrap(),
            id: None,
            unidentified: Some("nobody answers".to_owned()),
            regions: vec![region],
            endpoints: 3,
            credentials_expire: Some(SystemTime::UNIX_EPOCH),
            max_staleness: None,
            silence: Duration::from_secs(420),
        });
        assert_eq!((shown.name.as_str(), shown.id, shown.synced), ("prod", None, true));
        assert_eq!((shown.endpoints, shown.credentials_expire_in), (3, Some(0)), "they have ended");
        assert!(shown.staleness.is_some_and(|age| (130..140).contains(&age)));
        let seconds = |text: &str| text.replace("131", "130").replace("101", "100");
        let faults: Vec<String> = shown.faults.iter().map(|fault| seconds(fault)).collect();
        assert_eq!(
            faults,
            [
                "nobody answers",
                "eu-central-1: subnets: it is refused (for 100 s, known as of 130 s ago)",
                "eu-central-1: Transit Gateway routes: they are not known yet (for 100 s)",
            ]
        );
    }
}
