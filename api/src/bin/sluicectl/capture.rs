//! `sluicectl capture`: packets as lines, as JSON or into a pcapng file.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use api::capture::{End, Frame, Line, MOST_PACKETS, MOST_SAMPLE, MOST_SECONDS};
use api::path;
use clap::Args;

use crate::pcapng::Writer;
use crate::tuple::Tuple;
use crate::{Failure, Gateway, Output, parsed};

#[derive(Args)]
pub(crate) struct Arguments {
    /// Which packets; all if not given. Of a packet as it comes in: src=PREFIX its source,
    /// dst=PREFIX its destination, port=N one of its ports, proto=NAME its protocol. rule=NAME
    /// decided on it. outside=IP is its source after translation, or where an answer comes in for.
    /// id=SESSION is the session that it belongs to.
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
    /// Copy one in N packets, of those with the address, port and protocol of the filter; at most
    /// 1000000.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MOST_SAMPLE))]
    sample: Option<u64>,
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
        let failed = |source| not_written(path, source);
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
                return writer.frame(frame).map_err(|source| not_written(path, source));
            }
            Self::Lines => line(frame),
            Self::Json => {
                serde_json::to_string(frame).map_err(|error| Failure::Print(error.into()))?
            }
        };
        writeln!(io::stdout(), "{line}").map_err(Failure::Print)
    }
}

/// Standard output that nobody reads any more is no failure, whatever is written there.
fn not_written(path: &Path, source: io::Error) -> Failure {
    if path.as_os_str() == "-" {
        Failure::Print(source)
    } else {
        Failure::Write { path: path.to_owned(), source }
    }
}

fn line(frame: &Frame) -> String {
    const NANOSECONDS: u64 = 1_000_000_000;
    let tuple = Tuple::of(&frame.bytes.0).map_or_else(String::new, |tuple| format!(" {tuple}"));
    format!(
        "{}.{:09} {}{tuple} {} bytes {}",
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
    query.extend(arguments.sample.map(|sample| ("sample", sample.to_string())));
    let query: Vec<(&str, &str)> =
        query.iter().map(|(key, value)| (*key, value.as_str())).collect();
    // The gateway is asked first: a file that is there already stays if it refuses.
    let lines = gateway.client.stream::<Line>(path::CAPTURE, &query)?;
    let mut sink = Sink::open(arguments.write.as_ref(), gateway.output)?;
    let (mut copies, mut end, mut broken) = (0u64, None, None);
    for line in lines {
        match line {
            Ok(Line::Frame(frame)) => {
                sink.put(&frame)?;
                copies += 1;
            }
            // The last line has the sum.
            Ok(Line::Lost { .. }) => {}
            Ok(Line::End { end: last }) => end = Some(last),
            Err(error) => {
                broken = Some(error);
                break;
            }
        }
    }
    let file = match &sink {
        Sink::File { path, .. } => format!("; written to {}", path.display()),
        Sink::Lines | Sink::Json => String::new(),
    };
    match end {
        Some(end) => eprintln!("{}{file}", sum(&end, copies)),
        None => eprintln!("{copies} copies captured{file}"),
    }
    if let Some(broken) = broken {
        return Err(broken.into());
    }
    for sentence in missing(end) {
        eprintln!("sluicectl: {sentence}");
    }
    Ok(())
}

/// What there was, in a line.
fn sum(end: &End, copies: u64) -> String {
    let End { packets, sample, lost } = end;
    let lost = match (lost.packets, lost.copies) {
        (0, 0) => "none".to_owned(),
        (packets, 0) => format!("{packets} packets"),
        (0, copies) => format!("{copies} copies"),
        (packets, copies) => format!("{packets} packets and {copies} copies"),
    };
    let mut text = format!("{packets} packets captured in {copies} copies, {lost} lost");
    if *sample > 1 {
        text.push_str(&format!(", 1 in {sample} sampled"));
    }
    text
}

/// What is not among the packets, in sentences.
fn missing(end: Option<End>) -> Vec<String> {
    let Some(End { lost, .. }) = end else {
        return vec![
            "the gateway ended the capture, because its packets were not taken".to_owned(),
        ];
    };
    let mut sentences = Vec::new();
    if lost.packets > 0 {
        sentences.push(format!(
            "{} packets are missing: they came faster than they were written; a narrower filter \
             or --sample helps",
            lost.packets
        ));
    }
    if lost.copies > 0 {
        sentences.push(format!(
            "{} copies are missing: they came faster than the gateway took them; a narrower filter \
             or --sample helps",
            lost.copies
        ));
    }
    sentences
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::capture::{Bytes, Lost, PacketVerdict, Stage};

    #[test]
    fn the_end_says_how_many_there_were_and_how_many_are_missing() {
        for (packets, copies, sample, said) in [
            (0, 0, 1, "7 packets captured in 13 copies, none lost"),
            (3, 0, 1, "7 packets captured in 13 copies, 3 packets lost"),
            (0, 5, 10, "7 packets captured in 13 copies, 5 copies lost, 1 in 10 sampled"),
            (3, 5, 1, "7 packets captured in 13 copies, 3 packets and 5 copies lost"),
        ] {
            let end = End { packets: 7, sample, lost: Lost { packets, copies } };
            assert_eq!(sum(&end, 13), said);
            let sentences = usize::from(packets > 0) + usize::from(copies > 0);
            assert_eq!(missing(Some(end)).len(), sentences, "{said}");
        }
        assert!(missing(None)[0].starts_with("the gateway ended the capture"));
    }

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
        let mut ipv4 = vec![0; 12];
        ipv4.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 100, 64, 0, 7, 8, 8, 8, 8]);
        ipv4.extend([0x9c, 0x40, 1, 0xbb]);
        let line = line(&Frame { bytes: Bytes(ipv4), ..frame });
        assert!(
            line.contains(" eth0 tcp 100.64.0.7:40000 > 8.8.8.8:443 60 bytes before "),
            "{line}"
        );
    }
}
