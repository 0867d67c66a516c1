//! The last guard: no packet with a non-routable source leaves on a routable interface.
//!
//! The fast path checks this itself, right before it sends. This guard is for when there is no
//! fast path: the program is detached, an interface was replaced, the daemon is dead and the
//! kernel forwards on its own. So it is a table of the kernel's packet filter, which stays
//! until somebody takes it away, and names interfaces by name, so that one that is made anew
//! is guarded from its first packet.
//!
//! It is nftables because a table of one's own cannot collide with the operator's rules, and
//! because a whole change is one transaction: the rules are emptied and filled in one step, and
//! every packet sees the old ones or the new ones. The chain itself stays hooked meanwhile;
//! replacing it too would open a gap for a packet that passes the new chain before the step and
//! the old one after it. It is hooked last (priority 300), when the kernel's own translation
//! (100) has put in the source that really leaves.
//!
//! And it is written by netlink, because the guard must not depend on whether `nft` is
//! installed, nor on how it prints. What was written is read back and compared, so a guard that
//! is said to be in force is.

mod expression;

use std::collections::BTreeMap;

use ipnet::Ipv4Net;

use super::dialogue::{Dialogue, Family, NetlinkError};
use super::wire::{self, Request, network_u32};
pub use expression::Traffic;
use expression::{COUNTER_OBJECT, Expression, Meta, Side, Verdict, find};

/// The name of the table, in the family `inet`.
pub const TABLE: &str = "sluice_guard";
const CHAIN: &str = "postrouting";
/// The counter of all drops; unlike those in the rules it outlives a change of them.
const DROPPED: &str = "dropped";

const CHAIN_KIND: &str = "filter";
const PRIORITY: u32 = 300;
const HOOK: u32 = libc::NF_INET_POST_ROUTING as u32;
const SUBSYSTEM: u16 = libc::NFNL_SUBSYS_NFTABLES as u16;
const INET: u8 = libc::NFPROTO_INET as u8;
/// `NFT_TABLE_F_DORMANT`: a table that is there and does nothing.
const DORMANT: u32 = 1;
/// Length of `struct nfgenmsg`.
const GENERIC: usize = 4;
/// How long a name of an interface is in the kernel, with zeros to the end.
const NAME_LENGTH: usize = 16;

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
    /// Interfaces that lead to pods as well: destinations behind them that see pod addresses as
    /// they are, because they are pods of the same network.
    pub towards: BTreeMap<String, Vec<Ipv4Net>>,
    /// Packets with this mark pass: the program at the interface is about to translate them.
    pub exempt: Option<ExemptMark>,
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

type Rule = Vec<Expression>;

/// The chain as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Chain {
    hook: Option<u32>,
    priority: Option<u32>,
    policy: Option<u32>,
    kind: String,
}

