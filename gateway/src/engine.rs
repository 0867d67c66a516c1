//! The gateway without its surroundings: a configuration and the kernel's picture of the
//! network become tables and attached programs, and follow both when they change.
//!
//! No sockets, no tasks: the daemon drives it, benches and tests use it as it is.

use crate::{
    config::{Config, ConfigError},
    datapath::{
        attach::{self, AttachError, Attached, HookOf},
        claim::{Claim, ClaimError},
        hops, layout,
        managed::Managed,
        numbers::Numbers,
        object::{Hooks, Sizes, settle},
        pairs::Cooling,
        places::Places,
        plan::Pools,
        publish::{Amended, PublishError, Publisher},
        recycle::Recycling,
        settings,
        tables::{self, Datapath, TablesError},
    },
    fixed, guarded, interfaces,
    kept::{self, Kept, KeptError},
    net::{
        self, Concern, Neighbour, NeighbourKey, NeighbourState, NetworkEvent, NetworkState, Sysctl,
        guard::{self, GuardSpec, Installed},
    },
};
use aya::maps::MapError;
use nix::net::if_::if_nametoindex;
use policy_compiler::{Amendment, Image};
use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr},
    ops::RangeInclusive,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};
use xdp::{address::V4, stamp::epoch_slot};
use xdp_abi::config::PolicyWord;

/// Why the gateway could not be brought to a configuration. What was in force stays.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The tables.
    #[error(transparent)]
    Tables(#[from] TablesError),
    /// A program.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// Publishing the policy.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// A table refused an entry.
    #[error("a table of places refuses an entry: {0}")]
    Places(#[from] MapError),
    /// The policy, with those who were discovered.
    #[error("{0}, with those who were discovered")]
    Compile(#[from] policy_compiler::CompileError),
    /// More places than there is room for.
    #[error("{0}: state fewer, or wider prefixes")]
    TooManyPlaces(String),
    /// Settings that are right in themselves, and not on this machine or beside what is in force.
    #[error("{}", lines(.0))]
    Config(Vec<ConfigError>),
    /// Sessions hold attachments by number, and nobody knows which number each has.
    #[error(
        "the pinned tables have live sessions, and the `state_dir` {0} does not say which number \
         each attachment has in them (attachments.json): restore it, or end all sessions with \
         `sluice-gateway detach` and start again"
    )]
    Unnumbered(PathBuf),
    /// The last guard could not be put up.
    #[error("the last guard cannot be put up: {0}")]
    Guard(#[from] guard::GuardError),
    /// The tables are somebody else's, or their place cannot be had.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// New numbers of attachments would be unknown to the next start.
    #[error(transparent)]
    Kept(#[from] KeptError),
    /// The pin directory.
    #[error("the pins in {path} cannot be put in their places: {source}")]
    Pins {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A pin stays.
    #[error("{path} cannot be removed: {source}; run `sluice-gateway detach` as root")]
    Stays {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The last guard stays as it is.
    #[error("the last guard cannot be changed: {0}")]
    GuardStays(guard::GuardError),
    /// The kernel goes on to ask for neighbours.
    #[error("what was taken out leaves neighbours that the kernel keeps resolved: {0}")]
    Neighbours(net::NetlinkError),
    /// The last guard stays as it is for want of a privilege.
    #[error("changing the last guard needs CAP_NET_ADMIN; run `sluice-gateway detach` as root")]
    GuardPrivilege,
    /// Nothing can be pinned there.
    #[error(
        "`pin_path` {0} is not on a BPF file system; mount bpffs there, or name a directory below \
         /sys/fs/bpf"
    )]
    NotBpffs(PathBuf),
    /// Whoever is at home there is not one gateway alone.
    #[error(
        "`pin_path` {0} is the root of a BPF file system, where others pin too; name a directory \
         below it"
    )]
    SharedPins(PathBuf),
}

