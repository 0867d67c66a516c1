//! What the manual and the systemd unit say, held against the program.
//!
//! A page that is read when something is on fire has to be right: every drop reason, metric and
//! field of a record stands in it, every test that a page names exists, every link leads
//! somewhere, and the unit's capabilities are the ones that the daemon needs, no more.

mod namespace;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use namespace::{can_run, run, scratch, skip};
use serde_json::Value;
use xdp_abi::reason::Reason;

const GATEWAY: &str = env!("CARGO_BIN_EXE_sluice-gateway");
/// What is skipped is about this, where it is not said otherwise.
const UNIT: &str = "systemd unit";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The pages of the project, by their paths from its root.
fn pages() -> Vec<String> {
    let mut pages: Vec<String> =
        ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md"].map(Into::into).into();
    for directory in ["docs", "docs/adr"] {
        let names = fs::read_dir(root().join(directory)).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        pages.extend(names.filter(|n| n.ends_with(".md")).map(|n| format!("{directory}/{n}")));
    }
    pages
}

/// What stands between backticks on one line.
fn code(text: &str) -> BTreeSet<&str> {
    text.lines().flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
}

/// Which of `names` is in no row of a table: `| `name` | ...`.
fn without_row<'a>(page: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let rows: BTreeSet<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| "))
        .filter_map(|line| line.split('|').next())
        .flat_map(code)
        .collect();
    names.into_iter().filter(|name| !rows.contains(name)).collect()
}

#[test]
fn every_drop_reason_has_its_row_and_no_row_is_left_over() {
    let page = read("docs/operations.md");
    let names = Reason::ALL.map(Reason::name);
    assert_eq!(without_row(&page, names), [""; 0]);
    let table = page.split("| reason |").nth(1).expect("the table of reasons");
    let table = table.split("\n\n").next().unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(rows, names.len());
}

#[test]
fn every_metric_has_its_row() {
    let source = read("gateway/src/metrics/page.rs");
    let source = source.split("#[cfg(test)]").next().unwrap();
    let quoted = source.split('"').skip(1).step_by(2);
    let names: BTreeSet<&str> = quoted
        .filter(|word| word.starts_with("sluice_"))
        .filter(|word| word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'))
        .collect();
    assert!(names.len() > 30, "{names:?}");
    assert_eq!(without_row(&read("docs/operations.md"), names), [""; 0]);
}

#[test]
fn every_field_of_a_record_has_its_row() {
    let golden = read("gateway/flow-export/tests/golden/records.jsonl");
    let first: Value = serde_json::from_str(golden.lines().next().unwrap()).unwrap();
    let mut names = BTreeSet::new();
    fields(&first, &mut names);
    assert!(names.len() > 30, "{names:?}");
    let page = read("docs/operations.md");
    assert_eq!(without_row(&page, names.iter().map(String::as_str)), [""; 0]);
}

fn fields(value: &Value, names: &mut BTreeSet<String>) {
    for (name, value) in value.as_object().into_iter().flatten() {
        names.insert(name.clone());
        fields(value, names);
    }
}

#[test]
fn every_test_that_a_page_names_exists() {
    let mut named = 0;
    for page in pages() {
        let text = read(&page);
        for (file, test) in code(&text).into_iter().filter_map(|word| word.split_once(".rs::")) {
            named += 1;
            let source = read(&format!("{file}.rs"));
            assert!(source.contains(&format!("fn {test}(")), "{page} names {file}.rs::{test}");
        }
    }
    assert!(named > 20, "the pages name only {named} tests");
}

#[test]
fn every_link_and_every_file_that_a_page_names_is_there() {
    for page in pages() {
        let text = read(&page);
        let directory = root().join(&page).parent().unwrap().to_owned();
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.starts_with("http") && !link.starts_with('#')) {
            let file = link.split('#').next().unwrap();
            assert!(directory.join(file).exists(), "{page} leads to {link}");
        }
        let is_source = |word: &&str| word.contains('/') && word.ends_with(".rs");
        for file in code(&text).into_iter().filter(is_source) {
            assert!(root().join(file).is_file(), "{page} names {file}");
        }
    }
}

