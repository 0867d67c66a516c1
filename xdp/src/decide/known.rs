//! The packet of a known session, sent on as the session says.

use super::{Way, again::Doom};
use crate::{
    address::{Entry, V4},
    established::HOP_AGE,
    guard,
    packet::Kind,
    session::{self, Ending, LEASED, halves, idle, seems_expired},
    stamp::is_current,
    table::Found,
    tables::{Tables, Tally},
    tcp,
    verdict::{Code, Forward},
};
use xdp_abi::{
    config::PolicyWord,
    event,
    forward::{HOP_REFRESH, HOP_RESOLVED},
    reason::Reason,
    session::{Class, Count, Facts, Link, Record, State, sender},
};

impl<T: Tables<A = V4>> Way<'_, T> {
    /// A packet whose key is in the table.
    #[inline(never)]
    pub(super) fn known(&self, found: &Found, out: &mut Forward<V4>, doom: &mut Doom) -> Code {
        let Some(entry) = self.tables.slot(found.index) else {
            return Code::drop(Reason::Contended);
        };
        let link = entry.load_link();
        let rewrite = entry.rewrite();
        let stamp = entry.load_stamp();
        let Some(record) = self.tables.record(link.record()) else {
            return Code::drop(Reason::Contended);
        };
        let incarnation = (record.identity.load() >> 32) as u32;
        if !entry.load_meta().same_owner(found.meta) {
            return Code::drop(Reason::Contended);
        }
        // A question and an answer with the identifier zero have the same key.
        let is_of_other_way = match self.packet.kind {
            Kind::Echo => link.is_reply(),
            Kind::EchoReply => !link.is_reply(),
            Kind::Tcp | Kind::Udp | Kind::IcmpError => false,
        };
        if is_of_other_way {
            return self.unexpected();
        }
        let config = self.tables.config();
        let class = found.meta.class();

        // A session that is over: its tuple may be opened anew.
        let over = matches!(class, Class::Resting)
            || seems_expired(config, found.meta, self.now)
                && self.other_half_expired(found, record);
        let reopened = self.packet.kind == Kind::Tcp
            && tcp::opens(self.packet.tcp_flags)
            && matches!(class, Class::TcpClosed | Class::TcpReset);
        if over || reopened {
            // Behind an outside address there is nobody to open anything towards; without
            // translation the other end may, and is judged for itself. Not while its RST is all that
            // is known of the end: that may be forged, and so may this.
            let is_leased = record.identity.load() & LEASED != 0;
            if link.is_reply() && (is_leased || !over && !self.has_ended(record)) {
                return self.unexpected();
            }
            let ending = if over {
                Ending::REPLACE
            } else {
                Ending::now(event::ENDED_REOPENED, incarnation)
            };
            doom.record = link.record();
            doom.ending = ending;
            return Code::END;
        }

        let policy = PolicyWord(config.policy.load());
        if !is_current(self.tables, policy, stamp) {
            return Code::STALE;
        }

        let Some(mut hop) = self.tables.hop(link.next_hop()) else {
            return Code::drop(Reason::HelperFailed);
        };
        if hop.is(HOP_REFRESH) && (!hop.is(HOP_RESOLVED) || idle(self.now, hop.tick()) > HOP_AGE) {
            self.refresh(link.next_hop(), &mut hop);
        }
        let obstacle = self.obstacle(&hop);
        if !obstacle.is(Code::GO_ON) {
            return obstacle;
        }
        if guard::holds_back(self.tables, &hop, rewrite.source) {
            // Whether its source is carried may have changed a moment ago, and ends it: that is looked
            // at first.
            if !doom.goes_anew && rewrite.source == self.packet.key.source {
                doom.goes_anew = true;
                return Code::STALE;
            }
            self.tables.tally(Tally::LeakStopped);
            return Code::drop(Reason::Leak);
        }

        if Count(entry.count().load()).is_high() {
            session::spill(self.tables, entry, link.record(), link.is_reply());
        }
        entry.count().add(Count::new(self.arrival.segments as u64, self.bytes()).0);
        if self.packet.kind == Kind::Tcp {
            let flags = self.packet.tcp_flags;
            if flags & !link.tcp_flags() != 0 {
                entry.link().fetch_or((flags as u64) << 8);
            }
            if flags & (tcp::SYN | tcp::FIN | tcp::RST) != 0 || matches!(class, Class::TcpReset) {
                session::follow_tcp(self.tables, *found, link, flags, self.now);
            }
        }
        // Refresh on the newest reading: the class may just have changed.
        let meta = entry.load_meta();
        let mut new = meta.with_tick(self.now);
        if !link.is_reply() {
            new = new.with_sender(sender(self.arrival.sender));
            if new.sender() != meta.sender() && !self.turn_answers(link, record) {
                new = new.with_sender(meta.sender());
            }
        }
        if meta.is(State::Live) && new != meta {
            entry.meta().replace(meta.0, new.0);
        }
        if !hop.is(HOP_RESOLVED) {
            // The kernel would take an untranslated answer for its own.
            if rewrite.destination != self.packet.key.destination {
                return Code::drop(Reason::NoRoute);
            }
            return Code::PUNT;
        }
        *out = Forward {
            rewrite,
            hop,
            reply: link.is_reply(),
            session: (incarnation as u64) << 32 | link.record() as u64,
            rule: (record.rules.load() >> 32) as u32,
        };
        Code::FORWARD
    }

    /// The session's packets come from another neighbour than before (a router has taken over from
    /// another): its answers go there from now on. By another attachment they do not: answers
    /// return where the session came from. Says whether that is settled.
    #[inline(never)]
    fn turn_answers(&self, link: Link, record: &Record) -> bool {
        if Facts(record.facts.load()).ingress() != self.number {
            return true;
        }
        let Some(reply) = self.tables.slot(halves(record).reply) else { return true };
        let old = reply.load_link();
        // A slot that changed hands has another record in this word.
        if old.record() != link.record() || !old.is_reply() {
            return true;
        }
        // Without room for one more next hop they go where they went.
        let Some(back) = self.way_back() else { return true };
        // It may lose to a flag that another packet sets; then the next packet does it.
        reply.link().replace(old.0, old.with_next_hop(back).0)
    }

    /// Whether whoever opened a connection has said that it is over, which nobody else can say.
    #[inline(always)]
    fn has_ended(&self, record: &Record) -> bool {
        let phase = tcp::Phase(Facts(record.facts.load()).phase());
        let forward = self.tables.slot(halves(record).forward);
        let flags = forward.map_or(0, |entry| entry.load_link().tcp_flags());
        phase.is_finished() || flags & tcp::RST != 0
    }

    #[inline(always)]
    fn other_half_expired(&self, found: &Found, record: &Record) -> bool {
        let halves = halves(record);
        let other = if found.index == halves.forward { halves.reply } else { halves.forward };
        match self.tables.slot(other) {
            Some(entry) => seems_expired(self.tables.config(), entry.load_meta(), self.now),
            None => false,
        }
    }
}
