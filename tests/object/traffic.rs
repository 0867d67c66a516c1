//! Frames to send: of every kind that a gateway meets, and of those that it should not. All of
//! them follow from a seed and from what became of the frames before.

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use crate::object::SHORTEST;
use crate::stand::{BLUE, INGRESS, INTERNET, RED, RED_TAG, SLOW, TRANSIT, TRANSIT_TAG};
use crate::twin::Outcome;
use crate::wire::{
    ACK, Build, FIN, RST, SYN, answer_to, echo, ethernet, icmp_error, ip_of, repair, see, tcp, udp,
};

/// Random numbers that a seed repeats (SplitMix64).
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below another.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }

    pub(crate) fn one_in(&mut self, so_many: u64) -> bool {
        self.below(so_many) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.roll() as u8).collect()
    }
}

/// A frame on its way to the gateway.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    /// Where it comes in.
    pub(crate) ifindex: u32,
    pub(crate) bytes: Vec<u8>,
    /// It is what it says: what is forwarded of it can be answered.
    whole: bool,
}

/// A frame that went through.
#[derive(Clone, Debug)]
struct Passed {
    sent: Frame,
    out: Vec<u8>,
    egress: u32,
}

/// How many of the frames that went through are remembered.
const MEMORY: usize = 64;
/// The largest frame that a test run takes is a page without room for headers; this is more
/// than any link of the stand takes.
const LONGEST: u64 = 1_600;

pub(crate) struct Traffic {
    pub(crate) dice: Dice,
    passed: VecDeque<Passed>,
}

impl Traffic {
    pub(crate) const fn new(seed: u64) -> Self {
        Self { dice: Dice::new(seed), passed: VecDeque::new() }
    }

    /// The next frame.
    pub(crate) fn next(&mut self) -> Frame {
        let frame = match self.dice.below(24) {
            0..7 => self.first(),
            7..12 => self.answer(),
            12..15 => self.again(),
            15 | 16 => self.error(),
            17 | 18 => self.damaged(),
            19 => self.cut(),
            20 => self.noise(),
            21 => self.other_ethertype(),
            22 => self.other_protocol(),
            _ => self.strange_source(),
        };
        assert!(frame.bytes.len() >= SHORTEST, "a test run takes no shorter frames");
        frame
    }

    /// What became of a frame.
    pub(crate) fn remember(&mut self, sent: Frame, outcome: &Outcome) {
        if let Some(egress) = outcome.egress
            && matches!(outcome.fate, xdp::pipeline::Fate::Transmit(..))
            && sent.whole
        {
            if self.passed.len() == MEMORY {
                self.passed.pop_front();
            }
            self.passed.push_back(Passed { sent, out: outcome.frame.clone(), egress });
        }
    }

    fn some_passed(&mut self) -> Option<Passed> {
        // Often the newest: conversations are what sessions are for.
        let back = if self.dice.one_in(3) { MEMORY as u64 } else { 4 };
        let count = self.passed.len() as u64;
        let at = count.checked_sub(1 + self.dice.below(back.min(count).max(1)))?;
        self.passed.get(at as usize).cloned()
    }

    /// An address behind an interface, and the tag that it is behind.
    fn behind(&mut self, ifindex: u32) -> (String, Option<u16>) {
        let host = self.dice.below(4);
        match ifindex {
            RED if self.dice.one_in(4) => (format!("100.66.0.{host}"), Some(RED_TAG)),
            RED if self.dice.one_in(6) => (format!("100.64.9.{host}"), None),
            RED if self.dice.one_in(6) => (format!("10.20.0.{host}"), None),
            RED | BLUE => (format!("100.64.0.{host}"), None),
            SLOW => (format!("100.65.0.{host}"), None),
            TRANSIT if self.dice.one_in(4) => (format!("172.16.5.{host}"), Some(TRANSIT_TAG)),
            TRANSIT => (format!("10.1.1.{host}"), None),
            INTERNET => (format!("198.51.100.{host}"), None),
            _ => (format!("192.168.1.{host}"), None),
        }
    }

