//! The bytes of a packet, however the hook gives access to them.

use crate::checksum::{update, update_udp};

/// A frame that starts with its Ethernet header. What has a default is as of a frame that a cable
/// carries.
///
/// Offsets are from the start of the frame. A tag that the hardware took off is not in the
/// bytes; [`Frame::vlan_offload`] tells it.
pub trait Frame {
    /// How many bytes there are.
    fn length(&self) -> u32;
    /// `N` bytes at `offset`, or nothing past the end.
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;
    /// Writes `N` bytes at `offset`.
    fn store<const N: usize>(&mut self, offset: u32, bytes: [u8; N]) -> Option<()>;
    /// Applies a change to the transport checksum at `offset`: `address` to the part that the
    /// pseudo header made, `transport` (which includes it) to the whole.
    #[inline(always)]
    fn fix_transport(
        &mut self,
        offset: u32,
        _address: u16,
        transport: u16,
        udp: bool,
    ) -> Option<()> {
        let field = self.load::<2>(offset)?;
        let change = transport as u32;
        self.store(offset, if udp { update_udp(field, change) } else { update(field, change) })
    }
    /// The tag that the hardware took off, if any.
    #[inline(always)]
    fn vlan_offload(&self) -> Option<u16> {
        None
    }
    /// Makes the tag `vlan` (zero: none) out of `was`; the header offset moves with it.
    fn set_vlan(&mut self, was: u16, vlan: u16) -> Option<()>;
    /// Makes of the frame, which is IPv4's, one of so many bytes, all of which are anything. It is
    /// one packet, and no checksum of it is left to whoever sends it.
    fn renew(&mut self, length: u32) -> Option<()>;
    /// How many packets of the wire this is (more than one where segments are still together).
    #[inline(always)]
    fn segments(&self) -> u32 {
        1
    }
    /// How much of each segment is payload, where segments are still together; else zero.
    #[inline(always)]
    fn segment(&self) -> u32 {
        0
    }
}
