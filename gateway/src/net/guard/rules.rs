//! What the guard's two chains say: a pure function of what it is to keep back.

use ipnet::Ipv4Net;

use super::expression::{Expression, Meta, Side, Traffic, Verdict};
use super::{DROPPED, ExemptMark, GuardSpec, UNJUDGED};

/// How long a name of an interface is in the kernel, with zeros to the end.
const NAME_LENGTH: usize = 16;

/// The steps of one rule.
pub(super) type Rule = Vec<Expression>;

/// The rules against leaks, in order: exceptions come before what they except from.
pub(super) fn leaving(spec: &GuardSpec) -> impl Iterator<Item = Rule> + '_ {
    let guarded = spec.interfaces.iter().flat_map(|(name, carries)| {
        let carried =
            carries.iter().map(|prefix| with_prefix(name, Side::Source, *prefix, accept()));
        let kept_back = spec.non_routable.iter();
        let kept_back =
            kept_back.map(|prefix| with_prefix(name, Side::Source, *prefix, drop_in(DROPPED)));
        carried.chain(kept_back)
    });
    let towards = spec.towards.iter().flat_map(|(name, prefixes)| {
        prefixes.iter().map(|prefix| with_prefix(name, Side::Destination, *prefix, accept()))
    });
    // By any other interface the machine's own may leave: it may have such addresses itself.
    let elsewhere = spec.non_routable.iter().map(|prefix| {
        let forwarded =
            [Expression::Load(Meta::InputName), Expression::Differs(vec![0; NAME_LENGTH])];
        forwarded
            .into_iter()
            .chain(of_prefix(Side::Source, *prefix))
            .chain(drop_in(DROPPED))
            .collect()
    });
    // Only where a program is that translates it: the kernel may lead a punted packet elsewhere.
    let punted = spec.translating.iter().filter_map(|ifindex| {
        let number = ifindex.to_ne_bytes().to_vec();
        let leaves = [Expression::Load(Meta::OutputNumber), Expression::Equals(number)];
        Some(leaves.into_iter().chain(marked(spec)?).collect())
    });
    punted.chain(towards).chain(guarded).chain(elsewhere)
}

/// The rules against transit that no program has judged.
pub(super) fn forwarding(spec: &GuardSpec) -> impl Iterator<Item = Rule> + '_ {
    let either_way = spec.attached.iter().flat_map(|interface| {
        [Meta::InputName, Meta::OutputName].map(|meta| {
            let mut rule = vec![Expression::Load(meta), Expression::Equals(name(interface))];
            rule.extend(drop_in(UNJUDGED));
            rule
        })
    });
    marked(spec).into_iter().chain(either_way)
}

/// Lets packets with the exempt mark pass.
pub(super) fn marked(spec: &GuardSpec) -> Option<Rule> {
    let ExemptMark { value, mask } = spec.exempt?;
    let mut rule = vec![
        Expression::Load(Meta::Mark),
        Expression::Mask(mask.to_ne_bytes()),
        Expression::Equals(value.to_ne_bytes().to_vec()),
    ];
    rule.extend(accept());
    Some(rule)
}

fn accept() -> Vec<Expression> {
    vec![Expression::Decide(Verdict::Accept)]
}

/// Drops and counts, in the rule and in a counter that outlives it.
fn drop_in(counter: &str) -> Vec<Expression> {
    vec![
        Expression::Count(Traffic::default()),
        Expression::CountIn(counter.into()),
        Expression::Decide(Verdict::Drop),
    ]
}

fn name(interface: &str) -> Vec<u8> {
    let mut name = interface.as_bytes().to_vec();
    name.resize(NAME_LENGTH, 0);
    name
}

/// Matches IPv4 packets from or to a prefix that leave by this interface.
fn with_prefix(interface: &str, side: Side, prefix: Ipv4Net, then: Vec<Expression>) -> Rule {
    let leaves = [Expression::Load(Meta::OutputName), Expression::Equals(name(interface))];
    leaves.into_iter().chain(of_prefix(side, prefix)).chain(then).collect()
}

/// Matches IPv4 packets from or to a prefix.
fn of_prefix(side: Side, prefix: Ipv4Net) -> [Expression; 5] {
    [
        Expression::Load(Meta::Family),
        Expression::Equals(vec![libc::NFPROTO_IPV4 as u8]),
        Expression::LoadAddress(side),
        Expression::Mask(prefix.netmask().octets()),
        Expression::Equals(prefix.network().octets().to_vec()),
    ]
}

/// A rule as it was written, whatever it has counted since.
pub(super) fn without_counts(rule: &Rule) -> Rule {
    let forget = |expression: &Expression| {
        let counts = matches!(expression, Expression::Count(_));
        if counts { Expression::Count(Traffic::default()) } else { expression.clone() }
    };
    rule.iter().map(forget).collect()
}
