//! Counts what became of every frame, so that what was received is the sum of it.

use crate::{egress::Egress, pipeline::Done, verdict::Code};
use xdp_abi::{
    count::{Amount, Counters, UNKNOWN},
    reason::Reason,
};

/// Counts what became of a frame that an ingress hook received, as it was on the wire.
#[inline(always)]
pub fn count(counters: &mut Counters, done: &Done, amount: Amount) {
    add(&mut counters.received, amount);
    if done.code.is(Code::FORWARD) {
        let [original, answers] = &mut counters.forwarded;
        add(if done.reply { answers } else { original }, amount);
    } else if done.code.is(Code::PASS) {
        add(&mut counters.passed, amount);
    } else if done.code.is(Code::PUNT) {
        add(&mut counters.punted, amount);
    } else {
        if done.code.is_answered() || done.code.is_told() {
            counters.answered += 1;
        }
        dropped(counters, done.direction as usize, done.code.reason(), amount.packets);
    }
}

/// Counts what TC egress did. A frame that is dropped here is counted as received once more,
/// so that what was received stays the sum of what became of it.
#[inline(always)]
pub fn count_egress(counters: &mut Counters, egress: Egress, amount: Amount) {
    match egress {
        Egress::Untouched => {}
        Egress::Translated => add(&mut counters.translated_late, amount),
        Egress::Drop(reason) => {
            add(&mut counters.received, amount);
            dropped(counters, UNKNOWN, reason, amount.packets);
        }
    }
}

#[inline(always)]
const fn add(to: &mut Amount, amount: Amount) {
    to.packets += amount.packets;
    to.bytes += amount.bytes;
}

#[inline(always)]
fn dropped(counters: &mut Counters, direction: usize, reason: Reason, packets: u64) {
    if let Some(by_reason) = counters.drops.get_mut(direction)
        // The compiler knows that a reason is in bounds and drops the check; the verifier does
        // not know, and wants to see it.
        && let Some(count) = by_reason.get_mut(core::hint::black_box(reason as usize))
    {
        *count += packets;
    }
}
