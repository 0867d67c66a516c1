//! Sessions: shown and ended.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api::document::Document;
use api::filter::Filter;
use api::session::{
    ClearRequest, ClearResponse, ObjectRef, Party, Phase, Session, SessionId, Sessions, TcpFlags,
    Traffic, Tuple,
};
use api::value::Protocol;
use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Query, State as Extract};
use serde::Deserialize;
use xdp::packet::TCP;
use xdp_abi::event::Event4;
use xdp_abi::session::Class;

use super::problem::{Refusal, asked, blocking, domain_number};
use super::state::State;
use crate::flows::session::{SessionView, all_slots, sessions, socket, span};
use crate::flows::{Book, Live};

/// How many are shown if nobody says how many.
const USUAL: usize = 1000;
/// How many are shown at once: some 200 MB of the daemon's memory.
const MOST: usize = 100_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    #[serde(default)]
    filter: String,
    limit: Option<usize>,
}

fn parse(filter: &str) -> Result<Filter, Refusal> {
    filter.parse().map_err(|error| Refusal::bad_request("bad filter", error))
}

pub(super) async fn list<L: Live>(
    Extract(state): Extract<Arc<State<L>>>,
    query: Result<Query<Asked>, QueryRejection>,
) -> Result<Json<Sessions>, Refusal> {
    let asked = asked(query)?;
    let filter = parse(&asked.filter)?;
    let limit = asked.limit.unwrap_or(USUAL);
    if limit > MOST {
        let detail = format!("`limit` is {limit}; expected at most {MOST}, and a narrower filter");
        return Err(Refusal::bad_request("bad limit", detail));
    }
    blocking(move || {
        let mut shown = Vec::new();
        let mut matched = 0;
        let show = Show::now(&*state.live);
        walk(&state, &filter, |view, book| {
            matched += 1;
            if shown.len() < limit {
                shown.push(show.session(view, book));
            }
        });
        if matched == 0 {
            names_something(&state, &filter)?;
        }
        Ok(Json(Sessions { sessions: shown, matched }))
    })
    .await?
}

pub(super) async fn clear<L: Live>(
    Extract(state): Extract<Arc<State<L>>>,
    request: Result<Json<ClearRequest>, JsonRejection>,
) -> Result<Json<ClearResponse>, Refusal> {
    let Json(request) =
        request.map_err(|error| Refusal::bad_request("bad request", error.body_text()))?;
    let filter = parse(&request.filter)?;
    filter.of_clear().map_err(|error| Refusal::bad_request("bad filter", error))?;
    blocking(move || {
        let mut meant = Vec::new();
        walk(&state, &filter, |view, _| meant.push((view.record(), view.incarnation())));
        if meant.is_empty() {
            names_something(&state, &filter)?;
        }
        let mut cleared = 0;
        let mut pace = Pace::new();
        for (record, incarnation) in meant {
            pace.keep(|| state.live.events_pile_up(), std::thread::sleep);
            let ended = state.live.clear(record, incarnation).map_err(Refusal::kernel)?;
            cleared += u64::from(ended);
        }
        Ok(Json(ClearResponse { cleared }))
    })
    .await?
}

/// Ends no more sessions than their records are read. A reader that does not go on holds up
/// nobody for good: then records are lost, and counted.
struct Pace {
    /// How much longer the reader is waited for until it catches up.
    patience: Duration,
}

impl Pace {
    /// How long the reader has before it is looked at again.
    const NAP: Duration = Duration::from_millis(1);

    /// How long a reader may take to catch up once.
    const PATIENCE: Duration = Duration::from_secs(10);

    const fn new() -> Self {
        Self { patience: Self::PATIENCE }
    }

    fn keep(&mut self, piles_up: impl Fn() -> bool, sleep: impl Fn(Duration)) {
        while !self.patience.is_zero() && piles_up() {
            sleep(Self::NAP);
            self.patience = self.patience.saturating_sub(Self::NAP);
        }
        // One that did not go on is not waited for again.
        if !self.patience.is_zero() {
            self.patience = Self::PATIENCE;
        }
    }
}

