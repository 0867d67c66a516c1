//! The last guard: no packet with a non-routable source leaves but where its network is, and none
//! is forwarded that no program has judged.
//!
//! **Leaks.** The fast path checks this itself, right before it sends. This guard is for when there
//! is no fast path: the program is detached, an interface was replaced, the daemon is dead and the
//! kernel forwards on its own. So it is a table of the kernel's packet filter, which stays
//! until somebody takes it away, and names interfaces by name, so that one that is made anew
//! is guarded from its first packet. What it lets through because a program is about to translate
//! it leaves by interfaces with these numbers: one that is made anew has no program.
//!
//! It is nftables because a table of one's own cannot collide with the operator's rules, and
//! because a whole change is one transaction: the rules are emptied and filled in one step, and
//! every packet sees the old ones or the new ones. The chain itself stays hooked meanwhile;
//! replacing it too would open a gap for a packet that passes the new chain before the step and
//! the old one after it. It is hooked last (priority 300), when the kernel's own translation
//! (100) has put in the source that really leaves.
//!
//! By interfaces that the configuration does not name the machine's own traffic leaves as it
//! likes: a tunnel of the machine itself may have such addresses. What is forwarded does not.
//!
//! **Unjudged transit.** Programs see what comes in by their interfaces. What comes in by another
//! the kernel would forward, to pods as well, and also what passes while a program is missing. So
//! a second chain, in forward, drops what comes from or goes to an interface that has programs and
//! lacks the mark of a punted packet; what programs send themselves never passes there. It stands
//! as long as the programs do ([`GuardSpec::attached`]).
//!
//! And it is written by netlink, because the guard must not depend on whether `nft` is
//! installed, nor on how it prints. What was written is read back and compared, so a guard that
//! is said to be in force is.

mod expression;
mod rules;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::Ipv4Net;

use super::IfIndex;
use super::dialogue::{Dialogue, Family, NetlinkError};
use super::wire::{self, Request, network_u32};
pub use expression::Traffic;
use expression::{COUNTER_OBJECT, Expression, Verdict, find};
use rules::{Rule, without_counts};

/// The name of the table, in the family `inet`.
pub const TABLE: &str = "sluice_guard";
/// The chain against leaks, and where it is hooked.
const LEAVING: (&str, u32) = ("postrouting", libc::NF_INET_POST_ROUTING as u32);
/// The chain against unjudged transit.
const FORWARDING: (&str, u32) = ("forward", libc::NF_INET_FORWARD as u32);
/// The counter of all leaks stopped; unlike those in the rules it outlives a change of them.
const DROPPED: &str = "dropped";
/// That of all unjudged transit.
const UNJUDGED: &str = "unjudged";

const CHAIN_KIND: &str = "filter";
const PRIORITY: u32 = 300;
const SUBSYSTEM: u16 = libc::NFNL_SUBSYS_NFTABLES as u16;
const INET: u8 = libc::NFPROTO_INET as u8;
/// `NFT_TABLE_F_DORMANT`: a table that is there and does nothing.
const DORMANT: u32 = 1;
/// Length of `struct nfgenmsg`.
const GENERIC: usize = 4;

const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_OBJ_TABLE: u16 = 1;
const NFTA_OBJ_NAME: u16 = 2;
const NFTA_OBJ_TYPE: u16 = 3;
const NFTA_OBJ_DATA: u16 = 4;

/// A mark that lets packets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExemptMark {
    /// What the masked mark has to be.
    pub value: u32,
    /// The bits that count.
    pub mask: u32,
}

/// What the guard keeps back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardSpec {
    /// Sources that must not leave on any of the interfaces.
    pub non_routable: Vec<Ipv4Net>,
    /// The routable interfaces by name, each with the non-routable prefixes that it carries.
    pub interfaces: BTreeMap<String, Vec<Ipv4Net>>,
    /// Interfaces that lead to pods, perhaps among others: destinations behind them that see pod
    /// addresses as they are, because they are pods of the same network.
    pub towards: BTreeMap<String, Vec<Ipv4Net>>,
    /// Interfaces with programs: nothing is forwarded from or to them without the exempt mark.
    /// Empty: whatever the kernel forwards is let through.
    pub attached: BTreeSet<String>,
    /// Interfaces, by number, where a program is about to translate what leaves with the exempt
    /// mark: it passes there.
    pub translating: BTreeSet<IfIndex>,
    /// The mark of such packets.
    pub exempt: Option<ExemptMark>,
}

impl GuardSpec {
    /// What is left of it when programs are taken out: it stops leaks, and lets transit pass again
    /// that nobody is there to judge.
    #[must_use]
    pub fn without_programs(self) -> Self {
        Self { attached: BTreeSet::new(), translating: BTreeSet::new(), ..self }
    }
}

