//! Where packets come from and where they go: attachments, as the configuration names them and
//! the kernel numbers them.
//!
//! [`Places::of`] is a pure function of the configuration, of the numbers that attachments have
//! ([`Numbers`]), and of what the kernel says of its links and addresses; [`Places::write`] brings the tables to that.

use super::{
    behind::{self, NOBODY, Sources},
    hops, nested,
    numbers::Numbers,
    publish::WaysOut,
    tables::{Datapath, lock, prefix_key},
};
use crate::{
    config::{AttachmentKind, Config, convert},
    net::{Link, NetworkState},
};
use api::value::Prefix4;
use aya::{
    Pod,
    maps::{HashMap as HashTable, LpmTrie, MapData, MapError, lpm_trie::Key},
};
use ipnet::Ipv4Net;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, btree_map::Entry},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Mutex,
};
use xdp_abi::forward::{
    ATTACHED, Attachment, FABRIC, INTERFACES, KIND_CONNECTION, KIND_INTERNET, KIND_SPOKE,
    LINK_ENTRIES, LINK_REDIRECT, LINK_UP, LinkInfo, NO_GLANCE, PLACE_ENTRIES, PORT_PREFIXES, PORTS,
    PortAddress4, PortInfo, ROUTABLE, port,
};
use xdp_abi::session::NETWORK_EPOCH;

/// Which hook serves an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// XDP, in the driver.
    Xdp,
    /// TC.
    Tc,
}

/// An attachment without its interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The attachment's name.
    pub attachment: String,
    /// What there should be.
    pub device: String,
    /// That it is missing, in a sentence.
    pub fault: String,
}

/// What the configuration means on this machine at this moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// Attachments by number.
    pub attachments: BTreeMap<u16, Attachment>,
    /// Interfaces that need programs.
    pub interfaces: BTreeMap<u32, (String, Served)>,
    /// How ways out are numbered in SNAT policies.
    pub ways_out: WaysOut,
    /// The machine's own addresses, and the broadcast addresses of its links.
    pub locals: BTreeSet<Ipv4Addr>,
    locals6: BTreeSet<Ipv6Addr>,
    /// Attachments whose interface is missing. They have no packets.
    pub missing: Vec<Missing>,
    sources: Sources,
    routes: BTreeMap<(u32, Ipv4Net), u16>,
    carries: BTreeMap<(u32, Ipv4Net), u16>,
    links: BTreeMap<u32, LinkInfo>,
    ports: BTreeMap<u32, PortInfo>,
}

impl Places {
    /// Reads the configuration against the kernel's picture. `served` says which hook an
    /// interface gets, `numbers` has every attachment of the configuration. The order in which
    /// the file states attachments makes no difference.
    pub fn of(
        config: &Config,
        network: &NetworkState,
        served: &BTreeMap<String, Served>,
        numbers: &Numbers,
    ) -> Self {
        let domains = convert::domains(&config.gateway);
        let mut routable = BTreeMap::new();
        let by_name: HashMap<&str, &Link> =
            network.links.values().map(|link| (link.name.as_str(), link)).collect();
        let mut places = Self::default();
        let mut behind: BTreeMap<u16, behind::Stated> = BTreeMap::new();
        let numbered: BTreeMap<u16, _> = config
            .gateway
            .attachments
            .iter()
            .filter_map(|stated| Some((numbers.of(&stated.name)?, stated)))
            .collect();
        for (number, stated) in numbered {
            // Ways out by an interface are numbered as the first attachment that it has.
            let interface_class =
                *places.ways_out.interfaces.entry(stated.interface.clone()).or_insert(number);
            let connection_class = if stated.kind == AttachmentKind::Connection {
                places.ways_out.connections.insert(stated.name.clone(), number);
                number
            } else {
                0
            };
            let domain = domains.get(stated.domain.as_str()).map_or(0, |domain| domain.0);
            let mut attachment = Attachment {
                domain,
                kind: match stated.kind {
                    AttachmentKind::Spoke => KIND_SPOKE,
                    AttachmentKind::Connection => KIND_CONNECTION,
                    AttachmentKind::Internet => KIND_INTERNET,
                },
                flags: if domain == 0 { ROUTABLE } else { 0 },
                interface_class,
                connection_class,
                ..Attachment::default()
            };
            if domain == 0 {
                let carries = stated.carries.iter().map(|prefix| prefix.net()).collect();
                routable.insert(number, carries);
            }
            let tag = stated.vlan.map_or(0, |vlan| vlan.get());
            let behind = behind.entry(domain).or_default();
            // Whoever does not say what is behind it says by its routes.
            let is_said = stated.sources.iter().all(|source| *source != Prefix4::ALL);
            let claims = if is_said { &stated.sources } else { &stated.stated_routes };
            for claim in claims {
                behind.entry(claim.net()).or_default();
            }
            match find(&by_name, network, &stated.interface, tag) {
                Ok((parent, routed)) => {
                    attachment.flags |= ATTACHED;
                    attachment.ifindex = routed.ifindex;
                    let is_confined = |address: Ipv4Addr| {
                        let holds = |prefix: &Prefix4| prefix.net().contains(&address);
                        domain == 0
                            && config.gateway.non_routable.iter().any(holds)
                            && !stated.carries.iter().any(holds)
                    };
                    attachment.address = first_address(network, routed.ifindex, is_confined);
                    let hook = served.get(&stated.interface).copied().unwrap_or(Served::Tc);
                    places.interfaces.insert(parent.ifindex, (parent.name.clone(), hook));
                    places.link(parent, routed, tag, hook);
                    let place = port(parent.ifindex, tag);
                    for source in &stated.sources {
                        places.sources.insert((place, source.net()), number);
                    }
                    for claim in claims {
                        behind.entry(claim.net()).or_default().insert(place);
                    }
                    for route in stated.routes() {
                        places.routes.insert((place, route.net()), number);
                    }
                    for carried in &stated.carries {
                        places.carries.insert((u32::from(number), carried.net()), number);
                    }
                }
                Err(fault) => places.missing.push(Missing {
                    attachment: stated.name.clone(),
                    device: stated.device(),
                    fault: format!("attachment `{}`: {fault}", stated.name),
                }),
            }
            places.attachments.insert(number, attachment);
        }
        places.locals = network
            .addresses
            .values()
            .filter_map(|own| match own.address {
                IpAddr::V4(address) => Some([Some(address), broadcast(address, own.prefix_len)]),
                IpAddr::V6(_) => None,
            })
            .flatten()
            .flatten()
            .collect();
        places.locals6 = network
            .addresses
            .values()
            .filter_map(|address| match address.address {
                IpAddr::V6(address) => Some(address),
                IpAddr::V4(_) => None,
            })
            .collect();
        let domain = |number: u16| places.attachments.get(&number).map_or(0, |at| at.domain);
        behind::part(&mut places.sources, &behind, domain);
        // What is nobody's because it is non-routable, or the machine's, leads to no session, and needs
        // no glance.
        places.glances();
        let non_routable: Vec<_> = config.gateway.non_routable.iter().map(|p| p.net()).collect();
        // What several of them cover together is non-routable, as `check` says.
        let non_routable = Ipv4Net::aggregate(&non_routable);
        behind::confine(&mut places.sources, &non_routable, &routable);
        places.own_sources(network);
        places
    }

