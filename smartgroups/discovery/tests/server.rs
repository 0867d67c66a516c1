//! Discovery against the API server itself.

mod follower;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use follower::Follower;
use peers::{Admin, ETCD, KUBE_APISERVER, Kubernetes};
use serde_json::{Value, json};
use smartgroups::Change;
use smartgroups_discovery::kubernetes::{Access, IssuedToken, Issuer, Kind};

const MINUTE: Duration = Duration::from_secs(60);

fn access(cluster: &Kubernetes) -> Access {
    let path = cluster.kubeconfig(cluster.admin_token()).unwrap();
    Access::Kubeconfig { path, context: Some("peers".to_owned()) }
}

async fn namespace(admin: &Admin, name: &str, labels: Value) {
    let object = json!({"metadata": {"name": name, "labels": labels}});
    admin.post("/api/v1/namespaces", &object).await.unwrap();
}

/// A label of the namespace `shop`.
fn environment(follower: &Follower) -> &str {
    follower.namespaces.get("shop").and_then(|labels| labels.get("env")).unwrap_or_default()
}

fn pods(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/pods")
}

/// Makes a pod and gives it an address, as a kubelet would; its uid.
async fn pod(admin: &Admin, namespace: &str, name: &str, address: &str) -> String {
    let object = json!({
        "metadata": {"name": name, "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": "i"}], "serviceAccountName": "web-sa"},
    });
    let made = admin.post(&pods(namespace), &object).await.unwrap();
    let status = json!({"status": {"phase": "Running", "podIPs": [{"ip": address}]}});
    admin.patch(&format!("{}/{name}/status", pods(namespace)), &status).await.unwrap();
    made["metadata"]["uid"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn what_happens_in_the_cluster_is_followed() {
    peers::require!(ETCD, KUBE_APISERVER);
    let cluster = Kubernetes::start().await.unwrap();
    let admin = cluster.admin().unwrap();
    namespace(&admin, "shop", json!({"env": "test"})).await;
    let uid = pod(&admin, "shop", "web-0", "100.64.0.1").await;
    let mut follower = Follower::new(access(&cluster), MINUTE);
    follower.until("all is known", |it| it.synced).await;
    assert_eq!(follower.names(), ["shop/web-0"]);
    let known = &follower.endpoints["prod/shop/web-0"];
    assert_eq!(*known.addresses, ["100.64.0.1/32".parse().unwrap()]);
    assert_eq!(known.service_account.as_deref(), Some("web-sa"));
    assert_eq!(environment(&follower), "test");
    for kind in follower.status().kinds {
        assert!(kind.is_live() && kind.streams && kind.lists == 1, "{kind:?}");
    }

    let path = format!("{}/web-0", pods("shop"));
    admin.patch(&path, &json!({"metadata": {"labels": {"app": "db"}}})).await.unwrap();
    let answered = Instant::now();
    follower.until("the pod has its label", |it| it.label("shop/web-0", "app") == "db").await;
    // Not a benchmark: only that nothing waits for a timer.
    let late = follower.received.unwrap().saturating_duration_since(answered);
    println!("received {} ms after the answer to the change", late.as_millis());
    assert!(late < Duration::from_secs(5), "{late:?}");

    let relabel = json!({"metadata": {"labels": {"env": "prod"}}});
    let before = follower.changes.len();
    admin.patch("/api/v1/namespaces/shop", &relabel).await.unwrap();
    follower.until("the namespace has its label", |it| environment(it) == "prod").await;
    assert_eq!(follower.changes.len(), before + 1, "of its pods nothing is said");

    let slice = json!({
        "metadata": {"name": "web-x", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["100.64.0.1"],
            "targetRef": {"kind": "Pod", "namespace": "shop", "name": "web-0", "uid": uid}}],
    });
    let slices = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices";
    admin.post(slices, &slice).await.unwrap();
    follower
        .until("the pod is behind the service", |it| {
            *it.endpoints["prod/shop/web-0"].services == ["web".into()]
        })
        .await;

    let service = json!({"metadata": {"name": "web"},
        "spec": {"ports": [{"port": 80}], "externalIPs": ["192.0.2.1"]}});
    admin.post("/api/v1/namespaces/shop/services", &service).await.unwrap();
    let node = json!({"metadata": {"name": "n1"}});
    admin.post("/api/v1/nodes", &node).await.unwrap();
    let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}});
    admin.patch("/api/v1/nodes/n1/status", &status).await.unwrap();
    follower
        .until("service and node are known", |it| {
            it.names() == ["node:prod/n1", "shop/web-0", "service:prod/shop/web"]
        })
        .await;

    let ended = json!({"status": {"phase": "Succeeded"}});
    admin.patch(&format!("{path}/status"), &ended).await.unwrap();
    follower.until("it ended, so it owns nothing", |it| !it.names().contains(&"shop/web-0")).await;
    pod(&admin, "shop", "web-1", "100.64.0.1").await;
    follower.until("another has its address", |it| it.names().contains(&"shop/web-1")).await;
    admin.delete(&format!("{}/web-1", pods("shop"))).await.unwrap();
    follower.until("that is deleted", |it| !it.names().contains(&"shop/web-1")).await;
    for kind in follower.status().kinds {
        assert_eq!((kind.lists, kind.failures), (1, 0), "all of it by watches: {kind:?}");
    }
}

