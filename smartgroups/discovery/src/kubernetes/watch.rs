//! The watch of one kind: asks what the course says, and tells the view what it hears.
//!
//! Everything waits within bounds: for an answer, for the next word of a stream, for a page. Only the
//! reader of what is heard may take its time; then nothing more is read from the stream, and the
//! connection holds the server back.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Request, Response};
use http_body_util::{BodyExt as _, Limited};
use kube::client::Body;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::access::{Connector, plainly};
use super::course::{Course, Failure, Step, Verdict};
use super::object::{Event, Metadata, News, Object, Update};
use super::status::Board;
use super::{ClusterName, Kind};

/// How long the server may take to begin an answer.
const ANSWER: Duration = Duration::from_secs(20);
/// An answer with 200 does not say that the version is not too old: that may be the first event. When
/// nothing came for so long, it is not.
const SETTLES: Duration = Duration::from_secs(1);
/// How long a page may take; one without a limit is everything.
const PAGE_ARRIVES: Duration = Duration::from_secs(120);
/// More than an object can be, by far: etcd takes 1.5 MB.
const LONGEST_LINE: usize = 32 << 20;
/// As much as is read of why the server refused.
const LONGEST_REFUSAL: usize = 64 << 10;
/// As much as is told of it.
const LONGEST_MESSAGE: usize = 300;

/// How long watches run and may be silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Times {
    /// How long the server is asked to keep a watch; shortly before its end it sends a bookmark.
    pub(crate) watch: Duration,
}

impl Times {
    /// After how long without a word a watch is dead: the server should have ended it long ago.
    pub(crate) fn silence(self) -> Duration {
        self.watch + (self.watch / 12).max(Duration::from_millis(500))
    }

    /// The same for a list that comes as a stream, where objects follow each other.
    fn silence_in_list(self) -> Duration {
        self.watch / 2
    }
}

/// What a watch heard, and when.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) news: News,
    pub(crate) received: Instant,
}

/// One watch.
pub(crate) struct Watch<T> {
    cluster: ClusterName,
    connector: Arc<Connector>,
    board: Arc<Board>,
    view: mpsc::Sender<Heard>,
    times: Times,
    course: Course,
    /// Whether the view was told nothing yet. Then nothing can be missing from a list: it is told as it
    /// comes, instead of being kept until it is complete.
    is_first: bool,
    /// Pages of a list that is not complete.
    pages: Listing<T>,
    random: RandomState,
    draws: u64,
}

/// Nobody wants to hear any more.
struct Unheard;

enum Stop {
    Failure(Failure),
    Unheard,
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl From<Unheard> for Stop {
    fn from(_: Unheard) -> Self {
        Self::Unheard
    }
}

#[derive(Deserialize)]
#[serde(bound = "T: Deserialize<'de>")]
struct List<T> {
    #[serde(default)]
    metadata: ListMetadata,
    items: Option<Vec<T>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ListMetadata {
    resource_version: String,
    #[serde(rename = "continue")]
    next: String,
}

/// One line of a watch. What the object is depends on the type.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Bookmark {
    metadata: Metadata,
}

/// Why the server refused.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    code: u16,
    reason: String,
    message: String,
}

/// What is heard in one stream.
struct Stream<T> {
    /// A list that is not complete.
    list: Option<Listing<T>>,
    /// Since when it runs.
    began: Instant,
    /// Whether it brought anything.
    heard: bool,
}

impl<T: Object> Watch<T> {
    pub(crate) fn new(
        cluster: ClusterName,
        connector: Arc<Connector>,
        board: Arc<Board>,
        view: mpsc::Sender<Heard>,
        times: Times,
        is_first: bool,
    ) -> Self {
        Self {
            cluster,
            connector,
            board,
            view,
            times,
            course: Course::new(),
            is_first,
            pages: Listing::new(is_first),
            random: RandomState::new(),
            draws: 0,
        }
    }

    const KIND: Kind = T::KIND;

    /// Watches until nobody wants to hear.
    pub(crate) async fn run(mut self) {
        loop {
            let pause = match self.attempt().await {
                Ok(pause) => pause,
                Err(Stop::Unheard) => return,
                Err(Stop::Failure(failure)) => self.failed(&failure),
            };
            tokio::time::sleep(pause).await;
        }
    }

