//! The session table, and the protocol by which entries appear and vanish in it.
//!
//! Open addressing over an array of one-line entries: an entry stands in one of [`NEAR`] slots
//! of a small part of the table, in one of the [`WINDOW`] slots from its home on, or, where all of
//! them are taken, in an overflow slot that a small hash map names. Which slots they are is
//! fixed by the key ([`Home`]); the protocol does not care. Readers take no lock; nobody ever
//! waits.
//!
//! **Hints** ([`Tables::hints`]) make "nobody" cost two bytes and not ten lines: for each window
//! slot as a home a byte says which slots of its window hold keys of that home, and for each near
//! slot one says what tag its key has, zero if none. A hint is given before a key is looked for
//! elsewhere, and taken back before its slot is free; in between it belongs to whoever owns the
//! slot. A hint for nothing costs a look.
//!
//! **States** of an entry's word 0, with who may write it:
//!
//! ```text
//! Free --cas--> Claimed --key, swap--> Keyed --rewrite, store--> Live
//!   ^                                    |                        |
//!   +------------ store, version + 1 ----+                       cas
//!   +------------ store, version + 1 -------------- Frozen <------+
//! ```
//!
//! - *Claimed*, *Keyed*, *Frozen* belong to one processor: it alone writes the word.
//! - *Live* belongs to all: it changes by compare-and-swap only (a newer tick, another class,
//!   Frozen), so whoever ends a session notices a packet that came in between.
//! - The version grows when a slot is given back. A reader takes word 0 first, compares the
//!   key, reads the rest, and takes word 0 again: a slot that changed owner is a miss.
//!
//! **No key twice.** An inserter makes its key visible (Keyed, a full barrier) and only then
//! looks for the same key elsewhere. Of two that insert one key at the same time at least one
//! sees the other; whoever sees another gives its slot back. Both may: nothing is inserted,
//! the packet is dropped as `contended`, its sender repeats it. Overflow entries follow the
//! same order: counted, entered, then the window is searched.
//!
//! **Both halves together.** A session is inserted with both entries Keyed before either is
//! Live, and ended with both Frozen before either is free. Who freezes the forward entry
//! ends the session; the forward entry is always frozen first.
//!
//! `tests/model.rs` runs this very code under loom in every interleaving.

use crate::{
    address::{Address, Entry},
    tables::Tables,
};
use xdp_abi::{
    config::{Config, HINTED},
    reason::Reason,
    session::{Class, Meta, NEAR, NEAR_SLOTS, SLOTS_PER_SESSION, State, WINDOW},
};

/// Where an entry was found, and its word 0 at that time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The slot.
    pub index: u32,
    /// Word 0.
    pub meta: Meta,
}

/// How a claim ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The slot is ours, Keyed.
    Taken(u32),
    /// The key is in the table, or another processor is inserting it.
    Contended,
    /// No slot in the window, none in overflow.
    NoRoom,
}

impl Claim {
    /// The slot, or why a flow gets none.
    #[inline(always)]
    pub const fn taken(self) -> Result<u32, Reason> {
        match self {
            Self::Taken(index) => Ok(index),
            Self::NoRoom => Err(Reason::TableFull),
            Self::Contended => Err(Reason::Contended),
        }
    }
}

/// The slots that a key may stand in, but for overflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Home {
    near: u32,
    window: u32,
    mask: u32,
    /// Where the near slots begin; zero: there are none.
    near_from: u32,
    tag: u8,
}

impl Home {
    /// How many slots there are, in the order in which they are tried.
    pub const SLOTS: u32 = NEAR + WINDOW;

    /// The home of a hash in a table with so many slots, as [`Config`] says it.
    #[inline(always)]
    pub const fn new(hash: u64, slots: u64, near: u32) -> Self {
        let (low, high) = (hash as u32, (hash >> 32) as u32);
        let mask = slots as u32;
        let window = low & mask;
        let pair = !NEAR.saturating_sub(1);
        let near_from = if near == 0 { 0 } else { before_near(slots) };
        let near = if near == 0 { window & pair } else { near_from + (high & (near - 1) & pair) };
        let tag = (hash >> 48) as u8;
        Self { near, window, mask, near_from, tag: if tag == 0 { 1 } else { tag } }
    }

