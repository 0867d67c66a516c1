//! Which eBPF program a TC filter has, if the filter is there.
//!
//! Filters have no links that could be asked; they are gone with their qdisc or by themselves
//! (`tc qdisc del`, `tc filter del`), and nobody is told.

use super::dialogue::{Dialogue, Family, NetlinkError};
use super::picture::IfIndex;
use super::wire::{Message, Request, attributes, native_u32};

/// A filter's place, as `tc` knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilterPlace {
    /// Its interface.
    pub ifindex: IfIndex,
    /// Where it hangs, [`CLSACT_INGRESS`] for example.
    pub parent: u32,
    /// Among the others there.
    pub priority: u16,
    /// Among those of its priority.
    pub handle: u32,
}

/// Parent of the filters that see what comes in.
pub const CLSACT_INGRESS: u32 = 0xffff_fff2;
/// Parent of the filters that see what goes out.
pub const CLSACT_EGRESS: u32 = 0xffff_fff3;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_ID: u16 = 11;
/// Length of `struct tcmsg`.
const HEADER: usize = 20;

/// The number of the program of a filter; `None`: there is no such filter, or none of eBPF.
pub fn filter_program(place: FilterPlace) -> Result<Option<u32>, NetlinkError> {
    let mut header = [0; HEADER];
    header[4..8].copy_from_slice(&place.ifindex.to_ne_bytes());
    header[12..16].copy_from_slice(&place.parent.to_ne_bytes());
    // Asked for as a list: without the qdisc that is empty, and no error.
    let request = Request::new(libc::RTM_GETTFILTER, libc::NLM_F_DUMP).fixed(&header);
    let found = Dialogue::open(Family::Route)?.dump(
        "read the filters of an interface",
        &request,
        |found: &mut Vec<u32>, message| found.extend(program(message, place)),
    )?;
    Ok(found.first().copied())
}

/// The program that a message says this filter has.
fn program(message: &Message<'_>, place: FilterPlace) -> Option<u32> {
    let (header, rest) = message.payload.split_at_checked(HEADER)?;
    let handle = native_u32(&header[8..])?;
    let priority = native_u32(&header[16..])? >> 16;
    if handle != place.handle || priority != u32::from(place.priority) {
        return None;
    }
    let value = |bytes, wanted| attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, v)| v);
    value(rest, TCA_KIND).filter(|kind| kind.starts_with(b"bpf\0"))?;
    native_u32(value(value(rest, TCA_OPTIONS)?, TCA_BPF_ID)?)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{as_root_in_namespace, ip, link_named, run};
    use super::super::wire::messages;
    use super::*;

    const PLACE: FilterPlace =
        FilterPlace { ifindex: 1, parent: CLSACT_EGRESS, priority: 7, handle: 0x51c3 };

    fn answer(handle: u32, priority: u16, kind: &str, program: u32) -> Vec<u8> {
        let mut header = [0; HEADER];
        header[8..12].copy_from_slice(&handle.to_ne_bytes());
        header[16..20].copy_from_slice(&(u32::from(priority) << 16 | 0x300).to_ne_bytes());
        Request::new(libc::RTM_NEWTFILTER, 0)
            .fixed(&header)
            .string(TCA_KIND, kind)
            .nested(TCA_OPTIONS, |inside| inside.attribute(TCA_BPF_ID, &program.to_ne_bytes()))
            .finish(1)
    }

    #[test]
    fn a_filter_is_known_by_priority_handle_and_kind() {
        for (handle, priority, kind, expected) in [
            (0x51c3, 7, "bpf", Some(42)),
            (0x51c3, 8, "bpf", None),
            (0x51c4, 7, "bpf", None),
            (0x51c3, 7, "u32", None),
            (0x51c3, 7, "bpfx", None),
        ] {
            let bytes = answer(handle, priority, kind, 42);
            let found = program(&messages(&bytes).next().unwrap(), PLACE);
            assert_eq!(found, expected, "{handle:#x} {priority} {kind}");
        }
        let bytes = answer(0x51c3, 7, "bpf", 42);
        for length in 16..bytes.len() {
            let cut = Message { kind: 44, flags: 0, sequence: 1, payload: &bytes[16..length] };
            assert_eq!(program(&cut, PLACE), None, "{length}");
        }
    }

    #[test]
    fn without_qdisc_or_filter_there_is_no_program() {
        as_root_in_namespace("filters are asked for", || {
            ip("link add eth0 type veth peer name eth1");
            let place = FilterPlace { ifindex: link_named("eth0").ifindex, ..PLACE };
            assert_eq!(filter_program(place).unwrap(), None, "no qdisc");
            run("tc", "qdisc add dev eth0 clsact");
            assert_eq!(filter_program(place).unwrap(), None, "no filter");
        });
    }
}
