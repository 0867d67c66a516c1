//! Programs on interfaces. Their links are pinned, so that packets are served while no daemon
//! runs; a daemon that starts puts its own programs into the links that it finds. Where the
//! kernel has no links for TC, filters take their place. Whoever may, may take a program off: the
//! kernel is asked from time to time, and what is gone is put back.

use super::{
    filter::{self, FilterError},
    link::Link,
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
    sys::SyscallError,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
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
    /// The driver holds frames of this MTU in more than one buffer, or not at all, with XDP.
    #[error(
        "the MTU of `{interface}`, or on a veth that of its other end, is more than its driver takes with \
         XDP: lower it, or set `hook: tc` for the interface"
    )]
    Mtu {
        /// The interface.
        interface: String,
    },
    /// No interface was served in this way when the daemon started.
    #[error(
        "`{interface}` can only be served by {hook}, whose programs were not loaded at the start \
         because no interface needed them; a restart loads them"
    )]
    NotLoaded {
        /// The interface.
        interface: String,
        /// `XDP` or `TC ingress`.
        hook: &'static str,
    },
    /// Another interface came to have its name meanwhile.
    #[error("`{interface}` is another interface than it was a moment ago; it is tried again")]
    Renamed {
        /// The interface.
        interface: String,
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
    /// A pinned link cannot be opened.
    #[error("the pinned link {path} cannot be opened: {source}")]
    Open {
        /// Where.
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

/// A program on its interface.
#[derive(Debug)]
struct Held {
    ifindex: u32,
    place: Place,
    /// Its name: what belongs at TC ingress depends on how the interface is served.
    name: &'static str,
    /// The kernel's number for it.
    program: u32,
    /// Kept open, should somebody remove the pin; `None`: a filter holds it.
    link: Option<Link>,
}

impl Held {
    /// Whether it is still there, by the kernel. What cannot be asked is thought to be as it was.
    fn stands(&self) -> bool {
        match (&self.link, self.place.side()) {
            (Some(link), _) => link
                .info()
                .map_or(true, |info| (info.ifindex, info.program) == (self.ifindex, self.program)),
            (None, Some(side)) => filter::stands(self.ifindex, side, self.program),
            (None, None) => true,
        }
    }
}

/// A hook of an interface, in words.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HookOf {
    /// The interface.
    pub interface: String,
    /// `xdp`, `tc_ingress` or `tc_egress`.
    pub hook: &'static str,
}

/// One hook of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Xdp,
    TcIngress,
    TcEgress,
}

impl Place {
    const ALL: [Self; 3] = [Self::Xdp, Self::TcIngress, Self::TcEgress];

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
    /// The word of the API.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::TcIngress => "tc_ingress",
            Self::TcEgress => "tc_egress",
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
        _ => pins.join(link_name(ifindex, place)),
    }
}

fn link_name(ifindex: u32, place: Place) -> String {
    format!("link-{}-{ifindex}", place.file())
}

/// Whether a pin has the very name that a link of ours is given: whatever else begins like one is
/// somebody else's.
fn is_link(pin: &Path) -> bool {
    let Some(name) = pin.file_name().and_then(OsStr::to_str) else { return false };
    let number = name.rsplit_once('-').and_then(|(_, number)| number.parse().ok());
    number.is_some_and(|ifindex| Place::ALL.iter().any(|at| link_name(ifindex, *at) == name))
}

/// The pins of everything that is attached, in the order in which it may go: the guards at TC
/// egress last.
fn pinned(pins: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(pins) else { return Vec::new() };
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

/// Whether a program that an earlier daemon has left translates what leaves by an interface.
pub fn translates(pins: &Path, ifindex: u32) -> bool {
    was_left(pins, ifindex, Place::TcEgress)
}

/// Whether XDP serves an interface by a program that an earlier daemon has left.
pub fn on_xdp(pins: &Path, ifindex: u32) -> bool {
    was_left(pins, ifindex, Place::Xdp)
}

fn was_left(pins: &Path, ifindex: u32, place: Place) -> bool {
    let pin = pin(pins, ifindex, place);
    let has_link = |link: Link| Ok(link.info()?.ifindex == ifindex);
    if filter::is_pin(&pin) {
        pin.exists()
    } else {
        Link::open(&pin).and_then(has_link).unwrap_or(false)
    }
}

/// Whether a pin was removed; one that is gone already is as it was wanted.
pub fn gone(pin: &Path, removed: io::Result<()>) -> Result<bool, (PathBuf, io::Error)> {
    match removed {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err((pin.to_owned(), error)),
    }
}

/// Which program stands at which hook of an interface. The guard at TC egress comes first; then what
/// marks beside XDP, if nothing else stands there: see [`Attached::bring`].
pub(crate) const fn hooks(served: Served) -> &'static [(Place, &'static str)] {
    match served {
        Served::Xdp => &[
            (Place::TcEgress, names::TC_EGRESS),
            (Place::TcIngress, names::TC_MARK),
            (Place::Xdp, names::XDP_INGRESS),
        ],
        Served::Tc => &[(Place::TcEgress, names::TC_EGRESS), (Place::TcIngress, names::TC_INGRESS)],
    }
}

