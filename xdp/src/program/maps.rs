//! The maps, and the core's view of them.

use super::words::{opaque, zeroed};
use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_NOEXIST, bpf_fib_lookup as FibParams},
    helpers::generated::{
        bpf_fib_lookup, bpf_get_prandom_u32, bpf_get_smp_processor_id, bpf_jiffies64,
        bpf_ktime_get_ns, bpf_loop,
    },
    macros::map,
    maps::{Array, HashMap, LpmTrie, PerCpuArray, ProgramArray, Queue, RingBuf, lpm_trie::Key},
};
use core::{ffi::c_void, mem::MaybeUninit};
use xdp::{
    address::V4,
    pipeline::Work,
    recent::{LINES, Line},
    repeat::Repeat,
    tables::{Route, Tables, Tally, glance},
};
use xdp_abi::{
    config::{Config, Shared},
    count::{Counters, RuleCount},
    event::Event4,
    forward::{
        ATTACHMENTS as ATTACHMENTS_ROOM, Attachment, Hop, LINK_ENTRIES, LinkInfo, NextHop,
        NextHopKey, PLACE_ENTRIES, PORTS as PORTS_ROOM, PortAddress4, PortInfo,
    },
    policy::{
        CLASS_TABLE, HostKey4, IdentityRef, POOL_ADDRESSES, PoolAddress, PrefixKey4,
        RULES as RULES_ROOM, Rule, RuleSet, SNAT_POLICIES, Snat, SnatBits, banked,
    },
    port::{PairKey4, Ports},
    session::{EPOCHS as EPOCHS_ROOM, Entry4, OverflowKey4, Record},
    word::Word,
};

// The sizes below are the least that loads; the loader sets those of the configuration.
#[map]
static SLOTS4: Array<Entry4> = Array::with_max_entries(4096, BPF_F_MMAPABLE);
#[map]
static HINTS4: Array<Word> = Array::with_max_entries(512, BPF_F_MMAPABLE);
#[map]
static RECORDS4: Array<Record> = Array::with_max_entries(1024, BPF_F_MMAPABLE);
#[map]
static FREE_RECORDS4: Queue<u32> = Queue::with_max_entries(1024, 0);
#[map]
static OVERFLOW4: HashMap<OverflowKey4, u32> = HashMap::with_max_entries(64, 0);
#[map]
static FREE_OVERFLOW4: Queue<u32> = Queue::with_max_entries(64, 0);
#[map]
static CONFIG: Array<Config> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static SHARED: Array<Shared> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static EPOCHS: Array<[u32; EPOCHS_ROOM]> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(1, 0);
#[map]
static RULE_COUNTS: PerCpuArray<RuleCount> = PerCpuArray::with_max_entries(1024, 0);
#[map]
static HOSTS4: HashMap<HostKey4, IdentityRef> =
    HashMap::with_max_entries(LINK_ENTRIES, BPF_F_NO_PREALLOC);
#[map]
static PREFIXES4: LpmTrie<PrefixKey4, IdentityRef> =
    LpmTrie::with_max_entries(1024, BPF_F_NO_PREALLOC);
#[map]
static SOURCE_RULES: Array<RuleSet> = Array::with_max_entries(2, BPF_F_MMAPABLE);
#[map]
static DESTINATION_RULES: Array<RuleSet> = Array::with_max_entries(2, BPF_F_MMAPABLE);
#[map]
static CLASS_RULES: Array<RuleSet> = Array::with_max_entries(2, BPF_F_MMAPABLE);
#[map]
static CLASSES: Array<[u16; CLASS_TABLE as usize]> = Array::with_max_entries(2, BPF_F_MMAPABLE);
#[map]
static SNAT_BITS: Array<SnatBits> = Array::with_max_entries(2, BPF_F_MMAPABLE);
#[map]
static MONITORS: Array<RuleSet> = Array::with_max_entries(2, BPF_F_MMAPABLE);
#[map]
static RULES: Array<Rule> = Array::with_max_entries(2 * RULES_ROOM as u32, BPF_F_MMAPABLE);
#[map]
static SNAT: Array<Snat> = Array::with_max_entries(2 * SNAT_POLICIES as u32, BPF_F_MMAPABLE);
#[map]
static POOLS: Array<PoolAddress> = Array::with_max_entries(2 * POOL_ADDRESSES, BPF_F_MMAPABLE);
#[map]
static OUTSIDE4: HashMap<HostKey4, u32> =
    HashMap::with_max_entries(2 * POOL_ADDRESSES, BPF_F_NO_PREALLOC);
