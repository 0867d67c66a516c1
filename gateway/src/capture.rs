//! `GET /v1/capture`: copies of packets, as they come.
//!
//! One capture at a time: the datapath has one filter. It ends by itself, by count or by time,
//! and whatever ends it (the client hanging up, too) switches the datapath back.
//!
//! The datapath sorts out roughly, before it copies: a prefix, a port, a protocol. The rest of a
//! filter is held against the copies here, which the datapath need not know to be fast. A packet is
//! counted and left out with all its copies.

use crate::{datapath::tables::Datapath, flows::Directories, serve::Refusal};
use api::{
    capture::{Bytes, Frame, Line, Lost, MOST_PACKETS, MOST_SECONDS, PacketVerdict, Stage},
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
use ipnet::{IpNet, Ipv4Net};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr},
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

/// Packets that wait for a slow reader; what is older is left out, and said.
const WAITING: usize = 2048;

/// The copies of one packet.
#[derive(Clone, Debug)]
struct Copies {
    /// As it came in; there was no room for it if it is missing.
    before: Option<Captured>,
    after: Captured,
}

/// Where copies go, and whether somebody looks.
pub struct Capture {
    datapath: Arc<Datapath>,
    directories: Arc<Directories>,
    interfaces: Mutex<HashMap<u32, String>>,
    packets: broadcast::Sender<Arc<Copies>>,
    undecided: Mutex<Undecided>,
    busy: AtomicBool,
}

/// Copies of packets whose fate is not known yet, by number.
#[derive(Debug, Default)]
struct Undecided(BTreeMap<u64, Captured>);

/// Copies that wait for their packet's fate; the two of a packet come right after each other,
/// but for other processors.
const UNDECIDED: usize = 256;

impl Undecided {
    /// Takes a copy. The one before translation waits for the one after, which knows what became of
    /// the packet.
    fn take(&mut self, copy: &Captured) -> Option<Copies> {
        if copy.stage == STAGE_BEFORE {
            self.0.insert(copy.number, *copy);
            if self.0.len() > UNDECIDED {
                self.0.pop_first();
            }
            return None;
        }
        let mut before = self.0.remove(&copy.number);
        if let Some(before) = &mut before {
            before.verdict = copy.verdict;
            before.reason = copy.reason;
            before.rule = copy.rule;
            before.session = copy.session;
        }
        Some(Copies { before, after: *copy })
    }
}

impl Capture {
    /// Nobody looks yet. Whoever looked when an earlier daemon died does so no more.
    pub fn new(datapath: Arc<Datapath>, directories: Arc<Directories>) -> Arc<Self> {
        datapath.settings().capture.store(0);
        let (packets, _) = broadcast::channel(WAITING);
        Arc::new(Self {
            datapath,
            directories,
            interfaces: Mutex::default(),
            packets,
            undecided: Mutex::default(),
            busy: AtomicBool::new(false),
        })
    }

    /// The names of interfaces.
    pub fn set_interfaces(&self, names: HashMap<u32, String>) {
        *self.interfaces.lock().unwrap_or_else(PoisonError::into_inner) = names;
    }

