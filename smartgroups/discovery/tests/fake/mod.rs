//! An API server that fails on command.
//!
//! The real one does what it should, and fails when it does, not when a test needs it. This one keeps
//! versions as etcd does, answers lists in pages and as streams, and watches from a version on; and it
//! refuses, forgets, lags, falls silent and cuts connections when it is told to. It writes down what it
//! was asked.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use http_body_util::channel::{Channel, Sender};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use smartgroups_discovery::kubernetes::{Access, Kind};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// What the server knows, as of one version.
#[derive(Clone, Default)]
struct Store {
    version: u64,
    objects: BTreeMap<Key, Value>,
    /// Version, kind, type and object of every change.
    history: Vec<(u64, Kind, &'static str, Value)>,
    /// Changes up to here are forgotten.
    compacted: u64,
}

/// Kind, namespace, name.
type Key = (Kind, String, String);

/// What it does to those who ask for pods. Others are always served well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    #[default]
    None,
    /// Refuses everything with this code.
    Refuse(u16),
    /// Says at the start of every watch that the version is too old, by the status of the answer.
    GoneAtStart,
    /// Accepts watches, and never says a word.
    Silent,
    /// Ends every watch at once.
    Hasty,
}

/// What it makes of a list that is asked for as a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Streaming {
    /// It streams.
    #[default]
    Served,
    /// It says that it does not know that.
    Refused,
    /// It takes it for an ordinary watch from now on.
    Ignored,
}

/// What a server that lags makes of a version from its future.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lag {
    /// It is not one of its versions, so lists are asked for.
    Refuses,
    /// It tells all it knows.
    Replays,
}

impl State {
    fn store(&self, kind: Kind) -> &Store {
        if self.lag.is_some() && kind == Kind::Pod { &self.remembered } else { &self.now }
    }
}

#[derive(Default)]
struct State {
    now: Store,
    /// What a server that lags knows.
    remembered: Store,
    lag: Option<Lag>,
    fault: Fault,
    streaming: Streaming,
    /// Whether a version that is too old is refused by the status of the answer.
    gone_by_status: bool,
    /// How many marks of pages will have expired.
    expiring_pages: u32,
    /// What was asked, with the query.
    asked: Vec<(Kind, String)>,
}

/// The server; gone when dropped.
pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
    /// Wakes streams.
    signal: watch::Sender<Signal>,
    kubeconfig: PathBuf,
    _tasks: JoinSet<()>,
}

/// How often something happened that streams have to know.
#[derive(Clone, Copy, Default)]
struct Signal {
    changes: u64,
    cuts: u64,
    bookmarks: u64,
}

