//! Names for the numbers that sessions, events and counters carry.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, PoisonError, RwLock};

use api::document::FABRIC;
use ipnet::IpNet;
use policy_compiler::{Amendment, Identity, Image};
use rpds::{HashTrieMapSync, QueueSync, VectorSync};
use smartgroups::{
    AddressTable, Conflict, DomainId, Endpoint, EndpointKind, GroupId, Inventory, Text,
};

use crate::config::Gateway;
use crate::datapath::numbers::Numbers;

/// The names of one generation; never changed once made.
#[derive(Clone, Debug)]
pub struct Directory {
    /// The generation whose numbers these are; later ones too, until another is published.
    pub generation: u32,
    /// From when on it holds, nanoseconds of the monotonic clock; a little before the tables do.
    since: u64,
    /// The gateway's name.
    pub gateway: Arc<str>,
    attachments: BTreeMap<u16, Arc<str>>,
    domains: BTreeMap<u16, Arc<str>>,
    rules: Names<Arc<str>>,
    snat: Names<Arc<str>>,
    identities: Names<Known>,
    groups: Arc<HashMap<GroupId, Arc<str>>>,
    inventory: Inventory,
    /// The ids of the identities of the image, and of those that came in since, by index.
    by_index: VectorSync<u32>,
    /// The ids of identities by address, as in the tables.
    table: AddressTable,
    former: Former,
}

/// Who had an address before whoever has it now, by the address; and in what order they lost it.
#[derive(Clone, Debug, Default)]
struct Former {
    owners: HashTrieMapSync<(DomainId, IpAddr), Arc<[FormerOwner]>>,
    order: QueueSync<(DomainId, IpAddr)>,
}

/// An endpoint that has an address no longer, or not with these groups.
#[derive(Clone, Debug)]
struct FormerOwner {
    /// Until when, nanoseconds of the monotonic clock.
    until: u64,
    identity: u32,
    endpoint: Arc<Endpoint>,
}

/// How many former owners are remembered.
const MOST_FORMER: usize = 1 << 16;

impl Former {
    fn remember(&mut self, address: (DomainId, IpAddr), owner: FormerOwner) {
        let before = self.owners.get(&address).map_or(&[][..], |owners| owners);
        let all = before.iter().cloned().chain([owner]).collect();
        self.owners.insert_mut(address, all);
        self.order.enqueue_mut(address);
        if self.order.len() > MOST_FORMER
            && let Some(oldest) = self.order.peek().copied()
        {
            self.order.dequeue_mut();
            match self.owners.get(&oldest) {
                Some(owners) if owners.len() > 1 => {
                    let others = owners[1..].into();
                    self.owners.insert_mut(oldest, others);
                }
                Some(_) | None => drop(self.owners.remove_mut(&oldest)),
            }
        }
    }
}

/// What is known of an identity.
#[derive(Clone, Debug)]
struct Known {
    groups: Arc<[Arc<str>]>,
    doubted: Arc<[Arc<str>]>,
}

impl Known {
    fn of(identity: &Identity, groups: &HashMap<GroupId, Arc<str>>) -> Self {
        let names = |ids: &[_]| ids.iter().filter_map(|id| groups.get(id).cloned()).collect();
        Self { groups: names(&identity.groups), doubted: names(&identity.doubted) }
    }
}

/// How many names of each kind are remembered beyond those of the configuration.
const MOST_GONE: usize = 1 << 14;

/// What ids mean, of one kind of object. An id follows from the name, or of an identity from its
/// groups, so it means the same in every generation: a session that was idle while policies came
/// and went still has names for what judged it.
#[derive(Clone, Debug)]
struct Names<T> {
    own: HashTrieMapSync<u32, T>,
    /// What earlier configurations had, each with the last generation that had it.
    gone: Arc<HashMap<u32, (u32, T)>>,
}

impl<T> FromIterator<(u32, T)> for Names<T> {
    fn from_iter<I: IntoIterator<Item = (u32, T)>>(own: I) -> Self {
        Self { own: own.into_iter().collect(), gone: Arc::default() }
    }
}

impl<T: Clone> Names<T> {
    fn get(&self, id: u32) -> Option<&T> {
        self.own.get(&id).or_else(|| self.gone.get(&id).map(|(_, name)| name))
    }

