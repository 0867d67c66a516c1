//! TLS in front of a connection.
//!
//! A certificate that was renewed on disk is taken into use with the next connection; one that
//! cannot be used changes nothing.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::TcpStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};
use tokio_rustls::{Accept, TlsAcceptor};
use tracing::warn;

use crate::config::Tls;
use crate::whole::{self, Stamp};

/// Longer than any chain of certificates.
const MOST_BYTES: u64 = 1 << 20;

/// A certificate and key in files, which may be renewed at any time.
#[derive(Debug)]
pub struct Certificates {
    files: Tls,
    used: Mutex<([Stamp; 2], Arc<ServerConfig>)>,
}

fn stamps(files: &Tls) -> io::Result<[Stamp; 2]> {
    let of = |path: &Path| {
        Stamp::of(path)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    };
    Ok([of(&files.certificate)?, of(&files.key)?])
}

fn invalid(path: &Path, error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display()))
}

fn read(files: &Tls) -> io::Result<Arc<ServerConfig>> {
    let bad_certificate = |error: rustls::pki_types::pem::Error| invalid(&files.certificate, error);
    let pem = |path| whole::read(path, MOST_BYTES).map_err(|error| invalid(path, error));
    let chain: Vec<CertificateDer<'_>> = CertificateDer::pem_slice_iter(&pem(&files.certificate)?)
        .collect::<Result<_, _>>()
        .map_err(bad_certificate)?;
    if chain.is_empty() {
        return Err(invalid(&files.certificate, "there is no certificate in it"));
    }
    let key =
        PrivateKeyDer::from_pem_slice(&pem(&files.key)?).map_err(|e| invalid(&files.key, e))?;
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

    /// Shakes hands with a peer, under the certificate of now.
    pub fn accept(&self, stream: TcpStream) -> Accept<TcpStream> {
        TlsAcceptor::from(self.current()).accept(stream)
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
