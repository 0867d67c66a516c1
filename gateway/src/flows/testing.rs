//! A gateway without a kernel, out of a configuration file: the core's tables in memory, filled
//! as the daemon fills the kernel's, and packets through them.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use policy_compiler::{Action, Egress, Log, Protocol, SnatAction};
use xdp::address::V4;
use xdp::memory::{Gateway, Memory, MemoryFrame, Policy, Prefix, RouteEntry, Sizes, rule_set};
use xdp::pipeline::{Fate, Hook};
use xdp::session::Ended;
use xdp::tables::Tables;
use xdp_abi::count::{Counters, RuleCount};
use xdp_abi::event::ENDED_CLEARED;
use xdp_abi::forward::{
    ATTACHED, Attachment, KIND_CONNECTION, KIND_INTERNET, KIND_SPOKE, LINK_REDIRECT, LINK_UP,
    LinkInfo, ROUTABLE, port,
};
use xdp_abi::policy::{
    ACTION_DENY, ACTION_PERMIT, ACTION_REJECT, CLASS_OTHER, CLASS_TCP, CLASS_UDP, IdentityRef,
    LOG_END, LOG_START, PoolAddress, Rule, Snat, SnatBits,
};

use super::live::Live;
use super::session::{SessionView, all_slots, sessions};
use super::{Book, Directories, Directory};
use crate::config::{AttachmentKind, Config, convert};
use crate::datapath::behind::{self, Sources};
use crate::datapath::numbers::Numbers;
use crate::datapath::object::Loaded;
use crate::net::NetworkState;
use crate::net::testing::link;
use crate::serve::InForce;

/// A second, in ticks.
pub(crate) const SECOND: u32 = 16;
/// When scenes begin, in seconds of the monotonic clock.
const BEGIN: u32 = 1_000;

/// Two clusters with the same addresses, a transit connection, the internet.
pub(crate) const TWO_CLUSTERS: &str = r#"
gateway:
  name: gw-test
  domains: [{ name: red, number: 1 }, { name: blue, number: 2 }]
  attachments:
    - { name: red-pods, interface: eth1, kind: spoke, domain: red, sources: [100.64.0.0/16] }
    - { name: blue-pods, interface: eth2, kind: spoke, domain: blue, sources: [100.64.0.0/16] }
    - { name: transit, interface: eth3, kind: connection, routes: [10.0.0.0/8], sources: [10.0.0.0/8] }
    - { name: internet, interface: eth4, kind: internet }
documents:
  - kind: Endpoint
    name: shop/api-1
    spec: { type: pod, domain: red, addresses: [100.64.1.10], cluster: red, namespace: shop, labels: { app: api } }
  - kind: Endpoint
    name: shop/api-2
    spec: { type: pod, domain: blue, addresses: [100.64.1.10], cluster: blue, namespace: shop, labels: { app: api } }
  - { kind: SmartGroup, name: shop, spec: { selectors: [{ type: k8s, k8s_namespace: shop }] } }
  - { kind: SmartGroup, name: office, spec: { selectors: [{ cidr: 10.20.0.0/16 }] } }
  - kind: Rule
    name: watch-web
    spec: { priority: 5, action: deny, sources: [shop], destinations: [anywhere], protocol: tcp, ports: [443], enforcement: monitor }
  - { kind: Rule, name: web, spec: { priority: 10, action: permit, sources: [shop], destinations: [anywhere], protocol: tcp, ports: [443] } }
  - { kind: Rule, name: no-ssh, spec: { priority: 20, action: deny, sources: [shop], destinations: [anywhere], protocol: tcp, ports: [22] } }
  - { kind: Rule, name: no-telnet, spec: { priority: 30, action: reject, sources: [shop], destinations: [anywhere], protocol: tcp, ports: [23] } }
  - { kind: Rule, name: office-dns, spec: { priority: 40, action: permit, sources: [shop], destinations: [office], protocol: udp, ports: [53], mark: 7 } }
  - { kind: Rule, name: unused, spec: { priority: 50, action: permit, sources: [office], destinations: [office], enforcement: disabled } }
  - { kind: DefaultAction, name: default, spec: { action: deny, log: both } }
  - kind: SnatPolicy
    name: pods-out
    spec: { order: 10, src_cidr: 100.64.0.0/16, dst_cidr: 198.51.100.0/24, interface: eth4, snat_ips: [203.0.113.1] }
  - kind: SnatPolicy
    name: pods-to-transit
    spec: { order: 20, src_cidr: 100.64.0.0/16, mark: 7, connection: transit, snat_ips: [10.0.0.9], snat_ports: "2000-2099" }
