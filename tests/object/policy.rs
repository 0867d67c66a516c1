//! Policies as the kernel's tables have them against policies as they are written.
//!
//! The compiler's tests end at the image, and the twins read the same tables. In between the
//! publisher lowers one to the other, and whatever it gets wrong both would agree on. So here
//! the decision core judges flows over the kernel's tables, and has to say what
//! [`policy_compiler::evaluate`] reads off the rules.
//!
//! Flows are built from the policy, as in the compiler's tests: ends are borders of the prefixes
//! that occur and ports are borders of the ranges that occur, just inside and just outside.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use gateway::config::{AttachmentKind, Config};
use gateway::datapath::numbers::Numbers;
use gateway::datapath::object::{Hooks, Sizes};
use gateway::datapath::places::Places;
use gateway::datapath::publish::{Publisher, WaysOut};
use gateway::datapath::tables::{Datapath, lock};
use gateway::flows::live::Tables4;
use gateway::net::Address;
use ipnet::{IpNet, Ipv4Net};
use lab::Need;
use policy_compiler::{
    Action, Amendment, Capacity, Compiler, DefaultAction, Egress, Enforcement, Evaluation, Flow,
    Image, Log, PortRange, Protocol, Rule, RuleId, Scope, SnatAction, SnatId, SnatPolicy, WayOut,
    compile, evaluate, evaluate_snat,
};
use smartgroups::{
    Change, DomainId, Endpoint, EndpointKind, GroupId, Inventory, Selector, SmartGroup,
};
use xdp::address::{Key, V4};
use xdp::packet::{ICMP, TCP, UDP};
use xdp::policy::{judge, parties};
use xdp::snat::{FlowFacts, matching};
use xdp::tables::{Route, Tables as _};
use xdp_abi::config::PolicyWord;
use xdp_abi::forward::{Attachment, port};
use xdp_abi::policy::{ACTION_DENY, ACTION_PERMIT, ACTION_REJECT, LOG_END, LOG_START, Snat};

#[path = "../../policy-compiler/tests/borders/mod.rs"]
#[allow(missing_docs, reason = "part of the compiler's own tests")]
mod borders;

use crate::stand::{BLUE, CARRIED, RED, Rules, Stand, TRANSIT, config, served};
use crate::traffic::Dice;
use crate::{Told, seed};
use borders::{DOMAINS, Policy, around};

/// Policies that are published; each is amended once as well.
const POLICIES: u32 = 40;
/// Flows that are judged by each of them.
const FLOWS: u32 = 200;

const SIZES: Sizes = Sizes {
    sessions: 1_024,
    hosts: 1_024,
    prefixes: 1_024,
    identities: 1_024,
    rules: 128,
    port_classes: 256,
    next_hops: 64,
};
const ROOM: Capacity = Capacity {
    rules: SIZES.rules as usize,
    identities: SIZES.identities as usize,
    hosts: SIZES.hosts as usize,
    prefixes: SIZES.prefixes as usize,
    port_classes: SIZES.port_classes as usize,
    snat_policies: 128,
};

/// How long the prefixes of groups and SNAT policies are.
const LENGTHS: [u8; 8] = [32, 32, 31, 30, 28, 24, 8, 0];

/// Ways out that policies name: those of the stand, and some that it does not have.
const INTERFACES: [&str; 4] = ["internet0", "transit0", "red0", "absent0"];
const CONNECTIONS: [&str; 3] = ["transit", "transit-tagged", "absent"];

/// Makes policies up.
struct Author {
    dice: Dice,
    /// The ports that the policy in hand is about: few, so that its ranges share borders.
    ports: Vec<u16>,
}

impl Author {
    fn policy(&mut self) -> Policy {
        let dice = &mut self.dice;
        self.ports = (0..4).map(|_| 1 + dice.below(65_535) as u16).chain([1, 80, 65_535]).collect();
        let mut inventory = Inventory::new();
        for number in 0..4 + self.dice.below(5) {
            inventory.insert(self.pod(number));
        }
        inventory.insert(self.subnet());
        let groups = (0..5).map(|number| {
            let selectors = (0..1 + self.dice.below(2)).map(|_| self.selector()).collect();
            SmartGroup::new(format!("g{number}"), selectors)
        });
        let groups = groups.collect();
        // More than the bits of a word now and then.
        let rules = self.dice.pick(&[6, 14, 14, 90]);
        let snat = self.dice.pick(&[3, 8, 8, 80]);
        Policy {
            inventory,
            groups,
            rules: self.shuffled(rules).map(|(n, at)| self.rule(n, at)).collect(),
            snat: self.shuffled(snat).map(|(n, at)| self.snat(n, at)).collect(),
            default_action: DefaultAction { action: self.action(), log: self.log() },
        }
    }

    /// Numbers from one on, each with its place in an order of their own.
    fn shuffled(&mut self, count: u32) -> impl Iterator<Item = (u32, u32)> + use<> {
        let mut places: Vec<u32> = (0..count).collect();
        for at in (1..places.len()).rev() {
            places.swap(at, self.dice.below(at as u64 + 1) as usize);
        }
        (1..).zip(places)
    }

