//! The packet of an unknown flow: who the parties are, where it goes, whether it may.

use super::{Plan, Way};
use crate::{
    address::{Address, V4},
    arrival::{is_from_own, is_own},
    packet::Kind,
    policy::judge,
    recent::{self, Line},
    stamp, table,
    tables::{Tables, is_non_routable},
    tcp,
    verdict::Code,
};
use xdp_abi::{
    config::{MIDSTREAM_ADOPT, PolicyWord},
    policy::ACTION_PERMIT,
    reason::Reason,
};

impl<T: Tables<A = V4>> Way<'_, T> {
    /// A packet whose key is not in the table: judged, and its way out found ([`Code::OPEN`]), or
    /// what becomes of it instead.
    #[inline(never)]
    pub(super) fn unknown(&self, plan: &mut Plan) -> Code {
        let key = &self.packet.key;
        let config = self.tables.config();
        let policy = PolicyWord(config.policy.load());
        plan.knows_source &= plan.policy == policy;
        plan.policy = policy;
        // What is remembered is neither the machine's own nor an outside address.
        plan.knows_destination =
            recent::destination(self.tables, policy, plan.network, key.destination).is_some();
        let own = !plan.knows_destination && is_own(self.tables, key.destination);
        let opens = match self.packet.kind {
            Kind::Tcp => tcp::opens(self.packet.tcp_flags),
            Kind::Udp | Kind::Echo => true,
            Kind::EchoReply | Kind::IcmpError => false,
        };
        // A session that is just being looked at for ending may live on: nobody is told that it
        // does not exist, and its packets are not the machine's.
        if (own || !opens) && table::is_held(self.tables, &V4::pack(key)) {
            return Code::drop(Reason::Contended);
        }
        if own {
            return Code::PASS;
        }
        if key.source.is_martian() || key.destination.is_martian() {
            return Code::drop(Reason::Martian);
        }
        // Whose identity is remembered was found to be no such source in this epoch of the network.
        if !plan.knows_source && is_from_own(self.tables, key.domain, key.source) {
            return Code::drop(Reason::Martian);
        }
        match self.packet.kind {
            Kind::Tcp if !tcp::opens(self.packet.tcp_flags) => {
                if config.midstream.load() != MIDSTREAM_ADOPT
                    || self.packet.tcp_flags & (tcp::RST | tcp::SYN) != 0
                {
                    return self.unexpected();
                }
            }
            Kind::EchoReply | Kind::IcmpError => return self.unexpected(),
            Kind::Tcp | Kind::Udp | Kind::Echo => {}
        }
        if policy.generation() == 0 {
            return Code::drop(Reason::NoPolicy);
        }
        // Nobody is behind an outside address but its sessions.
        if !plan.knows_destination && self.tables.is_outside(policy.bank(), key.destination) {
            return self.unexpected();
        }
        let exit = self.exit(self.attachment.ifindex, key, plan);
        if !exit.is(Code::GO_ON) {
            return exit;
        }
        let towards = plan.egress.domain;
        plan.stamp = stamp::of(self.tables, policy, key, towards);
        self.identify(plan);
        plan.judgement.of_new_flow();
        judge(self.tables, policy, key, self.bytes(), &mut plan.judgement);
        if plan.judgement.action != ACTION_PERMIT {
            return self.refuse_new(plan);
        }
        let obstacle = self.obstacle(&plan.hop);
        if !obstacle.is(Code::GO_ON) {
            return obstacle;
        }
        // A flow towards a non-routable address of another domain: only its answers would
        // ever need translation, and they would leave with a non-routable source.
        if is_non_routable(config, key.destination) && towards != key.domain {
            return self.denied_new(Reason::NonRoutableDestination, plan, 0);
        }
        Code::OPEN
    }

    /// Finds out who the parties are, and remembers it under the epochs that their identities are
    /// counted in.
    #[inline(always)]
    fn identify(&self, plan: &mut Plan) {
        let (tables, key) = (self.tables, &self.packet.key);
        let bank = plan.policy.bank();
        if !plan.knows_source {
            let epochs = recent::epochs(tables, plan.network, plan.stamp.source());
            let identity = tables.identity(bank, key.domain, key.source);
            plan.judgement.source = identity;
            if plan.remembers_source
                && let Some(line) = self.source_line()
            {
                line.remember_identity(plan.policy, epochs, identity);
            }
        }
        let line = tables.recent(recent::destination_place(key.destination));
        let epochs = recent::epochs(tables, plan.network, plan.stamp.destination());
        plan.judgement.destination = match line {
            Some(line) if plan.knows_destination && line.epochs() == epochs => line.identity(),
            line => {
                let identity = tables.identity(bank, plan.egress.domain, key.destination);
                if let Some(line) = line {
                    line.remember_identity(plan.policy, epochs, identity);
                }
                identity
            }
        };
    }

    /// Where the packet's source is remembered.
    #[inline(always)]
    pub(super) fn source_line(&self) -> Option<&Line> {
        let place = recent::source_place(self.arrival.ifindex, self.packet.key.source);
        self.tables.recent(place)
    }
}
