//! Servers of a side: HTTP, DNS, echo and iperf3.
//!
//! They tell the client who it is: the page and the name `whoami.lab` hold the address and port
//! that the request came from, which is the quickest way to see a translation.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::socket::{setsockopt, sockopt};

use crate::dns;
use crate::netns::{Background, Netns, Stop};
use crate::process::Process;
use crate::site::Site;
use crate::skip::{Need, missing};

/// Where pages are.
pub const HTTP: u16 = 80;
/// Where names are, over UDP.
pub const DNS: u16 = 53;
/// Where everything comes back, over TCP and UDP.
pub const ECHO: u16 = 7;
/// Where throughput is measured.
pub const IPERF: u16 = 5201;

/// How long a server may take to come up.
const PATIENCE: Duration = Duration::from_secs(5);
/// What a socket holds, in bytes, while its thread waits for a processor: what is lost there would
/// be laid to the gateway.
pub(crate) const QUEUE: usize = 16 << 20;
/// How often a server looks whether it is told to stop.
const BREATH: Duration = Duration::from_millis(50);

/// Running servers; they end when dropped.
#[derive(Debug)]
pub struct Servers {
    /// What serves pages: `nginx`, or `lab` where that is not installed.
    pub http: &'static str,
    /// Whether iperf3 is there.
    pub iperf: bool,
    _threads: Vec<Background<()>>,
    _programs: Vec<Process>,
}

impl Servers {
    /// Starts all of them in a namespace with these addresses, and waits until they listen.
    ///
    /// # Errors
    ///
    /// When one does not come up; that nginx or iperf3 are not installed is no error.
    pub fn start(site: &Site, netns: &Netns, addresses: &[Ipv4Addr]) -> Result<Self> {
        let mut programs = Vec::new();
        let mut threads = vec![tcp(netns, ECHO, echo)?];
        for address in addresses {
            // One socket for each, so that an answer has the address that was asked.
            threads.push(udp(netns, (*address, ECHO), |bytes, _| Some(bytes.to_vec()))?);
            threads.push(udp(netns, (*address, DNS), dns::answer)?);
        }
        let nginx = missing(&[Need::Tool("nginx")]).is_none();
        if nginx {
            programs.push(start_nginx(site, netns)?);
        } else {
            threads.push(tcp(netns, HTTP, page)?);
        }
        let iperf = missing(&[Need::Tool("iperf3")]).is_none();
        if iperf {
            let port = IPERF.to_string();
            programs.push(netns.start(Path::new("iperf3"), &["--server", "--port", &port])?);
        }
        let servers = Self {
            http: if nginx { "nginx" } else { "lab" },
            iperf,
            _threads: threads,
            _programs: programs,
        };
        servers.wait(netns)?;
        Ok(servers)
    }

    fn wait(&self, netns: &Netns) -> Result<()> {
        let start = Instant::now();
        for port in [HTTP, IPERF] {
            while (port != IPERF || self.iperf) && !netns.listens(port)? {
                if start.elapsed() > PATIENCE {
                    let said: String = self._programs.iter().map(Process::stderr).collect();
                    bail!("nobody listens at port {port} of {}: {said}", netns.name());
                }
                thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }
}

/// Serves each connection on a thread of its own.
///
/// # Errors
///
/// When the port is taken.
pub fn tcp(
    netns: &Netns,
    port: u16,
    serve: fn(TcpStream, &Stop) -> io::Result<()>,
) -> Result<Background<()>> {
    let listener = netns.enter(|| {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
            .with_context(|| format!("cannot listen at port {port}"))?;
        listener.set_nonblocking(true).context("a socket can be made not to block")?;
        Ok(listener)
    })?;
    Ok(netns.background(move |stop| {
        thread::scope(|scope| {
            while !stop.told() {
                match listener.accept() {
                    Ok((stream, _)) => {
                        scope.spawn(move || {
                            stream.set_nonblocking(false)?;
                            stream.set_nodelay(true)?;
                            stream.set_read_timeout(Some(BREATH))?;
                            stream.set_write_timeout(Some(PATIENCE))?;
                            // A client that goes away is not the server's business.
                            serve(stream, stop)
                        });
                    }
                    Err(_) => thread::sleep(Duration::from_millis(1)),
                }
            }
        });
        Ok(())
    }))
}

/// Answers each datagram by `answer`, from the address that was asked.
///
/// # Errors
///
/// When the address is taken.
pub fn udp(
    netns: &Netns,
    at: (Ipv4Addr, u16),
    answer: impl Fn(&[u8], SocketAddr) -> Option<Vec<u8>> + Send + 'static,
) -> Result<Background<()>> {
    let socket = netns.enter(|| {
        let socket = UdpSocket::bind(at).with_context(|| format!("cannot listen at {at:?}"))?;
        socket.set_read_timeout(Some(BREATH)).context("a socket takes a timeout")?;
        setsockopt(&socket, sockopt::RcvBufForce, &QUEUE).context("a socket takes a queue")?;
        Ok(socket)
    })?;
    Ok(netns.background(move |stop| {
        let mut buffer = [0; 65_536];
        while !stop.told() {
            if let Ok((length, from)) = socket.recv_from(&mut buffer)
                && let Some(bytes) = answer(&buffer[..length], from)
            {
                // Loss is what the client counts.
                let _ = socket.send_to(&bytes, from);
            }
        }
        Ok(())
    }))
}

/// Sends back whatever comes, until the client has no more to say.
pub fn echo(mut stream: TcpStream, stop: &Stop) -> io::Result<()> {
    let mut buffer = [0; 16_384];
    while !stop.told() {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => stream.write_all(&buffer[..length])?,
            Err(error) if waits(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Serves the page that nginx would.
fn page(mut stream: TcpStream, stop: &Stop) -> io::Result<()> {
    let client = stream.peer_addr()?;
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    while !stop.told() && !request.ends_with(b"\r\n\r\n") && request.len() < 8_192 {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => request.extend_from_slice(&buffer[..length]),
            Err(error) if waits(&error) => {}
            Err(error) => return Err(error),
        }
    }
    let body = format!("{client}\n");
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len(),
    )
}

fn waits(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// In one process, so that killing it leaves no worker behind, and with every file in the lab's
/// own directory.
fn start_nginx(site: &Site, netns: &Netns) -> Result<Process> {
    let files = site.files().join(netns.name());
    fs::create_dir_all(&files).with_context(|| format!("cannot make {}", files.display()))?;
    let directory = files.display();
    let config = files.join("nginx.conf");
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {directory}/{kind};\n"))
        .concat();
    fs::write(
        &config,
        format!(
            "daemon off;\nmaster_process off;\nuser root;\npid {directory}/nginx.pid;\n\
             error_log stderr error;\nevents {{ worker_connections 1024; }}\n\
             http {{\naccess_log off;\ndefault_type text/plain;\n{temporary}\
             server {{\nlisten {HTTP} backlog=1024;\n\
             location / {{ return 200 \"$remote_addr:$remote_port\\n\"; }}\n}}\n}}\n",
        ),
    )
    .with_context(|| format!("cannot write {}", config.display()))?;
    let (prefix, config) = (files.to_string_lossy(), config.to_string_lossy());
    netns.start(Path::new("nginx"), &["-p", &prefix, "-c", &config, "-e", "stderr"])
}
