//! What a live session says of a packet: it goes on as it is, or is judged again first.

use std::net::Ipv4Addr;

use api::explain::Outcome;
use api::session::SessionId;
use xdp::address::{Address, Entry, Key, V4};
use xdp::decide::{Exit, Outlook, Sequel, outlook};
use xdp::guard;
use xdp::session::{halves, seems_expired};
use xdp::stamp::is_current;
use xdp::table::{Found, find};
use xdp::tables::Tables;
use xdp_abi::forward::{Attachment, HOP_ROUTABLE, Hop};
use xdp_abi::reason::Reason;
use xdp_abi::session::Class;

use super::rules::Refused;
use super::{End, Told};
use crate::flows::SessionView;
use crate::flows::session::socket;

/// A session, and the entry of the direction that was asked for.
pub(super) struct Member {
    view: SessionView,
    found: Found,
    is_reply: bool,
}

impl Member {
    pub(super) fn id(&self) -> SessionId {
        SessionId(self.view.told.session)
    }
}

impl<T: Tables<A = V4>> Told<'_, T> {
    /// What a live session says, if there is one.
    pub(super) fn session(
        &mut self,
        key: &Key<V4>,
        port_is_known: bool,
        by: (u16, &Attachment),
        now: u32,
    ) -> Option<End> {
        if !port_is_known {
            let text = "not looked for, because no source port is stated".to_owned();
            self.step("session", text);
            return None;
        }
        let Some(member) = self.member(key, now) else {
            self.step("session", "there is none: a flow would begin".to_owned());
            return None;
        };
        let entry = self.tables.slot(member.found.index)?;
        let hop = self.tables.hop(entry.load_link().next_hop());
        if is_current(self.tables, self.policy, entry.load_stamp()) {
            self.rule = self.named(member.view.told.rule);
            let judged = format!("judged under generation {}", member.view.told.generation);
            return Some(self.goes_on(&member, hop, &judged));
        }
        Some(self.again(&member, hop, by, now))
    }

    /// The live session that a packet is of.
    pub(super) fn member(&self, key: &Key<V4>, now: u32) -> Option<Member> {
        let found = find(self.tables, &V4::pack(key))?;
        let link = self.tables.slot(found.index)?.load_link();
        let slot = halves(self.tables.record(link.record())?).forward;
        let view = SessionView::read(self.tables, slot, now)?;
        let over = found.meta.class() == Class::Resting
            || seems_expired(self.tables.config(), found.meta, now) && view.expires_in == 0;
        (!over).then_some(Member { view, found, is_reply: link.is_reply() })
    }

    /// What becomes of a session that was judged before something changed; `hop` is where its
    /// packet went so far.
    fn again(
        &mut self,
        member: &Member,
        hop: Option<Hop>,
        by: (u16, &Attachment),
        now: u32,
    ) -> End {
        let id = member.id();
        let outlook = outlook(self.tables, &member.found, by, now);
        if outlook.sequel == Sequel::Waits(Reason::Contended) {
            let text = format!("session {id} changes at this moment");
            return self.drop("session", Reason::Contended, text);
        }
        let text = format!(
            "session {id} was judged under generation {}; the policy, an identity or a route has \
             changed since, so it is judged again, by what its first packet carried",
            member.view.told.generation
        );
        self.step("session", text);
        if outlook.from == 0 {
            let name = self.attachment_name(member.view.told.ingress);
            let text = format!(
                "{name}, by which it came in, is down or gone: session {id} waits for a packet \
                 from inside by another way"
            );
            return self.drop("attachment", Reason::NoRoute, text);
        }
        let judged = self.judged(&outlook.key, outlook.towards, &outlook.judgement);
        if let Err(Refused { text, outcome, reason }) = judged {
            if outlook.sequel == Sequel::Revoked {
                let text = format!("{text}: session {id} ends");
                return self.end("rule", text, outcome, Some(reason));
            }
            self.step("rule", text);
        }
        match outlook.sequel {
            Sequel::Waits(reason) => {
                let why = self.exit(outlook.from, &outlook.key).err().map(|no_way| no_way.text);
                let why = why.unwrap_or_else(|| "it finds no way out".to_owned());
                self.drop("route", reason, format!("{why}: session {id} waits for one"))
            }
            Sequel::Revoked | Sequel::Withdrawn => self.withdrawn(member, &outlook),
            Sequel::Kept => {
                let mut hop = hop;
                if let Some(exit) = outlook.exit {
                    self.tell_exit(&exit, outlook.key.destination);
                    // Answers go where they went.
                    hop = if member.is_reply { hop } else { Some(exit.hop) };
                }
                let told = &member.view.told;
                let text = if member.view.lease.is_some() {
                    format!("it keeps {}", socket(told.outside, told.outside_port))
                } else {
                    "it keeps its source".to_owned()
                };
                self.step("snat", text);
                let judged = format!("judged again under generation {}", self.policy.generation());
                self.goes_on(member, hop, &judged)
            }
        }
    }

    /// The way out that was looked up again, as a step.
    fn tell_exit(&mut self, exit: &Exit, destination: V4) {
        let [gateway, destination] = [exit.hop.gateway(), destination.0].map(Ipv4Addr::from);
        self.leaves(exit.number, &exit.attachment, gateway, destination);
    }

    /// How a session ends whose translation, or the way that it took, is no longer to be had.
    fn withdrawn(&mut self, member: &Member, outlook: &Outlook) -> End {
        let id = member.id();
        let told = &member.view.told;
        let (stage, why) = if let Some(exit) = outlook.exit {
            self.tell_exit(&exit, outlook.key.destination);
            let domains = [exit.attachment.domain, outlook.towards];
            let [now, before] = domains.map(|domain| self.names.domain(domain));
            ("route", format!("its way leads into domain {now}, but it was opened to {before}"))
        } else {
            let outside = Ipv4Addr::from(V4(told.outside).0);
            ("snat", format!("its outside address {outside} is that of no policy any more"))
        };
        self.drop(stage, Reason::SnatWithdrawn, format!("{why}: session {id} ends"))
    }

    /// The packet of a session that goes on, and the guard behind it.
    fn goes_on(&mut self, member: &Member, hop: Option<Hop>, judged: &str) -> End {
        let id = member.id();
        let Some(hop) = hop else {
            let text = format!("session {id} has no next hop");
            return self.drop("session", Reason::HelperFailed, text);
        };
        let source = self.tables.slot(member.found.index).map(|entry| entry.rewrite().source);
        if let Some(source) = source
            && hop.is(HOP_ROUTABLE)
            && guard::is_confined(self.tables, hop.attachment(), source)
        {
            let text = format!(
                "session {id} goes on, but {} is non-routable and {} does not carry it",
                Ipv4Addr::from(source.0),
                self.attachment_name(hop.attachment()),
            );
            return self.drop("guard", Reason::Leak, text);
        }
        let direction = if member.is_reply { "as its answer" } else { "with it" };
        let text = format!("session {id} goes on, and the packet {direction}; {judged}");
        let told = &member.view.told;
        let same = (told.source, told.source_port) == (told.outside, told.outside_port);
        let outcome = if same { Outcome::Forward } else { Outcome::Translate };
        self.end("session", text, outcome, None)
    }
}
