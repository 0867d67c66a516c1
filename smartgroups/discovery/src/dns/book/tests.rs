use proptest::prelude::*;

use super::*;

const GRACE: Duration = Duration::from_secs(600);

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn rules() -> Rules {
    Rules { grace: GRACE, non_routable: vec!["100.64.0.0/10".parse().unwrap()] }
}

fn name(text: &str) -> DnsName {
    DnsName::new(text).unwrap()
}

fn ips(addresses: &[&str]) -> Vec<IpAddr> {
    addresses.iter().map(|address| address.parse().unwrap()).collect()
}

/// A book of one name, asked and answered at times that a test says.
struct Desk {
    book: Book,
    start: Instant,
}

impl Desk {
    fn new() -> Self {
        let (mut book, start) = (Book::new(rules()), Instant::now());
        book.follow(&[name("a.example")].into(), rules(), start);
        Self { book, start }
    }

    fn question(family: Family) -> Question {
        Question { name: name("a.example"), family }
    }

    fn hear(&mut self, at: u64, family: Family, answer: Answer) -> Heard {
        self.book.hear(&Self::question(family), answer, self.start + seconds(at))
    }

    fn answer(&mut self, at: u64, addresses: &[&str], ttl: u64) -> Heard {
        let answer = Answer::Addresses { addresses: ips(addresses), ttl: seconds(ttl) };
        self.hear(at, Family::V4, answer)
    }

    fn fail(&mut self, at: u64) -> Heard {
        self.hear(at, Family::V4, Answer::Failed("no answer".into()))
    }

    fn members(&self) -> Vec<String> {
        let change = self.book.change(&name("a.example"));
        let Change::Endpoint(endpoint) = change else { panic!("{change:?}") };
        assert_eq!(&*endpoint.name, "fqdn:a.example");
        assert_eq!((endpoint.kind, endpoint.domain), (EndpointKind::Fqdn, DomainId::FABRIC));
        endpoint.addresses.iter().map(|prefix| prefix.addr().to_string()).collect()
    }

    fn status(&self) -> NameStatus {
        self.book.status().remove(0)
    }

    /// In how many seconds from the start a family is asked for.
    fn due(&self, family: Family) -> u64 {
        let due = self.book.names[&name("a.example")].sides[family as usize].due;
        due.unwrap().duration_since(self.start).as_secs()
    }
}

#[test]
fn an_address_stays_for_its_ttl_and_the_grace_and_leaves_by_a_later_answer() {
    let mut desk = Desk::new();
    assert!(desk.answer(0, &["192.0.2.1"], 60).changed);
    assert!(desk.answer(60, &["192.0.2.2"], 60).changed);
    assert_eq!(desk.members(), ["192.0.2.1", "192.0.2.2"]);
    for at in (120..=600).step_by(60) {
        assert!(!desk.answer(at, &["192.0.2.2"], 60).changed, "{at}");
    }
    assert_eq!(desk.members(), ["192.0.2.1", "192.0.2.2"], "600 s are not 660");
    assert!(desk.answer(660, &["192.0.2.2"], 60).changed);
    assert_eq!(desk.members(), ["192.0.2.2"]);
}

#[test]
fn time_in_which_nothing_is_known_takes_nothing_away() {
    let mut desk = Desk::new();
    desk.answer(0, &["192.0.2.1", "192.0.2.2"], 60);
    for (at, answer) in [
        (60, Answer::Failed("no answer".into())),
        (65, Answer::Nothing),
        (75, Answer::Addresses { addresses: ips(&["169.254.169.254"]), ttl: seconds(60) }),
        (95, Answer::Addresses { addresses: vec![], ttl: seconds(60) }),
    ] {
        assert!(!desk.hear(at, Family::V4, answer).changed, "{at}");
        assert_eq!(desk.members(), ["192.0.2.1", "192.0.2.2"], "{at}");
    }
    assert_eq!(desk.status().failures, 4);
    assert_eq!(desk.status().staleness(desk.start + seconds(100)), Some(seconds(100)));
    // A day later: a minute of it counts.
    desk.answer(86_400, &["192.0.2.2"], 60);
    assert_eq!(desk.members(), ["192.0.2.1", "192.0.2.2"]);
    for at in 1..10 {
        desk.answer(86_400 + at * 60, &["192.0.2.2"], 60);
    }
    assert_eq!(desk.members(), ["192.0.2.1", "192.0.2.2"], "10 minutes are known");
    desk.answer(86_400 + 600, &["192.0.2.2"], 60);
    assert_eq!(desk.members(), ["192.0.2.2"], "11 are");
}

