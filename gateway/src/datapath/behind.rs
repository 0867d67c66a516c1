//! Which sources may come in by an attachment although another prefix says more of them.
//!
//! Within a domain a source comes in where the longest prefix that holds it is stated, at all of
//! those places if they are several: behind an uplink without `sources` is everything but what is
//! stated to be behind others, by their `sources` or, if they state none, by their `routes`. What comes by another way says that it is somebody else.
//!
//! `sources` that hold a non-routable prefix without being part of one (`0.0.0.0/0`, which is what
//! an attachment has that states none) mean the routable fabric: a pod's address that comes from
//! there is forged. So the table of sources says of every such prefix that it is [`NOBODY`]'s, but
//! for what the attachment carries. The datapath goes by the longest prefix and knows nothing of
//! this.

use ipnet::Ipv4Net;
use std::collections::{BTreeMap, BTreeSet};

/// No attachment has this number.
pub(crate) const NOBODY: u16 = 0;

/// Source prefixes by place (`forward::port`), and the attachments that they are behind.
pub(crate) type Sources = BTreeMap<(u32, Ipv4Net), u16>;

/// What every attachment of a domain states, with the places of the attachments that do; an
/// interface that is missing is no place, and what is behind it comes by no other.
pub(crate) type Stated = BTreeMap<Ipv4Net, BTreeSet<u32>>;

/// Takes out of the sources of every place what is behind others of its domain. `domain` is that
/// of an attachment.
pub(crate) fn part(
    sources: &mut Sources,
    stated: &BTreeMap<u16, Stated>,
    domain: impl Fn(u16) -> u16,
) {
    let here = sources.clone();
    for (&(place, whole), &number) in &here {
        let Some(stated) = stated.get(&domain(number)) else { continue };
        // Prefixes are in the order of their networks.
        let first = Ipv4Net::new_assert(whole.network(), 0);
        let last = Ipv4Net::new_assert(whole.broadcast(), 32);
        for (&other, places) in stated.range(first..=last) {
            let is_part = whole.contains(&other) && other != whole;
            if is_part && !places.contains(&place) && decides(&here, place, whole, other) {
                sources.entry((place, other)).or_insert(NOBODY);
            }
        }
    }
}

/// Whether of the prefixes at a place that hold `part` none is longer than `whole`.
fn decides(sources: &Sources, place: u32, whole: Ipv4Net, part: Ipv4Net) -> bool {
    let longer = whole.prefix_len() + 1..=part.prefix_len();
    let holding = |length| Ipv4Net::new_assert(part.network(), length).trunc();
    longer.map(holding).all(|other| !sources.contains_key(&(place, other)))
}

