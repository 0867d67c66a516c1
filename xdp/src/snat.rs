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
//!    older than the bitmap; then the claim fails, the bit is set, and the search goes on
//!    elsewhere, until a free one is found or there is no clear bit left. Each session is met so
//!    at most once: together all searches of a pair look in vain at as many ports as it had
//!    sessions when it turned hot. While ports are lent by the searches alone, free and unknown
//!    bits shrink in step, and the expected number of steps stays the same up to the last port.
//! 4. Where there is no bitmap to be had, or every bit is set and nobody sweeps: ports one after
//!    another.
//!
//! No counter per destination is kept, and nothing is converted when a pair turns hot: a pair
//! turns hot only if [`PROBES`] random ports were all taken, so it has most of its range in
//! sessions. There are bitmaps for every pair with 512 sessions. A smaller range is seen whole
//! without ([`RECLAIMS`]); that takes longer, so some more are there for such ([`spare_bitmaps`]).

use crate::address::Entry;
use crate::{
    address::{Address, Key},
    bounds::wrapped,
    packet::ICMP,
    session::{
        Ending, LEASED, end, give_back_port, halves, has_rested, is_expired, outside_port, pair,
    },
    table,
    tables::Tables,
};
use xdp_abi::{
    config::PolicyWord,
    policy::{PoolAddress, SNAT_WORDS, Snat},
    port::{PORT_SUMMARY, PORT_WORDS, Ports},
    reason::Reason,
    session::State,
};

/// Random ports that are tried before a pair turns hot.
pub const PROBES: u32 = 16;
/// Clear bits that are tried in a bitmap, with the groups that are gone through for them and the
/// words in which there are none that may be lent: more than there are.
pub const HOT_TRIES: u32 = 1 << 17;
/// Ports that are looked at one after another; it takes tens of microseconds, if all are taken.
pub const RECLAIMS: u32 = 1_024;
/// How often a second so many are looked at where every bit is set.
const RECLAIMS_PER_SECOND: u32 = 1_000;
/// The same in every other search.
const RECLAIMS_BESIDE: u32 = 16;
/// Keeps these apart from what else is admitted so often.
const RECLAIMING: u32 = 0x7feb_352d;

/// Bitmaps that pairs with a small range may have in a table for so many sessions. They turn hot with
/// few sessions, and whoever opens some flows to each of many destinations would use up all.
#[must_use]
pub const fn spare_bitmaps(sessions: u32) -> u32 {
    let share = sessions / 1024;
    if share > 32 { share } else { 32 }
}

/// The first SNAT policy that matches.
#[inline(always)]
pub fn matching<T: Tables>(tables: &T, policy: PolicyWord, flow: &FlowFacts) -> Option<Snat> {
    match first_matching(tables, policy, flow) {
        NONE => None,
        bit => tables.snat(policy.bank(), bit),
    }
}

/// Its bit, or [`NONE`].
#[inline(never)]
fn first_matching<T: Tables>(tables: &T, policy: PolicyWord, flow: &FlowFacts) -> u32 {
    let bank = policy.bank();
    let (Some(by_source), Some(by_destination)) =
        (tables.snat_bits(bank, flow.source), tables.snat_bits(bank, flow.destination))
    else {
        return NONE;
    };
    let mut choice = Choice { tables, policy, flow, word: 0, bits: 0, chosen: NONE };
    while choice.word < SNAT_WORDS && choice.chosen == NONE {
        choice.bits = by_source.source[choice.word] & by_destination.destination[choice.word];
        // Mostly the first one matches: that one without the helper's two calls.
        if choice.bits != 0 && !choice.step() {
            T::repeat(63, || choice.step());
        }
        choice.word += 1;
    }
    choice.chosen
}

/// No policy, no port, no bitmap.
const NONE: u32 = u32::MAX;

/// How far the policies of both identities have been gone through.
struct Choice<'a, T> {
    tables: &'a T,
    policy: PolicyWord,
    flow: &'a FlowFacts,
    /// Which word of their bits.
    word: usize,
    /// What of it was not looked at yet.
    bits: u64,
    /// [`NONE`]: none yet.
    chosen: u32,
}

impl<T: Tables> Choice<'_, T> {
    /// Looks at the next policy, and says whether it was the last one to look at.
    #[inline(always)]
    fn step(&mut self) -> bool {
        let bit = (self.word as u32) << 6 | self.bits.trailing_zeros();
        self.bits &= self.bits - 1;
        if bit >= self.policy.snat_policies() {
            return true;
        }
        let Some(candidate) = self.tables.snat(self.policy.bank(), bit) else { return true };
        if self.flow.matches(&candidate) {
            self.chosen = bit;
        }
        self.bits == 0 || self.chosen != NONE
    }
}