#[test]
fn a_name_is_asked_for_when_its_ttl_ends_within_bounds() {
    for (ttl, due) in [(0, 5), (4, 5), (5, 5), (6, 6), (60, 60), (3_600, 3_600), (86_400, 3_600)] {
        let mut desk = Desk::new();
        desk.answer(0, &["192.0.2.1"], ttl);
        assert_eq!(desk.due(Family::V4), due, "{ttl}");
        assert_eq!(desk.due(Family::V6), 0, "a question of its own");
    }
    let mut desk = Desk::new();
    let mut at = 0;
    for pause in [5, 10, 20, 40, 60, 60] {
        desk.fail(at);
        assert_eq!(desk.due(Family::V4), at + pause);
        at += pause;
    }
    desk.answer(at, &["192.0.2.1"], 60);
    desk.fail(at + 60);
    assert_eq!(desk.due(Family::V4), at + 65, "failures in a row begin anew");
    desk.hear(
        at + 60,
        Family::V6,
        Answer::Addresses { addresses: ips(&["2001:db8::1"]), ttl: seconds(60) },
    );
    desk.book.ask_again(desk.start + seconds(at + 61));
    assert_eq!((desk.due(Family::V4), desk.due(Family::V6)), (at + 61, at + 120), "who has failed");
}

#[test]
fn what_waits_longest_is_asked_first_and_nothing_is_asked_twice_at_once() {
    let (mut book, start) = (Book::new(rules()), Instant::now());
    book.follow(&[name("b.example")].into(), rules(), start);
    let later = start + seconds(1);
    book.follow(&[name("a.example"), name("b.example")].into(), rules(), later);
    assert_eq!(book.next(), Some(start));
    let asked = |book: &mut Book, most| {
        let due = book.due(later, most);
        due.into_iter().map(|one| (one.name.to_string(), one.family)).collect::<Vec<_>>()
    };
    let (a, b) = ("a.example".to_owned(), "b.example".to_owned());
    assert_eq!(
        asked(&mut book, 3),
        [(b.clone(), Family::V4), (b, Family::V6), (a.clone(), Family::V4)]
    );
    assert_eq!(asked(&mut book, 3), [(a, Family::V6)]);
    assert_eq!((asked(&mut book, 3), book.next()), (vec![], None));
}

#[test]
fn what_is_refused_is_no_member_and_is_told() {
    let mut desk = Desk::new();
    let heard = desk.answer(0, &["192.0.2.1", "100.64.0.7", "169.254.169.254", "2001:db8::1"], 60);
    assert_eq!(desk.members(), ["192.0.2.1"], "and what was not asked for is not heard");
    let some = "refused: 100.64.0.7 is non-routable, 169.254.169.254 is link-local";
    assert_eq!(heard, Heard { changed: true, fault: Some(some.into()), recovered: false });
    assert_eq!(desk.answer(60, &["192.0.2.1", "100.64.0.7", "169.254.169.254"], 60).fault, None);
    assert_eq!(desk.status().refused, 4);
    let heard = desk.answer(120, &["127.0.0.1"], 60);
    let all = "every IPv4 address is refused: 127.0.0.1 is loopback";
    assert_eq!(heard, Heard { changed: false, fault: Some(all.into()), recovered: false });
    assert_eq!(desk.members(), ["192.0.2.1"]);
    assert!(desk.answer(180, &["192.0.2.1"], 60).recovered);
    // What the rules of another configuration refuse is none from then on.
    let others = Rules { non_routable: vec!["192.0.2.0/24".parse().unwrap()], ..rules() };
    let wanted = [name("a.example")].into();
    let (gone, changed) = desk.book.follow(&wanted, others, desk.start + seconds(181));
    assert_eq!((gone, changed), (vec![], vec![name("a.example")]));
    assert_eq!(desk.members(), [""; 0]);
}

