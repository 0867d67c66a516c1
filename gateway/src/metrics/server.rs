//! Who may read the metrics, and how they are served.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State as Extract};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::TEXT_FORMAT;
use tokio::net::{TcpListener, TcpStream};
use tracing::{info, warn};

use super::page::{Facts, page};
use super::tls::Certificates;
use super::token::Token;
use crate::config::Metrics;
use crate::flows::Live;
use crate::http::{Limits, Patience, Server};
use crate::serve::State;

/// Readers are few; these are far more, and far fewer than the descriptors that a process may have.
const LIMITS: Limits = Limits { all: 128, peer: 16 };

/// Why metrics are not served.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// Off loopback without a proof of who is who.
    #[error(
        "`metrics.listen` is {0}, off loopback: it wants `tls` and `token_file` beside it, or \
         `insecure: true`"
    )]
    Exposed(SocketAddr),
    /// The token cannot be used.
    #[error("`metrics.token_file` {path} cannot be used: {source}")]
    Token {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The certificate cannot be used.
    #[error("`metrics.tls` cannot be used: {0}")]
    Tls(io::Error),
    /// The address cannot be had.
    #[error("metrics cannot be served on {listen}: {source}")]
    Listen {
        /// Where.
        listen: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// What readers need to come in.
#[derive(Debug, Default)]
pub struct Access {
    /// The gateway's proof, if the connection is encrypted.
    pub certificates: Option<Certificates>,
    /// The readers' proof.
    pub token: Option<Arc<Token>>,
}

/// What a configuration asks of readers.
///
/// # Errors
/// It asks too little for where it listens, or a file cannot be used.
pub fn access(config: &Metrics) -> Result<Access, MetricsError> {
    let exposed = !config.listen.ip().is_loopback();
    if exposed && !config.insecure && (config.tls.is_none() || config.token_file.is_none()) {
        return Err(MetricsError::Exposed(config.listen));
    }
    if exposed && config.insecure {
        let listen = config.listen;
        warn!(%listen, "METRICS ARE READABLE BY EVERYBODY who reaches this address (insecure: true)");
    }
    let token = config.token_file.as_ref().map(|path| {
        let failed = |source| MetricsError::Token { path: path.display().to_string(), source };
        Token::open(path).map(Arc::new).map_err(failed)
    });
    let certificates = config.tls.clone().map(Certificates::open);
    Ok(Access {
        certificates: certificates.transpose().map_err(MetricsError::Tls)?,
        token: token.transpose()?,
    })
}

/// The pages.
pub fn routes<L: Live>(state: Arc<State<L>>, token: Option<Arc<Token>>) -> Router {
    let router = Router::new()
        .route("/metrics", get(metrics::<L>))
        .route("/healthz", get(async || "alive\n"))
        .route("/readyz", get(ready::<L>))
        .with_state(state);
    match token {
        Some(token) => router.layer(from_fn_with_state(token, ask_for_token)),
        None => router,
    }
}

async fn metrics<L: Live>(Extract(state): Extract<Arc<State<L>>>) -> Response {
    let made = tokio::task::spawn_blocking(move || {
        let facts = Facts::of(&state).map_err(|error| error.to_string())?;
        page(&facts).map_err(|error| error.to_string())
    });
    let text = made.await.map_err(|error| error.to_string()).flatten();
    match text {
        Ok(text) => ([(header::CONTENT_TYPE, TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn ready<L: Live>(Extract(state): Extract<Arc<State<L>>>) -> Response {
    let problems = state.problems();
    if problems.is_empty() {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, problems.join("\n") + "\n").into_response()
}

async fn ask_for_token(
    Extract(token): Extract<Arc<Token>>,
    request: Request,
    next: Next,
) -> Response {
    let shown = request.headers().get(header::AUTHORIZATION);
    if shown.is_some_and(|shown| token.is_shown(shown.as_bytes())) {
        return next.run(request).await;
    }
    // Who may not read keeps no connection either.
    let ask = [(header::WWW_AUTHENTICATE, "Bearer"), (header::CONNECTION, "close")];
    (StatusCode::UNAUTHORIZED, ask, "show the token: Authorization: Bearer ...\n").into_response()
}

/// An address that nobody else has, and the files for who asks there. Apart from serving, because
/// whatever may be refused is asked for before the tables are touched; who asks meanwhile waits.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    access: Access,
    /// Whose port may have been left to the kernel.
    pub address: SocketAddr,
}

impl Bound {
    /// Listens where a configuration says.
    ///
    /// # Errors
    /// See [`MetricsError`].
    pub async fn bind(config: &Metrics) -> Result<Self, MetricsError> {
        let access = access(config)?;
        let failed = |source| MetricsError::Listen { listen: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, access, address })
    }

    /// Serves the pages until `end` comes.
    pub async fn serve<L: Live>(
        self,
        state: Arc<State<L>>,
        end: impl Future<Output = ()> + Send + 'static,
    ) {
        let Self { listener, access: Access { certificates, token }, address } = self;
        info!(%address, tls = certificates.is_some(), token = token.is_some(), "metrics");
        let server = Server {
            limits: LIMITS,
            patience: Patience::default(),
            tally: Arc::clone(&state.connections.metrics),
            refusal: b"",
            routes: routes(state, token),
        };
        let peer = |_: &TcpStream, address: &SocketAddr| peer(address.ip());
        match certificates {
            Some(certificates) => {
                server.serve(listener, peer, |stream| certificates.accept(stream), end).await;
            }
            None => server.serve(listener, peer, async |stream| Ok(stream), end).await,
        }
    }
}

/// Who an address is: one host has a whole /64 of IPv6 to itself.
fn peer(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        IpAddr::V4(address) => IpAddr::V4(address),
    }
}

#[cfg(test)]
mod tests;