/// Why there is no guard, or none to be told of.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The name is none.
    #[error("the guard cannot be set on `{0}`, which cannot be the name of an interface")]
    Interface(String),
    /// It would open more than it is meant to.
    #[error("interface `{interface}` carries {prefix}, which lies in no non-routable prefix")]
    Carries {
        /// The interface.
        interface: String,
        /// The prefix.
        prefix: Ipv4Net,
    },
    /// It would exempt every packet, or none.
    #[error("mark {value:#x}/{mask:#x} is no exception: bits outside the mask, or none set")]
    Mark {
        /// The value.
        value: u32,
        /// The mask.
        mask: u32,
    },
    /// The kernel was not asked, or refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The kernel took the guard and shows another.
    #[error("nftables table inet {TABLE} is not as it was written: somebody else changes it")]
    NotInForce,
}

/// What [`install`] had to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Installed {
    /// Nothing: it was there as it should be.
    Unchanged,
    /// It was made, or brought up to date.
    Written,
}

/// The chain as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Chain {
    hook: Option<u32>,
    priority: Option<u32>,
    policy: Option<u32>,
    kind: String,
}

impl Chain {
    /// One that guards at this hook.
    fn guarding(hook: u32) -> Self {
        Self {
            hook: Some(hook),
            priority: Some(PRIORITY),
            policy: Some(Verdict::Accept.code()),
            kind: CHAIN_KIND.into(),
        }
    }

    fn read(payload: &[u8]) -> Self {
        let hook = find(payload, NFTA_CHAIN_HOOK).unwrap_or_default();
        let number = |bytes, kind| network_u32(find(bytes, kind)?);
        Self {
            hook: number(hook, NFTA_HOOK_HOOKNUM),
            priority: number(hook, NFTA_HOOK_PRIORITY),
            policy: number(payload, NFTA_CHAIN_POLICY),
            kind: find(payload, NFTA_CHAIN_TYPE).map(wire::text).unwrap_or_default(),
        }
    }
}

/// Reads a payload as a chain and as the expressions of a rule.
#[cfg(feature = "fuzz")]
pub(super) fn read_foreign(payload: &[u8]) {
    Chain::read(payload);
    expression::Expression::read_list(payload);
    // Behind the header of nfnetlink, as in a message.
    if let Some(rest) = payload.get(4..) {
        Chain::read(rest);
        for (_, value) in wire::attributes(rest) {
            expression::Expression::read_list(value);
        }
    }
}

/// The guard as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardState {
    dormant: bool,
    chain: Option<Chain>,
    rules: Vec<Rule>,
    forward: Option<Chain>,
    forward_rules: Vec<Rule>,
    dropped: Option<Traffic>,
    unjudged: Option<Traffic>,
}

impl GuardState {
    /// Whether exactly this guard is in force.
    pub fn holds(&self, spec: &GuardSpec) -> bool {
        let transit = if spec.attached.is_empty() {
            self.forward.is_none()
        } else {
            self.forward.is_some()
                && self.forward_rules.iter().map(without_counts).eq(rules::forwarding(spec))
        };
        transit
            && self.is_hooked()
            && self.rules.iter().map(without_counts).eq(rules::leaving(spec))
    }

    /// Whether leaks are stopped as by this guard, whatever it does with transit, and whichever
    /// marks it excepts beside.
    pub fn stops_leaks_of(&self, spec: &GuardSpec) -> bool {
        let marked = rules::marked(spec);
        let excepts = |rule: &&Rule| marked.as_ref().is_some_and(|marked| rule.ends_with(marked));
        let others = self.rules.iter().skip_while(excepts).map(without_counts);
        self.is_hooked() && others.eq(rules::leaving(&spec.clone().without_programs()))
    }

    /// What was dropped for its source since the table was made. It must stay 0.
    pub fn dropped(&self) -> Traffic {
        self.dropped.unwrap_or_default()
    }

    /// The transit that was dropped because no program had judged it, since the table was made.
    pub fn unjudged(&self) -> Traffic {
        self.unjudged.unwrap_or_default()
    }

    /// Whether packets pass the chains at all.
    fn is_hooked(&self) -> bool {
        let guards = |chain: &Chain, (_, hook)| *chain == Chain::guarding(hook);
        !self.dormant
            && self.chain.as_ref().is_some_and(|chain| guards(chain, LEAVING))
            && self.forward.as_ref().is_none_or(|chain| guards(chain, FORWARDING))
    }
}

/// Puts the guard in force, in one step; safe to repeat.
pub fn install(spec: &GuardSpec) -> Result<Installed, GuardError> {
    keep(spec).map(|(installed, _)| installed)
}