/// What a SNAT policy looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowFacts {
    /// The source's identity, as an index.
    pub source: u32,
    /// The destination's.
    pub destination: u32,
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
        // What stands in the place of a port in ICMP is none.
        let has_ports = self.protocol != ICMP;
        let within = |port: u16, range: [u16; 2]| {
            if has_ports { port >= range[0] && port <= range[1] } else { range == [0, u16::MAX] }
        };
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
    let holder = search(tables, reply, lendable, now);
    if holder == SOMEBODY {
        return Err(Reason::PortsExhausted);
    }
    let taken = take(tables, reply, holder, now);
    match taken {
        Ok(_) => mark_if_hot(tables, reply),
        // A port that is marked and not lent would be lost. If somebody else has it, it only
        // becomes unknown.
        Err(_) => give_back_port(tables, reply),
    }
    taken
}

/// The slot of a reply key that stays as the packet has it; it has no port of ours in it.
#[inline(always)]
pub fn keep<T: Tables>(tables: &T, reply: &Key<T::A>, now: u32) -> Result<u32, Reason> {
    let holder = holder(tables, reply, now);
    if holder == SOMEBODY { Err(Reason::Contended) } else { take(tables, reply, holder, now) }
}

/// Claims a reply key that looked free.
#[inline(always)]
fn take<T: Tables>(tables: &T, reply: &Key<T::A>, holder: u32, now: u32) -> Result<u32, Reason> {
    // A session that nobody has swept: its port is taken over, or has just been revived.
    if holder != NOBODY {
        end(tables, holder, Ending::REPLACE, now);
    }
    // If another processor took it between looking and claiming, the sender repeats the packet; a
    // second search here would double the longest way through the program.
    table::claim(tables, &T::A::pack(reply)).taken()
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

/// A search for a port that looks free. All of its state is here: the stack of a BPF program is
/// short, and what a step needs is passed to it by one pointer.
struct Search<'a, T: Tables> {
    tables: &'a T,
    /// The ports that may be lent.
    ports: &'a Ports,
    /// The reply key; the port that is being looked at is in it.
    reply: &'a mut Key<T::A>,
    now: u32,
    /// Ports that were looked at.
    steps: u32,
    /// The number of the pair's bitmap.
    bitmap: u32,
    /// The group of ports that is being gone through; then the port that was looked at last.
    group: u32,
    /// Groups after it, around the end.
    left: u32,
    /// Words of the group that may have a port for us.
    words: u64,
}

/// What to look at next.
enum Next {
    Port(u16),
    /// Not known yet: ask again.
    Again,
    /// There is no more.
    Nothing,
}

/// Puts a port that looks free into `reply`, and says who holds it ([`holder`]).
#[inline(never)]
fn search<T: Tables>(tables: &T, reply: &mut Key<T::A>, lendable: u32, now: u32) -> u32 {
    let Some(ports) = tables.lendable(lendable) else { return SOMEBODY };
    if next_set(&ports.summary, 0).is_none() {
        return SOMEBODY;
    }
    let mut search =
        Search { tables, ports, reply, now, steps: 0, bitmap: 0, group: 0, left: 0, words: 0 };
    let mut holder = search.own();
    // Of a hot pair only clear bits are tried: random ports would use up the free ones and
    // leave the unknown ones behind.
    if holder == SOMEBODY && !is_hot(tables, search.reply) {
        holder = search.random();
    }
    if holder == SOMEBODY {
        holder = search.hot();
    }
    if holder == SOMEBODY {
        holder = search.in_a_row();
    }
    if holder != SOMEBODY {
        note_steps(tables, search.steps);
    }
    holder
}

