//! Every reader of the kernel's netlink messages, for whoever feeds them bytes that no kernel sent.

use super::guard;
use super::picture::NetworkState;
use super::{notice, ports, wire};

/// Reads a datagram as each of the dialogues would.
pub fn datagram(bytes: &[u8]) {
    let mut state = NetworkState::default();
    for message in wire::messages(bytes) {
        if let Some(told) = notice::decode(&message) {
            state.apply(told);
        }
        ports::read(&message);
        guard::read_foreign(message.payload);
    }
}
