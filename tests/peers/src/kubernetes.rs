//! One API server on one etcd: a cluster, as far as a watcher can tell.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use kube::{Client, Config};
use serde_json::json;

use crate::admin::Admin;
use crate::certificates::Certificates;
use crate::directory::Directory;
use crate::program::{ETCD, KUBE_APISERVER};
use crate::server::Server;

/// How long a server may take to be ready: 3 s on an idle machine, more beside other tests.
const PATIENCE: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(50);

/// Where etcd keeps everything, in the directory of a cluster.
const STORE: &str = "etcd";

/// Who may do everything; a token of a test is no secret.
const ADMIN_TOKEN: &str = "peers-admin";

/// A running API server with its etcd, on loopback ports of its own. Both are killed, and what they
/// wrote is removed, when it is dropped.
#[derive(Debug)]
pub struct Kubernetes {
    /// Before etcd, so that it is dropped first: an API server whose etcd is gone complains.
    api: Option<Server>,
    etcd: Server,
    etcd_port: u16,
    port: u16,
    options: Vec<String>,
    directory: Directory,
}

impl Kubernetes {
    /// Starts both and waits until the API server is ready.
    ///
    /// # Errors
    ///
    /// When one of them ends or is not ready in time; the error has what it said.
    pub async fn start() -> Result<Self> {
        Self::start_with(&[]).await
    }

    /// Starts both, the API server with these options beside the usual ones.
    ///
    /// # Errors
    ///
    /// When one of them ends or is not ready in time; the error has what it said.
    pub async fn start_with(options: &[&str]) -> Result<Self> {
        Self::begin(Directory::new()?, options).await
    }

    /// Starts both with what a cluster held that was [saved](Self::save) there.
    ///
    /// # Errors
    ///
    /// As [`Self::start`], or when it cannot be copied.
    pub async fn start_from(saved: &Path) -> Result<Self> {
        let directory = Directory::new()?;
        copy(saved, &directory.path().join(STORE))
            .with_context(|| format!("cannot copy {}", saved.display()))?;
        Self::begin(directory, &[]).await
    }

