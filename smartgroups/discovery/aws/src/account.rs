//! One account, followed.
//!
//! Each region is asked by two tasks of its own: often, who is behind which address, and now and then, how
//! networks hang together. What they hear meets in one view. A region that does not answer holds up no
//! other, and what cannot be fetched there stays as it was.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use smartgroups::{Change, Text};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use crate::credentials::Caller;
use crate::facts::{Facts, Fetched};
use crate::kind::Kind;
use crate::sdk::{Ec2, Outcome};
use crate::settings::{AccountName, Settings, in_region};
use crate::status::{AccountStatus, Board};
use crate::view::View;

/// How many rounds may wait for the view; more of them are not begun.
const WAITING: usize = 16;
/// How many questions of a round are asked at a time.
const AT_A_TIME: usize = 3;
/// How long it takes until what failed is asked again, the first time; it doubles up to the interval.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
/// After a task died of a fault of its own.
const AFTER_PANIC: Duration = Duration::from_secs(5);
/// How often it is looked until when credentials are good.
const EXPIRY_EVERY: Duration = Duration::from_secs(5);

/// Changes that belong together: applied one by one, they pass states that never were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Of this account.
    pub account: AccountName,
    /// When the last of what brought these changes was received.
    pub received: Instant,
    /// Whether it was known once in all regions who is behind which address. Before that, what is
    /// missing may only not have come yet.
    pub synced: bool,
    /// In this order. It is empty when the only news is that all is known.
    pub changes: Vec<Change>,
}

/// An account that is followed, until this is dropped.
#[derive(Debug)]
pub struct Account {
    board: Arc<Board>,
    _tasks: JoinSet<()>,
}

impl Account {
    /// Begins to follow an account, and sends what changes until this is dropped or nobody receives any
    /// more. What was sent stays true when AWS cannot be asked; [`Account::status`] says how old it is.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn spawn(settings: Settings, batches: mpsc::Sender<Batch>) -> Self {
        let board = Arc::new(Board::new(&settings, Instant::now()));
        let mut tasks = JoinSet::new();
        tasks.spawn(follow(settings, batches, Arc::clone(&board)));
        Self { board, _tasks: tasks }
    }

    /// How good the knowledge of it is.
    pub fn status(&self) -> AccountStatus {
        self.board.read()
    }

    /// What it has, by region.
    pub fn facts(&self) -> BTreeMap<Text, Facts> {
        self.board.facts()
    }
}

async fn follow(settings: Settings, batches: mpsc::Sender<Batch>, board: Arc<Board>) {
    let Some(home) = settings.regions.first() else { return };
    let sts = in_region(settings.endpoints.sts.as_ref(), home);
    let caller = Caller::new(&settings.identity, sts, home).await;
    let (sender, receiver) = mpsc::channel(WAITING);
    // A set, because that ends what it holds when this ends.
    let mut tasks = JoinSet::new();
    tasks.spawn(identify(caller.clone(), settings.scope.account.clone(), Arc::clone(&board)));
    for name in board.read().regions.into_iter().map(|region| region.region) {
        let url = in_region(settings.endpoints.ec2.as_ref(), &name);
        let account = settings.scope.account.as_str();
        let region = Region {
            ec2: Ec2::new(&caller.config, account, &name, url, &settings.vpcs),
            account: settings.scope.account.clone(),
            name,
            view: sender.clone(),
        };
        let of =
            |identity| Kind::ALL.into_iter().filter(move |kind| kind.is_identity() == identity);
        tasks.spawn(region.clone().supervise(of(true).collect(), settings.interval));
        tasks.spawn(region.supervise(of(false).collect(), settings.network_interval));
    }
    drop(sender);
    merge(settings.scope.account.clone(), View::new(settings.scope), receiver, batches, board)
        .await;
}

/// Says which account it is, and from then on until when its credentials are good.
async fn identify(caller: Caller, account: AccountName, board: Arc<Board>) {
    let mut pause = Pause::new(Settings::INTERVAL);
    loop {
        let (id, unidentified) = match caller.account().await {
            Ok(id) => (id, None),
            Err(failure) => (None, Some(failure.to_string())),
        };
        if let Some(why) = &unidentified {
            warn!(%account, "account does not answer: {why}");
        }
        let is_known = unidentified.is_none();
        board.write(|status| {
            status.id = id;
            status.unidentified = unidentified;
            status.credentials_expire = caller.expiry();
        });
        if is_known {
            break;
        }
        tokio::time::sleep(pause.after_failure()).await;
    }
    loop {
        tokio::time::sleep(EXPIRY_EVERY).await;
        board.write(|status| status.credentials_expire = caller.expiry());
    }
}

/// How long to wait until what failed is asked again.
#[derive(Debug)]
struct Pause {
    next: Duration,
    longest: Duration,
    random: RandomState,
}

impl Pause {
    fn new(longest: Duration) -> Self {
        Self { next: FIRST_PAUSE.min(longest), longest, random: RandomState::new() }
    }

    /// Half of it at least, the rest by chance: accounts that failed together do not ask together.
    fn after_failure(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.longest);
        let share = (self.random.hash_one(pause) >> 11) as f64 / (1_u64 << 53) as f64;
        pause.mul_f64(0.5 + share / 2.0)
    }

    fn after_success(&mut self) {
        self.next = FIRST_PAUSE.min(self.longest);
    }
}

