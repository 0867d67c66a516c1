//! The lab: the product's surroundings, made of network namespaces.
//!
//! Two clusters with the same pod addresses, a gateway, a transit side and an Internet side, as in
//! [`topology`]. Tests and the demo build the same thing, run real clients against real servers in
//! it, and look at what went over the wires. Nothing stays on the machine, also when the process is
//! killed ([`site`]).
//!
//! A scenario looks like this:
//!
//! ```no_run
//! use lab::{Config, Daemon, Hook, Lab, Need, client, plan, servers};
//!
//! # fn main() -> anyhow::Result<()> {
//! lab::require!(Need::Lab, Need::Bpffs, Need::Gateway); // or prints `SKIPPED: ...` and returns
//!
//! let lab = Lab::three_legged()?; // or `one_armed`, or `Lab::new(Shape::.., Offloads::On)`
//! let _servers = lab.serve()?; // nginx, DNS, echo, iperf3 on both sides
//! let mut config = Config::new(&lab, Hook::Xdp);
//! let mut daemon = Daemon::start(&lab, &config)?; // ready when it returns
//! let outside = lab.watch_outside()?; // captures at the far end of every way out
//!
//! let pod = &lab.pod("prod-eu", "api").netns;
//! let seen = client::whoami(pod, plan::INTERNET_SERVERS[0])?; // what we were translated to
//! assert_eq!(seen.map(|seen| seen.ip()), Some(lab.internet_address().into()));
//!
//! config.set_action("teams-to-internet", "deny");
//! daemon.reload(&config)?;
//! daemon.kill()?;
//! daemon.restart()?;
//!
//! for capture in outside {
//!     let looked = capture.stop()?.assert_clean(&[plan::NON_ROUTABLE])?;
//!     assert!(looked.ipv4 > 0 && looked.lost == 0, "{looked:?}");
//! }
//! # Ok(())
//! # }
//! ```
//!
//! - Who is where: [`plan`]; every namespace of a [`Lab`] is a field of it or of its clusters.
//! - [`Netns`]: [`Netns::run`] a program inside, [`Netns::enter`] with a closure,
//!   [`Netns::background`] for work beside the test, [`Netns::lose`] for a lossy line.
//! - [`Link`]: [`Lab::link`] finds one to take down or give another MTU. Links are made for
//!   XDP; TC scenarios that want GSO build with [`Offloads::On`], and their captures then count
//!   segments without a checksum as [`Looked::partial`].
//! - [`client`]: TCP (with chosen source ports, long-lived, compared byte by byte), UDP by sequence
//!   numbers, ping, curl, DNS and iperf3.
//! - [`Api`]: a real Kubernetes API server that the gateway watches ([`Config::watch`]).
//! - [`baseline`]: the same network with nftables in place of the daemon.
//! - The daemon's files are in [`Site::files`], its pins in [`Site::pins`].
//!
//! By hand, `sluice-lab` builds a lab and runs a shell in it.

pub mod baseline;
pub mod capture;
pub mod client;
pub mod config;
pub mod daemon;
pub mod dns;
pub mod frames;
mod kubernetes;
pub mod link;
pub mod netns;
mod packet_socket;
pub mod plan;
pub mod process;
pub mod programs;
pub mod servers;
pub mod site;
pub mod skip;
pub mod topology;

pub use capture::{Capture, Captured, Looked, Watch};
pub use config::{Config, Hook};
pub use daemon::Daemon;
pub use frames::{Fault, Frame};
pub use kubernetes::Api;
pub use link::{End, Link, Offloads};
pub use netns::{Background, Netns, Stop};
pub use process::Process;
pub use servers::Servers;
pub use site::Site;
pub use skip::Need;
pub use topology::{Cluster, Lab, Pod, Shape};
