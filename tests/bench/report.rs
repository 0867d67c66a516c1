//! The table of a run, and the file that every bench adds its rows to.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::statistics::Estimate;

/// What a row has to reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Goal {
    /// The more the better.
    AtLeast(f64),
    /// The less the better.
    AtMost(f64),
}

impl Goal {
    fn text(self) -> String {
        match self {
            Self::AtLeast(bound) => format!(">= {bound}"),
            Self::AtMost(bound) => format!("<= {bound}"),
        }
    }

    /// True or false when the whole interval says so, else undecided.
    fn met(self, estimate: Estimate) -> Value {
        let (all, none) = match self {
            Self::AtLeast(bound) => (estimate.low >= bound, estimate.high < bound),
            Self::AtMost(bound) => (estimate.high <= bound, estimate.low > bound),
        };
        match (all, none) {
            (true, _) => Value::Bool(true),
            (_, true) => Value::Bool(false),
            (false, false) => Value::String("undecided".to_owned()),
        }
    }
}

/// One measured figure.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    id: &'static str,
    what: &'static str,
    value: f64,
    unit: &'static str,
    goal: Option<String>,
    met: Value,
    spread: [f64; 2],
    command: String,
    /// It is quoted from a file of another command, which may have measured another commit.
    #[serde(skip)]
    quoted: bool,
}

impl Row {
    /// A row of the report. A figure without a goal is there to be compared with.
    pub(crate) fn new(
        id: &'static str,
        what: &'static str,
        unit: &'static str,
        goal: Option<Goal>,
        estimate: Estimate,
    ) -> Self {
        Self {
            id,
            what,
            value: rounded(estimate.value),
            unit,
            goal: goal.map(Goal::text),
            met: goal.map_or(Value::Null, |goal| goal.met(estimate)),
            spread: [rounded(estimate.low), rounded(estimate.high)],
            command: format!("make bench ONLY={id}"),
            quoted: false,
        }
    }

    /// The same row, come from another command.
    pub(crate) fn by(self, command: &str) -> Self {
        Self { command: command.to_owned(), quoted: true, ..self }
    }

    /// The row as a line of the terminal's table.
    pub(crate) fn line(&self) -> String {
        format!(
            "{:<24} {:>10} {:<6} {:>10} {:<10} {:>10} .. {:<10} {}",
            self.id,
            self.value,
            self.unit,
            self.goal.as_deref().unwrap_or("-"),
            match &self.met {
                Value::Bool(true) => "met",
                Value::Bool(false) => "MISSED",
                Value::String(undecided) => undecided,
                Value::Null | Value::Number(_) | Value::Array(_) | Value::Object(_) => "-",
            },
            self.spread[0],
            self.spread[1],
            self.what
        )
    }
}

/// The head of the table that [`Row::line`] fills.
pub(crate) fn head() -> String {
    format!(
        "{:<24} {:>10} {:<6} {:>10} {:<10} {:>24} {}",
        "id", "value", "unit", "goal", "met", "95 % interval", "what"
    )
}

/// Four significant digits: the rest is noise that makes reports hard to compare.
fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let scale = 10_f64.powi(3 - value.abs().log10().floor() as i32);
    (value * scale).round() / scale
}

/// The file. Rows are kept as they were read, since other benches may know more fields; a row that
/// stays from a run before has the commit of that run.
#[derive(Debug, Default, Deserialize, Serialize)]
struct Report {
    machine: String,
    kernel: String,
    commit: String,
    rows: Vec<Value>,
}

