//! The kernel side of the gateway, as user space holds it: the loaded object, its maps, what
//! is attached where.

pub mod attach;
pub mod backlog;
pub(crate) mod behind;
pub mod carry;
pub mod claim;
pub mod clock;
pub mod filter;
pub mod hops;
pub mod layout;
mod link;
pub mod managed;
mod members;
pub mod memory;
mod nested;
mod non_routable;
pub mod numbers;
pub mod object;
pub mod pairs;
pub mod places;
pub mod plan;
pub mod publish;
pub mod recycle;
pub mod settings;
#[cfg(test)]
mod stack;
pub mod tables;
