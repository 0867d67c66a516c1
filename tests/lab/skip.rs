//! What a test needs from the machine, and how it says that it could not run.
//!
//! Everything is found out by trying it, once in a process. A test that cannot run prints a line
//! `SKIPPED: test: why`, which `scripts/test.sh` gathers, and ends.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};

use crate::daemon;
use crate::link::{Link, Offloads, vlan};
use crate::netns::Netns;
use crate::site::{BPFFS, Site};

/// Something that a test cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Network namespaces with veth pairs between them: root, and a kernel that has them.
    Lab,
    /// VLANs on a veth.
    Vlan,
    /// Packet filter and NAT by nftables, in a namespace of one's own.
    Nftables,
    /// A BPF file system to pin to.
    Bpffs,
    /// The gateway's program, built.
    Gateway,
    /// The command line tool, built.
    Ctl,
    /// A program of the machine.
    Tool(&'static str),
}

/// Ends a test, saying why, unless the machine has everything that is listed.
///
/// ```no_run
/// # use lab::Need;
/// fn pods_reach_the_internet() {
///     lab::require!(Need::Lab, Need::Tool("iperf3"));
/// }
/// ```
#[macro_export]
macro_rules! require {
    ($($need:expr),+ $(,)?) => {
        if let Some(why) = $crate::skip::missing(&[$($need),+]) {
            fn here() {}
            $crate::skip::say(std::any::type_name_of_val(&here), &why);
            return $crate::skip::Outcome::skipped();
        }
    };
}

/// What a test returns when it did not run.
pub trait Outcome {
    /// Neither failed nor proven.
    fn skipped() -> Self;
}

impl Outcome for () {
    fn skipped() -> Self {}
}

impl<E> Outcome for Result<(), E> {
    fn skipped() -> Self {
        Ok(())
    }
}

/// Says that a test was skipped. `place` is the path of something inside the test.
pub fn say(place: &str, why: &str) {
    let test = place.rsplit_once("::").map_or(place, |(test, _)| test);
    let test = test.split_once("::").map_or(test, |(_, test)| test);
    println!("SKIPPED: {test}: {why}");
}

/// Why the first of these that the machine lacks is not there.
pub fn missing(needs: &[Need]) -> Option<String> {
    static KNOWN: Mutex<BTreeMap<Need, Option<String>>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    needs.iter().find_map(|need| known.entry(*need).or_insert_with(|| probe(*need)).clone())
}

fn probe(need: Need) -> Option<String> {
    let tried = match need {
        Need::Lab => pair().map(drop),
        Need::Vlan => pair().and_then(|(_site, link)| vlan(&link.ends[0], 100, "v100", None)),
        Need::Nftables => Site::new().and_then(|site| {
            Netns::new(&site, "probe")?.nft(
                "table ip probe {\n\
                 chain out {\n\
                 type nat hook postrouting priority srcnat\n\
                 snat to 192.0.2.1\n\
                 }\n}\n\
                 table netdev probe {\n\
                 chain in {\n\
                 type filter hook ingress device \"lo\" priority 0\n\
                 numgen random mod 100 < 1 drop\n\
                 }\n}\n",
            )
        }),
        Need::Bpffs => bpffs(),
        Need::Gateway => daemon::gateway_binary().map(drop),
        Need::Ctl => daemon::ctl_binary().map(drop),
        Need::Tool(name) => return tool(name),
    };
    tried.err().map(|error| {
        let what = match need {
            Need::Lab => "network namespaces and veth pairs are not to be had",
            Need::Vlan => "the kernel has no VLANs",
            Need::Nftables => "nftables does not work",
            Need::Bpffs => "there is no BPF file system",
            Need::Gateway => "`sluice-gateway` is not built",
            Need::Ctl => "`sluicectl` is not built",
            Need::Tool(_) => "a tool is missing",
        };
        // The first line, as `scripts/test.sh` reads lines.
        format!("{what} ({})", format!("{error:#}").lines().next().unwrap_or_default())
    })
}

/// The least lab there is.
fn pair() -> Result<(Site, Link)> {
    let site = Site::new()?;
    let [near, far] = [Netns::new(&site, "probe-a")?, Netns::new(&site, "probe-b")?];
    let link = Link::new((&near, "va"), (&far, "vb"), Offloads::Off)?;
    Ok((site, link))
}

/// Any other file system refuses what is asked of it here: a directory may be made, a file not.
fn bpffs() -> Result<()> {
    let directory = Path::new(BPFFS).join(format!("sl{}-probe", std::process::id()));
    std::fs::create_dir(&directory).with_context(|| format!("cannot write to {BPFFS}"))?;
    let file = std::fs::write(directory.join("file"), "");
    let _ = std::fs::remove_dir_all(&directory);
    anyhow::ensure!(file.is_err(), "{BPFFS} is an ordinary directory");
    Ok(())
}

fn tool(name: &str) -> Option<String> {
    let found = Command::new(name)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    found.err().map(|error| format!("`{name}` cannot be run ({error}); `make setup` installs it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_that_is_not_there_is_named() {
        assert_eq!(missing(&[Need::Tool("true")]), None);
        let why = missing(&[Need::Tool("true"), Need::Tool("no-such-tool")]).unwrap();
        assert!(why.contains("no-such-tool"), "{why}");
    }
}
