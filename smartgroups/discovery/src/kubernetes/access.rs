//! How a cluster is reached, and as whom.
//!
//! Settings name files, never secrets, and what they name is read again: kube reads token and authority
//! files every minute and runs plugins before a token expires; a server that no longer knows who we are
//! has the client made anew, kubeconfig and all. So has a token that is issued and grows old, while it is
//! still good: watches that run go on with the old client. No error quotes what stands in those files or what a
//! plugin printed, for that is where the secrets are.

use std::error::Error;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use kube::client::AuthError;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use tokio::sync::Mutex;
use tracing::warn;

use super::issuer::{IssueError, Issuer};
use super::token;

/// How long making a client may take: a plugin may ask a cloud.
const LONGEST: Duration = Duration::from_secs(30);
/// How long it takes until a token is asked for again that was not issued, while another one is good.
const AFTER_REFUSAL: Duration = Duration::from_secs(15);
/// A client younger than this is not the reason for what failed.
const YOUNGEST: Duration = Duration::from_secs(5);

/// How a cluster is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// As a kubeconfig says: with a certificate, a token, a token file or a plugin.
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Which of its contexts, if not its current one.
        context: Option<String>,
    },
    /// As the service account of the pod that this runs in.
    InCluster,
    /// By a token in a file.
    Token {
        /// The server, as `https://host:port`.
        server: String,
        /// The token; read again every minute.
        token_file: PathBuf,
        /// The certificates to believe, if not those of the machine; read again every minute.
        ca_file: Option<PathBuf>,
    },
    /// By tokens that somebody issues, each asked for before the last one ends.
    Issued {
        /// The server, as `https://host:port`.
        server: String,
        /// Who issues them.
        issuer: Issuer,
        /// The certificates to believe, if not those of the machine; read again every minute.
        ca_file: Option<PathBuf>,
    },
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A kubeconfig does not say what is needed.
    #[error("kubeconfig {path}: {why}")]
    Kubeconfig {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// This does not run in a pod.
    #[error("there is no service account to use: {0}")]
    InCluster(String),
    /// The server is no URL.
    #[error("`{0}` is no URL of a server, such as https://host:6443")]
    Server(String),
    /// It was all said, but does not make a client.
    #[error("cannot make a client: {0}")]
    Client(String),
    /// There is no token.
    #[error("no token is issued")]
    NoToken(#[source] IssueError),
    /// A plugin, most likely, does not end.
    #[error("making a client took longer than {} s", LONGEST.as_secs())]
    Slow,
}

/// The client of one cluster, made when it is first needed and again when it is refused.
#[derive(Debug)]
pub(crate) struct Connector {
    access: Access,
    current: Mutex<Current>,
}

#[derive(Default)]
struct Current {
    client: Option<Client>,
    number: u64,
    made: Option<Instant>,
    /// A file with the token that is used.
    token_file: Option<PathBuf>,
    /// Until when a token is good that was issued.
    issued: Option<Issued>,
}

/// When a token was issued, and how long it is good.
#[derive(Clone, Copy, Debug)]
struct Issued {
    at: SystemTime,
    expires: SystemTime,
    /// When it is asked for another one.
    renewed: SystemTime,
}

impl Issued {
    /// After two thirds of its life there is another one.
    fn new(at: SystemTime, expires: SystemTime) -> Self {
        let life = expires.duration_since(at).unwrap_or_default();
        Self { at, expires, renewed: at + life * 2 / 3 }
    }

    /// Whether another one is needed. A clock that was turned back says nothing of the token's age.
    fn is_old(&self, now: SystemTime) -> bool {
        now >= self.renewed || now < self.at
    }
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Connector {
    pub(crate) fn new(access: Access) -> Self {
        Self { access, current: Mutex::default() }
    }

    /// The client and its number.
    pub(crate) async fn client(&self) -> Result<(u64, Client), AccessError> {
        self.client_at(SystemTime::now()).await
    }

    async fn client_at(&self, now: SystemTime) -> Result<(u64, Client), AccessError> {
        let current = &mut *self.current.lock().await;
        let is_old = current.issued.is_some_and(|issued| issued.is_old(now));
        if let Some(client) = current.client.as_ref().filter(|_| !is_old) {
            return Ok((current.number, client.clone()));
        }
        match self.make(current, now).await {
            Ok(made) => Ok(made),
            // What there is will do, as long as it is good.
            Err(failed) => match (&current.client, &mut current.issued) {
                (Some(client), Some(issued)) if now < issued.expires => {
                    warn!("a token could not be renewed yet: {}", plainly(&failed));
                    issued.renewed = issued.expires.min(now + AFTER_REFUSAL);
                    Ok((current.number, client.clone()))
                }
                _ => Err(failed),
            },
        }
    }

    /// Makes a client in place of the one there is, if that can be done.
    async fn make(
        &self,
        current: &mut Current,
        now: SystemTime,
    ) -> Result<(u64, Client), AccessError> {
        let (mut config, mut issued) = (self.access.config().await?, None);
        if let Access::Issued { issuer, .. } = &self.access {
            let token = tokio::time::timeout(LONGEST, issuer.issue()).await;
            let token = token.map_err(|_| AccessError::Slow)?.map_err(AccessError::NoToken)?;
            issued = Some(Issued::new(now, token.expires));
            config.auth_info.token = Some(token.secret.into());
        }
        let token_file = config.auth_info.token_file.clone().map(PathBuf::from);
        // It runs the plugin and reads files, waiting for both.
        let making = tokio::task::spawn_blocking(move || Client::try_from(config));
        let client = tokio::time::timeout(LONGEST, making)
            .await
            .map_err(|_| AccessError::Slow)?
            .map_err(|error| AccessError::Client(error.to_string()))?
            .map_err(|error| AccessError::Client(plainly(&error)))?;
        current.number += 1;
        current.client = Some(client.clone());
        current.made = Some(Instant::now());
        current.token_file = token_file;
        current.issued = issued;
        Ok((current.number, client))
    }

    /// Has the client made anew, if it is still the one of this number and not just made.
    pub(crate) async fn renew(&self, number: u64) {
        let mut current = self.current.lock().await;
        let old = current.made.is_none_or(|made| made.elapsed() >= YOUNGEST);
        if current.number == number && old {
            current.client = None;
        }
    }

    /// Until when the credentials are good, where that is known: of tokens that are issued, of tokens in
    /// files that say so, and of certificates that a plugin gave.
    pub(crate) async fn expiry(&self) -> Option<SystemTime> {
        let (client, file) = {
            let current = self.current.lock().await;
            if let Some(issued) = &current.issued {
                return Some(issued.expires);
            }
            (current.client.clone()?, current.token_file.clone())
        };
        let certificate = client.valid_until().as_ref().and_then(|until| {
            let seconds = u64::try_from(until.as_second()).ok()?;
            SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
        });
        certificate.or_else(|| token::expiry(&fs::read_to_string(file?).ok()?))
    }
}

impl Access {
    async fn config(&self) -> Result<Config, AccessError> {
        let mut config = match self {
            Self::Kubeconfig { path, context } => {
                let fault = |error: KubeconfigError| {
                    if let KubeconfigError::ReadConfig(source, path) = error {
                        return AccessError::Read { path, source };
                    }
                    AccessError::Kubeconfig { path: path.clone(), why: plainly(&error) }
                };
                let file = Kubeconfig::read_from(path).map_err(fault)?;
                let options = KubeConfigOptions { context: context.clone(), ..Default::default() };
                Config::from_custom_kubeconfig(file, &options).await.map_err(fault)?
            }
            Self::InCluster => {
                Config::incluster().map_err(|error| AccessError::InCluster(plainly(&error)))?
            }
            Self::Issued { server, ca_file, .. } => at_server(server, ca_file.as_ref())?,
            Self::Token { server, token_file, ca_file } => {
                let mut config = at_server(server, ca_file.as_ref())?;
                let token = fs::read_to_string(token_file)
                    .map_err(|source| AccessError::Read { path: token_file.clone(), source })?;
                // kube reads the file again by itself, but takes a newline at its end for a part of it.
                if token.trim() == token {
                    config.auth_info.token_file = Some(token_file.display().to_string());
                } else {
                    config.auth_info.token = Some(token.trim().to_owned().into());
                }
                config
            }
        };
        // Whoever watches has pauses of its own, and says why.
        config.default_retry = false;
        Ok(config)
    }
}

/// A server, and which certificates are believed of it.
fn at_server(server: &str, ca_file: Option<&PathBuf>) -> Result<Config, AccessError> {
    let url: http::Uri = server.parse().map_err(|_| AccessError::Server(server.to_owned()))?;
    if url.scheme_str() != Some("https") || url.host().is_none() {
        return Err(AccessError::Server(server.to_owned()));
    }
    if let Some(path) = ca_file {
        fs::metadata(path).map_err(|source| AccessError::Read { path: path.clone(), source })?;
    }
    let mut config = Config::new(url);
    config.root_cert_file = ca_file.cloned();
    Ok(config)
}

/// What an error says, without what a secret may stand in.
pub(crate) fn plainly(error: &(dyn Error + 'static)) -> String {
    let mut said: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(safe) = without_secrets(error) {
            return safe;
        }
        let text = error.to_string();
        // Many say what their cause says again.
        said.retain(|outer| !outer.contains(&text));
        said.push(text);
        next = error.source();
    }
    said.join(": ")
}

/// What is said of errors that quote files or programs with secrets.
fn without_secrets(error: &(dyn Error + 'static)) -> Option<String> {
    if let Some(KubeconfigError::Parse(_)) = error.downcast_ref() {
        return Some("it is no kubeconfig in YAML".to_owned());
    }
    match error.downcast_ref() {
        // The command is quoted with its environment and arguments.
        Some(AuthError::AuthExecRun { out, .. }) => {
            Some(format!("the plugin failed: {}", out.status))
        }
        Some(AuthError::AuthExecParse(_)) => Some("the plugin's answer cannot be read".to_owned()),
        Some(_) | None => None,
    }
}

#[cfg(test)]
mod tests;
