//! A packet in a vector.

use crate::frame::Frame;

/// A frame that starts with its Ethernet header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryFrame {
    /// What is on the wire, but for a tag that the hardware took off.
    pub bytes: Vec<u8>,
    /// That tag.
    pub offload: Option<u16>,
    /// Packets of the wire that this is.
    pub segments: u32,
    /// Payload of each of them; zero: unknown, or there is one.
    pub segment: u32,
}

impl MemoryFrame {
    /// A frame as a cable carries it.
    #[must_use]
    pub const fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, offload: None, segments: 1, segment: 0 }
    }
}

impl Frame for MemoryFrame {
    fn length(&self) -> u32 {
        self.bytes.len() as u32
    }
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let start = offset as usize;
        self.bytes.get(start..start + N)?.try_into().ok()
    }
    fn store<const N: usize>(&mut self, offset: u32, bytes: [u8; N]) -> Option<()> {
        let start = offset as usize;
        self.bytes.get_mut(start..start + N)?.copy_from_slice(&bytes);
        Some(())
    }
    fn vlan_offload(&self) -> Option<u16> {
        self.offload
    }
    fn set_vlan(&mut self, was: u16, vlan: u16) -> Option<()> {
        if self.bytes.len() < 14 {
            return None;
        }
        if self.offload.is_some() {
            self.offload = Some(vlan).filter(|tag| *tag != 0);
            return Some(());
        }
        let [high, low] = vlan.to_be_bytes();
        match (was, vlan) {
            (0, _) => drop(self.bytes.splice(12..12, [0x81, 0x00, high, low])),
            (_, 0) => drop(self.bytes.drain(12..16)),
            _ => self.store(14, [high, low])?,
        }
        Some(())
    }
    fn renew(&mut self, length: u32) -> Option<()> {
        // Neither zero nor what was there, so that whoever forgets a byte is found out.
        *self = Self { offload: self.offload, ..Self::new(vec![0xa5; length as usize]) };
        Some(())
    }
    fn segments(&self) -> u32 {
        self.segments
    }
    fn segment(&self) -> u32 {
        self.segment
    }
}
