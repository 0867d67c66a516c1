//! The tables of the datapath, by their types.
//!
//! Tables outlive the daemon: they are pinned, and a daemon that starts takes over what it
//! finds there, sessions included, if the layout and the sizes are its own.

use super::{
    backlog::Backlog,
    clock::Clock,
    layout::{self, LayoutError, Older},
    memory::Mapped,
    object::{EVENT_BYTES, Hooks, Object, ObjectError, Shown, Sizes},
};
use aya::{
    Pod, TestRun as _,
    maps::{
        HashMap, LpmTrie, MapData, MapError, PerCpuArray, ProgramArray, Queue, RingBuf,
        lpm_trie::Key,
    },
    programs::{ProgramError, TestRunOptions, Xdp},
};
use std::{
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};
use xdp_abi::{
    ABI_VERSION,
    config::{Config, HINTED, Shared},
    control::{self, Order, SWEEP_SLOTS},
    count::{Counters, RuleCount},
    forward::{Attachment, LinkInfo, NextHop, NextHopKey, PortAddress4, PortInfo},
    names,
    policy::{
        CLASS_TABLE, HostKey4, IdentityRef, PoolAddress, PrefixKey4, Rule, RuleSet, Snat, SnatBits,
    },
    port::{PairKey4, Ports},
    reason::Reason,
    session::{EPOCHS, Entry4, Record},
};
use zerocopy::IntoBytes;

/// Why the datapath could not be taken into use.
#[derive(Debug, thiserror::Error)]
pub enum TablesError {
    /// The object could not be loaded.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// What is pinned has a layout that cannot be taken over.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// What is pinned has another size.
    #[error(
        "`tables.{table}` is {wanted}, but the pinned table has {found}; sizes are fixed while \
         tables exist: set it back, or run `sluice-gateway detach` and start again"
    )]
    Size {
        /// The setting.
        table: &'static str,
        /// What is pinned.
        found: u32,
        /// What is configured.
        wanted: u32,
    },
    /// The kernel's clock could not be read through the datapath.
    #[error("the kernel's clock cannot be read: {0}")]
    Clock(ProgramError),
    /// The kernel counts time in a way that is not known.
    #[error("the kernel counts {0} ticks a second, which is none of the usual numbers")]
    Rate(u64),
}

/// All tables, and the program that ends sessions.
#[allow(missing_docs, reason = "each table is described where its name is, in `xdp_abi::names`")]
pub struct Datapath {
    pub sizes: Sizes,
    pub hooks: Hooks,
    pub config: Mapped<Config>,
    pub shared: Mapped<Shared>,
    pub epochs: Mapped<[u32; EPOCHS]>,
    pub slots: Mapped<Entry4>,
    pub records: Mapped<Record>,
    pub source_rules: Mapped<RuleSet>,
    pub destination_rules: Mapped<RuleSet>,
    pub class_rules: Mapped<RuleSet>,
    pub monitors: Mapped<RuleSet>,
    pub classes: Mapped<[u16; CLASS_TABLE as usize]>,
    pub snat_bits: Mapped<SnatBits>,
    pub rules: Mapped<Rule>,
    pub snat: Mapped<Snat>,
    pub pools: Mapped<PoolAddress>,
    pub lendable: Mapped<Ports>,
    pub bitmaps: Mapped<Ports>,
    pub attachments: Mapped<Attachment>,
    pub ports: Mapped<PortInfo>,
    pub hops: Mapped<NextHop>,
    pub hosts: Mutex<HashMap<MapData, HostKey4, IdentityRef>>,
    pub prefixes: Mutex<LpmTrie<MapData, PrefixKey4, IdentityRef>>,
    pub outside: Mutex<HashMap<MapData, HostKey4, u32>>,
    pub sources: Mutex<LpmTrie<MapData, PortAddress4, u32>>,
    pub routes: Mutex<LpmTrie<MapData, PortAddress4, u32>>,
    pub carries: Mutex<LpmTrie<MapData, PortAddress4, u32>>,
    pub locals: Mutex<HashMap<MapData, [u8; 4], u32>>,
    pub locals6: Mutex<HashMap<MapData, [u8; 16], u32>>,
    pub links: Mutex<HashMap<MapData, u32, LinkInfo>>,
    pub hop_index: Mutex<HashMap<MapData, NextHopKey, u32>>,
    pub free_hops: Mutex<Queue<MapData, u32>>,
    pub pairs: Mutex<HashMap<MapData, PairKey4, u32>>,
    pub free_bitmaps: Mutex<Queue<MapData, u32>>,
    counters: PerCpuArray<MapData, [u64; COUNTER_WORDS]>,
    rule_counts: Mutex<PerCpuArray<MapData, [u64; RULE_COUNT_WORDS]>>,
    events: Mutex<Option<RingBuf<MapData>>>,
    backlog: Backlog,
    clock: Clock,
    object: Mutex<Object>,
    /// Whether sessions of an earlier daemon were taken over.
    pub adopted: bool,
    /// The table for want of which those of an earlier daemon were not.
    pub torn: Option<&'static str>,
    older: Mutex<Option<Older>>,
    _stages: Vec<ProgramArray<MapData>>,
}

