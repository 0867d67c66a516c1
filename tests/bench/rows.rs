//! What is measured: which devices run against each other under which load, and the rows of the
//! report that each such contest yields.
//!
//! A device is compared by adding its constructor to a contest's `devices`, and a line to its
//! `rows` that names the devices by their places.

use anyhow::Result;

use crate::dut::nftables::Nftables;
use crate::dut::sluice::Sluice;
use crate::dut::{Dut, Redirect};
use crate::report::Goal;

/// Makes a device; called once for each contest that it takes part in.
pub(crate) type Make = fn() -> Result<Box<dyn Dut>>;

/// What the devices of a contest are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// This many flows, each of which was sent once before, in random order.
    Established(u32),
    /// First packets only.
    NewFlows,
}

/// How a row's figure comes out of the rounds. Devices are named by their place in the contest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Figure {
    /// Time per packet on one core, generator and sink included.
    Nanoseconds(usize),
    /// Rate of the first / rate of the second, on one core, round by round.
    Speed(usize, usize),
    /// Time per packet of the first / of the second, round by round.
    Cost(usize, usize),
    /// Rate on two cores / rate on one.
    SecondCore(usize),
    /// What the first gains by the second core / what the second does.
    SecondCoreAgainst(usize, usize),
}

/// One line of the report.
pub(crate) struct RowSpec {
    pub(crate) id: &'static str,
    pub(crate) what: &'static str,
    pub(crate) figure: Figure,
    pub(crate) goal: Option<Goal>,
}

/// Devices that take turns in every round under the same load.
pub(crate) struct Contest {
    pub(crate) devices: &'static [Make],
    pub(crate) load: Load,
    pub(crate) rows: &'static [RowSpec],
}

impl Contest {
    /// Whether some row wants to know what two cores do.
    pub(crate) fn two_cores(&self) -> bool {
        let compares =
            |figure| matches!(figure, Figure::SecondCore(_) | Figure::SecondCoreAgainst(..));
        self.rows.iter().any(|row| compares(row.figure))
    }
}

impl Figure {
    /// The unit of the report's column.
    pub(crate) const fn unit(self) -> &'static str {
        match self {
            Self::Nanoseconds(_) => "ns",
            Self::Speed(..)
            | Self::Cost(..)
            | Self::SecondCore(_)
            | Self::SecondCoreAgainst(..) => "ratio",
        }
    }
}

/// Entries of the table that one random read is taken from: 1 M sessions as one entry of 64
/// bytes for each direction, at half fill.
const TABLE_ENTRIES: u32 = 1 << 22;

fn bare() -> Result<Box<dyn Dut>> {
    Ok(Box::new(Redirect::bare()))
}

fn read() -> Result<Box<dyn Dut>> {
    Ok(Box::new(Redirect::with_read(TABLE_ENTRIES)))
}

fn sluice() -> Result<Box<dyn Dut>> {
    Ok(Box::new(Sluice::new(1 << 17)))
}

fn nftables() -> Result<Box<dyn Dut>> {
    Ok(Box::new(Nftables::new()?))
}

fn sluice_many_rules() -> Result<Box<dyn Dut>> {
    Ok(Box::new(Sluice::new(1 << 17).with_many_rules()))
}

fn sluice_on_tc() -> Result<Box<dyn Dut>> {
    Ok(Box::new(Sluice::new(1 << 17).on_tc()))
}

fn sluice_million() -> Result<Box<dyn Dut>> {
    Ok(Box::new(Sluice::new(1 << 20)))
}

fn sluice_churning() -> Result<Box<dyn Dut>> {
    Ok(Box::new(Sluice::new(1 << 20).churning()))
}

/// Shorthand for the table below.
const fn row(id: &'static str, what: &'static str, figure: Figure, goal: Option<Goal>) -> RowSpec {
    RowSpec { id, what, figure, goal }
}

