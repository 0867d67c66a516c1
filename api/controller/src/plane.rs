//! Who there is, and what follows from it.
//!
//! Endpoints come from two sides: stated by an operator, and discovered. Neither removes the
//! other's: a name that is stated is the operator's, whatever is discovered under it.

use std::sync::Arc;

use policy_compiler::{
    Amendment, Capacity, CompileError, Compiler, DefaultAction, Image, Inputs, Rule, SnatPolicy,
};
use smartgroups::{Change, DomainId, Inventory, SmartGroup, Subject};

use crate::Source;

/// What is compiled, beside who there is.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Who belongs together.
    pub groups: Vec<SmartGroup>,
    /// Who may talk to whom.
    pub rules: Vec<Rule>,
    /// How flows are translated.
    pub snat: Vec<SnatPolicy>,
    /// What happens to all other flows.
    pub default_action: DefaultAction,
    /// The routing domains of the gateway.
    pub domains: Vec<DomainId>,
    /// How much the gateway has room for.
    pub capacity: Capacity,
}

/// What a discovery means for the policy in force.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Nothing.
    Nothing,
    /// Members came and went.
    Amended(Amendment),
    /// Members came and went, and only a whole new image has room for it.
    Anew(Box<Image>),
    /// There is no room: what is in force stays as it is, and [`Plane::retry`] tries again.
    NoRoom(CompileError),
}

/// See the module.
pub struct Plane {
    policy: Arc<Policy>,
    stated: Inventory,
    /// What was discovered under names that are stated: known again when those are not.
    hidden: Inventory,
    compiler: Compiler,
    /// What was discovered last has found no room.
    is_full: bool,
}

impl Plane {
    /// Compiles a policy for those that are stated, and for what was discovered before.
    ///
    /// # Errors
    /// A policy that is wrong in itself, or has no room.
    pub fn new(
        policy: Policy,
        stated: Inventory,
        discovered: impl IntoIterator<Item = Change>,
    ) -> Result<(Self, Image), CompileError> {
        let (mut all, mut hidden) = (stated.clone(), Inventory::new());
        for change in discovered {
            let is_hidden = stated.knows(&change.subject());
            (if is_hidden { &mut hidden } else { &mut all }).apply(change);
        }
        Self::compile(Arc::new(policy), stated, hidden, all)
    }

    /// Compiles another policy for others that are stated, and for all that was discovered. This
    /// one goes on until the other is in force.
    ///
    /// # Errors
    /// As [`Plane::new`].
    pub fn restated(
        &self,
        policy: Policy,
        stated: Inventory,
    ) -> Result<(Self, Image), CompileError> {
        // All that was discovered, under whatever name.
        let mut all = self.compiler.inventory().clone();
        for endpoint in self.stated.endpoints() {
            all.remove(&endpoint.name);
        }
        for (id, _) in self.stated.namespaces() {
            all.remove_namespace(id);
        }
        for endpoint in self.hidden.endpoints() {
            all.insert(endpoint.clone());
        }
        for (id, labels) in self.hidden.namespaces() {
            all.insert_namespace(id.clone(), labels.clone());
        }
        let mut hidden = Inventory::new();
        for endpoint in stated.endpoints() {
            if let Some(discovered) = all.insert(endpoint.clone()) {
                hidden.insert(Arc::unwrap_or_clone(discovered));
            }
        }
        for (id, labels) in stated.namespaces() {
            if let Some(discovered) = all.insert_namespace(id.clone(), labels.clone()) {
                hidden.insert_namespace(id.clone(), discovered);
            }
        }
        Self::compile(Arc::new(policy), stated, hidden, all)
    }

    fn compile(
        policy: Arc<Policy>,
        stated: Inventory,
        hidden: Inventory,
        all: Inventory,
    ) -> Result<(Self, Image), CompileError> {
        let nobody = Inventory::new();
        let inputs = Inputs {
            inventory: &nobody,
            groups: &policy.groups,
            rules: &policy.rules,
            snat: &policy.snat,
            default_action: policy.default_action,
            domains: &policy.domains,
        };
        let (compiler, image, _) = Compiler::new(all, &inputs, &policy.capacity)?;
        Ok((Self { policy, stated, hidden, compiler, is_full: false }, image))
    }