const COUNTER_WORDS: usize = size_of::<Counters>() / 8;
const RULE_COUNT_WORDS: usize = size_of::<RuleCount>() / 8;

/// Ignores that a thread died while it held the lock: every map operation is whole by itself.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Datapath {
    /// Loads the datapath with tables of these sizes; with `pins`, takes over the tables that
    /// are there, which [`refuse`] has let pass.
    pub fn open(sizes: Sizes, hooks: Hooks, pins: Option<&Path>) -> Result<Self, TablesError> {
        let torn = pins.map(layout::torn).transpose()?.flatten();
        let older = pins.map(layout::look).transpose()?.flatten();
        let apart = older.as_ref().map_or(&[][..], Older::apart);
        let mut object = Object::load(&sizes, hooks, pins, apart)?;
        let config: Mapped<Config> = object.map(names::CONFIG)?;
        let shared: Mapped<Shared> = object.map(names::SHARED)?;
        let slots: Mapped<Entry4> = object.map(names::SLOTS4)?;
        let adopted = config.all()[0].abi.load() != 0;
        let clock = read_clock(&mut object, &shared)?;
        let hop_numbers = if adopted { 0..0 } else { 0..sizes.next_hops };
        let bitmap_numbers = if adopted { 0..0 } else { 0..sizes.bitmaps() };
        let record_numbers = if adopted { 0..0 } else { 0..sizes.sessions };
        let window = sizes.window_slots();
        let overflow = if adopted { 0..0 } else { window..window + sizes.overflow_slots() };
        object.fill(names::FREE_RECORDS4, record_numbers)?;
        object.fill(names::FREE_OVERFLOW4, overflow)?;
        let free_hops = Mutex::new(object.fill(names::FREE_NEXT_HOPS, hop_numbers)?);
        let free_bitmaps = Mutex::new(object.fill(names::FREE_BITMAPS, bitmap_numbers)?);
        let events: RingBuf<MapData> = object.take(names::EVENTS)?;
        let backlog = Backlog::new(&events)
            .map_err(|source| ObjectError::Memory { name: names::EVENTS, source })?;
        if !adopted {
            let c = &config.all()[0];
            c.seed.store(random_seed());
            // A session that is named by zero would be none.
            shared.all()[0].incarnation.store(1);
            c.slots.store(u64::from(window - 1) | u64::from(sizes.overflow_slots()) << 32);
            let near = u64::from(sizes.near_slots());
            c.tick_shift.store(u64::from(clock.shift()) | HINTED | near << 32);
            c.abi.store(u64::from(ABI_VERSION));
        }
        Ok(Self {
            sizes,
            hooks,
            epochs: object.map(names::EPOCHS)?,
            records: object.map(names::RECORDS4)?,
            source_rules: object.map(names::SOURCE_RULES)?,
            destination_rules: object.map(names::DESTINATION_RULES)?,
            class_rules: object.map(names::CLASS_RULES)?,
            monitors: object.map(names::MONITORS)?,
            classes: object.map(names::CLASSES)?,
            snat_bits: object.map(names::SNAT_BITS)?,
            rules: object.map(names::RULES)?,
            snat: object.map(names::SNAT)?,
            pools: object.map(names::POOLS)?,
            lendable: object.map(names::LENDABLE)?,
            bitmaps: object.map(names::BITMAPS)?,
            attachments: object.map(names::ATTACHMENTS)?,
            ports: object.map(names::PORTS)?,
            hops: object.map(names::NEXT_HOPS)?,
            hosts: Mutex::new(object.take(names::HOSTS4)?),
            prefixes: Mutex::new(object.take(names::PREFIXES4)?),
            outside: Mutex::new(object.take(names::OUTSIDE4)?),
            sources: Mutex::new(object.take(names::SOURCES4)?),
            routes: Mutex::new(object.take(names::ROUTES4)?),
            carries: Mutex::new(object.take(names::CARRIES4)?),
            locals: Mutex::new(object.take(names::LOCALS4)?),
            locals6: Mutex::new(object.take(names::LOCALS6)?),
            links: Mutex::new(object.take(names::LINKS)?),
            hop_index: Mutex::new(object.take(names::NEXT_HOP_INDEX)?),
            pairs: Mutex::new(object.take(names::PAIRS4)?),
            counters: object.take(names::COUNTERS)?,
            rule_counts: Mutex::new(object.take(names::RULE_COUNTS)?),
            events: Mutex::new(Some(events)),
            backlog,
            config,
            shared,
            slots,
            free_hops,
            free_bitmaps,
            clock,
            adopted,
            torn,
            older: Mutex::new(older),
            _stages: object.take_stages(),
            object: Mutex::new(object),
        })
    }

    /// The global settings.
    pub fn settings(&self) -> &Config {
        &self.config.all()[0]
    }

    /// Moves an epoch: what was remembered or judged under it is looked up or judged again.
    pub fn move_epoch(&self, slot: u32) {
        let epochs = self.epochs.as_ptr(0).cast::<u32>();
        // SAFETY: the index is in bounds; this process is the only writer.
        unsafe {
            let epoch = epochs.add(slot as usize % EPOCHS);
            epoch.write_volatile(epoch.read_volatile().wrapping_add(1));
        }
    }

    /// The shared words.
    pub fn shared_words(&self) -> &Shared {
        &self.shared.all()[0]
    }

    /// The object, to attach its programs.
    pub fn object(&self) -> MutexGuard<'_, Object> {
        lock(&self.object)
    }

    /// The ring of events; once.
    pub fn take_events(&self) -> Option<RingBuf<MapData>> {
        lock(&self.events).take()
    }

    /// Whether events come faster than they are read: less than half of their ring is free.
    pub fn events_pile_up(&self) -> bool {
        self.backlog.bytes() > EVENT_BYTES as usize / 2
    }

    /// What an earlier daemon left in another layout, to be carried over; once.
    pub fn take_older(&self) -> Option<Older> {
        lock(&self.older).take()
    }

    /// The datapath's clock.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Now, in ticks of the datapath.
    pub fn now(&self) -> u32 {
        self.clock.now()
    }

    /// How long a tick is.
    pub fn tick_length(&self) -> std::time::Duration {
        self.clock.tick_length()
    }

    /// The counters of all processors together.
    pub fn counters(&self) -> Result<Counters, MapError> {
        let mut sum = [0u64; COUNTER_WORDS];
        for of_processor in self.counters.get(&0, 0)?.iter() {
            for (total, part) in sum.iter_mut().zip(of_processor) {
                *total += part;
            }
        }
        Ok(counters_of(&sum))
    }

    /// The counters of every rule that was given one, by counter index.
    pub fn rule_counts(&self) -> Result<Vec<RuleCount>, MapError> {
        let counts = lock(&self.rule_counts);
        let mut rows = Vec::with_capacity(counts.len() as usize);
        for row in counts.iter() {
            let mut sum = RuleCount::default();
            for [hits, bytes] in row?.iter() {
                sum.hits += hits;
                sum.bytes += bytes;
            }
            rows.push(sum);
        }
        Ok(rows)
    }

    /// How many rules can be counted, beside the default action.
    pub fn counted_rules(&self) -> u32 {
        lock(&self.rule_counts).len().saturating_sub(1)
    }

    /// Ends a session, whatever it does, if it is still the one that is meant.
    pub fn clear(&self, record: u32, incarnation: u32, cause: u8) -> Result<(), ProgramError> {
        let order = Order {
            what: control::END,
            record,
            incarnation,
            cause: u32::from(cause),
            ..Order::default()
        };
        run(&mut self.object(), &order)
    }

    /// Looks at `slots` slots for sessions whose time is over, from where the last call ended.
    pub fn sweep(&self, slots: u32) -> Result<(), ProgramError> {
        let order = Order { what: control::SWEEP, ..Order::default() };
        let mut object = self.object();
        (0..slots.div_ceil(SWEEP_SLOTS).max(1)).try_for_each(|_| run(&mut object, &order))
    }

    /// Every slot that the table has.
    pub fn all_slots(&self) -> u32 {
        xdp::table::all_slots(self.settings())
    }
}