    fn prefix(&mut self, lengths: &[u8]) -> IpNet {
        let bases = [[10, 0, 0, 0], [100, 64, 0, 0], [198, 51, 100, 0], [8, 8, 8, 0]];
        let address = Ipv4Addr::from(self.dice.pick(&bases)).to_bits() + self.dice.below(16) as u32;
        let prefix = Ipv4Net::new(Ipv4Addr::from_bits(address), self.dice.pick(lengths));
        IpNet::V4(prefix.expect("no length is longer than an address").trunc())
    }

    fn pod(&mut self, number: u64) -> Endpoint {
        let domain = self.dice.pick(&DOMAINS);
        Endpoint {
            addresses: (0..1 + self.dice.below(2)).map(|_| self.prefix(&[32])).collect(),
            labels: self.team().into_iter().collect(),
            ..Endpoint::new(format!("n/pod{number}"), EndpointKind::Pod, domain)
        }
    }

    fn subnet(&mut self) -> Endpoint {
        let domain = self.dice.pick(&DOMAINS);
        Endpoint {
            addresses: [self.prefix(&[28, 30, 31])].into(),
            labels: self.team().into_iter().collect(),
            ..Endpoint::new("subnet", EndpointKind::Subnet, domain)
        }
    }

    fn team(&mut self) -> BTreeMap<String, String> {
        [("team".to_owned(), format!("t{}", self.dice.below(3)))].into()
    }

    fn selector(&mut self) -> Selector {
        if self.dice.one_in(2) {
            return Selector { labels: self.team(), ..Selector::default() };
        }
        let domain = if self.dice.one_in(3) { None } else { Some(self.dice.pick(&DOMAINS)) };
        Selector { cidr: Some(self.prefix(&LENGTHS)), domain, ..Selector::default() }
    }

    fn group(&mut self) -> String {
        let names = ["g0", "g1", "g2", "g3", "g4", "public-internet", "anywhere", "anywhere"];
        self.dice.pick(&names).to_owned()
    }

    fn groups(&mut self) -> Vec<String> {
        (0..1 + self.dice.below(2)).map(|_| self.group()).collect()
    }

    fn range(&mut self) -> PortRange {
        let (one, other) = (self.dice.pick(&self.ports), self.dice.pick(&self.ports));
        match self.dice.below(3) {
            0 => one..=one,
            1 => one..=one.saturating_add(self.dice.below(4) as u16),
            _ => one.min(other)..=one.max(other),
        }
    }

    /// A protocol, and whether ports may stand beside it.
    fn protocol(&mut self) -> (Protocol, bool) {
        let with_ports = [Protocol::Any, Protocol::TCP, Protocol::UDP];
        match self.dice.below(8) {
            0 => (Protocol::ICMP, false),
            1 => (Protocol::Number(self.dice.below(256) as u8), false),
            _ => (self.dice.pick(&with_ports), true),
        }
    }

    fn action(&mut self) -> Action {
        self.dice.pick(&[Action::Permit, Action::Permit, Action::Deny, Action::Reject])
    }

    fn log(&mut self) -> Log {
        self.dice.pick(&[Log::Off, Log::Start, Log::End, Log::Both])
    }

    fn mark(&mut self) -> Option<NonZeroU16> {
        if self.dice.one_in(2) { NonZeroU16::new(self.dice.pick(&[1, 0xabcd])) } else { None }
    }

    fn rule(&mut self, number: u32, priority: u32) -> Rule {
        let (protocol, may_have_ports) = self.protocol();
        let ranges = if may_have_ports { self.dice.below(4) } else { 0 };
        let action = self.action();
        let enforcement = match self.dice.below(8) {
            0 => Enforcement::Disabled,
            1 | 2 => Enforcement::Monitor,
            _ => Enforcement::Enforce,
        };
        Rule {
            name: format!("r{number}"),
            id: RuleId(1_000 + number),
            priority,
            action,
            sources: self.groups(),
            destinations: self.groups(),
            protocol,
            ports: (0..ranges).map(|_| self.range()).collect(),
            log: self.log(),
            enforcement,
            mark: self.mark().filter(|_| action == Action::Permit),
            description: String::new(),
        }
    }

    fn scope(&mut self) -> Scope {
        match self.dice.below(4) {
            0 => Scope::Any,
            1 => Scope::Cidr(self.prefix(&LENGTHS)),
            _ => Scope::Group(self.group()),
        }
    }

    fn snat(&mut self, number: u32, order: u32) -> SnatPolicy {
        let (protocol, may_have_ports) = self.protocol();
        let mut ports = || (may_have_ports && self.dice.one_in(3)).then(|| self.range());
        let (source_ports, destination_ports) = (ports(), ports());
        let action = if self.dice.one_in(3) {
            SnatAction::NoNat
        } else {
            let address = |n| Ipv4Addr::new(203, 0, 113, n);
            let addresses = (0..1 + self.dice.below(3)).map(|_| address(self.dice.below(8) as u8));
            let addresses = addresses.collect();
            let last = self.dice.pick(&[2_001, 65_535]);
            SnatAction::Snat { addresses, ports: self.dice.pick(&[1_024, 2_000])..=last }
        };
        let egress = if self.dice.one_in(2) {
            Egress::Interface(self.dice.pick(&INTERFACES).to_owned())
        } else {
            Egress::Connection(self.dice.pick(&CONNECTIONS).to_owned())
        };
        SnatPolicy {
            name: format!("s{number}"),
            id: SnatId(2_000 + number),
            order,
            source: self.scope(),
            source_ports,
            destination: self.scope(),
            destination_ports,
            protocol,
            mark: self.mark(),
            egress,
            action,
        }
    }