/// What belongs on these interfaces.
fn wanted(
    interfaces: &BTreeMap<u32, (String, Served)>,
) -> impl Iterator<Item = (u32, &str, Place, &'static str)> {
    interfaces.iter().flat_map(|(ifindex, (name, served))| {
        let hooks = hooks(*served).iter();
        hooks.map(|(place, program)| (*ifindex, name.as_str(), *place, *program))
    })
}

impl Attached {
    /// Brings the programs onto these interfaces. The guard at TC egress comes first. One that is
    /// refused keeps no other away.
    ///
    /// What stands at TC ingress is exchanged last, and not at all if XDP is refused: an interface
    /// that was served by TC is served by it until XDP serves it.
    pub fn bring(
        &mut self,
        datapath: &Datapath,
        interfaces: &BTreeMap<u32, (String, Served)>,
        pins: &Path,
    ) -> Result<(), AttachError> {
        let mut refused = None;
        let mut without = BTreeSet::new();
        let (exchanged, others): (Vec<_>, Vec<_>) = wanted(interfaces)
            .filter(|(ifindex, _, place, program)| {
                !self.holds(&pin(pins, *ifindex, *place), program)
            })
            .partition(|(ifindex, _, place, _)| {
                *place == Place::TcIngress && pin(pins, *ifindex, *place).exists()
            });
        for (ifindex, name, place, program) in others.into_iter().chain(exchanged) {
            if place == Place::TcIngress && without.contains(&ifindex) {
                continue;
            }
            let path = pin(pins, ifindex, place);
            match attach(datapath, ifindex, name, place, program, &path) {
                Ok(held) => drop(self.links.insert(path, held)),
                Err(error) => {
                    if place == Place::Xdp {
                        without.insert(ifindex);
                    }
                    refused.get_or_insert(error);
                }
            }
        }
        refused.map_or(Ok(()), Err)
    }

    /// Whether this very program is what a pin stands for.
    fn holds(&self, pin: &Path, program: &str) -> bool {
        self.links.get(pin).is_some_and(|held| held.name == program)
    }

    /// Takes the programs off all other interfaces. The guard at TC egress goes last.
    pub fn leave_others(&mut self, interfaces: &BTreeMap<u32, (String, Served)>, pins: &Path) {
        let keep: Vec<PathBuf> =
            wanted(interfaces).map(|(at, _, place, _)| pin(pins, at, place)).collect();
        for path in pinned(pins).into_iter().filter(|path| !keep.contains(path)) {
            self.links.remove(&path);
            // A pin that cannot be removed is met again with the next change.
            let _ = take_off(&path);
        }
    }

    /// Forgets every program that somebody else took off its interface, or put another one in the
    /// place of. An interface that is gone is another matter.
    pub fn forget_gone(&mut self) {
        self.links.retain(|_, held| held.stands() || filter::name_of(held.ifindex).is_err());
    }

    /// Hooks of these interfaces that have no program.
    pub fn missing(
        &self,
        interfaces: &BTreeMap<u32, (String, Served)>,
        pins: &Path,
    ) -> Vec<HookOf> {
        wanted(interfaces)
            .filter(|(ifindex, _, place, program)| {
                !self.holds(&pin(pins, *ifindex, *place), program)
            })
            .map(|(_, name, place, _)| HookOf { interface: name.to_owned(), hook: place.word() })
            .collect()
    }

    /// Forgets an interface that vanished: its links are dead.
    pub fn forget(&mut self, ifindex: u32, pins: &Path) {
        for place in Place::ALL {
            let path = pin(pins, ifindex, place);
            self.links.remove(&path);
            // It may be gone already.
            let _ = take_off(&path);
        }
    }

    /// Whether XDP serves an interface.
    pub fn on_xdp(&self, ifindex: u32) -> bool {
        self.links.values().any(|held| (held.ifindex, held.place) == (ifindex, Place::Xdp))
    }

