//! The pages over real connections.

use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use xdp::memory::Memory;

use super::*;
use crate::config::Tls;
use crate::flows::testing::{self, TWO_CLUSTERS};
use crate::serve::Condition;

fn state() -> Arc<State<Memory>> {
    let scene = testing::scene(TWO_CLUSTERS);
    let in_force = scene.in_force();
    Arc::new(State::new(scene.memory, in_force))
}

fn on(listen: &str) -> Metrics {
    Metrics { listen: listen.parse().unwrap(), ..Metrics::default() }
}

/// A directory that goes away with the test.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("sluice-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// A certificate for `localhost`, signed by itself.
    fn certificate(&self) -> Tls {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (certificate, key) = (self.0.join("tls.crt"), self.0.join("tls.key"));
        std::fs::write(&certificate, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        Tls { certificate, key }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Running {
    address: SocketAddr,
    end: oneshot::Sender<()>,
    served: tokio::task::JoinHandle<()>,
}

impl Running {
    async fn new(config: Metrics, state: Arc<State<Memory>>) -> Self {
        let (end, ended) = oneshot::channel::<()>();
        let bound = Bound::bind(&config).await.unwrap();
        let address = bound.address;
        let end_of = async move {
            let _ = ended.await;
        };
        let served = tokio::spawn(bound.serve(state, end_of));
        Self { address, end, served }
    }

    async fn stop(self) {
        self.end.send(()).unwrap();
        self.served.await.unwrap();
    }
}

/// Status, headers and body of one request.
async fn get(mut stream: impl AsyncRead + AsyncWrite + Unpin, path: &str, header: &str) -> String {
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{header}Connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A peer that closes without a farewell has still answered.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

fn assert_status(answer: &str, status: u16) {
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
}

#[tokio::test]
async fn on_loopback_everybody_may_read() {
    let state = state();
    let running = Running::new(on("127.0.0.1:0"), Arc::clone(&state)).await;
    let ask = |path: &'static str| async move {
        get(TcpStream::connect(running.address).await.unwrap(), path, "").await
    };
    let metrics = ask("/metrics").await;
    assert_status(&metrics, 200);
    assert!(metrics.contains("content-type: text/plain; version=0.0.4"), "{metrics}");
    assert!(metrics.contains("\nsluice_policy_generation 1\n"), "{metrics}");
    assert_status(&ask("/healthz").await, 200);
    assert_status(&ask("/nothing").await, 404);

    let waiting = ask("/readyz").await;
    assert_status(&waiting, 503);
    assert!(waiting.contains("the last guard against leaks has not been put up yet"), "{waiting}");
    for condition in Condition::ALL {
        state.readiness.set(condition, vec![]);
    }
    assert_status(&ask("/readyz").await, 200);
    state.readiness.set(Condition::Guards, vec!["the last guard is gone".to_owned()]);
    let lost = ask("/readyz").await;
    assert_status(&lost, 503);
    assert!(lost.ends_with("the last guard is gone\n"), "{lost}");
    running.stop().await;
}

#[tokio::test]
async fn a_token_is_asked_for_on_every_page() {
    let directory = Directory::new("metrics-token");
    let token_file = directory.0.join("token");
    std::fs::write(&token_file, "sesame\n").unwrap();
    let config = Metrics { token_file: Some(token_file), ..on("127.0.0.1:0") };
    let running = Running::new(config, state()).await;
    for path in ["/metrics", "/healthz", "/readyz"] {
        for (header, refused) in [
            ("", true),
            ("Authorization: Bearer simsim\r\n", true),
            ("Authorization: Bearer sesame\r\n", false),
        ] {
            let stream = TcpStream::connect(running.address).await.unwrap();
            let answer = get(stream, path, header).await;
            assert_eq!(answer.starts_with("HTTP/1.1 401 "), refused, "{path} {header}: {answer}");
        }
    }
    running.stop().await;
}

#[tokio::test]
async fn who_shows_no_token_keeps_no_connection() {
    let directory = Directory::new("metrics-kept");
    let token_file = directory.0.join("token");
    std::fs::write(&token_file, "sesame\n").unwrap();
    let config = Metrics { token_file: Some(token_file), ..on("127.0.0.1:0") };
    let running = Running::new(config, state()).await;
    for (header, kept) in [("", false), ("Authorization: Bearer sesame\r\n", true)] {
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        let asked = format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\n{header}\r\n");
        stream.write_all(asked.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let ended = stream.read_to_end(&mut answer);
        let ended = tokio::time::timeout(Duration::from_secs(2), ended).await;
        assert_eq!(ended.is_err(), kept, "{header}");
    }
    running.stop().await;
}

#[test]
fn a_host_is_one_peer_by_whatever_address_it_comes() {
    for (address, expected) in [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"), // over a socket of both families
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:3::6", "2001:db8:1:3::"),
        ("::1", "::"),
    ] {
        assert_eq!(peer(address.parse().unwrap()).to_string(), expected, "{address}");
    }
}

async fn connect(
    address: SocketAddr,
    tls: &Tls,
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&tls.certificate).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

#[tokio::test]
async fn tls_serves_slow_peers_last_and_takes_a_renewed_certificate() {
    let directory = Directory::new("metrics-tls");
    let tls = directory.certificate();
    let config = Metrics { tls: Some(tls.clone()), ..on("127.0.0.1:0") };
    let running = Running::new(config, state()).await;
    // Hosts that open what they may, and never begin the handshake.
    let mut silent = Vec::new();
    for host in 2..6 {
        for _ in 0..LIMITS.peer {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(SocketAddr::from(([127, 0, 0, host], 0))).unwrap();
            silent.push(socket.connect(running.address).await.unwrap());
        }
    }
    let asked = async {
        let stream = connect(running.address, &tls).await.unwrap();
        assert_status(&get(stream, "/healthz", "").await, 200);
    };
    tokio::time::timeout(Patience::default().opening - Duration::from_secs(1), asked)
        .await
        .expect("others do not wait");
    // Without TLS there is no answer.
    let plain = get(TcpStream::connect(running.address).await.unwrap(), "/healthz", "").await;
    assert!(!plain.contains("alive"), "{plain}");

    let old = CertificateDer::from_pem_file(&tls.certificate).unwrap();
    directory.certificate();
    let stream = connect(running.address, &tls).await.expect("the new one is known to the client");
    let shown = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
    assert_ne!(shown, old);
    // What cannot be used changes nothing.
    let kept = std::fs::read(&tls.certificate).unwrap();
    std::fs::write(&tls.certificate, "-----BEGIN CERTIFICATE-----\nno\n").unwrap();
    let unusable = tls.clone();
    assert!(Certificates::open(unusable).is_err());
    let good = Tls { certificate: directory.0.join("kept"), key: tls.key.clone() };
    std::fs::write(&good.certificate, kept).unwrap();
    connect(running.address, &good).await.expect("the last good one stays");
    drop(silent);
    running.stop().await;
}

#[test]
fn off_loopback_it_wants_tls_and_a_token_or_to_be_told() {
    let directory = Directory::new("metrics-access");
    let token_file = directory.0.join("token");
    std::fs::write(&token_file, "sesame\n").unwrap();
    let tls = directory.certificate();
    for (listen, with_tls, with_token, insecure, allowed) in [
        ("127.0.0.1:9464", false, false, false, true),
        ("[::1]:9464", false, false, false, true),
        ("0.0.0.0:9464", false, false, false, false),
        ("10.0.0.1:9464", true, false, false, false),
        ("10.0.0.1:9464", false, true, false, false),
        ("10.0.0.1:9464", true, true, false, true),
        ("10.0.0.1:9464", false, false, true, true),
    ] {
        let config = Metrics {
            tls: with_tls.then(|| tls.clone()),
            token_file: with_token.then(|| token_file.clone()),
            insecure,
            ..on(listen)
        };
        let access = access(&config);
        assert_eq!(access.is_ok(), allowed, "{config:?}");
        if let Ok(access) = access {
            assert_eq!(access.certificates.is_some(), with_tls);
            assert_eq!(access.token.is_some(), with_token);
        }
    }
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let directory = Directory::new("metrics-files");
    let missing = directory.0.join("missing");
    let config = Metrics { token_file: Some(missing.clone()), ..on("127.0.0.1:0") };
    let error = access(&config).unwrap_err().to_string();
    assert!(error.contains("token_file") && error.contains("missing"), "{error}");
    let mut tls = directory.certificate();
    std::fs::write(&missing, "no certificate\n").unwrap();
    tls.certificate = missing;
    let error = access(&Metrics { tls: Some(tls), ..on("127.0.0.1:0") }).unwrap_err().to_string();
    assert!(error.contains("`metrics.tls`") && error.contains("missing"), "{error}");
}

#[tokio::test]
async fn an_address_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let error = Bound::bind(&on(&listen)).await.unwrap_err();
    assert!(error.to_string().contains(&listen), "{error}");
}
