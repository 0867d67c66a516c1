//! The eBPF object: its maps with the sizes of the configuration, its programs.

use crate::config;
use aya::{
    Ebpf, EbpfError, EbpfLoader, VerifierLogLevel, include_bytes_aligned,
    maps::{Map, MapData, MapError, ProgramArray, Queue},
    pin::PinError,
    programs::{Program, ProgramError, ProgramInfo, SchedClassifier, Xdp},
};
use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};
use xdp::{
    recent::LINES,
    snat::spare_bitmaps,
    table::{hint_words, near_slots_beside},
};
use xdp_abi::{
    names,
    policy::{LENDABLE_SETS, POOL_ADDRESSES, RULES, SNAT_POLICIES},
    session::{OVERFLOW_SHARE, SLOTS_PER_SESSION},
};

pub(super) static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sluice-xdp"));

/// The ring of events: about 30,000 of them, should the daemon be busy for a moment.
pub(super) const EVENT_BYTES: u32 = 4 << 20;

/// The policy in force and the one that is written next have a half each.
const BANKS: u32 = 2;
/// Beside the rules the default action is counted.
const DEFAULT_ACTION: u32 = 1;

/// How much the tables hold. Fixed while they exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Sessions, a power of two.
    pub sessions: u32,
    /// Addresses with an identity of their own.
    pub hosts: u32,
    /// Prefixes with an identity.
    pub prefixes: u32,
    /// Identities.
    pub identities: u32,
    /// Rules that are counted.
    pub rules: u32,
    /// Port classes.
    pub port_classes: u32,
    /// Next hops, at most 65,536.
    pub next_hops: u32,
}

impl Sizes {
    /// Slots of the window table.
    pub fn window_slots(&self) -> u32 {
        self.sessions * SLOTS_PER_SESSION
    }
    /// Slots for entries whose window is full.
    pub fn overflow_slots(&self) -> u32 {
        (self.window_slots() / OVERFLOW_SHARE).max(64)
    }
    /// Slots that are tried first.
    pub fn near_slots(&self) -> u32 {
        near_slots_beside(self.window_slots())
    }
    /// Port bitmaps for hot pairs: one in 512 sessions' worth of ports, at least some, and those for
    /// small ranges.
    pub fn bitmaps(&self) -> u32 {
        (self.sessions / 512).max(64) + spare_bitmaps(self.sessions)
    }

    /// The sizes that a configuration states.
    pub(crate) fn of(tables: &config::Tables) -> Self {
        Self {
            sessions: tables.sessions,
            hosts: tables.endpoints,
            prefixes: tables.prefixes,
            identities: tables.identities,
            rules: tables.rules,
            port_classes: tables.port_classes,
            next_hops: tables.next_hops,
        }
    }

    /// Every setting with its value, and a map that shows how large it was made, with how many
    /// elements.
    pub(crate) fn shown_by(&self) -> [Shown; 7] {
        let shown = |setting, wanted, map, each| Shown { setting, wanted, map, each, beside: 0 };
        [
            shown("sessions", self.sessions, names::RECORDS4, 1),
            shown("endpoints", self.hosts, names::HOSTS4, BANKS),
            shown("prefixes", self.prefixes, names::PREFIXES4, BANKS),
            shown("identities", self.identities, names::SOURCE_RULES, BANKS),
            Shown { beside: DEFAULT_ACTION, ..shown("rules", self.rules, names::RULE_COUNTS, 1) },
            shown("port_classes", self.port_classes, names::CLASS_RULES, BANKS),
            shown("next_hops", self.next_hops, names::NEXT_HOPS, 1),
        ]
    }

