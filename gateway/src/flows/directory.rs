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
    rules: Names<Arc<str>>,
    snat: Names<Arc<str>>,
    identities: Names<Known>,
    inventory: Arc<Inventory>,
}

/// What is known of an identity.
#[derive(Clone, Debug)]
struct Known {
    groups: Arc<[Arc<str>]>,
    doubted: Arc<[Arc<str>]>,
}

/// How many names of each kind are remembered beyond those of the configuration.
const MOST_GONE: usize = 1 << 14;

/// What ids mean, of one kind of object. An id follows from the name, or of an identity from its
/// groups, so it means the same in every generation: a session that was idle while policies came
/// and went still has names for what judged it.
#[derive(Clone, Debug)]
struct Names<T> {
    own: HashMap<u32, T>,
    /// What earlier configurations had, each with the last generation that had it.
    gone: HashMap<u32, (u32, T)>,
}

impl<T> FromIterator<(u32, T)> for Names<T> {
    fn from_iter<I: IntoIterator<Item = (u32, T)>>(own: I) -> Self {
        Self { own: own.into_iter().collect(), gone: HashMap::new() }
    }
}

impl<T: Clone> Names<T> {
    fn get(&self, id: u32) -> Option<&T> {
        self.own.get(&id).or_else(|| self.gone.get(&id).map(|(_, name)| name))
    }

    /// Remembers what those before had, up to `generation`, and forgets what is gone the longest.
    fn remember(&mut self, before: &Self, generation: u32) {
        let had = before.own.iter().map(|(id, name)| (*id, (generation, name.clone())));
        self.gone = before.gone.iter().map(|(id, gone)| (*id, gone.clone())).chain(had).collect();
        self.gone.retain(|id, _| !self.own.contains_key(id));
        let Some(beyond) = self.gone.len().checked_sub(MOST_GONE).filter(|n| *n > 0) else {
            return;
        };
        let mut ages: Vec<_> = self.gone.iter().map(|(id, (last, _))| (*last, *id)).collect();
        let (_, oldest, _) = ages.select_nth_unstable(beyond);
        let oldest = *oldest;
        self.gone.retain(|id, (last, _)| (*last, *id) >= oldest);
    }
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

    fn remember(&mut self, before: &Self) {
        self.rules.remember(&before.rules, before.generation);
        self.snat.remember(&before.snat, before.generation);
        self.identities.remember(&before.identities, before.generation);
    }

    /// The name of a rule, also of one that is gone.
    #[must_use]
    pub fn rule(&self, id: u32) -> Option<Arc<str>> {
        self.rules.get(id).cloned()
    }

    /// Whether a rule in force has this name.
    #[must_use]
    pub fn has_rule(&self, name: &str) -> bool {
        self.rules.own.values().any(|known| **known == *name)
    }

    /// The name of a SNAT policy, also of one that is gone.
    #[must_use]
    pub fn snat(&self, id: u32) -> Option<Arc<str>> {
        self.snat.get(id).cloned()
    }

    /// The groups of an identity, also of one that nobody has any more; `None`: it is unknown,
    /// which is not to be in no group.
    #[must_use]
    pub fn groups(&self, identity: u32) -> Option<Arc<[Arc<str>]>> {
        match identity {
            NOBODY => Some(Arc::from([])),
            identity => self.identities.get(identity).map(|known| known.groups.clone()),
        }
    }

