//! What a live cluster costs the whole gateway: from a label in a real API server to the kernel's
//! table, a cold start, and the daemon's memory, with 100,000 pods.
//!
//! Seen from outside: the daemon is a process of its own, and its table is read as it is pinned. A
//! change counts from the API server's answer to the PATCH until the entry of the pod is another
//! one, and what begins late because something is busy counts as well.

use std::collections::HashMap;
use std::fs;
use std::mem::offset_of;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{Array, Map, MapData};
use lab::{Api, Config, Daemon, Hook, Lab, Offloads, Shape};
use peers::{Admin, ETCD, KUBE_APISERVER};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use xdp_abi::config::PolicyWord;
use xdp_abi::names;
use xdp_abi::policy::{HostKey4, IdentityRef};

use crate::exam::free;
use crate::population::{NAMESPACES, PODS, Pod, TEAMS, env, namespace};
use crate::report::{Goal, Row};
use crate::statistics::{estimate, quantile, shuffled};

/// The rows of this module with what they say.
pub(crate) const ROWS: &[(&str, &str)] = &[
    ("label_p50_ms", "100,000 pods, 100 changes a second: a label's PATCH answered to enforced"),
    ("label_p99_ms", "the same, the 99th of 100"),
    ("cold_start_s", "a daemon that knows nothing starts: 100,000 pods enforced"),
    ("pod_bytes", "resident for each of these pods in the daemon"),
];

const CLUSTER: &str = "prod-eu";
const GROUPS: u32 = 1_000;
const CHANGES: u32 = 3_000;
const EVERY: Duration = Duration::from_millis(10);
/// Starts that are measured.
const STARTS: usize = 3;
/// Requests to the API server at a time while it is filled.
const AT_ONCE: usize = 32;
/// How often the table is looked at while a change is on its way.
const LOOK: Duration = Duration::from_micros(200);
const PATIENCE: Duration = Duration::from_secs(120);

/// Measures the rows of this module.
pub(crate) fn run_all(_rounds: usize, _cores: &[usize]) -> Result<Vec<Row>> {
    if let Some(why) = peers::missing(&[ETCD, KUBE_APISERVER]) {
        for (id, _) in ROWS {
            say!("SKIPPED: {id}: {why}");
        }
        return Ok(Vec::new());
    }
    // A daemon and an API server take the whole machine.
    free()?;
    let lab = Lab::new(Shape::ThreeLegged, Offloads::Off)?;
    let api = populated(&lab)?;
    let mut config = config(&lab);
    let bare = started(&lab, &config)?;
    let without = resident(&bare)?;
    ended(bare, &lab)?;
    config.watch(CLUSTER, &api.kubeconfig()?);
    let (mut starts, mut bytes) = (Vec::new(), Vec::new());
    let daemon = loop {
        let begun = Instant::now();
        let daemon = started(&lab, &config)?;
        Hosts::open(&lab)?.wait_for_all().with_context(|| daemon.stderr())?;
        starts.push(begun.elapsed().as_secs_f64());
        // What the first list took for a moment is given back by then.
        wait_for("it is ready", || Ok(daemon.get("/readyz")?.0 == 200))?;
        bytes.push((resident(&daemon)?.saturating_sub(without)) as f64 / f64::from(PODS));
        if starts.len() == STARTS {
            break daemon;
        }
        ended(daemon, &lab)?;
    };
    let latencies = changes(&lab, &api).with_context(|| daemon.stderr())?;
    let figures = [
        ("ms", None, quantile(&latencies, 0.5)),
        ("ms", Some(Goal::AtMost(50.0)), quantile(&latencies, 0.99)),
        ("s", Some(Goal::AtMost(10.0)), estimate(&starts)),
        ("B", Some(Goal::AtMost(1_536.0)), estimate(&bytes)),
    ];
    let rows = ROWS.iter().zip(figures);
    Ok(rows
        .map(|((id, what), (unit, goal, value))| Row::new(id, what, unit, goal, value))
        .collect())
}

/// The gateway of the lab with many groups, and nobody stated.
fn config(lab: &Lab) -> Config {
    let mut config = Config::new(lab, Hook::Xdp);
    config.documents.retain(|document| document["kind"] != "Endpoint");
    for (table, entries) in
        [("endpoints", 262_144), ("prefixes", 4_096), ("identities", 65_536), ("rules", 2_048)]
    {
        config.set_table(table, entries);
    }
    let team = |number: u32| json!({ "labels": { "team": format!("team-{number}") } });
    for number in 0..GROUPS {
        let selector = match number {
            // Most by team; some by version and tier; by namespace label; by prefix; by workload.
            0..TEAMS => team(number),
            400..600 => json!({
                "labels": { "app.kubernetes.io/version": format!("1.{}", number % 20) },
                "match_expressions": [{ "key": "tier", "operator": "NotIn", "values": ["data"] }],
            }),
            600..620 => json!({ "namespace_labels": { "env": env(number) } }),
            620..700 => json!({ "cidr": format!("10.{}.0.0/16", number - 600) }),
            700..900 => json!({ "k8s_workload": format!("app-{}", number * 7) }),
            _ => json!({ "group": format!("group-{}", number - 900) }),
        };
        config.add("SmartGroup", &format!("group-{number}"), json!({ "selectors": [selector] }));
        let [from, to] = [number, number * 31 + 7].map(|n| format!("group-{}", n % GROUPS));
        config.add_rule(&format!("rule-{number}"), 1_000 + number, "permit", &from, &to);
    }
    config
}

