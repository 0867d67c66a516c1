//! Gateways out of readable lines, and frames in and out of them.
//!
//! ```text
//! link 2 [vlan 7 of 1] [mtu 1400] [down] [no-redirect]
//! attach pods spoke domain 1 on 2 address 100.64.0.1 sources 100.64.0.0/16
//! attach net internet domain 0 on 3 address 203.0.113.1 routable routes 0.0.0.0/0
//! route 0.0.0.0/0 on 3 via 203.0.113.254 [mtu 1400]
//! neighbour 203.0.113.254 on 3 unresolved
//! local 203.0.113.1
//! identity pods 1 100.64.0.0/16
//! permit pods -> any tcp/443 log mark 7
//! default deny
//! snat pods -> any to 203.0.113.1 ports 1024-65535 interface 3
//! ```
//!
//! Attachments, rules, SNAT policies are numbered from one in the order of their lines.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

pub mod wire;

use std::collections::HashMap;
use xdp::{
    address::V4,
    memory::{Gateway, Memory, MemoryFrame, Output, Policy, Prefix, RouteEntry, Sizes, rule_set},
    packet::{ICMP, TCP, UDP},
    pipeline::{Fate, Hook},
    policy::class_index,
    table,
    tables::Tables,
};
use xdp_abi::{
    forward::{
        ATTACHED, Attachment, KIND_CONNECTION, KIND_INTERNET, KIND_SPOKE, LINK_REDIRECT, LINK_UP,
        LinkInfo, PORT_PREFIXES, PortInfo, ROUTABLE, port,
    },
    policy::{
        ACTION_DENY, ACTION_PERMIT, ACTION_REJECT, CLASS_TABLE, IdentityRef, LOG_END, LOG_START,
        PoolAddress, Rule, Snat, SnatBits,
    },
    reason::Reason,
    session::{Class, State},
};

pub use wire::*;

/// A second, in ticks.
pub const SECOND: u32 = 16;
/// When tests begin: not at zero, and close enough to the end that the clock wraps in a day.
pub const START: u32 = u32::MAX - 3_600 * SECOND;

/// Two clusters with the same addresses, a transit connection, the internet.
pub const TWO_CLUSTERS: &str = "
    link 2
    link 3
    link 4
    link 5
    attach red spoke domain 1 on 2 address 100.64.255.1 sources 100.64.0.0/16
    attach blue spoke domain 2 on 3 address 100.64.255.1 sources 100.64.0.0/16
    attach transit connection domain 0 on 4 address 10.0.0.1 routable sources 10.0.0.0/8 routes 10.0.0.0/8
    attach net internet domain 0 on 5 address 203.0.113.1 routable sources 0.0.0.0/0 routes 0.0.0.0/0
    route 0.0.0.0/0 on 5 via 203.0.113.254
    route 10.0.0.0/8 on 4 via 10.0.0.254
    identity red 1 100.64.0.0/16
    identity blue 2 100.64.0.0/16
    identity servers 0 198.51.100.0/24
    identity world 0 0.0.0.0/0
    snat red -> any to 203.0.113.7
    snat blue -> any to 203.0.113.7
";

#[derive(Clone, Default)]
struct RuleLine {
    from: String,
    to: String,
    service: String,
    rule: Rule,
}

/// Name, what it is, sources, routes, carried prefixes, interface.
type AttachLine = (String, Attachment, Vec<Prefix>, Vec<Prefix>, Vec<Prefix>, u32);

#[derive(Clone, Default)]
struct SnatLine {
    from: String,
    to: String,
    addresses: Vec<V4>,
    ports: Vec<(u16, u16)>,
    policy: Snat,
}

/// The lines, read.
#[derive(Clone, Default)]
pub struct Scene {
    links: Vec<(u32, LinkInfo)>,
    attachments: Vec<AttachLine>,
    routes: Vec<RouteEntry>,
    neighbours: Vec<(u32, V4, Option<[u8; 6]>)>,
    locals: Vec<V4>,
    identities: Vec<(String, u16, Vec<Prefix>)>,
    rules: Vec<RuleLine>,
    snats: Vec<SnatLine>,
    default_action: u8,
    default_log: u8,
}

pub fn v4(text: &str) -> V4 {
    V4(text.parse::<std::net::Ipv4Addr>().unwrap_or_else(|_| panic!("address {text}")).octets())
}

pub fn prefix(text: &str) -> Prefix {
    let (address, bits) = text.split_once('/').unwrap_or((text, "32"));
    Prefix { network: v4(address), bits: bits.parse().unwrap() }
}