    fn flow(&mut self, addresses: &[Ipv4Addr], ports: &[u16]) -> Flow {
        let dice = &mut self.dice;
        let protocol = match dice.below(12) {
            0..6 => TCP,
            6..10 => UDP,
            10 => ICMP,
            _ => dice.below(256) as u8,
        };
        let mut end = || (dice.pick(&DOMAINS), IpAddr::V4(dice.pick(addresses)));
        let (source, destination) = (end(), end());
        let has_ports = [TCP, UDP].contains(&protocol);
        let mut port = || if has_ports { dice.pick(ports) } else { 0 };
        Flow { source, destination, protocol, source_port: port(), destination_port: port() }
    }
}

/// The kernel's tables, and who brings policies into them.
struct Kernel {
    tables: Tables4,
    publisher: Publisher,
    ways_out: WaysOut,
    /// Where flows leave, as policies and as the tables say it.
    exits: Vec<(String, Option<String>, Attachment)>,
}

impl Kernel {
    fn load(stand: &Stand) -> Result<Self> {
        Self::load_with(stand, SIZES)
    }

    fn load_with(stand: &Stand, sizes: Sizes) -> Result<Self> {
        let config = config(Rules::Usual)?;
        let numbers = Numbers::default().with(&config.gateway);
        let places = Places::of(&config, &stand.network, &served(), &numbers);
        let datapath = Datapath::open(sizes, Hooks { xdp: true, tc: true }, None)?;
        places.write(&datapath, &Places::default())?;
        let publisher = Publisher::new(&datapath, BTreeMap::new());
        let tables = Tables4::new(Arc::new(datapath), Box::new(|_, _, _| Route::Unreachable));
        let exits = config.gateway.attachments.iter().map(|stated| {
            let number = numbers.of(&stated.name).context("every attachment has a number")?;
            let attachment = tables.attachment(number).context("an attachment out of bounds")?;
            // Those of the other kinds no policy can name.
            let is_connection = stated.kind == AttachmentKind::Connection;
            let connection = is_connection.then(|| stated.name.clone());
            Ok((stated.interface.clone(), connection, attachment))
        });
        let exits = exits.collect::<Result<_>>()?;
        Ok(Self { tables, publisher, ways_out: places.ways_out, exits })
    }

    /// Brings a policy into force as the engine does, and says whether the one before was amended.
    fn put(&mut self, image: &Image) -> Result<bool> {
        let Self { tables, publisher, ways_out, .. } = self;
        let amended = publisher.amend(tables.datapath(), image, ways_out)?.is_some();
        if !amended {
            self.publish(image)?;
        }
        Ok(amended)
    }

    /// Brings a whole policy into force.
    fn publish(&mut self, image: &Image) -> Result<()> {
        let Self { tables, publisher, ways_out, .. } = self;
        let datapath = tables.datapath();
        let pools = publisher.plan(datapath, image)?;
        publisher.publish(datapath, image, pools, ways_out, &|_| Vec::new())?;
        Ok(())
    }

    /// Brings what members have changed into the policy in force as the engine does, and says
    /// whether that was possible.
    fn follow(&mut self, amendment: &Amendment) -> Result<bool> {
        let amended = self.publisher.follow(self.tables.datapath(), amendment)?;
        let Some(amended) = amended else { return Ok(false) };
        if amended.prefixes {
            self.publisher.judge_again(self.tables.datapath());
        }
        let hosts = amendment.hosts.iter().map(|(domain, address, _)| (*domain, *address));
        let said = amended.hosts.iter().map(|(domain, address)| (*domain, (*address).into()));
        ensure!(hosts.eq(said), "{:?} changed by {amendment:?}", amended.hosts);
        Ok(true)
    }

