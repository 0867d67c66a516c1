//! What the daemon tells the datapath, and the few words that the datapath keeps for itself.

use crate::{session::Class, word::Word};

/// How many non-routable prefixes may be configured.
pub const NON_ROUTABLE: usize = 8;

/// Everything global that a packet's way depends on. One element, mapped into the daemon, so
/// that each field is written whole.
#[repr(C)]
pub struct Config {
    /// The policy in force; one store swaps it ([`PolicyWord`]).
    pub policy: Word,
    /// Random, chosen when the tables are made; keeps strangers from aiming at one slot.
    pub seed: Word,
    /// Slots of the window table less one | slots kept for overflow in the upper half.
    pub slots: Word,
    /// How many bits a jiffy count is shifted right to make a tick (about 1/16 s), below 64 |
    /// [`HINTED`] | near slots in the upper half, behind those kept for overflow; zero in a table
    /// that was made without.
    pub tick_shift: Word,
    /// Idle time in ticks, two classes a word: `Class` number n is half n & 1 of word n / 2.
    pub timeouts: [Word; Class::COUNT / 2],
    /// Ticks that a port rests after a session that did not close clean.
    pub rest: Word,
    /// Network 32 | mask 32, both as the packet carries them; unused ones never match.
    pub non_routable: [Word; NON_ROUTABLE],
    /// [`MIDSTREAM_RESET`] and its like.
    pub midstream: Word,
    /// Answers per second and bucket, and deny events per second and bucket (32 | 32).
    pub rates: Word,
    /// [`crate::ABI_VERSION`] of whoever made the maps; zero: they are not whole yet. At
    /// [`ABI_AT`], whatever else changes.
    pub abi: Word,
    /// Sampling of `capture`: one packet in so many matches; zero: off. Filter follows.
    pub capture: Word,
    /// Capture filter: address 32 | mask 32 that source or destination must match.
    pub capture_address: Word,
    /// Capture filter: port 16 | protocol 8 (zero: any).
    pub capture_ports: Word,
}

/// In `Config::tick_shift`: the table was made with hints (`xdp::table`), and these are right.
pub const HINTED: u64 = 1 << 8;

/// Where every version has its own number, in bytes: what is read before anything else is known
/// of a layout.
pub const ABI_AT: usize = 152;
const _: () = assert!(core::mem::offset_of!(Config, abi) == ABI_AT);

/// A TCP segment without a session is answered with RST from inside, dropped from outside.
pub const MIDSTREAM_RESET: u64 = 0;
/// It is dropped without an answer.
pub const MIDSTREAM_DROP: u64 = 1;
/// It opens a session if no translation is needed.
pub const MIDSTREAM_ADOPT: u64 = 2;

/// The word `Config::policy`: all that must change together when a policy is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyWord(pub u64);

impl PolicyWord {
    /// Puts the fields together.
    #[must_use]
    pub const fn new(
        generation: u32,
        bank: u32,
        rule_words: u32,
        snat_policies: u32,
        default_action: u8,
        default_log: u8,
    ) -> Self {
        Self(
            (generation as u64) << 32
                | (bank as u64 & 1) << 31
                | (default_action as u64 & 3) << 29
                | (default_log as u64 & 3) << 27
                | (snat_policies as u64 & 0x3ff) << 10
                | rule_words as u64 & 0x3ff,
        )
    }
    /// Which policy this is; zero: none was ever published, everything is refused.
    #[inline(always)]
    #[must_use]
    pub const fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
    /// Which half of the policy tables it is in.
    #[inline(always)]
    #[must_use]
    pub const fn bank(self) -> u32 {
        (self.0 >> 31) as u32 & 1
    }
    /// What happens where no rule matches (`policy::ACTION_*`).
    #[inline(always)]
    #[must_use]
    pub const fn default_action(self) -> u8 {
        (self.0 >> 29) as u8 & 3
    }
    /// What of it is recorded (`policy::LOG_*`).
    #[inline(always)]
    #[must_use]
    pub const fn default_log(self) -> u8 {
        (self.0 >> 27) as u8 & 3
    }
    /// How many SNAT policies there are.
    #[inline(always)]
    #[must_use]
    pub const fn snat_policies(self) -> u32 {
        (self.0 >> 10) as u32 & 0x3ff
    }
    /// How many words of a rule set are in use.
    #[inline(always)]
    #[must_use]
    pub const fn rule_words(self) -> u32 {
        self.0 as u32 & 0x3ff
    }
}

/// Words that every processor shares and the datapath changes.
#[repr(C)]
pub struct Shared {
    /// Entries that stand outside their window.
    pub overflowed: Word,
    /// Pairs that have a bitmap.
    pub hot_pairs: Word,
    /// Where the next sweep, or the next reclaim under pressure, goes on.
    pub sweep_cursor: Word,
    /// Sessions begun; the low half is the next incarnation.
    pub incarnation: Word,
    /// Packets whose copy for `capture` was considered.
    pub capture_seen: Word,
    /// Worst number of steps that one port allocation took.
    pub port_steps_max: Word,
    /// The last reading of the kernel's tick counter, and of its clock at the same time.
    pub jiffies: Word,
    /// See `jiffies`; nanoseconds.
    pub nanoseconds: Word,
}
