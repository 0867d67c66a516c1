//! A live session under another policy, or with other identities: judged again, and kept or ended.

use super::{Plan, Way, refuse::Refused};
use crate::{
    address::{Address, Entry, Key, V4},
    arrival::attached,
    guard,
    packet::{Kind, Packet},
    policy::{Judgement, judge, parties},
    session::{Ending, Halves, LEASED, halves},
    stamp,
    table::Found,
    tables::{Tables, Tally},
    tcp,
    verdict::{Code, Forward},
};
use xdp_abi::{
    config::PolicyWord,
    event,
    forward::{KIND_SPOKE, LINK_UP},
    policy::ACTION_PERMIT,
    reason::Reason,
    session::Facts,
};

/// The session that [`Code::END`] is about. It is ended by the caller, when the stack of whoever
/// found that out is free again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Doom {
    pub(super) record: u32,
    pub(super) ending: Ending,
    /// The domain that it leads into.
    pub(super) towards: u16,
    /// What its first packet carried.
    pub(super) key: Key<V4>,
    /// The attachment that it comes in by from now on.
    pub(super) ingress: u16,
    /// The attachment that it goes out by.
    pub(super) egress: u16,
    /// The interface that it comes in by.
    pub(super) from: u32,
    /// Whether the packet that found it out is an answer.
    pub(super) is_answer: bool,
    /// Whether its way out is to be looked up again, or was.
    pub(super) goes_anew: bool,
    /// What it is seen as outside.
    pub(super) seen_as: V4,
}

impl Doom {
    /// Of a session that is not ended.
    pub(super) const NONE: Self = Self {
        record: 0,
        ending: Ending::EXPIRE,
        towards: 0,
        key: Packet::NONE.key,
        ingress: 0,
        egress: 0,
        from: 0,
        is_answer: false,
        goes_anew: false,
        seen_as: Packet::NONE.key.source,
    };

    /// Whether its translation, or the way that it took, is no longer to be had.
    #[inline(always)]
    pub(super) fn is_withdrawn(&self) -> bool {
        self.ending.cause() == event::ENDED_WITHDRAWN
    }
}

