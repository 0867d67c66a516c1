//! Sessions come and go: with a sweeper and without, at the edge of the tables, in pairs.
#![allow(clippy::wildcard_enum_match_arm, reason = "anything else fails the test")]

mod scene;

use scene::*;
use xdp::{
    address::Entry as _,
    memory::Sizes,
    pipeline::Fate,
    session::{Ended, Ending, end},
    table,
    tables::Tables as _,
};
use xdp_abi::{
    event,
    reason::Reason,
    session::{Class, Count, State},
};

const POD: &str = "100.64.0.7:40000";
const SERVER: &str = "198.51.100.9:443";

fn permissive() -> Scene {
    Scene::read(TWO_CLUSTERS).and("permit any -> any all log")
}

fn established(lab: &Lab) -> Vec<u8> {
    let (_, out) = lab.forward(2, &tcp(POD, SERVER, SYN).frame());
    lab.forward(5, &answer_to(&out, SYN | ACK).frame());
    lab.forward(2, &tcp(POD, SERVER, ACK).frame());
    out
}

#[test]
fn a_packet_of_either_direction_keeps_both_halves() {
    let mut lab = permissive().build();
    let (_, out) = lab.forward(2, &udp(POD, SERVER).frame());
    for round in 0..6 {
        lab.pass_seconds(299);
        if round % 2 == 0 {
            lab.forward(5, &answer_to(&out, 0).frame());
        } else {
            lab.forward(2, &udp(POD, SERVER).frame());
        }
        lab.sweep();
        assert_eq!(lab.sessions(), 1);
    }
    assert_eq!(lab.tables().counters().sessions_begun, 1);
}

#[test]
fn an_expired_session_answers_nobody_even_if_nobody_sweeps() {
    let mut lab = permissive().build();
    let (_, out) = lab.forward(2, &udp(POD, SERVER).frame());
    lab.pass_seconds(301);
    assert_eq!(lab.dropped(5, &answer_to(&out, 0).frame()), Reason::NoSession);
    // From inside the same tuple begins anew, at once.
    lab.forward(2, &udp(POD, SERVER).frame());
    assert_eq!(lab.tables().counters().sessions_begun, 2);
    assert_eq!(lab.sessions(), 1);
    lab.assert_books();
}

#[test]
fn a_processor_whose_clock_is_behind_ends_nothing() {
    let mut lab = permissive().build();
    lab.now = lab.now.wrapping_add(1);
    let (_, out) = lab.forward(2, &udp(POD, SERVER).frame());
    lab.forward(5, &answer_to(&out, 0).frame());
    lab.now = lab.now.wrapping_sub(1);
    lab.sweep();
    assert_eq!(lab.sessions(), 1);
    lab.forward(5, &answer_to(&out, 0).frame());
    lab.forward(2, &udp(POD, SERVER).frame());
    assert_eq!(lab.tables().counters().sessions_begun, 1);
}

#[test]
fn whoever_ends_a_session_ends_no_other_that_has_its_record() {
    let sizes = Sizes { slots: 64, records: 1, overflow: 16, ..Sizes::default() };
    let lab = permissive().build_with(sizes, 3);
    // Nobody translates these, so no port rests.
    let frame = |last: u32| udp(&format!("10.1.1.{last}:40000"), SERVER).frame();
    let open = |last| {
        lab.forward(4, &frame(last));
        let session = lab.tables().take_events().pop().unwrap().session;
        (session as u32, (session >> 32) as u32)
    };
    let clear = |(record, incarnation)| {
        end(lab.tables(), record, Ending::now(event::ENDED_CLEARED, incarnation), lab.now)
    };
    let first = open(7);
    assert_eq!(clear(first), Ended::Gone);
    drop(lab.tables().take_events());
    let second = open(8);
    assert_eq!(first.0, second.0, "there is one record");
    assert_eq!(clear(first), Ended::Lives);
    assert_eq!(lab.sessions(), 1);
    lab.forward(4, &frame(8));
    assert_eq!(lab.tables().counters().sessions_begun, 2);
    assert_eq!(clear(second), Ended::Gone);
    lab.assert_books();
}

