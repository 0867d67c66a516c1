//! What is known of names, what to ask next, and who is a member: without I/O or a clock.
//!
//! IPv4 and IPv6 are two questions, each with an answer, a TTL and a failure of its own: a server that
//! has nothing to say of one must not hold up the other.
//!
//! **Time that counts.** Until when an address stays is written on a clock that runs only while the
//! name is known: from an answer to when it should have been asked for again. A server that is away
//! for a day uses up nothing, and when it is back the addresses of before have as long as they had.
//! So an address leaves only by an answer without it, which has others, and a name that once had an
//! address has one ever after.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use smartgroups::{Change, DomainId, Endpoint, EndpointKind};

use super::{DnsName, MOST_ADDRESSES, Rules, WhyNot};

/// No name is asked for more often, whatever its TTL.
const ASK_AT_MOST_EVERY: Duration = Duration::from_secs(5);
/// None is asked for less often: a TTL of days would hide for as long that a name has moved.
const ASK_AT_LEAST_EVERY: Duration = Duration::from_secs(3_600);
/// After failures in a row: at first as often as may be, then twice as long each time up to this.
const ASK_AFTER_FAILURES_EVERY: Duration = Duration::from_secs(60);
/// No TTL is believed beyond this, as resolvers have it (RFC 8767 lets them bound it at days).
const LONGEST_TTL: Duration = Duration::from_secs(24 * 3_600);
/// How many refused addresses of one answer are told; the others are counted.
const TOLD: usize = 8;

/// Which addresses are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4, by a question for A.
    V4,
    /// IPv6, by a question for AAAA.
    V6,
}

impl Family {
    const ALL: [Self; 2] = [Self::V4, Self::V6];

    fn has(self, address: IpAddr) -> bool {
        address.is_ipv4() == (self == Self::V4)
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// What DNS is asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Question {
    /// Of whom.
    pub name: DnsName,
    /// Which of its addresses.
    pub family: Family,
}

/// What became of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The name has these addresses, and for so long.
    Addresses {
        /// One or more.
        addresses: Vec<IpAddr>,
        /// The shortest TTL on the way from the name to them.
        ttl: Duration,
    },
    /// There is no such name, or it has no address of the family.
    Nothing,
    /// Nobody answered, or not so that it can be used: why.
    Failed(String),
}

/// What an answer has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Addresses came or went.
    pub changed: bool,
    /// What is wrong with the name since then, if it was not before.
    pub fault: Option<String>,
    /// What was wrong with it is not any more.
    pub recovered: bool,
}

/// How well a name is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameStatus {
    /// Which.
    pub name: DnsName,
    /// How many addresses are members.
    pub addresses: usize,
    /// When what is known was right last; `None`: nothing is known yet.
    pub confirmed: Option<Instant>,
    /// How many answers failed, or were empty although addresses were known.
    pub failures: u64,
    /// How many answered addresses were refused.
    pub refused: u64,
    /// How many found no room among [`MOST_ADDRESSES`].
    pub left_out: u64,
    /// What is wrong with its last answers, in one sentence.
    pub fault: Option<String>,
}

impl NameStatus {
    /// How old what is known may be; `None`: nothing is known yet.
    pub fn staleness(&self, now: Instant) -> Option<Duration> {
        self.confirmed.map(|confirmed| now.saturating_duration_since(confirmed))
    }
}

/// What is known of one family of a name.
#[derive(Debug)]
struct Side {
    /// When it is to be asked for; `None`: it is being asked for.
    due: Option<Instant>,
    /// When it was answered last, and when it was to be asked for again.
    answered: Option<(Instant, Instant)>,
    /// For how long it was known altogether.
    known: Duration,
    /// Who is a member, each until when, as `known` counts.
    members: BTreeMap<IpAddr, Duration>,
    /// When members were right last.
    confirmed: Option<Instant>,
    failures_in_a_row: u32,
    last: Last,
}

/// What its last answer was like.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Last {
    /// There was none.
    None,
    /// As it should be, but for some addresses that were refused.
    Good(Vec<(IpAddr, WhyNot)>),
    /// All addresses were refused.
    Refused(Vec<(IpAddr, WhyNot)>),
    Nothing,
    Failed(String),
}

impl Side {
    fn new(now: Instant) -> Self {
        Self {
            due: Some(now),
            answered: None,
            known: Duration::ZERO,
            members: BTreeMap::new(),
            confirmed: None,
            failures_in_a_row: 0,
            last: Last::None,
        }
    }

