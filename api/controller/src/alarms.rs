//! Groups that became empty or grew suddenly.
//!
//! Both are what a mistake looks like from outside: a label that was renamed, a selector that means
//! more than it should. Neither is refused, for a group may rightly do both; it is told.
//!
//! A group has **grown suddenly** when it has more members than a [`Growth::within`] ago by more than
//! [`Growth::percent`] of them and by more than [`Growth::members`]. It is compared with what it was
//! then and not with its least since, so that pods that are replaced are no growth. What is first
//! heard of is none either: a group that is new, and all of them while clusters or accounts are still
//! being learned, are judged when they have been known for that long.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::time::{Duration, Instant};

use smartgroups::GroupId;

use crate::Sizes;

/// How many pairs of a group and a kind are counted by name; others together.
const COUNTED: usize = 200;
/// What the others are counted as: no name of a group has such a sign.
const OTHERS: &str = "(others)";
/// How many growths are remembered, and for how long.
const REMEMBERED: usize = 50;
const REMEMBERED_FOR: Duration = Duration::from_secs(3_600);
/// In so many steps a span is looked back at, however often a group changes in it.
const STEPS: u32 = 64;

/// When growth is sudden: more than both in this time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth {
    /// By more than so many hundredths of what it was.
    pub percent: u32,
    /// And by more than so many members.
    pub members: u32,
    /// In this time.
    pub within: Duration,
}

impl Default for Growth {
    fn default() -> Self {
        Self { percent: 50, members: 50, within: Duration::from_secs(60) }
    }
}

impl Growth {
    fn is_sudden(self, before: usize, now: usize) -> bool {
        let (before, grown) = (before as u64, now.saturating_sub(before) as u64);
        grown > u64::from(self.members)
            && grown.saturating_mul(100) > before.saturating_mul(u64::from(self.percent))
    }
}

/// What a group did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AlarmKind {
    /// It had members and has none.
    Emptied,
    /// It has far more than a moment ago.
    Grown,
}

impl AlarmKind {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Emptied => "emptied",
            Self::Grown => "grown",
        }
    }
}

/// An alarm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alarm {
    /// Of which group.
    pub group: String,
    /// What it did.
    pub kind: AlarmKind,
    /// How many members it had.
    pub before: usize,
    /// How many it has since.
    pub now: usize,
    /// When.
    pub at: Instant,
}

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { group, kind, before, now, .. } = self;
        let had = if *before == 1 { "1 member".to_owned() } else { format!("{before} members") };
        match kind {
            AlarmKind::Emptied => write!(f, "group `{group}` has become empty, it had {had}"),
            AlarmKind::Grown => {
                write!(f, "group `{group}` has grown suddenly, from {had} to {now}")
            }
        }
    }
}

/// All that is to be told of groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AlarmStatus {
    /// Groups that are empty since they had members, and those that grew in the last hour.
    pub active: Vec<Alarm>,
    /// How many groups are empty, for whatever reason.
    pub empty: usize,
    /// How many alarms there were, by group and kind.
    pub counts: Vec<(String, AlarmKind, u64)>,
}

/// What is known of one group.
#[derive(Debug)]
struct Group {
    name: String,
    /// Its sizes, each with since when; the first is older than the span, if it is known for so long.
    sizes: VecDeque<(Instant, usize)>,
    emptied: Option<Alarm>,
}

impl Group {
    fn new(name: String, size: usize, now: Instant) -> Self {
        Self { name, sizes: [(now, size)].into(), emptied: None }
    }

    fn size(&self) -> usize {
        self.sizes.back().map_or(0, |(_, size)| *size)
    }

    fn begin_anew(&mut self, size: usize, now: Instant) {
        self.sizes = [(now, size)].into();
    }

    /// Its size a span ago, if it was known then.
    fn size_before(&mut self, span: Duration, now: Instant) -> Option<usize> {
        let is_past = |at: Instant| now.saturating_duration_since(at) >= span;
        while self.sizes.get(1).is_some_and(|(at, _)| is_past(*at)) {
            self.sizes.pop_front();
        }
        self.sizes.front().filter(|(at, _)| is_past(*at)).map(|(_, size)| *size)
    }

