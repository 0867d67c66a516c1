//! Discovery against an API server that fails on command: each row of what breaks watchers.

mod fake;
mod follower;

use std::time::{Duration, Instant};

use fake::{Fake, Fault, Lag, Streaming};
use follower::Follower;
use smartgroups::DomainId;
use smartgroups_discovery::kubernetes::{Cluster, ClusterName, Kind, Scope, Settings};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// The shortest that can be asked for.
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// A server with one namespace and one pod, and somebody who knows both.
async fn followed(watch_timeout: Duration) -> (Fake, Follower) {
    let fake = Fake::start().await;
    fake.namespace("shop");
    fake.pod("a", "web");
    let mut follower = Follower::new(fake.access(), watch_timeout);
    follower.until("all is known", |it| it.synced).await;
    assert_eq!(follower.names(), ["shop/a"]);
    fake.asked();
    (fake, follower)
}

/// How often a watch began from a version; lists that come as a stream are not among them.
fn watches(asked: &[String]) -> usize {
    asked.iter().filter(|query| query.contains("resourceVersion=")).count()
}

fn lists(asked: &[String]) -> usize {
    asked.len() - watches(asked)
}

#[tokio::test]
async fn a_version_that_is_too_old_is_asked_for_once_and_what_was_missed_is_a_difference() {
    for by_status in [true, false] {
        let (fake, mut follower) = followed(MINUTE).await;
        if by_status {
            fake.refuse_by_status();
        }
        fake.pod("stays", "web");
        follower.until("it is known", |it| it.names().len() == 2).await;
        let before = follower.changes.len();
        fake.fault(Fault::Refuse(503));
        fake.cut();
        follower.until("it is away", |it| it.error(Kind::Pod).contains("503")).await;
        fake.delete_pod("a");
        fake.pod("b", "web");
        fake.compact();
        fake.asked();
        fake.fault(Fault::None);
        follower
            .until("what was missed is known", |it| it.names() == ["shop/b", "shop/stays"])
            .await;
        follower.until("it is live", |it| it.kind(Kind::Pod).is_live()).await;
        assert_eq!(
            follower.changes.len(),
            before + 2,
            "by status {by_status}: {:?}",
            follower.changes
        );
        assert_eq!((follower.kind(Kind::Pod).expired, follower.kind(Kind::Pod).lists), (1, 2));
        let asked = fake.asked();
        assert_eq!(lists(&asked), 1, "by status {by_status}: {asked:?}");
    }
}

#[tokio::test]
async fn a_server_that_refuses_every_version_is_not_stormed() {
    let (fake, mut follower) = followed(MINUTE).await;
    fake.fault(Fault::GoneAtStart);
    // Streams would go on by themselves.
    fake.streaming(Streaming::Refused);
    fake.compact();
    fake.cut();
    follower.during(Duration::from_secs(4)).await;
    let asked = fake.asked();
    // At once, then after 0.4 to 0.8 s, 0.8 to 1.6 s, 1.6 to 3.2 s.
    assert!((2..=5).contains(&watches(&asked)), "{asked:?}");
    assert!(lists(&asked) <= 6, "{asked:?}");
    assert!(follower.error(Kind::Pod).contains("410"), "{:?}", follower.kind(Kind::Pod));
    assert_eq!(follower.names(), ["shop/a"], "nothing is lost meanwhile");
    fake.fault(Fault::None);
    fake.pod("b", "web");
    follower.until("it recovers", |it| it.names() == ["shop/a", "shop/b"]).await;
}

#[tokio::test]
async fn a_stream_that_falls_silent_is_noticed_and_asked_for_again() {
    let (fake, mut follower) = followed(SECOND).await;
    fake.fault(Fault::Silent);
    fake.cut();
    let start = Instant::now();
    follower.during(SECOND / 2).await;
    fake.pod("b", "web");
    follower.until("it is noticed", |it| it.kind(Kind::Pod).silent > 0).await;
    // The watch that was cut, one that is silent for 1 + 1.5 s, and pauses between.
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    assert!(
        follower.error(Kind::Pod).contains("nothing was heard"),
        "{}",
        follower.error(Kind::Pod)
    );
    assert_eq!(follower.names(), ["shop/a"], "frozen");
    fake.fault(Fault::None);
    follower.until("it goes on", |it| it.names() == ["shop/a", "shop/b"]).await;
    assert_eq!(follower.kind(Kind::Pod).lists, 1, "from where it stopped");
}

/// A pod has a new label and another is gone, and there is a server that does not know it yet.
async fn followed_past() -> (Fake, Follower) {
    let (fake, mut follower) = followed(MINUTE).await;
    fake.pod("gone", "web");
    fake.pod("a", "old");
    fake.remember();
    fake.pod("a", "new");
    fake.delete_pod("gone");
    follower.until("the present is known", |it| label(it) == "new" && it.names().len() == 1).await;
    (fake, follower)
}