    /// The machine's addresses on the interface of a pod network are nobody else's sources there. In
    /// the fabric none of its addresses is, which the datapath sees to.
    fn own_sources(&mut self, network: &NetworkState) {
        let places: BTreeSet<(u32, u32)> = (self.sources.iter())
            .filter_map(|((place, _), number)| Some((*place, self.attachments.get(number)?)))
            .filter(|(_, attachment)| attachment.domain != FABRIC)
            .map(|(place, attachment)| (place, attachment.ifindex))
            .collect();
        for own in network.addresses.values() {
            let IpAddr::V4(address) = own.address else { continue };
            for (place, _) in places.iter().filter(|(_, ifindex)| *ifindex == own.ifindex) {
                self.sources.insert((*place, address.into()), NOBODY);
            }
        }
    }

    fn link(&mut self, parent: &Link, routed: &Link, vlan: u16, hook: Served) {
        let up = parent.up() && routed.up();
        let info = LinkInfo {
            parent: parent.ifindex,
            vlan,
            mtu: u16::try_from(routed.mtu).unwrap_or(u16::MAX),
            mac: routed.mac.unwrap_or_default(),
            flags: if up { LINK_UP } else { 0 }
                | if hook == Served::Xdp { LINK_REDIRECT } else { 0 },
        };
        self.links.insert(routed.ifindex, info);
        // Frames come in by the parent, and are looked up there first.
        let mac = parent.mac.unwrap_or_default();
        let mtu = u16::try_from(parent.mtu).unwrap_or(u16::MAX);
        let flags = if parent.up() { info.flags | LINK_UP } else { info.flags & !LINK_UP };
        let of_parent = LinkInfo { vlan: 0, mtu, mac, flags, ..info };
        self.links.entry(parent.ifindex).or_insert(of_parent);
    }

    /// The few prefixes by which an untagged port's packets find their domain at a glance.
    fn glances(&mut self) {
        let mut by_interface: BTreeMap<u32, Vec<(Ipv4Net, u16)>> = BTreeMap::new();
        for ((place, prefix), number) in &self.sources {
            if place & 0xfff == 0 {
                let domain = self.attachments.get(number).map_or(NO_GLANCE, |of| of.domain);
                by_interface.entry(place >> 12).or_default().push((*prefix, domain));
            }
        }
        for (ifindex, prefixes) in by_interface {
            let Some(prefixes) = at_a_glance(prefixes) else { continue };
            let mac = self.links.get(&ifindex).map_or([0; 6], |link| link.mac);
            let prefixes_used = prefixes.len() as u32;
            let mut info = PortInfo { ifindex, prefixes_used, mac, ..PortInfo::default() };
            for (place, (prefix, domain)) in prefixes.into_iter().enumerate() {
                let word = |address: Ipv4Addr| u32::from_ne_bytes(address.octets());
                info.prefixes[place] = [word(prefix.network()), word(prefix.netmask())];
                info.domains[place] = domain;
            }
            // Two interfaces with one place: the second takes the longer way.
            self.ports.entry(ifindex & (PORTS - 1)).or_insert(info);
        }
    }

    /// What has no room in the tables, in words: then nothing of this is to be written.
    pub fn too_many(&self) -> Option<String> {
        let stated = [
            ("sources", self.sources.len(), PLACE_ENTRIES),
            ("routes", self.routes.len(), PLACE_ENTRIES),
            ("carries", self.carries.len(), PLACE_ENTRIES),
            ("addresses of the machine", self.locals.len(), PLACE_ENTRIES),
            ("IPv6 addresses of the machine", self.locals6.len(), PLACE_ENTRIES),
            ("interfaces and VLANs", self.links.len(), LINK_ENTRIES),
        ];
        let (what, need, room) =
            stated.into_iter().find(|(_, need, room)| *need > *room as usize)?;
        Some(format!("there are {need} {what} in all; there is room for {room}"))
    }