#[test]
fn a_fault_is_told_once_and_its_end() {
    let mut desk = Desk::new();
    let nothing = "DNS has no address for it";
    assert_eq!(desk.hear(0, Family::V6, Answer::Nothing), Heard::default(), "A may have some");
    assert_eq!(desk.hear(0, Family::V4, Answer::Nothing).fault.as_deref(), Some(nothing));
    assert_eq!(desk.status().confirmed, None);
    let heard = desk.answer(5, &["192.0.2.1"], 60);
    assert_eq!(heard, Heard { changed: true, fault: None, recovered: true });
    assert_eq!(desk.hear(5, Family::V6, Answer::Nothing), Heard::default(), "none is usual");
    let failed = desk.hear(10, Family::V6, Answer::Failed("refused".into()));
    assert_eq!(failed.fault.as_deref(), Some("IPv6: refused"));
    let both = desk.fail(65).fault;
    assert_eq!(both.as_deref(), Some("IPv4: no answer; IPv6: refused"));
    assert_eq!(desk.fail(70), Heard::default());
    let empty = "DNS gives no IPv4 address any more; those that were known stay; IPv6: refused";
    assert_eq!(desk.hear(80, Family::V4, Answer::Nothing).fault.as_deref(), Some(empty));
    desk.hear(85, Family::V6, Answer::Nothing);
    assert!(desk.answer(85, &["192.0.2.1"], 60).recovered);
}

#[test]
fn of_too_many_addresses_those_that_were_answered_last_stay() {
    let mut desk = Desk::new();
    let some = |first: u32| {
        let number = 0x0a00_0000 + first..0x0a00_0000 + first + MOST_ADDRESSES as u32 - 1;
        number.map(|bits| std::net::Ipv4Addr::from_bits(bits).to_string()).collect::<Vec<_>>()
    };
    let (old, new) = (some(0x1_0000), some(0));
    let answer = |desk: &mut Desk, at, all: &[String]| {
        desk.answer(at, &all.iter().map(String::as_str).collect::<Vec<_>>(), 60);
    };
    answer(&mut desk, 0, &old);
    assert_eq!(desk.status().left_out, 0);
    answer(&mut desk, 60, &new);
    let members = desk.members();
    assert_eq!(members.len(), MOST_ADDRESSES);
    assert!(new.iter().all(|address| members.contains(address)));
    assert_eq!(desk.status().left_out, MOST_ADDRESSES as u64 - 2);
}

#[test]
fn what_was_known_before_stays_for_the_grace_and_has_no_age_of_its_own() {
    let mut desk = Desk::new();
    let before = ips(&["192.0.2.1", "100.64.0.1", "2001:db8::1"]);
    desk.book.recall(&name("a.example"), &before, desk.start);
    assert_eq!(desk.members(), ["192.0.2.1", "2001:db8::1"]);
    assert_eq!(desk.status().staleness(desk.start + seconds(7)), Some(seconds(7)));
    desk.answer(10, &["192.0.2.2"], 300);
    desk.answer(310, &["192.0.2.2"], 300);
    assert_eq!(desk.members(), ["192.0.2.1", "192.0.2.2", "2001:db8::1"]);
    desk.answer(610, &["192.0.2.2"], 300);
    assert_eq!(desk.members(), ["192.0.2.2", "2001:db8::1"]);
}

