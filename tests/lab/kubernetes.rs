//! A real Kubernetes API server that the gateway watches.

use std::path::{Path, PathBuf};

use anyhow::Result;
use peers::{Admin, Kubernetes};
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

use crate::Netns;

/// An API server with its etcd, where the gateway can reach it: in its namespace. Both end with it.
pub struct Api {
    runtime: Runtime,
    cluster: Kubernetes,
    gateway: Netns,
}

impl Api {
    /// Starts both and waits for them.
    ///
    /// # Errors
    ///
    /// When one of them does not start.
    pub fn start(gateway: &Netns) -> Result<Self> {
        Self::begin(gateway, Kubernetes::start())
    }

    /// The same with what a cluster held that was [saved](Self::save) there.
    ///
    /// # Errors
    ///
    /// As [`Self::start`], or when it cannot be copied.
    pub fn start_from(gateway: &Netns, saved: &Path) -> Result<Self> {
        Self::begin(gateway, Kubernetes::start_from(saved))
    }

    fn begin(
        gateway: &Netns,
        cluster: impl Future<Output = Result<Kubernetes>> + Send,
    ) -> Result<Self> {
        let (runtime, cluster) = gateway.enter(|| {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let cluster = runtime.block_on(cluster)?;
            Ok((runtime, cluster))
        })?;
        Ok(Self { runtime, cluster, gateway: gateway.clone() })
    }

    /// Ends both, and keeps what the cluster held in a directory that is not there yet.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn save(self, to: &Path) -> Result<()> {
        self.cluster.save(to)
    }

    /// Writes a kubeconfig of somebody who may do everything.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn kubeconfig(&self) -> Result<PathBuf> {
        self.cluster.kubeconfig(self.cluster.admin_token())
    }

    /// Asks the server from where the gateway is.
    ///
    /// # Errors
    ///
    /// When it refuses, or does not answer.
    pub fn ask<T: Send>(&self, ask: impl AsyncFnOnce(&Admin) -> Result<T> + Send) -> Result<T> {
        let Self { runtime, cluster, gateway } = self;
        gateway.enter(|| runtime.block_on(async { ask(&cluster.admin()?).await }))
    }

    /// Asks another server of the same etcd, while this one is away.
    ///
    /// # Errors
    ///
    /// As [`Self::ask`], or that it does not start.
    pub fn ask_beside<T: Send>(
        &self,
        ask: impl AsyncFnOnce(&Admin) -> Result<T> + Send,
    ) -> Result<T> {
        let Self { runtime, cluster, gateway } = self;
        gateway.enter(|| {
            runtime.block_on(async {
                let (_beside, admin) = cluster.second_api().await?;
                ask(&admin).await
            })
        })
    }

    /// Merges a change into an object.
    ///
    /// # Errors
    ///
    /// As [`Self::ask`].
    pub fn patch(&self, path: &str, change: &Value) -> Result<()> {
        self.ask(async |admin| admin.patch(path, change).await).map(drop)
    }

    /// Adds an object to a collection.
    ///
    /// # Errors
    ///
    /// As [`Self::ask`].
    pub fn post(&self, path: &str, object: &Value) -> Result<()> {
        self.ask(async |admin| admin.post(path, object).await).map(drop)
    }

    /// Kills the server.
    pub fn stop(&mut self) {
        self.cluster.stop_api();
    }

    /// Starts it again, where it was.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn start_again(&mut self) -> Result<()> {
        let Self { runtime, cluster, gateway } = self;
        gateway.enter(|| runtime.block_on(cluster.start_api()))
    }
}
