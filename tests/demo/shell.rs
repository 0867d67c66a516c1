//! A shell on the stage.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use lab::daemon::{ctl_binary, gateway_binary};
use lab::plan::{INTERNET_SERVERS, TRANSIT_SERVERS};
use lab::{Hook, Netns};

use crate::stage::Stage;

/// Opens a shell in the gateway, or runs something else there; its exit code.
pub(crate) fn run(hook: Hook, command: &[String]) -> Result<ExitCode> {
    println!("Building two clusters, a gateway, a transit side and an internet side ...");
    let stage = Stage::set(hook)?;
    let lab = &stage.lab;
    let programs = [ctl_binary()?, gateway_binary()?];
    let directory = programs[0].parent().context("a program is in a directory")?;
    println!("\nThe gateway is at work. This shell is in its network namespace; the others:\n");
    let row = |what: &str, address: String, netns: &Netns| {
        println!("  {what:<18} {address:<26} in {}", netns.name());
    };
    for cluster in &lab.clusters {
        for pod in &cluster.pods {
            let name = format!("{}/{}", cluster.plan.name, pod.plan.name);
            row(&name, format!("{} ({})", pod.address, pod.plan.team), &pod.netns);
        }
        row(&format!("{}/node", cluster.plan.name), cluster.plan.node.to_string(), &cluster.node);
    }
    row("transit", TRANSIT_SERVERS[0].to_string(), &lab.transit);
    row("internet", INTERNET_SERVERS[0].to_string(), &lab.internet);
    let pod = lab.pod("prod-eu", "web").netns.name().to_owned();
    println!(
        "\nTry:\n\
         \x20 at {pod} curl -s http://{internet}/      # the server says who asked\n\
         \x20 at {pod} ping -c 3 {internet}\n\
         \x20 sluicectl sessions                            # with both tuples\n\
         \x20 sluicectl rules; sluicectl snat; sluicectl stats\n\
         \x20 sluicectl explain --from prod-eu:100.64.1.20 --to {transit}:80/tcp\n\
         \x20 tail -f $FLOWS | jq .                         # flow records\n\
         \x20 $EDITOR $CONFIG                               # in force a second after it is saved\n\
         \x20 exit                                          # everything is removed\n",
        internet = INTERNET_SERVERS[0],
        transit = TRANSIT_SERVERS[0],
    );
    let files = lab.site().files();
    let bin = files.join("bin");
    std::fs::create_dir_all(&bin).context("cannot make a directory for commands")?;
    let script = |name: &str, line: String| -> Result<()> {
        use std::os::unix::fs::PermissionsExt as _;
        let path = bin.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{line}\n"))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        Ok(())
    };
    script("at", "name=$1; shift; exec ip netns exec \"$name\" \"$@\"".to_owned())?;
    let socket = stage.socket();
    script(
        "sluicectl",
        format!("exec {} --socket {} \"$@\"", programs[0].display(), socket.display()),
    )?;
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{}:{path}", bin.display(), directory.display());
    let default = [std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".to_owned())];
    let words = if command.is_empty() { &default[..] } else { command };
    let (program, arguments) = words.split_first().context("there is a default")?;
    let status = lab.gateway.enter(|| {
        Command::new(program)
            .args(arguments)
            .env("PATH", path)
            .env("FLOWS", files.join("flows.jsonl"))
            .env("CONFIG", stage.daemon.config_path())
            .status()
            .with_context(|| format!("cannot run `{program}`"))
    })?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}
