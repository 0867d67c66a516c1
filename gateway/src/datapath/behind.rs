//! Which non-routable sources may come in by a routable attachment.
//!
//! `sources` that hold a non-routable prefix without being part of one (`0.0.0.0/0`, which is what
//! an attachment has that states none) mean the routable fabric: a pod's address that comes from
//! there is forged. So the table of sources says of every such prefix that it is [`NOBODY`]'s, but
//! for what the attachment carries. The datapath goes by the longest prefix and knows nothing of
//! this.

use ipnet::Ipv4Net;
use std::collections::BTreeMap;

/// No attachment has this number.
pub(crate) const NOBODY: u16 = 0;

/// Source prefixes by place (`forward::port`), and the attachments that they are behind.
pub(crate) type Sources = BTreeMap<(u32, Ipv4Net), u16>;

/// Takes the non-routable prefixes out of the sources of routable attachments. `routable` has what
/// each of these carries.
pub(crate) fn confine(
    sources: &mut Sources,
    non_routable: &[Ipv4Net],
    routable: &BTreeMap<u16, Vec<Ipv4Net>>,
) {
    let stated = sources.clone();
    // Of an address that another prefix is longer for, that one decides.
    let decides = |place: u32, whole: Ipv4Net, part: Ipv4Net| {
        let mut others = stated.keys().filter(|(at, other)| *at == place && other.contains(&part));
        others.all(|(_, other)| other.contains(&whole))
    };
    for (&(place, whole), &number) in &stated {
        let Some(carries) = routable.get(&number) else { continue };
        if non_routable.iter().any(|prefix| prefix.contains(&whole)) {
            continue;
        }
        for carried in carries {
            if whole.contains(carried) && decides(place, whole, *carried) {
                sources.entry((place, *carried)).or_insert(number);
            }
        }
        for hole in non_routable {
            let is_carried = carries.iter().any(|carried| carried.contains(hole));
            if whole.contains(hole) && !is_carried && decides(place, whole, *hole) {
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