impl<T: Tables> Search<'_, T> {
    /// The flow's own port.
    #[inline(always)]
    fn own(&mut self) -> u32 {
        if !may_lend(self.ports, outside_port(self.reply)) {
            return SOMEBODY;
        }
        self.steps += 1;
        holder(self.tables, self.reply, self.now)
    }

    /// Some random ports.
    #[inline(never)]
    fn random(&mut self) -> u32 {
        self.until_free(PROBES, |search| match random_port(search.tables, search.ports) {
            Some(port) => Next::Port(port),
            None => Next::Nothing,
        })
    }

    /// Ports whose bit is clear in the pair's bitmap.
    #[inline(never)]
    fn hot(&mut self) -> u32 {
        self.bitmap = heat(self.tables, self.reply, self.ports);
        if self.bitmap == NONE {
            return SOMEBODY;
        }
        self.turn_to(self.tables.random());
        self.until_free(HOT_TRIES, Self::next_clear)
    }

    /// Begins with a group, and leaves all others for later.
    #[inline(always)]
    fn turn_to(&mut self, group: u32) {
        self.group = group & GROUPS;
        self.left = GROUPS;
        self.words = self.open_words();
    }

    /// The words of the group in which there may be a clear bit among the ports.
    #[inline(always)]
    fn open_words(&self) -> u64 {
        let group = self.group as usize;
        let closed = self.tables.bitmap_of(self.bitmap).map(|bitmap| bitmap.summary.get(group));
        match (self.ports.summary.get(group), closed) {
            (Some(lend), Some(Some(closed))) => lend.load() & !closed.load(),
            _ => 0,
        }
    }

    /// Marks a port whose bit is clear, and names it: from a random group on, around the end, each
    /// word as long as it has a port for us.
    #[inline(always)]
    fn next_clear(&mut self) -> Next {
        if self.words == 0 {
            if self.left == 0 {
                return Next::Nothing;
            }
            self.left -= 1;
            self.group = (self.group + 1) & GROUPS;
            self.words = self.open_words();
            return Next::Again;
        }
        let Some(bitmap) = self.tables.bitmap_of(self.bitmap) else { return Next::Nothing };
        let random = self.tables.random();
        let within = pick(self.words, random >> 4);
        let word = wrapped::<PORT_WORDS>((self.group << 6 | within) as usize);
        let free = self.ports.words[word].load() & !bitmap.words[word].load();
        if free == 0 {
            self.words &= !(1 << (within & 63));
            return Next::Again;
        }
        let port = (word << 6) as u16 | pick(free, random >> 10) as u16;
        // Marked first, looked at second: whoever gives it back frees it first and clears the bit
        // second, so a mark that is too late is seen to be wrong by looking.
        mark(bitmap, port);
        // If it is taken after all, so are others near it: sessions that keep their own ports stand
        // together.
        self.turn_to(random);
        Next::Port(port)
    }

    /// Some ports one after another: every bit is set, but sessions may have expired that nobody
    /// has swept; or no bitmap was to be had, and a small range is seen whole.
    #[inline(never)]
    fn in_a_row(&mut self) -> u32 {
        self.group = any_port(self.tables, self.ports);
        if self.group == NONE {
            return SOMEBODY;
        }
        let times = reclaims(self.tables, self.reply, self.now);
        self.until_free(times, |search| match next_port(search.ports, search.group as u16) {
            Some(next) => {
                search.group = next as u32;
                Next::Port(next)
            }
            None => Next::Nothing,
        })
    }

    /// Looks at the ports that `next` names, at most `times`, until nobody is in the way.
    #[inline(always)]
    fn until_free(&mut self, times: u32, next: impl Fn(&mut Self) -> Next) -> u32 {
        let mut met = SOMEBODY;
        T::repeat(times, || match next(self) {
            Next::Port(port) => {
                self.steps += 1;
                self.reply.destination_port = port.to_be_bytes();
                met = holder(self.tables, self.reply, self.now);
                met != SOMEBODY
            }
            Next::Again => false,
            Next::Nothing => true,
        });
        met
    }
}

/// The last group of ports; as a mask, every one.
const GROUPS: u32 = PORT_SUMMARY as u32 - 1;

/// How many ports are looked at in a row. Of a pair that has a bitmap every port is lent, unless
/// nobody sweeps: so many not in every search. In a function of its own, because the stack of
/// whoever calls it is short.
#[inline(never)]
fn reclaims<T: Tables>(tables: &T, reply: &Key<T::A>, now: u32) -> u32 {
    let may_take_long =
        !is_hot(tables, reply) || tables.admit(RECLAIMING, RECLAIMS_PER_SECOND, now).is_some();
    if may_take_long { RECLAIMS } else { RECLAIMS_BESIDE }
}

/// The number of a pair's bitmap, made if it may have one, or [`NONE`]. In a function of its own,
/// because the stack of whoever calls it is short.
#[inline(never)]
fn heat<T: Tables>(tables: &T, reply: &Key<T::A>, ports: &Ports) -> u32 {
    let spare = spare_bitmaps(table::room(tables.config())) as u64;
    let is_spare = tables.shared().hot_pairs.load() < spare;
    if !is_spare && !is_hot(tables, reply) && is_small(ports) {
        return NONE;
    }
    tables.make_hot(&pair(reply)).unwrap_or(NONE)
}

/// Whether a range is seen whole without a bitmap, by the words that it has ports in.
#[inline(never)]
fn is_small(ports: &Ports) -> bool {
    let (mut words, mut group) = (0, 0);
    while group < PORT_SUMMARY {
        words += ports.summary[group].load().count_ones();
        group += 1;
    }
    words <= RECLAIMS / 64
}

