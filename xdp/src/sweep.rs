//! Sessions whose time is over, looked for and ended.

use crate::{
    address::{Entry, V4},
    session::{Ending, end, seems_expired},
    table,
    tables::Tables,
};
use xdp_abi::{
    control::{SWEEP_ENDS, SWEEP_SLOTS},
    session::State,
};

/// Ends sessions whose time is over among the next slots of the table, and says how many slots
/// were looked at: all that a turn may look at, unless it ended all that it may.
#[inline(always)]
pub fn sweep_turn<T: Tables<A = V4>>(tables: &T, from: u32, now: u32) -> u32 {
    let mut looked = 0;
    T::repeat(SWEEP_ENDS, || {
        looked += sweep(tables, from.wrapping_add(looked), SWEEP_SLOTS.wrapping_sub(looked), now);
        looked >= SWEEP_SLOTS
    });
    looked
}

/// Ends the first session whose time is over among `slots` slots from `from` on, around the end,
/// and says how many slots were looked at.
#[inline(never)]
pub fn sweep<T: Tables<A = V4>>(tables: &T, from: u32, slots: u32, now: u32) -> u32 {
    let mut record = NO_RECORD;
    let mut looked = 0;
    let all = table::all_slots(tables.config());
    T::repeat(slots, || {
        let index = from.wrapping_add(looked);
        record = expired(tables, if index < all { index } else { index - all }, now);
        looked += 1;
        record != NO_RECORD
    });
    if record != NO_RECORD {
        end(tables, record, Ending::EXPIRE, now);
    }
    looked
}

const NO_RECORD: u32 = u32::MAX;

/// The record of a forward entry whose time seems to be over.
#[inline(always)]
fn expired<T: Tables<A = V4>>(tables: &T, index: u32, now: u32) -> u32 {
    let Some(entry) = tables.slot(index) else { return NO_RECORD };
    let meta = entry.load_meta();
    if !meta.is(State::Live) || !seems_expired(tables.config(), meta, now) {
        return NO_RECORD;
    }
    let link = entry.load_link();
    if link.is_reply() { NO_RECORD } else { link.record() }
}