    /// What the core says of a flow, over the tables.
    fn evaluate(&self, image: &Image, flow: &Flow) -> (Evaluation, FlowFacts) {
        let address = |end: (DomainId, IpAddr)| match end.1 {
            IpAddr::V4(address) => V4(address.octets()),
            IpAddr::V6(_) => unreachable!("no flow here is IPv6"),
        };
        let key = Key {
            source: address(flow.source),
            destination: address(flow.destination),
            source_port: flow.source_port.to_be_bytes(),
            destination_port: flow.destination_port.to_be_bytes(),
            domain: flow.source.0.0,
            protocol: flow.protocol,
        };
        let policy = self.policy();
        let mut judgement = parties(&self.tables, policy, &key, flow.destination.0.0);
        judge(&self.tables, policy, &key, 0, &mut judgement);
        let groups = |id: u32| -> Vec<GroupId> {
            // What no table holds has no id, and is the first.
            let unknown = (id == 0).then_some(&image.identities[0]);
            let known = image.identities.iter().find(|identity| identity.id == id);
            known.or(unknown).expect("an identity of the image").groups.clone()
        };
        let id = |id: u32| (id != 0).then_some(RuleId(id));
        let evaluation = Evaluation {
            action: match judgement.action {
                ACTION_PERMIT => Action::Permit,
                ACTION_DENY => Action::Deny,
                ACTION_REJECT => Action::Reject,
                other => panic!("there is no action {other}"),
            },
            log: match (judgement.log & LOG_START != 0, judgement.log & LOG_END != 0) {
                (false, false) => Log::Off,
                (true, false) => Log::Start,
                (false, true) => Log::End,
                (true, true) => Log::Both,
            },
            rule: id(judgement.rule),
            mark: NonZeroU16::new(judgement.mark),
            would_match: id(judgement.would_match),
            source_groups: groups(judgement.source.id),
            destination_groups: groups(judgement.destination.id),
        };
        let facts = FlowFacts {
            source: judgement.source.index,
            destination: judgement.destination.index,
            source_port: flow.source_port,
            destination_port: flow.destination_port,
            protocol: flow.protocol,
            mark: judgement.mark,
            interface_class: 0,
            connection_class: 0,
        };
        (evaluation, facts)
    }

    /// The SNAT policy for a flow that leaves by an exit, over the tables.
    fn evaluate_snat(&self, facts: &FlowFacts, exit: &Attachment) -> Option<Snat> {
        let Attachment { interface_class, connection_class, .. } = *exit;
        let facts = FlowFacts { interface_class, connection_class, ..*facts };
        matching(&self.tables, self.policy(), &facts)
    }

    /// The outside addresses of a SNAT policy, each with what it says of the ports around a range.
    fn outside(&self, snat: &Snat, around: [u16; 4]) -> Vec<(Ipv4Addr, [bool; 4])> {
        let bank = self.policy().bank();
        let places = snat.pool..snat.pool + snat.addresses;
        let outside = places.map(|place| {
            let pool = self.tables.pool(bank, place.into()).expect("a place in the tables");
            let ports = self.tables.lendable(pool.lendable).expect("a set in the tables");
            let lent = around
                .map(|port| ports.words[usize::from(port) / 64].load() >> (port % 64) & 1 != 0);
            (pool.address.into(), lent)
        });
        outside.collect()
    }

    fn policy(&self) -> PolicyWord {
        PolicyWord(self.tables.config().policy.load())
    }
}

/// What came up, and how often.
type Seen = BTreeMap<&'static str, u64>;

fn compare(kernel: &Kernel, image: &Image, policy: &Policy, author: &mut Author, seen: &mut Seen) {
    let mut saw = |what, is_so: bool| *seen.entry(what).or_default() += u64::from(is_so);
    let inputs = policy.inputs();
    let (mut addresses, ports) = (policy.addresses(), policy.ports());
    // One that no prefix is about.
    addresses.push(Ipv4Addr::new(1, 1, 1, 1));
    for _ in 0..FLOWS {
        let flow = author.flow(&addresses, &ports);
        let (found, facts) = kernel.evaluate(image, &flow);
        let expected = evaluate(&inputs, &flow);
        assert_eq!(found, expected, "{flow:?} under {policy:?}");
        let ruled = expected.rule.is_some();
        saw("default action", !ruled);
        saw("permitted", ruled && expected.action == Action::Permit);
        saw("denied", ruled && expected.action == Action::Deny);
        saw("rejected", ruled && expected.action == Action::Reject);
        saw("would match", expected.would_match.is_some());
        saw("marked", expected.mark.is_some());
        let bit = image.rules.iter().position(|rule| Some(rule.id) == expected.rule);
        saw("rule of another word", bit.is_some_and(|bit| bit >= 64));
        // Transit of other protocols has no SNAT: it is not forwarded.
        if ![TCP, UDP, ICMP].contains(&flow.protocol) {
            continue;
        }
        for (interface, connection, exit) in &kernel.exits {
            let way_out = WayOut { interface, connection: connection.as_deref() };
            let found = kernel.evaluate_snat(&facts, exit);
            let expected = evaluate_snat(&inputs, &flow, expected.mark, &way_out);
            let (found_id, id) = (found.map(|snat| snat.id), expected.map(|snat| snat.id.0));
            assert_eq!(found_id, id, "{flow:?} by {way_out:?} under {policy:?}");
            if let (Some(found), Some(expected)) = (found, expected) {
                same_outside(kernel, &found, &expected.action);
            }
            let is = |what: fn(&SnatPolicy) -> bool| expected.is_some_and(what);
            saw("no SNAT policy", expected.is_none());
            saw("SNAT", is(|snat| snat.action != SnatAction::NoNat));
            saw("exception from SNAT", is(|snat| snat.action == SnatAction::NoNat));
            saw("SNAT by mark", is(|snat| snat.mark.is_some()));
            saw("SNAT by source port", is(|snat| snat.source_ports.is_some()));
            saw("SNAT by destination port", is(|snat| snat.destination_ports.is_some()));
            saw("SNAT by protocol", is(|snat| snat.protocol != Protocol::Any));
            saw("SNAT by interface", is(|snat| matches!(snat.egress, Egress::Interface(_))));
            saw("SNAT by connection", is(|snat| matches!(snat.egress, Egress::Connection(_))));
            let bit = image.snat.iter().position(|snat| Some(snat.id.0) == id);
            saw("SNAT policy of another word", bit.is_some_and(|bit| bit >= 64));
        }
    }
}