    fn of_maps(&self) -> Vec<(&'static str, u32)> {
        let banks = BANKS;
        vec![
            (names::SLOTS4, self.window_slots() + self.overflow_slots() + self.near_slots()),
            (names::HINTS4, hint_words(self.window_slots(), self.near_slots())),
            (names::RECORDS4, self.sessions),
            (names::FREE_RECORDS4, self.sessions),
            (names::OVERFLOW4, self.overflow_slots()),
            (names::FREE_OVERFLOW4, self.overflow_slots()),
            (names::RULE_COUNTS, self.rules + DEFAULT_ACTION),
            (names::HOSTS4, banks * self.hosts),
            (names::PREFIXES4, banks * self.prefixes),
            (names::SOURCE_RULES, banks * self.identities),
            (names::DESTINATION_RULES, banks * self.identities),
            (names::CLASS_RULES, banks * self.port_classes),
            (names::CLASSES, banks),
            (names::SNAT_BITS, banks * self.identities),
            (names::RULES, banks * RULES as u32),
            (names::SNAT, banks * SNAT_POLICIES as u32),
            (names::POOLS, banks * POOL_ADDRESSES),
            (names::LENDABLE, LENDABLE_SETS),
            (names::PAIRS4, self.bitmaps()),
            (names::BITMAPS, self.bitmaps()),
            (names::FREE_BITMAPS, self.bitmaps()),
            (names::NEXT_HOPS, self.next_hops),
            (names::NEXT_HOP_INDEX, self.next_hops),
            (names::FREE_NEXT_HOPS, self.next_hops),
            (names::EVENTS, EVENT_BYTES),
        ]
    }
}

/// A setting, and a map that shows what it was when the map was made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shown {
    pub setting: &'static str,
    pub wanted: u32,
    pub map: &'static str,
    /// Elements for each entry that the setting speaks of.
    each: u32,
    /// Elements beside those.
    beside: u32,
}

impl Shown {
    /// What the setting was when the map was made with so many elements.
    pub(super) fn stated(&self, elements: u32) -> u32 {
        elements.saturating_sub(self.beside) / self.each
    }

    /// Whether a map of so many elements may be used on. One that an older version made has no
    /// element beside its entries: one of these is wanting, which shows when it is needed.
    pub(super) fn takes(&self, elements: u32) -> bool {
        [elements, elements + self.beside].map(|made| self.stated(made)).contains(&self.wanted)
    }
}

