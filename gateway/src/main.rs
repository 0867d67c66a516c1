//! The daemon on the gateway VM.

use std::fmt::Display;
use std::io::{ErrorKind, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;

use clap::{Parser, Subcommand};
use flow_export::Unblocked;
use gateway::{
    daemon::{self, StartError},
    engine,
};
use tracing::Level;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Firewall and SNAT gateway for Kubernetes networks.
#[derive(Parser)]
#[command(name = "sluice-gateway", version)]
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
    /// Runs the gateway until a signal ends it; traffic goes on afterwards.
    Run {
        /// The file; it is read again on SIGHUP and when it changes.
        #[arg(long, default_value = "/etc/sluice/sluice.yaml")]
        config: PathBuf,
    },
    /// Takes programs and tables out; the last guard stays, so that nothing leaks.
    Detach {
        /// The file that says where they are.
        #[arg(long, default_value = "/etc/sluice/sluice.yaml")]
        config: PathBuf,
        /// Takes the last guard out as well: the machine routes pod traffic as it is.
        #[arg(long)]
        remove_guard: bool,
    },
    /// Prints the version.
    Version,
}

/// Exit code for a configuration that cannot be used.
const UNUSABLE: u8 = 2;

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Check { config } => check(&config),
        Command::Run { config } => run(config),
        Command::Detach { config, remove_guard } => detach(&config, remove_guard),
        Command::Version => print(concat!("sluice-gateway ", env!("CARGO_PKG_VERSION"))),
    }
}

/// Prints what a command has to say after it was done.
fn print(text: &str) -> ExitCode {
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads has seen enough, as `head` does.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("sluice-gateway: done, but it cannot be printed: {error}"));
            ExitCode::from(FAILED)
        }
    }
}

/// Says what is wrong; where nobody listens the exit code says it alone.
fn complain(what: impl Display) {
    let _ = writeln!(std::io::stderr(), "{what}");
}

/// Exit code for a daemon that could not start or go on.
const FAILED: u8 = 1;

/// Says what is logged.
const LOG: &str = "SLUICE_LOG";
/// What is logged if it does not say.
const USUAL_LOG: &str = "info";

/// What is logged, and what is wrong with what was stated. A word that is no level would name a part of
/// the program, and nothing but that would be logged.
fn log_filter(stated: Option<&str>) -> (EnvFilter, Option<String>) {
    let usual = |why| (EnvFilter::new(USUAL_LOG), why);
    let stated = match stated {
        None | Some("") => return usual(None),
        Some(stated) => stated,
    };
    let is_level = |word: &str| word.trim().parse::<LevelFilter>().is_ok();
    let mut words = stated.split(',').filter(|directive| !directive.contains(['=', '[', ']']));
    if let Some(word) = words.find(|word| !is_level(word)) {
        let why = format!("`{word}` is no level; expected error, warn, info, debug, trace or off");
        return usual(Some(why));
    }
    match EnvFilter::try_new(stated) {
        Ok(filter) => (filter, None),
        Err(error) => usual(Some(format!("`{stated}`: {error}"))),
    }
}

/// Whether something is never logged, whatever is asked for: at this level the AWS SDK tells its questions
/// and answers whole, session tokens and external ids in them.
fn has_secrets(level: Level, target: &str) -> bool {
    level == Level::TRACE && target.starts_with("aws_")
}

