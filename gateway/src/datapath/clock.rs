//! The datapath's clock: the kernel's jiffies, because reading them costs nothing.
//!
//! A tick is a power of two of jiffies, about a sixteenth of a second.

use std::time::Duration;

/// How the datapath counts time, and how that relates to the monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    hertz: u64,
    shift: u32,
    /// A jiffy count, and the monotonic clock at the same time in nanoseconds.
    jiffies: u64,
    nanoseconds: u64,
}

/// The rates that kernels are built with.
const RATES: [u64; 6] = [100, 250, 300, 512, 1000, 1024];

impl Clock {
    /// From two readings of jiffies and nanoseconds. The error is a rate that no kernel has.
    pub fn measured(first: (u64, u64), second: (u64, u64)) -> Result<Self, u64> {
        let jiffies = second.0.saturating_sub(first.0);
        let nanoseconds = second.1.saturating_sub(first.1).max(1);
        let rate = u64::try_from(u128::from(jiffies) * 1_000_000_000 / u128::from(nanoseconds))
            .unwrap_or(u64::MAX);
        let nearest = RATES.into_iter().min_by_key(|known| known.abs_diff(rate)).unwrap_or(250);
        if nearest.abs_diff(rate) * 5 > nearest {
            return Err(rate);
        }
        Ok(Self {
            hertz: nearest,
            shift: (nearest / 16).next_power_of_two().ilog2(),
            jiffies: second.0,
            nanoseconds: second.1,
        })
    }

    /// How many bits a jiffy count is shifted to make a tick.
    pub const fn shift(self) -> u32 {
        self.shift
    }

    /// How long a tick is.
    pub const fn tick_length(self) -> Duration {
        Duration::from_nanos((1_000_000_000 << self.shift) / self.hertz)
    }

    /// The least number of ticks that lasts `time`: a timer never runs short.
    pub fn ticks(self, time: Duration) -> u32 {
        let length = self.tick_length().as_nanos();
        // One more, because the tick that a packet came in has begun already.
        let ticks = time.as_nanos().div_ceil(length) + u128::from(!time.is_zero());
        u32::try_from(ticks).unwrap_or(u32::MAX / 4)
    }

    /// The tick at a time of the monotonic clock.
    pub const fn at(self, nanoseconds: u64) -> u32 {
        let since = nanoseconds.saturating_sub(self.nanoseconds);
        let jiffies = (since as u128 * self.hertz as u128 / 1_000_000_000) as u64;
        ((self.jiffies + jiffies) >> self.shift) as u32
    }

    /// The tick now.
    pub fn now(self) -> u32 {
        self.at(monotonic())
    }
}

/// The monotonic clock, as the kernel's `ktime` shows it to the datapath.
pub fn monotonic() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is valid for the call.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    u64::try_from(time.tv_sec).unwrap_or_default() * 1_000_000_000
        + u64::try_from(time.tv_nsec).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_of_the_kernel_is_recognised_from_two_readings() {
        for (jiffies, rate, shift) in
            [(12, 100, 3), (30, 250, 4), (31, 250, 4), (120, 1000, 6), (119, 1000, 6)]
        {
            let clock = Clock::measured((5_000, 1), (5_000 + jiffies, 120_000_001)).unwrap();
            assert_eq!((clock.hertz, clock.shift), (rate, shift), "{jiffies} jiffies in 120 ms");
        }
        assert!(Clock::measured((0, 0), (5, 120_000_000)).is_err());
    }

    #[test]
    fn a_timer_never_runs_short() {
        let clock = Clock::measured((0, 0), (30, 120_000_000)).unwrap();
        for seconds in [1, 60, 240, 300, 7440] {
            let wanted = Duration::from_secs(seconds);
            // A packet at the end of its tick, looked at at the beginning of a tick.
            let least = clock.tick_length() * (clock.ticks(wanted) - 1);
            assert!(least >= wanted, "{seconds} s");
        }
        assert_eq!(clock.ticks(Duration::ZERO), 0);
    }
}