#[test]
fn every_configuration_in_a_page_is_accepted_and_says_what_is_shown() {
    let directory = scratch("shown");
    let mut shown = 0;
    for page in pages() {
        let text = read(&page);
        let blocks = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
        for yaml in blocks.filter(|yaml| yaml.starts_with("gateway:")) {
            shown += 1;
            let file = directory.join("sluice.yaml");
            fs::write(&file, yaml).unwrap();
            let output =
                Command::new(GATEWAY).args(["check", "--config"]).arg(&file).output().unwrap();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && errors.is_empty(), "{page}: {errors}");
            let said = String::from_utf8(output.stdout).unwrap();
            assert!(text.lines().any(|line| line == said.trim_end()), "{page}: {said}");
            // And with the mistakes that are shown below it.
            let wrong =
                yaml.replace("priority: 100, action: permit", "priorty: 100, action: allow");
            fs::write(&file, wrong).unwrap();
            let mut check = Command::new(GATEWAY);
            check.args(["check", "--config", "sluice.yaml"]).current_dir(&directory);
            let said = String::from_utf8(check.output().unwrap().stderr).unwrap();
            assert_eq!(said.lines().count(), 2, "{page}: {said}");
            for fault in said.lines() {
                assert!(text.lines().any(|line| line == fault), "{page}: {fault}");
            }
        }
    }
    assert!(shown > 0, "no page shows a configuration");
}

/// A file of two pods, with these tables; the second group is empty.
fn two_pods(directory: &Path, tables: &str) -> PathBuf {
    let file = directory.join("sluice.yaml");
    let text = format!(
        "gateway:
  name: gw-test
  domains: [{{ name: prod-eu, number: 1 }}]
  attachments:
    - {{ name: pods, interface: eth-none, kind: spoke, domain: prod-eu, sources: [100.64.0.0/16] }}
  tables: {{ {tables} }}
documents:
  - {{ kind: Endpoint, name: a, spec: {{ type: pod, domain: prod-eu, addresses: [100.64.0.1] }} }}
  - {{ kind: Endpoint, name: b, spec: {{ type: pod, domain: prod-eu, addresses: [100.64.0.2] }} }}
  - {{ kind: SmartGroup, name: pods, spec: {{ selectors: [{{ type: pod }}] }} }}
  - {{ kind: SmartGroup, name: nobody, spec: {{ selectors: [{{ name: nobody }}] }} }}
  - {{ kind: DefaultAction, name: default, spec: {{ action: deny }} }}
"
    );
    fs::write(&file, text).unwrap();
    file
}

