//! The kernel's own gateway: forwarding with nftables, conntrack and SNAT.
//!
//! It does what the product is asked to do: judge source and destination by a set each, for every
//! packet, so that a changed set takes effect on live flows, and translate to one outside address.

use std::fmt::Write as _;
use std::fs;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use bench_xdp::{FIRST_SOURCE, SOURCES};

use super::Dut;
use crate::object::{self, Settings};
use crate::topology::{INSIDE, OUTSIDE, OUTSIDE_ADDRESS, command, set};

/// Entries that conntrack must have room for; below it, it drops what the bench sends.
const CONNTRACK_ENTRIES: u64 = 262_144;
/// The host's limit holds for every namespace.
const CONNTRACK_MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

/// The kernel's forwarding path in the device's namespace.
pub(crate) struct Nftables {
    /// Frames come out of a veth in NAPI only below an XDP program.
    napi: Option<Ebpf>,
    /// Held, to be given back at the end.
    _limit: Option<Limit>,
}

impl Nftables {
    /// To be called outside the device's namespace: the limit of conntrack is the host's.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { napi: None, _limit: Limit::raise()? })
    }
}

impl Dut for Nftables {
    fn name(&self) -> &'static str {
        "nftables"
    }

    fn translates(&self) -> bool {
        true
    }

    fn set_up(&mut self) -> Result<()> {
        command("nft", &["-f", "-"], &ruleset())?;
        for (key, value) in [
            ("net/ipv4/ip_forward", "1"),
            // A one-way UDP flow is forgotten after 30 s; a bench may take longer to come back.
            ("net/netfilter/nf_conntrack_udp_timeout", "3600"),
            ("net/netfilter/nf_conntrack_udp_timeout_stream", "3600"),
        ] {
            set(key, value)?;
        }
        let napi = self.napi.insert(object::load("pass", Settings::default())?);
        object::attach(napi, "pass", INSIDE)
    }

    fn forget_flows(&mut self) -> Result<()> {
        command("conntrack", &["-F"], "")
    }
}

/// Pods as single addresses and servers as prefixes: a hash and an interval set.
fn ruleset() -> String {
    let mut pods = String::new();
    for address in FIRST_SOURCE..FIRST_SOURCE + SOURCES {
        // Writing to a string cannot fail.
        let _ = write!(pods, "{},", std::net::Ipv4Addr::from(address));
    }
    let decoys: String = (0..=255).map(|net| format!("203.0.{net}.0/25,")).collect();
    format!(
        "table ip gateway {{
            set pods {{ type ipv4_addr; elements = {{ {pods} }} }}
            set servers {{ type ipv4_addr; flags interval; elements = {{ 198.18.0.0/15,{decoys} }} }}
            chain forward {{
                type filter hook forward priority filter; policy drop;
                ip saddr @pods ip daddr @servers counter accept
                iifname {outside} ct state established accept
            }}
            chain postrouting {{
                type nat hook postrouting priority srcnat;
                oifname {outside} ip saddr 100.64.0.0/10 snat to {OUTSIDE_ADDRESS}
            }}
        }}
        ",
        outside = OUTSIDE.name
    )
}

/// The host's conntrack limit while it is raised; it goes back to what it was.
struct Limit {
    before: String,
}

impl Limit {
    /// `None` when the limit is high enough as it is.
    fn raise() -> Result<Option<Self>> {
        let before = fs::read_to_string(CONNTRACK_MAX).context("cannot read nf_conntrack_max")?;
        if before.trim().parse::<u64>().is_ok_and(|limit| limit >= CONNTRACK_ENTRIES) {
            return Ok(None);
        }
        set_limit(&CONNTRACK_ENTRIES.to_string()).context("cannot raise nf_conntrack_max")?;
        Ok(Some(Self { before }))
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        if let Err(error) = set_limit(&self.before) {
            eprintln!("nf_conntrack_max stays raised: {error}");
        }
    }
}

fn set_limit(value: &str) -> std::io::Result<()> {
    fs::write(CONNTRACK_MAX, value.trim())
}
