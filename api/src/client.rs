//! A blocking client for the local socket.
//!
//! The far end is one daemon on the same machine, one request a connection, so this is the part
//! of HTTP/1.1 that such an exchange needs: a status line, headers, and a body that ends by
//! length, by chunks or with the connection. Redirects, keep-alive and compression do not occur.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::status::Problem;

/// Headers are some hundred bytes; what is far longer is not from our daemon.
const HEADER_BYTES: u64 = 64 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no socket.
    #[error("there is no socket {0}; is the gateway running, and is --socket right?")]
    Missing(PathBuf),
    /// The socket may not be opened.
    #[error("the socket {0} is not for you; become root or a member of the group `sluice`")]
    Forbidden(PathBuf),
    /// Nobody listens on the socket.
    #[error("nobody answers on the socket {0}; is the gateway running?")]
    Refused(PathBuf),
    /// Reading or writing failed.
    #[error("the connection to {path} broke: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// The gateway takes what it is asked, and says nothing.
    #[error("the gateway on {path} did not answer within {} s; does it hang?", .patience.as_secs())]
    Silent {
        /// The socket.
        path: PathBuf,
        /// How long it was waited for.
        patience: Duration,
    },
    /// The gateway went away in the middle of a stream.
    #[error("the gateway on {0} ended before its answer did")]
    Ended(PathBuf),
    /// The far end does not speak as it should.
    #[error("the answer from {path} is not what was expected: {what}")]
    Answer {
        /// The socket.
        path: PathBuf,
        /// What was wrong with it.
        what: String,
    },
    /// The gateway refused the request.
    #[error("the gateway refused: {}", .0.detail.as_deref().unwrap_or(&.0.title))]
    Problem(Problem),
}

/// Where requests go.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    patience: Duration,
}

impl Client {
    /// A client of the daemon that listens on `socket`; connects anew for each request.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), patience: Duration::from_secs(30) }
    }

    /// Asks for what is at `path`, with a query if there are parameters.
    pub fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<T, ClientError> {
        let body = self.send("GET", &target(path, query), None)?;
        self.read_json(body)
    }

    /// Sends `request` to `path`.
    pub fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        request: &impl Serialize,
    ) -> Result<T, ClientError> {
        let request = serde_json::to_vec(request).map_err(|error| self.answer(error))?;
        let body = self.send("POST", path, Some(&request))?;
        self.read_json(body)
    }

    /// Asks for a stream of JSON objects, one a line, which lasts as long as the daemon pleases.
    pub fn stream<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<impl Iterator<Item = Result<T, ClientError>> + use<T>, ClientError> {
        let body = self.send("GET", &target(path, query), None)?;
        // A quiet network sends nothing for hours, and that is no error.
        body.inner.get_ref().set_read_timeout(None).map_err(|source| self.io(source))?;
        let client = self.clone();
        Ok(body.lines().filter(|line| !matches!(line, Ok(line) if line.trim().is_empty())).map(
            move |line| {
                let line = line.map_err(|source| {
                    use io::ErrorKind::{ConnectionReset, UnexpectedEof};
                    if matches!(source.kind(), ConnectionReset | UnexpectedEof) {
                        ClientError::Ended(client.socket.clone())
                    } else {
                        client.io(source)
                    }
                })?;
                serde_json::from_str(&line).map_err(|error| client.answer(error))
            },
        ))
    }

    fn io(&self, source: io::Error) -> ClientError {
        let path = self.socket.clone();
        // What the kernel answers when the time is over that a socket was given.
        if source.kind() == io::ErrorKind::WouldBlock {
            ClientError::Silent { path, patience: self.patience }
        } else {
            ClientError::Io { path, source }
        }
    }

    fn answer(&self, what: impl ToString) -> ClientError {
        ClientError::Answer { path: self.socket.clone(), what: what.to_string() }
    }

    fn connect(&self) -> Result<UnixStream, ClientError> {
        let path = self.socket.clone();
        UnixStream::connect(&self.socket).map_err(|source| {
            let kind = source.kind();
            // A path that is too long for a socket is none either.
            if matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) {
                ClientError::Missing(path)
            } else if kind == io::ErrorKind::PermissionDenied {
                ClientError::Forbidden(path)
            } else if kind == io::ErrorKind::ConnectionRefused {
                ClientError::Refused(path)
            } else {
                ClientError::Io { path, source }
            }
        })
    }

    fn send(
        &self,
        method: &str,
        target: &str,
        request: Option<&[u8]>,
    ) -> Result<Body<BufReader<UnixStream>>, ClientError> {
        let mut stream = self.connect()?;
        stream.set_read_timeout(Some(self.patience)).map_err(|source| self.io(source))?;
        stream.set_write_timeout(Some(self.patience)).map_err(|source| self.io(source))?;
        let body = request.unwrap_or_default();
        let mut bytes = format!(
            "{method} {target} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len(),
        )
        .into_bytes();
        bytes.extend_from_slice(body);
        let sent = stream.write_all(&bytes);
        if let Err(source) = sent {
            // Who is refused at once is told before it has asked, and nobody takes the question.
            return Err(match read_head(BufReader::new(stream)) {
                Ok((status, body)) if is_broken(&source) => self.refusal(status, body),
                _ => self.io(source),
            });
        }
        let (status, body) = read_head(BufReader::new(stream)).map_err(|e| self.io(e))?;
        if (200..300).contains(&status) { Ok(body) } else { Err(self.refusal(status, body)) }
    }

    fn refusal(&self, status: u16, mut body: impl Read) -> ClientError {
        let mut text = Vec::new();
        match body.read_to_end(&mut text) {
            // Closed with the question unread: what was said before that is all that there is.
            Err(source) if !is_broken(&source) => return self.io(source),
            Ok(_) | Err(_) => {}
        }
        let text = String::from_utf8_lossy(&text);
        ClientError::Problem(serde_json::from_str(&text).unwrap_or_else(|_| Problem {
            title: match text.trim() {
                "" => format!("HTTP status {status}"),
                text => format!("HTTP status {status}, {text}"),
            },
            status,
            detail: None,
        }))
    }

    fn read_json<T: DeserializeOwned>(&self, mut body: impl Read) -> Result<T, ClientError> {
        let mut bytes = Vec::new();
        body.read_to_end(&mut bytes).map_err(|source| self.io(source))?;
        serde_json::from_slice(&bytes).map_err(|error| self.answer(error))
    }
}

