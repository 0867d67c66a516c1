//! The plain first packet of a flow, whose source may be remembered.

use super::{Decision, Plan, located, opened};
use crate::{
    address::V4,
    arrival::{Arrival, is_for_another},
    packet::Packet,
    recent::{self, Origin},
    stamp::epoch_slot,
    tables::Tables,
    verdict::Code,
};
use xdp_abi::{config::PolicyWord, forward::port, session::NETWORK_EPOCH};

/// The plain first packet of a flow, by an untagged interface, in a frame that was sent to `to`.
/// What is found out of its source is remembered.
#[inline(always)]
pub(crate) fn first<T: Tables<A = V4>>(
    tables: &T,
    packet: &mut Packet<V4>,
    arrival: &Arrival,
    to: &[u8; 6],
    decision: &mut Decision,
    plan: &mut Plan,
) {
    plan.begin(tables.epoch(NETWORK_EPOCH), true);
    plan.policy = PolicyWord(tables.config().policy.load());
    let number = origin(tables, packet.key.source, arrival, to, plan);
    if number == NOT_OURS {
        decision.code = Code::PASS;
        return;
    }
    if !located(tables, packet, number as u16, decision) {
        return;
    }
    let slot = epoch_slot(packet.key.domain, packet.key.source);
    plan.knows_source &= plan.source_epochs == recent::epochs(tables, plan.network, slot);
    opened(tables, packet, arrival, decision, plan);
}
/// The attachment that the source of a first packet comes by, zero if by none, or [`NOT_OURS`];
/// with what else is remembered of it.
#[inline(never)]
fn origin<T: Tables<A = V4>>(
    tables: &T,
    source: V4,
    arrival: &Arrival,
    to: &[u8; 6],
    plan: &mut Plan,
) -> u32 {
    let ifindex = arrival.ifindex;
    let origin = Origin { ifindex, source, to, sender: &arrival.sender };
    if let Some(line) = recent::source(tables, plan.policy, plan.network, &origin) {
        plan.knows_source = true;
        plan.source_epochs = line.epochs();
        plan.judgement.source = line.identity();
        plan.back_known = line.back();
        return line.attachment() as u32;
    }
    if is_for_another(tables, ifindex, 0, to, source) {
        return NOT_OURS;
    }
    let number = tables.attachment_of(port(ifindex, 0), source).unwrap_or(0);
    if let Some(line) = tables.recent(recent::source_place(ifindex, source)) {
        line.remember_origin(&origin, number);
    }
    number as u32
}

/// The frame is for another machine.
const NOT_OURS: u32 = u32::MAX;
