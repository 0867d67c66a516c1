//! Metrics for Prometheus, and whether the gateway is alive and ready.
//!
//! `/metrics` is written anew for every reader: `page` turns what the tables say at that moment
//! into text, so that there are no counters of counters that could drift. `/healthz` says that the
//! daemon answers, `/readyz` that packets are served as configured, or why not, in sentences.
//!
//! On loopback everybody may read. Off loopback the server wants TLS and a token, or to be told
//! aloud that it shall go without ([`access`]).

mod page;
mod server;
mod tls;
mod token;

pub use page::{Facts, page};
pub use server::{Access, Bound, MetricsError, access, routes};
pub use tls::Certificates;
pub use token::Token;
