//! What would become of a packet, step by step.
//!
//! The core's own functions are asked over the live tables, in the order in which the core asks
//! them (`xdp::decide`), and every answer is put into a sentence. Nothing is changed: no session
//! is opened, no rule is counted. A property test sends the packet and compares.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use api::explain::{ExplainRequest, Explanation, Outcome, Step};
use api::session::{ObjectRef, SessionId};
use axum::Json;
use axum::extract::State as Extract;
use axum::extract::rejection::JsonRejection;
use smartgroups::Conflict;
use xdp::address::{Address, Entry, Key, V4};
use xdp::arrival::is_own;
use xdp::guard;
use xdp::packet::{ICMP, TCP, UDP};
use xdp::policy::{Judgement, judge, parties};
use xdp::session::{halves, pair, seems_expired};
use xdp::snat::{FlowFacts, matching, paired};
use xdp::stamp::is_current;
use xdp::table::find;
use xdp::tables::{Route, Tables, is_non_routable};
use xdp_abi::config::PolicyWord;
use xdp_abi::forward::{ATTACHED, Attachment, port};
use xdp_abi::policy::{ACTION_PERMIT, ACTION_REJECT, IdentityRef, Snat};
use xdp_abi::port::PairKey4;
use xdp_abi::reason::Reason;
use xdp_abi::session::Class;

use super::problem::{Refusal, blocking, domain_number};
use super::state::State;
use crate::flows::census::ports;
use crate::flows::{Directory, Live, SessionView};

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
        let used = |pair: &PairKey4| census.pairs.get(pair).copied().unwrap_or(0);
        explain(tables, &state.directories.current(), tables.now(), &used, &request).map(Json)
    })
    .await?
}

