//! Which selectors describe an endpoint, without asking each of them.
//!
//! Every fact that some selector asks for gets a number. An endpoint is then the sorted list of
//! its numbers, and a selector is anchored at the rarest fact it asks for (or the rarest of which it
//! asks for one): only endpoints with that fact look at it at all, and compare numbers, not text. Pods of one deployment differ in
//! nothing a selector asks for: they are one class, whose answer is computed once.
//!
//! An answer depends on one endpoint and its namespace alone, which is what a change of one label
//! needs. Anchors are chosen by counts, but only speed depends on them.

use std::collections::HashMap;
use std::sync::Arc;

use ipnet::IpNet;

use crate::interner::{Interner, SetId};
use crate::{
    DomainId, Endpoint, EndpointKind, Expression, Inventory, Labels, Operator, Selector, Text,
    Truth,
};

/// One fact of an endpoint.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Fact {
    Kind(EndpointKind),
    Domain(DomainId),
    Name(Text),
    Pod(Text),
    Id(Text),
    Cluster(Text),
    Namespace(Text),
    Service(Text),
    ServiceAccount(Text),
    WorkloadKind(Text),
    Workload(Text),
    Account(Text),
    Region(Text),
    Zone(Text),
    Label(Text, Text),
    /// It has the label, with whatever value.
    Labelled(Text),
    NamespaceLabel(Text, Text),
    NamespaceLabelled(Text),
}

/// The fact that an endpoint is in a namespace whose labels are known.
const NAMESPACE_KNOWN: u32 = 0;
/// The fact that it is in one of which nothing is known.
const NAMESPACE_UNKNOWN: u32 = 1;
/// The number of the first other fact.
const FIRST: u32 = 2;

fn facts_of_endpoint(endpoint: &Endpoint) -> impl Iterator<Item = Fact> {
    let workload = endpoint.workload.as_ref();
    [
        Some(Fact::Kind(endpoint.kind)),
        Some(Fact::Domain(endpoint.domain)),
        Some(Fact::Name(endpoint.name.clone())),
        // Of one that is called what its name is, once.
        endpoint.given_name.clone().filter(|name| *name != endpoint.name).map(Fact::Name),
        endpoint.pod_name().map(|name| Fact::Pod(name.into())),
        endpoint.id.clone().map(Fact::Id),
        endpoint.cluster.clone().map(Fact::Cluster),
        endpoint.namespace.clone().map(Fact::Namespace),
        endpoint.service_account.clone().map(Fact::ServiceAccount),
        workload.map(|workload| Fact::WorkloadKind(workload.kind.clone())),
        workload.map(|workload| Fact::Workload(workload.name.clone())),
        endpoint.account.clone().map(Fact::Account),
        endpoint.region.clone().map(Fact::Region),
        endpoint.zone.clone().map(Fact::Zone),
    ]
    .into_iter()
    .flatten()
    .chain(endpoint.services.iter().cloned().map(Fact::Service))
    .chain(endpoint.labels.iter().flat_map(|(key, value)| {
        [Fact::Label(key.clone(), value.clone()), Fact::Labelled(key.clone())]
    }))
}

fn facts_of_namespace(labels: &Labels) -> impl Iterator<Item = Fact> {
    labels.iter().flat_map(|(key, value)| {
        [Fact::NamespaceLabel(key.clone(), value.clone()), Fact::NamespaceLabelled(key.clone())]
    })
}

/// One of some facts, or none of them.
struct Demand<F> {
    facts: Vec<F>,
    wanted: bool,
    of_namespace: bool,
}

impl Demand<u32> {
    /// Whether it is met by whoever has these facts, which are sorted.
    fn is_met(&self, facts: &[u32]) -> Truth {
        let has = |fact: &u32| facts.binary_search(fact).is_ok();
        if self.of_namespace && has(&NAMESPACE_UNKNOWN) {
            return Truth::Maybe;
        }
        let is_asked = !self.of_namespace || has(&NAMESPACE_KNOWN);
        Truth::of(is_asked && self.facts.iter().any(has) == self.wanted)
    }
}

