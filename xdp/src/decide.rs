//! The long way: everything that is not a plain packet of a known session.
//!
//! A packet belongs to an attachment by where it came in and by its source; that gives the
//! domain and so the session key. What follows is here in its order, and told step by step in the
//! modules:
//!
//! - A `known` session is checked (time, policy, phase, next hop). If policy or identities have
//!   changed it is judged `again`.
//! - An `unknown` flow is judged and given a way out; then it is translated and written down
//!   (`open`). Of a plain `first` packet it may be remembered who sends it.
//! - Both are told their next hops by `ways`; `refuse` is for what does not go on.

mod again;
mod first;
mod known;
mod open;
mod outlook;
mod plan;
mod refuse;
mod unknown;
mod ways;

pub(crate) use first::first;
pub use outlook::{Exit, Outlook, Sequel, outlook};
pub use plan::Plan;

use crate::{
    address::{Address, V4},
    arrival::{Arrival, attached, is_own},
    packet::Packet,
    session::{Ended, end},
    table::{self, Found},
    tables::Tables,
    verdict::{Code, Forward, Verdict},
};
use again::Doom;
use xdp_abi::{
    forward::{Attachment, KIND_SPOKE, port},
    reason::Reason,
};

/// What was decided, and what counting and `capture` want to know of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What becomes of the packet.
    pub code: Code,
    /// The details, if it goes on.
    pub forward: Forward<V4>,
    /// The attachment it came by; zero: unknown.
    pub attachment: u16,
    /// The machine's address there.
    pub address: [u8; 4],
    /// Whether it came from a spoke.
    pub outbound: bool,
    /// The attachment itself. Here, because the stack of a BPF program is short.
    from: Attachment,
    doom: Doom,
}

impl Decision {
    /// Before anything is decided.
    pub const NONE: Self = Self {
        code: Code::GO_ON,
        forward: Forward::NOWHERE,
        attachment: 0,
        address: [0; 4],
        outbound: false,
        from: Attachment::NONE,
        doom: Doom::NONE,
    };

    /// The verdict, spelt out.
    pub fn verdict(&self) -> Verdict<V4> {
        self.code.verdict(&self.forward, self.attachment, self.address)
    }
}

/// The packet of a known session: what becomes of it, or that there is no session
/// ([`Code::ANEW`]). What is said of it, if it is judged again, is left in `plan`.
#[inline(always)]
pub fn continued<T: Tables<A = V4>>(
    tables: &T,
    packet: &mut Packet<V4>,
    arrival: &Arrival,
    decision: &mut Decision,
    plan: &mut Plan,
) {
    if !locate(tables, packet, arrival, decision) {
        return;
    }
    let way = Way::new(tables, packet, arrival, decision.attachment, &decision.from);
    let Some(found) = table::find(tables, &V4::pack(&packet.key)) else {
        decision.code = Code::ANEW;
        return;
    };
    let Decision { forward, doom, .. } = decision;
    // What the packet before has left is still there.
    doom.goes_anew = false;
    let mut code = way.known(&found, forward, doom);
    if code.is(Code::STALE) {
        code = reconsider(&way, &found, plan, doom);
        if code.is(Code::END) {
            if doom.is_answer {
                way.remember_ahead(&found, forward);
            }
            end(tables, doom.record, doom.ending, way.now);
            decision.code = way.cut(&plan.judgement, doom);
            return;
        }
        if code.is(Code::GO_ON) {
            code = way.renew(&found, plan, doom);
        }
        if code.is(Code::GO_ON) {
            // Its stamp is that of just now, unless the policy changed once more: then the
            // next packet is judged.
            code = way.known(&found, forward, doom);
            if code.is(Code::STALE) {
                code = Code::drop(Reason::Contended);
            }
        }
    }
    if code.is(Code::END) {
        code = match end(tables, doom.record, doom.ending, way.now) {
            Ended::Gone => Code::ANEW,
            // It rests, or a packet has just revived it: the next packet sees which.
            Ended::Rests | Ended::Lives => Code::drop(Reason::Contended),
        };
    }
    decision.code = code;
}

