//! `sluice-kernel-probe`: the first and only process of a virtual machine that boots an older
//! kernel.
//!
//! Brings up a gateway of two interfaces by the product's own engine, once on XDP and once on
//! TC, sends a packet through it each way, starts it anew beside what the first left, and takes
//! it out. What it finds goes to the console, a line for each finding; the last line is
//! [`PASSED`] or begins with [`FAILED`].

use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use gateway::config::Config;
use gateway::datapath::filter;
use gateway::datapath::numbers::Numbers;
use gateway::datapath::object::Loaded;
use gateway::engine::{Engine, detach};
use gateway::kept::Kept;
use gateway::net::Follower;
use lab::Frame;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use pnet::datalink::{self, Channel, DataLinkReceiver, DataLinkSender, NetworkInterface};
use pnet::packet::Packet as _;
use pnet::packet::ethernet::{EtherTypes, MutableEthernetPacket};
use pnet::packet::ip::IpNextHeaderProtocols;
use pnet::packet::ipv4::{self, MutableIpv4Packet};
use pnet::packet::udp::{self, MutableUdpPacket, UdpPacket};
use pnet::util::MacAddr;

/// The last line when everything is as it should be; `kernels` waits for it.
const PASSED: &str = "probe: passed";
/// What the last line begins with otherwise.
const FAILED: &str = "probe: failed: ";

const POD: (Ipv4Addr, u16) = (Ipv4Addr::new(100, 64, 0, 7), 40_000);
const SERVER: (Ipv4Addr, u16) = (Ipv4Addr::new(198, 51, 100, 9), 53);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

/// Interfaces of the gateway, each with the far end of its cable.
const NETWORK: &str = "
link set lo up
link add eth0 address 02:00:00:00:00:01 type veth peer name wire address 02:00:00:00:00:02
link add eth1 address 02:00:00:00:00:03 type veth peer name pod address 02:00:00:00:00:04
link set eth0 up
link set eth1 up
link set wire up
link set pod up
address add 203.0.113.1/24 dev eth0
address add 100.64.255.1/16 dev eth1
route add default via 203.0.113.254
neighbour add 203.0.113.254 lladdr 02:00:00:00:00:02 dev eth0
neighbour add 100.64.0.7 lladdr 02:00:00:00:00:04 dev eth1
";
const ETH0: MacAddr = MacAddr(2, 0, 0, 0, 0, 1);
const ETH1: MacAddr = MacAddr(2, 0, 0, 0, 0, 3);

const PINS: &str = "/sys/fs/bpf/sluice";

fn main() {
    let outcome = if std::process::id() == 1 {
        probe()
    } else {
        Err(anyhow::anyhow!("runs as the first process of a virtual machine only"))
    };
    match &outcome {
        Ok(()) => println!("{PASSED}"),
        Err(error) => println!("{FAILED}{error:#}"),
    }
    if std::process::id() == 1 {
        // Returns only if it fails; then the kernel panics, which ends the machine as well.
        let _ = reboot(RebootMode::RB_POWER_OFF);
    }
}

fn probe() -> Result<()> {
    prepare().context("the machine cannot be prepared")?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    println!("probe: kernel {}", release.trim());
    for hook in ["xdp", "tc"] {
        serve(hook, hook).with_context(|| format!("on {hook}"))?;
    }
    // Whoever has links for TC has filters too, and they are the same programs.
    filter::prefer();
    for hook in ["xdp", "tc"] {
        serve(&format!("clsact-{hook}"), hook).with_context(|| format!("on {hook} and clsact"))?;
    }
    Ok(())
}

/// File systems, modules in the order of their names, the network.
fn prepare() -> Result<()> {
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("bpf", "/sys/fs/bpf")] {
        mount(Some(kind), target, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mount {target}"))?;
    }
    let mut modules: Vec<_> = fs::read_dir("/modules")?.flatten().map(|file| file.path()).collect();
    modules.sort();
    for module in modules {
        let file = fs::File::open(&module)?;
        finit_module(file.as_fd(), c"", ModuleInitFlags::empty())
            .with_context(|| format!("load {}", module.display()))?;
    }
    for (setting, value) in [
        ("ipv6/conf/all/disable_ipv6", "1"),
        ("ipv4/ip_forward", "1"),
        ("core/bpf_jit_enable", "1"),
    ] {
        let path = Path::new("/proc/sys/net").join(setting);
        // A kernel without IPv6 needs none of it switched off.
        if path.exists() {
            fs::write(&path, value).with_context(|| format!("set {setting}"))?;
        }
    }
    for line in NETWORK.lines().filter(|line| !line.is_empty()) {
        run("ip", line)?;
    }
    // The far ends stand for other machines: what comes out there must not be routed back in.
    for end in ["wire", "pod"] {
        let path = format!("/proc/sys/net/ipv4/conf/{end}/forwarding");
        fs::write(&path, "0").with_context(|| format!("write {path}"))?;
    }
    // A veth takes redirected frames if the far end polls, which it does for GRO.
    for interface in ["wire", "pod", "eth0", "eth1"] {
        run("ethtool", &format!("-K {interface} gro on"))?;
    }
    Ok(())
}