fn lines(faults: &[ConfigError]) -> String {
    faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// The gateway.
pub struct Engine {
    /// The tables.
    pub datapath: Arc<Datapath>,
    config: Arc<Config>,
    /// The policy in force, with what members did since it was published.
    image: Arc<Image>,
    numbers: Numbers,
    places: Places,
    /// The same as the tables have them: XDP redirects to where XDP stands.
    standing: Places,
    publisher: Publisher,
    attached: Attached,
    managed: Managed,
    former: hops::Former,
    pins: PathBuf,
    reserved: Reserved,
    cooling: Cooling,
    recycling: Recycling,
    carried: Option<usize>,
    /// Why the places are not those that the network has now.
    behind: Option<String>,
    /// The last guard as it was put up.
    guarded: GuardSpec,
    _claims: [Claim; 2],
}

/// What of each address the machine itself uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Reserved {
    locals: BTreeSet<Ipv4Addr>,
    ephemeral: Option<(u16, u16)>,
    /// Ports of its sockets outside that range, in order; without an address: of every one.
    sockets: BTreeSet<(Option<Ipv4Addr>, u16)>,
}

impl Reserved {
    /// Reads it from the kernel. What cannot be read counts as the usual range: too little is
    /// lent rather than a port of the machine.
    fn now(locals: &BTreeSet<Ipv4Addr>) -> Self {
        let ephemeral = Sysctl::of_kernel().ephemeral_range().unwrap_or((32_768, 60_999));
        let sockets = net::ports_in_use()
            .unwrap_or_default()
            .into_iter()
            .filter(|socket| !(ephemeral.0..=ephemeral.1).contains(&socket.port))
            .map(|socket| (socket.address, socket.port))
            .collect();
        Self { locals: locals.clone(), ephemeral: Some(ephemeral), sockets }
    }

    /// The ports of an address that NAT must leave alone.
    fn of(&self, address: Ipv4Addr) -> Vec<RangeInclusive<u16>> {
        if !self.locals.contains(&address) {
            return Vec::new();
        }
        let ephemeral = self.ephemeral.map(|(first, last)| first..=last);
        let of = |at| self.sockets.range((at, 0)..=(at, u16::MAX)).map(|(_, port)| *port);
        let sockets: BTreeSet<u16> = of(None).chain(of(Some(address))).collect();
        ephemeral.into_iter().chain(sockets.into_iter().map(|port| port..=port)).collect()
    }
}

/// Whether a directory is on a BPF file system, or would be once it is made.
fn is_on_bpffs(pins: &Path) -> bool {
    let found = pins.ancestors().find_map(|at| nix::sys::statfs::statfs(at).ok());
    found.is_some_and(|kind| kind.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC)
}

/// Whether a directory is the root of its BPF file system, by whatever path: that has the inode 1
/// (`simple_fill_super`).
fn is_root_of_bpffs(pins: &Path) -> bool {
    fs::metadata(pins).is_ok_and(|found| found.ino() == 1)
}

/// A start of which everything was looked at that can be refused by looking; nothing is touched yet.
pub struct Looked {
    config: Arc<Config>,
    image: Arc<Image>,
    places: Places,
    kept: Kept,
    sizes: Sizes,
    guard: Claim,
    pins: Option<Claim>,
}

impl Looked {
    /// What the next start has to know, from the moment on at which programs are attached.
    pub fn kept(&self) -> &Kept {
        &self.kept
    }
}

impl Engine {
    /// Brings up the datapath for a configuration; [`Self::look`] and [`Self::begin`] in one.
    pub fn start(
        config: Arc<Config>,
        network: &NetworkState,
        kept: Kept,
    ) -> Result<Self, EngineError> {
        let image = Arc::clone(&config.image);
        Self::begin(Self::look(config, image, network, kept)?, network)
    }

