//! What the datapath and user space must agree on: map keys and values, names, numbers.
//!
//! Layouts only, no decisions. Addresses and ports stay as the packet carries them; where
//! several fields share a 64-bit word (so that one atomic operation can change them
//! together) the word has a type with named accessors here, and nobody shifts bits elsewhere.
//!
//! [`ABI_VERSION`] is raised with every change of a layout: a daemon that finds pinned maps
//! of another version migrates the sessions instead of misreading them.
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics))]
#![cfg_attr(
    target_arch = "bpf",
    allow(
        internal_features,
        reason = "atomics that return a value exist on this target only as intrinsics"
    )
)]

pub mod config;
pub mod control;
pub mod count;
pub mod event;
pub mod forward;
pub mod names;
pub mod policy;
pub mod port;
pub mod reason;
pub mod session;
pub mod word;

/// The version of every layout in this crate.
pub const ABI_VERSION: u32 = 1;

#[cfg(feature = "user")]
mod pod {
    macro_rules! pod {
        ($($type:ty),* $(,)?) => {
            $(
                // SAFETY: plain integers without padding, which the derived `IntoBytes` proves;
                // any bytes are a value, which `FromBytes` proves.
                unsafe impl aya::Pod for $type {}
            )*
        };
    }
    pod!(
        crate::forward::LinkInfo,
        crate::forward::NextHopKey,
        crate::forward::PortAddress4,
        crate::policy::HostKey4,
        crate::policy::IdentityRef,
        crate::policy::PrefixKey4,
        crate::port::PairKey4,
    );
}