/// Compares the outside addresses of a SNAT policy, and the ports around the ends of its range.
fn same_outside(kernel: &Kernel, found: &Snat, expected: &SnatAction) {
    let (expected, range) = match expected {
        SnatAction::NoNat => (&[][..], &(0..=0)),
        SnatAction::Snat { addresses, ports } => (&addresses[..], ports),
    };
    let lent = around(range).map(|port| range.contains(&port));
    let expected: Vec<_> = expected.iter().map(|address| (*address, lent)).collect();
    assert_eq!(kernel.outside(found, around(range)), expected, "outside of {found:?}");
}

#[test]
fn the_tables_of_a_published_policy_say_what_its_rules_say() -> Result<()> {
    lab::require!(Need::Lab);
    let seed = seed()?;
    let _told = Told(seed);
    let stand = Stand::new()?;
    let mut kernel = Kernel::load(&stand)?;
    let mut author = Author { dice: Dice::new(seed), ports: Vec::new() };
    let mut seen = Seen::new();
    for _ in 0..POLICIES {
        let mut policy = author.policy();
        for moved in [false, true] {
            if moved {
                // A pod gets other addresses and labels.
                policy.inventory.insert(author.pod(0));
            }
            let image = compile(&policy.inputs(), &ROOM)?.0;
            let amended = kernel.put(&image)?;
            *seen.entry("amended").or_default() += u64::from(amended);
            compare(&kernel, &image, &policy, &mut author, &mut seen);
        }
        let (mut compiler, mut image, _) =
            Compiler::new(policy.inventory.clone(), &policy.inputs(), &ROOM)?;
        kernel.put(&image)?;
        for _ in 0..3 {
            let number = author.dice.below(9);
            let gone = Change::Gone(format!("n/pod{}", author.dice.below(9)).into());
            let mut changes = vec![gone, Change::Endpoint(Arc::new(author.pod(number)))];
            if author.dice.one_in(2) {
                changes.push(Change::Endpoint(Arc::new(author.subnet())));
            }
            let amendment = compiler.amend(changes)?;
            ensure!(kernel.follow(&amendment)?, "not followed: {amendment:?}");
            image.amend(&amendment);
            policy.inventory = compiler.inventory().clone();
            let mut saw = |what, is_so: bool| *seen.entry(what).or_default() += u64::from(is_so);
            saw("followed", true);
            saw("new identities", !amendment.identities.is_empty());
            saw("prefixes changed", !amendment.prefixes.is_empty());
            saw("hosts that left", amendment.hosts.iter().any(|(.., index)| index.is_none()));
            compare(&kernel, &image, &policy, &mut author, &mut seen);
        }
    }
    println!("{seen:#?}");
    for (what, often) in &seen {
        ensure!(*often > 0, "never came up: {what}, of {seen:#?}");
    }
    Ok(())
}

/// A policy by which each team may go anywhere, and pods of these teams.
fn team_policy(pods: &[(&str, u8, u8)], more_rules: u32) -> Policy {
    let pod = |(name, host, team): &(&str, u8, u8)| Endpoint {
        addresses: [IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, *host), 32))].into(),
        labels: [("team", format!("t{team}"))].into(),
        ..Endpoint::new(*name, EndpointKind::Pod, DomainId(1))
    };
    let mut inventory = Inventory::new();
    for one in pods {
        inventory.insert(pod(one));
    }
    let team = |team: u32| Selector {
        labels: [("team".to_owned(), format!("t{team}"))].into(),
        ..Selector::default()
    };
    let groups: Vec<SmartGroup> =
        (0..3).map(|n| SmartGroup::new(format!("g{n}"), vec![team(n)])).collect();
    let rule = |n: u32| Rule {
        name: format!("r{n}"),
        id: RuleId(n + 1),
        priority: n,
        action: Action::Permit,
        sources: vec![format!("g{}", n % 3)],
        destinations: vec!["anywhere".to_owned()],
        protocol: Protocol::Any,
        ports: vec![],
        log: Log::Off,
        enforcement: Enforcement::Enforce,
        mark: None,
        description: String::new(),
    };
    let rules: Vec<Rule> = (0..3 + more_rules).map(rule).collect();
    Policy {
        inventory,
        groups,
        rules,
        snat: Vec::new(),
        default_action: DefaultAction { action: Action::Deny, log: Log::Off },
    }
}

fn teams(pods: &[(&str, u8, u8)], more_rules: u32) -> Result<Image> {
    Ok(compile(&team_policy(pods, more_rules).inputs(), &ROOM)?.0)
}