/// Takes the non-routable prefixes out of the sources of routable attachments. `routable` has what
/// each of these carries.
pub(crate) fn confine(
    sources: &mut Sources,
    non_routable: &[Ipv4Net],
    routable: &BTreeMap<u16, Vec<Ipv4Net>>,
) {
    let stated = sources.clone();
    for (&(place, whole), &number) in &stated {
        let Some(carries) = routable.get(&number) else { continue };
        if non_routable.iter().any(|prefix| prefix.contains(&whole)) {
            continue;
        }
        for carried in carries {
            if whole.contains(carried) && decides(&stated, place, whole, *carried) {
                sources.entry((place, *carried)).or_insert(number);
            }
        }
        for hole in non_routable {
            let is_carried = carries.iter().any(|carried| carried.contains(hole));
            if whole.contains(hole) && !is_carried && decides(&stated, place, whole, *hole) {
                sources.entry((place, *hole)).or_insert(NOBODY);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(text: &str) -> Vec<Ipv4Net> {
        text.split_whitespace().map(|net| net.parse().unwrap()).collect()
    }

    /// The attachment of an address at a place, by the longest prefix.
    fn of(sources: &Sources, place: u32, address: &str) -> Option<u16> {
        let address: std::net::Ipv4Addr = address.parse().unwrap();
        let found = sources.iter().filter(|((at, net), _)| *at == place && net.contains(&address));
        found.max_by_key(|((_, net), _)| net.prefix_len()).map(|(_, number)| *number)
    }

    #[test]
    fn a_source_comes_in_where_the_longest_prefix_for_it_is_stated() {
        let mut sources = Sources::new();
        let mut stated: BTreeMap<u16, Stated> = BTreeMap::new();
        for (place, domain, text) in [
            (1, 0, "0.0.0.0/0"),               // the internet
            (2, 0, "10.0.0.0/8"),              // a transit
            (3, 0, "10.1.0.0/16 10.2.0.0/16"), // nodes
            (4, 0, "10.2.0.0/16"),             // by two ways
            (5, 7, "10.3.0.0/16"),             // of another domain
            (0, 0, "10.4.0.0/16"),             // its interface is missing
        ] {
            for net in nets(text) {
                stated
                    .entry(domain)
                    .or_default()
                    .entry(net)
                    .or_default()
                    .extend((place != 0).then_some(place));
                if place != 0 {
                    sources.insert((place, net), place as u16);
                }
            }
        }
        // One that is stated at two places of which one is an uplink.
        sources.insert((1, "10.1.9.0/24".parse().unwrap()), 1);
        part(&mut sources, &stated, |number| if number == 5 { 7 } else { 0 });
        for (address, ways) in [
            ("198.51.100.9", vec![1]),
            ("10.9.0.1", vec![2]),
            ("10.1.0.1", vec![3]),
            ("10.1.9.1", vec![1, 3]),
            ("10.2.0.1", vec![3, 4]),
            ("10.3.0.1", vec![2, 5]),
            ("10.4.0.1", vec![]),
        ] {
            let by = |place: &u32| of(&sources, *place, address).is_some_and(|n| n != NOBODY);
            assert_eq!((1..=5).filter(by).collect::<Vec<_>>(), ways, "{address}");
        }
    }

    #[test]
    fn a_non_routable_source_comes_in_only_where_it_is_stated_or_carried() {
        let mut sources = Sources::new();
        for (place, number, stated) in [
            // One arm: pods, the same network's routable addresses, everything else.
            (1, 1, "100.64.0.0/16 10.20.0.0/16"),
            (1, 2, "0.0.0.0/0"),
            // A transit that carries a part, and one that states another.
            (2, 3, "100.0.0.0/8"),
            (3, 4, "10.0.0.0/8 100.70.0.0/16"),
            // Another pod network with everything behind it.
            (4, 5, "0.0.0.0/0"),
        ] {
            sources.extend(nets(stated).into_iter().map(|net| ((place, net), number)));
        }
        let routable =
            BTreeMap::from([(2, nets("100.64.7.0/24")), (3, nets("100.80.0.0/12")), (4, vec![])]);
        confine(&mut sources, &nets("100.64.0.0/10 100.88.0.0/16"), &routable);
        for (place, address, expected) in [
            (1, "100.64.0.1", Some(1)),
            (1, "100.64.7.1", Some(1)), // carried outwards, and a pod's all the same
            (1, "100.65.0.0", Some(NOBODY)),
            (1, "100.63.255.255", Some(2)),
            (1, "100.127.255.255", Some(NOBODY)),
            (1, "100.128.0.0", Some(2)),
            (2, "100.64.0.1", Some(NOBODY)),
            (2, "100.80.0.0", Some(3)),
            (2, "100.88.0.1", Some(3)), // non-routable twice, and carried whole
            (2, "100.96.0.0", Some(NOBODY)),
            (2, "100.1.0.0", Some(3)),
            (3, "100.70.0.1", Some(4)),
            (3, "100.71.0.1", None),
            (4, "100.64.0.1", Some(5)),
        ] {
            assert_eq!(of(&sources, place, address), expected, "{address} at {place}");
        }
    }
}
