//! `sluice-lab`: builds a lab and runs a program in its gateway, a shell unless told otherwise.
//! Everything is gone when that ends.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use lab::baseline::{Translation, translate};
use lab::{Lab, Offloads, Shape};

/// Builds a lab and runs a program in it.
#[derive(Parser)]
struct Arguments {
    /// How the gateway is connected.
    #[arg(value_enum)]
    shape: Connected,
    /// Let Linux and nftables forward and translate.
    #[arg(long)]
    baseline: bool,
    /// What to run in the gateway's namespace.
    #[arg(last = true, default_value = "sh")]
    command: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Connected {
    ThreeLegged,
    OneArmed,
    OneArmedTrunk,
}

fn main() -> ExitCode {
    serve(&Arguments::parse()).unwrap_or_else(|error| {
        eprintln!("sluice-lab: {error:#}");
        ExitCode::FAILURE
    })
}

fn serve(arguments: &Arguments) -> Result<ExitCode> {
    let shape = match arguments.shape {
        Connected::ThreeLegged => Shape::ThreeLegged,
        Connected::OneArmed => Shape::OneArmed,
        Connected::OneArmedTrunk => Shape::OneArmedTrunk,
    };
    let lab = Lab::new(shape, Offloads::Off)?;
    let _servers = lab.serve()?;
    if arguments.baseline {
        translate(&lab, Translation::All)?;
    }
    println!("gateway          ip netns exec {}", lab.gateway.name());
    for cluster in &lab.clusters {
        for pod in &cluster.pods {
            println!("{:<16} ip netns exec {}", pod.address, pod.netns.name());
        }
        println!("{:<16} ip netns exec {}", cluster.plan.node, cluster.node.name());
    }
    for (side, servers) in
        [(&lab.transit, lab::plan::TRANSIT_SERVERS), (&lab.internet, lab::plan::INTERNET_SERVERS)]
    {
        for server in servers {
            println!("{server:<16} ip netns exec {}", side.name());
        }
    }
    let (program, words) = arguments.command.split_first().context("there is a default")?;
    let status = lab.gateway.enter(|| {
        let mut command = Command::new(program);
        command.args(words).status().with_context(|| format!("cannot run `{program}`"))
    })?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}
