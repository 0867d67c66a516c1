//! The state that decisions read and write, however it is stored.

use crate::{
    address::{Address, V4},
    recent::Line,
    repeat::Repeat,
};
use xdp_abi::{
    config::{Config, Shared},
    count::Counters,
    event::Event4,
    forward::{Attachment, Hop, LinkInfo, NO_GLANCE, NextHopKey, PORT_PREFIXES, PortInfo},
    policy::{IdentityRef, PoolAddress, Rule, RuleSet, Snat, SnatBits},
    port::{PairKey4, Ports},
    reason::Reason,
    session::Record,
    word::Word,
};

/// What the kernel's routing table says about a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Hand it to this neighbour.
    Via {
        /// The interface that the kernel routes by (perhaps a VLAN device).
        ifindex: u32,
        /// The gateway, or the destination itself on its own link.
        gateway: [u8; 4],
        /// The neighbour's hardware address, unless it must be resolved first.
        destination_mac: Option<[u8; 6]>,
        /// The interface's own hardware address.
        source_mac: [u8; 6],
        /// The largest IP packet that goes this way, [`u16::MAX`] if only the link says.
        mtu: u16,
    },
    /// No way there. What is for the machine itself is none either: that is known before a way
    /// is asked for ([`crate::arrival::is_own`]), and the kernel does not tell the two apart.
    Unreachable,
    /// The helper failed.
    Failed,
}

/// What is counted of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Sent on; true: in the answering direction.
    Forwarded(bool),
    /// Left to the kernel.
    Passed,
    /// Sent up for the kernel to route.
    Punted,
    /// Discarded.
    Dropped(Reason),
}

/// Everything a decision may look at or change. One implementation in the eBPF object, one in
/// memory for tests, `explain` and migration.
pub trait Tables: Repeat {
    /// The address family.
    type A: Address;

    /// Global settings.
    fn config(&self) -> &Config;
    /// Shared words.
    fn shared(&self) -> &Shared;
    /// An identity epoch.
    fn epoch(&self, slot: u32) -> u32;
    /// Some 32 random bits.
    fn random(&self) -> u32;
    /// The monotonic clock, nanoseconds.
    fn clock(&self) -> u64;

    /// An entry of the session table; window slots first, then overflow slots.
    fn slot(&self, index: u32) -> Option<&<Self::A as Address>::Entry>;
    /// Eight bytes of hints, of window slots and behind these of near slots ([`crate::table`]).
    fn hints(&self, word: u32) -> Option<&Word>;
    /// What this processor remembers at a place of [`crate::recent`].
    fn recent(&self, place: u32) -> Option<&Line>;
    /// A cold record.
    fn record(&self, index: u32) -> Option<&Record>;
    /// Takes the index of a record that no session uses.
    fn take_record(&self) -> Option<u32>;
    /// Gives it back.
    fn give_record(&self, index: u32);
    /// The overflow slot of a key.
    fn overflow(&self, key: &<Self::A as Address>::Words) -> Option<u32>;
    /// Enters a key's overflow slot; false if the key is there or the map refuses.
    fn add_overflow(&self, key: &<Self::A as Address>::Words, slot: u32) -> bool;
    /// Forgets a key's overflow slot.
    fn remove_overflow(&self, key: &<Self::A as Address>::Words);
    /// Takes an overflow slot.
    fn take_overflow(&self) -> Option<u32>;
    /// Gives it back.
    fn give_overflow(&self, slot: u32);

    /// The identity of an address: exact, then by longest prefix, then the unknown one.
    fn identity(&self, bank: u32, domain: u16, address: Self::A) -> IdentityRef;
    /// Rules that an identity may be the source of.
    fn source_rules(&self, bank: u32, identity: u32) -> Option<&RuleSet>;
    /// Rules that an identity may be the destination of.
    fn destination_rules(&self, bank: u32, identity: u32) -> Option<&RuleSet>;
    /// The class of a protocol and port.
    fn class(&self, bank: u32, index: u32) -> u16;
    /// Rules that a class admits.
    fn class_rules(&self, bank: u32, class: u16) -> Option<&RuleSet>;
    /// Rules that are watched and never decide.
    fn monitors(&self, bank: u32) -> Option<&RuleSet>;
    /// A rule.
    fn rule(&self, bank: u32, bit: u32) -> Option<Rule>;
    /// Counts a decision of a rule.
    fn count_rule(&self, counter: u32, bytes: u64);
    /// SNAT policies of an identity.
    fn snat_bits(&self, bank: u32, identity: u32) -> Option<&SnatBits>;
    /// A SNAT policy.
    fn snat(&self, bank: u32, bit: u32) -> Option<Snat>;
    /// An outside address.
    fn pool(&self, bank: u32, place: u32) -> Option<PoolAddress>;
    /// Whether an address is the outside address of some SNAT policy in force.
    fn is_outside(&self, bank: u32, address: Self::A) -> bool;
    /// The ports that may be lent of it.
    fn lendable(&self, index: u32) -> Option<&Ports>;
    /// The bitmap of a hot pair.
    fn bitmap(&self, pair: &PairKey4) -> Option<&Ports>;
    /// Makes a pair hot: the number of its bitmap, new and empty or the one that another processor
    /// made.
    fn make_hot(&self, pair: &PairKey4) -> Option<u32>;
    /// The bitmap of a number.
    fn bitmap_of(&self, number: u32) -> Option<&Ports>;

