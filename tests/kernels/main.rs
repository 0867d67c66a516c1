//! The product on the kernels of Debian 12, booted under qemu: every program loads, XDP and TC
//! attach, TC as links and as filters of `clsact`, a flow is translated there and back, a second
//! start takes over what the first left, and `detach` leaves the guard and nothing else.
//!
//! What happens inside is `sluice-kernel-probe`. How many instructions the verifier went through
//! is written to `target/kernels/<series>.txt`, where `sluice-bench` reads it.

mod initramfs;
mod machine;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use gateway::datapath::object::Loaded;
use lab::Need;
use machine::Kernel;

/// The most instructions that the verifier of any kernel goes through.
const VERIFIER_LIMIT: u32 = 1_000_000;

/// The part of a program that an older kernel may leave out. A kernel's verifier removes what it
/// finds to be unreachable. That of 6.1 once found so of a third of a program, wrongly, which no
/// packet but one showed; what kernels inline is far less than this.
const MOST_LOST: f64 = 0.03;

/// How many bytes of every program are left after the verifier of this kernel.
fn kept_here() -> BTreeMap<String, u32> {
    let kept = |program: Loaded| (program.name, program.info.size_translated().expect("its size"));
    lab::programs::loaded().unwrap().into_iter().map(kept).collect()
}

fn passes_on(series: &str, test: &str) {
    let needs = [
        // To load the object here as well.
        Need::Lab,
        Need::Tool("qemu-system-x86_64"),
        Need::Tool("xz"),
        Need::Tool("ldd"),
    ];
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
    let here = kept_here();
    for program in &programs {
        let words: Vec<&str> = program.split_whitespace().collect();
        let before = |word| {
            let at = words.iter().position(|other| *other == word).expect("a count");
            words[at - 1].parse::<u32>().unwrap()
        };
        assert!((1..VERIFIER_LIMIT).contains(&before("instructions")), "{program}");
        let name = words.iter().skip_while(|word| **word != "program").nth(1).unwrap();
        let (there, here) = (before("bytes"), here[name.trim_end_matches(':')]);
        let lost = f64::from(here.saturating_sub(there)) / f64::from(here);
        assert!(lost < MOST_LOST, "only {there} of {here} bytes are left on {series}: {program}");
    }
    // Filters were tried beside the links of newer kernels.
    for hook in ["xdp", "tc"] {
        assert!(said.contains(&format!("probe: clsact-{hook}: taken out")), "no clsact:\n{said}");
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