#[test]
fn an_end_tells_when_the_last_packet_of_either_direction_was() {
    for answered_last in [false, true] {
        let mut lab = permissive().build();
        let ask = udp(POD, SERVER).frame();
        let (_, out) = lab.forward(2, &ask);
        let answer = answer_to(&out, 0).frame();
        let (ends, frames) =
            if answered_last { ([2, 5], [&ask, &answer]) } else { ([5, 2], [&answer, &ask]) };
        for (ifindex, frame) in ends.into_iter().zip(frames) {
            lab.pass_seconds(10);
            lab.forward(ifindex, frame);
        }
        lab.pass_seconds(301);
        lab.sweep();
        let end = lab.tables().take_events().pop().unwrap();
        assert_eq!((end.kind, end.reason), (event::END, event::ENDED_IDLE));
        assert_eq!(end.last_seen, u64::from(301 * SECOND), "answered last: {answered_last}");
    }
}

#[test]
fn an_end_tells_all_that_went_each_way_also_what_an_entry_cannot_hold() {
    let mut lab = permissive().build();
    let ask = udp(POD, SERVER);
    let (_, out) = lab.forward(2, &ask.frame());
    let answer = answer_to(&out, 0);
    // So much that each entry gives its count to the record, with the packet after it.
    let (forward, reply) = (Count::new(5, 1 << 35), Count::new(7, 3 << 34));
    for entry in lab.tables().slots().iter().filter(|entry| entry.load_meta().is(State::Live)) {
        let count = if entry.load_link().is_reply() { reply } else { forward };
        assert!(count.is_high());
        entry.count().store(count.0);
    }
    lab.forward(2, &ask.frame());
    lab.forward(5, &answer.frame());
    lab.pass_seconds(301);
    lab.sweep();
    let end = lab.tables().take_events().pop().unwrap();
    assert_eq!((end.kind, end.packets), (event::END, [6, 8]));
    let (ask, answer) = (ask.ip().len() as u64, answer.ip().len() as u64);
    assert_eq!(end.bytes, [forward.bytes() + ask, reply.bytes() + answer]);
}

#[test]
fn a_port_rests_after_a_session_that_did_not_close_clean() {
    let mut lab = permissive().snats("snat any -> any to 203.0.113.7 ports 40000").build();
    lab.forward(2, &udp(POD, SERVER).frame());
    lab.pass_seconds(301);
    lab.sweep();
    assert_eq!(lab.sessions(), 0);
    let other = udp("100.64.0.8:40000", SERVER).frame();
    assert_eq!(lab.refused(2, &other), Reason::PortsExhausted, "it rests");
    // Towards anybody else the port is free all the while.
    lab.forward(2, &udp("100.64.0.8:40000", "198.51.100.10:443").frame());
    lab.pass_seconds(120);
    lab.sweep();
    assert_eq!(lab.refused(2, &other), Reason::PortsExhausted, "the last second");
    lab.pass_seconds(1);
    lab.forward(2, &other);
    lab.assert_books();
}

#[test]
fn a_port_rests_as_long_if_nobody_sweeps() {
    let mut lab = permissive().snats("snat any -> any to 203.0.113.7 ports 40000").build();
    let other = udp("100.64.0.8:40000", SERVER).frame();
    lab.forward(2, &udp(POD, SERVER).frame());
    // The pod speaks on without ever being answered.
    lab.pass_seconds(250);
    lab.forward(2, &udp(POD, SERVER).frame());
    for seconds in [100, 199, 2, 118] {
        lab.pass_seconds(seconds);
        assert_eq!(lab.refused(2, &other), Reason::PortsExhausted, "after {seconds} more");
    }
    lab.pass_seconds(2);
    lab.forward(2, &other);
    lab.assert_books();
}

