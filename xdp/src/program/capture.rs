//! Copies of packets for `sluicectl capture`: a redirected frame is seen by no packet socket.
//!
//! While `Config::capture` is not zero every packet takes the longer way, one in so many of
//! those that match the filter is copied, before and after.

use super::{
    frame::Peek,
    maps::{EVENTS, Kernel},
};
use xdp::{
    pipeline::{Told, Work},
    sample::is_sampled,
    tables::Tables as _,
};
use xdp_abi::event::{CAPTURE, CAPTURE_BYTES, Captured, STAGE_AFTER, STAGE_BEFORE};

/// Copies a frame that was just read, if it is wanted; its number, or zero.
#[inline(always)]
pub(crate) fn before<F: Peek>(kernel: &Kernel, frame: &F, work: &Work, ifindex: u32) -> u64 {
    let every = kernel.config().capture.load();
    if every == 0 || !work.is_wanted(kernel.config()) {
        return 0;
    }
    let seen = kernel.shared().capture_seen.fetch_add(1);
    if !is_sampled(seen, every) {
        return 0;
    }
    let number = seen.wrapping_add(1);
    let told = Told { session: 0, rule: 0, verdict: 0, reason: 0 };
    copy(kernel, frame, &told, number << 1 | STAGE_BEFORE as u64, ifindex);
    number
}

/// Copies a frame as it is left.
#[inline(always)]
pub(crate) fn after<F: Peek>(kernel: &Kernel, frame: &F, work: &Work, ifindex: u32) {
    copy(kernel, frame, &work.told(), work.copy << 1 | STAGE_AFTER as u64, ifindex);
}

#[inline(never)]
fn copy<F: Peek>(kernel: &Kernel, frame: &F, told: &Told, number: u64, ifindex: u32) {
    // One that finds no room is no lost event: whoever takes the copies sees by the numbers that it
    // is missing.
    let Some(mut entry) = EVENTS.reserve::<Captured>(0) else { return };
    let length = frame.length();
    let record = entry.as_mut_ptr();
    // SAFETY: the kernel reserved room for a record; every field is written, the bytes by the
    // helper or not at all, which `captured` says.
    unsafe {
        let bytes = (&raw mut (*record).bytes).cast::<u8>();
        let captured = frame.peek(bytes, CAPTURE_BYTES as u32);
        (&raw mut (*record).kind).write(CAPTURE);
        (&raw mut (*record).stage).write(number as u8 & 1);
        (&raw mut (*record).verdict).write(told.verdict);
        (&raw mut (*record).reason).write(told.reason);
        (&raw mut (*record).length).write(length);
        (&raw mut (*record).number).write(number >> 1);
        (&raw mut (*record).session).write(told.session);
        (&raw mut (*record).time).write(kernel.clock());
        (&raw mut (*record).ifindex).write(ifindex);
        (&raw mut (*record).rule).write(told.rule);
        (&raw mut (*record).captured).write(captured as u64);
    }
    entry.submit(0);
}
