#!/usr/bin/env bash
# Has libFuzzer look for bytes that break a reader of foreign bytes: each target of `tests/fuzz`
# for FUZZ_SECONDS (10), or with FUZZ_ONLY=name,name some.
#
# Guided by coverage, on the pinned stable compiler: what `cargo fuzz` has a nightly compiler for is
# its sanitizers, and the readers here have no unsafe code. What was learnt is kept beside the build
# and used the next time. A finding is a file; to see it again:
#     FUZZ_TARGET=name PROGRAM FILE
set -euo pipefail
cd "$(dirname "$0")/.."

if [ $# -gt 0 ]; then
    case "$1" in
    --help | -h)
        echo "usage: [FUZZ_SECONDS=N] [FUZZ_ONLY=name,name] scripts/fuzz.sh"
        echo "Targets: $(ls -m tests/fuzz/seeds)"
        exit
        ;;
    esac
    echo "fuzz: expected no arguments, not: $*" >&2
    exit 2
fi
IFS=, read -ra only <<<"${FUZZ_ONLY:-}"
for target in "${only[@]}"; do
    if [[ -z $target || $target = .* || $target = */* || ! -d tests/fuzz/seeds/$target ]]; then
        echo "fuzz: FUZZ_ONLY names \`$target\`; expected some of: $(ls -m tests/fuzz/seeds)" >&2
        exit 2
    fi
done

seconds=${FUZZ_SECONDS:-10}
host=x86_64-unknown-linux-gnu
directory=${CARGO_TARGET_DIR:-target}/fuzz
# Flags for the host's target only: build scripts, and the eBPF object they build, have none of it.
export RUSTFLAGS="-Cpasses=sancov-module -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares"
cargo build --quiet --release --package fuzz --features libfuzzer --bin sluice-fuzz \
    --target "$host" --target-dir "$directory"
program=$directory/$host/release/sluice-fuzz

findings=0
for seeds in tests/fuzz/seeds/*/; do
    target=$(basename "$seeds")
    if [ -n "${FUZZ_ONLY:-}" ] && [[ ",$FUZZ_ONLY," != *",$target,"* ]]; then
        continue
    fi
    corpus=$directory/corpus/$target
    found=$directory/findings/$target-
    mkdir -p "$corpus" "$directory/findings"
    log=$directory/$target.log
    if FUZZ_TARGET=$target "$program" -max_total_time="$seconds" -max_len=4096 -rss_limit_mb=2048 \
        -timeout=20 -artifact_prefix="$found" -print_final_stats=1 "$corpus" "$seeds" \
        >"$log" 2>&1; then
        executed=$(sed -n 's/^stat::number_of_executed_units: //p' "$log")
        echo "$target: nothing found in $executed executions"
    else
        findings=$((findings + 1))
        echo "$target: FINDING"
        grep -m 3 -E 'panicked at|^ERROR|Test unit written to' -A 1 "$log" || tail -n 20 "$log"
    fi
done
echo "$findings findings"
[ "$findings" -eq 0 ]