    /// Refuses what cannot be brought up. An interface that was known before may be missing, but not
    /// all of them; sessions are taken over only by who knows which attachments they mean.
    pub fn look(
        config: Arc<Config>,
        image: Arc<Image>,
        network: &NetworkState,
        kept: Kept,
    ) -> Result<Looked, EngineError> {
        let served = interfaces::served(&config, network, Hooks::ALL);
        let numbers = kept.numbers.with(&config.gateway);
        let places = Places::of(&config, network, &served, &numbers);
        refuse_too_many(&places)?;
        interfaces::refuse_new(&config, &places.missing, &kept.interfaces)
            .and_then(|()| interfaces::refuse_none(&config, &places))
            .map_err(EngineError::Config)?;
        let pins = config.gateway.pin_path.clone();
        if !is_on_bpffs(&pins) {
            return Err(EngineError::NotBpffs(pins));
        }
        if is_root_of_bpffs(&pins) {
            return Err(EngineError::SharedPins(pins));
        }
        // Who has these very tables is named by them; nothing is made for who is refused.
        let claim = Claim::of(&pins)?;
        let guard = Claim::of_guard()?;
        let sizes = Sizes::of(&config.gateway.tables);
        tables::refuse(&sizes, &pins)?;
        if kept.numbers == Numbers::default()
            && layout::has_sessions(&pins).map_err(TablesError::from)?
        {
            return Err(EngineError::Unnumbered(config.gateway.state_dir.clone()));
        }
        // Those of before too: what an earlier daemon has left there is not cleared away yet.
        let mut interfaces = interfaces::devices(&config);
        interfaces.extend(kept.interfaces);
        let kept = Kept { numbers, interfaces, counters: kept.counters };
        Ok(Looked { config, image, places, kept, sizes, guard, pins: claim })
    }

    /// Brings up what was looked at. Guards first, programs last: packets are served from the first
    /// moment under a whole policy.
    pub fn begin(looked: Looked, network: &NetworkState) -> Result<Self, EngineError> {
        let Looked { config, image, places, kept, sizes, guard, pins: claim } = looked;
        let pins = config.gateway.pin_path.clone();
        let claims = [guard, claim.map_or_else(|| Claim::of_new(&pins), Ok)?];
        let translating = places.translating(|ifindex| attach::translates(&pins, ifindex));
        guard::install(&guarded::spec(&config, translating))?;
        let hooks = interfaces::to_load(&config, &places);
        let datapath = Datapath::open(sizes, hooks, Some(&pins))?;
        let mut older = datapath.take_older();
        if let Some(older) = &older {
            older.resume(&datapath);
        }
        settings::write(&datapath, &config);
        let standing = Places::standing(&datapath);
        let places = places.with_ways_of(&standing);
        let Kept { counters, numbers, interfaces } = kept;
        let mut publisher = Publisher::new(&datapath, counters);
        let reserved = Reserved::now(&places.locals);
        let pools = publisher.plan(&datapath, &image)?;
        let of = |address| reserved.of(address);
        let ready = publisher.prepare(&datapath, &image, pools, &places.ways_out, &of)?;
        let between = standing.between(&places);
        between.write(&datapath, &standing)?;
        publisher.swap(&datapath, ready);
        // XDP redirects to where an earlier daemon has left it, until more is attached.
        let before = places.redirecting(|ifindex| attach::on_xdp(&pins, ifindex));
        before.follow(&datapath, &between)?;
        if let Some(older) = &mut older {
            older.replace(&datapath).map_err(TablesError::from)?;
        }
        let mut attached = Attached::default();
        let brought = attached.bring(&datapath, &places.interfaces, &pins);
        // Also if it failed: what goes on without this daemon must not redirect to where no XDP is.
        let standing = places.redirecting(|ifindex| attached.on_xdp(ifindex));
        if standing != before {
            standing.follow(&datapath, &before)?;
        }
        brought?;
        attached.leave_others(&places.interfaces, &pins);
        settle(&pins).map_err(|source| EngineError::Pins { path: pins.clone(), source })?;
        let carried = older.map(|older| older.finish(&datapath));
        let managed = Managed::left(network, &places, &interfaces);
        let guarded = guarded::spec(&config, places.translating(|at| attached.translates(at)));
        guard::install(&guarded)?;
        Ok(Self {
            datapath: Arc::new(datapath),
            config,
            image,
            numbers,
            places,
            standing,
            publisher,
            attached,
            managed,
            former: hops::Former::default(),
            pins,
            reserved,
            cooling: Cooling::default(),
            recycling: Recycling::default(),
            carried,
            behind: None,
            guarded,
            _claims: claims,
        })
    }