"#;

/// Beside [`TWO_CLUSTERS`]: another pod on the address of `shop/api-1`, each in a group of its own.
pub(crate) const RIVAL: &str = r#"
  - kind: Endpoint
    name: shop/api-9
    spec: { type: pod, domain: red, addresses: [100.64.1.10], namespace: shop, labels: { app: ads } }
  - { kind: SmartGroup, name: ads, spec: { selectors: [{ labels: { app: ads } }] } }
  - { kind: SmartGroup, name: api, spec: { selectors: [{ labels: { app: api } }] } }
"#;

/// A configuration in force.
pub(crate) struct Scene {
    pub(crate) config: Config,
    pub(crate) memory: Arc<Memory>,
    /// Now, in ticks.
    pub(crate) now: u32,
}

/// Brings a configuration into force. Interface `ethN` has index N, the address 10.255.N.1, and
/// behind it the router 10.255.N.254; attachments of kind connection route 10.0.0.0/8, those of
/// kind internet everything else.
pub(crate) fn scene(text: &str) -> Scene {
    let config = Config::parse(text, "test.yaml").unwrap_or_else(|errors| panic!("{errors:#?}"));
    let mut memory = Memory::new(Sizes::default(), 1);
    network(&mut memory, &config);
    let policy = lower(&mut memory, &config);
    memory.publish(policy);
    let mut scene = Scene { config, memory: Arc::new(memory), now: 0 };
    scene.pass(BEGIN * SECOND);
    scene
}

fn index(interface: &str) -> u32 {
    interface.trim_start_matches("eth").parse().unwrap()
}

fn prefix(net: ipnet::Ipv4Net) -> Prefix {
    Prefix { network: V4(net.network().octets()), bits: u32::from(net.prefix_len()) }
}

fn network(memory: &mut Memory, config: &Config) {
    let gateway = &config.gateway;
    memory.set_non_routable(
        &gateway.non_routable.iter().map(|p| prefix(p.net())).collect::<Vec<_>>(),
    );
    let domains = convert::domains(gateway);
    let (mut sources, mut routable) = (Sources::new(), BTreeMap::new());
    for (attachment, number) in gateway.attachments.iter().zip(1u16..) {
        let ifindex = index(&attachment.interface);
        let flags = LINK_UP | LINK_REDIRECT;
        memory
            .set_link(ifindex, LinkInfo { parent: ifindex, vlan: 0, mtu: 1500, mac: OURS, flags });
        let address = V4([10, 255, ifindex as u8, 1]);
        let router = Some(V4([10, 255, ifindex as u8, 254]));
        memory.add_local(address);
        let domain = domains[attachment.domain.as_str()].0;
        let (kind, to) = match attachment.kind {
            AttachmentKind::Spoke => (KIND_SPOKE, None),
            AttachmentKind::Connection => (KIND_CONNECTION, Some("10.0.0.0/8")),
            AttachmentKind::Internet => (KIND_INTERNET, Some("0.0.0.0/0")),
        };
        let entry = Attachment {
            domain,
            kind,
            flags: if domain == 0 { ATTACHED | ROUTABLE } else { ATTACHED },
            ifindex,
            address: address.0,
            interface_class: ifindex as u16,
            connection_class: if kind == KIND_CONNECTION { number } else { 0 },
        };
        memory.set_attachment(number, entry);
        let place = port(ifindex, 0);
        sources.extend(attachment.sources.iter().map(|source| ((place, source.net()), number)));
        if domain == 0 {
            routable.insert(number, attachment.carries.iter().map(|p| p.net()).collect());
        }
        for route in attachment.routes() {
            memory.add_route_ahead(port(ifindex, 0), prefix(route.net()), number);
        }
        for carried in &attachment.carries {
            memory.add_carried(number, prefix(carried.net()));
        }
        if let Some(to) = to {
            memory.add_route(RouteEntry {
                to: prefix(to.parse().unwrap()),
                ifindex,
                gateway: router,
                mtu: None,
            });
        }
    }
    let non_routable: Vec<_> = gateway.non_routable.iter().map(|prefix| prefix.net()).collect();
    behind::confine(&mut sources, &non_routable, &routable);
    for ((place, source), number) in sources {
        memory.add_source(place, prefix(source), number);
    }
}