fn label(follower: &Follower) -> &str {
    follower.label("shop/a", "app")
}

#[tokio::test]
async fn the_list_of_a_server_that_lags_is_refused_until_it_has_caught_up() {
    let (fake, mut follower) = followed_past().await;
    let before = follower.changes.len();
    fake.lag(Lag::Refuses);
    follower.until("its list is refused", |it| it.kind(Kind::Pod).outdated > 0).await;
    assert!(follower.error(Kind::Pod).contains("lags"), "{}", follower.error(Kind::Pod));
    assert_eq!(follower.changes.len(), before, "nothing comes back");
    fake.pod("b", "web");
    fake.catch_up();
    follower.until("it has caught up", |it| it.names() == ["shop/a", "shop/b"]).await;
    assert_eq!((follower.changes.len(), label(&follower)), (before + 1, "new"));
}

#[tokio::test]
async fn the_events_of_a_server_that_lags_are_passed_over() {
    let (fake, mut follower) = followed_past().await;
    let before = follower.changes.len();
    fake.asked();
    fake.lag(Lag::Replays);
    // That `a` is new, `gone` is there, and `a` is old.
    follower.until("it tells of before", |it| it.kind(Kind::Pod).passed_over == 3).await;
    let asked = fake.asked();
    fake.cut();
    follower.until("it is asked again", |it| it.kind(Kind::Pod).passed_over == 6).await;
    assert_eq!(fake.asked(), asked, "from where it was, not from before");
    fake.catch_up();
    fake.pod("b", "web");
    follower.until("the next is known", |it| it.names() == ["shop/a", "shop/b"]).await;
    assert_eq!((follower.changes.len(), label(&follower)), (before + 1, "new"));
}

#[tokio::test]
async fn a_list_whose_pages_expire_is_begun_anew_and_is_whole() {
    let fake = Fake::start().await;
    fake.streaming(Streaming::Refused);
    fake.expire_pages(2);
    fake.namespace("shop");
    for number in 0..1_200 {
        fake.pod(&format!("p{number}"), "web");
    }
    let mut follower = Follower::new(fake.access(), MINUTE);
    follower.until("all is known", |it| it.synced).await;
    assert_eq!(follower.names().len(), 1_200);
    let pods = follower.kind(Kind::Pod);
    assert_eq!((pods.expired, pods.lists, pods.streams), (2, 1, false), "{pods:?}");
    let asked = fake.asked();
    let last = asked.iter().rfind(|query| !query.contains("watch")).unwrap();
    assert_eq!(last, "", "all at once, because pages expire: {asked:?}");
}

#[tokio::test]
async fn a_list_in_pages_is_put_together() {
    let fake = Fake::start().await;
    fake.streaming(Streaming::Refused);
    fake.namespace("shop");
    for number in 0..1_001 {
        fake.pod(&format!("p{number}"), "web");
    }
    let mut follower = Follower::new(fake.access(), MINUTE);
    follower.until("all is known", |it| it.synced).await;
    assert_eq!(follower.names().len(), 1_001);
    let pages = fake.asked().iter().filter(|query| query.contains("limit=500")).count();
    assert_eq!(pages, 3);
}

#[tokio::test]
async fn bookmarks_alone_keep_a_quiet_watch_young() {
    let (fake, mut follower) = followed(MINUTE).await;
    let heard = follower.kind(Kind::Pod).heard;
    let version = fake.bookmark();
    follower.until("it was heard", |it| it.kind(Kind::Pod).heard > heard).await;
    fake.cut();
    follower.during(SECOND / 2).await;
    fake.pod("b", "web");
    follower.until("it goes on", |it| it.names() == ["shop/a", "shop/b"]).await;
    let asked = fake.asked();
    let expected = format!("resourceVersion={version}");
    assert!(asked.len() == 1 && asked[0].ends_with(&expected), "{asked:?}");
}

#[tokio::test]
async fn a_kind_that_is_refused_holds_up_no_other() {
    for code in [401, 403, 429, 500, 503] {
        let fake = Fake::start().await;
        fake.namespace("shop");
        fake.pod("a", "web");
        fake.fault(Fault::Refuse(code));
        let mut follower = Follower::new(fake.access(), MINUTE);
        follower
            .until("the others are known", |it| {
                it.status().kinds.iter().filter(|kind| kind.is_live()).count()
                    == Kind::ALL.len() - 1
            })
            .await;
        follower.until("it says why", |it| it.error(Kind::Pod).contains(&code.to_string())).await;
        assert!(!follower.synced && follower.namespaces.contains_key("shop"), "{code}");
        fake.fault(Fault::None);
        follower.until("all is known", |it| it.synced && it.names() == ["shop/a"]).await;
    }
}

