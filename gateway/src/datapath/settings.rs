//! The global settings, written into the datapath.

use super::{non_routable, tables::Datapath};
use crate::config::{Config, TcpMidstream};
use std::time::Duration;
use xdp_abi::{
    config::{MIDSTREAM_ADOPT, MIDSTREAM_DROP, MIDSTREAM_RESET},
    session::Class,
};

/// Answers (RST, ICMP) that one sender gets a second.
const ANSWERS_PER_SECOND: u64 = 100;
/// Deny records of one rule and source a second.
const DENIALS_PER_SECOND: u64 = 10;

/// Writes timers, non-routable prefixes and the rest.
pub fn write(datapath: &Datapath, config: &Config) {
    let settings = datapath.settings();
    let timers = &config.gateway.timers;
    let clock = datapath.clock();
    let of_class = |class: Class| -> Duration {
        match class {
            Class::Udp => timers.udp.duration(),
            Class::Icmp => timers.icmp.duration(),
            Class::TcpEstablished => timers.tcp_established.duration(),
            Class::TcpOpening | Class::TcpClosing | Class::TcpClosed | Class::TcpReset => {
                timers.tcp_transitory.duration()
            }
            Class::Resting => timers.port_rest.duration(),
        }
    };
    for (place, word) in settings.timeouts.iter().enumerate() {
        let ticks = |n: usize| u64::from(clock.ticks(of_class(Class::from_bits(n as u64))));
        word.store(ticks(2 * place) << 32 | ticks(2 * place + 1));
    }
    settings.rest.store(u64::from(clock.ticks(timers.port_rest.duration())));
    let prefixes = config.gateway.non_routable.iter().map(|prefix| prefix.net());
    non_routable::write(&settings.non_routable, prefixes);
    settings.midstream.store(match config.gateway.tcp_midstream {
        TcpMidstream::Reset => MIDSTREAM_RESET,
        TcpMidstream::Drop => MIDSTREAM_DROP,
        TcpMidstream::Adopt => MIDSTREAM_ADOPT,
    });
    settings.rates.store(ANSWERS_PER_SECOND << 32 | DENIALS_PER_SECOND);
}