/// What the program says of a file, and its exit code. It has no privileges, so that `run` ends
/// before it touches anything.
fn says(command: &str, file: &Path) -> (Option<i32>, String) {
    let output = Command::new("setpriv")
        .args(["--inh-caps=-all", "--bounding-set=-all", GATEWAY, command, "--config"])
        .arg(file)
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn what_does_not_fit_the_tables_is_refused_by_check_as_by_run() {
    if !nix::unistd::geteuid().is_root() || Command::new("setpriv").arg("-h").output().is_err() {
        return skip(UNIT, "needs root and setpriv to run without privileges");
    }
    let file = two_pods(&scratch("room"), "endpoints: 1");
    let expected = format!(
        "{}:6:13: gateway.tables.endpoints: `endpoints` is 1; expected 2 or more, which the \
         documents need\n",
        file.display()
    );
    for command in ["check", "run"] {
        assert_eq!(says(command, &file), (Some(2), expected.clone()), "{command}");
    }
}

#[test]
fn what_can_hardly_be_meant_is_said_by_check_and_by_run() {
    if !nix::unistd::geteuid().is_root() || Command::new("setpriv").arg("-h").output().is_err() {
        return skip(UNIT, "needs root and setpriv to run without privileges");
    }
    let file = two_pods(&scratch("meant"), "endpoints: 2");
    let expected = format!(
        "{}:11:47: documents[3].spec.selectors: smart group `nobody` is empty",
        file.display()
    );
    assert_eq!(says("check", &file), (Some(0), format!("warning: {expected}\n")));
    let (code, said) = says("run", &file);
    let logged = said.lines().any(|line| line.ends_with(&format!(" WARN {expected}")));
    assert!(logged && code == Some(1), "{code:?}: {said}");
}

#[test]
fn what_is_no_configuration_at_all_is_refused_in_one_line() {
    let directory = scratch("none");
    let file = directory.join("latin.yaml");
    fs::write(&file, b"gateway:\n  name: caf\xe9\n").unwrap();
    // One that nobody writes into.
    let pipe = directory.join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let no_file = |path: &Path| format!("cannot read {}: it is no regular file\n", path.display());
    let zero = Path::new("/dev/zero");
    for (path, expected) in [
        (zero, no_file(zero)),
        (&directory, no_file(&directory)),
        (&pipe, no_file(&pipe)),
        (
            &file,
            format!(
                "{}:2:12: the byte 0xe9 is not UTF-8; expected text in UTF-8\n",
                file.display()
            ),
        ),
    ] {
        let output = Command::new(GATEWAY).args(["check", "--config"]).arg(path).output().unwrap();
        assert_eq!(String::from_utf8(output.stderr).unwrap(), expected);
        assert_eq!(output.status.code(), Some(2), "{expected}");
    }
}

#[test]
fn the_version_is_told_in_every_usual_way() {
    let expected = format!("sluice-gateway {}\n", env!("CARGO_PKG_VERSION"));
    for word in ["version", "--version", "-V"] {
        let output = Command::new(GATEWAY).arg(word).output().unwrap();
        assert!(output.status.success(), "{word}: {output:?}");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected, "{word}");
    }
}

fn unit() -> String {
    read("gateway/systemd/sluice-gateway.service")
}

/// The value of a setting that stands once in the unit.
fn setting<'a>(unit: &'a str, name: &str) -> &'a str {
    let values: Vec<_> =
        unit.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('=')).collect();
    assert_eq!(values.len(), 1, "{name}: {values:?}");
    values[0]
}

/// The addition to the unit that sets `ip_forward` late, as the manual has it.
fn forwarding(manual: &str) -> &str {
    let (_, rest) = manual.split_once("```ini\n").unwrap();
    let (addition, _) = rest.split_once("```").unwrap();
    assert!(addition.contains("forwarding.conf"), "{addition}");
    addition
}

/// What the addition has a shell do: by the fourth argument. First beside a daemon that has ended, then
/// beside one whose metrics are only for those who have a token.
const FORWARDING: &str = r#"
site 1
echo secret-of-this-gateway-and-nobody-else >"$1/token"
chmod 600 "$1/token"
configure "$POD" "metrics: { token_file: $1/token }"
sed -i 's|socket: .*|socket: /run/sluice/sluice.sock|' "$1/sluice.yaml"
echo 0 >/proc/sys/net/ipv4/ip_forward
PATH="$3:$PATH"
forward() {
    MAINPID=$1 timeout 60 sh -c "$command" 2>/dev/null || echo "ended with $?"
    cat /proc/sys/net/ipv4/ip_forward
}
command=$4
"$program" version >/dev/null &
wait $!
forward $!
"$program" run --config "$1/sluice.yaml" 2>"$1/said" &
daemon=$!
forward $daemon
kill $daemon
wait $daemon
"#;

