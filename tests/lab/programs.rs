//! The programs of the object, to be looked at and not to be attached.

use anyhow::Result;
use gateway::datapath::object::{Hooks, Loaded, Object, Sizes};

/// What this kernel has made of every program. The sizes of tables make no difference to that.
///
/// # Errors
///
/// When the object does not load.
pub fn loaded() -> Result<Vec<Loaded>> {
    let sizes = Sizes {
        sessions: 1024,
        hosts: 1024,
        prefixes: 1024,
        identities: 64,
        rules: 64,
        port_classes: 64,
        next_hops: 64,
    };
    Ok(Object::load(&sizes, Hooks { xdp: true, tc: true }, None, &[])?.loaded())
}
