//! An attachment moves to another interface under a live flow: the daemon as it is, with a pod and a
//! server in network namespaces that vanish with the test.

use std::fs;
use std::path::Path;
use std::process::Command;

const GATEWAY: &str = env!("CARGO_BIN_EXE_sluice-gateway");

/// A pod with a link to eth1 and one to eth2 of the gateway, and a server behind eth0. Arguments: a
/// directory, the program. The pod asks the server ten times a second; after two seconds it and
/// its gateway's address move from the first link to the second, and then the file says so.
const MOVE: &str = r#"
mount -t tmpfs tmpfs "$1"
mkdir "$1/bpf"
mount -t bpf bpf "$1/bpf"
mount -t tmpfs tmpfs /run
ip link set lo up
ip netns add pod
ip netns add net
for n in 1 2; do
    ip link add eth$n type veth peer name p$n netns pod
    ip link set eth$n up
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
echo 1 >/proc/sys/net/ipv4/ip_forward
cat >"$1/sluice.yaml" <<END
gateway:
  name: gw-test
  domains: [{ name: red, number: 1 }]
  attachments:
    - { name: pods, interface: eth1, kind: spoke, domain: red, sources: [100.64.0.0/16], hook: tc }
    - { name: internet, interface: eth0, kind: internet, hook: tc }
  tables:
    sessions: 1024
    endpoints: 64
    prefixes: 64
    identities: 16
    rules: 16
    port_classes: 16
    next_hops: 64
  socket: $1/sluice.sock
  pin_path: $1/bpf/sluice
  state_dir: $1/state
documents:
  - { kind: DefaultAction, name: default, spec: { action: permit } }
  - kind: SnatPolicy
    name: out
    spec: { order: 1, src_cidr: 100.64.0.0/16, interface: eth0, snat_ips: [203.0.113.1] }
END
"$2" run --config "$1/sluice.yaml" 2>"$1/said" &
daemon=$!
tries=0
until [ "$(curl -s http://127.0.0.1:9464/readyz)" = ready ]; do
    tries=$((tries + 1))
    if [ $tries -gt 600 ] || ! kill -0 $daemon 2>/dev/null; then
        kill -9 $daemon 2>/dev/null || true
        cat "$1/said"
        exit 1
    fi
    sleep 0.1
done
ip netns exec pod ping -n -i 0.1 -c 80 203.0.113.9 >"$1/ping" 2>&1 &
ping=$!
sleep 2
ip address del 100.64.0.1/16 dev eth1
ip address add 100.64.0.1/16 dev eth2
ip -n pod address del 100.64.1.10/16 dev p1
ip -n pod address add 100.64.1.10/16 dev p2
ip -n pod route replace default via 100.64.0.1
sed -i 's/interface: eth1/interface: eth2/' "$1/sluice.yaml"
kill -HUP $daemon
wait $ping || true
curl -s http://127.0.0.1:9464/metrics | grep '^sluice_sessions_begun_total'
sed -n 's/.*icmp_seq=\([0-9]*\) .*/answer \1/p' "$1/ping"
kill $daemon
wait $daemon
"#;

fn skip(why: &str) {
    eprintln!("SKIPPED: an attachment that moves: {why}");
}

#[test]
fn answers_find_a_pod_whose_attachment_moves_to_another_interface() {
    if !nix::unistd::geteuid().is_root() {
        return skip("needs root for a network namespace");
    }
    for tool in ["ping", "curl", "ip"] {
        if Command::new(tool).arg("-V").output().is_err() {
            return skip(&format!("there is no {tool}"));
        }
    }
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("moves");
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).unwrap();
    let probe = "mount -t bpf bpf $0 && ip link add name one type veth peer name two";
    let within = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "sh", "-ec", script]);
        command
    };
    if !within(probe).arg(&directory).output().is_ok_and(|output| output.status.success()) {
        return skip("needs bpffs and veth in namespaces of its own");
    }
    let output = within(MOVE).arg("sh").arg(&directory).arg(GATEWAY).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    let answered: Vec<u32> =
        said.lines().filter_map(|line| line.strip_prefix("answer ")?.parse().ok()).collect();
    // The move itself takes a moment, and the new neighbour is asked for once.
    let late = answered.iter().filter(|number| **number > 50).count();
    assert_eq!(late, 30, "{said}");
    assert!(said.contains("sluice_sessions_begun_total 1\n"), "the session is the same: {said}");
}
