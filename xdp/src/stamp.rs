//! Under which policy, and with which identities, a session was judged.
//!
//! Not who the parties were, but whether that may have changed: one sum of counts that only move
//! when it does.

use crate::{
    address::{Address, V4},
    tables::Tables,
};
use xdp_abi::{config::PolicyWord, session::EPOCHS_USED};

/// Which epoch an address's identity changes are counted in.
#[inline(always)]
pub fn epoch_slot(domain: u16, address: V4) -> u32 {
    let mixed = (address.mix() ^ domain as u64).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (mixed >> 40) as u32 & (EPOCHS_USED - 1)
}

/// Generation and both epochs now.
#[inline(always)]
pub fn current_stamp<T: Tables>(
    tables: &T,
    policy: PolicyWord,
    source: u32,
    destination: u32,
) -> u32 {
    policy.generation().wrapping_add(tables.epoch(source)).wrapping_add(tables.epoch(destination))
}
