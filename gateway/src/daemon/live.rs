//! Members of groups that are discovered: what clusters, accounts and DNS say comes into force as it
//! arrives.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use controller::{
    Alarm, Alarms, Batch, Discovery, Plane, Recollection, SizeChange, Sizes, Source, Step,
    Unconfirmed,
};
use policy_compiler::{Amendment, CompileError, Image};
use smartgroups::{ANYWHERE, Change, Endpoint, Inventory, PUBLIC_INTERNET, Subject, Text};
use smartgroups_aws::AccountStatus;
use smartgroups_discovery::dns::{DnsName, Learned, NameStatus, Names};
use smartgroups_discovery::kubernetes::ClusterStatus;
use tracing::{error, info, warn};

use super::{Loop, named, with_causes};
use crate::config::{Config, convert, wanted};
use crate::kept;
use crate::serve::{Condition, Discovered};

/// How often it is written down who was discovered, if that changed: it is read at the next start.
const REMEMBER_EVERY: Duration = Duration::from_secs(30);

/// Who is discovered, and the policy that is kept up with that.
pub(super) struct Live {
    discovery: Discovery,
    names: Names,
    /// `None` as long as nothing is discovered: then a file has its image already.
    plane: Option<Plane>,
    /// What was discovered is not in force: why, as it was logged last.
    behind: Option<String>,
    unconfirmed: Unconfirmed,
    alarms: Alarms,
    /// How many members each group has in the policy in force.
    sizes: Sizes,
    /// Something is in force: what was written down before is of another time.
    has_begun: bool,
    /// Something was discovered since it was written down.
    is_unwritten: bool,
    written: Instant,
    writing: Option<tokio::task::JoinHandle<()>>,
}

/// A policy that is compiled and not in force yet.
pub(super) struct Next {
    pub(super) image: Arc<Image>,
    plane: Option<Plane>,
}

impl Live {
    pub(super) fn new(discovery: Discovery, names: Names) -> Self {
        Self {
            discovery,
            names,
            plane: None,
            behind: None,
            unconfirmed: Unconfirmed::default(),
            alarms: Alarms::default(),
            sizes: Sizes::default(),
            has_begun: false,
            is_unwritten: false,
            written: Instant::now(),
            writing: None,
        }
    }

    /// Compiles a configuration for all that is discovered.
    pub(super) fn compile(&self, config: &Config) -> Result<Next, CompileError> {
        let wanted = wanted(&config.gateway, &config.documents);
        if wanted.is_empty() {
            return Ok(Next { image: Arc::clone(&config.image), plane: None });
        }
        let (policy, stated) = convert::plane(&config.gateway, &config.documents);
        let (plane, image) = match &self.plane {
            Some(plane) => plane.restated(policy, stated)?,
            None => {
                // Until all have answered, whoever was known last is there.
                let recollection = if self.has_begun {
                    Recollection::default()
                } else {
                    kept::discovered(&config.gateway.state_dir)
                };
                let known = recollection.changes(&wanted);
                let count = known.len();
                match Plane::new(policy.clone(), stated.clone(), known) {
                    Ok(whole) => whole,
                    Err(refused) if count > 0 => {
                        warn!("what was known of others is left out: {refused}");
                        Plane::new(policy, stated, [])?
                    }
                    Err(refused) => return Err(refused),
                }
            }
        };
        Ok(Next { image: Arc::new(image), plane: Some(plane) })
    }

    /// A configuration has come into force: from now on its clusters and accounts are followed. Those
    /// of which nothing is known any more are returned.
    pub(super) fn accept(&mut self, config: &Config, next: Next) -> Vec<Source> {
        let is_first = self.plane.is_none();
        // Whoever was discovered is not to be remembered when nobody is any more.
        self.is_unwritten |= !is_first && next.plane.is_none();
        self.plane = next.plane;
        self.has_begun = true;
        self.behind = None;
        let wanted = wanted(&config.gateway, &config.documents);
        let mut followed = self.discovery.follow(&wanted);
        if is_first {
            // What is known of them is a recollection.
            followed.anew.extend(wanted.sources());
        }
        if let Some(plane) = &self.plane {
            for source in &followed.anew {
                self.unconfirmed.doubt(source, plane.inventory());
            }
        }
        followed.gone
    }

