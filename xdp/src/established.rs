//! The way of a packet whose session is known and unchanged: one dependent memory access.
//!
//! Whatever is not plain (expired, judged under another policy, SYN, FIN, RST, a next hop that
//! is not resolved, a counter about to spill) is `None` here and [`crate::decide`]'s.

use crate::{
    address::{Address, Entry, Key, Rewrite, V4},
    session::seems_expired,
    table,
    tables::{Tables, is_non_routable},
    tcp,
};
use xdp_abi::{
    config::PolicyWord,
    forward::{HOP_REFRESH, HOP_RESOLVED, HOP_ROUTABLE, Hop},
    session::{Class, Count},
};

/// Ticks after which a next hop is looked up in the kernel's tables again.
pub const HOP_AGE: u32 = 16;

/// What to do with an established packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replay<A> {
    /// New addresses and ports.
    pub rewrite: Rewrite<A>,
    /// Where it goes.
    pub hop: Hop,
    /// Whether it is an answer.
    pub reply: bool,
}

/// Replays what was decided for the session of `key`, or leaves the packet to `decide`.
#[inline(always)]
pub fn replay<T: Tables<A = V4>>(
    tables: &T,
    key: &Key<V4>,
    flags: u8,
    length: u16,
    now: u32,
) -> Option<Replay<V4>> {
    replay_if(tables, key, flags, length, now, |_| true)
}

/// The same, if the next hop is one that the caller can send to; nothing is counted before.
#[inline(always)]
pub fn replay_if<T: Tables<A = V4>>(
    tables: &T,
    key: &Key<V4>,
    flags: u8,
    length: u16,
    now: u32,
    usable: impl Fn(&Hop) -> bool,
) -> Option<Replay<V4>> {
    if flags & (tcp::SYN | tcp::FIN | tcp::RST) != 0 {
        return None;
    }
    let (found, entry) = table::find_entry(tables, &V4::pack(key))?;
    let config = tables.config();
    let rewrite = entry.rewrite();
    let link = entry.load_link();
    let stamp = entry.load_stamp();
    let current = PolicyWord(config.policy.load())
        .generation()
        .wrapping_add(tables.epoch(stamp.source()))
        .wrapping_add(tables.epoch(stamp.destination()));
    let class = found.meta.class();
    if stamp.stamp() != current
        || matches!(class, Class::TcpReset | Class::Resting)
        || seems_expired(config, found.meta, now)
        || Count(entry.count().load()).is_high()
    {
        return None;
    }
    let hop = tables.hop(link.next_hop())?;
    if !hop.is(HOP_RESOLVED)
        || length > hop.mtu()
        || hop.is(HOP_REFRESH) && crate::session::idle(now, hop.tick()) > HOP_AGE
        || hop.is(HOP_ROUTABLE) && is_non_routable(config, rewrite.source)
        || !usable(&hop)
    {
        return None;
    }
    // The slot may have changed hands while it was read.
    if !entry.load_meta().same_owner(found.meta) {
        return None;
    }
    if now != found.meta.tick() {
        // Losing means that another packet did the same, or that the session is being ended.
        entry.meta().replace(found.meta.0, found.meta.with_tick(now).0);
    }
    if flags & !link.tcp_flags() != 0 {
        entry.link().fetch_or((flags as u64) << 8);
    }
    entry.count().add(Count::new(1, length as u64).0);
    Some(Replay { rewrite, hop, reply: link.is_reply() })
}