#[test]
fn members_change_places_in_a_full_table_and_those_without_room_leave_it_as_it_was() -> Result<()> {
    lab::require!(Need::Lab);
    let stand = Stand::new()?;
    let mut kernel = Kernel::load_with(&stand, Sizes { hosts: 4, ..SIZES })?;
    let identity_of = |kernel: &Kernel, host: u8| {
        kernel.tables.identity(kernel.policy().bank(), 1, V4([100, 64, 0, host])).id
    };
    let [a, b, c, d, moved] = [("a", 1, 0), ("b", 2, 0), ("c", 3, 1), ("d", 4, 1), ("d", 5, 1)];
    // Two policies, so that both halves of the table are full.
    kernel.put(&teams(&[a, b, c, d], 0)?)?;
    kernel.put(&teams(&[a, b, c, d], 1)?)?;
    let all = |kernel: &Kernel| [1, 2, 3, 4, 5, 6].map(|host| identity_of(kernel, host));
    let before = all(&kernel);
    ensure!(before[0] == before[1] && before[2] == before[3] && before[0] != before[2]);
    ensure!(kernel.put(&teams(&[a, b, c, moved], 1)?)?, "it was not amended");
    ensure!(all(&kernel) == [before[0], before[1], before[2], before[4], before[2], before[5]]);
    // Five have no room, and one of the four would have come into another team.
    let two_more = [a, ("b", 2, 2), c, moved, ("e", 6, 0), ("f", 7, 0)];
    let standing = all(&kernel);
    let refused = kernel.put(&teams(&two_more, 1)?);
    ensure!(refused.is_err(), "six found room in a table of four");
    ensure!(kernel.put(&teams(&[a, b, c, moved], 1)?)?, "what stands is not amended");
    ensure!(all(&kernel) == standing, "{:?} of {standing:?}", all(&kernel));
    Ok(())
}

#[test]
fn prefixes_change_in_place_where_the_new_have_room_beside_the_old() -> Result<()> {
    lab::require!(Need::Lab);
    let stand = Stand::new()?;
    let subnet = |team: u8, net: &str| -> Result<Endpoint> {
        Ok(Endpoint {
            addresses: [IpNet::V4(net.parse()?)].into(),
            labels: [("team", format!("t{team}"))].into(),
            ..Endpoint::new("subnet", EndpointKind::Subnet, DomainId(1))
        })
    };
    let mut policy = team_policy(&[("a", 1, 0), ("b", 2, 1)], 0);
    policy.inventory.insert(subnet(2, "100.64.8.0/24")?);
    for more_room in [0, 1] {
        let (mut compiler, image, _) =
            Compiler::new(policy.inventory.clone(), &policy.inputs(), &ROOM)?;
        let standing = image.prefixes.iter().filter(|(_, net, _)| matches!(net, IpNet::V4(_)));
        let prefixes = (standing.count() + more_room) as u32;
        let mut kernel = Kernel::load_with(&stand, Sizes { prefixes, ..SIZES })?;
        let identity_of = |kernel: &Kernel, address| {
            kernel.tables.identity(kernel.policy().bank(), 1, V4(address)).id
        };
        // Twice, so that both halves of the table are full.
        kernel.publish(&image)?;
        kernel.publish(&image)?;
        let (old, new) = ([100, 64, 8, 9], [100, 64, 7, 9]);
        let before = [old, new].map(|address| identity_of(&kernel, address));
        ensure!(before[0] != before[1], "nobody is known by the prefix");
        let moved = Change::Endpoint(Arc::new(subnet(2, "100.64.7.0/24")?));
        let amendment = compiler.amend([moved])?;
        let followed = kernel.follow(&amendment)?;
        ensure!(followed == (more_room > 0), "with room for {more_room} more: {followed}");
        if !followed {
            let now = [old, new].map(|address| identity_of(&kernel, address));
            ensure!(now == before, "what was not followed changed something");
            let mut image = image;
            image.amend(&amendment);
            kernel.publish(&image)?;
        }
        let after = [new, old].map(|address| identity_of(&kernel, address));
        ensure!(after == before, "{after:?} of {before:?} the other way round");
    }
    Ok(())
}