    /// Ends both, and keeps what the cluster held in a directory that is not there yet.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn save(self, to: &Path) -> Result<()> {
        let Self { api, etcd, directory, .. } = self;
        drop(api);
        drop(etcd);
        let half = to.with_extension("half");
        // Of a run that was broken off.
        let _ = fs::remove_dir_all(&half);
        copy(&directory.path().join(STORE), &half)
            .and_then(|()| fs::rename(&half, to))
            .with_context(|| format!("cannot write {}", to.display()))
    }

    async fn begin(directory: Directory, options: &[&str]) -> Result<Self> {
        let certificates = Certificates::new()?;
        directory.write("ca.pem", &certificates.authority)?;
        directory.write("server.pem", &certificates.certificate)?;
        directory.write("server.key", &certificates.key)?;
        let accounts = Certificates::new()?;
        directory.write("accounts.pem", &accounts.certificate)?;
        directory.write("accounts.key", &accounts.key)?;
        directory.write("tokens.csv", &format!("{ADMIN_TOKEN},admin,1,system:masters\n"))?;
        let (etcd_port, peer_port) = (free_port()?, free_port()?);
        let etcd =
            Server::start(&ETCD, &etcd_arguments(&directory, etcd_port, peer_port), &directory)?;
        let mut cluster = Self {
            api: None,
            etcd,
            etcd_port,
            port: free_port()?,
            options: options.iter().map(|&option| option.to_owned()).collect(),
            directory,
        };
        let store = Admin::new(plain(etcd_port)?);
        let start = Instant::now();
        while !store.is_ok("/health").await {
            cluster.etcd.lives()?;
            let said = || format!("etcd is not ready: {}", cluster.etcd.said());
            anyhow::ensure!(start.elapsed() < PATIENCE, said());
            tokio::time::sleep(PAUSE).await;
        }
        cluster.start_api().await?;
        Ok(cluster)
    }

    /// Starts the API server if it is not running, where it was before, and waits for it.
    ///
    /// # Errors
    ///
    /// When it ends or is not ready in time; the error has what it said.
    pub async fn start_api(&mut self) -> Result<()> {
        if self.api.is_none() {
            self.api = Some(self.launch(self.port).await?);
        }
        Ok(())
    }

    /// Kills the API server; what it kept stays in etcd.
    pub fn stop_api(&mut self) {
        self.api = None;
    }

    /// A second API server on the same etcd, for as long as it is held, and a client to it. Through
    /// it a test changes objects while the first is away.
    ///
    /// # Errors
    ///
    /// When it ends or is not ready in time; the error has what it said.
    pub async fn second_api(&self) -> Result<(impl Drop + use<>, Admin)> {
        let port = free_port()?;
        let server = self.launch(port).await?;
        Ok((server, Admin::new(self.client(port)?)))
    }

    async fn launch(&self, port: u16) -> Result<Server> {
        let arguments = self.api_arguments(port);
        let mut server = Server::start(&KUBE_APISERVER, &arguments, &self.directory)?;
        let client = Admin::new(self.client(port)?);
        let start = Instant::now();
        while !client.is_ok("/readyz").await {
            server.lives()?;
            let said = || format!("kube-apiserver is not ready: {}", server.said());
            anyhow::ensure!(start.elapsed() < PATIENCE, said());
            tokio::time::sleep(PAUSE).await;
        }
        Ok(server)
    }

    fn api_arguments(&self, port: u16) -> Vec<String> {
        let file = |name: &str| self.directory.path().join(name).display().to_string();
        let mut arguments = vec![
            format!("--etcd-servers=http://127.0.0.1:{}", self.etcd_port),
            "--bind-address=127.0.0.1".to_owned(),
            // The machine may have no other address, and nobody asks for the service `kubernetes`.
            "--advertise-address=127.0.0.1".to_owned(),
            "--endpoint-reconciler-type=none".to_owned(),
            format!("--secure-port={port}"),
            format!("--cert-dir={}", self.directory.path().display()),
            format!("--tls-cert-file={}", file("server.pem")),
            format!("--tls-private-key-file={}", file("server.key")),
            format!("--token-auth-file={}", file("tokens.csv")),
            "--authorization-mode=RBAC".to_owned(),
            format!("--service-account-key-file={}", file("accounts.pem")),
            format!("--service-account-signing-key-file={}", file("accounts.key")),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            // Its controller, which would make the accounts that it asks for, is not there.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
            "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
        ];
        arguments.extend(self.options.iter().cloned());
        arguments
    }

    /// Where the API server listens.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// The certificate authority to believe.
    pub fn ca_file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// A directory for files of the test; removed with the cluster.
    pub fn files(&self) -> &Path {
        self.directory.path()
    }

    /// Writes a kubeconfig with one context, `peers`, that uses a token.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn kubeconfig(&self, token: &str) -> Result<PathBuf> {
        let file = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "peers",
            "contexts": [{"name": "peers", "context": {"cluster": "peers", "user": "peers"}}],
            "clusters": [{"name": "peers", "cluster":
                {"server": self.url(), "certificate-authority": self.ca_file()}}],
            "users": [{"name": "peers", "user": {"token": token}}],
        });
        self.directory.write("kubeconfig", &file.to_string())
    }

    /// A token that may do everything.
    pub fn admin_token(&self) -> &'static str {
        ADMIN_TOKEN
    }

    /// A client that may do everything.
    ///
    /// # Errors
    ///
    /// When its configuration does not hold together.
    pub fn admin(&self) -> Result<Admin> {
        Ok(Admin::new(self.client(self.port)?))
    }

    /// Has etcd forget every revision but the present one, so that no watch can go on from an
    /// earlier one.
    ///
    /// # Errors
    ///
    /// When etcd cannot be asked, or refuses.
    pub async fn compact(&self) -> Result<()> {
        let store = Admin::new(plain(self.etcd_port)?);
        let present = store.post("/v3/kv/range", &json!({"key": "AA=="})).await?;
        let revision = &present["header"]["revision"];
        let order = json!({"revision": revision, "physical": true});
        store.post("/v3/kv/compaction", &order).await?;
        Ok(())
    }

    /// The end of what the API server said.
    pub fn said(&self) -> String {
        self.api.as_ref().map(Server::said).unwrap_or_default()
    }

    fn client(&self, port: u16) -> Result<Client> {
        let url = format!("https://127.0.0.1:{port}").parse().context("a URL")?;
        let mut config = Config::new(url);
        config.root_cert_file = Some(self.ca_file());
        config.auth_info.token = Some(ADMIN_TOKEN.to_owned().into());
        // Whoever waits for a server wants to hear at once that it is not there.
        config.default_retry = false;
        Client::try_from(config).context("cannot make a client")
    }
}

/// A client to a server without TLS.
fn plain(port: u16) -> Result<Client> {
    let url = format!("http://127.0.0.1:{port}").parse().context("a URL")?;
    Client::try_from(Config::new(url)).context("cannot make a client")
}

fn etcd_arguments(directory: &Directory, port: u16, peer_port: u16) -> Vec<String> {
    let (clients, peers) =
        (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer_port}"));
    vec![
        format!("--data-dir={}", directory.path().join(STORE).display()),
        format!("--listen-client-urls={clients}"),
        format!("--advertise-client-urls={clients}"),
        format!("--listen-peer-urls={peers}"),
        format!("--initial-advertise-peer-urls={peers}"),
        format!("--initial-cluster=default={peers}"),
        // What a test wrote need not survive the machine.
        "--unsafe-no-fsync".to_owned(),
        "--log-level=warn".to_owned(),
    ]
}

/// Copies a directory with all that is in it.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

/// A port that nobody listens on. Somebody may take it before it is used; then the server says so.
pub(crate) fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("loopback has no port")?;
    Ok(listener.local_addr().context("a listener has an address")?.port())
}
