//! Entry points: what each hook does with the core's answer.

mod capture;
mod frame;
mod maps;
mod words;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action, xdp_md},
    helpers::generated::{
        bpf_jiffies64, bpf_ktime_get_ns, bpf_redirect, bpf_xdp_adjust_meta, bpf_xdp_load_bytes,
    },
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use frame::{Copied, Direct, DirectSkb, Skb};
use maps::{Kernel, TC_STAGES, XDP_STAGES, work};
use xdp::{
    books,
    egress::{Egress, egress},
    frame::Frame as _,
    pipeline::{self, Done, Hook, Quick, Work},
    session::{Ending, end},
    sweep::sweep_turn,
    table,
    tables::Tables as _,
    verdict::Code,
};
use xdp_abi::{
    control::{self, MARK, MARK_MASK},
    count::Amount,
    forward::HOP_REDIRECT,
    names,
    reason::Reason,
};

/// The stages, by their places in both arrays of tail-call targets.
const SLOW: u32 = names::STAGE_SLOW;
const KNOWN: u32 = names::STAGE_KNOWN;
const OPEN: u32 = names::STAGE_OPEN;
const ERROR: u32 = names::STAGE_ERROR;
const REPLY: u32 = names::STAGE_REPLY;
const FIRST: u32 = names::STAGE_FIRST;

/// Something that the loader rules out is missing, or a stage is: nothing goes on.
const BROKEN: Done = Done::nowhere(Code::drop(Reason::HelperFailed));

#[xdp]
pub fn xdp_ingress(ctx: XdpContext) -> u32 {
    let md = ctx.ctx;
    let Some(kernel) = Kernel::new(ctx.as_ptr()) else { return xdp_action::XDP_DROP };
    let mut frame = Direct::new(md);
    let ifindex = xdp_ifindex(md);
    let length = frame.length();
    let now = kernel.now();
    let (packet, is_first) = match pipeline::fast(&kernel, &mut frame, Hook::Xdp, ifindex, now) {
        Quick::Done(done) => return xdp_act(md, &kernel, &done, length),
        Quick::First(packet) => (packet, true),
        Quick::Known(packet) => (packet, false),
        Quick::Longer => {
            // SAFETY: the array holds programs of this type only.
            unsafe { XDP_STAGES.tail_call(&ctx, SLOW) };
            return xdp_act(md, &kernel, &BROKEN, length);
        }
    };
    if let Some(work) = work()
        && work.hand_over(&kernel, &frame, &packet, ifindex, now).is_some()
    {
        if is_first {
            // SAFETY: as above.
            unsafe { XDP_STAGES.tail_call(&ctx, FIRST) };
        } else {
            // SAFETY: as above.
            unsafe { XDP_STAGES.tail_call(&ctx, KNOWN) };
        }
    }
    xdp_act(md, &kernel, &BROKEN, length)
}

/// Reads what the entry left, and hands it to the stage that it is for.
#[xdp]
pub fn xdp_slow(ctx: XdpContext) -> u32 {
    let md = ctx.ctx;
    let (Some(kernel), Some(work)) = (Kernel::new(ctx.as_ptr()), work()) else {
        return xdp_action::XDP_DROP;
    };
    let frame = Copied::new(md);
    let length = frame.length();
    work.length = length;
    pipeline::read(&kernel, &frame, xdp_ifindex(md), kernel.now(), work);
    work.copy = capture::before(&kernel, &frame, work, xdp_ifindex(md));
    let next = if work.done.code.is(Code::GO_ON) {
        KNOWN
    } else if work.done.code.is(Code::ERROR) {
        ERROR
    } else {
        return xdp_finish(md, &kernel, work);
    };
    // SAFETY: the array holds programs of this type only.
    unsafe { XDP_STAGES.tail_call(&ctx, next) };
    xdp_broken(md, &kernel, work)
}

/// A packet that a session may be for.
#[xdp]
pub fn xdp_known(ctx: XdpContext) -> u32 {
    let md = ctx.ctx;
    let (Some(kernel), Some(work)) = (Kernel::new(ctx.as_ptr()), work()) else {
        return xdp_action::XDP_DROP;
    };
    let mut frame = Copied::new(md);
    pipeline::continued(&kernel, &mut frame, work);
    if work.done.code.is(Code::ANEW) {
        // SAFETY: as above.
        unsafe { XDP_STAGES.tail_call(&ctx, OPEN) };
    }
    xdp_end(&ctx, md, &kernel, work)
}

