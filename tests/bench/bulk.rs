//! TCP with segments that the kernel keeps together (GSO, GRO): the throughput of one connection
//! through the gateway on TC, against plain forwarding.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::dut::sluice::Sluice;
use crate::dut::{Dut, Forwarding};
use crate::exam::pinned;
use crate::report::{Goal, Row};
use crate::statistics::estimate;
use crate::topology::{OUTSIDE_ADDRESS, Topology, ip};

/// The rows of this module with what they say.
pub(crate) const ROWS: &[(&str, &str)] = &[
    ("forwarding_gbps", "one TCP connection with GSO through the kernel's forwarding"),
    ("tc_gso_ratio", "the same through the gateway on TC / plain forwarding"),
];

const POD: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);
const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 18, 0, 1), 9_000);

/// How long one connection sends.
const LENGTH: Duration = Duration::from_millis(400);

/// A device between a pod and a server that speak TCP.
struct Line {
    // Before the topology that it stands in.
    _dut: Box<dyn Dut>,
    listener: TcpListener,
    topology: Topology,
}

impl Line {
    fn new(mut dut: Box<dyn Dut>) -> Result<Self> {
        let topology = Topology::new(1)?;
        topology.generator.enter(|| {
            ip(&format!("addr add {POD}/32 dev g0\nroute add default via 10.99.0.2 src {POD}\n"))
        })?;
        let listener = topology.sink.enter(|| {
            let server = SERVER.ip();
            ip(&format!("addr add {server}/32 dev s0\nroute add default via {OUTSIDE_ADDRESS}\n"))?;
            TcpListener::bind(SERVER).context("cannot listen")
        })?;
        topology.device.enter(|| dut.set_up())?;
        Ok(Self { _dut: dut, listener, topology })
    }

    /// Gigabits a second that arrived over a new connection.
    fn measure(&self, cores: &[usize]) -> Result<f64> {
        thread::scope(|scope| {
            let sender = scope.spawn(|| {
                self.topology.generator.enter(|| {
                    pinned(cores[0])?;
                    let server = SERVER.into();
                    let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(5))
                        .context("no connection through the device")?;
                    let block = [0; 1 << 16];
                    let start = Instant::now();
                    while start.elapsed() < LENGTH {
                        stream.write_all(&block).context("the connection broke")?;
                    }
                    Ok(())
                })
            });
            let receiver = scope.spawn(|| {
                pinned(cores.get(1).copied().unwrap_or(cores[0]))?;
                let (mut stream, _) = self.listener.accept().context("nobody connects")?;
                stream.set_read_timeout(Some(Duration::from_secs(5)))?;
                let mut block = vec![0; 1 << 20];
                let (start, mut bytes) = (Instant::now(), 0_usize);
                loop {
                    match stream.read(&mut block).context("the connection broke")? {
                        0 => break,
                        read => bytes += read,
                    }
                }
                anyhow::Ok(bytes as f64 * 8e-9 / start.elapsed().as_secs_f64())
            });
            sender.join().unwrap_or_else(|e| std::panic::resume_unwind(e))?;
            receiver.join().unwrap_or_else(|e| std::panic::resume_unwind(e))
        })
    }
}

/// Measures the rows of [`ROWS`].
pub(crate) fn run_all(rounds: usize, cores: &[usize]) -> Result<Vec<Row>> {
    let plain = Line::new(Box::new(Forwarding))?;
    let ours = Line::new(Box::new(Sluice::new(1 << 16).on_tc_without_xdp()))?;
    plain.measure(cores)?;
    ours.measure(cores)?;
    let (mut rates, mut ratios) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let (rate, through) = if round % 2 == 0 {
            let rate = plain.measure(cores)?;
            (rate, ours.measure(cores)?)
        } else {
            let through = ours.measure(cores)?;
            (plain.measure(cores)?, through)
        };
        rates.push(rate);
        ratios.push(through / rate);
    }
    let [(rate, rate_what), (ratio, ratio_what)] = ROWS else {
        unreachable!("two rows are listed above")
    };
    Ok(vec![
        Row::new(rate, rate_what, "Gbit/s", None, estimate(&rates)),
        Row::new(ratio, ratio_what, "ratio", Some(Goal::AtLeast(0.9)), estimate(&ratios)),
    ])
}
