//! The gateway's view of the host network, and the few things it sets there.
//!
//! Everything goes through netlink and `/proc/sys`: no command is called and no command's
//! output is read, so nothing depends on which tools are installed or how they print. There is
//! no crate of message types either, only the few attributes that are used: see `wire`.
//!
//! - [`Follower`]: links, addresses, routes and neighbours as they are, and events when they
//!   change;
//! - [`manage_neighbour`]: next hops that the kernel keeps resolved, also without the daemon;
//! - [`ports_in_use`], [`Sysctl::ephemeral_range`]: ports of the host that SNAT leaves alone;
//! - [`Sysctl`]: whether the kernel forwards;
//! - [`guard`]: the last guard against leaks, which holds with no program attached;
//! - [`filter_program`]: whether a TC filter is still where it was put;
//! - [`xdp_features`]: what XDP may do on an interface, for choosing the hook.
//!
//! All of it is about the network namespace of the calling thread.

mod dialogue;
mod filter;
mod follow;
#[cfg(feature = "fuzz")]
pub mod foreign;
pub mod guard;
mod hardware;
mod neighbour;
mod notice;
mod picture;
mod ports;
mod sysctl;
#[cfg(test)]
pub(crate) mod testing;
mod wire;

pub use dialogue::{Family, NetlinkError};
pub use filter::{CLSACT_EGRESS, CLSACT_INGRESS, FilterPlace, filter_program};
pub use follow::Follower;
pub use hardware::{XdpFeatures, xdp_features};
pub use neighbour::{KeptBy, manage_neighbour, release_neighbour, release_neighbours};
pub use picture::{
    Address, AddressKey, Concern, Hop, IfIndex, Link, Mac, Neighbour, NeighbourKey, NeighbourState,
    NetworkEvent, NetworkState, Route, RouteKey, RouteKind, RouteMtu,
};
pub use ports::{PortInUse, Transport, ports_in_use};
pub use sysctl::{Sysctl, SysctlError};

/// Whether the kernel would take this as the name of an interface: 1 to 15 bytes, no slash, no
/// colon, no space, and neither `.` nor `..`, since it becomes the name of a directory.
fn is_interface_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.bytes().any(|byte| matches!(byte, b'/' | b':' | 0) || byte.is_ascii_whitespace())
}
