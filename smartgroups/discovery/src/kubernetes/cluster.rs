//! One cluster, watched.

use std::sync::Arc;
use std::time::{Duration, Instant};

use smartgroups::Change;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{error, info};

use super::Kind;
use super::access::{Access, Connector};
use super::endpoint::{ClusterName, Scope};
use super::object::{EndpointSlice, Namespace, Node, Object, Pod, Service};
use super::status::{Board, ClusterStatus};
use super::view::View;
use super::watch::{Heard, Times, Watch};

/// How many messages of watches may wait for the view; more of them hold the watches back.
const WAITING: usize = 64;
/// How often it is looked until when credentials are good.
const EXPIRY_EVERY: Duration = Duration::from_secs(30);
/// After a watch died of a fault of its own.
const AFTER_PANIC: Duration = Duration::from_secs(5);

/// How a cluster is to be watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Which it is.
    pub scope: Scope,
    /// How it is reached.
    pub access: Access,
    /// How long a watch runs before it is asked for anew, in whole seconds. A stream that died without
    /// a word is noticed a little later.
    pub watch_timeout: Duration,
    /// How old knowledge of it may grow before [`ClusterStatus::is_too_stale`] says so.
    pub max_staleness: Option<Duration>,
}

impl Settings {
    /// How long a watch runs unless it is said: a server sends a bookmark each minute.
    pub const WATCH_TIMEOUT: Duration = Duration::from_secs(60);

    /// Settings with what is usual.
    pub fn new(scope: Scope, access: Access) -> Self {
        Self { scope, access, watch_timeout: Self::WATCH_TIMEOUT, max_staleness: None }
    }
}

/// Changes that belong together: applied one by one, they pass states that never were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Of this cluster.
    pub cluster: ClusterName,
    /// When the first of what brought these changes was received.
    pub received: Instant,
    /// Whether all kinds were heard of once. Before that, what is missing may only not have come yet.
    pub synced: bool,
    /// In this order. It is empty when the only news is that all kinds were heard of.
    pub changes: Vec<Change>,
}

/// A cluster that is watched, until this is dropped.
#[derive(Debug)]
pub struct Cluster {
    board: Arc<Board>,
    _tasks: JoinSet<()>,
}

impl Cluster {
    /// Begins to watch a cluster, and sends what changes until this is dropped or nobody receives any
    /// more. What was sent stays true when the cluster cannot be reached; [`Cluster::status`] says how
    /// old it is. While the receiver does not keep up, the cluster's servers are held back.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn spawn(settings: Settings, batches: mpsc::Sender<Batch>) -> Self {
        let times = Times { watch: settings.watch_timeout };
        let name = settings.scope.cluster.clone();
        let silence = times.silence();
        let board = Arc::new(Board::new(name, settings.max_staleness, silence, Instant::now()));
        let connector = Arc::new(Connector::new(settings.access));
        let (sender, receiver) = mpsc::channel(WAITING);
        let mut tasks = JoinSet::new();
        let start = Start {
            cluster: settings.scope.cluster.clone(),
            connector: Arc::clone(&connector),
            board: Arc::clone(&board),
            view: sender,
            times,
        };
        tasks.spawn(start.clone().follow::<Namespace>());
        tasks.spawn(start.clone().follow::<Node>());
        tasks.spawn(start.clone().follow::<Pod>());
        tasks.spawn(start.clone().follow::<Service>());
        tasks.spawn(start.follow::<EndpointSlice>());
        tasks.spawn(merge(
            View::new(settings.scope.clone()),
            receiver,
            batches,
            Arc::clone(&board),
            settings.scope.cluster,
        ));
        let status = Arc::clone(&board);
        tasks.spawn(async move {
            loop {
                let expiry = connector.expiry().await;
                status.write(|status| status.credentials_expire = expiry);
                tokio::time::sleep(if expiry.is_some() { EXPIRY_EVERY } else { EXPIRY_EVERY / 10 })
                    .await;
            }
        });
        Self { board, _tasks: tasks }
    }

    /// How good the knowledge of it is.
    pub fn status(&self) -> ClusterStatus {
        self.board.read()
    }
}

/// What it takes to begin a watch.
#[derive(Clone)]
struct Start {
    cluster: ClusterName,
    connector: Arc<Connector>,
    board: Arc<Board>,
    view: mpsc::Sender<Heard>,
    times: Times,
}

impl Start {
    /// Watches one kind. A watch that panics takes nothing with it and is begun again.
    async fn follow<T: Object>(self) {
        let kind = T::KIND;
        let mut is_first = true;
        loop {
            let watch: Watch<T> = Watch::new(
                self.cluster.clone(),
                Arc::clone(&self.connector),
                Arc::clone(&self.board),
                self.view.clone(),
                self.times,
                is_first,
            );
            is_first = false;
            // A set, because that ends what it holds when this ends.
            let mut one = JoinSet::new();
            one.spawn(watch.run());
            match one.join_next().await {
                Some(Err(fault)) if fault.is_panic() => {
                    let cluster = &self.cluster;
                    error!(%cluster, %kind, "watch died of a fault of its own, it begins again");
                    let why = "the watch died of a fault of its own".to_owned();
                    self.board.complain(kind, why, Instant::now(), |kind| kind.failures += 1);
                    tokio::time::sleep(AFTER_PANIC).await;
                }
                Some(Ok(()) | Err(_)) | None => return,
            }
        }
    }
}

/// Brings together what the watches hear. What waits is taken in at once, as one batch.
async fn merge(
    mut view: View,
    mut heard: mpsc::Receiver<Heard>,
    batches: mpsc::Sender<Batch>,
    board: Arc<Board>,
    cluster: ClusterName,
) {
    let mut waiting = Vec::with_capacity(WAITING);
    let mut listed = [false; Kind::ALL.len()];
    let mut was_synced = false;
    while heard.recv_many(&mut waiting, WAITING).await > 0 {
        let mut changes = Vec::new();
        let received =
            waiting.iter().map(|heard| heard.received).min().unwrap_or_else(Instant::now);
        for Heard { news, .. } in waiting.drain(..) {
            if let Some(kind) = news.lists() {
                listed[kind.index()] = true;
            }
            view.update(news, &mut changes);
        }
        let synced = listed.iter().all(|listed| *listed);
        board.write(|status| {
            status.endpoints = view.endpoints();
            for kind in &mut status.kinds {
                kind.synced = listed[kind.kind.index()];
                kind.objects = view.objects(kind.kind);
                kind.passed_over = view.passed_over(kind.kind);
            }
        });
        if synced && !was_synced {
            info!(%cluster, endpoints = view.endpoints(), "cluster is known");
        }
        if changes.is_empty() && synced == was_synced {
            continue;
        }
        was_synced = synced;
        let batch = Batch { cluster: cluster.clone(), received, synced, changes };
        if batches.send(batch).await.is_err() {
            return;
        }
    }
}
