//! What happens to a packet.
//!
//! The decision core: pure, without `unsafe`, without an allocator. It sees a packet through
//! [`frame::Frame`], and state through [`tables::Tables`]; the eBPF object answers both from
//! the kernel, tests and `explain` from memory. Everything is generic over the address type:
//! IPv6 brings a layout of its own, not a copy of the logic.
//!
//! Two ways through: [`established`] replays what was decided, with one dependent memory
//! access; [`decide`] does the rest and writes down what it decided. [`pipeline`] is the order of
//! both. [`table`] is the protocol by which sessions appear and vanish while other processors look
//! on.
#![cfg_attr(not(any(test, feature = "memory")), no_std)]
#![forbid(unsafe_code)]

pub mod address;
pub mod arrival;
pub mod books;
pub mod bounds;
pub mod checksum;
pub mod decide;
pub mod egress;
pub mod established;
pub mod frame;
pub mod guard;
pub mod icmp;
#[cfg(all(feature = "memory", not(loom)))]
pub mod memory;
pub mod packet;
pub mod pipeline;
pub mod policy;
pub mod recent;
pub mod repeat;
pub mod reply;
pub mod rewrite;
pub mod sample;
pub mod session;
pub mod snat;
pub mod stamp;
pub mod sweep;
pub mod table;
pub mod tables;
pub mod tcp;
pub mod verdict;
