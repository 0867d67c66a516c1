//! Kernel switches for IPv4 that decide whether a gateway forwards at all.
//!
//! Files under `/proc/sys/net`, which show the namespace of the thread that opens them.

use std::io;
use std::path::{Path, PathBuf};

/// Why a switch could not be read or set.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("cannot write `{value}` to {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What was to be written.
        value: String,
        /// What the system said.
        source: io::Error,
    },
    /// The file holds something else than it should.
    #[error("{} holds `{found}`, not {wanted}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is in it.
        found: String,
        /// What should be.
        wanted: &'static str,
    },
    /// The name would lead to another file.
    #[error("`{0}` cannot be the name of an interface")]
    Name(String),
}

/// How strictly the kernel checks that a source is reached through the interface on which its
/// packet came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReversePath {
    /// Not at all.
    Off,
    /// Through exactly this interface. Breaks replies that come back another way.
    Strict,
    /// Through any interface.
    Loose,
}

impl ReversePath {
    fn read(text: &str) -> Option<Self> {
        match text {
            "0" => Some(Self::Off),
            "1" => Some(Self::Strict),
            "2" => Some(Self::Loose),
            _ => None,
        }
    }

    fn number(self) -> &'static str {
        match self {
            Self::Off => "0",
            Self::Strict => "1",
            Self::Loose => "2",
        }
    }
}

/// The switches below one directory.
#[derive(Clone, Debug)]
pub struct Sysctl {
    root: PathBuf,
}

impl Sysctl {
    /// Those of the running kernel.
    pub fn of_kernel() -> Self {
        Self::below("/proc/sys")
    }

    /// Those below `root`, which has the shape of `/proc/sys`.
    pub fn below(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Whether the machine forwards IPv4 at all (`net.ipv4.ip_forward`).
    pub fn ip_forward(&self) -> Result<bool, SysctlError> {
        self.switch("net/ipv4/ip_forward".as_ref())
    }

    /// Switches forwarding for all interfaces, present and future, overriding what was set for
    /// each of them.
    pub fn set_ip_forward(&self, on: bool) -> Result<(), SysctlError> {
        self.write("net/ipv4/ip_forward".as_ref(), if on { "1" } else { "0" })
    }

    /// Whether what comes in on this interface is forwarded.
    pub fn forwarding(&self, interface: &str) -> Result<bool, SysctlError> {
        self.switch(&of_interface(interface, "forwarding")?)
    }

    /// Switches forwarding of what comes in on this interface.
    pub fn set_forwarding(&self, interface: &str, on: bool) -> Result<(), SysctlError> {
        self.write(&of_interface(interface, "forwarding")?, if on { "1" } else { "0" })
    }

    /// The check in force on this interface: the kernel takes the larger of its own setting and
    /// that of `all`, where loose is larger than strict.
    pub fn rp_filter(&self, interface: &str) -> Result<ReversePath, SysctlError> {
        let own = self.reverse_path(&of_interface(interface, "rp_filter")?)?;
        let all = self.reverse_path(&of_interface("all", "rp_filter")?)?;
        Ok(own.max(all))
    }

    /// Sets this interface's own check; that of `all` may still override it.
    pub fn set_rp_filter(&self, interface: &str, check: ReversePath) -> Result<(), SysctlError> {
        self.write(&of_interface(interface, "rp_filter")?, check.number())
    }

    /// The ports that the host takes for its own outgoing connections, first and last.
    pub fn ephemeral_range(&self) -> Result<(u16, u16), SysctlError> {
        let file = "net/ipv4/ip_local_port_range".as_ref();
        let found = self.read(file)?;
        let mut numbers = found.split_ascii_whitespace().map(str::parse::<u16>);
        match (numbers.next(), numbers.next(), numbers.next()) {
            (Some(Ok(first)), Some(Ok(last)), None) if first <= last => Ok((first, last)),
            _ => {
                let path = self.root.join(file);
                Err(SysctlError::Content { path, found, wanted: "a first and a last port" })
            }
        }
    }

    fn switch(&self, file: &Path) -> Result<bool, SysctlError> {
        let found = self.read(file)?;
        match found.parse::<i32>() {
            Ok(number) => Ok(number != 0),
            Err(_) => {
                let path = self.root.join(file);
                Err(SysctlError::Content { path, found, wanted: "a number" })
            }
        }
    }

    fn reverse_path(&self, file: &Path) -> Result<ReversePath, SysctlError> {
        let found = self.read(file)?;
        ReversePath::read(&found).ok_or_else(|| {
            let path = self.root.join(file);
            SysctlError::Content { path, found, wanted: "0, 1 or 2" }
        })
    }

    fn read(&self, file: &Path) -> Result<String, SysctlError> {
        let path = self.root.join(file);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(text.trim().to_owned()),
            Err(source) => Err(SysctlError::Read { path, source }),
        }
    }