/// Whether the far end has closed the connection, and not taken what was sent to it.
fn is_broken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// A path with its query, in the characters that may stand in a request line.
fn target(path: &str, query: &[(&str, &str)]) -> String {
    let mut target = path.to_owned();
    for (n, (key, value)) in query.iter().enumerate() {
        target.push(if n == 0 { '?' } else { '&' });
        target.push_str(key);
        target.push('=');
        for byte in value.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    target.push(char::from(byte));
                }
                _ => target.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    target
}

/// How the end of a body is known.
enum Extent {
    /// So many bytes are left.
    Length(u64),
    /// So many bytes are left of this chunk; another follows.
    Chunk(u64),
    /// The connection closes.
    Close,
}

/// The body of an answer.
struct Body<R> {
    inner: R,
    extent: Extent,
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn cut_off(where_it_ends: &str) -> io::Error {
    let what = format!("the answer ends within its {where_it_ends}");
    io::Error::new(io::ErrorKind::UnexpectedEof, what)
}

/// A line without its end; an error if the connection ends before it.
fn read_line(inner: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    inner.take(HEADER_BYTES).read_line(&mut line)?;
    match line.strip_suffix('\n') {
        Some(text) => Ok(text.trim_end_matches('\r').to_owned()),
        None => Err(cut_off("headers")),
    }
}

fn read_head<R: BufRead>(mut inner: R) -> io::Result<(u16, Body<R>)> {
    let line = read_line(&mut inner)?;
    let status = line
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split(' ').nth(1))
        .and_then(|status| status.parse().ok())
        .ok_or_else(|| invalid("it is not HTTP"))?;
    let mut extent = Extent::Close;
    loop {
        let line = read_line(&mut inner)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or_else(|| invalid("a header has no colon"))?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("transfer-encoding") && value.eq_ignore_ascii_case("chunked") {
            extent = Extent::Chunk(0);
        } else if name.eq_ignore_ascii_case("content-length") && matches!(extent, Extent::Close) {
            extent = Extent::Length(value.parse().map_err(|_| invalid("its length is no number"))?);
        }
    }
    Ok((status, Body { inner, extent }))
}

impl<R: BufRead> Body<R> {
    /// The length of the next chunk; after the last one the body is over.
    fn next_chunk(&mut self) -> io::Result<u64> {
        let mut line = read_line(&mut self.inner)?;
        if line.is_empty() {
            // The end of the chunk before.
            line = read_line(&mut self.inner)?;
        }
        let digits = line.split(';').next().unwrap_or_default().trim();
        let length =
            u64::from_str_radix(digits, 16).map_err(|_| invalid("a chunk has no length"))?;
        self.extent = if length == 0 { Extent::Length(0) } else { Extent::Chunk(length) };
        Ok(length)
    }
}

