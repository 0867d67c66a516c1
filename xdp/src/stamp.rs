//! Under which policy, and with which identities, a session was judged.
//!
//! Not who the parties were, but whether that may have changed: one sum of counts that only move
//! when it does.

use crate::{
    address::{Address, Key, V4},
    tables::Tables,
};
use xdp_abi::{
    config::PolicyWord,
    session::{EPOCHS_USED, Stamp},
};

/// Which epoch an address's identity changes are counted in.
#[inline(always)]
pub fn epoch_slot(domain: u16, address: V4) -> u32 {
    let mixed = (address.mix() ^ domain as u64).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (mixed >> 40) as u32 & (EPOCHS_USED - 1)
}

/// Generation and both epochs now.
#[inline(always)]
fn current<T: Tables>(tables: &T, policy: PolicyWord, source: u32, destination: u32) -> u32 {
    policy.generation().wrapping_add(tables.epoch(source)).wrapping_add(tables.epoch(destination))
}

/// The stamp of a flow that is about to be judged. It is taken before: what changes meanwhile is
/// judged at the next packet.
#[inline(always)]
pub fn of<T: Tables<A = V4>>(tables: &T, policy: PolicyWord, key: &Key<V4>, towards: u16) -> Stamp {
    let source = epoch_slot(key.domain, key.source);
    let destination = epoch_slot(towards, key.destination);
    Stamp::new(current(tables, policy, source, destination), source, destination)
}

/// Whether nothing has changed since.
#[inline(always)]
pub fn is_current<T: Tables>(tables: &T, policy: PolicyWord, stamp: Stamp) -> bool {
    stamp.stamp() == current(tables, policy, stamp.source(), stamp.destination())
}
