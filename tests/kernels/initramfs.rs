//! The archive that a kernel unpacks into its first file system: `cpio` in the `newc` form.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

/// An archive in the making.
#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    there: BTreeSet<String>,
}

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

impl Archive {
    /// Adds a directory and those above it.
    pub(crate) fn directory(&mut self, name: &str) {
        let mut end = 0;
        for part in name.split('/') {
            end += part.len();
            let directory = &name[..end];
            if self.there.insert(directory.to_owned()) {
                self.entry(directory, DIRECTORY | 0o755, (0, 0), &[]);
            }
            end += 1;
        }
    }

    /// Adds a file, with the directories above it.
    pub(crate) fn file(&mut self, name: &str, content: &[u8], permissions: u32) {
        self.parent(name);
        if self.there.insert(name.to_owned()) {
            self.entry(name, FILE | permissions, (0, 0), content);
        }
    }

    /// Adds a character device.
    pub(crate) fn device(&mut self, name: &str, major: u32, minor: u32) {
        self.parent(name);
        self.entry(name, CHARACTER_DEVICE | 0o600, (major, minor), &[]);
    }

    /// Adds a program under a name, and the libraries that it is linked to under theirs.
    pub(crate) fn program(&mut self, name: &str, path: &Path) -> Result<()> {
        let read = |path: &Path| fs::read(path).with_context(|| format!("read {}", path.display()));
        self.file(name, &read(path)?, 0o755);
        let output = Command::new("ldd").arg(path).output().context("run ldd")?;
        for library in libraries(&String::from_utf8_lossy(&output.stdout)) {
            let name = library.to_string_lossy();
            self.file(name.trim_start_matches('/'), &read(&library)?, 0o755);
        }
        Ok(())
    }

    /// The whole archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn parent(&mut self, name: &str) {
        if let Some((directory, _)) = name.rsplit_once('/') {
            self.directory(directory);
        }
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        let length = |bytes: usize| u32::try_from(bytes).expect("no file here has 4 GiB");
        let number = length(self.there.len());
        let fields = [
            number,
            mode,
            0,
            0,
            1,
            0,
            length(content.len()),
            0,
            0,
            device.0,
            device.1,
            length(name.len() + 1),
            0,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// The paths in what `ldd` prints.
fn libraries(printed: &str) -> Vec<PathBuf> {
    printed
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect()
}

#[test]
fn ldd_names_libraries_and_the_loader() {
    let printed = "\tlinux-vdso.so.1 (0x00007f)\n\tlibc.so.6 => /lib/libc.so.6 (0x00007f)\n\
                   \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n\tstatically linked\n";
    let expected: Vec<_> =
        ["/lib/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from).into();
    assert_eq!(libraries(printed), expected);
}

#[test]
fn an_archive_is_laid_out_as_the_kernel_reads_it() {
    let mut archive = Archive::default();
    archive.file("a/b", b"hello", 0o644);
    archive.file("a/b", b"twice", 0o644);
    archive.device("c", 5, 1);
    let bytes = archive.finish();
    let (mut at, mut entries) = (0, Vec::new());
    while at < bytes.len() {
        assert_eq!(&bytes[at..at + 6], b"070701", "at {at}");
        let field = |n: usize| {
            let digits = &bytes[at + 6 + 8 * n..][..8];
            usize::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap()
        };
        let name = &bytes[at + 110..][..field(11) - 1];
        let content = (at + 110 + field(11)).next_multiple_of(4);
        let name = String::from_utf8(name.to_vec()).unwrap();
        let body = String::from_utf8(bytes[content..][..field(6)].to_vec()).unwrap();
        entries.push((name, field(1), field(9), body));
        at = (content + field(6)).next_multiple_of(4);
    }
    let entry =
        |name: &str, mode, major, body: &str| (name.to_owned(), mode, major, body.to_owned());
    assert_eq!(
        entries,
        [
            entry("a", 0o040_755, 0, ""),
            entry("a/b", 0o100_644, 0, "hello"),
            entry("c", 0o020_600, 5, ""),
            entry("TRAILER!!!", 0, 0, ""),
        ]
    );
}
