//! `sluice-gateway run`: the engine with its surroundings.
//!
//! One loop owns the engine; everything that happens (a changed file, a signal, a change of the
//! network, the passing of time) comes to it as a message, so that two changes never meet.

mod descriptors;
mod forwarding;
mod hooks;
mod live;

use crate::{
    capture::Capture,
    config::{Config, ConfigError},
    datapath::{
        numbers::Numbers,
        publish::PublishError,
        tables::{Datapath, TablesError},
    },
    engine::{Engine, EngineError},
    flows::{Collector, CollectorError, Log, live::Tables4},
    kept::{self, Kept, KeptError},
    metrics::{self, MetricsError},
    net::{Concern, Follower, NetworkEvent},
    serve::{self, Condition, InForce, SocketError, SocketFile, State},
    watched::Watched,
    whole,
};
use controller::{Discovery, Heard};
use live::Live;
use nix::sys::{
    signal::{SigSet, Signal as Number},
    utsname::uname,
};
use policy_compiler::Image;
use smartgroups::Inventory;
use smartgroups_discovery::dns::{Learned, Names};
use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval},
};
use tracing::{error, info, warn};
use xdp_abi::{ABI_VERSION, config::PolicyWord};

/// What the programs are made for and tried on (ADR 10).
const OLDEST_KERNEL: (u32, u32) = (6, 1);
/// How often expired sessions are looked for. Every slot is looked at once in
/// [`SWEEP_ROUNDS`] rounds.
const SWEEP_EVERY: Duration = Duration::from_millis(250);
const SWEEP_ROUNDS: u32 = 8;
/// How long one round may take when very many sessions expire at once.
const SWEEP_AT_MOST: Duration = Duration::from_millis(50);
/// How often guard, neighbours and the machine's own ports are looked at.
const UPKEEP_EVERY: Duration = Duration::from_secs(2);
/// Far more than a file for full tables has.
const MOST_BYTES: u64 = 256 << 20;
/// Changes of the network that may wait, and are followed together.
const CHANGES: usize = 1024;
/// Names whose addresses are others that are brought into force together; more of them hold back
/// what asks.
const NAMES: usize = 256;
/// How often the file is looked at; it must look the same twice.
const FILE_EVERY: Duration = Duration::from_millis(500);

/// Why the daemon could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file changes while it is read.
    #[error("{0} is just being written, and may be half of what it will be")]
    Written(PathBuf),
    /// The file is wrong.
    #[error("{}", .0.join("\n"))]
    Config(Vec<String>),
    /// The privileges are missing.
    #[error("this needs {0}; run it as root or by its systemd unit")]
    Privilege(&'static str),
    /// The kernel is older than the programs can be loaded on.
    #[error("this machine runs Linux {0}; sluice-gateway needs 6.1 or later")]
    Kernel(String),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// What the next start has to know.
    #[error(transparent)]
    Kept(#[from] KeptError),
    /// The flow log.
    #[error(transparent)]
    Collector(#[from] CollectorError),
    /// Metrics.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The local API.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The network cannot be followed.
    #[error("the kernel's network tables cannot be read: {0}")]
    Network(#[from] crate::net::NetlinkError),
    /// What followed the network is gone.
    #[error("the kernel's network tables are no longer followed")]
    Unfollowed,
    /// A server or a file.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why.
        source: io::Error,
    },
}

impl StartError {
    /// Whether trying again does not help: the configuration does not fit what is pinned.
    pub fn is_for_good(&self) -> bool {
        let Self::Engine(refused) = self else { return false };
        matches!(
            refused,
            EngineError::Tables(TablesError::Size { .. })
                | EngineError::TooManyPlaces(_)
                | EngineError::SharedPins(_)
                | EngineError::Publish(PublishError::Counters { .. })
        )
    }
}

/// The first of faults, which are a line each, and how many more there are.
fn first_of(faults: &str) -> String {
    let mut lines = faults.lines();
    let first = lines.next().unwrap_or_default();
    match lines.count() {
        0 => first.to_owned(),
        more => format!("{first} (and {more} more, which are in the daemon's log)"),
    }
}

/// An error with those of its causes that its text does not have already: what the kernel answered
/// is often the last of them.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        next = cause.source();
    }
    text
}

