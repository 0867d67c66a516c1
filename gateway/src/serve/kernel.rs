//! Programs and maps as the kernel has them.
//!
//! Maps are found by their pins, and programs by the maps that they use: so what is shown is what
//! is there, also where another daemon made it.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::status::{Map, Maps, Program, Programs};
use axum::Json;
use axum::extract::State as Extract;
use aya::maps::{MapInfo, MapType};
use aya::programs::{ProgramInfo, loaded_programs};
use xdp_abi::names;

use super::problem::{Refusal, blocking};
use super::state::State;
use crate::datapath::places::Served;
use crate::flows::Live;

/// The maps that are pinned, by name. The kernel's own name for a map ends after 15 bytes.
fn pinned(pins: &Path) -> Vec<(&'static str, PathBuf, MapInfo)> {
    let at = |name: &'static str| {
        let path = pins.join(name);
        // What is not there, or not for us, is not shown.
        let info = path.exists().then(|| MapInfo::from_pin(&path).ok())??;
        Some((name, path, info))
    };
    names::ALL.into_iter().filter_map(at).collect()
}

pub(super) async fn maps<L: Live>(
    Extract(state): Extract<Arc<State<L>>>,
) -> Result<Json<Maps>, Refusal> {
    let pins = state.in_force().config.gateway.pin_path.clone();
    blocking(move || {
        let mut maps: Vec<Map> =
            pinned(&pins).iter().map(|(name, path, info)| map(name, path, info)).collect();
        maps.sort_by(|a, b| a.name.cmp(&b.name));
        Json(Maps { maps })
    })
    .await
}

fn map(name: &str, pin: &Path, info: &MapInfo) -> Map {
    let memory = info.fd().ok().map(|fd| memory(fd.as_fd()));
    Map {
        id: info.id(),
        name: name.to_owned(),
        kind: info.map_type().map_or("unknown", kind).to_owned(),
        key_size: info.key_size(),
        value_size: info.value_size(),
        max_entries: info.max_entries(),
        entries: None,
        memory: memory.unwrap_or(0),
        pin: Some(pin.display().to_string()),
    }
}

/// What the kernel says that a descriptor's object takes, in bytes.
fn memory(fd: BorrowedFd<'_>) -> u64 {
    let facts = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()));
    memlock(&facts.unwrap_or_default())
}

fn memlock(facts: &str) -> u64 {
    let line = facts.lines().find_map(|line| line.strip_prefix("memlock:"));
    line.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

/// The kinds that the datapath uses, as `bpftool` calls them.
fn kind(kind: MapType) -> &'static str {
    if kind == MapType::Array {
        "array"
    } else if kind == MapType::PerCpuArray {
        "percpu_array"
    } else if kind == MapType::Hash {
        "hash"
    } else if kind == MapType::LpmTrie {
        "lpm_trie"
    } else if kind == MapType::Queue {
        "queue"
    } else if kind == MapType::RingBuf {
        "ringbuf"
    } else if kind == MapType::ProgramArray {
        "prog_array"
    } else {
        "other"
    }
}

pub(super) async fn programs<L: Live>(
    Extract(state): Extract<Arc<State<L>>>,
) -> Result<Json<Programs>, Refusal> {
    let pins = state.in_force().config.gateway.pin_path.clone();
    blocking(move || {
        let ours: BTreeSet<u32> = pinned(&pins).iter().map(|(.., info)| info.id()).collect();
        let served = state.served();
        let mut programs = Vec::new();
        for info in loaded_programs().flatten().filter(|info| uses(info, &ours)) {
            let name = info.name_as_str().unwrap_or_default();
            let places: Vec<_> = served
                .values()
                .flat_map(|(interface, served)| {
                    hooks(*served).iter().map(move |(program, hook)| (interface, *program, *hook))
                })
                .filter(|(_, program, _)| *program == name)
                .collect();
            if places.is_empty() {
                programs.push(program(&info, None, None));
            }
            for (interface, _, hook) in places {
                programs.push(program(&info, Some(hook), Some(interface)));
            }
        }
        programs.sort_by(|a, b| (&a.interface, a.id).cmp(&(&b.interface, b.id)));
        programs.sort_by_key(|program| program.hook.is_none());
        Json(Programs { programs })
    })
    .await
}

fn uses(info: &ProgramInfo, ours: &BTreeSet<u32>) -> bool {
    let maps = info.map_ids().ok().flatten().unwrap_or_default();
    maps.iter().any(|map| ours.contains(map))
}

/// Which program stands at which hook of an interface.
const fn hooks(served: Served) -> &'static [(&'static str, &'static str)] {
    match served {
        Served::Xdp => &[
            (names::XDP_INGRESS, "xdp"),
            (names::TC_MARK, "tc_ingress"),
            (names::TC_EGRESS, "tc_egress"),
        ],
        Served::Tc => &[(names::TC_INGRESS, "tc_ingress"), (names::TC_EGRESS, "tc_egress")],
    }
}

fn program(info: &ProgramInfo, hook: Option<&str>, interface: Option<&String>) -> Program {
    Program {
        id: info.id(),
        name: info.name_as_str().unwrap_or_default().to_owned(),
        hook: hook.map(str::to_owned),
        interface: interface.cloned(),
        tag: format!("{:016x}", info.tag()),
        bytes: info.size_translated().unwrap_or(0),
        memory: info.memory_locked().map_or(0, u64::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_what_the_kernel_says_beside_the_descriptor() {
        for (facts, expected) in [
            ("pos:\t0\nflags:\t02\nmap_type:\t2\nmemlock:\t8192\nmap_id:\t7\n", 8192),
            ("pos:\t0\n", 0),
            ("memlock:\tmuch\n", 0),
            ("", 0),
        ] {
            assert_eq!(memlock(facts), expected, "{facts}");
        }
    }

    #[test]
    fn the_guard_at_egress_stands_on_every_interface() {
        for served in [Served::Xdp, Served::Tc] {
            assert!(hooks(served).contains(&(names::TC_EGRESS, "tc_egress")));
        }
    }
}
