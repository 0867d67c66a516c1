//! What 100,000 pods cost the compiler: a whole policy, one pod that changes, a namespace that
//! is relabelled, and the memory that they all take.

use std::fs;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use ipnet::{IpNet, Ipv4Net};
use policy_compiler::{
    Action, Capacity, Compiler, DefaultAction, Enforcement, Inputs, Log, Protocol, Rule, RuleId,
};
use smartgroups::{
    Change, DomainId, Endpoint, EndpointKind, Expression, Inventory, Labels, NamespaceId, Operator,
    Pool, Selector, SmartGroup, Text, Workload,
};

use crate::exam::pinned;
use crate::population::{self, NAMESPACES, PODS, Pod, TEAMS, env};
use crate::report::{Goal, Row};
use crate::statistics::{Estimate, estimate, shuffled};

/// The rows of this module with what they say.
pub(crate) const ROWS: &[(&str, &str)] = &[
    ("compile_full_s", "whole policy: 10,000 rules, 1,000 groups, 100,000 pods"),
    ("compile_delta_ms", "one of those pods gets another label: resolved and compiled"),
    ("compile_delta_p99_ms", "the same, the 99th of 100 changes"),
    ("namespace_linear", "relabelled, time for each pod: a namespace of 2,000 / one of 50"),
    ("compiler_pod_bytes", "resident for each pod: inventory, membership, compiler"),
];

const GROUPS: u32 = 1_000;
const RULES: u32 = 10_000;
/// Changes of one pod in each round.
const CHANGES: usize = 500;

const ROOM: Capacity = Capacity {
    rules: 16_384,
    identities: 65_536,
    hosts: 262_144,
    prefixes: 65_536,
    port_classes: 4_096,
    snat_policies: 256,
};

const CLUSTER: DomainId = DomainId(1);

/// Measures the rows of this module.
pub(crate) fn run_all(rounds: usize, cores: &[usize]) -> Result<Vec<Row>> {
    pinned(cores[0])?;
    let groups = groups();
    let rules = rules();
    let nobody = Inventory::new();
    let inputs = Inputs {
        inventory: &nobody,
        groups: &groups,
        rules: &rules,
        snat: &[],
        default_action: DefaultAction { action: Action::Deny, log: Log::Both },
        domains: &[CLUSTER],
    };
    let before = resident()?;
    let mut inventory = inventory();
    ensure!(inventory.len() == PODS as usize, "there are {} pods", inventory.len());
    let mut seen = Seen::default();
    for round in 0..rounds {
        let started = Instant::now();
        let (mut compiler, image, _) = Compiler::new(inventory, &inputs, &ROOM)?;
        seen.full.push(started.elapsed().as_secs_f64());
        ensure!(image.hosts.len() > PODS as usize / 2, "{} hosts", image.hosts.len());
        drop(image);
        if round == 0 {
            seen.bytes = (resident()? - before) as f64 / f64::from(PODS);
        }
        seen.change_pods(&mut compiler, round)?;
        let [crowd, few] = [0, 1].map(|number| relabelled(&mut compiler, number, round));
        seen.linear.push(crowd? / few?);
        inventory = compiler.into_inventory();
    }
    Ok(seen.rows())
}

#[derive(Default)]
struct Seen {
    full: Vec<f64>,
    delta: Vec<f64>,
    slow: Vec<f64>,
    linear: Vec<f64>,
    bytes: f64,
}

impl Seen {
    fn change_pods(&mut self, compiler: &mut Compiler, round: usize) -> Result<()> {
        let mut times = Vec::with_capacity(CHANGES);
        let numbers = shuffled(PODS);
        let mut pool = Pool::new();
        for number in numbers.iter().cycle().skip(round * CHANGES).take(CHANGES) {
            let pod = Pod(*number);
            let team = (pod.team() + 1 + round as u32) % TEAMS;
            let change = Change::Endpoint(Arc::new(endpoint(pod, team, &mut pool)));
            let started = Instant::now();
            let amendment = compiler.amend([change])?;
            times.push(started.elapsed().as_secs_f64() * 1e3);
            ensure!(amendment.hosts.len() == 1, "pod {number}: {} hosts", amendment.hosts.len());
        }
        times.sort_by(f64::total_cmp);
        self.delta.push(times[CHANGES / 2]);
        self.slow.push(times[CHANGES * 99 / 100]);
        Ok(())
    }