    /// Whether what leaves by an interface is translated there.
    pub fn translates(&self, ifindex: u32) -> bool {
        let at = (ifindex, Place::TcEgress);
        self.links.values().any(|held| (held.ifindex, held.place) == at)
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
    if !datapath.hooks.have(program) {
        return Err(AttachError::NotLoaded {
            interface: interface.to_owned(),
            hook: place.label(),
        });
    }
    let renamed = || AttachError::Renamed { interface: interface.to_owned() };
    let name = program;
    let mut object = datapath.object();
    if let Some(side) = place.side().filter(|_| filter::needed()) {
        let program = object.tc(program)?;
        let number = program.info().map_err(failed)?.id();
        return match filter::put(program, interface, side, path) {
            Ok(()) if filter::stands(ifindex, side, number) => {
                Ok(Held { ifindex, place, name, program: number, link: None })
            }
            Ok(()) => Err(renamed()),
            Err(FilterError::Program(source)) => Err(failed(source)),
            Err(FilterError::Pin(source)) => Err(AttachError::Pin {
                interface: interface.to_owned(),
                path: path.to_owned(),
                source,
            }),
        };
    }
    let unusable = |source| AttachError::Link { path: path.to_owned(), source };
    // What cannot be asked is thought to be as it was.
    let is_here = |link: &Link| link.info().map_or(true, |info| info.ifindex == ifindex);
    // It is attached by name and held by number, and a name may change hands in between.
    let held = |program: u32| {
        let failed = |source| AttachError::Open { path: path.to_owned(), source };
        let link = Link::open(path).map_err(failed)?;
        if is_here(&link) {
            return Ok(Held { ifindex, place, name, program, link: Some(link) });
        }
        let _ = std::fs::remove_file(path);
        Err(renamed())
    };
    if Link::open(path).is_ok_and(|link| !is_here(&link)) {
        // It was detached, or its interface is gone, or is not the one that its pin says.
        let _ = std::fs::remove_file(path);
    }
    let found = if path.exists() {
        Some(FdLink::from(PinnedLink::from_pin(path).map_err(unusable)?))
    } else {
        None
    };
    if place == Place::Xdp {
        let program: &mut Xdp = object.xdp(program)?;
        let number = program.info().map_err(failed)?.id();
        if let Some(found) = found {
            let link = XdpLink::try_from(found).map_err(unusable)?;
            if let Ok(id) = program.attach_to_link(link) {
                let _link = program.take_link(id).map_err(failed)?;
                return held(number);
            }
            let _ = std::fs::remove_file(path);
        }
        let id = program.attach_to_if_index(ifindex, XdpMode::Driver).map_err(|source| {
            if is_about_mtu(&source) {
                AttachError::Mtu { interface: interface.to_owned() }
            } else {
                failed(source)
            }
        })?;
        let link = program.take_link(id).map_err(failed)?;
        let _link = keep(FdLink::try_from(link).map_err(unusable)?, interface, path)?;
        return held(number);
    }
    let program: &mut SchedClassifier = object.tc(program)?;
    let number = program.info().map_err(failed)?.id();
    let (side, order) = match place {
        // The last word on what leaves is ours.
        Place::TcEgress => (TcAttachType::Egress, LinkOrder::last()),
        Place::Xdp | Place::TcIngress => (TcAttachType::Ingress, LinkOrder::first()),
    };
    if let Some(found) = found {
        let link = SchedClassifierLink::try_from(found).map_err(unusable)?;
        if let Ok(id) = program.attach_to_link(link) {
            let _link = program.take_link(id).map_err(failed)?;
            return held(number);
        }
        let _ = std::fs::remove_file(path);
    }
    let options = TcAttachOptions::TcxOrder(order);
    let id = program.attach_with_options(interface, side, options).map_err(failed)?;
    let link = program.take_link(id).map_err(failed)?;
    let _link = keep(FdLink::try_from(link).map_err(unusable)?, interface, path)?;
    held(number)
}

/// Whether XDP was refused for the MTU, for which drivers have a number of their own.
fn is_about_mtu(error: &ProgramError) -> bool {
    let ProgramError::SyscallError(SyscallError { io_error, .. }) = error else { return false };
    io_error.raw_os_error() == Some(libc::ERANGE)
}

/// Pins a new link, which ends with the last of pin and descriptors.
fn keep(link: FdLink, interface: &str, path: &Path) -> Result<PinnedLink, AttachError> {
    link.pin(path).map_err(|source| AttachError::Pin {
        interface: interface.to_owned(),
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_has_the_very_name_that_it_was_given_and_nothing_else_has() {
        for (name, expected) in [
            ("link-xdp-3", true),
            ("link-tc-ingress-3", true),
            ("link-tc-egress-4294967295", true),
            ("link-tc-egress-4294967296", false), // no interface has such a number
            ("link-xdp-03", false),
            ("link-xdp-+3", false),
            ("link-xdp-", false),
            ("link-xdp", false),
            ("link-tc-3", false),
            ("link-foreign", false),
            ("link-foreign-3", false),
            ("my-link-xdp-3", false),
            ("link-xdp-3-old", false),
        ] {
            assert_eq!(is_link(&Path::new("/sys/fs/bpf/sluice").join(name)), expected, "{name}");
        }
    }
}
