//! The programs and their maps.

use core::hint::black_box;
use core::ptr::{read_volatile, write};

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS};
use aya_ebpf::helpers::bpf_redirect;
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, PerCpuArray, ProgramArray};
use aya_ebpf::programs::XdpContext;
use bench_xdp::{Arrived, Cursor, Flow, Frame};

/// The stations that a frame is sent between: destination, then source, as on the wire.
#[unsafe(no_mangle)]
static STATIONS: [u16; 6] = [0; 6];

/// The interface that frames leave by.
#[unsafe(no_mangle)]
static OUT_IFINDEX: u32 = 0;

/// Entries of [`TABLE`] less one; the number of entries is a power of two.
#[unsafe(no_mangle)]
static TABLE_MASK: u32 = 0;

/// The order that flows are sent in. Filled, and given its size, before the load.
#[map]
static ORDER: Array<u32> = Array::with_max_entries(1, 0);

/// Where each CPU's generator stands.
#[map]
static CURSOR: PerCpuArray<Cursor> = PerCpuArray::with_max_entries(1, 0);

/// What `redirect_read` reads: entries as long as a cache line and, by the flag, aligned to one.
#[map]
static TABLE: Array<[u64; 8]> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// What each CPU's sink received.
#[map]
static ARRIVED: PerCpuArray<Arrived> = PerCpuArray::with_max_entries(1, 0);

/// The program that `feed` hands its frames to.
#[map]
static NEXT: ProgramArray = ProgramArray::with_max_entries(1, 0);

const BPF_F_MMAPABLE: u32 = 1 << 10;

/// Rewrites the frame whole, since the pages of forwarded frames come back as they were left.
#[xdp]
fn generate(ctx: XdpContext) -> u32 {
    let Some(frame) = generated() else { return XDP_ABORTED };
    let Some(place) = field::<Frame>(&ctx, 0) else { return XDP_ABORTED };
    // SAFETY: `field` has shown that a whole frame fits at `place`.
    unsafe { write(place, frame) };
    forward()
}

/// The same frames for another program, in a test run that repeats: a frame that was translated
/// cannot be given to it a second time.
#[xdp]
fn feed(ctx: XdpContext) -> u32 {
    let Some(frame) = generated() else { return XDP_ABORTED };
    let Some(place) = field::<Frame>(&ctx, 0) else { return XDP_ABORTED };
    // SAFETY: `field` has shown that a whole frame fits at `place`.
    unsafe { write(place, frame) };
    // SAFETY: the array holds XDP programs only; without one the call fails and returns.
    unsafe { NEXT.tail_call(&ctx, 0) };
    XDP_ABORTED
}

#[xdp]
fn bare_redirect(ctx: XdpContext) -> u32 {
    match address(&ctx) {
        Some(()) => forward(),
        None => XDP_ABORTED,
    }
}

#[xdp]
fn redirect_read(ctx: XdpContext) -> u32 {
    // From the source address to the destination port: what a session's key is made of.
    let Some(place) = field::<[u16; 6]>(&ctx, 26) else { return XDP_ABORTED };
    // SAFETY: `field` has shown that the twelve bytes are inside the frame.
    let [s0, s1, d0, d1, sport, dport] = unsafe { *place };
    let mut hash = u64::from(s0) << 48 | u64::from(s1) << 32 | u64::from(d0) << 16 | u64::from(d1);
    hash ^= (u64::from(sport) << 16 | u64::from(dport)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ hash >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    let index = (hash >> 32) as u32 & constant(&TABLE_MASK);
    let Some(entry) = TABLE.get(index) else { return XDP_ABORTED };
    // The entries are zero, which the compiler must not learn: frames have to wait for the read.
    if black_box(entry).iter().fold(0, |all, word| all | word) != 0 {
        return XDP_ABORTED;
    }
    match address(&ctx) {
        Some(()) => forward(),
        None => XDP_ABORTED,
    }
}

#[xdp]
fn pass(_ctx: XdpContext) -> u32 {
    XDP_PASS
}

#[xdp]
fn sink(ctx: XdpContext) -> u32 {
    let Some(place) = field::<[u16; 17]>(&ctx, 0) else { return XDP_DROP };
    // SAFETY: `field` has shown that the Ethernet and IPv4 headers are inside the frame.
    let [.., ethertype, _, _, _, _, ttl_and_protocol, _, source, _, _, _] = unsafe { *place };
    if ethertype != 0x0800_u16.to_be() || u16::from_be(ttl_and_protocol) & 0xff != 17 {
        return XDP_DROP;
    }
    if let Some(arrived) = ARRIVED.get_ptr_mut(0) {
        // SAFETY: a per-CPU value is written by this CPU only, and XDP does not nest.
        unsafe {
            (*arrived).packets += 1;
            (*arrived).untranslated += u64::from(u16::from_be(source) & 0xffc0 == 0x6440);
        }
    }
    XDP_DROP
}

#[inline(always)]
fn generated() -> Option<Frame> {
    let cursor = CURSOR.get_ptr_mut(0)?;
    // SAFETY: a per-CPU value; the generator on this CPU is the only one that uses it.
    let cursor = unsafe { &mut *cursor };
    let position = cursor.first + cursor.next;
    cursor.next = if cursor.next + 1 < cursor.count { cursor.next + 1 } else { 0 };
    cursor.sequence = cursor.sequence.wrapping_add(1);
    let number = if cursor.shuffled == 0 { position } else { *ORDER.get(position)? };
    Some(Flow::numbered(number).frame(constant(&STATIONS), cursor.sequence))
}

/// Puts the configured stations into the Ethernet header.
#[inline(always)]
fn address(ctx: &XdpContext) -> Option<()> {
    let place = field::<[u16; 6]>(ctx, 0)?;
    // SAFETY: `field` has shown that the two addresses are inside the frame.
    unsafe { write(place, constant(&STATIONS)) };
    Some(())
}

#[inline(always)]
fn forward() -> u32 {
    // SAFETY: the helper takes two integers; an interface that is not there drops the frame.
    unsafe { bpf_redirect(constant(&OUT_IFINDEX), 0) as u32 }
}

/// A value that the loader has put into `.rodata`, past what the compiler thinks it knows of it.
#[inline(always)]
fn constant<T: Copy>(value: &'static T) -> T {
    // SAFETY: a reference to an initialised static.
    unsafe { read_volatile(value) }
}

/// The place of a `T` in the frame, or `None` when the frame ends before it does.
#[inline(always)]
fn field<T>(ctx: &XdpContext, offset: usize) -> Option<*mut T> {
    let start = ctx.data() + offset;
    (start + size_of::<T>() <= ctx.data_end()).then_some(start as *mut T)
}
