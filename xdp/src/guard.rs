//! The first guard of invariant 1: no packet leaves with a source that nobody outside can answer.
//!
//! It looks at the header as it will be, right before it is sent, whatever was decided.

use crate::{
    address::V4,
    tables::{Tables, Tally, is_non_routable},
};
use xdp_abi::forward::{Attachment, HOP_ROUTABLE, Hop, ROUTABLE};

/// Whether a source must not be seen ahead of this attachment, if that is routable.
#[inline(always)]
pub fn is_confined<T: Tables<A = V4>>(tables: &T, attachment: u16, source: V4) -> bool {
    is_non_routable(tables.config(), source) && !tables.carries(attachment, source)
}

/// Whether a flow of a domain must not go by this attachment under this source: outside nobody can
/// answer it, and in another domain it is nobody, or somebody else.
#[inline(always)]
pub fn wants_translation<T: Tables<A = V4>>(
    tables: &T,
    domain: u16,
    source: V4,
    (number, attachment): (u16, &Attachment),
) -> bool {
    (attachment.flags & ROUTABLE != 0 || attachment.domain != domain)
        && is_confined(tables, number, source)
}

/// Whether a packet with this source must not leave by a hop.
#[inline(always)]
pub fn holds_back<T: Tables<A = V4>>(tables: &T, hop: &Hop, source: V4) -> bool {
    hop.is(HOP_ROUTABLE) && is_confined(tables, hop.attachment(), source)
}

/// The same; that a packet was stopped is counted.
#[inline(always)]
pub fn stops<T: Tables<A = V4>>(tables: &T, hop: &Hop, source: V4) -> bool {
    let leaks = holds_back(tables, hop, source);
    if leaks {
        tables.tally(Tally::LeakStopped);
    }
    leaks
}
