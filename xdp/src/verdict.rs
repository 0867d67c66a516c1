//! What becomes of a packet.

use crate::address::{Rewrite, V4};
use xdp_abi::{forward::Hop, reason::Reason};

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<A> {
    /// Send it on with new addresses and ports.
    Forward(Forward<A>),
    /// Leave it to the kernel: it is not transit.
    Pass,
    /// Send it up untranslated for the kernel to route; TC egress translates it.
    Punt(u16),
    /// Discard it.
    Drop(Reason),
    /// Discard it and answer its sender.
    Answer(Reason, Answer),
}

/// A packet that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward<A> {
    /// New addresses and ports.
    pub rewrite: Rewrite<A>,
    /// Where it goes.
    pub hop: Hop,
    /// Whether it is an answer.
    pub reply: bool,
    /// Its session: incarnation 32 | record 32.
    pub session: u64,
    /// The rule that permits it; zero: the default action.
    pub rule: u32,
}

impl Forward<V4> {
    /// Nothing yet.
    pub const NOWHERE: Self = Self {
        rewrite: Rewrite {
            source: V4([0; 4]),
            destination: V4([0; 4]),
            source_port: [0; 2],
            destination_port: [0; 2],
            address_delta: 0,
            transport_delta: 0,
        },
        hop: Hop { destination: 0, source: 0, place: 0, checked: 0 },
        reply: false,
        session: 0,
        rule: 0,
    };
}

/// What a sender is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A TCP RST.
    Reset,
    /// ICMP type, code, and next-hop MTU; from this address.
    Icmp(u8, u8, u16, [u8; 4]),
}

/// A verdict in one register, on its way between the functions of a BPF program: an enum with
/// fields would travel through memory, parts of which nobody has written.
///
/// ```text
/// step 8 | reason 8 | ICMP type 8 | ICMP code 8 | zero 16 | MTU 16
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(u64);

impl Code {
    /// Nothing is decided yet.
    pub const GO_ON: Self = Self(0);
    /// The rest is in a [`Forward`].
    pub const FORWARD: Self = Self(1 << 56);
    /// Leave it to the kernel.
    pub const PASS: Self = Self(2 << 56);
    /// Send it up untranslated.
    pub const PUNT: Self = Self(3 << 56);
    /// There is no session, or none any more: treat the packet as one of an unknown flow.
    pub const ANEW: Self = Self(7 << 56);
    /// It is an ICMP error that may be about a session.
    pub const ERROR: Self = Self(9 << 56);
    /// The flow is permitted, and its session may be opened.
    pub const OPEN: Self = Self(11 << 56);
    /// A session is in the way and is to be ended first.
    pub(crate) const END: Self = Self(12 << 56);
    /// The session was judged under another policy: judge it again first.
    pub const STALE: Self = Self(10 << 56);

    #[inline(always)]
    const fn of(step: u64, reason: Reason) -> Self {
        Self(step << 56 | (reason as u64) << 48)
    }

    /// Discard it.
    #[inline(always)]
    pub const fn drop(reason: Reason) -> Self {
        Self::of(4, reason)
    }
    /// Discard it and send a RST.
    #[inline(always)]
    pub const fn reset(reason: Reason) -> Self {
        Self::of(5, reason)
    }
    /// Discard it and send an ICMP error.
    #[inline(always)]
    pub const fn icmp(reason: Reason, kind: u8, code: u8, mtu: u16) -> Self {
        Self(
            6 << 56
                | (reason as u64) << 48
                | (kind as u64) << 40
                | (code as u64) << 32
                | mtu as u64,
        )
    }
    /// Discard it and send a RST to whom it was for, as the rest in a [`Forward`] says.
    #[inline(always)]
    pub const fn reset_ahead(reason: Reason) -> Self {
        Self::of(13, reason)
    }
    /// The RST was made for whom the packet was for; the packet itself was dropped for `reason`.
    #[inline(always)]
    pub const fn told(reason: Reason) -> Self {
        Self::of(14, reason)
    }
    /// The answer was made; the packet itself was dropped for `reason`.
    #[inline(always)]
    pub const fn answered(reason: Reason) -> Self {
        Self::of(8, reason)
    }
    /// Whether somebody is to be told.
    #[inline(always)]
    pub const fn is_answer(self) -> bool {
        matches!(self.0 >> 56, 5 | 6 | 13)
    }
    /// Whether whom it was for is to be sent a RST.
    #[inline(always)]
    pub const fn is_reset_ahead(self) -> bool {
        self.0 >> 56 == 13
    }
    /// Whether whom it was for was told.
    #[inline(always)]
    pub const fn is_told(self) -> bool {
        self.0 >> 56 == 14
    }
    /// Whether its sender was answered.
    #[inline(always)]
    pub const fn is_answered(self) -> bool {
        self.0 >> 56 == 8
    }
    /// Why the packet is dropped; for anything that is no drop, `HelperFailed`.
    #[inline(always)]
    pub const fn reason(self) -> Reason {
        Reason::from_bits((self.0 >> 48) as u8)
    }
    /// What an answer says; from `address`, if it is ICMP.
    #[inline(always)]
    pub const fn answer(self, address: [u8; 4]) -> Answer {
        if self.0 >> 56 == 5 {
            return Answer::Reset;
        }
        Answer::Icmp((self.0 >> 40) as u8, (self.0 >> 32) as u8, self.0 as u16, address)
    }
    /// Whether it is a plain drop for one of these reasons.
    #[inline(always)]
    pub const fn is_drop(self, reason: Reason) -> bool {
        self.0 == Self::drop(reason).0
    }
    /// Whether two are the same.
    #[inline(always)]
    pub const fn is(self, other: Self) -> bool {
        self.0 == other.0
    }

    /// The verdict, spelt out.
    pub fn verdict(self, forward: &Forward<V4>, attachment: u16, address: [u8; 4]) -> Verdict<V4> {
        match self.0 >> 56 {
            1 => Verdict::Forward(*forward),
            2 => Verdict::Pass,
            3 => Verdict::Punt(attachment),
            5 | 6 => Verdict::Answer(self.reason(), self.answer(address)),
            _ => Verdict::Drop(self.reason()),
        }
    }
}