#[test]
fn a_tuple_whose_port_nobody_lent_rests_for_nobody() {
    const TO: &str = "10.1.1.1:53";
    // Two clusters with the same addresses, which leave as they are.
    let carries =
        "attach transit connection domain 0 on 4 address 10.0.0.1 routable carries 100.64.0.0/16";
    let text = TWO_CLUSTERS
        .replace("attach transit connection domain 0 on 4 address 10.0.0.1 routable", carries)
        .replace("to 203.0.113.7", "to none");
    let mut lab = Scene::read(&text).and("permit any -> any all log").build();
    lab.forward(2, &udp(POD, TO).frame());
    for (seconds, is_free) in [(299, false), (2, true)] {
        lab.pass_seconds(seconds);
        if is_free {
            lab.forward(3, &udp(POD, TO).frame());
        } else {
            assert_eq!(lab.refused(3, &udp(POD, TO).frame()), Reason::Contended);
        }
        assert_eq!(lab.sessions(), 1);
    }
    lab.assert_books();
}

#[test]
fn nobody_outside_cuts_the_rest_of_a_port_short() {
    let mut lab = permissive().snats("snat any -> any to 203.0.113.7 ports 40000").build();
    let (_, out) = lab.forward(2, &udp(POD, SERVER).frame());
    lab.pass_seconds(301);
    assert_eq!(lab.dropped(5, &answer_to(&out, 0).frame()), Reason::NoSession);
    let other = udp("100.64.0.8:40000", SERVER).frame();
    assert_eq!(lab.refused(2, &other), Reason::PortsExhausted);
    lab.pass_seconds(120);
    lab.forward(2, &other);
    lab.assert_books();
}

#[test]
fn a_segment_of_a_session_that_is_being_looked_at_tells_nobody_that_there_is_none() {
    let lab = permissive().build();
    lab.tables().set_midstream(xdp_abi::config::MIDSTREAM_RESET);
    established(&lab);
    let segment = tcp(POD, SERVER, ACK).frame();
    let index = (0..)
        .find(|index| {
            let entry = lab.tables().slot(*index).unwrap();
            entry.load_meta().is(State::Live) && !entry.load_link().is_reply()
        })
        .unwrap();
    // As whoever looks whether it is over holds it, and lets it live on.
    let meta = lab.tables().slot(index).unwrap().load_meta();
    assert!(table::freeze(lab.tables(), index, meta));
    assert_eq!(lab.send(2, &segment).fate, Fate::Drop(Reason::Contended));
    table::thaw(lab.tables(), index, meta);
    lab.forward(2, &segment);
    lab.assert_books();
}

#[test]
fn a_clean_close_frees_the_port_without_a_rest() {
    let mut lab = permissive().snats("snat any -> any to 203.0.113.7 ports 40000").build();
    let out = established(&lab);
    lab.forward(2, &tcp(POD, SERVER, FIN | ACK).frame());
    lab.forward(5, &answer_to(&out, FIN | ACK).frame());
    lab.forward(2, &tcp(POD, SERVER, ACK).frame());
    assert_eq!(lab.sessions(), 1, "TIME-WAIT");
    lab.pass_seconds(241);
    lab.sweep();
    assert_eq!(lab.sessions(), 0);
    lab.forward(2, &tcp("100.64.0.8:40000", SERVER, SYN).frame());
}

#[test]
fn a_closed_or_reset_tuple_is_opened_anew_by_the_first_syn() {
    for reset in [false, true] {
        let lab = permissive().build();
        let out = established(&lab);
        if reset {
            lab.forward(5, &answer_to(&out, RST).frame());
        } else {
            lab.forward(2, &tcp(POD, SERVER, FIN | ACK).frame());
            lab.forward(5, &answer_to(&out, FIN | ACK).frame());
        }
        let (_, again) = lab.forward(2, &tcp(POD, SERVER, SYN).frame());
        assert_eq!(see(&again).from, see(&out).from, "reset: {reset}");
        assert_eq!(lab.tables().counters().sessions_begun, 2);
        assert_eq!(lab.sessions(), 1);
        lab.assert_books();
    }
}

/// A machine of the fabric that nobody translates, and who it talks to.
const NODE: &str = "10.1.1.7:40000";