pub fn mac_of(ifindex: u32) -> [u8; 6] {
    [0x02, 0, 0, 0, 0, ifindex as u8]
}

fn prefixes(text: &str) -> Vec<Prefix> {
    text.split(',').map(prefix).collect()
}

fn range(text: &str) -> (u16, u16) {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    (first.parse().unwrap(), last.parse().unwrap())
}

impl Scene {
    pub fn read(text: &str) -> Self {
        let mut scene = Self { default_action: ACTION_DENY, ..Self::default() };
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let words: Vec<&str> = line.split_whitespace().collect();
            scene.line(&words);
        }
        scene
    }

    fn line(&mut self, words: &[&str]) {
        // The word after a keyword.
        let after = |key: &str| words.iter().position(|word| *word == key).map(|at| words[at + 1]);
        let has = |key: &str| words.contains(&key);
        let number = |key: &str| after(key).map(|text| text.parse::<u32>().unwrap());
        match words[0] {
            "link" => {
                let ifindex: u32 = words[1].parse().unwrap();
                let parent = number("of").unwrap_or(ifindex);
                let mut flags = 0;
                if !has("down") {
                    flags |= LINK_UP;
                }
                if !has("no-redirect") {
                    flags |= LINK_REDIRECT;
                }
                let info = LinkInfo {
                    parent,
                    vlan: number("vlan").unwrap_or(0) as u16,
                    mtu: number("mtu").unwrap_or(1500) as u16,
                    mac: mac_of(parent),
                    flags,
                };
                self.links.push((ifindex, info));
            }
            "attach" => {
                let ifindex = number("on").unwrap();
                let kind = match words[2] {
                    "spoke" => KIND_SPOKE,
                    "connection" => KIND_CONNECTION,
                    "internet" => KIND_INTERNET,
                    other => panic!("kind {other}"),
                };
                let flags = if has("routable") { ATTACHED | ROUTABLE } else { ATTACHED };
                let attachment = Attachment {
                    domain: number("domain").unwrap() as u16,
                    kind,
                    flags,
                    ifindex,
                    address: v4(after("address").unwrap()).0,
                    interface_class: ifindex as u16,
                    connection_class: if kind == KIND_CONNECTION {
                        self.attachments.len() as u16 + 1
                    } else {
                        0
                    },
                };
                let list = |key| after(key).map(prefixes).unwrap_or_default();
                let (sources, mut routes) = (list("sources"), list("routes"));
                if kind == KIND_SPOKE && routes.is_empty() {
                    routes.clone_from(&sources);
                }
                let name = words[1].to_owned();
                let entry = (name, attachment, sources, routes, list("carries"), ifindex);
                self.attachments.push(entry);
            }
            "route" => self.routes.push(RouteEntry {
                to: prefix(words[1]),
                ifindex: number("on").unwrap(),
                gateway: after("via").map(v4),
                mtu: number("mtu").map(|mtu| mtu as u16),
            }),
            "neighbour" => {
                assert!(has("unresolved"));
                self.neighbours.push((number("on").unwrap(), v4(words[1]), None));
            }
            "local" => self.locals.push(v4(words[1])),
            "identity" => {
                let domain = words[2].parse().unwrap();
                self.identities.push((words[1].to_owned(), domain, prefixes(words[3])));
            }
            "default" => {
                self.default_action = action(words[1]);
                self.default_log = if has("log") { LOG_START | LOG_END } else { 0 };
            }
            "permit" | "deny" | "reject" => {
                assert_eq!(words[2], "->");
                let id = self.rules.len() as u32 + 1;
                self.rules.push(RuleLine {
                    from: words[1].to_owned(),
                    to: words[3].to_owned(),
                    service: words[4].to_owned(),
                    rule: Rule {
                        id,
                        counter: id,
                        action: action(words[0]),
                        log: if has("log") { LOG_START | LOG_END } else { 0 },
                        monitor: has("monitor") as u8,
                        mark: number("mark").unwrap_or(0) as u16,
                        ..Rule::default()
                    },
                });
            }
            "snat" => {
                assert_eq!(words[2], "->");
                let addresses = match after("to").unwrap() {
                    "none" => Vec::new(),
                    list => list.split(',').map(v4).collect(),
                };
                let ports = after("ports")
                    .map_or(vec![(1024, 65_535)], |list| list.split(',').map(range).collect());
                let connection = after("connection").map_or(0, |name| {
                    self.attachments.iter().position(|a| a.0 == name).unwrap() as u16 + 1
                });
                let protocol = match after("protocol") {
                    Some("tcp") => TCP as u16,
                    Some("udp") => UDP as u16,
                    _ => 256,
                };
                let (first, last) = after("destination-port").map_or((0, u16::MAX), range);
                self.snats.push(SnatLine {
                    from: words[1].to_owned(),
                    to: words[3].to_owned(),
                    addresses,
                    ports,
                    policy: Snat {
                        id: self.snats.len() as u32 + 1,
                        protocol,
                        mark: number("mark").unwrap_or(0) as u16,
                        source_ports: [0, u16::MAX],
                        destination_ports: [first, last],
                        interface_class: number("interface").unwrap_or(0) as u16,
                        connection_class: connection,
                        pool: 0,
                        addresses: 0,
                    },
                });
            }
            other => panic!("line {other}"),
        }
    }

    /// Replaces every rule.
    pub fn rules(mut self, text: &str) -> Self {
        self.rules.clear();
        self.and(text)
    }

    /// Replaces every SNAT policy.
    pub fn snats(mut self, text: &str) -> Self {
        self.snats.clear();
        self.and(text)
    }

    /// Adds lines.
    pub fn and(mut self, text: &str) -> Self {
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            self.line(&line.split_whitespace().collect::<Vec<_>>());
        }
        self
    }

    pub fn build(&self) -> Lab {
        self.build_with(Sizes::default(), 1)
    }

    pub fn build_with(&self, sizes: Sizes, seed: u64) -> Lab {
        let mut memory = Memory::new(sizes, seed);
        memory.set_non_routable(&[prefix("100.64.0.0/10")]);
        for (ifindex, link) in &self.links {
            memory.set_link(*ifindex, *link);
        }
        let mut glances: HashMap<u32, Vec<(Prefix, u16)>> = HashMap::new();
        for (n, (_, attachment, sources, routes, carries, ifindex)) in
            self.attachments.iter().enumerate()
        {
            let number = n as u16 + 1;
            memory.set_attachment(number, *attachment);
            let link = self.links.iter().find(|(i, _)| i == ifindex).unwrap().1;
            let place = port(link.parent, link.vlan);
            for prefix in sources {
                memory.add_source(place, *prefix, number);
                if link.vlan == 0 {
                    let of_port = glances.entry(link.parent).or_default();
                    of_port.push((*prefix, attachment.domain));
                }
            }
            for prefix in routes {
                memory.add_route_ahead(place, *prefix, number);
            }
            for prefix in carries {
                memory.add_carried(number, *prefix);
            }
        }
        for (ifindex, mut of_port) in glances {
            of_port.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.bits));
            if of_port.len() > PORT_PREFIXES {
                continue;
            }
            let mut info =
                PortInfo { ifindex, prefixes_used: of_port.len() as u32, ..PortInfo::default() };
            info.mac = mac_of(ifindex);
            for (n, (prefix, domain)) in of_port.into_iter().enumerate() {
                let mask = u32::from_ne_bytes(prefix.mask().to_be_bytes());
                info.prefixes[n] = [u32::from_ne_bytes(prefix.network.0) & mask, mask];
                info.domains[n] = domain;
            }
            memory.set_glance(info);
        }
        for route in &self.routes {
            memory.add_route(*route);
        }
        for (ifindex, address, mac) in &self.neighbours {
            memory.set_neighbour(*ifindex, *address, *mac);
        }
        for address in &self.locals {
            memory.add_local(*address);
        }
        // The machine's one global IPv6 address: 2002:101:…
        memory.add_local6([0x20, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]);
        let policy = self.policy(&mut memory);
        memory.publish(policy);
        Lab { gateway: Gateway { tables: memory, hook: Hook::Tc }, now: START }
    }

    /// The policy of the lines; port ranges are entered into `memory`.
    pub fn policy(&self, memory: &mut Memory) -> Policy {
        let mut policy = Policy {
            default_action: self.default_action,
            default_log: self.default_log,
            ..Policy::default()
        };
        // Index 0 is whoever nobody knows.
        let names: Vec<&str> = std::iter::once("unknown")
            .chain(self.identities.iter().map(|(name, ..)| name.as_str()))
            .collect();
        for (n, (_, domain, prefixes)) in self.identities.iter().enumerate() {
            let index = n as u32 + 1;
            for prefix in prefixes {
                policy.prefixes.push((*domain, *prefix, IdentityRef { index, id: 100 + index }));
            }
        }
        let is_meant = |list: &str, name: &str| list == "any" || list.split(',').any(|n| n == name);
        let bits_where = |matches: &dyn Fn(&RuleLine) -> bool| {
            let bits: Vec<u32> =
                (0u32..).zip(&self.rules).filter(|(_, r)| matches(r)).map(|(b, _)| b).collect();
            rule_set(&bits)
        };
        policy.source_rules =
            names.iter().map(|name| bits_where(&|r| is_meant(&r.from, name))).collect();
        policy.destination_rules =
            names.iter().map(|name| bits_where(&|r| is_meant(&r.to, name))).collect();
        policy.monitors = bits_where(&|r| r.rule.monitor != 0);
        policy.rules = self.rules.iter().map(|line| line.rule).collect();

        // Classes: ports that the same rules admit; the rules of a place as a mask.
        assert!(self.rules.len() <= 64);
        let mut masks = vec![0u64; policy.classes.len()];
        for (bit, line) in self.rules.iter().enumerate() {
            for mask in &mut masks[admitted(&line.service)] {
                *mask |= 1 << bit;
            }
        }
        let mut classes: Vec<u64> = Vec::new();
        for (index, mask) in masks.into_iter().enumerate() {
            let known = classes.iter().position(|known| *known == mask);
            policy.classes[index] = known.unwrap_or_else(|| {
                classes.push(mask);
                classes.len() - 1
            }) as u16;
        }
        let bits_of = |mask: u64| (0..64).filter(|bit| mask >> bit & 1 != 0).collect::<Vec<u32>>();
        policy.class_rules = classes.iter().map(|mask| rule_set(&bits_of(*mask))).collect();

        for line in &self.snats {
            let lendable = memory.add_lendable(line.ports.iter().map(|(f, l)| *f..=*l));
            let mut snat = line.policy;
            snat.pool = policy.pools.len() as u16;
            snat.addresses = line.addresses.len() as u16;
            for address in &line.addresses {
                policy.pools.push(PoolAddress { address: address.0, lendable });
                policy.outside.insert(*address);
            }
            policy.snat.push(snat);
        }
        policy.snat_bits = names
            .iter()
            .map(|name| {
                let mut bits = SnatBits::default();
                for (n, line) in self.snats.iter().enumerate() {
                    if is_meant(&line.from, name) {
                        bits.source[n >> 6] |= 1 << (n & 63);
                    }
                    if is_meant(&line.to, name) {
                        bits.destination[n >> 6] |= 1 << (n & 63);
                    }
                }
                bits
            })
            .collect();
        policy
    }
}

