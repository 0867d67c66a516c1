//! Two real TCP stacks talk through the gateway over a line that loses, repeats and reorders.
//!
//! Time is simulated, every choice comes from a seed: a failure names the seed that repeats it.
#![allow(clippy::wildcard_enum_match_arm, reason = "anything else fails the test")]

mod scene;

use scene::*;
use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken},
    socket::tcp::{Socket, SocketBuffer, State},
    time::{Duration, Instant},
    wire::{HardwareAddress, IpAddress, IpCidr, Ipv4Address},
};
use std::collections::VecDeque;
use xdp::pipeline::Fate;

/// A machine: what it has received and not read, what it has sent and nobody carried.
#[derive(Default)]
struct Wire {
    inbox: VecDeque<Vec<u8>>,
    outbox: Vec<Vec<u8>>,
}

struct Received(Vec<u8>);
struct Sending<'a>(&'a mut Vec<Vec<u8>>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}
impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut packet = vec![0; length];
        let result = f(&mut packet);
        self.0.push(packet);
        result
    }
}
impl Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;
    fn receive(&mut self, _: Instant) -> Option<(Received, Sending<'_>)> {
        let packet = self.inbox.pop_front()?;
        Some((Received(packet), Sending(&mut self.outbox)))
    }
    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        Some(Sending(&mut self.outbox))
    }
    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 576;
        capabilities
    }
}

struct Machine {
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    ifindex: u32,
    sent: usize,
    received: Vec<u8>,
}

impl Machine {
    fn new(address: [u8; 4], ifindex: u32, seed: u64) -> Self {
        let mut wire = Wire::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut wire, Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(IpAddress::Ipv4(address.into()), 0)).unwrap();
        });
        let buffer = || SocketBuffer::new(vec![0; 4096]);
        let mut sockets = SocketSet::new(Vec::new());
        let handle = sockets.add(Socket::new(buffer(), buffer()));
        Self { wire, interface, sockets, handle, ifindex, sent: 0, received: Vec::new() }
    }
    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }
    /// Sends what is left of `message`, reads what is there.
    fn work(&mut self, message: &[u8], now: Instant) {
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
        let (sent, handle) = (self.sent, self.handle);
        let socket = self.sockets.get_mut::<Socket<'_>>(handle);
        if socket.may_send() {
            self.sent += socket.send_slice(&message[sent..]).unwrap();
            if self.sent == message.len() {
                socket.close();
            }
        }
        while socket.can_recv() {
            let received = &mut self.received;
            socket
                .recv(|bytes| {
                    received.extend_from_slice(bytes);
                    (bytes.len(), ())
                })
                .unwrap();
        }
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
    }
}

fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

/// A frame on its way: when it arrives, whether at the gateway, at which interface of whom.
type Flying = (Instant, bool, u32, Vec<u8>);

/// A line that loses, repeats and reorders.
struct Line {
    state: u64,
    /// Of a hundred frames so many are lost.
    loss: u64,
    flying: Vec<Flying>,
}

impl Line {
    fn take(&mut self, now: Instant, to_gateway: bool, ifindex: u32, frame: &[u8]) {
        let copies = match random(&mut self.state) % 100 {
            n if n < self.loss => 0,
            n if n < self.loss + 5 => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let at = now + Duration::from_millis(1 + random(&mut self.state) % 40);
            self.flying.push((at, to_gateway, ifindex, frame.to_vec()));
        }
    }

    fn arrived(&mut self, now: Instant) -> Vec<Flying> {
        let (here, away) = self.flying.drain(..).partition(|(at, ..)| *at <= now);
        self.flying = away;
        here
    }
}

/// Bytes that tell where they belong.
fn message(length: usize, salt: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 31 + n / 251 + salt) as u8).collect()
}

fn talk(seed: u64, loss: u64) {
    // Before the gateway and behind it.
    let mut line = Line { state: seed, loss, flying: Vec::new() };
    let mut lab = Lab::with_rules("permit red -> servers tcp/443");
    // Another pod holds the port already, so that the translation changes it.
    if seed.is_multiple_of(2) {
        lab.forward(2, &tcp("100.64.0.99:40000", "198.51.100.9:443", SYN).frame());
    }
    let mut pod = Machine::new([100, 64, 0, 7], 2, seed);
    let mut server = Machine::new([198, 51, 100, 9], 5, seed + 1);
    server.socket().listen(443).unwrap();
    let remote = (IpAddress::Ipv4(Ipv4Address::new(198, 51, 100, 9)), 443);
    let handle = pod.handle;
    pod.sockets
        .get_mut::<Socket<'_>>(handle)
        .connect(pod.interface.context(), remote, 40_000)
        .unwrap();

    let (question, answer) = (message(20_000, 1), message(30_000, 2));
    let start = lab.now;
    let mut now = Instant::ZERO;
    for _ in 0..200_000 {
        lab.now = start.wrapping_add((now.total_millis() / 62) as u32);
        pod.work(&question, now);
        server.work(&answer, now);
        for machine in [&mut pod, &mut server] {
            for packet in machine.wire.outbox.drain(..) {
                let from = [2, 9, 9, 9, 9, machine.ifindex as u8];
                let frame = ethernet(from, mac_of(machine.ifindex), None, &packet);
                line.take(now, true, machine.ifindex, &frame);
            }
        }
        for (_, to_gateway, ifindex, frame) in line.arrived(now) {
            if to_gateway {
                let output = lab.send(ifindex, &frame);
                let Fate::Transmit(..) = output.fate else {
                    panic!("seed {seed}: {:?} for {}", output.fate, tell(&frame));
                };
                assert_sound(&output.frame.bytes);
                line.take(now, false, output.egress.unwrap(), &output.frame.bytes);
            } else {
                let machine = if ifindex == 2 { &mut pod } else { &mut server };
                machine.wire.inbox.push_back(ip_of(&frame).to_vec());
            }
        }
        let over = |machine: &mut Machine| {
            matches!(machine.socket().state(), State::Closed | State::TimeWait)
        };
        if over(&mut pod) && over(&mut server) && pod.received.len() == answer.len() {
            break;
        }
        now += Duration::from_millis(5);
    }
    assert!(server.received == question, "seed {seed}: {} bytes", server.received.len());
    assert!(pod.received == answer, "seed {seed}: {} bytes", pod.received.len());
    assert_eq!(lab.sessions(), 1 + usize::from(seed.is_multiple_of(2)));
    lab.assert_books();
}

#[test]
fn bytes_arrive_intact_over_a_good_line() {
    talk(1, 0);
    talk(2, 0);
}

#[test]
fn bytes_arrive_intact_over_a_bad_line() {
    for seed in 10..40 {
        talk(seed, 2 + seed % 14);
    }
}