/// Does what docs/kubernetes.md says about a service account, to the letter, but for where files lie.
fn with_documented_account(cluster: &Kubernetes) {
    let page = include_str!("../../../docs/kubernetes.md");
    let section =
        page.split("\n## ").find(|part| part.starts_with("Giving access by a service account"));
    let commands: String = section
        .unwrap()
        .split("```sh\n")
        .skip(1)
        .map(|block| block.split("```").next().unwrap())
        .collect();
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let files = cluster.files().display().to_string();
    let run = Command::new("sh")
        .args(["-e", "-c", &commands.replace("/etc/sluice", &files)])
        .current_dir(root)
        .env("KUBECONFIG", cluster.kubeconfig(cluster.admin_token()).unwrap())
        .output()
        .unwrap();
    assert!(run.status.success(), "{commands}{}", String::from_utf8_lossy(&run.stderr));
}

fn documented(cluster: &Kubernetes) -> Access {
    Access::Token {
        server: cluster.url(),
        token_file: cluster.files().join("prod.token"),
        ca_file: Some(cluster.files().join("prod.ca")),
    }
}

/// Whether `kubectl` is there; if not, says that a test is skipped.
fn has_kubectl(test: &str) -> bool {
    let found = Command::new("kubectl").args(["version", "--client"]).output().is_ok();
    if !found {
        println!(
            "SKIPPED: {test}: there is no `kubectl`; see https://kubernetes.io/docs/tasks/tools"
        );
    }
    found
}

#[tokio::test]
async fn the_documented_access_suffices_and_when_it_is_revoked_the_last_state_stays() {
    peers::require!(ETCD, KUBE_APISERVER);
    if !has_kubectl("the_documented_access_suffices_and_when_it_is_revoked_the_last_state_stays") {
        return;
    }
    let cluster = Kubernetes::start().await.unwrap();
    let admin = cluster.admin().unwrap();
    with_documented_account(&cluster);
    let token = std::fs::read_to_string(cluster.files().join("prod.token")).unwrap();
    pod(&admin, "sluice", "web-0", "100.64.0.1").await;
    // Short, because who may watch is asked when a watch begins.
    let mut follower = Follower::new(documented(&cluster), Duration::from_secs(2));
    follower.until("all is known", |it| it.synced).await;
    assert_eq!(follower.names(), ["sluice/web-0"]);
    follower.until("its token's end is known", |it| it.status().credentials_expire.is_some()).await;
    let left = follower.status().credentials_expire.unwrap();
    let left = left.duration_since(std::time::SystemTime::now()).unwrap();
    assert!(left > MINUTE * 60 * 23 && left <= MINUTE * 60 * 24, "{left:?}");

    let bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    let binding = admin.get(&format!("{bindings}/sluice-discovery")).await.unwrap();
    admin.delete(&format!("{bindings}/sluice-discovery")).await.unwrap();
    for kind in Kind::ALL {
        follower.until("it says that it is refused", |it| it.error(kind).contains("403")).await;
        let error = follower.error(kind);
        assert!(error.contains(kind.resource()) && !error.contains(token.trim()), "{error}");
    }
    pod(&admin, "sluice", "web-1", "100.64.0.2").await;
    follower.during(Duration::from_secs(2)).await;
    assert_eq!(follower.names(), ["sluice/web-0"], "frozen");
    assert_eq!(follower.status().degraded(Instant::now()).count(), Kind::ALL.len());

    let again = json!({"metadata": {"name": "sluice-discovery"}, "roleRef": binding["roleRef"], "subjects": binding["subjects"]});
    admin.post(bindings, &again).await.unwrap();
    follower.until("it goes on", |it| it.names() == ["sluice/web-0", "sluice/web-1"]).await;
    follower.until("all kinds do", |it| it.status().kinds.iter().all(|kind| kind.is_live())).await;
    let pods = follower.kind(Kind::Pod);
    assert_eq!(pods.lists, 1, "where it stopped, without a list: {pods:?}");
}

