//! The product: its engine with its tables and programs, brought up from a configuration as the
//! daemon does it.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::Ebpf;
use aya::maps::{MapData, RingBuf};
use bench_xdp::{FIRST_SOURCE, SOURCES};
use gateway::config::Config;
use gateway::datapath::tables::Datapath;
use gateway::engine::{Engine, detach};
use gateway::kept::Kept;
use gateway::net::Follower;
use policy_compiler::{Amendment, Image};
use serde_json::json;
use smartgroups::DomainId;
use xdp_abi::event::ENDED_REOPENED;
use xdp_abi::session::{Link, Meta, State};

use super::Dut;
use super::documents::{Policy, documents};
use crate::object::{self, Settings};
use crate::topology::{INSIDE, OUTSIDE, set};

/// Identity changes a second while [`Sluice::churning`] is sent to.
const CHANGES_PER_SECOND: u32 = 100;

/// How often the ring of events is emptied, which keeps it from running full.
const DRAIN_EVERY: Duration = Duration::from_millis(1);

/// Where the gateway hooks into the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    Xdp,
    Tc,
}

/// The gateway, translating to an address of its own behind [`OUTSIDE`].
pub(crate) struct Sluice {
    name: &'static str,
    hook: Hook,
    sessions: u32,
    policy: Policy,
    churn: bool,
    /// On TC: whether frames come out of the veth in NAPI, as behind a driver.
    napi: bool,
    running: Option<Running>,
}

struct Running {
    engine: Mutex<Engine>,
    datapath: Arc<Datapath>,
    config: Arc<Config>,
    events: Mutex<RingBuf<MapData>>,
    /// Frames come out of a veth in NAPI only below an XDP program.
    _napi: Option<Ebpf>,
    churn: Mutex<Churn>,
}

/// Pods that change their identity one after the other, as discovery has them do: each to one of
/// two that pods have, and with the next change to the other.
struct Churn {
    /// Every pod, and the index of the identity that it has.
    pods: Vec<(DomainId, IpAddr, u32)>,
    /// The two.
    identities: [u32; 2],
    /// How many changes there were.
    changes: u32,
}

impl Churn {
    fn new(image: &Image) -> Result<Self> {
        let is_pod = |address: IpAddr| {
            let IpAddr::V4(address) = address else { return false };
            (FIRST_SOURCE..FIRST_SOURCE + SOURCES).contains(&u32::from(address))
        };
        let pods: Vec<_> = image.hosts.iter().copied().filter(|host| is_pod(host.1)).collect();
        ensure!(pods.len() == SOURCES as usize, "the policy knows {} pods", pods.len());
        let one = pods[0].2;
        let other = pods.iter().map(|pod| pod.2).find(|identity| *identity != one);
        let other = other.context("all pods have the same identity")?;
        Ok(Self { pods, identities: [one, other], changes: 0 })
    }

    /// The next change; what it says of a pod differs from what was so.
    fn next(&mut self) -> Amendment {
        let which = self.changes.wrapping_mul(2_654_435_761) % SOURCES;
        self.changes = self.changes.wrapping_add(1);
        let (domain, address, identity) = &mut self.pods[which as usize];
        let [one, other] = self.identities;
        *identity = if *identity == one { other } else { one };
        let hosts = vec![(*domain, *address, Some(*identity))];
        Amendment { hosts, ..Amendment::default() }
    }
}

impl Sluice {
    /// With room for `sessions`, on XDP, under the small policy.
    pub(crate) const fn new(sessions: u32) -> Self {
        Self {
            name: "sluice",
            hook: Hook::Xdp,
            sessions,
            policy: Policy::SMALL,
            churn: false,
            napi: true,
            running: None,
        }
    }

    /// The same on TC.
    pub(crate) const fn on_tc(mut self) -> Self {
        self.hook = Hook::Tc;
        self.name = "sluice on TC";
        self
    }

    /// The same on TC with no XDP program anywhere, below which large segments stay whole.
    pub(crate) const fn on_tc_without_xdp(self) -> Self {
        let mut on_tc = self.on_tc();
        on_tc.napi = false;
        on_tc
    }

    /// The same under the large policy.
    pub(crate) const fn with_many_rules(mut self) -> Self {
        self.policy = Policy::LARGE;
        self.name = "sluice with many rules";
        self
    }

    /// The same, with addresses that change their identity while it is sent to.
    pub(crate) const fn churning(mut self) -> Self {
        self.churn = true;
        self.name = "sluice under churn";
        self
    }

    /// Where its maps are pinned, once it is set up.
    pub(crate) fn pins(&self) -> Result<&Path> {
        Ok(&self.running()?.config.gateway.pin_path)
    }

    /// The tables, once it is set up.
    pub(crate) fn datapath(&self) -> Result<&Datapath> {
        Ok(&self.running()?.datapath)
    }

    fn running(&self) -> Result<&Running> {
        self.running.as_ref().context("the gateway is not set up")
    }

