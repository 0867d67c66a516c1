//! Links: a veth pair between two namespaces, set up so that XDP works on it.
//!
//! A frame that XDP redirects into a veth is only taken when the other end polls (NAPI), which it
//! does with GRO on. Merging, which comes with GRO, is kept off by a size that nothing fits into:
//! then every frame in a capture is a frame of the wire. Checksums are computed by the sender in
//! place of being left to a device, because XDP would see, and pass on, half of one. And VLAN tags
//! stay in the frame, where XDP looks for them.
//!
//! With [`Offloads::On`] a link carries TCP as the kernel likes it best: large segments with
//! checksums to be filled in later, as a TC program meets them.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;

use crate::netns::Netns;

/// Whether the kernel may leave work to the devices of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offloads {
    /// Whole checksums and single frames: what XDP needs.
    Off,
    /// Partial checksums, TSO, GSO and merging by GRO: for TC.
    On,
}

/// One end of a link.
#[derive(Clone, Debug)]
pub struct End {
    /// The namespace it is in.
    pub netns: Netns,
    /// Its name there.
    pub name: String,
    /// Its station address.
    pub mac: [u8; 6],
}

/// A veth pair. It goes away with either of its namespaces.
#[derive(Clone, Debug)]
pub struct Link {
    /// Both ends.
    pub ends: [End; 2],
}

impl End {
    /// The station address as it is written.
    pub fn mac(&self) -> String {
        self.mac.map(|byte| format!("{byte:02x}")).join(":")
    }
}

impl Link {
    /// Joins two namespaces and brings both ends up, without addresses.
    ///
    /// # Errors
    ///
    /// When a name is taken, or a setting is refused.
    pub fn new(near: (&Netns, &str), far: (&Netns, &str), offloads: Offloads) -> Result<Self> {
        let ends = [near, far].map(|(netns, name)| End {
            netns: netns.clone(),
            name: name.to_owned(),
            mac: next_mac(),
        });
        let [near, far] = &ends;
        near.netns.ip(&format!(
            "link add name {} address {} type veth peer name {} address {} netns {}\n",
            near.name,
            near.mac(),
            far.name,
            far.mac(),
            far.netns.name(),
        ))?;
        let link = Self { ends };
        link.set_offloads(offloads)?;
        link.set_up(true)?;
        Ok(link)
    }

    /// Changes what the kernel may leave to the devices of this link.
    ///
    /// # Errors
    ///
    /// When a setting is refused.
    pub fn set_offloads(&self, offloads: Offloads) -> Result<()> {
        let (state, largest) = match offloads {
            Offloads::Off => ("off", 1),
            Offloads::On => ("on", 65_536),
        };
        for end in &self.ends {
            let mut arguments =
                vec!["-K", &end.name, "gro", "on", "txvlan", "off", "rxvlan", "off"];
            for feature in ["tx", "tso", "gso"] {
                arguments.extend([feature, state]);
            }
            end.netns.run("ethtool", &arguments)?;
            end.netns.ip(&format!("link set dev {} gro_max_size {largest}\n", end.name))?;
        }
        Ok(())
    }

    /// Brings both ends up, or both down.
    ///
    /// # Errors
    ///
    /// When the interface is gone.
    pub fn set_up(&self, up: bool) -> Result<()> {
        let state = if up { "up" } else { "down" };
        self.each(&format!("{state}\n"))
    }

    /// The largest packet, in bytes, at both ends.
    ///
    /// # Errors
    ///
    /// When the interface does not take it.
    pub fn set_mtu(&self, bytes: u16) -> Result<()> {
        self.each(&format!("mtu {bytes}\n"))
    }

    fn each(&self, setting: &str) -> Result<()> {
        self.ends
            .iter()
            .try_for_each(|end| end.netns.ip(&format!("link set dev {} {setting}", end.name)))
    }
}

/// A VLAN of an interface, as an interface of its own called `name`, up, in another namespace if
/// `into` says so.
///
/// # Errors
///
/// On a kernel without VLANs, which [`crate::skip::Need::Vlan`] finds out.
pub fn vlan(parent: &End, id: u16, name: &str, into: Option<&Netns>) -> Result<()> {
    let home = &parent.netns;
    home.ip(&format!("link add link {} name {name} type vlan id {id}\n", parent.name))?;
    if let Some(into) = into {
        home.ip(&format!("link set dev {name} netns {}\n", into.name()))?;
    }
    into.unwrap_or(home).ip(&format!("link set dev {name} up\n"))
}

/// Locally administered, and never the same twice in a process.
fn next_mac() -> [u8; 6] {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let [a, b, c, d] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    [0x02, 0x51, a, b, c, d]
}