#[test]
fn places_that_have_no_room_leave_those_that_stand() -> Result<()> {
    lab::require!(Need::Lab);
    let stand = Stand::new()?;
    let kernel = Kernel::load(&stand)?;
    let datapath = kernel.tables.datapath();
    let mut config = config(Rules::Usual)?;
    let numbers = Numbers::default().with(&config.gateway);
    let of = |config: &Config| Places::of(config, &stand.network, &served(), &numbers);
    let before = of(&config);
    let internet = config.gateway.attachments.iter_mut().find(|one| one.name == "internet");
    let internet = internet.context("an attachment `internet`")?;
    let number = numbers.of("internet").context("its number")?;
    // One of them is carried by what stands, as long as nothing else is in the way.
    for n in 0..5_000_u32 {
        let prefix = Ipv4Net::new_assert(Ipv4Addr::from(0x6440_0000 + (n << 8)), 24);
        internet.carries.push(prefix.to_string().parse().map_err(anyhow::Error::msg)?);
    }
    let after = of(&config);
    let said = after.too_many().context("five thousand have no room")?;
    ensure!(said.ends_with(" in all; there is room for 4096"), "{said}");
    ensure!(before.too_many().is_none());
    // Whoever writes them all the same changes nothing, from what stands and from anything.
    for begins in [false, true] {
        let standing = if begins { Places::standing(datapath) } else { before.clone() };
        let written = after.write(datapath, &standing);
        ensure!(written.is_err(), "five thousand found room");
        for host in [[100, 64, 0, 1], [100, 64, 200, 1], [100, 70, 0, 1]] {
            ensure!(!kernel.tables.carries(number, V4(host)), "{host:?} is carried");
        }
        let transit = numbers.of("transit").context("its number")?;
        ensure!(kernel.tables.carries(transit, V4([100, 64, 9, 1])), "{CARRIED} is not carried");
    }
    before.write(datapath, &Places::default())?;

    // Three thousand make room for three thousand others, of each kind.
    let many = |second: u8| -> Result<Places> {
        let mut config = self::config(Rules::Usual)?;
        let transit = config.gateway.attachments.iter_mut().find(|one| one.name == "transit");
        let transit = transit.context("an attachment `transit`")?;
        for n in 0..3_000_u32 {
            let base = u32::from(Ipv4Addr::new(10, second, 0, 0));
            let prefix = Ipv4Net::new_assert(Ipv4Addr::from(base + 2 * n), 32).to_string();
            // Each of them is nobody's on the way to the Internet.
            if n < 1_500 {
                transit.sources.push(prefix.parse().map_err(anyhow::Error::msg)?);
            }
            transit.stated_routes.push(prefix.parse().map_err(anyhow::Error::msg)?);
        }
        let places = of(&config);
        ensure!(places.too_many().is_none(), "{:?}", places.too_many());
        Ok(places)
    };
    let (some, others) = (many(64)?, many(128)?);
    some.write(datapath, &before)?;
    others.write(datapath, &some)?;
    before.write(datapath, &others)?;
    Ok(())
}

/// A daemon before this one had every attachment of the stand, and an address more.
#[test]
fn places_that_left_while_no_daemon_ran_are_forgotten_by_a_start() -> Result<()> {
    lab::require!(Need::Lab);
    let stand = Stand::new()?;
    let kernel = Kernel::load(&stand)?;
    let datapath = kernel.tables.datapath();
    let mut config = config(Rules::Usual)?;
    let numbers = Numbers::default().with(&config.gateway);
    let number = |name: &str| numbers.of(name).context("every attachment has a number");
    let of = |config: &Config, network: &_| Places::of(config, network, &served(), &numbers);
    let mut network = stand.network.clone();
    for address in ["10.230.0.1", "fd00::1"] {
        let address: IpAddr = address.parse()?;
        let prefix_len = if address.is_ipv4() { 32 } else { 128 };
        let own = Address { ifindex: 1, address, prefix_len, scope: 0, secondary: true };
        network.addresses.insert((1, address, prefix_len), own);
    }
    let six: Ipv6Addr = "fd00::1".parse()?;
    // Whether each of these is known: a source, a route, what is carried, an attachment, its link, what is
    // seen of it at a glance, addresses.
    let known = |kernel: &Kernel| -> Result<[bool; 8]> {
        let tables = &kernel.tables;
        let (blue, transit) = (number("blue")?, number("transit")?);
        let pod = V4([100, 64, 0, 1]);
        Ok([
            tables.attachment_of(port(BLUE, 0), pod) == Some(blue),
            tables.attachment_towards(port(TRANSIT, 0), V4([10, 9, 9, 9])) == Some(transit),
            tables.carries(transit, V4([100, 64, 9, 1])),
            tables.attachment(blue).is_some_and(|one| one.ifindex == BLUE),
            lock(&datapath.links).get(&BLUE, 0).is_ok(),
            datapath.ports.get(BLUE).is_some_and(|info| info.ifindex == BLUE),
            tables.is_local(V4([10, 230, 0, 1])),
            lock(&datapath.locals6).keys().flatten().any(|at| Ipv6Addr::from(at) == six),
        ])
    };
    // As a start does, from whatever stands.
    let begin = |places: Places| -> Result<()> {
        let standing = Places::standing(datapath);
        let between = standing.between(&places);
        between.write(datapath, &standing)?;
        Ok(places.write(datapath, &between)?)
    };
    begin(of(&config, &network))?;
    ensure!(known(&kernel)? == [true; 8], "{:?}", known(&kernel)?);
    config.gateway.attachments.retain(|one| !["blue", "transit"].contains(&one.name.as_str()));
    begin(of(&config, &stand.network))?;
    ensure!(known(&kernel)? == [false; 8], "{:?}", known(&kernel)?);
    ensure!(kernel.tables.attachment_of(port(RED, 0), V4([100, 64, 0, 1])) == Some(number("red")?));
    Ok(())
}