fn demands_of(selector: &Selector) -> impl Iterator<Item = Demand<Fact>> {
    let demands = |expressions: &[Expression], of_namespace: bool| {
        let demand = move |Expression { key, operator, values }: &Expression| {
            let key = Text::from(key.as_str());
            let label = |value: &String| {
                let (key, value) = (key.clone(), value.as_str().into());
                if of_namespace {
                    Fact::NamespaceLabel(key, value)
                } else {
                    Fact::Label(key, value)
                }
            };
            let facts = if operator.has_values() {
                values.iter().map(label).collect()
            } else if of_namespace {
                vec![Fact::NamespaceLabelled(key)]
            } else {
                vec![Fact::Labelled(key)]
            };
            let wanted = matches!(operator, Operator::In | Operator::Exists);
            Demand { facts, wanted, of_namespace }
        };
        expressions.iter().map(demand).collect::<Vec<_>>()
    };
    let own = demands(&selector.expressions, false);
    let of_namespace = demands(&selector.namespace_expressions, true);
    let plain = facts_of_selector(selector).map(|fact| {
        let of_namespace = matches!(fact, Fact::NamespaceLabel(..));
        Demand { facts: vec![fact], wanted: true, of_namespace }
    });
    plain.chain(own).chain(of_namespace)
}

/// What a selector asks for as it stands.
fn facts_of_selector(selector: &Selector) -> impl Iterator<Item = Fact> {
    let text = |text: &Option<String>| text.as_deref().map(Text::from);
    let pair = |(key, value): (&String, &String)| (key.as_str().into(), value.as_str().into());
    [
        selector.kind.map(Fact::Kind),
        selector.scope().map(Fact::Domain),
        text(&selector.name).map(Fact::Name),
        text(&selector.pod).map(Fact::Pod),
        selector.site.as_ref().map(|_| Fact::Kind(EndpointKind::Site)),
        text(&selector.site).map(Fact::Name),
        selector.fqdn.as_ref().map(|_| Fact::Kind(EndpointKind::Fqdn)),
        selector.fqdn.as_deref().map(|fqdn| Fact::Name(Endpoint::name_of_fqdn(fqdn))),
        text(&selector.id).map(Fact::Id),
        text(&selector.cluster).map(Fact::Cluster),
        text(&selector.namespace).map(Fact::Namespace),
        text(&selector.service).map(Fact::Service),
        text(&selector.service_account).map(Fact::ServiceAccount),
        text(&selector.workload_kind).map(Fact::WorkloadKind),
        text(&selector.workload).map(Fact::Workload),
        text(&selector.account).map(Fact::Account),
        text(&selector.region).map(Fact::Region),
        text(&selector.zone).map(Fact::Zone),
    ]
    .into_iter()
    .flatten()
    .chain(selector.labels.iter().map(pair).map(|(key, value)| Fact::Label(key, value)))
    .chain(
        (selector.namespace_labels.iter().map(pair))
            .map(|(key, value)| Fact::NamespaceLabel(key, value)),
    )
}

/// A selector by the numbers of its facts.
struct Numbered {
    slot: u32,
    demands: Vec<Demand<u32>>,
    cidr: Option<IpNet>,
}

/// Slots that somebody fills.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Slots {
    /// For certain.
    pub(crate) certain: SetId,
    /// Those, and others that it may fill; nothing where nothing is in doubt.
    pub(crate) doubted: SetId,
}

impl Slots {
    pub(crate) fn new(certain: SetId, possible: SetId) -> Self {
        let doubted = if possible == certain { SetId::EMPTY } else { possible };
        Self { certain, doubted }
    }

    /// What is filled for certain or in doubt.
    pub(crate) fn possible(self) -> SetId {
        if self.doubted == SetId::EMPTY { self.certain } else { self.doubted }
    }

    pub(crate) fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// What the endpoints of a class fill: with all of their addresses, and with those of their
/// addresses that lie in a prefix.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) whole: Slots,
    pub(crate) within: Arc<[(IpNet, Slots)]>,
}

/// Endpoints that no selector tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Class(u32);

/// Selectors about endpoints, by the facts they ask for.
pub(crate) struct SelectorIndex {
    numbers: HashMap<Fact, u32>,
    selectors: Vec<Numbered>,
    /// Selectors by the number of their anchor.
    anchored: Vec<Vec<u32>>,
    /// Selectors that want nothing, and are asked about every endpoint.
    adrift: Vec<u32>,
    classes: HashMap<Arc<[u32]>, Class>,
    /// By class: its facts, and its answer if it was asked for.
    answers: Vec<(Arc<[u32]>, Option<Answer>)>,
}

