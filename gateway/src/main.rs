//! The daemon on the gateway VM.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use gateway::config::Config;

/// Firewall and SNAT gateway for Kubernetes networks.
#[derive(Parser)]
#[command(name = "sluice-gateway")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Reads a configuration file, says what is wrong with it and touches nothing.
    Check {
        /// The file.
        #[arg(long, default_value = "/etc/sluice/sluice.yaml")]
        config: PathBuf,
    },
    /// Prints the version.
    Version,
}

/// Exit code for a configuration that cannot be used.
const UNUSABLE: u8 = 2;

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Check { config } => check(&config),
        Command::Version => {
            println!("sluice-gateway {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
    }
}

fn check(path: &Path) -> ExitCode {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            eprintln!("cannot read {}: {error}", path.display());
            return ExitCode::from(UNUSABLE);
        }
    };
    match Config::parse(&text, &path.display().to_string()) {
        Ok(config) => {
            for warning in &config.warnings {
                eprintln!("warning: {warning}");
            }
            println!("{}", config.summary());
            ExitCode::SUCCESS
        }
        Err(errors) => {
            for error in &errors {
                eprintln!("{error}");
            }
            ExitCode::from(UNUSABLE)
        }
    }
}