    fn note(&mut self, size: usize, span: Duration, now: Instant) {
        match self.sizes.back_mut() {
            // What is older than a step is what it will be compared with.
            Some((at, last)) if now.saturating_duration_since(*at) < span / STEPS => *last = size,
            _ => self.sizes.push_back((now, size)),
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Alarms {
    growth: Growth,
    groups: HashMap<GroupId, Group>,
    grown: VecDeque<Alarm>,
    counts: BTreeMap<(String, AlarmKind), u64>,
}

impl Alarms {
    /// Another policy is in force, with these groups and sizes. What a group was under the policy of
    /// before is what it is compared with; the groups of the first are compared with nothing.
    pub fn restate<'a>(
        &mut self,
        groups: impl IntoIterator<Item = (GroupId, &'a str)>,
        growth: Growth,
        sizes: &Sizes,
        is_learning: bool,
        now: Instant,
    ) -> Vec<Alarm> {
        self.growth = growth;
        let mut before = std::mem::take(&mut self.groups);
        let mut alarms = Vec::new();
        for (id, name) in groups {
            // An id follows from the name, so another name is another group.
            let known = before.remove(&id).filter(|group| group.name == name);
            let is_new = known.is_none();
            let group = known.unwrap_or_else(|| Group::new(name.to_owned(), sizes.get(id), now));
            self.groups.insert(id, group);
            if !is_new {
                alarms.extend(self.look(id, sizes.get(id), is_learning, now));
            }
        }
        alarms
    }

    /// These groups have other sizes. While somebody is still being learned growth is none.
    pub fn judge(
        &mut self,
        changed: impl IntoIterator<Item = GroupId>,
        sizes: &Sizes,
        is_learning: bool,
        now: Instant,
    ) -> Vec<Alarm> {
        changed
            .into_iter()
            .filter_map(|group| self.look(group, sizes.get(group), is_learning, now))
            .collect()
    }

    /// All groups, whose sizes may be others.
    pub fn judge_all(&mut self, sizes: &Sizes, is_learning: bool, now: Instant) -> Vec<Alarm> {
        let all: Vec<GroupId> = self.groups.keys().copied().collect();
        self.judge(all, sizes, is_learning, now)
    }

    fn look(&mut self, id: GroupId, size: usize, is_learning: bool, now: Instant) -> Option<Alarm> {
        let growth = self.growth;
        let group = self.groups.get_mut(&id)?;
        let last = group.size();
        if size == last {
            return None;
        }
        let alarm = |group: &Group, kind, before| Alarm {
            group: group.name.clone(),
            kind,
            before,
            now: size,
            at: now,
        };
        if size == 0 {
            let emptied = alarm(group, AlarmKind::Emptied, last);
            group.note(size, growth.within, now);
            group.emptied = Some(emptied.clone());
            self.count(&emptied);
            return Some(emptied);
        }
        group.emptied = None;
        if is_learning {
            group.begin_anew(size, now);
            return None;
        }
        let before = group.size_before(growth.within, now);
        match before.filter(|before| growth.is_sudden(*before, size)) {
            None => {
                group.note(size, growth.within, now);
                None
            }
            Some(before) => {
                let grown = alarm(group, AlarmKind::Grown, before);
                // Once: what it grows from now on is compared with this.
                group.begin_anew(size, now);
                self.grown.push_front(grown.clone());
                self.grown.truncate(REMEMBERED);
                self.count(&grown);
                Some(grown)
            }
        }
    }

    fn count(&mut self, alarm: &Alarm) {
        let key = (alarm.group.clone(), alarm.kind);
        let has_room = self.counts.len() < COUNTED || self.counts.contains_key(&key);
        let key = if has_room { key } else { (OTHERS.to_owned(), alarm.kind) };
        *self.counts.entry(key).or_default() += 1;
    }

    /// What is to be told.
    pub fn status(&self, now: Instant) -> AlarmStatus {
        let is_recent = |one: &&Alarm| now.saturating_duration_since(one.at) < REMEMBERED_FOR;
        let is_there = |one: &&Alarm| self.groups.values().any(|group| group.name == one.group);
        let grown = self.grown.iter().filter(is_recent).filter(is_there);
        let emptied = self.groups.values().filter_map(|group| group.emptied.as_ref());
        let mut active: Vec<Alarm> = emptied.chain(grown).cloned().collect();
        active.sort_by(|a, b| (b.at, &a.group, a.kind).cmp(&(a.at, &b.group, b.kind)));
        let counts = self.counts.iter();
        AlarmStatus {
            active,
            empty: self.groups.values().filter(|group| group.size() == 0).count(),
            counts: counts.map(|((group, kind), count)| (group.clone(), *kind, *count)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Groups whose sizes a test says, at times that it says.
    struct Desk {
        alarms: Alarms,
        start: Instant,
    }

    const GROWTH: Growth = Growth { percent: 50, members: 10, within: Duration::from_secs(60) };

    fn sizes(of: &[(&str, usize)]) -> Sizes {
        of.iter().map(|(name, size)| (GroupId::of(name), *size)).collect()
    }

    impl Desk {
        fn new(first: &[(&str, usize)]) -> Self {
            let mut desk = Self { alarms: Alarms::default(), start: Instant::now() };
            assert_eq!(desk.restate(0, first), [""; 0], "the first is compared with nothing");
            desk
        }

        fn at(&self, seconds: u64) -> Instant {
            self.start + Duration::from_secs(seconds)
        }

        fn restate(&mut self, at: u64, groups: &[(&str, usize)]) -> Vec<String> {
            let now = self.at(at);
            let named = groups.iter().map(|(name, _)| (GroupId::of(name), *name));
            said(&self.alarms.restate(named, GROWTH, &sizes(groups), false, now))
        }

        fn change(&mut self, at: u64, group: &str, size: usize) -> Vec<String> {
            let now = self.at(at);
            let of = sizes(&[(group, size)]);
            said(&self.alarms.judge([GroupId::of(group)], &of, false, now))
        }
    }

    fn said(alarms: &[Alarm]) -> Vec<String> {
        alarms.iter().map(|alarm| format!("{} {}", alarm.kind.as_str(), alarm.before)).collect()
    }

    #[test]
    fn a_group_that_had_members_and_has_none_is_told_once_until_it_has_some() {
        let mut desk = Desk::new(&[("web", 3), ("none", 0)]);
        assert_eq!(desk.alarms.status(desk.start).empty, 1);
        for (at, size, expected) in [
            (1, 2, &[][..]),
            (2, 0, &["emptied 2"]),
            (3, 0, &[]),
            (4, 1, &[]),
            (5, 0, &["emptied 1"]),
        ] {
            assert_eq!(desk.change(at, "web", size), expected, "{at}");
        }
        let status = desk.alarms.status(desk.at(9_000));
        assert_eq!(status.empty, 2);
        let active: Vec<String> = status.active.iter().map(ToString::to_string).collect();
        assert_eq!(active, ["group `web` has become empty, it had 1 member"]);
        assert_eq!(status.counts, [("web".to_owned(), AlarmKind::Emptied, 2)]);
        desk.change(9_001, "web", 1);
        assert_eq!(desk.alarms.status(desk.at(9_001)).active, []);
    }

    #[test]
    fn growth_is_sudden_by_more_than_half_and_by_more_than_the_members_in_the_time() {
        for (before, now, expected) in [
            (20, 30, false), // neither
            (20, 31, true),  // 11 of 20
            (10, 20, false), // doubled, but 10 members
            (10, 21, true),
            (22, 33, false), // 11, and half of it
            (22, 34, true),
            (0, 10, false),
            (0, 11, true),
            (30, 10, false),
        ] {
            let mut desk = Desk::new(&[("web", before)]);
            let found = desk.change(60, "web", now);
            let grown = expected.then(|| format!("grown {before}"));
            assert_eq!(found, Vec::from_iter(grown), "{before} {now}");
        }
    }

    #[test]
    fn growth_is_compared_with_what_was_a_span_ago() {
        let mut desk = Desk::new(&[("web", 20)]);
        assert_eq!(desk.change(59, "web", 100), [""; 0], "not known for long enough");
        // By a little every half minute: never by half in a minute.
        let mut size = 100;
        for at in (120..3_000).step_by(30) {
            size += size / 5;
            assert_eq!(desk.change(at, "web", size), [""; 0], "{at}");
        }
        // Pods that are replaced go and come.
        let mut desk = Desk::new(&[("web", 100)]);
        for (at, size) in [(100, 60), (110, 20), (130, 60), (150, 100)] {
            assert_eq!(desk.change(at, "web", size), [""; 0], "{at}");
        }
        // In small steps, and then no more until it has grown anew.
        let mut desk = Desk::new(&[("web", 20)]);
        let steps: Vec<Vec<String>> =
            (0..10).map(|step| desk.change(100 + step, "web", 22 + 2 * step as usize)).collect();
        let told: Vec<&String> = steps.iter().flatten().collect();
        assert_eq!(told, ["grown 20"], "{steps:?}");
        assert_eq!(desk.change(140, "web", 45), [""; 0]);
        assert_eq!(desk.change(200, "web", 90), ["grown 45"]);
        assert_eq!(desk.alarms.status(desk.at(200)).active.len(), 2);
        assert_eq!(desk.alarms.status(desk.at(200 + 3_600)).active, []);
    }

    #[test]
    fn what_is_still_being_learned_is_no_growth() {
        let mut desk = Desk::new(&[("web", 0)]);
        let late = desk.at(600);
        let learned = sizes(&[("web", 500)]);
        assert_eq!(desk.alarms.judge([GroupId::of("web")], &learned, true, late), []);
        assert_eq!(desk.change(630, "web", 1_000), [""; 0], "it was learned half a minute ago");
        assert_eq!(desk.change(700, "web", 1_600), ["grown 1000"]);
        let nobody = sizes(&[]);
        let emptied = desk.alarms.judge([GroupId::of("web")], &nobody, true, desk.at(701));
        assert_eq!(said(&emptied), ["emptied 1600"], "to lose all is never a part of it");
    }

    #[test]
    fn a_reload_is_compared_with_the_policy_before_it() {
        let mut desk = Desk::new(&[("web", 20), ("db", 5), ("old", 3)]);
        let all = [("web", 200), ("db", 0), ("new", 500)];
        let mut told = desk.restate(100, &all);
        told.sort_unstable();
        assert_eq!(told, ["emptied 5", "grown 20"], "one that is new is compared with nothing");
        assert_eq!(desk.change(170, "old", 0), [""; 0], "there is none any more");
        desk.restate(180, &[("db", 0)]);
        let active = desk.alarms.status(desk.at(180)).active;
        assert_eq!(said(&active), ["emptied 5"], "of groups that there are");
    }

    #[test]
    fn of_very_many_groups_some_are_counted_by_name() {
        let names: Vec<String> = (0..COUNTED + 5).map(|n| format!("g{n:03}")).collect();
        let groups: Vec<(&str, usize)> = names.iter().map(|name| (name.as_str(), 1)).collect();
        let mut desk = Desk::new(&groups);
        for _ in 0..2 {
            let changed = names.iter().map(|name| GroupId::of(name));
            let now = desk.at(1);
            assert_eq!(desk.alarms.judge(changed, &sizes(&[]), false, now).len(), names.len());
            desk.alarms.judge_all(&sizes(&groups), false, now);
        }
        let counts = desk.alarms.status(desk.at(1)).counts;
        assert_eq!(counts.len(), COUNTED + 1);
        assert_eq!(counts[0], (OTHERS.to_owned(), AlarmKind::Emptied, 10));
        assert!(counts[1..].iter().all(|(_, _, count)| *count == 2));
    }

    #[test]
    fn however_often_a_group_changes_little_of_it_is_remembered() {
        let mut desk = Desk::new(&[("web", 1)]);
        for step in 0..60_000_u64 {
            let now = desk.start + Duration::from_millis(step * 5);
            let of = sizes(&[("web", 1 + (step % 2) as usize)]);
            desk.alarms.judge([GroupId::of("web")], &of, false, now);
        }
        let remembered = desk.alarms.groups[&GroupId::of("web")].sizes.len();
        assert!(remembered <= STEPS as usize + 2, "{remembered}");
    }
}
