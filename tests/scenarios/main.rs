//! The product in the lab: the daemon as it is shipped, real clients, real servers, real time.
//!
//! Every claim is shown in four places: three-legged and one-armed, on XDP and on TC
//! ([`stand`]). Every scenario ends by the same look at what it left: nothing with a non-routable
//! source and no wrong checksum outside, no guard that had to step in, and counters that add up.

mod counters;
mod stand;

mod full;
mod look;
mod missing;
mod moves;
mod older;
mod reach;
mod refuse;
mod reload;
mod restart;
mod start;
mod taken_off;
mod unfinished;
