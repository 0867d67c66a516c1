//! Which packets a filter wants: what the datapath sorts out before it copies, and what is held against the
//! copies.

use std::net::{IpAddr, Ipv4Addr};

use api::filter::Filter;
use api::session::SessionId;
use ipnet::{IpNet, Ipv4Net};

use super::copies::{Copies, addresses};

/// What of a filter is held against copies. Address terms mean the packet as it comes in; the outside
/// address is its source as it leaves, or its destination as an answer comes in.
#[derive(Debug, Default)]
pub(super) struct Sieve {
    src: Option<Ipv4Net>,
    dst: Option<Ipv4Net>,
    outside: Option<Ipv4Addr>,
    session: Option<SessionId>,
    pub(super) rule: Option<String>,
}

impl Sieve {
    pub(super) fn new(filter: &Filter) -> Self {
        Self {
            src: filter.src.and_then(v4),
            dst: filter.dst.and_then(v4),
            outside: filter.outside.and_then(|address| match address {
                IpAddr::V4(address) => Some(address),
                IpAddr::V6(_) => None,
            }),
            session: filter.id,
            rule: filter.rule.clone(),
        }
    }

    /// Whether a packet that the rule of this name decided on is wanted.
    pub(super) fn lets_through(&self, packet: &Copies, rule: Option<&str>) -> bool {
        let before = packet.before.as_ref().and_then(addresses);
        let within = |prefix: Option<Ipv4Net>, which: usize| {
            prefix.is_none_or(|prefix| before.is_some_and(|ends| prefix.contains(&ends[which])))
        };
        within(self.src, 0)
            && within(self.dst, 1)
            && self.rule.as_deref().is_none_or(|wanted| rule == Some(wanted))
            && self.session.is_none_or(|session| packet.after.session == session.0)
            && self.outside.is_none_or(|outside| {
                before.is_some_and(|[_, destination]| destination == outside)
                    || addresses(&packet.after).is_some_and(|[source, _]| source == outside)
            })
    }
}

fn v4(prefix: api::value::Prefix) -> Option<Ipv4Net> {
    match prefix.net() {
        IpNet::V4(prefix) => Some(prefix),
        IpNet::V6(_) => None,
    }
}

/// What of a filter the datapath can sort out: one prefix that source or destination lies in, one
/// port that either has, one protocol. Nothing that the filter holds for is left out by it.
pub(super) fn lower(filter: &Filter) -> (u64, u64) {
    let narrowest = [filter.src, filter.dst].into_iter().flatten().filter_map(v4);
    let address = narrowest.max_by_key(Ipv4Net::prefix_len).map_or(0, |prefix| {
        let word = |bytes: [u8; 4]| u64::from(u32::from_ne_bytes(bytes));
        word(prefix.network().octets()) << 32 | word(prefix.netmask().octets())
    });
    let port = u64::from(filter.port.unwrap_or(0));
    let protocol = filter.proto.map_or(0, |protocol| u64::from(protocol.0));
    (address, port << 16 | protocol)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::copies::tests::{OUTSIDE, POD, SERVER, copy};
    use xdp_abi::event::{Captured, STAGE_AFTER, STAGE_BEFORE};

    /// A packet of a session, and its answer.
    fn both_ways() -> [Copies; 2] {
        let packet = |from, to, new_from, new_to| Copies {
            before: Some(copy(1, STAGE_BEFORE, from, to)),
            after: Captured { session: 7, ..copy(1, STAGE_AFTER, new_from, new_to) },
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
            ("id=7", true, true),
            ("id=8", false, false),
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
    fn the_datapath_sorts_out_by_the_narrowest_prefix() {
        let lowered = |text: &str| lower(&text.parse().unwrap());
        assert_eq!(lowered(""), (0, 0));
        assert_eq!(lowered("rule=web outside=203.0.113.1"), (0, 0), "held against copies only");
        assert_eq!(lowered("src=100.64.0.0/16 dst=198.51.100.9").0, lowered("dst=198.51.100.9").0);
        assert_eq!(lowered("port=443 proto=tcp"), (0, 443 << 16 | 6));
    }
}