#[map]
static LENDABLE: Array<Ports> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static PAIRS4: HashMap<PairKey4, u32> = HashMap::with_max_entries(64, BPF_F_NO_PREALLOC);
#[map]
static BITMAPS: Array<Ports> = Array::with_max_entries(64, BPF_F_MMAPABLE);
#[map]
static FREE_BITMAPS: Queue<u32> = Queue::with_max_entries(64, 0);
#[map]
static ATTACHMENTS: Array<Attachment> = Array::with_max_entries(ATTACHMENTS_ROOM, BPF_F_MMAPABLE);
#[map]
static PORTS: Array<PortInfo> = Array::with_max_entries(PORTS_ROOM, BPF_F_MMAPABLE);
#[map]
static SOURCES4: LpmTrie<PortAddress4, u32> =
    LpmTrie::with_max_entries(PLACE_ENTRIES, BPF_F_NO_PREALLOC);
#[map]
static ROUTES4: LpmTrie<PortAddress4, u32> =
    LpmTrie::with_max_entries(PLACE_ENTRIES, BPF_F_NO_PREALLOC);
#[map]
static CARRIES4: LpmTrie<PortAddress4, u32> =
    LpmTrie::with_max_entries(PLACE_ENTRIES, BPF_F_NO_PREALLOC);
#[map]
static LOCALS4: HashMap<[u8; 4], u32> = HashMap::with_max_entries(PLACE_ENTRIES, BPF_F_NO_PREALLOC);
#[map]
static LOCALS6: HashMap<[u8; 16], u32> =
    HashMap::with_max_entries(PLACE_ENTRIES, BPF_F_NO_PREALLOC);
#[map]
static LINKS: HashMap<u32, LinkInfo> = HashMap::with_max_entries(1024, BPF_F_NO_PREALLOC);
#[map]
static NEXT_HOPS: Array<NextHop> = Array::with_max_entries(4096, BPF_F_MMAPABLE);
#[map]
static NEXT_HOP_INDEX: HashMap<NextHopKey, u32> =
    HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);
#[map]
static FREE_NEXT_HOPS: Queue<u32> = Queue::with_max_entries(4096, 0);
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);
#[map]
static RATES: Array<Word> = Array::with_max_entries(RATE_BUCKETS, BPF_F_MMAPABLE);
#[map]
pub(crate) static XDP_STAGES: ProgramArray = ProgramArray::with_max_entries(8, 0);
#[map]
pub(crate) static TC_STAGES: ProgramArray = ProgramArray::with_max_entries(8, 0);

/// So many lines for each processor: one after the other, because those of a per-CPU map begin
/// anywhere.
#[map]
static RECENT: Array<Line> = Array::with_max_entries(LINES, BPF_F_MMAPABLE);
#[map]
static WORK: PerCpuArray<Work> = PerCpuArray::with_max_entries(1, 0);

const RATE_BUCKETS: u32 = 4096;
const AF_INET: u8 = 2;

/// What a packet's way remembers, from stage to stage: this processor's.
#[inline(always)]
pub(crate) fn work() -> Option<&'static mut Work> {
    // SAFETY: all zeros, which the kernel fills a map with, is valid for every field, and
    // nothing else runs on this processor before the packet is done.
    WORK.get_ptr_mut(0).map(|work| unsafe { &mut *work })
}

