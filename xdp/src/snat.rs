//! Outside ports, lent to flows.
//!
//! A port towards a destination is free exactly if no session holds its reply key: the session
//! table is the only judge, and claiming the reply key is lending the port. What is added here
//! is a way to find a free one in few steps.
//!
//! 1. The flow's own source port, if it may be lent.
//! 2. A few random ones (RFC 6056). While less than half of a range is lent, this fails once
//!    in 2^[`PROBES`].
//! 3. When all of those were taken, the pair (outside address, destination) is *hot*: it gets
//!    a bitmap, in which a set bit means taken. A clear bit may be taken as well, by a session
//!    older than the bitmap; then the claim fails, the bit is set, and the search goes on.
//!    Free and unknown bits shrink in step, so the expected number of steps stays the same up
//!    to the last port.
//!
//! No counter per destination is kept, and nothing is converted when a pair turns hot: a pair
//! turns hot only if [`PROBES`] random ports were all taken, so it has thousands of sessions,
//! and the bitmaps cost about a byte a session.

use crate::address::Entry;
use crate::{
    address::{Address, Key},
    session::{Ending, end, outside_port, pair, seems_expired},
    table::{self, Claim},
    tables::Tables,
};
use xdp_abi::{
    policy::{PoolAddress, SNAT_WORDS, Snat, SnatBits},
    port::{PORT_SUMMARY, PORT_WORDS, Ports},
    reason::Reason,
    session::{Class, State, WINDOW},
};

/// Random ports that are tried before a pair turns hot.
pub const PROBES: u32 = 16;
/// Clear bits that are tried in a bitmap.
pub const HOT_TRIES: u32 = 64;
/// Ports that are examined for an expired session when a bitmap is full.
pub const RECLAIMS: u32 = 32;

/// The first SNAT policy that matches.
#[inline(always)]
pub fn matching<T: Tables>(
    tables: &T,
    bank: u32,
    policies: u32,
    flow: &FlowFacts,
    by_source: &SnatBits,
    by_destination: &SnatBits,
) -> Option<Snat> {
    let mut word = 0;
    while word < SNAT_WORDS {
        let mut bits = by_source.source.get(word)? & by_destination.destination.get(word)?;
        let mut steps = 0;
        while bits != 0 && steps < 64 {
            steps += 1;
            let bit = (word as u32) << 6 | bits.trailing_zeros();
            bits &= bits - 1;
            if bit >= policies {
                return None;
            }
            let policy = tables.snat(bank, bit)?;
            if flow.matches(&policy) {
                return Some(policy);
            }
        }
        word += 1;
    }
    None
}

/// What a SNAT policy looks at, beside both addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowFacts {
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// Protocol.
    pub protocol: u8,
    /// The permitting rule's mark.
    pub mark: u16,
    /// Number of the interface it leaves by.
    pub interface_class: u16,
    /// Number of the connection it leaves by.
    pub connection_class: u16,
}

impl FlowFacts {
    /// Whether a policy is meant for this flow.
    #[inline(always)]
    pub fn matches(&self, policy: &Snat) -> bool {
        let within = |port: u16, range: [u16; 2]| port >= range[0] && port <= range[1];
        (policy.protocol == 256 || policy.protocol == self.protocol as u16)
            && (policy.mark == 0 || policy.mark == self.mark)
            && (policy.interface_class == 0 || policy.interface_class == self.interface_class)
            && (policy.connection_class == 0 || policy.connection_class == self.connection_class)
            && within(self.source_port, policy.source_ports)
            && within(self.destination_port, policy.destination_ports)
    }
}

/// The outside address of an inside host: always the same one of a pool (RFC 4787 REQ-2).
#[inline(always)]
pub fn paired<T: Tables>(
    tables: &T,
    bank: u32,
    policy: &Snat,
    domain: u16,
    inside: T::A,
) -> Option<PoolAddress> {
    let spread = (inside.mix() ^ domain as u64).wrapping_mul(0xd6e8_feb8_6659_fd93) >> 40;
    let place = (spread as u32 * policy.addresses as u32) >> 24;
    tables.pool(bank, policy.pool as u32 + place)
}

