//! `sluicectl`: asks a gateway over its local socket, and prints tables for people or JSON for
//! programs.
//!
//! Exit codes: 0 done, 1 the gateway refused or could not be asked, 2 the command line is wrong.

mod capture;
mod pcapng;
mod show;
mod table;
mod tuple;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use api::client::{Client, ClientError};
use api::explain::{ExplainRequest, Explanation, ParseExplainError};
use api::filter::{Filter, FilterError};
use api::path;
use api::policy::{Identities, Rules, Snat};
use api::session::{ClearRequest, ClearResponse, Sessions};
use api::status::{Maps, Programs, Stats, Status};
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;
use serde::de::DeserializeOwned;

use show::Show;

/// Asks a Sluice gateway what it does.
///
/// FILTER is words such as src=100.64.0.0/16 dst=192.0.2.7 port=443 proto=tcp rule=NAME
/// domain=NAME outside=10.10.0.17 id=SESSION state=all; all of them must hold. `sessions clear` takes all but
/// state, `capture` all but domain and state, and `sluicectl capture --help` says what they mean of packets.
#[derive(Parser)]
#[command(name = "sluicectl", version)]
struct Arguments {
    /// The gateway's socket.
    #[arg(long, global = true, default_value = api::DEFAULT_SOCKET, value_name = "PATH")]
    socket: PathBuf,
    /// How to print.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people; as wide as the terminal, or as COLUMNS says.
    Table,
    /// For people; every column, however wide.
    Wide,
    /// For programs; with all that is known.
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// How the gateway is.
    Status,
    /// Live sessions.
    #[command(args_conflicts_with_subcommands = true)]
    Sessions(SessionsArguments),
    /// Who has which set of groups.
    Identities,
    /// Rules in the order in which they are judged, and how often each decided.
    Rules,
    /// SNAT policies, their outside addresses and how full those are.
    Snat,
    /// What became of every packet.
    Stats,
    /// Programs in the kernel.
    Programs,
    /// Maps in the kernel.
    Maps,
    /// What would become of a packet, step by step.
    Explain {
        /// Where it comes from. Without a port no live session is looked for, and what depends on
        /// the port says so; of ICMP it is the identifier.
        #[arg(long, value_name = "DOMAIN:IP[:PORT]")]
        from: String,
        /// Where it goes; without a port for protocols that have none.
        #[arg(long, value_name = "IP:PORT/PROTOCOL")]
        to: String,
    },
    /// Copies of packets, before and after translation, with the verdict on each.
    Capture(capture::Arguments),
}

/// What the daemon shows at once.
const MOST_SESSIONS: i64 = 100_000;

#[derive(Args)]
struct SessionsArguments {
    #[command(subcommand)]
    command: Option<SessionsCommand>,
    /// Which sessions; all live ones if not given. src=PREFIX, dst=PREFIX, port=N, proto=NAME,
    /// rule=NAME, domain=NAME, outside=IP, id=SESSION as in records and captures; state=resting
    /// are those that ended and whose outside port rests, state=all both.
    filter: Vec<String>,
    /// How many at most; 100000 are shown at once.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(..=MOST_SESSIONS))]
    limit: u32,
}

#[derive(Subcommand)]
enum SessionsCommand {
    /// Ends sessions.
    #[command(group = ArgGroup::new("which").args(["filter", "all"]).required(true))]
    Clear {
        /// Which sessions.
        filter: Vec<String>,
        /// Every session.
        #[arg(long)]
        all: bool,
    },
}

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Filter(#[from] FilterError),
    #[error(transparent)]
    Explain(#[from] ParseExplainError),
    #[error("without a term every session would end; say --all if that is meant")]
    Everything,
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot print: {0}")]
    Print(io::Error),
}

impl Failure {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Filter(_) | Self::Explain(_) | Self::Everything => 2,
            Self::Client(_) | Self::Write { .. } => 1,
            // Whoever reads has seen enough, as `head` does.
            Self::Print(error) => u8::from(error.kind() != io::ErrorKind::BrokenPipe),
        }
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if failure.exit_code() != 0 {
                eprintln!("sluicectl: {failure}");
            }
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(Arguments { socket, output, command }: Arguments) -> Result<(), Failure> {
    let gateway = Gateway { client: Client::new(socket), output };
    match command {
        Command::Status => gateway.show::<Status>(path::STATUS, &[]),
        Command::Sessions(SessionsArguments { command: None, filter, limit }) => {
            let filter = parsed(&filter)?.to_string();
            let query = [("filter", filter.as_str()), ("limit", &limit.to_string())];
            gateway.show::<Sessions>(path::SESSIONS, &query)
        }
        Command::Sessions(SessionsArguments {
            command: Some(SessionsCommand::Clear { filter, all }),
            ..
        }) => {
            let filter = parsed(&filter)?;
            filter.of_clear()?;
            if filter.is_empty() && !all {
                return Err(Failure::Everything);
            }
            let request = ClearRequest { filter: filter.to_string() };
            let response: ClearResponse = gateway.client.post(path::SESSIONS_CLEAR, &request)?;
            gateway.print(&response)
        }
        Command::Identities => gateway.show::<Identities>(path::IDENTITIES, &[]),
        Command::Rules => gateway.show::<Rules>(path::RULES, &[]),
        Command::Snat => gateway.show::<Snat>(path::SNAT, &[]),
        Command::Stats => gateway.show::<Stats>(path::STATS, &[]),
        Command::Programs => gateway.show::<Programs>(path::PROGRAMS, &[]),
        Command::Maps => gateway.show::<Maps>(path::MAPS, &[]),
        Command::Explain { from, to } => {
            let request = ExplainRequest::parse(&from, &to)?;
            let explanation: Explanation = gateway.client.post(path::EXPLAIN, &request)?;
            gateway.print(&explanation)
        }
        Command::Capture(arguments) => capture::run(&gateway, &arguments),
    }
}

/// The words of a filter as one, checked before the gateway is bothered.
fn parsed(words: &[String]) -> Result<Filter, FilterError> {
    words.join(" ").parse()
}

/// Whom to ask and how to print.
struct Gateway {
    client: Client,
    output: Output,
}

impl Gateway {
    fn show<T: DeserializeOwned + Serialize + Show>(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<(), Failure> {
        self.print(&self.client.get::<T>(path, query)?)
    }

    fn print<T: Serialize + Show>(&self, answer: &T) -> Result<(), Failure> {
        let text = match self.output {
            Output::Table => answer.show(table::width()),
            Output::Wide => answer.show(usize::MAX),
            Output::Json => json(answer)?,
        };
        io::stdout().write_all(text.as_bytes()).map_err(Failure::Print)
    }
}

fn json(value: &impl Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value);
    text.map(|text| text + "\n").map_err(|error| Failure::Print(error.into()))
}