/// The maps of one run of a program: those that every packet needs are looked up once.
pub(crate) struct Kernel {
    ctx: *mut c_void,
    config: &'static Config,
    shared: &'static Shared,
    epochs: &'static [u32; EPOCHS_ROOM],
    counters: *mut Counters,
}

impl Kernel {
    /// `None` if a map is missing, which the loader rules out.
    #[inline(always)]
    pub(crate) fn new(ctx: *mut c_void) -> Option<Self> {
        Some(Self {
            ctx,
            config: CONFIG.get(0)?,
            shared: SHARED.get(0)?,
            epochs: EPOCHS.get(0)?,
            counters: COUNTERS.get_ptr_mut(0)?,
        })
    }

    /// Asks the kernel for the way of a packet of this length.
    #[inline(always)]
    fn ask_route<'a>(
        &self,
        room: &'a mut MaybeUninit<FibParams>,
        ifindex: u32,
        source: V4,
        destination: V4,
        length: u16,
    ) -> (i64, &'a FibParams) {
        // SAFETY: all zeros is a valid request.
        let params = unsafe { zeroed(room) };
        params.family = AF_INET;
        params.__bindgen_anon_1.tot_len = length;
        params.ifindex = ifindex;
        params.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(source.0);
        params.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(destination.0);
        // SAFETY: context and request are valid for the call.
        let answer = unsafe { bpf_fib_lookup(self.ctx, params, size_of::<FibParams>() as i32, 0) };
        (answer, params)
    }

    /// Now, in ticks.
    #[inline(always)]
    pub(crate) fn now(&self) -> u32 {
        // SAFETY: the helper has no preconditions.
        let jiffies = unsafe { bpf_jiffies64() };
        (jiffies >> (self.config.tick_shift.load() & 63)) as u32
    }

    /// This processor's counters.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "per-CPU memory: nobody else has it during this run")]
    pub(crate) fn counters(&self) -> &mut Counters {
        // SAFETY: the pointer came from a per-CPU map, whose element lives as long as the map,
        // and no other reference to it is kept across a call.
        unsafe { &mut *self.counters }
    }
}

#[inline(always)]
fn port_key(port: u32, address: V4, bits: u32) -> Key<PortAddress4> {
    Key::new(32 + bits, PortAddress4 { port: port.to_be_bytes(), address: address.0 })
}

/// The MTU that an answer tells; zero: more than its bits can say.
#[inline(always)]
fn told_mtu(params: &FibParams) -> u16 {
    // SAFETY: any bits are a number.
    match unsafe { params.__bindgen_anon_1.mtu_result } {
        0 => u16::MAX,
        mtu => mtu,
    }
}

impl Repeat for Kernel {
    #[inline(always)]
    fn repeat(times: u32, mut step: impl FnMut() -> bool) {
        repeat_in_kernel(times, &mut step);
    }
}

#[inline(always)]
fn repeat_in_kernel<F: FnMut() -> bool>(times: u32, step: &mut F) {
    // SAFETY: the kernel hands the pointer on to the function made for it, and is done with it
    // when the helper returns.
    unsafe { bpf_loop(times, once::<F> as *mut c_void, (&raw mut *step).cast(), 0) };
}

/// One step; not zero: it was the last.
unsafe extern "C" fn once<F: FnMut() -> bool>(_: u32, step: *mut F) -> u64 {
    // SAFETY: `repeat_in_kernel` passes a step that nobody else uses meanwhile.
    unsafe { (*step)() as u64 }
}

impl Tables for Kernel {
    type A = V4;

