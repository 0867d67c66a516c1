//! What the daemon knows and others ask for.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use controller::AlarmStatus;
use flow_export::Counts;
use policy_compiler::{Amendment, Image};
use prometheus::{Histogram, HistogramOpts};
use smartgroups::{Inventory, Text};
use smartgroups_aws::AccountStatus;
use smartgroups_discovery::dns::NameStatus;
use smartgroups_discovery::kubernetes::ClusterStatus;
use xdp_abi::config::PolicyWord;

use crate::config::Config;
use crate::datapath::attach::HookOf;
use crate::datapath::numbers::Numbers;
use crate::datapath::places::Served;
use crate::flows::census::CensusTaker;
use crate::flows::{Directories, Directory, Live};
use crate::http::Tally;

/// A configuration with what is not in its file.
#[derive(Clone, Debug)]
pub struct InForce {
    /// The file.
    pub config: Arc<Config>,
    /// Which of its attachments has which number.
    pub numbers: Arc<Numbers>,
    /// The policy as it was published.
    pub image: Arc<Image>,
    /// Who there was when it was.
    pub inventory: Inventory,
}

impl InForce {
    fn directory(&self, generation: u32) -> Directory {
        let Self { config, numbers, image, inventory } = self;
        Directory::new(generation, &config.gateway, image, inventory, numbers)
    }
}

/// How well those are known who are discovered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Discovered {
    /// The clusters that are watched.
    pub clusters: Vec<ClusterStatus>,
    /// The accounts that are followed.
    pub accounts: Vec<AccountStatus>,
    /// The names in DNS that are asked for.
    pub names: Vec<NameStatus>,
}

impl Discovered {
    /// Whether nobody is discovered.
    pub fn is_empty(&self) -> bool {
        self.clusters.is_empty() && self.accounts.is_empty() && self.names.is_empty()
    }
}

/// Everything that the local API and the metrics are made of.
pub struct State<L> {
    /// The tables.
    pub live: Arc<L>,
    /// Names.
    pub directories: Arc<Directories>,
    /// Whether all is well.
    pub readiness: Readiness,
    /// Sessions, counted.
    pub census: CensusTaker,
    /// Who is connected to the daemon's servers.
    pub connections: Connections,
    in_force: RwLock<InForce>,
    served: RwLock<BTreeMap<u32, (String, Served)>>,
    missing: RwLock<Vec<HookOf>>,
    attached_again: AtomicU64,
    records: OnceLock<Arc<Counts>>,
    guard_dropped: AtomicU64,
    guard_unjudged: AtomicU64,
    reload: RwLock<Reload>,
    discovered: RwLock<Discovered>,
    alarms: RwLock<AlarmStatus>,
    enforced: Histogram,
    started: Instant,
}

/// The connections of the daemon's servers.
#[derive(Debug, Default)]
pub struct Connections {
    /// Of the local API.
    pub local: Arc<Tally>,
    /// Of the metrics.
    pub metrics: Arc<Tally>,
}

/// What became of the configuration file when it was last looked at; the start counts as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reload {
    /// Why it was refused, in one sentence; `None`: it is in force.
    pub refused: Option<String>,
    /// When a file last came into force.
    pub succeeded: SystemTime,
}

impl Reload {
    fn success() -> Self {
        Self { refused: None, succeeded: SystemTime::now() }
    }
}

impl<L: Live> State<L> {
    /// The state of a gateway that has this in force.
    pub fn new(live: Arc<L>, in_force: InForce) -> Self {
        let directory = in_force.directory(generation(&*live));
        Self {
            live,
            directories: Arc::new(Directories::new(directory)),
            readiness: Readiness::default(),
            census: CensusTaker::default(),
            connections: Connections::default(),
            in_force: RwLock::new(in_force),
            served: RwLock::default(),
            missing: RwLock::default(),
            attached_again: AtomicU64::new(0),
            records: OnceLock::new(),
            guard_dropped: AtomicU64::new(0),
            guard_unjudged: AtomicU64::new(0),
            reload: RwLock::new(Reload::success()),
            discovered: RwLock::default(),
            alarms: RwLock::default(),
            enforced: enforced(),
            started: Instant::now(),
        }
    }

    /// Says what is about to be published, so that its first events find their names. They carry
    /// the next generation, or this one if identities are all that changes.
    pub fn announce(&self, next: &InForce) {
        let next = next.directory(self.generation().wrapping_add(1).max(1));
        self.directories.announce(next, self.live.clock());
    }

    /// What was announced was refused: the names in force go on.
    pub fn withdraw(&self) {
        self.directories.withdraw();
    }