#[test]
fn two_forged_segments_end_no_session_that_keeps_its_source() {
    let lab = permissive().build();
    let (_, out) = lab.forward(4, &tcp(NODE, SERVER, SYN).frame());
    assert_eq!(see(&out).from, NODE);
    lab.forward(5, &answer_to(&out, SYN | ACK).frame());
    // Whoever knows the ports can say both, wherever he is.
    lab.forward(5, &answer_to(&out, RST).frame());
    assert_eq!(lab.dropped(5, &answer_to(&out, SYN).frame()), Reason::NoSession);
    lab.forward(4, &tcp(NODE, SERVER, ACK).frame());
    lab.forward(5, &answer_to(&out, ACK).frame());
    assert_eq!(lab.tables().counters().sessions_begun, 1);
    // Ended by both, or by a RST from inside, it may be opened by either.
    lab.forward(4, &tcp(NODE, SERVER, RST).frame());
    lab.forward(5, &answer_to(&out, SYN).frame());
    assert_eq!(lab.tables().counters().sessions_begun, 2);
    let lab = permissive().build();
    let (_, out) = lab.forward(4, &tcp(NODE, SERVER, SYN).frame());
    lab.forward(5, &answer_to(&out, SYN | ACK).frame());
    lab.forward(4, &tcp(NODE, SERVER, FIN | ACK).frame());
    lab.forward(5, &answer_to(&out, FIN | ACK).frame());
    lab.forward(5, &answer_to(&out, RST).frame());
    lab.forward(5, &answer_to(&out, SYN).frame());
    assert_eq!(lab.tables().counters().sessions_begun, 2);
    lab.assert_books();
}

#[test]
fn a_half_closed_connection_that_is_begun_anew_is_established_again() {
    let mut lab = permissive().build();
    let out = established(&lab);
    lab.forward(5, &answer_to(&out, FIN | ACK).frame());
    // The client forgot it, and takes the same port.
    established(&lab);
    lab.pass_seconds(7_000);
    lab.sweep();
    assert_eq!(lab.sessions(), 1);
}

#[test]
fn a_reset_session_lives_four_minutes_and_traffic_revives_it() {
    let mut lab = permissive().build();
    let out = established(&lab);
    lab.forward(5, &answer_to(&out, RST).frame());
    lab.pass_seconds(239);
    lab.forward(2, &tcp(POD, SERVER, ACK).frame());
    lab.pass_seconds(7_000);
    lab.sweep();
    assert_eq!(lab.sessions(), 1, "the RST was not meant for it");
    lab.forward(5, &answer_to(&out, RST).frame());
    lab.pass_seconds(241);
    lab.sweep();
    assert_eq!(lab.sessions(), 0);
}

#[test]
fn a_full_table_refuses_the_new_and_keeps_the_old() {
    let sizes = Sizes { slots: 64, records: 16, overflow: 16, ..Sizes::default() };
    let lab = permissive().build_with(sizes, 3);
    let flow = |n: u32| udp(&format!("100.64.0.{n}:1000"), SERVER).frame();
    for n in 0..16 {
        lab.forward(2, &flow(n));
    }
    for n in 16..200 {
        assert_eq!(lab.refused(2, &flow(n)), Reason::TableFull);
    }
    for n in 0..16 {
        lab.forward(2, &flow(n));
    }
    assert_eq!(lab.sessions(), 16);
    assert_eq!(lab.drops(Reason::TableFull), 184);
    lab.assert_books();
}

#[test]
fn a_full_table_takes_over_what_has_expired_without_a_sweeper() {
    let sizes = Sizes { slots: 64, records: 16, overflow: 16, ..Sizes::default() };
    let mut lab = permissive().build_with(sizes, 3);
    lab.tables().set_rest(0);
    let flow = |n: u32| udp(&format!("100.64.0.{n}:1000"), SERVER).frame();
    for n in 0..16 {
        lab.forward(2, &flow(n));
    }
    lab.pass_seconds(200);
    // Half of them speak again.
    for n in 0..8 {
        lab.forward(2, &flow(n));
    }
    lab.pass_seconds(101);
    let mut begun = 0;
    for n in 16..64 {
        if matches!(lab.send(2, &flow(n)).fate, Fate::Transmit(..)) {
            begun += 1;
        }
    }
    assert_eq!(begun, 8, "as many as had expired");
    for n in 0..8 {
        lab.forward(2, &flow(n));
    }
    lab.assert_books();
}

