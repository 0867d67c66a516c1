//! Addresses of documents that no packet of this gateway can have: what is said of them.

use api::document::{ANYWHERE, FABRIC};
use api::value::{Prefix, Prefix4};
use ipnet::IpNet;

use super::check::{intersection, is_covered, join};
use super::decode::choice;
use super::settings::{Attachment, Gateway};

/// Whoever leaves `domain` out of something non-routable means a pod network, and gets the
/// fabric, where no packet has such an address. What to say, unless an attachment of the
/// fabric states that it has.
pub(super) fn lost(
    gateway: &Gateway,
    domain_is_stated: bool,
    field: &str,
    prefix: Prefix,
) -> Option<String> {
    let IpNet::V4(net) = prefix.net() else { return None };
    if domain_is_stated || !is_covered(net, &gateway.non_routable) {
        return None;
    }
    let meets = |prefixes: &[Prefix4]| {
        let narrow = prefixes.iter().filter(|prefix| **prefix != Prefix4::ALL);
        narrow.map(|prefix| prefix.net()).any(|other| intersection(other, net).is_some())
    };
    let has = |attachment: &&Attachment| {
        let Attachment { sources, carries, .. } = attachment;
        // Wider sources of the fabric do not mean what is non-routable in them.
        let fabric = attachment.is_fabric();
        let means = |source: &&Prefix4| !fabric || is_covered(source.net(), &gateway.non_routable);
        let sources: Vec<_> = sources.iter().filter(means).copied().collect();
        meets(&sources) || meets(carries) || meets(attachment.routes())
    };
    let (fabric, others): (Vec<_>, Vec<_>) =
        gateway.attachments.iter().partition(|attachment| attachment.is_fabric());
    if fabric.iter().any(has) {
        return None;
    }
    let mut domains: Vec<&str> =
        others.iter().filter(|one| has(one)).map(|one| one.domain.as_str()).collect();
    domains.sort_unstable();
    domains.dedup();
    let right: Vec<String> = domains.iter().map(|name| format!("domain: {name}")).collect();
    let right = match right.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => "the `domain` of a pod network".to_owned(),
        right => choice(right),
    };
    Some(format!(
        "`{field}` is {prefix}, non-routable, and without a `domain` it is of the fabric, \
         where no packet has it; expected {right} beside it"
    ))
}

/// What to say of a prefix that a group takes or excludes.
pub(super) fn group(
    gateway: &Gateway,
    excludes: bool,
    domain_is_stated: bool,
    cidr: Prefix,
) -> Option<String> {
    let net = match cidr.net() {
        IpNet::V4(net) => net,
        IpNet::V6(_) => {
            let without = if excludes {
                "which no packet is kept out"
            } else {
                "which no packet is from or to it"
            };
            return Some(format!(
                "`cidr` is {cidr}, and IPv6 is not forwarded yet; expected an IPv4 prefix, without \
                 {without}"
            ));
        }
    };
    let has_pods = gateway.attachments.iter().any(|attachment| !attachment.is_fabric());
    if net.prefix_len() == 0 && !domain_is_stated && has_pods {
        if excludes {
            return Some(format!(
                "`cidr` is {cidr}, and without a `domain` it is of the fabric: no pod of another \
                 domain is excluded; expected `domain: {FABRIC}` if that is meant, or the `domain` \
                 of those who are"
            ));
        }
        return Some(format!(
            "`cidr` is {cidr}, and without a `domain` it is of the fabric: no pod of another domain \
             is in the group; expected `domain: {FABRIC}` if that is meant, or in the rules \
             `{ANYWHERE}`"
        ));
    }
    lost(gateway, domain_is_stated, "cidr", cidr)
}

/// What to say of an endpoint's address that no attachment of its domain has behind it or ahead of
/// it. A domain without an attachment is not used yet, and nothing is said of it.
pub(super) fn beyond(
    gateway: &Gateway,
    domain: &str,
    field: &str,
    prefix: Prefix,
) -> Option<String> {
    let IpNet::V4(net) = prefix.net() else { return None };
    let attachments = || gateway.attachments.iter().filter(|one| one.domain == domain);
    let known = |one: &Attachment| {
        one.sources.iter().chain(one.routes()).any(|other| intersection(other.net(), net).is_some())
    };
    if attachments().next().is_none() || attachments().any(known) {
        return None;
    }
    let mut sources: Vec<Prefix4> = attachments().flat_map(|one| one.sources.clone()).collect();
    sources.sort_unstable_by_key(|prefix| prefix.net());
    sources.dedup();
    Some(format!(
        "`{field}` is {prefix}, outside the `sources` of every attachment of domain {domain}, so its \
         packets are dropped; expected a part of {}, or wider `sources`",
        join(&sources)
    ))
}
