//! A daemon in network and mount namespaces of its own, which vanish with the shell that made them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const GATEWAY: &str = env!("CARGO_BIN_EXE_sluice-gateway");

/// `site` makes a pod behind eth1 (and behind eth2, if it is given `1 2`), and a server behind eth0.
/// `configure` writes the file `sluice.yaml` of the directory: attachments of the pod, and more
/// lines for `gateway`. `start` runs a daemon by the words that it is given, and returns when that is
/// ready; its number is in `$daemon`.
const START: &str = r#"
directory=$1
program=$2
daemon=
site() {
    mount -t tmpfs tmpfs "$directory"
    mkdir "$directory/bpf"
    mount -t bpf bpf "$directory/bpf"
    mount -t tmpfs tmpfs /run
    # Its routes come and go with a link.
    echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6
    echo 1 >/proc/sys/net/ipv4/ip_forward
    ip link set lo up
    ip netns add pod
    ip netns add net
    for n in "$@"; do
        ip link add eth$n type veth peer name p$n netns pod
        ip link set eth$n up address 02:aa:00:00:00:0$n
        ip -n pod link set p$n up
    done
    ip link add eth0 type veth peer name s0 netns net
    ip link set eth0 up
    ip -n net link set s0 up
    ip address add 203.0.113.1/24 dev eth0
    ip -n net address add 203.0.113.9/24 dev s0
    ip address add 100.64.0.1/16 dev eth1
    ip -n pod address add 100.64.1.10/16 dev p1
    ip -n pod route add default via 100.64.0.1
}
POD='- { name: pods, interface: eth1, kind: spoke, domain: red, sources: [100.64.0.0/16], hook: tc }'
configure() {
    cat >"$directory/sluice.yaml" <<END
gateway:
  name: gw-test
  domains: [{ name: red, number: 1 }]
  attachments:
    $1
    - { name: internet, interface: eth0, kind: internet, hook: tc }
  tables:
    sessions: 4096
    endpoints: 64
    prefixes: 64
    identities: 16
    rules: 16
    port_classes: 16
    next_hops: 64
  socket: $directory/sluice.sock
  pin_path: $directory/bpf/sluice
  state_dir: $directory/state
  $2
documents:
  - { kind: DefaultAction, name: default, spec: { action: permit } }
  - kind: SnatPolicy
    name: out
    spec: { order: 1, src_cidr: 100.64.0.0/16, interface: eth0, snat_ips: [203.0.113.1] }
END
}
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
    // Two tests at once take a directory each.
    let works = run(probe, &format!("probe-{what}"), &[]).status.success();
    if !works {
        skip(what, "needs bpffs and veth in namespaces of its own");
    }
    works
}
