//! The gateway's program by itself: nanoseconds for each packet by `BPF_PROG_TEST_RUN`, without
//! the wires around it.
//!
//! A translated frame cannot be given to the program again, so `feed` of the bench object writes
//! each frame anew and tail-calls the program. What `feed` costs with a program that does nothing
//! behind it is measured in the same round and taken off.

use anyhow::{Context as _, Result, ensure};
use aya::Ebpf;
use aya::programs::{TestRun as _, TestRunOptions};
use bench_xdp::{Cursor, FRAME_BYTES};
use xdp_abi::count::Counters;
use xdp_abi::names::XDP_INGRESS;

use crate::dut::Dut as _;
use crate::dut::sluice::Sluice;
use crate::exam::pinned;
use crate::object::{self, Settings};
use crate::report::Row;
use crate::statistics::{estimate, shuffled};
use crate::topology::{GENERATOR, INSIDE, Topology, stations};

/// Sessions of the rows that say "1 M".
const MANY: u32 = 1_000_000;
/// Sessions of the others.
const FEW: u32 = 1_000;
/// The first flow that no rule lets through.
const FIRST_DENIED: u32 = 1 << 27;
/// Packets of one round of known flows, or of refused ones.
const PACKETS: u32 = 400_000;
/// First packets of one round.
const NEW_FLOWS: u32 = 20_000;

/// The rows of this module with what they say.
pub(crate) const ROWS: &[(&str, &str)] = &[
    ("hit_ns", "program alone, packet of a known session, 1,000 sessions"),
    ("miss_ns", "program alone, first packet, empty table"),
    ("deny_ns", "program alone, refused packet, 1,000 flows"),
    ("hit_1m_ns", "program alone, packet of a known session, 1 M sessions at random"),
    ("miss_1m_ns", "program alone, first packet, beside 1 M sessions"),
    ("deny_1m_ns", "program alone, refused packet, 1 M flows at random beside 1 M sessions"),
];

/// What a packet of a row must become, so that nothing else is measured.
#[derive(Clone, Copy)]
enum Expected {
    Forwarded,
    Opened,
    Refused,
}

impl Expected {
    fn count(self, counters: &Counters) -> u64 {
        match self {
            Self::Forwarded => counters.forwarded[0].packets - counters.sessions_begun,
            Self::Opened => counters.sessions_begun,
            Self::Refused => counters.drops.as_flattened().iter().sum(),
        }
    }
}

/// A gateway that frames are fed to, and the feeder with nothing behind it.
struct Table {
    sluice: Sluice,
    feed: Ebpf,
    idle: Ebpf,
    topology: Topology,
}

impl Table {
    fn new(sessions: u32, order: &[u32]) -> Result<Self> {
        let topology = Topology::new(1)?;
        let mut sluice = Sluice::new(sessions);
        topology.device.enter(|| sluice.set_up())?;
        let settings = Settings {
            stations: stations(GENERATOR, INSIDE),
            order_entries: u32::try_from(order.len()).context("too many flows")?,
            ..Settings::default()
        };
        let mut feed = object::load("feed", settings)?;
        let mut idle = object::load("feed", settings)?;
        object::set_order(&mut feed, order)?;
        object::set_order(&mut idle, order)?;
        {
            let mut programs = sluice.datapath()?.object();
            let fd = programs.xdp(XDP_INGRESS)?.fd()?;
            object::set_next(&mut feed, fd)?;
        }
        let pass = object::find(&mut idle, "pass")?;
        pass.load()?;
        let fd = pass.fd()?.try_clone()?;
        object::set_next(&mut idle, &fd)?;
        Ok(Self { sluice, feed, idle, topology })
    }

    /// Nanoseconds that the program takes for each of `packets` frames.
    fn cost(
        &mut self,
        packets: u32,
        core: usize,
        cursor: Cursor,
        expected: Expected,
    ) -> Result<f64> {
        object::set_cursors(&mut self.idle, |_| cursor)?;
        object::set_cursors(&mut self.feed, |_| cursor)?;
        let before = expected.count(&self.sluice.datapath()?.counters()?);
        let (idle, feed) = (&mut self.idle, &mut self.feed);
        let times = self.topology.device.enter(|| {
            pinned(core)?;
            Ok([run(idle, packets)?, run(feed, packets)?])
        })?;
        let done = expected.count(&self.sluice.datapath()?.counters()?) - before;
        self.sluice.drain();
        ensure!(done == u64::from(packets), "{done} of {packets} packets went the way measured");
        Ok(times[1] - times[0])
    }
}

fn run(object: &mut Ebpf, packets: u32) -> Result<f64> {
    let result = object::find(object, "feed")?.test_run(TestRunOptions {
        data_in: Some(&[0; FRAME_BYTES]),
        ctx_in: Some(&context()),
        repeat: packets,
        ..TestRunOptions::default()
    })?;
    Ok(result.duration.as_nanos() as f64)
}

/// The context of a frame that came in at [`INSIDE`].
pub(crate) fn context() -> [u8; 24] {
    // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let words: [u32; 6] = [0, FRAME_BYTES as u32, 0, INSIDE.index, 0, 0];
    let mut bytes = [0; 24];
    for (place, word) in bytes.chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// Measures the rows of [`ROWS`], in their order.
pub(crate) fn run_all(rounds: usize, cores: &[usize]) -> Result<Vec<Row>> {
    let core = cores[0];
    let mut order = shuffled(MANY);
    order.extend(shuffled(MANY).iter().map(|number| FIRST_DENIED + number));
    let share = |first, count, shuffled| Cursor { first, count, shuffled, ..Cursor::default() };
    let plain = |first, count| share(first, count, 0);

    let mut few = Table::new(1 << 16, &[])?;
    let mut fresh = Table::new(1 << 16, &[])?;
    let mut many = Table::new(1 << 21, &order)?;
    few.cost(FEW, core, plain(0, FEW), Expected::Opened)?;
    // In parts, so that the ring of events does not run full.
    for part in 0..50 {
        let size = MANY / 50;
        many.cost(size, core, share(part * size, size, 1), Expected::Opened)?;
    }

    let mut times: [Vec<f64>; 6] = Default::default();
    for round in 0..rounds as u32 {
        let first = (round + 1) * NEW_FLOWS;
        let every = PACKETS * round % MANY;
        let part = PACKETS.min(MANY - every);
        times[0].push(few.cost(PACKETS, core, plain(0, FEW), Expected::Forwarded)?);
        times[1].push(fresh.cost(NEW_FLOWS, core, plain(first, NEW_FLOWS), Expected::Opened)?);
        times[2].push(few.cost(PACKETS, core, plain(FIRST_DENIED, FEW), Expected::Refused)?);
        times[3].push(many.cost(part, core, share(every, part, 1), Expected::Forwarded)?);
        times[4].push(many.cost(
            NEW_FLOWS,
            core,
            plain(MANY + first, NEW_FLOWS),
            Expected::Opened,
        )?);
        times[5].push(many.cost(part, core, share(MANY + every, part, 1), Expected::Refused)?);
        fresh.sluice.forget_flows()?;
    }
    let rows = ROWS.iter().zip(&times);
    Ok(rows.map(|((id, what), times)| Row::new(id, what, "ns", None, estimate(times))).collect())
}
