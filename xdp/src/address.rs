//! What the core has to know of an address family, and of its session entries.

use xdp_abi::{
    session::{Entry4, Link, Meta, Stamp},
    word::Word,
};

/// Both ends of a packet in its routing domain: what a session is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// Source port, or the identifier of an ICMP query; as the packet carries it. A query and an
    /// answer with the identifier zero have the same key, and differ by the direction alone.
    pub source_port: [u8; 2],
    /// Destination port, or the identifier of an ICMP answer.
    pub destination_port: [u8; 2],
    /// The domain in which the addresses mean something.
    pub domain: u16,
    /// IP protocol.
    pub protocol: u8,
}

impl<A: Copy> Key<A> {
    /// The key of the answer, if nothing is translated and the domain is `domain`.
    #[inline(always)]
    pub fn reversed(&self, domain: u16) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            domain,
            protocol: self.protocol,
        }
    }
}

/// What becomes of a packet's addresses and ports, and what that does to its checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewrite<A> {
    /// New source address.
    pub source: A,
    /// New destination address.
    pub destination: A,
    /// New source port.
    pub source_port: [u8; 2],
    /// New destination port.
    pub destination_port: [u8; 2],
    /// Change of the sum over the addresses (IP header, pseudo header).
    pub address_delta: u16,
    /// Change of the sum over the addresses and ports (transport header); for ICMP over the
    /// identifier alone.
    pub transport_delta: u16,
}

/// An address family.
pub trait Address: Copy + Eq + 'static {
    /// A [`Key`] in the words of a session entry.
    type Words: Copy + Eq;
    /// One direction of a session.
    type Entry: Entry<Self>;

    /// Its 16-bit words' sum, as a checksum sees them.
    fn sum(self) -> u32;
    /// Some 64 bits that depend on every bit of the address.
    fn mix(self) -> u64;
    /// Packs a key.
    fn pack(key: &Key<Self>) -> Self::Words;
    /// Unpacks a key.
    fn unpack(words: &Self::Words) -> Key<Self>;
    /// A hash of a packed key.
    fn hash(words: &Self::Words, seed: u64) -> u64;
    /// The address as four bytes, zero for a family that has more.
    fn bytes4(self) -> [u8; 4];
    /// Whether no router passes such an address on: unspecified, loopback, link-local,
    /// multicast, reserved.
    fn is_martian(self) -> bool;
}

/// One direction of a session, in memory that other processors see.
pub trait Entry<A: Address> {
    /// Word 0.
    fn meta(&self) -> &Word;
    /// The key as it stands.
    fn key(&self) -> A::Words;
    /// Writes the key.
    fn set_key(&self, key: &A::Words);
    /// The rewrite as it stands.
    fn rewrite(&self) -> Rewrite<A>;
    /// Writes the rewrite.
    fn set_rewrite(&self, rewrite: &Rewrite<A>);
    /// Record, next hop, flags seen.
    fn link(&self) -> &Word;
    /// Stamp and epoch slots.
    fn stamp(&self) -> &Word;
    /// Packets and bytes.
    fn count(&self) -> &Word;

    /// A reading of word 0.
    #[inline(always)]
    fn load_meta(&self) -> Meta {
        Meta(self.meta().load())
    }
    /// A reading of the link word.
    #[inline(always)]
    fn load_link(&self) -> Link {
        Link(self.link().load())
    }
    /// A reading of the stamp word.
    #[inline(always)]
    fn load_stamp(&self) -> Stamp {
        Stamp(self.stamp().load())
    }
}

/// An IPv4 address, as the packet carries it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct V4(pub [u8; 4]);

impl V4 {
    #[inline(always)]
    fn word(self) -> u64 {
        u32::from_ne_bytes(self.0) as u64
    }
    #[inline(always)]
    fn from_word(word: u64) -> Self {
        Self((word as u32).to_ne_bytes())
    }
}

#[inline(always)]
fn port(word: u64) -> [u8; 2] {
    (word as u16).to_ne_bytes()
}

#[inline(always)]
fn half(bytes: [u8; 2]) -> u64 {
    u16::from_ne_bytes(bytes) as u64
}

impl Address for V4 {
    type Words = [u64; 2];
    type Entry = Entry4;

    #[inline(always)]
    fn sum(self) -> u32 {
        let word = u32::from_ne_bytes(self.0);
        (word >> 16) + (word & 0xffff)
    }

    #[inline(always)]
    fn mix(self) -> u64 {
        self.word().wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    #[inline(always)]
    fn pack(key: &Key<Self>) -> [u64; 2] {
        [
            key.source.word() << 32 | key.destination.word(),
            half(key.source_port) << 48
                | half(key.destination_port) << 32
                | (key.domain as u64) << 16
                | (key.protocol as u64) << 8,
        ]
    }

    #[inline(always)]
    fn unpack(words: &[u64; 2]) -> Key<Self> {
        Key {
            source: Self::from_word(words[0] >> 32),
            destination: Self::from_word(words[0]),
            source_port: port(words[1] >> 48),
            destination_port: port(words[1] >> 32),
            domain: (words[1] >> 16) as u16,
            protocol: (words[1] >> 8) as u8,
        }
    }

    #[inline(always)]
    fn hash(words: &[u64; 2], seed: u64) -> u64 {
        let mut h = (words[0] ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        h ^= h >> 32;
        h = (h ^ words[1]).wrapping_mul(0xd6e8_feb8_6659_fd93);
        h ^= h >> 32;
        h = h.wrapping_mul(0xd6e8_feb8_6659_fd93);
        h ^ h >> 29
    }

    #[inline(always)]
    fn bytes4(self) -> [u8; 4] {
        self.0
    }

    #[inline(always)]
    fn is_martian(self) -> bool {
        let [a, b, ..] = self.0;
        a == 0 || a == 127 || a >= 224 || a == 169 && b == 254
    }
}

impl Entry<V4> for Entry4 {
    #[inline(always)]
    fn meta(&self) -> &Word {
        &self.words[0]
    }
    #[inline(always)]
    fn key(&self) -> [u64; 2] {
        [self.words[1].load(), self.words[2].load()]
    }
    #[inline(always)]
    fn set_key(&self, key: &[u64; 2]) {
        self.words[1].store(key[0]);
        self.words[2].store(key[1]);
    }
    #[inline(always)]
    fn rewrite(&self) -> Rewrite<V4> {
        let addresses = self.words[3].load();
        let rest = self.words[4].load();
        Rewrite {
            source: V4::from_word(addresses >> 32),
            destination: V4::from_word(addresses),
            source_port: port(rest >> 48),
            destination_port: port(rest >> 32),
            address_delta: (rest >> 16) as u16,
            transport_delta: rest as u16,
        }
    }
    #[inline(always)]
    fn set_rewrite(&self, rewrite: &Rewrite<V4>) {
        self.words[3].store(rewrite.source.word() << 32 | rewrite.destination.word());
        self.words[4].store(
            half(rewrite.source_port) << 48
                | half(rewrite.destination_port) << 32
                | (rewrite.address_delta as u64) << 16
                | rewrite.transport_delta as u64,
        );
    }
    #[inline(always)]
    fn link(&self) -> &Word {
        &self.words[5]
    }
    #[inline(always)]
    fn stamp(&self) -> &Word {
        &self.words[6]
    }
    #[inline(always)]
    fn count(&self) -> &Word {
        &self.words[7]
    }
}
