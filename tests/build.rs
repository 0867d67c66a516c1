//! Builds the eBPF object of the benches, so that `sluice-bench` carries it inside.

fn main() {
    xdp_build::build_object("bench-xdp", "bench-xdp", "bench-xdp");
}
