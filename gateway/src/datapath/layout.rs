//! The layout of what is pinned, and the way from an older one to today's.
//!
//! A version of the layout stands in the pinned settings, at a place that no version moves. Tables
//! of today are taken over as they are. Of an older layout that is known, the tables that have
//! changed are made anew beside the old ones, and their contents carried over ([`super::carry`]);
//! all others are used on, by the programs of both.
//!
//! A daemon may be killed at any moment of this, and the next one has to go on from there. So
//! there is one moment at which today's layout comes into force, a `rename`:
//!
//! ```text
//!                      RECORDS4   _next    _before   version
//! found                old                           1
//! loaded, carried      old        new                1        killed here: begin again
//! old kept             old        new      old       1        killed here: begin again
//! in force             new                 old       1        killed here: carry, say so and go on
//!                      new                 old       2        programs are exchanged from here on
//! programs exchanged   new                           2
//! ```
//!
//! Before that moment the older gateway can be started again. Of a layout that is not known,
//! nothing is touched.

use super::{
    carry::{self, Counts, Pass},
    memory::Mapped,
    object::next,
    tables::Datapath,
};
use aya::maps::{MapData, MapError, MapType};
use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};
use xdp::address::Entry as _;
use xdp_abi::{
    ABI_VERSION,
    config::ABI_AT,
    names,
    session::{Entry4, Record, State},
    v1,
    word::Word,
};

/// How long a packet may still be on its way through programs that were exchanged: far longer
/// than any takes.
const GRACE: Duration = Duration::from_millis(100);

/// Why what is pinned cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// Made by a version that is not known here.
    #[error(
        "the pinned tables have layout {found}; this program takes over layouts {oldest} to \
         {ours}: start the version of sluice-gateway that made them, or end all sessions with \
         `sluice-gateway detach` and start again",
        oldest = v1::VERSION,
        ours = ABI_VERSION,
    )]
    Unknown {
        /// The pinned layout.
        found: u64,
    },
    /// It says that it is of one layout, and is not.
    #[error(
        "the pinned table {0} is not what its layout says; end all sessions with `sluice-gateway \
         detach` and start again"
    )]
    Broken(PathBuf),
    /// It cannot be opened.
    #[error("the pinned table {path} cannot be opened: {source}")]
    Open {
        /// Where.
        path: PathBuf,
        /// Why.
        source: MapError,
    },
    /// It cannot be read or moved.
    #[error("the pinned table {path} cannot be used: {source}")]
    Use {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Where the table of before is pinned until today's programs are on the interfaces.
fn before(pins: &Path) -> PathBuf {
    pins.join(format!("{}_before", names::RECORDS4))
}

/// Every pin that a start may leave beside those of `names::ALL`.
pub fn leftovers(pins: &Path) -> Vec<PathBuf> {
    let beside = names::ALL.into_iter().map(|name| next(pins, name));
    beside.chain([before(pins)]).collect()
}

/// Records of an older layout, with what is left to do until they are needed no more.
pub struct Older {
    records: Mapped<v1::Record>,
    pins: PathBuf,
    in_force: bool,
}

/// Whether all tables of a layout that is known are pinned; nothing is touched.
pub fn is_whole(pins: &Path) -> Result<bool, LayoutError> {
    match version(pins)? {
        0 => Ok(false),
        found if [ABI_VERSION, v1::VERSION].map(u64::from).contains(&found) => {
            Ok(missing(pins, found).is_none())
        }
        found => Err(LayoutError::Unknown { found }),
    }
}

/// Whether sessions live in the tables that a start takes over; nothing is touched.
pub fn has_sessions(pins: &Path) -> Result<bool, LayoutError> {
    if !is_whole(pins)? {
        return Ok(false);
    }
    let path = pins.join(names::SLOTS4);
    let (map, count) = elements(&path, |bytes| bytes == size_of::<Entry4>())?;
    let slots: Mapped<Entry4> =
        Mapped::new(&map, count).map_err(|source| LayoutError::Use { path, source })?;
    Ok(slots.all().iter().any(|entry| entry.load_meta().is(State::Live)))
}

/// A table that somebody took from the others, which mean nothing without it: slots point to
/// records, free numbers are those that no session has, and a policy is swapped in all of its
/// tables at once. So none of them is used on.
pub fn torn(pins: &Path) -> Result<Option<&'static str>, LayoutError> {
    if !pins.join(names::CONFIG).exists() {
        let any = tables().any(|name| pins.join(name).exists());
        return Ok(any.then_some(names::CONFIG));
    }
    let found = version(pins)?;
    Ok(if found == 0 { None } else { missing(pins, found) })
}

/// A table that is not pinned although its layout has it.
fn missing(pins: &Path, layout: u64) -> Option<&'static str> {
    // Layout 1 was in use before there were hints.
    let may_miss = |name| layout == u64::from(v1::VERSION) && name == names::HINTS4;
    tables().find(|name| !may_miss(*name) && !pins.join(name).exists())
}

/// The tables that one start leaves to the next: all but those by which the programs of one load find
/// each other.
fn tables() -> impl Iterator<Item = &'static str> {
    names::ALL.into_iter().filter(|name| ![names::XDP_STAGES, names::TC_STAGES].contains(name))
}

