//! TC programs as filters of the `clsact` qdisc, for kernels before 6.6, which have no links
//! for TC.
//!
//! A filter stays by itself when the daemon ends, and nothing is pinned that stands for it. So
//! its program is pinned beside the links of newer kernels: the pin's name says which filter is
//! ours, for whoever takes it out later. Priority and handle are fixed, so that a program that
//! is put there once more takes the place of the one before.

use crate::net::{CLSACT_EGRESS, CLSACT_INGRESS, FilterPlace, filter_program};
use aya::{
    pin::PinError,
    programs::{
        ProgramError, SchedClassifier, TcAttachType,
        links::Link as _,
        tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact},
    },
    util::KernelVersion,
};
use std::{
    ffi::CStr,
    fs, io,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

/// The first kernel with links for TC.
const TC_LINKS: KernelVersion = KernelVersion::new(6, 6, 0);

/// Tells our filters from those that others put at the same priority.
const HANDLE: TcHandle = TcHandle::new(0, 0x51c3);

/// What the names of pins begin with; a side and the number of an interface follow.
const PREFIX: &str = "filter-";

/// Whether filters are asked for on a kernel that has links.
static PREFERRED: AtomicBool = AtomicBool::new(false);

/// From here on this process uses filters, also on a kernel with links for TC: for trying there
/// what older kernels do.
pub fn prefer() {
    PREFERRED.store(true, Ordering::Relaxed);
}

/// Whether filters are used here.
pub(super) fn needed() -> bool {
    PREFERRED.load(Ordering::Relaxed)
        || KernelVersion::current().is_ok_and(|version| version < TC_LINKS)
}

/// First at ingress; at egress the last word is ours.
const fn priority(side: TcAttachType) -> u16 {
    match side {
        TcAttachType::Ingress | TcAttachType::Custom(_) => 1,
        TcAttachType::Egress => u16::MAX,
    }
}

const fn label(side: TcAttachType) -> &'static str {
    match side {
        TcAttachType::Ingress | TcAttachType::Custom(_) => "ingress",
        TcAttachType::Egress => "egress",
    }
}

/// The name of the pin that says that a filter is there.
pub(super) fn pin_name(ifindex: u32, side: TcAttachType) -> String {
    format!("{PREFIX}{}-{ifindex}", label(side))
}

/// The filter that a pin stands for, if it stands for one.
fn meaning(pin: &Path) -> Option<(u32, TcAttachType)> {
    let name = pin.file_name()?.to_str()?;
    let ifindex = name.strip_prefix(PREFIX)?.split_once('-')?.1.parse().ok()?;
    // The very name that it is given: whatever else begins like one is somebody else's.
    let sides = [TcAttachType::Ingress, TcAttachType::Egress];
    let side = sides.into_iter().find(|side| pin_name(ifindex, *side) == name)?;
    Some((ifindex, side))
}

/// Whether a filter of ours is there and has this program. What cannot be asked is thought to be
/// as it was.
pub(super) fn stands(ifindex: u32, side: TcAttachType, program: u32) -> bool {
    let parent = match side {
        TcAttachType::Ingress | TcAttachType::Custom(_) => CLSACT_INGRESS,
        TcAttachType::Egress => CLSACT_EGRESS,
    };
    let place = FilterPlace { ifindex, parent, priority: priority(side), handle: HANDLE.into() };
    filter_program(place).map_or(true, |found| found == Some(program))
}

/// Whether a pin stands for a filter.
pub(super) fn is_pin(path: &Path) -> bool {
    meaning(path).is_some()
}

/// Why a filter could not be put on an interface.
pub(super) enum FilterError {
    Program(ProgramError),
    Pin(PinError),
}