/// Adds rows to the report at `path`; a row that is there already is replaced where it stands.
pub(crate) fn add(path: &Path, rows: &[Row]) -> Result<()> {
    let named = || format!("cannot use the report {}", path.display());
    let mut report = match fs::read_to_string(path) {
        Ok(text) => serde_json::from_str(&text).with_context(named)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Report::default(),
        Err(error) => return Err(error).with_context(named),
    };
    report.machine = machine();
    report.kernel = first_line("/proc/sys/kernel/osrelease");
    report.commit = commit();
    for row in rows {
        let mut value = serde_json::to_value(row)?;
        if !row.quoted {
            value["commit"] = Value::String(report.commit.clone());
        }
        merge(&mut report.rows, value);
    }
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(named)?;
    }
    fs::write(path, serde_json::to_string_pretty(&report)? + "\n").with_context(named)
}

fn merge(rows: &mut Vec<Value>, row: Value) {
    match rows.iter_mut().find(|old| old["id"] == row["id"]) {
        Some(old) => *old = row,
        None => rows.push(row),
    }
}

/// Processor, cores and memory: what a reader needs to see that a figure is from elsewhere.
fn machine() -> String {
    let field = |file: &str, name: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map_or("unknown", |(_, value)| value.trim()).to_owned()
    };
    // Not those that this thread may use: by now it may be kept on one.
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cores = processors.lines().filter(|line| line.starts_with("processor")).count();
    format!(
        "{}, {cores} cores, {} memory",
        field("/proc/cpuinfo", "model name"),
        field("/proc/meminfo", "MemTotal")
    )
}

fn first_line(file: &str) -> String {
    fs::read_to_string(file).unwrap_or_default().trim().to_owned()
}

/// The commit that was measured; `unknown` outside a checkout, which is no reason to measure less.
fn commit() -> String {
    let output = Command::new("git").args(["describe", "--always", "--dirty"]).output();
    match output {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        Ok(_) | Err(_) => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn between(low: f64, high: f64) -> Estimate {
        Estimate { value: (low + high) / 2.0, low, high }
    }

    #[test]
    fn a_goal_is_met_only_by_the_whole_interval() {
        for (goal, estimate, expected) in [
            (Goal::AtLeast(0.8), between(0.80, 0.90), json!(true)), // touches the goal
            (Goal::AtLeast(0.8), between(0.79, 0.90), json!("undecided")),
            (Goal::AtLeast(0.8), between(0.70, 0.80), json!("undecided")),
            (Goal::AtLeast(0.8), between(0.70, 0.79), json!(false)),
            (Goal::AtMost(1.02), between(1.00, 1.02), json!(true)),
            (Goal::AtMost(1.02), between(1.00, 1.03), json!("undecided")),
            (Goal::AtMost(1.02), between(1.02, 1.04), json!("undecided")),
            (Goal::AtMost(1.02), between(1.03, 1.04), json!(false)),
        ] {
            assert_eq!(goal.met(estimate), expected, "{} by {estimate:?}", goal.text());
        }
    }

    #[test]
    fn a_row_replaces_its_older_self_and_leaves_the_others() {
        let mut rows = vec![json!({"id": "a", "value": 1}), json!({"id": "b", "extra": true})];
        merge(&mut rows, json!({"id": "a", "value": 2}));
        merge(&mut rows, json!({"id": "c"}));
        let expected =
            [json!({"id": "a", "value": 2}), json!({"id": "b", "extra": true}), json!({"id": "c"})];
        assert_eq!(rows, expected);
    }

    #[test]
    fn a_row_without_a_goal_is_neither_met_nor_missed() {
        let row = Row::new("bare", "it", "ns", None, between(250.0, 260.0));
        assert_eq!(
            serde_json::to_value(row).unwrap(),
            json!({
                "id": "bare", "what": "it", "value": 255.0, "unit": "ns", "goal": null,
                "met": null, "spread": [250.0, 260.0], "command": "make bench ONLY=bare",
            })
        );
    }

    #[test]
    fn figures_keep_four_digits() {
        for (value, expected) in
            [(0.0, 0.0), (0.812_349, 0.8123), (263.449, 263.4), (3_812_345.0, 3_812_000.0)]
        {
            assert_eq!(rounded(value), expected);
        }
    }
}