    fn destination(&mut self) -> String {
        let host = self.dice.below(4);
        match self.dice.below(24) {
            0..8 => format!("198.51.100.{host}"),
            8..11 => format!("10.1.1.{host}"),
            11 => format!("10.77.0.{host}"),
            12 | 13 => format!("172.16.5.{host}"),
            14 => "192.88.98.1".to_owned(),
            15 => self.dice.pick(&["192.0.2.1", "128.0.0.1"]).to_owned(),
            16 => format!("100.64.0.{host}"),
            17 => format!("100.65.0.{host}"),
            18 => format!("100.66.0.{host}"),
            19 => self.dice.pick(&["203.0.113.1", "100.64.255.1", "10.255.4.1"]).to_owned(),
            20 | 21 => self.dice.pick(&["203.0.113.7", "203.0.113.9", "10.255.4.9"]).to_owned(),
            22 => self
                .dice
                .pick(&[
                    "127.0.0.1",
                    "0.0.0.0",
                    "224.0.0.5",
                    "240.0.0.1",
                    "255.255.255.254",
                    "255.255.255.255",
                    "169.254.1.1",
                ])
                .to_owned(),
            _ => Ipv4Addr::from(self.dice.roll() as u32).to_string(),
        }
    }

    fn port(&mut self) -> u64 {
        match self.dice.below(12) {
            0 => self.dice.below(1 << 16),
            1 => 0,
            2..6 => 40_000 + self.dice.below(8),
            6 => 2_000 + self.dice.below(16),
            _ => self.dice.pick(&[22, 23, 53, 80, 123, 443]),
        }
    }

    fn flags(&mut self) -> u8 {
        match self.dice.below(12) {
            0..5 => SYN,
            5..7 => ACK,
            7 => SYN | ACK,
            8 => FIN | ACK,
            9 => RST,
            10 => self.dice.roll() as u8,
            _ => RST | ACK,
        }
    }

    /// A packet of any protocol, with everything about it at random.
    fn build(&mut self, from: &str, to: &str) -> Build {
        let from = format!("{from}:{}", self.port());
        let build = match self.dice.below(5) {
            0 | 1 => {
                let flags = self.flags();
                tcp(&from, &format!("{to}:{}", self.port()), flags)
            }
            2 | 3 => udp(&from, &format!("{to}:{}", self.port())),
            _ => echo(&from, to),
        };
        self.vary(build)
    }

    fn vary(&mut self, mut build: Build) -> Build {
        if self.dice.one_in(8) {
            build = build.ttl(self.dice.pick(&[0, 1, 2, 255]));
        }
        if self.dice.one_in(10) {
            let bytes = 4 * self.dice.below(11);
            // No operation, else whatever begins an option, or is a length.
            let option = |dice: &mut Dice| {
                if dice.one_in(16) { dice.pick(&[0, 2, 3, 7, 131, 137, 148]) } else { 1 }
            };
            let options: Vec<u8> = (0..bytes).map(|_| option(&mut self.dice)).collect();
            build = build.options(&options);
        }
        if self.dice.one_in(6) {
            // Around what the links take as well.
            let length = if self.dice.one_in(3) {
                1_340 + self.dice.below(200)
            } else {
                self.dice.below(300)
            };
            let payload = self.dice.bytes(length as usize);
            build = build.payload(&payload);
        }
        if self.dice.one_in(4) {
            build = build.may_fragment();
        }
        if self.dice.one_in(6) {
            build = build.no_checksum();
        }
        if self.dice.one_in(12) {
            build = build.padded(self.dice.below(40) as usize);
        }
        if self.dice.one_in(12) {
            // Few neighbours; and now and then one more, until no next hop is left.
            let last = if self.dice.one_in(40) { self.dice.roll() as u8 } else { 7 };
            build = build.sender([2, 0x11, 0, 0, 0, last]);
        }
        build
    }

    fn framed(&mut self, mut build: Build, vlan: Option<u16>) -> Vec<u8> {
        if self.dice.one_in(60) {
            build.to_mac = self.dice.pick(&[[0xff; 6], [1, 0, 0x5e, 0, 0, 5]]);
        }
        // Sometimes another tag, or one that only carries a priority.
        let vlan = if self.dice.one_in(25) {
            Some(self.dice.pick(&[0, RED_TAG, TRANSIT_TAG, 4_095, 0xe000]))
        } else {
            vlan
        };
        match vlan {
            Some(vlan) => build.vlan(vlan).frame(),
            None => build.frame(),
        }
    }