    /// The domain of a source behind an untagged interface, where a glance tells it; for the
    /// established path only, which checks it by finding the session.
    fn domain_at_a_glance(&self, ifindex: u32, to: &[u8; 6], source: Self::A) -> Option<u16>;
    /// The attachment that a source behind a port belongs to.
    fn attachment_of(&self, port: u32, source: Self::A) -> Option<u16>;
    /// The attachment that a destination ahead of a port belongs to.
    fn attachment_towards(&self, port: u32, destination: Self::A) -> Option<u16>;
    /// An attachment, [`Attachment::NONE`] if the number is nobody's.
    fn attachment(&self, number: u16) -> Option<Attachment>;
    /// Whether an attachment carries a non-routable source as it is.
    fn carries(&self, attachment: u16, source: Self::A) -> bool;
    /// Whether the machine itself has this address.
    fn is_local(&self, address: Self::A) -> bool;
    /// Whether the machine itself has this IPv6 address.
    fn is_local6(&self, address: &[u8; 16]) -> bool;
    /// An interface.
    fn link(&self, ifindex: u32) -> Option<LinkInfo>;
    /// Asks the kernel for the way to `destination` for a packet that came in by `ifindex`.
    fn route(&self, ifindex: u32, source: Self::A, destination: Self::A) -> Route;
    /// A next hop.
    fn hop(&self, number: u16) -> Option<Hop>;
    /// The number of a next hop, if it has one.
    fn find_hop(&self, key: &NextHopKey) -> Option<u16>;
    /// Numbers a next hop, or finds the number that another processor gave it.
    fn add_hop(&self, key: &NextHopKey, hop: &Hop) -> Option<u16>;
    /// Writes what the kernel says of a next hop now.
    fn set_hop(&self, number: u16, hop: &Hop);

    /// Whether something may still be done in this bucket this second: an answer or a report.
    /// Counts what was held back, and gives that count with the next permission.
    fn admit(&self, bucket: u32, limit: u32, now: u32) -> Option<u32>;
    /// Hands an event to user space, or counts it as lost. It is filled in where it will be
    /// read, because it is too big for the stack of a BPF program.
    fn report(&self, fill: impl FnOnce(&mut Event4));
    /// Counts something.
    fn tally(&self, what: Tally);
}

/// Things that are counted apart from packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tally {
    /// A session began.
    Begun,
    /// A session ended.
    Ended,
    /// A session was judged again.
    JudgedAgain,
    /// A guard stopped a packet.
    LeakStopped,
    /// An event was held back by a rate limit.
    Suppressed,
}

impl Tally {
    /// Counts it.
    #[inline(always)]
    pub const fn count(self, counters: &mut Counters) {
        match self {
            Self::Begun => counters.sessions_begun += 1,
            Self::Ended => counters.sessions_ended += 1,
            Self::JudgedAgain => counters.judged_again += 1,
            Self::LeakStopped => counters.leaks_stopped += 1,
            Self::Suppressed => counters.events_suppressed += 1,
        }
    }
}

/// Whether an address lies in a non-routable prefix.
#[inline(always)]
pub fn is_non_routable(config: &Config, address: V4) -> bool {
    let word = u32::from_ne_bytes(address.0);
    let mut i = 0;
    while i < config.non_routable.len() {
        let prefix = config.non_routable[i].load();
        if prefix == 0 {
            return false;
        }
        if word & prefix as u32 == (prefix >> 32) as u32 {
            return true;
        }
        i += 1;
    }
    false
}

/// The domain that a port's few prefixes give a source.
#[inline(always)]
pub fn glance(info: &PortInfo, ifindex: u32, to: &[u8; 6], source: V4) -> Option<u16> {
    if info.ifindex != ifindex || (info.mac != *to && (info.mac != [0; 6] || to[0] & 1 != 0)) {
        return None;
    }
    let word = u32::from_ne_bytes(source.0);
    let mut i = 0;
    while i < PORT_PREFIXES {
        if i as u32 >= info.prefixes_used {
            return None;
        }
        let [network, mask] = info.prefixes[i];
        if word & mask == network {
            let domain = info.domains[i];
            return if domain == NO_GLANCE { None } else { Some(domain) };
        }
        i += 1;
    }
    None
}

/// A bucket of [`Tables::admit`]: second 24 | held back 24 | admitted 16. A second is sixteen
/// ticks. What was held back is told with the first permission of a later second.
#[inline(always)]
pub fn admit(bucket: &Word, limit: u32, now: u32) -> Option<u32> {
    let second = (now >> 4) as u64 & 0xff_ffff;
    let old = bucket.load();
    let held = old >> 16 & 0xff_ffff;
    let (new, answer) = if old >> 40 != second {
        (second << 40 | 1, Some(held as u32))
    } else if (old & 0xffff) < limit as u64 {
        (second << 40 | held << 16 | ((old & 0xffff) + 1), Some(0))
    } else {
        let held = if held == 0xff_ffff { held } else { held + 1 };
        (second << 40 | held << 16 | old & 0xffff, None)
    };
    // Losing the race means that another processor counted: the limit is a little softer.
    bucket.replace(old, new);
    answer
}
