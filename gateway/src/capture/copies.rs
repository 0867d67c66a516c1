//! The copies of one packet, which the datapath hands over one by one.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use xdp_abi::event::{Captured, STAGE_BEFORE};

/// The copies of one packet.
#[derive(Clone, Debug)]
pub(super) struct Copies {
    /// As it came in; there was no room for it if it is missing.
    pub(super) before: Option<Captured>,
    pub(super) after: Captured,
}

/// Copies of packets whose fate is not known yet, by number.
#[derive(Debug, Default)]
pub(super) struct Undecided(BTreeMap<u64, Captured>);

/// Copies that wait for their packet's fate; the two of a packet come right after each other,
/// but for other processors.
const UNDECIDED: usize = 256;

impl Undecided {
    /// Takes a copy. The one before translation waits for the one after, which knows what became of
    /// the packet.
    pub(super) fn take(&mut self, copy: &Captured) -> Option<Copies> {
        if copy.stage == STAGE_BEFORE {
            self.0.insert(copy.number, *copy);
            if self.0.len() > UNDECIDED {
                self.0.pop_first();
            }
            return None;
        }
        let mut before = self.0.remove(&copy.number);
        if let Some(before) = &mut before {
            before.verdict = copy.verdict;
            before.reason = copy.reason;
            before.rule = copy.rule;
            before.session = copy.session;
        }
        Some(Copies { before, after: *copy })
    }
}

/// Source and destination of a copy, if it is of IPv4.
pub(super) fn addresses(copy: &Captured) -> Option<[Ipv4Addr; 2]> {
    let length = usize::try_from(copy.captured).ok()?;
    let bytes = copy.bytes.get(..length)?;
    let packet = match bytes.get(12..14)? {
        [0x08, 0x00] => bytes.get(14..)?,
        // Behind one VLAN tag; with two it is not looked into.
        [0x81, 0x00] | [0x88, 0xa8] => bytes.get(16..)?.strip_prefix(&[0x08, 0x00])?,
        _ => return None,
    };
    let address =
        |at: usize| packet.get(at..)?.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets));
    Some([address(12)?, address(16)?])
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use xdp_abi::event::{CAPTURE, CAPTURE_BYTES, STAGE_AFTER, VERDICT_FORWARDED};

    pub(in crate::capture) fn copy(number: u64, stage: u8, from: [u8; 4], to: [u8; 4]) -> Captured {
        let mut bytes = [0; CAPTURE_BYTES];
        bytes[12..14].copy_from_slice(&[0x08, 0x00]);
        bytes[26..30].copy_from_slice(&from);
        bytes[30..34].copy_from_slice(&to);
        Captured {
            kind: CAPTURE,
            stage,
            verdict: if stage == STAGE_AFTER { VERDICT_FORWARDED } else { 0 },
            reason: 0,
            length: 60,
            number,
            session: 0,
            time: 0,
            ifindex: 1,
            rule: if stage == STAGE_AFTER { 5 } else { 0 },
            captured: 60,
            bytes,
        }
    }

    pub(in crate::capture) const POD: [u8; 4] = [100, 64, 1, 10];
    pub(in crate::capture) const OUTSIDE: [u8; 4] = [203, 0, 113, 1];
    pub(in crate::capture) const SERVER: [u8; 4] = [198, 51, 100, 9];

    #[test]
    fn a_tag_is_skipped_and_what_is_no_ipv4_has_no_addresses() {
        let mut tagged = copy(1, STAGE_BEFORE, POD, SERVER);
        tagged.bytes.copy_within(12..60, 16);
        tagged.bytes[12..16].copy_from_slice(&[0x81, 0x00, 0x00, 0x07]);
        assert_eq!(addresses(&tagged), Some([POD.into(), SERVER.into()]));
        let mut other = copy(1, STAGE_BEFORE, POD, SERVER);
        other.bytes[12..14].copy_from_slice(&[0x08, 0x06]);
        assert_eq!(addresses(&other), None);
        for (captured, expected) in [(34, true), (33, false), (13, false), (0, false)] {
            let short = Captured { captured, ..copy(1, STAGE_BEFORE, POD, SERVER) };
            assert_eq!(addresses(&short).is_some(), expected, "{captured} bytes");
        }
    }

    #[test]
    fn copies_of_a_packet_stay_together_and_know_its_fate() {
        let mut undecided = Undecided::default();
        assert!(undecided.take(&copy(1, STAGE_BEFORE, POD, SERVER)).is_none());
        assert!(undecided.take(&copy(2, STAGE_BEFORE, POD, SERVER)).is_none());
        for number in [2, 1] {
            let packet = undecided.take(&copy(number, STAGE_AFTER, OUTSIDE, SERVER)).unwrap();
            let before = packet.before.unwrap();
            assert_eq!(
                (before.number, before.rule, before.verdict),
                (number, 5, VERDICT_FORWARDED)
            );
        }
        // The first copy found no room: the packet is shown by the second.
        assert!(undecided.take(&copy(3, STAGE_AFTER, OUTSIDE, SERVER)).unwrap().before.is_none());
        for number in 0..2 * UNDECIDED as u64 {
            undecided.take(&copy(number, STAGE_BEFORE, POD, SERVER));
        }
        assert_eq!(undecided.0.len(), UNDECIDED, "what waits for nothing is forgotten");
    }
}
