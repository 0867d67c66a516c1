//! Who has which identity, in the tables of one bank.
//!
//! The tables of a policy in force change while packets are judged by them, entry by entry. So the
//! order matters ([`nested`]): at any moment each address has either the identity that it had or the one
//! that it is about to have, and never that of a prefix that shows only for a moment in between.

use super::{
    nested::{self, in_turn},
    publish::PublishError,
    tables::{Datapath, lock, prefix_key},
};
use ipnet::{IpNet, Ipv4Net};
use policy_compiler::{Identity, Image};
use smartgroups::DomainId;
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
};
use xdp_abi::policy::{HostKey4, IdentityRef, PrefixKey4};

/// An address, or all of a prefix, in its domain.
pub(super) type Place = (DomainId, Ipv4Net);
/// Who is there, by the place of its identity in the tables; nobody of their own if there is none.
pub(super) type Change = nested::Change<DomainId, u32>;

/// The bits of a prefix's key before its address, which match whole.
const FIXED: u32 = 32;
const HOST: u8 = 32;

pub(super) fn is_host((_, net): &Place) -> bool {
    net.prefix_len() == HOST
}

/// What a bank holds.
#[derive(Default)]
pub(super) struct Members {
    hosts: HashMap<Place, u32>,
    prefixes: HashMap<Place, u32>,
}

impl Members {
    /// Reads what is in both banks.
    pub(super) fn read(datapath: &Datapath) -> [Self; 2] {
        let mut banks: [Self; 2] = Default::default();
        for (key, identity) in lock(&datapath.hosts).iter().flatten() {
            let place = (DomainId(key.domain), Ipv4Addr::from(key.address).into());
            banks[usize::from(key.bank & 1)].hosts.insert(place, identity.index);
        }
        for (key, identity) in lock(&datapath.prefixes).iter().flatten() {
            let PrefixKey4 { bank, domain, address } = key.data();
            let length = key.prefix_len().checked_sub(FIXED);
            let net = length.and_then(|length| Ipv4Net::new(address.into(), length as u8).ok());
            let Some(net) = net else { continue };
            let place = (DomainId(u16::from_be_bytes(domain)), net);
            let bank = usize::from(u16::from_be_bytes(bank) & 1);
            banks[bank].prefixes.insert(place, identity.index);
        }
        banks
    }

    /// What has to change for single addresses to be as in an image, whose identities are in these
    /// places. `None`: its prefixes are others, and whoever states other prefixes means all of them
    /// at once.
    pub(super) fn differences(&self, image: &Image, places: &[u32]) -> Option<Vec<Change>> {
        let all = entries(&image.hosts, &image.prefixes);
        let all = all.map(|(place, index)| (place, places[index as usize]));
        let (hosts, prefixes): (HashMap<_, _>, HashMap<_, _>) =
            all.partition(|(place, _)| is_host(place));
        if prefixes != self.prefixes {
            return None;
        }
        let gone = self.hosts.keys().filter(|place| !hosts.contains_key(place));
        let gone = gone.map(|place| (*place, None));
        let changed = hosts.iter().filter(|(place, at)| self.hosts.get(place) != Some(at));
        Some(changed.map(|(place, at)| (*place, Some(*at))).chain(gone).collect())
    }

    /// Whether the policy in force can be brought to these changes in place: there is room for what
    /// comes beside what goes, or the changes are about single addresses alone, of which each is right
    /// by itself.
    pub(super) fn can_take(&self, datapath: &Datapath, changes: &[Change]) -> bool {
        changes.iter().all(|(place, _)| is_host(place)) || self.have_room(datapath, changes)
    }

