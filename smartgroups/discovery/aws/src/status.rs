//! How good the knowledge of an account is.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use smartgroups::Text;

use crate::facts::Facts;
use crate::failure::Failure;
use crate::kind::Kind;
use crate::settings::{AccountName, Settings};

/// How long a region may say nothing beyond its interval: all attempts of all pages have ended by then.
const PATIENCE: Duration = Duration::from_secs(300);

/// How one kind of facts in one region does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KindStatus {
    /// Which kind.
    pub kind: Kind,
    /// Whether all of it was known once. What was known stays known when it cannot be fetched.
    pub known: bool,
    /// Why it could not be fetched the last time, as a sentence that names the action.
    pub error: Option<String>,
    /// Since when it could be, or could not.
    pub since: Instant,
    /// When it was fetched last.
    pub fetched: Option<Instant>,
    /// How many are known.
    pub objects: usize,
    /// How often it could not be fetched.
    pub failures: u64,
}

/// How a region does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionStatus {
    /// Which.
    pub region: Text,
    /// Its kinds, in the order of [`Kind::ALL`].
    pub kinds: Vec<KindStatus>,
}

/// How an account does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountStatus {
    /// Which.
    pub account: AccountName,
    /// The number that AWS knows it by, once it has said so.
    pub id: Option<Text>,
    /// Why AWS did not say it.
    pub unidentified: Option<String>,
    /// Its regions, sorted.
    pub regions: Vec<RegionStatus>,
    /// How many endpoints it has.
    pub endpoints: usize,
    /// Until when the credentials are good, where they end.
    pub credentials_expire: Option<SystemTime>,
    /// How old knowledge of it may grow.
    pub max_staleness: Option<Duration>,
    /// After how long without an answer a kind that says who is behind addresses is taken for lost.
    pub silence: Duration,
}

impl KindStatus {
    /// How old the knowledge is; `None` if there is none.
    pub fn staleness(&self, now: Instant) -> Option<Duration> {
        Some(now.saturating_duration_since(self.fetched.filter(|_| self.known)?))
    }
}

impl AccountStatus {
    fn identity(&self) -> impl Iterator<Item = &KindStatus> {
        let kinds = self.regions.iter().flat_map(|region| &region.kinds);
        kinds.filter(|kind| kind.kind.is_identity())
    }

    /// Whether it was known once in all regions who is behind which address.
    pub fn is_synced(&self) -> bool {
        self.identity().all(|kind| kind.known)
    }

    /// What cannot be fetched at present, or was not for too long, with its region.
    pub fn degraded(&self, now: Instant) -> impl Iterator<Item = (&Text, &KindStatus)> {
        let all = self.regions.iter();
        let all = all.flat_map(|region| region.kinds.iter().map(|kind| (&region.region, kind)));
        all.filter(move |(_, kind)| {
            let silent = kind.staleness(now).is_none_or(|age| age > self.silence);
            kind.error.is_some() || !kind.known || kind.kind.is_identity() && silent
        })
    }

    /// How old the knowledge of who is behind some address may be; `None` before all is known.
    pub fn staleness(&self, now: Instant) -> Option<Duration> {
        let ages: Option<Vec<Duration>> = self.identity().map(|kind| kind.staleness(now)).collect();
        ages?.into_iter().max()
    }

    /// Whether its knowledge is older than it may be; never of an account that has no bound.
    pub fn is_too_stale(&self, now: Instant) -> bool {
        match (self.max_staleness, self.staleness(now)) {
            (Some(bound), Some(age)) => age > bound,
            (_, None) | (None, Some(_)) => false,
        }
    }
}

/// The status that tasks write and anybody reads, and the facts beside it.
#[derive(Debug)]
pub(crate) struct Board(Mutex<Written>);

#[derive(Debug)]
struct Written {
    status: AccountStatus,
    facts: BTreeMap<Text, Facts>,
}

impl Board {
    pub(crate) fn new(settings: &Settings, now: Instant) -> Self {
        let kinds = Kind::ALL.map(|kind| KindStatus {
            kind,
            known: false,
            error: None,
            since: now,
            fetched: None,
            objects: 0,
            failures: 0,
        });
        let mut regions: Vec<Text> =
            settings.regions.iter().map(|one| one.as_str().into()).collect();
        regions.sort_unstable();
        regions.dedup();
        let regions = regions.into_iter();
        let status = AccountStatus {
            account: settings.scope.account.clone(),
            id: None,
            unidentified: None,
            regions: regions.map(|region| RegionStatus { region, kinds: kinds.to_vec() }).collect(),
            endpoints: 0,
            credentials_expire: None,
            max_staleness: settings.max_staleness,
            silence: settings.interval * 2 + PATIENCE,
        };
        Self(Mutex::new(Written { status, facts: BTreeMap::new() }))
    }

