//! A flow log that nobody reads: the daemon as it is, with a pod and a server in network namespaces
//! that vanish with the test.

mod namespace;

use namespace::{can_run, run};

/// A pod that can open many flows, and a pipe for records that is read by nobody. The third argument
/// is `flow_log.path`.
const SITE: &str = r#"
site 1
mkfifo "$1/pipe"
exec 3<>"$1/pipe"
configure "$POD" "flow_log: { path: \"$3\" }"
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

/// As many sessions as the ring has room for, and some, are ended at once.
const CLEARS: &str = r#"
sed -i "s/sessions: 4096/sessions: 65536/" "$1/sluice.yaml"
start env
flows 1000 32999
ask() { curl -s --unix-socket "$1/sluice.sock" -H 'content-type: application/json' "http://x/v1/$2" -d "$3"; }
metric sluice_sessions
ask "$1" sessions/clear '{"filter":""}'
echo
ask "$1" sessions/clear '{"filter":""}'
echo
becomes sluice_sessions_ended_total 32000
becomes sluice_flow_records_written_total 64000
metric sluice_flow_events_lost_total
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

#[test]
fn a_record_of_every_session_that_is_cleared_is_written() {
    let log = concat!(env!("CARGO_TARGET_TMPDIR"), "/clears/flows.jsonl");
    let Some(said) = played(CLEARS, "clears", log, &["bash", "curl", "ip"]) else { return };
    let words: Vec<&str> = said.lines().take(4).collect();
    assert_eq!(words, ["32000", r#"{"cleared":32000}"#, r#"{"cleared":0}"#, "0"], "{said}");
}