    /// One of them.
    #[inline(always)]
    pub const fn slot(self, number: u32) -> u32 {
        if number < NEAR {
            self.near + number
        } else {
            self.window.wrapping_add(number - NEAR) & self.mask
        }
    }

    /// Where the byte of its window stands among [`Tables::hints`]: the word, and how far to
    /// shift it.
    #[inline(always)]
    const fn window_byte(self) -> (u32, u32) {
        (self.window >> 3, (self.window & 7) << 3)
    }

    /// The same of the first of its near slots; the others follow in the same word.
    #[inline(always)]
    const fn near_byte(self) -> (u32, u32) {
        let place = self.near - self.near_from;
        ((self.mask >> 3) + 1 + (place >> 3), (place & 7) << 3)
    }

    /// What a slot that holds a key of this home has set, in which word, and all that it may
    /// have set; `None`: nothing is said of this slot.
    #[inline(always)]
    const fn mark(self, index: u32) -> Option<(u32, u64, u64)> {
        let distance = index.wrapping_sub(self.window) & self.mask;
        if index <= self.mask && distance < WINDOW {
            let (word, shift) = self.window_byte();
            let bit = 1 << (shift + distance);
            return Some((word, bit, bit));
        }
        if self.near_from != 0 && index.wrapping_sub(self.near) < NEAR {
            let (word, shift) = self.near_byte();
            let shift = shift + ((index - self.near) << 3);
            return Some((word, (self.tag as u64) << shift, 0xff << shift));
        }
        None
    }
}

/// Which slots of a window may hold keys of its home, from the lowest bit on.
#[inline(always)]
fn in_window<T: Tables>(tables: &T, home: Home) -> u64 {
    let (word, shift) = home.window_byte();
    match tables.hints(word) {
        Some(hints) if is_hinted(tables.config()) => hints.load() >> shift & ALL_OF_WINDOW,
        Some(_) | None => ALL_OF_WINDOW,
    }
}

const ALL_OF_WINDOW: u64 = (1 << WINDOW) - 1;

/// The tags of the near slots of a home, a byte each from the lowest on; `None`: nothing is said
/// of them.
#[inline(always)]
fn tags<T: Tables>(tables: &T, home: Home) -> Option<u64> {
    if NEAR == 0 || home.near_from == 0 || !is_hinted(tables.config()) {
        return None;
    }
    let (word, shift) = home.near_byte();
    tables.hints(word).map(|hints| hints.load() >> shift)
}

/// Which near slots may hold a key of this home, from the lowest bit on.
#[inline(always)]
fn in_near<T: Tables>(tables: &T, home: Home) -> u64 {
    let Some(tags) = tags(tables, home) else { return (1 << NEAR) - 1 };
    let mut may = 0;
    let mut i = 0;
    while i < NEAR {
        if (tags >> (i << 3)) as u8 == home.tag {
            may |= 1 << i;
        }
        i += 1;
    }
    may
}

/// Says that a slot holds a key of this home, or no longer does. A full barrier if it says
/// anything.
#[inline(always)]
fn hint<T: Tables>(tables: &T, home: Home, index: u32, holds: bool) {
    if let Some((word, set, all)) = home.mark(index)
        && is_hinted(tables.config())
        && let Some(hints) = tables.hints(word)
    {
        if holds {
            hints.fetch_or(set);
        } else {
            hints.fetch_and(!all);
        }
    }
}

/// Words of hints of a table with so many slots: a byte for each window slot, and for each near
/// slot.
pub const fn hint_words(window: u32, near: u32) -> u32 {
    window.div_ceil(8) + near.div_ceil(8)
}

#[inline(always)]
fn is_hinted(config: &Config) -> bool {
    config.tick_shift.load() & HINTED != 0
}

