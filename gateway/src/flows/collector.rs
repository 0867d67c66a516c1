//! The thread that reads the ring and writes the log.
//!
//! A thread of its own, because a disk may be slow and nothing else may wait for it. It sleeps in
//! `poll` until the kernel says that there is something, or for a second; in between it walks the
//! session table in steps small enough that the ring does not fill meanwhile.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use aya::maps::{MapData, RingBuf};
use flow_export::{Counts, EventKind, Exporter, FileSink, Rotation, Sink, StreamSink, Unblocked};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::{info, warn};
use xdp::address::V4;
use xdp::tables::Tables;
use xdp_abi::event::{CAPTURE, Captured, Event4};
use zerocopy::FromBytes;

use super::Directories;
use super::live::Live;
use super::record::{self, Clock};
use super::session::{all_slots, room, sessions};
use super::updates::{FLAG_EVERY, Updates};
use crate::config::FlowLog;
use crate::datapath::clock::monotonic;

/// How many slots one step looks at: some milliseconds' worth.
const STEP: u32 = 1 << 16;
/// Events that are taken before anything else gets its turn.
const BATCH: u32 = 4096;
/// More events than the ring has room for: what a last look takes, as traffic goes on.
const RING: u32 = 1 << 16;
/// How often it is looked how the log is, and tried again to write to one that fails.
const FLUSH_EVERY: Duration = Duration::from_secs(1);
/// How long the last records may take. What they are written to may never answer.
const END_WITHIN: Duration = Duration::from_secs(2);

/// Why records cannot be collected.
#[derive(Debug, thiserror::Error)]
pub enum CollectorError {
    /// The log cannot be opened.
    #[error("the flow log {path} cannot be opened: {source}")]
    Open {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// There is no thread for it.
    #[error("the thread for flow records cannot be started: {0}")]
    Thread(io::Error),
}

/// An open flow log. Apart from the collector, because whatever may be refused is asked for
/// before the tables are touched.
pub struct Log(Box<dyn Sink>);

impl Log {
    /// Opens the sink that the configuration names.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(log: &FlowLog) -> Result<Self, CollectorError> {
        let path = log.path.display();
        info!(%path, "flow records");
        if log.path.as_os_str() == "-" {
            let failed = |source| CollectorError::Open { path: "-".to_owned(), source };
            let output = io::stdout().as_fd().try_clone_to_owned().map_err(failed)?;
            return Ok(Self(Box::new(StreamSink::new(Unblocked::new(File::from(output))))));
        }
        let rotation = Rotation { bytes: log.rotate_bytes, keep: log.keep };
        let failed = |source| CollectorError::Open { path: path.to_string(), source };
        if let Some(directory) = log.path.parent() {
            std::fs::create_dir_all(directory).map_err(failed)?;
        }
        Ok(Self(Box::new(FileSink::open(&log.path, rotation).map_err(failed)?)))
    }
}

/// What is done with copies of packets, which come by the same ring.
pub type OnCaptured = Box<dyn FnMut(&Captured) + Send>;

/// A running collector. Dropping it writes what waits and ends the thread, if that can be done soon.
pub struct Collector {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// The thread's end of this is gone when the thread is.
    ended: mpsc::Receiver<()>,
    counts: Arc<Counts>,
}

impl Collector {
    /// Starts it. Without a log the ring is read all the same, for copies of packets, and so
    /// that the kernel need not count losses of what nobody wanted.
    ///
    /// # Errors
    /// There is no thread.
    pub fn start<L: Live>(
        ring: RingBuf<MapData>,
        tables: Arc<L>,
        directories: Arc<Directories>,
        log: Option<Log>,
        on_captured: OnCaptured,
    ) -> Result<Self, CollectorError> {
        let exporter = log.map(|Log(sink)| Exporter::new(sink));
        let counts = exporter.as_ref().map(Exporter::counts).unwrap_or_default();
        let stop = Arc::new(AtomicBool::new(false));
        let desk = Desk::new(&*tables, directories, exporter);
        let stopped = Arc::clone(&stop);
        let (ending, ended) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("flow-records".to_owned())
            .spawn(move || {
                let _ending: mpsc::Sender<()> = ending;
                run(ring, &*tables, desk, on_captured, &stopped);
            })
            .map_err(CollectorError::Thread)?;
        Ok(Self { stop, thread: Some(thread), ended, counts })
    }