    /// Puts the last guard up.
    fn put_up(&mut self, spec: GuardSpec) -> Result<(), EngineError> {
        guard::install(&spec)?;
        self.guarded = spec;
        Ok(())
    }

    /// What the last guard keeps back now.
    fn guard(&self) -> GuardSpec {
        guarded::spec(&self.config, self.translating(&self.places))
    }

    /// Where programs are of the interfaces that these places have.
    fn translating(&self, places: &Places) -> BTreeSet<u32> {
        places.translating(|ifindex| self.attached.translates(ifindex))
    }

    /// How many sessions came from an older layout, if what was pinned had one.
    pub fn carried(&self) -> Option<usize> {
        self.carried
    }

    /// The configuration in force.
    pub fn config(&self) -> &Arc<Config> {
        &self.config
    }

    /// The policy in force.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Which attachment has which number.
    pub fn numbers(&self) -> &Numbers {
        &self.numbers
    }

    /// What the next start has to know.
    pub fn kept(&self) -> Kept {
        Kept {
            counters: self.publisher.counters().clone(),
            numbers: self.numbers.clone(),
            interfaces: interfaces::devices(&self.config),
        }
    }

    /// The places as they are.
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// How many hooks are served.
    pub fn hooks(&self) -> usize {
        self.attached.count()
    }

    /// Brings the gateway to another configuration, or leaves it as it is and says why. It is
    /// announced before a table changes, so that nobody meets a number without a name; and `keep` is asked
    /// to keep new numbers before a session holds one, because this process may be killed. What goes
    /// on without its interface keeps no policy from coming into force.
    pub fn reload(
        &mut self,
        config: Arc<Config>,
        image: Arc<Image>,
        network: &NetworkState,
        announce: impl FnOnce(&Arc<Config>, &Numbers),
        keep: impl FnOnce(&Numbers) -> Result<(), KeptError>,
    ) -> Result<u32, EngineError> {
        fixed::refuse(&self.config, &config).map_err(EngineError::Config)?;
        let numbers = self.numbers.with(&config.gateway);
        announce(&config, &numbers);
        let loaded = self.datapath.hooks;
        let served = interfaces::served(&config, network, loaded);
        let places = Places::of(&config, network, &served, &numbers).with_ways_of(&self.places);
        refuse_too_many(&places)?;
        interfaces::refuse_new(&config, &places.missing, &interfaces::devices(&self.config))
            .and_then(|()| interfaces::refuse_not_loaded(&config, &self.config, &places, loaded))
            .map_err(EngineError::Config)?;
        let pools = self.publisher.plan(&self.datapath, &image)?;
        if numbers != self.numbers {
            keep(&numbers)?;
        }
        let before = (Arc::clone(&self.config), Arc::clone(&self.image));
        let stood = (self.numbers.clone(), self.places.clone());
        let outcome = self.put_into_force((config, image), pools, numbers, places);
        if outcome.is_err() {
            // What was done of it is undone: the configuration that stays is all of it.
            let (numbers, places) = stood;
            let pools = self.publisher.plan(&self.datapath, &before.1)?;
            self.put_into_force(before, pools, numbers, places)?;
        }
        outcome
    }

