//! The traffic of the benches: which frame belongs to which flow number.
//!
//! The generator in the kernel and the harness in user space must speak of the same flows, so
//! the mapping lives here, without I/O, and is tested on the host. Nothing is drawn at random: a
//! flow is a number, and the order of the numbers is the harness's business.

#![no_std]

#[cfg(test)]
extern crate std;

/// Pods that send: the flows are dealt to the addresses of 100.64.0.0/20 in turn.
pub const SOURCES: u32 = 4_096;

/// Flows that share one destination. Half of the ports that one outside address can lend, so
/// that no path that is compared runs into a full range.
pub const FLOWS_PER_DESTINATION: u32 = 32_768;

/// The address of flow 0's pod: 100.64.0.0.
pub const FIRST_SOURCE: u32 = 0x6440_0000;

/// The address of flow 0's server: 198.18.0.0, from the range that RFC 2544 reserves for benches.
pub const FIRST_DESTINATION: u32 = 0xc612_0000;

/// The lowest source port: a pod does not send from a system port.
pub const FIRST_SOURCE_PORT: u16 = 1_024;

/// The port that every server listens on.
pub const DESTINATION_PORT: u16 = 9_000;

/// Flow numbers below this have distinct tuples and destinations inside 198.18.0.0/15.
pub const FLOWS: u32 = 1 << 28;

/// One generated frame: 60 bytes, 64 on a wire with its FCS, as 16-bit words in network order.
///
/// Words, because the IPv4 header starts at byte 14 and BPF stores are aligned to their size.
pub type Frame = [u16; 30];

/// Length of [`Frame`] in bytes.
pub const FRAME_BYTES: usize = size_of::<Frame>();

const UDP_BYTES: u16 = FRAME_BYTES as u16 - 14 - 20;
const IPV4_BYTES: u16 = FRAME_BYTES as u16 - 14;
const VERSION_AND_LENGTH: u16 = 0x4500;
const DONT_FRAGMENT: u16 = 0x4000;
const TTL_AND_PROTOCOL: u16 = 64 << 8 | 17;

/// The tuple of a flow, in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// The pod's address.
    pub source: u32,
    /// The server's address.
    pub destination: u32,
    /// The pod's port: unlike the port of every other flow to this destination, so that a
    /// translator may keep it.
    pub source_port: u16,
}

impl Flow {
    /// The flow with this number.
    #[inline(always)]
    pub const fn numbered(number: u32) -> Self {
        Self {
            source: FIRST_SOURCE + number % SOURCES,
            destination: FIRST_DESTINATION + number / FLOWS_PER_DESTINATION,
            source_port: FIRST_SOURCE_PORT + (number % FLOWS_PER_DESTINATION) as u16,
        }
    }

    /// A frame of this flow between the two stations, its checksums right.
    ///
    /// `stations` is destination then source as they stand on the wire. `sequence` fills the
    /// payload, so that two frames of a flow differ and so do their UDP checksums.
    #[inline(always)]
    pub const fn frame(self, stations: [u16; 6], sequence: u32) -> Frame {
        let [to0, to1, to2, from0, from1, from2] = stations;
        let source = halves(self.source);
        let destination = halves(self.destination);
        let payload = halves(sequence);
        let addresses =
            source[0] as u32 + source[1] as u32 + destination[0] as u32 + destination[1] as u32;
        let ipv4 = checksum(
            VERSION_AND_LENGTH as u32
                + IPV4_BYTES as u32
                + DONT_FRAGMENT as u32
                + TTL_AND_PROTOCOL as u32
                + addresses,
        );
        let udp = match checksum(
            addresses
                + 17
                + UDP_BYTES as u32 * 2
                + self.source_port as u32
                + DESTINATION_PORT as u32
                + payload[0] as u32
                + payload[1] as u32,
        ) {
            // Zero on the wire would say "no checksum" (RFC 768).
            0 => 0xffff,
            sum => sum,
        };
        [
            to0,
            to1,
            to2,
            from0,
            from1,
            from2,
            0x0800_u16.to_be(),
            VERSION_AND_LENGTH.to_be(),
            IPV4_BYTES.to_be(),
            0,
            DONT_FRAGMENT.to_be(),
            TTL_AND_PROTOCOL.to_be(),
            ipv4.to_be(),
            source[0].to_be(),
            source[1].to_be(),
            destination[0].to_be(),
            destination[1].to_be(),
            self.source_port.to_be(),
            DESTINATION_PORT.to_be(),
            UDP_BYTES.to_be(),
            udp.to_be(),
            payload[0].to_be(),
            payload[1].to_be(),
            0,
            0,
            0,
            0,
            0,
            0,
            0,
        ]
    }
}

