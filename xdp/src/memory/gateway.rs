//! A gateway without a kernel: frames in, frames out.

use super::{Memory, MemoryFrame};
use crate::{
    books,
    egress::{Egress, egress},
    pipeline::{self, Done, Fate, Hook, Work},
    sweep::sweep,
};
use xdp_abi::count::Amount;

/// Slots of one call, as the daemon would do it.
const SWEEP_STEP: u32 = 64;

/// Tables, and the steps that every frame goes through.
pub struct Gateway {
    /// The state.
    pub tables: Memory,
    /// The way of sending.
    pub hook: Hook,
}

/// What became of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its fate.
    pub fate: Fate,
    /// The attachment it came by; zero: unknown, or the established path did not need it.
    pub attachment: u16,
    /// The frame as it is now. What was dropped may be half written.
    pub frame: MemoryFrame,
    /// Where it is sent, if it is sent.
    pub egress: Option<u32>,
}

impl Gateway {
    /// What an ingress hook on `ifindex` does with a frame, counted; `now` in ticks.
    pub fn process(&self, ifindex: u32, mut frame: MemoryFrame, now: u32) -> Output {
        let (done, amount) = pipeline::ingress(&self.tables, &mut frame, self.hook, ifindex, now);
        self.finish(done, frame, amount, ifindex)
    }

    /// The same without the established path: what it does must not differ.
    pub fn process_slowly(&self, ifindex: u32, mut frame: MemoryFrame, now: u32) -> Output {
        let mut work = Work::new();
        work.length = frame.bytes.len() as u32;
        pipeline::slow(&self.tables, &mut frame, ifindex, now, &mut work);
        if work.done.code.is_answer() {
            pipeline::answer(&self.tables, &mut frame, &mut work, now);
        }
        self.finish(work.done, frame, work.amount(), ifindex)
    }

    fn finish(&self, done: Done, frame: MemoryFrame, amount: Amount, ifindex: u32) -> Output {
        self.tables.count(|counters| books::count(counters, &done, amount));
        let fate = done.fate();
        let egress = match fate {
            Fate::Transmit(hop, _) | Fate::Told(_, hop) => Some(hop.ifindex()),
            Fate::Answered(_) => Some(ifindex),
            Fate::Pass | Fate::Punt(_) | Fate::Drop(_) | Fate::Answer(..) => None,
        };
        Output { fate, attachment: done.attachment, frame, egress }
    }

    /// What TC egress on `ifindex` does with a frame that the kernel sends.
    pub fn process_egress(
        &self,
        ifindex: u32,
        frame: &mut MemoryFrame,
        punted: Option<u16>,
        now: u32,
    ) -> Egress {
        let amount = Amount { packets: frame.segments as u64, bytes: frame.bytes.len() as u64 };
        let egress = egress(&self.tables, frame, ifindex, punted, now);
        self.tables.count(|counters| books::count_egress(counters, egress, amount));
        egress
    }

    /// Ends every session whose time is over, as the daemon's sweep does.
    pub fn sweep(&self, now: u32) {
        let mut from = 0;
        while from < self.tables.slots().len() as u32 {
            from += sweep(&self.tables, from, SWEEP_STEP, now).max(1);
        }
    }
}