/// Reads and checks a configuration.
pub fn read_config(path: &Path) -> Result<Config, StartError> {
    let bytes = whole::read(path, MOST_BYTES).map_err(|source| {
        if source.kind() == io::ErrorKind::ResourceBusy {
            StartError::Written(path.to_owned())
        } else {
            StartError::Read { path: path.to_owned(), source }
        }
    })?;
    let refused = |faults: &[ConfigError]| {
        StartError::Config(faults.iter().map(ToString::to_string).collect())
    };
    let config = Config::parse_bytes(&bytes, &path.display().to_string())
        .map_err(|faults| refused(&faults))?;
    match config.writes_into(path) {
        None => Ok(config),
        Some(fault) => Err(refused(&[fault])),
    }
}

/// Runs until a signal ends it. Programs, tables and the guard stay: traffic goes on.
pub async fn run(path: PathBuf) -> Result<(), StartError> {
    // Both before the file is read: a change and a signal that come while everything starts are
    // seen as soon as it has.
    let file = Watched::new(path);
    let signals = Signals::new()?;
    let config = Arc::new(read_config(file.path())?);
    for warning in &config.warnings {
        warn!("{warning}");
    }
    let names = uname();
    kernel(&names.map(|names| names.release().to_string_lossy().into_owned()).unwrap_or_default())?;
    privileges()?;
    descriptors::raise();
    let (follower, changes) = Follower::start(CHANGES).await?;
    // Whatever may be refused comes before the engine, which changes what packets meet.
    let _state_dir = kept::claim(&config.gateway.state_dir)?;
    let kept = Kept::read(&config.gateway.state_dir)?;
    let socket = serve::Socket::open(&config.gateway.socket)?;
    let metrics = metrics::Bound::bind(&config.gateway.metrics).await?;
    let network = follower.state().clone();
    let (discovery, heard) = Discovery::new();
    let (sender, learned) = mpsc::channel(NAMES);
    let mut live = Live::new(discovery, Names::spawn(sender));
    let next = live.compile(&config).map_err(EngineError::from)?;
    let image = Arc::clone(&next.image);
    let looked = Engine::look(Arc::clone(&config), Arc::clone(&image), &network, kept)?;
    let log = config.gateway.flow_log.as_ref().map(Log::open).transpose()?;
    // Soon sessions hold these numbers, and this process may be killed.
    looked.kept().write(&config.gateway.state_dir)?;
    let engine = tokio::task::spawn_blocking(move || Engine::begin(looked, &network))
        .await
        .expect("the engine does not panic while it starts")?;
    if let Some(table) = engine.datapath.torn {
        warn!(
            table,
            "A PINNED TABLE WAS GONE: all of them are made anew, and every session has ended"
        );
    }
    if let Some(sessions) = engine.carried() {
        info!(sessions, layout = ABI_VERSION, "sessions of an older layout carried over");
    }
    info!(
        adopted = engine.datapath.adopted,
        hooks = engine.hooks(),
        generation = generation(&engine.datapath),
        "datapath up"
    );
    let tables = Arc::new(Tables4::new(Arc::clone(&engine.datapath), serve::ask_route()));
    let inventory = next.inventory(&config).clone();
    let in_force = named(engine.config(), engine.numbers(), &image, &inventory);
    let state = Arc::new(State::new(Arc::clone(&tables), in_force));
    live.accept(&config, next);
    // There was no group before, so none did anything.
    live.count_groups(&config, &image);
    // Nobody was asked for before, so nothing changes by that.
    live.follow_names(&config);
    let capture = Capture::new(Arc::clone(&tables), Arc::clone(&state.directories));
    let copies = Arc::clone(&capture);
    let ring = engine.datapath.take_events().expect("the ring is taken once");
    let collector = Collector::start(
        ring,
        Arc::clone(&tables),
        Arc::clone(&state.directories),
        log,
        Box::new(move |copy| copies.take(copy)),
    )?;
    state.set_records(collector.counts());
    let (end, _) = watch::channel(false);
    let until_end = |mut end: watch::Receiver<bool>| async move {
        // An error means that the daemon is gone: an end as well.
        let _ = end.wait_for(|ended| *ended).await;
    };
    let routes = serve::router(Arc::clone(&state)).merge(capture.routes());
    let tally = Arc::clone(&state.connections.local);
    let socket_file = socket.file();
    let local = tokio::spawn(socket.serve(routes, tally, until_end(end.subscribe())));
    let metrics = tokio::spawn(metrics.serve(Arc::clone(&state), until_end(end.subscribe())));
    let problems = Vec::new();
    let looped = Loop {
        engine,
        live,
        follower,
        state,
        capture,
        file,
        socket_file,
        problems,
        refused: None,
        unsuited: BTreeSet::new(),
        switched_off: BTreeSet::new(),
        not_forwarded: Vec::new(),
        not_kept: None,
    };
    let outcome = looped.run(changes, heard, learned, signals).await;
    // Nobody is left who could be waiting for an answer.
    let _ = end.send(true);
    let both = async { (local.await, metrics.await) };
    let _ = tokio::time::timeout(Duration::from_secs(2), both).await;
    drop(collector);
    info!("stopped; traffic goes on under the last policy");
    outcome
}

