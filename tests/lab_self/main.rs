//! The lab proves itself, with nftables where the gateway's daemon will be.

mod clean;
mod config;
mod forwarding;
mod seen;
