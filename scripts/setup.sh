#!/usr/bin/env bash
# Installs what building and testing need and this machine lacks, and says what and why.
#
# Made for Debian 12 with rustup. Safe to repeat: what is there is left alone, and when nothing
# is missing one line says so, and without Go another what that leaves out. Never asks. With --all also what only
# `make test-all` uses.
set -euo pipefail
cd "$(dirname "$0")/.."

bpf_linker_version=0.10.3
cargo_deny_version=0.20.2
changed=no

say() {
    echo "setup: $*"
}

die() {
    echo "setup: $*" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo --non-interactive "$@"
    else
        die "needs root for: $*"
    fi
}

# Debian package, and why it is needed.
debian_packages() {
    if [ "${1-}" = --all ]; then
        cat <<'PACKAGES'
qemu-system-x86   boots the kernels of Debian
xz-utils          unpacks their modules
PACKAGES
    fi
    cat <<'PACKAGES'
gcc               links Rust programs
g++               builds libFuzzer for make fuzz
libc6-dev         links Rust programs
git               names the measured commit in bench reports
iproute2          the lab makes namespaces, links and routes
nftables          benches compare with the kernel's own NAT
conntrack         benches empty the kernel's session table between rounds
ethtool           the lab switches offloads
iputils-ping      demo client
curl              demo client
iperf3            demo client and throughput
tshark            a test reads with it what sluicectl has captured
jq                for reading flow records in `make demo-shell`
PACKAGES
}

install_packages() {
    local missing=() package why status
    while read -r package why; do
        status=$(dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null || true)
        if [ "$status" != "install ok installed" ]; then
            say "installing $package: $why"
            missing+=("$package")
        fi
    done < <(debian_packages "$@")
    if [ ${#missing[@]} -eq 0 ]; then
        return
    fi
    changed=yes
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -qq --yes --no-install-recommends "${missing[@]}" </dev/null
}

install_toolchain() {
    local channel component
    command -v rustup >/dev/null || die "rustup is missing: install it from https://rustup.rs"
    channel=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
    if ! rustup run "$channel" rustc --version >/dev/null 2>&1; then
        say "installing Rust $channel: the pinned compiler of this project"
        changed=yes
        rustup toolchain install "$channel" --profile minimal --no-self-update
    fi
    for component in "rust-src:core is compiled for the eBPF target" \
        "clippy:lints" "rustfmt:format"; do
        if ! rustup component list --toolchain "$channel" --installed |
            grep -q "^${component%%:*}\(-\|$\)"; then
            say "installing ${component%%:*}: ${component#*:}"
            changed=yes
            rustup component add --toolchain "$channel" "${component%%:*}"
        fi
    done
}

# A program from the registry at exactly one version: name, version, why.
install_program() {
    local have
    have=$("$1" --version 2>/dev/null || true)
    if [ "${have##* }" = "$2" ]; then
        return
    fi
    say "installing $1 $2: $3 (a minute or more)"
    changed=yes
    # Outside the project's target directory, which may be a cache for the project alone.
    env -u CARGO_TARGET_DIR cargo install --quiet --locked --force "$1" --version "$2"
}

# The newest kernel of a series that Debian has for clouds, unpacked for tests that boot it.
unpack_kernel() {
    local series=$1 cache package
    cache=${XDG_CACHE_HOME:-$HOME/.cache}/sluice/kernels
    if compgen -G "$cache/linux-image-$series.*-cloud-amd64/boot/vmlinuz-*" >/dev/null; then
        return
    fi
    package=$(apt-cache search --names-only "^linux-image-${series//./\\.}\..*-cloud-amd64\$" |
        cut -d ' ' -f 1 | sort --version-sort | tail -n 1)
    if [ -z "$package" ]; then
        say "no kernel $series in the package lists: tests that boot it are skipped"
        return
    fi
    say "unpacking $package: the object is loaded on it under qemu"
    changed=yes
    mkdir -p "$cache"
    (cd "$cache" && apt-get -o APT::Sandbox::User=root download -qq "$package" &&
        dpkg-deb --extract "$package"_*.deb "$package" && rm "$package"_*.deb)
}

mount_bpffs() {
    if grep -q ' /sys/fs/bpf bpf ' /proc/mounts; then
        return
    fi
    say "mounting /sys/fs/bpf: sessions are pinned there to outlive the daemon"
    changed=yes
    as_root mount -t bpf bpf /sys/fs/bpf ||
        die "cannot mount bpffs: the kernel needs CONFIG_BPF_SYSCALL, a container the privilege"
}

case "$#:${1-}" in
0: | 1:--all) ;;
1:--help | 1:-h)
    echo "usage: scripts/setup.sh [--all]"
    echo "Installs what building and testing need; with --all also what only \`make test-all\` uses."
    exit
    ;;
*)
    echo "setup: expected --all or nothing, not: $*" >&2
    exit 2
    ;;
esac
command -v apt-get >/dev/null || die "made for Debian 12; elsewhere install by hand:
$(debian_packages)"
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
install_packages "$@"
install_toolchain
install_program bpf-linker "$bpf_linker_version" "links the eBPF objects, with this compiler's LLVM"
if [ "${1-}" = --all ]; then
    install_program cargo-deny "$cargo_deny_version" "checks licences and sources of dependencies"
    unpack_kernel 6.1
    unpack_kernel 6.12
    scripts/peers.sh
elif ! command -v go >/dev/null; then
    say "Go is not installed: tests that talk to a Kubernetes API server are skipped unless it was" \
        "built before; get 1.26 or newer from https://go.dev/dl, then scripts/peers.sh"
fi
mount_bpffs
if [ "$changed" = no ]; then
    say "everything is there"
fi