/// Lends a port: `reply` is the reply key with the wanted outside port in it; it comes back
/// with the port that was lent, and its slot in the table is ours.
#[inline(always)]
pub fn lend<T: Tables>(
    tables: &T,
    reply: &mut Key<T::A>,
    lendable: u32,
    now: u32,
) -> Result<u32, Reason> {
    let Some(ports) = tables.lendable(lendable) else { return Err(Reason::HelperFailed) };
    let mut steps = 0;
    let mut rounds = 0;
    // Another processor may take the port that was found free: then look again.
    while rounds < 3 {
        rounds += 1;
        let found = search(tables, reply, ports, now, rounds == 1, &mut steps);
        note_steps(tables, steps);
        if !found {
            return Err(Reason::PortsExhausted);
        }
        match table::claim(tables, &T::A::pack(reply)) {
            Claim::Taken(index) => {
                mark_if_hot(tables, reply);
                return Ok(index);
            }
            Claim::NoRoom => return Err(Reason::TableFull),
            Claim::Exists | Claim::Contended => {}
        }
    }
    Err(Reason::Contended)
}

/// The worst allocation so far, kept for whoever asks. It may miss a tie, not a record of one
/// processor.
#[inline(always)]
fn note_steps<T: Tables>(tables: &T, steps: u32) {
    let worst = &tables.shared().port_steps_max;
    let before = worst.load();
    if steps as u64 > before {
        worst.replace(before, steps as u64);
    }
}

/// Puts a port that looks free into `reply`.
#[inline(always)]
fn search<T: Tables>(
    tables: &T,
    reply: &mut Key<T::A>,
    ports: &Ports,
    now: u32,
    own_port: bool,
    steps: &mut u32,
) -> bool {
    if own_port && may_lend(ports, outside_port(reply)) {
        *steps += 1;
        if is_free(tables, reply, now) {
            return true;
        }
    }
    let mut probe = 0;
    while probe < PROBES {
        probe += 1;
        *steps += 1;
        let random = tables.random();
        let group = (random as usize >> 6) & (PORT_SUMMARY - 1);
        // A random group, a random word of it that has any port, a random port of that word.
        let Some(group) = next_set(&ports.summary, group) else { return false };
        let Some(summary) = ports.summary.get(group) else { return false };
        let word = group << 6 | pick(summary.load(), random >> 10) as usize;
        let Some(bits) = ports.words.get(word & (PORT_WORDS - 1)) else { return false };
        let bits = bits.load();
        if bits == 0 {
            continue;
        }
        let port = (word << 6) as u16 | pick(bits, random >> 16) as u16;
        reply.destination_port = port.to_be_bytes();
        if is_free(tables, reply, now) {
            return true;
        }
    }
    search_hot(tables, reply, ports, now, steps)
}

#[inline(always)]
fn search_hot<T: Tables>(
    tables: &T,
    reply: &mut Key<T::A>,
    ports: &Ports,
    now: u32,
    steps: &mut u32,
) -> bool {
    let Some(bitmap) = tables.make_hot(&pair(reply)) else { return false };
    let mut tries = 0;
    while tries < HOT_TRIES {
        tries += 1;
        *steps += 1;
        let random = tables.random();
        let mut group = random as usize & (PORT_SUMMARY - 1);
        let mut open = 0;
        let mut looked = 0;
        while looked < PORT_SUMMARY {
            looked += 1;
            let (Some(lend), Some(full)) = (ports.summary.get(group), bitmap.summary.get(group))
            else {
                return false;
            };
            open = lend.load() & !full.load();
            if open != 0 {
                break;
            }
            group = (group + 1) & (PORT_SUMMARY - 1);
        }
        if open == 0 {
            break;
        }
        let word = (group << 6 | pick(open, random >> 4) as usize) & (PORT_WORDS - 1);
        let (Some(lend), Some(lent)) = (ports.words.get(word), bitmap.words.get(word)) else {
            return false;
        };
        let lend = lend.load();
        let free = lend & !lent.load();
        if free == 0 {
            // Only ports that may not be lent are left: count the word as full.
            lent.fetch_or(!lend);
            close(bitmap, word);
            continue;
        }
        let bit = pick(free, random >> 10);
        let port = (word << 6) as u16 | bit as u16;
        reply.destination_port = port.to_be_bytes();
        if is_free(tables, reply, now) {
            return true;
        }
        mark(bitmap, port);
    }
    reclaim(tables, reply, ports, now, steps)
}