    /// Remembers what those before had, up to `generation`, and forgets what is gone the longest.
    fn remember(&mut self, before: &Self, generation: u32) {
        let had = before.own.iter().map(|(id, name)| (*id, (generation, name.clone())));
        let mut gone: HashMap<_, _> =
            before.gone.iter().map(|(id, gone)| (*id, gone.clone())).chain(had).collect();
        gone.retain(|id, _| !self.own.contains_key(id));
        if let Some(beyond) = gone.len().checked_sub(MOST_GONE).filter(|n| *n > 0) {
            let mut ages: Vec<_> = gone.iter().map(|(id, (last, _))| (*last, *id)).collect();
            let (_, oldest, _) = ages.select_nth_unstable(beyond);
            let oldest = *oldest;
            gone.retain(|id, (last, _)| (*last, *id) >= oldest);
        }
        self.gone = Arc::new(gone);
    }
}

impl Directory {
    /// The names of a configuration.
    #[must_use]
    pub fn new(
        generation: u32,
        gateway: &Gateway,
        image: &Image,
        inventory: &Inventory,
        numbers: &Numbers,
    ) -> Self {
        let groups: HashMap<_, Arc<str>> =
            image.groups.iter().map(|group| (group.id, Arc::from(group.name.as_str()))).collect();
        let id = |index: u32| image.identities[index as usize].id;
        let domains = gateway.domains.iter().map(|d| (d.number.get(), Arc::from(d.name.as_str())));
        Self {
            generation,
            since: 0,
            gateway: Arc::from(gateway.name.as_str()),
            attachments: numbers.iter().map(|(name, number)| (number, Arc::from(name))).collect(),
            domains: domains.chain([(0, Arc::from(FABRIC))]).collect(),
            rules: image.rules.iter().map(|r| (r.id.0, Arc::from(r.name.as_str()))).collect(),
            snat: image.snat.iter().map(|s| (s.id.0, Arc::from(s.name.as_str()))).collect(),
            identities: image.identities.iter().map(|i| (i.id, Known::of(i, &groups))).collect(),
            groups: Arc::new(groups),
            inventory: inventory.clone(),
            by_index: image.identities.iter().map(|identity| identity.id).collect(),
            table: AddressTable::new(
                image.hosts.iter().map(|(domain, host, index)| (*domain, *host, id(*index))),
                image.prefixes.iter().map(|(domain, prefix, index)| (*domain, *prefix, id(*index))),
            ),
            former: Former::default(),
        }
    }

    /// The same after members changed what they did; `inventory` is who there is since, and
    /// `changed` are the names of those who are not as they were.
    #[must_use]
    pub fn amended(
        &self,
        generation: u32,
        amendment: &Amendment,
        inventory: &Inventory,
        changed: &[Text],
        now: u64,
    ) -> Self {
        let mut new = Self { generation, inventory: inventory.clone(), ..self.clone() };
        for endpoint in changed.iter().filter_map(|name| self.inventory.shared(name)) {
            for prefix in
                endpoint.addresses.iter().filter(|one| self.is_left(endpoint, one, inventory))
            {
                let address = (endpoint.domain, prefix.addr());
                let identity = self.table.lookup(address.0, address.1).unwrap_or(NOBODY);
                let endpoint = Arc::clone(endpoint);
                new.former.remember(address, FormerOwner { until: now, identity, endpoint });
            }
        }
        for identity in &amendment.identities {
            new.by_index.push_back_mut(identity.id);
            new.identities.own.insert_mut(identity.id, Known::of(identity, &new.groups));
        }
        let id = |index: &Option<u32>| new.by_index.get((*index)? as usize).copied();
        for (domain, host, index) in &amendment.hosts {
            new.table.put_host(*domain, *host, id(index));
        }
        for (domain, prefix, index) in &amendment.prefixes {
            new.table.put_prefix(*domain, *prefix, id(index));
        }
        new
    }

    /// Whether it has to be remembered that an endpoint, which has changed, had an address. Of a name in
    /// DNS nothing changes but which addresses it has, often, and many of them stay; and those that
    /// somebody else is named by were never its own in a record.
    fn is_left(&self, endpoint: &Endpoint, prefix: &IpNet, now: &Inventory) -> bool {
        if endpoint.kind != EndpointKind::Fqdn {
            return true;
        }
        let has = |one: &Endpoint| one.addresses.binary_search(prefix).is_ok();
        let owner = self.inventory.lookup(endpoint.domain, prefix.addr());
        !now.get(&endpoint.name).is_some_and(has)
            && owner.is_some_and(|owner| owner.name == endpoint.name)
    }

