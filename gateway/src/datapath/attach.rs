//! Programs on interfaces. Their links are pinned, so that packets are served while no daemon
//! runs; a daemon that starts puts its own programs into the links that it finds. Where the
//! kernel has no links for TC, filters take their place.

use super::{
    filter::{self, FilterError},
    object::ObjectError,
    places::Served,
    tables::Datapath,
};
use aya::{
    pin::PinError,
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType, Xdp,
        links::{FdLink, LinkError, PinnedLink},
        tc::{SchedClassifierLink, TcAttachOptions},
        xdp::{XdpLink, XdpMode},
    },
};
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};
use xdp_abi::names;

/// Why a program could not be put on an interface.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The object has no such program.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The kernel refused.
    #[error("`{interface}` does not take the {hook} program: {source}")]
    Program {
        /// The interface.
        interface: String,
        /// `XDP`, `TC ingress` or `TC egress`.
        hook: &'static str,
        /// What it said.
        source: ProgramError,
    },
    /// The link could not be pinned.
    #[error("the link of `{interface}` cannot be pinned at {path}: {source}")]
    Pin {
        /// The interface.
        interface: String,
        /// Where.
        path: PathBuf,
        /// Why.
        source: PinError,
    },
    /// A pinned link is not of the kind that belongs there.
    #[error("the pinned link {path} cannot be used: {source}")]
    Link {
        /// Where.
        path: PathBuf,
        /// Why.
        source: LinkError,
    },
    /// The directory of pins cannot be used.
    #[error("the directory {path} cannot be used: {source}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What is attached where.
#[derive(Debug, Default)]
pub struct Attached {
    links: BTreeMap<PathBuf, Held>,
}

/// What holds a program on its interface.
#[derive(Debug)]
enum Held {
    Link {
        /// Kept open, should somebody remove the pin.
        _link: FdLink,
    },
    Filter,
}

impl From<FdLink> for Held {
    fn from(link: FdLink) -> Self {
        Self::Link { _link: link }
    }
}

/// One hook of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Xdp,
    TcIngress,
    TcEgress,
}

impl Place {
    const fn label(self) -> &'static str {
        match self {
            Self::Xdp => "XDP",
            Self::TcIngress => "TC ingress",
            Self::TcEgress => "TC egress",
        }
    }
    const fn side(self) -> Option<TcAttachType> {
        match self {
            Self::Xdp => None,
            Self::TcIngress => Some(TcAttachType::Ingress),
            Self::TcEgress => Some(TcAttachType::Egress),
        }
    }
    const fn file(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::TcIngress => "tc-ingress",
            Self::TcEgress => "tc-egress",
        }
    }
}

/// What stands for the program of a hook among the pins: its link, or its filter.
fn pin(pins: &Path, ifindex: u32, place: Place) -> PathBuf {
    match place.side() {
        Some(side) if filter::needed() => pins.join(filter::pin_name(ifindex, side)),
        _ => pins.join(format!("link-{}-{ifindex}", place.file())),
    }
}

/// The pins of everything that is attached, in the order in which it may go: the guards at TC
/// egress last.
fn pinned(pins: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(pins) else { return Vec::new() };
    let is_link = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("link-"))
    };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| is_link(path) || filter::is_pin(path))
        .collect();
    found.sort_by_key(|path| path.to_string_lossy().contains("egress"));
    found
}

/// Takes off what a pin stands for.
fn take_off(pin: &Path) -> io::Result<()> {
    if filter::is_pin(pin) { filter::take_off(pin) } else { std::fs::remove_file(pin) }
}

/// Takes every program off its interface; says how many there were, or which one stays and why.
pub fn detach(pins: &Path) -> Result<usize, (PathBuf, io::Error)> {
    let mut count = 0;
    for pin in pinned(pins) {
        count += usize::from(gone(&pin, take_off(&pin))?);
    }
    Ok(count)
}

/// Whether a pin was removed; one that is gone already is as it was wanted.
pub fn gone(pin: &Path, removed: io::Result<()>) -> Result<bool, (PathBuf, io::Error)> {
    match removed {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err((pin.to_owned(), error)),
    }
}