    fn failed(&mut self, failure: &Failure) -> Duration {
        let streamed = self.course.streams();
        let random = self.draw();
        let pause = self.course.failed(failure, random);
        let (cluster, kind) = (&self.cluster, Self::KIND);
        if streamed && !self.course.streams() {
            // A server that has no streaming lists is as good as another.
            info!(%cluster, %kind, %failure, "lists are asked for in pages");
            self.board.write(|status| status.kinds[kind.index()].streams = false);
        } else if self.board.failed(kind, failure, Instant::now()) {
            warn!(%cluster, %kind, %failure, "watch failed, the last state stays");
        } else {
            debug!(%cluster, %kind, %failure, "watch failed again");
        }
        pause
    }

    /// A number in 0..1.
    fn draw(&mut self) -> f64 {
        self.draws += 1;
        let bits = self.random.hash_one(self.draws) >> 11;
        bits as f64 / (1_u64 << 53) as f64
    }

    /// Asks once; how long to wait before asking again.
    async fn attempt(&mut self) -> Result<Duration, Stop> {
        match self.course.step().clone() {
            Step::StreamList => self.stream(None).await,
            Step::Watch { from } => self.stream(Some(&from)).await,
            Step::Page { next, limit } => self.page(next.as_deref(), limit).await,
        }
    }

    async fn page(&mut self, next: Option<&str>, limit: Option<u32>) -> Result<Duration, Stop> {
        if next.is_none() {
            self.pages = Listing::new(self.is_first);
        }
        let mut query = Query::new(Self::KIND);
        if let Some(limit) = limit {
            query.add("limit", &limit.to_string());
        }
        if let Some(next) = next {
            query.add("continue", next);
        }
        let answer = self.ask(query).await?;
        let body = timeout(PAGE_ARRIVES, answer.into_body().collect())
            .await
            .map_err(|_| Failure::Silent(PAGE_ARRIVES))?
            .map_err(|error| Failure::Unreachable(plainly(&error)))?
            .to_bytes();
        let (objects, metadata) = page(&body)?;
        let events = objects.into_iter().map(|object| Event { object, deleted: false });
        let told = events.filter_map(|event| self.pages.take(event, true)).collect();
        self.tell_changes(told, Instant::now()).await?;
        if metadata.next.is_empty() {
            let list = std::mem::replace(&mut self.pages, Listing::new(false));
            return self.listed(list, &metadata.resource_version).await;
        }
        self.course.paged(metadata.next);
        Ok(Duration::ZERO)
    }

    /// Tells of a list that is complete.
    async fn listed(&mut self, list: Listing<T>, version: &str) -> Result<Duration, Stop> {
        let (cluster, kind, now) = (&self.cluster, Self::KIND, Instant::now());
        match self.course.listed(version, now) {
            Verdict::Believed => {
                let (objects, update) = list.complete();
                info!(%cluster, %kind, objects, version, "listed");
                self.heard();
                self.board.write(|status| status.kinds[kind.index()].lists += 1);
                self.is_first = false;
                self.tell_at(update, now).await?;
                Ok(Duration::ZERO)
            }
            Verdict::TooOld => {
                let error = "the server's list is older than what is known: it lags behind another";
                let count = |kind: &mut super::KindStatus| kind.outdated += 1;
                if self.board.complain(kind, error.to_owned(), now, count) {
                    warn!(%cluster, %kind, version, "list refused: {error}");
                }
                let random = self.draw();
                Ok(self.course.pause(random))
            }
        }
    }

