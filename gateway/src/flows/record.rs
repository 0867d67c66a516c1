//! Events become records: numbers get names, ticks become times.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flow_export::{
    End, EventKind, FlowRecord, Named, Protocol, SessionId, TcpFlags, Timestamp, Traffic, Tuple,
    Verdict,
};
use xdp_abi::event::{self, Event4};
use xdp_abi::policy::ACTION_REJECT;
use xdp_abi::reason::Reason;

use super::Book;
use crate::datapath::clock::monotonic;

/// A time of day that was set by less than this (nanoseconds) was not set: two clocks are never read
/// in the same moment.
const SET: u64 = 10_000_000;
/// How many settings are remembered: more than a sound machine sees.
const MOST_SET: usize = 1 << 10;

/// How the monotonic clock of the datapath relates to the time of day, which may be set at any
/// moment: a moment has the time of day that was right then, also when it is told of later, so that
/// every record of a session has the same `start`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clock {
    /// How long a tick is.
    tick: Duration,
    /// From which moment on the time of day was ahead of the monotonic clock by how much,
    /// nanoseconds. The first holds for all before it as well.
    ahead: Vec<(u64, u64)>,
}

impl Clock {
    /// A relation that has always been so: the time of day at zero of the monotonic clock.
    #[must_use]
    pub fn new(tick: Duration, ahead: u64) -> Self {
        Self { tick, ahead: vec![(0, ahead)] }
    }

    /// The relation as it is now.
    #[must_use]
    pub fn now(tick: Duration) -> Self {
        Self::new(tick, read().1)
    }

    /// Looks whether the time of day was set.
    pub fn look(&mut self) {
        let (now, ahead) = read();
        self.set(now, ahead);
    }

    fn set(&mut self, now: u64, ahead: u64) {
        if self.ahead.last().is_none_or(|(_, before)| before.abs_diff(ahead) >= SET) {
            self.ahead.push((now, ahead));
            let beyond = self.ahead.len().saturating_sub(MOST_SET);
            self.ahead.drain(..beyond);
        }
    }

    /// The time of day at a reading of the monotonic clock.
    #[must_use]
    pub fn time(&self, monotonic: u64) -> Timestamp {
        let held = self.ahead.iter().rfind(|(from, _)| *from <= monotonic);
        let ahead = held.or(self.ahead.first()).map_or(0, |(_, ahead)| *ahead);
        Timestamp(ahead.saturating_add(monotonic))
    }
}

/// The monotonic clock, and how far the time of day is ahead of it: of some readings the one that
/// was interrupted least.
fn read() -> (u64, u64) {
    let reading = |_| {
        let before = monotonic();
        let time_of_day = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time_of_day = u64::try_from(time_of_day.as_nanos()).unwrap_or(u64::MAX);
        let took = monotonic() - before;
        (took, before, time_of_day.saturating_sub(before + took / 2))
    };
    let (_, now, ahead) = (0..4).map(reading).min().unwrap_or_default();
    (now, ahead)
}

/// The record of an event; `None` if it is none that this program knows.
#[must_use]
pub fn of_event(event: &Event4, book: &Book, clock: &Clock) -> Option<FlowRecord> {
    let kind = match event.kind {
        event::START => EventKind::Start,
        event::END => EventKind::End,
        event::DENY => EventKind::Deny,
        _ => return None,
    };
    Some(record(kind, event, book, clock))
}

