//! Access to a packet's bytes: directly where offsets are constants, by helper elsewhere.

use super::words;
use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
        xdp_md,
    },
    helpers::generated::{
        bpf_l4_csum_replace, bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_load_bytes,
        bpf_skb_store_bytes, bpf_skb_vlan_pop, bpf_skb_vlan_push, bpf_xdp_adjust_head,
        bpf_xdp_adjust_tail, bpf_xdp_get_buff_len, bpf_xdp_load_bytes, bpf_xdp_store_bytes,
    },
};
use core::mem::MaybeUninit;
use xdp::{checksum::fold, frame::Frame, packet};

/// A frame in XDP, read through pointers: for offsets that the compiler knows.
pub(crate) struct Direct {
    data: usize,
    end: usize,
}

impl Direct {
    #[inline(always)]
    pub(crate) fn new(ctx: *mut xdp_md) -> Self {
        // SAFETY: the kernel passes a valid context.
        let (data, end) = unsafe { ((*ctx).data, (*ctx).data_end) };
        Self { data: data as usize, end: end as usize }
    }
}

impl Frame for Direct {
    #[inline(always)]
    fn length(&self) -> u32 {
        (self.end - self.data) as u32
    }
    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let start = self.data + offset as usize;
        if start + N > self.end {
            return None;
        }
        // SAFETY: `start..start + N` was just shown to lie inside the packet.
        Some(unsafe { words::load(start) })
    }
    #[inline(always)]
    fn store<const N: usize>(&mut self, offset: u32, bytes: [u8; N]) -> Option<()> {
        let start = self.data + offset as usize;
        if start + N > self.end {
            return None;
        }
        // SAFETY: as for `load`.
        unsafe { words::store(start, bytes) };
        Some(())
    }
    #[inline(always)]
    fn set_vlan(&mut self, _: u16, _: u16) -> Option<()> {
        None
    }
    #[inline(always)]
    fn renew(&mut self, _: u32) -> Option<()> {
        None
    }
}

/// A frame in XDP, read and written by helper: any offset, also beyond the linear part.
pub(crate) struct Copied {
    ctx: *mut xdp_md,
}

impl Copied {
    #[inline(always)]
    pub(crate) fn new(ctx: *mut xdp_md) -> Self {
        Self { ctx }
    }
}

impl Frame for Copied {
    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: the kernel passes a valid context.
        unsafe { bpf_xdp_get_buff_len(self.ctx) as u32 }
    }
    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: the helper writes N bytes or fails.
        unsafe {
            let failed = bpf_xdp_load_bytes(self.ctx, offset, bytes.as_mut_ptr().cast(), N as u32);
            if failed == 0 { Some(bytes.assume_init()) } else { None }
        }
    }
    #[inline(always)]
    fn store<const N: usize>(&mut self, offset: u32, mut bytes: [u8; N]) -> Option<()> {
        // SAFETY: the helper reads N bytes and checks the packet's bounds.
        let failed =
            unsafe { bpf_xdp_store_bytes(self.ctx, offset, bytes.as_mut_ptr().cast(), N as u32) };
        if failed == 0 { Some(()) } else { None }
    }
    #[inline(always)]
    fn set_vlan(&mut self, was: u16, vlan: u16) -> Option<()> {
        let addresses = self.load::<12>(0)?;
        if was == 0 {
            // SAFETY: the helper checks that there is headroom.
            if unsafe { bpf_xdp_adjust_head(self.ctx, -4) } != 0 {
                return None;
            }
        } else if vlan == 0 {
            // SAFETY: the helper checks that the frame is long enough.
            if unsafe { bpf_xdp_adjust_head(self.ctx, 4) } != 0 {
                return None;
            }
        }
        self.store(0, addresses)?;
        if vlan != 0 {
            let [t0, t1] = vlan.to_be_bytes();
            self.store::<4>(12, [0x81, 0x00, t0, t1])?;
        }
        Some(())
    }
    #[inline(always)]
    fn renew(&mut self, length: u32) -> Option<()> {
        let more = length as i32 - self.length() as i32;
        // Every driver has room in front of a frame; behind it, a veth for one has none.
        // SAFETY: the helpers check that there is room.
        let failed = unsafe {
            if more > 0 {
                bpf_xdp_adjust_head(self.ctx, -more)
            } else {
                bpf_xdp_adjust_tail(self.ctx, more)
            }
        };
        if failed == 0 { Some(()) } else { None }
    }
}