impl SelectorIndex {
    /// Numbers the facts of all `selectors`, each of which is about endpoints and fills one slot.
    /// Also the classes of all endpoints, in their order.
    pub(crate) fn new<'a>(
        selectors: impl Iterator<Item = (u32, &'a Selector)>,
        inventory: &Inventory,
    ) -> (Self, Vec<Class>) {
        let mut numbers = HashMap::new();
        let selectors: Vec<Numbered> = selectors
            .map(|(slot, selector)| {
                let mut number = |fact| {
                    let next = FIRST + numbers.len() as u32;
                    *numbers.entry(fact).or_insert(next)
                };
                let demands = demands_of(selector).map(|demand| Demand {
                    facts: demand.facts.into_iter().map(&mut number).collect(),
                    wanted: demand.wanted,
                    of_namespace: demand.of_namespace,
                });
                Numbered { slot, demands: demands.collect(), cidr: selector.cidr }
            })
            .collect();
        let mut index = Self {
            anchored: vec![Vec::new(); FIRST as usize + numbers.len()],
            adrift: Vec::new(),
            classes: HashMap::new(),
            answers: Vec::new(),
            numbers,
            selectors,
        };
        let classes: Vec<Class> = inventory
            .endpoints()
            .map(|endpoint| index.class(endpoint, inventory.namespace_of(endpoint)))
            .collect();
        index.anchor(&classes);
        (index, classes)
    }

    /// Ties every selector to the demand that the fewest endpoints can meet.
    fn anchor(&mut self, classes: &[Class]) {
        let mut sizes = vec![0_usize; self.answers.len()];
        for class in classes {
            sizes[class.0 as usize] += 1;
        }
        let mut counts = vec![0_usize; self.anchored.len()];
        for ((facts, _), size) in self.answers.iter().zip(sizes) {
            for fact in facts.iter() {
                counts[*fact as usize] += size;
            }
        }
        // Whoever may meet a demand has one of these.
        let anchors = |demand: &Demand<u32>| {
            let unknown = demand.of_namespace.then_some(NAMESPACE_UNKNOWN);
            demand.facts.iter().copied().chain(unknown).collect::<Vec<_>>()
        };
        for (index, selector) in (0_u32..).zip(&self.selectors) {
            let wanted = selector.demands.iter().filter(|demand| demand.wanted).map(anchors);
            let rarest = wanted.min_by_key(|anchors| {
                anchors.iter().map(|fact| counts[*fact as usize]).sum::<usize>()
            });
            match rarest {
                // No endpoint has two values of one label, so none meets it by two anchors.
                Some(rarest) => {
                    for fact in rarest {
                        self.anchored[fact as usize].push(index);
                    }
                }
                None => self.adrift.push(index),
            }
        }
    }

    /// The class of an endpoint in a namespace ([`Inventory::namespace_of`]).
    pub(crate) fn class(
        &mut self,
        endpoint: &Endpoint,
        namespace: Option<Option<&Labels>>,
    ) -> Class {
        let known = namespace
            .map(|labels| if labels.is_some() { NAMESPACE_KNOWN } else { NAMESPACE_UNKNOWN });
        let of_namespace = namespace.flatten().into_iter().flat_map(facts_of_namespace);
        let facts = facts_of_endpoint(endpoint).chain(of_namespace);
        let mut facts: Vec<u32> =
            facts.filter_map(|fact| self.numbers.get(&fact).copied()).chain(known).collect();
        facts.sort_unstable();
        if let Some(class) = self.classes.get(facts.as_slice()) {
            return *class;
        }
        let facts: Arc<[u32]> = facts.into();
        let class = Class(self.answers.len() as u32);
        self.classes.insert(Arc::clone(&facts), class);
        self.answers.push((facts, None));
        class
    }

    /// What the endpoints of a class fill.
    pub(crate) fn answer(&mut self, class: Class, sets: &mut Interner) -> Answer {
        let (facts, known) = &self.answers[class.0 as usize];
        if let Some(answer) = known {
            return answer.clone();
        }
        let (mut certain, mut possible, mut within) = (Vec::new(), Vec::new(), Vec::new());
        let anchored = facts.iter().flat_map(|anchor| &self.anchored[*anchor as usize]);
        for index in anchored.chain(&self.adrift) {
            let selector = &self.selectors[*index as usize];
            let demands = selector.demands.iter().map(|demand| demand.is_met(facts));
            let is_certain = match demands.min().unwrap_or(Truth::Yes) {
                Truth::No => continue,
                Truth::Maybe => false,
                Truth::Yes => true,
            };
            let slot = selector.slot;
            match selector.cidr {
                None => {
                    possible.push(slot);
                    certain.extend(is_certain.then_some(slot));
                }
                Some(cidr) => {
                    let one = sets.set(vec![slot]);
                    let certain = if is_certain { one } else { SetId::EMPTY };
                    within.push((cidr.trunc(), Slots::new(certain, one)));
                }
            }
        }
        let whole = Slots::new(sets.set(certain), sets.set(possible));
        let answer = Answer { whole, within: within.into() };
        self.answers[class.0 as usize].1 = Some(answer.clone());
        answer
    }
}
