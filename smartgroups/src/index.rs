//! Which selectors describe an endpoint, without asking each of them.
//!
//! Every fact that some selector asks for gets a number. An endpoint is then the sorted list of
//! its numbers, and a selector is anchored at the rarest fact it asks for (or the rarest of which it
//! asks for one): only endpoints with that fact look at it at all, and compare numbers, not text. Pods of one deployment differ in
//! nothing a selector asks for, so their answer is computed once.
//!
//! An answer depends on one endpoint alone, which is what a change of one label needs. Anchors
//! are chosen by counts, but only speed depends on them.

use std::collections::HashMap;
use std::rc::Rc;

use ipnet::IpNet;

use crate::interner::{Interner, SetId};
use crate::{DomainId, Endpoint, EndpointKind, Expression, Inventory, Operator, Selector};

/// One fact of an endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Fact<'a> {
    Kind(EndpointKind),
    Domain(DomainId),
    Name(&'a str),
    Pod(&'a str),
    Cluster(&'a str),
    Namespace(&'a str),
    Service(&'a str),
    ServiceAccount(&'a str),
    Account(&'a str),
    Region(&'a str),
    Zone(&'a str),
    Label(&'a str, &'a str),
    /// It has the label, with whatever value.
    Labelled(&'a str),
}

fn facts_of_endpoint(endpoint: &Endpoint) -> impl Iterator<Item = Fact<'_>> {
    [
        Some(Fact::Kind(endpoint.kind)),
        Some(Fact::Domain(endpoint.domain)),
        Some(Fact::Name(&endpoint.name)),
        endpoint.pod_name().map(Fact::Pod),
        endpoint.cluster.as_deref().map(Fact::Cluster),
        endpoint.namespace.as_deref().map(Fact::Namespace),
        endpoint.service.as_deref().map(Fact::Service),
        endpoint.service_account.as_deref().map(Fact::ServiceAccount),
        endpoint.account.as_deref().map(Fact::Account),
        endpoint.region.as_deref().map(Fact::Region),
        endpoint.zone.as_deref().map(Fact::Zone),
    ]
    .into_iter()
    .flatten()
    .chain(endpoint.labels.iter().map(|(key, value)| Fact::Label(key, value)))
    .chain(endpoint.labels.keys().map(|key| Fact::Labelled(key)))
}

/// One of some facts, or none of them.
struct Demand<F> {
    facts: Vec<F>,
    wanted: bool,
}

impl Demand<u32> {
    /// Whether it is met by whoever has these facts, which are sorted.
    fn is_met(&self, facts: &[u32]) -> bool {
        self.facts.iter().any(|fact| facts.binary_search(fact).is_ok()) == self.wanted
    }
}

fn demands_of(selector: &Selector) -> impl Iterator<Item = Demand<Fact<'_>>> {
    let expressions = selector.expressions.iter().map(|Expression { key, operator, values }| {
        let wanted = matches!(operator, Operator::In | Operator::Exists);
        let facts = if operator.has_values() {
            values.iter().map(|value| Fact::Label(key, value)).collect()
        } else {
            vec![Fact::Labelled(key)]
        };
        Demand { facts, wanted }
    });
    let plain = facts_of_selector(selector).map(|fact| Demand { facts: vec![fact], wanted: true });
    plain.chain(expressions)
}

/// What a selector asks for as it stands.
fn facts_of_selector(selector: &Selector) -> impl Iterator<Item = Fact<'_>> {
    [
        selector.kind.map(Fact::Kind),
        selector.scope().map(Fact::Domain),
        selector.name.as_deref().map(Fact::Name),
        selector.pod.as_deref().map(Fact::Pod),
        selector.cluster.as_deref().map(Fact::Cluster),
        selector.namespace.as_deref().map(Fact::Namespace),
        selector.service.as_deref().map(Fact::Service),
        selector.service_account.as_deref().map(Fact::ServiceAccount),
        selector.account.as_deref().map(Fact::Account),
        selector.region.as_deref().map(Fact::Region),
        selector.zone.as_deref().map(Fact::Zone),
    ]
    .into_iter()
    .flatten()
    .chain(selector.labels.iter().map(|(key, value)| Fact::Label(key, value)))
}

/// A selector by the numbers of its facts.
struct Numbered {
    slot: u32,
    demands: Vec<Demand<u32>>,
    cidr: Option<IpNet>,
}

/// The groups an endpoint falls into: with all of its addresses, and with those of its addresses
/// that lie in a prefix.
type Answer = (SetId, Rc<[(IpNet, SetId)]>);

/// Selectors about endpoints, by the facts they ask for.
pub(crate) struct SelectorIndex<'a> {
    numbers: HashMap<Fact<'a>, u32>,
    selectors: Vec<Numbered>,
    /// Selectors by the number of their anchor.
    anchored: Vec<Vec<u32>>,
    /// Selectors that want nothing, and are asked about every endpoint.
    adrift: Vec<u32>,
    answers: HashMap<Vec<u32>, Answer>,
}

impl<'a> SelectorIndex<'a> {
    /// Numbers the facts of all `selectors`, each of which is about endpoints and fills one slot.
    pub(crate) fn new(
        selectors: impl Iterator<Item = (u32, &'a Selector)>,
        inventory: &Inventory,
    ) -> Self {
        let mut numbers = HashMap::new();
        let selectors: Vec<Numbered> = selectors
            .map(|(slot, selector)| {
                let mut number = |fact| {
                    let next = numbers.len() as u32;
                    *numbers.entry(fact).or_insert(next)
                };
                let demands = demands_of(selector).map(|Demand { facts, wanted }| Demand {
                    facts: facts.into_iter().map(&mut number).collect(),
                    wanted,
                });
                Numbered { slot, demands: demands.collect(), cidr: selector.cidr }
            })
            .collect();
        let mut counts = vec![0_usize; numbers.len()];
        for endpoint in inventory.endpoints() {
            for fact in facts_of_endpoint(endpoint) {
                if let Some(number) = numbers.get(&fact) {
                    counts[*number as usize] += 1;
                }
            }
        }
        let (mut anchored, mut adrift) = (vec![Vec::new(); numbers.len()], Vec::new());
        let count = |demand: &&Demand<u32>| -> usize {
            demand.facts.iter().map(|number| counts[*number as usize]).sum()
        };
        for (index, selector) in (0_u32..).zip(&selectors) {
            match selector.demands.iter().filter(|demand| demand.wanted).min_by_key(count) {
                // No endpoint has two values of one label, so none meets it by two anchors.
                Some(rarest) => {
                    for fact in &rarest.facts {
                        anchored[*fact as usize].push(index);
                    }
                }
                None => adrift.push(index),
            }
        }
        Self { numbers, selectors, anchored, adrift, answers: HashMap::new() }
    }

    /// The groups of one endpoint.
    pub(crate) fn answer(&mut self, endpoint: &Endpoint, sets: &mut Interner) -> Answer {
        let mut facts: Vec<u32> = facts_of_endpoint(endpoint)
            .filter_map(|fact| self.numbers.get(&fact).copied())
            .collect();
        facts.sort_unstable();
        if let Some((whole, within)) = self.answers.get(&facts) {
            return (*whole, Rc::clone(within));
        }
        let (mut whole, mut within) = (Vec::new(), Vec::new());
        let anchored = facts.iter().flat_map(|anchor| &self.anchored[*anchor as usize]);
        for index in anchored.chain(&self.adrift) {
            let selector = &self.selectors[*index as usize];
            if selector.demands.iter().all(|demand| demand.is_met(&facts)) {
                match selector.cidr {
                    None => whole.push(selector.slot),
                    Some(cidr) => within.push((cidr.trunc(), sets.set(vec![selector.slot]))),
                }
            }
        }
        let answer: Answer = (sets.set(whole), within.into());
        self.answers.insert(facts, (answer.0, Rc::clone(&answer.1)));
        answer
    }
}