    /// Takes a copy from the ring. Nobody listening is not an error.
    pub fn take(&self, copy: &Captured) {
        let mut undecided = self.undecided.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(packet) = undecided.take(copy) {
            let _ = self.packets.send(Arc::new(packet));
        }
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

/// What is to be copied.
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

impl Looking {
    /// Events that the datapath found no room for, so far.
    fn lost(&self) -> u64 {
        self.0.datapath.counters().map_or(0, |counters| counters.events_lost)
    }
}

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
    let left = within("count", wanted.count, MOST_PACKETS)?;
    let seconds = within("seconds", wanted.seconds, MOST_SECONDS)?;
    if capture.busy.swap(true, Ordering::SeqCst) {
        return Err(Refusal::bad_request(
            "somebody else captures",
            "one capture runs at a time; it ends by itself",
        ));
    }
    let looking = Looking(Arc::clone(&capture));
    let packets = capture.packets.subscribe();
    let settings = capture.datapath.settings();
    let (address, ports) = lower(&filter);
    settings.capture_address.store(address);
    settings.capture_ports.store(ports);
    settings.capture.store(1);
    let running = Running {
        lost_before: looking.lost(),
        looking,
        packets,
        sieve,
        left,
        until: Instant::now() + Duration::from_secs(seconds),
        epoch: wall_clock_at_zero(),
        over: false,
    };
    let stream = futures_util::stream::unfold(running, |mut running| async move {
        let lines = running.next().await?;
        Some((Ok::<_, std::io::Error>(lines), running))
    });
    let body = Body::from_stream(stream);
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

/// What is wrong if something is wrong with a filter.
const WRONG: &str = "the filter is wrong";

/// A number of a request, which is no greater than `most` and is that if it is not stated.
fn within(name: &str, stated: Option<u64>, most: u64) -> Result<u64, Refusal> {
    match stated.unwrap_or(most) {
        number if (1..=most).contains(&number) => Ok(number),
        number => {
            let detail = format!("`{name}` is {number}; it may be 1 to {most}");
            Err(Refusal::bad_request("no such capture", detail))
        }
    }
}

/// A capture that goes on.
struct Running {
    looking: Looking,
    packets: broadcast::Receiver<Arc<Copies>>,
    sieve: Sieve,
    /// Packets that are still wanted.
    left: u64,
    until: Instant,
    epoch: u64,
    /// Events that had been lost when it began.
    lost_before: u64,
    over: bool,
}

impl Running {
    /// The next lines, until there are none.
    async fn next(&mut self) -> Option<Vec<u8>> {
        if self.over {
            return None;
        }
        while self.left > 0 && Instant::now() < self.until {
            match tokio::time::timeout_at(self.until, self.packets.recv()).await {
                Ok(Ok(packet)) => {
                    let names = self.looking.0.directories.current();
                    let rule = names.rule(packet.after.rule);
                    if self.sieve.lets_through(&packet, rule.as_deref()) {
                        self.left -= 1;
                        return self.lines(&packet);
                    }
                }
                Ok(Err(broadcast::error::RecvError::Lagged(missed))) => {
                    tracing::warn!(missed, "a capture is read too slowly; packets were left out");
                    return line(&Line::Lost { lost: Lost { packets: missed, events: 0 } });
                }
                Ok(Err(broadcast::error::RecvError::Closed)) | Err(_) => break,
            }
        }
        self.over = true;
        let events = self.looking.lost().saturating_sub(self.lost_before);
        if events == 0 {
            return None;
        }
        line(&Line::Lost { lost: Lost { packets: 0, events } })
    }

    fn lines(&self, packet: &Copies) -> Option<Vec<u8>> {
        let mut lines = Vec::new();
        for copy in packet.before.iter().chain([&packet.after]) {
            lines.extend(line(&Line::Frame(self.looking.0.frame(copy, self.epoch)))?);
        }
        Some(lines)
    }
}

fn line(line: &Line) -> Option<Vec<u8>> {
    let mut text = serde_json::to_vec(line).ok()?;
    text.push(b'\n');
    Some(text)
}

/// What of a filter is held against copies. Address terms mean the packet as it comes in; the outside
/// address is its source as it leaves, or its destination as an answer comes in.
#[derive(Debug, Default)]
struct Sieve {
    src: Option<Ipv4Net>,
    dst: Option<Ipv4Net>,
    outside: Option<Ipv4Addr>,
    rule: Option<String>,
}

impl Sieve {
    fn new(filter: &Filter) -> Self {
        Self {
            src: filter.src.and_then(v4),
            dst: filter.dst.and_then(v4),
            outside: filter.outside.and_then(|address| match address {
                IpAddr::V4(address) => Some(address),
                IpAddr::V6(_) => None,
            }),
            rule: filter.rule.clone(),
        }
    }

    /// Whether a packet that the rule of this name decided on is wanted.
    fn lets_through(&self, packet: &Copies, rule: Option<&str>) -> bool {
        let before = packet.before.as_ref().and_then(addresses);
        let within = |prefix: Option<Ipv4Net>, which: usize| {
            prefix.is_none_or(|prefix| before.is_some_and(|ends| prefix.contains(&ends[which])))
        };
        within(self.src, 0)
            && within(self.dst, 1)
            && self.rule.as_deref().is_none_or(|wanted| rule == Some(wanted))
            && self.outside.is_none_or(|outside| {
                before.is_some_and(|[_, destination]| destination == outside)
                    || addresses(&packet.after).is_some_and(|[source, _]| source == outside)
            })
    }
}

/// Source and destination of a copy, if it is of IPv4.
fn addresses(copy: &Captured) -> Option<[Ipv4Addr; 2]> {
    let length = usize::try_from(copy.captured).ok()?;
    let bytes = copy.bytes.get(..length)?;
    let packet = match bytes.get(12..14)? {
        [0x08, 0x00] => bytes.get(14..)?,
        // Behind one VLAN tag; with two it is not looked into.
        [0x81, 0x00] | [0x88, 0xa8] => bytes.get(16..)?.strip_prefix(&[0x08, 0x00])?,
        _ => return None,
    };
    let address =
        |at: usize| packet.get(at..)?.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets));
    Some([address(12)?, address(16)?])
}

