//! Who the ends of a flow are, and which rule decides, put into words.

use std::net::Ipv4Addr;

use api::explain::Outcome;
use api::session::ObjectRef;
use smartgroups::Conflict;
use xdp::address::{Key, V4};
use xdp::policy::Judgement;
use xdp::tables::Tables;
use xdp_abi::policy::{ACTION_PERMIT, ACTION_REJECT, IdentityRef};
use xdp_abi::reason::Reason;

use super::Told;

/// What the rules say of a flow that may not be.
pub(super) struct Refused {
    pub(super) text: String,
    pub(super) outcome: Outcome,
    pub(super) reason: Reason,
}

impl<T: Tables<A = V4>> Told<'_, T> {
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
        let groups = match self.names.groups(identity.id).as_deref() {
            None => format!("in groups whose names are not known (identity {})", identity.id),
            Some([]) => "in no group but anywhere".to_owned(),
            Some(groups) => format!("in {}", groups.join(", ")),
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

    pub(super) fn named(&self, rule: u32) -> Option<ObjectRef> {
        let name = self.names.rule(rule).map(|name| name.to_string());
        (rule != 0).then_some(ObjectRef { id: rule, name })
    }

    /// Who the parties are, and what the rules say of them.
    pub(super) fn judged(
        &mut self,
        key: &Key<V4>,
        towards: u16,
        judgement: &Judgement,
    ) -> Result<(), Refused> {
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
            return Err(Refused { text: format!("{who} {verb} it"), outcome, reason });
        }
        Ok(())
    }
}
