//! The gateway's daemon, run in a lab as it is on a machine.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::client::{Attempt, connect_to};
use crate::config::{Config, METRICS};
use crate::netns::Netns;
use crate::process::Process;
use crate::topology::Lab;

/// How long the daemon may take to be ready, and to end. The kernel's verifier takes seconds, and
/// more when other tests run beside this one.
const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon in the gateway of a lab; killed when dropped. What it pinned goes with the lab.
#[derive(Debug)]
pub struct Daemon {
    netns: Netns,
    binary: PathBuf,
    wrapper: Vec<String>,
    config: PathBuf,
    flows: PathBuf,
    process: Process,
    /// What earlier runs complained of.
    before: String,
}

/// `sluice-gateway`: where `SLUICE_GATEWAY_BIN` says, else where cargo builds it.
///
/// # Errors
///
/// When it is not there.
pub fn gateway_binary() -> Result<PathBuf> {
    binary("SLUICE_GATEWAY_BIN", "sluice-gateway")
}

/// `sluicectl`: where `SLUICECTL_BIN` says, else where cargo builds it.
///
/// # Errors
///
/// When it is not there.
pub fn ctl_binary() -> Result<PathBuf> {
    binary("SLUICECTL_BIN", "sluicectl")
}

/// A program of this workspace is beside the running one, or above it if that is a test.
fn binary(variable: &str, name: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable).filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        anyhow::ensure!(path.is_file(), "{variable} names {}, which is no file", path.display());
        return Ok(path);
    }
    let own = std::env::current_exe().context("a program knows where it is")?;
    let mut directory = own.parent().context("a program is in a directory")?;
    if directory.file_name() == Some(OsStr::new("deps")) {
        directory = directory.parent().context("`deps` is in a directory")?;
    }
    let path = directory.join(name);
    anyhow::ensure!(path.is_file(), "there is no {}", path.display());
    Ok(path)
}

impl Daemon {
    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    ///
    /// When it is not built, ends, or is not ready in time; the error has what it said.
    pub fn start(lab: &Lab, config: &Config) -> Result<Self> {
        let daemon = Self::start_under(lab, config, &[])?;
        daemon.ready()
    }

    /// Starts it under another program, `setpriv` with a set of capabilities for example, and does
    /// not wait.
    ///
    /// # Errors
    ///
    /// When it is not built, or does not start.
    pub fn start_under(lab: &Lab, config: &Config, wrapper: &[&str]) -> Result<Self> {
        let path = lab.site().files().join("sluice.yaml");
        config.write(&path)?;
        let binary = gateway_binary()?;
        let wrapper: Vec<_> = wrapper.iter().map(|&word| word.to_owned()).collect();
        let process = launch(&lab.gateway, &wrapper, &binary, &path)?;
        Ok(Self {
            netns: lab.gateway.clone(),
            binary,
            wrapper,
            config: path,
            flows: lab.site().files().join("flows.jsonl"),
            process,
            before: String::new(),
        })
    }

    /// Waits until it says that it is ready.
    ///
    /// # Errors
    ///
    /// When it ends, or is not ready in time.
    pub fn ready(mut self) -> Result<Self> {
        self.wait_ready()?;
        Ok(self)
    }

    fn wait_ready(&mut self) -> Result<()> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.process.ended()? {
                bail!("the gateway ended before it was ready: {status}\n{}", self.stderr());
            }
            let answer = self.get("/readyz");
            match answer {
                Ok((200, _)) => return Ok(()),
                answer if start.elapsed() > PATIENCE => {
                    bail!("the gateway is not ready: {answer:?}\n{}", self.stderr())
                }
                _ => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Asks it over HTTP, at the address where it serves metrics.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        get(&self.netns, SocketAddrV4::new(Ipv4Addr::LOCALHOST, METRICS), path)
    }

    /// The sum of a metric over the lines that have every one of `labels`, for example
    /// `reason="spoofed_source"`. Zero if there is no such line.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        let (status, text) = self.get("/metrics")?;
        anyhow::ensure!(status == 200, "the gateway answers {status} when asked for metrics");
        Ok(metric(&text, name, labels))
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What it has printed in this run.
    pub fn stdout(&self) -> String {
        self.process.stdout()
    }

    /// What it has complained of, in all runs.
    pub fn stderr(&self) -> String {
        format!("{}{}", self.before, self.process.stderr())
    }

    /// Where its configuration is, to put something else there.
    pub fn config_path(&self) -> &Path {
        &self.config
    }

    /// Puts another configuration in place and tells it to look. What it makes of that is seen in
    /// its metrics.
    ///
    /// # Errors
    ///
    /// When it has ended.
    pub fn reload(&mut self, config: &Config) -> Result<()> {
        config.write(&self.config)?;
        self.hang_up()
    }

    /// Tells it to read its configuration again.
    ///
    /// # Errors
    ///
    /// When it has ended.
    pub fn hang_up(&mut self) -> Result<()> {
        self.process.signal(Signal::SIGHUP)
    }

    /// Kills it, so that it cannot do anything about it, and waits until it is gone.
    ///
    /// # Errors
    ///
    /// When it had ended before.
    pub fn kill(&mut self) -> Result<()> {
        self.process.signal(Signal::SIGKILL)?;
        self.process.wait(PATIENCE).map(drop)
    }