    /// Who is stated.
    pub fn stated(&self) -> &Inventory {
        &self.stated
    }

    /// Who there is.
    pub fn inventory(&self) -> &Inventory {
        self.compiler.inventory()
    }

    /// Brings in what was discovered.
    pub fn discover(&mut self, changes: impl IntoIterator<Item = Change>) -> Step {
        let (stated, hidden) = (&self.stated, &mut self.hidden);
        let others = changes.into_iter().filter_map(|change| {
            if !stated.knows(&change.subject()) {
                return Some(change);
            }
            hidden.apply(change);
            None
        });
        match self.compiler.amend(others) {
            _ if self.is_full => self.retry(),
            Ok(amendment) if amendment.is_empty() => Step::Nothing,
            Ok(amendment) => Step::Amended(amendment),
            Err(_) => self.retry(),
        }
    }

    /// Compiles everything anew, without what nobody has any more.
    pub fn retry(&mut self) -> Step {
        let (policy, stated) = (Arc::clone(&self.policy), self.stated.clone());
        let (hidden, all) = (self.hidden.clone(), self.compiler.inventory().clone());
        match Self::compile(policy, stated, hidden, all) {
            Ok((plane, image)) => {
                *self = plane;
                Step::Anew(Box::new(image))
            }
            Err(refused) => {
                self.is_full = true;
                Step::NoRoom(refused)
            }
        }
    }

    /// Whether what was discovered last has found no room.
    pub fn is_full(&self) -> bool {
        self.is_full
    }

    /// What was discovered by the word of a cluster or an account is void.
    pub fn forget(&mut self, source: &Source) -> Step {
        for subject in source.known(&self.hidden) {
            self.hidden.apply(subject.gone());
        }
        let gone = source.known(self.compiler.inventory());
        self.discover(gone.into_iter().map(Subject::gone))
    }
}

