//! Pods of a real Kubernetes API server are who their labels say, and from when on they say so.

use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lab::client::{self, Attempt};
use lab::plan::INTERNET_SERVERS;
use lab::servers::ECHO;
use lab::{Api, Netns};
use peers::{ETCD, KUBE_APISERVER};
use serde_json::json;

use crate::stand::{Place, Stand, everywhere, within};

const INTERNET: SocketAddrV4 = SocketAddrV4::new(INTERNET_SERVERS[0], ECHO);
const PODS: &str = "/api/v1/namespaces/checkout/pods";
/// On a machine that does other things besides.
const SOON: Duration = Duration::from_secs(20);

everywhere!(pods_are_who_their_labels_say_as_soon_as_the_api_server_says_so);

fn pods_are_who_their_labels_say_as_soon_as_the_api_server_says_so(place: Place) -> Result<()> {
    if let Some(why) = peers::missing(&[ETCD, KUBE_APISERVER]) {
        peers::say_skipped("scenarios::identity::pods::here", &why);
        return Ok(());
    }
    let mut stand = place.stand_with(|config| {
        // What the file no longer says, the cluster does.
        for pod in ["web", "api"] {
            config.remove("Endpoint", &format!("prod-eu/{pod}"));
        }
    })?;
    let mut api = Api::start(&stand.lab.gateway)?;
    stand.config.watch("prod-eu", &api.kubeconfig()?);
    stand.reload()?;
    let outcome = claims(&mut stand, &mut api);
    outcome.with_context(|| stand.daemon.stderr())?;
    stand.assert_sound()
}

fn claims(stand: &mut Stand, api: &mut Api) -> Result<()> {
    let pod = stand.lab.pod("prod-eu", "web");
    let (web, address) = (pod.netns.clone(), pod.address);
    within(SOON, "the empty cluster is known", || Ok(stand.daemon.get("/readyz")?.0 == 200))?;
    ensure!(!reaches(&web)?, "nobody knows the pod yet");

    // A pod has its address before it runs.
    let namespace = json!({ "metadata": { "name": "checkout" } });
    api.ask(async |admin| admin.post("/api/v1/namespaces", &namespace).await)?;
    let web_pod = json!({
        "metadata": { "name": "web", "labels": { "team": "web" } },
        "spec": { "containers": [{ "name": "c", "image": "i" }] },
    });
    api.ask(async |admin| admin.post(PODS, &web_pod).await)?;
    let status = |phase: &str| json!({ "status": { "phase": phase, "podIPs": [{ "ip": address.to_string() }] } });
    let of_web = format!("{PODS}/web");
    api.patch(&format!("{of_web}/status"), &status("Pending"))?;
    within(SOON, "the pod is let through", || reaches(&web))?;

    // A label cuts a live flow, and gives it back.
    let stream = client::connect_to(&web, INTERNET, Duration::from_secs(2))?.open()?;
    let gap = Duration::from_millis(2);
    let live = client::talk(&web, stream, gap, Duration::from_secs(1));
    std::thread::sleep(Duration::from_millis(200));
    ensure!(!live.ended(), "the flow broke off by itself");
    let asked = Instant::now();
    api.patch(&of_web, &json!({ "metadata": { "labels": { "team": "nobody" } } }))?;
    within(SOON, "the flow is cut", || Ok(live.ended()))?;
    println!("cut {:?} after the change was asked for", asked.elapsed());
    ensure!(!reaches(&web)?, "and stays cut");
    api.patch(&of_web, &json!({ "metadata": { "labels": { "team": "web" } } }))?;
    within(SOON, "the pod is let through again", || reaches(&web))?;
    live.stop().map(drop)?;
    stand.record("the pod by its name in the cluster", |record| {
        record["source"]["endpoint"] == "prod-eu/checkout/web"
            && record["source"]["namespace"] == "checkout"
            && record["event"] == "start"
    })?;
    let enforced = stand.daemon.metric("sluice_members_enforced_seconds_count", &[])?;
    ensure!(enforced >= 3.0, "{enforced} changes were timed");

    // Without the server everything stays as it is, also across a reload.
    api.stop();
    ensure!(reaches(&web)?, "what is known is frozen");
    stand.reload()?;
    ensure!(reaches(&web)?, "and outlives a reload");
    api.start_again()?;

    // A pod that has ended keeps its address in its status, and not its rights.
    api.patch(&format!("{of_web}/status"), &status("Succeeded"))?;
    within(SOON, "the ended pod is nobody", || Ok(!reaches(&web)?))?;
    api.patch(&format!("{of_web}/status"), &status("Running"))?;
    within(SOON, "a running one is somebody", || reaches(&web))?;

    // A cluster that leaves the file takes its pods along.
    let clusters = stand.config.gateway["clusters"].take();
    stand.config.gateway["clusters"] = json!([]);
    stand.reload()?;
    ensure!(!reaches(&web)?, "nobody discovers the pod any more");
    stand.config.gateway["clusters"] = clusters;
    stand.reload()?;
    within(SOON, "it is discovered again", || reaches(&web))?;

    // Who was known last is known to the next daemon at once, also where the cluster does not answer.
    let stream = client::connect_to(&web, INTERNET, Duration::from_secs(2))?.open()?;
    let live = client::talk(&web, stream, gap, Duration::from_secs(1));
    api.stop();
    stand.daemon.stop()?;
    stand.daemon.relaunch()?;
    within(SOON, "the cluster is not known yet", || {
        let said = stand.daemon.get("/readyz").map(|(_, said)| said).unwrap_or_default();
        Ok(said.contains("cluster `prod-eu` is not known yet"))
    })?;
    ensure!(reaches(&web)?, "the pod is forgotten");
    ensure!(!live.ended(), "a live flow was cut by the restart");
    live.stop().map(drop)?;
    // What is not there any more when the cluster has said all is gone.
    api.ask_beside(async |admin| admin.delete(&of_web).await)?;
    api.start_again()?;
    within(SOON, "the deleted pod is nobody", || Ok(!reaches(&web)?))?;
    within(SOON, "the cluster is known", || Ok(stand.daemon.get("/readyz")?.0 == 200))
}

/// Whether somebody reaches the Internet's servers.
fn reaches(from: &Netns) -> Result<bool> {
    match client::connect_to(from, INTERNET, Duration::from_millis(300))? {
        Attempt::Open(stream) => Ok(client::echo(stream, 1_000).is_ok()),
        Attempt::Refused | Attempt::Silence => Ok(false),
    }
}