/// The record of a flow at the moment `event.time`, with `event.last_seen` in ticks before it.
#[must_use]
pub fn record(kind: EventKind, event: &Event4, book: &Book, clock: &Clock) -> FlowRecord {
    let (names, then) = (book.newest(), book.of(event.generation));
    // A refused packet is a flow that ends where it begins.
    let began = if event.began == 0 { event.time } else { event.began };
    let ticks = u32::try_from(event.last_seen).unwrap_or(u32::MAX);
    let idle = u64::try_from((clock.tick * ticks).as_nanos()).unwrap_or(u64::MAX);
    // Ticks are coarse: nothing was seen before the first packet.
    let last_seen = event.time.saturating_sub(idle).max(began);
    let inside = tuple(event);
    let outside = Tuple {
        source_address: address(event.outside),
        source_port: u16::from_be_bytes(event.outside_port),
        destination_address: address(event.outside_destination),
        destination_port: u16::from_be_bytes(event.outside_destination_port),
    };
    let end = |domain, bytes, port, identity| {
        let owner = book.owner(domain, Ipv4Addr::from(bytes), identity, began);
        End {
            address: address(bytes),
            port,
            domain: then.domain(domain),
            endpoint: owner.map(|owner| Arc::clone(&owner.name)),
            cluster: owner.and_then(|owner| owner.cluster.clone()),
            namespace: owner.and_then(|owner| owner.namespace.clone()),
            service: owner.and_then(|owner| owner.services.first().cloned()),
            groups: names.groups(identity),
            identity,
        }
    };
    let rule = |id: u32| (id != 0).then(|| Named { id, name: names.rule(id) });
    FlowRecord {
        time: clock.time(event.time),
        gateway: Arc::clone(&then.gateway),
        event: kind,
        // The very first session has the number zero.
        session: (kind != EventKind::Deny).then_some(SessionId(event.session)),
        verdict: verdict(kind, event),
        reason: reason(kind, event),
        protocol: Protocol(event.protocol),
        source: end(event.domain, event.source, inside.source_port, event.source_identity),
        destination: end(
            event.destination_domain,
            event.destination,
            inside.destination_port,
            event.destination_identity,
        ),
        translated: (outside != inside).then_some(outside),
        rule: rule(event.rule),
        would_match: rule(event.would_match),
        snat_policy: (event.snat_policy != 0)
            .then(|| Named { id: event.snat_policy, name: names.snat(event.snat_policy) }),
        mark: (event.mark != 0).then_some(event.mark),
        ingress: then.attachment(event.ingress),
        egress: then.attachment(event.egress),
        start: clock.time(began),
        last_seen: clock.time(last_seen),
        duration_ms: (last_seen - began) / 1_000_000,
        original: traffic(event, 0),
        reply: traffic(event, 1),
        suppressed: event.suppressed,
        generation: event.generation,
    }
}

fn address(bytes: [u8; 4]) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(bytes))
}

fn tuple(event: &Event4) -> Tuple {
    Tuple {
        source_address: address(event.source),
        source_port: u16::from_be_bytes(event.source_port),
        destination_address: address(event.destination),
        destination_port: u16::from_be_bytes(event.destination_port),
    }
}

fn traffic(event: &Event4, direction: usize) -> Traffic {
    let is_tcp = Protocol(event.protocol) == Protocol::TCP;
    Traffic {
        packets: event.packets[direction],
        bytes: event.bytes[direction],
        tcp_flags: is_tcp.then_some(TcpFlags(event.tcp_flags[direction])),
    }
}

/// What was done, which may be a refusal although a rule permits: every port may be lent.
fn verdict(kind: EventKind, event: &Event4) -> Verdict {
    match kind {
        EventKind::Start | EventKind::Update | EventKind::End => Verdict::Permit,
        EventKind::Deny if event.action == u32::from(ACTION_REJECT) => Verdict::Reject,
        EventKind::Deny => Verdict::Deny,
    }
}

fn reason(kind: EventKind, event: &Event4) -> Option<Arc<str>> {
    match kind {
        EventKind::Start | EventKind::Update => None,
        EventKind::End => cause(event.reason).map(Arc::from),
        EventKind::Deny => Reason::from_number(event.reason).map(|reason| Arc::from(reason.name())),
    }
}

