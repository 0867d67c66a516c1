//! A network namespace with a name, and what can be done inside it.
//!
//! Programs are started from a thread that has entered the namespace, in place of by `ip netns
//! exec`: that hides the BPF file system behind a fresh `/sys`. The price is that `/sys` inside
//! still shows the machine's own interfaces.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns};

use crate::process::Process;
use crate::site::{NAMESPACES, Site};

/// A network namespace; a clone is the same one. Removed with the last clone, together with the
/// processes that are still in it.
#[derive(Clone, Debug)]
pub struct Netns(Arc<Named>);

#[derive(Debug)]
struct Named {
    name: String,
    handle: Arc<File>,
}

impl Netns {
    /// Makes it, named after the site, with loopback up and IPv6 off: neighbour discovery would
    /// add frames to captures that nobody asked for.
    ///
    /// # Errors
    ///
    /// Without the right to make one, or when the name is taken.
    pub fn new(site: &Site, name: &str) -> Result<Self> {
        let name = format!("{}-{name}", site.prefix());
        run(Command::new("ip").args(["netns", "add", &name]), "")?;
        let path = Path::new(NAMESPACES).join(&name);
        let handle =
            File::open(&path).with_context(|| format!("cannot hold {}", path.display()))?;
        let made = Self(Arc::new(Named { name, handle: Arc::new(handle) }));
        made.enter(|| {
            for scope in ["all", "default"] {
                sysctl(&format!("net/ipv6/conf/{scope}/disable_ipv6"), "1")?;
                // Replies may come another way than the kernel would send.
                sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "0")?;
                sysctl(&format!("net/ipv4/conf/{scope}/send_redirects"), "0")?;
            }
            Ok(())
        })?;
        made.ip("link set lo up\n")?;
        Ok(made)
    }

    /// Its name for `ip netns exec`.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Where other programs find it.
    pub fn path(&self) -> PathBuf {
        Path::new(NAMESPACES).join(self.name())
    }

    /// Runs `work` on a thread inside. What it starts or opens belongs there, also afterwards.
    ///
    /// # Errors
    ///
    /// What `work` returns, or that the namespace cannot be entered.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let handle = &self.0.handle;
        let inside = || {
            setns(handle, CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("cannot enter {}", self.name()))?;
            work()
        };
        thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// Starts `work` on a thread inside that runs beside the caller until it is told to stop.
    pub fn background<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Stop) -> Result<T> + Send + 'static,
    ) -> Background<T> {
        let (stop, handle) = (Stop::default(), Arc::clone(&self.0.handle));
        let told = stop.clone();
        let thread = thread::spawn(move || {
            setns(&*handle, CloneFlags::CLONE_NEWNET).context("cannot enter a namespace")?;
            work(&told)
        });
        Background { stop, thread: Some(thread) }
    }

    /// Runs a program inside to its end and returns what it printed.
    ///
    /// # Errors
    ///
    /// When it does not start or reports failure; the error has what it said.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        self.feed(program, arguments, "")
    }

    /// The same with input.
    ///
    /// # Errors
    ///
    /// As [`Netns::run`].
    pub fn feed(&self, program: &str, arguments: &[&str], input: &str) -> Result<String> {
        let output = self.enter(|| run(Command::new(program).args(arguments), input))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a program inside to its end; that it fails is an answer too.
    ///
    /// # Errors
    ///
    /// Only when it does not start.
    pub fn output(&self, program: &str, arguments: &[&str]) -> Result<Output> {
        self.enter(|| {
            Command::new(program)
                .args(arguments)
                .stdin(Stdio::null())
                .output()
                .with_context(|| format!("cannot run `{program}`"))
        })
    }

    /// Starts a program inside that runs until it is ended or dropped.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn start(&self, program: &Path, arguments: &[&str]) -> Result<Process> {
        self.enter(|| Process::start(Command::new(program).args(arguments)))
    }

    /// Runs lines of `ip` commands.
    ///
    /// # Errors
    ///
    /// At the first line that fails.
    pub fn ip(&self, batch: &str) -> Result<()> {
        self.feed("ip", &["-batch", "-"], batch).map(drop)
    }

    /// Loads lines of an nftables ruleset.
    ///
    /// # Errors
    ///
    /// When nftables refuses them.
    pub fn nft(&self, ruleset: &str) -> Result<()> {
        self.feed("nft", &["-f", "-"], ruleset).map(drop)
    }

    /// Sets a sysctl by its path under `/proc/sys`.
    ///
    /// # Errors
    ///
    /// When there is no such sysctl, or the value is refused.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.enter(|| sysctl(key, value))
    }

    /// Loses this share of what arrives on an interface, in percent, at random: a bad line. Takes
    /// the place of an earlier share; 0 ends it. Made with nftables, since `netem` is a module
    /// that small kernels do not have.
    ///
    /// # Errors
    ///
    /// When nftables refuses it.
    pub fn lose(&self, interface: &str, percent: u8) -> Result<()> {
        let table = format!("lossy-{interface}");
        self.nft(&format!(
            "table netdev {table}\n\
             delete table netdev {table}\n\
             table netdev {table} {{\n\
             chain arriving {{\n\
             type filter hook ingress device \"{interface}\" priority -300\n\
             meta protocol ip numgen random mod 100 < {percent} drop\n\
             }}\n}}\n",
        ))
    }

    /// Whether somebody inside listens on this TCP port.
    ///
    /// # Errors
    ///
    /// When the kernel's list cannot be read.
    pub fn listens(&self, port: u16) -> Result<bool> {
        let sockets = self.enter(|| {
            let read = |file| fs::read_to_string(file).context("cannot list the sockets");
            // iperf3 listens on an IPv6 socket if the kernel has them.
            Ok(read("/proc/thread-self/net/tcp")?
                + &fs::read_to_string("/proc/thread-self/net/tcp6").unwrap_or_default())
        })?;
        let wanted = format!(":{port:04X}");
        Ok(sockets.lines().any(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let local = fields.next().unwrap_or_default();
            local.ends_with(&wanted) && fields.nth(1) == Some("0A")
        }))
    }

    /// The processes that are inside, ours excepted.
    ///
    /// # Errors
    ///
    /// When `ip` does not know the namespace.
    pub fn processes(&self) -> Result<Vec<i32>> {
        self.0.processes()
    }
}