    /// What stands in the tables, whoever wrote it.
    pub fn standing(datapath: &Datapath) -> Self {
        let attachments = (0_u16..).zip(datapath.attachments.all());
        let attachments = attachments.filter(|(_, stated)| **stated != Attachment::default());
        let ports = (0..).zip(datapath.ports.all()).filter(|(_, info)| info.ifindex != 0);
        let [sources, routes, carries] = datapath.prefix_tables();
        Self {
            attachments: attachments.map(|(number, stated)| (number, *stated)).collect(),
            ports: ports.map(|(place, info)| (place, *info)).collect(),
            sources,
            routes,
            carries,
            links: lock(&datapath.links).iter().flatten().collect(),
            locals: lock(&datapath.locals).keys().flatten().map(Ipv4Addr::from).collect(),
            locals6: lock(&datapath.locals6).keys().flatten().map(Ipv6Addr::from).collect(),
            ..Self::default()
        }
    }

    /// The same, where a way out by an interface keeps the number that it has in what stands: else
    /// every flow by that interface would be about a change that is not about it.
    #[must_use]
    pub fn with_ways_of(mut self, standing: &Self) -> Self {
        let mut numbers: BTreeMap<u16, u16> = BTreeMap::new();
        let mut taken = BTreeSet::new();
        for (number, attachment) in &self.attachments {
            let stood = standing.attachments.get(number).map_or(0, |stood| stood.interface_class);
            let class = attachment.interface_class;
            if stood != 0 && !numbers.contains_key(&class) && taken.insert(stood) {
                numbers.insert(class, stood);
            }
        }
        for class in self.attachments.values().map(|attachment| attachment.interface_class) {
            if let Entry::Vacant(vacant) = numbers.entry(class) {
                let free = (class..).chain(1..class).find(|number| taken.insert(*number));
                vacant.insert(free.unwrap_or(class));
            }
        }
        let now = |class: &mut u16| *class = numbers.get(class).copied().unwrap_or(*class);
        self.attachments.values_mut().for_each(|attachment| now(&mut attachment.interface_class));
        self.ways_out.interfaces.values_mut().for_each(now);
        self
    }

    /// What holds for packets while a policy that belongs to `next` takes the place of the one that
    /// belongs to these: an address of which both say the same is where it is, one of which they do
    /// not is nobody's, and nothing is carried that either does not carry. So no packet meets the places of one
    /// with the policy of the other.
    #[must_use]
    pub fn between(&self, next: &Self) -> Self {
        let stays = |number: &u16| {
            let stated = self.attachments.get(number);
            *number != NOBODY && stated.is_some() && stated == next.attachments.get(number)
        };
        let both = |old: &PrefixTable, new: &PrefixTable| -> PrefixTable {
            let is_in_both = |(place, number): &(&_, &_)| new.get(*place) == Some(*number);
            let both = old.iter().filter(is_in_both);
            both.filter(|(_, number)| stays(number)).map(|(place, at)| (*place, *at)).collect()
        };
        let parted = |old: &PrefixTable, new: &PrefixTable| {
            let mut parted = both(old, new);
            for place in old.keys().chain(new.keys()) {
                parted.entry(*place).or_insert(NOBODY);
            }
            if parted.len() > PLACE_ENTRIES as usize {
                // Without room for all of them beside one another, whoever is at one of these places waits.
                let at: BTreeSet<u32> = parted
                    .iter()
                    .filter(|(_, at)| **at == NOBODY)
                    .map(|((at, _), _)| *at)
                    .collect();
                parted.retain(|(place, _), _| !at.contains(place));
                parted.extend(at.into_iter().map(|place| ((place, Ipv4Net::default()), NOBODY)));
            }
            parted
        };
        let same = |(place, info): &(&u32, &PortInfo)| next.ports.get(place) == Some(info);
        let locals = self.locals.union(&next.locals).copied().collect();
        let locals6 = self.locals6.union(&next.locals6).copied().collect();
        let between = Self {
            attachments: (self.attachments.iter())
                .filter(|(number, _)| stays(number))
                .map(|(number, stated)| (*number, *stated))
                .collect(),
            sources: parted(&self.sources, &next.sources),
            routes: parted(&self.routes, &next.routes),
            carries: both(&self.carries, &next.carries),
            ports: self.ports.iter().filter(same).map(|(place, info)| (*place, *info)).collect(),
            links: self.links.clone(),
            locals,
            locals6,
            ..Self::default()
        };
        let room = PLACE_ENTRIES as usize;
        let fits = between.locals.len() <= room && between.locals6.len() <= room;
        if fits {
            return between;
        }
        Self { locals: self.locals.clone(), locals6: self.locals6.clone(), ..between }
    }

    /// Brings the tables from `before` to this. If that fails, everything is as it was: what was
    /// written by half would be in the way of whatever comes next.
    pub fn write(&self, datapath: &Datapath, before: &Self) -> Result<(), MapError> {
        let written = self.write_or_restore(datapath, before, || before.prefix_tables());
        if written.is_err() {
            // It had room.
            let _ = before.write_machine(datapath, self);
        }
        written
    }

    /// The same for places that are in force: next hops follow, also if not all of it could be written; a
    /// link that leads outside now is guarded now.
    pub fn follow(&self, datapath: &Datapath, before: &Self) -> Result<(), MapError> {
        let written = self.write(datapath, before);
        hops::relink(datapath, self);
        written
    }

    fn write_or_restore(
        &self,
        datapath: &Datapath,
        before: &Self,
        stood: impl FnOnce() -> PrefixTables,
    ) -> Result<(), MapError> {
        let written = self.write_tables(datapath, before);
        if written.is_err() {
            datapath.restore(&stood());
        }
        // Also of what was written before something failed nothing older is to be remembered.
        datapath.move_epoch(NETWORK_EPOCH);
        written
    }

