//! The way to a pod changes under a live flow: the daemon as it is, with a pod and a server in
//! network namespaces that vanish with the test.

mod namespace;

use namespace::{can_run, run};

/// The third argument are the attachments of the pod. It asks the server ten times a second by eth1,
/// and after two seconds something else happens ([`MOVE`], [`FAIL_OVER`]).
const BEFORE: &str = r#"
site 1 2
configure "$3"
start env
ip netns exec pod ping -n -i 0.1 -c 80 203.0.113.9 >"$1/ping" 2>&1 &
ping=$!
sleep 2
"#;

/// The pod and its gateway's address move to the second link, and then the file says so.
const MOVE: &str = r#"
ip address del 100.64.0.1/16 dev eth1
ip address add 100.64.0.1/16 dev eth2
ip -n pod address del 100.64.1.10/16 dev p1
ip -n pod address add 100.64.1.10/16 dev p2
ip -n pod route replace default via 100.64.0.1
sed -i 's/interface: eth1/interface: eth2/' "$1/sluice.yaml"
kill -HUP $daemon
"#;

/// The first link fails, and the pod goes by the second. The file stays, and so do the routes of
/// the gateway, because it has no address on either link.
const FAIL_OVER: &str = r#"
for n in 1 2; do
    ip -n pod neigh replace 100.64.0.$n lladdr 02:aa:00:00:00:0$n dev p$n
    ip address flush dev eth$n
done
sleep 1
ip -n pod link set p1 down
ip -n pod address del 100.64.1.10/16 dev p1
ip -n pod address add 100.64.1.10/16 dev p2
ip -n pod route replace default via 100.64.0.2
"#;

const AFTER: &str = r#"
wait $ping || true
curl -s http://127.0.0.1:9464/metrics | grep '^sluice_sessions_begun_total'
sed -n 's/.*icmp_seq=\([0-9]*\) .*/answer \1/p' "$1/ping"
kill $daemon
wait $daemon
"#;

/// Runs the story with a change in its middle: nearly every question is answered, in one session.
fn answers_come_through(change: &str, name: &str, pods: &str) {
    if !can_run(name, &["ping", "curl", "ip"]) {
        return;
    }
    let output = run(&[BEFORE, change, AFTER].concat(), name, &[pods]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    let answered: Vec<u32> =
        said.lines().filter_map(|line| line.strip_prefix("answer ")?.parse().ok()).collect();
    // The change itself takes a moment, and the new neighbour is asked for once.
    let late = answered.iter().filter(|number| **number > 50).count();
    assert_eq!(late, 30, "{said}");
    assert!(said.contains("sluice_sessions_begun_total 1\n"), "the session is the same: {said}");
}

/// An attachment of the pods.
fn pods(name: &str, interface: &str) -> String {
    format!(
        "- {{ name: {name}, interface: {interface}, kind: spoke, domain: red, sources: \
         [100.64.0.0/16], hook: tc }}"
    )
}

#[test]
fn answers_find_a_pod_whose_attachment_moves_to_another_interface() {
    answers_come_through(MOVE, "moves", &pods("pods", "eth1"));
}

#[test]
fn answers_find_a_pod_that_comes_by_its_second_way_when_the_first_is_down() {
    let both = [pods("first", "eth1"), pods("second", "eth2")].join("\n    ");
    answers_come_through(FAIL_OVER, "fails-over", &both);
}
