//! The first guard of invariant 1: no packet leaves with a source that nobody outside can answer.
//!
//! It looks at the header as it will be, right before it is sent, whatever was decided.

use crate::{
    address::V4,
    tables::{Tables, Tally, is_non_routable},
};
use xdp_abi::forward::{HOP_ROUTABLE, Hop};

/// Whether a source must not be seen ahead of this attachment, if that is routable.
#[inline(always)]
pub fn is_confined<T: Tables<A = V4>>(tables: &T, attachment: u16, source: V4) -> bool {
    is_non_routable(tables.config(), source) && !tables.carries(attachment, source)
}

/// Whether a packet with this source must not leave by a hop; that it was stopped is counted.
#[inline(always)]
pub fn stops<T: Tables<A = V4>>(tables: &T, hop: &Hop, source: V4) -> bool {
    let leaks = hop.is(HOP_ROUTABLE) && is_confined(tables, hop.attachment(), source);
    if leaks {
        tables.tally(Tally::LeakStopped);
    }
    leaks
}
