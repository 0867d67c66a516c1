//! What a lab leaves on the machine while it lives, and that nothing of it stays.
//!
//! Everything that has a name outside the process carries the same prefix: `sl<pid>-<serial>`.
//! Network namespaces, a directory for files and a directory for pinned BPF objects. Owners remove
//! what they made when they are dropped. A process that is killed drops nothing, so a small shell
//! waits on a pipe for the end of this process and then removes what has its prefix; and whoever
//! starts later does the same for the prefixes of processes that are gone.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};

/// Where `ip netns` keeps the names.
pub(crate) const NAMESPACES: &str = "/run/netns";
/// Where the BPF file system is by custom.
pub(crate) const BPFFS: &str = "/sys/fs/bpf";

/// Waits for the end of its input, then removes what begins with `$1`, with directories also under
/// `$2`. Processes in a namespace of the lab are the lab's.
const CLEAR: &str = r#"
cat >/dev/null
for path in /run/netns/"$1"*; do
    [ -e "$path" ] || continue
    name=${path##*/}
    for pid in $(ip netns pids "$name"); do kill -KILL "$pid"; done
    ip netns del "$name"
done
rm -rf /sys/fs/bpf/"$1"* "$2"/"$1"*
"#;

/// One lab's share of the machine.
#[derive(Debug)]
pub struct Site {
    prefix: String,
    files: PathBuf,
}

impl Site {
    /// Claims a prefix, after removing what dead processes left.
    ///
    /// # Errors
    ///
    /// When the directory for files or the shell that clears up cannot be had.
    pub fn new() -> Result<Self> {
        static CLEARER: OnceLock<Result<Child, String>> = OnceLock::new();
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let clearer = CLEARER.get_or_init(|| {
            for pid in abandoned() {
                drop(clearer(pid, Stdio::null()).and_then(|mut shell| shell.wait()));
            }
            // Held for ever: the pipe closes with the process, however that ends.
            clearer(std::process::id(), Stdio::piped()).map_err(|error| error.to_string())
        });
        if let Err(error) = clearer {
            anyhow::bail!("cannot start the shell that clears up: {error}");
        }
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("sl{}-{serial}", std::process::id());
        let files = std::env::temp_dir().join(&prefix);
        fs::create_dir(&files).with_context(|| format!("cannot make {}", files.display()))?;
        Ok(Self { prefix, files })
    }

    /// What every name of this lab begins with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// A directory for configuration, logs and sockets.
    pub fn files(&self) -> &Path {
        &self.files
    }

    /// A directory for pinned objects, on the BPF file system; not made yet.
    pub fn pins(&self) -> PathBuf {
        Path::new(BPFFS).join(&self.prefix)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for directory in [&self.files, &self.pins()] {
            if let Err(error) = fs::remove_dir_all(directory)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                eprintln!("cannot remove {}: {error}", directory.display());
            }
        }
    }
}

/// Its own process group, so that the terminal's Ctrl-C does not end it with us.
fn clearer(pid: u32, input: Stdio) -> std::io::Result<Child> {
    use std::os::unix::process::CommandExt as _;
    Command::new("sh")
        .args(["-c", CLEAR, "clear", &format!("sl{pid}-")])
        .arg(std::env::temp_dir())
        .current_dir("/")
        .process_group(0)
        .stdin(input)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}

/// Processes that left something and are gone.
fn abandoned() -> BTreeSet<u32> {
    [Path::new(NAMESPACES), Path::new(BPFFS), &std::env::temp_dir()]
        .into_iter()
        .filter_map(|directory| fs::read_dir(directory).ok())
        .flatten()
        .filter_map(|entry| owner(entry.ok()?.file_name().to_str()?))
        .filter(|pid| !Path::new("/proc").join(pid.to_string()).exists())
        .collect()
}

/// The process that a name of a lab belongs to.
fn owner(name: &str) -> Option<u32> {
    let (pid, _) = name.strip_prefix("sl")?.split_once('-')?;
    pid.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_a_lab_have_an_owner() {
        for (name, expected) in [
            ("sl17-0-gateway", Some(17)),
            ("sl17-3", Some(17)),
            ("sl17", None),    // no serial
            ("sl-17", None),   // no process
            ("slate-3", None), // somebody else's
            ("xsl17-0", None),
        ] {
            assert_eq!(owner(name), expected, "{name}");
        }
    }
}
