//! What the source of a new flow becomes, and whether it may leave so, put into words.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use api::explain::Outcome;
use xdp::address::{Key, V4};
use xdp::guard;
use xdp::policy::Judgement;
use xdp::session::pair;
use xdp::snat::{FlowFacts, matching, paired};
use xdp::tables::Tables;
use xdp_abi::config::PolicyWord;
use xdp_abi::policy::Snat;
use xdp_abi::reason::Reason;

use super::exit::Ahead;
use super::{End, Told, Used};
use crate::flows::census::{Stock, ports};
use crate::flows::session::room;

impl<T: Tables<A = V4>> Told<'_, T> {
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
    pub(super) fn translated(
        &mut self,
        key: &Key<V4>,
        port_is_known: bool,
        ahead: &Ahead,
        judgement: &Judgement,
        now: u32,
        used: &Used<'_>,
    ) -> End {
        let flow = FlowFacts {
            source: judgement.source.index,
            destination: judgement.destination.index,
            source_port: u16::from_be_bytes(key.source_port),
            destination_port: u16::from_be_bytes(key.destination_port),
            protocol: key.protocol,
            mark: judgement.mark,
            interface_class: ahead.attachment.interface_class,
            connection_class: ahead.attachment.connection_class,
        };
        if !port_is_known {
            self.by_source_port(&flow);
        }
        let chosen = matching(self.tables, self.policy, &flow);
        let name = chosen.and_then(|chosen| self.names.snat(chosen.id));
        let mut source = key.source;
        let (mut is_translated, mut is_full) = (false, false);
        match chosen {
            Some(chosen) if chosen.addresses > 0 => {
                let bank = self.policy.bank();
                let Some(outside) = paired(self.tables, bank, &chosen, key.domain, key.source)
                else {
                    let text = "its policy has no outside address in the tables".to_owned();
                    return self.drop("snat", Reason::HelperFailed, text);
                };
                source = V4(outside.address);
                let lendable = ports(self.tables, outside.lendable);
                let reply = Key { destination: source, ..key.reversed(ahead.attachment.domain) };
                let lent = (used.ports)(&Stock { pair: pair(&reply), lendable: outside.lendable });
                let text = format!(
                    "{} gives it {}; {lent} of {lendable} ports towards this destination are lent",
                    name.as_deref().unwrap_or("its policy"),
                    Ipv4Addr::from(source.0),
                );
                (is_translated, is_full) = (true, lent >= lendable);
                self.step("snat", text);
            }
            Some(_) => {
                let name = name.as_deref().unwrap_or("its policy");
                self.step("snat", format!("{name} is an exception: it keeps its source"));
            }
            None => self.step("snat", "no policy matches: it keeps its source".to_owned()),
        }
        let way_out = (ahead.number, &ahead.attachment);
        if guard::wants_translation(self.tables, key.domain, source, way_out) {
            let text = format!(
                "{} is non-routable and {} does not carry it",
                Ipv4Addr::from(source.0),
                self.attachment_name(ahead.number),
            );
            return self.drop("guard", Reason::NoSnatPolicy, text);
        }
        let room = room(self.tables);
        if used.sessions >= u64::from(room) {
            let text =
                format!("the session table has no room: {} of {room} are in use", used.sessions);
            return self.drop("session", Reason::TableFull, text);
        }
        let reply = key.reversed(ahead.attachment.domain);
        if !is_translated
            && port_is_known
            && let Some(other) = self.member(&reply, now)
        {
            let text = format!(
                "session {} has the same addresses and ports there: its answers could not be told \
                 apart",
                other.id()
            );
            return self.drop("session", Reason::Contended, text);
        }
        if is_full {
            let text = "every port that its policy may lend towards this destination is lent";
            return self.drop("snat", Reason::PortsExhausted, text.to_owned());
        }
        let (outcome, text) = if !is_translated {
            (Outcome::Forward, "it may leave as it is")
        } else {
            (Outcome::Translate, "its new source may leave there")
        };
        self.end("guard", text.to_owned(), outcome, None)
    }
}

/// Which policy each source port would get: the first port of every range and what it gets, in
/// ascending order, neighbours always different.
pub(super) fn by_port<T: Tables>(
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
