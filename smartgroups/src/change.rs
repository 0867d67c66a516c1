//! What discovery finds out, one thing at a time.

use std::sync::Arc;

use crate::{Endpoint, Inventory, Labels, NamespaceId, Text};

/// Something that discovery found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An endpoint is like this, whether or not it was known.
    Endpoint(Arc<Endpoint>),
    /// The endpoint of a name is gone.
    Gone(Text),
    /// A namespace has these labels.
    Namespace(NamespaceId, Labels),
    /// A namespace is gone, or nothing is known of it any more.
    NamespaceGone(NamespaceId),
}

/// What a change is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// The endpoint of a name.
    Endpoint(Text),
    /// A namespace.
    Namespace(NamespaceId),
}

impl Change {
    /// What it is about.
    pub fn subject(&self) -> Subject {
        match self {
            Self::Endpoint(endpoint) => Subject::Endpoint(endpoint.name.clone()),
            Self::Gone(name) => Subject::Endpoint(name.clone()),
            Self::Namespace(id, _) | Self::NamespaceGone(id) => Subject::Namespace(id.clone()),
        }
    }
}

impl Subject {
    /// That it is gone.
    pub fn gone(self) -> Change {
        match self {
            Self::Endpoint(name) => Change::Gone(name),
            Self::Namespace(id) => Change::NamespaceGone(id),
        }
    }
}

impl Inventory {
    /// Brings a change in.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Endpoint(endpoint) => drop(self.insert(endpoint)),
            Change::Gone(name) => drop(self.remove(&name)),
            Change::Namespace(id, labels) => drop(self.insert_namespace(id, labels)),
            Change::NamespaceGone(id) => drop(self.remove_namespace(&id)),
        }
    }

    /// Whether it knows something of a subject.
    pub fn knows(&self, subject: &Subject) -> bool {
        match subject {
            Subject::Endpoint(name) => self.get(name).is_some(),
            Subject::Namespace(id) => self.namespace(id).is_some(),
        }
    }

    /// All endpoints whose names begin so.
    pub fn beginning_with(&self, start: &str) -> Vec<Subject> {
        let from = self.names_from(start).take_while(|name| name.starts_with(start));
        from.map(|name| Subject::Endpoint(Text::clone(name))).collect()
    }

    /// All that is known of a cluster.
    pub fn of_cluster(&self, cluster: &str) -> Vec<Subject> {
        let is_of = |name: &Option<Text>| name.as_deref() == Some(cluster);
        let endpoints = self.endpoints().filter(|endpoint| is_of(&endpoint.cluster));
        let endpoints = endpoints.map(|endpoint| Subject::Endpoint(endpoint.name.clone()));
        let namespaces = self.namespaces().filter(|(id, _)| is_of(&id.cluster));
        endpoints.chain(namespaces.map(|(id, _)| Subject::Namespace(id.clone()))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DomainId, EndpointKind};

    #[test]
    fn those_whose_names_begin_alike_are_found_and_no_others() {
        let mut inventory = Inventory::new();
        for name in ["aws:a", "aws:a.b/1", "aws:a/1", "aws:a/2", "aws:a0/1", "a/1"] {
            inventory.insert(Endpoint::new(name, EndpointKind::Vm, DomainId::FABRIC));
        }
        let named = |name: &str| Subject::Endpoint(name.into());
        assert_eq!(inventory.beginning_with("aws:a/"), [named("aws:a/1"), named("aws:a/2")]);
        assert_eq!(inventory.beginning_with("aws:b/"), []);
        assert_eq!(inventory.beginning_with("").len(), inventory.len());
    }
}