    /// The counters of the log.
    #[must_use]
    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let before = self.counts.read().dropped;
        self.stop.store(true, Ordering::Relaxed);
        if self.ended.recv_timeout(END_WITHIN) == Err(RecvTimeoutError::Timeout) {
            warn!("the flow log takes no records; those that wait are lost");
            return;
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            warn!("the thread for flow records died");
        }
        let lost = self.counts.read().dropped - before;
        if lost > 0 {
            warn!(lost, "flow records that could not be written are lost");
        }
    }
}

/// Where events come from.
trait Events {
    /// Hands over the next one; says whether there was one.
    fn next(&mut self, take: impl FnOnce(&[u8])) -> bool;
    /// Sleeps until there is one.
    fn wait(&self, longest: Duration);
}

impl Events for RingBuf<MapData> {
    fn next(&mut self, take: impl FnOnce(&[u8])) -> bool {
        RingBuf::next(self).map(|item| take(&item)).is_some()
    }

    fn wait(&self, longest: Duration) {
        // SAFETY: the descriptor belongs to the ring, which lives longer than this call.
        let fd = unsafe { BorrowedFd::borrow_raw(self.as_raw_fd()) };
        let timeout = PollTimeout::try_from(longest).unwrap_or(PollTimeout::ZERO);
        // A signal or an error ends the wait early, and that is all that it may do.
        let _ = poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout);
    }
}

fn run<L: Live>(
    mut ring: impl Events,
    tables: &L,
    mut desk: Desk,
    mut on_captured: OnCaptured,
    stop: &AtomicBool,
) {
    let mut flushed = Instant::now();
    loop {
        // Taken first: what was in the ring before the end was asked for is still written.
        let last = stop.load(Ordering::Relaxed);
        let most = if last { RING } else { BATCH };
        let mut take = |item: &[u8]| {
            if item.first() == Some(&CAPTURE) {
                if let Ok((captured, _)) = Captured::ref_from_prefix(item) {
                    on_captured(captured);
                }
            } else if let Ok((event, _)) = Event4::read_from_prefix(item) {
                desk.event(&event);
            }
        };
        let mut taken = 0;
        while taken < most && ring.next(&mut take) {
            taken += 1;
        }
        if last {
            break;
        }
        desk.look(tables, monotonic());
        if flushed.elapsed() >= FLUSH_EVERY {
            flushed = Instant::now();
            desk.flush();
        }
        desk.write();
        if !desk.is_walking() && taken < BATCH {
            ring.wait(Duration::from_millis(200));
        }
    }
}

/// What makes records, apart from where events come from.
struct Desk {
    directories: Arc<Directories>,
    exporter: Option<Exporter>,
    /// Records that were lost when the log began to fail; `None`: it does not fail.
    failing: Option<u64>,
    updates: Updates,
    clock: Clock,
    /// The next slot to look at, while a walk is on.
    at: Option<u32>,
    /// When the last walk began, nanoseconds.
    walked: u64,
}

impl Desk {
    fn new<L: Live>(tables: &L, directories: Arc<Directories>, exporter: Option<Exporter>) -> Self {
        let now = tables.clock();
        Self {
            directories,
            exporter,
            failing: None,
            updates: Updates::new(room(tables), now),
            clock: Clock::now(tables.tick_length()),
            at: None,
            walked: now,
        }
    }

    fn event(&mut self, event: &Event4) {
        // Looked at anew: what is in an event was announced before it was made, and not sooner.
        if let Some(exporter) = &mut self.exporter
            && let Some(record) = record::of_event(event, &self.directories.book(), &self.clock)
        {
            exporter.export(&record);
        }
    }

    /// Goes on with a walk over the table, or begins one if it is time.
    fn look<L: Live>(&mut self, tables: &L, now: u64) {
        if self.exporter.is_none() {
            return;
        }
        if self.at.is_none() && now.saturating_sub(self.walked) >= FLAG_EVERY.as_nanos() as u64 {
            self.at = Some(0);
            self.walked = now;
        }
        let Some(from) = self.at else { return };
        let end = all_slots(tables);
        let to = from.saturating_add(STEP).min(end);
        self.at = (to < end).then_some(to);
        self.tell(tables, from..to, now);
    }

    fn tell<T: Tables<A = V4> + Live>(
        &mut self,
        tables: &T,
        slots: std::ops::Range<u32>,
        now: u64,
    ) {
        let book = self.directories.book();
        for mut session in sessions(tables, slots, tables.now()) {
            if !self.updates.due(&session, now) {
                continue;
            }
            session.told.time = now;
            let record = record::record(EventKind::Update, &session.told, &book, &self.clock);
            if let Some(exporter) = &mut self.exporter {
                exporter.export(&record);
            }
        }
    }