/// Everything that is sent through the topology.
pub(crate) const CONTESTS: &[Contest] = &[
    Contest {
        devices: &[bare, sluice],
        load: Load::Established(1_000),
        rows: &[
            row(
                "bare_redirect_ns",
                "XDP redirect and nothing else, 1,000 flows",
                Figure::Nanoseconds(0),
                None,
            ),
            row(
                "sluice_ns",
                "the gateway: SNAT, rules and counters, 1,000 sessions",
                Figure::Nanoseconds(1),
                None,
            ),
            row(
                "redirect_ratio",
                "the same / bare redirect",
                Figure::Speed(1, 0),
                Some(Goal::AtLeast(0.8)),
            ),
        ],
    },
    Contest {
        devices: &[bare, read, sluice_million],
        load: Load::Established(1_000_000),
        rows: &[
            row(
                "redirect_read_ns",
                "XDP redirect and one random read of 64 B in 256 MB, 1 M flows",
                Figure::Nanoseconds(1),
                None,
            ),
            row(
                "redirect_read_ratio",
                "the same / bare redirect: the machine's limit at 1 M flows",
                Figure::Speed(1, 0),
                None,
            ),
            row(
                "million_ns",
                "the gateway, 1 M sessions in random order",
                Figure::Nanoseconds(2),
                None,
            ),
            row(
                "million_ratio",
                "the same / bare redirect",
                Figure::Speed(2, 0),
                Some(Goal::AtLeast(0.5)),
            ),
            row(
                "million_vs_limit",
                "the same / bare redirect and one random read: the machine's limit",
                Figure::Speed(2, 1),
                Some(Goal::AtLeast(0.8)),
            ),
        ],
    },
    Contest {
        devices: &[nftables, sluice, sluice_on_tc],
        load: Load::Established(50_000),
        rows: &[
            row(
                "nftables_ns",
                "nftables SNAT, conntrack and two set look-ups, 50,000 flows",
                Figure::Nanoseconds(0),
                None,
            ),
            row(
                "nftables_ratio",
                "the gateway / nftables, 50,000 flows",
                Figure::Speed(1, 0),
                Some(Goal::AtLeast(4.0)),
            ),
            row(
                "tc_nftables_ratio",
                "the gateway on TC / nftables, 50,000 flows",
                Figure::Speed(2, 0),
                Some(Goal::AtLeast(2.0)),
            ),
        ],
    },
    Contest {
        devices: &[nftables, sluice],
        load: Load::NewFlows,
        rows: &[
            row(
                "nftables_new_flows_ns",
                "nftables, first packets only",
                Figure::Nanoseconds(0),
                None,
            ),
            row(
                "new_flows_ns",
                "the gateway, first packets only: policy, FIB, port and record",
                Figure::Nanoseconds(1),
                None,
            ),
            row(
                "new_flows_ratio",
                "new sessions a second on one core / nftables",
                Figure::Speed(1, 0),
                Some(Goal::AtLeast(4.0)),
            ),
        ],
    },
    Contest {
        devices: &[sluice, sluice_many_rules],
        load: Load::Established(1_000),
        rows: &[row(
            "rules_hit_cost",
            "10,000 rules and 1,000 groups / 10 rules, established packet",
            Figure::Cost(1, 0),
            Some(Goal::AtMost(1.02)),
        )],
    },
    Contest {
        devices: &[sluice, sluice_many_rules],
        load: Load::NewFlows,
        rows: &[row(
            "rules_miss_cost",
            "10,000 rules and 1,000 groups / 10 rules, first packet",
            Figure::Cost(1, 0),
            Some(Goal::AtMost(2.0)),
        )],
    },
    Contest {
        devices: &[bare, sluice],
        load: Load::Established(1_000),
        rows: &[
            row(
                "bare_second_core",
                "bare redirect on two cores with separate flows / on one",
                Figure::SecondCore(0),
                None,
            ),
            row(
                "two_core_ratio",
                "what the gateway gains by a second core / what bare redirect does",
                Figure::SecondCoreAgainst(1, 0),
                Some(Goal::AtLeast(0.95)),
            ),
        ],
    },
    Contest {
        devices: &[sluice_million, sluice_churning],
        load: Load::Established(1_000_000),
        rows: &[row(
            "churn_cost",
            "1 M sessions, 100 pods a second change to another identity / none",
            Figure::Cost(1, 0),
            Some(Goal::AtMost(1.1)),
        )],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_names_devices_that_exist() {
        for contest in CONTESTS {
            for row in contest.rows {
                let last = match row.figure {
                    Figure::Nanoseconds(device) | Figure::SecondCore(device) => device,
                    Figure::Speed(one, other)
                    | Figure::Cost(one, other)
                    | Figure::SecondCoreAgainst(one, other) => one.max(other),
                };
                assert!(last < contest.devices.len(), "{} names device {last}", row.id);
            }
        }
    }
}