fn run(path: PathBuf) -> ExitCode {
    if let Err(error) = daemon::hold_hang_up() {
        complain(format_args!("sluice-gateway: SIGHUP cannot be held back: {error}"));
        return ExitCode::from(FAILED);
    }
    let output = match std::io::stderr().as_fd().try_clone_to_owned() {
        Ok(output) => Unblocked::new(output.into()),
        Err(error) => {
            complain(format_args!("sluice-gateway: standard error cannot be used: {error}"));
            return ExitCode::from(FAILED);
        }
    };
    let stated = std::env::var_os(LOG).map(|stated| stated.to_string_lossy().into_owned());
    let (filter, misread) = log_filter(stated.as_deref());
    // Whoever reads the log may stop, and it may be the same pipe as the flow log's: what finds no
    // room is lost, and nothing waits for it.
    tracing_subscriber::fmt()
        .with_writer(Mutex::new(output))
        .log_internal_errors(false)
        .with_ansi(false)
        .with_target(false)
        .with_env_filter(filter)
        .finish()
        .with(filter_fn(|about| !has_secrets(*about.level(), about.target())))
        .init();
    if let Some(why) = misread {
        tracing::warn!("{LOG} is taken for `{USUAL_LOG}`: {why}");
    }
    let runtime =
        match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                complain(format_args!("sluice-gateway: the runtime cannot start: {error}"));
                return ExitCode::from(FAILED);
            }
        };
    match runtime.block_on(daemon::run(path)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(refused @ (StartError::Config(_) | StartError::Read { .. })) => {
            complain(refused);
            ExitCode::from(UNUSABLE)
        }
        Err(failed) => {
            complain(format_args!("sluice-gateway: {}", daemon::with_causes(&failed)));
            ExitCode::from(if failed.is_for_good() { UNUSABLE } else { FAILED })
        }
    }
}

fn detach(path: &Path, remove_guard: bool) -> ExitCode {
    let config = match daemon::read_config(path) {
        Ok(config) => config,
        Err(refused) => {
            complain(refused);
            return ExitCode::from(UNUSABLE);
        }
    };
    match engine::detach(&config, remove_guard) {
        Ok(gone) => {
            let guard = match (remove_guard, gone.guard) {
                (true, true) => "the last guard is removed",
                (true, false) => "there was no last guard",
                (false, true) => {
                    "the last guard stays: no non-routable source leaves (--remove-guard removes it)"
                }
                (false, false) => {
                    "the last guard did not stand as the file has it, and was put up: no non-routable \
                     source leaves (--remove-guard removes it)"
                }
            };
            print(&format!("detached: {} links, {} tables\n{guard}", gone.links, gone.maps))
        }
        Err(failed) => {
            complain(format_args!("sluice-gateway: {}", daemon::with_causes(&failed)));
            ExitCode::from(FAILED)
        }
    }
}

fn check(path: &Path) -> ExitCode {
    match daemon::read_config(path) {
        Ok(config) => {
            for warning in &config.warnings {
                complain(format_args!("warning: {warning}"));
            }
            let faults = config.look_at_files();
            if faults.is_empty() {
                return print(&config.summary());
            }
            faults.iter().for_each(complain);
            ExitCode::from(UNUSABLE)
        }
        Err(refused) => {
            complain(refused);
            ExitCode::from(UNUSABLE)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_logged_is_understood_or_told_to_be_wrong() {
        for (stated, filter, misread) in [
            (None, "info", None),
            (Some(""), "info", None),
            (Some("debug"), "debug", None),
            (Some("WARN"), "warn", None),
            (Some("off"), "off", None),
            (Some("gateway::net=trace,info"), "gateway::net=trace,info", None),
            (Some("deubg"), "info", Some("`deubg` is no level; expected error, warn")),
            (Some("info,gateway"), "info", Some("`gateway` is no level")),
            (Some("gateway=loud"), "info", Some("`gateway=loud`: ")),
        ] {
            let (found, why) = log_filter(stated);
            assert_eq!(found.to_string(), filter, "{stated:?}");
            let said = why.as_deref().unwrap_or_default();
            assert!(why.is_some() == misread.is_some(), "{stated:?}: {said}");
            assert!(said.contains(misread.unwrap_or_default()), "{stated:?}: {said}");
        }
    }

    #[test]
    fn what_holds_secrets_is_not_logged_at_any_level() {
        for (level, target, expected) in [
            (Level::TRACE, "aws_smithy_runtime::client::orchestrator", true),
            (Level::TRACE, "aws_sigv4::http_request::sign", true),
            (Level::DEBUG, "aws_smithy_runtime::client::orchestrator", false),
            (Level::TRACE, "gateway::engine", false),
        ] {
            assert_eq!(has_secrets(level, target), expected, "{level} {target}");
        }
    }
}