#[test]
fn forwarding_begins_with_the_daemon_and_not_without() {
    const WHAT: &str = "forwarding that begins late";
    let built = Path::new(GATEWAY).with_file_name("sluicectl");
    if !built.exists() {
        return skip(WHAT, "sluicectl is not built");
    }
    if !can_run(WHAT, &["timeout", "sysctl"]) {
        return;
    }
    let manual = read("docs/operations.md");
    let (_, command) = forwarding(&manual).split_once("sh -c '").unwrap();
    let (command, _) = command.split_once('\'').unwrap();
    let directory = built.parent().unwrap().to_str().unwrap();
    let output = run(FORWARDING, "forwarding", &[directory, command]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(said, "ended with 1\n0\n1\n", "{output:?}");
}

#[test]
fn systemd_finds_nothing_wrong_with_the_unit() {
    let directory = scratch("unit");
    // The program is installed elsewhere, and systemd looks whether it is there.
    let installed = setting(&unit(), "ExecStart").split_once(' ').unwrap().0.to_owned();
    let file = directory.join("sluice-gateway.service");
    fs::write(&file, unit().replace(&installed, GATEWAY)).unwrap();
    let more = directory.join("sluice-gateway.service.d");
    fs::create_dir(&more).unwrap();
    fs::write(more.join("forwarding.conf"), forwarding(&read("docs/operations.md"))).unwrap();
    let verify = Command::new("systemd-analyze")
        .args(["verify", "--recursive-errors=one", "--man=no"])
        .arg(&file)
        .output();
    let Ok(output) = verify else { return skip(UNIT, "there is no systemd-analyze") };
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("Failed to initialize manager") {
        return skip(UNIT, "systemd-analyze does not run here");
    }
    assert!(output.status.success() && said.is_empty(), "{said}");
}

const SITE: &str = r#"
site 1
configure "$POD" "flow_log: { path: $1/flows.jsonl }"
"#;

/// A daemon with the capabilities of the third argument, as `setpriv` takes them.
const CAPABLE: &str = r#"
start setpriv --no-new-privs --inh-caps=-all --bounding-set="-all$3"
kill $daemon
wait $daemon
"#;

/// A daemon, and another one that finds its tables and wants them larger; before that the guard
/// is taken away, to see whether it is put up again.
const LARGER: &str = r#"
start env
kill $daemon
wait $daemon
nft delete table inet sluice_guard
before=$(ls "$1/bpf/sluice")
sed -i 's/sessions: 4096/sessions: 8192/' "$1/sluice.yaml"
code=0
timeout 60 "$2" run --config "$1/sluice.yaml" 2>"$1/said" || code=$?
cat "$1/said"
test $code = 2
test "$before" = "$(ls "$1/bpf/sluice")"
if nft list table inet sluice_guard 2>/dev/null; then exit 3; fi
"#;

/// Runs the daemon with these capabilities until it is ready or gives up.
fn run_with(capabilities: &[&str]) -> Output {
    let set: String = capabilities
        .iter()
        .map(|name| format!(",+{}", name.strip_prefix("CAP_").unwrap().to_lowercase()))
        .collect();
    let name = format!("capabilities-{}", capabilities.join("-"));
    run(&format!("{SITE}{CAPABLE}"), &name, &[&set])
}

#[test]
fn a_start_that_is_refused_for_its_sizes_touches_nothing() {
    if !can_run("a refused start", &["nft", "curl"]) {
        return;
    }
    let output = run(&format!("{SITE}{LARGER}"), "larger", &[]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(said.contains("`tables.sessions` is 8192, but the pinned table has 4096"), "{said}");
}

#[test]
fn the_daemon_runs_with_exactly_the_capabilities_of_its_unit() {
    if !can_run(UNIT, &["setpriv", "curl"]) {
        return;
    }
    let unit = unit();
    let all: Vec<&str> = setting(&unit, "CapabilityBoundingSet").split_whitespace().collect();
    let said = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();
    let ready = run_with(&all);
    assert!(ready.status.success(), "{all:?}: {}", said(&ready));
    for one in &all {
        let others: Vec<&str> = all.iter().copied().filter(|other| other != one).collect();
        let refused = run_with(&others);
        assert!(!refused.status.success(), "{others:?} are enough");
        assert!(said(&refused).contains(&format!("needs {one}")), "{}", said(&refused));
    }
}
