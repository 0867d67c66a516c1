//! HTTP to so many peers, and for so long as each of them does its part.
//!
//! Both servers of the daemon, metrics and local API, are reached by others than its operator. Each
//! has room for so many connections ([`Limits`]), and none keeps one by being slow: not in opening
//! it (TLS), not in asking, not in taking the answer ([`Patience`]). Who is refused is closed
//! at once and counted ([`Tally`]). Only the time that an answer takes to be made has no limit here.

mod room;
mod stall;

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::debug;

pub use room::{Limits, Tallied, Tally};
use room::{Place, Room};
use stall::Stalling;

/// More than any request of the API has behind its head.
const MOST_BODY: usize = 64 << 10;

/// How long a peer may take for its part.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For opening the connection.
    pub opening: Duration,
    /// For a request, from the end of the one before; so a connection that is kept is idle for
    /// so long at most.
    pub asking: Duration,
    /// For taking the next bytes of an answer.
    pub taking: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            opening: Duration::from_secs(5),
            asking: Duration::from_secs(30),
            taking: Duration::from_secs(30),
        }
    }
}

/// What is served, and on which terms.
#[derive(Debug)]
pub struct Server {
    /// What is answered.
    pub routes: Router,
    /// To how many.
    pub limits: Limits,
    /// For how long.
    pub patience: Patience,
    /// Counts connections.
    pub tally: Arc<Tally>,
    /// What a peer that is refused is told, if it can be told at once.
    pub refusal: &'static [u8],
}

impl Server {
    /// Serves whoever comes to a listener until `end` comes, and then whoever still waits for an
    /// answer. `peer` says who it is, `open` makes a stream of a connection.
    pub async fn serve<L, P, O, S>(
        self,
        mut listener: L,
        peer: impl Fn(&L::Io, &L::Addr) -> P,
        open: impl Fn(L::Io) -> O,
        end: impl Future<Output = ()>,
    ) where
        L: Listener,
        P: Ord + Clone + Send + 'static,
        O: Future<Output = io::Result<S>> + Send + 'static,
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Self { routes, limits, patience, tally, refusal } = self;
        let routes = routes.layer(from_fn_with_state(patience.asking, whole));
        let room = Room::new(limits, tally);
        let (ending, ended) = watch::channel(());
        let mut connections = JoinSet::new();
        let mut end = pin!(end);
        loop {
            let (mut stream, address) = tokio::select! {
                () = &mut end => break,
                Some(_) = connections.join_next() => continue,
                accepted = listener.accept() => accepted,
            };
            let Some(place) = room.enter(peer(&stream, &address)) else {
                tell(&mut stream, refusal).await;
                continue;
            };
            let connection = Connection { place, patience, ended: ended.clone() };
            connections.spawn(connection.run(open(stream), routes.clone()));
        }
        drop((listener, ending));
        while connections.join_next().await.is_some() {}
    }
}

/// Writes a few words, unless that would have to wait.
async fn tell(stream: &mut (impl AsyncWrite + Unpin), words: &[u8]) {
    if !words.is_empty() {
        // Whom it does not reach sees a closed connection.
        let _ = poll_fn(|cx| Poll::Ready(Pin::new(&mut *stream).poll_write(cx, words))).await;
    }
}

struct Connection<P: Ord + Clone> {
    place: Place<P>,
    patience: Patience,
    ended: watch::Receiver<()>,
}

impl<P: Ord + Clone> Connection<P> {
    async fn run<S>(self, open: impl Future<Output = io::Result<S>>, routes: Router)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Self { place: _place, patience, mut ended } = self;
        let stream = match timeout(patience.opening, open).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return debug!(%error, "a connection could not be opened"),
            Err(_) => return debug!("a connection took too long to open"),
        };
        let serving = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(patience.asking)
            .serve_connection(
                TokioIo::new(Stalling::new(stream, patience.taking)),
                TowerToHyperService::new(routes),
            );
        let mut serving = pin!(serving);
        let served = tokio::select! {
            served = &mut serving => served,
            // Its other end was dropped.
            _ = ended.changed() => {
                serving.as_mut().graceful_shutdown();
                serving.await
            }
        };
        if let Err(error) = served {
            debug!(%error, "a connection ended early");
        }
    }
}

/// Has a request whole before it is answered, so that its end need not be waited for elsewhere.
async fn whole(State(patience): State<Duration>, request: Request, next: Next) -> Response {
    let refuse = |status: StatusCode, words: &'static str| {
        (status, [(header::CONNECTION, "close")], words).into_response()
    };
    let (head, body) = request.into_parts();
    match timeout(patience, to_bytes(body, MOST_BODY)).await {
        Ok(Ok(bytes)) => next.run(Request::from_parts(head, Body::from(bytes))).await,
        Ok(Err(_)) => refuse(StatusCode::PAYLOAD_TOO_LARGE, "the request is torn or too long\n"),
        Err(_) => refuse(StatusCode::REQUEST_TIMEOUT, "the request did not come to its end\n"),
    }
}

#[cfg(test)]
mod tests;