    fn prefix_tables(&self) -> PrefixTables {
        [self.sources.clone(), self.routes.clone(), self.carries.clone()]
    }

    fn write_tables(&self, datapath: &Datapath, before: &Self) -> Result<(), MapError> {
        prefixes(&datapath.sources, &self.sources, &before.sources)?;
        prefixes(&datapath.routes, &self.routes, &before.routes)?;
        prefixes(&datapath.carries, &self.carries, &before.carries)?;
        self.write_machine(datapath, before)?;
        for place in before.ports.keys().filter(|place| !self.ports.contains_key(place)) {
            datapath.ports.set(*place, &PortInfo::default());
        }
        for (place, info) in &self.ports {
            datapath.ports.set(*place, info);
        }
        for number in before.attachments.keys().filter(|n| !self.attachments.contains_key(n)) {
            datapath.attachments.set(u32::from(*number), &Attachment::default());
        }
        for (number, attachment) in &self.attachments {
            datapath.attachments.set(u32::from(*number), attachment);
        }
        Ok(())
    }

    /// Links, and the machine's own addresses.
    fn write_machine(&self, datapath: &Datapath, before: &Self) -> Result<(), MapError> {
        let links = self.links.iter().map(|(ifindex, info)| (*ifindex, *info)).collect();
        let gone = before.links.keys().filter(|ifindex| !self.links.contains_key(ifindex));
        entries(&datapath.links, links, gone.copied().collect(), LINK_ENTRIES)?;
        let locals = self.locals.iter().map(|address| (address.octets(), 1)).collect();
        let gone = before.locals.difference(&self.locals).map(Ipv4Addr::octets);
        entries(&datapath.locals, locals, gone.collect(), PLACE_ENTRIES)?;
        let locals = self.locals6.iter().map(|address| (address.octets(), 1)).collect();
        let gone = before.locals6.difference(&self.locals6).map(Ipv6Addr::octets);
        entries(&datapath.locals6, locals, gone.collect(), PLACE_ENTRIES)
    }

    /// One attachment behind one link.
    #[cfg(test)]
    pub(super) fn with_link(attachment: Attachment, ifindex: u32, link: LinkInfo) -> Self {
        let links = BTreeMap::from([(ifindex, link)]);
        Self { attachments: BTreeMap::from([(1, attachment)]), links, ..Self::default() }
    }

    /// Whether sessions come and go by the same ways as there.
    pub fn leads_as(&self, other: &Self) -> bool {
        (&self.attachments, &self.links) == (&other.attachments, &other.links)
    }

    /// The L3 interface of an attachment.
    pub fn routed_by(&self, number: u16) -> Option<u32> {
        let attachment = self.attachments.get(&number)?;
        (attachment.flags & ATTACHED != 0).then_some(attachment.ifindex)
    }

    /// The interfaces, those of VLANs too, whose traffic passes one with a program.
    pub fn translating(&self, has_program: impl Fn(u32) -> bool) -> BTreeSet<u32> {
        let passing = self.links.iter().filter(|(_, link)| has_program(link.parent));
        passing.map(|(ifindex, _)| *ifindex).collect()
    }

    /// The same, where only these interfaces take what XDP redirects.
    pub fn redirecting(&self, takes: impl Fn(u32) -> bool) -> Self {
        let mut places = self.clone();
        for link in places.links.values_mut().filter(|link| !takes(link.parent)) {
            link.flags &= !LINK_REDIRECT;
        }
        places
    }

    /// The link behind an L3 interface.
    pub fn link_info(&self, ifindex: u32) -> Option<&LinkInfo> {
        self.links.get(&ifindex)
    }
}

/// As many prefixes as there is room for, the longest first; `None` if they do not fit. Those whose
/// packets take the longer way anyway are taken together, with what lies between them.
fn at_a_glance(prefixes: Vec<(Ipv4Net, u16)>) -> Option<Vec<(Ipv4Net, u16)>> {
    let is_seen = |(_, domain): &(Ipv4Net, u16)| *domain != NO_GLANCE;
    let (mut seen, others): (Vec<_>, Vec<_>) = prefixes.into_iter().partition(is_seen);
    let mut others: Vec<Ipv4Net> = others.into_iter().map(|(prefix, _)| prefix).collect();
    let room = PORT_PREFIXES.checked_sub(seen.len())?;
    while others.len() > room {
        others.sort_unstable();
        // The two neighbours that have most in common; the last one alone cannot be widened.
        let both = |at: usize| common(others[at], others[at + 1]);
        let at = (0..others.len() - 1).max_by_key(|at| both(*at).prefix_len())?;
        let wider = both(at);
        others.retain(|prefix| !wider.contains(prefix));
        others.push(wider);
    }
    seen.extend(others.into_iter().map(|prefix| (prefix, NO_GLANCE)));
    // Of two that are equal the longer way comes first.
    seen.sort_by_key(|(prefix, domain)| {
        (std::cmp::Reverse(prefix.prefix_len()), *domain != NO_GLANCE)
    });
    Some(seen)
}

/// The longest prefix that holds both.
fn common(one: Ipv4Net, other: Ipv4Net) -> Ipv4Net {
    let differ = u32::from(one.network()) ^ u32::from(other.network());
    let length = (differ.leading_zeros() as u8).min(one.prefix_len()).min(other.prefix_len());
    Ipv4Net::new_assert(one.network(), length).trunc()
}