/// No checksum that is left to a device is of headers that begin later: those of a TCP segment in
/// IP in Geneve, all with as many options as there can be, begin at 420.
const HEADERS: u32 = 448;

/// A frame in TC.
pub(crate) struct Skb {
    ctx: *mut __sk_buff,
}

impl Skb {
    #[inline(always)]
    pub(crate) fn new(ctx: *mut __sk_buff) -> Self {
        Self { ctx }
    }
}

impl Frame for Skb {
    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: the kernel passes a valid context.
        unsafe { (*self.ctx).len }
    }
    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: the helper writes N bytes or fails.
        unsafe {
            let failed = bpf_skb_load_bytes(
                self.ctx.cast_const().cast(),
                offset,
                bytes.as_mut_ptr().cast(),
                N as u32,
            );
            if failed == 0 { Some(bytes.assume_init()) } else { None }
        }
    }
    #[inline(always)]
    fn store<const N: usize>(&mut self, offset: u32, bytes: [u8; N]) -> Option<()> {
        // SAFETY: the helper reads N bytes and checks the packet's bounds.
        let failed =
            unsafe { bpf_skb_store_bytes(self.ctx, offset, bytes.as_ptr().cast(), N as u32, 0) };
        if failed == 0 { Some(()) } else { None }
    }
    #[inline(always)]
    fn fix_transport(
        &mut self,
        offset: u32,
        address: u16,
        transport: u16,
        udp: bool,
    ) -> Option<()> {
        // The helper knows a checksum that the device is to finish: such a field holds the
        // pseudo header's part alone, so that part and the rest are changed apart.
        let mangled = if udp { BPF_F_MARK_MANGLED_0 as u64 } else { 0 };
        let change = |by: u16, flags: u64| {
            // SAFETY: the helper checks the packet's bounds.
            let failed = unsafe { bpf_l4_csum_replace(self.ctx, offset, 0, by as u64, flags) };
            if failed == 0 { Some(()) } else { None }
        };
        change(address, BPF_F_PSEUDO_HDR as u64 | mangled)?;
        // A port that was kept changes nothing.
        match fold(transport as u32 + !address as u32) {
            0 | 0xffff => Some(()),
            ports => change(ports, mangled),
        }
    }
    #[inline(always)]
    fn vlan_offload(&self) -> Option<u16> {
        // SAFETY: the kernel passes a valid context.
        let (present, tag, kind) =
            unsafe { ((*self.ctx).vlan_present, (*self.ctx).vlan_tci, (*self.ctx).vlan_proto) };
        let tag = tag as u16 & 0xfff;
        if present == 0 {
            return None;
        }
        // A service tag (802.1ad) names no VLAN of an attachment; this number is nobody's.
        if kind as u16 == u16::from_ne_bytes(packet::QINQ) {
            return Some(0xfff);
        }
        if tag != 0 { Some(tag) } else { None }
    }
    #[inline(always)]
    fn set_vlan(&mut self, was: u16, vlan: u16) -> Option<()> {
        // SAFETY: the helpers change the packet's tag and nothing of ours.
        let failed = unsafe {
            // Also a tag that only carries a priority: a second one would be put into the frame.
            let popped = if was != 0 || (*self.ctx).vlan_present != 0 {
                bpf_skb_vlan_pop(self.ctx)
            } else {
                0
            };
            let pushed =
                if vlan != 0 { bpf_skb_vlan_push(self.ctx, 0x8100u16.to_be(), vlan) } else { 0 };
            popped | pushed
        };
        if failed == 0 { Some(()) } else { None }
    }
    #[inline(always)]
    fn renew(&mut self, length: u32) -> Option<()> {
        // The kernel counts a checksum as finished once the frame begins behind the headers that
        // it is of. Before Linux 6.2 it looked before it moved the beginning, so there are two
        // steps. A new end makes one packet of many segments. Only a test run has a tag in the
        // bytes here, and no checksum that is left to anybody.
        // SAFETY: the kernel passes a valid context, and the helpers check lengths.
        let failed = unsafe {
            if (*self.ctx).protocol == u32::from(u16::from_ne_bytes(packet::IPV4)) {
                bpf_skb_change_tail(self.ctx, HEADERS + 64, 0)
                    | bpf_skb_adjust_room(self.ctx, 4 - HEADERS as i32, BPF_ADJ_ROOM_MAC, 0)
                    | bpf_skb_adjust_room(self.ctx, -4, BPF_ADJ_ROOM_MAC, 0)
                    | bpf_skb_change_tail(self.ctx, length, 0)
            } else {
                bpf_skb_change_tail(self.ctx, length, 0)
            }
        };
        if failed == 0 { Some(()) } else { None }
    }
    #[inline(always)]
    fn segments(&self) -> u32 {
        // SAFETY: the kernel passes a valid context.
        let (segments, segment) = unsafe { ((*self.ctx).gso_segs, (*self.ctx).gso_size) };
        match (segments, segment) {
            (0, 0) => 1,
            // A driver need not count them.
            (0, segment) => self.length() / segment + 1,
            (segments, _) => segments,
        }
    }
    #[inline(always)]
    fn segment(&self) -> u32 {
        // SAFETY: the kernel passes a valid context.
        unsafe { (*self.ctx).gso_size }
    }
}

