//! What `state_dir` keeps, also when its disk is full: the daemon as it is, in a namespace that vanishes
//! with the test.

mod namespace;

use namespace::{can_run, run};

/// Each line that is printed says what a reload came to, or which numbers are kept.
const FULL: &str = r#"
site 1 2 3
mkdir "$1/state"
mount -t tmpfs -o size=64k tmpfs "$1/state"
configure "$POD"
start env
fill() { dd if=/dev/zero of="$1/ballast" bs=1k 2>/dev/null || true; }
outcomes() { grep -c 'policy published\|configuration in force stays' "$directory/said" || true; }
reload() {
    before=$(outcomes)
    kill -HUP $daemon
    for _ in $(seq 100); do
        [ "$(outcomes)" = "$before" ] || break
        sleep 0.1
    done
    sed -n 's/.*\(policy published\|configuration in force stays\).*/'"$1"': \1/p' "$directory/said" | tail -n 1
}
numbers() { cat "$directory/state/attachments.json"; echo; }
# One more network, before all others in the file.
add() {
    line="    - { name: nodes$1, interface: eth$1, kind: spoke, domain: red, sources: [100.7$1.0.0/16], hook: tc }"
    sed -i "s|^  attachments:|&\n$line|" "$directory/sluice.yaml"
}

fill "$1/state"
cat >>"$1/sluice.yaml" <<END
  - kind: Rule
    name: web
    spec: { priority: 1, action: permit, sources: [public-internet], destinations: [public-internet] }
END
reload "the same attachments"
curl -s http://127.0.0.1:9464/readyz
rm "$1/state/ballast"
for _ in $(seq 100); do
    [ "$(curl -s http://127.0.0.1:9464/readyz)" != ready ] || break
    sleep 0.1
done
curl -s http://127.0.0.1:9464/readyz

fill "$1/state"
add 2
reload "one more"
grep 'state_dir' "$1/said" | tail -n 1
numbers
rm "$1/state/ballast"
reload "one more, with room"
fill "$1/state"
add 3
reload "another before it"
kill -9 $daemon
wait $daemon || true
rm "$1/state/ballast"
start env
numbers
kill $daemon
wait $daemon
"#;

#[test]
fn an_attachment_that_cannot_be_kept_is_refused_and_everything_else_is_kept_later() {
    if !can_run("a full state_dir", &["curl", "ip"]) {
        return;
    }
    let output = run(FULL, "full-state", &[]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    let lines: Vec<&str> = said.lines().collect();
    let [same, not_ready, ready, refused, why, kept, accepted, refused_again, numbers] = lines[..]
    else {
        panic!("{said}")
    };
    let lost = |of: &str| {
        format!("/state cannot be written, so the next start would not know {of}: No space left")
    };
    assert_eq!(same, "the same attachments: policy published");
    assert!(not_ready.contains(&lost("which counter a rule has")), "{not_ready}");
    assert_eq!(ready, "ready");
    assert_eq!(refused, "one more: configuration in force stays");
    assert!(why.contains(&lost("which number an attachment has")), "{why}");
    assert_eq!(kept, r#"{"internet":2,"pods":1}"#);
    assert_eq!(accepted, "one more, with room: policy published");
    assert_eq!(refused_again, "another before it: configuration in force stays");
    assert_eq!(numbers, r#"{"internet":2,"nodes2":3,"nodes3":4,"pods":1}"#);
}

/// A neighbour is kept resolved on an interface that leaves the file while no daemon runs. `start` or
/// `detach`, with words of its own, comes next; on an interface that was never in it a neighbour is somebody else's.
const LEFT: &str = r#"
site 1 2 3
second='- { name: second, interface: eth2, kind: spoke, domain: red, sources: [100.65.0.0/16], hook: tc }'
configure "$POD
    $second"
start env
kill $daemon
wait $daemon
daemon=
for n in 2 3; do
    ip neighbour add 100.65.0.9 dev eth$n managed extern_learn
done
sed -i '/name: second/d' "$1/sluice.yaml"
kept() { ip neighbour show | sed -n 's/.* dev \(eth[0-9]\) .*managed.*/\1/p' | sort | tr '\n' ' '; }
echo "before: $(kept)"
if [ "$3" = start ]; then
    start env
    kill $daemon
    wait $daemon
else
    "$program" $3 --config "$1/sluice.yaml" >&2
fi
echo "after: $(kept)"
"#;

#[test]
fn neighbours_are_released_on_an_interface_that_left_the_file_while_no_daemon_ran() {
    if !can_run("neighbours left", &["curl", "ip"]) {
        return;
    }
    for next in ["start", "detach", "detach --remove-guard"] {
        let output = run(LEFT, &format!("left-{}", next.replace(' ', "")), &[next]);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{next}: {output:?}");
        assert_eq!(said, "before: eth2 eth3 \nafter: eth3 \n", "{next}: {output:?}");
    }
}