/// Refuses pinned tables that cannot be taken over, before anything is touched. Those of other
/// sizes would be taken over as they are, and everybody would count on more elements than there are.
pub fn refuse(sizes: &Sizes, pins: &Path) -> Result<(), TablesError> {
    if !layout::is_whole(pins)? {
        return Ok(());
    }
    for shown in sizes.shown_by() {
        let path = pins.join(shown.map);
        if !path.exists() {
            continue;
        }
        let pinned = MapData::from_pin(&path).and_then(|map| Ok(map.info()?.max_entries()));
        let elements = pinned.map_err(|source| LayoutError::Open { path, source })?;
        if !shown.takes(elements) {
            let Shown { setting: table, wanted, .. } = shown;
            return Err(TablesError::Size { table, found: shown.stated(elements), wanted });
        }
    }
    Ok(())
}

fn read_clock(object: &mut Object, shared: &Mapped<Shared>) -> Result<Clock, TablesError> {
    let order = Order { what: control::CLOCK, ..Order::default() };
    let mut read = || -> Result<(u64, u64), TablesError> {
        run(object, &order).map_err(TablesError::Clock)?;
        let words = &shared.all()[0];
        Ok((words.jiffies.load(), words.nanoseconds.load()))
    };
    let first = read()?;
    // Long enough that one jiffy more or less does not change the answer.
    std::thread::sleep(std::time::Duration::from_millis(120));
    let second = read()?;
    Clock::measured(first, second).map_err(TablesError::Rate)
}