/// The first packet of a flow.
#[xdp]
pub fn xdp_open(ctx: XdpContext) -> u32 {
    let md = ctx.ctx;
    let (Some(kernel), Some(work)) = (Kernel::new(ctx.as_ptr()), work()) else {
        return xdp_action::XDP_DROP;
    };
    let mut frame = Copied::new(md);
    pipeline::opened(&kernel, &mut frame, work);
    xdp_end(&ctx, md, &kernel, work)
}

/// The plain first packet of a flow.
#[xdp]
pub fn xdp_first(ctx: XdpContext) -> u32 {
    let md = ctx.ctx;
    let (Some(kernel), Some(work)) = (Kernel::new(ctx.as_ptr()), work()) else {
        return xdp_action::XDP_DROP;
    };
    let mut frame = Direct::new(md);
    pipeline::first(&kernel, work);
    if pipeline::is_plainly_sent(Hook::Xdp, work) {
        pipeline::send_plainly(&mut frame, work);
    } else {
        pipeline::send(&mut Copied::new(md), work);
    }
    xdp_end(&ctx, md, &kernel, work)
}

/// An ICMP error.
#[xdp]
pub fn xdp_error(ctx: XdpContext) -> u32 {
    let md = ctx.ctx;
    let (Some(kernel), Some(work)) = (Kernel::new(ctx.as_ptr()), work()) else {
        return xdp_action::XDP_DROP;
    };
    let mut frame = Copied::new(md);
    pipeline::error(&kernel, &mut frame, work);
    xdp_end(&ctx, md, &kernel, work)
}

/// Answers the sender of a packet that was refused.
#[xdp]
pub fn xdp_reply(ctx: XdpContext) -> u32 {
    let md = ctx.ctx;
    let (Some(kernel), Some(work)) = (Kernel::new(ctx.as_ptr()), work()) else {
        return xdp_action::XDP_DROP;
    };
    let mut frame = Copied::new(md);
    pipeline::answer(&kernel, &mut frame, work, kernel.now());
    xdp_finish(md, &kernel, work)
}

/// Goes on to the answer, if there is to be one, or ends.
#[inline(always)]
fn xdp_end(ctx: &XdpContext, md: *mut xdp_md, kernel: &Kernel, work: &mut Work) -> u32 {
    if work.done.code.is_answer() {
        // SAFETY: the array holds programs of this type only.
        unsafe { XDP_STAGES.tail_call(ctx, REPLY) };
    }
    xdp_finish(md, kernel, work)
}

/// A stage is missing, which the loader rules out.
#[inline(always)]
fn xdp_broken(md: *mut xdp_md, kernel: &Kernel, work: &mut Work) -> u32 {
    work.done = BROKEN;
    xdp_finish(md, kernel, work)
}

/// Counts a fate and turns it into what XDP understands.
#[inline(always)]
fn xdp_finish(md: *mut xdp_md, kernel: &Kernel, work: &Work) -> u32 {
    if work.copy != 0 {
        capture::after(kernel, &Copied::new(md), work, xdp_ifindex(md));
    }
    xdp_act(md, kernel, &work.done, work.length)
}

#[inline(always)]
fn xdp_act(md: *mut xdp_md, kernel: &Kernel, done: &Done, length: u32) -> u32 {
    let amount = one(length);
    let mut ahead = done.code.is(Code::FORWARD) || done.code.is_told();
    // What XDP cannot send there, `tc_mark` does.
    let by_tc = ahead && !done.hop.is(HOP_REDIRECT);
    let note = if by_tc {
        leave_note(md, 0, done.hop.ifindex())
    } else if done.code.is(Code::PUNT) {
        leave_note(md, done.attachment, 0)
    } else {
        Some(())
    };
    let done = if note.is_none() { &BROKEN } else { done };
    ahead &= note.is_some();
    books::count(kernel.counters(), done, amount);
    if !by_tc && (ahead || done.code.is_answered()) {
        // Also back out of the same interface: veth loses what `XDP_TX` sends to a peer without
        // a program of its own (it never wakes the peer up), and redirect does not.
        let ifindex = if ahead { done.hop.ifindex() } else { xdp_ifindex(md) };
        // SAFETY: the helper has no preconditions.
        return unsafe { bpf_redirect(ifindex, 0) as u32 };
    }
    let passes = ahead || done.code.is(Code::PASS) || done.code.is(Code::PUNT);
    if passes { xdp_action::XDP_PASS } else { xdp_action::XDP_DROP }
}

