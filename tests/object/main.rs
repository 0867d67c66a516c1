//! The loaded object against the core in memory, byte for byte.
//!
//! The core is shown by its own tests, and runs in the kernel as something else: compiled for
//! another machine, cut into stages, with other tables and another access to the frame. So the
//! object gets what the core gets, by `BPF_PROG_TEST_RUN`, and whatever differs fails the test
//! ([`twin`]). What policies become in its tables is compared with what they say ([`policy`]). A
//! failure prints the seed; `OBJECT_SEED=N` repeats it.

mod object;
mod policy;
mod stand;
mod traffic;
mod twin;
/// The frames of the core's own tests.
#[path = "../../xdp/tests/scene/wire.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with the tests of the core")]
mod wire;

use std::collections::BTreeMap;
use std::env;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lab::{Fault, Need, plan};
use xdp::pipeline::{Fate, Hook};
use xdp_abi::control::MARK;
use xdp_abi::count::Counters;
use xdp_abi::port::PairKey4;
use xdp_abi::reason::Reason;

use gateway::datapath::pairs::Cooling;
use gateway::datapath::recycle::Recycling;
use gateway::datapath::tables::{Datapath, lock};
use object::{Action, Object, SHORTEST, runnable};
use stand::{
    BLUE, CARRIED, INTERNET, RED, ROUTABLE, Rules, SLOW, Stand, TRANSIT, TRANSIT_TAG, prefix,
};
use traffic::{Dice, Traffic};
use twin::{Outcome, Twin};
use wire::{ACK, SYN, echo, ethernet, icmp_error, ip_of, sent_to, tcp, udp};

/// The hardware address of an interface.
fn mac_of(ifindex: u32) -> [u8; 6] {
    [0x02, 0, 0, 0, 0, ifindex as u8]
}

/// How often the tables are compared, in frames.
const OFTEN: u64 = 512;

fn seed() -> Result<u64> {
    match env::var("OBJECT_SEED") {
        Ok(text) => text.parse().context("OBJECT_SEED is no number"),
        Err(_) => Ok(1),
    }
}

/// Says the seed if a test ends by a panic.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("repeat with OBJECT_SEED={}", self.0);
        }
    }
}

/// What no frame may do, whatever came in.
fn check(sent: &[u8], outcome: &Outcome) {
    let Some(egress) = outcome.egress else { return };
    let look = |bytes: &[u8]| {
        let frame = lab::Frame { bytes: bytes.to_vec(), sent: false, partial: false };
        frame.faults(&[plan::NON_ROUTABLE])
    };
    let carried = |fault: &Fault| match fault {
        Fault::NonRoutableSource(source) => {
            let source = xdp::address::V4(source.octets());
            !ROUTABLE.contains(&egress) || egress == TRANSIT && prefix(CARRIED).contains(source)
        }
        Fault::Malformed
        | Fault::HeaderChecksum
        | Fault::TcpChecksum
        | Fault::UdpChecksum
        | Fault::IcmpChecksum => false,
    };
    let is_source = |fault: &Fault| matches!(fault, Fault::NonRoutableSource(_));
    let mut faults = look(&outcome.frame);
    faults.retain(|fault| !carried(fault));
    // A checksum that was wrong when it came stays wrong.
    let came_wrong = look(sent).iter().any(|fault| !is_source(fault));
    if came_wrong && matches!(outcome.fate, Fate::Transmit(..)) {
        faults.retain(is_source);
    }
    assert!(
        faults.is_empty(),
        "{faults:?} by {egress}, {:?}\n out {:02x?}\n sent {sent:02x?}",
        outcome.fate,
        outcome.frame
    );
}

/// Every packet is counted once.
fn assert_books(counters: &Counters, sent: u64) {
    let c = counters;
    let drops: u64 = c.drops.as_flattened().iter().sum();
    let forwarded = c.forwarded[0].packets + c.forwarded[1].packets;
    assert_eq!(c.received.packets, sent, "received");
    assert_eq!(forwarded + c.passed.packets + c.punted.packets + drops, sent, "what became of it");
}

