//! Captures over a real socket, of copies that a test hands over in place of the ring.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use super::copies::tests::{OUTSIDE, POD, SERVER, copy};
use super::*;
use crate::flows::testing::{self, TWO_CLUSTERS};
use crate::serve::{Socket, State as Serving};
use api::capture::{End, Line, Lost};
use xdp::memory::Memory;
use xdp::sample::is_sampled;
use xdp::tables::Tables as _;
use xdp_abi::event::STAGE_AFTER;

/// Whoever is held by a reader that stalls is held for good.
const PATIENCE: Duration = Duration::from_secs(60);

struct Running {
    capture: Arc<Capture<Memory>>,
    path: PathBuf,
}

impl Running {
    fn new(name: &str) -> Self {
        let scene = testing::scene(TWO_CLUSTERS);
        let state = Serving::new(Arc::clone(&scene.memory), scene.in_force());
        let capture = Capture::new(scene.memory, Arc::clone(&state.directories));
        let path = std::env::temp_dir().join(format!("sluice-{name}-{}", std::process::id()));
        let socket = Socket::open(&path).unwrap();
        let tally = Arc::default();
        tokio::spawn(socket.serve(capture.routes(), tally, std::future::pending()));
        Self { capture, path }
    }

    /// Asks for a capture, and waits until it has begun.
    async fn ask(&self, query: &str) -> UnixStream {
        let mut stream = UnixStream::connect(&self.path).unwrap();
        let request = format!("GET /v1/capture?{query} HTTP/1.0\r\nHost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        while !self.is_on() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stream
    }

    fn is_on(&self) -> bool {
        self.capture.tables.config().capture.load() != 0
    }

    /// The datapath meets a packet that the filter wants; `room` says which copies find room.
    fn packet(&self, room: [bool; 2]) {
        let number = self.capture.tables.shared().capture_seen.fetch_add(1);
        if !is_sampled(number, self.capture.tables.config().capture.load()) {
            return;
        }
        if room[0] {
            self.capture.take(&copy(number + 1, STAGE_BEFORE, POD, SERVER));
        }
        if room[1] {
            self.capture.take(&copy(number + 1, STAGE_AFTER, OUTSIDE, SERVER));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Everything that comes, to the end.
async fn lines(stream: UnixStream) -> Vec<Line> {
    let read = move || {
        let lines = BufReader::new(stream).lines().map(Result::unwrap);
        let body = lines.skip_while(|line| !line.is_empty()).skip(1);
        body.map(|line| serde_json::from_str(&line).unwrap()).collect()
    };
    tokio::task::spawn_blocking(read).await.unwrap()
}

fn end_of(lines: &[Line]) -> End {
    match lines.last() {
        Some(Line::End { end }) => *end,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_end_says_what_was_shown_sampled_and_lost() {
    let running = Running::new("capture-end");
    // What an earlier capture left is not counted.
    running.capture.tables.shared().capture_seen.store(1001);
    let stream = running.ask("sample=4&seconds=1").await;
    for _ in 0..40 {
        running.packet([true, true]);
    }
    let all = lines(stream).await;
    let end = End { packets: 10, sample: 4, lost: Lost::default() };
    assert_eq!((all.len(), end_of(&all)), (21, end));

    let stream = running.ask("seconds=1").await;
    for room in [[true, true], [false, true], [true, false], [false, false]] {
        running.packet(room);
    }
    let all = lines(stream).await;
    let end = End { packets: 2, sample: 1, lost: Lost { packets: 0, copies: 4 } };
    assert_eq!((all.len(), end_of(&all)), (4, end));
}

#[tokio::test]
async fn a_reader_that_stalls_does_not_hold_the_datapath() {
    let running = Running::new("capture-stalled");
    let begun = Instant::now();
    let stalled = running.ask("seconds=1").await;
    // More than the socket takes, and more than may wait.
    while running.is_on() {
        assert!(begun.elapsed() < PATIENCE, "the datapath is still held");
        for _ in 0..WAITING {
            running.packet([true, true]);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // It reads nothing, and is there; the next one need not wait for it.
    while running.capture.busy.load(Ordering::SeqCst) {
        assert!(begun.elapsed() < PATIENCE, "it still captures");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let next = running.ask("count=1&seconds=10").await;
    running.packet([true, true]);
    assert_eq!(end_of(&lines(next).await).packets, 1);
    drop(stalled);
}

#[tokio::test]
async fn whoever_hangs_up_ends_the_capture() {
    let running = Running::new("capture-hung-up");
    drop(running.ask("seconds=600").await);
    let begun = Instant::now();
    while running.is_on() {
        assert!(begun.elapsed() < Duration::from_secs(5), "it goes on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What a request is told that is refused.
async fn refused(running: &Running, method: &str, query: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(&running.path).unwrap();
    let request = format!("{method} /v1/capture{query} HTTP/1.0\r\nHost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut said = String::new();
    let read = move || stream.read_to_string(&mut said).map(|_| said);
    let said = tokio::task::spawn_blocking(read).await.unwrap().unwrap();
    assert!(said.contains("content-type: application/problem+json\r\n"), "{said}");
    let (_, body) = said.split_once("\r\n\r\n").unwrap();
    let problem: api::status::Problem = serde_json::from_str(body).unwrap();
    assert!(said.starts_with(&format!("HTTP/1.0 {} ", problem.status)), "{said}");
    (problem.status, problem.detail.unwrap())
}

#[tokio::test]
async fn whoever_asks_wrongly_or_at_the_wrong_time_is_refused_with_a_problem() {
    let running = Running::new("capture-refused");
    let (status, detail) = refused(&running, "GET", "?secnds=1").await;
    assert!(status == 400 && detail.contains("unknown field `secnds`"), "{status}: {detail}");
    let (status, detail) = refused(&running, "POST", "").await;
    assert!(status == 405 && detail.contains("/v1/capture does not take POST"), "{detail}");
    let _first = running.ask("seconds=600").await;
    let (status, detail) = refused(&running, "GET", "").await;
    assert_eq!((status, &*detail), (409, "one capture runs at a time; it ends by itself"));
}

#[test]
fn more_than_there_is_to_be_had_is_refused_with_the_limit() {
    for (stated, expected) in [
        (1, Ok(1)),
        (600, Ok(600)),
        (601, Err("`seconds` is 601; it may be 1 to 600")),
        (0, Err("`seconds` is 0; it may be 1 to 600")),
    ] {
        let said = within("seconds", stated, MOST_SECONDS);
        let said = said.map_err(|refusal| refusal.0.detail.unwrap());
        assert_eq!(said, expected.map_err(str::to_owned), "{stated:?}");
    }
}
