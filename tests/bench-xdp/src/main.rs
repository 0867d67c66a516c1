//! What the benches measure the gateway against, as one eBPF object.
//!
//! `generate` makes the traffic, `feed` makes it for one program without sending it,
//! `bare_redirect` is the least that any XDP forwarder does,
//! `redirect_read` adds the one memory access that a session table cannot avoid, `sink` counts
//! what arrives and `pass` switches NAPI on where frames shall go up the kernel's own stack.
//!
//! On the host this is an empty binary, so that clippy, doc and test see the whole workspace.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    not(target_arch = "bpf"),
    allow(dead_code, reason = "the programs are called by the kernel, not by `main`")
)]

mod program;

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
