//! A kernel of a Debian package, and a virtual machine that boots it.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::initramfs::Archive;

/// How long a machine may run: without hardware's help the verifier alone takes a minute.
const PATIENCE: Duration = Duration::from_secs(600);

/// What the probe needs of the kernel, if it is not built in.
const MODULES: [&str; 5] = ["veth", "sch_ingress", "cls_bpf", "nf_tables", "nft_objref"];

/// What the probe runs.
const PROGRAMS: [&str; 3] = ["ip", "tc", "ethtool"];

/// An unpacked package.
pub(crate) struct Kernel {
    image: PathBuf,
    modules: Vec<PathBuf>,
}

/// Where `scripts/setup.sh --all` unpacks packages.
fn cache() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(cache.join("sluice/kernels"))
}

impl Kernel {
    /// The package of a series such as `6.1`, if it is there.
    pub(crate) fn of_series(series: &str) -> Option<Self> {
        let prefix = format!("linux-image-{series}.");
        let is_meant = |path: &PathBuf| {
            path.is_dir()
                && path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&prefix))
        };
        let packages = fs::read_dir(cache()?).ok()?.flatten().map(|entry| entry.path());
        let package = packages.filter(is_meant).max()?;
        let image =
            fs::read_dir(package.join("boot")).ok()?.flatten().map(|entry| entry.path()).find(
                |path| {
                    path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"vmlinuz-"))
                },
            )?;
        let mut modules = Vec::new();
        walk(&package.join("lib/modules"), &mut modules);
        Some(Self { image, modules })
    }

    /// The bytes of the modules that the probe needs, each after those that it needs itself.
    fn needed_modules(&self) -> Result<Vec<Vec<u8>>> {
        let (mut ordered, mut seen) = (Vec::new(), BTreeSet::new());
        for name in MODULES {
            self.add_module(name, &mut seen, &mut ordered)?;
        }
        Ok(ordered)
    }

    fn add_module(
        &self,
        name: &str,
        seen: &mut BTreeSet<String>,
        ordered: &mut Vec<Vec<u8>>,
    ) -> Result<()> {
        if !seen.insert(name.to_owned()) {
            return Ok(());
        }
        // One that is no file is built in; if it is neither, the probe says what it misses.
        let Some(file) = self.modules.iter().find(|file| module_name(file) == Some(name.into()))
        else {
            return Ok(());
        };
        let bytes = if file.extension() == Some(OsStr::new("xz")) {
            let output = Command::new("xz").arg("-dc").arg(file).output().context("run xz")?;
            ensure!(output.status.success(), "{} cannot be unpacked", file.display());
            output.stdout
        } else {
            fs::read(file).with_context(|| format!("read {}", file.display()))?
        };
        for needed in dependencies(&bytes) {
            self.add_module(&needed, seen, ordered)?;
        }
        ordered.push(bytes);
        Ok(())
    }

    /// Boots the kernel with the probe in it and returns what it printed.
    pub(crate) fn run(&self, probe: &Path, initramfs: &Path) -> Result<String> {
        let mut archive = Archive::default();
        archive.device("dev/console", 5, 1);
        archive.device("dev/null", 1, 3);
        for directory in ["proc", "sys", "modules"] {
            archive.directory(directory);
        }
        archive.program("init", probe)?;
        for program in PROGRAMS {
            archive.program(&format!("bin/{program}"), &find_program(program)?)?;
        }
        for (number, module) in self.needed_modules()?.iter().enumerate() {
            archive.file(&format!("modules/{number:02}"), module, 0o644);
        }
        fs::write(initramfs, archive.finish())
            .with_context(|| format!("write {}", initramfs.display()))?;
        let mut machine = Command::new("qemu-system-x86_64")
            // Not KVM: inside another virtual machine it is there and may still fail.
            .args(["-accel", "tcg", "-cpu", "max", "-m", "1024"])
            .args(["-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"])
            .args(["-append", "console=ttyS0 quiet panic=-1 rdinit=/init"])
            .arg("-kernel")
            .arg(&self.image)
            .arg("-initrd")
            .arg(initramfs)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("start qemu-system-x86_64")?;
        let mut console = machine.stdout.take().context("the console is a pipe")?;
        let reader = thread::spawn(move || {
            let mut said = Vec::new();
            // What was said before an error is what there is to show.
            let _ = console.read_to_end(&mut said);
            String::from_utf8_lossy(&said).replace('\r', "")
        });
        let begun = Instant::now();
        let ended = loop {
            if machine.try_wait()?.is_some() {
                break true;
            }
            if begun.elapsed() > PATIENCE {
                machine.kill()?;
                machine.wait()?;
                break false;
            }
            thread::sleep(Duration::from_millis(100));
        };
        let said = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        if !ended {
            bail!("the machine still runs after {PATIENCE:?}; it said:\n{said}");
        }
        Ok(said)
    }
}

/// The path of a program that an ordinary `PATH` may not name.
fn find_program(name: &str) -> Result<PathBuf> {
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .map(|directory| Path::new(directory).join(name))
        .find(|path| path.exists())
        .with_context(|| format!("there is no `{name}`"))
}

fn walk(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&path, files);
        } else {
            files.push(path);
        }
    }
}

/// What the kernel calls the module of a file.
fn module_name(file: &Path) -> Option<String> {
    let name = file.file_name()?.to_str()?;
    let stem = name.strip_suffix(".xz").unwrap_or(name).strip_suffix(".ko")?;
    Some(stem.replace('-', "_"))
}

/// The modules that a module says it needs.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let list = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(list).replace('-', "_");
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[test]
fn a_module_tells_its_name_and_what_it_needs() {
    for (file, expected) in [
        ("net/veth.ko", Some("veth")),
        ("net/nf-tables.ko.xz", Some("nf_tables")),
        ("modules.order", None),
    ] {
        assert_eq!(module_name(Path::new(file)).as_deref(), expected, "{file}");
    }
    for (bytes, expected) in [
        (
            &b"license=GPL\0depends=nfnetlink,libcrc32c\0name=x\0"[..],
            vec!["nfnetlink", "libcrc32c"],
        ),
        (b"license=GPL\0depends=\0name=x\0", vec![]),
        (b"license=GPL\0", vec![]),
    ] {
        assert_eq!(dependencies(bytes), expected, "{}", String::from_utf8_lossy(bytes));
    }
}