/// The same; says what stands now, with what it has counted.
pub fn keep(spec: &GuardSpec) -> Result<(Installed, GuardState), GuardError> {
    check(spec)?;
    let mut dialogue = Dialogue::open(Family::Netfilter)?;
    let found = match read_with(&mut dialogue)? {
        Some(state) if state.holds(spec) => return Ok((Installed::Unchanged, state)),
        found => found,
    };
    dialogue.batch("set the nftables guard", batch(changes(spec, found.as_ref())))?;
    match read_with(&mut dialogue)? {
        Some(state) if state.holds(spec) => Ok((Installed::Written, state)),
        Some(_) | None => Err(GuardError::NotInForce),
    }
}

/// Takes the guard away; false if there was none.
pub fn remove() -> Result<bool, GuardError> {
    let mut dialogue = Dialogue::open(Family::Netfilter)?;
    match dialogue.batch("remove the nftables guard", batch(vec![delete_table()])) {
        Ok(()) => Ok(true),
        Err(absent) if absent.is_refusal(libc::ENOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Reads the guard, if there is one.
pub fn read() -> Result<Option<GuardState>, GuardError> {
    Ok(read_with(&mut Dialogue::open(Family::Netfilter)?)?)
}

fn check(spec: &GuardSpec) -> Result<(), GuardError> {
    let names = spec.interfaces.keys().chain(spec.towards.keys()).chain(&spec.attached);
    if let Some(name) = names.into_iter().find(|name| !super::is_interface_name(name)) {
        return Err(GuardError::Interface(name.clone()));
    }
    let non_routable = Ipv4Net::aggregate(&spec.non_routable);
    for (interface, carries) in &spec.interfaces {
        let outside = |prefix: &&Ipv4Net| !non_routable.iter().any(|whole| whole.contains(*prefix));
        if let Some(prefix) = carries.iter().find(outside) {
            return Err(GuardError::Carries { interface: interface.clone(), prefix: *prefix });
        }
    }
    match spec.exempt {
        Some(ExemptMark { value, mask }) if value == 0 || value & !mask != 0 => {
            Err(GuardError::Mark { value, mask })
        }
        _ => Ok(()),
    }
}

/// The changes from what was found to what should be. A chain that does not guard cannot be
/// turned into one that does, so then the table is made anew: there is no guard to interrupt.
fn changes(spec: &GuardSpec, found: Option<&GuardState>) -> Vec<Request> {
    let table = request(libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE)
        .string(NFTA_TABLE_NAME, TABLE)
        .attribute(NFTA_TABLE_FLAGS, &[0; 4]);
    let useless = found.filter(|state| !state.is_hooked());
    let mut changes: Vec<_> = useless.map(|_| delete_table()).into_iter().collect();
    changes.extend([table, counter(DROPPED), counter(UNJUDGED)]);
    changes.extend(filled(LEAVING, rules::leaving(spec)));
    if !spec.attached.is_empty() {
        changes.extend(filled(FORWARDING, rules::forwarding(spec)));
    } else if useless.is_none() && found.is_some_and(|state| state.forward.is_some()) {
        changes.extend([emptied(FORWARDING.0), deleted(FORWARDING.0)]);
    }
    changes
}

/// A counter with a name, if there is none yet.
fn counter(name: &str) -> Request {
    request(libc::NFT_MSG_NEWOBJ, libc::NLM_F_CREATE)
        .string(NFTA_OBJ_TABLE, TABLE)
        .string(NFTA_OBJ_NAME, name)
        .attribute(NFTA_OBJ_TYPE, &COUNTER_OBJECT.to_be_bytes())
        .nested(NFTA_OBJ_DATA, |data| Traffic::default().write(data))
}

/// A chain with these rules and no others.
fn filled(
    (chain, hook): (&'static str, u32),
    rules: impl Iterator<Item = Rule>,
) -> impl Iterator<Item = Request> {
    let made = request(libc::NFT_MSG_NEWCHAIN, libc::NLM_F_CREATE)
        .string(NFTA_CHAIN_TABLE, TABLE)
        .string(NFTA_CHAIN_NAME, chain)
        .nested(NFTA_CHAIN_HOOK, |at| {
            at.attribute(NFTA_HOOK_HOOKNUM, &hook.to_be_bytes())
                .attribute(NFTA_HOOK_PRIORITY, &PRIORITY.to_be_bytes())
        })
        .attribute(NFTA_CHAIN_POLICY, &Verdict::Accept.code().to_be_bytes())
        .string(NFTA_CHAIN_TYPE, CHAIN_KIND);
    let rules = rules.map(move |rule| {
        request(libc::NFT_MSG_NEWRULE, libc::NLM_F_CREATE | libc::NLM_F_APPEND)
            .string(NFTA_RULE_TABLE, TABLE)
            .string(NFTA_RULE_CHAIN, chain)
            .nested(NFTA_RULE_EXPRESSIONS, |list| {
                rule.iter().fold(list, |list, expression| expression.write(list))
            })
    });
    [made, emptied(chain)].into_iter().chain(rules)
}

fn emptied(chain: &str) -> Request {
    request(libc::NFT_MSG_DELRULE, 0).string(NFTA_RULE_TABLE, TABLE).string(NFTA_RULE_CHAIN, chain)
}

fn deleted(chain: &str) -> Request {
    request(libc::NFT_MSG_DELCHAIN, 0)
        .string(NFTA_CHAIN_TABLE, TABLE)
        .string(NFTA_CHAIN_NAME, chain)
}

fn delete_table() -> Request {
    request(libc::NFT_MSG_DELTABLE, 0).string(NFTA_TABLE_NAME, TABLE)
}

/// A message of nftables, in the family `inet`.
fn request(kind: i32, flags: i32) -> Request {
    Request::new(SUBSYSTEM << 8 | kind as u16, flags).fixed(&[INET, 0, 0, 0])
}

/// Encloses changes, so that they happen together or not at all.
fn batch(changes: Vec<Request>) -> Vec<Request> {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    let edge = |kind: i32| Request::new(kind as u16, 0).fixed(&[0, 0, high, low]);
    let begin = edge(libc::NFNL_MSG_BATCH_BEGIN);
    let end = edge(libc::NFNL_MSG_BATCH_END);
    [begin].into_iter().chain(changes).chain([end]).collect()
}

fn read_with(dialogue: &mut Dialogue) -> Result<Option<GuardState>, NetlinkError> {
    let table = request(libc::NFT_MSG_GETTABLE, libc::NLM_F_ACK).string(NFTA_TABLE_NAME, TABLE);
    let dormant = get(dialogue, "read the nftables guard", table, |table| {
        find(table, NFTA_TABLE_FLAGS).and_then(network_u32).unwrap_or(0) & DORMANT != 0
    })?;
    let Some(dormant) = dormant else { return Ok(None) };
    let (chain, rules) = read_chain(dialogue, LEAVING.0)?;
    let (forward, forward_rules) = read_chain(dialogue, FORWARDING.0)?;
    let dropped = read_counter(dialogue, DROPPED)?;
    let unjudged = read_counter(dialogue, UNJUDGED)?;
    Ok(Some(GuardState { dormant, chain, rules, forward, forward_rules, dropped, unjudged }))
}

/// A chain, if it is there, and its rules.
fn read_chain(
    dialogue: &mut Dialogue,
    name: &str,
) -> Result<(Option<Chain>, Vec<Rule>), NetlinkError> {
    let chain = request(libc::NFT_MSG_GETCHAIN, libc::NLM_F_ACK)
        .string(NFTA_CHAIN_TABLE, TABLE)
        .string(NFTA_CHAIN_NAME, name);
    let chain = get(dialogue, "read a chain of the nftables guard", chain, Chain::read)?;
    if chain.is_none() {
        return Ok((None, Vec::new()));
    }
    let listing = request(libc::NFT_MSG_GETRULE, libc::NLM_F_DUMP)
        .string(NFTA_RULE_TABLE, TABLE)
        .string(NFTA_RULE_CHAIN, name);
    let rules = dialogue.dump(
        "list the rules of the nftables guard",
        &listing,
        |rules: &mut Vec<Rule>, message| {
            let payload = message.payload.get(GENERIC..).unwrap_or_default();
            rules.extend(find(payload, NFTA_RULE_EXPRESSIONS).map(Expression::read_list));
        },
    )?;
    Ok((chain, rules))
}

fn read_counter(dialogue: &mut Dialogue, name: &str) -> Result<Option<Traffic>, NetlinkError> {
    let counter = request(libc::NFT_MSG_GETOBJ, libc::NLM_F_ACK)
        .string(NFTA_OBJ_TABLE, TABLE)
        .string(NFTA_OBJ_NAME, name)
        .attribute(NFTA_OBJ_TYPE, &COUNTER_OBJECT.to_be_bytes());
    let read = get(dialogue, "read a counter of the nftables guard", counter, |object| {
        find(object, NFTA_OBJ_DATA).and_then(Traffic::read)
    })?;
    Ok(read.flatten())
}

/// Reads one object, `None` if it does not exist.
fn get<T>(
    dialogue: &mut Dialogue,
    what: &'static str,
    request: Request,
    decode: impl Fn(&[u8]) -> T,
) -> Result<Option<T>, NetlinkError> {
    let mut found = None;
    let asked = dialogue.ask(what, request, |message| {
        found = message.payload.get(GENERIC..).map(&decode);
    });
    match asked {
        Ok(()) => Ok(found),
        Err(absent) if absent.is_refusal(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod transit_tests;