/// A policy and who may be in it, for tests.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use policy_compiler::{Action, Log};
    use smartgroups::{Endpoint, EndpointKind, Selector};

    pub(crate) const CLUSTER: DomainId = DomainId(1);

    pub(crate) fn pod(name: &str, host: u8, team: &str) -> Endpoint {
        let address = format!("100.64.0.{host}/32").parse().unwrap();
        Endpoint {
            addresses: [address].into(),
            cluster: Some("eu".into()),
            namespace: Some("shop".into()),
            labels: [("team", team)].into(),
            ..Endpoint::new(name, EndpointKind::Pod, CLUSTER)
        }
    }

    pub(crate) fn found(name: &str, host: u8, team: &str) -> Change {
        Change::Endpoint(Arc::new(pod(name, host, team)))
    }

    pub(crate) fn policy(hosts: usize) -> Policy {
        let team =
            Selector { labels: [("team".into(), "web".into())].into(), ..Selector::default() };
        let prod = Selector {
            namespace_labels: [("env".into(), "prod".into())].into(),
            ..Selector::default()
        };
        Policy {
            groups: vec![SmartGroup::new("web", vec![team]), SmartGroup::new("prod", vec![prod])],
            rules: vec![],
            snat: vec![],
            default_action: DefaultAction { action: Action::Deny, log: Log::Off },
            domains: vec![CLUSTER],
            capacity: Capacity {
                rules: 10,
                identities: 10,
                hosts,
                prefixes: 100,
                port_classes: 10,
                snat_policies: 10,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{CLUSTER, found, pod, policy};
    use super::*;
    use policy_compiler::Table;
    use smartgroups::{GroupId, Labels, NamespaceId};

    fn groups_of(image: &Image, host: u8) -> Vec<&'static str> {
        let identity = image.identity(CLUSTER, [100, 64, 0, host].into());
        let held = |name: &&'static str| identity.groups.contains(&GroupId::of(name));
        ["web", "prod"].into_iter().filter(held).collect()
    }

    #[test]
    fn what_is_stated_and_what_is_discovered_leave_each_other_alone() {
        let mut stated = Inventory::new();
        stated.insert(pod("file/a", 1, "web"));
        let shop = NamespaceId { cluster: Some("eu".into()), name: "shop".into() };
        let (mut plane, mut image) = Plane::new(policy(100), stated.clone(), []).unwrap();
        assert_eq!(groups_of(&image, 1), ["web"]);
        let prod = Labels::from([("env", "prod")]);
        let step = plane.discover([
            found("eu/shop/b", 2, "web"),
            found("file/a", 9, "web"),
            Change::Gone("file/a".into()),
            Change::Namespace(shop.clone(), prod),
        ]);
        let Step::Amended(amendment) = step else { panic!("{step:?}") };
        image.amend(&amendment);
        for (host, expected) in [(1, &["web", "prod"][..]), (2, &["web", "prod"]), (9, &[])] {
            assert_eq!(groups_of(&image, host), expected, "{host}");
        }
        assert_eq!(plane.discover([found("eu/shop/b", 2, "web")]), Step::Nothing);
        // What was discovered before a start is known at once, and is not the file's.
        let before = [found("file/a", 9, "web"), found("eu/shop/b", 2, "web")];
        let (_, begun) = Plane::new(policy(100), stated, before).unwrap();
        for (host, expected) in [(1, &["web"][..]), (2, &["web"]), (9, &[])] {
            assert_eq!(groups_of(&begun, host), expected, "{host}");
        }
        // Another file: what it no longer states is gone, what was discovered stays.
        let mut other = Inventory::new();
        other.insert(pod("file/c", 3, "web"));
        let (mut plane, image) = plane.restated(policy(100), other).unwrap();
        for (host, expected) in [(1, &[][..]), (2, &["web", "prod"]), (3, &["web", "prod"])] {
            assert_eq!(groups_of(&image, host), expected, "{host}");
        }
        let mut image = image;
        let Step::Amended(amendment) = plane.forget(&Source::Cluster("eu".to_owned())) else {
            panic!("nothing was forgotten")
        };
        image.amend(&amendment);
        for (host, expected) in [(2, &[][..]), (3, &["web"])] {
            assert_eq!(groups_of(&image, host), expected, "{host}");
        }
    }

    #[test]
    fn what_was_discovered_under_a_stated_name_is_known_when_it_is_not_stated_any_more() {
        let stated = |names: &[&str]| {
            let mut stated = Inventory::new();
            for name in names {
                stated.insert(pod(name, 1, "other"));
            }
            stated
        };
        // Discovered before it was stated, and while it was.
        for first in [&["a"][..], &[]] {
            let (mut plane, _) = Plane::new(policy(100), stated(first), []).unwrap();
            plane.discover([found("a", 1, "web")]);
            let (plane, image) = plane.restated(policy(100), stated(&["a"])).unwrap();
            assert_eq!(groups_of(&image, 1), [""; 0], "the file says otherwise");
            let (mut plane, image) = plane.restated(policy(100), stated(&[])).unwrap();
            assert_eq!(groups_of(&image, 1), ["web"], "{first:?}");
            let Step::Amended(_) = plane.discover([Change::Gone("a".into())]) else {
                panic!("it is the cluster's again")
            };
        }
        let (mut plane, _) =
            Plane::new(policy(100), stated(&["a"]), [found("a", 1, "web")]).unwrap();
        plane.discover([Change::Gone("a".into())]);
        let (_, image) = plane.restated(policy(100), stated(&[])).unwrap();
        assert_eq!(groups_of(&image, 1), [""; 0], "it is gone in the cluster too");
    }

    #[test]
    fn without_room_what_is_in_force_stays_and_room_is_found_again() {
        let (mut plane, _) = Plane::new(policy(2), Inventory::new(), []).unwrap();
        let one = |name: &str, host| found(name, host, "web");
        assert!(matches!(plane.discover([one("a", 1), one("b", 2)]), Step::Amended(_)));
        let full = Step::NoRoom(CompileError::NoRoom { table: Table::Hosts, need: 3, room: 2 });
        assert_eq!(plane.discover([one("c", 3)]), full);
        assert_eq!(plane.retry(), full);
        assert!(plane.is_full());
        let step = plane.discover([Change::Gone("a".into())]);
        let Step::Anew(image) = step else { panic!("{step:?}") };
        for (host, expected) in [(1, &[][..]), (2, &["web"]), (3, &["web"])] {
            assert_eq!(groups_of(&image, host), expected, "{host}");
        }
        assert!(!plane.is_full());
        assert!(matches!(plane.discover([Change::Gone("b".into())]), Step::Amended(_)));
    }
}