impl Named {
    fn processes(&self) -> Result<Vec<i32>> {
        let output = run(Command::new("ip").args(["netns", "pids", &self.name]), "")?;
        Ok(String::from_utf8_lossy(&output.stdout)
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok())
            .filter(|pid| *pid != std::process::id() as i32)
            .collect())
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        for pid in self.processes().unwrap_or_default() {
            // It may have ended by itself since it was listed.
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
        if let Err(error) = run(Command::new("ip").args(["netns", "del", &self.name]), "") {
            eprintln!("{error:#}");
        }
    }
}

/// Tells a thread to come to its end.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Whether it is time.
    pub fn told(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn tell(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Work that goes on in a namespace beside the caller. Stopped when dropped.
#[derive(Debug)]
#[must_use = "it stops when it is dropped"]
pub struct Background<T> {
    stop: Stop,
    thread: Option<JoinHandle<Result<T>>>,
}

impl<T> Background<T> {
    /// Tells it to stop and returns what it has to say.
    ///
    /// # Errors
    ///
    /// What the work returns.
    pub fn stop(self) -> Result<T> {
        self.stop.tell();
        self.finish()
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    ///
    /// What the work returns.
    pub fn finish(mut self) -> Result<T> {
        let thread = self.thread.take().context("the work has ended before")?;
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Whether it has ended by itself.
    pub fn ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl<T> Drop for Background<T> {
    fn drop(&mut self) {
        self.stop.tell();
        if let Some(thread) = self.thread.take() {
            // A panic in there was printed; a second one in a drop would abort.
            let _ = thread.join();
        }
    }
}

/// Runs a program to its end; what it says on failure becomes the error.
fn run(command: &mut Command, input: &str) -> Result<Output> {
    let line = {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
    };
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{line}`"))?;
    let mut stdin = child.stdin.take().context("the child has a stdin, as just asked")?;
    // A program that ends before it has read everything says why by itself.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().with_context(|| format!("lost sight of `{line}`"))?;
    if !output.status.success() {
        bail!(
            "`{line}` failed: {}{}",
            String::from_utf8_lossy(&output.stderr).trim(),
            if input.is_empty() { String::new() } else { format!(", given:\n{input}") },
        );
    }
    Ok(output)
}

fn sysctl(key: &str, value: &str) -> Result<()> {
    match fs::write(Path::new("/proc/sys").join(key), value) {
        // A kernel without IPv6 is as good as one with it turned off.
        Err(error)
            if error.kind() == std::io::ErrorKind::NotFound && key.starts_with("net/ipv6/") =>
        {
            Ok(())
        }
        result => result.with_context(|| format!("cannot set {key} to {value}")),
    }
}