/// Judges a session again: whether it goes on, [ends](Code::END), or its packet is dropped.
#[inline(always)]
fn reconsider<T: Tables<A = V4>>(
    way: &Way<'_, T>,
    found: &Found,
    plan: &mut Plan,
    doom: &mut Doom,
) -> Code {
    // One after the other, and not one inside the other, as in `opened`.
    let mut code = way.recall(found, plan, doom);
    if code.is(Code::GO_ON) {
        code = way.judge_again(plan, doom);
    }
    if code.is(Code::GO_ON) && doom.goes_anew {
        code = way.route_again(plan, doom);
    }
    code
}

/// The packet of an unknown flow, after it was found that it is one, and by `locate` where it
/// came from.
#[inline(always)]
pub fn opened<T: Tables<A = V4>>(
    tables: &T,
    packet: &Packet<V4>,
    arrival: &Arrival,
    decision: &mut Decision,
    plan: &mut Plan,
) {
    let way = Way::new(tables, packet, arrival, decision.attachment, &decision.from);
    // One after the other, and not one inside the other: their frames share the stack.
    let mut code = way.unknown(plan);
    if code.is(Code::OPEN) {
        code = way.choose(plan);
        if code.is(Code::GO_ON) {
            code = way.enter(plan);
        }
        if code.is(Code::GO_ON) {
            code = way.write_down(plan, &mut decision.forward);
        } else {
            code = way.not_opened(code, plan);
        }
    }
    decision.code = code;
}

/// Finds the attachment that a packet came by, or decides without one; the packet gets its
/// domain.
#[inline(always)]
fn locate<T: Tables<A = V4>>(
    tables: &T,
    packet: &mut Packet<V4>,
    arrival: &Arrival,
    decision: &mut Decision,
) -> bool {
    let place = port(arrival.ifindex, arrival.vlan);
    let number = tables.attachment_of(place, packet.key.source).unwrap_or(0);
    located(tables, packet, number, decision)
}

/// Takes a packet for one of an attachment, or decides without one; zero: it is of none.
#[inline(always)]
fn located<T: Tables<A = V4>>(
    tables: &T,
    packet: &mut Packet<V4>,
    number: u16,
    decision: &mut Decision,
) -> bool {
    decision.attachment = number;
    decision.outbound = false;
    decision.address = [0; 4];
    let Some(attachment) = attached(tables, number) else {
        decision.code = not_from_here(tables, packet);
        return false;
    };
    decision.outbound = attachment.kind == KIND_SPOKE;
    decision.address = attachment.address;
    packet.key.domain = attachment.domain;
    decision.from = attachment;
    true
}

/// A packet that belongs to no attachment.
#[inline(always)]
fn not_from_here<T: Tables<A = V4>>(tables: &T, packet: &Packet<V4>) -> Code {
    if is_own(tables, packet.key.destination) {
        return Code::PASS;
    }
    Code::drop(Reason::SpoofedSource)
}

/// One packet on its way.
struct Way<'a, T: Tables> {
    tables: &'a T,
    packet: &'a Packet<T::A>,
    arrival: &'a Arrival,
    number: u16,
    attachment: &'a Attachment,
    now: u32,
}

impl<'a, T: Tables<A = V4>> Way<'a, T> {
    #[inline(always)]
    fn new(
        tables: &'a T,
        packet: &'a Packet<V4>,
        arrival: &'a Arrival,
        number: u16,
        attachment: &'a Attachment,
    ) -> Self {
        Self { tables, packet, arrival, number, attachment, now: arrival.now }
    }

    /// What the packet is on the wire, from the IP header on: every segment has headers.
    #[inline(always)]
    fn bytes(&self) -> u64 {
        self.packet.length as u64 + self.arrival.repeated()
    }
}