    #[inline(always)]
    fn config(&self) -> &Config {
        self.config
    }
    #[inline(always)]
    fn shared(&self) -> &Shared {
        self.shared
    }
    #[inline(always)]
    fn epoch(&self, slot: u32) -> u32 {
        let index = opaque(slot) as usize & (EPOCHS_ROOM - 1);
        // SAFETY: the mask keeps the index in bounds; volatile, because user space writes.
        unsafe { core::ptr::read_volatile(self.epochs.as_ptr().add(index)) }
    }
    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: the helper has no preconditions.
        unsafe { bpf_get_prandom_u32() }
    }
    #[inline(always)]
    fn clock(&self) -> u64 {
        // SAFETY: the helper has no preconditions.
        unsafe { bpf_ktime_get_ns() }
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<&Entry4> {
        SLOTS4.get(index)
    }
    #[inline(always)]
    fn hints(&self, word: u32) -> Option<&Word> {
        HINTS4.get(word)
    }
    #[inline(always)]
    fn recent(&self, place: u32) -> Option<&Line> {
        // SAFETY: the helper has no preconditions.
        let processor = unsafe { bpf_get_smp_processor_id() };
        RECENT.get(processor.wrapping_mul(LINES).wrapping_add(place))
    }
    #[inline(always)]
    fn record(&self, index: u32) -> Option<&Record> {
        RECORDS4.get(index)
    }
    #[inline(always)]
    fn take_record(&self) -> Option<u32> {
        FREE_RECORDS4.pop().ok().flatten()
    }
    #[inline(always)]
    fn give_record(&self, index: u32) {
        let _ = FREE_RECORDS4.push(index, 0);
    }
    #[inline(always)]
    fn overflow(&self, key: &[u64; 2]) -> Option<u32> {
        // SAFETY: the element may be reused while it is read; what it names is checked.
        unsafe { OVERFLOW4.get(OverflowKey4 { key: *key }).copied() }
    }
    #[inline(always)]
    fn add_overflow(&self, key: &[u64; 2], slot: u32) -> bool {
        OVERFLOW4.insert(OverflowKey4 { key: *key }, slot, BPF_NOEXIST as u64).is_ok()
    }
    #[inline(always)]
    fn remove_overflow(&self, key: &[u64; 2]) {
        let _ = OVERFLOW4.remove(OverflowKey4 { key: *key });
    }
    #[inline(always)]
    fn take_overflow(&self) -> Option<u32> {
        FREE_OVERFLOW4.pop().ok().flatten()
    }
    #[inline(always)]
    fn give_overflow(&self, slot: u32) {
        let _ = FREE_OVERFLOW4.push(slot, 0);
    }

    #[inline(always)]
    fn identity(&self, bank: u32, domain: u16, address: V4) -> IdentityRef {
        let host = HostKey4 { address: address.0, domain, bank: bank as u16 };
        // SAFETY: the value is copied out; the map frees elements only after readers are gone.
        if let Some(identity) = unsafe { HOSTS4.get(host) } {
            return *identity;
        }
        let prefix = PrefixKey4 {
            bank: (bank as u16).to_be_bytes(),
            domain: domain.to_be_bytes(),
            address: address.0,
        };
        match PREFIXES4.get(Key::new(64, prefix)) {
            Some(identity) => *identity,
            None => IdentityRef { index: 0, id: 0 },
        }
    }
    #[inline(always)]
    fn source_rules(&self, bank: u32, identity: u32) -> Option<&RuleSet> {
        SOURCE_RULES.get(banked(identity, bank))
    }
    #[inline(always)]
    fn destination_rules(&self, bank: u32, identity: u32) -> Option<&RuleSet> {
        DESTINATION_RULES.get(banked(identity, bank))
    }
    #[inline(always)]
    fn class(&self, bank: u32, index: u32) -> u16 {
        match CLASSES.get(bank & 1) {
            Some(classes) => match classes.get(index as usize) {
                Some(class) => *class,
                None => u16::MAX,
            },
            None => u16::MAX,
        }
    }
    #[inline(always)]
    fn class_rules(&self, bank: u32, class: u16) -> Option<&RuleSet> {
        CLASS_RULES.get(banked(class as u32, bank))
    }
    #[inline(always)]
    fn monitors(&self, bank: u32) -> Option<&RuleSet> {
        MONITORS.get(bank & 1)
    }
    #[inline(always)]
    fn rule(&self, bank: u32, bit: u32) -> Option<Rule> {
        RULES.get(banked(bit, bank)).copied()
    }
    #[inline(always)]
    fn count_rule(&self, counter: u32, bytes: u64) {
        if let Some(count) = RULE_COUNTS.get_ptr_mut(counter) {
            // SAFETY: per-CPU memory, and no reference is kept.
            unsafe {
                (*count).hits += 1;
                (*count).bytes += bytes;
            }
        }
    }
    #[inline(always)]
    fn snat_bits(&self, bank: u32, identity: u32) -> Option<&SnatBits> {
        SNAT_BITS.get(banked(identity, bank))
    }
    #[inline(always)]
    fn snat(&self, bank: u32, bit: u32) -> Option<Snat> {
        SNAT.get(banked(bit, bank)).copied()
    }
    #[inline(always)]
    fn pool(&self, bank: u32, place: u32) -> Option<PoolAddress> {
        POOLS.get(banked(place, bank)).copied()
    }
    #[inline(always)]
    fn is_outside(&self, bank: u32, address: V4) -> bool {
        let key = HostKey4 { address: address.0, domain: 0, bank: bank as u16 };
        OUTSIDE4.get_ptr(key).is_some()
    }
    #[inline(always)]
    fn lendable(&self, index: u32) -> Option<&Ports> {
        LENDABLE.get(index)
    }
    #[inline(always)]
    fn bitmap(&self, pair: &PairKey4) -> Option<&Ports> {
        // SAFETY: the number is copied out.
        let number = unsafe { PAIRS4.get(pair).copied() }?;
        BITMAPS.get(number)
    }
    #[inline(always)]
    fn make_hot(&self, pair: &PairKey4) -> Option<u32> {
        // SAFETY: the number is copied out.
        let known = || unsafe { PAIRS4.get(pair).copied() };
        if let Some(number) = known() {
            return Some(number);
        }
        let number = FREE_BITMAPS.pop().ok().flatten()?;
        self.shared.hot_pairs.fetch_add(1);
        if PAIRS4.insert(pair, number, BPF_NOEXIST as u64).is_ok() {
            return Some(number);
        }
        // Another processor was first. The daemon finds what nobody has, which it can because
        // nothing but the daemon makes a bitmap free.
        self.shared.hot_pairs.fetch_add(u64::MAX);
        known()
    }
    #[inline(always)]
    fn bitmap_of(&self, number: u32) -> Option<&Ports> {
        BITMAPS.get(number)
    }

    #[inline(always)]
    fn domain_at_a_glance(&self, ifindex: u32, to: &[u8; 6], source: V4) -> Option<u16> {
        glance(PORTS.get(ifindex & (PORTS_ROOM - 1))?, ifindex, to, source)
    }
    #[inline(always)]
    fn attachment_of(&self, port: u32, source: V4) -> Option<u16> {
        SOURCES4.get(port_key(port, source, 32)).map(|number| *number as u16)
    }
    #[inline(always)]
    fn attachment_towards(&self, port: u32, destination: V4) -> Option<u16> {
        ROUTES4.get(port_key(port, destination, 32)).map(|number| *number as u16)
    }
    #[inline(always)]
    fn attachment(&self, number: u16) -> Option<Attachment> {
        ATTACHMENTS.get(number as u32).copied()
    }
    #[inline(always)]
    fn carries(&self, attachment: u16, source: V4) -> bool {
        CARRIES4.get(port_key(attachment as u32, source, 32)).is_some()
    }
    #[inline(always)]
    fn is_local(&self, address: V4) -> bool {
        LOCALS4.get_ptr(address.0).is_some()
    }
    #[inline(always)]
    fn is_local6(&self, address: &[u8; 16]) -> bool {
        LOCALS6.get_ptr(address).is_some()
    }
    #[inline(always)]
    fn link(&self, ifindex: u32) -> Option<LinkInfo> {
        // SAFETY: the value is copied out; the map frees elements only after readers are gone.
        unsafe { LINKS.get(ifindex).copied() }
    }
    #[inline(always)]
    fn route(&self, ifindex: u32, source: V4, destination: V4) -> Route {
        let mut room = MaybeUninit::uninit();
        // With a length the kernel tells the MTU of the way, and no packet is shorter than this.
        let (answer, params) = self.ask_route(&mut room, ifindex, source, destination, 1);
        // A gateway with an IPv6 address (`via inet6`): a next hop has no room for its name.
        if params.family != AF_INET {
            return Route::Unreachable;
        }
        // SAFETY: the kernel filled in the IPv4 members for an IPv4 request.
        let gateway = unsafe { params.__bindgen_anon_4.ipv4_dst }.to_ne_bytes();
        match answer {
            0 => Route::Via {
                ifindex: params.ifindex,
                gateway,
                destination_mac: Some(params.dmac),
                source_mac: params.smac,
                mtu: told_mtu(params),
            },
            // Blackhole, unreachable, prohibit, no route at all.
            1..=4 => Route::Unreachable,
            // No neighbour yet.
            7 => {
                let ifindex_out = params.ifindex;
                let Some(link) = self.link(ifindex_out) else { return Route::Unreachable };
                // Of such a way the kernel tells the MTU only to a packet that is too long for it.
                let (_, params) = self.ask_route(&mut room, ifindex, source, destination, u16::MAX);
                Route::Via {
                    ifindex: ifindex_out,
                    gateway,
                    destination_mac: None,
                    source_mac: link.mac,
                    mtu: told_mtu(params),
                }
            }
            -101 | -113 => Route::Unreachable,
            _ => Route::Failed,
        }
    }
    #[inline(always)]
    fn hop(&self, number: u16) -> Option<Hop> {
        let hop = NEXT_HOPS.get(number as u32)?;
        Some(Hop {
            destination: hop.words[0].load(),
            source: hop.words[1].load(),
            place: hop.words[2].load(),
            checked: hop.words[3].load(),
        })
    }
    #[inline(always)]
    fn find_hop(&self, key: &NextHopKey) -> Option<u16> {
        // SAFETY: the number is copied out.
        unsafe { NEXT_HOP_INDEX.get(key).map(|number| *number as u16) }
    }
    #[inline(always)]
    fn add_hop(&self, key: &NextHopKey, hop: &Hop) -> Option<u16> {
        let number = FREE_NEXT_HOPS.pop().ok().flatten()?;
        // Written before it is named: whoever finds the name finds the whole hop.
        self.set_hop(number as u16, hop);
        if NEXT_HOP_INDEX.insert(key, number, BPF_NOEXIST as u64).is_ok() {
            return Some(number as u16);
        }
        let _ = FREE_NEXT_HOPS.push(number, 0);
        self.find_hop(key)
    }
    #[inline(always)]
    fn set_hop(&self, number: u16, hop: &Hop) {
        if let Some(entry) = NEXT_HOPS.get(number as u32) {
            entry.words[0].store(hop.destination);
            entry.words[1].store(hop.source);
            entry.words[2].store(hop.place);
            entry.words[3].store(hop.checked);
        }
    }

    #[inline(always)]
    fn admit(&self, bucket: u32, limit: u32, now: u32) -> Option<u32> {
        let bucket = RATES.get(bucket & (RATE_BUCKETS - 1))?;
        xdp::tables::admit(bucket, limit, now)
    }
    #[inline(always)]
    fn report(&self, fill: impl FnOnce(&mut Event4)) {
        match EVENTS.reserve::<Event4>(0) {
            Some(mut entry) => {
                // SAFETY: the kernel reserved room for an event; all zeros is one.
                fill(unsafe { zeroed(&mut entry) });
                entry.submit(0);
            }
            None => self.counters().events_lost += 1,
        }
    }
    #[inline(always)]
    fn tally(&self, what: Tally) {
        what.count(self.counters());
    }
}
