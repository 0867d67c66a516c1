//! A server over real connections, with so little patience that a test can wait for its end.

use std::net::SocketAddr;

use axum::routing::{get, post};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::*;

/// Far less than a test may take, and far more than a machine that is busy needs.
const SOON: Duration = Duration::from_millis(700);
const NEVER: Duration = Duration::from_secs(60);
const LIMITS: Limits = Limits { all: 4, peer: 3 };
/// More than two sockets hold of an answer that nobody reads.
const LONG: usize = 32 << 20;

struct Running {
    address: SocketAddr,
    tally: Arc<Tally>,
    _end: oneshot::Sender<()>,
}

impl Running {
    async fn new(patience: Patience) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tally = Arc::new(Tally::default());
        let routes = Router::new()
            .route("/", get(async || "here\n"))
            .route("/long", get(async || vec![b'x'; LONG]))
            .route("/echo", post(async |text: String| text));
        let (tallied, refusal) = (Arc::clone(&tally), b"no\n");
        let server = Server { routes, limits: LIMITS, patience, tally: tallied, refusal };
        let (end, ended) = oneshot::channel::<()>();
        tokio::spawn(async move {
            let peer = |_: &TcpStream, address: &SocketAddr| address.ip();
            let ended = async {
                let _ = ended.await;
            };
            server.serve(listener, peer, async |stream| Ok(stream), ended).await;
        });
        Self { address, tally, _end: end }
    }

    /// A connection from 127.0.0.`host`.
    async fn from(&self, host: u8) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, host], 0))).unwrap();
        socket.connect(self.address).await.unwrap()
    }

    async fn open(&self, connections: u64) {
        let reached = async {
            while self.tally.read().open != connections {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let reached = timeout(Duration::from_secs(20), reached).await;
        assert!(reached.is_ok(), "{:?}, not {connections}", self.tally.read());
    }
}

fn patient() -> Patience {
    Patience { opening: NEVER, asking: NEVER, taking: NEVER }
}

/// Asks for a page and keeps the connection.
async fn ask(stream: &mut TcpStream) -> String {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut answer = vec![0; 1024];
    let length = stream.read(&mut answer).await.unwrap_or(0);
    String::from_utf8_lossy(&answer[..length]).into_owned()
}

/// Everything up to the end of a connection, and how long that took.
async fn rest(mut stream: TcpStream) -> (String, Duration) {
    let begun = Instant::now();
    let mut answer = Vec::new();
    let end = stream.read_to_end(&mut answer);
    let ended = timeout(Duration::from_secs(20), end).await;
    assert!(ended.is_ok(), "the connection is still there");
    (String::from_utf8_lossy(&answer).into_owned(), begun.elapsed())
}

#[tokio::test]
async fn who_has_too_many_connections_is_refused_and_others_are_not() {
    let running = Running::new(patient()).await;
    let mut silent = Vec::new();
    for _ in 0..LIMITS.peer {
        silent.push(running.from(2).await);
    }
    running.open(3).await;
    assert_eq!(rest(running.from(2).await).await.0, "no\n");
    let mut other = running.from(3).await;
    assert!(ask(&mut other).await.ends_with("here\n"));
    // Now there are as many as there may be.
    assert_eq!(rest(running.from(4).await).await.0, "no\n");
    assert!(ask(&mut other).await.ends_with("here\n"), "who is in stays in");
    assert_eq!(running.tally.read(), Tallied { open: 4, refused_all: 1, refused_peer: 1 });
    silent.pop();
    running.open(3).await;
    assert!(ask(&mut running.from(4).await).await.ends_with("here\n"));
}

#[tokio::test]
async fn who_does_not_ask_is_closed_before_and_after_a_first_request() {
    let running = Running::new(Patience { asking: SOON, ..patient() }).await;
    let silent = running.from(2).await;
    let mut half = running.from(3).await;
    half.write_all(b"GET / HTTP/1.1\r\nHo").await.unwrap();
    let mut idle = running.from(4).await;
    assert!(ask(&mut idle).await.ends_with("here\n"));
    let mut torn = running.from(5).await;
    let post = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf";
    torn.write_all(post).await.unwrap();
    assert!(rest(torn).await.0.starts_with("HTTP/1.1 408 "));
    for stream in [silent, half, idle] {
        rest(stream).await;
    }
    running.open(0).await;
}

#[tokio::test]
async fn who_asks_now_and_then_is_kept() {
    let running = Running::new(Patience { asking: SOON, ..patient() }).await;
    let mut stream = running.from(2).await;
    let begun = Instant::now();
    while begun.elapsed() < 3 * SOON {
        assert!(ask(&mut stream).await.ends_with("here\n"));
        tokio::time::sleep(SOON / 7).await;
    }
}

#[tokio::test]
async fn who_does_not_read_its_answer_is_closed_and_who_reads_slowly_is_not() {
    let running = Running::new(Patience { taking: SOON, ..patient() }).await;
    let asked = b"GET /long HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let mut lazy = running.from(2).await;
    lazy.write_all(asked).await.unwrap();
    running.open(1).await;
    running.open(0).await;
    let mut slow = running.from(3).await;
    slow.write_all(asked).await.unwrap();
    let (mut read, mut part, begun) = (0, vec![0; 1 << 20], Instant::now());
    while let length @ 1.. = slow.read(&mut part).await.unwrap() {
        read += length;
        if begun.elapsed() < 3 * SOON {
            tokio::time::sleep(SOON / 7).await;
        }
    }
    assert!(read > LONG, "{read}");
}

#[tokio::test]
async fn a_request_that_is_too_long_is_refused() {
    let running = Running::new(patient()).await;
    for (length, status) in [(MOST_BODY, "200"), (MOST_BODY + 1, "413")] {
        let mut stream = running.from(2).await;
        let head = format!(
            "POST /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&vec![b'x'; length]).await.unwrap();
        let (answer, _) = rest(stream).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{length}: {answer:.80}");
    }
}
