//! Servers of others that tests talk to.
//!
//! What Sluice discovers, it discovers from programs that other people wrote, and a fake of them
//! shows only what its author thought of. So tests start the real ones: a [`Kubernetes`] is one
//! kube-apiserver on one etcd, which is all that discovery ever sees of a cluster. There is no
//! kubelet and no scheduler, so a test writes the status of a pod itself. A [`Moto`] is an AWS that
//! others wrote.
//!
//! `scripts/peers.sh` builds them, once, into a cache outside the clone. A test begins with
//!
//! ```no_run
//! # fn a_test() {
//! peers::require!(peers::ETCD, peers::KUBE_APISERVER);
//! # }
//! ```
//!
//! which prints `SKIPPED: test: why` and returns where they were not built.

mod admin;
mod certificates;
mod directory;
mod kubernetes;
mod moto;
mod program;
mod server;

pub use admin::Admin;
pub use kubernetes::Kubernetes;
pub use moto::Moto;
pub use program::{ETCD, KUBE_APISERVER, MOTO, Program, cache, missing, say_skipped};
