//! What others have pinned is left alone: the daemon as it is, in a namespace that vanishes with the test.

mod namespace;

use namespace::{can_run, run};

/// Names that begin like ours. A symbolic link is what can be put beside pins without a program for it,
/// and goes as easily as a pin does.
const FOREIGN: &str = r#"
site 1
configure "$POD"
pins="$directory/bpf/sluice"
mkdir "$pins"
for name in link-foreign link-xdp-3-old link-tc-egress-03 filter-foreign filter-egress-+3; do
    ln -s /elsewhere "$pins/$name"
done
start env
kill $daemon
wait $daemon
"$program" detach --config "$directory/sluice.yaml"
ls "$pins"
"#;

#[test]
fn pins_of_others_outlive_a_start_and_a_detach() {
    if !can_run("pins of others", &["curl", "ip"]) {
        return;
    }
    let output = run(FOREIGN, "foreign-pins", &[]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    let mut lines = said.lines();
    let detached = lines.next().unwrap_or_default();
    assert!(detached.starts_with("detached: 4 links, "), "{said}");
    let left: Vec<&str> = lines.skip(1).collect();
    let names = "filter-egress-+3 filter-foreign link-foreign link-tc-egress-03 link-xdp-3-old";
    assert_eq!(left.join(" "), names, "{said}");
}

/// By the path of the mount, and by one that only the kernel can tell to be the same.
const ROOT: &str = r#"
site 1
configure "$POD"
ln -s "$directory/bpf" "$directory/same"
before=$(ls "$directory/bpf")
for path in "$directory/bpf" "$directory/same"; do
    sed -i "s|pin_path: .*|pin_path: $path|" "$directory/sluice.yaml"
    timeout 10 "$program" run --config "$directory/sluice.yaml" 2>"$directory/said" || echo "$?"
    sed -n "s|^sluice-gateway: .pin_path. $path ||p" "$directory/said"
    [ "$(ls "$directory/bpf")" = "$before" ]
done
"#;

#[test]
fn the_root_of_a_bpf_file_system_is_no_directory_for_pins() {
    if !can_run("pins in the root of bpffs", &["curl", "ip", "timeout"]) {
        return;
    }
    let output = run(ROOT, "root-pins", &[]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    let refused =
        "2\nis the root of a BPF file system, where others pin too; name a directory below it\n";
    assert_eq!(said, refused.repeat(2), "{output:?}");
}
