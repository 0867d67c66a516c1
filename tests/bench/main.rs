//! `sluice-bench`: what the gateway costs, measured against what it is compared with.
//!
//! Paths that are compared run interleaved on the same topology, from a generator inside the
//! kernel, and every figure comes with a 95 % interval. Needs root; touches nothing outside the
//! namespaces that it makes, except conntrack's limit while it runs.

/// Prints a line, also for a reader that has gone: the report is written all the same.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

mod bulk;
mod contest;
mod dry;
mod dut;
mod exam;
mod fleet;
mod live;
mod object;
mod population;
mod report;
mod room;
mod rows;
mod stand;
mod statistics;
mod topology;
mod verifier;

use std::cell::Cell;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;

use anyhow::{Result, bail};
use clap::Parser;

use exam::{EXAMS, Exam};
use report::Row;
use rows::{CONTESTS, Contest};

/// Measures the gateway against what it is compared with.
#[derive(Parser)]
struct Arguments {
    /// Only the rows with these ids, and those measured together with them.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Interleaved rounds for each comparison.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Cores to send from: most rows use the first, comparisons of two cores both. Without it the
    /// machine's last and first, because the first serves most interrupts.
    #[arg(long, value_delimiter = ',')]
    cores: Vec<usize>,
    /// The report that the rows are added to.
    #[arg(long, default_value = "target/bench/report.json")]
    report: PathBuf,
    /// Prints the ids and ends.
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    match bench(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sluice-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(arguments: Arguments) -> Result<()> {
    if arguments.list {
        for (id, what) in listed() {
            say!("{id:<24} {what}");
        }
        return Ok(());
    }
    let (contests, exams) = chosen(&arguments.only)?;
    let cores = if arguments.cores.is_empty() {
        last_and_first(thread::available_parallelism().map_or(1, usize::from))
    } else {
        arguments.cores
    };
    if let Some(core) = cores.iter().enumerate().find(|(n, core)| cores[..*n].contains(core)) {
        bail!("--cores names core {} twice; what two cores gain needs two of them", core.1);
    }
    // A report that cannot be written is known before minutes of measuring.
    report::add(&arguments.report, &[])?;
    let rounds = arguments.rounds.into();
    let measured = Cell::new(0);
    // At once: an interrupted run keeps what it has measured.
    let written = |rows: Vec<Row>| {
        for row in &rows {
            say!("{}", row.line());
        }
        measured.set(measured.get() + rows.len());
        report::add(&arguments.report, &rows)
    };
    dut::sluice::private_pins()?;
    say!("{}", report::head());
    for contest in contests {
        if contest.two_cores() && cores.len() < 2 {
            for row in contest.rows {
                say!("SKIPPED: {}: compares two cores with one, and one is given", row.id);
            }
            continue;
        }
        written(contest::run(contest, rounds, &cores)?)?;
    }
    for exam in exams {
        written((exam.run)(rounds, &cores)?)?;
    }
    if measured.get() == 0 {
        bail!("nothing was measured");
    }
    say!("written to {}", arguments.report.display());
    Ok(())
}

/// Every row with what it says.
fn listed() -> impl Iterator<Item = (&'static str, &'static str)> {
    let sent = CONTESTS.iter().flat_map(|contest| contest.rows).map(|row| (row.id, row.what));
    sent.chain(EXAMS.iter().flat_map(|exam| exam.rows).copied())
}

fn last_and_first(cores: usize) -> Vec<usize> {
    if cores > 1 { vec![cores - 1, 0] } else { vec![0] }
}

/// The contests and exams that yield the named rows; all of them when none is named.
fn chosen(only: &[String]) -> Result<(Vec<&'static Contest>, Vec<&'static Exam>)> {
    let ids = || listed().map(|(id, _)| id);
    if let Some(unknown) = only.iter().find(|id| !ids().any(|known| known == *id)) {
        bail!("there is no row `{unknown}`; there are: {}", ids().collect::<Vec<_>>().join(", "));
    }
    let wanted = |id: &str| only.is_empty() || only.iter().any(|named| named == id);
    let contests = CONTESTS.iter().filter(|contest| contest.rows.iter().any(|row| wanted(row.id)));
    let exams = EXAMS.iter().filter(|exam| exam.rows.iter().any(|(id, _)| wanted(id)));
    Ok((contests.collect(), exams.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_core_is_not_taken_twice() {
        for (cores, expected) in [(1, vec![0]), (2, vec![1, 0]), (8, vec![7, 0])] {
            assert_eq!(last_and_first(cores), expected, "{cores} cores");
        }
    }

    #[test]
    fn every_row_has_an_id_of_its_own() {
        let ids: Vec<_> = listed().map(|(id, _)| id).collect();
        let distinct: std::collections::HashSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len(), "{ids:?}");
    }

    #[test]
    fn a_row_brings_its_contest_and_an_unknown_one_is_refused() {
        let ids = |only: &[&str]| {
            let only: Vec<String> = only.iter().map(|id| id.to_string()).collect();
            chosen(&only)
                .map(|(contests, exams)| (contests.len(), exams.len()))
                .map_err(|error| error.to_string())
        };
        assert_eq!(ids(&[]), Ok((CONTESTS.len(), EXAMS.len())));
        assert_eq!(ids(&["redirect_read_ns", "redirect_read_ratio"]), Ok((1, 0)));
        assert_eq!(ids(&["hit_ns", "churn_cost"]), Ok((1, 1)));
        assert!(ids(&["redirect_raed_ns"]).unwrap_err().contains("`redirect_raed_ns`"));
    }
}
