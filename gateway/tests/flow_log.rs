//! A flow log that nobody reads: the daemon as it is, with a pod and a server in network namespaces
//! that vanish with the test.

mod namespace;

use namespace::{can_run, run};

/// A pod behind eth1 that can open many flows to a server behind eth0, and a pipe for records that is
/// read by nobody. The third argument is `flow_log.path`.
const SITE: &str = r#"
mount -t tmpfs tmpfs "$1"
mkdir "$1/bpf"
mount -t bpf bpf "$1/bpf"
mount -t tmpfs tmpfs /run
ip link set lo up
for place in pod net; do ip netns add $place; done
ip link add eth1 type veth peer name p1 netns pod
ip link add eth0 type veth peer name s0 netns net
for interface in eth0 eth1; do ip link set $interface up; done
ip -n pod link set p1 up
ip -n net link set s0 up
ip address add 203.0.113.1/24 dev eth0
ip -n net address add 203.0.113.9/24 dev s0
ip address add 100.64.0.1/16 dev eth1
ip -n pod address add 100.64.1.10/16 dev p1
ip -n pod route add default via 100.64.0.1
echo 1 >/proc/sys/net/ipv4/ip_forward
mkfifo "$1/pipe"
exec 3<>"$1/pipe"
cat >"$1/sluice.yaml" <<END
gateway:
  name: gw-test
  domains: [{ name: red, number: 1 }]
  attachments:
    - { name: pods, interface: eth1, kind: spoke, domain: red, sources: [100.64.0.0/16], hook: tc }
    - { name: internet, interface: eth0, kind: internet, hook: tc }
  tables:
    sessions: 4096
    endpoints: 64
    prefixes: 64
    identities: 16
    rules: 16
    port_classes: 16
    next_hops: 64
  flow_log: { path: "$3" }
  socket: $1/sluice.sock
  pin_path: $1/bpf/sluice
  state_dir: $1/state
documents:
  - { kind: DefaultAction, name: default, spec: { action: permit } }
  - kind: SnatPolicy
    name: out
    spec: { order: 1, src_cidr: 100.64.0.0/16, interface: eth0, snat_ips: [203.0.113.1] }
END
flows() {
    ip netns exec pod bash -c "for port in {$1..$2}; do echo >/dev/udp/203.0.113.9/\$port; done"
}
metric() { curl -s http://127.0.0.1:9464/metrics | sed -n "s/^$1 //p"; }
# Waits until a metric has a value.
becomes() {
    touch "$directory/said"
    tries=0
    until [ "$(metric $1)" = $2 ]; do
        tries=$((tries + 1))
        if [ $tries -gt 200 ]; then cat "$directory/said"; exit 1; fi
        sleep 0.1
    done
}
# Ends the daemon, which has ten seconds for it.
terminate() {
    kill $daemon
    tries=0
    while kill -0 $daemon 2>/dev/null; do
        tries=$((tries + 1))
        if [ $tries -gt 100 ]; then kill -9 $daemon; echo "it does not end"; exit 1; fi
        sleep 0.1
    done
    wait $daemon
    cat "$directory/said"
}
"#;

/// The reader goes on once, and stops again.
const STOPS: &str = r#"
start env >"$1/pipe"
flows 1000 1500
becomes sluice_flow_log_failing 1
curl -s http://127.0.0.1:9464/readyz
cat <&3 >/dev/null &
reader=$!
becomes sluice_flow_log_failing 0
becomes sluice_flow_records_written_total "$(metric sluice_flow_records_generated_total)"
kill $reader
flows 2000 2500
becomes sluice_flow_log_failing 1
terminate
"#;

/// A pipe in place of a file has the thread that writes wait for ever.
const WAITS: &str = r#"
start env
flows 1000 1500
sleep 2
terminate
"#;

/// The log goes where the records go, as with `2>&1`.
const SHARES: &str = r#"
"$2" run --config "$1/sluice.yaml" >"$1/pipe" 2>&1 &
daemon=$!
becomes sluice_ready 1
flows 1000 1500
becomes sluice_flow_log_failing 1
curl -s http://127.0.0.1:9464/readyz
terminate
"#;

fn played(script: &str, name: &str, path: &str, tools: &[&str]) -> Option<String> {
    if !can_run("a flow log that nobody reads", tools) {
        return None;
    }
    let output = run(&format!("{SITE}{script}"), name, &[path]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    Some(said)
}

#[test]
fn a_reader_that_stops_is_told_of_and_keeps_nobody_from_ending_the_daemon() {
    let Some(said) = played(STOPS, "stops", "-", &["bash", "curl", "ip", "mkfifo"]) else { return };
    let lines = |words: &str| said.lines().filter(|line| line.contains(words)).count();
    assert_eq!(lines("ready"), 1, "{said}");
    assert_eq!(lines("flow records cannot be written; they wait"), 2, "{said}");
    assert_eq!(lines("fault=whoever reads them does not keep up"), 2, "{said}");
    assert_eq!(lines("flow records are written again"), 1, "{said}");
    assert_eq!(lines("flow records that could not be written are lost"), 1, "{said}");
    assert_eq!(lines("stopped; traffic goes on under the last policy"), 1, "{said}");
}

#[test]
fn a_log_that_never_answers_keeps_nobody_from_ending_the_daemon() {
    let directory = concat!(env!("CARGO_TARGET_TMPDIR"), "/waits/pipe");
    let Some(said) = played(WAITS, "waits", directory, &["bash", "curl", "mkfifo"]) else { return };
    assert!(said.contains("the flow log takes no records; those that wait are lost"), "{said}");
}

#[test]
fn a_log_that_shares_the_pipe_of_the_records_keeps_nobody_from_ending_the_daemon() {
    let Some(said) = played(SHARES, "shares", "-", &["bash", "curl"]) else { return };
    assert_eq!(said, "ready\n");
}