    /// Follows changes from a version on; or from the beginning, all objects first.
    async fn stream(&mut self, from: Option<&str>) -> Result<Duration, Stop> {
        let mut query = Query::new(Self::KIND);
        query.add("watch", "true");
        query.add("allowWatchBookmarks", "true");
        query.add("timeoutSeconds", &self.times.watch.as_secs().max(1).to_string());
        match from {
            Some(version) => query.add("resourceVersion", version),
            None => {
                query.add("sendInitialEvents", "true");
                query.add("resourceVersionMatch", "NotOlderThan");
            }
        }
        let mut body = self.ask(query).await?.into_body();
        let mut stream = Stream {
            list: from.is_none().then(|| Listing::new(self.is_first)),
            began: Instant::now(),
            heard: false,
        };
        let mut text = Vec::new();
        let mut settled = false;
        loop {
            let patience = match stream.list {
                Some(_) => self.times.silence_in_list(),
                None if settled => self.times.silence(),
                None => SETTLES,
            };
            let frame = timeout(patience, body.frame()).await;
            if frame.is_err() && !settled && stream.list.is_none() {
                // The server has nothing to tell, and nothing against the version.
                settled = true;
                self.heard();
                continue;
            }
            let frame = match frame.map_err(|_| Failure::Silent(patience))? {
                None => {
                    let lived = stream.began.elapsed();
                    let (streamed, random) = (self.course.streams(), self.draw());
                    let pause = self.course.ended(lived, stream.heard, random);
                    if streamed && !self.course.streams() {
                        self.board.write(|status| status.kinds[T::KIND.index()].streams = false);
                    }
                    return Ok(pause);
                }
                Some(frame) => frame.map_err(|error| Failure::Unreachable(plainly(&error)))?,
            };
            let Ok(data) = frame.into_data() else { continue };
            let received = Instant::now();
            let scanned = text.len();
            text.extend_from_slice(&data);
            let Some(last) = text[scanned..].iter().rposition(|byte| *byte == b'\n') else {
                if text.len() > LONGEST_LINE {
                    let why = format!("a line is longer than {LONGEST_LINE} bytes");
                    return Err(Failure::Unreadable(why).into());
                }
                continue;
            };
            let end = scanned + last + 1;
            let pause = self.lines(&text[..end], &mut stream, received).await?;
            text.drain(..end);
            if let Some(pause) = pause {
                return Ok(pause);
            }
        }
    }

