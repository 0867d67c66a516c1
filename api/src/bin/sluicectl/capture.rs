//! `sluicectl capture`: packets as lines, as JSON or into a pcapng file.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use api::capture::{Frame, Line, Lost, MOST_PACKETS, MOST_SECONDS, Stage};
use api::path;
use clap::Args;

use crate::pcapng::Writer;
use crate::{Failure, Gateway, Output, parsed};

#[derive(Args)]
pub(crate) struct Arguments {
    /// Which packets; all if not given. Of a packet as it comes in: src=PREFIX its source,
    /// dst=PREFIX its destination, port=N one of its ports, proto=NAME its protocol. rule=NAME
    /// decided on it. outside=IP is its source after translation, or where an answer comes in for.
    filter: Vec<String>,
    /// Write pcapng into this file instead of lines; `-` is standard output.
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Stop after so many packets, with all copies of each; at most 100000, which is usual.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MOST_PACKETS))]
    count: Option<u64>,
    /// Stop after so many seconds; at most 600, which is usual.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MOST_SECONDS))]
    seconds: Option<u64>,
}

/// Where packets go.
enum Sink {
    Lines,
    Json,
    File { writer: Writer<Box<dyn Write>>, path: PathBuf },
}

impl Sink {
    fn open(path: Option<&PathBuf>, output: Output) -> Result<Self, Failure> {
        let Some(path) = path else {
            return Ok(match output {
                Output::Table | Output::Wide => Self::Lines,
                Output::Json => Self::Json,
            });
        };
        let failed = |source| Failure::Write { path: path.clone(), source };
        let out: Box<dyn Write> = if path.as_os_str() == "-" {
            Box::new(io::stdout())
        } else {
            Box::new(BufWriter::new(File::create(path).map_err(failed)?))
        };
        Ok(Self::File { writer: Writer::new(out).map_err(failed)?, path: path.clone() })
    }

    fn put(&mut self, frame: &Frame) -> Result<(), Failure> {
        let line = match self {
            Self::File { writer, path } => {
                let failed = |source| Failure::Write { path: path.clone(), source };
                return writer.frame(frame).map_err(failed);
            }
            Self::Lines => line(frame),
            Self::Json => {
                serde_json::to_string(frame).map_err(|error| Failure::Print(error.into()))?
            }
        };
        writeln!(io::stdout(), "{line}").map_err(Failure::Print)
    }
}

fn line(frame: &Frame) -> String {
    const NANOSECONDS: u64 = 1_000_000_000;
    format!(
        "{}.{:09} {} {} bytes {}",
        frame.time / NANOSECONDS,
        frame.time % NANOSECONDS,
        frame.interface,
        frame.length,
        frame.comment()
    )
}

pub(crate) fn run(gateway: &Gateway, arguments: &Arguments) -> Result<(), Failure> {
    let filter = parsed(&arguments.filter)?;
    filter.of_packets()?;
    let mut query = vec![("filter", filter.to_string())];
    query.extend(arguments.count.map(|count| ("count", count.to_string())));
    query.extend(arguments.seconds.map(|seconds| ("seconds", seconds.to_string())));
    let query: Vec<(&str, &str)> =
        query.iter().map(|(key, value)| (*key, value.as_str())).collect();
    // The gateway is asked first: a file that is there already stays if it refuses.
    let lines = gateway.client.stream::<Line>(path::CAPTURE, &query)?;
    let mut sink = Sink::open(arguments.write.as_ref(), gateway.output)?;
    let (mut packets, mut copies, mut lost) = (0u64, 0u64, Lost::default());
    // The gateway counts, since it knows which copies belong together.
    for line in lines {
        match line? {
            Line::Frame(frame) => {
                sink.put(&frame)?;
                copies += 1;
                packets += u64::from(frame.stage == Stage::After);
            }
            Line::Lost { lost: more } => {
                lost.packets += more.packets;
                lost.events += more.events;
            }
        }
    }
    if let Sink::File { path, .. } = &sink {
        eprintln!("{packets} packets in {copies} copies written to {}", path.display());
    }
    for sentence in missing(lost) {
        eprintln!("sluicectl: {sentence}");
    }
    Ok(())
}

/// What is not among the packets, in sentences.
fn missing(lost: Lost) -> Vec<String> {
    let mut sentences = Vec::new();
    if lost.packets > 0 {
        sentences.push(format!(
            "{} packets are missing: they came faster than they were written; a narrower filter \
             helps",
            lost.packets
        ));
    }
    if lost.events > 0 {
        sentences.push(format!(
            "{} events were lost while this ran, copies of packets among them: they came faster \
             than the gateway took them",
            lost.events
        ));
    }
    sentences
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::capture::{Bytes, PacketVerdict, Stage};

    #[test]
    fn a_line_has_the_time_with_all_its_digits() {
        let frame = Frame {
            time: 1_700_000_000_000_000_007,
            interface: "eth0".into(),
            stage: Stage::Before,
            verdict: PacketVerdict::Dropped,
            reason: Some("no_route".into()),
            rule: None,
            session: None,
            length: 60,
            bytes: Bytes(vec![]),
        };
        assert_eq!(
            line(&frame),
            "1700000000.000000007 eth0 60 bytes before verdict=dropped reason=no_route"
        );
    }
}
