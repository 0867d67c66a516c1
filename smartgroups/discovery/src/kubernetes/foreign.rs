//! Every reader of what an API server sends, for whoever feeds them bytes that no API server sent.

use std::collections::BTreeSet;

use smartgroups::{Change, DomainId};

use super::object::{EndpointSlice, Namespace, Node, Object, Pod, Service, Update};
use super::view::View;
use super::watch::{Word, page, read};
use super::{ClusterName, Scope, token};

/// Reads bytes as the lines of a watch, as a page of a list and as a token, and takes in what they say.
/// Each line is taken for every kind: what a server says need not be what was asked for.
///
/// # Panics
///
/// When changes do not follow from each other, or when something stays of objects that are gone.
pub fn answers(bytes: &[u8]) {
    let Ok(cluster) = ClusterName::new("c") else { return };
    let mut known = Known {
        view: View::new(Scope { cluster, pods: DomainId(1), nodes: DomainId::FABRIC }),
        names: BTreeSet::new(),
    };
    for line in bytes.split(|byte| *byte == b'\n') {
        known.line::<Pod>(line);
        known.line::<Service>(line);
        known.line::<EndpointSlice>(line);
        known.line::<Node>(line);
        known.line::<Namespace>(line);
    }
    known.page::<Pod>(bytes);
    known.page::<EndpointSlice>(bytes);
    known.nothing::<Pod>();
    known.nothing::<Service>();
    known.nothing::<EndpointSlice>();
    known.nothing::<Node>();
    known.nothing::<Namespace>();
    assert!(known.names.is_empty(), "{:?} stay", known.names);
    assert_eq!(known.view.index_sizes(), [0; 3], "an index knows what is gone");
    if let Ok(text) = std::str::from_utf8(bytes) {
        token::expiry(text);
    }
}

/// A view, and the names of the endpoints that it told of.
struct Known {
    view: View,
    names: BTreeSet<String>,
}

impl Known {
    fn line<T: Object>(&mut self, line: &[u8]) {
        if let Ok(Word::Event { event, .. }) = read::<T>(line) {
            self.tell(Update::Changed(vec![event]));
        }
    }

    fn page<T: Object>(&mut self, bytes: &[u8]) {
        if let Ok((objects, _)) = page::<T>(bytes) {
            self.tell(Update::Listed(objects));
        }
    }

    fn nothing<T: Object>(&mut self) {
        self.tell(Update::<T>::Listed(Vec::new()));
    }

    fn tell<T: Object>(&mut self, update: Update<T>) {
        let mut changes = Vec::new();
        self.view.update(T::news(update), &mut changes);
        for change in changes {
            match change {
                Change::Endpoint(endpoint) => {
                    assert!(!endpoint.addresses.is_empty(), "{endpoint:?} is nowhere");
                    self.names.insert(endpoint.name.to_string());
                }
                Change::Gone(name) => assert!(self.names.remove(&*name), "{name} was not there"),
                Change::Namespace(..) | Change::NamespaceGone(_) => {}
            }
        }
    }
}