/// A frame that is what was on the wire.
#[inline(always)]
const fn one(length: u32) -> Amount {
    Amount { packets: 1, bytes: length as u64 }
}

/// Says, in front of the frame, by which attachment it came, or by which interface it is to leave
/// as it is now; `tc_mark` reads it.
#[inline(always)]
fn leave_note(md: *mut xdp_md, attachment: u16, exit: u32) -> Option<()> {
    // SAFETY: the helper checks that there is room.
    if unsafe { bpf_xdp_adjust_meta(md, -8) } != 0 {
        return None;
    }
    // SAFETY: the kernel passes a valid context.
    let (note, data) = unsafe { ((*md).data_meta as usize, (*md).data as usize) };
    if note + 8 > data {
        return None;
    }
    // SAFETY: the eight bytes were just shown to lie before the packet.
    unsafe { *(note as *mut [u32; 2]) = [MARK | attachment as u32, exit] };
    Some(())
}

#[inline(always)]
fn xdp_ifindex(md: *mut xdp_md) -> u32 {
    // SAFETY: the kernel passes a valid context.
    unsafe { (*md).ingress_ifindex }
}

/// Beside XDP: what it has finished and cannot send is sent, what it left to the kernel gets a
/// mark, and nothing else keeps one of ours.
#[classifier]
pub fn tc_mark(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    noted(skb).unwrap_or_else(|| {
        set_mark(skb, 0);
        TC_ACT_UNSPEC
    })
}

/// What XDP's note in front of a frame asks for, if there is one.
#[inline(always)]
fn noted(skb: *mut __sk_buff) -> Option<i32> {
    // SAFETY: the kernel passes a valid context.
    let (note, data) = unsafe { ((*skb).data_meta as usize, (*skb).data as usize) };
    if note + 8 > data {
        return None;
    }
    // SAFETY: the eight bytes were just shown to lie before the packet.
    let [found, exit] = unsafe { *(note as *const [u32; 2]) };
    if found & MARK_MASK != MARK {
        return None;
    }
    if exit == 0 {
        set_mark(skb, found);
        return Some(TC_ACT_UNSPEC);
    }
    set_mark(skb, 0);
    // SAFETY: the helper has no preconditions.
    Some(unsafe { bpf_redirect(exit, 0) as i32 })
}

/// Sets a mark of ours, or takes one away that somebody else set.
#[inline(always)]
fn set_mark(skb: *mut __sk_buff, mark: u32) {
    // SAFETY: the kernel passes a valid context.
    unsafe {
        if mark != 0 || (*skb).mark & MARK_MASK == MARK {
            (*skb).mark = mark;
        }
    }
}

#[classifier]
pub fn tc_ingress(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    // While an interface changes its hook both are there, and XDP has judged it.
    if let Some(action) = noted(skb) {
        return action;
    }
    let Some(kernel) = Kernel::new(ctx.as_ptr()) else { return TC_ACT_SHOT };
    let mut frame = DirectSkb::new(skb);
    let length = frame.length();
    let now = kernel.now();
    let (packet, is_first) =
        match pipeline::fast(&kernel, &mut frame, Hook::Tc, tc_ifindex(skb), now) {
            Quick::Done(done) => return tc_act(skb, &kernel, &done, one(length)),
            Quick::First(packet) => (packet, true),
            Quick::Known(packet) => (packet, false),
            Quick::Longer => {
                // SAFETY: the array holds programs of this type only.
                unsafe { TC_STAGES.tail_call(&ctx, SLOW) };
                return tc_act(skb, &kernel, &BROKEN, one(length));
            }
        };
    if let Some(work) = work()
        && work.hand_over(&kernel, &frame, &packet, tc_ifindex(skb), now).is_some()
    {
        if is_first {
            // SAFETY: as above.
            unsafe { TC_STAGES.tail_call(&ctx, FIRST) };
        } else {
            // SAFETY: as above.
            unsafe { TC_STAGES.tail_call(&ctx, KNOWN) };
        }
    }
    tc_act(skb, &kernel, &BROKEN, one(length))
}