/// The interface that frames are on, and the one that the kernel routes by.
fn find<'a>(
    by_name: &HashMap<&str, &'a Link>,
    network: &'a NetworkState,
    interface: &str,
    vlan: u16,
) -> Result<(&'a Link, &'a Link), String> {
    let Some(parent) = by_name.get(interface) else {
        return Err(format!("there is no interface `{interface}`"));
    };
    // Of a larger one the tables would know the rest only, as which another one has it.
    if parent.ifindex > INTERFACES {
        return Err(format!(
            "`{interface}` has the number {}; expected at most {INTERFACES}: make it anew with \
             `ip link add ... index N`, or in a network namespace of its own",
            parent.ifindex
        ));
    }
    if parent.mac.is_none() {
        return Err(format!(
            "`{interface}` has no hardware address; expected an Ethernet interface, others are not \
             served yet"
        ));
    }
    if vlan == 0 {
        return Ok((parent, parent));
    }
    let device = network
        .links
        .values()
        .find(|link| link.link == Some(parent.ifindex) && link.vlan == Some(vlan));
    match device {
        Some(device) => Ok((parent, device)),
        None => Err(format!("`{interface}` has no device for VLAN {vlan}")),
    }
}

/// The address that stands for all on the link of an address, as the kernel has it.
fn broadcast(address: Ipv4Addr, prefix_len: u8) -> Option<Ipv4Addr> {
    let net = Ipv4Net::new(address, prefix_len).ok()?;
    (prefix_len < 31).then(|| net.broadcast())
}

/// The address that errors are sent from, if there is one that may be seen there.
fn first_address(
    network: &NetworkState,
    ifindex: u32,
    is_confined: impl Fn(Ipv4Addr) -> bool,
) -> [u8; 4] {
    let mut own = network
        .addresses
        .values()
        .filter(|address| address.ifindex == ifindex && !address.secondary)
        .filter_map(|address| match address.address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        });
    own.find(|address| !is_confined(*address)).unwrap_or(Ipv4Addr::UNSPECIFIED).octets()
}

type PrefixTable = BTreeMap<(u32, Ipv4Net), u16>;
/// Sources, routes and carried prefixes.
type PrefixTables = [PrefixTable; 3];
type PrefixMap = Mutex<LpmTrie<MapData, PortAddress4, u32>>;

fn prefix_place((place, prefix): &(u32, Ipv4Net)) -> Key<PortAddress4> {
    let data = PortAddress4 { port: place.to_be_bytes(), address: prefix.network().octets() };
    prefix_key(32, prefix.prefix_len(), data)
}

/// Brings a prefix map from one state to another.
fn prefixes(map: &PrefixMap, wanted: &PrefixTable, before: &PrefixTable) -> Result<(), MapError> {
    let mut map = lock(map);
    for (place, number) in turns(wanted, before, PLACE_ENTRIES as usize) {
        match number {
            Some(number) => map.insert(&prefix_place(&place), u32::from(number), 0)?,
            // It may be gone already: then there is nothing to remove.
            None => drop(map.remove(&prefix_place(&place))),
        }
    }
    Ok(())
}

/// What changes, in an order in which nobody is taken for whom he is neither before nor after. What
/// comes waits for room if it has to; then some are nobody for a moment.
fn turns(wanted: &PrefixTable, before: &PrefixTable, room: usize) -> Vec<nested::Change<u32, u16>> {
    let gone = before.keys().filter(|place| !wanted.contains_key(place));
    let gone: Vec<_> = gone.map(|place| (*place, None)).collect();
    let is_tight = wanted.len() + gone.len() > room;
    let come = wanted.iter().filter(|(place, number)| before.get(place) != Some(number));
    let come = come.map(|(place, number)| (*place, Some(*number)));
    let changes: Vec<_> = gone.into_iter().chain(come).collect();
    if is_tight {
        let stays = |place: &_| wanted.get(place).filter(|_| before.contains_key(place)).copied();
        nested::in_turn_without_room(&changes, stays)
    } else {
        nested::in_turn(&changes, true)
    }
}

/// Brings a hash map with room for so many entries to one state from another. What goes on is there
/// all the time; what comes waits for room if it has to.
fn entries<K: Pod, V: Pod>(
    map: &Mutex<HashTable<MapData, K, V>>,
    wanted: Vec<(K, V)>,
    gone: Vec<K>,
    room: u32,
) -> Result<(), MapError> {
    let mut map = lock(map);
    let make_room = |map: &mut HashTable<MapData, K, V>| {
        gone.iter().for_each(|key| drop(map.remove(key)));
    };
    let is_tight = wanted.len() + gone.len() > room as usize;
    if is_tight {
        make_room(&mut map);
    }
    for (key, value) in wanted {
        map.insert(key, value, 0)?;
    }
    if !is_tight {
        make_room(&mut map);
    }
    Ok(())
}

impl Datapath {
    fn prefix_maps(&self) -> [&PrefixMap; 3] {
        [&self.sources, &self.routes, &self.carries]
    }

    /// Reads what stands in the tables of prefixes.
    fn prefix_tables(&self) -> PrefixTables {
        self.prefix_maps().map(|map| {
            let entries = lock(map);
            let read = entries.iter().flatten().filter_map(|(key, number)| {
                let PortAddress4 { port, address } = key.data();
                let length = key.prefix_len().checked_sub(32)?;
                let prefix = Ipv4Net::new(address.into(), length as u8).ok()?;
                Some(((u32::from_be_bytes(port), prefix), number as u16))
            });
            read.collect()
        })
    }