/// The slots of a key.
#[inline(always)]
pub fn home<T: Tables>(tables: &T, key: &<T::A as Address>::Words) -> Home {
    let config = tables.config();
    let hash = T::A::hash(key, config.seed.load());
    Home::new(hash, config.slots.load(), near_slots(config))
}

/// How many near slots a table of so many window slots has.
pub const fn near_slots_beside(window: u32) -> u32 {
    if NEAR == 0 || window / 8 < NEAR {
        0
    } else if window / 8 < NEAR_SLOTS {
        window / 8
    } else {
        NEAR_SLOTS
    }
}

#[inline(always)]
fn near_slots(config: &Config) -> u32 {
    (config.tick_shift.load() >> 32) as u32
}

/// Slots of the window and of overflow.
#[inline(always)]
const fn before_near(slots: u64) -> u32 {
    (slots as u32).wrapping_add(1).wrapping_add((slots >> 32) as u32)
}

/// How many sessions there is room for.
#[inline(always)]
pub fn room(config: &Config) -> u32 {
    (config.slots.load() as u32 / SLOTS_PER_SESSION).wrapping_add(1)
}

/// How many slots there are, of every kind.
#[inline(always)]
pub fn all_slots(config: &Config) -> u32 {
    before_near(config.slots.load()).wrapping_add(near_slots(config))
}

/// Whether a slot is one of those kept for overflow.
#[inline(always)]
fn is_overflow(config: &Config, index: u32) -> bool {
    let slots = config.slots.load();
    index > slots as u32 && index.wrapping_sub(before_near(slots)) >= near_slots(config)
}

/// The numbers of the slots that are kept for overflow.
#[inline(always)]
pub fn overflow_slots(config: &Config) -> core::ops::Range<u32> {
    let slots = config.slots.load();
    (slots as u32).wrapping_add(1)..before_near(slots)
}

/// Window slots less one.
#[inline(always)]
pub fn window_mask<T: Tables>(tables: &T) -> u32 {
    tables.config().slots.load() as u32
}

/// Where the live entry of a key stands.
// Not inlined: its stack is free again when the session that it found is ended.
#[inline(never)]
pub fn find<T: Tables>(tables: &T, key: &<T::A as Address>::Words) -> Option<Found> {
    find_entry(tables, key).map(|(found, _)| found)
}

/// The live entry of a key.
#[inline(always)]
pub fn find_entry<'a, T: Tables>(
    tables: &'a T,
    key: &<T::A as Address>::Words,
) -> Option<(Found, &'a <T::A as Address>::Entry)> {
    let home = home(tables, key);
    let near = in_near(tables, home);
    let mut i = 0;
    // Behind the near slots most stand in the first of the window; the byte is not worth its
    // memory access for them.
    while i <= NEAR {
        if (near >> i & 1 != 0 || i == NEAR)
            && let Some(found) = live(tables, key, home.slot(i))
        {
            return Some(found);
        }
        i += 1;
    }
    let mut held = in_window(tables, home) >> 1;
    while i < Home::SLOTS && held != 0 {
        if held & 1 != 0
            && let Some(found) = live(tables, key, home.slot(i))
        {
            return Some(found);
        }
        held >>= 1;
        i += 1;
    }
    find_overflow(tables, key)
}

/// The entry in a slot, if it is this key's and live.
#[inline(always)]
fn live<'a, T: Tables>(
    tables: &'a T,
    key: &<T::A as Address>::Words,
    index: u32,
) -> Option<(Found, &'a <T::A as Address>::Entry)> {
    let entry = tables.slot(index)?;
    let meta = entry.load_meta();
    let is_it = meta.is(State::Live) && entry.key() == *key;
    is_it.then_some((Found { index, meta }, entry))
}

#[inline(always)]
fn find_overflow<'a, T: Tables>(
    tables: &'a T,
    key: &<T::A as Address>::Words,
) -> Option<(Found, &'a <T::A as Address>::Entry)> {
    if tables.shared().overflowed.load() == 0 {
        return None;
    }
    live(tables, key, tables.overflow(key)?)
}

