//! Headers that contradict themselves open no session, and neither does one whose checksum is
//! wrong: nobody knows what it said.
#![allow(clippy::wildcard_enum_match_arm, reason = "anything else fails the test")]

mod scene;

use scene::*;
use xdp::{egress::Egress, memory::MemoryFrame, pipeline::Fate};
use xdp_abi::reason::Reason;

const POD: &str = "100.64.0.7:40000";
const SERVER: &str = "198.51.100.9:443";

fn permissive() -> Lab {
    Lab::with_rules("permit any -> any all")
}

/// Where the headers of a plain packet begin.
const NETWORK: usize = 14;
const TRANSPORT: usize = 34;

fn segment(flags: u8) -> Build {
    tcp(POD, SERVER, flags).payload(&[7; 8])
}

fn datagram() -> Build {
    udp(POD, SERVER).payload(&[7; 8])
}

/// A frame whose byte at `at` says something else, under a right header checksum.
fn saying(frame: &Build, at: usize, byte: u8) -> Vec<u8> {
    let mut bytes = frame.frame();
    bytes[at] = byte;
    repair(&mut bytes[NETWORK..]);
    bytes
}

#[test]
fn a_length_that_cannot_be_opens_no_session() {
    let options = |frame: Build| frame.options(&[1; 4]);
    // The segment has 28 bytes, the datagram 16.
    for (frame, at, byte, expected) in [
        (segment(SYN), TRANSPORT + 12, 0x40, Some(Reason::Malformed)),
        (segment(SYN), TRANSPORT + 12, 0x50, None),
        (segment(SYN), TRANSPORT + 12, 0x70, None),
        (segment(SYN), TRANSPORT + 12, 0x80, Some(Reason::Truncated)),
        (options(segment(SYN)), TRANSPORT + 16, 0x40, Some(Reason::Malformed)),
        (options(segment(SYN)), TRANSPORT + 16, 0x80, Some(Reason::Truncated)),
        (datagram(), TRANSPORT + 5, 7, Some(Reason::Malformed)),
        (datagram(), TRANSPORT + 5, 8, None),
        (datagram(), TRANSPORT + 5, 16, None),
        (datagram(), TRANSPORT + 5, 17, Some(Reason::Truncated)),
        (options(datagram()), TRANSPORT + 9, 7, Some(Reason::Malformed)),
        (options(datagram()), TRANSPORT + 9, 17, Some(Reason::Truncated)),
    ] {
        let lab = permissive();
        let fate = lab.send(2, &saying(&frame, at, byte)).fate;
        match expected {
            Some(reason) => assert_eq!(fate, Fate::Drop(reason), "{byte:#x} at {at}"),
            None => assert!(matches!(fate, Fate::Transmit(..)), "{byte:#x} at {at}: {fate:?}"),
        }
        assert_eq!(lab.sessions(), usize::from(expected.is_none()), "{byte:#x} at {at}");
        lab.assert_books();
    }
}

/// A datagram whose header has these options, filled up with ends of options.
fn with_options(options: &[u8]) -> Vec<u8> {
    let mut padded = options.to_vec();
    padded.resize(options.len().next_multiple_of(4), 0);
    datagram().options(&padded).frame()
}

#[test]
fn a_packet_that_says_by_which_routers_it_goes_is_dropped() {
    const RECORD: [u8; 7] = [7, 7, 4, 0, 0, 0, 0];
    const ALERT: [u8; 4] = [148, 4, 0, 0];
    const LOOSE: [u8; 7] = [131, 7, 4, 192, 0, 2, 1];
    const STRICT: [u8; 7] = [137, 7, 4, 192, 0, 2, 1];
    let (source_route, malformed) = (Some(Reason::SourceRoute), Some(Reason::Malformed));
    for (options, expected) in [
        (LOOSE.to_vec(), source_route),
        (STRICT.to_vec(), source_route),
        ([&[1], &LOOSE[..]].concat(), source_route),
        ([&RECORD[..], &[1], &STRICT].concat(), source_route),
        ([&[1; 33], &LOOSE[..]].concat(), source_route),
        (vec![1, 1, 1, 131], source_route),
        // Behind the last option anything may stand, and so it may within another option.
        ([&[0], &LOOSE[..]].concat(), None),
        (vec![148, 4, 131, 137], None),
        (RECORD.to_vec(), None),
        (ALERT.to_vec(), None),
        ([&ALERT[..], &[1; 36]].concat(), None),
        (vec![148, 1, 1, 1], malformed),
        (vec![148, 0, 1, 1], malformed),
        (vec![148, 5, 1, 1], malformed),
        ([&[1; 38], &[148, 3][..]].concat(), malformed),
    ] {
        let lab = permissive();
        let fate = lab.send(2, &with_options(&options)).fate;
        match expected {
            Some(reason) => assert_eq!(fate, Fate::Drop(reason), "{options:?}"),
            None => assert!(matches!(fate, Fate::Transmit(..)), "{options:?}: {fate:?}"),
        }
        assert_eq!(lab.sessions(), usize::from(expected.is_none()), "{options:?}");
        lab.assert_books();
    }
}

#[test]
fn a_live_session_takes_no_source_route() {
    let lab = permissive();
    let (_, out) = lab.forward(2, &datagram().frame());
    assert_eq!(lab.dropped(2, &with_options(&[131, 3, 4])), Reason::SourceRoute);
    let answer = answer_to(&out, 0).options(&[137, 3, 4, 0]).frame();
    assert_eq!(lab.dropped(5, &answer), Reason::SourceRoute);
    lab.forward(5, &answer_to(&out, 0).frame());
}

#[test]
fn a_wrong_header_checksum_opens_no_session() {
    for frame in [segment(SYN), datagram(), datagram().options(&[1; 40]), datagram().vlan(7)] {
        let network = if frame.frame()[12] == 0x81 { 18 } else { NETWORK };
        for at in [1, 8, 10, 15] {
            let lab = permissive();
            let mut bytes = frame.frame();
            bytes[network + at] ^= 0x10;
            assert_eq!(lab.dropped(2, &bytes), Reason::Malformed, "byte {at}");
            assert_eq!(lab.sessions(), 0, "byte {at}");
            lab.assert_books();
        }
    }
}

#[test]
fn a_broken_segment_ends_no_session() {
    let lab = permissive();
    lab.forward(2, &segment(SYN).frame());
    for (at, byte, reason) in
        [(TRANSPORT + 12, 0x40, Reason::Malformed), (TRANSPORT + 12, 0xf0, Reason::Truncated)]
    {
        let bytes = saying(&segment(FIN | ACK), at, byte);
        assert_eq!(lab.dropped(2, &bytes), reason, "{byte:#x}");
    }
    lab.forward(2, &segment(ACK).frame());
}

#[test]
fn what_the_machine_itself_sends_is_its_own_affair() {
    let lab = permissive();
    let own = udp("203.0.113.1:4000", SERVER).payload(&[7; 8]);
    for byte in [7, 16, 17] {
        let mut frame = MemoryFrame::new(saying(&own, TRANSPORT + 5, byte));
        let egress = lab.gateway.process_egress(5, &mut frame, None, lab.now);
        assert_eq!(egress, Egress::Untouched, "{byte}");
    }
}
