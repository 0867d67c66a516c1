//! A program that runs beside the test, with what it prints kept.

use std::io::{BufRead as _, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A running program; killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    stdout: Lines,
    stderr: Lines,
}

/// What a program has printed so far, collected by a thread of its own so that it never waits for
/// a reader.
#[derive(Debug)]
struct Lines {
    text: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Process {
    /// Starts it in the caller's network namespace.
    ///
    /// # Errors
    ///
    /// When there is no such program, or it may not be run.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{name}`"))?;
        let stdout = Lines::of(child.stdout.take().context("stdout was just asked for")?);
        let stderr = Lines::of(child.stderr.take().context("stderr was just asked for")?);
        Ok(Self { name, child, stdout, stderr })
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    pub fn stdout(&self) -> String {
        self.stdout.so_far()
    }

    /// What it has complained of so far.
    pub fn stderr(&self) -> String {
        self.stderr.so_far()
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    ///
    /// When the kernel does not say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let ended = self.child.try_wait();
        let ended = ended.with_context(|| format!("lost sight of `{}`", self.name))?;
        if ended.is_some() {
            // Its last words may not have been read yet.
            self.stdout.complete();
            self.stderr.complete();
        }
        Ok(ended)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    ///
    /// When it has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if let Some(status) = self.ended()? {
            bail!("`{}` has ended before {signal}: {status}: {}", self.name, self.stderr());
        }
        let pid = i32::try_from(self.pid()).context("a process id is positive")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("cannot signal `{}`", self.name))
    }

    /// Waits for its end; everything that it printed is there afterwards.
    ///
    /// # Errors
    ///
    /// When it still runs after `patience`.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.ended()? {
                self.stdout.complete();
                self.stderr.complete();
                return Ok(status);
            }
            if start.elapsed() > patience {
                bail!("`{}` still runs after {patience:?}: {}", self.name, self.stderr());
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Lines {
    fn of(pipe: impl Read + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(String::new()));
        let filled = Arc::clone(&text);
        let reader = thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while matches!(pipe.read_until(b'\n', &mut line), Ok(1..)) {
                let mut text = filled.lock().unwrap_or_else(PoisonError::into_inner);
                text.push_str(&String::from_utf8_lossy(&line));
                line.clear();
            }
        });
        Self { text, reader: Some(reader) }
    }

    fn so_far(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits a little for the rest: a grandchild may hold the pipe open for ever.
    fn complete(&mut self) {
        let start = Instant::now();
        while let Some(reader) = &self.reader {
            if reader.is_finished() || start.elapsed() > Duration::from_secs(1) {
                self.reader = None;
            } else {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
}
