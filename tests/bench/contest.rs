//! Runs a contest: every device in every round, one after the other, so that what disturbs the
//! machine for a while disturbs all of them.

use anyhow::{Context as _, Result};
use bench_xdp::Cursor;

use crate::report::Row;
use crate::rows::{Contest, Figure, Load, RowSpec};
use crate::stand::Stand;
use crate::statistics::{estimate, shuffled};

/// How long a device is sent to in one round, in seconds. The fixed cost of a run is not measured,
/// so longer runs would only make fewer of them.
const SECONDS: f64 = 0.2;

/// Packets of the run that finds out how many packets fill [`SECONDS`].
const TRIAL: u32 = 200_000;

/// First packets of one round: few enough that a device need not forget flows within it.
const NEW_FLOWS: u32 = 50_000;

/// The rounds of one device.
#[derive(Default)]
struct Rates {
    one_core: Vec<f64>,
    two_cores: Vec<f64>,
}

/// Runs `contest` and returns its rows. `cores` are the cores to send from: the first alone, and
/// both where a row compares them.
pub(crate) fn run(contest: &Contest, rounds: usize, cores: &[usize]) -> Result<Vec<Row>> {
    let needed = if contest.two_cores() { 2 } else { 1 };
    let together = cores.get(..needed).with_context(|| format!("{needed} cores are needed"))?;
    let order = match contest.load {
        Load::Established(flows) => shuffled(flows),
        Load::NewFlows => Vec::new(),
    };
    let mut stands = Vec::new();
    for make in contest.devices {
        stands.push(Stand::new(make()?, &order, together.len())?);
    }
    let mut packets = Vec::new();
    for stand in &mut stands {
        packets.push(prepare(stand, contest.load, together)?);
    }
    let mut rates: Vec<Rates> = stands.iter().map(|_| Rates::default()).collect();
    for round in 0..rounds {
        let mut turns: Vec<usize> = (0..stands.len()).collect();
        if round % 2 == 1 {
            // A drift inside a round falls on each of them in turn.
            turns.reverse();
        }
        for turn in turns {
            if contest.load == Load::NewFlows {
                stands[turn].forget_flows()?;
                let first = (round as u32 + 1) * NEW_FLOWS;
                stands[turn].aim(|_| Cursor { first, count: NEW_FLOWS, ..Cursor::default() })?;
            }
            rates[turn].one_core.push(stands[turn].send(packets[turn], &cores[..1])?);
            if contest.two_cores() {
                rates[turn].two_cores.push(stands[turn].send(packets[turn], together)?);
            }
        }
    }
    Ok(contest.rows.iter().map(|row| figure(row, &rates)).collect())
}

/// Brings a device to where the rounds begin, and returns the packets of one round.
fn prepare(stand: &mut Stand, load: Load, cores: &[usize]) -> Result<u32> {
    let Load::Established(flows) = load else { return Ok(NEW_FLOWS) };
    let share = |cpu: usize, shuffled| {
        let each = flows / cores.len() as u32;
        // Cores without a share are not sent from.
        let place = cores.iter().position(|core| *core == cpu).unwrap_or(0) as u32;
        Cursor { first: place * each, count: each, shuffled, ..Cursor::default() }
    };
    stand.aim(|cpu| share(cpu, 1))?;
    stand.send(flows / cores.len() as u32, cores)?;
    let rate = stand.send(TRIAL, &cores[..1])?;
    Ok((rate * SECONDS) as u32)
}

fn figure(row: &RowSpec, rates: &[Rates]) -> Row {
    let paired = |of: &[f64], over: &[f64]| -> Vec<f64> {
        of.iter().zip(over).map(|(a, b)| a / b).collect()
    };
    let rounds: Vec<f64> = match row.figure {
        Figure::Nanoseconds(device) => {
            rates[device].one_core.iter().map(|rate| 1e9 / rate).collect()
        }
        Figure::Speed(of, over) => paired(&rates[of].one_core, &rates[over].one_core),
        Figure::Cost(of, over) => paired(&rates[over].one_core, &rates[of].one_core),
        Figure::SecondCoreAgainst(of, over) => {
            let gain = |device: usize| paired(&rates[device].two_cores, &rates[device].one_core);
            paired(&gain(of), &gain(over))
        }
        Figure::SecondCore(device) => paired(&rates[device].two_cores, &rates[device].one_core),
    };
    Row::new(row.id, row.what, row.figure.unit(), row.goal, estimate(&rounds))
}
