//! Kernel switches for IPv4 that decide whether a gateway forwards at all.
//!
//! Files under `/proc/sys/net`, which show the namespace of the thread that opens them.

use std::io;
use std::path::{Path, PathBuf};

/// Why a switch could not be read.
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

    /// Whether what comes in on this interface is forwarded.
    pub fn forwarding(&self, interface: &str) -> Result<bool, SysctlError> {
        self.switch(&of_interface(interface, "forwarding")?)
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

    fn read(&self, file: &Path) -> Result<String, SysctlError> {
        let path = self.root.join(file);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(text.trim().to_owned()),
            Err(source) => Err(SysctlError::Read { path, source }),
        }
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
        let (sysctl, _directory) = sysctl(&[("net/ipv4/conf/all/forwarding", "often\n")]);
        for (error, expected) in [
            (sysctl.forwarding("eth0").unwrap_err(), "cannot read "),
            (sysctl.forwarding("eth0").unwrap_err(), "conf/eth0/forwarding"),
            (
                sysctl.forwarding("all").unwrap_err(),
                "conf/all/forwarding holds `often`, not a number",
            ),
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
            let set = |file: &str, on: bool| {
                let file = Path::new("/proc/sys/net/ipv4").join(file);
                std::fs::write(file, if on { "1" } else { "0" }).unwrap();
            };
            for on in [true, false] {
                set("ip_forward", on);
                assert_eq!(sysctl.ip_forward().unwrap(), on);
                assert_eq!(sysctl.forwarding("lo").unwrap(), on, "the whole sets each");
            }
            set("conf/lo/forwarding", true);
            assert!(sysctl.forwarding("lo").unwrap());
            assert!(!sysctl.ip_forward().unwrap(), "one of them does not set the whole");
            let (first, last) = sysctl.ephemeral_range().unwrap();
            assert!(first < last);
        });
    }
}
