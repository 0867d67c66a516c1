//! What was found out about addresses a moment ago.
//!
//! New flows come in bursts that ask the same of the same addresses: by which attachment does
//! this source come and who is behind it, is this destination the machine's own and by which
//! next hop is it reached. Each answer takes several look-ups in tables that are in no cache; so
//! it is kept, in one line an address, for each processor by itself. There is one place for an
//! address, and the last one that was asked for has it.
//!
//! A line is believed only while nothing that it was made of has changed: it names the policy
//! word, the [network epoch](xdp_abi::session::NETWORK_EPOCH) that the daemon moves after every change of places,
//! and the epoch of the address's identity; all three are read before the tables are. The
//! kernel's routes are not remembered: they are asked for every flow.

use crate::{address::V4, tables::Tables};
use xdp_abi::{config::PolicyWord, forward::Hop, policy::IdentityRef, word::Word};

/// Sources that a processor remembers, a power of two.
pub const SOURCES: u32 = 4096;
/// Destinations, a power of two.
pub const DESTINATIONS: u32 = 1024;
/// Lines of a processor: sources, then destinations.
pub const LINES: u32 = SOURCES + DESTINATIONS;

/// What was found out about one address, in words that only one processor touches.
///
/// ```text
///    of a source                              of a destination
/// 0  policy word                              policy word
/// 1  source 32 | interface 32                 destination 32 | interface that it leaves by 32
/// 2  MAC that it was sent to 48               gateway 32
/// 3  MAC that sent it 48 | attachment 16      next hop 16 | attachment 16
/// 4  network epoch 32 | identity epoch 32     the same
/// 5  identity: index 32 | id 32               the same
/// 6  next hop back, plus one; zero: not known
/// ```
#[repr(C, align(64))]
pub struct Line {
    /// See above.
    pub words: [Word; 8],
}

#[inline(always)]
fn spread(address: V4) -> u32 {
    // Neighbours get places side by side, not the same by chance.
    let host = u32::from_be_bytes(address.0);
    host ^ host >> 12
}

/// The place of a source behind an interface.
#[inline(always)]
pub fn source_place(ifindex: u32, source: V4) -> u32 {
    (spread(source) ^ ifindex << 8) & (SOURCES - 1)
}

/// The place of a destination.
#[inline(always)]
pub fn destination_place(destination: V4) -> u32 {
    SOURCES + (spread(destination) & (DESTINATIONS - 1))
}

#[inline(always)]
fn mac(bytes: &[u8; 6], low: u16) -> u64 {
    Hop::mac_word(*bytes, low)
}

#[inline(always)]
const fn pair(high: u32, low: u32) -> u64 {
    (high as u64) << 32 | low as u64
}

#[inline(always)]
fn address(address: V4, low: u32) -> u64 {
    pair(u32::from_ne_bytes(address.0), low)
}

/// The epochs that a line is made under: of the network, and of the identity that is counted in
/// this slot.
#[inline(always)]
pub fn epochs<T: Tables>(tables: &T, network: u32, identity: u32) -> u64 {
    pair(network, tables.epoch(identity))
}

/// Where a packet came in: what a source's line is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin<'a> {
    /// The interface.
    pub ifindex: u32,
    /// Its source.
    pub source: V4,
    /// The hardware address that it was sent to.
    pub to: &'a [u8; 6],
    /// The hardware address that sent it.
    pub sender: &'a [u8; 6],
}

/// The line of a source, if it was made where this packet came in, under this policy and the
/// network of this epoch.
#[inline(always)]
pub fn source<'a, T: Tables>(
    tables: &'a T,
    policy: PolicyWord,
    network: u32,
    origin: &Origin<'_>,
) -> Option<&'a Line> {
    let line = tables.recent(source_place(origin.ifindex, origin.source))?;
    let same = line.words[0].load() == policy.0
        && line.epochs() >> 32 == u64::from(network)
        && line.words[1].load() == address(origin.source, origin.ifindex)
        && line.words[2].load() == mac(origin.to, 0)
        && line.words[3].load() & !0xffff == mac(origin.sender, 0);
    same.then_some(line)
}

/// The line of a destination, if it was made under this policy and the network of this epoch.
#[inline(always)]
pub fn destination<T: Tables>(
    tables: &T,
    policy: PolicyWord,
    network: u32,
    destination: V4,
) -> Option<&Line> {
    let line = tables.recent(destination_place(destination))?;
    let same = line.words[0].load() == policy.0
        && (line.words[1].load() >> 32) as u32 == u32::from_ne_bytes(destination.0)
        && line.epochs() >> 32 == u64::from(network);
    same.then_some(line)
}

impl Line {
    /// The epochs that it was made under.
    #[inline(always)]
    pub fn epochs(&self) -> u64 {
        self.words[4].load()
    }

    /// The attachment of the address.
    #[inline(always)]
    pub fn attachment(&self) -> u16 {
        self.words[3].load() as u16
    }

    /// Who is behind the address.
    #[inline(always)]
    pub fn identity(&self) -> IdentityRef {
        let identity = self.words[5].load();
        IdentityRef { index: (identity >> 32) as u32, id: identity as u32 }
    }

    /// The next hop back to a source, plus one; zero: not known.
    #[inline(always)]
    pub fn back(&self) -> u32 {
        self.words[6].load() as u32
    }

    /// The next hop towards a destination, if the kernel still sends by this interface and gateway.
    #[inline(always)]
    pub fn hop_by(&self, ifindex: u32, gateway: [u8; 4]) -> Option<u16> {
        let same = self.words[1].load() as u32 == ifindex
            && self.words[2].load() == u64::from(u32::from_ne_bytes(gateway));
        same.then_some((self.words[3].load() >> 16) as u16)
    }

    /// Remembers where a source comes in. Nothing counts before [`Self::remember_identity`].
    #[inline(always)]
    pub fn remember_origin(&self, origin: &Origin<'_>, attachment: u16) {
        self.words[0].store(0);
        self.words[1].store(address(origin.source, origin.ifindex));
        self.words[2].store(mac(origin.to, 0));
        self.words[3].store(mac(origin.sender, attachment));
        self.words[6].store(0);
    }

    /// Remembers the way to a destination that is neither the machine's own nor an outside
    /// address. Nothing counts before [`Self::remember_identity`].
    #[inline(always)]
    pub fn remember_way(
        &self,
        destination: V4,
        ifindex: u32,
        gateway: [u8; 4],
        hop: u16,
        attachment: u16,
    ) {
        self.words[0].store(0);
        self.words[1].store(address(destination, ifindex));
        self.words[2].store(u64::from(u32::from_ne_bytes(gateway)));
        self.words[3].store(u64::from(hop) << 16 | u64::from(attachment));
    }

    /// Remembers who is behind the address; from here on the line counts.
    #[inline(always)]
    pub fn remember_identity(&self, policy: PolicyWord, epochs: u64, identity: IdentityRef) {
        self.words[4].store(epochs);
        self.words[5].store(pair(identity.index, identity.id));
        self.words[0].store(policy.0);
    }

    /// Remembers the next hop back to a source.
    #[inline(always)]
    pub fn remember_back(&self, hop: u16) {
        self.words[6].store(u64::from(hop) + 1);
    }
}
