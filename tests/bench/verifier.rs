//! What the programs cost the verifier, which gives up at a million instructions and takes its
//! time on the way: for the running kernel, and for those that the test `kernels` boots.

use std::env;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::report::{Goal, Row};
use crate::statistics::Estimate;

/// Where the verifier gives up.
const LIMIT: Goal = Goal::AtMost(1_000_000.0);

/// What boots other kernels and leaves their counts behind.
const KERNELS: &str = "cargo test -p tests --test kernels -- --ignored";

/// The row for the running kernel.
const HERE: (&str, &str) =
    ("verifier_here", "what the verifier of this kernel goes through for the longest program");
/// The row of each other series, and its file.
const ELSEWHERE: [(&str, &str, &str); 2] = [
    ("verifier_6_1", "the same on Linux 6.1 of Debian, by the last run of its test", "6.1.txt"),
    ("verifier_6_12", "the same on Linux 6.12 of Debian, by the last run of its test", "6.12.txt"),
];

/// The rows of this module with what they say.
pub(crate) const ROWS: &[(&str, &str)] =
    &[HERE, (ELSEWHERE[0].0, ELSEWHERE[0].1), (ELSEWHERE[1].0, ELSEWHERE[1].1)];

/// Counts for the rows of [`ROWS`], in their order; a kernel that was not booted has none.
pub(crate) fn run_all(_rounds: usize, _cores: &[usize]) -> Result<Vec<Row>> {
    let programs = lab::programs::loaded()?;
    let counts = programs.iter().filter_map(|program| program.info.verified_instruction_count());
    let longest = counts.max().context("this kernel does not tell how much it verified")?;
    let mut rows = vec![Row::new(HERE.0, HERE.1, "insns", Some(LIMIT), exact(longest))];

    let program = env::current_exe()?;
    let target = program.ancestors().nth(2).context("cargo puts programs under a directory")?;
    for (id, what, file) in ELSEWHERE {
        match longest_in(&target.join("kernels").join(file))? {
            Some(longest) => {
                let row = Row::new(id, what, "insns", Some(LIMIT), exact(longest));
                rows.push(row.by(KERNELS));
            }
            None => say!("SKIPPED: {id}: its kernel was not booted: {KERNELS}"),
        }
    }
    Ok(rows)
}

fn exact(count: u32) -> Estimate {
    let value = f64::from(count);
    Estimate { value, low: value, high: value }
}

/// The greatest count in a file that the test `kernels` wrote; `None` if there is no such file.
fn longest_in(path: &Path) -> Result<Option<u32>> {
    let named = || format!("cannot use the counts in {}", path.display());
    match fs::read_to_string(path) {
        Ok(text) => longest(&text).with_context(named).map(Some),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(named),
    }
}

/// The greatest count in lines such as `probe: tc: program tc_open: 40266 instructions verified`.
fn longest(text: &str) -> Result<u32> {
    let count = |line: &str| -> Result<u32> {
        let before = line.split(" instructions verified").next().unwrap_or_default();
        let number = before.rsplit(' ').next().unwrap_or_default();
        number.parse().with_context(|| format!("no count in `{line}`"))
    };
    let counts: Vec<u32> = text.lines().map(count).collect::<Result<_>>()?;
    counts.into_iter().max().context("no counts")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greatest_count_is_taken_and_anything_else_is_an_error() {
        let line = |program: &str, count: &str| {
            format!("probe: tc: program {program}: {count} instructions verified, 99 bytes\n")
        };
        let two = line("tc_open", "40266") + &line("tc_mark", "5");
        for (text, expected) in [
            (two, Ok(40_266)),
            (line("tc_mark", "many"), Err("no count in")),
            (String::new(), Err("no counts")),
        ] {
            match (longest(&text), expected) {
                (Ok(count), Ok(expected)) => assert_eq!(count, expected, "{text}"),
                (Err(error), Err(expected)) => assert!(error.to_string().contains(expected)),
                (got, expected) => panic!("{got:?} instead of {expected:?} for {text}"),
            }
        }
        assert_eq!(longest_in(Path::new("no/such/file")).unwrap(), None);
    }
}
