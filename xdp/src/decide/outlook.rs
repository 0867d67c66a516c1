//! What would be said of a live session that is to be judged again.
//!
//! The steps are those of a packet ([`super::reconsider`]), over tables that are only read: nothing
//! is ended, and nothing written down. For `explain`.

use super::{Plan, Way, again::Doom, reconsider};
use crate::{
    address::{Key, V4},
    arrival::Arrival,
    packet::Packet,
    policy::Judgement,
    table::Found,
    tables::Tables,
    verdict::Code,
};
use xdp_abi::{
    forward::{Attachment, Hop},
    reason::Reason,
};

/// What judging a session again comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outlook {
    /// What its first packet carried; it is judged by that.
    pub key: Key<V4>,
    /// The domain that it leads into.
    pub towards: u16,
    /// The interface that its first packet would come in by now; zero: none is left.
    pub from: u32,
    /// What the rules say.
    pub judgement: Judgement,
    /// Its way out, if that was looked up again and there is one.
    pub exit: Option<Exit>,
    /// What becomes of it.
    pub sequel: Sequel,
}

/// A way out that was looked up again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The attachment ahead, by number.
    pub number: u16,
    /// The attachment itself.
    pub attachment: Attachment,
    /// The next hop.
    pub hop: Hop,
}

/// What becomes of a session that is judged again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sequel {
    /// It goes on.
    Kept,
    /// It ends: the rules no longer permit it.
    Revoked,
    /// It ends: its translation, or the way that it took, is no longer to be had.
    Withdrawn,
    /// The packet is dropped, and the next one asks again.
    Waits(Reason),
}

/// The outlook of the session that an entry belongs to, for a packet that comes in by an
/// attachment at tick `now`.
pub fn outlook<T: Tables<A = V4>>(
    tables: &T,
    found: &Found,
    (number, attachment): (u16, &Attachment),
    now: u32,
) -> Outlook {
    let arrival = Arrival { now, ..Arrival::NONE };
    let way = Way::new(tables, &Packet::NONE, &arrival, number, attachment);
    let (mut plan, mut doom) = (Plan::NONE, Doom::NONE);
    let code = reconsider(&way, found, &mut plan, &mut doom);
    let sequel = if code.is(Code::GO_ON) {
        Sequel::Kept
    } else if !code.is(Code::END) {
        Sequel::Waits(code.reason())
    } else if doom.is_withdrawn() {
        Sequel::Withdrawn
    } else {
        Sequel::Revoked
    };
    let exit = Exit { number: plan.egress_number, attachment: plan.egress, hop: plan.hop };
    Outlook {
        key: doom.key,
        towards: doom.towards,
        from: doom.from,
        judgement: plan.judgement,
        exit: (exit.number != 0).then_some(exit),
        sequel,
    }
}
