use super::*;

fn refused(code: u16) -> Failure {
    Failure::Refused { code, reason: String::new(), message: "no".to_owned(), retry_after: None }
}

fn watch(from: &str) -> Step {
    Step::Watch { from: from.to_owned() }
}

fn first_page() -> Step {
    Step::Page { next: None, limit: Some(PAGE) }
}

/// A course that watches from a version.
fn watching(version: &str) -> Course {
    let mut course = Course::new();
    assert_eq!(course.listed(version, Instant::now()), Verdict::Believed);
    course
}

#[test]
fn a_list_gives_the_version_and_what_is_heard_moves_it_on() {
    let mut course = Course::new();
    assert_eq!(*course.step(), Step::StreamList);
    course.listed("10", Instant::now());
    assert_eq!(*course.step(), watch("10"));
    course.heard("12");
    assert_eq!(*course.step(), watch("12"));
    course.heard("11");
    assert_eq!(*course.step(), watch("12"), "not back to what a server that lags tells");
    assert_eq!(course.ended(Duration::from_secs(60), true, 0.0), Duration::ZERO);
    assert_eq!(*course.step(), watch("12"), "the next watch goes on where this one ended");
}

#[test]
fn a_version_that_is_too_old_is_never_asked_for_again() {
    // The first time at once, then after a pause: lists that work and watches that do not are a storm.
    let mut course = watching("10");
    assert_eq!(course.failed(&refused(410), 0.0), Duration::ZERO);
    assert_eq!(*course.step(), Step::StreamList);
    for _ in 0..3 {
        course.listed("11", Instant::now());
        assert!(course.failed(&refused(410), 0.0) >= FIRST_PAUSE / 2);
        assert_eq!(*course.step(), Step::StreamList);
    }
    course.listed("12", Instant::now());
    course.heard("13");
    assert_eq!(course.failed(&refused(410), 0.0), Duration::ZERO, "a watch had brought something");
}

#[test]
fn what_is_no_matter_of_the_version_is_asked_again_from_it() {
    for failure in [
        refused(401),
        refused(403),
        refused(429),
        refused(500),
        Failure::Unreachable("gone".to_owned()),
        Failure::Silent(Duration::from_secs(65)),
    ] {
        let mut course = watching("10");
        assert!(course.failed(&failure, 0.0) > Duration::ZERO, "{failure}");
        assert_eq!(*course.step(), watch("10"), "{failure}");
    }
}

#[test]
fn a_watch_that_is_refused_again_and_again_is_begun_anew_unless_we_are_what_is_refused() {
    for (code, expected) in [
        (504, Step::StreamList), // a version from the future, after a restore
        (500, Step::StreamList),
        (403, watch("10")),
        (401, watch("10")),
        (429, watch("10")),
    ] {
        let mut course = watching("10");
        for _ in 0..SUSPICIOUS - 1 {
            course.failed(&refused(code), 0.0);
            assert_eq!(*course.step(), watch("10"), "{code}");
        }
        course.failed(&refused(code), 0.0);
        assert_eq!(*course.step(), expected, "{code}");
    }
}

#[test]
fn a_server_without_streaming_lists_is_asked_for_pages_and_one_that_is_away_is_not() {
    for (failure, expected) in [
        (refused(422), first_page()),
        (refused(400), first_page()),
        (Failure::Silent(Duration::from_secs(10)), first_page()),
        (refused(403), Step::StreamList),
        (refused(503), Step::StreamList),
        (Failure::Unreachable("gone".to_owned()), Step::StreamList),
    ] {
        let mut course = Course::new();
        course.failed(&failure, 0.0);
        assert_eq!(*course.step(), expected, "{failure}");
    }
    let mut course = Course::new();
    course.ended(Duration::from_secs(60), true, 0.0);
    assert_eq!(*course.step(), first_page(), "a stream that ended before all was told");
}

#[test]
fn pages_follow_each_other_and_begin_anew_when_their_mark_has_expired() {
    let mut course = Course::new();
    course.failed(&refused(422), 0.0);
    course.paged("two".to_owned());
    assert_eq!(*course.step(), Step::Page { next: Some("two".to_owned()), limit: Some(PAGE) });
    course.failed(&refused(410), 0.0);
    assert_eq!(*course.step(), first_page());
    course.paged("two".to_owned());
    course.failed(&refused(410), 0.0);
    assert_eq!(
        *course.step(),
        Step::Page { next: None, limit: None },
        "pages that expire faster than they are read are not asked for"
    );
    course.listed("20", Instant::now());
    course.failed(&refused(410), 0.0);
    assert_eq!(*course.step(), first_page());
}

#[test]
fn a_list_older_than_what_is_known_is_refused_until_that_lasts() {
    let mut course = watching("10");
    course.heard("20");
    let start = Instant::now();
    course.failed(&refused(410), 0.0);
    for (version, after, expected) in [
        ("19", Duration::ZERO, Verdict::TooOld),
        ("19", PATIENCE_WITH_OLD - Duration::from_millis(1), Verdict::TooOld),
        ("20", PATIENCE_WITH_OLD, Verdict::Believed), // the lagging server has caught up
    ] {
        assert_eq!(course.listed(version, start + after), expected, "{version} {after:?}");
    }
    assert_eq!(*course.step(), watch("20"));
    course.failed(&refused(410), 0.0);
    assert_eq!(course.listed("5", start), Verdict::TooOld);
    assert_eq!(course.listed("6", start + PATIENCE_WITH_OLD), Verdict::Believed, "restored");
    assert_eq!(*course.step(), watch("6"));
}

#[test]
fn pauses_double_up_to_a_bound_with_a_random_half() {
    let mut course = Course::new();
    let failure = Failure::Unreachable("gone".to_owned());
    let pauses: Vec<_> = (0..8).map(|_| course.failed(&failure, 1.0).as_millis()).collect();
    assert_eq!(pauses, [800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000]);
    let mut course = Course::new();
    assert_eq!(course.failed(&failure, 0.0), FIRST_PAUSE / 2);
    for _ in 0..100 {
        assert!(course.failed(&failure, 1.0) <= LONGEST_PAUSE);
    }
}

#[test]
fn the_server_may_ask_for_a_longer_pause_within_the_bound() {
    for (asked, expected) in [(0, 400), (5, 5_000), (3_600, 30_000)] {
        let mut course = watching("10");
        let failure = Failure::Refused {
            code: 429,
            reason: "TooManyRequests".to_owned(),
            message: "later".to_owned(),
            retry_after: Some(Duration::from_secs(asked)),
        };
        assert_eq!(course.failed(&failure, 0.0).as_millis(), expected, "{asked} s");
    }
}

#[test]
fn a_watch_that_ends_at_once_with_nothing_is_not_asked_again_at_once() {
    let mut course = watching("10");
    for (lived, heard, pauses) in [
        (Duration::from_millis(999), false, true),
        (Duration::from_millis(999), true, false),
        (Duration::from_secs(1), false, false),
    ] {
        let pause = course.ended(lived, heard, 0.0);
        assert_eq!(pause > Duration::ZERO, pauses, "{lived:?} {heard}");
    }
}

#[test]
fn a_failure_is_a_sentence() {
    let failure = Failure::Refused {
        code: 403,
        reason: "Forbidden".to_owned(),
        message: "pods is forbidden".to_owned(),
        retry_after: None,
    };
    assert_eq!(failure.to_string(), "the server answered 403 (Forbidden): pods is forbidden");
}