    /// Guard first; then programs, because an interface that takes none has changed nothing for a flow; places
    /// and policy last, together.
    fn put_into_force(
        &mut self,
        (config, image): (Arc<Config>, Arc<Image>),
        pools: Pools,
        numbers: Numbers,
        places: Places,
    ) -> Result<u32, EngineError> {
        self.put_up(guarded::spec(&config, self.translating(&places)))?;
        settings::write(&self.datapath, &config);
        // Either may want another translation of a flow than it has.
        let moved = places != self.places
            || config.gateway.non_routable != self.config.gateway.non_routable;
        self.numbers = numbers;
        let lacked = self.missing();
        let brought = self.attached.bring(&self.datapath, &places.interfaces, &self.pins);
        self.redirect()?;
        // A hook that had none before, because somebody else holds it, keeps no policy away.
        let lacks = self.attached.missing(&places.interfaces, &self.pins);
        if lacks.iter().any(|hook| !lacked.contains(hook)) {
            brought?;
        }
        let amended = if moved {
            None
        } else {
            self.publisher.amend(&self.datapath, &image, &self.places.ways_out)?
        };
        let generation = match amended {
            Some(amended) => self.judge_members_again(&amended),
            None => self.exchange_both(&image, pools, places)?,
        };
        self.attached.leave_others(&self.places.interfaces, &self.pins);
        self.put_up(guarded::spec(&config, self.translating(&self.places)))?;
        self.keep_neighbours();
        self.config = config;
        self.image = image;
        Ok(generation)
    }

    /// Exchanges policy and places in a step in which no packet meets the one without the other: what takes
    /// long is done before, and what the places do not say alike before and after waits until both are in force.
    fn exchange_both(
        &mut self,
        image: &Image,
        pools: Pools,
        places: Places,
    ) -> Result<u32, EngineError> {
        let reserved = &self.reserved;
        let of = |address| reserved.of(address);
        let ready = self.publisher.prepare(&self.datapath, image, pools, &places.ways_out, &of)?;
        if places == self.places {
            return Ok(self.publisher.swap(&self.datapath, ready));
        }
        let between = self.standing.between(&places);
        between.write(&self.datapath, &self.standing)?;
        self.standing = between.clone();
        self.places = between;
        let generation = self.publisher.swap(&self.datapath, ready);
        self.take_places(places)?;
        Ok(generation)
    }

    fn publish(&mut self, image: &Image, pools: Pools) -> Result<u32, PublishError> {
        let reserved = &self.reserved;
        let of = |address| reserved.of(address);
        self.publisher.publish(&self.datapath, image, pools, &self.places.ways_out, &of)
    }

    /// Exchanges the policy for another one of the same configuration.
    ///
    /// # Errors
    /// It does not fit, or a table refuses an entry; the policy in force stays.
    pub fn exchange(&mut self, image: Arc<Image>) -> Result<u32, EngineError> {
        let pools = self.publisher.plan(&self.datapath, &image)?;
        let generation = self.publish(&image, pools)?;
        self.image = image;
        Ok(generation)
    }

    /// Brings programs onto the interfaces, and redirects to where XDP stands then.
    fn bring(&mut self) -> Result<(), EngineError> {
        let brought = self.attached.bring(&self.datapath, &self.places.interfaces, &self.pins);
        self.redirect()?;
        Ok(brought?)
    }

    /// XDP redirects to where XDP stands now.
    fn redirect(&mut self) -> Result<(), EngineError> {
        let standing = self.places.redirecting(|ifindex| self.attached.on_xdp(ifindex));
        if standing != self.standing {
            standing.follow(&self.datapath, &self.standing)?;
            self.standing = standing;
        }
        Ok(())
    }

    fn take_places(&mut self, places: Places) -> Result<(), EngineError> {
        let standing = places.redirecting(|ifindex| self.attached.on_xdp(ifindex));
        standing.follow(&self.datapath, &self.standing)?;
        self.standing = standing;
        self.places = places;
        self.reserve();
        Ok(())
    }

    /// Looks again at what the machine uses itself; says whether that changed what is lent.
    pub fn reserve(&mut self) -> bool {
        let reserved = Reserved::now(&self.places.locals);
        let before = std::mem::replace(&mut self.reserved, reserved);
        let reserved = &self.reserved;
        // Connections come and go; most of them are on addresses of which nothing is lent.
        let outside: BTreeSet<_> = self.publisher.lendings().keys().map(|l| l.address).collect();
        let changed = outside.into_iter().any(|address| reserved.of(address) != before.of(address));
        if changed {
            self.publisher.lend_again(&self.datapath, &|address| reserved.of(address));
        }
        changed
    }

