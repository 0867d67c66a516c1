//! What a reload leaves behind: the daemon as it is, in namespaces that vanish with the test.

mod namespace;

use namespace::{can_run, run};

/// An attachment leaves the file. How many pins its interface has is printed before and after, and how
/// many programs the local API shows there; and first whether the daemon may open as many files as it
/// is let.
const LEAVES: &str = r#"
site 1 2
second='- { name: second, interface: eth2, kind: spoke, domain: red, sources: [100.65.0.0/16], hook: tc }'
configure "$POD
    $second"
ulimit -S -n 200
start env
awk '/Max open files/ { print $4 == $5 ? "raised" : "as it was" }' /proc/$daemon/limits
index=$(ip -o link show eth2 | cut -d: -f1)
there() {
    pins=$(ls "$directory/bpf/sluice" | grep -c -- "-$index\$" || true)
    programs=$(curl -s --unix-socket "$directory/sluice.sock" http://gateway/v1/programs)
    shown=$(echo "$programs" | tr ',' '\n' | grep -c '"interface":"eth2"' || true)
    echo "$pins pins, $shown shown"
}
there
sed -i '/name: second/d' "$directory/sluice.yaml"
kill -HUP $daemon
tries=0
until grep -q 'policy published' "$directory/said"; do
    tries=$((tries + 1))
    [ $tries -lt 200 ]
    sleep 0.05
done
there
kill $daemon
wait $daemon
"#;

#[test]
fn an_interface_that_leaves_the_file_has_no_programs_and_none_are_shown() {
    if !can_run("what leaves the file", &["curl", "ip", "awk"]) {
        return;
    }
    let output = run(LEAVES, "leaves", &[]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(said, "raised\n2 pins, 2 shown\n0 pins, 0 shown\n");
}