/// Starts a daemon, and waits until it answers: not until it knows anybody.
fn started(lab: &Lab, config: &Config) -> Result<Daemon> {
    let daemon = Daemon::start_under(lab, config, &[])?;
    let alive = || Ok(daemon.get("/healthz").is_ok_and(|(status, _)| status == 200));
    wait_for("it answers", alive).with_context(|| daemon.stderr())?;
    Ok(daemon)
}

/// Ends a daemon with all that the next one would know.
fn ended(mut daemon: Daemon, lab: &Lab) -> Result<()> {
    daemon.stop()?;
    let detached = daemon.detach(&[])?;
    ensure!(detached.status.success(), "{}", String::from_utf8_lossy(&detached.stderr));
    fs::remove_dir_all(lab.site().files().join("state")).context("there is no `state_dir`")
}

/// Bytes that a daemon has in memory of its own: its tables are the kernel's.
fn resident(daemon: &Daemon) -> Result<u64> {
    let path = format!("/proc/{}/status", daemon.pid());
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kilobytes: u64 = kilobytes.context("the kernel states no RssAnon")?.parse()?;
    Ok(kilobytes * 1_024)
}

fn wait_for(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !holds()? {
        ensure!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// An API server with all the pods. It takes minutes to fill one, so what it held is kept for the
/// next run.
fn populated(lab: &Lab) -> Result<Api> {
    let name = format!("etcd-{PODS}-pods-{}-{}", ETCD.version(), KUBE_APISERVER.version());
    let saved = peers::cache().join(name);
    if !saved.is_dir() {
        say!("filling an API server with {PODS} pods, once; minutes");
        let begun = Instant::now();
        let api = Api::start(&lab.gateway)?;
        api.ask(async |admin| fill(admin).await)?;
        api.save(&saved)?;
        say!("filled in {:?}", begun.elapsed());
    }
    Api::start_from(&lab.gateway, &saved)
}

async fn fill(admin: &Admin) -> Result<()> {
    at_once(NAMESPACES, |number| {
        let admin = admin.clone();
        async move {
            let labels = json!({ "env": env(number) });
            let object = json!({ "metadata": { "name": namespace(number), "labels": labels } });
            admin.post("/api/v1/namespaces", &object).await.map(drop)
        }
    })
    .await?;
    at_once(PODS, |number| {
        let (admin, pod) = (admin.clone(), Pod(number));
        async move {
            let all = format!("/api/v1/namespaces/{}/pods", pod.namespace());
            admin.post(&all, &object(pod)).await?;
            let addresses = json!([{ "ip": pod.address() }]);
            let status = json!({ "status": { "phase": "Running", "podIPs": addresses } });
            admin.patch(&format!("{}/status", path(pod)), &status).await.map(drop)
        }
    })
    .await
}

/// Does something for each number, a few at a time.
async fn at_once<F: Future<Output = Result<()>> + Send + 'static>(
    count: u32,
    each: impl Fn(u32) -> F,
) -> Result<()> {
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    for number in 0..count {
        let permit = Arc::clone(&room).acquire_owned().await?;
        let task = each(number);
        tasks.spawn(async move {
            let done = task.await;
            drop(permit);
            done
        });
        while let Some(done) = tasks.try_join_next() {
            done??;
        }
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

fn object(pod: Pod) -> Value {
    let labels: HashMap<_, _> = pod.labels(pod.team()).into_iter().collect();
    let owner = json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": pod.replica_set(),
        "uid": format!("00000000-0000-0000-0000-{:012}", pod.0), "controller": true,
    });
    json!({
        "metadata": { "name": pod.name(), "labels": labels, "ownerReferences": [owner] },
        "spec": {
            "containers": [{ "name": "c", "image": "i" }],
            "serviceAccountName": pod.app(),
            "nodeName": format!("node-{}", pod.0 % 5_000),
        },
    })
}

fn path(pod: Pod) -> String {
    format!("/api/v1/namespaces/{}/pods/{}", pod.namespace(), pod.name())
}

/// What the client says of a change.
enum Said {
    /// Its PATCH is about to be sent.
    Begun(u32),
    /// It is answered, having begun so late.
    Answered(u32, Instant, Duration),
}

/// Milliseconds from the answer to the PATCH of a label until it is enforced, in order.
fn changes(lab: &Lab, api: &Api) -> Result<Vec<f64>> {
    let table = Hosts::open(lab)?;
    let mut changed = shuffled(PODS);
    changed.truncate(CHANGES as usize);
    let (says, said) = mpsc::channel();
    let told = changed.clone();
    thread::scope(|scope| {
        let watched = scope.spawn(move || table.watch(&changed, &said));
        let sent = api.ask(async |admin| {
            let mut tasks = JoinSet::new();
            let begin = Instant::now();
            for (turn, number) in (0_u32..).zip(told) {
                let due = begin + EVERY * turn;
                tokio::time::sleep_until(due.into()).await;
                let (admin, said, pod) = (admin.clone(), says.clone(), Pod(number));
                tasks.spawn(async move {
                    let late = due.elapsed();
                    said.send(Said::Begun(number))?;
                    let team = format!("team-{}", (pod.team() + 1) % TEAMS);
                    let label = json!({ "metadata": { "labels": { "team": team } } });
                    admin.patch(&path(pod), &label).await?;
                    said.send(Said::Answered(number, Instant::now(), late))?;
                    anyhow::Ok(())
                });
            }
            drop(says);
            while let Some(done) = tasks.join_next().await {
                done??;
            }
            Ok(())
        });
        let watched = watched.join().expect("the table is read without a panic");
        sent.and(watched)
    })
}

/// The table of the daemon's that says who is behind which address.
struct Hosts {
    settings: Array<MapData, [u64; size_of::<xdp_abi::config::Config>() / 8]>,
    entries: aya::maps::HashMap<MapData, HostKey4, IdentityRef>,
    domain: u16,
}

impl Hosts {
    fn open(lab: &Lab) -> Result<Self> {
        let pins = lab.site().pins();
        let pinned = |name: &str| {
            MapData::from_pin(pins.join(name)).with_context(|| format!("there is no table {name}"))
        };
        Ok(Self {
            settings: Map::Array(pinned(names::CONFIG)?).try_into()?,
            entries: Map::HashMap(pinned(names::HOSTS4)?).try_into()?,
            domain: lab.cluster(CLUSTER).plan.domain,
        })
    }

    /// Who a pod is under the policy in force.
    fn identity(&self, pod: Pod) -> Result<Option<IdentityRef>> {
        let policy = offset_of!(xdp_abi::config::Config, policy) / 8;
        let bank = PolicyWord(self.settings.get(&0, 0)?[policy]).bank() as u16;
        let key = HostKey4 { address: pod.address().octets(), domain: self.domain, bank };
        match self.entries.get(&key, 0) {
            Ok(found) => Ok(Some(found)),
            Err(aya::maps::MapError::KeyNotFound) => Ok(None),
            Err(failed) => Err(failed.into()),
        }
    }

    /// Waits until everybody is there.
    fn wait_for_all(&self) -> Result<()> {
        for pod in (0..PODS).map(Pod) {
            wait_for("every pod is known", || Ok(self.identity(pod)?.is_some()))?;
        }
        Ok(())
    }

    /// How long each change took to come into force, in milliseconds, in order.
    fn watch(&self, changed: &[u32], said: &Receiver<Said>) -> Result<Vec<f64>> {
        let pods = changed.iter().map(|number| Pod(*number));
        let before: Vec<_> = pods.map(|pod| self.identity(pod)).collect::<Result<_>>()?;
        let before: HashMap<u32, _> = changed.iter().copied().zip(before).collect();
        let mut on_their_way: Vec<u32> = Vec::new();
        let mut enforced: HashMap<u32, Instant> = HashMap::new();
        let mut answered: HashMap<u32, (Instant, Duration)> = HashMap::new();
        let begun = Instant::now();
        let mut is_over = false;
        while !is_over || !on_their_way.is_empty() {
            loop {
                match said.try_recv() {
                    Ok(Said::Begun(number)) => on_their_way.push(number),
                    Ok(Said::Answered(number, at, late)) => {
                        answered.insert(number, (at, late));
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => {
                        is_over = true;
                        break;
                    }
                }
            }
            let mut failed = None;
            on_their_way.retain(|number| {
                let now = self.identity(Pod(*number));
                let is_changed = match (&now, &before[number]) {
                    (Ok(Some(now)), Some(before)) => {
                        (now.index, now.id) != (before.index, before.id)
                    }
                    (Ok(_), _) => false,
                    (Err(_), _) => {
                        failed = now.err();
                        false
                    }
                };
                if is_changed {
                    enforced.insert(*number, Instant::now());
                }
                !is_changed
            });
            if let Some(failed) = failed {
                return Err(failed);
            }
            let waits = on_their_way.len();
            ensure!(begun.elapsed() < PATIENCE, "{waits} changes are still not in force");
            thread::sleep(LOOK);
        }
        let mut took: Vec<f64> = Vec::with_capacity(changed.len());
        for number in changed {
            let Some((at, late)) = answered.get(number) else {
                bail!("the change of pod {number} was not answered");
            };
            let seen = enforced[number].saturating_duration_since(*at);
            took.push((seen + *late).as_secs_f64() * 1e3);
        }
        took.sort_by(f64::total_cmp);
        Ok(took)
    }
}