fn v4(prefix: api::value::Prefix) -> Option<Ipv4Net> {
    match prefix.net() {
        IpNet::V4(prefix) => Some(prefix),
        IpNet::V6(_) => None,
    }
}

/// What of a filter the datapath can sort out: one prefix that source or destination lies in, one
/// port that either has, one protocol. Nothing that the filter holds for is left out by it.
fn lower(filter: &Filter) -> (u64, u64) {
    let narrowest = [filter.src, filter.dst].into_iter().flatten().filter_map(v4);
    let address = narrowest.max_by_key(Ipv4Net::prefix_len).map_or(0, |prefix| {
        let word = |bytes: [u8; 4]| u64::from(u32::from_ne_bytes(bytes));
        word(prefix.network().octets()) << 32 | word(prefix.netmask().octets())
    });
    let port = u64::from(filter.port.unwrap_or(0));
    let protocol = filter.proto.map_or(0, |protocol| u64::from(protocol.0));
    (address, port << 16 | protocol)
}

/// Nanoseconds since 1970 when the monotonic clock stood at zero.
fn wall_clock_at_zero() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos())
        .unwrap_or(u64::MAX)
        .saturating_sub(crate::datapath::clock::monotonic())
}

#[cfg(test)]
mod tests {
    use super::*;
    use xdp_abi::event::{CAPTURE, CAPTURE_BYTES, STAGE_AFTER};

    fn copy(number: u64, stage: u8, from: [u8; 4], to: [u8; 4]) -> Captured {
        let mut bytes = [0; CAPTURE_BYTES];
        bytes[12..14].copy_from_slice(&[0x08, 0x00]);
        bytes[26..30].copy_from_slice(&from);
        bytes[30..34].copy_from_slice(&to);
        Captured {
            kind: CAPTURE,
            stage,
            verdict: if stage == STAGE_AFTER { VERDICT_FORWARDED } else { 0 },
            reason: 0,
            length: 60,
            number,
            session: 0,
            time: 0,
            ifindex: 1,
            rule: if stage == STAGE_AFTER { 5 } else { 0 },
            captured: 60,
            bytes,
        }
    }

    const POD: [u8; 4] = [100, 64, 1, 10];
    const OUTSIDE: [u8; 4] = [203, 0, 113, 1];
    const SERVER: [u8; 4] = [198, 51, 100, 9];

    /// A packet of a session, and its answer.
    fn both_ways() -> [Copies; 2] {
        let packet = |from, to, new_from, new_to| Copies {
            before: Some(copy(1, STAGE_BEFORE, from, to)),
            after: copy(1, STAGE_AFTER, new_from, new_to),
        };
        [packet(POD, SERVER, OUTSIDE, SERVER), packet(SERVER, OUTSIDE, SERVER, POD)]
    }

