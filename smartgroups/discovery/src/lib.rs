//! Watchers: what is out there, as endpoints of an inventory.
//!
//! A watcher turns what an API says into [`smartgroups::Endpoint`]s and keeps them right: it sends
//! the least change, it never empties what it can no longer see, and it says how old its knowledge
//! is. Each source is a module, and each is a pure core (objects in, changes out) in a thin shell of
//! connections and clocks.

pub mod dns;
pub mod kubernetes;