    /// The network changed: places, next hops and programs follow.
    ///
    /// # Errors
    /// The first that was met; what came after it is followed all the same.
    pub fn follow(
        &mut self,
        events: &[NetworkEvent],
        network: &NetworkState,
    ) -> Result<(), EngineError> {
        let mut outcome = Ok(());
        for (concern, events) in NetworkEvent::in_turns(events) {
            match concern {
                Concern::Neighbours => self.follow_neighbours(events, network),
                // Way out and translation belong together: every flow is looked at again.
                Concern::Routes => self.publisher.judge_again(&self.datapath),
                Concern::Places => {
                    let followed = self.follow_places(events, network);
                    outcome = outcome.and(followed);
                }
            }
        }
        outcome
    }

    fn follow_neighbours(&mut self, events: &[NetworkEvent], network: &NetworkState) {
        let mut moved = false;
        for event in events {
            if let NetworkEvent::NeighbourChanged { ifindex, ip: IpAddr::V4(ip), old, new } = event
            {
                let ways_back = || hops::ways_back(&self.datapath, &self.places);
                if old.is_none() && new.is_some() {
                    self.managed.is_back(*ifindex, *ip);
                }
                let now = Instant::now();
                let old = self.former.before((*ifindex, *ip), *old, *new, now, ways_back);
                // A host that is there has given one of its addresses to another.
                let has_it = |((at, other), neighbour): (&NeighbourKey, &Neighbour)| {
                    at == ifindex
                        && *other != IpAddr::V4(*ip)
                        && neighbour.mac == old
                        && matches!(
                            neighbour.state,
                            NeighbourState::Reachable | NeighbourState::Permanent
                        )
                };
                let old = old.filter(|_| new.is_none() || !network.neighbours.iter().any(has_it));
                moved |= hops::moved(&self.datapath, &self.places, *ifindex, *ip, old, *new);
            }
        }
        // Who has the old hardware address still gets its answers back with its next packet.
        if moved {
            self.publisher.judge_again(&self.datapath);
        }
    }

    fn follow_places(
        &mut self,
        events: &[NetworkEvent],
        network: &NetworkState,
    ) -> Result<(), EngineError> {
        for event in events {
            let NetworkEvent::LinkChanged { ifindex, new, .. } = event else { continue };
            if new.is_none() {
                self.attached.forget(*ifindex, &self.pins);
            }
            self.managed.forget(*ifindex);
        }
        let served = interfaces::served(&self.config, network, self.datapath.hooks);
        let places =
            Places::of(&self.config, network, &served, &self.numbers).with_ways_of(&self.places);
        if places != self.places {
            let leads_elsewhere = !places.leads_as(&self.places);
            let taken = refuse_too_many(&places).and_then(|()| self.take_places(places));
            self.behind = taken.as_ref().err().map(ToString::to_string);
            taken?;
            if leads_elsewhere {
                // A session whose way in is gone goes on by another, if its cluster has two.
                self.publisher.judge_again(&self.datapath);
            }
        }
        hops::forget(&self.datapath, network);
        let brought = self.bring();
        self.attached.leave_others(&self.places.interfaces, &self.pins);
        let spec = self.guard();
        if spec != self.guarded {
            self.put_up(spec)?;
        }
        brought
    }

    /// Why links and addresses are not followed, if they are not.
    pub fn behind(&self) -> Option<&str> {
        self.behind.as_deref()
    }

    /// Takes port bitmaps back from pairs that need them no more, and numbers from next hops.
    pub fn cool(&mut self) {
        self.cooling.tend(&self.datapath);
        self.recycling.tend(&self.datapath);
    }