/// The fates that came up, by name.
type Fates = BTreeMap<String, u64>;

fn name(fate: Fate) -> String {
    match fate {
        Fate::Transmit(_, reply) => if reply { "answer forwarded" } else { "forwarded" }.to_owned(),
        Fate::Pass => "passed".to_owned(),
        Fate::Punt(_) => "punted".to_owned(),
        Fate::Drop(reason) => reason.name().to_owned(),
        Fate::Answer(reason, _) | Fate::Answered(reason) => format!("answered {}", reason.name()),
        Fate::Told(reason, _) => format!("told {}", reason.name()),
    }
}

/// Random frames until `frames` were sent or `time` is over. With `policies` to choose from, what
/// was passed up goes out again, and the daemon does what it does beside traffic.
fn run(
    twin: &mut Twin,
    seed: u64,
    hooks: &[Hook],
    frames: u64,
    time: Duration,
    policies: &[Rules],
) -> Result<(u64, Fates)> {
    let begin = Instant::now();
    let disturbed = !policies.is_empty();
    let mut traffic = Traffic::new(seed);
    // Apart from the traffic, so that the same frames come with and without.
    let mut dice = Dice::new(!seed);
    let mut fates = Fates::new();
    let mut left = 0;
    let mut sent = 0;
    // As they are on the wire, and counted.
    let mut packets = 0;
    while sent < frames && begin.elapsed() < time {
        let wanted = dice.pick(hooks);
        let mark = if dice.one_in(8) { dice.pick(&[5, MARK | 77]) } else { 0 };
        let segments = if dice.one_in(16) { 3 } else { 1 };
        let frame = traffic.next();
        let hook = runnable(wanted, &frame.bytes);
        let outcome = twin.send(hook, frame.ifindex, &frame.bytes, (mark, segments))?;
        sent += 1;
        packets += if hook == Hook::Tc { u64::from(segments) } else { 1 };
        check(&frame.bytes, &outcome);
        *fates.entry(name(outcome.fate)).or_default() += 1;
        if outcome.fate == Fate::Drop(Reason::Leak) {
            // Only an error has a source that no session stands for: one of any machine inside.
            let about = wire::see(&frame.bytes);
            ensure!(about.protocol == 1 && !ROUTABLE.contains(&frame.ifindex), "{about:?}");
        }
        let to_kernel = matches!(outcome.fate, Fate::Pass | Fate::Punt(_));
        if disturbed && to_kernel && runnable(Hook::Tc, &frame.bytes) == Hook::Tc {
            let punted =
                if let Fate::Punt(attachment) = outcome.fate { Some(attachment) } else { None };
            for ifindex in ROUTABLE {
                let before = twin.counters.received.packets;
                twin.leave(ifindex, &frame.bytes, punted)?;
                left += twin.counters.received.packets - before;
            }
        }
        traffic.remember(frame, &outcome);
        let mut ended = false;
        if dice.one_in(1_000) {
            twin.pass(dice.pick(&[1, 30, 400, 4_000, 8_000]));
            // A sweep ends one session in so many slots at most. While the table is far from
            // full, whether there is room does not depend on the port that is drawn.
            for _ in 0..dice.below(24) {
                twin.sweep(16_384)?;
            }
            ended = true;
        }
        if dice.one_in(200) {
            twin.clear(dice.below(4_096) as u32)?;
            ended = true;
        }
        if dice.one_in(500) {
            twin.touch(dice.pick(&[0, 1, 2]), dice.pick(&["100.64.0.1", "198.51.100.2"]));
        }
        if disturbed && dice.one_in(3_000) {
            twin.capture(dice.one_in(2));
        }
        if disturbed && dice.one_in(6_000) {
            twin.publish(dice.pick(policies))?;
        }
        // Of a million frames this would take most of the time.
        if sent.is_multiple_of(OFTEN) || disturbed && ended {
            twin.compare_tables()?;
        }
    }
    twin.compare_tables()?;
    assert_books(&twin.counters, packets + left);
    Ok((sent, fates))
}

const POLICIES: [Rules; 3] = [Rules::Usual, Rules::Usual, Rules::Strict];

