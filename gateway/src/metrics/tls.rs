//! TLS in front of a TCP listener.
//!
//! Handshakes run beside each other and with an end in sight, because a peer that is slow to shake
//! hands must not keep others out. A certificate that was renewed on disk is taken into use with
//! the next connection; one that cannot be used changes nothing.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::serve::Listener;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};
use tokio_rustls::server::TlsStream;
use tracing::{debug, warn};

use super::token::{Stamp, stamp};
use crate::config::Tls;

/// Handshakes at a time; more wait in the kernel.
const HANDSHAKES: usize = 32;
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// A certificate and key in files, which may be renewed at any time.
#[derive(Debug)]
pub struct Certificates {
    files: Tls,
    used: Mutex<([Stamp; 2], Arc<ServerConfig>)>,
}

fn stamps(files: &Tls) -> io::Result<[Stamp; 2]> {
    let of = |path: &Path| {
        stamp(path)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    };
    Ok([of(&files.certificate)?, of(&files.key)?])
}

fn invalid(path: &Path, error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display()))
}

fn read(files: &Tls) -> io::Result<Arc<ServerConfig>> {
    let bad_certificate = |error: rustls::pki_types::pem::Error| invalid(&files.certificate, error);
    let chain: Vec<CertificateDer<'_>> = CertificateDer::pem_file_iter(&files.certificate)
        .map_err(bad_certificate)?
        .collect::<Result<_, _>>()
        .map_err(bad_certificate)?;
    if chain.is_empty() {
        return Err(invalid(&files.certificate, "there is no certificate in it"));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|e| invalid(&files.key, e))?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| invalid(&files.key, error))?;
    Ok(Arc::new(config))
}

impl Certificates {
    /// Reads them.
    ///
    /// # Errors
    /// A file cannot be read, or certificate and key do not belong together.
    pub fn open(files: Tls) -> io::Result<Self> {
        let used = Mutex::new((stamps(&files)?, read(&files)?));
        Ok(Self { files, used })
    }

    fn current(&self) -> Arc<ServerConfig> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(now) = stamps(&self.files)
            && now != used.0
        {
            match read(&self.files) {
                Ok(config) => used.1 = config,
                Err(error) => warn!(%error, "the certificate cannot be used; the last one stays"),
            }
            used.0 = now;
        }
        Arc::clone(&used.1)
    }
}

/// Connections whose handshake is done.
#[derive(Debug)]
pub struct TlsListener {
    done: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl TlsListener {
    /// Puts TLS in front of a listener; must be called within a runtime.
    ///
    /// # Errors
    /// The listener has no address.
    pub fn new(listener: TcpListener, certificates: Certificates) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let (send, done) = mpsc::channel(HANDSHAKES);
        let accepting = tokio::spawn(accept(listener, certificates, send));
        Ok(Self { done, address, accepting })
    }
}

async fn accept(
    mut listener: TcpListener,
    certificates: Certificates,
    send: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
) {
    let room = Arc::new(Semaphore::new(HANDSHAKES));
    // The semaphore is never closed.
    while let Ok(permit) = Arc::clone(&room).acquire_owned().await {
        let (stream, address) = Listener::accept(&mut listener).await;
        let acceptor = TlsAcceptor::from(certificates.current());
        let send = send.clone();
        tokio::spawn(async move {
            match timeout(PATIENCE, acceptor.accept(stream)).await {
                // If nobody serves any more, the connection closes.
                Ok(Ok(stream)) => drop(send.send((stream, address)).await),
                Ok(Err(error)) => debug!(%address, %error, "no TLS"),
                Err(_) => debug!(%address, "the handshake took too long"),
            }
            drop(permit);
        });
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        match self.done.recv().await {
            Some(connection) => connection,
            // The task that accepts has died: there will be no more.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

impl Drop for TlsListener {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}
