//! `GET /v1/capture`: copies of packets, as they come.
//!
//! One capture at a time: the datapath has one filter. It ends by itself, by count or by time,
//! and whatever ends it (the client hanging up, too) switches the datapath back; a client that
//! does not read holds up nothing but its own lines.
//!
//! The datapath sorts out roughly, before it copies: a prefix, a port, a protocol, one in so many. The
//! rest of a filter is held against the copies here, which the datapath need not know to be fast. A
//! packet is counted and left out with all its copies.

mod copies;
mod run;
mod sieve;

use crate::{
    flows::{Directories, Live},
    serve::{Refusal, asked, no_such_method},
};
use api::{
    capture::{Bytes, Frame, MOST_PACKETS, MOST_SAMPLE, MOST_SECONDS, PacketVerdict, Stage},
    filter::Filter,
    session::{ObjectRef, SessionId},
};
use axum::{
    Router,
    body::Body,
    extract::{Query, State, rejection::QueryRejection},
    http::header,
    response::{IntoResponse, Response},
    routing::get,
};
use copies::{Copies, Undecided};
use run::Run;
use serde::Deserialize;
use sieve::{Sieve, lower};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    sync::{broadcast, mpsc},
    time::Instant,
};
use xdp::sample::sampled_before;
use xdp_abi::{
    event::{Captured, STAGE_BEFORE, VERDICT_DROPPED, VERDICT_FORWARDED, VERDICT_PASSED},
    reason::Reason,
};

/// Packets that wait for a slow reader; what is older is left out, and said.
const WAITING: usize = 2048;
/// Lines that wait for the connection.
const LINES: usize = 64;

/// Where copies go, and whether somebody looks.
pub struct Capture<L> {
    tables: Arc<L>,
    directories: Arc<Directories>,
    interfaces: Mutex<HashMap<u32, String>>,
    packets: broadcast::Sender<Arc<Copies>>,
    received: Mutex<Received>,
    busy: AtomicBool,
}

/// What came out of the ring.
#[derive(Debug, Default)]
struct Received {
    undecided: Undecided,
    /// How many packets the datapath had considered when the capture began.
    since: u64,
    /// Copies that came since then.
    copies: u64,
}

impl<L: Live> Capture<L> {
    /// Nobody looks yet. Whoever looked when an earlier daemon died does so no more.
    pub fn new(tables: Arc<L>, directories: Arc<Directories>) -> Arc<Self> {
        tables.config().capture.store(0);
        let (packets, _) = broadcast::channel(WAITING);
        Arc::new(Self {
            tables,
            directories,
            interfaces: Mutex::default(),
            packets,
            received: Mutex::default(),
            busy: AtomicBool::new(false),
        })
    }

    /// The names of interfaces.
    pub fn set_interfaces(&self, names: HashMap<u32, String>) {
        *self.interfaces.lock().unwrap_or_else(PoisonError::into_inner) = names;
    }

    /// Takes a copy from the ring. Nobody listening is not an error.
    pub fn take(&self, copy: &Captured) {
        let mut received = self.received();
        // Numbers begin with one.
        received.copies += u64::from(copy.number > received.since);
        if let Some(packet) = received.undecided.take(copy) {
            let _ = self.packets.send(Arc::new(packet));
        }
    }

    /// The route.
    pub fn routes(self: &Arc<Self>) -> Router {
        Router::new()
            .route(api::path::CAPTURE, get(capture))
            .method_not_allowed_fallback(no_such_method)
            .with_state(Arc::clone(self))
    }

    fn received(&self) -> MutexGuard<'_, Received> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many packets the datapath has considered for a copy, ever.
    fn considered(&self) -> u64 {
        self.tables.shared().capture_seen.load()
    }

    fn frame(&self, copy: &Captured, epoch: u64) -> Frame {
        let names = self.directories.current();
        let interfaces = self.interfaces.lock().unwrap_or_else(PoisonError::into_inner);
        let length = usize::try_from(copy.captured).unwrap_or(0).min(copy.bytes.len());
        let verdict = match copy.verdict {
            VERDICT_FORWARDED => PacketVerdict::Forwarded,
            VERDICT_PASSED => PacketVerdict::Passed,
            VERDICT_DROPPED => PacketVerdict::Dropped,
            _ => PacketVerdict::Punted,
        };
        let reason = (verdict == PacketVerdict::Dropped)
            .then(|| Reason::from_number(copy.reason))
            .flatten()
            .map(|reason| reason.name().to_owned());
        Frame {
            time: epoch.wrapping_add(copy.time),
            interface: interfaces
                .get(&copy.ifindex)
                .cloned()
                .unwrap_or_else(|| format!("if{}", copy.ifindex)),
            stage: if copy.stage == STAGE_BEFORE { Stage::Before } else { Stage::After },
            verdict,
            reason,
            rule: (copy.rule != 0).then(|| ObjectRef {
                id: copy.rule,
                name: names.rule(copy.rule).map(|name| name.to_string()),
            }),
            session: (copy.session != 0).then_some(SessionId(copy.session)),
            length: copy.length,
            bytes: Bytes(copy.bytes[..length].to_vec()),
        }
    }
}