/// Whether the rule and the domain of a filter exist. Asked only when it held for nothing: sessions
/// keep the names of rules and the numbers of domains that the configuration no longer has.
fn names_something<L: Live>(state: &State<L>, filter: &Filter) -> Result<(), Refusal> {
    let config = state.in_force().config;
    if let Some(rule) = &filter.rule {
        let is_it =
            |document: &Document| matches!(document, Document::Rule(_)) && document.name() == rule;
        if !config.documents.iter().any(is_it) {
            let detail = format!("there is no rule `{rule}`; `sluicectl rules` shows all");
            return Err(Refusal::bad_request("no such rule", detail));
        }
    }
    match &filter.domain {
        Some(domain) => domain_number(&state.directories.current(), domain).map(drop),
        None => Ok(()),
    }
}

/// Every session that a filter holds for, with the names there are.
fn walk<L: Live>(state: &State<L>, filter: &Filter, mut each: impl FnMut(&SessionView, &Book)) {
    let tables = &*state.live;
    let book = state.directories.book();
    for view in sessions(tables, 0..all_slots(tables), tables.now()) {
        if filter.wants(!view.lives()) && holds(filter, &view.told, &book) {
            each(&view, &book);
        }
    }
}

/// [`Filter::matches`] on numbers, but for the state: a million sessions are not put into words to show
/// ten.
fn holds(filter: &Filter, told: &Event4, book: &Book) -> bool {
    let (names, then) = (book.newest(), book.of(told.generation));
    let inside = tuple(told);
    let outside = outside_tuple(told);
    let ends = [inside.source, inside.destination, outside.source, outside.destination];
    let within = |prefix: api::value::Prefix, end: SocketAddr| prefix.net().contains(&end.ip());
    filter.src.is_none_or(|prefix| within(prefix, inside.source))
        && filter.dst.is_none_or(|prefix| {
            within(prefix, inside.destination) || within(prefix, outside.destination)
        })
        && filter.port.is_none_or(|port| ends.iter().any(|end| end.port() == port))
        && filter.proto.is_none_or(|protocol| protocol.0 == told.protocol)
        && filter.outside.is_none_or(|address| outside.source.ip() == address)
        && filter.id.is_none_or(|id| id.0 == told.session)
        && filter
            .rule
            .as_ref()
            .is_none_or(|rule| names.rule(told.rule).is_some_and(|name| *name == **rule))
        && filter.domain.as_ref().is_none_or(|domain| {
            *then.domain(told.domain) == **domain
                || *then.domain(told.destination_domain) == **domain
        })
}

fn tuple(told: &Event4) -> Tuple {
    Tuple {
        source: socket(told.source, told.source_port),
        destination: socket(told.destination, told.destination_port),
    }
}

fn outside_tuple(told: &Event4) -> Tuple {
    Tuple {
        source: socket(told.outside, told.outside_port),
        destination: socket(told.outside_destination, told.outside_destination_port),
    }
}

/// What it takes to put a session into words.
pub(super) struct Show {
    tick: Duration,
    clock: u64,
}

impl Show {
    pub(super) fn now<L: Live>(tables: &L) -> Self {
        Self { tick: tables.tick_length(), clock: tables.clock() }
    }

    pub(super) fn session(&self, view: &SessionView, book: &Book) -> Session {
        let told = &view.told;
        let (names, then) = (book.newest(), book.of(told.generation));
        let object = |id: u32, name: Option<Arc<str>>| {
            (id != 0).then(|| ObjectRef { id, name: name.map(|name| name.to_string()) })
        };
        let party = |domain, address: [u8; 4], identity| {
            let owner = book.owner(domain, address.into(), identity, told.began);
            let groups = names.groups(identity);
            Party {
                endpoint: owner.map(|owner| owner.name.to_string()),
                groups: groups.map(|groups| groups.iter().map(ToString::to_string).collect()),
                identity,
            }
        };
        let attachment = |number| then.attachment(number).map_or("-".into(), |n| n.to_string());
        let seconds = |ticks| span(ticks, self.tick).as_secs();
        let traffic = |direction: usize| Traffic {
            packets: told.packets[direction],
            bytes: told.bytes[direction],
            tcp_flags: (told.protocol == TCP).then_some(TcpFlags(told.tcp_flags[direction])),
        };
        Session {
            id: SessionId(told.session),
            protocol: Protocol(told.protocol),
            inside: tuple(told),
            outside: outside_tuple(told),
            domain: then.domain(told.domain).to_string(),
            destination_domain: then.domain(told.destination_domain).to_string(),
            ingress: attachment(told.ingress),
            egress: attachment(told.egress),
            source: party(told.domain, told.source, told.source_identity),
            destination: party(
                told.destination_domain,
                told.destination,
                told.destination_identity,
            ),
            rule: object(told.rule, names.rule(told.rule)),
            would_match: object(told.would_match, names.rule(told.would_match)),
            snat_policy: object(told.snat_policy, names.snat(told.snat_policy)),
            mark: (told.mark != 0).then_some(told.mark),
            phase: phase(view.class),
            original: traffic(0),
            reply: traffic(1),
            age: self.clock.saturating_sub(told.began) / 1_000_000_000,
            idle: seconds(view.idle()),
            expires_in: seconds(view.expires_in),
            generation: told.generation,
        }
    }
}

