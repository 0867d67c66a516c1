//! What discovery costs, as figures. Slow, so by order only:
//!
//! `cargo test --release --package smartgroups-discovery --test scale -- --ignored --nocapture`

mod fake;

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fake::Fake;
use peers::{ETCD, KUBE_APISERVER, Kubernetes};
use serde_json::json;
use smartgroups::{Change, DomainId};
use smartgroups_discovery::kubernetes::{
    Access, Batch, Cluster, ClusterName, Kind, Scope, Settings,
};
use tokio::sync::mpsc;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(300);

fn watched(access: Access) -> (Cluster, mpsc::Receiver<Batch>) {
    let (sender, batches) = mpsc::channel(64);
    let cluster = ClusterName::new("prod").unwrap();
    let scope = Scope { cluster, pods: DomainId(1), nodes: DomainId::FABRIC };
    (Cluster::spawn(Settings::new(scope, access), sender), batches)
}

/// Takes what comes until all kinds were heard of; how many changes came.
async fn synced(batches: &mut mpsc::Receiver<Batch>) -> usize {
    let mut changes = 0;
    loop {
        let batch = timeout(PATIENCE, batches.recv()).await.unwrap().unwrap();
        changes += batch.changes.len();
        if batch.synced {
            return changes;
        }
    }
}

/// Memory in use, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1_024
}

const PODS: usize = 100_000;
const NAMESPACES: usize = 2_000;
/// Says to this program, run anew, that it is the server.
const SERVE: &str = "SLUICE_SCALE_SERVE";

/// In a process of its own, so that its memory is not taken for that of discovery.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "is the server of another test"]
async fn the_server() {
    if std::env::var_os(SERVE).is_none() {
        return;
    }
    let fake = Fake::start().await;
    for number in 0..NAMESPACES {
        let labels = json!({"env": number % 5, "team": number % 100});
        let labels: serde_json::Map<_, _> = labels
            .as_object()
            .unwrap()
            .iter()
            .map(|(key, value)| (key.clone(), json!(value.to_string())))
            .collect();
        fake.put(
            Kind::Namespace,
            json!({"metadata": {"name": format!("ns{number}"), "labels": labels}}),
        );
    }
    for number in 0..PODS {
        let workload = number / 5;
        fake.put(
            Kind::Pod,
            json!({
                "metadata": {
                    "name": format!("web{workload}-7d4b75cb6d-{number:05}"),
                    "namespace": format!("ns{}", number % NAMESPACES),
                    "uid": format!("0f0e0d0c-0b0a-0908-0706-{number:012}"),
                    "labels": {"app": format!("web{workload}"), "tier": "front",
                        "version": format!("v{}", workload % 7), "pod-template-hash": "7d4b75cb6d"},
                    "ownerReferences": [{"kind": "ReplicaSet", "name": format!("web{workload}-7d4b75cb6d"),
                        "controller": true}],
                },
                "spec": {"nodeName": format!("n{}", number % 5_000), "serviceAccountName": "web"},
                "status": {"phase": "Running", "podIPs": [{"ip": format!("100.{}.{}.{}",
                    64 + number / 65_536, number / 256 % 256, number % 256)}]},
            }),
        );
    }
    // Only the present is asked for.
    fake.compact();
    let Access::Kubeconfig { path, .. } = fake.access() else { unreachable!() };
    println!("\nready {}", path.display());
    // Until whoever started it is gone.
    let _ = std::io::stdin().read_line(&mut String::new());
}

/// A running server with all the pods.
struct Server {
    process: Child,
    kubeconfig: PathBuf,
}

impl Server {
    fn start() -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "the_server", "--nocapture"])
            .env(SERVE, "yes")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let ready = output.lines().map_while(Result::ok);
        let path = ready.filter_map(|line| line.strip_prefix("ready ").map(PathBuf::from)).next();
        Self { process, kubeconfig: path.expect("the server says when it is ready") }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "loads a fake server with 100,000 pods"]
async fn a_hundred_thousand_pods_are_known_within_seconds() {
    let server = Server::start();
    let before = resident();
    let start = Instant::now();
    let access = Access::Kubeconfig { path: server.kubeconfig.clone(), context: None };
    let (cluster, mut batches) = watched(access);
    let changes = synced(&mut batches).await;
    let took = start.elapsed();
    let bytes = resident().saturating_sub(before) / PODS as u64;
    println!(
        "{PODS} pods, five a workload, in {NAMESPACES} namespaces: known in {:.2} s, {bytes} B resident a pod, with what \
         the list took for a moment and nobody gave back",
        took.as_secs_f64()
    );
    assert_eq!((changes, cluster.status().endpoints), (PODS + NAMESPACES, PODS));
    assert!(took < Duration::from_secs(60), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "loads the API server with 1,000 pods and changes one 100 times a second"]
async fn a_changed_label_arrives_within_milliseconds() {
    peers::require!(ETCD, KUBE_APISERVER);
    const PODS: usize = 1_000;
    const CHANGES: usize = 1_000;
    let server = Kubernetes::start().await.unwrap();
    let admin = server.admin().unwrap();
    let pods = "/api/v1/namespaces/default/pods";
    for number in 0..PODS {
        let name = format!("web-{number}");
        let pod = json!({"metadata": {"name": name},
            "spec": {"containers": [{"name": "c", "image": "i"}]}});
        admin.post(pods, &pod).await.unwrap();
        let status = json!({"status": {"phase": "Running", "podIPs":
            [{"ip": format!("100.64.{}.{}", number / 256, number % 256)}]}});
        admin.patch(&format!("{pods}/{name}/status"), &status).await.unwrap();
    }
    let path = server.kubeconfig(server.admin_token()).unwrap();
    let (_cluster, mut batches) = watched(Access::Kubeconfig { path, context: None });
    synced(&mut batches).await;
    let arrivals = tokio::spawn(async move {
        let mut arrivals = vec![None; CHANGES];
        while arrivals.iter().any(Option::is_none) {
            let batch = timeout(PATIENCE, batches.recv()).await.unwrap().unwrap();
            let now = Instant::now();
            for change in batch.changes {
                let Change::Endpoint(pod) = change else { continue };
                let number: Option<usize> = pod.labels.get("n").and_then(|n| n.parse().ok());
                if let Some(number) = number {
                    arrivals[number].get_or_insert(now);
                }
            }
        }
        arrivals
    });
    let mut changing = Vec::new();
    let mut clock = tokio::time::interval(Duration::from_millis(10));
    for number in 0..CHANGES {
        clock.tick().await;
        let admin = admin.clone();
        changing.push(tokio::spawn(async move {
            let label = json!({"metadata": {"labels": {"n": number.to_string()}}});
            admin.patch(&format!("{pods}/web-{}", number % PODS), &label).await.unwrap();
            Instant::now()
        }));
    }
    let mut late = Vec::new();
    let arrivals = arrivals.await.unwrap();
    for (answered, arrived) in changing.into_iter().zip(arrivals) {
        late.push(arrived.unwrap().saturating_duration_since(answered.await.unwrap()));
    }
    late.sort_unstable();
    let at = |share: f64| late[((late.len() - 1) as f64 * share) as usize];
    println!(
        "{CHANGES} labels changed at 100/s among {PODS} pods, from the server's answer to the batch: \
         p50 {:?}, p99 {:?}, worst {:?}",
        at(0.5),
        at(0.99),
        at(1.0)
    );
    assert!(at(0.99) < Duration::from_millis(500), "{:?}", at(0.99));
}
