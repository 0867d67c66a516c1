//! The same network with a real Kubernetes API server: a label is who a pod is.

use std::net::SocketAddrV4;
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lab::client::{self, Attempt};
use lab::plan::INTERNET_SERVERS;
use lab::servers::ECHO;
use lab::{Api, Config, Daemon, Hook, Lab, Netns};
use serde_json::{Value, json};

use crate::stage::Stage;
use crate::story::{heading, say};
use crate::table;

const CLUSTER: &str = "prod-eu";
const INTERNET: SocketAddrV4 = SocketAddrV4::new(INTERNET_SERVERS[0], ECHO);
const PATIENCE: Duration = Duration::from_secs(10);

/// Tells it.
pub(crate) fn tell(hook: Hook) -> Result<()> {
    let start = Instant::now();
    say(
        "Sluice watches a Kubernetes cluster: the pods of prod-eu are objects of a real API server.",
        &[
            "kube-apiserver and etcd run beside the gateway; the pods are network namespaces as before.",
        ],
    );
    let lab = Lab::three_legged()?;
    let mut api = Api::start(&lab.gateway)?;
    fill(&lab, &api)?;
    let mut config = Config::new(&lab, hook);
    for pod in &lab.cluster(CLUSTER).pods {
        config.remove("Endpoint", &format!("{CLUSTER}/{}", pod.plan.name));
    }
    config.watch(CLUSTER, &api.kubeconfig()?);
    let servers = lab.serve()?;
    let daemon = Daemon::start(&lab, &config)?;
    let stage = Stage::of(daemon, config, servers, lab);
    let web = stage.lab.pod(CLUSTER, "web").netns.clone();
    within("the gateway knows the cluster", || is_let_through(&web))?;
    println!("Everything is up after {:.1} s.\n", start.elapsed().as_secs_f64());

    heading("What the cluster says: kubectl get pods --all-namespaces --show-labels");
    let listed = kubectl(&stage, &api, &["get", "pods", "--all-namespaces", "--show-labels"])?;
    println!("{listed}");
    a_label_cuts_and_restores(&stage, &api, &web)?;
    the_server_goes_away(&stage, &mut api, &web)?;
    drop(stage);
    println!("Everything is removed again. That took {:.0} s.", start.elapsed().as_secs_f64());
    Ok(())
}

/// The pods of the lab's first cluster become objects, as its kubelets would report them.
fn fill(lab: &Lab, api: &Api) -> Result<()> {
    for pod in &lab.cluster(CLUSTER).pods {
        let plan = &pod.plan;
        let namespaces = "/api/v1/namespaces";
        let pods = format!("{namespaces}/{}/pods", plan.namespace);
        api.post(namespaces, &json!({ "metadata": { "name": plan.namespace } }))?;
        let labels = json!({ "team": plan.team, "tier": plan.tier });
        let containers = json!([{ "name": plan.name, "image": plan.name }]);
        let object = json!({
            "metadata": { "name": plan.name, "labels": labels },
            "spec": { "containers": containers },
        });
        api.post(&pods, &object)?;
        let addresses = json!([{ "ip": pod.address }]);
        let status = json!({ "status": { "phase": "Running", "podIPs": addresses } });
        api.patch(&format!("{pods}/{}/status", plan.name), &status)?;
    }
    Ok(())
}

fn a_label_cuts_and_restores(stage: &Stage, api: &Api, web: &Netns) -> Result<()> {
    heading("A label changes while traffic runs");
    let stream = client::connect_to(web, INTERNET, PATIENCE)?.open()?;
    let live = client::talk(web, stream, Duration::from_millis(1), PATIENCE);
    thread::sleep(Duration::from_millis(500));
    let path = "/api/v1/namespaces/shop/pods/web";
    let team = |team: &str| json!({ "metadata": { "labels": { "team": team } } });
    println!("  kubectl -n shop label pod web team=nobody --overwrite\n");
    api.patch(path, &team("nobody"))?;
    let answered = Instant::now();
    let talk = live.finish()?;
    let cut = talk.ended.context("the flow was not cut")?;
    // Both happen at once; either may be seen first.
    let after = cut.saturating_duration_since(answered);
    ensure!(!is_let_through(web)?, "the pod goes on");
    println!("  kubectl -n shop label pod web team=web --overwrite\n");
    api.patch(path, &team("web"))?;
    let answered = Instant::now();
    within("the pod is let through again", || is_let_through(web))?;
    let back = answered.elapsed();
    let metric =
        |name: &str| stage.daemon.metric(&format!("sluice_members_enforced_seconds_{name}"), &[]);
    let (sum, count) = (metric("sum")?, metric("count")?);
    table::print(
        ["what", "outcome"],
        &[
            ["the live flow".to_owned(), format!("{} messages, then cut", talk.answered)],
            [
                "- its client is told, by RST".to_owned(),
                format!("{} ms after, as it retransmits", after.as_millis()),
            ],
            [
                "the next flow, label restored".to_owned(),
                format!("open {} ms after it", back.as_millis()),
            ],
            [
                "from hearing of a change to the kernel".to_owned(),
                format!("{:.2} ms on average, of {count} changes", sum / count * 1e3),
            ],
        ],
    );
    say(
        "Nothing was published anew: one entry of one table changed, and one epoch.",
        &[
            "`sluice_members_enforced_seconds` has it as a histogram; the generation of the policy stays.",
        ],
    );
    let records = stage.daemon.flow_records()?;
    let named = records.iter().rev().filter(|record| record["source"]["namespace"] == "shop");
    let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let rows: Vec<_> = named
        .take(4)
        .map(|record| {
            [
                word(&record["event"]),
                word(&record["source"]["endpoint"]),
                record["source"]["groups"].to_string(),
                word(&record["reason"]),
            ]
        })
        .collect();
    table::print(["record", "pod", "groups", "reason"], &rows);
    Ok(())
}

fn the_server_goes_away(stage: &Stage, api: &mut Api, web: &Netns) -> Result<()> {
    heading("The API server is killed");
    api.stop();
    ensure!(is_let_through(web)?, "what was known is forgotten");
    within("the gateway says so", || {
        Ok(stage.daemon.metric("sluice_cluster_degraded_kinds", &[])? > 0.0)
    })?;
    println!("{}", stage.ctl(&["status"])?);
    say(
        "Groups are frozen, not emptied: the pod is let through as before.",
        &["`sluice_cluster_degraded_kinds` and `sluice_cluster_staleness_seconds` tell of it."],
    );
    api.start_again()
}

fn is_let_through(from: &Netns) -> Result<bool> {
    Ok(match client::connect_to(from, INTERNET, Duration::from_millis(300))? {
        Attempt::Open(stream) => client::echo(stream, 1_000).is_ok(),
        Attempt::Refused | Attempt::Silence => false,
    })
}

fn within(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !holds()? {
        ensure!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// What `kubectl` prints, or that it is not there.
fn kubectl(stage: &Stage, api: &Api, arguments: &[&str]) -> Result<String> {
    let file = api.kubeconfig()?.display().to_string();
    let run = || -> Result<Output> {
        let mut command = Command::new("kubectl");
        command.args(["--kubeconfig", &file]).args(arguments);
        Ok(command.output()?)
    };
    match stage.lab.gateway.enter(run) {
        Ok(output) => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Err(_) => Ok("  (there is no kubectl on this machine)\n".to_owned()),
    }
}
