//! Devices under test: what stands between the generator and the sink.

use std::sync::atomic::AtomicBool;

use anyhow::Result;
use aya::Ebpf;

use crate::object::{self, Settings};
use crate::topology::{INSIDE, OUTSIDE, SINK, set, stations};

pub(crate) mod documents;
pub(crate) mod nftables;
pub(crate) mod sluice;

/// Something that forwards from [`INSIDE`] to [`OUTSIDE`]. Every method is called inside the
/// device's namespace, whose links, addresses, routes and neighbours are there.
pub(crate) trait Dut: Send + Sync {
    /// What the table of a run calls it.
    fn name(&self) -> &'static str;

    /// Whether the sink must see other sources than the pods'.
    fn translates(&self) -> bool;

    /// Starts to forward. What it holds is released when the device is dropped.
    fn set_up(&mut self) -> Result<()>;

    /// Ends every flow that it remembers, so that the next packets are first packets.
    fn forget_flows(&mut self) -> Result<()>;

    /// What runs beside the traffic, on a thread of its own, while `sending`.
    fn beside(&self, _sending: &AtomicBool) -> Result<()> {
        Ok(())
    }
}

/// The kernel's forwarding and nothing else.
pub(crate) struct Forwarding;

impl Dut for Forwarding {
    fn name(&self) -> &'static str {
        "forwarding"
    }

    fn translates(&self) -> bool {
        false
    }

    fn set_up(&mut self) -> Result<()> {
        set("net/ipv4/ip_forward", "1")
    }

    fn forget_flows(&mut self) -> Result<()> {
        Ok(())
    }
}

/// An XDP program of the bench object, attached to the inside interface.
pub(crate) struct Redirect {
    program: &'static str,
    table_entries: u32,
    object: Option<Ebpf>,
}

impl Redirect {
    /// New addresses and out: the least that an XDP forwarder does.
    pub(crate) const fn bare() -> Self {
        Self { program: "bare_redirect", table_entries: 0, object: None }
    }

    /// The same after one random read of 64 bytes in a table with so many of them: the least that
    /// a forwarder with a session table does.
    pub(crate) const fn with_read(table_entries: u32) -> Self {
        assert!(table_entries.is_power_of_two(), "the index is masked");
        Self { program: "redirect_read", table_entries, object: None }
    }
}

impl Dut for Redirect {
    fn name(&self) -> &'static str {
        self.program
    }

    fn translates(&self) -> bool {
        false
    }

    fn set_up(&mut self) -> Result<()> {
        let settings = Settings {
            stations: stations(OUTSIDE, SINK),
            out: OUTSIDE.index,
            table_entries: self.table_entries,
            ..Settings::default()
        };
        let object = self.object.insert(object::load(self.program, settings)?);
        object::attach(object, self.program, INSIDE)
    }

    fn forget_flows(&mut self) -> Result<()> {
        Ok(())
    }
}