    /// Whether there is room for what comes beside what goes.
    fn have_room(&self, datapath: &Datapath, changes: &[Change]) -> bool {
        let come = |hosts: bool| {
            let here = changes.iter().filter(|(place, _)| is_host(place) == hosts);
            here.filter(|(place, at)| at.is_some() && !self.of_kind(place).contains_key(place))
                .count()
        };
        let (sizes, hosts, prefixes) = (&datapath.sizes, self.hosts.len(), self.prefixes.len());
        hosts + come(true) <= sizes.hosts as usize
            && prefixes + come(false) <= sizes.prefixes as usize
    }

    fn of_kind(&self, place: &Place) -> &HashMap<Place, u32> {
        if is_host(place) { &self.hosts } else { &self.prefixes }
    }

    /// Writes who has which place now; `identities` are there already, by place. What was written is
    /// known also if not all of it could be.
    pub(super) fn write(
        &mut self,
        datapath: &Datapath,
        bank: u32,
        identities: &[Identity],
        changes: &[Change],
    ) -> Result<(), PublishError> {
        for (place, at) in in_turn(changes, self.have_room(datapath, changes)) {
            let reference =
                at.map(|index| IdentityRef { index, id: identities[index as usize].id });
            if is_host(&place) {
                write_host(datapath, bank, place, reference)?;
            } else {
                write_prefix(datapath, bank, place, reference)?;
            }
            let known = if is_host(&place) { &mut self.hosts } else { &mut self.prefixes };
            match at {
                Some(at) => known.insert(place, at),
                None => known.remove(&place),
            };
        }
        Ok(())
    }

    /// Removes all that the bank holds.
    pub(super) fn clear(&mut self, datapath: &Datapath, bank: u32) {
        let (hosts, prefixes) =
            (std::mem::take(&mut self.hosts), std::mem::take(&mut self.prefixes));
        for place in hosts.into_keys() {
            let _ = write_host(datapath, bank, place, None);
        }
        for place in prefixes.into_keys() {
            let _ = write_prefix(datapath, bank, place, None);
        }
    }
}

/// A single address has this identity, or none of its own. It may be gone already: then there is
/// nothing to remove.
fn write_host(
    datapath: &Datapath,
    bank: u32,
    (domain, net): Place,
    reference: Option<IdentityRef>,
) -> Result<(), PublishError> {
    let key = HostKey4 { address: net.addr().octets(), domain: domain.0, bank: bank as u16 };
    let mut table = lock(&datapath.hosts);
    let Some(reference) = reference else {
        let _ = table.remove(&key);
        return Ok(());
    };
    let refused = |source| PublishError::Table { table: "endpoints", source };
    table.insert(key, reference, 0).map_err(refused)
}

/// The same of a shorter prefix.
fn write_prefix(
    datapath: &Datapath,
    bank: u32,
    (domain, net): Place,
    reference: Option<IdentityRef>,
) -> Result<(), PublishError> {
    let key = PrefixKey4 {
        bank: (bank as u16).to_be_bytes(),
        domain: domain.0.to_be_bytes(),
        address: net.network().octets(),
    };
    let key = prefix_key(FIXED, net.prefix_len(), key);
    let mut table = lock(&datapath.prefixes);
    let Some(reference) = reference else {
        let _ = table.remove(&key);
        return Ok(());
    };
    let refused = |source| PublishError::Table { table: "prefixes", source };
    table.insert(&key, reference, 0).map_err(refused)
}

/// Whom of all these tables are about.
pub(super) fn entries<T: Copy>(
    hosts: &[(DomainId, IpAddr, T)],
    prefixes: &[(DomainId, IpNet, T)],
) -> impl Iterator<Item = (Place, T)> {
    let hosts = hosts.iter().filter_map(|(domain, address, at)| match address {
        IpAddr::V4(address) => Some(((*domain, (*address).into()), *at)),
        IpAddr::V6(_) => None,
    });
    let prefixes = prefixes.iter().filter_map(|(domain, prefix, at)| match prefix {
        IpNet::V4(prefix) => Some(((*domain, *prefix), *at)),
        IpNet::V6(_) => None,
    });
    hosts.chain(prefixes)
}