#[tokio::test]
async fn a_server_that_takes_a_streaming_list_for_a_watch_is_asked_for_pages() {
    let fake = Fake::start().await;
    fake.streaming(Streaming::Ignored);
    fake.namespace("shop");
    fake.pod("a", "web");
    let mut follower = Follower::new(fake.access(), SECOND * 2);
    follower.until("all is known", |it| it.synced && it.names() == ["shop/a"]).await;
    assert!(!follower.kind(Kind::Pod).streams);
    fake.pod("b", "web");
    follower.until("it is followed", |it| it.names() == ["shop/a", "shop/b"]).await;
}

#[tokio::test]
async fn a_server_that_ends_watches_at_once_is_not_stormed() {
    let (fake, mut follower) = followed(MINUTE).await;
    fake.fault(Fault::Hasty);
    fake.cut();
    fake.asked();
    follower.during(Duration::from_secs(3)).await;
    let asked = fake.asked();
    assert!((2..=6).contains(&asked.len()), "{asked:?}");
    assert_eq!(lists(&asked), 0, "{asked:?}");
}

/// Changes and faults in an order that a seed gives, then a server that serves well again.
async fn muddle_through(seed: u64) {
    let mut drawn = seed;
    // SplitMix64, below a bound.
    let mut below = move |bound: u64| {
        drawn = drawn.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (drawn ^ drawn >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % bound
    };
    let (fake, mut follower) = followed(SECOND).await;
    for step in 0..60 {
        let pod = format!("p{}", below(6));
        match below(4) {
            0 if fake.pods().contains_key(&pod) => fake.delete_pod(&pod),
            _ => fake.pod(&pod, &step.to_string()),
        }
        match below(12) {
            0 => fake.cut(),
            1 => fake.compact(),
            2 => drop(fake.bookmark()),
            3 => fake.remember(),
            4 => fake.lag(if below(2) == 0 { Lag::Refuses } else { Lag::Replays }),
            5 => fake.catch_up(),
            6 => fake.fault(Fault::Refuse([401, 403, 410, 500, 503][below(5) as usize])),
            7 => fake.fault([Fault::GoneAtStart, Fault::Silent, Fault::Hasty][below(3) as usize]),
            8 => fake.streaming([Streaming::Refused, Streaming::Ignored][below(2) as usize]),
            9 => fake.expire_pages(1),
            _ => fake.fault(Fault::None),
        }
        follower.during(Duration::from_millis(below(200))).await;
    }
    fake.fault(Fault::None);
    fake.catch_up();
    let expected = fake.pods();
    follower
        .until(&format!("after seed {seed} what is known is {expected:?}"), |it| {
            let known = it.endpoints.values().map(|pod| {
                let app = pod.labels.get("app").unwrap().to_owned();
                (pod.pod_name().unwrap().to_owned(), app)
            });
            known.eq(expected.clone())
        })
        .await;
}

#[tokio::test]
async fn whatever_failed_what_is_known_in_the_end_is_what_there_is() {
    let all: Vec<_> = (0..8).map(|seed| tokio::spawn(muddle_through(seed))).collect();
    for one in all {
        one.await.unwrap();
    }
}

#[tokio::test]
async fn a_cluster_that_never_answers_holds_up_no_other() {
    // It takes connections and is silent, which is worse than one that is gone.
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", dead.local_addr().unwrap());
    let fake = Fake::start().await;
    fake.namespace("shop");
    fake.pod("a", "web");
    let kubeconfig = std::env::temp_dir().join(format!("sluice-dead-{}", std::process::id()));
    let file = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "c", "user": {"token": "t"}}],
    });
    std::fs::write(&kubeconfig, file.to_string()).unwrap();
    let bad = smartgroups_discovery::kubernetes::Access::Kubeconfig {
        path: kubeconfig.clone(),
        context: None,
    };
    let (sender, mut batches) = mpsc::channel(1);
    let spawn = |name: &str, access| {
        let cluster = ClusterName::new(name).unwrap();
        let scope = Scope { cluster, pods: DomainId(1), nodes: DomainId::FABRIC };
        Cluster::spawn(Settings::new(scope, access), sender.clone())
    };
    let bad = spawn("bad", bad);
    let _good = spawn("good", fake.access());
    let start = Instant::now();
    loop {
        let batch = tokio::time::timeout(MINUTE, batches.recv()).await.unwrap().unwrap();
        assert_eq!(batch.cluster.as_str(), "good");
        if batch.synced {
            break;
        }
    }
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert!(!bad.status().is_synced());
    std::fs::remove_file(kubeconfig).unwrap();
}
