//! `sluicectl` as its users meet it: exit codes, what goes where, and what the gateway is asked.
#![cfg(feature = "cli")]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::thread::{self, JoinHandle};

/// A directory for one test, gone with it.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("sluicectl-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("sluice.sock")
    }

    /// Runs `sluicectl` against the directory's socket.
    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_sluicectl"))
            .arg("--socket")
            .arg(self.socket())
            .args(arguments)
            .env_remove("COLUMNS")
            .output()
            .unwrap()
    }

    /// A gateway that answers one request; what it was asked is what the thread returns.
    fn gateway(&self, status: &str, body: &str) -> JoinHandle<String> {
        std::fs::remove_file(self.socket()).ok();
        let listener = UnixListener::bind(self.socket()).unwrap();
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(&stream);
            let mut request = String::new();
            let mut length = 0;
            while !request.ends_with("\r\n\r\n") {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                if let Some(value) = line.strip_prefix("Content-Length: ") {
                    length = value.trim().parse().unwrap();
                }
                request.push_str(&line);
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            (&stream).write_all(answer.as_bytes()).unwrap();
            request.lines().next().unwrap().to_owned() + " " + std::str::from_utf8(&body).unwrap()
        })
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A terminal of so many columns: what is written into the second end is read from the first.
fn terminal(columns: u16) -> [std::os::fd::OwnedFd; 2] {
    use std::os::fd::FromRawFd as _;
    let size = libc::winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    let (mut outer, mut inner) = (-1, -1);
    // SAFETY: both descriptors have a place, name and settings may be missing, and the size
    // outlives the call.
    let failed = unsafe {
        let nothing = std::ptr::null_mut();
        libc::openpty(&raw mut outer, &raw mut inner, nothing, nothing.cast(), &raw const size)
    };
    assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: they were just opened, and nobody else has them.
    [outer, inner].map(|fd| unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) })
}

#[test]
fn a_table_is_as_wide_as_the_terminal_and_in_a_pipe_as_wide_as_it_is() {
    let directory = Directory::new("terminal");
    let maps = r#"{"maps":[{"id":1,"name":"SESSIONS","kind":"array","key_size":4,"value_size":64,
        "max_entries":10,"entries":null,"memory":640,"pin":"/sys/fs/bpf/sluice/SESSIONS"}]}"#;
    let line = |written: &str| written.lines().next().unwrap().trim_end().to_owned();
    let all = "ID  NAME      TYPE   KEY  VALUE  ENTRIES  SIZE  MEMORY  PIN";
    let narrow = "ID  NAME      TYPE   KEY  VALUE  ENTRIES  SIZE  MEMORY";
    for (columns, arguments, expected) in
        [(200, &["maps"][..], all), (60, &["maps"], narrow), (60, &["maps", "-o", "wide"], all)]
    {
        let gateway = directory.gateway("200 OK", maps);
        let [outer, inner] = terminal(columns);
        let status = Command::new(env!("CARGO_BIN_EXE_sluicectl"))
            .arg("--socket")
            .arg(directory.socket())
            .args(arguments)
            .env_remove("COLUMNS")
            .stdout(inner)
            .status();
        assert!(status.unwrap().success());
        gateway.join().unwrap();
        let mut written = [0; 4096];
        let length = std::fs::File::from(outer).read(&mut written).unwrap();
        assert_eq!(line(&text(&written[..length])), expected, "{columns} {arguments:?}");
    }
    let gateway = directory.gateway("200 OK", maps);
    assert_eq!(line(&text(&directory.run(&["maps"]).stdout)), all);
    gateway.join().unwrap();
}