impl Chain {
    /// The one that guards.
    fn guarding() -> Self {
        Self {
            hook: Some(HOOK),
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
    dropped: Option<Traffic>,
}

impl GuardState {
    /// Whether exactly this guard is in force.
    pub fn holds(&self, spec: &GuardSpec) -> bool {
        self.is_hooked() && self.rules.iter().map(without_counts).eq(rules(spec))
    }

    /// What was dropped since the table was made. It must stay 0.
    pub fn dropped(&self) -> Traffic {
        self.dropped.unwrap_or_default()
    }

    /// What was dropped on each interface since the guard last changed.
    pub fn dropped_by_interface(&self) -> BTreeMap<String, Traffic> {
        let mut all: BTreeMap<String, Traffic> = BTreeMap::new();
        for rule in &self.rules {
            let Some((name, counted)) = drop_rule(rule) else { continue };
            let sum = all.entry(name).or_default();
            sum.packets = sum.packets.saturating_add(counted.packets);
            sum.bytes = sum.bytes.saturating_add(counted.bytes);
        }
        all
    }

    /// Whether packets pass the chain at all.
    fn is_hooked(&self) -> bool {
        !self.dormant && self.chain == Some(Chain::guarding())
    }
}

/// Puts the guard in force, in one step; safe to repeat.
pub fn install(spec: &GuardSpec) -> Result<Installed, GuardError> {
    check(spec)?;
    let mut dialogue = Dialogue::open(Family::Netfilter)?;
    let found = read_with(&mut dialogue)?;
    if found.as_ref().is_some_and(|state| state.holds(spec)) {
        return Ok(Installed::Unchanged);
    }
    dialogue.batch("set the nftables guard", batch(changes(spec, found.as_ref())))?;
    match read_with(&mut dialogue)? {
        Some(state) if state.holds(spec) => Ok(Installed::Written),
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
    for (interface, carries) in &spec.interfaces {
        if !super::is_interface_name(interface) {
            return Err(GuardError::Interface(interface.clone()));
        }
        let outside =
            |prefix: &&Ipv4Net| !spec.non_routable.iter().any(|whole| whole.contains(*prefix));
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

/// The rules of a guard, in order: exceptions come before what they except from.
fn rules(spec: &GuardSpec) -> impl Iterator<Item = Rule> + '_ {
    let exempt = spec.exempt.map(|ExemptMark { value, mask }| {
        vec![
            Expression::Load(Meta::Mark),
            Expression::Mask(mask.to_ne_bytes()),
            Expression::Equals(value.to_ne_bytes().to_vec()),
            Expression::Decide(Verdict::Accept),
        ]
    });
    let guarded = spec.interfaces.iter().flat_map(|(name, carries)| {
        let towards = spec.towards.get(name).into_iter().flatten().map(|prefix| {
            let mut rule = with_prefix(name, Side::Destination, *prefix);
            rule.push(Expression::Decide(Verdict::Accept));
            rule
        });
        let carried = carries.iter().map(|prefix| {
            let mut rule = with_prefix(name, Side::Source, *prefix);
            rule.push(Expression::Decide(Verdict::Accept));
            rule
        });
        let kept_back = spec.non_routable.iter().map(|prefix| {
            let mut rule = with_prefix(name, Side::Source, *prefix);
            rule.extend([
                Expression::Count(Traffic::default()),
                Expression::CountIn(DROPPED.into()),
                Expression::Decide(Verdict::Drop),
            ]);
            rule
        });
        towards.chain(carried).chain(kept_back)
    });
    exempt.into_iter().chain(guarded)
}

/// Matches IPv4 packets from or to a prefix that leave by this interface.
fn with_prefix(interface: &str, side: Side, prefix: Ipv4Net) -> Rule {
    let mut name = interface.as_bytes().to_vec();
    name.resize(NAME_LENGTH, 0);
    vec![
        Expression::Load(Meta::OutputName),
        Expression::Equals(name),
        Expression::Load(Meta::Family),
        Expression::Equals(vec![libc::NFPROTO_IPV4 as u8]),
        Expression::LoadAddress(side),
        Expression::Mask(prefix.netmask().octets()),
        Expression::Equals(prefix.network().octets().to_vec()),
    ]
}

/// The interface of a rule that drops, and what it counted.
fn drop_rule(rule: &Rule) -> Option<(String, Traffic)> {
    match rule.as_slice() {
        [
            Expression::Load(Meta::OutputName),
            Expression::Equals(name),
            ..,
            Expression::Count(traffic),
            Expression::CountIn(_),
            Expression::Decide(Verdict::Drop),
        ] => Some((wire::text(name), *traffic)),
        _ => None,
    }
}

fn without_counts(rule: &Rule) -> Rule {
    let forget = |expression: &Expression| {
        let counts = matches!(expression, Expression::Count(_));
        if counts { Expression::Count(Traffic::default()) } else { expression.clone() }
    };
    rule.iter().map(forget).collect()
}

/// The changes from what was found to what should be. A chain that does not guard cannot be
/// turned into one that does, so then the table is made anew: there is no guard to interrupt.
fn changes(spec: &GuardSpec, found: Option<&GuardState>) -> Vec<Request> {
    let table = request(libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE)
        .string(NFTA_TABLE_NAME, TABLE)
        .attribute(NFTA_TABLE_FLAGS, &[0; 4]);
    let chain = request(libc::NFT_MSG_NEWCHAIN, libc::NLM_F_CREATE)
        .string(NFTA_CHAIN_TABLE, TABLE)
        .string(NFTA_CHAIN_NAME, CHAIN)
        .nested(NFTA_CHAIN_HOOK, |hook| {
            hook.attribute(NFTA_HOOK_HOOKNUM, &HOOK.to_be_bytes())
                .attribute(NFTA_HOOK_PRIORITY, &PRIORITY.to_be_bytes())
        })
        .attribute(NFTA_CHAIN_POLICY, &Verdict::Accept.code().to_be_bytes())
        .string(NFTA_CHAIN_TYPE, CHAIN_KIND);
    let counter = request(libc::NFT_MSG_NEWOBJ, libc::NLM_F_CREATE)
        .string(NFTA_OBJ_TABLE, TABLE)
        .string(NFTA_OBJ_NAME, DROPPED)
        .attribute(NFTA_OBJ_TYPE, &COUNTER_OBJECT.to_be_bytes())
        .nested(NFTA_OBJ_DATA, |data| Traffic::default().write(data));
    let emptied = request(libc::NFT_MSG_DELRULE, 0)
        .string(NFTA_RULE_TABLE, TABLE)
        .string(NFTA_RULE_CHAIN, CHAIN);
    let filled = rules(spec).map(|rule| {
        request(libc::NFT_MSG_NEWRULE, libc::NLM_F_CREATE | libc::NLM_F_APPEND)
            .string(NFTA_RULE_TABLE, TABLE)
            .string(NFTA_RULE_CHAIN, CHAIN)
            .nested(NFTA_RULE_EXPRESSIONS, |list| {
                rule.iter().fold(list, |list, expression| expression.write(list))
            })
    });
    let useless = found.filter(|state| !state.is_hooked()).map(|_| delete_table());
    useless.into_iter().chain([table, chain, counter, emptied]).chain(filled).collect()
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
    let chain = request(libc::NFT_MSG_GETCHAIN, libc::NLM_F_ACK)
        .string(NFTA_CHAIN_TABLE, TABLE)
        .string(NFTA_CHAIN_NAME, CHAIN);
    let chain = get(dialogue, "read the chain of the nftables guard", chain, Chain::read)?;
    let counter = request(libc::NFT_MSG_GETOBJ, libc::NLM_F_ACK)
        .string(NFTA_OBJ_TABLE, TABLE)
        .string(NFTA_OBJ_NAME, DROPPED)
        .attribute(NFTA_OBJ_TYPE, &COUNTER_OBJECT.to_be_bytes());
    let dropped = get(dialogue, "read the counter of the nftables guard", counter, |object| {
        find(object, NFTA_OBJ_DATA).and_then(Traffic::read)
    })?;
    let listing = request(libc::NFT_MSG_GETRULE, libc::NLM_F_DUMP)
        .string(NFTA_RULE_TABLE, TABLE)
        .string(NFTA_RULE_CHAIN, CHAIN);
    let rules = dialogue.dump(
        "list the rules of the nftables guard",
        &listing,
        |rules: &mut Vec<Rule>, message| {
            let payload = message.payload.get(GENERIC..).unwrap_or_default();
            rules.extend(find(payload, NFTA_RULE_EXPRESSIONS).map(Expression::read_list));
        },
    )?;
    Ok(Some(GuardState { dormant, chain, rules, dropped: dropped.flatten() }))
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