impl Attached {
    /// Brings the programs onto these interfaces and off all others. The guard at TC egress
    /// comes first and goes last.
    pub fn bring(
        &mut self,
        datapath: &Datapath,
        interfaces: &BTreeMap<u32, (String, Served)>,
        pins: &Path,
    ) -> Result<(), AttachError> {
        let mut wanted = Vec::new();
        for (ifindex, (name, served)) in interfaces {
            wanted.push((*ifindex, name, Place::TcEgress, names::TC_EGRESS));
            match served {
                Served::Xdp => {
                    wanted.push((*ifindex, name, Place::TcIngress, names::TC_MARK));
                    wanted.push((*ifindex, name, Place::Xdp, names::XDP_INGRESS));
                }
                Served::Tc => {
                    wanted.push((*ifindex, name, Place::TcIngress, names::TC_INGRESS));
                }
            }
        }
        for (ifindex, name, place, program) in &wanted {
            let path = pin(pins, *ifindex, *place);
            if self.links.contains_key(&path) {
                continue;
            }
            let link = attach(datapath, *ifindex, name, *place, program, &path)?;
            self.links.insert(path, link);
        }
        let keep: Vec<PathBuf> =
            wanted.iter().map(|(ifindex, _, place, _)| pin(pins, *ifindex, *place)).collect();
        for path in pinned(pins).into_iter().filter(|path| !keep.contains(path)) {
            self.links.remove(&path);
            // A pin that cannot be removed is met again with the next change.
            let _ = take_off(&path);
        }
        Ok(())
    }

    /// Forgets an interface that vanished: its links are dead.
    pub fn forget(&mut self, ifindex: u32, pins: &Path) {
        for place in [Place::Xdp, Place::TcIngress, Place::TcEgress] {
            let path = pin(pins, ifindex, place);
            self.links.remove(&path);
            // It may be gone already.
            let _ = take_off(&path);
        }
    }

    /// The pins of everything that is attached.
    pub fn pins(&self) -> impl Iterator<Item = &PathBuf> {
        self.links.keys()
    }

    /// How many hooks are served.
    pub fn count(&self) -> usize {
        self.links.len()
    }
}

fn attach(
    datapath: &Datapath,
    ifindex: u32,
    interface: &str,
    place: Place,
    program: &'static str,
    path: &Path,
) -> Result<Held, AttachError> {
    let failed = |source| AttachError::Program {
        interface: interface.to_owned(),
        hook: place.label(),
        source,
    };
    let mut object = datapath.object();
    if let Some(side) = place.side().filter(|_| filter::needed()) {
        return match filter::put(object.tc(program)?, interface, side, path) {
            Ok(()) => Ok(Held::Filter),
            Err(FilterError::Program(source)) => Err(failed(source)),
            Err(FilterError::Pin(source)) => Err(AttachError::Pin {
                interface: interface.to_owned(),
                path: path.to_owned(),
                source,
            }),
        };
    }
    let unusable = |source| AttachError::Link { path: path.to_owned(), source };
    let found = if path.exists() {
        Some(FdLink::from(PinnedLink::from_pin(path).map_err(unusable)?))
    } else {
        None
    };
    if place == Place::Xdp {
        let program: &mut Xdp = object.xdp(program)?;
        if let Some(found) = found {
            let link = XdpLink::try_from(found).map_err(unusable)?;
            if let Ok(id) = program.attach_to_link(link) {
                let link = program.take_link(id).map_err(failed)?;
                return Ok(FdLink::try_from(link).map_err(unusable)?.into());
            }
            // The interface that it was for is gone.
            let _ = std::fs::remove_file(path);
        }
        let id = program.attach_to_if_index(ifindex, XdpMode::Driver).map_err(failed)?;
        let link = program.take_link(id).map_err(failed)?;
        return keep(FdLink::try_from(link).map_err(unusable)?, interface, path);
    }
    let program: &mut SchedClassifier = object.tc(program)?;
    let (side, order) = match place {
        // The last word on what leaves is ours.
        Place::TcEgress => (TcAttachType::Egress, LinkOrder::last()),
        Place::Xdp | Place::TcIngress => (TcAttachType::Ingress, LinkOrder::first()),
    };
    if let Some(found) = found {
        let link = SchedClassifierLink::try_from(found).map_err(unusable)?;
        if let Ok(id) = program.attach_to_link(link) {
            let link = program.take_link(id).map_err(failed)?;
            return Ok(FdLink::try_from(link).map_err(unusable)?.into());
        }
        let _ = std::fs::remove_file(path);
    }
    let options = TcAttachOptions::TcxOrder(order);
    let id = program.attach_with_options(interface, side, options).map_err(failed)?;
    let link = program.take_link(id).map_err(failed)?;
    keep(FdLink::try_from(link).map_err(unusable)?, interface, path)
}

/// Pins a new link, and keeps it open as well.
fn keep(link: FdLink, interface: &str, path: &Path) -> Result<Held, AttachError> {
    let pinned = link.pin(path).map_err(|source| AttachError::Pin {
        interface: interface.to_owned(),
        path: path.to_owned(),
        source,
    })?;
    Ok(FdLink::from(pinned).into())
}