#[test]
fn what_is_wrong_with_the_command_line_is_told_without_a_gateway() {
    let directory = Directory::new("usage");
    for (arguments, expected) in [
        (&["sessions", "sorce=10.0.0.1"][..], "`sorce` is not a key; use src, dst"),
        (&["sessions", "clear"], "required arguments were not provided"),
        (&["sessions", "clear", ""], "say --all if that is meant"),
        (&["sessions", "id=seven"], "expected the hexadecimal digits of a session"),
        (&["capture", "port=http"], "expected a number from 0 to 65535"),
        (&["capture", "--count", "0"], "0 is not in 1..=100000"),
        (&["capture", "--count", "100001"], "100001 is not in 1..=100000"),
        (&["capture", "--seconds", "601"], "601 is not in 1..=600"),
        (&["capture", "--sample", "0"], "0 is not in 1..=1000000"),
        (&["capture", "domain=prod-eu"], "`domain=prod-eu` cannot be asked of a packet"),
        (&["explain", "--from", "10.0.0.1", "--to", "10.0.0.2:1/tcp"], "is not DOMAIN:IP"),
        (&["-o", "yaml", "rules"], "possible values: table, wide, json"),
    ] {
        let output = directory.run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).contains(expected), "{arguments:?}: {output:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn help_is_as_wide_as_the_terminal() {
    for arguments in [&["--help"][..], &["sessions", "--help"], &["capture", "--help"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluicectl"));
        let help = command.args(arguments).env("COLUMNS", "80").output().unwrap().stdout;
        let help = text(&help);
        assert!(help.lines().count() > 10, "{help}");
        assert!(help.lines().all(|line| line.chars().count() <= 80), "{help}");
    }
}

#[test]
fn without_a_gateway_one_sentence_says_so() {
    let directory = Directory::new("absent");
    let output = directory.run(&["rules"]);
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(error.starts_with("sluicectl: there is no socket "), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn a_refusal_is_exit_code_one_with_the_words_of_the_gateway() {
    let directory = Directory::new("refused");
    let body = r#"{"title":"not now","status":503,"detail":"no policy was published yet"}"#;
    let gateway = directory.gateway("503 Service Unavailable", body);
    let output = directory.run(&["stats"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        text(&output.stderr),
        "sluicectl: the gateway refused: no policy was published yet\n"
    );
    assert_eq!(gateway.join().unwrap(), "GET /v1/stats HTTP/1.1 ");
}

#[test]
fn the_gateway_is_asked_with_the_filter_of_the_command_line() {
    let directory = Directory::new("asked");
    for (arguments, answer, asked, printed) in [
        (
            &["sessions", "src=10.0.0.0/8", "proto=6"][..],
            r#"{"sessions":[],"matched":0}"#,
            "GET /v1/sessions?filter=src%3D10.0.0.0%2F8%20proto%3Dtcp&limit=1000 HTTP/1.1 ",
            "0 sessions\n",
        ),
        (
            &["sessions", "clear", "rule=a"],
            r#"{"cleared":1}"#,
            r#"POST /v1/sessions/clear HTTP/1.1 {"filter":"rule=a"}"#,
            "1 session ended\n",
        ),
        (
            &["sessions", "clear", "--all", "-o", "json"],
            r#"{"cleared":7}"#,
            r#"POST /v1/sessions/clear HTTP/1.1 {"filter":""}"#,
            "{\n  \"cleared\": 7\n}\n",
        ),
        (
            &["explain", "--from", "prod-eu:100.64.1.10:40000", "--to", "192.0.2.7:443/tcp"],
            r#"{"outcome":"local","reason":null,"rule":null,"generation":2,"steps":[]}"#,
            "POST /v1/explain HTTP/1.1 {\"domain\":\"prod-eu\",\"source\":\"100.64.1.10\",\
             \"source_port\":40000,\"destination\":\"192.0.2.7\",\"destination_port\":443,\
             \"protocol\":\"tcp\"}",
            "STAGE  FOUND\noutcome: local (generation 2)\n",
        ),
        (
            &["explain", "--from", "prod-eu:100.64.1.10", "--to", "192.0.2.7/icmp"],
            r#"{"outcome":"local","reason":null,"rule":null,"generation":2,"steps":[]}"#,
            "POST /v1/explain HTTP/1.1 {\"domain\":\"prod-eu\",\"source\":\"100.64.1.10\",\
             \"destination\":\"192.0.2.7\",\"protocol\":\"icmp\"}",
            "STAGE  FOUND\noutcome: local (generation 2)\n",
        ),
    ] {
        let gateway = directory.gateway("200 OK", answer);
        let output = directory.run(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
        assert_eq!(gateway.join().unwrap(), asked);
        assert_eq!(text(&output.stdout), printed, "{arguments:?}");
    }
}

#[test]
fn captured_packets_go_into_a_file_and_what_is_missing_is_said() {
    const BEFORE: &str = r#"{"time":1700000000000000000,"interface":"eth0","stage":"before","verdict":"dropped","reason":"no_route","rule":null,"session":null,"length":60,"bytes":"00ff"}"#;
    let after = BEFORE.replace("before", "after");
    let directory = Directory::new("capture");
    let file = directory.0.join("packets.pcapng");
    let lost = r#"{"lost":{"packets":3,"copies":0}}"#;
    let end = r#"{"end":{"packets":2,"sample":10,"lost":{"packets":3,"copies":1}}}"#;
    let body = format!("{BEFORE}\n{after}\n\n{lost}\n{after}\n{end}\n");
    let gateway = directory.gateway("200 OK", &body);
    let name = file.to_str().unwrap();
    let output =
        directory.run(&["capture", "port=53", "-w", name, "--count", "2", "--sample", "10"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let said = text(&output.stderr);
    let sum =
        "2 packets captured in 3 copies, 3 packets and 1 copies lost, 1 in 10 sampled; written to ";
    assert!(said.starts_with(sum), "{said}");
    assert!(said.contains("\nsluicectl: 3 packets are missing: "), "{said}");
    assert_eq!(said.lines().count(), 3, "{said}");
    let asked = "GET /v1/capture?filter=port%3D53&count=2&sample=10 HTTP/1.1 ";
    assert_eq!(gateway.join().unwrap(), asked);
    let bytes = std::fs::read(&file).unwrap();
    assert_eq!(bytes[..4], [0x0a, 0x0d, 0x0d, 0x0a], "the section header of pcapng");
    for (comment, expected) in [("before", 1), ("after", 2)] {
        let comment = format!("{comment} verdict=dropped reason=no_route");
        let found = bytes.windows(comment.len()).filter(|window| *window == comment.as_bytes());
        assert_eq!(found.count(), expected, "{comment}");
    }

    // A refusal leaves a file alone that was there before.
    let refusal = r#"{"title":"capture is busy","status":409}"#;
    let gateway = directory.gateway("409 Conflict", refusal);
    assert_eq!(directory.run(&["capture", "-w", name]).status.code(), Some(1));
    assert_eq!(std::fs::read(&file).unwrap(), bytes);
    gateway.join().unwrap();
}

#[test]
fn a_capture_that_loses_its_gateway_or_its_reader_says_what_there_was() {
    const COPY: &str = r#"{"time":1,"interface":"eth0","stage":"after","verdict":"passed","reason":null,"rule":null,"session":null,"length":60,"bytes":"00ff"}"#;
    let directory = Directory::new("capture-cut");
    let file = directory.0.join("packets.pcapng");
    let name = file.to_str().unwrap();
    // One copy, and then no end.
    let body = format!("{:x}\r\n{COPY}\n\r\n", COPY.len() + 1);
    let chunked = "200 OK\r\nTransfer-Encoding: chunked";
    let gateway = directory.gateway(chunked, &body);
    let output = directory.run(&["capture", "-w", name]);
    gateway.join().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = text(&output.stderr);
    assert!(said.starts_with(&format!("1 copies captured; written to {name}\n")), "{said}");
    assert!(
        said.contains("sluicectl: the gateway on ") && said.contains(" ended before"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 2, "{said}");

    // Whoever reads has seen enough, as `head` does.
    for arguments in [&["capture"][..], &["capture", "-o", "json"], &["capture", "-w", "-"]] {
        let gateway = directory.gateway(chunked, &body);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = Command::new(env!("CARGO_BIN_EXE_sluicectl"))
            .arg("--socket")
            .arg(directory.socket())
            .args(arguments)
            .stdout(writer)
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
            .wait_with_output()
            .unwrap();
        gateway.join().unwrap();
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
    }
}