    fn write(&self, file: &Path, value: &str) -> Result<(), SysctlError> {
        let path = self.root.join(file);
        std::fs::write(&path, value).map_err(|source| SysctlError::Write {
            path,
            value: value.to_owned(),
            source,
        })
    }
}

fn of_interface(interface: &str, switch: &str) -> Result<PathBuf, SysctlError> {
    if !super::is_interface_name(interface) {
        return Err(SysctlError::Name(interface.to_owned()));
    }
    Ok(Path::new("net/ipv4/conf").join(interface).join(switch))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::{ScratchDirectory, as_root_in_namespace, scratch_directory};

    fn sysctl(files: &[(&str, &str)]) -> (Sysctl, ScratchDirectory) {
        let directory = scratch_directory();
        for (file, content) in files {
            let path = directory.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        (Sysctl::below(directory.path()), directory)
    }

    #[test]
    fn the_larger_reverse_path_check_is_in_force() {
        use ReversePath::*;
        for (own, all, expected) in [
            ("0", "0", Off),
            ("1", "0", Strict),
            ("0", "1", Strict),
            ("2", "1", Loose),
            ("1", "2", Loose),
        ] {
            let (sysctl, _directory) = sysctl(&[
                ("net/ipv4/conf/eth0/rp_filter", &format!("{own}\n")),
                ("net/ipv4/conf/all/rp_filter", &format!("{all}\n")),
            ]);
            assert_eq!(sysctl.rp_filter("eth0").unwrap(), expected, "own {own} all {all}");
        }
    }

    #[test]
    fn the_ephemeral_range_is_two_ports_in_order() {
        for (content, expected) in [
            ("32768\t60999\n", Some((32768, 60999))),
            ("1 65535\n", Some((1, 65535))),
            ("5000 5000\n", Some((5000, 5000))),
            ("5001 5000\n", None),
            ("32768\n", None),
            ("1 65536\n", None),
            ("1 2 3\n", None),
            ("", None),
        ] {
            let (sysctl, _directory) = sysctl(&[("net/ipv4/ip_local_port_range", content)]);
            assert_eq!(sysctl.ephemeral_range().ok(), expected, "{content:?}");
        }
    }

    #[test]
    fn an_error_names_the_file() {
        let (sysctl, _directory) = sysctl(&[("net/ipv4/conf/all/rp_filter", "often\n")]);
        for (error, expected) in [
            (sysctl.rp_filter("eth0").unwrap_err(), "conf/eth0/rp_filter"),
            (
                sysctl.rp_filter("all").unwrap_err(),
                "conf/all/rp_filter holds `often`, not 0, 1 or 2",
            ),
            (sysctl.set_forwarding("eth0", true).unwrap_err(), "cannot write `1` to "),
            (sysctl.ip_forward().unwrap_err(), "net/ipv4/ip_forward"),
        ] {
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn a_name_cannot_lead_elsewhere() {
        let sysctl = Sysctl::below("/nowhere");
        for name in ["", ".", "..", "../ipv6", "a/b", "a234567890123456"] {
            assert!(matches!(sysctl.forwarding(name), Err(SysctlError::Name(_))), "{name:?}");
        }
        for name in ["eth0", "eth1.100", "a23456789012345"] {
            assert!(matches!(sysctl.forwarding(name), Err(SysctlError::Read { .. })), "{name:?}");
        }
    }

    #[test]
    fn switches_of_a_namespace_are_read_as_they_were_set() {
        as_root_in_namespace("sysctl switches", || {
            let sysctl = Sysctl::of_kernel();
            for on in [true, false] {
                sysctl.set_ip_forward(on).unwrap();
                assert_eq!(sysctl.ip_forward().unwrap(), on);
                assert_eq!(sysctl.forwarding("lo").unwrap(), on, "the whole sets each");
            }
            sysctl.set_forwarding("lo", true).unwrap();
            assert!(sysctl.forwarding("lo").unwrap());
            assert!(!sysctl.ip_forward().unwrap(), "one of them does not set the whole");
            sysctl.set_rp_filter("all", ReversePath::Off).unwrap();
            for check in [ReversePath::Loose, ReversePath::Strict, ReversePath::Off] {
                sysctl.set_rp_filter("lo", check).unwrap();
                assert_eq!(sysctl.rp_filter("lo").unwrap(), check);
            }
            let (first, last) = sysctl.ephemeral_range().unwrap();
            assert!(first < last);
        });
    }
}
