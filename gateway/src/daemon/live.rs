//! Members of groups that are discovered: what clusters say comes into force as it arrives.

use std::sync::Arc;
use std::time::Instant;

use controller::{Clusters, Plane, Step};
use policy_compiler::{CompileError, Image};
use smartgroups_discovery::kubernetes::{Batch, ClusterStatus};
use tracing::{error, info, warn};

use super::{Loop, named, with_causes};
use crate::config::{Config, clusters, convert};
use crate::engine::EngineError;
use crate::serve::Condition;

/// Who is discovered, and the policy that is kept up with that.
pub(super) struct Live {
    clusters: Clusters,
    /// `None` as long as nothing is discovered: then a file has its image already.
    plane: Option<Plane>,
    /// What was discovered is not in force: why, as it was logged last.
    behind: Option<String>,
}

/// A policy that is compiled and not in force yet.
pub(super) struct Next {
    pub(super) image: Arc<Image>,
    plane: Option<Plane>,
}

impl Live {
    pub(super) fn new(clusters: Clusters) -> Self {
        Self { clusters, plane: None, behind: None }
    }

    /// Compiles a configuration for all that is discovered.
    pub(super) fn compile(&self, config: &Config) -> Result<Next, CompileError> {
        if config.gateway.clusters.is_empty() {
            return Ok(Next { image: Arc::clone(&config.image), plane: None });
        }
        let (policy, stated) = convert::plane(&config.gateway, &config.documents);
        let (plane, image) = match &self.plane {
            Some(plane) => plane.restated(policy, stated)?,
            None => Plane::new(policy, stated)?,
        };
        Ok(Next { image: Arc::new(image), plane: Some(plane) })
    }

    /// A configuration has come into force: from now on its clusters are watched. Those of which
    /// nothing is known any more are returned.
    pub(super) fn accept(&mut self, config: &Config, next: Next) -> Vec<String> {
        self.plane = next.plane;
        self.behind = None;
        self.clusters.follow(&clusters::watched(&config.gateway))
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
        let Some(plane) = &mut self.live.plane else { return };
        let received = batches.iter().map(|batch| batch.received).min();
        for batch in batches.iter().filter(|batch| batch.synced && batch.changes.is_empty()) {
            info!(cluster = %batch.cluster, "cluster known");
        }
        let clusters = &self.live.clusters;
        let known = batches.into_iter().filter(|batch| clusters.has(batch.cluster.as_str()));
        let step = plane.discover(known.flat_map(|batch| batch.changes));
        if self.step(step)
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
            self.step(step);
            info!(%cluster, "cluster forgotten");
        }
    }

    /// Says how well clusters are known, and tries again what found no room.
    pub(super) fn look_at_clusters(&mut self) {
        if self.live.behind.is_some()
            && let Some(plane) = &mut self.live.plane
        {
            let step = plane.retry();
            self.step(step);
        }
        let (now, status) = (Instant::now(), self.live.clusters.status());
        let mut problems: Vec<String> =
            status.iter().filter_map(|status| fault(status, now)).collect();
        problems.extend(self.live.behind.clone());
        self.state.readiness.set(Condition::Clusters, problems);
        self.state.set_clusters(status);
    }

    /// Brings a step into force; says whether it is.
    fn step(&mut self, step: Step) -> bool {
        match step {
            Step::Nothing => {
                self.tell_who_there_is();
                true
            }
            Step::Amended(amendment) => {
                let Some(inventory) = self.live.inventory().cloned() else { return false };
                self.state.announce_members(&amendment, &inventory);
                match self.engine.amend(&amendment) {
                    Ok(Some(_)) => {
                        self.state.accept_members(&amendment, &inventory);
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

    fn tell_who_there_is(&mut self) {
        if let Some(inventory) = self.live.inventory() {
            self.state.accept_members(&policy_compiler::Amendment::default(), inventory);
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

/// A policy that does not fit is refused as the engine refuses one.
impl From<CompileError> for EngineError {
    fn from(refused: CompileError) -> Self {
        Self::Compile(refused)
    }
}