impl<T: Tables<A = V4>> Way<'_, T> {
    /// Reads of a live session what judging it again takes: its first packet's key, who its
    /// parties are under the policy in force, where it leads.
    #[inline(never)]
    pub(super) fn recall(&self, found: &Found, plan: &mut Plan, doom: &mut Doom) -> Code {
        let contended = Code::drop(Reason::Contended);
        let tables = self.tables;
        let Some(entry) = tables.slot(found.index) else { return contended };
        let policy = PolicyWord(tables.config().policy.load());
        let number = entry.load_link().record();
        let Some(record) = tables.record(number) else { return contended };
        let incarnation = (record.identity.load() >> 32) as u32;
        if !entry.load_meta().same_owner(found.meta) {
            return contended;
        }
        let halves = halves(record);
        let is_reply = found.index == halves.reply;
        if !is_reply && found.index != halves.forward {
            // Of an older layout, and not carried over yet: its record tells of another.
            return contended;
        }
        let Some((forward, reply)) = self.entries(&halves) else { return contended };
        let key = V4::unpack(&forward.key());
        let towards = V4::unpack(&reply.key()).domain;
        plan.policy = policy;
        plan.stamp = stamp::of(tables, policy, &key, towards);
        plan.judgement = parties(tables, policy, &key, towards);
        let rules = record.rules.load();
        (plan.judgement.rule, plan.judgement.would_match) = ((rules >> 32) as u32, rules as u32);
        doom.record = number;
        doom.ending = Ending::now(event::ENDED_REVOKED, incarnation);
        doom.towards = towards;
        doom.key = key;
        doom.is_answer = is_reply;
        doom.seen_as = forward.rewrite().source;
        // An identity that changed moves no route; a new generation may stand for one.
        doom.goes_anew |= record.policy.load() as u32 != policy.generation();
        let facts = Facts(record.facts.load());
        (doom.ingress, doom.egress) = (facts.ingress(), facts.egress());
        doom.from = self.ifindex_of(doom.ingress, key.domain);
        if doom.from == 0 {
            // The way that it came by is gone. It goes on by the one that its next packet takes;
            // till then answers lead nowhere.
            if is_reply {
                return Code::drop(Reason::NoRoute);
            }
            doom.ingress = self.number;
            doom.from = self.attachment.ifindex;
            doom.goes_anew = true;
        }
        let withdrawn = record.identity.load() & LEASED != 0
            && !tables.is_outside(policy.bank(), forward.rewrite().source);
        if withdrawn {
            doom.ending = doom.ending.because(event::ENDED_WITHDRAWN);
        }
        Code::GO_ON
    }

    /// Judges the flow that was recalled, and says whether it goes on or [ends](Code::END).
    #[inline(always)]
    pub(super) fn judge_again(&self, plan: &mut Plan, doom: &Doom) -> Code {
        let bytes = self.bytes();
        judge(self.tables, plan.policy, &doom.key, bytes, &mut plan.judgement);
        self.tables.tally(Tally::JudgedAgain);
        // Read from `doom` and not from what `recall` returned: the verifier of Linux 6.1 once
        // lost sight of a code that was kept for longer than a call, and removed what came
        // after it.
        if plan.judgement.action != ACTION_PERMIT || doom.is_withdrawn() {
            return Code::END;
        }
        Code::GO_ON
    }

    /// Looks up again where it goes; it ends if that is in another domain, or if nobody there may
    /// see its source any more (a prefix that is no longer carried, or is non-routable now).
    #[inline(always)]
    pub(super) fn route_again(&self, plan: &mut Plan, doom: &mut Doom) -> Code {
        plan.knows_destination = false;
        let code = self.exit(doom.from, &doom.key, plan);
        if !code.is(Code::GO_ON) {
            return code;
        }
        let way_out = (plan.egress_number, &plan.egress);
        if plan.egress.domain != doom.towards
            || guard::wants_translation(self.tables, doom.key.domain, doom.seen_as, way_out)
        {
            doom.ending = doom.ending.because(event::ENDED_WITHDRAWN);
            return Code::END;
        }
        code
    }

    /// Writes down that it was judged again, and where it goes now.
    #[inline(never)]
    pub(super) fn renew(&self, found: &Found, plan: &Plan, doom: &Doom) -> Code {
        let contended = Code::drop(Reason::Contended);
        let tables = self.tables;
        let (Some(entry), Some(record)) = (tables.slot(found.index), tables.record(doom.record))
        else {
            return contended;
        };
        let halves = halves(record);
        let Some((forward, reply)) = self.entries(&halves) else { return contended };
        // Still the session that was recalled, so the record is still its own.
        if !entry.load_meta().same_owner(found.meta) {
            return contended;
        }
        let facts = Facts(record.facts.load());
        let mut egress = facts.egress();
        if doom.goes_anew {
            egress = plan.egress_number;
            // Losing to a flag that another packet sets is mended at the next judgement.
            let link = forward.load_link();
            forward.link().replace(link.0, link.with_next_hop(plan.hop_number).0);
            // Its attachment may have moved to another interface, with other neighbours. A packet
            // that comes by another attachment moves nothing while the first can be used: answers
            // return where the session came from.
            if found.index == halves.forward
                && doom.ingress == self.number
                && let Some(back) = self.way_back()
            {
                let link = reply.load_link();
                reply.link().replace(link.0, link.with_next_hop(back).0);
            }
        }
        let judgement = &plan.judgement;
        record.rules.store((judgement.rule as u64) << 32 | judgement.would_match as u64);
        record
            .identities
            .store((judgement.source.id as u64) << 32 | judgement.destination.id as u64);
        let snat_policy = record.policy.load() >> 32 << 32;
        record.policy.store(snat_policy | plan.policy.generation() as u64);
        // A log setting that changed holds from now on; losing to a phase change is mended at
        // the next judgement.
        let new = Facts::new(facts.phase(), judgement.log, doom.ingress, egress, judgement.mark);
        record.facts.replace(facts.0, new.0);
        forward.stamp().store(plan.stamp.0);
        reply.stamp().store(plan.stamp.0);
        Code::GO_ON
    }

    /// What becomes of the packet for which a session was ended.
    #[inline(always)]
    pub(super) fn cut(&self, judgement: &Judgement, doom: &Doom) -> Code {
        if doom.is_withdrawn() {
            // Whoever is inside is told, also by an answer: it may only be listening.
            let inside = attached(self.tables, doom.ingress);
            let tells = inside.is_some_and(|inside| inside.kind == KIND_SPOKE)
                && self.packet.kind == Kind::Tcp
                && self.packet.tcp_flags & tcp::RST == 0;
            return match (tells, doom.is_answer) {
                (true, false) => Code::reset(Reason::SnatWithdrawn),
                (true, true) => Code::reset_ahead(Reason::SnatWithdrawn),
                (false, _) => Code::drop(Reason::SnatWithdrawn),
            };
        }
        let flow = Refused {
            key: &doom.key,
            ingress: doom.ingress,
            egress: doom.egress,
            towards: doom.towards,
            snat_policy: 0,
            by_answer: doom.is_answer,
        };
        self.refuse(judgement, &flow)
    }

    /// Keeps, of a session that is about to end, how its packets in this direction go on: somebody
    /// there may have to be told.
    #[inline(never)]
    pub(super) fn remember_ahead(&self, found: &Found, forward: &mut Forward<V4>) {
        *forward = Forward::NOWHERE;
        let Some(entry) = self.tables.slot(found.index) else { return };
        let (rewrite, link) = (entry.rewrite(), entry.load_link());
        if let Some(hop) = self.tables.hop(link.next_hop())
            && entry.load_meta().same_owner(found.meta)
        {
            *forward = Forward { rewrite, hop, reply: link.is_reply(), session: 0, rule: 0 };
        }
    }

    /// The interface of an attachment that packets of a domain can be sent to; zero: of none.
    #[inline(always)]
    fn ifindex_of(&self, number: u16, domain: u16) -> u32 {
        let Some(attachment) = attached(self.tables, number) else { return 0 };
        let Some(link) = self.tables.link(attachment.ifindex) else { return 0 };
        let serves = attachment.domain == domain && link.flags & LINK_UP != 0;
        if serves { attachment.ifindex } else { 0 }
    }

    /// Both entries of a session, the forward one first.
    #[inline(always)]
    fn entries(
        &self,
        halves: &Halves,
    ) -> Option<(&<V4 as Address>::Entry, &<V4 as Address>::Entry)> {
        Some((self.tables.slot(halves.forward)?, self.tables.slot(halves.reply)?))
    }
}