/// Explains what the tables would do at tick `now`. `used` says how many ports are lent of a pair
/// of outside address and destination.
///
/// # Errors
/// The request names a domain that does not exist, or mixes address families.
pub fn explain<T: Tables<A = V4>>(
    tables: &T,
    names: &Directory,
    now: u32,
    used: &dyn Fn(&PairKey4) -> u32,
    request: &ExplainRequest,
) -> Result<Explanation, Refusal> {
    let domain = domain_number(names, &request.domain)?;
    let policy = PolicyWord(tables.config().policy.load());
    let mut told = Told { tables, names, policy, steps: Vec::new(), rule: None };
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
        (IpAddr::V6(_), IpAddr::V6(_)) => {
            let text = "IPv6 in transit is not forwarded".to_owned();
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
    policy: PolicyWord,
    steps: Vec<Step>,
    rule: Option<ObjectRef>,
}

/// Where the packet goes.
struct Exit {
    number: u16,
    attachment: Attachment,
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

    fn packet(
        &mut self,
        key: &Key<V4>,
        port_is_known: bool,
        now: u32,
        used: &dyn Fn(&PairKey4) -> u32,
    ) -> End {
        let Some((_, ingress)) = self.arrives(key) else {
            if is_own(self.tables, key.destination) {
                return self.own(key);
            }
            let text = format!(
                "no attachment of domain {} has {} among its sources",
                self.names.domain(key.domain),
                Ipv4Addr::from(key.source.0),
            );
            return self.drop("attachment", Reason::SpoofedSource, text);
        };
        if let Some(end) = self.session(key, port_is_known, now) {
            return end;
        }
        let destination = Ipv4Addr::from(key.destination.0);
        if is_own(self.tables, key.destination) {
            return self.own(key);
        }
        if ![TCP, UDP, ICMP].contains(&key.protocol) {
            let text = format!("protocol {} is not translated and not forwarded", key.protocol);
            return self.drop("route", Reason::Protocol, text);
        }
        if key.source.is_martian() || key.destination.is_martian() {
            let text = "no router passes such a source or destination on".to_owned();
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
        let exit = match self.exit(&ingress, key) {
            Ok(exit) => exit,
            Err(end) => return end,
        };
        let judgement = match self.judged(key, &exit) {
            Ok(judgement) => judgement,
            Err(end) => return end,
        };
        self.translated(key, port_is_known, &exit, &judgement, used)
    }

    fn own(&mut self, key: &Key<V4>) -> End {
        let destination = Ipv4Addr::from(key.destination.0);
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

    /// What a live session says, if there is one that goes on.
    fn session(&mut self, key: &Key<V4>, port_is_known: bool, now: u32) -> Option<End> {
        if !port_is_known {
            let text = "not looked for, because no source port is stated".to_owned();
            self.step("session", text);
            return None;
        }
        let view = self.view_of(key, now);
        let Some((view, is_reply)) = view else {
            self.step("session", "there is none: a flow would begin".to_owned());
            return None;
        };
        let id = SessionId(view.told.session);
        let stamp = self.tables.slot(view.slot).map(|entry| entry.load_stamp())?;
        if !is_current(self.tables, self.policy, stamp) {
            let text = format!("session {id} was judged before the policy or an identity changed");
            self.step("session", text);
            return None;
        }
        self.rule = self.named(view.told.rule);
        let direction = if is_reply { "as its answer" } else { "with it" };
        let text = format!(
            "session {id} goes on, and the packet {direction}; judged under generation {}",
            view.told.generation
        );
        let same = (view.told.source, view.told.source_port)
            == (view.told.outside, view.told.outside_port);
        let outcome = if same { Outcome::Forward } else { Outcome::Translate };
        Some(self.end("session", text, outcome, None))
    }

    fn view_of(&self, key: &Key<V4>, now: u32) -> Option<(Slotted, bool)> {
        let found = find(self.tables, &V4::pack(key))?;
        let link = self.tables.slot(found.index)?.load_link();
        let slot = halves(self.tables.record(link.record())?).forward;
        let view = SessionView::read(self.tables, slot, now)?;
        let over = found.meta.class() == Class::Resting
            || seems_expired(self.tables.config(), found.meta, now) && view.expires_in == 0;
        (!over).then_some((Slotted { told: view.told, slot: found.index }, link.is_reply()))
    }

    /// The way out, as the kernel would route it.
    fn exit(&mut self, ingress: &Attachment, key: &Key<V4>) -> Result<Exit, End> {
        let destination = Ipv4Addr::from(key.destination.0);
        let route = self.tables.route(ingress.ifindex, key.source, key.destination);
        let (ifindex, gateway) = match route {
            Route::Via { ifindex, gateway, .. } => (ifindex, Ipv4Addr::from(gateway)),
            Route::Local => {
                let text = format!("the kernel takes {destination} for itself");
                return Err(self.end("route", text, Outcome::Local, None));
            }
            Route::Unreachable => {
                let text = format!("the kernel knows no way to {destination}");
                return Err(self.drop("route", Reason::NoRoute, text));
            }
            Route::Failed => {
                let text = format!("the kernel does not say how {destination} is reached");
                return Err(self.drop("route", Reason::HelperFailed, text));
            }
        };
        let link = self.tables.link(ifindex);
        let number = link.and_then(|link| {
            self.tables.attachment_towards(port(link.parent, link.vlan), key.destination)
        });
        let exit = number.and_then(|number| Some((number, self.tables.attachment(number)?)));
        let Some((number, attachment)) = exit else {
            let text = format!(
                "the kernel routes to {gateway} by interface {ifindex}, where no attachment has \
                 {destination} ahead"
            );
            return Err(self.drop("route", Reason::NoEgress, text));
        };
        let by = if gateway == destination {
            "directly".to_owned()
        } else {
            format!("through {gateway}")
        };
        let text = format!(
            "it leaves {by} by {}, into domain {}",
            self.attachment_name(number),
            self.names.domain(attachment.domain),
        );
        self.step("route", text);
        Ok(Exit { number, attachment })
    }

    fn party(&mut self, stage: &str, domain: u16, address: V4, identity: IdentityRef) {
        let address = Ipv4Addr::from(address.0);
        let owner = match self.names.conflict(domain, address) {
            Some(Conflict { kind, claimants, .. }) => {
                format!("contested by the {kind}s {}", claimants.join(" and "))
            }
            None => self.names.owner(domain, address).map_or_else(
                || "no known endpoint".to_owned(),
                |owner| format!("{} {}", owner.kind, owner.name),
            ),
        };
        let groups = match &self.names.groups(identity.id)[..] {
            [] => "in no group but anywhere".to_owned(),
            groups => format!("in {}", groups.join(", ")),
        };
        let doubted = match &self.names.doubted(identity.id)[..] {
            [] => String::new(),
            doubted => format!(
                "; not all of them are in {}, so only rules that deny or reject count it in",
                doubted.join(", ")
            ),
        };
        let domain = self.names.domain(domain);
        let text = format!("{address} in domain {domain} is {owner}, {groups}{doubted}");
        self.step(stage, text);
    }

    fn named(&self, rule: u32) -> Option<ObjectRef> {
        let name = self.names.rule(rule).map(|name| name.to_string());
        (rule != 0).then_some(ObjectRef { id: rule, name })
    }

    /// What the rules say.
    fn judged(&mut self, key: &Key<V4>, exit: &Exit) -> Result<Judgement, End> {
        let towards = exit.attachment.domain;
        let mut judgement = parties(self.tables, self.policy, key, towards);
        judge(self.tables, self.policy, key, 0, &mut judgement);
        self.party("source", key.domain, key.source, judgement.source);
        self.party("destination", towards, key.destination, judgement.destination);
        if let Some(watched) = self.named(judgement.would_match) {
            self.step("rule", format!("{watched} would match, but it is only watched"));
        }
        self.rule = self.named(judgement.rule);
        let who = match &self.rule {
            Some(rule) => format!("rule {rule}"),
            None => "no rule matches, and the default action".to_owned(),
        };
        if judgement.action == ACTION_PERMIT {
            let mark = match judgement.mark {
                0 => String::new(),
                mark => format!(" with mark {mark}"),
            };
            self.step("rule", format!("{who} permits it{mark}"));
        } else {
            let rejects = judgement.action == ACTION_REJECT;
            let reason = match (judgement.rule, rejects) {
                (0, _) => Reason::DefaultDenied,
                (_, true) => Reason::RuleRejected,
                (_, false) => Reason::RuleDenied,
            };
            let (verb, outcome) =
                if rejects { ("rejects", Outcome::Reject) } else { ("denies", Outcome::Drop) };
            return Err(self.end("rule", format!("{who} {verb} it"), outcome, Some(reason)));
        }
        if is_non_routable(self.tables.config(), key.destination) && towards != key.domain {
            let text = "a non-routable destination of another domain: its answers could only leak";
            return Err(self.drop("guard", Reason::NonRoutableDestination, text.to_owned()));
        }
        Ok(judgement)
    }

    /// Says what else the translation could be, where it depends on the port that nobody stated.
    fn by_source_port(&mut self, flow: &FlowFacts) {
        let ranges = by_port(self.tables, self.policy, flow);
        if ranges.len() < 2 {
            return;
        }
        let lasts = ranges.iter().skip(1).map(|(first, _)| first - 1).chain([u16::MAX]);
        let each = ranges.iter().zip(lasts).map(|((first, chosen), last)| {
            let name = match chosen {
                Some(chosen) => self.names.snat(chosen.id).unwrap_or_else(|| "unnamed".into()),
                None => "no policy".into(),
            };
            if *first == last {
                format!("{first} {name}")
            } else {
                format!("{first}-{last} {name}")
            }
        });
        let text = format!(
            "no source port is stated, and the policy depends on it ({}): {} is assumed",
            each.collect::<Vec<_>>().join(", "),
            flow.source_port,
        );
        self.step("snat", text);
    }

    /// The translation, and the guard behind it.
    fn translated(
        &mut self,
        key: &Key<V4>,
        port_is_known: bool,
        exit: &Exit,
        judgement: &Judgement,
        used: &dyn Fn(&PairKey4) -> u32,
    ) -> End {
        let flow = FlowFacts {
            source: judgement.source.index,
            destination: judgement.destination.index,
            source_port: u16::from_be_bytes(key.source_port),
            destination_port: u16::from_be_bytes(key.destination_port),
            protocol: key.protocol,
            mark: judgement.mark,
            interface_class: exit.attachment.interface_class,
            connection_class: exit.attachment.connection_class,
        };
        if !port_is_known {
            self.by_source_port(&flow);
        }
        let chosen = matching(self.tables, self.policy, &flow);
        let name = chosen.and_then(|chosen| self.names.snat(chosen.id));
        let mut source = key.source;
        match chosen {
            Some(chosen) if chosen.addresses > 0 => {
                let bank = self.policy.bank();
                let Some(outside) = paired(self.tables, bank, &chosen, key.domain, key.source)
                else {
                    let text = "its policy has no outside address in the tables".to_owned();
                    return self.drop("snat", Reason::HelperFailed, text);
                };
                source = V4(outside.address);
                let lendable = ports(self.tables, std::iter::once(outside.lendable));
                let reply = Key { destination: source, ..key.reversed(exit.attachment.domain) };
                let lent = used(&pair(&reply));
                let text = format!(
                    "{} gives it {}; {lent} of {lendable} ports towards this destination are lent",
                    name.as_deref().unwrap_or("its policy"),
                    Ipv4Addr::from(source.0),
                );
                if lent >= lendable {
                    return self.drop("snat", Reason::PortsExhausted, text);
                }
                self.step("snat", text);
            }
            Some(_) => {
                let name = name.as_deref().unwrap_or("its policy");
                self.step("snat", format!("{name} is an exception: it keeps its source"));
            }
            None => self.step("snat", "no policy matches: it keeps its source".to_owned()),
        }
        let way_out = (exit.number, &exit.attachment);
        if guard::wants_translation(self.tables, key.domain, source, way_out) {
            let text = format!(
                "{} is non-routable and {} does not carry it",
                Ipv4Addr::from(source.0),
                self.attachment_name(exit.number),
            );
            return self.drop("guard", Reason::NoSnatPolicy, text);
        }
        let (outcome, text) = if source == key.source {
            (Outcome::Forward, "it may leave as it is")
        } else {
            (Outcome::Translate, "its new source may leave there")
        };
        self.end("guard", text.to_owned(), outcome, None)
    }
}

/// Which policy each source port would get: the first port of every range and what it gets, in
/// ascending order, neighbours always different.
fn by_port<T: Tables>(
    tables: &T,
    policy: PolicyWord,
    flow: &FlowFacts,
) -> Vec<(u16, Option<Snat>)> {
    // What is chosen changes only where a policy's range begins, or one past its end.
    let of = |bit| tables.snat(policy.bank(), bit);
    let borders = (0..policy.snat_policies()).filter_map(of).flat_map(|snat| {
        let [first, last] = snat.source_ports;
        [Some(first), last.checked_add(1)].into_iter().flatten()
    });
    let firsts: BTreeSet<u16> = borders.chain([0]).collect();
    let mut ranges: Vec<(u16, Option<Snat>)> = Vec::new();
    for first in firsts {
        let chosen = matching(tables, policy, &FlowFacts { source_port: first, ..*flow });
        let id = |chosen: Option<Snat>| chosen.map(|chosen| chosen.id);
        if ranges.last().is_none_or(|(_, before)| id(*before) != id(chosen)) {
            ranges.push((first, chosen));
        }
    }
    ranges
}

/// A session and the slot of the direction that was asked for.
struct Slotted {
    told: xdp_abi::event::Event4,
    slot: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::testing::{self, RIVAL, Scene, TWO_CLUSTERS};
    use proptest::prelude::*;
    use xdp::pipeline::Fate;

    fn ask(scene: &Scene, from: &str, to: &str, port: Option<u16>) -> Explanation {
        let from = port.map_or_else(|| from.to_owned(), |port| format!("{from}:{port}"));
        let request = ExplainRequest::parse(&from, to).unwrap();
        explain(&*scene.memory, &scene.directory(1), scene.now, &|_| 0, &request).unwrap()
    }

    fn stages(explanation: &Explanation) -> Vec<&str> {
        explanation.steps.iter().map(|step| step.stage.as_str()).collect()
    }

    #[test]
    fn a_permitted_flow_is_told_to_its_end() {
        let scene = testing::scene(TWO_CLUSTERS);
        let told = ask(&scene, "red:100.64.1.10", "198.51.100.9:443/tcp", None);
        assert_eq!((told.outcome, told.reason.as_deref()), (Outcome::Translate, None));
        assert_eq!(told.rule.as_ref().unwrap().name.as_deref(), Some("web"));
        let texts: Vec<String> =
            told.steps.iter().map(|step| format!("{}: {}", step.stage, step.text)).collect();
        let expected = [
            "attachment: it comes in by red-pods",
            "session: not looked for, because no source port is stated",
            "route: it leaves through 10.255.4.254 by internet, into domain fabric",
            "source: 100.64.1.10 in domain red is pod shop/api-1, in ",
            "destination: 198.51.100.9 in domain fabric is no known endpoint, in ",
            "rule: watch-web would match, but it is only watched",
            "rule: rule web permits it",
            "snat: pods-out gives it 203.0.113.1; 0 of 64512 ports towards this destination",
            "guard: its new source may leave there",
        ];
        assert_eq!(texts.len(), expected.len(), "{texts:#?}");
        for (text, expected) in texts.iter().zip(expected) {
            assert!(text.starts_with(expected), "{text}\n{expected}");
        }
        let decisive: Vec<bool> = told.steps.iter().map(|step| step.decisive).collect();
        assert!(decisive.iter().rev().skip(1).all(|one| !one) && decisive[8]);
    }

    #[test]
    fn every_refusal_says_where_and_why() {
        let scene = testing::scene(TWO_CLUSTERS);
        for (from, to, outcome, reason, stage) in [
            ("red:100.64.1.10", "198.51.100.9:22/tcp", Outcome::Drop, "rule_denied", "rule"),
            ("red:100.64.1.10", "198.51.100.9:23/tcp", Outcome::Reject, "rule_rejected", "rule"),
            ("red:100.64.1.10", "198.51.100.9:25/tcp", Outcome::Drop, "default_denied", "rule"),
            ("red:100.64.1.10", "192.0.2.1:443/tcp", Outcome::Drop, "no_snat_policy", "guard"),
            (
                "red:192.0.2.1",
                "198.51.100.9:443/tcp",
                Outcome::Drop,
                "spoofed_source",
                "attachment",
            ),
            ("red:100.64.1.10", "203.0.113.1:443/tcp", Outcome::Drop, "no_session", "route"),
            ("red:100.64.1.10", "198.51.100.9/47", Outcome::Drop, "protocol", "route"),
            ("red:100.64.1.10", "127.0.0.1:443/tcp", Outcome::Drop, "martian", "route"),
            (
                "fabric:2001:db8::1",
                "[2001:db8::2]:443/tcp",
                Outcome::Drop,
                "ipv6_transit",
                "attachment",
            ),
        ] {
            let told = ask(&scene, from, to, None);
            assert_eq!((told.outcome, told.reason.as_deref()), (outcome, Some(reason)), "{to}");
            assert_eq!(stages(&told).last(), Some(&stage), "{to}");
        }
        let local = ask(&scene, "red:100.64.1.10", "10.255.1.1:22/tcp", None);
        assert_eq!((local.outcome, local.reason), (Outcome::Local, None));
    }

    #[test]
    fn a_live_session_answers_for_both_directions() {
        let mut scene = testing::scene(TWO_CLUSTERS);
        scene.open_tcp("100.64.1.10:40000", "198.51.100.9:443");
        let told = ask(&scene, "red:100.64.1.10", "198.51.100.9:443/tcp", Some(40_000));
        assert_eq!(
            (told.outcome, stages(&told)),
            (Outcome::Translate, vec!["attachment", "session"])
        );
        assert_eq!(told.rule.unwrap().name.as_deref(), Some("web"));
        let outside = scene.sessions()[0].told.outside_port;
        let back = format!("203.0.113.1:{}/tcp", u16::from_be_bytes(outside));
        let told = ask(&scene, "fabric:198.51.100.9", &back, Some(443));
        assert_eq!(told.outcome, Outcome::Translate);
        assert!(told.steps[1].text.contains("as its answer"), "{}", told.steps[1].text);
        // Over: another packet would open it anew.
        scene.pass(7_441 * testing::SECOND);
        let told = ask(&scene, "red:100.64.1.10", "198.51.100.9:443/tcp", Some(40_000));
        assert_eq!(told.outcome, Outcome::Translate);
        assert!(told.steps[1].text.contains("a flow would begin"), "{}", told.steps[1].text);
    }

    #[test]
    fn a_full_range_is_said_before_it_is_met() {
        let scene = testing::scene(TWO_CLUSTERS);
        let request = ExplainRequest::parse("red:100.64.1.10", "10.20.0.1:53/udp").unwrap();
        let names = scene.directory(1);
        for (lent, expected) in [(99, None), (100, Some("snat_ports_exhausted"))] {
            let told = explain(&*scene.memory, &names, scene.now, &|_| lent, &request).unwrap();
            assert_eq!(told.reason.as_deref(), expected, "{lent} of 100");
        }
    }

    #[test]
    fn a_contested_address_is_told_with_its_claimants_and_the_groups_in_doubt() {
        let scene = testing::scene(&format!("{TWO_CLUSTERS}{RIVAL}"));
        let source = |from: &str| {
            let told = ask(&scene, from, "198.51.100.9:443/tcp", None);
            let mut steps = told.steps.into_iter().filter(|step| step.stage == "source");
            steps.next().unwrap().text
        };
        assert_eq!(
            source("red:100.64.1.10"),
            "100.64.1.10 in domain red is contested by the pods shop/api-1 and shop/api-9, in shop, \
             anywhere; not all of them are in api, ads, so only rules that deny or reject \
             count it in"
        );
        assert_eq!(
            source("blue:100.64.1.10"),
            "100.64.1.10 in domain blue is pod shop/api-2, in api, shop, anywhere"
        );
    }

    /// Of two policies for the same destination the first is for some source ports only.
    fn by_ports() -> Scene {
        let low = "  - kind: SnatPolicy
    name: low-ports
    spec: { order: 5, src_cidr: 100.64.0.0/16, dst_cidr: 198.51.100.0/25, protocol: tcp, \
                   src_port: 1024-2047, interface: eth4, snat_ips: [203.0.113.2] }
";
        testing::scene(&format!("{}\n{low}", TWO_CLUSTERS.trim_end()))
    }

    #[test]
    fn a_translation_that_depends_on_the_source_port_says_so_if_none_is_stated() {
        let scene = by_ports();
        let snat = |to: &str, port| {
            let told = ask(&scene, "red:100.64.1.10", to, port);
            let steps = told.steps.into_iter().filter(|step| step.stage == "snat");
            steps.map(|step| step.text).collect::<Vec<_>>()
        };
        let to = "198.51.100.9:443/tcp";
        for (port, expected) in [
            (1023, "pods-out gives it 203.0.113.1"),
            (1024, "low-ports gives it 203.0.113.2"),
            (2047, "low-ports gives it 203.0.113.2"),
            (2048, "pods-out gives it 203.0.113.1"),
        ] {
            let texts = snat(to, Some(port));
            assert!(texts.len() == 1 && texts[0].starts_with(expected), "{port}: {texts:?}");
        }
        let texts = snat(to, None);
        assert_eq!(
            texts[0],
            "no source port is stated, and the policy depends on it (0-1023 pods-out, \
             1024-2047 low-ports, 2048-65535 pods-out): 49152 is assumed"
        );
        assert!(texts[1].starts_with("pods-out gives it 203.0.113.1"), "{texts:?}");
        // To the other half of the network the port makes no difference, and nothing is said of it.
        assert_eq!(snat("198.51.100.129:443/tcp", None).len(), 1);
    }

    #[test]
    fn a_wrong_question_is_refused_with_what_would_be_right() {
        let scene = testing::scene(TWO_CLUSTERS);
        for (from, to, expected) in [
            ("green:100.64.1.10", "198.51.100.9:443/tcp", "there are fabric, red, blue"),
            ("red:100.64.1.10", "[2001:db8::2]:443/tcp", "give both as IPv4"),
        ] {
            let request = ExplainRequest::parse(from, to).unwrap();
            let refused = explain(&*scene.memory, &scene.directory(1), 0, &|_| 0, &request);
            let detail = refused.unwrap_err().0.detail.unwrap();
            assert!(detail.contains(expected), "{detail}");
        }
    }

    proptest! {
        #[test]
        fn ranges_of_source_ports_are_what_each_port_gets(
            policies in proptest::collection::vec((1u16..12, 1u16..12, any::<bool>()), 0..5),
            port in 0u16..14,
        ) {
            let documents: String = policies.iter().zip(0..).map(|((one, other, any), n)| {
                let (first, last) = (one.min(other), one.max(other));
                let ports = if *any { String::new() } else {
                    format!("protocol: tcp, src_port: \"{first}-{last}\", ")
                };
                format!(
                    "  - kind: SnatPolicy\n    name: p{n}\n    spec: {{ order: {n}, {ports}\
                     src_cidr: 100.64.0.0/16, interface: eth4, snat_ips: [203.0.113.{}] }}\n",
                    n + 10
                )
            }).collect();
            let scene = testing::scene(&format!("{}\n{documents}", TWO_CLUSTERS.trim_end()));
            let (tables, policy) = (&*scene.memory, PolicyWord(scene.memory.config().policy.load()));
            let key = Key {
                source: V4([100, 64, 1, 10]),
                destination: V4([198, 51, 100, 9]),
                source_port: port.to_be_bytes(),
                destination_port: 443u16.to_be_bytes(),
                domain: 1,
                protocol: TCP,
            };
            let parties = parties(tables, policy, &key, 0);
            let flow = FlowFacts {
                source: parties.source.index,
                destination: parties.destination.index,
                source_port: port,
                destination_port: 443,
                protocol: TCP,
                mark: 0,
                interface_class: 4,
                connection_class: 0,
            };
            let ranges = by_port(tables, policy, &flow);
            let said = ranges.iter().rfind(|(first, _)| *first <= port).unwrap().1;
            let id = |chosen: Option<Snat>| chosen.map(|chosen| chosen.id);
            prop_assert_eq!(id(said), id(matching(tables, policy, &flow)));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_explained_is_what_happens(
            (ifindex, domain) in prop_oneof![Just((1, "red")), Just((2, "blue")), Just((4, "fabric"))],
            source in prop_oneof![Just("100.64.1.10"), Just("100.64.1.11"), Just("192.0.2.77"), Just("10.20.0.9")],
            destination in prop_oneof![
                Just("198.51.100.9"), Just("192.0.2.1"), Just("10.20.0.1"), Just("10.30.0.1"),
                Just("203.0.113.1"), Just("10.255.1.1"), Just("100.64.1.10"), Just("169.254.1.1"),
            ],
            port in prop_oneof![Just(22u16), Just(23), Just(25), Just(53), Just(443)],
            is_tcp in any::<bool>(),
        ) {
            let mut scene = testing::scene(TWO_CLUSTERS);
            let word = if is_tcp { "tcp" } else { "udp" };
            let to = format!("{destination}:{port}");
            let told = ask(&scene, &format!("{domain}:{source}"), &format!("{to}/{word}"), Some(40_000));
            let from = format!("{source}:40000");
            let frame = if is_tcp {
                testing::segment(&from, &to, xdp::tcp::SYN)
            } else {
                testing::datagram(&from, &to)
            };
            let happened = match scene.send(ifindex, frame) {
                Fate::Transmit(..) | Fate::Punt(_) => None,
                Fate::Pass => Some("pass"),
                Fate::Drop(reason) | Fate::Answered(reason) | Fate::Answer(reason, _) => Some(reason.name()),
            };
            let said = match told.outcome {
                Outcome::Forward | Outcome::Translate => None,
                Outcome::Local => Some("pass"),
                Outcome::Drop | Outcome::Reject => told.reason.as_deref(),
            };
            prop_assert_eq!(said, happened, "{:#?}", told.steps);
        }
    }
}
