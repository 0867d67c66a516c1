//! Who is behind which address.
//!
//! An [`Inventory`] holds what discovery found (pods, nodes, virtual machines, subnets, sites)
//! and a [`SmartGroup`] says by selectors which of it belongs together. [`resolve()`] turns both
//! into a [`Membership`]: for every address of every routing domain the exact set of groups that
//! hold it, as one table of hosts and one of prefixes that longest-prefix match can read.
//!
//! The types are plain data without a wire format: what an operator writes is defined once, in
//! the API, and becomes these types after it was checked. Nothing here reads a clock, a file or a
//! socket, so whoever asks twice gets the same answer twice.
//!
//! What is clever (inverted selector index, interned sets, nested prefixes by one sorted walk) has
//! a slow twin, [`groups_of`], that asks every selector about every endpoint; a property test
//! holds the two together.

mod cells;
mod change;
mod check;
mod endpoint;
mod expression;
mod formula;
mod group;
mod id;
mod index;
mod interner;
mod inventory;
mod members;
mod membership;
mod public;
mod resolve;
mod table;
mod text;

pub use change::{Change, Subject};
pub use check::ResolveError;
pub use endpoint::{DomainId, Endpoint, EndpointKind, Workload};
pub use expression::{Expression, Operator};
pub use group::{
    ANYWHERE, GroupId, PUBLIC_INTERNET, Selector, SmartGroup, Truth, groups_of, holds,
};
pub use id::{stable_id, stable_id_of_bytes, stable_ids};
pub use inventory::{Conflict, Inventory, NamespaceId};
pub use members::{Member, Reason, Way, members};
pub use membership::{GroupSet, Membership, longest_match};
pub use public::is_public;
pub use resolve::{Delta, ExtraPrefix, Resolver, resolve};
pub use table::AddressTable;
pub use text::{Labels, Pool, Text};