/// Looks at what is pinned before anything is made of it.
pub fn look(pins: &Path) -> Result<Option<Older>, LayoutError> {
    if !is_whole(pins)? {
        // A start ended before its tables were whole, and no program has used them; or they are
        // torn, and programs that have them still use them until they are exchanged.
        clear(pins);
        return Ok(None);
    }
    let kept = before(pins);
    if version(pins)? == u64::from(ABI_VERSION) {
        if !kept.exists() {
            return Ok(None);
        }
        return Ok(Some(Older { records: records(&kept)?, pins: pins.to_owned(), in_force: true }));
    }
    let in_force = kept.exists() && !next(pins, names::RECORDS4).exists();
    let at = if in_force {
        kept
    } else {
        for path in [next(pins, names::RECORDS4), kept] {
            let _ = fs::remove_file(path);
        }
        pins.join(names::RECORDS4)
    };
    Ok(Some(Older { records: records(&at)?, pins: pins.to_owned(), in_force }))
}

impl Older {
    /// The tables that are to be made beside those of before.
    #[must_use]
    pub fn apart(&self) -> &'static [&'static str] {
        if self.in_force { &[] } else { &v1::CHANGED }
    }

    /// Today's layout may be in force already, because a start was killed then, and programs of both
    /// at work: carries over what those of before have begun since. Has to come before anything by
    /// which packets judge their sessions again, which they cannot without today's record.
    pub fn resume(&self, datapath: &Datapath) {
        if self.in_force {
            self.pass(datapath, Counts::Move);
        }
    }

    /// Carries every session over and puts today's layout in force. The programs of before go on
    /// with what they have.
    pub fn replace(&mut self, datapath: &Datapath) -> Result<Pass, LayoutError> {
        let counts = if self.in_force { Counts::Move } else { Counts::Stay };
        let pass = self.pass(datapath, counts);
        if !self.in_force {
            let at = self.pins.join(names::RECORDS4);
            let moved = fs::hard_link(&at, before(&self.pins))
                .and_then(|()| fs::rename(next(&self.pins, names::RECORDS4), &at));
            moved.map_err(|source| LayoutError::Use { path: at, source })?;
            self.in_force = true;
        }
        datapath.settings().abi.store(u64::from(ABI_VERSION));
        Ok(pass)
    }

    /// The programs of before are gone: carries over what they have begun and changed meanwhile,
    /// and forgets their tables. Says how many sessions there are.
    pub fn finish(self, datapath: &Datapath) -> usize {
        self.pass(datapath, Counts::Move);
        thread::sleep(GRACE);
        let Pass { sessions, .. } = self.pass(datapath, Counts::Move);
        let _ = fs::remove_file(before(&self.pins));
        sessions
    }

    fn pass(&self, datapath: &Datapath, counts: Counts) -> Pass {
        let slots: &[Entry4] = datapath.slots.all();
        let today: &[Record] = datapath.records.all();
        carry::pass(slots, self.records.all(), today, counts)
    }
}

fn open(path: &Path) -> Result<MapData, LayoutError> {
    MapData::from_pin(path).map_err(|source| LayoutError::Open { path: path.to_owned(), source })
}

/// Maps an array of `bytes` bytes an element or more, and says how many elements it has.
fn elements(path: &Path, fits: impl Fn(usize) -> bool) -> Result<(MapData, u32), LayoutError> {
    let map = open(path)?;
    let info = map.info().map_err(|source| LayoutError::Open { path: path.to_owned(), source })?;
    let is_array = info.map_type().is_ok_and(|kind| kind == MapType::Array);
    if !is_array || !fits(info.value_size() as usize) {
        return Err(LayoutError::Broken(path.to_owned()));
    }
    let count = info.max_entries();
    Ok((map, count))
}

/// The version of what is pinned; zero: nothing, or nothing whole.
fn version(pins: &Path) -> Result<u64, LayoutError> {
    const WORDS: usize = ABI_AT / 8 + 1;
    let path = pins.join(names::CONFIG);
    if !path.exists() {
        return Ok(0);
    }
    let (map, _) = elements(&path, |bytes| bytes >= WORDS * 8)?;
    let words: Mapped<[Word; WORDS]> =
        Mapped::new(&map, 1).map_err(|source| LayoutError::Use { path, source })?;
    Ok(words.all()[0][WORDS - 1].load())
}

fn records(path: &Path) -> Result<Mapped<v1::Record>, LayoutError> {
    let (map, count) = elements(path, |bytes| bytes == size_of::<v1::Record>())?;
    Mapped::new(&map, count).map_err(|source| LayoutError::Use { path: path.to_owned(), source })
}

/// Takes away the tables of a start that came to nothing. What programs need to find each other
/// stays: those of an earlier gateway may be at work.
fn clear(pins: &Path) {
    for name in tables() {
        let _ = fs::remove_file(pins.join(name));
    }
    for path in leftovers(pins) {
        let _ = fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_belongs_to_the_others() {
        let pins = std::env::temp_dir().join(format!("sluice-torn-{}", std::process::id()));
        fs::create_dir_all(&pins).unwrap();
        for name in names::ALL {
            fs::write(pins.join(name), "").unwrap();
        }
        let [today, before] = [ABI_VERSION, v1::VERSION].map(u64::from);
        assert_eq!(missing(&pins, today), None);
        for name in names::ALL {
            fs::remove_file(pins.join(name)).unwrap();
            let stays = [names::XDP_STAGES, names::TC_STAGES].contains(&name);
            let expected = (!stays).then_some(name);
            assert_eq!(missing(&pins, today), expected, "{name}");
            let expected = expected.filter(|name| *name != names::HINTS4);
            assert_eq!(missing(&pins, before), expected, "{name}");
            fs::write(pins.join(name), "").unwrap();
        }
        fs::remove_file(pins.join(names::CONFIG)).unwrap();
        assert_eq!(torn(&pins).unwrap(), Some(names::CONFIG));
        fs::remove_dir_all(&pins).unwrap();
        assert_eq!(torn(&pins).unwrap(), None, "nothing is there");
    }
}
