//! The way of a packet whose session is known and unchanged: one dependent memory access.
//!
//! Whatever is not plain (expired, judged under another policy, SYN, FIN, RST, a next hop that
//! is not resolved, a counter about to spill) is [`Left`] here to [`crate::decide`].

use crate::{
    address::{Address, Entry, Key, Rewrite, V4},
    session::{idle, seems_expired},
    stamp::is_current,
    table,
    tables::{Tables, is_non_routable},
    tcp,
};
use xdp_abi::{
    config::PolicyWord,
    forward::{HOP_REFRESH, HOP_RESOLVED, HOP_ROUTABLE, Hop},
    session::{Class, Count, sender},
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

/// Why a packet is not replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Its key is not in the table.
    Unknown,
    /// Its session is not plain, or not now.
    Special,
}

/// Replays what was decided for the session of `key`, if its next hop is one that the caller can
/// send to, or leaves the packet to `decide`; then nothing is counted. `from` is the hardware address
/// that sent the packet.
#[inline(always)]
pub fn replay<T: Tables<A = V4>>(
    tables: &T,
    key: &Key<V4>,
    flags: u8,
    length: u16,
    now: u32,
    usable: impl FnOnce(&Hop) -> bool,
    from: impl FnOnce() -> [u8; 6],
) -> Result<Replay<V4>, Left> {
    let Some((found, entry)) = table::find_entry(tables, &V4::pack(key)) else {
        return Err(Left::Unknown);
    };
    let config = tables.config();
    let rewrite = entry.rewrite();
    let link = entry.load_link();
    let stamp = entry.load_stamp();
    let current = is_current(tables, PolicyWord(config.policy.load()), stamp);
    let class = found.meta.class();
    if flags & (tcp::SYN | tcp::FIN | tcp::RST) != 0
        || !current
        || matches!(class, Class::TcpReset | Class::Resting)
        || seems_expired(config, found.meta, now)
        || Count(entry.count().load()).is_high()
    {
        return Err(Left::Special);
    }
    let Some(hop) = tables.hop(link.next_hop()) else { return Err(Left::Special) };
    if !hop.is(HOP_RESOLVED)
        || length > hop.mtu()
        || hop.is(HOP_REFRESH) && idle(now, hop.tick()) > HOP_AGE
        || hop.is(HOP_ROUTABLE) && is_non_routable(config, rewrite.source)
        || !usable(&hop)
    {
        return Err(Left::Special);
    }
    // The slot may have changed hands while it was read.
    if !entry.load_meta().same_owner(found.meta) {
        return Err(Left::Special);
    }
    if now != found.meta.tick() {
        // Answers go to whoever sends now.
        if !link.is_reply() && found.meta.sender() != sender(from()) {
            return Err(Left::Special);
        }
        // Losing means that another packet did the same, or that the session is being ended.
        entry.meta().replace(found.meta.0, found.meta.with_tick(now).0);
    }
    if flags & !link.tcp_flags() != 0 {
        entry.link().fetch_or((flags as u64) << 8);
    }
    entry.count().add(Count::new(1, length as u64).0);
    Ok(Replay { rewrite, hop, reply: link.is_reply() })
}
