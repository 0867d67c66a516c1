//! `GET /v1/capture`: copies of packets, as they come.
//!
//! One capture at a time: the datapath has one filter. It ends by itself, by count or by time,
//! and whatever ends it (the client hanging up, too) switches the datapath back.

use crate::{datapath::tables::Datapath, flows::Directories, serve::Refusal};
use api::{
    capture::{Bytes, Frame, PacketVerdict, Stage},
    filter::Filter,
    session::{ObjectRef, SessionId},
};
use axum::{
    Router,
    body::Body,
    extract::{Query, State},
    http::header,
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{sync::broadcast, time::Instant};
use xdp_abi::{
    event::{Captured, STAGE_BEFORE, VERDICT_DROPPED, VERDICT_FORWARDED, VERDICT_PASSED},
    reason::Reason,
};

/// Copies that wait for a slow reader; what is older is left out, and said.
const WAITING: usize = 4096;
/// The most packets that one capture may ask for, and the longest it may take.
const MOST_PACKETS: u64 = 100_000;
const MOST_SECONDS: u64 = 600;

/// Where copies go, and whether somebody looks.
pub struct Capture {
    datapath: Arc<Datapath>,
    directories: Arc<Directories>,
    interfaces: Mutex<HashMap<u32, String>>,
    copies: broadcast::Sender<Arc<Captured>>,
    /// Copies of packets whose fate is not known yet, by number.
    undecided: Mutex<BTreeMap<u64, Captured>>,
    busy: AtomicBool,
}

/// Copies that wait for their packet's fate; the two of a packet come right after each other,
/// but for other processors.
const UNDECIDED: usize = 256;

impl Capture {
    /// Nobody looks yet. Whoever looked when an earlier daemon died does so no more.
    pub fn new(datapath: Arc<Datapath>, directories: Arc<Directories>) -> Arc<Self> {
        datapath.settings().capture.store(0);
        let (copies, _) = broadcast::channel(WAITING);
        Arc::new(Self {
            datapath,
            directories,
            interfaces: Mutex::default(),
            copies,
            undecided: Mutex::default(),
            busy: AtomicBool::new(false),
        })
    }

    /// The names of interfaces.
    pub fn set_interfaces(&self, names: HashMap<u32, String>) {
        *self.interfaces.lock().unwrap_or_else(PoisonError::into_inner) = names;
    }

    /// Takes a copy from the ring. The one before translation waits for the one after, which
    /// knows what became of the packet. Nobody listening is not an error.
    pub fn take(&self, copy: &Captured) {
        let mut undecided = self.undecided.lock().unwrap_or_else(PoisonError::into_inner);
        if copy.stage == STAGE_BEFORE {
            undecided.insert(copy.number, *copy);
            if undecided.len() > UNDECIDED {
                undecided.pop_first();
            }
            return;
        }
        if let Some(mut before) = undecided.remove(&copy.number) {
            before.verdict = copy.verdict;
            before.reason = copy.reason;
            before.rule = copy.rule;
            before.session = copy.session;
            let _ = self.copies.send(Arc::new(before));
        }
        let _ = self.copies.send(Arc::new(*copy));
    }

    /// The route.
    pub fn routes(self: &Arc<Self>) -> Router {
        Router::new().route(api::path::CAPTURE, get(capture)).with_state(Arc::clone(self))
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

/// What is to be copied. Packets are matched as they come in; `rule` is not known then.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    #[serde(default)]
    filter: String,
    count: Option<u64>,
    seconds: Option<u64>,
}

/// The filter in the datapath, taken out again when the capture ends.
struct Looking(Arc<Capture>);

impl Drop for Looking {
    fn drop(&mut self) {
        self.0.datapath.settings().capture.store(0);
        self.0.busy.store(false, Ordering::SeqCst);
    }
}

async fn capture(
    State(capture): State<Arc<Capture>>,
    Query(wanted): Query<Wanted>,
) -> Result<Response, Refusal> {
    let filter: Filter = wanted
        .filter
        .parse()
        .map_err(|error| Refusal::bad_request("the filter is wrong", error))?;
    let (address, ports) = lower(&filter)?;
    if capture.busy.swap(true, Ordering::SeqCst) {
        return Err(Refusal::bad_request(
            "somebody else captures",
            "one capture runs at a time; it ends by itself",
        ));
    }
    let looking = Looking(Arc::clone(&capture));
    let count = wanted.count.unwrap_or(MOST_PACKETS).clamp(1, MOST_PACKETS);
    let time = Duration::from_secs(wanted.seconds.unwrap_or(MOST_SECONDS).clamp(1, MOST_SECONDS));
    let copies = capture.copies.subscribe();
    let settings = capture.datapath.settings();
    settings.capture_address.store(address);
    settings.capture_ports.store(ports);
    settings.capture.store(1);
    // Two copies a packet.
    let state = (looking, copies, 2 * count, Instant::now() + time, wall_clock_at_zero());
    let stream = futures_util::stream::unfold(state, |mut state| async move {
        let (looking, copies, left, until, epoch) = &mut state;
        if *left == 0 {
            return None;
        }
        loop {
            match tokio::time::timeout_at(*until, copies.recv()).await {
                Ok(Ok(copy)) => {
                    *left -= 1;
                    let mut line = serde_json::to_vec(&looking.0.frame(&copy, *epoch)).ok()?;
                    line.push(b'\n');
                    return Some((Ok::<_, std::io::Error>(line), state));
                }
                Ok(Err(broadcast::error::RecvError::Lagged(missed))) => {
                    tracing::warn!(missed, "a capture is read too slowly; copies were left out");
                }
                Ok(Err(broadcast::error::RecvError::Closed)) | Err(_) => return None,
            }
        }
    });
    let body = Body::from_stream(stream);
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

/// A filter as the datapath has it: one prefix that source or destination lies in, one port that
/// either has, one protocol.
fn lower(filter: &Filter) -> Result<(u64, u64), Refusal> {
    let too_much = |what: &str| {
        Refusal::bad_request(
            "the filter cannot be applied to packets",
            format!("`{what}` is known only of sessions; use src or dst, port and proto"),
        )
    };
    if filter.rule.is_some() {
        return Err(too_much("rule"));
    }
    if filter.domain.is_some() {
        return Err(too_much("domain"));
    }
    let prefix = match (&filter.src, &filter.dst, &filter.outside) {
        (Some(_), Some(_), _) => return Err(too_much("src and dst together")),
        (Some(prefix), None, _) | (None, Some(prefix), _) => Some(prefix.net()),
        (None, None, Some(_)) => return Err(too_much("outside")),
        (None, None, None) => None,
    };
    let address = match prefix {
        Some(ipnet::IpNet::V4(prefix)) => {
            let word = |bytes: [u8; 4]| u64::from(u32::from_ne_bytes(bytes));
            word(prefix.network().octets()) << 32 | word(prefix.netmask().octets())
        }
        Some(ipnet::IpNet::V6(_)) => return Err(too_much("an IPv6 prefix")),
        None => 0,
    };
    let port = u64::from(filter.port.unwrap_or(0));
    let protocol = filter.proto.map_or(0, |protocol| u64::from(protocol.0));
    Ok((address, port << 16 | protocol))
}

/// Nanoseconds since 1970 when the monotonic clock stood at zero.
fn wall_clock_at_zero() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos())
        .unwrap_or(u64::MAX)
        .saturating_sub(crate::datapath::clock::monotonic())
}
