//! What is found out of a flow on the way to a session.

use crate::{
    address::{Key, V4},
    packet::Packet,
    policy::Judgement,
    verdict::Forward,
};
use xdp_abi::{
    config::PolicyWord,
    forward::{Attachment, Hop},
    session::Stamp,
};

/// What is decided about a flow, step by step: new, or judged again.
#[derive(Clone, Copy)]
pub struct Plan {
    /// The policy that it is judged under.
    pub(super) policy: PolicyWord,
    pub(super) stamp: Stamp,
    pub(crate) judgement: Judgement,
    /// The way out: where the next hop is now, its number, and the attachment ahead.
    pub(super) hop: Hop,
    pub(super) hop_number: u16,
    pub(super) egress_number: u16,
    pub(super) egress: Attachment,
    /// The epoch of the network before anything was looked up.
    pub(super) network: u32,
    /// Whether `judgement` has the source already, from a moment ago under `policy`.
    pub(super) knows_source: bool,
    /// The epochs under which it was found out.
    pub(super) source_epochs: u64,
    /// The same of the destination.
    pub(super) knows_destination: bool,
    /// Whether what is found out of the source is to be remembered.
    pub(super) remembers_source: bool,
    /// The next hop back from a moment ago, plus one; zero: none is known.
    pub(super) back_known: u32,
    /// The SNAT policy that matched; zero: none.
    pub(super) snat_policy: u32,
    /// The number of the ports that may be lent of the outside address, if it is `translated`.
    pub(super) lendable: u32,
    pub(super) translated: bool,
    /// The next hop back.
    pub(super) back: u16,
    /// What was taken: the record and both slots.
    pub(super) record: u32,
    pub(super) forward: u32,
    pub(super) reply: u32,
    /// What an answer will carry.
    pub(super) reply_key: Key<V4>,
}

impl Plan {
    /// Before anything is decided.
    pub const NONE: Self = Self {
        policy: PolicyWord(0),
        stamp: Stamp(0),
        judgement: Judgement::NONE,
        network: 0,
        knows_source: false,
        source_epochs: 0,
        knows_destination: false,
        remembers_source: false,
        back_known: 0,
        hop: Forward::NOWHERE.hop,
        hop_number: 0,
        egress_number: 0,
        egress: Attachment::NONE,
        snat_policy: 0,
        lendable: 0,
        translated: false,
        back: 0,
        record: 0,
        forward: 0,
        reply: 0,
        reply_key: Packet::NONE.key,
    };

    /// Forgets what was known of the packet before, when the network is in this epoch.
    #[inline(always)]
    pub(crate) fn begin(&mut self, network: u32, remembers_source: bool) {
        self.network = network;
        self.knows_source = false;
        self.remembers_source = remembers_source;
        self.back_known = 0;
    }
}