/// A frame in TC, read and written through pointers as far as it lies in one piece, for offsets
/// that the compiler knows. The pointers are good until a helper changes the frame: checksum and
/// tag come last.
pub(crate) struct DirectSkb {
    bytes: Direct,
    whole: Skb,
}

impl DirectSkb {
    #[inline(always)]
    pub(crate) fn new(ctx: *mut __sk_buff) -> Self {
        // SAFETY: the kernel passes a valid context.
        let (data, end) = unsafe { ((*ctx).data, (*ctx).data_end) };
        let bytes = Direct { data: data as usize, end: end as usize };
        Self { bytes, whole: Skb::new(ctx) }
    }
}

impl Frame for DirectSkb {
    #[inline(always)]
    fn length(&self) -> u32 {
        self.whole.length()
    }
    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.bytes.load(offset)
    }
    #[inline(always)]
    fn store<const N: usize>(&mut self, offset: u32, bytes: [u8; N]) -> Option<()> {
        self.bytes.store(offset, bytes)
    }
    #[inline(always)]
    fn fix_transport(
        &mut self,
        offset: u32,
        address: u16,
        transport: u16,
        udp: bool,
    ) -> Option<()> {
        self.whole.fix_transport(offset, address, transport, udp)
    }
    #[inline(always)]
    fn vlan_offload(&self) -> Option<u16> {
        self.whole.vlan_offload()
    }
    #[inline(always)]
    fn set_vlan(&mut self, was: u16, vlan: u16) -> Option<()> {
        self.whole.set_vlan(was, vlan)
    }
    #[inline(always)]
    fn renew(&mut self, _: u32) -> Option<()> {
        None
    }
    #[inline(always)]
    fn segments(&self) -> u32 {
        self.whole.segments()
    }
    #[inline(always)]
    fn segment(&self) -> u32 {
        self.whole.segment()
    }
}

/// Copies the beginning of a frame somewhere.
pub(crate) trait Peek: Frame {
    /// Copies at most `room` bytes to `to`, and says how many.
    ///
    /// # Safety
    ///
    /// `to` has room for `room` bytes.
    unsafe fn peek(&self, to: *mut u8, room: u32) -> u32;
}

/// The length to copy of a frame, in a form that the verifier of any kernel sees is neither
/// zero nor too long. `room` is a power of two.
#[inline(always)]
fn bounded(length: u32, room: u32) -> u32 {
    let last = if length > room { room - 1 } else { length.wrapping_sub(1) };
    (core::hint::black_box(last) & (room - 1)) + 1
}

impl Peek for Copied {
    #[inline(always)]
    unsafe fn peek(&self, to: *mut u8, room: u32) -> u32 {
        let length = bounded(self.length(), room);
        // SAFETY: `length` is at most `room`, which the caller vouches for. The helper refuses
        // to copy more than there is.
        let failed = unsafe { bpf_xdp_load_bytes(self.ctx, 0, to.cast(), length) };
        if failed == 0 { length } else { 0 }
    }
}

impl Peek for Skb {
    #[inline(always)]
    unsafe fn peek(&self, to: *mut u8, room: u32) -> u32 {
        let length = bounded(self.length(), room);
        // SAFETY: as for XDP.
        let failed =
            unsafe { bpf_skb_load_bytes(self.ctx.cast_const().cast(), 0, to.cast(), length) };
        if failed == 0 { length } else { 0 }
    }
}
