//! Internet checksums, changed by what changed (RFC 1624).
//!
//! A delta is the one's complement sum of the new words and of the complements of the old
//! ones. Everything is computed on words as they lie in memory: the sum does not depend on
//! byte order (RFC 1071).

use crate::frame::Frame;

/// Folds carries until 16 bits are left.
#[inline(always)]
#[must_use]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    sum as u16
}

/// The change from words that sum to `old` to words that sum to `new`.
#[inline(always)]
#[must_use]
pub const fn delta(old: u32, new: u32) -> u16 {
    fold(new + !fold(old) as u32)
}

/// A checksum field after a change.
#[inline(always)]
#[must_use]
pub const fn update(field: [u8; 2], change: u32) -> [u8; 2] {
    let sum = !u16::from_ne_bytes(field) as u32 + change;
    (!fold(sum)).to_ne_bytes()
}

/// A UDP checksum field after a change: zero means that there is none (RFC 768), and a result
/// of zero is sent as its other form.
#[inline(always)]
#[must_use]
pub const fn update_udp(field: [u8; 2], change: u32) -> [u8; 2] {
    if field[0] == 0 && field[1] == 0 {
        return field;
    }
    let new = update(field, change);
    if new[0] == 0 && new[1] == 0 { [0xff, 0xff] } else { new }
}

/// The change of the IP header's sum when TTL goes down by one.
pub const TTL_DELTA: u32 = delta(word([1, 0]), 0) as u32;

/// Two bytes as a word, which may be added to others.
#[inline(always)]
#[must_use]
pub const fn word(bytes: [u8; 2]) -> u32 {
    u16::from_ne_bytes(bytes) as u32
}

/// The sum of the words that an even number of bytes makes.
#[inline(always)]
#[must_use]
pub const fn sum_of<const N: usize>(bytes: [u8; N]) -> u32 {
    let mut sum = 0;
    let mut i = 0;
    while i < N {
        sum += word([bytes[i], bytes[i + 1]]);
        i += 2;
    }
    sum
}

/// The checksum field for words that sum to `sum`.
#[inline(always)]
#[must_use]
pub const fn finish(sum: u32) -> [u8; 2] {
    (!fold(sum)).to_ne_bytes()
}

/// Bytes that are summed at once.
const STEP: u32 = 32;
/// The most bytes that are summed: the longest frame that is in use. The verifier goes through
/// every step, so this bounds how long it takes.
pub const MOST_SUMMED: u16 = 9_216;

/// The sum of `length` bytes of a frame from `offset` on; nothing if there are fewer, or more
/// than [`MOST_SUMMED`].
#[inline(never)]
pub fn sum<F: Frame>(frame: &F, offset: u32, length: u16) -> Option<u16> {
    if length > MOST_SUMMED {
        return None;
    }
    let end = offset + length as u32;
    let mut at = offset;
    // Wide enough that no carry is lost before the end.
    let mut sum = 0u64;
    let mut steps = 0;
    while steps < MOST_SUMMED as u32 / STEP {
        if at + STEP > end {
            break;
        }
        let bytes = frame.load::<{ STEP as usize }>(at)?;
        let mut i = 0;
        while i < STEP as usize {
            sum += u32::from_ne_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]) as u64;
            i += 4;
        }
        at += STEP;
        steps += 1;
    }
    let mut steps = 0;
    while steps < STEP / 2 {
        if at + 2 > end {
            break;
        }
        sum += u16::from_ne_bytes(frame.load::<2>(at)?) as u64;
        at += 2;
        steps += 1;
    }
    if at < end {
        let [last] = frame.load::<1>(at)?;
        sum += u16::from_ne_bytes([last, 0]) as u64;
    }
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    Some(fold((sum >> 16) as u32 + (sum & 0xffff) as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(words: &[u16]) -> [u8; 2] {
        finish(words.iter().map(|w| *w as u32).sum())
    }

    #[test]
    fn a_change_by_delta_is_what_a_full_computation_gives() {
        let interesting = [0, 1, 0x7fff, 0x8000, 0xfffe, 0xffff, 0x1234, 0xff00];
        for a in interesting {
            for old in interesting {
                for new in interesting {
                    // The sum of a real header is never zero in both forms.
                    let rest = 0x4500;
                    let before = full(&[rest, a, old]);
                    let after = full(&[rest, a, new]);
                    let by_delta = update(before, delta(old as u32, new as u32) as u32);
                    assert_eq!(by_delta, after, "{a:#x} {old:#x} -> {new:#x}");
                }
            }
        }
    }

    #[test]
    fn ttl_goes_down_by_one() {
        for ttl in 1..=255u8 {
            let word = |ttl| u16::from_ne_bytes([ttl, 17]);
            assert_eq!(
                update(full(&[0x4500, word(ttl)]), TTL_DELTA),
                full(&[0x4500, word(ttl - 1)]),
                "{ttl}"
            );
        }
    }

    #[test]
    fn no_udp_checksum_stays_none_and_zero_is_sent_as_ones() {
        assert_eq!(update_udp([0, 0], 0x1234), [0, 0]);
        let field = full(&[0x1111]);
        let to_zero = delta(0x1111, 0xffff);
        assert_eq!(update_udp(field, to_zero as u32), [0xff, 0xff]);
    }
}