/// What has to come up, or the test shows less than it says.
const FATES: [&str; 24] = [
    "forwarded",
    "answer forwarded",
    "passed",
    "punted",
    "answered no_session",
    "answered rule_rejected",
    "answered too_big",
    "answered ttl_expired",
    "rule_denied",
    "default_denied",
    "spoofed_source",
    "no_session",
    "no_route",
    "no_egress",
    "too_big",
    "fragment",
    "ipv6_transit",
    "protocol",
    "icmp_other",
    "icmp_bad_checksum",
    "truncated",
    "malformed",
    "martian",
    "non_routable_destination",
];

fn ensure_seen(fates: &Fates, expected: &[&str]) -> Result<()> {
    for fate in expected {
        ensure!(fates.contains_key(*fate), "no frame was `{fate}`, only {fates:#?}");
    }
    Ok(())
}

#[test]
fn the_object_does_what_the_core_does_to_any_frame() -> Result<()> {
    lab::require!(Need::Lab);
    let seed = seed()?;
    let _told = Told(seed);
    let stand = Stand::new()?;
    let both = [Hook::Xdp, Hook::Tc];
    stand.netns.enter(|| {
        let mut twin = Twin::new(&stand, Rules::Usual, seed, None)?;
        let (sent, fates) =
            run(&mut twin, seed, &both, 40_000, Duration::from_secs(120), &POLICIES)?;
        println!("{sent} frames: {fates:#?}");
        ensure_seen(&fates, &FATES)?;
        ensure_seen(
            &fates,
            &["answered snat_ports_exhausted", "next_hops_full", "answered no_snat_policy"],
        )
    })
}

#[test]
fn the_object_spills_over_and_fills_up_as_the_core_does() -> Result<()> {
    lab::require!(Need::Lab);
    let seed = seed()?;
    let _told = Told(seed);
    let stand = Stand::new()?;
    let both = [Hook::Xdp, Hook::Tc];
    stand.netns.enter(|| {
        let mut twin = Twin::new(&stand, Rules::OnePort, seed, Some(64))?;
        let (sent, fates) =
            run(&mut twin, seed, &both, 20_000, Duration::from_secs(60), &[Rules::OnePort])?;
        println!("{sent} frames: {fates:#?}");
        ensure_seen(&fates, &["forwarded", "answer forwarded", "table_full"])
    })
}

#[test]
fn the_object_tells_whoever_is_inside_of_a_flow_that_an_answer_ends() -> Result<()> {
    lab::require!(Need::Lab);
    let stand = Stand::new()?;
    let both = [Hook::Xdp, Hook::Tc];
    stand.netns.enter(|| {
        let mut twin = Twin::new(&stand, Rules::Usual, 1, None)?;
        let mut told = BTreeMap::<String, u64>::new();
        for (port, hook) in (40_000..).zip(both.repeat(8)) {
            twin.publish(Rules::Usual)?;
            let from = format!("100.64.0.{}:{port}", 2 + port % 8);
            let open = tcp(&from, "172.16.5.1:443", SYN).frame();
            let open = twin.send(hook, RED, &open, (0, 1))?;
            twin.publish(Rules::Strict)?;
            let answer = wire::answer_to(&open.frame, ACK).vlan(TRANSIT_TAG);
            let answer = answer.options(&[1; 4]).payload(b"a line");
            let outcome = twin.send(hook, TRANSIT, &answer.frame(), (0, 1))?;
            check(&answer.frame(), &outcome);
            *told.entry(name(outcome.fate)).or_default() += 1;
        }
        twin.compare_tables()?;
        ensure_seen(&told, &["told snat_withdrawn"])
    })
}