impl Fake {
    pub(crate) async fn start() -> Self {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let kubeconfig = std::env::temp_dir().join(format!(
            "sluice-fake-{}-{}",
            std::process::id(),
            SERIAL.fetch_add(1, Ordering::Relaxed)
        ));
        let file = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "fake",
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
            "clusters": [{"name": "fake", "cluster": {"server": url}}],
            "users": [{"name": "fake", "user": {"token": "fake"}}],
        });
        std::fs::write(&kubeconfig, file.to_string()).unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        state.lock().unwrap().now.version = 100;
        let (signal, watching) = watch::channel(Signal::default());
        let mut tasks = JoinSet::new();
        let shared = Arc::clone(&state);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let (state, watching) = (Arc::clone(&shared), watching.clone());
                connections.spawn(async move {
                    let serve = service_fn(move |request| {
                        let answer = answer(&state, watching.clone(), &request);
                        async move { Ok::<_, Infallible>(answer) }
                    });
                    let connection = hyper::server::conn::http1::Builder::new();
                    // A client that went away is none of the server's business.
                    let _ = connection.serve_connection(TokioIo::new(stream), serve).await;
                });
            }
        });
        Self { state, signal, kubeconfig, _tasks: tasks }
    }

    pub(crate) fn access(&self) -> Access {
        Access::Kubeconfig { path: self.kubeconfig.clone(), context: None }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Makes or changes an object.
    pub(crate) fn put(&self, kind: Kind, mut object: Value) {
        let mut state = self.state();
        let now = &mut state.now;
        now.version += 1;
        object["metadata"]["resourceVersion"] = json!(now.version.to_string());
        let before = now.objects.insert(key(kind, &object), object.clone());
        let what = if before.is_some() { "MODIFIED" } else { "ADDED" };
        now.history.push((now.version, kind, what, object));
        drop(state);
        self.signal.send_modify(|signal| signal.changes += 1);
    }

    /// A namespace, which pods are in.
    pub(crate) fn namespace(&self, name: &str) {
        self.put(Kind::Namespace, json!({"metadata": {"name": name}}));
    }

    /// Makes or changes a pod.
    pub(crate) fn pod(&self, name: &str, app: &str) {
        self.put(
            Kind::Pod,
            json!({
                "metadata": {"name": name, "namespace": "shop", "uid": name, "labels": {"app": app}},
                "status": {"phase": "Running", "podIPs": [{"ip": "100.64.0.1"}]},
            }),
        );
    }

    pub(crate) fn delete_pod(&self, name: &str) {
        let mut state = self.state();
        let now = &mut state.now;
        now.version += 1;
        let key = (Kind::Pod, "shop".to_owned(), name.to_owned());
        let mut object = now.objects.remove(&key).unwrap();
        object["metadata"]["resourceVersion"] = json!(now.version.to_string());
        now.history.push((now.version, Kind::Pod, "DELETED", object));
        drop(state);
        self.signal.send_modify(|signal| signal.changes += 1);
    }

    /// The pods there are, and their label.
    pub(crate) fn pods(&self) -> BTreeMap<String, String> {
        let state = self.state();
        let pods = state.now.objects.iter().filter(|((kind, ..), _)| *kind == Kind::Pod);
        pods.map(|((.., name), pod)| {
            (name.clone(), pod["metadata"]["labels"]["app"].as_str().unwrap().to_owned())
        })
        .collect()
    }

    /// Cuts every stream.
    pub(crate) fn cut(&self) {
        self.signal.send_modify(|signal| signal.cuts += 1);
    }

    /// Tells every watch which version it is, which grows by much before.
    pub(crate) fn bookmark(&self) -> u64 {
        let version = {
            let mut state = self.state();
            state.now.version += 1_000;
            state.now.version
        };
        self.signal.send_modify(|signal| signal.bookmarks += 1);
        version
    }

    /// Forgets all changes before now.
    pub(crate) fn compact(&self) {
        let mut state = self.state();
        state.now.version += 1;
        state.now.compacted = state.now.version;
    }

    /// Says that a version is too old by the status of the answer, not in the stream.
    pub(crate) fn refuse_by_status(&self) {
        self.state().gone_by_status = true;
    }

    pub(crate) fn fault(&self, fault: Fault) {
        self.state().fault = fault;
    }

    pub(crate) fn streaming(&self, streaming: Streaming) {
        self.state().streaming = streaming;
    }

    pub(crate) fn expire_pages(&self, count: u32) {
        self.state().expiring_pages = count;
    }

    /// Keeps what is now, for a server that lags.
    pub(crate) fn remember(&self) {
        let mut state = self.state();
        state.remembered = state.now.clone();
    }

    /// Who asks for pods from now on, asks a server that knows only what was kept...
    pub(crate) fn lag(&self, lag: Lag) {
        self.state().lag = Some(lag);
        self.cut();
    }

    /// ... until it has caught up.
    pub(crate) fn catch_up(&self) {
        self.state().lag = None;
        self.signal.send_modify(|signal| signal.changes += 1);
    }

    /// What was asked about pods, since the last time this was asked.
    pub(crate) fn asked(&self) -> Vec<String> {
        let asked = std::mem::take(&mut self.state().asked);
        asked.into_iter().filter(|(kind, _)| *kind == Kind::Pod).map(|(_, query)| query).collect()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.kubeconfig);
    }
}

fn key(kind: Kind, object: &Value) -> Key {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (kind, text("namespace"), text("name"))
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

fn said(code: u16, body: &Value) -> Answer {
    let body = Full::new(Bytes::from(body.to_string())).boxed();
    Response::builder().status(code).body(body).unwrap()
}

fn status(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "code": code, "reason": reason, "message": "as told"})
}

fn answer(
    shared: &Arc<Mutex<State>>,
    watching: watch::Receiver<Signal>,
    request: &Request<Incoming>,
) -> Answer {
    let resource = request.uri().path().rsplit('/').next().unwrap_or_default();
    let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.resource() == resource) else {
        return said(404, &status(404, "NotFound"));
    };
    let query = request.uri().query().unwrap_or_default();
    let parameter =
        |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let mut state = shared.lock().unwrap();
    state.asked.push((kind, query.to_owned()));
    let fault = if kind == Kind::Pod { state.fault } else { Fault::None };
    if let Fault::Refuse(code) = fault {
        return said(code, &status(code, "AsTold"));
    }
    if parameter("watch").is_none() {
        return list(&mut state, kind, parameter("limit"), parameter("continue"));
    }
    let initial = parameter("sendInitialEvents").is_some();
    if initial && state.streaming == Streaming::Refused {
        return said(422, &status(422, "Invalid"));
    }
    if fault == Fault::GoneAtStart && !initial {
        return said(410, &status(410, "Expired"));
    }
    let seconds = parameter("timeoutSeconds").and_then(|text| text.parse().ok()).unwrap_or(60);
    let from: Option<u64> = parameter("resourceVersion").and_then(|text| text.parse().ok());
    if from.is_some_and(|from| from < state.now.compacted) && state.gone_by_status {
        return said(410, &status(410, "Expired"));
    }
    let ends_list = state.streaming == Streaming::Served;
    drop(state);
    let (sender, body) = Channel::<Bytes, Infallible>::new(16);
    let end = Instant::now() + Duration::from_secs(seconds);
    let state = Arc::clone(shared);
    tokio::spawn(async move {
        let told = Watching { state, watching, sender, kind, end };
        match fault {
            Fault::Hasty => {}
            Fault::Silent => std::future::pending().await,
            Fault::None | Fault::Refuse(_) | Fault::GoneAtStart => {
                // Whoever does not listen any more is told no more.
                let _ = told.follow(from, ends_list).await;
            }
        }
    });
    Response::new(body.boxed())
}

