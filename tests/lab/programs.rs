//! The programs of the object, apart from any gateway.

use anyhow::Result;
use gateway::datapath::object::{Hooks, Loaded, Object, Sizes};

/// The object, loaded, with small tables of its own.
///
/// # Errors
///
/// When it does not load.
pub fn object(hooks: Hooks) -> Result<Object> {
    let sizes = Sizes {
        sessions: 1024,
        hosts: 1024,
        prefixes: 1024,
        identities: 64,
        rules: 64,
        port_classes: 64,
        next_hops: 64,
    };
    Ok(Object::load(&sizes, hooks, None, &[])?)
}

/// What this kernel has made of every program. The sizes of tables make no difference to that.
///
/// # Errors
///
/// When the object does not load.
pub fn loaded() -> Result<Vec<Loaded>> {
    Ok(object(Hooks { xdp: true, tc: true })?.loaded())
}
