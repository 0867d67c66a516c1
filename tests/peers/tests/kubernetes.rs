//! The cluster that other tests rely on does what they rely on.

use peers::{ETCD, KUBE_APISERVER, Kubernetes};
use serde_json::json;

const PODS: &str = "/api/v1/namespaces/default/pods";

fn pod(name: &str) -> serde_json::Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

#[tokio::test]
async fn a_pod_gets_its_address_from_the_test_and_survives_the_server() {
    peers::require!(ETCD, KUBE_APISERVER);
    let mut cluster = Kubernetes::start().await.unwrap();
    let admin = cluster.admin().unwrap();
    assert_eq!(admin.get("/version").await.unwrap()["gitVersion"], KUBE_APISERVER.version());
    admin.post(PODS, &pod("web")).await.unwrap();
    let status = json!({"status": {"phase": "Running", "podIPs": [{"ip": "100.64.0.1"}]}});
    admin.patch(&format!("{PODS}/web/status"), &status).await.unwrap();

    cluster.stop_api();
    assert!(admin.get(PODS).await.is_err(), "nobody answers");
    {
        let (_second, beside) = cluster.second_api().await.unwrap();
        beside.post(PODS, &pod("late")).await.unwrap();
    }
    cluster.compact().await.unwrap();
    cluster.start_api().await.unwrap();
    let pods = admin.get(PODS).await.unwrap();
    let names: Vec<_> =
        pods["items"].as_array().unwrap().iter().map(|pod| &pod["metadata"]["name"]).collect();
    assert_eq!(names, ["late", "web"]);
    assert_eq!(pods["items"][1]["status"]["podIPs"][0]["ip"], "100.64.0.1");
}

#[tokio::test]
async fn a_server_that_refuses_its_options_is_quoted() {
    peers::require!(ETCD, KUBE_APISERVER);
    let error = Kubernetes::start_with(&["--no-such-option"]).await.unwrap_err().to_string();
    assert!(error.contains("kube-apiserver ended"), "{error}");
    assert!(error.contains("no-such-option"), "{error}");
}

#[tokio::test]
async fn a_dropped_cluster_leaves_neither_process_nor_file() {
    peers::require!(ETCD, KUBE_APISERVER);
    let cluster = Kubernetes::start().await.unwrap();
    let (files, url) = (cluster.files().to_owned(), cluster.url());
    let address = url.strip_prefix("https://").unwrap().to_owned();
    std::net::TcpStream::connect(&address).expect("it listens");
    drop(cluster);
    assert!(!files.exists());
    std::net::TcpStream::connect(&address).expect_err("nobody listens any more");
}