impl<R: BufRead> Read for Body<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let left = match self.extent {
            Extent::Close => return self.inner.read(buffer),
            Extent::Length(left) => left,
            Extent::Chunk(0) => self.next_chunk()?,
            Extent::Chunk(left) => left,
        };
        if left == 0 {
            return Ok(0);
        }
        let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let got = self.inner.read(&mut buffer[..wanted])?;
        if got == 0 {
            return Err(cut_off("body"));
        }
        let left = left - got as u64;
        self.extent = match self.extent {
            Extent::Chunk(_) => Extent::Chunk(left),
            Extent::Length(_) => Extent::Length(left),
            Extent::Close => Extent::Close,
        };
        Ok(got)
    }
}

impl<R: BufRead> Body<R> {
    fn lines(self) -> io::Lines<BufReader<Self>> {
        BufReader::new(self).lines()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::path::Path;
    use std::thread;

    /// A directory that goes away with the test.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("sluice-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).ok();
        }
    }

    /// Answers one request with `answer` and returns what was asked.
    fn answering(socket: &Path, answer: &'static str) -> thread::JoinHandle<String> {
        let listener = UnixListener::bind(socket).unwrap();
        thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(&stream);
            let mut request = String::new();
            let mut length = 0;
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                if let Some(value) = line.strip_prefix("Content-Length: ") {
                    length = value.trim().parse().unwrap();
                }
                let end = line == "\r\n";
                request.push_str(&line);
                if end {
                    break;
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            request.push_str(std::str::from_utf8(&body).unwrap());
            (&stream).write_all(answer.as_bytes()).unwrap();
            request
        })
    }

    #[test]
    fn a_body_ends_by_length_by_chunks_or_with_the_connection() {
        let directory = Directory::new("bodies");
        for (n, answer) in [
            "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n[1, 2]and more",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[1\r\n4;x=y\r\n, 2]\r\n0\r\n\r\n",
            "HTTP/1.0 200 OK\r\n\r\n[1, 2]",
        ]
        .into_iter()
        .enumerate()
        {
            let socket = directory.0.join(n.to_string());
            let server = answering(&socket, answer);
            let numbers: Vec<u8> =
                Client::new(&socket).get("/v1/x", &[("filter", "a=b c&d")]).unwrap();
            assert_eq!(numbers, [1, 2], "{answer}");
            let request = server.join().unwrap();
            assert!(
                request.starts_with("GET /v1/x?filter=a%3Db%20c%26d HTTP/1.1\r\n"),
                "{request}"
            );
        }
    }

    #[test]
    fn an_answer_that_is_cut_off_is_an_error() {
        let directory = Directory::new("cut");
        for (n, (answer, expected)) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n[1, 2]", "ends within its body"),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\n[1, 2]\r\n",
                "ends within its headers",
            ),
            ("HTTP/1.1 200 OK\r\nContent-Le", "ends within its headers"),
            ("SSH-2.0-OpenSSH\r\n", "it is not HTTP"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n[1,", "EOF while parsing"),
        ]
        .into_iter()
        .enumerate()
        {
            let socket = directory.0.join(n.to_string());
            let server = answering(&socket, answer);
            let error = Client::new(&socket).get::<Vec<u8>>("/", &[]).unwrap_err().to_string();
            assert!(error.contains(expected), "{answer}: {error}");
            server.join().unwrap();
        }
    }

    #[test]
    fn a_refusal_is_told_in_the_words_of_the_gateway() {
        let directory = Directory::new("refusal");
        for (n, (answer, expected)) in [
            (
                "HTTP/1.1 400 Bad Request\r\nContent-Type: application/problem+json\r\n\r\n\
                 {\"title\":\"bad filter\",\"status\":400,\"detail\":\"`x` is not a key\"}",
                "the gateway refused: `x` is not a key",
            ),
            (
                "HTTP/1.1 400 Bad Request\r\n\r\n{\"title\":\"bad filter\",\"status\":400}",
                "the gateway refused: bad filter",
            ),
            ("HTTP/1.1 404 Not Found\r\n\r\n", "the gateway refused: HTTP status 404"),
            ("HTTP/1.1 500 Oh\r\n\r\nno\n", "the gateway refused: HTTP status 500, no"),
        ]
        .into_iter()
        .enumerate()
        {
            let socket = directory.0.join(n.to_string());
            let server = answering(&socket, answer);
            let error =
                Client::new(&socket).post::<u8>("/v1/y", &["body"]).unwrap_err().to_string();
            assert_eq!(error, expected);
            assert!(server.join().unwrap().ends_with("\r\n\r\n[\"body\"]"));
        }
    }

    #[test]
    fn a_refusal_is_told_though_nobody_took_the_question() {
        let directory = Directory::new("untaken");
        // Less than a socket holds, so it breaks while the answer is read; and more, so it breaks
        // while the question is sent.
        for (n, length) in [1, 8 << 20].into_iter().enumerate() {
            let socket = directory.0.join(n.to_string());
            let listener = UnixListener::bind(&socket).unwrap();
            let server = thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                // Now there is something to leave unread.
                stream.read_exact(&mut [0]).unwrap();
                let answer = b"HTTP/1.1 503 Service Unavailable\r\n\r\n\
                    {\"title\":\"too many\",\"status\":503,\"detail\":\"end some\"}";
                stream.write_all(answer).unwrap();
            });
            let error = Client::new(&socket).post::<u8>("/", &"x".repeat(length)).unwrap_err();
            assert_eq!(error.to_string(), "the gateway refused: end some", "{length}");
            server.join().unwrap();
        }
    }

    #[test]
    fn a_gateway_that_hangs_is_said_to() {
        let directory = Directory::new("hangs");
        let socket = directory.0.join("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        let client = Client { patience: Duration::from_millis(50), ..Client::new(&socket) };
        let expected =
            format!("the gateway on {} did not answer within 0 s; does it hang?", socket.display());
        // The last is more than a socket holds.
        let said = [
            client.get::<u8>("/", &[]).unwrap_err(),
            client.stream::<u8>("/", &[]).err().unwrap(),
            client.post::<u8>("/", &"x".repeat(8 << 20)).unwrap_err(),
        ];
        assert_eq!(said.map(|error| error.to_string()), [(); 3].map(|()| expected.clone()));
    }

    #[test]
    fn a_stream_is_waited_for_without_end_once_it_has_begun() {
        let directory = Directory::new("quiet");
        let socket = directory.0.join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let patience = Duration::from_millis(50);
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            thread::sleep(4 * patience);
            stream.write_all(b"7\n").unwrap();
            // Until the far end has read it: what is left unread would break the connection.
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            io::copy(&mut stream, &mut io::sink()).unwrap();
        });
        let client = Client { patience, ..Client::new(&socket) };
        let numbers: Result<Vec<u8>, _> = client.stream("/", &[]).unwrap().collect();
        assert_eq!(numbers.unwrap(), [7]);
        server.join().unwrap();
    }

    #[test]
    fn a_stream_gives_one_object_a_line() {
        let directory = Directory::new("stream");
        let socket = directory.0.join("socket");
        // A line in two chunks, an empty line that keeps the connection alive, two in one chunk.
        let server = answering(
            &socket,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
             1\r\n1\r\n2\r\n2\n\r\n1\r\n\n\r\n4\r\n3\n4\n\r\n0\r\n\r\n",
        );
        let numbers: Result<Vec<u8>, _> = Client::new(&socket).stream("/", &[]).unwrap().collect();
        assert_eq!(numbers.unwrap(), [12, 3, 4]);
        server.join().unwrap();
    }

    #[test]
    fn a_stream_that_is_cut_off_has_lost_its_gateway() {
        let directory = Directory::new("stream-cut");
        for (n, rest) in ["", "3\r\n2", "1\r\n2\r\n"].into_iter().enumerate() {
            let socket = directory.0.join(n.to_string());
            let answer =
                format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n1\n\r\n{rest}");
            let server = answering(&socket, answer.leak());
            let client = Client::new(&socket);
            let mut numbers = client.stream::<u8>("/", &[]).unwrap();
            assert_eq!(numbers.next().unwrap().unwrap(), 1);
            let error = numbers.next().unwrap().unwrap_err();
            assert!(matches!(error, ClientError::Ended(_)), "{rest:?}: {error}");
            server.join().unwrap();
        }
    }

    #[test]
    fn without_a_daemon_the_error_says_what_to_look_at() {
        let directory = Directory::new("absent");
        let socket = directory.0.join("socket");
        let ask = || Client::new(&socket).get::<u8>("/", &[]).unwrap_err().to_string();
        assert!(ask().starts_with("there is no socket "), "{}", ask());
        let long = PathBuf::from(format!("/{}", "x".repeat(200)));
        let refused = Client::new(long).get::<u8>("/", &[]).unwrap_err().to_string();
        assert!(refused.starts_with("there is no socket "), "{refused}");
        drop(UnixListener::bind(&socket).unwrap());
        assert!(ask().starts_with("nobody answers on the socket "), "{}", ask());
    }
}
