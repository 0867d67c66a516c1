//! A log in real files: it rotates, and no line is lost or torn on the way.

mod common;

use flow_export::{Counted, Exporter, FileSink, Rotation, StreamSink, json};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// A directory that goes away with the test.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("sluice-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
    fn log(&self) -> PathBuf {
        self.0.join("flows.jsonl")
    }
    fn names(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Records that can be told apart by their `suppressed`.
fn export(exporter: &mut Exporter, numbers: std::ops::Range<u32>) {
    for suppressed in numbers {
        exporter.export(&flow_export::FlowRecord { suppressed, ..common::denied() });
    }
}

fn numbers(path: &Path) -> Vec<u32> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| json::parse(line).unwrap().suppressed).collect()
}

fn line_length() -> u64 {
    let mut line = Vec::new();
    json::append(&mut line, &common::denied()).unwrap();
    line.len() as u64
}

fn exporter(directory: &Directory, lines: u64, keep: u32) -> Exporter {
    // Numbers of two digits all, so that every line is as long as the next.
    let rotation = Rotation { bytes: lines * line_length(), keep };
    Exporter::new(Box::new(FileSink::open(directory.log(), rotation).unwrap()))
}

#[test]
fn a_file_is_put_aside_between_two_lines_and_the_oldest_goes() {
    let directory = Directory::new("rotation");
    let mut exporter = exporter(&directory, 3, 2);
    let counts = exporter.counts();
    export(&mut exporter, 10..24);
    exporter.flush();
    let names = ["flows.jsonl", "flows.jsonl.1", "flows.jsonl.2"];
    assert_eq!(directory.names(), names.map(str::to_owned).into());
    assert_eq!(numbers(&directory.log()), [22, 23]);
    assert_eq!(numbers(&directory.0.join("flows.jsonl.1")), [19, 20, 21]);
    assert_eq!(numbers(&directory.0.join("flows.jsonl.2")), [16, 17, 18]);
    let expected = Counted { generated: 14, written: 14, dropped: 0, errors: 0, rotations: 4 };
    assert_eq!(counts.read(), expected);
}

#[test]
fn lines_after_the_file_was_removed_are_in_a_new_one() {
    let directory = Directory::new("removed");
    let mut exporter = exporter(&directory, 50, 2);
    export(&mut exporter, 10..14);
    exporter.flush();
    fs::remove_file(directory.log()).unwrap();
    export(&mut exporter, 14..18);
    exporter.flush();
    assert_eq!(numbers(&directory.log()), [14, 15, 16, 17]);
}

#[test]
fn no_line_is_lost_when_every_file_is_kept() {
    let directory = Directory::new("lossless");
    for (from, to) in [(10, 40), (40, 99)] {
        // The second time as after a restart: it goes on in the file that is there.
        let mut exporter = exporter(&directory, 4, 50);
        export(&mut exporter, from..to);
    }
    let mut files: Vec<PathBuf> = (1..=50)
        .rev()
        .map(|number| directory.0.join(format!("flows.jsonl.{number}")))
        .filter(|path| path.exists())
        .collect();
    files.push(directory.log());
    let all: Vec<u32> = files.iter().flat_map(|path| numbers(path)).collect();
    assert_eq!(all, (10..99).collect::<Vec<_>>());
    assert!(files.iter().all(|path| numbers(path).len() <= 4));
}

#[test]
fn with_nothing_to_keep_there_is_one_file() {
    let directory = Directory::new("none-kept");
    let mut exporter = exporter(&directory, 3, 0);
    export(&mut exporter, 10..15);
    exporter.flush();
    assert_eq!(directory.names(), ["flows.jsonl".to_owned()].into());
    assert_eq!(numbers(&directory.log()), [13, 14]);
}

#[test]
fn a_line_longer_than_a_file_may_be_gets_a_file_of_its_own() {
    let directory = Directory::new("long-line");
    let rotation = Rotation { bytes: 10, keep: 5 };
    let mut exporter = Exporter::new(Box::new(FileSink::open(directory.log(), rotation).unwrap()));
    export(&mut exporter, 10..13);
    exporter.flush();
    assert_eq!(numbers(&directory.log()), [12]);
    assert_eq!(numbers(&directory.0.join("flows.jsonl.1")), [11]);
    assert_eq!(numbers(&directory.0.join("flows.jsonl.2")), [10]);
}

#[test]
fn what_cannot_be_renamed_goes_on_growing() {
    let directory = Directory::new("stuck");
    // A directory with something in it stands where the file should go.
    fs::create_dir_all(directory.0.join("flows.jsonl.1/occupied")).unwrap();
    let mut exporter = exporter(&directory, 3, 1);
    let counts = exporter.counts();
    export(&mut exporter, 10..20);
    exporter.flush();
    assert_eq!(numbers(&directory.log()), (10..20).collect::<Vec<_>>());
    let counted = counts.read();
    assert_eq!((counted.generated, counted.written, counted.dropped), (10, 10, 0));
    assert!(counted.errors > 0 && counted.rotations == 0, "{counted:?}");
    exporter.flush();
    assert!(counts.fault().is_some(), "it is too long for as long as it is there");
    // The obstacle is gone: the next line rotates.
    fs::remove_dir_all(directory.0.join("flows.jsonl.1")).unwrap();
    export(&mut exporter, 20..21);
    exporter.flush();
    assert_eq!(counts.fault(), None);
    assert_eq!(numbers(&directory.log()), [20]);
    assert_eq!(numbers(&directory.0.join("flows.jsonl.1")), (10..20).collect::<Vec<_>>());
}