#[test]
fn the_object_takes_every_truncation_as_the_core_does() -> Result<()> {
    lab::require!(Need::Lab);
    let stand = Stand::new()?;
    stand.netns.enter(|| {
        let mut twin = Twin::new(&stand, Rules::Usual, 1, None)?;
        let mut sent = 0;
        for hook in [Hook::Xdp, Hook::Tc] {
            let known = udp("100.64.0.2:40000", "198.51.100.1:53").frame();
            let open = twin.send(hook, RED, &known, (0, 1))?;
            let quoted = ip_of(&open.frame).to_vec();
            let outside = wire::see(&open.frame).from;
            let outside = outside.split(':').next().context("an end has an address")?;
            let six = [&[2; 12][..], &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, 58, 255], &[0x20; 48]];
            let options = tcp("100.64.0.3:40000", "198.51.100.9:443", SYN).options(&[1; 40]);
            let fragment = {
                let mut ip = udp("100.64.0.2:1", "198.51.100.9:2").ip();
                ip[6] = 0x20;
                wire::repair(&mut ip);
                ethernet([2; 6], [4; 6], None, &ip)
            };
            let frames = [
                (RED, known),
                (RED, options.frame()),
                (RED, udp("100.66.0.3:40000", "172.16.5.1:443").vlan(7).frame()),
                (BLUE, echo("100.64.0.2:4", "198.51.100.9").frame()),
                (RED, tcp("100.64.0.2:40000", "198.51.100.9:22", SYN).frame()),
                (RED, udp("100.64.0.2:40001", "198.51.100.9:99").ttl(1).frame()),
                (SLOW, udp("100.65.0.2:40000", "203.0.113.1:53").frame()),
                (RED, fragment),
                (RED, six.concat()),
                (INTERNET, icmp_error(3, 4, 1_300, "198.51.100.7", outside, &quoted)),
                (INTERNET, wire::answer_to(&open.frame, 0).frame()),
            ];
            sent += 1;
            for (ifindex, frame) in frames {
                for length in SHORTEST..=frame.len() {
                    let frame = &frame[..length];
                    let outcome = twin.send(runnable(hook, frame), ifindex, frame, (0, 1))?;
                    check(frame, &outcome);
                    sent += 1;
                }
                twin.compare_tables()?;
            }
        }
        assert_books(&twin.counters, sent);
        Ok(())
    })
}

/// The fewest frames that a long run sends.
const MANY: u64 = 100_000;

/// [`MANY`] random frames through one hook, and up to a million where that takes no longer than 80 s;
/// counted and compared now and then.
fn many(hook: Hook) -> Result<()> {
    let seed = seed()?;
    let _told = Told(seed);
    let stand = Stand::new()?;
    stand.netns.enter(|| {
        let mut twin = Twin::new(&stand, Rules::Usual, seed, None)?;
        twin.every_count = false;
        let (sent, fates) = run(&mut twin, seed, &[hook], 1_000_000, Duration::from_secs(80), &[])?;
        println!("{sent} frames: {fates:#?}");
        ensure!(sent >= MANY, "there was time for {sent} frames only");
        // Whatever is sent and passed on was looked at. What a guard of the core stopped is an
        // error that a pod sends about a flow that keeps its source: see `run`.
        let stopped = fates.get(Reason::Leak.name()).copied().unwrap_or(0);
        ensure!(twin.counters.leaks_stopped == stopped, "{} leaks", twin.counters.leaks_stopped);
        ensure_seen(&fates, &FATES)
    })
}

#[test]
#[ignore = "a hundred thousand frames and more, for up to 80 s"]
fn a_hundred_thousand_frames_through_xdp_leak_nothing_and_are_all_accounted_for() -> Result<()> {
    lab::require!(Need::Lab);
    many(Hook::Xdp)
}

#[test]
#[ignore = "a hundred thousand frames and more, for up to 80 s"]
fn a_hundred_thousand_frames_through_tc_leak_nothing_and_are_all_accounted_for() -> Result<()> {
    lab::require!(Need::Lab);
    many(Hook::Tc)
}