fn named(
    config: &Arc<Config>,
    numbers: &Numbers,
    image: &Arc<Image>,
    inventory: &Inventory,
) -> InForce {
    InForce {
        config: Arc::clone(config),
        numbers: Arc::new(numbers.clone()),
        image: Arc::clone(image),
        inventory: inventory.clone(),
    }
}

fn generation(datapath: &Datapath) -> u32 {
    PolicyWord(datapath.settings().policy.load()).generation()
}

struct Loop {
    engine: Engine,
    live: Live,
    follower: Follower,
    state: Arc<State<Tables4>>,
    capture: Arc<Capture<Tables4>>,
    file: Watched,
    socket_file: SocketFile,
    /// What is wrong with the interfaces, as it was logged last.
    problems: Vec<String>,
    /// Why a program is not on its interface, as it was said last.
    refused: Option<String>,
    /// The interfaces of which it was said that XDP does not suit them.
    unsuited: BTreeSet<String>,
    /// The attached interfaces that were switched off when it was looked last.
    switched_off: BTreeSet<String>,
    /// What is wrong with forwarding, as it was logged last.
    not_forwarded: Vec<String>,
    /// Why the next start would not know all that it has to, as it was logged last.
    not_kept: Option<String>,
}

/// Holds a SIGHUP back until there is somebody who reloads by it: it ends a process that has just
/// begun. Every thread that is made after this one takes that over.
///
/// # Errors
/// What the kernel says.
pub fn hold_hang_up() -> nix::Result<()> {
    only_hang_up().thread_block()
}

fn only_hang_up() -> SigSet {
    let mut only = SigSet::empty();
    only.add(Number::SIGHUP);
    only
}

struct Signals {
    hang_up: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self, StartError> {
        let failed = |source| StartError::Io { what: "signals".into(), source };
        let of = |kind: SignalKind| signal(kind).map_err(failed);
        let signals = Self {
            hang_up: of(SignalKind::hangup())?,
            terminate: of(SignalKind::terminate())?,
            interrupt: of(SignalKind::interrupt())?,
        };
        only_hang_up().thread_unblock().map_err(|refused| failed(refused.into()))?;
        Ok(signals)
    }
}

impl Loop {
    async fn run(
        mut self,
        mut changes: mpsc::Receiver<NetworkEvent>,
        mut heard: Heard,
        mut learned: mpsc::Receiver<Learned>,
        signals: Signals,
    ) -> Result<(), StartError> {
        let Signals { mut hang_up, mut terminate, mut interrupt } = signals;
        let mut sweep = ticker(SWEEP_EVERY);
        let mut upkeep = ticker(UPKEEP_EVERY);
        let mut look = ticker(FILE_EVERY);
        self.state.readiness.set(Condition::Policy, vec![]);
        self.show_places();
        self.upkeep();
        // Not before: until then neighbours may be kept on interfaces that have left the file.
        self.keep();
        let mut waiting = Vec::new();
        let mut names = Vec::new();
        let outcome = loop {
            tokio::select! {
                count = changes.recv_many(&mut waiting, CHANGES) => {
                    if count == 0 {
                        // Traffic goes on; whoever started this daemon starts another.
                        break Err(StartError::Unfollowed);
                    }
                    self.network_changed(&waiting);
                    waiting.clear();
                }
                batches = heard.next() => self.discovered(batches),
                _ = learned.recv_many(&mut names, NAMES) => {
                    self.learned(&std::mem::take(&mut names));
                }
                _ = hang_up.recv() => {
                    self.file.is_about_to_be_read();
                    self.reload();
                }
                _ = look.tick() => {
                    if self.file.is_due() {
                        self.reload();
                    }
                }
                _ = sweep.tick() => self.sweep(),
                _ = upkeep.tick() => self.upkeep(),
                _ = terminate.recv() => break Ok(()),
                _ = interrupt.recv() => break Ok(()),
            }
        };
        self.keep();
        self.remember_at_last().await;
        outcome
    }

