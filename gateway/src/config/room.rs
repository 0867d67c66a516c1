//! Whether what attachments state of the addresses behind and ahead of them fits the tables of places,
//! whose size nobody can change.
//!
//! A file that `check` accepts and `run` refuses is found out about at the worst moment. So the entries
//! are counted here as [`crate::datapath::places`] will write them, as if no interface were missing;
//! one that is has none.

use std::collections::{BTreeMap, BTreeSet};

use api::value::Prefix4;
use ipnet::Ipv4Net;
use xdp_abi::forward::PLACE_ENTRIES;

use super::convert;
use super::settings::{Attachment, Gateway};
use super::tree::{Fault, Tree, at};
use crate::datapath::behind::{self, Sources, Stated};

/// What is left for the machine's own addresses in pod networks, which are among the sources and which no file
/// knows.
const OWN_ADDRESSES: usize = 256;

const MOST: usize = PLACE_ENTRIES as usize;
const MOST_SOURCES: usize = MOST - OWN_ADDRESSES;

pub(super) fn check(tree: &Tree, gateway: &Gateway, errors: &mut Vec<Fault>) {
    // A place is known by its interface and VLAN, what is carried by the attachment.
    let place = |n: usize| {
        let Attachment { interface, vlan, .. } = &gateway.attachments[n];
        (interface.as_str(), *vlan)
    };
    beyond(tree, gateway, "routes", |n, route| (place(n), route), Attachment::routes, errors);
    beyond(tree, gateway, "carries", |n, carried| (n, carried), |one| &one.carries, errors);
    beyond(tree, gateway, "sources", |n, source| (place(n), source), |one| &one.sources, errors);
    if errors.is_empty() && !fits(gateway) {
        let message = format!(
            "`attachments` need more than {MOST_SOURCES} entries to tell sources apart: one for each of \
             their `sources`, and at each place one for everything inside of these that another \
             attachment of the domain states or that is non-routable; expected fewer, so fewer or \
             wider `sources` and `routes`"
        );
        errors.push(tree.fault(&at!["gateway", "attachments"], message));
    }
}

/// Reports a list of prefixes by which all attachments together come to more than there is room for.
fn beyond<'a, K: Ord>(
    tree: &Tree,
    gateway: &'a Gateway,
    field: &str,
    key: impl Fn(usize, Ipv4Net) -> K,
    prefixes: impl Fn(&'a Attachment) -> &'a [Prefix4],
    errors: &mut Vec<Fault>,
) {
    let mut entries = BTreeSet::new();
    let mut last = None;
    for (n, attachment) in gateway.attachments.iter().enumerate() {
        let before = entries.len();
        entries.extend(prefixes(attachment).iter().map(|prefix| key(n, prefix.net())));
        if before <= MOST && entries.len() > MOST {
            last = Some(n);
        }
    }
    let Some(n) = last else { return };
    let message = format!(
        "`{field}` brings all attachments together to {} prefixes; expected at most {MOST}",
        entries.len()
    );
    errors.push(tree.fault(&at!["gateway", "attachments", n, field], message));
}

/// Whether there is room for all sources, and for what is nobody's among them.
fn fits(gateway: &Gateway) -> bool {
    let domains = convert::domains(gateway);
    let domain = |stated: &Attachment| domains.get(stated.domain.as_str()).map_or(0, |of| of.0);
    let mut places = BTreeMap::new();
    let mut sources: BTreeMap<u32, Sources> = BTreeMap::new();
    let mut stated: BTreeMap<u16, Stated> = BTreeMap::new();
    let mut routable = BTreeMap::new();
    let numbered = || (1_u16..).zip(&gateway.attachments);
    for (number, attachment) in numbered() {
        let next = places.len() as u32;
        let place = *places.entry((&attachment.interface, attachment.vlan)).or_insert(next);
        let here = sources.entry(place).or_default();
        here.extend(attachment.sources.iter().map(|source| ((place, source.net()), number)));
        for claim in attachment.claims() {
            let of_domain = stated.entry(domain(attachment)).or_default();
            of_domain.entry(claim.net()).or_default().insert(place);
        }
        if attachment.is_fabric() {
            let carries: Vec<_> = attachment.carries.iter().map(|prefix| prefix.net()).collect();
            routable.insert(number, carries);
        }
    }
    let of: BTreeMap<u16, u16> = numbered().map(|(number, one)| (number, domain(one))).collect();
    let non_routable: Vec<_> = gateway.non_routable.iter().map(|prefix| prefix.net()).collect();
    let non_routable = Ipv4Net::aggregate(&non_routable);
    // Place by place, so that of very many the first are enough.
    let mut entries = 0;
    sources.into_values().all(|mut here| {
        behind::part(&mut here, &stated, |number| of.get(&number).copied().unwrap_or_default());
        behind::confine(&mut here, &non_routable, &routable);
        entries += here.len();
        entries <= MOST_SOURCES
    })
}