#[tokio::test]
async fn a_token_that_is_renewed_too_late_is_read_again() {
    peers::require!(ETCD, KUBE_APISERVER);
    let cluster = Kubernetes::start().await.unwrap();
    let token_file = cluster.files().join("late.token");
    std::fs::write(&token_file, "of-yesterday").unwrap();
    let access = Access::Token {
        server: cluster.url(),
        token_file: token_file.clone(),
        ca_file: Some(cluster.ca_file()),
    };
    let mut follower = Follower::new(access, MINUTE);
    for kind in Kind::ALL {
        follower.until("it says that it is not known", |it| it.error(kind).contains("401")).await;
        assert!(!follower.error(kind).contains("yesterday"), "{}", follower.error(kind));
    }
    std::fs::write(&token_file, cluster.admin_token()).unwrap();
    // Sooner than what was read would be read again by itself.
    let start = Instant::now();
    follower.until("all is known", |it| it.synced).await;
    assert!(start.elapsed() < Duration::from_secs(40), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_plugin_gives_the_token_and_is_asked_again_before_it_expires() {
    peers::require!(ETCD, KUBE_APISERVER);
    let cluster = Kubernetes::start().await.unwrap();
    let runs = cluster.files().join("runs");
    // What a plugin for a cloud prints. kube asks again a minute before the end.
    let script = format!(
        "echo run >>{}; end=$(date -u -d '+66 seconds' +%Y-%m-%dT%H:%M:%SZ); \
         echo '{{\"apiVersion\": \"client.authentication.k8s.io/v1\", \"kind\": \"ExecCredential\", \
         \"status\": {{\"token\": \"{}\", \"expirationTimestamp\": \"'$end'\"}}}}'",
        runs.display(),
        cluster.admin_token()
    );
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster":
            {"server": cluster.url(), "certificate-authority": cluster.ca_file()}}],
        "users": [{"name": "u", "user": {"exec": {
            "apiVersion": "client.authentication.k8s.io/v1", "command": "sh",
            "args": ["-c", script], "interactiveMode": "Never",
        }}}],
    });
    let path = cluster.files().join("plugin.kubeconfig");
    std::fs::write(&path, kubeconfig.to_string()).unwrap();
    // Short, because a token is needed when a watch begins.
    let access = Access::Kubeconfig { path, context: None };
    let mut follower = Follower::new(access, Duration::from_secs(1));
    follower.until("all is known", |it| it.synced).await;
    let runs = || std::fs::read_to_string(&runs).unwrap().lines().count();
    let before = runs();
    assert!(before < Kind::ALL.len(), "one client for all kinds, not {before}");
    follower.until("it was asked again", |_| runs() > before).await;
    namespace(&cluster.admin().unwrap(), "late", json!({})).await;
    follower.until("the watch goes on", |it| it.namespaces.contains_key("late")).await;
    assert_eq!(follower.kind(Kind::Namespace).failures, 0);
}

#[tokio::test]
async fn issued_tokens_are_renewed_while_watches_go_on_and_without_one_all_is_frozen() {
    peers::require!(ETCD, KUBE_APISERVER);
    let cluster = Kubernetes::start().await.unwrap();
    let admin = cluster.admin().unwrap();
    let (issued, refuses) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
    let issuer = {
        let (issued, refuses) = (Arc::clone(&issued), Arc::clone(&refuses));
        let secret = cluster.admin_token().to_owned();
        Issuer::new("short", move || {
            let answer = if refuses.load(Ordering::Relaxed) {
                Err("not any more".into())
            } else {
                issued.fetch_add(1, Ordering::Relaxed);
                let expires = SystemTime::now() + Duration::from_secs(3);
                Ok(IssuedToken { secret: secret.clone(), expires })
            };
            async move { answer }
        })
    };
    let (server, ca_file) = (cluster.url(), Some(cluster.ca_file()));
    // Short, because a token is needed when a watch begins.
    let access = Access::Issued { server, issuer, ca_file };
    let mut follower = Follower::new(access, Duration::from_secs(1));
    follower.until("all is known", |it| it.synced).await;
    follower.until("tokens are renewed", |_| issued.load(Ordering::Relaxed) > 3).await;
    namespace(&admin, "shop", json!({"env": "test"})).await;
    follower.until("the watch goes on", |it| environment(it) == "test").await;
    assert_eq!(follower.kind(Kind::Namespace).failures, 0);
    let left = follower.status().credentials_expire;
    let left = left.map(|end| end.duration_since(SystemTime::now()).unwrap_or_default());
    assert!(left.is_some_and(|left| left <= Duration::from_secs(3)), "{left:?}");

    refuses.store(true, Ordering::Relaxed);
    let why = "no token is issued: not any more";
    follower.until("it is said", |it| it.error(Kind::Namespace).contains(why)).await;
    assert_eq!(environment(&follower), "test", "frozen");
    refuses.store(false, Ordering::Relaxed);
    admin
        .patch("/api/v1/namespaces/shop", &json!({"metadata": {"labels": {"env": "prod"}}}))
        .await
        .unwrap();
    follower.until("it goes on", |it| environment(it) == "prod").await;
}