    fn is_walking(&self) -> bool {
        self.at.is_some()
    }

    /// Writes what this turn has told. Once a turn, because what is read from the ring and not
    /// written is lost when this process is killed; the more there is, the longer is a turn.
    fn write(&mut self) {
        if let Some(exporter) = &mut self.exporter {
            exporter.write();
        }
    }

    fn flush(&mut self) {
        if let Some(exporter) = &mut self.exporter {
            exporter.flush();
            let counts = exporter.counts();
            tell_of_fault(&mut self.failing, counts.fault(), counts.read().dropped);
        }
        self.clock.look();
    }
}

/// Says once that the log begins to fail, and once that it does so no more.
fn tell_of_fault(failing: &mut Option<u64>, fault: Option<String>, dropped: u64) {
    match (*failing, fault) {
        (None, Some(fault)) => {
            warn!(%fault, "flow records cannot be written; they wait, and are lost when they are too many");
            *failing = Some(dropped);
        }
        (Some(before), None) => {
            info!(lost = dropped - before, "flow records are written again");
            *failing = None;
        }
        (None, None) | (Some(_), Some(_)) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::testing::{self, SECOND, TWO_CLUSTERS};
    use flow_export::{End, FlowRecord, json};
    use std::collections::VecDeque;
    use std::sync::Mutex;
    use zerocopy::IntoBytes as _;

    /// A log that a test can read.
    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Paper {
        fn records(&self) -> Vec<FlowRecord> {
            let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
            text.lines().map(|line| json::parse(line).unwrap()).collect()
        }
    }

    fn desk(scene: &testing::Scene) -> (Desk, Paper) {
        let paper = Paper::default();
        let directories = Arc::new(Directories::new(scene.directory(1)));
        let exporter = Exporter::new(Box::new(StreamSink::new(paper.clone())));
        (Desk::new(&*scene.memory, directories, Some(exporter)), paper)
    }

    #[test]
    fn a_live_session_is_told_of_in_between() {
        let mut scene = testing::scene(TWO_CLUSTERS);
        let (mut desk, paper) = desk(&scene);
        scene.open_tcp("100.64.1.10:40000", "198.51.100.9:443");
        for event in scene.memory.take_events() {
            desk.event(&event);
        }
        let mut kinds = Vec::new();
        for seconds in [1, 3, 1, 5, 60] {
            scene.pass(seconds * SECOND);
            desk.look(&*scene.memory, scene.memory.clock());
            assert!(!desk.is_walking(), "the table is smaller than one step");
            desk.flush();
            kinds = paper.records().iter().map(|record| record.event).collect();
        }
        // After 5 s the answer's flags are new; nothing happens after that.
        assert_eq!(kinds, [EventKind::Start, EventKind::Update]);
        let update = &paper.records()[1];
        assert_eq!((update.original.packets, update.reply.packets), (2, 1));
        assert_eq!(update.source.endpoint.as_deref(), Some("shop/api-1"));
        assert_eq!(update.rule.as_ref().unwrap().name.as_deref(), Some("web"));
        assert_eq!(update.session, paper.records()[0].session);
        assert_eq!(update.time.since(update.start), Duration::from_secs(5));
    }

    #[test]
    fn every_event_is_written_and_counted() {
        let mut scene = testing::scene(TWO_CLUSTERS);
        let (mut desk, paper) = desk(&scene);
        for port in 0..20 {
            scene.open_tcp(&format!("100.64.1.10:{}", 40_000 + port), "198.51.100.9:443");
        }
        scene.pass(7_441 * SECOND);
        scene.sweep();
        let counts = desk.exporter.as_ref().unwrap().counts();
        for event in scene.memory.take_events() {
            desk.event(&event);
        }
        drop(desk);
        assert_eq!(paper.records().len(), 40);
        assert_eq!((counts.read().generated, counts.read().written), (40, 40));
    }

    /// A ring in which events wait.
    struct Waiting(VecDeque<Vec<u8>>);

    impl Events for Waiting {
        fn next(&mut self, take: impl FnOnce(&[u8])) -> bool {
            self.0.pop_front().map(|item| take(&item)).is_some()
        }
        fn wait(&self, _: Duration) {}
    }

    #[test]
    fn what_waits_when_the_end_is_asked_for_is_still_written() {
        let mut scene = testing::scene(TWO_CLUSTERS);
        let (desk, paper) = desk(&scene);
        scene.open_tcp("100.64.1.10:40000", "198.51.100.9:443");
        let event = scene.memory.take_events()[0];
        // More than one turn takes.
        let waiting = 2 * BATCH as usize;
        let ring = Waiting(std::iter::repeat_n(event.as_bytes().to_vec(), waiting).collect());
        run(ring, &*scene.memory, desk, Box::new(|_| ()), &AtomicBool::new(true));
        assert_eq!(paper.records().len(), waiting);
    }

    /// A ring that notes, when it is waited for, how many records there were and are written.
    struct Noting {
        waiting: VecDeque<Vec<u8>>,
        counts: Arc<Counts>,
        noted: mpsc::Sender<(u64, u64)>,
        stop: Arc<AtomicBool>,
    }

    impl Events for Noting {
        fn next(&mut self, take: impl FnOnce(&[u8])) -> bool {
            self.waiting.pop_front().map(|item| take(&item)).is_some()
        }
        fn wait(&self, _: Duration) {
            let counted = self.counts.read();
            self.noted.send((counted.generated, counted.written)).unwrap();
            self.stop.store(true, Ordering::Relaxed);
        }
    }

    #[test]
    fn what_was_read_is_written_before_anything_is_waited_for() {
        let mut scene = testing::scene(TWO_CLUSTERS);
        let (desk, _) = desk(&scene);
        scene.open_tcp("100.64.1.10:40000", "198.51.100.9:443");
        let waiting = scene.memory.take_events().iter().map(|e| e.as_bytes().to_vec()).collect();
        let counts = desk.exporter.as_ref().unwrap().counts();
        let (noted, notes) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let ring = Noting { waiting, counts, noted, stop: Arc::clone(&stop) };
        run(ring, &*scene.memory, desk, Box::new(|_| ()), &stop);
        let (generated, written) = notes.recv().unwrap();
        assert!(generated > 0 && written == generated, "{written} of {generated}");
    }

    #[test]
    fn a_pod_that_gets_the_address_of_another_is_not_told_as_the_other() {
        let mut scene = testing::scene(TWO_CLUSTERS);
        let (mut desk, paper) = desk(&scene);
        scene.open_tcp("100.64.1.10:40000", "198.51.100.9:443");
        scene.pass(SECOND);
        let moved = TWO_CLUSTERS.replace("shop/api-1", "ads/web-1");
        let moved = moved.replacen("namespace: shop", "namespace: ads", 1);
        let next = testing::scene(&moved).directory(2);
        desk.directories.announce(next, scene.memory.clock());
        // A refusal that the tables made when they had not yet followed.
        scene.syn(1, "100.64.1.10:40001", "198.51.100.9:22");
        scene.publish(&moved);
        desk.directories.publish(scene.directory(1), scene.memory.clock());
        scene.syn(1, "100.64.1.10:40002", "198.51.100.9:22");
        scene.pass(7_441 * SECOND);
        scene.sweep();
        for event in scene.memory.take_events() {
            desk.event(&Event4 { generation: 1, ..event });
        }
        desk.flush();
        let told: Vec<_> = paper
            .records()
            .iter()
            .map(|record| {
                let End { endpoint, namespace, groups, .. } = &record.source;
                let shop = groups.iter().flat_map(|all| &**all).any(|group| &**group == "shop");
                let name = endpoint.as_deref().unwrap().to_owned();
                (record.event, name, namespace.as_deref().unwrap().to_owned(), shop)
            })
            .collect();
        let old = |kind| (kind, "shop/api-1".to_owned(), "shop".to_owned(), true);
        let new = |kind| (kind, "ads/web-1".to_owned(), "ads".to_owned(), false);
        let expected = [
            old(EventKind::Start),
            old(EventKind::Deny),
            new(EventKind::Deny),
            old(EventKind::End),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn names_are_those_of_the_generation_that_judged() {
        let mut scene = testing::scene(TWO_CLUSTERS);
        let (mut desk, paper) = desk(&scene);
        scene.open_tcp("100.64.1.10:40000", "198.51.100.9:443");
        let events = scene.memory.take_events();
        let mut renamed = scene.directory(2);
        renamed.gateway = Arc::from("renamed");
        desk.directories.publish(renamed, 0);
        for generation in [1, 2, 1] {
            desk.event(&Event4 { generation, ..events[0] });
        }
        desk.flush();
        let gateways: Vec<_> = paper.records().iter().map(|r| r.gateway.to_string()).collect();
        assert_eq!(gateways, ["gw-test", "renamed", "gw-test"]);
    }
}