#[test]
fn a_full_table_takes_over_all_that_has_expired() {
    let sizes = Sizes { slots: 4_096, records: 1_000, overflow: 32, ..Sizes::default() };
    let mut lab = permissive().build_with(sizes, 3);
    let flow = |n: u32| udp(&format!("100.64.{}.{}:1000", n >> 8, n & 255), SERVER).frame();
    for n in 0..1_000 {
        lab.forward(2, &flow(n));
    }
    assert_eq!(lab.refused(2, &flow(1_000)), Reason::TableFull);
    // Over, and the rest of their ports as well.
    lab.pass_seconds(300 + 120 + 1);
    let goes_on = |n: &u32| matches!(lab.send(2, &flow(*n)).fate, Fate::Transmit(..));
    let went_on = (1_000..2_000).filter(goes_on).count();
    // While few are left, a look at a part of the table may miss them.
    assert!(went_on >= 990, "{went_on} of 1000");
}

#[test]
fn crowded_windows_spill_into_overflow_and_everything_is_found_and_returned() {
    // Hardly any window: nearly all entries stand in overflow.
    let sizes = Sizes { slots: 16, records: 200, overflow: 400, ..Sizes::default() };
    let mut lab = permissive().build_with(sizes, 5);
    let mut outs = Vec::new();
    for n in 0..200 {
        let sent = udp(&format!("100.64.0.{n}:1000"), SERVER).frame();
        outs.push((sent.clone(), lab.forward(2, &sent).1));
    }
    assert_eq!(lab.sessions(), 200);
    for (sent, out) in &outs {
        let (_, back) = lab.forward(5, &answer_to(out, 0).frame());
        assert_eq!(see(&back).to, see(sent).from);
    }
    lab.pass_seconds(301);
    lab.sweep();
    lab.pass_seconds(121);
    lab.sweep();
    assert_eq!(lab.sessions(), 0);
    assert_eq!(lab.tables().records_free(), 200);
    assert_eq!(lab.tables().overflow_free(), 400);
    assert_eq!(xdp::tables::Tables::shared(lab.tables()).overflowed.load(), 0);
    lab.assert_books();
}

#[test]
fn many_processors_leave_whole_sessions_and_true_books() {
    let sizes = Sizes { slots: 512, records: 120, overflow: 64, ..Sizes::default() };
    let mut lab =
        permissive().snats("snat any -> any to 203.0.113.7 ports 2000-2099").build_with(sizes, 9);
    lab.gateway.tables.forget_recent();
    lab.tables().set_timeout(Class::Udp, 3);
    lab.tables().set_rest(2);
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            let lab = &lab;
            scope.spawn(move || {
                let mut state = thread + 1;
                for step in 0..20_000u32 {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let now = lab.now.wrapping_add(step / 100);
                    let pod = format!("100.64.0.{}:{}", (state >> 24) % 150, 2000 + step % 3);
                    let frame = udp(&pod, SERVER).frame();
                    let framed = xdp::memory::MemoryFrame::new(sent_to(2, &frame));
                    let output = lab.gateway.process(2, framed, now);
                    if let Fate::Transmit(..) = output.fate {
                        let reply = answer_to(&output.frame.bytes, 0).frame();
                        let framed = xdp::memory::MemoryFrame::new(reply);
                        let back = lab.gateway.process(5, framed, now);
                        if let Fate::Transmit(..) = back.fate {
                            let to = see(&back.frame.bytes).to;
                            assert!(to.starts_with("100.64.0."), "{to}");
                        }
                    }
                    if step % 500 == 0 {
                        lab.gateway.sweep(now);
                    }
                }
            });
        }
    });
    lab.assert_books();
    for _ in 0..2 {
        lab.pass_seconds(1_000);
        lab.sweep();
    }
    assert_eq!(lab.sessions(), 0);
    assert_eq!(lab.tables().records_free(), 120);
    assert_eq!(lab.tables().overflow_free(), 64);
    // Every port can be lent again: none is hidden.
    lab.tables().set_timeout(Class::Udp, 300 * SECOND);
    for n in 0..100 {
        lab.forward(2, &udp(&format!("100.64.1.{n}:1"), SERVER).frame());
    }
}
