//! Who issues tokens for a cluster, where nobody writes them into a file.
//!
//! A cloud signs them, and this crate knows no cloud: it is handed a function.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

/// A token, and until when the server takes it.
#[derive(Clone, PartialEq, Eq)]
pub struct IssuedToken {
    /// What is sent. Whoever has it is us.
    pub secret: String,
    /// Until when.
    pub expires: SystemTime,
}

/// Without the secret.
impl fmt::Debug for IssuedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuedToken").field("expires", &self.expires).finish_non_exhaustive()
    }
}

/// Why there is no token; it says so without a secret.
pub type IssueError = Box<dyn Error + Send + Sync>;

type Issuing = Pin<Box<dyn Future<Output = Result<IssuedToken, IssueError>> + Send>>;

/// Issues a token whenever it is asked.
#[derive(Clone)]
pub struct Issuer {
    name: Arc<str>,
    issue: Arc<dyn Fn() -> Issuing + Send + Sync>,
}

impl Issuer {
    /// Two issuers of one name issue tokens for the same cluster and the same identity: settings that
    /// differ in nothing else are the same.
    pub fn new<F, R>(name: impl Into<Arc<str>>, issue: F) -> Self
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<IssuedToken, IssueError>> + Send + 'static,
    {
        Self { name: name.into(), issue: Arc::new(move || Box::pin(issue())) }
    }

    pub(crate) async fn issue(&self) -> Result<IssuedToken, IssueError> {
        (self.issue)().await
    }
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Issuer").field(&self.name).finish()
    }
}

impl PartialEq for Issuer {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Issuer {}