    /// Brings the tables of prefixes to what stood there, from whatever stands there now.
    fn restore(&self, stood: &PrefixTables) {
        for ((map, stood), now) in
            self.prefix_maps().into_iter().zip(stood).zip(self.prefix_tables())
        {
            // It had room.
            let _ = prefixes(map, stood, &now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::testing::{self, TWO_CLUSTERS};
    use crate::net::Address;

    #[test]
    fn the_order_of_attachments_in_the_file_makes_no_difference() {
        let mut config = testing::scene(TWO_CLUSTERS).config;
        let (network, served) = (testing::network_of(&config), BTreeMap::new());
        let numbers = Numbers::default().with(&config.gateway);
        let before = Places::of(&config, &network, &served, &numbers);
        assert_eq!(before.missing, []);
        assert_eq!(before.attachments.len(), config.gateway.attachments.len());
        config.gateway.attachments.reverse();
        let numbers = numbers.with(&config.gateway);
        assert_eq!(Places::of(&config, &network, &served, &numbers), before);
        // One that leaves takes nobody else's number with it.
        let gone = config.gateway.attachments.pop().unwrap();
        let number = numbers.of(&gone.name).unwrap();
        let places = Places::of(&config, &network, &served, &numbers.with(&config.gateway));
        for (at, attachment) in &before.attachments {
            let expected = (*at != number).then_some(attachment);
            assert_eq!(places.attachments.get(at), expected, "{at}");
        }
    }

    /// Places of a gateway without the attachments of these names, and with another number for a domain.
    fn places_without(gone: &[&str], renumbered: Option<u16>) -> Places {
        let mut config = testing::scene(TWO_CLUSTERS).config;
        let numbers = Numbers::default().with(&config.gateway);
        let network = testing::network_of(&config);
        config.gateway.attachments.retain(|stated| !gone.contains(&stated.name.as_str()));
        if let Some(number) = renumbered {
            config.gateway.domains[0].number = number.try_into().unwrap();
        }
        Places::of(&config, &network, &BTreeMap::new(), &numbers)
    }

    /// The attachment that the tables name for an address at a place.
    fn found(table: &PrefixTable, place: u32, address: Ipv4Addr) -> Option<u16> {
        let around = table.iter().filter(|((at, net), _)| *at == place && net.contains(&address));
        around.max_by_key(|((_, net), _)| net.prefix_len()).map(|(_, number)| *number)
    }

    #[test]
    fn between_two_states_an_address_is_where_both_say_or_nobody_s() {
        let whole = places_without(&[], None);
        for next in [
            places_without(&["transit"], None),
            places_without(&["internet", "red-pods"], None),
            places_without(&[], Some(77)),
            Places::default(),
        ] {
            for (old, new) in [(&whole, &next), (&next, &whole)] {
                let between = old.between(new);
                let says = |places: &Places, number: u16| {
                    let stated = places.attachments.get(&number)?;
                    (number != NOBODY).then_some((number, *stated))
                };
                let mut nets: Vec<_> = old.sources.keys().chain(new.sources.keys()).collect();
                nets.extend(old.routes.keys().chain(new.routes.keys()));
                let mut kept = 0;
                for (place, net) in nets {
                    for address in [net.network(), net.broadcast()] {
                        let tables = |of: fn(&Places) -> &PrefixTable| {
                            [old, new, &between].map(|places| {
                                says(places, found(of(places), *place, address).unwrap_or(NOBODY))
                            })
                        };
                        for [before, after, now] in
                            [tables(|places| &places.sources), tables(|places| &places.routes)]
                        {
                            let both = before.filter(|_| before == after);
                            assert_eq!(now, both, "{address} at {place}");
                            kept += usize::from(now.is_some());
                        }
                    }
                }
                assert_eq!(kept > 0, *old != Places::default() && *new != Places::default());
                let carried = between.carries.keys();
                assert!(carried.clone().all(|at| old.carries.contains_key(at)));
                assert!(carried.clone().all(|at| new.carries.contains_key(at)));
                for (place, info) in &between.ports {
                    let both = [old.ports.get(place), new.ports.get(place)];
                    assert_eq!(both, [Some(info), Some(info)]);
                }
                assert!(between.locals.is_superset(&old.locals));
                assert!(between.locals.is_superset(&new.locals));
            }
        }
    }

    #[test]
    fn too_many_between_two_states_leaves_nobody_where_they_differ() {
        let crowd = |second: u8, alike: u32| {
            let sources = (0..PLACE_ENTRIES - 10).map(|n| {
                let host = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, second, 0, 0)) + n);
                ((port(7, 0), host.into()), 1)
            });
            let alike = (0..alike).map(|n| ((port(9, 0), Ipv4Addr::from(n).into()), 1));
            let attachments =
                BTreeMap::from([(1, Attachment { ifindex: 7, ..Attachment::default() })]);
            Places { attachments, sources: sources.chain(alike).collect(), ..Places::default() }
        };
        let between = crowd(64, 5).between(&crowd(128, 5));
        assert!(between.sources.len() <= PLACE_ENTRIES as usize);
        let at = |place, address: &str| found(&between.sources, place, address.parse().unwrap());
        assert_eq!(at(port(7, 0), "10.64.0.1"), Some(NOBODY));
        assert_eq!(at(port(9, 0), "0.0.0.3"), Some(1), "where nothing changes");
    }