    fn config(&self, pins: &Path) -> Result<Config> {
        let hook = match self.hook {
            Hook::Xdp => "xdp",
            Hook::Tc => "tc",
        };
        let mut tables = json!({ "sessions": self.sessions });
        if self.policy == Policy::LARGE {
            // Nearly every pod is in groups that no other is in.
            tables["identities"] = json!(8_192);
        }
        let text = serde_yaml::to_string(&json!({
            "gateway": {
                "name": "bench",
                "domains": [{ "name": "pods", "number": 1 }],
                "attachments": [
                    {
                        "name": "inside",
                        "interface": INSIDE.name,
                        "kind": "spoke",
                        "domain": "pods",
                        "sources": ["100.64.0.0/10"],
                        "hook": hook,
                    },
                    {
                        "name": "outside",
                        "interface": OUTSIDE.name,
                        "kind": "internet",
                        "hook": hook,
                    },
                ],
                // As for conntrack: a row may take longer to come back to a flow.
                "timers": { "udp": "3600s" },
                "tables": tables,
                "metrics": { "listen": "127.0.0.1:9464" },
                "pin_path": pins,
            },
            "documents": documents(self.policy),
        }))?;
        Config::parse(&text, "bench").map_err(|errors| {
            let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
            anyhow!("the gateway refuses its configuration: {}", errors.join("; "))
        })
    }

    /// Empties the ring of events.
    pub(crate) fn drain(&self) {
        let Some(running) = &self.running else { return };
        let mut events = lock(&running.events);
        while events.next().is_some() {}
    }
}

impl Dut for Sluice {
    fn name(&self) -> &'static str {
        self.name
    }

    fn translates(&self) -> bool {
        true
    }

    fn set_up(&mut self) -> Result<()> {
        set("net/ipv4/ip_forward", "1")?;
        let pins = pins();
        let config = Arc::new(self.config(&pins)?);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let network = runtime.block_on(async {
            let (follower, _changes) = Follower::start(16).await?;
            let network = follower.state().clone();
            anyhow::Ok(network)
        })?;
        let napi = match self.hook {
            Hook::Xdp => None,
            Hook::Tc if !self.napi => None,
            Hook::Tc => {
                let mut napi = object::load("pass", Settings::default())?;
                object::attach(&mut napi, "pass", INSIDE)?;
                Some(napi)
            }
        };
        let engine = Engine::start(Arc::clone(&config), &network, Kept::default())?;
        let datapath = Arc::clone(&engine.datapath);
        let events = datapath.take_events().context("the ring of events is taken")?;
        self.running = Some(Running {
            engine: Mutex::new(engine),
            datapath,
            churn: Mutex::new(Churn::new(&config.image)?),
            config,
            events: Mutex::new(events),
            _napi: napi,
        });
        Ok(())
    }

    fn forget_flows(&mut self) -> Result<()> {
        let datapath = self.datapath()?;
        for slot in datapath.slots.all() {
            let link = Link(slot.words[5].load());
            if !Meta(slot.words[0].load()).is(State::Live) || link.is_reply() {
                continue;
            }
            let record = datapath.records.get(link.record()).context("a record out of bounds")?;
            let incarnation = (record.identity.load() >> 32) as u32;
            // By this cause no port rests: the next round finds the tables as the first did.
            datapath.clear(link.record(), incarnation, ENDED_REOPENED)?;
        }
        let counters = datapath.counters()?;
        let live = counters.sessions_begun - counters.sessions_ended;
        ensure!(live == 0, "{live} sessions live on");
        self.drain();
        Ok(())
    }

    /// Reads the events, as the daemon does, and changes identities if that is asked for.
    fn beside(&self, sending: &AtomicBool) -> Result<()> {
        let start = Instant::now();
        let mut changed = 0;
        while sending.load(Ordering::Relaxed) {
            thread::sleep(DRAIN_EVERY);
            self.drain();
            let Some(running) = self.running.as_ref().filter(|_| self.churn) else { continue };
            let due = (start.elapsed().as_secs_f64() * f64::from(CHANGES_PER_SECOND)) as u32;
            while changed < due {
                changed += 1;
                let change = lock(&running.churn).next();
                let judged_again = lock(&running.engine).amend(&change)?;
                ensure!(judged_again.is_some(), "{change:?} is none of the policy in force");
            }
        }
        Ok(())
    }
}

impl Drop for Sluice {
    fn drop(&mut self) {
        let Some(Running { engine, datapath, config, .. }) = self.running.take() else { return };
        drop((engine, datapath));
        // The last guard goes with the namespace.
        if let Err(error) = detach(&config, false) {
            eprintln!("{} leaves something behind: {error}", self.name);
        }
    }
}

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A directory for the pins of one gateway, in the file system that [`private_pins`] mounted.
fn pins() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Path::new(BPFFS).join(format!("bench-{number}"))
}

/// Where pins are kept.
const BPFFS: &str = "/sys/fs/bpf";

/// Gives this process a BPF file system of its own, so that pins end with it, however it ends.
/// To be called before the first thread starts: a mount namespace belongs to a thread.
pub(crate) fn private_pins() -> Result<()> {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};

    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("cannot keep mounts to itself")?;
    fs::create_dir_all(BPFFS).with_context(|| format!("cannot make {BPFFS}"))?;
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), none)
        .context("cannot mount a BPF file system")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn every_change_gives_a_pod_another_identity_and_never_a_new_one() {
        let config = Sluice::new(1 << 17).config(Path::new("/sys/fs/bpf/bench")).unwrap();
        let mut churn = Churn::new(&config.image).unwrap();
        let mut now: BTreeMap<_, _> =
            churn.pods.iter().map(|(_, address, identity)| (*address, *identity)).collect();
        for _ in 0..3 * SOURCES {
            let change = churn.next();
            assert!(change.identities.is_empty() && change.prefixes.is_empty(), "{change:?}");
            let [(_, address, Some(identity))] = change.hosts[..] else { panic!("{change:?}") };
            let before = now.insert(address, identity).unwrap();
            assert!(before != identity && churn.identities.contains(&identity), "{change:?}");
        }
        assert_eq!(now.len(), SOURCES as usize);
    }
}
