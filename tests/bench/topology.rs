//! Where the benches run: a generator, a device under test and a sink, each in a network
//! namespace of its own, joined by two veth pairs.
//!
//! The namespaces have no name. They live as long as this process holds them open, so that
//! however a bench ends, by an error, a panic or a signal, nothing of it stays on the machine.
//!
//! ```text
//!   generator          device under test           sink
//!   g0 10.99.0.1  ---  d0 10.99.0.2
//!                      d1 192.0.2.1         ---    s0 192.0.2.2
//! ```

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace without a name.
pub(crate) struct Namespace(File);

impl Namespace {
    fn new() -> Result<Self> {
        let made = in_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
            File::open("/proc/thread-self/ns/net").context("cannot hold the network namespace")
        })?;
        Ok(Self(made))
    }

    /// Runs `work` on a thread inside this namespace. What it starts or opens belongs there.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        in_thread(|| {
            setns(&self.0, CloneFlags::CLONE_NEWNET).context("cannot enter a namespace")?;
            work()
        })
    }

    /// A path that other processes can open the namespace by.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// A namespace belongs to a thread, so each visit gets one that ends with it.
fn in_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| match scope.spawn(work).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// One end of a veth pair.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Interface {
    /// Its name inside its namespace.
    pub(crate) name: &'static str,
    /// Its number there; the same in every topology, since the links are made with it.
    pub(crate) index: u32,
    /// Its address.
    pub(crate) mac: [u8; 6],
}

const fn interface(name: &'static str, index: u32) -> Interface {
    Interface { name, index, mac: [0x02, 0, 0, 0, 0, index as u8] }
}

/// The generator's end of the inside link.
pub(crate) const GENERATOR: Interface = interface("g0", 11);
/// Where the device under test receives.
pub(crate) const INSIDE: Interface = interface("d0", 12);
/// Where the device under test sends.
pub(crate) const OUTSIDE: Interface = interface("d1", 13);
/// The sink's end of the outside link.
pub(crate) const SINK: Interface = interface("s0", 14);
/// The address that the device under test translates to: its own on the outside link.
pub(crate) const OUTSIDE_ADDRESS: &str = "192.0.2.1";

/// The Ethernet addresses of a frame from one end to the other, as words in network order.
pub(crate) fn stations(from: Interface, to: Interface) -> [u16; 6] {
    let mut words = [0; 6];
    for (word, pair) in words.iter_mut().zip([to.mac, from.mac].as_flattened().chunks_exact(2)) {
        *word = u16::from_ne_bytes([pair[0], pair[1]]);
    }
    words
}

/// The three namespaces, linked, addressed and up.
pub(crate) struct Topology {
    pub(crate) generator: Namespace,
    pub(crate) device: Namespace,
    pub(crate) sink: Namespace,
}

impl Topology {
    /// Builds it. `queues` is the number of receive queues of every interface: one for each core
    /// that sends, because veth gives a frame to the queue of the core that it comes from.
    pub(crate) fn new(queues: usize) -> Result<Self> {
        let topology = Self {
            generator: Namespace::new()?,
            device: Namespace::new()?,
            sink: Namespace::new()?,
        };
        for namespace in [&topology.generator, &topology.device, &topology.sink] {
            // Neighbour discovery would add frames that nobody asked for.
            namespace.enter(|| set("net/ipv6/conf/all/disable_ipv6", "1"))?;
            namespace.enter(|| set("net/ipv6/conf/default/disable_ipv6", "1"))?;
        }
        topology.link(INSIDE, GENERATOR, &topology.generator, queues)?;
        topology.link(OUTSIDE, SINK, &topology.sink, queues)?;
        topology.generator.enter(|| ip("addr add 10.99.0.1/30 dev g0\nlink set g0 up\n"))?;
        topology.sink.enter(|| ip("addr add 192.0.2.2/30 dev s0\nlink set s0 up\n"))?;
        topology.device.enter(|| {
            ip(&format!(
                "link set lo up\n\
                 addr add 10.99.0.2/30 dev d0\n\
                 addr add {OUTSIDE_ADDRESS}/30 dev d1\n\
                 link set d0 up\n\
                 link set d1 up\n\
                 neigh add 10.99.0.1 lladdr {} dev d0 nud permanent\n\
                 neigh add 192.0.2.2 lladdr {} dev d1 nud permanent\n\
                 route add 100.64.0.0/10 via 10.99.0.1\n\
                 route add default via 192.0.2.2\n",
                mac(GENERATOR),
                mac(SINK),
            ))
        })?;
        Ok(topology)
    }

    /// A veth pair between the device's namespace and another.
    fn link(&self, near: Interface, far: Interface, away: &Namespace, queues: usize) -> Result<()> {
        let queues = format!("numrxqueues {queues} numtxqueues {queues}");
        self.device.enter(|| {
            ip(&format!(
                "link add {} index {} address {} {queues} type veth \
                 peer name {} index {} address {} {queues} netns {}\n",
                near.name,
                near.index,
                mac(near),
                far.name,
                far.index,
                mac(far),
                away.path(),
            ))
        })
    }
}

fn mac(interface: Interface) -> String {
    interface.mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Runs a batch of `ip` commands in this thread's namespace.
pub(crate) fn ip(batch: &str) -> Result<()> {
    command("ip", &["-batch", "-"], batch)
}

/// Runs a program in this thread's namespace; what it says on failure becomes the error.
pub(crate) fn command(program: &str, arguments: &[&str], input: &str) -> Result<()> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{program}`; `make setup` installs it"))?;
    let mut stdin = child.stdin.take().context("the child has a stdin, as just asked")?;
    stdin.write_all(input.as_bytes()).with_context(|| format!("`{program}` takes no input"))?;
    drop(stdin);
    let output = child.wait_with_output().with_context(|| format!("lost sight of `{program}`"))?;
    if !output.status.success() {
        bail!(
            "`{program} {}` failed: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// Sets a sysctl of this thread's namespace, by its path under `/proc/sys`.
pub(crate) fn set(key: &str, value: &str) -> Result<()> {
    fs::write(format!("/proc/sys/{key}"), value).with_context(|| format!("cannot set {key}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stations_are_destination_then_source_as_on_the_wire() {
        let bytes: Vec<u8> =
            stations(GENERATOR, INSIDE).iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(bytes, [2, 0, 0, 0, 0, 12, 2, 0, 0, 0, 0, 11]);
    }
}
