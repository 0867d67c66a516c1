//! Numbers as the verifiers of older kernels understand them.
//!
//! The compiler leaves out a check before an array when it knows the answer. The verifier then
//! has to know it too, and before Linux 6.10 it follows neither swapped bytes nor an `or`, a
//! shift or a product of two unknown numbers. So these pass through memory, where the compiler
//! forgets what it knew.

use core::hint::black_box;

/// A port as a number.
#[inline(always)]
pub const fn host_order(port: [u8; 2]) -> u16 {
    black_box(u16::from_be_bytes(port))
}

/// An index into an array of `N`, a power of two; an index that is none wraps around.
#[inline(always)]
pub(crate) const fn wrapped<const N: usize>(index: usize) -> usize {
    const { assert!(N.is_power_of_two()) };
    black_box(index) & (N - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_wraps_at_the_end() {
        for (index, expected) in [(0, 0), (63, 63), (64, 0), (65, 1)] {
            assert_eq!(wrapped::<64>(index), expected, "{index}");
        }
    }
}
