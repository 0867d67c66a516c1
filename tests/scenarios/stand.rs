//! Where a scenario plays: a lab with servers, the daemon, and captures outside.

use std::mem::offset_of;
use std::net::SocketAddrV4;
use std::path::Path;
use std::time::{Duration, Instant};
use std::{mem, thread};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{Array, Map, MapData};
use lab::client::{self, Talk, UdpLoad, UdpReport};
use lab::daemon::ctl_binary;
use lab::plan::NON_ROUTABLE;
use lab::servers;
use lab::{Background, Capture, Config, Daemon, Hook, Lab, Netns, Offloads, Servers, Shape};
use serde_json::{Value, json};
use xdp_abi::names;

use crate::counters::Counters;

/// Makes four tests of each function, one for each place.
macro_rules! everywhere {
    ($($(#[$mark:meta])? $claim:ident),+ $(,)?) => {$(
        mod $claim {
            use lab::{Hook, Need, Shape};

            use crate::stand::Place;

            #[test]
            $(#[$mark])?
            fn three_legged_xdp() -> anyhow::Result<()> {
                lab::require!(Need::Lab, Need::Nftables, Need::Bpffs, Need::Gateway, Need::Ctl);
                super::$claim(Place { shape: Shape::ThreeLegged, hook: Hook::Xdp })
            }

            #[test]
            $(#[$mark])?
            fn three_legged_tc() -> anyhow::Result<()> {
                lab::require!(Need::Lab, Need::Nftables, Need::Bpffs, Need::Gateway, Need::Ctl);
                super::$claim(Place { shape: Shape::ThreeLegged, hook: Hook::Tc })
            }

            #[test]
            $(#[$mark])?
            fn one_armed_xdp() -> anyhow::Result<()> {
                lab::require!(Need::Lab, Need::Nftables, Need::Bpffs, Need::Gateway, Need::Ctl);
                super::$claim(Place { shape: Shape::OneArmed, hook: Hook::Xdp })
            }

            #[test]
            $(#[$mark])?
            fn one_armed_tc() -> anyhow::Result<()> {
                lab::require!(Need::Lab, Need::Nftables, Need::Bpffs, Need::Gateway, Need::Ctl);
                super::$claim(Place { shape: Shape::OneArmed, hook: Hook::Tc })
            }
        }
    )+};
}
pub(crate) use everywhere;

/// Shows claims, which are functions over a [`Stand`], under their names.
macro_rules! show {
    ($stand:ident: $($claim:ident),+ $(,)?) => {
        $stand.show(&[$((stringify!($claim), $claim)),+])
    };
}
pub(crate) use show;

/// Something that holds of a gateway at work. It leaves the stand as it found it.
pub(crate) type Claim = fn(&mut Stand) -> Result<()>;

/// How the gateway is connected, and where it hooks in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) shape: Shape,
    pub(crate) hook: Hook,
}

impl Place {
    /// A stand with the lab's own configuration.
    pub(crate) fn stand(self) -> Result<Stand> {
        self.stand_with(|_| ())
    }

    /// A stand with another configuration.
    pub(crate) fn stand_with(self, change: impl FnOnce(&mut Config)) -> Result<Stand> {
        let lab = Lab::new(self.shape, Offloads::Off)?;
        let servers = lab.serve()?;
        let outside = lab.watch_outside()?;
        let mut config = Config::new(&lab, self.hook);
        change(&mut config);
        let daemon = Daemon::start(&lab, &config)?;
        Ok(Stand { daemon, config, outside, reloads: 0, _servers: servers, lab })
    }
}

/// A gateway at work.
pub(crate) struct Stand {
    pub(crate) daemon: Daemon,
    pub(crate) config: Config,
    pub(crate) outside: Vec<Capture>,
    reloads: u32,
    _servers: [Servers; 2],
    // The last to be dropped.
    pub(crate) lab: Lab,
}

impl Stand {
    /// What became of every packet so far.
    pub(crate) fn counters(&self) -> Result<Counters> {
        Counters::read(&self.lab.site().pins())
    }

    /// Puts the present [`Stand::config`] in force, and waits until it is.
    ///
    /// The daemon looks at the file by itself too, so a policy that is published need not be this
    /// one. Each file has a gateway name of its own, which changes nothing in the policy: when the
    /// daemon goes by that name, this file is in force.
    pub(crate) fn reload(&mut self) -> Result<()> {
        self.reloads += 1;
        let name = format!("gw-1-{}", self.reloads);
        let mut config = self.config.clone();
        config.gateway["name"] = json!(name);
        self.daemon.reload(&config)?;
        let label = format!("gateway=\"{name}\"");
        eventually("the new policy is in force", || {
            Ok(self.daemon.metric("sluice_build_info", &[&label])? == 1.0)
        })
        .with_context(|| self.daemon.stderr())
    }

    /// Runs `sluicectl` at the daemon's socket; what it printed.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> Result<String> {
        let socket = self.lab.site().files().join("sluice.sock");
        let socket = socket.to_string_lossy();
        let program = ctl_binary()?;
        let arguments = [&["--socket", &*socket], arguments].concat();
        self.lab.gateway.run(&program.to_string_lossy(), &arguments)
    }

    /// Waits for a flow record that `wanted` likes.
    pub(crate) fn record(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut found = None;
        let look = || {
            found = self.daemon.flow_records()?.into_iter().find(|record| wanted(record));
            Ok(found.is_some())
        };
        if let Err(error) = eventually(&format!("a flow record: {what}"), look) {
            let records = self.daemon.flow_records()?;
            let last = records.iter().rev().take(2).map(|record| format!("\n{record}"));
            bail!("{error:#}; the last of {}:{}", records.len(), last.collect::<String>());
        }
        found.context("it was just found")
    }

    /// Shows claims one after the other, all of them even if one fails, and then that nothing
    /// wrong was sent outside and every packet is accounted for.
    pub(crate) fn show(&mut self, claims: &[(&str, Claim)]) -> Result<()> {
        let mut failures = String::new();
        for (name, claim) in claims {
            if let Err(failure) = claim(self) {
                failures += &format!("\n{name}: {failure:?}");
            }
        }
        if let Err(failure) = self.assert_sound() {
            failures += &format!("\nat the end: {failure:?}");
        }
        if !failures.is_empty() {
            let counters = self.counters();
            bail!("{failures}\n{counters:?}\nThe gateway said:\n{}", self.daemon.stderr());
        }
        Ok(())
    }

    /// Nothing that was sent outside since the last look is wrong, and every packet that the
    /// gateway received is accounted for.
    pub(crate) fn assert_sound(&mut self) -> Result<()> {
        let partial = self.assert_sound_but_partial()?;
        ensure!(partial == 0, "{partial} packets have no checksum on links without offloads");
        Ok(())
    }

    /// The same of links on which senders leave checksums to devices; says of how many packets the
    /// checksum was not there to be looked at.
    pub(crate) fn assert_sound_but_partial(&mut self) -> Result<usize> {
        let next = self.lab.watch_outside()?;
        let (mut seen, mut partial) = (0, 0);
        for capture in mem::replace(&mut self.outside, next) {
            let looked = capture.stop()?.assert_clean(&[NON_ROUTABLE])?;
            ensure!(looked.lost == 0, "{looked:?}");
            seen += looked.ipv4;
            partial += looked.partial;
        }
        ensure!(seen > 0, "nothing was seen outside, which proves nothing");
        // A packet that is just being counted may be counted by half.
        let start = Instant::now();
        loop {
            match self.counters()?.assert_conserved() {
                Err(_) if start.elapsed() < Duration::from_secs(1) => {
                    thread::sleep(Duration::from_millis(50));
                }
                conserved => return conserved.map(|()| partial),
            }
        }
    }
}

/// How many datagrams of a flow under load may be unanswered at once: two such flows and all the
/// rest fit a ring of a veth, which holds 256 frames and fills while a start of the daemon keeps
/// both processors busy. What is lost, whoever loses it, is missed by its number all the same.
const WINDOW: u32 = 64;
/// The least that is called a load, in datagrams a second.
const LEAST_LOAD: f64 = 500.0;

/// A load at half of what flows between these ends carry as they are now, all at once; says how
/// much that is.
pub(crate) fn half_of_capacity(flows: &[(&Netns, SocketAddrV4)]) -> Result<UdpLoad> {
    let load = UdpLoad { packets: u32::MAX, window: WINDOW, ..UdpLoad::default() };
    let capacity = client::udp_capacity(flows, load)?;
    let rate = capacity / 2.0 / flows.len() as f64;
    println!("capacity {capacity:.0} datagrams/s, flows {}, {rate:.0}/s for each", flows.len());
    ensure!(rate >= LEAST_LOAD, "a machine that carries {capacity:.0}/s is not put under load");
    Ok(UdpLoad { rate: rate as u32, ..load })
}

/// A flow under load went on, and lost nothing.
pub(crate) fn assert_carried(report: &UdpReport, load: UdpLoad) -> Result<()> {
    let asked = load.rate;
    println!("sent {} at {:.0}/s of {asked}/s, lost {}", report.sent, report.rate(), report.lost());
    ensure!(report.wrong == 0 && report.lost() == 0, "{report:?}");
    // Others may want the processors more than when the capacity was measured.
    ensure!(report.rate() * 4.0 > f64::from(asked), "{:.0}/s of {asked}/s", report.rate());
    Ok(())
}

/// A connection to the machine itself, as an administrator has one, and its server.
pub(crate) struct Own {
    talk: Background<Talk>,
    _server: Background<()>,
}

impl Own {
    /// Opens it.
    pub(crate) fn start(lab: &Lab) -> Result<Self> {
        const SSH: u16 = 22;
        let _server = servers::tcp(&lab.gateway, SSH, servers::echo)?;
        let to = SocketAddrV4::new(lab.transit_address(), SSH);
        let patience = Duration::from_secs(2);
        let stream = client::connect_to(&lab.transit, to, patience)?.open()?;
        let talk = client::talk(&lab.transit, stream, Duration::from_millis(5), patience);
        Ok(Self { talk, _server })
    }

    /// It is still there.
    pub(crate) fn assert_alive(self) -> Result<()> {
        ensure!(!self.talk.ended(), "the machine's own connection ended");
        let talk = self.talk.stop()?;
        ensure!(talk.broke.is_none() && talk.answered > 0, "the machine's own: {talk:?}");
        Ok(())
    }
}

type Settings = Array<MapData, [u64; size_of::<xdp_abi::config::Config>() / 8]>;
const POLICY_AT: usize = offset_of!(xdp_abi::config::Config, policy) / 8;

/// The word by which packets find their policy, as it is pinned.
pub(crate) fn policy_word(pins: &Path) -> Result<u64> {
    let settings: Settings = Map::Array(MapData::from_pin(pins.join(names::CONFIG))?).try_into()?;
    Ok(settings.get(&0, 0)?[POLICY_AT])
}

/// Puts another word there, as somebody else who publishes would.
pub(crate) fn put_policy_word(pins: &Path, word: u64) -> Result<()> {
    let mut settings: Settings =
        Map::Array(MapData::from_pin(pins.join(names::CONFIG))?).try_into()?;
    let mut words = settings.get(&0, 0)?;
    words[POLICY_AT] = word;
    Ok(settings.set(0, words, 0)?)
}

/// Waits until something holds, for five seconds.
pub(crate) fn eventually(what: &str, holds: impl FnMut() -> Result<bool>) -> Result<()> {
    within(Duration::from_secs(5), what, holds)
}

/// Waits until something holds.
pub(crate) fn within(
    patience: Duration,
    what: &str,
    mut holds: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let start = Instant::now();
    while !holds()? {
        ensure!(start.elapsed() < patience, "not within {patience:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