fn action(word: &str) -> u8 {
    match word {
        "permit" => ACTION_PERMIT,
        "deny" => ACTION_DENY,
        "reject" => ACTION_REJECT,
        other => panic!("action {other}"),
    }
}

/// The places in the class table that `tcp/443`, `udp/1-100`, `tcp`, `icmp`, `all` admits.
fn admitted(service: &str) -> std::ops::Range<usize> {
    let (protocol, ports) = service.split_once('/').unwrap_or((service, "0-65535"));
    let (first, last) = range(ports);
    let place = |protocol, port: u16| class_index(protocol, port.to_be_bytes()) as usize;
    match protocol {
        "all" => 0..CLASS_TABLE as usize,
        "tcp" => place(TCP, first)..place(TCP, last) + 1,
        "udp" => place(UDP, first)..place(UDP, last) + 1,
        "icmp" => place(ICMP, 0)..place(ICMP, 0) + 1,
        other => panic!("service {other}"),
    }
}

/// A gateway and its clock.
pub struct Lab {
    pub gateway: Gateway,
    pub now: u32,
}

impl Lab {
    /// Two clusters behind one gateway, with these rules.
    pub fn with_rules(rules: &str) -> Self {
        Scene::read(TWO_CLUSTERS).and(rules).build()
    }

