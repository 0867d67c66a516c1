//! An AWS, as far as somebody who looks can tell.
//!
//! moto knows the wire format of EC2, STS and IAM from elsewhere than we do. It pages nothing and
//! throttles nobody, but it looks at signatures and policies when it is told to.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::directory::Directory;
use crate::kubernetes::free_port;
use crate::program::MOTO;
use crate::server::Server;

/// How long it may take to be ready: 2 s on an idle machine, more beside other tests.
const PATIENCE: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(50);

/// A running moto on a loopback port of its own; killed when dropped.
#[derive(Debug)]
pub struct Moto {
    server: Server,
    port: u16,
    directory: Directory,
}

impl Moto {
    /// The account of keys that moto has not given itself.
    pub const ACCOUNT: &'static str = "123456789012";

    /// Starts it and waits until it is ready. It takes anybody for anybody until [`Moto::enforce`].
    ///
    /// # Errors
    ///
    /// When it ends or is not ready in time; the error has what it said.
    pub async fn start() -> Result<Self> {
        let (directory, port) = (Directory::new()?, free_port()?);
        let arguments = ["-H", "127.0.0.1", "-p", &port.to_string()].map(ToOwned::to_owned);
        let server = Server::start(&MOTO, &arguments, &directory)?;
        let mut moto = Self { server, port, directory };
        let start = Instant::now();
        while moto.send("/moto-api/data.json", "", "GET", "").is_err() {
            moto.server.lives()?;
            let said = || format!("moto is not ready: {}", moto.server.said());
            anyhow::ensure!(start.elapsed() < PATIENCE, said());
            tokio::time::sleep(PAUSE).await;
        }
        Ok(moto)
    }

    /// Where it is, for all services and regions.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Does something in a region, with somebody's key and without a signature; what was answered.
    ///
    /// # Errors
    ///
    /// When it cannot be asked, or refuses.
    pub fn act(
        &self,
        key: &str,
        service: &str,
        region: &str,
        action: &str,
        parameters: &[(&str, &str)],
    ) -> Result<String> {
        let version = match service {
            "ec2" => "2016-11-15",
            "iam" => "2010-05-08",
            _ => "2011-06-15",
        };
        let mut body = format!("Action={action}&Version={version}");
        for (name, value) in parameters {
            body.push_str(&format!("&{name}={}", encoded(value)));
        }
        let headers = format!(
            "Content-Type: application/x-www-form-urlencoded\r\n\
             Authorization: AWS4-HMAC-SHA256 Credential={key}/20260101/{region}/{service}/aws4_request, \
             SignedHeaders=host, Signature=none\r\n"
        );
        self.send("/", &headers, "POST", &body)
    }

    /// From now on it looks at signatures and policies.
    ///
    /// # Errors
    ///
    /// When it cannot be asked.
    pub fn enforce(&self) -> Result<()> {
        self.send("/moto-api/reset-auth", "", "POST", "0").map(drop)
    }

    /// Writes keys where AWS clients look for them, and says where.
    ///
    /// # Errors
    ///
    /// When they cannot be written.
    pub fn credentials_file(&self, name: &str, key: &str, secret: &str) -> Result<PathBuf> {
        let content =
            format!("[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n");
        self.directory.write(name, &content)
    }

    fn send(&self, path: &str, headers: &str, method: &str, body: &str) -> Result<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\n{headers}\
             Content-Length: {}\r\n\r\n{body}",
            self.port,
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        let code = head.split(' ').nth(1).unwrap_or_default();
        anyhow::ensure!(code == "200", "moto answered {code}: {body}");
        Ok(body.to_owned())
    }
}

fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}