    /// The first packet of a flow, or of one that nobody knows.
    fn first(&mut self) -> Frame {
        let ifindex = self.dice.pick(&[RED, RED, RED, BLUE, BLUE, SLOW, TRANSIT, INTERNET]);
        let (from, vlan) = self.behind(ifindex);
        let to = self.destination();
        let build = self.build(&from, &to);
        Frame { ifindex, bytes: self.framed(build, vlan), whole: true }
    }

    /// A source that does not belong where it comes in.
    fn strange_source(&mut self) -> Frame {
        let ifindex = self.dice.pick(&INGRESS);
        let from = self.destination();
        let to = self.destination();
        let build = self.build(&from, &to);
        Frame { ifindex, bytes: self.framed(build, None), whole: true }
    }

    /// What the other side says to a frame that went through.
    fn answer(&mut self) -> Frame {
        let Some(passed) = self.some_passed() else { return self.first() };
        if ip_of(&passed.out)[9] == 1 && see(&passed.out).flags != 8 {
            return self.first();
        }
        let flags = if self.dice.one_in(3) { self.flags() } else { SYN | ACK };
        let build = answer_to(&passed.out, flags);
        let build = self.vary(build);
        Frame { ifindex: passed.egress, bytes: build.frame(), whole: true }
    }

    /// A frame that went through, once more; perhaps with other flags.
    fn again(&mut self) -> Frame {
        let Some(mut passed) = self.some_passed() else { return self.first() };
        let seen = see(&passed.sent.bytes);
        if seen.protocol == 6 {
            let flags = if self.dice.one_in(4) { self.flags() } else { ACK };
            let build = Build {
                from_mac: seen.from_mac,
                to_mac: seen.to_mac,
                vlan: seen.vlan,
                ..tcp(&seen.from, &seen.to, flags)
            };
            passed.sent.bytes = self.vary(build).frame();
        }
        passed.sent
    }

    /// An ICMP error about a frame that went through.
    fn error(&mut self) -> Frame {
        let Some(passed) = self.some_passed() else { return self.first() };
        let seen = see(&passed.out);
        let (from, vlan) = self.behind(passed.egress);
        let mut quoted = ip_of(&passed.out).to_vec();
        if self.dice.one_in(4) {
            let at = self.dice.below(quoted.len() as u64) as usize;
            quoted[at] ^= 1 << self.dice.below(8);
        }
        if self.dice.one_in(3) {
            quoted.truncate(self.dice.below(quoted.len() as u64 + 1) as usize);
        }
        let (kind, code) = match self.dice.below(8) {
            0..4 => (3, 4),
            4..6 => (11, 0),
            6 => (3, self.dice.below(16) as u8),
            _ => (self.dice.roll() as u8, self.dice.below(4) as u8),
        };
        let to = seen.from.split(':').next().expect("an end begins with its address");
        let mut bytes = icmp_error(kind, code, 1_300, &from, to, &quoted);
        if let Some(vlan) = vlan.or(seen.vlan) {
            let [high, low] = vlan.to_be_bytes();
            bytes.splice(12..12, [0x81, 0x00, high, low]);
        }
        Frame { ifindex: passed.egress, bytes, whole: false }
    }

    fn some_whole(&mut self) -> Frame {
        match self.dice.below(4) {
            0 => self.answer(),
            1 => self.again(),
            2 => self.error(),
            _ => self.first(),
        }
    }

    /// One with bits that have changed on the way; perhaps with a header that still sums up.
    fn damaged(&mut self) -> Frame {
        let mut frame = self.some_whole();
        let headers = frame.bytes.len().min(74) as u64;
        for _ in 0..1 + self.dice.below(3) {
            let at = self.dice.below(headers) as usize;
            frame.bytes[at] =
                self.dice.pick(&[0, 0xff, frame.bytes[at] ^ 1, frame.bytes[at] ^ 0x80]);
        }
        if self.dice.one_in(2) && frame.bytes[12..15] == [8, 0, 0x45] && frame.bytes.len() >= 34 {
            repair(&mut frame.bytes[14..]);
        }
        Frame { whole: false, ..frame }
    }

