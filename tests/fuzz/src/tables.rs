//! What user space reads out of the kernel's memory: events of the ring, and sessions as they stand
//! in their tables, which may be caught in the middle of a change.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use gateway::config::Config;
use gateway::datapath::numbers::Numbers;
use gateway::flows::session::{all_slots, sessions};
use gateway::flows::{Book, Clock, Directories, Directory, record};
use xdp::memory::{Memory, Sizes};
use xdp::tables::Tables as _;
use xdp_abi::event::Event4;
use zerocopy::FromBytes as _;

fn names() -> &'static Book {
    static NAMES: OnceLock<Arc<Book>> = OnceLock::new();
    NAMES.get_or_init(|| {
        let config = crate::example();
        let names = {
            let Config { gateway, image, inventory, .. } = config;
            let numbers = Numbers::default().with(gateway);
            Directory::new(1, gateway, image, inventory, &numbers)
        };
        Directories::new(names).book()
    })
}

/// An event becomes a record.
pub(crate) fn event(bytes: &[u8]) {
    let Ok((event, _)) = Event4::read_from_prefix(bytes) else { return };
    let clock = Clock::new(Duration::from_millis(64), 1 << 60);
    if let Some(record) = record::of_event(&event, names(), &clock) {
        serde_json::to_string(&record).expect("a record can be written");
    }
}

/// Slots and records of anything.
pub(crate) fn session(bytes: &[u8]) {
    let sizes = Sizes { slots: 8, records: 4, overflow: 2, bitmaps: 1, hops: 4, events: 4 };
    let memory = Memory::new(sizes, 1);
    let mut words = bytes.chunks_exact(8).map(|word| {
        u64::from_ne_bytes(word.try_into().expect("a chunk of eight bytes is eight bytes"))
    });
    let mut word = || words.next().unwrap_or(0);
    let now = word() as u32;
    for slot in memory.slots() {
        for place in &slot.words {
            place.store(word());
        }
    }
    for number in 0..sizes.records {
        let record = memory.record(number).expect("there are so many records");
        for place in [&record.slots, &record.rules, &record.identity, &record.facts, &record.began]
        {
            place.store(word());
        }
        for place in &record.spilled {
            place.store(word());
        }
    }
    for view in sessions(&memory, 0..all_slots(&memory), now) {
        let clock = Clock::new(Duration::from_millis(64), 1 << 60);
        if let Some(record) = record::of_event(&view.told, names(), &clock) {
            serde_json::to_string(&record).expect("a record can be written");
        }
    }
}