    /// Takes addresses in that were answered and are not refused, of which there is one or more.
    /// Returns how many found no room.
    fn confirm(
        &mut self,
        addresses: &[IpAddr],
        ttl: Duration,
        grace: Duration,
        now: Instant,
    ) -> usize {
        if let Some((answered, again)) = self.answered {
            self.known += now.min(again).saturating_duration_since(answered);
        }
        let until = self.known + ttl.min(LONGEST_TTL) + grace;
        for address in addresses {
            let member = self.members.entry(*address).or_default();
            *member = until.max(*member);
        }
        self.members.retain(|_, until| *until > self.known);
        let left_out = self.members.len().saturating_sub(MOST_ADDRESSES);
        if left_out > 0 {
            let mut by_time: Vec<_> =
                self.members.iter().map(|(one, until)| (*until, *one)).collect();
            by_time.sort_unstable();
            for (_, address) in &by_time[..left_out] {
                self.members.remove(address);
            }
        }
        let again = now + ttl.clamp(ASK_AT_MOST_EVERY, ASK_AT_LEAST_EVERY);
        self.answered = Some((now, again));
        self.due = Some(again);
        self.confirmed = Some(now);
        self.failures_in_a_row = 0;
        left_out
    }

    /// Nothing was learned.
    fn fail(&mut self, now: Instant) {
        let doubled = ASK_AT_MOST_EVERY * 2_u32.saturating_pow(self.failures_in_a_row.min(8));
        self.due = Some(now + doubled.min(ASK_AFTER_FAILURES_EVERY));
        self.failures_in_a_row += 1;
    }

    fn fault(&self, family: Family) -> Option<String> {
        let family = family.as_str();
        let refused = |refused: &[(IpAddr, WhyNot)]| {
            let told = refused.iter().map(|(address, why)| format!("{address} is {why}"));
            told.collect::<Vec<_>>().join(", ")
        };
        match &self.last {
            Last::Failed(why) => Some(format!("{family}: {why}")),
            Last::Nothing if !self.members.is_empty() => {
                Some(format!("DNS gives no {family} address any more; those that were known stay"))
            }
            Last::Refused(all) => {
                Some(format!("every {family} address is refused: {}", refused(all)))
            }
            Last::Good(some) if !some.is_empty() => Some(format!("refused: {}", refused(some))),
            Last::None | Last::Nothing | Last::Good(_) => None,
        }
    }
}

#[derive(Debug)]
struct Known {
    sides: [Side; 2],
    failures: u64,
    refused: u64,
    left_out: u64,
}

impl Known {
    fn new(now: Instant) -> Self {
        Self { sides: [Side::new(now), Side::new(now)], failures: 0, refused: 0, left_out: 0 }
    }

    fn side(&mut self, family: Family) -> &mut Side {
        &mut self.sides[family as usize]
    }

    fn members(&self) -> impl Iterator<Item = IpAddr> {
        self.sides.iter().flat_map(|side| side.members.keys().copied())
    }

    fn fault(&self) -> Option<String> {
        let both_nothing = self.sides.iter().all(|side| side.last == Last::Nothing);
        if both_nothing && self.members().next().is_none() {
            return Some("DNS has no address for it".to_owned());
        }
        let faults: Vec<String> = Family::ALL
            .iter()
            .zip(&self.sides)
            .filter_map(|(family, side)| side.fault(*family))
            .collect();
        (!faults.is_empty()).then(|| faults.join("; "))
    }
}

/// See the module.
#[derive(Debug)]
pub struct Book {
    rules: Rules,
    names: BTreeMap<DnsName, Known>,
}

impl Book {
    /// A book without names.
    pub fn new(rules: Rules) -> Self {
        Self { rules, names: BTreeMap::new() }
    }

    /// Knows exactly these names from now on, by these rules. Returns the names that it knew and does
    /// not any more, and those that lost an address by the rules.
    pub fn follow(
        &mut self,
        wanted: &BTreeSet<DnsName>,
        rules: Rules,
        now: Instant,
    ) -> (Vec<DnsName>, Vec<DnsName>) {
        let gone: Vec<DnsName> =
            self.names.keys().filter(|name| !wanted.contains(*name)).cloned().collect();
        self.names.retain(|name, _| wanted.contains(name));
        for name in wanted {
            self.names.entry(name.clone()).or_insert_with(|| Known::new(now));
        }
        self.rules = rules;
        let mut changed = Vec::new();
        for (name, known) in &mut self.names {
            let before = known.members().count();
            for side in &mut known.sides {
                side.members.retain(|address, _| self.rules.why_not(*address).is_none());
            }
            if known.members().count() != before {
                changed.push(name.clone());
            }
        }
        (gone, changed)
    }