/// Reads what the entry left, and hands it to the stage that it is for.
#[classifier]
pub fn tc_slow(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let (Some(kernel), Some(work)) = (Kernel::new(ctx.as_ptr()), work()) else {
        return TC_ACT_SHOT;
    };
    let frame = Skb::new(skb);
    let length = frame.length();
    work.length = length;
    pipeline::read(&kernel, &frame, tc_ifindex(skb), kernel.now(), work);
    work.copy = capture::before(&kernel, &frame, work, tc_ifindex(skb));
    let next = if work.done.code.is(Code::GO_ON) {
        KNOWN
    } else if work.done.code.is(Code::ERROR) {
        ERROR
    } else {
        return tc_finish(skb, &kernel, work);
    };
    // SAFETY: the array holds programs of this type only.
    unsafe { TC_STAGES.tail_call(&ctx, next) };
    tc_broken(skb, &kernel, work)
}

/// A packet that a session may be for.
#[classifier]
pub fn tc_known(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let (Some(kernel), Some(work)) = (Kernel::new(ctx.as_ptr()), work()) else {
        return TC_ACT_SHOT;
    };
    let mut frame = Skb::new(skb);
    pipeline::continued(&kernel, &mut frame, work);
    if work.done.code.is(Code::ANEW) {
        // SAFETY: as above.
        unsafe { TC_STAGES.tail_call(&ctx, OPEN) };
    }
    tc_end(&ctx, skb, &kernel, work)
}

/// The first packet of a flow.
#[classifier]
pub fn tc_open(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let (Some(kernel), Some(work)) = (Kernel::new(ctx.as_ptr()), work()) else {
        return TC_ACT_SHOT;
    };
    let mut frame = Skb::new(skb);
    pipeline::opened(&kernel, &mut frame, work);
    tc_end(&ctx, skb, &kernel, work)
}

/// The plain first packet of a flow.
#[classifier]
pub fn tc_first(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let (Some(kernel), Some(work)) = (Kernel::new(ctx.as_ptr()), work()) else {
        return TC_ACT_SHOT;
    };
    let mut frame = DirectSkb::new(skb);
    pipeline::first(&kernel, work);
    if pipeline::is_plainly_sent(Hook::Tc, work) {
        pipeline::send_plainly(&mut frame, work);
    } else {
        pipeline::send(&mut Skb::new(skb), work);
    }
    tc_end(&ctx, skb, &kernel, work)
}

/// An ICMP error.
#[classifier]
pub fn tc_error(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let (Some(kernel), Some(work)) = (Kernel::new(ctx.as_ptr()), work()) else {
        return TC_ACT_SHOT;
    };
    let mut frame = Skb::new(skb);
    pipeline::error(&kernel, &mut frame, work);
    tc_end(&ctx, skb, &kernel, work)
}

/// Answers the sender of a packet that was refused.
#[classifier]
pub fn tc_reply(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let (Some(kernel), Some(work)) = (Kernel::new(ctx.as_ptr()), work()) else {
        return TC_ACT_SHOT;
    };
    let mut frame = Skb::new(skb);
    pipeline::answer(&kernel, &mut frame, work, kernel.now());
    tc_finish(skb, &kernel, work)
}

/// Goes on to the answer, if there is to be one, or ends.
#[inline(always)]
fn tc_end(ctx: &TcContext, skb: *mut __sk_buff, kernel: &Kernel, work: &mut Work) -> i32 {
    if work.done.code.is_answer() {
        // SAFETY: the array holds programs of this type only.
        unsafe { TC_STAGES.tail_call(ctx, REPLY) };
    }
    tc_finish(skb, kernel, work)
}

/// A stage is missing, which the loader rules out.
#[inline(always)]
fn tc_broken(skb: *mut __sk_buff, kernel: &Kernel, work: &mut Work) -> i32 {
    work.done = BROKEN;
    tc_finish(skb, kernel, work)
}

