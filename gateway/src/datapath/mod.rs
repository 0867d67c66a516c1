//! The kernel side of the gateway, as user space holds it: the loaded object, its maps, what
//! is attached where.

pub mod memory;
pub mod object;
