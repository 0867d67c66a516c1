//! What is told of a packet that does not go on, to its sender and in a record.

use super::{Plan, Way};
use crate::{
    address::{Key, Rewrite, V4},
    arrival::is_own,
    packet::Kind,
    policy::Judgement,
    session,
    tables::{Tables, Tally},
    tcp,
    verdict::Code,
};
use xdp_abi::{
    config::{MIDSTREAM_RESET, PolicyWord},
    event,
    forward::KIND_SPOKE,
    policy::ACTION_REJECT,
    reason::Reason,
};

/// The rewrite that changes nothing.
#[inline(always)]
const fn untranslated(key: &Key<V4>) -> Rewrite<V4> {
    Rewrite {
        source: key.source,
        destination: key.destination,
        source_port: key.source_port,
        destination_port: key.destination_port,
        address_delta: 0,
        transport_delta: 0,
    }
}

/// The flow that a refusal is about, as its sender sends it.
pub(super) struct Refused<'a> {
    pub(super) key: &'a Key<V4>,
    /// The attachment that it comes in by.
    pub(super) ingress: u16,
    /// The attachment that it would go out by.
    pub(super) egress: u16,
    /// The domain that it leads into.
    pub(super) towards: u16,
    /// The SNAT policy that has nothing for it; zero: that is not why.
    pub(super) snat_policy: u32,
    /// Whether the packet is an answer to it.
    pub(super) by_answer: bool,
}

impl<T: Tables<A = V4>> Way<'_, T> {
    /// The flow that this packet opens.
    #[inline(always)]
    fn own_flow(&self, plan: &Plan, snat_policy: u32) -> Refused<'_> {
        Refused {
            key: &self.packet.key,
            ingress: self.number,
            egress: plan.egress_number,
            towards: plan.egress.domain,
            snat_policy,
            by_answer: false,
        }
    }

    /// The same as [`Self::refuse`] for the packet of a new flow. In a function of its own, because
    /// the stack of whoever calls it is short.
    #[inline(never)]
    pub(super) fn refuse_new(&self, plan: &Plan) -> Code {
        self.refuse(&plan.judgement, &self.own_flow(plan, 0))
    }

    /// The same as [`Self::denied`] for the packet of a new flow.
    #[inline(never)]
    pub(super) fn denied_new(&self, reason: Reason, plan: &Plan, snat_policy: u32) -> Code {
        self.denied(reason, &plan.judgement, &self.own_flow(plan, snat_policy))
    }

    /// A packet that the policy refuses.
    #[inline(never)]
    pub(super) fn refuse(&self, judgement: &Judgement, flow: &Refused<'_>) -> Code {
        let reason = match (judgement.rule, judgement.action) {
            (0, _) => Reason::DefaultDenied,
            (_, ACTION_REJECT) => Reason::RuleRejected,
            _ => Reason::RuleDenied,
        };
        let verdict = self.denied(reason, judgement, flow);
        if judgement.action != ACTION_REJECT {
            return verdict;
        }
        // A refused segment that is itself a RST, or an error about a packet that was an
        // answer to nothing, is not answered (RFC 1122 3.2.2, RFC 793).
        match self.packet.kind {
            Kind::Tcp if self.packet.tcp_flags & tcp::RST != 0 => verdict,
            // Whoever opened the flow is told, and may only be listening.
            Kind::Tcp if flow.by_answer => Code::reset_ahead(reason),
            Kind::Tcp => Code::reset(reason),
            Kind::Udp | Kind::Echo | Kind::EchoReply | Kind::IcmpError => {
                Code::icmp(reason, 3, 13, 0)
            }
        }
    }

    /// Reports a refusal, at most so often per rule and source.
    #[inline(never)]
    pub(super) fn denied(&self, reason: Reason, judgement: &Judgement, flow: &Refused<'_>) -> Code {
        let tables = self.tables;
        if judgement.log != 0 {
            let bucket = (judgement.rule ^ judgement.source.id.rotate_left(7))
                .wrapping_mul(0x9e37_79b1)
                .wrapping_add(reason as u32);
            let limit = tables.config().rates.load() as u32;
            match tables.admit(bucket, limit, self.now) {
                Some(suppressed) => tables.report(|event| {
                    let Refused { key, by_answer, .. } = *flow;
                    let (packets, bytes) = (self.arrival.segments as u64, self.bytes());
                    let flags = self.packet.tcp_flags;
                    event.kind = event::DENY;
                    session::describe(event, key, &untranslated(key));
                    event.reason = reason as u8;
                    event.tcp_flags = if by_answer { [0, flags] } else { [flags, 0] };
                    event.ingress = flow.ingress;
                    event.egress = flow.egress;
                    event.time = tables.clock();
                    event.destination_domain = flow.towards;
                    event.snat_policy = flow.snat_policy;
                    event.rule = judgement.rule;
                    event.would_match = judgement.would_match;
                    event.source_identity = judgement.source.id;
                    event.destination_identity = judgement.destination.id;
                    event.generation = PolicyWord(tables.config().policy.load()).generation();
                    event.packets = if by_answer { [0, packets] } else { [packets, 0] };
                    event.bytes = if by_answer { [0, bytes] } else { [bytes, 0] };
                    event.suppressed = suppressed;
                    event.action = judgement.action as u32;
                }),
                None => tables.tally(Tally::Suppressed),
            }
        }
        Code::drop(reason)
    }

    /// A segment, answer or error that belongs to no session.
    #[inline(always)]
    pub(super) fn unexpected(&self) -> Code {
        if is_own(self.tables, self.packet.key.destination) {
            return Code::PASS;
        }
        let reset = self.attachment.kind == KIND_SPOKE
            && self.packet.kind == Kind::Tcp
            && self.packet.tcp_flags & tcp::RST == 0
            && self.tables.config().midstream.load() == MIDSTREAM_RESET;
        if reset {
            return Code::reset(Reason::NoSession);
        }
        Code::drop(Reason::NoSession)
    }

    /// A permitted flow that could not be opened: what its sender is told, and a record of it
    /// where that says something that the counters do not.
    #[inline(never)]
    pub(super) fn not_opened(&self, refused: Code, plan: &Plan) -> Code {
        if refused.is_drop(Reason::NoSession) {
            return self.unexpected();
        }
        for worth_saying in [Reason::PortsExhausted, Reason::TableFull, Reason::NoSnatPolicy] {
            if refused.is_drop(worth_saying) {
                self.denied_new(worth_saying, plan, plan.snat_policy);
                // Whoever is inside is told (RFC 5508 REQ-8); outside learns nothing.
                if self.attachment.kind == KIND_SPOKE {
                    return Code::icmp(worth_saying, 3, 13, 0);
                }
                return refused;
            }
        }
        refused
    }
}
