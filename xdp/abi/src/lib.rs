//! What the datapath and user space must agree on: map keys and values, names, numbers.
//!
//! Layouts only, no decisions. Addresses and ports stay as the packet carries them; where
//! several fields share a 64-bit word (so that one atomic operation can change them
//! together) the word has a type with named accessors here, and nobody shifts bits elsewhere.
//!
//! [`ABI_VERSION`] is raised with every change of a layout, and what the layout before had
//! otherwise goes into a module of its own ([`v1`]): a daemon that finds pinned maps of it
//! carries the sessions over instead of misreading them.
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
#[cfg(all(not(target_arch = "bpf"), not(loom)))]
pub mod v1;
pub mod word;

/// The version of every layout in this crate.
pub const ABI_VERSION: u32 = 2;

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

#[cfg(all(test, not(loom)))]
mod tests {
    use crate::{config, control, count, event, forward, names, policy, port, session};

    /// What is pinned is used on by the next version, so a layout that changes without its
    /// number would be misread.
    #[test]
    fn the_layouts_are_those_of_version_2() {
        assert_eq!(super::ABI_VERSION, 2, "raise the sizes below with it");
        for (name, bytes, of_version_2) in [
            (names::SLOTS4, size_of::<session::Entry4>(), 64),
            (names::RECORDS4, size_of::<session::Record>(), 88),
            (names::OVERFLOW4, size_of::<session::OverflowKey4>(), 16),
            (names::CONFIG, size_of::<config::Config>(), 184),
            (names::SHARED, size_of::<config::Shared>(), 64),
            (names::EPOCHS, size_of::<[u32; session::EPOCHS]>(), 65_536),
            (names::COUNTERS, size_of::<count::Counters>(), 1_304),
            (names::RULE_COUNTS, size_of::<count::RuleCount>(), 16),
            (names::HOSTS4, size_of::<policy::HostKey4>(), 8),
            (names::PREFIXES4, size_of::<policy::PrefixKey4>(), 8),
            ("identity", size_of::<policy::IdentityRef>(), 8),
            (names::SOURCE_RULES, size_of::<policy::RuleSet>(), 2_080),
            (names::CLASSES, policy::CLASS_TABLE as usize, 131_328),
            (names::SNAT_BITS, size_of::<policy::SnatBits>(), 64),
            (names::RULES, size_of::<policy::Rule>(), 16),
            (names::SNAT, size_of::<policy::Snat>(), 24),
            (names::POOLS, size_of::<policy::PoolAddress>(), 8),
            (names::LENDABLE, size_of::<port::Ports>(), 8_320),
            (names::PAIRS4, size_of::<port::PairKey4>(), 16),
            (names::ATTACHMENTS, size_of::<forward::Attachment>(), 16),
            (names::SOURCES4, size_of::<forward::PortAddress4>(), 8),
            (names::PORTS, size_of::<forward::PortInfo>(), 48),
            (names::LINKS, size_of::<forward::LinkInfo>(), 16),
            (names::NEXT_HOPS, size_of::<forward::NextHop>(), 32),
            (names::NEXT_HOP_INDEX, size_of::<forward::NextHopKey>(), 16),
            (names::EVENTS, size_of::<event::Event4>(), 136),
            (names::CONTROL, size_of::<control::Order>(), 32),
        ] {
            assert_eq!(bytes, of_version_2, "{name}");
        }
    }

    #[test]
    fn routers_are_told_apart_by_what_is_kept_of_their_hardware_addresses() {
        let mac = [0x02, 0x12, 0x34, 0x56, 0x78, 0x9a];
        for at in 0..6 {
            for flip in 1..=255 {
                let mut other = mac;
                other[at] ^= flip;
                assert_ne!(session::sender(other), session::sender(mac), "byte {at}, {flip:#x}");
            }
        }
        // Numbered in several bytes alike, as by hand.
        for n in 1..=20u8 {
            for m in n + 1..=20 {
                let [one, other] = [n, m].map(|n| session::sender([2, 0, 0, 0, n, n]));
                assert_ne!(one, other, "{n} and {m}");
            }
        }
        assert_ne!(session::sender([2, 0, 0, 0, 0, 0x10]), session::sender([2, 0, 0, 0, 0x11, 1]));
    }
}