/// What the kernel would say of it: the links alone.
pub(crate) fn network_of(config: &Config) -> NetworkState {
    let links = config.gateway.attachments.iter().map(|attachment| {
        let ifindex = index(&attachment.interface);
        (ifindex, link(ifindex))
    });
    let mut network = NetworkState::default();
    network.links.extend(links);
    network
}

fn lower(memory: &mut Memory, config: &Config) -> Policy {
    let image = &config.image;
    let action = |action| match action {
        Action::Permit => ACTION_PERMIT,
        Action::Deny => ACTION_DENY,
        Action::Reject => ACTION_REJECT,
    };
    let log = |log| match log {
        Log::Off => 0,
        Log::Start => LOG_START,
        Log::End => LOG_END,
        Log::Both => LOG_START | LOG_END,
    };
    let set = |bits: &policy_compiler::BitSet| {
        let all = 0..64 * bits.words().len() as u32;
        let bits: Vec<u32> =
            all.filter(|bit| bits.words()[*bit as usize / 64] >> (bit % 64) & 1 != 0).collect();
        rule_set(&bits)
    };
    let mut policy = Policy {
        default_action: action(image.default_action.action),
        default_log: log(image.default_action.log),
        ..Policy::default()
    };
    let identity = |n: u32| IdentityRef { index: n, id: image.identities[n as usize].id };
    for (domain, address, n) in &image.hosts {
        let IpAddr::V4(address) = address else { continue };
        policy.hosts.insert((domain.0, V4(address.octets())), identity(*n));
    }
    for (domain, net, n) in &image.prefixes {
        let ipnet::IpNet::V4(net) = net else { continue };
        policy.prefixes.push((domain.0, prefix(*net), identity(*n)));
    }
    policy.source_rules = image.identities.iter().map(|i| set(&i.source_rules)).collect();
    policy.destination_rules = image.identities.iter().map(|i| set(&i.destination_rules)).collect();
    let classes = &image.port_classes;
    policy.class_rules = classes.classes.iter().map(set).collect();
    for (base, ranges) in [(CLASS_TCP, &classes.tcp), (CLASS_UDP, &classes.udp)] {
        for (range, class) in ranges {
            for port in range.clone() {
                policy.classes[base as usize + usize::from(port)] = *class;
            }
        }
    }
    policy.classes[CLASS_OTHER as usize..].copy_from_slice(&classes.other);
    let monitors = image.rules.iter().zip(0..).filter(|(rule, _)| rule.monitor);
    policy.monitors = rule_set(&monitors.map(|(_, bit)| bit).collect::<Vec<u32>>());
    policy.rules = image
        .rules
        .iter()
        .zip(1..)
        .map(|(rule, counter)| Rule {
            id: rule.id.0,
            counter,
            action: action(rule.action),
            log: log(rule.log),
            monitor: u8::from(rule.monitor),
            mark: rule.mark.map_or(0, std::num::NonZero::get),
            ..Rule::default()
        })
        .collect();
    policy.snat_bits = image
        .identities
        .iter()
        .map(|identity| {
            let mut bits = SnatBits::default();
            bits.source[..identity.snat_source.words().len()]
                .copy_from_slice(identity.snat_source.words());
            bits.destination[..identity.snat_destination.words().len()]
                .copy_from_slice(identity.snat_destination.words());
            bits
        })
        .collect();
    for snat in &image.snat {
        let pool = policy.pools.len() as u16;
        if let SnatAction::Snat { addresses, ports } = &snat.action {
            let lendable = memory.add_lendable([ports.clone()]);
            for address in addresses {
                policy.pools.push(PoolAddress { address: address.octets(), lendable });
                policy.outside.insert(V4(address.octets()));
            }
        }
        let (interface_class, connection_class) = match &snat.egress {
            Egress::Interface(name) => (index(name) as u16, 0),
            Egress::Connection(name) => {
                let place = config.gateway.attachments.iter().position(|a| a.name == *name);
                (0, place.unwrap() as u16 + 1)
            }
        };
        let ports = |range: &Option<policy_compiler::PortRange>| {
            range.as_ref().map_or([0, u16::MAX], |range| [*range.start(), *range.end()])
        };
        policy.snat.push(Snat {
            id: snat.id.0,
            protocol: match snat.protocol {
                Protocol::Any => 256,
                Protocol::Number(number) => u16::from(number),
            },
            mark: snat.mark.map_or(0, std::num::NonZero::get),
            source_ports: ports(&snat.source_ports),
            destination_ports: ports(&snat.destination_ports),
            interface_class,
            connection_class,
            pool,
            addresses: policy.pools.len() as u16 - pool,
        });
    }
    policy
}

