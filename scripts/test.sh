#!/usr/bin/env bash
# Everything that has to hold before a commit: format, lints, documentation, dependencies, tests.
#
# Goes on after a failure, so that one run shows all of them. A test that cannot run here prints
# lines `SKIPPED: what: why`; those of a test are one line at the end. The last line is always
# `N passed, N failed, N skipped`, where each test and each check counts as one.
# With --all also tests that are marked as slow.
set -uo pipefail
cd "$(dirname "$0")/.."

ignored=()
case "$#:${1-}" in
0:) ;;
1:--all) ignored=(--include-ignored) ;;
1:--help | 1:-h)
    echo "usage: scripts/test.sh [--all]"
    echo "Checks and tests everything; with --all also by the tests that are marked as slow."
    exit
    ;;
*)
    echo "test: expected --all or nothing, not: $*" >&2
    exit 2
    ;;
esac

log_directory=$(mktemp -d)
trap 'rm -rf "$log_directory"' EXIT
log=$log_directory/log
skips=$log_directory/skips
touch "$skips"
passed=0
failed=0

skip() {
    echo "SKIPPED: $*" >>"$skips"
}

# Runs one check that either passes or fails.
check() {
    local what=$1
    shift
    echo "== $what"
    if "$@" </dev/null; then
        passed=$((passed + 1))
    else
        echo "FAILED: $what"
        failed=$((failed + 1))
    fi
}

# Lets through what a reader wants to see of cargo test: no binary without tests, no test that
# passed.
readable() {
    awk '
        /^ *(Running|Doc-tests) / { head = $0; quiet = 0; next }
        /^running 0 tests$/ || /^test result: ok\. 0 passed; 0 failed; 0 ignored/ { head = ""; next }
        /^successes:$/ { quiet = 1 }
        /^failures:$/ || /^test result/ { quiet = 0 }
        quiet || /^test .* \.\.\. ok$/ || !NF { next }
        head != "" { print head; head = "" }
        { print; fflush() }
    '
}

sum() {
    awk -v word="$1" '
        /^test result:/ { for (i = 2; i <= NF; i++) if ($i ~ "^" word) total += $(i - 1) }
        END { print total + 0 }
    ' "$log"
}

# Tests that passed only because they skipped what they are for, a line each: these did not pass. What
# a test that failed has skipped does not matter.
skipped_as_passed() {
    awk '
        function tell() { if (why != "") print "SKIPPED: " why; why = "" }
        /^successes:$/ { tell(); in_successes = 1 }
        /^failures:$/ || /^test result:/ { tell(); in_successes = 0 }
        /^---- .* stdout ----$/ { tell() }
        in_successes && sub(/^.*SKIPPED: /, "") { why = why (why == "" ? "" : "; ") $0 }
    ' "$log"
}

# Runs tests and adds up what the test binaries say.
tests() {
    local what=$1 result skipped_tests
    shift
    echo "== $what"
    "$@" </dev/null 2>&1 | tee "$log" | readable
    result=${PIPESTATUS[0]}
    skipped_tests=$(skipped_as_passed | tee -a "$skips" | wc -l)
    # Without a reason in the attribute the line ends at "ignored".
    sed -n 's/^test \(.*\) \.\.\. ignored,\? *\(.*\)$/SKIPPED: \1: slow, `make test-all` runs it; \2/p' \
        "$log" | sed 's/; $//' >>"$skips"
    passed=$((passed + $(sum passed) - skipped_tests))
    failed=$((failed + $(sum failed)))
    if [ "$result" -ne 0 ] && [ "$(sum failed)" -eq 0 ]; then
        echo "FAILED: $what: does not build, or a test binary died"
        failed=$((failed + 1))
    fi
}

dependencies() {
    if ! cargo deny --version >/dev/null 2>&1; then
        skip "cargo deny: not installed, \`make test-all\` installs it"
        return
    fi
    check "licences, bans and sources of dependencies" \
        cargo deny --offline --log-level error check licenses bans sources
    if cargo deny --log-level off fetch db </dev/null >/dev/null 2>&1; then
        check "advisories about dependencies" \
            cargo deny --offline --log-level error check advisories
    else
        skip "advisories: the advisory database cannot be fetched from here"
    fi
}

# Fetches also what only other targets or features need: the dependency check wants to see all of
# it, and asks no network.
check "lock file" cargo fetch --quiet --locked
check "format" cargo fmt --all --check
check "lints" cargo clippy --quiet --workspace --all-targets -- -D warnings
check "documentation" env RUSTDOCFLAGS="-D warnings" \
    cargo doc --quiet --workspace --no-deps --document-private-items
dependencies

# --show-output: skips are said by tests that pass, and libtest swallows their output.
tests "tests" cargo test --workspace --no-fail-fast -- --show-output "${ignored[@]}"
# The same code with loom's atomics: every interleaving that loom finds worth trying.
tests "model check" env RUSTFLAGS="--cfg loom" cargo test --package xdp --test model --release \
    --target-dir "${CARGO_TARGET_DIR:-target}/loom" -- --show-output

skipped=$(wc -l <"$skips")
echo
if [ "$skipped" -gt 0 ]; then
    echo "Skipped, $skipped:"
    cat "$skips"
fi
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