#[test]
fn a_name_that_is_not_wanted_any_more_is_gone() {
    let mut desk = Desk::new();
    desk.answer(0, &["192.0.2.1"], 60);
    let (gone, changed) = desk.book.follow(&BTreeSet::new(), rules(), desk.start);
    assert_eq!((gone, changed), (vec![name("a.example")], vec![]));
    assert_eq!(desk.book.change(&name("a.example")), Change::Gone("fqdn:a.example".into()));
    assert_eq!(desk.answer(60, &["192.0.2.1"], 60), Heard::default(), "an answer that comes late");
    assert!(!desk.book.has(&name("a.example")));
}

/// Something that DNS says, and for how long nobody asks afterwards beyond what is due.
fn said() -> impl Strategy<Value = (Answer, u64)> {
    let address = prop_oneof![
        8 => (1_u8..9).prop_map(|host| IpAddr::from([192, 0, 2, host])),
        1 => Just(IpAddr::from([169, 254, 169, 254])),
        1 => Just(IpAddr::from([100, 64, 0, 1])),
    ];
    let ttl = prop_oneof![Just(0), 1_u64..400, Just(4_000), Just(200_000)];
    let answer = prop_oneof![
        6 => (proptest::collection::vec(address, 0..4), ttl)
            .prop_map(|(addresses, ttl)| Answer::Addresses { addresses, ttl: seconds(ttl) }),
        1 => Just(Answer::Nothing),
        1 => Just(Answer::Failed("no".to_owned())),
    ];
    (answer, prop_oneof![4 => Just(0), 1 => 0_u64..5_000])
}

/// The slow twin: who is a member, from all that was ever said and when.
fn members_of(history: &[(u64, Answer)]) -> BTreeSet<IpAddr> {
    let rules = rules();
    let good: Vec<(u64, Vec<IpAddr>, u64)> = history
        .iter()
        .filter_map(|(at, answer)| {
            let Answer::Addresses { addresses, ttl } = answer else { return None };
            let taken = addresses.iter().copied().filter(|one| rules.why_not(*one).is_none());
            let taken: Vec<IpAddr> = taken.collect();
            (!taken.is_empty()).then_some((*at, taken, ttl.as_secs()))
        })
        .collect();
    let is_member = |address: &IpAddr| {
        (0..good.len()).filter(|n| good[*n].1.contains(address)).any(|n| {
            let spans = good[n..].windows(2);
            let known: u64 =
                spans.map(|two| (two[1].0 - two[0].0).min(two[0].2.clamp(5, 3_600))).sum();
            known < good[n].2.min(86_400) + GRACE.as_secs()
        })
    };
    good.iter().flat_map(|(_, addresses, _)| addresses).copied().filter(is_member).collect()
}

proptest! {
    /// Asked whenever it is due and answered with anything: it is asked neither too often nor too
    /// seldom, who is a member is what all that was said comes to, and nobody is lost for nothing.
    #[test]
    fn members_are_those_of_every_answer_that_still_counts(
        said in proptest::collection::vec(said(), 1..40),
    ) {
        let mut desk = Desk::new();
        let (mut history, mut asked) = (Vec::new(), None);
        for (answer, late) in said {
            let due = desk.due(Family::V4);
            if let Some(before) = asked {
                prop_assert!((5..=3_600).contains(&(due - before)), "{} after {before}", due);
            }
            let now = desk.start + seconds(due + late);
            // A family is due on its own; the other one is not looked at here.
            prop_assert!(desk.book.due(now, usize::MAX).contains(&Desk::question(Family::V4)));
            desk.hear(due + late, Family::V6, Answer::Nothing);
            let before = desk.members();
            let heard = desk.hear(due + late, Family::V4, answer.clone());
            history.push((due + late, answer));
            let expected: Vec<String> =
                members_of(&history).iter().map(ToString::to_string).collect();
            prop_assert_eq!(&desk.members(), &expected);
            prop_assert_eq!(heard.changed, before != expected);
            let is_taken = desk.status().confirmed == Some(now);
            prop_assert!(is_taken || before == expected, "nothing was learned");
            prop_assert!(before.is_empty() || !expected.is_empty(), "a name lost all");
            asked = Some(due + late);
        }
    }
}
