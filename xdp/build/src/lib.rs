//! Builds an eBPF object from a build script, so that the program that loads it carries it.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

/// Compiles `binary` of `package` for the BPF target and leaves it in `$OUT_DIR/<binary>`.
///
/// `core` has to be compiled for that target, which the pinned stable compiler does for a child
/// that is told to bootstrap. The child gets a target directory of its own, since this one is
/// locked by the cargo that runs us, and none of the settings that are meant for the host.
pub fn build_object(package: &str, binary: &str, directory: &str) {
    println!("cargo::rerun-if-changed={directory}");
    println!("cargo::rerun-if-env-changed=PATH");
    let out = PathBuf::from(variable("OUT_DIR"));
    let target = match variable("CARGO_CFG_TARGET_ENDIAN").to_str() {
        Some("big") => "bpfeb-unknown-none",
        _ => "bpfel-unknown-none",
    };
    let arch = variable("CARGO_CFG_TARGET_ARCH").into_string().expect("an arch is ASCII");
    let flags = [
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        format!("-Clinker={}", linker().display()),
        // Types for the verifier's messages, and for maps that are declared by BTF.
        "-Cdebuginfo=2".to_owned(),
        // Atomics that return a value are in the instruction set from its third version on
        // (kernel 5.12).
        "-Ctarget-cpu=v3".to_owned(),
        "-Clink-arg=--btf".to_owned(),
    ];
    let mut cargo = Command::new(variable("CARGO"));
    cargo
        .args(["build", "--release", "--package", package, "--bin", binary])
        .args(["--target", target, "-Zbuild-std=core", "--target-dir"])
        .arg(out.join("bpf"))
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    for host_only in [
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTDOC",
        "RUSTFLAGS",
        "CARGO_BUILD_TARGET",
    ] {
        cargo.env_remove(host_only);
    }
    let status = cargo.status().expect("cargo starts, as it started this script");
    assert!(status.success(), "the eBPF object of `{package}` does not build: {status}");
    let built = out.join("bpf").join(target).join("release").join(binary);
    std::fs::copy(&built, out.join(binary)).expect("the object was just built");
}

/// `bpf-linker` by its path: `cargo install` puts it where a service's PATH may not look.
fn linker() -> PathBuf {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let installed = home.map(|home| home.join("bin/bpf-linker"));
    match installed {
        Some(path) if path.exists() => path,
        _ => PathBuf::from("bpf-linker"),
    }
}

fn variable(name: &str) -> OsString {
    env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name} for build scripts"))
}