/// The slot of the key's window, any but `except`, in which it stands in whatever state shows it.
#[inline(always)]
pub(crate) fn standing<T: Tables>(
    tables: &T,
    key: &<T::A as Address>::Words,
    home: Home,
    except: u32,
) -> Option<u32> {
    let mut held = in_window(tables, home) << NEAR | in_near(tables, home);
    let mut i = 0;
    while i < Home::SLOTS && held != 0 {
        let index = home.slot(i);
        // The exception last: the verifier follows everything behind a check for both outcomes.
        if held & 1 != 0
            && let Some(entry) = tables.slot(index)
            && entry.load_meta().state_bits() >= State::Keyed as u64
            && entry.key() == *key
            && index != except
        {
            return Some(index);
        }
        held >>= 1;
        i += 1;
    }
    None
}

#[inline(always)]
fn is_elsewhere<T: Tables>(
    tables: &T,
    key: &<T::A as Address>::Words,
    home: Home,
    except: u32,
) -> bool {
    standing(tables, key, home, except).is_some()
}

/// Whether a key stands in the table in any state, be it that its session is just being looked
/// at, opened or ended.
#[inline(never)]
pub fn is_held<T: Tables>(tables: &T, key: &<T::A as Address>::Words) -> bool {
    is_elsewhere(tables, key, home(tables, key), u32::MAX)
        || tables.shared().overflowed.load() != 0 && tables.overflow(key).is_some()
}

/// Puts a key into the table: Keyed, so that nobody else can, and nobody finds it yet.
#[inline(always)]
pub fn claim<T: Tables>(tables: &T, key: &<T::A as Address>::Words) -> Claim {
    match claim_code(tables, key) {
        CONTENDED => Claim::Contended,
        NO_ROOM => Claim::NoRoom,
        index => Claim::Taken(index),
    }
}

// A claim in one register: what a BPF function returns.
const CONTENDED: u32 = u32::MAX;
const NO_ROOM: u32 = u32::MAX - 1;

#[inline(never)]
fn claim_code<T: Tables>(tables: &T, key: &<T::A as Address>::Words) -> u32 {
    let home = home(tables, key);
    // A near slot with a tag is somebody's.
    let tags = tags(tables, home).unwrap_or(0);
    let mut taken = u32::MAX;
    let mut i = 0;
    while i < Home::SLOTS {
        if i < NEAR && (tags >> (i << 3)) as u8 != 0 {
            i += 1;
            continue;
        }
        let index = home.slot(i);
        let Some(entry) = tables.slot(index) else { return NO_ROOM };
        let meta = entry.load_meta();
        if meta.is(State::Free) && entry.meta().replace(meta.0, meta.with_state(State::Claimed).0) {
            taken = index;
            break;
        }
        i += 1;
    }
    let Some(entry) = tables.slot(taken) else { return claim_overflow(tables, key, home) };
    let meta = entry.load_meta();
    entry.set_key(key);
    entry.meta().swap(meta.with_state(State::Keyed).0);
    hint(tables, home, taken, true);
    // From here on others see the key; now look for theirs.
    let crowded = tables.shared().overflowed.load() != 0;
    if is_elsewhere(tables, key, home, taken) || crowded && tables.overflow(key).is_some() {
        hint(tables, home, taken, false);
        entry.meta().store(meta.freed().0);
        return CONTENDED;
    }
    taken
}

#[inline(always)]
fn claim_overflow<T: Tables>(tables: &T, key: &<T::A as Address>::Words, home: Home) -> u32 {
    let Some(index) = tables.take_overflow() else { return NO_ROOM };
    let Some(entry) = tables.slot(index) else { return NO_ROOM };
    let meta = entry.load_meta();
    entry.set_key(key);
    entry.meta().swap(meta.with_state(State::Keyed).0);
    tables.shared().overflowed.fetch_add(1);
    if !tables.add_overflow(key, index) {
        entry.meta().store(meta.freed().0);
        tables.shared().overflowed.fetch_add(u64::MAX);
        tables.give_overflow(index);
        return CONTENDED;
    }
    if is_elsewhere(tables, key, home, u32::MAX) {
        release(tables, index);
        return CONTENDED;
    }
    index
}

