//! A server process that never outlives its test.
//!
//! A test may pass, panic, or be killed with all its threads; in the last case nothing of it runs
//! any more that could stop a server. So a small shell stands between: it holds the reading end of a
//! pipe whose other end closes with the test, however that ends, and then kills the server.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};

use crate::directory::Directory;
use crate::program::Program;

const GUARD: &str = r#"
exec 3<&0
"$@" </dev/null 3<&- &
server=$!
{ cat <&3 >/dev/null; kill -KILL "$server"; } 2>/dev/null &
guard=$!
wait "$server"
status=$?
kill "$guard" 2>/dev/null
exit "$status"
"#;

/// How much of what a server said goes into an error: the end, which is where it says why.
const TAIL: usize = 4_000;

/// A running server; killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    name: &'static str,
    shell: Child,
    log: PathBuf,
}

impl Server {
    pub(crate) fn start(
        program: &Program,
        arguments: &[String],
        directory: &Directory,
    ) -> Result<Self> {
        let log = directory.path().join(format!("{}.log", program.name()));
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        let shell = Command::new("sh")
            .args(["-c", GUARD, "guard"])
            .arg(program.path())
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(file.try_clone().context("cannot share a log")?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {}", program.name()))?;
        Ok(Self { name: program.name(), shell, log })
    }

    /// The end of what it said.
    pub(crate) fn said(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&text[text.len().saturating_sub(TAIL)..]).into_owned()
    }

    /// Fails, with what it said, if it has ended by itself.
    pub(crate) fn lives(&mut self) -> Result<()> {
        match self.shell.try_wait().context("cannot ask for a child")? {
            None => Ok(()),
            Some(status) => anyhow::bail!("{} ended: {status}: {}", self.name, self.said()),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Closing the pipe is the order to kill.
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}
