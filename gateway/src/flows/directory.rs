//! Names for the numbers that sessions, events and counters carry.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, PoisonError, RwLock};

use api::document::FABRIC;
use smartgroups::{Conflict, DomainId, Endpoint, Inventory};

use crate::config::Config;
use crate::datapath::numbers::Numbers;

/// The names of one generation; never changed once made.
#[derive(Clone, Debug)]
pub struct Directory {
    /// The generation whose numbers these are; later ones too, until another is published.
    pub generation: u32,
    /// The gateway's name.
    pub gateway: Arc<str>,
    attachments: BTreeMap<u16, Arc<str>>,
    domains: BTreeMap<u16, Arc<str>>,
    rules: HashMap<u32, Arc<str>>,
    snat: HashMap<u32, Arc<str>>,
    identities: HashMap<u32, Known>,
    inventory: Arc<Inventory>,
}

/// What is known of an identity.
#[derive(Clone, Debug)]
struct Known {
    groups: Arc<[Arc<str>]>,
    doubted: Arc<[Arc<str>]>,
}

impl Directory {
    /// The names of a configuration.
    #[must_use]
    pub fn new(
        generation: u32,
        Config { gateway, image, inventory, .. }: &Config,
        numbers: &Numbers,
    ) -> Self {
        let groups: HashMap<_, Arc<str>> =
            image.groups.iter().map(|group| (group.id, Arc::from(group.name.as_str()))).collect();
        let names = |ids: &[_]| ids.iter().filter_map(|id| groups.get(id).cloned()).collect();
        let domains = gateway.domains.iter().map(|d| (d.number.get(), Arc::from(d.name.as_str())));
        Self {
            generation,
            gateway: Arc::from(gateway.name.as_str()),
            attachments: numbers.iter().map(|(name, number)| (number, Arc::from(name))).collect(),
            domains: domains.chain([(0, Arc::from(FABRIC))]).collect(),
            rules: image.rules.iter().map(|r| (r.id.0, Arc::from(r.name.as_str()))).collect(),
            snat: image.snat.iter().map(|s| (s.id.0, Arc::from(s.name.as_str()))).collect(),
            identities: image
                .identities
                .iter()
                .map(|i| (i.id, Known { groups: names(&i.groups), doubted: names(&i.doubted) }))
                .collect(),
            inventory: Arc::clone(inventory),
        }
    }

    /// The same, knowing also the identities of another.
    #[must_use]
    pub fn with_identities_of(mut self, other: &Self) -> Self {
        for (id, known) in &other.identities {
            self.identities.entry(*id).or_insert_with(|| known.clone());
        }
        self
    }

    /// The name of a rule.
    #[must_use]
    pub fn rule(&self, id: u32) -> Option<Arc<str>> {
        self.rules.get(&id).cloned()
    }

    /// Whether a rule in force has this name.
    #[must_use]
    pub fn has_rule(&self, name: &str) -> bool {
        self.rules.values().any(|known| **known == *name)
    }

    /// The name of a SNAT policy.
    #[must_use]
    pub fn snat(&self, id: u32) -> Option<Arc<str>> {
        self.snat.get(&id).cloned()
    }

    /// The groups of an identity; none if it is unknown.
    #[must_use]
    pub fn groups(&self, identity: u32) -> Arc<[Arc<str>]> {
        self.identities.get(&identity).map_or_else(|| Arc::from([]), |known| known.groups.clone())
    }

    /// Groups that only some claimants of a contested address with this identity are in.
    #[must_use]
    pub fn doubted(&self, identity: u32) -> Arc<[Arc<str>]> {
        self.identities.get(&identity).map_or_else(|| Arc::from([]), |known| known.doubted.clone())
    }

    /// The name of an attachment, also of one that has left; zero is none.
    #[must_use]
    pub fn attachment(&self, number: u16) -> Option<Arc<str>> {
        self.attachments.get(&number).cloned()
    }

    /// The numbers of attachments that there are or were.
    pub fn attachments(&self) -> impl Iterator<Item = u16> {
        self.attachments.keys().copied()
    }

    /// The name of a domain, or its number if the configuration no longer has it.
    #[must_use]
    pub fn domain(&self, number: u16) -> Arc<str> {
        self.domains.get(&number).cloned().unwrap_or_else(|| Arc::from(number.to_string()))
    }

    /// The number of a domain.
    #[must_use]
    pub fn domain_number(&self, name: &str) -> Option<u16> {
        self.domains.iter().find(|(_, known)| &***known == name).map(|(number, _)| *number)
    }

    /// The names of all domains, the fabric first.
    pub fn domain_names(&self) -> impl Iterator<Item = &str> {
        self.domains.values().map(|name| &**name)
    }

