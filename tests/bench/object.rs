//! The eBPF object of the benches, loaded and spoken to in Rust's types.

use anyhow::{Context as _, Result};
use aya::maps::{Array, MapData, PerCpuArray, PerCpuValues, ProgramArray};
use aya::programs::{ProgramFd, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader, Pod};
use bench_xdp::{Arrived, Cursor};

use crate::topology::Interface;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/bench-xdp"));

/// What the programs are told before they are loaded.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Settings {
    /// The Ethernet addresses that leave with every frame.
    pub(crate) stations: [u16; 6],
    /// The interface that frames leave by.
    pub(crate) out: u32,
    /// 64-byte entries that `redirect_read` chooses from; a power of two, or 0 when it is not used.
    pub(crate) table_entries: u32,
    /// Length of the shuffled order; 0 when it is not used.
    pub(crate) order_entries: u32,
}

/// Loads one program of the object, with maps of its own.
pub(crate) fn load(program: &str, settings: Settings) -> Result<Ebpf> {
    let table_entries = settings.table_entries.max(1);
    let mut object = EbpfLoader::new()
        .override_global("STATIONS", &settings.stations, true)
        .override_global("OUT_IFINDEX", &settings.out, true)
        .override_global("TABLE_MASK", &(table_entries - 1), true)
        .map_max_entries("TABLE", table_entries)
        .map_max_entries("ORDER", settings.order_entries.max(1))
        .load(OBJECT)
        .context("cannot load the object of the benches")?;
    find(&mut object, program)?
        .load()
        .with_context(|| format!("the kernel refuses the program `{program}`"))?;
    Ok(object)
}

/// A program of the object by its name.
pub(crate) fn find<'a>(object: &'a mut Ebpf, program: &str) -> Result<&'a mut Xdp> {
    let found = object.program_mut(program);
    let found = found.with_context(|| format!("the object has no program `{program}`"))?;
    found.try_into().with_context(|| format!("`{program}` is not an XDP program"))
}

/// Attaches a program to an interface of this thread's namespace, for as long as `object` lives.
pub(crate) fn attach(object: &mut Ebpf, program: &str, interface: Interface) -> Result<()> {
    find(object, program)?
        .attach(interface.name, XdpMode::Driver)
        .with_context(|| format!("cannot attach `{program}` to {}", interface.name))?;
    Ok(())
}

/// Gives the generator the order that flows are sent in.
pub(crate) fn set_order(object: &mut Ebpf, order: &[u32]) -> Result<()> {
    let map = object.map_mut("ORDER").context("the object has no map `ORDER`")?;
    let mut map = Array::<&mut MapData, u32>::try_from(map)?;
    for (position, flow) in (0..).zip(order) {
        map.set(position, *flow, 0).context("cannot fill the order of the flows")?;
    }
    Ok(())
}

/// Puts every CPU's generator at the start of its share: `share(cpu)`.
pub(crate) fn set_cursors(object: &mut Ebpf, share: impl Fn(usize) -> Cursor) -> Result<()> {
    let map = object.map_mut("CURSOR").context("the object has no map `CURSOR`")?;
    let mut map = PerCpuArray::<&mut MapData, Plain<Cursor>>::try_from(map)?;
    let cpus = aya::util::nr_cpus().map_err(|(file, error)| {
        anyhow::Error::new(error).context(format!("cannot count the CPUs by {file}"))
    })?;
    let cursors: Vec<_> = (0..cpus).map(|cpu| Plain(share(cpu))).collect();
    map.set(0, PerCpuValues::try_from(cursors)?, 0).context("cannot place the generators")
}

/// Names the program that `feed` hands its frames to.
pub(crate) fn set_next(object: &mut Ebpf, program: &ProgramFd) -> Result<()> {
    let map = object.map_mut("NEXT").context("the object has no map `NEXT`")?;
    let mut map = ProgramArray::<&mut MapData>::try_from(map)?;
    map.set(0, program, 0).context("cannot feed the program")
}

/// What the sink received so far, on all CPUs.
pub(crate) fn arrived(object: &Ebpf) -> Result<Arrived> {
    let map = object.map("ARRIVED").context("the object has no map `ARRIVED`")?;
    let map = PerCpuArray::<&MapData, Plain<Arrived>>::try_from(map)?;
    let each = map.get(&0, 0).context("cannot read the sink's counters")?;
    Ok(each.iter().fold(Arrived::default(), |sum, Plain(cpu)| Arrived {
        packets: sum.packets + cpu.packets,
        untranslated: sum.untranslated + cpu.untranslated,
    }))
}

/// A value of a map, so that this crate may vouch for a type of another.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Plain<T>(T);

// SAFETY: five 32-bit words: no padding, and every bit pattern is a value.
unsafe impl Pod for Plain<Cursor> {}
// SAFETY: two 64-bit words: no padding, and every bit pattern is a value.
unsafe impl Pod for Plain<Arrived> {}

#[cfg(test)]
mod tests {
    use aya::programs::{TestRun as _, TestRunOptions};
    use bench_xdp::{FRAME_BYTES, Flow};

    use super::*;

    /// `None` without the privilege to load programs: then this is a counted skip.
    fn loaded(program: &str, settings: Settings) -> Option<Ebpf> {
        // SAFETY: takes no argument and cannot fail.
        if unsafe { nix::libc::geteuid() } != 0 {
            say!("SKIPPED: {program} through the kernel: loading programs needs root");
            return None;
        }
        Some(load(program, settings).expect("the object loads"))
    }

    fn run(object: &mut Ebpf, program: &str, frame: &[u8]) -> Vec<u8> {
        let mut out = vec![0; frame.len()];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ..TestRunOptions::default()
        };
        let result = find(object, program).unwrap().test_run(options).unwrap();
        assert_eq!(result.return_value, 4, "{program} answers XDP_REDIRECT");
        out
    }

    fn bytes(frame: bench_xdp::Frame) -> Vec<u8> {
        frame.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    const SETTINGS: Settings =
        Settings { stations: [1, 2, 3, 4, 5, 6], out: 1, table_entries: 1024, order_entries: 3 };

    #[test]
    fn the_generator_walks_its_share_and_writes_frames_whole() {
        let Some(mut object) = loaded("generate", SETTINGS) else { return };
        set_order(&mut object, &[70_000, 5, 9]).unwrap();
        for (shuffled, expected) in [(0, [1, 2, 1, 2]), (1, [5, 9, 5, 9])] {
            let share = Cursor { first: 1, count: 2, shuffled, ..Cursor::default() };
            set_cursors(&mut object, |_| share).unwrap();
            for (sequence, number) in (1..).zip(expected) {
                assert_eq!(
                    run(&mut object, "generate", &[0xff; FRAME_BYTES]),
                    bytes(Flow::numbered(number).frame(SETTINGS.stations, sequence)),
                    "flow {number} as frame {sequence}"
                );
            }
        }
    }

    #[test]
    fn the_redirects_change_nothing_but_the_stations() {
        for program in ["bare_redirect", "redirect_read"] {
            let Some(mut object) = loaded(program, SETTINGS) else { return };
            let flow = Flow::numbered(77);
            assert_eq!(
                run(&mut object, program, &bytes(flow.frame([9; 6], 3))),
                bytes(flow.frame(SETTINGS.stations, 3)),
                "{program}"
            );
        }
    }
}
