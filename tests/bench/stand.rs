//! One device under test in a topology of its own, ready to be sent to.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use aya::Ebpf;
use aya::programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp};
use bench_xdp::{Arrived, Cursor, FRAME_BYTES};

use crate::dut::Dut;
use crate::exam::pinned;
use crate::object::{self, Settings};
use crate::topology::{GENERATOR, INSIDE, SINK, Topology, stations};

/// Frames that the kernel hands over at a time: what a driver's NAPI poll would.
const BATCH: u32 = 64;

/// Sent frames of which fewer arrive say that something else than forwarding was measured.
const LEAST_DELIVERED: f64 = 0.9;

/// A device under test between a generator and a sink.
pub(crate) struct Stand {
    pub(crate) dut: Box<dyn Dut>,
    generator: Ebpf,
    sink: Ebpf,
    topology: Topology,
}

impl Stand {
    /// Builds the topology and sets the device up in it. `order` is the order that shuffled flows
    /// are sent in; `queues` the number of cores that send at once.
    pub(crate) fn new(mut dut: Box<dyn Dut>, order: &[u32], queues: usize) -> Result<Self> {
        let topology = Topology::new(queues)?;
        let mut sink = object::load("sink", Settings::default())?;
        topology.sink.enter(|| object::attach(&mut sink, "sink", SINK))?;
        let settings = Settings {
            stations: stations(GENERATOR, INSIDE),
            out: GENERATOR.index,
            order_entries: u32::try_from(order.len()).context("too many flows")?,
            ..Settings::default()
        };
        let mut generator = object::load("generate", settings)?;
        object::set_order(&mut generator, order)?;
        let name = dut.name();
        topology.device.enter(|| dut.set_up()).with_context(|| format!("cannot set up {name}"))?;
        Ok(Self { dut, generator, sink, topology })
    }

    /// Makes the device forget its flows.
    pub(crate) fn forget_flows(&mut self) -> Result<()> {
        self.topology.device.enter(|| self.dut.forget_flows())
    }

    /// Puts every CPU's generator at the start of its share.
    pub(crate) fn aim(&mut self, share: impl Fn(usize) -> Cursor) -> Result<()> {
        object::set_cursors(&mut self.generator, share)
    }

    /// Sends `packets` from each of these cores at once and returns the rate at which they
    /// arrived, in packets per second.
    pub(crate) fn send(&mut self, packets: u32, cores: &[usize]) -> Result<f64> {
        let before = object::arrived(&self.sink)?;
        let program: &Xdp = object::find(&mut self.generator, "generate")?;
        let start = Barrier::new(cores.len());
        let sending = AtomicBool::new(true);
        let rates = thread::scope(|scope| {
            let beside = scope.spawn(|| self.dut.beside(&sending));
            let workers: Vec<_> = cores
                .iter()
                .map(|core| {
                    scope.spawn(|| {
                        start.wait();
                        self.topology.generator.enter(|| run(program, packets, *core))
                    })
                })
                .collect();
            let results: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
            sending.store(false, Ordering::Relaxed);
            beside.join().unwrap_or_else(|e| std::panic::resume_unwind(e))?;
            results
                .into_iter()
                .map(|result| result.unwrap_or_else(|e| std::panic::resume_unwind(e)))
                .collect::<Result<Vec<f64>>>()
        })?;
        // The last frames may still be on their way through ksoftirqd.
        thread::sleep(Duration::from_millis(2));
        let after = object::arrived(&self.sink)?;
        let sent = u64::from(packets) * cores.len() as u64;
        let delivered = self.checked(before, after, sent)?;
        Ok(rates.iter().sum::<f64>() * delivered)
    }

    /// The share of the sent frames that arrived, if what arrived can be believed.
    fn checked(&self, before: Arrived, after: Arrived, sent: u64) -> Result<f64> {
        let name = self.dut.name();
        let packets = after.packets - before.packets;
        let untranslated = after.untranslated - before.untranslated;
        let delivered = packets as f64 / sent as f64;
        if delivered < LEAST_DELIVERED {
            bail!("{name} delivered {packets} of {sent} frames");
        }
        ensure!(packets <= sent, "{name} delivered {packets} frames, though {sent} were sent");
        if self.dut.translates() {
            ensure!(untranslated == 0, "{name} let {untranslated} frames out untranslated");
        } else {
            ensure!(untranslated == packets, "{name} changed the source of frames");
        }
        Ok(delivered)
    }
}

/// One core's run: the rate from the kernel's own `duration`. The wall clock would add the set-up
/// of the call, some 23 ms.
fn run(program: &Xdp, packets: u32, core: usize) -> Result<f64> {
    pinned(core)?;
    let options = TestRunOptions {
        data_in: Some(&[0; FRAME_BYTES]),
        repeat: packets,
        attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
        ..TestRunOptions::default()
    };
    let result = program.test_run(options).context("the generator does not run")?;
    Ok(1.0 / result.duration.as_secs_f64())
}
