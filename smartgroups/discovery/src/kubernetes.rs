//! The pods, services and nodes of Kubernetes clusters, watched.
//!
//! A [`Cluster`] watches five kinds of objects of one cluster, each by a task of its own, so that a
//! kind that cannot be read holds up no other, and no cluster another. What they hear meets in one
//! view, which knows who owns an address and sends [`smartgroups::Change`]s.
//!
//! **Why not the watcher of kube-rs.** It is used for connections (TLS, tokens, plugins), and its
//! watcher is not: that one retries a watch for ever with a version that the server has refused with
//! 410 at the start, does not fall back when the server knows no streaming lists, notices a silent
//! stream after 295 s, and wants the whole metadata of each object decoded, managed fields and all,
//! where this needs six of its fields. What is left after supervising all that is a loop; here it is
//! `Course`, which decides, without I/O, what to ask next, and `watch`, which asks (docs/adr/0016-own-watch.md).
//!
//! **Who owns an address.** A pod, from the moment it has one until it has ended: not until it is
//! deleted, for an ended pod keeps the address in its status while another one already uses it. A
//! pod on the network of its host never does; that is the node.
//!
//! **What is lost is frozen.** When a server cannot be reached or refuses, the last good state
//! stays, its age is told, and what was missed arrives later as a difference.

mod access;
mod cluster;
mod course;
mod endpoint;
#[cfg(feature = "fuzz")]
pub mod foreign;
mod issuer;
mod kind;
mod object;
mod owner;
mod status;
mod store;
mod token;
mod uid;
mod view;
mod watch;

pub use access::{Access, AccessError};
pub use cluster::{Batch, Cluster, Settings};
pub use endpoint::{ClusterName, ClusterNameError, Scope};
pub use issuer::{IssueError, IssuedToken, Issuer};
pub use kind::Kind;
pub use status::{ClusterStatus, KindStatus};