impl Scene {
    /// The names of the configuration, as of a generation.
    pub(crate) fn directory(&self, generation: u32) -> Directory {
        let Config { gateway, image, inventory, .. } = &self.config;
        Directory::new(generation, gateway, image, inventory, &self.numbers())
    }

    /// The names of the configuration alone.
    pub(crate) fn book(&self, generation: u32) -> Arc<Book> {
        Directories::new(self.directory(generation)).book()
    }

    /// What a daemon would say is in force.
    pub(crate) fn in_force(&self) -> InForce {
        InForce {
            config: Arc::new(self.config.clone()),
            numbers: Arc::new(self.numbers()),
            image: Arc::clone(&self.config.image),
            inventory: self.config.inventory.clone(),
        }
    }

    /// The numbers of its attachments: nothing was numbered before.
    pub(crate) fn numbers(&self) -> Numbers {
        Numbers::default().with(&self.config.gateway)
    }

    /// Lets ticks pass.
    pub(crate) fn pass(&mut self, ticks: u32) {
        self.now += ticks;
        self.memory.set_clock(u64::from(self.now) * 62_500_000);
    }

    /// What is changed in the tables while packets go on.
    pub(crate) fn tables(&mut self) -> &mut Memory {
        Arc::get_mut(&mut self.memory).expect("a scene is changed before it is shared")
    }

    /// Publishes the policy of another configuration, with the same attachments.
    pub(crate) fn publish(&mut self, text: &str) {
        self.config =
            Config::parse(text, "test.yaml").unwrap_or_else(|errors| panic!("{errors:#?}"));
        let memory =
            Arc::get_mut(&mut self.memory).expect("a scene is changed before it is shared");
        let policy = lower(memory, &self.config);
        memory.publish(policy);
    }

    /// All sessions of the table.
    pub(crate) fn sessions(&self) -> Vec<SessionView> {
        sessions(&*self.memory, 0..all_slots(&*self.memory), self.now).collect()
    }

    /// A frame into an interface: what became of it.
    pub(crate) fn send(&mut self, ifindex: u32, frame: Vec<u8>) -> Fate {
        self.with_gateway(|gateway, now| {
            let output = gateway.process(ifindex, MemoryFrame::new(frame), now);
            (output.fate, output.frame.bytes)
        })
        .0
    }

    /// A SYN into an interface.
    pub(crate) fn syn(&mut self, ifindex: u32, from: &str, to: &str) -> Fate {
        self.send(ifindex, segment(from, to, xdp::tcp::SYN))
    }