    fn remember(&mut self, before: &Self) {
        self.former = before.former.clone();
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

    /// The identity that the tables have for an address.
    fn identity(&self, domain: u16, address: Ipv4Addr) -> u32 {
        self.table.lookup(DomainId(domain), IpAddr::V4(address)).unwrap_or(NOBODY)
    }

    /// The ids of identities by address, as in the tables.
    pub fn table(&self) -> &AddressTable {
        &self.table
    }

    /// The id of the identity of whoever no line of the tables holds.
    pub fn unknown(&self) -> u32 {
        self.by_index.first().copied().unwrap_or(NOBODY)
    }

    /// Who there is.
    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// How many identities stand in the tables.
    pub fn identities(&self) -> usize {
        self.by_index.len()
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

/// How many are kept: who had an address when a flow began is known for so many changes of it.
const KEPT: usize = 8;

/// The directory in force, and some before it: for events that come late, and for flows that began
/// when somebody else had their addresses.
#[derive(Clone, Debug)]
pub struct Book {
    /// The newest first; never empty.
    kept: VecDeque<Arc<Directory>>,
    /// The newest is not in force yet.
    announced: Option<Announced>,
}

/// What a directory that is announced is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Announced {
    /// Another configuration: the one before stays behind it.
    Anew,
    /// The one before, whose place it takes: who had what before is in it.
    Amended,
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

    /// The endpoint that had an address when a flow began (`at`, nanoseconds of the monotonic clock)
    /// to which the datapath gave this identity. The identity decides where the moment does not
    /// agree with it: a directory is announced before the tables follow, and a session that is
    /// judged again after its address went to another has the other's. `None`: nobody had it, or
    /// it is not known any more.
    #[must_use]
    pub fn owner(
        &self,
        domain: u16,
        address: Ipv4Addr,
        identity: u32,
        at: u64,
    ) -> Option<&Endpoint> {
        let key = (DomainId(domain), IpAddr::V4(address));
        let former = self.newest().former.owners.get(&key).map_or(&[][..], |owners| owners);
        if let Some(owner) = former.iter().find(|one| one.until > at && one.identity == identity) {
            return Some(&owner.endpoint);
        }
        let held = self.kept.iter().position(|directory| directory.since <= at);
        let held = held.unwrap_or(self.kept.len() - 1);
        // The one of that moment, then the nearest.
        let later = (0..held).rev();
        let earlier = held + 1..self.kept.len();
        [held]
            .into_iter()
            .chain(later)
            .chain(earlier)
            .map(|place| &self.kept[place])
            .find(|directory| directory.identity(domain, address) == identity)?
            .owner(domain, address)
    }
}

/// The book of now.
#[derive(Debug)]
pub struct Directories {
    book: RwLock<Arc<Book>>,
}

impl Directories {
    /// Begins with one, which is taken to have held always.
    #[must_use]
    pub fn new(first: Directory) -> Self {
        let book = Book { kept: VecDeque::from([Arc::new(first)]), announced: None };
        Self { book: RwLock::new(Arc::new(book)) }
    }

    /// Says what is about to come into force, *before* the tables change: then no event is ahead
    /// of its names. `now` in nanoseconds of the monotonic clock.
    pub fn announce(&self, directory: Directory, now: u64) {
        self.put(directory, now, Some(Announced::Anew));
    }

    /// Puts one into force, which is the one that was announced, if one was.
    pub fn publish(&self, directory: Directory, now: u64) {
        self.put(directory, now, None);
    }

    /// Says what members are about to change: the like of [`Self::announce`].
    pub fn announce_amended(&self, amended: Directory) {
        let mut book = self.book.write().unwrap_or_else(PoisonError::into_inner);
        let mut kept = book.kept.clone();
        kept.push_front(Arc::new(amended));
        *book = Arc::new(Book { kept, announced: Some(Announced::Amended) });
    }

    /// What was announced is in force, under this generation. False: nothing was.
    pub fn accept(&self, generation: u32) -> bool {
        let mut book = self.book.write().unwrap_or_else(PoisonError::into_inner);
        let mut kept = book.kept.clone();
        let (Some(announced), Some(mut newest)) = (book.announced, kept.pop_front()) else {
            return false;
        };
        if announced == Announced::Amended {
            kept.pop_front();
        }
        Arc::make_mut(&mut newest).generation = generation;
        kept.push_front(newest);
        *book = Arc::new(Book { kept, announced: None });
        true
    }

    /// What was announced does not come into force.
    pub fn withdraw(&self) {
        let mut book = self.book.write().unwrap_or_else(PoisonError::into_inner);
        if book.announced.is_none() {
            return;
        }
        let mut kept = book.kept.clone();
        if let (Some(announced), Some(old)) = (kept.pop_front(), kept.front_mut()) {
            // Some of it may have been in force for a moment.
            Arc::make_mut(old).remember(&announced);
        }
        *book = Arc::new(Book { kept, announced: None });
    }

    fn put(&self, mut directory: Directory, now: u64, announced: Option<Announced>) {
        let mut book = self.book.write().unwrap_or_else(PoisonError::into_inner);
        directory.since = now;
        directory.remember(book.newest());
        let mut kept = book.kept.clone();
        if book.announced.is_some()
            && let Some(before) = kept.pop_front()
        {
            directory.since = before.since;
        }
        kept.push_front(Arc::new(directory));
        kept.truncate(KEPT);
        *book = Arc::new(Book { kept, announced });
    }

    /// Everything that is known now.
    #[must_use]
    pub fn book(&self) -> Arc<Book> {
        Arc::clone(&self.book.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The newest directory that is in force.
    #[must_use]
    pub fn in_force(&self) -> Arc<Directory> {
        let book = self.book();
        let skipped = usize::from(book.announced.is_some() && book.kept.len() > 1);
        Arc::clone(&book.kept[skipped])
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
        let owner = |domain| directory.owner(domain, pod).map(|endpoint| &*endpoint.name);
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
            directories.publish(scene.directory(generation), 0);
        }
        for (asked, expected) in [(2, 3), (3, 3), (4, 3), (5, 5), (8, 6), (9, 9), (100, 9)] {
            assert_eq!(directories.book().of(asked).generation, expected, "{asked}");
        }
        assert_eq!(directories.current().generation, 9);
        for generation in 10..30 {
            directories.publish(scene.directory(generation), 0);
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
            directories.publish(renamed.directory(generation), 0);
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
    fn what_was_announced_and_refused_is_gone() {
        let scene = testing::scene(TWO_CLUSTERS);
        let directories = Directories::new(scene.directory(3));
        directories.withdraw();
        assert_eq!(directories.current().generation, 3, "nothing was announced");
        directories.announce(scene.directory(4), 10);
        directories.withdraw();
        assert_eq!(directories.current().generation, 3);
        directories.announce(scene.directory(4), 20);
        let mut amended = scene.directory(3);
        amended.gateway = Arc::from("another");
        directories.publish(amended, 30);
        let book = directories.book();
        assert_eq!((book.kept.len(), &*book.of(3).gateway), (2, "another"));
        assert_eq!(book.newest().since, 20, "since it was announced");
    }

    #[test]
    fn whoever_had_an_address_is_known_after_any_number_of_changes() {
        let scene = testing::scene(TWO_CLUSTERS);
        let address: Ipv4Addr = "100.64.1.10".parse().unwrap();
        let identity = scene.config.image.identity(DomainId(1), IpAddr::V4(address)).id;
        let directories = Directories::new(scene.directory(1));
        let (first, groups) = (Text::from("shop/api-1"), Amendment::default());
        let mut inventory = scene.config.inventory.clone();
        let mut name = first.clone();
        // One after the other has the address, all of them in the same groups.
        for n in 1..=100_u64 {
            let before = inventory.remove(&name).unwrap();
            let next = Text::from(format!("shop/heir-{n}"));
            inventory.insert(Endpoint { name: next.clone(), ..Endpoint::clone(&before) });
            let changed = [name, next.clone()];
            let before = directories.in_force();
            let amended = before.amended(1, &groups, &inventory, &changed, n * 100);
            directories.announce_amended(amended);
            assert!(directories.accept(1));
            name = next;
        }
        // A reload forgets none of it.
        let mut reloaded = scene.directory(2);
        reloaded.inventory = inventory;
        directories.publish(reloaded, 20_000);
        let book = directories.book();
        for (at, expected) in [
            (0, &*first),
            (99, &*first),
            (100, "shop/heir-1"),
            (4_250, "shop/heir-42"),
            (9_999, "shop/heir-99"),
            (10_000, "shop/heir-100"),
            (30_000, "shop/heir-100"),
        ] {
            let owner = book.owner(1, address, identity, at).map(|owner| &*owner.name);
            assert_eq!(owner, Some(expected), "{at}");
        }
        let mut former = Former::default();
        let endpoint = Arc::clone(scene.config.inventory.shared(&first).unwrap());
        for n in 0..MOST_FORMER as u64 + 10 {
            let host = (DomainId(1), IpAddr::V4(Ipv4Addr::from_bits((n % 1000) as u32)));
            let owner = FormerOwner { until: n, identity, endpoint: Arc::clone(&endpoint) };
            former.remember(host, owner);
        }
        let all: usize = former.owners.values().map(|owners| owners.len()).sum();
        assert_eq!((all, former.order.len()), (MOST_FORMER, MOST_FORMER));
        assert!(former.owners.values().flat_map(|owners| owners.iter()).all(|one| one.until >= 10));
    }

    #[test]
    fn of_a_name_the_addresses_are_remembered_that_left_it_and_were_its_own() {
        let scene = testing::scene(TWO_CLUSTERS);
        let directories = Directories::new(scene.directory(1));
        let name = Endpoint::name_of_fqdn("store.example");
        let fqdn = |addresses: &[&str]| Endpoint {
            addresses: addresses.iter().map(|prefix| prefix.parse().unwrap()).collect(),
            ..Endpoint::new(name.clone(), EndpointKind::Fqdn, DomainId::FABRIC)
        };
        let [first, second, vm] = ["192.0.2.1/32", "192.0.2.2/32", "192.0.2.3/32"];
        let mut inventory = scene.config.inventory.clone();
        inventory.insert(Endpoint {
            addresses: [vm.parse().unwrap()].into(),
            ..Endpoint::new("vm-1", EndpointKind::Vm, DomainId::FABRIC)
        });
        for (at, addresses) in [(100, &[first, vm][..]), (200, &[first, second]), (300, &[second])]
        {
            inventory.insert(fqdn(addresses));
            let changed = [name.clone()];
            let before = directories.in_force();
            let amended = before.amended(1, &Amendment::default(), &inventory, &changed, at);
            directories.announce_amended(amended);
            assert!(directories.accept(1));
        }
        let book = directories.book();
        let owners = &book.newest().former.owners;
        let left: Vec<(IpAddr, u64)> = owners
            .iter()
            .flat_map(|((_, address), all)| all.iter().map(|one| (*address, one.until)))
            .collect();
        assert_eq!(left, [("192.0.2.1".parse().unwrap(), 300)]);
    }

    #[test]
    fn an_address_that_moves_is_whose_it_was_when_the_flow_began() {
        // Three pods one after the other, the last of them in the groups of the one before.
        let of = |name: &str, app: &str| {
            let text = TWO_CLUSTERS.replace("app: api }", &format!("app: {app} }}"));
            let group = "  - { kind: SmartGroup, name: ads, spec: { selectors: [{ labels: { app: ads } }] } }\n";
            testing::scene(&format!("{}{group}", text.replace("shop/api-1", name)))
        };
        let pod = "100.64.1.10".parse().unwrap();
        let scenes = [of("shop/first", "api"), of("shop/second", "ads"), of("shop/third", "ads")];
        let id = |n: usize| scenes[n].config.image.identity(DomainId(1), IpAddr::V4(pod)).id;
        let (first, second) = (id(0), id(1));
        assert!(first != second && second == id(2));
        let directories = Directories::new(scenes[0].directory(1));
        for (scene, now) in [(&scenes[1], 100), (&scenes[2], 200)] {
            directories.announce(scene.directory(2), now);
            directories.publish(scene.directory(1), now + 5);
        }
        let book = directories.book();
        for (at, identity, expected, why) in [
            (50, first, Some("shop/first"), "idle since then"),
            (99, first, Some("shop/first"), ""),
            (101, first, Some("shop/first"), "announced, and the tables are still the old ones"),
            (102, second, Some("shop/second"), ""),
            (50, second, Some("shop/second"), "judged again when another had its address"),
            (199, second, Some("shop/second"), ""),
            (200, second, Some("shop/third"), ""),
            (250, first, Some("shop/first"), "late, and nobody else has these groups"),
            (250, 77, None, "whose nobody knows"),
        ] {
            let owner = book.owner(1, pod, identity, at).map(|owner| &*owner.name);
            assert_eq!(owner, expected, "{at}: {why}");
        }
        assert!(book.owner(0, pod, NOBODY, 50).is_none(), "nobody has it there");
    }
}