    /// The endpoint that owns an address.
    #[must_use]
    pub fn owner(&self, domain: u16, address: Ipv4Addr) -> Option<&Endpoint> {
        self.inventory.lookup(DomainId(domain), IpAddr::V4(address))
    }

    /// Who claims an address although only one can have it.
    #[must_use]
    pub fn conflict(&self, domain: u16, address: Ipv4Addr) -> Option<Conflict> {
        self.inventory.conflict(DomainId(domain), IpAddr::V4(address))
    }
}

/// How many generations are kept: the events of all but the newest are on their way already.
const KEPT: usize = 8;

/// The directory in force, and some before it for events that come late.
///
/// Publish a directory *before* the tables change to its generation: then no event is ahead of its
/// names.
#[derive(Debug)]
pub struct Directories {
    /// The newest first; never empty.
    kept: RwLock<VecDeque<Arc<Directory>>>,
}

impl Directories {
    /// Begins with one.
    #[must_use]
    pub fn new(first: Directory) -> Self {
        Self { kept: RwLock::new(VecDeque::from([Arc::new(first)])) }
    }

    /// Puts a newer one into force.
    pub fn publish(&self, directory: Directory) {
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        // One that was announced and whose policy was then refused has the same generation.
        kept.retain(|old| old.generation < directory.generation);
        kept.push_front(Arc::new(directory));
        kept.truncate(KEPT);
    }

    /// The newest one.
    #[must_use]
    pub fn current(&self) -> Arc<Directory> {
        self.of(u32::MAX)
    }

    /// The one that a generation goes by: the newest that is no newer.
    #[must_use]
    pub fn of(&self, generation: u32) -> Arc<Directory> {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        let found = kept.iter().find(|directory| directory.generation <= generation);
        let oldest = kept.back().expect("a directory was there from the beginning");
        Arc::clone(found.unwrap_or(oldest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::testing::{self, TWO_CLUSTERS};

    #[test]
    fn numbers_get_the_names_of_the_configuration() {
        let scene = testing::scene(TWO_CLUSTERS);
        let directory = scene.directory(3);
        let rule = scene.config.image.rules[1].id.0;
        assert_eq!(directory.rule(rule).as_deref(), Some("web"));
        assert_eq!(directory.rule(rule ^ 1), None);
        assert!(directory.has_rule("web") && !directory.has_rule("we"));
        assert_eq!(directory.snat(scene.config.image.snat[0].id.0).as_deref(), Some("pods-out"));
        for (number, expected) in
            [(0, None), (1, Some("red-pods")), (4, Some("internet")), (5, None)]
        {
            assert_eq!(directory.attachment(number).as_deref(), expected, "{number}");
        }
        for (number, expected) in [(0, "fabric"), (1, "red"), (2, "blue"), (9, "9")] {
            assert_eq!(&*directory.domain(number), expected);
        }
        assert_eq!(directory.domain_number("blue"), Some(2));
        assert_eq!(directory.domain_number("green"), None);
        let pod = "100.64.1.10".parse().unwrap();
        let owner = |domain| directory.owner(domain, pod).map(|endpoint| endpoint.name.as_str());
        assert_eq!(owner(1), Some("shop/api-1"));
        assert_eq!(owner(2), Some("shop/api-2")); // the same address, another cluster
        assert_eq!(owner(0), None);
        let identity = scene.config.image.identity(DomainId(1), IpAddr::V4(pod)).id;
        let groups: Vec<_> = directory.groups(identity).iter().map(ToString::to_string).collect();
        assert!(groups.contains(&"shop".to_owned()), "{groups:?}");
        assert!(directory.groups(identity ^ 1).is_empty());
    }

    #[test]
    fn a_late_event_gets_the_names_of_its_own_generation() {
        let scene = testing::scene(TWO_CLUSTERS);
        let directories = Directories::new(scene.directory(3));
        for generation in [5, 6, 9] {
            directories.publish(scene.directory(generation));
        }
        for (asked, expected) in [(2, 3), (3, 3), (4, 3), (5, 5), (8, 6), (9, 9), (100, 9)] {
            assert_eq!(directories.of(asked).generation, expected, "{asked}");
        }
        assert_eq!(directories.current().generation, 9);
        for generation in 10..30 {
            directories.publish(scene.directory(generation));
        }
        assert_eq!(directories.of(0).generation, 30 - KEPT as u32, "old ones are forgotten");
    }

    #[test]
    fn what_was_announced_and_refused_is_replaced() {
        let scene = testing::scene(TWO_CLUSTERS);
        let directories = Directories::new(scene.directory(3));
        directories.publish(scene.directory(4));
        let mut again = scene.directory(4);
        again.gateway = Arc::from("another");
        directories.publish(again);
        assert_eq!(&*directories.current().gateway, "another");
        assert_eq!(directories.of(3).generation, 3);
    }
}
