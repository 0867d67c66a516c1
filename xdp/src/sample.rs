//! Which packets are copied for `capture`, if not all are.
//!
//! One of every so many, each time at another place among them: of a question and its answer, which
//! alternate, both sides are seen. How many there were follows from the numbers alone, so whoever
//! takes the copies knows how many are missing.

/// Whether the packet of this number is among one in `every`.
#[inline(always)]
pub const fn is_sampled(number: u64, every: u64) -> bool {
    every != 0 && number % every == place(number / every, every)
}

/// How many of the numbers below `number` are.
pub const fn sampled_before(number: u64, every: u64) -> u64 {
    if every == 0 {
        return 0;
    }
    number / every + (number % every > place(number / every, every)) as u64
}

/// Where among its `every` packets the one of a round stands.
#[inline(always)]
const fn place(round: u64, every: u64) -> u64 {
    (round.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % every
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_every_so_many_packets_one_is_taken() {
        for every in [1, 2, 3, 10, 1000] {
            let mut before = 0;
            for number in 0..20 * every {
                assert_eq!(sampled_before(number, every), before, "{number} of {every}");
                before += u64::from(is_sampled(number, every));
                if (number + 1) % every == 0 {
                    assert_eq!(before, (number + 1) / every, "{number} of {every}");
                }
            }
        }
        assert!(!is_sampled(7, 0) && sampled_before(7, 0) == 0, "none is asked for");
        assert_eq!(sampled_before(u64::MAX, 1), u64::MAX);
    }

    #[test]
    fn of_what_alternates_both_sides_are_taken() {
        for every in [2, 4, 10, 64] {
            let odd = (0..1000 * every).filter(|n| n % 2 == 1 && is_sampled(*n, every)).count();
            assert!((300..700).contains(&odd), "{odd} of 1000, one in {every}");
        }
    }
}
