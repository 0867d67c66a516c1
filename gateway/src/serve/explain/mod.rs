//! What would become of a packet, step by step.
//!
//! The core's own functions are asked over the live tables, in the order in which the core asks
//! them (`xdp::decide`), and every answer is put into a sentence. Nothing is changed: no session
//! is opened, no rule is counted. A property test sends the packet and compares.
//!
//! A live session is told by `session`; of a new flow `exit` tells the way, `rules` who may, and
//! `snat` what its source becomes.

mod exit;
mod rules;
mod session;
mod snat;

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use api::explain::{ExplainRequest, Explanation, Outcome, Step};
use api::session::ObjectRef;
use axum::Json;
use axum::extract::State as Extract;
use axum::extract::rejection::JsonRejection;
use xdp::address::{Address, Key, V4};
use xdp::arrival::{is_from_own, is_own, is_own6};
use xdp::packet::{ICMP, TCP, UDP};
use xdp::policy::{judge, parties};
use xdp::tables::{Tables, is_non_routable};
use xdp_abi::config::PolicyWord;
use xdp_abi::forward::{ATTACHED, Attachment, port};
use xdp_abi::reason::Reason;

use self::exit::NoWay;
use self::rules::Refused;
use super::problem::{Refusal, blocking, domain_number};
use super::route::interface_name;
use super::state::State;
use crate::flows::census::Stock;
use crate::flows::{Directory, Live};

/// How old the count of lent ports may be.
const FRESH: Duration = Duration::from_secs(5);
/// The source port of a packet that states none: the first of those that systems choose.
const SOME_PORT: u16 = 49_152;

pub(super) async fn route<L: Live>(
    Extract(state): Extract<Arc<State<L>>>,
    request: Result<Json<ExplainRequest>, JsonRejection>,
) -> Result<Json<Explanation>, Refusal> {
    let Json(request) =
        request.map_err(|error| Refusal::bad_request("bad request", error.body_text()))?;
    blocking(move || {
        let tables = &*state.live;
        let census = state.census.no_older_than(FRESH, tables, tables.now());
        let used = Used {
            ports: &|stock| census.lent.get(stock).copied().unwrap_or(0),
            sessions: census.live + census.resting,
        };
        let names = Names { directory: &state.directories.current(), interface: &interface_name };
        explain(tables, names, tables.now(), &used, &request).map(Json)
    })
    .await?
}

/// Names for the numbers of the tables.
#[derive(Clone, Copy)]
pub struct Names<'a> {
    /// For those of the configuration.
    pub directory: &'a Directory,
    /// The name of an interface of the kernel, by its index.
    pub interface: &'a dyn Fn(u32) -> Option<String>,
}

/// How much of what there is is in use.
#[derive(Clone, Copy)]
pub struct Used<'a> {
    /// How many ports of a stock are lent.
    pub ports: &'a dyn Fn(&Stock) -> u32,
    /// How many sessions there are.
    pub sessions: u64,
}

/// Explains what the tables would do at tick `now`.
///
/// # Errors
/// The request names a domain that does not exist, mixes address families, or has no port where
/// there is one.
pub fn explain<T: Tables<A = V4>>(
    tables: &T,
    Names { directory: names, interface }: Names<'_>,
    now: u32,
    used: &Used<'_>,
    request: &ExplainRequest,
) -> Result<Explanation, Refusal> {
    request.has_fitting_ports().map_err(|error| Refusal::bad_request("bad request", error))?;
    let domain = domain_number(names, &request.domain)?;
    let policy = PolicyWord(tables.config().policy.load());
    let mut told = Told { tables, names, interface, policy, steps: Vec::new(), rule: None };
    let end = match (request.source, request.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let key = Key {
                source: V4(source.octets()),
                destination: V4(destination.octets()),
                source_port: port_of(request).to_be_bytes(),
                destination_port: request.destination_port.unwrap_or(0).to_be_bytes(),
                domain,
                protocol: request.protocol.0,
            };
            told.packet(&key, request.source_port.is_some(), now, used)
        }
        (IpAddr::V6(_), IpAddr::V6(destination)) if is_own6(tables, &destination.octets()) => {
            told.local(destination.into())
        }
        (IpAddr::V6(_), IpAddr::V6(_)) => {
            let text =
                "IPv6 in transit is not forwarded, and the destination is not an address of \
                        the gateway"
                    .to_owned();
            told.drop("attachment", Reason::Ipv6Transit, text)
        }
        _ => {
            let detail = "source and destination are of different families; give both as IPv4";
            return Err(Refusal::bad_request("two families", detail));
        }
    };
    Ok(Explanation {
        outcome: end.outcome,
        reason: end.reason.map(|reason| reason.name().to_owned()),
        rule: told.rule,
        generation: policy.generation(),
        steps: told.steps,
    })
}

fn port_of(request: &ExplainRequest) -> u16 {
    let usual = if request.protocol.has_ports() { SOME_PORT } else { 0 };
    request.source_port.unwrap_or(usual)
}

/// How it ends.
struct End {
    outcome: Outcome,
    reason: Option<Reason>,
}

/// A story that is being told.
struct Told<'a, T> {
    tables: &'a T,
    names: &'a Directory,
    interface: &'a dyn Fn(u32) -> Option<String>,
    policy: PolicyWord,
    steps: Vec<Step>,
    rule: Option<ObjectRef>,
}