    /// A configuration has come into force: from now on its names are asked for. Returns what that
    /// changes at once.
    pub(super) fn follow_names(&mut self, config: &Config) -> Vec<Change> {
        let asked = wanted(&config.gateway, &config.documents).names;
        let is_new = |name: &&DnsName| self.names.change(name).is_none();
        let new: Vec<DnsName> = asked.names.iter().filter(is_new).cloned().collect();
        let changes = self.names.follow(&asked);
        if let Some(plane) = &self.plane {
            // What is known of them is a recollection.
            for name in &new {
                let endpoint = plane.inventory().get(&Endpoint::name_of_fqdn(name.as_str()));
                let addresses = endpoint.into_iter().flat_map(|one| one.addresses.iter());
                let addresses: Vec<IpAddr> = addresses.map(|prefix| prefix.addr()).collect();
                self.names.recall(name, &addresses);
            }
        }
        changes
    }

    /// A policy has come into force, of these settings: what that did to groups.
    pub(super) fn count_groups(&mut self, config: &Config, image: &Image) -> Vec<Alarm> {
        self.sizes = Sizes::of(image);
        let is_built_in = |name: &str| [ANYWHERE, PUBLIC_INTERNET].contains(&name);
        let groups = image.groups.iter().map(|group| (group.id, group.name.as_str()));
        let groups = groups.filter(|(_, name)| !is_built_in(name));
        let growth = config.gateway.group_alarms.growth();
        let is_learning = self.is_learning();
        self.alarms.restate(groups, growth, &self.sizes, is_learning, Instant::now())
    }

    /// Members of groups have changed by this or, if that is not known, so that this is the policy now.
    fn count_members(&mut self, change: Option<SizeChange>, image: &Image) -> Vec<Alarm> {
        let (is_learning, now) = (self.is_learning(), Instant::now());
        let Some(change) = change else {
            self.sizes = Sizes::of(image);
            return self.alarms.judge_all(&self.sizes, is_learning, now);
        };
        self.sizes.apply(&change);
        self.alarms.judge(change.groups(), &self.sizes, is_learning, now)
    }

    /// Who there is and who of them is stated, as copies that cost nothing; nobody if nobody is
    /// discovered.
    fn everybody(&self) -> (Inventory, Inventory) {
        let plane = self.plane.as_ref();
        plane.map(|plane| (plane.inventory().clone(), plane.stated().clone())).unwrap_or_default()
    }

    /// Whether a cluster or an account has not said all that it knows yet, so that groups grow by being
    /// learned.
    fn is_learning(&self) -> bool {
        self.discovery.clusters().iter().any(|cluster| !cluster.is_synced())
            || self.discovery.accounts().iter().any(|account| !account.is_synced())
    }

    /// Who there is, if anything is discovered.
    pub(super) fn inventory(&self) -> Option<&Inventory> {
        self.plane.as_ref().map(Plane::inventory)
    }
}

impl Next {
    pub(super) fn inventory<'a>(&'a self, config: &'a Config) -> &'a Inventory {
        self.plane.as_ref().map_or(&config.inventory, Plane::inventory)
    }
}

/// The endpoints that changes are about.
fn names(changes: &[Change]) -> Vec<Text> {
    let name = |subject| match subject {
        Subject::Endpoint(name) => Some(name),
        Subject::Namespace(_) => None,
    };
    changes.iter().map(Change::subject).filter_map(name).collect()
}

/// Why a name is not known as it should be, in a sentence: nothing was ever known of it, or for longer
/// than addresses stay nothing new was.
fn fault_of_name(status: &NameStatus, grace: Duration, now: Instant) -> Option<String> {
    let name = &status.name;
    let why = status.fault.as_deref().unwrap_or("it is being asked for");
    match status.staleness(now) {
        None => Some(format!("no address of `{name}` is known yet: {why}")),
        Some(age) if age > grace && status.fault.is_some() => {
            Some(format!("what is known of `{name}` is {} s old: {why}", age.as_secs()))
        }
        Some(_) => None,
    }
}

/// Why an account is not known as it should be, in a sentence.
fn fault_of_account(status: &AccountStatus, now: Instant) -> Option<String> {
    let account = &status.account;
    if status.is_too_stale(now) {
        let age = status.staleness(now).unwrap_or_default().as_secs();
        return Some(format!("what is known of account `{account}` is {age} s old"));
    }
    if status.is_synced() {
        return None;
    }
    let mut unknown =
        status.degraded(now).filter(|(_, kind)| !kind.known && kind.kind.is_identity());
    let why = unknown.find_map(|(region, kind)| Some((region, kind.error.as_ref()?)));
    let why = why.map_or_else(String::new, |(region, error)| format!(": {region}: {error}"));
    Some(format!("account `{account}` is not known yet{why}"))
}

