//! How good the knowledge of a cluster is.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::course::Failure;
use super::{ClusterName, Kind};

/// How the watch of one kind does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KindStatus {
    /// Which kind.
    pub kind: Kind,
    /// Whether all objects were heard of once. What was known stays known when the watch fails.
    pub synced: bool,
    /// Why the watch does not run, as a sentence; `None` while it does.
    pub error: Option<String>,
    /// Since when it has been running, or has not.
    pub since: Instant,
    /// When the server was heard of last: by a list, an event or a bookmark. Of a quiet kind that is up
    /// to a minute ago.
    pub heard: Option<Instant>,
    /// How many objects are known.
    pub objects: usize,
    /// How many lists were taken in: the first, and one for each time the watch could not go on.
    pub lists: u64,
    /// How often the server said that a version is too old (410).
    pub expired: u64,
    /// How often a stream fell silent.
    pub silent: u64,
    /// How often anything failed, these included.
    pub failures: u64,
    /// How many lists were older than what was known.
    pub outdated: u64,
    /// How many events were.
    pub passed_over: u64,
    /// Whether lists are asked for as a stream; if not, the server has none.
    pub streams: bool,
}

/// How the watch of a cluster does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterStatus {
    /// Which cluster.
    pub cluster: ClusterName,
    /// Its kinds, in the order of [`Kind::ALL`].
    pub kinds: Vec<KindStatus>,
    /// How many endpoints it has.
    pub endpoints: usize,
    /// Until when the credentials are good, where that is known.
    pub credentials_expire: Option<SystemTime>,
    /// How old knowledge of it may grow.
    pub max_staleness: Option<Duration>,
    /// After how long without a word the watch of a kind is taken for dead.
    pub silence: Duration,
}

impl KindStatus {
    /// Whether it is known and followed.
    pub fn is_live(&self) -> bool {
        self.synced && self.error.is_none()
    }

    /// How old the knowledge may be; `None` if there is none.
    pub fn staleness(&self, now: Instant) -> Option<Duration> {
        let heard = self.heard.filter(|_| self.synced)?;
        Some(now.saturating_duration_since(heard))
    }
}

impl ClusterStatus {
    /// Whether all kinds were heard of once.
    pub fn is_synced(&self) -> bool {
        self.kinds.iter().all(|kind| kind.synced)
    }

    /// The kinds that are not followed at present, or of which nothing was heard for too long.
    pub fn degraded(&self, now: Instant) -> impl Iterator<Item = &KindStatus> {
        self.kinds.iter().filter(move |kind| {
            let silent = kind.staleness(now).is_none_or(|age| age > self.silence);
            silent || !kind.is_live()
        })
    }

    /// How old the knowledge of some kind may be; `None` before all are known.
    pub fn staleness(&self, now: Instant) -> Option<Duration> {
        let ages: Option<Vec<Duration>> =
            self.kinds.iter().map(|kind| kind.staleness(now)).collect();
        ages?.into_iter().max()
    }

    /// Whether its knowledge is older than it may be; never of a cluster that has no bound.
    pub fn is_too_stale(&self, now: Instant) -> bool {
        match (self.max_staleness, self.staleness(now)) {
            (Some(bound), Some(age)) => age > bound,
            (_, None) | (None, Some(_)) => false,
        }
    }
}

/// The status that tasks write and anybody reads.
#[derive(Debug)]
pub(crate) struct Board(Mutex<ClusterStatus>);

impl Board {
    pub(crate) fn new(
        cluster: ClusterName,
        max_staleness: Option<Duration>,
        silence: Duration,
        now: Instant,
    ) -> Self {
        let kinds = Kind::ALL.map(|kind| KindStatus {
            kind,
            synced: false,
            error: None,
            since: now,
            heard: None,
            objects: 0,
            lists: 0,
            expired: 0,
            silent: 0,
            failures: 0,
            outdated: 0,
            passed_over: 0,
            streams: true,
        });
        Self(Mutex::new(ClusterStatus {
            cluster,
            kinds: kinds.into(),
            endpoints: 0,
            credentials_expire: None,
            max_staleness,
            silence,
        }))
    }

    pub(crate) fn read(&self) -> ClusterStatus {
        self.lock().clone()
    }

    pub(crate) fn write(&self, change: impl FnOnce(&mut ClusterStatus)) {
        change(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, ClusterStatus> {
        // Whoever panicked was changing one number.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server was heard of; whether that ends a failure.
    pub(crate) fn heard(&self, kind: Kind, now: Instant) -> bool {
        let mut status = self.lock();
        let kind = &mut status.kinds[kind.index()];
        kind.heard = Some(now);
        let recovered = kind.error.take().is_some();
        if recovered {
            kind.since = now;
        }
        recovered
    }

    /// Something failed; whether that is another failure than the one before.
    pub(crate) fn failed(&self, kind: Kind, failure: &Failure, now: Instant) -> bool {
        self.complain(kind, failure.to_string(), now, |kind| {
            kind.failures += 1;
            kind.expired += u64::from(failure.is_expired());
            kind.silent += u64::from(matches!(failure, Failure::Silent(_)));
        })
    }

    /// Something is not as it should be; whether it was not so before.
    pub(crate) fn complain(
        &self,
        kind: Kind,
        error: String,
        now: Instant,
        count: impl FnOnce(&mut KindStatus),
    ) -> bool {
        let mut status = self.lock();
        let kind = &mut status.kinds[kind.index()];
        count(kind);
        if kind.error.is_none() {
            kind.since = now;
        }
        let new = kind.error.as_ref() != Some(&error);
        kind.error = Some(error);
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_staleness_of_a_cluster_is_that_of_its_worst_kind() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let name = ClusterName::new("c").unwrap();
        let board =
            Board::new(name, Some(Duration::from_secs(100)), Duration::from_secs(65), start);
        assert_eq!(board.read().staleness(at(5)), None, "nothing is known");
        assert!(!board.read().is_too_stale(at(500)));
        for kind in Kind::ALL {
            board.heard(kind, at(10));
            board.write(|status| status.kinds[kind.index()].synced = true);
        }
        board.heard(Kind::Pod, at(40));
        for (now, staleness, degraded, too_stale) in [
            (at(40), 30, 0, false),
            (at(75), 65, 0, false),
            (at(76), 66, 4, false), // silent for longer than a watch can be
            (at(110), 100, 5, false),
            (at(111), 101, 5, true),
        ] {
            let status = board.read();
            assert_eq!(status.staleness(now), Some(Duration::from_secs(staleness)));
            assert_eq!(status.degraded(now).count(), degraded, "{staleness}");
            assert_eq!(status.is_too_stale(now), too_stale, "{staleness}");
        }
    }

    #[test]
    fn a_failure_is_told_once_and_its_beginning_kept() {
        let start = Instant::now();
        let board = Board::new(ClusterName::new("c").unwrap(), None, Duration::ZERO, start);
        let later = start + Duration::from_secs(1);
        let failure = Failure::Unreachable("gone".to_owned());
        assert!(board.failed(Kind::Pod, &failure, later));
        assert!(!board.failed(Kind::Pod, &failure, later + later.duration_since(start)));
        let status = board.read().kinds[Kind::Pod.index()].clone();
        assert_eq!((status.failures, status.since), (2, later));
        assert_eq!(status.error.as_deref(), Some("cannot reach the server: gone"));
        assert!(board.heard(Kind::Pod, later));
        assert!(!board.heard(Kind::Pod, later));
    }
}