/// Whether a pair has a bitmap.
#[inline(always)]
fn is_hot<T: Tables>(tables: &T, reply: &Key<T::A>) -> bool {
    tables.shared().hot_pairs.load() != 0 && tables.bitmap(&pair(reply)).is_some()
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

/// Marks a port, and closes its word if that was the last one in it: of all its ports, because
/// policies that share an address may lend different ones of a word.
#[inline(always)]
fn mark(bitmap: &Ports, port: u16) {
    let word = port as usize >> 6;
    let (Some(summary), Some(lent)) = (bitmap.summary.get(word >> 6), bitmap.words.get(word))
    else {
        return;
    };
    let bit = 1 << (port & 63);
    if lent.fetch_or(bit) | bit != u64::MAX {
        return;
    }
    let closed = 1 << (word & 63);
    summary.fetch_or(closed);
    // Whoever gives a port back clears the word's bit first and this one second; so if the word
    // is open again after this was set, it is taken back here.
    if lent.load() != u64::MAX {
        summary.fetch_and(!closed);
    }
}

/// A random port (RFC 6056): drawn among all numbers, again while it may not be lent. Where too few
/// may be, and a draw comes to nothing: a random group, a random word of it that has any, a random
/// one of those.
#[inline(always)]
fn random_port<T: Tables>(tables: &T, ports: &Ports) -> Option<u16> {
    let (first, random) = (tables.random(), tables.random());
    for drawn in [first, first >> 16, random, random >> 16] {
        if may_lend(ports, drawn as u16) {
            return Some(drawn as u16);
        }
    }
    let group = next_set(&ports.summary, (random as usize >> 6) & (PORT_SUMMARY - 1))?;
    let word = group << 6 | pick(ports.summary.get(group)?.load(), random >> 10) as usize;
    let bits = ports.words.get(wrapped::<PORT_WORDS>(word))?.load();
    Some((word << 6) as u16 | pick(bits, random >> 16) as u16)
}

/// The same, or [`NONE`]. In a function of its own, because the stack of whoever calls it is short.
#[inline(never)]
fn any_port<T: Tables>(tables: &T, ports: &Ports) -> u32 {
    match random_port(tables, ports) {
        Some(port) => port as u32,
        None => NONE,
    }
}

/// The next port that may be lent, around the end.
#[inline(always)]
fn next_port(ports: &Ports, port: u16) -> Option<u16> {
    let mut word = port as usize >> 6;
    // Shifted twice, because a shift by 64 is none.
    let mut bits = ports.words.get(word)?.load() & u64::MAX << (port & 63) << 1;
    if bits == 0 {
        let mut group = word >> 6;
        let mut words = ports.summary.get(group)?.load() & u64::MAX << (word & 63) << 1;
        if words == 0 {
            group = next_set(&ports.summary, (group + 1) & (PORT_SUMMARY - 1))?;
            words = ports.summary.get(group)?.load();
        }
        word = wrapped::<PORT_WORDS>(group << 6 | words.trailing_zeros() as usize);
        bits = ports.words.get(word)?.load();
    }
    Some((word << 6) as u16 | (bits.trailing_zeros() & 63) as u16)
}

/// Whether a port may be lent.
#[inline(always)]
pub fn may_lend(ports: &Ports, port: u16) -> bool {
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

/// Who holds a reply key: [`NOBODY`], [`SOMEBODY`], or the record of a session whose time is
/// over, rest included.
#[inline(never)]
fn holder<T: Tables>(tables: &T, reply: &Key<T::A>, now: u32) -> u32 {
    let words = T::A::pack(reply);
    let index = match table::standing(tables, &words, table::home(tables, &words), u32::MAX) {
        Some(index) => index,
        None if tables.shared().overflowed.load() == 0 => return NOBODY,
        None => match tables.overflow(&words) {
            Some(index) => index,
            None => return NOBODY,
        },
    };
    let Some(entry) = tables.slot(index) else { return SOMEBODY };
    let meta = entry.load_meta();
    if meta.is(State::Live) && entry.key() == words { rested(tables, entry, now) } else { SOMEBODY }
}

/// The record of a live entry, if the time of both halves is over, and the rest of the port if one was
/// lent; else [`SOMEBODY`]. What changes hands meanwhile is found out by whoever ends it.
#[inline(always)]
fn rested<T: Tables>(tables: &T, entry: &<T::A as Address>::Entry, now: u32) -> u32 {
    let number = entry.load_link().record();
    let Some(record) = tables.record(number) else { return SOMEBODY };
    let halves = halves(record);
    let (Some(forward), Some(reply)) = (tables.slot(halves.forward), tables.slot(halves.reply))
    else {
        return SOMEBODY;
    };
    let (forward, reply) = (forward.load_meta(), reply.load_meta());
    let config = tables.config();
    let is_leased = record.identity.load() & LEASED != 0;
    let is_free = if is_leased {
        has_rested(config, forward, reply, now)
    } else {
        is_expired(config, forward, reply, now)
    };
    if is_free { number } else { SOMEBODY }
}

/// A reply key is free.
const NOBODY: u32 = u32::MAX;
/// A reply key is taken.
const SOMEBODY: u32 = u32::MAX - 1;