/// Why the object could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// The kernel refused the object or one of its maps.
    #[error("the kernel refuses the datapath: {0}")]
    Load(#[from] EbpfError),
    /// The verifier refused a program.
    #[error("the kernel refuses the program `{name}`: {source}")]
    Program {
        /// Which.
        name: &'static str,
        /// What it said.
        source: ProgramError,
    },
    /// A map could not be used.
    #[error("the map `{name}` cannot be used: {source}")]
    Map {
        /// Which.
        name: &'static str,
        /// Why.
        source: MapError,
    },
    /// A map could not be pinned.
    #[error("the map `{name}` cannot be pinned: {source}; is bpffs mounted there?")]
    Pin {
        /// Which.
        name: &'static str,
        /// Why.
        source: PinError,
    },
    /// A map could not be mapped into memory.
    #[error("the map `{name}` cannot be mapped into memory: {source}")]
    Memory {
        /// Which.
        name: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The kernel does not say how many processors there may be.
    #[error("cannot count the processors by {0}: {1}")]
    Processors(&'static str, io::Error),
    /// The object and this program do not belong together.
    #[error("the datapath object has no `{0}`")]
    Missing(&'static str),
}

/// The loaded object.
pub struct Object {
    ebpf: Ebpf,
    stages: Vec<ProgramArray<MapData>>,
}

/// A program in the kernel.
#[derive(Debug)]
pub struct Loaded {
    /// Its name, whole: the kernel's own ends after 15 bytes.
    pub name: String,
    /// What the kernel says of it.
    pub info: ProgramInfo,
    /// Its descriptor.
    pub fd: OwnedFd,
}

/// Which hooks are going to be used: the verifier takes seconds for the programs of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hooks {
    /// XDP on some interface.
    pub xdp: bool,
    /// TC ingress on some interface.
    pub tc: bool,
}

impl Hooks {
    /// Whatever there may be.
    pub const ALL: Self = Self { xdp: true, tc: true };

    /// Whether the program of this name is loaded.
    pub fn have(self, program: &str) -> bool {
        match program {
            names::XDP_INGRESS => self.xdp,
            names::TC_INGRESS => self.tc,
            // What serves both.
            _ => true,
        }
    }
}

/// Arrays of tail-call targets. The kernel empties one when no pin and no process holds it, so
/// they are pinned; but every load has its own, because a packet must not change from the
/// programs of one load to those of another in the middle.
const STAGES: [&str; 2] = [names::XDP_STAGES, names::TC_STAGES];

/// Where a map is pinned until it takes the place of the one that has its name.
pub(super) fn next(pins: &Path, name: &str) -> PathBuf {
    pins.join(format!("{name}_next"))
}

/// The programs of a load are on the interfaces: its arrays take the place of those before.
pub fn settle(pins: &Path) -> io::Result<()> {
    for array in STAGES {
        std::fs::rename(next(pins, array), pins.join(array))?;
    }
    Ok(())
}

impl Object {
    /// Loads the object with tables of these sizes. With `pins`, maps that are pinned there are
    /// taken over and new ones are pinned; those named in `apart` are made anew, and pinned
    /// beside those that are there.
    pub fn load(
        sizes: &Sizes,
        hooks: Hooks,
        pins: Option<&Path>,
        apart: &[&str],
    ) -> Result<Self, ObjectError> {
        let of_maps = sizes.of_maps();
        let mut loader = EbpfLoader::new();
        loader.verifier_log_level(VerifierLogLevel::STATS);
        for (name, size) in &of_maps {
            loader.map_max_entries(name, *size);
        }
        loader.map_max_entries(names::RECENT, processors()? * LINES);
        if let Some(pins) = pins {
            for name in names::ALL.into_iter().filter(|name| !STAGES.contains(name)) {
                let beside = apart.contains(&name);
                let path = if beside { next(pins, name) } else { pins.join(name) };
                loader.map_pin_path(name, path);
            }
        }
        let mut ebpf = loader.load(OBJECT)?;
        let stages = |programs: &[(&'static str, u32)], used: bool| {
            let names = programs.iter().map(|(name, _)| *name).filter(|_| used);
            names.collect::<Vec<_>>()
        };
        let mut xdp = stages(&names::XDP_STAGE_PROGRAMS, hooks.xdp);
        xdp.push(names::CONTROL);
        xdp.extend(hooks.xdp.then_some(names::XDP_INGRESS));
        for name in xdp {
            let program: &mut Xdp = program(&mut ebpf, name)?;
            program.load().map_err(|source| ObjectError::Program { name, source })?;
        }
        let mut tc = stages(&names::TC_STAGE_PROGRAMS, hooks.tc);
        tc.extend([names::TC_MARK, names::TC_EGRESS]);
        tc.extend(hooks.tc.then_some(names::TC_INGRESS));
        for name in tc {
            let program: &mut SchedClassifier = program(&mut ebpf, name)?;
            program.load().map_err(|source| ObjectError::Program { name, source })?;
        }
        let mut object = Self { ebpf, stages: Vec::new() };
        let xdp: &[_] = if hooks.xdp { &names::XDP_STAGE_PROGRAMS } else { &[] };
        let tc: &[_] = if hooks.tc { &names::TC_STAGE_PROGRAMS } else { &[] };
        object.chain(names::XDP_STAGES, xdp, pins)?;
        object.chain(names::TC_STAGES, tc, pins)?;
        Ok(object)
    }

    /// Fills an array of tail-call targets.
    fn chain(
        &mut self,
        array: &'static str,
        programs: &[(&'static str, u32)],
        pins: Option<&Path>,
    ) -> Result<(), ObjectError> {
        let map = self.ebpf.take_map(array).ok_or(ObjectError::Missing(array))?;
        if let Some(pins) = pins {
            let path = next(pins, array);
            // What a load that came to nothing has left.
            let _ = std::fs::remove_file(&path);
            map.pin(&path).map_err(|source| ObjectError::Pin { name: array, source })?;
        }
        let failed = |source| ObjectError::Map { name: array, source };
        let mut stages = ProgramArray::try_from(map).map_err(failed)?;
        for (name, stage) in programs {
            let program = self.ebpf.program(name).ok_or(ObjectError::Missing(name))?;
            let fd = program.fd().map_err(|source| ObjectError::Program { name, source })?;
            stages.set(*stage, fd, 0).map_err(failed)?;
        }
        self.stages.push(stages);
        Ok(())
    }

    /// The arrays of tail-call targets: the kernel empties one when nobody holds it.
    pub fn take_stages(&mut self) -> Vec<ProgramArray<MapData>> {
        std::mem::take(&mut self.stages)
    }

    /// A program that is attached or run.
    pub fn xdp(&mut self, name: &'static str) -> Result<&mut Xdp, ObjectError> {
        program(&mut self.ebpf, name)
    }

    /// A program that is attached or run.
    pub fn tc(&mut self, name: &'static str) -> Result<&mut SchedClassifier, ObjectError> {
        program(&mut self.ebpf, name)
    }

    /// Takes a map out, to be used by its type.
    pub fn take<T>(&mut self, name: &'static str) -> Result<T, ObjectError>
    where
        T: TryFrom<Map, Error = MapError>,
    {
        let map = self.ebpf.take_map(name).ok_or(ObjectError::Missing(name))?;
        T::try_from(map).map_err(|source| ObjectError::Map { name, source })
    }

    /// Takes an array out, mapped into memory.
    pub fn map<T>(&mut self, name: &'static str) -> Result<super::memory::Mapped<T>, ObjectError> {
        let Some(Map::Array(data)) = self.ebpf.take_map(name) else {
            return Err(ObjectError::Missing(name));
        };
        let elements =
            data.info().map_err(|source| ObjectError::Map { name, source })?.max_entries();
        super::memory::Mapped::new(&data, elements)
            .map_err(|source| ObjectError::Memory { name, source })
    }

    /// Fills a queue with numbers.
    pub fn fill(
        &mut self,
        name: &'static str,
        numbers: impl Iterator<Item = u32>,
    ) -> Result<Queue<MapData, u32>, ObjectError> {
        let mut queue: Queue<_, u32> = self.take(name)?;
        for number in numbers {
            queue.push(number, 0).map_err(|source| ObjectError::Map { name, source })?;
        }
        Ok(queue)
    }

    /// Every program that was loaded. The kernel tells about a program to whoever has its
    /// descriptor; by number it would ask for `CAP_SYS_ADMIN`.
    pub fn loaded(&self) -> Vec<Loaded> {
        let of = |(name, program): (&str, &Program)| {
            let fd = program.fd().ok()?.as_fd().try_clone_to_owned().ok()?;
            Some(Loaded { name: name.to_owned(), info: program.info().ok()?, fd })
        };
        self.ebpf.programs().filter_map(of).collect()
    }
}

/// How many processors there may be: the numbers that programs see are below.
fn processors() -> Result<u32, ObjectError> {
    let count =
        aya::util::nr_cpus().map_err(|(file, source)| ObjectError::Processors(file, source))?;
    Ok(count as u32)
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, ObjectError>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or(ObjectError::Missing(name))?;
    program.try_into().map_err(|source| ObjectError::Program { name, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: Sizes = Sizes {
        sessions: 1024,
        hosts: 11,
        prefixes: 13,
        identities: 17,
        rules: 19,
        port_classes: 23,
        next_hops: 29,
    };

    #[test]
    fn every_setting_is_shown_by_a_map_of_its_size() {
        let made = SIZES.of_maps();
        for shown in SIZES.shown_by() {
            let Shown { setting, wanted, map, .. } = shown;
            let entries = made.iter().find(|(name, _)| *name == map).map(|(_, entries)| *entries);
            assert_eq!(entries.map(|entries| shown.stated(entries)), Some(wanted), "{setting}");
        }
    }

    #[test]
    fn bitmaps_for_small_ranges_are_none_of_those_for_large_ones() {
        for sessions in [1_024, 32_768, 33_792, 1 << 20] {
            let sizes = Sizes { sessions, ..SIZES };
            let large = sizes.bitmaps() - spare_bitmaps(sessions);
            // A large range turns hot with so many sessions of a pair, or more.
            assert_eq!(large, (sessions / 512).max(64), "{sessions}");
            assert!(spare_bitmaps(sessions) >= 32, "{sessions}");
            for map in [names::BITMAPS, names::FREE_BITMAPS, names::PAIRS4] {
                let made = sizes.of_maps();
                let (_, entries) = made.iter().find(|(name, _)| *name == map).unwrap();
                assert_eq!(*entries, sizes.bitmaps(), "{map}");
            }
        }
    }

    #[test]
    fn a_table_of_another_size_is_taken_by_none_but_the_older_table_of_rules() {
        for (setting, elements, taken) in [
            ("rules", 20, true),  // 19, and the default action
            ("rules", 19, true),  // as an older version made it for 19
            ("rules", 21, false), // for 20
            ("rules", 18, false),
            ("endpoints", 22, true),
            ("endpoints", 20, false),
            ("endpoints", 24, false),
        ] {
            let shown = SIZES.shown_by().into_iter().find(|shown| shown.setting == setting);
            assert_eq!(shown.unwrap().takes(elements), taken, "{setting} {elements}");
        }
    }
}