    pub fn tables(&self) -> &Memory {
        &self.gateway.tables
    }

    /// A frame into an interface.
    pub fn send(&self, ifindex: u32, frame: &[u8]) -> Output {
        let framed = MemoryFrame::new(wire::sent_to(ifindex, frame));
        self.gateway.process(ifindex, framed, self.now)
    }

    /// The same where it must come out somewhere; the frame is checked.
    pub fn forward(&self, ifindex: u32, frame: &[u8]) -> (u32, Vec<u8>) {
        let output = self.send(ifindex, frame);
        assert!(matches!(output.fate, Fate::Transmit(..)), "{:?} for {}", output.fate, tell(frame));
        let bytes = output.frame.bytes;
        assert_sound(&bytes);
        (output.egress.unwrap(), bytes)
    }

    /// The same where it must be dropped.
    pub fn dropped(&self, ifindex: u32, frame: &[u8]) -> Reason {
        match self.send(ifindex, frame).fate {
            Fate::Drop(reason) => reason,
            other => panic!("{other:?} for {}", tell(frame)),
        }
    }

    /// The same where it must be dropped, whether its sender is told or not.
    pub fn refused(&self, ifindex: u32, frame: &[u8]) -> Reason {
        match self.send(ifindex, frame).fate {
            Fate::Drop(reason) | Fate::Answered(reason) | Fate::Told(reason, _) => reason,
            other => panic!("{other:?} for {}", tell(frame)),
        }
    }