    /// Has the kernel keep the next hops in use resolved, also when this process is gone.
    pub fn keep_neighbours(&mut self) {
        self.managed.tend(&self.datapath, &self.places);
    }

    /// A pin that somebody took away. Packets are served all the same while this process holds
    /// what it stood for; the next one would not find it.
    pub fn lost_pin(&self) -> Option<PathBuf> {
        let tables = xdp_abi::names::ALL.map(|name| self.pins.join(name));
        tables.iter().chain(self.attached.pins()).find(|pin| !pin.exists()).cloned()
    }

    /// Puts programs back that somebody took off their interfaces, and tries again where one was
    /// refused; says which hooks had none.
    pub fn restore(&mut self) -> (Vec<HookOf>, Result<(), EngineError>) {
        self.attached.forget_gone();
        let missing = self.missing();
        if missing.is_empty() {
            return (missing, Ok(()));
        }
        let outcome = self.bring();
        (missing, outcome)
    }

    /// The hooks that have no program and should have one.
    pub fn missing(&self) -> Vec<HookOf> {
        self.attached.missing(&self.places.interfaces, &self.pins)
    }

    /// Puts the last guard back if somebody took it away, or changed it; says whether somebody did,
    /// and what it has counted.
    pub fn check_guard(&mut self) -> Result<(bool, guard::GuardState), EngineError> {
        let spec = self.guard();
        // What changes with the programs, such as one that was put back, is nobody else's doing.
        let changed = spec != self.guarded;
        let as_left = !changed || guard::read()?.is_some_and(|found| found.holds(&self.guarded));
        let (installed, found) = guard::keep(&spec)?;
        self.guarded = spec;
        Ok((!as_left || !changed && installed == Installed::Written, found))
    }

    /// Brings in what members have changed in the image in force. `None`: only a whole policy
    /// can be published.
    ///
    /// # Errors
    /// A table refuses an entry: some of it may be in force, and only a whole policy puts that
    /// right.
    pub fn amend(&mut self, amendment: &Amendment) -> Result<Option<u32>, EngineError> {
        let amended = match self.publisher.follow(&self.datapath, amendment) {
            Ok(Some(amended)) => amended,
            Ok(None) => return Ok(None),
            Err(refused) => {
                // Nobody knows whose flows that was about.
                self.publisher.judge_again(&self.datapath);
                return Err(refused.into());
            }
        };
        Arc::make_mut(&mut self.image).amend(amendment);
        Ok(Some(self.judge_members_again(&amended)))
    }

    /// Has the flows of whoever has another identity judged again.
    fn judge_members_again(&mut self, amended: &Amended) -> u32 {
        for (domain, address) in &amended.hosts {
            self.touch(domain.0, *address);
        }
        if amended.prefixes {
            self.publisher.judge_again(&self.datapath);
        }
        PolicyWord(self.datapath.settings().policy.load()).generation()
    }

    /// One address has another identity: only its flows are judged again.
    pub fn touch(&self, domain: u16, address: Ipv4Addr) {
        self.datapath.move_epoch(epoch_slot(domain, V4(address.octets())));
    }
}

fn refuse_too_many(places: &Places) -> Result<(), EngineError> {
    places.too_many().map_or(Ok(()), |said| Err(EngineError::TooManyPlaces(said)))
}

/// Takes everything out but the guard against leaks, which is put up if it does not stand; with
/// `guard_too`, that as well. Says what was there.
pub fn detach(config: &Config, guard_too: bool) -> Result<Detached, EngineError> {
    let pins = &config.gateway.pin_path;
    let _claims = (Claim::of(pins)?, Claim::of_guard()?);
    let bare = guarded::spec(config, BTreeSet::new()).without_programs();
    // Asked first: without the privilege everything stays as it is.
    let found = guard::read().map_err(guard_stays)?;
    if guard_too {
        let detached = take_out(pins)?;
        release_neighbours(config)?;
        return Ok(Detached { guard: guard::remove().map_err(guard_stays)?, ..detached });
    }
    let stood = found.is_some_and(|guard| guard.stops_leaks_of(&bare));
    if !stood {
        // Before the programs go, which may be all that keeps pods' packets back.
        guard::install(&bare).map_err(guard_stays)?;
    }
    let detached = take_out(pins)?;
    guard::install(&bare).map_err(guard_stays)?;
    release_neighbours(config)?;
    Ok(Detached { guard: stood, ..detached })
}

