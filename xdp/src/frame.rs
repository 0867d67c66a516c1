//! The bytes of a packet, however the hook gives access to them.

/// A frame that starts with its Ethernet header.
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
    fn fix_transport(&mut self, offset: u32, address: u16, transport: u16, udp: bool)
    -> Option<()>;
    /// The tag that the hardware took off, if any.
    fn vlan_offload(&self) -> Option<u16>;
    /// Makes the tag `vlan` (zero: none) out of `was`; the header offset moves with it.
    fn set_vlan(&mut self, was: u16, vlan: u16) -> Option<()>;
    /// Cuts or extends the frame at its end; new bytes are anything.
    fn resize(&mut self, length: u32) -> Option<()>;
    /// How many packets of the wire this is (more than one where segments are still together).
    fn segments(&self) -> u32;
    /// How much of each segment is payload, where segments are still together; else zero.
    fn segment(&self) -> u32;
    /// Whether somebody behind this hook may be about to finish the transport checksum.
    fn may_be_unfinished(&self) -> bool;
}
