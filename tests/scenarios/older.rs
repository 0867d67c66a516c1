//! Pins as a gateway of an older layout leaves them behind.
//!
//! Only the pins are older: the programs that are attached meanwhile are those of today, and keep
//! the table of records that they were loaded with. So what they write there after [`make_older`]
//! is not known to whoever starts next, as little as if it had been lost.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use aya::maps::{Array, Map, MapData, PerCpuArray};
use xdp_abi::config::{ABI_AT, Config};
use xdp_abi::count::RuleCount;
use xdp_abi::policy::POOL_ADDRESSES;
use xdp_abi::port::Ports;
use xdp_abi::session::Record;
use xdp_abi::{names, v1};

/// `BPF_F_MMAPABLE`.
const MMAPABLE: u32 = 1 << 10;
const TODAY: usize = size_of::<Record>() / 8;
const BEFORE: usize = size_of::<v1::Record>() / 8;

type Words<const N: usize> = Array<MapData, [u64; N]>;

fn array<const N: usize>(path: &Path) -> Result<Words<N>> {
    let data = MapData::from_pin(path).with_context(|| format!("no {}", path.display()))?;
    Ok(Map::Array(data).try_into()?)
}

/// The layout of what is pinned.
pub(crate) fn layout(pins: &Path) -> Result<u64> {
    let config: Words<{ size_of::<Config>() / 8 }> = array(&pins.join(names::CONFIG))?;
    Ok(config.get(&0, 0)?[ABI_AT / 8])
}

/// Says that what is pinned has a layout.
pub(crate) fn say_layout(pins: &Path, layout: u64) -> Result<()> {
    let mut config: Words<{ size_of::<Config>() / 8 }> = array(&pins.join(names::CONFIG))?;
    let mut words = config.get(&0, 0)?;
    words[ABI_AT / 8] = layout;
    Ok(config.set(0, words, 0)?)
}

/// The records as a gateway of layout 1 has them, pinned at `path`.
fn records_of_layout_1(pins: &Path, path: &Path) -> Result<()> {
    let today: Words<TODAY> = array(&pins.join(names::RECORDS4))?;
    let mut before = Words::<BEFORE>::create(today.len(), MMAPABLE)?;
    for number in 0..today.len() {
        let mut words = [0; BEFORE];
        words[..TODAY].copy_from_slice(&today.get(&number, 0)?);
        before.set(number, words, 0)?;
    }
    before.pin(path).with_context(|| format!("cannot pin {}", path.display()))
}

/// Makes the pins those of layout 1.
pub(crate) fn make_older(pins: &Path) -> Result<()> {
    let path = pins.join(names::RECORDS4);
    let beside = pins.join("older");
    records_of_layout_1(pins, &beside)?;
    fs::rename(&beside, &path)?;
    make_smaller(pins)?;
    say_layout(pins, v1::VERSION.into())
}

/// Makes the tables that were smaller once as small as they were: one counter fewer, lendable sets
/// for one policy. What is in them is written anew by whoever starts, or counted from zero.
fn make_smaller(pins: &Path) -> Result<()> {
    type Counts = PerCpuArray<MapData, [u64; size_of::<RuleCount>() / 8]>;
    type Sets = Words<{ size_of::<Ports>() / 8 }>;
    let [counts, sets] = [names::RULE_COUNTS, names::LENDABLE].map(|name| pins.join(name));
    let counters = MapData::from_pin(&counts)?.info()?.max_entries();
    for path in [&counts, &sets] {
        fs::remove_file(path)?;
    }
    Counts::create(counters - 1, 0)?.pin(&counts)?;
    Sets::create(POOL_ADDRESSES, MMAPABLE)?.pin(&sets)?;
    Ok(())
}

/// Makes the pins those of a daemon that was killed after it had put today's layout in force and
/// before its programs were attached; sessions that the programs of before have begun since are
/// in the table of before only.
pub(crate) fn make_half_new(pins: &Path) -> Result<()> {
    let path = pins.join(names::RECORDS4);
    records_of_layout_1(pins, &pins.join(format!("{}_before", names::RECORDS4)))?;
    let mut today: Words<TODAY> = array(&path)?;
    for number in 0..today.len() {
        today.set(number, [0; TODAY], 0)?;
    }
    say_layout(pins, v1::VERSION.into())
}

/// Bytes of a pinned record.
pub(crate) fn record_bytes(pins: &Path) -> Result<usize> {
    let data = MapData::from_pin(pins.join(names::RECORDS4))?;
    Ok(data.info()?.value_size() as usize)
}