/// What is to be copied.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    #[serde(default)]
    filter: String,
    count: Option<u64>,
    seconds: Option<u64>,
    sample: Option<u64>,
}

/// The filter in the datapath, taken out again when the capture ends.
struct Looking<L: Live> {
    capture: Arc<Capture<L>>,
    /// One in so many packets is copied.
    sample: u64,
}

impl<L: Live> Looking<L> {
    /// Puts a filter into the datapath, if there is none.
    fn begin(capture: &Arc<Capture<L>>, filter: &Filter, sample: u64) -> Result<Self, Refusal> {
        if capture.busy.swap(true, Ordering::SeqCst) {
            return Err(Refusal::conflict(
                "somebody else captures",
                "one capture runs at a time; it ends by itself",
            ));
        }
        let looking = Self { capture: Arc::clone(capture), sample };
        let since = capture.considered();
        *capture.received() = Received { since, ..Received::default() };
        let config = capture.tables.config();
        let (address, ports) = lower(filter);
        config.capture_address.store(address);
        config.capture_ports.store(ports);
        config.capture.store(sample);
        Ok(looking)
    }

    /// Has the datapath make no more copies.
    fn stop(&self) {
        self.capture.tables.config().capture.store(0);
    }

    /// Copies that the datapath should have made, and did not get out of the ring.
    fn missing(&self) -> u64 {
        let received = self.capture.received();
        let [before, now] = [received.since, self.capture.considered()]
            .map(|number| sampled_before(number, self.sample));
        (2 * now.saturating_sub(before)).saturating_sub(received.copies)
    }
}

impl<L: Live> Drop for Looking<L> {
    fn drop(&mut self) {
        self.stop();
        self.capture.busy.store(false, Ordering::SeqCst);
    }
}

async fn capture<L: Live>(
    State(capture): State<Arc<Capture<L>>>,
    query: Result<Query<Wanted>, QueryRejection>,
) -> Result<Response, Refusal> {
    let wanted = asked(query)?;
    let filter: Filter =
        wanted.filter.parse().map_err(|error| Refusal::bad_request(WRONG, error))?;
    filter.of_packets().map_err(|error| Refusal::bad_request(WRONG, error))?;
    let sieve = Sieve::new(&filter);
    if let Some(rule) = &sieve.rule
        && !capture.directories.current().has_rule(rule)
    {
        let detail = format!("there is no rule `{rule}`; `sluicectl rules` shows all");
        return Err(Refusal::bad_request("no such rule", detail));
    }
    let count = within("count", wanted.count.unwrap_or(MOST_PACKETS), MOST_PACKETS)?;
    let seconds = within("seconds", wanted.seconds.unwrap_or(MOST_SECONDS), MOST_SECONDS)?;
    let sample = within("sample", wanted.sample.unwrap_or(1), MOST_SAMPLE)?;
    let packets = capture.packets.subscribe();
    let run = Run {
        looking: Looking::begin(&capture, &filter, sample)?,
        packets,
        sieve,
        count,
        until: Instant::now() + Duration::from_secs(seconds),
        epoch: wall_clock_at_zero(),
    };
    let (lines, waiting) = mpsc::channel(LINES);
    tokio::spawn(run.run(lines));
    let stream = futures_util::stream::unfold(waiting, |mut waiting| async move {
        let line = waiting.recv().await?;
        Some((Ok::<_, std::io::Error>(line), waiting))
    });
    let body = Body::from_stream(stream);
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

/// What is wrong if something is wrong with a filter.
const WRONG: &str = "the filter is wrong";

/// A number of a request, if it is 1 to `most`.
fn within(name: &str, stated: u64, most: u64) -> Result<u64, Refusal> {
    if (1..=most).contains(&stated) {
        return Ok(stated);
    }
    let detail = format!("`{name}` is {stated}; it may be 1 to {most}");
    Err(Refusal::bad_request("no such capture", detail))
}

/// Nanoseconds since 1970 when the monotonic clock stood at zero.
fn wall_clock_at_zero() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos())
        .unwrap_or(u64::MAX)
        .saturating_sub(crate::datapath::clock::monotonic())
}

#[cfg(test)]
mod tests;