fn run(program: &str, arguments: &str) -> Result<String> {
    let output = Command::new(format!("/bin/{program}"))
        .args(arguments.split_whitespace())
        .output()
        .with_context(|| format!("start {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {arguments}: {}", said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// One hook, from the first start to the end. What it finds is said under a name of its own.
fn serve(name: &str, hook: &str) -> Result<()> {
    let config = Arc::new(configuration(hook)?);
    let mut wire = Cable::open("wire")?;
    let mut pod = Cable::open("pod")?;

    let begun = Instant::now();
    let engine = start(&config)?;
    println!("probe: {name}: up after {:.1} s", begun.elapsed().as_secs_f64());
    let mut programs = engine.datapath.object().loaded();
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    for Loaded { name: program, info, .. } in &programs {
        let verified = info.verified_instruction_count();
        let verified = verified.context("the kernel does not tell how much it verified")?;
        let kept = info.size_translated().context("the kernel does not tell what it kept")?;
        let jitted = info.size_jitted();
        println!(
            "probe: {name}: program {program}: {verified} instructions verified, {kept} bytes kept, \
             {jitted} bytes of machine code"
        );
    }
    let (source, port) = round_trip(&mut pod, &mut wire).with_context(|| fates(&engine))?;
    ensure!(source == OUTSIDE, "the source is {source}");
    println!("probe: {name}: forwarded as {source}:{port}, and the answer back");
    let filters = filters()?;
    ensure!(filters != [0; 4] || !name.starts_with("clsact"), "links instead of filters");

    // As after a kill: programs, tables and sessions are taken over, and nothing is doubled.
    drop(engine);
    let mut engine = start(&config).context("at the second start")?;
    let again = round_trip(&mut pod, &mut wire)
        .with_context(|| format!("after the second start, {}", fates(&engine)))?;
    ensure!(again == (source, port), "the session goes on as {again:?}");
    ensure!(self::filters()? == filters, "{:?} filters instead of {filters:?}", self::filters()?);
    println!("probe: {name}: taken over by a second start, {filters:?} filters");

    // Somebody takes filters off, where there are any: they are missed and put back.
    let taken = (filters != [0; 4]).then(|| run("tc", "qdisc del dev eth0 clsact")).transpose()?;
    let (missed, restored) = engine.restore();
    restored?;
    ensure!(missed.is_empty() == taken.is_none(), "{missed:?}");
    ensure!(self::filters()? == filters, "{:?} filters instead of {filters:?}", self::filters()?);
    println!("probe: {name}: {} filters that were taken off are back", missed.len());
    drop(engine);

    // The programs go, the last guard stays.
    let gone = detach(&config, false)?;
    ensure!(gone.links == 2 * (if hook == "xdp" { 3 } else { 2 }), "took out {} links", gone.links);
    ensure!(self::filters()? == [0; 4], "filters are left: {:?}", self::filters()?);
    pod.send(ETH1, POD, SERVER)?;
    if let Some(frame) = wire.receive(Duration::from_millis(500))? {
        bail!("detached, and yet something left: {frame:02x?}");
    }
    println!("probe: {name}: taken out, and the guard holds");
    detach(&config, true)?;
    Ok(())
}

/// What became of every frame so far, for whoever misses one.
fn fates(engine: &Engine) -> String {
    match engine.datapath.counters() {
        Ok(counters) => format!("{counters:?}"),
        Err(error) => error.to_string(),
    }
}

/// How many filters there are at ingress and egress of both interfaces.
fn filters() -> Result<[usize; 4]> {
    let mut counts = [0; 4];
    let places = [("eth0", "ingress"), ("eth0", "egress"), ("eth1", "ingress"), ("eth1", "egress")];
    for (count, (interface, side)) in counts.iter_mut().zip(places) {
        // Without the qdisc there is nothing to show, which `tc` calls an error.
        let shown = run("tc", &format!("filter show dev {interface} {side}")).unwrap_or_default();
        *count = shown.lines().filter(|line| line.contains("direct-action")).count();
    }
    Ok(counts)
}

fn start(config: &Arc<Config>) -> Result<Engine> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let network = runtime.block_on(async {
        let (follower, _events) = Follower::start(64).await?;
        anyhow::Ok(follower.state().clone())
    })?;
    let numbers = Numbers::default().with(&config.gateway);
    let kept = Kept { numbers, ..Kept::default() };
    Ok(Engine::start(Arc::clone(config), &network, kept)?)
}

fn configuration(hook: &str) -> Result<Config> {
    let text = format!(
        "gateway:
  name: probe
  domains: [{{ name: prod, number: 1 }}]
  attachments:
    - {{ name: pods, interface: eth1, kind: spoke, domain: prod, sources: [100.64.0.0/16], hook: {hook} }}
    - {{ name: internet, interface: eth0, kind: internet, hook: {hook} }}
  tables: {{ sessions: 1024, endpoints: 1024, prefixes: 1024, identities: 64, rules: 64 }}
  pin_path: {PINS}
documents:
  - {{ kind: SmartGroup, name: pods, spec: {{ selectors: [{{ cidr: 100.64.0.0/16, domain: prod }}] }} }}
  - kind: Rule
    name: pods-to-anywhere
    spec: {{ priority: 1, action: permit, sources: [pods], destinations: [anywhere] }}
  - {{ kind: DefaultAction, name: default, spec: {{ action: deny }} }}
  - kind: SnatPolicy
    name: pods-to-internet
    spec: {{ order: 1, src_group: pods, interface: eth0, snat_ips: [{OUTSIDE}] }}
"
    );
    Config::parse(&text, "probe.yaml").map_err(|errors| {
        anyhow::anyhow!(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
    })
}

/// A datagram of the pod to the server and the server's answer; what the server saw as source.
fn round_trip(pod: &mut Cable, wire: &mut Cable) -> Result<(Ipv4Addr, u16)> {
    pod.send(ETH1, POD, SERVER)?;
    let out = wire.receive(Duration::from_secs(10))?.context("nothing came out")?;
    let (source, destination) = ends(&out)?;
    ensure!(destination == SERVER, "it went to {destination:?}");
    wire.send(ETH0, SERVER, source)?;
    let back = pod.receive(Duration::from_secs(10))?.context("the answer did not come back")?;
    let (from, to) = ends(&back)?;
    ensure!((from, to) == (SERVER, POD), "the answer goes from {from:?} to {to:?}");
    Ok(source)
}

type End = (Ipv4Addr, u16);

/// Source and destination of a faultless datagram.
fn ends(bytes: &[u8]) -> Result<(End, End)> {
    let frame = Frame { bytes: bytes.to_vec(), sent: false, partial: false };
    let faults = frame.faults(&[]);
    ensure!(faults.is_empty(), "{faults:?} in {bytes:02x?}");
    let packet = frame.ipv4().ok().flatten().context("not IPv4")?;
    let protocol = packet.get_next_level_protocol();
    ensure!(protocol == IpNextHeaderProtocols::Udp, "{protocol} in {bytes:02x?}");
    let datagram = UdpPacket::new(packet.payload()).context("not UDP")?;
    Ok((
        (packet.get_source(), datagram.get_source()),
        (packet.get_destination(), datagram.get_destination()),
    ))
}

/// The far end of a cable.
struct Cable {
    own: MacAddr,
    sender: Box<dyn DataLinkSender>,
    receiver: Box<dyn DataLinkReceiver>,
}

impl Cable {
    fn open(name: &str) -> Result<Self> {
        let interface: NetworkInterface = datalink::interfaces()
            .into_iter()
            .find(|interface| interface.name == name)
            .with_context(|| format!("there is no {name}"))?;
        let settings = datalink::Config {
            read_timeout: Some(Duration::from_millis(50)),
            ..Default::default()
        };
        let channel = datalink::channel(&interface, settings)?;
        let Channel::Ethernet(sender, receiver) = channel else { bail!("{name} is no Ethernet") };
        Ok(Self { own: interface.mac.context("a cable has an address")?, sender, receiver })
    }

    fn send(&mut self, to: MacAddr, source: End, destination: End) -> Result<()> {
        let mut bytes = [0u8; 14 + 20 + 8 + 4];
        let mut ethernet = MutableEthernetPacket::new(&mut bytes).context("room for a frame")?;
        ethernet.set_source(self.own);
        ethernet.set_destination(to);
        ethernet.set_ethertype(EtherTypes::Ipv4);
        let mut datagram = [0u8; 12];
        {
            let mut udp = MutableUdpPacket::new(&mut datagram).context("room for a datagram")?;
            udp.set_source(source.1);
            udp.set_destination(destination.1);
            udp.set_length(12);
            udp.set_payload(b"ping");
            udp.set_checksum(udp::ipv4_checksum(&udp.to_immutable(), &source.0, &destination.0));
        }
        let mut packet = MutableIpv4Packet::new(&mut bytes[14..]).context("room for a packet")?;
        packet.set_version(4);
        packet.set_header_length(5);
        packet.set_total_length(32);
        packet.set_ttl(64);
        packet.set_next_level_protocol(IpNextHeaderProtocols::Udp);
        packet.set_source(source.0);
        packet.set_destination(destination.0);
        packet.set_payload(&datagram);
        packet.set_checksum(ipv4::checksum(&packet.to_immutable()));
        self.sender.send_to(&bytes, None).context("the frame cannot be handed over")??;
        Ok(())
    }

    /// The next IPv4 frame from the gateway, if one comes in time.
    fn receive(&mut self, patience: Duration) -> Result<Option<Vec<u8>>> {
        let end = Instant::now() + patience;
        while Instant::now() < end {
            match self.receiver.next() {
                // What this end sent itself is seen as well.
                Ok(frame) if frame[6..12] != self.own.octets() && frame[12..14] == [8, 0] => {
                    return Ok(Some(frame.to_vec()));
                }
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }
}
