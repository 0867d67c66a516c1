//! xdp/abi
