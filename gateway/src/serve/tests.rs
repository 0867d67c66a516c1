//! The whole API over a real socket, asked by the client that `sluicectl` uses.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use api::client::{Client, ClientError};
use api::explain::{ExplainRequest, Explanation, Outcome};
use api::path;
use api::policy::{Identities, Rules, Snat};
use api::session::{ClearRequest, ClearResponse, Phase, Sessions};
use api::status::{Direction, Maps, Stats, Status};
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::{Condition, Socket, State, router};
use crate::datapath::places::Served;
use crate::flows::testing::{self, RIVAL, Scene, TWO_CLUSTERS};
use crate::flows::{Census, Live};
use xdp::memory::Memory;

/// A gateway that answers until the end of the test.
struct Running {
    directory: PathBuf,
    state: Arc<State<Memory>>,
    end: Option<oneshot::Sender<()>>,
    served: tokio::task::JoinHandle<()>,
}

impl Running {
    async fn new(name: &str, scene: &Scene) -> Self {
        let directory = std::env::temp_dir().join(format!("sluice-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        let state = Arc::new(State::new(Arc::clone(&scene.memory), scene.in_force()));
        let (end, ended) = oneshot::channel::<()>();
        let routes = router(Arc::clone(&state));
        let socket = Socket::open(&directory.join("s")).unwrap();
        let tally = Arc::clone(&state.connections.local);
        let served = tokio::spawn(async move {
            let end = async move {
                let _ = ended.await;
            };
            socket.serve(routes, tally, end).await;
        });
        Self { directory, state, end: Some(end), served }
    }

    async fn ask<R: Send + 'static>(
        &self,
        question: impl FnOnce(&Client) -> R + Send + 'static,
    ) -> R {
        let client = Client::new(self.directory.join("s"));
        tokio::task::spawn_blocking(move || question(&client)).await.unwrap()
    }

    async fn get<T: DeserializeOwned + Send + 'static>(&self, path: &'static str) -> T {
        self.ask(move |client| client.get(path, &[])).await.unwrap()
    }

    async fn sessions(&self, filter: &'static str, limit: &'static str) -> Sessions {
        let ask = move |client: &Client| {
            client.get(path::SESSIONS, &[("filter", filter), ("limit", limit)])
        };
        self.ask(ask).await.unwrap()
    }

    async fn stop(mut self) {
        self.end.take().unwrap().send(()).unwrap();
        self.served.await.unwrap();
        assert!(!self.directory.join("s").exists(), "the socket goes with the server");
        std::fs::remove_dir_all(&self.directory).unwrap();
    }
}

fn busy() -> Scene {
    let mut scene = testing::scene(TWO_CLUSTERS);
    scene.open_tcp("100.64.1.10:40000", "198.51.100.9:443");
    scene.open_tcp("100.64.1.10:40001", "198.51.100.9:443");
    scene.open_tcp("100.64.1.10:40002", "198.51.100.10:443");
    scene.syn(1, "100.64.1.10:40003", "198.51.100.9:22");
    scene.send(1, testing::datagram("100.64.1.10:5353", "10.20.0.1:53"));
    scene.pass(10 * testing::SECOND);
    scene
}

#[tokio::test]
async fn sessions_are_shown_with_names_and_ended_by_filter() {
    let running = Running::new("api-sessions", &busy()).await;
    let all = running.sessions("", "100").await;
    assert_eq!((all.matched, all.sessions.len()), (4, 4));
    assert_eq!(running.sessions("", "2").await.sessions.len(), 2);
    assert_eq!(running.sessions("", "0").await.matched, 4);
    let mut one = running.sessions("port=40000 proto=tcp", "100").await;
    let session = one.sessions.remove(0);
    assert_eq!(one.matched, 1);
    assert_eq!(session.domain, "red");
    assert_eq!(session.source.endpoint.as_deref(), Some("shop/api-1"));
    assert!(session.source.groups.unwrap().contains(&"shop".to_owned()));
    assert_eq!(session.rule.unwrap().name.as_deref(), Some("web"));
    assert_eq!(session.would_match.unwrap().name.as_deref(), Some("watch-web"));
    assert_eq!(session.snat_policy.unwrap().name.as_deref(), Some("pods-out"));
    assert_eq!((session.ingress.as_str(), session.egress.as_str()), ("red-pods", "internet"));
    assert_eq!(session.phase, Phase::TcpEstablished);
    assert_eq!((session.age, session.idle, session.expires_in), (10, 10, 7_430));
    assert_eq!((session.original.packets, session.reply.packets), (2, 1));

    let clear = |filter: &'static str| {
        running.ask(move |client| {
            let request = ClearRequest { filter: filter.to_owned() };
            client.post::<ClearResponse>(path::SESSIONS_CLEAR, &request)
        })
    };
    assert_eq!(clear("dst=198.51.100.9").await.unwrap().cleared, 2);
    assert_eq!(clear("dst=198.51.100.9").await.unwrap().cleared, 0);
    // Two rest now: they are shown to whoever asks for them, and counted apart.
    let resting = running.sessions("state=resting", "100").await;
    assert!(resting.sessions.iter().all(|session| session.phase == Phase::Resting));
    let live = running.sessions("", "100").await;
    assert!(live.sessions.iter().all(|session| session.phase != Phase::Resting));
    let census = Census::take(&*running.state.live, Live::now(&*running.state.live));
    assert_eq!((live.matched, resting.matched), (census.live, census.resting));
    let counters = running.state.live.counters();
    assert_eq!(live.matched, counters.sessions_begun - counters.sessions_ended, "as metrics say");
    assert_eq!((resting.matched, live.matched > 0), (2, true));
    let all = running.sessions("state=all dst=198.51.100.9", "100").await;
    assert_eq!(all.matched, 2);
    let error = clear("state=resting").await.unwrap_err();
    assert!(error.to_string().contains("only these; leave it out"), "{error}");
    running.stop().await;
}