/// How a session ended, in a word.
const fn cause(number: u8) -> Option<&'static str> {
    Some(match number {
        event::ENDED_IDLE => "idle",
        event::ENDED_CLOSED => "closed",
        event::ENDED_RESET => "reset",
        event::ENDED_REVOKED => "revoked",
        event::ENDED_WITHDRAWN => "withdrawn",
        event::ENDED_CLEARED => "cleared",
        event::ENDED_REOPENED => "reopened",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::testing::{self, SECOND, TWO_CLUSTERS};

    fn clock() -> Clock {
        Clock::new(Duration::from_nanos(62_500_000), 1_767_225_600_000_000_000)
    }

    fn records(scene: &testing::Scene) -> Vec<FlowRecord> {
        let names = scene.book(1);
        let events = scene.memory.take_events();
        events.iter().map(|event| of_event(event, &names, &clock()).unwrap()).collect()
    }

    /// Records and the local API know nothing of each other, and are read side by side.
    #[test]
    fn ids_and_flags_are_written_alike_in_records_and_by_the_local_api() {
        for flags in 0..=u8::MAX {
            let in_api = api::session::TcpFlags(flags).to_string();
            assert_eq!(TcpFlags(flags).to_string(), in_api);
        }
        for id in [1, 0x0123_4567_89ab_cdef, u64::MAX] {
            assert_eq!(SessionId(id).to_string(), api::session::SessionId(id).to_string());
        }
    }

    #[test]
    fn a_session_is_told_from_its_beginning_to_its_end() {
        let mut scene = testing::scene(TWO_CLUSTERS);
        scene.open_tcp("100.64.1.10:40000", "198.51.100.9:443");
        scene.pass(7_441 * SECOND);
        scene.sweep();
        let [start, end] = &records(&scene)[..] else { panic!("a start and an end") };
        assert_eq!((start.event, end.event), (EventKind::Start, EventKind::End));
        assert_eq!(start.session, end.session);
        assert_eq!(start.gateway.as_ref(), "gw-test");
        assert_eq!(start.source.endpoint.as_deref(), Some("shop/api-1"));
        assert_eq!(start.source.namespace.as_deref(), Some("shop"));
        assert_eq!(start.source.domain.as_ref(), "red");
        assert!(start.source.groups.iter().flat_map(|all| &**all).any(|group| &**group == "shop"));
        assert_eq!(start.destination.domain.as_ref(), "fabric");
        assert_eq!(start.rule.as_ref().unwrap().name.as_deref(), Some("web"));
        assert_eq!(start.would_match.as_ref().unwrap().name.as_deref(), Some("watch-web"));
        assert_eq!(start.snat_policy.as_ref().unwrap().name.as_deref(), Some("pods-out"));
        assert_eq!(start.ingress.as_deref(), Some("red-pods"));
        assert_eq!(start.egress.as_deref(), Some("internet"));
        let translated = start.translated.unwrap();
        assert_eq!(translated.source_address.to_string(), "203.0.113.1");
        assert_eq!((start.reason.as_deref(), end.reason.as_deref()), (None, Some("idle")));
        assert_eq!(start.start.to_string(), "2026-01-01T00:16:40.000Z");
        assert_eq!((start.duration_ms, end.duration_ms), (0, 0), "all in one tick");
        assert_eq!(end.time.since(end.last_seen), Duration::from_secs(7_441));
        assert_eq!((end.original.packets, end.reply.packets), (2, 1));
        assert_eq!(end.original.tcp_flags, Some(TcpFlags(0x12)));
        assert_eq!(end.verdict, Verdict::Permit);
    }

    #[test]
    fn a_refusal_says_by_what() {
        let mut scene = testing::scene(TWO_CLUSTERS);
        for (to, rule, reason, verdict) in [
            ("198.51.100.9:22", Some("no-ssh"), "rule_denied", Verdict::Deny),
            ("198.51.100.9:23", Some("no-telnet"), "rule_rejected", Verdict::Reject),
            ("198.51.100.9:25", None, "default_denied", Verdict::Deny),
        ] {
            scene.pass(SECOND);
            scene.syn(1, "100.64.1.10:40000", to);
            let [deny] = &records(&scene)[..] else { panic!("one record for {to}") };
            assert_eq!(deny.event, EventKind::Deny);
            assert_eq!(deny.rule.as_ref().and_then(|rule| rule.name.as_deref()), rule, "{to}");
            assert_eq!(deny.reason.as_deref(), Some(reason));
            assert_eq!(deny.verdict, verdict);
            assert_eq!((deny.session, deny.translated), (None, None));
            assert_eq!((deny.start, deny.last_seen, deny.duration_ms), (deny.time, deny.time, 0));
            assert_eq!(deny.source.endpoint.as_deref(), Some("shop/api-1"));
        }
    }

    #[test]
    fn a_moment_keeps_its_time_of_day_when_the_clock_is_set() {
        const HOUR: u64 = 3_600_000_000_000;
        let mut clock = Clock::new(Duration::from_millis(62), 100 * HOUR);
        clock.set(HOUR, 100 * HOUR + SET - 1); // two readings of the same
        clock.set(2 * HOUR, 101 * HOUR);
        clock.set(3 * HOUR, 101 * HOUR - SET);
        for (moment, expected) in [
            (0, 100 * HOUR),
            (2 * HOUR - 1, 102 * HOUR - 1),
            (2 * HOUR, 103 * HOUR),
            (3 * HOUR, 104 * HOUR - SET),
        ] {
            assert_eq!(clock.time(moment).0, expected, "{moment}");
        }
        for n in 0..2 * MOST_SET as u64 {
            clock.set((4 + n) * HOUR, n * HOUR);
        }
        assert_eq!(clock.ahead.len(), MOST_SET);
    }

    #[test]
    fn the_time_of_day_is_not_set_by_being_read() {
        let mut clock = Clock::now(Duration::from_millis(62));
        let before = clock.clone();
        (0..100).for_each(|_| clock.look());
        assert_eq!(clock, before);
    }

    #[test]
    fn what_was_never_seen_is_not_before_the_beginning() {
        let scene = testing::scene(TWO_CLUSTERS);
        let names = scene.book(1);
        for (last_seen, expected) in [(0, 2_000), (16, 1_000), (31, 62), (32, 0), (10_000, 0)] {
            let time = 12_000_000_000;
            let event = Event4 {
                kind: event::END,
                time,
                began: 10_000_000_000,
                last_seen,
                ..Event4::default()
            };
            let record = of_event(&event, &names, &clock()).unwrap();
            assert_eq!(record.duration_ms, expected, "{last_seen} ticks");
        }
    }

    #[test]
    fn the_first_session_has_a_number_and_a_refusal_has_none() {
        let scene = testing::scene(TWO_CLUSTERS);
        for (kind, expected) in [
            (event::START, Some(SessionId(0))),
            (event::END, Some(SessionId(0))),
            (event::DENY, None),
        ] {
            let event = Event4 { kind, ..Event4::default() };
            let record = of_event(&event, &scene.book(1), &clock()).unwrap();
            assert_eq!(record.session, expected, "{kind}");
        }
    }

    #[test]
    fn what_has_no_name_keeps_its_number() {
        let scene = testing::scene(TWO_CLUSTERS);
        let event = Event4 {
            kind: event::END,
            reason: 99,
            rule: 4_000_000_000,
            snat_policy: 4_000_000_001,
            domain: 77,
            source_identity: 4_000_000_002,
            ingress: 500,
            protocol: 47,
            ..Event4::default()
        };
        let record = of_event(&event, &scene.book(1), &clock()).unwrap();
        assert_eq!(record.rule, Some(Named { id: 4_000_000_000, name: None }));
        assert_eq!(record.snat_policy, Some(Named { id: 4_000_000_001, name: None }));
        assert_eq!(record.source.domain.as_ref(), "77");
        assert_eq!(record.source.groups, None, "unknown is not in none");
        assert_eq!(record.destination.groups.as_deref(), Some(&[][..]));
        assert_eq!((record.reason, record.ingress), (None, None));
        assert_eq!(record.original.tcp_flags, None);
    }

    #[test]
    fn events_of_other_kinds_are_no_records() {
        let scene = testing::scene(TWO_CLUSTERS);
        for kind in [0, event::CAPTURE, 99] {
            let event = Event4 { kind, ..Event4::default() };
            assert_eq!(of_event(&event, &scene.book(1), &clock()), None);
        }
    }

    #[test]
    fn every_cause_has_a_word_of_its_own() {
        let words: std::collections::BTreeSet<_> = (1..=7).map(|n| cause(n).unwrap()).collect();
        assert_eq!(words.len(), 7);
        assert_eq!((cause(0), cause(8)), (None, None));
    }
}
