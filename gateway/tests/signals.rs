//! A signal that comes before anything else: the daemon as it is, in a namespace that vanishes with the test.

mod namespace;

use namespace::{can_run, run};

/// SIGHUP is there before the program's first instruction. What it is held back by is `env`, because
/// nobody can say when else the loader is done; the daemon has to let it through.
const EARLY: &str = r#"
site 1
configure "$POD"
start env --block-signal=HUP sh -c 'kill -HUP $$; exec "$@"' sh
for _ in $(seq 100); do
    grep -q 'policy published' "$1/said" && break
    sleep 0.1
done
cat "$1/said"
kill $daemon
wait $daemon
"#;

#[test]
fn a_hang_up_that_comes_before_the_daemon_has_begun_is_heeded() {
    if !can_run("an early signal", &["curl", "ip", "env"]) {
        return;
    }
    let output = run(EARLY, "early-signal", &[]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(said.matches("policy published").count(), 1, "{said}");
}
