//! What is measured otherwise than by sending packets through the topology at full speed.

use anyhow::{Context as _, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::report::Row;
use crate::{bulk, dry, fleet, live, room, verifier};

/// Rows that come from one function.
pub(crate) struct Exam {
    /// Id and meaning of each row that `run` may yield, in its order.
    pub(crate) rows: &'static [(&'static str, &'static str)],
    /// Measures them, in so many rounds, on these cores.
    pub(crate) run: fn(usize, &[usize]) -> Result<Vec<Row>>,
}

/// Everything of that kind.
pub(crate) const EXAMS: &[Exam] = &[
    Exam { rows: dry::ROWS, run: dry::run_all },
    Exam { rows: room::MEMORY_ROWS, run: room::memory },
    Exam { rows: room::PORT_ROWS, run: room::ports },
    Exam { rows: bulk::ROWS, run: bulk::run_all },
    Exam { rows: fleet::ROWS, run: fleet::run_all },
    Exam { rows: live::ROWS, run: live::run_all },
    Exam { rows: verifier::ROWS, run: verifier::run_all },
];

/// Lets this thread, and what it starts, use every core again.
pub(crate) fn free() -> Result<()> {
    let mut cpus = CpuSet::new();
    for core in 0..CpuSet::count() {
        cpus.set(core)?;
    }
    // The kernel leaves out those that there are not.
    sched_setaffinity(Pid::from_raw(0), &cpus).context("cannot use every core")
}

/// Keeps this thread on one core.
pub(crate) fn pinned(core: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(core).with_context(|| format!("there is no core {core}"))?;
    sched_setaffinity(Pid::from_raw(0), &cpus).with_context(|| format!("cannot use core {core}"))
}
