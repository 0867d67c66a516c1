//! The contract between Sluice and whoever operates it.
//!
//! [`document`] has what an operator states (endpoints, groups, rules, SNAT policies), in the
//! configuration file as over the API. The other modules have what a gateway answers on its local
//! socket: JSON over HTTP/1.1 under [`path`]. The daemon and `sluicectl` share these types and the
//! parser of [`filter::Filter`], so that both mean the same by the same words.
//!
//! What is stated refuses unknown fields, because a misspelt one would silently permit or deny.
//! What is answered does not, so that an older `sluicectl` understands a newer gateway.

pub mod capture;
#[cfg(feature = "client")]
pub mod client;
pub mod document;
pub mod explain;
pub mod filter;
pub mod policy;
pub mod session;
pub mod status;
pub mod value;

/// Where each resource is on the local socket.
pub mod path {
    /// `GET`: [`crate::status::Status`].
    pub const STATUS: &str = "/v1/status";
    /// `GET`, query `filter` and `limit`: [`crate::session::Sessions`].
    pub const SESSIONS: &str = "/v1/sessions";
    /// `POST` [`crate::session::ClearRequest`]: [`crate::session::ClearResponse`].
    pub const SESSIONS_CLEAR: &str = "/v1/sessions/clear";
    /// `GET`: [`crate::policy::Identities`].
    pub const IDENTITIES: &str = "/v1/identities";
    /// `GET`: [`crate::policy::Rules`].
    pub const RULES: &str = "/v1/rules";
    /// `GET`: [`crate::policy::Snat`].
    pub const SNAT: &str = "/v1/snat";
    /// `GET`: [`crate::status::Stats`].
    pub const STATS: &str = "/v1/stats";
    /// `GET`: [`crate::status::Programs`].
    pub const PROGRAMS: &str = "/v1/programs";
    /// `GET`: [`crate::status::Maps`].
    pub const MAPS: &str = "/v1/maps";
    /// `POST` [`crate::explain::ExplainRequest`]: [`crate::explain::Explanation`].
    pub const EXPLAIN: &str = "/v1/explain";
    /// `GET`, query `filter`, `count` and `seconds`: one [`crate::capture::Frame`] a line.
    pub const CAPTURE: &str = "/v1/capture";
}

/// The socket of a gateway whose configuration names no other.
pub const DEFAULT_SOCKET: &str = "/run/sluice/sluice.sock";