/// Hands the neighbours on the interfaces of a configuration, and of the one that was in force last,
/// back to the kernel.
fn release_neighbours(config: &Config) -> Result<(), EngineError> {
    let mut devices = interfaces::devices(config);
    devices.extend(kept::interfaces(&config.gateway.state_dir));
    let numbers: BTreeSet<u32> =
        devices.iter().filter_map(|name| if_nametoindex(name.as_str()).ok()).collect();
    net::release_neighbours(&numbers).map_err(EngineError::Neighbours)
}

/// Takes out programs and tables.
fn take_out(pins: &Path) -> Result<Detached, EngineError> {
    let stays = |(path, source)| EngineError::Stays { path, source };
    let links = attach::detach(pins).map_err(stays)?;
    let mut detached = Detached { links, ..Detached::default() };
    for pin in xdp_abi::names::ALL.map(|name| pins.join(name)) {
        let removed = attach::gone(&pin, std::fs::remove_file(&pin)).map_err(stays)?;
        detached.maps += usize::from(removed);
    }
    for path in layout::leftovers(pins) {
        // What a start that came to nothing has left.
        let _ = std::fs::remove_file(path);
    }
    let _ = std::fs::remove_dir(pins);
    Ok(detached)
}

fn guard_stays(refused: guard::GuardError) -> EngineError {
    use std::error::Error as _;
    let cause = refused.source().and_then(|cause| cause.downcast_ref::<std::io::Error>());
    match cause.and_then(std::io::Error::raw_os_error) {
        Some(libc::EPERM) => EngineError::GuardPrivilege,
        _ => EngineError::GuardStays(refused),
    }
}

/// What `detach` took out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Detached {
    /// Links of programs.
    pub links: usize,
    /// Pinned maps.
    pub maps: usize,
    /// Whether the last guard stood.
    pub guard: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::testing::{self, TWO_CLUSTERS};
    use xdp_abi::names;

    #[test]
    fn detaching_counts_what_it_removed_and_names_what_it_could_not() {
        let pins = std::env::temp_dir().join(format!("sluice-detach-{}", std::process::id()));
        assert_eq!(take_out(&pins).unwrap(), Detached::default(), "nothing is there");
        fs::create_dir(&pins).unwrap();
        for name in ["link-xdp-3", "link-tc-egress-3", names::SLOTS4] {
            fs::write(pins.join(name), "").unwrap();
        }
        let taken = Detached { links: 2, maps: 1, guard: false };
        assert_eq!(take_out(&pins).unwrap(), taken);
        assert!(!pins.exists());
        // What cannot be removed, whatever the reason.
        for name in ["link-xdp-3", names::SLOTS4] {
            fs::create_dir_all(pins.join(name)).unwrap();
            let refused = take_out(&pins).unwrap_err().to_string();
            let said = format!("{} cannot be removed: ", pins.join(name).display());
            assert!(refused.starts_with(&said) && refused.contains("as root"), "{refused}");
            fs::remove_dir_all(&pins).unwrap();
        }
    }

    #[test]
    fn pins_are_looked_for_on_bpffs_before_their_directory_is_made() {
        let pins = std::env::temp_dir().join(format!("sluice-nowhere-{}/pins", std::process::id()));
        let mut config = testing::scene(TWO_CLUSTERS).config;
        config.gateway.pin_path = pins.clone();
        let network = testing::network_of(&config);
        let refused = Engine::start(Arc::new(config), &network, Kept::default());
        assert!(matches!(refused, Err(EngineError::NotBpffs(at)) if at == pins));
        assert!(!pins.parent().unwrap().exists());
    }
}
