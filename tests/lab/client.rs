//! Clients: what pods and nodes do to the servers, and what they noticed.
//!
//! A failure that a scenario may want is an answer here ([`Attempt`]), not an error.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::dns::{self, Record};
use crate::netns::{Background, Netns};
use crate::servers::{DNS, IPERF, QUEUE};

/// How a connection attempt went.
#[derive(Debug)]
pub enum Attempt {
    /// It is open.
    Open(TcpStream),
    /// It was refused at once, by RST or ICMP: somebody said no.
    Refused,
    /// Nobody answered in time.
    Silence,
}

impl Attempt {
    /// The connection.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn open(self) -> Result<TcpStream> {
        match self {
            Self::Open(stream) => Ok(stream),
            Self::Refused => bail!("the connection was refused"),
            Self::Silence => bail!("the connection was not answered"),
        }
    }
}

/// Opens a connection from inside a namespace. It lives on outside of it. `from` may be the
/// unspecified address and port 0, for the kernel to choose.
///
/// # Errors
///
/// When the attempt ended in another way than an [`Attempt`] has.
pub fn connect_from(
    netns: &Netns,
    from: SocketAddrV4,
    to: SocketAddrV4,
    patience: Duration,
) -> Result<Attempt> {
    let attempt = || -> nix::Result<TcpStream> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
        if from.port() != 0 || !from.ip().is_unspecified() {
            setsockopt(&socket, sockopt::ReuseAddr, &true)?;
            bind(socket.as_raw_fd(), &SockaddrIn::from(from))?;
        }
        // The kernel applies the timeout of sending to connecting.
        let timeout = TimeVal::new(patience.as_secs() as i64, patience.subsec_micros().into());
        setsockopt(&socket, sockopt::SendTimeout, &timeout)?;
        connect(socket.as_raw_fd(), &SockaddrIn::from(to))?;
        Ok(TcpStream::from(socket))
    };
    netns.enter(|| {
        use nix::errno::Errno;
        match attempt() {
            Ok(stream) => Ok(Attempt::Open(stream)),
            Err(
                Errno::ECONNREFUSED
                | Errno::EHOSTUNREACH
                | Errno::ENETUNREACH
                | Errno::ENOPROTOOPT
                | Errno::EACCES,
            ) => Ok(Attempt::Refused),
            Err(Errno::EINPROGRESS | Errno::EAGAIN | Errno::ETIMEDOUT) => Ok(Attempt::Silence),
            Err(error) => Err(error).with_context(|| format!("cannot connect {from} to {to}")),
        }
    })
}

/// Opens a connection, from whatever address and port the kernel chooses.
///
/// # Errors
///
/// As [`connect_from`].
pub fn connect_to(netns: &Netns, to: SocketAddrV4, patience: Duration) -> Result<Attempt> {
    connect_from(netns, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0), to, patience)
}

/// Ends our side of a connection without a word to the other: no FIN, no RST, as a machine that
/// loses its power.
///
/// # Errors
///
/// Without the right to do that.
pub fn vanish(stream: TcpStream) -> Result<()> {
    setsockopt(&stream, sockopt::TcpRepair, &1).context("a connection can be taken apart")?;
    drop(stream);
    Ok(())
}

/// A transfer that came back whole.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transfer {
    /// Bytes sent, and received back.
    pub bytes: usize,
    /// A sum over what came back, equal for equal bytes.
    pub checksum: u64,
    /// How long it took.
    pub took: Duration,
}

/// Sends bytes to an echo server and compares what comes back.
///
/// # Errors
///
/// When the connection breaks, stalls for ten seconds, or returns other bytes.
pub fn echo(mut stream: TcpStream, bytes: usize) -> Result<Transfer> {
    let start = Instant::now();
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
    let mut sender = stream.try_clone()?;
    let expected = checksum(pattern(0, bytes));
    let (received, sum) = std::thread::scope(|scope| -> Result<(usize, u64)> {
        let sending = scope.spawn(move || -> io::Result<()> {
            let mut at = 0;
            while at < bytes {
                let chunk: Vec<u8> = pattern(at, bytes.min(at + 16_384)).collect();
                sender.write_all(&chunk)?;
                at += chunk.len();
            }
            sender.shutdown(Shutdown::Write)
        });
        let mut buffer = [0; 16_384];
        let (mut received, mut sum) = (0, Sum::default());
        loop {
            match stream.read(&mut buffer).context("the echo broke off")? {
                0 => break,
                length => {
                    received += length;
                    buffer[..length].iter().for_each(|byte| sum.add(*byte));
                }
            }
        }
        match sending.join() {
            Ok(sent) => sent.context("the transfer broke off")?,
            Err(panic) => std::panic::resume_unwind(panic),
        }
        Ok((received, sum.0))
    })?;
    ensure!(received == bytes, "{received} of {bytes} bytes came back");
    ensure!(sum == expected, "other bytes came back than were sent");
    Ok(Transfer { bytes, checksum: sum, took: start.elapsed() })
}

