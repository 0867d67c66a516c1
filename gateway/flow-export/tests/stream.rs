//! A log into a pipe: whoever reads it may stop, come back or be gone, and nobody waits for that.

mod common;

use flow_export::{Exporter, StreamSink, Unblocked, json};
use std::fs::File;
use std::io::{PipeReader, Read as _};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

fn pipe() -> (PipeReader, Exporter) {
    let (reader, writer) = std::io::pipe().unwrap();
    let sink = StreamSink::new(Unblocked::new(File::from(OwnedFd::from(writer))));
    (reader, Exporter::new(Box::new(sink)))
}

/// Records that can be told apart by their `suppressed`.
fn export(exporter: &mut Exporter, numbers: std::ops::Range<u32>) {
    for suppressed in numbers {
        exporter.export(&flow_export::FlowRecord { suppressed, ..common::denied() });
    }
}

/// Does something that must not wait for the reader.
fn at_once(what: impl FnOnce()) {
    let begun = Instant::now();
    what();
    assert!(begun.elapsed() < Duration::from_secs(3), "it took {:?}", begun.elapsed());
}

/// More than a pipe holds and less than may wait.
const MANY: u32 = 2_000;

#[test]
fn a_reader_that_stops_is_said_and_gets_every_line_when_it_goes_on() {
    let (mut reader, mut exporter) = pipe();
    let counts = exporter.counts();
    at_once(|| export(&mut exporter, 0..MANY));
    at_once(|| exporter.flush());
    assert_eq!(counts.fault(), None, "it may have stopped for a moment");
    at_once(|| exporter.flush());
    assert_eq!(counts.fault().as_deref(), Some("whoever reads them does not keep up"));
    assert_eq!(counts.read().dropped, 0, "they wait");

    let read = thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    });
    let begun = Instant::now();
    while counts.fault().is_some() && begun.elapsed() < Duration::from_secs(20) {
        exporter.flush();
    }
    assert_eq!((counts.fault(), counts.read().written), (None, u64::from(MANY)));
    drop(exporter);
    let text = read.join().unwrap();
    let numbers: Vec<_> = text.lines().map(|line| json::parse(line).unwrap().suppressed).collect();
    assert_eq!(numbers, (0..MANY).collect::<Vec<_>>());
}

#[test]
fn the_end_does_not_wait_for_the_reader_and_what_it_has_not_taken_is_lost() {
    let (_reader, mut exporter) = pipe();
    let counts = exporter.counts();
    export(&mut exporter, 0..MANY);
    at_once(|| drop(exporter));
    let counted = counts.read();
    assert!(counted.written > 0 && counted.dropped > 0, "{counted:?}");
    assert_eq!(counted.written + counted.dropped, u64::from(MANY), "{counted:?}");
}

#[test]
fn a_reader_that_is_gone_is_said_and_what_finds_no_room_is_counted() {
    let (reader, mut exporter) = pipe();
    let counts = exporter.counts();
    drop(reader);
    export(&mut exporter, 0..1);
    exporter.flush();
    assert_eq!(counts.fault().as_deref(), Some("Broken pipe (os error 32)"));
    let more = 20_000;
    at_once(|| export(&mut exporter, 0..more));
    let counted = counts.read();
    assert!(counted.dropped > 0 && counted.errors < 10, "{counted:?}");
}
