//! What is measured: which devices run against each other under which load, and the rows of the
//! report that each such contest yields.
//!
//! A device is compared by adding its constructor to a contest's `devices`, and a line to its
//! `rows` that names the devices by their places.

use anyhow::Result;

use crate::dut::nftables::Nftables;
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
    /// Rate on two cores / rate on one.
    SecondCore(usize),
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
        self.rows.iter().any(|row| matches!(row.figure, Figure::SecondCore(_)))
    }
}

impl Figure {
    /// The unit of the report's column.
    pub(crate) const fn unit(self) -> &'static str {
        match self {
            Self::Nanoseconds(_) => "ns",
            Self::Speed(..) | Self::SecondCore(_) => "ratio",
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

fn nftables() -> Result<Box<dyn Dut>> {
    Ok(Box::new(Nftables::new()?))
}

/// Everything that can be measured.
pub(crate) const CONTESTS: &[Contest] = &[
    Contest {
        devices: &[bare],
        load: Load::Established(1_000),
        rows: &[RowSpec {
            id: "bare_redirect_ns",
            what: "XDP redirect and nothing else, 1,000 flows",
            figure: Figure::Nanoseconds(0),
            goal: None,
        }],
    },
    Contest {
        devices: &[bare, read],
        load: Load::Established(1_000_000),
        rows: &[
            RowSpec {
                id: "redirect_read_ns",
                what: "XDP redirect and one random read of 64 B in 256 MB, 1 M flows",
                figure: Figure::Nanoseconds(1),
                goal: None,
            },
            RowSpec {
                id: "redirect_read_ratio",
                what: "the same / bare redirect: the machine's limit at 1 M flows",
                figure: Figure::Speed(1, 0),
                goal: None,
            },
        ],
    },
    Contest {
        devices: &[nftables],
        load: Load::Established(50_000),
        rows: &[RowSpec {
            id: "nftables_ns",
            what: "nftables SNAT, conntrack and two set look-ups, 50,000 flows",
            figure: Figure::Nanoseconds(0),
            goal: None,
        }],
    },
    Contest {
        devices: &[nftables],
        load: Load::NewFlows,
        rows: &[RowSpec {
            id: "nftables_new_flows_ns",
            what: "the same, first packets only",
            figure: Figure::Nanoseconds(0),
            goal: None,
        }],
    },
    Contest {
        devices: &[bare],
        load: Load::Established(1_000),
        rows: &[RowSpec {
            id: "bare_second_core",
            what: "bare redirect on two cores with separate flows / on one",
            figure: Figure::SecondCore(0),
            goal: None,
        }],
    },
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_row_has_an_id_of_its_own_and_devices_that_exist() {
        let mut ids = HashSet::new();
        for contest in CONTESTS {
            for row in contest.rows {
                assert!(ids.insert(row.id), "{} is there twice", row.id);
                let last = match row.figure {
                    Figure::Nanoseconds(device) | Figure::SecondCore(device) => device,
                    Figure::Speed(one, other) => one.max(other),
                };
                assert!(last < contest.devices.len(), "{} names device {last}", row.id);
            }
        }
    }
}