    /// Takes in whole lines of a stream. What comes before a line that ends the stream counts.
    async fn lines(
        &mut self,
        text: &[u8],
        stream: &mut Stream<T>,
        received: Instant,
    ) -> Result<Option<Duration>, Stop> {
        let mut events = Vec::new();
        let mut version = String::new();
        let mut failure = None;
        for line in text.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()) {
            match read::<T>(line) {
                Ok(Word::Event { event, is_new }) => match &mut stream.list {
                    Some(list) => events.extend(list.take(event, is_new)),
                    None => {
                        version.clone_from(&event.object.metadata().resource_version);
                        events.push(event);
                    }
                },
                Ok(Word::Bookmark { version: at, ends_list }) => {
                    if ends_list && let Some(list) = stream.list.take() {
                        self.tell_changes(std::mem::take(&mut events), received).await?;
                        let pause = self.listed(list, &at).await?;
                        if pause > Duration::ZERO {
                            return Ok(Some(pause));
                        }
                    }
                    if stream.list.is_none() {
                        version = at;
                    }
                }
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        self.tell_changes(events, received).await?;
        if stream.list.is_none() && !version.is_empty() {
            stream.heard = true;
            self.course.heard(&version);
            self.heard();
        }
        failure.map_or(Ok(None), |failure| Err(failure.into()))
    }

    /// The server said something that shows that what is known is what there is.
    fn heard(&self) {
        let (cluster, kind) = (&self.cluster, Self::KIND);
        if self.board.heard(kind, Instant::now()) {
            info!(%cluster, %kind, "watch runs again");
        }
    }

    async fn tell_changes(
        &mut self,
        events: Vec<Event<T>>,
        received: Instant,
    ) -> Result<(), Unheard> {
        if events.is_empty() {
            return Ok(());
        }
        self.is_first = false;
        self.tell_at(Update::Changed(events), received).await
    }

    async fn tell_at(&self, update: Update<T>, received: Instant) -> Result<(), Unheard> {
        let heard = Heard { news: T::news(update), received };
        self.view.send(heard).await.map_err(|_| Unheard)
    }

    /// The answer to a question, if it is one.
    async fn ask(&self, query: Query) -> Result<Response<Body>, Stop> {
        let (number, client) =
            self.connector.client().await.map_err(|error| Failure::NoAccess(plainly(&error)))?;
        let answer = self.answer(&client, query).await;
        if let Err(failure) = &answer
            && failure.is_about_access()
        {
            self.connector.renew(number).await;
        }
        Ok(answer?)
    }

    async fn answer(&self, client: &kube::Client, query: Query) -> Result<Response<Body>, Failure> {
        let request = Request::get(query.0)
            .body(Body::empty())
            .map_err(|error| Failure::Unreadable(error.to_string()))?;
        let answer = timeout(ANSWER, client.send(request))
            .await
            .map_err(|_| Failure::Unreachable(format!("no answer within {} s", ANSWER.as_secs())))?
            .map_err(|error| Failure::Unreachable(plainly(&error)))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let code = answer.status().as_u16();
        let retry_after = answer.headers().get(http::header::RETRY_AFTER);
        let retry_after = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
        let usual = answer.status().canonical_reason().unwrap_or_default();
        let body = timeout(ANSWER, Limited::new(answer.into_body(), LONGEST_REFUSAL).collect());
        let body = body.await.ok().and_then(Result::ok).map(|body| body.to_bytes());
        let status: Status = body
            .and_then(|body| serde_json::from_slice(&body).ok())
            .unwrap_or_else(|| Status { message: usual.to_owned(), ..Status::default() });
        Err(refused(Status { code, ..status }, retry_after.map(Duration::from_secs)))
    }
}

/// Reads a page of a list.
pub(crate) fn page<T: Object>(body: &[u8]) -> Result<(Vec<T>, ListMetadata), Failure> {
    let list: List<T> = serde_json::from_slice(body).map_err(|error| unreadable(&error))?;
    Ok((list.items.unwrap_or_default(), list.metadata))
}

/// What one line says.
pub(crate) enum Word<T> {
    Event {
        event: Event<T>,
        /// Whether it was not there before.
        is_new: bool,
    },
    Bookmark {
        version: String,
        ends_list: bool,
    },
}

/// Reads a line of a watch.
pub(crate) fn read<T: Object>(line: &[u8]) -> Result<Word<T>, Failure> {
    let line: Line<'_> = serde_json::from_slice(line).map_err(|error| unreadable(&error))?;
    let object = line.object.get();
    let event = |deleted| {
        let object = serde_json::from_str(object).map_err(|error| unreadable(&error))?;
        Ok(Word::Event { event: Event { object, deleted }, is_new: line.kind == "ADDED" })
    };
    match &*line.kind {
        "ADDED" | "MODIFIED" => event(false),
        "DELETED" => event(true),
        "BOOKMARK" => {
            let bookmark: Bookmark =
                serde_json::from_str(object).map_err(|error| unreadable(&error))?;
            let ends = bookmark.metadata.annotations.initial_events_end;
            Ok(Word::Bookmark {
                version: bookmark.metadata.resource_version,
                ends_list: ends.as_deref() == Some("true"),
            })
        }
        "ERROR" => {
            let status: Status =
                serde_json::from_str(object).map_err(|error| unreadable(&error))?;
            Err(refused(status, None))
        }
        other => Err(Failure::Unreadable(format!("there is no event of type `{other}`"))),
    }
}

/// What is wrong with a text, without the text: it may hold anything.
fn unreadable(error: &serde_json::Error) -> Failure {
    let what = match error.classify() {
        serde_json::error::Category::Io => "it ends early",
        serde_json::error::Category::Syntax => "it is no JSON",
        serde_json::error::Category::Data => "a field is of another type",
        serde_json::error::Category::Eof => "it ends early",
    };
    Failure::Unreadable(format!("{what}, at line {} column {}", error.line(), error.column()))
}

fn refused(mut status: Status, retry_after: Option<Duration>) -> Failure {
    if let Some((end, _)) = status.message.char_indices().nth(LONGEST_MESSAGE) {
        status.message.truncate(end);
        status.message.push('…');
    }
    let Status { code, reason, message } = status;
    Failure::Refused { code, reason, message, retry_after }
}

/// A list that is not complete.
enum Listing<T> {
    /// It is told as it comes; how many objects that were.
    Told(usize),
    /// It is kept.
    Kept(Gathered<T>),
}

impl<T: Object> Listing<T> {
    fn new(is_first: bool) -> Self {
        if is_first { Self::Told(0) } else { Self::Kept(Gathered::default()) }
    }

    /// Takes in an object, or what was heard of it afterwards, and gives back what is to be told.
    fn take(&mut self, event: Event<T>, is_new: bool) -> Option<Event<T>> {
        match self {
            Self::Told(count) => {
                *count += usize::from(is_new);
                Some(event)
            }
            Self::Kept(gathered) => {
                gathered.take(event, is_new);
                None
            }
        }
    }