/// Puts a program where a filter of ours is, or makes the filter.
pub(super) fn put(
    program: &mut SchedClassifier,
    interface: &str,
    side: TcAttachType,
    pin: &Path,
) -> Result<(), FilterError> {
    let place =
        |interface| SchedClassifierLink::attached(interface, side, priority(side), HANDLE, None);
    let before = place(interface).map_err(|error| FilterError::Program(error.into()))?;
    let id = match program.attach_to_link(before) {
        Ok(id) => id,
        Err(_) => {
            // A qdisc that is there already is as good; without one attaching says what is wrong.
            let _ = qdisc_add_clsact(interface);
            let options =
                NlOptions { priority: priority(side), handle: HANDLE, ..NlOptions::default() };
            program
                .attach_with_options(interface, side, TcAttachOptions::Netlink(options))
                .map_err(FilterError::Program)?
        }
    };
    let link = program.take_link(id).map_err(FilterError::Program)?;
    // It would take the filter out when dropped. It holds nothing but the filter's name.
    std::mem::forget(link);
    // What an earlier daemon has left; a pin that was not there is made now.
    let _ = fs::remove_file(pin);
    program.pin(pin).map_err(FilterError::Pin)
}

/// Takes the filter out that a pin stands for, and the pin.
pub(super) fn take_off(pin: &Path) -> io::Result<()> {
    if let Some((ifindex, side)) = meaning(pin)
        && let Ok(interface) = name_of(ifindex)
        && let Ok(link) =
            SchedClassifierLink::attached(&interface, side, priority(side), HANDLE, None)
    {
        // A filter that is gone already is what was wanted.
        let _ = link.detach();
    }
    fs::remove_file(pin)
}

/// The name of an interface, if it is there.
pub(crate) fn name_of(ifindex: u32) -> io::Result<String> {
    let mut name = [0u8; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the room that the call asks for.
    let found = unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr().cast()) };
    if found.is_null() {
        return Err(io::Error::last_os_error());
    }
    let name = CStr::from_bytes_until_nul(&name).map_err(io::Error::other)?;
    name.to_str().map(str::to_owned).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        datapath::object::{Hooks, Object, Sizes},
        net::testing::{as_root_in_namespace, ip, run, skip},
    };
    use xdp_abi::names;

    #[test]
    fn a_filter_stands_until_somebody_takes_it_off_with_or_without_its_qdisc() {
        const WHAT: &str = "a filter that somebody takes off";
        as_root_in_namespace(WHAT, || {
            let sizes = Sizes {
                sessions: 64,
                hosts: 8,
                prefixes: 8,
                identities: 8,
                rules: 8,
                port_classes: 8,
                next_hops: 8,
            };
            let mut object = match Object::load(&sizes, Hooks { xdp: false, tc: false }, None, &[])
            {
                Ok(object) => object,
                Err(why) => return skip(WHAT, &why.to_string()),
            };
            ip("link add eth0 type veth peer name eth1");
            let ifindex = nix::net::if_::if_nametoindex("eth0").unwrap();
            let pins =
                Path::new("/sys/fs/bpf").join(format!("sluice-filter-{}", std::process::id()));
            if let Err(why) = fs::create_dir(&pins) {
                return skip(WHAT, &why.to_string());
            }
            let side = TcAttachType::Egress;
            let pin = pins.join(pin_name(ifindex, side));
            let program = object.tc(names::TC_EGRESS).unwrap();
            let number = program.info().unwrap().id();
            let mut found = vec![stands(ifindex, side, number)];
            for taken in ["filter del dev eth0 egress", "qdisc del dev eth0 clsact"] {
                assert!(put(program, "eth0", side, &pin).is_ok());
                let there = [number, number + 1].map(|number| stands(ifindex, side, number));
                let ingress = stands(ifindex, TcAttachType::Ingress, number);
                run("tc", taken);
                found.extend(there.into_iter().chain([ingress, stands(ifindex, side, number)]));
            }
            fs::remove_dir_all(&pins).unwrap();
            assert_eq!(
                found,
                [[false].as_slice(), &[true, false, false, false].repeat(2)].concat()
            );
        });
    }

    #[test]
    fn a_pin_tells_its_filter_and_nothing_else_does() {
        for side in [TcAttachType::Ingress, TcAttachType::Egress] {
            let pin = Path::new("/sys/fs/bpf/sluice").join(pin_name(7, side));
            assert_eq!(meaning(&pin), Some((7, side)), "{}", pin.display());
        }
        for other in [
            "link-tc-ingress-7",
            "filter-ingress-",
            "filter-ingress-07",
            "filter-egress-+7",
            "filter-sideways-7",
            "filter-7",
            "",
        ] {
            assert_eq!(meaning(Path::new(other)), None, "{other}");
        }
    }
}