    /// One that ends early, or late.
    fn cut(&mut self) -> Frame {
        let mut frame = self.some_whole();
        if self.dice.one_in(4) {
            let more = self.dice.below(LONGEST.saturating_sub(frame.bytes.len() as u64).max(1));
            let more = self.dice.bytes(more as usize);
            frame.bytes.extend(more);
        } else {
            let length =
                SHORTEST as u64 + self.dice.below((frame.bytes.len() - SHORTEST + 1) as u64);
            frame.bytes.truncate(length as usize);
        }
        Frame { whole: false, ..frame }
    }

    /// Anything, behind an ethertype that is looked into.
    fn noise(&mut self) -> Frame {
        let ifindex = self.dice.pick(&INGRESS);
        let length = SHORTEST as u64 + self.dice.below(120);
        let mut bytes = self.dice.bytes(length as usize);
        if !self.dice.one_in(8) {
            bytes[0] &= 0xfe;
            let kinds = [[8, 0], [8, 0], [8, 0], [0x81, 0], [0x86, 0xdd], [0x88, 0xa8], [8, 6]];
            let kind = self.dice.pick(&kinds);
            bytes[12..14].copy_from_slice(&kind);
        }
        if bytes.len() > 24 && bytes[12..14] == [8, 0] && !self.dice.one_in(4) {
            bytes[14] = 0x45 + self.dice.below(3) as u8;
            let ip = bytes.len() as u16 - 14;
            let length = ip.saturating_sub(self.dice.below(8) as u16);
            bytes[16..18].copy_from_slice(&length.to_be_bytes());
            bytes[20] &= 0x40;
            bytes[21] = 0;
            bytes[23] = self.dice.pick(&[1, 6, 17]);
        }
        Frame { ifindex, bytes, whole: false }
    }

    fn other_ethertype(&mut self) -> Frame {
        let ifindex = self.dice.pick(&INGRESS);
        let mut bytes = vec![2, 0x22, 0, 0, 0, 1, 2, 0x11, 0, 0, 0, 1];
        let kind =
            self.dice.pick(&[[0x86, 0xdd], [0x86, 0xdd], [8, 6], [0x88, 0x47], [0x88, 0xcc]]);
        bytes.extend(kind);
        // IPv6 to the machine, to its link, to many, and through it.
        bytes.extend([0x60, 0, 0, 0, 0, 8, 58, 255]);
        bytes.extend([0x20; 16]);
        let to = self.dice.pick(&[[0x20, 0x20], [0xfe, 0x80], [0xfe, 0xc0], [0xff, 2], [0x26, 7]]);
        bytes.extend(to);
        bytes.extend([0x20; 14]);
        bytes.extend([135, 0, 0, 0, 0, 0, 0, 0]);
        if self.dice.one_in(4) {
            bytes.truncate(SHORTEST + self.dice.below((bytes.len() - SHORTEST) as u64) as usize);
        }
        if self.dice.one_in(3) {
            bytes.splice(12..12, [0x81, 0, 0, self.dice.pick(&[0, RED_TAG as u8])]);
        }
        Frame { ifindex, bytes, whole: false }
    }

    /// A fragment, or a protocol that is not translated.
    fn other_protocol(&mut self) -> Frame {
        let ifindex = self.dice.pick(&[RED, BLUE, TRANSIT, INTERNET]);
        let (from, vlan) = self.behind(ifindex);
        let to = self.destination();
        let mut ip = self.build(&from, &to).ip();
        match self.dice.below(3) {
            0 => ip[9] = self.dice.pick(&[0, 2, 41, 47, 50, 58, 132, 255]),
            1 => ip[6] = 0x20,
            _ => ip[7] = 1 + self.dice.below(200) as u8,
        }
        repair(&mut ip);
        let bytes = ethernet([2, 0x11, 0, 0, 0, 1], [2, 0x22, 0, 0, 0, 1], vlan, &ip);
        Frame { ifindex, bytes, whole: false }
    }
}
