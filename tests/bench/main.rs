//! `sluice-bench`: what the gateway costs, measured against what it is compared with.
//!
//! Paths that are compared run interleaved on the same topology, from a generator inside the
//! kernel, and every figure comes with a 95 % interval. Needs root; touches nothing outside the
//! namespaces that it makes, except conntrack's limit while it runs.

mod contest;
mod dut;
mod object;
mod report;
mod rows;
mod stand;
mod statistics;
mod topology;

use std::path::PathBuf;
use std::thread;

use anyhow::{Result, bail};
use clap::Parser;

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

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if arguments.list {
        for row in CONTESTS.iter().flat_map(|contest| contest.rows) {
            println!("{:<24} {}", row.id, row.what);
        }
        return Ok(());
    }
    let contests = chosen(&arguments.only)?;
    let cores = if arguments.cores.is_empty() {
        last_and_first(thread::available_parallelism().map_or(1, usize::from))
    } else {
        arguments.cores
    };
    println!("{}", report::head());
    for contest in contests {
        if contest.two_cores() && cores.len() < 2 {
            for row in contest.rows {
                println!("SKIPPED: {}: compares two cores with one, and one is given", row.id);
            }
            continue;
        }
        let rows = contest::run(contest, arguments.rounds.into(), &cores)?;
        for row in &rows {
            println!("{}", row.line());
        }
        // At once: an interrupted run keeps what it has measured.
        report::add(&arguments.report, &rows)?;
    }
    println!("written to {}", arguments.report.display());
    Ok(())
}

fn last_and_first(cores: usize) -> Vec<usize> {
    if cores > 1 { vec![cores - 1, 0] } else { vec![0] }
}

/// The contests that yield the named rows; all of them when none is named.
fn chosen(only: &[String]) -> Result<Vec<&'static Contest>> {
    let ids = || CONTESTS.iter().flat_map(|contest| contest.rows).map(|row| row.id);
    if let Some(unknown) = only.iter().find(|id| !ids().any(|known| known == *id)) {
        bail!("there is no row `{unknown}`; there are: {}", ids().collect::<Vec<_>>().join(", "));
    }
    let wanted = |contest: &&Contest| {
        only.is_empty() || contest.rows.iter().any(|row| only.iter().any(|id| id == row.id))
    };
    Ok(CONTESTS.iter().filter(wanted).collect())
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
    fn a_row_brings_its_contest_and_an_unknown_one_is_refused() {
        let ids = |only: &[&str]| {
            let only: Vec<String> = only.iter().map(|id| id.to_string()).collect();
            chosen(&only).map(|contests| contests.len()).map_err(|error| error.to_string())
        };
        assert_eq!(ids(&[]), Ok(CONTESTS.len()));
        assert_eq!(ids(&["redirect_read_ns", "redirect_read_ratio"]), Ok(1));
        assert!(ids(&["redirect_raed_ns"]).unwrap_err().contains("`redirect_raed_ns`"));
    }
}
