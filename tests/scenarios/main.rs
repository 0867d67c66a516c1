//! The product in the lab: the daemon as it is shipped, real clients, real servers, real time.
//!
//! Every claim about traffic is shown in four places: three-legged and one-armed, on XDP and on TC
//! ([`stand`]). Excepted is what some place does not have: what TC alone leaves to devices is shown in
//! both shapes, and how a veth gets its hook three-legged ([`unfinished`]); an interface that changes
//! its hook in both shapes, interfaces with different hooks beside one another three-legged
//! ([`hooks`]). Each of these ends by the same look at what it left: nothing with a non-routable source and no wrong checksum outside, no
//! guard that had to step in, and counters that add up. [`start`] is about starts that are refused
//! and about what a start needs: no client sends anything there, so there is nothing to look at.

mod counters;
mod stand;

mod full;
mod hooks;
mod identity;
mod look;
mod missing;
mod moves;
mod names;
mod older;
mod reach;
mod refuse;
mod reload;
mod restart;
mod start;
mod taken_off;
mod unfinished;