    /// How many objects it had, and what is to be told now.
    fn complete(self) -> (usize, Update<T>) {
        match self {
            Self::Told(count) => (count, Update::Told),
            Self::Kept(gathered) => {
                let objects = gathered.whole();
                (objects.len(), Update::Listed(objects))
            }
        }
    }
}

/// A list of which objects may change before it is complete.
struct Gathered<T> {
    objects: Vec<T>,
    /// What was heard of them afterwards; hardly ever anything.
    changes: Vec<Event<T>>,
}

impl<T> Default for Gathered<T> {
    fn default() -> Self {
        Self { objects: Vec::new(), changes: Vec::new() }
    }
}

impl<T: Object> Gathered<T> {
    fn take(&mut self, event: Event<T>, is_new: bool) {
        if is_new && self.changes.is_empty() {
            self.objects.push(event.object);
        } else {
            self.changes.push(event);
        }
    }

    /// The objects as they are in the end.
    fn whole(self) -> Vec<T> {
        if self.changes.is_empty() {
            return self.objects;
        }
        let key = |object: &T| {
            let metadata = object.metadata();
            (metadata.namespace.clone(), metadata.name.clone())
        };
        let mut objects: HashMap<_, _> =
            self.objects.into_iter().map(|object| (key(&object), object)).collect();
        for event in self.changes {
            let key = key(&event.object);
            if event.deleted {
                objects.remove(&key);
            } else {
                objects.insert(key, event.object);
            }
        }
        objects.into_values().collect()
    }
}

/// The path of a kind with parameters.
struct Query(String);

impl Query {
    fn new(kind: Kind) -> Self {
        Self(kind.path().to_owned())
    }

