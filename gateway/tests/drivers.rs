//! An interface comes back under another driver: the daemon as it is, in namespaces that vanish with
//! the test.

mod namespace;

use namespace::{can_run, run, skip};

/// `exchange` puts an interface of a kind in the place of the one to the Internet, `revoke` changes
/// the policy by a reload. Of each moment it is said what serves that interface, and what `/readyz`
/// says.
const EXCHANGE: &str = r#"
exchange() {
    ip link del eth0
    if [ "$1" = tap ]; then
        ip tuntap add eth0 mode tap multi_queue
    else
        ip link add eth0 type veth peer name s0 netns net
        ip -n net link set s0 up
    fi
    ip link set eth0 up
    ip address add 203.0.113.1/24 dev eth0
}
revoke() {
    before=$(grep -c 'policy published' "$directory/said" || true)
    sed -i "s/action: permit/action: $1/" "$directory/sluice.yaml"
    kill -HUP $daemon
    for _ in $(seq 100); do
        [ "$(grep -c 'policy published\|configuration in force stays' "$directory/said")" = "$before" ] || break
        sleep 0.1
    done
    grep -o 'policy published\|configuration in force stays' "$directory/said" | tail -n 1
}
says() {
    for _ in $(seq 100); do
        said=$(curl -s http://127.0.0.1:9464/readyz | tr '\n' ';')
        case "$said" in *"$1"*) break ;; esac
        sleep 0.1
    done
    echo "$said"
}
"#;

/// Programs of TC alone are loaded, and serve what XDP would suit better.
const TO_XDP: &str = r#"
site 1
configure "$POD"
sed -i '/eth0, kind/s/hook: tc/hook: auto/' "$1/sluice.yaml"
start env
exchange tap
sleep 1
says ready
ls "$1/bpf/sluice" | sed -n "s/link-\(.*\)-$(ip -o link show eth0 | cut -d: -f1)$/\1/p" | tr '\n' ' '
echo
revoke deny
says ready
kill $daemon
wait $daemon
"#;

/// Programs of XDP alone are loaded, and nothing serves a veth till the next start.
const TO_TC: &str = r#"
site 1
for n in 0 1; do
    ip link del eth$n
    ip tuntap add eth$n mode tap multi_queue
    ip link set eth$n up
done
configure "$POD"
sed -i 's/hook: tc/hook: auto/' "$1/sluice.yaml"
start env
exchange veth
says 'a restart loads them'
revoke deny
says 'a restart loads them'
kill $daemon
wait $daemon
start env
says ready
kill $daemon
wait $daemon
"#;

/// Whether the machine has taps.
fn has_taps() -> bool {
    let works = run("ip tuntap add tap0 mode tap", "probe-tap", &[]).status.success();
    if !works {
        skip("another driver", "needs taps");
    }
    works
}

fn lines(script: &str, name: &str) -> Vec<String> {
    let output = run(&[EXCHANGE, script].concat(), name, &[]);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn what_comes_back_under_another_driver_is_served_by_what_is_loaded() {
    if can_run("to-xdp", &["curl", "ip"]) && has_taps() {
        let said = lines(TO_XDP, "to-xdp");
        assert_eq!(said, ["ready;", "tc-egress tc-ingress ", "policy published", "ready;"]);
    }
}

#[test]
fn what_nothing_loaded_can_serve_takes_a_restart_and_holds_up_no_reload() {
    if !can_run("to-tc", &["curl", "ip"]) || !has_taps() {
        return;
    }
    let said = lines(TO_TC, "to-tc");
    let [before, outcome, after, ready] = &said[..] else { panic!("{said:?}") };
    for said in [before, after] {
        assert!(said.contains("`eth0` has no program at tc_ingress"), "{said}");
        assert!(said.contains("a restart loads them"), "{said}");
    }
    assert_eq!((outcome.as_str(), ready.as_str()), ("policy published", "ready;"));
}