/// Makes a claimed entry live. Everything else of it has been written.
#[inline(always)]
pub fn publish<T: Tables>(tables: &T, index: u32, class: Class, sender: u8, now: u32) {
    if let Some(entry) = tables.slot(index) {
        let version = entry.load_meta().version();
        let meta = Meta::new(version, State::Live, class, now);
        entry.meta().store(meta.with_sender(sender).0);
    }
}

/// Gives back a slot that is ours (Keyed or Frozen).
#[inline(always)]
pub fn release<T: Tables>(tables: &T, index: u32) {
    let Some(entry) = tables.slot(index) else { return };
    let meta = entry.load_meta();
    if is_overflow(tables.config(), index) {
        // The name goes first: a key in the map always leads to a slot that shows it.
        tables.remove_overflow(&entry.key());
        entry.meta().store(meta.freed().0);
        tables.shared().overflowed.fetch_add(u64::MAX);
        tables.give_overflow(index);
    } else {
        hint(tables, home(tables, &entry.key()), index, false);
        entry.meta().store(meta.freed().0);
    }
}

/// Takes a live entry for ending it, if its word 0 is still `meta`.
#[inline(always)]
pub fn freeze<T: Tables>(tables: &T, index: u32, meta: Meta) -> bool {
    match tables.slot(index) {
        Some(entry) => entry.meta().replace(meta.0, meta.with_state(State::Frozen).0),
        None => false,
    }
}

/// Gives a frozen entry back to traffic, as `meta`.
#[inline(always)]
pub fn thaw<T: Tables>(tables: &T, index: u32, meta: Meta) {
    if let Some(entry) = tables.slot(index) {
        entry.meta().store(meta.0);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// As good a hash as any.
    fn hash(n: u64) -> u64 {
        n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) ^ n << 40
    }

    #[test]
    fn few_sessions_need_few_pages_and_many_spread_over_all() {
        const WINDOW_SLOTS: u32 = 1 << 22;
        let slots = u64::from(WINDOW_SLOTS - 1) | 1000 << 32;
        let near = near_slots_beside(WINDOW_SLOTS);
        let homes: Vec<_> = (1..=100_000).map(|n| Home::new(hash(n), slots, near)).collect();
        let near = WINDOW_SLOTS + 1000..WINDOW_SLOTS + 1000 + NEAR_SLOTS;
        for home in &homes {
            assert!((0..NEAR).all(|n| near.contains(&home.slot(n))), "{home:?}");
            assert!((NEAR..Home::SLOTS).all(|n| home.slot(n) < WINDOW_SLOTS), "{home:?}");
        }
        for half in [NEAR_SLOTS / 2 + near.start, WINDOW_SLOTS / 2] {
            let slot = |home: &Home| home.slot(if half < WINDOW_SLOTS { NEAR } else { 0 });
            let above = homes.iter().filter(|home| slot(home) >= half).count();
            assert!((49_000..51_000).contains(&above), "{above} in the upper half");
        }
    }

    #[test]
    fn a_table_made_without_near_slots_has_its_windows_where_they_were() {
        for n in 0..1000 {
            let home = Home::new(hash(n), 4095 | 64 << 32, 0);
            assert_eq!(home.slot(NEAR), hash(n) as u32 & 4095);
            assert!((0..Home::SLOTS).all(|n| home.slot(n) < 4096), "{home:?}");
        }
    }

    #[test]
    fn near_slots_are_an_eighth_of_a_small_table() {
        for (window, expected) in [(8, 0), (16, 2), (4096, 512), (65_536, 8192), (1 << 24, 8192)] {
            assert_eq!(near_slots_beside(window), expected, "{window}");
        }
    }
}
