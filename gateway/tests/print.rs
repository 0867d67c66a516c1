//! Commands of the daemon whose output cannot be written or is not read.

use std::fs::{self, File};
use std::io;
use std::process::{Command, Output, Stdio};

fn run(arguments: &[&str], stdout: Stdio, stderr: Stdio) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice-gateway"));
    command.args(arguments).stdout(stdout).stderr(stderr).output().unwrap()
}

/// A pipe that nobody reads any more.
fn unread() -> Stdio {
    let (_, writer) = io::pipe().unwrap();
    writer.into()
}

fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/sluice.example.yaml");

#[test]
fn what_nobody_reads_is_no_failure_and_what_cannot_be_written_is_one_sentence() {
    for arguments in [&["version"][..], &["check", "--config", EXAMPLE]] {
        let left = run(arguments, unread(), Stdio::piped());
        assert_eq!(left.status.code(), Some(0), "{left:?}");
        assert!(left.stderr.is_empty(), "{left:?}");
        let lost = run(arguments, full(), Stdio::piped());
        assert_eq!(lost.status.code(), Some(1), "{lost:?}");
        assert_eq!(
            String::from_utf8(lost.stderr).unwrap(),
            "sluice-gateway: done, but it cannot be printed: No space left on device (os error 28)\n"
        );
    }
}

#[test]
fn a_refusal_that_nobody_hears_keeps_its_exit_code() {
    let path = std::env::temp_dir().join(format!("sluice-refused-{}.yaml", std::process::id()));
    fs::write(&path, "gateway: 1\n").unwrap();
    for command in ["check", "run", "detach"] {
        for stderr in [unread(), full()] {
            let refused =
                run(&[command, "--config", path.to_str().unwrap()], Stdio::null(), stderr);
            assert_eq!(refused.status.code(), Some(2), "{command}: {refused:?}");
        }
    }
    fs::remove_file(path).unwrap();
}

#[test]
fn check_looks_at_the_files_that_a_configuration_names() {
    let path = std::env::temp_dir().join(format!("sluice-named-{}.yaml", std::process::id()));
    for (setting, commands, said) in [
        (
            format!("flow_log: {{ path: {} }}", path.display()),
            &["check", "run"][..],
            format!(":4:15: gateway.flow_log.path: `path` is {}, which is this", path.display()),
        ),
        (
            "metrics: { token_file: /nowhere/token }".to_owned(),
            &["check"],
            ":4:14: gateway.metrics.token_file: `token_file` is /nowhere/token: No such".to_owned(),
        ),
    ] {
        let text = format!(
            "gateway:
  name: gw-1
  attachments: [{{ name: internet, interface: eth0, kind: internet }}]
  {setting}
documents:
  - {{ kind: DefaultAction, name: default, spec: {{ action: deny }} }}
"
        );
        fs::write(&path, &text).unwrap();
        for command in commands {
            let arguments = [command, "--config", path.to_str().unwrap()];
            let refused = run(&arguments, Stdio::null(), Stdio::piped());
            let stderr = String::from_utf8_lossy(&refused.stderr);
            assert_eq!(refused.status.code(), Some(2), "{command}: {stderr}");
            assert!(stderr.starts_with(&format!("{}{said}", path.display())), "{stderr}");
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), text, "it was written into");
    }
    fs::remove_file(path).unwrap();
}
