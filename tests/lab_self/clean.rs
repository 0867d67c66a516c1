//! Nothing of a lab stays on the machine.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lab::{Lab, Need, Netns, Site};

/// What is left on the machine of names that begin so.
fn left(prefix: &str) -> Vec<String> {
    [Path::new("/run/netns"), Path::new("/sys/fs/bpf"), &std::env::temp_dir()]
        .into_iter()
        .filter_map(|directory| std::fs::read_dir(directory).ok())
        .flatten()
        .filter_map(|entry| entry.ok()?.path().into_os_string().into_string().ok())
        .filter(|path| path.rsplit('/').next().is_some_and(|name| name.starts_with(prefix)))
        .collect()
}

#[test]
fn a_dropped_lab_leaves_no_namespace_no_file_no_pin_and_no_process() -> Result<()> {
    lab::require!(Need::Lab, Need::Bpffs);
    let lab = Lab::one_armed()?;
    let prefix = format!("{}-", lab.site().prefix());
    let servers = lab.serve()?;
    std::fs::create_dir_all(lab.site().pins().join("maps"))?;
    // A process that nobody holds, as a shell in the lab may leave it.
    lab.gateway.run("sh", &["-c", "sleep 600 >/dev/null 2>&1 & echo $!"])?;
    let processes = [&lab.gateway, &lab.internet].map(Netns::processes);
    let processes: Vec<i32> = processes.into_iter().collect::<Result<Vec<_>>>()?.concat();
    ensure!(!processes.is_empty());
    ensure!(left(&prefix).len() >= 14, "{:?}", left(&prefix));
    let (pins, files) = (lab.site().pins(), lab.site().files().to_owned());
    ensure!(pins.exists() && files.exists());

    drop((servers, lab));

    ensure!(left(&prefix).is_empty(), "{:?}", left(&prefix));
    ensure!(!pins.exists() && !files.exists());
    eventually("its processes are gone", || {
        processes.iter().all(|pid| !Path::new("/proc").join(pid.to_string()).join("exe").exists())
    })
}

#[test]
fn a_killed_lab_leaves_nothing_either() -> Result<()> {
    lab::require!(Need::Lab, Need::Nftables);
    let mut killed = Command::new(env!("CARGO_BIN_EXE_sluice-lab"))
        .args(["three-legged", "--baseline", "--", "sleep", "600"])
        .stdout(Stdio::piped())
        .spawn()?;
    let prefix = format!("sl{}-", killed.id());
    let mut said = String::new();
    let mut output = BufReader::new(killed.stdout.take().context("it was just asked for")?);
    // Its last line comes when everything stands.
    while !said.contains("203.0.113.10") {
        ensure!(output.read_line(&mut said)? > 0, "it ended after saying: {said}");
    }
    ensure!(left(&prefix).len() >= 14, "{:?}", left(&prefix));
    killed.kill()?;
    killed.wait()?;
    eventually("everything is gone", || left(&prefix).is_empty())
}

#[test]
fn whoever_starts_removes_what_the_dead_left_and_nothing_of_the_living() -> Result<()> {
    lab::require!(Need::Lab);
    // One past the largest number that a process can have, and our own.
    let (dead, living) = ("sl4194305-0-left".to_owned(), Site::new()?);
    let kept = Netns::new(&living, "kept")?;
    let ip = |verb| Command::new("ip").args(["netns", verb, &dead]).status();
    ensure!(ip("add")?.success());
    let mut other = Command::new(env!("CARGO_BIN_EXE_sluice-lab"));
    let status = other.args(["one-armed", "--", "true"]).stdout(Stdio::null()).status()?;
    let removed = left(&dead).is_empty();
    if !removed {
        ip("del")?;
    }
    ensure!(status.success() && removed && kept.path().exists());
    Ok(())
}

#[test]
fn labs_side_by_side_have_names_of_their_own() -> Result<()> {
    lab::require!(Need::Lab);
    let [one, two] = [Site::new()?, Site::new()?];
    let first = Netns::new(&one, "gateway")?;
    let second = Netns::new(&two, "gateway")?;
    ensure!(first.name() != second.name());
    ensure!(Netns::new(&one, "gateway").is_err(), "within a lab a name is taken once");
    let (path, clone) = (first.path(), first.clone());
    drop(first);
    ensure!(path.exists(), "a clone still holds it");
    drop(clone);
    ensure!(!path.exists());
    Ok(())
}

fn eventually(what: &str, holds: impl Fn() -> bool) -> Result<()> {
    let start = Instant::now();
    while !holds() {
        ensure!(start.elapsed() < Duration::from_secs(10), "not within ten seconds: {what}");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