    /// Groups that only some claimants of a contested address with this identity are in.
    #[must_use]
    pub fn doubted(&self, identity: u32) -> Arc<[Arc<str>]> {
        self.identities.get(identity).map_or_else(|| Arc::from([]), |known| known.doubted.clone())
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

/// The identity of an address that no group names.
const NOBODY: u32 = 0;

/// How many generations are kept: the events of all but the newest are on their way already.
const KEPT: usize = 8;

/// The directory in force, and some before it for events that come late.
#[derive(Clone, Debug)]
pub struct Book {
    /// The newest first; never empty.
    kept: VecDeque<Arc<Directory>>,
}

impl Book {
    /// The newest one, which knows what every id means or meant.
    #[must_use]
    pub fn newest(&self) -> &Arc<Directory> {
        self.of(u32::MAX)
    }

    /// The one that a generation goes by: the newest that is no newer.
    #[must_use]
    pub fn of(&self, generation: u32) -> &Arc<Directory> {
        let found = self.kept.iter().find(|directory| directory.generation <= generation);
        found.unwrap_or_else(|| self.kept.back().expect("there was one from the beginning"))
    }
}

/// The book of now.
///
/// Publish a directory *before* the tables change to its generation: then no event is ahead of its
/// names.
#[derive(Debug)]
pub struct Directories {
    book: RwLock<Arc<Book>>,
}

impl Directories {
    /// Begins with one.
    #[must_use]
    pub fn new(first: Directory) -> Self {
        let book = Book { kept: VecDeque::from([Arc::new(first)]) };
        Self { book: RwLock::new(Arc::new(book)) }
    }

    /// Puts a newer one into force.
    pub fn publish(&self, mut directory: Directory) {
        let mut book = self.book.write().unwrap_or_else(PoisonError::into_inner);
        directory.remember(book.newest());
        let mut kept = book.kept.clone();
        // One that was announced and whose policy was then refused has the same generation.
        kept.retain(|old| old.generation < directory.generation);
        kept.push_front(Arc::new(directory));
        kept.truncate(KEPT);
        *book = Arc::new(Book { kept });
    }

    /// Everything that is known now.
    #[must_use]
    pub fn book(&self) -> Arc<Book> {
        Arc::clone(&self.book.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The newest directory.
    #[must_use]
    pub fn current(&self) -> Arc<Directory> {
        Arc::clone(self.book().newest())
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
        let groups = directory.groups(identity).unwrap();
        assert!(groups.iter().any(|group| &**group == "shop"), "{groups:?}");
        assert_eq!(directory.groups(identity ^ 1), None);
        assert_eq!(directory.groups(NOBODY).as_deref(), Some(&[][..]));
    }

    #[test]
    fn a_late_event_gets_the_names_of_its_own_generation() {
        let scene = testing::scene(TWO_CLUSTERS);
        let directories = Directories::new(scene.directory(3));
        for generation in [5, 6, 9] {
            directories.publish(scene.directory(generation));
        }
        for (asked, expected) in [(2, 3), (3, 3), (4, 3), (5, 5), (8, 6), (9, 9), (100, 9)] {
            assert_eq!(directories.book().of(asked).generation, expected, "{asked}");
        }
        assert_eq!(directories.current().generation, 9);
        for generation in 10..30 {
            directories.publish(scene.directory(generation));
        }
        let oldest = directories.book().of(0).generation;
        assert_eq!(oldest, 30 - KEPT as u32, "old ones are forgotten");
    }

    #[test]
    fn an_id_keeps_its_name_however_many_policies_come_and_go() {
        let scene = testing::scene(TWO_CLUSTERS);
        let pod = IpAddr::V4("100.64.1.10".parse().unwrap());
        let rule = scene.config.image.rules[1].id.0;
        let snat = scene.config.image.snat[0].id.0;
        let identity = scene.config.image.identity(DomainId(1), pod).id;
        let directories = Directories::new(scene.directory(1));
        let renamed = TWO_CLUSTERS.replace("web", "www").replace("shop", "store");
        let renamed = testing::scene(&renamed.replace("pods-out", "pods-outwards"));
        for generation in 2..30 {
            directories.publish(renamed.directory(generation));
        }
        let now = directories.current();
        assert_eq!(now.rule(rule).as_deref(), Some("web"));
        assert!(!now.has_rule("web") && now.has_rule("www"));
        assert_eq!(now.snat(snat).as_deref(), Some("pods-out"));
        let groups = now.groups(identity).unwrap();
        assert!(groups.iter().any(|group| &**group == "shop"), "{groups:?}");
    }

    #[test]
    fn of_more_names_than_are_remembered_those_that_are_gone_the_longest_go() {
        let of = |ids: std::ops::Range<u32>| ids.map(|id| (id, id)).collect::<Names<u32>>();
        let most = MOST_GONE as u32;
        let mut names = of(0..2);
        for (generation, ids) in [(1, 2..most + 1), (2, most + 1..most + 2)] {
            let mut next = of(ids);
            next.remember(&names, generation);
            names = next;
        }
        assert_eq!(names.gone.len(), MOST_GONE);
        // One too many: of the first two one is gone.
        let known = |id: u32| names.get(id).is_some();
        assert_eq!([0, 1, 2, most, most + 1].map(known), [false, true, true, true, true]);
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
        assert_eq!(directories.book().of(3).generation, 3);
    }
}