    #[test]
    fn ways_out_keep_their_numbers_whoever_leaves_and_comes() {
        let config = testing::scene(TWO_CLUSTERS).config;
        let network = testing::network_of(&config);
        // Three attachments of one interface, and one of another.
        let of = |names: &[&str], standing: &Places| {
            let mut config = config.clone();
            let one = config.gateway.attachments[0].clone();
            config.gateway.attachments = (names.iter())
                .map(|name| crate::config::Attachment {
                    name: (*name).to_owned(),
                    interface: if name.starts_with('x') { "eth4" } else { "eth3" }.to_owned(),
                    ..one.clone()
                })
                .collect();
            let numbers = ["a", "b", "c", "x", "y"]
                .map(|name| crate::config::Attachment { name: name.to_owned(), ..one.clone() });
            let mut all = config.gateway.clone();
            all.attachments = numbers.into();
            let numbers = Numbers::default().with(&all);
            Places::of(&config, &network, &BTreeMap::new(), &numbers).with_ways_of(standing)
        };
        let mut standing = Places::default();
        for (names, eth3, eth4) in [
            (&["a", "b", "x"][..], Some(1), Some(4)),
            (&["b", "x"], Some(1), Some(4)),
            (&["b", "c", "x"], Some(1), Some(4)),
            (&["c"], Some(1), None),
            (&["a", "c", "x"], Some(1), Some(4)),
            (&["x"], None, Some(4)),
            (&["a", "x"], Some(1), Some(4)),
        ] {
            standing = of(names, &standing);
            let class = |name: &str| standing.ways_out.interfaces.get(name).copied();
            assert_eq!((class("eth3"), class("eth4")), (eth3, eth4), "{names:?}");
            for (number, attachment) in &standing.attachments {
                let expected = if *number == 4 { eth4 } else { eth3 };
                assert_eq!(Some(attachment.interface_class), expected, "{names:?}");
            }
        }
        // Nobody gets the number that another interface goes on with.
        let taken = of(&["b", "x"], &of(&["a", "b", "x"], &Places::default()));
        let others = of(&["a"], &Places::default()).with_ways_of(&taken);
        assert_eq!(others.ways_out.interfaces.get("eth3"), Some(&1));
    }

    #[test]
    fn nobody_speaks_from_the_internet_with_an_address_that_another_leg_routes() {
        let text = TWO_CLUSTERS.replace(", sources: [10.0.0.0/8] }", " }");
        let config = testing::scene(&text).config;
        let (network, served) = (testing::network_of(&config), BTreeMap::new());
        let numbers = Numbers::default().with(&config.gateway);
        let places = Places::of(&config, &network, &served, &numbers);
        let of = |attachment: &str, net: &str| {
            let number = numbers.of(attachment).unwrap();
            let ifindex = places.attachments[&number].ifindex;
            places.sources.get(&(port(ifindex, 0), net.parse().unwrap())).copied()
        };
        assert_eq!(of("internet", "10.0.0.0/8"), Some(behind::NOBODY));
        assert_eq!(of("internet", "0.0.0.0/0"), numbers.of("internet"));
        assert_eq!(of("transit", "0.0.0.0/0"), numbers.of("transit"));
        assert_eq!(of("transit", "10.0.0.0/8"), None);
    }

    #[test]
    fn errors_are_sent_from_an_address_that_may_be_seen() {
        let config = testing::scene(TWO_CLUSTERS).config;
        let mut network = testing::network_of(&config);
        let numbers = Numbers::default().with(&config.gateway);
        let number = numbers.of("internet").unwrap();
        let of = |network: &NetworkState| {
            let places = Places::of(&config, network, &BTreeMap::new(), &numbers);
            let attachment = places.attachments[&number];
            (attachment.ifindex, Ipv4Addr::from(attachment.address))
        };
        let (ifindex, usual) = of(&network);
        let address: IpAddr = "100.64.0.1".parse().unwrap();
        let own = Address { ifindex, address, prefix_len: 24, scope: 0, secondary: false };
        network.addresses.insert((ifindex, address, 24), own);
        assert_eq!(of(&network).1, usual);
        network.addresses.retain(|_, own| own.ifindex != ifindex || own.address == address);
        assert!(of(&network).1.is_unspecified());
    }

    #[test]
    fn what_takes_the_longer_way_is_taken_together_till_it_fits() {
        let glance = |texts: &[(&str, u16)]| {
            let read = |(net, domain): &(&str, u16)| (net.parse().unwrap(), *domain);
            let prefixes = at_a_glance(texts.iter().map(read).collect())?;
            Some(prefixes.iter().map(|(p, d)| format!("{p} {d}")).collect::<Vec<_>>().join(", "))
        };
        let far = NO_GLANCE;
        for (prefixes, expected) in [
            (vec![("0.0.0.0/0", 0), ("10.1.0.0/16", far)], Some("10.1.0.0/16 65535, 0.0.0.0/0 0")),
            (
                vec![
                    ("0.0.0.0/0", 0),
                    ("10.1.0.0/16", far),
                    ("10.2.0.0/16", far),
                    ("192.0.2.0/24", far),
                ],
                Some("192.0.2.0/24 65535, 10.0.0.0/14 65535, 0.0.0.0/0 0"),
            ),
            (
                vec![
                    ("10.0.0.0/14", 0),
                    ("0.0.0.0/0", 0),
                    ("10.1.0.0/16", far),
                    ("10.2.0.0/16", far),
                ],
                Some("10.0.0.0/14 65535, 10.0.0.0/14 0, 0.0.0.0/0 0"),
            ),
            (
                vec![("10.0.0.0/8", 1), ("10.1.0.0/16", 2), ("0.0.0.0/0", 0), ("9.0.0.0/8", far)],
                None,
            ),
            (vec![("10.0.0.0/8", 1), ("10.1.0.0/16", 2), ("0.0.0.0/0", 0), ("9.0.0.0/8", 4)], None),
        ] {
            assert_eq!(glance(&prefixes).as_deref(), expected, "{prefixes:?}");
        }
    }

