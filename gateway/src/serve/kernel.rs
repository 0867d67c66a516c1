//! Programs and maps as the kernel has them.
//!
//! Maps are found by their pins, and programs are those that this daemon has loaded. Everything is
//! asked through a descriptor: by number the kernel tells only whoever has `CAP_SYS_ADMIN`, which
//! the daemon has not.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use api::status::{Map, Maps, Program, Programs};
use axum::Json;
use axum::extract::State as Extract;
use aya::maps::{MapData, MapInfo, MapType};
use xdp_abi::names;

use super::problem::{Refusal, blocking};
use super::state::State;
use super::status::FRESH;
use crate::datapath::attach;
use crate::datapath::object::Loaded;
use crate::flows::{Census, Live};

/// A map that is pinned.
struct Pinned {
    /// Its name, whole: the kernel's own ends after 15 bytes.
    name: &'static str,
    path: PathBuf,
    data: MapData,
    info: MapInfo,
}

fn pinned(pins: &Path) -> Vec<Pinned> {
    let at = |name: &'static str| {
        let path = pins.join(name);
        // What is not there, or not for us, is not shown.
        let data = path.exists().then(|| MapData::from_pin(&path).ok())??;
        let info = data.info().ok()?;
        Some(Pinned { name, path, data, info })
    };
    names::ALL.into_iter().filter_map(at).collect()
}

pub(super) async fn maps<L: Live>(
    Extract(state): Extract<Arc<State<L>>>,
) -> Result<Json<Maps>, Refusal> {
    let pins = state.in_force().config.gateway.pin_path.clone();
    blocking(move || {
        let census = state.census.no_older_than(FRESH, &*state.live, state.live.now());
        let mut maps: Vec<Map> = pinned(&pins).iter().map(|pinned| map(pinned, &census)).collect();
        maps.sort_by(|a, b| a.name.cmp(&b.name));
        Json(Maps { maps })
    })
    .await
}

fn map(Pinned { name, path, data, info }: &Pinned, census: &Census) -> Map {
    let fd = data.fd().as_fd();
    let keyed = info.map_type().is_ok_and(|kind| matches!(kind, MapType::Hash | MapType::LpmTrie));
    let counted = || {
        let (key_size, most) = (info.key_size() as usize, info.max_entries());
        keys(fd, key_size, most).ok()
    };
    let entries = match *name {
        names::SLOTS4 => Some(2 * (census.live + census.resting)),
        names::RECORDS4 => Some(census.live + census.resting),
        _ if keyed => counted(),
        _ => None,
    };
    Map {
        id: info.id(),
        name: (*name).to_owned(),
        kind: info.map_type().map_or("unknown", kind).to_owned(),
        key_size: info.key_size(),
        value_size: info.value_size(),
        max_entries: info.max_entries(),
        entries,
        memory: memory(fd),
        pin: Some(path.display().to_string()),
    }
}

/// How many keys a map has: asked for one after the other. A key that goes while it is asked after
/// sends the kernel back to the first, so there is an end after as many as there is room for.
fn keys(map: BorrowedFd<'_>, key_size: usize, most: u32) -> io::Result<u64> {
    /// `BPF_MAP_GET_NEXT_KEY`.
    const NEXT_KEY: libc::c_int = 4;
    #[repr(C)]
    struct Request {
        map: u32,
        zero: u32,
        key: u64,
        next: u64,
    }
    let (mut key, mut next) = (vec![0u8; key_size], vec![0u8; key_size]);
    let mut count = 0;
    while count < u64::from(most) {
        let from = if count == 0 { std::ptr::null() } else { key.as_ptr() };
        let request = Request {
            map: map.as_raw_fd() as u32,
            zero: 0,
            key: from as u64,
            next: next.as_mut_ptr() as u64,
        };
        // SAFETY: the request is what the command takes, and both buffers, which outlive the
        // call, are as long as a key of this map.
        let failed = unsafe {
            libc::syscall(libc::SYS_bpf, NEXT_KEY, &raw const request, size_of::<Request>())
        } != 0;
        if failed {
            let error = io::Error::last_os_error();
            let past_the_last = error.raw_os_error() == Some(libc::ENOENT);
            return if past_the_last { Ok(count) } else { Err(error) };
        }
        count += 1;
        std::mem::swap(&mut key, &mut next);
    }
    Ok(count)
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
    blocking(move || {
        let (served, missing) = (state.served(), state.missing());
        let is_missing = |interface: &str, hook: &str| {
            missing.iter().any(|place| place.interface == interface && place.hook == hook)
        };
        let mut programs = Vec::new();
        for loaded in state.live.loaded() {
            let places: Vec<_> = served
                .values()
                .flat_map(|(interface, served)| {
                    let hooks = attach::hooks(*served).iter();
                    hooks.map(move |(place, program)| (interface, *program, place.word()))
                })
                .filter(|(_, program, _)| *program == loaded.name)
                .collect();
            if places.is_empty() {
                programs.push(program(&loaded, None, None, false));
            }
            for (interface, _, hook) in places {
                let missing = is_missing(interface, hook);
                programs.push(program(&loaded, Some(hook), Some(interface), missing));
            }
        }
        programs.sort_by(|a, b| (&a.interface, a.id).cmp(&(&b.interface, b.id)));
        programs.sort_by_key(|program| program.hook.is_none());
        Json(Programs { programs })
    })
    .await
}

fn program(
    loaded: &Loaded,
    hook: Option<&str>,
    interface: Option<&String>,
    missing: bool,
) -> Program {
    let Loaded { name, info, fd } = loaded;
    Program {
        id: info.id(),
        name: name.clone(),
        hook: hook.map(str::to_owned),
        interface: interface.cloned(),
        missing,
        tag: format!("{:016x}", info.tag()),
        bytes: info.size_translated().unwrap_or(0),
        memory: memory(fd.as_fd()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aya::maps::{HashMap, MapData};

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
    fn keys_are_counted_one_by_one() {
        let pin = format!("/sys/fs/bpf/sluice-keys-{}", std::process::id());
        let made = HashMap::<MapData, u64, u32>::create(8, 0)
            .map_err(|error| error.to_string())
            .and_then(|map| map.pin(&pin).map_err(|error| error.to_string()));
        if let Err(why) = made {
            eprintln!("SKIPPED: keys of a map are counted: {why}");
            return;
        }
        let [counted, filled] = [(); 2].map(|()| MapData::from_pin(&pin).unwrap());
        fs::remove_file(&pin).unwrap();
        let mut filled: HashMap<_, u64, u32> = aya::maps::Map::HashMap(filled).try_into().unwrap();
        for count in 0..=8 {
            let fd = || counted.fd().as_fd();
            assert_eq!(keys(fd(), 8, 8).unwrap(), count);
            assert_eq!(
                keys(fd(), 8, 3).unwrap(),
                count.min(3),
                "and no further than there is room"
            );
            if count < 8 {
                filled.insert(count * 7, 1, 0).unwrap();
            }
        }
    }
}
