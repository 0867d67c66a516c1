//! How much the tables hold: bytes for each session, and ports towards one destination.

use std::collections::HashSet;
use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};

use anyhow::{Context as _, Result, ensure};
use aya::maps::MapData;
use aya::programs::{TestRun as _, TestRunOptions};
use bench_xdp::{FIRST_DESTINATION, FIRST_SOURCE, Flow, SOURCES};
use xdp_abi::names;

use crate::dry::context;
use crate::dut::Dut as _;
use crate::dut::documents::OUTSIDE;
use crate::dut::sluice::Sluice;
use crate::report::{Goal, Row};
use crate::statistics::Estimate;
use crate::topology::{GENERATOR, INSIDE, Topology, stations};

/// The row of [`memory`].
pub(crate) const MEMORY_ROWS: &[(&str, &str)] = &[(
    "session_bytes",
    "map memory that a session takes, both directions: what 524,288 more sessions add / 524,288",
)];

/// The rows of [`ports`].
pub(crate) const PORT_ROWS: &[(&str, &str)] = &[
    ("port_failures", "one destination, 0 to 100 % of 64,512 ports: refused before the last"),
    ("port_steps_max", "steps of the longest allocation meanwhile"),
];

/// Sessions that the default configuration has room for.
const SESSIONS: u32 = 1 << 20;

/// Ports from 1024 to 65535.
const PORTS: u32 = 64_512;

/// Packets beyond the last port, all of which must be refused.
const BEYOND: u32 = 1_000;

/// More than a frame that was sent, or the answer to it, has.
const ROOM: usize = 512;

/// The same in every round.
fn exact(value: f64) -> Estimate {
    Estimate { value, low: value, high: value }
}

/// Measures the row of [`MEMORY_ROWS`]: what half of the sessions more take. The other tables have
/// the same sizes in both, and say nothing of sessions.
pub(crate) fn memory(_rounds: usize, _cores: &[usize]) -> Result<Vec<Row>> {
    let (all, half) = (memory_with(SESSIONS)?, memory_with(SESSIONS / 2)?);
    let [(id, what)] = MEMORY_ROWS else { unreachable!("one row is listed above") };
    let each = exact((all - half) as f64 / f64::from(SESSIONS / 2));
    Ok(vec![Row::new(id, what, "B", Some(Goal::AtMost(400.0)), each)])
}

/// Memory of all maps of a gateway with so many sessions.
fn memory_with(sessions: u32) -> Result<u64> {
    let topology = Topology::new(1)?;
    let mut sluice = Sluice::new(sessions);
    topology.device.enter(|| sluice.set_up())?;
    let pins = sluice.pins()?;
    let mut bytes = 0;
    for name in names::ALL {
        let map = MapData::from_pin(pins.join(name)).with_context(|| format!("no map {name}"))?;
        bytes += memory_of(&map)?;
    }
    Ok(bytes)
}

/// What the kernel says that a map takes.
fn memory_of(map: &MapData) -> Result<u64> {
    let path = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
    let line = line.context("the kernel does not say what a map takes")?;
    line.trim().parse().context("what a map takes is a number")
}

/// Measures the rows of [`PORT_ROWS`].
pub(crate) fn ports(_rounds: usize, _cores: &[usize]) -> Result<Vec<Row>> {
    let topology = Topology::new(1)?;
    let mut sluice = Sluice::new(1 << 17);
    topology.device.enter(|| sluice.set_up())?;
    let mut lent = HashSet::new();
    let mut failures = 0;
    let mut late = 0;
    for number in 0..PORTS + BEYOND {
        // Many pods that use few ports: nearly every one needs another than its own.
        let flow = Flow {
            source: FIRST_SOURCE + number % SOURCES,
            destination: FIRST_DESTINATION,
            source_port: 40_000 + (number / SOURCES) as u16,
        };
        let outcome = topology.device.enter(|| send(&sluice, flow, number))?;
        if number % 1_000 == 0 {
            sluice.drain();
        }
        match outcome {
            Some(port) => {
                ensure!(lent.insert(port), "port {port} is lent twice");
                late += u32::from(number >= PORTS);
            }
            None => failures += u32::from(number < PORTS),
        }
    }
    ensure!(late == failures, "{late} flows were let through with every port lent");
    let steps = sluice.datapath()?.shared_words().port_steps_max.load();
    let values = [f64::from(failures), steps as f64];
    let goals = [Some(Goal::AtMost(0.0)), None];
    let rows = PORT_ROWS.iter().zip(["flows", "steps"]).zip(values.into_iter().zip(goals));
    Ok(rows
        .map(|(((id, what), unit), (value, goal))| Row::new(id, what, unit, goal, exact(value)))
        .collect())
}

/// Sends one frame through the program; the outside port that it got, or `None` if refused.
fn send(sluice: &Sluice, flow: Flow, sequence: u32) -> Result<Option<u16>> {
    let words = flow.frame(stations(GENERATOR, INSIDE), sequence);
    let frame: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let mut out = [0; ROOM];
    let mut object = sluice.datapath()?.object();
    let result = object.xdp(names::XDP_INGRESS)?.test_run(TestRunOptions {
        data_in: Some(&frame),
        data_out: Some(&mut out),
        ctx_in: Some(&context()),
        ..TestRunOptions::default()
    })?;
    const XDP_DROP: u32 = 1;
    const XDP_REDIRECT: u32 = 4;
    const ICMP: u8 = 1;
    match result.return_value {
        // Some of the refused are told so: unreachable, by administration (RFC 1812 5.2.7.1).
        XDP_REDIRECT if out[23] == ICMP => {
            ensure!(out[34..36] == [3, 13], "a flow is answered by ICMP {:?}", &out[34..36]);
            Ok(None)
        }
        XDP_REDIRECT => {
            let source = std::net::Ipv4Addr::from([out[26], out[27], out[28], out[29]]);
            ensure!(source.to_string() == OUTSIDE, "a frame leaves with source {source}");
            Ok(Some(u16::from_be_bytes([out[34], out[35]])))
        }
        XDP_DROP => Ok(None),
        other => anyhow::bail!("the program answers {other}"),
    }
}
