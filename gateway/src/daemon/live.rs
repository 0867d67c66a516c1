//! Members of groups that are discovered: what clusters say comes into force as it arrives.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use controller::{Clusters, Plane, Recollection, Step, Unconfirmed};
use policy_compiler::{Amendment, CompileError, Image};
use smartgroups::{Change, Subject, Text};
use smartgroups_discovery::kubernetes::{Batch, ClusterStatus};
use tracing::{error, info, warn};

use super::{Loop, named, with_causes};
use crate::config::{Config, clusters, convert};
use crate::kept;
use crate::serve::Condition;

/// How often it is written down who was discovered, if that changed: it is read at the next start.
const REMEMBER_EVERY: Duration = Duration::from_secs(30);

/// Who is discovered, and the policy that is kept up with that.
pub(super) struct Live {
    clusters: Clusters,
    /// `None` as long as nothing is discovered: then a file has its image already.
    plane: Option<Plane>,
    /// What was discovered is not in force: why, as it was logged last.
    behind: Option<String>,
    unconfirmed: Unconfirmed,
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
    pub(super) fn new(clusters: Clusters) -> Self {
        Self {
            clusters,
            plane: None,
            behind: None,
            unconfirmed: Unconfirmed::default(),
            is_unwritten: false,
            written: Instant::now(),
            writing: None,
        }
    }

    /// Compiles a configuration for all that is discovered.
    pub(super) fn compile(&self, config: &Config) -> Result<Next, CompileError> {
        if config.gateway.clusters.is_empty() {
            return Ok(Next { image: Arc::clone(&config.image), plane: None });
        }
        let (policy, stated) = convert::plane(&config.gateway, &config.documents);
        let (plane, image) = match &self.plane {
            Some(plane) => plane.restated(policy, stated)?,
            None => {
                // Until the clusters have answered, whoever was known last is there.
                let recollection = kept::discovered(&config.gateway.state_dir);
                let known = recollection.changes(&clusters::watched(&config.gateway));
                let count = known.len();
                match Plane::new(policy.clone(), stated.clone(), known) {
                    Ok(whole) => whole,
                    Err(refused) if count > 0 => {
                        warn!("what was known of clusters is left out: {refused}");
                        Plane::new(policy, stated, [])?
                    }
                    Err(refused) => return Err(refused),
                }
            }
        };
        Ok(Next { image: Arc::new(image), plane: Some(plane) })
    }

    /// A configuration has come into force: from now on its clusters are watched. Those of which
    /// nothing is known any more are returned.
    pub(super) fn accept(&mut self, config: &Config, next: Next) -> Vec<String> {
        let is_first = self.plane.is_none();
        self.plane = next.plane;
        self.behind = None;
        let watched = clusters::watched(&config.gateway);
        let mut followed = self.clusters.follow(&watched);
        if is_first {
            // What is known of them is a recollection.
            let names = watched.iter().map(|one| one.scope.cluster.as_str().to_owned());
            followed.anew.extend(names);
        }
        if let Some(plane) = &self.plane {
            for cluster in &followed.anew {
                self.unconfirmed.doubt(cluster, plane.inventory());
            }
        }
        followed.gone
    }

    /// Who there is, if anything is discovered.
    pub(super) fn inventory(&self) -> Option<&smartgroups::Inventory> {
        self.plane.as_ref().map(Plane::inventory)
    }
}

impl Next {
    pub(super) fn inventory<'a>(&'a self, config: &'a Config) -> &'a smartgroups::Inventory {
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

/// Why a cluster is not known as it should be, in a sentence.
fn fault(status: &ClusterStatus, now: Instant) -> Option<String> {
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
    /// Brings into force what clusters have said.
    pub(super) fn discovered(&mut self, batches: Vec<Batch>) {
        let Live { plane: Some(plane), clusters, unconfirmed, .. } = &mut self.live else { return };
        let received = batches.iter().map(|batch| batch.received).min();
        for batch in batches.iter().filter(|batch| batch.synced && batch.changes.is_empty()) {
            info!(cluster = %batch.cluster, "cluster known");
        }
        let mut changes = Vec::new();
        for mut batch in batches {
            let cluster = batch.cluster.as_str();
            if clusters.has(cluster) {
                unconfirmed.hear(cluster, batch.synced, &mut batch.changes);
                changes.append(&mut batch.changes);
            }
        }
        let names = names(&changes);
        let step = plane.discover(changes);
        self.live.is_unwritten = true;
        if self.step(step, &names)
            && let Some(received) = received
        {
            self.state.observe_enforced(received.elapsed());
        }
    }

    /// What was known of clusters that are not watched any more is void.
    pub(super) fn forget_clusters(&mut self, gone: &[String]) {
        for cluster in gone {
            let Some(plane) = &mut self.live.plane else { return };
            let step = plane.forget(cluster);
            self.step(step, &[]);
            info!(%cluster, "cluster forgotten");
        }
    }

    /// Says how well clusters are known, and tries again what found no room.
    pub(super) fn look_at_clusters(&mut self) {
        if self.live.behind.is_some()
            && let Some(plane) = &mut self.live.plane
        {
            let step = plane.retry();
            self.step(step, &[]);
        }
        if self.live.is_unwritten && self.live.written.elapsed() >= REMEMBER_EVERY {
            self.remember();
        }
        let (now, status) = (Instant::now(), self.live.clusters.status());
        let mut problems: Vec<String> =
            status.iter().filter_map(|status| fault(status, now)).collect();
        problems.extend(self.live.behind.clone());
        self.state.readiness.set(Condition::Clusters, problems);
        self.state.set_clusters(status);
    }

    /// Writes down who was discovered, beside everything else; not while it is still written.
    fn remember(&mut self) {
        let Some(plane) = &self.live.plane else { return };
        if self.live.writing.as_ref().is_some_and(|writing| !writing.is_finished()) {
            return;
        }
        // Copies that cost nothing: what they are made of is written by somebody else.
        let (all, stated) = (plane.inventory().clone(), plane.stated().clone());
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
        if let (true, Some(plane)) = (self.live.is_unwritten, &self.live.plane) {
            let state_dir = &self.engine.config().gateway.state_dir;
            written_down(state_dir, plane.inventory(), plane.stated());
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
                match self.engine.amend(&amendment) {
                    Ok(Some(_)) => {
                        self.state.accept_members();
                        self.caught_up();
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
                true
            }
            Err(failed) => {
                self.state.withdraw();
                self.fall_behind(&failed);
                false
            }
        }
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

fn written_down(state_dir: &Path, all: &smartgroups::Inventory, stated: &smartgroups::Inventory) {
    if let Err(failed) = kept::write_discovered(state_dir, &Recollection::of(all, stated)) {
        warn!("{failed}");
    }
}
