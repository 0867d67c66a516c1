//! What an interface is made of, for choosing where the program hooks in.
//!
//! The kernel says itself what XDP may do on an interface (generic netlink family `netdev`,
//! Linux 6.3); the driver's name and the kind explain the choice to the operator, and stand in
//! for it on an older kernel.

use std::path::Path;

use super::dialogue::{Dialogue, Family, NetlinkError};
use super::picture::{IfIndex, Link};
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

/// The facts about one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HardwareFacts {
    /// The kind of a virtual interface (`veth`, `vlan`, `wireguard`); absent for hardware.
    pub kind: Option<String>,
    /// The driver of hardware (`ena`, `virtio_net`); absent for what has none.
    pub driver: Option<String>,
    /// What XDP may do; absent when the kernel is too old to say.
    pub xdp: Option<XdpFeatures>,
}

/// Gathers what is known of an interface.
pub fn hardware_facts(link: &Link) -> Result<HardwareFacts, NetlinkError> {
    Ok(HardwareFacts {
        kind: link.kind.clone(),
        driver: driver("/sys/class/net".as_ref(), &link.name),
        xdp: xdp_features(link.ifindex)?,
    })
}

/// The name of the driver; virtual interfaces have no device and so no driver.
fn driver(classes: &Path, interface: &str) -> Option<String> {
    let link = std::fs::read_link(classes.join(interface).join("device/driver")).ok()?;
    Some(link.file_name()?.to_str()?.to_owned())
}

fn xdp_features(ifindex: IfIndex) -> Result<Option<XdpFeatures>, NetlinkError> {
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
    use crate::net::testing::{as_root_in_namespace, ip, link_named, scratch_directory};

    #[test]
    fn the_driver_is_where_the_device_points() {
        let directory = scratch_directory();
        let device = directory.path().join("eth0/device");
        std::fs::create_dir_all(&device).unwrap();
        std::os::unix::fs::symlink("../../../bus/virtio/drivers/virtio_net", device.join("driver"))
            .unwrap();
        std::fs::create_dir_all(directory.path().join("lo")).unwrap();
        for (interface, expected) in [("eth0", Some("virtio_net")), ("lo", None), ("eth1", None)] {
            assert_eq!(driver(directory.path(), interface).as_deref(), expected, "{interface}");
        }
    }

    #[test]
    fn a_number_has_four_or_eight_bytes() {
        assert_eq!(number(&7u32.to_ne_bytes()), Some(7));
        assert_eq!(number(&(1u64 << 40).to_ne_bytes()), Some(1 << 40));
        assert_eq!(number(&[1, 2, 3]), None);
    }

    #[test]
    fn a_veth_pair_can_run_xdp_and_the_loopback_cannot() {
        as_root_in_namespace("hardware facts", || {
            ip("link add left type veth peer name right");
            let veth = hardware_facts(&link_named("left")).unwrap();
            assert_eq!((veth.kind.as_deref(), veth.driver), (Some("veth"), None));
            let lo = hardware_facts(&link_named("lo")).unwrap();
            assert_eq!(lo.kind, None);
            // Absent before Linux 6.3, and then for both.
            if let Some(features) = veth.xdp {
                assert!(features.native && features.redirect);
                assert!(!lo.xdp.unwrap().native);
            }
        });
    }
}
