//! TCP as far as a translator has to follow it: RFC 7857 section 2 on RFC 6146 section 3.5.2.
//!
//! No sequence numbers are kept. What a forged FIN or RST can do is bounded instead: the
//! session stays for the transitory time, and traffic revives it (RFC 7857 section 2.2).

use xdp_abi::session::Class;

/// FIN.
pub const FIN: u8 = 0x01;
/// SYN.
pub const SYN: u8 = 0x02;
/// RST.
pub const RST: u8 = 0x04;
/// ACK.
pub const ACK: u8 = 0x10;

const SYN_FORWARD: u8 = 1;
const SYN_REPLY: u8 = 2;
const FIN_FORWARD: u8 = 4;
const FIN_REPLY: u8 = 8;
const RESET: u8 = 16;

/// What has been seen of a connection's beginning and end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phase(pub u8);

impl Phase {
    /// Nothing yet (also: not TCP).
    pub const NEW: Self = Self(0);
    /// As if both sides had sent SYN: a connection that was adopted.
    pub const ADOPTED: Self = Self(SYN_FORWARD | SYN_REPLY);

    /// What a segment makes of it.
    #[inline(always)]
    #[must_use]
    pub const fn after(self, reply: bool, flags: u8) -> Self {
        let (syn, fin) = if reply { (SYN_REPLY, FIN_REPLY) } else { (SYN_FORWARD, FIN_FORWARD) };
        let mut bits = self.0;
        if flags & RST != 0 {
            return Self(bits | RESET);
        }
        // Traffic after a RST: the RST was not meant for this connection.
        bits &= !RESET;
        // Half closed, and begun anew by who began it: a client that forgot what was.
        if !reply && opens(flags) && bits & (FIN_FORWARD | FIN_REPLY) != 0 {
            return Self(SYN_FORWARD);
        }
        if flags & SYN != 0 {
            bits |= syn;
        }
        if flags & FIN != 0 {
            bits |= fin;
        }
        Self(bits)
    }

    /// Whether both sides have said that they have no more to say.
    #[inline(always)]
    #[must_use]
    pub const fn is_finished(self) -> bool {
        self.0 & (FIN_FORWARD | FIN_REPLY) == FIN_FORWARD | FIN_REPLY
    }

    /// The timer of this phase.
    #[inline(always)]
    #[must_use]
    pub const fn class(self) -> Class {
        if self.0 & RESET != 0 {
            Class::TcpReset
        } else if self.is_finished() {
            Class::TcpClosed
        } else if self.0 & (FIN_FORWARD | FIN_REPLY) != 0 {
            Class::TcpClosing
        } else if self.0 & (SYN_FORWARD | SYN_REPLY) == SYN_FORWARD | SYN_REPLY {
            Class::TcpEstablished
        } else {
            Class::TcpOpening
        }
    }

    /// Its name for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self.class() {
            Class::TcpOpening => "opening",
            Class::TcpEstablished => "established",
            Class::TcpClosing => "closing",
            Class::TcpClosed => "closed",
            Class::TcpReset => "reset",
            Class::Udp | Class::Icmp | Class::Resting => "none",
        }
    }
}

/// Whether a segment opens a connection.
#[inline(always)]
#[must_use]
pub const fn opens(flags: u8) -> bool {
    flags & (SYN | ACK | RST | FIN) == SYN
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUT: bool = false;
    const BACK: bool = true;

    fn walk(steps: &[(bool, u8)]) -> Class {
        steps.iter().fold(Phase::NEW, |p, (reply, flags)| p.after(*reply, *flags)).class()
    }

    #[test]
    fn each_course_of_a_connection_ages_by_the_right_timer() {
        let open = [(OUT, SYN), (BACK, SYN | ACK)];
        type Course<'a> = (&'a str, &'a [(bool, u8)], Class);
        let half = [open[0], open[1], (BACK, FIN | ACK)];
        let table: [Course<'_>; 14] = [
            ("first segment", &[(OUT, SYN)], Class::TcpOpening),
            ("SYN again", &[(OUT, SYN), (OUT, SYN)], Class::TcpOpening),
            ("both have sent SYN", &open, Class::TcpEstablished),
            ("simultaneous open", &[(OUT, SYN), (BACK, SYN)], Class::TcpEstablished),
            ("split answer", &[(OUT, SYN), (BACK, ACK), (BACK, SYN)], Class::TcpEstablished),
            ("one FIN", &[open[0], open[1], (OUT, FIN | ACK)], Class::TcpClosing),
            (
                "both FIN",
                &[open[0], open[1], (OUT, FIN | ACK), (BACK, FIN | ACK), (OUT, ACK)],
                Class::TcpClosed,
            ),
            (
                "begun anew, half closed",
                &[half[0], half[1], half[2], (OUT, SYN)],
                Class::TcpOpening,
            ),
            (
                "begun anew, and answered",
                &[half[0], half[1], half[2], (OUT, SYN), (BACK, SYN | ACK)],
                Class::TcpEstablished,
            ),
            (
                "begun anew, and half closed by the other side",
                &[half[0], half[1], half[2], (OUT, SYN), (BACK, SYN | ACK), (OUT, FIN | ACK)],
                Class::TcpClosing,
            ),
            (
                "half closed, and a SYN of the other side",
                &[half[0], half[1], half[2], (BACK, SYN)],
                Class::TcpClosing,
            ),
            ("refused", &[(OUT, SYN), (BACK, RST | ACK)], Class::TcpReset),
            (
                "data after a stray RST",
                &[open[0], open[1], (BACK, RST), (BACK, ACK)],
                Class::TcpEstablished,
            ),
            (
                "RST after both FIN",
                &[open[0], open[1], (OUT, FIN), (BACK, FIN), (BACK, RST)],
                Class::TcpReset,
            ),
        ];
        for (what, steps, class) in table {
            assert_eq!(walk(steps), class, "{what}");
        }
    }

    #[test]
    fn the_fin_of_one_side_never_ends_an_established_connection() {
        for flags in 0..=0x3fu8 {
            let phase = Phase::ADOPTED.after(OUT, flags & !RST);
            assert_ne!(phase.class(), Class::TcpClosed, "{flags:#x}");
        }
    }

    #[test]
    fn only_a_bare_syn_opens() {
        for flags in 0..=0x3fu8 {
            let expected = flags & SYN != 0 && flags & (ACK | RST | FIN) == 0;
            assert_eq!(opens(flags), expected, "{flags:#x}");
        }
    }
}
