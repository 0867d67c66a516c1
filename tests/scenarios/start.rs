//! A gateway that cannot start says why in a sentence, and ends.

use anyhow::{Context as _, Result, ensure};
use gateway::net::guard::TABLE;
use lab::config::{METRICS, replace};
use lab::daemon::{ctl_binary, gateway_binary};
use lab::plan::NON_ROUTABLE;
use lab::{Config, Daemon, Hook, Lab, Need};
use serde_json::{Value, json};
use std::fs::File;
use std::process::Output;

use crate::stand::policy_word;

#[test]
fn a_gateway_that_cannot_start_says_why_and_ends() -> Result<()> {
    lab::require!(
        Need::Lab,
        Need::Bpffs,
        Need::Gateway,
        Need::Tool("setpriv"),
        Need::Tool("setarch")
    );
    let lab = Lab::three_legged()?;
    let config = Config::new(&lab, Hook::Xdp);
    let with = |change: &dyn Fn(&mut Config)| {
        let mut config = config.clone();
        change(&mut config);
        config
    };
    let none = ["setpriv", "--bounding-set=-all"];
    // Every Linux says on demand that it is a 2.6, for programs that know no other.
    let old = ["setarch", "--uname-2.6"];
    for (what, config, wrapper, code, said) in [
        (
            "an interface that is missing",
            with(&|config| config.gateway["attachments"][0]["interface"] = json!("eth-nowhere")),
            &[][..],
            1,
            "there is no interface `eth-nowhere`",
        ),
        (
            "no privileges",
            config.clone(),
            &none,
            1,
            "sluice-gateway: this needs CAP_NET_ADMIN; run it as root",
        ),
        (
            "a kernel that is too old",
            config.clone(),
            &old,
            1,
            "; sluice-gateway needs 6.1 or later",
        ),
        (
            "a field that does not exist",
            with(&|config| config.gateway["nmae"] = json!("gw")),
            &[],
            2,
            "nmae",
        ),
        (
            "pins elsewhere than on bpffs",
            with(&|config| config.gateway["pin_path"] = json!(lab.site().files().join("pins"))),
            &[],
            1,
            "bpffs",
        ),
    ] {
        let mut daemon = Daemon::start_under(&lab, &config, wrapper)?;
        let status = daemon.wait().with_context(|| format!("with {what}"))?;
        let stderr = daemon.stderr();
        ensure!(status.code() == Some(code), "{what}: {status}: {stderr}");
        ensure!(stderr.contains(said), "{what}: {stderr}");
        ensure!(!stderr.contains("panicked"), "{what}: {stderr}");
    }
    Ok(())
}

#[test]
fn a_file_that_is_missing_or_bad_is_named_by_check_too() -> Result<()> {
    lab::require!(Need::Lab, Need::Gateway);
    let lab = Lab::three_legged()?;
    let binary = gateway_binary()?;
    let path = lab.site().files().join("other.yaml");
    let check = || {
        let (binary, path) = (binary.to_string_lossy(), path.to_string_lossy());
        lab.gateway.output(&binary, &["check", "--config", &path])
    };
    let says = |output: std::process::Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let output = check()?;
    ensure!(output.status.code() == Some(2), "{output:?}");
    ensure!(says(output).contains("other.yaml"));
    let good = Config::new(&lab, Hook::Tc).yaml()?;
    replace(&path, &good)?;
    let output = check()?;
    ensure!(output.status.success(), "{output:?}");
    replace(&path, &good.replace("kind: spoke", "kind: spook"))?;
    let output = check()?;
    ensure!(output.status.code() == Some(2), "{output:?}");
    let said = says(output);
    ensure!(said.contains("other.yaml:") && said.contains("spoke"), "{said}");
    Ok(())
}