#[tokio::test]
async fn only_tcp_has_flags() {
    let running = Running::new("api-flags", &busy()).await;
    for (filter, expected) in [("proto=tcp", true), ("proto=udp", false)] {
        let shown = running.sessions(filter, "100").await.sessions;
        assert!(!shown.is_empty(), "{filter}");
        for session in shown {
            for traffic in [session.original, session.reply] {
                assert_eq!(traffic.tcp_flags.is_some(), expected, "{filter}: {traffic:?}");
            }
        }
    }
    running.stop().await;
}

#[tokio::test]
async fn a_user_with_too_many_connections_is_told_so() {
    let running = Running::new("api-crowded", &busy()).await;
    let path = running.directory.join("s");
    let silent: Vec<UnixStream> = (0..32).map(|_| UnixStream::connect(&path).unwrap()).collect();
    // Both sides at once, so the connection breaks at another moment each time.
    for _ in 0..20 {
        let refused = running.ask(|client| client.get::<Status>(path::STATUS, &[])).await;
        let said = refused.map(drop).unwrap_err().to_string();
        assert_eq!(
            said,
            "the gateway refused: the local socket takes 32 connections of a user and 128 in all; \
             end some"
        );
    }
    drop(silent);
    running.stop().await;
}

#[tokio::test]
async fn a_wrong_request_is_refused_in_words() {
    let running = Running::new("api-refusals", &busy()).await;
    let refused = |path: &'static str, query: &'static [(&str, &str)]| {
        running.ask(move |client| client.get::<Sessions>(path, query).unwrap_err())
    };
    for (path, query, expected) in [
        (path::SESSIONS, &[("filter", "prot=tcp")] as &[_], "`prot` is not a key"),
        (path::SESSIONS, &[("limit", "many")], "invalid digit"),
        (path::SESSIONS, &[("lmit", "1")], "unknown field `lmit`, expected `filter` or `limit`"),
        (path::EXPLAIN, &[], "/v1/explain does not take GET"),
        (path::SESSIONS, &[("filter", "rule=wbe")], "there is no rule `wbe`; `sluicectl rules`"),
        (
            path::SESSIONS,
            &[("filter", "domain=green")],
            "there is no domain `green`; there are fabric, red, blue",
        ),
        ("/v1/nonsense", &[], "there is no /v1/nonsense"),
    ] {
        let error = refused(path, query).await;
        let ClientError::Problem(problem) = &error else { panic!("{error}") };
        assert!(problem.detail.as_ref().unwrap().contains(expected), "{problem:?}");
        assert!((400..500).contains(&problem.status), "{problem:?}");
    }
    let error = running
        .ask(|client| {
            let request = serde_json::json!({ "filter": "", "force": true });
            client.post::<ClearResponse>(path::SESSIONS_CLEAR, &request).unwrap_err()
        })
        .await;
    assert!(error.to_string().contains("force"), "{error}");
    let error = running
        .ask(|client| {
            let request = ClearRequest { filter: "rule=wbe".to_owned() };
            client.post::<ClearResponse>(path::SESSIONS_CLEAR, &request).unwrap_err()
        })
        .await;
    assert!(error.to_string().contains("there is no rule `wbe`"), "{error}");
    // What is there and has no session is no mistake, a disabled rule and a domain alike.
    for filter in ["rule=no-ssh", "rule=unused", "domain=blue", "src=192.0.2.1"] {
        assert_eq!(running.sessions(filter, "100").await.matched, 0, "{filter}");
    }
    running.stop().await;
}

