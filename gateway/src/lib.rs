//! The daemon on the gateway VM, as a library: its parts are also what tests and benches use.

pub mod capture;
pub mod config;
pub mod daemon;
pub mod datapath;
pub mod engine;
mod fixed;
pub mod flows;
mod guarded;
pub mod http;
pub mod interfaces;
pub mod kept;
pub mod metrics;
pub mod net;
pub mod serve;
mod watched;
mod whole;
