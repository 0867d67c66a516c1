//! The product on the kernels of Debian 12, booted under qemu: every program loads, XDP and TC
//! attach, a flow is translated there and back, a second start takes over what the first left,
//! and `detach` leaves the guard and nothing else.
//!
//! What happens inside is `sluice-kernel-probe`. How many instructions the verifier went through
//! is written to `target/kernels/<series>.txt`, where `sluice-bench` reads it.

mod initramfs;
mod machine;

use std::fs;
use std::path::Path;

use lab::Need;
use machine::Kernel;

/// The most instructions that the verifier of any kernel goes through.
const VERIFIER_LIMIT: u32 = 1_000_000;

fn passes_on(series: &str, test: &str) {
    let needs = [Need::Tool("qemu-system-x86_64"), Need::Tool("xz"), Need::Tool("ldd")];
    if let Some(why) = lab::skip::missing(&needs) {
        return lab::skip::say(test, &why);
    }
    let Some(kernel) = Kernel::of_series(series) else {
        let why = format!("no unpacked kernel {series}; `scripts/setup.sh --all` fetches it");
        return lab::skip::say(test, &why);
    };
    let probe = Path::new(env!("CARGO_BIN_EXE_sluice-kernel-probe"));
    let results = probe.ancestors().nth(2).expect("cargo puts programs under a target directory");
    let results = results.join("kernels");
    fs::create_dir_all(&results).unwrap();
    let initramfs = results.join(format!("{series}.cpio"));
    let said = kernel.run(probe, &initramfs).unwrap();
    fs::remove_file(&initramfs).unwrap();

    let lines: Vec<&str> = said.lines().filter(|line| line.starts_with("probe: ")).collect();
    for line in &lines {
        println!("{line}");
    }
    assert_eq!(lines.last(), Some(&"probe: passed"), "the console said:\n{said}");
    assert!(said.contains(&format!("probe: kernel {series}.")), "another kernel:\n{said}");
    let programs: Vec<_> =
        lines.iter().copied().filter(|line| line.contains(": program ")).collect();
    for program in &programs {
        let words: Vec<&str> = program.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "instructions").expect("a count");
        let verified: u32 = words[at - 1].parse().unwrap();
        assert!((1..VERIFIER_LIMIT).contains(&verified), "{program}");
    }
    assert!(programs.len() >= 15, "both hooks tell of their programs:\n{said}");
    fs::write(results.join(format!("{series}.txt")), programs.join("\n") + "\n").unwrap();
}

#[test]
#[ignore = "boots a kernel under qemu"]
fn linux_6_1() {
    passes_on("6.1", "linux_6_1");
}

#[test]
#[ignore = "boots a kernel under qemu"]
fn linux_6_12() {
    passes_on("6.12", "linux_6_12");
}