#[test]
fn a_few_capabilities_are_enough() -> Result<()> {
    lab::require!(Need::Lab, Need::Bpffs, Need::Gateway, Need::Ctl, Need::Tool("setpriv"));
    let lab = Lab::one_armed()?;
    let config = Config::new(&lab, Hook::Xdp);
    let few = ["setpriv", "--bounding-set=-all,+net_admin,+bpf,+perfmon"];
    let daemon = Daemon::start_under(&lab, &config, &few)?.ready()?;
    let (status, body) = daemon.get("/healthz")?;
    ensure!(status == 200, "{status}: {body}");

    // The kernel tells by descriptor what it tells by number only to CAP_SYS_ADMIN.
    let show = |what: &str| -> Result<Vec<Value>> {
        let socket = config.gateway["socket"].as_str().context("the configuration has a socket")?;
        let program = ctl_binary()?;
        let arguments = ["--socket", socket, "-o", "json", what];
        let text = lab.gateway.run(&program.to_string_lossy(), &arguments)?;
        let mut shown: Value = serde_json::from_str(&text)?;
        serde_json::from_value(shown[what].take()).context("a list")
    };
    let programs = show("programs")?;
    for (name, hook) in
        [("xdp_ingress", "xdp"), ("tc_mark", "tc_ingress"), ("tc_egress", "tc_egress")]
    {
        let found =
            programs.iter().find(|program| program["name"] == name && program["hook"] == hook);
        let whole = found.is_some_and(|program| {
            ["id", "bytes", "memory"].iter().all(|of| program[of].as_u64() > Some(0))
        });
        ensure!(whole, "{name} at {hook}: {programs:#?}");
    }
    ensure!(programs.iter().any(|program| program["name"] == "xdp_slow"), "{programs:#?}");
    let maps = show("maps")?;
    // A trie takes as much as is in it.
    let empty = maps.iter().find(|map| {
        let nothing_in_it = map["kind"] == "lpm_trie" && map["entries"] == 0;
        map["memory"].as_u64() == Some(0) && !nothing_in_it
    });
    ensure!(maps.len() > 30 && empty.is_none(), "{empty:?} of {}", maps.len());
    Ok(())
}

/// Runs `sluice-gateway` beside whatever runs already, until it ends or half a minute is over.
fn beside(lab: &Lab, wrapper: &[&str], command: &str, config: &Config) -> Result<Output> {
    let path = lab.site().files().join("beside.yaml");
    config.write(&path)?;
    let (binary, path) = (gateway_binary()?, path.to_string_lossy().into_owned());
    let binary = binary.to_string_lossy();
    let words = [&["30"], wrapper, &[&*binary, command, "--config", &*path]].concat();
    lab.gateway.output("timeout", &words)
}

/// It ended with code 1 and said this.
fn assert_refused(what: &str, output: &Output, said: &[&str]) -> Result<()> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "{what}: {}: {stderr}", output.status);
    for part in said {
        ensure!(stderr.contains(part), "{what}: `{part}` is not in: {stderr}");
    }
    Ok(())
}

#[test]
fn a_start_that_is_refused_leaves_the_policy_in_force() -> Result<()> {
    lab::require!(Need::Lab, Need::Bpffs, Need::Gateway);
    let lab = Lab::three_legged()?;
    let config = Config::new(&lab, Hook::Tc);
    let mut daemon = Daemon::start(&lab, &config)?;
    let (pins, files) = (lab.site().pins(), lab.site().files());
    let before = policy_word(&pins)?;
    let mut elsewhere = config.clone();
    elsewhere.gateway["socket"] = json!(files.join("second.sock"));
    elsewhere.gateway["metrics"]["listen"] = json!("127.0.0.1:9465");
    elsewhere.gateway["flow_log"]["path"] = json!(files.join("second.jsonl"));
    let shared = beside(&lab, &[], "run", &elsewhere)?;
    assert_refused("the same state_dir", &shared, &["another sluice-gateway has the `state_dir`"])?;
    elsewhere.gateway["state_dir"] = json!(files.join("second"));
    let second = beside(&lab, &[], "run", &elsewhere)?;
    let own = pins.to_string_lossy();
    assert_refused("the same pins", &second, &["another sluice-gateway has these tables", &own])?;
    ensure!(policy_word(&pins)? == before, "a second daemon has published");
    let mut taken = elsewhere.clone();
    taken.gateway["metrics"]["listen"] = json!(format!("127.0.0.1:{METRICS}"));
    let second = beside(&lab, &[], "run", &taken)?;
    assert_refused("a port that is taken", &second, &["metrics cannot be served on 127.0.0.1"])?;
    daemon.stop()?;
    let mut missing = elsewhere.clone();
    missing.gateway["attachments"][0]["interface"] = json!("nowhere0");
    let missing = beside(&lab, &[], "run", &missing)?;
    assert_refused("an interface that never was", &missing, &["there is no interface `nowhere0`"])?;
    ensure!(!files.join("second.jsonl").exists(), "a refused start has begun a flow log");
    let log = File::create(files.join("second.jsonl"))?;
    log.lock()?;
    let shared = beside(&lab, &[], "run", &elsewhere)?;
    assert_refused("the same flow log", &shared, &["second.jsonl", "another process writes it"])?;
    drop(log);
    let full = files.join("full");
    std::fs::create_dir(&full)?;
    std::os::unix::fs::symlink("/dev/full", full.join("attachments.new"))?;
    for (what, field, value, said) in [
        ("a state_dir without room", "state_dir", json!(full), "No space left on device"),
        (
            "a token that is missing",
            "metrics",
            json!({ "listen": "127.0.0.1:9465", "token_file": files.join("nowhere") }),
            "token_file",
        ),
        (
            "a log below a file",
            "flow_log",
            json!({ "path": files.join("sluice.yaml/flows.jsonl") }),
            "the flow log",
        ),
        (
            "a state_dir below a file",
            "state_dir",
            json!(files.join("sluice.yaml/state")),
            "cannot be written, so the next start would not know",
        ),
        ("a socket that is a file", "socket", json!(files.join("sluice.yaml")), "is no socket"),
    ] {
        let mut config = elsewhere.clone();
        config.gateway[field] = value;
        assert_refused(what, &beside(&lab, &[], "run", &config)?, &[said])?;
        ensure!(policy_word(&pins)? == before, "{what}: it has published all the same");
    }
    daemon.restart()
}