/// The bytes at these positions of a stream that repeats nothing soon.
fn pattern(from: usize, to: usize) -> impl Iterator<Item = u8> {
    (from..to).map(|at| ((at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
}

fn checksum(bytes: impl Iterator<Item = u8>) -> u64 {
    let mut sum = Sum::default();
    bytes.for_each(|byte| sum.add(byte));
    sum.0
}

/// FNV-1a, which depends on the order too.
struct Sum(u64);

impl Default for Sum {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Sum {
    fn add(&mut self, byte: u8) {
        self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
}

/// A conversation over one connection, a numbered message at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Talk {
    /// Messages that came back.
    pub answered: u64,
    /// The longest that one took.
    pub slowest: Duration,
    /// How it broke off, if nobody stopped it.
    pub broke: Option<io::ErrorKind>,
    /// When it broke off.
    pub ended: Option<Instant>,
}

/// Talks over a connection to an echo server until stopped, with `gap` between messages. A message
/// that is not answered within `patience` ends it.
pub fn talk(
    netns: &Netns,
    mut stream: TcpStream,
    gap: Duration,
    patience: Duration,
) -> Background<Talk> {
    netns.background(move |stop| {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        let mut talk = Talk::default();
        while !stop.told() {
            let start = Instant::now();
            let message = talk.answered.to_be_bytes();
            let mut answer = [0; 8];
            let told = stream.write_all(&message).and_then(|()| stream.read_exact(&mut answer));
            if let Err(error) = told {
                talk.broke = Some(error.kind());
                talk.ended = Some(Instant::now());
                break;
            }
            ensure!(answer == message, "message {} came back as another", talk.answered);
            talk.answered += 1;
            talk.slowest = talk.slowest.max(start.elapsed());
            std::thread::sleep(gap);
        }
        Ok(talk)
    })
}

/// A flow of numbered datagrams.
#[derive(Clone, Copy, Debug)]
pub struct UdpLoad {
    /// The port to send from; 0 lets the kernel choose.
    pub from_port: u16,
    /// How many, unless it is stopped before.
    pub packets: u32,
    /// How many in a second.
    pub rate: u32,
    /// How many may be unanswered at once before the sender waits for answers. It keeps a sender
    /// that was kept off its processor from filling a queue of the machine when it catches up.
    pub window: u32,
    /// Bytes in each, at least four.
    pub payload: usize,
    /// How long to wait for answers after the last.
    pub patience: Duration,
}

impl Default for UdpLoad {
    fn default() -> Self {
        Self {
            from_port: 0,
            packets: 10,
            rate: 1_000,
            window: u32::MAX,
            payload: 32,
            patience: Duration::from_millis(300),
        }
    }
}

/// What became of a flow of datagrams.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UdpReport {
    /// Sent.
    pub sent: u32,
    /// Answered, each counted once.
    pub answered: u32,
    /// Answers to what was answered before.
    pub repeated: u32,
    /// Answers behind the answer to a later one.
    pub reordered: u32,
    /// Answers with other bytes than were sent.
    pub wrong: u32,
    /// Sends that the kernel refused, after an ICMP error.
    pub refused: u32,
    /// The numbers that were not answered.
    pub missing: Vec<u32>,
    /// From the first to the last that was sent.
    pub took: Duration,
}

impl UdpReport {
    /// How many were not answered.
    pub fn lost(&self) -> u32 {
        self.sent - self.answered
    }

    /// How many were sent in a second.
    pub fn rate(&self) -> f64 {
        f64::from(self.sent) / self.took.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

/// What a full window waits for an answer before it takes all of them for lost and goes on.
const WINDOW_PATIENCE: Duration = Duration::from_millis(100);

/// Sends datagrams to an echo server and counts what comes back.
///
/// # Errors
///
/// When there is no socket to be had.
pub fn udp(netns: &Netns, to: SocketAddrV4, load: UdpLoad) -> Result<UdpReport> {
    udp_flow(netns, to, load)?.finish()
}

/// The same beside the caller; when it is stopped, it waits for the last answers.
///
/// # Errors
///
/// As [`udp`].
pub fn udp_flow(netns: &Netns, to: SocketAddrV4, load: UdpLoad) -> Result<Background<UdpReport>> {
    ensure!(load.rate > 0 && load.payload >= 4, "a flow has a rate, and numbers in its packets");
    let socket = netns.enter(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, load.from_port))?;
        socket.connect(to)?;
        socket.set_nonblocking(true)?;
        setsockopt(&socket, sockopt::RcvBufForce, &QUEUE)?;
        Ok(socket)
    })?;
    Ok(netns.background(move |stop| {
        let gap = Duration::from_secs(1) / load.rate;
        let start = Instant::now();
        let mut tally = Tally::default();
        let mut buffer = vec![0; load.payload + 1];
        let (mut refused, mut sent, mut written_off) = (0, 0, 0);
        let (mut last, mut heard) = (start, start);
        while sent < load.packets && !stop.told() {
            let before = tally.answered;
            refused += tally.take(&socket, &mut buffer);
            let (due, now) = (start + gap * sent, Instant::now());
            if tally.answered > before {
                heard = now;
            }
            let unanswered = (sent - written_off).saturating_sub(tally.answered);
            if unanswered >= load.window {
                // What is lost stays lost; that there is a window must not end the flow.
                if heard.elapsed() >= WINDOW_PATIENCE {
                    written_off = sent - tally.answered;
                    heard = now;
                }
                std::thread::sleep(Duration::from_micros(50));
            } else if now >= due {
                // Everything that is due goes out, so that the rate holds also where a sleep takes
                // longer than the gap.
                let bytes = datagram(sent, load.payload);
                match socket.send(&bytes) {
                    Ok(_) => sent += 1,
                    // Lost before it left, as a full queue on the way would lose it.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => sent += 1,
                    // An error that an earlier packet met: this one was not sent, so again.
                    Err(_) => refused += 1,
                }
                last = now;
            } else {
                std::thread::sleep((due - now).min(Duration::from_millis(1)));
            }
        }
        let took = last - start;
        while tally.answered < sent && last.elapsed() < load.patience {
            refused += tally.take(&socket, &mut buffer);
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(UdpReport { took, ..tally.report(sent, refused) })
    }))
}

/// How many datagrams in a second come back from flows such as `load`, all of them at once and each
/// as fast as its window lets it. Takes half a second.
///
/// # Errors
///
/// As [`udp`], and when one is lost: with so few under way none may be.
pub fn udp_capacity(flows: &[(&Netns, SocketAddrV4)], load: UdpLoad) -> Result<f64> {
    ensure!(load.window < u32::MAX, "without a window a queue of the machine would be measured");
    let load = UdpLoad { packets: u32::MAX, rate: u32::MAX, ..load };
    let start = |(netns, to): &(&Netns, SocketAddrV4)| udp_flow(netns, *to, load);
    let flows = flows.iter().map(start).collect::<Result<Vec<_>>>()?;
    std::thread::sleep(Duration::from_millis(500));
    let mut capacity = 0.0;
    for flow in flows {
        let report = flow.stop()?;
        ensure!(report.lost() == 0 && report.wrong == 0, "the load itself loses: {report:?}");
        capacity += report.rate();
    }
    Ok(capacity)
}

fn datagram(number: u32, length: usize) -> Vec<u8> {
    let number_first = number.to_be_bytes().into_iter();
    number_first.chain(pattern(number as usize, number as usize + length - 4)).collect()
}

/// Answers, as they come in.
#[derive(Default)]
struct Tally {
    seen: Vec<bool>,
    answered: u32,
    repeated: u32,
    reordered: u32,
    wrong: u32,
}

impl Tally {
    /// Takes in what is there, by way of a buffer that has a byte more than a right answer; says
    /// how often an ICMP error was there instead.
    fn take(&mut self, socket: &UdpSocket, buffer: &mut [u8]) -> u32 {
        let mut refused = 0;
        loop {
            match socket.recv(buffer) {
                Ok(length) => self.count(&buffer[..length], buffer.len() - 1),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return refused,
                Err(_) => refused += 1,
            }
        }
    }

    fn count(&mut self, answer: &[u8], payload: usize) {
        let number = answer.first_chunk().map(|number| u32::from_be_bytes(*number));
        let Some(number) = number.filter(|number| datagram(*number, payload) == answer) else {
            self.wrong += 1;
            return;
        };
        let at = number as usize;
        if at >= self.seen.len() {
            self.seen.resize(at + 1, false);
        } else if self.seen[at] {
            self.repeated += 1;
            return;
        } else {
            self.reordered += 1;
        }
        self.seen[at] = true;
        self.answered += 1;
    }

    fn report(mut self, sent: u32, refused: u32) -> UdpReport {
        self.seen.resize(sent as usize, false);
        UdpReport {
            sent,
            answered: self.answered,
            repeated: self.repeated,
            reordered: self.reordered,
            wrong: self.wrong,
            refused,
            missing: (0..sent).filter(|number| !self.seen[*number as usize]).collect(),
            took: Duration::ZERO,
        }
    }
}

/// Asks a name server; none when it does not answer within a second.
///
/// # Errors
///
/// When there is no socket to be had, or the answer makes no sense.
pub fn lookup(netns: &Netns, server: Ipv4Addr, name: &str) -> Result<Option<Record>> {
    netns.enter(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((server, DNS))?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        let question = dns::question(0x51ce, name);
        socket.send(&question)?;
        let mut buffer = [0; 512];
        let Ok(length) = socket.recv(&mut buffer) else { return Ok(None) };
        let record = dns::record(&buffer[..length], &question);
        Ok(Some(record.with_context(|| format!("{server} does not know `{name}`"))?))
    })
}

/// Asks a server who we are; none when it does not answer within a second.
///
/// # Errors
///
/// As [`lookup`].
pub fn whoami(netns: &Netns, server: Ipv4Addr) -> Result<Option<SocketAddr>> {
    match lookup(netns, server, "whoami.lab")? {
        Some(Record::Text(text)) => Ok(Some(text.parse().context("`whoami.lab` is no address")?)),
        Some(Record::Address(address)) => bail!("`whoami.lab` is {address}"),
        None => Ok(None),
    }
}

/// Fetches a page with curl; none when there is no answer within two seconds.
///
/// # Errors
///
/// When curl cannot be run.
pub fn fetch(netns: &Netns, url: &str) -> Result<Option<String>> {
    let arguments = ["--silent", "--show-error", "--fail", "--max-time", "2", url];
    let output = netns.output("curl", &arguments)?;
    Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// Pings, and says how many of `count` were answered.
///
/// # Errors
///
/// When ping cannot be run, or says something else.
pub fn ping(netns: &Netns, to: Ipv4Addr, count: u32) -> Result<u32> {
    let (count, to) = (count.to_string(), to.to_string());
    let output = netns.output("ping", &["-n", "-c", &count, "-i", "0.1", "-W", "1", &to])?;
    let said = String::from_utf8_lossy(&output.stdout);
    let received = said.split(", ").find_map(|part| part.strip_suffix(" received"));
    received
        .and_then(|count| count.parse().ok())
        .with_context(|| format!("ping said: {said}{}", String::from_utf8_lossy(&output.stderr)))
}

/// Runs iperf3 against a server for so many seconds, and returns bits in a second as the receiver
/// counted them.
///
/// # Errors
///
/// When it does not reach the server; the error has what it said.
pub fn iperf(netns: &Netns, server: Ipv4Addr, seconds: u32, more: &[&str]) -> Result<f64> {
    let (server, port, seconds) = (server.to_string(), IPERF.to_string(), seconds.to_string());
    let mut arguments = vec!["--json", "--connect-timeout", "2000"];
    arguments.extend(["--client", &server, "--port", &port, "--time", &seconds]);
    arguments.extend(more);
    let output = netns.output("iperf3", &arguments)?;
    let report: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("iperf3 gives no report")?;
    if let Some(error) = report["error"].as_str() {
        bail!("iperf3: {error}");
    }
    let end = &report["end"];
    let sum = end.get("sum_received").or_else(|| end.get("sum"));
    sum.and_then(|sum| sum["bits_per_second"].as_f64()).context("iperf3 reports no throughput")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_once_and_by_number() {
        let mut tally = Tally::default();
        for number in [0, 2, 1, 2] {
            tally.count(&datagram(number, 32), 32);
        }
        tally.count(&[0; 31], 32); // another length
        tally.count(&[], 32);
        let report = tally.report(5, 0);
        assert_eq!((report.answered, report.lost()), (3, 2));
        assert_eq!((report.repeated, report.reordered, report.wrong), (1, 1, 2));
        assert_eq!(report.missing, [3, 4]);
    }

    #[test]
    fn the_sum_depends_on_every_byte_and_on_their_order() {
        let right: Vec<u8> = pattern(0, 1_000).collect();
        let sum = |bytes: &[u8]| checksum(bytes.iter().copied());
        assert_eq!(sum(&right), checksum(pattern(0, 1_000)));
        for at in 0..right.len() - 1 {
            let mut wrong = right.clone();
            wrong[at] ^= 1;
            assert_ne!(sum(&wrong), sum(&right), "byte {at}");
            let mut swapped = right.clone();
            swapped.swap(at, at + 1);
            assert_eq!(sum(&swapped) == sum(&right), swapped == right, "swap at {at}");
        }
    }
}