const fn phase(class: Class) -> Phase {
    match class {
        Class::Udp => Phase::Udp,
        Class::Icmp => Phase::Icmp,
        Class::TcpOpening => Phase::TcpOpening,
        Class::TcpEstablished => Phase::TcpEstablished,
        Class::TcpClosing => Phase::TcpClosing,
        Class::TcpClosed => Phase::TcpClosed,
        Class::TcpReset => Phase::TcpReset,
        Class::Resting => Phase::Resting,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::testing::{self, TWO_CLUSTERS};
    use proptest::prelude::*;
    use xdp_abi::session::Class;

    fn shown(told: Event4, book: &Book) -> Session {
        let view = SessionView { told, class: Class::Udp, log: 0, expires_in: 0, lease: None };
        let show = Show { tick: Duration::from_millis(62), clock: 0 };
        show.session(&view, book)
    }

    #[test]
    fn whoever_ends_many_sessions_waits_for_the_reader_of_their_records_but_not_for_ever() {
        let slept = std::cell::Cell::new(0u32);
        let sleep = |_| slept.set(slept.get() + 1);
        let mut pace = Pace::new();
        pace.keep(|| false, sleep);
        assert_eq!(slept.get(), 0);
        pace.keep(|| slept.get() < 7, sleep);
        assert_eq!(slept.get(), 7, "until the reader has caught up");
        for _ in 0..2 {
            slept.set(0);
            pace.keep(|| slept.get() < 6_000, sleep);
            assert_eq!(slept.get(), 6_000, "also one that takes long, again and again");
        }
        slept.set(0);
        pace.keep(|| true, sleep);
        assert_eq!(slept.get(), 10_000, "ten seconds for one that stands still");
        pace.keep(|| true, sleep);
        assert_eq!(slept.get(), 10_000);
    }

    proptest! {
        #[test]
        fn filtering_numbers_is_filtering_sessions(
            addresses in proptest::collection::vec(0u8..4, 4),
            ports in proptest::collection::vec(80u16..84, 4),
            (protocol, rule) in (prop_oneof![Just(6u8), Just(17), Just(1)], 0usize..3),
            (domain, towards) in (0u16..4, 0u16..4),
            terms in proptest::collection::vec(
                prop_oneof![
                    (0u8..4).prop_map(|n| format!("src=10.0.0.{n}")),
                    (0u8..2).prop_map(|n| format!("dst=10.0.0.{}/31", 2 * n)),
                    (80u16..84).prop_map(|n| format!("port={n}")),
                    Just("proto=tcp".to_owned()),
                    Just("rule=web".to_owned()),
                    Just("domain=red".to_owned()),
                    Just("domain=3".to_owned()),
                    (0u8..4).prop_map(|n| format!("outside=10.0.0.{n}")),
                    (0u64..2).prop_map(|n| format!("id={n}")),
                ],
                0..3,
            ),
            session in 0u64..2,
        ) {
            let scene = testing::scene(TWO_CLUSTERS);
            let names = scene.book(1);
            let rules = [0, scene.config.image.rules[1].id.0, 12345];
            let address = |n: usize| [10, 0, 0, addresses[n]];
            let port = |n: usize| ports[n].to_be_bytes();
            let told = Event4 {
                protocol, domain, session, destination_domain: towards, rule: rules[rule],
                source: address(0), destination: address(1),
                outside: address(2), outside_destination: address(3),
                source_port: port(0), destination_port: port(1),
                outside_port: port(2), outside_destination_port: port(3),
                ..Event4::default()
            };
            // A key that stands twice is no filter.
            if let Ok(filter) = terms.join(" ").parse::<Filter>() {
                let session = shown(told, &names);
                prop_assert_eq!(holds(&filter, &told, &names), filter.matches(&session));
            }
        }
    }
}