#[test]
fn the_guard_stands_before_a_program_does() -> Result<()> {
    lab::require!(Need::Lab, Need::Nftables, Need::Bpffs, Need::Gateway);
    let lab = Lab::three_legged()?;
    // XDP takes no frames of more than a page without being asked for it.
    lab.gateway.ip("link add jumbo0 mtu 9000 type veth peer name jumbo1 mtu 9000\n\
         link set jumbo0 up\n\
         link set jumbo1 up\n")?;
    let mut config = Config::new(&lab, Hook::Xdp);
    let stated = config.gateway["attachments"].as_array_mut().context("attachments are a list")?;
    stated.push(json!({
        "name": "jumbo", "interface": "jumbo0", "kind": "connection", "hook": "xdp",
        "sources": ["172.31.0.0/16"], "routes": ["172.31.0.0/16"],
    }));
    let guard = || lab.gateway.run("nft", &["list", "chain", "inet", TABLE, "postrouting"]);
    ensure!(guard().is_err(), "nobody has put it up yet");
    let refused = beside(&lab, &[], "run", &config)?;
    assert_refused("an interface that takes no program", &refused, &["jumbo0"])?;
    let guard = guard()?;
    ensure!(guard.contains(&NON_ROUTABLE.to_string()), "{guard}");
    Ok(())
}

#[test]
fn detaching_needs_the_daemon_stopped_and_the_privileges() -> Result<()> {
    lab::require!(Need::Lab, Need::Bpffs, Need::Gateway, Need::Tool("setpriv"));
    let lab = Lab::three_legged()?;
    let config = Config::new(&lab, Hook::Tc);
    let mut daemon = Daemon::start(&lab, &config)?;
    let pinned = || -> Result<usize> { Ok(std::fs::read_dir(lab.site().pins())?.count()) };
    let before = pinned()?;
    let refused = daemon.detach(&[])?;
    assert_refused("a daemon that runs", &refused, &["another sluice-gateway has these tables"])?;
    // The last guard is the same, whatever pins a file names.
    let mut other = config.clone();
    let pins = format!("{}-other", lab.site().pins().display());
    other.gateway["pin_path"] = json!(pins);
    other.gateway["socket"] = json!(lab.site().files().join("other.sock"));
    other.gateway["metrics"]["listen"] = json!("127.0.0.1:9465");
    other.gateway["flow_log"]["path"] = json!(lab.site().files().join("other.jsonl"));
    other.gateway["state_dir"] = json!(lab.site().files().join("other"));
    for command in ["detach", "run"] {
        let refused = beside(&lab, &[], command, &other)?;
        assert_refused(
            "a daemon with other pins",
            &refused,
            &["has the last guard of this network"],
        )?;
        ensure!(!std::path::Path::new(&pins).exists(), "{command} made {pins}");
    }
    ensure!(lab.gateway.run("nft", &["list", "chain", "inet", TABLE, "forward"]).is_ok());
    ensure!(pinned()? == before, "a refused detach took pins away");
    daemon.stop()?;
    let path = lab.site().pins().to_string_lossy().into_owned();
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    for mode in ["700", "755"] {
        // As this gateway makes its directory, and as one before it did.
        lab.gateway.run("chmod", &[mode, &path])?;
        let refused = beside(&lab, &nobody, "detach", &config)?;
        assert_refused("somebody who is not root", &refused, &["root"])?;
        ensure!(refused.stdout.is_empty(), "{refused:?}");
    }
    let none = ["setpriv", "--bounding-set=-all"];
    let config_path = daemon.config_path().to_string_lossy().into_owned();
    let binary = gateway_binary()?.to_string_lossy().into_owned();
    let words = [&none[1..], &[&*binary, "detach", "--remove-guard", "--config", &*config_path]];
    let refused = lab.gateway.output(none[0], &words.concat())?;
    assert_refused("no capability", &refused, &["the last guard needs CAP_NET_ADMIN"])?;
    ensure!(pinned()? == before, "a refused detach took pins away");
    daemon.restart()
}