#[test]
fn addresses_and_links_make_room_for_others_and_what_fails_leaves_nothing() -> Result<()> {
    lab::require!(Need::Lab);
    let stand = Stand::new()?;
    let kernel = Kernel::load(&stand)?;
    let datapath = kernel.tables.datapath();
    let config = config(Rules::Usual)?;
    let numbers = Numbers::default().with(&config.gateway);
    // So many addresses of each family from some number on, beside those of the stand.
    let with = |numbers_of: std::ops::Range<u32>| {
        let mut network = stand.network.clone();
        for number in numbers_of {
            for address in [
                IpAddr::V4(Ipv4Addr::from(0x0ae6_0000 + number)),
                IpAddr::V6(Ipv6Addr::from(0xfd00 << 112 | u128::from(number))),
            ] {
                let prefix_len = if address.is_ipv4() { 32 } else { 128 };
                let own = Address { ifindex: 1, address, prefix_len, scope: 0, secondary: true };
                network.addresses.insert((1, address, prefix_len), own);
            }
        }
        Places::of(&config, &network, &served(), &numbers)
    };
    let written = |places: &Places| {
        let mut found: Vec<_> =
            lock(&datapath.locals).keys().flatten().map(Ipv4Addr::from).collect();
        found.sort_unstable();
        found.into_iter().eq(places.locals.iter().copied())
    };
    let (some, others) = (with(0..4_000), with(150..4_150));
    ensure!(some.too_many().is_none() && others.too_many().is_none());
    some.write(datapath, &Places::default())?;
    others.write(datapath, &some)?;
    ensure!(written(&others) && lock(&datapath.locals6).keys().count() >= 4_000);
    some.write(datapath, &others)?;

    // What a table refuses has not half changed it; and it is no obstacle to what comes then.
    let strays: Vec<_> = (0..60).map(|n: u8| [192, 0, 2, n]).collect();
    for stray in &strays {
        lock(&datapath.locals).insert(stray, 1, 0)?;
    }
    let count = || lock(&datapath.locals).keys().count();
    let before = count();
    ensure!(with(0..4_080).write(datapath, &some).is_err(), "it has found room");
    ensure!(count() == before, "{} of {before} addresses", count());
    for stray in &strays {
        lock(&datapath.locals).remove(stray)?;
    }
    let few = with(0..5);
    few.write(datapath, &some)?;
    ensure!(written(&few), "{} addresses", count());
    Ok(())
}

#[test]
fn a_policy_of_an_earlier_daemon_lends_what_it_says_until_another_is_in_force() -> Result<()> {
    lab::require!(Need::Lab);
    let stand = Stand::new()?;
    let mut kernel = Kernel::load(&stand)?;
    let lending = |address: u8, first: u16| -> Result<Image> {
        let mut image = Image::clone(&config(Rules::Usual)?.image);
        image.snat.truncate(1);
        let addresses = vec![Ipv4Addr::new(203, 0, 113, address)];
        image.snat[0].action = SnatAction::Snat { addresses, ports: first..=first + 1 };
        Ok(image)
    };
    // The set of the only address in a bank, and what it says of ports that policies here name.
    let lent = |kernel: &Kernel, bank: u32| {
        let pool = kernel.tables.pool(bank, 0).expect("a place in the tables");
        let ports = kernel.tables.lendable(pool.lendable).expect("a set in the tables");
        let is_lent =
            |port: u16| ports.words[usize::from(port) / 64].load() >> (port % 64) & 1 != 0;
        (pool.lendable, [2_000, 3_000, 4_000].map(is_lent))
    };
    kernel.publish(&lending(7, 2_000)?)?;
    let bank = kernel.policy().bank();
    let before = lent(&kernel, bank);
    ensure!(before.1 == [true, false, false], "{before:?}");
    kernel.publisher = Publisher::new(kernel.tables.datapath(), BTreeMap::new());
    kernel.publish(&lending(8, 3_000)?)?;
    ensure!(kernel.policy().bank() != bank && lent(&kernel, bank) == before, "{before:?} changed");
    let after = lent(&kernel, bank ^ 1);
    ensure!(after.1 == [false, true, false], "{after:?}");
    // What it had is free from then on.
    kernel.publish(&lending(9, 4_000)?)?;
    let last = lent(&kernel, bank);
    ensure!(last == (before.0, [false, false, true]), "{last:?}");
    Ok(())
}

#[test]
fn who_left_while_no_daemon_ran_is_in_neither_half_of_the_tables() -> Result<()> {
    lab::require!(Need::Lab);
    let stand = Stand::new()?;
    let mut kernel = Kernel::load(&stand)?;
    let [stays, leaves] = [("a", 1, 0), ("b", 2, 1)];
    kernel.publish(&teams(&[stays, leaves], 0)?)?;
    kernel.publish(&teams(&[stays, leaves], 0)?)?;
    // Each of two daemons writes one half.
    for _ in 0..2 {
        kernel.publisher = Publisher::new(kernel.tables.datapath(), BTreeMap::new());
        kernel.publish(&teams(&[stays], 0)?)?;
        let bank = kernel.policy().bank();
        let of = |host: u8| kernel.tables.identity(bank, 1, V4([100, 64, 0, host])).id;
        ensure!(of(2) == of(9) && of(1) != of(9), "who left is {}, nobody is {}", of(2), of(9));
    }
    Ok(())
}