    /// Reads the file again; a bad one changes nothing.
    fn reload(&mut self) {
        let config = match read_config(self.file.path()) {
            Ok(config) => Arc::new(config),
            Err(refused) => {
                self.refuse(&refused, "the file is refused; the configuration in force stays");
                return;
            }
        };
        for warning in &config.warnings {
            warn!("{warning}");
        }
        let begun = Instant::now();
        let next = match self.live.compile(&config) {
            Ok(next) => next,
            Err(refused) => {
                let refused = EngineError::from(refused);
                self.refuse(&refused, "the configuration in force stays");
                return;
            }
        };
        let network = self.follower.state().clone();
        let (image, inventory) = (Arc::clone(&next.image), next.inventory(&config).clone());
        let named = |config: &_, numbers: &_| named(config, numbers, &image, &inventory);
        let announce = |config: &_, numbers: &_| self.state.announce(&named(config, numbers));
        let state_dir = config.gateway.state_dir.clone();
        let keep = |numbers: &_| kept::write_numbers(&state_dir, numbers);
        match self.engine.reload(config, Arc::clone(&image), &network, announce, keep) {
            Ok(generation) => {
                let engine = &self.engine;
                self.state.accept(named(engine.config(), engine.numbers()));
                let gone = self.live.accept(engine.config(), next);
                let alarms = self.live.count_groups(engine.config(), engine.image());
                self.alarm(&alarms);
                self.forget(&gone);
                self.ask_for_names();
                self.look_at_discovery();
                self.show_places();
                info!(generation, took = ?begun.elapsed(), "policy published");
            }
            Err(refused) => {
                self.state.withdraw();
                self.refuse(&refused, "the configuration in force stays");
            }
        }
        self.keep();
    }

    /// Keeps what the next start has to know.
    fn keep(&mut self) {
        let written = self.engine.kept().write(&self.engine.config().gateway.state_dir);
        let failed = written.err().map(|failed| failed.to_string());
        if let Some(failed) =
            failed.as_ref().filter(|failed| self.not_kept.as_ref() != Some(failed))
        {
            warn!("{failed}");
        }
        if failed.is_none() && self.not_kept.is_some() {
            info!("what the next start has to know is kept again");
        }
        self.state.readiness.set(Condition::Kept, failed.iter().cloned().collect());
        self.not_kept = failed;
    }

    /// Says why the file is not in force, each fault in a line of its own.
    fn refuse(&self, refused: &dyn std::error::Error, outcome: &str) {
        let faults = with_causes(refused);
        faults.lines().for_each(|fault| error!("{fault}"));
        error!("{outcome}");
        self.state.refuse(first_of(&faults));
    }

    fn network_changed(&mut self, changes: &[NetworkEvent]) {
        // Looked at in place: of many routes a copy takes longer than following a change.
        let followed = self.engine.follow(changes, &self.follower.state());
        if let Err(failed) = followed {
            error!("{}", with_causes(&failed));
        }
        if changes.iter().any(|change| change.concern() == Concern::Places) {
            self.show_places();
        }
    }

    fn upkeep(&mut self) {
        self.restore();
        self.engine.keep_neighbours();
        self.engine.cool();
        if self.engine.reserve() {
            info!("ports of the machine itself changed; what may be lent follows");
        }
        match self.engine.check_guard() {
            Ok((lost, guard)) => {
                if lost {
                    warn!("the last guard was gone; it stands again");
                }
                self.state.set_guard_dropped(guard.dropped().packets, guard.unjudged().packets);
                self.state.readiness.set(Condition::Guards, vec![]);
            }
            Err(failed) => {
                let failed = with_causes(&failed);
                error!("{failed}");
                let problem = format!("the last guard does not stand: {failed}");
                self.state.readiness.set(Condition::Guards, vec![problem]);
            }
        }
        let lost = self
            .engine
            .lost_pin()
            .map(|pin| format!("the pin {} is gone: a restart would lose sessions", pin.display()));
        self.state.readiness.set(Condition::Pins, lost.into_iter().collect());
        let lost = self.socket_file.lost().map(|path| {
            format!("the socket {} is gone: sluicectl finds nobody until a restart", path.display())
        });
        self.state.readiness.set(Condition::Socket, lost.into_iter().collect());
        if self.not_kept.is_some() {
            self.keep();
        }
        self.look_at_discovery();
        self.look_at_groups();
        let behind = self.engine.behind().map(|why| format!("the network is not followed: {why}"));
        self.state.readiness.set(Condition::Network, behind.into_iter().collect());
        self.look_at_forwarding();
    }

