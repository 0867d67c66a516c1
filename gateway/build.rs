//! Builds the eBPF object, so that the daemon carries it inside.

fn main() {
    xdp_build::build_object("xdp", "sluice-xdp", "../xdp");
}
