//! Asks a server for anything, as JSON.

use anyhow::{Context as _, Result};
use http::{Method, Request, StatusCode};
use kube::Client;
use serde_json::Value;

/// A client that may do everything. It knows no types: a test writes what it means as JSON.
#[derive(Clone)]
pub struct Admin(Client);

impl Admin {
    pub(crate) fn new(client: Client) -> Self {
        Self(client)
    }

    /// Reads what is at a path.
    ///
    /// # Errors
    ///
    /// When the server cannot be asked, or refuses.
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.ask(Method::GET, path, "application/json", None).await
    }

    /// Adds an object to the collection at a path.
    ///
    /// # Errors
    ///
    /// When the server cannot be asked, or refuses.
    pub async fn post(&self, path: &str, object: &Value) -> Result<Value> {
        self.ask(Method::POST, path, "application/json", Some(object)).await
    }

    /// Merges a change into the object at a path.
    ///
    /// # Errors
    ///
    /// When the server cannot be asked, or refuses.
    pub async fn patch(&self, path: &str, change: &Value) -> Result<Value> {
        self.ask(Method::PATCH, path, "application/merge-patch+json", Some(change)).await
    }

    /// Removes the object at a path, at once: there is no kubelet that would end a grace period.
    ///
    /// # Errors
    ///
    /// When the server cannot be asked, or refuses.
    pub async fn delete(&self, path: &str) -> Result<Value> {
        let path = format!("{path}?gracePeriodSeconds=0");
        self.ask(Method::DELETE, &path, "application/json", None).await
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        content: &str,
        body: Option<&Value>,
    ) -> Result<Value> {
        let asked = format!("{method} {path}");
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::CONTENT_TYPE, content)
            .body(body.map(|body| body.to_string().into_bytes()).unwrap_or_default())
            .with_context(|| format!("{asked} is no request"))?;
        self.0.request(request).await.with_context(|| format!("{asked} failed"))
    }

    /// Whether the server answers a path with 200.
    pub(crate) async fn is_ok(&self, path: &str) -> bool {
        let Ok(request) = Request::get(path).body(kube::client::Body::empty()) else {
            return false;
        };
        let answer = self.0.send(request).await;
        answer.is_ok_and(|answer| answer.status() == StatusCode::OK)
    }
}
