//! What the last guard keeps back, by the configuration.

use crate::{
    config::Config,
    net::{
        IfIndex,
        guard::{ExemptMark, GuardSpec},
    },
};
use ipnet::Ipv4Net;
use std::collections::{BTreeMap, BTreeSet};
use xdp_abi::control::{MARK, MARK_MASK};

/// The last guard for a configuration whose programs are, or are about to be, attached; `translating`
/// are the numbers of interfaces where they are.
pub(crate) fn spec(config: &Config, translating: BTreeSet<IfIndex>) -> GuardSpec {
    let mut interfaces: BTreeMap<String, Vec<Ipv4Net>> = BTreeMap::new();
    // Among pods of one network their addresses are what they are.
    let mut towards: BTreeMap<String, Vec<Ipv4Net>> = BTreeMap::new();
    let mut attached = BTreeSet::new();
    for attachment in &config.gateway.attachments {
        let device = attachment.device();
        // Programs are on the interface itself, also those of its VLANs.
        attached.extend([device.clone(), attachment.interface.clone()]);
        if attachment.is_fabric() {
            let carried = attachment.carries.iter().map(|prefix| prefix.net());
            interfaces.entry(device).or_default().extend(carried);
        } else {
            let routes = attachment.routes().iter().map(|prefix| prefix.net());
            towards.entry(device).or_default().extend(routes);
        }
    }
    GuardSpec {
        non_routable: config.gateway.non_routable.iter().map(|prefix| prefix.net()).collect(),
        interfaces,
        towards,
        attached,
        translating,
        exempt: Some(ExemptMark { value: MARK, mask: MARK_MASK }),
    }
}
