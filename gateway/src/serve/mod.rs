//! The local API: HTTP over a unix socket, with the `/v1` types of [`api`].
//!
//! Everything that is answered is read at that moment: the tables by [`Live`], names and
//! configuration from the [`State`] that the daemon fills. Nothing here owns or caches a policy, so
//! there is nothing that could be out of step with what packets meet.

mod explain;
mod kernel;
pub(crate) mod policy;
mod problem;
mod route;
mod sessions;
mod socket;
mod state;
pub(crate) mod status;

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};

use crate::flows::Live;
pub use explain::explain;
pub(crate) use problem::asked;
pub use problem::{Refusal, no_such_method};
pub use route::ask_route;
pub use socket::{Socket, SocketError, SocketFile};
pub use state::{Condition, Connections, Discovered, InForce, Readiness, Reload, State};

/// All routes of the local API.
pub fn router<L: Live>(state: Arc<State<L>>) -> Router {
    Router::new()
        .route(api::path::STATUS, get(status::status::<L>))
        .route(api::path::SESSIONS, get(sessions::list::<L>))
        .route(api::path::SESSIONS_CLEAR, post(sessions::clear::<L>))
        .route(api::path::IDENTITIES, get(policy::identities::<L>))
        .route(api::path::RULES, get(policy::rules::<L>))
        .route(api::path::SNAT, get(policy::snat::<L>))
        .route(api::path::STATS, get(status::stats::<L>))
        .route(api::path::PROGRAMS, get(kernel::programs::<L>))
        .route(api::path::MAPS, get(kernel::maps::<L>))
        .route(api::path::EXPLAIN, post(explain::route::<L>))
        .fallback(problem::no_such_path)
        .method_not_allowed_fallback(problem::no_such_method)
        .with_state(state)
}

/// Reads bytes as the kernel's answer to where a packet would be routed.
#[cfg(feature = "fuzz")]
pub fn read_foreign_route(answer: &[u8]) {
    route::read_foreign(answer);
}

#[cfg(test)]
mod tests;