impl<T: Tables<A = V4>> Told<'_, T> {
    fn step(&mut self, stage: &str, text: String) {
        self.steps.push(Step { stage: stage.to_owned(), text, decisive: false });
    }

    fn end(&mut self, stage: &str, text: String, outcome: Outcome, reason: Option<Reason>) -> End {
        self.steps.push(Step { stage: stage.to_owned(), text, decisive: true });
        End { outcome, reason }
    }

    fn drop(&mut self, stage: &str, reason: Reason, text: String) -> End {
        self.end(stage, text, Outcome::Drop, Some(reason))
    }

    fn attachment_name(&self, number: u16) -> String {
        let name = self.names.attachment(number);
        name.map_or_else(|| format!("number {number}"), |name| name.to_string())
    }

    fn interface_name(&self, index: u32) -> String {
        (self.interface)(index).unwrap_or_else(|| format!("number {index}"))
    }

    fn packet(&mut self, key: &Key<V4>, port_is_known: bool, now: u32, used: &Used<'_>) -> End {
        let destination = Ipv4Addr::from(key.destination.0);
        let is_own = is_own(self.tables, key.destination);
        if ![TCP, UDP, ICMP].contains(&key.protocol) {
            if is_own {
                return self.local(destination.into());
            }
            let text = format!("protocol {} is not translated and not forwarded", key.protocol);
            return self.drop("protocol", Reason::Protocol, text);
        }
        let Some((number, ingress)) = self.arrives(key) else {
            if is_own {
                return self.local(destination.into());
            }
            let (domain, source) = (self.names.domain(key.domain), Ipv4Addr::from(key.source.0));
            let text = if key.domain == 0 && is_non_routable(self.tables.config(), key.source) {
                format!(
                    "no attachment of domain {domain} carries {source}, which is non-routable, or \
                     states a part of what is non-routable with it among its sources"
                )
            } else if self.tables.is_local(key.source) {
                format!(
                    "{source} is the gateway's own, and in domain {domain} nobody else's source"
                )
            } else {
                format!("no attachment of domain {domain} has {source} among its sources")
            };
            return self.drop("attachment", Reason::SpoofedSource, text);
        };
        if let Some(end) = self.session(key, port_is_known, (number, &ingress), now) {
            return end;
        }
        if is_own {
            return self.local(destination.into());
        }
        if key.source.is_martian() || key.destination.is_martian() {
            let text = "no router passes such a source or destination on".to_owned();
            return self.drop("route", Reason::Martian, text);
        }
        if is_from_own(self.tables, key.domain, key.source) {
            let source = Ipv4Addr::from(key.source.0);
            let text = format!("{source} is the gateway's own, and nobody else's source");
            return self.drop("route", Reason::Martian, text);
        }
        if self.policy.generation() == 0 {
            let text = "no policy has been published: all transit is refused".to_owned();
            return self.drop("rule", Reason::NoPolicy, text);
        }
        if self.tables.is_outside(self.policy.bank(), key.destination) {
            let text = format!(
                "{destination} is an outside address: nobody is behind it but sessions that were \
                 opened from inside"
            );
            return self.drop("route", Reason::NoSession, text);
        }
        let ahead = match self.exit(ingress.ifindex, key) {
            Ok(ahead) => ahead,
            Err(NoWay { reason, text }) => return self.drop("route", reason, text),
        };
        let towards = ahead.attachment.domain;
        let mut judgement = parties(self.tables, self.policy, key, towards);
        judge(self.tables, self.policy, key, 0, &mut judgement);
        if let Err(Refused { text, outcome, reason }) = self.judged(key, towards, &judgement) {
            return self.end("rule", text, outcome, Some(reason));
        }
        if is_non_routable(self.tables.config(), key.destination) && towards != key.domain {
            let text = "a non-routable destination of another domain: its answers could only leak";
            return self.drop("guard", Reason::NonRoutableDestination, text.to_owned());
        }
        self.translated(key, port_is_known, &ahead, &judgement, now, used)
    }

    fn local(&mut self, destination: IpAddr) -> End {
        let text = format!("{destination} is for the gateway itself: its kernel decides");
        self.end("route", text, Outcome::Local, None)
    }

    /// The attachments that such a packet may come in by.
    fn arrives(&mut self, key: &Key<V4>) -> Option<(u16, Attachment)> {
        let from = |number: u16| {
            let attachment = self.tables.attachment(number)?;
            let link = self.tables.link(attachment.ifindex)?;
            let found = self.tables.attachment_of(port(link.parent, link.vlan), key.source);
            let here = attachment.flags & ATTACHED != 0
                && attachment.domain == key.domain
                && found == Some(number);
            here.then_some((number, attachment))
        };
        let all: Vec<_> = self.names.attachments().filter_map(from).collect();
        let (first, rest) = all.split_first()?;
        let mut text = format!("it comes in by {}", self.attachment_name(first.0));
        for (number, _) in rest {
            let _ = write!(text, ", or by {}", self.attachment_name(*number));
        }
        self.step("attachment", text);
        Some(*first)
    }
}

#[cfg(test)]
mod tests;