    #[test]
    fn a_term_means_what_it_says_of_the_packet_as_it_comes_in() {
        for (text, out, back) in [
            ("", true, true),
            ("src=100.64.0.0/16", true, false), // and not the destination
            ("dst=100.64.1.10", false, false),  // the answer comes in for the outside address
            ("dst=198.51.100.9", true, false),
            ("src=198.51.100.9", false, true),
            ("src=100.64.1.10 dst=198.51.100.0/24", true, false),
            ("src=100.64.1.10 dst=198.51.101.0/24", false, false),
            ("outside=203.0.113.1", true, true),
            ("outside=203.0.113.2", false, false),
            ("outside=203.0.113.1 src=198.51.100.9", false, true),
            ("rule=web", true, true),
            ("rule=ssh", false, false),
            ("rule=web src=100.64.1.10", true, false),
        ] {
            let sieve = Sieve::new(&text.parse().unwrap());
            let wanted = both_ways().map(|packet| sieve.lets_through(&packet, Some("web")));
            assert_eq!(wanted, [out, back], "{text}");
        }
        let sieve = Sieve::new(&"rule=web".parse().unwrap());
        assert!(!sieve.lets_through(&both_ways()[0], None), "the default action is no rule");
    }

    #[test]
    fn a_tag_is_skipped_and_what_is_no_ipv4_has_no_addresses() {
        let mut tagged = copy(1, STAGE_BEFORE, POD, SERVER);
        tagged.bytes.copy_within(12..60, 16);
        tagged.bytes[12..16].copy_from_slice(&[0x81, 0x00, 0x00, 0x07]);
        assert_eq!(addresses(&tagged), Some([POD.into(), SERVER.into()]));
        let mut other = copy(1, STAGE_BEFORE, POD, SERVER);
        other.bytes[12..14].copy_from_slice(&[0x08, 0x06]);
        assert_eq!(addresses(&other), None);
        for (captured, expected) in [(34, true), (33, false), (13, false), (0, false)] {
            let short = Captured { captured, ..copy(1, STAGE_BEFORE, POD, SERVER) };
            assert_eq!(addresses(&short).is_some(), expected, "{captured} bytes");
        }
    }

    #[test]
    fn the_datapath_sorts_out_by_the_narrowest_prefix() {
        let lowered = |text: &str| lower(&text.parse().unwrap());
        assert_eq!(lowered(""), (0, 0));
        assert_eq!(lowered("rule=web outside=203.0.113.1"), (0, 0), "held against copies only");
        assert_eq!(lowered("src=100.64.0.0/16 dst=198.51.100.9").0, lowered("dst=198.51.100.9").0);
        assert_eq!(lowered("port=443 proto=tcp"), (0, 443 << 16 | 6));
    }

    #[test]
    fn copies_of_a_packet_stay_together_and_know_its_fate() {
        let mut undecided = Undecided::default();
        assert!(undecided.take(&copy(1, STAGE_BEFORE, POD, SERVER)).is_none());
        assert!(undecided.take(&copy(2, STAGE_BEFORE, POD, SERVER)).is_none());
        for number in [2, 1] {
            let packet = undecided.take(&copy(number, STAGE_AFTER, OUTSIDE, SERVER)).unwrap();
            let before = packet.before.unwrap();
            assert_eq!(
                (before.number, before.rule, before.verdict),
                (number, 5, VERDICT_FORWARDED)
            );
        }
        // The first copy found no room: the packet is shown by the second.
        assert!(undecided.take(&copy(3, STAGE_AFTER, OUTSIDE, SERVER)).unwrap().before.is_none());
        for number in 0..2 * UNDECIDED as u64 {
            undecided.take(&copy(number, STAGE_BEFORE, POD, SERVER));
        }
        assert_eq!(undecided.0.len(), UNDECIDED, "what waits for nothing is forgotten");
    }

    #[test]
    fn more_than_there_is_to_be_had_is_refused_with_the_limit() {
        for (stated, expected) in [
            (None, Ok(600)),
            (Some(1), Ok(1)),
            (Some(600), Ok(600)),
            (Some(601), Err("`seconds` is 601; it may be 1 to 600")),
            (Some(0), Err("`seconds` is 0; it may be 1 to 600")),
        ] {
            let said = within("seconds", stated, MOST_SECONDS);
            let said = said.map_err(|refusal| refusal.0.detail.unwrap());
            assert_eq!(said, expected.map_err(str::to_owned), "{stated:?}");
        }
    }
}
