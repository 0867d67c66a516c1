//! The datapath's counters, read from where they are pinned: also while no daemon runs.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Map, MapData, PerCpuArray};
use xdp_abi::count::Counters as OfOneProcessor;
use xdp_abi::reason::Reason;

/// What became of every packet so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) received: u64,
    pub(crate) forwarded: u64,
    pub(crate) passed: u64,
    pub(crate) punted: u64,
    pub(crate) answered: u64,
    pub(crate) judged_again: u64,
    pub(crate) leaks_stopped: u64,
    pub(crate) begun: u64,
    pub(crate) ended: u64,
    /// Packets by reason, those that were not counted left out.
    pub(crate) drops: Vec<(&'static str, u64)>,
}

const WORDS: usize = size_of::<OfOneProcessor>() / size_of::<u64>();

impl Counters {
    /// Reads them from a directory of pins.
    pub(crate) fn read(pins: &Path) -> Result<Self> {
        let path = pins.join(xdp_abi::names::COUNTERS);
        let data = MapData::from_pin(&path).with_context(|| format!("no {}", path.display()))?;
        let map: PerCpuArray<_, [u64; WORDS]> = Map::PerCpuArray(data).try_into()?;
        let mut sum = [0; WORDS];
        for words in map.get(&0, 0)?.iter() {
            sum.iter_mut().zip(words).for_each(|(sum, word)| *sum += word);
        }
        let [received, _, original, _, reply, _, passed, _, punted, _, _, _, rest @ ..] = sum;
        let [answered, begun, ended, judged_again, _, _, leaks_stopped, drops @ ..] = rest;
        let of = |reason: Reason| {
            let directions = drops.chunks(Reason::COUNT);
            (reason.name(), directions.map(|drops| drops[reason as usize]).sum())
        };
        Ok(Self {
            received,
            forwarded: original + reply,
            passed,
            punted,
            answered,
            judged_again,
            leaks_stopped,
            begun,
            ended,
            drops: Reason::ALL.map(of).into_iter().filter(|(_, packets)| *packets > 0).collect(),
        })
    }

    /// Packets dropped for a reason.
    pub(crate) fn dropped(&self, reason: Reason) -> u64 {
        let mut drops = self.drops.iter();
        drops.find(|(name, _)| *name == reason.name()).map_or(0, |(_, packets)| *packets)
    }

    /// Every packet has one fate, and no guard had to step in.
    pub(crate) fn assert_conserved(&self) -> Result<()> {
        let dropped: u64 = self.drops.iter().map(|(_, packets)| packets).sum();
        let fates = self.forwarded + self.passed + self.punted + dropped;
        ensure!(self.received == fates, "{fates} fates of {} packets: {self:?}", self.received);
        ensure!(self.leaks_stopped == 0, "a guard had to step in: {self:?}");
        Ok(())
    }
}