    /// A whole handshake from red to the internet.
    pub(crate) fn open_tcp(&mut self, from: &str, to: &str) {
        let (fate, out) = self.with_gateway(|gateway, now| {
            let frame = MemoryFrame::new(segment(from, to, xdp::tcp::SYN));
            let output = gateway.process(1, frame, now);
            (output.fate, output.frame.bytes)
        });
        assert!(matches!(fate, Fate::Transmit(..)), "{fate:?}");
        let outside = SocketAddrV4::new(
            Ipv4Addr::new(out[26], out[27], out[28], out[29]),
            u16::from_be_bytes([out[34], out[35]]),
        );
        let answer = segment(to, &outside.to_string(), xdp::tcp::SYN | xdp::tcp::ACK);
        assert!(matches!(self.send(4, answer), Fate::Transmit(..)));
        assert!(matches!(self.send(1, segment(from, to, xdp::tcp::ACK)), Fate::Transmit(..)));
    }

    /// Ends what is over.
    pub(crate) fn sweep(&mut self) {
        self.with_gateway(|gateway, now| gateway.sweep(now));
    }

    /// The steps of a hook need the tables to themselves.
    fn with_gateway<R>(&mut self, act: impl FnOnce(&Gateway, u32) -> R) -> R {
        let empty = Arc::new(Memory::new(Sizes { slots: 2, records: 1, ..Sizes::default() }, 0));
        let memory = std::mem::replace(&mut self.memory, empty);
        let tables = Arc::into_inner(memory).expect("a scene is driven before it is shared");
        let gateway = Gateway { tables, hook: Hook::Tc };
        let result = act(&gateway, self.now);
        self.memory = Arc::new(gateway.tables);
        result
    }
}

/// A TCP segment without payload, in Ethernet.
pub(crate) fn segment(from: &str, to: &str, flags: u8) -> Vec<u8> {
    let (from, to): (SocketAddrV4, SocketAddrV4) = (from.parse().unwrap(), to.parse().unwrap());
    let mut transport = vec![0; 20];
    transport[0..2].copy_from_slice(&from.port().to_be_bytes());
    transport[2..4].copy_from_slice(&to.port().to_be_bytes());
    transport[12] = 5 << 4;
    transport[13] = flags;
    packet(6, *from.ip(), *to.ip(), &transport)
}

/// A UDP datagram without payload, in Ethernet.
pub(crate) fn datagram(from: &str, to: &str) -> Vec<u8> {
    let (from, to): (SocketAddrV4, SocketAddrV4) = (from.parse().unwrap(), to.parse().unwrap());
    let mut transport = vec![0; 8];
    transport[0..2].copy_from_slice(&from.port().to_be_bytes());
    transport[2..4].copy_from_slice(&to.port().to_be_bytes());
    transport[5] = 8;
    packet(17, *from.ip(), *to.ip(), &transport)
}

/// The hardware address of every interface.
const OURS: [u8; 6] = [2, 9, 9, 9, 9, 9];

fn packet(protocol: u8, from: Ipv4Addr, to: Ipv4Addr, transport: &[u8]) -> Vec<u8> {
    let mut frame = [&OURS[..], &[2, 8, 8, 8, 8, 8, 0x08, 0x00]].concat();
    let mut header = vec![0u8; 20];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&(20 + transport.len() as u16).to_be_bytes());
    header[8] = 64;
    header[9] = protocol;
    header[12..16].copy_from_slice(&from.octets());
    header[16..20].copy_from_slice(&to.octets());
    let sum: u32 =
        header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend_from_slice(&header);
    frame.extend_from_slice(transport);
    frame
}

impl Live for Memory {
    fn counters(&self) -> io::Result<Counters> {
        Ok(Memory::counters(self))
    }
    fn rule_counts(&self) -> io::Result<Vec<RuleCount>> {
        Ok((0..64).map(|counter| self.rule_count(counter)).collect())
    }
    fn clear(&self, record: u32, incarnation: u32) -> io::Result<bool> {
        let ending = xdp::session::Ending::now(ENDED_CLEARED, incarnation);
        Ok(xdp::session::end(self, record, ending, Live::now(self)) != Ended::Lives)
    }
    fn events_pile_up(&self) -> bool {
        false
    }
    fn loaded(&self) -> Vec<Loaded> {
        Vec::new()
    }
    fn now(&self) -> u32 {
        (self.clock() / 62_500_000) as u32
    }
    fn tick_length(&self) -> Duration {
        Duration::from_nanos(62_500_000)
    }
}