    /// These addresses were known of a name before this book was begun; they stay for the grace at
    /// least, however long ago they were answered.
    pub fn recall(&mut self, name: &DnsName, addresses: &[IpAddr], now: Instant) {
        let Some(known) = self.names.get_mut(name) else { return };
        for family in Family::ALL {
            let taken = |address: &&IpAddr| {
                family.has(**address) && self.rules.why_not(**address).is_none()
            };
            let side = &mut known.sides[family as usize];
            for address in addresses.iter().filter(taken).take(MOST_ADDRESSES) {
                side.members.entry(*address).or_insert(side.known + self.rules.grace);
                side.confirmed.get_or_insert(now);
            }
        }
    }

    /// Somebody else is asked from now on: whatever failed is due.
    pub fn ask_again(&mut self, now: Instant) {
        for side in self.names.values_mut().flat_map(|known| &mut known.sides) {
            if side.failures_in_a_row > 0 && side.due.is_some() {
                side.due = Some(now);
            }
        }
    }

    /// What is to be asked now, at most so many: what has waited longest first. It is being asked
    /// from then on, until [`Book::hear`].
    pub fn due(&mut self, now: Instant, most: usize) -> Vec<Question> {
        let mut due = Vec::new();
        for (name, known) in &self.names {
            for (family, side) in Family::ALL.iter().zip(&known.sides) {
                if let Some(at) = side.due.filter(|at| *at <= now) {
                    due.push((at, Question { name: name.clone(), family: *family }));
                }
            }
        }
        due.sort_unstable();
        due.truncate(most);
        for (_, question) in &due {
            if let Some(known) = self.names.get_mut(&question.name) {
                known.side(question.family).due = None;
            }
        }
        due.into_iter().map(|(_, question)| question).collect()
    }

    /// When something is to be asked next, of what is not being asked.
    pub fn next(&self) -> Option<Instant> {
        self.names.values().flat_map(|known| &known.sides).filter_map(|side| side.due).min()
    }

    /// Takes an answer in; that to a question for a name that it does not know any more is none.
    pub fn hear(&mut self, question: &Question, answer: Answer, now: Instant) -> Heard {
        let Some(known) = self.names.get_mut(&question.name) else { return Heard::default() };
        let fault_before = known.fault();
        let before: BTreeSet<IpAddr> = known.members().collect();
        let (mut refused, mut left_out, mut failed) = (0, 0, false);
        let side = known.side(question.family);
        match answer {
            Answer::Addresses { addresses, ttl } => {
                let (mut taken, mut not) = (Vec::new(), Vec::new());
                for address in addresses {
                    match self.rules.why_not(address) {
                        Some(why) => not.push((address, why)),
                        // Another family than was asked for is no answer to the question.
                        None if question.family.has(address) => taken.push(address),
                        None => {}
                    }
                }
                refused = not.len() as u64;
                not.sort_unstable();
                not.truncate(TOLD);
                if taken.is_empty() {
                    side.fail(now);
                    failed = true;
                    side.last = if not.is_empty() { Last::Nothing } else { Last::Refused(not) };
                } else {
                    left_out = side.confirm(&taken, ttl, self.rules.grace, now) as u64;
                    side.last = Last::Good(not);
                }
            }
            Answer::Nothing => {
                failed = !side.members.is_empty();
                side.fail(now);
                side.last = Last::Nothing;
            }
            Answer::Failed(why) => {
                failed = true;
                side.fail(now);
                side.last = Last::Failed(why);
            }
        }
        known.failures += u64::from(failed);
        known.refused += refused;
        known.left_out += left_out;
        let fault = known.fault();
        Heard {
            changed: !known.members().eq(before),
            recovered: fault.is_none() && fault_before.is_some(),
            fault: fault.filter(|fault| fault_before.as_ref() != Some(fault)),
        }
    }

    /// Whether it knows of a name.
    pub fn has(&self, name: &DnsName) -> bool {
        self.names.contains_key(name)
    }

    /// A name as an endpoint of the fabric, with all addresses that are members now; or that it is
    /// gone.
    pub fn change(&self, name: &DnsName) -> Change {
        let called = Endpoint::name_of_fqdn(name.as_str());
        let Some(known) = self.names.get(name) else { return Change::Gone(called) };
        Change::Endpoint(Arc::new(Endpoint {
            addresses: known.members().map(IpNet::from).collect(),
            ..Endpoint::new(called, EndpointKind::Fqdn, DomainId::FABRIC)
        }))
    }

    /// How well each name is known.
    pub fn status(&self) -> Vec<NameStatus> {
        let status = |(name, known): (&DnsName, &Known)| {
            let with_members = known.sides.iter().filter(|side| !side.members.is_empty());
            NameStatus {
                name: name.clone(),
                addresses: known.members().count(),
                confirmed: with_members.filter_map(|side| side.confirmed).min(),
                failures: known.failures,
                refused: known.refused,
                left_out: known.left_out,
                fault: known.fault(),
            }
        };
        self.names.iter().map(status).collect()
    }
}

#[cfg(test)]
mod tests;