    fn rows(self) -> Vec<Row> {
        let bytes = Estimate { value: self.bytes, low: self.bytes, high: self.bytes };
        let figures = [
            ("s", Some(Goal::AtMost(1.0)), estimate(&self.full)),
            ("ms", Some(Goal::AtMost(1.0)), estimate(&self.delta)),
            ("ms", None, estimate(&self.slow)),
            ("ratio", Some(Goal::AtMost(2.0)), estimate(&self.linear)),
            ("B", None, bytes),
        ];
        let rows = ROWS.iter().zip(figures);
        rows.map(|((id, what), (unit, goal, value))| Row::new(id, what, unit, goal, value))
            .collect()
    }
}

/// Seconds for each pod of a namespace that gets other labels.
fn relabelled(compiler: &mut Compiler, number: u32, round: usize) -> Result<f64> {
    let id = namespace_id(number);
    let pods = compiler.inventory().in_namespace(&id).count();
    let labels = Labels::from([("env", ["prod", "dev"][round % 2])]);
    let started = Instant::now();
    let amendment = compiler.amend([Change::Namespace(id, labels)])?;
    let time = started.elapsed().as_secs_f64();
    ensure!(amendment.hosts.len() == pods, "{} of {pods} pods changed", amendment.hosts.len());
    Ok(time / pods as f64)
}

/// Bytes of this process that are in memory.
fn resident() -> Result<u64> {
    let text = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kilobytes: u64 = kilobytes.context("the kernel states no VmRSS")?.parse()?;
    Ok(kilobytes * 1024)
}

fn namespace_id(number: u32) -> NamespaceId {
    NamespaceId { cluster: Some("prod".into()), name: population::namespace(number).into() }
}

fn inventory() -> Inventory {
    let mut inventory = Inventory::new();
    let mut pool = Pool::new();
    for number in 0..NAMESPACES {
        inventory.insert_namespace(namespace_id(number), [("env", env(number))].into());
    }
    for pod in (0..PODS).map(Pod) {
        inventory.insert(endpoint(pod, pod.team(), &mut pool));
    }
    inventory
}

fn endpoint(pod: Pod, team: u32, pool: &mut Pool) -> Endpoint {
    let (namespace, app) = (pool.text(&pod.namespace()), pool.text(&pod.app()));
    let labels = pod.labels(team);
    Endpoint {
        addresses: [IpNet::from(IpAddr::V4(pod.address()))].into(),
        cluster: Some(pool.text("prod")),
        services: [app.clone()].into(),
        service_account: Some(app.clone()),
        workload: Some(Workload { kind: pool.text("Deployment"), name: app }),
        labels: pool.labels(labels.iter().map(|(key, value)| (*key, value.as_str()))),
        namespace: Some(namespace.clone()),
        ..Endpoint::new(
            Text::from(format!("prod/{namespace}/{}", pod.name())),
            EndpointKind::Pod,
            CLUSTER,
        )
    }
}

fn groups() -> Vec<SmartGroup> {
    let labelled = |key: &str, value: String| Selector {
        labels: [(key.to_owned(), value)].into(),
        ..Selector::default()
    };
    let of = |number: u32| {
        let selectors = match number {
            // Most by team; some by tier and version; by namespace label; by prefix; by workload.
            0..TEAMS => vec![labelled("team", format!("team-{number}"))],
            400..600 => vec![Selector {
                expressions: vec![Expression {
                    key: "tier".into(),
                    operator: Operator::NotIn,
                    values: ["data".to_owned()].into(),
                }],
                ..labelled("app.kubernetes.io/version", format!("1.{}", number % 20))
            }],
            600..620 => vec![Selector {
                namespace_labels: [("env".to_owned(), ["prod", "dev"][number as usize % 2].into())]
                    .into(),
                ..Selector::default()
            }],
            620..700 => vec![Selector::cidr(IpNet::V4(Ipv4Net::new_assert(
                (0x0a00_0000 + (number << 16)).into(),
                16,
            )))],
            700..900 => vec![Selector {
                workload: Some(format!("app-{}", number * 7)),
                ..Selector::default()
            }],
            _ => vec![Selector {
                group: Some(format!("group-{}", number - 900)),
                ..Selector::default()
            }],
        };
        SmartGroup::new(format!("group-{number}"), selectors)
    };
    (0..GROUPS).map(of).collect()
}

fn rules() -> Vec<Rule> {
    let group = |number: u32| format!("group-{}", number % GROUPS);
    let of = |number: u32| Rule {
        name: format!("rule-{number}"),
        id: RuleId(number + 1),
        priority: number,
        action: if number.is_multiple_of(9) { Action::Deny } else { Action::Permit },
        sources: vec![group(number)],
        destinations: vec![group(number * 31 + 7)],
        protocol: Protocol::TCP,
        ports: vec![(1000 + (number % 200) as u16)..=(1000 + (number % 200) as u16)],
        log: Log::Both,
        enforcement: Enforcement::Enforce,
        mark: None,
        description: String::new(),
    };
    (0..RULES).map(of).collect()
}