    fn sweep(&self) {
        let datapath = &self.engine.datapath;
        let share = datapath.all_slots() / SWEEP_ROUNDS;
        let cursor = || datapath.shared_words().sweep_cursor.load();
        let (from, begun) = (cursor(), Instant::now());
        // One turn after the other, so that time is looked at in between; a turn in which many
        // sessions end looks at fewer slots.
        while cursor().wrapping_sub(from) < u64::from(share) && begun.elapsed() < SWEEP_AT_MOST {
            if let Err(failed) = datapath.sweep(1) {
                error!("the table cannot be swept: {failed}");
                return;
            }
        }
    }
}

fn ticker(every: Duration) -> tokio::time::Interval {
    let mut ticker = interval(every);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticker
}

/// Refuses a kernel that is too old, by its release; one that says nothing readable may try.
fn kernel(release: &str) -> Result<(), StartError> {
    let release = release.trim();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) < OLDEST_KERNEL => {
            Err(StartError::Kernel(release.to_owned()))
        }
        _ => Ok(()),
    }
}

/// Refuses early and in one sentence what would fail late and in a kernel's words.
fn privileges() -> Result<(), StartError> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    for (bit, name) in [(12, "CAP_NET_ADMIN"), (39, "CAP_BPF"), (38, "CAP_PERFMON")] {
        if effective >> bit & 1 == 0 {
            return Err(StartError::Privilege(name));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_answered_is_said_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("`bpf_link_create` failed")]
        struct Call(#[source] io::Error);
        #[derive(Debug, thiserror::Error)]
        #[error("`eth0` does not take the XDP program: {0}")]
        struct Program(#[source] Call);
        let kernel = || io::Error::from_raw_os_error(libc::EBUSY);
        let read = StartError::Read { path: "/etc/sluice.yaml".into(), source: kernel() };
        for (error, said) in [
            (
                &Program(Call(kernel())) as &dyn std::error::Error,
                "`eth0` does not take the XDP program: `bpf_link_create` failed: Device or resource \
                 busy (os error 16)",
            ),
            (&read, "cannot read /etc/sluice.yaml: Device or resource busy (os error 16)"),
        ] {
            assert_eq!(with_causes(error), said);
        }
    }

    #[test]
    fn of_many_faults_the_first_is_said_and_how_many_there_are() {
        for (faults, said) in [
            ("one", "one"),
            ("one\ntwo", "one (and 1 more, which are in the daemon's log)"),
            ("one\ntwo\nthree", "one (and 2 more, which are in the daemon's log)"),
        ] {
            assert_eq!(first_of(faults), said);
        }
    }

    #[test]
    fn what_does_not_fit_the_pinned_tables_is_for_good_and_what_may_change_is_not() {
        let size = TablesError::Size { table: "rules", found: 1, wanted: 2 };
        let counters = PublishError::Counters { need: 3, room: 2 };
        let file = PathBuf::from("/etc/sluice.yaml");
        for (refused, is_for_good) in [
            (StartError::Engine(size.into()), true),
            (StartError::Engine(EngineError::TooManyPlaces("there are 5,000".into())), true),
            (StartError::Engine(counters.into()), true),
            (StartError::Engine(PublishError::Pools { room: 2 }.into()), false),
            (StartError::Engine(EngineError::Config(vec![])), false),
            (StartError::Written(file), false),
        ] {
            assert_eq!(refused.is_for_good(), is_for_good, "{refused}");
        }
    }

    #[test]
    fn a_kernel_that_is_too_old_is_refused_in_a_sentence() {
        for (release, refused) in [
            ("5.19.17", true),
            ("6.0.19-1", true),
            ("6.1.0-56-cloud-amd64\n", false),
            ("6.18", false),
            ("10.0.1", false),
            ("something else", false),
        ] {
            assert_eq!(kernel(release).is_err(), refused, "{release}");
        }
        assert_eq!(
            kernel("5.10.0-30-amd64\n").unwrap_err().to_string(),
            "this machine runs Linux 5.10.0-30-amd64; sluice-gateway needs 6.1 or later"
        );
    }
}
