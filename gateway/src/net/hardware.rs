//! What XDP may do on an interface, for choosing where the program hooks in. The kernel says so
//! itself (generic netlink family `netdev`, Linux 6.3).

use super::dialogue::{Dialogue, Family, NetlinkError};
use super::picture::IfIndex;
use super::wire::{Message, Request, attributes, native_u16, native_u32};

/// Length of `struct genlmsghdr`.
const GENERIC_HEADER: usize = 4;
/// `NETDEV_CMD_DEV_GET`.
const DEV_GET: u8 = 1;
/// `NETDEV_A_DEV_IFINDEX`.
const DEV_IFINDEX: u16 = 1;
/// `NETDEV_A_DEV_XDP_FEATURES`.
const DEV_XDP_FEATURES: u16 = 3;

/// What XDP may do on an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpFeatures {
    /// Run a program in the driver, pass, drop and send back.
    pub native: bool,
    /// Hand a packet to another interface.
    pub redirect: bool,
    /// Take a packet that another interface hands over.
    pub receives_redirected: bool,
    /// Hold a packet in several buffers, as jumbo frames need.
    pub fragments: bool,
}

impl XdpFeatures {
    fn from_bits(bits: u64) -> Self {
        let bit = |number: u32| bits & (1 << number) != 0;
        Self { native: bit(0), redirect: bit(1), receives_redirected: bit(2), fragments: bit(5) }
    }
}

/// What XDP may do on an interface; absent when the kernel is too old to say.
pub fn xdp_features(ifindex: IfIndex) -> Result<Option<XdpFeatures>, NetlinkError> {
    let mut dialogue = Dialogue::open(Family::Generic)?;
    let request = Request::new(libc::GENL_ID_CTRL as u16, libc::NLM_F_ACK)
        .fixed(&[libc::CTRL_CMD_GETFAMILY as u8, 1, 0, 0])
        .string(libc::CTRL_ATTR_FAMILY_NAME as u16, "netdev");
    let mut family = None;
    let asked = dialogue.ask("find the netdev family", request, |message| {
        family = find(message, libc::CTRL_ATTR_FAMILY_ID as u16).and_then(native_u16);
    });
    match asked {
        Ok(()) => {}
        Err(absent) if absent.is_refusal(libc::ENOENT) => return Ok(None),
        Err(error) => return Err(error),
    }
    let Some(family) = family else { return Ok(None) };
    let request = Request::new(family, libc::NLM_F_ACK)
        .fixed(&[DEV_GET, 1, 0, 0])
        .attribute(DEV_IFINDEX, &ifindex.to_ne_bytes());
    let mut features = None;
    dialogue.ask("read what XDP may do on an interface", request, |message| {
        features = find(message, DEV_XDP_FEATURES).and_then(number);
    })?;
    Ok(features.map(XdpFeatures::from_bits))
}

fn find<'a>(message: &Message<'a>, wanted: u16) -> Option<&'a [u8]> {
    let rest = message.payload.get(GENERIC_HEADER..)?;
    attributes(rest).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// A number of the generic families: 8 bytes, or 4 where the kernel saves them.
fn number(value: &[u8]) -> Option<u64> {
    match value.first_chunk() {
        Some(bytes) => Some(u64::from_ne_bytes(*bytes)),
        None => native_u32(value).map(u64::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::{as_root_in_namespace, ip, link_named};

    #[test]
    fn a_number_has_four_or_eight_bytes() {
        assert_eq!(number(&7u32.to_ne_bytes()), Some(7));
        assert_eq!(number(&(1u64 << 40).to_ne_bytes()), Some(1 << 40));
        assert_eq!(number(&[1, 2, 3]), None);
    }

    #[test]
    fn a_veth_pair_can_run_xdp_and_the_loopback_cannot() {
        as_root_in_namespace("what XDP may do", || {
            ip("link add left type veth peer name right");
            let of = |name| xdp_features(link_named(name).ifindex).unwrap();
            // Absent before Linux 6.3, and then for both.
            if let Some(features) = of("left") {
                assert!(features.native && features.redirect);
                assert!(!of("lo").unwrap().native);
            }
        });
    }
}