    /// The same where it must be answered.
    pub fn answered(&self, ifindex: u32, frame: &[u8]) -> (Reason, Vec<u8>) {
        let output = self.send(ifindex, frame);
        let Fate::Answered(reason) = output.fate else {
            panic!("{:?} for {}", output.fate, tell(frame));
        };
        assert_eq!(output.egress, Some(ifindex));
        assert_sound(&output.frame.bytes);
        (reason, output.frame.bytes)
    }

    /// The same where whom it was for must be told instead; the frame is checked.
    pub fn told(&self, ifindex: u32, frame: &[u8]) -> (Reason, u32, Vec<u8>) {
        let output = self.send(ifindex, frame);
        let Fate::Told(reason, hop) = output.fate else {
            panic!("{:?} for {}", output.fate, tell(frame));
        };
        assert_sound(&output.frame.bytes);
        (reason, hop.ifindex(), output.frame.bytes)
    }

    pub fn pass_seconds(&mut self, seconds: u32) {
        self.now = self.now.wrapping_add(seconds * SECOND);
    }

    pub fn sweep(&self) {
        self.gateway.sweep(self.now);
    }

    pub fn publish(&mut self, scene: &Scene) {
        let policy = scene.policy(&mut self.gateway.tables);
        self.gateway.tables.publish(policy);
    }

    /// Keys of live entries that packets may match.
    pub fn live(&self) -> Vec<(xdp::address::Key<V4>, bool)> {
        use xdp::address::{Address, Entry};
        self.tables()
            .slots()
            .iter()
            .filter(|entry| {
                let meta = entry.load_meta();
                meta.is(State::Live) && !matches!(meta.class(), Class::Resting)
            })
            .map(|entry| (V4::unpack(&entry.key()), entry.load_link().is_reply()))
            .collect()
    }

    /// How many sessions live; every one with both halves, each found by its key, no key twice.
    pub fn sessions(&self) -> usize {
        use xdp::address::{Address, Entry};
        let mut records: HashMap<u32, (usize, usize)> = HashMap::new();
        let mut keys = std::collections::HashSet::new();
        for (n, entry) in self.tables().slots().iter().enumerate() {
            let meta = entry.load_meta();
            if !meta.is(State::Live) {
                assert!(meta.is(State::Free), "slot {n} is left in {meta:?}");
                continue;
            }
            let key = entry.key();
            assert!(keys.insert(key), "{:?} stands twice", V4::unpack(&key));
            assert_eq!(table::find(self.tables(), &key).map(|f| f.index), Some(n as u32));
            let link = entry.load_link();
            let halves = records.entry(link.record()).or_default();
            if link.is_reply() {
                halves.1 += 1
            } else {
                halves.0 += 1
            };
        }
        for (record, halves) in &records {
            assert_eq!(*halves, (1, 1), "record {record} has not both halves");
        }
        self.live().len() / 2
    }

    /// received = sum of what became of it; begun - ended = live.
    pub fn assert_books(&self) {
        let c = self.tables().counters();
        let drops: u64 = c.drops.iter().flatten().sum();
        assert_eq!(
            c.received.packets,
            c.forwarded[0].packets
                + c.forwarded[1].packets
                + c.passed.packets
                + c.punted.packets
                + drops,
            "{c:?}"
        );
        assert!(c.answered <= drops);
        assert_eq!(c.sessions_begun - c.sessions_ended, self.sessions() as u64);
    }

    pub fn drops(&self, reason: Reason) -> u64 {
        self.tables().counters().drops.iter().map(|by| by[reason as usize]).sum()
    }

    pub fn leaks_stopped(&self) -> u64 {
        self.tables().counters().leaks_stopped
    }

    pub fn port_steps_max(&self) -> u64 {
        self.tables().shared().port_steps_max.load()
    }
}