/// Why a cluster is not known as it should be, in a sentence.
fn fault_of_cluster(status: &ClusterStatus, now: Instant) -> Option<String> {
    let cluster = &status.cluster;
    if status.is_too_stale(now) {
        let age = status.staleness(now).unwrap_or_default().as_secs();
        return Some(format!("what is known of cluster `{cluster}` is {age} s old"));
    }
    if status.is_synced() {
        return None;
    }
    let first = status.kinds.iter().find(|kind| !kind.synced)?;
    let why = first.error.as_ref().map_or_else(String::new, |error| format!(": {error}"));
    Some(format!("cluster `{cluster}` is not known yet{why}"))
}

impl Loop {
    /// Brings into force what clusters and accounts have said.
    pub(super) fn discovered(&mut self, batches: Vec<Batch>) {
        let Live { discovery, unconfirmed, .. } = &mut self.live;
        let received = batches.iter().map(|batch| batch.received).min();
        for batch in batches.iter().filter(|batch| batch.synced && batch.changes.is_empty()) {
            info!(source = %batch.source, "all of it is known");
        }
        let mut changes = Vec::new();
        for mut batch in batches {
            if discovery.has(&batch.source) {
                unconfirmed.hear(&batch.source, batch.synced, &mut batch.changes);
                changes.append(&mut batch.changes);
            }
        }
        self.bring_in(changes, received);
    }

    /// Brings into force what DNS has said.
    pub(super) fn learned(&mut self, learned: &[Learned]) {
        let received = learned.iter().map(|one| one.received).min();
        let names: BTreeSet<&DnsName> = learned.iter().map(|one| &one.name).collect();
        let changes = names.into_iter().filter_map(|name| self.live.names.change(name)).collect();
        self.bring_in(changes, received);
        self.show_discovery();
    }

    /// Asks from now on for the names that the configuration in force has.
    pub(super) fn ask_for_names(&mut self) {
        let config = Arc::clone(self.engine.config());
        let changes = self.live.follow_names(&config);
        if !changes.is_empty() {
            self.bring_in(changes, None);
        }
    }

    /// Brings changes into force that were received at this time.
    fn bring_in(&mut self, changes: Vec<Change>, received: Option<Instant>) {
        let Some(plane) = &mut self.live.plane else { return };
        let names = names(&changes);
        let step = plane.discover(changes);
        self.live.is_unwritten = true;
        if self.step(step, &names)
            && let Some(received) = received
        {
            self.state.observe_enforced(received.elapsed());
        }
    }

    /// What was known of those who are not followed any more is void.
    pub(super) fn forget(&mut self, gone: &[Source]) {
        for source in gone {
            let Some(plane) = &mut self.live.plane else { return };
            let step = plane.forget(source);
            self.step(step, &[]);
            info!(%source, "forgotten");
        }
    }

    /// Says how well those are known who are discovered, and tries again what found no room.
    pub(super) fn look_at_discovery(&mut self) {
        if self.live.behind.is_some()
            && let Some(plane) = &mut self.live.plane
        {
            let step = plane.retry();
            self.step(step, &[]);
        }
        if self.live.is_unwritten && self.live.written.elapsed() >= REMEMBER_EVERY {
            self.remember();
        }
        self.show_discovery();
    }

    /// Says how well clusters, accounts and names are known.
    fn show_discovery(&self) {
        let now = Instant::now();
        let discovered = Discovered {
            clusters: self.live.discovery.clusters(),
            accounts: self.live.discovery.accounts(),
            names: self.live.names.status(),
        };
        let grace = self.engine.config().gateway.dns.grace.duration();
        let clusters = discovered.clusters.iter().filter_map(|one| fault_of_cluster(one, now));
        let accounts = discovered.accounts.iter().filter_map(|one| fault_of_account(one, now));
        let names = discovered.names.iter().filter_map(|one| fault_of_name(one, grace, now));
        let problems = clusters.chain(accounts).chain(names).chain(self.live.behind.clone());
        self.state.readiness.set(Condition::Discovery, problems.collect());
        self.state.set_discovered(discovered);
    }

    /// Writes down who was discovered, beside everything else; not while it is still written.
    fn remember(&mut self) {
        if self.live.writing.as_ref().is_some_and(|writing| !writing.is_finished()) {
            return;
        }
        let (all, stated) = self.live.everybody();
        let state_dir = self.engine.config().gateway.state_dir.clone();
        self.live.is_unwritten = false;
        self.live.written = Instant::now();
        self.live.writing =
            Some(tokio::task::spawn_blocking(move || written_down(&state_dir, &all, &stated)));
    }

    /// The same at the end, when there is nobody else.
    pub(super) async fn remember_at_last(&mut self) {
        if let Some(writing) = self.live.writing.take() {
            let _ = writing.await;
        }
        if self.live.is_unwritten {
            let (all, stated) = self.live.everybody();
            written_down(&self.engine.config().gateway.state_dir, &all, &stated);
        }
    }