    pub(crate) fn read(&self) -> AccountStatus {
        self.lock().status.clone()
    }

    pub(crate) fn facts(&self) -> BTreeMap<Text, Facts> {
        self.lock().facts.clone()
    }

    pub(crate) fn write(&self, change: impl FnOnce(&mut AccountStatus)) {
        change(&mut self.lock().status);
    }

    /// What is known of a region now.
    pub(crate) fn set_facts(&self, region: &Text, facts: &Facts) {
        let mut written = self.lock();
        let kinds = written.status.regions.iter_mut().filter(|one| one.region == *region);
        for kind in kinds.flat_map(|region| &mut region.kinds) {
            kind.objects = facts.count(kind.kind);
        }
        written.facts.insert(Text::clone(region), facts.clone());
    }

    /// A kind was asked for in a region; whether that ended as it did not the time before.
    pub(crate) fn asked(
        &self,
        region: &Text,
        kind: Kind,
        failure: Option<&Failure>,
        now: Instant,
    ) -> bool {
        let mut written = self.lock();
        let regions = &mut written.status.regions;
        let Some(region) = regions.iter_mut().find(|one| one.region == *region) else {
            return false;
        };
        let kind = &mut region.kinds[kind.index()];
        let error = failure.map(ToString::to_string);
        let is_new = kind.error != error;
        if kind.error.is_some() != error.is_some() {
            kind.since = now;
        }
        match error {
            Some(_) => kind.failures += 1,
            None => {
                kind.known = true;
                kind.fetched = Some(now);
            }
        }
        kind.error = error;
        is_new
    }

    fn lock(&self) -> MutexGuard<'_, Written> {
        // Whoever panicked was changing one number.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Scope;

    fn settings() -> Settings {
        let account = AccountName::new("prod").unwrap();
        let scope = Scope { account, domains: BTreeMap::new() };
        let regions = vec!["eu-west-1".to_owned(), "eu-central-1".to_owned()];
        Settings { max_staleness: Some(Duration::from_secs(100)), ..Settings::new(scope, regions) }
    }

    #[test]
    fn the_staleness_of_an_account_is_that_of_its_worst_identity() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let board = Board::new(&settings(), start);
        let [first, second] = ["eu-central-1", "eu-west-1"].map(Text::from);
        for kind in Kind::ALL.into_iter().filter(|kind| kind.is_identity()) {
            board.asked(&first, kind, None, at(10));
            assert_eq!(board.read().staleness(at(20)), None, "one region knows nothing yet");
        }
        for kind in Kind::ALL.into_iter().filter(|kind| kind.is_identity()) {
            assert!(!board.read().is_synced(), "{kind} is not known");
            board.asked(&second, kind, None, at(40));
        }
        assert!(board.read().is_synced(), "how networks hang together is not waited for");
        for (now, staleness, too_stale) in
            [(at(40), 30, false), (at(110), 100, false), (at(111), 101, true)]
        {
            let status = board.read();
            assert_eq!(status.staleness(now), Some(Duration::from_secs(staleness)));
            assert_eq!(status.is_too_stale(now), too_stale, "{staleness}");
        }
        let silent = |now| {
            let status = board.read();
            status.degraded(now).filter(|(_, kind)| kind.kind.is_identity()).count()
        };
        assert_eq!((silent(at(430)), silent(at(431)), silent(at(461))), (0, 4, 8));
    }

    #[test]
    fn what_fails_says_since_when_and_keeps_what_was_known() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let board = Board::new(&settings(), start);
        let region = Text::from("eu-west-1");
        let action = Kind::Subnet.action();
        let failure = Failure::Throttled { action, code: "RequestLimitExceeded".to_owned() };
        let asked = |failure, now| board.asked(&region, Kind::Subnet, failure, now);
        assert!(!asked(None, at(1)), "as before");
        assert!(asked(Some(&failure), at(2)));
        assert!(!asked(Some(&failure), at(3)), "the same again");
        let status = board.read();
        let kind = &status.regions[1].kinds[Kind::Subnet.index()];
        assert!(status.degraded(at(3)).any(|(_, degraded)| degraded == kind));
        assert_eq!((kind.since, kind.failures, kind.known), (at(2), 2, true));
        assert_eq!(kind.staleness(at(3)), Some(Duration::from_secs(2)));
        assert!(kind.error.as_ref().unwrap().starts_with("ec2:DescribeSubnets is throttled"));
        assert!(asked(None, at(4)));
        assert_eq!(board.read().regions[1].kinds[Kind::Subnet.index()].since, at(4));
    }
}