/// Every bit is set, but sessions may have expired that nobody has swept: looks at some.
#[inline(always)]
fn reclaim<T: Tables>(
    tables: &T,
    reply: &mut Key<T::A>,
    ports: &Ports,
    now: u32,
    steps: &mut u32,
) -> bool {
    let mut tries = 0;
    let mut port = tables.random() as u16;
    while tries < RECLAIMS {
        tries += 1;
        *steps += 1;
        port = port.wrapping_add(1);
        if !may_lend(ports, port) {
            port = tables.random() as u16;
            continue;
        }
        reply.destination_port = port.to_be_bytes();
        if is_free(tables, reply, now) {
            return true;
        }
    }
    false
}

/// Marks a lent port in the pair's bitmap, if the pair is hot.
#[inline(always)]
fn mark_if_hot<T: Tables>(tables: &T, reply: &Key<T::A>) {
    if tables.shared().hot_pairs.load() == 0 {
        return;
    }
    if let Some(bitmap) = tables.bitmap(&pair(reply)) {
        mark(bitmap, outside_port(reply));
    }
}

#[inline(always)]
fn mark(bitmap: &Ports, port: u16) {
    let word = port as usize >> 6;
    let Some(lent) = bitmap.words.get(word) else { return };
    let bit = 1 << (port & 63);
    if lent.fetch_or(bit) | bit == u64::MAX {
        close(bitmap, word);
    }
}

/// Says that a word is full. Whoever gives a port back clears the word's bit first and this
/// one second; so if the word is open again after this was set, it is taken back here.
#[inline(always)]
fn close(bitmap: &Ports, word: usize) {
    let (Some(summary), Some(lent)) = (bitmap.summary.get(word >> 6), bitmap.words.get(word))
    else {
        return;
    };
    let bit = 1 << (word & 63);
    summary.fetch_or(bit);
    if lent.load() != u64::MAX {
        summary.fetch_and(!bit);
    }
}

#[inline(always)]
fn may_lend(ports: &Ports, port: u16) -> bool {
    match ports.words.get(port as usize >> 6) {
        Some(word) => word.load() >> (port & 63) & 1 != 0,
        None => false,
    }
}

/// The first group from `group` on, around the end, that is not empty.
#[inline(always)]
fn next_set(summary: &[xdp_abi::word::Word; PORT_SUMMARY], group: usize) -> Option<usize> {
    let mut looked = 0;
    let mut group = group;
    while looked < PORT_SUMMARY {
        if summary.get(group)?.load() != 0 {
            return Some(group);
        }
        group = (group + 1) & (PORT_SUMMARY - 1);
        looked += 1;
    }
    None
}

/// One of the set bits: the first from a random place on, around the end.
#[inline(always)]
pub(crate) const fn pick(bits: u64, random: u32) -> u32 {
    let turn = random & 63;
    (bits.rotate_right(turn).trailing_zeros() + turn) & 63
}

/// Whether no session holds a reply key. One whose time is over, rest included, is ended.
#[inline(always)]
fn is_free<T: Tables>(tables: &T, reply: &Key<T::A>, now: u32) -> bool {
    let words = T::A::pack(reply);
    let mask = table::window_mask(tables);
    let home = table::home(tables, &words);
    let mut i = 0;
    while i < WINDOW {
        let Some(entry) = tables.slot((home + i) & mask) else { return false };
        let meta = entry.load_meta();
        if meta.state_bits() >= State::Keyed as u64 && entry.key() == words {
            return meta.is(State::Live)
                && has_rested(tables, meta, now)
                && matches!(
                    end(tables, entry.load_link().record(), Ending::Replace, now),
                    crate::session::Ended::Gone
                );
        }
        i += 1;
    }
    tables.shared().overflowed.load() == 0 || tables.overflow(&words).is_none()
}

/// Whether a session's time and its port's rest are both over.
#[inline(always)]
fn has_rested<T: Tables>(tables: &T, meta: xdp_abi::session::Meta, now: u32) -> bool {
    let config = tables.config();
    if matches!(meta.class(), Class::Resting | Class::TcpClosed) {
        return seems_expired(config, meta, now);
    }
    let rest = config.rest.load() as u32;
    seems_expired(config, meta, now.wrapping_sub(rest)) && seems_expired(config, meta, now)
}