#[tokio::test]
async fn after_an_outage_of_the_server_a_difference_arrives() {
    peers::require!(ETCD, KUBE_APISERVER);
    let mut cluster = Kubernetes::start().await.unwrap();
    let admin = cluster.admin().unwrap();
    namespace(&admin, "shop", json!({})).await;
    for (name, address) in
        [("stays", "100.64.0.1"), ("goes", "100.64.0.2"), ("changes", "100.64.0.3")]
    {
        pod(&admin, "shop", name, address).await;
    }
    let mut follower = Follower::new(access(&cluster), MINUTE);
    follower.until("all is known", |it| it.synced).await;
    let before = follower.changes.len();

    cluster.stop_api();
    for kind in Kind::ALL {
        follower
            .until("it says that nobody answers", |it| it.error(kind).contains("cannot reach"))
            .await;
    }
    assert_eq!(follower.names().len(), 3, "frozen");
    {
        let (_second, beside) = cluster.second_api().await.unwrap();
        beside.delete(&format!("{}/goes", pods("shop"))).await.unwrap();
        let label = json!({"metadata": {"labels": {"app": "other"}}});
        beside.patch(&format!("{}/changes", pods("shop")), &label).await.unwrap();
        pod(&beside, "shop", "comes", "100.64.0.2").await;
    }
    cluster.start_api().await.unwrap();
    follower
        .until("what was missed is known", |it| {
            it.names() == ["shop/changes", "shop/comes", "shop/stays"]
        })
        .await;
    follower.until("the label is known", |it| it.label("shop/changes", "app") == "other").await;
    follower
        .until("all kinds are live", |it| it.status().kinds.iter().all(|kind| kind.is_live()))
        .await;
    let changed: Vec<String> = follower.changes[before..].iter().filter_map(touched).collect();
    assert!(!changed.iter().any(|name| name.ends_with("stays")), "a difference: {changed:?}");
    assert!(follower.namespaces.contains_key("shop"));
    let pods = follower.kind(Kind::Pod);
    assert!(pods.failures > 0, "{pods:?}");
}

fn touched(change: &Change) -> Option<String> {
    match change {
        Change::Endpoint(endpoint) => Some(endpoint.name.to_string()),
        Change::Gone(name) => Some(name.to_string()),
        Change::Namespace(..) | Change::NamespaceGone(_) => None,
    }
}

#[tokio::test]
async fn a_version_that_etcd_has_compacted_away_is_not_asked_for_again() {
    peers::require!(ETCD, KUBE_APISERVER);
    // Without its cache the server asks etcd for every watch, and etcd has forgotten.
    let mut cluster = Kubernetes::start_with(&["--watch-cache=false"]).await.unwrap();
    let admin = cluster.admin().unwrap();
    namespace(&admin, "shop", json!({})).await;
    pod(&admin, "shop", "goes", "100.64.0.1").await;
    let mut follower = Follower::new(access(&cluster), MINUTE);
    follower.until("all is known", |it| it.synced).await;
    cluster.stop_api();
    follower.until("the stream broke", |it| !it.error(Kind::Pod).is_empty()).await;
    {
        let (_second, beside) = cluster.second_api().await.unwrap();
        beside.delete(&format!("{}/goes", pods("shop"))).await.unwrap();
        pod(&beside, "shop", "comes", "100.64.0.1").await;
    }
    cluster.compact().await.unwrap();
    cluster.start_api().await.unwrap();
    follower.until("what was missed is known", |it| it.names() == ["shop/comes"]).await;
    follower.until("pods are live", |it| it.kind(Kind::Pod).is_live()).await;
    let pods = follower.kind(Kind::Pod);
    assert!(pods.expired >= 1 && pods.lists == 2, "{pods:?}");
}

#[tokio::test]
async fn a_server_without_streaming_lists_is_followed_by_pages() {
    peers::require!(ETCD, KUBE_APISERVER);
    let cluster = Kubernetes::start_with(&["--feature-gates=WatchList=false"]).await.unwrap();
    let admin = cluster.admin().unwrap();
    namespace(&admin, "shop", json!({})).await;
    for number in 0..3 {
        pod(&admin, "shop", &format!("web-{number}"), &format!("100.64.0.{number}")).await;
    }
    let mut follower = Follower::new(access(&cluster), MINUTE);
    follower.until("all is known", |it| it.synced).await;
    assert_eq!(follower.names().len(), 3);
    for kind in follower.status().kinds {
        assert!(!kind.streams && kind.is_live(), "{kind:?}");
    }
    admin.delete(&format!("{}/web-0", pods("shop"))).await.unwrap();
    follower.until("it is followed", |it| it.names().len() == 2).await;
}