    /// Brings a step into force, which is about endpoints of these names; says whether it is.
    fn step(&mut self, step: Step, changed: &[Text]) -> bool {
        let Some(inventory) = self.live.inventory().cloned() else { return false };
        match step {
            Step::Nothing => {
                // Who there is may have changed all the same.
                self.state.announce_members(&Amendment::default(), &inventory, changed);
                self.state.accept_members();
                true
            }
            // What it amends is not in force.
            Step::Amended(_) if self.live.behind.is_some() => self.anew(),
            Step::Amended(amendment) => {
                self.state.announce_members(&amendment, &inventory, changed);
                let sizes = SizeChange::of(self.engine.image(), &amendment);
                match self.engine.amend(&amendment) {
                    Ok(Some(_)) => {
                        self.state.accept_members();
                        self.caught_up();
                        let alarms = self.live.count_members(sizes, self.engine.image());
                        self.alarm(&alarms);
                        true
                    }
                    Ok(None) => self.anew(),
                    Err(failed) => {
                        error!("{}", with_causes(&failed));
                        self.anew()
                    }
                }
            }
            Step::Anew(image) => self.exchange(Arc::new(*image)),
            Step::NoRoom(refused) => {
                self.fall_behind(&refused);
                false
            }
        }
    }

    /// Only a whole policy can be published.
    fn anew(&mut self) -> bool {
        self.state.withdraw();
        match self.live.plane.as_mut().map(Plane::retry) {
            Some(Step::Anew(image)) => self.exchange(Arc::new(*image)),
            Some(Step::NoRoom(refused)) => {
                self.fall_behind(&refused);
                false
            }
            Some(Step::Nothing | Step::Amended(_)) | None => false,
        }
    }

    fn exchange(&mut self, image: Arc<Image>) -> bool {
        let Some(inventory) = self.live.inventory().cloned() else { return false };
        let next = named(self.engine.config(), self.engine.numbers(), &image, &inventory);
        self.state.announce(&next);
        match self.engine.exchange(image) {
            Ok(generation) => {
                self.state.accept(next);
                info!(generation, "policy published for those who were discovered");
                self.caught_up();
                let alarms = self.live.count_members(None, self.engine.image());
                self.alarm(&alarms);
                true
            }
            Err(failed) => {
                self.state.withdraw();
                self.fall_behind(&failed);
                false
            }
        }
    }

    /// Tells what groups did.
    pub(super) fn alarm(&self, alarms: &[Alarm]) {
        for alarm in alarms {
            warn!("{alarm}");
        }
        if !alarms.is_empty() {
            self.look_at_groups();
        }
    }

    /// Says what is to be told of groups.
    pub(super) fn look_at_groups(&self) {
        self.state.set_alarms(self.live.alarms.status(Instant::now()));
    }

    fn caught_up(&mut self) {
        if self.live.behind.take().is_some() {
            info!("what was discovered is in force");
        }
    }

    fn fall_behind(&mut self, refused: &dyn std::error::Error) {
        let refused = format!("what was discovered is not in force: {}", with_causes(refused));
        if self.live.behind.as_ref() != Some(&refused) {
            warn!("{refused}");
        }
        self.live.behind = Some(refused);
    }
}

fn written_down(state_dir: &Path, all: &Inventory, stated: &Inventory) {
    if let Err(failed) = kept::write_discovered(state_dir, &Recollection::of(all, stated)) {
        warn!("{failed}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_missed_without_an_address_and_when_it_fails_for_longer_than_addresses_stay() {
        let (now, grace) = (Instant::now() + Duration::from_secs(9_000), Duration::from_secs(600));
        for (age, fault, expected) in [
            (None, None, Some("no address of `a.example` is known yet: it is being asked for")),
            (None, Some("no"), Some("no address of `a.example` is known yet: no")),
            (Some(1), Some("no"), None),
            (Some(600), Some("no"), None),
            (Some(601), Some("no"), Some("what is known of `a.example` is 601 s old: no")),
            (Some(3_600), None, None), // its TTL is as long
        ] {
            let status = NameStatus {
                name: DnsName::new("a.example").unwrap(),
                addresses: usize::from(age.is_some()),
                confirmed: age.map(|age| now - Duration::from_secs(age)),
                failures: 0,
                refused: 0,
                left_out: 0,
                fault: fault.map(str::to_owned),
            };
            assert_eq!(
                fault_of_name(&status, grace, now).as_deref(),
                expected,
                "{age:?} {fault:?}"
            );
        }
    }
}