/// What a region said, when it was asked for some kinds.
struct Heard {
    region: Text,
    received: Instant,
    outcomes: Vec<Outcome>,
}

/// How a region is asked.
#[derive(Clone)]
struct Region {
    ec2: Ec2,
    account: AccountName,
    name: Text,
    view: mpsc::Sender<Heard>,
}

impl Region {
    /// Asks for some kinds again and again. A task that panics takes nothing with it and is begun again.
    async fn supervise(self, kinds: Vec<Kind>, interval: Duration) {
        loop {
            let mut one = JoinSet::new();
            one.spawn(self.clone().follow(kinds.clone(), interval));
            match one.join_next().await {
                Some(Err(fault)) if fault.is_panic() => {
                    let (account, region) = (&self.account, &self.name);
                    error!(%account, %region, "discovery died of a fault of its own, it begins again");
                    tokio::time::sleep(AFTER_PANIC).await;
                }
                Some(Ok(()) | Err(_)) | None => return,
            }
        }
    }

    /// All kinds once an interval, together, so that they fit each other; what failed sooner.
    async fn follow(self, all: Vec<Kind>, interval: Duration) {
        let mut pause = Pause::new(interval);
        let mut tables: Vec<Text> = Vec::new();
        let mut wanted = all.clone();
        let mut next_of_all = Instant::now() + interval;
        loop {
            let outcomes = self.ask(&wanted, &mut tables).await;
            let mut failed: Vec<Kind> =
                outcomes.iter().filter(|one| one.failure.is_some()).map(|one| one.kind).collect();
            if failed.contains(&Kind::RouteTable) {
                // Of these nothing was asked.
                failed.push(Kind::Route);
            }
            let received = Instant::now();
            let heard = Heard { region: Text::clone(&self.name), received, outcomes };
            if self.view.send(heard).await.is_err() {
                return;
            }
            let now = Instant::now();
            let mut wait = next_of_all.saturating_duration_since(now);
            if failed.is_empty() {
                pause.after_success();
            } else {
                wait = wait.min(pause.after_failure());
            }
            tokio::time::sleep(wait).await;
            if Instant::now() >= next_of_all {
                wanted.clone_from(&all);
                next_of_all = Instant::now() + interval;
            } else {
                wanted = failed;
            }
        }
    }

    /// Asks for some kinds at once, as far as that is polite; for routes when their tables are known.
    async fn ask(&self, kinds: &[Kind], tables: &mut Vec<Text>) -> Vec<Outcome> {
        let mut asking = JoinSet::new();
        let turns = Arc::new(Semaphore::new(AT_A_TIME));
        for kind in kinds.iter().copied().filter(|kind| *kind != Kind::Route) {
            let (ec2, turns) = (self.ec2.clone(), Arc::clone(&turns));
            asking.spawn(async move {
                // Nobody closes it.
                let _turn = turns.acquire().await;
                ec2.fetch(kind, &[]).await
            });
        }
        let mut outcomes = asking.join_all().await;
        for outcome in &outcomes {
            if let Some(Fetched::RouteTables(all)) = &outcome.fetched {
                *tables = all.iter().map(|table| Text::clone(&table.id)).collect();
            }
        }
        let tables_failed =
            outcomes.iter().any(|one| one.kind == Kind::RouteTable && one.fetched.is_none());
        // Without its tables a route cannot be asked for; the tables say why.
        if kinds.contains(&Kind::Route) && !tables_failed {
            outcomes.push(self.ec2.fetch(Kind::Route, tables).await);
        }
        outcomes
    }
}

/// Brings together what the regions say.
async fn merge(
    account: AccountName,
    mut view: View,
    mut heard: mpsc::Receiver<Heard>,
    batches: mpsc::Sender<Batch>,
    board: Arc<Board>,
) {
    let mut regions: BTreeMap<Text, Facts> = BTreeMap::new();
    let mut was_synced = false;
    while let Some(Heard { region, received, outcomes }) = heard.recv().await {
        let facts = regions.entry(Text::clone(&region)).or_default();
        for Outcome { kind, fetched, failure } in outcomes {
            if let Some(fetched) = fetched {
                facts.take(fetched);
            }
            let is_new = board.asked(&region, kind, failure.as_ref(), received);
            match failure {
                Some(failure) if is_new => warn!(%account, %region, "{failure}"),
                None if is_new => info!(%account, %region, %kind, "known again"),
                Some(_) | None => {}
            }
        }
        let mut changes = Vec::new();
        view.update(&region, facts, &mut changes);
        board.set_facts(&region, facts);
        let endpoints = view.endpoints();
        board.write(|status| status.endpoints = endpoints);
        let synced = board.read().is_synced();
        if synced && !was_synced {
            info!(%account, endpoints, "account is known");
        }
        if changes.is_empty() && synced == was_synced {
            continue;
        }
        was_synced = synced;
        let batch = Batch { account: account.clone(), received, synced, changes };
        if batches.send(batch).await.is_err() {
            return;
        }
    }
}