#[tokio::test]
async fn rules_identities_and_snat_show_what_they_did() {
    let running = Running::new("api-policy", &busy()).await;
    let rules: Rules = running.get(path::RULES).await;
    assert_eq!(rules.generation, 1);
    let hits: Vec<(&str, u64)> =
        rules.rules.iter().map(|rule| (rule.name.as_str(), rule.hits)).collect();
    let expected = [
        ("watch-web", 3),
        ("web", 3),
        ("no-ssh", 1),
        ("no-telnet", 0),
        ("office-dns", 1),
        ("unused", 0), // disabled, and shown all the same
    ];
    assert_eq!(hits, expected);

    let identities: Identities = running.get(path::IDENTITIES).await;
    let shop = identities
        .identities
        .iter()
        .find(|identity| identity.groups.contains(&"shop".to_owned()))
        .unwrap();
    assert_eq!(shop.hosts, 2);
    let members: Vec<_> =
        shop.members.iter().map(|m| (m.domain.as_str(), m.endpoint.as_deref().unwrap())).collect();
    assert_eq!(members, [("red", "shop/api-1"), ("blue", "shop/api-2")]);
    assert!(identities.identities.iter().all(|identity| identity.doubted.is_empty()));
    let office = identities
        .identities
        .iter()
        .find(|identity| identity.groups.contains(&"office".to_owned()))
        .unwrap();
    assert!(office.prefixes >= 1 && office.hosts == 0);

    let snat: Snat = running.get(path::SNAT).await;
    let policies: Vec<(&str, u64)> =
        snat.policies.iter().map(|policy| (policy.name.as_str(), policy.sessions)).collect();
    assert_eq!(policies, [("pods-out", 3), ("pods-to-transit", 1)]);
    let pools: Vec<(String, u32, u64)> = snat
        .pools
        .iter()
        .map(|pool| (pool.address.to_string(), pool.lendable, pool.sessions))
        .collect();
    assert_eq!(pools, [("203.0.113.1".into(), 64_512, 3), ("10.0.0.9".into(), 100, 1)]);
    let fill: Vec<_> = snat
        .fill
        .iter()
        .map(|pair| {
            (pair.destination.to_string(), pair.policies.join(" "), pair.used, pair.lendable)
        })
        .collect();
    let row = |destination: &str, policy: &str, used, lendable| {
        (destination.to_owned(), policy.to_owned(), used, lendable)
    };
    let expected = [
        row("10.20.0.1:53", "pods-to-transit", 1, 100), // the smaller range is fuller
        row("198.51.100.9:443", "pods-out", 2, 64_512),
        row("198.51.100.10:443", "pods-out", 1, 64_512),
    ];
    assert_eq!(fill, expected);
    running.stop().await;
}

#[tokio::test]
async fn a_contested_address_is_shown_first_with_its_claimants_and_the_groups_in_doubt() {
    let quiet: String = (0..20)
        .map(|n| {
            format!(
                "  - {{ kind: Endpoint, name: shop/q-{n}, spec: {{ type: pod, domain: red, \
                 addresses: [100.64.0.{n}], namespace: shop }} }}\n"
            )
        })
        .collect();
    // The last pair is in the same groups, so nothing of it is in doubt.
    let pair = |name: &str| {
        format!(
            "  - {{ kind: Endpoint, name: shop/{name}, spec: {{ type: pod, domain: red, \
             addresses: [100.64.9.9], namespace: shop }} }}\n"
        )
    };
    let text = format!("{TWO_CLUSTERS}{RIVAL}{quiet}{}{}", pair("x"), pair("y"));
    let running = Running::new("api-contested", &testing::scene(&text)).await;
    let Identities { identities } = running.get(path::IDENTITIES).await;
    let find = |address: &str| {
        let mut all = identities.iter().flat_map(|identity| {
            identity.members.iter().enumerate().map(move |(n, member)| (identity, n, member))
        });
        all.find(|(_, _, member)| member.domain == "red" && member.address.to_string() == address)
            .unwrap_or_else(|| panic!("{address}: {identities:#?}"))
    };
    let (identity, _, member) = find("100.64.1.10");
    assert_eq!(identity.doubted, ["api", "ads"]);
    assert_eq!(member.claimants, ["shop/api-1", "shop/api-9"]);
    let (identity, place, member) = find("100.64.9.9");
    assert_eq!((identity.hosts, identity.members.len(), place), (21, 16, 0));
    assert_eq!(
        (&identity.doubted[..], &member.claimants[..]),
        (&[][..], &["shop/x", "shop/y"].map(String::from)[..])
    );
    running.stop().await;
}

