//! `sluice-demo`: the product at work, in two clusters, a gateway and an internet made of network
//! namespaces.
//!
//! Tells what it does in short paragraphs and shows what came out in tables. `shell` keeps
//! everything up and opens a shell. Nothing stays on the machine afterwards.

mod kubernetes;
mod shell;
mod stage;
mod story;
mod table;

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use lab::{Hook, Need, skip};

/// Shows a Sluice gateway at work between two Kubernetes clusters and an internet, all of them
/// network namespaces of this machine. Needs root.
#[derive(Parser)]
#[command(name = "sluice-demo")]
struct Arguments {
    /// Where the gateway hooks into the kernel.
    #[arg(long, value_enum, default_value = "xdp", global = true)]
    hook: HookName,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Tells the whole story, in under two minutes; the default.
    Story,
    /// Has the gateway watch a real Kubernetes API server, and changes a label under a live flow.
    Kubernetes,
    /// Keeps everything up and opens a shell in the gateway.
    Shell {
        /// What to run in place of a shell.
        #[arg(last = true)]
        command: Vec<String>,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum HookName {
    Xdp,
    Tc,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if !nix::unistd::geteuid().is_root() {
        eprintln!("sluice-demo: network namespaces and eBPF need root; run it with sudo");
        return ExitCode::FAILURE;
    }
    let needs = [Need::Lab, Need::Bpffs, Need::Gateway, Need::Ctl, Need::Tool("iperf3")];
    if let Some(why) = skip::missing(&needs) {
        eprintln!("sluice-demo: {why}");
        return ExitCode::FAILURE;
    }
    let hook = match arguments.hook {
        HookName::Xdp => Hook::Xdp,
        HookName::Tc => Hook::Tc,
    };
    let told = match arguments.command {
        None | Some(Command::Story) => story::tell(hook).map(|()| ExitCode::SUCCESS),
        Some(Command::Kubernetes) => {
            if let Some(why) = peers::missing(&[peers::ETCD, peers::KUBE_APISERVER]) {
                eprintln!("sluice-demo: {why}");
                return ExitCode::FAILURE;
            }
            kubernetes::tell(hook).map(|()| ExitCode::SUCCESS)
        }
        Some(Command::Shell { command }) => shell::run(hook, &command),
    };
    told.unwrap_or_else(|error| {
        eprintln!("sluice-demo: {error:#}");
        ExitCode::FAILURE
    })
}