fn list(state: &mut State, kind: Kind, limit: Option<&str>, next: Option<&str>) -> Answer {
    if next.is_some() && state.expiring_pages > 0 {
        state.expiring_pages -= 1;
        return said(410, &status(410, "Expired"));
    }
    let store = state.store(kind);
    let start: usize = next.and_then(|text| text.parse().ok()).unwrap_or(0);
    let limit: usize = limit.and_then(|text| text.parse().ok()).unwrap_or(usize::MAX);
    let all: Vec<&Value> =
        store.objects.iter().filter(|((of, ..), _)| *of == kind).map(|(_, one)| one).collect();
    let items: Vec<&&Value> = all.iter().skip(start).take(limit).collect();
    let end = start + items.len();
    let next = if end < all.len() { end.to_string() } else { String::new() };
    said(
        200,
        &json!({
            "metadata": {"resourceVersion": store.version.to_string(), "continue": next},
            "items": items,
        }),
    )
}

/// One stream.
struct Watching {
    state: Arc<Mutex<State>>,
    watching: watch::Receiver<Signal>,
    sender: Sender<Bytes, Infallible>,
    kind: Kind,
    end: Instant,
}

/// The other side is gone.
struct Gone;

impl Watching {
    async fn say(&mut self, what: &str, object: &Value) -> Result<(), Gone> {
        let line = format!("{}\n", json!({"type": what, "object": object}));
        // In two pieces: what a reader gets at a time need not be a line.
        let mut rest = Bytes::from(line);
        let half = rest.split_to(rest.len() / 2);
        for piece in [half, rest] {
            self.sender.send_data(piece).await.map_err(|_| Gone)?;
        }
        Ok(())
    }

    async fn follow(mut self, from: Option<u64>, ends_list: bool) -> Result<(), Gone> {
        let began = *self.watching.borrow_and_update();
        let mut bookmarks = began.bookmarks;
        let mut position = match from {
            Some(from) => from,
            None => {
                let kind = self.kind;
                let (version, objects) = self.with(|store| {
                    let of = store.objects.iter().filter(|(key, _)| key.0 == kind);
                    (store.version, of.map(|(_, one)| one.clone()).collect::<Vec<_>>())
                });
                for object in objects {
                    self.say("ADDED", &object).await?;
                }
                if ends_list {
                    let end = json!({"metadata": {"resourceVersion": version.to_string(),
                        "annotations": {"k8s.io/initial-events-end": "true"}}});
                    self.say("BOOKMARK", &end).await?;
                }
                version
            }
        };
        let lag = self.state.lock().unwrap().lag.filter(|_| self.kind == Kind::Pod);
        let compacted = self.with(|store| store.compacted);
        if from.is_some_and(|from| from < compacted || lag == Some(Lag::Refuses)) {
            return self.say("ERROR", &status(410, "Expired")).await;
        }
        let mut since = if lag == Some(Lag::Replays) { 0 } else { position };
        loop {
            let events = self.with(|store| {
                let first = store.history.partition_point(|(version, ..)| *version <= since);
                store.history[first..].to_vec()
            });
            for (version, kind, what, object) in events {
                if kind == self.kind {
                    self.say(what, &object).await?;
                }
                position = position.max(version);
            }
            since = position;
            let signal = *self.watching.borrow_and_update();
            if signal.cuts > began.cuts {
                return Ok(());
            }
            if signal.bookmarks > bookmarks {
                bookmarks = signal.bookmarks;
                let version = self.with(|store| store.version.to_string());
                self.say("BOOKMARK", &json!({"metadata": {"resourceVersion": version}})).await?;
            }
            tokio::select! {
                changed = self.watching.changed() => changed.map_err(|_| Gone)?,
                () = sleep_until(self.end) => return Ok(()),
            }
        }
    }

    fn with<R>(&self, read: impl FnOnce(&Store) -> R) -> R {
        read(self.state.lock().unwrap().store(self.kind))
    }
}
