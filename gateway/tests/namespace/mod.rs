//! A daemon in network and mount namespaces of its own, which vanish with the shell that made them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const GATEWAY: &str = env!("CARGO_BIN_EXE_sluice-gateway");

/// `start` runs a daemon by the words that it is given, with the file `sluice.yaml` of the
/// directory, and returns when that is ready; its number is in `$daemon`.
const START: &str = r#"
directory=$1
program=$2
daemon=
# Also of a script that fails: whoever runs it waits for everybody who can still write.
trap '[ -z "$daemon" ] || kill -9 $daemon 2>/dev/null || true' EXIT
start() {
    "$@" "$program" run --config "$directory/sluice.yaml" 2>"$directory/said" &
    daemon=$!
    tries=0
    until [ "$(curl -s http://127.0.0.1:9464/readyz)" = ready ]; do
        tries=$((tries + 1))
        if [ $tries -gt 600 ] || ! kill -0 $daemon 2>/dev/null; then
            kill -9 $daemon 2>/dev/null || true
            cat "$directory/said"
            exit 1
        fi
        sleep 0.1
    done
}
"#;

fn within(script: &str, directory: &Path, more: &[&str]) -> Output {
    Command::new("unshare")
        .args(["--net", "--mount", "sh", "-ec", &format!("{START}{script}"), "sh"])
        .arg(directory)
        .arg(GATEWAY)
        .args(more)
        .output()
        .unwrap()
}

/// Runs a script. Its arguments are a directory of this name, which is empty, the program, and more.
pub(crate) fn run(script: &str, name: &str, more: &[&str]) -> Output {
    within(script, &scratch(name), more)
}

/// An empty directory.
pub(crate) fn scratch(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).unwrap();
    directory
}

/// Says that something was not looked at.
pub(crate) fn skip(what: &str, why: &str) {
    eprintln!("SKIPPED: {what}: {why}");
}

/// Whether a script can be run that uses these tools; if not, that is said.
pub(crate) fn can_run(what: &str, tools: &[&str]) -> bool {
    if !nix::unistd::geteuid().is_root() {
        skip(what, "needs root for a network namespace");
        return false;
    }
    if let Some(tool) = tools.iter().find(|t| Command::new(t).arg("--version").output().is_err()) {
        skip(what, &format!("there is no {tool}"));
        return false;
    }
    let probe = "mount -t bpf bpf \"$1\" && ip link add name one type veth peer name two";
    let works = run(probe, &format!("probe-{}", tools.join("-")), &[]).status.success();
    if !works {
        skip(what, "needs bpffs and veth in namespaces of its own");
    }
    works
}