    /// Asks it to end, and waits.
    ///
    /// # Errors
    ///
    /// When it had ended before, or does not.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.process.signal(Signal::SIGTERM)?;
        self.process.wait(PATIENCE)
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// When it does not end.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.process.wait(PATIENCE)
    }

    /// The file that it is configured by.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Starts it again after its end, with the configuration that is in place, and waits until it
    /// is ready.
    ///
    /// # Errors
    ///
    /// As [`Daemon::start`].
    pub fn restart(&mut self) -> Result<()> {
        self.relaunch()?;
        self.wait_ready()
    }

    /// Starts it again like [`Daemon::restart`], and does not wait.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn relaunch(&mut self) -> Result<()> {
        if self.process.ended()?.is_none() {
            self.kill()?;
        }
        self.before += &self.process.stderr();
        self.process = launch(&self.netns, &self.wrapper, &self.binary, &self.config)?;
        Ok(())
    }

    /// Runs `sluice-gateway detach` with more arguments.
    ///
    /// # Errors
    ///
    /// When it cannot be run; that it fails is an answer.
    pub fn detach(&self, more: &[&str]) -> Result<Output> {
        let config = self.config.to_string_lossy();
        let mut arguments = vec!["detach", "--config", &config];
        arguments.extend(more);
        self.netns.output(&self.binary.to_string_lossy(), &arguments)
    }

    /// The flow records that are written so far. A last line that is not finished is left for the
    /// next time.
    ///
    /// # Errors
    ///
    /// When a line is no JSON.
    pub fn flow_records(&self) -> Result<Vec<Value>> {
        let text = match fs::read_to_string(&self.flows) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", self.flows.display()));
            }
        };
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let parse = |line| serde_json::from_str(line).with_context(|| format!("no record: {line}"));
        whole.lines().map(parse).collect()
    }
}

fn launch(netns: &Netns, wrapper: &[String], binary: &Path, config: &Path) -> Result<Process> {
    let (binary, config) = (binary.to_string_lossy(), config.to_string_lossy());
    let mut words: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    words.extend([&*binary, "run", "--config", &*config]);
    netns.start(Path::new(words[0]), &words[1..])
}

/// Fetches a page from inside a namespace: status and body.
///
/// # Errors
///
/// When there is no answer, or it is no HTTP.
pub fn get(netns: &Netns, server: SocketAddrV4, path: &str) -> Result<(u16, String)> {
    let mut stream = match connect_to(netns, server, Duration::from_secs(2))? {
        Attempt::Open(stream) => stream,
        Attempt::Refused | Attempt::Silence => bail!("nobody serves pages at {server}"),
    };
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("{server} breaks off"))?;
    page(&answer).with_context(|| format!("{server} does not speak HTTP: {answer}"))
}

fn page(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    Some((status, if chunked { joined(body)? } else { body.to_owned() }))
}

/// The body out of its chunks.
fn joined(mut chunks: &str) -> Option<String> {
    let mut body = String::new();
    loop {
        let (length, rest) = chunks.split_once("\r\n")?;
        match usize::from_str_radix(length.split(';').next()?.trim(), 16).ok()? {
            0 => return Some(body),
            length => {
                body += rest.get(..length)?;
                chunks = rest.get(length..)?.strip_prefix("\r\n")?;
            }
        }
    }
}

fn metric(text: &str, name: &str, labels: &[&str]) -> f64 {
    text.lines()
        .filter_map(|line| line.strip_prefix(name))
        .filter(|rest| rest.starts_with(['{', ' ']))
        .filter(|rest| labels.iter().all(|label| rest.contains(label)))
        .filter_map(|rest| rest.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_comes_out_of_its_answer_whole_or_in_chunks() {
        for (answer, expected) in [
            ("HTTP/1.1 200 OK\r\nA: b\r\n\r\nok\n", Some((200, "ok\n"))),
            ("HTTP/1.0 503 Not ready\r\n\r\nno policy", Some((503, "no policy"))),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n",
                Some((200, "abcd")),
            ),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab", None), // torn
            ("SSH-2.0", None),
        ] {
            let page = page(answer);
            let page = page.as_ref().map(|(status, body)| (*status, body.as_str()));
            assert_eq!(page, expected, "{answer:?}");
        }
    }

    #[test]
    fn a_metric_is_summed_over_the_lines_that_have_the_labels() {
        let text = "# TYPE drops_total counter\n\
                    drops_total{reason=\"a\",direction=\"in\"} 2\n\
                    drops_total{reason=\"a\",direction=\"out\"} 3\n\
                    drops_total{reason=\"b\",direction=\"in\"} 10\n\
                    drops_total_other 100\n\
                    sessions 7\n";
        for (name, labels, expected) in [
            ("drops_total", &[][..], 15.0),
            ("drops_total", &["reason=\"a\""], 5.0),
            ("drops_total", &["reason=\"a\"", "direction=\"out\""], 3.0),
            ("drops_total", &["reason=\"c\""], 0.0),
            ("sessions", &[], 7.0),
        ] {
            assert_eq!(metric(text, name, labels), expected, "{name} {labels:?}");
        }
    }
}