/// Has the kernel carry out an order. Once a call: for a repeated test run of XDP it patches its
/// own text and waits until every processor has noticed, which on a busy machine takes seconds, and
/// a signal ends one early.
fn run(object: &mut Object, order: &Order) -> Result<(), ProgramError> {
    let program: &mut Xdp = object.xdp(names::CONTROL).map_err(|_| ProgramError::NotLoaded)?;
    let mut options = TestRunOptions::new();
    options.data_in = Some(order.as_bytes());
    options.repeat = 1;
    program.test_run(options)?;
    Ok(())
}

fn random_seed() -> u64 {
    let mut bytes = [0u8; 8];
    // SAFETY: the buffer is as long as it is said to be.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    assert_eq!(got, 8, "the kernel gives eight random bytes at once");
    u64::from_ne_bytes(bytes)
}

/// The words of the counters' element, in the order of its fields.
fn counters_of(words: &[u64; COUNTER_WORDS]) -> Counters {
    let mut next = words.iter().copied();
    let mut word = || next.next().unwrap_or_default();
    let mut amount = || xdp_abi::count::Amount { packets: word(), bytes: word() };
    let received = amount();
    let forwarded = [amount(), amount()];
    let passed = amount();
    let punted = amount();
    let translated_late = amount();
    let mut counters = Counters {
        received,
        forwarded,
        passed,
        punted,
        translated_late,
        answered: word(),
        sessions_begun: word(),
        sessions_ended: word(),
        judged_again: word(),
        events_lost: word(),
        events_suppressed: word(),
        leaks_stopped: word(),
        drops: [[0; Reason::COUNT]; 3],
    };
    for by_reason in &mut counters.drops {
        for count in by_reason {
            *count = word();
        }
    }
    counters
}

/// A key of a prefix map whose first `fixed` bits must match whole.
pub fn prefix_key<K: Pod>(fixed: u32, bits: u8, key: K) -> Key<K> {
    Key::new(fixed + u32::from(bits), key)
}
