//! What a few noisy rounds say: the median, and how far it can be trusted.

/// Resamples of one bootstrap; more moves the bounds by less than their own noise.
const RESAMPLES: usize = 2_000;

/// A median with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Estimate {
    pub(crate) value: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

/// The median of the rounds with the percentile bootstrap of it. The median, because a
/// neighbour on the machine disturbs some rounds a lot and most not at all.
///
/// # Panics
///
/// Without a single round.
pub(crate) fn estimate(rounds: &[f64]) -> Estimate {
    assert!(!rounds.is_empty(), "an estimate needs a round");
    let mut random = Random::new(rounds.len() as u64);
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .map(|_| median((0..rounds.len()).map(|_| rounds[random.below(rounds.len())]).collect()))
        .collect();
    medians.sort_by(f64::total_cmp);
    let at = |share: f64| medians[(share * (RESAMPLES - 1) as f64).round() as usize];
    Estimate { value: median(rounds.to_vec()), low: at(0.025), high: at(0.975) }
}

/// A quantile of figures in order, with its 95 % interval: of how many figures lie below it the
/// binomial says how far that may be off (Conover, Practical Nonparametric Statistics, 3.2).
///
/// # Panics
///
/// Without a single figure.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> Estimate {
    let last = sorted.len().checked_sub(1).expect("a quantile needs a figure");
    let count = sorted.len() as f64;
    let off = 1.96 * (count * share * (1.0 - share)).sqrt();
    let at = |rank: f64| sorted[(rank.max(0.0) as usize).min(last)];
    let rank = count * share;
    Estimate { value: at(rank), low: at((rank - off).floor()), high: at((rank + off).ceil()) }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

/// The numbers from 0 to `count`, shuffled, the same way each time.
pub(crate) fn shuffled(count: u32) -> Vec<u32> {
    let mut numbers: Vec<u32> = (0..count).collect();
    let mut random = Random::new(u64::from(count));
    for last in (1..numbers.len()).rev() {
        numbers.swap(last, random.below(last + 1));
    }
    numbers
}

/// SplitMix64: repeatable, and no more is asked of it.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^= word >> 31;
        ((u128::from(word) * bound as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_that_agree_leave_no_spread() {
        let estimate = estimate(&[2.5; 20]);
        assert_eq!(estimate, Estimate { value: 2.5, low: 2.5, high: 2.5 });
    }

    #[test]
    fn a_quantile_lies_between_those_that_it_may_be() {
        let figures: Vec<f64> = (0..1_000).map(f64::from).collect();
        let Estimate { value, low, high } = quantile(&figures, 0.99);
        assert_eq!((value, low, high), (990.0, 983.0, 997.0));
        assert_eq!(quantile(&[4.0], 0.99), Estimate { value: 4.0, low: 4.0, high: 4.0 });
    }

    #[test]
    fn one_disturbed_round_does_not_move_the_estimate() {
        let mut rounds = vec![1.0; 20];
        rounds[7] = 50.0;
        assert_eq!(estimate(&rounds).value, 1.0);
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        for (rounds, expected) in
            [(vec![3.0], 3.0), (vec![1.0, 3.0], 2.0), (vec![9.0, 1.0, 3.0], 3.0)]
        {
            assert_eq!(median(rounds.clone()), expected, "{rounds:?}");
        }
    }

    /// The interval keeps its promise: over many samples of a known median it holds the median
    /// about 95 times in a hundred.
    #[test]
    fn the_interval_holds_the_true_median_as_often_as_it_says() {
        let mut random = Random::new(1);
        let held = (0..400)
            .filter(|_| {
                let rounds: Vec<f64> = (0..20).map(|_| random.below(1_000_001) as f64).collect();
                let Estimate { low, high, .. } = estimate(&rounds);
                (low..=high).contains(&500_000.0)
            })
            .count();
        assert!((364..=396).contains(&held), "{held} of 400");
    }

    #[test]
    fn a_shuffle_keeps_every_number_and_moves_most() {
        let order = shuffled(10_000);
        let in_place = (0..).zip(&order).filter(|(position, number)| position == *number).count();
        assert!(in_place < 20, "{in_place} of 10,000 did not move");
        let mut sorted = order;
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..10_000));
    }
}