#[test]
fn next_hops_that_no_session_uses_give_their_numbers_back() -> Result<()> {
    lab::require!(Need::Lab);
    let stand = Stand::new()?;
    stand.netns.enter(|| {
        let object = Object::load(&stand, Rules::Usual)?;
        let mut recycling = Recycling::default();
        let open = |n: u8| -> Result<bool> {
            let from = format!("100.64.1.{n}:4000");
            let frame = tcp(&from, "198.51.100.9:443", SYN).sender([2, 0xcc, 0, 0, 0, n]).frame();
            let ran = object.ingress(Hook::Xdp, RED, &sent_to(RED, &frame), 0, 1)?;
            Ok(ran.action == Action::Redirect)
        };
        let mut turn = || {
            recycling.tend(&object.datapath);
            std::thread::sleep(Duration::from_millis(150));
        };
        let opened = (0..64).filter(|n| matches!(open(*n), Ok(true))).count();
        ensure!((16..64).contains(&opened), "{opened} neighbours for 32 numbers");
        // Sessions hold their numbers, and keep them.
        turn();
        turn();
        ensure!(!open(200)?, "a number in use was given away");
        ensure!(open(0)?, "a session lost its next hop");
        object.clear_all()?;
        turn();
        turn();
        for n in 201..211 {
            ensure!(open(n)?, "neighbour {n} finds no number");
        }
        Ok(())
    })
}

/// Of two rounds, because what a packet holds when it is looked has a pair when it is given back.
#[test]
fn port_bitmaps_that_nobody_has_are_free_again_once() -> Result<()> {
    lab::require!(Need::Lab);
    let stand = Stand::new()?;
    let object = Object::load(&stand, Rules::Usual)?;
    let Datapath { pairs, free_bitmaps, bitmaps, .. } = &object.datapath;
    let pair = |number: u32| PairKey4 {
        outside: [203, 0, 113, 7],
        destination: number.to_be_bytes(),
        destination_port: [0, 53],
        domain: 0,
        protocol: 17,
    };
    // As a packet does: what it takes has a pair, in which a port is lent.
    let heat = |number: u32| -> Result<()> {
        object.datapath.shared_words().hot_pairs.fetch_add(1);
        bitmaps.get(number).context("a bitmap out of bounds")?.words[9].store(1);
        Ok(lock(pairs).insert(pair(number), number, 0)?)
    };
    let take = || lock(free_bitmaps).pop(0).context("none is free");
    let (in_a_pair, held) = (take()?, take()?);
    heat(in_a_pair)?;
    // The others are taken, and of those that come back later some are free.
    let mut taken: Vec<u32> = std::iter::from_fn(|| take().ok()).collect();
    let all = bitmaps.all().len();
    ensure!(taken.len() == all - 2, "{} of {all}", taken.len());
    for number in taken.drain(..all / 2) {
        lock(free_bitmaps).push(number, 0)?;
    }
    // A mark that came when the pair was gone.
    bitmaps.get(taken[0]).context("a bitmap out of bounds")?.words[3].store(1);
    let grace = Duration::from_millis(1_100);
    let mut cooling = Cooling::default();
    let free = || {
        let mut numbers: Vec<u32> = std::iter::from_fn(|| take().ok()).collect();
        for number in &numbers {
            lock(free_bitmaps).push(*number, 0).expect("it has just been there");
        }
        numbers.sort_unstable();
        numbers
    };
    cooling.tend(&object.datapath);
    ensure!(free().len() == all / 2, "given back before packets had their time");
    heat(held)?;
    std::thread::sleep(grace);
    cooling.tend(&object.datapath);
    let without = |gone: &[u32]| (0..all as u32).filter(|n| !gone.contains(n)).collect::<Vec<_>>();
    let now = free();
    ensure!(now == without(&[in_a_pair, held]), "{now:?}");
    let marked = |number: u32| bitmaps.get(number).is_some_and(|one| one.words[3].load() != 0);
    ensure!(!now.iter().any(|number| marked(*number)), "a free bitmap has a port marked");

    // While some are free what a packet has left is not missed; when none is, it is.
    while free().len() > 1 {
        take()?;
    }
    std::thread::sleep(grace);
    cooling.tend(&object.datapath);
    std::thread::sleep(grace);
    cooling.tend(&object.datapath);
    ensure!(free().len() == 1, "{:?}", free());
    take()?;
    cooling.tend(&object.datapath);
    std::thread::sleep(grace);
    cooling.tend(&object.datapath);
    ensure!(free() == without(&[in_a_pair, held]), "{:?}", free());
    Ok(())
}
