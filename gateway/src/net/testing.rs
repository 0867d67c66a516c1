//! What the tests of this module share: network namespaces of their own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;

use nix::sched::{CloneFlags, unshare};

use super::dialogue::{Dialogue, Family};
use super::notice::{self, Table};
use super::picture::{IfIndex, Link, Notice};

/// An interface that is up, `ethN` with number N.
pub(crate) fn link(ifindex: IfIndex) -> Link {
    Link {
        ifindex,
        name: format!("eth{ifindex}"),
        mac: Some([2, 0, 0, 0, 1, ifindex as u8]),
        mtu: 1500,
        admin_up: true,
        carrier: true,
        kind: None,
        master: None,
        link: None,
        vlan: None,
    }
}

/// Runs a test on a thread of its own in a network namespace of its own, which vanishes with
/// the thread. Without root it says so and passes.
pub(crate) fn as_root_in_namespace(what: &str, test: impl FnOnce() + Send) {
    if !nix::unistd::geteuid().is_root() {
        skip(what, "needs root for a network namespace");
        return;
    }
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("root makes a network namespace");
            test();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Lets packets in whose sources the kernel reaches by another interface; `all` has to be off as well.
pub(crate) fn no_reverse_path_check(interface: &str) {
    std::fs::write(format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter"), "0").unwrap();
}

/// Says that a test could not run, in the form that the test script gathers.
pub(crate) fn skip(what: &str, why: &str) {
    eprintln!("SKIPPED: {what}: {why}");
}

/// Runs `ip` in the namespace of this thread; a child inherits it.
pub(crate) fn ip(arguments: &str) {
    run("ip", arguments);
}

/// Runs a command that has to succeed and returns what it printed.
pub(crate) fn run(command: &str, arguments: &str) -> String {
    let output = Command::new(command).args(arguments.split_whitespace()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command} {arguments}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// A host at the other end of a veth pair, in a network namespace of its own.
pub(super) struct FarHost {
    jobs: mpsc::Sender<Job>,
}

type Job = Box<dyn FnOnce() + Send>;

impl FarHost {
    /// Makes the pair `near` and `far`, both up, `near` here with 192.0.2.1/24 and `far` there
    /// with 192.0.2.9/24. It vanishes with the value.
    pub(super) fn new() -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("root makes a network namespace");
            queue.into_iter().for_each(|job| job());
        });
        let host = Self { jobs };
        let namespace = host.run(nix::unistd::gettid);
        ip("link add near type veth peer name far");
        ip(&format!("link set far netns {namespace}"));
        host.run(|| {
            ip("link set far up");
            ip("address add 192.0.2.9/24 dev far");
        });
        ip("link set near up");
        ip("address add 192.0.2.1/24 dev near");
        host
    }

    /// Does something there, and waits for it.
    pub(super) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, result) = mpsc::channel();
        let job = move || answer.send(job()).expect("somebody waits for the result");
        self.jobs.send(Box::new(job)).expect("no job before panicked");
        result.recv().expect("the job does not panic")
    }
}

/// The link of this name, read from the kernel.
pub(super) fn link_named(name: &str) -> Link {
    let table = Table::Links;
    let links: Vec<Notice> = Dialogue::open(Family::Route)
        .unwrap()
        .dump(table.purpose(), &table.request(), |links: &mut Vec<_>, message| {
            links.extend(notice::decode(message));
        })
        .unwrap();
    for notice in links {
        if let Notice::Link(link) = notice
            && link.name == name
        {
            return link;
        }
    }
    panic!("no link {name}")
}

/// A directory that is removed with the value.
pub(crate) struct ScratchDirectory(PathBuf);

impl ScratchDirectory {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for ScratchDirectory {
    fn drop(&mut self) {
        // A directory left behind fails no test.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Makes an empty directory of its own.
pub(crate) fn scratch_directory() -> ScratchDirectory {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name =
        format!("sluice-net-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let path = std::env::temp_dir().join(name);
    std::fs::create_dir(&path).unwrap();
    ScratchDirectory(path)
}