#[inline(always)]
const fn halves(value: u32) -> [u16; 2] {
    [(value >> 16) as u16, value as u16]
}

/// The Internet checksum of a sum of 16-bit words.
#[inline(always)]
const fn checksum(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// Where a CPU's generator stands in its share of the flows.
///
/// The harness writes it before a run; the generator moves `next` and `sequence`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Cursor {
    /// The first position of the share.
    pub first: u32,
    /// How many positions the share has; after the last the first comes again.
    pub count: u32,
    /// The position, counted from `first`, that the next frame takes.
    pub next: u32,
    /// Non-zero: the position is an index into the shuffled order. Zero: it is the flow number.
    pub shuffled: u32,
    /// Frames made so far; written into the payload.
    pub sequence: u32,
}

/// What one CPU's sink has received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Arrived {
    /// UDP frames.
    pub packets: u64,
    /// Those of them that still had a source in 100.64.0.0/10.
    pub untranslated: u64,
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::vec::Vec;

    use super::*;

    const STATIONS: [u16; 6] = [1, 2, 3, 4, 5, 6];

    /// The slow twin: one word after the other, end-around carry each time. A block that carries
    /// its own right checksum sums to 0xffff.
    fn sum_of(words: impl IntoIterator<Item = u16>) -> u16 {
        words.into_iter().fold(0, |sum: u16, word| {
            let (sum, carry) = sum.overflowing_add(u16::from_be(word));
            sum + u16::from(carry)
        })
    }

    #[test]
    fn every_frame_has_right_checksums() {
        let borders = [0, 1, 4_095, 4_096, 32_767, 32_768, 999_999, FLOWS - 1];
        let spread = (0..200_000).map(|i: u32| i.wrapping_mul(2_654_435_761) % FLOWS);
        for number in borders.into_iter().chain(spread) {
            for sequence in [0, 1, number, u32::MAX] {
                let frame = Flow::numbered(number).frame(STATIONS, sequence);
                let pseudo_header = [17_u16.to_be(), frame[19]];
                let udp = frame[13..].iter().copied().chain(pseudo_header);
                assert_eq!(sum_of(frame[7..17].iter().copied()), 0xffff, "IPv4 of {number}");
                assert_eq!(sum_of(udp), 0xffff, "UDP of {number}, {sequence}");
                assert_ne!(frame[20], 0, "flow {number}, {sequence} says it has no checksum");
            }
        }
    }

    #[test]
    fn a_million_numbers_are_a_million_flows() {
        let flows: HashSet<_> = (0..1_000_000).map(Flow::numbered).collect();
        assert_eq!(flows.len(), 1_000_000);
    }

    #[test]
    fn no_two_flows_to_a_destination_share_a_source_port() {
        let towards: Vec<_> = (0..3 * FLOWS_PER_DESTINATION)
            .map(Flow::numbered)
            .map(|flow| (flow.destination, flow.source_port))
            .collect();
        let distinct: HashSet<_> = towards.iter().collect();
        assert_eq!(distinct.len(), towards.len());
    }

    #[test]
    fn the_last_flow_stays_in_the_ranges_of_pods_and_servers() {
        let last = Flow::numbered(FLOWS - 1);
        assert!(last.destination <= 0xc613_ffff, "{last:x?} is not in 198.18.0.0/15");
        assert!((FIRST_SOURCE..FIRST_SOURCE + SOURCES).contains(&last.source), "{last:x?}");
        assert!(last.source_port >= FIRST_SOURCE_PORT, "{last:x?}");
    }
}