    /// What is in force from now on.
    pub fn accept(&self, in_force: InForce) {
        let generation = self.generation();
        if !self.directories.accept(generation) {
            self.directories.publish(in_force.directory(generation), self.live.clock());
        }
        *self.in_force.write().unwrap_or_else(PoisonError::into_inner) = in_force;
        *self.reload.write().unwrap_or_else(PoisonError::into_inner) = Reload::success();
    }

    /// Says what members are about to change; as [`Self::announce`]. `changed` are the names of those
    /// who are not as they were.
    pub fn announce_members(&self, amendment: &Amendment, inventory: &Inventory, changed: &[Text]) {
        let (now, generation) = (self.live.clock(), self.generation());
        let before = self.directories.in_force();
        let next = before.amended(generation, amendment, inventory, changed, now);
        self.directories.announce_amended(next);
    }

    /// What was announced of members is in force.
    pub fn accept_members(&self) {
        self.directories.accept(self.generation());
    }

    /// How well those are known who are discovered.
    pub fn set_discovered(&self, discovered: Discovered) {
        *self.discovered.write().unwrap_or_else(PoisonError::into_inner) = discovered;
    }

    /// How well those are known who are discovered.
    pub fn discovered(&self) -> Discovered {
        self.discovered.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is to be told of groups.
    pub fn set_alarms(&self, status: AlarmStatus) {
        *self.alarms.write().unwrap_or_else(PoisonError::into_inner) = status;
    }

    /// What is to be told of groups.
    pub fn alarms(&self) -> AlarmStatus {
        self.alarms.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// So long after it was heard of, a change of members was in force.
    pub fn observe_enforced(&self, after: Duration) {
        self.enforced.observe(after.as_secs_f64());
    }

    /// How long changes of members took from being heard of to being in force.
    pub fn enforced(&self) -> &Histogram {
        &self.enforced
    }

    /// The file is not what is in force, and why.
    pub fn refuse(&self, fault: String) {
        self.reload.write().unwrap_or_else(PoisonError::into_inner).refused = Some(fault);
    }

    /// What became of the file.
    pub fn reload(&self) -> Reload {
        self.reload.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is in force.
    pub fn in_force(&self) -> InForce {
        self.in_force.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Which interfaces have programs, by index, and what is missing of that.
    pub fn set_served(&self, interfaces: BTreeMap<u32, (String, Served)>, missing: Vec<HookOf>) {
        *self.served.write().unwrap_or_else(PoisonError::into_inner) = interfaces;
        *self.missing.write().unwrap_or_else(PoisonError::into_inner) = missing;
    }

    /// Hooks that have no program and should have one.
    pub fn missing(&self) -> Vec<HookOf> {
        self.missing.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A program that somebody took off was put back.
    pub fn count_attached_again(&self) {
        self.attached_again.fetch_add(1, Ordering::Relaxed);
    }

    /// How many programs were put back.
    pub fn attached_again(&self) -> u64 {
        self.attached_again.load(Ordering::Relaxed)
    }

    /// Which interfaces have programs, by index.
    pub fn served(&self) -> BTreeMap<u32, (String, Served)> {
        self.served.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The counters of the flow log; said once, if there is one.
    pub fn set_records(&self, counts: Arc<Counts>) {
        // A second log would be a second collector, of which there is none.
        let _ = self.records.set(counts);
    }

    /// The counters of the flow log.
    pub fn records(&self) -> Option<&Counts> {
        self.records.get().map(Arc::as_ref)
    }

    /// How many packets the last guard, outside the datapath, has dropped: for their source, and
    /// because no program had judged them.
    pub fn set_guard_dropped(&self, leaks: u64, unjudged: u64) {
        self.guard_dropped.store(leaks, Ordering::Relaxed);
        self.guard_unjudged.store(unjudged, Ordering::Relaxed);
    }

    /// How many packets the last guard has dropped for their source.
    pub fn guard_dropped(&self) -> u64 {
        self.guard_dropped.load(Ordering::Relaxed)
    }

    /// How much transit it has dropped that no program had judged.
    pub fn guard_unjudged(&self) -> u64 {
        self.guard_unjudged.load(Ordering::Relaxed)
    }

    /// Seconds since the daemon started.
    pub fn uptime(&self) -> u64 {
        self.started.elapsed().as_secs()
    }

    /// The generation in force; zero: none yet.
    pub fn generation(&self) -> u32 {
        generation(&*self.live)
    }

    /// What keeps the gateway from doing its work, in sentences.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.readiness.problems();
        if self.generation() == 0 {
            problems.push("no policy is in force, so all transit is refused".to_owned());
        }
        problems
    }
}

fn generation<L: Live>(live: &L) -> u32 {
    PolicyWord(live.config().policy.load()).generation()
}

/// A histogram from a tenth of a millisecond to some seconds.
fn enforced() -> Histogram {
    let options = HistogramOpts::new(
        "sluice_members_enforced_seconds",
        "From when a change of members was received, from a cluster, an account or DNS, to when the \
         kernel's tables had it.",
    );
    let buckets = vec![
        0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
    ];
    Histogram::with_opts(options.buckets(buckets)).expect("the name and the buckets are right")
}

/// Something that must hold before packets are served as configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// Programs are on all interfaces.
    Attached,
    /// The policy of the configuration file is the one in force.
    Policy,
    /// The last guard against leaks stands.
    Guards,
    /// The kernel gives routes for what comes in.
    Forwarding,
    /// What the next daemon takes over is where it looks for it.
    Pins,
    /// What the next daemon has to know is in `state_dir`.
    Kept,
    /// Clusters, accounts and names in DNS are known, and what is said of them is in force.
    Discovery,
    /// Links and addresses are followed.
    Network,
    /// Whoever looks for the local API finds its socket.
    Socket,
}

impl Condition {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Attached,
        Self::Policy,
        Self::Guards,
        Self::Forwarding,
        Self::Pins,
        Self::Kept,
        Self::Discovery,
        Self::Network,
        Self::Socket,
    ];

    /// Before anybody has said how it is.
    const fn unknown(self) -> &'static str {
        match self {
            Self::Attached => "no program has been attached yet",
            Self::Policy => "no policy has been published yet",
            Self::Guards => "the last guard against leaks has not been put up yet",
            Self::Forwarding => "nobody has looked yet whether the kernel forwards",
            Self::Pins => "nobody has looked yet whether everything is pinned",
            Self::Kept => "nothing has been kept for the next start yet",
            Self::Discovery => {
                "nobody has looked yet whether clusters, accounts and names are known"
            }
            Self::Network => "nobody has looked yet whether the network is followed",
            Self::Socket => "nobody has looked yet whether the local API is found",
        }
    }
}

/// Whether the gateway does its work; the daemon says so, condition by condition.
#[derive(Debug, Default)]
pub struct Readiness(Mutex<BTreeMap<Condition, Vec<String>>>);

impl Readiness {
    /// Says what is wrong with a condition now, in sentences; nothing: it holds.
    pub fn set(&self, condition: Condition, problems: Vec<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(condition, problems);
    }

    /// Everything that is wrong, in sentences; empty: ready.
    pub fn problems(&self) -> Vec<String> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |condition: Condition| match known.get(&condition) {
            Some(problems) => problems.clone(),
            None => vec![condition.unknown().to_owned()],
        };
        Condition::ALL.into_iter().flat_map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use smartgroups::DomainId;

    use super::*;
    use crate::flows::testing::{self, TWO_CLUSTERS};

    #[test]
    fn ready_is_only_what_was_said_to_be() {
        let readiness = Readiness::default();
        assert_eq!(readiness.problems().len(), Condition::ALL.len());
        for condition in Condition::ALL.into_iter().filter(|one| *one != Condition::Guards) {
            readiness.set(condition, vec![]);
        }
        assert_eq!(readiness.problems(), ["the last guard against leaks has not been put up yet"]);
        readiness.set(Condition::Guards, vec![]);
        assert!(readiness.problems().is_empty());
        readiness.set(Condition::Attached, vec!["eth1 is missing".into(), "eth2 too".into()]);
        assert_eq!(readiness.problems(), ["eth1 is missing", "eth2 too"]);
    }

    #[test]
    fn names_are_there_before_the_policy_and_go_when_it_is_refused() {
        let scene = testing::scene(TWO_CLUSTERS);
        let state = State::new(Arc::clone(&scene.memory), scene.in_force());
        let renamed = TWO_CLUSTERS.replace("gw-test", "gw-new").replace("office", "bureau");
        let next = testing::scene(&renamed);
        let bureau = next.config.image.identity(DomainId(0), "10.20.0.1".parse().unwrap()).id;
        let next = next.in_force();
        let name = |generation| state.directories.book().of(generation).gateway.to_string();
        assert_eq!(state.generation(), 1);
        state.announce(&next);
        assert_eq!((name(1), name(2)), ("gw-test".into(), "gw-new".into()));
        let known = || state.directories.current().groups(bureau).is_some();
        assert!(known(), "whatever the generation: a policy may be amended without a new one");
        state.withdraw();
        assert_eq!((name(1), name(2)), ("gw-test".into(), "gw-test".into()));
        assert!(known(), "it may have been in force for a moment");
        assert_eq!(state.in_force().config.gateway.name, "gw-test");
        state.refuse("line 3 is wrong".into());
        assert_eq!(state.reload().refused.as_deref(), Some("line 3 is wrong"));
        state.accept(next);
        assert_eq!(state.reload().refused, None);
        assert_eq!(name(1), "gw-new");
        assert_eq!(state.in_force().config.gateway.name, "gw-new");
    }
}