    fn add(&mut self, name: &str, value: &str) {
        self.0.push(if self.0.contains('?') { '&' } else { '?' });
        self.0.push_str(name);
        self.0.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
                self.0.push(char::from(byte));
            } else {
                self.0.push_str(&format!("%{byte:02X}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::object::Pod;

    #[test]
    fn a_query_says_any_value() {
        let mut query = Query::new(Kind::Pod);
        query.add("limit", "500");
        query.add("continue", "a+b/c=&d");
        assert_eq!(query.0, "/api/v1/pods?limit=500&continue=a%2Bb%2Fc%3D%26d");
    }

    #[test]
    fn a_line_is_an_event_a_bookmark_or_a_refusal() {
        let said = |line: &str| match read::<Pod>(line.as_bytes()) {
            Ok(Word::Event { event, is_new }) => {
                format!("{} {is_new} {}", event.object.metadata.name, event.deleted)
            }
            Ok(Word::Bookmark { version, ends_list }) => format!("{version} {ends_list}"),
            Err(failure) => failure.to_string(),
        };
        for (line, expected) in [
            (r#"{"type":"ADDED","object":{"metadata":{"name":"a"}}}"#, "a true false"),
            (r#"{"type":"MODIFIED","object":{"metadata":{"name":"a"}}}"#, "a false false"),
            (r#"{"type":"DELETED","object":{"metadata":{"name":"a"}}}"#, "a false true"),
            (r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"7"}}}"#, "7 false"),
            (
                r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"7",
                "annotations":{"k8s.io/initial-events-end":"true"}}}}"#,
                "7 true",
            ),
            (
                r#"{"type":"ERROR","object":{"code":410,"reason":"Expired","message":"too old"}}"#,
                "the server answered 410 (Expired): too old",
            ),
            (
                r#"{"type":"NEWS","object":{}}"#,
                "the server's answer cannot be read: there is no event of type `NEWS`",
            ),
            (
                r#"{"type":"ADDED","object":{"metadata":{"name":["secret"]}}}"#,
                "the server's answer cannot be read: a field is of another type, at line 1 column 20",
            ),
            ("secret", "the server's answer cannot be read: it is no JSON, at line 1 column 1"),
        ] {
            assert_eq!(said(line), expected, "{line}");
        }
    }

    #[test]
    fn what_changes_while_a_list_is_told_is_in_it_as_it_is_in_the_end() {
        let mut list = Gathered::<Pod>::default();
        for (name, uid, is_new, deleted) in [
            ("stays", "1", true, false),
            ("changes", "1", true, false),
            ("goes", "1", true, false),
            ("changes", "2", false, false),
            ("goes", "1", false, true),
            ("comes", "1", true, false),
        ] {
            let mut object = Pod::default();
            (object.metadata.name, object.metadata.uid) = (name.to_owned(), uid.to_owned());
            list.take(Event { object, deleted }, is_new);
        }
        let mut names: Vec<String> = list
            .whole()
            .into_iter()
            .map(|pod| format!("{} {}", pod.metadata.name, pod.metadata.uid))
            .collect();
        names.sort();
        assert_eq!(names, ["changes 2", "comes 1", "stays 1"]);
    }

    /// A watch of pods that has told nothing yet, and what it tells.
    fn watch() -> (Watch<Pod>, mpsc::Receiver<Heard>) {
        let cluster = ClusterName::new("c").unwrap();
        let connector = Arc::new(Connector::new(super::super::Access::InCluster));
        let board = Board::new(cluster.clone(), None, Duration::ZERO, Instant::now());
        let (view, heard) = mpsc::channel(4);
        let times = Times { watch: Duration::from_secs(60) };
        (Watch::new(cluster, connector, Arc::new(board), view, times, true), heard)
    }

    #[tokio::test]
    async fn the_first_list_is_told_as_it_comes_and_any_other_when_it_is_complete() {
        async fn told(
            (watch, heard): &mut (Watch<Pod>, mpsc::Receiver<Heard>),
            lines: &[&str],
        ) -> Vec<String> {
            let list = Some(Listing::new(watch.is_first));
            let mut stream = Stream { list, began: Instant::now(), heard: false };
            let text = lines.join("\n");
            assert!(watch.lines(text.as_bytes(), &mut stream, Instant::now()).await.is_ok());
            let mut told = Vec::new();
            while let Ok(Heard { news: News::Pod(update), .. }) = heard.try_recv() {
                let names = |pods: Vec<Pod>| {
                    let names = pods.into_iter().map(|pod| pod.metadata.name);
                    names.collect::<Vec<_>>().join(" ")
                };
                told.push(match update {
                    Update::Changed(events) => {
                        let pods = events.into_iter().map(|event| event.object).collect();
                        format!("changed {}", names(pods))
                    }
                    Update::Listed(pods) => format!("listed {}", names(pods)),
                    Update::Told => "told".to_owned(),
                });
            }
            told
        }
        let added = |name: &str| {
            format!(r#"{{"type":"ADDED","object":{{"metadata":{{"name":"{name}"}}}}}}"#)
        };
        let (a, b) = (added("a"), added("b"));
        let end = r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"9","annotations":{"k8s.io/initial-events-end":"true"}}}}"#;
        let mut broken = watch();
        assert_eq!(told(&mut broken, &[&a]).await, ["changed a"]);
        assert_eq!(told(&mut broken, &[&b, end]).await, ["listed b"], "a may be gone");
        let mut whole = watch();
        assert_eq!(told(&mut whole, &[&a, &b, end]).await, ["changed a b", "told"]);
        assert_eq!(told(&mut whole, &[&b, end]).await, ["listed b"]);
    }

    #[tokio::test]
    async fn what_comes_before_a_refusal_counts() {
        let (mut watch, mut heard) = watch();
        watch.course.listed("1", Instant::now());
        let text = br#"{"type":"ADDED","object":{"metadata":{"name":"a","resourceVersion":"7"}}}
            {"type":"ERROR","object":{"code":500,"message":"as told"}}
            {"type":"ADDED","object":{"metadata":{"name":"b","resourceVersion":"8"}}}"#;
        let mut stream = Stream { list: None, began: Instant::now(), heard: false };
        let stopped = watch.lines(text, &mut stream, Instant::now()).await;
        assert!(matches!(stopped, Err(Stop::Failure(Failure::Refused { code: 500, .. }))));
        let News::Pod(Update::Changed(events)) = heard.recv().await.unwrap().news else {
            panic!("a pod is told of");
        };
        assert_eq!(events.len(), 1, "what comes after it does not count");
        assert_eq!(*watch.course.step(), Step::Watch { from: "7".to_owned() });
    }

    #[test]
    fn a_long_refusal_is_told_in_part() {
        let message = "ö".repeat(LONGEST_MESSAGE + 1);
        let failure = refused(Status { message, ..Status::default() }, None).to_string();
        assert!(failure.ends_with("öö…"), "{failure}");
    }
}
