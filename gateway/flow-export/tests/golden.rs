//! The names of the fields are a contract: whoever reads the log goes by them.

mod common;

use flow_export::json;

const GOLDEN: &str = include_str!("golden/records.jsonl");

#[test]
fn records_are_written_as_they_always_were() {
    let mut lines = Vec::new();
    for record in [common::ended(), common::denied()] {
        json::append(&mut lines, &record).unwrap();
    }
    let lines = String::from_utf8(lines).unwrap();
    for (line, golden) in lines.lines().zip(GOLDEN.lines()) {
        assert_eq!(line, golden);
    }
    assert_eq!(lines, GOLDEN);
}

#[test]
fn a_line_is_read_back_as_the_record_it_was() {
    let records = GOLDEN.lines().map(|line| json::parse(line).unwrap());
    assert_eq!(records.collect::<Vec<_>>(), [common::ended(), common::denied()]);
}