    #[test]
    fn a_source_that_is_widened_or_narrowed_lets_nobody_else_through() {
        let table = |texts: &[(&str, u16)]| -> PrefixTable {
            texts.iter().map(|(net, number)| ((7, net.parse().unwrap()), *number)).collect()
        };
        let narrow = table(&[("203.0.113.0/24", 1)]);
        let wide = table(&[("0.0.0.0/0", 1), ("10.31.0.0/16", NOBODY), ("10.64.0.0/10", NOBODY)]);
        let less = table(&[("0.0.0.0/0", 1), ("10.31.0.0/16", NOBODY), ("10.128.0.0/9", NOBODY)]);
        let seen = |table: &PrefixTable, address: &str| {
            let address: Ipv4Addr = address.parse().unwrap();
            let around = table.iter().filter(|((_, net), _)| net.contains(&address));
            let longest = around.max_by_key(|((_, net), _)| net.prefix_len());
            longest.map_or(NOBODY, |(_, number)| *number)
        };
        for (before, wanted, room) in [
            (&narrow, &wide, 8),
            (&narrow, &wide, 3),
            (&wide, &narrow, 8),
            (&wide, &narrow, 3),
            (&wide, &less, 8),
            (&wide, &less, 3), // what stays is away while there is no room for what is within it
        ] {
            let mut table = before.clone();
            for (place, number) in turns(wanted, before, room) {
                match number {
                    Some(number) => table.insert(place, number),
                    None => table.remove(&place),
                };
                assert!(table.len() <= room, "{table:?}");
                let forged = seen(&table, "10.31.99.1");
                assert_eq!(forged, NOBODY, "{table:?} on the way from {before:?} to {wanted:?}");
                let gone = seen(&table, "10.64.9.9");
                let may_be = [seen(before, "10.64.9.9"), seen(wanted, "10.64.9.9"), NOBODY];
                assert!(
                    may_be.contains(&gone),
                    "{table:?} on the way from {before:?} to {wanted:?}"
                );
            }
            assert_eq!(&table, wanted);
        }
    }

    #[test]
    fn an_interface_whose_number_would_be_taken_for_another_s_is_not_served() {
        let config = testing::scene(TWO_CLUSTERS).config;
        let numbers = Numbers::default().with(&config.gateway);
        for (ifindex, served) in [(INTERFACES, true), (INTERFACES + 1, false), (1 << 20 | 4, false)]
        {
            let mut network = testing::network_of(&config);
            let link = network.links.remove(&4).unwrap();
            network.links.insert(ifindex, Link { ifindex, ..link });
            let places = Places::of(&config, &network, &BTreeMap::new(), &numbers);
            assert_eq!(places.interfaces.contains_key(&ifindex), served, "{ifindex}");
            let said: Vec<&str> = places.missing.iter().map(|one| one.fault.as_str()).collect();
            let expected =
                format!("attachment `internet`: `eth4` has the number {ifindex}; expect");
            assert_eq!(said.iter().any(|said| said.starts_with(&expected)), !served, "{said:?}");
        }
    }

    #[test]
    fn what_leaves_by_a_vlan_passes_the_program_of_its_parent() {
        let link = |parent, vlan| LinkInfo { parent, vlan, ..LinkInfo::default() };
        let links = [(3, link(3, 0)), (5, link(3, 100)), (7, link(7, 0))].into();
        let places = Places { links, ..Places::default() };
        assert_eq!(places.translating(|ifindex| ifindex == 3), [3, 5].into());
        assert_eq!(places.translating(|ifindex| ifindex == 5), BTreeSet::new());
    }

    #[test]
    fn the_machine_s_addresses_in_a_pod_network_are_nobody_else_s_sources_there() {
        let config = testing::scene(TWO_CLUSTERS).config;
        let mut network = testing::network_of(&config);
        let numbers = Numbers::default().with(&config.gateway);
        // The first of eth2, which pods of eth1 may have; a second one of both; one of the fabric.
        for (ifindex, address) in
            [(2, "100.64.9.1"), (1, "100.64.9.2"), (2, "100.64.9.2"), (3, "10.9.9.9")]
        {
            let address: IpAddr = address.parse().unwrap();
            let own = Address { ifindex, address, prefix_len: 32, scope: 0, secondary: true };
            network.addresses.insert((ifindex, address, 32), own);
        }
        let places = Places::of(&config, &network, &BTreeMap::new(), &numbers);
        let is_nobody_s = |ifindex, address: &str| {
            let address: Ipv4Addr = address.parse().unwrap();
            places.sources.get(&(port(ifindex, 0), address.into())) == Some(&NOBODY)
        };
        for (ifindex, address, expected) in [
            (1, "100.64.9.1", false),
            (2, "100.64.9.1", true),
            (1, "100.64.9.2", true),
            (2, "100.64.9.2", true),
            (3, "10.9.9.9", false),
            (1, "100.64.9.3", false),
        ] {
            assert_eq!(is_nobody_s(ifindex, address), expected, "{address} on {ifindex}");
        }
        // However many they are, the established path goes by the few prefixes that are stated.
        assert_eq!(places.ports[&2].prefixes_used, 1);
    }

    #[test]
    fn the_machine_s_own_are_its_addresses_and_the_broadcast_of_its_links() {
        let config = testing::scene(TWO_CLUSTERS).config;
        let mut network = testing::network_of(&config);
        for (address, prefix_len) in
            [("10.1.2.3", 22), ("192.0.2.4", 31), ("192.0.2.9", 32), ("::1", 128)]
        {
            let address: IpAddr = address.parse().unwrap();
            let own = Address { ifindex: 1, address, prefix_len, scope: 0, secondary: false };
            network.addresses.insert((1, address, prefix_len), own);
        }
        let numbers = Numbers::default().with(&config.gateway);
        let places = Places::of(&config, &network, &BTreeMap::new(), &numbers);
        let expected = ["10.1.2.3", "10.1.3.255", "192.0.2.4", "192.0.2.9"];
        assert_eq!(places.locals, expected.map(|address| address.parse().unwrap()).into());
    }
}