/// Counts a fate and turns it into what TC understands.
#[inline(always)]
fn tc_finish(skb: *mut __sk_buff, kernel: &Kernel, work: &Work) -> i32 {
    if work.copy != 0 {
        capture::after(kernel, &Skb::new(skb), work, tc_ifindex(skb));
    }
    tc_act(skb, kernel, &work.done, work.amount())
}

#[inline(always)]
fn tc_act(skb: *mut __sk_buff, kernel: &Kernel, done: &Done, amount: Amount) -> i32 {
    books::count(kernel.counters(), done, amount);
    let ahead = done.code.is(Code::FORWARD) || done.code.is_told();
    if ahead || done.code.is_answered() {
        set_mark(skb, 0);
        let ifindex = if ahead { done.hop.ifindex() } else { tc_ifindex(skb) };
        // SAFETY: the helper has no preconditions.
        return unsafe { bpf_redirect(ifindex, 0) as i32 };
    }
    if done.code.is(Code::PASS) {
        set_mark(skb, 0);
        return TC_ACT_UNSPEC;
    }
    if done.code.is(Code::PUNT) {
        set_mark(skb, MARK | done.attachment as u32);
        return TC_ACT_UNSPEC;
    }
    TC_ACT_SHOT
}

#[inline(always)]
fn tc_ifindex(skb: *mut __sk_buff) -> u32 {
    // SAFETY: the kernel passes a valid context.
    unsafe { (*skb).ifindex }
}

/// Where the kernel sends: punted packets are translated, the second guard stands.
#[classifier]
pub fn tc_egress(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let Some(kernel) = Kernel::new(ctx.as_ptr()) else { return TC_ACT_SHOT };
    let mut frame = Skb::new(skb);
    // SAFETY: the kernel passes a valid context.
    let (mark, bytes) = unsafe { ((*skb).mark, (*skb).wire_len) };
    let amount = Amount { packets: frame.segments() as u64, bytes: bytes as u64 };
    let punted = if mark & MARK_MASK == MARK { Some(mark as u16) } else { None };
    let egress = egress(&kernel, &mut frame, tc_ifindex(skb), punted, kernel.now());
    books::count_egress(kernel.counters(), egress, amount);
    match egress {
        Egress::Untouched => TC_ACT_UNSPEC,
        Egress::Translated => {
            set_mark(skb, 0);
            TC_ACT_UNSPEC
        }
        Egress::Drop(_) => TC_ACT_SHOT,
    }
}

/// Carries out an order of the daemon (`control::Order`); never attached.
#[xdp]
pub fn control(ctx: XdpContext) -> u32 {
    let md = ctx.ctx;
    let Some(kernel) = Kernel::new(ctx.as_ptr()) else { return xdp_action::XDP_ABORTED };
    let mut order = [0u32; 4];
    // SAFETY: the helper writes sixteen bytes or fails.
    let failed = unsafe {
        bpf_xdp_load_bytes(md, 16, order.as_mut_ptr().cast(), size_of_val(&order) as u32)
    };
    if failed != 0 {
        return xdp_action::XDP_ABORTED;
    }
    let [what, record, incarnation, cause] = order;
    let now = kernel.now();
    match what {
        control::SWEEP => {
            let all = table::all_slots(kernel.config());
            // The daemon alone sweeps, so the cursor may move by what was looked at.
            let cursor = &kernel.shared().sweep_cursor;
            let from = (cursor.load() % all.max(1) as u64) as u32;
            cursor.fetch_add(sweep_turn(&kernel, from, now) as u64);
        }
        control::END => {
            end(&kernel, record, Ending::now(cause as u8, incarnation), now);
        }
        control::CLOCK => {
            // SAFETY: the helpers have no preconditions.
            let (jiffies, nanoseconds) = unsafe { (bpf_jiffies64(), bpf_ktime_get_ns()) };
            kernel.shared().jiffies.store(jiffies);
            kernel.shared().nanoseconds.store(nanoseconds);
        }
        _ => return xdp_action::XDP_ABORTED,
    }
    xdp_action::XDP_PASS
}
