//! Which sessions are worth a word in between.
//!
//! A session that goes on is told of when a TCP flag appeared that was not told yet (within
//! [`FLAG_EVERY`]), and otherwise once in [`EVERY`] if packets came. What was told last is kept
//! in a plain vector by record number: no hashing, no removal, and sessions that were never told
//! of cost no memory, because the pages of a vector of zeros are only taken when written.

use std::time::Duration;

use xdp_abi::policy::{LOG_END, LOG_START};

use super::session::SessionView;

/// How long an unknown flag may wait.
pub const FLAG_EVERY: Duration = Duration::from_secs(5);
/// How often a session with traffic is told of.
pub const EVERY: Duration = Duration::from_secs(60);

/// What was told last of each session.
#[derive(Debug)]
pub struct Updates {
    told: Vec<Told>,
    /// When this began, nanoseconds of the monotonic clock.
    begun: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Told {
    packets: u64,
    /// When; zero: nothing was told of this record.
    at: u64,
    incarnation: u32,
    flags: [u8; 2],
}

impl Updates {
    /// For a table with room for so many sessions; `now` in nanoseconds of the monotonic clock.
    #[must_use]
    pub fn new(room: u32, now: u64) -> Self {
        Self { told: vec![Told::default(); room as usize], begun: now }
    }

    /// Whether to tell of a session now; if so, it counts as told.
    ///
    /// Only sessions whose rule logs both ends are: whoever wants only one of them wants little.
    pub fn due(&mut self, session: &SessionView, now: u64) -> bool {
        const BOTH: u8 = LOG_START | LOG_END;
        if session.log & BOTH != BOTH || !session.lives() {
            return false;
        }
        let told = &session.told;
        let packets = told.packets[0] + told.packets[1];
        let Some(last) = self.told.get_mut(session.record() as usize) else { return false };
        if last.at == 0 || last.incarnation != session.incarnation() {
            let mut first = Told {
                packets: 1,
                at: told.began.max(1),
                incarnation: session.incarnation(),
                flags: [SYN, 0],
            };
            if told.began < self.begun {
                // An earlier daemon told of it, who knows when: wait, and not all of them the
                // same time.
                let spread = u64::from(session.record()) % EVERY.as_secs() * 1_000_000_000;
                let at = now.saturating_sub(spread).max(1);
                first = Told { packets, at, flags: told.tcp_flags, ..first };
            }
            *last = first;
        }
        let age = Duration::from_nanos(now.saturating_sub(last.at));
        let fresh = told.tcp_flags[0] & !last.flags[0] | told.tcp_flags[1] & !last.flags[1];
        let due = fresh != 0 || age >= EVERY && packets != last.packets;
        if due {
            last.packets = packets;
            last.at = now.max(1);
            last.flags = [last.flags[0] | told.tcp_flags[0], last.flags[1] | told.tcp_flags[1]];
        }
        due
    }
}

/// The flag that the record of the beginning told.
const SYN: u8 = xdp::tcp::SYN;

#[cfg(test)]
mod tests {
    use super::*;
    use xdp_abi::event::Event4;
    use xdp_abi::session::Class;

    const S: u64 = 1_000_000_000;

    fn session(number: u32, incarnation: u32, began: u64) -> SessionView {
        let told = Event4 {
            session: u64::from(incarnation) << 32 | u64::from(number),
            began,
            tcp_flags: [SYN, 0],
            packets: [1, 0],
            ..Event4::default()
        };
        SessionView {
            told,
            class: Class::TcpOpening,
            log: LOG_START | LOG_END,
            expires_in: 9,
            lease: None,
        }
    }

    #[test]
    fn a_new_flag_is_told_at_once_and_traffic_once_a_minute() {
        let mut updates = Updates::new(4, 100 * S);
        let mut s = session(1, 7, 200 * S);
        for (now, flags, packets, expected, why) in [
            (201, [SYN, 0], [1, 0], false, "the beginning was told"),
            (205, [0x12, 0x12], [2, 1], true, "answered"),
            (210, [0x12, 0x12], [9, 9], false, "only traffic"),
            (215, [0x1a, 0x12], [10, 9], true, "a push"),
            (274, [0x1a, 0x12], [11, 9], false, "59 s after the last word"),
            (275, [0x1a, 0x12], [11, 9], true, "60 s"),
            (400, [0x1a, 0x12], [11, 9], false, "no packet since"),
            (401, [0x1a, 0x12], [11, 10], true, "one packet"),
            (402, [0x1b, 0x12], [12, 10], true, "a fin"),
        ] {
            (s.told.tcp_flags, s.told.packets) = (flags, packets);
            assert_eq!(updates.due(&s, now * S), expected, "{now}: {why}");
        }
    }

    #[test]
    fn another_session_in_the_same_place_begins_anew() {
        let mut updates = Updates::new(4, 0);
        let mut old = session(1, 7, 10 * S);
        old.told.tcp_flags = [0x12, 0x12];
        assert!(updates.due(&old, 11 * S));
        assert!(!updates.due(&old, 12 * S));
        let mut new = session(1, 8, 13 * S);
        new.told.tcp_flags = [0x12, 0x12];
        assert!(updates.due(&new, 14 * S));
    }

    #[test]
    fn sessions_of_an_earlier_daemon_come_one_after_the_other() {
        let (mut updates, begun) = (Updates::new(120, 1_000 * S), 1_000 * S);
        let mut sessions: Vec<_> = (0..120).map(|n| session(n, 1, 5 * S)).collect();
        assert!(sessions.iter().all(|s| !updates.due(s, begun)), "nothing is told twice");
        let mut per_second = Vec::new();
        for second in 1..=60 {
            for s in &mut sessions {
                s.told.packets[0] += 1;
            }
            let due = sessions.iter().filter(|s| updates.due(s, begun + second * S)).count();
            per_second.push(due);
        }
        assert_eq!(per_second, [2; 60]);
    }

    #[test]
    fn only_what_is_logged_from_end_to_end_is_told_in_between() {
        for (log, expected) in
            [(0, false), (LOG_START, false), (LOG_END, false), (LOG_START | LOG_END, true)]
        {
            let mut updates = Updates::new(4, 0);
            let mut s = session(1, 1, S);
            s.log = log;
            s.told.tcp_flags = [0x12, 0x12];
            assert_eq!(updates.due(&s, 2 * S), expected, "{log}");
        }
        let mut updates = Updates::new(4, 0);
        let mut resting = session(1, 1, S);
        resting.class = Class::Resting;
        resting.told.tcp_flags = [0x1b, 0x1b];
        assert!(!updates.due(&resting, 2 * S));
        let beyond = session(4, 1, S);
        assert!(!updates.due(&beyond, 200 * S), "a number that the table does not have");
    }
}