#[tokio::test]
async fn an_endpoint_in_no_more_groups_than_the_prefix_around_it_is_shown() {
    let printer =
        "  - { kind: Endpoint, name: printer, spec: { type: vm, addresses: [10.20.0.7] } }\n";
    let text = format!("{TWO_CLUSTERS}{printer}");
    let running = Running::new("api-printer", &testing::scene(&text)).await;
    let Identities { identities } = running.get(path::IDENTITIES).await;
    let is_office = |group: &String| group == "office";
    let office = identities.iter().find(|identity| identity.groups.iter().any(is_office)).unwrap();
    assert_eq!((office.hosts, office.prefixes), (1, 1), "{identities:#?}");
    assert!(office.members.iter().any(|member| member.endpoint.as_deref() == Some("printer")));
    running.stop().await;
}

#[tokio::test]
async fn status_and_stats_add_up() {
    let running = Running::new("api-status", &busy()).await;
    let status: Status = running.get(path::STATUS).await;
    assert_eq!((status.name.as_str(), status.generation, status.sessions), ("gw-test", 1, 4));
    assert!(!status.healthy);
    assert_eq!(status.problems.len(), Condition::ALL.len(), "nobody has said yet that all is well");
    assert_eq!(status.attachments.len(), 4);
    assert_eq!(status.attachments[3].kind, "internet");
    assert_eq!(status.attachments[0].hook, None);
    for condition in Condition::ALL {
        running.state.readiness.set(condition, vec![]);
    }
    running.state.refuse("sluice.yaml:3: no".to_owned());
    let status: Status = running.get(path::STATUS).await;
    assert_eq!(status.reload_refused.as_deref(), Some("sluice.yaml:3: no"));
    assert!(status.healthy, "a policy is in force");
    running.state.set_served([(1, ("eth1".to_owned(), Served::Xdp))].into(), vec![]);
    let status: Status = running.get(path::STATUS).await;
    assert!(status.healthy && status.problems.is_empty());
    assert_eq!(status.attachments[0].hook.as_deref(), Some("xdp"));

    let stats: Stats = running.get(path::STATS).await;
    let dropped: u64 = stats.drops.iter().map(|drop| drop.packets).sum();
    assert_eq!(
        stats.received.packets,
        stats.forwarded_original.packets + stats.forwarded_reply.packets + dropped
    );
    assert_eq!(stats.drops.len(), 1);
    assert_eq!(stats.drops[0].reason, "rule_denied");
    assert_eq!(stats.drops[0].direction, Direction::Outbound);
    assert_eq!((stats.sessions_begun, stats.sessions_ended), (4, 0));
    let table = |name: &str| stats.tables.iter().find(|table| table.name == name).unwrap();
    assert_eq!((table("sessions").used, table("sessions").size), (4, 1024));
    assert_eq!(table("endpoints").used, 2);
    assert!(table("next_hops").used >= 3);

    // Nothing is pinned here, and that is no error.
    let maps: Maps = running.get(path::MAPS).await;
    assert_eq!(maps.maps, []);
    running.stop().await;
}

#[tokio::test]
async fn an_explanation_comes_over_the_socket_too() {
    let running = Running::new("api-explain", &busy()).await;
    let explanation: Explanation = running
        .ask(|client| {
            let to = "198.51.100.9:443/tcp";
            let request = ExplainRequest::parse("red:100.64.1.10", to).unwrap();
            client.post(path::EXPLAIN, &request)
        })
        .await
        .unwrap();
    assert_eq!(explanation.outcome, Outcome::Translate);
    let snat = explanation.steps.iter().find(|step| step.stage == "snat").unwrap();
    assert!(snat.text.contains("2 of 64512 ports"), "{}", snat.text);
    running.stop().await;
}

#[tokio::test]
async fn a_user_with_too_many_connections_is_refused_until_some_end() {
    let running = Running::new("api-crowded", &busy()).await;
    let connect = || std::os::unix::net::UnixStream::connect(running.directory.join("s")).unwrap();
    let mut silent: Vec<_> = (0..32).map(|_| connect()).collect();
    let tally = Arc::clone(&running.state.connections.local);
    while tally.read().open != 32 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let refused = tokio::task::spawn_blocking({
        let mut stream = connect();
        stream.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
        move || {
            let mut said = String::new();
            std::io::Read::read_to_string(&mut stream, &mut said).unwrap();
            said
        }
    });
    let said = refused.await.unwrap();
    assert!(
        said.starts_with("HTTP/1.1 503 ") && said.contains("32 connections of a user"),
        "{said}"
    );
    assert_eq!(tally.read().refused_peer, 1);
    silent.pop();
    while tally.read().open != 31 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let status: Status = running.get(path::STATUS).await;
    assert_eq!(status.name, "gw-test");
    drop(silent);
    running.stop().await;
}