#[test]
fn what_waited_for_a_fault_to_end_is_put_into_files_as_ever() {
    let directory = Directory::new("after-a-fault");
    let mut exporter = exporter(&directory, 3, 5);
    // A directory stands where the file should come when it was moved away.
    export(&mut exporter, 10..12);
    exporter.flush();
    fs::rename(directory.log(), directory.0.join("elsewhere")).unwrap();
    fs::create_dir(directory.log()).unwrap();
    export(&mut exporter, 12..14);
    exporter.flush();
    export(&mut exporter, 14..20);
    fs::remove_dir(directory.log()).unwrap();
    exporter.flush();
    assert_eq!(numbers(&directory.0.join("elsewhere")), [10, 11]);
    assert_eq!(numbers(&directory.0.join("flows.jsonl.2")), [12, 13, 14]);
    assert_eq!(numbers(&directory.0.join("flows.jsonl.1")), [15, 16, 17]);
    assert_eq!(numbers(&directory.log()), [18, 19]);
}

#[test]
fn of_a_link_the_file_is_put_aside_and_the_link_stays() {
    for (keep, left) in
        [(1, &["elsewhere", "elsewhere.1", "flows.jsonl"][..]), (0, &["elsewhere", "flows.jsonl"])]
    {
        let directory = Directory::new("link");
        symlink("elsewhere", directory.log()).unwrap();
        let mut exporter = exporter(&directory, 3, keep);
        export(&mut exporter, 10..15);
        exporter.flush();
        assert_eq!(directory.names(), left.iter().map(|name| (*name).to_owned()).collect());
        assert!(fs::symlink_metadata(directory.log()).unwrap().is_symlink());
        assert_eq!(numbers(&directory.0.join("elsewhere")), [13, 14]);
    }
}

#[test]
fn what_is_no_file_keeps_its_name() {
    let directory = Directory::new("pipe");
    let made = std::process::Command::new("mkfifo").arg(directory.log()).status().unwrap();
    assert!(made.success());
    let mut exporter = exporter(&directory, 3, 2);
    let counts = exporter.counts();
    export(&mut exporter, 10..20);
    exporter.flush();
    assert_eq!(directory.names(), ["flows.jsonl".to_owned()].into());
    assert_eq!((counts.read().written, counts.read().rotations), (10, 0));
}

#[test]
fn a_file_that_another_process_writes_is_refused() {
    let directory = Directory::new("refused");
    let rotation = Rotation { bytes: 100, keep: 1 };
    let open = |path: &Path| FileSink::open(path, rotation).map_err(|error| error.to_string());
    let first = open(&directory.log()).unwrap();
    assert_eq!(open(&directory.log()).unwrap_err(), "another process writes it");
    drop(first);
    assert!(open(&directory.log()).is_ok());
}

#[test]
fn a_file_that_somebody_moved_away_is_made_anew() {
    let directory = Directory::new("moved");
    let mut exporter = exporter(&directory, 100, 5);
    export(&mut exporter, 10..12);
    exporter.flush();
    fs::rename(directory.log(), directory.0.join("elsewhere")).unwrap();
    export(&mut exporter, 12..14);
    exporter.flush();
    assert_eq!(numbers(&directory.0.join("elsewhere")), [10, 11]);
    assert_eq!(numbers(&directory.log()), [12, 13]);
}

#[test]
fn half_a_line_that_a_crash_left_spoils_no_other() {
    let directory = Directory::new("torn");
    fs::write(directory.log(), "{\"time\":\"2026-01").unwrap();
    let mut exporter = exporter(&directory, 100, 5);
    export(&mut exporter, 10..11);
    drop(exporter);
    let text = fs::read_to_string(directory.log()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "{\"time\":\"2026-01");
    assert_eq!(json::parse(lines[1]).unwrap().suppressed, 10);
}

#[test]
fn a_directory_that_does_not_exist_is_an_error_at_once() {
    let directory = Directory::new("missing");
    let rotation = Rotation { bytes: 1, keep: 1 };
    assert!(FileSink::open(directory.0.join("nowhere/flows.jsonl"), rotation).is_err());
}

#[test]
fn records_add_up_when_nothing_can_be_written() {
    struct Broken;
    impl std::io::Write for Broken {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut exporter = Exporter::new(Box::new(StreamSink::new(Broken)));
    let counts = exporter.counts();
    export(&mut exporter, 10..60);
    exporter.flush();
    assert_eq!((counts.read().written, counts.read().dropped), (0, 0), "they wait");
    assert_eq!(counts.fault().as_deref(), Some("no storage space"));
    drop(exporter);
    let counted = counts.read();
    assert_eq!((counted.generated, counted.written, counted.dropped), (50, 0, 50));
    assert!(counted.errors > 0);
}

#[test]
fn a_log_that_cannot_be_written_is_named() {
    let directory = Directory::new("named");
    let mut exporter = exporter(&directory, 50, 2);
    let counts = exporter.counts();
    let aside = directory.0.with_extension("aside");
    fs::rename(&directory.0, &aside).unwrap();
    export(&mut exporter, 10..11);
    exporter.flush();
    let fault = counts.fault().unwrap();
    fs::rename(&aside, &directory.0).unwrap();
    assert!(fault.starts_with(&format!("{}: ", directory.log().display())), "{fault}");
    exporter.flush();
    assert_eq!((counts.fault(), numbers(&directory.log())), (None, vec![10]));
}
