//! A step that is done again and again.
//!
//! The verifier follows a loop as often as it goes around, with all that a step does, behind
//! every way that leads to it. So where steps are many or long, the eBPF object has the kernel
//! call them (`bpf_loop`), and the verifier looks at one. A call costs more than a turn of a
//! loop; the established path has no such steps.

/// How steps are repeated.
pub trait Repeat {
    /// Does `step` until it says that it was the last one, at most `times` times.
    #[inline(always)]
    fn repeat(times: u32, mut step: impl FnMut() -> bool) {
        let mut turn = 0;
        while turn < times && !step() {
            turn += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Plainly;
    impl Repeat for Plainly {}

    #[test]
    fn a_step_is_done_until_it_is_the_last_or_often_enough() {
        for (times, last, expected) in [(0, 1, 0), (3, 1, 1), (3, 3, 3), (3, 4, 3)] {
            let mut done = 0;
            Plainly::repeat(times, || {
                done += 1;
                done == last
            });
            assert_eq!(done, expected, "{times} times, the last is {last}");
        }
    }
}
